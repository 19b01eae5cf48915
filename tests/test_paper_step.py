"""The benchmark of the full-size step runs, as a toy on the CPU."""

import importlib.util
import json

import pytest
import torch

from saga_lib import planner
from saga_lib.paths import REPOSITORY


@pytest.fixture(scope="module")
def paper_step():
    spec = importlib.util.spec_from_file_location("paper_step", REPOSITORY / "benchmarks" / "paper_step.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


INTERNVL = ["--supervisor", "OpenGVLab/InternVL3_5-8B-HF"]


@pytest.mark.parametrize(
    "options",
    [[], ["--lora-rank", "2", "--waves", "2", "--replay-rows", "0"], ["--recompute-layers"], INTERNVL, [*INTERNVL, "--recompute-layers"]],
)
def test_the_toy_runs_every_phase(paper_step, options, tmp_path, capsys):
    rows = paper_step.main(["--tiny", "--output", str(tmp_path / "step.json"), *options])
    assert [row["phase"] for row in rows] == ["A", "B", "C replay", "C tower", "step"]
    assert all(row["seconds"] > 0 and row["estimated seconds"] > 0 and row["estimated GiB"] > 0 for row in rows)
    assert rows[1]["tokens/s"] > 0 and all(0 < row["MFU"] < 1 for row in rows[:4])
    assert json.loads((tmp_path / "step.json").read_text())["phases"] == rows
    assert "estimated seconds" in capsys.readouterr().out


@pytest.mark.parametrize("family", ["qwen3_vl", "internvl"])
def test_lengths_are_forced_and_the_step_trains(paper_step, family):
    config = paper_step.make_config(
        "paper", "cub200", "saga_pf", 0, image_size=48, embedding_dim=16, batch_size=8, pairs_per_wave=2, contributing_pairs=2,
        group_size=4,
    )  # fmt: skip
    step = paper_step.Step(paper_step.TINY[family], config, 40, 12, 1, torch.device("cpu"))
    assert len(step.prompt_ids) == 40 and len(step.supervisor.image_columns(step.prompt_ids)) == 2
    rollouts = step._wave(step._phase_a(), 0)
    assert rollouts.tokens.shape == (8, 12) and rollouts.mask.all()
    before = [p.detach().clone() for p in step.encoder.parameters()]
    step.run()
    changed = [not torch.equal(a, b) for a, b in zip(before, step.encoder.parameters(), strict=True)]
    assert sum(changed) > 0.9 * len(changed)
    assert sum(planner.count_parameters(paper_step.TINY[family]).values()) == sum(
        p.numel() for p in {*step.encoder.tower.parameters(), *step.supervisor.language_model.parameters()}
    )
