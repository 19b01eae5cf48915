"""What a command asks for, resolved and checked."""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from saga_lib.common.errors import SagaError, unknown_name
from saga_lib.config import RunConfig
from saga_study.design.minutes import expected_minutes
from saga_study.design.tables import DATASETS, TABLE_RUNS, known_names, methods_of, seeds_of, table_runs
from saga_study.methods import METHODS, Profile, parse_settings
from saga_study.parameters import check_parameters, read_parameters
from saga_study.paths import BY_HAND
from saga_study.runs.processes import default_workers, on_cpu
from saga_study.runs.slurm import Cluster
from saga_study.runs.together import check_ranks
from saga_study.runs.tracking import check_tracker
from saga_study.study.cluster import checked, chosen_cluster
from saga_study.study.notebooks import NOTEBOOKS, Notebook


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

    profile: Profile  # with what --set chose in place of its own settings
    datasets: tuple[str, ...]
    methods: tuple[str, ...]  # empty: each table has its own
    seeds: dict[str, tuple[int, ...]]  # by dataset
    notebooks: tuple[Notebook, ...]
    workers: int | None = None
    full: bool = False
    search: bool = False  # train the search for settings, too
    cpu: bool = False  # hide GPUs from every process
    cluster: Cluster | None = None  # trains the runs; None: this machine does
    ranks: int = 1  # processes that each run is shared out over, on GPUs one each
    track: str = ""  # tracker that shows the runs' curves

    @property
    def needs_gpu(self) -> bool:
        """Whether this machine needs a GPU at the paper's scale."""
        return not (self.cpu or self.cluster)

    def minutes_of(self, notebook: Notebook) -> float:
        """About how long a notebook takes by itself; with --full, 13 trains twelve runs that no table shares, two at a time."""
        trains = self.full and notebook.number == "13" and self.profile.name == "miniature"
        own = 6 * METHODS["pf_grpo_taught"].minutes["miniature"] if trains else 0.0
        seeds = {run.seed for run in self.runs_of(notebook)} if notebook.is_by_seed else ()
        return notebook.minutes[self.profile.name] * max(1, len(seeds)) + own

    @cached_property
    def runs(self) -> list[RunConfig]:
        """The union of what the notebooks need, longest first."""
        runs = [run for notebook in self.notebooks for run in self.runs_of(notebook)]
        return sorted(dict.fromkeys(runs), key=expected_minutes, reverse=True)

    def shown_first(self) -> list[RunConfig]:
        """The runs to begin with, so that people soon see what a run looks like: the example of the training curves."""
        return [run for run in self._table_runs("training_curves") if run in self.runs]

    def runs_of(self, notebook: Notebook) -> list[RunConfig]:
        """The runs that one notebook needs."""
        return [run for table in self._tables_of(notebook) for run in self._table_runs(table)]

    def _tables_of(self, notebook: Notebook) -> list[str]:
        return [
            table for table in notebook.needs
            if (self.full or not TABLE_RUNS[table].only_full) and (self.search or not TABLE_RUNS[table].only_search)
        ]  # fmt: skip

    def _table_runs(self, table: str) -> list[RunConfig]:
        return table_runs(table, self.profile, self.datasets, self.methods, self.seeds, self.full)

    def left_out(self) -> list[RunConfig]:
        """The runs that --full would add."""
        seeds = {name: tuple(sorted({*own, *seeds_of(self.profile.name, name, full=True)})) for name, own in self.seeds.items()}
        own = set(self.runs)
        return [run for run in replace(self, full=True, seeds=seeds).runs if run not in own]

    def executions(self, study: str) -> list[Execution]:
        """Return which notebooks are executed with which parameters, in order."""
        offered = {"DATASETS": self.datasets, "METHODS": self.methods, "SEEDS": self.seeds, "FULL": self.full}
        common = {"STUDY": study, "PROFILE": self.profile.name}
        return [
            Execution(notebook, common | {name: offered[name] for name in notebook.takes}, self.minutes_of(notebook))
            for notebook in self.notebooks
        ]

    def tables(self) -> dict[str, list[RunConfig]]:
        """The runs of each table that the notebooks draw."""
        names = dict.fromkeys(table for notebook in self.notebooks for table in self._tables_of(notebook))
        return {name: runs for name in names if (runs := self._table_runs(name))}

    def check(self) -> Plan:
        """Return the plan, with what it left to the cluster filled in.

        Raises `SagaError` for what would stop the study later: a package, the GPU, data, a notebook, a parameter, the cluster.
        """
        for package in ("torch", "transformers", "papermill", "ipykernel", "faiss", *(["submitit"] if self.cluster else [])):
            if importlib.util.find_spec(package) is None:
                raise SagaError(f"package {package} is missing in {sys.prefix}: pip install -r requirements.lock")
        if self.profile.name == "paper":
            for problem in missing_for_paper(self.datasets, not self.needs_gpu):
                raise SagaError(problem)
        for execution in self.executions(BY_HAND):
            check_parameters(execution.notebook.path, execution.parameters)
            given = read_parameters(execution.notebook.path).get("BASELINE")
            baseline = given.default if given else ""  # "": the best one of those that are run
            if self.methods and baseline and "METHODS" in execution.notebook.takes and baseline not in self.methods:
                name = execution.notebook.name
                raise SagaError(f"{name} compares with {baseline}: add it to --methods, or leave --methods out")
        return replace(self, cluster=checked(self.cluster)) if self.cluster else self


def missing_for_paper(datasets: Sequence[str], cpu: bool = False) -> Iterator[str]:
    """Yield, a line each, what this machine lacks for the paper's scale: a GPU unless `cpu`, datasets."""
    import torch

    from saga_study.datasets.loading import load_benchmark

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


def make_plan(options: argparse.Namespace, profile: str, manifest: dict | None = None) -> Plan:
    """Resolve and check options; what they leave open is as the profile has it.

    A study that goes on (`manifest`) keeps all it has and gains what is asked for in addition: its tables never shrink. Raises
    `SagaError` with the closest match for unknown names.
    """
    scale = Profile(profile, _settings(options.set, manifest))
    datasets = tuple(_known_dataset(name, profile) for name in options.datasets)
    methods = known_names("method", options.methods, METHODS)
    for seed in options.seeds:
        if not seed.isdecimal():
            raise SagaError(f"--seeds takes numbers such as 0,1,2, got {seed!r}")
    if options.workers is not None and (not options.workers.isdecimal() or int(options.workers) < 1):
        raise SagaError(f"--workers takes a number of at least 1, got {options.workers!r}")
    if manifest:
        datasets, methods = ((*manifest[name], *more) for name, more in (("datasets", datasets), ("methods", methods)))
    datasets = tuple(dict.fromkeys(datasets)) or DATASETS[profile]
    full = options.full or bool(manifest and manifest.get("full"))
    if manifest and (not manifest["methods"] or full and set(manifest["methods"]) == set(methods_of("table1", profile))):
        methods = ()  # the study has all there are; before there were Tables 2-4, those were Table 1's
    if not options.gpus_per_run.isdecimal() or int(options.gpus_per_run) < 1:
        raise SagaError(f"--gpus-per-run takes a number of at least 1, got {options.gpus_per_run!r}")
    cpu = options.cpu or bool(manifest and manifest.get("cpu"))
    plan = Plan(
        profile=scale,
        datasets=datasets,
        methods=tuple(dict.fromkeys(methods)),
        seeds={name: _seeds(name, profile, tuple(map(int, options.seeds)), full, manifest) for name in datasets},
        notebooks=_chosen_notebooks(options.only),
        workers=int(options.workers) if options.workers else None,
        full=full,
        search=options.search,
        cpu=cpu,
        cluster=chosen_cluster(options, profile, (manifest or {}).get("study"), cpu),
        ranks=int(options.gpus_per_run),
        track=options.track or "",
    )
    if options.track is not None:
        check_tracker(options.track)
    if options.search and "search" not in plan.tables():
        raise SagaError("--search has no effect here: the search is notebook 04b's, at profile miniature or smoke; leave it out")
    for run in plan.runs:
        check_ranks(run, plan.ranks)
    trained = [run for run in plan.runs if run.steps or run.epochs] or plan.runs
    for name, value in scale.chosen.items():
        if trained and all(getattr(run, name) != value for run in trained):
            raise SagaError(f"--set {name}={value} changes no run of this command: each of its methods has a {name} of its own")
    return plan


def _settings(texts: Sequence[str], manifest: dict | None) -> dict[str, object]:
    """Return what --set asks for; a study that goes on keeps the settings it was started with, since its tables never mix settings."""
    settings, had = parse_settings(texts), manifest.get("settings", {}) if manifest else None
    if texts and had is not None and settings != had:
        own = ", ".join(f"{name}={value}" for name, value in had.items()) or "none"
        raise SagaError(f"study {manifest['study']} has settings of its own ({own}): leave --set out, or start a new study")
    return settings if had is None else had


def _seeds(dataset: str, profile: str, named: tuple[int, ...], full: bool, manifest: dict | None) -> tuple[int, ...]:
    """Return the seeds of a dataset: those the study has, and those named, or else the profile's if it is new or becomes a full one."""
    had = manifest["seeds"].get(dataset, []) if manifest else []
    grows = not had or full and not manifest.get("full")
    return tuple(sorted({*had, *(named or (seeds_of(profile, dataset, full) if grows else ()))}))


def _known_dataset(name: str, profile: str) -> str:
    """Return the name of one of the profile's datasets, or of a variant of one (`saga_study.miniature.world.benchmark_spec`)."""
    known_names("dataset", [name.split("+")[0]], DATASETS[profile])
    if "+" in name:
        from saga_study.miniature.world import benchmark_spec

        benchmark_spec(name)
    return name


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


def notebooks_at_once(plan: Plan) -> int:
    """Return how many notebooks may be executed at a time: one where they share a GPU."""
    return (plan.workers or default_workers()) if on_cpu(plan.profile.name) else 1
