"""Prompts name what they must, true answers follow them, vocabulary mistakes are one line."""

import hashlib
import json
import re
from dataclasses import replace

import pytest

from saga_lib.answers import parse_verdict
from saga_lib.common.errors import SagaError
from saga_lib.common.paths import REPOSITORY
from saga_lib.prompts import comparison_answer, comparison_prompt, generic_prompt
from saga_lib.reading import description_answer, description_prompt
from saga_lib.vocabulary import Attribute, load_vocabulary
from saga_study.own_images.prompt import main
from saga_study.own_images.vocabulary_files import save_vocabulary

SHIPPED = ("birds", "cars", "aircraft", "miniature_birds")
GOOD = """\
name: toys
expert: toy maker
identify: toy
target_plural: toys
item: toy
item_plural: toys
example: small
verdict_question: same toy
verdict_key: same_toy
attributes:
  - name: shape
    values: [round, flat]
  - colour
"""


# ------------------------------------------------------------------------------------------------ prompts


@pytest.mark.parametrize("name", SHIPPED)
def test_comparison_prompt_names_every_attribute_and_the_keys_in_order(name):
    vocabulary = load_vocabulary(name)
    prompt = comparison_prompt(vocabulary)
    for attribute in vocabulary.attributes:
        assert f"- {attribute.name}" in prompt.splitlines() or f"- {attribute.name} (" in prompt
        assert all(value in prompt for value in attribute.values)
    for text in (vocabulary.expert, vocabulary.identify, vocabulary.verdict_question, vocabulary.example):
        assert text in prompt
    keys = [*vocabulary.keys.items, "differences", "confidence", "reasoning", vocabulary.verdict_key]
    places = [prompt.index(f'"{key}"') for key in keys]
    assert places == sorted(places)


@pytest.mark.parametrize("name", SHIPPED)
def test_generic_prompt_has_the_verdict_but_no_role_and_no_attributes(name):
    vocabulary = load_vocabulary(name)
    prompt = generic_prompt(vocabulary)
    assert f'"{vocabulary.verdict_key}"' in prompt
    assert vocabulary.verdict_question in prompt
    assert "item_1" not in prompt and "confidence" not in prompt and "You are" not in prompt
    assert not any(f"- {attribute.name}" in prompt for attribute in vocabulary.attributes)


def test_description_prompt_names_every_attribute():
    vocabulary = load_vocabulary("miniature_birds")
    assert all(f"- {name}" in description_prompt(vocabulary) for name in vocabulary.attribute_names)


@pytest.mark.parametrize("differences", ["every", "key"])
def test_true_answers_follow_the_format_and_end_in_the_true_verdict(tmp_path, differences):
    path = tmp_path / "toys.yaml"
    path.write_text(GOOD + f"differences: {differences}\n")
    vocabulary = load_vocabulary(path)
    ball, coin = {"shape": "round", "colour": "red"}, {"shape": "flat", "colour": "red"}
    for other, verdict, shape in ((ball, True, "same"), (coin, False, "different")):
        text = comparison_answer(vocabulary, ball, other)
        answer = json.loads(text)
        assert list(answer) == ["item_1", "item_2", "differences", "confidence", "reasoning", "same_toy"]
        assert answer["item_1"] == ball and answer["item_2"] == other
        assert parse_verdict(text, "same_toy") is verdict
        if differences == "every":
            assert answer["differences"] == {"shape": shape, "colour": "same"}
        else:
            assert answer["differences"] == ("none" if verdict else "shape")
    assert json.loads(description_answer(vocabulary, coin)) == {"item_1": coin}


# ------------------------------------------------------------------------------------------- vocabularies


def broken(tmp_path, text):
    """Return the message that a vocabulary file with `text` causes, checked to be one line naming the file."""
    path = tmp_path / "toys.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(SagaError) as error:
        load_vocabulary(path)
    message = str(error.value)
    assert "\n" not in message and str(path) in message
    return message


def test_a_good_file_loads(tmp_path):
    path = tmp_path / "toys.yaml"
    path.write_text(GOOD)
    vocabulary = load_vocabulary(path)
    assert vocabulary.attribute_names == ("shape", "colour")
    assert vocabulary.attributes[0].values == ("round", "flat") and vocabulary.attributes[1].values == ()
    assert vocabulary.differences == "key"


def test_missing_key(tmp_path):
    message = broken(tmp_path, GOOD.replace("verdict_key: same_toy\n", ""))
    assert "'verdict_key' is missing; add a line such as 'verdict_key: same_species'" in message
    assert "'attributes' is missing" in broken(tmp_path, GOOD.partition("attributes")[0])
    assert "start each attribute with a dash" in broken(tmp_path, GOOD.partition("  -")[0] + "  shape: [round, flat]\n")
    assert "is empty" in broken(tmp_path, "# nothing yet\n")


def test_a_byte_order_mark_and_windows_lines_do_no_harm(tmp_path):
    (tmp_path / "toys.yaml").write_bytes(b"\xef\xbb\xbf" + GOOD.replace("\n", "\r\n").encode())
    assert load_vocabulary(tmp_path / "toys.yaml").attribute_names == ("shape", "colour")


@pytest.mark.parametrize("name", SHIPPED)
def test_a_vocabulary_survives_being_written(tmp_path, name):
    vocabulary = load_vocabulary(name)
    odd = replace(vocabulary, item="it's: a #1 'bird', yes", attributes=(*vocabulary.attributes, Attribute("no", ("3", "- x", "yes"))))
    for one in (vocabulary, odd):
        save_vocabulary(one, tmp_path / "copy.yaml", "Found by search.\nSecond line.")
        assert load_vocabulary(tmp_path / "copy.yaml") == one
    with pytest.raises(SagaError, match="ends in .yaml"):
        save_vocabulary(vocabulary, tmp_path / "copy.txt")
    (tmp_path / "file").write_text("")
    with pytest.raises(SagaError, match="cannot write"):
        save_vocabulary(vocabulary, tmp_path / "file" / "copy.yaml")


def test_the_command_line_shows_the_prompt_or_the_first_mistake(tmp_path, capsys):
    assert main([str(write_good(tmp_path))]) == 0
    shown = capsys.readouterr().out
    assert "toys: 2 attributes, 1 with values" in shown and "- shape (round / flat)" in shown
    assert main([]) == 2 and main([str(tmp_path / "absent.yaml")]) == 2
    assert capsys.readouterr().err.count("error: ") == 2


def write_good(tmp_path):
    (tmp_path / "toys.yaml").write_text(GOOD)
    return tmp_path / "toys.yaml"


def test_the_template_of_the_documentation_is_a_vocabulary(tmp_path):
    text = (REPOSITORY / "docs" / "own_images.md").read_text(encoding="utf-8")
    (template,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    (tmp_path / "template.yaml").write_text(template, encoding="utf-8")
    vocabulary = load_vocabulary(tmp_path / "template.yaml")
    assert vocabulary.attributes[0].values and not vocabulary.attributes[-1].values


@pytest.mark.parametrize(
    "old, new, line, said",
    [
        ("expert:", "expart:", 2, "did you mean 'expert'"),
        ("verdict_key: same_toy", "verdict_key: Same Toy", 9, "lower_case_name"),
        ("item: toy", "item: 3", 5, "'item' must be a text"),
        ("item: toy", "item: ''", 5, "'item' must be a text"),
        ("example: small", "differences: some", 7, "'every' or 'key'"),
        ("item: toy", "item:", 5, "'item' must be a text, got nothing"),
        ("item: toy", "item: [toy]", 5, "'item' must be a text, got a list"),
        ("item: toy", "item: …", 5, "placeholder"),
        ("item: toy", "item: 'a \"toy\"'", 5, "must not hold '\"'"),
        ("item: toy", "item: |\n  a\n  toy", 5, "a line break"),
        ("item: toy", "item:toy", 5, "no space behind the colon"),
        ("item: toy", "item toy", 5, "no 'key: value'"),
        ("item: toy", "item: toy\nitem: ball", 6, "'item' appears twice, first in line 5"),
        ("item: toy", "item: to\x07y", 5, "is not allowed in YAML"),
        ("verdict_key: same_toy", "verdict_key: Same Toy", 9, "such as same_toy"),
        ("verdict_key: same_toy", "verdict_key: reasoning", 9, "must differ from the answer's other keys"),
        ("attributes:", "attribute:", 10, "did you mean 'attributes'"),
        ("attributes:\n", "attributes: shape\nx: \n", 11, "unknown key 'x'"),
        ("  - colour", "  - shape", 13, "attribute 'shape' appears twice, first in line 11"),
        ("  - colour", "  - Shape", 13, "attribute 'Shape' appears twice"),
        ("  - colour", "  - {values: [a]}", 13, "attribute 2 has no 'name'"),
        ("  - colour", "  - colour: [red, blue]", 13, "write '- name: colour'"),
        ("  - colour", "  -", 13, "attribute 2 must be a name, got nothing"),
        ("  - colour", "  - 7", 13, 'quote it: "7"'),
        ("  - colour", "   - colour", 13, "indent"),
        ("  - colour", "  colour", 13, "not valid YAML"),
        ("  - colour", "\t- colour", 13, "a tab"),
        ("  - colour", "  - name: colour\n    values: red, blue", 14, "must be a list of texts: [red, blue]"),
        ("  - colour", "---\n  - colour", 13, "second document"),
        ("[round, flat]", "[yes, no]", 12, 'quote it: "yes"'),
        ("[round, flat]", "[round, 3]", 12, 'quote it: "3"'),
        ("[round, flat]", "[round, Round]", 12, "value 'Round' of attribute 'shape' appears twice"),
        ("[round, flat]", "[round]", 12, "at least two values"),
        ("[round, flat]", "", 12, "must be a list of texts"),
        ("    values:", "    vals:", 12, "did you mean 'values'"),
        ("    values:", "    value:", 12, "did you mean 'values'"),
        ("expert: toy maker", "expert: [toy maker", 3, "not valid YAML"),
        ("expert: toy maker", "expert: toy: maker", 2, "not valid YAML"),
        ("expert: toy maker", "\texpert: toy maker", 2, "not valid YAML"),
    ],
)
def test_mistakes_name_file_and_line(tmp_path, old, new, line, said):
    assert old in GOOD
    text = GOOD.replace(old, new)
    if new.startswith("differences"):
        text += "example: small\n"
    message = broken(tmp_path, text)
    assert said in message
    assert f"line {line}:" in message


@pytest.mark.parametrize("name", [
    "same_toy", "Same toy", "differences", "Confidence", "reasoning", "item_1", "item 2", "mug_1", "ITEM-1", "Item1",
])  # fmt: skip
@pytest.mark.parametrize("form", ["  - {}", "  - name: {}", "  - name: {}\n    values: [a, b]"])
def test_an_attribute_is_not_called_like_a_key_of_the_answer(tmp_path, name, form):
    message = broken(tmp_path, GOOD.replace("item: toy\n", "item: toy\nitem_key: mug\n").replace("  - colour", form.format(name)))
    assert f"attribute '{name}' must not be called like a key of the answer" in message and "line 14:" in message
    assert all(key in message for key in ("mug_1", "differences", "same_toy"))


TOKENS = (
    "<|im_end|>", "<|image_pad|>", "<|vision_start|>", "<think>", "</think>", "<IMG_CONTEXT>", "</s>", "<image>", "a <|b", "<｜end｜>",
    "< / think >", "＜|im_end|＞", "[INST]", "[/INST]", "[IMG_END]", "[PAD]", "<0x0A>", "<tool_call>",
)
UNSEEN = ("\u200b", "\ufeff", "\u202e", "\u2066", "\u00ad")  # in an attribute's name, nobody could write it again  # fmt: skip


@pytest.mark.parametrize("token", [*TOKENS, *UNSEEN, "{", "}", "\\", "\n", "\x07", "\x00", "\ud800", "\u2028", "\x85"])
@pytest.mark.parametrize("place", ["expert", "name", "example", "attribute", "value"])
def test_no_text_of_a_vocabulary_holds_what_a_chat_or_json_is_made_of(tmp_path, token, place):
    quoted = json.dumps(f"a {token} b")
    old, new = {
        "expert": ("expert: toy maker", f"expert: {quoted}"), "name": ("name: toys", f"name: {quoted}"),
        "example": ("example: small", f"example: {quoted}"), "attribute": ("- colour", f"- {quoted}"), "value": ("flat]", f"{quoted}]"),
    }[place]  # fmt: skip
    message = broken(tmp_path, GOOD.replace(old, new))
    assert "must not hold" in message and message.isprintable()
    assert ("token of the chat" in message) == (token in TOKENS)


@pytest.mark.parametrize("text", ["< 5 cm", "5 > 3", "a <-> b", "<5 or >7", "it's #1: 50 % & more", "größer", "種", "🐦", "[a]", "a|b"])
def test_other_texts_are_kept(tmp_path, text):
    (tmp_path / "toys.yaml").write_text(GOOD.replace("- colour", f"- {json.dumps(text)}"), encoding="utf-8")
    assert load_vocabulary(tmp_path / "toys.yaml").attribute_names == ("shape", text)


@pytest.mark.parametrize(
    "one, other",
    [
        ("größe", "gro\u0308ße"), ("Größe", "GRÖSSE"), ("ﬁn", "fin"), ("ｗing", "wing"), ("no 1", "no ①"), ("wing color", "wing  color"),
        ("wing", "wi\u200dng"), ("İ", "i̇"), ("K", "\u212a"), ("é", "É"), ("bird\u2019s eye", "bird's eye"), ("a\u2011b", "a-b"),
        ("a \u2013 b", "a - b"), ("\u2764", "\u2764\ufe0f"), ("ab", "a\u034fb"), ("m\u00b2", "m2"),
    ],
)  # fmt: skip
def test_what_reads_alike_is_one(tmp_path, one, other):
    twice = f"  - {json.dumps(one, ensure_ascii=False)}\n  - {json.dumps(other, ensure_ascii=False)}"
    assert "appears twice" in broken(tmp_path, GOOD.replace("  - colour", twice))
    values = json.dumps([one, other], ensure_ascii=False)
    assert "appears twice" in broken(tmp_path, GOOD.replace("[round, flat]", values))


def test_texts_are_read_in_nfc(tmp_path):
    text = GOOD.replace("colour", "gro\u0308ße").replace("flat", "e\u0301").replace("item: toy", "item: a\u0308")
    (tmp_path / "toys.yaml").write_text(text, encoding="utf-8")
    vocabulary = load_vocabulary(tmp_path / "toys.yaml")
    assert vocabulary.attribute_names == ("shape", "größe") and vocabulary.attributes[0].values == ("round", "é") and vocabulary.item == "ä"


KEYS = (
    "same_größe", "Same Toy", "2nd_same", "sÅme", "same-øre", "same-ærø", "same ßtraße", "гриб", "種", "_", "same 種", "SAME", "Item 1",
    "Mug_2", "Reasoning", "Differences", "x" * 300 + "!", "ﬁrst-same", "é", "a b", "9", "İ", "same\u200btoy",
)  # fmt: skip


@pytest.mark.parametrize("field, start", [("verdict_key: same_toy", "verdict_key: "), ("item_key: mug", "item_key: ")])
@pytest.mark.parametrize("key", KEYS)
def test_the_proposed_key_is_accepted(tmp_path, key, field, start):
    good = GOOD.replace("item: toy\n", "item: toy\nitem_key: mug\n")
    message = broken(tmp_path, good.replace(field, start + json.dumps(key, ensure_ascii=False)))
    [proposal] = re.findall(r"must be a lower_case_name such as ([a-z][a-z0-9_]*), got ", message)
    (tmp_path / "toys.yaml").write_text(good.replace(field, start + proposal), encoding="utf-8")
    vocabulary = load_vocabulary(tmp_path / "toys.yaml")
    assert proposal in (vocabulary.verdict_key, vocabulary.item_key)


@pytest.mark.parametrize(
    "key, proposal", [("same_größe", "same_grosse"), ("Same Design", "same_design"), ("Même œuvre", "meme_oeuvre"), ("種", "same_class")]
)
def test_a_proposed_key_is_the_text_in_plain_letters(tmp_path, key, proposal):
    assert f"such as {proposal}, got" in broken(tmp_path, GOOD.replace("verdict_key: same_toy", f"verdict_key: {key}"))


def test_item_keys_are_a_choice_of_the_file(tmp_path):
    """A file without it asks for item_1 and item_2, as files did before there was a choice."""
    for line, key in (("", "item"), ("item_key: item\n", "item"), ("item_key: coffee_mug\n", "coffee_mug")):
        (tmp_path / "toys.yaml").write_text(GOOD.replace("item_plural:", f"{line}item_plural:"))
        vocabulary = load_vocabulary(tmp_path / "toys.yaml")
        assert vocabulary.keys.items == (f"{key}_1", f"{key}_2") and ("item_key" in repr(vocabulary)) == (key != "item")
        item = dict.fromkeys(vocabulary.attribute_names, "x")
        assert list(json.loads(comparison_answer(vocabulary, item, item)))[:2] == [f"{key}_1", f"{key}_2"]
        save_vocabulary(vocabulary, tmp_path / "copy.yaml")
        assert load_vocabulary(tmp_path / "copy.yaml") == vocabulary
    good = GOOD.replace("item: toy\n", "item: toy\nitem_key: mug\n")
    assert "'verdict_key' must differ" in broken(tmp_path, good.replace("same_toy", "mug_2"))


def test_the_prompts_that_miniature_supervisors_were_taught_stay():
    vocabularies = [load_vocabulary(f"miniature_{name}") for name in ("birds", "cars", "aircraft")]
    texts = [prompt(vocabulary) for vocabulary in vocabularies for prompt in (comparison_prompt, generic_prompt)]
    assert hashlib.sha256("\n\n".join(texts).encode()).hexdigest()[:16] == "3b9622ec91519b03"


def test_runs_keep_their_addresses():
    """A run's address holds a digest of its vocabulary; those of the study's runs that have one are as they were."""
    for record in sorted((REPOSITORY / "results").glob("*/runs/*/config.json")):
        run = json.loads(record.read_text(encoding="utf-8"))
        if "vocabulary" in run["inputs"]:
            name = run["config"]["vocabulary"]
            vocabulary = load_vocabulary(REPOSITORY / name if name.endswith(".yaml") else name)
            assert hashlib.sha256(repr(vocabulary).encode()).hexdigest()[:12] == run["inputs"]["vocabulary"], name


@pytest.mark.parametrize(
    "name", ["a\0b.yaml", "a\0b", "x" * 5000, "x" * 5000 + ".yaml", "", ".yaml", "birds.yaml/x.yaml", "/", "{folder}/x/y.yaml", "{folder}"]
)
def test_odd_names_of_vocabularies_are_one_line(tmp_path, name):
    (tmp_path / "folder.yaml").mkdir()
    for one in (name.replace("{folder}", str(tmp_path)), tmp_path / "folder.yaml"):
        with pytest.raises(SagaError) as error:
            load_vocabulary(one)
        assert str(error.value).isprintable()


@pytest.mark.parametrize(
    "text", ['item: "\\UFFFFFFFF"', "item: &a [*a]", "item: !!python/object/apply:os.system [ls]", "item: !!int 3\n", "? [a]\n: b"]
)
def test_hostile_yaml_is_one_line(tmp_path, text):
    assert broken(tmp_path, GOOD.replace("item: toy", text)).isprintable()


@pytest.mark.parametrize(
    "text", ["", "- a\n- b\n", "just text\n", GOOD.partition("attributes")[0], GOOD.partition("  -")[0]]
)
def test_files_of_another_shape(tmp_path, text):
    broken(tmp_path, text)


@pytest.mark.parametrize("line", ["1: one\n", "yes: one\n"])
def test_keys_that_are_no_texts(tmp_path, line):
    assert "unknown key" in broken(tmp_path, GOOD + line)


def test_a_file_that_is_not_utf_8(tmp_path):
    path = tmp_path / "toys.yaml"
    path.write_bytes(GOOD.replace("small", "klein, grün").encode("latin-1"))
    with pytest.raises(SagaError, match="toys.yaml"):
        load_vocabulary(path)


def test_unknown_vocabulary_suggests_the_closest():
    with pytest.raises(SagaError, match="unknown vocabulary 'bird': did you mean 'birds'"):
        load_vocabulary("bird")
    with pytest.raises(SagaError, match="absent.yaml does not exist"):
        load_vocabulary("absent.yaml")
