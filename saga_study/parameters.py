"""What a notebook file says without being executed: its parameters, and digests of its cells and inputs."""

from __future__ import annotations

import ast
import contextlib
import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from saga_lib.common.errors import SagaError, unknown_name
from saga_lib.common.files import read_json
from saga_lib.common.ranges import SEED, Range, above, shown, whole

# Of numbers, also those in lists and dicts. What starts with NUM_ or MAX_ counts something, from 1 on.
RANGES = {
    "SEED": SEED, "SEEDS": SEED, "SPLIT_SEED": SEED, "DRAW": SEED, "STEPS": whole(0), "LAYERS": whole(0), "K": whole(1),
    "SHOTS": whole(1), "DRAWS": whole(1), "IMAGES_PER_CLASS": whole(0), "MOMENTS": whole(1), "PAIRS": whole(1), "CREDIT_PAIRS": whole(0),
    "TEST_FRACTION": above(0, 1, below=True), "CONTRIBUTING_FRACTION": above(0, 1), "UTILISATION": above(0, 1), "GPU_MEMORY_GIB": above(0),
}  # fmt: skip
INJECTED = "# Parameters"  # first line of the cell that papermill puts below the tagged one
OF_PAPERMILL = "PAPERMILL_"  # begins the names that its --inject-paths adds


@dataclass(frozen=True)
class Parameter:
    """One line of a notebook's parameters cell."""

    name: str
    annotation: str  # such as "str", "list[int]" or "float | None"; where there is none, the type of the default
    default: object = None

    @property
    def type(self) -> str:
        """Its type without that of items: str | int | float | bool | tuple | list | dict | None."""
        kinds = [kind.strip().split("[")[0] for kind in self.annotation.split("|")]
        return next((kind for kind in kinds if kind not in ("None", "NoneType")), "None")

    @property
    def optional(self) -> bool:
        """Whether None is allowed."""
        return self.default is None or "None" in self.annotation

    def check(self, value: object) -> None:
        """Raise `SagaError` for a value of another type or out of range."""
        if not _fits(value, ast.parse(self.annotation, mode="eval").body) and not (value is None and self.optional):
            raise SagaError(f"{self.name} must be of type {self.annotation}, got {shown(value)}{self._advice(value)}")
        allowed = RANGES.get(self.name) or (whole(1) if self.name.startswith(("NUM_", "MAX_")) else Range("float"))
        for number in _numbers(value):
            if number not in allowed:
                raise SagaError(f"{self.name} must be {allowed}, got {shown(value)}")

    def _advice(self, value: object) -> str:
        """Return what to write instead, after a semicolon: papermill guesses types, and its -p reads no lists."""
        if self.type == "str" and isinstance(value, int | float) and not isinstance(value, bool):
            return f'; write it in quotes, or after papermill -r {self.name} "…", which guesses no type'
        if self.type in ("list", "tuple", "dict") and not isinstance(value, list | tuple | dict):
            items = value.strip("[]() ") if isinstance(value, str) else value
            example = "{name: [0, 1]}" if self.type == "dict" else f"[{items}]"
            return f"; after papermill, -p takes single values only: write -y '{self.name}: {example}'"
        if self.type == "bool":
            return "; write True or False"
        if self.type in ("int", "float") and isinstance(value, str):
            return "; write a number, without quotes"
        return ""


def _fits(value: object, annotation: ast.expr) -> bool:
    """Return whether a value has the type of an annotation, with all of its items."""
    if isinstance(annotation, ast.BinOp):
        return _fits(value, annotation.left) or _fits(value, annotation.right)
    if isinstance(annotation, ast.Subscript):
        inner = annotation.slice.elts if isinstance(annotation.slice, ast.Tuple) else [annotation.slice]
        items = [list(value), list(value.values())] if isinstance(value, Mapping) else [value]
        return _fits(value, annotation.value) and all(_fits(item, kind) for kind, part in zip(inner, items, strict=False) for item in part)
    kind = "NoneType" if ast.unparse(annotation) == "None" else ast.unparse(annotation)
    accepted = {"float": ("float", "int"), "tuple": ("tuple", "list"), "list": ("list", "tuple")}
    return type(value).__name__ in accepted.get(kind, (kind,)) and not (isinstance(value, float) and not math.isfinite(value))


def _numbers(value: object) -> Iterator[float]:
    """Yield the numbers in a value, in its lists and in the values of its dicts."""
    if isinstance(value, Mapping | list | tuple):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _numbers(item)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield value


def read_parameters(notebook: Path) -> dict[str, Parameter]:
    """Read the one cell tagged `parameters` of a notebook.

    Raises `SagaError` if there is no such cell, more than one, or if it holds anything but literals (papermill
    would keep a derived value at its old default).
    """
    cells = [cell for cell in _read_notebook(notebook)["cells"] if "parameters" in cell["metadata"].get("tags", ())]
    if len(cells) != 1:
        raise SagaError(f"{notebook.name} has {len(cells) or 'no'} cells tagged 'parameters'; tag exactly one")
    return parse_parameters("".join(cells[0]["source"]), notebook.name)


def parse_parameters(source: str, notebook: str) -> dict[str, Parameter]:
    """Return the parameters of a cell by name; raises `SagaError`, which names the notebook, if it holds anything but literals."""
    parameters = {}
    try:
        statements = ast.parse(source).body
    except SyntaxError as error:
        raise SagaError(f"{notebook}, parameters cell, line {error.lineno}: {error.msg}") from None
    for statement in statements:
        where = f"{notebook}, parameters cell, line {statement.lineno}"
        target = statement.targets[0] if isinstance(statement, ast.Assign) else getattr(statement, "target", None)
        if not isinstance(statement, ast.Assign | ast.AnnAssign) or not isinstance(target, ast.Name):
            raise SagaError(f"{where}: only lines such as 'NAME: type = default  # help' are allowed")
        try:
            default = ast.literal_eval(statement.value)
        except (ValueError, TypeError):
            raise SagaError(f"{where}: {target.id} is not a literal; derive values in a cell below") from None
        annotation = ast.unparse(statement.annotation) if isinstance(statement, ast.AnnAssign) else type(default).__name__
        parameters[target.id] = Parameter(target.id, annotation, default)
    return parameters


def check_parameters(notebook: Path, parameters: Mapping[str, object]) -> None:
    """Raise `SagaError` for a parameter that a notebook does not have, or that is of another type or out of range.

    Papermill itself only warns of the first and never looks at the rest.
    """
    known = read_parameters(notebook)
    for name, value in parameters.items():
        if name not in known:
            raise unknown_name(f"parameter of {notebook.name}", name, known)
        with naming(notebook.name):
            known[name].check(value)


def check_running(space: Mapping[str, object], notebook: str) -> None:
    """Check the parameters of a notebook while it runs, by the names it has defined so far; `notebook` is what messages call it.

    Who set them does not matter: papermill, which neither checks types nor refuses what the notebook does not have, or a person who
    edited the cell. Raises `SagaError` as `check_parameters` does.
    """
    cells = [cell for cell in space.get("In", ()) if isinstance(cell, str)]  # what this kernel has executed, in order
    known: dict[str, Parameter] = {}
    for cell in cells:
        with contextlib.suppress(SagaError):  # any other cell
            found = parse_parameters(cell, notebook)
            known = found if {"STUDY", "PROFILE"} <= set(found) and not cell.startswith(INJECTED) else known
    if not cells:  # run without IPython
        types = space.get("__annotations__", {}).items()
        annotations = {name: kind.__name__ if type(kind) is type else str(kind) for name, kind in types}
        known = {name: Parameter(name, kind, ...) for name, kind in annotations.items() if name.isupper()}
    injected = [cell for cell in cells if cell.startswith(INJECTED)][-1:] if known else []
    for name in _assigned(injected):
        if name not in known and not name.startswith(OF_PAPERMILL):
            raise unknown_name(f"parameter of {notebook}", name, known)
    for name, parameter in known.items():
        if name in space:
            with naming(notebook):
                parameter.check(space[name])


@contextlib.contextmanager
def naming(notebook: str) -> Iterator[None]:
    """Put a notebook's name in front of a `SagaError`."""
    try:
        yield
    except SagaError as error:
        raise SagaError(f"{notebook}: {error}") from None


def _assigned(cells: Sequence[str]) -> list[str]:
    """Return the names that the statements of some cells assign."""
    targets = [
        target for cell in cells for statement in ast.parse(cell).body if isinstance(statement, ast.Assign) for target in statement.targets
    ]
    return [target.id for target in targets if isinstance(target, ast.Name)]


def _read_notebook(path: Path) -> dict:
    if not path.is_file():
        raise unknown_name("notebook", path.name, (other.name for other in path.parent.glob("*.ipynb")))
    content = read_json(path)
    if not isinstance(content, dict) or "cells" not in content:
        raise SagaError(f"{path} is not a notebook")
    return content


def source_digest(notebook: Path) -> str:
    """Return a digest of a notebook's cells without their outputs and metadata."""
    cells = [(cell["cell_type"], "".join(cell["source"])) for cell in _read_notebook(notebook)["cells"]]
    return hashlib.sha256(json.dumps(cells).encode()).hexdigest()[:12]


def executed_inputs(notebook: Path) -> str | None:
    """Return the digest of the inputs that an executed notebook was made from, None if the file does not exist or has none."""
    if not notebook.is_file():
        return None
    return _read_notebook(notebook)["metadata"].get("saga", {}).get("inputs")
