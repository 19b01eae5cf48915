"""Texts that people give: when two of them are one, and what of them may stand in a key."""

from __future__ import annotations

import re
import unicodedata

_PLAIN = str.maketrans("\u2010\u2011\u2012\u2013\u2014\u2212\u2018\u2019\u02bc", "------'''")  # dashes and apostrophes
_INVISIBLE = re.compile("[\u034f\u115f\u1160\u2800\u3164\ufe00-\ufe0f\U000e0100-\U000e01ef]")  # such as what asks for an emoji


def composed(text: str) -> str:
    """Return a text in NFC, the one of several spellings in code points that most programs write."""
    return unicodedata.normalize("NFC", text)


def alike(text: str) -> str:
    """Return what texts share that a reader takes for the same: case, compatibility forms, blanks, invisible marks, sorts of dashes aside.

    >>> alike("Gr\\u006f\\u0308\\u00dfe ") == alike("GR\\u00d6SSE") and alike("\\uff57ing  color") == alike("Wing color")
    True
    """
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return " ".join("".join(c for c in _INVISIBLE.sub("", text.translate(_PLAIN)) if unicodedata.category(c) != "Cf").split())


def ascii_key(text: str) -> str:
    """Return a text as a key [a-z][a-z0-9_]*, Latin letters without their marks and others left out; empty if nothing is left.

    >>> ascii_key("Same größe"), ascii_key("same Smørrebrød Œuvre"), ascii_key("2 wheels"), ascii_key("種")
    ('same_grosse', 'same_smorrebrod_oeuvre', 'wheels', '')
    """
    letters = unicodedata.normalize("NFKD", unicodedata.normalize("NFKC", text).casefold())
    letters = "".join(_latin(c) for c in letters if not unicodedata.combining(c))
    return re.sub(r"[^a-z0-9]+", "_", letters).strip("_").lstrip("0123456789_")


def _latin(letter: str) -> str:
    """Return a Latin letter that is written with a stroke or joined of two in plain ones, such as o for ø and ae for æ."""
    named = re.fullmatch(r"LATIN SMALL (?:LETTER|LIGATURE) ([A-Z]{1,2})(?: WITH .*)?", unicodedata.name(letter, ""))
    return named[1].lower() if named else {"ð": "d", "þ": "th", "ı": "i"}.get(letter, letter)
