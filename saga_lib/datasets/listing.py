"""Your own images listed: a folder of class sub-folders, or a CSV table, with what of it is left out."""

from __future__ import annotations

import csv
import io
import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache
from numbers import Integral
from pathlib import Path

from saga_lib.common.errors import SagaError, one_line
from saga_lib.common.images import SUFFIXES, Found, find_images, is_foreign, what_is
from saga_lib.common.paths import given_path, names_in
from saga_lib.common.texts import alike, composed

SPLITS = ("train", "test")
Check = tuple[str, str, list[str], str]  # name of the check, severity, findings, advice
HOW_TO_LIST = "give a folder of class sub-folders, or a CSV with path,label"
_SPLIT_WORD = r"(trainval|train|val|valid|test|dev|eval|query|gallery|probe|holdout|(?:un)?labell?ed)(?:ings?|idation|uation)?"
_SPLIT_NAME = re.compile(rf"{_SPLIT_WORD}([ _-]?(set|split|data|images|20\d\d))?s?")
_SPLIT_PART = re.compile(rf"(?<![^\W\d_]){_SPLIT_WORD}(?:set|split|data|daten|images)?s?(?![^\W\d_])")  # of a longer name
_YES_OR_NO = {"0", "1", "true", "false", "yes", "no", "t", "f", "y", "n", "0.0", "1.0"}


@dataclass
class Picture:
    """One listed file and what was found on reading it; `problem` is the reason why it cannot be used."""

    path: Path
    name: str  # as shown: relative to the folder, or as the CSV writes it
    label: str
    split: str | None = None  # of the CSV's column
    problem: str = ""
    mode: str = ""
    short_side: int = 0
    brightest: int = 255  # of the pixels as RGB
    frames: int = 1
    is_turned: bool = False
    is_transparent: bool = False
    digest: str = ""  # of the pixels as RGB: equal for copies, whatever their metadata


@dataclass
class Listing:
    """All pictures, all labels (those of empty sub-folders have no picture), and checks of what was found beside them."""

    name: str = ""
    pictures: list[Picture] = field(default_factory=list)
    labels: set[str] = field(default_factory=set)
    checks: list[Check] = field(default_factory=list)
    spellings: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))  # {label: how it is written}

    def add(self, path: Path, name: str, label: str, split: str | None = None) -> None:
        problem = "has a name that is not UTF-8; rename it" if any("\ud800" <= c <= "\udfff" for c in name) else ""
        self.spellings[named(label)].add(label)
        self.pictures.append(Picture(path, named(name), named(label), split, problem))


def named(text: object) -> str:
    """Return a label or name as it is used and shown: in Unicode's composed form (NFC), plain blanks, escapes for what is not printable."""
    return one_line("".join(" " if unicodedata.category(c) == "Zs" else c for c in composed(str(text))))


def list_images(source: object) -> Listing:
    """Return what a folder of class sub-folders or a CSV lists; raises `SagaError` if it lists nothing or cannot be read."""
    if isinstance(source, bool) or not isinstance(source, str | Integral | os.PathLike) or not str(source):
        raise SagaError(f"{source!r} is no place of images; {HOW_TO_LIST}")
    path = given_path(str(source))
    if os.path.isdir(path):
        listing = _list_folder(path)
    elif os.path.isfile(path):
        listing = _list_csv(path)
    else:
        raise SagaError(f"{path} {'is neither a folder nor a file' if os.path.exists(path) else 'does not exist'}; {HOW_TO_LIST}")
    whole = Path(os.path.realpath(path))
    home = os.path.join(whole if whole.is_dir() else whole.parent, "")
    listing.name = named(whole.name if whole.is_dir() else whole.stem)
    outside = [p.name for p in listing.pictures if not os.path.realpath(p.path).startswith(home)]
    listing.checks.append(
        ("image outside the folder", "note", outside, "see that they are meant: they are read from where a path or link leads")
    )
    return listing


# ----------------------------------------------------------------------------------------------- a folder


def _list_folder(root: Path) -> Listing:
    found = find_images(root)
    parts = [path.relative_to(root).parts for path in found]
    loose = [name for name, *below in parts if not below]
    advice = "put the images of each class into a sub-folder of its own, or give a CSV with path,label"
    if len(loose) == len(parts):
        reason = f"its {len(loose)} image(s) lie in no sub-folder" if loose else "no image is in it"
        raise SagaError("; ".join([f"{root}: {reason}", *found.skipped(), advice]))
    inner = defaultdict(set)  # {sub-folder: its own sub-folders with images}
    for top, *below in parts:
        if below:
            inner[top].add(below[0] if len(below) > 1 else "")
    _refuse_splits(root, inner)
    listing = Listing(checks=_folder_checks(found, loose))
    for path, names in zip(found, parts, strict=True):
        if len(names) > 1:
            listing.add(path, "/".join(names), names[0])
    folders = [entry.name for entry in os.scandir(root) if entry.is_dir() and not is_foreign(entry.name)]
    listing.labels |= {named(name) for name in folders} | {p.label for p in listing.pictures}
    return listing


def _refuse_splits(root: Path, inner: dict[str, set[str]]) -> None:
    """Raise `SagaError` if sub-folders are splits, or one folder around all classes; inner: {sub-folder: its sub-folders}."""
    splits = sorted({name for name in inner if _SPLIT_NAME.fullmatch(alike(name))} | _differing_in_their_split(inner))
    others = set().union(*(inner[name] for name in inner if name not in splits)) - {""}
    if len(splits) > 1 or (splits and (inner[splits[0]] & others or (len(inner) == 1 and inner[splits[0]] != {""}))):
        raise SagaError(
            f"{root}: its sub-folders {', '.join(splits)} are splits, not classes; "
            "move the class folders up and name the test ones with test_classes, or give a CSV with path,label,split"
        )
    only = next(iter(inner))
    if len(inner) == 1 and len(inner[only] - {""}) > 1 and "" not in inner[only]:
        raise SagaError(f"{root}: all images lie in its one sub-folder, with {len(inner[only])} sub-folders; give {root / only}")


def _differing_in_their_split(names: Iterable[str]) -> set[str]:
    """Return the names that are alike, digits and punctuation aside, but for the split in them: seg_train, seg_test."""
    groups = defaultdict(lambda: defaultdict(set))  # {name without its split: {split: names}}
    for name in names:
        if part := _SPLIT_PART.search(alike(name)):
            rest = re.sub(r"[\W\d_]+", "", alike(name)[: part.start()] + alike(name)[part.end() :])
            groups[rest][part[1]].add(name)
    return {name for group in groups.values() if len(group) > 1 for names in group.values() for name in names}


def _is_split(column: str, values: set[str]) -> bool:
    """Return whether a column (name and different values, as `alike` has them) says which split an image is in."""
    by_value = len(values) > 1 and all(_SPLIT_NAME.fullmatch(value) for value in values)
    by_name = re.sub(r"^is[ _-]?|[ _-]?(img|image|sample)s?$", "", column)
    return by_value or len(values) == 2 and values <= _YES_OR_NO and bool(_SPLIT_NAME.fullmatch(by_name))


def _folder_checks(found: Found, loose: list[str]) -> list[Check]:
    def places(kinds: dict[str, list[str]]) -> list[str]:  # all of them, but first, for the examples, one of each kind with its number
        ordered = sorted(kinds.items(), key=lambda kind: -len(kind[1]))
        firsts = [f"{named(kind)} ({len(names)}), e.g. {named(names[0])}" for kind, names in ordered]
        return firsts + [named(name) for _, names in ordered for name in names[1:]]

    return [
        ("photograph of a kind that is not read", "warning", places(found.unread),
         "they are left out; convert them to JPEG or PNG, e.g. magick mogrify -format jpg *.heic"),
        ("image in no sub-folder", "warning", [named(name) for name in loose], "they are left out; move each into the folder of its class"),
        ("folder that cannot be listed", "warning", found.closed, "its images are left out; correct its permissions"),
        ("hidden, or of another program", "note", places(found.foreign), "left out, as thumbnails, bins and caches are no photographs"),
        ("file of another kind", "note", places(found.other), f"left out; images end in {' '.join(SUFFIXES)}"),
    ]  # fmt: skip


# ------------------------------------------------------------------------------------------------- a table


def _list_csv(path: Path) -> Listing:
    header, rows = _table(path)
    if wrong := next((name for name in header if name and header.count(name) > 1), None):
        raise SagaError(f"{path} has {header.count(wrong)} columns called '{wrong}', case and blanks aside; keep one and rename the others")
    for column in ("path", "label"):
        if column not in header:
            has = _short(", ".join(header))
            raise SagaError(f"{path} needs one column '{column}', it has {has}; its first line must be path,label[,split], with commas")
    contents = {name or f"no. {n + 1}": {alike(row[n]) for _, row in rows} - {""} for n, name in enumerate(header)}
    unused = [name for name in contents if name not in ("path", "label", "split") and (name in header or contents[name])]
    for name in unused if "split" not in header else ():
        if _is_split(name, contents[name]):
            holds = f"column '{name}' holds {' and '.join(sorted(contents[name], reverse=True))}"
            raise SagaError(f"{path}: {holds} but is not called split, so it would not count; rename it, its values train and test")
    listing, names = Listing(), cache(names_in)
    for line, row in rows:
        cell = dict(zip(header, row, strict=True))
        for column in ("path", "label"):
            if not cell[column]:
                raise SagaError(f"{path}, line {line}: the {column} is empty; fill it in or remove the line")
        split = cell.get("split")
        if split is not None and alike(split) not in SPLITS:
            raise SagaError(f"{path}, line {line}: split is '{_short(split)}'; it must be train or test")
        file = _find(path.parent, cell["path"], names)
        if file is None:
            place = _short(path.parent / cell["path"])
            where = "is no file but a web address; download it" if "://" in cell["path"] else f"is no file (looked for {place})"
            raise SagaError(f"{path}, line {line}: path '{_short(cell['path'])}' {where}; fix the path or remove the line")
        listing.add(file, cell["path"], cell["label"], split and alike(split))
    if not listing.pictures:
        raise SagaError(f"{path} lists no image; add lines of path,label")
    listing.labels = {p.label for p in listing.pictures}
    listing.checks.append(("unused column", "note", unused, "nothing; only path, label and split are read"))
    return listing


def _table(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Return the header of a CSV, lower case, and its rows with their lines; every row is as long as the header, no row is blank."""
    must = "its first line must be path,label or path,label,split"
    try:
        kind = what_is(path)
        if kind.endswith("image") or path.suffix.lower() in SUFFIXES:
            raise SagaError(f"{path} is one image, not a table of images; {HOW_TO_LIST}")
        if kind:
            raise SagaError(f"{path} is not a CSV table but {kind}; unpack an archive, save a spreadsheet as CSV, or {HOW_TO_LIST}")
        content = path.read_bytes()
        text = content.decode("utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
        reader = csv.reader(io.StringIO(text, newline=""), strict=True)
        lines = [(reader.line_num, [cell.strip() for cell in row]) for row in reader]
    except (csv.Error, UnicodeDecodeError) as error:
        raise SagaError(f"{path} is not a CSV table in UTF-8 ({error}); save it as one; {must}") from None
    except OSError as error:
        raise SagaError(f"{path} cannot be read: {error.strerror}") from None
    rows = [(line, row) for line, row in lines if any(row)]
    if not rows:
        raise SagaError(f"{path} is not a CSV table (it is blank); {must}")
    header = [alike(name) for name in rows.pop(0)[1]]
    for line, row in rows:
        if any(row[len(header) :]):
            raise SagaError(f"{path}, line {line}: a line has more cells than its first line names; put names that hold commas in quotes")
    return header, [(line, (row + [""] * len(header))[: len(header)]) for line, row in rows]


def _find(folder: Path, name: str, names: Callable[[Path], dict[str, str]]) -> Path | None:
    """Return the file that a table means, None if there is none; it may be spelled in another form of Unicode, or by Windows."""
    for written in (name, name.replace("\\", "/")):
        place = given_path(written if written.startswith("~/") else folder / written, names)
        if os.path.isfile(place):
            return place
    return None


def _short(text: object) -> str:
    return str(text) if len(str(text)) <= 200 else f"{str(text)[:200]}…"
