"""The answer: what is compared with what, its sentences, stricter intervals, benchmarks as units, and the share of the room."""

import json
from dataclasses import replace

import numpy as np
import pytest
import scipy.stats
from test_bootstrap import students_factor
from test_comparisons import slow_bootstrap
from test_tables import QUERIES, make_run

from saga_lib.common.errors import SagaError
from saga_lib.records import Run
from saga_study import methods
from saga_study.findings import answer as answers
from saga_study.findings import figures, robustness, rooms, samples, table_1
from saga_study.findings.words import Interval
from saga_study.miniature import world

BIRDS, CARS = "miniature_birds", "miniature_cars"
CLASSES = np.repeat(np.arange(20), QUERIES // 20)
LABELS = {BIRDS: CLASSES, CARS: CLASSES}
BEST = "infonce_anchor"
LEVELS = dict.fromkeys(
    (
        "pf", "pf_anchor", "infonce", BEST, "saga_pf", "contrast_pf", "saga_infonce", "contrast_infonce", "oracle", "oracle_wrong",
        "oracle_infonce", "saga_shuffled_in_group", "pf_long",
    ), 0.5,
)  # fmt: skip


def in_families(monkeypatch, size):
    for name, spec in list(world.BENCHMARKS.items()):
        monkeypatch.setitem(world.BENCHMARKS, name, replace(spec, family_size=size))


@pytest.fixture
def families_of_four(monkeypatch, chosen):
    in_families(monkeypatch, 4)


@pytest.fixture(autouse=True)
def chosen(monkeypatch):
    """What the search and the benchmarks have decides nothing here: the anchor helps InfoNCE, the best loss; no families."""
    in_families(monkeypatch, 1)
    monkeypatch.setitem(methods.ANCHORED, "miniature", ("infonce",))
    monkeypatch.setitem(methods.BEST_LOSS, "miniature", "infonce")


def on(run, dataset):
    return Run(run.folder, replace(run.config, dataset=dataset))


def with_classes(run, hits=None):
    """Write MAP@R by class into a run's record, half of each class's hits, and return it anew."""
    hits = run.hits if hits is None else hits
    by_class = np.array([hits[CLASSES == c].mean() / 2 for c in range(20)])
    path = run.folder / "evaluation.json"
    record = json.loads(path.read_text()) | {"map_at_r": by_class.mean(), "map_at_r_by_class": by_class.tolist()}
    record["hits_at_1"] = "".join("01"[int(hit)] for hit in hits)
    record["recall"] |= {"1": float(np.mean(hits))}
    path.write_text(json.dumps(record))
    return Run(run.folder, run.config)


def runs_of(folder, datasets=(BIRDS, CARS), seeds=(0, 1), by_class=True, **levels):
    """Return the runs of several benchmarks; equal levels hit the same queries. A level may be one for each benchmark."""
    found = {}
    for number, name in enumerate(datasets):
        of_one = found.setdefault(name, {})
        for method, level in (LEVELS | levels).items():
            level = level[number] if isinstance(level, tuple) else level
            runs = [make_run(folder / name, method, seed, level=level) for seed in seeds]
            of_one[method] = [on(with_classes(run) if by_class else run, name) for run in runs]
    return found


def answer_of(folder, **options):
    runs = runs_of(folder, **options)
    return runs, answers.pooled_answer(runs, labels=LABELS)


def row_of(answer, method, against, benchmark=samples.POOLED):
    rows = answer[(answer["method"] == method) & (answer["against"] == against) & (answer["benchmark"] == benchmark)]
    assert len(rows) == 1
    return rows.iloc[0]


def maps(runs):
    return np.array([run.evaluation["map_at_r_by_class"] for run in runs])


# ------------------------------------------------------------------------------------------- what is compared


def test_every_signal_is_compared_with_its_own_base_and_controls_and_all_rows_with_the_best_loss(tmp_path):
    answer = answer_of(tmp_path)[1]
    pairs = list(dict.fromkeys(zip(answer["method"], answer["against"], strict=True)))
    to_best = {(method, BEST) for method in LEVELS if method != BEST}
    direct = {
        ("saga_pf", "pf"), ("contrast_pf", "pf"), ("oracle", "pf"), ("contrast_pf", "saga_pf"), ("pf_anchor", "pf"), (BEST, "infonce"),
        ("contrast_infonce", "saga_infonce"), ("saga_pf", "saga_shuffled_in_group"), ("saga_pf", "pf_long"), ("oracle", "oracle_wrong"),
        ("saga_shuffled_in_group", "pf"), ("oracle_wrong", "pf"), ("pf_long", "pf"),
    }  # fmt: skip
    assert set(pairs) == to_best | direct
    assert len(answer) == 3 * len(pairs), "two benchmarks and both together, no comparison twice"
    shown = answers.display_answer(answer)
    names = list(shown["points of R@1 [95 %]"])
    assert names[0] == "PF + anchor − InfoNCE + anchor" and len(set(names)) == len(names)
    for name in ("SAGA (PF) − PF", "reading contrast (PF) − SAGA (PF)", "SAGA − advantages shuffled in groups", "PF + anchor − PF"):
        assert name in names
    assert "SAGA, advantages shuffled in groups − InfoNCE + anchor" not in names, "a control is of its own loss"
    assert "PF − InfoNCE + anchor" not in names, "bare losses stand in Table 1"


def test_where_a_loss_is_anchored_signals_on_it_are_compared_with_both_together(monkeypatch):
    monkeypatch.setitem(methods.ANCHORED, "miniature", ("pf", "ms"))
    pairs = answers.direct_pairs("miniature")
    for pair in (("saga_pf", "pf_anchor"), ("contrast_ms", "ms_anchor"), ("saga_infonce", "infonce"), ("oracle_pa", "pa")):
        assert pair in pairs
    assert ("saga_pf", "pf") not in pairs and ("pf_anchor", "pf") in pairs and len(set(pairs)) == len(pairs)


def test_the_baseline_is_the_best_loss_or_what_a_smaller_table_has():
    assert answers.baseline_among(LEVELS, "miniature") == BEST
    assert answers.baseline_among(["pre-trained", "pf", "saga_pf"], "miniature") == "pf"
    assert answers.baseline_among(["pre-trained", "ms_anchor"], "miniature") == "ms_anchor"
    everywhere = {BIRDS: {"pf": [], BEST: []}, CARS: {"pf": []}}
    assert answers.chosen_baseline(everywhere, "miniature") == "pf" and answers.chosen_baseline(everywhere, "miniature", "ms") == "ms"
    assert answers.chosen_baseline({}, "miniature") == BEST
    assert [answers.rival_of(BEST, names) for names in (LEVELS, ["saga_pf"])] == ["saga_infonce", "saga_pf"]


def test_comparisons_stand_in_groups():
    groups = {
        ("saga_pf", "pf"): "on PF", ("contrast_pf", "saga_pf"): "on PF", ("saga_pf", BEST): answers.BEST_GROUP,
        ("saga_infonce", BEST): "on InfoNCE", ("pre-trained", BEST): answers.BEST_GROUP, ("saga_pf", "pf_long"): answers.CONTROL_GROUP,
        ("oracle_wrong", "pf"): answers.CONTROL_GROUP,
    }  # fmt: skip
    assert {pair: answers.group_of(*pair) for pair in groups} == groups


# ------------------------------------------------------------------------------------------------------ numbers


def test_the_pooled_difference_weighs_benchmarks_equally(tmp_path):
    runs, answer = answer_of(tmp_path, saga_pf=(0.7, 0.6))
    rows = {name: row_of(answer, "saga_pf", "pf", name) for name in (*runs, samples.POOLED)}
    for column in ("difference", "MAP@R"):
        assert rows[samples.POOLED][column] == pytest.approx(np.mean([rows[name][column] for name in runs]))
    assert rows[samples.POOLED]["low"] > min(rows[name]["low"] for name in runs)  # narrower than one benchmark's
    for name in runs:  # a benchmark's own row is that of its table
        own = table_1.main_table(runs[name], BEST).set_index("method").loc["saga_pf"]
        found = row_of(answer, "saga_pf", BEST, name)
        assert found[["difference", "low", "high"]].tolist() == pytest.approx(own[["difference", "low", "high"]].tolist())
    tables = {name: table_1.main_table(group, BEST) for name, group in runs.items()}
    joint = table_1.joint_table(tables, answer, "miniature", BEST).set_index("method")
    assert "R@1 % birds, ours (miniature)" in joint and joint.loc["InfoNCE + anchor"].filter(like="all benchmarks").tolist() == ["–", "–"]
    shown = joint.loc["SAGA (PF)", "MAP@R − InfoNCE + anchor in points, all benchmarks [95 %], ours (miniature)"]
    assert shown == answers.map_difference(row_of(answer, "saga_pf", BEST)).text()


def test_map_is_drawn_over_classes_and_seeds(tmp_path):
    runs, answer = answer_of(tmp_path, saga_pf=0.7)
    scores = [maps(runs[name]["saga_pf"]) - maps(runs[name]["pf"]) for name in runs]
    found = answers.map_difference(row_of(answer, "saga_pf", "pf"))
    assert found.difference == pytest.approx(100 * np.mean([own.mean() for own in scores]))
    assert found[1:] == pytest.approx(tuple(slow_bootstrap(scores)), abs=1.0)
    assert answers.display_answer(answer).set_index("points of R@1 [95 %]").loc["SAGA (PF) − PF", answers.MAP_HEADING] == found.text()

    # Classes of unequal size weigh by their images, as in the runs' own MAP@R.
    labels = np.repeat(np.arange(20), [19] + [1] + [10] * 18)
    values = samples.map_by_class(runs[BIRDS]["saga_pf"], labels)
    assert values.mean(axis=1) == pytest.approx(np.average(maps(runs[BIRDS]["saga_pf"]), weights=np.bincount(labels), axis=1))
    with pytest.raises(SagaError, match="MAP@R of 20 classes for labels of 5"):
        samples.map_by_class(runs[BIRDS]["saga_pf"], np.repeat(np.arange(5), 40))


def test_runs_without_map_by_class_keep_students_t(tmp_path):
    runs = runs_of(tmp_path, (BIRDS,), by_class=False, saga_pf=0.7)
    for seed, value in enumerate((0.4, 0.5)):
        runs[BIRDS]["saga_pf"][seed].evaluation["map_at_r"] = value
    found = answers.map_difference(row_of(answers.pooled_answer(runs), "saga_pf", "pf"))
    interval = scipy.stats.ttest_1samp([15.0, 25.0], 0).confidence_interval()
    assert found == pytest.approx((20.0, interval.low, interval.high))


# ---------------------------------------------------------------------------------------------------- sentences


@pytest.mark.parametrize(
    ("levels", "said", "unsaid"),
    [
        ({}, ["SAGA (PF) is not distinguishable from PF over 2 benchmarks", "would go unseen", "No sign of room",
              "no claim about the reward, because SAGA (PF) is not above PF itself", "PF + anchor, which needs no language model, is not"],
         ["the gain is the reward's"]),
        ({"saga_pf": 0.8}, ["SAGA (PF) retrieves unseen classes better than PF", "better than InfoNCE + anchor", "the gain is the reward's",
                            "reading contrast (PF) retrieves unseen classes worse than SAGA (PF)", "R@1 above on birds, cars"], []),
        ({"saga_pf": 0.8, "saga_shuffled_in_group": 0.8}, ["the control gains as well", "no gain can be credited to the reward"], []),
        ({"saga_pf": 0.8, "saga_shuffled_in_group": 0.9}, ["the gain is not the reward's"], ["the gain is the reward's"]),
        ({"saga_shuffled_in_group": 0.2}, ["no claim about the reward, because SAGA (PF) is not above PF itself"],
         ["the gain is the reward's"]),
        ({"saga_pf": 0.3, "saga_shuffled_in_group": 0.1}, ["SAGA (PF) retrieves unseen classes worse than PF", "no claim about the reward"],
         ["the gain is the reward's"]),
        ({"saga_pf": 0.7, BEST: 0.9}, ["SAGA (PF) retrieves unseen classes better than PF over",
                                       "SAGA (PF) retrieves unseen classes worse than InfoNCE + anchor",
                                       "InfoNCE + anchor, which needs no language model, is above InfoNCE"], []),
        ({"contrast_infonce": 0.8}, ["reading contrast (InfoNCE) retrieves unseen classes better than InfoNCE + anchor",
                                     "reading contrast (InfoNCE) retrieves unseen classes better than SAGA (InfoNCE)"], []),
        ({"oracle": 0.8}, [
            "Room by R@1 and MAP@R: training with the true attributes in place of rollouts gains", "on PF.",
            "the truth matters, by R@1 and MAP@R",
        ], []),
        ({"oracle": 0.2, "oracle_wrong": 0.8}, ["the truth does worse than falsehood"], []),
        ({"oracle": 0.8, "oracle_wrong": 0.8}, ["Room by", "truth and falsehood are not distinguishable"], []),
        ({"oracle": 0.2}, ["No room: even training with the true attributes"], []),
        ({"pf_long": 0.8}, ["PF, SAGA's wall-clock is above PF", "SAGA (PF) is below PF, SAGA's wall-clock"], []),
        ({"pf_anchor": 0.8}, ["PF + anchor, which needs no language model, is above PF: +"], []),
        ({"saga_pf": (0.95, 0.05)}, ["R@1 above on birds; below on cars. MAP@R above on birds; below on cars."], []),
    ],
)  # fmt: skip
def test_the_answers_sentences_follow_the_intervals(levels, said, unsaid, tmp_path):
    told = " ".join(answers.answer_sentences(answer_of(tmp_path, **levels)[1], "miniature"))
    for part in said:
        assert part in told, told
    for part in unsaid:
        assert part not in told, told
    assert "2 seeds: the intervals cover the choice of families of classes (queries, where there are none) and seeds." in told
    assert told.endswith("60 intervals of R@1, and of MAP@R, of 95 %: about one in twenty excludes 0 by chance.")


def test_whether_the_truth_matters_is_told_by_either_metric():
    none, above = answers.Interval(0.0, -1.0, 1.0), answers.Interval(2.0, 1.0, 3.0)
    pairs = {("oracle", "pf"): above, ("oracle_wrong", "pf"): none, ("oracle", "oracle_wrong"): above}
    found = {pair: answers.Found(none, of_map) for pair, of_map in pairs.items()}
    assert answers._about_room(found, "oracle", "pf")[1].endswith("the truth matters, by MAP@R.")


def test_metrics_that_differ_are_both_told():
    up, open_, down = Interval(2, 1, 3), Interval(0, -1, 1), Interval(-2, -3, -1)
    assert answers.Found(up, up).verdict() == "above" and answers.Found(open_, Interval(1.0)).verdict() == "not distinguishable from"
    assert answers.Found(open_, up).verdict() == "by MAP@R above and by R@1 not distinguishable from"
    assert answers.Found(up, down).verdict() == "by MAP@R below and by R@1 above"
    pairs = {("saga_pf", "pf"): (open_, up), ("c", "pf"): (down, down), ("saga_pf", "c"): (up, open_)}
    found = {pair: answers.Found(*both) for pair, both in pairs.items()}
    (told,) = answers._about_reward(found, "c", "pf")
    assert "this stays open" in told and "above PF by MAP@R" in told, "by R@1 the control is beaten, but there SAGA gains nothing"


def test_an_answer_without_the_methods_it_is_about_says_so(tmp_path):
    runs = {BIRDS: {"pf": [make_run(tmp_path, "pf")], "pa": [make_run(tmp_path, "pa")]}}
    alone = {BIRDS: {"pf": runs[BIRDS]["pf"]}}
    for some in (runs, alone):
        answer = answers.pooled_answer(some)
        assert "there is nothing to answer" in answers.answer_sentences(answer, "miniature", "pf")[0]
        assert len(figures.answer_forest(answer, "answer").axes) == 1 and answers.display_answer(answer).empty
        strict = robustness.robustness_table(some, LABELS, answer)
        units, shares = robustness.heterogeneity(strict), rooms.shares_of_table_1(some, answer, "miniature")
        for shown in (robustness.display_robustness(strict), robustness.display_heterogeneity(units), rooms.display_shares(shares)):
            assert shown.empty and len(shown.columns) == 1
        told = robustness.robustness_sentences(strict, "miniature", "pf") + rooms.share_sentences(shares)
        assert told + robustness.heterogeneity_sentences(units, "miniature", "pf") == []
    joint = table_1.joint_table({BIRDS: table_1.main_table(alone[BIRDS], "pf")}, answer, "miniature", "pf")
    assert joint.filter(like="all benchmarks").iloc[0].tolist() == ["–", "–"]


def test_a_method_that_one_benchmark_lacks_is_not_pooled_and_says_why(tmp_path):
    runs = runs_of(tmp_path)
    del runs[CARS]["pf_long"]
    pooled = samples.of_all_benchmarks(runs)
    assert "pf_long" not in pooled[BIRDS] and set(pooled[BIRDS]) == set(runs[CARS])
    assert samples.of_all_benchmarks({}) == {}
    answer = answers.pooled_answer(pooled)
    assert "pf_long" not in set(answer["method"]) | set(answer["against"]) and "saga_pf" in set(answer["method"])
    whole = {name: table_1.main_table(group, BEST) for name, group in runs.items()}
    joint = table_1.joint_table(whole, answer, "miniature", BEST, left_out={CARS: {"pf_long": "with --full"}})
    row = joint.set_index("method").loc["PF, SAGA's wall-clock"]
    assert row["#"] == len(joint) == len(runs[BIRDS]), "below those that all have"
    own = whole[BIRDS].set_index("method").loc["pf_long", "R@1"]
    assert row["R@1 % birds, ours (miniature)"].startswith(f"{own:.1f}") and row["R@1 % cars, ours (miniature)"] == "with --full"
    assert set(row.filter(like="all benchmarks")) == {"–"} and row["seeds"] == "2/0"


def test_what_must_not_be_pooled_is_refused(tmp_path):
    runs = runs_of(tmp_path)
    del runs[CARS]["oracle"]
    with pytest.raises(SagaError, match="miniature_cars lacks oracle"):
        answers.pooled_answer(runs)
    runs[CARS]["oracle"] = [on(make_run(tmp_path / "old", "oracle", seed, code="old"), CARS) for seed in (0, 1)]
    with pytest.raises(SagaError, match="more than one code version"):
        answers.pooled_answer(runs)
    with pytest.raises(SagaError, match="no benchmark to pool"):
        answers.pooled_answer({})


# ------------------------------------------------------------------------------------------- stricter intervals


def strict_of(runs, answer):
    table = robustness.robustness_table(runs, {name: CLASSES for name in runs}, answer)
    own = table[(table["method"] == "saga_pf") & (table["against"] == "pf")]
    return table, own.set_index(["benchmark", "metric", "drawn"]).sort_index()


def test_looser_intervals_stand_beside_the_answers(tmp_path, families_of_four):
    runs, answer = answer_of(tmp_path, saga_pf=0.7)
    table, saga = strict_of(runs, answer)
    for name in (*runs, samples.POOLED):
        of_answer = row_of(answer, "saga_pf", "pf", name)
        for metric, own, ways in (("R@1", Interval.of(of_answer), 4), ("MAP@R", answers.map_difference(of_answer), 3)):
            assert Interval.of(saga.loc[name, metric, robustness.FAMILIES]) == pytest.approx(own)
            assert saga.loc[(name, metric)]["difference"].tolist() == pytest.approx([own.difference] * ways)

    # Student's t over the seeds, against SciPy's own.
    one = runs[BIRDS]
    differences = [100 * (a.hits.mean() - b.hits.mean()) for a, b in zip(one["saga_pf"], one["pf"], strict=True)]
    interval = scipy.stats.ttest_1samp(differences, 0).confidence_interval()
    ours = saga.loc[BIRDS, "R@1", robustness.SEEDS]
    assert (ours["low"], ours["high"]) == pytest.approx((interval.low, interval.high))

    shown = robustness.display_robustness(table)
    assert len(shown) == len(answers.display_answer(answer)) and "MAP@R, families and seeds" in shown
    told = robustness.robustness_sentences(table, "miniature", BEST)
    assert told[0].startswith("SAGA (PF) − PF, all benchmarks: R@1 +") and "(families and seeds)" in told[0]
    assert sum(line.startswith("SAGA (PF) − PF,") for line in told) == 1 and any("InfoNCE + anchor" in line for line in told)
    with pytest.raises(SagaError, match="20 labels for 200 queries"):
        robustness.robustness_table(runs, {name: np.arange(20) for name in runs}, answer)


def test_classes_and_families_share_their_fate(tmp_path, families_of_four):
    """Families that rise or fall as one must look less certain than their classes, and these than their queries."""
    runs = runs_of(tmp_path, (BIRDS,))
    family = samples.families(BIRDS, CLASSES)
    assert sorted(set(family)) == [0, 1, 2, 3, 4], "twenty classes in families of four"
    for by, rising in (("class", CLASSES % 2 == 0), ("family", family < 3)):
        for run in runs[BIRDS]["saga_pf"]:
            with_classes(run, rising)
        for run in runs[BIRDS]["pf"]:
            with_classes(run, ~rising)
        fresh = {BIRDS: {method: [Run(run.folder, run.config) for run in group] for method, group in runs[BIRDS].items()}}
        rows = strict_of(fresh, answers.pooled_answer(fresh, labels=LABELS))[1].loc[BIRDS]
        widths = rows["high"] - rows["low"]
        for metric in ("R@1", "MAP@R"):
            of = widths[metric]
            if metric == "R@1":
                assert of[robustness.CLASSES] > 2 * of[robustness.QUERIES]
            assert by == "class" or of[robustness.FAMILIES] > 1.5 * of[robustness.CLASSES]
    assert samples.families("cub200", CLASSES) is not None and (samples.families("cub200", CLASSES) == CLASSES).all()


def test_families_are_drawn_as_wholes(tmp_path, families_of_four):
    runs, answer = answer_of(tmp_path, saga_pf=0.7)
    family = np.arange(20) // 4
    scores = [maps(runs[name]["saga_pf"]) - maps(runs[name]["pf"]) for name in runs]
    rng, means = np.random.default_rng(3), []
    for _ in range(3000):
        drawn = []
        for own in scores:
            seeds, chosen = rng.integers(2, size=2), rng.integers(5, size=5)
            drawn.append(sum(own[seeds][:, family == one].sum(axis=1).mean() for one in chosen) / 20)
        means.append(np.mean(drawn))
    ours = Interval.of(strict_of(runs, answer)[1].loc[samples.POOLED, "MAP@R", robustness.FAMILIES])
    assert answers.map_difference(row_of(answer, "saga_pf", "pf")) == ours
    of_family = [np.stack([own[:, family == one].sum(axis=1) for one in range(5)], axis=1) * 5 / 20 for own in scores]
    factor = students_factor([(own, np.zeros_like(own)) for own in of_family], np.std(means))
    ends = ours.difference + factor * (100 * np.quantile(means, [0.025, 0.975]) - ours.difference)
    assert ours[1:] == pytest.approx(tuple(ends), abs=1.2)


def test_photographs_have_no_families(tmp_path):
    runs = {"cub200": {m: [on(g, "cub200") for g in group] for m, group in runs_of(tmp_path, (BIRDS,))[BIRDS].items()}}
    table = robustness.robustness_table(runs, {"cub200": CLASSES}, answers.pooled_answer(runs))
    assert set(table["drawn"]) == {robustness.QUERIES, robustness.CLASSES, robustness.SEEDS}


def test_one_seed_has_no_interval_over_seeds(tmp_path):
    runs = runs_of(tmp_path, (BIRDS,), seeds=(0,), by_class=False, saga_pf=0.7)
    answer = answers.pooled_answer(runs)
    table = robustness.robustness_table(runs, LABELS, answer)
    assert table[table["drawn"] == robustness.SEEDS]["low"].isna().all()
    assert set(table.loc[table["metric"] == "MAP@R", "drawn"]) == {robustness.SEEDS}, "MAP@R as a whole has no other interval"
    told = " ".join(robustness.robustness_sentences(table, "miniature", BEST) + answers.answer_sentences(answer, "miniature"))
    assert "nan" not in robustness.display_robustness(table).to_string() + told + answers.display_answer(answer).to_string()
    assert "both ways agree" in told and "(queries, where there are none) only, not the variation between seeds" in told
    assert robustness.heterogeneity(table).empty, "one benchmark says nothing of others"


# ---------------------------------------------------------------------------------------------- benchmarks as units


def by_hand(differences, variances):
    """DerSimonian and Laird's tau² and Hartung and Knapp's interval, one number at a time."""
    k = len(differences)
    w = [1 / v for v in variances]
    fixed = sum(a * d for a, d in zip(w, differences, strict=True)) / sum(w)
    q = sum(a * (d - fixed) ** 2 for a, d in zip(w, differences, strict=True))
    tau2 = max(0, (q - (k - 1)) / (sum(w) - sum(a * a for a in w) / sum(w)))
    w = [1 / (v + tau2) for v in variances]
    mean = sum(a * d for a, d in zip(w, differences, strict=True)) / sum(w)
    spread = sum(a * (d - mean) ** 2 for a, d in zip(w, differences, strict=True)) / (k - 1)
    margin = scipy.stats.t.isf(0.025, k - 1) * (max(1, spread) / sum(w)) ** 0.5
    return mean, mean - margin, mean + margin, tau2**0.5, q, scipy.stats.chi2(k - 1).sf(q), max(0, (q - k + 1) / q)


@pytest.mark.parametrize(
    ("differences", "variances"),
    [([1.3, 1.6, 2.6, -2.3], [0.3, 0.26, 0.28, 1.0]), ([5.0, 5.1], [1.0, 2.0]), ([0.1, 8.0, -4.0], [0.5, 0.1, 3.0])],
)
def test_random_effects_equal_the_formulas(differences, variances):
    found = robustness.random_effects(differences, variances)
    assert (*found.mean, found.tau, found.q, found.p, found.i2) == pytest.approx(by_hand(differences, variances), rel=1e-12)
    assert found.benchmarks == len(differences)
    lone = scipy.stats.norm.isf(0.025) / sum(1 / v for v in variances) ** 0.5
    assert found.mean.high - found.mean.difference > lone, "never surer than if benchmarks did not differ"


def test_benchmarks_of_equal_variance_that_differ_much_have_the_t_interval_of_their_differences():
    differences = [1.0, 4.0, -3.0, 8.0]
    found, interval = robustness.random_effects(differences, [0.2] * 4), scipy.stats.ttest_1samp(differences, 0).confidence_interval()
    assert found.mean == pytest.approx((2.5, interval.low, interval.high))


def test_the_first_study_depended_on_the_benchmark():
    """SAGA − PF of the study of November 2026, whose interval over fixed benchmarks was +0.8 [+0.1, +1.5]."""
    rows = [(1.270833, 0.2395833, 2.395833), (1.5625, 0.5729167, 2.552083), (2.635417, 1.625, 3.6875), (-2.271412, -4.210069, -0.2170139)]
    found = robustness.random_effects([row[0] for row in rows], [((high - low) / (2 * 1.959964)) ** 2 for _, low, high in rows])
    assert found.q == pytest.approx(18.7, abs=0.15) and found.i2 == pytest.approx(0.84, abs=0.005) and found.p < 1e-3
    alike = scipy.stats.ttest_1samp([row[0] for row in rows], 0)  # the four weighing the same
    assert alike.confidence_interval().high - 0.8 == pytest.approx(3.4, abs=0.05)
    assert found.mean.difference == pytest.approx(1.0, abs=0.05) and found.mean.low < 0 < found.mean.high
    assert found.mean.high - found.mean.difference == pytest.approx(3.15, abs=0.05), "benchmarks that are known better weigh more"


def test_nothing_is_said_of_other_benchmarks_where_nothing_can_be():
    for variances in ([1.0, 0.0], [1.0, float("nan")], [1.0]):
        found = robustness.random_effects([1.0, 3.0][: len(variances)], variances)
        assert found.mean.side() is None and np.isnan([found.q, found.i2, found.tau, found.p]).all()
    assert robustness.random_effects([1.0, 3.0], [0.0, 0.0]).mean.difference == 2.0


@pytest.mark.parametrize(
    ("levels", "said"),
    [
        ({"saga_pf": (0.95, 0.05)}, "the sign depends on the benchmark: above 0 on birds, below on cars"),
        ({"saga_pf": (0.95, 0.52)}, "the benchmarks differ, and the sign of another one is open"),
        ({"saga_pf": (0.52, 0.55)}, "the sign of another benchmark is open"),
    ],
)
def test_sentences_say_where_the_sign_depends_on_the_benchmark(levels, said, tmp_path, monkeypatch):
    in_families(monkeypatch, 2)
    runs, answer = answer_of(tmp_path, seeds=(0, 1, 2), **levels)
    units = robustness.heterogeneity(strict_of(runs, answer)[0])
    told = robustness.heterogeneity_sentences(units, "miniature", BEST)
    own = [line for line in told if line.startswith("SAGA (PF) − PF, ")]
    assert len(own) == 1 and said in own[0] and "R@1" in own[0] and "MAP@R" in own[0], told
    row = units[(units["method"] == "saga_pf") & (units["against"] == "pf") & (units["metric"] == "R@1")].iloc[0]
    assert row["drawn"] == robustness.FAMILIES and row["pooled"] == pytest.approx(row_of(answer, "saga_pf", "pf")["difference"])
    own = [row_of(answer, "saga_pf", "pf", name)["difference"] for name in runs]
    alike = scipy.stats.ttest_1samp(own, 0).confidence_interval()
    assert (row["pooled low"], row["pooled high"]) == pytest.approx((alike.low, alike.high))
    shown = robustness.display_heterogeneity(units)
    assert len(shown) == len(units) and "nan" not in shown.to_string()


def test_a_size_that_depends_on_the_benchmark_is_not_called_a_sign():
    row = {"metric": "R@1", "difference": 3.0, "low": 1.0, "high": 5.0, "above": "a, b", "below": ""}
    row |= {"Q": 20.0, "df": 3, "p": 1e-5, "I2": 0.85}
    assert robustness._dependence(row) == "R@1 +3.0 [+1.0, +5.0] (Q 20.0 on 3 df, p < 0.0001, I² 0.85), the size depends on the benchmark"
    assert robustness._dependence(row | {"I2": 0.2, "p": 0.2}).endswith("p 0.2, I² 0.20), the benchmarks agree as far as can be told")


# ------------------------------------------------------------------------------------------------- share of the room


def test_the_share_of_the_room_is_a_ratio_of_means_drawn_together(tmp_path):
    runs, answer = answer_of(tmp_path, saga_pf=0.65, oracle=(0.8, 0.9))
    table = rooms.shares_of_table_1(runs, answer, "miniature")
    for metric, read in (("R@1", samples.clustered_hits), ("MAP@R", maps)):
        sides = {m: [read(runs[name][m]).astype(float) for name in runs] for m in ("saga_pf", "pf", "oracle")}
        rng, ratios = np.random.default_rng(5), []
        for _ in range(3000):
            gain = total = 0.0
            for number in range(2):
                seeds, units = (rng.integers(size, size=size) for size in sides["pf"][number].shape)
                drawn = {m: of[number][seeds][:, units].mean() for m, of in sides.items()}
                gain, total = gain + drawn["saga_pf"] - drawn["pf"], total + drawn["oracle"] - drawn["pf"]
            ratios.append(gain / total)
        of = table[(table["method"] == "saga_pf") & (table["metric"] == metric)].set_index("benchmark")
        levels = {m: sum(own.mean() for own in of_one) for m, of_one in sides.items()}
        gain, total = (levels[m] - levels["pf"] for m in ("saga_pf", "oracle"))
        found = Interval.of(of.loc[samples.POOLED], "share")
        assert found.difference == pytest.approx(gain / total)
        share = gain / total
        linear = [
            (saga - pf - share * (oracle - pf), np.zeros_like(pf))
            for saga, pf, oracle in zip(sides["saga_pf"], sides["pf"], sides["oracle"], strict=True)
        ]
        spread = np.std(ratios) * total / 2  # of the linear part, to first order
        ends = share + students_factor(linear, spread) * (np.quantile(ratios, [0.025, 0.975]) - share)
        assert found[1:] == pytest.approx(tuple(ends), abs=0.02)
        assert found.high - found.low < (of.loc[BIRDS, "share high"] - of.loc[BIRDS, "share low"])
    told = rooms.share_sentences(table)
    assert told[0].startswith("SAGA (PF) collects of the oracle's room over PF: ") and " % [" in told[0] and "by MAP@R." in told[0]
    assert "no room seen by R@1, no room seen by MAP@R" in next(line for line in told if "SAGA (InfoNCE)" in line)
    shown = rooms.display_shares(table).set_index(["share of the oracle's room [95 %]", "metric"])
    assert shown.loc[("SAGA (InfoNCE)", "R@1"), "over"] == "InfoNCE + anchor"
    assert set(shown.loc[("reading contrast (InfoNCE)", "MAP@R")][[BIRDS, CARS, samples.POOLED]]) == {rooms.NO_ROOM}
    assert "nan" not in shown.to_string()


def test_a_room_that_its_interval_leaves_open_is_none(tmp_path):
    runs, answer = answer_of(tmp_path, saga_pf=0.65, oracle=(0.8, 0.5))
    table = rooms.shares_of_table_1(runs, answer, "miniature").set_index(["method", "benchmark", "metric"])
    of_cars = table.loc[("saga_pf", CARS, "R@1")]
    assert np.isnan(of_cars["share"]) and rooms.share_text(of_cars) == "no room seen"
    assert table.loc[("saga_pf", BIRDS, "R@1"), "share"] > 0 and table.loc[("saga_pf", samples.POOLED, "R@1"), "room low"] > 0


def test_a_share_without_what_could_be_drawn_has_no_interval(tmp_path):
    runs = runs_of(tmp_path, (BIRDS,), by_class=False, oracle=0.9)
    for method, values in {"saga_pf": (0.31, 0.29), "pf": (0.2, 0.2), "oracle": (0.6, 0.6)}.items():
        for run, value in zip(runs[BIRDS][method], values, strict=True):
            run.evaluation["map_at_r"] = value
    table = rooms.shares_of_table_1(runs, answers.pooled_answer(runs), "miniature").set_index(["method", "benchmark", "metric"])
    assert rooms.share_text(table.loc[("saga_pf", samples.POOLED, "MAP@R")]) == "25 %"
    assert "[" in rooms.share_text(table.loc[("saga_pf", samples.POOLED, "R@1")])


# -------------------------------------------------------------------------------------------------------- the figure


def test_the_forest_shows_both_metrics_in_groups_and_no_label_hides_another(tmp_path):
    answer = answer_of(tmp_path, seeds=(0, 1, 2), saga_pf=0.7, oracle_wrong=0.01)[1]
    figure = figures.answer_forest(answer, "answer")
    assert [axis.get_xlabel()[:20] for axis in figure.axes] == ["difference of R@1 (p", "difference of MAP@R "]
    figure.canvas.draw()
    left = figure.axes[0]
    labels = [text for text in left.get_yticklabels() if text.get_text()]
    heads = [text for text in left.texts if text.get_fontweight() == "bold"]
    assert len(labels) == len(answers.display_answer(answer)) and {text.get_text() for text in heads} == {
        answers.BEST_GROUP, "on PF", "on InfoNCE", answers.CONTROL_GROUP
    }  # fmt: skip
    boxes = [text.get_window_extent() for text in labels]
    assert all(one.y0 >= other.y1 or one.y1 <= other.y0 for n, one in enumerate(boxes) for other in boxes[:n])
    arrows = [text.get_text() for text in left.texts if text not in heads]
    assert len(arrows) == 2 and all("[" in text for text in arrows), "what is off the scale is a number at the edge"
    places = [text.get_window_extent() for text in heads]
    assert all(not box.overlaps(place) for box in boxes for place in places)


def test_a_table_without_map_has_one_panel(tmp_path):
    answer = answers.pooled_answer(runs_of(tmp_path, (BIRDS,), by_class=False))
    answer = answer.drop(columns=["MAP@R", "MAP@R low", "MAP@R high"]).assign(**{"MAP@R": np.nan})
    assert len(figures.answer_forest(answer, "answer").axes) == 1
