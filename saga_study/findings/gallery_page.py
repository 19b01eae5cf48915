"""Query and neighbours as a page to click through."""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Mapping, Sequence
from string import Template

from PIL import Image

from saga_lib.common.errors import SagaError
from saga_lib.datasets.splits import Split
from saga_study.findings.neighbours import Neighbours
from saga_study.methods import METHOD_LABELS

MAX_BYTES = 1_500_000  # of a page
THUMBNAIL = 72  # pixels, at most


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
    from saga_study.findings.page import CSS  # one look for all pages of the project

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
