"""What several figures draw alike: intervals, curves, grouped bars, legends and remarks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from saga_study.findings.figures.style import ANCHORED, BLACK, DIM, METHOD_COLOURS, SIGNAL_COLOURS
from saga_study.findings.words import label as method_label


def method_colour(method: str) -> str:
    """Return a method's colour, the same in every figure: its own, or else that of the signal it adds to a loss."""
    if method in METHOD_COLOURS:
        return METHOD_COLOURS[method]
    if method.endswith("_anchor"):
        return ANCHORED
    return next((colour for start, colour in SIGNAL_COLOURS.items() if method.startswith(start)), BLACK)


def beside(number: int, count: int, room: float = 0.7) -> float:
    """Return how far from the middle of its place the mark `number` of `count` is drawn, so that marks do not hide each other."""
    return room * ((number + 0.5) / count - 0.5)


def draw_intervals(
    axis: plt.Axes, places: Sequence[float] | pd.Series, rows: pd.DataFrame, colour: str, name: str = "difference", upright: bool = False,
    **look: object,
) -> None:  # fmt: skip
    """Draw rows of a table, a mark for each value and a line for its interval, at places of the y axis (`upright`: of the x axis).

    Values are in the column `name`, ends in the columns `<name> low` and `<name> high`, or else in `low` and `high`. `look` is of the
    marks, as `Axes.plot` takes it.
    """
    low, high = (rows[column if (column := f"{name} {end}") in rows else end] for end in ("low", "high"))
    (axis.vlines if upright else axis.hlines)(places, low, high, color=colour, lw=2)
    points = (places, rows[name]) if upright else (rows[name], places)
    axis.plot(*points, **{"color": colour, "marker": "o", "ms": 7, "ls": "none"} | look)


def draw_curve(axis: plt.Axes, x: Sequence[float], mean: pd.Series, std: pd.Series, method: str, mark: str = "o") -> None:
    """Draw a method's means as a line, with bars of one standard deviation where there is one."""
    look = {"color": method_colour(method), "marker": mark, "ms": 7, "lw": 1.8, "capsize": 3}
    axis.errorbar(x, mean, std.fillna(0), label=method_label(method), **look)


def draw_grouped_bars(axis: plt.Axes, heights: Mapping[str, Sequence[float]]) -> None:
    """Draw bars beside each other at places 0, 1, ...: one of each label at every place."""
    for number, (label, values) in enumerate(heights.items()):
        axis.bar(np.arange(len(values)) + beside(number, len(heights), 0.8), values, 0.75 / len(heights), label=label)


def ring(axis: plt.Axes, x: Sequence[float], y: Sequence[float]) -> None:
    """Draw a ring around points that were chosen."""
    axis.plot(x, y, "o", mfc="none", mec=BLACK, ms=12, mew=1.5)


def legend_below(figure: Figure, axis: plt.Axes, columns: int) -> None:
    """Explain the marks of one panel below the whole figure."""
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=columns)


def write_why(axis: plt.Axes, place: float, text: str, upright: bool = True) -> None:
    """Say at a place of the x axis (not `upright`: of the y axis) why nothing is drawn there."""
    where = {"xycoords": axis.get_xaxis_transform(), "rotation": 90, "ha": "center", "va": "bottom", "fontsize": 9}
    if not upright:
        where = {"xycoords": axis.get_yaxis_transform(), "va": "center", "fontsize": 10}
    axis.annotate(text, (place, 0.03) if upright else (0.02, place), color=DIM, **where)
