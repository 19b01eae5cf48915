"""One self-contained page about a study: its numbers, figures, provenance, and what was not run."""

from __future__ import annotations

import csv
import re
import time
from collections.abc import Iterable, Sequence
from datetime import datetime
from itertools import cycle
from pathlib import Path

from saga_lib.common.errors import SagaError
from saga_lib.common.files import read_json, write_text
from saga_study import paths
from saga_study.findings.page import data_uri, render
from saga_study.methods import METHOD_LABELS
from saga_study.paths import FOLDED, VALUES, study_folder

MAX_ROWS = 60  # of a table; the page says where rows were left out
BANNERS = {
    "smoke": "Smoke test: a few steps on a few images. The numbers show that everything runs and mean nothing else.",
    "miniature": "Miniature measurements, not the paper's numbers: small procedural images and a tiny language model. "
    "Columns headed “paper (full scale)” repeat the paper; all others were measured here.",
    "paper": "Measured at the paper's scale. Columns headed “paper (full scale)” repeat the paper; all others were "
    "measured here.",
}
VERDICTS = {
    "reproduced": "good", "contradicted": "bad", "mixed": "mixed", "on some benchmarks": "part", "open at this scale": "open",
    "not measured": "absent",
}  # fmt: skip
PAPER_PARTS = {
    "table1": "Table 1, main comparison", "table2": "Table 2, loss components", "table3": "Table 3, three DML losses",
    "table4": "Table 4, embedding sizes", "table5": "Table 5, a second MLLM family",
    "figure3": "Figure 3, attention per named attribute", "figure5": "Figure 5, nearest neighbours of example queries",
}  # fmt: skip


def build_report(study: str) -> Path:
    """Write `report.html` of a study and return its path; the file needs nothing beside it, not even a network.

    Links lead to the executed notebooks and run folders, relative to the study. Raises `SagaError` when the
    study's folder does not exist.
    """
    folder = study_folder(study)
    if not folder.is_dir():
        raise SagaError(f"study {study} has no folder {folder}; run ./run_all.sh first")
    manifest = read_json(folder / "manifest.json") if (folder / "manifest.json").is_file() else {}
    if not isinstance(manifest, dict) or manifest.get("profile", "smoke") not in BANNERS:
        raise SagaError(f"{folder / 'manifest.json'} is no manifest of a study, or damaged; run the study again")
    runs = finished_runs(folder)
    rows = [list((run | {"run": f"runs/{run['run']}"}).values()) for run in runs]
    page = render(
        "report.html", title=f"SAGA study {study}", study=study, has_manifest=bool(manifest),
        banner=BANNERS[manifest.get("profile") or (runs[0]["profile"] if runs else "miniature")],
        answer=_answer(folder), claims=_claims(folder), executed=[path.stem for path in folder.glob("notebooks/*.ipynb")],
        notebooks=[_notebook(folder, number) for number in _numbers(folder)], runs=_table(runs[0] if runs else (), rows),
        coverage=_coverage(folder, manifest, runs), provenance=_table(("what", "value"), _provenance(manifest, runs).items()),
    )  # fmt: skip
    path = folder / "report.html"
    write_text(path, page)
    return path


def finished_runs(folder: Path) -> list[dict]:
    """Return one summary per complete run of a study folder, ordered by dataset, method and seed."""
    summaries = []
    for path in sorted(folder.glob("runs/*/evaluation.json")):
        record, evaluation = read_json(path.parent / "config.json"), read_json(path)
        try:
            config = record["config"]
            summaries.append(
                {"run": path.parent.name, "code": record.get("code", "")}
                | {name: config[name] for name in ("dataset", "method", "seed", "profile")}
                | {"classes": config.get("evaluate_on", "test")}
                | {"steps": evaluation["steps"], "seconds": evaluation["seconds"]}
                | {"R@1 %": round(100 * evaluation["recall"]["1"], 1), "MAP@R %": round(100 * evaluation["map_at_r"], 1)}
            )
        except (LookupError, TypeError, AttributeError) as error:
            problem = f"{type(error).__name__}: {error}"
            raise SagaError(f"run {path.parent} is damaged ({problem}); delete its folder and run again") from None
    order = list(METHOD_LABELS)
    summaries.sort(key=lambda s: (s["dataset"], order.index(s["method"]) if s["method"] in order else 99, s["seed"]))
    return summaries


# ---------------------------------------------------------------------------- what the sections of the template show


def _answer(folder: Path) -> dict[str, list]:
    """Return the answer and Table 1 of every dataset: the page starts with them."""
    titles = {
        "04_answer": "Differences, per benchmark and pooled", "04_room": "Share of the oracle's room that a signal collects",
        "04_robustness": "Several ways to draw the intervals", "04_heterogeneity": "Benchmarks as random effects",
        "04_joint": "All benchmarks",
    }  # fmt: skip
    for path in sorted(folder.glob("tables/04_table1_*.csv")):
        if not path.stem.endswith(FOLDED):
            titles[path.stem] = f"Table 1, {path.stem.removeprefix('04_table1_').replace('_', ' ')}"
    captions = {"04_answer": "Differences, with intervals", "04_when": "Gains of R@1 by number of train classes and by shift"}
    figures = {folder / "figures" / f"{name}.png": caption for name, caption in captions.items()}
    made = {name: folder / "tables" / f"{name}.csv" for name in titles}
    return {
        "readings": [text.splitlines() for text in _readings(folder.glob("notebooks/04_*.ipynb"))],
        "figures": [_figure(path, caption) for path, caption in figures.items() if path.is_file()],
        "tables": [(titles[name], name == "04_answer", _table_from_csv(path)) for name, path in made.items() if path.is_file()],
    }


def _claims(folder: Path) -> dict[str, object]:
    """Return the paper's claims with the verdicts that this study's intervals give."""
    from saga_study.findings.claims import claims_sentences, claims_table

    table = claims_table(folder)
    rows = [row | {"kind": verdict_kind(row["verdict"])} for row in table.to_dict("records")]
    board = [(word, kind, sum(row["kind"] == kind for row in rows)) for word, kind in VERDICTS.items()]
    return {"summary": claims_sentences(table)[0], "rows": rows, "board": board}


def verdict_kind(verdict: str) -> str:
    """Return the kind of a verdict, a value of `VERDICTS`: "mixed" where benchmarks disagree, "part" where only some decide."""
    if " over all, " in verdict:
        return "mixed"
    if ", else open" in verdict:
        return "part"
    return next((kind for word, kind in VERDICTS.items() if verdict.startswith(word)), "open")


def _numbers(folder: Path) -> list[str]:
    """Return the numbers of the notebooks that made something: names of results start with them."""
    made = [*folder.glob("tables/*.csv"), *folder.glob("figures/*.png"), *folder.glob("notebooks/*.ipynb")]
    return sorted({number for path in made if (number := _number(path)) and number != "99"})


def _number(path: Path) -> str:
    """Return the notebook number in front of a file's name, such as 04 or 04b; "" if there is none."""
    found = re.match(r"\d\d[a-z]?(?=_)", path.name)
    return found.group() if found else ""


def _notebook(folder: Path, number: str) -> dict[str, object]:
    """Return what a notebook asks and what it made: pages, tables, figures and its printed reading."""
    executed = sorted(folder.glob(f"notebooks/{number}_*.ipynb"))
    sources = executed or sorted(paths.NOTEBOOKS.glob(f"{number}_*.ipynb"))
    title, question = _opening(sources[0]) if sources else (f"Notebook {number}", "")
    tables = [
        {"file": path.name, "name": _human(path), "folded": path.stem.endswith(FOLDED), "table": _table_from_csv(path)}
        for path in sorted(folder.glob(f"tables/{number}_*.csv"))
    ]
    return {
        "number": number, "title": title, "question": _paragraphs(question), "executed": [path.name for path in executed],
        "pages": [(path.name, _human(path)) for path in sorted(folder.glob(f"figures/{number}_*.html"))], "tables": tables,
        "figures": [_figure(path) for path in sorted(folder.glob(f"figures/{number}_*.png"))], "readings": _readings(executed),
    }  # fmt: skip


def _coverage(folder: Path, manifest: dict, runs: list[dict]) -> dict[str, object]:
    """Return which cells of Table 1, parts of the paper and notebooks this study has and lacks."""
    made = " ".join(path.name for path in (*folder.glob("tables/*"), *folder.glob("figures/*")))
    executed = {_number(path) for path in folder.glob("notebooks/*.ipynb")} | {"99"}
    return {
        "cells": _table(("dataset", "method of Table 1", "trained and evaluated"), _covered_cells(manifest, runs)),
        "on_validation": sum(run["classes"] == "validation" for run in runs),
        "partial": bool(manifest) and not manifest.get("full"),
        "absent": [title for key, title in PAPER_PARTS.items() if key not in made],
        "not_executed": [path.name for path in sorted(paths.NOTEBOOKS.glob("*.ipynb")) if _number(path) not in executed],
    }


def _covered_cells(manifest: dict, runs: list[dict]) -> list[list[str]]:
    """Return a row per dataset and method of Table 1: which seeds were trained and which of those asked for are missing."""
    from saga_study.design.tables import methods_of, table_runs

    done = {(run["dataset"], run["method"], run["seed"]) for run in runs if run["classes"] == "test"}
    datasets, methods, rows = manifest.get("datasets", []), manifest.get("methods", []), []
    later: set[tuple[str, str]] = set()  # what Table 1 has with --full only
    if manifest and not methods:  # all there are
        profile = manifest["profile"]
        methods = methods_of("table1", profile)
        planned = {(run.dataset, run.method) for run in table_runs("table1", profile, datasets, full=manifest["full"])}
        later = {(dataset, method) for dataset in datasets for method in methods} - planned
    for dataset in datasets:
        for method in methods:
            seeds = manifest.get("seeds", [])  # of all datasets, or by dataset
            asked = [0] if method == "pre-trained" else seeds.get(dataset, []) if isinstance(seeds, dict) else seeds
            have = [seed for seed in asked if (dataset, method, seed) in done]
            lacking = [seed for seed in asked if seed not in have] if (dataset, method) not in later else []
            state = f"seeds {', '.join(map(str, have)) or 'none'}" + (f"; MISSING {lacking}" if lacking else "")
            rows.append([dataset, METHOD_LABELS.get(method, method), state if have or lacking else "with --full"])
    return rows


def _provenance(manifest: dict, runs: list[dict]) -> dict[str, str]:
    """Return from what code, data and machine a study came, and how long it took."""
    facts = {
        "wall time of ./run_all.sh, all sittings": _wall_time(manifest),
        "training time, summed over runs": f"{sum(run['seconds'] for run in runs) / 60:.1f} min",
        "code of the runs": ", ".join(sorted({run["code"] for run in runs})) or "–",
    }
    for name, value in manifest.items():
        if name not in ("wall_seconds", "notebooks", "status"):
            parts = [f"{key} {one}" for key, one in value.items()] if isinstance(value, dict) else value
            facts[name] = (", ".join(map(str, parts)) if isinstance(parts, list) else str(parts)) or "–"
    if manifest.get("dirty"):
        facts["dirty"] = "yes: the code differed from the commit"
    return facts


def _wall_time(manifest: dict) -> str:
    """Return how long the study took; the report is the last step of a running study, so this is nearly all."""
    if manifest.get("status") == "running" and not manifest.get("wall_seconds"):
        try:
            seconds = time.time() - datetime.strptime(manifest["started"], "%Y-%m-%dT%H:%M:%S%z").timestamp()
        except (KeyError, ValueError):
            return "–"
        return f"{seconds / 60:.1f} min until this report"
    return f"{manifest['wall_seconds'] / 60:.1f} min" if "wall_seconds" in manifest else "–"


# ----------------------------------------------------------------------------------------------- notebooks


def _cells(path: Path) -> list[dict]:
    """Return a notebook's cells; raises `SagaError` if the file is no notebook."""
    content = read_json(path)
    cells = content.get("cells") if isinstance(content, dict) else None
    if not isinstance(cells, list) or not all(isinstance(cell, dict) and {"cell_type", "source"} <= set(cell) for cell in cells):
        raise SagaError(f"{path} is no notebook; delete it and run it again")
    return cells


def _opening(path: Path) -> tuple[str, str]:
    """Return a notebook's title and the text under its heading Question."""
    texts = ["".join(cell["source"]) for cell in _cells(path) if cell["cell_type"] == "markdown"]
    title = next((line[2:] for text in texts for line in text.splitlines() if line.startswith("# ")), path.stem)
    question = next((text for text in texts if "## Question" in text), "")
    return title, question.split("## Question", 1)[-1].split("\n## ", 1)[0].strip()


def reading_of(path: Path) -> str:
    """Return what the cells below the heading Reading printed."""
    printed, inside = [], False
    for cell in _cells(path):
        if cell["cell_type"] == "markdown" and "## " in "".join(cell["source"]):
            inside = "## Reading" in "".join(cell["source"])
        elif inside and cell["cell_type"] == "code":
            printed += ["".join(out["text"]) for out in cell.get("outputs", ()) if out["output_type"] == "stream"]
    return "".join(printed).strip()


def _readings(notebooks: Iterable[Path]) -> list[str]:
    return [text for path in sorted(notebooks) if (text := reading_of(path))]


# --------------------------------------------------------------------------------------------------- pieces


def _human(path: Path) -> str:
    name = path.stem.partition("_")[2].removesuffix(VALUES).replace("_", " ") + (" (values)" if path.stem.endswith(VALUES) else "")
    return name[:1].upper() + name[1:]


def _paragraphs(markdown: str) -> list[list[tuple[str, str]]]:
    """Return a notebook's question as paragraphs of (tag, text): of Markdown it uses bold text ("b") and code ("code") alone."""
    kept = [part for part in markdown.split("\n\n") if part.strip() and not part.startswith("|")]  # without the tables of costs
    pieces = (re.split(r"\*\*(.+?)\*\*|`(.+?)`", part) for part in kept)  # plain, bold, code, plain, ...
    return [[(tag, text) for tag, text in zip(cycle(("", "b", "code")), one) if text] for one in pieces]


def _table_from_csv(path: Path) -> dict[str, object]:
    try:
        with open(path, newline="", encoding="utf-8") as lines:
            head, *rows = list(csv.reader(lines)) or [[]]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SagaError(f"table {path} cannot be read ({error}); delete it and run its notebook again") from None
    return _table(head, rows)


def _table(head: Iterable[str], rows: Iterable[Sequence[object]]) -> dict[str, object]:
    """Return a table for the template, its first `MAX_ROWS` rows as (text, whether it is a number)."""
    rows = list(rows)
    return {"head": list(head), "rows": [[_cell(value) for value in row] for row in rows[:MAX_ROWS]], "number_of_rows": len(rows)}


def _cell(value: object) -> tuple[str, bool]:
    text = str(value)
    if re.fullmatch(r"-?\d+\.\d{5,}(e-?\d+)?", text):
        text = f"{float(text):.4g}"
    return text, bool(re.match(r"[+−-]?\d[\d.,]*( |$)", text)) or text == "–"


def _figure(path: Path, name: str = "") -> dict[str, str]:
    """Return a figure's caption, by default made from the file's name, and the figure itself as a small data URI."""
    from saga_study.findings.figures.style import shrink_png

    try:
        return {"name": name or _human(path), "source": data_uri(shrink_png(path.read_bytes()), "png")}
    except OSError as error:
        raise SagaError(f"figure {path} cannot be read ({error}); delete it and run its notebook again") from None
