"""Miniature SAGA runs in processes of their own: one that is killed, and several that share a card.

    python benchmarks/miniature_run.py share [--runs 1,4] [--steps 14] [--output FILE]     # steps per second, alone and together
    python benchmarks/miniature_run.py share --cpu --steps 3                              # the same code on a CPU, to see that it runs
    python benchmarks/miniature_run.py train FOLDER [--cpu] [--steps N] [--kill-at N]     # one run; steps are compared bit by bit

A single run is bound by launching kernels, so runs that share a card should finish sooner than one after another. Steps are timed
after the first few, from the moment that all processes have taken them. `--cpu` computes as a GPU would (benchmarks/without_gpu.py).
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from stand_ins import stand_ins
from without_gpu import as_on_a_gpu

from saga_lib.common.files import write_json
from saga_lib.config import RunConfig
from saga_study.methods import make_config

CHECKPOINT_EVERY = 4
WARM_STEPS = 4  # not timed
STARTUP_SECONDS = 90  # a process that has not taken its first steps by then is given up


def miniature_config(steps: int, cpu: bool, audited: bool) -> RunConfig:
    """Return the SAGA run that is tried out: the miniature's on a GPU, a smoke run on a CPU; of few images, which are soon rendered."""
    return make_config(
        "smoke" if cpu else "miniature", "miniature_birds", "saga_pf", 0, steps=steps, images_per_class=4, max_waves=6,
        checkpoint_every=CHECKPOINT_EVERY, audit_every=CHECKPOINT_EVERY if audited else 0,
    )  # fmt: skip


@contextmanager
def reproducible() -> Iterator[None]:
    """Within, a GPU sums in one order as far as torch can: no kernels that add up in the order in which threads arrive."""
    from torch.utils import deterministic

    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    fill, deterministic.fill_uninitialized_memory = deterministic.fill_uninitialized_memory, False
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cuda.enable_mem_efficient_sdp(False)
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_mem_efficient_sdp(True)
        torch.backends.cuda.enable_cudnn_sdp(True)
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        deterministic.fill_uninitialized_memory = fill


def train(folder: Path, steps: int, cpu: bool, kill_at: int = 0, as_usual: bool = False) -> None:
    """Train the run in a folder, or go on with it; with `kill_at` the process kills itself after so many steps.

    Its numbers repeat and it is audited, unless it computes `as_usual`, with the fastest kernels.
    """
    from saga_study.resolving import train_run

    def report(row: dict) -> None:
        if row["step"] == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    with ExitStack() as stack:
        stack.enter_context(stand_ins())
        if cpu:
            stack.enter_context(as_on_a_gpu())
        if not as_usual:
            stack.enter_context(reproducible())
        train_run(miniature_config(steps, cpu, audited=not as_usual), folder, report)


def started(folder: Path, *options: str) -> subprocess.Popen:
    """Start a process that trains a run in a folder."""
    command = [sys.executable, str(Path(__file__).resolve()), "train", str(folder), *options]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=open(folder.with_suffix(".err"), "wb"))


def seconds_of_steps(folder: Path) -> list[float]:
    """Return when each step of a run ended, in seconds since its first began; what was not yet written to its end is left out."""
    try:
        lines = (folder / "metrics.jsonl").read_text().split("\n")[:-1]
    except FileNotFoundError:
        return []
    return [json.loads(line)["seconds"] for line in lines]


def pace(seconds: Sequence[float], before: int) -> float:
    """Return the steps per second of a run whose steps ended at `seconds`, those that came `before` left out as far as others remain."""
    first = min(max(before, 1), len(seconds) - 1) - 1
    return (len(seconds) - 1 - first) / (seconds[-1] - seconds[first])


def side_by_side(count: int, steps: int, cpu: bool, work: Path) -> dict[str, float]:
    """Train `count` runs at once and return their steps per second, all together."""
    warm = min(WARM_STEPS, steps - 2)
    folders = [work / f"{count}-{number}" for number in range(count)]
    options = ["--steps", str(steps), "--as-usual", *(["--cpu"] if cpu else [])]
    processes = [started(folder, *options) for folder in folders]
    begun, at, before = time.perf_counter(), 0.0, [warm] * count
    try:
        while True:
            ended = [seconds_of_steps(folder) for folder in folders]
            done, now = [len(seconds) for seconds in ended], time.perf_counter()
            if not at and min(done) >= warm:
                at, before = now, done
            if at and max(done) >= steps - 1 and min(done) > 1:  # the first one is through: from here on they are fewer
                together = sum(pace(seconds, already) for seconds, already in zip(ended, before, strict=True))
                return {"runs": count, "steps/s": together, "seconds to start": at - begun}
            for process, folder in zip(processes, folders, strict=True):
                if process.poll() or (not at and now - begun > STARTUP_SECONDS * count):
                    said = folder.with_suffix(".err").read_text(errors="replace").strip().splitlines() or ["no word"]
                    raise SystemExit(f"error: run {folder.name} ended with {process.poll()}: {said[-1]}")
            time.sleep(0.05)
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.wait()


def share(runs: Sequence[int], steps: int, cpu: bool, output: Path | None = None) -> list[dict[str, float]]:
    """Return a row for each number of runs at once; `gain` is how many times as many steps a second as the first.

    `output` is written after each of them.
    """
    from saga_study.resolving import resolve

    machine = "CPU" if cpu else torch.cuda.get_device_name()
    resolve(miniature_config(steps, cpu, audited=False)).benchmark  # noqa: B018  rendered before anything is timed
    rows: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory(prefix="saga-share-") as work:
        for count in runs:
            row = side_by_side(count, steps, cpu, Path(work))
            rows.append(row | {"gain": row["steps/s"] / (rows[0]["steps/s"] if rows else row["steps/s"])})
            print(", ".join(f"{name} {value:.3g}" for name, value in rows[-1].items()), flush=True)
            if output:
                write_json(output, {"machine": machine, "torch": torch.__version__, "steps": steps, "rows": rows})
    return rows


def main(arguments: Sequence[str] | None = None) -> list[dict[str, float]]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    work = parser.add_subparsers(dest="work", required=True)
    one = work.add_parser("train", parents=[_shared()], help="train one run")
    one.add_argument("folder", type=Path)
    one.add_argument("--kill-at", type=int, default=0, metavar="STEP", help="kill the process after this step")
    one.add_argument("--as-usual", action="store_true", help="as in a study: with kernels that may not repeat bit by bit, without audits")
    several = work.add_parser("share", parents=[_shared()], help="time runs side by side")
    several.add_argument("--runs", default="1,4", help="how many at once, e.g. 1,4")
    several.add_argument("--output", type=Path, help="write the result as JSON")
    options = parser.parse_args(arguments)
    if not options.cpu and not torch.cuda.is_available():
        raise SystemExit("error: no CUDA GPU was found; --cpu computes the same on the CPU")
    if options.work == "train":
        train(options.folder, options.steps, options.cpu, options.kill_at, options.as_usual)
        return []
    return share([int(count) for count in options.runs.split(",")], options.steps, options.cpu, options.output)


def _shared() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--cpu", action="store_true", help="on a CPU, as a GPU would: a smoke run in place of the miniature's")
    parser.add_argument("--steps", type=int, default=14, help="steps of a run")
    return parser


if __name__ == "__main__":
    main()
