"""Search and retrieval metrics against brute force and against other people's code."""

import builtins
import doctest

import numpy as np
import pytest

from saga_lib import retrieval
from saga_lib.common.errors import SagaError
from saga_lib.retrieval import average_precision_at_r, hits_at_1, map_at_r, nearest_neighbours, nmi, recall_at_k


def random_set(num_items=120, dim=16, num_classes=12, seed=0, spread=0.6):
    """Overlapping class clusters of unequal size, every class at least twice."""
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.repeat(np.arange(num_classes), 2), rng.integers(num_classes, size=num_items)])
    labels = labels[:num_items]
    centres = rng.normal(size=(num_classes, dim))
    return (centres[labels] * spread + rng.normal(size=(num_items, dim))).astype(np.float32), labels


def brute_force_neighbours(queries, k, gallery=None):
    """Sort every pair by its float64 cosine, rounded to float32, then by index."""
    others = queries if gallery is None else gallery
    rows = []
    for i, q in enumerate(queries.astype(np.float64)):
        cosines = [np.float32(q @ g / np.sqrt((q @ q) * (g @ g))) for g in others.astype(np.float64)]
        candidates = [j for j in range(len(others)) if gallery is not None or j != i]
        rows.append(sorted(candidates, key=lambda j: (-cosines[j], j))[:k])
    return np.array(rows)


@pytest.fixture(params=["faiss", "without faiss"])
def backend(request, monkeypatch):
    """Run a test with faiss and with faiss made unimportable."""
    if request.param == "without faiss":
        real_import = builtins.__import__

        def without_faiss(name, *args, **kwargs):
            if name == "faiss":
                raise ModuleNotFoundError("No module named 'faiss'")
            return real_import(name, *args, **kwargs)

        monkeypatch.setattr(builtins, "__import__", without_faiss)
    else:
        pytest.importorskip("faiss")
    return request.param


def test_the_protocol_doctest(backend):
    outcome = doctest.testmod(retrieval)
    assert outcome.attempted >= 5 and outcome.failed == 0


# --- Search -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 5, 119])
def test_neighbours_equal_brute_force(backend, k):
    embeddings, _ = random_set()
    indices, similarities = nearest_neighbours(embeddings, k)
    np.testing.assert_array_equal(indices, brute_force_neighbours(embeddings, k))
    assert indices.dtype == np.int64 and similarities.dtype == np.float32
    assert (np.diff(similarities, axis=1) <= 0).all()


def test_neighbours_in_a_separate_gallery(backend):
    embeddings, _ = random_set()
    queries, gallery = embeddings[:20], embeddings[10:]
    indices, similarities = nearest_neighbours(queries, 3, gallery)
    np.testing.assert_array_equal(indices, brute_force_neighbours(queries, 3, gallery))
    # here an identical item is an answer like any other
    assert (indices[10:, 0] == np.arange(10)).all() and similarities[10:, 0] == pytest.approx(1, abs=1e-6)


def test_duplicates_tie_and_the_lower_index_wins(backend):
    """More duplicates than the search fetches: rank must not decide which of them is the query."""
    distinct, _ = random_set(num_items=6, num_classes=3)
    embeddings = distinct[np.arange(60) % 6]  # item i equals item j when i = j mod 6
    indices, _ = nearest_neighbours(embeddings, 4)
    for i in range(60):
        assert indices[i].tolist() == [j for j in range(i % 6, 60, 6) if j != i][:4]
    np.testing.assert_array_equal(
        nearest_neighbours(embeddings, 25)[0], brute_force_neighbours(embeddings, 25)
    )


def test_collapsed_embeddings_are_searched_in_index_order(backend):
    indices, similarities = nearest_neighbours(np.ones((50, 8), dtype=np.float32), 3)
    assert indices[0].tolist() == [1, 2, 3] and indices[1].tolist() == [0, 2, 3]
    assert (indices[3:] == [0, 1, 2]).all() and similarities == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("spread", [1e-5, 1e-3])
def test_near_duplicates_are_ranked_below_the_noise_of_float32_products(backend, spread):
    rng = np.random.default_rng(0)
    embeddings = (rng.normal(size=256) + spread * rng.normal(size=(80, 256))).astype(np.float32)
    embeddings *= rng.uniform(0.5, 2, size=(80, 1)).astype(np.float32)  # norms do not matter
    indices, _ = nearest_neighbours(embeddings, 2)
    np.testing.assert_array_equal(indices, brute_force_neighbours(embeddings, 2))


def test_chunks_do_not_change_the_answer(backend, monkeypatch):
    embeddings, _ = random_set(num_items=90)
    embeddings[40:60] = embeddings[0]
    whole = nearest_neighbours(embeddings, 5)
    monkeypatch.setattr(retrieval, "QUERY_CHUNK", 7)
    monkeypatch.setattr(retrieval, "RESCORE_BYTES", 3000)
    parts = nearest_neighbours(embeddings, 5)
    np.testing.assert_array_equal(whole[0], parts[0])
    np.testing.assert_array_equal(whole[1], parts[1])


def test_bad_search_input_is_named():
    embeddings, _ = random_set(num_items=24)
    with pytest.raises(SagaError, match="k = 24 neighbours asked of 23"):
        nearest_neighbours(embeddings, 24)
    broken = embeddings.copy()
    broken[5, 0] = np.nan
    with pytest.raises(SagaError, match="row 5 is not finite"):
        nearest_neighbours(broken, 1)
    with pytest.raises(SagaError, match="16 dimensions, the gallery 4"):
        nearest_neighbours(embeddings, 1, embeddings[:, :4])
    with pytest.raises(SagaError, match=r"\(N, D\)"):
        nearest_neighbours(embeddings[0], 1)


# --- Metrics ----------------------------------------------------------------------------------------


def test_recall_and_hits_equal_brute_force(backend):
    embeddings, labels = random_set()
    order = brute_force_neighbours(embeddings, 8)
    recalls = recall_at_k(embeddings, labels)
    for k in (1, 2, 4, 8):
        hits = [labels[i] in labels[order[i, :k]] for i in range(len(labels))]
        assert recalls[k] == pytest.approx(np.mean(hits))
        if k == 1:
            np.testing.assert_array_equal(hits_at_1(embeddings, labels), hits)
    assert 0.2 < recalls[1] < recalls[8] < 1


def test_map_at_r_equals_brute_force(backend):
    embeddings, labels = random_set()
    order = brute_force_neighbours(embeddings, len(labels) - 1)
    averages = []
    for i, label in enumerate(labels):
        num_relevant = int((labels == label).sum()) - 1
        hits, total = 0, 0.0
        for rank, j in enumerate(order[i, :num_relevant], start=1):
            if labels[j] == label:
                hits += 1
                total += hits / rank
        averages.append(total / num_relevant)
    np.testing.assert_allclose(average_precision_at_r(embeddings, labels), averages)
    assert map_at_r(embeddings, labels) == pytest.approx(np.mean(averages))


def test_metrics_agree_with_pytorch_metric_learning():
    pytest.importorskip("faiss")
    torch = pytest.importorskip("torch")
    accuracy = pytest.importorskip("pytorch_metric_learning.utils.accuracy_calculator")
    embeddings, labels = random_set()
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    calculator = accuracy.AccuracyCalculator(
        include=("precision_at_1", "mean_average_precision_at_r"),
        k="max_bin_count",
        device=torch.device("cpu"),
    )
    theirs = calculator.get_accuracy(torch.from_numpy(unit), torch.from_numpy(labels))
    assert recall_at_k(embeddings, labels, ks=(1,))[1] == pytest.approx(theirs["precision_at_1"])
    assert map_at_r(embeddings, labels) == pytest.approx(theirs["mean_average_precision_at_r"])


def test_one_search_serves_all_metrics():
    embeddings, labels = random_set()
    neighbours, _ = nearest_neighbours(embeddings, 40)
    assert recall_at_k(embeddings, labels, neighbours=neighbours) == recall_at_k(embeddings, labels)
    assert map_at_r(embeddings, labels, neighbours) == map_at_r(embeddings, labels)
    np.testing.assert_array_equal(hits_at_1(embeddings, labels, neighbours), hits_at_1(embeddings, labels))
    with pytest.raises(SagaError, match="neighbours"):
        recall_at_k(embeddings, labels, neighbours=neighbours[:, :4])


def test_labels_may_be_anything_comparable():
    embeddings, labels = random_set()
    names = np.array([f"class {label}" for label in labels])
    assert recall_at_k(embeddings, names) == recall_at_k(embeddings, labels)
    assert map_at_r(embeddings, names) == map_at_r(embeddings, labels)


def test_a_class_with_one_image_is_named():
    embeddings, labels = random_set()
    labels = labels.copy()
    labels[7] = 99
    for metric in (recall_at_k, hits_at_1, map_at_r):
        with pytest.raises(SagaError, match=r"label 99"):
            metric(embeddings, labels)
    with pytest.raises(SagaError, match="one per embedding"):
        recall_at_k(embeddings, labels[:-1])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_nmi_of_separable_and_of_shuffled_classes(backend):
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(5), 40)
    embeddings = (np.eye(5, 12)[labels] * 10 + rng.normal(size=(200, 12))).astype(np.float32)
    assert nmi(embeddings, labels) == pytest.approx(1.0)
    assert nmi(embeddings, labels) == nmi(embeddings * 3, labels)
    assert nmi(embeddings, rng.permutation(labels)) < 0.1


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_nmi_agrees_with_scikit_learn_on_overlapping_clusters(backend):
    from sklearn.cluster import KMeans
    from sklearn.metrics import normalized_mutual_info_score

    embeddings, labels = random_set(num_items=400, num_classes=5, spread=1.0)
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    clusters = KMeans(5, n_init=10, random_state=0).fit_predict(unit)
    reference = normalized_mutual_info_score(labels, clusters)
    assert 0.3 < reference < 0.99
    assert nmi(embeddings, labels) == pytest.approx(reference, abs=0.03)
