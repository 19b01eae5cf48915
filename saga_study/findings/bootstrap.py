"""The paired bootstrap that compares two methods, over queries and training seeds."""

from collections.abc import Sequence

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
    rngs = [np.random.default_rng(seed if number == 0 else [seed, number]) for number in range(len(pairs))]
    samples = np.mean([_resample(a, b, num_samples, rng) for (a, b), rng in zip(checked, rngs, strict=True)], axis=0)
    tail = (1 - confidence) / 2
    low, high = np.quantile(samples, [tail, 1 - tail])
    return {"difference": float(np.mean([a.mean() - b.mean() for a, b in checked])), "low": float(low), "high": float(high)}


def _checked_hits(hits_a: np.ndarray, hits_b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return both as (seeds, queries) float64 over the same queries."""
    a, b = (np.atleast_2d(np.asarray(hits, dtype=np.float64)) for hits in (hits_a, hits_b))
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or a.size == 0 or b.size == 0:
        raise SagaError(f"hits must be (seeds, queries) over the same queries, got shapes {a.shape} and {b.shape}")
    return a, b


def _resample(a: np.ndarray, b: np.ndarray, num_samples: int, rng: np.random.Generator) -> np.ndarray:
    """Return (num_samples,) differences of means, each of another draw of queries and seeds."""
    num_queries = a.shape[1]
    if len(a) == len(b):
        scores = a - b  # (S, Q)
        seed_weights = _draw_counts(rng, num_samples, len(a)) / len(a)  # (num_samples, S)
    else:
        scores = np.concatenate([a, b])
        seed_weights = np.concatenate(
            [_draw_counts(rng, num_samples, len(a)) / len(a), -_draw_counts(rng, num_samples, len(b)) / len(b)], axis=1
        )

    # A resample is a vector of counts, so that its mean is a product with the scores, in chunks of memory.
    differences = np.empty(num_samples)
    chunk = max(1, 2_000_000 // num_queries)
    for start in range(0, num_samples, chunk):
        part = slice(start, min(start + chunk, num_samples))
        counts = _draw_counts(rng, part.stop - start, num_queries)  # (chunk, Q)
        differences[part] = np.einsum("ns,ns->n", counts @ scores.T, seed_weights[part]) / num_queries
    return differences


def _draw_counts(rng: np.random.Generator, num_samples: int, num_items: int) -> np.ndarray:
    """Return (num_samples, num_items) float64: how often each item is among num_items draws."""
    draws = rng.integers(num_items, size=(num_samples, num_items))
    draws += num_items * np.arange(num_samples)[:, None]
    counts = np.bincount(draws.ravel(), minlength=num_samples * num_items)
    return counts.reshape(num_samples, num_items).astype(np.float64)
