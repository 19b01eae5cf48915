"""List the archives of a published dataset, check and unpack them, and verify the result.

    python -m saga_study.prepare cub200                                 what to fetch, and what is on disk
    python -m saga_study.prepare cub200 --archive CUB_200_2011.tgz      check and unpack it, then verify
    python -m saga_study.prepare cub200 --verify                        counts, or the first problem; empty and cut images
    python -m saga_study.prepare cub200 --verify --decode               every image decoded, which takes minutes

Nothing is downloaded here: the archives are large (up to 42 GB) and some need a browser; `curl -C -` resumes, which
torchvision's downloaders do not. Unpacking is all or nothing: an archive goes into a hidden folder which is moved
into place when it is complete, so that an interrupted command can simply be run again; existing folders are kept.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import sys
import tarfile
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from saga_lib.common.errors import SagaError, one_line, unknown_name
from saga_lib.common.files import write_atomically
from saga_lib.common.images import upright_rgb, what_is
from saga_study.commands import CommandLine, exit_code
from saga_study.datasets.real import OFFICIAL, load_real
from saga_study.paths import data_root

SMALL = 4096  # bytes; a file below is decoded whatever it looks like


@dataclass(frozen=True)
class Archive:
    """A published file: a tar archive, or a `.mat` file that is used as it is."""

    file: str
    md5: str
    gigabytes: float
    holds: str  # what appears in `into` when it is unpacked
    into: str = ""  # relative to the folder of datasets
    url: str = ""  # empty: its publisher no longer offers it
    only: str = ""  # members to unpack, as a regular expression; empty: all
    unpacked_gigabytes: float = 0.0  # 0: as the archive, images do not compress


@dataclass(frozen=True)
class Source:
    """Where a dataset comes from: one of several `ways`, each the archives it takes."""

    page: str
    licence: str
    ways: tuple[tuple[Archive, ...], ...]
    note: str = ""


SOURCES = {
    "cub200": Source(
        "https://www.vision.caltech.edu/datasets/cub_200_2011/",
        "non-commercial research and education; the photographs belong to their authors",
        (
            (
                Archive(
                    "CUB_200_2011.tgz", "97eceeb196236b17998738112f37df78", 1.1, "CUB_200_2011",
                    url="https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz",
                ),
            ),
        ),
    ),
    "cars196": Source(
        "https://github.com/pytorch/vision/issues/7545",
        "non-commercial research; the photographs belong to their authors",
        (
            (
                Archive("car_ims.tgz", "d5c8f0aa497503f355e17dc7886c3f14", 2.0, "car_ims", "cars196"),
                Archive("cars_annos.mat", "b407c6086d669747186bd1d764ff9dbc", 0.0, "cars_annos.mat", "cars196"),
            ),
            (
                Archive("cars_train.tgz", "065e5b463ae28d29e77c1b4b166cfe61", 1.0, "cars_train", "cars196"),
                Archive("cars_test.tgz", "4ce7ebf6a94d07f1952d94dd34c4d501", 1.0, "cars_test", "cars196"),
                Archive("car_devkit.tgz", "c3b158d763b6e2245038c8ad08e45376", 0.0, "devkit", "cars196"),
                Archive(
                    "cars_test_annos_withlabels.mat", "b0a2b23655a3edd16d84508592a98d10", 0.0,
                    "cars_test_annos_withlabels.mat", "cars196",
                ),
            ),
        ),
        "the publisher's addresses are dead, that thread lists copies; file names of the two ways do not correspond, never "
        "mix them; Kaggle's copy nests cars_train/cars_train and cars_test/cars_test: move the inner folders up",
    ),
    "aircraft": Source(
        "https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/",
        "non-commercial research; the photographs belong to their photographers",
        (
            (
                Archive(
                    "fgvc-aircraft-2013b.tar.gz", "d4acdd33327262359767eeaa97a4f732", 2.75, "fgvc-aircraft-2013b",
                    url="https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/archives/fgvc-aircraft-2013b.tar.gz",
                ),
            ),
        ),
    ),
    "inat_aves": Source(
        "https://github.com/visipedia/inat_comp/tree/master/2021",
        "non-commercial research and education; the photographs belong to their authors",
        (
            (
                Archive(
                    "train_mini.tar.gz", "db6ed8330e634445efc8fec83ae81442", 42.0, "train_mini", "inat2021",
                    url="https://ml-inat-competition-datasets.s3.amazonaws.com/2021/train_mini.tar.gz",
                    only=r"train_mini/[^/]*_Aves_", unpacked_gigabytes=6.5,
                ),
            ),
        ),
        "only its birds, about 15 %, are unpacked",
    ),
}  # fmt: skip


def describe(name: str) -> str:
    """Return what to fetch for a dataset, from where, under which terms, and the next command."""
    source, dataset = SOURCES[name], OFFICIAL[name]
    lines = [
        f"{dataset.title}: {sum(dataset.images):,} images, {sum(dataset.classes):,} classes, see {source.page}",
        f"terms: {source.licence}",
    ]
    for number, archives in enumerate(source.ways, 1):
        disk = sum(archive.gigabytes + (archive.unpacked_gigabytes or archive.gigabytes) for archive in archives)
        way = f" ({number} of {len(source.ways)} ways)" if len(source.ways) > 1 else ""
        lines.append(f"fetch{way}, {disk:.1f} GB of disk with the unpacked images:")
        for archive in archives:
            size = f"{archive.gigabytes:g} GB" if archive.gigabytes else "under 1 MB"
            lines.append(f"  {archive.file}  {size}  md5 {archive.md5}")
            if archive.url:
                lines.append(f"    curl -L -C - -o {archive.file} {archive.url}")
    if source.note:
        lines.append(f"note: {source.note}")
    files = " ".join(f"--archive {archive.file}" for archive in source.ways[0])
    return "\n".join([*lines, f"then: python -m saga_study.prepare {name} {files}"])


def verify(name: str, root: Path, decode: bool = False) -> str:
    """Return one line of counts; raises `SagaError` for the first thing that is missing or wrong.

    Images that are empty or cut are wrong, too: those that do not end as their format does are decoded, and with `decode` all of them.
    """
    from tqdm import tqdm

    benchmark = load_real(name, root)
    splits = (benchmark.train, benchmark.test)
    paths = [path for split in splits for path in split.paths]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        tests = pool.map(lambda path: _damage(path, decode), paths)
        damages = [damage for damage in tqdm(tests, "looking at images", len(paths), disable=None, unit="image") if damage]
    if damages:
        more = f" (and {len(damages) - 1:,} more images are damaged)" if len(damages) > 1 else ""
        raise SagaError(f"{OFFICIAL[name].title}: {damages[0]}{more}; move the folder away and extract the archive again")
    halves = (f"{s.name} {len(s):,} images of {len(s.class_names):,} classes" for s in splits)
    seen = ", every image decoded" if decode else ""
    return f"{OFFICIAL[name].title} in {root} is whole: {', '.join(halves)}{seen}; checksum {benchmark.checksum}"


def _damage(path: Path, decode: bool) -> str:
    """Return what is wrong with an image, "" if nothing is; one that ends as its format does is only decoded if `decode`."""
    try:
        if not decode and _looks_whole(path):
            return ""
        upright_rgb(path)
        content = path.read_bytes()
    except SagaError as error:
        return str(error).removesuffix("; replace or remove it")
    except OSError as error:
        return f"image {path} cannot be read ({error.strerror})"
    # A JPEG whose rest is zeros decodes, to grey: only the marker of its end, behind the last one of a scan, is missing.
    is_cut = content.startswith(b"\xff\xd8") and content.rfind(b"\xff\xd9") < content.rfind(b"\xff\xda")
    is_cut |= content.startswith(b"\x89PNG") and content.rfind(b"IEND") < content.rfind(b"IDAT")
    return f"image {path} cannot be read (it is cut, its end is missing)" if is_cut else ""


def _looks_whole(path: Path) -> bool:
    """Return whether a file begins and ends as a whole JPEG or PNG does, zeros after its end aside; never of a small one, soon decoded."""
    size = os.path.getsize(path) if os.path.isfile(path) else 0  # a pipe would be waited for
    if size < SMALL:
        return False
    kinds = {"a JPEG image": (b"\xff\xd9", _jpeg_follows), "a PNG image": (b"IEND\xaeB`\x82", _png_follows)}
    ending, follows = kinds.get(what_is(path), (b"", lambda file: False))
    with open(path, "rb") as file:
        if not follows(file):
            return False
        file.seek(size - 64)
        return file.read().rstrip(b"\0").endswith(ending)


def _jpeg_follows(file: BinaryIO) -> bool:
    """Return whether the segments in front of a JPEG's pixels follow each other, as their lengths say, up to the first scan."""
    file.seek(2)
    while (head := file.read(4))[:1] == b"\xff" and len(head) == 4:
        if head[1] == 0xDA:
            return True
        file.seek(int.from_bytes(head[2:], "big") - 2 if head[1] != 0xFF else -3, os.SEEK_CUR)  # 0xFF may be repeated before a marker
    return False


def _png_follows(file: BinaryIO) -> bool:
    """Return whether the chunks of a PNG follow each other, as their lengths say, from the first to the last."""
    file.seek(8)
    while (head := file.read(8))[4:].isalpha() and len(head) == 8:
        if head[4:] == b"IEND":
            return True
        file.seek(int.from_bytes(head[:4], "big") + 4, os.SEEK_CUR)
    return False


def install(name: str, file: Path, root: Path) -> str:
    """Check an archive of a dataset and unpack it below `root`, unless that is done already; return one line about the outcome.

    Raises `SagaError`: unknown or missing archive, wrong checksum, damaged, no space, members that would leave the
    folder, or a folder of the same name without the archive's content.
    """
    known = {archive.file: archive for way in SOURCES[name].ways for archive in way}
    if file.name not in known:
        raise unknown_name(f"archive of {OFFICIAL[name].title}", file.name, known)
    archive = known[file.name]
    target = root / archive.into / archive.holds
    if target.exists():
        return f"{target} is there already; move it away to unpack {file.name} again"
    if not file.is_file():
        raise SagaError(f"archive {file} does not exist; python -m saga_study.prepare {name} says where to get it")
    with open(file, "rb") as content:
        digest = hashlib.file_digest(content, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if digest != archive.md5:
        raise SagaError(
            f"{file} has md5 {digest}, the published one {archive.md5}: fetch it again, or unpack a copy that you trust "
            "yourself and run --verify"
        )
    if file.suffix == ".mat":
        write_atomically(target, lambda temporary: shutil.copyfile(file, temporary))
    else:
        _unpack(file, archive, target)
    return f"{target} is unpacked"


def _unpack(file: Path, archive: Archive, target: Path) -> None:
    from saga_study.processes import only_one_process

    folder = target.parent
    partial = folder / f".unpacking-{archive.file}"
    with only_one_process(folder / f".lock-{archive.file}", f"archive {file}"):
        needed, free = (archive.unpacked_gigabytes or archive.gigabytes), shutil.disk_usage(folder).free / 1e9
        if free < needed:
            raise SagaError(f"{folder} has {free:.1f} GB free, {file.name} needs {needed:g}; free some space or choose another --root")
        shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
        try:
            extract_safely(file, partial, archive.only)
            if not (partial / archive.holds).is_dir():
                raise SagaError(f"{file} holds no folder {archive.holds}; fetch it again")
            for entry in sorted(partial.iterdir(), key=lambda entry: entry.name == archive.holds):  # the target last
                if not (folder / entry.name).exists():
                    entry.rename(folder / entry.name)
        except OSError as error:
            raise SagaError(f"cannot unpack {file} into {folder}: {error.strerror or error}") from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def extract_safely(file: Path, folder: Path, only: str = "") -> int:
    """Unpack the regular files of a tar archive (those that match `only`) into `folder` and return how many.

    Dot files are left out. Raises `SagaError` for a damaged archive and, before that member is written, for anything
    that a data set has no need of: absolute paths, `..`, links of any kind, devices.
    """
    from tqdm import tqdm

    count = 0
    try:
        with tarfile.open(file) as tar, tqdm(unit=" files", desc=file.name, disable=None) as progress:
            # All links are refused because the filter's own link checks have been evaded before (CVE-2025-4517).
            tar.extraction_filter = getattr(tarfile, "data_filter", None)  # absent before Python 3.11.4
            while (member := tar.next()) is not None:
                tar.members.clear()  # half a million of them would take a gigabyte
                path = PurePosixPath(member.name)
                if path.is_absolute() or ".." in path.parts or "\\" in member.name or re.match("[A-Za-z]:", member.name):
                    raise SagaError(f"{file} is refused: its member '{member.name}' lies outside the archive's folder")
                if not (member.isreg() or member.isdir()):
                    raise SagaError(f"{file} is refused: its member '{member.name}' is a link or device, not a file or folder")
                if any(part.startswith(".") for part in path.parts) or not re.match(only, str(path)):
                    continue
                if member.isreg():
                    tar.extract(member, folder)
                    count += 1
                    progress.update()
    except (tarfile.TarError, EOFError, zlib.error, UnicodeError) as error:
        kind = what_is(file)
        could_be = not kind or kind.split()[1:2] in (["tar"], ["gzip"], ["bzip2"], ["xz"])
        reason = str(error).partition("\n")[0].rstrip(":") if could_be else f"it is {kind}"
        raise SagaError(f"{file} is damaged ({reason}); fetch it again") from None
    return count


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out a command line and return its exit code: 0, 2 (a mistake of the user) or 130."""
    return exit_code(lambda: _carry_out(arguments), "interrupted; nothing half-unpacked is left, run it again")


def _carry_out(arguments: Sequence[str] | None) -> None:
    parser = CommandLine(prog="python -m saga_study.prepare", description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("dataset", help=" | ".join(SOURCES))
    parser.add_argument("--root", type=Path, metavar="DIR", help="folder of datasets (default: SAGA_DATA, else data/)")
    parser.add_argument("--verify", action="store_true", help="load the dataset, print its counts or the first problem")
    parser.add_argument("--decode", action="store_true", help="with --verify: decode every image, too")
    parser.add_argument("--archive", type=Path, action="append", default=[], metavar="FILE", help="check and unpack; repeatable")
    options = parser.parse_args(arguments)
    if options.dataset not in SOURCES:
        raise unknown_name("dataset", options.dataset, SOURCES)
    root = options.root or data_root()
    for file in options.archive:
        print(f"checking and unpacking {one_line(str(file))}", flush=True)
        print(install(options.dataset, file, root), flush=True)
    if options.archive or options.verify or options.decode:
        print(verify(options.dataset, root, options.decode))
        return
    print(describe(options.dataset))
    try:
        print(f"now: {verify(options.dataset, root)}")
    except SagaError as problem:
        print(f"now: {str(problem).rsplit('; ', 1)[0]}")


if __name__ == "__main__":
    sys.exit(main())
