"""The paper's profile from the command line to its tables, on a CPU: tiny checkpoints as published, small copies of the datasets.

What stands in for the full size is small, not another path: official layouts with the expected counts shrunk to match, files
as the hub has them, and settings by `--set`. The supervisor's answers are well-formed and its verdicts random, so that
GRPO and attention alignment have something to work on.
"""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace

import psutil
import pytest
from layouts import build
from tiny import IMAGE_SIZE, as_published, build_talking_checkpoint

from saga_lib import records
from saga_lib.common.files import read_json
from saga_lib.common.paths import REPOSITORY
from saga_lib.config import RunConfig
from saga_study import methods
from saga_study.datasets.real import OFFICIAL
from saga_study.design import tables
from saga_study.design.tables import DATASETS
from saga_study.methods import METHOD_LABELS
from saga_study.runs.reproduce import reproduce
from saga_study.runs.store import load_finished, train_or_load
from saga_study.study import command as study_command
from saga_study.study import manifest as study_manifest
from saga_study.study import plan as study_plan
from saga_study.study.command import main

METHODS = ("pre-trained", "pf", "saga_pf")
IMAGES = 4  # of each of six classes
SETTINGS = {
    "steps": 3, "checkpoint_every": 1, "image_size": IMAGE_SIZE, "embedding_dim": 16, "batch_size": 8, "batch_images_per_class": 2,
    "pairs_per_wave": 4, "group_size": 4, "contributing_pairs": 2, "max_new_tokens": 24, "attention_layer": 1,
}  # fmt: skip
SMALL = {"classes": (3, 3), "images": (3 * IMAGES, 3 * IMAGES), "per_class": (IMAGES, IMAGES), "checksums": ()}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The four datasets, and a checkpoint of each family."""
    root = tmp_path_factory.mktemp("paper")
    for layout in ("cub200", "cars196 (b)", "aircraft", "inat_aves"):
        build(layout, root / "data", [IMAGES] * 6)
    for family in ("qwen3_vl", "internvl"):
        as_published(build_talking_checkpoint(root / f"made_{family}", family), root / family)
    return root


@pytest.fixture
def small(folders, tmp_path, monkeypatch):
    """Small datasets are whole ones, here and in child processes; GPUs are hidden."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(
        textwrap.dedent(f"""
        from dataclasses import replace
        from saga_study.datasets.real import OFFICIAL
        for name in OFFICIAL:
            OFFICIAL[name] = replace(OFFICIAL[name], **{SMALL!r})
        """)
    )
    for name, dataset in list(OFFICIAL.items()):
        monkeypatch.setitem(OFFICIAL, name, replace(dataset, **SMALL))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, (site, REPOSITORY))))
    monkeypatch.setenv("SAGA_DATA", str(folders / "data"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    records.code_digest.cache_clear()


def arguments(checkpoint, only="04", methods=METHODS, datasets=()):
    settings = SETTINGS | {"supervisor": checkpoint}
    chosen = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    named = ["--methods", ",".join(methods)] if methods else []
    named += ["--datasets", ",".join(datasets)] if datasets else []
    return ["paper", "--cpu", "--workers", "1", "--only", only, *named, "--seeds", "0", *chosen]


def command(*given):
    return subprocess.run([sys.executable, "-m", "saga_study", *given], capture_output=True, text=True, timeout=1200, cwd=REPOSITORY)


def check_study(results, checkpoint):
    """Check what a finished rehearsal left, and return its folder."""
    [path] = results.glob("*/manifest.json")
    manifest = read_json(path)
    assert manifest["status"] == "ok" and manifest["profile"] == "paper" and manifest["cpu"] is True
    assert manifest["settings"] == SETTINGS | {"supervisor": str(checkpoint)} and len(path.read_text().splitlines()) < 40
    records = [read_json(run / "config.json") for run in path.parent.glob("runs/*")]
    configs = [RunConfig.from_dict(record["config"]) for record in records]
    assert {(c.dataset, c.method) for c in configs} == {(name, method) for name in DATASETS["paper"] for method in METHODS}
    for run in load_finished(path.parent.name, configs).values():
        trains = run.config.method != "pre-trained"
        assert run.evaluation["steps"] == len(run.metrics) == 3 * trains and run.evaluation["num_queries"] == 3 * IMAGES
        assert run.has_encoder() and not (run.folder / "checkpoint").exists()
        if run.config.method == "saga_pf":
            last = run.metrics.iloc[-1]
            assert last["json_valid"] == 1 and last["truncated"] == 0 and run.metrics["contributing_pairs"].max() > 0
            assert run.metrics["grad_lm"].max() > 1e-4 and run.metrics["grad_kl"].max() > 1e-4
    for name in DATASETS["paper"]:
        table = (path.parent / "tables" / f"04_table1_{name}.md").read_text()
        assert "R@1 % paper (full scale" in table and "R@1 % ours (paper)" in table
        assert all(f"| {METHOD_LABELS[method]} |" in table for method in METHODS)
    notebook = (path.parent / "notebooks" / "04_main_results.ipynb").read_text()
    assert "in place of the profile's own settings: steps = 3" in notebook
    return path.parent


def test_qwen3_vl_through_the_command_line_killed_and_resumed(folders, small, results, tmp_path, capsys):
    checkpoint = folders / "qwen3_vl"
    assert main([*arguments(checkpoint), "--list"]) == 0
    listed = capsys.readouterr().out
    for part in ("12 runs, 1 at a time, and 1 notebooks", f"{checkpoint} on one GPU", "inat_aves saga_pf seed 0"):
        assert part in listed
    assert main([*arguments(checkpoint), "--dry-run"]) == 0
    assert "12 runs and 1 notebooks could start" in capsys.readouterr().out and not results.exists()

    started = subprocess.Popen([sys.executable, "-m", "saga_study", *arguments(checkpoint)], cwd=REPOSITORY, stderr=subprocess.DEVNULL,
                               stdout=subprocess.DEVNULL)  # fmt: skip
    deadline = time.monotonic() + 900
    while not list(results.glob("*/runs/*/checkpoint/counters.json")):
        assert started.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    workers = psutil.Process(started.pid).children(recursive=True)
    for process in (*workers, started):  # as when the machine goes down
        process.send_signal(signal.SIGKILL)
    started.wait()
    psutil.wait_procs(workers, timeout=10)
    [manifest] = results.glob("*/manifest.json")
    [counters] = results.glob("*/runs/*/checkpoint/counters.json")
    killed = counters.parents[1]
    assert read_json(manifest)["status"] == "running" and not (killed / "evaluation.json").exists()
    assert 1 <= read_json(counters)["step"] < 3

    plan = study_plan.make_plan(study_command.make_parser().parse_args(arguments(checkpoint)), "paper")
    for run in plan.runs:  # all but the killed one here, where everything is imported already
        if run.to_dict() != read_json(killed / "config.json")["config"]:
            train_or_load(run, manifest.parent.name)
    resumed = command("--resume", "LATEST", "--only", "04")
    assert resumed.returncode == 0, resumed.stderr
    assert "1 of 12 runs to train" in resumed.stderr
    assert check_study(results, checkpoint) == killed.parents[1]
    assert reproduce(killed, tmp_path / "again") == [], "a killed run ends with the numbers of one that was not"
    assert main(["--resume", "LATEST", "--set", "steps=4"]) == 2
    assert "has settings of its own (steps=3, " in capsys.readouterr().err


def test_internvl_on_all_datasets(folders, small, results):
    checkpoint = folders / "internvl"
    plan = study_plan.make_plan(study_command.make_parser().parse_args(arguments(checkpoint)), "paper")
    manifest = study_manifest.start_manifest(plan)
    study_manifest.write_manifest(manifest)
    for run in plan.runs:  # here, where everything is imported already
        train_or_load(run, manifest["study"])
    assert main(["--resume", manifest["study"], "--only", "04"]) == 0
    check_study(results, checkpoint)


def executed_study(given, numbers, results):
    """Train the runs of a command here, where everything is imported already, let it execute its notebooks; return its folder and runs."""
    plan = study_plan.make_plan(study_command.make_parser().parse_args(given), "paper")
    manifest = study_manifest.start_manifest(plan)
    study_manifest.write_manifest(manifest)
    for run in plan.runs:
        train_or_load(run, manifest["study"])
    assert main(["--resume", manifest["study"], "--only", ",".join(numbers)]) == 0
    return results / manifest["study"], {(run.dataset, run.method, run.embedding_dim) for run in plan.runs}


def test_all_tables_and_figures_of_the_paper(folders, small, results):
    """Every method on a dataset of Tables 2 to 4, and the notebooks of Tables 1 to 5, of Figures 3 and 5, and 12."""
    datasets = ("cub200",)
    numbers = ("04", "05", "06", "07", "08", "09", "10", "12")
    folder, planned = executed_study(arguments(folders / "qwen3_vl", ",".join(numbers), (), datasets), numbers, results)
    assert {name for _, name, _ in planned} >= {*tables.methods_of("table1", "paper"), *tables.methods_of("table2", "paper"), "saga_ms"}
    assert len(list((folder / "runs").glob("*/evaluation.json"))) == len(planned)
    executed = {path.name.split("_")[0] for path in (folder / "notebooks").glob("*.ipynb")}
    assert executed == set(numbers)
    for name in ("05_table2", "06_table3", "07_table4", "08_table5"):
        table = (folder / "tables" / f"{name}.md").read_text()
        assert "ours (paper)" in table and ("left out with --set supervisor" in table) == (name == "08_table5"), name
    pages = {path.name for path in (folder / "figures").iterdir()}
    assert {f"{figure}_{name}.png" for figure in ("09_figure3", "10_figure5") for name in datasets} <= pages


def test_encoders_are_tested_on_other_datasets(folders, small, results):
    """Notebook 18, which asks every encoder about two datasets."""
    given = arguments(folders / "qwen3_vl", "18", ("pre-trained", "pf", "infonce", "saga_pf"), ("cub200", "aircraft"))
    folder, _ = executed_study(given, ("18",), results)
    pages = {path.name for path in (folder / "figures").iterdir()}
    assert {"18_gains.png", "18_elsewhere.png"} <= pages, "every encoder was tested on the other dataset"


# ------------------------------------------------------------------------------------------------------ --set


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ("stps=3", "unknown run setting 'stps': did you mean 'steps'?"),
        ("dml_options=1", "unknown run setting 'dml_options'"),
        ("steps", "--set takes name=value, for steps of type int, got 'steps'"),
        ("steps=2.5", "for steps of type int, got 'steps=2.5'"),
        ("train_mergers=maybe", "for train_mergers of type bool"),
        ("seed=3", "--set seed is not for this: use --seeds"),
        ("dml_loss=pa", "--set dml_loss=pa changes no run of this command"),
        ("group_size=1", "group_size 1: GRPO compares rollouts"),
        ("batch_size=7", "batch_size 7 must be a multiple"),
    ],
)
def test_mistakes_in_settings_get_one_line(given, line, results, capsys):
    assert main(["paper", "--methods", "pf,saga_pf", "--list", "--set", given]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("error: ") and line in said.err and said.err.count("\n") == 1 and not said.out


def test_settings_take_the_place_of_the_profiles_and_leave_methods_alone():
    def planned(*given):
        options = study_command.make_parser().parse_args(["--datasets", "miniature_birds", "--full", *given])
        plan = study_plan.make_plan(options, "miniature")
        return {run.method: run for run in plan.runs if run.evaluate_on == "test"}

    before = planned()
    runs = planned("--set", "steps=20", "--set", "lr_tower=1e-5", "--set", "balance_gradients=true")
    assert runs["pre-trained"].steps == 0 and runs["pf"].steps == 20
    assert runs["pf_long"].steps == 20 * methods.WALL_CLOCK["miniature"]
    assert runs["ms"].lr_tower == runs["saga_pf"].lr_tower == 1e-5 and runs["saga_pf"].balance_gradients is True
    assert planned() == before, "the next command knows nothing of them"
    assert methods.parse_settings(["supervisor=notebooks"])["supervisor"] == str(REPOSITORY / "notebooks")
    assert methods.parse_settings(["supervisor=Qwen/Qwen3-VL-4B-Instruct", "revision=abc"]) == {
        "supervisor": "Qwen/Qwen3-VL-4B-Instruct", "revision": "abc",
    }  # fmt: skip
    assert json.loads(json.dumps(methods.parse_settings(["lambda_lm=0.5"]))) == {"lambda_lm": 0.5}
