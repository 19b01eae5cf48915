"""The paired bootstrap that compares two methods, over queries and training seeds."""

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache

import numpy as np

from saga_lib.common.errors import SagaError


def pooled_bootstrap(
    pairs: Sequence[tuple[np.ndarray, np.ndarray]], num_samples: int = 10000, seed: int = 0, confidence: float = 0.95
) -> dict[str, float]:
    """Return the mean difference a - b of two methods, averaged over benchmarks of equal weight, with a percentile interval.

    pairs: for each benchmark the hits (Sa, Q) and (Sb, Q) of both methods: hit (0/1, or any per-query score) of each training
    seed on each of the *same* queries; (Q,) is one seed. Every resample draws Q queries, shared by both methods, and seeds:
    the same ones for both if Sa = Sb (rows of equal index must then be runs of equal seed), separate draws otherwise. With
    one seed only the queries vary; with two or three the seed level is known to come out too narrow. Queries and seeds are
    drawn within each benchmark; the benchmarks themselves are not resampled, so the interval holds for these benchmarks only.

    Returns {"difference": mean(a) - mean(b), "low": …, "high": …}, in the units of the hits.
    """
    if num_samples < 1 or not 0 < confidence < 1:
        raise SagaError(f"need num_samples >= 1 and 0 < confidence < 1, got {num_samples}, {confidence}")
    if not pairs:
        raise SagaError("no benchmark to pool; give at least one")
    checked = [_checked_hits(*pair) for pair in pairs]
    samples = np.zeros(num_samples)
    for number, (a, b) in enumerate(checked):
        scores, groups = (a - b, (len(a),)) if len(a) == len(b) else (np.concatenate([a, b]), (len(a), len(b)))
        samples += _resampled(scores[None], groups, _entropy(seed, number), num_samples)[:, 0] / len(checked)
    tail = (1 - confidence) / 2
    low, high = np.quantile(samples, [tail, 1 - tail])
    return {"difference": float(np.mean([a.mean() - b.mean() for a, b in checked])), "low": float(low), "high": float(high)}


def _checked_hits(hits_a: np.ndarray, hits_b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return both as (seeds, queries) float64 over the same queries."""
    a, b = (np.atleast_2d(np.asarray(hits, dtype=np.float64)) for hits in (hits_a, hits_b))
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or a.size == 0 or b.size == 0:
        raise SagaError(f"hits must be (seeds, queries) over the same queries, got shapes {a.shape} and {b.shape}")
    return a, b


def draw_means(scores: np.ndarray, number: int = 0, num_samples: int = 10000, seed: int = 0) -> np.ndarray:
    """Return (num_samples, M) means of M methods' scores (M, S, N) of the same seeds and units, each sample one draw for all of them.

    number: which of several benchmarks this is. The draws are those of `pooled_bootstrap`, so that a ratio of two differences goes with
    the interval of either.
    """
    return _resampled(np.asarray(scores, dtype=np.float64), (scores.shape[1],), _entropy(seed, number), num_samples)


def _entropy(seed: int, number: int) -> int | tuple[int, int]:
    """Return what the draws of benchmark `number` start from; those of the first are those of a benchmark by itself."""
    return seed if number == 0 else (seed, number)


def _resampled(scores: np.ndarray, groups: Sequence[int], entropy: int | tuple[int, int], num_samples: int) -> np.ndarray:
    """Return (num_samples, M) means of M rows of scores (M, R, N), each of another draw of units and seeds, the same for all M.

    groups: how many of the R rows of seeds are drawn among each other; the mean of a second group is taken off that of the first.
    """
    seed_counts, *item_counts = _draws(entropy, num_samples, tuple(groups), scores.shape[2])
    weights = np.concatenate([sign * counts / counts.shape[1] for sign, counts in zip((1, -1), seed_counts, strict=False)], axis=1)
    kind = np.float32 if (scores == np.rint(scores)).all() else np.float64  # sums of hits are exact in both
    flat = np.ascontiguousarray(scores.reshape(-1, scores.shape[2]).T, dtype=kind)
    means, start = np.empty((num_samples, len(scores))), 0
    for counts in item_counts:  # a resample is a vector of counts, so that its mean is a product with the scores
        part = slice(start, start := start + len(counts))
        products = (counts.astype(kind) @ flat).reshape(len(counts), *scores.shape[:2])
        means[part] = np.einsum("nmr,nr->nm", products, weights[part]) / scores.shape[2]
    return means


def _draws(entropy: int | tuple[int, int], num_samples: int, groups: tuple[int, ...], num_items: int) -> Iterable:
    """Return the counts of seeds of each group, (num_samples, S) each, then those of items in chunks (chunk, num_items)."""
    small = num_samples * num_items <= 50_000_000  # bytes; the comparisons of a table draw alike
    return (_kept_draws if small else _new_draws)(entropy, num_samples, groups, num_items)


@lru_cache(maxsize=12)
def _kept_draws(*drawn: object) -> tuple:
    return tuple(_new_draws(*drawn))


def _new_draws(entropy: int | tuple[int, int], num_samples: int, groups: tuple[int, ...], num_items: int) -> Iterator:
    rng = np.random.default_rng(entropy)
    yield [_draw_counts(rng, num_samples, size) for size in groups]
    chunk = max(1, 2_000_000 // num_items)
    for start in range(0, num_samples, chunk):
        counts = _draw_counts(rng, min(chunk, num_samples - start), num_items)
        yield np.minimum(counts, 255).astype(np.uint8)  # an item that is drawn so often has not been seen yet


def _draw_counts(rng: np.random.Generator, num_samples: int, num_items: int) -> np.ndarray:
    """Return (num_samples, num_items) float64: how often each item is among num_items draws."""
    draws = rng.integers(num_items, size=(num_samples, num_items))
    draws += num_items * np.arange(num_samples)[:, None]
    counts = np.bincount(draws.ravel(), minlength=num_samples * num_items)
    return counts.reshape(num_samples, num_items).astype(np.float64)
