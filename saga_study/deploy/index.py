"""Search your own images with a trained encoder: an index of embeddings and file names, kept in a folder.

Similarity is the cosine. The command is `python -m saga_study.search`. faiss is imported where it is needed.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image

from saga_lib.common.errors import SagaError
from saga_lib.common.images import upright_rgb
from saga_study.deploy.encoders import encoder_digest
from saga_study.deploy.entries import THERE, Added, Entry, Folder
from saga_study.deploy.factory import FLAT, empty_vectors, import_faiss, train
from saga_study.deploy.shards import Rows, Shard
from saga_study.deploy.storage import INDEX_FILE, LOCK, Stored, is_inside, read_index, write_index, write_sharded
from saga_study.processes import only_one_process

if TYPE_CHECKING:
    from saga_lib.encoder import Encoder

CANDIDATES = 32  # for each image asked for: how many an approximate index proposes, to be scored again by exact embeddings
LEAST_CANDIDATES = 256


class Hit(NamedTuple):
    """A found image, its cosine similarity with the query, in [-1, 1], and what became of its file: there, gone or changed."""

    name: str
    path: Path
    similarity: float
    file: str = THERE


class Index:
    """Images by their embeddings: `entries` (N) and a faiss index of as many unit vectors of dimension D_e.

    Made in memory by `build` (a folder of images) or `from_embeddings`, or read by `load`. What was built in shards
    (saga_study.deploy.building) has its exact embeddings in `rows`, too; they are its `vectors` where the kind is Flat.
    """

    def __init__(
        self, vectors, entries: Sequence[Entry], kind: str, encoder: dict[str, str], rows: Rows | None = None, shards: Sequence[Shard] = ()
    ) -> None:
        self.vectors, self.entries, self.kind, self.encoder, self.rows, self.shards = vectors, entries, kind, encoder, rows, list(shards)
        self._saved: tuple[Path, str, Sequence[Entry]] | None = None  # folder, state and entries when it was last read or written

    def __len__(self) -> int:
        return len(self.entries)

    # -------------------------------------------------------------------------------------------- making

    @classmethod
    def from_embeddings(
        cls, embeddings: np.ndarray, entries: Sequence[Entry | str], kind: str = FLAT, encoder: dict[str, str] | None = None
    ) -> Index:
        """Index embeddings (N, D), any norm, under `entries` (names will do).

        `kind` is a faiss factory string: "Flat" compares with every image, "IVF256,Flat" and "HNSW32" do not. `encoder` may hold
        the `path` and `digest` of the encoder that made them. Raises `SagaError` for an unknown kind, for one that needs more
        images, and for embeddings that do not fit the entries or are not finite.
        """
        unit = unit_rows(embeddings)
        if len(unit) != len(entries):
            raise SagaError(f"{len(unit)} embeddings for {len(entries)} names; one each is needed")
        entries = [_named(e) if isinstance(e, str) else e for e in entries]
        return cls(_new_vectors(unit, kind), entries, kind, encoder or {})

    @classmethod
    def build(
        cls, folder: str | Path, encoder: Encoder, kind: str = FLAT, encoder_path: str | Path = "", batch_size: int = 64
    ) -> tuple[Index, Added]:
        """Index all images below a folder in memory; return the index and what was skipped.

        `kind` is as in `from_embeddings`. `encoder_path`, where the encoder is saved, is kept for the command line. Copies
        (files of equal content) enter once. Raises `SagaError` when no image can be read. For a folder that takes hours, or that
        is larger than memory, there is `saga_study.deploy.building.build_in_shards`.
        """
        path = str(Path(encoder_path).resolve()) if str(encoder_path) else ""
        empty_vectors(encoder.embedding_dim or encoder.tower.width, kind)  # refuse it early
        found = Folder(Path(folder))
        parts = list(found.embed(encoder, batch_size))
        if not parts:
            problems = found.added.unreadable
            raise SagaError(f"none of the {len(problems)} images below {folder} can be read, e.g. {problems[0]}")
        entries, rows = [entry for entries, _ in parts for entry in entries], np.concatenate([rows for _, rows in parts])
        return cls.from_embeddings(rows, entries, kind, {"path": path, "digest": encoder_digest(encoder)}), found.added

    def add_images(self, folder: str | Path, encoder: Encoder, batch_size: int = 64) -> Added:
        """Add the images of a folder that are not in the index yet; adding a folder twice changes nothing.

        An image of the index whose file is gone, and whose content the folder holds, keeps its entry, under the new name. If this is
        interrupted, the index holds what was embedded. An index with clusters (IVF) keeps those of its first images, so rebuild it
        once it has grown several times over.
        """
        self.check_encoder(encoder)
        found = Folder(Path(folder), self.entries)
        for number, entry in found.moved.items():
            self.entries[number] = entry
        for entries, embeddings in found.embed(encoder, batch_size):
            self._add(unit_rows(embeddings), entries)
        return found.added

    def _add(self, unit: np.ndarray, entries: Sequence[Entry]) -> None:
        """Add unit vectors (n, D) and their entries."""
        self.vectors.add(unit)
        if self.rows not in (None, self.vectors):
            self.rows.add(unit)
        self.entries += entries

    def gone(self) -> list[Entry]:
        """Return the entries whose files are no more where they were."""
        return [entry for entry in self.entries if not os.path.isfile(entry.place)]

    # ----------------------------------------------------------------------------------------- searching

    def search(self, embeddings: np.ndarray, k: int = 5) -> tuple[np.ndarray, np.ndarray]:
        """Return indices (Q, k) int64 into `entries` and cosines (Q, k) float32 of the nearest, best first.

        embeddings (Q, D), any norm. Where an approximate search meets fewer than k images, all are compared. What was built in
        shards proposes more than k and ranks them by their exact cosines.
        Raises `SagaError` when k or D does not fit.
        """
        queries = unit_rows(embeddings)
        if queries.shape[1] != self.vectors.d:
            raise SagaError(f"queries have {queries.shape[1]} dimensions, the index {self.vectors.d}")
        if not len(self):
            raise SagaError("the index holds no image; add some")
        if not isinstance(k, (int, np.integer)) or not 1 <= k <= len(self):
            raise SagaError(f"k = {k} images asked of an index of {len(self)}; choose 1 to {len(self)}")
        if self.rows in (None, self.vectors):
            similarities, indices = self.vectors.search(queries, int(k))
        else:
            _, candidates = self.vectors.search(queries, min(max(CANDIDATES * int(k), LEAST_CANDIDATES), len(self)))
            cosines = self.rows.score(queries, candidates)
            best = np.argsort(-cosines, axis=1, kind="stable")[:, :k]
            similarities, indices = np.take_along_axis(cosines, best, 1), np.take_along_axis(candidates, best, 1)
        if (short := (indices < 0).any(1)).any():
            similarities[short], indices[short] = self._exact_vectors().search(queries[short], int(k))
        return indices, similarities

    def query(self, images: Sequence[Image.Image | str | Path], encoder: Encoder, k: int = 5) -> list[list[Hit]]:
        """Return the k nearest images of each query, which is an image or the path of one; raises `SagaError` as `search` does."""
        self.check_encoder(encoder)
        opened = [image if isinstance(image, Image.Image) else upright_rgb(Path(image)) for image in images]
        return self.hits(encoder.embed(opened), k)

    def hits(self, embeddings: np.ndarray, k: int = 5) -> list[list[Hit]]:
        """Return the k nearest images of each query, given by its embedding (Q, D), of any norm; raises `SagaError` as `search` does."""
        indices, similarities = self.search(embeddings, k)
        found = {i: self.entries[i] for i in set(indices.ravel().tolist())}
        files = {i: entry.file() for i, entry in found.items()}
        return [
            [Hit(found[i].name, found[i].path, float(s), files[i]) for i, s in zip(*row, strict=True)]
            for row in zip(indices.tolist(), similarities.tolist(), strict=True)
        ]

    def recall(self, embeddings: np.ndarray | None = None, k: int = 10, num_queries: int = 1000) -> float:
        """Return which fraction of the k nearest images, by the vectors kept, `search` finds, in [0, 1]; 1 if it is exact.

        Queries are `embeddings` (Q, D), or else `num_queries` images of the index (which then find themselves).
        """
        exact = self._exact_vectors()
        if embeddings is None:
            drawn = np.random.default_rng(0).permutation(len(self))[:num_queries]
            embeddings = np.stack([exact.reconstruct(int(i)) for i in drawn])
        k = min(k, len(self))
        _, found = self.search(embeddings, k)
        truth, _ = exact.search(unit_rows(embeddings), k)
        # By similarity, not by number: either of two equally near images will do.
        return float((found >= truth[:, -1:] - 1e-6).mean())

    def _exact_vectors(self):
        faiss = import_faiss()
        if self.rows is not None:
            return self.rows
        if isinstance(self.vectors, faiss.IndexFlat):
            return self.vectors
        exact = faiss.IndexFlatIP(self.vectors.d)
        exact.add(self.vectors.reconstruct_n(0, len(self)))
        return exact

    # -------------------------------------------------------------------------------------------- keeping

    def check_encoder(self, encoder: Encoder) -> None:
        """Raise `SagaError` unless `encoder` made this index: embeddings of two encoders have nothing in common."""
        expected, got = self.encoder.get("digest", ""), encoder_digest(encoder)
        if expected != got:
            made_by = f"{self.encoder.get('path') or 'an encoder'} (digest {expected[:12]})" if expected else "an unknown encoder"
            raise SagaError(f"this index was made by {made_by}, not by the encoder given (digest {got[:12]}); use that one or build anew")

    def save(self, folder: str | Path, replace: bool = True) -> None:
        """Write the index into a folder: `index.json` and what it names, the faiss file and shards.

        An interruption leaves the old index or the new one. One process writes at a time. What others saved there since this index
        was read there is taken in; any other index is replaced, unless `replace` is false. Raises `SagaError` when it cannot be
        written, and when the index there was made anew by another encoder meanwhile.
        """
        folder = Path(folder)
        if not isinstance(self.entries, list):
            raise SagaError("an index that was loaded with mapped=True can only be searched; load it without, to change or save it")
        with only_one_process(folder / LOCK, f"index {folder}", waiting=lambda holder: None):
            if (folder / INDEX_FILE).exists():
                if not replace:
                    raise SagaError(f"{folder} holds an index already; choose another folder")
                if self._saved and self._saved[0] == folder.resolve():
                    stored = read_index(folder)
                    if stored.state != self._saved[1]:
                        self._take_in(stored)
            if self.vectors.ntotal != len(self.entries):
                raise SagaError(f"{self.vectors.ntotal} vectors for {len(self.entries)} entries; the index was not saved, load it again")
            if self.rows is None:
                state = write_index(folder, self.vectors, self.entries, self.kind, self.encoder)
            else:
                written = self.vectors, self.rows, self.shards, self.entries, self.kind, self.encoder
                state, self.shards = write_sharded(folder, *written)
        self._saved = folder.resolve(), state, list(self.entries)

    def _take_in(self, stored: Stored) -> None:
        """Become the index that others saved meanwhile, with what this one has added and found again since it was read."""
        if (stored.encoder.get("digest"), stored.vectors.d) != (self.encoder.get("digest"), self.vectors.d):
            raise SagaError("the index was made anew by another encoder meanwhile; load it again")
        before = self._saved[2]
        own, others = (one.vectors if one.rows is None else one.rows for one in (self, stored))  # the exact ones, if there are any

        def content(vectors, number: int, entry: Entry) -> str:  # a name alone may be given twice
            return entry.sha256 or f"{entry.place}\0{np.asarray(vectors.reconstruct(number)).tobytes().hex()}"

        joined = Index(stored.vectors, list(stored.entries), stored.kind, stored.encoder, stored.rows, stored.shards)
        try:
            numbers = {content(others, n, entry): n for n, entry in enumerate(stored.entries)}
            added = range(len(before), len(self.entries))
            new = [n for n in added if content(own, n, self.entries[n]) not in numbers]
            if new:
                joined._add(np.stack([own.reconstruct(n) for n in new]), [self.entries[n] for n in new])
        except RuntimeError:
            raise SagaError(f"an index of kind {self.kind} changed meanwhile and cannot be joined; load it again, and add again") from None
        for old, entry in zip(before, self.entries, strict=False):
            number = numbers.get(entry.sha256)
            if entry != old and number is not None and joined.entries[number].file() != THERE:
                joined.entries[number] = entry
        self.vectors, self.entries, self.kind, self.encoder = joined.vectors, joined.entries, joined.kind, joined.encoder
        self.rows, self.shards = joined.rows, joined.shards

    @classmethod
    def load(cls, folder: str | Path, encoder: Encoder | None = None, mapped: bool = False) -> Index:
        """Load an index written by `save` or built in shards; with `encoder`, refuse one made by another.

        With `mapped`, an index in shards stays on the disk, may be larger than memory, and can only be searched. Raises
        `SagaError` naming the file that is missing or damaged, of a newer version, or that points out of its folder.
        """
        stored = read_index(Path(folder), mapped)
        index = cls(stored.vectors, stored.entries, stored.kind, stored.encoder, stored.rows, stored.shards)
        if isinstance(stored.entries, list):
            index._saved = Path(folder).resolve(), stored.state, list(stored.entries)
        if encoder is not None:
            index.check_encoder(encoder)
        return index


def unit_rows(embeddings: np.ndarray) -> np.ndarray:
    """Return embeddings (N, D) as float32 rows of unit length."""
    if hasattr(embeddings, "detach"):  # a tensor
        embeddings = embeddings.detach().cpu().float()
    try:
        rows = np.asarray(embeddings, dtype=np.float32)
    except (TypeError, ValueError):
        raise SagaError("embeddings must be numbers, in rows of equal length") from None
    if rows.ndim != 2 or rows.size == 0:
        raise SagaError(f"embeddings must be (N, D) with N, D >= 1, got shape {rows.shape}")
    norms = np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
    if not np.isfinite(norms).all() or not norms.all():
        raise SagaError(f"embedding {int(np.flatnonzero(~np.isfinite(norms) | (norms == 0))[0])} is zero or not finite")
    return np.ascontiguousarray(rows / norms, dtype=np.float32)


def _new_vectors(unit: np.ndarray, kind: str):
    """Return a faiss index of the rows `unit` (N, D)."""
    vectors = empty_vectors(unit.shape[1], kind)
    train(vectors, kind, unit)
    if clustered := import_faiss().try_extract_index_ivf(vectors):
        clustered.make_direct_map()  # so that vectors can be read back
    vectors.add(unit)
    return vectors


def _named(name: str) -> Entry:
    """Return the entry of an image called `name`; one that is no name below a folder is a path."""
    if is_inside(name):
        return Entry(name)
    folder, name = os.path.split(os.path.abspath(name))
    return Entry(name, folder)
