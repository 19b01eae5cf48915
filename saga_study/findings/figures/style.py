"""One look for all figures."""

from __future__ import annotations

import io
from collections.abc import Sequence

import matplotlib
import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from PIL import Image

from saga_study.findings.names import plain
from saga_study.findings.page import render

BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, VERMILION, PURPLE = (
    "#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7"
)  # fmt: skip
GREY, PALE, BROWN, SAND = "#8a8a8a", "#d9d9d9", "#7a5230", "#c9b8a0"
DIM, BAND = "#5a5a5a", "#f2f4f6"  # remarks in a figure; the band behind a row that sums up the others
HIT, MISS = "#00734f", "#a84300"  # GREEN and VERMILION, dark enough for text
SECTION_TINTS = {"_1": "#cfe8f3", "_2": "#fbe3c0"}  # behind text about the first and the second image of a pair
METHOD_COLOURS = {  # a metric loss alone has a colour of its own; PF's parts and lengths are its shades
    "pre-trained": "#a3a3a3", "pa": SKY, "ms": GREEN, "infonce": ORANGE, "pf": BLUE, "pf_long": "#00314f", "pf_attention": "#4a83ad",
    "pf_saga_rate": "#2c5d80",
    "pf_kl": "#a3bfd1", "pf_grpo": "#f0a37c", "pf_grpo_taught": "#ffd2ba", "pf_grpo_generic": "#c9795a",
}  # fmt: skip
SIGNAL_COLOURS = {  # what is added to a loss, by how the method's name begins, whatever the loss; the first that fits
    "saga_shuffled": BLACK, "contrast_permuted": "#3d3d3d", "contrast_labels": "#666666", "contrast_head": "#8f8f8f", "oracle_wrong": SAND,
    "saga": VERMILION, "contrast": "#9a2be0", "reading": "#c9a0ea", "distilled": "#8f8400", "oracle": BROWN, "grpo": "#8c2f00",
}  # fmt: skip
ANCHORED = "#5d7482"
STYLE = {
    "font.family": "DejaVu Sans", "font.size": 11, "axes.titlesize": 12, "axes.labelsize": 11, "xtick.labelsize": 10,
    "ytick.labelsize": 10, "legend.fontsize": 10, "figure.titlesize": 13, "axes.spines.top": False,
    "axes.spines.right": False, "axes.grid": False, "grid.color": "#e6e6e6", "legend.frameon": False,
    "figure.facecolor": "white", "axes.facecolor": "white", "savefig.facecolor": "white", "figure.dpi": 100,
    "savefig.dpi": 100, "axes.axisbelow": True, "axes.formatter.useoffset": False,
    "axes.prop_cycle": matplotlib.cycler(color=[BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY, BLACK]),
}  # fmt: skip


def panels(
    rows: int, columns: int, width: float, height: float, title: str | None = None, grid: str | None = None, **options: object
) -> tuple[Figure, np.ndarray]:
    """Return a closed figure in our style and its axes, always (rows, columns); size in inches, grid lines of axis `grid` ("x" or "y")."""
    plt.rcParams.update(STYLE)
    figure, axes = plt.subplots(rows, columns, figsize=(width, height), squeeze=False, layout="constrained", **options)
    plt.close(figure)  # otherwise a notebook would show it twice
    _show_small_in_notebooks()
    if title:
        figure.suptitle(plain(title))
    for axis in axes.flat if grid else ():
        axis.grid(axis=grid)
    return figure, axes


def _show_small_in_notebooks() -> None:
    """Let notebooks show figures through `png_bytes`: executed notebooks are committed and must stay small."""
    from IPython import get_ipython

    if shell := get_ipython():
        shell.display_formatter.formatters["image/png"].for_type(Figure, png_bytes)


def freeze_layout(figure: Figure) -> None:
    """Lay a figure out now and never again: with fifty axes that takes seconds, and showing and saving would repeat it."""
    figure.get_layout_engine().execute(figure)
    figure.set_layout_engine("none")


def png_bytes(figure: Figure, dpi: int | None = None) -> bytes:
    """Return a figure as a small PNG, at 80 dots per inch unless the figure asks for more than usual."""
    buffer = io.BytesIO()
    dpi = dpi or (figure.dpi if figure.dpi > STYLE["figure.dpi"] else 80)
    figure.savefig(buffer, format="png", dpi=dpi, bbox_inches="tight", metadata={"Software": None})
    return shrink_png(buffer.getvalue(), 128 if any(axis.images for axis in figure.axes) else 64)


def shrink_png(content: bytes, colours: int = 256) -> bytes:
    """Return a PNG with a palette: of 256 colours about a third of the size, hardly any visible loss."""
    buffer = io.BytesIO()
    with Image.open(io.BytesIO(content)) as image:
        image = image.convert("RGB")
        refine = image.getcolors(2**14) is not None  # of photographs it takes seconds and shows no difference
        image.quantize(colours, kmeans=int(refine), dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def html_table(frame: pd.DataFrame, row_colours: Sequence[str | None] | None = None, caption: str = "") -> str:
    """Return a frame as an HTML table, everything escaped; row colours tint whole rows (`None` leaves one plain)."""
    left = [not pd.api.types.is_numeric_dtype(kind) for kind in frame.dtypes]  # numbers stay on the right, where Jupyter puts everything
    rows = zip(row_colours or [None] * len(frame), frame.itertuples(index=False), strict=True)
    return render("frame.html", columns=list(zip(frame.columns, left, strict=True)), rows=rows, caption=caption)


def section_tint(section: str) -> str | None:
    """Return the colour behind what an answer says of one image of a pair; None for what it says of both."""
    return SECTION_TINTS.get(section[-2:])
