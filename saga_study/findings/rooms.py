"""Points of R@1 and of MAP@R between two methods, and which share of the oracle's room a signal collects."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from saga_lib.common.errors import SagaError
from saga_lib.records import Run
from saga_study.findings.samples import bootstrap_points, by_seed, hits_of, is_seedless, seed_differences, t_interval
from saga_study.findings.words import NOTHING, Interval

SCORES = ("R@1", "MAP@R")
NO_ROOM = "no room"  # where the oracle itself is not above the base
NUM_SAMPLES = 10000
BY_CLASS = "map_at_r_by_class"


def scores_of(runs: Sequence[Run], name: str) -> np.ndarray | None:
    """Return (S, U) scores in 0-1, rows in order of the seed: of R@1 each query's hit, of MAP@R each class's mean precision.

    None where a record has no precisions by class.
    """
    if name == "R@1":
        return hits_of(runs).astype(float)
    if any(BY_CLASS not in run.evaluation for run in runs):
        return None
    return np.array([run.evaluation[BY_CLASS] for run in by_seed(runs)], dtype=float)


def seeds_in_common(*groups: Sequence[Run]) -> list[list[Run]]:
    """Return, of several methods' runs, those of the seeds that all have; a method without training keeps its one run."""
    own = [{run.config.seed for run in runs} for runs in groups if runs and not is_seedless(runs[0].config)]
    shared = set.intersection(*own) if own else set()
    return [[run for run in runs if is_seedless(run.config) or run.config.seed in shared] for runs in groups]


def points_between(pairs: Sequence[tuple[Sequence[Run], Sequence[Run]]], name: str) -> Interval:
    """Return a method's score minus another's in points, over benchmarks of equal weight, with a 95 % interval.

    pairs: for each benchmark the runs of both, of which seeds in common count. R@1 is bootstrapped over queries and seeds, MAP@R over
    classes (of equal weight) and seeds; where a record has no precisions by class, MAP@R has Student's t over seeds.
    """
    pairs = [seeds_in_common(*pair) for pair in pairs]
    if not pairs or not all(side for pair in pairs for side in pair):
        return Interval()
    scores = [tuple(scores_of(side, name) for side in pair) for pair in pairs]
    if any(side is None for pair in scores for side in pair):
        return t_interval([seed_differences({"a": a, "b": b}, "a", "b", name) for a, b in pairs])
    return bootstrap_points(scores)


def shares_of_room(
    runs_by_dataset: Mapping[str, Mapping[str, Sequence[Run]]], methods: Sequence[str], base: str, oracle: str, name: str
) -> dict[str, Interval]:  # fmt: skip
    """Return which share of (oracle − base) each method's difference to the base is, in 0-1 and beyond, with a 95 % interval.

    Over benchmarks of equal weight, numerator and denominator with the same draws of queries (MAP@R: classes) and seeds. NaN where the
    oracle's own interval is not above 0: there is no room to share. Without precisions by class the share has no interval. Every
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
    drawn = np.mean([_draw_means(one, number) for number, one in enumerate(gains)], axis=0)  # (samples, M)
    means, room = np.mean([one.mean((1, 2)) for one in gains], axis=0), wanted.index(oracle)
    if not np.quantile(drawn[:, room], 0.025) > 0:
        return {method: Interval() for method in methods}
    shares = {}
    for method in methods:
        place = wanted.index(method)
        ends = np.quantile(drawn[:, place] / drawn[:, room], [0.025, 0.975])
        shares[method] = Interval(float(means[place] / means[room]), *map(float, ends))
    return shares


def _shares_of_means(
    groups: Sequence[Mapping[str, list[Run]]], methods: Sequence[str], base: str, oracle: str, name: str
) -> dict[str, Interval]:  # fmt: skip
    """Return shares of the means without an interval; NaN unless the oracle is above the base, by its interval if it has one."""
    points = {method: points_between([(group[method], group[base]) for group in groups], name) for method in {oracle, *methods}}
    room = points[oracle]
    is_room = room.difference > 0 if room.side() is None else room.side() > 0
    return {method: Interval(points[method].difference / room.difference) if is_room else Interval() for method in methods}


def _draw_means(scores: np.ndarray, number: int) -> np.ndarray:
    """Return (samples, M) means of scores (M, S, U), each sample of one draw of seeds and units for all M."""
    rng = np.random.default_rng([number, 7])
    count, seeds, units = scores.shape
    flat = scores.reshape(count * seeds, units).T
    means = []
    for size in _chunks(NUM_SAMPLES, max(1, 2_000_000 // units)):
        by_seed = (_counts(rng, size, units) @ flat / units).reshape(size, count, seeds)
        means.append(np.einsum("nms,ns->nm", by_seed, _counts(rng, size, seeds) / seeds))
    return np.concatenate(means)


def _chunks(total: int, size: int) -> Iterator[int]:
    for start in range(0, total, size):
        yield min(size, total - start)


def _counts(rng: np.random.Generator, samples: int, items: int) -> np.ndarray:
    """Return (samples, items) float64: how often each item is among that many draws with replacement."""
    draws = rng.integers(items, size=(samples, items)) + items * np.arange(samples)[:, None]
    return np.bincount(draws.ravel(), minlength=samples * items).reshape(samples, items).astype(float)


def percent(share: Interval) -> str:
    """Return a share as text, such as "46 % [20, 71]"."""
    if share.difference != share.difference:
        return NOTHING
    ends = "" if share.low != share.low else f" [{100 * share.low:.0f}, {100 * share.high:.0f}]"
    return f"{100 * share.difference:.0f} %{ends}".replace("-", "−")
