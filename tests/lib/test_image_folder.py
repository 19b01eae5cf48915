"""Your own images: folders and CSVs become benchmarks, and what is wrong with them is said before training."""

import os
import shutil

import numpy as np
import pytest
from PIL import Image
from tiny import random_images

from saga_lib.common.errors import SagaError
from saga_lib.common.images import find_images
from saga_lib.common.paths import REPOSITORY
from saga_lib.datasets.image_folder import check_image_folder, load_image_folder

PHOTOGRAPHS = REPOSITORY.parent / "shared" / "data" / "real" / "cub200_2011_mini"


@pytest.fixture
def folder(tmp_path):
    """Six classes of four different images each."""
    images = iter(random_images(24, size=(80, 70)))
    for c in range(6):
        place = tmp_path / "birds" / f"{c}.bird"
        place.mkdir(parents=True)
        for i in range(4):
            next(images).save(place / f"{i}.png")
    return tmp_path / "birds"


def load(source, **options):
    return load_image_folder(source, vocabulary="birds", **options)


def row(table, check):
    """Return the one row of a table whose check contains a text."""
    [found] = table[table["check"].str.contains(check, regex=False)].to_dict("records")
    return found


def write_csv(path, rows, head="path,label"):
    path.write_text("\n".join([head, *(",".join(row) for row in rows)]) + "\n", encoding="utf-8")
    return path


def rows_of(folder, *more):
    return [(p.relative_to(folder.parent).as_posix(), p.parent.name, *more) for p in find_images(folder)]


def refusal(source, **options):
    with pytest.raises(SagaError) as error:
        load(source, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


# ----------------------------------------------------------------------------------------------- what works


def test_sub_folders_are_classes_and_splits_are_disjoint(folder):
    benchmark, table = load(folder)
    assert set(table["severity"]) == {"ok"} and set(table["count"]) == {0} and set(table["example"]) == {""}
    assert list(table) == ["check", "severity", "count", "example", "what to do"]
    assert benchmark.name == "birds" and benchmark.vocabulary == "birds"
    for split in (benchmark.train, benchmark.test):
        assert np.bincount(split.labels).tolist() == [4, 4, 4] and split.labels.dtype == np.int64
        assert all(path.parent.name == split.class_names[label] for path, label in zip(split.paths, split.labels, strict=True))
        assert split.open(0).mode == "RGB"
    assert not set(benchmark.train.class_names) & set(benchmark.test.class_names)
    assert benchmark.train.class_names == sorted(benchmark.train.class_names)


def test_the_seed_and_the_fraction_decide_the_split(folder):
    first, again = load(folder)[0], load(folder)[0]
    assert first.checksum == again.checksum and first.test.class_names == again.test.class_names
    assert len({tuple(load(folder, seed=seed)[0].test.class_names) for seed in range(6)}) > 1
    assert len(load(folder, test_fraction=0.34)[0].test.class_names) == 2
    named, _ = load(folder, test_classes=["5.bird", "0.bird"])
    assert named.test.class_names == ["0.bird", "5.bird"] and len(named.train.class_names) == 4
    assert named.checksum != first.checksum


def test_the_checksum_follows_pixels_and_not_places(folder, tmp_path):
    before = load(folder)[0].checksum
    moved = folder.rename(tmp_path / "moved")
    assert load(moved)[0].checksum == before
    Image.new("RGB", (80, 70)).save(moved / "0.bird" / "0.png")
    assert load(moved)[0].checksum != before


def test_a_csv_means_the_same_as_the_folder(folder, tmp_path):
    by_folder, _ = load(folder)
    path = write_csv(tmp_path / "birds.csv", [("", ""), *rows_of(folder)])  # a blank line, too
    by_csv, table = load(path)
    assert by_csv.name == "birds" and set(table["severity"]) == {"ok"}
    assert by_csv.test.class_names == by_folder.test.class_names
    assert [p.resolve() for p in by_csv.test.paths] == [p.resolve() for p in by_folder.test.paths]
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())  # as spreadsheet programs save UTF-8
    assert load(path)[0].checksum == by_csv.checksum


def test_a_split_column_decides_and_labels_stay_texts(folder, tmp_path):
    rows = [(path, "NA" if label[0] == "1" else label[0], "test" if label[0] in "12" else "train") for path, label, *_ in rows_of(folder)]
    benchmark, _ = load(write_csv(tmp_path / "birds.csv", rows, "path,label,split"), test_fraction=0.9)
    assert benchmark.test.class_names == ["2", "NA"] and benchmark.train.class_names == ["0", "3", "4", "5"]


def test_images_at_any_depth_and_hidden_files_none(folder):
    deep = folder / "0.bird" / "session 2" / "x"
    deep.mkdir(parents=True)
    random_images(1, 5)[0].resize((90, 90)).save(deep / "späte.JPG")
    (folder / "0.bird" / "notes.txt").write_text("no image")
    (folder / "0.bird" / "._0.png").write_bytes(b"resource fork")
    (folder / ".cache").mkdir()
    shutil.copy(deep / "späte.JPG", folder / ".cache" / "a.jpg")
    (deep / "loop").symlink_to(folder)
    benchmark, table = load(folder, test_classes=["0.bird", "1.bird"])
    assert len(benchmark.test) == 9 and "0.bird/session 2/x/späte.JPG" in [p.relative_to(folder).as_posix() for p in benchmark.test.paths]
    assert set(table["severity"]) == {"ok"}


@pytest.mark.skipif(not PHOTOGRAPHS.is_dir(), reason=f"no photographs in {os.path.relpath(PHOTOGRAPHS, REPOSITORY)}")
def test_real_photographs():
    benchmark, table = load(PHOTOGRAPHS)
    assert len(benchmark.train) + len(benchmark.test) == 480 and len(benchmark.train.class_names) == 15
    assert row(table, "unreadable")["count"] == 0 and row(table, "greyscale")["count"] == 2


# ------------------------------------------------------------------------------------------------ the checks


def test_unreadable_images_are_named_and_left_out(folder):
    whole = (folder / "0.bird" / "0.png").read_bytes()
    (folder / "0.bird" / "0.png").write_bytes(whole[:-60])
    (folder / "1.bird" / "1.png").write_bytes(b"")
    (folder / "2.bird" / "2.png").write_text("no image")
    benchmark, table = load(folder, test_classes=["0.bird", "1.bird"])
    found = row(table, "unreadable")
    assert found["severity"] == "warning" and found["count"] == 3
    assert "0.bird/0.png cannot be read (" in found["example"] and "2.bird/2.png cannot be read (not an image)" in found["example"]
    assert np.bincount(benchmark.test.labels).tolist() == [3, 3] and np.bincount(benchmark.train.labels).tolist() == [3, 4, 4, 4]


def test_a_decompression_bomb_is_unreadable(folder, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10000)
    Image.new("RGB", (200, 200)).save(folder / "0.bird" / "0.png")
    assert "decompression bomb" in row(load(folder)[1], "unreadable")["example"]


def test_small_classes_are_left_out_or_reported(folder):
    (folder / "6.empty").mkdir()
    for name, keep in (("0.bird", 1), ("1.bird", 3)):
        for i in range(keep, 4):
            (folder / name / f"{i}.png").unlink()
    benchmark, table = load(folder)
    assert "0.bird" not in benchmark.train.class_names + benchmark.test.class_names
    assert row(table, "fewer than 2")["example"] == "0.bird (1), 6.empty (0)"
    assert row(table, "fewer than 4") | {"what to do": ""} == {
        "check": "class of fewer than 4 images", "severity": "warning", "count": 1, "example": "1.bird (3)", "what to do": ""
    }  # fmt: skip
    assert "left out" in row(table, "fewer than 2")["what to do"]


def test_copies_are_found_by_their_pixels(folder):
    Image.open(folder / "0.bird" / "0.png").save(folder / "0.bird" / "copy.bmp")
    Image.open(folder / "1.bird" / "0.png").save(folder / "2.bird" / "stolen.tif")
    Image.open(folder / "3.bird" / "0.png").save(folder / "4.bird" / "leaked.png", compress_level=1)
    table = load(folder, test_classes=["4.bird", "5.bird"])[1]
    assert row(table, "within a class")["example"] == "0.bird/0.png = 0.bird/copy.bmp"
    assert row(table, "in two classes")["example"] == "1.bird/0.png = 2.bird/stolen.tif"
    assert row(table, "across splits")["example"] == "3.bird/0.png = 4.bird/leaked.png"
    assert row(table, "across splits")["severity"] == "warning"


def test_modes_orientation_and_size_are_reported(folder):
    colour = random_images(1, 9, (80, 80))[0]
    colour.convert("L").save(folder / "0.bird" / "grey.png")
    colour.convert("CMYK").save(folder / "0.bird" / "print.jpg")
    Image.fromarray(np.full((80, 80), 3000, np.uint16)).save(folder / "0.bird" / "deep.png")
    half = colour.copy()
    half.putalpha(100)
    half.save(folder / "1.bird" / "glass.png")
    opaque = colour.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    opaque.putalpha(255)
    opaque.save(folder / "1.bird" / "opaque.png")
    colour.resize((500, 30)).save(folder / "2.bird" / "thin.webp")
    exif = Image.Exif()
    exif[0x0112] = 6
    colour.rotate(20).save(folder / "2.bird" / "turned.jpg", exif=exif)
    colour.rotate(30).quantize().save(folder / "2.bird" / "palette.gif")
    table = load(folder)[1]
    found = {r["check"]: (r["severity"], r["example"]) for r in table.to_dict("records") if r["count"]}
    assert found == {
        "greyscale image": ("warning", "0.bird/grey.png (L)"),
        "CMYK or Lab image": ("warning", "0.bird/print.jpg (CMYK)"),
        "transparent image": ("note", "1.bird/glass.png"),
        "image of 16 or more bits per channel": ("warning", "0.bird/deep.png (I;16)"),
        "turned by EXIF orientation": ("warning", "2.bird/turned.jpg"),
        "side shorter than 64 pixels": ("warning", "2.bird/thin.webp (30 pixels)"),
    }
    assert all(table.loc[table["count"] > 0, "what to do"])


def test_labels_that_differ_in_case_only(folder, tmp_path):
    rows = [(path, "0.Bird" if path.endswith(("0.bird/3.png", "0.bird/2.png")) else label) for path, label in rows_of(folder)]
    assert row(load(write_csv(tmp_path / "b.csv", rows))[1], "alike")["example"] == "0.Bird / 0.bird"


def test_a_name_that_is_not_utf8_is_left_out(folder):
    source = os.fsencode(folder / "0.bird")
    try:
        os.rename(source + b"/0.png", source + b"/\xff.png")
    except OSError:
        pytest.skip("this file system allows UTF-8 names only")
    assert "not UTF-8" in row(load(folder)[1], "unreadable")["example"]


# ------------------------------------------------------------------------------------------------- errors


def test_a_class_in_both_splits_is_an_error(folder, tmp_path):
    rows = [(path, label, "test" if "0.png" in path else "train") for path, label in rows_of(folder)]
    path = write_csv(tmp_path / "birds.csv", rows, "path,label,split")
    assert "class in both splits: class '0.bird'" in refusal(path) and "birds.csv" in refusal(path)
    table = check_image_folder(path)
    assert row(table, "both splits")["severity"] == "error" and row(table, "both splits")["count"] == 6


def test_too_few_classes_are_an_error(folder):
    text = refusal(folder, test_fraction=0.1)
    assert "the test split has 1 class(es)" in text and "test_fraction" in text
    assert "the train split has 1 class(es)" in refusal(folder, test_classes=[f"{c}.bird" for c in range(5)])
    assert "the test split has 0 class(es)" in refusal(folder, test_classes=[])
    for c in range(1, 6):
        shutil.rmtree(folder / f"{c}.bird")
    assert "too few classes" in refusal(folder)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(test_fraction=1.0), "test_fraction is 1.0"),
        (dict(test_fraction=float("nan")), "test_fraction is nan"),
        (dict(seed=-1), "seed -1"),
        (dict(test_classes="0.bird"), "must be a list of class names"),
        (dict(test_classes=["0.brid"]), "unknown class in test_classes '0.brid': did you mean '0.bird'"),
        (dict(vocabulary="brids"), "unknown vocabulary 'brids': did you mean 'birds'"),
    ],
)
def test_wrong_options(folder, options, message):
    with pytest.raises(SagaError, match=message) as error:
        load_image_folder(folder, **{"vocabulary": "birds"} | options)
    assert "\n" not in str(error.value)


def test_wrong_folders(folder, tmp_path):
    assert "does not exist" in refusal(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "no image is in it" in refusal(tmp_path / "empty")
    assert "its 4 image(s) lie in no sub-folder" in refusal(folder / "0.bird")
    for name in ("train", "test"):
        shutil.copytree(folder, tmp_path / "halves" / name)
    assert "are splits, not classes" in refusal(tmp_path / "halves")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not a CSV table"),
        (b"\xff\xfe\x00", "is not a CSV table"),
        (b"\x89PNG\r\n\x1a\n\x00\x00", "CSV"),
        (b"path,label\n", "lists no image"),
        (b"path;label\na;b\n", "needs one column 'path'"),
        (b"file,label\na,b\n", "needs one column 'path', it has file, label"),
        (b"path,class\na,b\n", "needs one column 'label'"),
        (b"path,label\nbirds/0.bird/0.png,\n", "line 2: the label is empty"),
        (b"path,label\n\n,x\n", "line 3: the path is empty"),
        (b"path,label\nbirds/0.bird/9.png,x\n", r"line 2: path 'birds/0.bird/9.png' is no file"),
        (b"path,label\nbirds,x\n", "line 2: path 'birds' is no file"),
        (b"path,label\nbirds/0.bird/0.png,x,y,z\n", "more cells than its first line"),
        (b"path,label,split\nbirds/0.bird/0.png,x,val\n", "line 2: split is 'val'; it must be train or test"),
        (b"path,label,split\nbirds/0.bird/0.png,x,\n", "line 2: split is ''"),
        (b'path,label\n"birds/0', "is not a CSV table"),
        (b"path,label\n" + b"x" * 9000 + b",y\n", "is no file"),
    ],
)
def test_wrong_csvs(folder, tmp_path, content, message):
    path = tmp_path / "list.csv"
    path.write_bytes(content)
    with pytest.raises(SagaError, match=message) as error:
        load(path)
    assert "\n" not in str(error.value) and "list.csv" in str(error.value)


def test_a_split_column_and_test_classes_contradict(folder, tmp_path):
    path = write_csv(tmp_path / "birds.csv", rows_of(folder, "train"), "path,label,split")
    assert "remove one of them" in refusal(path, test_classes=["0.bird"])
