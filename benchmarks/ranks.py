"""How much faster a step is when a run is shared out over processes: miniature supervisor and birds, on as many CPU cores.

All sides train the same run for some steps, one thread a process, one after the other and twice over; the first steps, which warm up, do
not count. What is compared is the median step of one process, of the processes that share the run, and of as many that train it each on
its own, side by side: cores share caches and memory, and sharing cannot beat them. The default is a larger step than the miniature's own,
which is made of small operations:

    python benchmarks/ranks.py --set batch_size=64 --set image_size=48 --set pairs_per_wave=16 --set max_waves=6 --set contributing_pairs=8

    python benchmarks/ranks.py [--ranks 2] [--steps 8] [--methods saga_pf,contrast_pf] [--set FIELD=VALUE] [--output FILE]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import tempfile
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}  # before torch is imported

from saga_lib.common.files import write_json
from saga_lib.config import RunConfig
from saga_study.methods import make_config
from saga_study.processes import count_cores
from saga_study.resolving import resolve, train_run
from saga_study.runs.together import train_together

WARM_UP = 3
LARGER = {"image_size": 96, "batch_size": 192, "pairs_per_wave": 96, "max_waves": 1, "contributing_pairs": 48}


def step_seconds(folder: Path) -> tuple[list[float], float]:
    """Return the seconds of each counted step of a run, and its last loss."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    ends = [row["seconds"] for row in rows]
    return [after - before for before, after in zip(ends, ends[1:], strict=False)][WARM_UP - 1 :], rows[-1]["loss_dml"]


def alone(config: dict, folder: str) -> None:
    train_run(RunConfig.from_dict(config), Path(folder))


def train(config: RunConfig, side: str, place: Path, ranks: int) -> list[Path]:
    """Train a run in the way of a side; return the folders that it leaves."""
    if side == "one process":
        train_run(config, place / "0")
    elif side == "shared out":
        train_together(resolve(config), place / "0", ranks=ranks)
    else:
        context = multiprocessing.get_context("spawn")
        processes = [context.Process(target=alone, args=(config.to_dict(), str(place / str(number)))) for number in range(ranks)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
    return sorted(place.iterdir())


def compare(config: RunConfig, ranks: int) -> dict:
    """Return the median seconds of a step of each side, and what they say."""
    seconds: dict[str, list[float]] = {"one process": [], "shared out": [], "side by side": []}
    losses = {}
    with tempfile.TemporaryDirectory() as place:
        for repeat in range(2):
            for side, known in seconds.items():
                for folder in train(config, side, Path(place) / f"{side}-{repeat}", ranks):
                    own, losses[side] = step_seconds(folder)
                    known += own
    medians = {side: statistics.median(known) for side, known in seconds.items()}
    assert abs(losses["shared out"] - losses["one process"]) < 1e-3, losses
    one = medians["one process"]
    return {"seconds_per_step": medians, "speedup": one / medians["shared out"], "ceiling": ranks * one / medians["side by side"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--methods", default="saga_pf")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="of the runs' settings, whole numbers")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    settings = LARGER | {name: int(value) for name, value in (pair.split("=") for pair in options.set)}
    found = {"machine": f"{platform.machine()}, {count_cores()} cores", "ranks": options.ranks, "settings": settings, "methods": {}}
    for method in options.methods.split(","):
        config = make_config("miniature", "miniature_birds", method, 0, steps=options.steps, audit_every=0, images_per_class=8, **settings)
        found["methods"][method] = result = compare(config, options.ranks)
        steps = ", ".join(f"{side} {seconds:.2f}" for side, seconds in result["seconds_per_step"].items())
        print(f"{method}: {result['speedup']:.2f} times as fast, {result['ceiling']:.2f} at most (seconds a step: {steps})", flush=True)
    if options.output:
        write_json(options.output, found)


if __name__ == "__main__":
    main()
