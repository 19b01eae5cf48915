"""Figures of photographs: grids, pairs, neighbours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image

from saga_study.findings.figures.style import BLACK, BLUE, GREEN, HIT, MISS, ORANGE, PURPLE, SKY, VERMILION, YELLOW, freeze_layout, panels
from saga_study.findings.names import plain
from saga_study.methods import METHOD_LABELS

if TYPE_CHECKING:
    from saga_lib.datasets.splits import Split
    from saga_lib.records import Run
    from saga_study.findings.neighbours import Neighbours


def show_image(axis: plt.Axes, image: Image.Image, frame: str | bool | None = None) -> None:
    """Show an image without ticks; `frame` is a colour, or True for a hit (solid, green), False for a miss (dashed, red)."""
    axis.imshow(np.asarray(image), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axis.set(xticks=[], yticks=[], frame_on=True)
    colour = {True: GREEN, False: VERMILION}.get(frame, frame)
    for spine in axis.spines.values():
        line = {"linestyle": (0, (2.2, 1.5)), "capstyle": "butt"} if frame is False else {"linestyle": "-"}
        spine.set(visible=frame is not None, color=colour, linewidth=3, **line)


def draw_box(axis: plt.Axes, box: Sequence[float], **look: object) -> None:
    """Draw a frame around a box (x0, y0, x1, y1; pixels) of an image."""
    x0, y0, x1, y1 = box
    axis.add_patch(plt.Rectangle((x0 - 0.5, y0 - 0.5), x1 - x0, y1 - y0, fill=False, **look))


class Picture(NamedTuple):
    """A place of a grid: an image (None leaves it empty), the text below it, and its frame as `show_image` takes it."""

    image: Image.Image | None
    caption: str = ""
    frame: str | bool | None = None


def image_grid(
    pictures: Sequence[Picture | Image.Image], columns: int = 8, row_labels: Sequence[str] = (), column_labels: Sequence[str] = (),
    title: str | None = None, cell: float = 1.35,
) -> Figure:  # fmt: skip
    """Show images in rows of `columns`, each `cell` inches wide; if there are hits or misses, a legend says how they are framed."""
    pictures = [one if isinstance(one, Picture) else Picture(one) for one in pictures]
    rows, first = -(-len(pictures) // columns), next(one.image for one in pictures if one.image is not None)
    lines = max(one.caption.count("\n") + 1 if one.caption else 0 for one in pictures)
    beside = max((0.3 + 0.09 * len(line) for label in row_labels for line in label.split("\n")), default=0)
    is_judged = any(isinstance(one.frame, bool) for one in pictures)
    extra = 0.4 * bool(title) + 0.3 * bool(column_labels) + 0.4 * is_judged
    height = rows * (cell * first.height / first.width + 0.19 * lines) + extra
    figure, axes = panels(rows, columns, max(columns * cell + beside, 4), height, title)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[], frame_on=False)
    for axis, (image, caption, frame) in zip(axes.flat, pictures, strict=False):
        axis.set_xlabel(plain(caption), fontsize=10, labelpad=3, color={True: HIT, False: MISS}.get(frame, BLACK))
        if image is not None:
            show_image(axis, image, frame)
    for axis, label in zip(axes[:, 0], row_labels, strict=False):
        axis.set_ylabel(plain(label), rotation=0, ha="right", va="center", labelpad=8)
    for axis, label in zip(axes[0], column_labels, strict=False):
        axis.set_title(plain(label), fontsize=11)
    if is_judged:
        handles = [
            Line2D([], [], color=GREEN, lw=3, label="of the query's class"),
            Line2D([], [], color=VERMILION, lw=3, ls=(0, (2, 1.2)), label="of another class"),
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=2)
    return figure


def pair_grid(
    left: Sequence[Image.Image], right: Sequence[Image.Image], captions: Sequence[str], same_class: Sequence[bool],
    columns: int = 4, title: str | None = None,
) -> Figure:  # fmt: skip
    """Show pairs side by side; blue frames mark pairs of one class, orange ones pairs of two."""
    pairs = []
    for first, second, caption, same in zip(map(np.asarray, left), map(np.asarray, right), captions, same_class, strict=True):
        gap = np.full((first.shape[0], 3, 3), 255, np.uint8)
        pairs.append(Picture(Image.fromarray(np.concatenate([first, gap, second], 1)), caption, BLUE if same else ORANGE))
    return image_grid(pairs, columns, title=title, cell=2.7)


def attribute_regions(
    images: Sequence[Image.Image], regions: Sequence[Mapping[str, Sequence[float]]], cell: float = 3.0
) -> Figure:
    """Draw the box (x0, y0, x1, y1; pixels) of each attribute over its image, one legend for all."""
    names = list(regions[0])
    colours = dict(zip(names, [VERMILION, SKY, YELLOW, GREEN, BLUE, PURPLE, ORANGE, BLACK] * 4, strict=False))
    figure, axes = panels(1, len(images), len(images) * cell, cell + 0.8)
    for axis, image, boxes in zip(axes.flat, images, regions, strict=True):
        show_image(axis, image)
        for name, box in boxes.items():
            draw_box(axis, box, lw=2, ec=colours[name])
    handles = [Line2D([], [], color=colours[name], lw=3, label=plain(name)) for name in names]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(4, len(names)))
    return figure


def retrieval_gallery(
    split: Split, neighbours: Mapping[str, np.ndarray], num_queries: int = 6, k: int = 6, title: str | None = None, cell: float = 1.2
) -> Figure:
    """Show queries with what each method finds first, hits of the query's class and misses framed apart; `cell` in inches.

    `neighbours` maps labels of methods to (N, >= k) indices into `split`. Queries come from different classes; those
    on which the methods disagree at rank 1 first, then those that no method hits.
    """
    hit = np.stack([split.labels[found[:, 0]] == split.labels for found in neighbours.values()])  # (methods, N)
    num_hits = hit.sum(0)
    agrees = (num_hits == 0) | (num_hits == len(hit))
    order, chosen = np.lexsort((num_hits, agrees)), {}
    for query in order.tolist():
        chosen.setdefault(int(split.labels[query]), query)
    k = min(k, *(found.shape[1] for found in neighbours.values()))
    pictures, rows = [], []
    for query in list(chosen.values())[:num_queries]:
        for label, found in neighbours.items():
            rows.append(label)
            hits = (split.labels[found[query, :k]] == split.labels[query]).tolist()
            images = split.images([query, *found[query, :k]])
            pictures += [Picture(image, frame=frame) for image, frame in zip(images, [BLACK, *hits], strict=True)]
    return image_grid(pictures, k + 1, rows, ["query", *map(str, range(1, k + 1))], title, cell)


def neighbour_gallery(found: Neighbours, examples: Mapping[str, int], title: str) -> Figure:
    """Show example queries with their nearest neighbours under every method (Figure 5): a row per query and method.

    Hits and misses differ by frame and by a tick or cross; the caption gives the cosine similarity and the class. `found` and
    `examples` come from `saga_study.findings.neighbours`.
    """
    methods, split = list(found.indices), found.split
    k = found.indices[methods[0]].shape[1]
    pictures, rows = [], []
    for query in examples.values():
        for method in methods:
            hits, others = found.hits(method)[query].tolist(), found.indices[method][query].tolist()
            rows.append(f"{METHOD_LABELS.get(method, method)}\n{sum(hits)} of {k}".replace(" + ", "\n+ "))
            is_first = method == methods[0]
            pictures.append(Picture(split.open(query), split.class_names[split.labels[query]]) if is_first else Picture(None))
            for other, similarity, hit in zip(others, found.similarities[method][query], hits, strict=True):
                caption = f"{'✓' if hit else '✗'} {similarity:.3f}\n{split.class_names[split.labels[other]]}"
                pictures.append(Picture(split.open(other), caption, hit))
    figure = image_grid(pictures, 1 + k, rows, ["", *map(str, range(1, k + 1))], title)
    figure.set_figheight(figure.get_figheight() + 0.2 * len(examples))
    for number, kind in enumerate(examples):
        figure.axes[number * len(methods) * (1 + k)].set_title(f"query: {kind}", fontsize=10, fontweight="bold")
    freeze_layout(figure)
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
    pictures = [Picture(image, caption) for image, caption in zip(test.images(order), captions, strict=True)]
    title = f"{runs[rival][0].config.dataset}: queries with the largest differences (seeds that are right at rank 1)"
    return image_grid(pictures, shown, [f"{METHOD_LABELS[m]}\nbetter" for m in score], title=title)
