"""Answers are read whatever state they are in: where the answer is, its verdict, its values and their places."""


import doctest
import itertools
import json
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import VOCABULARY, random_answer, random_item

from saga_lib import answers, step
from saga_lib.answers import attribute_spans, field_span, parse_answer, parse_verdict
from saga_lib.prompts import comparison_answer, comparison_prompt
from saga_lib.supervisor.replay import attribute_tokens
from saga_lib.supervisor.rollouts import Rollouts
from saga_lib.vocabulary import PLAIN_KEYS, AnswerKeys, load_vocabulary
from saga_study.audit import token_kinds
from saga_study.methods import make_config
from saga_study.own_images.vocabulary_files import save_vocabulary
from saga_study.resolving import open_session

KEY = "same_species"
WHOLE = (
    '{"item_1": {"bill": "cone"}, "item_2": {"bill": "flat"}, "differences": "bill", "confidence": "high", "reasoning": "x", '
    '"same_species": "no"}'
)
YES = '{"same_species": "yes", "item_1": {"bill": "draft"}}'
KEYS = AnswerKeys(PLAIN_KEYS.items, KEY)
BIRDS = replace(VOCABULARY, item_key="bird")


class Pairs:
    """The fields of an object, in order and with repetitions."""

    def __init__(self, of):
        self.of = of


# ------------------------------------------------------------------------------------------- the verdict


@pytest.mark.parametrize(
    "text, verdict",
    [
        ('{"differences": "none", "same_species": "yes"}', True),
        ('{"same_species": "no"}', False),
        ('{"same_species": " Yes. "}', True),
        ('{"same_species": "NO"}', False),
        ('{"same_species": true}', True),
        ('{"same_species": false}', False),
        ('```json\n{"same_species": "yes"}\n```', True),
        ('Here is my answer:\n{"same_species": "no"}\nI hope it helps {:-)', False),
        ('{"item_1": {"bill": "cone"}, "same_species": "yes"}', True),
        # broken elsewhere, but with a complete verdict
        ('{"item_1": {"bill": cone}, "same_species": "no"}', False),
        # no verdict
        ("", None),
        ("yes", None),
        ("{}", None),
        ('{"same_species": "maybe"}', None),
        ('{"same_species": "yes and no"}', None),
        ('{"same_species": 1}', None),
        ('{"same_species": null}', None),
        ('{"same_species": ["yes"]}', None),
        ('{"same_model": "yes"}', None),
        ('{"same_species_too": "yes"}', None),
        ('{"verdict": {"same_species": "yes"}}', None),
        ('["same_species", "yes"]', None),
        # cut at the token limit
        ('{"item_1": {"bill": "co', None),
        ('{"item_1": {}, "same_species": "y', None),
        ('{"item_1": {}, "same_species": ', None),
    ],
)
def test_parse_verdict(text, verdict):
    assert parse_verdict(text, KEY) is verdict


def test_the_verdict_key_is_no_pattern():
    assert parse_verdict('{broken "sameXspecies": "yes"', "same.species") is None


@pytest.mark.parametrize(
    "text, answer",
    [
        ('{"a": {"b": [1, "}"]}} and more', {"a": {"b": [1, "}"]}}),
        ('```\n{"a": 1}\n```', {"a": 1}),
        ('{"a": 1', None),
        ("no object", None),
        ("[1, 2]", None),
        ('{"a" 1}', None),
        ("{" * 100_000, None),
        ('{"a": ' * 100_000, None),
    ],
)
def test_parse_answer(text, answer):
    assert parse_answer(text) == answer


def test_absurd_numbers_are_no_crash():
    text = '{"item_1": {"size": ' + "9" * 5000 + "}}"
    assert parse_answer(text) is None
    assert parse_verdict(text, KEY) is None
    assert attribute_spans(text) == []


def spans(text, **kwargs):
    return [(s.section, s.attribute, text[s.start : s.end]) for s in attribute_spans(text, **kwargs)]


def test_attribute_spans_of_a_complete_answer():
    text = (
        '{"item_1": {"bill": "cone", "leg": "blue"}, "item_2": {"bill": "flat"}, "differences": {"bill": "different"}}'
    )
    items = [("item_1", "bill", "cone"), ("item_1", "leg", "blue"), ("item_2", "bill", "flat")]
    assert spans(text) == items
    assert spans(text, sections=("differences",)) == [("differences", "bill", "different")]


@pytest.mark.parametrize(
    "text, expected",
    [
        ('{"item_1": {"bill": "cone", "leg": "bl', [("item_1", "bill", "cone")]),
        ('{"item_1": {"bill": "cone", "le', [("item_1", "bill", "cone")]),
        ('{"item_1": {"bill": "cone",', [("item_1", "bill", "cone")]),
        ('{"item_1": {', []),
        ('{"item_1": "a bird"}', []),
        ("", []),
        ('```json\n{\n  "item_1" : {\n    "bill" : "cone"\n  }\n}\n```', [("item_1", "bill", "cone")]),
        (
            r'{"item_1": {"bill": "a \"hook\"", "leg": "x"}}',
            [("item_1", "bill", r"a \"hook\""), ("item_1", "leg", "x")],
        ),
        (r'{"item_1": {"the \"bill\"": "cone"}}', [("item_1", 'the "bill"', "cone")]),
        (
            '{"item_1": {"n": 3, "b": true, "l": ["a", "b"], "o": {"c": "d"}, "e": "", "z": null}}',
            [
                ("item_1", "n", "3"),
                ("item_1", "b", "true"),
                ("item_1", "l", '["a", "b"]'),
                ("item_1", "o", '{"c": "d"}'),
                ("item_1", "e", ""),
                ("item_1", "z", "null"),
            ],
        ),
        ('{"item_2": {"bill": "flat"}}', [("item_2", "bill", "flat")]),
        ('{"item_1": {"bec": "été 🐦"}}', [("item_1", "bec", "été 🐦")]),
    ],
)
def test_attribute_spans_of_unusual_answers(text, expected):
    assert spans(text) == expected


@pytest.mark.parametrize("key", [r"bill\q", "bill\nshape", r"bill\u12"])
def test_attribute_spans_survive_a_key_that_is_no_json(key):
    """A policy writes anything; a bad escape must not stop a run."""
    text = f'{{"item_1": {{"leg": "blue", "{key}": "cone"}}, "{KEY}": "yes"}}'
    assert spans(text)[:1] == [("item_1", "leg", "blue")]


# ------------------------------------------------------------------------------- where the answer is, and its verdict


@pytest.mark.parametrize(
    "text, verdict",
    [
        (f"<think>Maybe {YES}?</think>\n{WHOLE}", False),
        (f"Maybe {YES}?\n</think>\n\n{WHOLE}", False),  # the tag opens in the prompt
        (f"<think>a</think>{YES}<think>b</think>{WHOLE}", False),
        (f"<think>seen {{\"bill\": \"cone\"}}</think>{WHOLE}", False),
        (f"<Think>\n{YES}\n</ THINK >{WHOLE}", False),
        (f"<thinking>{YES}</thinking>{WHOLE}", False),
        (f"<think>{WHOLE}", None),  # thoughts that do not end
        (f"{WHOLE}<think>or {YES}", None),
        (f"<think>{WHOLE}</think>", None),  # thoughts and no answer
        (f"<think>{WHOLE}</think>They differ.", None),
        (f"{YES}\n{WHOLE}", False),  # the last one counts
        (f"{WHOLE}\n{{\"note\": \"bill\"}}", False),
        (f"{{\"bill\": \"cone\"}} is what I see. {WHOLE}", False),
        (f"I see {{crown}} and 5\" of {{'bill'}}: {WHOLE} :-}}", False),
        (f"{WHOLE[:-1]}, \"same_species\": \"yes\"}}", True),  # as JSON has it, the last of two
        ('{"item_1": {"bill": "cone"}}\n{"item_2": {"bill": "flat"}}\n{"same_species": "no"}', False),
        ("{'item_1': {'bill': 'cone'}, 'same_species': 'no'}", False),
        ("{“item_1”: {}, “same_species”: “no”}", False),
        ('{"reasoning": "\'same_species\': \'yes\' is wrong", "same_species": "no"}', False),
        ('{"reasoning": "\\"same_species\\": \\"yes\\"", "same_species": "no"}', False),
        ('{"reasoning": "\\"same_species\\": \\"yes\\""}', None),
        ('{"verdict": {"same_species": "yes"},}', None),  # as the whole one
        ('{"same_species": "yes" or "no"}', None),
        ('{"same_species": "maybe",}', None),
        ('{"same_species": yes and no}', None),
        # cut, as far as a text shows it
        ('{"same_species": "yes", "item_1": {"bill": "co', None),
        ('{"same_species": "yes", "item_1": {"bill": "cone"}, "item_2"', None),
        ('{"same_species": "yes", "item_1": {', None),
        ('{"same_species": "yes", "ite', None),
        ("{'same_species': 'yes', 'item_1': {'bill': 'co", None),
        (f"{YES}\n{{\"item_1\": {{\"bi", None),
        ('"same_species": "yes" or "no".\n{"item_1": {"bill": "co', None),
        ('"same_species": "yes"', None),
        ('{"item_1": {}, "same_species": "no"', False),  # only the last bracket is missing
        ('```json\n{"item_1": {}, "same_species": "no"\n```', False),
        ('{"same_species": no', None),
        # tags: in a text, with attributes, empty
        ('{"reasoning": "I <think> they differ", "same_species": "no"}', None),
        ('{"reasoning": "the </think> tag", "same_species": "no"}', False),
        (f"<think type='long'>{YES}", None),
        (f"<think time=3>{YES}</think>{WHOLE}", False),
        (f"<think/>{WHOLE}", False),
    ],
)
def test_the_answer_is_the_last_object_with_a_verdict_behind_the_thoughts(text, verdict):
    assert parse_verdict(text, KEY) is verdict
    assert parse_verdict(text, KEY, finished=False) is None


SPELLINGS = {
    '"yes"': True, '"YES."': True, "true": True, "True": True, '"true"': True, '" Yes "': True, "'yes'": True, "“Yes”": True, "yes": True,
    '"\\"yes\\""': True, '"yes\\n"': True, '"\'yes.\'"': True, '"no"': False, "false": False, '"False."': False, '"N\\u006f"': False,
    "No": False, "'no'": False, '"maybe"': None, '"y"': None, '""': None, '"."': None, "null": None, "0": None, '"yes no"': None,
    '["no"]': None, '{"no": 1}': None, '"not"': None, '"\\u00zz"': None,
}  # fmt: skip


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_one_spelling_counts_alike_in_whole_and_broken_json(spelling):
    text = WHOLE.replace('"no"', spelling)
    for broken in (
        text, text[:-1] + ",}", text.replace("}, ", "} ", 1), text.replace("{", "{,", 1), text.replace('"x"', '5" x'),
        text.replace('"x"', "x"), text.replace('"cone"}', '"cone"'), text.replace('"x"', '"the "hooked" x"'),
        text.replace('"x"', '"says "x", so"'), f"```json\n{text}\n```",
    ):  # fmt: skip
        assert parse_verdict(broken, KEY) is SPELLINGS[spelling], broken


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("same", [True, False])
def test_no_single_character_elsewhere_changes_the_verdict(indent, same):
    item = random_item(3)
    text = json.dumps(json.loads(comparison_answer(VOCABULARY, item, item if same else random_item(4))), indent=indent)
    for place, lost in enumerate(text[: text.index(f'"{KEY}"')]):
        for other in (text[:place] + text[place + 1 :], *(text[:place] + c + text[place:] for c in ('"', "{", "}", "[", ",", lost))):
            assert parse_verdict(other, KEY) is same, other
    for place in range(text.rindex('"') + 1):
        assert parse_verdict(text[:place], KEY) is None, "cut before its verdict is complete"


def test_long_garbage_is_read_in_a_moment():
    started = time.process_time()
    field = '{"same_species": "no"}'
    for piece in ('"', "{", '{"a": ', '{"x" ', 'x"', field[1:], field, '"x', '{"a": [', "\\", " ", "<think ", '{"a"}', "\"', "):
        for text in (10_000 * piece, '{"item_1": {"a": ' + 10_000 * piece + "?"):
            parse_verdict(text, KEY), parse_answer(text, KEY), attribute_spans(text)
    assert time.process_time() - started < 30, "the time to read an answer grows faster than its length"


def test_an_answer_that_was_cut_at_the_limit_earns_nothing():
    texts, ended = [random_answer(n, True) for n in range(4)], torch.tensor([True, False, True, False])
    tokens = torch.ones(4, 2, dtype=torch.long)
    rewards = step.score(Rollouts(tokens, tokens.bool(), texts, ended), np.array([True, False]), VOCABULARY.verdict_key, 2)
    assert rewards.tolist() == [[1, 0], [0, 0]]


# --------------------------------------------------------------------------------------------- one answer for all


DRAFT = '<think>{"item_1": {"bill": "draft"}, "differences": {"bill": "draft"}, "same_species": "yes"}</think>\nSo: '


@pytest.mark.parametrize("before", ["", DRAFT, YES + "\n", '{"item_1": {"bill": "other"}}\n'])
def test_fields_and_places_are_those_of_the_answer(before):
    text, keys = before + WHOLE + " Done.", replace(VOCABULARY, verdict_key=KEY).keys
    assert parse_answer(text, KEY) == json.loads(WHOLE)
    assert [(s.attribute, text[s.start : s.end]) for s in attribute_spans(text, keys)] == [("bill", "cone"), ("bill", "flat")]
    assert all(s.start >= len(before) for s in attribute_spans(text, keys))
    for key, value in (("differences", "bill"), (KEY, "no")):
        start, end = field_span(text, key, keys)
        assert text[start:end] == value and start > len(before)
    assert field_span(text, "absent", keys) is None


def test_thoughts_alone_have_no_fields_and_no_places():
    text = DRAFT.replace("</think>", "")
    assert parse_answer(text, KEY) is None and attribute_spans(text) == [] and field_span(text, KEY) is None


NAMES = st.sampled_from([*KEYS.items, "differences", "reasoning", KEY, "bill", "a b"])
TEXTS = st.sampled_from(["yes", "no", "cone", 'say "x": {', '"item_1": {"bill": "f"}', "</b>", "è", "a\\b", ""])
VALUES = st.recursive(
    TEXTS | st.integers(0, 9) | st.booleans() | st.none(),
    lambda inner: st.lists(inner, max_size=3) | st.lists(st.tuples(NAMES, inner), max_size=4).map(Pairs), max_leaves=12,
)  # fmt: skip


def written(value):
    """Return JSON; keys may occur twice, of which the last counts."""
    if isinstance(value, Pairs):
        return "{" + ", ".join(f"{json.dumps(key)}: {written(inner)}" for key, inner in value.of) + "}"
    return f"[{', '.join(map(written, value))}]" if isinstance(value, list) else json.dumps(value, ensure_ascii=False)


def read(text, place):
    """Return the value at a place, whose quotes are left out."""
    said = text[slice(*place)]
    return json.loads(f'"{said}"' if place[0] and text[place[0] - 1] == '"' and text[place[1]] == '"' else said)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(NAMES, VALUES), max_size=6), VALUES)
def test_places_are_those_of_the_answer_s_own_keys_as_json_reads_them(fields, verdict):
    """Whatever is within its values: keys of the same name, the same key twice, texts that look like JSON."""
    text = written(Pairs([*fields, (KEY, verdict)]))
    whole = json.loads(text)
    assert parse_answer(text, KEY) == whole
    for section in KEYS.items:
        described = whole.get(section) if isinstance(whole.get(section), dict) else {}
        assert {s.attribute: read(text, (s.start, s.end)) for s in attribute_spans(text, KEYS, (section,))} == described
    for key in ("differences", "reasoning", KEY):
        place = field_span(text, key, KEYS)
        assert (place is None) == (key not in whole) and (place is None or read(text, place) == whole[key])


@pytest.mark.parametrize("broken", [
    WHOLE[:-1], WHOLE.replace('"cone"}', '"cone"'), WHOLE.replace('"cone"}', '"cone"}}'), "{" + WHOLE, WHOLE + "}",
])  # fmt: skip
def test_places_are_found_with_a_bracket_too_many_or_too_few(broken):
    assert [(s.attribute, broken[s.start : s.end]) for s in attribute_spans(broken, KEYS)][0] == ("bill", "cone")
    assert broken[slice(*field_span(broken, "differences", KEYS))] == "bill" and parse_verdict(broken, KEY) is False


def test_texts_and_names_are_read_in_nfc():
    text = json.dumps({"item_1": {"gro\u0308\u00dfe": "e\u0301te\u0301"}}, ensure_ascii=False)
    assert parse_answer(text) == {"item_1": {"größe": "été"}}
    [span] = attribute_spans(text)
    assert span.attribute == "größe" and text[span.start : span.end] == "e\u0301te\u0301"


def test_the_tokens_of_values_follow_the_vocabulary_and_the_answer(supervisor):
    """Behind thoughts with a draft and under the vocabulary's own names: L_KL, audit and oracle find the same values."""
    items = random_item(1), random_item(2)
    text = random_answer(5).join(("<think>", "</think>")) + comparison_answer(BIRDS, *items)
    ids = supervisor.answer_ids(text)
    places = attribute_tokens(supervisor, ids, BIRDS.keys)
    said = {slot: supervisor.decode([ids[i] for i in spots]) for slot, spots in places.items()}
    assert said == {("bird_1", name): items[0][name] for name in items[0]} | {("bird_2", name): items[1][name] for name in items[1]}
    kinds, values = token_kinds(supervisor, BIRDS, ids)
    assert {slot: value for slot, value in values.items() if slot[0] != "differences"} == said
    assert "verdict" in kinds and "differences" not in kinds[: min(itertools.chain(*places.values()))]
    assert not attribute_tokens(supervisor, ids, VOCABULARY.keys), "an answer in other keys describes nothing"


@pytest.mark.parametrize("item_key, taught", [("bird", True), ("item", False)])
def test_a_step_learns_from_descriptions_under_the_vocabulary_s_own_names(checkpoint, tmp_path, monkeypatch, item_key, taught):
    """Answers under bird_1 and bird_2 teach the pooler (L_KL) if the run's vocabulary asks for these, else their verdicts alone count."""

    def answered(supervisor, prompt_ids, images, sampling, generator):
        count = len(images.merged) // 2 * sampling.group_size
        texts = [comparison_answer(BIRDS, random_item(n), random_item(n if n % 2 else n + 1)) for n in range(count)]
        rows = [supervisor.answer_ids(text) for text in texts]
        tokens = torch.full((count, max(map(len, rows))), supervisor.eos_token_id)
        mask = torch.zeros(tokens.shape, dtype=torch.bool)
        for row, ids in enumerate(rows):
            tokens[row, : len(ids)], mask[row, : len(ids)] = torch.tensor(ids), True
        return Rollouts(tokens, mask, texts, torch.ones(count, dtype=torch.bool))

    monkeypatch.setattr(step, "generate_rollouts", answered)
    save_vocabulary(replace(VOCABULARY, item_key=item_key), tmp_path / "birds.yaml")
    settings = {"supervisor": str(checkpoint), "vocabulary": str(tmp_path / "birds.yaml"), "embedding_dim": 16, "batch_size": 16}
    metrics = open_session(make_config("smoke", "miniature_birds", "saga_pf", 0, **settings, pairs_per_wave=4)).run_step()
    assert metrics["contributing_pairs"] > 0 and metrics["grad_lm"] > 0
    assert (metrics["grad_kl"] > 0) is taught


@pytest.mark.parametrize("name, keys", [("birds", "bird"), ("cars", "car"), ("aircraft", "aircraft"), ("miniature_cars", "item")])
def test_items_have_the_paper_s_names_except_where_supervisors_were_taught_others(name, keys):
    vocabulary = load_vocabulary(name)
    assert vocabulary.keys == AnswerKeys((f"{keys}_1", f"{keys}_2"), vocabulary.verdict_key)
    assert f'"{keys}_1": an object with one text per attribute, "{keys}_2": the same keys' in comparison_prompt(vocabulary)
    assert PLAIN_KEYS.items == ("item_1", "item_2")


def test_the_docstrings_hold():
    assert doctest.testmod(answers).failed == 0
