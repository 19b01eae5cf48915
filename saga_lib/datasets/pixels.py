"""The images of a split as a tower takes them."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor, nn

from saga_lib.datasets.splits import Split

PRELOAD_BYTES = 2**30  # splits whose pixels fit into this are preprocessed once


class PixelStore:
    """The preprocessed pixels of a split: kept in memory if they fit, else read from the images when asked for."""

    def __init__(self, split: Split, tower: nn.Module) -> None:
        self.split, self.tower = split, tower
        one = tower.preprocess([split.open(0)])
        self._all = None
        if one.numel() * 4 * len(split) <= PRELOAD_BYTES:
            chunks = [range(i, min(i + 256, len(split))) for i in range(0, len(split), 256)]
            self._all = torch.cat([tower.preprocess(split.images(chunk)) for chunk in chunks])

    def __getitem__(self, indices: np.ndarray) -> Tensor:
        """Return the pixels of the images at `indices` (n,) int: (n, …) float32, in the shape that `tower.preprocess` gives."""
        if self._all is not None:
            return self._all[torch.as_tensor(indices)]
        with ThreadPoolExecutor() as pool:
            images = list(pool.map(self.split.open, indices.tolist()))
        return self.tower.preprocess(images)

    def chunks(self, size: int) -> Iterator[Tensor]:
        """Yield the pixels of the whole split in order, `size` images at a time."""
        for start in range(0, len(self.split), size):
            yield self[np.arange(start, min(start + size, len(self.split)))]
