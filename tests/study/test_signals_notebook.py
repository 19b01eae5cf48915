"""Notebook 20: what each signal adds, its share of the oracle's room and its cost, against slow computations; absent rows, one seed."""

import json
from dataclasses import replace

import numpy as np
import pytest
from test_bootstrap import students_factor
from test_comparisons import AIRCRAFT, BIRDS, empty, only, slow_bootstrap
from test_tables import QUERIES, make_run

from saga_lib.common.errors import SagaError
from saga_lib.records import Run
from saga_study.design import tables
from saga_study.design.cells import Cell
from saga_study.design.tables import TABLE_RUNS, WITH_FULL
from saga_study.findings import differences, figures, rooms, signals
from saga_study.findings.samples import POOLED
from saga_study.methods import METHODS, Profile, baseline_of, make_config
from saga_study.study import listing
from saga_study.study.notebooks import NOTEBOOKS
from saga_study.study.plan import Plan

CLASSES = 40
# R@1 and MAP@R of each row; equal levels are the same hits and precisions.
LEVELS = {
    "pf": 0.5, "saga_pf": 0.6, "contrast_pf": 0.75, "oracle": 0.8, "contrast_permuted": 0.5, "contrast_labels": 0.5, "contrast_head": 0.5,
    "distilled_readings": 0.55,
}  # fmt: skip


def cell(folder, method, dataset=BIRDS, level=0.5, seeds=(0, 1), seconds=1.0, by_class=True, **evaluation):
    """Return a cell whose runs have the same underlying draws as every other method's: a higher level hits more of the same queries."""
    config, runs = replace(make_config("miniature", dataset, method, 0), seed=0), []
    for seed in seeds:
        run = make_run(folder / dataset / method, method, seed, level=level)
        rng = np.random.default_rng([seed, len(dataset)])
        hits, precisions = rng.uniform(size=QUERIES) < level, np.clip(rng.uniform(-0.3, 0.3, CLASSES) + level, 0, 1)
        record = json.loads((run.folder / "evaluation.json").read_text()) | evaluation
        record |= {"hits_at_1": "".join("01"[int(hit)] for hit in hits), "map_at_r": float(precisions.mean())}
        record["recall"]["1"] = float(hits.mean())
        record |= {"map_at_r_by_class": precisions.tolist()} if by_class else {}
        (run.folder / "evaluation.json").write_text(json.dumps(record))
        steps = [{"step": n + 1, "seconds_a": 0.25 * seconds, "seconds_c": 0.75 * seconds, "seconds_audit": 9.0} for n in range(30)]
        (run.folder / "metrics.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps))
        runs.append(Run(run.folder, replace(config, seed=seed)))
    return Cell(config, tuple(runs))


@pytest.fixture
def filled(tmp_path):
    """Rows of two benchmarks; two of them wait for --full, one is there on birds alone."""
    cells = [
        cell(tmp_path, method, dataset, level, seconds=2.0 if method == "saga_pf" else 1.0)
        for dataset in (BIRDS, AIRCRAFT) for method, level in LEVELS.items() if (method, dataset) != ("distilled_readings", AIRCRAFT)
    ]  # fmt: skip
    cells.append(empty("distilled_readings", AIRCRAFT))
    return [*cells, *(empty("grpo_wrong", dataset) for dataset in (BIRDS, AIRCRAFT))]


def scores(cells, method, dataset, name):
    (one,) = [one for one in cells if (one.config.method, one.config.dataset) == (method, dataset)]
    values = [run.hits.reshape(20, -1).mean(1) if name == "R@1" else run.evaluation["map_at_r_by_class"] for run in one.runs]
    return np.stack(values).astype(float)  # twenty classes, all of one family: classes are drawn


# --------------------------------------------------------------------------------------------------- rows


def test_every_row_of_the_table_of_signals_has_its_group():
    grouped = [method for methods in signals.GROUPS.values() for method in methods]
    assert len(grouped) == len(set(grouped)) and set(TABLE_RUNS["signals"].methods) == set(grouped)
    for pair in signals.PAIRS:
        assert set(pair) <= set(METHODS) and signals.group_of(pair[0]) in signals.LABEL_FREE
    assert {pair[0] for pair in signals.PAIRS if pair[1] == "saga_pf"} == {
        method for group in signals.LABEL_FREE for method in signals.GROUPS[group] if method != "saga_pf"
    }
    assert baseline_of("miniature", "pf") in signals.GROUPS[signals.ALONE]
    truth = [m for m in grouped if METHODS[m].settings.get("anchor") == "truth" or METHODS[m].settings.get("language_signal") == "oracle"]
    assert set(truth) == set(signals.GROUPS[signals.REFERENCE]), "what knows the truth is a reference, no signal without labels"


def test_differences_and_their_intervals_are_those_of_other_tables(filled):
    table = signals.signal_table(filled, "pf")
    assert set(differences.DIFFERENCES) <= set(table) and set(table["against"]) == {"pf"}
    plain = differences.differences(filled, {("saga_pf", "pf"): "SAGA"})
    for place in (BIRDS, AIRCRAFT, POOLED):
        row, other = only(table, method="saga_pf", benchmark=place), only(plain, benchmark=place)
        assert row[["difference", "low", "high"]].tolist() == pytest.approx(other[["difference", "low", "high"]].tolist())
        places = (BIRDS, AIRCRAFT) if place == POOLED else (place,)
        gains = [scores(filled, "saga_pf", name, "MAP@R") - scores(filled, "pf", name, "MAP@R") for name in places]
        assert row["MAP@R difference"] == pytest.approx(100 * np.mean([one.mean() for one in gains]))
        assert [row["MAP@R difference low"], row["MAP@R difference high"]] == pytest.approx(slow_bootstrap(gains), abs=0.8)
    base = only(table, method="pf", benchmark=BIRDS)
    assert np.isnan(base["difference"]) and base["seeds"] == 2
    assert base["R@1"] == pytest.approx(100 * scores(filled, "pf", BIRDS, "R@1").mean())


def slow_shares(filled, method, name, places, samples=2000):
    rng, drawn = np.random.default_rng(3), []
    gains = {m: [scores(filled, m, p, name) - scores(filled, "pf", p, name) for p in places] for m in (method, "oracle")}
    for _ in range(samples):
        means = {m: [] for m in gains}
        for place in range(len(places)):
            seeds, units = (rng.integers(size, size=size) for size in gains["oracle"][place].shape)
            for m in gains:
                means[m].append(gains[m][place][seeds][:, units].mean())
        drawn.append(np.mean(means[method]) / np.mean(means["oracle"]))
    room = np.mean([one.mean() for one in gains["oracle"]])
    ratio = np.mean([one.mean() for one in gains[method]]) / room
    linear = [(own - ratio * oracle, np.zeros_like(own)) for own, oracle in zip(gains[method], gains["oracle"], strict=True)]
    factor = students_factor(linear, np.std(drawn) * room)
    return [ratio, *(ratio + factor * (np.quantile(drawn, [0.025, 0.975]) - ratio))]


@pytest.mark.parametrize("name", rooms.SCORES)
def test_a_share_is_of_the_same_draws_as_the_room(filled, name):
    table = signals.signal_table(filled, "pf")
    for place, places in ((BIRDS, [BIRDS]), (POOLED, [BIRDS, AIRCRAFT])):
        row = only(table, method="contrast_pf", benchmark=place)
        found = [row[f"{name} share"], row[f"{name} share low"], row[f"{name} share high"]]
        assert found == pytest.approx(slow_shares(filled, "contrast_pf", name, places), abs=0.03)
        assert only(table, method="oracle", benchmark=place)[f"{name} share"] == pytest.approx(1)
        assert only(table, method="oracle", benchmark=place)[f"{name} share low"] == pytest.approx(1)


def test_seconds_leave_audits_out_and_a_gain_is_per_minute_of_training(filled):
    table = signals.signal_table(filled, "pf")
    row = only(table, method="saga_pf", benchmark=BIRDS)
    assert row["seconds per step"] == pytest.approx(2.0)
    assert row["MAP@R per minute"] == pytest.approx(row["MAP@R difference"] / (2.0 * 30 / 60))
    assert only(table, method="pf", benchmark=BIRDS)["seconds per step"] == pytest.approx(1.0)


def test_a_log_without_laps_gives_its_seconds_by_difference(filled):
    run = filled[0].runs[0]
    (run.folder / "metrics.jsonl").write_text("".join(json.dumps({"seconds": 3.0 * n + 5}) + "\n" for n in range(9)))
    assert signals.step_seconds(Run(run.folder, run.config)) == pytest.approx(3.0)


def test_a_row_without_runs_says_why_and_is_not_pooled(filled):
    table = signals.signal_table(filled, "pf")
    row = only(table, method="grpo_wrong", benchmark=BIRDS)
    assert row["absent"] == WITH_FULL and row["seeds"] == 0 and np.isnan(row["difference"]) and np.isnan(row["MAP@R share"])
    assert not ((table["method"] == "grpo_wrong") & (table["benchmark"] == POOLED)).any()
    assert not ((table["method"] == "distilled_readings") & (table["benchmark"] == POOLED)).any(), "one of two benchmarks"
    shown = signals.display_signals(table, "miniature", "pf", BIRDS).set_index("signal")
    assert shown.loc["SAGA, wrong answers only", "R@1 % (seeds) ours (miniature)"] == WITH_FULL
    assert "nan" not in shown.to_string()


def test_where_the_oracle_gains_nothing_there_is_no_room(tmp_path):
    cells = [cell(tmp_path, method, level=level) for method, level in (("pf", 0.5), ("saga_pf", 0.6), ("oracle", 0.5))]
    table = signals.signal_table(cells, "pf")
    assert table[[f"{name} share" for name in rooms.SCORES]].isna().all(axis=None)
    shown = signals.display_signals(table, "miniature", "pf").set_index("signal")
    assert (shown.loc["SAGA (PF)", [f"share of the oracle's room, {name} [95 %]" for name in rooms.SCORES]] == rooms.NO_ROOM).all()
    assert shown.loc["PF", "share of the oracle's room, R@1 [95 %]"] == "–"
    told = " ".join(signals.signal_sentences(table, signals.scored(cells, signals.PAIRS), "pf"))
    assert "The oracle itself is not above the base" in told


def test_records_without_precisions_by_class_have_students_t_and_shares_without_interval(tmp_path):
    levels = {"pf": 0.5, "saga_pf": 0.6, "oracle": 0.8}
    cells = [cell(tmp_path, method, level=level, by_class=False) for method, level in levels.items()]
    row = only(signals.signal_table(cells, "pf"), method="saga_pf")
    gains = [100 * (a.evaluation["map_at_r"] - b.evaluation["map_at_r"]) for a, b in zip(cells[1].runs, cells[0].runs, strict=True)]
    room = [100 * (a.evaluation["map_at_r"] - b.evaluation["map_at_r"]) for a, b in zip(cells[2].runs, cells[0].runs, strict=True)]
    assert row["MAP@R difference"] == pytest.approx(np.mean(gains)) and row["MAP@R difference low"] <= np.mean(gains)
    assert row["MAP@R share"] == pytest.approx(np.mean(gains) / np.mean(room)) and np.isnan(row["MAP@R share low"])
    assert row["R@1 share low"] < row["R@1 share"] < row["R@1 share high"]


def test_seeds_that_only_one_method_has_are_left_out(tmp_path):
    one, other = cell(tmp_path, "saga_pf", level=0.6, seeds=(0, 1, 2)), cell(tmp_path, "pf", seeds=(1, 2, 3))
    kept = rooms.seeds_in_common(one.runs, other.runs)
    assert [[run.config.seed for run in runs] for runs in kept] == [[1, 2], [1, 2]]
    expected = np.mean([a.hits.mean() - b.hits.mean() for a, b in zip(*kept, strict=True)])
    assert rooms.points_between([(one.runs, other.runs)], "R@1").difference == pytest.approx(100 * expected)
    assert rooms.points_between([], "R@1").side() is None and rooms.points_between([(one.runs, ())], "MAP@R").side() is None
    with pytest.raises(SagaError, match="has no run of oracle"):
        rooms.shares_of_room({BIRDS: {"saga_pf": one.runs, "pf": other.runs}}, ["saga_pf"], "pf", "oracle", "R@1")


# ------------------------------------------------------------------------------------------------ sentences


def told_of(cells, base="pf"):
    return signals.signal_sentences(signals.signal_table(cells, base), signals.scored(cells, signals.PAIRS), base)


def test_the_sentences_follow_the_intervals(filled):
    told = "\n".join(told_of(filled))
    assert "Readings, R@1 against PF on all benchmarks. Above it: reading contrast (PF)." in told
    assert "Controls, MAP@R against PF on all benchmarks. Not distinguishable from it: reading contrast, permuted model; reading" in told
    assert "Of 2 signals without attribute labels, reading contrast (PF) has the largest difference of MAP@R, above 0" in told
    assert "Reading contrast − SAGA: +" in told and "above SAGA in R@1, above SAGA in MAP@R" in told
    assert "With the model's weights permuted: 0.0 [0.0, 0.0] R@1" in told and "R@1 collapses, MAP@R collapses." in told
    assert signals.DIFFERS in told and "Not here, with --full: SAGA, wrong answers only (birds, aircraft)" in told
    assert "the intervals cover the choice of families of classes (queries, where there are none) and seeds." in told


@pytest.mark.parametrize(
    ("levels", "said"),
    [
        ({"contrast_permuted": 0.75}, "R@1 keeps the gain, MAP@R keeps the gain."),
        ({"contrast_permuted": 0.65}, "R@1 keeps a part of the gain, MAP@R keeps a part of the gain."),
        ({"contrast_permuted": 0.3}, "R@1 collapses, and harms, MAP@R collapses, and harms."),
        ({"contrast_pf": 0.5}, "Reading contrast against PF: 0.0 [0.0, 0.0] R@1, 0.0 [0.0, 0.0] MAP@R; not told from 0, so that its "
         "controls say nothing."),
        ({"saga_pf": 0.9}, "below SAGA in R@1, below SAGA in MAP@R"),
    ],
)  # fmt: skip
def test_controls_are_judged_by_what_is_left_and_what_is_lost(levels, said, tmp_path):
    cells = [cell(tmp_path, method, level=level) for method, level in (LEVELS | levels).items()]
    told = " ".join(told_of(cells))
    assert said in told, told
    if "say nothing" in said:
        assert "With the model's weights permuted" not in told


def test_a_study_of_one_seed_on_one_benchmark_works(tmp_path):
    cells = [cell(tmp_path, method, level=level, seeds=(0,)) for method, level in LEVELS.items()]
    cells += [empty(method) for method in TABLE_RUNS["signals"].methods if method not in LEVELS]
    table = signals.signal_table(cells, "pf")
    assert signals.main_place(table) == BIRDS and signals.places(table) == {BIRDS: BIRDS}
    assert len(signals.display_signals(table, "miniature", "pf")) == len(TABLE_RUNS["signals"].methods)
    assert any("only, not the variation between seeds." in line for line in told_of(cells))
    pairs = signals.scored(cells, signals.PAIRS)
    assert signals.display_pairs(pairs).set_index("difference").loc["reading contrast − own descriptions"].iloc[0] == WITH_FULL
    assert len(figures.interval_rows(pairs, "pairs").axes) == 1
    (axis,) = figures.signal_costs(table, list(signals.GROUPS), signals.CONTROLS, "costs").axes
    names = {text.get_text() for text in axis.texts}
    assert names == {METHODS[method].label for method in LEVELS if method != "pf"}, "every compared row is named"
    heights = sorted(text.xyann[1] for text in axis.texts)
    assert min(np.diff(heights)) > 0.05 and 0 <= heights[0] and heights[-1] <= 1, "names do not lie on each other"


@pytest.mark.parametrize("case", ["nothing", "no runs", "no base", "no oracle"])
def test_tables_of_which_little_is_known_are_drawn_too(case, tmp_path):
    methods = {"nothing": (), "no runs": (), "no base": ("saga_pf", "oracle"), "no oracle": ("pf", "saga_pf")}[case]
    cells = [cell(tmp_path, method, level=LEVELS[method]) for method in methods]
    cells += [empty(method) for method in ("pf", "saga_pf", "oracle") if case == "no runs"]
    table, pairs = signals.signal_table(cells, "pf"), signals.scored(cells, signals.PAIRS)
    told = signals.signal_sentences(table, pairs, "pf")
    assert len(signals.display_signals(table, "miniature", "pf")) == max(1, len(table))
    assert len(figures.signal_costs(table, list(signals.GROUPS), signals.CONTROLS, "costs").axes) == 1
    assert len(signals.display_pairs(pairs)) >= 1
    assert (told[0] == "Nothing is compared with PF yet.") == (case != "no oracle")
    if case == "no oracle":
        assert "oracle's room" not in " ".join(told) and table["MAP@R share"].isna().all()


# --------------------------------------------------------------------------------------------------- plan


def test_the_runs_that_measure_readings_are_their_own_and_belong_to_full():
    runs = tables.table_runs("mediation", "miniature", seeds={name: (0, 1, 2) for name in tables.DATASETS["miniature"]})
    assert {run.dataset for run in runs} == {BIRDS, AIRCRAFT} and all(run.measure_reading and not run.audit_every for run in runs)
    assert {run.seed for run in runs} == {0, 1, 2}
    assert {run.method for run in runs} >= {"pre-trained", baseline_of("miniature", "pf"), "saga_pf", "contrast_pf", "oracle"}
    names = [name for name, table in TABLE_RUNS.items() if not table.on_validation and not table.reads]
    others = {run for name in names for run in tables.table_runs(name, "miniature")}
    assert not others & set(runs) and not any(run.measure_reading for run in others)
    assert tables.table_runs("mediation", "miniature", full=False) == tables.table_runs("mediation", "paper") == []
    assert [run.method for run in tables.table_runs("mediation", "miniature", [BIRDS], ["pf"])] == ["pf"]


def test_a_plan_without_full_leaves_the_map_and_the_readings_out_and_names_them():
    usual = {name: tables.seeds_of("miniature", name) for name in tables.DATASETS["miniature"]}
    chosen = tuple(one for one in NOTEBOOKS if one.number in ("20", "21"))
    plan = Plan(Profile("miniature"), tables.DATASETS["miniature"], (), usual, chosen)
    assert set(plan.tables()) == {"signals"} and not any(run.measure_reading for run in plan.runs)
    assert {run.dataset for run in plan.runs if run.method == "contrast_permuted"} == {BIRDS}
    told = listing.describe_left_out(plan)
    for part in ("the map over worlds", "what the frozen model reads after training", "the marked cells of notebooks 20"):
        assert part in told
    assert set(replace(plan, full=True).tables()) == {"signals", "mediation", "map"}
