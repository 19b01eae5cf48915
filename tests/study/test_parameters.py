"""Parameters of notebooks, whoever passes them: papermill by itself, our command, a person. What is wrong is one line before any work."""

import json
import subprocess
import sys

import pytest

from saga_lib.common.errors import SagaError
from saga_lib.common.paths import REPOSITORY
from saga_study.notebook import start
from saga_study.parameters import RANGES, Parameter, check_parameters, check_running, parse_parameters, read_parameters

SHIPPED = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))
each_notebook = pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
NAN = float("nan")
CELL = """STUDY: str = "by-hand"  # help
PROFILE: str = "smoke"  # help
DATA_DIR: str = ""  # help
QUERIES: list[str] = []  # help
SEEDS: dict[str, list[int]] = {}  # help
LAYERS: list[int] = []  # help
NUM_PAIRS: int = 4  # help
SHARE: float = 0.5  # help
FULL: bool = False  # help
LIMIT: float | None = None  # help"""
RIGHT = {
    "DATA_DIR": ["2024", "photos"], "QUERIES": [[], ["a.jpg"], ("a.jpg", "b.jpg")], "LAYERS": [[0, 3], ()], "NUM_PAIRS": [1, 99],
    "SEEDS": [{}, {"birds": [0, 1]}, {"birds": (0,), "cars": []}], "SHARE": [0, 1, 0.5], "FULL": [True], "LIMIT": [None, 2, 2.5],
}  # fmt: skip
WRONG = {
    "DATA_DIR": [2024, 7, 1.5, None, True, ["a"], {}],
    "QUERIES": ["a.jpg", "[a.jpg, b.jpg]", None, 3, [3], ["a", None], [["a"]], {"a": "b"}],
    "LAYERS": [0, "0", ["0"], [0.0], [True], [-1], [NAN]], "NUM_PAIRS": ["48", 48.0, None, True, 0, -3, NAN, [4]],
    "SEEDS": [0, [0], "birds", {"birds": 0}, {"birds": "01"}, {"birds": ["0"]}, {0: [0]}, {"birds": [-1]}, {"birds": [2**32]}, None],
    "SHARE": ["0.5", None, False, NAN, float("inf"), [0.5]], "FULL": ["true", "True", "False", 1, 0, None], "LIMIT": ["2", True, NAN],
}  # fmt: skip


def line(work, *arguments, **options):
    with pytest.raises(SagaError) as error:
        work(*arguments, **options)
    assert "\n" not in str(error.value) and len(str(error.value)) < 500
    return str(error.value)


def running(cell=CELL, injected=None, **values):
    """The names of a notebook whose cells up to its first are executed, as IPython has them."""
    space = {"In": ["", cell]}
    exec(cell, space)  # noqa: S102
    if injected is not None:
        space["In"].append("# Parameters\n" + injected)
        exec(injected, space)  # noqa: S102
    return space | values | {"In": [*space["In"], "from saga_study.notebook import start"]}


@pytest.mark.parametrize("name", RIGHT)
def test_right_values(name, write_notebook):
    path = write_notebook("n", CELL)
    for value in RIGHT[name]:
        check_parameters(path, {name: value})
        check_running(running(injected=f"{name} = {value!r}"), "notebook 04")  # by papermill
        check_running(running(**{name: value}), "notebook 04")  # by hand
        check_running({key: item for key, item in running(**{name: value}).items() if key != "In"}, "notebook 04")  # without IPython


@pytest.mark.parametrize("name", WRONG)
def test_wrong_values_are_one_line(name, write_notebook):
    path = write_notebook("n", CELL)
    for value in WRONG[name]:
        written = repr(value).replace("nan", "float('nan')").replace("inf", "float('inf')")
        messages = [
            line(check_parameters, path, {name: value}), line(check_running, running(injected=f"{name} = {written}"), "notebook 04"),
            line(check_running, running(**{name: value}), "notebook 04"),
            line(check_running, {key: item for key, item in running(**{name: value}).items() if key != "In"}, "notebook 04"),
        ]  # fmt: skip
        assert messages[0].startswith(f"n.ipynb: {name} must be ") and repr(value) in messages[0]
        assert {message.replace("notebook 04", "n.ipynb") for message in messages} == {messages[0]}


def test_a_message_says_how_papermill_takes_it():
    assert 'papermill -r DATA_DIR "…"' in line(check_running, running(DATA_DIR=2024), "n")
    assert "write -y 'QUERIES: [a.jpg, b.jpg]'" in line(check_running, running(QUERIES="[a.jpg, b.jpg]"), "n")
    assert "write -y 'LAYERS: [3]'" in line(check_running, running(LAYERS=3), "n")
    assert "-y 'SEEDS: {name: [0, 1]}'" in line(check_running, running(SEEDS="0"), "n")
    assert line(check_running, running(FULL="true"), "n").endswith("write True or False")
    assert line(check_running, running(NUM_PAIRS="3"), "n").endswith("write a number, without quotes")


@pytest.mark.parametrize(
    "slip, meant", [("DATADIR", "DATA_DIR"), ("data_dir", "DATA_DIR"), ("Num_Pairs", "NUM_PAIRS"), ("STUDYY", "STUDY"), ("xyz", "")]
)
def test_an_unknown_parameter_is_refused(slip, meant, write_notebook):
    for message in (
        line(check_parameters, write_notebook("n", CELL), {slip: 1}),
        line(check_running, running(injected=f"NUM_PAIRS = 3\n{slip} = 1"), "n.ipynb"),
    ):  # fmt: skip
        assert message.startswith(f"unknown parameter of n.ipynb {slip!r}: {f'did you mean {meant!r}' if meant else 'known'}")


def test_what_the_notebook_or_papermill_defines_is_no_parameter():
    space = running(injected='PAPERMILL_INPUT_PATH = "a.ipynb"\nPAPERMILL_OUTPUT_PATH = "b.ipynb"\nNUM_PAIRS = 5')
    check_running(space | {"num_pairs": "x", "THRESHOLD": 3, "table": None}, "n")  # of later cells, which were run before
    own = CELL + "\nTHRESHOLD: float = 0.5  # of a copy of the notebook"
    check_running(running(own, injected="THRESHOLD = 0.7"), "n")
    assert "THRESHOLD must be of type float" in line(check_running, running(own, injected="THRESHOLD = '0.7'"), "n")
    assert "NUM_PAIRS must be at least 1" in line(check_running, running(CELL.replace("= 4", "= 0")), "n")  # edited by hand
    check_running({}, "n")  # called from elsewhere
    check_running({"In": ["", "a = 3", "!ls", "%time x"], "STUDY": 3}, "n")


def test_the_last_parameters_cell_counts():
    space = running()
    space["In"] += [CELL.replace("SHARE: float", "SHARE: int"), "1 + 1"]
    assert "SHARE must be of type int" in line(check_running, space, "n")


@each_notebook
def test_every_parameter_of_every_notebook_is_checked(path):
    cells = json.loads(path.read_text())["cells"]
    cell = next("".join(cell["source"]) for cell in cells if "parameters" in cell["metadata"].get("tags", ()))
    check_running(running(cell), path.stem)
    for name, parameter in read_parameters(path).items():
        check_parameters(path, {name: parameter.default})
        for wrong in (None, object, b"x", [None], {1: None}, [["a"]], 1j):
            assert f"{name} must be of type {parameter.annotation}" in line(check_running, running(cell, **{name: wrong}), path.stem)
        if parameter.type in ("int", "float"):
            assert f"{name} must be" in line(check_running, running(cell, **{name: -1}), path.stem)
        assert "did you mean '" in line(check_running, running(cell, injected=f"{name}{name[-1]} = 1"), path.stem)


def test_every_number_of_a_notebook_has_a_range():
    named = {name: parameter for path in SHIPPED for name, parameter in read_parameters(path).items()}
    numbers = {name for name, parameter in named.items() if "int" in parameter.annotation or "float" in parameter.annotation}
    assert {name for name in numbers if not name.startswith(("NUM_", "MAX_"))} == set(RANGES)


def test_annotations_are_read():
    read = parse_parameters("A: list[str] | None = None\nB: dict[str, list[int]] = {}\nC = (1,)", "n")
    assert [(p.type, p.optional) for p in read.values()] == [("list", True), ("dict", False), ("tuple", False)]
    read["A"].check(None)
    assert "must be of type list[str] | None" in line(read["A"].check, [3])
    Parameter("X", "float", 1.0).check(-5)


def test_start_looks_at_the_notebook_that_calls_it(results):
    space = running(start=start, NUM_PAIRS=0)
    with pytest.raises(SagaError, match="^notebook 04: NUM_PAIRS must be at least 1, got 0$"):
        exec("start(STUDY, PROFILE, 4)", space)  # noqa: S102
    assert not results.exists()


def test_papermill_alone_ends_with_one_line_before_any_work(write_notebook, results, tmp_path):
    path = write_notebook("04_n", CELL, "from saga_study.notebook import start\ncontext = start(STUDY, PROFILE, 4)", "print('work')")

    def execute(*options):
        command = [sys.executable, "-m", "papermill", str(path), str(tmp_path / "out.ipynb"), "--no-progress-bar", "-k", "python3"]
        done = subprocess.run([*command, *options], cwd=REPOSITORY, capture_output=True, text=True)
        outputs = [output for cell in json.loads((tmp_path / "out.ipynb").read_text())["cells"] for output in cell.get("outputs", ())]
        return done.returncode, done.stderr, ["".join(output.get("traceback", output.get("text", ()))) for output in outputs]

    code, said, shown = execute("-p", "DATADIR", "photos")
    refused = "error: unknown parameter of notebook 04 'DATADIR': did you mean 'DATA_DIR'?"
    assert code == 1 and refused in said and not results.exists()
    assert any(text.startswith(refused) and "\n" not in text for text in shown) and "work\n" not in shown  # no traceback either
    code, said, shown = execute("-y", "{QUERIES: [a.jpg], SEEDS: {birds: [0, 1]}}", "-r", "DATA_DIR", "2024", "-p", "FULL", "True")
    assert code == 0 and shown[-1] == "work\n", said
