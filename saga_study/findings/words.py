"""Numbers as text: values with their intervals, what an interval says, how many seeds are behind it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import nan
from pathlib import Path
from typing import NamedTuple

from saga_study.methods import METHOD_LABELS

NOTHING = "–"
BEFORE_TRAINING, AFTER_TRAINING = "before training", "after training"  # moments at which a run is looked at
FAMILIES_OR_QUERIES = "families of classes (queries, where there are none)"  # what intervals of R@1 and MAP@R draw besides seeds
PAIR_KINDS = ("one class", "two classes")
SIDES = {1: "above", -1: "below", 0: "not distinguishable from"}  # of `Interval.side`, followed by what is compared with


class Interval(NamedTuple):
    """A number, mostly a difference, with the ends of its 95 % interval: NaN where there is none, all NaN where nothing was measured."""

    difference: float = nan
    low: float = nan
    high: float = nan

    @classmethod
    def of(cls, row: tuple | Mapping[str, object], name: str = "difference") -> Interval:
        """Return the interval in a row of a table or CSV file: columns `name`, `name low`, `name high`, or else `low` and `high`."""
        values = row._asdict() if hasattr(row, "_asdict") else row
        own = f"{name} " if f"{name} low" in values else ""
        return cls(*(nan if values[column] == "" else float(values[column]) for column in (name, f"{own}low", f"{own}high")))

    def columns(self, name: str) -> dict[str, float]:
        """Return the columns that `of` reads."""
        return dict(zip((name, f"{name} low", f"{name} high"), self, strict=True))

    def side(self, null: float = 0.0) -> int | None:
        """Return 1 if the whole interval is above `null`, -1 if it is below, 0 if it includes it, None without an interval."""
        return None if self.low != self.low or self.high != self.high else int(self.low > null) - int(self.high < null)

    def beside(self, other: Interval) -> int | None:
        """Return 1 if this interval is above another, -1 if it is below, 0 if they overlap, None where one is missing."""
        return None if None in (self.side(), other.side()) else int(self.low > other.high) - int(self.high < other.low)

    def text(self, form: str = "+.1f", unit: str = "") -> str:
        """Return such as "+1.2 [+0.3, +2.1]": the number with its unit, then the interval if there is one."""
        if self.difference != self.difference:
            return NOTHING
        ends = "" if self.low != self.low else f" [{signed(self.low, form)}, {signed(self.high, form)}]"
        return signed(self.difference, form) + unit + ends


def signed(value: float, form: str = "+.1f") -> str:
    """Return a number with a minus sign in place of a hyphen, without a sign if it rounds to zero."""
    text = f"{value:{form}}"
    return (text if any(digit in text for digit in "123456789n") else text.lstrip("+-")).replace("-", "−")


def points(row: tuple | Mapping[str, object] | None) -> str:
    """Return the difference of a table's row with its interval as text; "–" without a row or a difference."""
    return NOTHING if row is None else Interval.of(row).text()


def mean_and_std(row: Mapping[str, object], name: str = "R@1", digits: int = 1) -> str:
    """Return a metric of a table's row as text, mean ± standard deviation over seeds; "–" where it is missing."""
    value, std = row.get(name, nan), row.get(f"{name} std", nan)
    return NOTHING if value != value else f"{value:.{digits}f}" + ("" if std != std else f" ± {std:.{digits}f}")


def measured(row: Mapping[str, object], name: str = "R@1") -> str:
    """Return a cell as text: mean ± standard deviation (seeds), or why it is empty."""
    return f"{mean_and_std(row, name)} ({row['seeds']})" if row["seeds"] else row["absent"] or NOTHING


def seeds_in_words(counts: Iterable[int]) -> str:
    """Return how many seeds cells have, such as "one seed" or "1 to 3 seeds"; cells without any do not count."""
    counts = sorted({count for count in counts if count})
    if len(counts) < 2:
        return {(): "no seed", (1,): "one seed"}.get(tuple(counts), f"{counts[-1] if counts else 0} seeds")
    return f"{counts[0]} to {counts[-1]} seeds"


def seed_remark(counts: Iterable[int], drawn: str = FAMILIES_OR_QUERIES, where: str = "", are_widened: bool = True) -> str:
    """Return a sentence on what intervals over so many seeds cover; `drawn` is what is drawn besides seeds.

    are_widened: whether they allow for how few the seeds are, as `bootstrap.interval` does.
    """
    counts = [count for count in counts if count]
    fewest, most = min(counts), max(counts)
    if most == 1:
        covered = f"{drawn} only, not the variation between seeds"
    else:
        covered = f"{drawn} and, where there are several, of seeds" if fewest == 1 else f"{drawn} and seeds"
        covered += "; with fewer than five seeds they are too narrow" if fewest < 5 and not are_widened else ""
    return f"{seeds_in_words(counts).capitalize()}{where}: the intervals cover the choice of {covered}."


def label(method: str) -> str:
    """Return a method's name in tables and figures; other rows keep their own."""
    return METHOD_LABELS.get(method, method)


def short_name(dataset: str) -> str:
    return dataset.removeprefix("miniature_")


def shown_value(value: object) -> str:
    """Return a setting's value as tables and figures show it; of a half-taught supervisor the number of steps it was taught."""
    if isinstance(value, int | float):
        return f"{value:g}"
    name = Path(str(value)).name
    return name.rpartition("_after_")[2].lstrip("0") if "_after_" in name else {"miniature": "shipped"}.get(name, name)
