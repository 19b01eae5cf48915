"""A study's manifest: its plan, and the code, machine and data that made it."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import itertools
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from saga_lib.common.errors import SagaError, cannot_write, unknown_name
from saga_lib.common.files import read_json, write_text
from saga_lib.common.paths import REPOSITORY, WORKPLACE
from saga_lib.config import RunConfig
from saga_lib.records import code_digest
from saga_study.methods import PROFILES
from saga_study.paths import study_folder
from saga_study.processes import count_cores
from saga_study.resolving import resolve
from saga_study.study.plan import Plan


def find_study(name: str, profile: str | None) -> dict:
    """Return the manifest of a study to resume, by its id or "LATEST".

    Raises `SagaError` if there is none, if it is of another profile than `profile`, or if it was made by other code: numbers of
    different code are never mixed.
    """
    own = os.environ.get("SAGA_RESULTS")
    roots = [Path(own)] if own else [WORKPLACE / "results", WORKPLACE / "results-smoke"]
    if name == "LATEST":
        root = roots[-1] if profile == "smoke" else roots[0]
        if not (root / "LATEST").is_file():
            raise SagaError(f"no study has been started in {root} yet; leave --resume out")
        name = (root / "LATEST").read_text(encoding="utf-8").strip()
    name = Path(name).name  # a path with a trailing slash, as shells complete it, will do
    known = {path.parent.name: path for root in roots for path in root.glob("*/manifest.json")}
    if name not in known:
        raise unknown_name("study", name, known)
    manifest = read_json(known[name])
    if profile and manifest["profile"] != profile:
        raise SagaError(
            f"study {name} is of profile {manifest['profile']}, not {profile}; "
            f"continue with ./run_all.sh {manifest['profile']} --resume {name}"
        )
    if manifest["code"] != code_digest():
        raise SagaError(
            f"study {name} was made by code {manifest['code']} (commit {manifest['commit']}), this is code "
            f"{code_digest()}; check that commit out to continue it, or start a new study"
        )
    return manifest


def _git(*arguments: str) -> str:
    try:
        answer = subprocess.run(["git", *arguments], cwd=REPOSITORY, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return answer.stdout.strip() if answer.returncode == 0 else ""


def _hardware() -> dict[str, object]:
    cpu = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        cpu = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    hardware = {"cpu": cpu, "cores": count_cores(), "memory_gib": round(memory, 1)}
    if "torch" in sys.modules and sys.modules["torch"].cuda.is_available():
        cuda = sys.modules["torch"].cuda
        hardware["gpus"] = [cuda.get_device_name(i) for i in range(cuda.device_count())]
    return hardware


def start_manifest(plan: Plan) -> dict:
    """Return the manifest of a new study, ready for JSON."""
    commit = _git("rev-parse", "--short", "HEAD") or "nogit"
    packages = ("torch", "transformers", "faiss-cpu", "papermill", "numpy")
    return {
        "study": f"{time.strftime('%Y%m%d-%H%M%S')}-{plan.profile}-{commit}",
        "profile": plan.profile.name,
        "status": "running",
        "commit": commit,
        "dirty": bool(_git("status", "--porcelain", "--", ".", ":!results")),
        "code": code_digest(),
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in packages},
        "hardware": _hardware(),
        "data": {},
        "datasets": list(plan.datasets),
        "methods": list(plan.methods),
        "seeds": {name: list(seeds) for name, seeds in plan.seeds.items()},
        "full": plan.full,
        "settings": dict(plan.profile.chosen),
        "cpu": plan.cpu,
        "notebooks": [],
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "wall_seconds": 0,
    }


def reserve_folder(manifest: dict) -> dict:
    """Make the folder of a new study and return its manifest, its id with a number if another was started in the same second."""
    for number in itertools.count(1):
        study = manifest["study"] if number == 1 else f"{manifest['study']}-{number}"
        try:
            study_folder(study).mkdir(parents=True)
            return manifest | {"study": study}
        except FileExistsError:
            continue
        except OSError as error:
            raise cannot_write(study_folder(study), error) from error


def check_unchanged(manifest: dict) -> None:
    """Raise `SagaError` if another command has gone on with a study since its manifest was read."""
    if read_json(study_folder(manifest["study"]) / "manifest.json") != manifest:
        raise SagaError(f"another command has just gone on with study {manifest['study']}; give this one again")


def write_manifest(manifest: dict) -> None:
    """Write a study's manifest, one line per entry."""
    lines = ",\n".join(f" {json.dumps(key)}: {json.dumps(value)}" for key, value in manifest.items())
    write_text(study_folder(manifest["study"]) / "manifest.json", f"{{\n{lines}\n}}\n")


def data_checksums(runs: Sequence[RunConfig]) -> dict[str, str]:
    """Return the checksums of the benchmarks and supervisors of some runs, by what they are."""
    checksums = {}
    usual = PROFILES[runs[0].profile]["supervisor"]
    for config in {(run.dataset, run.supervisor): run for run in runs}.values():
        inputs = resolve(config).inputs
        supervisor = f"supervisor of {config.dataset}" if config.supervisor == usual else f"supervisor {Path(config.supervisor).name}"
        checksums |= {config.dataset: inputs["benchmark"], supervisor: inputs["supervisor"]}
    return checksums
