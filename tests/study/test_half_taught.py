"""Supervisors of different quality: one tower, language models kept along their learning, made where they are needed."""

import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from saga_lib.common.errors import SagaError
from saga_lib.common.files import read_json
from saga_lib.config import CHECKPOINTS
from saga_study.design import trials
from saga_study.teaching import half_taught
from saga_study.teaching.checkpoints import RECIPES
from saga_study.teaching.half_taught import HalfTaughtRecipe, teach

TINY = replace(RECIPES["birds"], families=40, text_steps=2, steps=8, families_per_batch=4, warmup=2)


def test_supervisors_share_the_shipped_tower_and_their_language_models_go_on_learning(tmp_path):
    threads = torch.get_num_threads()
    log = teach(HalfTaughtRecipe("birds", keep_after=(4, 8), held_out=8), TINY, tmp_path, report=lambda _line: None)
    assert torch.get_num_threads() == threads and [row["stage"] for row in log] == ["text", "language"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["birds_after_0004", "birds_after_0008"], "scratch is taken away"
    shipped, early, late = (
        load_file(folder / "model.safetensors") for folder in (CHECKPOINTS / "birds", *(tmp_path / f"birds_after_000{n}" for n in (4, 8)))
    )
    assert shipped.keys() == early.keys() == late.keys()
    for name in shipped:
        is_tower = ".visual." in name
        assert torch.equal(shipped[name], early[name]) == torch.equal(shipped[name], late[name]) == is_tower, name
    learnt = [name for name in early if not torch.equal(early[name], late[name])]
    assert len(learnt) > 10
    again = tmp_path / "again"  # wherever and whenever it is made: runs are found by its checksum
    again.mkdir()
    teach(HalfTaughtRecipe("birds", keep_after=(8,), held_out=8), TINY, again, report=lambda _line: None)
    one, other = (folder / "birds_after_0008" for folder in (tmp_path, again))
    assert all(path.read_bytes() == (one / path.name).read_bytes() for path in other.iterdir())
    shutil.rmtree(again)
    right = read_json(tmp_path / "birds_after_0004" / "training_log.json")[-1]
    assert right["step"] == 4 and 0 <= right["structured"] <= 1
    assert read_json(tmp_path / "birds_after_0008" / "recipe.json")["half_taught"]["keep_after"] == 8
    with pytest.raises(SagaError, match="birds"):
        teach(HalfTaughtRecipe("brids"), into=tmp_path)


def test_only_what_a_study_needs_and_lacks_is_made(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(half_taught, "CHECKPOINTS", tmp_path)
    monkeypatch.setattr(half_taught, "teach", lambda recipe, report: made.append(recipe))
    wanted = [str(half_taught.folder_after("birds", steps)) for steps in half_taught.STEPS]
    half_taught.make_missing(["miniature", "Qwen/Qwen3-VL-8B-Instruct", str(CHECKPOINTS / "birds_internvl")], report=print)
    assert not made
    half_taught.make_missing(["miniature", wanted[1]], report=lambda _line: None)
    assert made == [HalfTaughtRecipe("birds")]
    for folder in wanted:
        (tmp_path / folder).mkdir()
    half_taught.make_missing(wanted, report=print)
    assert len(made) == 1


def test_the_study_compares_those_that_are_made():
    named = {run.supervisor for run in trials.sensitivity_runs("miniature")} - {"miniature"}
    assert named == {str(half_taught.folder_after("birds", steps)) for steps in half_taught.STEPS}
