"""The benchmarks that kill studies and fill disks see what they are there to see, in a tiny version."""

import importlib
import json
import os

import pytest

from saga_lib.common.files import write_json, write_text
from saga_lib.common.paths import REPOSITORY


@pytest.fixture
def kill(monkeypatch):
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
    return importlib.import_module("kill")


@pytest.fixture
def disk_full(kill):
    return importlib.import_module("disk_full")


def make_study(folder, study="s", r1=0.5, seconds="3", **changes):
    write_json(folder / study / "manifest.json", {"study": study, "status": "ok", "notebooks": ["04"]} | changes)
    write_text(folder / study / "tables" / "t.csv", f"method,R@1,seconds\npf,{r1},{seconds}\n")
    write_text(folder / study / "tables" / "t.md", "| method |\n")
    write_json(folder / study / "runs" / "k" / "evaluation.json", {"recall": {"1": r1}, "seconds": float(seconds)})
    return folder / study


def test_studies_are_compared_byte_by_byte_but_for_times(kill, tmp_path):
    one = make_study(tmp_path / "a")
    assert kill.differences(one, make_study(tmp_path / "b", study="other", seconds="9")) == []
    assert kill.differences(one, make_study(tmp_path / "c", r1=0.6)) == ["runs/k", "tables/t.csv"]
    assert kill.differences(one, make_study(tmp_path / "d", notebooks=[], status="failed")) == ["notebooks", "status"]
    other = make_study(tmp_path / "e")
    (other / "tables" / "t.md").unlink()
    (other / "tables" / "t.csv").write_bytes((one / "tables" / "t.csv").read_bytes()[:-4])  # half-written
    assert kill.differences(one, other) == ["tables/t.csv", "tables/t.md"]


@pytest.mark.parametrize("name", [
    "results/s/runs/k/.lock", "results/s/tables/.t.csv.12-x.csv", "data/.miniature_birds.partial/a.png", "data/birds.partial12/a.png",
    "results/s/runs/k/worker.log", "results/s/runs/k/worker.json", "results/s/error.log", "results/s/runs/k/checkpoint/counters.json",
    "results/s/.executing/1/request.json", "tmp/saga-kernel-x/y",
])  # fmt: skip
def test_what_a_finished_study_should_not_leave_is_seen(kill, tmp_path, name):
    place = kill.Place(tmp_path, REPOSITORY)
    make_study(tmp_path / "results")
    (tmp_path / "tmp" / "torchinductor_x").mkdir()
    assert place.leftovers() == []
    write_text(tmp_path / name, "{}")
    assert place.leftovers()


def test_moments_fill_a_pass_and_kinds_take_turns(kill):
    trials = kill.plan_trials(30, False, 60.0, 0)
    assert trials == kill.plan_trials(30, False, 60.0, 0) != kill.plan_trials(30, False, 60.0, 1)
    assert all(2 * number <= moment < 2 * number + 2 for number, _, moment in trials)
    assert [kind for _, kind, _ in trials].count("KILL child") == 15
    assert {kind for _, kind, _ in kill.plan_trials(9, True, 60.0, 0)} == {"INT", "TERM", "HUP"}


@pytest.mark.parametrize(("kind", "code", "line", "faults"), [
    ("INT", 130, "interrupted; continue with ./run_all.sh smoke --resume s", 0), ("INT", 1, "interrupted; continue with x --resume s", 1),
    ("TERM", 130, "interrupted", 2), ("TERM", 143, "KeyboardInterrupt", 1), ("HUP", 129, "", 0), ("HUP", 1, "", 1),
    ("KILL child", 1, "error: x", 0), ("KILL child", 1, "ValueError: x", 1), ("KILL leader", -9, "anything", 0),
])  # fmt: skip
def test_how_a_study_ended_is_judged(kill, tmp_path, kind, code, line, faults):
    place = kill.Place(tmp_path, REPOSITORY)
    make_study(tmp_path / "results", status="interrupted")
    row = {"code": code, "last_line": line, "whom": "a worker" if "child" in kind else "leader"}
    assert len(kill.judge_end(kind, row, place)) == faults
    write_text(tmp_path / "study.err", f"Traceback (most recent call last):\n{line}\n")
    assert len(kill.judge_end(kind, row, place)) == faults + 1


@pytest.mark.parametrize("kind", ["KILL leader", "HUP"])
def test_a_tiny_study_loses_nothing(kill, faked, write_notebook, tmp_path, monkeypatch, kind):
    import random

    write_notebook("03_grpo_training", 'STUDY: str = "by-hand"\nPROFILE: str = "miniature"', "print('ran')")
    monkeypatch.setattr(kill, "ARGUMENTS", ("smoke", "--only", "03"))
    alone, seconds = kill.undisturbed(tmp_path, REPOSITORY)
    row = kill.trial(0, kind, 0.6 * seconds, random.Random(0), alone, tmp_path, REPOSITORY)
    assert row["faults"] == [] and kill.summary([row])["nothing_lost"] == 1
    assert kill.summary([row | {"faults": ["x"]}])["by_kind"] == {kind: "0 of 1"}


def test_half_written_files_are_seen(disk_full):
    before, final = {"a": b"old", "log/metrics.jsonl": b""}, {"a": b"newer", "log/metrics.jsonl": b"1\n2\n", "b": b"x"}
    assert disk_full.half_written(before, before, final) == disk_full.half_written(before, final, final) == []
    assert disk_full.half_written(before, {"a": b"new", "log/metrics.jsonl": b"1\n2"}, final) == ["a"]
    assert disk_full.half_written(before, {"a": b"old", ".b.12-x": b""}, final) == [".b.12-x"]


def test_what_writes_keeps_everything_whole_on_a_full_disk(disk_full, monkeypatch):
    if reason := disk_full.why_not():
        pytest.skip(reason)
    try:
        with disk_full.small_disk(8) as disk:
            for name in ("lock", "manifest", "vocabulary", "log", "page"):
                row = disk_full.try_writer(name, disk)
                assert row["faults"] == [] and row["refused"], (name, row)
            monkeypatch.setitem(disk_full.WRITERS, "careless", lambda folder: (folder / "x").write_bytes(b"x" * 100_000))
            faults = disk_full.try_writer("careless", disk)["faults"]
            assert any("OSError: [Errno 28]" in fault for fault in faults) and any("half-written" in fault for fault in faults)
    except disk_full.SagaError as error:
        if "no tmpfs can be mounted" in str(error):
            pytest.skip(str(error))
        raise


def test_where_nothing_can_be_mounted_it_is_said(disk_full, monkeypatch, capsys):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert disk_full.main([]) == 0
    assert capsys.readouterr().out.startswith("skipped: ")


def test_results_that_are_committed_lost_nothing():
    for name in ("kill", "signals", "disk-full", "side-by-side"):
        for path in (REPOSITORY / "benchmarks" / "results").glob(f"{name}-*.json"):
            result = json.loads(path.read_text())
            rows = result["rows"].values() if isinstance(result.get("rows"), dict) else result.get("rows", [result])
            assert rows and not [row["faults"] for row in rows if row["faults"] and "mended" not in row], path.name
