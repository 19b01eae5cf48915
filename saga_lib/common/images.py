"""Image files of all sorts: found in folders, opened as RGB, and refused with a reason."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

from PIL import Image, ImageOps

from saga_lib.common.errors import SagaError

SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".avif")

HIDDEN = (".", "__MACOSX")  # beginnings of names that people do not mean


def find_images(folder: Path) -> list[Path]:
    """Return the image files below `folder` by their suffix, sorted; hidden files and folders are left out.

    Raises `SagaError` when the folder is missing or may not be listed.
    """

    def refuse(error: OSError) -> None:
        raise SagaError(f"folder {error.filename} cannot be listed: {error.strerror}") from None

    if not folder.is_dir():
        raise SagaError(f"{folder} is not a folder" if folder.exists() else f"folder {folder} does not exist")
    found, seen = [], {os.path.realpath(folder)}
    for place, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        real = {name: os.path.realpath(os.path.join(place, name)) for name in folders if not name.startswith(HIDDEN)}
        folders[:] = [name for name in sorted(real) if real[name] not in seen]  # links may lead in circles
        seen.update(real.values())
        found += [Path(place, name) for name in names if not name.startswith(HIDDEN) and name.lower().endswith(SUFFIXES)]
    return sorted(found)


def read_image(path: Path) -> Image.Image:
    """Return a fully decoded image in its own mode and stored orientation; a `SagaError` names file and reason."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of damaged metadata, large images, palettes: the pixels decide
            with Image.open(path) as image:
                image.load()
                return image
    except FileNotFoundError:
        raise SagaError(f"image {path} does not exist") from None
    except Exception as error:  # on damaged files, decoders raise whatever happens to them
        reason = (getattr(error, "strerror", None) or str(error) or type(error).__name__).splitlines()[0]
        reason = "not an image" if reason.startswith("cannot identify image file") else reason
        raise SagaError(f"image {path} cannot be read ({reason}); replace or remove it") from None


def upright_rgb(path: Path) -> Image.Image:
    """Return an image as RGB, turned as its EXIF orientation asks, as people see it; errors as in `read_image`."""
    image = read_image(path)
    try:
        return ImageOps.exif_transpose(image).convert("RGB")
    except Exception as error:  # damaged metadata and exotic modes
        raise SagaError(f"image {path} cannot be converted to RGB ({error}); replace or remove it") from None
