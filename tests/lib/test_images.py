"""Image files: found in folders with all that is left out, read as people see them, fitted to a square."""

import io
import os
import threading

import numpy as np
import pytest
from PIL import Image, ImageOps
from tiny import random_images

from saga_lib.common.errors import SagaError, one_line
from saga_lib.common.images import count_frames, find_images, fit_square, is_foreign, read_image, to_rgb, upright_rgb, what_is
from saga_lib.datasets.image_folder import check_image_folder
from saga_lib.datasets.splits import Split

FOREIGN = [  # folders that people do not mean
    "@eaDir", "#recycle", "@Recycle", "$RECYCLE.BIN", "$Recycle.Bin", "RECYCLER", ".thumbnails", "Thumbnails", "thumbs", "_thumbs",
    "__MACOSX", ".Trash-1000", ".Trashes", ".AppleDouble", "lost+found", "LOST.DIR", "FOUND.000", "System Volume Information", ".git",
    ".ipynb_checkpoints", "__pycache__", ".cache", "#snapshot", "~snapshot", "@tmp", ".@__thumb", "@__thumb", "_vti_cnf", ".Spotlight-V100",
    "Holiday.lrdata", "Photos Library.photoslibrary", ".picasaoriginals", "Network Trash Folder", "Temporary Items", ".stversions",
    "@SynoResource", "@__qini", "@snapshot", "_thumb", "thumbnail", "Thumbnail Cache", "trashbox", "[Originals]", "CaptureOne",
    "My.lrlibrary", "Backup.noindex",
    "$Windows.~BT", "node_modules", "site-packages", "Photo Booth Library", "Old.migratedphotolibrary", "2024.cocatalog",
]  # fmt: skip
MEANT = ["1.bird", "#1", "$100", "@nasa", "_", "__init__", "trash", "train", "recycling bin", "thumb piano", "git", "Macosx", "lost", "A.B",
         "thumb", "originals", "@syn", "$windows", "windows", "noindex", "cache"]  # fmt: skip


@pytest.fixture
def picture():
    """One image of 8 × 5 different pixels."""
    return Image.fromarray(np.random.default_rng(3).integers(0, 256, (5, 8, 3), dtype=np.uint8))


def saved(image, path, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)
    return path


def refusal(work):
    with pytest.raises(SagaError) as error:
        work()
    assert str(error.value).isprintable()
    return str(error.value)


# --------------------------------------------------------------------------------------------- found and left out


@pytest.mark.parametrize("name", FOREIGN)
def test_folders_of_other_programs_are_left_out_and_counted(name, picture, tmp_path):
    assert is_foreign(name)
    for place in (tmp_path, tmp_path / "a", tmp_path / "a" / "deep"):
        saved(picture, place / name / "below" / "x.jpg")
        saved(picture, place / "x.jpg")
    found = find_images(tmp_path)
    assert [p.relative_to(tmp_path).as_posix() for p in found] == ["a/deep/x.jpg", "a/x.jpg", "x.jpg"]
    assert [len(places) for places in found.foreign.values()] == [3] and not found.unread and not found.other
    [line] = found.skipped()
    assert line.startswith("hidden, or of other programs: ") and line.endswith("(3)")


@pytest.mark.parametrize("name", MEANT)
def test_folders_that_only_look_alike_are_kept(name, picture, tmp_path):
    saved(picture, tmp_path / name / "x.jpg")
    assert not is_foreign(name) and len(find_images(tmp_path)) == 1


def test_what_is_left_out_is_counted_by_suffix(picture, tmp_path):
    for name in ("a/1.HEIC", "a/2.heic", "b/3.CR2", "a/notes.txt", "b/labels.csv", "film.mp4", "README", "a/1.jpg.crdownload"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    for name in (".DS_Store", "._1.jpg", "Thumbs.db", "desktop.ini"):
        (tmp_path / "a" / name).write_bytes(b"x")
    saved(picture, tmp_path / "a" / "1.JPG")
    found = find_images(tmp_path)
    assert [p.name for p in found] == ["1.JPG"]
    assert {kind: sorted(names) for kind, names in found.unread.items()} == {".heic": ["a/1.HEIC", "a/2.heic"], ".cr2": ["b/3.CR2"]}
    assert set(found.other) == {".txt", ".csv", ".mp4", "no suffix", ".crdownload"} and len(found.foreign["hidden file"]) == 4
    assert found.skipped()[0] == "photographs of kinds that are not read (convert them to JPEG or PNG): .heic (2), .cr2 (1)"


def test_pipes_links_and_circles(picture, tmp_path):
    saved(picture, tmp_path / "a" / "1.png")
    os.mkfifo(tmp_path / "a" / "pipe.png")
    (tmp_path / "a" / "nowhere.png").symlink_to("gone.png")
    (tmp_path / "a" / "self.png").symlink_to("self.png")
    (tmp_path / "a" / "null.png").symlink_to("/dev/zero")
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    (tmp_path / "folder.png").mkdir()
    found = find_images(tmp_path)
    assert [p.name for p in found] == ["1.png", "nowhere.png", "self.png"] and sorted(found.other[".png"]) == ["a/null.png", "a/pipe.png"]
    reader = threading.Thread(target=lambda: refusal(lambda: read_image(tmp_path / "a" / "pipe.png")), daemon=True)
    reader.start()
    reader.join(20)
    assert not reader.is_alive(), "a pipe is not waited for"
    assert "does not exist" in refusal(lambda: read_image(found[1]))


@pytest.mark.parametrize("kind", ["heics", "gpr", "mef", "fff", "insp", "jxl", "jpx", "j2c", "wdp", "avifs", "ptx", "RWZ", "cs1"])
def test_photographs_of_rare_kinds_are_no_other_files(kind, tmp_path):
    (tmp_path / f"1.{kind}").write_bytes(b"x")
    found = find_images(tmp_path)
    assert list(found.unread) == [f".{kind.lower()}"] and not found.other


@pytest.mark.parametrize("kind", ["jif", "jfi", "pjp", "pjpeg", "JFIF"])
def test_other_names_of_jpeg_are_read(kind, picture, tmp_path):
    saved(picture, tmp_path / "1.jpg").rename(tmp_path / f"1.{kind}")
    [path] = find_images(tmp_path)
    assert upright_rgb(path).size == picture.size


def test_links_to_folders_that_are_met_anyway_are_left_out(picture, tmp_path):
    saved(picture, tmp_path / "photos" / "z" / "deep" / "1.png")
    saved(picture, tmp_path / "photos" / ".store" / "y" / "2.png")
    saved(picture, tmp_path / "elsewhere" / "3.png")
    links = {"a": "photos/z/deep", "b": "photos/z", "y": "photos/.store/y", "x": "elsewhere"}
    for name, place in links.items():
        (tmp_path / "photos" / name).symlink_to(tmp_path / place)
    found = find_images(tmp_path / "photos")
    assert [p.relative_to(tmp_path / "photos").as_posix() for p in found] == ["x/3.png", "y/2.png", "z/deep/1.png"]
    assert found.foreign == {"hidden folder": [".store"], "link to a folder that is here": ["a", "b"]}


@pytest.mark.parametrize("name", ["photos.zip", "list.csv", "1.png"])
def test_a_file_in_the_place_of_a_folder_is_called_what_it_is(name, picture, tmp_path):
    (tmp_path / name).write_bytes({"photos.zip": b"PK\x03\x04", "list.csv": b"path,label"}.get(name, b"\x89PNG\r\n\x1a\n"))
    said = refusal(lambda: find_images(tmp_path / name))
    assert "is not a folder" in said and "give a folder of images" in said and ("but a zip archive" in said) == (name == "photos.zip")


def test_folders_that_cannot_be_listed(picture, tmp_path, monkeypatch):
    saved(picture, tmp_path / "a" / "1.png")
    saved(picture, tmp_path / "b" / "1.png")
    real, closed = os.scandir, str(tmp_path / "b")

    def scandir(place):
        if str(place) == closed:
            raise PermissionError(13, "Permission denied", str(place))
        return real(place)

    monkeypatch.setattr(os, "scandir", scandir)  # a test may run as root, who may list all
    found = find_images(tmp_path)
    assert len(found) == 1 and found.closed == ["b (Permission denied)"]
    assert found.skipped() == ["folder that cannot be listed: b (Permission denied)"]
    closed = str(tmp_path)
    assert "cannot be listed: Permission denied" in refusal(lambda: find_images(tmp_path))
    assert "is not a folder" in refusal(lambda: find_images(tmp_path / "a" / "1.png"))
    assert "does not exist" in refusal(lambda: find_images(tmp_path / "c"))


def test_names_of_any_sort_are_found_and_shown_in_one_line(picture, tmp_path):
    for name in ("a\nb.png", "\x1b[31mred.png", 'q"uo\'te.png', "<script>alert(1)<&>.png", "\u202egnp.png", "a b\u00a0c.png"):
        saved(picture, tmp_path / name)
    assert len(find_images(tmp_path)) == 6
    (tmp_path / "a\nb.png").write_bytes(b"")
    assert "a\\nb.png" in refusal(lambda: upright_rgb(tmp_path / "a\nb.png"))
    assert one_line("\x1b[2J\u202e\ud800 ä\u00a0\n") == "\\x1b[2J\\u202e\\ud800 ä\\xa0\\n"


# ------------------------------------------------------------------------------------------------------- one reading


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("kind", ["png", "jpg", "webp", "tif"])
def test_images_are_read_upright(orientation, kind, picture, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(picture, tmp_path / f"x.{kind}", exif=exif, **({} if kind == "tif" else {"quality": 95}))
    with Image.open(path) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    upright = upright_rgb(path)
    assert np.array_equal(upright, expected) and np.array_equal(to_rgb(upright), expected), "once, not twice"
    with Image.open(path) as image:  # not decoded yet: Pillow turns a TIFF as it decodes it
        assert np.array_equal(to_rgb(image), expected) and np.array_equal(fit_square(Image.open(path), 5), fit_square(upright, 5))
    split = Split("train", [path], np.zeros(1, np.int64), ["x"])
    assert np.array_equal(split.open(0), expected), "training sees what search sees"


def test_damaged_metadata_leave_the_picture_as_it_is_stored(picture, tmp_path):
    path = saved(picture, tmp_path / "x.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\xff" + b"\xff" * 40)
    assert upright_rgb(path).size == (8, 5)


RAMP = np.linspace(0, 1, 200)


@pytest.mark.parametrize(
    ("values", "kinds"),
    [
        ((RAMP * 65535).astype("<u2"), ("png", "tif")),
        ((RAMP * 65535).astype(">u2"), ("png", "tif")),
        ((RAMP * 65535).astype("<u2"), ("pgm",)),  # which Pillow reads as 32 bits
        ((RAMP * 65535).astype("i4"), ("tif",)),
        ((RAMP * 255).astype("i4"), ("tif",)),
        ((RAMP * (2**31 - 1)).astype("i4"), ("tif",)),
        (RAMP.astype("f4"), ("tif",)),
        ((RAMP * 255).astype("f4"), ("tif",)),
        ((RAMP * 65535).astype("f4"), ("tif",)),
        ((RAMP * 2 - 1).astype("f4"), ("tif",)),
        ((RAMP * 1e6).astype("f4"), ("tif",)),
    ],
)
def test_more_than_8_bits_are_scaled(values, kinds, tmp_path):
    for kind in kinds:
        path = saved(Image.fromarray(np.tile(values, (3, 1))), tmp_path / f"x.{kind}")
        rgb = np.asarray(upright_rgb(path))
        assert rgb.dtype == np.uint8 and rgb.shape == (3, 200, 3) and (rgb == rgb[:, :, :1]).all()
        assert np.abs(rgb[0, :, 0] - RAMP * 255).max() <= 1.5, "the whole range, evenly"


def test_the_scale_of_16_bits_is_the_same_for_every_picture():
    values = np.array([[0, 257, 3000 // 257 * 257]], dtype=np.uint16)
    assert np.asarray(to_rgb(Image.fromarray(values)))[0, :, 0].tolist() == [0, 1, 11]
    for values in (np.zeros((2, 2), "u2"), np.zeros((2, 2), "f4"), np.full((2, 2), np.nan, "f4"), np.full((2, 2), -7, "i4")):
        assert not np.asarray(to_rgb(Image.fromarray(values))).any()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("mode", ["1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV", "I", "F", "I;16"])
def test_every_mode_becomes_rgb(mode, picture):
    source = picture.convert("L") if mode in ("LA", "La", "PA", "I", "F", "I;16") else picture
    image = source.convert({"La": "LA", "RGBa": "RGBA", "PA": "P"}.get(mode, mode)).convert(mode)
    rgb = to_rgb(image)
    assert rgb.mode == "RGB" and rgb.size == picture.size and rgb.info == {}
    if mode in ("RGB", "RGBA", "RGBX", "LA", "L"):
        assert np.array_equal(rgb, (picture.convert("L") if mode == "L" else source).convert("RGB"))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("transparency", [0, b"\0\x80\xff"])
def test_a_palette_with_transparency_keeps_its_colours(transparency, tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putdata([0, 1])
    path = saved(image, tmp_path / "x.png", transparency=transparency)
    assert list(map(tuple, np.asarray(upright_rgb(path))[0])) == [(10, 20, 30), (200, 100, 50)]


@pytest.mark.parametrize("kind", ["gif", "webp", "png", "tif", "mpo"])
def test_of_several_frames_the_first_counts(kind, tmp_path):
    frames = random_images(3, size=(80, 64))
    options = {"lossless": True} if kind == "webp" else {}
    path = saved(frames[0], tmp_path / f"x.{kind}", save_all=True, append_images=frames[1:], **options)
    assert count_frames(path, Image.open(path).format) == 3
    difference = np.abs(np.asarray(upright_rgb(path), float) - np.asarray(frames[0].convert("RGB"), float)).mean()
    assert difference < (0.1 if kind in ("webp", "png", "tif") else 40), "GIF has 256 colours, MPO is JPEG"
    assert count_frames(saved(frames[0], tmp_path / "one.gif"), "GIF") == 1
    path.write_bytes(path.read_bytes()[: len(path.read_bytes()) * 2 // 3])
    assert count_frames(path, "GIF" if kind == "gif" else None) >= 1


# ------------------------------------------------------------------------------------------------- refused with a reason


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is empty"),
        (b"\0" * 900, "it is full of zeros"),
        (b"no image", "not an image"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "a HEIC photograph, which has to be converted"),
        (b"\n<!DOCTYPE html><html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "a Git LFS pointer"),
        (b"PK\x03\x04" + b"x" * 40, "a zip archive"),
        (b"%PDF-1.7", "a PDF document"),
        (b"\x89PNG\r\n\x1a\n", "a PNG image, damaged"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "a PostScript document"),  # would run another program
    ],
)
def test_what_is_no_image_is_called_what_it_is(content, reason, tmp_path):
    path = tmp_path / "x.jpg"
    path.write_bytes(content)
    said = refusal(lambda: upright_rgb(path))
    assert "x.jpg cannot be read (" in said and reason in said and "replace or remove it" in said


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "gif", "bmp"])
def test_cut_images_are_refused(kind, keep, tmp_path):
    path = saved(random_images(1, size=(120, 90))[0], tmp_path / f"x.{kind}")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    assert f"x.{kind} cannot be read (" in refusal(lambda: upright_rgb(path))


@pytest.mark.parametrize("given", [np.zeros((4, 4, 3), np.uint8), "x.png", None, b"x", (1,), "a\nb"])
def test_what_pillow_has_not_opened_is_no_image(given):
    assert "an image that Pillow has opened is needed, got" in refusal(lambda: fit_square(given, 4))


def test_an_image_that_is_found_cut_while_it_is_used_is_named(tmp_path):
    path = saved(random_images(1, size=(120, 90))[0], tmp_path / "x.jpg")
    path.write_bytes(path.read_bytes()[:1500])
    assert "x.jpg cannot be read (" in refusal(lambda: fit_square(Image.open(path), 4))


def test_a_decompression_bomb_says_what_to_do(monkeypatch, tmp_path):
    path = saved(Image.new("L", (200, 200)), tmp_path / "x.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    said = refusal(lambda: upright_rgb(path))
    assert "more than 0.02 megapixels" in said and "make it smaller" in said and "replace" not in said
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 25_000)  # Pillow refuses above twice as many
    assert upright_rgb(path).size == (200, 200)


def test_archives_are_known_by_their_first_bytes(tmp_path):
    import tarfile
    import zipfile

    with zipfile.ZipFile(tmp_path / "a", "w") as archive:
        archive.writestr("x", "x")
    assert "zip" in what_is(tmp_path / "a")
    for mode, word in (("w", "tar"), ("w:gz", "gzip"), ("w:bz2", "bzip2"), ("w:xz", "xz")):
        with tarfile.open(tmp_path / "b", mode) as archive:
            archive.addfile(tarfile.TarInfo("x"), io.BytesIO())
        assert word in what_is(tmp_path / "b")
    (tmp_path / "c").write_text("path,label\n")
    assert what_is(tmp_path / "c") == ""


# ------------------------------------------------------------------------------------------------------------ squares


@pytest.mark.parametrize("size", [(8, 8), (40, 20), (20, 40), (41, 20), (1, 30), (300, 200)])
def test_a_square_is_the_centre_or_the_whole(size):
    image = random_images(1, size=size)[0]
    side = min(size)
    left, top = (size[0] - side) // 2, (size[1] - side) // 2
    centre = image.crop((left, top, left + side, top + side))
    assert np.array_equal(fit_square(image, 12, "crop"), centre.resize((12, 12), Image.Resampling.BICUBIC))
    assert np.array_equal(fit_square(image, 12, "resize"), image.resize((12, 12), Image.Resampling.BICUBIC))
    if size[0] == size[1]:
        assert np.array_equal(fit_square(image, 12, "crop"), fit_square(image, 12, "resize"))
        assert np.array_equal(fit_square(image, side, "crop"), image)


def test_resizing_shows_what_cropping_cuts_off():
    image = Image.new("RGB", (60, 20))
    image.paste((255, 0, 0), (0, 0, 15, 20))  # left of the centre square
    assert np.asarray(fit_square(image, 20, "resize"))[:, :4, 0].min() > 200 and not np.asarray(fit_square(image, 20)).any()
    assert "did you mean 'resize'" in refusal(lambda: fit_square(image, 20, "rezise"))


def test_what_was_left_out_is_in_the_checks(picture, tmp_path):
    images = iter(random_images(16, size=(80, 70)))
    for c in "abcd":
        for i in range(4):
            saved(next(images), tmp_path / c / f"{i}.png")
            (tmp_path / c / f"{i}.HEIC").write_bytes(b"x")
            saved(picture, tmp_path / c / "@eaDir" / f"{i}.png" / "SYNOPHOTO_THUMB_M.jpg")
    saved(picture, tmp_path / "loose.png")
    saved(picture, tmp_path / "#recycle" / "old.png")
    (tmp_path / "list.xlsx").write_bytes(b"x")
    table = check_image_folder(tmp_path).set_index("check")
    found = {check: (row["severity"], row["count"], row["example"]) for check, row in table[table["count"] > 0].iterrows()}
    assert set(found) == {
        "photograph of a kind that is not read", "image in no sub-folder", "hidden, or of another program", "file of another kind"
    }  # fmt: skip
    assert found["photograph of a kind that is not read"][:2] == ("warning", 16) and ".heic (16), e.g. " in str(found)
    assert found["image in no sub-folder"] == ("warning", 1, "loose.png")
    assert found["hidden, or of another program"] == ("note", 5, "@eaDir (4), e.g. a/@eaDir, #recycle (1), e.g. #recycle, b/@eaDir, …")
    assert found["file of another kind"] == ("note", 1, ".xlsx (1), e.g. list.xlsx")
