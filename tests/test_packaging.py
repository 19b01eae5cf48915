"""What pip installs: `saga_lib` with the few packages it imports, the rest as extras; an installed library writes where it is used."""

import ast
import importlib.metadata
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]


def required(extra=""):
    """Return the names of the packages of an extra, with those of the extras that it includes; without one, of the library."""
    names = set()
    for line in PROJECT["optional-dependencies"][extra] if extra else PROJECT["dependencies"]:
        if own := re.fullmatch(r"saga-study\[(\w+)\]", line):
            names |= required(own[1])
        else:
            names.add(re.match(r"[\w-]+", line)[0].lower().replace("_", "-"))
    return names


def imported(package):
    """Return the distributions of all that a package imports, anywhere in its code."""
    found, known = set(), importlib.metadata.packages_distributions()
    for path in (REPOSITORY / package).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module and not node.level else []
            found |= {name.partition(".")[0] for name in names}
    found -= {*sys.stdlib_module_names, "saga_lib", "saga_study"}
    return {known.get(name, [name])[0].lower().replace("_", "-") for name in found}


def test_the_library_needs_what_it_imports_and_the_study_has_extras():
    assert imported("saga_lib") <= required() | required("towers")
    assert imported("saga_study") <= required() | required("study") | required("onnx")
    assert len(required()) < 16 and not required() & {"jupyterlab", "papermill", "pytest", "matplotlib"}
    lines = (REPOSITORY / "requirements.lock").read_text().splitlines()
    locked = {re.match(r"[\w.-]+", line)[0].lower().replace("_", "-") for line in lines if line and not line.startswith("#")}
    assert required() | required("dev") <= locked


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The library as a wheel holds it, unpacked in a folder like site-packages."""
    place, source = tmp_path_factory.mktemp("site-packages"), tmp_path_factory.mktemp("source")
    for name in ("saga_lib", "saga_study"):
        shutil.copytree(REPOSITORY / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--target", str(place), str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return place


def test_an_installed_library_reads_and_writes_where_it_is_used(installed, tmp_path):
    before = {path for path in installed.rglob("*") if "__pycache__" not in path.parts}
    code = """
import saga_lib
from saga_lib.config import CHECKPOINTS, RunConfig
from saga_lib.vocabulary import load_vocabulary
from saga_study.paths import data_root, results_root
assert saga_lib.__file__.startswith(PLACE), saga_lib.__file__
assert load_vocabulary("birds").attributes and (CHECKPOINTS / "birds" / "config.json").is_file()
own = {"data_dir": "photos", "vocabulary": "mugs.yaml"}
config = RunConfig(profile="mine", dataset="image_folder", method="x", seed=0, supervisor="a/b", image_size=224, **own)
print(config.data_dir, config.vocabulary, config.to_dict()["data_dir"], data_root(), results_root(), sep="\\n")
"""
    code = code.replace("PLACE", repr(str(installed)))
    environment = {"PYTHONPATH": str(installed), "PATH": ""}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    here = tmp_path.resolve()
    assert done.stdout.split() == [f"{here}/photos", f"{here}/mugs.yaml", "photos", f"{here}/data", f"{here}/results"]
    assert {path for path in installed.rglob("*") if "__pycache__" not in path.parts} == before
