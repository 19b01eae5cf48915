"""Your own images: folders and CSVs become benchmarks, and what is wrong with them is said before training."""

import os
import shutil
import tarfile
import unicodedata
import zipfile

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
    noted = table[table["severity"] != "ok"].set_index("check")["example"].to_dict()
    assert noted == {
        "hidden, or of another program": "hidden folder (1), e.g. .cache, hidden file (1), e.g. 0.bird/._0.png",
        "file of another kind": ".txt (1), e.g. 0.bird/notes.txt",
    }


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
    colour.rotate(40).save(folder / "3.bird" / "moving.gif", save_all=True, append_images=[colour.rotate(50)])
    table = load(folder)[1]
    found = {r["check"]: (r["severity"], r["example"]) for r in table.to_dict("records") if r["count"]}
    assert found == {
        "greyscale image": ("warning", "0.bird/deep.png (I;16), 0.bird/grey.png (L)"),
        "CMYK or Lab image": ("warning", "0.bird/print.jpg (CMYK)"),
        "transparent image": ("note", "1.bird/glass.png"),
        "image of 16 or more bits per channel": ("note", "0.bird/deep.png (I;16)"),
        "dark image": ("warning", "0.bird/deep.png (no value above 12 of 255)"),
        "image of several frames": ("note", "3.bird/moving.gif (2)"),
        "turned by EXIF orientation": ("note", "2.bird/turned.jpg"),
        "side shorter than 64 pixels": ("warning", "2.bird/thin.webp (30 pixels)"),
    }
    assert all(table.loc[table["count"] > 0, "what to do"])


@pytest.mark.parametrize(
    ("label", "other"),
    [
        ("0.bird", "0.Bird"), ("house sparrow", "House  Sparrow"), ("house sparrow", "house_sparrow"), ("house sparrow", "house-sparrow"),
        ("finch", "\ufb01nch"), ("finch", "\uff46inch"), ("finch 2", "finch ²"), ("Gr\u00f6\u00dfe", "GR\u00d6SSE"),
        ("finch", "fin\u200bch"), ("finch", "fi\u00adnch"), ("\u212b", "\u00e5"),
    ],
)  # fmt: skip
def test_labels_that_a_reader_takes_for_the_same(label, other, folder, tmp_path):
    other_files = ("0.bird/3.png", "0.bird/2.png")
    rows = [(p, (other if p.endswith(other_files) else label) if name == "0.bird" else name) for p, name in rows_of(folder)]
    found = row(load(write_csv(tmp_path / "b.csv", rows))[1], "alike")
    assert found["severity"] == "warning" and found["count"] == 1 and " / " in found["example"]
    assert "1.bird" not in found["example"]


def test_labels_of_other_blanks_are_one(folder, tmp_path):
    others = {"0.bird/3.png": "a\u00a0b", "0.bird/2.png": "a\u202fb"}
    rows = [(p, others.get(p.removeprefix("birds/"), "a b") if name == "0.bird" else name) for p, name in rows_of(folder)]
    benchmark, table = load(write_csv(tmp_path / "b.csv", rows))
    assert "a b" in benchmark.train.class_names + benchmark.test.class_names and len(benchmark.train) == 12
    assert row(table, "alike")["example"] == "a b (in 3 forms of Unicode, read as one)"


# ------------------------------------------------------------------------------------------------------ Unicode

FORMS = [("NFC", "NFD"), ("NFD", "NFC")]


@pytest.mark.parametrize("name", ["Bl\u00e4sshuhn", "\u00c5ngstr\u00f6m", "\uac00\ub098", "\u1ec7\u1ec7"])
def test_a_class_in_two_forms_of_unicode_is_one_class(name, folder):
    composed, apart = (unicodedata.normalize(form, name) for form in FORMS[0])
    assert composed != apart
    (folder / "0.bird").rename(folder / composed)
    (folder / "1.bird").rename(folder / apart)
    if len(list(folder.iterdir())) < 6:
        pytest.skip("this file system takes both names for one")
    benchmark, table = load(folder, test_classes=[apart, "2.bird"])
    assert benchmark.test.class_names == sorted([composed, "2.bird"]) and composed not in benchmark.train.class_names
    assert len(benchmark.test) == 12 and all(path.is_file() for path in benchmark.test.paths)
    assert row(table, "alike")["example"] == f"{composed} (in 2 forms of Unicode, read as one)"
    assert load(folder, test_classes=[composed, "2.bird"])[0].checksum == benchmark.checksum


@pytest.mark.parametrize(("on_disk", "written"), FORMS)
def test_a_path_in_another_form_of_unicode_is_found(on_disk, written, folder, tmp_path):
    place = folder / unicodedata.normalize(written, "V\u00f6gel")  # the folder as written, the file in the other form
    (folder / "0.bird").rename(place)
    (place / "0.png").rename(place / unicodedata.normalize(on_disk, "M\u00f6we.png"))
    rows = [(unicodedata.normalize(written, path), unicodedata.normalize(written, label)) for path, label, *_ in rows_of(folder)]
    benchmark, table = load(write_csv(tmp_path / "b.csv", rows))
    assert len(benchmark.train) + len(benchmark.test) == 24 and set(table["severity"]) == {"ok"}
    assert "V\u00f6gel" in benchmark.train.class_names + benchmark.test.class_names
    place.rename(folder / unicodedata.normalize(on_disk, "V\u00f6gel"))  # both in the other form
    assert load(tmp_path / "b.csv")[0].checksum == benchmark.checksum


@pytest.mark.parametrize(("on_disk", "written"), FORMS)
def test_a_folder_or_table_in_another_form_of_unicode_is_found(on_disk, written, folder, tmp_path):
    place = folder.rename(tmp_path / unicodedata.normalize(on_disk, "V\u00f6gel"))
    (place / unicodedata.normalize(on_disk, "M\u00f6wen.csv")).write_text("path,label\n" + "".join(
        f"{path.relative_to(place)},{path.parent.name}\n" for path in find_images(place)), "utf-8")
    other = tmp_path / unicodedata.normalize(written, "V\u00f6gel")
    for source in (other, other / unicodedata.normalize(written, "M\u00f6wen.csv")):
        benchmark, _ = load(source)
        assert len(benchmark.train) + len(benchmark.test) == 24 and all(path.is_file() for path in benchmark.train.paths)


@pytest.mark.parametrize(
    "names", [("\u0915\u093f", "\u0915\u093e"), ("\u0e01\u0e34", "\u0e01\u0e38"), ("\u0628\u064e", "\u0628\u064f"), ("\u304c", "\u304b")]
)
def test_vowel_signs_tell_labels_apart(names, folder):
    for number, name in enumerate(names):
        (folder / f"{number}.bird").rename(folder / name)
    assert row(load(folder)[1], "alike")["count"] == 0


def test_names_that_could_write_to_a_terminal_are_shown_with_escapes(folder):
    for number, name in enumerate(("\x1b[31mred", "two\nlines", "<script>alert(1)</script>".replace("/", ""), "it's \"so\"", "\u202eback")):
        (folder / f"{number}.bird").rename(folder / name)
        (folder / name / "0.png").write_bytes(b"")
    benchmark, table = load(folder)
    names = benchmark.train.class_names + benchmark.test.class_names
    assert all(name.isprintable() for name in names) and {"\\x1b[31mred", "two\\nlines", "\\u202eback", "it's \"so\""} <= set(names)
    assert all(text.isprintable() for text in table["example"])
    assert "two\\nlines" in load(folder, test_classes=["two\nlines", "5.bird"])[0].test.class_names
    assert "\\x1b" in refusal(folder, test_classes=["\x1b[0m"])


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
    "names",
    [
        ("train", "test", "extra", "unlabeled"), ("Train", "TEST"), ("training", "validation", "notes"), ("train", "val"),
        ("train", "other"), ("train_set", "test-set", "x"), ("train2017", "val2017", "annotations"), ("dev", "test"), ("trainval", "test"),
        ("train",),
        ("Train Images", "Test Images"), ("seg_train", "seg_test", "seg_pred"), ("train1", "test1"), ("birds_train", "birds_test"),
        ("bounding_box_train", "bounding_box_test", "query"), ("query", "gallery"), ("x_train", "x_val"), ("train_mini", "val_mini"),
        ("01_train", "02_test"), ("cub-train", "cub-test"), ("train_dataset", "valid_dataset"), ("split=train", "split=test"),
        ("meta_train", "meta_val", "meta_test"), ("train (1)", "test (1)"), ("Trainingsdaten", "Testdaten"), ("labeled", "unlabelled"),
    ],
)  # fmt: skip
def test_folders_of_splits_are_no_classes(names, folder, tmp_path):
    for name in names:
        shutil.copytree(folder, tmp_path / "whole" / name)
    assert "are splits, not classes" in refusal(tmp_path / "whole")


@pytest.mark.parametrize(
    "names", [("steam train", "tram"), ("train station", "test tube"), ("test a", "test b"), ("trainer", "tester"), ("latrine", "contest")]
)
def test_classes_whose_names_hold_such_words_are_classes(names, folder):
    for number, name in enumerate(names):
        (folder / f"{number}.bird").rename(folder / name)
    benchmark, _ = load(folder)
    assert set(names) <= {*benchmark.train.class_names, *benchmark.test.class_names}


def test_images_right_in_the_splits_have_no_class(folder):
    (folder / "0.bird").rename(folder / "train")
    assert "train" in load(folder, test_classes=["train", "1.bird"])[0].test.class_names, "one may well collect trains"
    (folder / "train").joinpath("session 1").mkdir()
    (folder / "train" / "0.png").rename(folder / "train" / "session 1" / "0.png")
    load(folder)
    (folder / "1.bird").rename(folder / "test")
    assert "its sub-folders test, train are splits" in refusal(folder)


def test_a_folder_around_the_folder_is_named(folder, tmp_path):
    whole = tmp_path / "archive" / "birds"
    shutil.copytree(folder, whole)
    assert f"with 6 sub-folders; give {whole}" in refusal(tmp_path / "archive")


def test_photographs_of_unread_kinds_are_named_where_nothing_else_is(folder):
    for path in folder.rglob("*.png"):
        path.rename(path.with_suffix(".HEIC"))
    assert "no image is in it; photographs of kinds that are not read (convert them to JPEG or PNG): .heic (24)" in refusal(folder)


@pytest.mark.parametrize("source", [None, True, "", 1.5, [], b"birds", "a\0b", "~\0", "no/such\nplace", "x" * 5000, 31337])
def test_odd_places_are_one_line(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "give a folder of class sub-folders, or a CSV" in refusal(source)


def test_names_that_are_numbers(folder, tmp_path, monkeypatch):
    for number in range(6):
        (folder / f"{number}.bird").rename(folder / str(number))
    folder.rename(tmp_path / "2024")
    monkeypatch.chdir(tmp_path)
    assert load(2024, test_classes=[0, 1])[0].test.class_names == ["0", "1"] and load(2024)[0].name == "2024"
    write_csv(tmp_path / "2025", rows_of(tmp_path / "2024"))
    assert load(2025)[0].name == "2025"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(images_per_class=-1), "images_per_class is -1"), (dict(images_per_class=1.5), "images_per_class is 1.5"),
        (dict(test_fraction="0.5"), "test_fraction is '0.5'"), (dict(seed=None), "seed None"), (dict(seed=0.5), "seed 0.5"),
        (dict(test_classes=7), "must be a list"),
    ],
)  # fmt: skip
def test_options_of_another_type(folder, options, message):
    assert message in refusal(folder, **options)


def test_an_archive_an_image_or_a_spreadsheet_is_no_table(folder, tmp_path):
    with zipfile.ZipFile(tmp_path / "birds.zip", "w") as archive:
        archive.write(folder / "0.bird" / "0.png", "0.png")
    for mode, name in (("w", "birds.tar"), ("w:gz", "birds.tgz")):
        with tarfile.open(tmp_path / name, mode) as archive:
            archive.add(folder, "birds")
    (tmp_path / "birds.parquet").write_bytes(b"PAR1" + bytes(20) + b"PAR1")
    shutil.copy(tmp_path / "birds.zip", tmp_path / "birds.csv")  # whatever its name
    shutil.copy(tmp_path / "birds.zip", tmp_path / "birds.xlsx")
    kinds = {"zip": "zip archive", "csv": "zip archive", "xlsx": "spreadsheet", "tar": "tar archive", "tgz": "gzip", "parquet": "Parquet"}
    for suffix, kind in kinds.items():
        said = refusal(tmp_path / f"birds.{suffix}")
        assert "is not a CSV table but" in said and kind in said and "unpack" in said
    assert "is one image, not a table of images" in refusal(folder / "0.bird" / "0.png")
    (tmp_path / "list.csv").mkdir()
    assert "no image is in it" in refusal(tmp_path / "list.csv")
    shutil.copytree(folder, tmp_path / "photos.csv")
    assert load(tmp_path / "photos.csv")[0].name == "photos.csv", "a folder may be called so"


# ------------------------------------------------------------------------------------------------------ tables


def halves(folder):
    return [(path, label, "test" if label < "2" else "train") for path, label, *_ in rows_of(folder)]


@pytest.mark.parametrize(
    "head",
    [
        "path,label,Split", "Path,Label,SPLIT", " path , label , split ", '"path","label","split"', "path,label,\uff53plit",
        "path,label,split\u00a0", "\ufeffpath,label,spl\u00adit", "PATH,LABEL,split,",
    ],
)  # fmt: skip
def test_the_split_counts_however_its_column_is_written(head, folder, tmp_path):
    path = write_csv(tmp_path / "b.csv", halves(folder), head)
    assert load(path)[0].test.class_names == ["0.bird", "1.bird"]
    path.write_text(path.read_text("utf-8").replace(",test", ", TEST ").replace(",train", ",Train"), "utf-8-sig")
    assert load(path)[0].test.class_names == ["0.bird", "1.bird"]
    path.write_text(path.read_text("utf-8-sig"), "utf-16")  # as "Unicode text" of spreadsheets
    assert load(path)[0].test.class_names == ["0.bird", "1.bird"]


@pytest.mark.parametrize(
    ("name", "train", "test"),
    [
        ("set", "training", "testing"), ("Subset", "Train", "Validation"), ("phase", "train", "Eval"), ("usage", "labeled", "unlabeled"),
        ("is_test", "0", "1"), ("is_training_img", "1", "0"), ("Test", "False", "True"), ("train", "yes", "no"), ("isTrain", "1.0", "0.0"),
        ("", "train", "test"), ("part", "query", "gallery"),
    ],
)  # fmt: skip
def test_a_split_in_other_words_is_refused(name, train, test, folder, tmp_path):
    rows = [(path, label, {"train": train, "test": test}[half]) for path, label, half in halves(folder)]
    said = refusal(write_csv(tmp_path / "b.csv", rows, f"path,label,{name}"))
    assert f"column '{name.lower() or 'no. 3'}' holds" in said and "is not called split" in said and "train and test" in said


@pytest.mark.parametrize(
    ("name", "one", "other"), [("male", "0", "1"), ("age", "juvenile", "adult"), ("train", "1", "2"), ("is_test", "0", "0")]
)
def test_other_columns_of_two_values_are_only_named(name, one, other, folder, tmp_path):
    rows = [(path, label, one if half == "train" else other) for path, label, half in halves(folder)]
    assert row(load(write_csv(tmp_path / "b.csv", rows, f"path,label,{name}"))[1], "unused column")["example"] == name


@pytest.mark.parametrize("name", ["set", "subset", "partition", "splits", "Train/Test"])
def test_a_split_under_another_name_is_refused(name, folder, tmp_path):
    said = refusal(write_csv(tmp_path / "b.csv", halves(folder), f"path,label,{name}"))
    assert f"column '{name.lower()}' holds train and test but is not called split" in said


def test_columns_that_are_not_read_are_named(folder, tmp_path):
    rows = [(label, "2024", path, "", "index") for path, label, *_ in rows_of(folder)]
    benchmark, table = load(write_csv(tmp_path / "b.csv", rows, "label,Year,path,no\x1btes,"))
    assert len(benchmark.train) == 12 and row(table, "unused column")["example"] == "year, no\\x1btes, no. 5"
    assert row(table, "unused column")["severity"] == "note"


@pytest.mark.parametrize(
    "head", ["path,label,Path", "path,label,split,SPLIT", "path,label, label", "path,label,year,Year", "path,label,\uff50ath"]
)
def test_two_columns_of_one_name_are_refused(head, folder, tmp_path):
    rows = [(path, label, "train", "train")[: head.count(",") + 1] for path, label, *_ in rows_of(folder)]
    assert "has 2 columns called" in refusal(write_csv(tmp_path / "b.csv", rows, head))


def test_paths_of_windows_and_of_elsewhere(folder, tmp_path):
    rows = [(path.replace("/", "\\"), label) for path, label, *_ in rows_of(folder)]
    assert set(load(write_csv(tmp_path / "b.csv", rows))[1]["severity"]) == {"ok"}
    (tmp_path / "lists").mkdir()
    absolute = [(str(tmp_path / path), label) for path, label, *_ in rows_of(folder)]
    upwards = [(f"../{path}", label) for path, label, *_ in rows_of(folder)]
    for rows in (absolute, upwards):
        benchmark, table = load(write_csv(tmp_path / "lists" / "b.csv", rows))
        assert len(benchmark.train) == 12 and row(table, "outside")["count"] == 24 and row(table, "outside")["severity"] == "note"
    (folder / "0.bird" / "link.png").symlink_to(shutil.copy(folder / "0.bird" / "0.png", tmp_path / "secret.png"))
    assert row(load(folder)[1], "outside")["example"] == "0.bird/link.png"


@pytest.mark.parametrize(
    "path", ["/dev/zero", "loop.png", "..", "../" * 400, "a\0b", "~root\0", "\\", "pipe.png", "https://x.org/a.png", "~", "a" * 300]
)
def test_paths_that_lead_to_no_file(path, folder, tmp_path):
    (tmp_path / "loop.png").symlink_to("loop.png")
    os.mkfifo(tmp_path / "pipe.png")
    said = refusal(write_csv(tmp_path / "b.csv", [(path, "x")]))
    assert "line 2: path '" in said and "is no file" in said and len(said) < 1000


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
