"""What notebooks share: how they start, where they save, how they are checked and executed.

`execute` runs in a process of its own (`python -m saga_lib.notebooks request.json`), so that the study can
show progress meanwhile and stop it at any time.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import sys
import tempfile
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from saga_lib.config import PROFILES, parse_settings, use_settings
from saga_lib.errors import SagaError, unknown_name
from saga_lib.files import read_json, write_atomically, write_json, write_text
from saga_lib.paths import BY_HAND, REPOSITORY, results_root, study_folder

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure
    from nbformat import NotebookNode

VALUES = "_values"  # ends the names of tables for machines
FOLDED = (VALUES, "_details", "_queries")  # of tables that nobody reads from top to bottom

# ------------------------------------------------------------------------------- inside a notebook: start


@dataclass(frozen=True)
class NotebookContext:
    """Where a notebook of a study saves what it made."""

    study: str
    profile: str
    number: str

    @property
    def folder(self) -> Path:
        return study_folder(self.study)

    @property
    def tables_folder(self) -> Path:
        return self.folder / "tables"

    @property
    def figures_folder(self) -> Path:
        return self.folder / "figures"

    def shown(self, path: Path) -> str:
        """Return a path relative to the repository where possible, else its name alone: outputs of notebooks are published."""
        return str(path.relative_to(REPOSITORY)) if path.is_relative_to(REPOSITORY) else path.name

    def save_table(self, name: str, dataframe: pd.DataFrame) -> None:
        """Save a table as `<name>.csv` and, unless it is for machines or for looking up (`FOLDED`), as `<name>.md` and `<name>.tex`.

        Numbers have seven digits in the CSV. A nameless index of integers only counts the rows and is left out; any other becomes a column.
        """
        import pandas as pd

        counts = dataframe.index.names == [None] and pd.api.types.is_integer_dtype(dataframe.index)
        dataframe = dataframe.reset_index(drop=counts)
        path = self.tables_folder / f"{name}.csv"
        write_text(path, dataframe.to_csv(index=False, lineterminator="\n", float_format="%.7g"))  # what is committed must stay small
        if not name.endswith(FOLDED):
            write_text(path.with_suffix(".md"), markdown_table(dataframe))
            write_text(path.with_suffix(".tex"), latex_table(dataframe))

    def save_figure(self, name: str, figure: Figure) -> None:
        """Save a figure as `<name>.png` and, unless it holds photographs, `<name>.svg`; byte for byte the same each time."""
        import io

        import matplotlib

        from saga_lib.figures import shrink_png

        path = self.figures_folder / f"{name}.png"
        buffer = io.BytesIO()
        # Dates and random element ids would make every rerun a change in git.
        with matplotlib.rc_context({"svg.hashsalt": "saga", "svg.fonttype": "none"}):
            figure.savefig(buffer, format="png", dpi=150, bbox_inches="tight", metadata={"Software": None})
            content = shrink_png(buffer.getvalue())
            write_atomically(path, lambda temporary: temporary.write_bytes(content))
            if not any(axis.images for axis in figure.axes):  # photographs as SVG are only larger
                write_atomically(
                    path.with_suffix(".svg"),
                    lambda temporary: figure.savefig(
                        temporary, bbox_inches="tight", metadata={"Date": None, "Creator": None}
                    ),
                )

    def save_page(self, name: str, page: str) -> Path:
        """Save a self-contained HTML page as `<name>.html` beside the figures and return its path; the report links to it."""
        path = self.figures_folder / f"{name}.html"
        write_text(path, page)
        return path


def start(study: str, profile: str, number: str | int, **parameters: object) -> NotebookContext:
    """Check where a notebook is to work, limit its threads, print its resolved parameters and return its context.

    From here on `make_config` gives what the study's --set says, and what a parameter SETTINGS (texts `name=value`) adds.
    `number` is the notebook's, such as 4 or "04b". Call it before anything heavy is imported. Raises `SagaError` for an unknown
    profile and for a study of another profile.
    """
    if profile not in PROFILES:
        raise unknown_name("profile", profile, PROFILES)
    manifest = study_folder(study) / "manifest.json"
    if study != BY_HAND and not manifest.is_file():
        known = [path.parent.name for path in results_root().glob("*/manifest.json")]
        raise unknown_name("study", study, [*known, BY_HAND])
    content = read_json(manifest) if manifest.is_file() else {}
    if (made := content.get("profile", profile)) != profile:
        raise SagaError(f"study {study} is of profile {made}, not {profile}; set PROFILE to {made}")
    settings = content.get("settings", {}) | parse_settings(parameters.get("SETTINGS", ()), "SETTINGS")
    use_settings(profile, settings)
    if profile != "paper":
        use_one_thread()
    context = NotebookContext(study, profile, f"{number:02d}" if isinstance(number, int) else number)
    try:
        context.folder.mkdir(parents=True, exist_ok=True)  # said now rather than after the work
    except OSError as error:
        raise SagaError(f"cannot write into {context.folder}: {error.strerror}; set SAGA_RESULTS to another folder") from None
    for name, value in {"STUDY": study, "PROFILE": profile, **parameters}.items():
        print(f"{name} = {value!r}")
    if settings:
        print(f"in place of the profile's own settings: {', '.join(f'{name} = {value!r}' for name, value in settings.items())}")
    print(f"results in {context.shown(context.folder)}")
    return context


def use_one_thread() -> None:
    """Compute as worker processes do: one thread, for the same numbers on every machine, and no network."""
    os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


def markdown_table(dataframe: pd.DataFrame) -> str:
    """Return a table in Markdown; numbers are right-aligned and missing values left blank."""
    import pandas as pd

    def cell(value: object) -> str:
        if pd.isna(value):
            return ""
        return (f"{value:.4g}" if isinstance(value, float) else str(value)).replace("|", "\\|").replace("\n", " ")

    numeric = [pd.api.types.is_numeric_dtype(dataframe[name]) for name in dataframe.columns]
    rows = [
        [str(name) for name in dataframe.columns],
        ["---:" if is_number else "---" for is_number in numeric],
        *([cell(value) for value in row] for row in dataframe.itertuples(index=False)),
    ]
    return "".join("| " + " | ".join(row) + " |\n" for row in rows)


_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': "''",
    "−": "$-$", "±": r"$\pm$", "→": r"$\to$", "×": r"$\times$", "≤": r"$\le$", "≥": r"$\ge$", "–": "--", "…": r"\dots{}", "“": "``",
    "”": "''", "’": "'", "λ": r"$\lambda$", "ℓ": r"$\ell$", "φ": r"$\varphi$", "θ": r"$\theta$", "ψ": r"$\psi$", "β": r"$\beta$",
    "δ": r"$\delta$", "ᾱ": r"$\bar\alpha$", "‖": r"$\Vert$", "∂": r"$\partial$", "Σ": r"$\Sigma$", "·": r"$\cdot$", "\n": " ",
}  # fmt: skip


def latex_table(dataframe: pd.DataFrame) -> str:
    """Return a table in LaTeX for the package booktabs, with text escaped; numbers are right-aligned and missing values left blank."""
    import pandas as pd

    def cell(value: object) -> str:
        if pd.isna(value):
            return ""
        text = "".join(_LATEX.get(letter, letter) for letter in (f"{value:.4g}" if isinstance(value, float) else str(value)))
        return f"{{{text[0]}}}{text[1:]}" if text[:1] in ("[", "*") else text  # after a line's end these would be its arguments

    columns = "".join("r" if pd.api.types.is_numeric_dtype(dataframe[name]) else "l" for name in dataframe.columns)
    head, *rows = [" & ".join(map(cell, row)) + r" \\" for row in (dataframe.columns, *dataframe.itertuples(index=False))]
    lines = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", head, r"\midrule", *rows, r"\bottomrule", r"\end{tabular}"]
    return "% needs \\usepackage{booktabs}\n" + "\n".join(lines) + "\n"


# --------------------------------------------------------------------------- from outside: its parameters


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
            raise SagaError(f"{where}: only lines such as 'NAME: type = default  # help' may stand here")
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


# ---------------------------------------------------------------------------------- from outside: execute


def source_digest(notebook: Path) -> str:
    """Return a digest of a notebook's cells, whatever outputs or metadata stand beside them."""
    cells = [(cell["cell_type"], "".join(cell["source"])) for cell in _read_notebook(notebook)["cells"]]
    return hashlib.sha256(json.dumps(cells).encode()).hexdigest()[:12]


def executed_inputs(notebook: Path) -> str | None:
    """Return the digest of the inputs an executed notebook was made from, None if there is none."""
    if not notebook.is_file():
        return None
    return _read_notebook(notebook)["metadata"].get("saga", {}).get("inputs")


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
    from saga_lib.runs import stop_on_signals, stop_with

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
