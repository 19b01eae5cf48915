"""The settings nearest to a profile's with which all runs of a study fit a GPU."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

from saga_lib.config import RunConfig
from saga_study.planner.cards import Assumptions, card_of
from saga_study.planner.estimates import estimate
from saga_study.planner.memory import peak

Settings = dict[str, object]

# Whole models first: each is tried with all of LOWERED before the next one is.
MODELS: tuple[Settings, ...] = (
    {}, {"lora_rank": 16},
    {"supervisor": "Qwen/Qwen3-VL-4B-Instruct"}, {"supervisor": "Qwen/Qwen3-VL-4B-Instruct", "lora_rank": 16},
    {"supervisor": "Qwen/Qwen3-VL-2B-Instruct"}, {"supervisor": "Qwen/Qwen3-VL-2B-Instruct", "lora_rank": 16},
)  # fmt: skip
LOWERED: tuple[Settings, ...] = (  # mildest first; the last draws as many pairs at most, fewer at a time
    {"replay_rows": 1}, {"tower_images": 8}, {"reading_images": 4}, {"recompute_layers": True}, {"tower_images": 4}, {"reading_images": 1},
    {"pairs_per_wave": 4, "max_waves": 16},
)  # fmt: skip


@dataclass(frozen=True)
class Fit:
    """Settings beside those that were chosen, and the run that needs most with them."""

    settings: Settings
    largest: RunConfig
    gib: float  # that it needs at most


def find_fit(
    runs_of: Callable[[Settings], Sequence[RunConfig]], gpu_memory: float, chosen: Collection[str] = (), assume: Assumptions | None = None
) -> tuple[Fit | None, bool]:  # fmt: skip
    """Return the first settings with which all runs fit in `gpu_memory` GiB, and True; or those that need least, and False.

    runs_of: the runs of a study with one of MODELS. What is `chosen`, names of settings, is left as it is. None if there are no runs.
    """
    assume, least = assume or card_of(gpu_memory), None
    for model in MODELS:
        if {*model} & {*chosen} or not (runs := _unlike(runs_of(model), assume)):
            continue
        lowered: Settings = {}
        for lower in ({}, *(one for one in LOWERED if not {*one} & {*chosen})):
            lowered = lowered | lower
            fit = _needed(runs, model, lowered, assume)
            if fit.gib <= gpu_memory:
                return _pruned(fit, runs, model, lowered, gpu_memory, assume), True
            if least is None or fit.gib < least.gib - 0.05:
                least = fit
    return least, False


def _unlike(runs: Sequence[RunConfig], assume: Assumptions) -> list[RunConfig]:
    """Return one of those runs that need the same memory in each part of each phase."""
    return [*{repr(estimate(run, assume).at_most): run for run in runs}.values()]


def _needed(runs: Sequence[RunConfig], model: Settings, lowered: Settings, assume: Assumptions) -> Fit:
    """Return what runs of a model need with lowered settings."""
    sizes = {run: peak(estimate(run, assume).at_most) for run in (replace(run, **lowered) for run in runs)}
    largest = max(sizes, key=sizes.get)
    return Fit(model | lowered, largest, sizes[largest])


def _pruned(fit: Fit, runs: Sequence[RunConfig], model: Settings, lowered: Settings, gpu_memory: float, assume: Assumptions) -> Fit:
    """Leave out what is not needed to fit, the harshest first."""
    for lower in reversed(LOWERED):
        if lower.items() <= lowered.items():
            fewer = {name: value for name, value in lowered.items() if name not in lower}
            if (found := _needed(runs, model, fewer, assume)).gib <= gpu_memory:
                fit, lowered = found, fewer
    return fit
