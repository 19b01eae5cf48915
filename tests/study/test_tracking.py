"""Curves of runs in trackers, each step once, and the page that shows how far a study is."""

import io
import json
import re
import sys
import threading
import types
from dataclasses import dataclass
from pathlib import Path

import pytest
from waiting import wait_for

from saga_lib.common.errors import SagaError
from saga_lib.config import RunConfig
from saga_study.methods import make_config
from saga_study.paths import study_folder
from saga_study.runs.page import write_page
from saga_study.runs.queue import run_queue
from saga_study.runs.remaining import Remaining
from saga_study.runs.store import run_folder
from saga_study.runs.tracking import Tracker, check_tracker, curves_in
from saga_study.study.command import main


def make(method="pf", seed=0):
    return make_config("smoke", "miniature_birds", method, seed)


def log(folder, *steps, end="\n"):
    folder.mkdir(exist_ok=True)
    with open(folder / "metrics.jsonl", "a") as file:
        file.write("\n".join(json.dumps({"step": step, "steps": 9, "loss_dml": step / 10}) for step in steps) + end)


@pytest.fixture
def stand_in(monkeypatch):
    """A tracker of the kind of trackio and wandb; returns what it was told."""
    told = []

    def init(**options):
        name = options["name"]
        told.append(("init", options["project"], name))
        return types.SimpleNamespace(
            log=lambda metrics, step: told.append(("log", name, step, metrics)), finish=lambda: told.append(("finish", name))
        )

    monkeypatch.setitem(sys.modules, "trackio", types.SimpleNamespace(init=init))
    return told


def test_each_step_is_passed_on_once(tmp_path, stand_in):
    tracker, folder = Tracker(curves_in("trackio", tmp_path / "study-1")), tmp_path / "run"
    tracker.follow(make(), folder)
    assert stand_in == [], "nothing was logged yet"
    log(folder, 1, 2)
    tracker.follow(make(), folder)
    log(folder, 3, end="")  # a line that is still being written
    tracker.follow(make(), folder)
    with open(folder / "metrics.jsonl", "a") as file:
        file.write("\n")
    tracker.follow(make(), folder)
    (folder / "metrics.jsonl").unlink()  # a run that goes on from its checkpoint repeats steps
    log(folder, 1, 2, 3, 4)
    tracker.follow(make(), folder)
    tracker.finish(folder)
    tracker.finish()
    assert stand_in[0][:2] == ("init", "study-1") and "pf" in stand_in[0][2] and stand_in[0][2].endswith(" run")
    assert [entry[2] for entry in stand_in if entry[0] == "log"] == [1, 2, 3, 4]
    assert stand_in[1][3] == {"loss_dml": 0.1} and [entry[0] for entry in stand_in].count("finish") == 1


def test_the_curves_of_a_queue_are_in_tensorboard(faked):
    configs = [make(), make("pa")]
    run_queue(configs, "s", workers=2, display=io.StringIO(), track="tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folders = sorted((study_folder("s") / "tensorboard").iterdir())
    assert {folder.name.split()[-1] for folder in folders} == {run_folder("s", config).name for config in configs}
    for folder in folders:
        events = EventAccumulator(str(folder)).Reload()
        assert [event.step for event in events.Scalars("seconds")] == [1, 2, 3]


def test_trackers_that_are_not_there_are_named_before_anything_starts(monkeypatch, capsys):
    with pytest.raises(SagaError, match="--track takes one of tensorboard, trackio, wandb, got 'mlflow'"):
        check_tracker("mlflow")
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert main(["--dry-run", "--track", "wandb"]) == 2
    assert "--track wandb needs the package wandb" in capsys.readouterr().err


def test_the_page_shows_what_is_at_work_and_goes_when_it_is_done(faked):
    faked(pf="slow")
    slow, page, display = make(), study_folder("s") / "status.html", io.StringIO()
    thread = threading.Thread(target=run_queue, args=([slow, make("pa")], "s", 1), kwargs={"display": display})
    thread.start()
    wait_for(page.is_file)
    text = page.read_text()
    assert 'http-equiv="refresh"' in text and "0 of 2 runs" in text and "1 runs wait" in text and "miniature_birds" in text
    assert "Found so far" not in text
    wait_for(run_folder("s", slow).is_dir)
    (run_folder("s", slow) / "go-on").touch()
    thread.join(60)
    assert not thread.is_alive() and not page.exists()
    assert "pf seed 0 took" in display.getvalue() and "R@1 75.0 %" in display.getvalue()


@dataclass
class FinishedJob:
    config: RunConfig
    folder: Path


def test_the_page_says_what_was_found_so_far(tmp_path):
    jobs = [FinishedJob(make(method), tmp_path / method) for method in ("pf", "pa", "ms")]
    for job, text in zip(jobs, ('{"recall": {"1": 0.5}, "map_at_r": 0.25}', '{"recall": {"1": 0.75}}', "{"), strict=True):
        job.folder.mkdir()
        (job.folder / "evaluation.json").write_text(text)
    rewards = [{"step": step, "steps": 60, "reward_mean": 0.25 if step <= 20 else 0.75} for step in range(1, 41)]
    (jobs[0].folder / "metrics.jsonl").write_text("".join(json.dumps(step) + "\n" for step in rewards) + '{"step": 41, "rew')
    (jobs[1].folder / "metrics.jsonl").write_text('{"step": 1, "steps": 60}\n')
    write_page(tmp_path, [], [], jobs, 2, 6, Remaining(1.0, 2.0))
    text = (tmp_path / "status.html").read_text()
    (points,) = re.findall(r'<polyline points="(.*?)"/></svg> 0.75', text)  # of the one run that has rewards
    places = [tuple(map(float, point.split(","))) for point in points.split()]
    assert [y for _, y in places] == [22.5] * 10 + [7.5] * 10  # two steps each; upwards is more
    assert [x for x, _ in places] == sorted({x for x, _ in places}) and places[-1][0] == 67  # two thirds of 60 steps
    text = text.replace("0.75</td>", "</td>")
    told = [re.sub(r"<[^>]+>", " ", row).split() for row in re.findall(r"<tr>(.*?)</tr>", text.split("Found so far")[1])]
    assert "5 of 6 runs" in text
    assert [row[-2:] for row in told[1:]] == [["–", "–"], ["75.0", "–"], ["50.0", "25.0"]]
