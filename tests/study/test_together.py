"""A run shared out over processes by the queue: its numbers, a process that is lost, an error in one of them, and what is refused."""

import json
import os
import signal
import threading
import time

import psutil
import pytest

from saga_lib.common.errors import SagaError
from saga_lib.common.files import read_json
from saga_study import planner
from saga_study.methods import make_config
from saga_study.resolving import resolve, train_run
from saga_study.runs.processes import worker_slots
from saga_study.runs.queue import run_queue
from saga_study.runs.store import run_folder
from saga_study.runs.together import check_ranks, train_together
from saga_study.study.command import main


def small(**settings):
    return make_config("smoke", "miniature_birds", "pf", 0, steps=6, checkpoint_every=2, **settings)


def kill_one(folder, after):
    """Kill one of the processes that train in a folder once it has logged so many steps; return which."""
    log = folder / "metrics.jsonl"
    while not log.is_file() or len(log.read_text().splitlines()) < after:
        time.sleep(0.02)
    ranks = [p for p in psutil.Process().children(recursive=True) if "spawn_main" in " ".join(p.cmdline())]
    os.kill(max(p.pid for p in ranks), signal.SIGKILL)


def test_a_lost_process_is_one_line_and_the_run_goes_on_with_the_same_numbers(tmp_path):
    config = small()
    alone = train_run(config, tmp_path / "alone").evaluation
    folder = run_folder("by-hand", config)
    killer = threading.Thread(target=kill_one, args=(folder, 3))
    killer.start()
    with pytest.raises(SagaError, match=r"process 1 of the run's 2 was killed by SIGKILL; once started again, it goes on from"):
        run_queue([config], workers=1, ranks=2)
    killer.join()
    assert read_json(folder / "checkpoint" / "counters.json")["step"] >= 2
    [run] = run_queue([config], workers=1, ranks=2)
    assert run.evaluation["recall"] == pytest.approx(alone["recall"], abs=0.002) and not (folder / "checkpoint").exists()
    assert [row["step"] for row in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())] == [1, 2, 3, 4, 5, 6]
    assert not [p for p in psutil.Process().children(recursive=True) if "spawn_main" in " ".join(p.cmdline())], "no process is left"


def test_what_a_user_can_mend_is_said_as_one_process_says_it(tmp_path):
    config, folder = small(), tmp_path / "run"
    (folder / "checkpoint").mkdir(parents=True)
    (folder / "checkpoint" / "counters.json").write_text('{"step": 2, "batches_used": 2, "steps_without_pairs": 0, "file": "gone"}')
    with pytest.raises(SagaError, match="checkpoint .*gone is damaged .*delete .* to start this run over"):
        train_together(resolve(config), folder, ranks=2)


def test_what_cannot_be_shared_is_refused_before_anything_starts(capsys, monkeypatch):
    config = small(batch_size=16, pairs_per_wave=4)
    check_ranks(config, 4)
    with pytest.raises(SagaError, match="--gpus-per-run 8 does not divide pairs_per_wave = 4; 4 would"):
        check_ranks(config, 8)
    for arguments, said in (
        ("--list --gpus-per-run 0", "--gpus-per-run takes a number of at least 1"),
        ("--list --gpus-per-run 3", "--gpus-per-run 3 does not divide batch_size"),
        ("paper --list --gpus-per-run 2 --cluster slurm --gpus-per-node 1", "needs as many in a node: add --gpus-per-node 2"),
        ("--gpus 8", "--gpus is for a plan: add --list"), ("paper --list --gpus x", "--gpus takes a number"),
        ("paper --list --gpu-price 3", "add --gpus N"), ("paper --list --gpus 2 --gpu-price x", "--gpu-price takes a number"),
    ):  # fmt: skip
        assert main(arguments.split()) == 2 and said in capsys.readouterr().err
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    assert worker_slots("paper", None, 2) == ["4,5", "6,7"] and worker_slots("paper", 1, 4) == ["4,5,6,7"]
    with pytest.raises(SagaError, match="--gpus-per-run 8: this machine has 4"):
        worker_slots("paper", None, 8)


# --------------------------------------------------------------------------------------------------- the planner


def test_sharing_a_run_makes_its_step_shorter_by_what_is_shared():
    config = make_config("paper", "cub200", "saga_pf", 0)
    one, four = (planner.shared_seconds(config, ranks) for ranks in (1, 4))
    assert one == planner.estimate(config).seconds and planner.shared_hours(config, 1) == pytest.approx(planner.estimate(config).hours)
    assert four["C replay"] == pytest.approx(one["C replay"] / 4, rel=0.02) and four["C optimizer"] == one["C optimizer"]
    assert one["B decode"] / 4 < four["B decode"] < one["B decode"], "every GPU reads all weights for each token"
    assert 0 < four["exchange"] < 0.1 * sum(four.values()) and sum(four.values()) < sum(one.values())
    assert planner.shared_hours(config, 4) < planner.shared_hours(config, 2) < planner.shared_hours(config, 1)


def test_the_plan_on_several_gpus_adds_up(capsys):
    assert main(["paper", "--list", "--only", "08", "--gpus", "2", "--gpu-price", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    start = next(n for n, line in enumerate(lines) if line.startswith("hours and cost on 2 GPUs"))
    assert lines[start + 1].split() == ["1", "a", "run", "2", "a", "run"]
    table = {line.split()[0]: [float(part.replace(",", "")) for part in line.split()[1:]] for line in lines[start + 2 : start + 4]}
    hours = next(float(line.split()[1]) for line in lines if line.split()[:1] == ["table5"] and " runs" in line)
    assert set(table) == {"table5", "all"} and table["table5"] == table["all"]
    apart, cost = table["all"][:2]
    assert cost == pytest.approx(2 * hours, abs=1.1) and hours / 2 <= apart + 0.06 <= hours
    assert "the longest runs start first" in lines[start + 4] and "saga_pf" in lines[start + 4]
