"""An index of a folder that is larger than memory, or takes hours: embedded in shards, by one process or several, and resumed.

A shard holds the images of some thousand files that stand one after another, so that it does not depend on who embeds it. Each is
whole or absent: a build that is killed goes on at the first shard that is missing. When all are there, one process trains the index
on a sample and fills it shard by shard. Under `torchrun`, processes take turns with the shards; each has a GPU of its own if there is one.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from saga_lib.common.errors import SagaError
from saga_study.commands import MENDABLE
from saga_study.deploy.decoding import decode, progress
from saga_study.deploy.encoders import encoder_digest
from saga_study.deploy.entries import Added, Entry, embed_decoded, images_below, is_utf8
from saga_study.deploy.factory import FLAT, bytes_each, check_enough, empty_vectors, sample_size, train
from saga_study.deploy.shards import SHARDS, DamagedShard, Rows, Shard, read_shard, write_shard
from saga_study.deploy.storage import write_record
from saga_study.processes import count_cores

if TYPE_CHECKING:
    from saga_lib.encoder import Encoder

SHARD_SIZE = 8192  # files of a shard: 16 MiB at 512 dimensions
PARTIAL = "partial"  # begins the name of what a build that was interrupted by Ctrl-C leaves of its shard


class Team(NamedTuple):
    """The processes that build together: this one's rank, how many there are, and what they agree by."""

    rank: int
    size: int
    share: Callable[[object], object]  # returns what process 0 gave
    wait: Callable[[], object]  # until all are here

    def first(self, work: Callable[[], object]) -> object:
        """Return to all what `work()` returns in process 0; after a `SagaError` there, which it says, the others end in silence."""
        outcome = None
        if self.rank == 0:
            try:
                outcome = work()
            except SagaError as error:
                outcome = error
        outcome = self.share(outcome)
        if not isinstance(outcome, SagaError):
            return outcome
        raise SystemExit(MENDABLE) if self.rank else outcome


ALONE = Team(0, 1, lambda given: given, lambda: None)


@contextmanager
def team() -> Iterator[Team]:
    """Join the processes that `torchrun` started; without it, this one is alone."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield ALONE
        return
    import torch
    import torch.distributed as dist

    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    dist.init_process_group("gloo", timeout=timedelta(days=30))  # as long as the slowest shard may take

    def share(given: object) -> object:
        box = [given]
        dist.broadcast_object_list(box)
        return box[0]

    try:
        yield Team(dist.get_rank(), size, share, dist.barrier)
    finally:
        dist.destroy_process_group()


class Plan(NamedTuple):
    """What all processes embed: the folder, its files in order, the names of their shards, and those that are missing."""

    root: str
    names: list[str]
    shards: list[str]  # file names
    missing: list[int]
    skipped: list[str]  # lines on what is no image
    unreadable: list[str]


def build_in_shards(
    folder: str | Path, encoder: Encoder, out: str | Path, kind: str = FLAT, encoder_path: str | Path = "", batch_size: int = 64,
    shard_size: int = SHARD_SIZE, workers: int | None = None, together: Team = ALONE,
) -> Added:  # fmt: skip
    """Index all images below a folder into the folder `out`, and return what was skipped; `Index.load(out)` reads it.

    `kind` is a faiss factory string. Embeddings stay beside the index, in `shards/`; it proposes images by its codes, which are scored
    again by these. Shards that are there already, of the same files and encoder, are kept. Copies (files of equal content) enter once.
    `workers` processes decode images (None: one per core). Several processes build one index together by their `team()`; all but the first
    return what they embedded themselves. Raises `SagaError` for a string that faiss refuses, when there are too few images
    to train it, when filling it would take more memory than there is, and when no image can be read.
    """
    folder, out = Path(folder), Path(out)
    dim = encoder.embedding_dim or encoder.tower.width
    together.first(lambda: kind == FLAT or empty_vectors(dim, kind) is None)  # is refused once
    vectors = None if kind == FLAT else empty_vectors(dim, kind)
    digest = encoder_digest(encoder)
    plan: Plan = together.first(lambda: _plan(folder, out / SHARDS, digest, shard_size, vectors, kind))
    added = _embed(plan, out / SHARDS, encoder, digest, batch_size, shard_size, workers, together)
    together.wait()
    if together.rank:
        return added
    path = str(Path(encoder_path).resolve()) if str(encoder_path) else ""
    return _finish(plan, folder, out, vectors, kind, {"path": path, "digest": digest})


# --------------------------------------------------------------------------------------------------- embedding


def _plan(folder: Path, shards: Path, digest: str, shard_size: int, vectors, kind: str) -> Plan:
    """List the files of a folder, and say which shards are missing; refuse early what could not be built in the end."""
    files, root = images_below(folder), str(folder.resolve())
    if not is_utf8(root):
        raise SagaError(f"folder {ascii(root)} has a name that is not UTF-8; rename it")
    if vectors is not None:
        check_enough(vectors, kind, len(files))
        _check_memory(vectors, kind, len(files))
    names = [path.relative_to(folder).as_posix() for path in files]
    unreadable = [f"image {ascii(os.path.join(root, name))} has a name that is not UTF-8; rename it" for name in names if not is_utf8(name)]
    names = [name for name in names if is_utf8(name)]
    with ThreadPoolExecutor(count_cores()) as pool:
        marks = list(pool.map(lambda name: _mark(root, name), names))
    keys = [
        hashlib.sha256(json.dumps([digest, root, marks[start : start + shard_size]]).encode()).hexdigest()[:12]
        for start in range(0, len(names), shard_size)
    ]
    file_names = [f"{number:05d}-{key}.safetensors" for number, key in enumerate(keys)]
    missing = [number for number, name in enumerate(file_names) if not _is_whole(shards / name, keys[number], digest)]
    return Plan(root, names, file_names, missing, files.skipped(), unreadable)


def _mark(root: str, name: str) -> list:
    """Return what tells whether a file is still the one that was embedded: name, size and time of its last change."""
    with suppress(OSError):
        found = os.stat(os.path.join(root, name))
        return [name, found.st_size, found.st_mtime_ns]
    return [name, 0, 0]


def _is_whole(path: Path, key: str, digest: str) -> bool:
    try:
        shard = read_shard(path)
    except (FileNotFoundError, DamagedShard):
        return False
    return (shard.key, shard.encoder) == (key, digest)


def _check_memory(vectors, kind: str, num: int) -> None:
    import psutil

    needed, there = bytes_each(vectors) * num, psutil.virtual_memory().available
    if needed > there:
        raise SagaError(
            f"filling index {kind} takes {needed / 2**30:.1f} GiB of memory for {num:,} images, {there / 2**30:.1f} are free; "
            "choose smaller codes, such as IVF4096,PQ64, or Flat"
        )


def _embed(
    plan: Plan, place: Path, encoder: Encoder, digest: str, batch_size: int, shard_size: int, workers: int | None, together: Team
) -> Added:
    """Embed the missing shards that fall to this process."""
    own = plan.missing[together.rank :: together.size]
    ranges = [range(number * shard_size, min((number + 1) * shard_size, len(plan.names))) for number in own]
    batches = [[part[i : i + batch_size] for i in range(0, len(part), batch_size)] for part in ranges]
    known, added = _known(place, plan, digest), Added()
    all_batches = [batch for of_one in batches for batch in of_one]
    decoded = decode(plan.names, all_batches, encoder.tower.preprocess, workers, known, root=plan.root)
    with progress(sum(map(len, ranges)), "embedding", "image", together.rank == 0) as bar:
        for number, of_one in zip(own, batches, strict=True):
            entries: list[Entry] = []
            rows = [np.zeros((0, encoder.embedding_dim or encoder.tower.width), np.float32)]
            problems: list[str] = []
            key = plan.shards[number].split("-")[1].removesuffix(".safetensors")
            try:
                for batch in of_one:
                    images = next(decoded)
                    embeddings, lines = embed_decoded(encoder, images, [Path(plan.root, plan.names[i]) for i in batch])
                    fresh = iter(embeddings)
                    for i, image, line in zip(batch, images, lines, strict=True):
                        if line:
                            problems.append(line)
                            continue
                        row = known[image.sha256] if image.pixels is None else next(fresh)
                        rows.append(row[None] / np.linalg.norm(row.astype(np.float64)).astype(np.float32))
                        entries.append(Entry(plan.names[i], plan.root, image.sha256))
                    bar.update(len(batch))
            except BaseException:
                if entries:
                    left = place / f"{PARTIAL}-{together.rank}.safetensors"
                    write_shard(left, np.concatenate(rows), entries, digest, plan.root)
                raise
            write_shard(place / plan.shards[number], np.concatenate(rows), entries, digest, plan.root, key, unreadable=problems)
            added.count += len(entries)
            added.unreadable += problems
    return added


def _known(place: Path, plan: Plan, digest: str) -> dict[str, np.ndarray]:
    """Return embeddings (D,) by the SHA-256 of their files that shards of another plan hold: an interrupted build, other files."""
    known: dict[str, np.ndarray] = {}
    for path in sorted(place.glob("*.safetensors")):
        if path.name not in plan.shards:
            with suppress(DamagedShard, FileNotFoundError):
                shard = read_shard(path)
                if shard.encoder == digest and shard.dim:
                    known |= zip((entry.sha256 for entry in shard.entries()), shard.embeddings(), strict=True)
    return known


# ----------------------------------------------------------------------------------------------------- filling


def _finish(plan: Plan, folder: Path, out: Path, vectors, kind: str, encoder: dict[str, str]) -> Added:
    """Make an index of shards that are all there: leave copies out, train, fill, write; return what was skipped."""
    added = Added(skipped=plan.skipped, unreadable=list(plan.unreadable))
    shards = _without_copies([read_shard(out / SHARDS / name) for name in plan.shards])
    for shard in shards:
        added.copies += shard.copies
        added.unreadable += shard.unreadable
    added.count = sum(map(len, shards))
    if not added.count:
        problems = added.unreadable
        shutil.rmtree(out / SHARDS, ignore_errors=True)
        raise SagaError(f"none of the {len(problems)} images below {folder} can be read, e.g. {problems[0]}")
    if vectors is not None:
        fill(vectors, kind, shards)
    write_record(out, Rows(shards[0].dim) if vectors is None else vectors, shards, kind, encoder)
    return added


def _without_copies(shards: list[Shard]) -> list[Shard]:
    """Return shards in which each content stands once, where it came first; those that held more are written anew."""
    contents = np.concatenate([shard.contents() for shard in shards])  # (N, 32)
    words = np.ascontiguousarray(contents).view(np.uint64)  # (N, 4)
    order = np.lexsort(words.T)  # stable: of equal contents the first comes first
    is_copy = np.zeros(len(words), bool)
    is_copy[order[1:]] = (words[order[1:]] == words[order[:-1]]).all(1)
    kept, start = [], 0
    for shard in shards:
        copies = is_copy[start : start + len(shard)]
        start += len(shard)
        if copies.any():
            entries, rows = shard.entries(), np.array(shard.embeddings()[~copies])
            names = shard.copies + [entry.name for entry, is_one in zip(entries, copies, strict=True) if is_one]
            entries = [entry for entry, is_one in zip(entries, copies, strict=True) if not is_one]
            shard = write_shard(shard.path, rows, entries, shard.encoder, shard.folder, shard.key, names, shard.unreadable)
        kept.append(shard)
    return kept


def fill(vectors, kind: str, shards: Sequence[Shard], seed: int = 0) -> None:
    """Train a faiss index on a sample of the shards' embeddings and add all of them, a shard in memory at a time."""
    num = sum(map(len, shards))
    check_enough(vectors, kind, num)
    if size := sample_size(vectors, num):
        drawn = np.sort(np.random.default_rng(seed).permutation(num)[:size])
        with progress(size, f"training {kind} on a sample", "image") as bar:
            train(vectors, kind, _gather(shards, drawn))
            bar.update(size)
    else:
        train(vectors, kind, shards[0].embeddings()[:1])
    with progress(num, f"filling {kind}", "image") as bar:
        for shard in shards:
            if len(shard):
                vectors.add(shard.embeddings())
                bar.update(len(shard))


def _gather(shards: Sequence[Shard], numbers: np.ndarray) -> np.ndarray:
    """Return the embeddings (S, D) of ascending numbers (S,); one shard is mapped at a time, since pages that were looked at stay."""
    rows, start, filled = np.empty((len(numbers), shards[0].dim), np.float32), 0, 0
    for shard in shards:
        part = numbers[filled : np.searchsorted(numbers, start + len(shard))] - start
        rows[filled : filled + len(part)] = shard.embeddings()[part]
        start, filled = start + len(shard), filled + len(part)
    return rows
