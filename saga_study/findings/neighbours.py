"""Nearest neighbours under several methods (the paper's Figure 5): finding them, choosing example queries, counting hits.

Every test image is a query among all the others. A neighbour of the query's class is a hit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from saga_lib.datasets.splits import Split
from saga_lib.retrieval import nearest_neighbours
from saga_study.datasets.loading import run_benchmark
from saga_study.findings.words import NOTHING, seeds_in_words
from saga_study.methods import METHOD_LABELS

if TYPE_CHECKING:
    from saga_lib.records import Run

K = 5  # neighbours of a query, as in Figure 5
QUERY_KINDS = {  # least and most hits among the K neighbours; the first two are the paper's
    "4–5 hits": (4, 5), "1–3 hits": (1, 3), "no hit": (0, 0),
}  # fmt: skip
JUDGES = ("saga_pf", "pf_grpo", "pf")  # queries are chosen by the hits of the first of these methods that was run


@dataclass(frozen=True)
class Neighbours:
    """The K nearest test images of every test image under several methods, best first, for each of a method's S training seeds.

    Images are shown of the first seed; hits are counted over all seeds.
    """

    split: Split
    by_seed: dict[str, np.ndarray]  # method -> (S, N, K) into the split
    similarities: dict[str, np.ndarray]  # method -> (N, K) cosine, of the first seed
    recorded: dict[str, float]  # method -> fraction of queries whose first neighbour hits or misses as the run recorded; least of seeds

    @property
    def indices(self) -> dict[str, np.ndarray]:
        """Return, by method, the (N, K) neighbours of the first seed."""
        return {method: indices[0] for method, indices in self.by_seed.items()}

    @property
    def judge(self) -> str:
        """The method by whose hits example queries are chosen."""
        return next((method for method in JUDGES if method in self.by_seed), next(iter(self.by_seed)))

    def all_hits(self, method: str) -> np.ndarray:
        """Return (S, N, K) bool: which neighbours are of the query's class."""
        return self.split.labels[self.by_seed[method]] == self.split.labels[:, None]

    def hits(self, method: str) -> np.ndarray:
        """Return (N, K) bool: which neighbours of the first seed are of the query's class."""
        return self.all_hits(method)[0]


def find_neighbours(runs: Mapping[str, Sequence[Run]], k: int = K) -> Neighbours:
    """Embed the test images of a benchmark with the encoder of every run, by method and seed, and find each image's k nearest others."""
    import torch

    from saga_lib.datasets.pixels import PixelStore
    from saga_lib.towers import autocast

    split = run_benchmark(next(iter(runs.values()))[0].config).test
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    by_seed, similarities, recorded, store = {}, {}, {}, None
    for method, group in runs.items():
        found, agreements = [], []
        for run in tqdm(group, desc=f"embedding, {method}", unit="seed", leave=False):
            encoder = run.encoder().to(device)
            store = store or PixelStore(split, encoder.tower)  # towers of one benchmark's runs prepare images alike
            with autocast(device):
                parts = [encoder.embed_pixels(pixels) for pixels in store.chunks(64)]
            found.append(nearest_neighbours(np.concatenate(parts), k))
            first = split.labels[found[-1][0][:, 0]] == split.labels
            agreements.append(float((first == run.hits).mean()) if len(run.hits) == len(first) else float("nan"))
        by_seed[method], similarities[method] = np.stack([indices for indices, _ in found]), found[0][1]
        recorded[method] = float(np.min(agreements))
    return Neighbours(split, by_seed, similarities, recorded)


# -------------------------------------------------------------------------------------------------- which queries


def choose_examples(found: Neighbours, seed: int) -> dict[str, int]:
    """Return one query of each of `QUERY_KINDS` that occurs, chosen by a rule and not by eye.

    All test images are put in a random order (`seed`). Of each kind, the first query whose class has none yet is taken. Hits are
    those of the method `found.judge`.
    """
    counts = found.hits(found.judge)[:, :K].sum(1)
    chosen: dict[str, int] = {}
    classes: set[int] = set()
    order = np.random.default_rng(seed).permutation(len(counts)).tolist()
    for kind, (least, most) in QUERY_KINDS.items():
        for query in order:
            if least <= counts[query] <= most and int(found.split.labels[query]) not in classes:
                chosen[kind] = query
                classes.add(int(found.split.labels[query]))
                break
    return chosen


def draw_queries(found: Neighbours, count: int, seed: int) -> list[int]:
    """Return the queries of a page: the examples, then images in the same random order; no class comes twice before each came once."""
    examples = list(choose_examples(found, seed).values())
    order = [q for q in np.random.default_rng(seed).permutation(len(found.split)).tolist() if q not in examples]
    seen: dict[int, int] = {}
    turns = []
    for query in order:
        label = int(found.split.labels[query])
        turns.append(seen.get(label, 0))
        seen[label] = turns[-1] + 1
    return [*examples, *(order[i] for i in np.argsort(turns, kind="stable"))][:count]


def example_table(found: Neighbours, examples: Mapping[str, int]) -> pd.DataFrame:
    """Return one row per example query: its class and its hits among the K nearest under every method."""
    rows = []
    for kind, query in examples.items():
        row = {"chosen as": kind, "query": query, "class": found.split.class_names[found.split.labels[query]]}
        row |= {METHOD_LABELS[m]: f"{int(found.hits(m)[query].sum())} of {found.indices[m].shape[1]}" for m in found.indices}
        rows.append(row)
    return pd.DataFrame(rows)


def hit_table(found: Neighbours) -> pd.DataFrame:
    """Return one row per method: how many of all test queries are of each kind, so that nobody takes the examples for typical.

    Means over seeds; of several, "spread of hits" is the standard deviation of their mean hits.
    """
    rows = []
    for method in found.by_seed:
        counts = found.all_hits(method)[..., :K].sum(-1)  # (S, N)
        means = counts.mean(1)
        row = {"method": METHOD_LABELS[method], "queries": counts.shape[1], "seeds": len(counts)}
        row["mean hits of 5"] = round(float(means.mean()), 2)
        row["spread of hits"] = f"{means.std(ddof=1):.2f}" if len(means) > 1 else NOTHING
        for kind, (least, most) in QUERY_KINDS.items():
            row[f"{kind} (%)"] = round(100 * float(((counts >= least) & (counts <= most)).mean()), 1)
        rows.append(row)
    return pd.DataFrame(rows)


def conclusions(found: Neighbours) -> list[str]:
    """Return per method how many queries are right at rank 1 and, where attributes are known, in how many of them wrong neighbours differ.

    With several seeds, a query counts once for each.
    """
    sentences, split = [], found.split
    for method, by_seed in found.by_seed.items():
        first = found.all_hits(method)[..., 0]  # (S, N)
        text = f"{METHOD_LABELS[method]}: the nearest neighbour is right for {100 * first.mean():.1f} % of {first.shape[1]} queries"
        text += f" ({seeds_in_words([len(first)])})" if len(first) > 1 else ""
        wrong = np.argwhere(~first)
        if split.class_attributes is not None and len(wrong):
            pairs = [(split.attributes(int(q)), split.attributes(int(by_seed[seed, q, 0]))) for seed, q in wrong]
            counts = np.array([sum(one[name] != two[name] for name in one) for one, two in pairs])
            names = pd.Series([name for one, two in pairs for name in one if one[name] != two[name]]).value_counts()
            one, two = (100 * (counts == number).mean() for number in (1, 2))
            text += (
                f"; of the wrong ones {one:.0f} % differ in one attribute, {two:.0f} % in two; "
                f"most often in {names.index[0]} ({100 * names.iloc[0] / len(wrong):.0f} %)"
            )
        sentences.append(text + ".")
    return sentences
