"""Where a study's things live. Nothing else in the project builds these paths."""

from __future__ import annotations

import os
from pathlib import Path

from saga_lib.common.paths import REPOSITORY, WORKPLACE

NOTEBOOKS = REPOSITORY / "notebooks"
PAPER_TABLES = REPOSITORY / "results" / "paper"
TUNING_LOG = REPOSITORY / "results" / "tuning" / "search.csv"  # committed
VALUES = "_values"  # ends the names of tables for machines
FOLDED = (VALUES, "_details", "_queries")  # of tables that nobody reads from top to bottom
BY_HAND = "by-hand"  # the study that notebooks opened by hand write into


def data_root() -> Path:
    """Return the folder of datasets and rendered benchmarks; SAGA_DATA moves it."""
    return Path(os.environ.get("SAGA_DATA") or WORKPLACE / "data")


def results_root() -> Path:
    """Return the folder of all studies; the environment variable SAGA_RESULTS moves it."""
    return Path(os.environ.get("SAGA_RESULTS") or WORKPLACE / "results")


def is_complete(folder: Path) -> bool:
    """Return whether a run folder holds a finished run; evaluation.json is written last, and atomically."""
    return (folder / "evaluation.json").is_file()


def study_folder(study: str) -> Path:
    """Return the folder of a study by its id."""
    return results_root() / study


def cluster_folder(study: str) -> Path:
    """Return the folder with the jobs of a study on a cluster: what submitit and SLURM write about them."""
    return study_folder(study) / "cluster"
