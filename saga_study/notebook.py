"""What a notebook calls first and last: it starts in a study and saves tables, figures and pages there."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from saga_lib.common.errors import SagaError, unknown_name
from saga_lib.common.files import read_json, write_atomically, write_text
from saga_lib.common.paths import REPOSITORY
from saga_study.methods import Profile, parse_settings
from saga_study.parameters import check_running
from saga_study.paths import BY_HAND, FOLDED, results_root, study_folder
from saga_study.runs.processes import use_one_thread

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


# ------------------------------------------------------------------------------- inside a notebook: start


@dataclass(frozen=True)
class NotebookContext:
    """The study and profile a notebook works in, and where it saves what it made."""

    study: str
    profile: Profile  # with the study's --set and the notebook's SETTINGS: give it to `make_config` and to what lists runs
    number: str  # of the notebook, such as "04b"

    @property
    def folder(self) -> Path:
        """The study's folder; of smoke notebooks opened by hand one of their own, so that they overwrite nothing real."""
        return study_folder(f"{BY_HAND}-smoke" if (self.study, str(self.profile)) == (BY_HAND, "smoke") else self.study)

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

        from saga_study.findings.writers import latex_table, markdown_table

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

        from saga_study.findings.figures.style import shrink_png

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

    The context's profile holds what the study's --set chose, and what a parameter SETTINGS (texts `name=value`) adds. `number` is the
    notebook's, such as 4 or "04b". Call it before anything heavy is imported. Raises `SagaError` for parameters that the calling
    notebook does not have or that are of another type or out of range, for an unknown profile and for a study of another profile.
    """
    name = f"{number:02d}" if isinstance(number, int) else number
    check_running(sys._getframe(1).f_globals, f"notebook {name}")
    Profile(profile)  # raises for an unknown name
    manifest = study_folder(study) / "manifest.json"
    if study != BY_HAND and not manifest.is_file():
        known = [path.parent.name for path in results_root().glob("*/manifest.json")]
        raise unknown_name("study", study, [*known, BY_HAND])
    content = read_json(manifest) if manifest.is_file() else {}
    if (made := content.get("profile", profile)) != profile:
        raise SagaError(f"study {study} is of profile {made}, not {profile}; set PROFILE to {made}")
    settings = content.get("settings", {}) | parse_settings(parameters.get("SETTINGS", ()), "SETTINGS")
    if profile != "paper":
        use_one_thread()
    context = NotebookContext(study, Profile(profile, settings), name)
    try:
        context.folder.mkdir(parents=True, exist_ok=True)  # fails now rather than after the work
    except OSError as error:
        raise SagaError(f"cannot write into {context.folder}: {error.strerror}; set SAGA_RESULTS to another folder") from None
    for parameter, value in {"STUDY": study, "PROFILE": profile, **parameters}.items():
        print(f"{parameter} = {value!r}")
    if settings:
        print(f"in place of the profile's own settings: {', '.join(f'{name} = {value!r}' for name, value in settings.items())}")
    print(f"results in {context.shown(context.folder)}")
    return context
