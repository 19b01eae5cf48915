"""The two prompts of App. E in our words, and the true answers to them.

An answer is one JSON object with these keys in this order: the two items by the vocabulary's name for them (bird_1, bird_2),
differences, confidence, reasoning, VERDICT_KEY. `saga_lib.answers` reads it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from saga_lib.vocabulary import Attribute, Vocabulary

# ---------------------------------------------------------------------------------------------- prompts


def comparison_prompt(vocabulary: Vocabulary) -> str:
    """Return the structured prompt of App. E (role, describe 1, describe 2, differences and verdict)."""
    v = vocabulary
    (first, second), every = v.keys.items, v.differences == "every"
    lines = [
        f"You are an expert {v.expert}. Your task is to tell {v.target_plural} apart: identify the {v.identify} in two images.",
        "Compare them along these attributes:",
        *(attribute_line(attribute) for attribute in v.attributes),
        f'1. Describe the {v.item} in image 1 along every attribute in a few words (like "{v.example}").',
        f"2. Describe the {v.item} in image 2 along the same attributes.",
        (
            "3. Say for every attribute whether the two are the same or different, then give the verdict: "
            if every
            else f"3. Name the key differences between the two {v.item_plural}, then give the verdict: "
        )
        + f"do both images show the {v.verdict_question}?",
        "Answer with one JSON object and nothing else, its keys in this order:",
        f'"{first}": an object with one text per attribute, "{second}": the same keys, "differences": '
        + ('an object with "same" or "different" per attribute' if every else "the key differences")
        + ', "confidence": "high", "medium" or "low", "reasoning": one sentence, '
        + f'"{v.verdict_key}": "yes" or "no".',
    ]
    return "\n".join(lines)


def generic_prompt(vocabulary: Vocabulary) -> str:
    """Return the generic variant of App. E: no role, no attribute list (L_KL is undefined for it)."""
    v = vocabulary
    return "\n".join(
        [
            f"Compare the two images. Do both show the {v.verdict_question}?",
            "Answer with one JSON object and nothing else, its keys in this order:",
            f'"differences": the key differences, "reasoning": one sentence, "{v.verdict_key}": "yes" or "no".',
        ]
    )


def attribute_line(attribute: Attribute) -> str:
    return f"- {attribute.name}" + (f" ({' / '.join(attribute.values)})" if attribute.values else "")


# ------------------------------------------------------------------------------------------ true answers


def comparison_answer(vocabulary: Vocabulary, item_1: Mapping[str, str], item_2: Mapping[str, str]) -> str:
    """Return the true answer to `comparison_prompt` for two items whose attributes are known.

    Two items are of one class exactly if all their attributes agree, as in the miniature world.
    """
    names = vocabulary.attribute_names
    different = [name for name in names if item_1[name] != item_2[name]]
    if vocabulary.differences == "every":
        differences: object = {name: "different" if name in different else "same" for name in names}
    else:
        differences = ", ".join(different) or "none"
    return json.dumps(
        {
            **{key: {name: item[name] for name in names} for key, item in zip(vocabulary.keys.items, (item_1, item_2), strict=True)},
            "differences": differences,
            "confidence": CONFIDENCE[min(len(different), 3)],
            "reasoning": REASONING[min(len(different), 2)],
            vocabulary.verdict_key: "no" if different else "yes",
        }
    )


def varied_items(vocabulary: Vocabulary) -> list[dict[str, str]]:
    """Return items that together show every value, and from the first of which the others differ in 1, 2, … attributes.

    None where an attribute's values are free text.
    """
    attributes = vocabulary.attributes
    if not all(attribute.values for attribute in attributes):
        return []
    return [
        {a.name: a.values[turn % len(a.values) if place < changed else 0] for place, a in enumerate(attributes)}
        for turn in range(max(len(a.values) for a in attributes))
        for changed in range(len(attributes) + 1)
    ]


CONFIDENCE = ("high", "low", "medium", "high")  # by number of differing attributes
REASONING = ("all attributes agree", "one attribute differs", "several attributes differ")
