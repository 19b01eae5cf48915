"""Other ways to draw the answer's intervals, and what they say of other benchmarks: queries, seeds alone, benchmarks as random effects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from saga_lib.records import Run
from saga_study.findings.answer import comparison_label, is_shown
from saga_study.findings.bootstrap import standard_error
from saga_study.findings.differences import RunsByMethod
from saga_study.findings.samples import (
    POOLED,
    bootstrap_points,
    class_means,
    drawn_together,
    hits_of,
    map_by_class,
    seed_differences,
    t_interval,
)
from saga_study.findings.words import SIDES, Interval, short_name
from saga_study.methods import baseline_of

QUERIES, CLASSES, FAMILIES, SEEDS = "queries and seeds", "classes and seeds", "families and seeds", "seeds alone, t"
STRICTEST = (FAMILIES, CLASSES, QUERIES)  # of the ways that draw what is retrieved, from the first
HIGH = 0.75  # I² from which on heterogeneity is called considerable (Higgins and Green, Cochrane handbook)

# ------------------------------------------------------------------------------------- other ways to draw intervals


def robustness_table(
    runs_by_dataset: Mapping[str, RunsByMethod], labels: Mapping[str, np.ndarray], answer: pd.DataFrame
) -> pd.DataFrame:
    """Return the comparisons of `answer` (of the same runs) with intervals drawn in several ways, per benchmark and pooled.

    Queries of one class are hit or missed together, and so are classes of one family of siblings: the answer's own interval draws whole
    families and seeds (of benchmarks without families, classes). Beside it stand looser ones, over classes and seeds and over queries
    and seeds, and Student's t over the seeds' differences (Welch-Satterthwaite when pooled; missing for one seed). MAP@R of runs that
    kept it as a whole has the last alone. labels: for each benchmark the classes (Q,) of its test queries. Columns: method, against,
    benchmark, metric, drawn, difference, low, high, error (the standard error; NaN for the last), in points.
    """
    rows = []
    for row in answer.itertuples():
        if not is_shown(row.method, row.against):
            continue
        names = list(runs_by_dataset) if row.benchmark == POOLED else [row.benchmark]
        sides = [tuple(runs_by_dataset[name][side] for side in (row.method, row.against)) for name in names]
        found = {("R@1", QUERIES): _drawn([tuple(map(hits_of, pair)) for pair in sides])}
        for metric, clusters in (("R@1", _hits_by_cluster), ("MAP@R", _map_by_cluster)):
            drawn = [clusters(name, pair, labels[name]) for name, pair in zip(names, sides, strict=True)]
            for way in (CLASSES, FAMILIES) if any(_has_families(name, labels[name]) for name in names) else (CLASSES,):
                if all(one is not None for one in drawn):
                    found[metric, way] = _drawn([one[way] for one in drawn])
            differences = [seed_differences(runs_by_dataset[name], row.method, row.against, metric) for name in names]
            found[metric, SEEDS] = (*t_interval(differences), np.nan)
        rows += [(row.method, row.against, row.benchmark, *key, *values) for key, values in found.items()]
    return pd.DataFrame(rows, columns=["method", "against", "benchmark", "metric", "drawn", *Interval._fields, "error"])


def _drawn(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[float, ...]:
    """Return a difference, the ends of its interval and its standard error, in points."""
    return (*bootstrap_points(pairs), 100 * standard_error(pairs))


def _has_families(dataset: str, labels: np.ndarray) -> bool:
    return len(np.unique(drawn_together(dataset, labels))) < len(np.unique(labels))


def _hits_by_cluster(dataset: str, sides: Sequence[Sequence[Run]], labels: np.ndarray) -> dict[str, tuple[np.ndarray, ...]]:
    """Return (seeds, clusters) hits of both sides for each way to draw them."""
    hits = [hits_of(runs) for runs in sides]
    clusters = {CLASSES: labels, FAMILIES: drawn_together(dataset, labels)}
    return {way: tuple(class_means(one, of) for one in hits) for way, of in clusters.items()}


def _map_by_cluster(dataset: str, sides: Sequence[Sequence[Run]], labels: np.ndarray) -> dict[str, tuple[np.ndarray, ...]] | None:
    """Return (seeds, clusters) MAP@R of both sides for each way to draw them; None for runs without MAP@R by class."""
    values = [map_by_class(runs, labels) for runs in sides]
    if any(one is None for one in values):
        return None
    family = drawn_together(dataset, np.unique(labels))
    return {CLASSES: tuple(values), FAMILIES: tuple(class_means(one, family) for one in values)}


def _intervals(table: pd.DataFrame) -> dict[tuple[str, str], dict[tuple[str, str], Interval]]:
    """Return the intervals in rows of a `robustness_table`, by (method, against), then by (metric, drawn)."""
    groups = table.groupby(["method", "against"], sort=False)
    return {pair: {(row.metric, row.drawn): Interval.of(row) for row in group.itertuples()} for pair, group in groups}


def display_robustness(table: pd.DataFrame) -> pd.DataFrame:
    """Return the pooled rows of `robustness_table` as text: a row per comparison, a column per metric and way of drawing."""
    rows = [
        {"points [95 %], all benchmarks": comparison_label(*pair)} | {f"{of}, {drawn}": one.text() for (of, drawn), one in found.items()}
        for pair, found in _intervals(table[table["benchmark"] == POOLED]).items()
    ]
    return pd.DataFrame(rows, columns=None if rows else ["points [95 %], all benchmarks"])


def headline_pairs(profile: str, baseline: str) -> list[tuple[str, str]]:
    """Return the comparisons that the answer stands by: SAGA and reading contrast with what they are added to and with the baseline."""
    signals = [f"{signal}_{loss}" for loss in ("pf", "infonce", "pa", "ms") for signal in ("saga", "contrast")]
    pairs = [(one, against) for one in signals for against in (baseline_of(profile, one.partition("_")[2]), baseline)]
    return [*dict.fromkeys(pairs), ("saga_pf", "saga_shuffled_in_group"), ("saga_pf", "saga_shuffled")]


def robustness_sentences(table: pd.DataFrame, profile: str, baseline: str) -> list[str]:
    """Return, for each of `headline_pairs`, whether other ways of drawing leave the answer as it is, by either metric."""
    sentences, pooled = [], _intervals(table[table["benchmark"] == POOLED])
    for pair in headline_pairs(profile, baseline):
        known = {key: interval for key, interval in pooled.get(pair, {}).items() if interval.side() is not None}
        verdicts = []
        for metric in ("R@1", "MAP@R"):
            of_metric = {drawn: interval for (of, drawn), interval in known.items() if of == metric}
            if len(of_metric) > 1:
                agree = len({interval.side() for interval in of_metric.values()}) == 1
                ways = "both" if len(of_metric) == 2 else f"all {len(of_metric)}"
                said = f"{ways} ways agree" if agree else "whether 0 is excluded depends on what is drawn"
                verdicts.append(f"About {metric}, {said}.")
        if known:
            parts = "; ".join(f"{of} {interval.text()} ({drawn})" for (of, drawn), interval in known.items())
            sentences.append(" ".join([f"{comparison_label(*pair)}, all benchmarks: {parts}.", *verdicts]))
    return sentences


# ------------------------------------------------------------------------------------- benchmarks as random effects


class Effects(NamedTuple):
    """What differences on several benchmarks say of the benchmarks that they could have been drawn from."""

    mean: Interval  # over such benchmarks
    tau: float  # standard deviation of the true differences between benchmarks, in points
    q: float  # Cochran's
    p: float  # of q if all benchmarks had the same true difference
    i2: float  # share of the observed variance that is between benchmarks, 0-1
    benchmarks: int


def random_effects(differences: Sequence[float], variances: Sequence[float]) -> Effects:
    """Return the random-effects mean of (k,) differences with given variances, its 95 % interval, and their heterogeneity.

    tau² is DerSimonian and Laird's, the interval Hartung and Knapp's with Student's t of k − 1 degrees of freedom, never narrower than
    its variances allow (their factor is at least 1), as is advised for so few. NaN, but for the mean, for one benchmark or where a
    variance is 0 or unknown.
    """
    from scipy.stats import chi2, t

    d, v = np.asarray(differences, dtype=np.float64), np.asarray(variances, dtype=np.float64)
    freedom, nan = len(d) - 1, float("nan")
    if not freedom or not (v > 0).all():
        return Effects(Interval(float(d.mean())), nan, nan, nan, nan, len(d))
    weights = 1 / v
    q = float((weights * (d - np.average(d, weights=weights)) ** 2).sum())
    tau2 = max(0.0, (q - freedom) / (weights.sum() - (weights**2).sum() / weights.sum()))
    weights = 1 / (v + tau2)
    mean = float(np.average(d, weights=weights))
    factor = max(1.0, float((weights * (d - mean) ** 2).sum()) / freedom)
    margin = float(t.ppf(0.975, freedom) * np.sqrt(factor / weights.sum()))
    i2 = max(0.0, 1 - freedom / q) if q else 0.0
    return Effects(Interval(mean, mean - margin, mean + margin), float(np.sqrt(tau2)), q, float(chi2.sf(q, freedom)), i2, len(d))


def heterogeneity(table: pd.DataFrame) -> pd.DataFrame:
    """Return, for each comparison of a `robustness_table` of several benchmarks and each metric, benchmarks as random effects.

    A benchmark's variance is that of its strictest way of drawing (`STRICTEST`). Columns: method, against, metric,
    drawn, difference, low, high, tau, Q, df, p, I2, pooled (equal weight, with Student's t over the benchmarks), above, below (the
    benchmarks whose interval is).
    """
    rows = []
    for (method, against), group in table.groupby(["method", "against"], sort=False):
        for metric in ("R@1", "MAP@R"):
            ways = {drawn: part for drawn, part in group[group["metric"] == metric].groupby("drawn") if drawn in STRICTEST}
            drawn = next((way for way in STRICTEST if way in ways), "")
            if not drawn:
                continue
            ways[drawn] = ways[drawn][ways[drawn]["benchmark"] != POOLED]
            found = {row.benchmark: Interval.of(row) for row in ways[drawn].itertuples()}
            if len(found) < 2:
                continue
            differences = np.array([one.difference for one in found.values()])
            effects = random_effects(differences, ways[drawn]["error"].to_numpy() ** 2)
            of = {side: ", ".join(name for name, one in found.items() if one.side() == side) for side in SIDES}
            rows.append(
                {"method": method, "against": against, "metric": metric, "drawn": drawn} | effects.mean._asdict()
                | {"tau": effects.tau, "Q": effects.q, "df": effects.benchmarks - 1, "p": effects.p, "I2": effects.i2}
                | t_interval([differences]).columns("pooled") | {"above": of[1], "below": of[-1]}
            )  # fmt: skip
    names = ("method", "against", "metric", "drawn", *Interval._fields, "tau", "Q", "df", "p", "I2")
    return pd.DataFrame(rows, columns=(*names, "pooled", "pooled low", "pooled high", "above", "below"))


def display_heterogeneity(table: pd.DataFrame) -> pd.DataFrame:
    """Return `heterogeneity` as text: a row per comparison and metric."""
    rows = [
        {
            "benchmarks as units": comparison_label(row["method"], row["against"]), "metric": row["metric"],
            "equal weight, t [95 %]": Interval.of(row, "pooled").text(), "random effects [95 %]": Interval.of(row).text(),
            "τ, points": _number(row["tau"], ".1f"), "Q (df)": f"{_number(row['Q'], '.1f')} ({row['df']})", "p": _number(row["p"], ".2g"),
            "I²": _number(row["I2"], ".2f"), "above 0 on": _short(row["above"]), "below 0 on": _short(row["below"]),
        }
        for row in table.to_dict("records")
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=None if rows else ["benchmarks as units"])


def _number(value: float, form: str) -> str:
    return "–" if value != value else format(value, form)


def _short(names: str) -> str:
    return ", ".join(map(short_name, names.split(", "))) if names else "–"


def heterogeneity_sentences(table: pd.DataFrame, profile: str, baseline: str) -> list[str]:
    """Return, for each of `headline_pairs`, what would hold for benchmarks like these, and whether sign or size depend on the benchmark."""
    sentences = []
    for pair in headline_pairs(profile, baseline):
        rows = table[(table["method"] == pair[0]) & (table["against"] == pair[1])].to_dict("records")
        if parts := [_dependence(row) for row in rows if row["Q"] == row["Q"]]:
            sentences.append(f"{comparison_label(*pair)}, benchmarks as units: {'; '.join(parts)}.")
    return sentences


def _dependence(row: Mapping[str, object]) -> str:
    """Return the mean over benchmarks like these, and whether the sign, or at least the size, of a difference depends on the benchmark."""
    mean, above, below = Interval.of(row), _short(row["above"]), _short(row["below"])
    p = f"p {row['p']:.2g}" if row["p"] >= 1e-4 else "p < 0.0001"
    start = f"{row['metric']} {mean.text()} (Q {row['Q']:.1f} on {row['df']} df, {p}, I² {row['I2']:.2f})"
    if row["above"] and row["below"]:
        return f"{start}, the sign depends on the benchmark: above 0 on {above}, below on {below}"
    if row["I2"] >= HIGH:
        told = "the size depends on the benchmark" if mean.side() else "the benchmarks differ, and the sign of another one is open"
        return f"{start}, {told}"
    return f"{start}, " + ("the benchmarks agree as far as can be told" if mean.side() else "the sign of another benchmark is open")
