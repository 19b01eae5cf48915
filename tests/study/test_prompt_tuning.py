"""Supervisors taught other prompts: the tower stays, the prompt is followed, and runs name them without a machine's path."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from saga_lib.common.errors import SagaError
from saga_lib.common.files import read_json
from saga_lib.common.paths import REPOSITORY
from saga_lib.config import CHECKPOINTS, RunConfig
from saga_lib.records import content_key
from saga_lib.vocabulary import load_vocabulary
from saga_study.methods import make_config
from saga_study.resolving import supervisor_source
from saga_study.teaching import prompt_tuning
from saga_study.teaching.prompt_tuning import PROMPT_TASKS, PromptRecipe, part_of, tune


def test_tuning_changes_the_language_model_alone(tmp_path, monkeypatch):
    tasks = []
    draw = prompt_tuning._loss
    monkeypatch.setattr(prompt_tuning, "_loss", lambda task, *rest: tasks.append(task) or draw(task, *rest))
    recipe = PromptRecipe(text_steps=2, steps=16, families=24, families_per_batch=4, held_out=4, warmup=2, shares=(0.25, 0.25, 0.25, 0.25))
    log = tune(recipe, tmp_path / "taught", report=lambda _line: None)
    assert set(tasks) == set(PROMPT_TASKS)  # every task was met
    before, after = (load_file(folder / "model.safetensors") for folder in (CHECKPOINTS / "birds", tmp_path / "taught"))
    assert before.keys() == after.keys()
    same = {name for name in before if torch.equal(before[name], after[name])}
    tower = {name for name in before if ".visual." in name}
    assert tower <= same and tower and len(before.keys() - same) > 10
    verdicts = {row["prompt"]: row for row in log if row["stage"] == "right verdicts"}
    assert set(verdicts) == {"structured", "every other", "generic"}
    assert all(0 <= row[when] <= 1 for row in verdicts.values() for when in ("before", "after"))
    assert read_json(tmp_path / "taught" / "recipe.json")["steps"] == 16
    with pytest.raises(SagaError, match="birds"):
        tune(PromptRecipe("brids"), tmp_path / "none")


def test_parts_of_a_vocabulary_are_of_any_size_in_its_order():
    whole = load_vocabulary("miniature_birds")
    rng = np.random.default_rng(0)
    parts = [part_of(whole, rng).attribute_names for _ in range(400)]
    assert {len(part) for part in parts} == set(range(1, 9))
    assert all(len(set(part)) == len(part) and set(part) <= set(whole.attribute_names) for part in parts)
    assert all(part == tuple(name for name in whole.attribute_names if name in part) for part in map(tuple, parts))
    assert len(set(map(tuple, parts))) > 100


def test_lists_are_compared_along_any_part_and_stay_in_the_pool():
    whole, rng = load_vocabulary("miniature_birds"), np.random.default_rng(0)
    for number in range(1, 9):  # one attribute of two values must not run out of siblings
        asked = replace(whole, attributes=whole.attributes[-number:])
        answers = [json.loads(text) for text in prompt_tuning.text_comparisons_of(asked, 40, whole, rng)]
        assert len(answers) == 40 and all(list(answer["item_1"]) == list(asked.attribute_names) for answer in answers)
        verdicts = [answer[whole.verdict_key] for answer in answers]
        assert set(verdicts) == {"yes", "no"}
        assert all((answer["item_1"] == answer["item_2"]) == (said == "yes") for answer, said in zip(answers, verdicts, strict=True))


def test_a_taught_supervisor_is_recorded_relative_to_the_repository():
    config = make_config("miniature", "miniature_cars", "pf_grpo", 0, taught="prompts")
    recorded = config.to_dict()["supervisor"]
    assert recorded == "saga_lib/miniature/checkpoints/cars_prompts"
    assert config.supervisor == supervisor_source(config) == str(REPOSITORY / recorded)
    assert RunConfig.from_dict(config.to_dict()) == config
    assert str(REPOSITORY) not in str(config.to_dict())
    other = make_config("miniature", "miniature_cars", "pf_grpo", 0)
    assert content_key(config, {}) != content_key(other, {})
    assert make_config("paper", "cub200", "pf_grpo", 0, taught="prompts") == make_config("paper", "cub200", "pf_grpo", 0)


def test_shipped_supervisors_stay_small_and_bring_their_recipes():
    shipped = {folder.name: folder for folder in CHECKPOINTS.iterdir() if "_after_" not in folder.name and folder.name[0] != "."}
    assert set(shipped) == {"birds", "cars", "aircraft", "birds_prompts", "aircraft_prompts", "birds_internvl"}
    sizes = {name: sum(path.stat().st_size for path in folder.iterdir()) for name, folder in shipped.items()}
    assert sizes["birds_internvl"] <= 8e6 and sum(sizes.values()) - sizes["birds_internvl"] <= 8e6  # each family's
    for name in ("birds", "aircraft"):
        taught, base = (shipped[f"{name}{ending}"] for ending in ("_prompts", ""))
        assert read_json(taught / "recipe.json") == json.loads(json.dumps(asdict(PromptRecipe(name))))
        weights, before = load_file(taught / "model.safetensors"), load_file(base / "model.safetensors")
        assert all(torch.equal(weights[key], value) for key, value in before.items() if ".visual." in key)
