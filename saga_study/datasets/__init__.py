"""Benchmarks by name: the published datasets, the miniature ones, your own images."""
