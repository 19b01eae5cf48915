"""Class-balanced batches and balanced same/different pairs within them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from saga_lib.common.arrays import as_labels
from saga_lib.common.errors import SagaError


def balanced_batches(labels: np.ndarray, batch_size: int, images_per_class: int, seed: int, start: int = 0) -> Iterator[np.ndarray]:
    """Yield index arrays (batch_size,) int without end, with `images_per_class` (m) images of each class in a batch.

    Batch n depends on the arguments alone, so `start` resumes a stream exactly at that batch. Datasets of few classes get
    smaller batches: m images of every class.
    """
    try:
        from pytorch_metric_learning.samplers import MPerClassSampler
        from pytorch_metric_learning.utils import common_functions
    except ModuleNotFoundError as error:
        raise SagaError(f"class-balanced batches need pytorch-metric-learning ({error}): pip install it") from None

    labels, m = as_labels(labels), images_per_class
    if not len(labels) or min(batch_size, m) < 1 or batch_size % m or start < 0:
        raise SagaError(f"{len(labels)} images in batches of {batch_size} from {start} on: give images, a multiple of {m}, at least 0")
    size = min(batch_size, m * len(np.unique(labels)))
    per_epoch = max(1, len(labels) // size)
    epoch, skip = divmod(start, per_epoch)
    while True:
        shared = common_functions.NUMPY_RANDOM
        try:
            common_functions.NUMPY_RANDOM = np.random.RandomState([seed, epoch])
            # a new sampler for every epoch: it shuffles its classes in place
            sampler = MPerClassSampler(labels, m, batch_size=size, length_before_new_iter=per_epoch * size)
            order = np.asarray(list(sampler))
        finally:
            common_functions.NUMPY_RANDOM = shared
        batches = order.reshape(-1, size)
        yield from batches[skip:]
        epoch, skip = epoch + 1, 0


class PairStream:
    """Draws pairs of a batch without repetition: half of each draw are of one class, half of two.

    Once one kind is used up the other takes its place, and once both are, draws get smaller. With `hard`, that fraction of
    the different-class pairs comes from the `hard_pool` pairs that are most similar by `embeddings` (N, D_e).
    """

    def __init__(
        self, labels: np.ndarray, rng: np.random.Generator, embeddings: np.ndarray | None = None, hard: float = 0.0,
        hard_pool: int = 64,
    ) -> None:  # fmt: skip
        labels = as_labels(labels)
        first, second = np.triu_indices(len(labels), 1)
        same = labels[first] == labels[second]
        pairs = np.stack([first, second], 1)
        flip = rng.uniform(size=len(pairs)) < 0.5  # which image comes first is random as well
        pairs[flip] = pairs[flip, ::-1]
        self._same = list(rng.permutation(pairs[same]))
        different = rng.permutation(pairs[~same])
        if hard and embeddings is not None:
            similarity = np.einsum("pd,pd->p", embeddings[different[:, 0]], embeddings[different[:, 1]])
            ranked = different[np.argsort(similarity, kind="stable")[::-1]]
            near, far = list(rng.permutation(ranked[:hard_pool])), list(rng.permutation(ranked[hard_pool:]))
            different = []
            while near or far:
                takes_near = bool(near) and (not far or rng.uniform() < hard)
                different.append((near if takes_near else far).pop())
            different.reverse()  # draws pop from the end
        self._different = list(different)

    def draw(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Return pairs (B, 2) of batch positions and (B,) bool, True where the classes agree; B <= count."""
        num_same = min(count // 2, len(self._same))
        num_different = min(count - num_same, len(self._different))
        num_same = min(count - num_different, len(self._same))
        chosen = [self._same.pop() for _ in range(num_same)] + [self._different.pop() for _ in range(num_different)]
        places = np.concatenate([(np.arange(n) + 0.5) / n for n in (num_same, num_different) if n] or [np.zeros(0)])
        order = np.argsort(places, kind="stable")  # the kinds alternate, so the first K pairs are balanced for any K
        return np.asarray(chosen, dtype=np.int64).reshape(-1, 2)[order], order < num_same
