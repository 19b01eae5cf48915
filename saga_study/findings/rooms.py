"""Points of R@1 and of MAP@R between two methods, and which share of the oracle's room a signal collects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from saga_lib.common.errors import SagaError
from saga_lib.records import Run
from saga_study.findings.answer import LOSSES, map_difference
from saga_study.findings.bootstrap import draw_means, interval
from saga_study.findings.samples import POOLED, bootstrap_points, clustered_hits, clustered_map, fewest_seeds, is_seedless, map_points
from saga_study.findings.words import NOTHING, Interval, label
from saga_study.methods import baseline_of, oracle_of

SCORES = ("R@1", "MAP@R")
NO_ROOM = "no room seen"  # where the oracle's interval is not above the base


def scores_of(runs: Sequence[Run], name: str) -> np.ndarray | None:
    """Return (S, U) scores of R@1 or MAP@R in 0-1, rows in order of the seed, of each family that a bootstrap draws.

    None where a record has no precisions by class.
    """
    return clustered_hits(runs) if name == "R@1" else clustered_map(runs)


def seeds_in_common(*groups: Sequence[Run]) -> list[list[Run]]:
    """Return, of several methods' runs, those of the seeds that all have; a method without training keeps its one run."""
    own = [{run.config.seed for run in runs} for runs in groups if runs and not is_seedless(runs[0].config)]
    shared = set.intersection(*own) if own else set()
    return [[run for run in runs if is_seedless(run.config) or run.config.seed in shared] for runs in groups]


def points_between(pairs: Sequence[tuple[Sequence[Run], Sequence[Run]]], name: str) -> Interval:
    """Return a method's score minus another's in points, over benchmarks of equal weight, with a 95 % interval.

    pairs: for each benchmark the runs of both, of which seeds in common count. Both are bootstrapped over families and seeds, MAP@R of
    classes of equal weight; where a record has no precisions by class, MAP@R has Student's t over seeds.
    """
    pairs = [seeds_in_common(*pair) for pair in pairs]
    if not pairs or not all(side for pair in pairs for side in pair):
        return Interval()
    if name == "MAP@R":
        return map_points([(*pair, None) for pair in pairs])
    return bootstrap_points([tuple(map(clustered_hits, pair)) for pair in pairs])


def shares_of_room(
    runs_by_dataset: Mapping[str, Mapping[str, Sequence[Run]]], methods: Sequence[str], base: str, oracle: str, name: str
) -> dict[str, Interval]:  # fmt: skip
    """Return which share of (oracle − base) each method's difference to the base is, in 0-1 and beyond, with a 95 % interval.

    Over benchmarks of equal weight, numerator and denominator with the same draws of families and seeds. NaN where the
    oracle's own interval is not above 0: there is no room to be seen. Without precisions by class the share has no interval. Every
    benchmark must have runs of all the methods.
    """
    wanted = [*dict.fromkeys([base, oracle, *methods])]
    groups = []
    for dataset, runs in runs_by_dataset.items():
        if lacking := [method for method in wanted if not runs.get(method)]:
            raise SagaError(f"{dataset} has no run of {', '.join(lacking)} to share its room")
        groups.append(dict(zip(wanted, seeds_in_common(*(runs[method] for method in wanted)), strict=True)))
    scores = [{method: scores_of(group[method], name) if group[method] else None for method in wanted} for group in groups]
    if any(one is None for of_dataset in scores for one in of_dataset.values()):
        return _shares_of_means(groups, methods, base, oracle, name)
    gains = [np.stack([own[method] - own[base] for method in wanted]) for own in scores]  # of each benchmark (M, S, U)
    drawn = np.mean([draw_means(one, number) for number, one in enumerate(gains)], axis=0)  # (samples, M)
    means, room = np.mean([one.mean((1, 2)) for one in gains], axis=0), wanted.index(oracle)

    def pairs(values: Sequence[np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
        return [(own, np.zeros_like(own)) for own in values]

    if not interval(means[room], drawn[:, room], pairs([one[room] for one in gains]))[0] > 0:
        return {method: Interval() for method in methods}
    shares = {}
    for method in methods:
        place = wanted.index(method)
        share = float(means[place] / means[room])
        ratios = np.where(drawn[:, room] > 0, drawn[:, place] / drawn[:, room], np.copysign(np.inf, drawn[:, place]))
        # The ends are widened as those of the share's linear part are, method − base − share (oracle − base).
        linear = drawn[:, place] - share * drawn[:, room]
        shares[method] = Interval(share, *interval(share, ratios, pairs([one[place] - share * one[room] for one in gains]), linear=linear))
    return shares


def _shares_of_means(
    groups: Sequence[Mapping[str, list[Run]]], methods: Sequence[str], base: str, oracle: str, name: str
) -> dict[str, Interval]:  # fmt: skip
    """Return shares of the means without an interval; NaN unless the oracle is above the base, by its interval if it has one."""
    points = {method: points_between([(group[method], group[base]) for group in groups], name) for method in {oracle, *methods}}
    room = points[oracle]
    is_room = room.difference > 0 if room.side() is None else room.side() > 0
    return {method: Interval(points[method].difference / room.difference) if is_room else Interval() for method in methods}


def percent(share: Interval) -> str:
    """Return a share as text, such as "46 % [20, 71]"."""
    if share.difference != share.difference:
        return NOTHING
    ends = "" if share.low != share.low else f" [{100 * share.low:.0f}, {100 * share.high:.0f}]"
    return f"{100 * share.difference:.0f} %{ends}".replace("-", "−")


# --------------------------------------------------------------------------------------------- of Table 1's signals

COLUMNS = (
    "method", "against", "oracle", "benchmark", "metric", "share", "share low", "share high", "room", "room low", "room high", "seeds",
)  # fmt: skip


def shares_of_table_1(runs_by_dataset: Mapping[str, Mapping[str, Sequence[Run]]], answer: pd.DataFrame, profile: str) -> pd.DataFrame:
    """Return the shares of the room that SAGA and reading contrast collect on each metric loss, per benchmark and pooled, in 0-1.

    answer: of `answer.pooled_answer` of the same runs, whose oracle − base is the room (points). Columns: `COLUMNS`; a share is missing
    where there is no room.
    """
    rows = []
    for loss in LOSSES:
        base, oracle = baseline_of(profile, loss), oracle_of(loss)
        for room in answer[(answer["method"] == oracle) & (answer["against"] == base)].to_dict("records"):
            names = list(runs_by_dataset) if room["benchmark"] == POOLED else [room["benchmark"]]
            of_names = {name: runs_by_dataset[name] for name in names}
            signals = [one for one in (f"saga_{loss}", f"contrast_{loss}") if all(one in runs for runs in of_names.values())]
            for metric in SCORES if signals else ():
                own = Interval.of(room) if metric == "R@1" else map_difference(room)
                for signal, share in shares_of_room(of_names, signals, base, oracle, metric).items():
                    of = {"method": signal, "against": base, "oracle": oracle, "benchmark": room["benchmark"], "metric": metric}
                    seeds = fewest_seeds(runs[one] for runs in of_names.values() for one in (signal, base, oracle))
                    rows.append(of | share.columns("share") | own.columns("room") | {"seeds": seeds})
    table = pd.DataFrame(rows, columns=COLUMNS)
    return table.sort_values("method", key=lambda names: names.map({name: n for n, name in enumerate(names.unique())}), kind="stable")


def share_text(row: Mapping[str, object]) -> str:
    """Return a share in a row of `shares_of_table_1` as text, or that there is no room."""
    share = Interval.of(row, "share")
    return NO_ROOM if share.difference != share.difference else percent(share)


def display_shares(table: pd.DataFrame) -> pd.DataFrame:
    """Return `shares_of_table_1` as text: a row per signal and metric, a column per benchmark and one for all."""
    rows = [
        {"share of the oracle's room [95 %]": label(method), "over": label(against), "metric": metric}
        | {row["benchmark"]: share_text(row) for row in group.to_dict("records")}
        for (method, against, metric), group in table.groupby(["method", "against", "metric"], sort=False)
    ]
    return pd.DataFrame(rows, columns=None if rows else ["share of the oracle's room [95 %]"])


def share_sentences(table: pd.DataFrame) -> list[str]:
    """Return which share of the oracle's room each signal collects over all benchmarks, by R@1 and by MAP@R."""
    pooled = table[table["benchmark"] == POOLED]
    return [
        f"{label(method)} collects of the oracle's room over {label(against)}: "
        + ", ".join(f"{share_text(row)} by {row['metric']}" for row in group.to_dict("records")) + "."
        for (method, against), group in pooled.groupby(["method", "against"], sort=False)
    ]  # fmt: skip
