"""A few hundred mangled inputs of every kind (benchmarks/mangled_inputs.py; SAGA_EXAMPLES=20000 for more), and faults are noticed."""

import importlib
import json
import os
from types import SimpleNamespace

import pandas as pd
import pytest

from saga_lib.common.paths import REPOSITORY

EXAMPLES = int(os.environ.get("SAGA_EXAMPLES", "300"))
FULL = {"answers": 200_000, "vocabularies": 20_000, "tables": 20_000, "settings": 20_000}  # examples that are enough


@pytest.fixture
def mangled_inputs(monkeypatch):
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
    return importlib.import_module("mangled_inputs")


@pytest.mark.parametrize("name", FULL)
def test_nothing_crashes_and_nothing_wrong_is_read(mangled_inputs, name):
    outcomes = mangled_inputs.try_out(name, EXAMPLES)
    assert outcomes.total() == EXAMPLES and len(outcomes) > 1, "all met the same end"
    assert mangled_inputs.KINDS[name].examples == FULL[name]


def test_every_kind_is_tried(mangled_inputs):
    assert set(FULL) == set(mangled_inputs.KINDS)


@pytest.mark.parametrize("name", FULL)
def test_the_committed_results_are_of_as_many_as_are_enough(name):
    result = json.loads((REPOSITORY / f"benchmarks/results/mangled-inputs-{name}.json").read_text(encoding="utf-8"))[name]
    assert result["examples"] == sum(result["outcomes"].values()) == FULL[name] and result["wrong"] == 0


@pytest.mark.parametrize(
    "name, function, wrong",
    [
        ("answers", "parse_verdict", lambda text, key, finished=True: True if '"yes"' in text else None),
        ("answers", "parse_answer", lambda text, key: json.loads(text)),
        ("answers", "field_span", lambda text, key, keys: (text.find(key), text.find(key) + 1)),
        ("vocabularies", "load_vocabulary", lambda path: path.read_text(encoding="utf-8")),
        ("settings", "RunConfig", SimpleNamespace(from_dict=dict)),
        ("tables", "image_folder", SimpleNamespace(load_vocabulary=None, load_image_folder=lambda path, vocabulary: pd.read_csv(path))),
    ],
)
def test_a_fault_is_found(mangled_inputs, monkeypatch, name, function, wrong):
    monkeypatch.setattr(mangled_inputs, function, wrong)
    with pytest.raises(Exception):  # noqa: B017
        mangled_inputs.try_out(name, 300)


def test_the_command_counts_and_writes_the_outcomes(mangled_inputs, tmp_path, capsys):
    for kind in ("answers", "vocabularies"):
        assert mangled_inputs.main([kind, "--examples", "20", "--output", str(tmp_path / "result.json")]) == 0
    result = json.loads((tmp_path / "result.json").read_text())
    assert sum(result["answers"]["outcomes"].values()) == result["vocabularies"]["examples"] == 20
    assert "vocabularies: 20 in " in capsys.readouterr().out
    with pytest.raises(SystemExit):
        mangled_inputs.main(["questions"])
