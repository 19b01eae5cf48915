"""How the gradients of a table's runs compared: a signal a hundredth as strong as the metric loss is another treatment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from saga_lib.monitoring import START
from saga_lib.records import Run
from saga_study.findings.words import NOTHING

BAND = (0.1, 10.0)  # within an order of magnitude, as the paper wants it
COLUMNS = (
    "ratio start", "ratio median", "clipped", "grad over eps", "K reached", "contributing pairs", "KL start", "KL end", "token drift",
)  # fmt: skip


def gradient_columns(runs: Sequence[Run]) -> dict[str, float]:
    """Return means over seeds of `COLUMNS`, NaN for what no run has.

    ratio: norm of the language signals' gradient at the tower to the metric losses', median of the first steps and of all (of an anchor at
    the embeddings, of all steps alone); clipped and K reached: shares of steps; grad over eps: root mean square of the tower's gradient in
    units of AdamW's ε; KL: the mean of L_KL over the first and the last steps, where it has a weight; token drift: 1 − cosine.
    """
    rows = [_of_run(run) for run in runs]
    return {name: _mean([row[name] for row in rows if name in row]) for name in COLUMNS}


def joined(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Return the tables of several benchmarks (`table_1.main_table`) as one, with a column `dataset`."""
    return pd.concat([table.assign(dataset=name) for name, table in tables.items()], ignore_index=True)


def _of_run(run: Run) -> dict[str, float]:
    found = dict(run.evaluation.get("gradients") or {})
    if not found and len(run.metrics):  # a run of code that did not sum them up logged them step by step
        found = _from_steps(run)
    names = {"clipped": "clipped", "grad_over_eps": "grad over eps", "k_reached": "K reached", "contributing_pairs": "contributing pairs"}
    row = {shown: found[name] for name, shown in names.items() if name in found}
    for moment in ("start", "median"):
        signals = ("lm", "reading") if moment == "start" else ("lm", "reading", "anchor")  # an anchor has no gradient at the start
        ratios = [found[name] for name in (f"ratio_{signal}_{moment}" for signal in signals) if name in found]
        row |= {f"ratio {moment}": float(np.sum(ratios))} if ratios else {}
    if run.config.language_signal == "grpo" and run.config.lambda_kl and "loss_kl" in run.metrics:
        losses = run.metrics["loss_kl"].dropna()
        row |= {"KL start": float(losses[:START].mean()), "KL end": float(losses[-START:].mean())}
    return row | ({"token drift": run.evaluation["token_drift"]} if "token_drift" in run.evaluation else {})


def _from_steps(run: Run) -> dict[str, float]:
    steps, config = run.metrics, run.config
    found = {"clipped": float((steps["grad_total"] > config.max_grad_norm).mean())} if "grad_total" in steps else {}
    if {"grad_lm", "grad_dml"} <= set(steps):
        applied = steps["grad_lm"] if not config.balance_gradients else config.lambda_lm * steps["grad_dml"]
        ratios = (applied / steps["grad_dml"].where(steps["grad_dml"] > 0)).dropna()
        found |= {"ratio_lm_start": float(ratios[:START].median()), "ratio_lm_median": float(ratios.median())} if len(ratios) else {}
    if config.language_signal == "grpo" and "contributing_pairs" in steps:
        pairs = steps["contributing_pairs"].fillna(0)
        found |= {"k_reached": float((pairs >= config.contributing_pairs).mean()), "contributing_pairs": float(pairs.mean())}
    return found


def _mean(values: Sequence[float]) -> float:
    kept = [value for value in values if np.isfinite(value)]
    return float(np.mean(kept)) if kept else float("nan")


def gradient_table(values: pd.DataFrame) -> pd.DataFrame:
    """Return the gradients of a table's rows as text; `values` has the columns of `gradient_columns` beside label and dataset.

    A ratio outside of `BAND` is marked with "!".
    """
    rows = []
    for row in values.to_dict("records"):  # the pre-trained tower has no gradients
        if all(pd.isna(row.get(name)) for name in COLUMNS):
            continue
        text = {"method": row["label"]} | ({"dataset": row["dataset"]} if "dataset" in row else {})
        for moment in ("start", "median"):
            text[f"|g_LM| / |g_DML|, {moment}"] = _ratio(row.get(f"ratio {moment}"))
        text |= {"steps clipped": _percent(row.get("clipped")), "steps that reach K": _percent(row.get("K reached"))}
        text["contributing pairs of a step"] = _number(row.get("contributing pairs"), ".1f")
        ends = [_number(row.get(f"KL {moment}"), ".3f") for moment in ("start", "end")]
        text["L_KL, first → last steps"] = NOTHING if NOTHING in ends else " → ".join(ends)
        text["|g| of the tower / AdamW's ε"] = _number(row.get("grad over eps"), ".3g")
        text["drift of tokens"] = _number(row.get("token drift"), ".3f")
        rows.append(text)
    return pd.DataFrame(rows or [{"method": "no row has gradients"}])


def _number(value: float | None, form: str) -> str:
    return NOTHING if value is None or pd.isna(value) else format(value, form)


def _percent(value: float | None) -> str:
    return NOTHING if value is None or pd.isna(value) else f"{100 * value:.0f} %"


def _ratio(value: float | None) -> str:
    outside = value is not None and not pd.isna(value) and not BAND[0] <= value <= BAND[1]
    return _number(value, ".2g") + (" !" if outside else "")


def sentences(values: pd.DataFrame) -> list[str]:
    """Return a sentence for each row whose language signal is outside of `BAND`, and for each that reaches K in under 95 % of its steps."""
    said = []
    for row in values.to_dict("records"):
        name = row["label"] + (f" on {row['dataset']}" if "dataset" in row else "")
        median, reached = row.get("ratio median"), row.get("K reached")
        if median is not None and pd.notna(median) and not BAND[0] <= median <= BAND[1]:
            said.append(f"{name}: its gradient is {median:.2g} times the metric loss's at the tower, outside of {BAND[0]} to {BAND[1]:g}.")
        if reached is not None and pd.notna(reached) and reached < 0.95:
            pairs = row["contributing pairs"]
            said.append(f"{name}: {100 * reached:.0f} % of the steps reach K contributing pairs; a step has {pairs:.1f} on average.")
    return said
