"""Whether changed code computes the same numbers as the code that made a study, so that its runs keep their addresses."""

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
from saga_lib.common.paths import REPOSITORY
from saga_lib.config import RunConfig
from saga_lib.records import SAME_NUMBERS, code_digest, exact_code_digest
from saga_study.methods import describe
from saga_study.paths import data_root, is_complete, study_folder
from saga_study.runs.children import RunFailed
from saga_study.runs.processes import child_environment
from saga_study.runs.reproduce import shortened

PACKAGES = ("saga_lib", "saga_study")  # of which older commits have only the first
CLOCKED = ("seconds", "tokens_per_second", "peak_gib")  # values with names that begin so differ between any two trainings
# Both snippets use only what the code of any commit has.
_CODE_DIGEST = """
try:
    from saga_lib.records import code_digest
except ImportError:
    from saga_lib.config import code_digest
print(code_digest())
"""
_FIRST_STEPS = """
import json, sys
from pathlib import Path
from saga_lib.config import RunConfig
from saga_lib.training import train
try:
    from saga_study.resolving import resolve
except ImportError:  # code in which `train` resolves a run itself
    def resolve(config):
        return config

class Enough(Exception):
    pass

def report(metrics):
    if metrics["step"] == int(sys.argv[3]):
        raise Enough

try:
    train(resolve(RunConfig.from_dict(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))), Path(sys.argv[2]), report)
except Enough:
    pass
"""


def show_same_numbers(study: str, commit: str = "", steps: int = 20) -> int:
    """Compare this code with the code that made a study; if all numbers are identical, the study's runs keep their addresses.

    The code of `commit` (default: the one in the study's manifest) and this code both train the first `steps` steps of one finished run
    of each method, on datasets that change from method to method, on this machine; a run without training is evaluated by both. A
    `commit` later than the manifest's also has the methods that were added to the study later. If all numbers are identical,
    `SAME_NUMBERS` records that this code counts as the study's, else nothing changes. The exit code is 0 if they are, else 1. It holds
    for this kind of machine: a study on GPUs must be compared on a GPU. Raises `SagaError` if the commit is not in this repository or its
    code is not that of the study.
    """
    manifest = read_json(study_folder(study) / "manifest.json")
    made_by, exact = manifest["code"], exact_code_digest()
    if made_by == code_digest():
        print(f"study {study} was made by code {made_by}, which this is or is known to equal: nothing to show")
        return 0
    shown: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="saga-same-") as scratch:
        trees = {"before": _checked_out(commit or manifest["commit"], Path(scratch) / "before", made_by), "now": REPOSITORY}
        for path, config in _one_of_each_method(study_folder(study), made_by, later=bool(commit)).items():
            request = Path(scratch) / f"{path.name}.json"
            write_json(request, read_json(path / "config.json")["config"])
            before, now = (_first_steps(tree, request, Path(scratch) / name / path.name, steps) for name, tree in trees.items())
            differences = _differences(before, now)
            compared = f"{min(steps, config.steps or steps)} steps" if config.steps or config.epochs else "evaluation"
            shown[path.name] = f"{describe(config)}: {compared}"
            print("\n".join([f"{shown[path.name]} {'differ' if differences else 'identical'}", *differences]), flush=True)
            if differences:
                print(f"this code computes other numbers than code {made_by}, so it does not count as the code of study {study}")
                return 1
    if exact_code_digest() != exact:
        raise SagaError("the code changed while it was compared; start again")
    known = read_json(SAME_NUMBERS) if SAME_NUMBERS.is_file() else []
    write_json(SAME_NUMBERS, [*known, {"code": exact, "same_as": made_by, "shown_on": study, "by": shown}])
    code_digest.cache_clear()
    print(f"{len(shown)} runs, every number identical: code {exact} counts as {made_by} ({SAME_NUMBERS.name})")
    return 0


def _checked_out(commit: str, folder: Path, code: str) -> Path:
    """Unpack the packages of a commit below a folder and return it. Raises `SagaError` unless its code digest is `code`."""
    listed = subprocess.run(["git", "ls-tree", "--name-only", commit, *PACKAGES], cwd=REPOSITORY, capture_output=True, text=True)
    if listed.returncode:
        raise SagaError(f"commit {commit} is not in this repository: {listed.stderr.strip().splitlines()[-1]}")
    archive = subprocess.run(["git", "archive", "--format=tar", commit, *listed.stdout.split()], cwd=REPOSITORY, capture_output=True)
    archive.check_returncode()
    folder.mkdir()
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as tar:
        tar.extractall(folder, filter="data")
    asked = subprocess.run([sys.executable, "-c", _CODE_DIGEST], cwd=folder, env=_environment_of(folder), capture_output=True, text=True)
    if asked.returncode:
        raise SagaError(f"the code of commit {commit} does not run here: {asked.stderr.strip().splitlines()[-1]}")
    if (own := asked.stdout.strip()) != code:
        raise SagaError(f"the code of commit {commit} is {own}, that of the study {code}; name another commit behind the study")
    return folder


def _environment_of(tree: Path) -> dict[str, str]:
    return child_environment("miniature") | {"PYTHONPATH": str(tree), "SAGA_DATA": str(data_root())}


def _first_steps(tree: Path, request: Path, folder: Path, steps: int) -> list[dict]:
    """Train a run by the code in `tree`; return the metrics of its first steps, then its evaluation, empty unless it ended."""
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
    """Return a line for each value of the earlier code that differs in the first records that do; times and memory are left out.

    What only this code logs is no difference: a further measure changes no number.
    """
    for first, second in zip(before, now, strict=True):
        names = [name for name in first if not name.startswith(CLOCKED) and first.get(name) != second.get(name)]
        if names:
            place = f"step {first['step']}, " if "step" in first else ""
            return [f"{place}{name}: {shortened(first.get(name))} before, {shortened(second.get(name))} now" for name in names]
    return []


def _one_of_each_method(study: Path, code: str, later: bool) -> dict[Path, RunConfig]:
    """Return a finished run of each method, of its first seed; the dataset changes from method to method.

    `later`: also of methods that were added by later code, which counts as the study's. The code of the study's own commit cannot
    train all of these; that of a later commit can.
    """
    found: dict[str, list[tuple[Path, RunConfig]]] = {}
    for path in sorted(study.glob("runs/*/evaluation.json")):
        record = read_json(path.parent / "config.json")
        config = RunConfig.from_dict(record["config"])
        own = record["code"] == code and (later or record.get("exact_code", code) == code)
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
