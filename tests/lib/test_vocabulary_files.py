"""The attribute vocabularies that ship with the package are the paper's (App. E)."""

from pathlib import Path

import pytest
import yaml

FOLDER = Path(__file__).resolve().parents[2] / "saga_lib" / "vocabularies"
EXPECTED = {  # name: (number of attributes, verdict key)
    "birds": (28, "same_species"),
    "cars": (17, "same_model"),
    "aircraft": (17, "same_variant"),
}
TEXT_KEYS = [
    "name",
    "expert",
    "identify",
    "target_plural",
    "item",
    "item_plural",
    "item_key",
    "example",
    "verdict_question",
    "verdict_key",
    "differences",
]


def load(name):
    return yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", EXPECTED)
def test_keys(name):
    vocabulary = load(name)
    assert list(vocabulary) == [*TEXT_KEYS, "attributes"]
    assert all(isinstance(vocabulary[key], str) and vocabulary[key] for key in TEXT_KEYS)
    assert vocabulary["name"] == name
    assert vocabulary["differences"] == "key"


@pytest.mark.parametrize("name", EXPECTED)
def test_attribute_count_and_verdict_key(name):
    vocabulary = load(name)
    assert (len(vocabulary["attributes"]), vocabulary["verdict_key"]) == EXPECTED[name]


@pytest.mark.parametrize("name", EXPECTED)
def test_attributes(name):
    attributes = load(name)["attributes"]
    names = [attribute["name"] for attribute in attributes]
    assert len(set(names)) == len(names)
    for attribute in attributes:
        assert set(attribute) <= {"name", "values"}
        text = attribute["name"]
        assert text == text.strip().lower() and "(" not in text
        if "values" in attribute:
            values = attribute["values"]
            assert len(values) > 1 and len(set(values)) == len(values)
            assert all(isinstance(value, str) for value in values)


def test_only_aircraft_attributes_have_values():
    with_values = {
        name: [attribute["name"] for attribute in load(name)["attributes"] if "values" in attribute]
        for name in EXPECTED
    }
    assert with_values == {
        "birds": [],
        "cars": [],
        "aircraft": [
            "engine type",
            "engine mount position",
            "wing configuration",
            "wing planform",
            "tail configuration",
            "overall size class",
        ],
    }
