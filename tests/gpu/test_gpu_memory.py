"""The peak memory of each phase of a step, as torch counts it, against the planner: models of 2 billion parameters, on a CPU toys."""

import gc

import pytest
import torch

from saga_lib.common.files import read_json

BOUND = 0.10  # of the planner's number
FULL = [
    "--batch-size", "32", "--group-size", "4", "--contributing-pairs", "4", "--pairs-per-wave", "8", "--tower-images", "8",
    "--answer", "200", "--warm-up", "40",
]  # fmt: skip
MODELS = {
    "qwen3_vl": ["--supervisor", "Qwen/Qwen3-VL-2B-Instruct", "--prompt", "480"],
    "internvl": ["--supervisor", "OpenGVLab/InternVL3_5-2B-HF", "--prompt", "640"],
}


@pytest.mark.parametrize("family", MODELS)
def test_peaks_are_those_of_the_planner(family, on_cpu, tmp_path):
    import paper_step

    gc.collect()  # models of other tests
    before = torch.cuda.memory_allocated() / 2**30 if not on_cpu else 0.0
    options = [*MODELS[family], *(["--tiny", "--cpu", "--tower-images", "2"] if on_cpu else FULL)]
    rows = paper_step.main([*options, "--output", str(tmp_path / "step.json")])
    assume = read_json(tmp_path / "step.json")["assumptions"]
    phases = [row for row in rows if row["phase"] != "step"]
    assert [row["phase"] for row in phases] == ["A", "B", "C replay", "C reading", "C tower", "C optimizer"]
    errors = {}
    for row in phases:  # the card's own share, which torch does not count, is left out
        planned = (row["estimated GiB"] - assume["context_gib"]) / (1 + assume["fragmentation"])
        errors[row["phase"]] = (row["GiB"] - before) / planned - 1
    assert all(abs(error) < BOUND for error in errors.values()), errors
