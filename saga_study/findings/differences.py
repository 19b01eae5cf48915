"""What the runs of a table measure and what they differ in, computed in one way for Table 1, its answer and Tables 2–5."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd

from saga_lib.records import Run
from saga_study.design.cells import Cell
from saga_study.findings.gradients import gradient_columns
from saga_study.findings.samples import (
    POOLED,
    bootstrap_points,
    by_seed,
    check_poolable,
    check_runs,
    clustered_hits,
    fewest_seeds,
    map_points,
    metric,
)
from saga_study.findings.words import label
from saga_study.methods import baseline_of

RETRIEVAL_METRICS = ("R@1", "R@2", "R@4", "R@8", "MAP@R", "NMI")
ALL_LOSSES = "all losses"


RunsByMethod = Mapping[str, Sequence[Run]]


def parts(profile: str) -> dict[tuple[str, str], str]:
    """Return what a difference between two rows of Table 2 shows, by (method, against).

    Signals are compared with what they are added to: where the anchor helps Potential Field, with both together.
    """
    base = baseline_of(profile, "pf")
    alone = "pf_attention" if base == "pf" else base  # differs from the rows with KL or GRPO in that alone, but for the pooler if anchored
    return {
        ("pf_anchor", "pf"): "the anchor, without a language model",
        ("pf_saga_rate", "pf"): "SAGA's learning rate in place of PF's own",
        ("pf_attention", "pf_saga_rate"): "attention pooler in place of the mean",
        ("pf_grpo", alone): "GRPO, without KL",
        ("pf_kl", alone): "KL, without GRPO",
        ("saga_pf", "pf_kl"): "GRPO, beside KL",
        ("saga_pf", "pf_grpo"): "KL, beside GRPO",
        ("saga_pf", base): "SAGA as a whole",
        ("saga_pf", "pf_saga_rate"): "SAGA, against PF at its rate",
        ("saga_pf", "pf_attention"): "SAGA, against PF with its rate and pooler",
        ("saga_pf", "saga_shuffled_in_group"): "the reward, against advantages shuffled in groups",
        ("saga_pf", "pf_long"): "SAGA, against PF for its wall-clock",
        ("pf_grpo", "pf_grpo_generic"): "structured prompt against generic, each with its supervisor",
        ("pf_grpo_taught", "pf_grpo_generic"): "structured prompt against generic, one supervisor",
        ("grpo_alone", "pre-trained"): "GRPO alone, against the pre-trained tower",
    }


def losses(profile: str, signal: str = "saga") -> dict[tuple[str, str], str]:
    """Return Table 3's pairs: a signal on a loss and what it is added to, that loss alone or anchored; labelled by the loss."""
    pairs = {}
    for loss in ("ms", "pa", "pf", "infonce"):
        base = baseline_of(profile, loss)
        pairs[f"{signal}_{loss}", base] = label(loss) if base == loss else f"{label(loss)}, anchored"
    return pairs


# ------------------------------------------------------------------------------------ the runs of one benchmark


def metric_columns(runs: Sequence[Run]) -> dict[str, float]:
    """Return every metric's mean over seeds and its sample standard deviation (n - 1); NaN without runs, and the latter for one run.

    R@K and MAP@R in percent, NMI in 0-1.
    """
    row = {}
    for name in RETRIEVAL_METRICS:
        values = [metric(run, name) for run in runs]
        row[name] = float(np.mean(values)) if values else float("nan")
        row[f"{name} std"] = float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")
    return row


def origin_columns(runs: Sequence[Run], notebook: str) -> dict[str, object]:
    """Return mean seconds of a run, and where the row comes from: notebook and run folders in order of the seed."""
    seconds = float(np.mean([run.evaluation["seconds"] for run in runs])) if runs else float("nan")
    return {"seconds": seconds, "notebook": notebook, "runs": " ".join(run.key for run in by_seed(runs))}


def compared(
    runs_by_dataset: Mapping[str, RunsByMethod], method: str, against: str, pool_from: int = 2,
    labels: Mapping[str, np.ndarray] | None = None,
) -> list[dict[str, object]]:  # fmt: skip
    """Return what two methods differ in, a row per benchmark: points of R@1 with a 95 % interval over families and seeds.

    A last row (`POOLED`) has the mean over the benchmarks that have both methods, each weighing the same, if these are at least
    `pool_from`. Keys: method, against, benchmark, difference, low, high, queries, seeds (of the fewest; 0 where a method has no run).
    With labels, the classes of the queries by benchmark (none: equally large), also MAP@R, "MAP@R low" and "MAP@R high" (`map_points`).
    """
    both = {name: (runs[method], runs[against]) for name, runs in runs_by_dataset.items() if {method, against} <= set(runs)}
    groups = {name: [both[name]] if name in both else [] for name in runs_by_dataset}
    if len(both) >= pool_from:
        groups[POOLED] = list(both.values())
    rows = []
    for name, pairs in groups.items():
        row = {"method": method, "against": against, "benchmark": name, "queries": 0, "seeds": 0}
        if pairs:
            known = [(labels or {}).get(one) for one in (both if name == POOLED else [name])]
            if labels is not None:
                row |= map_points([(*pair, own) for own, pair in zip(known, pairs, strict=True)]).columns("MAP@R")
            hits = [tuple(clustered_hits(side, own) for side in pair) for own, pair in zip(known, pairs, strict=True)]
            row |= bootstrap_points(hits)._asdict() | {"queries": sum(len(a[0].hits) for a, _ in pairs)}
            row["seeds"] = fewest_seeds(side for pair in pairs for side in pair)
        rows.append(row)
    return rows


# -------------------------------------------------------------------------------------------- cells of Tables 2–5


def size_of(cell: Cell, cells: Iterable[Cell]) -> int:
    """Return a cell's embedding size; a tower without a projection (0) is listed at the full size of its table."""
    return cell.config.embedding_dim or max(other.config.embedding_dim for other in cells)


def _runs_by_size(cells: Sequence[Cell]) -> dict[int, dict[str, dict[str, Sequence[Run]]]]:
    """Return the runs there are by embedding size, benchmark and method; raises `SagaError` unless they belong in one table."""
    runs: dict[int, dict[str, dict[str, Sequence[Run]]]] = {}
    for cell in cells:
        if cell.runs:
            of_size = runs.setdefault(size_of(cell, cells), {})
            of_size.setdefault(cell.config.dataset, {})[cell.config.method] = cell.runs
    for by_dataset in runs.values():
        for by_method in by_dataset.values():
            check_runs(by_method)
    if flat := [run for cell in cells for run in cell.runs]:
        check_poolable({run.key: {"": [run]} for run in flat})  # one code and one profile throughout
    return runs


def cell_table(cells: Sequence[Cell], notebook: str) -> pd.DataFrame:
    """Return one row per cell: metrics over its seeds (`metric_columns`), how many these are, and where it comes from.

    A cell without runs has no numbers; `absent` says why.
    """
    _runs_by_size(cells)
    rows = []
    for cell in cells:
        method, runs = cell.config.method, cell.runs
        row = {"method": method, "label": label(method), "dataset": cell.config.dataset, "embedding_dim": size_of(cell, cells)}
        measured = metric_columns(runs) | gradient_columns(runs) | origin_columns(runs, notebook)
        rows.append(row | {"seeds": len(runs), "absent": cell.absent} | measured)
    return pd.DataFrame(rows)


DIFFERENCES = ("label", "method", "against", "embedding_dim", "benchmark", "difference", "low", "high", "seeds", "absent")


def differences(cells: Sequence[Cell], pairs: Mapping[tuple[str, str], str]) -> pd.DataFrame:
    """Return the rows of `compared` for each pair of methods (method, against) at each embedding size; `pairs` gives each a label.

    Columns: `DIFFERENCES`; `absent` says why a pair has no difference on a benchmark.
    """
    runs, rows = _runs_by_size(cells), []
    datasets = list(dict.fromkeys(cell.config.dataset for cell in cells))
    for size in dict.fromkeys(size_of(cell, cells) for cell in cells):
        absent = {(cell.config.method, cell.config.dataset): cell.absent for cell in cells if size_of(cell, cells) == size}
        by_dataset = {name: runs.get(size, {}).get(name, {}) for name in datasets}
        for (method, against), name in pairs.items():
            if not {method, against} <= {listed for listed, _ in absent}:
                continue  # a study of some methods only
            for row in compared(by_dataset, method, against):
                why = absent.get((method, row["benchmark"])) or absent.get((against, row["benchmark"]), "")
                rows.append(row | {"label": name, "embedding_dim": size, "absent": "" if row["seeds"] else why})
    return pd.DataFrame(rows, columns=DIFFERENCES)


def over_losses(cells: Sequence[Cell], signal: str = "saga") -> pd.DataFrame:
    """Return Table 3's differences of a signal to what it is added to (`losses`), with rows for all losses together (`ALL_LOSSES`).

    Losses of one benchmark share its queries, so they are averaged query by query before the bootstrap draws queries; drawn one by
    one they would look more certain than they are. Only benchmarks that have all of the losses count. Columns: `DIFFERENCES`.
    """
    table = differences(cells, losses(cells[0].config.profile, signal) if cells else {})
    pairs = list(dict.fromkeys(zip(table["method"], table["against"], strict=True)))
    hits, seeds = {}, {}
    for by_dataset in _runs_by_size(cells).values():
        for name, runs in by_dataset.items():
            if len(pairs) > 1 and all({*pair} <= set(runs) for pair in pairs):
                hits[name] = tuple(np.mean([clustered_hits(runs[pair[side]]) for pair in pairs], axis=0) for side in (0, 1))
                seeds[name] = fewest_seeds(runs[method] for pair in pairs for method in pair)
    groups = {name: [name] for name in hits} | ({POOLED: list(hits)} if len(hits) > 1 else {})
    row = {"label": ALL_LOSSES, "method": signal, "against": "its loss", "embedding_dim": 0, "absent": ""}
    rows = [
        row | {"benchmark": group, "seeds": min(seeds[name] for name in names)} | bootstrap_points([hits[name] for name in names])._asdict()
        for group, names in groups.items()
    ]
    return pd.concat([table, pd.DataFrame(rows, columns=table.columns)], ignore_index=True) if rows else table


def gain_by_size(cells: Sequence[Cell], method: str = "saga_pf", against: str = "pf") -> pd.DataFrame:
    """Return, per benchmark and size below the full one, how a method's gain there differs from its gain at full size.

    In points of R@1 with a 95 % interval: (method − against) at the size minus (method − against) at full size, query by query.
    Columns: benchmark, embedding_dim, difference, low, high, seeds.
    """
    runs = _runs_by_size(cells)
    full, rows = max(runs, default=0), []
    for size in sorted(runs, reverse=True):
        for name, found in runs[size].items():
            at_full = runs[full].get(name, {})
            if size == full or not {method, against} <= set(found) or not {method, against} <= set(at_full):
                continue
            gains = tuple(clustered_hits(side[method]) - clustered_hits(side[against]) for side in (found, at_full))
            seeds = fewest_seeds([found[method], found[against], at_full[method]])
            rows.append({"benchmark": name, "embedding_dim": size} | bootstrap_points([gains])._asdict() | {"seeds": seeds})
    return pd.DataFrame(rows, columns=["benchmark", "embedding_dim", "difference", "low", "high", "seeds"])
