"""Metrics on whatever users hand to them: the number of a plain float64 formula, or one line."""

import os
from collections import Counter
from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from saga_lib.common.errors import SagaError
from saga_lib.pairs import PairStream, balanced_batches
from saga_lib.retrieval import hits_at_1, map_at_r, nearest_neighbours, nmi, recall_at_k

EXAMPLES = int(os.environ.get("SAGA_EXAMPLES", 400))
NAN = float("nan")
many = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), print_blob=False, database=None)
METRICS = {"recall": recall_at_k, "hits": hits_at_1, "map": map_at_r, "nmi": nmi}


def refusal(work, *arguments, **options):
    with pytest.raises(SagaError) as error:
        work(*arguments, **options)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400
    return str(error.value)


# ------------------------------------------------------------------------------------------------ the plain formula


def ranked(embeddings):
    """Every item's others by cosine in float64, rounded to float32, then by index."""
    x = np.asarray(embeddings, dtype=np.float64)
    norms = [float(np.sqrt((row * row).sum())) or 1.0 for row in x]
    order = []
    for i in range(len(x)):
        cosine = {j: np.float32((x[i] * x[j]).sum() / (norms[i] * norms[j])) for j in range(len(x)) if j != i}
        order.append(sorted(cosine, key=lambda j, cosine=cosine: (-cosine[j], j)))
    return order


def plain_metrics(embeddings, labels, ks):
    """Recall at each k, the hits at rank 1 and MAP@R, by loops; fractions, so that nothing is rounded before the end."""
    order, n = ranked(embeddings), len(labels)
    recall = {k: Fraction(sum(any(labels[j] == labels[i] for j in order[i][:k]) for i in range(n)), n) for k in ks}
    hits = [labels[order[i][0]] == labels[i] for i in range(n)]
    averages = []
    for i in range(n):
        r = sum(label == labels[i] for label in labels) - 1
        right = [labels[j] == labels[i] for j in order[i][:r]]
        averages.append(sum(Fraction(sum(right[: rank + 1]), rank + 1) for rank in range(r) if right[rank]) / Fraction(r))
    return recall, hits, sum(averages) / n


# ------------------------------------------------------------------------------------------------ any input

# Values are eighths, whose products float64 holds exactly and bfloat16 as they are: there are ties, and no doubt about an order.
EMBEDDING_KINDS = {
    "float16": lambda x: x.astype(np.float16), "float32": lambda x: x.astype(np.float32), "float64": lambda x: x,
    "huge": lambda x: x * 2.0**900, "tiny": lambda x: x * 2.0**-900, "tiny float32": lambda x: (x * 2.0**-140).astype(np.float32),
    "huge float32": lambda x: (x * 2.0**120).astype(np.float32), "longdouble": lambda x: x.astype(np.longdouble),
    "int8": lambda x: (8 * x).astype(np.int8), "int64": lambda x: (8 * x).astype(np.int64) * 2**50, "list": lambda x: x.tolist(),
    "tuples": lambda x: [tuple(row) for row in x.tolist()], "columns first": np.asfortranarray,
    "every other": lambda x: np.repeat(x, 2, 0)[::2],
    "read-only": lambda x: np.frombuffer(x.tobytes()).reshape(x.shape), "data frame": pd.DataFrame,
    "tensor": torch.tensor, "bfloat16": lambda x: torch.tensor(x).bfloat16(), "half": lambda x: torch.tensor(x).half(),
    "on a graph": lambda x: torch.tensor(x, requires_grad=True) * 1.0,
    "list of tensors": lambda x: list(torch.tensor(x, requires_grad=True) * 1),
    "big-endian": lambda x: x.astype(">f4"), "parameter": lambda x: torch.nn.Parameter(torch.tensor(x)),
}  # fmt: skip
LABEL_KINDS = {
    "int64": np.array, "int8": lambda y: np.array(y, np.int8), "list": list, "tuple": tuple, "float": lambda y: np.array(y, float),
    "fractions of 1": lambda y: np.array(y) / 8, "uint64": lambda y: np.array(y, np.uint64) + np.uint64(2**63),
    "big": lambda y: [2**70 + c for c in y],
    "texts": lambda y: np.array([f"class {c}" for c in y]), "list of texts": lambda y: ["ab" * c for c in y],
    "bytes": lambda y: np.array([b"x" * c for c in y]),
    "objects": lambda y: np.array([f"{c}" for c in y], dtype=object), "series": lambda y: pd.Series([f"{c}" for c in y]),
    "categories": lambda y: pd.Categorical(y),
    "tensor": torch.tensor, "list of tensors": lambda y: [torch.tensor(c) for c in y],
    "graph": lambda y: torch.tensor(y, dtype=float, requires_grad=True),
    "numpy scalars": lambda y: [np.int64(c) for c in y], "nullable": lambda y: pd.array(y, dtype="Int64"),
    "ints and floats": lambda y: [c if c else 0.0 for c in y],
}  # fmt: skip


@st.composite
def sets(draw):
    """Embeddings of few values, so that many tie and some are 0, with labels of few classes."""
    n, dim = draw(st.integers(2, 14)), draw(st.integers(1, 5))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    x = rng.integers(-draw(st.sampled_from([1, 2, 15])), draw(st.sampled_from([2, 3, 16])), size=(n, dim)) / 8
    x[rng.uniform(size=n) < 0.1] = 0
    labels = rng.integers(draw(st.integers(1, 5)), size=n).tolist()
    return x, labels


@many
@given(sets(), st.sampled_from(sorted(EMBEDDING_KINDS)), st.sampled_from(sorted(LABEL_KINDS)), st.lists(st.integers(-1, 15), max_size=3))
def test_metrics_are_those_of_the_plain_formula(drawn, embedding_kind, label_kind, ks):
    x, labels = drawn
    embeddings, given_labels = EMBEDDING_KINDS[embedding_kind](x), LABEL_KINDS[label_kind](labels)
    if min(Counter(labels).values()) < 2:
        for name in ("recall", "hits", "map"):
            assert "class(es) with a single image" in refusal(METRICS[name], embeddings, given_labels)
        return
    if not ks or min(ks) < 1 or max(ks) >= len(x):
        refusal(recall_at_k, embeddings, given_labels, ks)
        ks = [1, len(x) - 1]
    recall, hits, mean = plain_metrics(x, labels, ks)
    assert recall_at_k(embeddings, given_labels, ks) == {k: pytest.approx(float(value), abs=1e-12) for k, value in recall.items()}
    assert hits_at_1(embeddings, given_labels).tolist() == hits
    assert map_at_r(embeddings, given_labels) == pytest.approx(float(mean), abs=1e-12)
    neighbours, _ = nearest_neighbours(embeddings, len(x) - 1)
    assert neighbours.tolist() == ranked(x)
    for form in (neighbours, neighbours.tolist(), torch.tensor(neighbours)):
        assert recall_at_k(embeddings, given_labels, ks, form) == recall_at_k(embeddings, given_labels, ks)


@settings(many, max_examples=max(20, EXAMPLES // 20))
@given(sets(), st.sampled_from(sorted(EMBEDDING_KINDS)), st.sampled_from(sorted(LABEL_KINDS)))
@pytest.mark.filterwarnings("ignore")
def test_nmi_is_one_number_of_them_all(drawn, embedding_kind, label_kind):
    x, labels = drawn
    value = nmi(EMBEDDING_KINDS[embedding_kind](x), LABEL_KINDS[label_kind](labels))
    assert 0 <= value <= 1 + 1e-12 and type(value) is float
    if len(set(labels)) == 1:
        assert value == 1


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(
    "labels",
    [
        [0, 0, 1, 1, NAN, NAN], np.array([0, 0, 1, 1, NAN, NAN]), [0, 0, 1, 1, None, None], ["a", "a", NAN, NAN, "b", "b"],
        np.array([0, 0, 1, 1, None, None], dtype=object), pd.Series(["a", "a", None, None, "b", "b"]),
        pd.Categorical([0, 0, 1, 1, None, None]),
        pd.array([1, 1, None, None, 2, 2], dtype="Int64"), torch.tensor([0, 0, 1, 1, NAN, NAN]), [0, 0, "a", "a", 1, 1], [float("inf")] * 6,
        np.array([1j] * 6), [[0], [0], [1], [1], [2], [2]], [{}, {}, {}, {}, {}, {}], pd.Series(pd.to_datetime(["2020"] * 5 + [None])),
    ],
)  # fmt: skip
def test_labels_that_are_missing_or_mixed_are_named(metric, labels):
    embeddings = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    embeddings[5] = embeddings[4]
    assert "labels must be numbers or names" in refusal(METRICS[metric], embeddings, labels)


@pytest.mark.parametrize("metric", METRICS)
def test_masked_values_are_missing(metric):
    mask = np.zeros((6, 6), bool)
    for hidden in (True, False):
        mask[4, 2] = hidden
        embeddings, labels = np.ma.masked_array(np.eye(6), mask=mask), np.ma.masked_array([0, 0, 1, 1, 2, 2], mask=mask[4])
        for arguments, what in (((embeddings, [0, 0, 1, 1, 2, 2]), "embeddings"), ((np.eye(6), labels), "labels")):
            if hidden:
                assert refusal(METRICS[metric], *arguments).startswith(f"{what} must be an array of numbers: some are masked")
            else:
                METRICS[metric](*arguments, **({"ks": (1,)} if metric == "recall" else {}))


@pytest.mark.parametrize("metric", METRICS)
def test_a_missing_label_is_named_by_its_place(metric):
    embeddings = np.eye(6)
    assert "label 4 is nan" in refusal(METRICS[metric], embeddings, np.array([0, 0, 1, 1, NAN, NAN]))
    assert "label 2 is None" in refusal(METRICS[metric], embeddings, ["a", "a", None, "b", "b", "b"])
    assert "label 1 is 'a'" in refusal(METRICS[metric], embeddings, [0, "a", 0, 0, 0, 0])


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("labels", [None, 3, "aabbcc", [], [0, 0], np.zeros((6, 1)), np.zeros(7), torch.zeros(6, 2), {1: 2}])
def test_labels_of_another_shape(metric, labels):
    assert "labels must be (6,), one per embedding, got" in refusal(METRICS[metric], np.eye(6), labels)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(
    "embeddings, said",
    [
        (None, "got None"), (3.0, "got 3.0"), ([], "got shape (0,)"), (np.zeros((0, 4)), "got shape (0, 4)"),
        (np.zeros((4, 0)), "got shape (4, 0)"),
        (np.ones(4), "got shape (4,)"), (torch.ones(4, 2, 2), "got shape (4, 2, 2)"),
        ([[1, 2], [3]], "array of numbers"),
        ([["a"], ["b"], ["c"], ["d"]], "such as 'a'"), ([[None], [1], [2], [3]], "such as None"),
        (np.ones((4, 2), complex), "real numbers"),
        (np.ones((4, 2), bool), "real numbers"), (np.array([[1.0], [NAN], [1], [1]]), "row 1 is not finite"),
        (np.array([[1.0], [2], [float("inf")], [1]]), "row 2 is not finite"),
        (torch.tensor([[1.0], [1], [1], [NAN]]).bfloat16(), "row 3 is not"),
        (torch.ones(4, 2, device="meta"), "array of numbers"), (torch.ones(4, 2).to_sparse(), "array of numbers"), ("abcd", "got 'abcd'"),
    ],
)  # fmt: skip
def test_embeddings_that_are_none(metric, embeddings, said):
    message = refusal(METRICS[metric], embeddings, [0, 0, 1, 1])
    assert message.startswith("embeddings") and said in message


@pytest.mark.parametrize("k", [0, -1, 6, 99, 1.0, 2.5, NAN, "1", None, True, [1], 10**30])
def test_ranks_that_are_none(k):
    x, labels = np.eye(6), [0, 0, 1, 1, 2, 2]
    assert refusal(nearest_neighbours, x, k)
    assert refusal(nearest_neighbours, x, k if k != 6 else 7, x[:6])
    assert refusal(recall_at_k, x, labels, (1, k))
    assert refusal(recall_at_k, x, labels, ()) == "recall_at_k needs ranks: ks is empty"
    assert recall_at_k(x, labels, np.array([1, 2])) == recall_at_k(x, labels, (1, 2))
    assert recall_at_k(x, labels, 2) == recall_at_k(x, labels, (2,))


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda n: n - 6, "whole numbers from 0 to 5"), (lambda n: n + 6, "whole numbers from 0 to 5"),
        (lambda n: n.astype(float), "whole numbers"),
        (lambda n: n * NAN, "whole numbers"),
        (lambda n: np.where(n == n[0, 0], -1, n), "whole numbers"), (lambda n: n[:3], "got shape (3, 5)"),
        (lambda n: n[:, :0], "got shape (6, 0)"), (lambda n: n[:, 0], "got shape (6,)"), (lambda n: "no", "got 'no'"),
        (lambda n: np.hstack([np.arange(6)[:, None], n]), "hold queries themselves"),
    ],
)  # fmt: skip
def test_neighbours_that_would_give_a_wrong_number_are_refused(change, said):
    x, labels = np.random.default_rng(1).normal(size=(6, 3)), [0, 0, 0, 1, 1, 1]
    neighbours, _ = nearest_neighbours(x, 5)
    for metric in (recall_at_k, hits_at_1, map_at_r):
        options = {"ks": (1,)} if metric is recall_at_k else {}
        assert said in refusal(metric, x, labels, neighbours=change(neighbours), **options)


def test_one_class_two_items_and_no_direction():
    for x in (np.eye(2), np.zeros((2, 3)), [[1], [-1]]):
        assert recall_at_k(x, [5, 5], (1,)) == {1: 1.0} and map_at_r(x, [5, 5]) == 1.0
        assert hits_at_1(x, ["a", "a"]).all() and nmi(x, [5, 5]) == 1
    assert nearest_neighbours(np.zeros((4, 2)), 3)[0].tolist() == [[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]]
    assert 0 <= nmi(np.ones((6, 2)), [0, 0, 1, 1, 2, 2]) <= 1


@pytest.mark.parametrize("seed", [-1, 2**31, 1.0, None, NAN, "0"])
def test_seeds_of_nmi(seed):
    assert refusal(nmi, np.eye(4), [0, 0, 1, 1], seed).startswith("seed must be a whole number")


# ------------------------------------------------------------------------------------------------ batches and pairs


@pytest.mark.parametrize("kind", [kind for kind in LABEL_KINDS if kind != "big"])
def test_batches_and_pairs_of_any_labels(kind):
    labels = [c for c in range(4) for _ in range(5)]
    batch = next(balanced_batches(LABEL_KINDS[kind](labels), 8, 2, seed=3))
    assert batch.tolist() == next(balanced_batches(np.array(labels), 8, 2, seed=3)).tolist()
    pairs, same = PairStream(LABEL_KINDS[kind](labels), np.random.default_rng(0)).draw(10)
    assert [labels[a] == labels[b] for a, b in pairs] == same.tolist() and same.sum() == 5


def test_batches_and_pairs_that_cannot_be_drawn():
    for options in ((0, 2), (7, 2), (4, 0), (-4, 2), (2, 4)):
        assert refusal(next, balanced_batches(np.array([0, 0, 1, 1]), *options, seed=0))
    assert refusal(next, balanced_batches(np.array([0, 0, 1, 1]), 4, 2, seed=0, start=-1))
    assert refusal(next, balanced_batches(np.array([]), 4, 2, seed=0))
    for labels in ([0, 0, NAN, NAN], None, [0, None], np.zeros((2, 2))):
        assert "labels must be" in refusal(next, balanced_batches(labels, 4, 2, seed=0))
        assert "labels must be" in refusal(PairStream, labels, np.random.default_rng(0))
