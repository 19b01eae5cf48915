"""Preprocessed pixels of a split, in memory when they fit."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor, nn

from saga_lib.datasets.splits import Split

PRELOAD_BYTES = 2**30  # splits whose pixels fit are preprocessed once


class PixelStore:
    """Preprocessed pixels of a split, kept in memory when they fit, else read as needed."""

    def __init__(self, split: Split, tower: nn.Module) -> None:
        self.split, self.tower = split, tower
        one = tower.preprocess([split.open(0)])
        self._all = None
        if one.numel() * 4 * len(split) <= PRELOAD_BYTES:
            chunks = [range(i, min(i + 256, len(split))) for i in range(0, len(split), 256)]
            self._all = torch.cat([tower.preprocess(split.images(chunk)) for chunk in chunks])

    def __getitem__(self, indices: np.ndarray) -> Tensor:
        """Return pixels (n, …) float32 of the images at `indices` (n,)."""
        if self._all is not None:
            return self._all[torch.as_tensor(indices)]
        with ThreadPoolExecutor() as pool:
            images = list(pool.map(self.split.open, indices.tolist()))
        return self.tower.preprocess(images)

    def chunks(self, size: int) -> Iterator[Tensor]:
        """Yield the pixels of the whole split in order."""
        for start in range(0, len(self.split), size):
            yield self[np.arange(start, min(start + size, len(self.split)))]
