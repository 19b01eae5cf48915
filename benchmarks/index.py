"""Time an index of each kind and measure its recall against the exact one: 50,000 embeddings × 512, 1,000 queries.

Two kinds of data: "classes" (unit vectors around 500 class centres, as trained encoders make them; a query is a new
image of a class) and "uniform" (no structure at all, the worst case of approximate search).

    python benchmarks/index.py [--images 50000] [--dim 512] [--queries 1000] [--k 10] [--threads 1] [--output FILE]
"""

from __future__ import annotations

import argparse
import platform
import time
from pathlib import Path

import faiss
import numpy as np

from saga_lib.common.files import write_json
from saga_study.deploy.index import KINDS, Index


def draw(data: str, num: int, dim: int, seed: int, classes: int = 500) -> np.ndarray:
    """Return embeddings (num, dim) float32, not normalised."""
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal((num, dim), dtype=np.float32)
    if data == "uniform":
        return noise
    centres = np.random.default_rng(0).standard_normal((classes, dim), dtype=np.float32)
    return centres[rng.integers(classes, size=num)] + noise  # cosine of about 0.5 within a class


def timed(work) -> tuple[float, object]:
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=50000, help="embeddings in the index")
    parser.add_argument("--dim", type=int, default=512, help="D_e")
    parser.add_argument("--queries", type=int, default=1000, help="searched in one call")
    parser.add_argument("--k", type=int, default=10, help="neighbours per query")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--output", type=Path, help="write the result as JSON")
    args = parser.parse_args()
    faiss.omp_set_num_threads(args.threads)
    result: dict = {"machine": f"{platform.processor() or platform.machine()}, {args.threads} thread(s), faiss {faiss.__version__}",
                    "images": args.images, "dim": args.dim, "queries": args.queries, "k": args.k}  # fmt: skip
    names = [str(i) for i in range(args.images)]
    print(f"{'data':8} {'kind':6} {'build s':>9} {'query s':>9} {'recall':>7}")
    for data in ("classes", "uniform"):
        embeddings, queries = draw(data, args.images, args.dim, 1), draw(data, args.queries, args.dim, 2)
        for kind in KINDS:
            build, index = timed(lambda kind=kind, rows=embeddings: Index.from_embeddings(rows, names, kind))
            query, _ = timed(lambda index=index, rows=queries: index.search(rows, args.k))
            recall = index.recall(queries, args.k)
            result.setdefault(data, {})[kind] = {"build_seconds": build, "query_seconds": query, "recall": recall}
            print(f"{data:8} {kind:6} {build:9.2f} {query:9.3f} {recall:7.4f}", flush=True)
    if args.output:
        write_json(args.output, result)


if __name__ == "__main__":
    main()
