"""Numbers as text: means, differences with intervals, seeds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path


def seeds_in_words(counts: Iterable[int]) -> str:
    """Return how many seeds cells have, such as "one seed" or "1 to 3 seeds"; cells without any do not count."""
    counts = sorted({count for count in counts if count})
    if len(counts) < 2:
        return {(): "no seed", (1,): "one seed"}.get(tuple(counts), f"{counts[-1] if counts else 0} seeds")
    return f"{counts[0]} to {counts[-1]} seeds"


# ------------------------------------------------------------------------------------------- as people read it


def points(row: tuple) -> str:
    """Return a difference with its interval as text, in points; what it has instead where there is none."""
    if row.difference != row.difference:
        return getattr(row, "absent", "") or NOTHING
    return f"{row.difference:+.1f} [{row.low:+.1f}, {row.high:+.1f}]".replace("-", "−")


def sign(row: tuple) -> int:
    """Return 1 or -1 for an interval above or below 0, 0 for one that includes it."""
    return int(row.low > 0) - int(row.high < 0)


def measured(row: tuple, name: str = "R@1") -> str:
    """Return a cell as text: mean ± standard deviation (seeds), or why it is empty."""
    values = row._asdict() if hasattr(row, "_asdict") else dict(row)
    if not values["seeds"]:
        return values["absent"] or NOTHING
    std = values[f"{name} std"]
    return f"{values[name]:.1f}" + ("" if std != std else f" ± {std:.1f}") + f" ({values['seeds']})"


def short_name(dataset: str) -> str:
    return dataset.removeprefix("miniature_")


def points_or_nothing(row: tuple | None) -> str:
    return NOTHING if row is None or row.difference != row.difference else points(row)

SIGN_WORDS = {1: "above 0", -1: "below 0", 0: "not told apart from 0"}
NOTHING = "–"


def shown_value(value: object) -> str:
    """Return a setting's value as tables and figures show it; of a supervisor what tells it from the profile's."""
    if isinstance(value, int | float):
        return f"{value:g}"
    name = Path(str(value)).name
    return name.rpartition("_after_")[2].lstrip("0") if "_after_" in name else {"miniature": "shipped"}.get(name, name)


def value_with_interval(row: Mapping[str, object], value: str, low: str, high: str) -> str:
    return f"{row[value]:+.1f} [{row[low]:+.1f}, {row[high]:+.1f}]".replace("-", "−")

