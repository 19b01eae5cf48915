"""Tables of results as figures."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from saga_study.findings.answer import ANSWER_METHODS, DIRECT
from saga_study.findings.figures.style import BLACK, BLUE, GREEN, METHOD_COLOURS, ORANGE, PURPLE, VERMILION, panels, write_why
from saga_study.findings.samples import POOLED
from saga_study.methods import METHOD_LABELS


def recall_dots(table: pd.DataFrame, seeds: Mapping[str, Sequence[float]], baseline: str, title: str) -> Figure:
    """Show R@1 per method (%): a dot per seed and the mean, and the difference to the baseline with its interval.

    `table` comes from `tables.main_table`; `seeds` maps each method to the R@1 of its seeds in percent.
    """
    figure, axes = panels(1, 2, 12, 0.62 * len(table) + 1.5, sharey=True, width_ratios=(3, 2))
    recall, difference = axes[0]
    for place, row in enumerate(table.itertuples()):
        colour = METHOD_COLOURS.get(row.method, BLACK)
        values = np.sort(seeds[row.method])
        recall.plot(values, [place] * len(values), "o", color=colour, ms=7, alpha=0.55, mec="white")
        mean = float(np.mean(values))
        recall.plot([mean] * 2, [place - 0.28, place + 0.28], color=colour, lw=3)
        recall.annotate(f"{mean:.1f}", (mean, place - 0.32), ha="center", va="bottom", fontsize=10, color=colour)
        if row.method == baseline:
            difference.plot(0, place, "s", color=colour, ms=7)
        elif np.isfinite(row.difference):
            difference.plot([row.low, row.high], [place, place], color=colour, lw=2.5, solid_capstyle="butt")
            difference.plot(row.difference, place, "o", color=colour, ms=8)
    label = METHOD_LABELS.get(baseline, baseline)
    recall.set_yticks(range(len(table)), table["label"])
    recall.set_ylim(len(table) - 0.4, -0.7)
    recall.set_xlabel("R@1 on unseen classes (%)  ● a seed  ┃ mean")
    difference.axvline(0, color=BLACK, lw=1)
    difference.set_xlabel(f"R@1 − {label} (points), 95 % interval")
    for axis in axes.flat:
        axis.grid(axis="x")
        axis.margins(x=0.08)
    figure.suptitle(title)
    return figure


def answer_forest(answer: pd.DataFrame, baseline: str, title: str) -> Figure:
    """Show differences of R@1 in points with 95 % intervals: a row per benchmark and one for all, a colour per method.

    `answer` comes from `tables.pooled_answer`. Left: against the baseline; right: a signal against its own controls.
    Controls and the longer baseline have open marks. What a control does that is told the untruth dwarfs everything else: where it
    lies off the scale of the others, an arrow at the edge and its number stand for it.
    """
    shown = answer[answer["method"].isin(ANSWER_METHODS)]
    sides = [part for part in (shown[shown["against"] == baseline], shown[shown["against"] != baseline]) if len(part)]
    if not sides:
        figure, axes = panels(1, 1, 6, 1)
        axes[0, 0].set_axis_off()
        axes[0, 0].text(0.5, 0.5, "no method to compare with the baseline", ha="center", va="center")
        return figure
    places = list(shown["benchmark"].unique())
    widths = [max(2, part.groupby(["method", "against"]).ngroups) for part in sides]
    figure, axes = panels(
        1, len(sides), 12, 1.25 * len(places) + 1.8, sharey=True, width_ratios=(3, 2)[: len(sides)]
    )
    for axis, part, width in zip(axes[0], sides, widths, strict=True):
        others = part[~part[["method", "against"]].eq("oracle_wrong").any(axis=1)]
        room = 0.06 * np.ptp([0.0, *others["low"], *others["high"]])
        left, right = (pick([0.0, *others[end]]) + sign * room for pick, end, sign in ((min, "low", -1), (max, "high", 1)))
        for number, ((method, against), rows) in enumerate(part.groupby(["method", "against"], sort=False)):
            colour, label = METHOD_COLOURS.get(method, BLACK), METHOD_LABELS.get(method, method)
            label = label if against == baseline else DIRECT.get((method, against), f"{label} − {against}")
            face = "white" if method in ("saga_shuffled", "oracle_wrong", "pf_long") else colour
            heights = np.array([places.index(name) + 0.72 * ((number + 0.5) / width - 0.5) for name in rows["benchmark"]])
            mark = "o" if against == baseline else "osD^v"[number % 5]  # one colour stands for several comparisons there
            near = (others.empty or (rows["low"] >= left) & (rows["high"] <= right)) | np.zeros(len(rows), bool)
            on_scale = rows[near]
            axis.hlines(heights[near], on_scale["low"], on_scale["high"], color=colour, lw=2)
            axis.plot(on_scale["difference"], heights[near], mark, color=colour, mfc=face, ms=7, label=label)
            for height, row in zip(heights[~near], rows[~near].to_dict("records"), strict=True):
                edge, side = (left, "left") if row["difference"] < 0 else (right, "right")
                told = f"{row['difference']:+.1f} [{row['low']:+.1f}, {row['high']:+.1f}]".replace("-", "−")
                arrow = "<" if side == "left" else ">"
                axis.plot(edge, height, arrow, color=colour, mfc=face, ms=8, clip_on=False)
                offset = {"xytext": (9 if side == "left" else -9, 0), "textcoords": "offset points", "va": "center", "fontsize": 9}
                axis.annotate(told, (edge, height), ha=side, color=colour, **offset)
        if len(others):
            axis.set_xlim(left, right)
        axis.axvline(0, color=BLACK, lw=1)
        axis.axhspan(len(places) - 1.5, len(places) - 0.5, color="#f2f4f6", zorder=0)
        against = f"R@1 − {METHOD_LABELS.get(baseline, baseline)}" if part is sides[0] else "R@1, signal − its control"
        axis.set_xlabel(f"{against} (points), 95 % interval")
        axis.grid(axis="x")
        below = -0.55 / (1.25 * len(places))
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, below), ncols=2 if part is sides[0] and width > 2 else 1, fontsize=9)
    axes[0, 0].set_yticks(range(len(places)), [name.replace("miniature_", "miniature\n") for name in places])
    axes[0, 0].set_ylim(len(places) - 0.5, -0.5)
    figure.suptitle(title)
    return figure


def interval_rows(table: pd.DataFrame, title: str, xlabel: str = "difference of R@1 (points), 95 % interval") -> Figure:
    """Show differences in points with their intervals: a row per label, a colour and mark per benchmark, the mean of all in black.

    `table` comes from `comparisons.differences` or `comparisons.over_losses`; a row without any difference says why.
    """
    labels, known = list(dict.fromkeys(table["label"])), table[table["difference"].notna()]
    places = [name for name in dict.fromkeys(table["benchmark"]) if name != POOLED]
    looks = dict(zip(places, ((ORANGE, "s"), (BLUE, "^"), (GREEN, "v"), (PURPLE, "D")), strict=False)) | {POOLED: (BLACK, "o")}
    drawn = [name for name in (*places, POOLED) if (known["benchmark"] == name).any()]
    shown = [textwrap.fill(label, 36) for label in labels]
    figure, [[axis]] = panels(1, 1, 10.5, 0.62 * len(labels) + 1.7)
    for number, name in enumerate(drawn):
        rows, (colour, mark) = known[known["benchmark"] == name], looks[name]
        heights = [labels.index(label) + 0.7 * ((number + 0.5) / len(drawn) - 0.5) for label in rows["label"]]
        axis.hlines(heights, rows["low"], rows["high"], color=colour, lw=2)
        axis.plot(rows["difference"], heights, mark, color=colour, ms=7, label=name if name != POOLED else "mean of the benchmarks")
    axis.axvline(0, color=BLACK, lw=1)
    for place, label in enumerate(labels):
        rows = table[table["label"] == label]
        if rows["difference"].isna().all() and len(rows):
            where = {"xycoords": axis.get_yaxis_transform(), "va": "center", "fontsize": 10, "color": "#5a5a5a"}
            axis.annotate(rows["absent"].iloc[0], (0.02, place), **where)
    axis.set_yticks(range(len(labels)), shown)
    axis.set_ylim(len(labels) - 0.4, -0.6)
    axis.set_xlabel(xlabel)
    axis.grid(axis="x")
    axis.margins(x=0.08)
    if drawn:
        figure.legend(loc="outside lower center", ncols=len(drawn))
    figure.suptitle(title)
    return figure


def size_curves(values: pd.DataFrame, gains: pd.DataFrame, title: str) -> Figure:
    """Show R@1 (%, ± standard deviation over seeds) against embedding size per method, and below it SAGA's gain with its interval.

    A column per benchmark; `values` comes from `comparisons.cell_table`, `gains` from `comparisons.differences`.
    """
    names = list(dict.fromkeys(values["dataset"]))
    sizes = sorted(values["embedding_dim"].unique())
    figure, axes = panels(2, len(names), 5.4 * len(names) + 0.6, 6.6, sharex=True, sharey="row", height_ratios=(3, 2))
    marks = dict(zip(dict.fromkeys(values["method"]), "^os", strict=False))
    for (upper, lower), name in zip(axes.T, names, strict=True):
        for method, mark in marks.items():
            rows = values[(values["dataset"] == name) & (values["method"] == method) & (values["seeds"] > 0)].sort_values("embedding_dim")
            upper.errorbar(
                rows["embedding_dim"], rows["R@1"], rows["R@1 std"].fillna(0), color=METHOD_COLOURS.get(method, BLACK), marker=mark,
                ms=7, lw=1.8, capsize=3, label=METHOD_LABELS.get(method, method),
            )  # fmt: skip
        rows = gains[(gains["benchmark"] == name) & gains["difference"].notna()]
        lower.vlines(rows["embedding_dim"], rows["low"], rows["high"], color=VERMILION, lw=2.5)
        lower.plot(rows["embedding_dim"], rows["difference"], "s", color=VERMILION, ms=8)
        for size in set(sizes) - set(rows["embedding_dim"]):
            why = gains[(gains["benchmark"] == name) & (gains["embedding_dim"] == size)]["absent"]
            write_why(lower, size, why.iloc[0] if len(why) else "")
        lower.axhline(0, color=BLACK, lw=1)
        lower.set_xscale("log", base=2)
        lower.set_xticks(sizes, [str(size) for size in sizes])
        lower.set_xlim(sizes[0] / 1.5, sizes[-1] * 1.5)
        lower.set_xlabel("embedding size (dimensions)")
        upper.set_title(name)
        for axis in (upper, lower):
            axis.grid(axis="y")
            axis.margins(y=0.15)
    axes[0, 0].set_ylabel("R@1 on unseen classes (%)")
    axes[1, 0].set_ylabel("SAGA − PF (points),\n95 % interval")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=len(marks))
    figure.suptitle(title)
    return figure


def recall_curves(values: pd.DataFrame, title: str) -> Figure:
    """Show R@1, 2, 4 and 8 (%, ± standard deviation over seeds) of each method: a panel per benchmark of a `comparisons.cell_table`."""
    names = list(dict.fromkeys(values["dataset"]))
    figure, axes = panels(1, len(names), 5.4 * len(names) + 0.6, 4.6, sharey=True)
    marks = dict(zip(dict.fromkeys(values["method"]), "^os", strict=False))
    for axis, name in zip(axes.flat, names, strict=True):
        for number, (method, mark) in enumerate(marks.items()):
            rows = values[(values["dataset"] == name) & (values["method"] == method)]
            if not len(rows) or not rows["seeds"].iloc[0]:
                write_why(axis, number, f"{METHOD_LABELS[method]}: {rows['absent'].iloc[0] if len(rows) else 'not asked for'}")
                continue
            recall = [rows[f"R@{k}"].iloc[0] for k in (1, 2, 4, 8)]
            std = [rows[f"R@{k} std"].fillna(0).iloc[0] for k in (1, 2, 4, 8)]
            axis.errorbar(
                range(4), recall, std, color=METHOD_COLOURS.get(method, BLACK), marker=mark, ms=7, lw=1.8, capsize=3,
                label=METHOD_LABELS[method],
            )  # fmt: skip
        axis.set_xticks(range(4), ["1", "2", "4", "8"])
        axis.set_xlabel("K")
        axis.set_title(name)
        axis.grid(axis="y")
        axis.margins(y=0.15)
    axes.flat[0].set_ylabel("Recall@K on unseen classes (%)")
    figure.legend(*axes.flat[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(marks))
    figure.suptitle(title)
    return figure
