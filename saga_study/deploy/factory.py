"""faiss indexes by their factory strings: checked before the slow part, trained on a sample, saved and read memory-mapped."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from saga_lib.common.errors import SagaError

FLAT = "Flat"  # compares with every image: the embeddings themselves
FORMER = {"exact": FLAT, "ivf": "IVF1024,Flat", "hnsw": "HNSW32"}  # names that strings had once, and what to write now
IVF_PROBES = 24  # clusters looked into, or 1 of 64 where that is more
HNSW_BUILD, HNSW_SEARCH = 80, 128  # candidates kept while building and while searching
POINTS_PER_CLUSTER = 40  # of the sample that k-means sees; faiss' own least is 39
LEAST_SAMPLE = 65_536  # what faiss trains the 256 values of a product quantiser on at most


def import_faiss():
    try:
        import faiss
    except ModuleNotFoundError:
        raise SagaError("searching needs faiss: pip install faiss-cpu") from None
    return faiss


def empty_vectors(dim: int, kind: str):
    """Return an untrained faiss index by its factory string, for unit vectors of dimension `dim` and their inner product.

    Raises `SagaError` for a string that faiss does not know, or that does not fit the dimension.
    """
    faiss = import_faiss()
    try:
        vectors = faiss.index_factory(dim, kind, faiss.METRIC_INNER_PRODUCT)
    except (RuntimeError, TypeError, UnicodeError) as error:
        raise _refused(kind, dim, str(error)) from None
    clustered = faiss.try_extract_index_ivf(vectors)
    if clustered is not None and clustered.nlist < 1:
        raise SagaError(f"index {kind!a} has no cluster; write their number behind IVF, such as IVF4096,PQ64")
    if vectors.metric_type != faiss.METRIC_INNER_PRODUCT or kind.startswith("IDMap"):
        raise SagaError(f"index {kind!a} cannot be searched by cosine; use such as Flat, IVF1024,Flat, IVF4096,PQ64 or HNSW32")
    if isinstance(vectors, faiss.IndexHNSW):
        vectors.hnsw.efConstruction, vectors.hnsw.efSearch = HNSW_BUILD, HNSW_SEARCH
    inner = _last(vectors)
    for quantiser in filter(None, (clustered, getattr(inner, "pq", None))):
        quantiser.cp.min_points_per_centroid = 1  # else a warning on every small folder
    if hasattr(inner, "do_polysemous_training"):
        inner.do_polysemous_training = False  # minutes of annealing, for a filter that nothing here switches on
    return vectors


def _refused(kind: str, dim: int, said: str) -> SagaError:
    """Return the one line about a string that faiss refused, saying `said`."""
    start, known = f"index {kind!a:.80}", "write a factory string of faiss, such as Flat, IVF1024,Flat, IVF4096,PQ64 or HNSW32"
    if kind in FORMER:
        return SagaError(f"{start} is written as a factory string of faiss now: {FORMER[kind]}")
    parts = re.search(r"PQ(\d+)", kind)
    if "multiple of the number of subquantizers" in said and parts:
        divisors = [number for number in range(1, dim + 1) if dim % number == 0]
        near = min(divisors, key=lambda number: abs(number - int(parts[1])))
        return SagaError(f"{start} cuts {dim} dimensions into {parts[1]} parts, which does not come out even; use PQ{near}")
    if "could not parse" in said or "stoi" in said or not kind:
        return SagaError(f"{start} is unknown to faiss; {known}")
    return SagaError(f"{start} does not fit vectors of {dim} dimensions ({said.splitlines()[-1].rsplit(': ', 1)[-1]:.100}); {known}")


def _last(vectors):
    """Return the index within transforms and refinements that holds the codes."""
    faiss = import_faiss()
    while isinstance(vectors, faiss.IndexPreTransform | faiss.IndexRefine):
        vectors = faiss.downcast_index(vectors.index if isinstance(vectors, faiss.IndexPreTransform) else vectors.base_index)
    return vectors


def images_needed(vectors) -> int:
    """Return how many images training needs at least: one for every cluster, and for every value of a code of a product quantiser."""
    clustered, codes = import_faiss().try_extract_index_ivf(vectors), getattr(_last(vectors), "pq", None)
    return max(1, clustered.nlist if clustered is not None else 1, codes.ksub if codes is not None else 1)


def check_enough(vectors, kind: str, num: int) -> None:
    """Raise `SagaError` if `num` images are too few to train an index."""
    if (needed := images_needed(vectors)) > num:
        least = f"IVF{max(1, num // POINTS_PER_CLUSTER)},Flat"
        raise SagaError(f"index {kind} needs at least {needed:,} images to be trained on, there are {num:,}; use Flat, or {least}")


def sample_size(vectors, num: int) -> int:
    """Return on how many of `num` images to train an index: enough for k-means, and no more than memory bears."""
    clustered = import_faiss().try_extract_index_ivf(vectors)
    return 0 if vectors.is_trained else min(num, max(LEAST_SAMPLE, POINTS_PER_CLUSTER * (clustered.nlist if clustered is not None else 0)))


def train(vectors, kind: str, sample: np.ndarray) -> None:
    """Train an index on unit vectors (S, D) float32, and set how many clusters a search looks into."""
    check_enough(vectors, kind, len(sample))
    try:
        vectors.train(sample)
    except RuntimeError as error:
        raise _refused(kind, vectors.d, str(error)) from None
    if (clustered := import_faiss().try_extract_index_ivf(vectors)) is not None:
        clustered.nprobe = min(max(IVF_PROBES, clustered.nlist // 64), clustered.nlist)


def bytes_each(vectors) -> int:
    """Return the bytes of memory that an image takes in a faiss index while it is filled: code, number, links of a graph."""
    faiss = import_faiss()
    inner = _last(vectors)
    if isinstance(inner, faiss.IndexHNSW):
        return faiss.downcast_index(inner.storage).sa_code_size() + 2 * 4 * inner.hnsw.nb_neighbors(1) + 16
    refined = 4 * vectors.d if isinstance(vectors, faiss.IndexRefineFlat) else 0
    return inner.sa_code_size() + 8 + refined


def read_mapped(path: Path, kind: str):
    """Return the faiss index of a file, whose codes stay on the disk until they are looked at; raises RuntimeError if it is none.

    Lists that another file holds are refused: nothing but this file is opened.
    """
    faiss = import_faiss()
    mapping = faiss.IO_FLAG_MMAP if "IVF" in kind else faiss.IO_FLAG_MMAP_IFC  # lists of clusters; plain codes and graphs
    # Without the first flag a path in the file would be followed anywhere.
    vectors = faiss.read_index(str(path), faiss.IO_FLAG_ONDISK_SAME_DIR | faiss.IO_FLAG_READ_ONLY | mapping)
    if (clustered := faiss.try_extract_index_ivf(vectors)) is not None:
        lists = faiss.downcast_InvertedLists(clustered.invlists)
        if isinstance(lists, faiss.OnDiskInvertedLists) and lists.filename:  # that of the file itself has no name
            raise RuntimeError("its lists are kept in another file")
    return vectors
