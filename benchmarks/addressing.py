"""Time how long it takes to name the runs of the default miniature study, against loading their benchmarks.

A run's folder is named after what the run reads, and every command names all runs. The first run of a benchmark computes its checksum,
and renders a miniature benchmark that is not there yet.

    python benchmarks/addressing.py
"""

from __future__ import annotations

import time

from saga_study.datasets.loading import run_benchmark
from saga_study.runs.store import run_folder
from saga_study.study.command import make_parser
from saga_study.study.plan import make_plan


def seconds(work, *arguments: object) -> float:
    start = time.perf_counter()
    work(*arguments)
    return time.perf_counter() - start


def main() -> None:
    runs = make_plan(make_parser().parse_args([]), "miniature").runs
    first, *others = [seconds(run_folder, "a-study", run) for run in runs]
    loading = [seconds(run_benchmark, run) for run in {(run.dataset, run.evaluate_on): run for run in runs}.values()]
    print(f"naming {len(runs)} runs: the first {first:.2f} s, the others {sum(others):.2f} s, at most {max(others):.2f} s each")
    name, load = sum(others) / len(others), sum(loading) / len(loading)
    print(f"loading a benchmark takes {load:.2f} s, {load / name:.0f} times as long as a name")


if __name__ == "__main__":
    main()
