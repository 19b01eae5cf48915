"""Figures of photographs: grids, pairs, neighbours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image

from saga_study.findings.figures.style import BLACK, BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILION, YELLOW, freeze_layout, panels
from saga_study.methods import METHOD_LABELS

if TYPE_CHECKING:
    from saga_lib.datasets.splits import Split
    from saga_lib.records import Run
    from saga_study.findings.neighbours import Neighbours


def show_image(axis: plt.Axes, image: Image.Image, frame: str | None = None) -> None:
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
    figure, axes = panels(
        rows, columns, max(columns * cell + (0.9 if row_labels else 0), 4), rows * (cell + 0.19 * lines) + extra
    )
    for index, axis in enumerate(axes.flat):
        if index >= len(images):
            axis.set_axis_off()
            continue
        show_image(axis, images[index], frames[index] if frames else None)
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
    figure, axes = panels(rows, columns, columns * 2.7, rows * 1.75 + (0.4 if title else 0))
    for index, axis in enumerate(axes.flat):
        if index >= len(left):
            axis.set_axis_off()
            continue
        first, second = np.asarray(left[index]), np.asarray(right[index])
        gap = np.full((first.shape[0], 3, 3), 255, np.uint8)
        both = Image.fromarray(np.concatenate([first, gap, second], 1))
        show_image(axis, both, BLUE if same_class[index] else ORANGE)
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
    figure, axes = panels(1, len(images), len(images) * cell, cell + 0.8)
    for axis, image, boxes in zip(axes.flat, images, regions, strict=True):
        show_image(axis, image)
        for name, (x0, y0, x1, y1) in boxes.items():
            box = plt.Rectangle((x0 - 0.5, y0 - 0.5), x1 - x0, y1 - y0, fill=False, lw=2, ec=colours[name])
            axis.add_patch(box)
    handles = [Line2D([], [], color=colours[name], lw=3, label=name) for name in names]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(4, len(names)))
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
    stand the cosine similarity and the class. `found` and `examples` come from `saga_study.findings.neighbours`.
    """
    methods, split = list(found.indices), found.split
    k = found.indices[methods[0]].shape[1]
    figure, axes = panels(len(examples) * len(methods), 1 + k, 1.35 * (1 + k) + 1.9, 1.72 * len(examples) * len(methods) + 0.9)
    for number, (kind, query) in enumerate(examples.items()):
        for place, method in enumerate(methods):
            row = axes[number * len(methods) + place]
            if place == 0:
                show_image(row[0], split.open(query))
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
                show_image(axis, split.open(int(other)), GREEN if hit else VERMILION)
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
    title = f"{runs[rival][0].config.dataset}: queries with the largest differences (seeds that are right at rank 1)"
    return image_grid(test.images(order), captions, shown, [f"{METHOD_LABELS[m]}\nbetter" for m in score], title=title)
