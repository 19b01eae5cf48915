"""Run folders of a study: find them, read them, train the missing ones.

A run's folder is `<study>/runs/<key>/`, where the key is its content address: the same settings, inputs and code always lead to the
same folder, so nothing is computed twice and no old result is taken for a new one. A run is complete if and only if
`evaluation.json` exists.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from saga_lib.common.errors import SagaError
from saga_lib.common.files import read_json, remove_leftovers
from saga_lib.config import RunConfig
from saga_lib.records import ResolvedRun, Run, code_digest
from saga_study.methods import describe
from saga_study.paths import BY_HAND, is_complete, study_folder
from saga_study.processes import only_one_process
from saga_study.resolving import resolve


def run_folder(study: str, config: RunConfig) -> Path:
    """Return the folder of a run of a study, whether or not it exists yet.

    A miniature benchmark is rendered if it is missing, because its checksum is part of the address.
    """
    return study_folder(study) / "runs" / resolve(config).key


def load_run(study: str, config: RunConfig) -> Run | None:
    """Return a finished run of a study, or None."""
    folder = run_folder(study, config)
    return Run(folder, config) if is_complete(folder) else None


def load_finished(study: str, configs: Sequence[RunConfig]) -> dict[RunConfig, Run]:
    """Return those of some runs that a study has finished, by the settings in their folders: no benchmark is rendered for it."""
    found: dict[str, Path] = {}
    for path in study_folder(study).glob("runs/*/evaluation.json"):
        record = read_json(path.parent / "config.json")
        if record.get("code") == code_digest():
            found[json.dumps(record["config"], sort_keys=True)] = path.parent
    keys = {config: json.dumps(config.to_dict(), sort_keys=True) for config in configs}
    return {config: Run(found[key], config) for config, key in keys.items() if key in found}


def train_or_load(config: RunConfig, study: str = BY_HAND, need_encoder: bool = False) -> Run:
    """Return a run of a study, trained here and now (with a progress bar) if the study lacks it.

    With `need_encoder` the run has weights, too. A finished record without weights is never changed: they are trained again in the
    by-hand study, and that run is returned. If another process trains the run, this one waits for it.
    """
    resolved = resolve(config)
    folder = study_folder(study) / "runs" / resolved.key
    run = Run(folder, config) if is_complete(folder) else None
    if run and (run.has_encoder() or not need_encoder):
        return run
    if run and study != BY_HAND:
        return train_or_load(config, BY_HAND, need_encoder=True)
    from tqdm.auto import tqdm

    with tqdm(desc=describe(config), unit="step", leave=False) as bar:

        def report(metrics: dict) -> None:
            bar.set_description(describe(config), refresh=False)  # it may have been waiting for another process until now
            bar.total = metrics.get("steps")
            bar.update(metrics["step"] - bar.n)

        def follow(holder: str) -> None:
            """Show the progress of the process that trains this run already."""
            bar.set_description(f"{describe(config)}, trained by process {holder}")
            log = folder / "metrics.jsonl"
            if log.is_file() and (lines := log.read_bytes().splitlines(keepends=True)) and lines[0].endswith(b"\n"):
                bar.total = json.loads(lines[0]).get("steps")
                bar.update(len(lines) - bar.n)

        train_alone(resolved, folder, report, need_encoder, follow)
    return Run(folder, config)


def train_alone(
    resolved: ResolvedRun, folder: Path, report: Callable[[dict], None] | None = None, need_encoder: bool = False,
    waiting: Callable[[str], object] | None = None, train: Callable | None = None,
) -> None:  # fmt: skip
    """Train a run unless it is complete (and has weights, if `need_encoder`), while no other process works in its folder.

    `train` is `saga_lib.training.train`, or what takes its place.
    If one does, wait for it and call `waiting` with its process number now and then; without `waiting` raise `SagaError`.
    """
    if train is None:
        from saga_lib.training import train
    with only_one_process(folder / ".lock", f"run {folder.name} ({describe(resolved.config)})", waiting):
        remove_leftovers(folder)
        run = Run(folder, resolved.config)  # another process may have finished it since we looked
        if is_complete(folder) and need_encoder and not run.has_encoder():
            (folder / "evaluation.json").unlink()  # what is trained again counts as incomplete until it is done
        if not is_complete(folder):
            train(resolved, folder, report)


UNFINISHED = (".lock", "checkpoint", "worker.log", "worker.json")  # what a run folder holds until the run is finished, and no longer


def tidy(folder: Path) -> None:
    """Remove what a worker that was killed at the very end has left in the folder of a finished run, unless one is at work there."""
    if not any((folder / name).exists() for name in UNFINISHED):
        return
    from saga_lib.checkpoints import delete_checkpoint

    with suppress(SagaError, OSError), only_one_process(folder / ".lock", "it"):
        delete_checkpoint(folder / "checkpoint")
        for name in UNFINISHED[2:]:
            (folder / name).unlink(missing_ok=True)
