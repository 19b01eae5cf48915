"""One look for all pages of the project."""

from pathlib import Path

CSS = (Path(__file__).parent / "page.css").read_text(encoding="utf-8")
