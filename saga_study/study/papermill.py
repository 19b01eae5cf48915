"""Execute one notebook with papermill, in a process of its own."""

from __future__ import annotations

import os
import sys
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from saga_lib.common.errors import FULL, SagaError
from saga_lib.common.files import read_json, write_atomically, write_json
from saga_lib.common.paths import REPOSITORY
from saga_study.parameters import check_parameters
from saga_study.processes import stop_with
from saga_study.runs.children import child_exit_code
from saga_study.runs.full_devices import full_devices_explained

ANSWER_LINES = 3

if TYPE_CHECKING:
    from nbformat import NotebookNode


def execute(source: Path, target: Path, parameters: Mapping[str, object], inputs: str, scratch: Path) -> None:
    """Execute a notebook with papermill in this Python; `target` appears only if every cell succeeded.

    `scratch` is a folder on the same disk for unfinished files; `inputs`, a digest, is saved in the notebook's metadata. Raises
    `SagaError` for mistakes of the user, also those that a cell raised, else papermill's own error.
    """
    import nbformat
    import papermill
    from papermill.exceptions import PapermillExecutionError

    check_parameters(source, parameters)
    partial = scratch / target.name
    _offer_this_python(scratch / "kernel")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # nbformat's and traitlets' deprecations are not the user's concern
            notebook = papermill.execute_notebook(
                source, partial, {name: _plain(value) for name, value in parameters.items()},
                kernel_name="python3", language="python", cwd=REPOSITORY, progress_bar=False,
                start_timeout=180,
            )  # fmt: skip
    except PapermillExecutionError as error:
        if error.ename == "SagaError":
            raise SagaError(error.evalue) from None
        if error.ename == "OSError" and any(f"[Errno {number}]" in error.evalue for number in FULL):
            raise SagaError(f"{error.evalue} in cell {error.cell_index}; free some space") from None
        raise
    # Paths and environment of this machine are not published; what the notebook was made from is.
    notebook.metadata["papermill"] |= {
        "input_path": f"notebooks/{source.name}", "output_path": target.name, "environment_variables": {},
    }  # fmt: skip
    notebook.metadata["saga"] = {"inputs": inputs}
    _drop_widgets(notebook)
    put_answer_first(notebook)
    write_atomically(target, lambda temporary: nbformat.write(notebook, temporary))
    partial.unlink(missing_ok=True)


def put_answer_first(notebook: NotebookNode) -> None:
    """Put the first sentences that the cells below "Reading" printed behind the notebook's title, so that one sees them at once."""
    import nbformat

    printed, inside = [], False
    for cell in notebook.cells:
        if cell.cell_type == "markdown" and cell.source.startswith("## "):
            inside = cell.source.startswith("## Reading")
        elif inside and cell.cell_type == "code":
            printed += ["".join(output.text) for output in cell.get("outputs", ()) if output.output_type == "stream"]
    lines = [line.strip().removeprefix("- ") for line in "".join(printed).splitlines() if line.strip()]
    if lines:
        told = "\n".join(f"- {line}" for line in lines[:ANSWER_LINES])
        more = f" {len(lines) - ANSWER_LINES} more stand there." if len(lines) > ANSWER_LINES else ""
        text = f"## Answer\n\n{told}\n\n*As the cells under \"Reading\", at the end, computed it.{more}*"
        cell = nbformat.v4.new_markdown_cell(text)
        cell["id"] = "answer"
        notebook.cells.insert(1, cell)


def _drop_widgets(notebook: NotebookNode) -> None:
    """Remove progress bars, whose saved state is larger than the rest of many a notebook."""
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        if "outputs" in cell:
            cell.outputs = [output for output in cell.outputs if not any("widget" in kind for kind in output.get("data", ()))]


def _plain(value: object) -> object:
    """Return tuples as lists: papermill would turn them into text."""
    return list(value) if isinstance(value, tuple) else value


def _offer_this_python(folder: Path) -> None:
    """Make this interpreter the kernel 'python3', before any other that is installed under that name.

    What Jupyter writes about a running kernel goes into the same folder: a kernel that is killed leaves nothing elsewhere.
    """
    command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    kernel = {"argv": command, "display_name": "Python 3", "language": "python"}
    write_json(folder / "kernels" / "python3" / "kernel.json", kernel)
    others = os.environ.get("JUPYTER_PATH")
    os.environ["JUPYTER_PATH"] = str(folder) + (os.pathsep + others if others else "")
    os.environ["JUPYTER_RUNTIME_DIR"] = tempfile.tempdir = str(folder)  # of this process; the kernel has its own


def execute_requested(request_file: Path) -> None:
    """Execute the notebook that a request file describes; ends when the process that wrote it does."""
    request = read_json(request_file)
    stop_with(request["parent"])
    scratch = Path(request["scratch"])
    with full_devices_explained(scratch):
        execute(Path(request["source"]), Path(request["target"]), request["parameters"], request["inputs"], scratch)


def _describe(error: Exception) -> str:
    """Return an error in full, with one line on its cause at the end."""
    where, kind, text = "", type(error).__name__, str(error)
    if hasattr(error, "ename"):  # of a cell
        where, kind, text = f"cell {error.cell_index}: ", error.ename, str(error.evalue)
    return f"{error}\n{where}{kind}: {next((line for line in text.splitlines() if line.strip()), '')}"


if __name__ == "__main__":
    sys.exit(child_exit_code(lambda: execute_requested(Path(sys.argv[1])), _describe))
