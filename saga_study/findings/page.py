"""Pages and tables in HTML, from `templates/`: a page holds all it shows, and every value in it is escaped and made `readable`."""

from __future__ import annotations

import base64
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from saga_study.findings.names import address, readable

_TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
    lstrip_blocks=True, keep_trailing_newline=True, finalize=readable,
)  # fmt: skip
_TEMPLATES.filters["address"] = address


def render(template: str, **values: object) -> str:
    """Return a template of `templates/` with these values; raises `jinja2.UndefinedError` if one is missing."""
    return _TEMPLATES.get_template(template).render(values)


def data_uri(content: bytes, kind: str) -> str:
    """Return an image file's bytes as an address that holds them; `kind` is such as "png"."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"
