"""What stands in for packages that a machine with a GPU may lack, so that a run can be tried there; its numbers are of no table.

Without pytorch-metric-learning, batches are drawn by `plain_batches` (the Potential Field loss needs no package); without
scikit-learn, NMI is left at 0. faiss is missed nowhere: retrieval does without.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from itertools import count
from unittest.mock import patch

import numpy as np

NEEDED = {"pytorch_metric_learning": "balanced_batches", "sklearn": "nmi"}  # by package: what of saga_lib.training needs it


def missing() -> list[str]:
    """Return the packages that are stood in for here."""
    return [package for package in NEEDED if find_spec(package) is None]


def plain_batches(labels: np.ndarray, batch_size: int, images_per_class: int, seed: int, start: int = 0) -> Iterator[np.ndarray]:
    """Yield index arrays (batch_size,) as `saga_lib.pairs.balanced_batches` does: classes, then images of each, by (seed, number)."""
    members = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    classes = min(batch_size // images_per_class, len(members))
    for number in count(start):
        rng = np.random.default_rng([seed, number])
        chosen = [members[c] for c in rng.choice(len(members), classes, replace=False)]
        yield np.concatenate([rng.choice(images, images_per_class, replace=len(images) < images_per_class) for images in chosen])


@contextmanager
def stand_ins() -> Iterator[list[str]]:
    """Within, runs train without the packages that are missing; yields their names."""
    from saga_lib import training

    own = {"balanced_batches": plain_batches, "nmi": lambda embeddings, labels: 0.0}
    absent = missing()
    with ExitStack() as stack:
        for package in absent:
            stack.enter_context(patch.object(training, NEEDED[package], own[NEEDED[package]]))
        yield absent
