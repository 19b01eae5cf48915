"""Tables of results as figures."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from saga_study.findings.answer import comparison_label, group_of, shown_comparisons
from saga_study.findings.figures.drawing import beside, draw_curve, draw_intervals, legend_below, method_colour, write_why
from saga_study.findings.figures.style import BAND, BLACK, BLUE, GREEN, ORANGE, PURPLE, VERMILION, panels
from saga_study.findings.samples import POOLED
from saga_study.findings.words import Interval, label
from saga_study.methods import METHOD_LABELS

CURVE_MARKS = "^os"  # of the methods of Tables 4 and 5, in their order


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
        recall.annotate(f"{mean:.1f}", (mean, place - 0.32), ha="center", va="bottom", fontsize=10)
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


def answer_forest(answer: pd.DataFrame, title: str) -> Figure:
    """Show differences in points with 95 % intervals: a row per comparison, a colour and mark per benchmark, all of them in black.

    `answer` comes from `answer.pooled_answer`. Left R@1, right MAP@R; comparisons stand in groups: with the best loss, on each metric
    loss, controls. The control with wrong attributes differs far more than all others: where its intervals are off their scale, an
    arrow at the edge, with the number of all benchmarks, replaces them.
    """
    comparisons = shown_comparisons(answer)
    if not comparisons:
        figure, [[axis]] = panels(1, 1, 6, 1)
        axis.set_axis_off()
        axis.text(0.5, 0.5, "no method to compare with the baseline", ha="center", va="center")
        return figure
    places, heads = _forest_places(list(comparisons))
    rows = pd.DataFrame([row for group in comparisons.values() for row in group])
    rows["place"] = [places[pair] for pair in zip(rows["method"], rows["against"], strict=True)]
    names = [metric for metric in ("R@1", "MAP@R") if metric == "R@1" or rows["MAP@R"].notna().any()]
    last = max(places.values())
    figure, [axes] = panels(1, len(names), 7 + 3.5 * len(names), 0.5 * last + 2.2, title, "x", sharey=True)
    for axis, metric in zip(axes, names, strict=True):
        _draw_comparisons(axis, rows, "difference" if metric == "R@1" else metric)
        axis.axvline(0, color=BLACK, lw=1)
        axis.set_xlabel(f"difference of {metric} (points), 95 % interval")
        for place in heads.values():
            axis.axhspan(place - 0.4, place + 0.4, color=BAND, zorder=0)
    for name, place in heads.items():
        axes[0].annotate(name, (0.01, place), xycoords=axes[0].get_yaxis_transform(), va="center", fontsize=11, fontweight="bold")
    axes[0].set_yticks(list(places.values()), [textwrap.fill(comparison_label(*pair), 44) for pair in places])
    axes[0].tick_params(axis="y", length=0)
    axes[0].set_ylim(last + 0.6, -0.6)
    legend_below(figure, axes[0], 5)
    return figure


def _forest_places(pairs: Sequence[tuple[str, str]]) -> tuple[dict[tuple[str, str], int], dict[str, int]]:
    """Return the place of each comparison and of each group's heading above it, from the top."""
    places, heads = {}, {}
    for pair in pairs:
        heads.setdefault(group_of(*pair), len(places) + len(heads))
        places[pair] = len(places) + len(heads)
    return places, heads


def _draw_comparisons(axis: plt.Axes, rows: pd.DataFrame, name: str) -> None:
    """Draw one side of `answer_forest`: the differences in column `name` with their ends."""
    low, high = (rows[column if (column := f"{name} {end}") in rows else end].fillna(rows[name]) for end in ("low", "high"))
    is_far = rows[["method", "against"]].eq("oracle_wrong").any(axis=1)
    scale = ~is_far if not is_far.all() else is_far
    ends = np.array([min(0.0, low[scale].min()), max(0.0, high[scale].max())])
    left, right = ends + (0.06 * np.ptp(ends) or 1.0) * np.array([-1, 1])
    near = (low >= left) & (high <= right)
    looks = benchmark_looks([one for one in rows["benchmark"].unique() if one != POOLED])
    for number, (benchmark, (colour, mark)) in enumerate(looks.items()):
        part = rows[near & (rows["benchmark"] == benchmark)]
        heights = part["place"] + beside(number, len(looks))
        shown = "mean of the benchmarks" if benchmark == POOLED else benchmark
        draw_intervals(axis, heights, part, colour, name, marker=mark, ms=7 if benchmark == POOLED else 5, label=shown)
    for row in rows[~near & (rows["benchmark"] == POOLED)].to_dict("records"):
        edge, side, inside = (left, "left", 9) if row[name] < 0 else (right, "right", -9)
        axis.plot(edge, row["place"], "<" if side == "left" else ">", ms=8, clip_on=False, color=BLACK)
        axis.annotate(
            Interval.of(row, name).text(), (edge, row["place"]), (inside, 0), textcoords="offset points", ha=side, va="center", fontsize=9,
        )  # fmt: skip
    axis.set_xlim(left, right)


def benchmark_looks(benchmarks: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Return a colour and mark for each benchmark and for all of them."""
    return dict(zip(benchmarks, ((ORANGE, "s"), (BLUE, "^"), (GREEN, "v"), (PURPLE, "D")), strict=False)) | {POOLED: (BLACK, "o")}


def interval_rows(table: pd.DataFrame, title: str, xlabel: str = "difference of R@1 (points), 95 % interval") -> Figure:
    """Show differences in points with their intervals: a row per label, a colour and mark per benchmark, the mean of all in black.

    `table` comes from `differences`; a row without any difference says why.
    """
    labels, known = list(dict.fromkeys(table["label"])), table[table["difference"].notna()]
    places = [name for name in dict.fromkeys(table["benchmark"]) if name != POOLED]
    looks = benchmark_looks(places)
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
