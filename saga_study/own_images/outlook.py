"""What GRPO can be expected to bring on your images: retrieval by reading beside the embedding's, the first verdicts, and a rule."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from saga_lib.anchor import pretrained_embedding
from saga_lib.common.errors import SagaError
from saga_lib.datasets.pixels import PixelStore
from saga_lib.reading import Reader, read_split, similarities
from saga_lib.retrieval import recall_at_k
from saga_study.design.expectations import FEW_WRONG, ORIGIN, READING_LEAD, START_SAME_CLASS, is_promising

if TYPE_CHECKING:
    from saga_lib.datasets.splits import Split
    from saga_lib.training import Session

NUM_IMAGES = 256  # train images that are read, whole classes of them: one forward pass each
WITHOUT_VERDICTS = "reading contrast (method contrast_pf), which needs no verdicts, may be worth a trial"


@dataclass(frozen=True)
class Retrieval:
    """R@1 (%) among some train images before training, by the tower's mean-pooled embedding and by what the frozen model reads."""

    images: int
    classes: int
    by_embedding: float
    by_reading: float  # NaN where it cannot be measured
    problem: str = ""  # why not

    @property
    def lead(self) -> float:
        """Points of R@1 by reading over the embedding's."""
        return self.by_reading - self.by_embedding


def some_classes(split: Split, num_images: int, rng: np.random.Generator) -> Split:
    """Return whole classes of a split, drawn at random until there are `num_images`; classes of one image cannot be retrieved.

    Raises `SagaError` unless there are two classes of two images.
    """
    counts = np.bincount(split.labels)
    usable = rng.permutation(np.flatnonzero(counts > 1))
    if len(usable) < 2:
        raise SagaError("the train half has fewer than two classes of two images: nothing can be retrieved")
    enough = int(np.searchsorted(np.cumsum(counts[usable]), num_images)) + 1
    chosen = np.sort(usable[: max(2, enough)])
    images = np.flatnonzero(np.isin(split.labels, chosen))
    labels = np.searchsorted(chosen, split.labels[images])
    attributes = split.class_attributes and [split.class_attributes[c] for c in chosen]
    names = [split.class_names[c] for c in chosen]
    return replace(split, paths=[split.paths[i] for i in images], labels=labels, class_names=names, class_attributes=attributes)


@torch.no_grad()
def measure_retrieval(session: Session, seed: int = 0, num_images: int = NUM_IMAGES) -> Retrieval:
    """Return how well some train images are retrieved by embedding and by reading, with a session's weights as they are."""
    split = some_classes(session.benchmark.train, num_images, np.random.default_rng([seed, 15]))
    tower, store = session.encoder.tower, PixelStore(split, session.encoder.tower)
    by_embedding = 100 * recall_at_k(pretrained_embedding(store, session.device), split.labels, (1,))[1]
    by_reading, problem = float("nan"), ""
    try:
        read = read_split(Reader(session.supervisor, session.vocabulary), tower, store, session.device)
    except SagaError as error:
        problem = str(error)
    else:
        scores = similarities([torch.as_tensor(p).clamp_min(1e-12).log() for p in read]).fill_diagonal_(-torch.inf)
        by_reading = 100 * recall_at_k(np.concatenate(read, 1), split.labels, (1,), scores.argmax(1, keepdim=True).numpy())[1]
    return Retrieval(len(split), len(split.class_names), by_embedding, by_reading, problem)


def expectation(right_same: float, error: float, right_different: float, retrieval: Retrieval) -> list[str]:
    """Return sentences on what to expect of GRPO before any GPU hours.

    right_same, right_different: shares of right first verdicts by kind of pair; error: points, half a 95 % interval of the former.
    """
    where = f"{retrieval.images} train images of {retrieval.classes} classes, before training: R@1"
    said = [f"{where} {retrieval.by_embedding:.1f} % by the embedding, {retrieval.by_reading:.1f} % by what the supervisor reads"]
    if retrieval.problem:
        said = [f"{where} {retrieval.by_embedding:.1f} % by the embedding; by reading it is not known ({retrieval.problem})"]
    threshold, verdicts = 100 * START_SAME_CLASS, f"{100 * right_same:.0f} ± {error:.0f} % of the verdicts on pairs of one class are right"
    if abs(100 * right_same - threshold) < error:
        parted = f"{verdicts}, and the rule parts at {threshold:.0f} %"
        said.append(f"what to expect of GRPO cannot be told from so few pairs: {parted}; take more ({ORIGIN})")
    elif is_promising(right_same, retrieval.lead):
        gain = "expect GRPO to collect a part of what the true attributes would give"
        said.append(f"{gain}: {verdicts}, {threshold:.0f} % or more ({ORIGIN})")
    elif right_same < START_SAME_CLASS:
        said.append(f"expect little of GRPO: {verdicts}, fewer than {threshold:.0f} % ({ORIGIN}); {WITHOUT_VERDICTS}")
    else:
        behind = f"reading is {-retrieval.lead:.1f} points of R@1 behind the embedding, more than {-READING_LEAD:.0f}"
        said.append(f"expect little of GRPO: {behind} ({ORIGIN}); {WITHOUT_VERDICTS}")
    if right_different >= FEW_WRONG:
        nearly_all = f"{100 * right_different:.0f} % of the verdicts on pairs of two classes are right"
        said.append(f"{nearly_all}: only pairs of one class will teach anything")
    return said
