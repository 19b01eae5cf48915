"""What mkdocs needs to make a site of this repository: its README as the first page, executed notebooks, links between all of them.

Documents link to files of the repository, as a forge shows them. Here, a link to a document or notebook leads to its page, one to
another file to a copy of it; one to a folder becomes text, since a site cannot show folders.
"""

from __future__ import annotations

import json
import os
import re
from functools import cache
from pathlib import Path, PurePosixPath

REPOSITORY = Path(__file__).resolve().parents[1]
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "CONTRIBUTING.md", "CHANGELOG.md": "CHANGELOG.md"}  # as the site calls them
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\((?!https?:|mailto:)([^)#\s]+)(#[^)\s]*)?\)")
STUDY = re.compile(r"<!-- found:begin -->.*?\]\((results/[\w.-]+)\)", re.DOTALL)


@cache  # asked for every link
def shown_study() -> Path:
    """Return the folder of the study whose results the README shows."""
    return REPOSITORY / STUDY.search((REPOSITORY / "README.md").read_text(encoding="utf-8")).group(1)


@cache
def executed_notebooks() -> dict[str, Path]:
    """Return {name: file} of that study's notebooks, and of those that it has not executed yet an earlier study's."""
    studies = [*sorted(REPOSITORY.glob("results/[0-9]*-miniature-*")), shown_study()]
    found = {path.stem: path for study in studies for path in (study / "notebooks").glob("*.ipynb")}
    return dict(sorted(found.items()))


def place_of(target: str) -> str | None:
    """Return where the site has a file of the repository, both as paths from their roots; None for a folder.

    Raises `FileNotFoundError` for what is not there.
    """
    path = REPOSITORY / target
    if path.is_dir():
        return None
    if not path.is_file():
        raise FileNotFoundError(target)
    if path.suffix == ".ipynb" and path.stem in executed_notebooks():
        return f"executed/{path.stem}.html"
    if target in PAGES:
        return PAGES[target]
    return target.removeprefix("docs/") if path.parent == REPOSITORY / "docs" else f"files/{target}"


def linked_files(text: str, source: str) -> dict[str, str]:
    """Return {link: path in the repository} of what a document links to; `source` is the document's own path in the repository."""
    return {link: os.path.normpath(PurePosixPath(source).parent / link) for _, _, link, _ in LINK.findall(text)}


def with_links(text: str, source: str) -> str:
    """Return a document as the site needs it: its links lead to where the site has those files, those to folders are text."""
    targets = linked_files(text, source)

    def replaced(match: re.Match[str]) -> str:
        image, words, link, heading = match.groups()
        try:
            place = place_of(targets[link])
        except FileNotFoundError:
            return match.group(0)  # mkdocs says that it leads nowhere
        return words if place is None else f"{image}[{with_links(words, source)}]({place}{heading or ''})"

    return LINK.sub(replaced, text)


def notebooks_page() -> str:
    """Return the page that lists the executed notebooks, each by the title in its first cell."""
    lines = []
    for name, path in executed_notebooks().items():
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        titles = (re.match(r"# (.+)", "".join(cell["source"])) for cell in cells if cell["cell_type"] == "markdown")
        study = path.parent.parent.name
        older = f" (of an earlier study, `{study}`)" if study != shown_study().name else ""
        lines.append(f"- [{next((title.group(1) for title in titles if title), name)}](executed/{name}.html){older}")
    return f"# Executed notebooks\n\nAs study `{shown_study().name}` ran them.\n\n" + "\n".join(lines) + "\n"


def source_of(place: str) -> str:
    """Return the path in the repository of a page of the site."""
    return next((source for source, own in PAGES.items() if own == place), f"docs/{place}")


# --------------------------------------------------------------------------------------------- what mkdocs calls


def on_files(files, config):  # noqa: ANN001, ANN201  (mkdocs is no package of the study's)
    """Add what does not lie in docs/: documents of the root, executed notebooks as pages, and every file that a page links to."""
    from mkdocs.structure.files import File
    from nbconvert import HTMLExporter

    for source, place in PAGES.items():
        files.append(File.generated(config, place, abs_src_path=str(REPOSITORY / source)))
    files.append(File.generated(config, "notebooks.md", content=notebooks_page()))
    for name, path in executed_notebooks().items():
        page, _ = HTMLExporter(embed_images=True).from_filename(str(path))
        files.append(File.generated(config, f"executed/{name}.html", content=page))
    for page in files.documentation_pages():
        source = source_of(page.src_uri)
        if page.src_uri == "notebooks.md":
            continue
        for target in linked_files((REPOSITORY / source).read_text(encoding="utf-8"), source).values():
            place = place_of(target) if (REPOSITORY / target).exists() else None
            if place and place.startswith("files/") and files.get_file_from_path(place) is None:
                files.append(File.generated(config, place, abs_src_path=str(REPOSITORY / target)))
    return files


def on_page_markdown(markdown, page, config, files):  # noqa: ANN001, ANN201
    """Lead the links of a page to where the site has what they name."""
    return markdown if page.file.src_uri == "notebooks.md" else with_links(markdown, source_of(page.file.src_uri))
