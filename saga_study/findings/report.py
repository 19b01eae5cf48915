"""One self-contained page about a study: its numbers, figures, provenance, and what was not run."""

from __future__ import annotations

import base64
import csv
import html
import re
import time
from datetime import datetime
from pathlib import Path

from saga_lib.common.errors import SagaError
from saga_lib.common.files import read_json, write_text
from saga_study import paths
from saga_study.findings.page import CSS
from saga_study.methods import METHOD_LABELS
from saga_study.paths import FOLDED, VALUES, study_folder

MAX_ROWS = 60  # of a table; longer ones are cut, and say so
BANNERS = {
    "smoke": "Smoke test: a few steps on a few images. The numbers show that everything runs and mean nothing else.",
    "miniature": "Miniature measurements, not the paper's numbers: small procedural images and a tiny language model. "
    "Columns headed “paper (full scale)” repeat the paper; all others were measured here.",
    "paper": "Measured at the paper's scale. Columns headed “paper (full scale)” repeat the paper; all others were "
    "measured here.",
}
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
    runs = finished_runs(folder)
    profile = manifest.get("profile") or (runs[0]["profile"] if runs else "miniature")
    sections = [_notebook_section(folder, number) for number in _numbers(folder)]
    anchors = "".join(f'<a href="#n{number}">{number}</a>' for number in _numbers(folder))
    body = "\n".join(
        [
            f"<h1>SAGA study <code>{html.escape(study)}</code></h1>",
            f'<p class="banner">{html.escape(BANNERS[profile])}</p>',
            f'<nav><a href="#claims">claims</a>Notebooks: {anchors}<a href="#runs">runs</a><a href="#coverage">what was not run</a>'
            '<a href="#provenance">provenance</a></nav>',
            _result_section(folder),
            _claims_section(folder),
            *sections,
            _runs_section(runs),
            _coverage_section(folder, manifest, runs),
            _provenance_section(manifest, runs),
        ]
    )
    page = (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>SAGA study {html.escape(study)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{CSS}</style></head>\n'
        f"<body>\n{body}\n</body></html>\n"
    )
    path = folder / "report.html"
    write_text(path, page)
    return path


def finished_runs(folder: Path) -> list[dict]:
    """Return one summary per complete run of a study folder, ordered by dataset, method and seed."""
    summaries = []
    for path in sorted(folder.glob("runs/*/evaluation.json")):
        record, evaluation = read_json(path.parent / "config.json"), read_json(path)
        config = record["config"]
        summaries.append(
            {"run": path.parent.name, "code": record.get("code", "")}
            | {name: config[name] for name in ("dataset", "method", "seed", "profile")}
            | {"classes": config.get("evaluate_on", "test")}
            | {"steps": evaluation["steps"], "seconds": evaluation["seconds"]}
            | {"R@1 %": round(100 * evaluation["recall"]["1"], 1), "MAP@R %": round(100 * evaluation["map_at_r"], 1)}
        )
    order = list(METHOD_LABELS)
    summaries.sort(key=lambda s: (s["dataset"], order.index(s["method"]) if s["method"] in order else 99, s["seed"]))
    return summaries


# ---------------------------------------------------------------------------------------------- sections


def _result_section(folder: Path) -> str:
    """Return the answer, then Table 1 of every dataset, ahead of everything else."""
    texts = [reading_of(path) for path in sorted(folder.glob("notebooks/04_*.ipynb"))]
    parts = [f"<pre>{html.escape(text)}</pre>" for text in texts if text]
    for name in ("04_answer", "04_when"):
        if (path := folder / "figures" / f"{name}.png").is_file():
            parts.append(_figure(path))
    titles = {
        "04_answer": "Differences, per benchmark and pooled", "04_robustness": "Three ways to draw the intervals",
        "04_joint": "All benchmarks",
    }  # fmt: skip
    for name, title in titles.items():
        if (path := folder / "tables" / f"{name}.csv").is_file():
            parts.append(f"<h3>{title}</h3>{_table_from_csv(path)}")
    for path in sorted(folder.glob("tables/04_table1_*.csv")):
        if not path.stem.endswith(FOLDED):
            dataset = path.stem.removeprefix("04_table1_")
            parts.append(f"<h3>Table 1, {html.escape(dataset.replace('_', ' '))}</h3>{_table_from_csv(path)}")
    return '<h2 id="result">The answer</h2>' + "\n".join(parts) if parts else ""


def _claims_section(folder: Path) -> str:
    """Return the paper's claims with the verdict that this study's intervals give."""
    from saga_study.findings.claims import claims_sentences, claims_table

    table = claims_table(folder)
    rows = []
    for row in table.to_dict("records"):
        keys = row["runs"].split()
        links = " ".join(f'<a href="runs/{key}"><code>{key}</code></a>' for key in keys)
        runs = f"<details><summary>{len(keys)}</summary>{links}</details>" if keys else "–"
        notebook = folder / "notebooks" / f"{row['notebook']}.ipynb"
        name = html.escape(row["notebook"])
        linked = f'<a href="notebooks/{name}.ipynb">{name}</a>' if notebook.is_file() else name
        measured = html.escape(row["measured [95 %]"]).replace("; ", "<br>")
        if row["benchmark by benchmark"] != "–":
            each = html.escape(row["benchmark by benchmark"]).replace("; ", "<br>")
            measured += f"<details><summary>benchmark by benchmark</summary>{each}</details>"
        cells = [
            str(row["#"]), f"{html.escape(row['claim'])} <i>({html.escape(row['where'])})</i>", html.escape(row["paper (full scale)"]),
            measured, row["seeds"], f"<b>{html.escape(row['verdict'])}</b>", linked, runs,
        ]  # fmt: skip
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    heads = ("#", "claim", "paper (full scale)", "measured here [95 %]", "seeds", "verdict", "notebook", "runs")
    head = "".join(f"<th>{name}</th>" for name in heads)
    rule = (
        "A verdict follows from the interval: reproduced if it lies on the side that the claim says, contradicted if on the other, "
        "open at this scale if it includes the null."
    )
    told = " ".join(claims_sentences(table))
    return (
        f'<h2 id="claims">The paper\'s claims</h2><p>{html.escape(told)}</p><p>{rule}</p>'
        f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
    )


def _numbers(folder: Path) -> list[str]:
    """Return the notebook numbers that left something: results carry them in front of their names."""
    made = [*folder.glob("tables/*.csv"), *folder.glob("figures/*.png"), *folder.glob("notebooks/*.ipynb")]
    return sorted({number for path in made if (number := _number(path)) and number != "99"})


def _number(path: Path) -> str:
    """Return the notebook number in front of a file's name, such as 04 or 04b; "" if there is none."""
    found = re.match(r"\d\d[a-z]?(?=_)", path.name)
    return found.group() if found else ""


def _notebook_section(folder: Path, number: str) -> str:
    executed = sorted(folder.glob(f"notebooks/{number}_*.ipynb"))
    sources = executed or sorted(paths.NOTEBOOKS.glob(f"{number}_*.ipynb"))
    title, question = _opening(sources[0]) if sources else (f"Notebook {number}", "")
    parts = [f'<h2 id="n{number}">{html.escape(title)}</h2>', _prose(question)]
    links = [f'<a href="notebooks/{html.escape(path.name)}">{html.escape(path.name)}</a>' for path in executed]
    parts.append(f"<p>Executed notebook: {', '.join(links)}</p>" if links else "<p>Not executed in this study.</p>")
    found = sorted(folder.glob(f"figures/{number}_*.html"))
    pages = [f'<a href="figures/{html.escape(path.name)}">{html.escape(_human(path))}</a>' for path in found]
    parts += [f"<p>Pages to click through: {', '.join(pages)}</p>"] if pages else []
    for path in sorted(folder.glob(f"tables/{number}_*.csv")):
        table = _table_from_csv(path)
        name = f'{html.escape(_human(path))} (<a href="tables/{html.escape(path.name)}">csv</a>)'
        if path.stem.endswith(FOLDED):
            parts.append(f"<details><summary>{name}</summary>{table}</details>")
        else:
            parts.append(f"<h3>{name}</h3>{table}")
    parts += [_figure(path) for path in sorted(folder.glob(f"figures/{number}_*.png"))]
    for path in executed:
        if text := reading_of(path):
            parts.append(f"<h3>Reading</h3><pre>{html.escape(text)}</pre>")
    return "\n".join(parts)


def _figure(path: Path) -> str:
    caption = html.escape(_human(path))
    image = f'<img alt="{caption}" src="data:image/png;base64,{_small_png(path)}">'
    return f"<figure>{image}<figcaption>{caption}</figcaption></figure>"


def _runs_section(runs: list[dict]) -> str:
    rows = [run | {"run": f"runs/{run['run']}"} for run in runs]
    table = _table(list(rows[0]), [list(row.values()) for row in rows]) if rows else "<p>No run is finished.</p>"
    intro = "Each number of the tables comes from run folders of these names; their weights are kept locally only."
    return f'<h2 id="runs">Runs</h2><p>{intro}</p><details open><summary>{len(runs)} runs</summary>{table}</details>'


def _coverage_section(folder: Path, manifest: dict, runs: list[dict]) -> str:
    from saga_study.design.tables import methods_of, table_runs

    done = {(run["dataset"], run["method"], run["seed"]) for run in runs if run["classes"] == "test"}
    datasets, methods, lines = manifest.get("datasets", []), manifest.get("methods", []), []
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
            lines.append([dataset, METHOD_LABELS.get(method, method), state if have or lacking else "with --full"])
    parts = ['<h2 id="coverage">What was run, and what was not</h2>']
    parts.append(_table(["dataset", "method of Table 1", "trained and evaluated"], lines) if lines else "<p>No manifest.</p>")
    if scored := sum(run["classes"] == "validation" for run in runs):
        parts.append(f"<p>Beside these, {scored} runs were evaluated on validation classes (notebooks 04, 04b and 11).</p>")
    if manifest and not manifest.get("full"):
        parts.append("<p>Not a full study: ./run_all.sh --full adds seeds, the cells so marked, the search for settings and the grid "
                     "of notebook 04.</p>")  # fmt: skip
    made = " ".join(path.name for path in (*folder.glob("tables/*"), *folder.glob("figures/*")))
    absent = [title for key, title in PAPER_PARTS.items() if key not in made]
    if absent:
        items = "".join(f"<li>{html.escape(title)}</li>" for title in absent)
        parts.append(f"<p>Of the paper, this study does not contain:</p><ul>{items}</ul>")
    executed = {_number(path) for path in folder.glob("notebooks/*.ipynb")} | {"99"}
    lacking = [path.name for path in sorted(paths.NOTEBOOKS.glob("*.ipynb")) if _number(path) not in executed]
    if lacking:
        parts.append(f"<p>Notebooks not executed in this study: {html.escape(', '.join(lacking))}</p>")
    return "\n".join(parts)


def _provenance_section(manifest: dict, runs: list[dict]) -> str:
    trained = sum(run["seconds"] for run in runs)
    facts = {
        "wall time of ./run_all.sh, all sittings": _wall_time(manifest),
        "training time, summed over runs": f"{trained / 60:.1f} min",
        "code of the runs": ", ".join(sorted({run["code"] for run in runs})) or "–",
    }
    for name, value in manifest.items():
        if name not in ("wall_seconds", "notebooks", "status"):
            is_group = isinstance(value, dict)
            text = ", ".join(f"{k} {v}" for k, v in value.items()) if is_group else value
            facts[name] = (", ".join(map(str, text)) if isinstance(text, list) else str(text)) or "–"
    if manifest.get("dirty"):
        facts["dirty"] = "yes: the code differed from the commit"
    note = "" if manifest else "<p>This study has no manifest: its notebooks were opened by hand.</p>"
    return f'<h2 id="provenance">Provenance</h2>{note}{_table(["what", "value"], [list(f) for f in facts.items()])}'


def _wall_time(manifest: dict) -> str:
    """Return how long the study took; while it runs, the report is its last step, so that this is nearly all."""
    if manifest.get("status") == "running" and not manifest.get("wall_seconds"):
        try:
            seconds = time.time() - datetime.strptime(manifest["started"], "%Y-%m-%dT%H:%M:%S%z").timestamp()
        except (KeyError, ValueError):
            return "–"
        return f"{seconds / 60:.1f} min until this report"
    return f"{manifest['wall_seconds'] / 60:.1f} min" if "wall_seconds" in manifest else "–"


# ----------------------------------------------------------------------------------------------- notebooks


def _opening(path: Path) -> tuple[str, str]:
    """Return a notebook's title and the text under its heading Question."""
    cells = read_json(path)["cells"]
    texts = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]
    title = next((line[2:] for text in texts for line in text.splitlines() if line.startswith("# ")), path.stem)
    question = next((text for text in texts if "## Question" in text), "")
    return title, question.split("## Question", 1)[-1].split("\n## ", 1)[0].strip()


def reading_of(path: Path) -> str:
    """Return what the cells below the heading Reading printed."""
    printed, inside = [], False
    for cell in read_json(path)["cells"]:
        if cell["cell_type"] == "markdown" and "## " in "".join(cell["source"]):
            inside = "## Reading" in "".join(cell["source"])
        elif inside and cell["cell_type"] == "code":
            printed += ["".join(out["text"]) for out in cell["outputs"] if out["output_type"] == "stream"]
    return "".join(printed).strip()


# --------------------------------------------------------------------------------------------------- pieces


def _human(path: Path) -> str:
    name = path.stem.partition("_")[2].removesuffix(VALUES).replace("_", " ") + (" (values)" if path.stem.endswith(VALUES) else "")
    return name[:1].upper() + name[1:]


def _prose(markdown: str) -> str:
    """Return the little Markdown that our notebooks' questions use as HTML: paragraphs, bold, code."""
    text = html.escape(markdown)
    text = re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", text)
    text = re.sub(r"`(.+?)`", r"<code>\1</code>", text)
    parts = [part for part in text.split("\n\n") if part.strip() and not part.startswith("|")]  # cost tables stay out
    return "".join(f"<p>{part}</p>" for part in parts)


def _table_from_csv(path: Path) -> str:
    with open(path, newline="", encoding="utf-8") as lines:
        rows = list(csv.reader(lines))
    return _table(rows[0], rows[1:]) if rows else ""


def _table(head: list[str], rows: list[list]) -> str:
    shown = "".join(f"<tr>{''.join(_cell(value) for value in row)}</tr>" for row in rows[:MAX_ROWS])
    cut = f"<p>The first {MAX_ROWS} of {len(rows)} rows.</p>" if len(rows) > MAX_ROWS else ""
    titles = "".join(f"<th>{html.escape(str(name))}</th>" for name in head)
    return f'<div class="wide"><table><thead><tr>{titles}</tr></thead><tbody>{shown}</tbody></table></div>{cut}'


def _cell(value: object) -> str:
    text = str(value)
    if re.fullmatch(r"-?\d+\.\d{5,}(e-?\d+)?", text):
        text = f"{float(text):.4g}"
    is_number = re.match(r"[+−-]?\d[\d.,]*( |$)", text) or text == "–"
    kind = ' class="number"' if is_number else ""
    return f"<td{kind}>{html.escape(text)}</td>"


def _small_png(path: Path) -> str:
    """Return a figure as base64 PNG, shrunk."""
    from saga_study.findings.figures.style import shrink_png

    try:
        small = shrink_png(path.read_bytes())
    except OSError as error:
        raise SagaError(f"figure {path} cannot be read ({error}); delete it and run its notebook again") from None
    return base64.b64encode(small).decode("ascii")
