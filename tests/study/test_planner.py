"""The planner's counts are those of the real classes, its memory model that of measured tensors, its advice what it says."""

import re
import shlex
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
from saga_lib.reading import READING_LOSSES, Reader, ValueTree, description_answer, description_prompt
from saga_lib.supervisor import decoding
from saga_lib.supervisor.replay import replay_log_probs
from saga_lib.vocabulary import load_vocabulary
from saga_study import planner
from saga_study.methods import METHODS, Profile, make_config
from saga_study.planner import costs, readings
from saga_study.planner.estimates import advice, estimate
from saga_study.planner.memory import peak
from saga_study.planner.shapes import GIB, architecture, count_parameters
from saga_study.study.command import main, make_parser
from saga_study.study.plan import make_plan

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
    from saga_study.resolving import open_session

    monkeypatch.setenv("SAGA_DATA", str(tmp_path))
    config = make_config("smoke", "miniature_birds", "saga_pf", 0, supervisor=str(checkpoint), **options)
    session = open_session(config)
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


@pytest.mark.parametrize("free", [False, True])
@pytest.mark.parametrize("images", [4, 12])
def test_reading_memory_is_that_of_the_saved_tensors(checkpoint, free, images):
    vocabulary = replace(VOCABULARY, attributes=tuple(replace(a, values=() if free else a.values) for a in VOCABULARY.attributes))
    tower, supervisor = load_supervisor(checkpoint, IMAGE_SIZE)
    shapes, reader = architecture(str(checkpoint)), Reader(supervisor, vocabulary)
    tokens = tower(tower.preprocess(random_images(images))).boundary()
    with Saved(supervisor.language_model, supervisor.head) as saved:
        READING_LOSSES["contrast"](reader(tokens), torch.arange(images) // 2, 6.0)
    encode = supervisor.tokenizer.encode
    lengths = readings.reading_lengths("its own", vocabulary, lambda text: encode(text, add_special_tokens=False), planner.ASSUMED)
    read = len(reader.prompt_ids) + lengths.answer + lengths.beside
    assert lengths.answer + lengths.beside == len(reader._forced.tokens)
    expected = planner.reading_bytes(shapes, images, read, lengths.logits(shapes.vocabulary), size=4, repeats_kv=False)
    assert saved.bytes == pytest.approx(expected, rel=0.06)


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


# ---------------------------------------------------------------------------------------------- what fits a GPU


def listed(capsys, *arguments):
    assert main([*arguments]) == 0
    return capsys.readouterr().out.rstrip().splitlines()


@pytest.mark.parametrize(
    "gpu_memory, given, expected",
    [
        (80, (), {}), (48, (), {"reading_images": "4"}), (48, ("--methods", "pf,saga_pf"), {}), (40, (), {"replay_rows": "1"}),
        (24, (), {"supervisor": "Qwen/Qwen3-VL-4B-Instruct"}), (16, (), {"supervisor": "Qwen/Qwen3-VL-2B-Instruct"}),
        (24, ("--only", "04", "--set", "supervisor=Qwen/Qwen3-VL-2B-Instruct"), {}),
        (40, ("--methods", "pf,saga_pf", "--seeds", "1", "--set", "replay_rows=4"), {"recompute_layers": "True"}),
    ],
)  # fmt: skip
def test_the_list_ends_with_the_command_that_fits(gpu_memory, given, expected, capsys, results):
    """Its own runs, as the command line makes them of it, are estimated one by one; its own list ends with itself."""
    said = listed(capsys, "paper", "--datasets", "cub200", *given, "--list", "--gpu-memory", str(gpu_memory))
    program, *arguments = shlex.split(said[-1])
    assert program == "./run_all.sh" and arguments[: 3 + len(given)] == ["paper", "--datasets", "cub200", *given]
    added = dict(part.split("=", 1) for part in arguments[3 + len(given) :] if part != "--set")
    assert expected.items() <= added.items() and (expected or not added)
    options = make_parser().parse_args(arguments)
    runs = make_plan(options, "paper").runs
    assert runs and max(peak(estimate(run, planner.card_of(gpu_memory)).at_most) for run in runs) <= gpu_memory
    assert said[-2].startswith(f"what fits in {gpu_memory} GiB:") and "hours of an H100" in said[-2]
    assert listed(capsys, *arguments, "--list", f"--gpu-memory={gpu_memory}")[-1] == said[-1]


def test_what_fits_lowers_no_more_than_it_must(capsys):
    def runs_of(settings):
        return [make_config(Profile("paper", settings), "cub200", method, 0) for method in ("pf", "saga_pf", "contrast_pf")]

    for gpu_memory in (60, 44, 36, 30, 26, 22, 18):
        fit, fits = planner.find_fit(runs_of, gpu_memory)
        assert fits and fit.gib <= gpu_memory
        assert fit.gib == pytest.approx(max(peak(estimate(run).at_most) for run in runs_of(fit.settings)))
        for name in fit.settings.keys() - {"supervisor", "lora_rank", "max_waves"}:
            others = {other: value for other, value in fit.settings.items() if other != name}
            assert max(peak(estimate(run).at_most) for run in runs_of(others)) > gpu_memory, (gpu_memory, name)
    fit, fits = planner.find_fit(runs_of, 8)
    assert not fits and fit.gib > 8 and fit.settings["supervisor"] == "Qwen/Qwen3-VL-2B-Instruct"
    said = listed(capsys, "paper", "--datasets", "cub200", "--list", "--gpu-memory", "8")[-1]
    assert said.startswith("nothing fits in 8 GiB") and "take a larger GPU" in said


@pytest.mark.parametrize(
    "arguments", [[], ["smoke"], ["miniature", "--list"], ["smoke", "--dry-run"], ["paper"], ["paper", "--cpu"], ["--only", "17"]]
)
def test_the_memory_of_a_gpu_is_for_plans_alone(arguments, capsys, results):
    assert main([*arguments, "--gpu-memory", "80"]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("error: --gpu-memory 80: only ./run_all.sh paper with --list or --dry-run") and said.err.count("\n") == 1
    assert said.out == "" and not results.exists()


# ------------------------------------------------------------------------------------------- held against a GPU

MEASURED = read_json(REPOSITORY / "benchmarks" / "results" / "h100-80gb.json")
H100 = planner.CARDS["H100"]


def as_measured(one):
    """The planner's estimate of a step, or of a phase alone, of the committed measurements: seconds and GiB by phase, and the parts."""
    lengths = dict(MEASURED["lengths"])
    sizes = {name: lengths[name] for name in ("pairs_per_wave", "contributing_pairs", "group_size")}
    config = make_config("paper", "cub200", "saga_pf", 0, supervisor=one["supervisor"], max_new_tokens=900, **sizes, **one["settings"])
    shapes = architecture(one["supervisor"])
    work = replace(
        planner.workload(config, shapes, H100), prompt=lengths["prompt"], answer=lengths["answer"], longest=lengths["answer"], waves=1,
        micro_batches=1, batch=lengths["batch"], pairs_drawn=sizes["pairs_per_wave"], pairs_replayed=sizes["contributing_pairs"],
        rows_per_pair=sizes["group_size"], num_classes=lengths["classes"],
    )  # fmt: skip
    seconds, parts = planner.seconds_per_step(config, shapes, work, H100), planner.memory_by_phase(config, shapes, work, H100)
    return seconds, {phase: sum(sizes.values()) for phase, sizes in parts.items()}, parts


def phases_of(measured):
    return [(one, row) for one in measured for row in one["phases"]]


@pytest.mark.parametrize("one, row", phases_of(MEASURED["steps"]), ids=lambda value: value.get("phase"))
def test_a_measured_step_takes_the_seconds_and_the_memory_of_the_plan(one, row):
    seconds, memory, _ = as_measured(one)
    phases = ("A", "B", "C") if row["phase"] == "step" else (row["phase"], {"C tower": "C optimizer"}.get(row["phase"], row["phase"]))
    expected = sum(value for name, value in seconds.items() if name.startswith(phases))
    if row["seconds"] > 0.2:
        assert expected == pytest.approx(row["seconds"], rel=0.15)
    else:
        assert expected == pytest.approx(row["seconds"], abs=0.03)
    if "GiB" in row:
        assert max(size for name, size in memory.items() if name.startswith(phases)) == pytest.approx(row["GiB"], rel=0.1)


@pytest.mark.parametrize("one, row", phases_of(MEASURED["phases alone"]), ids=lambda value: value.get("phase"))
def test_a_measured_phase_takes_the_seconds_and_the_memory_of_the_plan(one, row):
    """Measured without an optimizer. One is out of line with those beside it, and marked so where it stands; only its memory is held."""
    seconds, memory, parts = as_measured(one)
    if "seconds" in row and "not explained" not in one:
        margin = {"rel": 0.15} if row["seconds"] > 0.2 else {"abs": 0.06}
        assert seconds[row["phase"]] == pytest.approx(row["seconds"], **margin)
    if "GiB" in row:
        without = parts[row["phase"]]["its AdamW moments"] + parts[row["phase"]]["pooler and proxies, with AdamW"]
        gradients = parts[row["phase"]].get("its gradients and AdamW's step", 0)
        expected = memory[row["phase"]] - without
        assert gradients >= 0 and expected == pytest.approx(row["GiB"], rel=0.1)


def test_only_one_measurement_is_left_unexplained():
    assert [one["settings"] for one in MEASURED["phases alone"] if "not explained" in one] == [{"tower_images": 32}]


@pytest.mark.parametrize("row", MEASURED["decoding"]["steps"], ids=lambda row: f"{row['rows']} rows, {row['filled']} filled")
def test_a_measured_decoding_step_takes_the_time_of_the_plan(row):
    shapes = architecture("Qwen/Qwen3-VL-8B-Instruct")
    bare = replace(H100, sampling_ns=0.0, launches=0.0)
    seconds = planner.decoding_seconds(shapes, row["rows"], row["filled"] - 1, 1, 2000, bare)
    assert 1e3 * seconds == pytest.approx(row["ms"], rel=0.05)


def test_a_measured_wave_takes_the_time_of_the_plan():
    shapes, measured = architecture("Qwen/Qwen3-VL-8B-Instruct"), MEASURED["decoding"]
    assert H100.sampling_ns * 128 * shapes.vocabulary / 1e6 == pytest.approx(measured["sampling"]["random weights, all sorted"], rel=0.05)
    for wave in measured["waves"]:
        seconds = planner.decoding_seconds(shapes, wave["rows"], wave["prompt"], wave["answer"], wave["answer"], H100)
        assert 1e3 * seconds / wave["answer"] == pytest.approx(wave["ms a step, in all"], rel=0.15)
    assert decoding.SPAN == costs.SPAN


def test_an_h200_differs_from_an_h100_where_memory_is_read():
    h100, h200 = (estimate(PAPER, planner.CARDS[card]) for card in ("H100", "H200"))
    for phase in h100.seconds:
        faster = phase in ("B decode", "C optimizer")
        assert (h200.seconds[phase] < h100.seconds[phase]) == faster, phase
    assert [planner.card_of(size).card for size in (24, 48, 80, 139, 141)] == ["H100", "H100", "H100", "H200", "H200"]
    assert all(card.card == name and card.memory_gib < {"H100": 80, "H200": 141}[name] for name, card in planner.CARDS.items())


# ---------------------------------------------------------------------------------------------- work and hours


@pytest.mark.parametrize("profile", ["paper", "miniature", "smoke"])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_an_estimate(method, profile):
    one = estimate(make_config(profile, "cub200" if profile == "paper" else "miniature_birds", method, 0, taught=""))
    assert one.hours > 0 and all(value >= 0 for value in one.seconds.values())
    assert 0 < peak(one.expected) <= peak(one.at_most)
    reads = METHODS[method].settings.get("reading_signal", "none") != "none" and METHODS[method].settings.get("reading_control") != "head"
    assert (one.seconds["C reading"] > 0) == ("C reading" in one.at_most) == reads
    assert (one.seconds["B descriptions"] > 0) == ("B descriptions" in one.at_most) == (method == "contrast_own")
    assert ("C replay" in one.at_most) == (one.seconds["C replay"] > 0) == (one.config.language_signal != "none")
    if profile == "paper" and METHODS[method].at_paper_scale:
        assert peak(one.at_most) < 60


def test_readings_cost_what_their_settings_say():
    config = make_config("paper", "cub200", "contrast_pf", 0, reading_images=0)
    whole, parts = estimate(config), estimate(replace(config, reading_images=8))
    shapes = architecture(config.supervisor)
    assert planner.operations(parts.config, shapes, parts.work)["reading forward"] == 2 * planner.operations(config, shapes, whole.work)[
        "reading forward"
    ]
    assert whole.seconds["C reading"] < parts.seconds["C reading"] < 2 * whole.seconds["C reading"]
    assert peak(whole.at_most) > 200 and peak(parts.at_most) < 60
    views = planner.operations(replace(config, reading_signal="views"), shapes, whole.work)  # each image is seen and read once more
    for name in ("tower forward", "reading forward"):
        assert views[name] == 2 * planner.operations(config, shapes, whole.work)[name]
    measured, anchored = replace(config, reading_images=8, measure_reading=True), replace(config, reading_images=8, anchor="reading")
    assert estimate(measured).work.read_at_end == 5924 and estimate(anchored).work.read_at_start == 5864
    for more, phase in ((measured, "evaluation"), (anchored, "start")):
        assert estimate(more).hours > parts.hours and phase in estimate(more).at_most
    kept = estimate(make_config("paper", "cub200", "pf", 0, measure_reading=True)).at_most["A"]["language model, bf16"]
    assert kept > 15  # which a run of metric learning alone drops


def test_64_images_at_8_billion_parameters_are_read_within_four_seconds():
    """With 250 positions, on an H100; birds, whose prompt and forced answer have 595, take 4.7 s."""
    shapes = architecture("Qwen/Qwen3-VL-8B-Instruct")
    config = make_config("paper", "cub200", "contrast_pf", 0)
    work = replace(planner.workload(config, shapes, H100), reading=250)
    assert 1 < planner.seconds_per_step(config, shapes, work, H100)["C reading"] < 4
    assert estimate(config, H100).work.reading == 595 and estimate(config, H100).seconds["C reading"] == pytest.approx(4.7, abs=0.1)


def test_steps_are_those_of_training(checkpoint, tmp_path, monkeypatch):
    from saga_study.resolving import open_session

    monkeypatch.setenv("SAGA_DATA", str(tmp_path))
    config = make_config("smoke", "miniature_birds", "pf", 0, supervisor=str(checkpoint), steps=0, epochs=2)
    for options in ({}, {"evaluate_on": "validation"}):
        session = open_session(replace(config, **options))
        work = estimate(replace(config, **options)).work
        assert (work.steps, work.batch) == (session.total_steps, 16)
        assert (work.train_images, work.test_images) == (len(session.benchmark.train), len(session.benchmark.test))


def test_prompt_and_answer_lengths_are_those_of_the_tokenizer(checkpoint):
    config = make_config("smoke", "miniature_birds", "saga_pf", 0, supervisor=str(checkpoint))
    _, supervisor = load_supervisor(checkpoint, IMAGE_SIZE)
    work = estimate(config).work
    assert work.prompt == pytest.approx(len(supervisor.prompt_ids(comparison_prompt(VOCABULARY))), abs=10)
    assert 40 < work.answer <= config.max_new_tokens


def test_a_reading_is_as_long_as_the_tokenizer_makes_it(checkpoint):
    config = make_config("smoke", "miniature_birds", "contrast_pf", 0, supervisor=str(checkpoint))
    _, supervisor = load_supervisor(checkpoint, IMAGE_SIZE)
    reader, work = Reader(supervisor, VOCABULARY), estimate(config).work
    assert work.reading_prompt == pytest.approx(len(reader.prompt_ids), abs=10)
    assert work.reading - work.reading_prompt == len(reader._forced.tokens)
    assert work.reading_logits == sum(len(a.values) for a in VOCABULARY.attributes)


@pytest.mark.parametrize(
    "values", [["red", "blue"], ["red", "red brown", "rust"], ["dark", "dark grey", "dark green", "dark green blue"], ["a b", "a c", "d"]]
)
def test_tokens_beside_the_forced_value_are_those_of_the_tree(values):
    """In characters for tokens: each place off the forced path is led to by tokens of its own, as `Reader` lays them out."""
    answers = [[*map(ord, f'{value}"}}')] for value in values]
    nodes = ValueTree.of(answers).nodes
    beside = sum(len(node.suffix) - readings._common(node.suffix, answers[0]) for node in nodes)
    assert readings._beside(answers) == beside


def test_the_measured_readings_are_those_of_today():
    for name, (characters, tokens, answer) in readings.MEASURED_READINGS.items():
        vocabulary = load_vocabulary(name)
        first = {a.name: a.values[0] if a.values else vocabulary.example for a in vocabulary.attributes}
        logits = sum(len(a.values) or 1000 for a in vocabulary.attributes)
        assert len(description_prompt(vocabulary)) == characters, f"measure the prompt of {name} again"
        assert 3.5 < characters / tokens < 4.5 and 3 < len(description_answer(vocabulary, first)) / answer < 4.5
        lengths = planner.description_lengths({"birds": "cub200", "cars": "cars196"}.get(name, name), PAPER.supervisor, planner.ASSUMED)
        assert lengths[:3] == (tokens, answer + 1, 0) and lengths.logits(1000) == logits


def test_the_measured_prompts_are_those_of_today():
    for name, (characters, tokens, answer) in planner.MEASURED_LENGTHS.items():
        assert len(comparison_prompt(load_vocabulary(name))) == characters, f"measure the prompt of {name} again"
        assert 3.5 < characters / tokens < 4.5 and tokens < answer < PAPER.max_new_tokens
    lengths = {name: planner.text_lengths(name, "Qwen/Qwen3-VL-8B-Instruct", planner.Assumptions()) for name in ("cub200", "aircraft")}
    assert lengths == {"cub200": (286 + 14, 821), "aircraft": (352 + 14, 865)}


def test_the_paper_runs_have_its_numbers():
    work = estimate(PAPER).work
    assert work.steps * work.micro_batches == 3 * (5864 // 64) and work.num_classes == 100  # epochs count images
    assert (work.waves, work.micro_batches, PAPER.pairs_per_wave, PAPER.contributing_pairs) == (3, 3, 8, 8)
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
    assert bare.expected["A"]["language model, bf16"] == 0 and list(bare.expected) == ["loading", "A", "C tower", "C optimizer"]
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
