"""Attention over photographs, and how well it points."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import matplotlib
import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image, ImageFilter

from saga_study.findings.figures.pictures import show_image
from saga_study.findings.figures.style import BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILION, freeze_layout, panels
from saga_study.methods import METHOD_LABELS

if TYPE_CHECKING:
    from saga_lib.towers import VisualTokens
    from saga_study.findings.attention_maps import HeldOut


def patch_maps(
    images: Sequence[Image.Image], maps: Mapping[str, np.ndarray], units: Mapping[str, str],
    image_labels: Sequence[str] | None = None, shared: Sequence[str] = (), title: str | None = None,
) -> Figure:  # fmt: skip
    """Overlay per-patch values on images: a row per image, a column per map (n, Np), colour bars with units.

    Maps named in `shared` use one colour scale; every scale starts at 0 and has ten steps. Patches are in raster order.
    """
    colours = matplotlib.colormaps["inferno"].resampled(10)
    figure, axes = panels(len(images), 1 + len(maps), 2.9 * (1 + len(maps)), 2.45 * len(images) + 0.9)
    top = {name: float(np.max(values)) or 1.0 for name, values in maps.items()}
    common = max((top[name] for name in shared), default=1.0)
    powers = {name: int(np.floor(np.log10(common if name in shared else top[name]))) for name in maps}
    powers = {name: power if power < -1 or power > 2 else 0 for name, power in powers.items()}
    for row, image in enumerate(images):
        show_image(axes[row, 0], image)
        if image_labels:
            axes[row, 0].set_ylabel(image_labels[row])
        grey = np.asarray(image.convert("L"))
        for column, (name, values) in enumerate(maps.items(), 1):
            axis = axes[row, column]
            side = round(len(values[row]) ** 0.5)
            patches = Image.fromarray(np.asarray(values[row], dtype=np.float32).reshape(side, side))
            heat = np.asarray(patches.resize(image.size, Image.Resampling.BILINEAR))
            show_image(axis, image)
            axis.images[0].remove()
            axis.imshow(grey, cmap="gray", vmin=0, vmax=255)
            scale = 10.0 ** -powers[name]
            high = scale * (common if name in shared else top[name])
            drawn = axis.imshow(scale * heat, cmap=colours, vmin=0, vmax=high, alpha=0.65, interpolation="bilinear")
            if row == 0:
                axis.set_title(name)
            if row == len(images) - 1:
                bar = figure.colorbar(drawn, ax=list(axes[:, column]), location="bottom", shrink=0.85, aspect=22)
                times = f" (× $10^{{{powers[name]}}}$)" if powers[name] else ""
                bar.set_label(units[name] + times, fontsize=10)
                bar.ax.locator_params(nbins=4)
    if title:
        figure.suptitle(title)
    return figure


def overlay_grid(
    images: Sequence[Image.Image], maps: np.ndarray, columns: Sequence[str], row_labels: Sequence[str], unit: str,
    captions: Sequence[Sequence[str]] | None = None, boxes: Sequence[Sequence[Sequence[float] | None]] | None = None,
    title: str | None = None, top: float | None = None,
) -> Figure:  # fmt: skip
    """Overlay maps (rows, columns, Np), each summing to 1, on one image per row; colour is relative to an even map, one scale for all.

    The image itself stands first. A cross marks the largest patch, a dashed frame the box (x0, y0, x1, y1; pixels) where the truth
    is. A map of NaN is left blank. The scale ends at `top`, by default where 1 in 200 patches is brighter.
    """
    relative = np.asarray(maps) * maps.shape[-1]
    side = round(maps.shape[-1] ** 0.5)
    known = relative[np.isfinite(relative)]
    top = top or (max(2.0, float(np.quantile(known, 0.995))) if known.size else 2.0)
    colours = matplotlib.colormaps["inferno"].resampled(10)
    cell, extra = 1.22, 0.2 if captions else 0.0
    widest = max(len(textwrap.wrap(name, 13)) for name in columns)
    height = len(images) * (cell + extra) + 0.2 * widest + 1.2 + (0.3 if title else 0)
    figure, axes = panels(len(images), 1 + len(columns), cell * (1 + len(columns)) + 1.3, height)
    for row, image in enumerate(images):
        show_image(axes[row, 0], image)
        axes[row, 0].set_ylabel(row_labels[row], rotation=0, ha="right", va="center", labelpad=8, fontsize=10)
        size = image.width
        grey = np.asarray(image.convert("L").filter(ImageFilter.GaussianBlur(size / 70))) // 16 * 16  # noise would be most of the file
        for column, name in enumerate(columns):
            axis, values = axes[row, column + 1], relative[row, column]
            if row == 0:
                axis.set_title("\n".join(textwrap.wrap(name, 13)), fontsize=10)
            if captions:
                axis.set_xlabel("\n".join(textwrap.wrap(captions[row][column], 16)), fontsize=9, labelpad=2)
            show_image(axis, image)
            axis.images[0].remove()
            axis.imshow(grey, cmap="gray", vmin=0, vmax=255)
            if np.isfinite(values).all():
                heat = Image.fromarray(values.astype(np.float32).reshape(side, side)).resize((size, size), Image.Resampling.BILINEAR)
                step = np.floor(np.clip(np.asarray(heat) / top, 0, 0.999) * 10) / 10
                axis.imshow(colours(step), alpha=0.25 + 0.5 * step)  # the image shows where attention does not lie
                y, x = np.divmod(int(values.argmax()), side)
                place = ((x + 0.5) * size / side - 0.5, (y + 0.5) * size / side - 0.5)
                axis.plot(*place, "x", color=BLACK, ms=9, mew=3.5)
                axis.plot(*place, "x", color="white", ms=7, mew=1.6)
            if boxes and boxes[row][column]:
                x0, y0, x1, y1 = boxes[row][column]
                for colour, width, style in ((BLACK, 3, "-"), (SKY, 1.6, (0, (3, 1.5)))):
                    frame = plt.Rectangle((x0 - 0.5, y0 - 0.5), x1 - x0, y1 - y0, fill=False, ec=colour, lw=width, ls=style)
                    axis.add_patch(frame)
    scale = matplotlib.cm.ScalarMappable(plt.Normalize(0, top), colours)
    bar = figure.colorbar(scale, ax=list(axes.flat), location="bottom", shrink=0.35, aspect=30, extend="max", pad=0.02)
    bar.set_label(unit, fontsize=10)
    handles = [Line2D([], [], color=GREY, marker="x", ls="none", mew=2, label="largest patch")]
    if boxes:
        handles.append(Line2D([], [], color=SKY, lw=2, ls=(0, (3, 1.5)), label="where the attribute truly is"))
    figure.legend(handles=handles, loc="outside lower center", ncols=2, fontsize=10)
    if title:
        figure.suptitle(title)
    freeze_layout(figure)
    figure.set_dpi(150)  # pixels of 48×48 images, drawn larger, make a smaller file
    return figure


def attention_overlays(held: HeldOut, num_shown: int, title: str, most: int = 8) -> Figure:
    """Show where the supervisor looks while it names each attribute (Figure 3): a row per image and tower, the answer below each map.

    Images are the first of evenly spaced pairs of the draw; of several seeds the first is shown. Of long vocabularies `most`
    attributes, evenly spaced, are shown.
    """
    rows = 2 * np.linspace(0, len(held.same_class) - 1, num_shown).round().astype(int)
    places = np.unique(np.linspace(0, len(held.names) - 1, min(most, len(held.names))).round().astype(int))
    names = [held.names[p] for p in places]
    maps, labels, captions, boxes, images = [], [], [], [], []
    for row in rows:
        image = held.split.open(int(held.indices[row]))
        for tower, (result, *_) in held.compared.items():
            said = [str(result.said[row].get(name, "–")) for name in names]
            if held.truth:
                said = [f"{text} {'✓' if text == held.truth[row][name] else '✗'}" for text, name in zip(said, names, strict=True)]
            images.append(image)
            maps.append(result.maps[held.layer][row][places])
            labels.append(f"{held.split.class_names[held.split.labels[held.indices[row]]]}\n{tower}")
            captions.append(said)
            boxes.append([held.regions.boxes[row].get(name) if held.regions else None for name in names])
    unit = "attention relative to an even map (×)"
    return overlay_grid(images, np.array(maps), names, labels, unit, captions, boxes if held.regions else None, title)


def pooler_overlays(held: HeldOut, num_shown: int, title: str) -> Figure:
    """Show ᾱ of each method's tower beside the β of its pooler, on one scale; below each map its least and largest value.

    Of several seeds the first is shown.
    """
    rows = 2 * np.linspace(0, len(held.same_class) - 1, num_shown).round().astype(int)
    readings, columns, parts = held.readings(), [], []
    for method, (teacher, beta) in readings.items():
        columns += [f"ᾱ {METHOD_LABELS[method]}", f"β {METHOD_LABELS[method]}"]
        parts += [teacher[0, rows], beta[0, rows]]
    maps = np.stack(parts, 1)  # (rows, columns, Np)
    scaled = maps * maps.shape[-1]
    captions = [[f"{m.min():.2f}–{m.max():.2f}" if np.isfinite(m).all() else "–" for m in row] for row in scaled]
    labels = [held.split.class_names[held.split.labels[held.indices[row]]] for row in rows]
    images = held.split.images(held.indices[rows])
    return overlay_grid(images, maps, columns, labels, "weight relative to an even map (×)", captions, title=title)


def pointing_dots(table: pd.DataFrame, title: str, chosen: int) -> Figure:
    """Show the pointing game per attribute, a panel per tower and a mark per layer, with 95 % intervals; ticks are chance.

    Hollow marks are what the same attribute's map of another image scores: how far a fixed place gets.

    `table` comes from `attention_maps.pointing_table`; the layer that training uses is named in the legend.
    """
    towers, names = list(dict.fromkeys(table["tower"])), list(dict.fromkeys(table["attribute"]))
    layers = sorted(table["layer"].unique())
    figure, axes = panels(1, len(towers), 5.4 * len(towers) + 1.6, 0.52 * len(names) + 1.9, sharey=True, sharex=True)
    marks = dict(zip(layers, zip("osD^vP*X" * 8, [BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY, BLACK] * 8, strict=False), strict=False))
    for axis, tower in zip(axes[0], towers, strict=True):
        axis.axhspan(len(names) - 1.5, len(names) - 0.5, color="#f2f4f6", zorder=0)
        for place, layer in enumerate(layers):
            rows = table[(table["tower"] == tower) & (table["layer"] == layer)].set_index("attribute").reindex(names)
            heights = np.arange(len(names)) + 0.62 * ((place + 0.5) / len(layers) - 0.5)
            mark, colour = marks[layer]
            axis.hlines(heights, rows["pointing low"], rows["pointing high"], color=colour, lw=2)
            label = f"ℓ = {layer}" + (", used in training" if layer == chosen else "")
            axis.plot(rows["pointing"], heights, mark, color=colour, ms=7, label=label, mec="white", mew=0.6)
            axis.plot(rows["swapped"], heights, mark, color=colour, ms=5, mfc="none", mew=1.2, label="_")
        rows = table[(table["tower"] == tower) & (table["layer"] == layers[0])].set_index("attribute").reindex(names)
        axis.vlines(rows["chance"], np.arange(len(names)) - 0.42, np.arange(len(names)) + 0.42, color=BLACK, lw=1.6, label="chance")
        axis.plot([], [], "o", color=BLACK, ms=5, mfc="none", mew=1.2, label="hollow: another image's map of this attribute")
        axis.set_title(f"{tower} tower")
        axis.set_xlabel("maps whose largest patch lies in the true region (%)")
        axis.grid(axis="x")
        axis.set_xlim(-2, 102)
    axes[0, 0].set_yticks(range(len(names)), ["\n".join(textwrap.wrap(name, 20)) for name in names])
    axes[0, 0].set_ylim(len(names) - 0.5, -0.5)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=min(5, len(layers) + 2))
    figure.suptitle(title)
    return figure


def patch_norms(gradient: VisualTokens) -> np.ndarray:
    """Return (n, Np): the norm of a gradient at each patch, over merged tokens and DeepStack features."""
    squares = sum(t.detach().double().square().sum(-1) for t in gradient.tensors())
    return squares.sqrt().cpu().numpy()
