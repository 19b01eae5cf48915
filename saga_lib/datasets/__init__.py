"""Benchmarks: two class-disjoint splits of images with labels."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from saga_lib.config import OWN_IMAGES, RunConfig
from saga_lib.errors import SagaError, unknown_name
from saga_lib.files import read_json
from saga_lib.paths import data_root


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
        """Return one image as RGB; a `SagaError` names the file when it cannot be read."""
        path = self.paths[index]
        try:
            with Image.open(path) as image:
                image = image.convert("RGB")
            return image.crop((0, 0, image.width, image.height - self.crop_bottom)) if self.crop_bottom else image
        except FileNotFoundError:
            raise SagaError(f"image {path} does not exist") from None
        except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
            raise SagaError(f"image {path} cannot be read ({error}); replace or remove it") from None

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
        train, validation = _class_range(self.train, "train", 0, half), _class_range(
            self.train, "validation", half, len(self.train.class_names)
        )
        return Benchmark(self.name, self.vocabulary, train, validation, self.checksum)


def _class_range(split: Split, name: str, low: int, high: int) -> Split:
    rows = np.flatnonzero((split.labels >= low) & (split.labels < high))
    attributes = split.class_attributes[low:high] if split.class_attributes else None
    paths, names = [split.paths[r] for r in rows], split.class_names[low:high]
    return Split(name, paths, split.labels[rows] - low, names, attributes, split.crop_bottom)


REAL = ("cub200", "cars196", "aircraft", "inat_aves")
DATASETS = ("miniature_birds", "miniature_cars", "miniature_aircraft", "miniature_aves", *REAL, OWN_IMAGES)


def run_benchmark(config: RunConfig) -> Benchmark:
    """Load the benchmark of a run; its own vocabulary gives way to the one that the configuration names."""
    if config.dataset == OWN_IMAGES:
        from saga_lib.datasets.image_folder import load_image_folder

        return load_image_folder(
            config.data_dir, vocabulary=config.vocabulary, test_fraction=config.test_fraction, seed=config.split_seed,
            images_per_class=config.images_per_class,
        )[0]  # fmt: skip
    benchmark = load_benchmark(config.dataset, images_per_class=config.images_per_class)
    return replace(benchmark, vocabulary=config.vocabulary) if config.vocabulary else benchmark


def load_benchmark(
    name: str, root: str | Path | None = None, images_per_class: int = 0, crop_banner: bool = False
) -> Benchmark:
    """Load a benchmark by name; miniature ones are rendered below `root` on first use, and have variants (`benchmark_spec`).

    `root` is the folder that holds the datasets, or a real dataset's own folder; `paths.data_root()` by default. See
    `datasets.real` for the layouts and `python -m saga_lib.datasets.prepare` for where to get the images.
    `images_per_class` 0 takes all. `crop_banner` cuts the 20-pixel copyright banner off the photographs of
    `aircraft`, which are taken as they are by default. Your own images need more than a
    name: `load_image_folder`. Raises `SagaError` for unknown names and broken folders.
    """
    if name == OWN_IMAGES:
        raise SagaError(f"dataset {OWN_IMAGES} is loaded by load_image_folder(folder, vocabulary=…), which also checks the images")
    if crop_banner and name != "aircraft":
        raise SagaError(f"crop_banner is for dataset aircraft only: the images of {name} have no banner")
    if name in REAL:
        from saga_lib.datasets.real import load_real

        return load_real(name, root, images_per_class, crop_banner)
    from saga_lib.miniature.world import benchmark_spec, build_benchmark, is_miniature, split_ranges

    if not is_miniature(name):
        raise unknown_name("dataset", name, DATASETS)
    spec = benchmark_spec(name)
    folder = build_benchmark(name, Path(root) if root else data_root(), images_per_class or None)
    content = read_json(folder / "classes.json")
    classes = content["classes"]
    base, *variant = name.split("+")
    class_names = [f"{base.removeprefix('miniature_')}_{c:03d}" for c in range(len(classes))]
    count = images_per_class or spec.images_per_class

    def split(which: str, low: int, high: int) -> Split:
        paths = [folder / "images" / f"{c:03d}" / f"{i:02d}.png" for c in range(low, high) for i in range(count)]
        if missing := next((p for p in paths if not p.is_file()), None):
            raise SagaError(f"benchmark {name}: image {missing} is missing; delete {folder} to render it again")
        labels = np.repeat(np.arange(high - low), count)
        return Split(which, paths, labels, class_names[low:high], classes[low:high])

    parts = {which: split(which, indices.start, indices.stop) for which, indices in split_ranges(spec).items()}
    checksum = hashlib.sha256("+".join([content["pixels_sha256"], *variant]).encode()).hexdigest()[:12]
    return Benchmark(name, f"miniature_{spec.domain}", parts["train"], parts["test"], checksum, parts["validation"])
