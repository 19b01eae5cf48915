"""Images found by words: how much each tower and map finds, and what they find first."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd
from matplotlib.figure import Figure

from saga_study.findings.figures.drawing import beside, legend_below
from saga_study.findings.figures.pictures import Picture, image_grid
from saga_study.findings.figures.style import BLUE, DIM, GREY, HIT, MISS, SKY, VERMILION, panels
from saga_study.findings.words import label, short_name

if TYPE_CHECKING:
    from saga_study.findings.phrases import Phrase, Words

LOOKS = ((VERMILION, "o"), (BLUE, "s"), (GREY, "x"), (SKY, "D"))  # of `phrases.WAYS`, in their order


def word_dots(table: pd.DataFrame, title: str) -> Figure:
    """Show mAP (%, all phrases; a line of one standard deviation over seeds to either side) of each way by method, a panel per benchmark.

    `table` comes from `phrases.word_table`; the dotted line is chance.
    """
    own = table[table["words"] == "all"]
    places, methods = list(dict.fromkeys(own["benchmark"])), list(dict.fromkeys(own["method"]))
    size = 7.2 * max(1, len(places)), 0.55 * max(4, len(methods)) + 1.7
    figure, [axes] = panels(1, max(1, len(places)), *size, title, "x", sharey=True)
    for axis, place in zip(axes, places, strict=False):
        rows = own[own["benchmark"] == place]
        for number, (way, (colour, mark)) in enumerate(zip(dict.fromkeys(own["way"]), LOOKS, strict=False)):
            group = rows[rows["way"] == way]
            heights = group["method"].map(methods.index) + beside(number, len(LOOKS), 0.6)
            axis.errorbar(group["mAP"], heights, xerr=group["mAP std"].fillna(0), fmt=mark, color=colour, ms=7, capsize=3, label=way)
        axis.axvline(rows["chance"].iloc[0], color=DIM, ls=":", label="chance")
        axis.set_title(short_name(place))
        axis.set_xlabel("mAP of phrases (%)")
    axes[0].set_yticks(range(len(methods)), [label(method) for method in methods])
    axes[0].invert_yaxis()
    if places:
        legend_below(figure, axes[0], 3)
    else:
        axes[0].text(0.5, 0.5, "no images whose true attributes are known", transform=axes[0].transAxes, ha="center")
    return figure


def word_gallery(found: Words, phrases: list[Phrase], title: str, count: int = 8) -> Figure:
    """Show the first images that phrases find, a row per phrase and way; images that have the phrase are framed green, others red."""
    from saga_study.findings.phrases import say

    pictures, rows = [], []
    for phrase in phrases:
        relevant = found.relevant[found.phrases.index(phrase)]
        for way, best in found.best.items():
            rows.append(f"{say(phrase).replace(' and ', chr(10))}\n({way.split(' by ')[0]})")
            chosen = best[phrase][:count]
            empty = [Picture(None)] * (count - len(chosen))
            for n in chosen:
                pictures.append(Picture(found.split.open(n), "has it" if relevant[n] else "lacks it", HIT if relevant[n] else MISS))
            pictures += empty
    return image_grid(pictures, count, rows, title=title)
