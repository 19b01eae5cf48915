"""Mangle what users and models give, many thousand times: nothing may crash, and nothing wrong may be read.

    python benchmarks/mangled_inputs.py [KIND ...] [--examples N] [--output FILE]

Kinds of input are in `KINDS`; each has a hypothesis strategy that draws mangled ones, and a check that returns what became of one or raises
AssertionError. To add a kind, write the two and put `@kind(name, examples, strategy)` above the check: this command and the tests
(tests/bench/test_mangled_inputs.py, a few hundred examples; SAGA_EXAMPLES=20000 for more) take it from there.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import math
import platform
import random
import re
import sys
import tempfile
import time
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from fractions import Fraction
from functools import cache
from pathlib import Path
from unittest.mock import patch

import hypothesis
import numpy as np
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image

from saga_lib.answers import attribute_spans, field_span, parse_answer, parse_verdict
from saga_lib.common.errors import SagaError
from saga_lib.common.files import write_json
from saga_lib.common.ranges import DML_OPTIONS, RANGES
from saga_lib.common.ranges import KINDS as KINDS_OF_SETTINGS
from saga_lib.config import RunConfig
from saga_lib.datasets import image_folder
from saga_lib.prompts import comparison_answer, comparison_prompt, generic_prompt
from saga_lib.vocabulary import VOCABULARY_FOLDER, AnswerKeys, Vocabulary, load_vocabulary
from saga_study.own_images.vocabulary_files import save_vocabulary

ROUND = 2000  # examples after which hypothesis starts afresh with another seed; it remembers all that it drew


@dataclass(frozen=True)
class Kind:
    """A kind of input: how many examples are enough, what draws them, and what checks one and returns what became of it."""

    examples: int
    strategy: st.SearchStrategy
    check: Callable[[object], str]


KINDS: dict[str, Kind] = {}


def kind(name: str, examples: int, strategy: st.SearchStrategy) -> Callable:
    def register(check: Callable[[object], str]) -> Callable[[object], str]:
        KINDS[name] = Kind(examples, strategy, check)
        return check

    return register


def try_out(name: str, examples: int, seed: int = 0) -> Counter:
    """Check that many mangled inputs of a kind; return how many met which end. The first failure is raised, shrunk by hypothesis."""
    outcomes: Counter = Counter()
    while (left := examples - outcomes.total()) > 0:
        within = settings(
            max_examples=min(left, ROUND), deadline=None, database=None, suppress_health_check=list(HealthCheck),
            phases=(Phase.generate, Phase.shrink),
        )  # fmt: skip

        @hypothesis.seed(seed)
        @within
        @given(KINDS[name].strategy)
        def run(example: object) -> None:
            outcomes[KINDS[name].check(example)] += 1

        run()
        seed += 1
    return outcomes


# ---------------------------------------------------------------------------------------------- mangling of texts

SEEDS = st.integers(0, 2**64 - 1)  # of what is drawn at once, since hypothesis takes its time for each draw
ACCIDENTS = st.lists(st.integers(0, 2**48), max_size=6)
STRANGE = (
    "\x00", "\ud800", "\u2028", "\ufeff", "\u200b", "\x1b[31m", "e" + chr(0x301), "é", "ﬁ", "ß", "種", "\U0001f426", "\xa0", "\x85",
    "\uffff",
)  # fmt: skip


def with_accidents(text: str, accidents: Sequence[int], pieces: Sequence[str]) -> str:
    """Return a text after accidents, a number each: characters lost or doubled, `pieces` put in, parts moved, the rest cut off."""
    for number in accidents:
        number, start = divmod(number, len(text) + 1)
        number, length = divmod(number, 6)
        number, piece = divmod(number, len(pieces))
        stop, piece = min(len(text), start + (0, 1, 1, 2, 5, 20)[length]), pieces[piece]
        text = (
            text[:start] + text[stop:], text[:start] + piece + text[start:], text[:start] + piece + text[stop:], text[:stop] + text[start:],
            text[:start], text[stop:] + text[start:stop] + text[:start],
        )[number % 6]  # fmt: skip
    return text


def mangled(text: str, pieces: Sequence[str], most: int = 6) -> st.SearchStrategy[str]:
    """Return a strategy of a text after up to `most` accidents."""
    return st.lists(st.integers(0, 2**48), max_size=most).map(lambda accidents: with_accidents(text, accidents, pieces))


def strange_text(dice: random.Random, most: int = 8) -> str:
    """Return a few characters of any kind."""
    kinds = (lambda: chr(dice.randrange(32, 127)), lambda: chr(dice.randrange(0x500)), lambda: dice.choice(STRANGE))
    return "".join(dice.choice(kinds)() for _ in range(dice.randrange(most + 1)))


def is_one_line(error: SagaError) -> bool:
    """Return whether a message is one line for any terminal: printable, but for blanks of any width."""
    return all(c.isprintable() or unicodedata.category(c) == "Zs" for c in str(error))


# ------------------------------------------------------------------------------------------------------- answers

VERDICTS = {  # how a verdict may be written in JSON, or nearly, and what it says
    '"yes"': True, '"no"': False, "true": True, "false": False, '"Yes."': True, '" NO "': False, '"True"': True, '"false."': False,
    "True": True, "no": False, "'yes'": True, "“no”": False, '"\\"yes\\""': True, '"n\\u006f"': False,
    '"maybe"': None, '"yes or no"': None, "null": None, "1": None, '["yes"]': None, '{"answer": "no"}': None, '""': None, '"y"': None,
}  # fmt: skip
BEFORE = ("", "", "Here it is:\n", "```json\n", 'I compared "bill" and {crown}. ', 'The beak is 5" long. ')
BEHIND = ("", "", "\n```", "\nI hope it helps {:-)", '\nI said "no" because…', "<|im_end|>")
WORDS = ("cone", '5" wide', "été", "", "a, b: {c}", "same", "</b>", "“no”", "it's", "[", "\\")


@dataclass(frozen=True)
class Answer:
    """What a supervisor wrote, and what is known of it."""

    text: str
    finished: bool
    keys: AnswerKeys
    verdict: bool | None = None  # what it says, if it is `whole`
    whole: bool = False  # not mangled: JSON, apart from its verdict's spelling and one comma lost or doubled
    cuts: tuple[int, ...] = ()  # places within a whole answer's JSON before its verdict


def draw_answer(seed: int, accidents: Sequence[int]) -> Answer:
    """Draw an answer, with thoughts, drafts and chatter around its JSON; without accidents it is whole."""
    dice = random.Random(seed)
    keys = AnswerKeys.of(dice.choice(("item", "bird", "coffee_mug")), dice.choice(("same_species", "same_design")))

    def words() -> str:
        return dice.choice((*WORDS, strange_text(dice)))

    def description() -> dict[str, str]:
        return {dice.choice(("bill", "leg color", "größe", strange_text(dice, 3))): words() for _ in range(dice.randrange(4))}

    body = {
        keys.items[0]: description(), keys.items[1]: description(), "differences": dice.choice((description(), words())),
        "confidence": "high", "reasoning": words(), keys.verdict: "VERDICT",
    }  # fmt: skip
    if dice.randrange(2):
        body = dict(dice.sample(list(body.items()), len(body)))
    spelling = dice.choice(list(VERDICTS))
    fields = [f"{json.dumps(key)}: {json.dumps(value, ensure_ascii=dice.random() < 0.5)}" for key, value in body.items()]
    glue = [dice.choice((", ", ",", ",\n ")) for _ in fields]
    glue[-1] = dice.choice(("", "", "\n"))
    if dice.randrange(2):  # one comma is lost, doubled, or too many; not behind a verdict without quotes, which needs its end
        at = dice.choice([n for n in range(len(fields)) if not fields[n].startswith(f'"{keys.verdict}"')])
        glue[at] = {", ": (" ", ",, "), ",": ("\n", ",,"), ",\n ": ("\n", ",\n,")}.get(glue[at], (",", ", "))[dice.randrange(2)]
    text = "{" + "".join(field + end for field, end in zip(fields, glue, strict=True)).replace('"VERDICT"', spelling) + "}"
    draft = f'{{"{keys.verdict}": {dice.choice(list(VERDICTS))}, "{keys.items[0]}": {{"bill": "draft"}}}}'
    drafts = ("", "", f"<think>{draft}</think>", f"{draft}\n</think>\n", f"So: {draft}\n", f"<THINK>\n{draft[:9]}</think >")
    before, verdict = dice.choice(drafts) + dice.choice(BEFORE), text.index(f'"{keys.verdict}": {spelling}') + len(keys.verdict) + 4
    cuts = tuple(len(before) + dice.randrange(1, verdict + 2) for _ in range(3))
    text = before + text + dice.choice(BEHIND)
    pieces = (
        '"', "{", "}", "[", "]", ",", ":", "\\", "\n", "'", "<think>", "</think>", "```", "yes", "no", "true", f'"{keys.verdict}": ', draft,
        f'"{keys.items[0]}": {{', "9" * 5000, "{" * 400, "[" * 3000, " ", "“", "\\ud83d", *STRANGE,
    )  # fmt: skip
    if accidents and dice.randrange(8) == 0:
        text = "".join(dice.choice(pieces) for _ in range(dice.randrange(20)))
    text, finished = with_accidents(text, accidents, pieces), dice.random() < 0.75
    return Answer(text, finished, keys) if accidents else Answer(text, finished, keys, VERDICTS[spelling], True, cuts)


answers = st.builds(draw_answer, SEEDS, st.just(()) | ACCIDENTS)


@kind("answers", 200_000, answers)
def check_answer(answer: Answer) -> str:
    """A verdict comes from a complete field behind the thoughts of a finished answer; what is whole is read right; spans are places."""
    text, keys = answer.text, answer.keys
    found = parse_verdict(text, keys.verdict, answer.finished)
    assert found in (True, False, None)
    assert parse_verdict(text, keys.verdict, finished=False) is None
    parsed = parse_answer(text, keys.verdict)
    assert parsed is None or isinstance(parsed, dict)
    behind = max((m.end() for m in re.finditer(r"<\s*/\s*think(ing)?\s*>", text, re.IGNORECASE)), default=0)
    for span in attribute_spans(text, keys, (*keys.items, "differences")):
        assert behind <= span.start <= span.end <= len(text) and span.section in (*keys.items, "differences")
        assert unicodedata.is_normalized("NFC", span.attribute)
    for key in (keys.verdict, "differences"):
        place = field_span(text, key, keys)
        assert place is None or behind <= place[0] <= place[1] <= len(text)
    if found is not None:
        fields = re.findall(
            rf"""["'“”]{keys.verdict}["'“”]\s*:\s*((?:"(?:[^"\\]|\\.)*"|'[^'\n]*'|[“”][^“”\n]*[“”]|[A-Za-z]+\.?)(?=\s*(?:[,}}\]"`]|$)))""",
            text[behind:], re.DOTALL,
        )  # fmt: skip
        escaped = re.compile(r"\\u([0-9a-fA-F]{4})")
        said = {re.sub(r"[\W_]+", "", escaped.sub(lambda digits: chr(int(digits[1], 16)), field).lower()) for field in fields}
        assert said & ({"yes", "true"} if found else {"no", "false"}), "a verdict that no complete field says"
        assert not re.search(r"<\s*think(ing)?\s*>", text[behind:], re.IGNORECASE), "a verdict among thoughts"
    if answer.whole:
        assert found == (answer.verdict if answer.finished else None), "a whole answer was read wrong"
        assert all(parse_verdict(text[:cut], keys.verdict) is None for cut in answer.cuts), "an answer that was cut has a verdict"
    return {True: "yes", False: "no", None: "no verdict"}[found] + (", whole" if answer.whole else ", mangled")


# -------------------------------------------------------------------------------------------------- vocabularies

YAML_PIECES = (
    ":", ": ", "- ", "\n", "  ", "\t", "#", "'", '"', "[", "]", "{", "}", "&a ", "*a", "!!int ", "!!python/object:os.system ", "---\n",
    "...\n", "|\n", ">\n", "? ", "<<: ", "%YAML 1.1\n", "@", "`", "null", "yes", "3", "…", "\r", '"\\UFFFFFFFF"', '"\\ud800"',
    '"\\0"', '"\\uFFFF"', "<|im_end|>", "<think>", "<IMG_CONTEXT>", "Größe", "name", "values: [a, b]\n", "same_species", "item_1",
    "differences", "item_key: bird\n", "verdict_key: Same Größe\n", "differences: every\n", "  - name: bill shape\n", "  - Confidence\n",
    "[" * 200, "a" * 3000, *STRANGE,
)  # fmt: skip
SHIPPED = [path.read_text(encoding="utf-8") for path in sorted(VOCABULARY_FOLDER.glob("*.yaml"))]


def draw_vocabulary(seed: int, accidents: Sequence[int]) -> bytes:
    """Draw the bytes of a vocabulary's file: a shipped one with lines moved, values replaced and accidents to its text; or anything."""
    dice = random.Random(seed)
    lines = dice.choice(SHIPPED).splitlines(keepends=True)
    for _ in range(dice.randrange(3)):
        at, change = dice.randrange(len(lines)), dice.randrange(6)
        if change < 3:
            value = dice.choice((*YAML_PIECES, strange_text(dice)))
            lines[at] = lines[at].partition(": ")[0] + ": " + dice.choice((value, json.dumps(value), repr(value))) + "\n"
        elif change == 3:
            lines.insert(at, lines.pop(dice.randrange(len(lines))))
        else:
            lines[at] = "" if change == 4 else 2 * lines[at]
    text = "".join(lines)
    if accidents and dice.randrange(8) == 0:
        text = "".join(dice.choice(YAML_PIECES) for _ in range(dice.randrange(12)))
    text = with_accidents(text, accidents[:3], YAML_PIECES)
    if accidents and dice.randrange(10) == 0:
        return dice.choice((text.encode("utf-16", "surrogatepass"), text.encode("latin-1", "replace"), dice.randbytes(30)))
    return text.encode("utf-8", "surrogatepass")


vocabularies = st.builds(draw_vocabulary, SEEDS, st.just(()) | ACCIDENTS)


@kind("vocabularies", 20_000, vocabularies)
def check_vocabulary(content: bytes) -> str:
    """A vocabulary's file gives one line or an object with which prompts, true answers, and a file that is read back, can be made."""
    with tempfile.TemporaryDirectory(prefix="mangled-") as folder:
        path = Path(folder) / "mangled.yaml"
        path.write_bytes(content)
        try:
            vocabulary = load_vocabulary(path)
        except SagaError as error:
            assert is_one_line(error) and "mangled.yaml" in str(error), "not one line that names the file"
            return "one line"
        _check_object(vocabulary)
        save_vocabulary(vocabulary, path)
        assert load_vocabulary(path) == vocabulary
    return "valid"


def _check_object(vocabulary: Vocabulary) -> None:
    keys, names = vocabulary.keys, vocabulary.attribute_names
    assert len(set(names)) == len(names) > 0 and re.fullmatch(r"[a-z][a-z0-9_]*", keys.verdict)
    assert not set(names) & {*keys.items, keys.verdict, "differences", "confidence", "reasoning"}
    for text in (comparison_prompt(vocabulary), generic_prompt(vocabulary), *names):
        assert unicodedata.is_normalized("NFC", text) and not re.search(r"<\|?/?\w+\|?>", text)
        text.encode()
    first = {a.name: a.values[0] if a.values else "round" for a in vocabulary.attributes}
    second = first | {names[0]: vocabulary.attributes[0].values[1] if vocabulary.attributes[0].values else "flat"}
    for other in (first, second):
        text = comparison_answer(vocabulary, first, other)
        assert parse_verdict(text, keys.verdict) is (other is first)
        assert [(s.section, s.attribute) for s in attribute_spans(text, keys)] == [(item, name) for item in keys.items for name in names]


# -------------------------------------------------------------------------------------------------------- tables

TABLE_PIECES = (
    ",", ",,", ";", "\t", '"', '""', "'", "\n", "\r\n", "\r", " ", "\\", "/", "..", "../", "path", "Path", "label", "LABEL", "split",
    "Split ", "train", "TEST", "val", "notes", "=HYPERLINK(1)", "<script>", "/dev/zero", "/etc/passwd", "~", "~/", "https://x.org/a.png",
    "a/0.png", "a", "A", "a" * 300, "PK\x03\x04", "\x89PNG", "{", "#",
)  # fmt: skip
CLASSES = ("a", "b", "c d", "e" + chr(0x301), 'f, "g"')


@cache
def photographs() -> tempfile.TemporaryDirectory:
    """Return a folder of five classes of three tiny images; it is there as long as this process."""
    place = tempfile.TemporaryDirectory(prefix="mangled-")
    for number, name in enumerate(CLASSES):
        for image in range(3):
            path = Path(place.name, name, f"{image}.png")
            path.parent.mkdir(exist_ok=True)
            Image.new("RGB", (4, 4), (40 * number, 80 * image, 99)).save(path)
    return place


@dataclass(frozen=True)
class Table:
    """The bytes of a CSV in the folder of `photographs`, and, unless it is mangled, its rows (path below the folder, label, split)."""

    content: bytes
    rows: tuple[tuple[str, str, str], ...] = ()


def draw_table(seed: int, accidents: Sequence[int]) -> Table:
    """Draw a table of images in one of the ways that programs write them; without accidents it is whole."""
    dice = random.Random(seed)
    has_split, halves = dice.random() < 0.5, {name: dice.choice(("train", "test")) for name in CLASSES}
    rows = [(f"{name}/{image}.png", name, halves[name] if has_split else "") for name in CLASSES for image in range(3)]
    dice.shuffle(rows)
    names = (("path", "Path", " PATH "), ("label", "LABEL", "Label "), ("split", "Split", "ＳＰＬＩＴ"), ("year", "", "Photographer"))
    columns = [0, 1] + [2] * has_split + [3] * dice.randrange(2)
    dice.shuffle(columns)
    slash, blank, case = dice.choice("//\\"), dice.choice(("", " ")), dice.choice((str, str.upper, str.title))
    lines = [[dice.choice(names[column]) for column in columns]]
    for path, label, split in rows:
        cells = (path.replace("/", slash), label + blank, blank + case(split), "2024")
        lines += [[cells[column] for column in columns], *([[""] * len(columns)] if dice.random() < 0.02 else [])]
    written, form = io.StringIO(), dice.choice(("NFC", "NFD", None))
    quoting, end = dice.choice((csv.QUOTE_MINIMAL, csv.QUOTE_ALL)), dice.choice(("\n", "\r\n", "\r"))
    csv.writer(written, quoting=quoting, lineterminator=end).writerows(
        [unicodedata.normalize(form, cell) if form else cell for cell in line] for line in lines
    )
    text, encoding = written.getvalue(), dice.choice(("utf-8", "utf-8", "utf-8-sig", "utf-16"))
    if accidents and dice.randrange(8) == 0:
        text = "".join(dice.choice((*TABLE_PIECES, *STRANGE)) for _ in range(dice.randrange(12)))
    text = with_accidents(text, accidents, TABLE_PIECES + STRANGE)
    return Table(text.encode(encoding, "surrogatepass"), () if accidents else tuple(rows))


tables = st.builds(draw_table, SEEDS, st.lists(st.integers(0, 2**48), max_size=2)) | st.binary(max_size=40).map(Table)


@kind("tables", 20_000, tables)
def check_table(table: Table) -> str:
    """A table gives one line or two class-disjoint splits of files that exist; a whole one is read as it was meant, its split too."""
    root = Path(photographs().name)
    path = root / "mangled.csv"
    path.write_bytes(table.content)
    classes = Counter({label: split for _, label, split in table.rows}.values())
    few = classes.keys() != {""} and min(classes["train"], classes["test"]) < 2
    try:
        with patch.object(image_folder, "load_vocabulary"):  # which would take longer than all the rest
            benchmark, checks = image_folder.load_image_folder(path, vocabulary="birds")
    except SagaError as error:
        assert is_one_line(error) and "mangled.csv" in str(error) and len(str(error)) < 1500, "not one line that names the file"
        assert not table.rows or (few and "too few classes" in str(error)), "a whole table was refused"
        return "one line"
    read = set()
    for split in (benchmark.train, benchmark.test):
        assert len(split.class_names) > 1 and (np.bincount(split.labels, minlength=len(split.class_names)) > 1).all()
        for file, label in zip(split.paths, split.labels, strict=True):
            assert file.is_file() and unicodedata.is_normalized("NFC", split.class_names[label]) and split.class_names[label].isprintable()
            read.add((file.resolve(), split.class_names[label], split.name))
    assert not set(benchmark.train.class_names) & set(benchmark.test.class_names)
    assert all(text.isprintable() for text in checks["example"]) and set(checks["severity"]) <= {"ok", "note", "warning"}
    if table.rows:
        meant = {((root / p).resolve(), unicodedata.normalize("NFC", label), split) for p, label, split in table.rows}
        assert {row[:2] for row in read} == {row[:2] for row in meant}, "other images or labels were read"
        assert not table.rows[0][2] or read == meant, "another split was read"
    return "valid, whole" if table.rows else "valid, mangled"


# ------------------------------------------------------------------------------------------------- mangled settings

FIELDS = {field.name: field for field in fields(RunConfig)}
NAMES = {"profile": "smoke", "dataset": "miniature_birds", "method": "mine", "seed": 0, "supervisor": "miniature", "image_size": 48}
ANYTHING = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 3), st.integers(), st.floats(), st.text(max_size=8), st.binary(max_size=3),
    st.sampled_from([0, 1, 2, -1, 0.0, -0.0, 0.5, 1.0, 1e-320, 1e308, float("nan"), float("inf"), 2**31, 2**32, 2**64, 10**400]),
    st.sampled_from(["", "0", "1", "true", "none", Path("a"), 1j, Fraction(1, 3), np.array(1), np.array([1.0])]),
    st.sampled_from([np.int64(2), np.float32(0.5), np.float16("nan"), np.True_]),
    st.lists(st.integers(), max_size=2), st.dictionaries(st.text(max_size=2), st.integers(), max_size=2),
)  # fmt: skip
CHOSEN = [name for allowed in RANGES.values() for name in allowed.names]
NEAR = st.sampled_from([*CHOSEN, "gpro", "grpo ", "PF", "miniature", "timm:x", "a.yaml"])
OPTION_NAMES = st.sampled_from([name for known in DML_OPTIONS.values() for name in known])
OPTIONS = st.one_of(
    ANYTHING, st.dictionaries(OPTION_NAMES, ANYTHING | st.floats(0.1, 9), max_size=3),
    st.lists(st.tuples(st.sampled_from(["alpha", "delta", "margin", 1, None]), ANYTHING), max_size=2),
)  # fmt: skip


@st.composite
def mangled_settings(draw: Callable) -> object:
    """Settings of a run of which some are wrong: another type, out of range, misspelt, absent, or the name of another."""
    content = dict(NAMES)
    for name in draw(st.lists(st.sampled_from(list(FIELDS)), max_size=4)):
        content[name] = draw(OPTIONS) if name == "dml_options" else draw(st.one_of(ANYTHING, NEAR))
    if draw(st.integers(0, 9)) == 0:
        content[draw(st.one_of(st.text(max_size=5), st.integers(), st.sampled_from([f"{name}s" for name in FIELDS])))] = draw(ANYTHING)
    if draw(st.integers(0, 9)) == 0:
        content.pop(draw(st.sampled_from(list(NAMES))), None)
    return draw(ANYTHING) if draw(st.integers(0, 49)) == 0 else content


@kind("settings", 20_000, mangled_settings())
def check_settings(content: object) -> str:
    """Settings give one line, or a `RunConfig` of plain values in range whose record leads back to it."""
    try:
        config = RunConfig.from_dict(content)
    except SagaError as error:
        assert is_one_line(error), "not one line"
        return "one line"
    record = json.loads(json.dumps(config.to_dict(), allow_nan=False))
    assert RunConfig.from_dict(record) == config and hash(RunConfig.from_dict(record)) == hash(config)
    for name, field in FIELDS.items():
        value = getattr(config, name)
        assert field.type not in KINDS_OF_SETTINGS or type(value).__name__ == field.type, name
        assert field.type != "float" or math.isfinite(value), name
        assert field.type not in ("int", "float") or value in RANGES[name], name
    return "valid"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"default: all of {', '.join(KINDS)}")
    parser.add_argument("--examples", type=int, help="of each kind; default: as many as are enough for it")
    parser.add_argument("--output", type=Path, help="write the counts as JSON, beside those of other kinds that the file has")
    args = parser.parse_args(arguments)
    if unknown := set(args.kinds) - set(KINDS):
        parser.error(f"unknown kind {', '.join(sorted(unknown))}; known: {', '.join(KINDS)}")
    for name in args.kinds or KINDS:
        started, examples = time.perf_counter(), args.examples or KINDS[name].examples
        outcomes = try_out(name, examples)
        minutes = (time.perf_counter() - started) / 60
        print(f"{name}: {outcomes.total():,} in {minutes:.1f} min, none wrong: {dict(outcomes.most_common())}", flush=True)
        if args.output:
            known = json.loads(args.output.read_text(encoding="utf-8")) if args.output.exists() else {}
            result = {"examples": outcomes.total(), "wrong": 0, "minutes": round(minutes, 1), "outcomes": dict(sorted(outcomes.items()))}
            machine = f"{platform.processor() or platform.machine()}, one core, hypothesis {hypothesis.__version__}"
            write_json(args.output, known | {"machine": machine, name: result})
    return 0


if __name__ == "__main__":
    sys.exit(main())
