"""Settings and benchmarks on validation classes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from saga_study.findings.figures.drawing import draw_curve, draw_intervals, legend_below, method_colour, ring, write_why
from saga_study.findings.figures.style import BLACK, BLUE, GREEN, VERMILION, panels
from saga_study.findings.words import Interval, label, shown_value


def sensitivity_panels(table: pd.DataFrame, labels: Mapping[str, str], title: str, columns: int = 4) -> Figure:
    """Show how R@1 (with its interval) and MAP@R change in points as one setting changes: a panel per setting, the profile's value marked.

    `table` comes from `sensitivity.sensitivity_table`; `labels` name its settings. The dashed line is PF without SAGA.
    """
    settings = [name for name in dict.fromkeys(table["setting"]) if name != "PF"]
    rows = -(-len(settings) // columns)
    figure, axes = panels(rows, columns, 3.7 * columns, 3.0 * rows + 0.9, title, "y", sharey=True)
    pf = table.loc[table["setting"] == "PF", "difference"].iloc[0]
    for axis, name in zip(axes.flat, settings, strict=False):
        own = table[table["setting"] == name].reset_index(drop=True)
        known = own[own["seeds"] > 0]
        axis.axhline(0, color=BLACK, lw=1)
        if pf == pf:
            axis.axhline(pf, color=BLUE, lw=1.5, ls="--", label="PF without SAGA (R@1)")
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
    """Show what SAGA adds to PF (points of R@1, 95 % interval) against how often its supervisor was right in training.

    `table` comes from `sensitivity.sensitivity_table`; its rows of setting "supervisor" are drawn, each named by its value.
    """
    rows = table[(table["setting"] == "supervisor") & (table["seeds"] > 0)].sort_values("right verdicts")
    figure, [[axis]] = panels(1, 1, 7.0, 4.6, title, "y")
    axis.axhline(0, color=BLUE, lw=1.5, ls="--", label="PF without SAGA")
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
    axis.set_ylabel("SAGA − PF (points of R@1)")
    legend_below(figure, axis, 2)
    return figure


def when_heatmaps(table: pd.DataFrame, title: str) -> Figure:
    """Show what SAGA and the oracle add to PF (points of R@1) over train classes and shift; `table` from `gates.when_table`."""
    methods = [name.removesuffix(" difference") for name in table if name.endswith(" difference")]
    figure, axes = panels(1, len(methods), 5.4 * len(methods), 4.4, title)
    counts, shifts = sorted(table["train_classes"].unique()), sorted(table["shift"].unique())
    largest = max(1.0, *(float(table[f"{method} difference"].abs().max()) for method in methods))
    for axis, method in zip(axes[0], methods, strict=True):
        columns = {f"{method} {what}": what for what in Interval._fields}
        grid = table.pivot(index="train_classes", columns="shift", values=f"{method} difference").to_numpy()
        mesh = axis.pcolormesh(grid, cmap="PuOr_r", vmin=-largest, vmax=largest, edgecolors="white", lw=2)
        for row in table[["train_classes", "shift", *columns]].rename(columns=columns).to_dict("records"):
            place = shifts.index(row["shift"]) + 0.5, counts.index(row["train_classes"]) + 0.5
            colour = "white" if abs(row["difference"]) > 0.65 * largest else BLACK
            axis.text(*place, Interval.of(row).text().replace(" ", "\n", 1), ha="center", va="center", fontsize=10, color=colour)
        axis.set_xticks(np.arange(len(shifts)) + 0.5, [f"{shift:g}" for shift in shifts])
        axis.set_yticks(np.arange(len(counts)) + 0.5, [f"{count:g}" for count in counts])
        axis.set_xlabel("shift from the supervisor's studio (0) to the field (1)")
        axis.set_title(f"{label(method)} − PF")
        axis.tick_params(length=0)
    axes[0, 0].set_ylabel("train classes")
    figure.colorbar(mesh, ax=list(axes[0]), label="points of R@1")
    return figure


def search_dots(table: pd.DataFrame, title: str) -> Figure:
    """Show every trial of a search: a dot per trial and method, a panel per benchmark and one for the mean of several; chosen ones ringed.

    Dots are means over seeds; in the last panel, bars are their standard deviation. `table` comes from
    `hyperparameters.search_table`.
    """
    columns = [name for name in table if name.startswith("R@1 ")]
    columns += ["mean R@1"] if len(columns) > 1 else []
    methods = list(table["method"].unique())
    figure, [axes] = panels(1, len(columns), max(7.0, 2.9 * len(columns) + 1), 0.5 * len(methods) + 1.7, title, "x", sharey=True)
    for axis, column in zip(axes, columns, strict=True):
        for place, method in enumerate(methods):
            rows, colour = table[table["method"] == method], method_colour(method)
            heights = place + (np.linspace(-0.25, 0.25, len(rows)) if len(rows) > 1 else np.zeros(1))
            if column == columns[-1] and rows["spread"].notna().all():
                axis.errorbar(rows[column], heights, xerr=rows["spread"], fmt="none", ecolor=colour, alpha=0.5, lw=1.2)
            axis.plot(rows[column], heights, "o", color=colour, ms=6, alpha=0.7, mec="white")
            ring(axis, rows[column][rows["chosen"]], heights[rows["chosen"].to_numpy(bool)])
        axis.set_title(column.removeprefix("R@1 ") if column != "mean R@1" else "mean of the benchmarks", fontsize=10)
        axis.set_xlabel("R@1 (%), validation classes", fontsize=9)
        axis.margins(x=0.12)
    axes[0].set_yticks(range(len(methods)), map(label, methods))
    axes[0].set_ylim(len(methods) - 0.5, -0.5)
    return figure


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
