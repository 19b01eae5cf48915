"""Reading of answers: where the answer is in what a supervisor wrote, its verdict, its fields and the places of its values.

A supervisor may write thoughts, drafts, chatter and code fences, and its JSON may be broken. The answer is what follows the last
`</think>`, and of that the last outermost JSON object with the verdict's key. Whole and broken JSON are read by the same rules, and
everything that reads answers does it here. Only the verdict is rewarded (Eq. 3).
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from saga_lib.common.texts import composed
from saga_lib.vocabulary import PLAIN_KEYS, AnswerKeys

_THOUGHTS = re.compile(r"<\s*think(?:ing)?(?:\s[^<>]*)?(?<!/)>", re.IGNORECASE)
_THOUGHTS_END = re.compile(r"<\s*/\s*think(?:ing)?\s*>", re.IGNORECASE)
_OPENING = re.compile(r"""\{(?=\s*[,:\[\]]?\s*(?:["'“”}]|\w+["'“”]\s*:|\Z))""")  # of an object: a key follows, and no {:-)
_VALUE = re.compile(  # a complete verdict, in quotes of some kind or bare, and behind it what may follow a field
    r"""(?:"(?P<text>(?:[^"\\]|\\.)*)"|'(?P<single>[^'\n]*)'|[“”](?P<curly>[^“”\n]*)[“”]|(?P<bare>[A-Za-z]+\.?)(?=\s*[,}\]]))"""
    r"""(?=\s*(?:[,}\]"]|(?:`{3}\s*)?\Z))""",
    re.DOTALL,
)
_NOTHING_MORE = re.compile(r"""[\s,}\]`]*\Z|\s*\}[^{"“]*\Z""")  # behind a verdict: brackets, or its object's end and chatter
_WORDS = {"yes": True, "true": True, "no": False, "false": False}


# ------------------------------------------------------------------------------------------- where the answer is


@dataclass
class _Object:
    """One outermost JSON object of a text, whole or broken: characters [start, end)."""

    start: int
    end: int
    is_closed: bool = False
    verdicts: list[tuple[int, int]] = field(default_factory=list)  # of each verdict's key: the objects around it, where its value begins

    def verdict(self) -> int | None:
        """Return where the value of its verdict begins; an object that never closes may lack any bracket, so there depth means nothing."""
        return next((place for depth, place in reversed(self.verdicts) if depth == 1 or not self.is_closed), None)


@lru_cache
def _patterns(verdict_key: str) -> tuple[re.Pattern[str], re.Pattern[str]]:
    """Return patterns of the verdict's key, and of all that gives JSON its form: that key, texts in quotes, brackets.

    A text ends at a quote behind which JSON goes on, so that a stray one (`5" wheels`) does no harm, or where the verdict's key begins,
    so that one too few does none to the verdict. On valid JSON the texts are exactly JSON's.
    """
    name = re.escape(verdict_key) if verdict_key else r"(?!)"
    key = rf"""(?:"{name}"|'{name}'|[“”]{name}[“”])\s*:\s*"""
    end = r'"(?=\s*(?:[,:}\]"]|\Z))'
    text = rf'"(?:[^"\\]++|\\.|(?!{key}|{end})")*+(?:{end})?'
    return re.compile(key), re.compile(rf"(?P<key>{key})|(?P<text>{text})|(?P<bracket>[{{}}\[\]])", re.DOTALL)


def _object_at(text: str, start: int, verdict_key: str) -> _Object:
    """Return the object that opens at `start`."""
    found, stack = _Object(start, len(text)), []
    for token in _patterns(verdict_key)[1].finditer(text, start):
        if token["key"]:
            found.verdicts.append((stack.count("{"), token.end()))
        elif (bracket := token["bracket"]) in ("{", "["):
            stack.append(bracket)
        elif bracket == "]" and stack[-1] == "[":
            stack.pop()
        elif bracket == "}":
            while stack.pop() != "{":  # a list that was not closed ends with the object around it
                pass
            if not stack:
                found.end, found.is_closed = token.end(), True
                break
    return found


def _objects(text: str, start: int, verdict_key: str) -> list[_Object]:
    """Return the objects behind `start`. Only the last can be unclosed.

    A verdict outside of all objects and with a bracket behind it means that one bracket too many, or one too few, came before it: the
    objects since the last verdict and what is between them are one.
    """
    found: list[_Object] = []
    while start < len(text):
        opening = _OPENING.search(text, start)
        for key in _patterns(verdict_key)[0].finditer(text, start, opening.start() if opening else len(text)):
            if (value := _VALUE.match(text, key.end())) and (end := re.compile(r"\s*\}").match(text, value.end())):
                before = [one.start for one in itertools.takewhile(lambda one: one.verdict() is None, reversed(found))]
                found.append(_Object(before[-1] if before else key.start(), end.end(), True, [(1, key.end())]))
        if opening is None:
            break
        found.append(_object_at(text, opening.start(), verdict_key))
        start = found[-1].end
    return found


def _find(text: str, verdict_key: str) -> tuple[_Object | None, bool]:
    """Return the answer's object, the last one with the verdict's key, else the last one, and whether the text ends within another."""
    start = max((end.end() for end in _THOUGHTS_END.finditer(text)), default=0)
    if _THOUGHTS.search(text, start):
        return None, True
    if not (objects := _objects(text, start, verdict_key)):
        return None, False
    answer = next((one for one in reversed(objects) if one.verdict() is not None), objects[-1])
    return answer, answer is not objects[-1] and not objects[-1].is_closed


def _place(text: str, answer: _Object, key: str) -> int | None:
    """Return where the value of one of the answer's own keys begins: of several the last, as JSON has it, wherever brackets are broken."""
    if text[answer.start] == "{":
        found = _object_at(text[: answer.end], answer.start, key)
        outer = [place for depth, place in found.verdicts if depth == 1]
        if outer or (found.is_closed and found.end == answer.end):
            return outer[-1] if outer else None
    places = [match.end() for match in _patterns(key)[0].finditer(text, answer.start, answer.end)]  # a bracket too many or too few
    return places[0] if places else None


# ----------------------------------------------------------------------------------------------- what it says


def parse_answer(text: str, verdict_key: str = "") -> dict | None:
    """Return the answer's object if it is valid JSON, its texts in NFC, else None.

    It is the last object with `verdict_key`, if one has it, else the last one.
    """
    answer, _ = _find(text, verdict_key)
    if answer is None or not answer.is_closed:
        return None
    try:
        return json.loads(composed(text[answer.start : answer.end]))
    except (ValueError, RecursionError):  # syntax errors, and numbers of more than 4300 digits
        return None


def parse_verdict(text: str, verdict_key: str, finished: bool = True) -> bool | None:
    """Return the verdict (True = same class), or None when the answer has none.

    It is a complete field of the answer's object, wherever else its JSON is broken: yes, no, true or false in any case, with or without
    quotes and a full stop. An answer that was cut, at the token limit (not `finished`) or visibly, has no verdict and earns no reward.

    >>> parse_verdict('<think>{"same_species": "no"}?</think>{"differences": "none", "same_species": "Yes"}', "same_species")
    True
    >>> parse_verdict('{"item_1": {"bill', "same_species") is None
    True
    """
    answer, is_cut = _find(text, verdict_key) if finished else (None, True)
    if is_cut or answer is None or answer.verdict() is None:
        return None
    value = _VALUE.match(text, answer.verdict())
    if value is None or not (answer.is_closed or _NOTHING_MORE.match(text, value.end())):
        return None
    word = next(group for group in value.groups() if group is not None)
    if "\\" in word:
        try:
            word = json.loads(f'"{word}"', strict=False)
        except ValueError:
            return None
    return _WORDS.get(word.strip().strip("\"'“”‘’`. ").lower())


# ---------------------------------------------------------------------------------------------- where it says it


@dataclass(frozen=True)
class AttributeSpan:
    """Where an answer describes an attribute: characters [start, end) of the value in one section."""

    section: str  # one of the keys of the two descriptions, such as "item_1", or "differences"
    attribute: str
    start: int
    end: int


def attribute_spans(text: str, keys: AnswerKeys = PLAIN_KEYS, sections: Sequence[str] = ()) -> list[AttributeSpan]:
    """Return the spans of all attribute values in the named sections (default: both descriptions), in order of the text.

    Positions are those in the whole `text`, of which only the answer's object is read. For truncated answers, returns the spans that are
    complete. Quotes are not part of a span. Attributes are in NFC.

    >>> [(s.section, s.attribute, '{"item_1": {"bill shape": "cone"}}'[s.start:s.end])
    ...  for s in attribute_spans('{"item_1": {"bill shape": "cone"}}')]
    [('item_1', 'bill shape', 'cone')]
    """
    answer, _ = _find(text, keys.verdict)
    decoder, spans = json.JSONDecoder(), []
    for section in (sections or keys.items) if answer else ():
        place = _place(text, answer, section)
        position = place + 1 if place is not None and text.startswith("{", place) else answer.end
        while key := re.compile(r'\s*,?\s*("(?:[^"\\]|\\.)*")\s*:\s*').match(text, position, answer.end):
            try:
                name, (_, end) = json.loads(key.group(1)), decoder.raw_decode(text, key.end())
            except (ValueError, RecursionError):
                break
            quoted = text[key.end()] == '"'
            spans.append(AttributeSpan(section, composed(name), key.end() + quoted, end - quoted))
            position = end
    return spans


def field_span(text: str, key: str, keys: AnswerKeys = PLAIN_KEYS) -> tuple[int, int] | None:
    """Return the characters [start, end) of the value of an answer's key, quotes left out, or None if the answer lacks the key.

    A value that is cut or broken reaches to the end of the answer.

    >>> text = '{"differences": {"crown color": "same"}, "same_species": "yes"}'
    >>> [text[slice(*field_span(text, key))] for key in ("differences", "same_species")]
    ['{"crown color": "same"}', 'yes']
    """
    answer, _ = _find(text, keys.verdict)
    if answer is None:
        return None
    start = answer.verdict() if key == keys.verdict else _place(text, answer, key)
    if start is None or start == len(text):
        return None
    quoted = text[start] == '"'
    try:
        end = json.JSONDecoder().raw_decode(text, start)[1] - quoted
    except (ValueError, RecursionError):
        end = answer.end
    return start + quoted, max(end, start + quoted)
