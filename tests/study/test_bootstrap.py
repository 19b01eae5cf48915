"""The bootstrap against loops and textbook widths."""

import numpy as np
import pytest
import scipy.stats

from saga_lib.common.errors import SagaError
from saga_study.findings import bootstrap
from saga_study.findings.bootstrap import pooled_bootstrap


def paired_bootstrap(a, b, **options):
    """Of one benchmark."""
    return pooled_bootstrap([(a, b)], **options)


def hits(num_seeds, num_queries, rate, seed):
    return np.random.default_rng(seed).random((num_seeds, num_queries)) < rate


@pytest.mark.parametrize("num_seeds_b", [3, 2])
def test_bootstrap_equals_the_loop_on_the_same_draws(num_seeds_b):
    a, b = hits(3, 40, 0.8, 1), hits(num_seeds_b, 40, 0.6, 2)
    rng = np.random.default_rng(5)
    seeds_a = rng.integers(3, size=(200, 3))
    seeds_b = seeds_a if num_seeds_b == 3 else rng.integers(num_seeds_b, size=(200, num_seeds_b))
    differences = []
    for n in range(200):
        queries = rng.integers(40, size=40)
        differences.append(a[seeds_a[n]][:, queries].mean() - b[seeds_b[n]][:, queries].mean())
    outcome = paired_bootstrap(a, b, num_samples=200, seed=5, confidence=0.9)
    mean = a.mean() - b.mean()
    factor = students_factor([(a, b)], np.std(differences), 0.9)
    assert outcome["difference"] == pytest.approx(mean)
    assert outcome["low"] == pytest.approx(mean + factor * (np.quantile(differences, 0.05) - mean))
    assert outcome["high"] == pytest.approx(mean + factor * (np.quantile(differences, 0.95) - mean))


def students_factor(pairs, spread, confidence=0.95):
    """Student's half width over the normal one of draws with this standard deviation, from the textbook: seeds and units are two parts."""
    parts = []
    for a, b in pairs:
        a, b = np.asarray(a, float), np.asarray(b, float)
        lists = [a.mean(1) - b.mean(1)] if len(a) == len(b) else [a.mean(1), b.mean(1)]
        lists.append(a.mean(0) - b.mean(0))
        parts += [(np.var(one, ddof=1) / len(one) / len(pairs) ** 2, len(one) - 1) for one in lists if len(one) > 1]
    total = sum(variance for variance, _ in parts)
    freedom = total**2 / sum(variance**2 / df for variance, df in parts)
    upper = (1 + confidence) / 2
    return scipy.stats.t(freedom).ppf(upper) * total**0.5 / (scipy.stats.norm.ppf(upper) * spread)


@pytest.mark.parametrize(("num_seeds", "num_units", "ratio"), [(3, 8, 3.0), (3, 16, 1.0), (5, 16, 3.0), (5, 16, 0.3)])
def test_intervals_of_few_seeds_and_families_cover_what_they_say(num_seeds, num_units, ratio):
    """Crossed effects of seeds (`ratio` times as much of the error as units) and of units; percentiles alone cover down to 81 %."""
    rng, covered, trials = np.random.default_rng(0), 0, 200
    for trial in range(trials):
        seeds = rng.normal(0, ratio * (num_seeds / num_units) ** 0.5, (num_seeds, 1))
        scores = seeds + rng.normal(size=(1, num_units)) + rng.normal(size=(num_seeds, num_units))
        outcome = paired_bootstrap(scores, np.zeros_like(scores), num_samples=400, seed=trial)
        covered += outcome["low"] <= 0 <= outcome["high"]
    assert 0.905 <= covered / trials <= 0.995


def test_bootstrap_of_one_seed_has_the_textbook_width():
    a, b = hits(1, 3000, 0.7, 1)[0], hits(1, 3000, 0.6, 2)[0]
    outcome = paired_bootstrap(a, b)
    standard_error = (a.astype(float) - b).std() / np.sqrt(3000)
    assert outcome["high"] - outcome["low"] == pytest.approx(2 * 1.96 * standard_error, rel=0.05)
    assert outcome["low"] < outcome["difference"] < outcome["high"]


def test_bootstrap_pairs_queries_and_seeds():
    a = hits(4, 300, 0.5, 1)
    same = paired_bootstrap(a, a)
    assert same == {"difference": 0.0, "low": 0.0, "high": 0.0}
    # b is a minus a constant per seed: queries cancel, seeds do not vary either
    shifted = paired_bootstrap(a.astype(float), a - 0.25)
    assert [shifted[key] for key in ("difference", "low", "high")] == pytest.approx([0.25] * 3)
    # the seed level counts: methods that differ by seed are less certain than queries alone would say
    by_seed = np.array([[0.0], [0.1], [0.2], [0.3]]) + np.zeros((4, 300))
    varied = paired_bootstrap(a + by_seed, a.astype(float))
    assert varied["high"] - varied["low"] > 0.15


def test_bootstrap_is_seeded_and_chunked(monkeypatch):
    a, b = hits(5, 2000, 0.8, 1), hits(5, 2000, 0.78, 2)
    outcome = paired_bootstrap(a, b)
    assert outcome == paired_bootstrap(a, b) and outcome != paired_bootstrap(a, b, seed=1)
    small = paired_bootstrap(a[:, :50], b[:, :50], num_samples=101)
    draw = bootstrap._draw_counts

    def in_small_steps(rng, num_samples, num_items):
        return np.concatenate([draw(rng, 1, num_items) for _ in range(num_samples)])

    monkeypatch.setattr(bootstrap, "_draw_counts", in_small_steps)
    bootstrap._kept_draws.cache_clear()
    assert paired_bootstrap(a[:, :50], b[:, :50], num_samples=101) == pytest.approx(small)


def test_bootstrap_rejects_other_queries():
    with pytest.raises(SagaError, match="same queries"):
        paired_bootstrap(hits(2, 30, 0.5, 1), hits(2, 31, 0.5, 1))
    with pytest.raises(SagaError, match="confidence"):
        paired_bootstrap(hits(2, 30, 0.5, 1), hits(2, 30, 0.5, 1), confidence=95)


def test_pooling_one_benchmark_is_the_paired_bootstrap_and_several_average():
    rng = np.random.default_rng(5)
    hits = [(rng.uniform(size=(2, n)) < 0.7, rng.uniform(size=(3, n)) < 0.5) for n in (50, 400)]
    assert pooled_bootstrap(hits[:1], seed=3) == paired_bootstrap(*hits[0], seed=3)
    both = pooled_bootstrap(hits)
    assert both["difference"] == pytest.approx(np.mean([a.mean() - b.mean() for a, b in hits]))  # the small one weighs the same
    spread = [np.diff([paired_bootstrap(*pair)[end] for end in ("low", "high")])[0] for pair in hits]
    assert both["high"] - both["low"] == pytest.approx(np.hypot(*spread) / 2, rel=0.1)  # independent draws
    with pytest.raises(SagaError, match="no benchmark to pool"):
        pooled_bootstrap([])


def test_draws_that_are_kept_are_those_that_are_not(monkeypatch):
    """Comparisons of one table share their draws; hits and scores between 0 and 1 alike."""
    a, b = hits(3, 300, 0.8, 1), hits(3, 300, 0.7, 2)
    for pair in ((a, b), (a * 0.37, b * 0.11), (a, b[:2])):
        kept = paired_bootstrap(*pair)
        assert kept == paired_bootstrap(*pair)
        with monkeypatch.context() as patch:
            patch.setattr(bootstrap, "_kept_draws", None)
            patch.setattr(bootstrap, "_draws", bootstrap._new_draws)
            assert paired_bootstrap(*pair) == pytest.approx(kept, abs=1e-12)


def test_means_of_several_methods_are_drawn_together_as_the_bootstrap_draws():
    scores = np.stack([hits(3, 40, rate, n).astype(float) for n, rate in enumerate((0.5, 0.7, 0.9))])  # methods, seeds, queries
    for number, entropy in ((0, 5), (2, [5, 2])):
        rng = np.random.default_rng(entropy)
        seeds = rng.integers(3, size=(200, 3))
        loop = np.empty((200, 3))
        for n in range(200):
            queries = rng.integers(40, size=40)
            loop[n] = scores[:, seeds[n]][:, :, queries].mean((1, 2))
        assert bootstrap.draw_means(scores, number, num_samples=200, seed=5) == pytest.approx(loop)
    alone = paired_bootstrap(scores[2], scores[0], num_samples=200, seed=5)
    drawn = bootstrap.draw_means(scores, num_samples=200, seed=5)
    gains = drawn[:, 2] - drawn[:, 0]
    ends = bootstrap.interval(alone["difference"], gains, [(scores[2], scores[0])])
    assert (alone["low"], alone["high"]) == pytest.approx(ends)
    factor = students_factor([(scores[2], scores[0])], gains.std())
    assert ends[0] - alone["difference"] == pytest.approx(factor * (np.quantile(gains, 0.025) - alone["difference"]))
