"""Where things live. Nothing else in the project builds these paths."""

from __future__ import annotations

import os
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
NOTEBOOKS = REPOSITORY / "notebooks"
PAPER_TABLES = REPOSITORY / "results" / "paper"
TUNING_LOG = REPOSITORY / "results" / "tuning" / "search.csv"  # committed
BY_HAND = "by-hand"  # the study that notebooks opened by hand write into


def results_root() -> Path:
    """Return the folder of all studies; the environment variable SAGA_RESULTS moves it."""
    return Path(os.environ.get("SAGA_RESULTS") or REPOSITORY / "results")


def data_root() -> Path:
    """Return the folder of datasets and rendered benchmarks; SAGA_DATA moves it."""
    return Path(os.environ.get("SAGA_DATA") or REPOSITORY / "data")


def study_folder(study: str) -> Path:
    """Return the folder of a study by its id."""
    return results_root() / study
