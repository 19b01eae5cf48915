"""What the frozen model reads from a split's tokens, and what a probe finds in the embedding (`measure_reading`)."""

from __future__ import annotations

import numpy as np
import torch

from saga_lib.datasets.pixels import PixelStore
from saga_lib.reading import Reader, read_split, similarities
from saga_lib.retrieval import map_at_r, recall_at_k
from saga_lib.towers import Tower


def reading_measures(
    reader: Reader, tower: Tower, store: PixelStore, embeddings: np.ndarray, device: torch.device
) -> dict[str, object]:
    """Return what the frozen model holds of a split: Recall@1 and MAP@R if images are compared by their readings S.

    Where the true attributes are known, also {attribute: share} by `accuracy`, of images whose most probable value is the true one,
    `consensus`, of classes whose mean reading has it as the most probable, and `probe`, of images where `probe_accuracy` finds it in their
    `embeddings` (N, D): what is read from the tokens, what of it would be mended by averaging, and what is in the embedding.
    """
    read, split = read_split(reader, tower, store, device), store.split
    scores = similarities([torch.as_tensor(p).clamp_min(1e-12).log() for p in read]).fill_diagonal_(-torch.inf)
    widest = int(np.bincount(split.labels).max())
    neighbours = scores.topk(min(widest, len(split) - 1), dim=1).indices.numpy()
    together = np.concatenate(read, 1)
    measures: dict[str, object] = {
        "recall": {"1": recall_at_k(together, split.labels, (1,), neighbours)[1]}, "map_at_r": map_at_r(together, split.labels, neighbours),
    }  # fmt: skip
    if split.class_attributes:
        attributes = reader.vocabulary.attributes
        truth = {a.name: np.array([a.values.index(of[a.name]) for of in split.class_attributes])[split.labels] for a in attributes}
        measures["accuracy"] = {a.name: float((p.argmax(1) == truth[a.name]).mean()) for a, p in zip(attributes, read, strict=True)}
        members = np.eye(len(split.class_names))[:, split.labels]  # (C, N)
        by_class = {a.name: (members @ p).argmax(1)[split.labels] for a, p in zip(attributes, read, strict=True)}
        measures["consensus"] = {name: float((by_class[name] == values).mean()) for name, values in truth.items()}
        measures["probe"] = {name: probe_accuracy(embeddings, split.labels, values) for name, values in truth.items()}
    return measures


def probe_accuracy(embeddings: np.ndarray, labels: np.ndarray, values: np.ndarray) -> float:
    """Return how often a linear probe finds an attribute's value (N,) int in an embedding (N, D).

    A ridge classifier, fitted on the first half of the classes (N,) int and scored on the second, and the other way round; the mean.
    """
    from sklearn.linear_model import RidgeClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    first, scores = labels < (labels.max() + 1) / 2, []
    for fitted in (first, ~first):
        probe = make_pipeline(StandardScaler(), RidgeClassifier()).fit(embeddings[fitted], values[fitted])
        scores.append(probe.score(embeddings[~fitted], values[~fitted]))
    return float(np.mean(scores))
