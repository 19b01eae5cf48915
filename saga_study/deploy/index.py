"""Search your own images with a trained encoder: an index of embeddings and file names, kept in a folder.

Similarity is the cosine. The command is `python -m saga_study.search`. faiss is imported where it is needed.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image

from saga_lib.common.errors import SagaError, unknown_name
from saga_lib.common.files import read_json, write_atomically, write_json
from saga_lib.common.images import find_images, upright_rgb

if TYPE_CHECKING:
    from saga_lib.encoder import Encoder

KINDS = {  # short names of faiss factory strings
    "exact": "Flat",  # compares with every image; right up to about a million
    "ivf": "IVF{clusters},Flat",  # looks into the nearest of 4√N clusters
    "hnsw": "HNSW32",  # walks a graph of neighbours; slow to build
}
IVF_PROBES = 24  # clusters looked into
HNSW_BUILD, HNSW_SEARCH = 80, 128  # candidates kept while building and while searching
POINTS_PER_CLUSTER = 39  # faiss' k-means asks for as many
INDEX_FILE = "index.json"


class Entry(NamedTuple):
    """An image of the index: its name below the folder it was found in, that folder, and its file's SHA-256."""

    name: str
    folder: str = ""
    sha256: str = ""

    @property
    def path(self) -> Path:
        return Path(self.folder, self.name)


class Hit(NamedTuple):
    """A found image and its cosine similarity with the query, in [-1, 1]."""

    name: str
    path: Path
    similarity: float


@dataclass
class Added:
    """The outcome of adding a folder: how many images are new, and which were skipped, by reason."""

    count: int = 0
    copies: list[str] = field(default_factory=list)  # already in the index, or twice in the folder
    changed: list[str] = field(default_factory=list)  # indexed under this name with other content
    unreadable: list[str] = field(default_factory=list)  # one line each, with the reason

    def summary(self) -> str:
        skipped = {"there already (or copies)": self.copies, "changed since they were indexed": self.changed, "unreadable": self.unreadable}
        parts = [f"{len(names)} {what}" for what, names in skipped.items() if names]
        return f"{self.count} images added" + (f"; skipped: {', '.join(parts)}" if parts else "")


class Index:
    """Images by their embeddings: `entries` (N) and a faiss index of as many unit vectors of dimension D_e.

    Made by `build` (a folder of images), `from_embeddings` or `load`.
    """

    def __init__(self, vectors, entries: list[Entry], kind: str, encoder: dict[str, str]) -> None:
        self.vectors, self.entries, self.kind, self.encoder = vectors, entries, kind, encoder

    def __len__(self) -> int:
        return len(self.entries)

    # -------------------------------------------------------------------------------------------- making

    @classmethod
    def from_embeddings(
        cls, embeddings: np.ndarray, entries: Sequence[Entry | str], kind: str = "exact", encoder: dict[str, str] | None = None
    ) -> Index:
        """Index embeddings (N, D), any norm, under `entries` (names will do).

        `kind` is one of `KINDS` or any other faiss factory string, such as "IVF256,PQ32". `encoder` may hold the `path` and
        `digest` of the encoder that made them. Raises `SagaError` for an unknown kind, for one that needs more images,
        and for embeddings that do not fit the entries or are not finite.
        """
        unit = _unit_rows(embeddings)
        if len(unit) != len(entries):
            raise SagaError(f"{len(unit)} embeddings for {len(entries)} names; one each is needed")
        entries = [Entry(e) if isinstance(e, str) else e for e in entries]
        return cls(_new_vectors(unit, kind), entries, kind, encoder or {})

    @classmethod
    def build(
        cls, folder: str | Path, encoder: Encoder, kind: str = "exact", encoder_path: str | Path = "", batch_size: int = 64
    ) -> tuple[Index, Added]:
        """Index all images below a folder; return the index and what was skipped.

        `kind` is as in `from_embeddings`. `encoder_path`, where the encoder is saved, is kept for the command line. Copies
        (files of equal content) enter once. Raises `SagaError` when no image can be read.
        """
        _empty_vectors(encoder.embedding_dim or encoder.tower.width, kind, len(find_images(Path(folder))))  # refuse it early
        entries, embeddings, added = _embedded(Path(folder), encoder, [], batch_size)
        if not entries:
            raise SagaError(f"none of the {len(added.unreadable)} images below {folder} can be read, e.g. {added.unreadable[0]}")
        path = str(Path(encoder_path).resolve()) if str(encoder_path) else ""
        return cls.from_embeddings(embeddings, entries, kind, {"path": path, "digest": encoder_digest(encoder)}), added

    def add_images(self, folder: str | Path, encoder: Encoder, batch_size: int = 64) -> Added:
        """Add the images of a folder that are not in the index yet; adding a folder twice changes nothing.

        An index with clusters (IVF) keeps those of its first images, so rebuild it once it has grown several times over.
        """
        self.check_encoder(encoder)
        entries, embeddings, added = _embedded(Path(folder), encoder, self.entries, batch_size)
        if entries:
            self.vectors.add(_unit_rows(embeddings))
            self.entries += entries
        return added

    # ----------------------------------------------------------------------------------------- searching

    def search(self, embeddings: np.ndarray, k: int = 5) -> tuple[np.ndarray, np.ndarray]:
        """Return indices (Q, k) int64 into `entries` and cosines (Q, k) float32 of the nearest, best first.

        embeddings (Q, D), any norm. Where an approximate search meets fewer than k images, all are compared.
        Raises `SagaError` when k or D does not fit.
        """
        queries = _unit_rows(embeddings)
        if queries.shape[1] != self.vectors.d:
            raise SagaError(f"queries have {queries.shape[1]} dimensions, the index {self.vectors.d}")
        if not 1 <= k <= len(self):
            raise SagaError(f"k = {k} images asked of an index of {len(self)}; choose 1 to {len(self)}")
        similarities, indices = self.vectors.search(queries, int(k))
        if (short := (indices < 0).any(1)).any():
            similarities[short], indices[short] = self._exact_vectors().search(queries[short], int(k))
        return indices, similarities

    def query(self, images: Sequence[Image.Image | str | Path], encoder: Encoder, k: int = 5) -> list[list[Hit]]:
        """Return the k nearest images of each query, which is an image or the path of one."""
        self.check_encoder(encoder)
        opened = [image if isinstance(image, Image.Image) else upright_rgb(Path(image)) for image in images]
        indices, similarities = self.search(encoder.embed(opened), k)
        return [
            [Hit(self.entries[i].name, self.entries[i].path, float(s)) for i, s in zip(*row, strict=True)]
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
        truth, _ = exact.search(_unit_rows(embeddings), k)
        # By similarity, not by number: either of two equally near images will do.
        return float((found >= truth[:, -1:] - 1e-6).mean())

    def _exact_vectors(self):
        faiss = import_faiss()
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

    def save(self, folder: str | Path) -> None:
        """Write the index into a folder: `index.json` and the faiss file it names.

        An existing index is replaced atomically: an interruption leaves the old one or the new one.
        """
        folder = Path(folder)
        content = import_faiss().serialize_index(self.vectors).tobytes()
        sha256 = hashlib.sha256(content).hexdigest()
        name = f"{sha256[:12]}.faiss"
        write_atomically(folder / name, lambda path: path.write_bytes(content))
        folders = sorted({entry.folder for entry in self.entries})
        write_json(
            folder / INDEX_FILE,
            {
                "format": 1, "kind": self.kind, "dimension": self.vectors.d, "encoder": self.encoder,
                "vectors": name, "sha256": sha256, "folders": folders,
                "images": [[folders.index(e.folder), e.name, e.sha256] for e in self.entries],
            },
        )  # fmt: skip
        for path in folder.glob("*.faiss"):
            if path.name != name:
                path.unlink(missing_ok=True)

    @classmethod
    def load(cls, folder: str | Path, encoder: Encoder | None = None) -> Index:
        """Load an index written by `save`; with `encoder`, refuse one made by another.

        Raises `SagaError` naming the file that is missing or damaged.
        """
        folder, faiss = Path(folder), import_faiss()
        if not (folder / INDEX_FILE).is_file():
            raise SagaError(f"{folder} holds no index ({INDEX_FILE} is missing); make one with: python -m saga_study.search build")
        content = read_json(folder / INDEX_FILE)
        try:
            if content["format"] != 1:
                raise SagaError(f"{folder / INDEX_FILE} has format {content['format']}, this version reads 1; build the index anew")
            entries = [Entry(name, content["folders"][number], sha256) for number, name, sha256 in content["images"]]
            path, kind, source = folder / content["vectors"], content["kind"], dict(content["encoder"])
            expected = content["sha256"], content["dimension"]
        except (KeyError, TypeError, ValueError, IndexError):
            raise SagaError(f"{folder / INDEX_FILE} was not written by Index.save, or is damaged; build the index anew") from None
        try:
            stored = path.read_bytes()
        except OSError as error:
            raise SagaError(f"{path} cannot be read: {error.strerror}; build the index anew") from None
        if hashlib.sha256(stored).hexdigest() != expected[0]:
            raise SagaError(f"{path} is damaged (its checksum differs); build the index anew")
        vectors = faiss.deserialize_index(np.frombuffer(stored, dtype=np.uint8))
        if (vectors.ntotal, vectors.d) != (len(entries), expected[1]):
            raise SagaError(f"{folder / INDEX_FILE} does not fit {path.name}; build the index anew")
        index = cls(vectors, entries, kind, source)
        if encoder is not None:
            index.check_encoder(encoder)
        return index


def encoder_digest(encoder: Encoder) -> str:
    """Return the SHA-256 of all that an embedding depends on: weights, pooler, image size, preprocessing."""
    import torch

    config = encoder.tower.config_dict()
    processor = config.get("image_processor") or {}
    shape = {"family": config.get("family"), "pooler": encoder.pooler_name, "embedding_dim": encoder.embedding_dim,
             "image_size": config.get("image_size"), "mean": processor.get("image_mean"), "std": processor.get("image_std"),
             "scale": processor.get("rescale_factor")}  # fmt: skip
    digest = hashlib.sha256(json.dumps(shape, sort_keys=True, default=list).encode())
    for name, tensor in sorted(encoder.state_dict().items()):
        tensor = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def import_faiss():
    try:
        import faiss
    except ModuleNotFoundError:
        raise SagaError("searching needs faiss: pip install faiss-cpu") from None
    return faiss


def _unit_rows(embeddings: np.ndarray) -> np.ndarray:
    """Return embeddings (N, D) as float32 rows of unit length."""
    rows = np.asarray(embeddings, dtype=np.float32)
    if rows.ndim != 2 or rows.size == 0:
        raise SagaError(f"embeddings must be (N, D) with N, D >= 1, got shape {rows.shape}")
    norms = np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
    if not np.isfinite(norms).all() or not norms.all():
        raise SagaError(f"embedding {int(np.flatnonzero(~np.isfinite(norms) | (norms == 0))[0])} is zero or not finite")
    return np.ascontiguousarray(rows / norms, dtype=np.float32)


def _empty_vectors(dim: int, kind: str, num: int):
    """Return an untrained faiss index of a kind for `num` vectors of dimension `dim`."""
    faiss = import_faiss()
    clusters = max(1, min(round(4 * num**0.5), num // POINTS_PER_CLUSTER))
    try:
        vectors = faiss.index_factory(dim, KINDS.get(kind, kind).format(clusters=clusters), faiss.METRIC_INNER_PRODUCT)
    except RuntimeError:
        problem = unknown_name("kind of index", kind, KINDS)
        raise SagaError(f"{problem}, and faiss knows no such factory string for {dim} dimensions") from None
    if isinstance(vectors, faiss.IndexHNSW):
        vectors.hnsw.efConstruction, vectors.hnsw.efSearch = HNSW_BUILD, HNSW_SEARCH
    return vectors


def _new_vectors(unit: np.ndarray, kind: str):
    """Return a faiss index of the rows `unit` (N, D)."""
    vectors = _empty_vectors(unit.shape[1], kind, len(unit))
    try:
        vectors.train(unit)
    except RuntimeError as error:
        raise SagaError(f"an index of kind {kind} needs more than {len(unit)} images: {str(error).splitlines()[-1]}") from None
    if clustered := import_faiss().try_extract_index_ivf(vectors):
        clustered.make_direct_map()  # so that vectors can be read back
        clustered.nprobe = min(IVF_PROBES, clustered.nlist)
    vectors.add(unit)
    return vectors


def _embedded(folder: Path, encoder: Encoder, known: Sequence[Entry], batch_size: int) -> tuple[list[Entry], np.ndarray | None, Added]:
    """Embed the images of a folder that are not among `known`: entries (N), embeddings (N, D_e), and what was skipped."""
    import torch
    from tqdm import tqdm

    files = find_images(folder)
    if not files:
        raise SagaError(f"{folder} holds no image; give a folder with photographs")
    root = folder.resolve()
    seen = {entry.sha256 for entry in known}
    places = {(entry.folder, entry.name): entry.sha256 for entry in known}
    entries, parts, added = [], [], Added()

    def prepare(path: Path) -> tuple[Entry, object]:
        """Return the entry of a file with its pixels (1, …), or None (seen before), or why it cannot be used."""
        name = path.relative_to(folder).as_posix()
        try:
            name.encode()
            entry = Entry(name, str(root), hashlib.sha256(path.read_bytes()).hexdigest())
            # One by one, since a batch of undecimated photographs would not fit into memory.
            return entry, None if entry.sha256 in seen else encoder.tower.preprocess([upright_rgb(path)])
        except UnicodeEncodeError:
            return Entry(ascii(name)[1:-1]), f"image {ascii(str(path))} has a name that is not UTF-8; rename it"
        except OSError as error:
            return Entry(name), f"image {path} cannot be read ({error.strerror})"
        except SagaError as error:
            return Entry(name), str(error)

    with ThreadPoolExecutor(os.cpu_count()) as pool, tqdm(total=len(files), desc="embedding", unit="image", disable=None) as bar:
        for start in range(0, len(files), batch_size):
            pixels = []
            for entry, prepared in pool.map(prepare, files[start : start + batch_size]):
                if isinstance(prepared, str):
                    added.unreadable.append(prepared)
                elif places.get((entry.folder, entry.name), entry.sha256) != entry.sha256:
                    added.changed.append(entry.name)
                elif entry.sha256 in seen:
                    added.copies.append(entry.name)
                else:
                    seen.add(entry.sha256)
                    entries.append(entry)
                    pixels.append(prepared)
                bar.update()
            if pixels:
                parts.append(encoder.embed_pixels(torch.cat(pixels), batch_size))
    added.count = len(entries)
    return entries, np.concatenate(parts) if parts else None, added
