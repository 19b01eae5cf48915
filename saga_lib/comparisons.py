"""Tables 2-5 of the paper: what each part of SAGA adds, on which losses, at which sizes and in which family, each against its own baseline.

A table is a list of cells (`saga_lib.study.table_cells`). A cell without runs is drawn too and says why it is empty. As everywhere, the
paper's numbers (full scale), ours (the study's profile) and differences never share a column.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from saga_lib.config import METHOD_LABELS, RunConfig
from saga_lib.retrieval import paired_bootstrap, pooled_bootstrap
from saga_lib.runs import Run
from saga_lib.tables import NOTHING, PAPER_COUNTERPART, PAPER_DATASETS, POOLED, check_poolable, check_runs, hits_of, metric, paper_column

WITH_FULL = "with --full"
METRICS = ("R@1", "R@2", "R@4", "R@8", "MAP@R", "NMI")

# Table 2: what a difference between two of its rows shows.
PARTS = {
    ("pf_attention", "pf"): "attention pooler in place of the mean",
    ("pf_grpo", "pf_attention"): "GRPO, without KL",
    ("pf_kl", "pf_attention"): "KL, without GRPO",
    ("saga_pf", "pf_kl"): "GRPO, beside KL",
    ("saga_pf", "pf_grpo"): "KL, beside GRPO",
    ("saga_pf", "pf"): "SAGA as a whole",
    ("saga_pf", "saga_shuffled"): "the reward, against shuffled advantages",
    ("saga_pf", "pf_long"): "SAGA, against PF for its wall-clock",
    ("pf_grpo", "pf_grpo_generic"): "structured prompt against generic, each with its supervisor",
    ("pf_grpo_taught", "pf_grpo_generic"): "structured prompt against generic, one supervisor",
    ("grpo_alone", "pre-trained"): "GRPO alone, against the pre-trained tower",
}
# Table 3: SAGA on a loss, and that loss by itself.
LOSSES = {("saga_ms", "ms"): "MS", ("saga_pa", "pa"): "PA", ("saga_pf", "pf"): "PF", ("saga_infonce", "infonce"): "InfoNCE"}
ALL_LOSSES = "all losses"


@dataclass(frozen=True)
class Cell:
    """One cell of a table: a method on a benchmark with its settings, a run for every seed; without runs, why there are none."""

    config: RunConfig  # its runs', whatever the seed
    runs: tuple[Run, ...] = ()
    absent: str = ""


def seeds_in_words(counts: Iterable[int]) -> str:
    """Return how many seeds cells have, such as "one seed" or "1 to 3 seeds"; cells without any do not count."""
    counts = sorted({count for count in counts if count})
    if len(counts) < 2:
        return {(): "no seed", (1,): "one seed"}.get(tuple(counts), f"{counts[-1] if counts else 0} seeds")
    return f"{counts[0]} to {counts[-1]} seeds"


def size_of(cell: Cell, cells: Iterable[Cell]) -> int:
    """Return a cell's embedding size; a tower without a projection (0) stands where the full size of its table does."""
    return cell.config.embedding_dim or max(other.config.embedding_dim for other in cells)


def _runs(cells: Sequence[Cell]) -> dict[int, dict[str, dict[str, Sequence[Run]]]]:
    """Return the runs there are by embedding size, benchmark and method; raises `SagaError` for what must not stand in one table."""
    runs: dict[int, dict[str, dict[str, Sequence[Run]]]] = {}
    for cell in cells:
        if cell.runs:
            of_size = runs.setdefault(size_of(cell, cells), {})
            of_size.setdefault(cell.config.dataset, {})[cell.config.method] = cell.runs
    for by_dataset in runs.values():
        for by_method in by_dataset.values():
            check_runs(by_method)
    flat = [run for cell in cells for run in cell.runs]
    if flat:
        check_poolable({run.key: {"": [run]} for run in flat})  # one code and one profile throughout
    return runs


# --------------------------------------------------------------------------------------------- measured


def cell_table(cells: Sequence[Cell], notebook: str) -> pd.DataFrame:
    """Return one row per cell: means and standard deviations (n - 1) over its seeds, how many these are, and where it comes from.

    R@K and MAP@R in percent, NMI in 0-1. A cell without runs has no numbers; `absent` says why.
    """
    _runs(cells)
    rows = []
    for cell in cells:
        config = cell.config
        row = {"method": config.method, "label": METHOD_LABELS.get(config.method, config.method), "dataset": config.dataset}
        row |= {"embedding_dim": size_of(cell, cells), "seeds": len(cell.runs), "absent": cell.absent}
        for name in METRICS:
            values = [metric(run, name) for run in cell.runs]
            row[name] = float(np.mean(values)) if values else float("nan")
            row[f"{name} std"] = float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")
        row["seconds"] = float(np.mean([run.evaluation["seconds"] for run in cell.runs])) if cell.runs else float("nan")
        row |= {"notebook": notebook, "runs": " ".join(run.key for run in sorted(cell.runs, key=lambda run: run.config.seed))}
        rows.append(row)
    return pd.DataFrame(rows)


def differences(cells: Sequence[Cell], pairs: Mapping[tuple[str, str], str]) -> pd.DataFrame:
    """Return what each pair of methods (method, against) differs in: points of R@1 with a 95 % interval over queries and seeds.

    Per embedding size and benchmark, then (`POOLED`) the mean of the benchmarks that have both methods, each weighing the same, if they
    are several. `pairs` gives each a label. Columns: label, method, against, embedding_dim, benchmark, difference, low, high, seeds (of the
    fewest), absent (why a pair has no difference on a benchmark).
    """
    runs, rows = _runs(cells), []
    datasets = list(dict.fromkeys(cell.config.dataset for cell in cells))
    for size in dict.fromkeys(size_of(cell, cells) for cell in cells):
        missing = {(cell.config.method, cell.config.dataset): cell.absent for cell in cells if size_of(cell, cells) == size}
        known = {method for method, _ in missing}
        for (method, against), label in pairs.items():
            if not {method, against} <= known:
                continue  # a study of some methods only
            row = {"label": label, "method": method, "against": against, "embedding_dim": size}
            both = {}
            for name in datasets:
                found = runs.get(size, {}).get(name, {})
                if method in found and against in found:
                    both[name] = (found[method], found[against])
                    rows.append(row | {"benchmark": name} | _difference([both[name]]))
                else:
                    absent = missing.get((method, name)) or missing.get((against, name), "")
                    rows.append(row | {"benchmark": name, "seeds": 0, "absent": absent})
            if len(both) > 1:
                rows.append(row | {"benchmark": POOLED} | _difference(list(both.values())))
    columns = ["label", "method", "against", "embedding_dim", "benchmark", "difference", "low", "high", "seeds", "absent"]
    return pd.DataFrame(rows, columns=columns)


def _difference(pairs: Sequence[tuple[Sequence[Run], Sequence[Run]]]) -> dict[str, object]:
    interval = pooled_bootstrap([(hits_of(a), hits_of(b)) for a, b in pairs])
    return _in_points(interval) | {"seeds": _fewest(side for pair in pairs for side in pair), "absent": ""}


def _in_points(interval: Mapping[str, float]) -> dict[str, float]:
    return {name: 100 * value for name, value in interval.items()}


def _fewest(groups: Iterable[Sequence[Run]]) -> int:
    """Return the number of seeds of the fewest; a run without training stands for all seeds."""
    return min((len(runs) for runs in groups if runs[0].config.steps or runs[0].config.epochs), default=1)


def over_losses(cells: Sequence[Cell]) -> pd.DataFrame:
    """Return Table 3's differences of SAGA to each bare loss, with rows for all losses together (`ALL_LOSSES`).

    Losses of one benchmark share its queries, so they are averaged query by query before the bootstrap draws queries; drawn one by
    one they would look more certain than they are. Only benchmarks that have all of the losses count. Columns as in `differences`.
    """
    table = differences(cells, LOSSES)
    pairs = list(dict.fromkeys(zip(table["method"], table["against"], strict=True)))
    mean = {}
    for size in _runs(cells).values():
        for name, runs in size.items():
            if len(pairs) > 1 and all({*pair} <= set(runs) for pair in pairs):
                sides = [np.mean([hits_of(runs[pair[side]]) for pair in pairs], axis=0) for side in (0, 1)]
                mean[name] = (tuple(sides), _fewest(runs[method] for pair in pairs for method in pair))
    row = {"label": ALL_LOSSES, "method": "saga", "against": "bare loss", "embedding_dim": 0, "absent": ""}
    rows = [row | {"benchmark": name, "seeds": seeds} | _in_points(paired_bootstrap(*hits)) for name, (hits, seeds) in mean.items()]
    if len(mean) > 1:
        pooled = _in_points(pooled_bootstrap([hits for hits, _ in mean.values()]))
        rows.append(row | {"benchmark": POOLED, "seeds": min(seeds for _, seeds in mean.values())} | pooled)
    if not rows:
        return table
    return pd.concat([table, pd.DataFrame(rows, columns=table.columns)], ignore_index=True)


def gain_by_size(cells: Sequence[Cell], method: str = "saga_pf", against: str = "pf") -> pd.DataFrame:
    """Return, per benchmark and size below the full one, how a method's gain there differs from its gain at full size.

    In points of R@1 with a 95 % interval: (method − against) at the size minus (method − against) at full size, query by query.
    Columns: benchmark, embedding_dim, difference, low, high, seeds.
    """
    runs = _runs(cells)
    full, rows = max(runs, default=0), []
    for size in sorted(runs, reverse=True):
        for name, found in runs[size].items():
            at_full = runs[full].get(name, {})
            if size == full or not {method, against} <= set(found) or not {method, against} <= set(at_full):
                continue
            gains = [hits_of(side[method]).astype(float) - hits_of(side[against]) for side in (found, at_full)]
            seeds = _fewest([found[method], found[against], at_full[method]])
            rows.append({"benchmark": name, "embedding_dim": size} | _in_points(paired_bootstrap(*gains)) | {"seeds": seeds})
    return pd.DataFrame(rows, columns=["benchmark", "embedding_dim", "difference", "low", "high", "seeds"])


# ------------------------------------------------------------------------------------------- as people read it


def points(row: tuple) -> str:
    """Return a difference with its interval as text, in points; what it has instead where there is none."""
    if row.difference != row.difference:
        return getattr(row, "absent", "") or NOTHING
    return f"{row.difference:+.1f} [{row.low:+.1f}, {row.high:+.1f}]".replace("-", "−")


def sign(row: tuple) -> int:
    """Return 1 or -1 for an interval above or below 0, 0 for one that includes it."""
    return int(row.low > 0) - int(row.high < 0)


def measured(row: tuple, name: str = "R@1") -> str:
    """Return a cell as text: mean ± standard deviation (seeds), or why it is empty."""
    values = row._asdict() if hasattr(row, "_asdict") else dict(row)
    if not values["seeds"]:
        return values["absent"] or NOTHING
    std = values[f"{name} std"]
    return f"{values[name]:.1f}" + ("" if std != std else f" ± {std:.1f}") + f" ({values['seeds']})"


def printed(table: int | Sequence[int], dataset: str, label: str, name: str = "R@1", embedding_dim: int | None = None) -> float:
    """Return a number of the paper's tables, NaN where it has none."""
    if dataset not in PAPER_COUNTERPART:
        return float("nan")
    column = paper_column(table, dataset, embedding_dim)
    return float(column[name].get(label, float("nan"))) if name in column else float("nan")


def _printed(*where: object, **more: object) -> str:
    value = printed(*where, **more)
    return NOTHING if value != value else f"{value:.1f}"


def _short(dataset: str) -> str:
    return dataset.removeprefix("miniature_")


def _paper(dataset: str) -> str:
    return f"paper (full scale, {PAPER_DATASETS[PAPER_COUNTERPART[dataset]]})"


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
                row[f"R@1 % {_paper(name)}"] = _printed((2, 1), name, cell["label"])
            row[f"R@1 % (seeds) {_short(name)}, {ours}"] = measured(cell)
            row[f"R@1 − {base} in points [95 %] {_short(name)}, {ours}"] = _told(found.get((method, name)))
        if pools:
            row[f"R@1 − {base} in points [95 %] all benchmarks, {ours}"] = _told(found.get((method, POOLED)))
        rows.append(row)
    return pd.DataFrame(rows).fillna(NOTHING)


def _told(row: tuple | None) -> str:
    return NOTHING if row is None or row.difference != row.difference else points(row)


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
                row[f"points {_paper(one.benchmark)}"] = told
            where = "all benchmarks" if one.benchmark == POOLED else _short(one.benchmark)
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
                paper = [NOTHING if side is None else _printed(3, name, side["label"]) for side in sides]
                row[f"R@1 %, bare → SAGA, {_paper(name)}"] = NOTHING if NOTHING in paper else " → ".join(paper)
            for what, side in zip(("bare", "SAGA"), sides, strict=True):
                row[f"R@1 % (seeds) {what}, {_short(name)}, {ours}"] = NOTHING if side is None else measured(side)
            row[f"SAGA − bare in points [95 %] {_short(name)}, {ours}"] = _told(found.get(name))
        if pools:
            row[f"SAGA − bare in points [95 %] all benchmarks, {ours}"] = _told(found.get(POOLED))
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
                        row[f"{what} % {_paper(name)}"] = _printed(*where, what, embedding_dim=paper_size) if paper_size else NOTHING
                    row[f"{what} % (seeds) {_short(name)}, {ours}"] = measured(cell, what)
                row[f"R@1 − PF in points [95 %] {_short(name)}, {ours}"] = _told(found.get((size, method, name)))
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
                    row[f"R@{k} % {_paper(name)}"] = _printed(5, name, cell["label"], f"R@{k}")
                row[f"R@{k} % (seeds) {_short(name)}, {ours}"] = measured(cell, f"R@{k}")
            row[f"R@1 − PF in points [95 %] {_short(name)}, {ours}"] = _told(found.get((method, name)))
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


# -------------------------------------------------------------------------------------------------- in sentences

_WORDS = {1: "above 0", -1: "below 0", 0: "not told apart from 0"}


def difference_sentences(table: pd.DataFrame) -> list[str]:
    """Return one sentence per label of a table of differences, read off its intervals, and one on seeds and on what is not there yet.

    The pooled interval speaks first where there is one, then the benchmarks.
    """
    sentences = []
    for label, group in table.dropna(subset="difference").groupby("label", sort=False):
        rows = sorted(group.itertuples(), key=lambda row: row.benchmark != POOLED)
        names = ["all benchmarks" if row.benchmark == POOLED else _short(row.benchmark) for row in rows]
        told = [f"{name} {points(row)}, {_WORDS[sign(row)]}" for name, row in zip(names, rows, strict=True)]
        sentences.append(f"{label}: {'; '.join(told)}.")
    return [*sentences, *remarks(table)]


def size_sentences(gains: pd.DataFrame, changes: pd.DataFrame) -> list[str]:
    """Return, per benchmark and size, SAGA's gain on PF and whether it differs from the gain at full size; then remarks."""
    change = {(row.benchmark, row.embedding_dim): row for row in changes.itertuples()}
    sentences = []
    for row in gains.dropna(subset="difference").sort_values("embedding_dim", ascending=False, kind="stable").itertuples():
        if row.benchmark == POOLED:
            continue
        sentence = f"{_short(row.benchmark)}, {row.embedding_dim} dimensions: SAGA − PF {points(row)}, {_WORDS[sign(row)]}"
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
        told = [f"{label} ({', '.join(map(_short, rows['benchmark']))})" for label, rows in group.groupby("label", sort=False)]
        sentences.append(f"Not here, {why}: {'; '.join(told)}.")
    return sentences

