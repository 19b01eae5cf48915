"""Names that people give to files, classes and attributes, as pages, figures and links show them: literally, and so that all is seen."""

from __future__ import annotations

import unicodedata
from urllib.parse import quote

JOINERS = "\u200c\u200d"  # which several scripts and many emoji need


def readable(value: object) -> str:
    """Return a value as text that a page can show: what would not be seen, or would turn it around, stands as an escape such as \\x1b.

    Names may hold control characters, directions of writing, and halves of characters, which UTF-8 has not.
    """
    if hasattr(value, "__html__"):  # made for the page, but maybe of such names
        return type(value)(str(value).encode("utf-8", "backslashreplace").decode())
    text = str(value)
    if text.isprintable():
        return text
    seen = (c.isprintable() or c in "\n\t" + JOINERS or unicodedata.category(c) == "Zs" for c in text)
    return "".join(c if is_seen else c.encode("unicode_escape").decode() for c, is_seen in zip(text, seen, strict=True))


def plain(text: str) -> str:
    """Return a text as figures show it literally: $ begins no formula."""
    return readable(text).replace("$", r"\$")


def address(name: str) -> str:
    """Return the name of a file as a part of a link, with signs such as # and % escaped."""
    return quote(name.encode("utf-8", "surrogateescape"))
