"""Estimates of whole runs and studies, and what to lower until they fit a GPU."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import TYPE_CHECKING

from saga_lib.config import RunConfig
from saga_study.methods import describe
from saga_study.planner.cards import ASSUMED, CARDS, Assumptions
from saga_study.planner.costs import operations, reading_operations, seconds_per_step
from saga_study.planner.memory import memory_by_phase, peak
from saga_study.planner.shapes import GIB, Architecture, architecture, count_parameters, count_trained_parameters
from saga_study.planner.workload import Workload, workload
from saga_study.resolving import supervisor_source

if TYPE_CHECKING:
    import pandas as pd

H200_GIB = CARDS["H200"].memory_gib


# ---------------------------------------------------------------------------------------------------- estimate


@dataclass(frozen=True)
class Estimate:
    """What a run is expected to take; `at_most` is its memory with all micro-batches and answers at their limits."""

    config: RunConfig
    shapes: Architecture
    work: Workload
    trained: dict[str, int]
    expected: dict[str, dict[str, float]]  # GiB by phase and part
    at_most: dict[str, dict[str, float]]
    seconds: dict[str, float]  # of one step
    hours: float
    tokens_per_second: float  # of all rollouts while decoding
    disk_gib: dict[str, float] = field(default_factory=dict)

    @property
    def seconds_per_step(self) -> float:
        return sum(self.seconds.values())


@lru_cache(maxsize=4096)
def estimate(config: RunConfig, assume: Assumptions = ASSUMED, shapes: Architecture | None = None) -> Estimate:
    """Estimate a run: what it trains, GPU memory, seconds of a step, hours, disk."""
    shapes = shapes or architecture(supervisor_source(config))
    work = workload(config, shapes, assume)
    worst = work
    if work.waves:
        micro_batches = min(config.max_waves, config.max_micro_batches)
        worst = replace(work, micro_batches=micro_batches, longest=config.max_new_tokens, pairs_replayed=config.contributing_pairs)
    seconds = seconds_per_step(config, shapes, work, assume)
    total = work.steps * sum(seconds.values()) + 60 * assume.startup_minutes
    read = reading_operations(shapes, work) / (assume.peak_tflops * 1e12 * assume.utilisation) if work.reading else 0.0
    whole_splits = work.test_images + work.train_images * (config.anchor in ("embedding", "reading"))
    total += whole_splits * max(1 / assume.images_per_second, seconds["A"] / work.images)
    total += (work.read_at_start + work.read_at_end) * read
    trained = count_trained_parameters(shapes, config, work.num_classes)
    parts = count_parameters(shapes)
    encoder = 4 * (parts["tower"] + parts["mergers"] + trained["pooler"])
    moments = 8 * sum(trained.values()) if work.steps else 0
    return Estimate(
        config, shapes, work, trained, memory_by_phase(config, shapes, work, assume), memory_by_phase(config, shapes, worst, assume),
        seconds, total / 3600, work.pairs_drawn * work.rows_per_pair * work.answer / seconds["B decode"] if work.waves else 0.0,
        {
            "encoder": encoder / GIB,  # stays
            "checkpoint": 2 * (encoder + moments + 4 * trained["proxies"]) / GIB if work.steps else 0.0,  # until the run ends
            "model": 2 * sum(parts.values()) / GIB,
        },
    )  # fmt: skip


@dataclass(frozen=True)
class Lever:
    """A setting to lower so that a run needs less GPU memory."""

    setting: str
    value: int | bool
    effect: str  # on numbers and time
    at_most: float = 0.0  # GiB that the run needs at most once this one and those before it are lowered


_LEVERS = (  # mildest first
    Lever("tower_images", 16, "no number changes but for rounding, the tower computes once more"),
    Lever("replay_pairs", 1, "no number changes"),
    Lever("replay_rows", 1, "no number changes"),
    Lever("recompute_layers", True, "no number changes, replay takes half as long again"),
    Lever("pairs_per_wave", 8, "other pairs are drawn"),
    Lever("max_micro_batches", 1, "no refill with further images"),
    Lever("pairs_per_wave", 4, "other pairs are drawn"),
    Lever("lora_rank", 16, "adapters in place of full fine-tuning"),
    Lever("batch_size", 32, "smaller batches"),
)
_OFF_AT_ZERO = ("replay_rows", "lora_rank", "recompute_layers", "tower_images")  # levers that are switched on; the others are lowered


def levers(
    config: RunConfig, gpu_memory: float, assume: Assumptions = ASSUMED, shapes: Architecture | None = None
) -> list[Lever]:  # fmt: skip
    """Return what to lower, in this order, until a run fits in `gpu_memory` GiB; if even all of it does not suffice, all that helps."""
    least, helpful = peak(estimate(config, assume, shapes).at_most), []
    for lever in _LEVERS:
        if least <= gpu_memory:
            break
        current = getattr(config, lever.setting)
        if current if lever.setting in _OFF_AT_ZERO else current <= lever.value:
            continue
        lowered = replace(config, **{lever.setting: lever.value})
        needed = peak(estimate(lowered, assume, shapes).at_most)
        if needed <= least - 0.05:
            config, least = lowered, needed
            helpful.append(replace(lever, at_most=needed))
    return helpful


def describe_levers(helpful: Sequence[Lever], gpu_memory: float) -> str:
    """Return in words what to lower for a run that does not fit in `gpu_memory` GiB, and whether even that is not enough."""
    lower = ", ".join(f"{lever.setting} {lever.value} ({lever.effect}): {lever.at_most:.0f}" for lever in helpful)
    fits = bool(helpful) and helpful[-1].at_most <= gpu_memory
    parts = [f"lower, in this order: {lower} GiB"] * bool(helpful) + ["even so it does not fit, a smaller supervisor would"] * (not fits)
    return "; ".join(parts)


def advice(config: RunConfig, gpu_memory: float = H200_GIB, assume: Assumptions = ASSUMED, shapes: Architecture | None = None) -> str:
    """Return in words whether a run fits in `gpu_memory` GiB, and if not, what to lower until it does."""
    now = estimate(config, assume, shapes)
    expected, at_most = peak(now.expected), peak(now.at_most)
    sizes = f"about {expected:.0f} GiB, at most {at_most:.0f}"
    if at_most <= gpu_memory:
        return f"fits in {gpu_memory:.0f} GiB: {sizes}"
    verdict = "may run out of" if expected <= gpu_memory else "does not fit in"
    lower = describe_levers(levers(config, gpu_memory, assume, shapes), gpu_memory)
    return f"{verdict} {gpu_memory:.0f} GiB: {sizes}; {lower}"


# ------------------------------------------------------------------------------------------------------ tables


def runs_table(configs: Iterable[RunConfig], assume: Assumptions = ASSUMED) -> pd.DataFrame:
    """Return a row per dataset, method and settings that differ from the profile's: number of runs (seeds), model, costs of a run.

    Columns of one run: trained (millions of parameters), steps, PFLOP of a step, seconds of a step by phase and in all, hours, peak GiB.
    """
    import pandas as pd

    groups: dict[tuple[str, str, str], list[Estimate]] = {}
    for config in configs:
        unlike = describe(replace(config, seed=0)).partition(" seed 0")[2].removeprefix(", ")
        groups.setdefault((config.dataset, config.method, unlike), []).append(estimate(config, assume))
    rows = []
    for (dataset, method, unlike), estimates in groups.items():
        one = estimates[0]
        by_phase = {p: sum(v for name, v in one.seconds.items() if name[0] == p) for p in "ABC"}
        rows.append(
            {
                "dataset": dataset, "method": method, "unlike the profile": unlike, "runs": len(estimates),
                "model": one.shapes.name.rpartition("/")[2], "trained M": sum(one.trained.values()) / 1e6, "steps": one.work.steps,
                "PFLOP/step": sum(operations(one.config, one.shapes, one.work).values()) / 1e15,
                **{f"s/step {phase}": value for phase, value in by_phase.items()}, "s/step": one.seconds_per_step,
                "hours a run": one.hours, "hours": sum(e.hours for e in estimates),
                "GiB": peak(one.expected), "GiB at most": peak(one.at_most),
            }
        )  # fmt: skip
    return pd.DataFrame(rows)


def memory_table(one: Estimate, which: str = "expected") -> pd.DataFrame:
    """Return GiB by part (rows) and phase (columns) of a run; `which` is expected or at_most."""
    import pandas as pd

    table = pd.DataFrame(getattr(one, which)).fillna(0.0)
    table = table[table.gt(0).any(axis=1)]
    last = table.index == "CUDA context, fragmentation"
    table = pd.concat([table[~last], table[last]])
    table.loc["total"] = table.sum()
    return table.rename_axis("part").reset_index()


def disk_gib(configs: Sequence[RunConfig]) -> dict[str, float]:
    """Return the disk space that a set of runs needs, by use: models, datasets while unpacking, saved encoders, checkpoints."""
    from saga_study.prepare import SOURCES

    estimates = [estimate(config) for config in configs]
    datasets = 0.0
    for name in {config.dataset for config in configs}:
        if name in SOURCES:
            datasets += sum(a.gigabytes + (a.unpacked_gigabytes or a.gigabytes) for a in SOURCES[name].ways[0]) * 1e9 / GIB
    return {
        "models": sum({e.shapes.name: e.disk_gib["model"] for e in estimates}.values()),
        "datasets, archives included": datasets,
        "encoders of all runs": sum(e.disk_gib["encoder"] for e in estimates),
        "checkpoint of the run in progress": max((e.disk_gib["checkpoint"] for e in estimates), default=0.0),
    }
