"""The paper's printed numbers."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from saga_lib.common.errors import SagaError, unknown_name
from saga_study.findings.words import NOTHING
from saga_study.paths import PAPER_TABLES

PAPER_DATASETS = {"cub200": "CUB", "cars196": "Cars", "aircraft": "Aircraft", "inat_aves": "iNat-Aves"}
# The paper's dataset that a miniature benchmark stands in for; the numbers beside each other are not comparable.
PAPER_COUNTERPART = {
    "miniature_birds": "cub200", "miniature_cars": "cars196", "miniature_aircraft": "aircraft", "miniature_aves": "inat_aves",
} | {name: name for name in PAPER_DATASETS}  # fmt: skip
PROTOCOL = pd.DataFrame(  # App. A of the paper
    [
        ("CUB-200-2011", "11,788", 200, "first 100 / last 100", "no box crop"),
        ("Cars-196", "16,185", 196, "first 98 / last 98", "no box crop"),
        ("FGVC-Aircraft", "about 10,000", 100, "first 50 / last 50, alphabetical", "trainval and test pooled first"),
        ("iNat-Aves", "about 74,300", 1486, "first 743 / last 743, sorted", "Aves of train_mini (iNat-2021), 50 each"),
    ],
    columns=["dataset (paper, App. A)", "images", "classes", "train / test classes", "notes"],
)


def paper_column(table: int | Sequence[int], dataset: str, embedding_dim: int | None = None) -> pd.DataFrame:
    """Return the paper's numbers of a dataset: index method label; columns `R@1`, …, each with ` std`.

    Several tables complete each other, the first that has a number wins; column `source` names the tables. Table 4 has
    several embedding sizes and gives those of `embedding_dim`.
    """
    tables = [table] if isinstance(table, int) else list(table)
    if dataset not in PAPER_COUNTERPART:
        raise unknown_name("dataset of the paper's tables", dataset, PAPER_COUNTERPART)
    found: dict[str, dict[str, object]] = {}
    for number in tables:
        path = PAPER_TABLES / f"table{number}.csv"
        if not path.is_file():
            raise SagaError(f"{path} does not exist; the paper has Tables 1-5")
        frame = pd.read_csv(path)
        if "embedding_dim" in frame:
            frame = frame[frame["embedding_dim"] == embedding_dim]
        for row in frame[frame["dataset"] == PAPER_COUNTERPART[dataset]].itertuples():
            values = found.setdefault(row.method, {"source": f"Table {number}"})
            if row.metric not in values:
                values |= {row.metric: row.value, f"{row.metric} std": row.std}
    return pd.DataFrame.from_dict(found, orient="index")


def printed(table: int | Sequence[int], dataset: str, label: str, name: str = "R@1", embedding_dim: int | None = None) -> float:
    """Return a number of the paper's tables, NaN where it has none."""
    if dataset not in PAPER_COUNTERPART:
        return float("nan")
    column = paper_column(table, dataset, embedding_dim)
    return float(column[name].get(label, float("nan"))) if name in column else float("nan")


def printed_text(*where: object, **more: object) -> str:
    """Return what `printed` does as text, "–" where the paper has no number."""
    value = printed(*where, **more)
    return NOTHING if value != value else f"{value:.1f}"


def paper_heading(dataset: str) -> str:
    """Return the end of a heading over the paper's numbers: full scale, and its own dataset."""
    return f"paper (full scale, {PAPER_DATASETS[PAPER_COUNTERPART[dataset]]})"
