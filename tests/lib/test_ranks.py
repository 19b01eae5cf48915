"""One run on several processes: the numbers of one process, whatever is shared out, and one line when a rank is lost."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from saga_study.methods import make_config

REPOSITORY = Path(__file__).resolve().parents[2]
STEPS = 20  # of SAGA; others need fewer to go wrong


def start(config, count, folder, steps):
    """Start the ranks of a run; return their processes and the stem of the files that they write."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config.to_dict()))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = dict(os.environ, MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), WORLD_SIZE=str(count), PYTHONPATH=str(REPOSITORY))
    command = [sys.executable, str(REPOSITORY / "tests" / "rank_worker.py"), str(folder / "config.json"), str(steps), str(folder / "out")]
    ranks = [common | {"RANK": f"{rank}", "LOCAL_RANK": f"{rank}"} for rank in range(count)]
    return [subprocess.Popen(command, env=own, stderr=subprocess.PIPE, text=True, cwd=REPOSITORY) for own in ranks]


def numbers(config, count, folder, steps):
    processes = start(config, count, folder, steps)
    ends = [process.communicate(timeout=500)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * count, ends
    return [json.loads((folder / f"out.{rank}").read_text()) for rank in range(count)]


def small(method, steps=6, **settings):
    return make_config("smoke", "miniature_birds", method, 0, steps=steps, audit_every=0, batch_size=16, **settings)


@pytest.mark.parametrize(
    "config",
    [
        small("saga_pf", STEPS, pairs_per_wave=8, max_waves=2, contributing_pairs=6, lambda_kl=0.1, replay_pairs=3),
        small("contrast_pf", reading_images=5, tower_images=3),
        small("pa_anchor"),
    ],
    ids=["saga", "contrast", "anchor"],
)  # fmt: skip
def test_two_processes_give_the_numbers_of_one(config, tmp_path):
    [alone] = numbers(config, 1, tmp_path / "one", config.steps)
    both = numbers(config, 2, tmp_path / "two", config.steps)
    assert alone["ranks"] == 1 and both[0]["ranks"] == 2
    assert both[0]["parameters"] == both[1]["parameters"], "weights are equal on all ranks, bit for bit"
    for mine in both:
        assert mine["rollouts"] == alone["rollouts"], "the same pairs and the same draws"
        assert len(mine["metrics"]) == config.steps
        for ours, theirs in zip(mine["metrics"], alone["metrics"], strict=True):
            assert ours == pytest.approx(theirs, rel=1e-5, nan_ok=True)
        for name, values in alone["parameters"].items():
            assert mine["parameters"][name] == pytest.approx(values, rel=1e-5, abs=1e-9), name
    if config.language_signal == "grpo":
        assert sum(len(step["pairs"]) for step in alone["rollouts"]) > STEPS, "steps had pairs to learn from"
