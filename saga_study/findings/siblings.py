"""Retrieval among siblings: the last link of the chain, attribute by attribute.

For a query and an attribute the gallery is the query's own class and those classes of its family whose value of that attribute is
another. Only such siblings can be confused for lack of the attribute, so that what a signal does for one attribute shows here, next to
how well the frozen model reads it from the tokens and how well a probe finds it in the embedding (`mediation`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from saga_lib.datasets.splits import Split
from saga_study.datasets.loading import run_benchmark
from saga_study.findings.mediation import BEFORE, Readings
from saga_study.findings.samples import ALL_ATTRIBUTES, bootstrap_points, families
from saga_study.findings.shift import chosen_images, part_of
from saga_study.findings.unseen import embedded
from saga_study.findings.words import NOTHING, SIDES, Interval, label, short_name

STEPS = {  # of the chain, attribute by attribute: which change may follow from which
    "tokens → embedding": ("accuracy change", "probe change"),
    "embedding → retrieval": ("probe change", "siblings change"),
    "tokens → retrieval": ("accuracy change", "siblings change"),
}
NUM_DRAWS = 2000

# benchmark -> method -> attribute -> (S, Q) hits, 0-1, rows by seed, NaN for queries without a sibling that differs in the attribute
Hits = Mapping[str, Mapping[str, Mapping[str, np.ndarray]]]


def sibling_hits(embeddings: np.ndarray, split: Split, family: np.ndarray) -> dict[str, np.ndarray]:
    """Return by attribute the hits at rank 1 (N,) of images (N, D) of unit length, each among its class and the siblings that differ.

    family: (N,) of the images. NaN where no sibling differs in the attribute, or where a query is the only image of its class.
    """
    names = list(split.class_attributes[0])
    values = {name: np.array([own[name] for own in split.class_attributes])[split.labels] for name in names}
    hits = {name: np.full(len(embeddings), np.nan) for name in names}
    for one in np.unique(family):
        rows = np.flatnonzero(family == one)
        similar = embeddings[rows] @ embeddings[rows].T
        np.fill_diagonal(similar, -np.inf)
        same = split.labels[rows][:, None] == split.labels[rows]
        own = np.where(same, similar, -np.inf).max(1)
        for name in names:
            differs = values[name][rows][:, None] != values[name][rows]
            other = np.where(differs, similar, -np.inf).max(1)
            known = np.isfinite(own) & np.isfinite(other)
            hits[name][rows[known]] = (own > other)[known]
    return hits


def measure(readings: Readings, max_classes: int = 192, seed: int = 0) -> tuple[dict, list[str]]:
    """Return `Hits` of the runs whose encoders are on this machine, on test classes drawn in whole families, and who has none.

    readings: runs by benchmark and method, of benchmarks with known attributes.
    """
    found: dict[str, dict[str, dict[str, np.ndarray]]] = {}
    absent = []
    for benchmark, of_method in readings.items():
        there = {method: list(runs) for method, runs in of_method.items() if all(run.has_encoder() for run in runs)}
        absent += [f"{label(method)} ({short_name(benchmark)})" for method in of_method if method not in there]
        if not there:
            continue
        test = run_benchmark(next(iter(there.values()))[0].config).test
        split = part_of(test, chosen_images(benchmark, test.labels, max_classes, seed))
        family = families(benchmark, split.labels)
        own: dict[str, list[dict[str, np.ndarray]]] = {}
        for method, embeddings in embedded(benchmark, there, {benchmark: split}):
            own.setdefault(method, []).append(sibling_hits(embeddings[benchmark], split, family))
        found[benchmark] = {method: {name: np.stack([one[name] for one in seeds]) for name in seeds[0]} for method, seeds in own.items()}
    return found, absent


def sibling_table(hits: Hits, base: str) -> pd.DataFrame:
    """Return a row per benchmark, method and attribute, and one for all attributes (`ALL_ATTRIBUTES`).

    Columns: benchmark, method, label, attribute, siblings (R@1 in %, mean over queries and seeds), siblings change (0-1, from the
    pre-trained tower, NaN where that was not measured), difference, low, high (points to `base`, bootstrapped over queries and
    seeds), queries, seeds.
    """
    rows = []
    for benchmark, of_method in hits.items():
        for method, of_attribute in of_method.items():
            for name in [*of_attribute, ALL_ATTRIBUTES]:
                own, before, against = (_of(of_method.get(one), name) for one in (method, BEFORE, base))
                row = {"benchmark": benchmark, "method": method, "label": label(method), "attribute": name}
                change = float(own.mean() - before.mean()) if len(before) else np.nan
                row |= {"siblings": 100 * float(own.mean()), "siblings change": change}
                told = bootstrap_points([(own, against)]) if len(against) and method != base else Interval()
                rows.append(row | told._asdict() | {"queries": own.shape[1], "seeds": len(own)})
    columns = ["benchmark", "method", "label", "attribute", "siblings", "siblings change", *Interval._fields, "queries", "seeds"]
    return pd.DataFrame(rows, columns=columns)


def _of(of_attribute: Mapping[str, np.ndarray] | None, name: str) -> np.ndarray:
    """Return (S, Q) hits of an attribute without the queries that have none; of all attributes the mean of each query's own."""
    if of_attribute is None:
        return np.empty((0, 0))
    values = np.stack(list(of_attribute.values())) if name == ALL_ATTRIBUTES else of_attribute[name][None]
    known = np.isfinite(values)
    asked = known.any((0, 1))
    return np.where(known, values, 0).sum(0)[:, asked] / known.sum(0)[:, asked]


def step_table(attributes: pd.DataFrame, siblings: pd.DataFrame, base: str, seed: int = 0) -> pd.DataFrame:
    """Return, per method and step of the chain (`STEPS`), how the changes of single attributes go together.

    attributes: `mediation.attribute_table`. siblings: `sibling_table`. Changes are from what the base makes of the pre-trained tower (of
    the base itself: from that tower), or else a signal would be credited with what its metric loss does, less their mean over the
    attributes of a benchmark: whether the attributes that a method makes easier to read are those that it finds again, not whether
    everything rises. A benchmark without the base is left out. Columns: method, label, step, difference (Pearson's r), low, high (bootstrap
    over attributes of all benchmarks), attributes, seeds.
    """
    keys = ["benchmark", "method", "attribute"]
    both = attributes.merge(siblings[[*keys, "siblings change"]], on=keys)  # seeds are those of the readings
    both = both[(both["attribute"] != ALL_ATTRIBUTES) & (both["method"] != BEFORE)]
    changes, rows = sorted({name for pair in STEPS.values() for name in pair}), []
    of_base = both[both["method"] == base].set_index(["benchmark", "attribute"])[changes]
    for method, own in both.groupby("method", sort=False):
        if method != base:
            own = own.join(of_base, on=["benchmark", "attribute"], rsuffix=" of base").dropna(subset=f"{changes[0]} of base")
            own = own.assign(**{name: own[name] - own[f"{name} of base"] for name in changes})
        if own.empty:
            continue
        for step, pair in STEPS.items():
            x, y = (own[name] - own.groupby("benchmark")[name].transform("mean") for name in pair)
            row = {"method": method, "label": label(str(method)), "step": step, "attributes": len(own), "seeds": int(own["seeds"].min())}
            rows.append(row | _correlation(x.to_numpy(float), y.to_numpy(float), np.random.default_rng(seed))._asdict())
    return pd.DataFrame(rows, columns=["method", "label", "step", *Interval._fields, "attributes", "seeds"])


def _correlation(x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> Interval:
    """Return Pearson's r with a 95 % percentile interval over its points; nothing for fewer than four, or where one side is constant."""
    if len(x) < 4 or not (np.isfinite(x).all() and np.isfinite(y).all()) or not (x.std() and y.std()):
        return Interval()
    rows = rng.integers(len(x), size=(NUM_DRAWS, len(x)))
    drawn = [values[rows] - values[rows].mean(1, keepdims=True) for values in (x, y)]
    with np.errstate(invalid="ignore", divide="ignore"):
        r = (drawn[0] * drawn[1]).sum(1) / np.sqrt((drawn[0] ** 2).sum(1) * (drawn[1] ** 2).sum(1))
    return Interval(float(np.corrcoef(x, y)[0, 1]), *(float(value) for value in np.nanquantile(r, (0.025, 0.975))))


def display_siblings(table: pd.DataFrame) -> pd.DataFrame:
    """Return the table as text: a row per benchmark and attribute, per method R@1 in % and its difference to the base."""
    rows = []
    for (benchmark, attribute), group in table.groupby(["benchmark", "attribute"], sort=False):
        row = {"benchmark": short_name(benchmark), "attribute": attribute, "queries": int(group["queries"].max())}
        for one in group.itertuples():
            to_base = f", {Interval.of(one).text()}" if one.difference == one.difference else ""
            row[one.label] = f"{one.siblings:.1f}{to_base}"
        rows.append(row)
    return pd.DataFrame(rows if rows else [{"attribute": "no encoder of runs that measured readings is on this machine"}]).fillna(NOTHING)


def display_steps(table: pd.DataFrame) -> pd.DataFrame:
    """Return correlations as text: a row per method, a column per step of the chain."""
    rows = [
        {"method": name} | {one.step: Interval.of(one).text("+.2f") for one in group.itertuples()}
        for name, group in table.groupby("label", sort=False)
    ]
    return pd.DataFrame(rows if rows else [{"method": "nothing measured"}])


def sibling_sentences(siblings: pd.DataFrame, steps: pd.DataFrame, base: str, absent: Sequence[str]) -> list[str]:
    """Return per method in which attributes it finds more among siblings than the base, and whether readings tell which these are."""
    said = [f"Among siblings not measured, as their weights are not on this machine: {', '.join(absent)}."] if absent else []
    for method, own in siblings[~siblings["method"].isin([base, BEFORE])].groupby("method", sort=False):
        single = own[own["attribute"] != ALL_ATTRIBUTES]
        sides = [Interval.of(row).side() for row in single.itertuples()]
        if None in sides or not sides:
            continue
        reached = steps[(steps["method"] == method) & (steps["step"] == "tokens → retrieval")]
        found = Interval.of(next(reached.itertuples())) if len(reached) else Interval()
        follows = (
            f"; over attributes, the change of readings and that of retrieval correlate by {found.text('+.2f')}, {SIDES[found.side()]} 0"
            if found.side() is not None else ""
        )  # fmt: skip
        said.append(
            f"{label(str(method))} among siblings that differ in an attribute, against {label(base)}: above it for {sides.count(1)} of "
            f"{len(sides)} attributes, below for {sides.count(-1)}{follows}."
        )
    return said
