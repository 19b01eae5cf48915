"""Where the library finds things: the repository it lies in and the folder of datasets."""

from __future__ import annotations

import os
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


def data_root() -> Path:
    """Return the folder of datasets and rendered benchmarks; SAGA_DATA moves it."""
    return Path(os.environ.get("SAGA_DATA") or REPOSITORY / "data")
