"""The paper's four datasets as they are published, split by class as the paper does (its App. A).

| name | folder | layout below it | protocol |
|---|---|---|---|
| `cub200` | `CUB_200_2011` | `images.txt`, `image_class_labels.txt`, `classes.txt`, `images/<class>/*.jpg` | ids 1–100 / 101–200 |
| `cars196` | `cars196` or `stanford_cars` | (a) `cars_annos.mat`, `car_ims/`; (b) `devkit/`, `cars_test_annos_withlabels.mat`, `cars_train/`, `cars_test/` | ids 1–98 / 99–196 |
| `aircraft` | `fgvc-aircraft-2013b` | `data/variants.txt`, `data/images_variant_{trainval,test}.txt`, `data/images/` | variants by name, 50 / 50 |
| `inat_aves` | `inat2021` | `train_mini/` (or `2021_train_mini/`, torchvision's name) with a folder for each species | folders by name, 743 / 743 |

The published image-wise splits (`train_test_split.txt`, the field `test`, trainval/test) are for classification and
play no part. Sorting is by code point everywhere: a case-insensitive order would move aircraft across the halves.
"""  # noqa: E501

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from saga_lib.common.errors import SagaError
from saga_lib.datasets.splits import Benchmark, Split
from saga_study.paths import data_root

BANNER_ROWS = 20  # the README of FGVC-Aircraft asks to remove them; the paper does not mention them

Annotation = tuple[list[str], list[tuple[int, str]]]  # class names in the protocol's order; (label, path) of each image


@dataclass(frozen=True)
class Layout:
    """One way a dataset lies on disk, relative to its folder; image paths are relative to `images`."""

    annotations: tuple[str, ...]
    images: str
    read: Callable[[Path], Annotation]


@dataclass(frozen=True)
class Official:
    """Properties of a complete and unaltered copy; pairs are (train, test)."""

    title: str
    folders: tuple[str, ...]
    vocabulary: str
    layouts: tuple[Layout, ...]
    classes: tuple[int, int]
    images: tuple[int, int]
    per_class: tuple[int, int]  # fewest and most images of a class
    checksums: tuple[str, ...] = ()  # of the published annotations; none where image names are not published


def load_real(
    name: str,
    root: str | Path | None = None,
    images_per_class: int = 0,
    crop_banner: bool = False,
    check_files: bool = True,
) -> Benchmark:
    """Load one of the four datasets from `root`, the folder of datasets or the dataset's own.

    Classes and images come in a fixed order: classes as in the table above, images of a class by path.
    `images_per_class` takes the first so many of each class (0 all). `crop_banner` is for `aircraft`, see
    `BANNER_ROWS`. `check_files` False builds the splits from the annotations alone. The checksum covers labels and
    relative paths, not pixels, so the two layouts of Cars-196 have one each. Raises `SagaError` in one line for a copy
    that is missing, partial (the first missing file) or altered (the first wrong count), with the fix.
    """
    dataset = OFFICIAL[name]
    folder, layout = _locate(name, Path(root) if root else data_root())
    if missing := next((a for a in layout.annotations if not (folder / a).exists()), None):
        raise _broken(name, f"{folder / missing} is missing")
    try:
        class_names, images = layout.read(folder)
        images.sort()
        _check_annotation(name, folder, class_names, images)
        checksum = _checksum(images)
        if dataset.checksums and checksum not in dataset.checksums:
            raise _broken(name, f"the annotations in {folder} are not the published ones (checksum {checksum})")
        if check_files and (missing := _first_missing(folder / layout.images, [path for _, path in images])):
            raise _broken(name, f"{missing} is missing")
    except OSError as error:
        raise SagaError(f"cannot read {error.filename}: {error.strerror or error}; correct its permissions") from None

    if images_per_class:
        labels = [label for label, _ in images]
        rank = np.arange(len(labels)) - np.searchsorted(labels, labels)  # within the class: images are in its order
        images = [pair for pair, place in zip(images, rank, strict=True) if place < images_per_class]
        checksum = _checksum(images)
    if crop_banner:
        checksum = hashlib.sha256(f"{checksum} without {BANNER_ROWS} rows".encode()).hexdigest()[:12]

    def split(which: str, low: int, high: int) -> Split:
        chosen = [(label - low, folder / layout.images / path) for label, path in images if low <= label < high]
        labels = np.array([label for label, _ in chosen], dtype=np.int64)
        paths = [path for _, path in chosen]
        return Split(which, paths, labels, class_names[low:high], crop_bottom=BANNER_ROWS if crop_banner else 0)

    half, total = dataset.classes[0], sum(dataset.classes)
    train, test = split("train", 0, half), split("test", half, total)
    return Benchmark(name=name, vocabulary=dataset.vocabulary, train=train, test=test, checksum=checksum)


# ------------------------------------------------------------------------------------- reading the annotations


def _read_pairs(path: Path) -> list[tuple[str, str]]:
    """Read lines `<id> <rest>`; ids stay strings, theirs may begin with zeros, and the rest may contain spaces."""
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise SagaError(f"{path} is damaged ({error}); extract the archive again") from None
    pairs = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        identity, _, rest = line.strip().partition(" ")
        if not rest:
            raise SagaError(f"{path}, line {number}: '{identity}' has no second part; extract the archive again")
        pairs.append((identity, rest.strip()))
    return pairs


def _look_up(table: dict, key: str, path: Path) -> object:
    if key not in table:
        raise SagaError(f"{path} names '{key}', which its companion files do not know; extract the archive again")
    return table[key]


def _read_cub(folder: Path) -> Annotation:
    """Join images and classes by their ids; their order in the files means nothing."""
    by_identity = dict(_read_pairs(folder / "classes.txt"))
    try:
        identities = sorted(by_identity, key=int)
    except ValueError:
        raise SagaError(f"{folder / 'classes.txt'} has an id that is no number; extract the archive again") from None
    label_of_class = {identity: label for label, identity in enumerate(identities)}
    class_of_image = dict(_read_pairs(labels := folder / "image_class_labels.txt"))
    images = [
        (_look_up(label_of_class, _look_up(class_of_image, identity, folder / "images.txt"), labels), path)
        for identity, path in _read_pairs(folder / "images.txt")
    ]
    return [by_identity[identity] for identity in identities], images


def _read_aircraft(folder: Path) -> Annotation:
    """Pool trainval and test; class names (some contain a slash) never become paths."""
    variants = (folder / "data" / "variants.txt").read_text(encoding="utf-8-sig").split("\n")
    class_names = sorted(name.strip() for name in variants if name.strip())
    label_of = {name: label for label, name in enumerate(class_names)}
    images = [
        (_look_up(label_of, variant, path), f"{identity}.jpg")
        for path in (folder / "data" / f"images_variant_{part}.txt" for part in ("trainval", "test"))
        for identity, variant in _read_pairs(path)
    ]
    return class_names, images


def _load_mat(path: Path, key: str, fields: Sequence[str] = ()) -> np.ndarray:
    """Return an array of a MATLAB file, one-dimensional, with the `fields` that are needed."""
    from scipy.io import loadmat

    try:
        array = np.atleast_1d(loadmat(path, squeeze_me=True)[key])
    except Exception as error:  # whatever the damaged bytes lead scipy into, nameless OSErrors among it
        if isinstance(error, OSError) and error.filename:
            raise
        raise SagaError(f"{path} is damaged ({' '.join(str(error).split())}); get it again") from None
    if absent := [field for field in fields if field not in (array.dtype.names or ())]:
        raise SagaError(f"{path} has no field '{absent[0]}'; get the file that has the labels (cars_test_annos.mat has none)")
    return array


def _read_cars_annotations(path: Path, file_field: str, parent: str) -> list[tuple[int, str]]:
    """Return (label, `parent`/file) of each image; labels in the file are 1-based and of any MATLAB type."""
    rows = _load_mat(path, "annotations", ("class", file_field))
    try:
        return [(int(np.asarray(row["class"]).item()) - 1, parent + str(row[file_field]).rpartition("/")[2]) for row in rows]
    except (TypeError, ValueError):
        raise SagaError(f"{path} is damaged (a class is no number); get it again") from None


def _read_cars_retrieval(folder: Path) -> Annotation:
    path = folder / "cars_annos.mat"
    class_names = [str(name) for name in _load_mat(path, "class_names")]
    return class_names, _read_cars_annotations(path, "relative_im_path", "")


def _read_cars_devkit(folder: Path) -> Annotation:
    class_names = [str(name) for name in _load_mat(folder / "devkit" / "cars_meta.mat", "class_names")]
    train = _read_cars_annotations(folder / "devkit" / "cars_train_annos.mat", "fname", "cars_train/")
    test = _read_cars_annotations(folder / "cars_test_annos_withlabels.mat", "fname", "cars_test/")
    return class_names, train + test


def _read_inat(parent: str, folder: Path) -> Annotation:
    """List the species' folders `NNNNN_Kingdom_Phylum_Class_Order_Family_Genus_species` of class Aves and their images."""
    names = sorted(name for name in os.listdir(folder / parent) if name.split("_")[3:4] == ["Aves"] and name[0] != ".")
    return names, [
        (label, f"{name}/{file}")
        for label, name in enumerate(names)
        for file in os.listdir(folder / parent / name)
        if file.endswith(".jpg") and not file.startswith(".")
    ]


# ------------------------------------------------------------------------------------------------- the datasets

OFFICIAL = {
    "cub200": Official(
        "CUB-200-2011", ("CUB_200_2011",), "birds",
        (Layout(("images.txt", "image_class_labels.txt", "classes.txt"), "images", _read_cub),),
        classes=(100, 100), images=(5864, 5924), per_class=(41, 60), checksums=("0591493402bf",),
    ),
    "cars196": Official(
        "Cars-196", ("cars196", "stanford_cars"), "cars",
        (
            Layout(("cars_annos.mat",), "car_ims", _read_cars_retrieval),
            Layout(
                ("devkit/cars_meta.mat", "devkit/cars_train_annos.mat", "cars_test_annos_withlabels.mat"), ".",
                _read_cars_devkit,
            ),
        ),
        classes=(98, 98), images=(8054, 8131), per_class=(48, 136), checksums=("31793b066720", "2c7cd041ced3"),
    ),
    "aircraft": Official(
        "FGVC-Aircraft", ("fgvc-aircraft-2013b",), "aircraft",
        (
            Layout(
                ("data/variants.txt", "data/images_variant_trainval.txt", "data/images_variant_test.txt"),
                "data/images", _read_aircraft,
            ),
        ),
        classes=(50, 50), images=(5000, 5000), per_class=(100, 100), checksums=("10b81bccc17f",),
    ),
    "inat_aves": Official(
        "iNat-Aves", ("inat2021",), "birds",
        tuple(Layout((name,), name, functools.partial(_read_inat, name)) for name in ("train_mini", "2021_train_mini")),
        classes=(743, 743), images=(37150, 37150), per_class=(50, 50),
    ),
}  # fmt: skip


# ------------------------------------------------------------------------------------------------------- checks


def _broken(name: str, problem: str) -> SagaError:
    return SagaError(f"{OFFICIAL[name].title}: {problem}; python -m saga_study.prepare {name} tells how to get it")


def _locate(name: str, root: Path) -> tuple[Path, Layout]:
    """Return the dataset's folder and layout: the most complete ones, the first if several are complete."""
    places = [(folder, layout) for layout in OFFICIAL[name].layouts for folder in (root, *(root / name for name in OFFICIAL[name].folders))]

    def presence(place: tuple[Path, Layout]) -> tuple[float, bool]:
        folder, layout = place
        return np.mean([(folder / a).exists() for a in layout.annotations]), (folder / layout.images).is_dir()

    folder, layout = max(places, key=presence)
    if presence((folder, layout))[0] == 0:
        looked_for = root / OFFICIAL[name].folders[0] / OFFICIAL[name].layouts[0].annotations[0]
        raise _broken(name, f"not found in {root}, {looked_for} is missing")
    return folder, layout


def _check_annotation(name: str, folder: Path, class_names: Sequence[str], images: Sequence[tuple[int, str]]) -> None:
    dataset = OFFICIAL[name]
    labels = [label for label, _ in images]
    half, total = dataset.classes[0], sum(dataset.classes)
    if len(class_names) != total:
        raise _broken(name, f"{folder} has {len(class_names):,} classes, {total:,} are expected")
    if outside := [label for label in labels if not 0 <= label < total]:
        raise _broken(name, f"the annotations in {folder} have class {outside[0] + 1}, {total} is the last one")
    counts = np.bincount(np.asarray(labels, dtype=np.int64), minlength=total)
    fewest, most = dataset.per_class
    for class_name, count in zip(class_names, counts, strict=True):
        if not fewest <= count <= most:
            expected = f"{fewest} to {most}" if fewest < most else str(most)
            raise _broken(name, f"class '{class_name}' in {folder} has {count} images, {expected} are expected")
    if outside := [path for _, path in images if path.startswith("/") or ".." in path.split("/")]:
        raise _broken(name, f"the annotations in {folder} name '{outside[0]}', which is outside the folder")
    for which, count, expected in zip(("train", "test"), (counts[:half].sum(), counts[half:].sum()), dataset.images, strict=True):
        if count != expected:
            raise _broken(name, f"the {which} classes in {folder} have {count:,} images, {expected:,} are expected")


def _checksum(images: Sequence[tuple[int, str]]) -> str:
    lines = "".join(f"{label}\t{path}\n" for label, path in images)
    return hashlib.sha256(lines.encode()).hexdigest()[:12]


def _first_missing(folder: Path, paths: Sequence[str]) -> Path | None:
    """Return the first path that is not there; lists folders, which is far quicker than asking for each file."""
    listed: dict[str, frozenset[str]] = {}
    for path in paths:
        parent, _, file = path.rpartition("/")
        if parent not in listed:
            listed[parent] = frozenset(os.listdir(folder / parent) if (folder / parent).is_dir() else ())
        if file not in listed[parent]:
            return folder / path
    return None
