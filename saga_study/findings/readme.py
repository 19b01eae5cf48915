"""What README and docs/results.md say of a study, written from its tables."""

from __future__ import annotations

import csv
import sys
from collections import Counter
from pathlib import Path

from saga_lib.common.errors import SagaError
from saga_lib.common.files import read_json, write_text
from saga_lib.common.paths import REPOSITORY
from saga_study.commands import CommandLine, exit_code
from saga_study.findings.report import VERDICTS, reading_of, verdict_kind
from saga_study.paths import study_folder

RESULTS = REPOSITORY / "docs" / "results.md"
TABLE_MARKS = ("<!-- table1:begin -->", "<!-- table1:end -->")  # of docs/results.md
FOUND_MARKS = ("<!-- found:begin -->", "<!-- found:end -->")  # of the README
LINES = 5  # of the answer that the README has, before those on the oracle's room


def found_section(folder: Path) -> str:
    """Return what the README says of a finished study: how its claims came out, the first lines of its answer, its figure.

    Raises `SagaError` if the results of notebooks 04 and 99 are missing.
    """
    manifest, claims = read_json(folder / "manifest.json"), folder / "tables" / "99_claims.csv"
    notebook = folder / "notebooks" / "04_main_results.ipynb"
    for path in (claims, notebook):
        if not path.is_file():
            raise SagaError(f"{path} does not exist; finish study {manifest['study']} first")
    base = f"results/{manifest['study']}"
    with open(claims, newline="", encoding="utf-8") as lines:
        verdicts = Counter(verdict_kind(row["verdict"]) for row in csv.DictReader(lines))
    words = {kind: word for word, kind in VERDICTS.items()}
    answer = [line for line in reading_of(notebook).split("\n\n")[0].splitlines() if line.strip()]
    return "\n".join(
        [
            f"| claims | {' | '.join(words.values())} |",
            "|" + " --- |" * (len(words) + 1),
            f"| how many | {' | '.join(str(verdicts[kind]) for kind in words)} |",
            "",
            f"[The claims, one by one]({base}/tables/99_claims.md), measured in study [`{manifest['study']}`]({base}):",
            "",
            *(f"- {line}" for line in answer[:LINES]),
            *(f"- {line}" for line in answer[LINES:] if " collects of the oracle's room over " in line),
            "",
            f"![What is gained on unseen classes by benchmark, and each signal against its control]({base}/figures/04_answer.png)",
        ]
    )


def results_section(folder: Path) -> str:
    """Return the section of docs/results.md on a finished study: Table 1 of all benchmarks, the answer in words, the runs of every row.

    Raises `SagaError` if the results of notebook 04 are missing.
    """
    manifest = read_json(folder / "manifest.json")
    joint, differences = (folder / "tables" / f"04_{name}.md" for name in ("joint", "answer"))
    for path in (joint, differences, folder / "notebooks" / "04_main_results.ipynb"):
        if not path.is_file():
            raise SagaError(f"{path} does not exist; execute notebook 04 of study {manifest['study']} first")
    base = f"../results/{manifest['study']}"
    cells = []
    for dataset in manifest["datasets"]:
        with open(folder / "tables" / f"04_table1_{dataset}_values.csv", newline="", encoding="utf-8") as lines:
            keys = {row["label"]: " ".join(f"[{key}]({base}/runs/{key})" for key in row["runs"].split()) for row in csv.DictReader(lines)}
        cells.append(keys)
    answer = reading_of(folder / "notebooks" / "04_main_results.ipynb").split("\n\n")[0]
    room = folder / "tables" / "04_room.md"  # studies before it have none
    collected = room.read_text(encoding="utf-8").strip() if room.is_file() else ""
    seconds = [read_json(path)["seconds"] for path in folder.glob("runs/*/evaluation.json")]
    links = ", ".join(f"[{name}]({base}/tables/04_table1_{name}.md)" for name in manifest["datasets"])
    return "\n".join(
        [
            f"Study [`{manifest['study']}`]({base}) (commit {manifest['commit']}; {len(seconds)} runs, "
            f"{sum(seconds) / 3600:.1f} hours of one core); "
            f"[notebook]({base}/notebooks/04_main_results.ipynb); [the paper's claims, one by one]({base}/tables/99_claims.md). "
            f"All numbers are measured here, none is the paper's; the paper's "
            f"values stand beside ours in the tables of single benchmarks: {links}.",
            "",
            joint.read_text(encoding="utf-8").strip(),
            "",
            "Benchmark by benchmark, and each signal against its own control:",
            "",
            differences.read_text(encoding="utf-8").strip(),
            "",
            *(["Which share of the oracle's room each signal collects:", "", collected, ""] if collected else []),
            *(f"- {line}" for line in answer.splitlines()),
            "",
            "<details><summary>The runs behind every row</summary>",
            "",
            "| method | " + " | ".join(manifest["datasets"]) + " |",
            "| --- |" + " --- |" * len(cells),
            *(f"| {label} | " + " | ".join(column.get(label, "–") for column in cells) + " |" for label in cells[0]),
            "",
            "</details>",
        ]
    )


def write_between(path: Path, marks: tuple[str, str], section: str) -> None:
    """Replace the text between the two marks of a document; raises `SagaError` unless each mark is there once."""
    begin, end = marks
    text = path.read_text(encoding="utf-8")
    if text.count(begin) != 1 or text.count(end) != 1:
        raise SagaError(f"{path} must hold the lines {begin} and {end} once each")
    head, rest = text.split(begin)
    write_text(path, f"{head}{begin}\n{section}\n{end}{rest.split(end)[1]}")


def _main() -> None:
    parser = CommandLine(prog="python -m saga_study.findings.readme")
    parser.add_argument("study", help="a study by its id")
    folder = study_folder(parser.parse_args().study)
    write_between(RESULTS, TABLE_MARKS, results_section(folder))
    write_between(REPOSITORY / "README.md", FOUND_MARKS, found_section(folder))


if __name__ == "__main__":  # python -m saga_study.findings.readme STUDY: update what README and docs/results.md say
    sys.exit(exit_code(_main))
