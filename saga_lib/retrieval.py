"""Nearest-neighbour retrieval and its metrics.

The protocol, fixed once: every image is a query, all *other* images are its gallery (the query is left out
by its index, never by its rank), similarity is the cosine, and equal similarities are ranked by the lower
gallery index. Five items, of which 0, 1 and 3 have the same embedding:

>>> import numpy as np
>>> embeddings = np.array([[1, 0], [1, 0], [0, 1], [1, 0], [0, 1]], dtype=np.float32)
>>> labels = np.array([0, 1, 1, 0, 1])
>>> nearest_neighbours(embeddings, k=2)[0].tolist()
[[1, 3], [0, 3], [4, 0], [0, 1], [2, 0]]
>>> hits_at_1(embeddings, labels).tolist()  # item 0 meets item 1 (wrong) before item 3 (right)
[False, False, True, True, True]
>>> recall_at_k(embeddings, labels, ks=(1, 2))
{1: 0.6, 2: 0.8}

Inputs are arrays, torch tensors or lists (saga_lib.common.arrays), results numpy or plain Python. faiss and scikit-learn load on first use.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from saga_lib.common.arrays import as_labels, as_ranks, as_rows
from saga_lib.common.errors import SagaError
from saga_lib.common.ranges import checked, whole

SLACK = 8  # candidates fetched beyond k, so that ties and float32 noise at rank k can be resolved
QUERY_CHUNK = 1024
RESCORE_BYTES = 2**27  # float64 scratch of one chunk in the exact re-scoring


# ----------------------------------------------------------------------------------------------------
# Checks


class _Rows(NamedTuple):
    """Checked embeddings: as given in float32, their float64 norms, and a normalised float32 copy."""

    raw: np.ndarray  # (N, D)
    norms: np.ndarray  # (N,)
    unit: np.ndarray  # (N, D)


def _checked_rows(embeddings: np.ndarray, what: str = "embeddings") -> _Rows:
    """Return `embeddings` (N, D) with their norms; rows must be finite, and a zero row stays zero."""
    raw = as_rows(embeddings, what)
    norms = np.empty(len(raw))
    for start in range(0, len(raw), QUERY_CHUNK):
        part = raw[start : start + QUERY_CHUNK].astype(np.float64)
        norms[start : start + QUERY_CHUNK] = np.sqrt(np.einsum("nd,nd->n", part, part))
    norms[norms == 0] = 1
    return _Rows(raw, norms, raw / norms.astype(np.float32)[:, None])


def _class_sizes(embeddings: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return labels (N,) as an array and the size (N,) of each item's class; no class may be alone."""
    labels = as_labels(labels, len(as_rows(embeddings, "embeddings")))
    classes, inverse, counts = np.unique(labels, return_inverse=True, return_counts=True)
    alone = classes[counts < 2]
    if len(alone):
        shown = ", ".join(str(c) for c in alone[:5]) + (", …" if len(alone) > 5 else "")
        why = "a query needs another image of its class in the gallery; drop these classes or add images"
        raise SagaError(f"{len(alone)} class(es) with a single image (label {shown}): {why}")
    return labels, counts[inverse]


# ----------------------------------------------------------------------------------------------------
# Search


def nearest_neighbours(queries: np.ndarray, k: int, gallery: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return the k gallery items most similar to each query, best first, and their cosine similarities.

    queries (Nq, D) and gallery (Ng, D), any norm -> indices (Nq, k) int64, similarities (Nq, k) float32. With `gallery=None` the queries
    are the gallery and each query is left out of its own list, by index. Similarities are accumulated in float64 and rounded to float32;
    equal ones rank by the lower index, so the answer is the same with and without faiss. Memory beside the input: one normalised copy, one
    more inside faiss, and about 0.7 GB of scratch at Ng = 40,000.

    Raises SagaError if k is larger than the number of candidates or a row is not finite. Source: SAGA Eq. 9.
    """
    exclude_self = gallery is None
    queries = _checked_rows(queries, "queries")
    gallery = queries if exclude_self else _checked_rows(gallery, "gallery")
    num_queries, num_gallery, dim = len(queries.raw), len(gallery.raw), gallery.raw.shape[1]
    if queries.raw.shape[1] != dim:
        raise SagaError(f"queries have {queries.raw.shape[1]} dimensions, the gallery {dim}")
    num_candidates = num_gallery - exclude_self
    k = checked("k", k, "int")
    if not 1 <= k <= num_candidates:
        raise SagaError(f"k = {k} neighbours asked of {num_candidates} candidate(s): lower k or add images")

    num_fetched = min(k + exclude_self + SLACK, num_gallery)
    search = _approximate_search(gallery.unit)
    # Float32 dot products of unit vectors, summed in any order, err by far less than this.
    tolerance = 4 * np.finfo(np.float32).eps * max(4.0, dim**0.5)
    indices = np.empty((num_queries, k), dtype=np.int64)
    similarities = np.empty((num_queries, k), dtype=np.float32)
    for start in range(0, num_queries, QUERY_CHUNK):
        rows = np.arange(start, min(start + QUERY_CHUNK, num_queries))
        approximate, candidates = search(queries.unit[rows], num_fetched)
        worst_fetched = approximate.min(axis=1)
        exact = _exact_similarities(queries, rows, gallery, candidates)
        if exclude_self:
            exact[candidates == rows[:, None]] = -np.inf
        order = np.lexsort((candidates, -exact))[:, :k]
        indices[rows] = np.take_along_axis(candidates, order, axis=1)
        similarities[rows] = np.take_along_axis(exact, order, axis=1)
        if num_fetched < num_gallery:
            # Something not fetched could tie with, or beat, rank k in these rows: search them exactly.
            unsure = rows[similarities[rows, -1] <= worst_fetched + tolerance]
            if len(unsure):
                indices[unsure], similarities[unsure] = _exact_search(queries, unsure, gallery, k, exclude_self)
    return indices, similarities


def _approximate_search(gallery: np.ndarray) -> Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]:
    """Return search(queries, num) -> (similarities, indices), both (Nq, num), in float32 and no set order."""
    try:
        import faiss
    except ModuleNotFoundError:

        def search(queries: np.ndarray, num: int) -> tuple[np.ndarray, np.ndarray]:
            scores = queries @ gallery.T  # (chunk, Ng)
            best = np.argpartition(-scores, num - 1, axis=1)[:, :num]
            return np.take_along_axis(scores, best, axis=1), best

        return search

    index = faiss.IndexFlatIP(gallery.shape[1])
    index.add(gallery)
    return index.search


def _exact_similarities(queries: _Rows, rows: np.ndarray, gallery: _Rows, candidates: np.ndarray) -> np.ndarray:
    """Return the cosine (len(rows), K) float32 of each query in `rows` with its candidates (len(rows), K)."""
    exact = np.empty(candidates.shape, dtype=np.float32)
    step = max(1, RESCORE_BYTES // (8 * gallery.raw.shape[1] * candidates.shape[1]))
    for start in range(0, len(rows), step):
        row, chosen = rows[start : start + step], candidates[start : start + step]
        # einsum without BLAS sums every row in one order, so that duplicates tie exactly
        products = np.einsum("qd,qkd->qk", queries.raw[row].astype(np.float64), gallery.raw[chosen].astype(np.float64))
        exact[start : start + step] = products / (queries.norms[row, None] * gallery.norms[chosen])
    return exact


def _exact_search(queries: _Rows, rows: np.ndarray, gallery: _Rows, k: int, exclude_self: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return indices and similarities (len(rows), k) from all float64 products: slow, for undecided rows."""
    indices = np.empty((len(rows), k), dtype=np.int64)
    similarities = np.empty((len(rows), k), dtype=np.float32)
    num_gallery, dim = gallery.raw.shape
    block = max(1, RESCORE_BYTES // (8 * dim))
    part = queries.raw[rows].astype(np.float64)
    scores = np.empty((len(rows), num_gallery), dtype=np.float32)
    for left in range(0, num_gallery, block):
        columns = slice(left, left + block)
        products = part @ gallery.raw[columns].astype(np.float64).T
        scores[:, columns] = products / (queries.norms[rows, None] * gallery.norms[columns])
    if exclude_self:
        scores[np.arange(len(rows)), rows] = -np.inf
    for i, row_scores in enumerate(scores):
        kth_best = np.partition(row_scores, -k)[-k]
        at_least = np.flatnonzero(row_scores >= kth_best)
        indices[i] = at_least[np.argsort(-row_scores[at_least], kind="stable")[:k]]
        similarities[i] = row_scores[indices[i]]
    return indices, similarities


# ----------------------------------------------------------------------------------------------------
# Metrics


def _relevance(embeddings: np.ndarray, labels: np.ndarray, k: int, neighbours: np.ndarray | None) -> np.ndarray:
    """Return (N, k) bool: whether the neighbour of each rank has the query's label."""
    neighbours = nearest_neighbours(embeddings, k)[0] if neighbours is None else as_ranks(neighbours, len(labels), k)
    return labels[neighbours] == labels[:, None]


def recall_at_k(
    embeddings: np.ndarray, labels: np.ndarray, ks: Sequence[int] = (1, 2, 4, 8), neighbours: np.ndarray | None = None
) -> dict[int, float]:
    """Return {k: fraction in [0, 1] of queries with an image of their class among the k nearest}.

    embeddings (N, D), labels (N,). `neighbours` (N, >= max k), the indices of a `nearest_neighbours` call on the same embeddings, saves
    searching again. Raises SagaError if a class has a single image. Source: SAGA App. A, Tables 1-5 (which print percent).
    """
    labels, _ = _class_sizes(embeddings, labels)
    ks = [checked("a rank in ks", k, "int", whole(1)) for k in (ks if np.iterable(ks) else [ks])]
    if not ks:
        raise SagaError("recall_at_k needs ranks: ks is empty")
    relevant = _relevance(embeddings, labels, max(ks), neighbours)
    return {k: float(relevant[:, :k].any(axis=1).mean()) for k in ks}


def hits_at_1(embeddings: np.ndarray, labels: np.ndarray, neighbours: np.ndarray | None = None) -> np.ndarray:
    """Return (N,) bool: whether each query's nearest neighbour has its class; the mean is Recall@1.

    Arguments and errors as in `recall_at_k`.
    """
    labels, _ = _class_sizes(embeddings, labels)
    return _relevance(embeddings, labels, 1, neighbours)[:, 0]


def map_at_r(embeddings: np.ndarray, labels: np.ndarray, neighbours: np.ndarray | None = None) -> float:
    """Return MAP@R, the mean over queries of `average_precision_at_r`, in [0, 1]; arguments and errors as there."""
    return float(average_precision_at_r(embeddings, labels, neighbours).mean())


def average_precision_at_r(embeddings: np.ndarray, labels: np.ndarray, neighbours: np.ndarray | None = None) -> np.ndarray:
    """Return (1/R) Σ_{i<=R} precision(i) · relevant(i) of each query (N,), in [0, 1].

    R is the number of other images of the query's class. Arguments and errors as in `recall_at_k`, with `neighbours` at least as wide as
    the largest R. Source: "A Metric Learning Reality Check", ECCV 2020, arXiv 2003.08505, Sec. 3.2.
    """
    labels, sizes = _class_sizes(embeddings, labels)
    num_relevant = sizes - 1  # R of each query, (N,)
    ranks = np.arange(1, num_relevant.max() + 1)
    relevant = _relevance(embeddings, labels, len(ranks), neighbours)
    relevant &= ranks <= num_relevant[:, None]
    precision = np.cumsum(relevant, axis=1) / ranks
    return (precision * relevant).sum(axis=1) / num_relevant


def nmi(embeddings: np.ndarray, labels: np.ndarray, seed: int = 0) -> float:
    """Return the normalised mutual information, in [0, 1], of k-means clusters with the classes.

    embeddings (N, D), l2-normalised here; labels (N,); k is the number of classes; arithmetic-mean normalisation. faiss k-means (25
    iterations, best of 3 starts, all points) or, without faiss, that of scikit-learn with the same budget: two implementations differ by a
    few thousandths, so compare only values of one. Not exactly repeatable across machines: the order of sums decides near-ties. App. A.
    """
    embeddings = _checked_rows(embeddings).unit
    labels = np.unique(as_labels(labels, len(embeddings)), return_inverse=True)[1]
    num_classes, seed = int(labels.max()) + 1, checked("seed", seed, "int", whole(0, 2**31 - 1))
    try:
        from sklearn.cluster import KMeans
        from sklearn.metrics import normalized_mutual_info_score
    except ModuleNotFoundError as error:
        raise SagaError("nmi needs scikit-learn: pip install scikit-learn") from error
    try:
        import faiss
    except ModuleNotFoundError:
        kmeans = KMeans(num_classes, n_init=3, max_iter=25, random_state=seed)
        clusters = kmeans.fit_predict(embeddings)
    else:
        points = {"min_points_per_centroid": 1, "max_points_per_centroid": len(embeddings)}  # faiss would otherwise train on a sample
        kmeans = faiss.Kmeans(embeddings.shape[1], num_classes, niter=25, nredo=3, seed=seed, **points)
        kmeans.train(embeddings)
        clusters = kmeans.index.search(embeddings, 1)[1][:, 0]
    return float(normalized_mutual_info_score(labels, clusters))
