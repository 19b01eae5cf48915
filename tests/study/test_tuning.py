"""Choices on validation classes: equal budgets, the rule for benchmarks, the grid, and the log of the search."""

import json
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from test_tables import make_run

from saga_lib.common.errors import SagaError
from saga_lib.config import with_seed
from saga_lib.records import Run
from saga_study import planner
from saga_study.design import cells, tables, trials
from saga_study.design.cells import Cell
from saga_study.design.trials import SEARCH, VALIDATION
from saga_study.findings import figures, gates, hyperparameters, sensitivity, words
from saga_study.methods import make_config
from saga_study.miniature.world import benchmark_spec
from saga_study.paths import study_folder
from saga_study.resolving import supervisor_source
from saga_study.study import manifest

DATASETS = ("miniature_birds", "miniature_cars")


def finished(folder, config, recall, gradients=(1.0,)):
    """Return a finished run of a config with the given R@1 and norms of the DML gradient."""
    made = make_run(folder, config.method, config.seed, code=f"{abs(hash(config))}")
    evaluation = json.loads((made.folder / "evaluation.json").read_text()) | {"recall": {"1": recall, "4": recall}}
    (made.folder / "evaluation.json").write_text(json.dumps(evaluation))
    (made.folder / "metrics.jsonl").write_text("".join(json.dumps({"grad_dml": norm}) + "\n" for norm in gradients))
    return Run(made.folder, config)


# ---------------------------------------------------------------------------------------------- the search


def test_every_method_has_the_same_number_of_different_trials():
    assert len({len(settings) for settings in SEARCH.values()}) == 1
    runs = trials.trials("miniature", DATASETS)
    assert len(runs) == len(set(runs)) == len(trials.SEARCH_DATASETS) * sum(map(len, SEARCH.values())) * len(trials.SEARCH_SEEDS)
    for run in runs:
        assert run.evaluate_on == "validation" and run.audit_every == 0
    assert {run.seed for run in runs} == {0, 1, 2}


def test_two_trials_that_are_one_run_are_refused(monkeypatch):
    monkeypatch.setitem(SEARCH, "ms", ({"lr_tower": 1e-4}, {"lr_tower": 0.0001}))
    with pytest.raises(SagaError, match="two trials of ms are the same run"):
        trials.trials("miniature", DATASETS)


@pytest.fixture
def searched(tmp_path, monkeypatch):
    """Two methods with three trials each on two benchmarks and three seeds.

    By the first seed the second trial is best for pf, the first two of pa are equally good; the other seeds find the third better.
    """
    monkeypatch.setattr(trials, "SEARCH_DATASETS", DATASETS)
    for method in [name for name in SEARCH if name not in ("pf", "pa")]:
        monkeypatch.delitem(SEARCH, method)
    for method in ("pf", "pa"):
        monkeypatch.setitem(SEARCH, method, SEARCH[method][:3])
    levels = {"pf": (0.5, 0.6, 0.4), "pa": (0.5, 0.5, 0.4)}
    runs, made = trials.trials("miniature", DATASETS), []
    for number, run in enumerate(runs):
        trial = number // (len(DATASETS) * len(trials.SEARCH_SEEDS)) % 3
        level = levels[run.method][trial] if run.seed == 0 or run.method == "pa" else (0.5, 0.5, 0.7)[trial]
        level += 0.1 * (run.dataset == DATASETS[0])
        run = finished(tmp_path / f"{number}", run, level)
        evaluation = json.loads((run.folder / "evaluation.json").read_text())
        draw = np.random.default_rng(number).uniform(size=len(evaluation["hits_at_1"]) + (run.config.dataset == DATASETS[0]))
        evaluation |= {"hits_at_1": "".join("01"[int(one < level)] for one in draw), "num_queries": len(draw)}
        (run.folder / "evaluation.json").write_text(json.dumps(evaluation))
        made.append(run)
    return made


def test_the_best_of_the_first_seed_is_chosen_and_of_equal_ones_the_first(searched):
    table = hyperparameters.search_table(searched)
    assert list(table.loc[table["chosen"], "method"]) == ["pf", "pa"] and list(table.loc[table["chosen"], "trial"]) == [2, 1]
    row = table.iloc[1]
    assert row["deciding R@1"] == 65 and set(table["seeds"]) == {3} and json.loads(row["settings"]) == SEARCH["pf"][1]
    shown = hyperparameters.display_search(table)
    assert shown["settings"][1] == "lr_tower 0.0001, lr_pooler 0.001" and list(shown["by seed 0"]).count("chosen") == 2
    assert len(figures.search_dots(table, "search").axes) == len(DATASETS) + 1


def test_the_seeds_that_did_not_choose_tell_what_they_would_have_chosen(searched):
    table = hyperparameters.search_table(searched)
    pf = table.iloc[1]
    assert pf["R@1 miniature_birds"] == pytest.approx(100 * (0.7 + 0.6 + 0.6) / 3) and pf["mean R@1"] == pytest.approx(100 * 1.75 / 3)
    assert pf["spread"] == pytest.approx(np.std([65, 55, 55], ddof=1)) and pf["other R@1"] == pytest.approx(55)
    assert list(table.loc[table["best"], "trial"]) == [3, 1] and list(table["behind"].notna()) == [False, True, *[False] * 4]
    hits = {run.config: run.hits.astype(float) for run in searched}
    of_trial = {
        number: {dataset: [hits[trials.trial_run("miniature", dataset, "pf", number, seed)] for seed in (1, 2)] for dataset in DATASETS}
        for number in (1, 2)
    }
    differences = [np.stack(of_trial[1][dataset]) - np.stack(of_trial[2][dataset]) for dataset in DATASETS]
    assert pf["behind"] == pytest.approx(100 * np.mean([one.mean() for one in differences]), abs=1e-4) and pf["behind"] < -5
    rng, draws = np.random.default_rng(5), []
    for _ in range(4000):  # queries and seeds are drawn within each benchmark
        drawn = [one[rng.integers(2, size=2)][:, rng.integers(one.shape[1], size=one.shape[1])].mean() for one in differences]
        draws.append(np.mean(drawn))
    assert [pf["behind low"], pf["behind high"]] == pytest.approx(100 * np.quantile(draws, [0.025, 0.975]), abs=0.8)
    told = hyperparameters.search_conclusions(table)
    assert told[0].startswith("PF: trial 2 of 3 was chosen by seed 0 (R@1 65.0 %); the 2 seeds that did not choose give it 55.0 %, ")
    assert "55.0 %, and most to trial 3, 75.0 %: " in told[0]
    assert "75.0 %: the chosen one is −" in told[0] and told[1].endswith("give it 55.0 %, more than any other trial.")
    shown = hyperparameters.display_search(table)
    values = {"3 seeds": "58.3 ± 5.8", "seed 0": "65.0", "seeds 1, 2": "55.0"}
    assert {seeds: shown[f"mean R@1 % (validation), {seeds}"][1] for seeds in values} == values
    assert list(shown["by seeds 1, 2"]) == ["", "", "best", "best", "", ""] and shown["by seed 0"][1] == "chosen"


def test_incomplete_and_strange_runs_are_refused(searched, tmp_path):
    with pytest.raises(SagaError, match="trial 3 of pa lacks a run on miniature_cars with seed 2"):
        hyperparameters.search_table(searched[:-1])
    other = finished(tmp_path / "other", make_config("miniature", DATASETS[0], "pf", 0, **VALIDATION, lr_tower=0.5), 0.5)
    with pytest.raises(SagaError, match="is no trial of"):
        hyperparameters.search_table([*searched, other])
    scored = Run(searched[0].folder, replace(searched[0].config, evaluate_on="test"))
    with pytest.raises(SagaError, match="was scored on test classes"):
        hyperparameters.search_table([scored, *searched[1:]])


def test_the_log_tells_when_other_settings_are_in_use(searched, tmp_path, monkeypatch):
    monkeypatch.setattr(hyperparameters, "TUNING_LOG", tmp_path / "log" / "search.csv")
    monkeypatch.setattr(hyperparameters, "REPOSITORY", tmp_path)
    assert hyperparameters.read_log() is None and hyperparameters.search_of([])[0].empty
    assert hyperparameters.display_search(hyperparameters.search_of([])[0]).empty
    table = hyperparameters.search_table(searched)
    hyperparameters.TUNING_LOG.parent.mkdir()
    table.to_csv(hyperparameters.TUNING_LOG, index=False)
    log, source = hyperparameters.search_of([])
    assert log.equals(table) and "log/search.csv" in source
    told = hyperparameters.unlike_log(log)
    used = make_config("miniature", DATASETS[0], "pf", 0)
    differs = {name for name, value in SEARCH["pf"][1].items() if getattr(used, name) != value}
    assert bool([line for line in told if line.startswith("pf uses ")]) == bool(differs)
    configs = [make_config("miniature", DATASETS[0], method, 0) for method in table["method"]]
    agreeing = table.assign(settings=[json.dumps({"lr_tower": config.lr_tower}) for config in configs])
    assert hyperparameters.unlike_log(agreeing) == []


def test_the_settings_in_use_are_those_that_the_committed_search_chose():
    log = hyperparameters.read_log()
    assert hyperparameters.unlike_log(log) == []
    assert set(log["method"]) == set(SEARCH) and log.groupby("method").size().nunique() == 1, "equal budgets"
    assert (log[log["chosen"]].groupby("method").size() == 1).all()
    best = log.groupby("method")["deciding R@1"].transform("max")
    assert (log.loc[log["chosen"], "deciding R@1"] == best[log["chosen"]]).all() and set(log["seeds"]) == {3}


# ----------------------------------------------------------------------------------------------- the lengths


def length_runs(folder, levels):
    """Return finished runs of every length, seed and method: `levels` maps (method, steps) to the share of queries that hit, else half."""
    configs = trials.length_runs("miniature")
    runs = []
    for number, config in enumerate(configs):
        level = levels.get((config.method, config.steps), 0.5)
        made = make_run(folder / f"{number}", config.method, seed=config.seed, level=level)
        evaluation = json.loads((made.folder / "evaluation.json").read_text()) | {"recall": {"1": float(made.hits.mean())}}
        (made.folder / "evaluation.json").write_text(json.dumps(evaluation))
        runs.append(Run(made.folder, config))
    return runs


def test_every_method_is_trained_for_the_same_lengths_and_the_profiles_is_one_of_them():
    runs = trials.length_runs("miniature")
    usual = make_config("miniature", "miniature_birds", "pf", 0).steps
    assert len(set(runs)) == len(runs)
    for dataset, methods in trials.LENGTH_METHODS.items():
        for method in methods:
            own = [run for run in runs if (run.dataset, run.method) == (dataset, method)]
            assert sorted(run.steps for run in own if run.seed == 0) == [round(usual * factor) for factor in trials.LENGTHS]
            profiles = make_config("miniature", dataset, method, 0, **VALIDATION)
            assert {replace(run, steps=usual, seed=0) for run in own} == {profiles} and profiles in own
    assert all(run.evaluate_on == "validation" for run in runs)
    assert set(trials.LENGTH_METHODS["miniature_birds"]) == set(SEARCH) - {"oracle"}
    assert {run.steps for run in trials.length_runs("smoke")} == {2, 3, 6}


def test_lengths_compare_at_equal_steps_and_each_at_its_own_best(tmp_path):
    runs = length_runs(tmp_path, {("pf", 300): 0.6, ("saga_pf", 150): 0.55, ("saga_pf", 300): 0.55})
    table = sensitivity.length_table(runs)
    assert len(table) == sum(map(len, trials.LENGTH_METHODS.values())) * len(trials.LENGTHS) and set(table["seeds"]) == {3}
    birds = table[table["dataset"] == "miniature_birds"].set_index(["method", "steps"])
    pairs = {(run.config.method, run.config.steps) for run in runs}
    of_birds = [run for run in runs if run.config.dataset == "miniature_birds"]
    share = {
        pair: np.mean([run.hits.mean() for run in of_birds if (run.config.method, run.config.steps) == pair]) for pair in pairs
    }  # fmt: skip
    assert list(birds[birds["best"]].index) == [("pf", 300), ("pa", 75), ("ms", 75), ("infonce", 75), ("saga_pf", 150)]
    for steps in (75, 150, 300):
        row = birds.loc[("saga_pf", steps)]
        assert row["gain"] == pytest.approx(100 * (share["saga_pf", steps] - share["pf", steps]))
        assert row["gain low"] <= row["gain"] <= row["gain high"]
        assert (row["own gain"] == row["own gain"]) == (steps == 150)
    best = birds.loc[("saga_pf", 150)]
    assert best["own gain"] == pytest.approx(100 * (share["saga_pf", 150] - share["pf", 300])) and best["own gain"] < 0 < best["gain"]
    assert birds.loc["pf", "gain"].isna().all() and birds.loc[("pf", 300), "R@1"] == pytest.approx(100 * share["pf", 300])
    told = sensitivity.length_conclusions(table, "miniature")
    assert told[0].startswith("miniature_birds, PF: best at 300 steps, ") and "% at the profile's 150)" in told[0]
    saga = next(line for line in told if line.startswith("miniature_birds, SAGA (PF): best at 150 steps"))
    assert "each at its own best length −" in saga and "both at 150 steps +" in saga
    assert told[-1].startswith("3 seeds, validation classes")
    shown = sensitivity.display_lengths(table, "miniature")
    assert (shown[""] == "best length").sum() == table["best"].sum() and not shown.map(lambda cell: "nan" in str(cell)).any(axis=None)
    figure = figures.length_curves(table, "lengths")
    assert [len(axis.get_legend_handles_labels()[0]) for axis in figure.axes] == [5, 2]
    scored = [Run(run.folder, replace(run.config, evaluate_on="test")) for run in runs]
    with pytest.raises(SagaError, match="was scored on test classes"):
        sensitivity.length_table(scored)


# ------------------------------------------------------------------------------------------- the sensitivity


def sensitivity_cells(folder, lacking=(), seeds=(0,)):
    """Return the cells of the sensitivity table: SAGA hits 60 % of the queries, 10 % fewer with `lambda_lm` 1, PF half of them."""
    cells = []
    for number, config in enumerate(trials.sensitivity_runs("miniature")):
        level = 0.5 if config.method == "pf" or config.lambda_lm == 1.0 else 0.6
        made = [make_run(folder / f"{number}_{seed}", config.method, seed=seed, level=level) for seed in seeds]
        runs = tuple(Run(run.folder, with_seed(config, run.config.seed)) for run in made)
        runs = () if any(getattr(config, name) == value for name, value in lacking) else runs
        cells.append(Cell(config, runs, "" if runs else "with --full"))
    return cells


def test_one_setting_is_varied_at_a_time_around_the_profiles():
    centre, *_ = [run for run in trials.sensitivity_runs("miniature") if run.method == "saga_pf"]
    assert centre == make_config("miniature", "miniature_birds", "saga_pf", 0, **VALIDATION)
    for run in trials.sensitivity_runs("miniature")[2:]:
        differs = {name for name, value in run.to_dict().items() if value != centre.to_dict()[name]}
        assert len(differs) == 1 and differs < set(trials.SENSITIVITY["miniature"])
    for profile, settings in trials.SENSITIVITY.items():
        assert set(settings) == set(trials.SETTING_LABELS) - ({"supervisor"} if profile == "paper" else set())
        runs = trials.sensitivity_runs(profile)
        assert len(runs) == 2 + sum(map(len, settings.values())), "a value that is the profile's own is no change"
        assert all(run.evaluate_on == "validation" and run.seed == 0 for run in runs)
    assert trials.sensitivity_runs("miniature", {}) == []


def test_changes_are_to_the_profiles_setting_and_paired(tmp_path):
    cells = sensitivity_cells(tmp_path)
    table = sensitivity.sensitivity_table(cells, "miniature").set_index(["setting", "value"])
    assert list(table.index.get_level_values("setting")[:4]) == ["PF", "group_size", "group_size", "group_size"]
    assert table.loc[("group_size", 8), "is_profile"] and table.loc[("group_size", 8), "difference"] == 0
    same = table.loc[("temperature", 1.0)]  # hits the same queries
    assert (same["difference"], same["low"], same["high"]) == (0, 0, 0)
    worse = next(cell.runs[0] for cell in cells if cell.config.lambda_lm == 1.0)
    centre = next(cell.runs[0] for cell in cells if cell.config.method == "saga_pf")
    expected = worse.hits.astype(float) - centre.hits
    row = table.loc[("lambda_lm", 1.0)]
    draws = np.random.default_rng(3).integers(len(expected), size=(4000, len(expected)))
    assert row["difference"] == pytest.approx(100 * expected.mean())
    assert [row["low"], row["high"]] == pytest.approx(100 * np.quantile(expected[draws].mean(1), [0.025, 0.975]), abs=0.8)
    assert row["runs"] == worse.key and row["MAP@R difference"] == 0
    told = sensitivity.sensitivity_conclusions(table.reset_index())
    assert "1 of 24 intervals exclude 0" in told[-2] and "PF without SAGA: −" in told[-2] and "One seed" in told[-1]
    assert any("λ_lm" in line and ", worse" in line for line in told)


def test_several_seeds_are_paired_and_averaged(tmp_path):
    cells = sensitivity_cells(tmp_path, seeds=(0, 1, 2))
    table = sensitivity.sensitivity_table(cells, "miniature")
    assert set(table["seeds"]) == {3} and (table["runs"].str.split().str.len() == 3).all()
    worse, centre = (next(c for c in cells if c.config.method == "saga_pf" and c.config.lambda_lm == value) for value in (1.0, 0.1))
    row = table.set_index(["setting", "value"]).loc[("lambda_lm", 1.0)]
    assert row["R@1"] == pytest.approx(100 * np.mean([run.hits.mean() for run in worse.runs]))
    expected = np.stack([a.hits.astype(float) - b.hits for a, b in zip(worse.runs, centre.runs, strict=True)])
    rng, draws = np.random.default_rng(5), []
    for _ in range(4000):
        seeds, queries = rng.integers(3, size=3), rng.integers(expected.shape[1], size=expected.shape[1])
        draws.append(expected[seeds][:, queries].mean())
    assert row["difference"] == pytest.approx(100 * expected.mean())
    assert [row["low"], row["high"]] == pytest.approx(100 * np.quantile(draws, [0.025, 0.975]), abs=0.8)
    last = sensitivity.sensitivity_conclusions(table)[-1]
    assert last.startswith("3 seeds, validation classes: the intervals cover the choice of queries and seeds; with fewer than five")
    fewer = [replace(cell, runs=cell.runs[:1]) if cell is worse else cell for cell in cells]
    mixed = sensitivity.sensitivity_table(fewer, "miniature")
    assert mixed.set_index(["setting", "value"]).loc[("lambda_lm", 1.0), "difference"] == pytest.approx(100 * expected[0].mean())
    said = sensitivity.sensitivity_conclusions(mixed)[-1]
    assert said.startswith("1 to 3 seeds, validation") and "queries and, where there are several, of seeds" in said


def test_values_that_were_not_run_are_drawn_and_marked(tmp_path):
    cells = sensitivity_cells(tmp_path, lacking=(("group_size", 16), ("attention_layer", 1), ("attention_layer", 2)))
    table = sensitivity.sensitivity_table(cells, "miniature")
    shown = sensitivity.display_sensitivity(table, "miniature")
    ours = "R@1 % (seeds) ours (miniature), validation classes"
    assert list(shown.loc[shown["setting"] == trials.SETTING_LABELS["attention_layer"], ours])[1:] == ["with --full"] * 2
    assert shown["value"].str.endswith("(profile)").sum() == len(trials.SENSITIVITY["miniature"])
    assert not shown.map(str).map(lambda text: "nan" in text).any(axis=None)
    told = sensitivity.sensitivity_conclusions(table)
    assert f"{trials.SETTING_LABELS['attention_layer']}: nothing measured (1 with --full, 2 with --full)." in told
    assert len(figures.sensitivity_panels(table, trials.SETTING_LABELS, "sensitivity").axes) == 8  # seven panels and a place left empty
    nothing = sensitivity.sensitivity_table([Cell(cell.config, (), "with --full") for cell in cells], "miniature")
    assert len(sensitivity.sensitivity_conclusions(nothing)) == 7
    assert "with --full" in figures.gain_by_supervisor(nothing, "quality").axes[0].texts[0].get_text()
    rows = table[table["setting"] == "supervisor"]
    assert list(rows["value"].map(words.shown_value)) == ["880", "900", "925", "1000", "1500", "2500", "shipped"]
    pf, centre = (next(cell.runs[0] for cell in cells if cell.config.method == method) for method in ("pf", "saga_pf"))
    assert table.loc[table["is_profile"] & (table["setting"] == "supervisor"), "gain"].item() == pytest.approx(
        100 * (centre.hits.mean() - pf.hits.mean())
    )
    assert len(figures.sensitivity_panels(nothing, trials.SETTING_LABELS, "nothing").axes) == 8


def test_the_sensitivity_refuses_test_classes(tmp_path):
    cells = sensitivity_cells(tmp_path)
    scored = replace(cells[0].runs[0].config, evaluate_on="test")
    with pytest.raises(SagaError, match="was scored on test classes"):
        sensitivity.sensitivity_table([Cell(cells[0].config, (Run(cells[0].runs[0].folder, scored),)), *cells[1:]], "miniature")


# ----------------------------------------------------------------------------------------------- the gates


def gate_of(folder, before=0.6, pf=0.7, oracle=0.75, gradients=(1.0,) * 10 + (0.1,) * 10, seeds=(0,)):
    """Return the row of one benchmark; a level may differ by seed."""
    configs = [config for config in trials.gate_runs("miniature", DATASETS[:1]) if config.seed in seeds]
    levels = {"pre-trained": before, "pf": pf, "oracle": oracle}
    level = {method: value if isinstance(value, tuple) else (value,) * 3 for method, value in levels.items()}
    return gates.gate([finished(folder, config, level[config.method][config.seed], gradients) for config in configs])


def test_the_gates_have_three_seeds_and_the_default_study_the_first():
    runs = trials.gate_runs("miniature", DATASETS)
    for dataset in DATASETS:
        seeds = {method: [run.seed for run in runs if (run.dataset, run.method) == (dataset, method)] for method in trials.GATE_METHODS}
        assert seeds == {"pre-trained": [0], "pf": [0, 1, 2], "oracle": [0, 1, 2]}, "the pre-trained tower is the same for every seed"
    assert tables.table_runs("gates", "miniature", DATASETS) == runs
    default = tables.table_runs("gates", "miniature", DATASETS, full=False)
    assert default == [run for run in runs if run.seed == 0 and run.dataset == DATASETS[0]]


def test_a_benchmark_that_passes_every_rule_is_admitted(tmp_path):
    row = gate_of(tmp_path)
    assert row["verdict"] == "admitted" and all(row[name].startswith("passed: ") for name in gates.GATE_RULES)
    assert row["PF gradient left"] == pytest.approx(0.1) and row["oracle has room"] == "passed: +5.0 points"
    told = gates.gate_conclusions(pd.DataFrame([row]))
    assert told[0] == "miniature_birds: admitted." and told[1].startswith("Of one seed") and len(told) == 2


def test_the_rules_are_decided_by_the_mean_of_the_seeds_and_each_seed_says_what_it_would(tmp_path):
    row = gate_of(tmp_path / "a", oracle=(0.70, 0.72, 0.73), seeds=(0, 1, 2))  # room 0, +2 and +3 points
    assert row["verdict"] == "admitted" and row["oracle has room"] == "passed: +1.7 points" and row["oracle R@1"] == pytest.approx(71.6667)
    assert (row["seeds"], row["seeds that agree"]) == (3, 2) and row["PF R@1"] == pytest.approx(70)
    assert gates.gate_conclusions(pd.DataFrame([row])) == ["miniature_birds: admitted; 2 of 3 seeds give this verdict by themselves."]
    assert gates.display_gates(pd.DataFrame([row]))["seeds with the same verdict"][0] == "2 of 3"
    row = gate_of(tmp_path / "b", pf=(0.60, 0.61, 0.66), oracle=0.8, seeds=(0, 1, 2))  # +0, +1, +6: mean +2.3
    assert row["verdict"] == "admitted" and row["seeds that agree"] == 1
    row = gate_of(tmp_path / "c", oracle=0.7, seeds=(0, 1, 2))
    assert gates.gate_conclusions(pd.DataFrame([row]))[0].endswith("(+0.0 points); all 3 seeds give this verdict by themselves.")
    runs = [finished(tmp_path / "d", config, 0.5) for config in trials.gate_runs("miniature", DATASETS[:1])]
    with pytest.raises(SagaError, match="need a run of oracle with seed 2"):
        gates.gate([run for run in runs if (run.config.method, run.config.seed) != ("oracle", 2)])


@pytest.mark.parametrize(
    ("rule", "changed"),
    [
        ("learnable", {"before": 0.29}),
        ("learnable", {"before": 0.86, "pf": 0.9, "oracle": 0.95}),
        ("PF learns", {"before": 0.69}),
        ("PF is done", {"gradients": (1.0,) * 10 + (0.25,) * 10}),
        ("PF is done", {"gradients": (0.0,) * 20}),
        ("oracle has room", {"oracle": 0.705}),
    ],
)
def test_every_rule_can_fail_by_itself(rule, changed, tmp_path):
    row = gate_of(tmp_path, **changed)
    assert [name for name in gates.GATE_RULES if row[name].startswith("failed: ")] == [rule]
    assert row["verdict"] == "not admitted"
    assert f"it fails {rule} (" in gates.gate_conclusions(pd.DataFrame([row]))[0]


def test_the_bounds_belong_to_the_rule(tmp_path):
    assert gate_of(tmp_path, before=0.3, pf=0.32, oracle=0.33)["verdict"] == "admitted"


def test_the_gates_need_all_their_runs_on_validation_classes(tmp_path):
    runs = [finished(tmp_path, config, 0.5) for config in trials.gate_runs("miniature", DATASETS[:1])]
    with pytest.raises(SagaError, match="need a run of oracle"):
        gates.gate([run for run in runs if run.config.method != "oracle"])
    with pytest.raises(SagaError, match="was scored on test classes"):
        gates.gate([Run(run.folder, replace(run.config, evaluate_on="test")) for run in runs])
    assert gates.gate_conclusions(gates.gate_table([])) == [] and gates.display_gates(gates.gate_table([])).empty


# ---------------------------------------------------------------------------------------------------- when


def test_the_grid_is_complete_and_summed_up(tmp_path):
    configs = trials.when_runs("miniature", ())
    cells = math.prod(map(len, trials.WHEN_GRID.values()))
    assert len(set(configs)) == len(configs) == cells * len(trials.WHEN_METHODS) * len(trials.WHEN_SEEDS)
    assert {tuple(getattr(benchmark_spec(run.dataset), name) for name in trials.WHEN_GRID) for run in configs} == {
        (classes, shift) for classes in trials.WHEN_GRID["train_classes"] for shift in trials.WHEN_GRID["shift"]
    }
    few = next(run for run in configs if "train_classes=12" in run.dataset)
    assert planner.image_counts(few)[2] == 12 and supervisor_source(few).endswith(benchmark_spec(trials.WHEN_DATASET).domain)
    table = gates.when_table([finished(tmp_path / f"{number}", config, 0.5) for number, config in enumerate(configs)])
    assert len(table) == cells and (table["saga_pf low"] <= table["saga_pf difference"]).all()
    assert set(table["seeds"]) == {3} and gates.when_conclusions(table)[-1].startswith("3 seeds each")
    assert f"of {cells} cells" in gates.when_conclusions(table)[0]
    assert len(figures.when_heatmaps(table, "when").axes) == 3


def test_a_study_shows_a_table_only_if_it_has_all_of_its_runs(results, monkeypatch):
    monkeypatch.setattr("saga_study.runs.store.run_folder", record_folder)
    configs = tables.table_runs("gates", "smoke")
    for config in configs[:-1]:
        write_record(config)
    assert cells.finished_table("gates", "smoke", "S") == []
    write_record(configs[-1])
    assert [run.config for run in cells.finished_table("gates", "smoke", "S")] == configs
    with monkeypatch.context() as patch:
        patch.setattr("saga_study.runs.store.run_folder", lambda study, config: record_folder(study, config) / "of other inputs")
        assert cells.finished_table("gates", "smoke", "S") == []
    write_record(configs[0], code="other")
    assert cells.finished_table("gates", "smoke", "S") == []


def record_folder(study, config):
    return study_folder(study) / "runs" / f"{config.method} {config.seed}"


def write_record(config, code=None):
    folder = record_folder("S", config)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"config": config.to_dict(), "code": code or manifest.code_digest()}))
    (folder / "evaluation.json").write_text("{}")
