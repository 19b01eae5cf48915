"""The whole estimate of a study as text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from saga_lib.config import RunConfig
from saga_study.planner.cards import CARDS, Assumptions, card_of
from saga_study.planner.estimates import H200_GIB, advice, disk_gib, estimate, runs_table
from saga_study.planner.memory import peak
from saga_study.planner.shapes import count_parameters

if TYPE_CHECKING:
    import pandas as pd

_DECIMALS = {  # of the columns of `runs_table` that are shown, in this order
    "runs": 0, "trained M": 0, "steps": 0, "PFLOP/step": 2, "s/step": 1, "s/step A": 1, "s/step B": 1, "s/step C": 1, "hours a run": 1,
    "hours": 1, "GiB": 0, "GiB at most": 0,
}  # fmt: skip


def describe_plan(tables: Mapping[str, Sequence[RunConfig]], gpu_memory: float = H200_GIB, assume: Assumptions | None = None) -> str:
    """Return the whole estimate of a study as text: runs, hours by table, memory with advice, disk.

    `tables` maps a table's name to its runs; a run that several tables share is counted once in the total. Seconds are those of the
    card that stands for so much memory (`card_of`), unless `assume` says otherwise.
    """
    assume = assume or card_of(gpu_memory)
    configs = list(dict.fromkeys(config for runs in tables.values() for config in runs))
    if not configs:
        return "estimate: no runs"
    runs = runs_table(configs, assume)
    disk = ", ".join(f"{name} {size:.0f}" for name, size in disk_gib(configs).items())
    return "\n".join([
        *_assumptions(configs, gpu_memory, assume), _show_runs(runs), "GPU hours by table (runs that tables share are trained once)",
        *(f"  {name:24} {sum(estimate(c, assume).hours for c in own):7.1f} h, {len(own)} runs" for name, own in tables.items()),
        f"  {'all':24} {runs['hours'].sum():7.1f} h, {len(configs)} runs", "memory of the largest run of each kind",
        *_largest_runs(configs, gpu_memory, assume), f"disk, GiB: {disk}",
    ])  # fmt: skip


def _assumptions(configs: Sequence[RunConfig], gpu_memory: float, assume: Assumptions) -> Iterator[str]:
    models = {one.shapes.name: one.shapes for one in (estimate(config, assume) for config in configs)}
    slower = ", a card of this size takes longer" if gpu_memory < CARDS["H100"].memory_gib - 1 else ""
    yield f"ESTIMATES: {', '.join(models)} on one GPU of {gpu_memory:.0f} GiB; seconds are an {assume.card}'s{slower}"
    yield (
        f"{assume.utilisation:.0%} of {assume.peak_tflops:.0f} TFLOP/s, decoding at {assume.bandwidth_share:.0%} of {assume.bandwidth_tb} "
        f"TB/s and {assume.kernel_us} µs a kernel, all fitted to steps that an H100 took; {assume.contributing_fraction:.0%} of pairs "
        "contribute, and answers are as long as assumed: neither is known before a supervisor runs"
    )
    for name, shapes in models.items():
        counts = ", ".join(f"{part} {count / 1e6:,.0f} M" for part, count in count_parameters(shapes).items())
        yield f"  {name}: {counts} parameters"


def _show_runs(runs: pd.DataFrame) -> str:
    unlike = ["unlike the profile"] if runs["unlike the profile"].any() else []
    shown = runs.set_index(["dataset", "method", *unlike])[list(_DECIMALS)]
    return shown.to_string(formatters={column: f"{{:.{places}f}}".format for column, places in _DECIMALS.items()})


def _largest_runs(configs: Sequence[RunConfig], gpu_memory: float, assume: Assumptions) -> Iterator[str]:
    """Yield two lines for each language signal: whether its largest run fits, and the parts of the phase that needs most."""
    for signal in dict.fromkeys(c.language_signal for c in configs):
        largest = max((c for c in configs if c.language_signal == signal), key=lambda c: peak(estimate(c, assume).at_most))
        phase, sizes = max(estimate(largest, assume).at_most.items(), key=lambda one: sum(one[1].values()))
        parts = sorted(((size, name) for name, size in sizes.items() if size >= 0.05), reverse=True)
        yield f"  {largest.dataset} {largest.method}: {advice(largest, gpu_memory, assume)}"
        yield f"    at most, by part: phase {phase}: {', '.join(f'{name} {size:.1f}' for size, name in parts)} GiB"
