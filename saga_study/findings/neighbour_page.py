"""A page to click through: queries and their nearest neighbours under several methods."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence

from jinja2.utils import htmlsafe_json_dumps
from PIL import Image

from saga_lib.common.errors import SagaError
from saga_lib.datasets.splits import Split
from saga_study.findings.names import readable
from saga_study.findings.neighbours import Neighbours
from saga_study.findings.page import data_uri, render
from saga_study.methods import METHOD_LABELS

MAX_BYTES = 1_500_000  # of a page
THUMBNAIL = 72  # pixels, at most


def differing(split: Split, query: int, other: int) -> str:
    """Return the attributes in which two images truly differ, with their values; "" where the truth is not known."""
    if split.class_attributes is None or split.labels[query] == split.labels[other]:
        return ""
    one, two = split.attributes(query), split.attributes(other)
    return ", ".join(f"{name}: {two[name]}, not {one[name]}" for name in one if one[name] != two[name])


def thumbnail(image: Image.Image, size: int = THUMBNAIL) -> str:
    """Return an image as a WebP data URI, at most size×size pixels."""
    image = image.convert("RGB")
    image.thumbnail((size, size))
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=72, method=6)
    return data_uri(buffer.getvalue(), "webp")


def neighbour_page(
    found: Neighbours, queries: Sequence[int], title: str, note: str = "", max_bytes: int = MAX_BYTES
) -> tuple[str, int]:
    """Return a self-contained page of some queries under every method, and how many of them fitted into `max_bytes`.

    It needs nothing beside it and no network. If not all queries fit, the first ones are kept; raises `SagaError` if none fits.
    """
    methods = list(found.indices)
    content = {
        "thumbnails": [], "queries": [], "methods": [METHOD_LABELS.get(method, method) for method in methods],
        "k": found.indices[methods[0]].shape[1],
    }  # fmt: skip
    places, size = {}, len(_render(content, title, note).encode())
    for query in queries:
        wanted = dict.fromkeys([query, *(int(i) for method in methods for i in found.indices[method][query])])
        new = {i: thumbnail(found.split.open(i)) for i in wanted if i not in places}
        places |= {i: len(places) + n for n, i in enumerate(new)}
        entry = _entry(found, query, methods, places)
        size += sum(len(text) + 3 for text in new.values()) + len(script_json(entry).encode()) + 1
        if size > max_bytes:
            break
        content["thumbnails"] += new.values()
        content["queries"].append(entry)
    if not content["queries"]:
        raise SagaError(f"not even one query fits into a page of {max_bytes} bytes")
    return _render(content, title, note), len(content["queries"])


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


def script_json(content: object) -> str:
    """Return JSON, marked as safe, that may be put into a script element whatever a class is called."""
    return readable(htmlsafe_json_dumps(content, json.dumps, ensure_ascii=False, separators=(",", ":")))


def _render(content: dict[str, list], title: str, note: str) -> str:
    return render("neighbours.html", title=title, note=note, content=script_json(content))
