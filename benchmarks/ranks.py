"""How much faster a step is when a run is shared out over processes: SAGA at miniature scale, on as many CPU cores.

Both sides train the same run for some steps, one thread a process, one after the other and twice over; the first steps, which warm up, do
not count. What is compared is the median step.

    python benchmarks/ranks.py [--ranks 2] [--steps 12] [--method saga_pf] [--output FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}  # before torch is imported

from saga_lib.common.files import write_json
from saga_study.methods import make_config
from saga_study.processes import count_cores
from saga_study.resolving import resolve, train_run
from saga_study.runs.together import train_together

WARM_UP = 3


def step_seconds(folder: Path) -> tuple[list[float], float]:
    """Return the seconds of each counted step of a run, and its last loss."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    ends = [row["seconds"] for row in rows]
    return [after - before for before, after in zip(ends, ends[1:], strict=False)][WARM_UP - 1 :], rows[-1]["loss_dml"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--method", default="saga_pf")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    config = make_config("miniature", "miniature_birds", options.method, 0, steps=options.steps, audit_every=0, images_per_class=8)
    seconds: dict[int, list[float]] = {1: [], options.ranks: []}
    losses = {}
    with tempfile.TemporaryDirectory() as place:
        for repeat in range(2):
            for ranks in seconds:
                folder = Path(place) / f"{ranks}-{repeat}"
                if ranks == 1:
                    train_run(config, folder)
                else:
                    train_together(resolve(config), folder, ranks=ranks)
                own, losses[ranks] = step_seconds(folder)
                seconds[ranks] += own
                print(f"{ranks} process(es): {statistics.median(own):.2f} s a step, loss {losses[ranks]:.6f}", flush=True)
    medians = {ranks: statistics.median(own) for ranks, own in seconds.items()}
    found = {
        "machine": f"{platform.machine()}, {count_cores()} cores", "method": options.method, "steps": options.steps,
        "seconds_per_step": medians, "speedup": medians[1] / medians[options.ranks], "last_loss": losses,
    }  # fmt: skip
    print(f"{options.ranks} processes: {found['speedup']:.2f} times as fast")
    if options.output:
        write_json(options.output, found)


if __name__ == "__main__":
    main()
