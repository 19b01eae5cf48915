"""The two prompts of App. E in our words, and reading of the answers they produce.

An answer is one JSON object with these keys in this order: item_1, item_2, differences, confidence,
reasoning, VERDICT_KEY. Only the verdict is rewarded (Eq. 3); the descriptions are free chain of thought.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

from saga_lib.vocabulary import ITEM_SECTIONS, Attribute, Vocabulary

# ---------------------------------------------------------------------------------------------- prompts


def comparison_prompt(vocabulary: Vocabulary) -> str:
    """Return the structured prompt of App. E (role, describe 1, describe 2, differences and verdict)."""
    v = vocabulary
    every = v.differences == "every"
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
        '"item_1": an object with one text per attribute, "item_2": the same keys, "differences": '
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
            "item_1": {name: item_1[name] for name in names},
            "item_2": {name: item_2[name] for name in names},
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


# ---------------------------------------------------------------------------------------- reading answers


def parse_answer(text: str) -> dict | None:
    """Return the first JSON object in `text` (code fences and chatter allowed), or None."""
    start = text.find("{")
    if start < 0:
        return None
    try:
        value, _ = json.JSONDecoder().raw_decode(text, start)
    except (ValueError, RecursionError):  # syntax errors, and numbers of more than 4300 digits
        return None
    return value if isinstance(value, dict) else None


def parse_verdict(text: str, verdict_key: str) -> bool | None:
    """Return the verdict (True = same class), or None when the answer has none.

    Falls back to a complete `"VERDICT_KEY": "yes"|"no"` field when the rest of the JSON is broken; a
    truncated answer has no verdict and earns no reward (Eq. 3).

    >>> parse_verdict('{"differences": "none", "same_species": "Yes"}', "same_species")
    True
    >>> parse_verdict('{"item_1": {"bill', "same_species") is None
    True
    """
    answer = parse_answer(text)
    if answer is not None:
        value = answer.get(verdict_key)
    else:
        found = re.findall(rf'"{re.escape(verdict_key)}"\s*:\s*"(\w+)"', text)
        value = found[-1] if found else None
    if isinstance(value, bool):
        return value
    if isinstance(value, str):
        return {"yes": True, "no": False}.get(value.strip().lower().rstrip("."))
    return None


@dataclass(frozen=True)
class AttributeSpan:
    """Where an answer describes an attribute: characters [start, end) of the value in one section."""

    section: str  # "item_1", "item_2" or "differences"
    attribute: str
    start: int
    end: int


def attribute_spans(text: str, sections: tuple[str, ...] = ITEM_SECTIONS) -> list[AttributeSpan]:
    """Return the spans of all attribute values in the named sections, in order of the text.

    For truncated answers, returns the spans that are complete. Quotes are not part of a span.

    >>> [(s.section, s.attribute, '{"item_1": {"bill shape": "cone"}}'[s.start:s.end])
    ...  for s in attribute_spans('{"item_1": {"bill shape": "cone"}}')]
    [('item_1', 'bill shape', 'cone')]
    """
    decoder = json.JSONDecoder()
    spans = []
    for section in sections:
        opening = re.search(rf'"{re.escape(section)}"\s*:\s*\{{', text)
        if opening is None:
            continue
        position = opening.end()
        while key := re.compile(r'\s*,?\s*("(?:[^"\\]|\\.)*")\s*:\s*').match(text, position):
            try:
                name, (_, end) = json.loads(key.group(1)), decoder.raw_decode(text, key.end())
            except (ValueError, RecursionError):
                break
            quoted = text[key.end()] == '"'
            spans.append(AttributeSpan(section, name, key.end() + quoted, end - quoted))
            position = end
    return spans


