"""Galleries larger than memory: build an index in shards of synthetic embeddings, search it from the disk, and embed JPEGs.

Embeddings are unit vectors around class centres (1,000 images a class), as trained encoders make them; a query is a new image of a class.
Building (training, filling, writing) runs in a process of its own, whose memory is read from the kernel. Recall is against exact search
by numpy; speed against exact search by faiss over the same memory-mapped shards. Then a miniature encoder embeds JPEGs of 2
megapixels, decoded by 0, 1 and 2 worker processes: images per second, and the share of the time for which the tower waits.

    python benchmarks/index.py [--images 1000000] [--dim 512] [--index IVF1024,PQ64] [--jpegs 96] [--note TEXT] [--output FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import faiss
import numpy as np

from saga_lib.common.files import write_json
from saga_lib.common.paths import REPOSITORY
from saga_study.deploy.building import SHARD_SIZE, fill
from saga_study.deploy.entries import Entry
from saga_study.deploy.factory import empty_vectors
from saga_study.deploy.index import Index, unit_rows
from saga_study.deploy.shards import SHARDS, read_shard, write_shard
from saga_study.deploy.storage import write_record

PER_CLASS = 1000  # images: several times what an index proposes, so that finding the class is not enough
CHECKPOINT = REPOSITORY / "saga_lib" / "miniature" / "checkpoints" / "birds"


def draw(num: int, dim: int, classes: int, seed: int) -> np.ndarray:
    """Return embeddings (num, dim) float32 of unit length, a cosine of about 0.5 apart within a class."""
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((num, dim), dtype=np.float32)
    rows += np.random.default_rng(0).standard_normal((classes, dim), dtype=np.float32)[rng.integers(classes, size=num)]
    return unit_rows(rows)


def timed(work) -> tuple[float, object]:
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def write_gallery(folder: Path, num: int, dim: int, classes: int) -> None:
    """Write shards of `num` embeddings with names and checksums as photographs have them."""
    for number, start in enumerate(range(0, num, SHARD_SIZE)):
        count = min(SHARD_SIZE, num - start)
        marks = np.random.default_rng(number).bytes(32 * count).hex()
        entries = [Entry(f"class_{i % classes:05d}/image_{start + i:08d}.jpg", "/photographs", marks[64 * i :][:64]) for i in range(count)]
        path = folder / SHARDS / f"{number:05d}-{number:012x}.safetensors"
        write_shard(path, draw(count, dim, classes, 1000 + number), entries, "d", "/photographs")


def build(folder: Path, kind: str) -> dict:
    """Make an index of a folder's shards; return seconds, and the most memory that this process held."""
    shards = [read_shard(path) for path in sorted((folder / SHARDS).iterdir())]
    before = _memory()
    vectors = empty_vectors(shards[0].dim, kind)
    filling, _ = timed(lambda: fill(vectors, kind, shards))
    writing, _ = timed(lambda: write_record(folder, vectors, shards, kind, {"digest": "d"}))
    return {"train_and_fill_seconds": filling, "write_and_checksum_seconds": writing, "gib_before": before, "gib_at_most": _memory("VmHWM")}


def _memory(what: str = "VmRSS") -> float:
    """Return resident memory of this process in GiB, pages of mapped files included."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(what)) / 2**20


def exact_by_numpy(queries: np.ndarray, index: Index, k: int) -> np.ndarray:
    """Return the cosines (Q, k) of the nearest, best first, without faiss."""
    best = np.full((len(queries), k), -np.inf, np.float32)
    for block in index.rows.blocks:
        best = -np.sort(-np.concatenate([best, queries @ np.asarray(block).T], axis=1).copy(), axis=1)[:, :k]
    return best


def search(folder: Path, queries: np.ndarray, k: int) -> dict:
    """Measure an index that is read from the disk: speed in a batch and one at a time, recall, memory, bytes."""
    loading, index = timed(lambda: Index.load(folder, mapped=True))
    few, one = queries[:200], queries[:20]
    index.search(few, k), index.rows.search(few[:8], k)  # reads from the disk what the page cache lacks
    truth = exact_by_numpy(few, index, k)
    approximate, (_, found) = timed(lambda: index.search(queries, k))
    exact, (_, cosines) = timed(lambda: (index.rows.search(few, k)[1], index.rows.search(few[:1], k)[0]))
    singly, _ = timed(lambda: [index.search(query[None], k) for query in one])
    exact_singly, _ = timed(lambda: [index.rows.search(query[None], k) for query in one[:5]])
    per_query, per_exact = approximate / len(queries), exact / (len(few) + 1)
    sizes = {path: path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    index_bytes = sum(size for path, size in sizes.items() if path.suffix != ".safetensors")
    return {
        "load_seconds": loading, "recall": float((found[: len(few)] >= truth[:, -1:] - 1e-6).mean()),
        "queries_per_second": 1 / per_query, "exact_queries_per_second": 1 / per_exact, "times_exact": per_exact / per_query,
        "one_at_a_time_per_second": len(one) / singly, "exact_one_at_a_time_per_second": 5 / exact_singly,
        "times_exact_one_at_a_time": (exact_singly / 5) / (singly / len(one)),
        "index_bytes_per_image": index_bytes / len(index), "shard_bytes_per_image": (sum(sizes.values()) - index_bytes) / len(index),
    }  # fmt: skip


def embed_jpegs(folder: Path, num: int, batch_size: int = 16) -> dict:
    """Measure images per second of a miniature encoder over JPEGs, by how many processes decode them."""
    from PIL import Image

    from saga_lib.common.images import upright_rgb
    from saga_lib.encoder import Encoder
    from saga_lib.families.loading import load_supervisor
    from saga_study.deploy.decoding import decode
    from saga_study.deploy.entries import embed_decoded

    rng, folder = np.random.default_rng(0), folder / "jpegs"
    folder.mkdir()
    for number in range(num):  # as smooth as photographs are, with some noise
        small = Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)).resize((1600, 1200), Image.Resampling.BICUBIC)
        noisy = np.asarray(small, np.int16) + rng.integers(-8, 9, (1200, 1600, 1))
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / f"{number}.jpg", quality=90)
    paths = sorted(folder.iterdir())
    encoder = Encoder(load_supervisor(CHECKPOINT, 96)[0], "attention", 64).eval()
    batches = [range(start, min(start + batch_size, num)) for start in range(0, num, batch_size)]
    result: dict = {"pixels": "1600 × 1200", "mean_bytes": sum(path.stat().st_size for path in paths) / num, "images": num}
    start = time.process_time()  # not that of others, who may use the cores, too
    [encoder.tower.preprocess([upright_rgb(path)]) for path in paths[:batch_size]]
    result["cpu_seconds_to_decode_one"] = (time.process_time() - start) / batch_size
    for workers in (0, 1, 2):
        decoded, waiting, begin = decode(paths, batches, encoder.tower.preprocess, workers), 0.0, time.perf_counter()
        for number, batch in enumerate(batches):
            waited, images = timed(lambda decoded=decoded: next(decoded))
            waiting += waited if number else 0.0  # the first has nothing to be hidden behind
            embed_decoded(encoder, images, [paths[i] for i in batch])
        seconds = time.perf_counter() - begin
        result[f"{workers}_workers"] = {"images_per_second": num / seconds, "share_waiting": waiting / seconds}
    return result


def main(arguments: list[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=1_000_000, help="embeddings in the index")
    parser.add_argument("--dim", type=int, default=512, help="D_e")
    parser.add_argument("--index", default="IVF1024,PQ64", help="a factory string of faiss")
    parser.add_argument("--queries", type=int, default=1000, help="searched in one call")
    parser.add_argument("--k", type=int, default=10, help="neighbours per query")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of building and searching")
    parser.add_argument("--jpegs", type=int, default=96, help="images to embed; 0: none")
    parser.add_argument("--folder", type=Path, help="where to write (2.2 kB an image at 512 dimensions); default: a temporary folder")
    parser.add_argument("--note", default="", help="kept with the result, such as what ran beside it")
    parser.add_argument("--output", type=Path, help="write the result as JSON")
    parser.add_argument("--build", type=Path, help=argparse.SUPPRESS)  # in the process of its own: the folder of the shards
    args = parser.parse_args(arguments)
    faiss.omp_set_num_threads(args.threads)
    if args.build:
        print(json.dumps(build(args.build, args.index)))
        return {}
    folder = Path(tempfile.mkdtemp(prefix="saga-index-", dir=args.folder))
    try:
        result = _measure(args, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(json.dumps(result, indent=1, ensure_ascii=False))
    if args.output:
        write_json(args.output, result)
    return result


def _measure(args: argparse.Namespace, folder: Path) -> dict:
    classes = max(1, args.images // PER_CLASS)
    machine = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {args.threads} thread(s), faiss {faiss.__version__}"
    result: dict = {"machine": machine, "note": args.note, "images": args.images, "dim": args.dim, "classes": classes}
    result |= {"index": args.index, "queries": args.queries, "k": args.k}
    result["shards_seconds"], _ = timed(lambda: write_gallery(folder, args.images, args.dim, classes))
    print(f"{args.images:,} embeddings in shards: {result['shards_seconds']:.0f} s", file=sys.stderr, flush=True)
    command = [sys.executable, __file__, "--build", str(folder), "--index", args.index, "--threads", str(args.threads)]
    environment = os.environ | {"OMP_NUM_THREADS": str(args.threads)}  # faiss' matrix products follow it
    built = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    result["build"] = json.loads(built.stdout.splitlines()[-1])
    print(f"built: {result['build']}", file=sys.stderr, flush=True)
    result["search"] = search(folder, draw(args.queries, args.dim, classes, 7), args.k)
    if args.jpegs:
        result["embedding"] = embed_jpegs(folder, args.jpegs)
    return result


if __name__ == "__main__":
    main()
