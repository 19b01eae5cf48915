"""The paper's four datasets in their published layouts, and the unpacking of their archives.

Small folders of tiny images stand in for the datasets, with the expected counts shrunk to match. Checks on the
published annotation files and on real photographs run where `../shared/data` holds them, and are skipped elsewhere.
"""

import hashlib
import io
import os
import shutil
import tarfile
import zipfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from layouts import CLASSES, COUNTS, LAYOUTS, annotations, build, write
from PIL import Image
from scipy.io import loadmat

from saga_lib.common.errors import SagaError
from saga_lib.common.paths import REPOSITORY
from saga_study import prepare
from saga_study.datasets.loading import DATASETS, REAL, load_benchmark
from saga_study.datasets.real import BANNER_ROWS, OFFICIAL, load_real
from saga_study.prepare import SOURCES, extract_safely, install, main

PUBLISHED = REPOSITORY.parent / "shared" / "data" / "official"
PHOTOGRAPHS = REPOSITORY.parent / "shared" / "data" / "real" / "cub200_2011_mini"

@pytest.fixture(autouse=True)
def data(tmp_path, monkeypatch):
    """The folder of datasets, empty."""
    folder = tmp_path / "data"
    monkeypatch.setenv("SAGA_DATA", str(folder))
    return folder


@pytest.fixture
def small(monkeypatch):
    """Six classes of two or three images are a whole dataset."""
    for name, dataset in OFFICIAL.items():
        counts = {"classes": (3, 3), "images": (7, 7), "per_class": (2, 3), "checksums": ()}
        monkeypatch.setitem(OFFICIAL, name, replace(dataset, **counts))


def one_line(error):
    assert "\n" not in str(error.value)
    return str(error.value)


# ----------------------------------------------------------------------------------------------------- loading


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_split_by_class(layout, data, small, tmp_path):
    name, folder = build(layout, data)
    benchmark = load_benchmark(name)
    train, test = benchmark.train, benchmark.test
    assert (benchmark.name, benchmark.vocabulary) == (name, OFFICIAL[name].vocabulary)
    assert train.class_names + test.class_names == CLASSES[name] and train.class_names == CLASSES[name][:3]
    assert train.labels.dtype == np.int64
    assert np.bincount(train.labels).tolist() + np.bincount(test.labels).tolist() == COUNTS
    for split in (train, test):
        assert (np.diff(split.labels) >= 0).all() and not any(path.name.startswith(".") for path in split.paths)
        for label in range(3):
            paths = [path for path, other in zip(split.paths, split.labels, strict=True) if other == label]
            assert paths == sorted(paths)
    images = train.images() + test.images()
    assert {image.mode for image in images} == {"RGB"} and {image.size for image in images} == {(12, 40)}
    assert len({image.tobytes() for image in images}) == 14, "each image once"

    assert load_benchmark(name, data).checksum == load_benchmark(name, folder).checksum == benchmark.checksum
    shutil.copytree(folder, tmp_path / "elsewhere")
    elsewhere = load_benchmark(name, tmp_path / "elsewhere")
    assert elsewhere.checksum == benchmark.checksum, "the checksum does not depend on the root"
    assert [p.relative_to(tmp_path / "elsewhere") for p in elsewhere.test.paths] == [p.relative_to(folder) for p in test.paths]
    fewer = load_benchmark(name, images_per_class=2)
    assert np.bincount(fewer.test.labels).tolist() == [2, 2, 2] and fewer.checksum != benchmark.checksum
    assert set(fewer.train.paths) < set(train.paths) and fewer.train.paths[0] == train.paths[0]


def test_labels_belong_to_their_images(data, small):
    """The generator paints image i of the annotation with seed i; classes take 2, 3, 2, 2, 2, 3 of them in turn."""
    name, _ = build("cub200", data)
    for layout in ("cars196 (a)", "cars196 (b)", "aircraft"):
        build(layout, data / layout)
    owners = [c for c, count in enumerate(COUNTS) for _ in range(count)]
    reference = {}
    split = load_benchmark(name).train
    for image, label in zip(split.images(), split.labels, strict=True):
        reference[image.tobytes()] = int(label)
    assert len(reference) == 7 and sorted(reference.values()) == owners[:7]
    for layout in ("cars196 (a)", "cars196 (b)", "aircraft"):
        split = load_benchmark(LAYOUTS[layout][0], data / layout).train
        assert {i.tobytes(): int(c) for i, c in zip(split.images(), split.labels, strict=True)} == reference


def test_cars_prefers_the_layout_that_is_whole(data, small):
    for layout in ("cars196 (a)", "cars196 (b)"):
        _, folder = build(layout, data)
        shutil.move(folder, data / layout)
    both = data / "both"
    shutil.copytree(data / "cars196 (b)", both)
    shutil.copy(data / "cars196 (a)" / "cars_annos.mat", both)
    assert load_benchmark("cars196", both).train.paths[0].parent.name in ("cars_train", "cars_test")
    shutil.copytree(data / "cars196 (a)" / "car_ims", both / "car_ims")
    assert load_benchmark("cars196", both).train.paths[0].parent.name == "car_ims"


def test_the_banner_stays_unless_asked_for(data, small, monkeypatch):
    build("aircraft", data)
    monkeypatch.setitem(OFFICIAL, "aircraft", replace(OFFICIAL["aircraft"], classes=(4, 2), images=(9, 5)))
    whole, cut = load_benchmark("aircraft"), load_benchmark("aircraft", crop_banner=True)
    assert whole.checksum != cut.checksum
    full, cropped = np.asarray(whole.test.open(0)), np.asarray(cut.test.open(0))
    assert full.shape == (40, 12, 3) and np.array_equal(full[:-BANNER_ROWS], cropped)
    assert cut.for_tuning().train.open(0).size == (12, 20)
    with pytest.raises(SagaError, match="crop_banner is for dataset aircraft only"):
        load_benchmark("cub200", data, crop_banner=True)


# ------------------------------------------------------------------------------------------ partial and altered


@pytest.mark.parametrize("layout", LAYOUTS)
def test_whatever_is_missing_is_named_in_one_line(layout, data, small):
    name, folder = build(layout, data)
    title = OFFICIAL[name].title
    needed = {
        "cub200": ["images.txt", "image_class_labels.txt", "classes.txt", "images", f"images/{CLASSES[name][4]}"],
        "cars196 (a)": ["cars_annos.mat", "car_ims", "car_ims/000007.jpg"],
        "cars196 (b)": [
            "devkit/cars_meta.mat", "devkit/cars_train_annos.mat", "cars_test_annos_withlabels.mat", "cars_train",
            "cars_test/00003.jpg",
        ],
        "aircraft": [
            "data/variants.txt", "data/images_variant_trainval.txt", "data/images_variant_test.txt", "data/images",
        ],
    }.get(layout, [])  # fmt: skip
    for path in needed:
        hidden = folder / path
        hidden.rename(folder / "hidden")
        with pytest.raises(SagaError, match="is missing") as error:
            load_benchmark(name)
        said = one_line(error)
        assert said.startswith(f"{title}: ") and f"python -m saga_study.prepare {name}" in said
        if not (layout == "cars196 (a)" and path == "cars_annos.mat"):  # then nothing tells that this was its folder
            assert str(hidden) in said
        (folder / "hidden").rename(hidden)
    load_benchmark(name)
    shutil.rmtree(folder)
    with pytest.raises(SagaError, match=f"{title}: not found in .*, .*{OFFICIAL[name].folders[0]}.* is missing") as error:
        load_benchmark(name)
    one_line(error)


def test_files_are_not_asked_for_when_told_so(data, small):
    name, folder = build("cub200", data)
    whole = load_real(name)
    shutil.rmtree(folder / "images")
    assert load_real(name, check_files=False).checksum == whole.checksum


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"classes": (3, 4)}, "has 6 classes, 7 are expected"),
        ({"per_class": (2, 2)}, r"class '002.Laysan_Albatross' in .* has 3 images, 2 are expected"),
        ({"per_class": (3, 5)}, r"class '001.Black_footed_Albatross' in .* has 2 images, 3 to 5 are expected"),
        ({"images": (1007, 7)}, "the train classes in .* have 7 images, 1,007 are expected"),
        ({"images": (7, 8)}, "the test classes in .* have 7 images, 8 are expected"),
        ({"checksums": ("0" * 12,)}, r"the annotations in .* are not the published ones \(checksum [0-9a-f]{12}\)"),
    ],
)
def test_wrong_counts_are_named_in_one_line(change, line, data, small, monkeypatch):
    name, _ = build("cub200", data)
    monkeypatch.setitem(OFFICIAL, name, replace(OFFICIAL[name], **change))
    with pytest.raises(SagaError, match=line) as error:
        load_benchmark(name)
    one_line(error)


def test_a_species_with_an_image_too_few_is_named(data, small, monkeypatch):
    name, folder = build("inat_aves", data)
    victim = folder / "train_mini" / CLASSES[name][3]
    next(victim.glob("[0-9a-f]*.jpg")).unlink()
    with pytest.raises(SagaError, match=f"class '{victim.name}' in .* has 1 images, 2 to 3 are expected"):
        load_benchmark(name)
    shutil.rmtree(victim)
    with pytest.raises(SagaError, match="has 5 classes, 6 are expected"):
        load_benchmark(name)


@pytest.mark.parametrize(
    ("file", "content", "line"),
    [
        ("images.txt", "1 ../x.jpg\n", "class '002.Laysan_Albatross' in .* has 0 images"),
        ("images.txt", "99 a/b.jpg\n", r"images.txt names '99', which its companion files do not know"),
        ("images.txt", "1\n", r"images.txt, line 1: '1' has no second part"),
        ("image_class_labels.txt", "1 77\n", r"do not know"),
        ("classes.txt", "one 001.Albatross\n", "classes.txt has an id that is no number"),
        ("classes.txt", b"1 \xff\xfe\n", "classes.txt is damaged"),
    ],
)
def test_damaged_text_files_are_named(file, content, line, data, small):
    name, folder = build("cub200", data)
    if file == "images.txt" and content.startswith("1 .."):
        content += "".join((folder / file).read_text().splitlines(keepends=True)[1:2])
    (folder / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(SagaError, match=line) as error:
        load_benchmark(name)
    one_line(error)


def test_annotations_cannot_lead_out_of_the_folder(data, small):
    name, folder = build("cub200", data)
    text = (folder / "images.txt").read_text()
    first = text.splitlines()[0].split(" ")[1]
    for outside in (f"../../{first}", f"/etc/{first}"):
        (folder / "images.txt").write_text(text.replace(first, outside))
        with pytest.raises(SagaError, match="which is outside the folder"):
            load_benchmark(name)


def test_damaged_and_unlabelled_mat_files_are_named(data, small):
    name, folder = build("cars196 (b)", data)
    labelled = folder / "cars_test_annos_withlabels.mat"
    content = labelled.read_bytes()
    rows = [{"bbox_x1": 1, "fname": f"{k + 1:05d}.jpg"} for k in range(7)]
    annotations(labelled, rows)
    with pytest.raises(SagaError, match="cars_test_annos_withlabels.mat has no field 'class'; get the file that has"):
        load_benchmark(name)
    annotations(labelled, [row | {"class": "none"} for row in rows])
    unlabelled = labelled.read_bytes()
    for broken in (b"", content[:100], content[:-60], b"x" * 300, unlabelled):
        labelled.write_bytes(broken)
        with pytest.raises(SagaError, match="cars_test_annos_withlabels.mat (is damaged|has no field)") as error:
            load_benchmark(name)
        one_line(error)


def test_unreadable_folders_are_named(data, small, monkeypatch):
    name, folder = build("inat_aves", data)

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "listdir", refuse)
    with pytest.raises(SagaError, match=r"cannot read .*train_mini: Permission denied; correct its permissions"):
        load_benchmark(name)


# ---------------------------------------------------------------------------- the published annotations, in full

needs_published = pytest.mark.skipif(not PUBLISHED.is_dir(), reason="../shared/data/official is not there")


@needs_published
@pytest.mark.parametrize(
    ("name", "folder", "images", "classes", "boundary"),
    [
        ("cub200", ".", (5864, 5924), (100, 100), ("100.Brown_Pelican", "101.White_Pelican")),
        ("cars196", "cars196/reconstructed", (8054, 8131), (98, 98), ("Eagle Talon Hatchback 1998", "FIAT 500 Abarth 2012")),
        ("cars196", "cars196", (8054, 8131), (98, 98), ("Eagle Talon Hatchback 1998", "FIAT 500 Abarth 2012")),
        ("aircraft", ".", (5000, 5000), (50, 50), ("Cessna 525", "Cessna 560")),
    ],
)
def test_published_annotations_give_the_published_counts(name, folder, images, classes, boundary):
    benchmark = load_real(name, PUBLISHED / folder, check_files=False)
    train, test = benchmark.train, benchmark.test
    assert (len(train), len(test)) == images and (len(train.class_names), len(test.class_names)) == classes
    assert (train.class_names[-1], test.class_names[0]) == boundary
    assert benchmark.checksum in OFFICIAL[name].checksums
    assert len({*train.paths, *test.paths}) == sum(images)
    with pytest.raises(SagaError, match=r"\.jpg is missing"):
        load_real(name, PUBLISHED / folder)


@needs_published
def test_published_cars_layouts_agree():
    retrieval = load_real("cars196", PUBLISHED / "cars196" / "reconstructed", check_files=False)
    devkit = load_real("cars196", PUBLISHED / "cars196", check_files=False)
    lines = (PUBLISHED / "cars196" / "cars_annos.softtriple.txt").read_text().split()
    theirs = {line.split(",")[0].rpartition("/")[2]: int(line.split(",")[1]) for line in lines}
    for which, shift in (("train", 1), ("test", 99)):
        a, b = getattr(retrieval, which), getattr(devkit, which)
        assert a.class_names == b.class_names and Counter(a.labels.tolist()) == Counter(b.labels.tolist())
        assert all(theirs[path.name] == label + shift for path, label in zip(a.paths, a.labels, strict=True))
    assert "Ram C/V Cargo Van Minivan 2012" in retrieval.test.class_names
    published = loadmat(PUBLISHED / "cars196" / "devkit" / "cars_train_annos.mat")["annotations"]
    assert published["class"][0, 0].dtype == np.uint8 and published["class"][0, 0].shape == (1, 1)


@needs_published
def test_published_species_give_the_published_counts(tmp_path, monkeypatch):
    names = (PUBLISHED / "inat2021" / "train_mini_aves_dirs.txt").read_text().split()
    listing = {str(tmp_path / "train_mini"): [*reversed(names), "00000_Animalia_Annelida_Clitellata_a_b_c_d", ".DS_Store"]}
    listing |= {str(tmp_path / "train_mini" / name): [f"{i:02d}.jpg" for i in range(50)] for name in names}
    (tmp_path / "train_mini").mkdir()
    monkeypatch.setattr(os, "listdir", lambda path: listing[str(path)])  # 74,300 files would take a while to make
    benchmark = load_real("inat_aves", tmp_path, check_files=False)
    train, test = benchmark.train, benchmark.test
    assert (len(train), len(test), len(train.class_names), len(test.class_names)) == (37150, 37150, 743, 743)
    assert train.class_names[-1] == "03853_Animalia_Chordata_Aves_Passeriformes_Hirundinidae_Petrochelidon_pyrrhonota"
    assert test.class_names[0] == "03854_Animalia_Chordata_Aves_Passeriformes_Hirundinidae_Progne_chalybea"
    assert not {n.split("_")[6] for n in train.class_names} & {n.split("_")[6] for n in test.class_names}


@pytest.mark.skipif(not PHOTOGRAPHS.is_dir(), reason="../shared/data/real/cub200_2011_mini is not there")
def test_real_photographs(tmp_path, monkeypatch):
    for file in PHOTOGRAPHS.glob("*.txt"):
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "images").symlink_to(PHOTOGRAPHS)
    with pytest.raises(SagaError, match="has 30 classes, 200 are expected"):
        load_benchmark("cub200", tmp_path)
    counts = {"classes": (15, 15), "images": (240, 240), "per_class": (16, 16), "checksums": ()}
    monkeypatch.setitem(OFFICIAL, "cub200", replace(OFFICIAL["cub200"], **counts))
    benchmark = load_benchmark("cub200", tmp_path)
    modes = Counter()
    for split in (benchmark.train, benchmark.test):
        assert len(split) == 240 and np.bincount(split.labels).tolist() == [16] * 15
        for index, path in enumerate(split.paths):
            assert path.parent.name == split.class_names[split.labels[index]]
            with Image.open(path) as image:
                modes[image.mode] += 1
            opened = split.open(index) if index % 16 == 0 or modes["L"] else None
            assert opened is None or (opened.mode == "RGB" and min(opened.size) >= 140)
    assert modes == {"RGB": 478, "L": 2}


# ------------------------------------------------------------------------------------------------- the archives


def pack(path, members):
    """Write a tar archive of (name, content) pairs; content may be a TarInfo to be used as it is."""
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members:
            if isinstance(content, tarfile.TarInfo):
                tar.addfile(content)
            else:
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return path


def publish(monkeypatch, name, *files, **changes):
    """Make these files the published archives of a dataset."""
    known = {archive.file: archive for way in SOURCES[name].ways for archive in way}
    way = [
        replace(known[f.name], md5=hashlib.md5(f.read_bytes()).hexdigest(), gigabytes=0.0, unpacked_gigabytes=0.0, **changes) for f in files
    ]
    monkeypatch.setitem(SOURCES, name, replace(SOURCES[name], ways=(tuple(way),)))


def pack_folder(path, folder, *entries):
    with tarfile.open(path, "w:gz") as tar:
        for entry in entries:
            tar.add(folder / entry, arcname=entry)
    return path


def is_empty(folder):
    return not folder.exists() or not list(folder.rglob("*"))


@pytest.mark.parametrize("layout", ["cub200", "cars196 (a)", "cars196 (b)", "aircraft", "inat_aves"])
def test_archives_become_a_loadable_dataset(layout, data, small, tmp_path, monkeypatch, capsys):
    name, folder = build(layout, tmp_path / "published")
    archives = {
        "cub200": {"CUB_200_2011.tgz": (folder.parent, "CUB_200_2011")},
        "cars196 (a)": {"car_ims.tgz": (folder, "car_ims"), "cars_annos.mat": None},
        "cars196 (b)": {
            "cars_train.tgz": (folder, "cars_train"),
            "cars_test.tgz": (folder, "cars_test"),
            "car_devkit.tgz": (folder, "devkit"),
            "cars_test_annos_withlabels.mat": None,
        },
        "aircraft": {"fgvc-aircraft-2013b.tar.gz": (folder.parent, "fgvc-aircraft-2013b")},
        "inat_aves": {"train_mini.tar.gz": (folder, "train_mini")},
    }[layout]
    files = []
    for file, content in archives.items():
        files.append(pack_folder(tmp_path / file, *content) if content else shutil.copy(folder / file, tmp_path / file))
    files = [Path(file) for file in files]
    publish(monkeypatch, name, *files)
    command = [name, *(f"--archive={file}" for file in files)]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "is whole: train 7 images of 3 classes, test 7 images of 3 classes; checksum" in said
    assert load_benchmark(name).checksum == load_benchmark(name, folder).checksum
    assert not [path for path in data.rglob("*") if path.name.startswith(".")], "nothing of the unpacking stays"
    if layout == "inat_aves":
        assert len(list((data / "inat2021" / "train_mini").iterdir())) == 6, "birds alone are unpacked"

    stamps = {path: path.stat().st_mtime_ns for path in data.rglob("*")}
    assert main(command) == 0 and "is there already" in capsys.readouterr().out
    assert stamps == {path: path.stat().st_mtime_ns for path in data.rglob("*")}
    for path in sorted(data.rglob("*.jpg"))[:1]:
        path.unlink()
    assert main([name, "--verify"]) == 2
    said = capsys.readouterr()
    assert said.err.startswith(f"error: {OFFICIAL[name].title}: ") and said.err.count("\n") == 1 and not said.out


def link(name, target, kind=tarfile.SYMTYPE):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("../outside.txt", b"x"),
        ("CUB_200_2011/../../outside.txt", b"x"),
        ("/tmp/saga_outside.txt", b"x"),
        ("C:/outside.txt", b"x"),
        ("CUB_200_2011\\..\\..\\outside.txt", b"x"),
        ("link out", link("CUB_200_2011/out", "../../..")),
        ("absolute link", link("CUB_200_2011/out", "/etc")),
        ("inner link", link("CUB_200_2011/out", "images.txt")),
        ("hard link", link("CUB_200_2011/passwd", "/etc/passwd", tarfile.LNKTYPE)),
        ("device", link("CUB_200_2011/null", "", tarfile.CHRTYPE)),
        ("pipe", link("CUB_200_2011/pipe", "", tarfile.FIFOTYPE)),
    ],
)
def test_malicious_archives_are_refused(name, content, data, tmp_path, monkeypatch):
    members = [("CUB_200_2011/images.txt", b"1 a/b.jpg\n"), (name, content), ("CUB_200_2011/later.txt", b"x")]
    file = pack(tmp_path / "CUB_200_2011.tgz", members)
    publish(monkeypatch, "cub200", file)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SagaError, match="is refused: its member") as error:
        install("cub200", file, data)
    one_line(error)
    assert is_empty(data) and [p for p in sorted(tmp_path.rglob("*")) if p != data] == before
    assert not Path("/tmp/saga_outside.txt").exists()


def test_a_link_cannot_be_written_through(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    members = [("link", link("a/door", str(outside))), ("a/door/x.txt", b"x")]
    with pytest.raises(SagaError, match="its member 'a/door' is a link"):
        extract_safely(pack(tmp_path / "a.tar.gz", members), tmp_path / "in")
    assert is_empty(outside)


def test_what_is_unpacked(tmp_path):
    members = [("./a/1.txt", b"one"), ("a/._1.txt", b""), ("b/2.txt", b"two"), (".DS_Store", b""), ("a/c/3.txt", b"3")]
    file = pack(tmp_path / "x.tar.gz", members)
    assert extract_safely(file, tmp_path / "all") == 3
    assert (tmp_path / "all" / "a" / "c" / "3.txt").read_bytes() == b"3" and (tmp_path / "all" / "b").is_dir()
    assert extract_safely(file, tmp_path / "some", only="a/") == 2
    assert sorted(p.name for p in (tmp_path / "some").rglob("*.txt")) == ["1.txt", "3.txt"]


def test_damaged_archives_leave_nothing(data, tmp_path, monkeypatch):
    noise = np.random.default_rng(0).bytes(100_000)
    file = pack(tmp_path / "CUB_200_2011.tgz", [("CUB_200_2011/a.bin", noise), ("CUB_200_2011/b.bin", noise)])
    content = file.read_bytes()
    with pytest.raises(SagaError, match=r"has md5 [0-9a-f]{32}, the published one 97eceeb1.*fetch it again"):
        install("cub200", file, data)
    for broken in (b"", b"no archive", content[:20], content[: len(content) // 2], content[:-30]):
        file.write_bytes(broken)
        publish(monkeypatch, "cub200", file)
        with pytest.raises(SagaError, match=r"is damaged .*fetch it again") as error:
            install("cub200", file, data)
        one_line(error)
        assert is_empty(data)
    pack(file, [("other/a.txt", b"x")])
    publish(monkeypatch, "cub200", file)
    with pytest.raises(SagaError, match="holds no folder CUB_200_2011"):
        install("cub200", file, data)
    assert is_empty(data)


def test_another_kind_of_archive_is_named(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.tgz", "w") as archive:
        archive.writestr("../outside.txt", "x")
    for content, kind in ((None, "a zip archive"), (b"", "empty"), (b"<html>404</html>", "a web page")):
        if content is not None:
            (tmp_path / "a.tgz").write_bytes(content)
        with pytest.raises(SagaError, match=f"a.tgz is damaged \\(it is {kind}.*\\); fetch it again") as error:
            extract_safely(tmp_path / "a.tgz", tmp_path / "out")
        one_line(error)
        assert not (tmp_path / "out").exists() and not (tmp_path / "outside.txt").exists()


def test_names_in_an_archive_cannot_write_to_the_terminal(tmp_path):
    for name in ("../\x1b[2Ja\nb.txt", "C:/\x1b]0;x\x07"):
        with pytest.raises(SagaError, match="lies outside the archive's folder") as error:
            extract_safely(pack(tmp_path / "a.tgz", [(name, b"x")]), tmp_path / "out")
        assert str(error.value).isprintable() and not (tmp_path / "out").exists()


# ------------------------------------------------------------------------------------------- whole and damaged images


def cut(content, keep):
    return content[: int(len(content) * keep)]


@pytest.fixture
def birds(data, small):
    """CUB in small, of photographs of 90 × 70 noisy pixels: JPEGs, and one PNG that is called .jpg, as published sets have."""
    _, folder = build("cub200", data)
    rng, paths = np.random.default_rng(0), sorted(folder.rglob("[!.]*.jpg"))
    for number, path in enumerate(paths):
        picture = Image.fromarray(rng.integers(0, 256, (70, 90, 3), dtype=np.uint8))
        picture.save(path, "PNG" if number == 1 else "JPEG", **({"progressive": True} if number == 2 else {}))
    return paths


def test_whole_images_are_not_decoded_unless_asked_for(birds, monkeypatch, capsys):
    birds[3].write_bytes(birds[3].read_bytes() + bytes(40))  # some cameras pad
    seen, real = [], prepare.upright_rgb
    monkeypatch.setattr(prepare, "upright_rgb", lambda path: seen.append(path) or real(path))
    assert main(["cub200", "--verify"]) == 0 and seen == []
    assert main(["cub200", "--verify", "--decode"]) == 0 and sorted(seen) == birds
    assert "is whole: train 7 images of 3 classes, test 7 images of 3 classes, every image decoded; checksum" in capsys.readouterr().out


def test_a_whole_image_with_more_behind_it_is_whole(birds, capsys):
    birds[0].write_bytes(birds[0].read_bytes() + b"trailer of an editor")
    assert main(["cub200", "--verify"]) == 0 and "is whole" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda content: b"", "it is empty"),
        (lambda content: bytes(len(content)), "it is full of zeros"),
        (lambda content: cut(content, 0.01), ""),
        (lambda content: cut(content, 0.5), ""),
        (lambda content: content[:-40], ""),
        (lambda content: cut(content, 0.5) + bytes(len(content) // 2), ""),
        (lambda content: b"<html><body>404 Not Found", "it is a web page"),
        (lambda content: b"\xff\xd8\xff\xd9", ""),
        (lambda content: b"\x89PNG\r\n\x1a\n" + bytes(4) + b"IEND\xaeB`\x82", ""),
        (lambda content: content[:150] + content[-12:], ""),
        (lambda content: content[:20] + bytes(len(content)) + content[-12:], ""),
        (lambda content: content[:-12], ""),
        (lambda content: b"version https://git-lfs.github.com/spec/v1", "Git LFS"),
    ],
)
@pytest.mark.parametrize("victim", [0, 1, 2])
def test_empty_and_cut_images_are_found(victim, damage, reason, birds, capsys):
    birds[victim].write_bytes(damage(birds[victim].read_bytes()))
    birds[-1].write_bytes(b"")
    assert main(["cub200", "--verify"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: CUB-200-2011: image {birds[victim]} cannot be read (") and said.count("\n") == 1
    assert reason in said and "(and 1 more images are damaged); move the folder away and extract the archive again" in said


def test_damage_in_the_middle_takes_decoding(birds, capsys):
    content = bytearray(birds[1].read_bytes())  # the PNG, whose parts have checksums
    middle = len(content) // 2
    content[middle : middle + 30] = bytes(30)
    birds[1].write_bytes(content)
    assert main(["cub200", "--verify"]) == 0, "it ends well"
    assert main(["cub200", "--decode"]) == 2 and f"image {birds[1]} cannot be read" in capsys.readouterr().err


def test_an_interrupted_unpacking_is_simply_run_again(data, small, tmp_path, monkeypatch, capsys):
    name, folder = build("cub200", tmp_path / "published")
    file = pack_folder(tmp_path / "CUB_200_2011.tgz", folder.parent, "CUB_200_2011")
    publish(monkeypatch, name, file)

    def interrupt(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(prepare.tarfile.TarFile, "extract", interrupt)
        assert main([name, "--archive", str(file)]) == 130
    assert is_empty(data)
    leftover = data / ".unpacking-CUB_200_2011.tgz" / "CUB_200_2011" / "half.jpg"  # as of a killed process
    write(leftover, "x")
    assert main([name, "--archive", str(file)]) == 0
    assert not (data / "CUB_200_2011" / "half.jpg").exists() and not leftover.exists()
    assert "is unpacked" in capsys.readouterr().out


def test_mistakes_get_one_line(data, tmp_path, monkeypatch, capsys):
    file = pack(tmp_path / "CUB_200_2011.tgz", [("CUB_200_2011/a.txt", b"x")])
    publish(monkeypatch, "cub200", file)
    for arguments, line in [
        (["cub"], "unknown dataset 'cub': did you mean 'cub200'?"),
        ([], "the following arguments are required: dataset"),
        (["cub200", "--archive", str(tmp_path / "CUB_200_2010.tgz")], "did you mean 'CUB_200_2011.tgz'"),
        (["aircraft", "--archive", "fgvc-aircraft-2013b.tar.gz"], "archive fgvc-aircraft-2013b.tar.gz does not exist"),
        (["cub200", "--verify"], "CUB-200-2011: not found in"),
        (["cub200", "--fast"], "unrecognized arguments: --fast"),
    ]:
        assert main(arguments) == 2
        said = capsys.readouterr().err
        assert said.startswith("error: ") and line in said and said.count("\n") == 1
    monkeypatch.setattr(prepare.shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10, 10, -1))
    assert main(["cub200", "--archive", str(file)]) == 2
    assert "free some space or choose another --root" in capsys.readouterr().err
    assert is_empty(data)


@pytest.mark.parametrize("name", REAL)
def test_the_way_to_get_a_dataset_is_told(name, data, capsys):
    assert set(REAL) == set(SOURCES) == set(OFFICIAL) < set(DATASETS)
    assert main([name]) == 0
    said = capsys.readouterr().out
    for way in SOURCES[name].ways:
        for archive in way:
            assert f"{archive.file}  " in said and archive.md5 in said and archive.url in said
            assert len(archive.md5) == 32 and archive.into in ("", *OFFICIAL[name].folders)
    assert "GB of disk" in said and "terms: non-commercial" in said and f"prepare {name} --archive" in said
    assert "now: " in said and "is missing" in said and is_empty(data)
