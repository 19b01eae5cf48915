"""Which runs each table and figure needs, at each profile."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from saga_lib.common.errors import unknown_name
from saga_lib.config import CHECKPOINTS, RunConfig
from saga_study.design import trials
from saga_study.methods import METHODS, Profile, make_config

DATASETS = {  # by profile
    "smoke": ("miniature_birds",),
    "miniature": ("miniature_birds", "miniature_cars", "miniature_aircraft", "miniature_aves"),
    "paper": ("cub200", "cars196", "aircraft", "inat_aves"),
}
SEEDS = {"smoke": (0,), "miniature": (0,), "paper": (0, 1, 2)}  # the default: what fits into 40 minutes on two cores
FULL_SEEDS = {  # with --full; datasets that are not named have those of SEEDS
    "miniature_birds": (0, 1, 2, 3, 4), "miniature_cars": (0, 1, 2), "miniature_aircraft": (0, 1, 2, 3, 4), "miniature_aves": (0, 1, 2),
}  # fmt: skip
SECOND_FAMILY = {  # Table 5: settings that put encoder and supervisor of another MLLM family in place of the profile's
    "smoke": {"taught": "internvl"}, "miniature": {"taught": "internvl"},
    "paper": {"supervisor": "OpenGVLab/InternVL3_5-8B-HF", "revision": ""},  # --set revision=… pins the profile's own
}  # fmt: skip
EMBEDDING_DIMS = {"smoke": (128, 4), "miniature": (128, 16, 4), "paper": (4096, 512, 128)}  # Table 4: the full size, 1/8, 1/32
OF_TABLES_2_TO_4 = ("miniature_birds", "miniature_aircraft", "cub200", "aircraft")  # the paper's two, and the miniature ones like them
LOSSES = ("ms", "pa", "pf", "infonce")  # Table 3
# Of SAGA on Potential Field, each in one thing. Leave-one-out advantages (`grpo_rloo`) are those without σ times G / (G - 1): with balanced
# gradients the same run, which is not trained twice.
GRPO_VARIANTS = (
    "saga_shuffled", "saga_shuffled_in_group", "grpo_without_sigma", "grpo_answer_mean", "grpo_right", "grpo_wrong",
)  # fmt: skip
# What a cell without runs says:
WITH_FULL = "with --full"
OTHER_MODEL = "left out with --set supervisor"  # Table 5, where that names a model in place of the first family's
NOT_YET = "waits for a supervisor that is not shipped yet"


@dataclass(frozen=True)
class TableRuns:
    """The runs a table or figure needs: its methods, for each dataset and seed of the study."""

    methods: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()  # only these of the study's; where the study has none of them, or this is empty: all of the study's
    max_seeds: int | None = None  # at most so many of a dataset's seeds, from the first; None: all
    sizes: bool = False  # every method at each of EMBEDDING_DIMS
    second_family: bool = False  # with SECOND_FAMILY
    is_example: bool = False  # one dataset and seed, whatever the command line asks for
    on_validation: bool = False  # the runs that saga_study.design.trials lists, whatever methods and seeds are asked for
    only_full: bool = False  # with --full only
    only_search: bool = False  # with --search only
    needs_truth: bool = False  # measures against the true attributes of test images, hence has no runs at the paper's scale
    reads: bool = False  # its runs also measure what the frozen model reads from the test images, hence are no other table's


@dataclass(frozen=True)
class Share:
    """The part of a table's runs that a study without --full trains. Methods named on the command line are trained in any case."""

    datasets: tuple[str, ...] = ()  # only these, as in `TableRuns`
    without: tuple[str, ...] = ()  # methods that are left to --full,
    except_on: tuple[str, ...] = ()  # but not on these datasets
    sizes: tuple[int, ...] = ()  # of EMBEDDING_DIMS; empty: all
    settings: Mapping[str, Sequence] | None = None  # values out of trials.SENSITIVITY; None: all

    def methods(self, methods: Sequence[str], dataset: str) -> list[str]:
        """Return those of a table's methods that are in the share on a dataset."""
        return [name for name in methods if name not in self.without or dataset in self.except_on]


TABLE_RUNS = {
    "table1": TableRuns((
        "pre-trained", "pa", "pa_anchor", "ms", "ms_anchor", "infonce", "infonce_anchor", "pf", "pf_anchor", "pf_long", "saga_pf",
        "saga_shuffled_in_group", "contrast_pf", "oracle", "oracle_wrong", "saga_infonce", "contrast_infonce", "oracle_infonce",
    )),
    "table2": TableRuns(
        (
            "pre-trained", "pf", "pf_anchor", "pf_grpo", "pf_grpo_generic", "pf_kl", "saga_pf", "pf_saga_rate", "pf_attention",
            "pf_long",
            "saga_shuffled_in_group", "grpo_alone", "pf_grpo_taught",
        ),
        OF_TABLES_2_TO_4, max_seeds=3,
    ),
    "table3": TableRuns(
        tuple(f"{row}{loss}{end}" for loss in LOSSES for row, end in (("", ""), ("", "_anchor"), ("saga_", ""), ("contrast_", ""))),
        OF_TABLES_2_TO_4, max_seeds=3,
    ),
    "table4": TableRuns(("pre-trained", "pf", "saga_pf", "contrast_pf"), OF_TABLES_2_TO_4, max_seeds=3, sizes=True),
    "table5": TableRuns(("pre-trained", "pf", "saga_pf", "contrast_pf"), ("miniature_birds", "cub200"), max_seeds=3, second_family=True),
    "signals": TableRuns(
        (
            "pf", "pf_anchor", "saga_pf", "pf_grpo", *GRPO_VARIANTS, "reading_verdict", "reading_agreement", "reading_consensus",
            "reading_views", "contrast_pf", "contrast_own", "contrast_permuted", "contrast_labels", "contrast_head", "contrast_grpo",
            "distilled_readings", "distilled_truth", "oracle",
        ),
        OF_TABLES_2_TO_4, max_seeds=3,
    ),
    "mediation": TableRuns(
        ("pre-trained", "pf", "pf_anchor", "saga_pf", "contrast_pf", "distilled_readings", "oracle"), OF_TABLES_2_TO_4, max_seeds=3,
        only_full=True, reads=True,
    ),
    "sensitivity": TableRuns(on_validation=True),
    "training_curves": TableRuns(("saga_pf",), is_example=True),
    "gradient_audit": TableRuns(("saga_pf",)),
    "figure3": TableRuns(("pf_attention", "pf_kl", "saga_pf"), OF_TABLES_2_TO_4, max_seeds=3),
    "figure5": TableRuns(("pre-trained", "pf", "saga_pf", "oracle"), max_seeds=3),
    "few_shot": TableRuns(  # Table 1's, that their encoders are measured in another way
        (
            "pre-trained", "pa", "ms", "infonce", "infonce_anchor", "pf", "pf_anchor", "pf_long", "saga_pf", "saga_shuffled_in_group",
            "contrast_pf", "oracle", "saga_infonce", "contrast_infonce", "oracle_infonce",
        ),
        max_seeds=3,
    ),
    "words": TableRuns(  # of Table 1's, trained for no other reason
        (
            "pre-trained", "pf", "infonce", "infonce_anchor", "saga_pf", "saga_shuffled_in_group", "saga_infonce", "contrast_infonce",
            "oracle_infonce",
        ),
        ("miniature_birds", "miniature_aircraft"), max_seeds=3, needs_truth=True,
    ),
    "gates": TableRuns(on_validation=True),
    "search": TableRuns(on_validation=True, only_search=True),
    "lengths": TableRuns(on_validation=True, only_full=True),
    "map": TableRuns(on_validation=True, only_full=True),
}  # fmt: skip
# What a study without --full trains of each table that it does not train whole: at miniature scale about 50 minutes of one core in all,
# within 40 on two with the notebooks. A table also has every run that it has in common with Table 1's share; its other cells are drawn
# and marked.
DEFAULT_RUNS: dict[str, dict[str, Share]] = {
    "smoke": {  # a row of each kind; that every method trains, unit tests show
        "table2": Share(without=("pf_grpo_generic", "pf_grpo_taught", "grpo_alone")),
        "table3": Share(without=("saga_pa", "saga_ms", "contrast_pa", "contrast_ms")),
        "table4": Share(without=("contrast_pf",)),
        "table5": Share(without=("contrast_pf",)),
        "signals": Share(
            without=(
                *GRPO_VARIANTS, "contrast_own", "contrast_labels", "contrast_head", "contrast_grpo", "reading_agreement",
                "reading_consensus", "reading_views", "distilled_truth",
            )
        ),
        "sensitivity": Share(settings={"lambda_lm": (1.0,)}),
    },
    "miniature": {
        "table1": Share(("miniature_birds",)),
        "table2": Share(("miniature_birds",), without=("pf_grpo_generic", "pf_grpo_taught", "pf_kl")),
        "table3": Share(("miniature_birds",), without=("saga_pa", "saga_ms")),
        "table4": Share(("miniature_birds",), sizes=(128,)),
        "table5": Share(without=("saga_pf",)),
        "signals": Share(
            ("miniature_birds",),
            without=(
                *GRPO_VARIANTS, "contrast_own", "contrast_grpo", "contrast_head", "reading_agreement", "reading_consensus", "reading_views",
                "distilled_truth",
            ),
        ),
        "sensitivity": Share(settings={}),
        "figure3": Share(("miniature_birds",), without=("pf_kl",)),
        "figure5": Share(("miniature_birds",)),
        "few_shot": Share(("miniature_birds",)),
        "gradient_audit": Share(("miniature_birds",)),
        "words": Share(("miniature_birds",)),
        "gates": Share(("miniature_birds",)),
    },
    "paper": {"sensitivity": Share(settings={}), "signals": Share(without=GRPO_VARIANTS)},  # all of the former takes some 11 hours of a GPU
}


def seeds_of(profile: str, dataset: str, full: bool = False) -> tuple[int, ...]:
    """Return the seeds that a dataset has unless the command line names others."""
    return FULL_SEEDS.get(dataset, SEEDS[profile]) if full and profile == "miniature" else SEEDS[profile]


def methods_of(table: str, profile: str) -> list[str]:
    """Return the methods of a table at a profile: at the paper's scale without those that need attribute truth."""
    return [name for name in TABLE_RUNS[table].methods if profile != "paper" or METHODS[name].at_paper_scale]


def table_runs(
    table: str, profile: Profile | str, datasets: Iterable[str] = (), methods: Iterable[str] = (),
    seeds: Iterable[int] | Mapping[str, Sequence[int]] = (), full: bool = True, ready_only: bool = True,
) -> list[RunConfig]:  # fmt: skip
    """Return the runs a table needs, each once. What is left empty is as the profile has it; `seeds` may differ by dataset.

    Without `full`, the share of them that a study without --full trains (`DEFAULT_RUNS`). Unless `ready_only`, also those that cannot be
    trained. A table that has none of the named methods keeps its own: its notebook would train them anyway, one by one. At the paper's
    scale attribute truth is not known: there are no oracles and no runs on validation classes that look at them.
    """
    if table not in TABLE_RUNS:
        raise unknown_name("table", table, TABLE_RUNS)
    profile, needed = Profile.of(profile), TABLE_RUNS[table]
    share = Share() if full else DEFAULT_RUNS[profile.name].get(table, Share())
    datasets, methods = tuple(datasets) or DATASETS[profile.name], known_names("method", tuple(methods), METHODS)
    if needed.on_validation:
        return _validation_runs(table, profile, _narrowed(datasets, share.datasets), share, full)
    if needed.reads and not full or (needed.reads or needed.needs_truth) and profile.name == "paper":  # whose truth is not known there
        return []
    own, usual = methods_of(table, profile.name), SEEDS[profile.name]
    named = [name for name in own if name in methods]
    seeds = seeds if isinstance(seeds, Mapping) else dict.fromkeys(datasets, tuple(seeds))
    if needed.is_example:
        datasets, named, seeds = DATASETS[profile.name][:1], own, {DATASETS[profile.name][0]: usual[:1]}
    nobody_named_seeds = all(tuple(chosen) == seeds_of(profile.name, dataset) for dataset, chosen in seeds.items())
    by_dataset = {} if nobody_named_seeds and not full and needed.max_seeds else seeds
    sizes = EMBEDDING_DIMS[profile.name] if needed.sizes else (0,)

    def runs_on(dataset: str, methods: Sequence[str], sizes: Sequence[int]) -> list[RunConfig]:
        extra = SECOND_FAMILY[profile.name] | {"audit_every": 0} if needed.second_family else {}
        extra |= {"measure_reading": True, "audit_every": 0} if needed.reads else {}
        runs = [
            make_config(profile, dataset, method, seed, **_at_size(size, profile.name) | extra)
            for size in sizes for method in methods for seed in (by_dataset.get(dataset) or usual)[: needed.max_seeds]
        ]  # fmt: skip
        return list(dict.fromkeys(runs))  # a method without randomness has the same run for every seed

    datasets = _narrowed(datasets, needed.datasets)
    runs = [run for dataset in datasets for run in runs_on(dataset, named or own, sizes)]
    runs = [run for run in runs if not ready_only or not why_not(table, run, profile)]
    if full:
        return runs
    kept = {*table_runs("table1", profile, datasets, methods, seeds, full=False)} if table != "table1" else set()
    for dataset in _narrowed(datasets, share.datasets):
        kept |= {*runs_on(dataset, named or share.methods(own, dataset), share.sizes or sizes)}
    return [run for run in runs if run in kept]


def _validation_runs(table: str, profile: Profile, datasets: Sequence[str], share: Share, full: bool) -> list[RunConfig]:
    """Return the runs of a table on validation classes; without `full`, those of the first seed."""
    if table == "sensitivity":
        return trials.sensitivity_runs(profile, share.settings)
    runs = trials.RUNS[table](profile, datasets) if profile.name != "paper" else []
    return runs if full else [run for run in runs if run.seed == SEEDS[profile.name][0]]


def _narrowed(names: Sequence[str], to: Sequence[str]) -> tuple[str, ...]:
    """Return the names that are also in `to`, or all of them if none is: a dataset asked for by name is run."""
    return tuple(name for name in names if name in to) or tuple(names)


def _at_size(size: int, profile: str) -> dict[str, object]:
    """Return the settings of a run at an embedding size; at the full one they are the method's own, so that tables share its runs."""
    return {"embedding_dim": size, "audit_every": 0} if size not in (0, EMBEDDING_DIMS[profile][0]) else {}


def why_not(table: str, run: RunConfig, profile: Profile) -> str:
    """Return why a run of a table cannot be trained: its supervisor is not shipped, or is another family's; "" if it can."""
    if TABLE_RUNS[table].second_family and "supervisor" in profile.chosen:
        return OTHER_MODEL
    made_here = "_after_" in run.supervisor  # half-taught supervisors are made with the runs that need them
    return NOT_YET if Path(run.supervisor).is_relative_to(CHECKPOINTS) and not made_here and not Path(run.supervisor).is_dir() else ""


def left_out(table: str, profile: str, dataset: str, methods: Sequence[str] = (), full: bool = False) -> dict[str, str]:
    """Return the methods of a table that a study without --full has no run of on a dataset, with the text to show in their place."""
    share = Share() if full or methods else DEFAULT_RUNS[profile].get(table, Share())
    own = methods_of(table, profile)
    return {name: WITH_FULL for name in own if name not in share.methods(own, dataset)}


def known_names(kind: str, names: Sequence[str], known: Iterable[str]) -> tuple[str, ...]:
    """Return the names as a tuple; raises `SagaError` with the closest match for one that is not known."""
    for name in names:
        if name not in known:
            raise unknown_name(kind, name, known)
    return tuple(names)
