"""Questions that the paper does not ask, and true answers: to pre-train supervisors and to measure what they read."""

from __future__ import annotations

import json
from collections.abc import Mapping

from saga_lib.prompts import REASONING
from saga_lib.vocabulary import Vocabulary


def generic_answer(vocabulary: Vocabulary, item_1: Mapping[str, str], item_2: Mapping[str, str]) -> str:
    """Return the true answer to `generic_prompt`: at most three differing attributes by name, then the verdict."""
    different = [name for name in vocabulary.attribute_names if item_1[name] != item_2[name]]
    return json.dumps(
        {
            "differences": ", ".join(different[:3]) or "none",
            "reasoning": REASONING[min(len(different), 2)],
            vocabulary.verdict_key: "no" if different else "yes",
        }
    )
