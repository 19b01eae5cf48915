"""What a conversation needs: an end of answers, wherever it is named, and a chat template that places images."""

import json
from types import SimpleNamespace

import pytest
import torch
from changed_models import FAMILIES, IMAGE_SIZE, copied, edit_json
from hypothesis import given
from hypothesis import strategies as st
from tiny import random_images

from saga_lib.common.chats import answer_ends
from saga_lib.common.errors import SagaError
from saga_lib.common.grids import tokens_per_side
from saga_lib.families.loading import load_supervisor
from saga_lib.prompts import comparison_prompt
from saga_lib.supervisor.replay import replay_log_probs
from saga_lib.supervisor.rollouts import Rollouts, Sampling, generate_rollouts
from saga_lib.vocabulary import load_vocabulary
from saga_study import planner
from saga_study.methods import make_config
from saga_study.study.command import main

QUESTION = comparison_prompt(load_vocabulary("miniature_birds"))
TURN, TEXT = 258, 256  # <|im_end|>, which shipped supervisors were taught to end with, and <|endoftext|>


# ------------------------------------------------------------------------------------------ the end of an answer


def ends(tokenizer=None, generation=None, drop=False):
    """Return a change: the tokenizer's end (None: it has none), and what generation_config.json names (`drop`: the file is absent)."""

    def change(folder):
        edit_json(folder / "tokenizer_config.json", eos_token=tokenizer)
        if drop:
            (folder / "generation_config.json").unlink()
        else:
            edit_json(folder / "generation_config.json", eos_token_id=generation)

    return change


ENDS = {  # and the ends that count, the one that pads and closes answers first
    "both the same": (ends("<|im_end|>", TURN), [TURN]),
    "another in generation_config.json": (ends("<|endoftext|>", TURN), [TURN, TEXT]),
    "a list": (ends("<|endoftext|>", [TURN, TEXT]), [TURN, TEXT]),
    "a list the other way round": (ends("<|im_end|>", [TEXT, TURN]), [TURN, TEXT]),
    "a list of one": (ends("<|endoftext|>", [TURN]), [TURN, TEXT]),
    "the tokenizer's alone": (ends("<|im_end|>", None), [TURN]),
    "no generation_config.json": (ends("<|im_end|>", drop=True), [TURN]),
    "a list with another": (ends("<|im_end|>", [TEXT, 7]), [TURN, TEXT, 7]),
    "twice the same": (ends("<|im_end|>", [TURN, TURN]), [TURN]),
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("what", ENDS)
def test_answers_end_at_every_end_that_a_model_names(tmp_path, family, what):
    change, expected = ENDS[what]
    folder = copied(family, tmp_path / "model")
    change(folder)
    tower, supervisor = load_supervisor(folder, IMAGE_SIZE)
    assert list(supervisor.ends) == expected
    assert supervisor.answer_ids("bill")[-1] == supervisor.eos_token_id == TURN
    bill = supervisor.answer_ids("bill")[:-1]
    assert supervisor.decode([*bill, *expected]) == supervisor.decode(bill) == "bill"
    if what in ("another in generation_config.json", "a list with another"):
        with torch.no_grad():
            visual = tower(tower.preprocess(random_images(2)))
        sampling = [Sampling(2, 90, temperature=0.0, fixed=fixed) for fixed in (False, True)]  # the latter as a GPU decodes
        for rollouts in (generate_rollouts(supervisor, supervisor.prompt_ids(QUESTION), visual, one) for one in sampling):
            assert rollouts.finished.all() and (rollouts.lengths < 90).all()
            assert json.loads(rollouts.texts[0])["same_species"] in ("yes", "no")


def test_every_end_stops_its_row_alone_and_nothing_behind_it_counts(tmp_path, monkeypatch):
    """Rows that end in different ways, sampled by the loop of all decoders; replay and the buffer see tokens up to the end only."""
    tower, supervisor = load_supervisor(copied("qwen3_vl", tmp_path / "model"), IMAGE_SIZE)
    supervisor.further_ends = [TEXT, 7]
    script = {0: [9, 9, TURN], 1: [9, TEXT], 2: [7], 3: [9] * 5}
    going, step = [0, 1, 2, 3], 0

    def scripted(logits, *_):
        nonlocal going, step
        chosen = torch.tensor([script[row][step] for row in going])
        going, step = [row for row in going if script[row][step] not in (TURN, TEXT, 7)], step + 1
        return chosen

    monkeypatch.setattr("saga_lib.supervisor.rollouts.sample", scripted)
    with torch.no_grad():
        visual = tower(tower.preprocess(random_images(2)))
    prompt = supervisor.prompt_ids("Compare.")
    for fixed in (False, True):
        going, step = [0, 1, 2, 3], 0
        rollouts = generate_rollouts(supervisor, prompt, visual, Sampling(4, 5, fixed=fixed))
        assert rollouts.lengths.tolist() == [3, 2, 1, 5] and rollouts.finished.tolist() == [True, True, True, False]
        assert [row[:n].tolist() for row, n in zip(rollouts.tokens, rollouts.lengths, strict=True)] == list(script.values())
        assert (rollouts.tokens[~rollouts.mask] == TURN).all()
    padded = Rollouts.cat([rollouts.select(torch.tensor([1])), rollouts.select(torch.tensor([0, 2]))], supervisor.eos_token_id)
    assert padded.lengths.tolist() == [2, 3, 1] and padded.finished.all()
    scored, _ = replay_log_probs(supervisor, prompt, visual, rollouts.tokens, rollouts.mask)
    assert torch.equal(scored != 0, rollouts.mask), "nothing behind an end is scored"


@given(st.none() | st.integers(0, 9), st.none() | st.integers(0, 9) | st.lists(st.integers(0, 9), max_size=4), st.lists(st.integers(0, 9)))
def test_the_ends_are_the_union_whatever_names_them(own, named, written):
    tokenizer = SimpleNamespace(eos_token_id=own, encode=lambda text, add_special_tokens: written)
    processor = SimpleNamespace(tokenizer=tokenizer, apply_chat_template=lambda turns, tokenize: "")
    found = answer_ends(processor, SimpleNamespace(eos_token_id=named))
    union = {i for i in (own, *(named if isinstance(named, list) else [named])) if i is not None}
    assert set(found) == union and len(found) == len(union)
    if closing := [i for i in written if i in union]:
        assert found[0] == closing[-1]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("change, here", [
    (ends(None, None), ""), (ends(None, []), ""), (ends(None, drop=True), ""), (ends(None, TURN), ', here "eos_token": "<|im_end|>"'),
    (ends(None, [TEXT, TURN]), ', here "eos_token": "<|im_end|>"'),
])  # fmt: skip
def test_a_tokenizer_without_an_end_is_one_line_before_weights_are_read(tmp_path, monkeypatch, family, change, here):
    folder = copied(family, tmp_path / "model")
    change(folder)
    line = refused(monkeypatch, folder, "names no token that ends an answer: add eos_token to its tokenizer_config.json")
    assert line.endswith(f"tokenizer_config.json{here}")


@pytest.mark.parametrize("named", [-1, 999_999, 10**30, True, "258", 258.5, {"a": 1}, [[TURN]], [TURN, -1], [TURN, "x"]])
def test_an_end_that_is_no_token_is_one_line(tmp_path, monkeypatch, named):
    folder = copied("qwen3_vl", tmp_path / "model")
    ends("<|im_end|>", TURN)(folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": named}))
    refused(monkeypatch, folder, "eos_token_id of generation_config.json .* no token; name those that end an answer, from 0 to 341")


def test_a_generation_config_that_transformers_refuses_is_named(tmp_path, monkeypatch):
    folder = copied("qwen3_vl", tmp_path / "model")
    edit_json(folder / "generation_config.json", cache_implementation="magic")
    refused(monkeypatch, folder, "its generation_config.json cannot be read: ")


# ------------------------------------------------------------------------------------------------ chat templates


def refused(monkeypatch, folder, said, image_size=IMAGE_SIZE):
    """Check that a model is refused in one line, and before its weights are read."""
    monkeypatch.setattr("transformers.AutoModelForImageTextToText.from_pretrained", None)
    with pytest.raises(SagaError, match=said) as error:
        load_supervisor(folder, image_size)
    line = str(error.value)
    assert "\n" not in line and len(line) < 400
    return line


def template(text):
    return lambda folder: (folder / "chat_template.jinja").write_text(text)


PLAIN = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
PARTS = "{% for m in messages %}{% for p in m.content %}{% if p.type == 'image' %}IMAGE{% else %}TEXT{% endif %}{% endfor %}{% endfor %}"
TEMPLATES = {
    "none": (lambda folder: (folder / "chat_template.jinja").unlink(), r"has no chat template \(chat_template.jinja\)"),
    "empty": (template(""), "has no chat template|places 0 of 2 images"),
    "of a language model": (template(PLAIN), "places 0 of 2 images"),
    "of another family": (template(PARTS.replace("IMAGE", "<image>").replace("TEXT", "{{ p.text }}")), "places 0 of 2 images"),
    "one place for all": (template(PARTS.replace("IMAGE", "").replace("TEXT", "PLACE{{ p.text }}")), "places 1 of 2 images"),
    "without the question": (template(PARTS.replace("IMAGE", "PLACE").replace("TEXT", "")), "leaves out the question"),
    "two places for each": (template(PARTS.replace("IMAGE", "PLACEPLACE").replace("TEXT", "{{ p.text }}")), "places 4 of 2 images"),
    "not Jinja": (template("{% for m in %}"), "its chat template fails: "),
    "an unknown filter": (template("{{ messages | vanish }}"), "its chat template fails: "),
    "one that raises": (template("{{ raise_exception('only text') }}"), "its chat template fails: only text"),
    "a division by zero": (template("{{ 1 / 0 }}"), "its chat template fails: "),
    "unlike lists": (template("{{ messages[7].content }}"), "its chat template fails: |places 0"),
}
INJECTIONS = (
    "{{ ''.__class__.__mro__[1].__subclasses__() }}", "{{ messages.__class__.__base__ }}",
    "{{ cycler.__init__.__globals__.os.system('touch X') }}", "{{ raise_exception.__globals__['__builtins__']['open']('X', 'w') }}",
    "{{ self.__init__.__globals__.__builtins__.open('X', 'w') }}", "{{ lipsum.__globals__['os'].popen('touch X').read() }}",
    "{{ messages.append(messages[0]) }}", "{% set _ = messages.clear() %}",
    "{{ '{0.__class__}'.format(messages) }}", "{{ ('a' | attr('__class__')).mro() }}",
)  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("what", TEMPLATES)
def test_a_chat_template_that_cannot_ask_about_two_images_is_one_line(tmp_path, monkeypatch, family, what):
    change, said = TEMPLATES[what]
    folder = copied(family, tmp_path / "model")
    change(folder)
    path, place = folder / "chat_template.jinja", {"qwen3_vl": "<|image_pad|>", "internvl": "<IMG_CONTEXT>"}[family]
    if path.is_file():
        path.write_text(path.read_text().replace("PLACE", place))
    assert str(folder) in refused(monkeypatch, folder, said)


@pytest.mark.parametrize("attack", INJECTIONS)
def test_a_chat_template_cannot_reach_python(tmp_path, monkeypatch, attack):
    folder = copied("qwen3_vl", tmp_path / "model")
    template(attack.replace("X", str(tmp_path / "reached")))(folder)
    refused(monkeypatch, folder, "its chat template fails: |places 0 of 2 images")
    assert not (tmp_path / "reached").exists()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("changes, said", [
    ({"image_token_id": 99_999}, "no tokenizer .* that knows token 99999, which stands for an image"),
    ({"image_token_id": 5}, "places 0 of 2"),
    ({"text_config": {"vocab_size": 50}}, r"its tokenizer has \d+ tokens, config.json 50 \(vocab_size\)"),
])  # fmt: skip
def test_a_tokenizer_of_another_model_is_one_line(tmp_path, monkeypatch, family, changes, said):
    folder = copied(family, tmp_path / "model")
    edit_json(folder / "config.json", **changes)
    refused(monkeypatch, folder, said)


def test_an_image_processor_of_another_model_is_one_line(tmp_path):
    for number, changes in enumerate(({"patch_size": 16}, {"temporal_patch_size": 2}, {"patch_size": 3}, {"merge_size": 2})):
        folder = copied("qwen3_vl", tmp_path / f"model {number}")
        edit_json(folder / "processor_config.json", image_processor=changes)
        with pytest.raises(SagaError, match="cuts other patches than the tower reads"):
            load_supervisor(folder, IMAGE_SIZE)


@pytest.mark.parametrize("name", ["LlavaProcessor", "Qwen2VLProcessor"])
def test_a_processor_of_another_model_is_one_line(tmp_path, monkeypatch, name):
    folder = copied("internvl", tmp_path / "model")
    edit_json(folder / "processor_config.json", processor_class=name)
    refused(monkeypatch, folder, rf"{name} \(processor_class\) reads another model's images")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("changes", [
    {"image_mean": [0.5]}, {"image_mean": "x"}, {"image_std": [0, 0, 0]}, {"resample": 99}, {"image_processor_type": "MagicProcessor"},
])  # fmt: skip
def test_an_image_processor_that_fails_is_one_line(tmp_path, family, changes):
    folder = copied(family, tmp_path / "model")
    edit_json(folder / "processor_config.json", image_processor=changes)
    if family == "internvl" and "resample" in changes:  # its images are never resized
        assert load_supervisor(folder, IMAGE_SIZE)
        return
    with pytest.raises(SagaError, match="image.processor") as error:
        load_supervisor(folder, IMAGE_SIZE)
    assert "\n" not in str(error.value) and str(folder) in str(error.value)


# ----------------------------------------------------------------------------------------------- sizes of images


@given(st.integers(1, 2000), st.integers(1, 32), st.integers(1, 4))
def test_a_size_is_a_whole_number_of_tokens_or_refused_with_sizes_that_fit(size, patch, merge):
    if size % (patch * merge) == 0:
        assert tokens_per_side(size, patch, merge, "X") * patch * merge == size
        return
    with pytest.raises(SagaError, match=f"image size {size} is not .* X tokens; take a multiple of {patch * merge} pixels") as error:
        tokens_per_side(size, patch, merge, "X")
    named = [int(word) for word in str(error.value).rpartition("e.g. ")[2].split(" or ")]
    assert named and all(tokens_per_side(near, patch, merge, "X") and abs(near - size) < patch * merge for near in named)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("size", [1, 4, 7, 47, 49, 50, 52, 223, 225])
def test_a_supervisor_refuses_sizes_off_its_grid_before_weights_are_read(tmp_path, monkeypatch, family, size):
    line = refused(monkeypatch, copied(family, tmp_path / "model"), f"image size {size} is not a whole number of", size)
    assert f"multiple of {8 if family == 'qwen3_vl' else 16} pixels" in line


@pytest.mark.parametrize("name", planner.ARCHITECTURES)
def test_the_planner_refuses_sizes_off_the_grid_of_published_models(name):
    shapes, config = planner.ARCHITECTURES[name], make_config("paper", "cub200", "saga_pf", 0, supervisor=name)
    token = shapes.patch * shapes.merge
    for size in (token - 1, token + 1, 225, 50):
        config = make_config("paper", "cub200", "saga_pf", 0, supervisor=name, image_size=size)
        for plan in (planner.estimate, planner.advice, planner.check_image_size, lambda c: planner.describe_plan({"table": [c]})):
            with pytest.raises(SagaError, match=f"image size {size} is not a whole number of .* take a multiple of {token} pixels"):
                plan(config)
    fits = make_config("paper", "cub200", "saga_pf", 0, supervisor=name, image_size=8 * token)
    assert planner.estimate(fits).hours > 0 and planner.check_image_size(fits) is None


@pytest.mark.parametrize("command", [
    "paper --list", "paper --dry-run", "miniature --list", "miniature --dry-run", "smoke",
    "paper --list --set supervisor=Qwen/Qwen3-VL-2B-Instruct",
])  # fmt: skip
def test_the_command_refuses_sizes_off_the_grid_at_once(capsys, command):
    assert main([*command.split(), "--only", "04", "--methods", "pf,saga_pf", "--seeds", "0", "--set", "image_size=50"]) == 2
    assert capsys.readouterr().err.startswith("error: image size 50 is not a whole number of")
    if "list" in command:
        assert main([*command.split(), "--only", "04", "--methods", "pf,saga_pf", "--seeds", "0", "--set", "image_size=96"]) == 0
