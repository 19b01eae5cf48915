"""Few labels: how well unseen classes are told apart with a few labelled images of each, on embeddings that stay as they are.

The protocol. A draw goes once through the test classes of a benchmark, in episodes: of a miniature benchmark each family of siblings is
one, since telling siblings apart is what is hard there (with all classes at once most mistakes are among them, too) and families are
independent of each other, as what intervals draw should be; classes without families are dealt at random into episodes of about `WAY`,
anew in every draw. In an episode the images of each class are put in a random
order: with k labels the first k are labelled and all others are queries, so that more labels add to fewer, and the same images are
labelled for every method and seed. Classes of 12 images leave 11, 7 and 2 queries with 1, 5 and 10 labels. An image is never
labelled and asked for at once.

Two classifiers of scikit-learn with its own settings, none of them tuned: the nearest class mean, which with one label is the nearest
labelled image, and a logistic regression. A class's accuracy is the share of its queries that are named rightly, mean over draws.
Intervals are over seeds and families (without families: classes), each with all of its episodes, because episodes of one family share
images.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product

import numpy as np
import pandas as pd

from saga_lib.common.errors import SagaError
from saga_lib.records import Run
from saga_study.findings.samples import POOLED, bootstrap_points, by_seed, class_means, drawn_together, families, fewest_seeds
from saga_study.findings.words import NOTHING, SIDES, Interval, label, mean_and_std, seed_remark, short_name
from saga_study.methods import BEST_LOSS, baseline_of, oracle_of

NOTEBOOK = "18_few_shot"
WAY = 24  # classes of an episode where there are no families; as many as a miniature family has
MEAN, PROBE = "nearest mean", "logistic probe"
CLASSIFIERS = (MEAN, PROBE)
GAINS = ("label", "method", "against", "benchmark", "metric", "classifier", "labels", "difference", "low", "high", "seeds")

Scores = Mapping[str, Mapping[tuple[str, int], np.ndarray]]  # method -> (classifier, labels per class) -> (S, C) in 0-1, rows by seed
RunsByMethod = Mapping[str, Sequence[Run]]


@dataclass(frozen=True)
class Protocol:
    """Which test images of a benchmark are labelled and which are asked for, the same for all methods."""

    dataset: str
    labels: np.ndarray = field(repr=False)  # (N,) of all test images
    shots: tuple[int, ...]  # labels per class, ascending: those that fit
    too_many: tuple[int, ...]  # wanted, but classes have too few images
    classes: np.ndarray  # (C,) ascending labels of the classes that take part
    left_out: int  # classes with too few images
    # draw -> episode -> class -> its images, in the order in which they are labelled
    draws: tuple[tuple[tuple[np.ndarray, ...], ...], ...] = field(repr=False)

    @property
    def way(self) -> float:
        """The mean number of classes in an episode."""
        return len(self.classes) / len(self.draws[0])

    @property
    def queries(self) -> dict[int, float]:
        """The mean number of queries of a class, by labels per class."""
        sizes = [len(images) for episode in self.draws[0] for images in episode]
        return {shots: float(np.mean(sizes)) - shots for shots in self.shots}


# ---------------------------------------------------------------------------------------------------- protocol


def draw_protocol(dataset: str, labels: np.ndarray, shots: Sequence[int], draws: int, seed: int) -> Protocol:
    """Draw which images are labelled, of test images with labels (N,) int.

    A number of labels fits if at least half of the classes have one image more; classes that have not are left out. Raises `SagaError`
    for numbers below 1 and where none fits.
    """
    wanted = tuple(sorted(set(shots)))
    if not wanted or wanted[0] < 1 or draws < 1:
        raise SagaError(f"SHOTS and DRAWS must be at least 1, got {list(shots)} and {draws}")
    known, counts = np.unique(labels, return_counts=True)
    fitting = tuple(k for k in wanted if 2 * (counts > k).sum() >= len(known))
    if not fitting:
        raise SagaError(
            f"{dataset}: classes have {int(np.median(counts))} images in the median, too few for {wanted[0]} labelled and one to ask for; "
            "name fewer in SHOTS or add images"
        )
    classes = known[counts > fitting[-1]]
    of_class = {c: np.flatnonzero(labels == c) for c in classes}
    rngs = [np.random.default_rng((seed, number)) for number in range(draws)]
    drawn = tuple(tuple(tuple(rng.permutation(of_class[c]) for c in group) for group in _episodes(dataset, classes, rng)) for rng in rngs)
    return Protocol(dataset, labels, fitting, wanted[len(fitting) :], classes, len(known) - len(classes), drawn)


def _episodes(dataset: str, classes: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
    """Return the classes of each episode of a draw: families, or else a random deal."""
    family = families(dataset, classes)
    groups = [classes[family == one] for one in np.unique(family)]
    if min(map(len, groups)) > 1:
        return groups
    return np.array_split(rng.permutation(classes), max(1, round(len(classes) / WAY)))


def accuracies(embeddings: np.ndarray, protocol: Protocol) -> dict[tuple[str, int], np.ndarray]:
    """Return by classifier and labels per class the accuracy (C,) of each class, 0-1, mean over draws; embeddings (N, D)."""
    right = {key: np.zeros(len(protocol.classes)) for key in product(CLASSIFIERS, protocol.shots)}
    asked = {shots: np.zeros(len(protocol.classes)) for shots in protocol.shots}
    for shots, episode in product(protocol.shots, (episode for draw in protocol.draws for episode in draw)):
        labelled, queries = (np.concatenate([images[part] for images in episode]) for part in (slice(shots), slice(shots, None)))
        truth = protocol.labels[queries]
        places = np.searchsorted(protocol.classes, truth)
        np.add.at(asked[shots], places, 1)
        for name in CLASSIFIERS:
            named = classify(name, embeddings[labelled], protocol.labels[labelled], embeddings[queries])
            np.add.at(right[name, shots], places, named == truth)
    return {(name, shots): hits / asked[shots] for (name, shots), hits in right.items()}  # every draw asks for a class equally often


def classify(name: str, labelled: np.ndarray, labels: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """Return the class (Q,) that a classifier names for queries (Q, D), fitted to labelled embeddings (L, D) with labels (L,)."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import NearestCentroid

    model = {MEAN: NearestCentroid, PROBE: lambda: LogisticRegression(max_iter=1000)}[name]()
    with warnings.catch_warnings(), np.errstate(invalid="ignore"):  # of one label per class there is no variance, which nobody asks for
        warnings.filterwarnings("ignore", "The number of unique classes", UserWarning)  # it suspects a regression
        return model.fit(labelled, labels).predict(queries)


# ----------------------------------------------------------------------------------------------------- numbers


def metric_name(classifier: str, shots: int, less: int = 0) -> str:
    """Return how tables and claims name an accuracy or, with `less`, by how much a gain with few labels exceeds that with many."""
    labels = f"{shots} label{'s' if shots > 1 else ''} per class"
    return f"gain with {labels} less gain with {less} ({classifier})" if less else f"accuracy with {labels} ({classifier})"


def pairs(profile: str) -> dict[tuple[str, str], str]:
    """Return the comparisons: signals with what they are added to, with what could explain a gain away, and with each other."""
    sides = []
    for loss in dict.fromkeys(("pf", BEST_LOSS[profile], "infonce")):
        base = baseline_of(profile, loss)
        sides += [(f"saga_{loss}", base), (f"contrast_{loss}", base), (oracle_of(loss), base)]
    controls = ("saga_shuffled_in_group", "pf_long", "infonce", "pf_anchor")
    sides += [("saga_pf", against) for against in controls] + [("contrast_pf", against) for against in ("saga_pf", *controls[1:])]
    sides += [("pf_anchor", "pf"), *((loss, "pre-trained") for loss in ("pf", "infonce"))]
    return {side: f"{label(side[0])} − {label(side[1])}" for side in dict.fromkeys(sides)}


def accuracy_table(protocols: Mapping[str, Protocol], scores: Mapping[str, Scores], runs: Mapping[str, RunsByMethod]) -> pd.DataFrame:
    """Return a row per benchmark, method, classifier and number of labels, in percent.

    Columns: method, label, benchmark, classifier, labels, accuracy and its standard deviation over seeds (`accuracy std`), chance,
    classes, queries (of a class), draws, seeds, runs (keys in order of the seed). By benchmark: `protocols`, `scores` and `runs`.
    """
    rows = []
    for dataset, protocol in protocols.items():
        for method, values in scores[dataset].items():
            for (classifier, shots), by_class in values.items():
                of_seeds = 100 * by_class.mean(1)
                rows.append({
                    "method": method, "label": label(method), "benchmark": dataset, "classifier": classifier, "labels": shots,
                    "accuracy": float(of_seeds.mean()), "accuracy std": float(of_seeds.std(ddof=1)) if len(of_seeds) > 1 else float("nan"),
                    "chance": 100 / protocol.way, "classes": len(protocol.classes), "queries": protocol.queries[shots],
                    "draws": len(protocol.draws), "seeds": len(of_seeds),
                    "runs": " ".join(run.key for run in by_seed(runs[dataset][method])),
                })  # fmt: skip
    return pd.DataFrame(rows)


def gains_table(
    protocols: Mapping[str, Protocol], scores: Mapping[str, Scores], runs: Mapping[str, RunsByMethod], profile: str
) -> pd.DataFrame:
    """Return differences of accuracy for `pairs`, in points with 95 % intervals, a row per pair, metric and benchmark.

    Of several benchmarks there is a row for all of them (`POOLED`), each weighing the same. Metrics: each classifier with each number
    of labels and, where several fit, the gain with the fewest less that with the most. All draw the same images. Columns: `GAINS`;
    `labels` is empty where two numbers are compared.
    """
    rows = []
    shots = sorted({k for protocol in protocols.values() for k in protocol.shots})
    metrics = [(name, k, 0) for name in CLASSIFIERS for k in shots]
    metrics += [(name, shots[0], shots[-1]) for name in CLASSIFIERS if len(shots) > 1]
    for (method, against), name in pairs(profile).items():
        for classifier, few, many in metrics:
            sides = {}
            for dataset, protocol in protocols.items():
                if {method, against} <= set(scores[dataset]) and {few, many or few} <= set(protocol.shots):
                    sides[dataset] = tuple(_units(scores[dataset][side], protocol, classifier, few, many) for side in (method, against))
            groups = {dataset: [dataset] for dataset in sides} | ({POOLED: [*sides]} if len(sides) > 1 else {})
            for place, members in groups.items():
                row = {"label": name, "method": method, "against": against, "benchmark": place}
                row |= {"metric": metric_name(classifier, few, many), "classifier": classifier, "labels": "" if many else few}
                row |= bootstrap_points([sides[one] for one in members])._asdict()
                rows.append(row | {"seeds": fewest_seeds(runs[one][side] for one in members for side in (method, against))})
    return pd.DataFrame(rows, columns=GAINS)


def _units(values: Mapping[tuple[str, int], np.ndarray], protocol: Protocol, classifier: str, few: int, many: int) -> np.ndarray:
    """Return (S, U) accuracies of what the bootstrap draws: families, or classes where there are none."""
    by_class = values[classifier, few] - (values[classifier, many] if many else 0)
    return class_means(by_class, drawn_together(protocol.dataset, protocol.classes))


# ------------------------------------------------------------------------------------------------------- texts


def main_place(table: pd.DataFrame) -> str:
    """Return what a table of differences is summed up by: all benchmarks together, or else the first."""
    names = list(dict.fromkeys(table["benchmark"]))
    return POOLED if POOLED in names else next(iter(names), "")


def named(place: str) -> str:
    return "all benchmarks" if place == POOLED else short_name(place)


def display_accuracy(table: pd.DataFrame, benchmark: str, profile: str) -> pd.DataFrame:
    """Return the accuracies on one benchmark as text: a row per method, a column per classifier and number of labels."""
    rows = []
    for name, group in table[table["benchmark"] == benchmark].groupby("label", sort=False):
        text = {"method": name, "seeds": int(group["seeds"].iloc[0])}
        for row in group.to_dict("records"):
            text[f"{row['classifier']}, {row['labels']} per class, % ours ({profile})"] = mean_and_std(row, "accuracy")
        rows.append(text)
    return pd.DataFrame(rows if rows else [{"method": "no runs"}])


def display_gains(table: pd.DataFrame, place: str = "") -> pd.DataFrame:
    """Return differences on one benchmark or all (default: `main_place`) as text: a row per pair, a column per metric."""
    own, rows = table[table["benchmark"] == (place or main_place(table))], []
    for name, group in own.groupby("label", sort=False):
        rows.append({"points [95 %]": name} | {row["metric"]: Interval.of(row).text() for row in group.to_dict("records")})
    return pd.DataFrame(rows if rows else [{"points [95 %]": "no pair of methods"}]).fillna(NOTHING)


def protocol_sentences(protocols: Mapping[str, Protocol], wanted: Sequence[str] = ()) -> list[str]:
    """Return, for each benchmark, what is labelled and what is asked for, what does not fit, and which `wanted` benchmarks have no runs."""
    said = []
    for name, one in protocols.items():
        asked = ", ".join(f"{count:.3g} with {shots}" for shots, count in one.queries.items())
        text = f"{short_name(name)}: {len(one.classes)} classes, {one.way:.3g} in an episode on average; {len(one.draws)} "
        text += f"draw{'s' if len(one.draws) > 1 else ''} of all classes; queries of a class: {asked}; chance {100 / one.way:.1f} %."
        if one.too_many:
            text += f" {' and '.join(map(str, one.too_many))} labels do not fit: most classes have fewer than {one.too_many[0] + 1} images."
        said.append(text + (f" Left out with too few images: {one.left_out} classes." if one.left_out else ""))
    lacking = [short_name(name) for name in wanted if name not in protocols]
    return [*said, *([f"Without runs here, with --full: {', '.join(lacking)}."] if lacking else [])]


def few_shot_sentences(table: pd.DataFrame, profile: str) -> list[str]:
    """Return whether what GRPO adds helps where labels are few, read off the intervals of `gains_table` at `main_place`."""
    place = main_place(table)
    rows = {(row["method"], row["against"], row["metric"]): row for row in table[table["benchmark"] == place].to_dict("records")}
    base = baseline_of(profile, "pf")
    own = table[(table["benchmark"] == place) & (table["method"] == "saga_pf") & (table["against"] == base)]
    if own.empty:
        return [f"SAGA is not compared with {label(base)} here, so that nothing is said about what GRPO adds."]
    said, numbers = [], [int(k) for k in own["labels"] if k != ""]
    for classifier in CLASSIFIERS:
        metrics = [metric_name(classifier, k) for k in sorted(set(numbers))]
        known = [Interval.of(rows["saga_pf", base, metric]) for metric in metrics]
        each = "; ".join(f"{k}: {one.text()}" for k, one in zip(sorted(set(numbers)), known, strict=True))
        said.append(f"SAGA − {label(base)}, {classifier}, {named(place)}, points by labels per class: {each}.")
        said.append(_trend(rows, base, classifier, numbers))
        said.append(_answer(rows, base, metrics[0], known[0]))
    seeds = [row["seeds"] for row in rows.values() if (row["method"], row["against"]) == ("saga_pf", base)]
    return [*said, seed_remark(seeds, drawn="families of classes or classes")]


def _trend(rows: Mapping[tuple, Mapping], base: str, classifier: str, numbers: Sequence[int]) -> str:
    few, many = min(numbers), max(numbers)
    if not (row := rows.get(("saga_pf", base, metric_name(classifier, few, many)))):
        return "One number of labels says nothing about fewer or more."
    change = Interval.of(row)
    word = {1: "the gain is larger", -1: "the gain is smaller", 0: "the gain is not distinguishable from that with more"}[change.side()]
    return f"With {few} instead of {many} labels {word}: {change.text()}."


def _answer(rows: Mapping[tuple, Mapping], base: str, metric: str, gain: Interval) -> str:
    """Return the verdict at the fewest labels: a gain counts as GRPO's only if no control has it, too."""
    start = f"By {metric}, SAGA is {SIDES[gain.side()]} {label(base)}"
    if gain.side() != 1:
        return f"{start}: what GRPO adds does not show here."
    controls = {against: Interval.of(row) for (method, against, of), row in rows.items() if method == "saga_pf" and of == metric}
    controls.pop(base)
    open_ones = [f"{label(name)} ({one.text()})" for name, one in controls.items() if one.side() != 1]
    if not controls:
        return f"{start}, and no control was run that could explain it."
    if open_ones:
        return f"{start}, but not above {', '.join(open_ones)}: the gain need not be the reward's."
    return f"{start} and above {', '.join(map(label, controls))}: the gain is explained by none of these controls."
