"""The report: one file that needs nothing beside it, escapes everything and says what is missing."""

import json
import re
from html.parser import HTMLParser

import nbformat
import pandas as pd
import pytest
from PIL import Image
from test_tables import make_run

from saga_lib.answers import AttributeSpan
from saga_lib.common.errors import SagaError
from saga_study import paths
from saga_study.findings import figures
from saga_study.findings.readme import found_section, results_section
from saga_study.findings.report import build_report, finished_runs

STUDY = "20260101-000000-miniature-abc"
MANIFEST = {
    "study": STUDY, "profile": "miniature", "status": "ok", "commit": "abc1234", "dirty": True, "code": "abc",
    "packages": {"torch": "2.0"}, "hardware": {"cpu": "a <fast> one", "cores": 2}, "data": {"miniature_birds": "pix"},
    "datasets": ["miniature_birds"], "methods": ["pre-trained", "pf"], "seeds": [0, 1], "notebooks": [],
    "started": "2026-01-01T00:00:00+0000", "wall_seconds": 600,
}  # fmt: skip


@pytest.fixture
def study(results, tmp_path, monkeypatch):
    """A small study: two of three runs, a table, a figure and an executed notebook."""
    sources = tmp_path / "sources"
    sources.mkdir()
    monkeypatch.setattr(paths, "NOTEBOOKS", sources)
    for name in ("00_world", "04_main_results", "99_report"):
        write_notebook(sources / f"{name}.ipynb", f"printed by {name}")
    folder = results / STUDY
    for method, seed in (("pre-trained", 0), ("pf", 0)):
        make_run(folder / "runs", method, seed)
    (folder / "manifest.json").write_text(json.dumps(MANIFEST))
    for name in ("tables", "figures", "notebooks"):
        (folder / name).mkdir()
    shown = "method,R@1 % ours (miniature)\n<script>alert(1)</script>,51.5\n"
    (folder / "tables" / "04_table1_birds.csv").write_text(shown)
    (folder / "tables" / "04_table1_birds_values.csv").write_text("method,R@1\npf,51.500000001\n")
    Image.new("RGB", (60, 40), (200, 30, 30)).save(folder / "figures" / "04_dots.png")
    write_notebook(folder / "notebooks" / "04_main_results.ipynb", "interval includes 0")
    return folder


def write_notebook(path, printed):
    cells = [
        nbformat.v4.new_markdown_cell("# Title of " + path.stem + "\n\n## Question\nDoes **it** work with `a < b`?"),
        nbformat.v4.new_code_cell("x", outputs=[nbformat.v4.new_output("stream", text="not to be shown")]),
        nbformat.v4.new_markdown_cell("## Reading\nas printed:"),
        nbformat.v4.new_code_cell("x", outputs=[nbformat.v4.new_output("stream", text=printed)]),
    ]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)


class Page(HTMLParser):
    """Collects links and sources, and checks that tags are balanced."""

    def __init__(self, text):
        super().__init__()
        self.open, self.references, self.text = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.references += [value for name, value in attributes if name in ("href", "src")]
        if tag not in ("meta", "img", "br", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_the_report_is_self_contained_and_well_formed(study):
    path = build_report(STUDY)
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert not page.open and path == study / "report.html"
    assert not re.search(r"https?://|<script|@import|url\(", text)
    for reference in page.references:
        is_inline = reference.startswith(("data:image/png;base64,", "#"))
        assert is_inline or (study / reference).is_file(), reference
    anchors = [reference[1:] for reference in page.references if reference.startswith("#")]
    assert anchors and all(f'id="{anchor}"' in text for anchor in anchors)


def test_the_report_says_what_it_is_and_what_is_missing(study):
    text = "".join(Page(build_report(STUDY).read_text(encoding="utf-8")).text)
    assert "Miniature measurements, not the paper's numbers" in text
    assert "MISSING [1]" in text  # PF, seed 1
    assert "Table 2, loss components" in text and "Table 1, main comparison" not in text
    assert "Notebooks not executed in this study: 00_world.ipynb" in text
    for fact in ("abc1234", "10.0 min", "torch 2.0", "a <fast> one", "yes: the code differed from the commit"):
        assert fact in text, fact


def test_the_report_tells_the_notebooks_story(study):
    text = "".join(Page(build_report(STUDY).read_text(encoding="utf-8")).text)
    assert "Title of 04_main_results" in text and "Does it work with a < b?" in text
    assert "interval includes 0" in text and "not to be shown" not in text
    assert "<script>alert(1)</script>" in text  # shown as text, hence escaped
    assert "runs/miniature-pf-0-abc" in text


def test_a_study_without_manifest_or_results_still_reports(results, study):
    (study / "manifest.json").unlink()
    assert "opened by hand" in build_report(STUDY).read_text(encoding="utf-8")
    (results / "empty").mkdir()
    Page(build_report("empty").read_text(encoding="utf-8"))
    with pytest.raises(SagaError, match="no folder"):
        build_report("nowhere")


def test_pages_to_click_through_are_linked(study):
    write_notebook(study / "notebooks" / "10_gallery.ipynb", "two of three")
    (study / "figures" / "10_gallery_birds.html").write_text("<script>1</script>")
    (study / "figures" / "04_other.html").write_text("")
    text = build_report(STUDY).read_text(encoding="utf-8")
    assert text.count('<a href="figures/10_gallery_birds.html">Gallery birds</a>') == 1 and "<script" not in text
    assert text.index("Title of 10_gallery") < text.index("figures/10_gallery_birds.html")
    assert text.index("figures/04_other.html") < text.index("Title of 10_gallery")


def test_the_answer_comes_first_and_letters_belong_to_numbers(study):
    (study / "tables" / "04_answer.csv").write_text("points,all\nSAGA − PF,+1.0\n")
    (study / "tables" / "04b_gates.csv").write_text("benchmark,verdict\nbirds,admitted\n")
    write_notebook(study / "notebooks" / "04b_choosing.ipynb", "birds is admitted")
    Image.new("RGB", (60, 40)).save(study / "figures" / "04_answer.png")
    text = "".join(Page(build_report(STUDY).read_text(encoding="utf-8")).text)
    order = [text.index(part) for part in ("The answer", "interval includes 0", "SAGA − PF", "Title of 04_main", "Title of 04b_choosing")]
    assert order == sorted(order) and text.count("birds is admitted") == 1


def test_runs_on_validation_classes_do_not_stand_for_test_classes(study):
    for path in study.glob("runs/*/config.json"):
        record = json.loads(path.read_text())
        record["config"]["evaluate_on"] = "validation"
        path.write_text(json.dumps(record))
    (study / "manifest.json").write_text(json.dumps(MANIFEST | {"seeds": {"miniature_birds": [0, 3]}}))
    text = "".join(Page(build_report(STUDY).read_text(encoding="utf-8")).text)
    assert "MISSING [0, 3]" in text and "2 runs were evaluated on validation classes" in text


def test_the_readmes_section_of_several_benchmarks(study):
    keys = {"pf": "r1 r2", "saga_pf": "r3"}
    for name in ("birds", "cars"):
        rows = "".join(f"{label},{runs}\n" for label, runs in keys.items())
        (study / "tables" / f"04_table1_{name}_values.csv").write_text("label,runs\n" + rows)
    (study / "tables" / "04_joint.md").write_text("| method | R@1 |\n| --- | --- |\n| pf | 50 |\n")
    (study / "tables" / "04_answer.md").write_text("| points | birds |\n| --- | --- |\n| SAGA − PF | +1.0 |\n")
    write_notebook(study / "notebooks" / "04_main_results.ipynb", "The answer is no.\n\nbirds\n- detail")
    (study / "manifest.json").write_text(json.dumps(MANIFEST | {"datasets": ["birds", "cars"]}))
    section = results_section(study)
    assert "| pf | 50 |" in section and "- The answer is no." in section and "- detail" not in section
    assert f"[r2](../results/{STUDY}/runs/r2)" in section and section.count("/runs/r3") == 2
    assert "oracle's room" not in section
    (study / "tables" / "04_room.md").write_text("| share | birds |\n| --- | --- |\n| SAGA | 50 % |\n")
    told = results_section(study)
    assert told.index("| SAGA − PF | +1.0 |") < told.index("| SAGA | 50 % |") < told.index("- The answer is no.")


def test_the_readme_counts_verdicts_and_quotes_the_answer(study):
    with pytest.raises(SagaError, match=f"99_claims.csv does not exist; finish study {STUDY} first"):
        found_section(study)
    verdicts = ["reproduced", "reproduced", "contradicted", "open at this scale"]
    (study / "tables" / "99_claims.csv").write_text("claim,verdict\n" + "".join(f"c,{verdict}\n" for verdict in verdicts))
    write_notebook(study / "notebooks" / "04_main_results.ipynb", "- The answer is no.\n- Nor here.\n\nbirds\n- detail")
    section = found_section(study)
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line.startswith("|")]
    counts = dict(zip(table[0], table[2], strict=True))
    assert {name: counts[name] for name in ("reproduced", "contradicted", "open at this scale", "mixed")} == {
        "reproduced": "2", "contradicted": "1", "open at this scale": "1", "mixed": "0"
    }  # fmt: skip
    assert "- The answer is no." in section and "detail" not in section


def test_smoke_studies_say_that_their_numbers_mean_nothing(study):
    (study / "manifest.json").write_text(json.dumps(MANIFEST | {"profile": "smoke"}))
    assert "mean nothing else" in build_report(STUDY).read_text(encoding="utf-8")


def test_a_damaged_figure_is_named(study):
    (study / "figures" / "04_dots.png").write_bytes(b"no picture")
    with pytest.raises(SagaError, match="04_dots.png cannot be read"):
        build_report(STUDY)


def test_finished_runs_are_ordered_and_complete(study):
    (study / "runs" / "unfinished").mkdir()
    assert [(run["method"], run["seed"]) for run in finished_runs(study)] == [("pre-trained", 0), ("pf", 0)]


def test_what_notebooks_show_as_html_is_escaped():
    frame = pd.DataFrame({"<b>": ["<script>1</script>", "x"], "n": [1, 2]})
    text = figures.html_table(frame, ["#cfe8f3", None], "a & b")
    assert "".join(Page(text).text).strip() == "a & b<b>n<script>1</script>1x2" and "<script" not in text
    assert text.count("background:#cfe8f3") == 1 and text.count("text-align:left") == 3
    answer = '{"item_1": {"bill": "<red>"}}'
    span = AttributeSpan("item_1", "bill", answer.index("<red>"), answer.index("<red>") + 5)
    shown = figures.answer_html(answer, [span])
    assert "".join(Page(shown).text).strip() == answer and 'title="item_1: bill"' in shown
