"""What a plan would run, and for how long, as text."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path

from saga_lib.common.errors import SagaError
from saga_lib.config import TIMM, RunConfig
from saga_study import planner
from saga_study.design.minutes import expected_minutes
from saga_study.design.tables import DEFAULT_RUNS, TABLE_RUNS, seeds_of
from saga_study.methods import Profile, describe
from saga_study.paths import BY_HAND
from saga_study.runs.remaining import queue_duration
from saga_study.runs.store import load_finished
from saga_study.runs.together import can_share
from saga_study.study.plan import Plan, notebooks_at_once


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


def describe_gpus(plan: Plan, gpus: int, gpu_memory: float, price: float = 0.0) -> str:
    """Return how long each table takes on so many GPUs, by how many of them share a run, and which runs start first.

    price: of an hour of one GPU; 0 leaves costs out. A run that tables share is counted in each of them, and once in the total.
    """
    card = planner.card_of(gpu_memory)
    ways = [ranks for ranks in range(1, gpus + 1) if gpus % ranks == 0 and all(can_share(run, ranks) for run in plan.runs)]
    try:
        hours = {ranks: {run: planner.shared_hours(run, ranks, card) for run in plan.runs} for ranks in ways}
    except SagaError:  # shapes that are not known; `describe_estimate` says so
        return ""
    head = "".join(f"{f'{ranks} a run':>14}" for ranks in ways)
    paid = " and cost" if price else ""
    lines = [f"hours{paid} on {gpus} GPUs ({card.card}), by how many of them share a run; each table by itself", f"  {'':18}{head}"]
    for name, runs in {**plan.tables(), "all": plan.runs}.items():
        cells = []
        for ranks, of_run in hours.items():
            own = [of_run[run] for run in runs]
            cost = f" {price * ranks * sum(own):,.0f}" if price else ""
            cells.append(f"{_queue_minutes(own, gpus // ranks):.1f}{cost}".rjust(14))
        lines.append(f"  {name:18}{''.join(cells)}")
    best = min(ways, key=lambda ranks: _queue_minutes([*hours[ranks].values()], gpus // ranks))
    first = sorted(plan.runs, key=lambda run: -hours[best][run])[: gpus // best]
    longest = max(hours[best].values(), default=0.0)
    share = f" with --gpus-per-run {best}" if best > 1 else ""
    lines.append(f"soonest done{share}; the longest runs start first ({longest:.1f} h): {', '.join(map(describe, first[:8]))}")
    return "\n".join(lines)


def describe_fit(plan: Plan, gpu_memory: float, arguments: Sequence[str], resumed: bool = False) -> str:
    """Return the settings with which all runs of a plan fit a GPU and, as the last line, the command that trains them there.

    arguments: those of the command line, which the command repeats but for what only lists. `resumed`: the plan is that of a study that
    goes on, whose settings cannot change.
    """
    chosen = plan.profile.chosen
    first = replace(plan, seeds={dataset: seeds[:1] for dataset, seeds in plan.seeds.items()})  # seeds need the same memory

    def runs_of(settings: dict[str, object]) -> list[RunConfig]:
        return replace(first, profile=Profile(plan.profile.name, chosen | settings)).runs

    try:
        fit, fits = planner.find_fit(runs_of, gpu_memory, [field.name for field in fields(RunConfig)] if resumed else chosen)
    except SagaError:  # shapes that are not known; `describe_estimate` says so
        return ""
    if fit is None:
        return ""
    settings = [f"{name}={value}" for name, value in fit.settings.items()]
    needed = f"{describe(fit.largest)} needs most, {fit.gib:.1f} GiB at most"
    if not fits and resumed:
        return f"this study does not fit in {gpu_memory:.0f} GiB ({needed}), and its settings cannot change: start a new one"
    if not fits:
        return f"nothing fits in {gpu_memory:.0f} GiB, not even {', '.join(settings) or 'what was set'} ({needed}); take a larger GPU"
    card = planner.card_of(gpu_memory)
    runs = replace(plan, profile=Profile(plan.profile.name, chosen | fit.settings)).runs if fit.settings else plan.runs
    hours = sum(planner.estimate(run, card).hours for run in runs)
    fewer = f" {len(runs)} of {len(plan.runs)} runs, the others are of another model;" if len(runs) < len(plan.runs) else ""
    command = shlex.join(["./run_all.sh", *_without_listing(arguments), *(part for one in settings for part in ("--set", one))])
    return f"what fits in {gpu_memory:.0f} GiB:{fewer} {needed}; {hours:.0f} hours of an {card.card}\n{command}"


_PLANNED = ("--gpu-memory", "--gpus", "--gpu-price")  # options with a value that only plans


def _without_listing(arguments: Sequence[str]) -> Iterator[str]:
    """Yield the arguments of a command line that do more than list what it would do."""
    left = iter(arguments)
    for argument in left:
        if argument in _PLANNED:
            next(left, None)
        elif argument not in ("--list", "--dry-run") and not argument.startswith(tuple(f"{name}=" for name in _PLANNED)):
            yield argument


def print_list(plan: Plan, manifest: dict | None = None) -> None:
    """Print every run and notebook with its expected minutes, and the total."""
    from saga_study.methods import HALF_TAUGHT_MINUTES

    finished = load_finished(manifest["study"], plan.runs) if manifest else {}
    at_once = plan.cluster and (plan.cluster.max_parallel or len(plan.runs))
    workers = at_once or plan.workers or notebooks_at_once(plan)
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
    total += _queue_minutes([execution.minutes for execution in executions], notebooks_at_once(plan))
    counts = f"{len(minutes)} runs, {num_workers} at a time, and {len(executions)} notebooks"
    hours = f" ({total / 60:.1f} hours)" if total >= 90 else ""
    print(f"about {total:.0f} minutes{hours} in all: {counts}")
    if line := describe_left_out(plan, manifest["study"] if manifest else None, num_workers):
        print(line)


def _queue_minutes(minutes: Sequence[float], workers: int) -> float:
    """Return the minutes that a queue takes: the longest run first, each to the first worker that is free."""
    return queue_duration(sorted(minutes, reverse=True), [0.0] * workers)


_FULL_PARTS = {
    "lengths": "other numbers of steps", "map": "the map over worlds", "mediation": "what the frozen model reads after training",
}  # fmt: skip


def describe_left_out(plan: Plan, study: str | None = None, workers: int = 1) -> str:
    """Say what --full would add, how long that takes and how to get it; "" where it adds nothing."""
    runs = plan.left_out()
    if not runs:
        return ""
    seeds = {dataset: sorted({*seeds_of(plan.profile.name, dataset, True)} - {*own}) for dataset, own in plan.seeds.items()}
    parts = [f"seeds {', '.join(map(str, more))} of {dataset}" for dataset, more in seeds.items() if more]
    added = [table for table in replace(plan, full=True).tables() if TABLE_RUNS[table].only_full and not plan.full]
    parts += [_FULL_PARTS[table] for table in added]
    marked = [notebook.number for notebook in plan.notebooks if {*notebook.needs} & {*DEFAULT_RUNS[plan.profile.name]} and not plan.full]
    parts += [f"the marked cells of notebooks {', '.join(marked)}"] if marked else []
    hours = _queue_minutes([expected_minutes(run) for run in runs], workers) / 60
    resume = f" --resume {study}" if study else ""
    return f"left out: {', '.join(parts)}; {len(runs)} runs, about {hours:.1f} hours more with ./run_all.sh {plan.profile}{resume} --full"
