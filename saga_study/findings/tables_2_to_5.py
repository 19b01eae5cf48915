"""Tables 2-5 of the paper: what each part of SAGA adds, on which losses, at which sizes and in which family, each against its own baseline.

A table is a list of cells (`design.cells.table_cells`). A cell without runs is shown too and says why it is empty. As everywhere, the
paper's numbers (full scale), ours (the study's profile) and differences never share a column.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from saga_study.findings.paper import PAPER_COUNTERPART, paper_heading, printed, printed_text
from saga_study.findings.samples import POOLED
from saga_study.findings.words import NOTHING, SIDES, Interval, label, measured, points, seed_remark, short_name, signed


def _place(benchmark: str) -> str:
    """Return a benchmark as headings and sentences name it."""
    return "all benchmarks" if benchmark == POOLED else short_name(benchmark)


def _beside_paper(
    cell: dict, gain: tuple | None, ours: str, table: int | Sequence[int], names: Sequence[str] = ("R@1",), baseline: str = "pf",
    paper_size: int | None = None,
) -> dict[str, str]:  # fmt: skip
    """Return one cell's columns: each metric as the paper prints it and as measured here, and the gain of R@1 on the baseline."""
    name, row = cell["dataset"], {}
    for what in names:
        if name in PAPER_COUNTERPART:
            row[f"{what} % {paper_heading(name)}"] = printed_text(table, name, cell["label"], what, paper_size)
        row[f"{what} % (seeds) {short_name(name)}, {ours}"] = measured(cell, what)
    return row | {f"R@1 − {label(baseline)} in points [95 %] {short_name(name)}, {ours}": points(gain)}


def display_components(values: pd.DataFrame, against_baseline: pd.DataFrame, profile: str, baseline: str = "pf") -> pd.DataFrame:
    """Return Table 2 as text: a row per method; per benchmark the paper's R@1, ours with seeds, and our difference to the baseline.

    values: of `cell_table`; against_baseline: `differences` of every method to the baseline.
    """
    ours, rows = f"ours ({profile})", []
    found = {(row.method, row.benchmark): row for row in against_baseline.itertuples()}
    for number, (method, cells) in enumerate(values.groupby("method", sort=False), 1):
        row = {"#": number, "method": label(method)}
        for cell in cells.to_dict("records"):
            row |= _beside_paper(cell, found.get((method, cell["dataset"])), ours, (2, 1), baseline=baseline)
        if against_baseline["benchmark"].eq(POOLED).any():
            row[f"R@1 − {label(baseline)} in points [95 %] all benchmarks, {ours}"] = points(found.get((method, POOLED)))
        rows.append(row)
    return pd.DataFrame(rows).fillna(NOTHING)


def display_parts(parts: pd.DataFrame, profile: str) -> pd.DataFrame:
    """Return what each part adds as text: a row per difference of `parts`, the paper's and ours per benchmark, ours over all."""
    ours, rows = f"ours ({profile})", []
    for (method, against), group in parts.groupby(["method", "against"], sort=False):
        labels = label(method), label(against)
        row = {"part": group["label"].iloc[0], "R@1 of": labels[0], "minus that of": labels[1]}
        for one in group.itertuples():
            if one.benchmark in PAPER_COUNTERPART:
                paper = printed((2, 1), one.benchmark, labels[0]) - printed((2, 1), one.benchmark, labels[1])
                row[f"points {paper_heading(one.benchmark)}"] = NOTHING if paper != paper else signed(paper)
            row[f"points [95 %] {_place(one.benchmark)}, {ours}"] = one.absent or points(one)
        rows.append(row)
    return pd.DataFrame(rows).fillna(NOTHING)


def display_losses(values: pd.DataFrame, table: pd.DataFrame, profile: str) -> pd.DataFrame:
    """Return Table 3 as text: a row per loss and one for all; per benchmark the paper's bare → SAGA, ours, and our difference.

    Ours is to what SAGA is added to: the loss alone, or with the anchor. values: of `cell_table`; table: of `over_losses`.
    """
    ours, rows = f"ours ({profile})", []
    cells = {(cell["method"], cell["dataset"]): cell for cell in values.to_dict("records")}
    datasets, pools = list(dict.fromkeys(values["dataset"])), table["benchmark"].eq(POOLED).any()
    for loss, group in table.groupby("label", sort=False):
        method, against = group["method"].iloc[0], group["against"].iloc[0]
        found, row = {one.benchmark: one for one in group.itertuples()}, {"loss": loss}
        for name in datasets:
            sides = [cells.get((one, name)) for one in (against, method)]
            if name in PAPER_COUNTERPART:
                printed_rows = zip(sides, (against.removesuffix("_anchor"), method), strict=True)
                paper = [NOTHING if side is None else printed_text(3, name, label(row_of)) for side, row_of in printed_rows]
                row[f"R@1 %, bare → SAGA, {paper_heading(name)}"] = NOTHING if NOTHING in paper else " → ".join(paper)
            for what, side in zip(("loss", "SAGA"), sides, strict=True):
                row[f"R@1 % (seeds) {what}, {short_name(name)}, {ours}"] = NOTHING if side is None else measured(side)
            row[f"SAGA − loss in points [95 %] {short_name(name)}, {ours}"] = points(found.get(name))
        if pools:
            row[f"SAGA − loss in points [95 %] all benchmarks, {ours}"] = points(found.get(POOLED))
        rows.append(row)
    return pd.DataFrame(rows).fillna(NOTHING)


def display_sizes(values: pd.DataFrame, gains: pd.DataFrame, profile: str, paper_sizes: Sequence[int]) -> pd.DataFrame:
    """Return Table 4 as text: a row per size and method; the paper's R@1 and R@4 at the same fraction of its full size, ours, our gains.

    values: of `cell_table`; gains: `differences` of SAGA to PF at each size; paper_sizes: the paper's, the full one first.
    """
    ours, rows = f"ours ({profile})", []
    found = {(row.embedding_dim, row.method, row.benchmark): row for row in gains.itertuples()}
    full, of_paper = int(values["embedding_dim"].max()), {paper_sizes[0] / size: size for size in paper_sizes}
    for (size, method), cells in sorted(values.groupby(["embedding_dim", "method"], sort=False), key=lambda group: -group[0][0]):
        paper_size = of_paper.get(full / size)
        fraction = "1" if size == full else f"1/{full / size:g}"
        row = {f"D_e {ours}": str(size), "D_e paper": str(paper_size or NOTHING), "of full": fraction, "method": label(method)}
        for cell in cells.to_dict("records"):
            gain, table = found.get((size, method, cell["dataset"])), 1 if paper_size == paper_sizes[0] else 4
            row |= _beside_paper(cell, gain, ours, table, ("R@1", "R@4"), paper_size=paper_size)
        rows.append(row)
    return pd.DataFrame(rows).fillna(NOTHING)


def display_family(values: pd.DataFrame, gains: pd.DataFrame, profile: str) -> pd.DataFrame:
    """Return Table 5 as text: a row per method; the paper's R@1, 2, 4 and 8, ours with seeds, and our difference to PF.

    values: of `cell_table`; gains: `differences` of SAGA and of the pre-trained tower to PF.
    """
    found, rows = {(row.method, row.benchmark): row for row in gains.itertuples()}, []
    for method, cells in values.groupby("method", sort=False):
        row = {"method": label(method)}
        for cell in cells.to_dict("records"):
            row |= _beside_paper(cell, found.get((method, cell["dataset"])), f"ours ({profile})", 5, ("R@1", "R@2", "R@4", "R@8"))
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
        for cell in values.to_dict("records")
    ]  # fmt: skip
    return pd.DataFrame(rows)


def difference_sentences(table: pd.DataFrame) -> list[str]:
    """Return one sentence per label of a table of differences, read off its intervals, then `remarks`.

    The interval over all benchmarks comes first where there is one, then each benchmark's.
    """
    sentences = []
    for name, group in table.dropna(subset="difference").groupby("label", sort=False):
        rows = sorted(group.itertuples(), key=lambda row: row.benchmark != POOLED)
        parts = [f"{_place(row.benchmark)} {points(row)}, {SIDES[Interval.of(row).side()]} 0" for row in rows]
        sentences.append(f"{name}: {'; '.join(parts)}.")
    return [*sentences, *remarks(table)]


def size_sentences(gains: pd.DataFrame, changes: pd.DataFrame) -> list[str]:
    """Return, per benchmark and size, SAGA's gain on PF and whether it differs from the gain at full size; then `remarks`."""
    change = {(row.benchmark, row.embedding_dim): row for row in changes.itertuples()}
    compared = {1: "more than", -1: "less than", 0: "not distinguishable from the gain"}
    sentences = []
    for row in gains.dropna(subset="difference").sort_values("embedding_dim", ascending=False, kind="stable").itertuples():
        if row.benchmark == POOLED:
            continue
        side = SIDES[Interval.of(row).side()]
        sentence = f"{short_name(row.benchmark)}, {row.embedding_dim} dimensions: SAGA − PF {points(row)}, {side} 0"
        if other := change.get((row.benchmark, row.embedding_dim)):
            sentence += f"; {compared[Interval.of(other).side()]} at full size (by {points(other)})"
        sentences.append(sentence + ".")
    return [*sentences, *remarks(gains)]


def remarks(table: pd.DataFrame) -> list[str]:
    """Return what has to be said beside any table of differences: how few seeds, how many comparisons, what is absent."""
    known, absent = table.dropna(subset="difference"), table[table["difference"].isna()]
    sentences = [seed_remark(known["seeds"])] if len(known) else ["No difference is known yet."]
    if len(known) > 1:
        sentences.append(f"{len(known)} intervals of 95 %: about one in twenty excludes 0 by chance.")
    for why, group in absent[absent["absent"] != ""].groupby("absent", sort=False):
        parts = [f"{name} ({', '.join(map(short_name, rows['benchmark']))})" for name, rows in group.groupby("label", sort=False)]
        sentences.append(f"Not here, {why}: {'; '.join(parts)}.")
    return sentences
