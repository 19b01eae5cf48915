"""The process that trains one run: python -m saga_study.runs request.json."""

from __future__ import annotations

import errno
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from saga_lib.common.errors import SagaError
from saga_lib.common.files import read_json
from saga_lib.common.processes import stop_on_signals, stop_with
from saga_lib.config import RunConfig
from saga_lib.records import resolve
from saga_study.paths import study_folder
from saga_study.runs.processes import RunFailed
from saga_study.runs.reproduce import check
from saga_study.runs.same_numbers import show_same_numbers
from saga_study.runs.store import train_alone

# ------------------------------------------------------------------------------------------ worker process


def worker_request(config: RunConfig, folder: Path, parent: int | None = None) -> dict:
    """Return what a worker process needs to know, ready for JSON; it stops when its `parent`, if any, is gone."""
    return {"config": config.to_dict(), "folder": str(folder), "parent": parent}


def main(arguments: Sequence[str]) -> int:
    """Train the run that a request file describes, or train again to compare: a run (`--check RUN_FOLDER`), or some of a
    study's whose code was another (`--same-numbers STUDY [COMMIT]`).

    The last line on stderr says what went wrong, if anything.
    """
    stop_on_signals()
    config, folder = None, Path(tempfile.gettempdir())  # where the comparisons write
    try:
        if arguments[:1] == ["--check"]:
            if len(arguments) != 2:
                raise SagaError("--check takes one run folder, such as results/STUDY/runs/KEY")
            return check(Path(arguments[1]))
        if arguments[:1] == ["--same-numbers"]:
            if len(arguments) not in (2, 3) or not (study_folder(arguments[1]) / "manifest.json").is_file():
                raise SagaError("--same-numbers takes a study by its id, such as 20261124-001557-miniature-02fee24, and perhaps a commit")
            return show_same_numbers(*arguments[1:])
        request = read_json(Path(arguments[0]))
        if request["parent"]:
            stop_with(request["parent"])
        config, folder = RunConfig.from_dict(request["config"]), Path(request["folder"])
        run = resolve(config)
        if run.key != folder.name:
            raise SagaError("code or data changed after this run was queued; start the command again")
        train_alone(run, folder)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except (SagaError, RunFailed) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        print(f"error: {folder}: {error.strerror}; free some space, then resume", file=sys.stderr)
        return 2
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's, which may not even have been imported
            raise
        told = _out_of_memory(config, str(error)) if config else f"the GPU's memory is full ({str(error).splitlines()[0]})"
        print(f"error: {told}", file=sys.stderr)
        return 2
    return 0


def _out_of_memory(config: RunConfig, reason: str) -> str:
    """Return what to lower, mildest first, for a run that a GPU could not hold."""
    from saga_study import planner

    try:
        import torch

        gpu_memory = torch.cuda.get_device_properties(0).total_memory / planner.GIB
        expected = planner.peak(planner.estimate(config).expected)
        lower = planner.advice(config, min(gpu_memory, expected - 1))
        if expected <= gpu_memory:
            told = f"the plan expected {expected:.0f} of its {gpu_memory:.0f} GiB, which is too low, or others use this GPU"
            lower = "; ".join([told, *lower.split("; ")[1:]])
    except (SagaError, RuntimeError, AssertionError):  # shapes that are not known
        lower = "lower tower_images, replay_rows, pairs_per_wave or max_micro_batches, or take a smaller supervisor"
    return f"the GPU's memory is full ({reason.strip().splitlines()[0]}); {lower}; start a new study with --set, e.g. --set replay_rows=1"
