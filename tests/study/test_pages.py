"""Names of files, classes and attributes are whatever people give: no page, table or figure takes one for markup, and all can be seen."""

import json
import re
import xml.etree.ElementTree
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from test_gallery import found, split  # noqa: F401  (fixtures)
from test_report import MANIFEST, STUDY, study, write_notebook  # noqa: F401
from tiny import random_images

from saga_lib.answers import AttributeSpan
from saga_lib.common.errors import SagaError, one_line
from saga_lib.datasets.image_folder import check_image_folder
from saga_lib.datasets.splits import Split
from saga_study.deploy.index import Hit
from saga_study.findings import figures, neighbour_page
from saga_study.findings.names import address, plain, readable
from saga_study.findings.report import build_report
from saga_study.findings.rollout_page import rollout_page
from saga_study.findings.token_gradients import Moment, PairRollouts
from saga_study.findings.writers import latex_table, markdown_table
from saga_study.search import results_page, results_table

TEMPLATES = Path(figures.__file__).parents[1] / "templates"
HOSTILE = [
    "<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "'><svg/onload=alert(1)>", "</style><script>alert(1)</script>",
    "</script><script>alert(1)</script>", "</title></textarea><b>", "javascript:alert(1)", "<!--", "]]>", "{{ 7 * 7 }}{% raw %}",
    "&lt;&amp;&#60;", "\x1b[2J\x07", "a\u202egpj.exe", "\udcff", "$x_{1$ and $y$", "a | b\nc\rd\te", "x" * 300, "می\u200cخواهم",
    "👨\u200d👩\u200d👧", "", " ",
]  # fmt: skip
ALL = " ".join(HOSTILE)
EMPTY = {"meta", "img", "br", "link"}
KNOWN = set(
    "html head meta title style body h1 h2 h3 p div figure figcaption b i br img pre mark table caption thead tbody tr th td code a nav ul "
    "li details summary label select span section noscript script".split()
)


class Walk(HTMLParser):
    """Checks every element of a page; `text` is what a reader sees, `scripts` what a browser would run."""

    def __init__(self, page):
        super().__init__()
        self.open, self.text, self.styles, self.scripts, self.types = [], [], [], [], []
        page.encode()  # what can be written
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        assert tag in KNOWN, tag
        for name, value in attributes:
            assert not name.startswith("on"), (tag, name)
            if name in ("href", "src"):
                assert re.match(r"(#|data:image/(png|jpeg|webp);base64,|(notebooks|runs|tables|figures)/)", value), value
            assert name != "style" or re.fullmatch(r"[-a-z0-9:;#.% ]*", value), value
        if tag == "script":
            self.types.append(dict(attributes).get("type", ""))
        if tag not in EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_comment(self, data):
        raise AssertionError(data)

    def handle_data(self, data):
        where = self.open[-1] if self.open else ""
        {"script": self.scripts, "style": self.styles}.get(where, self.text).append(data)


def check(page, shown=HOSTILE):
    """Check a page, and that a reader sees every text of `shown` as it is, or its escapes."""
    walk = Walk(page)
    seen = " ".join("".join(walk.text).split())
    for text in shown:
        assert " ".join(readable(text).split()) in seen or one_line(text).strip() in seen, text
    css = "".join((TEMPLATES / "page.css").read_text().split())
    assert all("".join(style.split()) == css or "dataframe" in style for style in walk.styles)
    return walk


def frame():
    return pd.DataFrame({"name": HOSTILE, ALL: range(len(HOSTILE))})


# ------------------------------------------------------------------------------------------------- the pages


def page_of_report(study):  # noqa: F811
    columns = pd.DataFrame({"method": HOSTILE[:-2], **{text: 1.0 for text in HOSTILE if text.strip() and text.isprintable()}})
    text = columns.to_csv(index=False, lineterminator="\n").encode("utf-8", "surrogateescape").replace(b"\xff", b"?")
    for name in ("04_table1_birds.csv", "04_answer.csv", "04_a#b%20c<b>'\"&.csv"):
        (study / "tables" / name).write_bytes(text)
    Image.new("RGB", (9, 9)).save(study / "figures" / "04_<script>alert(1)<.png")
    (study / "figures" / '04_"onload=alert(1).html').write_text("")
    writable = [text for text in HOSTILE if "\udcff" not in text]
    write_notebook(study / "notebooks" / "04_main_results.ipynb", "\n".join(writable))
    write_notebook(study / "notebooks" / "05_<img src=x onerror=alert(1)>.ipynb", "x")
    manifest = MANIFEST | {"packages": {ALL[:50]: ALL}, "commit": "</code><script>alert(1)</script>"}
    manifest |= {"datasets": HOSTILE, "methods": HOSTILE}
    (study / "manifest.json").write_text(json.dumps(manifest))
    for path in study.glob("runs/*/config.json"):
        record = json.loads(path.read_text())
        record["config"] |= {"dataset": ALL, "method": ALL}
        path.write_text(json.dumps(record))
        path.parent.rename(path.parent.with_name(f"{path.parent.name}<script>#"))
    walk = check(build_report(STUDY).read_text(encoding="utf-8"), writable)
    assert not walk.scripts


def page_of_search(tmp_path):
    odd = tmp_path / "<script>alert(1)<.png"
    random_images(1)[0].save(odd)
    hits = [Hit(text, tmp_path / "gone.png", 0.5, state) for text in HOSTILE for state in ("there", "gone", "changed")]
    queries = {str(odd): [Hit("a", odd, 1.0), *hits], **{f"{tmp_path}/{text}": hits for text in HOSTILE if text.strip()}}
    walk = check(results_page(queries, ALL))
    assert not walk.scripts
    return results_table({text: hits for text in HOSTILE})


def page_of_neighbours(found):  # noqa: F811
    found.split.class_names[:] = [f"{n} {text}" for n, text in zip(range(10), HOSTILE, strict=False)]
    for attributes, text in zip(found.split.class_attributes, HOSTILE, strict=False):
        attributes["shape"] = text
    for name in (ALL, *HOSTILE):
        found.split.class_names[3] = name
        page, count = neighbour_page.neighbour_page(found, range(40), ALL, ALL, 10**8)
        walk = check(page)
        assert count == 40 and walk.types == ["application/json", ""], "the data, and our own script"
        content = json.loads(walk.scripts[0])
        assert content["queries"][18]["class"] == name
        assert "".join(walk.scripts[1:]).strip() == (TEMPLATES / "neighbours.js").read_text().strip()


def page_of_rollouts(tmp_path):
    paths = [tmp_path / f"{n}.png" for n in range(2)]
    for image, path in zip(random_images(2), paths, strict=True):
        image.save(path)
    for text in (ALL, *HOSTILE):
        split = Split("train", paths, np.array([0, 1]), [f"0 {text}", f"1 {text}"], [{f"n{text}": text}, {f"n{text}": "x"}])  # noqa: F811
        norms = [np.zeros((1, 2, 4), np.float32)]
        walk = check(rollout_page([Moment(text, [PairRollouts([[text]], [1.0], [0.0], norms, [[0]])])], split, [(0, 1)], ALL, ALL))
        assert walk.types == ["application/json", ""]
        assert "".join(walk.scripts[1:]).strip() == (TEMPLATES / "rollouts.js").read_text().strip()
        assert json.loads(walk.scripts[0])["rollouts"][0][0]["tokens"] == [[text]]


def page_of_frame():
    for page in (figures.html_table(frame(), ["#cfe8f3"] * len(HOSTILE), ALL), figures.html_table(frame().iloc[:0], caption=ALL)):
        assert not check(page, [ALL]).scripts


def page_of_answer():
    for text in (ALL, *HOSTILE):
        spans = [AttributeSpan(ALL, ALL, len(text) // 3, len(text) // 2)]
        assert not check(figures.answer_html(text, spans), [text]).scripts


def test_every_page_shows_every_name_as_text(study, found, tmp_path):  # noqa: F811
    makers = {
        "report.html": lambda: page_of_report(study), "search.html": lambda: page_of_search(tmp_path), "frame.html": page_of_frame,
        "neighbours.html": lambda: page_of_neighbours(found), "answer.html": page_of_answer,
        "rollouts.html": lambda: page_of_rollouts(tmp_path),
    }  # fmt: skip
    assert set(makers) | {"base.html"} == {path.name for path in TEMPLATES.glob("*.html")}, "a new page needs a test here"
    for make in makers.values():
        make()


def test_links_lead_to_files_whatever_they_are_called(study):  # noqa: F811
    names = ["04_a b.csv", "04_a#b.csv", "04_a%20b.csv", "04_a?b.csv", "04_ü&'\".csv"]
    for name in names:
        (study / "tables" / name).write_text("a,b\n1,2\n")
    page = build_report(STUDY).read_text(encoding="utf-8")
    for name in names:
        assert f'href="tables/{address(name)}"' in page
    assert address("a\udcff") == "a%FF"


# ------------------------------------------------------------------------ what notebooks on own images show and save


def test_tables_of_own_images_are_text(tmp_path):
    classes = ["<script>alert(1)<", '"><img src=x onerror=alert(1)>', "a & b", "javascript:alert(1)", "$x$", "ä'"]
    for number, name in enumerate(classes):
        (tmp_path / "photographs" / name).mkdir(parents=True)
        for image, picture in enumerate(random_images(3, number)):
            picture.save(tmp_path / "photographs" / name / f"<b>{image}</b>.png".replace("/", "⁄"))
    (tmp_path / "photographs" / classes[0] / "<script>.png").write_bytes(b"no image")
    (tmp_path / "photographs" / classes[1] / "<script>.heic").write_bytes(b"")
    checks = check_image_folder(tmp_path / "photographs")
    assert checks["example"].astype(str).str.contains("<script>", regex=False).any()
    for table in (checks, page_of_search(tmp_path), frame()):
        assert not check(figures.html_table(table, caption=ALL), [ALL]).scripts
        shown = table._repr_html_()  # a table at the end of a cell, as Jupyter shows it
        assert "<script" not in shown and "<img" not in shown
        Walk(re.sub(r" border=\"1\"", "", shown).encode("utf-8", "replace").decode())


def test_tables_to_read_make_no_markup():
    table = markdown_table(frame())
    lines = table.splitlines()
    assert not re.search(r"<[A-Za-z/!?]", table) and len(lines) == len(HOSTILE) + 2
    assert all(len(re.findall(r"(?<!\\)\|", line)) == 3 for line in lines)
    assert "]\\(javascript:" in markdown_table(pd.DataFrame({"a": ["[x](javascript:alert(1))"]}))
    assert markdown_table(pd.DataFrame({"a": ["1.0 [−0.5, 2.5]", "p < 0.05"]})).count("\\") == 0
    assert len(latex_table(frame()).splitlines()) == len(HOSTILE) + 7


@pytest.mark.filterwarnings("ignore:Glyph")
def test_figures_draw_every_name_literally(tmp_path):
    from saga_study.notebook import start

    pictures = [figures.Picture(image, text) for image, text in zip(random_images(len(HOSTILE)), HOSTILE, strict=True)]
    grid = figures.image_grid(pictures, 7, row_labels=HOSTILE[:3], column_labels=HOSTILE[-7:], title=ALL)
    grid.canvas.draw()
    assert grid.axes[14].get_xlabel() == plain(HOSTILE[14]) and not HOSTILE[14].startswith("\\")
    context = start("by-hand", "smoke", 15)
    bars = figures.reading_bars({"ours": {text: 0.5 for text in HOSTILE}}, {text: 0.2 for text in HOSTILE})
    context.save_figure("15_bars", bars)
    elements = [element.tag.rpartition("}")[2] for element in xml.etree.ElementTree.parse(context.figures_folder / "15_bars.svg").iter()]
    assert "script" not in elements and elements.count("text") > len(HOSTILE) / 2


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("manifest.json", "[]", "is no manifest"),
        ("manifest.json", '{"profile": "<b>"}', "is no manifest"),
        ("tables/04_x.csv", b"\xff\xfe", "cannot be read"),
        ("tables/04_x.csv", b'a\n"' + b"x" * 200_000, "cannot be read"),
        ("notebooks/04_main_results.ipynb", "{}", "is no notebook"),
        ("notebooks/04_main_results.ipynb", '{"cells": [1]}', "is no notebook"),
        ("runs/miniature-pf-0-abc/evaluation.json", "{}", "is damaged"),
        ("runs/miniature-pf-0-abc/config.json", "[]", "is damaged"),
    ],
)  # fmt: skip
def test_damaged_files_of_a_study_are_one_line(study, file, content, message):  # noqa: F811
    (study / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(SagaError, match=message) as error:
        build_report(STUDY)
    assert Path(file).name.split(".")[0] in str(error.value) or "miniature-pf-0-abc" in str(error.value)


def test_names_stay_what_they_are_where_they_can_be_seen():
    for text in ("Bläßhuhn", "種", "می\u200cخواهم", "a\u00a0b", "👨\u200d👩", "<b>", "a\nb"):
        assert readable(text) == text
    assert readable("\x1b\udcff\u202e") == "\\x1b\\udcff\\u202e" and readable(3.5) == "3.5" and readable(np.float32(1)) == "1.0"
