"""Which runs on validation classes choose settings and benchmarks."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace

from saga_lib.common.errors import SagaError
from saga_lib.config import CHECKPOINT_PREFIX, RunConfig
from saga_lib.records import Run
from saga_study.methods import BEST_LOSS, HALF_TAUGHT_STEPS, Profile, baseline_of, make_config, oracle_of
from saga_study.miniature.world import BENCHMARKS, benchmark_variant

VALIDATION = {"evaluate_on": "validation", "audit_every": 0}
# The search, in two stages: metric losses, alone and with the anchor; then what is added to the better of both, as methods.py has it.
# Each trial is a set of overrides of `make_config` that names everything its stage varies (defaults follow the search, not the other way
# round). On one benchmark; the others take what it chose, as the paper has one set of hyperparameters for its four. Every loss alone has
# more than twice as many trials as what is added to it.
SEARCH_DATASETS = ("miniature_birds",)
SEARCH_SEEDS = (0,)
DECIDING_SEEDS = (0,)  # the first of SEARCH_SEEDS: their mean chose, before any test class was scored; those after them only judge
# Rates are where those of another world were best (docs/study_log.md), a step slower and a step faster.
_MIDDLE = {"lr_tower": 3e-5, "lr_pooler": 1e-4}
_RATES = ({"lr_tower": 1e-5, "lr_pooler": 1e-4}, _MIDDLE, {"lr_tower": 1e-4, "lr_pooler": 1e-4}, {"lr_tower": 3e-5, "lr_pooler": 1e-3})
_OTHER_RATES = ({"lr_tower": 1e-5}, {"lr_tower": 1e-4}, {"lr_pooler": 1e-3})  # once more, around the best of a loss's own settings
_STRENGTHS = ((3e-5, 0.3), (3e-5, 1.0), (3e-5, 3.0), (1e-4, 1.0), (1e-4, 3.0))  # of a signal: rate, ratio of its gradient to the loss's

# Of anchors, by loss: rate, weight. No gradient is balanced to the metric loss's here, since an anchor's is zero at the start. At the
# chosen settings the gradient at the tower is 0.008 for MS, 0.012 for InfoNCE, 0.0005 to 0.0016 for PF and 0.7 for PA, an anchor's some
# 0.03 at weight 1: so these are 0.1 to 3 times the loss's gradient, and for PF up to 60 times.
_ANCHORS = ((3e-5, 0.03), (3e-5, 0.1), (3e-5, 0.3), (1e-4, 0.1), (1e-4, 0.3), (3e-4, 1.0))
_ANCHORS_OF = {
    "pf": (*_ANCHORS, *((rate, weight) for rate in (3e-5, 1e-4) for weight in (0.0015, 0.005, 0.015))),
    "pa": ((3e-5, 2.5), (3e-5, 8.0), (3e-5, 25.0), (3e-5, 80.0), (1e-4, 8.0), (1e-4, 25.0)),
    "ms": _ANCHORS, "infonce": _ANCHORS,
}  # fmt: skip


def _pf(lr_proxies: float = 3e-2, **options: float | str) -> dict[str, object]:
    return {"lr_proxies": lr_proxies, "dml_options": {"delta": 1.0, "proxies_per_class": 2} | options}


def _loss(*options: dict[str, object]) -> tuple[dict[str, object], ...]:
    """Return a metric loss's trials: the rates with its usual settings, then its own settings at the middle rates."""
    usual = {"lr_proxies": 3e-2, "dml_options": {}}
    return *(usual | rates for rates in _RATES), *(usual | _MIDDLE | own for own in options)


SEARCH: dict[str, tuple[dict[str, object], ...]] = {
    "pf": (
        *(rates | _pf() for rates in _RATES),
        *(
            _MIDDLE | _pf(**options)
            for options in (
                {"reduction": "batch"}, {"delta": 0.5}, {"delta": 1.5}, {"delta": 2.0}, {"proxies_per_class": 4}, {"proxies_per_class": 8},
                {"delta": 1.5, "proxies_per_class": 4}, {"delta": 2.0, "alpha": 1.0}, {"delta": 2.0, "alpha": 0.5},
                {"lr_proxies": 1e-2},
            )
        ),
        *(_MIDDLE | _pf(delta=2.0, alpha=0.5) | rates for rates in _OTHER_RATES),
    ),
    "pa": _loss(
        *({"dml_options": {"alpha": alpha}} for alpha in (16.0, 64.0)),
        *({"dml_options": {"margin": margin}} for margin in (0.05, 0.3, 0.5, 1.0, 2.0)),
        {"lr_proxies": 1e-2}, {"lr_proxies": 1e-1}, {"dml_options": {"margin": 0.3}, "lr_pooler": 1e-3},
        *({"dml_options": {"margin": 1.0}} | rates for rates in _OTHER_RATES),
    ),
    "ms": _loss(
        *(
            {"dml_options": options}
            for options in (
                {"base": 0.7}, {"base": 0.3}, {"beta": 20.0}, {"beta": 10.0}, {"alpha": 1.0}, {"alpha": 0.5}, {"alpha": 0.25},
                {"alpha": 0.5, "beta": 10.0}, {"alpha": 0.25, "beta": 5.0}, {"alpha": 0.1, "beta": 2.0},
            )
        ),
        *({"dml_options": {"alpha": 0.1, "beta": 2.0}} | rates for rates in _OTHER_RATES),
    ),
    "infonce": _loss(
        *({"dml_options": {"temperature": tau}} for tau in (0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0)),
        *({"dml_options": {"temperature": 1.0}} | rates for rates in _OTHER_RATES),
        *({"dml_options": {"temperature": tau}} for tau in (0.7, 1.5, 3.0)),
    ),
    **{
        f"{loss}_anchor": tuple({"lr_tower": rate, "lambda_anchor": weight} for rate, weight in _ANCHORS_OF[loss])
        for loss in ("pf", "pa", "ms", "infonce")
    },
    **{
        f"saga_{loss}": tuple(
            {"lr_tower": rate, "lambda_lm": ratio, "lambda_kl": kl}
            for rate, ratio, kl in (*((rate, ratio, 0.1) for rate, ratio in _STRENGTHS), (3e-5, 1.0, 0.01))
        )
        for loss in ("pf", "pa", "ms", "infonce")
    },
    **{
        f"contrast_{loss}": tuple(
            {"lr_tower": rate, "lambda_reading": ratio, "reading_temperature": tau}
            for rate, ratio, tau in (*((rate, ratio, 6.0) for rate, ratio in _STRENGTHS), (3e-5, 3.0, 12.0))
        )
        for loss in ("pf", "pa", "ms", "infonce")
    },
    "distilled_readings": tuple(
        {"lr_tower": rate, "lambda_anchor": weight}
        for rate, weight in (
            (3e-5, 1.0), (1e-4, 0.3), (1e-4, 1.0), (1e-4, 3.0), (3e-4, 1.0), (3e-4, 3.0),  # 7 to 80 times PF's gradient at the start
            (3e-5, 0.004), (3e-5, 0.012), (3e-5, 0.04), (3e-5, 0.12), (1e-4, 0.012), (1e-4, 0.04),  # 0.1 to 3 times
        )
    ),
    **{
        name: tuple({"lr_tower": rate, "lambda_lm": ratio} for rate, ratio in _STRENGTHS)
        for name in ("oracle", "oracle_infonce")
    },
}
# Lengths: the chosen settings at other numbers of steps, the same for every method. All tables train all methods for equally many steps,
# as the paper does for equally many epochs; here each may have the length that suits it best.
LENGTHS = (0.5, 1, 2)  # times the profile's steps
LENGTH_METHODS = {"miniature_birds": ("pf", "infonce", "saga_pf", "contrast_pf")}
LENGTH_SEEDS = (0, 1)
# Sensitivity: SAGA with one setting changed at a time, the others as the profile has them. Any field of `RunConfig` may be a key here.
# Supervisors share the profile's tower, so that the reward alone differs. Trials of the search that coincide are the same runs.
SENSITIVITY_METHOD = "saga_pf"
SENSITIVITY_DATASET = {"smoke": "miniature_birds", "miniature": "miniature_birds", "paper": "cub200"}
SENSITIVITY: dict[str, dict[str, tuple]] = {
    "smoke": {
        "group_size": (2,), "contributing_pairs": (1,), "temperature": (1.0,), "lambda_lm": (1.0,), "lambda_kl": (0.0,),
        "attention_layer": (1,), "supervisor": (f"{CHECKPOINT_PREFIX}birds_prompts",),
    },
    "miniature": {
        "group_size": (2, 16), "contributing_pairs": (2, 16),  # at most 96 pairs are drawn
        "temperature": (0.4, 1.0), "lambda_lm": (1.0, 1.5, 6.0), "lambda_kl": (0.0, 0.05, 0.2, 1.0),
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
# What chooses benchmarks: the tower as it is, the best metric loss, and on it the oracle and SAGA, whose first steps show its verdicts.
GATE_SEEDS = (0, 1, 2)  # with --full; else the first
# Where does a signal help? A map over worlds that differ from one benchmark in one thing or two, and the other benchmarks.
MAP_DATASET = "miniature_birds"
MAP_WORLDS: tuple[dict[str, float], ...] = (
    {"shift": 0.6}, {"shift": 1.0}, {"nuisance": 0.3, "shift": 0.6}, {"habitat": 0.0}, {"train_family_size": 1}, {"family_size": 8},
    {"train_classes": 12},
)  # fmt: skip
MAP_SEEDS = (0, 1)


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


def gate_methods(profile: Profile | str) -> tuple[str, str, str, str]:
    """Return the methods that a world is judged by: the tower as it is, the best metric loss, with the oracle, with SAGA."""
    loss = BEST_LOSS[Profile.of(profile).name]
    return "pre-trained", baseline_of(Profile.of(profile).name), oracle_of(loss), f"saga_{loss}"


def map_methods(profile: Profile | str) -> tuple[str, str, str, str, str]:
    """Return the methods of the map: those of the gates, and the best metric loss with reading contrast."""
    return *gate_methods(profile), f"contrast_{BEST_LOSS[Profile.of(profile).name]}"


def gate_runs(profile: Profile | str, datasets: Sequence[str]) -> list[RunConfig]:
    """Return the runs by which benchmarks are chosen, on validation classes; a method without randomness has one run for all seeds."""
    return _world_runs(profile, datasets, gate_methods(profile), GATE_SEEDS)


def map_runs(profile: Profile | str, datasets: Sequence[str]) -> list[RunConfig]:
    """Return the runs of the map, whichever datasets a study has."""
    worlds = [benchmark_variant(MAP_DATASET, **fields) for fields in MAP_WORLDS]
    return _world_runs(profile, [*BENCHMARKS, *worlds], map_methods(profile), MAP_SEEDS)


def _world_runs(profile: Profile | str, worlds: Sequence[str], methods: Sequence[str], seeds: Sequence[int]) -> list[RunConfig]:
    reads = {"pre-trained": {"measure_reading": True}}
    runs = [make_config(profile, w, m, seed, **VALIDATION | reads.get(m, {})) for w in worlds for m in methods for seed in seeds]
    return list(dict.fromkeys(runs))


def length_runs(profile: Profile | str, datasets: Sequence[str] = ()) -> list[RunConfig]:
    """Return the runs at other numbers of steps, whichever datasets a study has."""
    base = baseline_of(Profile.of(profile).name, "pf")  # what SAGA on PF is compared with
    usual = [
        (make_config(profile, dataset, method, seed, **VALIDATION), factor)
        for dataset, methods in LENGTH_METHODS.items() for method in dict.fromkeys((base, *methods)) for factor in LENGTHS
        for seed in LENGTH_SEEDS
    ]  # fmt: skip
    return [replace(config, steps=max(1, round(factor * config.steps))) for config, factor in usual]


def sensitivity_runs(profile: Profile | str, settings: Mapping[str, Sequence] | None = None) -> list[RunConfig]:
    """Return the base of SAGA, SAGA as the profile has it, and with each value of some settings, on validation classes, with seed 0.

    settings: values by setting, out of `SENSITIVITY`; None: all of it; empty: no run at all.
    """
    profile = Profile.of(profile)
    settings = SENSITIVITY[profile.name] if settings is None else settings
    if not settings:
        return []
    base = baseline_of(profile.name, "pf")
    runs = [make_config(profile, SENSITIVITY_DATASET[profile.name], base, 0, **VALIDATION), varied_config(profile)]
    runs += [varied_config(profile, **{name: value}) for name, values in settings.items() for value in values]
    return list(dict.fromkeys(runs))


def varied_config(profile: Profile | str, **settings: object) -> RunConfig:
    """Return the run of the sensitivity with some settings changed, of seed 0."""
    profile = Profile.of(profile)
    return make_config(profile, SENSITIVITY_DATASET[profile.name], SENSITIVITY_METHOD, 0, **VALIDATION, **settings)


RUNS = {"search": trials, "lengths": length_runs, "gates": gate_runs, "map": map_runs}  # by table of saga_study.design.tables.TABLE_RUNS


def check_validation(runs: Sequence[Run]) -> None:
    """Raise `SagaError` unless every run was scored on validation classes."""
    for run in runs:
        if run.config.evaluate_on != "validation":
            raise SagaError(f"run {run.key} ({run.config.method} on {run.config.dataset}) was scored on {run.config.evaluate_on} "
                            "classes; choices are made on validation classes only")  # fmt: skip
