"""Answers are read whatever state they are in: where the answer is, its verdict, its values and their places."""


import pytest

from saga_lib.answers import attribute_spans, parse_answer, parse_verdict

KEY = "same_species"


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
