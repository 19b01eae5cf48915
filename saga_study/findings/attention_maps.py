"""Where the supervisor's attention is while it names an attribute (Figure 3), beside the true regions where they are known.

Maps are those of Eq. 6, kept apart by attribute: a token that describes an attribute of an image contributes the head-averaged
attention, at one layer ℓ, of the step that generates it to that image's Np patches, renormalised over them; a map is the mean
over the value's tokens, the teacher ᾱ the mean over all described tokens of the image. Shapes: N images, Np patches in raster
order, A attributes of the vocabulary, S training seeds of a method, which are all measured on the same images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from tqdm.auto import tqdm

from saga_lib.answers import parse_answer, parse_verdict
from saga_lib.common.errors import SagaError
from saga_lib.common.files import read_json
from saga_lib.common.images import fit_square
from saga_lib.config import TIMM, RunConfig
from saga_lib.datasets.splits import Split
from saga_lib.encoder import Encoder
from saga_lib.families.loading import load_supervisor
from saga_lib.prompts import comparison_prompt
from saga_lib.records import Run
from saga_lib.supervisor.attention import image_attention
from saga_lib.supervisor.base import Supervisor
from saga_lib.supervisor.replay import attribute_tokens, completion_log_probs
from saga_lib.supervisor.rollouts import Sampling, comparison_draft, generate_rollouts
from saga_lib.towers import autocast
from saga_lib.vocabulary import Vocabulary, load_vocabulary
from saga_study.datasets.loading import run_benchmark
from saga_study.resolving import supervisor_source

PRETRAINED = "pre-trained"
SUBPIXELS = 4  # per pixel and axis, where regions are united


# --------------------------------------------------------------------------------------------- comparisons


def load_frozen(config: RunConfig) -> tuple[nn.Module, Supervisor]:
    """Load a run's supervisor with the tower it came with, on the device and in the precision that training uses."""
    source = supervisor_source(config)
    if source.startswith(TIMM):
        raise SagaError(f"supervisor {source} is a tower without a language model: it has no attention to show")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    tower, supervisor = load_supervisor(source, config.image_size, device, dtype, config.revision or None)
    tower.image_fit = config.image_fit
    return tower, supervisor


def draw_disjoint_pairs(labels: np.ndarray, num_pairs: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
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
    """Greedy comparisons of B pairs through one tower: the answers about N = 2B images (a pair's a, then its b), and the maps.

    An attribute that an answer does not describe has a map of NaN.
    """

    texts: list[str]  # (B,)
    said: list[dict]  # (N,) attribute -> its value in the answer
    verdicts: list[bool | None]  # (B,)
    maps: dict[int, np.ndarray]  # layer, from 0 -> (N, A, Np) float64; rows sum to 1
    teacher: dict[int, np.ndarray]  # layer -> ᾱ (N, Np)
    tokens: Tensor  # merged tokens X (N, Np, D), for poolers

    def right(self, truth: Sequence[Mapping[str, str]], names: Sequence[str]) -> np.ndarray:
        """Return (N, A) bool: whether the attribute was named rightly."""
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
    greedy = Sampling(1, max_new_tokens, temperature=0, draft=comparison_draft(supervisor, vocabulary))
    keys, texts, finished, tokens = vocabulary.keys, [], [], []
    maps, teacher = ({layer: [] for layer in layers} for _ in range(2))
    for chunk in pixels.split(2 * batch_pairs):
        with autocast(supervisor.device):
            images = tower(chunk.to(supervisor.device))
            answers = generate_rollouts(supervisor, ids, images, greedy)
            prefix = supervisor.prefill(ids, images)
        tokens.append(images.merged)
        texts += answers.texts
        finished += answers.finished.tolist()
        said = [row[:length].tolist() for row, length in zip(answers.tokens, answers.lengths.tolist(), strict=True)]
        places = [attribute_tokens(supervisor, row, keys) for row in said]
        for layer in layers:
            with autocast(supervisor.device):
                _, tap = completion_log_probs(supervisor, prefix.fork(), answers.tokens, answers.mask, layer)
            for row, where in enumerate(places):
                for section, columns in zip(keys.items, supervisor.image_columns(ids), strict=True):
                    own, mean = _maps_of(tap, row, {a: t for (s, a), t in where.items() if s == section}, columns, names)
                    maps[layer].append(own)
                    teacher[layer].append(mean)
    answers = [parse_answer(text, keys.verdict) or {} for text in texts]
    items = [answer.get(section) for answer in answers for section in keys.items]
    return Described(
        texts, [item if isinstance(item, dict) else {} for item in items],
        [parse_verdict(text, keys.verdict, ended) for text, ended in zip(texts, finished, strict=True)],
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
    image_fit: str = "crop"  # of the towers

    def picture(self, row: int) -> Image.Image:
        """Return the part of an image that the towers see, in its own shape; the tokens lie evenly over it."""
        image = self.split.open(int(self.indices[row]))
        return fit_square(image, min(image.size)) if self.image_fit == "crop" else image

    @property
    def compared(self) -> dict[str, list[Described]]:
        """The towers whose maps are measured: the pre-trained one and, where the study has it, SAGA's; figures show the first seed's."""
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

    The pre-trained tower, as the supervisor came with it, is measured too. `layers` are measured for that one and SAGA's; none: all of
    them where the true regions are known, else ℓ alone. `num_pairs` pairs are drawn with `seed`.
    """
    config = next(iter(runs.values()))[0].config
    benchmark = run_benchmark(config)
    vocabulary = load_vocabulary(benchmark.vocabulary)
    tower, supervisor = load_frozen(config)
    pairs, same = draw_disjoint_pairs(benchmark.test.labels, num_pairs, np.random.default_rng(seed))
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
    return HeldOut(benchmark.test, indices, same, list(vocabulary.attribute_names), ell, seeds, towers, beta, regions, tower.image_fit)


# --------------------------------------------------------------------------------------------- the true regions


@dataclass(frozen=True)
class Regions:
    """Where the renderer drew each attribute. Boxes are (x0, y0, x1, y1) in pixels of the image, covers the fraction of a patch inside."""

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
    """Return the regions of some images on a grid of side×side patches; None where they are unknown (photographs)."""
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


def pointing_hits(maps: np.ndarray, patches: np.ndarray) -> np.ndarray:
    """Return (N, A, A) whether the largest value of the map of attribute i lies in the region of attribute j.

    maps (N, A, Np), patches (N, A, Np) bool. NaN where the map or the region is missing. The diagonal is the pointing game;
    the rest is what the maps of the other attributes score on the same region.
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
