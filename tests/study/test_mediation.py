"""The chain from reward to tokens to embedding to retrieval: numbers against the records, where it breaks, and what no run measured."""

import json

import numpy as np
import pytest
from test_comparisons import AIRCRAFT, BIRDS, empty, only
from test_signals_notebook import cell

from saga_lib.records import Run
from saga_study.design.cells import Cell
from saga_study.findings import figures, mediation
from saga_study.findings.samples import ALL_ATTRIBUTES, POOLED

ATTRIBUTES = ("bill", "crown", "wing", "tail")


def reading(accuracy, probe, spread=(-0.05, 0.0, 0.02, 0.03)):
    """Return what a run measured: shares of four attributes around a mean."""
    shares = {name: dict(zip(ATTRIBUTES, np.add(mean, spread).tolist(), strict=True)) for name, mean in
              (("accuracy", accuracy), ("consensus", min(0.95, accuracy + 0.02)), ("probe", probe))}  # fmt: skip
    return {"recall": {"1": accuracy}, "map_at_r": accuracy / 2} | shares


def read_cell(folder, method, accuracy, probe, level, dataset=BIRDS, seeds=(0, 1), rise=None):
    """Return a cell that measured readings; `rise` gives its steps verdicts that rise by so much."""
    made = cell(folder, method, dataset, level, seeds, reading=reading(accuracy, probe))
    for run in made.runs if rise is not None else ():
        values = np.linspace(0.4, 0.4 + rise, 3).repeat(10)
        steps = [{"verdict_accuracy_same": float(value), "verdict_accuracy_different": 0.9} for value in values]
        (run.folder / "metrics.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps))
    return Cell(made.config, tuple(Run(run.folder, run.config) for run in made.runs))


def some(folder, dataset=BIRDS, seeds=(0, 1), saga=(0.8, 0.7, 0.5), contrast=(0.9, 0.8, 0.8)):
    return [
        read_cell(folder, "pre-trained", 0.6, 0.65, 0.4, dataset, (0,)), read_cell(folder, "pf", 0.7, 0.7, 0.5, dataset, seeds),
        read_cell(folder, "saga_pf", *saga, dataset, seeds, rise=0.2), read_cell(folder, "contrast_pf", *contrast, dataset, seeds),
    ]  # fmt: skip


def test_each_attribute_is_shown_before_and_after(tmp_path):
    table = mediation.attribute_table(mediation.readings_of(some(tmp_path)))
    row = only(table, method="saga_pf", attribute="wing")
    assert row["accuracy"] == pytest.approx(0.82) and row["probe"] == pytest.approx(0.72) and row["consensus"] == pytest.approx(0.84)
    assert row["accuracy change"] == pytest.approx(0.2) and row["probe change"] == pytest.approx(0.05) and row["seeds"] == 2
    mean = only(table, method="saga_pf", attribute=ALL_ATTRIBUTES)
    assert mean["accuracy"] == pytest.approx(0.8) and mean["probe change"] == pytest.approx(0.05)
    shown = mediation.display_attributes(table).set_index("attribute")
    assert shown.loc["wing", "SAGA (PF): read / probe (%)"] == "82 / 72" and len(shown) == len(ATTRIBUTES) + 1


def test_each_link_of_the_chain_is_a_difference_to_the_base(tmp_path):
    cells = some(tmp_path) + some(tmp_path, AIRCRAFT)
    chain = mediation.chain_table(mediation.readings_of(cells), "pf")
    assert set(chain["method"]) == {"saga_pf", "contrast_pf"} and set(chain["benchmark"]) == {BIRDS, AIRCRAFT, POOLED}
    for place in (BIRDS, AIRCRAFT, POOLED):
        rows = chain[(chain["method"] == "saga_pf") & (chain["benchmark"] == place)].set_index("link")
        assert rows.loc[mediation.TOKENS, "difference"] == pytest.approx(10) and rows.loc[mediation.TOKENS, "low"] > 0
        assert rows.loc[mediation.EMBEDDING, "difference"] == pytest.approx(0, abs=1e-9)
        assert rows.loc["retrieval: R@1", "difference"] == pytest.approx(0)
        assert rows.loc[mediation.REWARD, "difference"] == pytest.approx(10)  # same-class verdicts +20 points, the others none
    contrast = only(chain, method="contrast_pf", benchmark=BIRDS, link="retrieval: MAP@R")
    by_method = {one.config.method: one for one in cells if one.config.dataset == BIRDS}
    gain = np.mean([np.mean(run.evaluation["map_at_r_by_class"]) for run in by_method["contrast_pf"].runs])
    gain -= np.mean([np.mean(run.evaluation["map_at_r_by_class"]) for run in by_method["pf"].runs])
    assert contrast["difference"] == pytest.approx(100 * gain) and contrast["low"] > 0
    assert np.isnan(only(chain, method="contrast_pf", benchmark=BIRDS, link=mediation.REWARD)["difference"]), "it has no verdicts"
    shown = mediation.display_chain(chain)
    assert "nan" not in shown.to_string() and len(shown) == 6
    assert len(figures.mediation_chain(chain, mediation.LINKS, "chain").axes) == 3


@pytest.mark.parametrize(
    ("saga", "said"),
    [
        ((0.8, 0.7, 0.5), "it is seen up to the tokens, not in the embedding"),
        ((0.8, 0.8, 0.5), "it is seen up to the embedding, not in the retrieval"),
        ((0.7, 0.7, 0.5), "no link is above the base"),
        ((0.8, 0.8, 0.8), "every link is seen"),
        ((0.8, 0.7, 0.8), "retrieval gains though the embedding does not"),
        ((0.6, 0.8, 0.5), "it is seen up to the embedding, not in the retrieval"),
    ],
)
def test_a_sentence_says_where_the_chain_breaks(saga, said, tmp_path):
    told = mediation.chain_sentences(mediation.chain_table(mediation.readings_of(some(tmp_path, saga=saga)), "pf"))
    assert told[0].startswith("SAGA (PF) against PF: right verdicts, start to end +10.0") and told[0].endswith(f": {said}."), told[0]
    assert told[-1] == "2 seeds, birds: the intervals cover the choice of attributes or families and seeds."


def test_one_seed_and_absent_rows(tmp_path):
    chain = mediation.chain_table(mediation.readings_of([*some(tmp_path, seeds=(0,)), empty("oracle")]), "pf")
    assert "oracle" not in set(chain["method"]) and only(chain, method="saga_pf", link=mediation.TOKENS)["low"] > 0
    reward = only(chain, method="saga_pf", link=mediation.REWARD)
    assert reward["difference"] == pytest.approx(10) and np.isnan(reward["low"])
    assert mediation.chain_sentences(chain)[-1].startswith("One seed, birds: ")


@pytest.mark.parametrize("case", ["no cells", "no readings", "no base", "base alone", "no truth"])
def test_where_nothing_was_measured_it_says_so(case, tmp_path):
    cells = {
        "no cells": lambda: [], "no readings": lambda: [cell(tmp_path, "pf"), cell(tmp_path, "saga_pf", level=0.6), empty("oracle")],
        "no base": lambda: [one for one in some(tmp_path) if one.config.method != "pf"], "base alone": lambda: some(tmp_path)[:2],
        "no truth": lambda: [cell(tmp_path, name, reading={"recall": {"1": 0.5}, "map_at_r": 0.2}) for name in ("pf", "saga_pf")],
    }[case]()  # fmt: skip
    found = mediation.readings_of(cells)
    assert bool(found) == (case in ("no base", "base alone"))
    chain = mediation.chain_table(found, "pf")
    assert mediation.chain_sentences(chain) == ["No run measured readings beside the base: the chain is part of --full."]
    assert len(mediation.display_chain(chain)) == 1 and len(mediation.display_attributes(mediation.attribute_table(found))) >= 1
    assert len(figures.mediation_chain(chain, mediation.LINKS, "chain").axes) == 1
    if case == "base alone":
        row = only(mediation.attribute_table(found), method="pf", attribute="bill")
        assert row["accuracy change"] == pytest.approx(0.1)
