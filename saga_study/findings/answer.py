"""The answer over all benchmarks: does SAGA help, is it the reward, is there room?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from saga_lib.records import Run
from saga_lib.retrieval import pooled_bootstrap
from saga_study.findings.samples import POOLED, check_poolable, class_means, hits_of, is_seedless, seed_differences, t_interval
from saga_study.methods import METHOD_LABELS

ANSWER_METHODS = ("saga_pf", "pf_grpo", "saga_shuffled", "oracle", "oracle_wrong", "pf_long")  # what the answer speaks of
DIRECT = {  # a signal against its own control
    ("saga_pf", "saga_shuffled"): "SAGA − shuffled advantages",
    ("saga_pf", "pf_attention"): "SAGA − PF with SAGA's pooler",
    ("saga_pf", "pf_long"): "SAGA − PF for SAGA's wall-clock",
    ("saga_pf", "pf_grpo"): "SAGA − PF + GRPO (what L_KL adds)",
    ("oracle", "oracle_wrong"): "oracle − wrong attributes",
}


def pooled_answer(runs_by_dataset: Mapping[str, Mapping[str, Sequence[Run]]], baseline: str = "pf") -> pd.DataFrame:
    """Return differences of R@1 in points with 95 % intervals: per benchmark, then pooled over all of them.

    Every method is compared with `baseline`, and each of `DIRECT` with its control. Columns: method, against,
    benchmark (`POOLED` for the mean of the benchmarks' differences, equal weight), difference, low, high, queries, seeds (of the
    fewest). Queries and seeds are resampled within each benchmark. Raises `SagaError` for what must not be pooled: several
    versions of the code, several profiles, or a method that a benchmark lacks.
    """
    check_poolable(runs_by_dataset)
    first = next(iter(runs_by_dataset.values()))
    pairs = [(method, baseline) for method in first if method != baseline]
    pairs += [pair for pair in DIRECT if set(pair) <= set(first) and baseline not in pair]
    rows = []
    for method, against in pairs:
        hits = {name: (hits_of(runs[method]), hits_of(runs[against])) for name, runs in runs_by_dataset.items()}
        for name, pair in [*hits.items(), (POOLED, None)]:
            used = list(hits.values()) if pair is None else [pair]
            seeds = [len(runs[m]) for n, runs in runs_by_dataset.items() for m in (method, against)
                     if name in (n, POOLED) and not is_seedless(runs[m][0].config)]  # fmt: skip
            row = {"method": method, "against": against, "benchmark": name}
            row |= {key: 100 * value for key, value in pooled_bootstrap(used).items()}
            rows.append(row | {"queries": sum(a.shape[1] for a, _ in used), "seeds": min(seeds, default=1)})
    return pd.DataFrame(rows, columns=["method", "against", "benchmark", "difference", "low", "high", "queries", "seeds"])


def answer_sentences(answer: pd.DataFrame, baseline: str = "pf") -> list[str]:
    """Return the answer in sentences, read off the intervals of `pooled_answer`: does SAGA help, is it the reward, is there room?"""
    base = METHOD_LABELS.get(baseline, baseline)
    pooled = {(row.method, row.against): row for row in answer[answer["benchmark"] == POOLED].itertuples()}
    saga, shuffled = pooled.get(("saga_pf", baseline)), pooled.get(("saga_shuffled", baseline))
    direct, oracle = pooled.get(("saga_pf", "saga_shuffled")), pooled.get(("oracle", baseline))
    sentences = []
    if saga:
        told = {
            1: "SAGA retrieves unseen classes better than", -1: "SAGA retrieves unseen classes worse than",
            0: "SAGA cannot be told apart from",
        }[_sign(saga)]  # fmt: skip
        unseen = f" Effects under about {(saga.high - saga.low) / 2:.1f} points would go unseen." if _sign(saga) == 0 else ""
        sentences.append(f"{told} {base} over {_benchmarks(answer)}: {_points(saga)} points of R@1.{unseen}")
        sentences += _by_benchmark(answer, "saga_pf", baseline, "SAGA", base)
    if saga and shuffled and direct:
        sentences.append(_about_reward(saga, shuffled, direct, base))
    if oracle:
        sentences += _about_room(oracle, pooled.get(("oracle_wrong", baseline)), pooled.get(("oracle", "oracle_wrong")), saga, base)
    verdicts = {1: "above", -1: "below", 0: "not told apart from"}
    for method in ("pf_grpo", "pf_long"):
        if row := pooled.get((method, baseline)):
            sentences.append(f"{METHOD_LABELS[method]}: {verdicts[_sign(row)]} {base}, {_points(row)} points.")
    for control in ("pf_attention", "pf_long", "pf_grpo"):
        if control != baseline and (row := pooled.get(("saga_pf", control))):
            sentences.append(f"SAGA: {verdicts[_sign(row)]} {METHOD_LABELS[control]}, {_points(row)} points.")
    if sentences and (fewest := int(answer["seeds"].min())) < 5:
        sentences.append(
            "One seed: the intervals cover the choice of queries only." if fewest == 1
            else f"{fewest} seeds where there are fewest: the intervals are known to be too narrow for the variation between seeds."
        )
    return sentences or [f"None of {', '.join(ANSWER_METHODS)} was run beside {base}: there is nothing to answer."]


def _about_reward(saga: tuple, shuffled: tuple, direct: tuple, base: str) -> str:
    """Return whether a gain of SAGA is the reward's: its control has the same gradients, dealt out at random."""
    control, told = f"With shuffled advantages: {_points(shuffled)} points to {base}", f"SAGA − shuffled {_points(direct)}"
    if _sign(direct) > 0:
        owed = "the gain is the reward's" if _sign(saga) > 0 else f"the reward matters, though SAGA does not beat {base}"
        return f"{control}; {told}: {owed}."
    if _sign(direct) < 0:
        return f"{control}; {told}: the true reward does worse than a shuffled one, so what it adds is harm."
    if _sign(saga) > 0 and _sign(shuffled) > 0:
        return f"{control}; {told}: the control gains as well and cannot be told apart from SAGA, so no gain can be credited to the reward."
    if _sign(saga) > 0:
        return f"{control}; {told}: SAGA gains and its control alone does not, but the two cannot be told apart; open."
    return f"{control}; {told}: no effect of the reward seen."


def _about_room(oracle: tuple, wrong: tuple | None, direct: tuple | None, saga: tuple | None, base: str) -> list[str]:
    """Return what attribute truth, fed through the same path, leaves to be gained by any reward."""
    if _sign(oracle) > 0:
        sentences = [f"Room: told the true attributes, the same path gains {_points(oracle)} points on {base}."]
        if saga:
            sentences[0] += f" SAGA's {_points(saga)} is what the reward makes of it."
    elif _sign(oracle) < 0:
        told = f"even told the true attributes, the same path does worse than {base} ({_points(oracle)} points)"
        sentences = [f"No room: {told}; no reward about them can be expected to gain."]
    else:
        told = f"told the true attributes, the same path cannot be told apart from {base} ({_points(oracle)} points)"
        sentences = [f"No sign of room: {told}; a reward cannot be judged by this."]
    if wrong and direct:
        words = {1: "the truth matters", -1: "the truth does worse than falsehood", 0: "truth and falsehood cannot be told apart"}
        verdict = words[_sign(direct)]
        sentences.append(f"Told another class's attributes: {_points(wrong)} points; oracle − wrong {_points(direct)}: {verdict}.")
    return sentences


def _by_benchmark(answer: pd.DataFrame, method: str, baseline: str, label: str, base: str) -> list[str]:
    rows = answer[(answer["method"] == method) & (answer["against"] == baseline) & (answer["benchmark"] != POOLED)]
    if len(rows) < 2:
        return []
    groups = {sign: [row.benchmark for row in rows.itertuples() if _sign(row) == sign] for sign in (1, -1, 0)}
    words = {1: "above", -1: "below", 0: "not told apart"}
    told = "; ".join(f"{words[sign]} on {', '.join(names)}" for sign, names in groups.items() if names)
    return [f"{label} against {base}, benchmark by benchmark: {told}."]


def _benchmarks(answer: pd.DataFrame) -> str:
    names = [name for name in answer["benchmark"].unique() if name != POOLED]
    return f"{len(names)} benchmarks" if len(names) > 1 else names[0]


def _sign(row: tuple) -> int:
    """Return 1 or -1 for an interval above or below 0, 0 for one that includes it."""
    return int(row.low > 0) - int(row.high < 0)


def _points(row: tuple) -> str:
    return f"{row.difference:+.1f} [{row.low:+.1f}, {row.high:+.1f}]".replace("-", "−")


def display_answer(answer: pd.DataFrame, baseline: str = "pf") -> pd.DataFrame:
    """Return the answer as text: a row per comparison, a column per benchmark and one for all; points of R@1 [95 %]."""
    rows = []
    for (method, against), group in answer.groupby(["method", "against"], sort=False):
        if method in ANSWER_METHODS:
            label = DIRECT.get((method, against)) or f"{METHOD_LABELS.get(method, method)} − {METHOD_LABELS.get(against, against)}"
            rows.append({"points of R@1 [95 %]": label} | {row.benchmark: _points(row) for row in group.itertuples()})
    return pd.DataFrame(rows, columns=None if rows else ["points of R@1 [95 %]"])


def robustness_table(
    runs_by_dataset: Mapping[str, Mapping[str, Sequence[Run]]], labels: Mapping[str, np.ndarray], answer: pd.DataFrame
) -> pd.DataFrame:
    """Return the comparisons of `answer` (of the same runs) with intervals drawn in three ways, per benchmark and pooled.

    Queries of one class share their fate, and benchmarks of a few seeds say little about seeds, so the answer's interval
    (queries and seeds) is held against two stricter ones: whole classes and seeds drawn, and Student's t over the seeds'
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
        intervals = {
            ("R@1", "queries and seeds"): {side: getattr(row, side) for side in ("difference", "low", "high")},
            ("R@1", "classes and seeds"): {side: 100 * value for side, value in pooled_bootstrap(by_class).items()},
        }
        for of in ("R@1", "MAP@R"):
            differences = [seed_differences(runs_by_dataset[name], row.method, row.against, of) for name in names]
            intervals[of, "seeds alone, t"] = t_interval(differences)
        rows += [
            {"method": row.method, "against": row.against, "benchmark": row.benchmark, "metric": of, "drawn": way} | interval
            for (of, way), interval in intervals.items()
        ]
    return pd.DataFrame(rows, columns=["method", "against", "benchmark", "metric", "drawn", "difference", "low", "high"])


def display_robustness(table: pd.DataFrame) -> pd.DataFrame:
    """Return the pooled rows of `robustness_table` as text: a row per comparison, a column per way of drawing."""
    rows = []
    for (method, against), group in table[table["benchmark"] == POOLED].groupby(["method", "against"], sort=False):
        label = DIRECT.get((method, against)) or f"{METHOD_LABELS.get(method, method)} − {METHOD_LABELS.get(against, against)}"
        told = {f"{row.metric}, {row.drawn}": _points(row) if row.low == row.low else f"{row.difference:+.1f}".replace("-", "−")
                for row in group.itertuples()}  # fmt: skip
        rows.append({"points [95 %], all benchmarks": label} | told)
    return pd.DataFrame(rows, columns=None if rows else ["points [95 %], all benchmarks"])


def robustness_sentences(table: pd.DataFrame) -> list[str]:
    """Return, for SAGA against the baseline and against shuffled advantages, whether stricter ways of drawing leave the answer as it is."""
    saga, sentences = table[(table["benchmark"] == POOLED) & (table["method"] == "saga_pf")], []
    for (method, against), group in saga.groupby(["method", "against"], sort=False):
        if (method, against) in DIRECT and against != "saga_shuffled":
            continue
        label = DIRECT.get((method, against)) or f"{METHOD_LABELS.get(method, method)} − {METHOD_LABELS.get(against, against)}"
        known = [row for row in group.itertuples() if row.low == row.low]
        told = "; ".join(f"{row.metric} {_points(row)} ({row.drawn})" for row in known)
        signs = {_sign(row) for row in known if row.metric == "R@1"}
        verdict = "all three ways agree" if len(signs) == 1 and len(known) == 4 else (
            "the ways known agree" if len(signs) == 1 else "whether 0 is excluded depends on what is drawn")  # fmt: skip
        sentences.append(f"{label}, all benchmarks: {told}. About R@1, {verdict}.")
    return sentences
