"""The notebook contract, checked without executing anything: `./run_all.sh test` executes them."""

import ast
import inspect
import re
from collections import Counter
from pathlib import Path

import nbformat
import pytest

from saga_study import methods
from saga_study.design import cells, tables, trials
from saga_study.findings import hyperparameters, sensitivity
from saga_study.own_images import folder
from saga_study.parameters import read_parameters
from saga_study.study.notebooks import NOTEBOOKS as STUDY_NOTEBOOKS

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
PATHS = sorted(FOLDER.glob("*.ipynb"))
HEADINGS = ["Question", "Parameters", "Paths", "Load", "Run", "Save", "Reading"]
MAX_LINES, MAX_DEF_LINES = 40, 15
TAKE_A_PROFILE = {
    name for module in (methods, cells, tables, trials, folder, hyperparameters, sensitivity)
    for name, function in inspect.getmembers(module, inspect.isfunction) if "Profile | str" in function.__annotations__.get("profile", "")
}  # fmt: skip
FORBIDDEN = r"\.\./|/home|/tmp|/content|/mnt|/root|~/|\bPath\(|os\.path|\bopen\(|https?://|%matplotlib|!pip"

each_notebook = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)


def read(path):
    return nbformat.read(path, as_version=4)


def number(path):
    """The number in front of a notebook's name, such as 04 or 04b."""
    return path.stem.split("_")[0]


def code(path):
    return [cell for cell in read(path).cells if cell.cell_type == "code"]


def functions(path):
    return [
        node for cell in code(path) for node in ast.walk(ast.parse(cell.source)) if isinstance(node, ast.FunctionDef)
    ]


def test_there_are_notebooks_and_the_study_knows_them_all():
    assert [path.stem for path in PATHS] == [notebook.name for notebook in STUDY_NOTEBOOKS]


@each_notebook
def test_it_is_stripped(path):
    notebook = read(path)
    nbformat.validate(notebook)
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert notebook.metadata.kernelspec.name == "python3"
    assert set(notebook.metadata.language_info) == {"name"}
    assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)
    for cell in notebook.cells:
        assert set(cell.metadata) <= {"tags"}
        if cell.cell_type == "code":
            assert cell.execution_count is None and not cell.outputs and cell.source.strip()


@each_notebook
def test_it_has_the_seven_headings_in_order(path):
    text = "\n".join(cell.source for cell in read(path).cells if cell.cell_type == "markdown")
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == HEADINGS


@each_notebook
def test_it_opens_with_its_question_and_expected_cost(path):
    opening = read(path).cells[0].source
    assert opening.startswith(f"# {number(path)} · ")
    for word in ("time", "memory", "smoke", "miniature", "paper"):
        assert word in opening, word
    assert re.search(r"Table|Figure|App\.|Alg\.|Eq\.|paper", opening)


@each_notebook
def test_its_parameters_are_typed_literals_with_help(path):
    parameters = read_parameters(path)  # one tagged cell, nothing but literals, or it raises
    assert parameters["STUDY"].default == "by-hand" and parameters["PROFILE"].default == "miniature"
    (cell,) = [cell for cell in code(path) if "parameters" in cell.metadata.get("tags", [])]
    for line in cell.source.splitlines():
        assert re.fullmatch(r"[A-Z][A-Z_0-9]*: (str|int|float|bool|list\[[a-z]+\]|dict\[str, list\[[a-z]+\]\]) = .+?  # \S.*", line), line


@each_notebook
def test_it_takes_what_the_study_passes(path):
    (notebook,) = [n for n in STUDY_NOTEBOOKS if n.name == path.stem]
    assert set(notebook.takes) <= set(read_parameters(path))


@each_notebook
def test_its_cells_are_short_and_free_of_paths(path):
    for place, cell in enumerate(read(path).cells):
        assert len(cell.source.splitlines()) <= MAX_LINES, f"cell {place}"
        found = re.search(FORBIDDEN, cell.source)
        assert not found, f"cell {place}: {found.group()}"


@each_notebook
def test_it_has_no_library_logic(path):
    for function in functions(path):
        assert function.end_lineno - function.lineno < MAX_DEF_LINES, function.name
    assert not any(
        isinstance(node, ast.ClassDef) for cell in code(path) for node in ast.walk(ast.parse(cell.source))
    )


def test_no_function_stands_in_two_notebooks():
    names = Counter(name for path in PATHS for name in {function.name for function in functions(path)})
    assert [name for name, count in names.items() if count > 1] == []


@each_notebook
def test_it_starts_before_anything_heavy_is_imported(path):
    sources = [cell.source for cell in code(path)]
    start = next(place for place, source in enumerate(sources) if "from saga_study.notebook import start" in source)
    shown = int(number(path)) if number(path).isdecimal() else f'"{number(path)}"'
    assert f"start(STUDY, PROFILE, {shown}" in sources[start]
    assert not any(re.search(r"^(import|from) ", source, re.MULTILINE) for source in sources[:start])


@each_notebook
def test_what_makes_or_lists_runs_is_given_the_context_s_profile(path):
    """The name PROFILE alone would leave out what --set and SETTINGS chose."""
    for node in (node for cell in code(path) for node in ast.walk(ast.parse(cell.source)) if isinstance(node, ast.Call)):
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if name in TAKE_A_PROFILE:
            assert "PROFILE" not in [getattr(argument, "id", "") for argument in node.args], ast.unparse(node)


@each_notebook
def test_what_it_saves_carries_its_number(path):
    for source in (cell.source for cell in code(path)):
        for name in re.findall(r'save_(?:table|figure|page)\(f?"(\w+)', source):
            assert name.startswith(f"{number(path)}_"), name
