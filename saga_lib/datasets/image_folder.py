"""A benchmark from your own images: a folder of class sub-folders, or a CSV, checked before anything is trained."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from saga_lib.common.errors import SagaError, unknown_name
from saga_lib.common.images import find_images, is_foreign, read_image
from saga_lib.datasets.splits import Benchmark, Split
from saga_lib.vocabulary import load_vocabulary

if TYPE_CHECKING:
    import pandas as pd

NEAR_EMPTY = 4  # a class with fewer images repeats some in every class-balanced batch (m = 4)
SMALL_SIDE = 64  # pixels; towers see 224, so that smaller images are mostly interpolation
SPLITS = ("train", "test")
Check = tuple[str, str, list[str], str]  # name of the check, severity, findings, advice
_SPLIT_FOLDERS = {"train", "test", "val", "valid", "validation"}


@dataclass
class _Picture:
    """One listed file and what was found on reading it; `problem` is the reason why it cannot be used."""

    path: Path
    name: str  # as shown: relative to the folder, or as the CSV writes it
    label: str
    split: str | None = None  # of the CSV's column
    problem: str = ""
    mode: str = ""
    short_side: int = 0
    is_turned: bool = False
    is_transparent: bool = False
    digest: str = ""  # of the pixels as RGB: equal for copies, whatever their metadata


def load_image_folder(
    root_or_csv: str | Path, *, vocabulary: str, test_fraction: float = 0.5, test_classes: Sequence[str] | None = None,
    seed: int = 0, images_per_class: int = 0,
) -> tuple[Benchmark, pd.DataFrame]:  # fmt: skip
    """Load your own images as a class-disjoint benchmark; return it with the table of its checks.

    `root_or_csv` is a folder whose sub-folders are classes (images at any depth), or a CSV with the columns
    `path` (absolute or relative to the CSV), `label` and optionally `split` (train or test, one per class).
    Without a `split` column, `test_classes` are the test classes, or else `test_fraction` of all classes drawn by
    `seed`. `images_per_class` takes the first so many of each class (0 all). Unreadable images and classes with fewer
    than 2 readable ones are left out; the table (check, severity, count, example, what to do) says so. Its severities
    are ok, note and warning.

    Raises `SagaError` for errors: see `check_image_folder`, which returns them as rows instead.
    """
    load_vocabulary(vocabulary)
    source = Path(root_or_csv)
    pictures, labels = _listed(source)
    table, test = _checked(pictures, labels, test_fraction, test_classes, seed)
    errors = table[table["severity"] == "error"]
    if len(errors):
        first = errors.iloc[0]
        more = f" ({len(errors) - 1} more error(s); check_image_folder lists all)" if len(errors) > 1 else ""
        raise SagaError(f"{root_or_csv}: {first['check']}: {first['example']}; {first['what to do']}{more}")
    of_class = defaultdict(list)
    for picture in pictures:
        if not picture.problem:
            of_class[picture.label].append(picture)
    usable = [p for label in sorted(_usable_classes(pictures)) for p in of_class[label][: images_per_class or None]]
    train_split, test_split = (_split(name, [p for p in usable if (p.label in test) == (name == "test")]) for name in SPLITS)
    content = hashlib.sha256()
    for picture in usable:
        content.update(f"{picture.name}\0{picture.label}\0{picture.label in test}\0{picture.digest}\n".encode())
    source = source.resolve()
    return Benchmark(source.name if source.is_dir() else source.stem, vocabulary, train_split, test_split, content.hexdigest()[:12]), table


def check_image_folder(
    root_or_csv: str | Path, *, test_fraction: float = 0.5, test_classes: Sequence[str] | None = None, seed: int = 0
) -> pd.DataFrame:
    """Return the table of `load_image_folder`'s checks, errors included as rows of severity "error".

    Still raises `SagaError` for what leaves nothing to check: a missing or empty folder, a CSV that cannot be
    parsed, unknown test classes.
    """
    return _checked(*_listed(Path(root_or_csv)), test_fraction, test_classes, seed)[0]


def _split(name: str, pictures: list[_Picture]) -> Split:
    class_names = sorted({p.label for p in pictures})
    number = {label: n for n, label in enumerate(class_names)}
    return Split(name, [p.path for p in pictures], np.array([number[p.label] for p in pictures], dtype=np.int64), class_names)


# ------------------------------------------------------------------------------------------------ listing


def _listed(source: Path) -> tuple[list[_Picture], set[str]]:
    """Return all pictures, each read, and all labels; those of empty sub-folders have no picture."""
    from tqdm import tqdm

    if source.is_dir():
        pictures = _listed_folder(source)
        labels = {p.name for p in source.iterdir() if p.is_dir() and not is_foreign(p.name)}
    elif source.is_file():
        pictures = _listed_csv(source)
        labels = set()
    else:
        raise SagaError(f"{source} does not exist; give a folder of class sub-folders, or a CSV with path,label")
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in tqdm(pool.map(_examine, pictures), "reading images", len(pictures), disable=None, unit="image"):
            pass
    return pictures, {_printable(label) for label in labels} | {p.label for p in pictures}


def _printable(name: str) -> str:
    """Return a file name as valid UTF-8, with escapes for bytes that are not."""
    return name.encode("utf-8", "backslashreplace").decode()


def _listed_folder(root: Path) -> list[_Picture]:
    files = find_images(root)
    pictures = []
    for path in files:
        parts = path.relative_to(root).parts
        if len(parts) > 1:
            pictures.append(_Picture(path, "/".join(parts), parts[0]))
    advice = "put the images of each class into a sub-folder of its own, or give a CSV with path,label"
    if not pictures:
        raise SagaError(f"{root}: {f'its {len(files)} image(s) lie in no sub-folder' if files else 'no image is in it'}; {advice}")
    labels = {p.label for p in pictures}
    if len(labels) > 1 and {label.lower() for label in labels} <= _SPLIT_FOLDERS and all(p.name.count("/") > 1 for p in pictures):
        raise SagaError(
            f"{root}: its sub-folders {', '.join(sorted(labels))} are splits, not classes; "
            "move the class folders up and name the test ones with test_classes, or give a CSV with path,label,split"
        )
    return pictures


def _listed_csv(path: Path) -> list[_Picture]:
    import pandas as pd

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)
            frame = pd.read_csv(  # every cell a text, line numbers kept
                path, dtype=str, keep_default_na=False, encoding="utf-8-sig", skip_blank_lines=False, index_col=False
            )
    except pd.errors.ParserWarning:
        raise SagaError(f"{path}: a line has more cells than its first line names; put names that hold commas in quotes") from None
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        reason = str(error).strip().splitlines()[-1]
        raise SagaError(f"{path} is not a CSV table in UTF-8 ({reason}); its first line must be path,label or path,label,split") from None
    except OSError as error:
        raise SagaError(f"{path} cannot be read: {error.strerror}") from None
    frame.columns = [str(name).strip() for name in frame.columns]
    for column in ("path", "label"):
        if list(frame.columns).count(column) != 1:
            raise SagaError(
                f"{path} needs one column '{column}', it has {', '.join(frame.columns)}; its first line must be path,label[,split]"
            )
    pictures = []
    for line, row in enumerate(frame.to_dict("records"), 2):
        row = {name: value.strip() if isinstance(value, str) else "" for name, value in row.items()}
        if not any(row.values()):
            continue  # a blank line
        for column in ("path", "label"):
            if not row[column]:
                raise SagaError(f"{path}, line {line}: the {column} is empty; fill it in or remove the line")
        split = row.get("split")
        if split is not None and split not in SPLITS:
            raise SagaError(f"{path}, line {line}: split is '{split}'; it must be train or test")
        file = path.parent / row["path"]
        if not os.path.isfile(file):  # unlike Path.is_file, false for whatever is no path at all
            raise SagaError(f"{path}, line {line}: path '{row['path']}' is no file (looked for {file}); fix the path or remove the line")
        pictures.append(_Picture(file, row["path"], row["label"], split))
    if not pictures:
        raise SagaError(f"{path} lists no image; add lines of path,label")
    return pictures


def _examine(picture: _Picture) -> None:
    """Note what the checks need of a picture, in place."""
    try:
        status = os.stat(picture.path)
    except OSError as error:
        picture.problem = f"cannot be read ({error.strerror})"
    else:
        for name, value in _decoded(picture.path, status.st_size, status.st_mtime_ns).items():
            setattr(picture, name, value)
    if _printable(picture.name) != picture.name:
        picture.name, picture.label = _printable(picture.name), _printable(picture.label)
        picture.problem = picture.problem or "has a name that is not UTF-8; rename it"


@cache
def _decoded(path: Path, size: int, changed: int) -> dict[str, object]:
    """Return what decoding a file shows; a process reads each file once while its size and time of change stay."""
    seen: dict[str, object] = {}
    try:
        image = read_image(path)
        seen |= {"mode": image.mode, "short_side": min(image.size)}
        seen["is_turned"] = image.getexif().get(0x0112, 1) not in (0, 1)  # Orientation
        if image.has_transparency_data:
            seen["is_transparent"] = image.convert("RGBA").getchannel("A").getextrema()[0] < 255
        rgb = image.convert("RGB")
    except SagaError as error:
        seen["problem"] = str(error).removeprefix(f"image {path} ")
    except Exception as error:  # metadata or conversion of an exotic file
        seen["problem"] = f"cannot be converted to RGB ({error})"
    else:
        seen["digest"] = hashlib.sha256(repr(rgb.size).encode() + rgb.tobytes()).hexdigest()
    return seen


# ------------------------------------------------------------------------------------------------- checks


def _usable_classes(pictures: Iterable[_Picture]) -> set[str]:
    counts = Counter(p.label for p in pictures if not p.problem)
    return {label for label, count in counts.items() if count >= 2}


def _checked(
    pictures: list[_Picture], labels: set[str], test_fraction: float, test_classes: Sequence[str] | None, seed: int
) -> tuple[pd.DataFrame, set[str]]:
    """Return the table of checks and the labels of the test split."""
    import pandas as pd

    usable = _usable_classes(pictures)
    test, in_both = _test_labels(pictures, labels, usable, test_fraction, test_classes, seed)
    checks = [*_class_checks(pictures, labels, test, in_both), *_copy_checks(pictures, test), *_pixel_checks(pictures)]
    rows = [
        {
            "check": check, "severity": severity if found else "ok", "count": len(found),
            "example": ", ".join(found[:3]) + (", …" if len(found) > 3 else ""), "what to do": advice if found else "",
        }
        for check, severity, found, advice in checks
    ]  # fmt: skip
    return pd.DataFrame(rows), test


def _class_checks(pictures: list[_Picture], labels: set[str], test: set[str], in_both: list[str]) -> list[Check]:
    """Check splits and classes; `in_both` are the labels that a `split` column puts into both splits."""
    counts, usable = Counter(p.label for p in pictures if not p.problem), _usable_classes(pictures)
    sizes = {label: counts[label] for label in sorted(labels)}
    numbers = {name: sum((label in test) == (name == "test") for label in usable) for name in SPLITS}
    few = [f"the {name} split has {count} class(es) of at least 2 images" for name, count in numbers.items() if count < 2]
    spellings = defaultdict(set)
    for label in sizes:
        spellings["".join(c for c in label.casefold() if c.isalnum()) or label].add(label)
    return [
        ("class in both splits", "error", [f"class '{label}'" for label in in_both],
         "give all its lines the same split"),
        ("too few classes", "error", few,
         "at least 2 are needed in each: add classes, or choose another test_fraction, test_classes or split column"),
        ("unreadable image", "warning", [f"{p.name} {p.problem}" for p in pictures if p.problem],
         "they are left out; replace or remove them"),
        ("class of fewer than 2 images", "warning", [f"{label} ({n})" for label, n in sizes.items() if n < 2],
         "they are left out, as a query needs another image of its class; add images"),
        (f"class of fewer than {NEAR_EMPTY} images", "warning",
         [f"{label} ({n})" for label, n in sizes.items() if 2 <= n < NEAR_EMPTY],
         f"add images: a batch takes {NEAR_EMPTY} of a class and repeats those of smaller ones"),
        ("labels alike but for case or punctuation", "warning",
         [" / ".join(sorted(labels)) for labels in spellings.values() if len(labels) > 1],
         "if they mean one class, give them one name: split apart, they would leak from train to test"),
    ]  # fmt: skip


def _copy_checks(pictures: list[_Picture], test: set[str]) -> list[Check]:
    """Check for images of the same pixels, among the classes that are used."""
    usable, copies = _usable_classes(pictures), defaultdict(list)
    for picture in pictures:
        if not picture.problem and picture.label in usable:
            copies[picture.digest].append(picture)
    groups = [group for group in copies.values() if len(group) > 1]

    def where(group: list[_Picture]) -> str:
        return " = ".join(p.name for p in group[:3]) + (" …" if len(group) > 3 else "")

    return [
        ("same pixels across splits", "warning", [where(g) for g in groups if len({p.label in test for p in g}) > 1],
         "keep one of each: the test split must not repeat training images"),
        ("same pixels in two classes of a split", "warning",
         [where(g) for g in groups if any(len({p.label for p in g if (p.label in test) == half}) > 1 for half in (True, False))],
         "keep it in the right class only: no encoder can tell them apart"),
        ("same pixels within a class", "warning",
         [where(g) for g in groups if len(g) > len({p.label for p in g})],
         "keep one of each: a copy is found without any skill, which flatters Recall@K"),
    ]  # fmt: skip


def _pixel_checks(pictures: list[_Picture]) -> list[Check]:
    """Check what training would make of the pixels of each readable image."""
    readable = [p for p in pictures if not p.problem]

    def of_mode(*modes: str) -> list[str]:
        return [f"{p.name} ({p.mode})" for p in readable if p.mode in modes]

    grey = of_mode("1", "L", "LA", "La")
    return [
        ("greyscale image", "note" if len(grey) == len(readable) else "warning", grey,
         "nothing if all are grey; mixed with colour, grey becomes a cue of its class if it is unevenly spread"),
        ("CMYK or Lab image", "warning", of_mode("CMYK", "LAB", "YCbCr", "HSV"),
         "convert to sRGB with a colour-managed tool; the plain conversion used here shifts colours"),
        ("transparent image", "note", [p.name for p in readable if p.is_transparent],
         "transparency is dropped and what lies below it shows; flatten onto a background if that matters"),
        ("image of 16 or more bits per channel", "warning",
         [f"{p.name} ({p.mode})" for p in readable if p.mode.startswith(("I", "F"))],
         "convert to 8 bits: values above 255 would turn white"),
        ("turned by EXIF orientation", "warning", [p.name for p in readable if p.is_turned],
         "turn the pixels themselves (e.g. mogrify -auto-orient): training sees images as they are stored"),
        (f"side shorter than {SMALL_SIDE} pixels", "warning",
         [f"{p.name} ({p.short_side} pixels)" for p in readable if p.short_side < SMALL_SIDE],
         "they are enlarged and stay blurred; use larger originals if there are any"),
    ]  # fmt: skip


def _test_labels(
    pictures: list[_Picture], labels: set[str], usable: set[str], test_fraction: float,
    test_classes: Sequence[str] | None, seed: int,
) -> tuple[set[str], list[str]]:  # fmt: skip
    """Return the labels of the test split, and the labels that a `split` column puts into both."""
    if pictures[0].split is not None:
        if test_classes is not None:
            raise SagaError("the CSV has a split column and test_classes are given too; remove one of them")
        halves = {name: {p.label for p in pictures if p.split == name} for name in SPLITS}
        return halves["test"], sorted(halves["train"] & halves["test"])
    if test_classes is not None:
        if isinstance(test_classes, str):
            raise SagaError(f"test_classes must be a list of class names, got the text '{test_classes}'")
        for name in test_classes:
            if name not in labels:
                raise unknown_name("class in test_classes", name, labels)
        return set(test_classes), []
    if not 0 < test_fraction < 1 or seed < 0:
        raise SagaError(f"test_fraction is {test_fraction} and seed {seed}; they must lie between 0 and 1, and not below 0")
    names = np.array(sorted(usable), dtype=object)
    drawn = np.random.default_rng(seed).permutation(len(names))[: round(test_fraction * len(names))]
    return set(names[drawn]), []
