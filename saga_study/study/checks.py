"""The test command: style, imports, unit tests, those of a cluster and a GPU where there is one, then every notebook at smoke scale."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from saga_lib.common.errors import SagaError
from saga_lib.common.paths import REPOSITORY
from saga_study.study.execution import say
from saga_study.study.notebooks import NOTEBOOKS

TEST_PROCESSES = min((os.cpu_count() or 1) + 1, 8)  # of one thread each; some tests wait for other processes
APART = ("--ignore", "tests/gpu", "--ignore", "tests/cluster")  # which share the one GPU, or start daemons
IMPORTS = "from importlinter.cli import lint_imports_command; lint_imports_command()"  # the contracts of pyproject.toml


def run_tests() -> int:
    """Run ruff, the import contracts, the unit tests, then the smoke study of every notebook in a temporary folder.

    Unit tests see no GPU; those of tests/gpu and tests/cluster run one at a time, and are skipped with a reason where there is no GPU, or
    no SLURM that root could start.
    """
    python = [sys.executable, "-m"]
    for title, command in {
        "style": [*python, "ruff", "check", "."],
        "imports": [sys.executable, "-c", IMPORTS],
        "unit tests": [*python, "pytest", "-q", "-n", str(TEST_PROCESSES), "--dist", "worksteal", *APART],
        "tests on a cluster": [*python, "pytest", "-q", "-rs", "tests/cluster"],
        "tests on a GPU": [*python, "pytest", "-q", "-rs", "tests/gpu"],
    }.items():
        print(f"== {title}", flush=True)
        environment = os.environ | ({"SAGA_GPU_TESTS": "1"} if "GPU" in title else {})
        if code := subprocess.run(command, cwd=REPOSITORY, env=environment).returncode:
            say(f"error: {title} failed")
            return code
    print("== smoke study", flush=True)
    with tempfile.TemporaryDirectory(prefix="saga-test-") as results:
        environment = os.environ | {"SAGA_RESULTS": results, "HF_HUB_OFFLINE": "1"}
        if code := subprocess.run([*python, "saga_study", "smoke"], cwd=REPOSITORY, env=environment).returncode:
            return code
        executed = sorted(path.stem for path in Path(results).glob("*/notebooks/*.ipynb"))
    # A suite that executes nothing passes too; this one must not.
    if absent := [notebook.name for notebook in NOTEBOOKS if notebook.name not in executed]:
        raise SagaError(f"the smoke study left no executed {', '.join(absent)}")
    print(f"all passed: {len(executed)} notebooks executed")
    return 0
