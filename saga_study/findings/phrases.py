"""Images found by words: what the frozen model reads from the tokens of each tower, and what one search finds by a learnt map.

A phrase is a set of attribute values. Reading scores an image by log p(phrase | image) − log p(phrase): the frozen model's log-probability
of the values at the places where a description of the image names them, against its mean over training images, which is the same for all
images of a gallery and so changes no order. A search compares embeddings with one direction per phrase (`saga_study.deploy.words`).
Shapes: N images of the gallery, Q phrases, S training seeds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from saga_lib.datasets.splits import Split
from saga_lib.records import Run
from saga_lib.vocabulary import Vocabulary
from saga_study.datasets.loading import run_benchmark
from saga_study.deploy.words import Descriptions, WordMap
from saga_study.findings.samples import POOLED, bootstrap_points, by_seed
from saga_study.findings.words import NOTHING, SIDES, Interval, label, mean_and_std, seed_remark, short_name

if TYPE_CHECKING:
    from torch import Tensor

    from saga_lib.encoder import Encoder
    from saga_lib.towers import VisualTokens

K = 10  # of precision@K
MOST = 60  # phrases of each size above one word
READ, SEARCHED = "read by the frozen model", "one search by a learnt map"
SHUFFLED, FROM_LABELS = "map from shuffled descriptions", "map from the attributes of training classes"
WAYS = (READ, SEARCHED, SHUFFLED, FROM_LABELS)
CHANCE = "chance"
BEFORE = "pre-trained"
ALL_SIZES = "all"
FLOOR = 1e-12  # of a probability, before its logarithm
METRICS = {way: f"mAP of words, {way}" for way in (READ, SEARCHED)}  # names in the table of differences
ON_BEST = ("infonce", "infonce_anchor", "saga_infonce", "contrast_infonce", "oracle_infonce")  # the loss that retrieves best, and on it
REWARD = (("saga_pf", "pf"), ("saga_pf", "saga_shuffled_in_group"))  # the loss that the shuffled control is built on

Phrase = tuple[tuple[str, str], ...]  # (attribute, value) pairs, in the vocabulary's order

# ------------------------------------------------------------------------------------------------- phrases and scores


def say(phrase: Phrase) -> str:
    """Return a phrase as people write it, such as "red crown color and barred wing pattern"."""
    return " and ".join(f"{value} {attribute}" for attribute, value in phrase)


def first_images(split: Split, per_class: int) -> Split:
    """Return a split with the first images of each class, at most `per_class`; 0: all of them."""
    rows = np.concatenate([np.flatnonzero(split.labels == c)[: per_class or None] for c in range(len(split.class_names))])
    paths = [split.paths[row] for row in rows]
    return Split(split.name, paths, split.labels[rows], split.class_names, split.class_attributes, split.crop_bottom)


def draw_phrases(vocabulary: Vocabulary, classes: Sequence[Mapping[str, str]], most: int = MOST, seed: int = 0) -> list[Phrase]:
    """Return phrases of one, two and three values that some of the classes have, but not all.

    Of one value all there are, of two and three at most `most` each, drawn evenly among the different ones there are.
    """
    rng, phrases = np.random.default_rng(seed), []
    for size in (1, 2, 3):
        chosen = combinations(vocabulary.attribute_names, size)
        there = [tuple((name, own[name]) for name in names) for names in chosen for own in classes]
        counts = dict.fromkeys(there, 0)
        for phrase in there:
            counts[phrase] += 1
        known = [phrase for phrase, count in counts.items() if count < len(classes)]
        phrases += known if size == 1 else [known[n] for n in rng.permutation(len(known))[:most]]
    return phrases


def relevant_images(phrases: Sequence[Phrase], split: Split) -> np.ndarray:
    """Return (Q, N) bool: whether an image's class has all values of a phrase."""
    of_class = np.array([[all(own[name] == value for name, value in phrase) for own in split.class_attributes] for phrase in phrases])
    return of_class[:, split.labels]


def reading_scores(read: Descriptions, before: Descriptions, phrases: Sequence[Phrase]) -> np.ndarray:
    """Return (Q, N) log p(phrase | image) − log p(phrase) in nats; `before` are readings of training images, whose mean is p(phrase).

    The values of a phrase count as independent given the image: each is read at its own place of the same answer.
    """
    columns = {pair: n for n, pair in enumerate((name, value) for name, own in read.values.items() for value in own)}
    gains = np.log(read.matrix().clip(FLOOR)) - np.log(before.matrix().mean(0).clip(FLOOR))  # (N, V)
    return np.stack([gains[:, [columns[pair] for pair in phrase]].sum(1) for phrase in phrases])


def average_precisions(scores: np.ndarray, relevant: np.ndarray) -> np.ndarray:
    """Return (Q,) the average precision, in 0-1, of each phrase's ranking by scores (Q, N); every phrase has an image.

    As scikit-learn's, whose checks take ten times as long as the numbers: equal scores count as one step of the ranking.
    """
    found = []
    for order, row, truth in zip(np.argsort(-scores, 1, kind="stable"), scores, relevant, strict=True):
        ends = np.flatnonzero(np.diff(row[order], append=-np.inf))  # the last image of each step
        hits = truth[order].cumsum()[ends]
        found.append(np.diff(hits, prepend=0) @ (hits / (ends + 1)) / hits[-1])
    return np.array(found)


def precisions(scores: np.ndarray, relevant: np.ndarray, k: int = K) -> np.ndarray:
    """Return (Q,) which share, in 0-1, of the k images of highest score has the phrase; equal scores rank by the lower number."""
    best = np.argsort(-scores, 1, kind="stable")[:, :k]
    return np.take_along_axis(relevant, best, 1).mean(1)


# ------------------------------------------------------------------------------------------------------- measuring


@dataclass
class Words:
    """What phrases find in one benchmark's gallery of unseen classes, by method; AP and P@K are shares 0-1."""

    dataset: str
    phrases: list[Phrase]
    relevant: np.ndarray  # (Q, N) bool
    ap: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)  # way -> method -> (S, Q)
    at_k: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)  # likewise
    runs: dict[str, list[Run]] = field(default_factory=dict)
    costs: dict[str, float] = field(default_factory=dict)  # seconds, see `cost_table`
    best: dict[str, dict[Phrase, list[int]]] = field(default_factory=dict)  # way -> phrase -> its K best images by the example's method
    example: str = ""  # the method of `best`
    split: Split | None = None

    @property
    def sizes(self) -> np.ndarray:
        """(Q,) how many values each phrase has."""
        return np.array([len(phrase) for phrase in self.phrases])


def measure_words(
    runs: Mapping[str, Sequence[Run]], images_per_class: int, example: str = "", most: int = MOST, draw: int = 0
) -> Words | None:
    """Score phrases in the gallery of one benchmark, `images_per_class` of its test images (0: all), under every method and seed.

    The map is learnt from training images: what the frozen model reads from them through the tower that it came with, so that the map
    lacks nothing when training has ruined the trained one, and the embeddings of the trained encoder. Its two references are learnt from
    the same readings dealt out to other images, and from the true attributes of the training classes. `example`: the method whose best
    images are kept to be shown. None where the true attributes of images are not known.
    """
    from saga_lib.datasets.pixels import PixelStore
    from saga_lib.reading import Reader, read_split
    from saga_lib.towers import autocast
    from saga_lib.vocabulary import load_vocabulary
    from saga_study.findings.attention_maps import load_frozen

    config = next(iter(runs.values()))[0].config
    benchmark = run_benchmark(config)
    if benchmark.test.class_attributes is None:
        return None
    vocabulary = load_vocabulary(benchmark.vocabulary)
    gallery, train = first_images(benchmark.test, images_per_class), benchmark.train
    own_tower, supervisor = load_frozen(config)
    reader, values, device = Reader(supervisor, vocabulary), {a.name: a.values for a in vocabulary.attributes}, supervisor.device
    clock = time.process_time if device.type == "cpu" else time.perf_counter  # the former does not count what else the machine does
    pixels = {split.name: PixelStore(split, own_tower) for split in (train, gallery)}
    started = clock()
    said = Descriptions(values, read_split(reader, own_tower, pixels[train.name], device))
    describing = clock() - started
    taught = _what_maps_learn(said, train, draw)
    phrases = draw_phrases(vocabulary, gallery.class_attributes, most, draw)
    found = Words(config.dataset, phrases, relevant_images(phrases, gallery), split=gallery)
    found.example = example if example in runs else next(iter(runs))
    for method, group in tqdm(runs.items(), desc=f"{config.dataset}, words", unit="method", leave=False):
        found.runs[method] = by_seed(group)
        scores: dict[str, list[np.ndarray]] = {way: [] for way in WAYS}
        for run in found.runs[method]:
            encoder = run.encoder().to(device)
            started = clock()
            pooled: list[np.ndarray] = []
            read = Descriptions(values, read_split(reader, _pooling_too(encoder, pooled), pixels[gallery.name], device))
            reading = clock() - started
            scores[READ].append(reading_scores(read, said, phrases))
            parts = {gallery.name: np.concatenate(pooled)}
            with autocast(device):
                parts[train.name] = np.concatenate([encoder.embed_pixels(part) for part in pixels[train.name].chunks(64)])
            started, queries = clock(), {}
            for way, descriptions in taught.items():
                queries[way] = WordMap.learn(descriptions, parts[train.name]).embed(map(dict, phrases))
                scores[way].append(queries[way] @ parts[gallery.name].T)
            learning = (clock() - started) / len(taught)
            if method == found.example and not found.costs:
                found.costs = {"describe": describing, "learn": learning, "read": reading, "images": len(gallery), "train": len(train)}
                found.costs |= _query_seconds(read, said, phrases, queries[SEARCHED], parts[gallery.name], clock)
        for way in WAYS:
            found.ap.setdefault(way, {})[method] = np.stack([average_precisions(one, found.relevant) for one in scores[way]])
            found.at_k.setdefault(way, {})[method] = np.stack([precisions(one, found.relevant) for one in scores[way]])
        if method == found.example:
            found.best = {way: _best_images(phrases, scores[way][0]) for way in (READ, SEARCHED)}
    return found


def _what_maps_learn(said: Descriptions, train: Split, draw: int) -> dict[str, Descriptions]:
    """Return what the map and its two references learn from: what was said, the same of other images, and the truth."""
    order = np.random.default_rng(draw).permutation(len(train))
    from_labels = [
        np.array([[of[name] == value for value in own] for of in train.class_attributes], np.float32)[train.labels]
        for name, own in said.values.items()
    ]  # fmt: skip
    shuffled = Descriptions(said.values, [p[order] for p in said.shares])
    return {SEARCHED: said, SHUFFLED: shuffled, FROM_LABELS: Descriptions(said.values, from_labels)}


def _best_images(phrases: Sequence[Phrase], scores: np.ndarray) -> dict[Phrase, list[int]]:
    return dict(zip(phrases, np.argsort(-scores, 1, kind="stable")[:, :K].tolist(), strict=True))


def first_of_each_size(found: Words) -> list[Phrase]:
    """Return the first phrase of each number of values, in the order drawn."""
    return [next(phrase for phrase in found.phrases if len(phrase) == size) for size in np.unique(found.sizes)]


def _pooling_too(encoder: Encoder, pooled: list[np.ndarray]) -> Callable[[Tensor], VisualTokens]:
    """Return an encoder's tower that adds the embeddings (n, D_e) of each chunk to `pooled`: tower and reading are what takes time."""

    def tower(pixels: Tensor) -> VisualTokens:
        tokens = encoder.tower(pixels)
        pooled.append(encoder.pooler(tokens.merged)[0].float().cpu().numpy())
        return tokens

    return tower


def _query_seconds(
    read: Descriptions, said: Descriptions, phrases: Sequence[Phrase], queries: np.ndarray, gallery: np.ndarray, clock: Callable[[], float]
) -> dict[str, float]:
    """Return seconds per phrase, asked one by one: of the kept readings of a gallery, and of a search in an exact index of it."""
    from saga_study.deploy.index import Index

    index = Index.from_embeddings(gallery, [f"{n}.png" for n in range(len(gallery))])
    started = clock()
    for phrase in phrases:
        np.argsort(-reading_scores(read, said, [phrase]), 1)
    kept = clock() - started
    started = clock()
    for query in queries:
        index.search(query[None], K)
    return {"kept": kept / len(phrases), "search": (clock() - started) / len(phrases)}


# --------------------------------------------------------------------------------------------------------- tables


def word_table(found: Sequence[Words]) -> pd.DataFrame:
    """Return a row per benchmark, method, way and size of phrases (`ALL_SIZES` first): mAP and P@K in %, means over seeds.

    Columns: benchmark, method, label, way, words, mAP, mAP std, P@10, P@10 std (over seeds; NaN of one), chance (% of the gallery that has
    a phrase, the mAP of a random order in the limit), queries, images, seeds, runs.
    """
    rows = []
    for one in found:
        shares = 100 * one.relevant.mean(1)
        for method, runs in one.runs.items():
            for way in WAYS:
                for size in (ALL_SIZES, *np.unique(one.sizes).tolist()):
                    chosen = np.ones(len(one.sizes), bool) if size == ALL_SIZES else one.sizes == size
                    row = {"benchmark": one.dataset, "method": method, "label": label(method), "way": way, "words": size}
                    for name, values in (("mAP", one.ap[way][method]), (f"P@{K}", one.at_k[way][method])):
                        means = 100 * values[:, chosen].mean(1)
                        row |= {name: means.mean(), f"{name} std": means.std(ddof=1) if len(means) > 1 else float("nan")}
                    row |= {"chance": shares[chosen].mean(), "queries": int(chosen.sum()), "images": one.relevant.shape[1]}
                    rows.append(row | {"seeds": len(runs), "runs": " ".join(run.key for run in runs)})
    columns = ["benchmark", "method", "label", "way", "words", "mAP", "mAP std", f"P@{K}", f"P@{K} std", "chance", "queries", "images",
               "seeds", "runs"]  # fmt: skip
    return pd.DataFrame(rows, columns=columns)


def difference_table(found: Sequence[Words], base: str) -> pd.DataFrame:
    """Return differences of mAP in points with 95 % intervals over phrases and seeds.

    What training does to words (against the pre-trained tower), whether what is added to `base` does (a row of `ON_BEST`), whether it is
    the reward (`REWARD`), then the learnt map against the one from shuffled descriptions. Each on every benchmark and, where several
    have it, on all (`POOLED`). Columns: label, method, against, benchmark, metric (`METRICS`), difference, low, high, seeds.
    """
    rows = []
    pairs = [*((method, BEFORE) for method in ("pf", *ON_BEST)), *((method, base) for method in ON_BEST if method != base), *REWARD]
    for way, metric in METRICS.items():
        for method, against in pairs:
            sides = {one.dataset: (one.ap[way].get(method), one.ap[way].get(against)) for one in found}
            rows += _difference_rows(method, against, f"{label(method)} − {label(against)}", metric, sides)
    for method in dict.fromkeys(method for one in found for method in one.runs):
        sides = {one.dataset: (one.ap[SEARCHED].get(method), one.ap[SHUFFLED].get(method)) for one in found}
        rows += _difference_rows(method, SHUFFLED, f"{label(method)}: own − shuffled descriptions", METRICS[SEARCHED], sides)
    columns = ["label", "method", "against", "benchmark", "metric", *Interval._fields, "seeds"]
    return pd.DataFrame(rows, columns=columns)


def _difference_rows(
    method: str, against: str, name: str, metric: str, sides: Mapping[str, tuple[np.ndarray | None, np.ndarray | None]]
) -> list[dict[str, object]]:
    known = {place: pair for place, pair in sides.items() if pair[0] is not None and pair[1] is not None}
    groups = {place: [pair] for place, pair in known.items()} | ({POOLED: list(known.values())} if len(known) > 1 else {})
    return [
        {"label": name, "method": method, "against": against, "benchmark": place, "metric": metric, **bootstrap_points(pairs)._asdict(),
         "seeds": min(len(side) for pair in pairs for side in pair)}
        for place, pairs in groups.items()
    ]  # fmt: skip


def cost_table(found: Sequence[Words]) -> pd.DataFrame:
    """Return what each way costs: once for a gallery, and per query, in milliseconds of one process."""
    rows = []
    for one in found:
        if not one.costs:
            continue
        c, place = one.costs, short_name(one.dataset)
        once = f"{c['read']:.1f} s for {c['images']:.0f} images"
        learnt = f"{c['describe']:.1f} s to describe {c['train']:.0f} training images, {1000 * c['learn']:.0f} ms to learn"
        rows += [
            {"benchmark": place, "way": f"{READ}, anew for every query", "once": NOTHING, "ms per query": f"{1000 * c['read']:,.0f}"},
            {"benchmark": place, "way": f"{READ}, readings kept", "once": once, "ms per query": f"{1000 * c['kept']:.2g}"},
            {"benchmark": place, "way": SEARCHED, "once": learnt, "ms per query": f"{1000 * c['search']:.2g}"},
        ]
    return pd.DataFrame(rows if rows else [{"way": "nothing was measured"}])


def display_words(table: pd.DataFrame, profile: str, words: object = ALL_SIZES) -> pd.DataFrame:
    """Return phrases of one size as text: a row per benchmark and method, mAP and P@10 in % of each way, and chance."""
    rows = []
    for (benchmark, method), group in table[table["words"] == words].groupby(["benchmark", "method"], sort=False):
        first = group.iloc[0]
        row = {"benchmark": short_name(benchmark), "method": label(method), f"seeds ({profile})": first["seeds"]}
        for one in group.to_dict("records"):
            for name in ("mAP", f"P@{K}") if one["way"] in METRICS else ("mAP",):
                row[f"{name} %, {one['way']}"] = mean_and_std(one, name)
        rows.append(row | {"chance, mAP %": f"{first['chance']:.1f}"})
    return pd.DataFrame(rows if rows else [{"method": "no images whose true attributes are known"}])


def display_sizes(table: pd.DataFrame) -> pd.DataFrame:
    """Return mAP (%) by the number of words in a phrase, read / searched / chance, a row per benchmark and method."""
    rows = []
    for (benchmark, method), group in table[table["words"] != ALL_SIZES].groupby(["benchmark", "method"], sort=False):
        row = {"benchmark": short_name(benchmark), "method": label(method)}
        for size, own in group.groupby("words", sort=True):
            of = own.set_index("way")
            name = f"{size} value{'s' if size > 1 else ''} ({of['queries'].iloc[0]} phrases)"
            row[name] = f"{of.loc[READ, 'mAP']:.1f} / {of.loc[SEARCHED, 'mAP']:.1f} / {of['chance'].iloc[0]:.1f}"
        rows.append(row)
    return pd.DataFrame(rows if rows else [{"method": "nothing was measured"}]).fillna(NOTHING)


def display_differences(table: pd.DataFrame) -> pd.DataFrame:
    """Return differences as text: a row per pair, a column per way and benchmark, points of mAP [95 %]."""
    rows = []
    for name, group in table.groupby("label", sort=False):
        row = {"difference": name}
        for one in group.to_dict("records"):
            place = "all" if one["benchmark"] == POOLED else short_name(one["benchmark"])
            row[f"{one['metric'].removeprefix('mAP of words, ')}, {place}"] = Interval.of(one).text()
        rows.append(row)
    return pd.DataFrame(rows if rows else [{"difference": "no pair"}]).fillna(NOTHING)


# ---------------------------------------------------------------------------------------------------------- texts

NOT_MEASURED = (
    "Nothing is measured here: whether an image has what a phrase says must be known, and of photographs it is not. CUB-200-2011 has "
    "annotated attributes, but the paper's vocabularies have no values to hold them against, and this study does not read them; the other "
    "datasets have none."
)


def main_place(table: pd.DataFrame) -> str:
    """Return what differences are summed up by: all benchmarks together, or else the first."""
    return POOLED if (table["benchmark"] == POOLED).any() else str(next(iter(table["benchmark"]), ""))


def word_sentences(table: pd.DataFrame, changes: pd.DataFrame) -> list[str]:
    """Return what `word_table` and `difference_table` say, by the intervals of `main_place`."""
    if table.empty:
        return [NOT_MEASURED]
    said = []
    for benchmark, group in table[table["words"] == ALL_SIZES].groupby("benchmark", sort=False):
        means = group.pivot(index="method", columns="way", values="mAP").loc[list(dict.fromkeys(group["method"]))]
        shown = "; ".join(f"{label(method)} {row[READ]:.1f} / {row[SEARCHED]:.1f}" for method, row in means.iterrows())
        said.append(f"{short_name(benchmark)}, mAP in % (read / searched; chance {group['chance'].iloc[0]:.1f}): {shown}.")
    place = main_place(changes)
    own = changes[changes["benchmark"] == place]
    where = "all benchmarks" if place == POOLED else short_name(place)
    for (metric, against), group in own.groupby(["metric", "against"], sort=False):
        sides = {side: [_told(row) for row in group.to_dict("records") if Interval.of(row).side() == side] for side in (1, 0, -1)}
        parts = [f"{SIDES[side]} it: {'; '.join(names)}" for side, names in sides.items() if names]
        if parts:
            said.append(f"{metric}, points to {label(against)} on {where}. {'. '.join(part[:1].upper() + part[1:] for part in parts)}.")
    if len(own):
        said.append(seed_remark(own["seeds"], "phrases", f", {where}"))
        said.append("Phrases share values with each other, so that they are fewer independent ones than there are.")
    return said


def _told(row: Mapping[str, object]) -> str:
    return f"{label(row['method'])} {Interval.of(row).text()}"
