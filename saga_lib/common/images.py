"""Image files of all sorts: found in folders, read as people see them, fitted to a square, and refused with a reason.

This is the one way from a file to pixels: training, search, notebooks and checks all read by `upright_rgb`.
"""

from __future__ import annotations

import os
import re
import unicodedata
import warnings
from collections import defaultdict
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from saga_lib.common.errors import SagaError, first_line, one_line, unknown_name
from saga_lib.common.paths import given_path

SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".jfi", ".pjpeg", ".pjp", ".mpo", ".png", ".apng", ".webp", ".bmp", ".gif", ".tif",
    ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".avif", ".jp2",
)  # fmt: skip
FITS = {"crop": "the centre square", "resize": "the whole image, squeezed to a square"}  # ways to make an image a square
UNREAD = frozenset(  # photographs and pictures all the same, which have to be converted first
    ".heic .heif .hif .heics .avci .avifs .jxl .jxr .wdp .hdp .j2k .j2c .jpc .jpx .jpf .jph .jps .insp .gpr .mef .fff .cap .eip .ptx .bay "
    ".rwz .k25 .cs1 .dcs .drf .dng .cr2 .cr3 .crw .nef .nrw .arw .sr2 .srf .orf .rw2 .raf .pef .srw .raw .rwl .3fr .iiq .x3f .kdc "
    ".dcr .mrw .erf .mos .psd .psb .xcf .svg .eps .exr .hdr .dcm .tga .ico .icns .pcx .bpg .fits .qoi .dds".split()
)
# What Pillow may take a file for, whatever its name: others are exotic, and EPS would run another program.
_FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "BMP", "DIB", "GIF", "TIFF", "PPM", "AVIF", "JPEG2000")
_FOREIGN = re.compile(  # names of folders that other programs make and people do not mean; hidden ones begin with a dot
    r"[.~].*|__macosx|__pycache__|\$recycle\.bin|recycle[rd]|lost\+found|lost\.dir|found\.\d{3}|system volume information|[@#]recycle|"
    r"@(eadir|tmp|syno.*|__thumb|__qini|(recently-)?snapshot|sharebin|sharesnap|appstore)|#snapshot|[._]*thumb(nail)?s|_+thumb|thumbnail|"
    r"(thumb(nail)?s?|darktable)[ _]?(cache|thumbs)|_vti_.*|_gsdata_|network trash folder|trashbox|temporary items|ipod photo cache|"
    r"photo booth library|\[(originals|developed)\]|captureone|node_modules|site-packages|\$(windows\..*|winreagent|sysreset|avg)|"
    r".*\.(lrdata|lrlibrary|photoslibrary|aplibrary|(migrated)?photolibrary|cocatalog|noindex|app)",
    re.IGNORECASE,
)
_FOREIGN_FILES = re.compile(r"\..*|(eh)?thumbs\.db|desktop\.ini|zbthumbnail\.info|icon\r", re.IGNORECASE)
_TURNS = {  # what undoes each EXIF orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_90,
}  # fmt: skip
_SIGNATURES = {  # first bytes of files that are met under other names
    b"PK\x03\x04": "a zip archive or a spreadsheet", b"\x1f\x8b": "a gzip archive", b"BZh": "a bzip2 archive", b"\xfd7zXZ": "an xz archive",
    b"7z\xbc\xaf": "a 7-Zip archive", b"Rar!": "a RAR archive", b"\x28\xb5\x2f\xfd": "a zstd archive", b"PAR1": "a Parquet table",
    b"ARROW1": "an Arrow table", b"SQLite format 3": "an SQLite database", b"\xd0\xcf\x11\xe0": "a spreadsheet", b"\x89HDF": "an HDF5 file",
    b"\x93NUMPY": "a NumPy array", b"%PDF": "a PDF document", b"%!PS": "a PostScript document", b"<!doctype html": "a web page",
    b"<html": "a web page", b"version https://git-lfs": "a Git LFS pointer in place of the file; run git lfs pull",
    b"\xff\xd8\xff": "a JPEG image", b"\x89png": "a PNG image", b"gif8": "a GIF image", b"RIFF": "a film or WebP image",
    b"II*\0": "a TIFF image", b"MM\0*": "a TIFF image",
}  # fmt: skip


class Found(list[Path]):
    """The image files below a folder, sorted, and what else was there; places are relative to the folder.

    unread: {suffix: places} of photographs of kinds that are not read; other: {suffix: places} of other files; foreign: {name: places} of
    what other programs keep there; closed: sub-folders that cannot be listed, with the reason.
    """

    def __init__(self) -> None:
        super().__init__()
        self.unread: dict[str, list[str]] = defaultdict(list)
        self.other: dict[str, list[str]] = defaultdict(list)
        self.foreign: dict[str, list[str]] = defaultdict(list)
        self.closed: list[str] = []

    def skipped(self) -> list[str]:
        """Return a line for each sort of thing that was left out, e.g. `photographs of kinds that are not read: .heic (12)`."""
        sorts = {
            "photographs of kinds that are not read (convert them to JPEG or PNG)": self.unread, "other files": self.other,
            "hidden, or of other programs": self.foreign,
        }  # fmt: skip
        lines = [f"folder that cannot be listed: {place}" for place in self.closed]
        return lines + [f"{what}: {counts(places)}" for what, places in sorts.items() if places]


def counts(places: dict[str, list[str]], most: int = 8) -> str:
    """Return how many places each name has, the most frequent first: `.heic (12), .cr2 (3)`."""
    names = sorted(places, key=lambda name: (-len(places[name]), name))
    return ", ".join(f"{one_line(name)} ({len(places[name])})" for name in names[:most]) + (", …" if len(names) > most else "")


def is_foreign(folder_name: str) -> bool:
    """Return whether a folder of this name is hidden or belongs to another program: thumbnails, bins, caches."""
    return _FOREIGN.fullmatch(folder_name) is not None


def find_images(folder: Path) -> Found:
    """Return the image files below `folder` by their suffix, sorted, with what was left out; see `Found`.

    Raises `SagaError` when the folder is missing or may not be listed; sub-folders that may not be listed are left out.
    """
    folder, found = given_path(folder), Found()
    if not os.path.isdir(folder):
        kind = what_is(folder) if os.path.isfile(folder) else ""
        what = f"is not a folder{kind and f' but {kind}'}" if os.path.exists(folder) else "does not exist"
        raise SagaError(f"folder {folder} {what}; give a folder of images")

    def leave_out(error: OSError) -> None:
        if error.filename == str(folder):
            raise SagaError(f"folder {folder} cannot be listed: {error.strerror}") from None
        found.closed.append(f"{one_line(os.path.relpath(error.filename, folder))} ({error.strerror})")

    home = os.path.realpath(folder)
    seen = {home}
    for place, folders, names in os.walk(str(folder), onerror=leave_out, followlinks=True):
        below = os.path.relpath(place, folder)
        for name in folders:
            if is_foreign(name):
                found.foreign["hidden folder" if name[0] == "." else name].append(os.path.normpath(os.path.join(below, name)))
        real = {name: os.path.realpath(os.path.join(place, name)) for name in folders if not is_foreign(name)}
        for name in [name for name in sorted(real) if os.path.islink(os.path.join(place, name)) and _is_found(real[name], home)]:
            found.foreign["link to a folder that is here"].append(os.path.normpath(os.path.join(below, name)))
            del real[name]
        folders[:] = [name for name in sorted(real) if real[name] not in seen]  # links may lead in circles
        seen.update(real.values())
        for name in names:
            path, suffix = os.path.join(place, name), os.path.splitext(name)[1].lower()
            if _FOREIGN_FILES.fullmatch(name):
                found.foreign["hidden file"].append(os.path.normpath(os.path.join(below, name)))
            elif suffix in SUFFIXES and (os.path.isfile(path) or not os.path.exists(path)):  # links to nowhere are reported as unreadable
                found.append(Path(path))
            else:  # pipes and devices, too: reading them would never end
                sort = found.unread if suffix in UNREAD else found.other
                sort[suffix or "no suffix"].append(os.path.normpath(os.path.join(below, name)))
    found.sort(key=lambda path: unicodedata.normalize("NFC", str(path)).split(os.sep))
    return found


def _is_found(place: str, home: str) -> bool:  # a link to it would show its images twice
    return place.startswith(os.path.join(home, "")) and not any(map(is_foreign, os.path.relpath(place, home).split(os.sep)))


def read_image(path: Path) -> Image.Image:
    """Return a fully decoded image in its own mode and stored orientation, of several frames the first.

    A `SagaError` names file and reason.
    """
    try:
        if os.path.exists(path) and not os.path.isfile(path):
            raise OSError("not a file")  # a folder; a pipe would never end
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of damaged metadata, large images, palettes: the pixels decide
            with Image.open(path, formats=_formats()) as image:
                image.load()
                return image
    except FileNotFoundError:
        raise SagaError(f"image {path} does not exist") from None
    except Image.DecompressionBombError:
        limit = 2 * Image.MAX_IMAGE_PIXELS / 1e6
        raise SagaError(
            f"image {path} cannot be read (more than {limit:.3g} megapixels, which is refused as it may be a decompression bomb); "
            "make it smaller, e.g. magick IN -resize 4000x4000 OUT"
        ) from None
    except Exception as error:  # on damaged files, decoders raise whatever happens to them
        reason = getattr(error, "strerror", None) or first_line(error)
        if isinstance(error, UnidentifiedImageError):
            kind = what_is(path)
            reason = f"it is {kind}{', damaged' if kind.endswith('image') else ''}" if kind else "not an image"
        raise SagaError(f"image {path} cannot be read ({reason}); replace or remove it") from None


@cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def count_frames(path: Path, kind: str | None) -> int:
    """Return how many frames a readable image of Pillow's format `kind` has: several if it moves, has pages or is a burst."""
    if kind not in ("GIF", "WEBP", "PNG", "AVIF", "MPO", "TIFF"):
        return 1
    try:
        with warnings.catch_warnings(), Image.open(path, formats=_formats()) as image:
            warnings.simplefilter("ignore")
            return getattr(image, "n_frames", 1)
    except Exception:  # damage behind the first frame
        return 1


def upright_rgb(path: Path) -> Image.Image:
    """Return an image as RGB of 8 bits, turned as its EXIF orientation asks, as people see it; errors as in `read_image`."""
    image = read_image(path)
    try:
        return to_rgb(image)
    except Exception as error:  # exotic modes
        raise SagaError(f"image {path} cannot be converted to RGB ({first_line(error)}); replace or remove it") from None


def to_rgb(image: Image.Image) -> Image.Image:
    """Return a new image: upright, RGB, 8 bits, without metadata; one that is so already comes back equal.

    Grey of 16 bits is scaled by 65535. Numbers of no stated range are scaled by 1 (floating-point ones), 255 or 65535, the least that
    holds them, and by their own range if none does or some are negative. Transparency is dropped: what lies below it shows.
    """
    if not isinstance(image, Image.Image):
        raise SagaError(f"an image that Pillow has opened is needed, got {image!r:.60}; open files by upright_rgb(path)")
    try:
        image.load()  # at which Pillow turns a TIFF itself
    except Exception as error:  # as in `read_image`
        raise SagaError(f"image {getattr(image, 'filename', '')} cannot be read ({first_line(error)}); replace or remove it") from None
    turn = _TURNS.get(orientation(image))
    if turn is not None:
        image = image.transpose(turn)
    if image.mode.startswith(("I", "F")):
        image = _scaled(image)
    elif image.mode in ("P", "PA", "La", "RGBa"):  # not converted to RGB at once, or not without a warning
        image = image.convert("LA" if image.mode == "La" else "RGBA")
    image = image.convert("RGB")
    image.info = {}  # so that it is not turned again
    return image


def orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8; 1 (upright) where there is none or the metadata are damaged."""
    try:
        value = image.getexif().get(0x0112, 1)
    except Exception:  # whatever damaged metadata lead to
        return 1
    return value if value in _TURNS else 1


def _scaled(image: Image.Image) -> Image.Image:
    """Return an image of whole or floating-point numbers as 8-bit grey."""
    values = np.nan_to_num(np.asarray(image, dtype=np.float64), posinf=0.0, neginf=0.0)
    least, most = min(values.min(), 0), values.max()
    ranges = (65535,) if image.mode.startswith("I;16") else (1, 255, 65535) if image.mode == "F" else (255, 65535)
    full = next((top for top in ranges if most <= top and not least), most - least) or 1
    values -= least
    return Image.fromarray((values / full * 255).round().astype(np.uint8))


def fit_square(image: Image.Image, size: int, fit: str = "crop") -> Image.Image:
    """Return an image as upright RGB of size×size, fitted by a way of `FITS`; `SagaError` for an unknown one."""
    if fit not in FITS:
        raise unknown_name("image fit", fit, FITS)
    image = to_rgb(image)
    side = min(image.size)
    if fit == "crop" and image.size != (side, side):
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.crop((left, top, left + side, top + side))
    return image if image.size == (size, size) else image.resize((size, size), Image.Resampling.BICUBIC)


def what_is(path: Path) -> str:
    """Return what a file's first bytes say it is, e.g. "a zip archive or a spreadsheet"; empty if they say nothing known."""
    with open(path, "rb") as file:
        head = file.read(512)
    if not head.strip(b"\0"):
        return "full of zeros" if head else "empty"
    if head[4:8] == b"ftyp":
        return "a HEIC photograph, which has to be converted" if head[8:11] in (b"hei", b"hev", b"mif", b"msf") else "a film or AVIF image"
    if head[257:262] == b"ustar":
        return "a tar archive"
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    return next((kind for sign, kind in _SIGNATURES.items() if start.startswith(sign.lower())), "")
