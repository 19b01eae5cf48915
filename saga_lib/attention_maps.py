"""Where the supervisor looks while it names an attribute (Figure 3), held against the true regions where they are known.

Maps are those of Eq. 6, kept apart by attribute: a token that describes an attribute of an image contributes the head-averaged
attention, at one layer ℓ, of the step that generates it to that image's Np patches, renormalised over them; a map is the mean
over the value's tokens, the teacher ᾱ the mean over all described tokens of the image. Shapes: N images, Np patches in raster
order, A attributes of the vocabulary, S training seeds of a method, which are all measured on the same images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from saga_lib.comparisons import seeds_in_words
from saga_lib.config import METHOD_LABELS, TIMM, RunConfig
from saga_lib.datasets import Split, run_benchmark
from saga_lib.encoder import Encoder
from saga_lib.errors import SagaError
from saga_lib.files import read_json
from saga_lib.prompts import ITEM_SECTIONS, Vocabulary, comparison_prompt, load_vocabulary, parse_answer, parse_verdict
from saga_lib.runs import Run
from saga_lib.supervisor import Supervisor, load_supervisor
from saga_lib.supervisor.attention import image_attention
from saga_lib.supervisor.replay import attribute_tokens, completion_log_probs
from saga_lib.supervisor.rollouts import comparison_draft, generate_rollouts
from saga_lib.training import autocast, supervisor_source

ALL = "mean of attributes"
NUM_RESAMPLES = 2000
MIN_IMAGES = 5  # said rightly, and wrongly, for an attribute to be compared between the two
SUBPIXELS = 4  # per pixel and axis, where regions are united
PRETRAINED = "pre-trained"


# ------------------------------------------------------------------------------------------- what is looked at


def load_frozen(config: RunConfig) -> tuple[nn.Module, Supervisor]:
    """Load a run's supervisor with the tower it came with, on the device and in the precision that training uses."""
    source = supervisor_source(config)
    if source.startswith(TIMM):
        raise SagaError(f"supervisor {source} is a tower without a language model: it has no attention to show")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    return load_supervisor(source, config.image_size, device, dtype, config.revision or None)


def draw_pairs(labels: np.ndarray, num_pairs: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return pairs (B, 2) of image indices and (B,) bool, True where the classes agree: half and half, no image twice.

    Classes take turns in a random order, so that as many as possible are seen. Fewer pairs where images run out.
    """
    order = rng.permutation(np.unique(labels))
    images = {label: list(rng.permutation(np.flatnonzero(labels == label))) for label in order}
    pairs, same = [], []
    for kind in (True, False):
        wanted, found = num_pairs // 2 if kind else num_pairs - num_pairs // 2, True
        while wanted and found:
            found = False
            groups = [(label, label) for label in order] if kind else list(zip(order[::2], order[1::2], strict=False))
            for a, b in groups:
                if wanted and len(images[a]) > kind and images[b]:
                    pairs.append((images[a].pop(), images[b].pop()))
                    same.append(kind)
                    wanted, found = wanted - 1, True
            order = np.roll(order, 1)  # other classes meet in the next round
    return np.asarray(pairs, dtype=np.int64).reshape(-1, 2), np.asarray(same, dtype=bool)


@dataclass
class Described:
    """Greedy comparisons of B pairs through one tower: what was said of N = 2B images (a pair's a, then its b), and the maps.

    An attribute that an answer does not describe has a map of NaN.
    """

    texts: list[str]  # (B,)
    said: list[dict]  # (N,) attribute -> text
    verdicts: list[bool | None]  # (B,)
    maps: dict[int, np.ndarray]  # layer, from 0 -> (N, A, Np) float64; rows sum to 1
    teacher: dict[int, np.ndarray]  # layer -> ᾱ (N, Np)
    tokens: Tensor  # merged tokens X (N, Np, D), for poolers

    def right(self, truth: Sequence[Mapping[str, str]], names: Sequence[str]) -> np.ndarray:
        """Return (N, A) bool: whether the attribute was said rightly."""
        return np.array([[said.get(name) == true[name] for name in names] for said, true in zip(self.said, truth, strict=True)])


@torch.no_grad()
def describe(
    tower: nn.Module, supervisor: Supervisor, vocabulary: Vocabulary, pixels: Tensor, layers: Sequence[int],
    max_new_tokens: int = 1024, batch_pairs: int = 16,
) -> Described:  # fmt: skip
    """Let the supervisor compare B pairs, `pixels` (2B, …) of a and b in turn, and record its attention at `layers`.

    The prompt is that of training and the tokens are its own, decoded greedily; they are replayed once per layer.
    """
    if bad := [layer for layer in layers if not 0 <= layer < supervisor.num_layers]:
        raise SagaError(f"layer {bad[0]} counts from 0, and this supervisor has {supervisor.num_layers} layers")
    ids, names = supervisor.prompt_ids(comparison_prompt(vocabulary)), vocabulary.attribute_names
    draft = comparison_draft(supervisor, vocabulary)
    texts, tokens = [], []
    maps, teacher = ({layer: [] for layer in layers} for _ in range(2))
    for chunk in pixels.split(2 * batch_pairs):
        with autocast(supervisor.device):
            images = tower(chunk.to(supervisor.device))
            answers = generate_rollouts(supervisor, ids, images, 1, max_new_tokens, temperature=0, draft=draft)
            prefix = supervisor.prefill(ids, images)
        tokens.append(images.merged)
        texts += answers.texts
        said = [row[:length].tolist() for row, length in zip(answers.tokens, answers.lengths.tolist(), strict=True)]
        places = [attribute_tokens(supervisor, row) for row in said]
        for layer in layers:
            with autocast(supervisor.device):
                _, tap = completion_log_probs(supervisor, prefix.fork(), answers.tokens, answers.mask, layer)
            for row, where in enumerate(places):
                for section, columns in zip(ITEM_SECTIONS, supervisor.image_columns(ids), strict=True):
                    own, mean = _maps_of(tap, row, {a: t for (s, a), t in where.items() if s == section}, columns, names)
                    maps[layer].append(own)
                    teacher[layer].append(mean)
    answers = [parse_answer(text) or {} for text in texts]
    items = [answer.get(section) for answer in answers for section in ITEM_SECTIONS]
    return Described(
        texts, [item if isinstance(item, dict) else {} for item in items],
        [parse_verdict(text, vocabulary.verdict_key) for text in texts],
        {layer: np.stack(parts) for layer, parts in maps.items()},
        {layer: np.stack(parts) for layer, parts in teacher.items()}, torch.cat(tokens),
    )  # fmt: skip


def _maps_of(tap, row: int, places: Mapping[str, list[int]], columns: Tensor, names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return the maps (A, Np) of an image's attributes and ᾱ (Np,), the mean over all tokens that describe it."""
    own, mean = np.full((len(names), len(columns)), np.nan), np.full(len(columns), np.nan)
    wanted = [(name, token) for name, tokens in places.items() for token in tokens if token > 0]
    if wanted:
        steps = torch.tensor([token for _, token in wanted], device=columns.device) - 1
        attention = image_attention(tap, row, steps, columns).double().cpu().numpy()
        attention /= attention.sum(-1, keepdims=True)
        mean = attention.mean(0)
        for place, name in enumerate(names):
            if rows := [number for number, (other, _) in enumerate(wanted) if other == name]:
                own[place] = attention[rows].mean(0)
    return own, mean


@torch.no_grad()
def pooler_weights(encoder: Encoder, tokens: Tensor) -> np.ndarray:
    """Return the pooler's β (N, Np) on tokens (N, Np, D) of its own tower (App. B)."""
    return encoder.pooler(tokens.float())[1].double().cpu().numpy()


@dataclass
class HeldOut:
    """What was measured on images of one benchmark's test classes: N = 2B of them, the images of B pairs in turn."""

    split: Split
    indices: np.ndarray  # (N,) into the split
    same_class: np.ndarray  # (B,) bool
    names: list[str]  # attributes, A
    layer: int  # ℓ of training, from 0
    seeds: dict[str, list[int]]  # method -> its training seeds, S
    towers: dict[str, list[Described]]  # "pre-trained" (one), then methods (S each); all layers for "pre-trained" and SAGA, else ℓ
    beta: dict[str, list[np.ndarray]]  # method -> S times β (N, Np) of its pooler on its own tower's tokens
    regions: Regions | None

    @property
    def compared(self) -> dict[str, list[Described]]:
        """The towers whose maps are measured: as pre-trained, and after SAGA where the study has it; figures show the first seed's."""
        return {label: self.towers[name] for name, label in ((PRETRAINED, PRETRAINED), ("saga_pf", "SAGA")) if name in self.towers}

    @property
    def truth(self) -> list[dict[str, str]] | None:
        """The true attributes of every image, where they are known."""
        return None if self.split.class_attributes is None else [self.split.attributes(int(i)) for i in self.indices]

    def readings(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Return ᾱ and β (S, N, Np) per method, as `pooler_table` takes them."""
        teachers = {method: np.stack([tower.teacher[self.layer] for tower in self.towers[method]]) for method in self.beta}
        return {method: (teachers[method], np.stack(beta)) for method, beta in self.beta.items()}


def look_at_held_out(runs: Mapping[str, Sequence[Run]], num_pairs: int, layers: Sequence[int] = (), seed: int = 0) -> HeldOut:
    """Let the supervisor of some runs of one benchmark, by method and seed, compare pairs of test images through every run's tower.

    Beside the runs stands the tower as the supervisor came with it. `layers` are measured for that and SAGA's; none: all of them
    where the true regions are known, else ℓ alone. `num_pairs` are drawn with `seed`.
    """
    config = next(iter(runs.values()))[0].config
    benchmark = run_benchmark(config)
    vocabulary = load_vocabulary(benchmark.vocabulary)
    tower, supervisor = load_frozen(config)
    pairs, same = draw_pairs(benchmark.test.labels, num_pairs, np.random.default_rng(seed))
    indices, ell = pairs.reshape(-1), config.attention_layer
    pixels = tower.preprocess(benchmark.test.images(indices))
    regions = true_regions(benchmark.test, indices, vocabulary.attribute_names, tower.tokens_per_side)
    layers = list(layers) or (list(range(supervisor.num_layers)) if regions else [ell])
    layers = sorted({*layers, ell})
    seeds = {method: [run.config.seed for run in group] for method, group in runs.items()}
    towers = {PRETRAINED: [describe(tower, supervisor, vocabulary, pixels, layers, config.max_new_tokens)]}
    beta = {}
    for method, group in runs.items():
        towers[method], beta[method] = [], []
        own = layers if method == "saga_pf" else [ell]
        for run in tqdm(group, desc=f"{config.dataset} {method}", unit="seed", leave=False):
            encoder = run.encoder().to(supervisor.device)
            towers[method].append(found := describe(encoder.tower, supervisor, vocabulary, pixels, own, config.max_new_tokens))
            beta[method].append(pooler_weights(encoder, found.tokens))
    return HeldOut(benchmark.test, indices, same, list(vocabulary.attribute_names), ell, seeds, towers, beta, regions)


# --------------------------------------------------------------------------------------------- the true regions


@dataclass(frozen=True)
class Regions:
    """What the renderer drew where. A box is (x0, y0, x1, y1) in pixels of the image, a cover the fraction of a patch inside it."""

    boxes: list[dict[str, tuple[float, float, float, float]]]  # (N,)
    cover: np.ndarray  # (N, A, Np), of each attribute's box; all 0 where the box lies outside the image
    union: np.ndarray  # (N, Np), of all boxes of an image together: the subject

    @property
    def patches(self) -> np.ndarray:
        """(N, A, Np) bool: the patches of a region, those it covers at least half as much as the one it covers most.

        A box rarely ends where a patch does: a sliver in the next patch does not count, and no region is without a patch.
        """
        most = self.cover.max(-1, keepdims=True)
        return (self.cover >= 0.5 * most) & (most > 0)


def true_regions(split: Split, indices: Sequence[int], names: Sequence[str], side: int) -> Regions | None:
    """Return the regions of some images on a grid of side×side patches; None where nobody knows them (photographs)."""
    boxes = []
    stored: dict = {}
    for index in indices:
        path = split.paths[index]
        record = path.parents[2] / "regions.json" if split.class_attributes is not None else None
        if record is None or not record.is_file():
            return None
        if record not in stored:
            stored[record] = read_json(record)
        boxes.append({name: tuple(box) for name, box in stored[record][path.parent.name][int(path.stem)].items()})
    size = split.open(int(indices[0])).width
    cover = np.array([[patch_cover(image.get(name, (0, 0, 0, 0)), size, side) for name in names] for image in boxes])
    return Regions(boxes, cover, np.array([union_cover(list(image.values()), size, side) for image in boxes]))


def patch_cover(box: Sequence[float], size: int, side: int) -> np.ndarray:
    """Return (side²,) which fraction of each patch of a size×size image lies inside a box (pixels)."""
    edges = np.linspace(0, size, side + 1)

    def along(low: float, high: float) -> np.ndarray:
        return np.clip(np.minimum(high, edges[1:]) - np.maximum(low, edges[:-1]), 0, None) / (size / side)

    return np.outer(along(box[1], box[3]), along(box[0], box[2])).ravel()


def union_cover(boxes: Sequence[Sequence[float]], size: int, side: int) -> np.ndarray:
    """Return (side²,) which fraction of each patch lies inside any of the boxes, to a quarter of a pixel."""
    cells = size * SUBPIXELS
    inside = np.zeros((cells, cells), dtype=bool)
    for x0, y0, x1, y1 in np.round(np.asarray(boxes) * SUBPIXELS).astype(int):
        inside[y0:y1, x0:x1] = True
    return np.array([part.mean() for rows in np.array_split(inside, side) for part in np.array_split(rows, side, 1)])


# ------------------------------------------------------------------------------------------------- agreement


def pointing(maps: np.ndarray, patches: np.ndarray) -> np.ndarray:
    """Return (N, A, A) whether the largest value of the map of attribute i lies in the region of attribute j.

    maps (N, A, Np), patches (N, A, Np) bool. NaN where the map or the region is missing. Its diagonal is the pointing
    game; beside it stands what the maps of the other attributes score on the same region.
    """
    missing = ~np.isfinite(maps).all(-1)  # (N, A)
    top = np.where(missing[..., None], 0, maps).argmax(-1)
    hits = np.take_along_axis(patches[:, None], top[:, :, None, None], -1)[..., 0].astype(float)  # (N, i, j)
    hits[missing] = np.nan
    hits[np.broadcast_to(~patches.any(-1)[:, None], hits.shape)] = np.nan
    return hits


def relative_mass(maps: np.ndarray, cover: np.ndarray) -> np.ndarray:
    """Return (…) how much of a map (…, Np) lies inside a region, `cover` (…, Np), relative to the region's share of the area.

    1 for an even map. NaN where the region is empty.
    """
    area = cover.mean(-1)
    return np.divide((maps * cover).sum(-1), area, out=np.full(area.shape, np.nan), where=area > 0)


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
    same regions: others, the maps of the image's other attributes, which would score as much if the subject were looked at and
    not the part; swapped, this attribute's map of another image, which would score as much if it were always the same place.
    mass: relative to area. Intervals: 95 %, bootstrap over images and, where a tower has several, `seeds`.
    """
    rows, own = [], np.arange(len(names))
    patches = regions.patches
    chance = np.where(patches.any(-1), patches.mean(-1), np.nan)
    for tower, results in described.items():
        for layer in results[0].maps:
            by_seed: dict[str, list[np.ndarray]] = {}
            for maps in (result.maps[layer] for result in results):
                hits = pointing(maps, patches)
                crossed = hits.copy()
                crossed[:, own, own] = np.nan
                with np.errstate(invalid="ignore"):
                    known = np.isfinite(crossed).sum(1)
                    others = np.where(known > 0, np.nansum(crossed, 1) / np.maximum(known, 1), np.nan)
                swapped = pointing(np.roll(maps, 2, 0), patches)[:, own, own]  # by a pair: its own partner may be of its class
                measured = {
                    "pointing": 100 * hits[:, own, own], "chance": 100 * chance, "others": 100 * others, "swapped": 100 * swapped,
                    "mass": relative_mass(maps, regions.cover),
                }  # fmt: skip
                for what, values in measured.items():
                    by_seed.setdefault(what, []).append(values)
            parts = {what: np.stack(values) for what, values in by_seed.items()}  # (S, N, A)
            found = {what: mean_with_interval(values) for what, values in parts.items()}
            for place, name in enumerate([*names, ALL]):
                row = {"tower": tower, "layer": layer, "attribute": name}
                for what, frame in found.items():
                    row[what] = frame["mean"][place]
                    if what in ("pointing", "mass"):
                        row |= {f"{what} low": frame["low"][place], f"{what} high": frame["high"][place]}
                counts = np.isfinite(parts["pointing"]).sum((0, 1))
                rows.append(row | {"maps": int(counts[place] if place < len(names) else counts.sum()), "seeds": len(results)})
    return pd.DataFrame(rows)


def display_pointing(table: pd.DataFrame, chosen: int) -> pd.DataFrame:
    """Return a `pointing_table` for people: a row per attribute, their mean last; controls and mass for layer `chosen` alone."""
    names = list(dict.fromkeys(table["attribute"]))
    first = table.drop_duplicates("attribute").set_index("attribute")
    shown = {"attribute": names, "chance %": [f"{first['chance'][name]:.0f}" for name in names]}
    for (tower, layer), part in table.groupby(["tower", "layer"], sort=False):
        rows = part.set_index("attribute")
        shown[f"{tower}, ℓ = {layer}: pointing % [95 %]"] = [
            f"{rows['pointing'][n]:.0f} [{rows['pointing low'][n]:.0f}, {rows['pointing high'][n]:.0f}]" for n in names
        ]
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
            rows.append({"tower": tower, "layer": chosen, "against": layer, "difference": mean["mean"]} | dict(mean[["low", "high"]]))
    return pd.DataFrame(rows, columns=["tower", "layer", "against", "difference", "low", "high"])


def _own_hits(results: Sequence[Described], regions: Regions, layer: int) -> np.ndarray:
    """Return (S, N, A) whether the largest patch of each map lies in the region of its own attribute, NaN where one of them is missing."""
    return np.stack([np.diagonal(pointing(result.maps[layer], regions.patches), axis1=1, axis2=2) for result in results])


def reading_difference(results: Sequence[Described], regions: Regions, right: np.ndarray, layer: int) -> dict[str, float]:
    """Return how many points more often maps point at the region where the attribute was said rightly than where wrongly.

    Within each attribute, then their mean, so that easy attributes are not compared with hard ones; `right` (S, N, A) bool. With a 95 %
    interval (bootstrap over images and seeds); NaN where no attribute was said both ways.
    """
    hits = 100 * _own_hits(results, regions, layer)
    both = difference_with_interval(np.where(right, hits, np.nan), np.where(right, np.nan, hits))
    return dict(zip(("difference", "low", "high"), both, strict=True))


def difference_with_interval(a: np.ndarray, b: np.ndarray, seed: int = 0) -> tuple[float, float, float]:
    """Return the mean over columns of mean(a) − mean(b), (N, M) or (S, N, M) each, NaN left out, and its 95 % interval over rows and seeds.

    Columns with values of fewer than `MIN_IMAGES` images on a side are left out: one image would speak for an attribute.
    """
    weights = _resampled(a, seed)
    images = [np.isfinite(part).reshape(-1, *part.shape[-2:]).any(0).sum(0) for part in (a, b)]
    a, b = (part.reshape(-1, part.shape[-1]) for part in (a, b))
    with np.errstate(invalid="ignore"):
        one, other = ((weights @ np.nan_to_num(part)) / (weights @ np.isfinite(part)) for part in (a, b))
    use = np.minimum(*images) >= MIN_IMAGES
    if not use.any():
        return (float("nan"),) * 3
    means = np.nanmean((one - other)[:, use], 1)
    return float(means[0]), *map(float, np.nanquantile(means[1:], [0.025, 0.975]))


def layer_sentences(table: pd.DataFrame, differences: pd.DataFrame, chosen: int) -> list[str]:
    """Return what the measurements say about the choice of ℓ, one sentence per tower, whichever way they fall."""
    sentences = []
    for tower, part in table[table["attribute"] == ALL].groupby("tower", sort=False):
        rows = part.set_index("layer")
        told = ", ".join(
            f"ℓ = {layer} {row['pointing']:.0f} % (another image's map {row['swapped']:.0f} %, mass {row['mass']:.1f} × area)"
            for layer, row in rows.iterrows()
        )
        best = int(rows["pointing"].idxmax())
        text = f"{tower}: {told}; chance {rows['chance'].iloc[0]:.0f} %."
        if chosen not in rows.index:
            text += f" ℓ = {chosen}, which training uses, is not among the layers measured."
        elif best == chosen and len(rows) > 1:
            other = differences[differences["tower"] == tower]
            clear = bool((other["low"] > 0).all())
            text += f" Best is ℓ = {best}, the one that training uses" + (
                ", and its lead over every other layer excludes 0." if clear else ", but its lead over another layer includes 0."
            )
        elif best != chosen:
            row = differences[(differences["tower"] == tower) & (differences["against"] == best)].iloc[0]
            text += (
                f" Best is ℓ = {best}, not the ℓ = {chosen} that training uses ({row['difference']:+.1f} points "
                f"[{row['low']:+.1f}, {row['high']:+.1f}]).".replace("-", "−")
            )
        sentences.append(text)
    return sentences


def conclusions(held: HeldOut, pointing_of: pd.DataFrame | None, poolers: pd.DataFrame) -> list[str]:
    """Return what was found on one benchmark: the layers, what the maps follow, reading and looking, the poolers."""
    sentences = []
    if pointing_of is not None:
        differences = layer_differences(held.compared, held.regions, held.layer)
        sentences += layer_sentences(pointing_of, differences, held.layer)
        sentences += control_sentences(pointing_of, held.layer)
        for tower, results in held.compared.items():
            right = np.stack([result.right(held.truth, held.names) for result in results])
            found = reading_difference(results, held.regions, right, held.layer)
            text = f"{tower}: {100 * right.mean():.0f} % of attributes are said rightly"
            if np.isfinite(found["difference"]):
                text += (
                    f"; pointing at ℓ = {held.layer} where rightly less where wrongly, within attributes: "
                    f"{found['difference']:+.1f} points [{found['low']:+.1f}, {found['high']:+.1f}]"
                )
            sentences.append(text.replace("-", "−").replace("pre−trained", "pre-trained") + ".")
    sentences += pooler_sentences(poolers)
    if counts := sorted({len(seeds) for seeds in held.seeds.values()}):
        covers = "images only, not another seed's luck" if counts[-1] == 1 else "images and seeds"
        also = ", where a method has several" if len(counts) > 1 else ""
        sentences.append(f"{seeds_in_words(counts).capitalize()} of each trained method: the intervals cover the choice of {covers}{also}.")
    return sentences


def control_sentences(table: pd.DataFrame, chosen: int) -> list[str]:
    """Return how the maps of layer `chosen` compare with both controls, and which attributes they find best and worst."""
    sentences = []
    for tower, part in table[table["layer"] == chosen].groupby("tower", sort=False):
        rows = part.set_index("attribute")
        mean, each = rows.loc[ALL], rows.drop(index=ALL)
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
        row = {"method": method, "label": METHOD_LABELS.get(method, method), "images": int(np.atleast_2d(known).any(0).sum())}
        for name, column in values.items():
            mean = mean_with_interval(np.where(known, column, np.nan)[..., None]).iloc[0]
            row |= {name: mean["mean"], f"{name} low": mean["low"], f"{name} high": mean["high"]}
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
            digits = 2 if name.startswith("subject") else 3
            shown[title] = [
                f"{row[name]:.{digits}f} [{row[f'{name} low']:.{digits}f}, {row[f'{name} high']:.{digits}f}]" for _, row in table.iterrows()
            ]
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
