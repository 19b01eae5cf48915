"""Benchmarks: two class-disjoint splits of images with labels, from a folder of your own or filled by you."""

from saga_lib.datasets.image_folder import check_image_folder, load_image_folder
from saga_lib.datasets.splits import Benchmark, Split

__all__ = ["Benchmark", "Split", "check_image_folder", "load_image_folder"]
