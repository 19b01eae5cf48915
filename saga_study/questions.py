"""Questions that the paper does not ask, and true answers: to pre-train supervisors and to measure what they read."""

from __future__ import annotations

import json
from collections.abc import Mapping

from saga_lib.prompts import REASONING, attribute_line
from saga_lib.vocabulary import Vocabulary


def description_prompt(vocabulary: Vocabulary) -> str:
    """Return the prompt that asks for the attributes of one image."""
    v = vocabulary
    return "\n".join(
        [
            f"You are an expert {v.expert}. Describe the {v.item} in the image along these attributes:",
            *(attribute_line(attribute) for attribute in v.attributes),
            'Answer with one JSON object and nothing else: "item_1": an object with one text per attribute.',
        ]
    )


def description_answer(vocabulary: Vocabulary, item: Mapping[str, str]) -> str:
    """Return the true answer to `description_prompt` for an item whose attributes are known."""
    return json.dumps({"item_1": {name: item[name] for name in vocabulary.attribute_names}})


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
