"""Where attention points, against the truth: tables, intervals and sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from saga_study.findings.attention_maps import Described, HeldOut, Regions, pointing_hits, relative_mass
from saga_study.findings.samples import ALL_ATTRIBUTES
from saga_study.findings.words import Interval, label, seed_remark

NUM_RESAMPLES = 2000
MIN_IMAGES = 5  # named rightly, and as many wrongly, for an attribute to be compared between the two


def mean_with_interval(values: np.ndarray, seed: int = 0) -> pd.DataFrame:
    """Return mean, low and high (95 %, bootstrap) of every column of values (N, M) or (S, N, M), NaN left out, and of their mean.

    The bootstrap is over images and, of several, seeds, drawn independently. The last row is the mean over columns, each weighing the same.
    """
    weights = _resampled(values, seed)
    values = values.reshape(-1, values.shape[-1])
    known = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        means = (weights @ np.where(known, values, 0)) / (weights @ known)  # first row: the sample itself
    has = np.isfinite(means[0])
    means = np.column_stack([means, means[:, has].mean(1) if has.any() else np.full(len(means), np.nan)])
    low, high = np.nanquantile(means[1:], [0.025, 0.975], axis=0) if has.any() else np.full((2, means.shape[1]), np.nan)
    return pd.DataFrame({"mean": means[0], "low": low, "high": high})


def _resampled(values: np.ndarray, seed: int) -> np.ndarray:
    """Return how often a bootstrap draws each row of values (N, M), or seed and row of (S, N, M): the sample itself, then resamples.

    (1 + NUM_RESAMPLES, S·N), seeds one after the other.
    """
    num_seeds, num_images = (1, *values.shape)[-3:-1]
    rng = np.random.default_rng(seed)
    images, seeds = (rng.multinomial(count, np.full(count, 1 / count), NUM_RESAMPLES) for count in (num_images, num_seeds))
    return np.vstack([np.ones(num_seeds * num_images), (seeds[:, :, None] * images[:, None]).reshape(NUM_RESAMPLES, -1)])


def pointing_table(described: Mapping[str, Sequence[Described]], regions: Regions, names: Sequence[str]) -> pd.DataFrame:
    """Return one row per tower, layer and attribute (and their mean): how its maps agree with the true regions.

    pointing: % of maps whose largest patch is one of the region's; chance: the region's share of all patches. Two controls on the
    same regions: others, the maps of the image's other attributes, which would score as much if attention were on the subject and
    not on the part; swapped, this attribute's map of another image, which would score as much if attention were always at the same
    place. mass: relative to area. Intervals: 95 %, bootstrap over images and, where a tower has several, `seeds`.
    """
    rows = []
    for tower, results in described.items():
        for layer in results[0].maps:
            by_seed = [_agreement(result.maps[layer], regions) for result in results]
            parts = {what: np.stack([one[what] for one in by_seed]) for what in by_seed[0]}  # (S, N, A)
            found = {what: mean_with_interval(values) for what, values in parts.items()}
            counts = np.isfinite(parts["pointing"]).sum((0, 1))
            for place, name in enumerate([*names, ALL_ATTRIBUTES]):
                row = {"tower": tower, "layer": layer, "attribute": name}
                for what, frame in found.items():
                    columns = Interval.of(frame.iloc[place], "mean").columns(what)
                    row |= columns if what in ("pointing", "mass") else {what: columns[what]}
                rows.append(row | {"maps": int([*counts, counts.sum()][place]), "seeds": len(results)})
    return pd.DataFrame(rows)


def _agreement(maps: np.ndarray, regions: Regions) -> dict[str, np.ndarray]:
    """Return the scores (N, A) of one layer's maps (N, A, Np): those of `pointing_table`, for each image."""
    patches, own = regions.patches, np.arange(maps.shape[1])
    hits = pointing_hits(maps, patches)
    crossed = hits.copy()
    crossed[:, own, own] = np.nan
    known = np.isfinite(crossed).sum(1)
    return {
        "pointing": 100 * hits[:, own, own], "chance": 100 * np.where(patches.any(-1), patches.mean(-1), np.nan),
        "others": 100 * np.where(known > 0, np.nansum(crossed, 1) / np.maximum(known, 1), np.nan),
        "swapped": 100 * pointing_hits(np.roll(maps, 2, 0), patches)[:, own, own],  # by a pair: its own partner may be of its class
        "mass": relative_mass(maps, regions.cover),
    }  # fmt: skip


def display_pointing(table: pd.DataFrame, chosen: int) -> pd.DataFrame:
    """Return a `pointing_table` for people: a row per attribute, their mean last; controls and mass for layer `chosen` alone."""
    names = list(dict.fromkeys(table["attribute"]))
    first = table.drop_duplicates("attribute").set_index("attribute")
    shown = {"attribute": names, "chance %": [f"{first['chance'][name]:.0f}" for name in names]}
    for (tower, layer), part in table.groupby(["tower", "layer"], sort=False):
        rows = part.set_index("attribute")
        shown[f"{tower}, ℓ = {layer}: pointing % [95 %]"] = [Interval.of(rows.loc[name], "pointing").text(".0f") for name in names]
        if layer == chosen:
            shown |= {
                f"{tower}, ℓ = {layer}: {title}": [f"{rows[what][n]:.{digits}f}" for n in names]
                for what, title, digits in (
                    ("others", "other attributes' maps %", 0), ("swapped", "another image's map %", 0), ("mass", "mass / area", 1),
                )
            }  # fmt: skip
    return pd.DataFrame(shown)


def layer_differences(described: Mapping[str, Sequence[Described]], regions: Regions, chosen: int) -> pd.DataFrame:
    """Return how much better, in points of the pointing game, the maps of layer `chosen` are than those of every other layer.

    Paired over images, attributes and seeds, 95 % intervals by a bootstrap over images and seeds.
    """
    rows = []
    for tower, results in described.items():
        scores = {layer: _own_hits(results, regions, layer) for layer in results[0].maps}
        for layer in scores.keys() - {chosen} if chosen in scores else ():
            mean = mean_with_interval(100 * (scores[chosen] - scores[layer])).iloc[-1]
            rows.append({"tower": tower, "layer": chosen, "against": layer} | Interval.of(mean, "mean")._asdict())
    return pd.DataFrame(rows, columns=["tower", "layer", "against", "difference", "low", "high"])


def _own_hits(results: Sequence[Described], regions: Regions, layer: int) -> np.ndarray:
    """Return (S, N, A) whether the largest patch of each map lies in the region of its own attribute, NaN where one of them is missing."""
    return np.stack([np.diagonal(pointing_hits(result.maps[layer], regions.patches), axis1=1, axis2=2) for result in results])


def reading_difference(results: Sequence[Described], regions: Regions, right: np.ndarray, layer: int) -> Interval:
    """Return how many points more often maps point at the region where the attribute was named rightly than where wrongly.

    Within each attribute, then their mean, so that easy attributes are not compared with hard ones; `right` (S, N, A) bool. With a 95 %
    interval (bootstrap over images and seeds); NaN where no attribute was named both ways.
    """
    hits = 100 * _own_hits(results, regions, layer)
    return difference_with_interval(np.where(right, hits, np.nan), np.where(right, np.nan, hits))


def difference_with_interval(a: np.ndarray, b: np.ndarray, seed: int = 0) -> Interval:
    """Return the mean over columns of mean(a) − mean(b), (N, M) or (S, N, M) each, NaN left out, and its 95 % interval over rows and seeds.

    Columns with values of fewer than `MIN_IMAGES` images on a side are left out: one image says little of an attribute.
    """
    weights = _resampled(a, seed)
    images = [np.isfinite(part).reshape(-1, *part.shape[-2:]).any(0).sum(0) for part in (a, b)]
    a, b = (part.reshape(-1, part.shape[-1]) for part in (a, b))
    with np.errstate(invalid="ignore"):
        one, other = ((weights @ np.nan_to_num(part)) / (weights @ np.isfinite(part)) for part in (a, b))
    use = np.minimum(*images) >= MIN_IMAGES
    if not use.any():
        return Interval()
    means = np.nanmean((one - other)[:, use], 1)
    return Interval(float(means[0]), *map(float, np.nanquantile(means[1:], [0.025, 0.975])))


# ------------------------------------------------------------------------------------------------------ sentences


def layer_sentences(table: pd.DataFrame, differences: pd.DataFrame, chosen: int) -> list[str]:
    """Return what the measurements say about the choice of ℓ, one sentence per tower, whichever way they fall."""
    sentences = []
    for tower, part in table[table["attribute"] == ALL_ATTRIBUTES].groupby("tower", sort=False):
        rows = part.set_index("layer")
        layers = ", ".join(
            f"ℓ = {layer} {row['pointing']:.0f} % (another image's map {row['swapped']:.0f} %, mass {row['mass']:.1f} × area)"
            for layer, row in rows.iterrows()
        )
        best, others = int(rows["pointing"].idxmax()), differences[differences["tower"] == tower]
        text = f"{tower}: {layers}; chance {rows['chance'].iloc[0]:.0f} %."
        if chosen not in rows.index:
            text += f" ℓ = {chosen}, which training uses, is not among the layers measured."
        elif best != chosen:
            behind = Interval.of(others[others["against"] == best].iloc[0])
            text += f" Best is ℓ = {best}, not the ℓ = {chosen} that training uses ({behind.text()} points)."
        elif len(rows) > 1:
            lead = "and its lead over every other layer excludes 0" if (others["low"] > 0).all() else "but its lead over another includes 0"
            text += f" Best is ℓ = {best}, the one that training uses, {lead}."
        sentences.append(text)
    return sentences


def conclusions(held: HeldOut, pointing_of: pd.DataFrame | None, poolers: pd.DataFrame) -> list[str]:
    """Return what was found on one benchmark: the layers, what the maps follow, naming and pointing, the poolers."""
    sentences = []
    if pointing_of is not None:
        differences = layer_differences(held.compared, held.regions, held.layer)
        sentences += layer_sentences(pointing_of, differences, held.layer)
        sentences += control_sentences(pointing_of, held.layer)
        for tower, results in held.compared.items():
            right = np.stack([result.right(held.truth, held.names) for result in results])
            found = reading_difference(results, held.regions, right, held.layer)
            text = f"{tower}: {100 * right.mean():.0f} % of attributes are named rightly"
            if found.side() is not None:
                text += f"; pointing at ℓ = {held.layer} where rightly less where wrongly, within attributes: {found.text()} points"
            sentences.append(text + ".")
    sentences += pooler_sentences(poolers)
    if held.seeds:
        sentences.append(seed_remark([len(seeds) for seeds in held.seeds.values()], "images", " of each trained method", are_widened=False))
    return sentences


def control_sentences(table: pd.DataFrame, chosen: int) -> list[str]:
    """Return how the maps of layer `chosen` compare with both controls, and which attributes they find best and worst."""
    sentences = []
    for tower, part in table[table["layer"] == chosen].groupby("tower", sort=False):
        rows = part.set_index("attribute")
        mean, each = rows.loc[ALL_ATTRIBUTES], rows.drop(index=ALL_ATTRIBUTES)
        fails = [name for name, row in each.iterrows() if not row["pointing low"] > max(row["chance"], row["others"], row["swapped"])]
        verdict = f"Not above chance and both controls: {', '.join(fails) or 'none of them'}"
        sentences.append(
            f"{tower}, ℓ = {chosen}: an attribute's own map points at it {mean['pointing']:.0f} % of the time, other attributes' maps "
            f"{mean['others']:.0f} %, another image's map {mean['swapped']:.0f} %; best {each['pointing'].idxmax()} "
            f"({each['pointing'].max():.0f} %), worst {each['pointing'].idxmin()} ({each['pointing'].min():.0f} %). {verdict}."
        )
    return sentences


# --------------------------------------------------------------------------------------------------- the pooler


def pooler_table(readings: Mapping[str, tuple[np.ndarray, np.ndarray]], union: np.ndarray | None) -> pd.DataFrame:
    """Return one row per method: its pooler's β beside the teacher ᾱ of its own tower, means over images and seeds with 95 % intervals.

    readings: by method, ᾱ and β (N, Np) or, of several seeds, (S, N, Np) each; `union` (N, Np) covers the subject, where it is known.
    KL(ᾱ‖β) and entropies in nats (an even map: log Np); "even" is KL(ᾱ‖uniform), what a mean pooler has; mass on the subject relative
    to its area.
    """
    rows = []
    for method, (teacher, beta) in readings.items():
        known = np.isfinite(teacher).all(-1)
        values = {
            "KL": kl_divergence(teacher, beta), "KL even": np.log(teacher.shape[-1]) - entropy(teacher),
            "entropy β": entropy(beta), "entropy ᾱ": entropy(teacher),
        }  # fmt: skip
        if union is not None:
            cover = np.broadcast_to(union, beta.shape)
            values |= {"subject β": relative_mass(beta, cover), "subject ᾱ": relative_mass(teacher, cover)}
        row = {"method": method, "label": label(method), "images": int(np.atleast_2d(known).any(0).sum())}
        for name, column in values.items():
            row |= Interval.of(mean_with_interval(np.where(known, column, np.nan)[..., None]).iloc[0], "mean").columns(name)
        rows.append(row | {"seeds": len(beta) if beta.ndim > 2 else 1})
    return pd.DataFrame(rows)


def display_pooler(table: pd.DataFrame, num_patches: int) -> pd.DataFrame:
    """Return a `pooler_table` for people."""
    titles = {
        "KL": "KL(ᾱ‖β), nats", "KL even": "KL(ᾱ‖even), nats", "entropy β": f"entropy of β, nats (even: {np.log(num_patches):.2f})",
        "entropy ᾱ": "entropy of ᾱ, nats", "subject β": "β on the subject / its area", "subject ᾱ": "ᾱ on the subject / its area",
    }  # fmt: skip
    shown = pd.DataFrame({"method": table["label"]})
    for name, title in titles.items():
        if name in table:
            form = ".2f" if name.startswith("subject") else ".3f"
            shown[title] = [Interval.of(row, name).text(form) for row in table.to_dict("records")]
    return shown


def pooler_sentences(table: pd.DataFrame) -> list[str]:
    """Return how far each pooler has come from an even map (0 %) to its teacher (100 %), in KL, and what it weighs the subject with."""
    sentences = []
    for _, row in table.iterrows():
        closed = round(100 * (1 - row["KL"] / row["KL even"])) or 0
        text = f"{row['label']}: KL(ᾱ‖β) {row['KL']:.3f} nats where an even map has {row['KL even']:.3f}: {closed} % of the way to ᾱ"
        if "subject β" in row:
            text += f"; weight on the subject {row['subject β']:.2f} × its area (ᾱ {row['subject ᾱ']:.2f})"
        sentences.append(text + ".")
    return sentences


def entropy(weights: np.ndarray) -> np.ndarray:
    """Return the entropy (…) in nats of distributions (…, Np)."""
    return -np.sum(weights * np.log(np.clip(weights, 1e-300, None)), -1)


def kl_divergence(teacher: np.ndarray, student: np.ndarray) -> np.ndarray:
    """Return KL(teacher‖student) (…) in nats of distributions (…, Np), as in Eq. 7."""
    ratio = np.log(np.clip(teacher, 1e-300, None)) - np.log(np.clip(student, 1e-300, None))
    return np.sum(teacher * ratio, -1)
