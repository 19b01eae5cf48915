"""The rules by which benchmarks are admitted, on validation classes."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from test_tuning import DATASETS, finished

from saga_lib.common.errors import SagaError
from saga_lib.records import Run
from saga_study import methods
from saga_study.design import cells, tables, trials
from saga_study.design.trials import VALIDATION
from saga_study.findings import gates
from saga_study.methods import METHODS, make_config
from saga_study.paths import study_folder
from saga_study.study import manifest

ROLES = ("pre-trained", "loss", "oracle", "saga")
READING = (0.70, 0.74, 0.75, 0.8, 0.85, 0.9, 0.95, 0.97)  # six of eight well enough, one of these above the range
PASSING = {  # a benchmark that passes every rule: R@1, MAP@R, and of SAGA's first steps and of its whole run what its verdicts are like
    "levels": {"pre-trained": 0.80, "loss": 0.85, "oracle": 0.89, "saga": 0.86},
    "maps": {"pre-trained": 0.30, "loss": 0.40, "oracle": 0.46, "saga": 0.42}, "same": 0.7, "different": 0.9, "one_class": 0.5,
    "accuracy": READING, "consensus": 0.97,
}  # fmt: skip


def saga_steps(same, different, one_class):
    """Steps whose first ten have the given verdicts and then better ones; shares differ from step to step, their weighted means do not.

    A step of four times as many pairs counts four times.
    """
    steps = []
    for number in range(20):
        many, late = number % 2, number >= gates.FIRST_STEPS
        steps.append({
            "pairs_drawn": 64 if many else 16, "verdict_accuracy_same": 1.0 if late else same + (0.01 if many else -0.04),
            "verdict_accuracy_different": 1.0 if late else different, "contributing_pairs": 8 if many else 2,
            "contributing_same_class": one_class + (0.02 if many else -0.08),
        })  # fmt: skip
    return steps


def gate_runs(folder, dataset=DATASETS[0], seeds=(0,), **changed):
    """Return the runs of the gates on one benchmark, as in `PASSING` unless changed; a level may differ by seed."""
    own = PASSING | changed
    own |= {name: PASSING[name] | changed.get(name, {}) for name in ("levels", "maps")}
    role_of = dict(zip(trials.gate_methods("miniature"), ROLES, strict=True))
    names = [f"attribute {number}" for number in range(len(own["accuracy"]))]
    reading = {
        "recall": {"1": 0.66}, "map_at_r": 0.44, "accuracy": dict(zip(names, own["accuracy"], strict=True)),
        "consensus": dict.fromkeys(names, own["consensus"]), "probe": dict.fromkeys(names, 0.5),
    }  # fmt: skip
    runs = []
    for config in trials.gate_runs("miniature", [dataset]):
        role = role_of[config.method]
        at = [value[config.seed] if isinstance(value, tuple) else value for value in (own["levels"][role], own["maps"][role])]
        measures = {"reading": reading} if config.measure_reading else {}
        steps = saga_steps(own["same"], own["different"], own["one_class"]) if role == "saga" else ()
        if config.seed in seeds:
            runs.append(finished(folder / dataset, config, *at, steps, **measures))
    return runs


def gate_of(folder, **changed):
    return gates.gate(gate_runs(folder, **changed))


def test_the_gates_have_three_seeds_and_the_default_study_the_first():
    runs = trials.gate_runs("miniature", DATASETS)
    before, *trained = trials.gate_methods("miniature")
    assert trained[0] == methods.baseline_of("miniature")
    for dataset in DATASETS:
        seeds = {method: [run.seed for run in runs if (run.dataset, run.method) == (dataset, method)] for method in (before, *trained)}
        assert seeds == {before: [0]} | dict.fromkeys(trained, [0, 1, 2]), "the pre-trained tower is the same for every seed"
    assert {run.method for run in runs if run.measure_reading} == {before}
    assert tables.table_runs("gates", "miniature", DATASETS) == runs
    default = tables.table_runs("gates", "miniature", DATASETS, full=False)
    assert default == [run for run in runs if run.seed == 0 and run.dataset == DATASETS[0]]


def test_a_benchmark_that_passes_every_rule_is_admitted(tmp_path):
    row = gate_of(tmp_path)
    assert row["verdict"] == "admitted" and all(row[name].startswith("passed: ") for name in gates.GATE_RULES)
    loss = METHODS[methods.baseline_of("miniature")].label
    assert [row[name] for name in gates.GATE_RULES] == [
        f"passed: pre-trained R@1 80.0 %; {loss} +5.0 points of R@1, +10.0 of MAP@R",
        f"passed: +4.0 points of R@1, +6.0 of MAP@R above {loss}, whose R@1 is 85.0 %",
        "passed: at the start 70.0 % of the rollouts about one class are right, 90.0 % of those about two; 50.0 % of the contributing "
        "pairs are of one class",
        "passed: 6 of 8 attributes at 75 % or better, 5 of them up to 95 % and 1 above; mean consensus 97.0 %",
    ]
    told = gates.gate_conclusions(pd.DataFrame([row]))
    assert told[0] == "miniature_birds: admitted by (1) and (2); it passes every rule."
    assert told[1] == "All rules are passed together on miniature_birds (of 1 benchmark)." and told[2].startswith("Of one seed")
    assert len(told) == 3


def test_the_numbers_of_the_gates_can_be_had_by_themselves_and_of_more_methods(tmp_path):
    runs = gate_runs(tmp_path, seeds=(0, 1, 2), levels={"oracle": (0.88, 0.89, 0.93)}, maps={"saga": (0.40, 0.41, 0.45)})
    contrast = make_config("miniature", DATASETS[0], trials.gate_methods("miniature")[3].replace("saga", "contrast"), 0, **VALIDATION)
    numbers = gates.gate_numbers([*runs, finished(tmp_path / "contrast", contrast, 0.99)])
    expected = {
        "pre-trained R@1": 80, "loss R@1": 85, "oracle R@1": 90, "SAGA R@1": 86, "pre-trained MAP@R": 30, "loss MAP@R": 40,
        "oracle MAP@R": 46, "SAGA MAP@R": 42, "gain R@1": 5, "gain MAP@R": 10, "room R@1": 5, "room MAP@R": 6, "SAGA gain R@1": 1,
        "SAGA gain MAP@R": 2, "same-class verdicts": 70, "different-class verdicts": 90, "contributing of one class": 50, "attributes": 8,
        "read": 6, "in range": 5, "above range": 1, "reading accuracy": 100 * np.mean(READING), "consensus": 97, "R@1 by reading": 66,
        "MAP@R by reading": 44,
    }  # fmt: skip
    assert numbers == pytest.approx(expected) and list(gates.gate(runs))[2 : 2 + len(numbers)] == list(numbers)


def test_the_rules_are_decided_by_the_mean_of_the_seeds_and_each_seed_says_what_it_would(tmp_path):
    row = gate_of(tmp_path / "a", levels={"oracle": (0.85, 0.88, 0.89)}, seeds=(0, 1, 2))  # room 0, +3 and +4 points: mean +2.3
    assert row["verdict"] == "not admitted" and row["(2) room"].startswith("failed: +2.3 points of R@1, +6.0 of MAP@R")
    assert (row["seeds"], row["seeds that agree"]) == (3, 1) and row["oracle R@1"] == pytest.approx(87.3333)
    assert gates.gate_conclusions(pd.DataFrame([row]))[0].endswith("; 1 of 3 seeds give this verdict by themselves.")
    assert gates.display_gates(pd.DataFrame([row]))["seeds with the same verdict"][0] == "1 of 3"
    row = gate_of(tmp_path / "b", levels={"oracle": (0.85, 0.88, 0.90)}, seeds=(0, 1, 2))  # mean +2.7
    assert row["verdict"] == "admitted" and row["seeds that agree"] == 2
    row = gate_of(tmp_path / "c", maps={"oracle": 0.4}, seeds=(0, 1, 2))
    assert "(+4.0 points of R@1, 0.0 of MAP@R " in gates.gate_conclusions(pd.DataFrame([row]))[0]
    assert gates.gate_conclusions(pd.DataFrame([row]))[0].endswith("; all 3 seeds give this verdict by themselves.")
    runs = gate_runs(tmp_path / "d", seeds=(0, 1, 2))
    oracle = trials.gate_methods("miniature")[2]
    with pytest.raises(SagaError, match=f"need a run of {oracle} with seed 2"):
        gates.gate([run for run in runs if (run.config.method, run.config.seed) != (oracle, 2)])


@pytest.mark.parametrize(
    ("number", "changed"),
    [
        (1, {"levels": {"pre-trained": 0.499}}),
        (1, {"levels": {"pre-trained": 0.921}}),
        (1, {"levels": {"pre-trained": 0.846}, "maps": {"pre-trained": 0.396}}),  # +0.4 of both
        (2, {"levels": {"oracle": 0.874}}),
        (2, {"maps": {"oracle": 0.449}}),
        (2, {"levels": {"loss": 0.92, "oracle": 0.96}}),
        (3, {"same": 0.499}),
        (3, {"same": 0.851}),
        (3, {"different": 0.97}),
        (3, {"one_class": 0.199}),
        (3, {"one_class": 0.801}),
        (4, {"accuracy": (0.749, *(0.74, 0.74), *(0.99,) * 5)}),
        (4, {"consensus": 0.949}),
    ],
)
def test_every_rule_can_fail_by_itself(number, changed, tmp_path):
    row = gate_of(tmp_path, **changed)
    rule = list(gates.GATE_RULES)[number - 1]
    assert [name for name in gates.GATE_RULES if row[name].startswith("failed: ")] == [rule]
    assert row["verdict"] == ("not admitted" if number < 3 else "admitted"), "(3) and (4) are reported"
    told = gates.gate_conclusions(pd.DataFrame([row]))
    assert f"it fails {rule} (" in told[0]
    assert told[1] == f"Rule {number} is passed on none of 1 benchmark, hence never together with another."


@pytest.mark.parametrize(
    "changed",
    [
        {"levels": {"pre-trained": 0.5}},
        {"levels": {"pre-trained": 0.845}, "maps": {"pre-trained": 0.40}},  # +0.5 of R@1 alone
        {"levels": {"pre-trained": 0.85}, "maps": {"pre-trained": 0.395}},  # of MAP@R alone
        {"levels": {"pre-trained": 0.92}},  # though metric learning loses R@1, it gains MAP@R
        {"levels": {"oracle": 0.875}, "maps": {"oracle": 0.45}},
        {"levels": {"loss": 0.919, "oracle": 0.96}},
        {"same": 0.5, "different": 0.969, "one_class": 0.2},
        {"same": 0.85, "one_class": 0.8},
        {"accuracy": (0.1, 0.2, *(0.75,) * 6), "consensus": 0.95},
        {"accuracy": (0.1, 0.2, *(0.99,) * 6)},  # above the range is well enough
    ],
)
def test_the_bounds_belong_to_the_rules(changed, tmp_path):
    row = gate_of(tmp_path, **changed)
    assert all(row[name].startswith("passed: ") for name in gates.GATE_RULES) and row["verdict"] == "admitted"


def test_rules_that_are_never_passed_together_are_named(tmp_path):
    names = ("miniature_birds", "miniature_cars", "miniature_aircraft")
    no_room, no_errors = {"maps": {"oracle": 0.41}}, {"same": 0.95}

    def told(*changes):
        where = tmp_path / str(len(list(tmp_path.iterdir())))
        runs = [run for name, changed in zip(names, changes, strict=False) for run in gate_runs(where, name, **changed)]
        table = gates.gate_table(runs)
        assert list(table["benchmark"]) == list(names[: len(changes)])
        return gates.gate_conclusions(table)[len(changes) : -1]

    tmp_path.joinpath("start").mkdir()
    three = told(no_room, no_errors, no_room)
    assert three == ["Rules 2 and 3 exclude each other here: 2 is passed on miniature_cars, 3 is passed on miniature_aircraft, "
                     "miniature_birds, both on none of 3 benchmarks."]  # fmt: skip
    assert told(no_room, no_errors, {}) == ["All rules are passed together on miniature_aircraft (of 3 benchmarks)."]
    assert told(no_room, no_room) == ["Rule 2 is passed on none of 2 benchmarks, hence never together with another."]
    some = told(no_room, no_errors, {"consensus": 0.5})
    assert some == ["Every two rules are passed together somewhere, but all of them on none of 3 benchmarks."]


def test_steps_without_pairs_do_not_count_and_a_run_without_any_passes_nothing(tmp_path):
    runs = gate_runs(tmp_path)
    saga = next(run for run in runs if run.config.method == trials.gate_methods("miniature")[3])
    log = saga.folder / "metrics.jsonl"
    steps = [json.loads(line) for line in log.read_text().splitlines()]
    empty = {"pairs_drawn": 0, "contributing_pairs": 0, "contributing_same_class": 0.0}
    empty |= {"verdict_accuracy_same": None, "verdict_accuracy_different": None}

    def numbers(steps):
        log.write_text("".join(json.dumps(step) + "\n" for step in steps))
        return gates.gate([Run(run.folder, run.config) for run in runs])

    row = numbers([empty, empty, *steps[:8], *steps[10:]])
    assert row["same-class verdicts"] == pytest.approx(70) and row["contributing of one class"] == pytest.approx(50)
    row = numbers([empty] * 20)
    assert np.isnan(row["same-class verdicts"]) and row["(3) fallible verdicts"].startswith("failed: at the start – of the rollouts")
    assert row["verdict"] == "admitted"


def test_the_gates_need_all_their_runs_on_validation_classes(tmp_path):
    runs, oracle = gate_runs(tmp_path), trials.gate_methods("miniature")[2]
    with pytest.raises(SagaError, match=f"need a run of {oracle}"):
        gates.gate([run for run in runs if run.config.method != oracle])
    with pytest.raises(SagaError, match="was scored on test classes"):
        gates.gate([Run(run.folder, replace(run.config, evaluate_on="test")) for run in runs])
    with pytest.raises(SagaError, match="there are none"):
        gates.gate_numbers([])
    (runs[0].folder / "evaluation.json").write_text(json.dumps({name: runs[1].evaluation[name] for name in ("recall", "map_at_r", "nmi")}))
    with pytest.raises(SagaError, match="was trained without measure_reading"):
        gates.gate([Run(runs[0].folder, runs[0].config), *runs[1:]])
    assert gates.gate_conclusions(gates.gate_table([])) == [] and gates.display_gates(gates.gate_table([])).empty


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
