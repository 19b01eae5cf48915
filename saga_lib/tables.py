"""Tables: the measured runs of a study beside the paper's numbers, with intervals on the differences.

Three kinds of numbers never share a column: the paper's (full scale), ours (the study's profile) and differences.
Recall@K and MAP@R are in percent, NMI in 0-1, as the paper prints them; differences are in points of R@1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from saga_lib.config import METHOD_LABELS, RunConfig, with_seed
from saga_lib.errors import SagaError, unknown_name
from saga_lib.files import read_json
from saga_lib.paths import PAPER_TABLES
from saga_lib.retrieval import paired_bootstrap, pooled_bootstrap
from saga_lib.runs import Run

RECALL_KS = (1, 2, 4, 8)
PAPER_DATASETS = {"cub200": "CUB", "cars196": "Cars", "aircraft": "Aircraft", "inat_aves": "iNat-Aves"}
# The paper's dataset that a miniature benchmark stands in for; the numbers beside each other are not comparable.
PAPER_COUNTERPART = {
    "miniature_birds": "cub200", "miniature_cars": "cars196", "miniature_aircraft": "aircraft", "miniature_aves": "inat_aves",
} | {name: name for name in PAPER_DATASETS}  # fmt: skip
NOTHING = "–"


# ------------------------------------------------------------------------------------------ measured runs


def main_table(
    runs_by_method: Mapping[str, Sequence[Run]], baseline: str = "pf", ks: Sequence[int] = RECALL_KS,
    seeds: Sequence[int] | None = None, profile: str | None = None, notebook: str = "04_main_results",
) -> pd.DataFrame:  # fmt: skip
    """Return one numbered row per method: means and standard deviations over seeds, and the difference of R@1.

    The difference is to the bare DML loss `baseline`, with a paired-bootstrap 95 % interval over queries and
    seeds. `seeds` and `profile` say what the study promises; without them the runs must agree among themselves.
    The standard deviation is the sample one (n - 1), missing for a single seed. `runs` and `notebook` say where
    a row comes from. Raises `SagaError` for what must not stand in one table (see `check_runs`).
    """
    check_runs(runs_by_method, seeds, profile)
    if baseline not in runs_by_method:
        raise SagaError(f"the table compares with {baseline}, which is not among its methods; add it to METHODS")
    reference = hits_of(runs_by_method[baseline])
    rows = []
    for number, (method, runs) in enumerate(runs_by_method.items(), 1):
        row = {"row": number, "method": method, "label": METHOD_LABELS.get(method, method)}
        for name in [*(f"R@{k}" for k in ks), "MAP@R", "NMI"]:
            values = [metric(run, name) for run in runs]
            row[name] = float(np.mean(values))
            row[f"{name} std"] = float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")
        row["seeds"] = len(runs)
        if method == baseline:
            difference = dict.fromkeys(("difference", "low", "high"), float("nan"))
        else:
            difference = {k: 100 * v for k, v in paired_bootstrap(hits_of(runs), reference).items()}
        row |= difference
        row["steps"] = runs[0].evaluation["steps"]
        row["seconds"] = float(np.mean([run.evaluation["seconds"] for run in runs]))
        row["notebook"], row["runs"] = notebook, " ".join(run.key for run in _by_seed(runs))
        rows.append(row)
    return pd.DataFrame(rows)


def group_runs(runs: Sequence[Run]) -> dict[str, dict[str, list[Run]]]:
    """Return runs by dataset and method, in the order given."""
    grouped: dict[str, dict[str, list[Run]]] = {}
    for run in runs:
        grouped.setdefault(run.config.dataset, {}).setdefault(run.config.method, []).append(run)
    return grouped


def metric(run: Run, name: str) -> float:
    """Return a metric of a run as tables print it: R@K and MAP@R in percent, NMI in 0-1."""
    if name.startswith("R@"):
        recall = run.evaluation["recall"]
        if name[2:] not in recall:
            raise SagaError(f"run {run.key} has no {name}; it was evaluated at K = {', '.join(recall)}")
        return 100 * recall[name[2:]]
    return {"MAP@R": 100 * run.evaluation["map_at_r"], "NMI": run.evaluation["nmi"]}[name]


def check_runs(
    runs_by_method: Mapping[str, Sequence[Run]], seeds: Sequence[int] | None = None, profile: str | None = None
) -> None:
    """Raise `SagaError`, naming runs, unless these belong in one table.

    Refused: no runs; smoke results among others, or another profile than the study's; several datasets; several
    versions of the code or of the data; a method whose runs differ in more than the seed; missing seeds.
    """
    runs = [run for group in runs_by_method.values() for run in group]
    if empty := [method for method, group in runs_by_method.items() if not group]:
        raise SagaError(f"the table has no run of {', '.join(empty)}; run the study again with these methods")
    if not runs:
        raise SagaError("the table has no runs; name at least one method")
    profiles = {run.config.profile: run for run in runs}
    expected = profile or next((name for name in profiles if name != "smoke"), runs[0].config.profile)
    for name, run in profiles.items():
        if name != expected:
            raise SagaError(
                f"run {run.key} ({run.config.method}, seed {run.config.seed}) is of profile {name}, the table of "
                f"{expected}: their numbers must not be mixed; train it with profile {expected}"
            )
    _same("dataset", {run: run.config.dataset for run in runs}, "make one table per dataset")
    records = {run: read_json(run.folder / "config.json") for run in runs}
    _same("code version", {run: record["code"] for run, record in records.items()}, "train the older runs again")
    inputs = {run: f"benchmark {record['inputs']['benchmark']}" for run, record in records.items()}
    _same("data version", inputs, "train the older runs again")
    wanted = set(seeds) if seeds is not None else {run.config.seed for run in runs if not _is_seedless(run.config)}
    for method, group in runs_by_method.items():
        if len({with_seed(run.config, 0) for run in group}) > 1:
            raise SagaError(f"the runs of {method} differ in more than the seed; give each setting its own row")
        have = [run.config.seed for run in group]
        if len(set(have)) < len(have):
            raise SagaError(f"a seed of {method} stands twice in the table: {sorted(have)}")
        if not _is_seedless(group[0].config) and (missing := sorted(wanted - set(have))):
            raise SagaError(
                f"{method} on {group[0].config.dataset} lacks seed {', '.join(map(str, missing))}; "
                "finish the study (./run_all.sh --resume) or ask for fewer seeds"
            )


def _same(what: str, values: Mapping[Run, str], remedy: str) -> None:
    if len(set(values.values())) > 1:
        one = {value: run for run, value in values.items()}
        told = " and ".join(f"{value} (run {run.key}, {run.config.method})" for value, run in list(one.items())[:2])
        raise SagaError(f"the table would mix more than one {what}: {told}; {remedy}")


def _is_seedless(config: RunConfig) -> bool:
    """Return whether a method does not depend on the seed, so that one run stands for all."""
    return not config.steps and not config.epochs


def _by_seed(runs: Sequence[Run]) -> list[Run]:
    return sorted(runs, key=lambda run: run.config.seed)


def hits_of(runs: Sequence[Run]) -> np.ndarray:
    """Return (seeds, queries) hits, rows in order of the seed, as the bootstrap pairs them."""
    return np.stack([run.hits for run in _by_seed(runs)])


def seed_values(runs_by_method: Mapping[str, Sequence[Run]], name: str = "R@1") -> dict[str, list[float]]:
    """Return a metric of every seed per method, as tables print it."""
    return {method: [metric(run, name) for run in _by_seed(runs)] for method, runs in runs_by_method.items()}


def query_agreement(runs_by_method: Mapping[str, Sequence[Run]], method: str, baseline: str) -> pd.DataFrame:
    """Return, per seed, how many queries both methods hit at rank 1, only one does, and none does."""
    rows = []
    for run, other in zip(_by_seed(runs_by_method[method]), _by_seed(runs_by_method[baseline]), strict=True):
        a, b = run.hits, other.hits
        label, base = METHOD_LABELS.get(method, method), METHOD_LABELS.get(baseline, baseline)
        counts = {"both": a & b, f"only {label}": a & ~b, f"only {base}": ~a & b, "neither": ~a & ~b}
        rows.append({"seed": run.config.seed} | {name: int(hit.sum()) for name, hit in counts.items()})
    return pd.DataFrame(rows)


def conclusions(table: pd.DataFrame, baseline: str = "pf") -> list[str]:
    """Return one sentence per method on whether its R@1 differs from the baseline's, read off the interval."""
    base = table[table["method"] == baseline].iloc[0]
    level = f"R@1 {_mean(base, 'R@1', 1)} % over {base['seeds']} seed(s)"
    sentences = [f"{base['label']}: {level}; all differences are to it."]
    for _, row in table[table["method"] != baseline].iterrows():
        if row["low"] > 0:
            verdict = "above it: the interval excludes 0"
        elif row["high"] < 0:
            verdict = "below it: the interval excludes 0"
        else:
            verdict = "not told apart from it: the interval includes 0"
        sentences.append(f"{row['label']}: {_difference(row)} points, {verdict}.")
    most = int(table["seeds"].max())
    if most == 1:
        sentences.append("One seed: the intervals cover the choice of queries only.")
    elif most < 5:
        sentences.append(f"{most} seeds: the intervals are known to be too narrow for the variation between seeds.")
    return sentences


# ------------------------------------------------------------------------------------------- the answer

POOLED = "all, equal weight"
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
                     if name in (n, POOLED) and not _is_seedless(runs[m][0].config)]  # fmt: skip
            row = {"method": method, "against": against, "benchmark": name}
            row |= {key: 100 * value for key, value in pooled_bootstrap(used).items()}
            rows.append(row | {"queries": sum(a.shape[1] for a, _ in used), "seeds": min(seeds, default=1)})
    return pd.DataFrame(rows, columns=["method", "against", "benchmark", "difference", "low", "high", "queries", "seeds"])


def of_all_benchmarks(runs_by_dataset: Mapping[str, Mapping[str, list[Run]]]) -> dict[str, dict[str, list[Run]]]:
    """Return the runs of the methods that every benchmark has, which can be pooled."""
    everywhere = set.intersection(*(set(runs) for runs in runs_by_dataset.values())) if runs_by_dataset else set()
    return {name: {m: group for m, group in runs.items() if m in everywhere} for name, runs in runs_by_dataset.items()}


def check_poolable(runs_by_dataset: Mapping[str, Mapping[str, Sequence[Run]]]) -> None:
    """Raise `SagaError` unless the tables of several benchmarks belong together: same methods, code and profile."""
    if not runs_by_dataset:
        raise SagaError("there is no benchmark to pool; name at least one in DATASETS")
    methods = {name: set(runs) for name, runs in runs_by_dataset.items()}
    everywhere = set.union(*methods.values())
    for name, own in methods.items():
        if lacking := everywhere - own:
            raise SagaError(f"{name} lacks {', '.join(sorted(lacking))}, which other benchmarks have; run the study again with them")
    runs = [run for methods in runs_by_dataset.values() for group in methods.values() for run in group]
    _same("profile", {run: run.config.profile for run in runs}, "make one answer per profile")
    codes = {run: read_json(run.folder / "config.json")["code"] for run in runs}
    _same("code version", codes, "train the older runs again")


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
            tuple(_class_means(hits_of(runs_by_dataset[name][side]), labels[name]) for side in (row.method, row.against)) for name in names
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


def _class_means(hits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return (S, C): a class's hits, weighing as many queries as it has; hits (S, Q), labels (Q,)."""
    if len(labels) != hits.shape[1]:
        raise SagaError(f"{len(labels)} labels for {hits.shape[1]} queries; they must be of the test split the runs were scored on")
    _, index, counts = np.unique(labels, return_inverse=True, return_counts=True)
    return np.stack([np.bincount(index, row) for row in hits]) / counts.mean()


def seed_differences(runs: Mapping[str, Sequence[Run]], method: str, against: str, name: str) -> np.ndarray:
    """Return (S,) differences of a metric in points, seed by seed."""
    a, b = (np.array([metric(run, name) for run in _by_seed(runs[side])]) for side in (method, against))
    return a - b if len(a) == len(b) else np.array([a.mean() - b.mean()])


def t_interval(differences: Sequence[np.ndarray], confidence: float = 0.95) -> dict[str, float]:
    """Return the mean of the benchmarks' mean differences (S,) with Student's t interval over seeds."""
    from scipy.stats import t

    mean = float(np.mean([own.mean() for own in differences]))
    if min(len(own) for own in differences) < 2:
        return {"difference": mean, "low": float("nan"), "high": float("nan")}
    variances = np.array([own.var(ddof=1) / len(own) for own in differences]) / len(differences) ** 2
    if not variances.sum():
        return {"difference": mean, "low": mean, "high": mean}
    freedom = variances.sum() ** 2 / (variances**2 / np.array([len(own) - 1 for own in differences])).sum()
    margin = float(t.ppf((1 + confidence) / 2, freedom) * np.sqrt(variances.sum()))
    return {"difference": mean, "low": mean - margin, "high": mean + margin}


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


def joint_table(
    tables: Mapping[str, pd.DataFrame], answer: pd.DataFrame, profile: str, baseline: str = "pf",
    left_out: Mapping[str, Mapping[str, str]] | None = None,
) -> pd.DataFrame:  # fmt: skip
    """Return one table of all benchmarks as text: R@1 of every method on each, and the pooled difference to the baseline.

    `tables` maps each dataset to its `main_table`, `left_out` each to its methods without runs and the reason. The paper's numbers
    stand in the tables of single benchmarks.
    """
    pooled = answer[(answer["benchmark"] == POOLED) & (answer["against"] == baseline)].set_index("method")
    reasons = {name: dict((left_out or {}).get(name, {})) for name in tables}
    measured = {name: table.set_index("method") for name, table in tables.items()}
    # Those that all have come first, in order, then those that some or all lack.
    methods = dict.fromkeys(m for table in measured.values() for m in table.index if all(m in other.index for other in measured.values()))
    methods |= dict.fromkeys(m for table in measured.values() for m in table.index)
    methods |= dict.fromkeys(m for lacking in reasons.values() for m in lacking)
    rows = []
    for number, method in enumerate(methods, 1):
        row = {"#": number, "method": METHOD_LABELS.get(method, method)}
        for name, table in measured.items():
            shown = _mean(table.loc[method], "R@1", 1) if method in table.index else reasons[name].get(method, NOTHING)
            row[f"R@1 % {name.removeprefix('miniature_')}, ours ({profile})"] = shown
        difference = _difference(pooled.loc[method]) if method in pooled.index else NOTHING
        row[f"R@1 − {METHOD_LABELS.get(baseline, baseline)} in points, all benchmarks [95 %], ours ({profile})"] = difference
        seeds = [int(table.loc[method, "seeds"]) if method in table.index else 0 for table in measured.values()]
        rows.append(row | {"seeds": str(seeds[0]) if len(set(seeds)) == 1 else "/".join(map(str, seeds))})
    return pd.DataFrame(rows)


# ---------------------------------------------------------------------------------------- the paper's side


def paper_column(table: int | Sequence[int], dataset: str, embedding_dim: int | None = None) -> pd.DataFrame:
    """Return the paper's numbers of a dataset: index method label; columns `R@1`, …, each with ` std`.

    Several tables complete each other, the first that has a number wins; column `source` names the tables. Table 4 has
    several embedding sizes and gives those of `embedding_dim`.
    """
    tables = [table] if isinstance(table, int) else list(table)
    if dataset not in PAPER_COUNTERPART:
        raise unknown_name("dataset of the paper's tables", dataset, PAPER_COUNTERPART)
    found: dict[str, dict[str, object]] = {}
    for number in tables:
        path = PAPER_TABLES / f"table{number}.csv"
        if not path.is_file():
            raise SagaError(f"{path} does not exist; the paper has Tables 1-5")
        frame = pd.read_csv(path)
        if "embedding_dim" in frame:
            frame = frame[frame["embedding_dim"] == embedding_dim]
        for row in frame[frame["dataset"] == PAPER_COUNTERPART[dataset]].itertuples():
            values = found.setdefault(row.method, {"source": f"Table {number}"})
            if row.metric not in values:
                values |= {row.metric: row.value, f"{row.metric} std": row.std}
    return pd.DataFrame.from_dict(found, orient="index")


# -------------------------------------------------------------------------------------------- as people read it


def display_table(
    table: pd.DataFrame, dataset: str, profile: str, baseline: str = "pf", left_out: Mapping[str, str] | None = None
) -> pd.DataFrame:
    """Return Table 1 as text: the paper's numbers, ours, and differences, each in columns of their own.

    A dataset that the paper does not have gets no columns of the paper. `left_out` are methods without runs, with the reason.
    """
    is_known = dataset in PAPER_COUNTERPART
    paper = paper_column((1, 3), dataset) if is_known else pd.DataFrame()
    theirs = f"paper (full scale, {PAPER_DATASETS[PAPER_COUNTERPART[dataset]]})" if is_known else "paper"
    ours = f"ours ({profile})"
    base = METHOD_LABELS.get(baseline, baseline)
    rows = []
    for _, row in table.iterrows():
        printed = paper.loc[row["label"]] if row["label"] in paper.index else pd.Series(dtype=float)
        text = {"#": row["row"], "method": row["label"]}
        text[f"R@1 % {theirs}"] = _mean(printed, "R@1", 1)
        if printed.get("source", "Table 1") != "Table 1":
            text[f"R@1 % {theirs}"] += f" ({printed['source']})"
        text[f"R@1 % {ours}"] = _mean(row, "R@1", 1)
        text[f"R@1 − {base} in points [95 %] {ours}"] = NOTHING if row["method"] == baseline else _difference(row)
        text[f"R@4 % {theirs}"] = _mean(printed, "R@4", 1)
        text[f"R@4 % {ours}"] = _mean(row, "R@4", 1)
        text[f"NMI {theirs}"] = _mean(printed, "NMI", 2)
        text[f"NMI {ours}"] = _mean(row, "NMI", 2)
        text["seeds"] = row["seeds"]
        rows.append({name: cell for name, cell in text.items() if is_known or not name.endswith(theirs)})
    for number, (method, why) in enumerate((left_out or {}).items(), len(rows) + 1):
        text = {"#": number, "method": METHOD_LABELS.get(method, method)} | dict.fromkeys(list(rows[0])[2:], NOTHING)
        rows.append(text | {f"R@1 % {ours}": why, "seeds": 0})
    return pd.DataFrame(rows)


def detail_table(table: pd.DataFrame, profile: str) -> pd.DataFrame:
    """Return what the paper does not print, as text: R@2, R@8, MAP@R, steps, time, and where each row comes from."""
    ours = f"ours ({profile})"
    rows = []
    for _, row in table.iterrows():
        text = {"#": row["row"], "method": row["label"]}
        text |= {f"{name} % {ours}": _mean(row, name, 1) for name in ("R@2", "R@8", "MAP@R") if name in row}
        text |= {"steps": row["steps"], "seconds per run": f"{row['seconds']:.0f}", "notebook": row["notebook"]}
        text["run folders"] = row["runs"]
        rows.append(text)
    return pd.DataFrame(rows)


def _mean(row: pd.Series, name: str, digits: int) -> str:
    value, std = row.get(name, float("nan")), row.get(f"{name} std", float("nan"))
    if pd.isna(value):
        return NOTHING
    return f"{value:.{digits}f}" + ("" if pd.isna(std) else f" ± {std:.{digits}f}")


def _difference(row: pd.Series) -> str:
    return f"{row['difference']:+.1f} [{row['low']:+.1f}, {row['high']:+.1f}]".replace("-", "−")


# ------------------------------------------------------------------------------------------- the metrics page

# Legend: K contributing pairs, G rollouts, T all their tokens, r reward, A advantage; θ tower, φ pooler, ψ frozen.
METRICS: dict[str, tuple[str, str]] = {
    "step": ("s", "optimizer steps done, this one included"),
    "steps": ("S", "optimizer steps of the whole run"),
    "loss_dml": ("L_DML, summed over the step's micro-batches", "its scale depends on the loss chosen"),
    "loss_lm": ("L_GRPO = −(1/|T|) Σ_g Σ_t A_g log π_θ(y_t)", "no measure of progress: only its gradient is meant"),
    "loss_kl": ("mean over r = 1 answers of KL(ᾱ_a‖β_a) + KL(ᾱ_b‖β_b)", "nats; 0 when the pooler looks where ψ looks"),
    "grad_dml": ("‖λ_dml ∂L_DML/∂X‖", "at the tower's output, all images of the step"),
    "grad_lm": ("‖λ_lm ∂L_GRPO/∂(X, DeepStack)‖", "likewise; compare with grad_dml to choose λ_lm"),
    "grad_kl": ("‖λ_kl ∂L_KL/∂φ‖", "at the pooler's weights: KL reaches nothing else"),
    "grad_total": ("‖∂L/∂(θ, φ)‖ before clipping", "clipped to max_grad_norm; proxies are left out"),
    "lr_tower": ("lr_tower × (warm-up, then cosine)", "the step's learning rate of θ"),
    "pairs_drawn": ("number of pairs with G rollouts", "grows with the waves of dynamic sampling"),
    "contributing_pairs": ("min(K, pairs with 0 < mean r < 1)", "pairs replayed; fewer than K when waves ran out"),
    "contributing_fraction": ("pairs with 0 < mean r < 1 / pairs drawn", "how often rollouts of a pair disagree"),
    "contributing_same_class": ("same-class share of the contributing pairs", "0.5 would be balanced"),
    "reward_mean": ("mean r over all pairs drawn", "equals verdict_accuracy: only the verdict is rewarded"),
    "verdict_accuracy": ("mean r over all pairs drawn", "chance is 0.5: half the pairs are of one class"),
    "verdict_accuracy_same": ("mean r over same-class pairs", "low when one misread attribute makes 'different'"),
    "verdict_accuracy_different": ("mean r over different-class pairs", "low when a real difference is overlooked"),
    "json_valid": ("parseable answers / answers", "an invalid one is rewarded only if its verdict field is whole"),
    "truncated": ("answers cut at max_new_tokens / answers", "a truncated answer has no verdict, hence no reward"),
    "rollout_tokens": ("generated tokens of the step", "of all pairs drawn, contributing or not"),
    "tokens_per_second": ("rollout_tokens / seconds_b", "speed of generation"),
    "seconds_a": ("seconds of phase A", "first micro-batch: embed, DML backward to the boundary"),
    "seconds_b": ("seconds of phase B", "rollouts and rewards, further micro-batches included"),
    "seconds_c": ("seconds of phase C", "replay, KL, the one tower backward, update"),
    "seconds_audit": ("seconds of the gradient audit", "only on audited steps (notebook 12); no part of the method"),
    "seconds": ("seconds since the run's first step", "summed over resumptions"),
    "peak_gib": ("largest memory so far, GiB", "of the GPU, or of the process on a CPU"),
}


def metrics_page(logged: Sequence[str]) -> pd.DataFrame:
    """Return the meaning of every metric that a run logged; raises `SagaError` for one that nobody explained."""
    if unknown := [name for name in logged if name not in METRICS]:
        raise SagaError(f"metric {unknown[0]} is logged but not explained; add it to saga_lib.tables.METRICS")
    rows = [{"metric": n, "formula": METRICS[n][0], "reading": METRICS[n][1]} for n in METRICS if n in logged]
    return pd.DataFrame(rows)


PROTOCOL = pd.DataFrame(  # App. A of the paper
    [
        ("CUB-200-2011", "11,788", 200, "first 100 / last 100", "no box crop"),
        ("Cars-196", "16,185", 196, "first 98 / last 98", "no box crop"),
        ("FGVC-Aircraft", "about 10,000", 100, "first 50 / last 50, alphabetical", "trainval and test pooled first"),
        ("iNat-Aves", "about 74,300", 1486, "first 743 / last 743, sorted", "Aves of train_mini (iNat-2021), 50 each"),
    ],
    columns=["dataset (paper, App. A)", "images", "classes", "train / test classes", "notes"],
)
