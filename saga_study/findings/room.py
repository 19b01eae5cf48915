"""Which share of the oracle's room a signal collects: its gain over a metric loss in units of the gain that attribute truth gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from saga_lib.records import Run
from saga_study.findings.answer import LOSSES, oracle_of
from saga_study.findings.bootstrap import pooled_ratio
from saga_study.findings.differences import RunsByMethod
from saga_study.findings.samples import POOLED, fewest_seeds, hits_of, map_by_class, mean_metric
from saga_study.findings.words import Interval, label
from saga_study.methods import baseline_of

NO_ROOM = "no room"
METRICS = ("R@1", "MAP@R")
COLUMNS = (
    "method", "against", "oracle", "benchmark", "metric", "share", "share low", "share high", "room", "room low", "room high", "seeds",
)  # fmt: skip
Triple = tuple[Sequence[Run], Sequence[Run], Sequence[Run]]  # of a signal, of its base, of the oracle on that base


def share_of_room(groups: Sequence[tuple[Triple, np.ndarray | None]], metric: str = "R@1") -> Interval:
    """Return (signal − base) / (oracle − base) in percent, a ratio of means over benchmarks of equal weight, with a 95 % interval.

    groups: for each benchmark the runs of the three and the labels of its queries (`samples.map_by_class`); seeds that one of them
    lacks do not count. Bootstrapped over queries and seeds, of MAP@R over classes and seeds; without MAP@R by class, or with other seeds
    altogether, there is no interval. Say `NO_ROOM` instead where the interval of the room itself is not above 0.
    """
    scores = [_scores(_of_common_seeds(triple), labels, metric) for triple, labels in groups]
    if all(one is not None for one in scores):
        ratio = pooled_ratio([(signal - base, oracle - base) for signal, base, oracle in scores])
        return Interval(*(100 * value for value in ratio.values()))
    means = [np.array([mean_metric(runs, metric) for runs in triple]) for triple, _ in groups]
    gain, room = (float(np.mean([mean[side] - mean[1] for mean in means])) for side in (0, 2))
    return Interval(100 * gain / room) if room else Interval()


def _of_common_seeds(triple: Triple) -> Triple:
    seeds = set.intersection(*({run.config.seed for run in runs} for runs in triple))
    return tuple([run for run in runs if run.config.seed in seeds] for runs in triple)


def _scores(triple: Triple, labels: np.ndarray | None, metric: str) -> list[np.ndarray] | None:
    """Return (seeds, units) scores of each side; None where they cannot be drawn."""
    if not all(triple):
        return None
    scores = [hits_of(runs).astype(float) if metric == "R@1" else map_by_class(runs, labels) for runs in triple]
    return None if any(one is None for one in scores) else scores


def shares(
    runs_by_dataset: Mapping[str, RunsByMethod], answer: pd.DataFrame, profile: str, labels: Mapping[str, np.ndarray] | None = None
) -> pd.DataFrame:
    """Return the shares of the room that SAGA and reading contrast collect on each metric loss, per benchmark and pooled, in percent.

    answer: of `pooled_answer` of the same runs, whose oracle − base is the room (points). A share is missing where the room's interval
    is not above 0. Columns: `COLUMNS`.
    """
    rows = []
    for loss in LOSSES:
        base, oracle = baseline_of(profile, loss), oracle_of(loss)
        room = answer[(answer["method"] == oracle) & (answer["against"] == base)]
        for signal in (f"saga_{loss}", f"contrast_{loss}"):
            for row in room.to_dict("records"):
                names = list(runs_by_dataset) if row["benchmark"] == POOLED else [row["benchmark"]]
                if not all(signal in runs_by_dataset[name] for name in names):
                    continue
                triples = [tuple(runs_by_dataset[name][one] for one in (signal, base, oracle)) for name in names]
                groups = [(triple, (labels or {}).get(name)) for triple, name in zip(triples, names, strict=True)]
                for metric in METRICS:
                    own = Interval.of(row) if metric == "R@1" else Interval.of(row, "MAP@R")
                    share = share_of_room(groups, metric) if (own.side() or 0) > 0 else Interval()
                    found = share.columns("share") | own.columns("room")
                    of = {"method": signal, "against": base, "oracle": oracle, "benchmark": row["benchmark"], "metric": metric}
                    rows.append(of | found | {"seeds": fewest_seeds(side for triple in triples for side in triple)})
    return pd.DataFrame(rows, columns=COLUMNS)


def share_text(row: Mapping[str, object]) -> str:
    """Return a share as text: percent with its interval, or that there is no room."""
    side = Interval.of(row, "room").side()
    return NO_ROOM if side is not None and side <= 0 else Interval.of(row, "share").text(".0f", " %")


def display_shares(table: pd.DataFrame) -> pd.DataFrame:
    """Return `shares` as text: a row per signal and metric, a column per benchmark and one for all."""
    rows = [
        {"share of the oracle's room, % [95 %]": label(method), "over": label(against), "metric": metric}
        | {row["benchmark"]: share_text(row) for row in group.to_dict("records")}
        for (method, against, metric), group in table.groupby(["method", "against", "metric"], sort=False)
    ]
    return pd.DataFrame(rows, columns=None if rows else ["share of the oracle's room, % [95 %]"])


def share_sentences(table: pd.DataFrame) -> list[str]:
    """Return which share of the oracle's room each signal collects over all benchmarks, by R@1 and by MAP@R."""
    pooled = table[table["benchmark"] == POOLED]
    return [
        f"{label(method)} collects of the oracle's room over {label(against)}: "
        + ", ".join(f"{share_text(row)} by {row['metric']}" for row in group.to_dict("records")) + "."
        for (method, against), group in pooled.groupby(["method", "against"], sort=False)
    ]  # fmt: skip
