"""Notebook 18: few labels and other benchmarks, against computations by hand; nothing is labelled and asked for at once."""

import json
from dataclasses import replace
from itertools import product

import numpy as np
import pandas as pd
import pytest
from test_comparisons import AIRCRAFT, BIRDS, only, slow_bootstrap
from test_tables import make_run

from saga_lib.common.errors import SagaError
from saga_lib.datasets import pixels
from saga_lib.datasets.splits import Split
from saga_lib.records import Run
from saga_study.design import tables
from saga_study.findings import claims, few_shot, figures, shift, unseen
from saga_study.findings.few_shot import CLASSIFIERS, MEAN, PROBE, metric_name
from saga_study.findings.samples import POOLED, families
from saga_study.methods import METHODS, make_config
from saga_study.miniature import world
from saga_study.miniature.world import benchmark_spec
from saga_study.notebook import NotebookContext

FAMILY = benchmark_spec(BIRDS).family_size
LABELS = np.repeat(np.arange(2 * FAMILY), 12)  # two families of a miniature benchmark


def embedded(seed=0, signal=1.0, labels=LABELS, dims=8):
    """Unit embeddings that know their classes the better, the stronger the signal."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(labels.max() + 1, dims))
    points = rng.normal(size=(len(labels), dims)) + signal * centres[labels]
    return (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)


# ----------------------------------------------------------------------------------------------------- protocol


def test_a_draw_goes_once_through_all_classes_family_by_family():
    one = few_shot.draw_protocol(BIRDS, LABELS, [10, 1, 5], 3, seed=0)
    assert one.shots == (1, 5, 10) and one.too_many == () and one.left_out == 0 and len(one.draws) == 3
    assert one.way == FAMILY and one.queries == {1: 11, 5: 7, 10: 2}
    for draw in one.draws:
        assert sorted(image for episode in draw for images in episode for image in images) == list(range(len(LABELS)))
        for number, episode in enumerate(draw):
            assert [set(LABELS[images]) for images in episode] == [{c} for c in range(number * FAMILY, (number + 1) * FAMILY)]
    orders = [np.concatenate([images for episode in draw for images in episode]).tolist() for draw in one.draws]
    assert orders[0] != orders[1] and orders[1] != orders[2], "draws differ"
    again, other = (few_shot.draw_protocol(BIRDS, LABELS, [1, 5, 10], 3, seed=seed) for seed in (0, 1))
    assert all((a == b).all() for x, y in zip(one.draws[1], again.draws[1], strict=True) for a, b in zip(x, y, strict=True))
    assert any((a != b).any() for x, y in zip(one.draws[1], other.draws[1], strict=True) for a, b in zip(x, y, strict=True))


def test_classes_without_families_are_dealt_at_random_and_anew_in_every_draw():
    labels = np.repeat(np.arange(100), 20)
    one = few_shot.draw_protocol("cub200", labels, [1], 2, seed=0)
    deals = [[sorted({int(labels[i]) for images in episode for i in images}) for episode in draw] for draw in one.draws]
    for deal in deals:
        assert [len(classes) for classes in deal] == [25, 25, 25, 25] and sorted(sum(deal, [])) == list(range(100))
    assert deals[0] != deals[1] and one.way == 25
    alone = few_shot.draw_protocol(f"{BIRDS}+family_size=1", labels[:600], [1], 1, seed=0)
    assert min(len(episode) for episode in alone.draws[0]) > 1, "families of one class leave nothing to tell apart"


def test_numbers_of_labels_that_leave_no_queries_are_left_out_and_told():
    smoke = few_shot.draw_protocol(BIRDS, np.repeat(np.arange(2 * FAMILY), 2), [1, 5, 10], 1, seed=0)
    assert smoke.shots == (1,) and smoke.too_many == (5, 10) and smoke.queries == {1: 1}
    (told,) = few_shot.protocol_sentences({BIRDS: smoke})
    assert "5 and 10 labels do not fit: most classes have fewer than 6 images" in told
    uneven = np.repeat(np.arange(10), [3] * 4 + [6] * 6)
    some = few_shot.draw_protocol("aircraft", uneven, [1, 5, 10], 1, seed=0)
    assert some.shots == (1, 5) and some.too_many == (10,) and some.left_out == 4 and some.classes.tolist() == list(range(4, 10))
    told = few_shot.protocol_sentences({"aircraft": some}, ["aircraft", "cub200"])
    assert "Left out with too few images: 4 classes." in told[0] and told[1] == "Without runs here, with --full: cub200."


@pytest.mark.parametrize(
    ("shots", "draws", "line"),
    [
        ([0, 1], 1, "must be at least 1"), ([], 1, "must be at least 1"), ([1], 0, "must be at least 1"),
        ([12], 1, "12 images in the median"),
    ],
)  # fmt: skip
def test_draws_that_cannot_be_are_refused(shots, draws, line):
    with pytest.raises(SagaError, match=line):
        few_shot.draw_protocol(BIRDS, LABELS, shots, draws, seed=0)


# --------------------------------------------------------------------------------------------------- accuracies


def by_hand(embeddings, protocol, classifier, shots):
    """Accuracy by class with plain loops; the mean is numpy's, the probe scikit-learn's."""
    from sklearn.linear_model import LogisticRegression

    right = {int(c): [] for c in protocol.classes}
    for episode in (episode for draw in protocol.draws for episode in draw):
        labelled = [(i, c) for c, images in enumerate(episode) for i in images[:shots]]
        if classifier == MEAN:
            means = np.stack([embeddings[images[:shots]].mean(0) for images in episode])
        else:
            model = LogisticRegression(C=1.0, max_iter=1000).fit(embeddings[[i for i, _ in labelled]], [c for _, c in labelled])
        for c, images in enumerate(episode):
            for query in images[shots:]:
                assert query not in [i for i, _ in labelled]
                if classifier == MEAN:
                    answer = np.argmin(((means - embeddings[query]) ** 2).sum(1))
                else:
                    answer = np.argmax(model.coef_ @ embeddings[query] + model.intercept_)
                right[int(protocol.labels[query])].append(answer == c)
    return np.array([np.mean(right[int(c)]) for c in protocol.classes])


@pytest.mark.filterwarnings("ignore:The number of unique classes")
def test_accuracies_are_those_by_hand():
    labels = LABELS[: 12 * 2 * FAMILY].copy()
    protocol, embeddings = few_shot.draw_protocol(BIRDS, labels, [1, 5], 2, seed=3), embedded()
    found = few_shot.accuracies(embeddings, protocol)
    assert set(found) == set(product(CLASSIFIERS, (1, 5)))
    for (classifier, shots), values in found.items():
        np.testing.assert_allclose(values, by_hand(embeddings, protocol, classifier, shots), atol=1e-9)
    assert found[MEAN, 5].mean() > found[MEAN, 1].mean() + 0.02 > 1 / FAMILY


def test_what_knows_all_names_all_and_what_knows_nothing_guesses(recwarn):
    protocol = few_shot.draw_protocol(BIRDS, LABELS, [1, 10], 4, seed=0)
    for values in few_shot.accuracies(embedded(signal=100.0), protocol).values():
        assert values.min() == 1
    for values in few_shot.accuracies(embedded(signal=0.0), protocol).values():
        assert values.mean() == pytest.approx(1 / FAMILY, abs=0.03)
    assert not recwarn.list


# -------------------------------------------------------------------------------------------------------- gains

STRENGTHS = {  # of each method's embeddings
    "pre-trained": 0.3, "pf": 0.7, "infonce": 0.75, "saga_pf": 1.1, "saga_shuffled_in_group": 0.7, "pf_long": 0.75, "contrast_pf": 1.2,
    "pf_anchor": 0.7,
}  # fmt: skip


def runs_of(folder, dataset, method, seeds=(0, 1)):
    config = replace(make_config("miniature", dataset, method, 0), seed=0)
    seeds = (0,) if method == "pre-trained" else seeds
    return [Run(make_run(folder / dataset / method, method, seed).folder, replace(config, seed=seed)) for seed in seeds]


@pytest.fixture
def known(tmp_path):
    """Protocols, scores and runs of two benchmarks; on aircraft without reading contrast."""
    protocols, scores, runs = {}, {}, {}
    for place, dataset in enumerate((BIRDS, AIRCRAFT)):
        protocols[dataset] = few_shot.draw_protocol(dataset, LABELS, [1, 5, 10], 1, seed=place)
        methods = [name for name in STRENGTHS if (name, dataset) != ("contrast_pf", AIRCRAFT)]
        runs[dataset] = {method: runs_of(tmp_path, dataset, method) for method in methods}
        scores[dataset] = {}
        for method, group in runs[dataset].items():
            of_seeds = [few_shot.accuracies(embedded(10 * place + run.config.seed, STRENGTHS[method]), protocols[dataset]) for run in group]
            scores[dataset][method] = {key: np.stack([one[key] for one in of_seeds]) for key in of_seeds[0]}
    return protocols, scores, runs


def family_means(values):
    return np.stack([row.reshape(-1, 8).mean(1) for row in values])


def test_gains_are_bootstrapped_over_families_and_seeds(known, monkeypatch):
    for name in (BIRDS, AIRCRAFT):
        monkeypatch.setitem(world.BENCHMARKS, name, replace(world.BENCHMARKS[name], family_size=8))
    protocols, scores, runs = known
    table = few_shot.gains_table(protocols, scores, runs, "miniature")
    assert list(table) == list(few_shot.GAINS) and {name for pair in few_shot.pairs("miniature") for name in pair} <= set(METHODS)
    for classifier, shots in product(CLASSIFIERS, (1, 10)):
        means = {
            name: family_means(scores[name]["saga_pf"][classifier, shots]) - family_means(scores[name]["pf"][classifier, shots])
            for name in scores
        }
        for place, gains in ((BIRDS, [means[BIRDS]]), (POOLED, list(means.values()))):
            row = only(table, method="saga_pf", against="pf", benchmark=place, metric=metric_name(classifier, shots))
            assert row["difference"] == pytest.approx(100 * np.mean([one.mean() for one in gains]))
            ends = slow_bootstrap(gains)
            assert [row["low"], row["high"]] == pytest.approx(ends, abs=max(0.8, 0.05 * float(np.ptp(ends))))
            assert row["labels"] == shots and row["seeds"] == 2
    few, many = (only(table, method="saga_pf", against="pf", benchmark=BIRDS, metric=metric_name(MEAN, k)) for k in (1, 10))
    change = only(table, method="saga_pf", against="pf", benchmark=BIRDS, metric=metric_name(MEAN, 1, 10))
    assert change["difference"] == pytest.approx(few["difference"] - many["difference"]) and change["labels"] == ""
    assert set(table.loc[table["method"] == "contrast_pf", "benchmark"]) == {BIRDS}, "what one benchmark has is not pooled"
    single = only(table, method="pf", against="pre-trained", benchmark=BIRDS, metric=metric_name(PROBE, 5))
    assert single["seeds"] == 2, "the pre-trained row has no seeds"


def test_accuracies_as_a_table_and_as_text(known):
    protocols, scores, runs = known
    table = few_shot.accuracy_table(protocols, scores, runs)
    row = only(table, method="saga_pf", benchmark=AIRCRAFT, classifier=PROBE, labels=5)
    of_seeds = 100 * scores[AIRCRAFT]["saga_pf"][PROBE, 5].mean(1)
    assert row["accuracy"] == pytest.approx(of_seeds.mean()) and row["accuracy std"] == pytest.approx(of_seeds.std(ddof=1))
    assert row["queries"] == 7 and row["chance"] == pytest.approx(100 / FAMILY)
    assert row["runs"].split() == [run.key for run in runs[AIRCRAFT]["saga_pf"]]
    shown = few_shot.display_accuracy(table, BIRDS, "miniature").set_index("method")
    assert shown.loc["SAGA (PF)", "logistic probe, 5 per class, % ours (miniature)"].count("±") == 1
    assert len(shown) == len(STRENGTHS) and len(few_shot.display_accuracy(table, "nowhere", "smoke")) == 1
    gains = few_shot.gains_table(protocols, scores, runs, "miniature")
    assert few_shot.main_place(gains) == POOLED
    assert "reading contrast (PF) − PF" not in set(few_shot.display_gains(gains)["points [95 %]"])
    assert "reading contrast (PF) − PF" in set(few_shot.display_gains(gains, BIRDS)["points [95 %]"])


def gain_row(against, low, high, metric=None, method="saga_pf", labels=1):
    row = {"label": f"{method} − {against}", "method": method, "against": against, "benchmark": POOLED, "classifier": MEAN}
    row |= {"metric": metric or metric_name(MEAN, 1), "labels": labels, "seeds": 3}
    return row | {"difference": (low + high) / 2, "low": low, "high": high}


def told(*rows):
    table = pd.DataFrame(rows, columns=few_shot.GAINS)
    probe = table.assign(metric=table["metric"].str.replace(MEAN, PROBE), classifier=PROBE)
    return " ".join(few_shot.few_shot_sentences(pd.concat([table, probe], ignore_index=True), "miniature"))


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([("pf", -1, 1), ("pf_long", 1, 2)], "SAGA is not distinguishable from PF: what GRPO adds does not show here."),
        ([("pf", -3, -1), ("pf_long", 1, 2)], "SAGA is below PF: what GRPO adds does not show here."),
        ([("pf", 1, 2)], "SAGA is above PF, and no control was run that could explain it."),
        (
            [("pf", 1, 2), ("pf_long", -1, 1), ("infonce", 1, 3)],
            "SAGA is above PF, but not above PF, SAGA's wall-clock (0.0 [−1.0, +1.0]): the gain need not be the reward's.",
        ),
        (
            [("pf", 1, 2), ("saga_shuffled_in_group", 1, 3), ("infonce", 1, 3)],
            "and above SAGA, advantages shuffled in groups, InfoNCE: the gain is explained by none of these controls.",
        ),
    ],
)  # fmt: skip
def test_a_gain_is_the_reward_s_only_if_no_control_has_it(rows, said):
    assert said in told(*(gain_row(*row) for row in rows))


@pytest.mark.parametrize(("low", "high", "said"), [(1, 2, "is larger"), (-2, -1, "is smaller"), (-1, 1, "is not distinguishable from")])
def test_whether_a_gain_grows_where_labels_get_fewer_is_read_off_the_difference(low, high, said):
    change = gain_row("pf", low, high, metric_name(MEAN, 1, 10), labels="")
    text = told(gain_row("pf", 1, 2), gain_row("pf", 1, 2, metric_name(MEAN, 10), labels=10), change)
    assert f"With 1 instead of 10 labels the gain {said}" in text and "families of classes or classes and seeds." in text


def test_nothing_is_said_about_what_was_not_run():
    assert told() == "SAGA is not compared with PF here, so that nothing is said about what GRPO adds."
    assert "One number of labels says nothing" in told(gain_row("pf", 1, 2))
    empty = pd.DataFrame(columns=few_shot.GAINS)
    assert few_shot.main_place(empty) == "" and len(few_shot.display_gains(empty)) == 1
    assert len(figures.gains_by_labels(empty, CLASSIFIERS, ["a − b"], "nothing").axes) == 2


def test_the_figure_draws_the_pairs_it_is_given(known):
    table = few_shot.gains_table(*known, "miniature")
    wanted = [name for (method, _), name in few_shot.pairs("miniature").items() if method == "saga_pf"]
    figure = figures.gains_by_labels(table[table["benchmark"] == POOLED], CLASSIFIERS, wanted, "gains")
    drawn = figure.axes[0].get_legend_handles_labels()[1]
    assert drawn == [name for name in wanted if name in set(table["label"])] and len(drawn) == 5
    (line,) = [one for one in figure.axes[1].lines if one.get_label() == drawn[0]]
    own = table[(table["label"] == drawn[0]) & (table["benchmark"] == POOLED) & (table["classifier"] == PROBE) & (table["labels"] != "")]
    assert line.get_ydata().tolist() == own["difference"].tolist() and len(own) == 3


# -------------------------------------------------------------------------------------------------------- shift


def test_retrieval_is_that_of_brute_force():
    labels = np.repeat([3, 7, 9], [4, 2, 5])
    embeddings = embedded(1, 1.0, labels)
    found = shift.retrieval_scores(embeddings, labels)
    similar = (embeddings.astype(np.float64) @ embeddings.T.astype(np.float64)).round(7)
    hits, precisions = [], {c: [] for c in (3, 7, 9)}
    for query, c in enumerate(labels):
        order = [i for i in np.argsort(-similar[query], kind="stable") if i != query]
        hits.append(labels[order[0]] == c)
        relevant = [labels[i] == c for i in order[: (labels == c).sum() - 1]]
        precisions[c].append(np.mean([hit * np.mean(relevant[: rank + 1]) for rank, hit in enumerate(relevant)]))
    assert found["R@1"].tolist() == hits
    np.testing.assert_allclose(found["MAP@R"], [np.mean(values) for values in precisions.values()])


def test_galleries_are_whole_families_and_the_same_for_all():
    labels = np.repeat(np.arange(5 * FAMILY), 2)
    chosen = shift.chosen_images(BIRDS, labels, 2 * FAMILY + 3, seed=0)
    family = families(BIRDS, labels[chosen])
    assert len(np.unique(family)) == 2 and np.bincount(family).max() == 2 * FAMILY and (np.diff(chosen) > 0).all()
    assert (chosen == shift.chosen_images(BIRDS, labels, 2 * FAMILY + 3, seed=0)).all()
    assert len({tuple(shift.chosen_images(BIRDS, labels, FAMILY, seed)) for seed in range(8)}) > 1
    assert len(shift.chosen_images(BIRDS, labels, 0, 0)) == len(labels) and len(shift.chosen_images(BIRDS, labels, 5, 0)) == 2 * FAMILY
    assert len(np.unique(np.arange(100)[shift.chosen_images("cub200", np.arange(100), 30, 0)])) == 30


def retrieved_of(levels, seeds=(2, 2)):
    """Scores of two encoders' benchmarks on two galleries of different size: method -> (home, elsewhere) levels."""
    found = {}
    for place, (own, other, count) in enumerate(((BIRDS, AIRCRAFT, seeds[0]), (AIRCRAFT, BIRDS, seeds[1]))):
        found[own] = {}
        for method, pair in levels.items():
            found[own][method] = {}
            for target, level in zip((own, other), pair, strict=True):
                size = 60 if target == BIRDS else 40
                rng = np.random.default_rng([place, size])
                draws = rng.uniform(size=(count, size)), rng.uniform(size=(count, size // 4))
                found[own][method][target] = {"R@1": (draws[0] < level).astype(float), "MAP@R": np.clip(draws[1] * 0.4 + level - 0.2, 0, 1)}
    return found


LEVELS = {"pf": (0.6, 0.3), "saga_pf": (0.6, 0.5), "contrast_pf": (0.8, 0.3), "pf_long": (0.7, 0.5)}


def test_elsewhere_leaves_home_out_and_weighs_galleries_alike(tmp_path):
    found = retrieved_of(LEVELS, seeds=(2, 3))
    runs = {name: {m: runs_of(tmp_path, name, m, range(2 + place)) for m in LEVELS} for place, name in enumerate((BIRDS, AIRCRAFT))}
    table = shift.shift_gains(found, runs, "miniature")
    for metric in shift.METRICS:
        ways = ((BIRDS, AIRCRAFT), (AIRCRAFT, BIRDS))
        away = [found[own]["saga_pf"][other][metric] - found[own]["pf"][other][metric] for own, other in ways]
        home = found[BIRDS]["saga_pf"][BIRDS][metric] - found[BIRDS]["pf"][BIRDS][metric]
        one = {"method": "saga_pf", "against": "pf", "metric": metric}
        row = only(table, **one, benchmark=BIRDS, where=shift.ELSEWHERE)
        assert row["difference"] == pytest.approx(100 * away[0].mean()) and row["seeds"] == 2
        assert [row["low"], row["high"]] == pytest.approx(slow_bootstrap([away[0]]), abs=1.2)
        assert only(table, **one, benchmark=BIRDS, where=shift.HOME)["difference"] == pytest.approx(100 * home.mean())
        pooled = only(table, **one, benchmark=POOLED, where=shift.ELSEWHERE)
        assert pooled["difference"] == pytest.approx(50 * (away[0].mean() + away[1][:2].mean())), "the seeds that both have"
    values = shift.shift_table(found, runs)
    row = only(values, benchmark=AIRCRAFT, method="pf", **{"tested on": BIRDS})
    assert row["R@1"] == pytest.approx(100 * found[AIRCRAFT]["pf"][BIRDS]["R@1"].mean()) and row["seeds"] == 3
    assert len(shift.display_shift(values, "miniature")) == 2 * len(LEVELS)


def test_a_gallery_that_several_encoders_meet_is_drawn_once():
    """Two encoders with the same scores on one gallery say no more than one of them: the interval must not get narrower."""
    one = retrieved_of(LEVELS)[BIRDS]
    shared = {name: {"pf": {"miniature_cars": one["pf"][AIRCRAFT]}} for name in "ab"}
    for metric in shift.METRICS:
        np.testing.assert_allclose(shift.elsewhere(shared, "pf", ["a", "b"], metric), one["pf"][AIRCRAFT][metric])


def test_the_sentences_compare_elsewhere_with_home(tmp_path):
    runs = {name: {m: runs_of(tmp_path, name, m) for m in LEVELS} for name in (BIRDS, AIRCRAFT)}
    table = shift.shift_gains(retrieved_of(LEVELS), runs, "miniature")
    said = "\n".join(shift.shift_sentences(table, "miniature"))
    assert "SAGA (PF) against PF, trained on all benchmarks: R@1 +" in said and "elsewhere (above it), 0.0 [0.0, 0.0] at home" in said
    assert "reading contrast (PF) against PF" in said and "elsewhere (not distinguishable from it)" in said
    assert "Elsewhere, SAGA (PF) − PF, SAGA's wall-clock: 0.0" in said and "infonce" not in said.lower()
    shown = shift.display_shift_gains(table).set_index("points [95 %]")
    assert "MAP@R at home, trained on all benchmarks" in shown and "R@1 elsewhere, trained on birds" in shown
    alone = {BIRDS: {method: {BIRDS: of[BIRDS]} for method, of in retrieved_of(LEVELS)[BIRDS].items()}}
    none = shift.shift_gains(alone, runs, "miniature")
    assert none.empty and "No encoder met another benchmark" in shift.shift_sentences(none, "miniature")[0]
    assert len(shift.display_shift_gains(none)) == 1


# ------------------------------------------------------------------------------------------------ what is embedded


class Fake:
    """A run and its encoder: embeddings by gallery, and how often each was made."""

    def __init__(self, config, strength, made):
        self.config, self.key, self.strength, self.made = config, f"{config.method}{config.seed}", strength, made

    tower = None

    def encoder(self):
        return self

    def to(self, device):
        return self

    def embed_pixels(self, chunk):
        self.made.append((self.config.dataset, self.key, chunk.dataset, len(chunk.images)))
        return embedded(len(self.key), self.strength)[chunk.images]


class Chunk:
    def __init__(self, dataset, images):
        self.dataset, self.images = dataset, images


def test_every_encoder_embeds_every_gallery_once(monkeypatch, tmp_path):
    class Store:
        def __init__(self, split, tower):
            self.split = split

        def chunks(self, size):
            yield Chunk(self.split.name, np.array([int(path.name) for path in self.split.paths]))

    def loaded(config):
        class Loaded:
            test = Split(config.dataset, [tmp_path / str(i) for i in range(len(LABELS))], LABELS, [f"c{c}" for c in range(2 * FAMILY)])

        return Loaded

    monkeypatch.setattr(pixels, "PixelStore", Store)
    monkeypatch.setattr(unseen, "run_benchmark", loaded)
    monkeypatch.setattr(unseen, "check_runs", lambda runs: None)
    made = []
    runs = {
        name: {
            method: [Fake(make_config("miniature", name, method, seed), strength, made) for seed in (1, 0)]
            for method, strength in (("pf", 0.5), ("saga_pf", 1.0))
        }
        for name in (BIRDS, AIRCRAFT)
    }  # fmt: skip
    found = unseen.measure(runs, [1, 5], 1, 0, max_classes=FAMILY)
    assert len(made) == len(set(made)) == 2 * 2 * 2 * 2, "two benchmarks, methods, seeds and galleries"
    assert all(size == len(LABELS) / (1 if own == place else 2) for own, _, place, size in made), "elsewhere as far as MAX_CLASSES"
    assert found.scores[BIRDS]["pf"][MEAN, 5].shape == (2, 2 * FAMILY)
    expected = few_shot.accuracies(embedded(len("pf0"), 0.5), found.protocols[BIRDS])
    np.testing.assert_allclose(found.scores[BIRDS]["pf"][MEAN, 5][0], expected[MEAN, 5])
    images = shift.chosen_images(BIRDS, LABELS, FAMILY, 0)
    home, away = (found.retrieved[name]["saga_pf"][BIRDS]["MAP@R"] for name in (BIRDS, AIRCRAFT))
    brute = shift.retrieval_scores(embedded(len("saga_pf0"), 1.0)[images], LABELS[images])["MAP@R"]
    np.testing.assert_allclose(home[0], brute)
    np.testing.assert_allclose(away[0], brute)
    only_home = unseen.measure({BIRDS: runs[BIRDS]}, [1], 1, 0)
    assert set(only_home.retrieved[BIRDS]["pf"]) == {BIRDS}
    assert set(unseen.measure({BIRDS: runs[BIRDS]}, [1], 1, 0, [AIRCRAFT]).retrieved[BIRDS]["pf"]) == {BIRDS, AIRCRAFT}


# ---------------------------------------------------------------------------------------------- plan and claims


def test_the_runs_are_table_1_s_and_at_most_three_seeds():
    seeds = {name: tables.seeds_of("miniature", name, full=True) for name in tables.DATASETS["miniature"]}
    runs = tables.table_runs("few_shot", "miniature", seeds=seeds)
    assert set(runs) <= set(tables.table_runs("table1", "miniature", seeds=seeds)) and {run.seed for run in runs} == {0, 1, 2}
    assert {run.dataset for run in runs} == set(tables.DATASETS["miniature"])
    usual = {name: tables.seeds_of("miniature", name) for name in seeds}
    default = tables.table_runs("few_shot", "miniature", seeds=usual, full=False)
    assert {run.dataset for run in default} == {BIRDS}
    assert set(default) <= set(tables.table_runs("table1", "miniature", seeds=usual, full=False))
    assert not any(METHODS[run.method].at_paper_scale is False for run in tables.table_runs("few_shot", "paper"))
    compared = {name for pair in few_shot.pairs("miniature") for name in pair}
    assert compared <= set(tables.TABLE_RUNS["few_shot"].methods), "every pair can be filled"


def test_claims_are_read_from_what_the_notebook_saves(results, known):
    folder = results / "20260101-000000-miniature-abc"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(json.dumps({"profile": "miniature"}))
    context = NotebookContext(folder.name, "miniature", "18")
    protocols, scores, runs = known
    context.save_table("18_few_shot_values", few_shot.accuracy_table(protocols, scores, runs))
    gains = few_shot.gains_table(protocols, scores, runs, "miniature")
    context.save_table("18_gains_values", gains)
    table = claims.claims_table(folder)
    own = table[table["notebook"] == few_shot.NOTEBOOK].reset_index(drop=True)
    assert len(own) == 5 and own["verdict"].tolist()[3:] == ["not measured"] * 2
    assert own.loc[0, "verdict"] == own.loc[1, "verdict"] == "reproduced", "signals were made so"
    row = only(gains, method="saga_pf", against="pf", benchmark=POOLED, metric=metric_name(MEAN, 1))
    assert own.loc[0, "measured [95 %]"].startswith(f"+{row['difference']:.1f} points of accuracy with 1 label per class (nearest mean)")
    assert set(own.loc[0, "runs"].split()) == {run.key for of in runs.values() for m in ("pf", "saga_pf") for run in of[m]}
    change = only(gains, method="saga_pf", against="pf", benchmark=POOLED, metric=metric_name(MEAN, 1, 10))
    assert f"{abs(change['difference']):.1f} points of gain with 1 label per class less" in own.loc[2, "measured [95 %]"]
    away = shift.shift_gains(retrieved_of(LEVELS), runs | {AIRCRAFT: runs[BIRDS]}, "miniature")
    context.save_table("18_elsewhere_values", away[away["where"] == shift.ELSEWHERE])
    own = claims.claims_table(folder)
    own = own[own["notebook"] == few_shot.NOTEBOOK].reset_index(drop=True)
    assert own["verdict"].tolist()[3:] == ["reproduced", "open at this scale"]
