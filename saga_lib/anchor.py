"""The anchor: a control that keeps the embedding near the pre-trained one without any language model.

Relational self-distillation: in each batch, the similarities of the embeddings are drawn to those of a fixed teacher. By default the
teacher is the pre-trained embedding itself. A language signal that does no more than keep tokens where the frozen model can read them is
matched by this; whoever claims more must beat it. Not in the SAGA paper.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from saga_lib import towers
from saga_lib.config import RunConfig
from saga_lib.datasets.pixels import PixelStore
from saga_lib.datasets.splits import Split
from saga_lib.reading import Reader, read_split
from saga_lib.supervisor.base import Supervisor
from saga_lib.vocabulary import Vocabulary

CHUNK = 64  # images


class Anchor:
    """L_anchor = mean over images of KL(teacher ‖ student), over the softmax of an image's similarities to the rest of its batch."""

    def __init__(self, factors: Tensor, temperature: float = 0.1) -> None:
        """`factors` (N, F) are of all train images: the teacher's logits of two images are the product of their rows."""
        self.factors, self.temperature = factors, temperature

    def __call__(self, embeddings: Tensor, indices: np.ndarray) -> Tensor:
        """Return the scalar loss of a batch: embeddings (B, D_e), positions `indices` (B,) int among the train images."""
        z = F.normalize(embeddings.to(torch.promote_types(embeddings.dtype, torch.float32)), dim=1)
        rows = self.factors[torch.as_tensor(indices)].to(z)
        others = ~torch.eye(len(z), dtype=torch.bool, device=z.device)

        def log_p(similarities: Tensor) -> Tensor:
            return similarities[others].view(len(z), -1).log_softmax(-1)

        return F.kl_div(log_p(z @ z.T / self.temperature), log_p(rows @ rows.T), log_target=True, reduction="batchmean")


@torch.no_grad()
def pretrained_embedding(store: PixelStore, device: torch.device) -> Tensor:
    """Return the mean-pooled, l2-normalised tokens (N, D) of a split, float32 on the CPU: the embedding before training."""
    parts = []
    for chunk in store.chunks(CHUNK):
        with towers.autocast(device):
            merged = store.tower(chunk.to(device)).merged
        parts.append(F.normalize(merged.float().mean(1), dim=1).cpu())
    return torch.cat(parts)


def make_anchor(
    config: RunConfig, supervisor: Supervisor | None, vocabulary: Vocabulary, store: PixelStore, device: torch.device
) -> Anchor | None:
    """Return the anchor of a run that has one; `store` holds its train images, and its tower is still as it was pre-trained."""
    temperature = config.anchor_temperature
    if config.anchor == "embedding":
        return Anchor(pretrained_embedding(store, device) / temperature**0.5, temperature)
    if config.anchor == "reading":
        return reading_anchor(Reader(supervisor, vocabulary), store, temperature, device)
    return truth_anchor(vocabulary, store.split, temperature) if config.anchor == "truth" else None


def reading_anchor(reader: Reader, store: PixelStore, temperature: float, device: torch.device) -> Anchor:
    """Return the anchor to the frozen model's readings: the number of attributes in which two images are expected to agree."""
    read = read_split(reader, store.tower, store, device)
    return Anchor(torch.as_tensor(np.concatenate(read, 1)), temperature)


def truth_anchor(vocabulary: Vocabulary, split: Split, temperature: float) -> Anchor:
    """Return the anchor to the number of attributes in which two images' classes truly agree, where that is known."""
    columns: list[Sequence] = []
    for attribute in vocabulary.attributes:
        values = [split.attributes(i)[attribute.name] for i in range(len(split))]
        columns.append(np.eye(len(attribute.values), dtype=np.float32)[[attribute.values.index(value) for value in values]])
    return Anchor(torch.as_tensor(np.concatenate(columns, 1)), temperature)


class TokenDrift:
    """How far a tower's tokens have gone from the pre-trained ones, on some images of the train split."""

    def __init__(self, store: PixelStore, device: torch.device, images: int = 256) -> None:
        """Remember the tokens that the tower in `store` gives now."""
        count = len(store.split)
        self.pixels, self.device = store[np.unique(np.linspace(0, count - 1, min(images, count)).astype(int))], device
        self.tokens = self._encode(store.tower)

    def measure(self, tower: nn.Module) -> float:
        """Return the mean over images and tokens of 1 − cos(now, then)."""
        return float(1 - F.cosine_similarity(self._encode(tower), self.tokens, dim=-1).mean())

    @torch.no_grad()
    def _encode(self, tower: nn.Module) -> Tensor:
        with towers.autocast(self.device):
            return torch.cat([tower(chunk.to(self.device)).merged.float().cpu() for chunk in self.pixels.split(64)])
