"""How much a reading is: the tokens of a question about one image and of the answer that is forced (`saga_lib.reading`)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from saga_lib.vocabulary import Vocabulary
from saga_study.planner.cards import Assumptions


class ReadingLengths(NamedTuple):
    """Tokens of one image's reading, and what is read there."""

    prompt: int = 0  # without image and chat
    answer: int = 0  # forced, or of the model's own description, with the end of its turn
    beside: int = 0  # tokens that lead to values which share the beginning of the forced one but not the rest
    values: tuple[int, ...] = ()  # of each attribute; 0: free text, read over all tokens

    def logits(self, tokens: int) -> int:
        """Return how many numbers are read from an image by a model of so many `tokens`."""
        return sum(count or tokens for count in self.values)


# By vocabulary: characters and tokens of the prompt that asks for one image's attributes, and the tokens of the forced answer, whose
# descriptions are first values or, of free text, the vocabulary's example. Counted as those of `workload.MEASURED_LENGTHS`.
MEASURED_READINGS = {"birds": (586, 155, 378), "cars": (434, 108, 317), "aircraft": (831, 200, 315)}


def reading_lengths(
    name: str, vocabulary: Vocabulary, encode: Callable[[str], Sequence[int]] | None, assume: Assumptions
) -> ReadingLengths:  # fmt: skip
    """Return the lengths of a reading: counted by a tokenizer's `encode`, else measured ones of a shipped `name`, else estimated."""
    values = tuple(len(attribute.values) for attribute in vocabulary.attributes)
    if encode is None and name in MEASURED_READINGS:
        prompt, answer = MEASURED_READINGS[name][1:]
        return ReadingLengths(prompt, answer + 1, 0, values)
    from saga_lib.reading import description_answer, description_prompt  # imports torch

    prompt = description_prompt(vocabulary)
    first = {a.name: a.values[0] if a.values else vocabulary.example for a in vocabulary.attributes}
    answer = description_answer(vocabulary, first)
    if encode is None:
        lengths = (math.ceil(len(text) / assume.characters_per_token) for text in (prompt, answer))
        return ReadingLengths(*lengths, 0, values)
    beside = 0
    for attribute in vocabulary.attributes:
        answers = [encode(description_answer(vocabulary, first | {attribute.name: value})) for value in attribute.values]
        beside += _beside(answers) if answers else 0
    return ReadingLengths(len(encode(prompt)), len(encode(answer)) + 1, beside, values)


def _beside(answers: Sequence[Sequence[int]]) -> int:
    """Return the tokens off the first of some answers that lead to where others of them part."""
    forced = answers[0]
    parts = {tuple(a[: _common(a, b)]) for a in answers for b in answers if a is not b}
    return sum(len(place) - _common(place, forced) for place in parts)


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    return next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
