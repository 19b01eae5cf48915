"""Tables: the measured runs of a study beside the paper's numbers, with intervals on the differences.

Three kinds of numbers never share a column: the paper's (full scale), ours (the study's profile) and differences.
Recall@K and MAP@R are in percent, NMI in 0-1, as the paper prints them; differences are in points of R@1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from saga_lib.common.errors import SagaError
from saga_lib.records import Run
from saga_lib.retrieval import paired_bootstrap
from saga_study.findings.paper import PAPER_COUNTERPART, PAPER_DATASETS, paper_column
from saga_study.findings.samples import POOLED, by_seed, check_runs, hits_of, metric
from saga_study.findings.words import NOTHING
from saga_study.methods import METHOD_LABELS

RECALL_KS = (1, 2, 4, 8)


# ------------------------------------------------------------------------------------------ measured runs


def main_table(
    runs_by_method: Mapping[str, Sequence[Run]], baseline: str = "pf", ks: Sequence[int] = RECALL_KS,
    seeds: Sequence[int] | None = None, profile: str | None = None, notebook: str = "04_main_results",
) -> pd.DataFrame:  # fmt: skip
    """Return one numbered row per method: means and standard deviations over seeds, and the difference of R@1.

    The difference is to the bare DML loss `baseline`, with a paired-bootstrap 95 % interval over queries and
    seeds. `seeds` and `profile` say what the study promises; without them the runs must agree among themselves.
    The standard deviation is the sample one (n - 1), missing for a single seed. `runs` and `notebook` say where
    a row comes from. Raises `SagaError` for what must not stand in one table (see `check_runs`).
    """
    check_runs(runs_by_method, seeds, profile)
    if baseline not in runs_by_method:
        raise SagaError(f"the table compares with {baseline}, which is not among its methods; add it to METHODS")
    reference = hits_of(runs_by_method[baseline])
    rows = []
    for number, (method, runs) in enumerate(runs_by_method.items(), 1):
        row = {"row": number, "method": method, "label": METHOD_LABELS.get(method, method)}
        for name in [*(f"R@{k}" for k in ks), "MAP@R", "NMI"]:
            values = [metric(run, name) for run in runs]
            row[name] = float(np.mean(values))
            row[f"{name} std"] = float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")
        row["seeds"] = len(runs)
        if method == baseline:
            difference = dict.fromkeys(("difference", "low", "high"), float("nan"))
        else:
            difference = {k: 100 * v for k, v in paired_bootstrap(hits_of(runs), reference).items()}
        row |= difference
        row["steps"] = runs[0].evaluation["steps"]
        row["seconds"] = float(np.mean([run.evaluation["seconds"] for run in runs]))
        row["notebook"], row["runs"] = notebook, " ".join(run.key for run in by_seed(runs))
        rows.append(row)
    return pd.DataFrame(rows)


def conclusions(table: pd.DataFrame, baseline: str = "pf") -> list[str]:
    """Return one sentence per method on whether its R@1 differs from the baseline's, read off the interval."""
    base = table[table["method"] == baseline].iloc[0]
    level = f"R@1 {_mean(base, 'R@1', 1)} % over {base['seeds']} seed(s)"
    sentences = [f"{base['label']}: {level}; all differences are to it."]
    for _, row in table[table["method"] != baseline].iterrows():
        if row["low"] > 0:
            verdict = "above it: the interval excludes 0"
        elif row["high"] < 0:
            verdict = "below it: the interval excludes 0"
        else:
            verdict = "not told apart from it: the interval includes 0"
        sentences.append(f"{row['label']}: {_difference(row)} points, {verdict}.")
    most = int(table["seeds"].max())
    if most == 1:
        sentences.append("One seed: the intervals cover the choice of queries only.")
    elif most < 5:
        sentences.append(f"{most} seeds: the intervals are known to be too narrow for the variation between seeds.")
    return sentences


def joint_table(
    tables: Mapping[str, pd.DataFrame], answer: pd.DataFrame, profile: str, baseline: str = "pf",
    left_out: Mapping[str, Mapping[str, str]] | None = None,
) -> pd.DataFrame:  # fmt: skip
    """Return one table of all benchmarks as text: R@1 of every method on each, and the pooled difference to the baseline.

    `tables` maps each dataset to its `main_table`, `left_out` each to its methods without runs and the reason. The paper's numbers
    stand in the tables of single benchmarks.
    """
    pooled = answer[(answer["benchmark"] == POOLED) & (answer["against"] == baseline)].set_index("method")
    reasons = {name: dict((left_out or {}).get(name, {})) for name in tables}
    measured = {name: table.set_index("method") for name, table in tables.items()}
    # Those that all have come first, in order, then those that some or all lack.
    methods = dict.fromkeys(m for table in measured.values() for m in table.index if all(m in other.index for other in measured.values()))
    methods |= dict.fromkeys(m for table in measured.values() for m in table.index)
    methods |= dict.fromkeys(m for lacking in reasons.values() for m in lacking)
    rows = []
    for number, method in enumerate(methods, 1):
        row = {"#": number, "method": METHOD_LABELS.get(method, method)}
        for name, table in measured.items():
            shown = _mean(table.loc[method], "R@1", 1) if method in table.index else reasons[name].get(method, NOTHING)
            row[f"R@1 % {name.removeprefix('miniature_')}, ours ({profile})"] = shown
        difference = _difference(pooled.loc[method]) if method in pooled.index else NOTHING
        row[f"R@1 − {METHOD_LABELS.get(baseline, baseline)} in points, all benchmarks [95 %], ours ({profile})"] = difference
        seeds = [int(table.loc[method, "seeds"]) if method in table.index else 0 for table in measured.values()]
        rows.append(row | {"seeds": str(seeds[0]) if len(set(seeds)) == 1 else "/".join(map(str, seeds))})
    return pd.DataFrame(rows)


# -------------------------------------------------------------------------------------------- as people read it


def display_table(
    table: pd.DataFrame, dataset: str, profile: str, baseline: str = "pf", left_out: Mapping[str, str] | None = None
) -> pd.DataFrame:
    """Return Table 1 as text: the paper's numbers, ours, and differences, each in columns of their own.

    A dataset that the paper does not have gets no columns of the paper. `left_out` are methods without runs, with the reason.
    """
    is_known = dataset in PAPER_COUNTERPART
    paper = paper_column((1, 3), dataset) if is_known else pd.DataFrame()
    theirs = f"paper (full scale, {PAPER_DATASETS[PAPER_COUNTERPART[dataset]]})" if is_known else "paper"
    ours = f"ours ({profile})"
    base = METHOD_LABELS.get(baseline, baseline)
    rows = []
    for _, row in table.iterrows():
        printed = paper.loc[row["label"]] if row["label"] in paper.index else pd.Series(dtype=float)
        text = {"#": row["row"], "method": row["label"]}
        text[f"R@1 % {theirs}"] = _mean(printed, "R@1", 1)
        if printed.get("source", "Table 1") != "Table 1":
            text[f"R@1 % {theirs}"] += f" ({printed['source']})"
        text[f"R@1 % {ours}"] = _mean(row, "R@1", 1)
        text[f"R@1 − {base} in points [95 %] {ours}"] = NOTHING if row["method"] == baseline else _difference(row)
        text[f"R@4 % {theirs}"] = _mean(printed, "R@4", 1)
        text[f"R@4 % {ours}"] = _mean(row, "R@4", 1)
        text[f"NMI {theirs}"] = _mean(printed, "NMI", 2)
        text[f"NMI {ours}"] = _mean(row, "NMI", 2)
        text["seeds"] = row["seeds"]
        rows.append({name: cell for name, cell in text.items() if is_known or not name.endswith(theirs)})
    for number, (method, why) in enumerate((left_out or {}).items(), len(rows) + 1):
        text = {"#": number, "method": METHOD_LABELS.get(method, method)} | dict.fromkeys(list(rows[0])[2:], NOTHING)
        rows.append(text | {f"R@1 % {ours}": why, "seeds": 0})
    return pd.DataFrame(rows)


def detail_table(table: pd.DataFrame, profile: str) -> pd.DataFrame:
    """Return what the paper does not print, as text: R@2, R@8, MAP@R, steps, time, and where each row comes from."""
    ours = f"ours ({profile})"
    rows = []
    for _, row in table.iterrows():
        text = {"#": row["row"], "method": row["label"]}
        text |= {f"{name} % {ours}": _mean(row, name, 1) for name in ("R@2", "R@8", "MAP@R") if name in row}
        text |= {"steps": row["steps"], "seconds per run": f"{row['seconds']:.0f}", "notebook": row["notebook"]}
        text["run folders"] = row["runs"]
        rows.append(text)
    return pd.DataFrame(rows)


def _mean(row: pd.Series, name: str, digits: int) -> str:
    value, std = row.get(name, float("nan")), row.get(f"{name} std", float("nan"))
    if pd.isna(value):
        return NOTHING
    return f"{value:.{digits}f}" + ("" if pd.isna(std) else f" ± {std:.{digits}f}")


def _difference(row: pd.Series) -> str:
    return f"{row['difference']:+.1f} [{row['low']:+.1f}, {row['high']:+.1f}]".replace("-", "−")
