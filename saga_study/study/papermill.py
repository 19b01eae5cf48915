"""Execute one notebook with papermill, in a process of its own."""

from __future__ import annotations

import os
import sys
import tempfile
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from saga_lib.common.errors import SagaError
from saga_lib.common.files import read_json, write_atomically, write_json
from saga_lib.common.paths import REPOSITORY
from saga_study.study.parameters import check_parameters

if TYPE_CHECKING:
    from nbformat import NotebookNode


def execute(source: Path, target: Path, parameters: Mapping[str, object], inputs: str, scratch: Path) -> None:
    """Execute a notebook with papermill in this very Python; `target` appears only if every cell succeeded.

    `scratch` is a folder on the same disk for what is unfinished; `inputs` is noted in the notebook. Raises
    `SagaError` for the user's mistakes, also those met inside the notebook, else papermill's own error.
    """
    import nbformat
    import papermill
    from papermill.exceptions import PapermillExecutionError

    check_parameters(source, parameters)
    partial = scratch / target.name
    with tempfile.TemporaryDirectory(prefix="saga-kernel-") as folder:
        _offer_this_python(Path(folder))
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
                raise SagaError(f"{source.name}: {error.evalue}") from None
            raise
    # The machine's paths and environment are nobody's business; what it was made from is.
    notebook.metadata["papermill"] |= {
        "input_path": f"notebooks/{source.name}", "output_path": target.name, "environment_variables": {},
    }  # fmt: skip
    notebook.metadata["saga"] = {"inputs": inputs}
    _drop_widgets(notebook)
    write_atomically(target, lambda temporary: nbformat.write(notebook, temporary))
    partial.unlink(missing_ok=True)


def _drop_widgets(notebook: NotebookNode) -> None:
    """Take out progress bars, which have run by now: their state outweighs the text of many a notebook."""
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        if "outputs" in cell:
            cell.outputs = [output for output in cell.outputs if not any("widget" in kind for kind in output.get("data", ()))]


def _plain(value: object) -> object:
    """Return tuples as lists: papermill would turn them into text."""
    return list(value) if isinstance(value, tuple) else value


def _offer_this_python(folder: Path) -> None:
    """Make the running interpreter the kernel 'python3', ahead of whatever else is installed under that name."""
    command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    kernel = {"argv": command, "display_name": "Python 3", "language": "python"}
    write_json(folder / "kernels" / "python3" / "kernel.json", kernel)
    others = os.environ.get("JUPYTER_PATH")
    os.environ["JUPYTER_PATH"] = str(folder) + (os.pathsep + others if others else "")


def execute_request(arguments: Sequence[str]) -> int:
    """Execute the notebook that a request file describes; the last line on stderr says what went wrong, if anything."""
    from saga_lib.common.processes import stop_on_signals, stop_with

    stop_on_signals()
    try:
        request = read_json(Path(arguments[0]))
        stop_with(request["parent"])
        execute(
            Path(request["source"]), Path(request["target"]), request["parameters"], request["inputs"],
            Path(request["scratch"]),
        )  # fmt: skip
    except SagaError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except Exception as error:  # noqa: BLE001  (whatever it is, it is told in full, its last line first)
        print(f"{error}\n{_one_line(error)}", file=sys.stderr)
        return 1
    return 0


def _one_line(error: Exception) -> str:
    if hasattr(error, "ename"):
        return f"cell {error.cell_index}: {error.ename}: {_first_line(str(error.evalue).splitlines())}"
    return f"{type(error).__name__}: {_first_line(str(error).splitlines())}"


def _first_line(lines: Iterable[str]) -> str:
    return next((line for line in lines if line.strip()), "")


if __name__ == "__main__":
    sys.exit(execute_request(sys.argv[1:]))
