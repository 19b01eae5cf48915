"""Whom the reward credits: numbers against a loop over described values, intervals over pairs, and what is said of them."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from tiny import random_answer, rollouts_of

from saga_lib import step
from saga_study.findings.claims import credited
from saga_study.findings.credit import credit_sentences, credit_table, described_values, display_credit
from saga_study.findings.words import BEFORE_TRAINING as BEFORE
from saga_study.methods import make_config
from saga_study.resolving import open_session


def made_up(gap, pairs=60, seed=0):
    """Return described values: true ones have advantages that are higher by `gap` on average, on pairs of one class alone."""
    rng, rows = np.random.default_rng(seed), []
    for pair in range(pairs):
        same = pair % 2 == 0
        for _ in range(20):
            true = bool(rng.uniform() < 0.7)
            rows.append((pair, same, true, rng.normal() + gap * true * same))
    return pd.DataFrame(rows, columns=["pair", "same", "true", "advantage"])


def test_the_difference_is_that_of_two_means():
    values = made_up(0.5)
    table = credit_table([(BEFORE, values)]).set_index("pairs of")
    for kind, own in (("one class", values[values["same"]]), ("two classes", values[~values["same"]]), ("both", values)):
        true, false = (own.loc[own["true"] == flag, "advantage"].mean() for flag in (True, False))
        row = table.loc[kind]
        assert row["difference"] == pytest.approx(true - false) and row["low"] < row["difference"] < row["high"]
        assert row["values"] == len(own) and row["true"] == pytest.approx(own["true"].mean()) and row["pairs"] == own["pair"].nunique()
    assert table.loc["one class", "low"] > 0 and table.loc["two classes", "low"] < 0 < table.loc["two classes", "high"]
    said = credit_sentences(table.reset_index())
    assert len(said) == 2 and "true descriptions are credited more" in said[0] and "not told apart" in said[1]
    assert display_credit(table.reset_index())["difference [95 %]"].str.contains(r"\[").all()


def test_false_descriptions_may_be_credited_more(tmp_path):
    table = credit_table([(BEFORE, made_up(-0.8))])
    assert "FALSE descriptions are credited more" in credit_sentences(table)[0]
    (tmp_path / "tables").mkdir()
    table.to_csv(tmp_path / "tables" / "12_credit_miniature_birds_values.csv", index=False)
    [finding] = credited(tmp_path, "one class")
    assert finding.benchmark == "miniature_birds" and finding.sign == -1 and "30 pairs" in finding.text
    assert credited(tmp_path, "two classes")[0].sign == 0


def test_intervals_are_over_pairs_not_over_values():
    """One pair's values copied a hundred times are no more certain."""
    values = made_up(0.5, pairs=8)
    copied = pd.concat([values] * 100)
    one, other = (credit_table([("x", each)]).set_index("pairs of").loc["both"] for each in (values, copied))
    assert other["high"] - other["low"] == pytest.approx(one["high"] - one["low"], rel=1e-6) and other["values"] == 100 * one["values"]


def test_nothing_to_compare_is_no_row():
    values = made_up(0.5)
    assert credit_table([("x", values[values["true"]])]).empty and credit_sentences(credit_table([])) == []
    assert "no pair" in display_credit(credit_table([])).iloc[0, 0]


def test_values_are_read_from_the_rollouts_of_contributing_pairs(checkpoint, monkeypatch):
    config = make_config("smoke", "miniature_birds", "saga_pf", 0, supervisor=str(checkpoint), embedding_dim=16, batch_size=16)
    session = open_session(config)

    def answers(supervisor, prompt_ids, images, sampling, draws):
        count = len(images.merged) // 2 * sampling.group_size
        return rollouts_of(supervisor, [random_answer(n, n % 2 == 0) for n in range(count)])

    monkeypatch.setattr(step, "generate_rollouts", answers)
    trained = open_session(config).encoder
    values = described_values(session, 3, encoder=trained)
    assert session.encoder is not trained, "the session keeps its own encoder"
    attributes = len(session.vocabulary.attributes)
    assert values["pair"].nunique() == 3 and len(values) == 3 * config.group_size * 2 * attributes
    assert set(values.groupby("pair")["advantage"].nunique()) == {2} and 0 < values["true"].mean() < 0.6, "random descriptions"
    session.benchmark = replace(session.benchmark, train=replace(session.benchmark.train, class_attributes=None))
    assert described_values(session, 3).empty
