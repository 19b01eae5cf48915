"""Which runs each table and figure needs, at each profile."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from saga_lib.common.errors import unknown_name
from saga_lib.common.paths import REPOSITORY
from saga_lib.config import SHIPPED, RunConfig
from saga_study.design import trials
from saga_study.methods import METHODS, PROFILES, is_set, make_config

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
    on_validation: bool = False  # what saga_study.design.trials.RUNS lists instead, whatever methods and seeds are asked for
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
# `more` are methods of one dataset beside those of all, `settings` are values out of `trials.SENSITIVITY`. Methods named on the
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
    datasets, methods = tuple(datasets) or DATASETS[profile], known_names("method", tuple(methods), METHODS)
    if needed.on_validation:

        if table == "sensitivity":
            return trials.sensitivity_runs(profile, share.get("settings"), trials.SENSITIVITY_SEEDS[profile][: None if full else 1])
        runs = trials.RUNS[table](profile, _narrowed(datasets, share.get("datasets"))) if profile != "paper" else []
        return runs if full else [run for run in runs if run.seed == SEEDS[profile][0]]
    known = methods_of(table, profile)
    named = [name for name in needed.methods if name in methods and is_possible(name, profile)]
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
    runs = [run for run in runs_of(datasets, named or known, sizes) if not ready_only or not why_not(table, run)]
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
    return [name for name in TABLE_RUNS[table].methods if is_possible(name, profile)]


def is_possible(method: str, profile: str) -> bool:
    """Return whether a method makes sense at a profile: at the paper's scale truth is not known, and no supervisor need be taught."""
    settings = METHODS[method]
    is_control = "taught" in settings and "prompt" not in settings
    return profile != "paper" or not (settings.get("language_signal") == "oracle" or is_control)


def why_not(table: str, run: RunConfig) -> str:
    """Return why a run of a table cannot be trained: its supervisor is not shipped, or is another family's; "" if it can."""
    if TABLE_RUNS[table].second_family and is_set(run.profile, "supervisor"):
        return OTHER_MODEL
    is_shipped = run.supervisor.startswith(str(REPOSITORY / SHIPPED))
    made_here = "_after_" in run.supervisor  # half-taught ones are made with the runs that need them
    return NOT_YET if is_shipped and not made_here and not Path(run.supervisor).is_dir() else ""


def left_out(table: str, profile: str, dataset: str, methods: Sequence[str] = (), full: bool = False) -> dict[str, str]:
    """Return the methods of a table that a study without --full has no run of on a dataset, with what to show instead."""


    share = {} if full or methods else DEFAULT_RUNS[profile].get(table, {})
    has = (*share["methods"], *share.get("more", {}).get(dataset, ())) if "methods" in share else methods_of(table, profile)
    return {name: WITH_FULL for name in methods_of(table, profile) if name not in has}


def known_names(kind: str, names: Sequence[str], known: Iterable[str]) -> tuple[str, ...]:
    for name in names:
        if name not in known:
            raise unknown_name(kind, name, known)
    return tuple(names)

WITH_FULL = "with --full"

