"""The planner's counts are those of the real classes, its memory model that of measured tensors, its advice what it says."""

import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import IMAGE_SIZE, VOCABULARY, random_images

from saga_lib.common.errors import SagaError
from saga_lib.common.files import read_json
from saga_lib.common.paths import REPOSITORY
from saga_lib.encoder import Encoder
from saga_lib.families import family_module
from saga_lib.families.loading import load_supervisor
from saga_lib.prompts import comparison_prompt
from saga_lib.supervisor.replay import replay_log_probs
from saga_lib.vocabulary import load_vocabulary
from saga_study import planner
from saga_study.methods import make_config
from saga_study.planner.estimates import advice, estimate
from saga_study.planner.memory import peak
from saga_study.planner.shapes import GIB, architecture, count_parameters

PAPER = make_config("paper", "cub200", "saga_pf", 0)


def size(module):
    return sum(p.numel() for p in module.parameters())


# -------------------------------------------------------------------------------------------------- parameters


@pytest.mark.parametrize(
    "name, billions",
    [  # published totals
        ("Qwen/Qwen3-VL-2B-Instruct", 2.13), ("Qwen/Qwen3-VL-4B-Instruct", 4.44), ("Qwen/Qwen3-VL-8B-Instruct", 8.77),
        ("OpenGVLab/InternVL3_5-8B-HF", 8.53),
    ],
)  # fmt: skip
def test_parameters_are_those_of_the_real_classes(name, billions):
    from transformers import AutoModelForImageTextToText

    shapes = architecture(name)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(family_module(shapes.family).config_of(shapes))
    parts = count_parameters(shapes)
    assert sum(parts.values()) == size(model) == pytest.approx(billions * 1e9, rel=2e-3)
    assert parts["language model"] == size(model.model.language_model)
    assert parts["head"] == (0 if shapes.tied_head else size(model.lm_head))
    vision = model.model.visual if shapes.family == "qwen3_vl" else model.model.vision_tower
    if shapes.family == "qwen3_vl":
        mergers = size(vision.merger) + size(vision.deepstack_merger_list)
        assert (parts["tower"], parts["mergers"]) == (size(vision) - mergers, mergers)
    else:
        assert (parts["tower"], parts["mergers"]) == (size(vision), size(model.model.multi_modal_projector))


def test_a_local_folder_tells_its_own_shapes(checkpoint, tmp_path):
    shapes = architecture(str(checkpoint))
    tower, supervisor = load_supervisor(checkpoint, IMAGE_SIZE)
    parts = count_parameters(shapes)
    assert parts["tower"] + parts["mergers"] == size(tower) and parts["head"] == 0
    assert parts["mergers"] == sum(p.numel() for p in tower.merger_parameters())
    assert parts["language model"] == size(supervisor.language_model)
    assert shapes.tokens(IMAGE_SIZE) == tower.num_tokens
    written = read_json(checkpoint / "config.json")
    del written["vision_config"]["depth"]
    with pytest.raises(SagaError, match="the configuration of x has no 'depth'"):
        planner.architecture_of_config(written, "x")
    with pytest.raises(SagaError, match="did you mean 'Qwen/Qwen3-VL-8B-Instruct'"):
        architecture("Qwen/Qwen3-VL-8B")
    with pytest.raises(SagaError, match="has no config.json"):
        architecture(str(tmp_path))


@pytest.mark.parametrize(
    "options", [{}, {"lora_rank": 4}, {"lora_rank": 4, "train_mergers": False}, {"pooler": "mean", "embedding_dim": 0}]
)
def test_trained_parameters_are_those_of_a_session(checkpoint, options, tmp_path, monkeypatch):
    from saga_lib.training import Session

    monkeypatch.setenv("SAGA_DATA", str(tmp_path))
    config = make_config("smoke", "miniature_birds", "saga_pf", 0, supervisor=str(checkpoint), **options)
    session = Session(config)
    expected = {name: count for name, count in session.trained_parameters().items() if count}
    counted = planner.count_trained_parameters(architecture(str(checkpoint)), config, len(session.benchmark.train.class_names))
    assert {name: count for name, count in counted.items() if count} == expected


# ------------------------------------------------------------------------------------------------------ memory


class Saved:
    """Bytes of the distinct tensors that autograd keeps while the context is open, parameters left out."""

    def __init__(self, *modules):
        self.known = {p.untyped_storage().data_ptr() for module in modules for p in module.parameters()}
        self.storages = {}

    def __enter__(self):
        def keep(tensor):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in self.known:
                self.storages[storage.data_ptr()] = (storage.nbytes(), tensor)  # kept, so that its place is not used again
            return tensor

        self.hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
        self.hooks.__enter__()
        return self

    def __exit__(self, *arguments):
        self.hooks.__exit__(*arguments)

    @property
    def bytes(self):
        return sum(nbytes for nbytes, _ in self.storages.values())


@pytest.mark.parametrize("rows, answer", [(2, 40), (8, 64)])
def test_replay_memory_is_that_of_the_saved_tensors(checkpoint, rows, answer):
    tower, supervisor = load_supervisor(checkpoint, IMAGE_SIZE)
    prompt_ids = supervisor.prompt_ids(comparison_prompt(VOCABULARY))
    images = tower(tower.preprocess(random_images(4))).boundary()
    tokens = torch.randint(0, 50, (2 * rows, answer))
    mask = torch.zeros_like(tokens, dtype=torch.bool)
    mask[:, 0] = True  # logits are counted apart
    with Saved(supervisor.language_model, supervisor.head) as saved:
        replay_log_probs(supervisor, prompt_ids, images, tokens, mask)
    expected = planner.replay_bytes(architecture(str(checkpoint)), 2, rows, len(prompt_ids), answer, size=4, repeats_kv=False)
    assert saved.bytes == pytest.approx(expected, rel=0.1)


def test_tower_memory_is_that_of_the_saved_tensors(checkpoint):
    tower, _ = load_supervisor(checkpoint, IMAGE_SIZE)
    pixels = tower.preprocess(random_images(8))
    with Saved(tower) as saved:
        Encoder(tower, "mean", 0)(pixels)
    assert saved.bytes == pytest.approx(planner.tower_bytes(architecture(str(checkpoint)), 8, IMAGE_SIZE, size=4), rel=0.03)


def test_the_model_of_memory_at_full_scale_agrees_with_measured_activations():
    """144.3 KiB per token and layer (156.4 behind a prefix) and 42 KiB per patch and block were measured at real widths."""
    shapes = architecture("Qwen/Qwen3-VL-8B-Instruct")
    per_token = planner.replay_bytes(shapes, 1, 8, 698, 901) - planner.replay_bytes(shapes, 1, 8, 698, 900)
    assert per_token / (8 * shapes.layers * 1024) == pytest.approx(156.4, rel=3e-3)
    per_prompt_token = planner.replay_bytes(shapes, 1, 0, 699, 0) - planner.replay_bytes(shapes, 1, 0, 698, 0)
    assert per_prompt_token / (shapes.layers * 1024) == pytest.approx(144.3, rel=2e-3)
    assert planner.replay_bytes(shapes, 1, 8, 698, 900) / GIB == pytest.approx(45, abs=1)
    per_image = planner.tower_bytes(shapes, 1, 224)
    per_block = (per_image - planner.tower_bytes(replace(shapes, vision_layers=0), 1, 224)) / (196 * 27 * 1024)
    assert per_block - 2 * 2 * 1152 / 1024 == pytest.approx(42, rel=0.01)  # measured with norms in bf16, as on a CPU
    assert shapes.kv_values * 2 == 144 * 1024  # bytes of a token's keys and values in bf16


def test_levers_lower_what_they_say():
    base = estimate(replace(PAPER, tower_images=0))
    for change, phase, part in (
        ({"tower_images": 16}, "B", "tower activations"), ({"tower_images": 16}, "C tower", "tower activations"),
        ({"replay_rows": 1}, "C replay", "replay activations"), ({"pairs_per_wave": 4}, "B", "rollouts' KV cache"),
        ({"max_micro_batches": 1}, "C replay", "tower activations"), ({"lora_rank": 16}, "A", "its AdamW moments"),
    ):  # fmt: skip
        assert estimate(replace(base.config, **change)).at_most[phase][part] < base.at_most[phase][part], change
    whole = estimate(replace(base.config, replay_rows=0))
    assert whole.at_most["C replay"]["replay activations"] > base.at_most["C replay"]["replay activations"]
    assert peak(base.expected) <= peak(base.at_most)
    table = planner.memory_table(base)
    assert table.iloc[-1]["part"] == "total" and max(table.iloc[-1][1:]) == pytest.approx(peak(base.expected))


def test_advice_ends_with_a_configuration_that_fits():
    assert advice(PAPER, 1000).startswith("fits in 1000 GiB")
    assert advice(PAPER, 79).startswith("fits in 79 GiB")  # an H100's
    said = advice(replace(PAPER, tower_images=0), 60)
    assert said.startswith("does not fit in 60 GiB") and "tower_images 16" in said and "even so" not in said
    assert "even so it does not fit" in advice(PAPER, 20)
    assert "even so" not in advice(replace(PAPER, supervisor="Qwen/Qwen3-VL-2B-Instruct"), 40)
    assert advice(make_config("paper", "cub200", "pf", 0), 40).startswith("fits")


# ---------------------------------------------------------------------------------------------- work and hours


def test_steps_are_those_of_training(checkpoint, tmp_path, monkeypatch):
    from saga_lib.training import Session

    monkeypatch.setenv("SAGA_DATA", str(tmp_path))
    config = make_config("smoke", "miniature_birds", "pf", 0, supervisor=str(checkpoint), steps=0, epochs=2)
    for options in ({}, {"evaluate_on": "validation"}):
        session = Session(replace(config, **options))
        work = estimate(replace(config, **options)).work
        assert (work.steps, work.batch) == (session.total_steps, 16)
        assert (work.train_images, work.test_images) == (len(session.benchmark.train), len(session.benchmark.test))


def test_prompt_and_answer_lengths_are_those_of_the_tokenizer(checkpoint):
    config = make_config("smoke", "miniature_birds", "saga_pf", 0, supervisor=str(checkpoint))
    _, supervisor = load_supervisor(checkpoint, IMAGE_SIZE)
    work = estimate(config).work
    assert work.prompt == pytest.approx(len(supervisor.prompt_ids(comparison_prompt(VOCABULARY))), abs=10)
    assert 40 < work.answer <= config.max_new_tokens


def test_the_measured_prompts_are_those_of_today():
    for name, (characters, tokens, answer) in planner.MEASURED_LENGTHS.items():
        assert len(comparison_prompt(load_vocabulary(name))) == characters, f"measure the prompt of {name} again"
        assert 3.5 < characters / tokens < 4.5 and tokens < answer < PAPER.max_new_tokens
    lengths = {name: planner.text_lengths(name, "Qwen/Qwen3-VL-8B-Instruct", planner.Assumptions()) for name in ("cub200", "aircraft")}
    assert lengths == {"cub200": (286 + 14, 821), "aircraft": (352 + 14, 865)}


def test_the_paper_runs_have_its_numbers():
    work = estimate(PAPER).work
    assert work.steps == 3 * (5864 // 64) and work.num_classes == 100
    assert work.prompt > 98 + 200 and 800 < work.answer <= 1024
    assert 1 <= work.waves <= PAPER.max_waves and work.pairs_replayed == 8
    operations = planner.operations(PAPER, architecture(PAPER.supervisor), replace(work, prompt=698, answer=900, pairs_drawn=8))
    tera = {name: value / 1e12 for name, value in operations.items()}  # arithmetic of others at these lengths: 79, 911, 990, 1050
    expected = {"prefill": 79, "decode": 911, "replay forward": 990, "replay backward": 1050}
    assert {name: tera[name] for name in expected} == pytest.approx(expected, rel=0.02)
    seconds = estimate(PAPER).seconds
    assert seconds["B decode"] > seconds["C replay"] > seconds["C tower"] > 0


def test_methods_without_a_language_signal_cost_no_language_model():
    bare, pre_trained = (estimate(make_config("paper", "cub200", method, 0)) for method in ("pf", "pre-trained"))
    assert bare.expected["A"]["language model, bf16"] == 0 and list(bare.expected) == ["loading", "A", "C tower"]
    assert bare.tokens_per_second == bare.seconds["B decode"] == bare.seconds["C replay"] == 0
    assert pre_trained.work.steps == 0 and pre_trained.hours < bare.hours < estimate(PAPER).hours
    assert pre_trained.disk_gib["checkpoint"] == 0


def test_the_text_counts_shared_runs_once():
    runs = [PAPER, replace(PAPER, seed=1)]
    text = planner.describe_plan({"one": runs, "two": runs[:1]})
    hours = estimate(PAPER).hours
    assert f"{2 * hours:7.1f} h, 2 runs" in text.splitlines()[-5] and "all" in text.splitlines()[-5]
    assert planner.describe_plan({}) == "estimate: no runs"
    table = planner.runs_table(runs)
    assert len(table) == 1 and np.isclose(table["hours"], 2 * hours).all()


def test_rows_of_the_plan_are_alike_in_all_that_is_estimated():
    other = make_config("paper", "cub200", "saga_pf", 0, supervisor="OpenGVLab/InternVL3_5-8B-HF")
    runs = [PAPER, replace(PAPER, seed=2), replace(PAPER, embedding_dim=512), other]
    table = planner.runs_table(runs).set_index("unlike the profile")
    assert list(table.index) == ["", "embedding_dim 512", "supervisor OpenGVLab/InternVL3_5-8B-HF"] and list(table["runs"]) == [2, 1, 1]
    assert list(table["model"]) == ["Qwen3-VL-8B-Instruct", "Qwen3-VL-8B-Instruct", "InternVL3_5-8B-HF"]
    for config, row in zip((PAPER, *runs[2:]), table.to_dict("records"), strict=True):
        one = estimate(config)
        assert row["trained M"] == sum(one.trained.values()) / 1e6 and row["s/step"] == pytest.approx(one.seconds_per_step)
        assert row["PFLOP/step"] == pytest.approx(sum(planner.operations(config, one.shapes, one.work).values()) / 1e15)
    text = planner.describe_plan({"one": runs})
    assert "OpenGVLab/InternVL3_5-8B-HF: tower 304 M" in text and "embedding_dim 512" in text
    parts = [line for line in text.splitlines() if "by part: phase" in line]
    numbers = re.findall(r" (\d+\.\d)(?=[, ])", parts[0].partition("phase")[2])
    largest = max(planner.peak(estimate(config).at_most) for config in runs)
    assert len(parts) == 1 and sum(map(float, numbers)) == pytest.approx(largest, abs=0.5)


@pytest.mark.parametrize("dataset", ["cub200", "cars196", "aircraft", "inat_aves"])
def test_metric_learning_for_sagas_wall_clock_takes_as_long_by_the_plan(dataset):
    saga, long = (estimate(make_config("paper", dataset, method, 0)).hours for method in ("saga_pf", "pf_long"))
    assert long == pytest.approx(saga, rel=0.2)


def test_planning_needs_no_torch():
    code = (
        "import sys; from saga_study import planner; from saga_study.methods import make_config\n"
        "planner.describe_plan({'t': [make_config('paper', 'cub200', 'saga_pf', 0)]}); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY).returncode == 0
