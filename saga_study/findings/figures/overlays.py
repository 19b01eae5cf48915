"""Attention over photographs, and how well it points."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import matplotlib
import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image, ImageFilter

from saga_study.findings.figures.drawing import beside, draw_intervals, legend_below
from saga_study.findings.figures.pictures import draw_box, show_image
from saga_study.findings.figures.style import BAND, BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILION, freeze_layout, panels
from saga_study.findings.names import plain
from saga_study.methods import METHOD_LABELS

if TYPE_CHECKING:
    from saga_lib.towers import VisualTokens
    from saga_study.findings.attention_maps import HeldOut


COLOURS = matplotlib.colormaps["inferno"].resampled(10)
BOX_DASHES = (0, (3, 1.5))  # of the frame around where an attribute truly is


def patch_maps(
    images: Sequence[Image.Image], maps: Mapping[str, np.ndarray], units: Mapping[str, str], image_labels: Sequence[str] | None = None,
    shared: Sequence[str] = (), title: str | None = None,
) -> Figure:  # fmt: skip
    """Overlay per-patch values on images: a row per image, a column per map (n, Np), colour bars with units.

    Maps named in `shared` use one colour scale; every scale starts at 0 and has ten steps. Patches are in raster order.
    """
    figure, axes = panels(len(images), 1 + len(maps), 2.9 * (1 + len(maps)), 2.45 * len(images) + 0.9, title)
    top = {name: float(np.max(values)) or 1.0 for name, values in maps.items()}
    top |= dict.fromkeys(shared, max((top[name] for name in shared), default=1.0))
    for row, image in enumerate(images):
        show_image(axes[row, 0], image)
        axes[row, 0].set_ylabel(image_labels[row] if image_labels else "")
    for column, (name, values) in enumerate(maps.items(), 1):
        power = int(np.floor(np.log10(top[name])))
        power = power if power < -1 or power > 2 else 0
        scale = 10.0**-power
        for axis, image, one in zip(axes[:, column], images, values, strict=True):
            show_image(axis, image.convert("L"))
            drawn = axis.imshow(
                scale * _resized(one, image.size), cmap=COLOURS, vmin=0, vmax=scale * top[name], alpha=0.65, interpolation="bilinear"
            )
        axes[0, column].set_title(plain(name))
        bar = figure.colorbar(drawn, ax=list(axes[:, column]), location="bottom", shrink=0.85, aspect=22)
        bar.set_label(units[name] + (f" (× $10^{{{power}}}$)" if power else ""), fontsize=10)
        bar.ax.locator_params(nbins=4)
    return figure


def _resized(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return a square map (Np,) as (height, width), interpolated to an image's size."""
    side = round(len(values) ** 0.5)
    patches = Image.fromarray(np.asarray(values, dtype=np.float32).reshape(side, side))
    return np.asarray(patches.resize(size, Image.Resampling.BILINEAR))


@dataclass(frozen=True)
class OverlayRow:
    """An image and its maps (columns, Np), each summing to 1; captions below them; boxes (x0, y0, x1, y1; pixels) or None on them."""

    image: Image.Image
    label: str
    maps: np.ndarray
    captions: Sequence[str] = ()
    boxes: Sequence[Sequence[float] | None] = ()


def overlay_grid(rows: Sequence[OverlayRow], columns: Sequence[str], unit: str, title: str | None = None) -> Figure:
    """Overlay maps on one image per row; colour is relative to an even map, one scale for all.

    The image itself comes first. A cross marks the largest patch, a dashed frame the box where the attribute truly is. A map of NaN
    is left blank. 1 in 200 patches is brighter than the end of the scale.
    """
    relative = np.stack([row.maps * row.maps.shape[-1] for row in rows])
    known = relative[np.isfinite(relative)]
    top = max(2.0, float(np.quantile(known, 0.995))) if known.size else 2.0
    cell, extra = 1.22, 0.2 if rows[0].captions else 0.0
    heads = ["\n".join(textwrap.wrap(name, 13)) for name in columns]
    height = len(rows) * (cell + extra) + 0.2 * (1 + max(head.count("\n") for head in heads)) + 1.2 + (0.3 if title else 0)
    figure, axes = panels(len(rows), 1 + len(columns), cell * (1 + len(columns)) + 1.3, height, title)
    for row, maps, (first, *others) in zip(rows, relative, axes, strict=True):
        show_image(first, row.image)
        first.set_ylabel(row.label, rotation=0, ha="right", va="center", labelpad=8, fontsize=10)
        blurred = np.asarray(row.image.convert("L").filter(ImageFilter.GaussianBlur(row.image.width / 70)))
        grey = Image.fromarray(blurred // 16 * 16)  # noise would be most of the file
        for axis, values in zip(others, maps, strict=True):
            show_image(axis, grey)
            _draw_map(axis, values, row.image.size, top)
        for axis, caption in zip(others, row.captions, strict=False):
            axis.set_xlabel(plain("\n".join(textwrap.wrap(caption, 16))), fontsize=9, labelpad=2)
        for axis, box in zip(others, row.boxes, strict=False):
            if box:
                draw_box(axis, box, ec=BLACK, lw=3)
                draw_box(axis, box, ec=SKY, lw=1.6, ls=BOX_DASHES)
    for axis, head in zip(axes[0, 1:], heads, strict=True):
        axis.set_title(plain(head), fontsize=10)
    scale = matplotlib.cm.ScalarMappable(plt.Normalize(0, top), COLOURS)
    bar = figure.colorbar(scale, ax=list(axes.flat), location="bottom", shrink=0.35, aspect=30, extend="max", pad=0.02)
    bar.set_label(unit, fontsize=10)
    handles = [Line2D([], [], color=GREY, marker="x", ls="none", mew=2, label="largest patch")]
    if any(row.boxes for row in rows):
        handles.append(Line2D([], [], color=SKY, lw=2, ls=BOX_DASHES, label="where the attribute truly is"))
    figure.legend(handles=handles, loc="outside lower center", ncols=2, fontsize=10)
    freeze_layout(figure)
    figure.set_dpi(150)  # pixels of 48×48 images, drawn larger, make a smaller file
    return figure


def _draw_map(axis: plt.Axes, values: np.ndarray, size: tuple[int, int], top: float) -> None:
    """Draw a map (Np,) over an image, clearer where it is larger, and a cross on its largest patch; nothing if it is NaN."""
    if not np.isfinite(values).all():
        return
    step = np.floor(np.clip(_resized(values, size) / top, 0, 0.999) * 10) / 10
    axis.imshow(COLOURS(step), alpha=0.25 + 0.5 * step)
    side = round(len(values) ** 0.5)
    y, x = ((place + 0.5) * size[0] / side - 0.5 for place in np.divmod(int(values.argmax()), side))
    axis.plot(x, y, "x", color=BLACK, ms=9, mew=3.5)
    axis.plot(x, y, "x", color="white", ms=7, mew=1.6)


def attention_overlays(held: HeldOut, num_shown: int, title: str, most: int = 8) -> Figure:
    """Show where the supervisor looks while it names each attribute (Figure 3): a row per image and tower, the answer below each map.

    Images are the first of evenly spaced pairs of the draw; of several seeds the first is shown. Of long vocabularies `most`
    attributes, evenly spaced, are shown.
    """
    rows = 2 * np.linspace(0, len(held.same_class) - 1, num_shown).round().astype(int)
    places = np.unique(np.linspace(0, len(held.names) - 1, min(most, len(held.names))).round().astype(int))
    names = [held.names[p] for p in places]
    shown = []
    for row in rows:
        image, name = held.picture(row), held.split.class_names[held.split.labels[held.indices[row]]]
        boxes = [held.regions.boxes[row].get(attribute) for attribute in names] if held.regions else ()
        for tower, (result, *_) in held.compared.items():
            said = [str(result.said[row].get(attribute, "–")) for attribute in names]
            if held.truth:
                right = [text == held.truth[row][attribute] for text, attribute in zip(said, names, strict=True)]
                said = [f"{text} {'✓' if is_right else '✗'}" for text, is_right in zip(said, right, strict=True)]
            shown.append(OverlayRow(image, f"{name}\n{tower}", result.maps[held.layer][row][places], said, boxes))
    return overlay_grid(shown, names, "attention relative to an even map (×)", title)


def pooler_overlays(held: HeldOut, num_shown: int, title: str) -> Figure:
    """Show ᾱ of each method's tower beside the β of its pooler, on one scale; below each map its least and largest value.

    Of several seeds the first is shown.
    """
    rows = 2 * np.linspace(0, len(held.same_class) - 1, num_shown).round().astype(int)
    readings, shown = held.readings(), []
    for row in rows:
        maps = np.stack([reading[0, row] for pair in readings.values() for reading in pair])  # (columns, Np)
        relative = maps * maps.shape[-1]
        captions = [f"{one.min():.2f}–{one.max():.2f}" if np.isfinite(one).all() else "–" for one in relative]
        index = int(held.indices[row])
        shown.append(OverlayRow(held.picture(row), held.split.class_names[held.split.labels[index]], maps, captions))
    columns = [f"{sign} {METHOD_LABELS[method]}" for method in readings for sign in "ᾱβ"]
    return overlay_grid(shown, columns, "weight relative to an even map (×)", title)


def pointing_dots(table: pd.DataFrame, title: str, chosen: int) -> Figure:
    """Show the pointing game per attribute, a panel per tower and a mark per layer, with 95 % intervals; ticks are chance.

    Hollow marks are the score of another image's map of the same attribute, which cannot depend on the image.
    `table` comes from `pointing.pointing_table`; the legend names the layer that training uses, `chosen`.
    """
    towers, names = list(dict.fromkeys(table["tower"])), list(dict.fromkeys(table["attribute"]))
    layers, places = sorted(table["layer"].unique()), np.arange(len(names))
    size = 5.4 * len(towers) + 1.6, 0.52 * len(names) + 1.9
    figure, [axes] = panels(1, len(towers), *size, title, "x", sharey=True, sharex=True)
    looks = list(zip("osD^vP*X", (BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY, BLACK, GREY), strict=True))
    for axis, tower in zip(axes, towers, strict=True):
        axis.axhspan(len(names) - 1.5, len(names) - 0.5, color=BAND, zorder=0)
        for number, layer in enumerate(layers):
            rows = table[(table["tower"] == tower) & (table["layer"] == layer)].set_index("attribute").reindex(names)
            heights, (mark, colour) = places + beside(number, len(layers), 0.62), looks[number % len(looks)]
            label = f"ℓ = {layer}" + (", used in training" if layer == chosen else "")
            draw_intervals(axis, heights, rows, colour, "pointing", marker=mark, label=label)
            axis.plot(rows["swapped"], heights, mark, color=colour, ms=5, mfc="none", mew=1.2, label="_")
        axis.vlines(rows["chance"], places - 0.42, places + 0.42, color=BLACK, lw=1.6, label="chance")
        axis.plot([], [], "o", color=BLACK, ms=5, mfc="none", mew=1.2, label="hollow: another image's map of this attribute")
        axis.set(title=f"{tower} tower", xlabel="maps whose largest patch is in the true region (%)", xlim=(-2, 102))
    axes[0].set_yticks(places, [plain("\n".join(textwrap.wrap(name, 20))) for name in names])
    axes[0].set_ylim(len(names) - 0.5, -0.5)
    legend_below(figure, axes[0], min(5, len(layers) + 2))
    return figure


def patch_norms(gradient: VisualTokens) -> np.ndarray:
    """Return (n, Np): the norm of a gradient at each patch, over merged tokens and DeepStack features."""
    squares = sum(t.detach().double().square().sum(-1) for t in gradient.tensors())
    return squares.sqrt().cpu().numpy()
