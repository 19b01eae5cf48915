"""Few labels: accuracy and what is gained, over the number of labels."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure

from saga_study.findings.figures.drawing import beside, draw_intervals, legend_below
from saga_study.findings.figures.style import BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILION, panels

COLOURS = (VERMILION, ORANGE, BLUE, GREEN, PURPLE, SKY, BLACK, GREY)


def gains_by_labels(table: pd.DataFrame, classifiers: Sequence[str], labels: Sequence[str], title: str) -> Figure:
    """Show differences of accuracy (points, 95 % interval) over the number of labelled images per class: a panel per classifier.

    `table` holds the rows of one benchmark, or of all, of `few_shot.gains_table`; `labels` names the pairs that are drawn, those it has.
    """
    figure, [axes] = panels(1, len(classifiers), 6.2 * len(classifiers), 4.6, title, "y", sharey=True)
    known = table[table["labels"].ne("") & table["label"].isin(labels)]
    shots = sorted({int(count) for count in known["labels"]})
    names = [name for name in labels if (known["label"] == name).any()]
    for axis, classifier in zip(axes, classifiers, strict=True):
        axis.axhline(0, color=BLACK, lw=1)
        for number, name in enumerate(names):
            rows = known[(known["classifier"] == classifier) & (known["label"] == name)]
            places = [shots.index(int(count)) + beside(number, len(names), 0.5) for count in rows["labels"]]
            draw_intervals(axis, places, rows, COLOURS[number % len(COLOURS)], upright=True, label=name)
        axis.set_xticks(range(len(shots)), map(str, shots))
        axis.set_xlim(-0.5, max(0.5, len(shots) - 0.5))
        axis.set_xlabel("labelled images per class")
        axis.set_title(classifier)
    axes[0].set_ylabel("difference of accuracy (points),\n95 % interval")
    if names:
        legend_below(figure, axes[0], 2)
    else:
        axes[0].text(0.5, 0.5, "no pair of methods to compare", transform=axes[0].transAxes, ha="center")
    return figure
