"""R@1 among siblings: galleries against a loop over images, and whether the changes of attributes go together."""

import numpy as np
import pandas as pd
import pytest
from test_mediation import BIRDS

from saga_lib.datasets.splits import Split
from saga_study.findings import siblings
from saga_study.findings.claims import goes_together
from saga_study.findings.samples import ALL_ATTRIBUTES
from saga_study.findings.siblings import sibling_hits, sibling_sentences, sibling_table, step_table

RNG = np.random.default_rng(0)
PER_CLASS, NAMES = 3, ("bill", "wing")


@pytest.fixture
def split():
    """Two families of three classes: in the first the second differs in the bill and the third in both, in the other all are alike."""
    attributes = [("a", "x"), ("b", "x"), ("b", "y"), ("a", "x"), ("a", "x"), ("a", "x")]
    labels = np.repeat(np.arange(6), PER_CLASS)
    truth = [dict(zip(NAMES, own, strict=True)) for own in attributes]
    return Split("test", [f"{n}.png" for n in range(len(labels))], labels, [str(c) for c in range(6)], truth)


def embeddings_of(split, seed=0):
    points = np.random.default_rng(seed).normal(size=(len(split.labels), 4)).astype(np.float32)
    return points / np.linalg.norm(points, axis=1, keepdims=True)


@pytest.mark.parametrize("seed", range(5))
def test_galleries_are_those_of_a_loop(split, seed):
    embeddings, family = embeddings_of(split, seed), split.labels // 3
    found = sibling_hits(embeddings, split, family)
    truth = [split.class_attributes[label] for label in split.labels]
    for name in NAMES:
        for query in range(len(split.labels)):
            gallery = [
                image for image in range(len(split.labels))
                if image != query and family[image] == family[query]
                and (split.labels[image] == split.labels[query] or truth[image][name] != truth[query][name])
            ]  # fmt: skip
            if all(split.labels[image] == split.labels[query] for image in gallery):
                assert np.isnan(found[name][query])
                continue
            nearest = max(gallery, key=lambda image: embeddings[query] @ embeddings[image])
            assert found[name][query] == (split.labels[nearest] == split.labels[query])
    assert np.isnan(found["bill"][split.labels > 2]).all() and np.isfinite(found["bill"][split.labels < 3]).all()


def some_hits():
    """Two seeds of 200 queries, of which 100 know the wing: SAGA finds more by the bill and no more by the wing."""
    def drawn(level, known):
        hits = (np.random.default_rng(int(1000 * level)).uniform(size=(2, 200)) < level).astype(float)
        return np.where(np.arange(200) < known, hits, np.nan)

    levels = {"pre-trained": (0.5, 0.5), "pf": (0.6, 0.7), "saga_pf": (0.9, 0.7)}
    return {BIRDS: {method: {"bill": drawn(bill, 200), "wing": drawn(wing, 100)} for method, (bill, wing) in levels.items()}}


def test_the_table_has_each_attribute_and_their_mean():
    hits = some_hits()
    table = sibling_table(hits, "pf").set_index(["method", "attribute"])
    own, base = hits[BIRDS]["saga_pf"], hits[BIRDS]["pf"]
    row = table.loc["saga_pf", "bill"]
    assert row["siblings"] == pytest.approx(100 * own["bill"].mean()) and row["queries"] == 200 and row["seeds"] == 2
    assert row["difference"] == pytest.approx(100 * (own["bill"].mean() - base["bill"].mean())) and row["low"] > 0
    assert row["siblings change"] == pytest.approx(own["bill"].mean() - hits[BIRDS]["pre-trained"]["bill"].mean())
    wing = table.loc["saga_pf", "wing"]
    assert wing["siblings"] == pytest.approx(100 * np.nanmean(own["wing"])) and wing["queries"] == 100 and wing["difference"] == 0
    mean = np.nanmean(np.stack(list(own.values())), 0).mean()
    assert table.loc["saga_pf", ALL_ATTRIBUTES]["siblings"] == pytest.approx(100 * mean)
    assert np.isnan(table.loc["pf", "bill"]["difference"])


def changes(readings, found):
    """Return the two tables of one method and its base, with these changes of attributes beyond the base's."""
    names = [f"a{n}" for n in range(len(readings))]
    of_base = np.linspace(1, -1, len(readings)) ** 2  # what the metric loss does alone, in every measure alike
    attributes, among = [], []
    for method, x, y in (("saga_pf", readings + of_base, found + of_base), ("pf", of_base, of_base)):
        keys = {"benchmark": BIRDS, "method": method, "attribute": names}
        attributes.append(pd.DataFrame(keys | {"accuracy change": x, "probe change": x, "seeds": 3}))
        among.append(pd.DataFrame(keys | {"siblings change": y, "difference": 1.0, "low": 0.5, "high": 1.5, "seeds": 3}))
    return pd.concat(attributes), pd.concat(among)


def test_changes_that_go_together_and_changes_that_do_not(tmp_path):
    rising = np.linspace(0, 0.1, 8)
    noisy = rising + RNG.normal(0, 0.01, 8)
    attributes, among = changes(rising, noisy)
    both = step_table(attributes, among, "pf")
    steps = both[both["method"] == "saga_pf"].set_index("step")
    assert both[both["method"] == "pf"]["difference"].tolist() == pytest.approx([1, 1, 1]), "of the base itself from the pre-trained tower"
    row = steps.loc["tokens → retrieval"]
    assert row["difference"] == pytest.approx(np.corrcoef(rising, noisy)[0, 1]) and row["low"] > 0.5
    assert steps.loc["tokens → embedding"]["difference"] == pytest.approx(1)
    said = sibling_sentences(among, steps.reset_index(), "pf", ["PF + oracle (birds)"])
    assert "not measured" in said[0] and "PF + oracle (birds)" in said[0]
    assert "above it for 8 of 8 attributes, below for 0" in said[1] and "above 0." in said[1]
    (tmp_path / "tables").mkdir()
    steps.reset_index().to_csv(tmp_path / "tables" / "20_sibling_steps_values.csv", index=False)
    finding = goes_together(tmp_path, "saga_pf", "tokens → retrieval")[0]
    assert finding.sign == 1 and finding.seeds == 3 and finding.benchmark == "8 attributes"
    flat = step_table(*changes(np.zeros(8), rising), "pf").set_index(["method", "step"]).loc["saga_pf"]
    assert np.isnan(flat.loc["tokens → retrieval", "difference"]), "nothing changed on one side"
    few = step_table(*changes(rising[:3], rising[:3]), "pf")
    assert few["difference"].isna().all()


def test_what_rises_everywhere_alike_is_no_correlation():
    """Two benchmarks, one of which rises as a whole: within each, attributes do not go together."""
    x, y = RNG.normal(0, 0.01, (2, 400))
    first, second = changes(x, y), changes(x[::-1] + 0.5, y[::-1] + 0.5)
    second[0]["benchmark"] = second[1]["benchmark"] = "miniature_cars"
    both = [pd.concat([one, other]) for one, other in zip(first, second, strict=True)]
    steps = step_table(*both, "pf").set_index(["method", "step"])
    assert abs(steps.loc[("saga_pf", "tokens → retrieval"), "difference"]) < 0.15


def test_a_signal_is_not_credited_with_what_its_metric_loss_does():
    noise = RNG.normal(0, 0.01, (2, 400))
    steps = step_table(*changes(*noise), "pf").set_index(["method", "step"])
    assert steps.loc[("pf", "tokens → retrieval"), "low"] > 0.9, "attributes that the metric loss reads better are those it finds again"
    assert abs(steps.loc[("saga_pf", "tokens → retrieval"), "difference"]) < 0.15, "but SAGA adds noise to both"


def test_without_readings_nothing_is_measured():
    hits, absent = siblings.measure({})
    table = sibling_table(hits, "pf")
    steps = step_table(pd.DataFrame(columns=["benchmark", "method", "attribute", "accuracy change", "probe change", "seeds"]), table, "pf")
    assert table.empty and steps.empty and not absent and sibling_sentences(table, steps, "pf", absent) == []
    assert "on this machine" in siblings.display_siblings(table).iloc[0, 0] and len(siblings.display_steps(steps)) == 1
