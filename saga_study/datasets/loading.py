"""Benchmarks by name: the four public datasets, the miniature ones, your own images."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from saga_lib.common.errors import SagaError, unknown_name
from saga_lib.common.files import read_json
from saga_lib.config import OWN_IMAGES, RunConfig
from saga_lib.datasets.image_folder import load_image_folder
from saga_lib.datasets.splits import Benchmark, Split
from saga_study.datasets.real import load_real
from saga_study.miniature.world import benchmark_spec, build_benchmark, images_of_split, is_miniature, split_ranges
from saga_study.paths import data_root

REAL = ("cub200", "cars196", "aircraft", "inat_aves")
DATASETS = ("miniature_birds", "miniature_cars", "miniature_aircraft", "miniature_aves", *REAL, OWN_IMAGES)


def run_benchmark(config: RunConfig) -> Benchmark:
    """Load the benchmark of a run; a vocabulary in the configuration replaces the benchmark's own."""
    if config.dataset == OWN_IMAGES:
        return load_image_folder(
            config.data_dir, vocabulary=config.vocabulary, test_fraction=config.test_fraction, seed=config.split_seed,
            images_per_class=config.images_per_class,
        )[0]  # fmt: skip
    benchmark = load_benchmark(config.dataset, images_per_class=config.images_per_class)
    return replace(benchmark, vocabulary=config.vocabulary) if config.vocabulary else benchmark


def benchmark_checksum(config: RunConfig) -> str:
    """Return the checksum of a named benchmark ; miniature ones are rendered but not loaded. Cached per process."""
    return _checksum_of(config.dataset, data_root(), config.images_per_class)


@lru_cache
def _checksum_of(name: str, root: Path, images_per_class: int) -> str:
    if is_miniature(name):
        return _miniature_checksum(name, build_benchmark(name, root, images_per_class))
    return load_benchmark(name, root, images_per_class).checksum


def _miniature_checksum(name: str, folder: Path) -> str:
    """Return the digest of a rendered benchmark's pixels and, of a variant, of its name's additions."""
    pixels = read_json(folder / "classes.json")["pixels_sha256"]
    return hashlib.sha256("+".join([pixels, *name.split("+")[1:]]).encode()).hexdigest()[:12]


def load_benchmark(
    name: str, root: str | Path | None = None, images_per_class: int = 0, crop_banner: bool = False
) -> Benchmark:
    """Load a benchmark by name; miniature ones are rendered below `root` on first use, and have variants (`benchmark_spec`).

    `root` is the folder that holds the datasets, or a real dataset's own folder; `paths.data_root()` by default. See
    `datasets.real` for the layouts and `python -m saga_study.prepare` for where to get the images.
    `images_per_class` 0 takes all. `crop_banner` cuts the 20-pixel copyright banner off the photographs of
    `aircraft`, which are taken as they are by default. Your own images need more than a
    name: `load_image_folder`. Raises `SagaError` for unknown names and broken folders.
    """
    if name == OWN_IMAGES:
        raise SagaError(f"dataset {OWN_IMAGES} is loaded by load_image_folder(folder, vocabulary=…), which also checks the images")
    if crop_banner and name != "aircraft":
        raise SagaError(f"crop_banner is for dataset aircraft only: the images of {name} have no banner")
    if name in REAL:
        return load_real(name, root, images_per_class, crop_banner)
    if not is_miniature(name):
        raise unknown_name("dataset", name, DATASETS)
    spec = benchmark_spec(name)
    folder = build_benchmark(name, Path(root) if root else data_root(), images_per_class)
    classes = read_json(folder / "classes.json")["classes"]
    base = name.split("+")[0]
    class_names = [f"{base.removeprefix('miniature_')}_{c:03d}" for c in range(len(classes))]

    def split(which: str, low: int, high: int) -> Split:
        count = images_of_split(spec, which, images_per_class)
        paths = [folder / "images" / f"{c:03d}" / f"{i:02d}.png" for c in range(low, high) for i in range(count)]
        if missing := next((p for p in paths if not p.is_file()), None):
            raise SagaError(f"benchmark {name}: image {missing} is missing; delete {folder} to render it again")
        labels = np.repeat(np.arange(high - low), count)
        return Split(which, paths, labels, class_names[low:high], classes[low:high])

    parts = {which: split(which, indices.start, indices.stop) for which, indices in split_ranges(spec).items()}
    checksum = _miniature_checksum(name, folder)
    return Benchmark(name, f"miniature_{spec.domain}", parts["train"], parts["test"], checksum, parts["validation"])
