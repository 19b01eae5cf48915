"""Settings and benchmarks on validation classes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from saga_study.findings.figures.drawing import draw_curve, draw_intervals, legend_below, method_colour, ring, write_why
from saga_study.findings.figures.style import BAND, BLACK, BLUE, GREEN, VERMILION, panels
from saga_study.findings.sensitivity import WITHOUT, without_saga
from saga_study.findings.words import label, shown_value
from saga_study.methods import METHODS


def sensitivity_panels(table: pd.DataFrame, labels: Mapping[str, str], title: str, columns: int = 4) -> Figure:
    """Show how R@1 (with its interval) and MAP@R change in points as one setting changes: a panel per setting, the profile's value marked.

    `table` comes from `sensitivity.sensitivity_table`; `labels` name its settings. The dashed line is what SAGA is added to.
    """
    settings = [name for name in dict.fromkeys(table["setting"]) if name != WITHOUT]
    rows = -(-len(settings) // columns)
    figure, axes = panels(rows, columns, 3.7 * columns, 3.0 * rows + 0.9, title, "y", sharey=True)
    base = table.loc[table["setting"] == WITHOUT, "difference"].iloc[0]
    for axis, name in zip(axes.flat, settings, strict=False):
        own = table[table["setting"] == name].reset_index(drop=True)
        known = own[own["seeds"] > 0]
        axis.axhline(0, color=BLACK, lw=1)
        if base == base:
            axis.axhline(base, color=BLUE, lw=1.5, ls="--", label=f"{without_saga(table)} without SAGA (R@1)")
        draw_intervals(axis, known.index - 0.1, known, VERMILION, upright=True, marker="s", label="R@1, 95 % interval")
        axis.plot(known.index + 0.1, known["MAP@R difference"], "o", color=GREEN, mfc="white", mew=1.8, ms=7, label="MAP@R")
        for place, why in own.loc[own["seeds"] == 0, "absent"].items():
            write_why(axis, place, why)
        ticks = zip(own["value"], own["is_profile"], strict=True)
        axis.set_xticks(own.index, [shown_value(value) + ("\nprofile" if is_profile else "") for value, is_profile in ticks])
        axis.set_xlim(-0.6, len(own) - 0.4)
        axis.set_title(labels.get(name, name))
    for axis in axes.flat[len(settings) :]:
        axis.set_axis_off()
    for axis in axes[:, 0]:
        axis.set_ylabel("change (points)")
    legend_below(figure, axes[0, 0], 3)
    return figure


def gain_by_supervisor(table: pd.DataFrame, title: str) -> Figure:
    """Show what SAGA adds to its base (points of R@1, 95 % interval) against how often its supervisor was right in training.

    `table` comes from `sensitivity.sensitivity_table`; its rows of setting "supervisor" are drawn, each named by its value.
    """
    rows = table[(table["setting"] == "supervisor") & (table["seeds"] > 0)].sort_values("right verdicts")
    figure, [[axis]] = panels(1, 1, 7.0, 4.6, title, "y")
    base = without_saga(table)
    axis.axhline(0, color=BLUE, lw=1.5, ls="--", label=f"{base} without SAGA")
    draw_intervals(axis, rows["right verdicts"], rows, VERMILION, "gain", upright=True, marker="s", label="SAGA, 95 % interval")
    for number, row in enumerate(rows.to_dict("records")):  # neighbours are close: by turns above and below their intervals
        end, away, align = ("gain low", -3, "top") if number % 2 else ("gain high", 3, "bottom")
        axis.annotate(
            shown_value(row["value"]), (row["right verdicts"], row[end]), (0, away), textcoords="offset points", fontsize=10, ha="center",
            va=align,
        )  # fmt: skip
    axis.margins(y=0.12)
    if rows.empty:
        axis.text(0.5, 0.6, "no supervisor of another quality in this study: with --full", transform=axis.transAxes, ha="center")
    axis.set_xlabel("right verdicts of all rollouts in training (%)")
    axis.set_ylabel(f"SAGA − {base} (points of R@1)")
    legend_below(figure, axis, 2)
    return figure


def search_dots(table: pd.DataFrame, title: str) -> Figure:
    """Show every trial of a search: a dot per trial and method, methods by stage; panels of R@1, MAP@R and their mean; chosen ones ringed.

    Dots are means over benchmarks and seeds; in the last panel, bars are the standard deviation over seeds. Colours are those of the
    metric losses. `table` comes from `hyperparameters.search_table`.
    """
    places = _places_by_stage(table)
    shown = {"mean R@1": "R@1 (%)", "mean MAP@R": "MAP@R (%)", "mean score": "mean of both"}
    figure, [axes] = panels(1, len(shown), 12.0, 0.3 * len(places) + 1.5, title, "x", sharey=True)
    for axis, (column, what) in zip(axes, shown.items(), strict=True):
        for name, place in places.items():
            if name not in METHODS:  # a stage
                axis.axhspan(place - 0.45, place + 0.45, color=BAND, lw=0)
                continue
            rows, colour = table[table["method"] == name], method_colour(METHODS[name].settings["dml_loss"])
            heights = place + (np.linspace(-0.25, 0.25, len(rows)) if len(rows) > 1 else np.zeros(1))
            if column == "mean score" and rows["spread"].notna().all():
                axis.errorbar(rows[column], heights, xerr=rows["spread"], fmt="none", ecolor=colour, alpha=0.5, lw=1.2)
            axis.plot(rows[column], heights, "o", color=colour, ms=6, alpha=0.7, mec="white")
            ring(axis, rows[column][rows["chosen"]], heights[rows["chosen"].to_numpy(bool)])
        axis.set_xlabel(f"{what}, validation classes", fontsize=10)
        axis.margins(x=0.08)
    axes[0].set_yticks(list(places.values()), map(label, places))
    for text, name in zip(axes[0].get_yticklabels(), places, strict=True):
        text.set_weight("normal" if name in METHODS else "bold")
    axes[0].set_ylim(len(places) - 0.5, -0.5)
    return figure


def _places_by_stage(table: pd.DataFrame) -> dict[str, int]:
    """Return the rows of a search's figure from the top: each stage by its name, then its methods."""
    names = []
    for stage, rows in table.groupby("stage", sort=False):
        names += [stage, *dict.fromkeys(rows["method"])]
    return {name: place for place, name in enumerate(names)}


def length_curves(table: pd.DataFrame, title: str) -> Figure:
    """Show R@1 (%, standard deviation over seeds) over the number of steps: a panel per benchmark, the best length of a method ringed.

    `table` comes from `sensitivity.length_table`.
    """
    datasets = list(dict.fromkeys(table["dataset"]))
    figure, [axes] = panels(1, len(datasets), 5.6 * len(datasets), 4.4, title, "y")
    for axis, dataset in zip(axes, datasets, strict=True):
        own = table[table["dataset"] == dataset]
        methods = own.groupby("method", sort=False)
        for place, (method, rows) in enumerate(methods):
            steps = rows["steps"] * 1.025 ** (place - (methods.ngroups - 1) / 2)  # so that bars are beside each other
            draw_curve(axis, steps, rows["R@1"], rows["spread"], method)
            ring(axis, steps[rows["best"]], rows["R@1"][rows["best"]])
        axis.set_xscale("log", base=2)
        lengths = sorted(own["steps"].unique())
        axis.set_xticks(lengths, map(str, lengths))
        axis.minorticks_off()
        axis.set_xlabel("training steps; a step has as many images for every method")
        axis.set_title(dataset)
    axes[0].set_ylabel("R@1 (%), validation classes")
    legend_below(figure, max(axes, key=lambda axis: len(axis.get_legend_handles_labels()[0])), 5)
    return figure
