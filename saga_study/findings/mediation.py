"""Why a signal helps or not: what the frozen model reads from the tokens, what a probe finds in the embedding, and where the chain breaks.

The chain: a reward that rises, tokens that are read better, an embedding that holds more, images that are retrieved better.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from saga_lib.records import Run
from saga_study.design.cells import Cell
from saga_study.findings.rooms import points_between, seeds_in_common
from saga_study.findings.samples import ALL_ATTRIBUTES, POOLED, bootstrap_points, by_seed, t_interval
from saga_study.findings.words import NOTHING, SIDES, Interval, label, seed_remark, short_name

BEFORE = "pre-trained"
MEASURES = ("accuracy", "consensus", "probe")  # of an attribute: shares of `evaluation["reading"]`
REWARD, TOKENS, EMBEDDING = "reward: right verdicts, start to end", "tokens: accuracy of readings", "embedding: accuracy of a probe"
RETRIEVAL = ("retrieval: R@1", "retrieval: MAP@R")
LINKS = (REWARD, TOKENS, EMBEDDING, *RETRIEVAL)
STEPS = 10  # at either end of a run whose verdicts count as its start and its end
_SHARES = {TOKENS: "accuracy", EMBEDDING: "probe"}

Readings = Mapping[str, Mapping[str, list[Run]]]  # by benchmark and method


def readings_of(cells: Sequence[Cell]) -> dict[str, dict[str, list[Run]]]:
    """Return, by benchmark and method, the runs that measured readings where the attributes' truth is known; others are left out."""
    found: dict[str, dict[str, list[Run]]] = {}
    for cell in cells:
        if runs := [run for run in cell.runs if "probe" in (run.evaluation.get("reading") or {})]:
            found.setdefault(cell.config.dataset, {})[cell.config.method] = by_seed(runs)
    return found


def _shares(runs: Sequence[Run], measure: str) -> np.ndarray:
    """Return (S, A) shares of a measure, 0-1, rows in order of the seed, attributes in that of the first run."""
    names = list(runs[0].evaluation["reading"][measure])
    return np.array([[run.evaluation["reading"][measure][name] for name in names] for run in by_seed(runs)])


def attribute_table(readings: Readings) -> pd.DataFrame:
    """Return a row per benchmark, method and attribute, and one for their mean (`ALL_ATTRIBUTES`): shares 0-1, means over seeds.

    Columns: benchmark, method, label, attribute, `MEASURES`, and for `accuracy` and `probe` the change from the pre-trained tower
    (`change`, NaN where that was not measured), seeds.
    """
    rows = []
    for benchmark, of_method in readings.items():
        means = {method: {name: _shares(runs, name).mean(0) for name in MEASURES} for method, runs in of_method.items()}
        for method, runs in of_method.items():
            names = list(runs[0].evaluation["reading"]["accuracy"])
            for place, attribute in enumerate([*names, ALL_ATTRIBUTES]):
                row = {"benchmark": benchmark, "method": method, "label": label(method), "attribute": attribute}
                for measure in MEASURES:
                    value, before = (_entry(means.get(one), measure, place) for one in (method, BEFORE))
                    row |= {measure: value} | ({} if measure == "consensus" else {f"{measure} change": value - before})
                rows.append(row | {"seeds": len(runs)})
    columns = ["benchmark", "method", "label", "attribute", *MEASURES, "accuracy change", "probe change", "seeds"]
    return pd.DataFrame(rows, columns=columns)


def _entry(means: Mapping[str, np.ndarray] | None, measure: str, place: int) -> float:
    """Return an attribute's mean, or the mean of all behind the last; NaN without any."""
    if means is None:
        return float("nan")
    values = means[measure]
    return float(values[place] if place < len(values) else values.mean())


def display_attributes(table: pd.DataFrame) -> pd.DataFrame:
    """Return the attributes as text: a row per benchmark and attribute, per method "read → probe" in %."""
    rows = []
    for (benchmark, attribute), group in table.groupby(["benchmark", "attribute"], sort=False):
        row = {"benchmark": short_name(benchmark), "attribute": attribute}
        for one in group.itertuples():
            row[f"{one.label}: read / probe (%)"] = f"{100 * one.accuracy:.0f} / {100 * one.probe:.0f}"
        rows.append(row)
    return pd.DataFrame(rows if rows else [{"attribute": "no run measured readings"}]).fillna(NOTHING)


# --------------------------------------------------------------------------------------------------- the chain


def chain_table(readings: Readings, base: str) -> pd.DataFrame:
    """Return, per method, benchmark (and `POOLED` where several have it) and link of the chain, points to `base` with a 95 % interval.

    Readings and probes are bootstrapped over attributes and seeds, R@1 and MAP@R over families and seeds. The reward
    is compared with itself: right verdicts (both kinds of pairs with the same weight) of the last `STEPS` steps minus the first, over
    seeds alone, of methods that have verdicts. Columns: method, label, against, benchmark, link, difference, low, high, seeds.
    """
    methods = [m for m in dict.fromkeys(m for own in readings.values() for m in own) if m not in (base, BEFORE)]
    rows = []
    for method in methods:
        both = {name: seeds_in_common(own[method], own[base]) for name, own in readings.items() if {method, base} <= set(own)}
        both = {name: pair for name, pair in both.items() if all(pair)}
        groups = {name: [pair] for name, pair in both.items()} | ({POOLED: list(both.values())} if len(both) > 1 else {})
        for place, pairs in groups.items():
            row = {"method": method, "label": label(method), "against": base, "benchmark": place}
            seeds = min(len(side) for pair in pairs for side in pair)
            for link in LINKS:
                rows.append(row | {"link": link} | _link(link, pairs)._asdict() | {"seeds": seeds})
    return pd.DataFrame(rows, columns=["method", "label", "against", "benchmark", "link", *Interval._fields, "seeds"])


def _link(link: str, pairs: Sequence[tuple[Sequence[Run], Sequence[Run]]]) -> Interval:
    if link == REWARD:
        return _rise([runs for runs, _ in pairs])
    if link in RETRIEVAL:
        return points_between(pairs, link.split(": ")[1])
    return bootstrap_points([tuple(_shares(side, _SHARES[link]) for side in pair) for pair in pairs])


def _rise(groups: Sequence[Sequence[Run]]) -> Interval:
    """Return by how many points right verdicts rise in training, with an interval over seeds if there are several."""
    rises = [np.array([run_rise(run) for run in runs]) for runs in groups]
    return Interval() if any(np.isnan(one).any() for one in rises) else t_interval(rises)


def run_rise(run: Run) -> float:
    """Return points of right verdicts that the last `STEPS` steps are above the first; NaN for a run without verdicts."""
    columns = ["verdict_accuracy_same", "verdict_accuracy_different"]
    if not set(columns) <= set(run.metrics):
        return float("nan")
    steps = run.metrics[columns].astype(float)
    return 100 * float((steps.tail(STEPS).median() - steps.head(STEPS).median()).mean())


def main_place(chain: pd.DataFrame) -> str:
    """Return what the chain is summed up by: all benchmarks together, or else the first."""
    return POOLED if (chain["benchmark"] == POOLED).any() else str(next(iter(chain["benchmark"]), ""))


def display_chain(chain: pd.DataFrame) -> pd.DataFrame:
    """Return the chain as text: a row per method and benchmark, a column per link, points to the base [95 %]."""
    rows = []
    for (name, benchmark), group in chain.groupby(["label", "benchmark"], sort=False):
        row = {"method": name, "benchmark": "all benchmarks" if benchmark == POOLED else short_name(benchmark)}
        rows.append(row | {one.link: Interval.of(one).text() for one in group.itertuples()})
    return pd.DataFrame(rows if rows else [{"method": "no run measured readings"}])


def chain_sentences(chain: pd.DataFrame) -> list[str]:
    """Return a sentence per method on which links are above the base and up to which the chain is seen, then how many seeds there are."""
    if chain.empty:
        return ["No run measured readings beside the base: the chain is part of --full."]
    place = main_place(chain)
    own = chain[chain["benchmark"] == place]
    said = [_one_chain(group) for _, group in own.groupby("method", sort=False)]
    drawn = "attributes or families"
    return [*said, seed_remark(own["seeds"], drawn, f", {'all benchmarks' if place == POOLED else short_name(place)}")]


def _one_chain(rows: pd.DataFrame) -> str:
    """Return how far a method's chain is seen: up to the last stage that is above the base by one measure and below it by none."""
    known = [(row.link, Interval.of(row)) for row in rows.itertuples() if row.difference == row.difference]
    inside = "; ".join(f"{link.split(': ')[1]} {found.text()}" + _told(found) for link, found in known)
    stages = list(dict.fromkeys(_stage(link) for link, _ in known if link != REWARD))  # the reward is compared with its own start
    sides = {stage: {found.side() for link, found in known if _stage(link) == stage} for stage in stages}
    up = [stage for stage in stages if 1 in sides[stage] and -1 not in sides[stage]]
    name, against = rows["label"].iloc[0], label(rows["against"].iloc[0])
    lacking = [stage for stage in stages if stage not in up]
    if not up:
        end = "no link is above the base"
    elif up[-1] != stages[-1]:
        end = f"it is seen up to the {up[-1]}, not in the {stages[stages.index(up[-1]) + 1]}"
    else:
        end = f"retrieval gains though the {' and the '.join(lacking)} does not" if lacking else "every link is seen"
    return f"{name} against {against}: {inside}: {end}."


def _stage(link: str) -> str:
    return link.split(": ")[0]


def _told(found: Interval) -> str:
    side = found.side()
    return "" if side is None else f", {SIDES[side]} 0"
