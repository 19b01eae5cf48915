"""Estimates of whole runs and studies, and what to lower until they fit a GPU."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from saga_lib.config import RunConfig
from saga_lib.records import supervisor_source
from saga_study.planner.costs import Assumptions, Workload, memory, operations, peak, seconds_per_step, workload
from saga_study.planner.shapes import GIB, Architecture, architecture, count_parameters, trained_parameters

if TYPE_CHECKING:
    import pandas as pd

H200_GIB = 139.0  # what an H200 of 141 GB offers to programs


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


def estimate(config: RunConfig, assume: Assumptions = Assumptions(), shapes: Architecture | None = None) -> Estimate:  # noqa: B008
    """Estimate a run: what it trains, GPU memory, seconds of a step, hours, disk."""
    shapes = shapes or architecture(supervisor_source(config))
    work = workload(config, shapes, assume)
    worst = work
    if work.waves:
        micro_batches = min(config.max_waves, config.max_micro_batches)
        worst = replace(work, micro_batches=micro_batches, longest=config.max_new_tokens, pairs_replayed=config.contributing_pairs)
    seconds = seconds_per_step(config, shapes, work, assume)
    total = work.steps * sum(seconds.values()) + 60 * assume.startup_minutes
    total += work.test_images * max(1 / assume.images_per_second, seconds["A"] / (work.batch * work.micro_batches))
    trained = trained_parameters(shapes, config, work.num_classes)
    parts = count_parameters(shapes)
    encoder = 4 * (parts["tower"] + parts["mergers"] + trained["pooler"])
    moments = 8 * sum(trained.values()) if work.steps else 0
    return Estimate(
        config, shapes, work, trained, memory(config, shapes, work, assume), memory(config, shapes, worst, assume), seconds,
        total / 3600, work.pairs_drawn * work.rows_per_pair * work.answer / seconds["B decode"] if work.waves else 0.0,
        {
            "encoder": encoder / GIB,  # stays
            "checkpoint": 2 * (encoder + moments + 4 * trained["proxies"]) / GIB if work.steps else 0.0,  # until the run ends
            "model": 2 * sum(parts.values()) / GIB,
        },
    )  # fmt: skip

_LEVERS: tuple[tuple[dict[str, int], str], ...] = (  # what to lower, mildest first
    ({"tower_images": 16}, "no number changes but for rounding, the tower computes once more"),
    ({"replay_pairs": 1}, "no number changes"),
    ({"replay_rows": 1}, "no number changes"),
    ({"recompute_layers": True}, "no number changes, replay takes half as long again"),
    ({"pairs_per_wave": 8}, "other pairs are drawn"),
    ({"max_micro_batches": 1}, "no refill with further images"),
    ({"pairs_per_wave": 4}, "other pairs are drawn"),
    ({"lora_rank": 16}, "adapters in place of full fine-tuning"),
    ({"batch_size": 32}, "smaller batches"),
)


def advice(config: RunConfig, gpu_memory: float = H200_GIB, assume: Assumptions = Assumptions(), shapes: Architecture | None = None) -> str:  # noqa: B008
    """Say whether a run fits in `gpu_memory` GiB, and if not, what to lower, in which order, until it does."""
    now = estimate(config, assume, shapes)
    expected, at_most = peak(now.expected), peak(now.at_most)
    if at_most <= gpu_memory:
        return f"fits in {gpu_memory:.0f} GiB: about {expected:.0f} GiB, at most {at_most:.0f}"
    verdict = f"may run out of {gpu_memory:.0f} GiB" if expected <= gpu_memory else f"does not fit in {gpu_memory:.0f} GiB"
    said, lowered, least = [], config, at_most
    for change, means in _LEVERS:
        (name, value), current = next(iter(change.items())), getattr(lowered, next(iter(change)))
        switched_on = name in ("replay_rows", "lora_rank", "recompute_layers", "tower_images")  # the others are numbers to lower
        if current if switched_on else current <= value:
            continue
        candidate = replace(lowered, **change)
        needed = peak(estimate(candidate, assume, shapes).at_most)
        if needed > least - 0.05:
            continue
        lowered, least = candidate, needed
        said.append(f"{name} {value} ({means}): {needed:.0f}")
        if least <= gpu_memory:
            break
    lower = f"; lower, in this order: {', '.join(said)} GiB" if said else ""
    still = "" if least <= gpu_memory else "; even so it does not fit, a smaller supervisor would"
    return f"{verdict}: about {expected:.0f} GiB, at most {at_most:.0f}{lower}{still}"


# ------------------------------------------------------------------------------------------------------ tables


def runs_table(configs: Iterable[RunConfig], assume: Assumptions = Assumptions()) -> pd.DataFrame:  # noqa: B008
    """Return a row per dataset, method and what it has unlike the profile: runs (seeds), model, what one run takes, hours of all.

    Columns of one run: trained (millions of parameters), steps, PFLOP of a step, seconds of a step by phase and in all, hours, peak GiB.
    """
    import pandas as pd

    from saga_study.methods import describe

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
    """Return the disk that a set of runs needs: models, datasets while unpacking, encoders that stay, checkpoints."""
    from saga_lib.datasets.prepare import SOURCES

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


def _in_millions(parameters: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count / 1e6:,.0f} M" for name, count in parameters.items()) + " parameters"


def _by_part(phases: Mapping[str, Mapping[str, float]]) -> str:
    """Return the GiB of each part in the phase that needs most, largest first."""
    phase, sizes = max(phases.items(), key=lambda one: sum(one[1].values()))
    parts = sorted(((size, name) for name, size in sizes.items() if size >= 0.05), reverse=True)
    return f"phase {phase}: " + ", ".join(f"{name} {size:.1f}" for size, name in parts) + " GiB"


def describe_plan(tables: Mapping[str, Sequence[RunConfig]], gpu_memory: float = H200_GIB, assume: Assumptions = Assumptions()) -> str:  # noqa: B008
    """Return the whole estimate of a study as text: runs, hours by table, memory with advice, disk.

    `tables` maps a table's name to its runs; a run that several tables share is counted once in the total.
    """
    configs = list(dict.fromkeys(config for runs in tables.values() for config in runs))
    if not configs:
        return "estimate: no runs"
    table = runs_table(configs, assume)
    shapes = {one.shapes.name: one.shapes for one in (estimate(config, assume) for config in configs)}
    lines = [
        f"ESTIMATES, no second is measured: {', '.join(shapes)} on one GPU of {gpu_memory:.0f} GiB, "
        f"{assume.utilisation:.0%} of {assume.peak_tflops:.0f} TFLOP/s,",
        f"decoding at {assume.bandwidth_share:.0%} of {assume.bandwidth_tb} TB/s and {assume.kernel_us} µs a kernel, "
        f"{assume.contributing_fraction:.0%} of pairs contribute",
        *(f"  {name}: {_in_millions(count_parameters(own))}" for name, own in shapes.items()),
        f"  {'dataset':10} {'method':16} {'runs':>4} {'trained':>8} {'steps':>6} {'PFLOP':>6} {'s/step':>7} {'A':>5} {'B':>6} {'C':>6} "
        f"{'h/run':>6} {'hours':>6} {'GiB':>5} {'at most':>8}  unlike the profile",
    ]
    for row in table.to_dict("records"):
        trained = f"{row['trained M']:.0f} M"
        lines.append(
            f"  {row['dataset']:10} {row['method']:16} {row['runs']:4} {trained:>8} {row['steps']:6} {row['PFLOP/step']:6.2f} "
            f"{row['s/step']:7.1f} {row['s/step A']:5.1f} {row['s/step B']:6.1f} {row['s/step C']:6.1f} {row['hours a run']:6.1f} "
            f"{row['hours']:6.1f} {row['GiB']:5.0f} {row['GiB at most']:8.0f}  {row['unlike the profile']}".rstrip()
        )
    lines.append("GPU hours by table (runs that tables share are trained once)")
    for name, runs in tables.items():
        lines.append(f"  {name:24} {sum(estimate(c, assume).hours for c in runs):7.1f} h, {len(runs)} runs")
    lines.append(f"  {'all':24} {table['hours'].sum():7.1f} h, {len(configs)} runs")
    lines.append("memory of the largest run of each kind")
    for signal in dict.fromkeys(c.language_signal for c in configs):
        kind = [c for c in configs if c.language_signal == signal]
        largest = max(kind, key=lambda c: peak(estimate(c, assume).at_most))
        lines.append(f"  {largest.dataset} {largest.method}: {advice(largest, gpu_memory, assume)}")
        lines.append(f"    at most, by part: {_by_part(estimate(largest, assume).at_most)}")
    lines.append("disk, GiB: " + ", ".join(f"{name} {size:.0f}" for name, size in disk_gib(configs).items()))
    return "\n".join(lines)
