"""Words in place of a query image: a direction in an encoder's embeddings for each value of an attribute.

The directions are learnt from what a frozen model says of images by itself: a ridge regression of its descriptions on the embeddings.
No true attribute is used. A query is the sum of its values' directions; its nearest neighbours, by the same index that images are
searched with, are the images whose descriptions would name these values. Shapes: N images, D_e embedding dimension, V values of all
attributes together.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from saga_lib.common.errors import SagaError, unknown_name
from saga_lib.common.files import read_json, write_atomically, write_json
from saga_lib.common.texts import alike

if TYPE_CHECKING:
    from torch import Tensor, nn

    from saga_lib.encoder import Encoder
    from saga_lib.supervisor.base import Supervisor
    from saga_lib.vocabulary import Vocabulary

MAP_FILE, WEIGHTS = "words.json", "words.safetensors"
FORMAT = 1
RIDGES = np.logspace(-4, 4, 17)  # of which leave-one-out over the described images chooses
SAID = 2  # images that a free text must be said of before it counts as a value of its attribute
FILLING = {"a", "an", "the", "and", "with", "its", "of", "in", "on", "has", "is"}  # words that say nothing of an image

Values = Mapping[str, Sequence[str]]  # of each attribute, in an order that is kept

# ------------------------------------------------------------------------------------------------ what words mean


def parse_words(text: str, values: Values) -> dict[str, str]:
    """Return {attribute: value} of a phrase such as "red crown and barred wing" or "crown color: red; wing pattern: barred".

    A part may leave out what its value makes clear. Raises `SagaError` with the closest known words for a part that names no value, and
    with the choices for one that may mean several.

    >>> parse_words("red crown, barred", {"crown color": ["red", "black"], "wing pattern": ["plain", "barred"]})
    {'crown color': 'red', 'wing pattern': 'barred'}
    """
    meant: dict[str, str] = {}
    for part in _parts(text, values):
        attribute, value = _one_meaning(part, values)
        if meant.get(attribute, value) != value:
            raise SagaError(f"the words say {meant[attribute]!r} and {value!r} of {attribute}; an image has one of them: leave one out")
        meant[attribute] = value
    if not meant:
        raise SagaError(f"the words {text!r} say nothing; give some such as {_example(values)!r}")
    return meant


def _parts(text: str, values: Values) -> list[str]:
    """Return the parts of a phrase; one that has a meaning with its "and" ("black and white") stays whole."""
    parts = []
    for part in re.split(r"[,;]", text):
        whole = bool(_meanings(part, values)) or ":" in part and " and " not in part
        parts += [part] if whole else re.split(r"\s+(?:and|with)\s+|\s*&\s*", part.strip())
    return [part.strip() for part in parts if alike(part)]


def _one_meaning(part: str, values: Values) -> tuple[str, str]:
    if ":" in part:
        attribute, value = map(str.strip, part.split(":", 1))
        attribute = _known("attribute", attribute, values)
        return attribute, _known(f"value of {attribute}", value, values[attribute])
    found = _meanings(part, values)
    if not found:
        raise unknown_name("words", part, known_words(values))
    if len(found) > 1:
        choices = " or ".join(f"'{attribute}: {value}'" for attribute, value in found)
        raise SagaError(f"the words {part!r} may mean {choices}; write one of these")
    return found[0]


def _known(kind: str, name: str, names: Iterable[str]) -> str:
    by_text = {alike(one): one for one in names}
    if alike(name) not in by_text:
        raise unknown_name(kind, name, by_text.values())
    return by_text[alike(name)]


def _meanings(part: str, values: Values) -> list[tuple[str, str]]:
    """Return the (attribute, value) that a part may mean: all of the value's words are there, and none that is not the attribute's."""
    said, found = Counter(word for word in alike(part).split() if word not in FILLING), []
    for attribute, own in values.items():
        for value in own:
            words = Counter(word for word in alike(value).split() if word not in FILLING)
            rest = said - words
            if words and not words - said and all(_is_of(word, attribute) for word in rest):
                found.append((sum(words.values()), attribute, value))
    longest = max((length for length, *_ in found), default=0)
    return [(attribute, value) for length, attribute, value in found if length == longest]


def _is_of(word: str, attribute: str) -> bool:
    return any(word in (one, f"{one}s") or f"{word}s" == one for one in alike(attribute).split())


def known_words(values: Values) -> list[str]:
    """Return a phrase for each value: "red crown color"."""
    return [f"{value} {attribute}" for attribute, own in values.items() for value in own]


def _example(values: Values) -> str:
    return " and ".join(f"{own[0]} {attribute}" for attribute, own in list(values.items())[:2] if own)


# ------------------------------------------------------------------------------------------- what a supervisor says


@dataclass(frozen=True)
class Descriptions:
    """What a frozen model says of N images: of each attribute its values (V) and how likely the model finds each, (N, V) in 0-1."""

    values: dict[str, tuple[str, ...]]
    shares: list[np.ndarray]

    def matrix(self) -> np.ndarray:
        """Return (N, V) of all attributes side by side."""
        return np.concatenate(self.shares, 1)


def describe_images(tower: nn.Module, supervisor: Supervisor, vocabulary: Vocabulary, chunks: Iterable[Tensor]) -> Descriptions:
    """Let a frozen model describe images, given as the pixels that the tower prepared, a chunk (n, …) at a time.

    Where all attributes have values, they are read with their probabilities (`saga_lib.reading`). Otherwise the model writes a
    description of each image, greedily, and the texts that it gives at least `SAID` images are the values; an image it says something
    else of has none. Raises `SagaError` where it says the same of all images.
    """
    import torch

    from saga_lib.reading import Reader
    from saga_lib.towers import autocast

    reader, read, said = Reader(supervisor, vocabulary), [], []
    is_closed = all(attribute.values for attribute in vocabulary.attributes)
    with torch.no_grad(), autocast(supervisor.device):
        for pixels in chunks:
            images = tower(pixels.to(supervisor.device))
            if is_closed:
                read.append([log_p.exp().float().cpu().numpy() for log_p in reader(images)])
            else:
                said += [_items(supervisor.decode(answer)) for answer in reader.describe(images)]
    if is_closed:
        return Descriptions({a.name: a.values for a in vocabulary.attributes}, [np.concatenate(parts) for parts in zip(*read, strict=True)])
    return descriptions_of(said, vocabulary.attribute_names)


def _items(answer: str) -> dict[str, str]:
    from saga_lib.answers import parse_answer
    from saga_lib.reading import ITEM

    item = (parse_answer(answer, ITEM) or {}).get(ITEM)
    return {name: value for name, value in item.items() if isinstance(value, str)} if isinstance(item, dict) else {}


def descriptions_of(said: Sequence[Mapping[str, str]], names: Iterable[str]) -> Descriptions:
    """Return as `Descriptions` what texts say of N images, attribute by attribute."""
    values, shares = {}, []
    for name in names:
        texts = [alike(item.get(name, "")) for item in said]
        counts = Counter(text for text in texts if text)
        own = tuple(sorted(text for text, count in counts.items() if SAID <= count < len(said)))
        if own:
            values[name] = own
            shares.append(np.array([[text == value for value in own] for text in texts], dtype=np.float32))
    if not values:
        raise SagaError(
            f"the supervisor says the same of all {len(said)} images, or of no two of them: no words can be learnt; "
            "take more images, or a vocabulary with values"
        )
    return Descriptions(values, shares)


# ------------------------------------------------------------------------------------------------------- the map


@dataclass(frozen=True)
class WordMap:
    """A direction (V, D_e) in an encoder's embeddings for each value; `encoder` is the digest of the one it was learnt with, or ""."""

    values: dict[str, tuple[str, ...]]
    directions: np.ndarray
    encoder: str = ""

    @classmethod
    def learn(cls, said: Descriptions, embeddings: np.ndarray, encoder: str = "") -> WordMap:
        """Learn the map from descriptions of N images and their embeddings (N, D_e).

        Ridge regression of the former on the latter. Its strength is chosen by leave-one-out on these images. (The regression the other
        way round, of embeddings on descriptions, found less on validation classes: docs/study_log.md.)
        """
        from sklearn.linear_model import RidgeCV

        target = said.matrix()
        if len(target) != len(embeddings) or len(target) < 2:
            raise SagaError(f"{len(embeddings)} embeddings for {len(target)} descriptions; words are learnt from at least two of each")
        fitted = RidgeCV(RIDGES).fit(np.asarray(embeddings, dtype=np.float64), target)
        return cls(dict(said.values), np.atleast_2d(fitted.coef_).astype(np.float32), encoder)

    def embed(self, queries: Iterable[Mapping[str, str]]) -> np.ndarray:
        """Return (Q, D_e) float32: a vector for each query {attribute: value}, of any length, whose nearest neighbours are its images.

        Raises `SagaError` for an attribute or a value that the map does not know.
        """
        rows = {pair: row for row, pair in enumerate((name, value) for name, own in self.values.items() for value in own)}
        vectors = []
        for query in queries:
            names = {_known("attribute", name, self.values): value for name, value in query.items()}
            pairs = [(name, _known(f"value of {name}", value, self.values[name])) for name, value in names.items()]
            vectors.append(self.directions[[rows[pair] for pair in pairs]].sum(0))
        return np.stack(vectors)

    def save(self, folder: str | Path) -> None:
        """Write the map into a folder, that of an encoder or of an index: `words.json` and `words.safetensors`."""
        from safetensors.numpy import save

        content, folder = save({"directions": np.ascontiguousarray(self.directions)}), Path(folder)
        write_atomically(folder / WEIGHTS, lambda path: path.write_bytes(content))
        record = {"format": FORMAT, "encoder": self.encoder, "sha256": hashlib.sha256(content).hexdigest()}
        write_json(folder / MAP_FILE, record | {"values": {name: list(own) for name, own in self.values.items()}})

    @classmethod
    def load(cls, folder: str | Path) -> WordMap:
        """Read the map of a folder; raises `SagaError` if there is none, or if it is damaged."""
        from safetensors import SafetensorError
        from safetensors.numpy import load

        folder = Path(folder)
        if not (folder / MAP_FILE).is_file():
            raise SagaError(f"{folder} knows no words yet ({MAP_FILE} is missing); learn some with: python -m saga_study.search words")
        again = "learn the words again"
        try:
            record, content = read_json(folder / MAP_FILE), (folder / WEIGHTS).read_bytes()
            if record["format"] != FORMAT or record["sha256"] != hashlib.sha256(content).hexdigest():
                raise SagaError(f"{folder / WEIGHTS} is not the one that {MAP_FILE} was written with; {again}")
            made = cls({name: tuple(own) for name, own in record["values"].items()}, load(content)["directions"], record["encoder"])
        except (OSError, KeyError, TypeError, AttributeError, ValueError, SafetensorError) as error:
            raise SagaError(f"{folder / MAP_FILE} is damaged or incomplete ({type(error).__name__}); {again}") from None
        if made.directions.shape[:1] != (sum(map(len, made.values.values())),):
            raise SagaError(f"{folder / MAP_FILE} does not fit {WEIGHTS}; {again}")
        return made


def learn_from_images(
    paths: Sequence[Path], encoder: Encoder, tower: nn.Module, supervisor: Supervisor, vocabulary: Vocabulary, digest: str = "",
    batch_size: int = 32,
) -> WordMap:  # fmt: skip
    """Learn a map for an encoder from image files, which a frozen model with its own tower describes; a bar shows the progress.

    Files that cannot be read are left out. Raises `SagaError` where fewer than two can be.
    """
    from tqdm import tqdm

    from saga_lib.common.images import upright_rgb

    embedded: list[np.ndarray] = []

    def chunks() -> Iterator[Tensor]:
        for start in tqdm(range(0, len(paths), batch_size), desc="describing", unit="batch", disable=None):
            images = []
            for path in paths[start : start + batch_size]:
                with suppress(SagaError):
                    images.append(upright_rgb(path))
            if images:
                embedded.append(encoder.embed(images, batch_size))
                yield tower.preprocess(images)
        if sum(map(len, embedded)) < 2:
            raise SagaError(f"words are learnt from at least two images, and {sum(map(len, embedded))} of {len(paths)} can be read")

    said = describe_images(tower, supervisor, vocabulary, chunks())
    return WordMap.learn(said, np.concatenate(embedded), digest)
