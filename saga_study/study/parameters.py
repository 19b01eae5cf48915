"""What a notebook file says without being executed: its parameters, and digests of its cells and inputs."""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from saga_lib.common.errors import SagaError, unknown_name
from saga_lib.common.files import read_json


@dataclass(frozen=True)
class Parameter:
    """One line of a notebook's parameters cell."""

    name: str
    type: str  # of the annotation, or else of the default: str | int | float | bool | tuple | list | dict | None
    optional: bool  # None is allowed
    default: object


def read_parameters(notebook: Path) -> dict[str, Parameter]:
    """Read the one cell tagged `parameters` of a notebook.

    Raises `SagaError` if there is no such cell, more than one, or if it holds anything but literals (papermill
    would keep a derived value at its old default).
    """
    cells = [cell for cell in _read_notebook(notebook)["cells"] if "parameters" in cell["metadata"].get("tags", ())]
    if len(cells) != 1:
        raise SagaError(f"{notebook.name} has {len(cells) or 'no'} cells tagged 'parameters'; tag exactly one")
    source = "".join(cells[0]["source"])
    parameters = {}
    try:
        statements = ast.parse(source).body
    except SyntaxError as error:
        raise SagaError(f"{notebook.name}, parameters cell, line {error.lineno}: {error.msg}") from None
    for statement in statements:
        where = f"{notebook.name}, parameters cell, line {statement.lineno}"
        target = statement.targets[0] if isinstance(statement, ast.Assign) else getattr(statement, "target", None)
        if not isinstance(statement, ast.Assign | ast.AnnAssign) or not isinstance(target, ast.Name):
            raise SagaError(f"{where}: only lines such as 'NAME: type = default  # help' are allowed")
        try:
            default = ast.literal_eval(statement.value)
        except (ValueError, TypeError):
            raise SagaError(f"{where}: {target.id} is not a literal; derive values in a cell below") from None
        annotation = ast.unparse(statement.annotation) if isinstance(statement, ast.AnnAssign) else None
        kinds = [kind.strip() for kind in (annotation or type(default).__name__).split("|")]
        optional = "None" in kinds or default is None
        kind = next((kind.split("[")[0] for kind in kinds if kind not in ("None", "NoneType")), "None")
        parameters[target.id] = Parameter(target.id, kind, optional, default)
    return parameters


def check_parameters(notebook: Path, parameters: Mapping[str, object]) -> None:
    """Raise `SagaError` for a parameter that a notebook does not have or that is of another type.

    Papermill itself only warns of the first and never looks at the second.
    """
    known = read_parameters(notebook)
    for name, value in parameters.items():
        if name not in known:
            raise unknown_name(f"parameter of {notebook.name}", name, known)
        if not _fits(value, known[name]):
            expected = known[name].type + (" or None" if known[name].optional else "")
            raise SagaError(f"{notebook.name}: {name} must be of type {expected}, got {value!r}")


def _fits(value: object, parameter: Parameter) -> bool:
    if value is None or parameter.type == "None":
        return parameter.optional
    accepted = {"float": ("float", "int"), "tuple": ("tuple", "list"), "list": ("list", "tuple")}
    return type(value).__name__ in accepted.get(parameter.type, (parameter.type,))


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
