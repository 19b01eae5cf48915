"""What training with one vocabulary gains over training with another (notebook 13)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from saga_lib.records import Run
from saga_study.findings.differences import compared
from saga_study.findings.words import SIDES, Interval

PAIRS = (  # of vocabularies, each with what it is compared with
    ("grown", "short"), ("grown", "hand-written"), ("discovered", "hand-written"), ("hand-written", "shuffled"),
    ("hand-written", "generic"),
)  # fmt: skip


def gains(runs: Mapping[str, Sequence[Run]]) -> pd.DataFrame:
    """Return points of R@1 between the vocabularies of `PAIRS`, with intervals over queries and seeds; columns as of `compared`.

    `runs` are by vocabulary, all on one benchmark; pairs that were not trained are left out.
    """
    of_dataset = {group[0].config.dataset: runs for group in runs.values()}
    rows = [row for pair in PAIRS if {*pair} <= set(runs) for row in compared(of_dataset, *pair)]
    return pd.DataFrame(rows, columns=["method", "against", "benchmark", *Interval._fields, "queries", "seeds"])


def gain_sentences(table: pd.DataFrame) -> list[str]:
    """Return each row of `gains` in words."""
    said = []
    for row in table.itertuples():
        found = Interval.of(row)
        told = f", {SIDES[found.side()]} 0" if found.side() is not None else ""
        said.append(f"Trained with the {row.method} vocabulary minus {row.against}: {found.text()} points of R@1{told}; {row.seeds} seeds.")
    return said
