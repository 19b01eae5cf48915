"""Tables 2-5 of the paper: what each part of SAGA adds, on which losses, at which sizes and in which family, each against its own baseline.

A table is a list of cells (`design.cells.table_cells`). A cell without runs is drawn too and says why it is empty. As everywhere, the
paper's numbers (full scale), ours (the study's profile) and differences never share a column.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from saga_study.findings.paper import PAPER_COUNTERPART, paper_heading, printed, printed_text
from saga_study.findings.samples import POOLED
from saga_study.findings.words import NOTHING, SIGN_WORDS, measured, points, points_or_nothing, short_name, sign
from saga_study.methods import METHOD_LABELS


def _records(table: pd.DataFrame) -> list[dict]:
    return table.to_dict("records")


def display_components(values: pd.DataFrame, against_baseline: pd.DataFrame, profile: str, baseline: str = "pf") -> pd.DataFrame:
    """Return Table 2 as text: a row per method; per benchmark the paper's R@1, ours with seeds, and our difference to the baseline.

    values: of `cell_table`; against_baseline: `differences` of every method to the baseline.
    """
    ours, base, rows = f"ours ({profile})", METHOD_LABELS.get(baseline, baseline), []
    found = {(row.method, row.benchmark): row for row in against_baseline.itertuples()}
    pools = against_baseline["benchmark"].eq(POOLED).any()
    for number, method in enumerate(dict.fromkeys(values["method"]), 1):
        row = {"#": number, "method": METHOD_LABELS.get(method, method)}
        for cell in _records(values[values["method"] == method]):
            name = cell["dataset"]
            if name in PAPER_COUNTERPART:
                row[f"R@1 % {paper_heading(name)}"] = printed_text((2, 1), name, cell["label"])
            row[f"R@1 % (seeds) {short_name(name)}, {ours}"] = measured(cell)
            row[f"R@1 − {base} in points [95 %] {short_name(name)}, {ours}"] = points_or_nothing(found.get((method, name)))
        if pools:
            row[f"R@1 − {base} in points [95 %] all benchmarks, {ours}"] = points_or_nothing(found.get((method, POOLED)))
        rows.append(row)
    return pd.DataFrame(rows).fillna(NOTHING)


def display_parts(parts: pd.DataFrame, profile: str) -> pd.DataFrame:
    """Return what each part adds as text: a row per difference of `PARTS`, the paper's and ours per benchmark, ours over all."""
    ours, rows = f"ours ({profile})", []
    for (method, against), group in parts.groupby(["method", "against"], sort=False):
        labels = METHOD_LABELS.get(method, method), METHOD_LABELS.get(against, against)
        row = {"part": group["label"].iloc[0], "R@1 of": labels[0], "minus that of": labels[1]}
        for one in group.itertuples():
            if one.benchmark in PAPER_COUNTERPART:
                paper = printed((2, 1), one.benchmark, labels[0]) - printed((2, 1), one.benchmark, labels[1])
                told = NOTHING if paper != paper else f"{paper:+.1f}".replace("-", "−")
                row[f"points {paper_heading(one.benchmark)}"] = told
            where = "all benchmarks" if one.benchmark == POOLED else short_name(one.benchmark)
            row[f"points [95 %] {where}, {ours}"] = points(one)
        rows.append(row)
    return pd.DataFrame(rows).fillna(NOTHING)


def display_losses(values: pd.DataFrame, table: pd.DataFrame, profile: str) -> pd.DataFrame:
    """Return Table 3 as text: a row per loss and one for all; per benchmark the paper's bare → SAGA, ours, and our difference.

    values: of `cell_table`; table: of `over_losses`.
    """
    ours, rows = f"ours ({profile})", []
    cells = {(cell["method"], cell["dataset"]): cell for cell in _records(values)}
    datasets, pools = list(dict.fromkeys(values["dataset"])), table["benchmark"].eq(POOLED).any()
    for label, group in table.groupby("label", sort=False):
        method, against = group["method"].iloc[0], group["against"].iloc[0]
        found, row = {one.benchmark: one for one in group.itertuples()}, {"loss": label}
        for name in datasets:
            sides = [cells.get((one, name)) for one in (against, method)]
            if name in PAPER_COUNTERPART:
                paper = [NOTHING if side is None else printed_text(3, name, side["label"]) for side in sides]
                row[f"R@1 %, bare → SAGA, {paper_heading(name)}"] = NOTHING if NOTHING in paper else " → ".join(paper)
            for what, side in zip(("bare", "SAGA"), sides, strict=True):
                row[f"R@1 % (seeds) {what}, {short_name(name)}, {ours}"] = NOTHING if side is None else measured(side)
            row[f"SAGA − bare in points [95 %] {short_name(name)}, {ours}"] = points_or_nothing(found.get(name))
        if pools:
            row[f"SAGA − bare in points [95 %] all benchmarks, {ours}"] = points_or_nothing(found.get(POOLED))
        rows.append(row)
    return pd.DataFrame(rows).fillna(NOTHING)


def display_sizes(values: pd.DataFrame, gains: pd.DataFrame, profile: str, paper_sizes: Sequence[int]) -> pd.DataFrame:
    """Return Table 4 as text: a row per size and method; the paper's R@1 and R@4 at the same fraction of its full size, ours, our gains.

    values: of `cell_table`; gains: `differences` of SAGA to PF at each size; paper_sizes: the paper's, the full one first.
    """
    ours, rows = f"ours ({profile})", []
    found = {(row.embedding_dim, row.method, row.benchmark): row for row in gains.itertuples()}
    full, theirs = int(values["embedding_dim"].max()), {paper_sizes[0] / size: size for size in paper_sizes}
    for size in sorted(values["embedding_dim"].unique(), reverse=True):
        at, paper_size = values[values["embedding_dim"] == size], theirs.get(full / size)
        fraction = "1" if size == full else f"1/{full / size:g}"
        for method in dict.fromkeys(at["method"]):
            row = {f"D_e {ours}": str(size), "D_e paper": str(paper_size or NOTHING), "of full": fraction, "method": METHOD_LABELS[method]}
            for cell in _records(at[at["method"] == method]):
                name, where = cell["dataset"], (1 if paper_size == paper_sizes[0] else 4, cell["dataset"], cell["label"])
                for what in ("R@1", "R@4"):
                    if name in PAPER_COUNTERPART:
                        theirs = printed_text(*where, what, embedding_dim=paper_size) if paper_size else NOTHING
                        row[f"{what} % {paper_heading(name)}"] = theirs
                    row[f"{what} % (seeds) {short_name(name)}, {ours}"] = measured(cell, what)
                row[f"R@1 − PF in points [95 %] {short_name(name)}, {ours}"] = points_or_nothing(found.get((size, method, name)))
            rows.append(row)
    return pd.DataFrame(rows).fillna(NOTHING)


def display_family(values: pd.DataFrame, gains: pd.DataFrame, profile: str) -> pd.DataFrame:
    """Return Table 5 as text: a row per method; the paper's R@1, 2, 4 and 8, ours with seeds, and our difference to PF.

    values: of `cell_table`; gains: `differences` of SAGA and of the pre-trained tower to PF.
    """
    ours, rows = f"ours ({profile})", []
    found = {(row.method, row.benchmark): row for row in gains.itertuples()}
    for method in dict.fromkeys(values["method"]):
        row = {"method": METHOD_LABELS[method]}
        for cell in _records(values[values["method"] == method]):
            name = cell["dataset"]
            for k in (1, 2, 4, 8):
                if name in PAPER_COUNTERPART:
                    row[f"R@{k} % {paper_heading(name)}"] = printed_text(5, name, cell["label"], f"R@{k}")
                row[f"R@{k} % (seeds) {short_name(name)}, {ours}"] = measured(cell, f"R@{k}")
            row[f"R@1 − PF in points [95 %] {short_name(name)}, {ours}"] = points_or_nothing(found.get((method, name)))
        rows.append(row)
    return pd.DataFrame(rows).fillna(NOTHING)


def display_details(values: pd.DataFrame, profile: str) -> pd.DataFrame:
    """Return what the paper does not print, as text: MAP@R and NMI of every cell, seconds of a run, and the run folders."""
    rows = [
        {
            "method": cell["label"], "benchmark": cell["dataset"], "D_e": str(cell["embedding_dim"]),
            f"R@1 % (seeds) ours ({profile})": measured(cell), f"MAP@R % (seeds) ours ({profile})": measured(cell, "MAP@R"),
            f"NMI ours ({profile})": f"{cell['NMI']:.2f}" if cell["seeds"] else NOTHING,
            "seconds per run": f"{cell['seconds']:.0f}" if cell["seeds"] else NOTHING, "run folders": cell["runs"],
        }
        for cell in _records(values)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def difference_sentences(table: pd.DataFrame) -> list[str]:
    """Return one sentence per label of a table of differences, read off its intervals, and one on seeds and on what is not there yet.

    The pooled interval speaks first where there is one, then the benchmarks.
    """
    sentences = []
    for label, group in table.dropna(subset="difference").groupby("label", sort=False):
        rows = sorted(group.itertuples(), key=lambda row: row.benchmark != POOLED)
        names = ["all benchmarks" if row.benchmark == POOLED else short_name(row.benchmark) for row in rows]
        told = [f"{name} {points(row)}, {SIGN_WORDS[sign(row)]}" for name, row in zip(names, rows, strict=True)]
        sentences.append(f"{label}: {'; '.join(told)}.")
    return [*sentences, *remarks(table)]


def size_sentences(gains: pd.DataFrame, changes: pd.DataFrame) -> list[str]:
    """Return, per benchmark and size, SAGA's gain on PF and whether it differs from the gain at full size; then remarks."""
    change = {(row.benchmark, row.embedding_dim): row for row in changes.itertuples()}
    sentences = []
    for row in gains.dropna(subset="difference").sort_values("embedding_dim", ascending=False, kind="stable").itertuples():
        if row.benchmark == POOLED:
            continue
        sentence = f"{short_name(row.benchmark)}, {row.embedding_dim} dimensions: SAGA − PF {points(row)}, {SIGN_WORDS[sign(row)]}"
        if other := change.get((row.benchmark, row.embedding_dim)):
            verdict = {1: "more than at full size", -1: "less than at full size", 0: "not told apart from the gain at full size"}
            sentence += f"; {verdict[sign(other)]} (by {points(other)})"
        sentences.append(sentence + ".")
    return [*sentences, *remarks(gains)]


def remarks(table: pd.DataFrame) -> list[str]:
    """Return what has to be said beside any table of differences: how few seeds, how many comparisons, what is absent."""
    known, sentences = table.dropna(subset="difference"), []
    if not len(known):
        sentences.append("No difference is known yet.")
    elif (fewest := int(known["seeds"].min())) == 1:
        sentences.append("One seed where there are fewest: the intervals there cover the choice of queries only.")
    elif fewest < 5:
        sentences.append(f"{fewest} seeds where there are fewest: the intervals are too narrow for the variation between seeds.")
    if len(known) > 1:
        sentences.append(f"{len(known)} intervals of 95 %: about one in twenty excludes 0 by chance.")
    absent = table[table["difference"].isna()]
    for why, group in absent[absent["absent"] != ""].groupby("absent", sort=False):
        told = [f"{label} ({', '.join(map(short_name, rows['benchmark']))})" for label, rows in group.groupby("label", sort=False)]
        sentences.append(f"Not here, {why}: {'; '.join(told)}.")
    return sentences
