"""Train a finished run again and compare every number."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from saga_lib.common.errors import SagaError
from saga_lib.common.files import read_json
from saga_lib.config import RunConfig
from saga_lib.records import code_digest, plain_hits
from saga_study.paths import is_complete
from saga_study.resolving import resolve
from saga_study.runs.packing import BY_CLASS, plain_by_class
from saga_study.runs.processes import use_one_thread

TIMINGS = ("seconds",)  # of evaluation.json


def reproduce(folder: Path, again: Path) -> list[str]:
    """Train a finished run again from its `config.json`, into the folder `again`; return a line for each difference.

    Compared are the checksums of the inputs, the code digest and every number of `evaluation.json` but the time. Nothing in `folder`
    changes. Raises `SagaError` if it holds no finished run.
    """
    from saga_lib.training import train

    if not is_complete(folder):
        raise SagaError(f"{folder} holds no finished run (no evaluation.json); name a folder such as results/STUDY/runs/KEY")
    record, before = read_json(folder / "config.json"), read_json(folder / "evaluation.json")
    config = RunConfig.from_dict(record["config"])
    run = resolve(config)
    now = run.inputs | {"code": code_digest()}
    then = record["inputs"] | {"code": record["code"]}
    lines = [f"{name}: {then.get(name)} then, {now.get(name)} now" for name in now if now[name] != then.get(name)]
    train(run, again)
    after = read_json(again / "evaluation.json")
    before, after = (each | {"hits_at_1": plain_hits(each), BY_CLASS: plain_by_class(each)} for each in (before, after))
    for name in dict.fromkeys([*before, *after]):
        if name not in TIMINGS and before.get(name) != after.get(name):
            lines.append(f"{name}: {shortened(before.get(name))} then, {shortened(after.get(name))} now")
    return lines


def shortened(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:40]}… ({len(text)} characters)"


def check(folder: Path) -> int:
    """Print whether training a run again here gives the same numbers; the exit code is 0 if it does, else 1."""
    folder = Path(folder).absolute()
    if read_json(folder / "config.json")["config"]["profile"] != "paper":
        use_one_thread()  # as when it was trained: the number of threads is part of the order of summation
    with tempfile.TemporaryDirectory(prefix="saga-check-") as again:
        differences = reproduce(folder, Path(again))
    for line in differences:
        print(line)
    count = f"{len(differences)} difference{'s' if len(differences) > 1 else ''}"
    print(f"run {folder.name}: {count if differences else 'reproduced, every number identical'}")
    return int(bool(differences))
