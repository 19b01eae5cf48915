"""Two studies and a by-hand notebook at once in one results folder: nothing is lost, no run is trained twice, tables are as if alone.

Both studies start in the same second, with the same runs and no rendered benchmark, and a third process asks for the first study's
runs, as a cell of a notebook opened by hand does (`train_or_load`).

    python benchmarks/side_by_side.py [--work FOLDER] [--output FILE]

FOLDER is that of benchmarks/kill.py, whose copy of the code and undisturbed pass are taken if they are there.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path

import kill

from saga_lib.common.files import write_json

BY_HAND = """
import sys
from saga_study.methods import make_config
from saga_study.runs.processes import use_one_thread
from saga_study.runs.store import train_or_load
use_one_thread()
for method in ("saga_pf", "pf"):
    run = train_or_load(make_config("smoke", "miniature_birds", method, 0, steps=5), sys.argv[1])
    print(run.key, len(run.metrics), flush=True)
"""


def work_at_once(place: kill.Place, alone: Path) -> dict:
    """Start everything, wait for its end and return what came of it."""
    started, faults = time.monotonic(), []
    processes = {name: place.start(*kill.ARGUMENTS, name=name) for name in ("first", "second")}
    trained: dict[Path, int] = {}  # of each finished run, when its weights were written
    while any(process.poll() is None for process in processes.values()):
        if time.monotonic() - started > 2 * kill.LIMIT_SECONDS:
            raise SystemExit("they do not end")
        if "by hand" not in processes and (studies := place.studies()):
            (place.folder / "by_hand.py").write_text(BY_HAND, encoding="utf-8")
            processes["by hand"] = place.start(studies[0].name, name="by hand", script=place.folder / "by_hand.py")
        for evaluation in place.results.glob("*/runs/*/evaluation.json"):
            trained.setdefault(evaluation, (evaluation.parent / "encoder" / "model.safetensors").stat().st_mtime_ns)
        time.sleep(0.2)
    for name, process in processes.items():
        if process.returncode:
            faults.append(f"{name} ended with {process.returncode}: {(place.said(name) or [''])[-1]}")
    if len(processes) < 3:
        faults.append("the by-hand process never started")
    if len(place.studies()) != 2:
        faults.append(f"{len(place.studies())} studies")
    for study in place.studies():
        faults += [f"{study.name} differs: {name}" for name in kill.differences(study, alone)]
    for evaluation, at in trained.items():
        if (evaluation.parent / "encoder" / "model.safetensors").stat().st_mtime_ns != at:
            faults.append(f"{evaluation.parent.name} was trained twice")
    place.seconds_until_gone()
    faults += [f"left behind: {name}" for name in place.leftovers()]
    return {
        "seconds": round(time.monotonic() - started, 1), "studies": [study.name for study in place.studies()],
        "runs": len(trained), "by_hand": (place.folder / "by hand.out").read_text().splitlines(), "faults": faults,
    }  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, help="folder of the copy of the code and of the results (default: a temporary one)")
    parser.add_argument("--output", type=Path, help="write the result as JSON")
    options = parser.parse_args(arguments)
    work = (options.work or Path(tempfile.mkdtemp(prefix="saga-side-"))).absolute()
    tree = kill.copy_code(work / "tree")
    alone, seconds = kill.undisturbed(work, tree)
    shutil.rmtree(work / "side by side", ignore_errors=True)
    result = {"undisturbed_seconds": round(seconds, 1)} | work_at_once(kill.Place(work / "side by side", tree), alone)
    print(json.dumps(result, indent=1))
    if options.output:
        write_json(options.output, result)
    return int(bool(result["faults"]))


if __name__ == "__main__":
    sys.exit(main())
