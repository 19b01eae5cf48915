"""Which runs on validation classes choose settings and benchmarks."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace

from saga_lib.common.errors import SagaError
from saga_lib.config import CHECKPOINT_PREFIX, RunConfig, with_seed
from saga_lib.records import Run
from saga_study.methods import HALF_TAUGHT_STEPS, Profile, make_config
from saga_study.miniature.world import benchmark_variant

VALIDATION = {"evaluate_on": "validation", "audit_every": 0}
# The search: as many trials for one method as for another, each a set of overrides of `make_config` that names everything
# the search varies (defaults follow the search, not the other way round). On one benchmark; the others take what it chose, as
# the paper has one set of hyperparameters for its four.
SEARCH_DATASETS = ("miniature_birds",)
SEARCH_SEEDS = (0, 1, 2)  # the first one chose, before any test class was scored; by the others alone one sees how much was its luck
_RATES = tuple({"lr_tower": tower, "lr_pooler": pooler} for tower in (1e-4, 3e-4, 1e-3) for pooler in (1e-4, 1e-3))
_MIDDLE = _RATES[2]  # signals ride on Potential Field at these rates
SEARCH: dict[str, tuple[dict[str, object], ...]] = {
    "pf": _RATES,
    "pa": _RATES,
    "ms": _RATES,
    "infonce": _RATES,
    "saga_pf": tuple(
        _MIDDLE | {"lambda_lm": lm, "lambda_kl": kl, "hard_pairs": hard}
        for lm, kl, hard in ((0.03, 0.01, 0.5), (0.1, 0.01, 0.5), (0.3, 0.01, 0.5), (0.1, 0.1, 0.5), (0.1, 0.01, 0.0), (0.1, 0.01, 1.0))
    ),
    "oracle": tuple(
        _MIDDLE | {"lambda_lm": lm, "contributing_pairs": pairs}
        for lm, pairs in ((0.03, 16), (0.1, 16), (0.3, 16), (1.0, 16), (0.1, 8), (0.1, 32))
    ),
}
# Lengths: the chosen settings at other numbers of steps, the same for every method. All tables train all methods for equally many steps,
# as the paper does for equally many epochs; here each may have the length that suits it best.
LENGTHS = (0.5, 1, 2)  # times the profile's steps
LENGTH_METHODS = {"miniature_birds": ("pf", "pa", "ms", "infonce", "saga_pf"), "miniature_aves": ("pf", "saga_pf")}
LENGTH_SEEDS = (0, 1, 2)
# Sensitivity: SAGA with one setting changed at a time, the others as the profile has them. Any field of `RunConfig` may be a key here.
# Supervisors share the profile's tower, so that the reward alone differs. Trials of the search that coincide are the same runs.
SENSITIVITY_METHOD = "saga_pf"
SENSITIVITY_SEEDS = {"smoke": (0,), "miniature": (0, 1, 2), "paper": (0,)}  # with --full; else the first
SENSITIVITY_DATASET = {"smoke": "miniature_birds", "miniature": "miniature_birds", "paper": "cub200"}
SENSITIVITY: dict[str, dict[str, tuple]] = {
    "smoke": {
        "group_size": (2,), "contributing_pairs": (1,), "temperature": (1.0,), "lambda_lm": (1.0,), "lambda_kl": (0.0,),
        "attention_layer": (1,), "supervisor": (f"{CHECKPOINT_PREFIX}birds_prompts",),
    },
    "miniature": {
        "group_size": (4, 16), "contributing_pairs": (4, 8),  # 32 pairs are drawn, of which rarely more than 16 contribute
        "temperature": (0.4, 1.0), "lambda_lm": (0.03, 0.05, 0.2, 0.3, 1.0), "lambda_kl": (0.0, 0.01, 0.05, 0.2, 1.0),
        "attention_layer": (1, 2),
        "supervisor": tuple(f"{CHECKPOINT_PREFIX}birds_after_{steps:04d}" for steps in HALF_TAUGHT_STEPS),
    },
    "paper": {  # the paper names 0.5-2 for the weights
        "group_size": (4, 16), "contributing_pairs": (4, 16), "temperature": (0.4, 1.0), "lambda_lm": (0.5, 2.0),
        "lambda_kl": (0.5, 2.0), "attention_layer": (17, 34),
    },
}  # fmt: skip
SETTING_LABELS = {
    "group_size": "G, rollouts of a pair", "contributing_pairs": "K, contributing pairs of a step", "temperature": "sampling temperature",
    "lambda_lm": "λ_lm, weight of L_GRPO", "lambda_kl": "λ_kl, weight of L_KL", "attention_layer": "ℓ, aligned layer (from 0)",
    "supervisor": "supervisor, by steps taught",
}  # fmt: skip
GATE_METHODS = ("pre-trained", "pf", "oracle")
GATE_SEEDS = (0, 1, 2)  # with --full; else the first
# When does it help? A grid of variants of one benchmark.
WHEN_DATASET = "miniature_birds"
WHEN_GRID = {"train_classes": (12, 24, 48), "shift": (0.6, 0.8, 1.0)}
WHEN_METHODS = ("pf", "saga_pf", "oracle")
WHEN_SEEDS = (0, 1, 2)


def trials(profile: Profile | str, datasets: Sequence[str] = ()) -> list[RunConfig]:
    """Return the runs of the search: every method, trial and seed, on validation classes, whichever datasets a study has.

    Raises `SagaError` if two trials of a method are the same run, which would make its budget smaller than it looks.
    """
    runs = [
        trial_run(profile, dataset, method, number, seed)
        for method in SEARCH for number in range(len(SEARCH[method])) for dataset in SEARCH_DATASETS for seed in SEARCH_SEEDS
    ]  # fmt: skip
    for one, other in itertools.combinations(runs, 2):
        if one == other:
            raise SagaError(f"two trials of {one.method} are the same run; change one of them in saga_study.design.trials.SEARCH")
    return runs


def trial_run(profile: Profile | str, dataset: str, method: str, number: int, seed: int) -> RunConfig:
    """Return the run of one trial of a method, by its place in `SEARCH`."""
    return make_config(profile, dataset, method, seed, **VALIDATION | SEARCH[method][number])


def gate_runs(profile: Profile | str, datasets: Sequence[str]) -> list[RunConfig]:
    """Return the runs by which benchmarks are chosen, on validation classes; a method without randomness has one run for all seeds."""
    runs = [make_config(profile, d, method, seed, **VALIDATION) for d in datasets for method in GATE_METHODS for seed in GATE_SEEDS]
    return list(dict.fromkeys(runs))


def length_runs(profile: Profile | str, datasets: Sequence[str] = ()) -> list[RunConfig]:
    """Return the runs at other numbers of steps, whichever datasets a study has."""
    usual = [
        (make_config(profile, dataset, method, seed, **VALIDATION), factor)
        for dataset, methods in LENGTH_METHODS.items() for method in methods for factor in LENGTHS for seed in LENGTH_SEEDS
    ]  # fmt: skip
    return [replace(config, steps=max(1, round(factor * config.steps))) for config, factor in usual]


def when_runs(profile: Profile | str, datasets: Sequence[str]) -> list[RunConfig]:
    """Return the runs of the grid over train classes and shift, whichever datasets a study has otherwise."""
    grid = [dict(zip(WHEN_GRID, values, strict=True)) for values in itertools.product(*WHEN_GRID.values())]
    names = [benchmark_variant(WHEN_DATASET, **fields) for fields in grid]
    return [make_config(profile, name, method, seed, **VALIDATION) for name in names for method in WHEN_METHODS for seed in WHEN_SEEDS]


def sensitivity_runs(
    profile: Profile | str, settings: Mapping[str, Sequence] | None = None, seeds: Sequence[int] = (0,)
) -> list[RunConfig]:
    """Return PF, SAGA as the profile has it, and SAGA with each value of some settings, on validation classes, with each seed.

    settings: values by setting, out of `SENSITIVITY`; None: all of it; empty: no run at all.
    """
    profile = Profile.of(profile)
    settings = SENSITIVITY[profile.name] if settings is None else settings
    if not settings:
        return []
    runs = [make_config(profile, SENSITIVITY_DATASET[profile.name], "pf", 0, **VALIDATION), varied_config(profile)]
    runs += [varied_config(profile, **{name: value}) for name, values in settings.items() for value in values]
    return [with_seed(run, seed) for run in dict.fromkeys(runs) for seed in seeds]


def varied_config(profile: Profile | str, **settings: object) -> RunConfig:
    """Return the run of the sensitivity with some settings changed, of seed 0."""
    profile = Profile.of(profile)
    return make_config(profile, SENSITIVITY_DATASET[profile.name], SENSITIVITY_METHOD, 0, **VALIDATION, **settings)


RUNS = {"search": trials, "lengths": length_runs, "gates": gate_runs, "when": when_runs}  # by table of saga_study.design.tables.TABLE_RUNS


def check_validation(runs: Sequence[Run]) -> None:
    """Raise `SagaError` unless every run was scored on validation classes."""
    for run in runs:
        if run.config.evaluate_on != "validation":
            raise SagaError(f"run {run.key} ({run.config.method} on {run.config.dataset}) was scored on {run.config.evaluate_on} "
                            "classes; choices are made on validation classes only")  # fmt: skip
