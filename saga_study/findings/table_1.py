"""Table 1: the measured runs of a study beside the paper's numbers, with intervals on the differences.

Three kinds of numbers never share a column: the paper's (full scale), ours (the study's profile) and differences.
Recall@K and MAP@R are in percent, NMI in 0-1, as the paper prints them; differences are in points of R@1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from saga_lib.common.errors import SagaError
from saga_study.findings.answer import map_difference
from saga_study.findings.differences import RunsByMethod, compared, metric_columns, origin_columns
from saga_study.findings.gradients import gradient_columns
from saga_study.findings.paper import PAPER_COUNTERPART, paper_column, paper_heading
from saga_study.findings.samples import POOLED, check_runs
from saga_study.findings.words import NOTHING, SIDES, Interval, label, mean_and_std, points, seed_remark, short_name


def main_table(
    runs_by_method: RunsByMethod, baseline: str, seeds: Sequence[int] | None = None, profile: str | None = None,
    notebook: str = "04_main_results",
) -> pd.DataFrame:  # fmt: skip
    """Return one numbered row per method: metrics over seeds (`metric_columns`), and the difference of R@1 to `baseline`.

    The difference, to a metric-learning loss without a signal, has a paired-bootstrap 95 % interval over families and seeds. `seeds` and
    `profile` are what the study promises; without them the runs must agree among themselves. `runs` and `notebook` say where a
    row comes from. Raises `SagaError` for runs that do not belong in one table (see `check_runs`).
    """
    check_runs(runs_by_method, seeds, profile)
    if baseline not in runs_by_method:
        raise SagaError(f"the table compares with {baseline}, which is not among its methods; add it to METHODS")
    rows = []
    for number, (method, runs) in enumerate(runs_by_method.items(), 1):
        row = {"row": number, "method": method, "label": label(method)} | metric_columns(runs) | {"seeds": len(runs)}
        found = {} if method == baseline else compared({"": runs_by_method}, method, baseline)[0]
        row |= {name: found.get(name, float("nan")) for name in Interval._fields}
        rows.append(row | {"steps": runs[0].evaluation["steps"]} | gradient_columns(runs) | origin_columns(runs, notebook))
    return pd.DataFrame(rows)


def conclusions(table: pd.DataFrame, baseline: str) -> list[str]:
    """Return one sentence per method on whether its R@1 differs from the baseline's, read off the interval."""
    base = table[table["method"] == baseline].iloc[0]
    sentences = [f"{base['label']}: R@1 {mean_and_std(base)} % over {base['seeds']} seed(s); all differences are to it."]
    for _, row in table[table["method"] != baseline].iterrows():
        side = Interval.of(row).side()
        why = "the interval excludes 0" if side else "the interval includes 0"
        sentences.append(f"{row['label']}: {points(row)} points, {SIDES[side]} it: {why}.")
    return [*sentences, seed_remark([int(table["seeds"].max())])]  # a method without training has one run for all seeds


def export_remark(table: pd.DataFrame, method: str) -> str:
    """Return what to know of the method whose encoder is exported: that it was not trained, or which other retrieved better here."""
    if method == "pre-trained":
        return "It is the tower as it came: nothing was trained on your images."
    rows = table.set_index("method")
    best = rows["R@1"].idxmax()
    if rows.loc[best, "R@1"] > rows.loc[method, "R@1"]:
        return f"{rows.loc[best, 'label']} has a higher R@1 here ({mean_and_std(rows.loc[best])} %): EXPORT_METHOD {best} exports that one."
    return "No other method of the table has a higher R@1 here; expect a little less elsewhere of a method chosen for that."


# -------------------------------------------------------------------------------------------- as people read it


def joint_table(
    tables: Mapping[str, pd.DataFrame], answer: pd.DataFrame, profile: str, baseline: str,
    left_out: Mapping[str, Mapping[str, str]] | None = None,
) -> pd.DataFrame:  # fmt: skip
    """Return one table of all benchmarks as text: R@1 of every method on each, and the pooled differences to the baseline.

    They are of R@1 and of MAP@R, which does not saturate. tables: the `main_table` of each dataset; answer: of `pooled_answer`;
    left_out: for each dataset its methods without runs, with the reason. The paper's numbers are in the tables of single benchmarks.
    """
    pooled = answer[(answer["benchmark"] == POOLED) & (answer["against"] == baseline)]
    pooled = {row["method"]: row for row in pooled.to_dict("records")}
    measured = {name: table.set_index("method") for name, table in tables.items()}
    reasons = {name: dict((left_out or {}).get(name, {})) for name in tables}
    named = [table.index for table in measured.values()]
    methods = dict.fromkeys(m for names in named for m in names if all(m in others for others in named))  # those that all have come first
    methods |= dict.fromkeys(m for names in (*named, *reasons.values()) for m in names)
    rows = []
    for number, method in enumerate(methods, 1):
        row = {"#": number, "method": label(method)}
        for name, table in measured.items():
            shown = mean_and_std(table.loc[method]) if method in table.index else reasons[name].get(method, NOTHING)
            row[f"R@1 % {short_name(name)}, ours ({profile})"] = shown
        for name, found in (("R@1", Interval.of), ("MAP@R", map_difference)):
            text = found(pooled[method]).text() if method in pooled else NOTHING
            row[f"{name} − {label(baseline)} in points, all benchmarks [95 %], ours ({profile})"] = text
        seeds = [int(table.loc[method, "seeds"]) if method in table.index else 0 for table in measured.values()]
        rows.append(row | {"seeds": str(seeds[0]) if len(set(seeds)) == 1 else "/".join(map(str, seeds))})
    return pd.DataFrame(rows)


def display_table(
    table: pd.DataFrame, dataset: str, profile: str, baseline: str, left_out: Mapping[str, str] | None = None
) -> pd.DataFrame:
    """Return Table 1 as text: the paper's numbers, ours, and differences, each in columns of their own.

    A dataset that the paper does not have gets no columns of the paper. `left_out` are methods without runs, with the reason.
    """
    is_known = dataset in PAPER_COUNTERPART
    paper = paper_column((1, 3), dataset) if is_known else pd.DataFrame()
    theirs, ours = paper_heading(dataset) if is_known else "paper", f"ours ({profile})"
    rows = []
    for _, row in table.iterrows():
        printed = paper.loc[row["label"]] if row["label"] in paper.index else pd.Series(dtype=float)
        source = printed.get("source", "Table 1")
        text = {
            "#": row["row"], "method": row["label"],
            f"R@1 % {theirs}": mean_and_std(printed) + ("" if source == "Table 1" else f" ({source})"), f"R@1 % {ours}": mean_and_std(row),
            f"R@1 − {label(baseline)} in points [95 %] {ours}": points(row),
            f"R@4 % {theirs}": mean_and_std(printed, "R@4"), f"R@4 % {ours}": mean_and_std(row, "R@4"),
            f"NMI {theirs}": mean_and_std(printed, "NMI", 2), f"NMI {ours}": mean_and_std(row, "NMI", 2), "seeds": row["seeds"],
        }  # fmt: skip
        rows.append({name: cell for name, cell in text.items() if is_known or not name.endswith(theirs)})
    for number, (method, why) in enumerate((left_out or {}).items(), len(rows) + 1):
        text = {"#": number, "method": label(method)} | dict.fromkeys(list(rows[0])[2:], NOTHING)
        rows.append(text | {f"R@1 % {ours}": why, "seeds": 0})
    return pd.DataFrame(rows)


def detail_table(table: pd.DataFrame, profile: str) -> pd.DataFrame:
    """Return what the paper does not print, as text: R@2, R@8, MAP@R, steps, time, and where each row comes from."""
    rows = [
        {"#": row["row"], "method": row["label"]}
        | {f"{name} % ours ({profile})": mean_and_std(row, name) for name in ("R@2", "R@8", "MAP@R")}
        | {"steps": row["steps"], "seconds per run": f"{row['seconds']:.0f}", "notebook": row["notebook"], "run folders": row["runs"]}
        for row in table.to_dict("records")
    ]
    return pd.DataFrame(rows)
