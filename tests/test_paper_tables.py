"""The paper's numbers in results/paper: their shape, and a handful of known values."""

import csv
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "results" / "paper"
COLUMNS = ["table", "dataset", "method", "metric", "value", "std"]
DATASETS = {"cub200", "cars196", "aircraft", "inat_aves"}
METHODS = {
    "pre-trained",
    "PA",
    "PF",
    "MS",
    "SAGA (PF)",
    "SAGA (PA)",
    "SAGA (MS)",
    "PF + GRPO",
    "PF + GRPO (generic prompt)",
    "PF + KL",
}
ROWS = {1: 48, 2: 10, 3: 12, 4: 24, 5: 12}


def read(table):
    with open(FOLDER / f"table{table}.csv", newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        return reader.fieldnames, list(reader)


def number(table, dataset, method, metric, column="value", embedding_dim=None):
    found = [
        row[column]
        for row in read(table)[1]
        if (row["dataset"], row["method"], row["metric"]) == (dataset, method, metric)
        and (embedding_dim is None or row["embedding_dim"] == str(embedding_dim))
    ]
    assert len(found) == 1
    return float(found[0])


@pytest.mark.parametrize("table", ROWS)
def test_columns_and_row_count(table):
    columns, rows = read(table)
    assert columns == COLUMNS + (["embedding_dim"] if table == 4 else [])
    assert len(rows) == ROWS[table]


@pytest.mark.parametrize("table", ROWS)
def test_names_and_ranges(table):
    for row in read(table)[1]:
        assert row["table"] == str(table)
        assert row["dataset"] in DATASETS
        assert row["method"] in METHODS
        assert row["metric"] in {"R@1", "R@2", "R@4", "R@8", "NMI"}
        value = float(row["value"])
        assert 0 < value < 1 if row["metric"] == "NMI" else 40 < value < 100
        assert row["std"] == "" or 0 < float(row["std"]) < 1


@pytest.mark.parametrize("table", ROWS)
def test_no_duplicates(table):
    rows = read(table)[1]
    keys = {
        (row["dataset"], row["method"], row["metric"], row.get("embedding_dim")) for row in rows
    }
    assert len(keys) == len(rows)


@pytest.mark.parametrize(
    ("table", "dataset", "method", "metric", "expected"),
    [
        (1, "cub200", "pre-trained", "R@1", 75.6),
        (1, "cars196", "PA", "NMI", 0.84),
        (1, "inat_aves", "SAGA (PF)", "R@4", 77.1),
        (1, "aircraft", "PF", "R@1", 77.4),
        (2, "aircraft", "PF + GRPO (generic prompt)", "R@1", 79.6),
        (2, "cub200", "PF + KL", "R@1", 82.1),
        (3, "cub200", "MS", "R@1", 77.8),
        (3, "aircraft", "SAGA (PA)", "R@1", 82.7),
        (5, "cub200", "SAGA (PF)", "R@8", 95.6),
    ],
)
def test_known_numbers(table, dataset, method, metric, expected):
    assert number(table, dataset, method, metric) == expected


def test_known_numbers_by_embedding_dim():
    assert number(4, "cub200", "SAGA (PF)", "R@1", embedding_dim=512) == 86.5
    assert number(4, "aircraft", "pre-trained", "R@4", embedding_dim=128) == 70.2


def test_std_only_where_the_paper_gives_it():
    for table in ROWS:
        with_std = {(row["method"], row["metric"]) for row in read(table)[1] if row["std"] != ""}
        expected = {("SAGA (PF)", "R@1"), ("SAGA (PF)", "R@4")} if table == 1 else set()
        assert with_std == expected
    assert number(1, "aircraft", "SAGA (PF)", "R@1", column="std") == 0.4


@pytest.mark.parametrize("dataset", ["cub200", "aircraft"])
def test_tables_agree_where_they_overlap(dataset):
    for method in ["PF", "SAGA (PF)"]:
        values = {number(table, dataset, method, "R@1") for table in (1, 2, 3)}
        assert len(values) == 1
    assert number(1, dataset, "PA", "R@1") == number(3, dataset, "PA", "R@1")
