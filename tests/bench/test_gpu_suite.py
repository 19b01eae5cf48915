"""The suite of a GPU session: every part runs at toy size without the packages that such a machine may lack, and time is kept."""

import importlib
import json
import subprocess
import sys

import numpy as np
import pytest

from saga_lib.common.paths import REPOSITORY
from saga_lib.pairs import balanced_batches

ABSENT = ("faiss", "papermill", "pytorch_metric_learning", "sklearn", "peft", "timm", "matplotlib", "IPython", "nbformat")
NAMES = ["step-qwen", "decode", "tests", "step-internvl", "share"]


@pytest.fixture
def suite(monkeypatch):
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
    return importlib.import_module("gpu_suite")


@pytest.fixture
def bare(tmp_path, monkeypatch):
    """Child processes cannot import what a machine with a GPU may lack."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(f"import sys\nfor name in {ABSENT}:\n    sys.modules[name] = None\n")
    monkeypatch.setenv("PYTHONPATH", str(site))
    monkeypatch.setenv("PYTEST_ADDOPTS", '-k "not internvl"')  # tests/lib/test_mixed_precision.py takes steps of both


def test_the_parts_are_known(suite):
    assert [*suite.PARTS] == NAMES and sum(part.seconds for part in suite.PARTS.values()) == 9 * 60


@pytest.mark.parametrize("name", NAMES)
def test_every_part_runs_at_toy_size_and_leaves_its_numbers(suite, bare, name, tmp_path):
    output = tmp_path / "suite.json"
    command = [sys.executable, REPOSITORY / "benchmarks" / "gpu_suite.py", "--dry-run", "--parts", name, "--output", output]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    told = json.loads(output.read_text())
    assert told["parts"][name]["outcome"] == "done" and told["stood in for"] == ["pytorch_metric_learning", "sklearn"]
    numbers = {number["what"]: number for number in told["numbers"][name]}
    assert all(np.isfinite(number["value"]) for number in numbers.values())
    assert all(what in ended.stdout for what in numbers) and (" toy" in ended.stdout) == any(n["limit"] for n in numbers.values())
    if name == "tests":
        assert numbers["tests that pass"]["value"] > 20 and numbers["tests that fail"]["value"] == 0
    if name == "decode":
        assert numbers["same greedy tokens as stock"]["value"] == 1


def quick(suite, seconds, code, read=None):
    """Return a part that runs a line of Python with its output file as OUT."""
    command = ["-c", f"import json, time; OUT = open('{{output}}', 'w'); {code}"]
    return suite.Part(seconds, command, command, read or (lambda name, result: [suite.Number("a", result["a"], "<= 2")]))


def write(value):
    return f"json.dump(dict(a={value}), OUT); OUT.flush()"


@pytest.fixture
def parts(suite, monkeypatch):
    """Parts that end well, badly, not at all after a result, and one that is too long for what is left."""
    found = {
        "good": quick(suite, 8, write(1)), "bad": quick(suite, 8, f"{write(3)}; raise SystemExit('no such card')"),
        "endless": quick(suite, 2, f"{write(2)}; time.sleep(60)"), "long": quick(suite, 500, write(1)),
        "unready": suite.Part(1, ["-c", "1"], ["-c", "1"], lambda *_: [], needs="no_such_package"),
    }  # fmt: skip
    monkeypatch.setattr(suite, "PARTS", found)
    return found


def test_parts_are_cut_skipped_and_told_apart(suite, parts, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(suite.torch.cuda, "is_available", lambda: False)
    written = []
    write_json = suite.write_json
    monkeypatch.setattr(suite, "write_json", lambda path, content: (written.append([*content["parts"]]), write_json(path, content)))
    records = suite.run_suite(["good", "bad", "unready", "endless"], 20, True, tmp_path / "x.json")
    assert records["endless"]["seconds"] < 60, "time that others left is for the last one, and no more"
    assert {name: record["outcome"] for name, record in records.items()} == {
        "good": "done", "bad": "failed", "unready": "skipped", "endless": "cut",
    }  # fmt: skip
    assert records["bad"]["output"] == ["no such card"] and records["unready"]["why"] == "no_such_package is not there"
    assert records["endless"]["result"] == {"a": 2}, "what it had written is kept"
    assert [len(names) for names in written] == [1, 2, 3, 4], "a result is there after every part"
    table = suite.describe(records)
    assert all(word in table for word in ("failed: it ended with 1", "no_such_package", "cut: it took more than"))
    rows = [line.split() for line in table.splitlines()]
    assert ["good", "a", "1", "<=", "2", "yes"] in rows and ["bad", "a", "3", "<=", "2", "NO"] in rows
    assert "cut after" in capsys.readouterr().out


def test_what_does_not_fit_is_skipped_and_said(suite, parts, tmp_path):
    records = suite.run_suite(["long", "good"], 60, True, tmp_path / "x.json")
    assert records["long"]["why"] == "it needs 500 s, 60 are left" and records["good"]["outcome"] == "done"
    assert "skipped: it needs 500 s" in suite.describe(records)


def test_the_command_fails_with_a_part_and_names_slips(suite, parts, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(suite.torch.cuda, "is_available", lambda: False)
    written = ["--output", str(tmp_path / "x.json")]
    assert suite.main(["--dry-run", "--parts", "good", *written]) == 0
    assert "toy" in capsys.readouterr().out
    assert suite.main(["--dry-run", "--parts", "bad", *written]) == 1
    assert suite.main(["--dry-run", "--parts", "unready", *written]) == 1
    with pytest.raises(SystemExit, match="2"):
        suite.main(["--dry-run", "--parts", "god"])
    with pytest.raises(SystemExit, match="no CUDA GPU was found; --dry-run"):
        suite.main([])


@pytest.mark.parametrize("limit, value, met", [
    ("<= 18", 18.0, True), ("<= 18", 18.1, False), (">= 0.45", 0.45, True), (">= 0.45", 0.44, False), ("", 1.0, None),
])  # fmt: skip
def test_bars(suite, limit, value, met):
    assert suite.Number("x", value, limit).is_met is met


@pytest.mark.parametrize("seconds, before, pace", [
    ([1.0, 1.5, 2.0, 4.0], 2, 2 / 2.5), ([1.0, 1.5, 2.0, 4.0], 4, 1 / 2), ([1.0, 1.5], 1, 2.0), ([1.0, 1.5], 2, 2.0), ([1.0, 1.5], 0, 2.0),
])  # fmt: skip
def test_the_pace_of_a_run_is_that_of_its_later_steps(suite, seconds, before, pace):
    assert importlib.import_module("miniature_run").pace(seconds, before) == pytest.approx(pace)


def test_plain_batches_are_balanced_and_resume_as_the_runs_own(suite):
    stand_ins = importlib.import_module("stand_ins")
    labels = np.repeat(np.arange(6), 5)
    for make in (stand_ins.plain_batches, balanced_batches):
        stream = make(labels, 8, 2, 3)
        batches = [next(stream) for _ in range(6)]
        assert all(len(set(batch)) == 8 and sorted(np.bincount(labels[batch], minlength=6)) == [0, 0, 2, 2, 2, 2] for batch in batches)
        assert np.array_equal(next(make(labels, 8, 2, 3, start=4)), batches[4])
        assert not np.array_equal(next(make(labels, 8, 2, 4)), batches[0])
    assert len(next(stand_ins.plain_batches(labels, 64, 2, 0))) == 12 and len(next(stand_ins.plain_batches(labels, 6, 6, 0))) == 6
