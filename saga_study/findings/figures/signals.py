"""Signals beside the verdict: gain against cost, worlds on a map, and the chain from the reward to retrieval."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from saga_study.findings.figures.drawing import beside, draw_intervals, legend_below, method_colour
from saga_study.findings.figures.style import BLACK, DIM, GREY, panels
from saga_study.findings.words import label

# Of the groups of `signals.GROUPS`, in their order: a method's of each.
KIND_COLOURS = tuple(map(method_colour, ("pf", "saga_pf", "contrast_pf", "distilled_readings", "saga_shuffled", "oracle")))


def signal_costs(rows: pd.DataFrame, kinds: Sequence[str], controls: str, title: str) -> Figure:
    """Show what each signal adds to the base in MAP@R (points, 95 % interval) against the median seconds of a step.

    `rows` are those of one benchmark in `signals.signal_table`; `kinds` its groups, of which `controls` has open marks. The dashed line
    is the oracle's gain, the room. Names stand on the right, each with a line to its mark.
    """
    name = "MAP@R difference"
    known = rows[rows[name].notna() & rows["seconds per step"].gt(0)].sort_values(name)
    figure, [[axis]] = panels(1, 1, 10.5, max(4.2, 0.29 * len(known) + 1.6), title, "y")
    axis.axhline(0, color=BLACK, lw=1)
    if known.empty:
        axis.text(0.5, 0.5, "no signal to compare with the base", transform=axis.transAxes, ha="center")
        return figure
    for kind, colour in zip(kinds, KIND_COLOURS, strict=True):
        own = known[known["group"] == kind]
        if len(own):
            fill = "white" if kind == controls else colour
            draw_intervals(axis, own["seconds per step"], own, colour, name, upright=True, mfc=fill, mew=1.6, label=kind, alpha=0.9)
    room = known.loc[known["method"] == "oracle", name]
    if len(room):
        axis.axhline(room.iloc[0], color=method_colour("oracle"), lw=1.3, ls="--", label="the oracle's gain: the room")
    axis.set_xscale("log")
    axis.margins(x=0.08, y=0.06)
    colours = dict(zip(kinds, KIND_COLOURS, strict=True))
    _names_beside(axis, known["seconds per step"], known[name], known["label"], [colours[kind] for kind in known["group"]])
    for ticks in (axis.xaxis.set_major_formatter, axis.xaxis.set_minor_formatter):
        ticks(lambda seconds, _: f"{seconds:g}")
    axis.tick_params(axis="x", which="both", labelsize=8)
    axis.set_xlabel("median seconds of a training step (logarithmic)")
    axis.set_ylabel("MAP@R − base (points), 95 % interval")
    legend_below(figure, axis, 4)
    return figure


def _names_beside(axis: plt.Axes, x: pd.Series, y: pd.Series, names: pd.Series, colours: Sequence[str]) -> None:
    """Write the names of marks in a column on the right, as near to their heights as they do not cover each other, with lines to them."""
    low, high = axis.get_ylim()
    order = np.argsort(y.to_numpy(), kind="stable")
    heights = _spread((y.to_numpy()[order] - low) / (high - low), min(0.055, 0.98 / max(1, len(order) - 1)))
    for height, place in zip(heights, order, strict=True):
        line = {"arrowstyle": "-", "color": colours[place], "lw": 0.5, "alpha": 0.6, "relpos": (0, 0.5), "shrinkB": 4}
        axis.annotate(
            names.iloc[place], (x.iloc[place], y.iloc[place]), (1.03, height), textcoords="axes fraction", va="center", fontsize=9,
            color=colours[place], arrowprops=line, annotation_clip=False,
        )  # fmt: skip


def _spread(wanted: np.ndarray, gap: float) -> np.ndarray:
    """Return ascending heights in 0-1 near the wanted ascending ones, at least `gap` apart."""
    places = np.clip(wanted, 0, 1)
    for n in range(1, len(places)):
        places[n] = max(places[n], places[n - 1] + gap)
    for n in range(len(places) - 1, -1, -1):
        places[n] = min(places[n], 1 - (len(places) - 1 - n) * gap)
    return places


def world_map(table: pd.DataFrame, signals: Sequence[str], threshold: float, title: str) -> Figure:
    """Show the room of each world (points of MAP@R) over how often same-class verdicts are right at the start (%).

    A panel per signal: the size and colour of a mark is the share of the room that it collects; a cross where the oracle has no room.
    `table` comes from `worlds.world_table`; `threshold` (0-1) is what notebook 14 expects a gain from.
    """
    figure, [axes] = panels(1, len(signals), 7.4 * len(signals), 5.4, title, "both", sharex=True, sharey=True)
    known = table[table["same-class at start"].notna() & table["MAP@R room"].notna()]
    for axis, signal in zip(axes, signals, strict=True):
        share = known[f"{signal} MAP@R share"]
        at, room = 100 * known["same-class at start"], known["MAP@R room"]
        axis.axhline(0, color=BLACK, lw=1)
        axis.axvline(100 * threshold, color=DIM, lw=1, ls=":", label="expected from here on (notebook 14)")
        none = share.isna()
        axis.plot(at[none], room[none], "x", color=GREY, ms=8, mew=1.6, label="no share: no room")
        marks = axis.scatter(
            at[~none], room[~none], s=60 + 240 * share[~none].clip(0, 1), c=100 * share[~none], cmap="cividis_r", vmin=0, vmax=100,
            edgecolors=BLACK, linewidths=0.8, label="share of the room",
        )  # fmt: skip
        axis.set_title(label(signal))
        axis.set_xlabel("same-class verdicts right at the start (%)")
        axis.margins(0.1)
        _names_beside(axis, at, room, known["world"], [DIM] * len(known))
    axes[0].set_ylabel("room: oracle − base (points of MAP@R)")
    figure.colorbar(marks, ax=list(axes), label="share of the room (%)")
    legend_below(figure, axes[0], 3)
    return figure


def mediation_chain(table: pd.DataFrame, links: Sequence[str], title: str) -> Figure:
    """Show where a gain breaks off: points to the base (95 % interval) at each link from the reward to retrieval, a panel per benchmark.

    `table` comes from `mediation.chain_table`. A link that a method lacks is left out of its line.
    """
    places = list(dict.fromkeys(table["benchmark"]))
    figure, [axes] = panels(1, max(1, len(places)), 6.4 * max(1, len(places)), 4.8, title, "y")
    colours = {method: method_colour(method) for method in dict.fromkeys(table["method"])}
    for axis, place in zip(axes, places, strict=False):
        axis.axhline(0, color=BLACK, lw=1)
        for number, (method, colour) in enumerate(colours.items()):
            own = table[(table["benchmark"] == place) & (table["method"] == method) & table["difference"].notna()]
            at = own["link"].map(list(links).index) + beside(number, len(colours), 0.5)
            axis.plot(at, own["difference"], color=colour, lw=0.8, alpha=0.6)
            draw_intervals(axis, at, own, colour, upright=True, label=label(method))
        axis.set_xticks(range(len(links)), [textwrap.fill(link, 13) for link in links], fontsize=9)
        axis.set_title(place)
    axes[0].set_ylabel("points to the base, 95 % interval")
    if not places:
        axes[0].text(0.5, 0.5, "no run measured readings", transform=axes[0].transAxes, ha="center")
    else:
        legend_below(figure, axes[0], min(4, len(colours)))
    return figure
