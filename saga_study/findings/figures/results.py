"""Tables of results as figures."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from saga_study.findings.answer import ANSWER_METHODS, DIRECT
from saga_study.findings.figures.drawing import beside, draw_curve, draw_intervals, legend_below, method_colour, write_why
from saga_study.findings.figures.style import BAND, BLACK, BLUE, GREEN, ORANGE, PURPLE, VERMILION, panels
from saga_study.findings.samples import POOLED
from saga_study.findings.words import Interval, label
from saga_study.methods import METHOD_LABELS

CURVE_MARKS = "^os"  # of the methods of Tables 4 and 5, in their order
OPEN_MARKS = ("saga_shuffled", "oracle_wrong", "pf_long")  # controls and the longer baseline


def recall_dots(table: pd.DataFrame, seeds: Mapping[str, Sequence[float]], baseline: str, title: str) -> Figure:
    """Show R@1 per method (%): a dot per seed and the mean, and the difference to the baseline with its interval.

    `table` comes from `table_1`; `seeds` maps each method to the R@1 of its seeds in percent.
    """
    figure, [[recall, difference]] = panels(1, 2, 12, 0.62 * len(table) + 1.5, title, "x", sharey=True, width_ratios=(3, 2))
    for place, method in enumerate(table["method"]):
        colour, values = method_colour(method), np.sort(seeds[method])
        recall.plot(values, [place] * len(values), "o", color=colour, ms=7, alpha=0.55, mec="white")
        mean = float(np.mean(values))
        recall.plot([mean] * 2, [place - 0.28, place + 0.28], color=colour, lw=3)
        recall.annotate(f"{mean:.1f}", (mean, place - 0.32), ha="center", va="bottom", fontsize=10, color=colour)
        if method == baseline:
            difference.plot(0, place, "s", color=colour, ms=7)
        else:
            draw_intervals(difference, [place], table.iloc[[place]], colour)
    recall.set_yticks(range(len(table)), table["label"])
    recall.set_ylim(len(table) - 0.4, -0.7)
    recall.set_xlabel("R@1 on unseen classes (%)  ● a seed  ┃ mean")
    difference.axvline(0, color=BLACK, lw=1)
    difference.set_xlabel(f"R@1 − {label(baseline)} (points), 95 % interval")
    for axis in (recall, difference):
        axis.margins(x=0.08)
    return figure


def answer_forest(answer: pd.DataFrame, baseline: str, title: str) -> Figure:
    """Show differences of R@1 in points with 95 % intervals: a row per benchmark and one for all, a colour per method.

    `answer` comes from `answer.pooled_answer`. Left: against the baseline; right: a signal against its own controls. Controls and
    the longer baseline have open marks. The control with wrong attributes differs far more than all others: where its interval is
    off their scale, an arrow at the edge and its number replace it.
    """
    shown = answer[answer["method"].isin(ANSWER_METHODS)]
    sides = [part for part in (shown[shown["against"] == baseline], shown[shown["against"] != baseline]) if len(part)]
    if not sides:
        figure, [[axis]] = panels(1, 1, 6, 1)
        axis.set_axis_off()
        axis.text(0.5, 0.5, "no method to compare with the baseline", ha="center", va="center")
        return figure
    places = list(shown["benchmark"].unique())
    widths = (3, 2)[: len(sides)]
    figure, [axes] = panels(1, len(sides), 12, 1.25 * len(places) + 1.8, title, "x", sharey=True, width_ratios=widths)
    for axis, part in zip(axes, sides, strict=True):
        count = _draw_comparisons(axis, part, places, baseline)
        axis.axvline(0, color=BLACK, lw=1)
        axis.axhspan(len(places) - 1.5, len(places) - 0.5, color=BAND, zorder=0)
        compared = f"R@1 − {label(baseline)}" if axis is axes[0] else "R@1, signal − its control"
        axis.set_xlabel(f"{compared} (points), 95 % interval")
        below = -0.55 / (1.25 * len(places))
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, below), ncols=2 if axis is axes[0] and count > 2 else 1, fontsize=9)
    axes[0].set_yticks(range(len(places)), [name.replace("miniature_", "miniature\n") for name in places])
    axes[0].set_ylim(len(places) - 0.5, -0.5)
    return figure


def _draw_comparisons(axis: plt.Axes, part: pd.DataFrame, places: Sequence[str], baseline: str) -> int:
    """Draw one side of `answer_forest` and return how many comparisons it has."""
    others = part[~part[["method", "against"]].eq("oracle_wrong").any(axis=1)]
    scale = others if len(others) else part
    ends = np.array([min(0.0, scale["low"].min()), max(0.0, scale["high"].max())])
    left, right = ends + 0.06 * np.ptp(ends) * np.array([-1, 1])
    groups = part.groupby(["method", "against"], sort=False)
    for number, ((method, against), rows) in enumerate(groups):
        name = label(method) if against == baseline else DIRECT.get((method, against), f"{label(method)} − {against}")
        look = {"color": method_colour(method), "mfc": "white" if method in OPEN_MARKS else method_colour(method)}
        mark = "o" if against == baseline else "osD^v"[number % 5]  # one colour is of several comparisons there
        heights = rows["benchmark"].map(places.index) + beside(number, max(2, groups.ngroups))
        near = (rows["low"] >= left) & (rows["high"] <= right)
        draw_intervals(axis, heights[near], rows[near], method_colour(method), label=name, marker=mark, **look)
        for height, row in zip(heights[~near], rows[~near].to_dict("records"), strict=True):
            edge, side, inside = (left, "left", 9) if row["difference"] < 0 else (right, "right", -9)
            axis.plot(edge, height, "<" if side == "left" else ">", ms=8, clip_on=False, **look)
            axis.annotate(
                Interval.of(row).text(), (edge, height), (inside, 0), textcoords="offset points", ha=side, va="center", fontsize=9,
                color=look["color"],
            )  # fmt: skip
    axis.set_xlim(left, right)
    return groups.ngroups


def interval_rows(table: pd.DataFrame, title: str, xlabel: str = "difference of R@1 (points), 95 % interval") -> Figure:
    """Show differences in points with their intervals: a row per label, a colour and mark per benchmark, the mean of all in black.

    `table` comes from `differences`; a row without any difference says why.
    """
    labels, known = list(dict.fromkeys(table["label"])), table[table["difference"].notna()]
    places = [name for name in dict.fromkeys(table["benchmark"]) if name != POOLED]
    looks = dict(zip(places, ((ORANGE, "s"), (BLUE, "^"), (GREEN, "v"), (PURPLE, "D")), strict=False)) | {POOLED: (BLACK, "o")}
    drawn = [name for name in (*places, POOLED) if (known["benchmark"] == name).any()]
    figure, [[axis]] = panels(1, 1, 10.5, 0.62 * len(labels) + 1.7, title, "x")
    for number, name in enumerate(drawn):
        rows, (colour, mark) = known[known["benchmark"] == name], looks[name]
        heights = rows["label"].map(labels.index) + beside(number, len(drawn))
        draw_intervals(axis, heights, rows, colour, marker=mark, label="mean of the benchmarks" if name == POOLED else name)
    axis.axvline(0, color=BLACK, lw=1)
    for place, name in enumerate(labels):
        if name not in set(known["label"]):
            write_why(axis, place, table.loc[table["label"] == name, "absent"].iloc[0], upright=False)
    axis.set_yticks(range(len(labels)), [textwrap.fill(name, 36) for name in labels])
    axis.set_ylim(len(labels) - 0.4, -0.6)
    axis.set_xlabel(xlabel)
    axis.margins(x=0.08)
    if drawn:
        legend_below(figure, axis, len(drawn))
    return figure


def size_curves(values: pd.DataFrame, gains: pd.DataFrame, title: str) -> Figure:
    """Show R@1 (%, ± standard deviation over seeds) against embedding size per method, and below it SAGA's gain with its interval.

    A column per benchmark; `values` comes from `tables_2_to_5.cell_table`, `gains` from `differences`.
    """
    names, sizes = list(dict.fromkeys(values["dataset"])), sorted(values["embedding_dim"].unique())
    figure, axes = panels(2, len(names), 5.4 * len(names) + 0.6, 6.6, title, "y", sharex=True, sharey="row", height_ratios=(3, 2))
    marks = dict(zip(dict.fromkeys(values["method"]), CURVE_MARKS, strict=False))
    for (upper, lower), name in zip(axes.T, names, strict=True):
        known = values[(values["dataset"] == name) & (values["seeds"] > 0)].sort_values("embedding_dim")
        for method, mark in marks.items():
            rows = known[known["method"] == method]
            draw_curve(upper, rows["embedding_dim"], rows["R@1"], rows["R@1 std"], method, mark)
        own = gains[gains["benchmark"] == name]
        rows = own[own["difference"].notna()]
        draw_intervals(lower, rows["embedding_dim"], rows, VERMILION, upright=True, marker="s")
        for size in set(sizes) - set(rows["embedding_dim"]):
            why = own.loc[own["embedding_dim"] == size, "absent"]
            write_why(lower, size, why.iloc[0] if len(why) else "")
        lower.axhline(0, color=BLACK, lw=1)
        lower.set_xscale("log", base=2)
        lower.set_xticks(sizes, map(str, sizes))
        lower.set_xlim(sizes[0] / 1.5, sizes[-1] * 1.5)
        lower.set_xlabel("embedding size (dimensions)")
        upper.set_title(name)
        for axis in (upper, lower):
            axis.margins(y=0.15)
    axes[0, 0].set_ylabel("R@1 on unseen classes (%)")
    axes[1, 0].set_ylabel("SAGA − PF (points),\n95 % interval")
    legend_below(figure, axes[0, 0], len(marks))
    return figure


def recall_curves(values: pd.DataFrame, title: str) -> Figure:
    """Show R@1, 2, 4 and 8 (%, ± standard deviation over seeds) of each method: a panel per benchmark of `tables_2_to_5.cell_table`."""
    names, ranks = list(dict.fromkeys(values["dataset"])), ("1", "2", "4", "8")
    figure, [axes] = panels(1, len(names), 5.4 * len(names) + 0.6, 4.6, title, "y", sharey=True)
    marks = dict(zip(dict.fromkeys(values["method"]), CURVE_MARKS, strict=False))
    for axis, name in zip(axes, names, strict=True):
        for number, (method, mark) in enumerate(marks.items()):
            rows = values[(values["dataset"] == name) & (values["method"] == method)]
            if not len(rows) or not rows["seeds"].iloc[0]:
                write_why(axis, number, f"{METHOD_LABELS[method]}: {rows['absent'].iloc[0] if len(rows) else 'not asked for'}")
                continue
            mean, std = (rows.iloc[0][[f"R@{k}{ending}" for k in ranks]].astype(float) for ending in ("", " std"))
            draw_curve(axis, range(4), mean, std, method, mark)
        axis.set_xticks(range(4), ranks)
        axis.set_xlabel("K")
        axis.set_title(name)
        axis.margins(y=0.15)
    axes[0].set_ylabel("Recall@K on unseen classes (%)")
    legend_below(figure, axes[0], len(marks))
    return figure
