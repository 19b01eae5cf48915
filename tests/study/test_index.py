"""The index on disk: writers that meet keep everything, moved files are found again, and no file is trusted."""

import json
import os
import shutil
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from colours import ColourEncoder, photograph
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from saga_lib.common import files
from saga_lib.common.errors import SagaError
from saga_lib.common.paths import REPOSITORY
from saga_study.deploy import storage
from saga_study.deploy.entries import Entry
from saga_study.deploy.index import Index
from saga_study.processes import only_one_process

faiss = pytest.importorskip("faiss")
EXAMPLES = int(os.environ.get("SAGA_EXAMPLES", "200"))


@pytest.fixture
def photographs(tmp_path):
    return photograph(tmp_path / "photographs", [f"{place}/{number}.png" for place in "ab" for number in range(4)])


def rows(count, seed=0):
    return np.random.default_rng(seed).normal(size=(count, 8)).astype(np.float32)


def names_of(folder):
    return sorted(entry.name for entry in Index.load(folder).entries)


def add_row(index, name, seed):
    [row] = rows(1, seed)
    index.vectors.add(row[None] / np.linalg.norm(row))
    index.entries.append(Entry(name))


# --------------------------------------------------------------------------------------- several writers, crashes


@pytest.mark.parametrize("kind", ["Flat", "IVF2,Flat", "HNSW32"])
def test_two_objects_that_add_keep_both(kind, tmp_path):
    Index.from_embeddings(rows(80), [f"{n}" for n in range(80)], kind).save(tmp_path)
    one, two = Index.load(tmp_path), Index.load(tmp_path)
    add_row(one, "one", 1), add_row(two, "two", 2)
    one.save(tmp_path), two.save(tmp_path)
    add_row(one, "again", 3)
    one.save(tmp_path)
    for index in (one, Index.load(tmp_path)):
        assert [entry.name for entry in index.entries[80:]] == ["one", "two", "again"] and index.vectors.ntotal == 83
        found, cosines = index.search(np.concatenate([rows(1, seed) for seed in (1, 2, 3)]), 1)
        assert found[:, 0].tolist() == [80, 81, 82] and np.allclose(cosines, 1, atol=1e-5)


WRITER = """
import sys
import numpy as np
from saga_study.deploy.index import Entry, Index

folder, who = sys.argv[1:]
for number in range(3):
    index = Index.load(folder)
    index.vectors.add(np.eye(8, dtype=np.float32)[[number]])
    index.entries.append(Entry(who + str(number)))
    index.save(folder)
"""


def test_processes_and_threads_that_add_keep_all(tmp_path):
    Index.from_embeddings(rows(2), ["a", "b"]).save(tmp_path / "index")
    processes = [subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path / "index"), who], cwd=REPOSITORY) for who in "xy"]

    def work():
        for number in range(3):
            index = Index.load(tmp_path / "index")
            add_row(index, f"z{number}", 30 + number)
            index.save(tmp_path / "index")

    threads = [threading.Thread(target=work) for _ in range(2)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert [process.wait() for process in processes] == [0, 0]
    assert set(names_of(tmp_path / "index")) == {"a", "b", *(f"{who}{n}" for who in "xyz" for n in range(3))}
    assert len(list((tmp_path / "index").iterdir())) == 2, "no lock and no temporary file is left"


def test_two_adds_of_one_folder_add_it_once(photographs, tmp_path):
    encoder = ColourEncoder()
    Index.build(photographs / "a", encoder)[0].save(tmp_path / "index")
    one, two = Index.load(tmp_path / "index"), Index.load(tmp_path / "index")
    assert [index.add_images(photographs, encoder).count for index in (one, two)] == [4, 4]
    one.save(tmp_path / "index"), two.save(tmp_path / "index")
    assert len(two) == len(Index.load(tmp_path / "index")) == 8


def test_an_index_that_was_made_anew_meanwhile_is_not_mixed(photographs, tmp_path):
    Index.build(photographs / "a", ColourEncoder())[0].save(tmp_path / "index")
    index = Index.load(tmp_path / "index")
    index.add_images(photographs / "b", ColourEncoder())
    Index.build(photographs / "a", ColourEncoder(2.0))[0].save(tmp_path / "index")
    with pytest.raises(SagaError, match="made anew by another encoder meanwhile"):
        index.save(tmp_path / "index")
    with pytest.raises(SagaError, match="holds an index already"):
        index.save(tmp_path / "index", replace=False)
    assert len(Index.load(tmp_path / "index", ColourEncoder(2.0))) == 4


@pytest.mark.parametrize("broken", [0, 1])
def test_a_crash_while_writing_leaves_the_old_index(broken, tmp_path, monkeypatch):
    Index.from_embeddings(rows(3), list("abc")).save(tmp_path)
    index, replace, calls = Index.load(tmp_path), os.replace, []
    add_row(index, "d", 1)

    def crash(*arguments):
        calls.append(arguments)
        if len(calls) > broken:  # 0: vectors are written, 1: index.json
            raise KeyboardInterrupt
        replace(*arguments)

    monkeypatch.setattr(files.os, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        index.save(tmp_path)
    monkeypatch.undo()
    assert names_of(tmp_path) == ["a", "b", "c"]
    add_row(again := Index.load(tmp_path), "e", 2)
    again.save(tmp_path), index.save(tmp_path)
    assert names_of(tmp_path) == ["a", "b", "c", "d", "e"] and len(list(tmp_path.iterdir())) == 2


def test_a_reader_that_meets_a_writer_reads_the_new_index(tmp_path, monkeypatch):
    Index.from_embeddings(rows(3), list("abc")).save(tmp_path)
    read = storage._read_record

    def read_and_replace(folder):
        record = read(folder)
        monkeypatch.setattr(storage, "_read_record", read)
        Index.from_embeddings(rows(4), list("abcd")).save(tmp_path)
        return record

    monkeypatch.setattr(storage, "_read_record", read_and_replace)
    assert len(Index.load(tmp_path)) == 4


# ------------------------------------------------------------------------------------------------- moved files


def test_a_renamed_folder_leaves_no_dead_entry(photographs, tmp_path):
    encoder = ColourEncoder()
    index, _ = Index.build(photographs, encoder)
    index.save(tmp_path / "index")
    renamed = photographs.rename(tmp_path / "renamed")
    assert len(index.gone()) == 8 and [hit.file for hit in index.query([renamed / "a/0.png"], encoder, 8)[0]] == ["gone"] * 8
    encoder.told = lambda pixels: pytest.fail("nothing has to be embedded again")
    added = index.add_images(renamed, encoder)
    assert added.count == 0 and len(added.moved) == 8 and not added.copies and len(index) == 8 and not index.gone()
    assert added.summary() == "0 images added, 8 found again at a new place"
    index.save(tmp_path / "index")
    assert not Index.load(tmp_path / "index").gone()
    assert len(index.add_images(renamed, encoder).copies) == 8


def test_single_files_that_moved_are_found_and_copies_that_exist_change_nothing(photographs, tmp_path):
    encoder = ColourEncoder()
    index, _ = Index.build(photographs, encoder)
    (photographs / "a/0.png").rename(photographs / "b/moved.png")
    shutil.copy(photographs / "b/moved.png", photographs / "b/twice.png")  # of what moved
    shutil.copy(photographs / "a/1.png", tmp_path / "elsewhere.png")
    shutil.copy(photographs / "a/1.png", photographs / "a/copy.png")  # both exist
    added = index.add_images(photographs, encoder)
    assert added.moved == ["b/moved.png"] and added.copies.count("a/copy.png") == added.copies.count("b/twice.png") == 1
    assert len(index) == 8 and not index.gone() and index.entries[0].name == "b/moved.png" and index.entries[1].name == "a/1.png"
    [[hit]] = index.query([photographs / "b/moved.png"], encoder, 1)
    assert hit.path == photographs / "b/moved.png" and hit.file == "there"


def test_files_that_are_numbered_anew_keep_their_entries(photographs):
    """Each has the name that another had, and a new picture the first name."""
    encoder = ColourEncoder()
    index, _ = Index.build(photographs, encoder)
    for number in (3, 2, 1, 0):
        (photographs / f"a/{number}.png").rename(photographs / f"a/{number + 1}.png")
    photograph(photographs, ["a/0.png"], seed=9)
    added = index.add_images(photographs, encoder)
    assert added.moved == [f"a/{number}.png" for number in (1, 2, 3, 4)] and added.count == 1 and not added.changed
    assert [entry.name for entry in index.entries] == [*added.moved, *(f"b/{n}.png" for n in range(4)), "a/0.png"]
    assert {entry.file() for entry in index.entries} == {"there"}


def test_two_files_that_swap_names_swap_entries(photographs, tmp_path):
    encoder = ColourEncoder()
    Index.build(photographs, encoder)[0].save(tmp_path / "index")
    one, two = Index.load(tmp_path / "index"), Index.load(tmp_path / "index")
    for old, new in (("0", "t"), ("1", "0"), ("t", "1")):
        (photographs / f"a/{old}.png").rename(photographs / f"a/{new}.png")
    for index in (one, two):
        added = index.add_images(photographs, encoder)
        assert len(added.moved) == 2 and added.count == 0 and len(index) == 8
        index.save(tmp_path / "index")
    assert {entry.file() for entry in Index.load(tmp_path / "index").entries} == {"there"}


def test_both_keep_what_they_add_under_one_name(tmp_path):
    Index.from_embeddings(rows(3), list("abc")).save(tmp_path)
    one, two, again = (Index.load(tmp_path) for _ in range(3))
    for index, seed in ((one, 5), (two, 6), (again, 5)):
        add_row(index, "new", seed)
        index.save(tmp_path)
    assert [entry.name for entry in Index.load(tmp_path).entries] == [*"abc", "new", "new"] and len(again) == 5


def test_a_file_with_another_picture_is_marked(photographs):
    encoder = ColourEncoder()
    index, _ = Index.build(photographs, encoder)
    picture = Image.open(photographs / "a/0.png").copy()
    shutil.copy(photographs / "b/3.png", photographs / "a/0.png")
    assert index.query([picture], encoder, 1)[0][0].file == "changed"
    assert index.add_images(photographs, encoder).changed == ["a/0.png"]


def test_both_writers_keep_what_they_found_again(photographs, tmp_path):
    encoder = ColourEncoder()
    Index.build(photographs, encoder)[0].save(tmp_path / "index")
    one, two = Index.load(tmp_path / "index"), Index.load(tmp_path / "index")
    (photographs / "a").rename(photographs / "c")
    one.add_images(photographs / "c", encoder)
    (photographs / "b").rename(photographs / "d")
    two.add_images(photographs / "d", encoder)
    one.save(tmp_path / "index"), two.save(tmp_path / "index")
    assert len(two) == 8 and not Index.load(tmp_path / "index").gone()


# ----------------------------------------------------------------------------------- embeddings, interruptions


def test_images_without_a_direction_are_named_and_left_out(photographs):
    Image.new("RGB", (9, 9)).save(photographs / "a/black.png")
    index, added = Index.build(photographs, ColourEncoder(shift=0.0))
    [line] = added.unreadable
    assert len(index) == 8 and "black.png gets an embedding that is zero or not finite" in line
    with pytest.raises(SagaError, match=r"none of the 9 images .* zero or not finite"):
        Index.build(photographs, ColourEncoder(float("nan")))


def test_an_empty_index_is_one_line_and_can_be_added_to(photographs, tmp_path):
    index = Index(faiss.IndexFlatIP(48), [], "exact", {"digest": Index.build(photographs, ColourEncoder())[0].encoder["digest"]})
    index.save(tmp_path / "index")
    index = Index.load(tmp_path / "index")
    with pytest.raises(SagaError, match="holds no image"):
        index.search(np.ones((1, 48)))
    assert index.add_images(photographs, ColourEncoder()).count == 8
    assert len(index.query([photographs / "a/0.png"], ColourEncoder(), 8)[0]) == 8


@pytest.mark.parametrize("k", [0, -1, 9, 2.5, "3", None, np.float32(2)])
def test_numbers_of_hits_that_are_none(k):
    with pytest.raises(SagaError, match="images asked of an index of 8"):
        Index.from_embeddings(np.eye(8), list("abcdefgh")).search(np.ones((1, 8)), k)


@pytest.mark.parametrize("embeddings", [[["a", "b"]], [[1.0], [1.0, 2.0]], [[object()]], [[{}]]])
def test_embeddings_that_are_no_numbers(embeddings):
    with pytest.raises(SagaError, match="must be numbers"):
        Index.from_embeddings(embeddings, ["a"] * len(embeddings))


def test_tensors_with_a_graph_are_embeddings():
    rows = torch.eye(4, dtype=torch.bfloat16, requires_grad=True)
    assert Index.from_embeddings(rows, list("abcd")).search(rows * 2, 1)[0][:, 0].tolist() == [0, 1, 2, 3]


def test_an_interrupted_add_keeps_what_it_has(photographs, tmp_path):
    index, _ = Index.build(photographs / "a", ColourEncoder())
    photograph(photographs, [f"c/{n}.png" for n in range(3)], 9)
    calls = []

    def interrupt(pixels):
        calls.append(len(pixels))
        if len(calls) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        index.add_images(photographs, ColourEncoder(told=interrupt), batch_size=2)
    index.save(tmp_path / "index")
    assert len(Index.load(tmp_path / "index")) == 8
    assert index.add_images(photographs, ColourEncoder()).count == 3


# ----------------------------------------------------------------------------------------------- hostile files


def stored(folder, **changes):
    """Change an index's record."""
    path = folder / "index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vectors": "../../etc/passwd"}, "no name of a vector file"),
        ({"vectors": "/etc/passwd"}, "no name of a vector file"),
        ({"vectors": "index.json"}, "no name of a vector file"),
        ({"images": [[0, "../../etc/passwd", ""]] * 3}, "lies outside of its folder"),
        ({"images": [[0, "a/../../b.png", ""]] * 3}, "lies outside of its folder"),
        ({"images": [[0, "/etc/passwd", ""]] * 3}, "lies outside of its folder"),
        ({"images": [[0, "a\0.png", ""]] * 3}, "lies outside of its folder"),
        ({"images": [[0, "", ""]] * 3}, "lies outside of its folder"),
        ({"images": [[-1, "a.png", ""]] * 3}, "is not .number of a folder"),
        ({"images": [[7, "a.png", ""]] * 3}, "is not .number of a folder"),
        ({"images": [[True, "a.png", ""]] * 3}, "is not .number of a folder"),
        ({"images": [[0, 1, ""]] * 3}, "is not .number of a folder"),
        ({"images": [["<script>"]] * 3}, "is not .number of a folder"),
        ({"images": {}}, "images is no list"),
        ({"images": []}, "does not fit"),
        ({"folders": ["../.."]}, "folders are not all absolute"),
        ({"folders": ["/photographs/../etc"]}, "folders are not all absolute"),
        ({"folders": [None]}, "folders are not all absolute"),
        ({"encoder": {"path": 3}}, "encoder is not a table of texts"),
        ({"encoder": None}, "encoder is not a table of texts"),
        ({"dimension": 1e300}, "is missing"),
        ({"dimension": 4}, "does not fit"),
        ({"kind": ["exact"]}, "is missing"),
        ({"sha256": "0" * 64}, "is damaged"),
        ({"vectors": "0" * 12 + ".faiss"}, "cannot be read: it is missing"),
        ({"format": 3}, "has format 3, this version reads 2; update it"),
        ({"format": 2}, "shards or moved is no list"),
        ({"format": "1"}, "is no record of an index"),
    ],
)  # fmt: skip
def test_records_that_say_what_none_says(changes, message, tmp_path):
    Index.from_embeddings(rows(3), list("abc")).save(tmp_path)
    stored(tmp_path, **changes)
    with pytest.raises(SagaError, match=message) as error:
        Index.load(tmp_path)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


@pytest.mark.parametrize("content", ["[" * 100_000, "[]", "null", "3", '"x"', "{", "", "\xff", "NaN", '{"format": 1}', '{"format": [1]}'])
def test_json_that_is_no_record(content, tmp_path):
    Index.from_embeddings(rows(3), list("abc")).save(tmp_path)
    (tmp_path / "index.json").write_text(content, encoding="latin-1")
    with pytest.raises(SagaError, match=r"index\.json (is damaged|was not written by Index.save)"):
        Index.load(tmp_path)


def test_vectors_that_faiss_keeps_elsewhere_are_not_opened(tmp_path):
    outside = tmp_path / "outside.bin"
    vectors = faiss.index_factory(8, "IVF2,Flat", faiss.METRIC_INNER_PRODUCT)
    vectors.train(rows(80))
    lists = faiss.OnDiskInvertedLists(vectors.nlist, vectors.code_size, str(outside))
    vectors.replace_invlists(lists)
    vectors.add(rows(80))
    with only_one_process(tmp_path / "index" / ".lock", "index"):
        storage.write_index(tmp_path / "index", vectors, [Entry(str(n)) for n in range(80)], "ivf", {})
    outside.unlink()
    with pytest.raises(SagaError, match="no index that faiss can read"):
        Index.load(tmp_path / "index")
    assert not outside.exists()


def test_vectors_that_are_something_else(tmp_path):
    import hashlib
    import pickle

    for content in (b"", b"IxFI", pickle.dumps(print), os.urandom(400)):
        folder = tmp_path / hashlib.sha256(content).hexdigest()[:12]
        Index.from_embeddings(rows(3), list("abc")).save(folder)
        (folder / f"{folder.name}.faiss").write_bytes(content)
        stored(folder, vectors=f"{folder.name}.faiss", sha256=hashlib.sha256(content).hexdigest())
        with pytest.raises(SagaError, match="no index that faiss can read"):
            Index.load(folder)
    os.mkfifo(tmp_path / "pipe")
    [vectors] = [path for path in folder.glob("*.faiss") if path.name != f"{folder.name}.faiss"] or [folder / f"{folder.name}.faiss"]
    vectors.unlink()
    os.mkfifo(vectors)
    stored(folder, vectors=vectors.name)
    with pytest.raises(SagaError, match="no regular file"):
        Index.load(folder)


def test_names_that_are_paths_become_paths(tmp_path):
    index = Index.from_embeddings(rows(3), ["a.png", "/photographs/b.png", "../c.png"])
    index.save(tmp_path)
    loaded = Index.load(tmp_path)
    assert loaded.entries == index.entries and loaded.entries[0] == Entry("a.png")
    assert loaded.entries[1] == Entry("b.png", "/photographs") and loaded.entries[2].place == os.path.abspath("../c.png")


def test_folders_with_a_name_that_is_not_utf8_are_one_line(photographs, tmp_path):
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/\xff")
    try:
        os.rename(photographs, odd)
    except OSError:
        pytest.skip("this file system allows UTF-8 names only")
    with pytest.raises(SagaError, match="not UTF-8; rename it"):
        Index.build(odd, ColourEncoder())
    index = Index.from_embeddings(rows(1), [Entry("a.png", odd)])
    with pytest.raises(SagaError, match="is not UTF-8; rename it"):
        index.save(tmp_path / "index")


SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20), st.sampled_from(["..", "/", "../x", "a\0"]))
VALUES = st.recursive(SCALARS, lambda one: st.lists(one, max_size=4) | st.dictionaries(st.text(max_size=6), one, max_size=4), max_leaves=8)
KEYS = st.sampled_from(["format", "kind", "dimension", "encoder", "vectors", "sha256", "folders", "images"])


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.dictionaries(KEYS, VALUES, max_size=3), st.lists(st.tuples(st.integers(-1, 2), SCALARS, SCALARS), max_size=3))
def test_whatever_a_record_says_it_is_an_index_or_one_line(tmp_path_factory, changes, images):
    folder = tmp_path_factory.getbasetemp() / "records"
    if not folder.is_dir():
        Index.from_embeddings(rows(3), [Entry(f"{n}.png", "/photographs", "0" * 64) for n in range(3)]).save(folder)
        (folder / "whole").write_text((folder / "index.json").read_text())
    record = json.loads((folder / "whole").read_text())
    record["images"][: len(images)] = map(list, images)
    (folder / "index.json").write_text(json.dumps(record | changes))
    try:
        index = Index.load(folder)
    except SagaError as error:
        assert "\n" not in str(error) and len(str(error)) < 1000
    else:
        assert len(index) == index.vectors.ntotal and all(os.path.normpath(e.place).startswith(e.folder) for e in index.entries)
        index.search(rows(1), 1)
        index.gone()
