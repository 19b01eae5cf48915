"""Benchmarks: two class-disjoint splits of images with labels, by name or from a folder of your own."""

from saga_lib.datasets.image_folder import check_image_folder, load_image_folder
from saga_lib.datasets.loading import DATASETS, load_benchmark
from saga_lib.datasets.splits import Benchmark, Split

__all__ = ["DATASETS", "Benchmark", "Split", "check_image_folder", "load_benchmark", "load_image_folder"]
