"""Attribute vocabularies, read from YAML with every mistake named by its line."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import yaml

from saga_lib.common.errors import SagaError, first_line, unknown_name
from saga_lib.common.paths import given_path
from saga_lib.common.texts import alike, ascii_key, composed

VOCABULARY_FOLDER = Path(__file__).parent / "vocabularies"
PLACEHOLDERS = {  # what each text of a vocabulary is, by the example of birds
    "name": "birds", "expert": "ornithologist", "identify": "bird species", "target_plural": "species", "item": "bird",
    "item_plural": "birds", "item_key": "bird", "example": "short, cone-shaped, dark grey", "verdict_question": "same species",
    "verdict_key": "same_species", "differences": "key",
}  # fmt: skip
OPTIONAL = {"item_key": "item", "differences": "key"}  # placeholders that a file may leave out, and what they are then
# Such as <|im_end|>, <think>, <IMG_CONTEXT>, </s>, <0x0A>, [INST]: a model takes it for a command.
_TOKEN = r"[<＜][|｜]|[|｜][>＞]|<\s*/?\s*(?:0x|[^\W\d])[^<>]*>|\[/?(?:INST|IMG\w*|PAD|UNK|CLS|SEP|MASK|[BE]OS|THINK|TOOL_\w+)\]"
_BROKEN = r'["\\{}]|[^\S ]'  # JSON's own characters, and blanks but the plain one
_UNSEEN = r"[\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060\u2066-\u2069\ufeff]"  # by whoever writes the text again


class AnswerKeys(NamedTuple):
    """The keys of an answer that say what it is about."""

    items: tuple[str, str] = ("item_1", "item_2")  # the descriptions of image a and image b
    verdict: str = ""  # empty: of answers without a verdict

    @classmethod
    def of(cls, item_key: str, verdict_key: str) -> AnswerKeys:
        return cls((f"{item_key}_1", f"{item_key}_2"), verdict_key)

    def others(self) -> tuple[str, ...]:
        """Return the keys besides the verdict's that answers have, in any vocabulary or in this one."""
        return tuple(dict.fromkeys((*PLAIN_KEYS.items, *self.items, "differences", "confidence", "reasoning")))

    def are_like(self, name: str) -> bool:
        """Return whether a name reads like one of the keys: it would be taken for that key, by a model or by a reader."""
        plain = [re.sub(r"[\W_]+", "", alike(text)) for text in (name, *self.others(), self.verdict)]
        return plain[0] in plain[1:]


PLAIN_KEYS = AnswerKeys()


@dataclass(frozen=True)
class Attribute:
    """One attribute of a vocabulary; `values` are optional hints (closed at miniature scale)."""

    name: str
    values: tuple[str, ...] = ()


@dataclass(frozen=True)
class Vocabulary:
    """Placeholders and attribute list that turn the template of App. E into a domain's prompt."""

    name: str
    expert: str
    identify: str
    target_plural: str
    item: str
    item_plural: str
    example: str
    verdict_question: str
    verdict_key: str
    differences: str  # "every": same / different for each attribute; "key": the differing ones by name
    attributes: tuple[Attribute, ...]
    item_key: str = field(default="item", repr=False)  # answers describe the images as <item_key>_1 and <item_key>_2

    def __repr__(self) -> str:
        """Return the fields; one that came later only if it is not its default, because runs' addresses are made of this text."""
        shown = (f"{f.name}={getattr(self, f.name)!r}" for f in fields(self) if f.repr or getattr(self, f.name) != f.default)
        return f"{type(self).__name__}({', '.join(shown)})"

    @property
    def keys(self) -> AnswerKeys:
        return AnswerKeys.of(self.item_key, self.verdict_key)

    @cached_property
    def attribute_names(self) -> tuple[str, ...]:
        return tuple(attribute.name for attribute in self.attributes)


def load_vocabulary(name_or_path: str | Path) -> Vocabulary:
    """Read a vocabulary by the name of a shipped one or by the path of a YAML file.

    Raises `SagaError` naming file, line and key of the first mistake.
    """
    path = given_path(name_or_path)
    if path.suffix.lower() not in (".yaml", ".yml"):
        if len(path.parts) > 1 and os.path.exists(path):
            raise SagaError(f"vocabulary {path} must be a YAML file, its name ending in .yaml")
        path = VOCABULARY_FOLDER / f"{name_or_path}.yaml"
        if not os.path.isfile(path):
            shipped = [p.stem for p in VOCABULARY_FOLDER.glob("*.yaml")]
            raise SagaError(f"{unknown_name('vocabulary', str(name_or_path), shipped)}; or give the path of a .yaml file")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (FileNotFoundError, NotADirectoryError):
        raise SagaError(f"vocabulary file {path} does not exist") from None
    except UnicodeDecodeError as error:
        raise SagaError(f"{path}: not UTF-8 text ({error}); save it as UTF-8") from None
    except (OSError, ValueError) as error:  # a name with a NUL is a ValueError
        raise SagaError(f"vocabulary {path} cannot be read: {getattr(error, 'strerror', error)}") from None
    return parse_vocabulary(text, path)


def parse_vocabulary(text: str, path: Path) -> Vocabulary:
    """Return the vocabulary that a YAML text holds; errors as of `load_vocabulary`, which name `path`."""
    return _Reader(path, text).vocabulary()


def proposed_key(text: str, keys: AnswerKeys, otherwise: str) -> str:
    """Return a key for a text that `load_vocabulary` accepts, or `otherwise` if the text gives none.

    >>> proposed_key("Same Größe", PLAIN_KEYS, "same_class"), proposed_key("種", PLAIN_KEYS, "same_class")
    ('same_grosse', 'same_class')
    """
    key = ascii_key(text)[:40].strip("_")
    return key if key not in ("", "same", *keys.others()) else otherwise


class _Reader:
    """The YAML tree of one file, read with an eye on its lines."""

    def __init__(self, path: Path, text: str) -> None:
        self.path, self.text = path, text

    def error(self, place: yaml.Node | int | None, message: str) -> SagaError:
        line = place if isinstance(place, int) else place.start_mark.line + 1 if place else None
        return SagaError(f"{self.path}, line {line}: {message}" if line else f"{self.path}: {message}")

    def vocabulary(self) -> Vocabulary:
        tree = self._tree()
        known = (*PLACEHOLDERS, "attributes")
        if tree is None:
            raise self.error(None, f"the file is empty; it needs the keys {', '.join(known)}")
        if not isinstance(tree, yaml.MappingNode):
            raise self.error(tree, "expected lines such as 'verdict_key: same_species', a colon and a space behind each key")
        fields = self._mapping(tree, known, "key")
        texts = {}
        for key, example in PLACEHOLDERS.items():
            if key in fields:
                texts[key] = self._text(fields[key][1], f"'{key}'")
            elif key in OPTIONAL:
                texts[key] = OPTIONAL[key]
            else:
                raise self.error(None, f"the key '{key}' is missing; add a line such as '{key}: {example}'")
        keys = PLAIN_KEYS
        for key, otherwise in (("item_key", "item"), ("verdict_key", "same_class")):
            if not re.fullmatch(r"[a-z][a-z0-9_]*", texts[key]):
                proposal = proposed_key(texts[key], keys, otherwise)
                raise self.error(fields[key][0], f"'{key}' must be a lower_case_name such as {proposal}, got {texts[key]!r}")
            keys = AnswerKeys.of(texts["item_key"], texts["verdict_key"])
        if keys.verdict in keys.others():
            others = ", ".join(keys.others())
            raise self.error(fields["verdict_key"][0], f"'verdict_key' must differ from the answer's other keys, {others}")
        if texts["differences"] not in ("every", "key"):
            meaning = "same or different for each attribute, or the key ones by name"
            raise self.error(fields["differences"][0], f"'differences' must be 'every' or 'key': {meaning}")
        if "attributes" not in fields:
            raise self.error(None, "the key 'attributes' is missing; add 'attributes:' and below it a line '  - name: …' for each")
        return Vocabulary(**texts, attributes=self._attributes(*fields["attributes"], keys))

    def _tree(self) -> yaml.Node | None:
        try:
            return yaml.compose(self.text, Loader=yaml.SafeLoader)
        except yaml.reader.ReaderError as error:
            line = self.text.count("\n", 0, error.position) + 1
            raise self.error(line, f"the character {chr(error.character)!r} is not allowed in YAML; remove it") from None
        except yaml.MarkedYAMLError as error:
            problem, mark = error.problem or "", error.problem_mark or error.context_mark
            line = mark.line + 1 if mark else None
            lines = self.text.splitlines()
            if line and line <= len(lines) and "\t" in lines[line - 1][: len(lines[line - 1]) - len(lines[line - 1].lstrip())]:
                problem = "a tab is where YAML needs spaces; replace it"
            elif "mapping values" in problem:
                problem = "a second colon in a line, or a line indented too far; put texts that hold a colon in quotes"
            elif "expected ':'" in problem:
                problem = "no 'key: value', or no space behind the colon"
                line = error.context_mark.line + 1 if error.context_mark else line
            elif "another document" in problem:
                problem = "'---' starts a second document; a vocabulary is one"
            elif "expected <block end>" in problem:
                problem = "indented differently from the lines above; give all keys of one list or level the same indent"
            raise self.error(line, f"not valid YAML ({problem})") from None
        except (yaml.YAMLError, RecursionError, ValueError, OverflowError) as error:  # the last two of escapes such as "\UFFFFFFFF"
            raise self.error(None, f"not valid YAML ({first_line(error)})") from None

    def _mapping(self, node: yaml.MappingNode, known: Iterable[str], kind: str) -> dict[str, tuple[yaml.Node, yaml.Node]]:
        """Return {key: (its node, its value's node)}; every key known, none twice."""
        found: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        for key, value in node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else "…"
            if name not in known:
                raise self.error(key, str(unknown_name(kind, name, known)))
            if name in found:
                first = found[name][0].start_mark.line + 1
                raise self.error(key, f"the {kind} '{name}' appears twice, first in line {first}; remove one")
            found[name] = (key, value)
        return found

    def _text(self, node: yaml.Node, what: str, kind: str = "a text") -> str:
        """Return a text that is safe in a prompt and as a JSON key."""
        if isinstance(node, yaml.MappingNode):
            raise self.error(node, f"{what} must be {kind}; put it in quotes if it holds a colon")
        if isinstance(node, yaml.SequenceNode) or not alike(node.value):
            raise self.error(node, f"{what} must be {kind}, got {'a list' if isinstance(node, yaml.SequenceNode) else 'nothing'}")
        if node.tag != "tag:yaml.org,2002:str":
            raise self.error(node, f'{what} must be {kind}, but YAML reads {node.value} as something else; quote it: "{node.value}"')
        text = node.value.strip().encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")  # joins pairs, as JSON escapes them
        text = composed(text)
        if text in ("…", "...", "TODO"):
            raise self.error(node, f"{what} still holds the placeholder {text}; write your own text")
        if bad := re.search(_BROKEN if "_key'" in what else f"{_BROKEN}|{_UNSEEN}", text) or yaml.reader.Reader.NON_PRINTABLE.search(text):
            shown = "a line break" if bad.group() == "\n" else ascii(bad.group())
            raise self.error(node, f"{what} must not hold {shown}: it would break the supervisor's JSON")
        if token := re.search(_TOKEN, text):
            raise self.error(node, f"{what} must not hold {token.group()}: the supervisor would take it for a token of the chat")
        return text

    def _attributes(self, key: yaml.Node, node: yaml.Node, keys: AnswerKeys) -> tuple[Attribute, ...]:
        if isinstance(node, yaml.MappingNode):
            raise self.error(node, "'attributes' must be a list: start each attribute with a dash, '  - name: bill shape'")
        if not isinstance(node, yaml.SequenceNode) or not node.value:
            raise self.error(key, "'attributes' must be a list with at least one '- name: …'")
        attributes, places = [], {}
        for number, entry in enumerate(node.value, 1):
            attribute = self._attribute(entry, number)
            same = alike(attribute.name)
            if same in places:
                raise self.error(entry, f"attribute '{attribute.name}' appears twice, first in line {places[same]}; remove one")
            if keys.are_like(attribute.name):
                others = ", ".join((*keys.others(), keys.verdict))
                raise self.error(entry, f"attribute '{attribute.name}' must not be called like a key of the answer ({others}); reword it")
            places[same] = entry.start_mark.line + 1
            attributes.append(attribute)
        return tuple(attributes)

    def _attribute(self, entry: yaml.Node, number: int) -> Attribute:
        if isinstance(entry, yaml.ScalarNode):
            return Attribute(self._text(entry, f"attribute {number}", "a name"))
        if not isinstance(entry, yaml.MappingNode):
            raise self.error(entry, f"attribute {number} has no 'name'; write '- name: bill shape'")
        keys = [key.value for key, _ in entry.value if isinstance(key, yaml.ScalarNode)]
        if "name" not in keys and len(keys) == 1 and keys[0] not in ("value", "values"):
            raise self.error(entry, f"attribute {number} has no 'name'; write '- name: {keys[0]}', and its values below as 'values: […]'")
        fields = self._mapping(entry, ("name", "values"), f"key of attribute {number}")
        if "name" not in fields:
            raise self.error(entry, f"attribute {number} has no 'name'; write '- name: bill shape'")
        name = self._text(fields["name"][1], f"the name of attribute {number}")
        if "values" not in fields:
            return Attribute(name)
        values = fields["values"][1]
        if not isinstance(values, yaml.SequenceNode):
            shown = values.value if isinstance(values, yaml.ScalarNode) and values.value else "round, flat"
            raise self.error(values, f"'values' of attribute '{name}' must be a list of texts: [{shown}]")
        texts = [self._text(value, f"a value of attribute '{name}'") for value in values.value]
        if len(texts) < 2:
            raise self.error(values, f"attribute '{name}' needs at least two values, or none (leave 'values' out: free text)")
        seen: set[str] = set()
        for text in texts:
            if alike(text) in seen:
                raise self.error(values, f"value '{text}' of attribute '{name}' appears twice; remove one")
            seen.add(alike(text))
        return Attribute(name, tuple(texts))
