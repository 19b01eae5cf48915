"""The answer over all benchmarks: does SAGA help, is it the reward, is there room?"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from saga_study.findings.differences import RunsByMethod, compared
from saga_study.findings.samples import POOLED, bootstrap_points, check_poolable, class_means, hits_of, seed_differences, t_interval
from saga_study.findings.words import SIDES, Interval, label, points, seed_remark

ANSWER_METHODS = ("saga_pf", "pf_grpo", "saga_shuffled", "oracle", "oracle_wrong", "pf_long")  # what the answer is about
DIRECT = {  # a signal against its own control
    ("saga_pf", "saga_shuffled"): "SAGA − shuffled advantages",
    ("saga_pf", "pf_attention"): "SAGA − PF with SAGA's pooler",
    ("saga_pf", "pf_long"): "SAGA − PF for SAGA's wall-clock",
    ("saga_pf", "pf_grpo"): "SAGA − PF + GRPO (what L_KL adds)",
    ("oracle", "oracle_wrong"): "oracle − wrong attributes",
}


def comparison_label(method: str, against: str) -> str:
    return DIRECT.get((method, against)) or f"{label(method)} − {label(against)}"


# -------------------------------------------------------------------------------------------------- the answer


def pooled_answer(runs_by_dataset: Mapping[str, RunsByMethod], baseline: str = "pf") -> pd.DataFrame:
    """Return differences of R@1 in points with 95 % intervals: per benchmark, then pooled over all of them.

    Every method is compared with `baseline`, and each of `DIRECT` with its control. Columns are the keys of `compared`. Raises
    `SagaError` for what must not be pooled: several versions of the code, several profiles, or a method that a benchmark lacks.
    """
    check_poolable(runs_by_dataset)
    first = next(iter(runs_by_dataset.values()))
    pairs = [(method, baseline) for method in first if method != baseline]
    pairs += [pair for pair in DIRECT if set(pair) <= set(first) and baseline not in pair]
    rows = [row for pair in pairs for row in compared(runs_by_dataset, *pair, pool_from=1)]
    return pd.DataFrame(rows, columns=["method", "against", "benchmark", "difference", "low", "high", "queries", "seeds"])


def display_answer(answer: pd.DataFrame) -> pd.DataFrame:
    """Return the answer as text: a row per comparison, a column per benchmark and one for all; points of R@1 [95 %]."""
    rows = [
        {"points of R@1 [95 %]": comparison_label(*pair)} | {row.benchmark: points(row) for row in group.itertuples()}
        for pair, group in answer.groupby(["method", "against"], sort=False) if pair[0] in ANSWER_METHODS
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=None if rows else ["points of R@1 [95 %]"])


def answer_sentences(answer: pd.DataFrame, baseline: str = "pf") -> list[str]:
    """Return the answer in sentences, read off the intervals of `pooled_answer`: does SAGA help, is it the reward, is there room?"""
    base = label(baseline)
    pooled = {(row.method, row.against): Interval.of(row) for row in answer[answer["benchmark"] == POOLED].itertuples()}
    saga, shuffled = pooled.get(("saga_pf", baseline)), pooled.get(("saga_shuffled", baseline))
    direct, oracle = pooled.get(("saga_pf", "saga_shuffled")), pooled.get(("oracle", baseline))
    sentences = []
    if saga:
        verdict = {
            1: "SAGA retrieves unseen classes better than", -1: "SAGA retrieves unseen classes worse than",
            0: "SAGA is not distinguishable from",
        }[saga.side()]  # fmt: skip
        unseen = f" Effects under about {(saga.high - saga.low) / 2:.1f} points would go unseen." if saga.side() == 0 else ""
        names = [name for name in answer["benchmark"].unique() if name != POOLED]
        where = f"{len(names)} benchmarks" if len(names) > 1 else names[0]
        sentences.append(f"{verdict} {base} over {where}: {saga.text()} points of R@1.{unseen}")
        sentences += _by_benchmark(answer, "saga_pf", baseline)
    if saga and shuffled and direct:
        sentences.append(_about_reward(saga, shuffled, direct, base))
    if oracle:
        sentences += _about_room(oracle, pooled.get(("oracle_wrong", baseline)), pooled.get(("oracle", "oracle_wrong")), saga, base)
    for method in ("pf_grpo", "pf_long"):
        if found := pooled.get((method, baseline)):
            sentences.append(f"{label(method)}: {SIDES[found.side()]} {base}, {found.text()} points.")
    for control in ("pf_attention", "pf_long", "pf_grpo"):
        if control != baseline and (found := pooled.get(("saga_pf", control))):
            sentences.append(f"SAGA: {SIDES[found.side()]} {label(control)}, {found.text()} points.")
    if not sentences:
        return [f"None of {', '.join(ANSWER_METHODS)} was run beside {base}: there is nothing to answer."]
    return [*sentences, seed_remark(answer["seeds"])]


def _by_benchmark(answer: pd.DataFrame, method: str, baseline: str) -> list[str]:
    rows = answer[(answer["method"] == method) & (answer["against"] == baseline) & (answer["benchmark"] != POOLED)]
    groups = {side: [row.benchmark for row in rows.itertuples() if Interval.of(row).side() == side] for side in SIDES}
    parts = "; ".join(f"{SIDES[side]} it on {', '.join(names)}" for side, names in groups.items() if names)
    return [f"SAGA against {label(baseline)}, benchmark by benchmark: {parts}."] if len(rows) > 1 else []


def _about_reward(saga: Interval, shuffled: Interval, direct: Interval, base: str) -> str:
    """Return whether a gain of SAGA is the reward's: its control has the same gradients with advantages dealt out at random."""
    helps = saga.side() > 0
    if direct.side() > 0:
        verdict = "the gain is the reward's" if helps else f"the reward matters, though SAGA does not beat {base}"
    elif direct.side() < 0:
        verdict = "the true reward does worse than a shuffled one, so what it adds is harm"
    elif helps and shuffled.side() > 0:
        verdict = "the control gains as well and is not distinguishable from SAGA, so no gain can be credited to the reward"
    elif helps:
        verdict = "SAGA gains and its control alone does not, but the two are not distinguishable; this stays open"
    else:
        verdict = "no effect of the reward seen"
    return f"With shuffled advantages: {shuffled.text()} points to {base}; SAGA − shuffled {direct.text()}: {verdict}."


def _about_room(oracle: Interval, wrong: Interval | None, direct: Interval | None, saga: Interval | None, base: str) -> list[str]:
    """Return what the true attributes, in place of the reward in the same training, leave to be gained by any reward."""
    if oracle.side() > 0:
        first = f"Room: given the true attributes, the same training gains {oracle.text()} points on {base}."
        first += f" SAGA's {saga.text()} is what the reward makes of it." if saga else ""
    elif oracle.side() < 0:
        first = f"No room: even given the true attributes, the same training does worse than {base} ({oracle.text()} points)"
        first += "; no reward about them can be expected to gain."
    else:
        first = f"No sign of room: given the true attributes, the same training is not distinguishable from {base} ({oracle.text()} points)"
        first += "; a reward cannot be judged by this."
    if not (wrong and direct):
        return [first]
    words = {1: "the truth matters", -1: "the truth does worse than falsehood", 0: "truth and falsehood are not distinguishable"}
    control = f"Given another class's attributes: {wrong.text()} points; oracle − wrong {direct.text()}: {words[direct.side()]}."
    return [first, control]


# ------------------------------------------------------------------------------------- other ways to draw intervals


def robustness_table(
    runs_by_dataset: Mapping[str, RunsByMethod], labels: Mapping[str, np.ndarray], answer: pd.DataFrame
) -> pd.DataFrame:
    """Return the comparisons of `answer` (of the same runs) with intervals drawn in three ways, per benchmark and pooled.

    Queries of one class are hit or missed together, and benchmarks of a few seeds say little about seeds, so beside the answer's
    interval (queries and seeds) there are two stricter ones: whole classes and seeds drawn, and Student's t over the seeds'
    differences (Welch-Satterthwaite when pooled; missing for one seed). MAP@R, which is kept per run only, has the last alone.
    labels: for each benchmark the classes (Q,) of its test queries. Columns: method, against, benchmark, metric, drawn,
    difference, low, high, in points.
    """
    rows = []
    for row in answer[answer["method"].isin(ANSWER_METHODS)].itertuples():
        names = list(runs_by_dataset) if row.benchmark == POOLED else [row.benchmark]
        by_class = [
            tuple(class_means(hits_of(runs_by_dataset[name][side]), labels[name]) for side in (row.method, row.against)) for name in names
        ]
        intervals = {("R@1", "queries and seeds"): Interval.of(row), ("R@1", "classes and seeds"): bootstrap_points(by_class)}
        for of in ("R@1", "MAP@R"):
            differences = [seed_differences(runs_by_dataset[name], row.method, row.against, of) for name in names]
            intervals[of, "seeds alone, t"] = t_interval(differences)
        rows += [(row.method, row.against, row.benchmark, *key, *interval) for key, interval in intervals.items()]
    return pd.DataFrame(rows, columns=["method", "against", "benchmark", "metric", "drawn", *Interval._fields])


def _pooled_intervals(table: pd.DataFrame) -> dict[tuple[str, str], dict[tuple[str, str], Interval]]:
    """Return the intervals over all benchmarks of a `robustness_table`, by (method, against), then by (metric, drawn)."""
    groups = table[table["benchmark"] == POOLED].groupby(["method", "against"], sort=False)
    return {pair: {(row.metric, row.drawn): Interval.of(row) for row in group.itertuples()} for pair, group in groups}


def display_robustness(table: pd.DataFrame) -> pd.DataFrame:
    """Return the pooled rows of `robustness_table` as text: a row per comparison, a column per way of drawing."""
    rows = [
        {"points [95 %], all benchmarks": comparison_label(*pair)} | {f"{of}, {drawn}": one.text() for (of, drawn), one in found.items()}
        for pair, found in _pooled_intervals(table).items()
    ]
    return pd.DataFrame(rows, columns=None if rows else ["points [95 %], all benchmarks"])


def robustness_sentences(table: pd.DataFrame) -> list[str]:
    """Return, for SAGA against the baseline and against shuffled advantages, whether stricter ways of drawing leave the answer as it is."""
    sentences = []
    for (method, against), found in _pooled_intervals(table).items():
        if method != "saga_pf" or (method, against) in DIRECT and against != "saga_shuffled":
            continue
        known = {key: interval for key, interval in found.items() if interval.side() is not None}
        parts = "; ".join(f"{of} {interval.text()} ({drawn})" for (of, drawn), interval in known.items())
        agree = len({interval.side() for (of, _), interval in known.items() if of == "R@1"}) == 1
        verdict = "whether 0 is excluded depends on what is drawn"
        if agree:
            verdict = "all three ways agree" if len(known) == len(found) else "those with an interval agree"
        sentences.append(f"{comparison_label(method, against)}, all benchmarks: {parts}. About R@1, {verdict}.")
    return sentences
