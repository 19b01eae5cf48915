"""A study: which runs its tables need, which notebooks draw them, and the command that carries it out.

The order is always the same: choose or resume a study folder, write its manifest, train the missing runs in
parallel, execute the notebooks one by one. Everything heavy is imported late, so that `--help` and `--list`
answer at once.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from saga_lib import paths, planner
from saga_lib.config import METHODS, PROFILES, SHIPPED, TIMM, RunConfig, code_digest, is_set, make_config, parse_settings, use_settings
from saga_lib.errors import CommandLine, SagaError, unknown_name
from saga_lib.files import read_json, write_json, write_text
from saga_lib.notebooks import check_parameters, executed_inputs, read_parameters, source_digest
from saga_lib.paths import BY_HAND, REPOSITORY, results_root, study_folder
from saga_lib.runs import (
    PATIENCE_SECONDS,
    ProgressLine,
    Run,
    RunFailed,
    child_environment,
    count_cores,
    default_workers,
    describe,
    finished_runs,
    load_run,
    on_cpu,
    only_one_process,
    pack_logs,
    run_folder,
    run_queue,
    show_duration,
    stop_on_signals,
    train_or_load,
)

if TYPE_CHECKING:
    from saga_lib.comparisons import Cell

# ------------------------------------------------------------------------------------ what a study is made of

DATASETS = {  # by profile
    "smoke": ("miniature_birds",),
    "miniature": ("miniature_birds", "miniature_cars", "miniature_aircraft", "miniature_aves"),
    "paper": ("cub200", "cars196", "aircraft", "inat_aves"),
}
SEEDS = {"smoke": (0,), "miniature": (0,), "paper": (0, 1, 2)}  # the default: what fits into an hour on two cores
TABLE_1_SEEDS = {"miniature_birds": (0, 1, 2)}  # more by default, for Table 1; rows of one table have the same seeds
FULL_SEEDS = {  # with --full; datasets that are not named have those of SEEDS
    "miniature_birds": (0, 1, 2, 3, 4), "miniature_cars": (0, 1, 2), "miniature_aircraft": (0, 1, 2, 3, 4), "miniature_aves": (0, 1, 2),
}  # fmt: skip


SECOND_FAMILY = {  # Table 5: settings that put encoder and supervisor of another MLLM family in place of the profile's
    "smoke": {"taught": "internvl"}, "miniature": {"taught": "internvl"},
    "paper": {"supervisor": "OpenGVLab/InternVL3_5-8B-HF", "revision": ""},  # --set revision=… pins the profile's own
}  # fmt: skip
EMBEDDING_DIMS = {"smoke": (128, 4), "miniature": (128, 16, 4), "paper": (4096, 512, 128)}  # Table 4: the full size, 1/8, 1/32
OF_TABLES_2_TO_4 = ("miniature_birds", "miniature_aircraft", "cub200", "aircraft")  # the paper's two, and what stands in for them


@dataclass(frozen=True)
class TableRuns:
    """The runs a table or figure needs: its methods, for each dataset and seed of the study."""

    methods: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()  # of the study's only these; none of them, or nothing here: all of the study's
    max_seeds: int | None = None  # of a dataset's seeds the first so many; None: all
    sizes: bool = False  # every method at each of EMBEDDING_DIMS
    second_family: bool = False  # with SECOND_FAMILY
    is_example: bool = False  # one dataset and seed, whatever the command line asks for
    on_validation: bool = False  # what saga_lib.tuning.RUNS lists instead, whatever methods and seeds are asked for
    only_full: bool = False  # with --full only


TABLE_RUNS = {
    "table1": TableRuns((
        "pre-trained", "pa", "ms", "infonce", "pf", "pf_attention", "pf_kl", "pf_grpo", "saga_pf", "saga_shuffled", "oracle",
        "oracle_wrong", "pf_long",
    )),
    "table2": TableRuns(
        (
            "pre-trained", "pf", "pf_grpo", "pf_grpo_generic", "pf_kl", "saga_pf", "pf_attention", "pf_long", "saga_shuffled", "grpo_alone",
            "pf_grpo_taught",
        ),
        OF_TABLES_2_TO_4, max_seeds=3,
    ),
    "table3": TableRuns(
        ("ms", "pa", "pf", "infonce", "saga_ms", "saga_pa", "saga_pf", "saga_infonce"), OF_TABLES_2_TO_4, max_seeds=3,
    ),
    "table4": TableRuns(("pre-trained", "pf", "saga_pf"), OF_TABLES_2_TO_4, max_seeds=3, sizes=True),
    "table5": TableRuns(("pre-trained", "pf", "saga_pf"), ("miniature_birds", "cub200"), max_seeds=3, second_family=True),
    "sensitivity": TableRuns(on_validation=True),
    "training_curves": TableRuns(("saga_pf",), is_example=True),
    "gradient_audit": TableRuns(("saga_pf",)),
    "figure3": TableRuns(("pf_attention", "pf_kl", "saga_pf"), max_seeds=3),
    "figure5": TableRuns(("pre-trained", "pf", "saga_pf", "oracle"), max_seeds=3),
    "gates": TableRuns(on_validation=True),
    "search": TableRuns(on_validation=True, only_full=True),
    "lengths": TableRuns(on_validation=True, only_full=True),
    "when": TableRuns(on_validation=True, only_full=True),
}  # fmt: skip

# What a study without --full trains of a table, where that is not the whole of it: at miniature scale about 100 minutes of one
# core in all, under an hour on two. What a table shares with the others' share stands in it too; its other cells are drawn and marked.
# `more` are methods of one dataset beside those of all, `settings` are values out of saga_lib.tuning.SENSITIVITY. Methods named on the
# command line are trained whatever stands here.
DEFAULT_RUNS: dict[str, dict[str, dict]] = {
    "smoke": {},
    "miniature": {
        "table1": {
            "methods": ("pre-trained", "pa", "ms", "infonce", "pf", "pf_attention", "saga_pf", "saga_shuffled", "oracle"),
            "more": {"miniature_birds": ("pf_kl", "pf_grpo", "oracle_wrong", "pf_long")},
        },
        "table2": {
            "datasets": ("miniature_birds",),
            "methods": ("pre-trained", "pf", "pf_grpo", "pf_kl", "saga_pf", "pf_attention", "saga_shuffled", "grpo_alone"),
        },
        "table3": {"datasets": ("miniature_birds",)},
        "table4": {"datasets": ("miniature_birds",), "sizes": (128, 4)},
        "sensitivity": {"settings": {"lambda_lm": (0.3,)}},
        "figure3": {"methods": ("pf_attention", "saga_pf")},
        "gates": {"datasets": ("miniature_birds",)},
    },
    "paper": {"sensitivity": {"settings": {}}},  # some 15 hours of a GPU, by the planner
}
OTHER_MODEL = "left out with --set supervisor"  # of Table 5: that names a model in place of the first family's
NOT_YET = "waits for a supervisor that is not shipped yet"  # what a cell says whose shipped supervisor is not there


@dataclass(frozen=True)
class Notebook:
    """A notebook of the study: the tables and figures whose runs it needs, and how long it takes by itself."""

    name: str
    minutes: dict[str, float]  # by profile, the runs it needs excluded
    needs: tuple[str, ...] = ()  # keys of TABLE_RUNS
    takes: tuple[str, ...] = ()  # besides STUDY and PROFILE: DATASETS, METHODS, SEEDS (a dict by dataset), FULL
    sums_up: bool = False  # reads what all the others left
    is_by_seed: bool = False  # measures with the weights of every seed: its minutes are those of one

    @property
    def number(self) -> str:
        return self.name.split("_")[0]

    @property
    def path(self) -> Path:
        return paths.NOTEBOOKS / f"{self.name}.ipynb"


NOTEBOOKS = (
    Notebook("00_miniature_world", {"smoke": 0.5, "miniature": 0.5, "paper": 0.5}),
    Notebook("01_data_pairing", {"smoke": 0.3, "miniature": 0.5, "paper": 2.0}),
    Notebook("02_attribute_vocabularies", {"smoke": 0.3, "miniature": 0.3, "paper": 1.0}),
    Notebook("03_grpo_training", {"smoke": 0.5, "miniature": 1.0, "paper": 10.0}, needs=("training_curves",)),
    Notebook(
        "04_main_results", {"smoke": 0.5, "miniature": 1.0, "paper": 1.0}, needs=("table1", "when"),
        takes=("DATASETS", "METHODS", "SEEDS", "FULL"),
    ),
    Notebook(
        "04b_choosing_benchmarks", {"smoke": 0.3, "miniature": 0.5, "paper": 0.3}, needs=("gates", "search", "lengths"),
        takes=("DATASETS", "FULL"),
    ),
    Notebook(
        "05_loss_components", {"smoke": 0.3, "miniature": 0.5, "paper": 0.5}, needs=("table2",),
        takes=("DATASETS", "METHODS", "SEEDS", "FULL"),
    ),
    Notebook(
        "06_dml_agnostic", {"smoke": 0.3, "miniature": 0.4, "paper": 0.4}, needs=("table3",),
        takes=("DATASETS", "METHODS", "SEEDS", "FULL"),
    ),
    Notebook(
        "07_embedding_size", {"smoke": 0.3, "miniature": 0.4, "paper": 0.4}, needs=("table4",),
        takes=("DATASETS", "METHODS", "SEEDS", "FULL"),
    ),
    Notebook(
        "08_backbone_transfer", {"smoke": 0.3, "miniature": 0.3, "paper": 0.3}, needs=("table5",),
        takes=("DATASETS", "METHODS", "SEEDS", "FULL"),
    ),
    Notebook(
        "09_attention", {"smoke": 0.5, "miniature": 1.5, "paper": 20.0}, needs=("figure3",),
        takes=("DATASETS", "METHODS", "SEEDS", "FULL"), is_by_seed=True,
    ),
    Notebook(
        "10_gallery", {"smoke": 0.4, "miniature": 0.8, "paper": 15.0}, needs=("figure5",),
        takes=("DATASETS", "METHODS", "SEEDS", "FULL"), is_by_seed=True,
    ),
    Notebook("11_sensitivity", {"smoke": 0.3, "miniature": 0.3, "paper": 0.3}, needs=("sensitivity",), takes=("FULL",)),
    Notebook(
        "12_gradient_audit", {"smoke": 0.3, "miniature": 0.5, "paper": 0.5}, needs=("gradient_audit",), takes=("DATASETS", "SEEDS"),
    ),
    Notebook("13_vocabulary_discovery", {"smoke": 0.3, "miniature": 0.5, "paper": 0.5}, takes=("FULL",)),
    Notebook("14_readiness_check", {"smoke": 0.3, "miniature": 0.3, "paper": 0.3}),
    Notebook("15_your_dataset", {"smoke": 0.5, "miniature": 1.0, "paper": 1.0}),
    Notebook("16_search", {"smoke": 0.3, "miniature": 0.3, "paper": 0.3}),
    Notebook("17_planner", {"smoke": 0.2, "miniature": 0.2, "paper": 0.2}),
    Notebook("99_report", {"smoke": 0.3, "miniature": 0.3, "paper": 0.5}, sums_up=True),
)  # fmt: skip

# Minutes of one run on one core, start-up and evaluation included; those of profile paper come from `planner`. Only the
# order of the queue and the estimates depend on them.
RUN_MINUTES = {
    "smoke": {"untrained": 0.2, "none": 0.3, "oracle": 0.4, "grpo": 0.4},
    "miniature": {"untrained": 0.15, "none": 0.5, "oracle": 1.1, "grpo": 2.5},
}


def expected_minutes(config: RunConfig) -> float:
    """Return about how long a run takes on one worker."""
    if config.profile not in RUN_MINUTES:
        try:
            return 60 * planner.estimate(config).hours
        except SagaError:  # a supervisor of unknown shapes: about what the profile's takes
            return 60 * planner.estimate(replace(config, supervisor=PROFILES[config.profile]["supervisor"])).hours
    start = RUN_MINUTES[config.profile]["untrained"]  # and evaluation, however long the training
    if not config.steps and not config.epochs:
        return start
    longer = config.steps / PROFILES[config.profile]["steps"] if config.steps else 1.0
    if config.language_signal == "grpo":  # rollouts and their replay are most of it
        longer *= 0.2 + 0.8 * config.group_size / PROFILES[config.profile].get("group_size", RunConfig.group_size)
    return start + longer * (RUN_MINUTES[config.profile][config.language_signal] - start)


def seeds_of(profile: str, dataset: str, full: bool = False) -> tuple[int, ...]:
    """Return the seeds that a dataset has unless the command line names others."""
    more = FULL_SEEDS if full else TABLE_1_SEEDS
    return more.get(dataset, SEEDS[profile]) if profile == "miniature" else SEEDS[profile]


def table_runs(
    table: str, profile: str, datasets: Iterable[str] = (), methods: Iterable[str] = (),
    seeds: Iterable[int] | Mapping[str, Sequence[int]] = (), full: bool = True, ready_only: bool = True,
) -> list[RunConfig]:  # fmt: skip
    """Return the runs a table needs, each once; what is left empty is as the profile has it. `seeds` may differ by dataset.

    Without `full`, what a study without --full trains of them (`DEFAULT_RUNS`); unless `ready_only`, those too that cannot be trained.
    A table that has none of the chosen methods keeps its own: its notebook would train them anyway, one by one. At the
    paper's scale nobody knows attribute truth: there are neither oracles nor what is read off them on validation classes.
    """
    if table not in TABLE_RUNS:
        raise unknown_name("table", table, TABLE_RUNS)
    if profile not in PROFILES:
        raise unknown_name("profile", profile, PROFILES)
    needed, share = TABLE_RUNS[table], {} if full else DEFAULT_RUNS[profile].get(table, {})
    datasets, methods = tuple(datasets) or DATASETS[profile], _known("method", tuple(methods), METHODS)
    if needed.on_validation:
        from saga_lib import tuning

        if table == "sensitivity":
            return tuning.sensitivity_runs(profile, share.get("settings"), tuning.SENSITIVITY_SEEDS[profile][: None if full else 1])
        runs = tuning.RUNS[table](profile, _narrowed(datasets, share.get("datasets"))) if profile != "paper" else []
        return runs if full else [run for run in runs if run.seed == SEEDS[profile][0]]
    known = methods_of(table, profile)
    named = [name for name in needed.methods if name in methods and _is_possible(name, profile)]
    seeds = seeds if isinstance(seeds, Mapping) else dict.fromkeys(datasets, tuple(seeds))
    if needed.is_example:
        datasets, named, seeds = DATASETS[profile][:1], known, {DATASETS[profile][0]: SEEDS[profile][:1]}

    is_usual = all(tuple(chosen) == seeds_of(profile, dataset) for dataset, chosen in seeds.items())  # nobody has named any
    own_seeds = {} if is_usual and not full and needed.max_seeds else seeds
    family = SECOND_FAMILY[profile] | {"audit_every": 0} if needed.second_family else {}

    def runs_of(datasets: Sequence[str], methods: Sequence[str], sizes: Sequence[int]) -> list[RunConfig]:
        runs = [
            make_config(profile, dataset, method, seed, **_at_size(size, profile), **family)
            for dataset in datasets for size in sizes for method in methods
            for seed in (own_seeds.get(dataset) or SEEDS[profile])[: needed.max_seeds]
        ]  # fmt: skip
        return list(dict.fromkeys(runs))  # a method without randomness has the same run for every seed

    sizes = EMBEDDING_DIMS[profile] if needed.sizes else (0,)
    datasets = _narrowed(datasets, needed.datasets)
    runs = [run for run in runs_of(datasets, named or known, sizes) if not ready_only or not _why_not(table, run)]
    if full:
        return runs
    own = runs_of(_narrowed(datasets, share.get("datasets")), named or share.get("methods", known), share.get("sizes", sizes))
    for dataset, more in ({} if named else share.get("more", {})).items():
        own += runs_of([name for name in datasets if name == dataset], more, sizes)
    shared = [] if table == "table1" else table_runs("table1", profile, datasets, methods, seeds, full=False)
    return [run for run in runs if run in {*own, *shared}]


def _narrowed(names: Sequence[str], to: Iterable[str] | None) -> tuple[str, ...]:
    """Return those of some names that stand in `to`, all of them if none does: what is asked for by name is run."""
    return tuple(name for name in names if name in (to or ())) or tuple(names)


def _at_size(size: int, profile: str) -> dict[str, object]:
    """Return the settings of a run at an embedding size; at the full one they are the method's own, so that tables share its runs."""
    return {"embedding_dim": size, "audit_every": 0} if size not in (0, EMBEDDING_DIMS[profile][0]) else {}


def methods_of(table: str, profile: str) -> list[str]:
    """Return the methods of a table at a profile."""
    return [name for name in TABLE_RUNS[table].methods if _is_possible(name, profile)]


def _is_possible(method: str, profile: str) -> bool:
    """Return whether a method makes sense at a profile: at the paper's scale truth is not known, and no supervisor need be taught."""
    settings = METHODS[method]
    is_control = "taught" in settings and "prompt" not in settings
    return profile != "paper" or not (settings.get("language_signal") == "oracle" or is_control)


def _why_not(table: str, run: RunConfig) -> str:
    """Return why a run of a table cannot be trained: its supervisor is not shipped, or is another family's; "" if it can."""
    if TABLE_RUNS[table].second_family and is_set(run.profile, "supervisor"):
        return OTHER_MODEL
    is_shipped = run.supervisor.startswith(str(REPOSITORY / SHIPPED))
    made_here = "_after_" in run.supervisor  # half-taught ones are made with the runs that need them
    return NOT_YET if is_shipped and not made_here and not Path(run.supervisor).is_dir() else ""


def table_cells(
    table: str, profile: str, study: str, datasets: Sequence[str] = (), methods: Sequence[str] = (),
    seeds: Mapping[str, Sequence[int]] | None = None, full: bool = False,
) -> list[Cell]:  # fmt: skip
    """Return the cells of a whole table, with the runs that the study has of them: those that are missing are trained here and now.

    A cell that belongs to --full, or that nothing can fill yet, has no runs and says why.
    """
    from saga_lib.comparisons import WITH_FULL, Cell
    from saga_lib.miniature import half_taught

    seeds = {name: (seeds or {}).get(name) or seeds_of(profile, name, full) for name in tuple(datasets) or DATASETS[profile]}
    planned = set(table_runs(table, profile, datasets, methods, seeds, full))
    half_taught.make_missing({run.supervisor for run in planned})
    listed = [name for name in TABLE_RUNS[table].methods if _is_possible(name, profile) and (not methods or name in methods)]
    by_cell: dict[RunConfig, list[RunConfig]] = {}
    for run in table_runs(table, profile, datasets, listed, seeds, ready_only=False):
        by_cell.setdefault(replace(run, seed=0), []).append(run)
    cells = []
    for config, runs in by_cell.items():
        found = tuple(train_or_load(run, study) for run in runs if run in planned)
        cells.append(Cell(config, found, "" if found else _why_not(table, config) or WITH_FULL))
    return cells


def left_out(table: str, profile: str, dataset: str, methods: Sequence[str] = (), full: bool = False) -> dict[str, str]:
    """Return the methods of a table that a study without --full has no run of on a dataset, with what to show instead."""
    from saga_lib.comparisons import WITH_FULL

    share = {} if full or methods else DEFAULT_RUNS[profile].get(table, {})
    has = (*share["methods"], *share.get("more", {}).get(dataset, ())) if "methods" in share else methods_of(table, profile)
    return {name: WITH_FULL for name in methods_of(table, profile) if name not in has}


def finished_table(table: str, profile: str, study: str, datasets: Iterable[str] = ()) -> list[Run]:
    """Return the runs of a table on validation classes that a study has finished, none unless it has them all; trains nothing."""
    wanted = table_runs(table, profile, datasets)
    if len(finished_runs(study, wanted)) < len(wanted):  # seen without rendering anything
        return []
    found = [load_run(study, config) for config in wanted]  # of today's images and supervisors
    return found if None not in found else []


def runs_with_weights(configs: Sequence[RunConfig], study: str, train: bool = True) -> list[Run]:
    """Return runs of a study whose encoders are on this machine; what lacks them is trained, each announced with its minutes.

    A record that came with the repository has no weights: these are trained again by hand, and the record stays as it is.
    With `train` off, a `SagaError` says which runs are lacking, how long they take and how to get them.
    """
    known = {config: load_run(study, config) for config in configs}
    without = [config for config, run in known.items() if run is None or not run.has_encoder()]
    lacking = [c for c in without if (own := load_run(BY_HAND, c)) is None or not own.has_encoder()]
    names, minutes = ", ".join(map(describe, lacking)), sum(map(expected_minutes, lacking))
    if lacking and not train:
        raise SagaError(
            f"the weights of {names} are not on this machine (records of runs are kept in git without them): set TRAIN = True to "
            f"train them here, about {minutes:.0f} minutes, or copy the folders encoder/ of these runs from where they were trained"
        )
    if lacking:
        print(f"not on this machine and trained now, about {minutes:.0f} minutes in all: {names}")
    return [train_or_load(config, study, need_encoder=True) for config in configs]


@dataclass(frozen=True)
class Execution:
    """One execution of a notebook: what it is given and about how long it takes."""

    notebook: Notebook
    parameters: dict[str, object]
    minutes: float

    @property
    def file_name(self) -> str:
        return f"{self.notebook.name}.ipynb"


@dataclass(frozen=True)
class Plan:
    """Everything a command asks for, resolved and checked."""

    profile: str
    datasets: tuple[str, ...]
    methods: tuple[str, ...]  # none: each table has its own
    seeds: dict[str, tuple[int, ...]]  # by dataset
    notebooks: tuple[Notebook, ...]
    workers: int | None = None
    full: bool = False
    settings: dict[str, object] = field(default_factory=dict)  # in place of the profile's own
    cpu: bool = False  # GPUs are hidden from every process

    def minutes_of(self, notebook: Notebook) -> float:
        """About how long a notebook takes by itself; with --full, 13 trains six runs that no table shares, two at a time."""
        own = 3 * RUN_MINUTES["miniature"]["grpo"] if self.full and notebook.number == "13" and self.profile == "miniature" else 0.0
        seeds = {run.seed for run in self.runs_of(notebook)} if notebook.is_by_seed else ()
        return notebook.minutes[self.profile] * max(1, len(seeds)) + own

    @property
    def runs(self) -> list[RunConfig]:
        """The union of what the notebooks need, longest first."""
        runs = [run for notebook in self.notebooks for run in self.runs_of(notebook)]
        return sorted(dict.fromkeys(runs), key=expected_minutes, reverse=True)

    def runs_of(self, notebook: Notebook) -> list[RunConfig]:
        """The runs that one notebook needs."""
        return [run for table in self._tables_of(notebook) for run in self._table_runs(table)]

    def _tables_of(self, notebook: Notebook) -> list[str]:
        return [table for table in notebook.needs if self.full or not TABLE_RUNS[table].only_full]

    def _table_runs(self, table: str) -> list[RunConfig]:
        return table_runs(table, self.profile, self.datasets, self.methods, self.seeds, self.full)

    def left_out(self) -> list[RunConfig]:
        """The runs that --full would add."""
        seeds = {name: tuple(sorted({*own, *seeds_of(self.profile, name, full=True)})) for name, own in self.seeds.items()}
        own = set(self.runs)
        return [run for run in replace(self, full=True, seeds=seeds).runs if run not in own]

    def executions(self, study: str) -> list[Execution]:
        """Return which notebooks are executed with which parameters, in order."""
        executions = []
        for notebook in self.notebooks:
            offered = {"DATASETS": self.datasets, "METHODS": self.methods, "SEEDS": self.seeds, "FULL": self.full}
            common = {"STUDY": study, "PROFILE": self.profile}
            common |= {name: offered[name] for name in notebook.takes}
            executions.append(Execution(notebook, common, self.minutes_of(notebook)))
        return executions

    def tables(self) -> dict[str, list[RunConfig]]:
        """The runs of each table that the notebooks draw."""
        names = dict.fromkeys(table for notebook in self.notebooks for table in self._tables_of(notebook))
        return {name: runs for name in names if (runs := self._table_runs(name))}

    def check(self) -> None:
        """Raise `SagaError` for whatever would stop the study later: packages, GPU, data, notebooks, parameters."""
        for package in ("torch", "transformers", "papermill", "ipykernel", "faiss"):
            if importlib.util.find_spec(package) is None:
                raise SagaError(f"package {package} is missing in {sys.prefix}: pip install -r requirements.lock")
        if self.profile == "paper":
            for problem in missing_for_paper(self.datasets, self.cpu):
                raise SagaError(problem)
        for execution in self.executions(BY_HAND):
            check_parameters(execution.notebook.path, execution.parameters)
            baseline = read_parameters(execution.notebook.path).get("BASELINE")
            if self.methods and baseline and "METHODS" in execution.notebook.takes and baseline.default not in self.methods:
                name = execution.notebook.name
                raise SagaError(f"{name} compares with {baseline.default}: add it to --methods, or leave --methods out")


def missing_for_paper(datasets: Sequence[str], cpu: bool = False) -> Iterator[str]:
    """Yield what this machine lacks for the paper's scale, a line each: a GPU unless `cpu` says to do without, datasets."""
    import torch

    from saga_lib.datasets import load_benchmark

    if not cpu and not torch.cuda.is_available():
        yield (
            "profile paper needs a CUDA GPU with about 80 GiB of memory or more (./run_all.sh paper --dry-run --gpu-memory 80 "
            "says what to lower), none was found; try ./run_all.sh miniature"
        )
    for dataset in datasets:
        try:
            load_benchmark(dataset)  # names what is missing now rather than after hours of training
        except SagaError as error:
            yield str(error)


# ------------------------------------------------------------------------------------------- the command line


def _comma_list(text: str) -> list[str]:
    return [item.strip() for item in text.split(",") if item.strip()]


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = CommandLine(
        prog="./run_all.sh", allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Train the runs a study lacks, execute its notebooks, leave a report in results/<study>/.",
        epilog="profiles:\n"
        "  smoke      everything once, at toy size, to see that it works (minutes)\n"
        "  miniature  the whole study in the miniature world, on a laptop (the default)\n"
        "  paper      the paper's scale; needs a CUDA GPU with about 80 GiB\n"
        "  test       ruff, unit tests, then the smoke study in a temporary folder\n"
        "environment variables: SAGA_RESULTS, SAGA_DATA move the two folders; SAGA_ENV=active uses the active\n"
        "environment instead of .venv; SAGA_CUDA_GRAPHS=0 decodes on a GPU without CUDA graphs",
    )  # fmt: skip
    add = parser.add_argument
    add("profile", nargs="?", help="smoke | miniature | paper | test (default: miniature)")
    add("--only", type=_comma_list, default=[], metavar="04[,99]", help="these notebooks and the runs they need")
    add("--datasets", type=_comma_list, default=[], metavar="A[,B]", help="default: all of the profile")
    add("--methods", type=_comma_list, default=[], metavar="A[,B]", help=f"default: all of {', '.join(METHODS)}")
    add("--seeds", type=_comma_list, default=[], metavar="0[,1]", help="default: 0; paper: 0,1,2")
    add("--full", action="store_true", help="three to five seeds, every cell of every table, the search for settings, the grid of "
        "notebook 04 (hours: --list --full)")
    add("--resume", metavar="STUDY", help="go on with a study, by its id or LATEST; nothing finished is redone")
    add("--set", action="append", default=[], metavar="NAME=VALUE", help="a run setting in place of the profile's, such as steps=200 or "
        "supervisor=/folder/of/a/model; repeatable, kept in the manifest; what defines a method stays")
    add("--cpu", action="store_true", help="hide all GPUs; profile paper then runs without one, to rehearse with a small supervisor")
    add("--workers", metavar="N", help="parallel training processes (default: one per core, paper: one per GPU)")
    add("--list", action="store_true", help="print what would run and the expected minutes, then stop")
    add("--dry-run", action="store_true", help="check everything that can be checked without running, then stop; paper: "
        "with an estimate of hours, memory and disk, for which nothing needs to be there")
    add("--gpu-memory", metavar="GIB", help=f"paper: memory of the GPU that --list and --dry-run plan for (default {planner.H200_GIB:.0f})")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out a command line and return its exit code: 0, 1 (failed), 2 (the user can mend it) or 130."""
    stop_on_signals()
    try:
        options, unknown = make_parser().parse_known_args(arguments)
        if unknown:
            known = [name for action in make_parser()._actions for name in action.option_strings if name[:2] == "--"]
            raise unknown_name("option", unknown[0], known)
        if options.profile == "test":
            if len(sys.argv[1:] if arguments is None else arguments) > 1:
                raise SagaError("test takes no options")
            return run_tests()
        return _carry_out(options)
    except SagaError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # e.g. `--list | head`
        sys.stderr.close()
        return 1


def _carry_out(options: argparse.Namespace) -> int:
    if options.profile and options.profile not in PROFILES:
        raise unknown_name("profile", options.profile, [*PROFILES, "test"])
    manifest = None
    if options.resume:
        manifest = find_study(options.resume, options.profile)
    profile = manifest["profile"] if manifest else options.profile or "miniature"
    _choose_results_root(profile)
    if profile != "paper":
        os.environ["HF_HUB_OFFLINE"] = "1"  # only the paper's models are ever fetched
    plan = make_plan(options, profile, manifest)
    if plan.cpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # for this process, which has not imported torch yet, and all that it starts
    gpu_memory = _gpu_memory(options.gpu_memory)
    if options.list:
        print_list(plan, manifest)
        if profile == "paper":
            print(describe_estimate(plan, gpu_memory))
        return 0
    if options.dry_run and profile == "paper":
        print(describe_estimate(plan, gpu_memory))
        if problems := list(missing_for_paper(plan.datasets, plan.cpu)):
            print("\n".join(["nothing was executed, and it could not start here yet:", *(f"  {problem}" for problem in problems)]))
            return 0
    plan.check()
    if options.dry_run:
        num_executions = len(plan.executions(BY_HAND))
        print(f"{len(plan.runs)} runs and {num_executions} notebooks could start; nothing was executed")
        return 0
    return run_study(plan, manifest)


def describe_estimate(plan: Plan, gpu_memory: float) -> str:
    """Return the planner's estimate of a plan, or why there is none, and which supervisors of the hub are not pinned."""
    try:
        lines = [planner.describe_plan(plan.tables(), gpu_memory)]
    except SagaError as error:  # --set named a model of unknown shapes
        lines = [f"no estimate: {error}"]
    named = {run.supervisor for run in plan.runs if not run.revision}
    loose = {name for name in named if not name.startswith(TIMM) and not Path(name).is_dir()}
    lines += [f"{name} is not pinned: it follows the hub's default branch; --set revision=COMMIT pins it" for name in sorted(loose)]
    return "\n".join(lines)


def _gpu_memory(text: str | None) -> float:
    try:
        memory = planner.H200_GIB if text is None else float(text)
    except ValueError:
        memory = 0.0
    if not 0 < memory < float("inf"):
        raise SagaError(f"--gpu-memory takes GiB, such as 80, got {text!r}")
    return memory


def _choose_results_root(profile: str) -> None:
    """Keep smoke results apart from real ones, for this process and all that it starts."""
    default = REPOSITORY / ("results-smoke" if profile == "smoke" else "results")
    os.environ["SAGA_RESULTS"] = str(Path(os.environ.get("SAGA_RESULTS") or default).absolute())


def make_plan(options: argparse.Namespace, profile: str, manifest: dict | None = None) -> Plan:
    """Resolve options; what they leave open is as the profile has it.

    From here on `make_config` gives what --set says. Raises `SagaError` with the closest match for unknown names.
    """
    settings = _settings(options.set, manifest)
    use_settings(profile, settings)
    datasets = tuple(_known_dataset(name, profile) for name in options.datasets)
    methods = _known("method", options.methods, METHODS)
    for seed in options.seeds:
        if not seed.isdecimal():
            raise SagaError(f"--seeds takes numbers such as 0,1,2, got {seed!r}")
    if options.workers is not None and (not options.workers.isdecimal() or int(options.workers) < 1):
        raise SagaError(f"--workers takes a number of at least 1, got {options.workers!r}")
    chosen = {"datasets": datasets, "methods": methods}
    defaults = {"datasets": DATASETS[profile], "methods": ()}
    for name, values in chosen.items():
        # A resumed study keeps all it has and gains what is asked for in addition: its tables never shrink.
        together = dict.fromkeys([*manifest[name], *values]) if manifest else dict.fromkeys(values)
        chosen[name] = tuple(together) or defaults[name]
    was_full = bool(manifest and manifest.get("full"))
    full = options.full or was_full
    if manifest and (not manifest["methods"] or full and set(manifest["methods"]) == set(methods_of("table1", profile))):
        chosen["methods"] = ()  # the study has all there are; before there were Tables 2-4, those were Table 1's
    seeds = {}
    for dataset in chosen["datasets"]:
        had = manifest["seeds"].get(dataset, []) if manifest else []
        grows = not had or full and not was_full
        asked = tuple(map(int, options.seeds)) or (seeds_of(profile, dataset, full) if grows else ())
        seeds[dataset] = tuple(sorted({*had, *asked}))
    plan = Plan(
        **chosen,
        seeds=seeds,
        profile=profile,
        notebooks=_chosen_notebooks(options.only),
        workers=int(options.workers) if options.workers else None,
        full=full,
        settings=settings,
        cpu=options.cpu or bool(manifest and manifest.get("cpu")),
    )
    trained = [run for run in plan.runs if run.steps or run.epochs] or plan.runs
    for name, value in settings.items():
        if trained and all(getattr(run, name) != value for run in trained):
            raise SagaError(f"--set {name}={value} changes no run of this command: each of its methods has a {name} of its own")
    return plan


def _settings(texts: Sequence[str], manifest: dict | None) -> dict[str, object]:
    """Return what --set asks for, in a resumed study what it was started with: its tables never mix settings."""
    settings, had = parse_settings(texts), manifest.get("settings", {}) if manifest else None
    if texts and had is not None and settings != had:
        own = ", ".join(f"{name}={value}" for name, value in had.items()) or "none"
        raise SagaError(f"study {manifest['study']} has settings of its own ({own}): leave --set out, or start a new study")
    return settings if had is None else had


def _known_dataset(name: str, profile: str) -> str:
    """Return the name of one of the profile's datasets, or of a variant of one (`saga_lib.miniature.world.benchmark_spec`)."""
    _known("dataset", [name.split("+")[0]], DATASETS[profile])
    if "+" in name:
        from saga_lib.miniature.world import benchmark_spec

        benchmark_spec(name)
    return name


def _known(kind: str, names: Sequence[str], known: Iterable[str]) -> tuple[str, ...]:
    for name in names:
        if name not in known:
            raise unknown_name(kind, name, known)
    return tuple(names)


def _chosen_notebooks(only: Sequence[str]) -> tuple[Notebook, ...]:
    if not only:
        return NOTEBOOKS
    by_name = {name: notebook for notebook in NOTEBOOKS for name in (notebook.number, notebook.name)}
    wanted = []
    for name in only:
        name = Path(name).name.removesuffix(".ipynb")
        name = f"0{name}" if re.fullmatch(r"\d[a-z]?", name) else name
        if name not in by_name:
            raise unknown_name("notebook", name, by_name)
        wanted.append(by_name[name])
    return tuple(notebook for notebook in NOTEBOOKS if notebook in wanted)


def print_list(plan: Plan, manifest: dict | None = None) -> None:
    """Print every run and notebook with its expected minutes, and the total."""
    from saga_lib.tuning import HALF_TAUGHT_MINUTES

    finished = finished_runs(manifest["study"], plan.runs) if manifest else {}
    workers = plan.workers or _notebooks_at_once(plan)
    print(f"runs of profile {plan.profile} (minutes on one worker)")
    minutes = []
    for config in plan.runs:
        is_done = config in finished
        minutes.append(0.0 if is_done else expected_minutes(config))
        print(f"  {'done' if is_done else f'{minutes[-1]:.1f}':>6}  {describe(config)}")
    executions = plan.executions(manifest["study"] if manifest else BY_HAND)
    asked = [config.supervisor for config, left in zip(plan.runs, minutes, strict=True) if left and "_after_" in config.supervisor]
    teaching = 0.0 if all(Path(folder).is_dir() for folder in asked) else HALF_TAUGHT_MINUTES
    if teaching:
        print(f"  {teaching:6.1f}  half-taught supervisors, made before the runs")
    print("notebooks")
    for execution in executions:
        print(f"  {execution.minutes:6.1f}  {execution.file_name}")
    num_workers = min(workers, len(minutes)) or 1
    total = _queue_minutes(minutes, num_workers) + teaching
    total += _queue_minutes([execution.minutes for execution in executions], _notebooks_at_once(plan))
    counts = f"{len(minutes)} runs, {num_workers} at a time, and {len(executions)} notebooks"
    hours = f" ({total / 60:.1f} hours)" if total >= 90 else ""
    print(f"about {total:.0f} minutes{hours} in all: {counts}")
    if line := describe_left_out(plan, manifest["study"] if manifest else None, num_workers):
        print(line)


def _queue_minutes(minutes: Sequence[float], workers: int) -> float:
    """Return how long a queue takes: longest first, to whichever worker is free first."""
    loads = [0.0] * workers
    for run in sorted(minutes, reverse=True):
        loads[loads.index(min(loads))] += run
    return max(loads)


_FULL_PARTS = {
    "search": "the search for settings", "lengths": "other numbers of steps", "when": "the grid over train classes and shift",
}  # fmt: skip


def describe_left_out(plan: Plan, study: str | None = None, workers: int = 1) -> str:
    """Say what --full would add, how long that takes and how to get it; "" where it adds nothing."""
    runs = plan.left_out()
    if not runs:
        return ""
    seeds = {dataset: sorted({*seeds_of(plan.profile, dataset, True)} - {*own}) for dataset, own in plan.seeds.items()}
    parts = [f"seeds {', '.join(map(str, more))} of {dataset}" for dataset, more in seeds.items() if more]
    added = [table for table in replace(plan, full=True).tables() if TABLE_RUNS[table].only_full and not plan.full]
    parts += [_FULL_PARTS[table] for table in added]
    marked = [notebook.number for notebook in plan.notebooks if {*notebook.needs} & {*DEFAULT_RUNS[plan.profile]} and not plan.full]
    parts += [f"the marked cells of notebooks {', '.join(marked)}"] if marked else []
    hours = _queue_minutes([expected_minutes(run) for run in runs], workers) / 60
    resume = f" --resume {study}" if study else ""
    return f"left out: {', '.join(parts)}; {len(runs)} runs, about {hours:.1f} hours more with ./run_all.sh {plan.profile}{resume} --full"


# ------------------------------------------------------------------------------------------ study and manifest


def find_study(name: str, profile: str | None) -> dict:
    """Return the manifest of a study to resume, by its id or "LATEST".

    Raises `SagaError` if there is none, if it is of another profile than the one asked for, or if other code
    made it: numbers of different code are never mixed.
    """
    own = os.environ.get("SAGA_RESULTS")
    roots = [Path(own)] if own else [REPOSITORY / "results", REPOSITORY / "results-smoke"]
    if name == "LATEST":
        root = roots[-1] if profile == "smoke" else roots[0]
        if not (root / "LATEST").is_file():
            raise SagaError(f"no study has been started in {root} yet; leave --resume out")
        name = (root / "LATEST").read_text(encoding="utf-8").strip()
    name = Path(name).name  # a path with a trailing slash, as shells complete it, will do
    known = {path.parent.name: path for root in roots for path in root.glob("*/manifest.json")}
    if name not in known:
        raise unknown_name("study", name, known)
    manifest = read_json(known[name])
    if profile and manifest["profile"] != profile:
        raise SagaError(
            f"study {name} is of profile {manifest['profile']}, not {profile}; "
            f"go on with ./run_all.sh {manifest['profile']} --resume {name}"
        )
    if manifest["code"] != code_digest():
        raise SagaError(
            f"study {name} was made by code {manifest['code']} (commit {manifest['commit']}), this is code "
            f"{code_digest()}; check that commit out to go on with it, or start a new study"
        )
    return manifest


def _git(*arguments: str) -> str:
    try:
        answer = subprocess.run(["git", *arguments], cwd=REPOSITORY, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return answer.stdout.strip() if answer.returncode == 0 else ""


def _hardware() -> dict[str, object]:
    cpu = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        cpu = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    hardware = {"cpu": cpu, "cores": count_cores(), "memory_gib": round(memory, 1)}
    if "torch" in sys.modules and sys.modules["torch"].cuda.is_available():
        cuda = sys.modules["torch"].cuda
        hardware["gpus"] = [cuda.get_device_name(i) for i in range(cuda.device_count())]
    return hardware


def start_manifest(plan: Plan) -> dict:
    """Return the manifest of a new study: what it is, what made it, on what."""
    commit = _git("rev-parse", "--short", "HEAD") or "nogit"
    packages = ("torch", "transformers", "faiss-cpu", "papermill", "numpy")
    return {
        "study": f"{time.strftime('%Y%m%d-%H%M%S')}-{plan.profile}-{commit}",
        "profile": plan.profile,
        "status": "running",
        "commit": commit,
        "dirty": bool(_git("status", "--porcelain", "--", ".", ":!results")),
        "code": code_digest(),
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in packages},
        "hardware": _hardware(),
        "data": {},
        "datasets": list(plan.datasets),
        "methods": list(plan.methods),
        "seeds": {name: list(seeds) for name, seeds in plan.seeds.items()},
        "full": plan.full,
        "settings": plan.settings,
        "cpu": plan.cpu,
        "notebooks": [],
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "wall_seconds": 0,
    }


def write_manifest(manifest: dict) -> None:
    """Write a study's manifest, one line per entry."""
    lines = ",\n".join(f" {json.dumps(key)}: {json.dumps(value)}" for key, value in manifest.items())
    write_text(study_folder(manifest["study"]) / "manifest.json", f"{{\n{lines}\n}}\n")


# ------------------------------------------------------------------------------------------------- carry it out


def run_study(plan: Plan, manifest: dict | None = None) -> int:
    """Start a study, or go on with the one of `manifest`: its runs, then its notebooks. Returns the exit code."""
    is_new = manifest is None
    manifest = start_manifest(plan) if is_new else manifest
    study, folder = manifest["study"], study_folder(manifest["study"])
    started, spent = time.monotonic(), manifest["wall_seconds"]
    with only_one_process(folder / ".lock", f"study {study}"):
        manifest |= {name: list(getattr(plan, name)) for name in ("datasets", "methods")}
        manifest |= {"seeds": {name: list(seeds) for name, seeds in plan.seeds.items()}, "full": plan.full, "status": "running"}
        write_manifest(manifest)
        write_text(results_root() / "LATEST", study + "\n")
        print(f"study {study} {'starts' if is_new else 'goes on'} in {folder}")
        if line := describe_left_out(plan, study, plan.workers or default_workers()):
            print(line)
        status, code = "failed", 1
        try:
            _carry_out_plan(plan, manifest)
            status, code = "ok", 0
        except SagaError as error:
            code = 2
            _say(f"error: {error}; after mending it, go on with {_resume_command(plan, study)}")
        except KeyboardInterrupt:
            status, code = "interrupted", 130
            _say(f"interrupted; go on with {_resume_command(plan, study)}")
        except Exception as error:  # noqa: BLE001  (told in one line here, kept in full in error.log)
            detail = error.log if isinstance(error, RunFailed) else traceback.format_exc()
            with contextlib.suppress(SagaError):
                write_text(folder / "error.log", detail)
            reason = "the disk is full" if getattr(error, "errno", None) == errno.ENOSPC else str(error).strip()
            kind = "" if isinstance(error, RunFailed) else f"{type(error).__name__}: "
            _say(f"error: {kind}{reason.splitlines()[0] if reason else ''}; details in {folder / 'error.log'}")
        finally:
            manifest |= {"status": status, "wall_seconds": round(spent + time.monotonic() - started)}
            with contextlib.suppress(SagaError):  # a full disk has been reported already
                write_manifest(manifest)
    if code == 0:
        (folder / "error.log").unlink(missing_ok=True)
        report = folder / "report.html"
        print(f"done in {show_duration(time.monotonic() - started)}: {report if report.is_file() else folder}")
    return code


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _resume_command(plan: Plan, study: str) -> str:
    return f"./run_all.sh {plan.profile} --resume {study}"


def _carry_out_plan(plan: Plan, manifest: dict) -> None:
    from saga_lib.miniature import half_taught

    study, runs = manifest["study"], plan.runs
    if runs:
        print("preparing the benchmarks (rendered once, then kept in data/)")
        half_taught.make_missing({run.supervisor for run in runs})
        manifest["data"] |= _checksums(runs)
        write_manifest(manifest)
        run_queue(runs, study, plan.workers, expected_minutes)
        pack_logs(study)  # before notebooks read them, so that they read the same when they are executed again
    try:
        _execute_notebooks(plan, manifest)
    finally:
        pack_logs(study)


def _execute_notebooks(plan: Plan, manifest: dict) -> None:
    """Execute a study's notebooks, on CPUs as many at a time as there are workers; what sums up the others waits for them.

    The first that fails ends it: what is being executed beside it is stopped, and executed again when the study goes on.
    """
    folder = study_folder(manifest["study"])
    at_once = _notebooks_at_once(plan)
    scratch = folder / ".executing"  # on the same disk as the result
    shutil.rmtree(scratch, ignore_errors=True)  # what a killed study left
    executions = plan.executions(manifest["study"])
    waiting, going = list(enumerate(executions, 1)), []
    line = ProgressLine()
    try:
        while waiting or going:
            while waiting and len(going) < at_once and not (going and waiting[0][1].notebook.sums_up):
                number, execution = waiting.pop(0)
                target = folder / "notebooks" / execution.file_name
                title = f"notebook {number}/{len(executions)} {target.stem}"
                inputs = _inputs_digest(execution, plan, folder)
                if executed_inputs(target) == inputs:
                    print(f"{title}: nothing changed, kept", flush=True)
                    continue
                line.note(f"{title}: about {show_duration(execution.minutes * 60)}")
                going.append(_Executing(execution, target, inputs, scratch / str(number), title))
            time.sleep(0.2)
            line.update(" | ".join(f"{one.title}: {show_duration(time.monotonic() - one.started)}" for one in going))
            for one in [one for one in going if one.child.poll() is not None]:
                one.finish()
                going.remove(one)
                line.note(f"{one.title}: took {show_duration(time.monotonic() - one.started)}")
                manifest["notebooks"] = sorted({*manifest["notebooks"], one.target.stem})
    finally:
        line.close()
        for one in going:
            one.stop()
        shutil.rmtree(scratch, ignore_errors=True)


def _notebooks_at_once(plan: Plan) -> int:
    return (plan.workers or default_workers()) if on_cpu(plan.profile) else 1


def _checksums(runs: Sequence[RunConfig]) -> dict[str, str]:
    from saga_lib.training import run_inputs

    checksums = {}
    usual = PROFILES[runs[0].profile]["supervisor"]
    for config in {(run.dataset, run.supervisor): run for run in runs}.values():
        inputs = run_inputs(config)
        supervisor = f"supervisor of {config.dataset}" if config.supervisor == usual else f"supervisor {Path(config.supervisor).name}"
        checksums |= {config.dataset: inputs["benchmark"], supervisor: inputs["supervisor"]}
    return checksums


def _inputs_digest(execution: Execution, plan: Plan, folder: Path) -> str:
    """Return a digest of all that an executed notebook depends on.

    That is its source, its parameters, the library (also the part that only draws) and the runs it needs; for
    the one that sums up, everything the others left.
    """
    parts: list[object] = [source_digest(execution.notebook.path), execution.parameters, _library_digest()]
    parts.append([run_folder(folder.name, config).name for config in plan.runs_of(execution.notebook)])
    if execution.notebook.sums_up:
        made = [path for kind in ("notebooks", "tables", "figures") for path in folder.glob(f"{kind}/[!.]*")]
        others = sorted(path for path in made if path.name != execution.file_name)
        parts.append([(path.name, hashlib.sha256(path.read_bytes()).hexdigest()) for path in others])
        parts.append(sorted(path.parent.name for path in folder.glob("runs/*/evaluation.json")))
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


def _library_digest() -> str:
    """Return a digest of the modules a notebook may call; those that only orchestrate do not matter to it."""
    root = Path(__file__).parent
    sources = [path for path in sorted(root.rglob("*.py")) if path.name not in ("study.py", "__main__.py")]
    vocabularies = sorted(root.rglob("*.yaml"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources + vocabularies)).hexdigest()[:12]


class _Executing:
    """A notebook that a child process executes."""

    def __init__(self, execution: Execution, target: Path, inputs: str, scratch: Path, title: str) -> None:
        """Start it: `scratch` is a folder of its own for what is unfinished, `target` appears when every cell has succeeded."""
        self.target, self.title, self.started, self.log = target, title, time.monotonic(), scratch / "output.log"
        scratch.mkdir(parents=True, exist_ok=True)
        request = scratch / "request.json"
        write_json(request, {
            "source": str(execution.notebook.path), "target": str(target), "parameters": execution.parameters,
            "inputs": inputs, "scratch": str(scratch), "parent": os.getpid(),
        })  # fmt: skip
        threads = 1 if on_cpu(execution.parameters["PROFILE"]) else count_cores()
        with open(self.log, "wb") as output:
            self.child = subprocess.Popen(
                [sys.executable, "-m", "saga_lib.notebooks", str(request)], cwd=REPOSITORY, stdin=subprocess.DEVNULL,
                stdout=output, stderr=output, start_new_session=True,
                env=child_environment(execution.parameters["PROFILE"], threads),
            )  # fmt: skip

    def finish(self) -> None:
        """Raise what an ended execution failed of, if it did."""
        if not self.child.returncode:
            return
        said = self.log.read_text(encoding="utf-8", errors="replace")
        last = next((text for text in reversed(said.splitlines()) if text.strip()), f"exit code {self.child.returncode}")
        if self.child.returncode == 2 and last.startswith("error: "):
            raise SagaError(last.removeprefix("error: "))
        raise RunFailed(f"notebook {self.target.stem} failed: {last}", said)

    def stop(self) -> None:
        if self.child.poll() is None:
            self.child.terminate()  # papermill then stops its kernel
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.child.wait(PATIENCE_SECONDS)
            self.child.kill()
            self.child.wait()


# ----------------------------------------------------------------------------------------------------- test


def run_tests() -> int:
    """Run ruff, the unit tests, then the smoke study of every notebook in a temporary folder."""
    python = [sys.executable, "-m"]
    for title, command in {
        "style": [*python, "ruff", "check", "."],
        "unit tests": [*python, "pytest", "-q"],
    }.items():
        print(f"== {title}", flush=True)
        if code := subprocess.run(command, cwd=REPOSITORY).returncode:
            _say(f"error: {title} failed")
            return code
    print("== smoke study", flush=True)
    with tempfile.TemporaryDirectory(prefix="saga-test-") as results:
        environment = os.environ | {"SAGA_RESULTS": results, "HF_HUB_OFFLINE": "1"}
        if code := subprocess.run([*python, "saga_lib", "smoke"], cwd=REPOSITORY, env=environment).returncode:
            return code
        executed = sorted(path.stem for path in Path(results).glob("*/notebooks/*.ipynb"))
    # A suite that executes nothing passes too; this one must not.
    if absent := [notebook.name for notebook in NOTEBOOKS if notebook.name not in executed]:
        raise SagaError(f"the smoke study left no executed {', '.join(absent)}")
    print(f"all passed: {len(executed)} notebooks executed")
    return 0
