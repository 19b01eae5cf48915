"""Vocabularies that grow: an attribute is added for what it tells beyond the list, whoever repeats the list is not."""

from dataclasses import replace

import numpy as np
import pytest
from test_discovery import session  # noqa: F401 (a fixture: toys and a supervisor that is never asked in earnest)
from test_tables import make_run

from saga_lib.common.errors import SagaError
from saga_lib.training import Session
from saga_lib.vocabulary import Attribute, load_vocabulary
from saga_study.findings.vocabularies import gain_sentences, gains
from saga_study.own_images.discovery import blank_vocabulary, naming_prompt
from saga_study.own_images.growing import MAX_ROUNDS, grow, growth_sentences, information_beyond, short_list
from saga_study.own_images.vocabulary_files import save_vocabulary


def toys(*names):
    return replace(blank_vocabulary("toy", "toy"), differences="every", attributes=tuple(Attribute(name) for name in names))


def test_a_list_grows_by_what_it_lacks_and_by_nothing_else(session, scripted, tmp_path):  # noqa: F811
    start, base = toys("light"), blank_vocabulary("toy", "toy")
    growth = grow(session, start, base, naming_prompt(base), 48, seed=1)
    added = growth.rounds["added"].tolist()
    assert added[0] in ("toy shape", "toy look") and added[1] == "" and growth.vocabulary.attribute_names == ("light", added[0])
    decisions = growth.candidates.set_index("attribute")["decision"].to_dict()
    assert decisions[{"toy shape": "toy look", "toy look": "toy shape"}[added[0]]] == f"repeats {added[0]}"
    assert decisions["size"] == "no more than the list" and "light" not in decisions
    save_vocabulary(growth.vocabulary, tmp_path / "grown.yaml")
    assert load_vocabulary(tmp_path / "grown.yaml").attribute_names == growth.vocabulary.attribute_names
    said = growth_sentences(growth, start)
    assert f"A list of 1 grew to 2 in 2 rounds; added: {added[0]}. It ended because no new name is proposed." == said[0]


def test_a_list_that_has_it_does_not_grow(session, scripted):  # noqa: F811
    base = blank_vocabulary("toy", "toy")
    growth = grow(session, toys("toy shape"), base, naming_prompt(base), 48, seed=1)
    assert growth.vocabulary.attribute_names == ("toy shape",) and len(growth.rounds) == 1
    assert growth.rounds["ends because"][0] == "no new name tells more than the list"
    full = grow(session, toys("light"), base, naming_prompt(base), 48, max_attributes=1, seed=1)
    assert full.rounds["ends because"].tolist() == ["the list is full"] and full.candidates.empty


@pytest.mark.parametrize("known", [True, False])
def test_only_what_is_not_known_already_is_information(known):
    same = np.tile([True, False], 40)
    agree = np.where(same, 4.0, 0.0)  # tells the class without a fault
    strata = same.astype(int) if known else np.zeros(80, int)
    told = information_beyond(agree, np.full(80, 4.0), same, strata, np.random.default_rng(0))
    assert told[0] == pytest.approx(0.0 if known else 1.0) and len(told) == 201
    assert (told[1:] < 0.2).all()


def test_information_beyond_strata_is_the_sum_over_them():
    """Two strata of 4 pairs: in one the attribute tells all (1 bit), in the other nothing."""
    same = np.array([1, 1, 0, 0, 1, 0, 1, 0], bool)
    agree, stated = np.array([2.0, 2, 0, 0, 2, 2, 0, 0]), np.full(8, 2.0)
    told = information_beyond(agree, stated, same, np.repeat([0, 1], 4), np.random.default_rng(0))
    assert told[0] == pytest.approx(0.5)
    assert information_beyond(np.zeros(8), np.zeros(8), same, np.zeros(8, int), np.random.default_rng(0))[0] == 0


def test_where_a_short_list_begins():
    birds = load_vocabulary("miniature_birds")
    assert short_list(birds).attribute_names == birds.attribute_names[:3]
    assert short_list(birds, ["leg color", "bill shape"]).attribute_names == tuple(
        name for name in birds.attribute_names if name in ("leg color", "bill shape")
    )
    with pytest.raises(SagaError, match="unknown attribute 'legcolor': did you mean 'leg color'"):
        short_list(birds, ["legcolor"])


def test_a_run_without_a_supervisor_is_one_line(session):  # noqa: F811
    baseline = Session.__new__(Session)
    baseline.supervisor, baseline.config = None, session.config
    with pytest.raises(SagaError, match="no supervisor to ask"):
        grow(baseline, toys("light"), toys("light"), "generic", 16)
    assert MAX_ROUNDS > 1


# ---------------------------------------------------------------------------------------------- after training


def test_what_a_vocabulary_gains_is_the_difference_of_its_runs(tmp_path):
    levels = {"hand-written": 0.8, "short": 0.5, "grown": 0.7, "shuffled": 0.6}
    runs = {name: [make_run(tmp_path / name, "pf_grpo_taught", seed, level) for seed in (0, 1, 2)] for name, level in levels.items()}
    table = gains(runs)
    found = {(row.method, row.against): row for row in table.itertuples()}
    assert set(found) == {("grown", "short"), ("grown", "hand-written"), ("hand-written", "shuffled")}  # the others were not trained
    for (one, other), row in found.items():
        share = [np.mean([run.hits.mean() for run in runs[name]]) for name in (one, other)]
        assert row.difference == pytest.approx(100 * (share[0] - share[1])) and row.low < row.difference < row.high and row.seeds == 3
    said = gain_sentences(table)[0]
    assert said.startswith("Trained with the grown vocabulary minus short: +") and said.endswith("above 0; 3 seeds.")
    assert gains({"short": runs["short"]}).empty and gain_sentences(gains({})) == []
