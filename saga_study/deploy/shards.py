"""Shards: embeddings of some thousand images with their names, a safetensors file each, read memory-mapped.

Galleries that are larger than memory are kept so: `Rows` searches the embeddings of all shards exactly and scores again what an
approximate index found; `Names` looks up who they are.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path

import numpy as np

from saga_lib.common.errors import SagaError
from saga_lib.common.files import write_atomically
from saga_study.deploy.entries import Entry
from saga_study.deploy.factory import import_faiss

SHARDS = "shards"  # below an index
NO_CONTENT = bytes(32)
GATHERED = 2**26  # bytes of queries that scoring again copies at a time
BESIDE = {"sha256": ("U8", 2), "names": ("U8", 1), "ends": ("I64", 1)}  # tensors beside the embeddings, dtype and dimensions


class DamagedShard(SagaError):
    """A shard's file that is not what `write_shard` wrote."""


@dataclass
class Shard:
    """A shard's file: its key, the encoder's digest, the folder of its images, and lines on files without an embedding.

    The number of images is `len(shard)`, their dimension `dim`; `embeddings()` maps them, `names()` and `contents()` read the rest.
    """

    path: Path
    key: str
    encoder: str
    folder: str
    copies: list[str] = field(default_factory=list)  # names of files whose content stands elsewhere
    unreadable: list[str] = field(default_factory=list)  # a line each, with the reason
    count: int = 0
    dim: int = 0
    offset: int = 0  # of the embeddings, in bytes

    def __len__(self) -> int:
        return self.count

    def embeddings(self) -> np.ndarray:
        """Return the unit vectors (n, D) float32, mapped from the disk, read-only."""
        if not self.count:
            return np.zeros((0, self.dim), np.float32)
        return np.memmap(self.path, np.float32, "r", self.offset, (self.count, self.dim)).view(np.ndarray)

    def contents(self) -> np.ndarray:
        """Return the SHA-256 (n, 32) uint8 of each image's file."""
        return self._tensor("sha256")

    def names(self) -> Iterator[str]:
        """Yield the names of the images, relative to the folder."""
        text, ends = self._tensor("names").tobytes(), self._tensor("ends").tolist()
        if any(end > after for end, after in zip([0, *ends], [*ends, len(text)], strict=True)):
            raise DamagedShard(f"{self.path} is damaged (its names do not fit); build the index anew")
        try:
            for start, end in zip([0, *ends], ends, strict=False):
                yield text[start:end].decode()
        except UnicodeDecodeError:
            raise DamagedShard(f"{self.path} is damaged (a name is not UTF-8); build the index anew") from None

    def entries(self) -> list[Entry]:
        contents = [one.tobytes() for one in self.contents()]
        return [
            Entry(name, self.folder, "" if content == NO_CONTENT else content.hex())
            for name, content in zip(self.names(), contents, strict=True)
        ]

    def entry(self, number: int) -> Entry:
        """Return the entry of one image, reading no other."""
        from safetensors import safe_open

        with safe_open(self.path, "np") as file:
            names = file.get_slice("names")
            *before, end = file.get_slice("ends")[max(number - 1, 0) : number + 1].tolist()
            start = before[0] if before else 0
            if not 0 <= start <= end <= names.get_shape()[0]:
                raise DamagedShard(f"{self.path} is damaged (its names do not fit); build the index anew")
            text, content = names[start:end].tobytes(), file.get_slice("sha256")[number : number + 1].tobytes()
        try:
            return Entry(text.decode(), self.folder, "" if content == NO_CONTENT else content.hex())
        except UnicodeDecodeError:
            raise DamagedShard(f"{self.path} is damaged (a name is not UTF-8); build the index anew") from None

    def _tensor(self, name: str) -> np.ndarray:
        from safetensors import safe_open

        with safe_open(self.path, "np") as file:
            return file.get_tensor(name)


def write_shard(
    path: Path, embeddings: np.ndarray, entries: Sequence[Entry], encoder: str, folder: str, key: str = "", copies: Sequence[str] = (),
    unreadable: Sequence[str] = (),
) -> Shard:  # fmt: skip
    """Write unit vectors (n, D) float32 and the entries of as many images of one folder atomically; equal input gives equal bytes."""
    from safetensors.numpy import save_file

    names = [entry.name.encode() for entry in entries]
    tensors = {
        "embeddings": np.ascontiguousarray(embeddings, np.float32), "names": np.frombuffer(b"".join(names), np.uint8),
        "ends": np.cumsum([len(name) for name in names], dtype=np.int64),
        "sha256": np.frombuffer(b"".join(bytes.fromhex(e.sha256) or NO_CONTENT for e in entries), np.uint8).reshape(-1, 32),
    }  # fmt: skip
    about = {"key": key, "encoder": encoder, "folder": folder, "copies": list(copies), "unreadable": list(unreadable)}
    write_atomically(path, lambda file: save_file(tensors, file, {"shard": json.dumps(about)}))  # one text: safetensors sorts no keys
    return read_shard(path)


def read_shard(path: Path) -> Shard:
    """Read what a shard's file says of itself; raises `DamagedShard` if it is none, FileNotFoundError if there is no file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np") as file:  # which checks that all tensors lie within the file
            about = json.loads((file.metadata() or {})["shard"])
            shapes = {name: (file.get_slice(name).get_dtype(), file.get_slice(name).get_shape()) for name in file.keys()}
        dtype, (count, dim) = shapes.pop("embeddings")
        fits = dtype == "F32" and all(shapes[name][0] == kind and len(shapes[name][1]) == axes for name, (kind, axes) in BESIDE.items())
        fits &= shapes["sha256"][1] == [count, 32] and shapes["ends"][1] == [count]
        shard = Shard(path, **about, count=count, dim=dim, offset=_offset(path))
        fits &= all(isinstance(text, str) for text in (shard.key, shard.encoder, shard.folder, *shard.copies, *shard.unreadable))
    except FileNotFoundError:
        raise
    except OSError as error:
        raise DamagedShard(f"{path} cannot be read: {error.strerror or error}; build the index anew") from None
    except (SafetensorError, KeyError, TypeError, ValueError, RecursionError):
        fits = False
    if not fits:
        raise DamagedShard(f"{path} is no shard of an index, or is damaged; build the index anew")
    return shard


def _offset(path: Path) -> int:
    """Return where the embeddings start in a safetensors file: 8 bytes of length, the header, then the tensors."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        return 8 + length + json.loads(file.read(length))["embeddings"]["data_offsets"][0]


def file_sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Rows:
    """Unit vectors (N, D) float32 in blocks, those of shards on the disk; searched exactly, as a faiss index of kind Flat is.

    `ntotal`, `d`, `add`, `search`, `reconstruct` and `reconstruct_n` are those of faiss.
    """

    def __init__(self, dim: int, shards: Sequence[Shard] = ()) -> None:
        self.d, self.blocks = dim, [shard.embeddings() for shard in shards]
        self.starts = list(accumulate(map(len, self.blocks), initial=0))

    @property
    def ntotal(self) -> int:
        return self.starts[-1]

    def add(self, rows: np.ndarray) -> None:
        self.blocks.append(rows)
        self.starts.append(self.ntotal + len(rows))

    def reconstruct(self, number: int) -> np.ndarray:
        """Return the vector (D,) of an image."""
        block = bisect_right(self.starts, number) - 1
        return self.blocks[block][number - self.starts[block]]

    def reconstruct_n(self, start: int, count: int) -> np.ndarray:
        """Return the vectors (count, D) from `start` on."""
        return self.gather(np.arange(start, start + count))

    def gather(self, numbers: np.ndarray) -> np.ndarray:
        """Return the vectors (n, D) of images by their numbers (n,), which ascend."""
        found = np.empty((len(numbers), self.d), np.float32)
        edges = np.searchsorted(numbers, self.starts)
        for block, start, (first, end) in zip(self.blocks, self.starts, zip(edges, edges[1:], strict=False), strict=False):
            if end > first:
                found[first:end] = block[numbers[first:end] - start]
        return found

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Return cosines (Q, k) and numbers (Q, k) int64 of the nearest, best first, having compared with all; as faiss' search."""
        faiss = import_faiss()
        best = faiss.ResultHeap(len(queries), k, keep_max=True)
        for block, start in zip(self.blocks, self.starts, strict=False):
            if len(block):
                cosines, numbers = faiss.knn(queries, block, min(k, len(block)), faiss.METRIC_INNER_PRODUCT)
                if (lacking := k - len(block)) > 0:  # the heap takes k of each
                    cosines = np.pad(cosines, ((0, 0), (0, lacking)), constant_values=-np.inf)
                    numbers = np.pad(numbers, ((0, 0), (0, lacking)), constant_values=-1 - start)
                best.add_result(cosines, numbers + start)
        best.finalize()
        return best.D, best.I

    def score(self, queries: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        """Return the cosines (Q, C) float32 of queries (Q, D) with images by their numbers (Q, C); -inf for a number below 0."""
        faiss = import_faiss()
        cosines = np.full(numbers.size, -np.inf, np.float32)
        flat = np.ascontiguousarray(numbers, np.int64).ravel()
        order = np.argsort(flat, kind="stable")
        edges = np.searchsorted(flat[order], self.starts)
        most = max(1, GATHERED // (4 * self.d))
        for block, start, first, end in zip(self.blocks, self.starts, edges, edges[1:], strict=False):
            for some in range(first, end, most):
                places = order[some : min(some + most, end)]
                of_each, rows = queries[places // numbers.shape[1]], flat[places] - start
                products = np.empty(len(places), np.float32)
                pointers = map(faiss.swig_ptr, (products, of_each, block, rows))
                faiss.fvec_inner_products_by_idx(*pointers, self.d, len(places), 1)  # reads the block where it lies
                cosines[places] = products
        return cosines.reshape(numbers.shape)


class Names(Sequence[Entry]):
    """The entries of all shards, looked up on the disk when they are asked for; `moved` {number: entry} says where files lie now.

    `check(shard, entries)` returns the entries, or raises `SagaError` if one may not be trusted.
    """

    def __init__(self, shards: Sequence[Shard], moved: dict[int, Entry], check: Callable[[Shard, list[Entry]], list[Entry]]) -> None:
        self.shards, self.moved, self.check = shards, moved, check
        self.starts = list(accumulate(map(len, shards), initial=0))

    def __len__(self) -> int:
        return self.starts[-1]

    def __getitem__(self, number: int) -> Entry:
        if not 0 <= number < len(self):
            raise IndexError(number)
        if number in self.moved:
            return self.moved[number]
        block = bisect_right(self.starts, number) - 1
        shard = self.shards[block]
        return self.check(shard, [shard.entry(number - self.starts[block])])[0]

    def __iter__(self) -> Iterator[Entry]:
        for shard, start in zip(self.shards, self.starts, strict=False):
            for number, entry in enumerate(self.check(shard, shard.entries()), start):
                yield self.moved.get(number, entry)
