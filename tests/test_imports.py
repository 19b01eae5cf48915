"""Imports run down only: the contracts of pyproject.toml hold, and each kind of breach is noticed."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
LINT = "import sys; from importlinter.cli import lint_imports_command; sys.exit(lint_imports_command(['--no-cache']))"


@pytest.fixture
def tree(tmp_path):
    """A copy of both packages and their contracts."""
    for package in ("saga_lib", "saga_study"):
        shutil.copytree(REPOSITORY / package, tmp_path / package, ignore=shutil.ignore_patterns("checkpoints", "__pycache__"))
    shutil.copy(REPOSITORY / "pyproject.toml", tmp_path)
    return tmp_path


def lint(tree):
    environment = os.environ | {"PYTHONPATH": str(tree)}
    return subprocess.run([sys.executable, "-c", LINT], cwd=tree, env=environment, capture_output=True, text=True, timeout=120)


def test_imports_run_down(tree):
    done = lint(tree)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(("module", "line"), {
    "saga_lib/losses.py": "from saga_study.methods import METHODS",  # the library knows nothing of the study
    "saga_lib/pairs.py": "from saga_study.resolving import train_run",  # up
    "saga_study/deploy/export.py": "from saga_study.search import results_table",  # up, from what uses encoders to the command
    "saga_study/runs/store.py": "from saga_study.findings.words import points",  # up
    "saga_lib/supervisor/base.py": "from saga_lib.supervisor.rollouts import Rollouts",  # round in a folder
}.items())  # fmt: skip
@pytest.mark.parametrize("late", [False, True])
def test_a_planted_import_fails(tree, module, line, late):
    """An import inside a function, or for types only, counts as well."""
    path = tree / module
    planted = f"\n\ndef planted():\n    {line}\n" if late else f"\n{line}  # noqa\n"
    path.write_text(path.read_text() + planted)
    done = lint(tree)
    assert done.returncode == 1 and "BROKEN" in done.stdout, done.stdout + done.stderr
