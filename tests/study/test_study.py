"""The command line, the study folder and the execution of notebooks."""

import errno
import io
import json
import lzma
import os
import re
import signal
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import psutil
import pytest
from waiting import wait_for

from saga_lib.common.errors import SagaError
from saga_lib.config import OWN_IMAGES, RunConfig
from saga_study import methods as methods_module
from saga_study import notebook, parameters
from saga_study.design import cells as study_cells
from saga_study.design import minutes, tables, trials
from saga_study.design.tables import DATASETS, SEEDS, TABLE_RUNS, table_runs
from saga_study.findings import differences, figures, tables_2_to_5, writers
from saga_study.methods import METHODS, PROFILES, REVISIONS, Profile, field_help, make_config
from saga_study.paths import BY_HAND, is_complete, study_folder
from saga_study.study import command as study_command
from saga_study.study import execution, listing, notebooks
from saga_study.study import manifest as study_manifest
from saga_study.study import plan as study_plan
from saga_study.study.command import main
from saga_study.study.notebooks import NOTEBOOKS

REPOSITORY = Path(__file__).resolve().parents[2]
TAKES = 'STUDY: str = "by-hand"\nPROFILE: str = "miniature"\n'
TAKES_ALL = TAKES + 'DATASETS: tuple = ("miniature_birds",)\nMETHODS: tuple = ("pf",)\nSEEDS: dict = {}\nFULL: bool = False'


def command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "saga_study", *arguments], capture_output=True, text=True, timeout=300, cwd=REPOSITORY
    )


def only_study(results):
    (manifest,) = results.glob("*/manifest.json")
    return manifest.parent, json.loads(manifest.read_text())


@pytest.fixture
def tiny(faked, write_notebook):
    """The study with two tiny notebooks: 03, which needs one run, and 04, which needs Table 1's."""
    write_notebook("03_grpo_training", TAKES, "from saga_study.notebook import start\nstart(STUDY, PROFILE, 3)")
    write_notebook("04_main_results", TAKES_ALL, "print(METHODS, SEEDS)")
    return faked


# --------------------------------------------------------------------------------------------- declarations


def test_records_without_weights_are_trained_again_or_named(faked, capsys):
    wanted = [make_config("miniature", "miniature_birds", method, 0) for method in ("pf", "saga_pf")]
    with pytest.raises(SagaError, match="weights of miniature_birds pf seed 0, miniature_birds saga_pf seed 0 .* set TRAIN = True"):
        study_cells.runs_with_weights(wanted, "trial", train=False)
    first = study_cells.runs_with_weights(wanted, "trial")
    assert [run.folder.parent.parent.name for run in first] == ["trial", "trial"]
    assert "trained now, about 4 minutes" in capsys.readouterr().out
    record = (first[0].folder / "evaluation.json").read_bytes()
    (first[0].folder / "encoder" / "model.safetensors").unlink()  # as git keeps it
    with pytest.raises(SagaError, match="weights of miniature_birds pf seed 0 are not on this machine"):
        study_cells.runs_with_weights(wanted, "trial", train=False)
    again = study_cells.runs_with_weights(wanted, "trial")
    assert [run.folder.parent.parent.name for run in again] == [BY_HAND, "trial"] and all(run.has_encoder() for run in again)
    assert (first[0].folder / "evaluation.json").read_bytes() == record and not first[0].has_encoder()
    capsys.readouterr()
    assert [run.folder for run in study_cells.runs_with_weights(wanted, "trial", train=False)] == [run.folder for run in again]
    assert not capsys.readouterr().out


def test_every_profile_is_described_completely():
    for profile in PROFILES:
        assert DATASETS[profile] and SEEDS[profile]
        for config in table_runs("table1", profile, methods=("pre-trained", "pf", "oracle", "saga_pf"), seeds=(0,)):
            assert minutes.expected_minutes(config) > 0
        assert all(notebook.minutes[profile] > 0 for notebook in NOTEBOOKS)
    unknown = make_config("paper", "cub200", "pf", 0, supervisor="timm:vit_small_patch14_dinov2")
    assert minutes.expected_minutes(unknown) == minutes.expected_minutes(make_config("paper", "cub200", "pf", 0))
    for one in NOTEBOOKS:
        assert set(one.needs) <= set(TABLE_RUNS)
    assert all(set(table.methods) <= set(METHODS) for table in TABLE_RUNS.values())


def test_table_runs_lists_no_run_twice():
    runs = table_runs("table1", "miniature", ["miniature_birds"], seeds=(0, 1, 2))
    rows = len(TABLE_RUNS["table1"].methods)
    assert len(runs) == (rows - 1) * 3 + 1 and rows == 18  # the pre-trained row has no seed
    assert len(table_runs("table1", "miniature")) == rows * 4 and len(table_runs("table1", "smoke")) == rows
    uneven = table_runs("table1", "miniature", ["miniature_birds", "miniature_cars"], ["pf"], {"miniature_birds": (0, 4)})
    assert [(run.dataset, run.seed) for run in uneven] == [("miniature_birds", 0), ("miniature_birds", 4), ("miniature_cars", 0)]
    datasets = ["miniature_birds"]
    assert [run.seed for run in table_runs("table1", "miniature", datasets, ["pf"], [1, 2])] == [1, 2]
    assert [run.method for run in table_runs("training_curves", "miniature", methods=["pf"], seeds=[2])] == ["saga_pf"]
    shown = table_runs("figure3", "miniature", datasets, seeds={"miniature_birds": (4,)})
    assert [(run.method, run.seed) for run in shown] == [("pf_attention", 4), ("pf_kl", 4), ("saga_pf", 4)]
    for table, methods in (("figure3", ("pf_attention", "pf_kl", "saga_pf")), ("figure5", ("pf", "saga_pf", "oracle"))):
        measured = table_runs(table, "miniature", datasets, seeds={"miniature_birds": (0, 1, 2, 3, 4)})
        assert [(run.method, run.seed) for run in measured if run.method != "pre-trained"] == [(m, s) for m in methods for s in (0, 1, 2)]
    usual = {"miniature_birds": tables.seeds_of("miniature", "miniature_birds")}
    for table in ("figure3", "figure5"):
        assert {run.seed for run in table_runs(table, "miniature", datasets, seeds=usual, full=False)} == {0}, "within the hour"
    for number in ("09", "10"):  # each measures what its plan has trained, and takes as long as that has seeds
        (notebook,) = [one for one in notebooks.NOTEBOOKS if one.number == number]
        plans = [study_plan.Plan(Profile("miniature"), tuple(datasets), (), usual, (notebook,), full=full) for full in (False, True)]
        assert [plan.minutes_of(notebook) for plan in plans] == pytest.approx(
            [n * notebook.minutes["miniature"] for n in (1, len(usual["miniature_birds"]))]
        )
        assert [plan.executions("S")[0].parameters["FULL"] for plan in plans] == [False, True]
    assert "oracle" not in [run.method for run in table_runs("figure5", "paper", ["cub200"])]
    with pytest.raises(SagaError, match="did you mean 'table[12]'"):
        table_runs("tabel1", "miniature")
    with pytest.raises(SagaError, match="did you mean 'saga_pf'"):
        table_runs("table1", "miniature", methods=["sagapf"])


def test_what_needs_attribute_truth_is_not_planned_at_the_papers_scale():
    assert not [run for table in TABLE_RUNS for run in table_runs(table, "paper") if run.language_signal == "oracle"]
    assert not any(table_runs(table, "paper") for table in ("gates", "search", "lengths", "map", "words"))


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("profile", ["smoke", "miniature"])
def test_words_train_nothing_of_their_own(profile, full):
    seeds = {name: tables.seeds_of(profile, name, full) for name in tables.DATASETS[profile]}
    own, others = (table_runs(name, profile, seeds=seeds, full=full) for name in ("words", "table1"))
    assert own and set(own) <= set(others) and {run.method for run in own} == set(TABLE_RUNS["words"].methods)
    assert len({run.dataset for run in own}) <= 2 and len({run.seed for run in own}) <= 3


@pytest.mark.parametrize("case", ["cars", "--set supervisor"])
def test_table_5_without_runs_is_drawn_and_says_why(case):
    """Where no InternVL is shipped, or --set names another model: the notebook must not fail after hours of training."""
    dataset, why = ("miniature_cars", tables.NOT_YET) if case == "cars" else ("miniature_birds", tables.OTHER_MODEL)
    profile = Profile("miniature", {} if case == "cars" else {"supervisor": "/some/model"})
    assert table_runs("table5", profile, [dataset], ["pf", "saga_pf"]) == table_runs("table5", profile, [dataset]) == []
    cells = study_cells.table_cells("table5", profile, "S", [dataset])
    rows = ["pre-trained", "pf", "saga_pf", "contrast_pf"]
    assert [cell.config.method for cell in cells] == rows and {cell.absent for cell in cells} == {why}
    values, gains = differences.cell_table(cells, "08"), differences.differences(cells, {("saga_pf", "pf"): "SAGA − PF"})
    assert tables_2_to_5.display_family(values, gains, "miniature").iloc[2].astype(str).str.contains(why).any()
    figures.recall_curves(values, "none").savefig(io.BytesIO())
    assert any(why in sentence for sentence in tables_2_to_5.difference_sentences(gains))


def planned(*arguments, manifest=None):
    return study_plan.make_plan(study_command.make_parser().parse_args(arguments), "miniature", manifest)


def test_the_default_study_fits_into_forty_minutes_and_the_full_one_contains_it():
    default, full = planned(), planned("--full")
    trained, drawn = sum(map(minutes.expected_minutes, default.runs)), sum(n.minutes["miniature"] for n in NOTEBOOKS)
    assert 3 + (trained + drawn) / 2 <= 40  # the environment takes two to three; both queues run on two cores
    assert set(default.runs) < set(full.runs) and {*default.runs, *default.left_out()} == {*full.runs}
    assert full.left_out() == []
    assert {name: len(seeds) for name, seeds in full.seeds.items()} == {
        "miniature_birds": 5, "miniature_cars": 3, "miniature_aircraft": 5, "miniature_aves": 3,
    }  # fmt: skip
    assert sum(map(minutes.expected_minutes, full.runs)) / 2 <= 600
    only_full = {"lengths", "map", "mediation"}
    assert only_full <= set(full.tables()) and not {*only_full, "search"} & set(default.tables())
    said = listing.describe_left_out(default, "S", 2)
    for part in (
        "seeds 1, 2 of miniature_cars", "other numbers of steps", "the map over worlds", "--resume S --full",
        "the marked cells of notebooks",
    ):  # fmt: skip
        assert part in said
    assert listing.describe_left_out(full) == ""


def test_the_plans_minutes_are_what_committed_runs_took():
    """Of the newest study, on test classes: its search ran on a machine that did other things too."""
    newest = max((REPOSITORY / "results").glob("*-miniature-*"))
    took = {
        RunConfig.from_dict(json.loads((path.parent / "config.json").read_text())["config"]): json.loads(path.read_text())["seconds"] / 60
        for path in newest.glob("runs/*/evaluation.json")
    }
    took = {config: spent for config, spent in took.items() if config.evaluate_on == "test" and config.dataset != OWN_IMAGES}
    assert len(took) >= 60 and 0.75 < sum(took.values()) / sum(map(minutes.expected_minutes, took)) < 1.25


@pytest.mark.parametrize("profile", tables.DEFAULT_RUNS)
def test_a_notebook_that_draws_what_a_default_study_trains_a_share_of_is_told_so(profile):
    """Else it would train the rest itself, one run after the other."""
    for one in NOTEBOOKS:
        if {*one.needs} & {*tables.DEFAULT_RUNS[profile]}:
            assert "FULL" in one.takes, one.name


def test_the_search_is_trained_when_it_is_asked_for():
    full, searched = planned("--full"), planned("--full", "--search")
    assert "search" not in full.tables() and searched.tables()["search"] == trials.trials("miniature")
    assert {*full.runs} < {*searched.runs} == {*full.runs, *trials.trials("miniature")}
    for arguments in (["--only", "04"], ["--only", "11,99", "--full"]):
        with pytest.raises(SagaError, match="--search has no effect here"):
            planned("--search", *arguments)


def test_every_table_has_something_by_default_and_shares_what_others_train():
    default, full = planned(), planned("--full")
    one = {name: set(runs) for name, runs in default.tables().items()}
    for name in ("table1", "table2", "table3", "table4", "table5", "signals"):
        assert one[name] and one[name] <= set(full.tables()[name]), name
    for name in ("table2", "table3", "table4"):  # every row of the whole table that Table 1 trains anyway
        whole = set(table_runs(name, "miniature"))  # with one seed, as by default
        assert whole & one["table1"] <= one[name] < whole
        assert {run.dataset for run in one[name]} == {"miniature_birds"}
    shared = [set(runs) for runs in full.tables().values()]
    assert len(full.runs) == len(set.union(*shared)) < sum(map(len, shared))
    assert {run.seed for run in full.tables()["table3"]} == {0, 1, 2}


def test_by_default_birds_have_every_row_of_table_1_and_all_tables_one_seed():
    planned_runs = planned().tables()
    birds = {name: [run for run in runs if run.dataset == "miniature_birds"] for name, runs in planned_runs.items()}
    seeds = {method: {run.seed for run in birds["table1"] if run.method == method} for method in {run.method for run in birds["table1"]}}
    assert set(map(frozenset, seeds.values())) == {frozenset((0,))}
    assert {*seeds} == set(tables.methods_of("table1", "miniature")), "every row of Table 1"
    assert {run.dataset for run in planned_runs["table1"]} == {"miniature_birds"}
    for name in ("table2", "table3", "table4", "table5"):
        assert birds[name] and {run.seed for run in birds[name]} == {0}, name  # the same for all rows: they are paired by seed
    assert {(run.dataset, run.seed) for run in planned_runs["gradient_audit"]} == {("miniature_birds", 0)}
    named = planned("--seeds", "0,1").tables()
    assert {run.seed for run in named["table3"] if run.method == "contrast_ms"} == {0, 1}  # seeds by name are every table's
    full = planned("--full").tables()
    assert {run.seed for run in full["table5"] if run.method == "pf"} == {0, 1, 2}


def test_what_studies_have_finished_is_what_tables_ask_for():
    """Runs are found by their settings: what was trained before there were Tables 2-4 must still be found."""
    asked = [run.to_dict() for run in planned("--full", "--search").runs]
    records = [json.loads(path.read_text()) for path in (REPOSITORY / "results").glob("*-miniature-*/runs/*/config.json")]
    records = [record for record in records if record["code"] == study_manifest.code_digest()]
    own = [record for record in records if record["config"]["vocabulary"].startswith("results/")]  # notebook 13 trains these itself
    assert all(record["config"]["method"] == "pf_grpo_taught" for record in own)
    own += [record for record in records if record["config"]["dataset"] == OWN_IMAGES]  # and 15 these
    lost = [record["key"] for record in records if record["config"] not in asked and record not in own]
    assert lost == []
    table1 = set(table_runs("table1", "miniature", ["miniature_birds"]))
    full_size = [run for run in table_runs("table4", "miniature", ["miniature_birds"]) if run.embedding_dim in (0, 128)]
    assert {run.method for run in full_size} == {"pre-trained", "pf", "saga_pf", "contrast_pf"} and set(full_size) <= table1
    gates, on_map = (set(table_runs(name, "miniature")) for name in ("gates", "map"))
    of_both = {run for run in on_map if run.seed in trials.GATE_SEEDS and run.dataset in DATASETS["miniature"]}
    assert {run for run in of_both if not run.method.startswith("contrast")} <= gates
    sensitivity = set(table_runs("sensitivity", "miniature"))
    chosen = [run for run in table_runs("search", "miniature") if run.method == "saga_pf" and run in sensitivity]
    assert {run.seed for run in chosen} == set(trials.SEARCH_SEEDS), "the chosen trial is the middle of the sensitivity"


def test_tables_take_their_own_datasets_seeds_and_sizes():
    assert {run.dataset for run in table_runs("table2", "paper")} == {"cub200", "aircraft"}
    assert {run.dataset for run in table_runs("table2", "smoke")} == {"miniature_birds"}
    assert {run.dataset for run in table_runs("table3", "miniature", ["miniature_cars"])} == {"miniature_cars"}  # asked for by name
    many = {name: range(5) for name in DATASETS["miniature"]}
    assert {run.seed for run in table_runs("table2", "miniature", seeds=many)} == {0, 1, 2}
    assert {run.embedding_dim for run in table_runs("table4", "paper") if run.method == "pf"} == {4096, 512, 128}
    taught = [run for run in table_runs("table2", "miniature") if "_prompts" in run.supervisor]
    assert all(Path(run.supervisor).is_dir() for run in taught), "what no supervisor is there for is not planned"
    named = table_runs("table2", "miniature", ["miniature_birds"], ["pf", "pf_long", "pf_grpo_generic"], full=False)
    assert [run.method for run in named] == ["pf", "pf_grpo_generic", "pf_long"]
    at_paper = [run.method for run in table_runs("table2", "paper", ["cub200"], seeds=[0])]
    assert "pf_grpo_generic" in at_paper and "pf_grpo_taught" not in at_paper  # real models need not be taught
    assert table_runs("sensitivity", "paper", full=False) == [] and len(table_runs("sensitivity", "paper")) == 14


def test_the_cells_of_a_table_say_why_they_are_empty(faked):
    cells = study_cells.table_cells("table2", "smoke", "S", methods=["pf", "pf_grpo_generic"])
    assert [(one.config.method, len(one.runs)) for one in cells] == [("pf", 1), ("pf_grpo_generic", 1)]  # named, hence run
    cells = {one.config.method: one for one in study_cells.table_cells("table2", "smoke", "S", methods=["pf", "saga_pf"])}
    assert set(cells) == {"pf", "saga_pf"}
    faked(pf="crash", saga_pf="crash")  # nothing that is finished is trained again
    cells = {one.config.method: one for one in study_cells.table_cells("table2", "miniature", "S", ["miniature_aircraft"], ["pre-trained"])}
    assert list(cells) == ["pre-trained"]


def test_a_default_study_marks_what_belongs_to_the_full_one(faked):
    cells = study_cells.table_cells("table4", "miniature", "S", ["miniature_birds", "miniature_aircraft"])
    rows = ("pre-trained", "pf", "saga_pf", "contrast_pf")
    empty = {(one.config.dataset, one.config.method, one.config.embedding_dim or 128) for one in cells if not one.runs}
    of_birds = {("miniature_birds", name, size) for name in rows for size in (16, 4)} - {("miniature_birds", "pre-trained", 128)}
    assert empty == of_birds | {("miniature_aircraft", name, size) for name in rows for size in (128, 16, 4)}
    assert {one.absent for one in cells} == {"", "with --full"}
    whole = study_cells.table_cells("table4", "miniature", "S", ["miniature_birds"], seeds={"miniature_birds": [0, 1]}, full=True)
    assert all(len(one.runs) == (1 if one.config.method == "pre-trained" else 2) for one in whole) and len(whole) == 12
    assert tables.left_out("table1", "miniature", "miniature_birds") == {}
    assert tables.left_out("table1", "miniature", "miniature_cars", full=True) == {}
    assert tables.left_out("table1", "smoke", "miniature_birds") == {}
    assert tables.left_out("table1", "miniature", "miniature_cars", ["pf"]) == {}


def test_a_study_of_before_tables_2_to_4_gains_their_methods():
    old = {"datasets": list(DATASETS["miniature"]), "methods": list(TABLE_RUNS["table1"].methods), "seeds": {}, "full": True}
    assert planned(manifest=old).methods == () and "saga_pa" in {run.method for run in planned(manifest=old).runs}
    assert planned("--methods", "pf", manifest=old).methods == ()
    small = old | {"full": False, "seeds": {name: [0] for name in DATASETS["miniature"]}}
    assert set(table_runs("table1", "miniature", ["miniature_birds"])) <= set(planned(manifest=small).runs)  # what it had it keeps


def test_a_resumed_study_grows_to_the_full_one_and_never_shrinks():
    manifest = {"datasets": list(DATASETS["miniature"]), "methods": ["pf", "saga_pf"], "seeds": {"miniature_birds": [7]}, "full": False}
    grown = planned("--full", manifest=manifest)
    assert grown.full and grown.seeds["miniature_birds"] == (0, 1, 2, 3, 4, 7) and grown.methods == ("pf", "saga_pf")
    assert planned(manifest=manifest).seeds["miniature_birds"] == (7,)
    again = planned(manifest=manifest | {"full": True, "seeds": {name: list(seeds) for name, seeds in grown.seeds.items()}})
    assert again.full and again.seeds == grown.seeds and set(again.runs) == set(grown.runs)


def test_variants_of_a_profiles_benchmarks_may_be_asked_for():
    assert planned("--datasets", "miniature_cars+shift=0.8").datasets == ("miniature_cars+shift=0.8",)
    with pytest.raises(SagaError, match="did you mean 'shift'"):
        planned("--datasets", "miniature_cars+shfit=0.8")


# ---------------------------------------------------------------------------------- through the command line


STARTED_LIGHT = """
import importlib.abc, importlib.metadata, sys

known, light = importlib.metadata.packages_distributions(), set(sys.argv.pop(1).split())


class Light(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if path is None and not name.startswith("saga_") and name in known and not light & {each.lower() for each in known[name]}:
            raise ModuleNotFoundError(f"{name} is not there", name=name)


sys.meta_path.insert(0, Light())
from saga_study.study.command import main
sys.exit(main(sys.argv[1:]))
"""


def test_a_plan_needs_no_more_than_run_all_installs_for_it():
    """The packages that run_all.sh names, and what these need themselves; no torch, which takes minutes and gigabytes."""
    named = re.search(r"grep -iE '\^\(([a-z|]+)\)==' requirements.lock", (REPOSITORY / "run_all.sh").read_text())[1].split("|")
    assert "numpy" in named and len(named) < 10

    def shown(*options):
        light = " ".join([*named, "python-dateutil", "six", "tzdata"])
        command = [sys.executable, "-c", STARTED_LIGHT, light, *options]
        started = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)
        assert started.returncode == 0, (started.returncode, started.stderr)
        return started.stdout

    assert "hours of an H200" in shown("paper", "--list", "--only", "08")
    listed = shown("--list")
    assert "miniature_birds saga_pf seed 0" in listed and "04b_choosing_benchmarks.ipynb" in listed
    assert f"minutes in all: {len(planned().runs)} runs" in listed and "left out: seeds 1, 2, 3, 4 of miniature_birds" in listed


def test_the_help_that_needs_no_environment_is_the_help(monkeypatch):
    monkeypatch.setenv("COLUMNS", "110")
    written = (REPOSITORY / "saga_study" / "study" / "help.txt").read_text()
    assert written == study_command.make_parser().format_help(), "COLUMNS=110 python -m saga_study --help > saga_study/study/help.txt"
    run_all = (REPOSITORY / "run_all.sh").read_text()
    assert "cat saga_study/study/help.txt; exit" in run_all


def test_every_field_of_a_run_is_explained_in_the_help(capsys):
    explained = {name: entry for entries in field_help().values() for name, entry in entries.items()}
    assert list(explained) == [field.name for field in fields(RunConfig)] and all(text for _, _, text in explained.values())
    assert "--set help" in study_command.make_parser().format_help()
    assert main(["smoke", "--set", "help"]) == 0
    shown = capsys.readouterr().out
    assert [phase for phase in field_help() if phase != "the run"] == [line for line in shown.splitlines()[1:] if line[:1].strip()]
    settable = {name for name, (kind, *_) in explained.items() if kind in ("str", "int", "float", "bool")}
    assert set(re.findall(r"^  (\w+)=", shown, re.MULTILINE)) == settable - {"profile", "dataset", "method", "seed"}
    assert "  steps=3 (int) " in shown and "  train_mergers=true (bool) " in shown and "  lr_tower=0.0001 (float) " in shown


def test_the_list_counts_supervisors_that_have_to_be_made_first(tiny, monkeypatch, capsys):
    for they_are_there in (True, False):
        monkeypatch.setattr(Path, "is_dir", lambda path, there=they_are_there: there or "_after_" not in path.name)
        listing.print_list(planned("--full"))
    there, lacking = capsys.readouterr().out.split("runs of profile miniature")[1:]
    said = "half-taught supervisors, made before the runs"
    assert said not in there and f"{methods_module.HALF_TAUGHT_MINUTES:.1f}  {said}" in lacking
    total, more = (int(re.search(r"about (\d+) minutes", text).group(1)) for text in (there, lacking))
    assert more - total == pytest.approx(methods_module.HALF_TAUGHT_MINUTES, abs=1)
    listing.print_list(planned())
    assert said not in capsys.readouterr().out


def test_list_and_dry_run_execute_nothing(tiny, results):
    assert command("smoke", "--only", "4", "--seeds", "0,1", "--methods", "pf,pa", "--list").stdout.count("seed") == 4
    assert " hours) in all" in command("--list", "--full").stdout
    checked = command("smoke", "--only", "03,04_main_results.ipynb", "--dry-run")
    assert checked.stdout == f"{len(table_runs('table1', 'smoke'))} runs and 2 notebooks could start; nothing was executed\n"
    assert not results.exists()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["minature"], "unknown profile 'minature': did you mean 'miniature'?"),
        (["--datasets", "miniature_bird"], "unknown dataset 'miniature_bird': did you mean 'miniature_birds'?"),
        (["--methods", "pf,sagapf"], "unknown method 'sagapf': did you mean 'saga_pf'?"),
        (["--only", "04_main_result"], "unknown notebook '04_main_result': did you mean '04_main_results'?"),
        (["--seed", "0"], "unknown option '--seed': did you mean '--seeds'?"),
        (["--seeds", "one"], "--seeds takes numbers such as 0,1,2, got 'one'"),
        (["paper", "--list", "--gpu-memory", "80GB"], "--gpu-memory takes GiB, such as 80, got '80GB'"),
        (["--workers", "0"], "--workers takes a number of at least 1, got '0'"),
        (["--only"], "expected one argument"),
        (["--resume", "yesterday"], "unknown study 'yesterday'"),
        (["--resume", "LATEST"], "no study has been started"),
        (["test", "--only", "04"], "test takes no options"),
    ],
)
def test_mistakes_get_one_line(arguments, line, results, capsys):
    assert main([*arguments]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("error: ") and line in said.err and said.err.count("\n") == 1
    assert said.out == "" and not results.exists()


def test_paper_needs_a_gpu_and_its_data(monkeypatch, results, capsys, tmp_path):
    import torch

    monkeypatch.setenv("SAGA_DATA", str(tmp_path / "no data"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["paper"]) == 2
    said = capsys.readouterr().err
    assert "needs a CUDA GPU with about 80 GiB" in said and "./run_all.sh miniature" in said and said.count("\n") == 1
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert main(["paper", "--datasets", "cub200"]) == 2
    said = capsys.readouterr().err
    assert "CUB-200-2011: not found in" in said and "saga_study.prepare cub200" in said and said.count("\n") == 1
    assert not results.exists()


@pytest.mark.parametrize("option", ["--list", "--dry-run"])
def test_paper_is_planned_on_a_machine_that_has_nothing(option, monkeypatch, results, tmp_path):
    monkeypatch.setenv("SAGA_DATA", str(tmp_path / "no data"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    before = os.times()
    planned = command("paper", option, "--datasets", "cub200", "--gpu-memory", "40")
    seconds = sum(os.times()[2:4]) - sum(before[2:4])  # of the processor, for the machine may be busy
    assert planned.returncode == (0 if option == "--list" else 2) and planned.stderr == "", planned.stderr
    assert "on one GPU of 40 GiB; seconds are an H100's, a card of this size takes longer" in planned.stdout
    assert "GPU hours by table" in planned.stdout and "what fits in 40 GiB: cub200 " in planned.stdout
    assert "cub200 saga_pf: does not fit in 40 GiB" in planned.stdout and "lower, in this order" in planned.stdout
    if option == "--list":
        assert planned.stdout.splitlines()[-1].startswith("./run_all.sh paper --datasets cub200 --set ")
        assert seconds < 5 and "cub200 saga_pf seed 2" in planned.stdout
    else:
        assert "could not start here yet:" in planned.stdout and "CUB-200-2011: not found in" in planned.stdout
    assert not results.exists()


def test_models_that_cannot_be_estimated_or_are_not_pinned_are_told(results, capsys):
    def listed(*given):
        assert main(["paper", "--datasets", "cub200", "--methods", "pre-trained,pf", "--list", *given]) == 0
        return capsys.readouterr().out

    assert "not pinned" not in listed()  # both models of the tables come with a commit
    pins = {run.supervisor: run.revision for table in ("table1", "table5") for run in table_runs(table, "paper")}
    assert pins == {name: REVISIONS[name] for name in ("Qwen/Qwen3-VL-8B-Instruct", "OpenGVLab/InternVL3_5-8B-HF")}
    assert all(re.fullmatch("[0-9a-f]{40}", pin) for pin in REVISIONS.values())
    small = make_config("paper", "cub200", "pf", 0, supervisor="Qwen/Qwen3-VL-2B-Instruct")
    assert small.revision == REVISIONS[small.supervisor] and make_config("paper", "cub200", "pf", 0, revision="main").revision == "main"
    loose = listed("--set", "supervisor=someone/else", "--only", "04")
    assert "someone/else is not pinned: it follows the hub's default branch; --set revision=COMMIT pins it\n" in loose
    assert "not pinned" not in listed("--set", "supervisor=someone/else", "--set", "revision=0123abc", "--only", "04")
    plain = listed("--set", "supervisor=timm:vit_small_patch14_dinov2", "--only", "04")
    assert "no estimate: unknown model without a local folder 'timm:vit_small" in plain and "not pinned" not in plain
    assert "cub200 pf seed 0" in plain
    said = listed("--seeds", "0")
    assert "left out: seeds 1, 2 of cub200" in said and "the grid" not in said, "what --full would not add is not left out"


def test_missing_package_is_named(monkeypatch, capsys):
    find = study_plan.importlib.util.find_spec
    monkeypatch.setattr(study_plan.importlib.util, "find_spec", lambda name: None if name == "papermill" else find(name))
    assert main(["--dry-run"]) == 2
    assert "package papermill is missing" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------- a whole study


def test_study_from_start_to_resume(tiny, results, write_notebook):
    first = command("smoke", "--only", "03,04", "--methods", "pf,pre-trained")
    assert first.returncode == 0, first.stderr
    folder, manifest = only_study(results)
    assert (results / "LATEST").read_text() == f"{folder.name}\n"
    assert folder.name.split("-")[2] == "smoke"
    assert len((folder / "manifest.json").read_text().splitlines()) < 40
    assert manifest["status"] == "ok" and manifest["notebooks"] == ["03_grpo_training", "04_main_results"]
    assert manifest["data"]["miniature_birds"] == "pixels of miniature_birds"
    assert manifest["methods"] == ["pf", "pre-trained"] and manifest["wall_seconds"] > 0
    assert set(manifest["packages"]) == {"torch", "transformers", "faiss-cpu", "papermill", "numpy"}
    assert len([run for run in folder.glob("runs/*") if is_complete(run)]) == 3  # 03 asks for saga_pf
    executed = json.loads((folder / "notebooks" / "04_main_results.ipynb").read_text())
    assert manifest["seeds"] == {"miniature_birds": [0]} and manifest["full"] is False
    assert "['pf', 'pre-trained'] {'miniature_birds': [0]}" in json.dumps(executed["cells"])
    assert [cell["execution_count"] for cell in executed["cells"]] == [1, 2, 3]
    for path in filter(Path.is_file, folder.rglob("*")):
        content = lzma.decompress(path.read_bytes()) if path.suffix == ".xz" else path.read_bytes()
        assert str(folder).encode() not in content, f"{path} names this machine's folders"
    assert len(list(folder.glob("runs/*/metrics.json.xz"))) == 3 and not list(folder.glob("runs/*/metrics.jsonl"))
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]

    # Nothing has changed: nothing is done. Then one notebook changes, and another seed is wanted.
    again = command("--resume", folder.name, "--only", "03,04")
    assert again.returncode == 0 and again.stdout.count("nothing changed, kept") == 2, again.stderr
    assert "to train" not in again.stderr
    write_notebook("03_grpo_training", TAKES, "print('changed')")
    more = command("smoke", "--resume", "LATEST", "--only", "03", "--seeds", "1")
    assert more.returncode == 0 and "nothing changed" not in more.stdout, more.stderr
    assert only_study(results)[1]["seeds"] == {"miniature_birds": [0, 1]}


def test_notebooks_run_side_by_side_and_what_sums_up_comes_last(tiny, results, write_notebook, tmp_path):
    def cell(own, other):
        return f"""
import pathlib, time
pathlib.Path({str(tmp_path)!r}, {own!r}).touch()
deadline = time.monotonic() + 240
while not pathlib.Path({str(tmp_path)!r}, {other!r}).exists():  # neither can end without the other
    assert time.monotonic() < deadline
    time.sleep(0.05)
"""

    write_notebook("01_data_pairing", TAKES, cell("one", "two"))
    write_notebook("02_attribute_vocabularies", TAKES, cell("two", "one"))
    last = f"import pathlib\nassert len(list(pathlib.Path({str(results)!r}).glob('*/notebooks/0*.ipynb'))) == 2"
    write_notebook("99_report", TAKES, last)
    both = command("smoke", "--only", "01,02,99", "--workers", "2")
    assert both.returncode == 0, both.stderr
    folder, manifest = only_study(results)
    assert manifest["notebooks"] == ["01_data_pairing", "02_attribute_vocabularies", "99_report"]
    assert not (folder / ".executing").exists()


def test_failed_notebook_leaves_nothing_in_its_place(tiny, results, write_notebook):
    write_notebook("04_main_results", TAKES_ALL, "print('fine')", "raise ValueError('three proxies are missing')")
    failed = command("smoke", "--only", "04", "--methods", "pre-trained")
    folder, manifest = only_study(results)
    assert failed.returncode == 1 and manifest["status"] == "failed"
    last = failed.stderr.splitlines()[-1]
    assert "notebook 04_main_results failed: cell " in last and "ValueError: three proxies are missing" in last
    assert "Traceback" not in failed.stderr and "Traceback" in (folder / "error.log").read_text()
    assert not list(folder.rglob("*.ipynb"))

    write_notebook(
        "04_main_results", TAKES_ALL,
        "from saga_lib.common.errors import SagaError\nraise SagaError('seed 1 is missing; run it first')",
    )  # fmt: skip
    mendable = command("smoke", "--resume", "LATEST", "--only", "04")
    assert mendable.returncode == 2
    assert "error: notebook 04_main_results: seed 1 is missing; run it first; after mending" in mendable.stderr
    assert not list(folder.rglob("*.ipynb"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_interrupt_stops_training_and_says_how_to_go_on(tiny, results, number):
    tiny(saga_pf="slow")
    process = start_in_background("smoke", "--only", "03")
    wait_for(lambda: list(results.glob("*/runs/*/metrics.jsonl")))
    workers = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(number)
    said = process.communicate(timeout=20)[1]
    folder, manifest = only_study(results)
    assert process.returncode == 128 + number
    assert said.splitlines()[-1] == f"interrupted; continue with ./run_all.sh smoke --resume {folder.name}"
    assert manifest["status"] == "interrupted"
    assert workers and not psutil.wait_procs(workers, timeout=5)[1]
    assert not list(folder.rglob(".lock")) and not list(folder.glob("runs/*/evaluation.json"))
    tiny()
    assert command("--resume", folder.name, "--only", "03").returncode == 0
    assert only_study(results)[1]["status"] == "ok"


def test_interrupt_stops_a_notebook_and_its_kernel(tiny, results, write_notebook, tmp_path):
    sign = tmp_path / "running"
    cell = f"import pathlib, time\npathlib.Path({str(sign)!r}).touch()\ntime.sleep(60)"
    write_notebook("03_grpo_training", TAKES, cell)
    process = start_in_background("smoke", "--only", "03")
    wait_for(sign.exists)
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    assert "interrupted; continue with" in process.communicate(timeout=20)[1]
    assert process.returncode == 130 and len(children) >= 2  # papermill and the kernel
    assert not psutil.wait_procs(children, timeout=10)[1]
    folder = only_study(results)[0]
    assert not list(folder.rglob("*.ipynb")) and not (folder / ".executing").exists()


def start_in_background(*arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "saga_study", *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        cwd=REPOSITORY,
    )  # fmt: skip


def test_crashed_run_fails_the_study(tiny, results, capsys):
    tiny(saga_pf="crash")
    assert main(["smoke", "--only", "03"]) == 1
    folder, manifest = only_study(results)
    assert manifest["status"] == "failed"
    last = capsys.readouterr().err.splitlines()[-1]
    assert "ZeroDivisionError: the loss divided by nothing" in last and str(folder / "error.log") in last
    assert "Traceback" in (folder / "error.log").read_text()


def test_full_disk_is_one_line(tiny, results, capsys, monkeypatch):
    def no_space(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", no_space)
    assert main(["smoke", "--only", "03"]) == 2
    said = capsys.readouterr().err
    assert "No space left on device; free some space" in said and said.count("\n") == 1
    assert not [path for path in results.rglob("*") if path.is_file()]


# ----------------------------------------------------------------------------------------- resume, refused


@pytest.fixture
def made(results):
    """A finished smoke study."""
    plan = study_plan.make_plan(study_command.make_parser().parse_args([]), "smoke")
    manifest = study_manifest.start_manifest(plan) | {"status": "ok"}
    study_manifest.write_manifest(manifest)
    return manifest


def test_resume_refuses_another_profile(made, capsys):
    assert main(["miniature", "--resume", made["study"]]) == 2
    said = capsys.readouterr().err
    assert "is of profile smoke, not miniature" in said and f"./run_all.sh smoke --resume {made['study']}" in said


def test_resume_refuses_other_code(made, capsys, monkeypatch):
    monkeypatch.setattr(study_manifest, "code_digest", lambda: "0123456789ab")
    assert main(["--resume", made["study"]]) == 2
    said = capsys.readouterr().err
    assert f"made by code {made['code']}" in said and "this is code 0123456789ab" in said


def test_resume_takes_a_path_and_suggests_the_closest_study(made, capsys):
    assert main(["--resume", f"results/{made['study']}/", "--list"]) == 0
    assert main(["--resume", made["study"][:-1] + "x", "--list"]) == 2
    assert f"did you mean '{made['study']}'" in capsys.readouterr().err


def test_one_study_is_not_carried_out_twice_at_once(tiny, made, capsys):
    holder = psutil.Process().pid
    with execution.only_one_process(study_folder(made["study"]) / ".lock", "x"):
        assert main(["--resume", made["study"], "--only", "03"]) == 2
    assert f"being worked on by process {holder}" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------- parameters


def test_parameters_are_read_with_their_types(write_notebook):
    path = write_notebook("n", 'A: str = "x"  # help\nB = 2\nC: float | None = None\nD: tuple = (\n    1,\n    2,\n)')
    read = parameters.read_parameters(path)
    assert {name: (p.type, p.optional) for name, p in read.items()} == {
        "A": ("str", False), "B": ("int", False), "C": ("float", True), "D": ("tuple", False),
    }  # fmt: skip
    parameters.check_parameters(path, {"A": "y", "B": 3, "C": 1, "D": [1]})
    parameters.check_parameters(path, {"C": None, "D": ()})


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"STUDDY": "s"}, "unknown parameter of n.ipynb 'STUDDY': did you mean 'STUDY'"),
        ({"STUDY": 3}, "STUDY must be of type str, got 3"),
        ({"STEPS": "300"}, "STEPS must be of type int, got '300'"),
        ({"STEPS": True}, "STEPS must be of type int, got True"),
        ({"STEPS": None}, "STEPS must be of type int, got None"),
        ({"SEEDS": 0}, "SEEDS must be of type tuple, got 0"),
    ],
)
def test_wrong_parameters_are_refused(write_notebook, given, line):
    path = write_notebook("n", TAKES + "STEPS: int = 300\nSEEDS: tuple = (0,)")
    with pytest.raises(SagaError, match=line):
        parameters.check_parameters(path, given)


@pytest.mark.parametrize(
    ("source", "line"),
    [
        (None, "no cells tagged 'parameters'"),
        ("A = 2\nB = A * 2", "line 2: B is not a literal"),
        ("import os", "line 1: only lines such as"),
        ("A = ", "line 1: invalid syntax"),
    ],
)
def test_wrong_parameter_cells_are_refused(write_notebook, source, line):
    path = write_notebook("n", source)
    with pytest.raises(SagaError, match=line):
        parameters.check_parameters(path, {})


def test_study_checks_parameters_before_anything_runs(tiny, write_notebook, results, capsys):
    write_notebook("04_main_results", TAKES + "DATASETS: int = 3\nMETHODS: tuple = ()\nSEEDS: dict = {}\nFULL: bool = False")
    assert main(["smoke"]) == 2 and main(["smoke", "--only", "04"]) == 2
    said = capsys.readouterr().err
    assert "unknown notebook '00_miniature_world.ipynb'" in said and "DATASETS must be of type int" in said
    assert not results.exists()


def test_study_refuses_methods_without_the_baseline(faked, write_notebook, capsys):
    write_notebook("04_main_results", TAKES_ALL + '\nBASELINE: str = "pf"')
    assert main(["smoke", "--only", "04", "--methods", "pa,ms"]) == 2
    assert "04_main_results compares with pf: add it to --methods" in capsys.readouterr().err
    write_notebook("04_main_results", TAKES_ALL + '\nBASELINE: str = ""')  # the best of those that are run
    assert main(["smoke", "--only", "04", "--methods", "pa,ms", "--dry-run"]) == 0


def test_our_reading_of_parameters_agrees_with_papermill(write_notebook):
    import papermill

    for path in [write_notebook("n", TAKES_ALL), *sorted((REPOSITORY / "notebooks").glob("*.ipynb"))]:
        if "parameters" in path.read_text():
            seen = papermill.inspect_notebook(str(path))
            assert set(seen) == set(parameters.read_parameters(path)), path.name


# ------------------------------------------------------------------------------------ the notebook's context


def test_context_saves_tables_and_figures_reproducibly(capsys, monkeypatch):
    import matplotlib

    matplotlib.use("agg")
    import pandas as pd
    from matplotlib.figure import Figure

    monkeypatch.setenv("OMP_NUM_THREADS", "7")  # put back after the test, whatever start does to it
    context = notebook.start(BY_HAND, "miniature", 4, SEEDS=(0, 1))
    assert os.environ["OMP_NUM_THREADS"] == "1"
    assert "SEEDS = (0, 1)" in capsys.readouterr().out
    context.save_table("t", pd.DataFrame({"method": ["a|b", "c"], "R@1": [1 / 3, None]}))
    path = study_folder(BY_HAND) / "tables" / "t.csv"
    assert path.with_suffix(".tex").read_text().splitlines()[1:6] == [
        r"\begin{tabular}{lr}", r"\toprule", r"method & R@1 \\", r"\midrule", r"a\textbar{}b & 0.3333 \\",
    ]  # fmt: skip
    for name in ("t_values", "t_details", "t_queries"):  # of those nobody makes a page
        context.save_table(name, pd.DataFrame({"x": [1]}))
        assert (path.parent / f"{name}.csv").is_file() and not (path.parent / f"{name}.tex").exists()
    assert path.read_text() == "method,R@1\na|b,0.3333333\nc,\n"
    assert path.with_suffix(".md").read_text() == "| method | R@1 |\n| --- | ---: |\n| a\\|b | 0.3333 |\n| c |  |\n"
    context.save_table("t", pd.DataFrame({"x": [1]}, index=["row"]))
    assert path.read_text() == "index,x\nrow,1\n"

    def draw():
        figure = Figure()
        figure.subplots().plot([1, 3, 2])
        context.save_figure("f", figure)
        png = context.figures_folder / "f.png"
        return png.read_bytes(), png.with_suffix(".svg").read_bytes()

    assert draw() == draw()


def test_latex_survives_what_stands_in_our_tables():
    import pandas as pd

    head = "R@1 − PF in points [95 %], λ_lm & φ"
    text = writers.latex_table(pd.DataFrame({head: ["[−1.0, +2.0]", "*", "50 % ± 1_a"], "n": [1.25, None, 3.0]}))
    assert text.splitlines() == [
        r"% needs \usepackage{booktabs}", r"\begin{tabular}{lr}", r"\toprule",
        r"R@1 $-$ PF in points [95 \%], $\lambda$\_lm \& $\varphi$ & n \\", r"\midrule",
        r"{[}$-$1.0, +2.0] & 1.25 \\", r"{*} &  \\", r"50 \% $\pm$ 1\_a & 3 \\", r"\bottomrule", r"\end{tabular}",
    ]  # fmt: skip
    awkward = writers.latex_table(pd.DataFrame({"x": ["{a}~^\\#$<\"\n–→"]}))
    escaped = r"\{a\}\textasciitilde \textasciicircum \textbackslash \#\$\textless{}'' --$\to$ \\"
    assert awkward.splitlines()[5] == escaped


def test_every_letter_of_a_saved_table_is_plain_in_latex(write_notebook):
    """Letters beyond ASCII must be in the table of replacements, or a plain LaTeX would stop at them."""
    from saga_study.methods import METHOD_LABELS

    used = {*METHOD_LABELS.values(), *differences.parts("miniature").values(), *trials.SETTING_LABELS.values(), "− ± → – [", tables.NOT_YET}
    assert all(letter.isascii() or ord(letter) in writers.LATEX_SIGNS for text in used for letter in text)


def test_start_refuses_what_does_not_fit(made):
    with pytest.raises(SagaError, match="did you mean 'miniature'"):
        notebook.start(BY_HAND, "minature", 4)
    with pytest.raises(SagaError, match="unknown study"):
        notebook.start("nowhere", "smoke", 4)
    with pytest.raises(SagaError, match="is of profile smoke, not miniature"):
        notebook.start(made["study"], "miniature", 4)
    assert notebook.start(made["study"], "smoke", "04").number == "04"


def test_an_executed_notebook_begins_with_its_answer():
    import nbformat
    from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

    from saga_study.study.papermill import put_answer_first

    def made(*printed):
        outputs = [new_output("stream", text=text) for text in printed]
        shown = new_code_cell("x", outputs=[new_output("stream", text="above\n")])
        return new_notebook(cells=[new_markdown_cell("# 04 · Title\n## Question"), shown, new_markdown_cell("## Reading\nComputed."),
                                   new_code_cell("y", outputs=outputs)])  # fmt: skip

    notebook = made("- one.\n\ntwo <b>.\n", "three.\nfour.\n")
    put_answer_first(notebook)
    nbformat.validate(notebook)
    assert notebook.cells[1].source.startswith("## Answer\n\n- one.\n- two <b>.\n- three.\n") and "1 more stand" in notebook.cells[1].source
    assert len(notebook.cells) == 5 and "above" not in notebook.cells[1].source
    silent = made()
    put_answer_first(silent)
    assert len(silent.cells) == 4
