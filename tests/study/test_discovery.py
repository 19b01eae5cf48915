"""Vocabularies from images: names are read from any answer, attributes are kept for what they tell about the class."""

import doctest
import json

import numpy as np
import pytest
from tiny import VOCABULARY, random_images

from saga_lib.common.errors import SagaError
from saga_lib.training import Session
from saga_lib.vocabulary import load_vocabulary
from saga_lib.vocabulary import load_vocabulary as load
from saga_study.methods import make_config
from saga_study.own_images import discovery
from saga_study.own_images.discovery import (
    blank_vocabulary,
    compare_vocabularies,
    discover,
    naming_prompt,
    proposed_names,
    shuffled_vocabulary,
)
from saga_study.own_images.vocabulary_files import save_vocabulary
from saga_study.resolving import open_session


def answer(differences):
    return json.dumps({"differences": differences, "reasoning": "x", "same_species": "no"})


@pytest.mark.parametrize(
    "differences, names",
    [
        ("crown color, leg color", ["crown color", "leg color"]),
        ("none", []),
        ("None.", []),
        ("", []),
        (["Bill shape", "bill shape", "wing-bar color"], ["bill shape", "wing-bar color"]),
        ([{"name": "bill length", "item_1": "short"}, {"attribute": "tail"}, {"x": 1}], ["bill length", "tail"]),
        ({"crown": "different", "legs": "same", "tail": "red vs. blue"}, ["crown", "tail"]),
        ("1. Colour of the bill; 2) leg color (blue)", ["bill colour", "leg color"]),
        (["leg color: blue in image 1"], ["leg color"]),
        ("the bird in the first image has a much longer and thinner bill than that in the second", []),
        (3, []),
        (None, []),
    ],
)
def test_names_are_read_from_whatever_a_model_writes(differences, names):
    assert proposed_names(answer(differences)) == names


@pytest.mark.parametrize(
    "text",
    [
        f"<think>{answer('draft color')}</think>{answer('bill shape')}",
        f"{answer('draft color')}</think>\n{answer('bill shape')}",
        f'{{"differences": "draft color"}} {answer("bill shape")} {{"differences": "no object with a verdict"}}',
    ],
)
def test_names_are_those_of_the_answer(text):
    keys = load_vocabulary("birds").keys
    assert proposed_names(text, keys) == ["bill shape"]
    assert proposed_names(text.replace("</think>", "").replace(answer("bill shape"), "<think>"), keys) == []


@pytest.mark.parametrize(
    "differences", ["confidence, Item 1, bird 2, same species, reasoning", ["Differences", "bird_1"], ["\u200b", "\u0308"]]
)
def test_names_that_no_vocabulary_can_have_are_not_proposed(differences):
    assert proposed_names(answer(differences), load_vocabulary("birds").keys) == []


@pytest.mark.parametrize("names", [["größe", "gro\u0308ße"], ["wing color", "ｗing color"], ["ﬁn", "fin"]])
def test_names_that_read_alike_are_one_proposal(names, tmp_path):
    proposals = discovery.proposals_in([answer([name]) for name in names])
    assert len(proposals) == 1 and proposals["times"].tolist() == [len(names)]
    draft = discovery.draft_vocabulary(blank_vocabulary("toy", "toy"), proposals["name"].tolist())
    save_vocabulary(draft, tmp_path / "draft.yaml")


@pytest.mark.parametrize(
    "item, kind", [("bird", "species"), ("Käfer", "Käferart"), ("鳥", "種"), ("toy", "reasoning"), ("mug", "2nd design")]
)
def test_a_blank_vocabulary_is_one_that_loads(item, kind, tmp_path):
    save_vocabulary(blank_vocabulary(item, kind), tmp_path / "blank.yaml")
    assert load_vocabulary(tmp_path / "blank.yaml") == blank_vocabulary(item, kind)


def test_answers_without_json_propose_nothing_and_docstrings_hold():
    assert proposed_names("They differ in the bill.") == [] and proposed_names('{"same": 1}') == []
    assert doctest.testmod(discovery).failed == 0


def test_spellings_of_one_name_are_merged():
    texts = [answer(text) for text in ("bill colour", "color of bill, leg color", "bill color", "Bill color", "bills color, bill color")]
    proposals = discovery.proposals_in(texts)
    assert proposals["times"].tolist() == [5, 1] and proposals["name"].tolist() == ["bill color", "leg color"]
    assert "bill colour" in proposals["other spellings"][0]
    assert discovery.proposals_in([answer("none")]).empty


# ------------------------------------------------------------------------------------------------- a whole pass


@pytest.fixture(scope="module")
def session(checkpoint, tmp_path_factory):
    """Eight classes of four images each, and a supervisor that is never asked in earnest."""
    folder, images = tmp_path_factory.mktemp("toys"), iter(random_images(32))
    for c in range(8):
        (folder / f"{c}").mkdir()
        for i in range(4):
            next(images).save(folder / f"{c}" / f"{i}.png")
    settings = {"data_dir": str(folder), "vocabulary": "miniature_birds", "supervisor": str(checkpoint)}
    return open_session(make_config("smoke", "image_folder", "saga_pf", 0, embedding_dim=16, batch_size=16, **settings))


def test_what_separates_classes_is_kept_and_the_rest_is_explained(session, scripted, tmp_path):
    base = blank_vocabulary("toy", "toy")
    found = discover(session, base, naming_prompt(base), 48, seed=1)
    decisions = found.scores.set_index("attribute")["decision"].to_dict()
    assert sorted(decisions) == ["light", "size", "toy look", "toy shape"]
    one, other = sorted(("toy look", "toy shape"), key=lambda name: decisions[name] != "kept")
    assert decisions[one] == "kept" and decisions[other] == f"repeats {one}"
    assert decisions["light"] == decisions["size"] == "no better than chance"
    save_vocabulary(found.vocabulary, tmp_path / "found.yaml", "by search")
    assert load(tmp_path / "found.yaml").attribute_names == (one,) and found.vocabulary.name == "discovered"
    row = found.scores.set_index("attribute").loc["size"]
    assert row["agrees within a class (%)"] == 0 and row["agrees across classes (%)"] == 100


def test_nothing_kept_is_one_line(session, scripted, monkeypatch):
    plain = discovery.draft_vocabulary
    monkeypatch.setattr(discovery, "draft_vocabulary", lambda base, names: plain(base, ["light", "size"]))
    with pytest.raises(SagaError, match="none of 2 proposed attributes tells classes apart better than chance on 48 pairs"):
        discover(session, blank_vocabulary("toy", "toy"), "Name them.", 48, seed=1)


def test_information_is_that_of_a_hand_made_table():
    same = np.array([[True, True, False, False], [True, False, True, False]])
    perfect = discovery.information(np.array([4.0, 4, 0, 0]), np.full(4, 4.0), same)
    assert perfect == pytest.approx([1, 0])
    half = discovery.information(np.array([4.0, 4, 4, 0]), np.full(4, 4.0), same)
    assert half[0] == pytest.approx(0.5 * np.log2(0.5 / 0.375) + 0.25 * np.log2(0.25 / 0.375) + 0.25 * np.log2(0.25 / 0.125))
    assert discovery.information(np.zeros(4), np.zeros(4), same) == pytest.approx([0, 0])


def test_known_names_lend_spelling_order_and_values():
    draft = discovery.draft_vocabulary(VOCABULARY, ["beak", "color leg", "crown colour"])
    assert draft.attribute_names == ("crown color", "leg color", "beak")
    assert draft.attributes[0].values == ("black", "white", "red", "yellow", "blue") and not draft.attributes[2].values


def test_closed_values_are_compared_and_free_ones_are_believed():
    closed, free = VOCABULARY.attributes[0], discovery.Attribute("size")
    told = {"item_1": {closed.name: "Cone ", "size": "big"}, "item_2": {closed.name: "cone", "size": "large"},
            "differences": {closed.name: "different", "size": "same"}}  # fmt: skip
    assert discovery.agrees_in(told, closed) is True and discovery.agrees_in(told, free) is True
    assert discovery.agrees_in(told | {"differences": "size"}, free) is False
    assert discovery.agrees_in({"item_1": "x"}, free) is None and discovery.agrees_in({}, closed) is None
    renamed = {key.replace("item", "toy"): value for key, value in told.items()}
    assert discovery.agrees_in(renamed, closed) is None and discovery.agrees_in(renamed, closed, ("toy_1", "toy_2")) is True


def test_nothing_proposed_is_one_line(session):
    with pytest.raises(SagaError, match="proposed no attribute"):
        discover(session, VOCABULARY, "generic", 16)  # an untrained supervisor
    baseline = Session.__new__(Session)
    baseline.supervisor, baseline.config = None, session.config
    with pytest.raises(SagaError, match="no supervisor to ask"):
        discover(baseline, VOCABULARY, "generic", 16)


def test_variants_are_compared_on_the_same_pairs(session):
    variants = {"hand-written": (VOCABULARY, "structured"), "generic": (VOCABULARY, "generic")}
    table = compare_vocabularies(session, variants, 16)
    assert table["vocabulary"].tolist() == list(variants) and table["attributes"].tolist() == [8, 0]


@pytest.mark.parametrize("name", ["birds", "cars", "aircraft", "miniature_birds"])
def test_a_shuffled_vocabulary_is_as_long_and_makes_no_sense(name, tmp_path):
    vocabulary = load_vocabulary(name)
    shuffled = shuffled_vocabulary(vocabulary)
    assert len(shuffled.attributes) == len(vocabulary.attributes) and shuffled.attributes != vocabulary.attributes
    save_vocabulary(shuffled, tmp_path / "s.yaml")
    if name == "miniature_birds":
        assert not any(a.values == b.values for a, b in zip(shuffled.attributes, vocabulary.attributes, strict=True))
