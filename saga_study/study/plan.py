"""What a command asks for, resolved and checked."""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from saga_lib.common.errors import SagaError, unknown_name
from saga_lib.config import RunConfig
from saga_study.design.minutes import RUN_MINUTES, expected_minutes
from saga_study.design.tables import DATASETS, TABLE_RUNS, known_names, methods_of, seeds_of, table_runs
from saga_study.methods import METHODS, parse_settings, use_settings
from saga_study.paths import BY_HAND
from saga_study.runs.processes import default_workers, on_cpu
from saga_study.study.notebooks import NOTEBOOKS, Notebook
from saga_study.study.parameters import check_parameters, read_parameters


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

    from saga_lib.datasets.loading import load_benchmark

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
    """Resolve options; what they leave open is as the profile has it.

    From here on `make_config` gives what --set says. Raises `SagaError` with the closest match for unknown names.
    """
    settings = _settings(options.set, manifest)
    use_settings(profile, settings)
    datasets = tuple(_known_dataset(name, profile) for name in options.datasets)
    methods = known_names("method", options.methods, METHODS)
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
    known_names("dataset", [name.split("+")[0]], DATASETS[profile])
    if "+" in name:
        from saga_lib.miniature.world import benchmark_spec

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
    return (plan.workers or default_workers()) if on_cpu(plan.profile) else 1

