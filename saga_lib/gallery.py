"""Nearest neighbours of example queries under several methods (Figure 5): which queries, and a page to click through.

Test images are queries and gallery at once; a query is left out of its own list. A neighbour of the query's class is a hit.
"""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import Template
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from PIL import Image
from tqdm.auto import tqdm

from saga_lib.comparisons import seeds_in_words
from saga_lib.config import METHOD_LABELS
from saga_lib.datasets import Split, run_benchmark
from saga_lib.errors import SagaError
from saga_lib.retrieval import nearest_neighbours
from saga_lib.tables import NOTHING

if TYPE_CHECKING:
    from saga_lib.runs import Run

K = 5  # neighbours shown, as in Figure 5
MAX_BYTES = 1_500_000  # of a page
THUMBNAIL = 72  # pixels, at most
KINDS = {  # of a query, by its hits among 5 neighbours; the first two are the paper's
    "4–5 hits": (4, 5), "1–3 hits": (1, 3), "no hit": (0, 0),
}  # fmt: skip
JUDGES = ("saga_pf", "pf_grpo", "pf")  # the method by whose hits queries are chosen: the first of these that there is


@dataclass(frozen=True)
class Neighbours:
    """The K nearest test images of every test image under several methods, best first, for each of a method's S training seeds.

    What is shown is shown of the first seed; what is counted is counted over all of them.
    """

    split: Split
    by_seed: dict[str, np.ndarray]  # method -> (S, N, K) into the split
    similarities: dict[str, np.ndarray]  # method -> (N, K) cosine, of the first seed
    recorded: dict[str, float]  # method -> fraction of queries whose first neighbour hits or misses as the run's record says, at least

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

    from saga_lib.training import PixelStore, autocast

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
    """Return one query of each of `KINDS` that occurs, by rule: nobody's taste is asked.

    All test images are put in a random order (`seed`); of each kind the first query is taken whose class has none yet. Hits are
    counted under `found.judge`.
    """
    counts = found.hits(found.judge)[:, :K].sum(1)
    chosen: dict[str, int] = {}
    classes: set[int] = set()
    order = np.random.default_rng(seed).permutation(len(counts)).tolist()
    for kind, (least, most) in KINDS.items():
        for query in order:
            if least <= counts[query] <= most and int(found.split.labels[query]) not in classes:
                chosen[kind] = query
                classes.add(int(found.split.labels[query]))
                break
    return chosen


def draw_queries(found: Neighbours, count: int, seed: int) -> list[int]:
    """Return a page's queries: the examples, then images in the same random order, a class once before any comes twice."""
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
    """Return one row per method: how many of all test queries are of each kind, so that examples are not taken for the rule.

    Means over seeds; of several, "spread of hits" is the standard deviation of their mean hits.
    """
    rows = []
    for method in found.by_seed:
        counts = found.all_hits(method)[..., :K].sum(-1)  # (S, N)
        means = counts.mean(1)
        row = {"method": METHOD_LABELS[method], "queries": counts.shape[1], "seeds": len(counts)}
        row["mean hits of 5"] = round(float(means.mean()), 2)
        row["spread of hits"] = f"{means.std(ddof=1):.2f}" if len(means) > 1 else NOTHING
        for kind, (least, most) in KINDS.items():
            row[f"{kind} (%)"] = round(100 * float(((counts >= least) & (counts <= most)).mean()), 1)
        rows.append(row)
    return pd.DataFrame(rows)


def conclusions(found: Neighbours) -> list[str]:
    """Return per method how many queries are right at rank 1 and, where the truth is known, how far off wrong first neighbours are.

    Of several seeds, queries count once for each.
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


def differing(split: Split, query: int, other: int) -> str:
    """Return which attributes of two images truly differ, values and all; "" where the truth is not known."""
    if split.class_attributes is None or split.labels[query] == split.labels[other]:
        return ""
    one, two = split.attributes(query), split.attributes(other)
    return ", ".join(f"{name}: {two[name]}, not {one[name]}" for name in one if one[name] != two[name])


# ------------------------------------------------------------------------------------------------------- the page


def thumbnail(image: Image.Image, size: int = THUMBNAIL) -> str:
    """Return an image as a WebP data URI, at most size×size pixels."""
    image = image.convert("RGB")
    image.thumbnail((size, size))
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=72, method=6)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def page(found: Neighbours, queries: Sequence[int], title: str, note: str = "", max_bytes: int = MAX_BYTES) -> tuple[str, int]:
    """Return a self-contained page of some queries under every method, and how many of them fitted into `max_bytes`.

    It needs nothing beside it and no network. The first queries are kept where not all fit; raises `SagaError` if none does.
    """
    from saga_lib.report import CSS  # one look for all pages of the project

    methods = list(found.indices)
    frame = len(_page([], [], methods, title, note, CSS, 0).encode())
    thumbnails, places, entries, size = [], {}, [], frame
    for query in queries:
        wanted = list(dict.fromkeys([query, *(int(i) for m in methods for i in found.indices[m][query])]))
        new = [(i, thumbnail(found.split.open(i))) for i in wanted if i not in places]
        places |= {i: len(thumbnails) + n for n, (i, _) in enumerate(new)}
        entry = _entry(found, query, methods, places)
        cost = sum(len(text) + 3 for _, text in new) + len(_json(entry).encode()) + 1
        if size + cost > max_bytes:
            break
        size, thumbnails, entries = size + cost, [*thumbnails, *(text for _, text in new)], [*entries, entry]
    if not entries:
        raise SagaError(f"not even one query fits into a page of {max_bytes} bytes")
    return _page(thumbnails, entries, methods, title, note, CSS, found.indices[methods[0]].shape[1]), len(entries)


def _entry(found: Neighbours, query: int, methods: Sequence[str], places: Mapping[int, int]) -> dict:
    """Return what the page knows of a query: thumbnail, class, and per method [thumbnail, similarity, hit, class, what differs]."""
    names, labels = found.split.class_names, found.split.labels
    lists = [
        [
            [places[int(i)], round(float(s), 3), int(labels[i] == labels[query]), names[labels[i]], differing(found.split, query, int(i))]
            for i, s in zip(found.indices[method][query], found.similarities[method][query], strict=True)
        ]
        for method in methods
    ]
    return {"image": places[query], "class": names[labels[query]], "number": int(query), "lists": lists}


def _json(content: object) -> str:
    """Return JSON that may stand inside a script element, whatever a class is called."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _page(thumbnails: Sequence[str], entries: Sequence[dict], methods: Sequence[str], title: str, note: str, css: str, k: int) -> str:
    content = {"thumbnails": thumbnails, "queries": entries, "methods": [METHOD_LABELS.get(m, m) for m in methods], "k": k}
    return PAGE.substitute(title=html.escape(title), note=html.escape(note), css=css + STYLE, content=_json(content), script=SCRIPT)


STYLE = """
body { max-width: 1180px; } h1 { margin-bottom: .2rem; }
label { font-weight: 600; } select { font: inherit; padding: .25rem; max-width: 100%; color: var(--text); background: var(--page); }
#strip { display: flex; flex-wrap: wrap; gap: 4px; margin: .6rem 0 1rem; max-height: 12.5rem; overflow-y: auto; padding: 4px; }
#strip button { padding: 2px; border: 2px solid transparent; border-radius: 5px; background: var(--soft); cursor: pointer; line-height: 0; }
#strip button img { width: 44px; height: 44px; object-fit: cover; border-radius: 3px; }
#strip button[aria-selected=true] { border-color: var(--warn-line); background: var(--warn-line); }
:focus-visible { outline: 3px solid var(--link); outline-offset: 2px; }
#query { display: flex; gap: 1rem; align-items: center; } #query img { width: 112px; height: 112px; }
.method { display: grid; grid-template-columns: 10.5rem repeat(var(--k), minmax(0, 1fr)); gap: .5rem; align-items: start;
  border-top: 1px solid var(--line); padding: .6rem 0; }
.method h2 { font-size: 1rem; margin: 0; border: 0; } .method h2 span { display: block; font-weight: 400; font-size: .88rem; }
.method figure { margin: 0; min-width: 0; } .method figcaption { font-size: .82rem; line-height: 1.3; overflow-wrap: anywhere; }
.method img, #query img { object-fit: contain; padding: 0; background: none; border-radius: 4px; }
.method img { width: 100%; max-width: 132px; aspect-ratio: 1; box-sizing: border-box; }
.hit img { border: 4px solid #009e73; } .miss img { border: 4px dashed #d55e00; }
.hit b { color: #00734f; } .miss b { color: #a84300; } small { font-size: .78rem; display: block; }
@media (prefers-color-scheme: dark) { .hit b { color: #3fd6a5; } .miss b { color: #ff9d5c; } }
@media (max-width: 640px) { .method { grid-template-columns: repeat(var(--k), minmax(0, 1fr)); gap: .3rem; }
  .method h2 { grid-column: 1 / -1; } .method h2 span { display: inline; margin-left: .5rem; } small { display: none; }
  .hit img, .miss img { border-width: 3px; } #query img { width: 84px; height: 84px; } body { padding: .7rem; } }
"""

PAGE = Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>$title</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<style>$css</style></head>
<body><h1>$title</h1><p>$note</p>
<noscript><p class="banner">This page needs JavaScript to show neighbours; the figure beside it in the study does not.</p></noscript>
<p><label for="filter">Queries </label><select id="filter"></select> <span id="count" role="status"></span></p>
<div id="strip" role="listbox" aria-label="Queries; arrow keys move" aria-orientation="horizontal"></div>
<section id="query" aria-live="polite"></section>
<div id="methods"></div>
<p>✓ with a solid green border: of the query's class. ✗ with a dashed red border: of another. “Right” means that the nearest
neighbour is of the query's class. Numbers are cosine similarities; those of two methods do not compare.</p>
<script id="content" type="application/json">$content</script>
<script>$script</script>
</body></html>
""")

SCRIPT = """
"use strict";
const content = JSON.parse(document.getElementById("content").textContent);
const $ = (id) => document.getElementById(id);
const right = (query, method) => query.lists[method][0][2] === 1;
const filters = [["all", () => true]];
content.methods.forEach((a, i) => content.methods.forEach((b, j) => {
  if (i !== j) filters.push([`${a} right, ${b} wrong`, (q) => right(q, i) && !right(q, j)]);
}));
if (content.methods.length > 1) filters.push(["every method right", (q) => q.lists.every((_, m) => right(q, m))]);
filters.push(["no method right", (q) => q.lists.every((_, m) => !right(q, m))]);
filters.push([`no method has a hit among ${content.k}`, (q) => q.lists.every((list) => list.every((n) => !n[2]))]);
let shown = [], chosen = -1;

function element(tag, attributes, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

function picture(place, text) {
  return element("img", { src: content.thumbnails[place], alt: text });
}

function choose(number, focus) {
  chosen = number;
  for (const button of $("strip").children) {
    const is = Number(button.dataset.query) === number;
    button.setAttribute("aria-selected", is);
    button.tabIndex = is ? 0 : -1;
    if (is && focus) button.focus();
  }
  $("query").replaceChildren();
  $("methods").replaceChildren();
  if (number < 0) return;
  const query = content.queries[number];
  $("query").append(picture(query.image, `query, ${query.class}`),
    element("p", {}, element("strong", {}, query.class), document.createElement("br"), `query ${query.number} of the test images`));
  query.lists.forEach((list, method) => {
    const hits = list.filter((n) => n[2]).length;
    const row = element("div", { class: "method", style: `--k: ${list.length}` },
      element("h2", {}, content.methods[method], element("span", {}, `${hits} of ${list.length} of its class`)));
    list.forEach(([place, similarity, hit, name, differs], rank) => {
      const mark = hit ? "✓" : "✗";
      const caption = element("figcaption", {}, element("b", {}, `${mark} ${similarity.toFixed(3)}`), document.createElement("br"), name);
      if (differs) caption.append(element("small", {}, differs));
      row.append(element("figure", { class: hit ? "hit" : "miss" },
        picture(place, `neighbour ${rank + 1}, ${hit ? "same class" : "other class"}, ${name}`), caption));
    });
    $("methods").append(row);
  });
  history.replaceState(null, "", `#${query.number}`);
}

function filter(keep) {
  const test = filters[$("filter").selectedIndex][1];
  shown = content.queries.map((_, i) => i).filter((i) => test(content.queries[i]));
  $("strip").replaceChildren(...shown.map((i) => {
    const query = content.queries[i];
    const named = { "data-query": i, "aria-label": `query ${query.number}, ${query.class}` };
    const button = element("button", { type: "button", role: "option", ...named }, picture(query.image, ""));
    button.addEventListener("click", () => choose(i, true));
    return button;
  }));
  $("count").textContent = `${shown.length} of ${content.queries.length} queries`;
  choose(shown.includes(keep) ? keep : shown.length ? shown[0] : -1, false);
}

$("strip").addEventListener("keydown", (event) => {
  const at = shown.indexOf(chosen), last = shown.length - 1;
  const to = { ArrowRight: at + 1, ArrowDown: at + 1, ArrowLeft: at - 1, ArrowUp: at - 1, Home: 0, End: last }[event.key];
  if (to === undefined) return;
  event.preventDefault();
  choose(shown[Math.max(0, Math.min(last, to))], true);
});
filters.forEach(([name]) => $("filter").append(element("option", {}, name)));
$("filter").addEventListener("change", () => filter(chosen));
const linked = content.queries.findIndex((query) => `#${query.number}` === location.hash);
filter(Math.max(0, linked));
"""
