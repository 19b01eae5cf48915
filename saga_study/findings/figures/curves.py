"""Training over its steps, gradient audits, the planner's bars."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from saga_study.findings.figures.drawing import draw_intervals
from saga_study.findings.figures.style import BLACK, BLUE, BROWN, GREEN, GREY, ORANGE, PALE, PURPLE, SAND, SKY, VERMILION, YELLOW, panels

# ----------------------------------------------------------------------------------------------- training


def training_curves(metrics: pd.DataFrame, title: str, window: int = 15) -> Figure:
    """Show a run's losses, gradient norms, rewards, contributing pairs and seconds per phase against its steps.

    Thin lines are single steps, thick ones a running mean over `window` steps.
    """
    figure, axes = panels(2, 3, 13.5, 6.8, title, "y")
    losses, gradients, rewards, pairs, seconds, other = axes.flat

    def draw(axis: plt.Axes, column: str, label: str, colour: str, scale: float = 1.0) -> None:
        if column in metrics and metrics[column].notna().any():
            known = metrics[["step", column]].dropna()
            smooth = known[column].rolling(min(window, len(known)), min_periods=1).mean()
            axis.plot(known["step"], scale * known[column], color=colour, lw=0.7, alpha=0.3)
            marker = "o" if len(known) < 10 else None  # so that a single step can be seen
            axis.plot(known["step"], scale * smooth, color=colour, lw=2, marker=marker, ms=4, label=label)

    draw(losses, "loss_dml", "DML", GREEN)
    losses.set(title="DML loss", ylabel="loss (its own unit)")
    draw(gradients, "grad_dml", "DML", GREEN)
    draw(gradients, "grad_lm", "GRPO × λ", VERMILION)
    draw(gradients, "grad_kl", "KL (at φ)", PURPLE)
    positive = [c for c in ("grad_dml", "grad_lm", "grad_kl") if c in metrics and (metrics[c] > 0).any()]
    gradients.set(title="gradient norm per loss", ylabel="norm (log scale)", yscale="log" if positive else "linear")
    draw(rewards, "verdict_accuracy", "all verdicts", BLACK, 100)
    draw(rewards, "verdict_accuracy_same", "same class", BLUE, 100)
    draw(rewards, "verdict_accuracy_different", "different class", ORANGE, 100)
    draw(rewards, "json_valid", "valid JSON", GREY, 100)
    rewards.set(title="verdicts of the rollouts", ylabel="rollouts (%)", ylim=(-3, 103))
    draw(pairs, "contributing_pairs", "contributing", VERMILION)
    draw(pairs, "pairs_drawn", "drawn", GREY)
    pairs.set(title="pairs per step", ylabel="pairs", ylim=(0, None))
    phases = [c for c in ("seconds_a", "seconds_b", "seconds_c") if c in metrics]
    if phases:
        stacked = [metrics[c].fillna(0).rolling(min(window, len(metrics)), min_periods=1).mean() for c in phases]
        names = {"seconds_a": "A: embed, DML", "seconds_b": "B: rollouts", "seconds_c": "C: replay, update"}
        colours = {"seconds_a": GREEN, "seconds_b": ORANGE, "seconds_c": VERMILION}
        labels = [names[c] for c in phases]
        seconds.stackplot(metrics["step"], stacked, labels=labels, colors=[colours[c] for c in phases], alpha=0.75)
    seconds.set(title="time per step", ylabel="seconds", ylim=(0, None))
    draw(other, "loss_lm", "GRPO", VERMILION)
    draw(other, "loss_kl", "KL", PURPLE)
    other.set(title="GRPO and KL loss", ylabel="nats")
    for axis in axes.flat:
        axis.set_xlabel("optimizer step")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=10)
        else:
            axis.text(0.5, 0.5, "not part of this run", transform=axis.transAxes, ha="center", color=GREY)
    return figure


def audit_curves(summary: pd.DataFrame, title: str) -> Figure:
    """Show a summary of gradient audits (`audit_summary.summarise`) against the training step, bars are 95 % intervals.

    First row: described values; second: entries in the list of differences; third: both together, and pairs.
    """
    figure, axes = panels(3, 3, 13.5, 11, title, "y")
    unanimous, pairs, types = axes[2]
    single = summary[summary["step"].map(lambda step: not isinstance(step, str))]  # without what sums several up
    steps = list(dict.fromkeys(single["step"]))
    width = (max(steps) - min(steps) if len(steps) > 1 else 1) / 60  # between the lines, so that intervals stay apart

    def draw(axis: plt.Axes, measure: str, group: str, label: str, look: tuple[str, str], place: int, scale: float = 100) -> None:
        known = single[(single["measure"] == measure) & (single["group"] == group)].dropna(subset="value")
        steps = known["step"].astype(float) + place * width
        values = scale * known[["value", "low", "high"]].astype(float)
        draw_intervals(axis, steps, values, look[0], "value", upright=True, marker=look[1], ls="-", label=label)

    slots = {"differing": (VERMILION, "o"), "shared": (BLUE, "s"), "same class": (GREEN, "^")}
    names = {"differing": "differing", "shared": "shared", "same class": "one class"}
    for (share, surviving, shuffled), prefix, what in zip(axes, ("", "differences: "), ("values", "differences"), strict=False):
        draw(share, "share", f"{prefix}differing", "gradient on differing ones", (VERMILION, "o"), -1)
        draw(share, "top slot", f"{prefix}differing", "largest is a differing one", (ORANGE, "s"), 0)
        draw(share, "share", f"{prefix}chance", "chance", (GREY, "x"), 1)
        share.set(title=f"{what}: pairs of two classes", ylabel="share (%)", ylim=(-3, 103))
        for place, (group, look) in enumerate(slots.items(), -1):
            draw(surviving, "surviving", prefix + group, names[group], look, place)
            draw(shuffled, "against shuffled", prefix + group, names[group], look, place, 1)
        surviving.set(title=f"{what}: what survives cancellation", ylabel="gradient / gross (%)", ylim=(-3, 103))
        shuffled.axhline(1, color=GREY, lw=1.2, ls="--", label="no signal")
        shuffled.set(title=f"{what}: against shuffled advantages", ylabel="squared gradient (×)", ylim=(0, None))
    for place, (group, look) in enumerate(slots.items(), -1):
        draw(unanimous, "unanimous", group, names[group], look, place)
    unanimous.set(title="all rollouts name the same value", ylabel="described values (%)", ylim=(-3, 103))
    draw(pairs, "same-class pairs", "number", "of contributing pairs", (PURPLE, "o"), -1)
    draw(pairs, "same-class pairs", "gradient", "of the gradient", (BLACK, "s"), 1)
    pairs.axhline(50, color=GREY, lw=1.2, ls="--", label="of pairs drawn")
    pairs.set(title="contributing pairs of one class", ylabel="share (%)", ylim=(-3, 103))
    kinds = {"values": (VERMILION, "o"), "differences": (SKY, "s"), "verdict": (BLACK, "^"), "rest": (GREY, "x")}
    for place, (kind, look) in enumerate(kinds.items(), -1):
        draw(types, "token type", kind, kind, look, place)
    types.set(title="kinds of tokens", ylabel="gradient (%)", ylim=(-3, 103))
    for axis in axes.flat:
        axis.set_xlabel("optimizer step")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=2)
    return figure


def plan_bars(memory: Mapping[str, pd.DataFrame], seconds: Mapping[str, Mapping[str, float]], gpu_memory: float, title: str) -> Figure:
    """Show estimates of `planner`: GiB by phase and part (one bar per phase and column title), and seconds of a step by supervisor.

    `memory` holds a `planner.memory_table` for each label; `seconds` holds, for each supervisor, the seconds of a step by part.
    """
    figure, (axes,) = panels(1, 2, 14.5, 5.2, title, width_ratios=(3, 2))
    bars, times = axes
    colours = [BLUE, SKY, GREEN, YELLOW, PALE, ORANGE, VERMILION, PURPLE, BLACK, BROWN, GREY, SAND]
    parts = list(dict.fromkeys(part for table in memory.values() for part in table["part"] if part != "total"))
    phases = list(dict.fromkeys(name for table in memory.values() for name in table.columns if name != "part"))
    shown = [(phase, what) for phase in phases for what, table in memory.items() if phase in table]
    places = [n + 0.5 * phases.index(phase) for n, (phase, _) in enumerate(shown)]
    heights = np.array([[memory[what].set_index("part")[phase].get(part, 0.0) for phase, what in shown] for part in parts])
    for number, part in enumerate(parts):
        bars.bar(places, heights[number], bottom=heights[:number].sum(0), color=colours[number % len(colours)], label=part)
    bars.set_xticks(places, [what.replace(" ", "\n") for _, what in shown], fontsize=8)
    for phase in phases:
        middle = np.mean([place for place, (of, _) in zip(places, shown, strict=True) if of == phase])
        bars.annotate(phase, (middle, 0), (0, -40), ("data", "axes fraction"), "offset points", ha="center", fontweight="bold")
    bars.axhline(gpu_memory, color=BLACK, lw=1.2, ls="--", label=f"the GPU, {gpu_memory:.0f} GiB")
    bars.set(title="GPU memory by phase", ylabel="GiB (estimate)")
    kinds = list(dict.fromkeys(kind for parts in seconds.values() for kind in parts))
    for number, kind in enumerate(kinds):
        left = [sum(parts[k] for k in kinds[:number]) for parts in seconds.values()]
        times.barh(list(seconds), [parts[kind] for parts in seconds.values()], left=left, color=colours[number], label=kind)
    times.invert_yaxis()
    times.set(title="one optimizer step", xlabel="seconds (estimate)")
    for axis in axes:
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=3, fontsize=8)
    return figure
