"""The documents as a site: where its links lead, and that it leaves no document out. `mkdocs build --strict` checks the whole."""

import importlib.util
import re

import pytest
import yaml

from saga_lib.common.paths import REPOSITORY

spec = importlib.util.spec_from_file_location("site_hooks", REPOSITORY / "docs" / "site_hooks.py")
hooks = importlib.util.module_from_spec(spec)
spec.loader.exec_module(hooks)


@pytest.mark.parametrize(
    "source, link, led",
    [
        ("README.md", "[a](docs/cluster.md)", "[a](cluster.md)"),
        ("README.md", "[a](docs/cluster.md#one-heading)", "[a](cluster.md#one-heading)"),
        ("docs/cluster.md", "[a](../README.md)", "[a](index.md)"),
        ("docs/cluster.md", "[a [b]](glossary.md) and [c](own_images.md)", "[a [b]](glossary.md) and [c](own_images.md)"),
        ("docs/cluster.md", "[a](../saga_lib)", "a"),
        ("docs/cluster.md", "[a](../LICENSE)", "[a](files/LICENSE)"),
        ("README.md", "![a](docs/method.svg)", "![a](method.svg)"),
        ("README.md", "[![a](docs/method.svg)](LICENSE)", "[![a](method.svg)](files/LICENSE)"),
        ("README.md", "[a](https://example.org/x)", "[a](https://example.org/x)"),
        ("README.md", "[a](docs/nowhere.md)", "[a](docs/nowhere.md)"),
        ("README.md", "[a](notebooks/04_main_results.ipynb)", "[a](executed/04_main_results.html)"),
    ],
)
def test_links_lead_to_where_the_site_has_it(source, link, led):
    assert hooks.with_links(f"x {link} y", source) == f"x {led} y"


def test_every_document_and_notebook_is_in_the_site():
    config = yaml.safe_load((REPOSITORY / "mkdocs.yml").read_text(encoding="utf-8"))
    listed = {place for entry in config["nav"] for place in entry.values()}
    assert listed == {path.name for path in (REPOSITORY / "docs").glob("*.md")} | set(hooks.PAGES.values()) | {"notebooks.md"}
    page = hooks.notebooks_page()
    assert len(hooks.executed_notebooks()) > 15 and all(f"(executed/{name}.html)" in page for name in hooks.executed_notebooks())
    assert not re.search(r"\[\d\d[a-z]?_", page), "each by its title"
