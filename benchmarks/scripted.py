"""Words for a model with random weights: a tokenizer made here, and an answer of a given length that describes both images."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace

from saga_lib.common.errors import SagaError
from saga_lib.prompts import comparison_answer
from saga_lib.vocabulary import Vocabulary

IMAGE = "<image>"


class Words:
    """A tokenizer that gives ids to the pieces of a text, of up to five letters, as they come.

    So any text has about as many tokens as with a real one, and comes back whole. Ids that no piece has are empty; 0 ends an answer.
    """

    end = 0
    eos_token_id = -1  # never drawn: random answers go on to their full length

    def __init__(self, image_token_id: int, ids: int) -> None:
        self._image, self._ids, self._pieces = image_token_id, ids, {0: ""}
        self._known: dict[str, int] = {IMAGE: image_token_id}
        self._split = re.compile(rf"{IMAGE}| ?\w{{1,5}}| ?[^\w\s]+|\s+")

    def encode(self, text: str, **_: object) -> list[int]:
        return [self._known[piece] if piece in self._known else self._add(piece) for piece in self._split.findall(text)]

    def _add(self, piece: str) -> int:
        new = next(n for n in range(len(self._pieces), self._ids + 1) if n not in (self._image, *self._pieces))
        if new == self._ids:
            raise SagaError(f"{self._ids} tokens are too few for these texts")
        self._known[piece], self._pieces[new] = new, piece
        return new

    def decode(self, ids: Sequence[int], **_: object) -> str:
        return "".join(self._pieces.get(int(n), "") for n in ids)

    def convert_ids_to_tokens(self, token: int) -> str:
        return IMAGE if token == self._image else self._pieces.get(token, "")


def processor_of(image_token_id: int, ids: int) -> SimpleNamespace:
    """Return what stands for a model's processor: `Words`, and a chat of images and text with nothing around them."""

    def chat(messages: Sequence[dict], **_: object) -> str:
        return "\n".join(part.get("text", IMAGE) for part in messages[0]["content"])

    return SimpleNamespace(
        tokenizer=Words(image_token_id, ids), image_processor=None, image_token_id=image_token_id, apply_chat_template=chat,
        image_token=IMAGE, start_image_token="", end_image_token="",
    )  # fmt: skip


def scripted_answer(words: Words, vocabulary: Vocabulary, length: int) -> list[int]:
    """Return `length` tokens of an answer that describes both images along as many attributes as fit; cut if not even one does."""
    for count in range(len(vocabulary.attributes), 0, -1):
        fewer = replace(vocabulary, attributes=vocabulary.attributes[:count])
        item = {a.name: a.values[0] if a.values else fewer.example for a in fewer.attributes}
        text = comparison_answer(fewer, item, item)
        missing = length - len(words.encode(text))
        if missing >= 0:
            return words.encode(text.replace("all attributes agree", "all attributes agree" + " a" * missing))
    return words.encode(text)[:length]
