"""Galleries: the right neighbours, queries by the written rule, and a page that works in a real browser without network."""

import json
import re

import numpy as np
import pytest
from browser import chromium
from PIL import Image

from saga_lib.common.errors import SagaError
from saga_lib.datasets import pixels
from saga_lib.datasets.splits import Split
from saga_lib.retrieval import nearest_neighbours
from saga_study.findings import figures, neighbour_page, neighbours
from saga_study.findings.neighbours import QUERY_KINDS, Neighbours
from saga_study.methods import METHOD_LABELS

NASTY = '</script><b>"&'


@pytest.fixture
def split(tmp_path):
    """Sixty noisy images of ten classes with two attributes."""
    rng = np.random.default_rng(0)
    paths = [tmp_path / f"{number}.png" for number in range(60)]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (48, 48, 3), dtype=np.uint8)).save(path)
    attributes = [{"shape": f"s{c % 5}", "colour": f"c{c // 5}"} for c in range(10)]
    return Split("test", paths, np.repeat(np.arange(10), 6), [f"class {c} {NASTY}" for c in range(10)], attributes)


@pytest.fixture
def found(split):
    """Neighbours under two methods, one of which knows more of the classes than the other."""
    rng = np.random.default_rng(1)
    indices, similarities = {}, {}
    for method, signal in (("pf", 0.55), ("saga_pf", 0.9)):
        embeddings = rng.normal(size=(60, 12)) + signal * 2.5 * rng.normal(size=(10, 12))[split.labels]
        indices[method], similarities[method] = nearest_neighbours(embeddings, 5)
    by_seed = {method: found[None] for method, found in indices.items()}
    return Neighbours(split, by_seed, similarities, {"pf": 1.0, "saga_pf": 1.0})


class FakeRun:
    def __init__(self, embeddings, labels):
        self.embeddings, self.config = embeddings, None
        products = embeddings @ embeddings.T
        np.fill_diagonal(products, -np.inf)
        self.order = np.argsort(-products, 1)
        self.hits = labels[self.order[:, 0]] == labels

    def encoder(self):
        run = self

        class Encoder:
            tower, at = None, 0

            def to(self, device):
                return self

            def embed_pixels(self, pixels):
                self.at += len(pixels)
                return run.embeddings[self.at - len(pixels) : self.at]

        return Encoder()


def test_neighbours_are_those_of_brute_force(split, monkeypatch):
    import torch


    class Store:
        def __init__(self, split, tower):
            self.count = len(split)

        def chunks(self, size):
            return iter(torch.zeros(self.count, 1).split(7))

    class Loaded:
        test = split

    monkeypatch.setattr(pixels, "PixelStore", Store)
    monkeypatch.setattr(neighbours, "run_benchmark", lambda config: Loaded)
    embeddings = np.random.default_rng(3).normal(size=(60, 8)).astype(np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    run = FakeRun(embeddings, split.labels)
    found = neighbours.find_neighbours({"pf": [run]})
    assert (found.indices["pf"] == run.order[:, :5]).all() and found.recorded == {"pf": 1.0}
    expected = np.take_along_axis(embeddings @ embeddings.T, run.order[:, :5], 1)
    np.testing.assert_allclose(found.similarities["pf"], expected, atol=1e-5)
    assert (found.hits("pf") == (split.labels[run.order[:, :5]] == split.labels[:, None])).all()
    other = FakeRun(np.roll(embeddings, 3, axis=0), split.labels)
    both = neighbours.find_neighbours({"pf": [run, other]})  # two seeds
    assert (both.by_seed["pf"] == np.stack([run.order[:, :5], other.order[:, :5]])).all() and both.recorded == {"pf": 1.0}
    assert (both.indices["pf"] == found.indices["pf"]).all() and (both.similarities["pf"] == found.similarities["pf"]).all()
    run.hits = ~run.hits
    assert neighbours.find_neighbours({"pf": [other, run]}).recorded == {"pf": 0.0}


def test_examples_follow_the_rule(found):
    assert found.judge == "saga_pf"
    counts = (found.split.labels[found.indices["saga_pf"]] == found.split.labels[:, None]).sum(1)
    chosen = neighbours.choose_examples(found, 4)
    assert list(chosen) == [kind for kind in QUERY_KINDS if kind in chosen] and "4–5 hits" in chosen and "1–3 hits" in chosen
    used = set()
    for kind, query in chosen.items():
        least, most = QUERY_KINDS[kind]
        order = np.random.default_rng(4).permutation(60)
        first = next(q for q in order if least <= counts[q] <= most and found.split.labels[q] not in used)
        assert query == first
        used.add(found.split.labels[query])
    assert len(used) == len(chosen)
    assert len({tuple(neighbours.choose_examples(found, seed).items()) for seed in range(8)}) > 1


def test_kinds_that_do_not_occur_are_left_out(found):
    nothing = {m: np.tile((found.split.labels[:, None] * 6 + 6 + np.arange(5)) % 60, 1) for m in found.indices}
    none = Neighbours(found.split, {m: indices[None] for m, indices in nothing.items()}, found.similarities, {})
    assert list(neighbours.choose_examples(none, 0)) == ["no hit"]
    assert neighbours.hit_table(none)["no hit (%)"].tolist() == [100.0, 100.0]


def test_what_is_counted_is_counted_over_all_seeds(found):
    pair = np.stack([found.indices["pf"], found.indices["saga_pf"]])  # as if they were two seeds of one method
    both = Neighbours(found.split, {"pf": pair}, {"pf": found.similarities["pf"]}, {})
    alone, together = neighbours.hit_table(found), neighbours.hit_table(both).iloc[0]
    assert list(alone["seeds"]) == [1, 1] and together["seeds"] == 2 and together["queries"] == 60
    means = [found.hits(method).sum(1).mean() for method in ("pf", "saga_pf")]
    assert together["mean hits of 5"] == pytest.approx(np.mean(means), abs=0.006)
    assert float(together["spread of hits"]) == pytest.approx(np.std(means, ddof=1), abs=0.006) and set(alone["spread of hits"]) == {"–"}
    for kind in QUERY_KINDS:
        assert together[f"{kind} (%)"] == pytest.approx(alone[f"{kind} (%)"].mean(), abs=0.11)
    right = np.mean([found.hits(method)[:, 0].mean() for method in ("pf", "saga_pf")])
    assert f"right for {100 * right:.1f} % of 60 queries (2 seeds)" in neighbours.conclusions(both)[0]
    assert "seed" not in neighbours.conclusions(found)[0]


def test_queries_start_with_the_examples_and_take_every_class_before_any_twice(found):
    queries = neighbours.draw_queries(found, 25, 4)
    examples = list(neighbours.choose_examples(found, 4).values())
    assert queries[: len(examples)] == examples and len(set(queries)) == 25
    rest = found.split.labels[queries[len(examples) :]]
    assert len(set(rest[:10])) == 10 and len(set(rest[10:20])) == 10


def test_what_differs_is_named(split):
    assert neighbour_page.differing(split, 0, 1) == "" and neighbour_page.differing(split, 0, 7) == "shape: s1, not s0"
    assert neighbour_page.differing(split, 0, 36) == "shape: s1, not s0, colour: c1, not c0"


def content_of(page):
    return json.loads(re.search(r'<script id="content" type="application/json">(.*?)</script>', page, re.S).group(1))


def test_the_page_says_what_was_found_and_escapes_it(found):
    queries = neighbours.draw_queries(found, 12, 0)
    page, count = neighbour_page.neighbour_page(found, queries, f"title {NASTY}", "note & more")
    content = content_of(page)
    assert count == 12 and content["methods"] == [METHOD_LABELS["pf"], METHOD_LABELS["saga_pf"]]
    assert f"<h1>title {NASTY}" not in page and "note &amp; more" in page
    assert not re.search(r"""(src|href)=["'](?!data:)|https?://|@import|url\(""", page)
    for query, entry in zip(queries, content["queries"], strict=True):
        assert entry["number"] == query and entry["class"] == found.split.class_names[found.split.labels[query]]
        for method, shown in zip(found.indices, entry["lists"], strict=True):
            assert [name for *_, name, _ in shown] == [found.split.class_names[found.split.labels[i]] for i in found.indices[method][query]]
            assert [hit for _, _, hit, *_ in shown] == found.hits(method)[query].astype(int).tolist()
            assert [s for _, s, *_ in shown] == [round(float(s), 3) for s in found.similarities[method][query]]
            assert [content["thumbnails"][i] for i, *_ in shown] == [
                neighbour_page.thumbnail(found.split.open(int(i))) for i in found.indices[method][query]
            ]


def test_a_page_never_exceeds_its_size(found):
    queries = list(range(60))
    whole, count = neighbour_page.neighbour_page(found, queries, "t")
    assert count == 60 and len(whole.encode()) <= neighbour_page.MAX_BYTES
    limit = len(whole.encode()) // 2
    part, fewer = neighbour_page.neighbour_page(found, queries, "t", max_bytes=limit)
    assert 0 < fewer < 60 and limit * 0.8 < len(part.encode()) <= limit
    assert [entry["number"] for entry in content_of(part)["queries"]] == queries[:fewer]
    with pytest.raises(SagaError, match="not even one query"):
        neighbour_page.neighbour_page(found, queries, "t", max_bytes=15_000)


def test_the_figure_marks_hits_by_more_than_colour(found):
    examples = neighbours.choose_examples(found, 0)
    figure = figures.neighbour_gallery(found, examples, "title")
    rows = [(query, method) for query in examples.values() for method in found.indices]
    shown = [axis for axis in figure.axes if axis.get_xlabel()[:1] in "✓✗" and axis.get_xlabel()]
    assert len(shown) == 5 * len(rows)
    hits = np.concatenate([found.hits(method)[query] for query, method in rows])
    assert [axis.get_xlabel()[0] == "✓" for axis in shown] == hits.tolist()
    assert [axis.spines["left"].get_linestyle() == "-" for axis in shown] == hits.tolist()


def test_clicking_through_the_page_in_a_browser(found, tmp_path):
    queries = neighbours.draw_queries(found, 20, 0)
    path = tmp_path / "gallery.html"
    path.write_text(neighbour_page.neighbour_page(found, queries, "Gallery")[0], encoding="utf-8")
    right = {method: found.hits(method)[queries, 0] for method in found.indices}
    rows = """[...document.querySelectorAll(".method")].map((row) => [...row.querySelectorAll("figure")].map((one) =>
        [one.className, one.querySelector("figcaption").innerText, one.querySelector("img").naturalWidth]))"""
    selected = "document.querySelector('#strip [aria-selected=true]')?.dataset.query"

    def check(page, number):
        """The page shows this query's neighbours, under each method its own."""
        for method, shown in zip(found.indices, page.run(rows), strict=True):
            for (kind, caption, width), other, hit, similarity in zip(
                shown, found.indices[method][queries[number]], found.hits(method)[queries[number]],
                found.similarities[method][queries[number]], strict=True,
            ):  # fmt: skip
                name = found.split.class_names[found.split.labels[other]]
                assert kind == ("hit" if hit else "miss") and width == 48
                assert caption.startswith(f"{'✓' if hit else '✗'} {similarity:.3f}\n{name}")

    with chromium(tmp_path / "profile") as page:
        page.call("Network.emulateNetworkConditions", offline=True, latency=0, downloadThroughput=0, uploadThroughput=0)
        page.resize(1280, 900)
        page.open(path.as_uri())
        assert page.run("document.querySelectorAll('#strip button').length") == 20
        check(page, 0)
        page.click("#strip [data-query='7']")
        assert page.run(selected) == "7" and page.run("location.hash") == f"#{queries[7]}"
        check(page, 7)
        for key, expected in (("ArrowRight", 8), ("ArrowLeft", 7), ("End", 19), ("ArrowRight", 19), ("Home", 0), ("ArrowLeft", 0)):
            page.press(key)
            assert page.run(selected) == str(expected), key
            assert page.run("document.activeElement.dataset.query") == str(expected)
            check(page, expected)
        options = page.run("[...document.querySelectorAll('#filter option')].map((one) => one.text)")
        a, b = (METHOD_LABELS[method] for method in found.indices)
        kept = {
            "all": right["pf"] | True, f"{a} right, {b} wrong": right["pf"] & ~right["saga_pf"],
            f"{b} right, {a} wrong": right["saga_pf"] & ~right["pf"], "every method right": right["pf"] & right["saga_pf"],
            "no method right": ~right["pf"] & ~right["saga_pf"],
        }  # fmt: skip
        assert set(kept) < set(options) and right["saga_pf"].sum() != right["pf"].sum()
        for name, wanted in kept.items():
            place = options.index(name)
            page.run(f"(() => {{ const f = document.querySelector('#filter'); f.selectedIndex = {place};"
                     " f.dispatchEvent(new Event('change')); })()")  # fmt: skip
            numbers = np.flatnonzero(wanted).tolist()
            assert page.run("[...document.querySelectorAll('#strip button')].map((one) => Number(one.dataset.query))") == numbers
            assert page.run("document.querySelector('#count').textContent") == f"{len(numbers)} of 20 queries"
            if numbers:
                check(page, int(page.run(selected)))
        page.resize(360, 800)
        sticks_out = "document.documentElement.scrollWidth > document.documentElement.clientWidth"
        assert not page.run(sticks_out)  # of a phone's screen
        page.open(path.as_uri() + f"?again#{queries[5]}")  # a link to one query
        assert page.run(selected) == "5"
        assert set(page.requests) <= {path.as_uri(), path.as_uri() + "?again"} and not page.problems
