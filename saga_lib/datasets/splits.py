"""Benchmarks: two class-disjoint splits of images with labels."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path

import numpy as np
from PIL import Image

from saga_lib.common.errors import SagaError
from saga_lib.common.images import upright_rgb


@dataclass(frozen=True)
class Split:
    """Images of one half: `paths` (N), `labels` (N,) int64 into `class_names`, and the truth where it is known."""

    name: str
    paths: list[Path]
    labels: np.ndarray
    class_names: list[str]
    class_attributes: list[dict[str, str]] | None = field(default=None, repr=False)
    crop_bottom: int = 0  # rows cut from every image's lower edge (the banner of FGVC-Aircraft)

    def __len__(self) -> int:
        return len(self.paths)

    def open(self, index: int) -> Image.Image:
        """Return one image, upright, as RGB; a `SagaError` names the file when it cannot be read."""
        image = upright_rgb(self.paths[index])
        return image.crop((0, 0, image.width, image.height - self.crop_bottom)) if self.crop_bottom else image

    def images(self, indices: Iterable[int] | None = None) -> list[Image.Image]:
        """Return several images (all by default) as RGB."""
        return [self.open(int(i)) for i in (range(len(self)) if indices is None else indices)]

    def attributes(self, index: int) -> dict[str, str]:
        """Return the true attributes of an image; only miniature benchmarks know them."""
        if self.class_attributes is None:
            raise SagaError(f"split '{self.name}' has no attribute truth: the oracle exists for miniature benchmarks only")
        return self.class_attributes[self.labels[index]]


@dataclass(frozen=True)
class Benchmark:
    """A dataset with its zero-shot protocol: no class is in both splits."""

    name: str
    vocabulary: str
    train: Split
    test: Split
    checksum: str
    validation: Split | None = field(default=None, repr=False)  # held-out classes to choose by, where there are some

    def __post_init__(self) -> None:
        splits = [split for split in (self.train, self.validation, self.test) if split is not None]
        for one, other in combinations(splits, 2):
            if shared := set(one.class_names) & set(other.class_names):
                raise SagaError(
                    f"benchmark {self.name}: class '{min(shared)}' is in both {one.name} and {other.name}; "
                    "zero-shot needs disjoint classes"
                )
        for split in splits:
            counts = np.bincount(split.labels, minlength=len(split.class_names))
            if len(counts) < 2:
                raise SagaError(f"benchmark {self.name}: the {split.name} split has {len(counts)} class; at least 2 are needed")
            if (counts < 2).any():
                name = split.class_names[int(counts.argmin())]
                raise SagaError(
                    f"benchmark {self.name}: class '{name}' of the {split.name} split has {counts.min()} image; "
                    "at least 2 are needed, add images or leave the class out"
                )

    def for_tuning(self) -> Benchmark:
        """Return the same protocol with validation classes in the place of the test classes.

        Hyperparameters are chosen here, so that test classes are never looked at. A benchmark without validation
        classes of its own trains on the first half of its train classes and validates on the second.
        """
        if self.validation is not None:
            return Benchmark(self.name, self.vocabulary, self.train, self.validation, self.checksum)
        half = len(self.train.class_names) // 2
        train = _class_range(self.train, "train", 0, half)
        validation = _class_range(self.train, "validation", half, len(self.train.class_names))
        return Benchmark(self.name, self.vocabulary, train, validation, self.checksum)


def _class_range(split: Split, name: str, low: int, high: int) -> Split:
    rows = np.flatnonzero((split.labels >= low) & (split.labels < high))
    attributes = split.class_attributes[low:high] if split.class_attributes else None
    paths, names = [split.paths[r] for r in rows], split.class_names[low:high]
    return Split(name, paths, split.labels[rows] - low, names, attributes, split.crop_bottom)
