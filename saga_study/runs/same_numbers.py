"""Show that changed code computes what the code that made a study did, so that its runs keep their addresses."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

from saga_lib.common.errors import SagaError
from saga_lib.common.files import read_json, write_json
from saga_lib.common.paths import REPOSITORY, data_root
from saga_lib.config import RunConfig
from saga_lib.records import SAME_NUMBERS, code_digest, exact_code_digest, is_complete
from saga_study.methods import describe
from saga_study.paths import study_folder
from saga_study.runs.processes import RunFailed, child_environment
from saga_study.runs.reproduce import shortened

CLOCKED = ("seconds", "tokens_per_second", "peak_gib")  # beginnings of the names of what no two trainings share
_FIRST_STEPS = """
import sys
from pathlib import Path
from saga_lib.config import RunConfig
from saga_lib.common.files import read_json
from saga_lib.training import train

class Enough(Exception):
    pass

def report(metrics):
    if metrics["step"] == int(sys.argv[3]):
        raise Enough

try:
    train(RunConfig.from_dict(read_json(Path(sys.argv[1]))), Path(sys.argv[2]), report)
except Enough:
    pass
"""  # in words that code of any commit understands


def show_same_numbers(study: str, commit: str = "", steps: int = 20) -> int:
    """Show that this code computes what the one that made a study did, and if so let its runs keep their addresses.

    The code of `commit` (default: the one in the study's manifest) and this one both train, here and now, `steps` steps of one of
    the study's finished runs of each method (its dataset changing from method to method), and both evaluate one without
    training. If all numbers are identical, `config.SAME_NUMBERS` says so from then on; else nothing changes. The exit code
    is 0 if they are, else 1. Shown is what this machine computes: a study on GPUs has to show it there. Raises `SagaError` if
    the commit is not to be had or not the code of the study.
    """
    manifest = read_json(study_folder(study) / "manifest.json")
    made_by, exact = manifest["code"], exact_code_digest()
    if made_by == code_digest():
        print(f"study {study} was made by code {made_by}, which this is or is known to equal: nothing to show")
        return 0
    shown: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="saga-same-") as scratch:
        before = _checked_out(commit or manifest["commit"], Path(scratch) / "before", made_by)
        for path, config in _one_of_each_method(study_folder(study), made_by).items():
            request, trees = Path(scratch) / f"{path.name}.json", {"before": before, "now": REPOSITORY}
            write_json(request, read_json(path / "config.json")["config"])
            rows = [_first_steps(tree, request, Path(scratch) / name / path.name, steps) for name, tree in trees.items()]
            lines = _differences(*rows)
            trained = config.steps or config.epochs
            shown[path.name] = f"{describe(config)}: {f'{min(steps, config.steps or steps)} steps' if trained else 'evaluation'}"
            print("\n".join([f"{shown[path.name]} {'differ' if lines else 'identical'}", *lines]), flush=True)
            if lines:
                print(f"this code computes other numbers than code {made_by}: runs of study {study} stay apart from its own")
                return 1
    if exact_code_digest() != exact:
        raise SagaError("the code changed while it was compared; start again")
    known = read_json(SAME_NUMBERS) if SAME_NUMBERS.is_file() else []
    write_json(SAME_NUMBERS, [*known, {"code": exact, "same_as": made_by, "shown_on": study, "by": shown}])
    code_digest.cache_clear()
    print(f"{len(shown)} runs, every number identical: code {exact} counts as {made_by} ({SAME_NUMBERS.name})")
    return 0


def _checked_out(commit: str, folder: Path, code: str) -> Path:
    """Unpack the library of a commit below a folder and return it; it must be the code that a study was made by."""
    folder.mkdir()
    archive = subprocess.run(["git", "archive", "--format=tar", commit, "saga_lib"], cwd=REPOSITORY, capture_output=True)
    if archive.returncode:
        raise SagaError(f"commit {commit} is not in this repository: {archive.stderr.decode(errors='replace').strip().splitlines()[-1]}")
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as tar:
        tar.extractall(folder, filter="data")
    told = [sys.executable, "-c", "from saga_lib.config import code_digest; print(code_digest())"]
    asked = subprocess.run(told, cwd=folder, env=_environment_of(folder), capture_output=True, text=True)
    if asked.returncode:
        raise SagaError(f"the code of commit {commit} does not run here: {asked.stderr.strip().splitlines()[-1]}")
    if (own := asked.stdout.strip()) != code:
        raise SagaError(f"the code of commit {commit} is {own}, that of the study {code}; name another commit behind the study")
    return folder


def _environment_of(tree: Path) -> dict[str, str]:
    return child_environment("miniature") | {"PYTHONPATH": str(tree), "SAGA_DATA": str(data_root())}


def _first_steps(tree: Path, request: Path, folder: Path, steps: int) -> list[dict]:
    """Return what a tree's code makes of a run: the metrics of its first steps, then its evaluation, empty unless it ended."""
    done = subprocess.run(
        [sys.executable, "-c", _FIRST_STEPS, str(request), str(folder), str(steps)], cwd=tree, env=_environment_of(tree),
        capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        raise RunFailed(f"the code in {tree} failed: {done.stderr.strip().splitlines()[-1]}", done.stderr)
    logs = [folder / name for name in ("metrics.jsonl", "audit.jsonl")]
    lines = [line for log in logs if log.is_file() for line in log.read_text(encoding="utf-8").splitlines()]
    return [*map(json.loads, lines), read_json(folder / "evaluation.json") if is_complete(folder) else {}]


def _differences(before: Sequence[dict], now: Sequence[dict]) -> list[str]:
    """Return what differs in the first of two sequences of records that do, a line each; times and memory may."""
    for first, second in zip(before, now, strict=True):
        names = [name for name in {**first, **second} if not name.startswith(CLOCKED) and first.get(name) != second.get(name)]
        if names:
            place = f"step {first['step']}, " if "step" in first else ""
            return [f"{place}{name}: {shortened(first.get(name))} before, {shortened(second.get(name))} now" for name in names]
    return []


def _one_of_each_method(study: Path, code: str) -> dict[Path, RunConfig]:
    """Return a finished run of each method, the first seed; datasets take turns, so that each has its share."""
    found: dict[str, list[tuple[Path, RunConfig]]] = {}
    for path in sorted(study.glob("runs/*/evaluation.json")):
        record = read_json(path.parent / "config.json")
        config = RunConfig.from_dict(record["config"])
        own = record.get("exact_code", code) == code == record["code"]  # not of code that only counts as the study's
        if own and not config.vocabulary:  # which may be a file that the commit lacks
            found.setdefault(config.method, []).append((path.parent, config))
    if not found:
        raise SagaError(f"study {study.name} has no finished run of its code {code} to compare with")
    chosen: dict[Path, RunConfig] = {}
    for number, method in enumerate(sorted(found)):
        of_one = sorted(found[method], key=lambda run: (run[1].seed, run[1].dataset, run[0].name))
        datasets = sorted({config.dataset for _, config in of_one})
        wanted = datasets[number % len(datasets)]
        path, config = next(run for run in of_one if run[1].dataset == wanted)
        chosen[path] = config
    return chosen
