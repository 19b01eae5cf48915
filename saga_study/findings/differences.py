"""Measured cells of Tables 2–5 and the differences between them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd

from saga_lib.records import Run
from saga_lib.retrieval import paired_bootstrap, pooled_bootstrap
from saga_study.design.cells import Cell
from saga_study.findings.samples import POOLED, check_poolable, check_runs, hits_of, metric
from saga_study.methods import METHOD_LABELS

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
