"""What a person looks at: figures in one style, and small readable displays of answers and tokens.

Colours are those of Okabe and Ito, which colour-blind readers can tell apart. Every function returns a closed
`Figure`: a notebook shows it by naming it last in a cell, a script saves it.
"""

from __future__ import annotations

import html
import io
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import matplotlib
import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from PIL import Image, ImageFilter

from saga_lib.config import METHOD_LABELS
from saga_lib.prompts import ITEM_SECTIONS, AttributeSpan, Vocabulary, parse_answer, parse_verdict
from saga_lib.tables import ANSWER_METHODS, DIRECT, POOLED
from saga_lib.tuning import shown_value

if TYPE_CHECKING:
    from saga_lib.attention_maps import HeldOut
    from saga_lib.datasets import Split
    from saga_lib.encoder import VisualTokens
    from saga_lib.gallery import Neighbours
    from saga_lib.runs import Run

BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, VERMILION, PURPLE = (
    "#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7"
)  # fmt: skip
GREY, PALE = "#8a8a8a", "#d9d9d9"
METHOD_COLOURS = {
    "pre-trained": GREY, "pa": SKY, "pf": BLUE, "ms": GREEN, "infonce": ORANGE, "saga_pf": VERMILION, "oracle": PURPLE,
    "pf_attention": BLUE, "pf_kl": BLUE, "pf_grpo": ORANGE, "saga_shuffled": BLACK, "oracle_wrong": GREY, "pf_long": SKY,
}  # fmt: skip
STYLE = {
    "font.family": "DejaVu Sans", "font.size": 11, "axes.titlesize": 12, "axes.labelsize": 11, "xtick.labelsize": 10,
    "ytick.labelsize": 10, "legend.fontsize": 10, "figure.titlesize": 13, "axes.spines.top": False,
    "axes.spines.right": False, "axes.grid": False, "grid.color": "#e6e6e6", "legend.frameon": False,
    "figure.facecolor": "white", "axes.facecolor": "white", "savefig.facecolor": "white", "figure.dpi": 100,
    "savefig.dpi": 100, "axes.axisbelow": True, "axes.formatter.useoffset": False,
    "axes.prop_cycle": matplotlib.cycler(color=[BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY, BLACK]),
}  # fmt: skip


def _panels(rows: int, columns: int, width: float, height: float, **options: object) -> tuple[Figure, np.ndarray]:
    """Return a closed figure in our style and its axes, always (rows, columns); inches."""
    plt.rcParams.update(STYLE)
    figure, axes = plt.subplots(
        rows, columns, figsize=(width, height), squeeze=False, layout="constrained", **options
    )  # fmt: skip
    plt.close(figure)  # otherwise a notebook would show it twice
    _show_small_in_notebooks()
    return figure, axes


def _show_small_in_notebooks() -> None:
    """Let notebooks show figures through `png_bytes`: executed notebooks are committed and must stay small."""
    from IPython import get_ipython

    if shell := get_ipython():
        shell.display_formatter.formatters["image/png"].for_type(Figure, png_bytes)


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


def _show_image(axis: plt.Axes, image: Image.Image, frame: str | None = None) -> None:
    axis.imshow(np.asarray(image), interpolation="nearest")
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set_visible(frame is not None)
        spine.set_color(frame)
        spine.set_linewidth(3)


# ------------------------------------------------------------------------------------------------- images


def image_grid(
    images: Sequence[Image.Image], captions: Sequence[str] | None = None, columns: int = 8,
    row_labels: Sequence[str] | None = None, column_labels: Sequence[str] | None = None,
    frames: Sequence[str | None] | None = None, title: str | None = None, cell: float = 1.35,
) -> Figure:  # fmt: skip
    """Show images in rows of `columns`; captions stand below them, `frames` are border colours; `cell` in inches."""
    rows = -(-len(images) // columns)
    lines = max((caption.count("\n") + 1 for caption in captions or ()), default=0)
    extra = (0.4 if title else 0.0) + (0.3 if column_labels else 0.0)
    figure, axes = _panels(
        rows, columns, max(columns * cell + (0.9 if row_labels else 0), 4), rows * (cell + 0.19 * lines) + extra
    )
    for index, axis in enumerate(axes.flat):
        if index >= len(images):
            axis.set_axis_off()
            continue
        _show_image(axis, images[index], frames[index] if frames else None)
        if captions:
            axis.set_xlabel(captions[index], fontsize=10, labelpad=3)
    for row, label in enumerate(row_labels or ()):
        axes[row, 0].set_ylabel(label, rotation=0, ha="right", va="center", labelpad=8)
    for column, label in enumerate(column_labels or ()):
        axes[0, column].set_title(label, fontsize=11)
    if title:
        figure.suptitle(title)
    return figure


def pair_grid(
    left: Sequence[Image.Image], right: Sequence[Image.Image], captions: Sequence[str], same_class: Sequence[bool],
    columns: int = 4, title: str | None = None,
) -> Figure:  # fmt: skip
    """Show pairs side by side; blue frames mark pairs of one class, orange ones pairs of two."""
    rows = -(-len(left) // columns)
    figure, axes = _panels(rows, columns, columns * 2.7, rows * 1.75 + (0.4 if title else 0))
    for index, axis in enumerate(axes.flat):
        if index >= len(left):
            axis.set_axis_off()
            continue
        first, second = np.asarray(left[index]), np.asarray(right[index])
        gap = np.full((first.shape[0], 3, 3), 255, np.uint8)
        both = Image.fromarray(np.concatenate([first, gap, second], 1))
        _show_image(axis, both, BLUE if same_class[index] else ORANGE)
        axis.set_xlabel(captions[index], fontsize=10, labelpad=3)
    if title:
        figure.suptitle(title)
    return figure


def attribute_regions(
    images: Sequence[Image.Image], regions: Sequence[Mapping[str, Sequence[float]]], cell: float = 3.0
) -> Figure:
    """Draw the box (x0, y0, x1, y1; pixels) of each attribute over its image, one legend for all."""
    names = list(regions[0])
    colours = dict(zip(names, [VERMILION, SKY, YELLOW, GREEN, BLUE, PURPLE, ORANGE, BLACK] * 4, strict=False))
    figure, axes = _panels(1, len(images), len(images) * cell, cell + 0.8)
    for axis, image, boxes in zip(axes.flat, images, regions, strict=True):
        _show_image(axis, image)
        for name, (x0, y0, x1, y1) in boxes.items():
            box = plt.Rectangle((x0 - 0.5, y0 - 0.5), x1 - x0, y1 - y0, fill=False, lw=2, ec=colours[name])
            axis.add_patch(box)
    handles = [Line2D([], [], color=colours[name], lw=3, label=name) for name in names]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(4, len(names)))
    return figure


def patch_maps(
    images: Sequence[Image.Image], maps: Mapping[str, np.ndarray], units: Mapping[str, str],
    image_labels: Sequence[str] | None = None, shared: Sequence[str] = (), title: str | None = None,
) -> Figure:  # fmt: skip
    """Overlay per-patch values on images: a row per image, a column per map (n, Np), colour bars with units.

    Maps named in `shared` use one colour scale; every scale starts at 0 and has ten steps. Patches are in raster order.
    """
    colours = matplotlib.colormaps["inferno"].resampled(10)
    figure, axes = _panels(len(images), 1 + len(maps), 2.9 * (1 + len(maps)), 2.45 * len(images) + 0.9)
    top = {name: float(np.max(values)) or 1.0 for name, values in maps.items()}
    common = max((top[name] for name in shared), default=1.0)
    powers = {name: int(np.floor(np.log10(common if name in shared else top[name]))) for name in maps}
    powers = {name: power if power < -1 or power > 2 else 0 for name, power in powers.items()}
    for row, image in enumerate(images):
        _show_image(axes[row, 0], image)
        if image_labels:
            axes[row, 0].set_ylabel(image_labels[row])
        grey = np.asarray(image.convert("L"))
        for column, (name, values) in enumerate(maps.items(), 1):
            axis = axes[row, column]
            side = round(len(values[row]) ** 0.5)
            patches = Image.fromarray(np.asarray(values[row], dtype=np.float32).reshape(side, side))
            heat = np.asarray(patches.resize(image.size, Image.Resampling.BILINEAR))
            _show_image(axis, image)
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


def _freeze_layout(figure: Figure) -> None:
    """Lay a figure out now and never again: with fifty axes that takes seconds, and showing and saving would repeat it."""
    figure.get_layout_engine().execute(figure)
    figure.set_layout_engine("none")


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
    figure, axes = _panels(len(images), 1 + len(columns), cell * (1 + len(columns)) + 1.3, height)
    for row, image in enumerate(images):
        _show_image(axes[row, 0], image)
        axes[row, 0].set_ylabel(row_labels[row], rotation=0, ha="right", va="center", labelpad=8, fontsize=10)
        size = image.width
        grey = np.asarray(image.convert("L").filter(ImageFilter.GaussianBlur(size / 70))) // 16 * 16  # noise would be most of the file
        for column, name in enumerate(columns):
            axis, values = axes[row, column + 1], relative[row, column]
            if row == 0:
                axis.set_title("\n".join(textwrap.wrap(name, 13)), fontsize=10)
            if captions:
                axis.set_xlabel("\n".join(textwrap.wrap(captions[row][column], 16)), fontsize=9, labelpad=2)
            _show_image(axis, image)
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
    _freeze_layout(figure)
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
    figure, axes = _panels(1, len(towers), 5.4 * len(towers) + 1.6, 0.52 * len(names) + 1.9, sharey=True, sharex=True)
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


def retrieval_gallery(
    split: Split, neighbours: Mapping[str, np.ndarray], num_queries: int = 6, k: int = 6, title: str | None = None, cell: float = 1.2
) -> Figure:
    """Show queries with what each method finds first: green frames mark hits of the query's class, red ones others; `cell` in inches.

    `neighbours` maps labels of methods to (N, >= k) indices into `split`. Queries come from different classes; those
    on which the methods disagree at rank 1 first, then those that no method hits.
    """
    hit = np.stack([split.labels[found[:, 0]] == split.labels for found in neighbours.values()])  # (methods, N)
    num_hits = hit.sum(0)
    agrees = (num_hits == 0) | (num_hits == len(hit))
    order, chosen = np.lexsort((num_hits, agrees)), {}
    for query in order.tolist():
        chosen.setdefault(int(split.labels[query]), query)
    images, frames, rows = [], [], []
    for query in list(chosen.values())[:num_queries]:
        for label, found in neighbours.items():
            rows.append(label)
            images += split.images([query, *found[query, :k]])
            frames += [BLACK, *(GREEN if split.labels[i] == split.labels[query] else VERMILION for i in found[query, :k])]
    k = len(images) // len(rows) - 1
    columns = ["query", *map(str, range(1, k + 1))]
    return image_grid(images, columns=k + 1, row_labels=rows, column_labels=columns, frames=frames, title=title, cell=cell)


def neighbour_gallery(found: Neighbours, examples: Mapping[str, int], title: str) -> Figure:
    """Show example queries with their nearest neighbours under every method (Figure 5): a row per query and method.

    A solid green frame and a tick mark a neighbour of the query's class, a dashed red frame and a cross one of another; below
    stand the cosine similarity and the class. `found` and `examples` come from `saga_lib.gallery`.
    """
    methods, split = list(found.indices), found.split
    k = found.indices[methods[0]].shape[1]
    figure, axes = _panels(len(examples) * len(methods), 1 + k, 1.35 * (1 + k) + 1.9, 1.72 * len(examples) * len(methods) + 0.9)
    for number, (kind, query) in enumerate(examples.items()):
        for place, method in enumerate(methods):
            row = axes[number * len(methods) + place]
            if place == 0:
                _show_image(row[0], split.open(query))
                row[0].set_title(f"query: {kind}", fontsize=10, fontweight="bold")
                row[0].set_xlabel(split.class_names[split.labels[query]], fontsize=10, labelpad=3)
            else:
                row[0].set(xticks=[], yticks=[])
                row[0].spines[:].set_visible(False)
            hits = found.hits(method)[query]
            label = METHOD_LABELS.get(method, method).replace(" + ", "\n+ ")
            row[0].set_ylabel(f"{label}\n{hits.sum()} of {k}", rotation=0, ha="right", va="center", labelpad=10)
            neighbours = zip(row[1:], found.indices[method][query], found.similarities[method][query], hits, strict=True)
            for axis, other, similarity, hit in neighbours:
                _show_image(axis, split.open(int(other)), GREEN if hit else VERMILION)
                for spine in axis.spines.values():
                    spine.set(linestyle="-" if hit else (0, (2.2, 1.5)), linewidth=4, capstyle="butt")
                mark, name = "✓" if hit else "✗", split.class_names[split.labels[other]]
                axis.set_xlabel(f"{mark} {similarity:.3f}\n{name}", fontsize=10, labelpad=4, color="#00734f" if hit else "#a84300")
    for rank in range(1, k + 1):
        axes[0, rank].set_title(str(rank))
    handles = [
        Line2D([], [], color=GREEN, lw=4, label="✓ of the query's class"),
        Line2D([], [], color=VERMILION, lw=4, ls=(0, (2, 1.2)), label="✗ of another class"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=2)
    figure.suptitle(title)
    _freeze_layout(figure)
    return figure


# ----------------------------------------------------------------------------------------- the supervisor


def reading_bars(accuracy: Mapping[str, Mapping[str, float]], chance: Mapping[str, float]) -> Figure:
    """Show attribute-reading accuracy per attribute (%), a bar per condition, with the chance level of each."""
    names = list(chance)
    figure, [[axis]] = _panels(1, 1, 10.5, 4.0)
    width = 0.8 / len(accuracy)
    places = np.arange(len(names))
    for number, (condition, values) in enumerate(accuracy.items()):
        x = places + (number - (len(accuracy) - 1) / 2) * width
        mean = 100 * np.mean(list(values.values()))
        bars = axis.bar(x, [100 * values[n] for n in names], width * 0.94, label=f"{condition} (mean {mean:.0f} %)")
        axis.bar_label(bars, fmt="%.0f", fontsize=10, padding=1)
    for place, name in zip(places, names, strict=True):
        axis.plot([place - 0.45, place + 0.45], [100 * chance[name]] * 2, color=BLACK, lw=1.5, ls=":")
    axis.plot([], [], color=BLACK, lw=1.5, ls=":", label="chance")
    axis.set_xticks(places, [name.replace(" ", "\n") for name in names])
    axis.set_ylabel("attribute read correctly (%)")
    axis.set_ylim(0, 108)
    figure.legend(loc="outside upper center", ncols=2)
    return figure


def reward_histogram(same_class: np.ndarray, mean_reward: np.ndarray, group_size: int) -> Figure:
    """Show how many of the G verdicts of a pair are right, for pairs of one class and of two (% of pairs)."""
    figure, axes = _panels(1, 2, 10, 3.4, sharey=True)
    correct = np.rint(np.asarray(mean_reward) * group_size).astype(int)
    for axis, kind, colour in ((axes[0, 0], True, BLUE), (axes[0, 1], False, ORANGE)):
        chosen = correct[np.asarray(same_class) == kind]
        counts = 100 * np.bincount(chosen, minlength=group_size + 1) / max(1, len(chosen))
        mixed = [colour] * (group_size + 1)
        mixed[0] = mixed[-1] = PALE
        axis.bar(range(group_size + 1), counts, color=mixed, edgecolor=GREY, lw=0.6)
        share, name = counts[1:-1].sum(), "same" if kind else "different"
        axis.set_title(f"{name} class: {share:.0f} % of {len(chosen)} pairs have mixed rewards")
        axis.set_xlabel(f"right verdicts among G = {group_size}")
        axis.set_xticks(range(group_size + 1))
    axes[0, 0].set_ylabel("pairs (%)")
    return figure


def readiness_bars(pairs: pd.DataFrame, verdict: str) -> Figure:
    """Show right verdicts and mixed groups (%) per kind of pair; `pairs` comes from `assessment.check_readiness`."""
    figure, axes = _panels(1, 2, 11, 3.6, sharey=True)
    colours = [BLUE, *[ORANGE] * (len(pairs) - 1)]
    names = [f"{name.replace(', ', chr(10))}\n({count})" for name, count in zip(pairs["pairs"], pairs["number of pairs"], strict=True)]
    right = pairs["verdicts right (%)"].to_numpy(float)
    reach = np.minimum(pairs["± (points)"].to_numpy(float), np.stack([right, 100 - right]))
    axes[0, 0].bar(names, right, color=colours, yerr=reach, capsize=3)
    axes[0, 0].axhline(50, color=BLACK, lw=1.2, ls=":")
    axes[0, 1].bar(names, pairs["mixed rewards (%)"], color=colours)
    titles = "verdicts that are right (dotted: guessing)", "groups with mixed rewards: what GRPO learns from"
    for axis, title in zip(axes.flat, titles, strict=True):
        axis.set(title=title, ylim=(0, 103))
    axes[0, 0].set_ylabel("%, by kind of pair (number)")
    figure.suptitle(f"readiness: {verdict}")
    return figure


PRETRAINING_LOSSES = (  # axis label and the losses of each panel
    ("cross-entropy (nats per attribute)", {"probe": "vision: read attributes off the tokens"}),
    (
        "negative log-likelihood\n(nats per answer token)",
        {
            "text": "compare two lists (text only)", "describe": "describe one image", "compare": "compare two images",
            "generic": "compare, generic prompt",
        },
    ),
    ("contrastive loss (nats)", {"contrastive": "InfoNCE on mean-pooled tokens"}),
)  # fmt: skip


def pretraining_curves(log: Sequence[Mapping[str, float | str]]) -> Figure:
    """Show the losses of the supervisor's pre-training against its steps, the stages one after the other."""
    frame = pd.DataFrame(log)
    lengths = frame.groupby("stage", sort=False)["step"].max()
    starts = lengths.cumsum() - lengths
    frame["at"] = frame["step"] + frame["stage"].map(starts)
    figure, axes = _panels(1, 3, 12.0, 3.6)
    for axis, (title, labels) in zip(axes.flat, PRETRAINING_LOSSES, strict=True):
        for name, label in labels.items():
            if name in frame:
                known = frame[["at", name]].dropna()
                axis.plot(known["at"], known[name], label=label, marker="o", ms=3)
        for start in starts[starts > 0]:
            axis.axvline(start, color="0.7", lw=1, ls=":")
        axis.set_ylabel(title)
        axis.set_ylim(bottom=0)
        axis.set_xlabel("pre-training step (dotted: next stage)")
        axis.set_xlim(0, frame["at"].max() * 1.02)
        axis.grid(axis="y")
        if axis.lines:
            axis.legend(fontsize=8)
    return figure


def difference_histogram(counts: Mapping[str, np.ndarray], num_attributes: int) -> Figure:
    """Show in how many attributes the two classes of a pair differ (% of pairs), a colour per kind of pair."""
    figure, [[axis]] = _panels(1, 1, 9, 3.6)
    width = 0.8 / len(counts)
    for number, (label, values) in enumerate(counts.items()):
        share = 100 * np.bincount(values, minlength=num_attributes + 1) / max(1, len(values))
        x = np.arange(num_attributes + 1) + (number - (len(counts) - 1) / 2) * width
        axis.bar(x, share, width * 0.94, label=f"{label} ({len(values):,} pairs)")
    axis.set_xticks(range(num_attributes + 1))
    axis.set_xlabel(f"attributes that differ (of {num_attributes}; 0 = same class)")
    axis.set_ylabel("pairs (%)")
    axis.legend()
    return figure


# ----------------------------------------------------------------------------------------------- training


def training_curves(metrics: pd.DataFrame, title: str, window: int = 15) -> Figure:
    """Show a run's losses, gradient norms, rewards, contributing pairs and seconds per phase against its steps.

    Thin lines are single steps, thick ones a running mean over `window` steps.
    """
    figure, axes = _panels(2, 3, 13.5, 6.8)
    losses, gradients, rewards, pairs, seconds, other = axes.flat

    def draw(axis: plt.Axes, column: str, label: str, colour: str, scale: float = 1.0) -> None:
        if column in metrics and metrics[column].notna().any():
            known = metrics[["step", column]].dropna()
            smooth = known[column].rolling(min(window, len(known)), min_periods=1).mean()
            axis.plot(known["step"], scale * known[column], color=colour, lw=0.7, alpha=0.3)
            marker = "o" if len(known) < 10 else None  # so that a single step can be seen
            axis.plot(known["step"], scale * smooth, color=colour, lw=2, marker=marker, ms=4, label=label)

    draw(losses, "loss_dml", "DML", GREEN)
    losses.set(title="DML loss", ylabel="loss (its own unit)")
    draw(gradients, "grad_dml", "DML", GREEN)
    draw(gradients, "grad_lm", "GRPO × λ", VERMILION)
    draw(gradients, "grad_kl", "KL (at φ)", PURPLE)
    positive = [c for c in ("grad_dml", "grad_lm", "grad_kl") if c in metrics and (metrics[c] > 0).any()]
    gradients.set(title="gradient norm per loss", ylabel="norm (log scale)", yscale="log" if positive else "linear")
    draw(rewards, "verdict_accuracy", "all verdicts", BLACK, 100)
    draw(rewards, "verdict_accuracy_same", "same class", BLUE, 100)
    draw(rewards, "verdict_accuracy_different", "different class", ORANGE, 100)
    draw(rewards, "json_valid", "valid JSON", GREY, 100)
    rewards.set(title="verdicts of the rollouts", ylabel="rollouts (%)", ylim=(-3, 103))
    draw(pairs, "contributing_pairs", "contributing", VERMILION)
    draw(pairs, "pairs_drawn", "drawn", GREY)
    pairs.set(title="pairs per step", ylabel="pairs", ylim=(0, None))
    phases = [c for c in ("seconds_a", "seconds_b", "seconds_c") if c in metrics]
    if phases:
        stacked = [metrics[c].fillna(0).rolling(min(window, len(metrics)), min_periods=1).mean() for c in phases]
        names = {"seconds_a": "A: embed, DML", "seconds_b": "B: rollouts", "seconds_c": "C: replay, update"}
        colours = {"seconds_a": GREEN, "seconds_b": ORANGE, "seconds_c": VERMILION}
        labels = [names[c] for c in phases]
        seconds.stackplot(metrics["step"], stacked, labels=labels, colors=[colours[c] for c in phases], alpha=0.75)
    seconds.set(title="time per step", ylabel="seconds", ylim=(0, None))
    draw(other, "loss_lm", "GRPO", VERMILION)
    draw(other, "loss_kl", "KL", PURPLE)
    other.set(title="GRPO and KL loss", ylabel="nats")
    for axis in axes.flat:
        axis.set_xlabel("optimizer step")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        axis.grid(axis="y")
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=10)
        else:
            axis.text(0.5, 0.5, "not part of this run", transform=axis.transAxes, ha="center", color=GREY)
    figure.suptitle(title)
    return figure


def audit_curves(summary: pd.DataFrame, title: str) -> Figure:
    """Show a summary of gradient audits (`audit_summary.summarise`) against the training step, bars are 95 % intervals.

    First row: described values; second: entries in the list of differences; third: both together, and pairs.
    """
    figure, axes = _panels(3, 3, 13.5, 11)
    unanimous, pairs, types = axes[2]
    single = summary[summary["step"].map(lambda step: not isinstance(step, str))]  # without what sums several up
    steps = list(dict.fromkeys(single["step"]))
    width = (max(steps) - min(steps) if len(steps) > 1 else 1) / 60  # between the lines, so that intervals stay apart

    def draw(axis: plt.Axes, measure: str, group: str, label: str, colour: str, place: int, scale: float = 100, marker: str = "o") -> None:
        known = single[(single["measure"] == measure) & (single["group"] == group)].dropna(subset="value")
        value, low, high = (scale * known[name].to_numpy(float) for name in ("value", "low", "high"))
        reach = np.nan_to_num(np.stack([np.maximum(value - low, 0), np.maximum(high - value, 0)]))
        x = known["step"].to_numpy(float) + place * width
        axis.errorbar(x, value, reach, color=colour, lw=1.8, elinewidth=1.2, capsize=2.5, marker=marker, ms=5, label=label)

    slots = {"differing": (VERMILION, "o"), "shared": (BLUE, "s"), "same class": (GREEN, "^")}
    names = {"differing": "differing", "shared": "shared", "same class": "one class"}
    for (share, surviving, shuffled), prefix, what in zip(axes, ("", "differences: "), ("values", "differences"), strict=False):
        draw(share, "share", f"{prefix}differing", "gradient on differing attributes", VERMILION, -1)
        draw(share, "top slot", f"{prefix}differing", "largest is a differing one", ORANGE, 0, marker="s")
        draw(share, "share", f"{prefix}chance", "chance", GREY, 1, marker="x")
        share.set(title=f"{what}: pairs of two classes", ylabel="share (%)", ylim=(-3, 103))
        for place, (group, (colour, marker)) in enumerate(slots.items(), -1):
            draw(surviving, "surviving", prefix + group, names[group], colour, place, marker=marker)
            draw(shuffled, "against shuffled", prefix + group, names[group], colour, place, 1, marker)
        surviving.set(title=f"{what}: survives cancellation", ylabel="gradient / gross (%)", ylim=(-3, 103))
        shuffled.axhline(1, color=GREY, lw=1.2, ls="--", label="knows nothing")
        shuffled.set(title=f"{what}: against shuffled advantages", ylabel="squared gradient (×)", ylim=(0, None))
    for place, (group, (colour, marker)) in enumerate(slots.items(), -1):
        draw(unanimous, "unanimous", group, names[group], colour, place, marker=marker)
    unanimous.set(title="all rollouts give one value", ylabel="described values (%)", ylim=(-3, 103))
    draw(pairs, "same-class pairs", "number", "of the pairs", PURPLE, -1)
    draw(pairs, "same-class pairs", "gradient", "of the gradient", BLACK, 1, marker="s")
    pairs.axhline(50, color=GREY, lw=1.2, ls="--", label="as drawn")
    pairs.set(title="contributing pairs of one class", ylabel="share (%)", ylim=(-3, 103))
    kinds = {"values": (VERMILION, "o"), "differences": (SKY, "s"), "verdict": (BLACK, "^"), "rest": (GREY, "x")}
    for place, (kind, (colour, marker)) in enumerate(kinds.items(), -1):
        draw(types, "token type", kind, kind, colour, place, marker=marker)
    types.set(title="kinds of tokens", ylabel="gradient (%)", ylim=(-3, 103))
    for axis in axes.flat:
        axis.set_xlabel("optimizer step")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        axis.grid(axis="y")
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=2)
    figure.suptitle(title)
    return figure


def plan_bars(memory: Mapping[str, pd.DataFrame], seconds: Mapping[str, Mapping[str, float]], gpu_memory: float, title: str) -> Figure:
    """Show estimates of `planner`: GiB by phase and part (one bar per phase and column title), and seconds of a step by supervisor.

    `memory` holds `planner.memory_table` by what it stands for; `seconds` the parts of a step by name of a supervisor.
    """
    figure, (axes,) = _panels(1, 2, 14.5, 5.2, width_ratios=(3, 2))
    bars, times = axes
    colours = [BLUE, SKY, GREEN, YELLOW, PALE, ORANGE, VERMILION, PURPLE, BLACK, "#7a5230", GREY, "#c9b8a0"]
    parts = list(dict.fromkeys(part for table in memory.values() for part in table["part"] if part != "total"))
    phases = list(dict.fromkeys(name for table in memory.values() for name in table.columns if name != "part"))
    shown = [(phase, what) for phase in phases for what, table in memory.items() if phase in table]
    places = [n + 0.5 * phases.index(phase) for n, (phase, _) in enumerate(shown)]
    heights = np.array([[memory[what].set_index("part")[phase].get(part, 0.0) for phase, what in shown] for part in parts])
    for number, part in enumerate(parts):
        bars.bar(places, heights[number], bottom=heights[:number].sum(0), color=colours[number % len(colours)], label=part)
    bars.set_xticks(places, [what.replace(" ", "\n") for _, what in shown], fontsize=8)
    for phase in phases:
        middle = np.mean([place for place, (of, _) in zip(places, shown, strict=True) if of == phase])
        bars.annotate(phase, (middle, 0), (0, -40), ("data", "axes fraction"), "offset points", ha="center", fontweight="bold")
    bars.axhline(gpu_memory, color=BLACK, lw=1.2, ls="--", label=f"the GPU, {gpu_memory:.0f} GiB")
    bars.set(title="GPU memory by phase", ylabel="GiB (estimate)")
    kinds = list(dict.fromkeys(kind for parts in seconds.values() for kind in parts))
    for number, kind in enumerate(kinds):
        left = [sum(parts[k] for k in kinds[:number]) for parts in seconds.values()]
        times.barh(list(seconds), [parts[kind] for parts in seconds.values()], left=left, color=colours[number], label=kind)
    times.invert_yaxis()
    times.set(title="one optimizer step", xlabel="seconds (estimate)")
    for axis in axes:
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=3, fontsize=8)
    figure.suptitle(title)
    return figure


def recall_dots(table: pd.DataFrame, seeds: Mapping[str, Sequence[float]], baseline: str, title: str) -> Figure:
    """Show R@1 per method (%): a dot per seed and the mean, and the difference to the baseline with its interval.

    `table` comes from `tables.main_table`; `seeds` maps each method to the R@1 of its seeds in percent.
    """
    figure, axes = _panels(1, 2, 12, 0.62 * len(table) + 1.5, sharey=True, width_ratios=(3, 2))
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


def query_gallery(test: Split, runs: Mapping[str, Sequence[Run]], rival: str, baseline: str, columns: int = 8) -> Figure | None:
    """Show the queries that `rival` hits at rank 1 in more seeds than `baseline`, and the other way round; None if there are none.

    runs: by method, the same seeds for both.
    """
    score = {method: np.sum([run.hits.astype(int) for run in runs[method]], axis=0) for method in (rival, baseline)}
    gain = score[rival] - score[baseline]
    shown = min(columns, int((gain > 0).sum()), int((gain < 0).sum()))
    if not shown:
        return None
    order = [*(-gain).argsort(kind="stable")[:shown], *gain.argsort(kind="stable")[:shown]]
    captions = ["\n".join(f"{METHOD_LABELS[m]} {score[m][q]} of {len(runs[m])}" for m in score) for q in order]
    title = f"{runs[rival][0].config.dataset}: queries with the largest differences (seeds that are right at rank 1)"
    return image_grid(test.images(order), captions, shown, [f"{METHOD_LABELS[m]}\nbetter" for m in score], title=title)


def answer_forest(answer: pd.DataFrame, baseline: str, title: str) -> Figure:
    """Show differences of R@1 in points with 95 % intervals: a row per benchmark and one for all, a colour per method.

    `answer` comes from `tables.pooled_answer`. Left: against the baseline; right: a signal against its own controls.
    Controls and the longer baseline have open marks. What a control does that is told the untruth dwarfs everything else: where it
    lies off the scale of the others, an arrow at the edge and its number stand for it.
    """
    shown = answer[answer["method"].isin(ANSWER_METHODS)]
    sides = [part for part in (shown[shown["against"] == baseline], shown[shown["against"] != baseline]) if len(part)]
    if not sides:
        figure, axes = _panels(1, 1, 6, 1)
        axes[0, 0].set_axis_off()
        axes[0, 0].text(0.5, 0.5, "no method to compare with the baseline", ha="center", va="center")
        return figure
    places = list(shown["benchmark"].unique())
    widths = [max(2, part.groupby(["method", "against"]).ngroups) for part in sides]
    figure, axes = _panels(
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
    figure, [[axis]] = _panels(1, 1, 10.5, 0.62 * len(labels) + 1.7)
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


def _why(axis: plt.Axes, x: float, text: str) -> None:
    """Say above a place of the x axis why nothing stands there."""
    axis.annotate(text, (x, 0.03), xycoords=axis.get_xaxis_transform(), rotation=90, ha="center", va="bottom", fontsize=9, color="#5a5a5a")


def size_curves(values: pd.DataFrame, gains: pd.DataFrame, title: str) -> Figure:
    """Show R@1 (%, ± standard deviation over seeds) against embedding size per method, and below it SAGA's gain with its interval.

    A column per benchmark; `values` comes from `comparisons.cell_table`, `gains` from `comparisons.differences`.
    """
    names = list(dict.fromkeys(values["dataset"]))
    sizes = sorted(values["embedding_dim"].unique())
    figure, axes = _panels(2, len(names), 5.4 * len(names) + 0.6, 6.6, sharex=True, sharey="row", height_ratios=(3, 2))
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
            _why(lower, size, why.iloc[0] if len(why) else "")
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
    figure, axes = _panels(1, len(names), 5.4 * len(names) + 0.6, 4.6, sharey=True)
    marks = dict(zip(dict.fromkeys(values["method"]), "^os", strict=False))
    for axis, name in zip(axes.flat, names, strict=True):
        for number, (method, mark) in enumerate(marks.items()):
            rows = values[(values["dataset"] == name) & (values["method"] == method)]
            if not len(rows) or not rows["seeds"].iloc[0]:
                _why(axis, number, f"{METHOD_LABELS[method]}: {rows['absent'].iloc[0] if len(rows) else 'not asked for'}")
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


def sensitivity_panels(table: pd.DataFrame, labels: Mapping[str, str], title: str, columns: int = 4) -> Figure:
    """Show how R@1 (with its interval) and MAP@R change in points as one setting changes: a panel per setting, the profile's value marked.

    `table` comes from `tuning.sensitivity_table`; `labels` name its settings. The dashed line is PF without SAGA.
    """
    settings = [name for name in dict.fromkeys(table["setting"]) if name != "PF"]
    rows = -(-len(settings) // columns)
    figure, axes = _panels(rows, columns, 3.7 * columns, 3.0 * rows + 0.9, sharey=True)
    pf = table.loc[table["setting"] == "PF", "difference"].iloc[0]
    for axis, name in zip(axes.flat, settings, strict=False):
        own = table[table["setting"] == name].reset_index(drop=True)
        known = own[own["seeds"] > 0]
        axis.axhline(0, color=BLACK, lw=1)
        if pf == pf:
            axis.axhline(pf, color=BLUE, lw=1.5, ls="--", label="PF without SAGA (R@1)")
        axis.vlines(known.index - 0.1, known["low"], known["high"], color=VERMILION, lw=2.5)
        axis.plot(known.index - 0.1, known["difference"], "s", color=VERMILION, ms=7, label="R@1, 95 % interval")
        axis.plot(known.index + 0.1, known["MAP@R difference"], "o", color=GREEN, mfc="white", mew=1.8, ms=7, label="MAP@R")
        for place, why in own.loc[own["seeds"] == 0, "absent"].items():
            _why(axis, place, why)
        ticks = list(map(shown_value, own["value"]))
        shown = [f"{tick}\nprofile" if mark else tick for tick, mark in zip(ticks, own["is_profile"], strict=True)]
        axis.set_xticks(own.index, shown)
        axis.set_xlim(-0.6, len(own) - 0.4)
        axis.set_title(labels.get(name, name))
        axis.grid(axis="y")
    for axis in list(axes.flat)[len(settings) :]:
        axis.set_axis_off()
    for axis in axes[:, 0]:
        axis.set_ylabel("change (points)")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    figure.suptitle(title)
    return figure


def gain_by_supervisor(table: pd.DataFrame, title: str) -> Figure:
    """Show what SAGA adds to PF (points of R@1, 95 % interval) against how often its supervisor was right in training.

    `table` comes from `tuning.sensitivity_table`; its rows of setting "supervisor" are drawn, each named by its value.
    """
    rows = table[(table["setting"] == "supervisor") & (table["seeds"] > 0)].sort_values("right verdicts")
    figure, axes = _panels(1, 1, 7.0, 4.6)
    axis = axes[0, 0]
    axis.axhline(0, color=BLUE, lw=1.5, ls="--", label="PF without SAGA")
    axis.vlines(rows["right verdicts"], rows["gain low"], rows["gain high"], color=VERMILION, lw=2.5)
    axis.plot(rows["right verdicts"], rows["gain"], "s", color=VERMILION, ms=7, label="SAGA, 95 % interval")
    for number, row in enumerate(rows.to_dict("records")):  # neighbours lie close: by turns above and below their intervals
        end, away, stands = ("gain low", -3, "top") if number % 2 else ("gain high", 3, "bottom")
        axis.annotate(
            shown_value(row["value"]), (row["right verdicts"], row[end]), xytext=(0, away), textcoords="offset points", fontsize=10,
            ha="center", va=stands,
        )  # fmt: skip
    axis.margins(y=0.12)
    if rows.empty:
        axis.text(0.5, 0.6, "no supervisor of another quality in this study: with --full", transform=axis.transAxes, ha="center")
    axis.set_xlabel("right verdicts of all rollouts in training (%)")
    axis.set_ylabel("SAGA − PF (points of R@1)")
    axis.grid(axis="y")
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    figure.suptitle(title)
    return figure


def when_heatmaps(table: pd.DataFrame, title: str) -> Figure:
    """Show what SAGA and the oracle add to PF (points of R@1) over train classes and shift; `table` from `tuning.when_table`."""
    methods = [name.removesuffix(" difference") for name in table if name.endswith(" difference")]
    figure, axes = _panels(1, len(methods), 5.4 * len(methods), 4.4)
    largest = max(1.0, *(float(table[f"{method} difference"].abs().max()) for method in methods))
    for axis, method in zip(axes[0], methods, strict=True):
        grid, low, high = (
            table.pivot(index="train_classes", columns="shift", values=f"{method} {what}") for what in ("difference", "low", "high")
        )
        mesh = axis.pcolormesh(grid.to_numpy(), cmap="PuOr_r", vmin=-largest, vmax=largest, edgecolors="white", lw=2)
        for (row, column), value in np.ndenumerate(grid.to_numpy()):
            told = f"{value:+.1f}\n[{low.iat[row, column]:+.1f}, {high.iat[row, column]:+.1f}]".replace("-", "−")
            colour = "white" if abs(value) > 0.65 * largest else BLACK
            axis.text(column + 0.5, row + 0.5, told, ha="center", va="center", fontsize=10, color=colour)
        axis.set_xticks(np.arange(grid.shape[1]) + 0.5, [f"{shift:g}" for shift in grid.columns])
        axis.set_yticks(np.arange(grid.shape[0]) + 0.5, [f"{count:g}" for count in grid.index])
        axis.set_xlabel("shift from the supervisor's studio (0) to the field (1)")
        axis.set_title(f"{METHOD_LABELS.get(method, method)} − PF")
        axis.tick_params(length=0)
    axes[0, 0].set_ylabel("train classes")
    figure.colorbar(mesh, ax=list(axes[0]), label="points of R@1")
    figure.suptitle(title)
    return figure


def search_dots(table: pd.DataFrame, title: str) -> Figure:
    """Show every trial of a search: a dot per trial and method, a panel per benchmark and one for the mean of several; chosen ones ringed.

    Dots are means over seeds; in the last panel, bars are their standard deviation. `table` comes from `tuning.search_table`.
    """
    columns = [name for name in table if name.startswith("R@1 ")]
    columns += ["mean R@1"] if len(columns) > 1 else []
    methods = list(table["method"].unique())
    figure, axes = _panels(1, len(columns), max(7.0, 2.9 * len(columns) + 1), 0.5 * len(methods) + 1.7, sharey=True)
    for axis, column in zip(axes[0], columns, strict=True):
        for place, method in enumerate(methods):
            rows, colour = table[table["method"] == method], METHOD_COLOURS.get(method, BLACK)
            heights = place + np.linspace(-0.25, 0.25, len(rows)) if len(rows) > 1 else [place]
            if column == columns[-1] and rows["spread"].notna().all():
                axis.errorbar(rows[column], heights, xerr=rows["spread"], fmt="none", ecolor=colour, alpha=0.5, lw=1.2)
            axis.plot(rows[column], heights, "o", color=colour, ms=6, alpha=0.7, mec="white")
            chosen = rows["chosen"].to_numpy()
            axis.plot(rows[column][chosen], np.asarray(heights)[chosen], "o", mfc="none", mec=BLACK, ms=11, mew=1.5)
        axis.set_title(column.removeprefix("R@1 ") if column != "mean R@1" else "mean of the benchmarks", fontsize=10)
        axis.set_xlabel("R@1 (%), validation classes", fontsize=9)
        axis.grid(axis="x")
        axis.margins(x=0.12)
    axes[0, 0].set_yticks(range(len(methods)), [METHOD_LABELS.get(name, name) for name in methods])
    axes[0, 0].set_ylim(len(methods) - 0.5, -0.5)
    figure.suptitle(title)
    return figure


def length_curves(table: pd.DataFrame, title: str) -> Figure:
    """Show R@1 (%, standard deviation over seeds) over the number of steps: a panel per benchmark, the best length of a method ringed.

    `table` comes from `tuning.length_table`.
    """
    datasets = list(dict.fromkeys(table["dataset"]))
    figure, axes = _panels(1, len(datasets), 5.6 * len(datasets), 4.4)
    for axis, dataset in zip(axes[0], datasets, strict=True):
        methods = list(dict.fromkeys(table.loc[table["dataset"] == dataset, "method"]))
        for place, method in enumerate(methods):
            rows = table[(table["dataset"] == dataset) & (table["method"] == method)]
            steps = rows["steps"] * 1.025 ** (place - (len(methods) - 1) / 2)  # bars stand beside each other
            colour, label = METHOD_COLOURS.get(method, BLACK), METHOD_LABELS.get(method, method)
            axis.errorbar(steps, rows["R@1"], rows["spread"].fillna(0), fmt="o-", color=colour, ms=6, lw=1.8, capsize=2, label=label)
            axis.plot(steps[rows["best"]], rows["R@1"][rows["best"]], "o", mfc="none", mec=BLACK, ms=12, mew=1.5)
        axis.set_xscale("log", base=2)
        lengths = sorted(table.loc[table["dataset"] == dataset, "steps"].unique())
        axis.set_xticks(lengths, map(str, lengths))
        axis.minorticks_off()
        axis.set_xlabel("steps, as many images for every method")
        axis.set_title(dataset)
        axis.grid(axis="y")
    axes[0, 0].set_ylabel("R@1 (%), validation classes")
    most = max(axes[0], key=lambda axis: len(axis.get_legend_handles_labels()[0]))
    figure.legend(*most.get_legend_handles_labels(), loc="outside lower center", ncols=5)
    figure.suptitle(title)
    return figure


# ---------------------------------------------------------------------------------------- answers and tokens


def rollout_table(
    texts: Sequence[str], rewards: Sequence[float], advantages: Sequence[float], vocabulary: Vocabulary,
    truth: tuple[Mapping[str, str], Mapping[str, str]] | None = None,
) -> pd.DataFrame:  # fmt: skip
    """Return one row per rollout of a pair: what it called different, its verdict, reward and advantage.

    With `truth`, the attributes of both images, it also counts how many descriptions are right.
    """
    rows = []
    for number, (text, reward, advantage) in enumerate(zip(texts, rewards, advantages, strict=True), 1):
        answer = parse_answer(text) or {}
        differences = answer.get("differences", "–")
        if isinstance(differences, dict):
            differences = ", ".join(name for name, value in differences.items() if value == "different") or "none"
        verdict = {True: "same", False: "different", None: "unreadable"}[parse_verdict(text, vocabulary.verdict_key)]
        row = {"rollout": number, "called different": differences, "verdict": verdict}
        if truth is not None:
            for section, true in zip(ITEM_SECTIONS, truth, strict=True):
                item = answer.get(section) if isinstance(answer.get(section), dict) else {}
                right = sum(item.get(name) == true[name] for name in vocabulary.attribute_names)
                row[f"{section} right"] = f"{right} of {len(vocabulary.attributes)}"
        rows.append(row | {"reward": int(reward), "advantage": round(float(advantage), 2)})
    return pd.DataFrame(rows)


def html_table(frame: pd.DataFrame, row_colours: Sequence[str | None] | None = None, caption: str = "") -> str:
    """Return a frame as an HTML table, everything escaped; row colours tint whole rows (`None` leaves one plain)."""
    numeric = [pd.api.types.is_numeric_dtype(kind) for kind in frame.dtypes]  # stay on the right, where Jupyter puts everything
    style = ["" if is_number else ' style="text-align:left"' for is_number in numeric]
    head = "".join(f"<th{left}>{html.escape(str(c))}</th>" for c, left in zip(frame.columns, style, strict=True))
    body = []
    for number, values in enumerate(frame.itertuples(index=False)):
        tint = row_colours[number] if row_colours else None
        row = f' style="background:{tint};color:#111"' if tint else ""
        cells = "".join(f"<td{left}>{html.escape(str(value))}</td>" for value, left in zip(values, style, strict=True))
        body.append(f"<tr{row}>{cells}</tr>")
    title = f"<caption>{html.escape(caption)}</caption>" if caption else ""
    return f"<table>{title}<thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"


def rollout_html(rollouts: pd.DataFrame, caption: str = "") -> str:
    """Return a `rollout_table` as HTML: rewarded rows greenish blue, the others orange."""
    return html_table(rollouts, ["#cfe8f3" if reward else "#fbe3c0" for reward in rollouts["reward"]], caption)


def answer_html(text: str, spans: Sequence[AttributeSpan]) -> str:
    """Return an answer as HTML with its attribute values highlighted: blue for item 1, orange for item 2."""
    tint = {"item_1": "#cfe8f3", "item_2": "#fbe3c0"}
    parts, position = [], 0
    for span in sorted(spans, key=lambda s: s.start):
        parts.append(html.escape(text[position : span.start]))
        where = html.escape(f"{span.section}: {span.attribute}")
        style = f"background:{tint.get(span.section, PALE)};color:#111;padding:0 2px;border-radius:3px"
        parts.append(f'<mark title="{where}" style="{style}">{html.escape(text[span.start : span.end])}</mark>')
        position = span.end
    parts.append(html.escape(text[position:]))
    return f'<pre style="white-space:pre-wrap;line-height:1.7">{"".join(parts)}</pre>'


def token_spans(pieces: Sequence[str], places: Mapping[tuple[str, str], Sequence[int]]) -> pd.DataFrame:
    """Return one row per token of an answer, naming the section and attribute whose value it describes.

    `places` is what `supervisor.replay.attribute_tokens` returns.
    """
    owner = {token: name for name, tokens in places.items() for token in tokens}
    rows = []
    for number, piece in enumerate(pieces):
        section, attribute = owner.get(number, ("", ""))
        rows.append({"token": number, "text": piece, "section": section, "attribute": attribute})
    return pd.DataFrame(rows)


def patch_norms(gradient: VisualTokens) -> np.ndarray:
    """Return (n, Np): the norm of a gradient at each patch, over merged tokens and DeepStack features."""
    squares = sum(t.detach().double().square().sum(-1) for t in gradient.tensors())
    return squares.sqrt().cpu().numpy()


def slot_table(
    log_probs: np.ndarray, values: Sequence[Mapping[tuple[str, str], str]],
    places: Sequence[Mapping[tuple[str, str], Sequence[int]]], differing: Sequence[str],
) -> pd.DataFrame:  # fmt: skip
    """Return one row per described attribute: how its log-probability varies over the G rollouts of a pair.

    log_probs (G, T); per rollout, `places` maps (section, attribute) to token indices and `values` to the text.
    `differing` names the attributes in which the two images truly differ.
    """
    slots = list(dict.fromkeys(slot for one in places for slot in one))
    rows = []
    for section, attribute in slots:
        inside = [g for g, one in enumerate(places) if one.get((section, attribute))]
        total = [log_probs[g, places[g][section, attribute]].sum() for g in inside]
        texts = pd.Series([values[g].get((section, attribute), "") for g in inside])
        common = texts.value_counts()
        rows.append(
            {
                "section": section, "attribute": attribute, "truly differs": attribute in differing,
                "mean log-prob": float(np.mean(total)), "spread": float(np.std(total)),
                "distinct values": len(common), "most frequent": f"{common.index[0]} ({common.iloc[0]}×)",
            }  # fmt: skip
        )
    return pd.DataFrame(rows)


def slot_bars(slots: pd.DataFrame, title: str) -> Figure:
    """Show the spread of log-probabilities per described attribute (nats), truly differing ones in vermilion."""
    sections = list(dict.fromkeys(slots["section"]))
    names = list(dict.fromkeys(slots["attribute"]))
    figure, axes = _panels(1, len(sections), 4.3 * len(sections) + 1, 0.38 * len(names) + 1.6, sharex=True, sharey=True)
    for axis, section in zip(axes.flat, sections, strict=True):
        part = slots[slots["section"] == section].set_index("attribute").reindex(names)
        colours = [VERMILION if differs is True or differs == 1 else SKY for differs in part["truly differs"]]
        axis.barh(range(len(names)), part["spread"].fillna(0), color=colours)
        axis.set_title({"item_1": "describing image a", "item_2": "describing image b"}.get(section, section))
        axis.set_xlabel("standard deviation of log π\nover the rollouts (nats)")
        axis.grid(axis="x")
    axes[0, 0].set_yticks(range(len(names)), names)
    axes[0, 0].invert_yaxis()
    patches = [plt.Rectangle((0, 0), 1, 1, color=c) for c in (VERMILION, SKY)]
    figure.legend(patches, ["the two images differ in it", "they share it"], loc="outside lower center", ncols=2)
    figure.suptitle(title)
    return figure
