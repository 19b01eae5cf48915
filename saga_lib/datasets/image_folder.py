"""A benchmark from your own images: a folder of class sub-folders, or a CSV, checked before anything is trained."""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from saga_lib.common.errors import SagaError, first_line, one_line, unknown_name
from saga_lib.common.images import count_frames, orientation, read_image, to_rgb
from saga_lib.common.texts import alike
from saga_lib.datasets.listing import SPLITS, Check, Listing, Picture, list_images, named
from saga_lib.datasets.splits import Benchmark, Split
from saga_lib.vocabulary import load_vocabulary

if TYPE_CHECKING:
    import pandas as pd

NEAR_EMPTY = 4  # a class with fewer images repeats some in every class-balanced batch (m = 4)
SMALL_SIDE = 64  # pixels; towers see 224, so that smaller images are mostly interpolation
DARK = 32  # of 255: nothing brighter in a whole photograph


def load_image_folder(
    root_or_csv: str | Path, *, vocabulary: str, test_fraction: float = 0.5, test_classes: Sequence[str] | None = None,
    seed: int = 0, images_per_class: int = 0,
) -> tuple[Benchmark, pd.DataFrame]:  # fmt: skip
    """Load your own images as a class-disjoint benchmark; return it with the table of its checks.

    `root_or_csv` is a folder whose sub-folders are classes (images at any depth), or a CSV with the columns `path` (absolute or relative to
    the CSV), `label` and optionally `split` (train or test, one per class); case and blanks of its first line do not matter. Labels are in
    Unicode's composed form (NFC), whatever the files' names are in. Without a `split` column, `test_classes` are the test classes, or else
    `test_fraction` of all classes drawn by `seed`. `images_per_class` takes the first so many of each class (0 all). Unreadable images and
    classes with fewer than 2 readable ones are left out; the table (check, severity ok, note or warning, count, example, advice) says so.

    Raises `SagaError` for errors: see `check_image_folder`, which returns them as rows instead.
    """
    load_vocabulary(vocabulary)
    if isinstance(images_per_class, bool) or not isinstance(images_per_class, int) or images_per_class < 0:
        raise SagaError(f"images_per_class is {images_per_class!r}; it must be a whole number, 0 for all")
    listing = _examined(root_or_csv)
    pictures = listing.pictures
    table, test = _checked(listing, test_fraction, test_classes, seed)
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
    return Benchmark(listing.name, vocabulary, train_split, test_split, content.hexdigest()[:12]), table


def check_image_folder(
    root_or_csv: str | Path, *, test_fraction: float = 0.5, test_classes: Sequence[str] | None = None, seed: int = 0
) -> pd.DataFrame:
    """Return the table of `load_image_folder`'s checks, errors included as rows of severity "error".

    Still raises `SagaError` for what leaves nothing to check: a missing or empty folder, a CSV that cannot be parsed, unknown test classes.
    """
    return _checked(_examined(root_or_csv), test_fraction, test_classes, seed)[0]


def _split(name: str, pictures: list[Picture]) -> Split:
    class_names = sorted({p.label for p in pictures})
    number = {label: n for n, label in enumerate(class_names)}
    return Split(name, [p.path for p in pictures], np.array([number[p.label] for p in pictures], dtype=np.int64), class_names)


# ------------------------------------------------------------------------------------------------ reading


def _examined(source: object) -> Listing:
    """Return the listing of a folder or CSV with every picture read."""
    from tqdm import tqdm

    listing = list_images(source)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in tqdm(pool.map(_examine, listing.pictures), "reading images", len(listing.pictures), disable=None, unit="image"):
            pass
    return listing


def _examine(picture: Picture) -> None:
    """Note what the checks need of a picture, in place."""
    problem = picture.problem  # of its name
    try:
        status = os.stat(picture.path)
    except OSError as error:
        picture.problem = f"cannot be read ({error.strerror})"
    else:
        for name, value in _decoded(picture.path, status.st_size, status.st_mtime_ns).items():
            setattr(picture, name, value)
    picture.problem = picture.problem or problem


@cache
def _decoded(path: Path, size: int, changed: int) -> dict[str, object]:
    """Return what decoding a file shows; a process reads each file once while its size and time of change stay."""
    seen: dict[str, object] = {}
    try:
        image = read_image(path)
        seen |= {"mode": image.mode, "short_side": min(image.size), "frames": count_frames(path, image.format)}
        seen["is_turned"] = orientation(image) != 1
        if image.has_transparency_data:
            seen["is_transparent"] = image.convert("RGBA").getchannel("A").getextrema()[0] < 255
        rgb = to_rgb(image)
    except SagaError as error:
        seen["problem"] = str(error).removeprefix(f"image {path} ")
    except Exception as error:  # conversion of an exotic file
        seen["problem"] = f"cannot be converted to RGB ({first_line(error)})"
    else:
        seen["brightest"] = max(most for _, most in rgb.getextrema())
        seen["digest"] = hashlib.sha256(repr(rgb.size).encode() + rgb.tobytes()).hexdigest()
    return seen


# ------------------------------------------------------------------------------------------------- checks


def _usable_classes(pictures: Iterable[Picture]) -> set[str]:
    return {label for label, count in Counter(p.label for p in pictures if not p.problem).items() if count >= 2}


def _checked(listing: Listing, test_fraction: float, test_classes: Sequence[str] | None, seed: int) -> tuple[pd.DataFrame, set[str]]:
    """Return the table of checks and the labels of the test split."""
    import pandas as pd

    test, in_both = _test_labels(listing, test_fraction, test_classes, seed)
    pictures = listing.pictures
    checks = [*_class_checks(listing, test, in_both), *listing.checks, *_copy_checks(pictures, test), *_pixel_checks(pictures)]
    rows = [
        {
            "check": check, "severity": severity if found else "ok", "count": len(found),
            "example": one_line(", ".join(found[:3])) + (", …" if len(found) > 3 else ""), "what to do": advice if found else "",
        }
        for check, severity, found, advice in checks
    ]  # fmt: skip
    return pd.DataFrame(rows), test


def _class_checks(listing: Listing, test: set[str], in_both: list[str]) -> list[Check]:
    """Check splits and classes; `in_both` are the labels that a `split` column puts into both splits."""
    pictures = listing.pictures
    counts, usable = Counter(p.label for p in pictures if not p.problem), _usable_classes(pictures)
    sizes = {label: counts[label] for label in sorted(listing.labels)}
    numbers = {name: sum((label in test) == (name == "test") for label in usable) for name in SPLITS}
    few = [f"the {name} split has {count} class(es) of at least 2 images" for name, count in numbers.items() if count < 2]
    spellings = defaultdict(set)
    for label in sizes:
        written = min(listing.spellings.get(label, {label}))
        spellings["".join(c for c in alike(written) if unicodedata.category(c)[0] in "LMN") or label].add(label)
    twice = [f"{label} (in {len(forms)} forms of Unicode, read as one)" for label, forms in listing.spellings.items() if len(forms) > 1]
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
        ("labels alike but for case, blanks or punctuation", "warning",
         [" / ".join(sorted(labels)) for labels in spellings.values() if len(labels) > 1] + twice,
         "if they mean one class, give them one name: split apart, they would leak from train to test"),
    ]  # fmt: skip


def _copy_checks(pictures: list[Picture], test: set[str]) -> list[Check]:
    """Check for images of the same pixels, among the classes that are used."""
    usable, copies = _usable_classes(pictures), defaultdict(list)
    for picture in pictures:
        if not picture.problem and picture.label in usable:
            copies[picture.digest].append(picture)
    groups = [group for group in copies.values() if len(group) > 1]

    def where(group: list[Picture]) -> str:
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


def _pixel_checks(pictures: list[Picture]) -> list[Check]:
    """Check what training would make of the pixels of each readable image."""
    readable = [p for p in pictures if not p.problem]

    def of_mode(*modes: str) -> list[str]:
        return [f"{p.name} ({p.mode})" for p in readable if p.mode in modes]

    grey = [f"{p.name} ({p.mode})" for p in readable if p.mode in ("1", "L", "LA", "La") or p.mode.startswith(("I", "F"))]
    return [
        ("greyscale image", "note" if len(grey) == len(readable) else "warning", grey,
         "nothing if all are grey; mixed with colour, grey becomes a cue of its class if it is unevenly spread"),
        ("CMYK or Lab image", "warning", of_mode("CMYK", "LAB", "YCbCr", "HSV"),
         "convert to sRGB with a colour-managed tool; the plain conversion used here shifts colours"),
        ("transparent image", "note", [p.name for p in readable if p.is_transparent],
         "transparency is dropped and what lies below it shows; flatten onto a background if that matters"),
        ("image of 16 or more bits per channel", "note",
         [f"{p.name} ({p.mode})" for p in readable if p.mode.startswith(("I", "F"))], "nothing; it is scaled to 8 bits"),
        ("dark image", "warning", [f"{p.name} (no value above {p.brightest} of 255)" for p in readable if p.brightest < DARK],
         "look at it; if it holds 10 or 12 bits in 16, stretch its values over the whole range"),
        ("image of several frames", "note", [f"{p.name} ({p.frames})" for p in readable if p.frames > 1],
         "nothing if its first frame will do, which is the one that is used"),
        ("turned by EXIF orientation", "note", [p.name for p in readable if p.is_turned],
         "nothing; it is read upright, as it is shown"),
        (f"side shorter than {SMALL_SIDE} pixels", "warning",
         [f"{p.name} ({p.short_side} pixels)" for p in readable if p.short_side < SMALL_SIDE],
         "they are enlarged and stay blurred; use larger originals if there are any"),
    ]  # fmt: skip


def _test_labels(listing: Listing, test_fraction: float, test_classes: Sequence[str] | None, seed: int) -> tuple[set[str], list[str]]:
    """Return the labels of the test split, and the labels that a `split` column puts into both."""
    pictures = listing.pictures
    if pictures[0].split is not None:
        if test_classes is not None:
            raise SagaError("the CSV has a split column and test_classes are given too; remove one of them")
        halves = {name: {p.label for p in pictures if p.split == name} for name in SPLITS}
        return halves["test"], sorted(halves["train"] & halves["test"])
    if test_classes is not None:
        if isinstance(test_classes, str) or not isinstance(test_classes, Iterable):
            raise SagaError(f"test_classes must be a list of class names, got {test_classes!r}")
        chosen = {named(name) for name in test_classes}
        for name in sorted(chosen - listing.labels):
            raise unknown_name("class in test_classes", name, listing.labels)
        return chosen, []
    numbers = (test_fraction, seed)
    if any(isinstance(n, bool) or not isinstance(n, Real) for n in numbers) or not 0 < test_fraction < 1 or seed < 0 or seed % 1:
        raise SagaError(f"test_fraction is {test_fraction!r} and seed {seed!r}; they must lie between 0 and 1, and be whole, at least 0")
    names = np.array(sorted(_usable_classes(pictures)), dtype=object)
    drawn = np.random.default_rng(int(seed)).permutation(len(names))[: round(test_fraction * len(names))]
    return set(names[drawn]), []
