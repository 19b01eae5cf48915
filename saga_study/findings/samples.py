"""Runs grouped and checked for a table; their hits, metrics and intervals over seeds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from saga_lib.common.errors import SagaError
from saga_lib.common.files import read_json
from saga_lib.config import RunConfig
from saga_lib.records import Run
from saga_study.findings.bootstrap import pooled_bootstrap, students_margin
from saga_study.findings.words import Interval, label
from saga_study.miniature.world import benchmark_spec, is_miniature
from saga_study.runs.packing import plain_by_class

# Rows of saved tables that sum up others.
POOLED = "all, equal weight"  # benchmark: the mean of the benchmarks' differences
ALL_ATTRIBUTES = "mean of attributes"
FEWEST_FAMILIES = 4  # fewer say nothing of other families; intervals are over classes then
LATER = "later"  # step: all audited ones but the first, since late in training few pairs contribute on any one of them


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
    """Raise `SagaError`, naming runs, unless these runs of one benchmark belong in one table.

    Refused: no runs; smoke results among others, or another profile than the study's; several datasets; several
    versions of the code or of the data; a method whose runs differ in more than the seed; missing or repeated seeds.
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
    wanted = set(seeds) if seeds is not None else {run.config.seed for run in runs if not is_seedless(run.config)}
    for method, group in runs_by_method.items():
        if len({replace(run.config, seed=0) for run in group}) > 1:
            raise SagaError(f"the runs of {method} differ in more than the seed; give each setting its own row")
        have = [run.config.seed for run in group]
        if len(set(have)) < len(have):
            raise SagaError(f"a seed of {method} stands twice in the table: {sorted(have)}")
        if not is_seedless(group[0].config) and (missing := sorted(wanted - set(have))):
            raise SagaError(
                f"{method} on {group[0].config.dataset} lacks seed {', '.join(map(str, missing))}; "
                "finish the study (./run_all.sh --resume) or ask for fewer seeds"
            )


def _same(what: str, values: Mapping[Run, str], remedy: str) -> None:
    if len(set(values.values())) > 1:
        one = {value: run for run, value in values.items()}
        two = " and ".join(f"{value} (run {run.key}, {run.config.method})" for value, run in list(one.items())[:2])
        raise SagaError(f"the table would mix more than one {what}: {two}; {remedy}")


def is_seedless(config: RunConfig) -> bool:
    """Return whether a method does not depend on the seed, so that one run stands for all."""
    return not config.steps and not config.epochs


def by_seed(runs: Sequence[Run]) -> list[Run]:
    return sorted(runs, key=lambda run: run.config.seed)


def hits_of(runs: Sequence[Run]) -> np.ndarray:
    """Return (seeds, queries) hits, rows in order of the seed, as the bootstrap pairs them."""
    return np.stack([run.hits for run in by_seed(runs)])


def seed_values(runs_by_method: Mapping[str, Sequence[Run]], name: str = "R@1") -> dict[str, list[float]]:
    """Return a metric of every seed per method, as tables print it."""
    return {method: [metric(run, name) for run in by_seed(runs)] for method, runs in runs_by_method.items()}


def query_agreement(runs_by_method: Mapping[str, Sequence[Run]], method: str, baseline: str) -> pd.DataFrame:
    """Return, per seed, how many queries both methods hit at rank 1, only one does, and none does."""
    rows = []
    for run, other in zip(by_seed(runs_by_method[method]), by_seed(runs_by_method[baseline]), strict=True):
        a, b = run.hits, other.hits
        counts = {"both": a & b, f"only {label(method)}": a & ~b, f"only {label(baseline)}": ~a & b, "neither": ~a & ~b}
        rows.append({"seed": run.config.seed} | {name: int(hit.sum()) for name, hit in counts.items()})
    return pd.DataFrame(rows)


def of_all_benchmarks(runs_by_dataset: Mapping[str, Mapping[str, list[Run]]]) -> dict[str, dict[str, list[Run]]]:
    """Return the runs of those methods that every benchmark has: only these can be pooled."""
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


def class_means(hits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return (S, C) hits summed by class, relative to a class of mean size; hits (S, Q), labels (Q,) of C classes.

    Families of classes are summed up in the same way, and (S, C) values of classes by the family of each class.
    """
    if len(labels) != hits.shape[1]:
        raise SagaError(f"{len(labels)} labels for {hits.shape[1]} queries; they must be of the test split the runs were scored on")
    _, index, counts = np.unique(labels, return_inverse=True, return_counts=True)
    return np.stack([np.bincount(index, row) for row in hits]) / counts.mean()


def clustered_hits(runs: Sequence[Run], labels: np.ndarray | None = None) -> np.ndarray:
    """Return (S, U) hits of what a bootstrap draws: families of classes, since siblings are hit or missed together (`drawn_together`).

    labels: classes (Q,) of the queries. None: those of a miniature benchmark, whose classes are equally large; else each query is drawn
    by itself. Rows are in order of the seed, and their means are the runs' R@1.
    """
    hits, dataset = hits_of(runs), runs[0].config.dataset
    if labels is None:
        classes = len(plain_by_class(runs[0].evaluation) or ()) if is_miniature(dataset) else 0
        if not classes or hits.shape[1] % classes:
            return hits.astype(np.float64)
        labels = np.repeat(np.arange(classes), hits.shape[1] // classes)
    return class_means(hits, drawn_together(dataset, labels))


def clustered_map(runs: Sequence[Run], labels: np.ndarray | None = None) -> np.ndarray | None:
    """Return (S, U) MAP@R, 0-1, of what a bootstrap draws, families of classes; None for runs that have it as a whole only.

    labels: as `map_by_class` takes them.
    """
    by_class = map_by_class(runs, labels)
    return None if by_class is None else class_means(by_class, drawn_together(runs[0].config.dataset, np.arange(by_class.shape[1])))


def families(dataset: str, classes: np.ndarray) -> np.ndarray:
    """Return the family of each class index of an evaluated split; classes of a benchmark without families are each their own."""
    return np.asarray(classes) // (benchmark_spec(dataset).family_size if is_miniature(dataset) else 1)


def drawn_together(dataset: str, classes: np.ndarray) -> np.ndarray:
    """Return what a bootstrap draws each class with: its family, or it alone where families are fewer than `FEWEST_FAMILIES`."""
    family = families(dataset, classes)
    return family if len(np.unique(family)) >= FEWEST_FAMILIES else np.asarray(classes)


def map_by_class(runs: Sequence[Run], labels: np.ndarray | None = None) -> np.ndarray | None:
    """Return (seeds, C) MAP@R of the classes, 0-1, each weighed by its number of images so that their mean is the run's MAP@R.

    labels: classes (Q,) of the queries; None: classes are equally large. None for runs that have MAP@R as a whole only.
    """
    by_class = [plain_by_class(run.evaluation) for run in by_seed(runs)]
    if any(values is None for values in by_class):
        return None
    counts = np.ones(len(by_class[0])) if labels is None else np.bincount(labels)
    if any(len(values) != len(counts) for values in by_class):
        raise SagaError(f"MAP@R of {len(by_class[0])} classes for labels of {len(counts)}; they must be of the test split")
    return np.array(by_class) * counts / counts.mean()


def mean_metric(runs: Sequence[Run], name: str) -> float:
    return sum(metric(run, name) for run in runs) / len(runs)


def fewest_seeds(groups: Iterable[Sequence[Run]]) -> int:
    """Return the smallest number of seeds among some methods' runs; a method without training has one run for all seeds."""
    return min((len(runs) for runs in groups if not is_seedless(runs[0].config)), default=1)


# ------------------------------------------------------------------------------------------------ intervals


def bootstrap_points(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> Interval:
    """Return a difference in points over benchmarks of equal weight, bootstrapped over units (families, queries) and seeds.

    pairs: for each benchmark the scores (Sa, U) and (Sb, U) of both methods, as `pooled_bootstrap` takes them.
    """
    return Interval(*(100 * value for value in pooled_bootstrap(pairs).values()))


def paired_points(runs: Sequence[Run], others: Sequence[Run]) -> Interval:
    """Return the difference of R@1 between two methods on one benchmark, over families and the seeds that both have."""
    seeds = {run.config.seed for run in runs} & {run.config.seed for run in others}
    hits, other_hits = (clustered_hits([run for run in side if run.config.seed in seeds]) for side in (runs, others))
    return bootstrap_points([(hits, other_hits)])


def seed_differences(runs: Mapping[str, Sequence[Run]], method: str, against: str, name: str) -> np.ndarray:
    """Return (S,) differences of a metric seed by seed; of unequal numbers of seeds the one difference of their means."""
    a, b = (np.array([metric(run, name) for run in by_seed(runs[side])]) for side in (method, against))
    return a - b if len(a) == len(b) else np.array([a.mean() - b.mean()])


def t_interval(differences: Sequence[np.ndarray], confidence: float = 0.95) -> Interval:
    """Return the mean of the benchmarks' mean differences (S,) with Student's t interval over seeds (Welch-Satterthwaite).

    Without an interval for one seed, and where all seeds give the same number: two runs alike do not make a method certain.
    """
    mean = float(np.mean([own.mean() for own in differences]))
    if min(len(own) for own in differences) < 2:
        return Interval(mean)
    variances = [own.var(ddof=1) / len(own) / len(differences) ** 2 for own in differences]
    margin = students_margin(variances, [len(own) - 1 for own in differences], confidence)
    return Interval(mean, mean - margin, mean + margin) if margin else Interval(mean)


def map_points(groups: Sequence[tuple[Sequence[Run], Sequence[Run], np.ndarray | None]]) -> Interval:
    """Return the difference of MAP@R in points over benchmarks of equal weight, bootstrapped over families of classes and seeds.

    groups: for each benchmark the runs of both methods and the labels of its queries, as `map_by_class` takes them. Where runs have no
    MAP@R by class it is Student's t interval over seeds.
    """
    drawn = [tuple(clustered_map(side, labels) for side in sides) for *sides, labels in groups]
    if all(values is not None for pair in drawn for values in pair):
        return bootstrap_points(drawn)
    return t_interval([seed_differences({"a": a, "b": b}, "a", "b", "MAP@R") for a, b, _ in groups])
