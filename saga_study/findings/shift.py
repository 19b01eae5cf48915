"""Distribution shift: what an encoder that was trained for one benchmark finds on the test classes of others.

Every encoder is asked on the same test classes of each benchmark: whole families where there are some, drawn once, up to a number that
keeps galleries small. Its own benchmark ("at home") stands beside the others ("elsewhere"). A benchmark's images weigh the same
whatever their number. Differences are bootstrapped over families or classes and over seeds; the seeds of an encoder are
drawn once for all galleries, because they are the same encoders, and where encoders of several benchmarks meet one gallery they
are averaged query by query before queries are drawn, because they share them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from saga_lib.datasets.splits import Split
from saga_lib.retrieval import average_precision_at_r, hits_at_1, nearest_neighbours
from saga_study.findings.few_shot import RunsByMethod, main_place, named, pairs
from saga_study.findings.samples import POOLED, bootstrap_points, by_seed, families, fewest_seeds
from saga_study.findings.words import NOTHING, SIDES, Interval, label, mean_and_std, seed_remark, short_name
from saga_study.methods import baseline_of

METRICS = ("R@1", "MAP@R")
HOME, ELSEWHERE = "at home", "elsewhere"
GAINS = ("label", "method", "against", "benchmark", "where", "metric", "difference", "low", "high", "seeds")

# trained on -> method -> tested on -> metric -> (S, queries) of R@1 or (S, classes) of MAP@R, in 0-1, rows by seed
Retrieved = Mapping[str, Mapping[str, Mapping[str, Mapping[str, np.ndarray]]]]


# ----------------------------------------------------------------------------------------------------- numbers


def chosen_images(dataset: str, labels: np.ndarray, max_classes: int, seed: int) -> np.ndarray:
    """Return ascending indices of the images, with labels (N,) int, of classes drawn in whole families up to `max_classes`; 0: all.

    At least one family (without families: two classes) is drawn, however large.
    """
    family = families(dataset, labels)
    drawn, kept = np.random.default_rng(seed).permutation(np.unique(family)), []
    for one in drawn:
        classes = np.unique(labels[family == one])
        if max_classes and len(kept) >= 2 and len(kept) + len(classes) > max_classes:
            break
        kept += classes.tolist()
    return np.flatnonzero(np.isin(labels, kept))


def part_of(split: Split, images: np.ndarray) -> Split:
    """Return some images of a split, with labels and class names as they were."""
    return replace(split, paths=[split.paths[i] for i in images], labels=split.labels[images])


def retrieval_scores(embeddings: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """Return hits at rank 1 (Q,) of the queries and MAP@R (C,) of their classes, 0-1, of embeddings (Q, D) among each other."""
    classes = np.unique(labels, return_inverse=True)[1]
    neighbours = nearest_neighbours(embeddings, max(1, np.bincount(classes).max() - 1))[0]
    precisions = average_precision_at_r(embeddings, labels, neighbours)
    by_class = np.bincount(classes, precisions) / np.bincount(classes)
    return {"R@1": hits_at_1(embeddings, labels, neighbours).astype(float), "MAP@R": by_class}


def shift_table(retrieved: Retrieved, runs: Mapping[str, RunsByMethod]) -> pd.DataFrame:
    """Return a row per encoder's benchmark, method and gallery: R@1 and MAP@R in percent, mean and standard deviation over seeds."""
    rows = []
    for trained, by_method in retrieved.items():
        for method, by_target in by_method.items():
            for target, scores in by_target.items():
                row = {"method": method, "label": label(method), "benchmark": trained, "tested on": target}
                for name in METRICS:
                    values = 100 * scores[name].mean(1)
                    row |= {name: float(values.mean()), f"{name} std": float(values.std(ddof=1)) if len(values) > 1 else float("nan")}
                counts = {"queries": scores["R@1"].shape[1], "classes": scores["MAP@R"].shape[1], "seeds": len(scores["R@1"])}
                rows.append(row | counts | {"runs": " ".join(run.key for run in by_seed(runs[trained][method]))})
    return pd.DataFrame(rows)


def elsewhere(retrieved: Retrieved, method: str, trained: Sequence[str], metric: str, where: str = ELSEWHERE) -> np.ndarray:
    """Return (S, U) scores of a method's encoders, trained on some benchmarks, on galleries of all others (or at home), U of all together.

    Galleries weigh the same; where encoders of several benchmarks meet a gallery, each of its queries has their mean. Of several
    benchmarks, the seeds are as many as the one with the fewest has.
    """
    found: dict[str, list[np.ndarray]] = {}
    for own in trained:
        for target, scores in retrieved[own][method].items():
            if (target == own) == (where == HOME):
                found.setdefault(target, []).append(scores[metric])
    seeds = min(len(one) for of_target in found.values() for one in of_target)
    means = [np.mean([one[:seeds] for one in of_target], axis=0) for of_target in found.values()]
    size = sum(one.shape[1] for one in means)
    return np.concatenate([one * size / (len(means) * one.shape[1]) for one in means], axis=1)


def shift_gains(retrieved: Retrieved, runs: Mapping[str, RunsByMethod], profile: str) -> pd.DataFrame:
    """Return differences for `few_shot.pairs` in points with 95 % intervals, at home and elsewhere.

    A row per pair, metric, place (`HOME`, `ELSEWHERE`) and benchmark that encoders were trained on, and for all of them (`POOLED`).
    Columns: `GAINS`. Empty where no encoder met another benchmark.
    """
    rows, away = [], [own for own, by_method in retrieved.items() if any(set(one) - {own} for one in by_method.values())]
    for (method, against), name in pairs(profile).items():
        both = [own for own in away if {method, against} <= set(retrieved[own])]
        groups = {own: [own] for own in both} | ({POOLED: both} if len(both) > 1 else {})
        for (place, members), where in ((group, where) for group in groups.items() for where in (ELSEWHERE, HOME)):
            for metric in METRICS:
                sides = tuple(elsewhere(retrieved, side, members, metric, where) for side in (method, against))
                row = {"label": name, "method": method, "against": against, "benchmark": place, "where": where, "metric": metric}
                seeds = fewest_seeds(runs[one][side] for one in members for side in (method, against))
                rows.append(row | bootstrap_points([sides])._asdict() | {"seeds": seeds})
    return pd.DataFrame(rows, columns=GAINS)


# ------------------------------------------------------------------------------------------------------- texts


def display_shift(table: pd.DataFrame, profile: str) -> pd.DataFrame:
    """Return `shift_table` as text: a row per encoder, columns by gallery and metric."""
    rows = []
    for (trained, name), group in table.groupby(["benchmark", "label"], sort=False):
        text = {"trained on": short_name(trained), "method": name, "seeds": int(group["seeds"].iloc[0])}
        for row in group.to_dict("records"):
            text |= {f"{metric} % on {short_name(row['tested on'])}, ours ({profile})": mean_and_std(row, metric) for metric in METRICS}
        rows.append(text)
    return pd.DataFrame(rows if rows else [{"method": "no encoder met another benchmark"}]).fillna(NOTHING)


def display_shift_gains(table: pd.DataFrame) -> pd.DataFrame:
    """Return `shift_gains` as text: a row per pair, columns by metric and place, of all benchmarks and of each elsewhere."""
    rows = []
    for name, group in table.groupby("label", sort=False):
        text = {"points [95 %]": name}
        for row in group.to_dict("records"):
            if row["benchmark"] == main_place(table) or row["where"] == ELSEWHERE:
                text[f"{row['metric']} {row['where']}, trained on {named(row['benchmark'])}"] = Interval.of(row).text()
        rows.append(text)
    return pd.DataFrame(rows if rows else [{"points [95 %]": "no encoder met another benchmark"}]).fillna(NOTHING)


def shift_sentences(table: pd.DataFrame, profile: str) -> list[str]:
    """Return whether attribute supervision transfers better than labels, read off the intervals of `shift_gains` at `main_place`."""
    if table.empty:
        return ["No encoder met another benchmark: name several in TARGETS, or give the study several (--full)."]
    place, said, seeds = main_place(table), [], []
    for signal, loss in (("saga", "pf"), ("saga", "infonce"), ("contrast", "pf"), ("contrast", "infonce")):
        base = baseline_of(profile, loss)
        own = table[(table["benchmark"] == place) & (table["method"] == f"{signal}_{loss}") & (table["against"] == base)]
        found = {(row["where"], row["metric"]): row for row in own.to_dict("records")}
        if not found:
            continue
        parts = []
        for metric in METRICS:
            away, home = (Interval.of(found[where, metric]) for where in (ELSEWHERE, HOME))
            parts.append(f"{metric} {away.text()} elsewhere ({SIDES[away.side()]} it), {home.text()} at home")
        said.append(f"{label(f'{signal}_{loss}')} against {label(base)}, trained on {named(place)}: {'; '.join(parts)}.")
        seeds += [row["seeds"] for row in found.values()]
    controls = table[(table["benchmark"] == place) & (table["where"] == ELSEWHERE) & (table["method"] == "saga_pf")]
    for row in controls.to_dict("records"):
        if row["against"] != baseline_of(profile, "pf") and row["metric"] == "MAP@R":
            said.append(f"Elsewhere, {row['label']}: {Interval.of(row).text()} MAP@R.")
    return [*said, seed_remark(seeds, drawn="queries or classes")] if seeds else [*said, "No signal is compared with its metric loss here."]
