"""Galleries larger than memory: built in shards by one process or several, killed, resumed, copied, read from the disk, searched."""

import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from colours import ColourEncoder, photograph

from saga_lib.common.errors import SagaError
from saga_lib.common.paths import REPOSITORY
from saga_study.deploy import building, decoding, factory, storage
from saga_study.deploy.building import build_in_shards, fill
from saga_study.deploy.entries import Entry
from saga_study.deploy.index import Index, unit_rows
from saga_study.deploy.shards import SHARDS, Names, Rows, read_shard, write_shard

faiss = pytest.importorskip("faiss")
NAMES = [f"{place}/{number:02d}.png" for place in "abc" for number in range(10)]


@pytest.fixture
def photographs(tmp_path):
    return photograph(tmp_path / "photographs", NAMES)


def build(photographs, out, kind="Flat", **settings):
    encoder = settings.pop("encoder", None) or ColourEncoder()
    return build_in_shards(photographs, encoder, out, kind, **{"batch_size": 4, "shard_size": 7, "workers": 0} | settings)


def files_of(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def clustered(num, dim=32, seed=0, clusters=40):
    centres = np.random.default_rng(9).standard_normal((clusters, dim))
    rng = np.random.default_rng(seed)
    return unit_rows(centres[rng.integers(clusters, size=num)] + 0.4 * rng.standard_normal((num, dim)))


def brute_force(queries, gallery, k):
    cosines = queries.astype(np.float64) @ gallery.astype(np.float64).T
    order = np.argsort(-cosines, axis=1, kind="stable")[:, :k]
    return order, np.take_along_axis(cosines, order, axis=1)


def gallery_in_shards(folder, rows, kind, size=300):
    """Write an index of unit vectors, `size` to a shard, without images."""
    parts = [range(start, min(start + size, len(rows))) for start in range(0, len(rows), size)]
    shards = [
        write_shard(folder / SHARDS / f"{n:05d}-{n:012x}.safetensors", rows[part], [Entry(f"{i}.png", "/photographs") for i in part], "d",
                    "/photographs") for n, part in enumerate(parts)
    ]  # fmt: skip
    vectors = Rows(rows.shape[1]) if kind == "Flat" else factory.empty_vectors(rows.shape[1], kind)
    if kind != "Flat":
        fill(vectors, kind, shards)
    storage.write_record(folder, vectors, shards, kind, {"digest": "d"})
    return folder


# -------------------------------------------------------------------------------------------------- building


@pytest.mark.parametrize("kind", ["Flat", "IVF3,Flat"])
def test_a_build_in_shards_equals_one_in_memory(kind, photographs, tmp_path):
    added = build(photographs, tmp_path / "index", kind)
    whole, _ = Index.build(photographs, ColourEncoder(), kind)
    assert added.summary() == "30 images added" and len(list((tmp_path / "index" / SHARDS).iterdir())) == 5
    for index in (Index.load(tmp_path / "index"), Index.load(tmp_path / "index", ColourEncoder(), mapped=True)):
        assert list(index.entries) == whole.entries and index.kind == kind
        np.testing.assert_allclose(index.rows.reconstruct_n(0, 30), whole.vectors.reconstruct_n(0, 30), atol=1e-6)
        [hits] = index.query([photographs / "b/03.png"], ColourEncoder(), 4)
        [expected] = whole.query([photographs / "b/03.png"], ColourEncoder(), 4)
        assert [hit.name for hit in hits] == [hit.name for hit in expected] and hits[0].name == "b/03.png" and hits[0].file == "there"
        assert [hit.similarity for hit in hits] == pytest.approx([hit.similarity for hit in expected], abs=1e-5)


def test_a_build_killed_at_any_batch_goes_on_to_the_same_bytes(photographs, tmp_path):
    build(photographs, tmp_path / "whole", "IVF3,PQ4x2")
    expected = files_of(tmp_path / "whole")
    for batch in (0, 3, 7):  # of 10; two make a shard

        def die(batch=batch):
            seen = []

            def told(pixels):
                if len(seen) == batch:
                    os.kill(os.getpid(), signal.SIGKILL)
                seen.append(len(pixels))

            build(photographs, tmp_path / "killed", "IVF3,PQ4x2", encoder=ColourEncoder(told=told))

        child = multiprocessing.get_context("fork").Process(target=die)
        child.start(), child.join()
        assert child.exitcode == -signal.SIGKILL
        left = len(list((tmp_path / "killed" / SHARDS).glob("*-*.safetensors")))
        assert left == batch // 2 and not (tmp_path / "killed" / "index.json").exists()
        embedded = []
        count = ColourEncoder(told=lambda pixels, embedded=embedded: embedded.append(len(pixels)))
        build(photographs, tmp_path / "killed", "IVF3,PQ4x2", encoder=count)
        assert sum(embedded) == 30 - 7 * left and files_of(tmp_path / "killed") == expected
        shutil.rmtree(tmp_path / "killed")


def test_a_build_killed_while_it_is_filled_embeds_nothing_again(photographs, tmp_path, monkeypatch):
    build(photographs, tmp_path / "whole")
    monkeypatch.setattr(building, "write_record", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        build(photographs, tmp_path / "index")
    monkeypatch.undo()
    build(photographs, tmp_path / "index", encoder=ColourEncoder(told=lambda pixels: pytest.fail("all is embedded")))
    assert files_of(tmp_path / "index") == files_of(tmp_path / "whole")


def test_a_sample_is_gathered_from_all_shards(tmp_path):
    rows = clustered(1000)
    gallery_in_shards(tmp_path, rows, "Flat", size=130)
    shards = [read_shard(path) for path in sorted((tmp_path / SHARDS).iterdir())]
    for numbers in ([0], [999], [129, 130, 131], [], range(1000), [5, 800]):
        assert np.array_equal(building._gather(shards, np.asarray(numbers, int)), rows[list(numbers)])


def test_what_is_embedded_is_used_again_by_content(photographs, tmp_path):
    """After Ctrl-C within a shard, and when files were added and renamed meanwhile, which moves all shards."""
    seen = []

    def interrupt(pixels):
        if len(seen) == 4:  # two shards are whole, and one batch more
            raise KeyboardInterrupt
        seen.append(len(pixels))

    with pytest.raises(KeyboardInterrupt):
        build(photographs, tmp_path / "index", batch_size=5, encoder=ColourEncoder(told=interrupt))
    photograph(photographs, ["a/0.png"], seed=5)
    (photographs / "a/03.png").rename(photographs / "a/3.png")
    rest = []
    build(photographs, tmp_path / "index", encoder=ColourEncoder(told=lambda pixels: rest.append(len(pixels))))
    assert sum(seen) == 14 and sum(rest) == 31 - 14
    index = Index.load(tmp_path / "index")
    whole, _ = Index.build(photographs, ColourEncoder())
    assert index.entries == whole.entries and not [path for path in (tmp_path / "index" / SHARDS).iterdir() if "partial" in path.name]
    np.testing.assert_allclose(index.vectors.reconstruct_n(0, 31), whole.vectors.reconstruct_n(0, 31), atol=1e-6)


def test_a_changed_photograph_or_encoder_is_embedded_again(photographs, tmp_path):
    build(photographs, tmp_path / "index")
    (tmp_path / "index" / "index.json").unlink()
    photograph(photographs, ["b/04.png"], seed=8)
    seen = []
    count = ColourEncoder(told=lambda pixels: seen.append(len(pixels)))
    build(photographs, tmp_path / "index", encoder=count)
    assert sum(seen) == 1, "the rest of its shard is known by content"
    (tmp_path / "index" / "index.json").unlink()
    seen.clear()
    build(photographs, tmp_path / "index", encoder=ColourEncoder(2.0, lambda pixels: seen.append(len(pixels))))
    assert sum(seen) == 30


def test_copies_enter_once_wherever_they_lie(photographs, tmp_path):
    for copy in ("a/00b.png", "c/99.png", "d.png"):
        shutil.copy(photographs / "a/00.png", photographs / copy)
    (photographs / "b/broken.png").write_text("no image")
    added = build(photographs, tmp_path / "index")
    assert added.count == 30 and added.copies == ["a/00b.png", "c/99.png", "d.png"] and "b/broken.png cannot be read" in added.unreadable[0]
    index = Index.load(tmp_path / "index")
    assert [entry.name for entry in index.entries] == NAMES and index.vectors.ntotal == 30
    for n, entry in enumerate(index.entries):
        assert entry.sha256 == hashlib.sha256(entry.path.read_bytes()).hexdigest()
        assert index.search(index.rows.reconstruct(n)[None], 1)[0].item() == n


def test_workers_decode_the_same_and_end_with_their_parent(photographs, tmp_path):
    for workers in (0, 2):
        build(photographs, tmp_path / str(workers), workers=workers)
    assert files_of(tmp_path / "0") == files_of(tmp_path / "2")
    paths = [photographs / name for name in NAMES]
    first = next(decoding.decode(paths, [[2, 0], [1]], ColourEncoder().tower.preprocess, 1, {""}))
    assert [one.sha256 for one in first] == [hashlib.sha256(paths[n].read_bytes()).hexdigest() for n in (2, 0)]
    assert not multiprocessing.active_children()


def test_two_processes_build_the_same_index_as_one(photographs, checkpoint, tmp_path):
    import torch
    from tiny import IMAGE_SIZE

    from saga_lib.encoder import Encoder
    from saga_lib.families.loading import load_supervisor
    from saga_study.search import main

    torch.manual_seed(0)
    Encoder(load_supervisor(checkpoint, IMAGE_SIZE)[0], "attention", 16).save_pretrained(tmp_path / "encoder")
    settings = ["--encoder", tmp_path / "encoder", "--index", "IVF3,Flat", "--shard-size", "7", "--workers", "0"]
    arguments = [str(one) for one in ("build", photographs, *settings, "--out")]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as torchrun's processes have
    assert main([*arguments, str(tmp_path / "one")]) == 0
    torch.set_num_threads(threads)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "saga_study.search"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([*command, *arguments, str(tmp_path / "two")], cwd=REPOSITORY, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("30 images added") == 1 and "index of 30 images (16 dimensions, IVF3,Flat)" in done.stdout
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")
    done = subprocess.run([*command, *arguments, str(tmp_path / "two")], cwd=REPOSITORY, capture_output=True, text=True, env=environment)
    assert done.returncode != 0 and done.stderr.count("error: ") == done.stderr.count("holds an index already; use 'add'") == 1, done.stderr


# ------------------------------------------------------------------------------------------- factory strings


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("Flit", "index 'Flit' is unknown to faiss; write a factory string of faiss, such as Flat"),
        ("", "index '' is unknown to faiss"),
        ("IVF,PQ8", "is unknown to faiss"),
        ("IVF99999999999,Flat", "is unknown to faiss"),
        ("IVF4(", "unbalanced parentheses"),
        ("IVF0,Flat", "has no cluster; write their number behind IVF"),
        ("IVF4,PQ7", "cuts 48 dimensions into 7 parts, which does not come out even; use PQ6"),
        ("PQ50", "cuts 48 dimensions into 50 parts, which does not come out even; use PQ48"),
        ("PQ0", "does not fit vectors of 48 dimensions"),
        ("PQ8x40", "does not fit vectors of 48 dimensions"),
        ("LSH", "does not fit vectors of 48 dimensions"),
        ("IDMap,Flat", "cannot be searched by cosine"),
        ("exact", "is written as a factory string of faiss now: Flat"),
        ("ivf", "is written as a factory string of faiss now: IVF1024,Flat"),
        ("IVF31,Flat", "needs at least 31 images to be trained on, there are 30; use Flat"),
        ("IVF2,PQ8", "needs at least 256 images to be trained on, there are 30; use Flat"),
        ("PCA49,Flat", "does not fit vectors of 48 dimensions"),
    ],
)
def test_strings_that_make_no_index_are_one_line_before_the_slow_part(kind, message, photographs, tmp_path):
    refuse = ColourEncoder(told=lambda pixels: kind.startswith("PCA") or pytest.fail("refused too late"))
    with pytest.raises(SagaError) as error:
        build(photographs, tmp_path / "index", kind, encoder=refuse)
    assert message in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 300
    assert not (tmp_path / "index" / "index.json").exists()


def test_too_few_after_copies_and_too_large_for_memory_are_one_line(photographs, tmp_path, monkeypatch):
    shutil.copy(photographs / "a/00.png", photographs / "copy.png")
    with pytest.raises(SagaError, match="IVF31,Flat needs at least 31 images to be trained on, there are 30"):
        build(photographs, tmp_path / "index", "IVF31,Flat")
    import psutil

    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1000))
    with pytest.raises(SagaError, match=r"filling index IVF3,Flat takes 0.0 GiB of memory for 31 images, 0.0 are free"):
        build(photographs, tmp_path / "new", "IVF3,Flat")
    build(photographs, tmp_path / "new")  # Flat stays on the disk


@pytest.mark.parametrize("kind", ["IVF16,PQ8", "IVF16,Flat", "HNSW32", "PCA16,IVF16,PQ4", "SQ8", "IVF16,SQ8"])
def test_the_memory_of_filling_is_estimated(kind, tmp_path):
    rows = clustered(3000)
    vectors = factory.empty_vectors(32, kind)
    factory.train(vectors, kind, rows)
    empty = len(faiss.serialize_index(vectors))
    vectors.add(rows)
    each = (len(faiss.serialize_index(vectors)) - empty) / len(rows)
    assert factory.bytes_each(vectors) == pytest.approx(each, rel=0.15, abs=9)


# --------------------------------------------------------------------------------------------------- searching


@pytest.mark.parametrize("kind", ["Flat", "IVF40,PQ8", "IVF40,SQ8", "PQ8", "HNSW32", "PCA16,IVF40,PQ8"])
def test_recall_against_numpy_on_clustered_vectors(kind, tmp_path):
    rows, queries = clustered(4000), clustered(60, seed=1)
    truth, cosines = brute_force(queries, rows, 10)
    index = Index.load(gallery_in_shards(tmp_path, rows, kind), mapped=True)
    found, similarities = index.search(queries * 3, 10)
    shared = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found.tolist(), truth.tolist(), strict=True)])
    assert shared >= (1 if kind == "Flat" else 0.95) and index.recall(queries) == pytest.approx(shared, abs=0.01)
    exact = np.take_along_axis(queries @ rows.T, found, 1)
    np.testing.assert_allclose(similarities, exact, atol=1e-5, err_msg="cosines are exact, not those of the codes")
    assert (np.diff(similarities) <= 1e-6).all()
    if kind == "Flat":
        assert found.tolist() == truth.tolist()
    elif "PQ" in kind:
        _, proposed = index.vectors.search(queries, 10)
        without = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(proposed.tolist(), truth.tolist(), strict=True)])
        assert without < shared - 0.05, "codes alone would not do"
    everything, _ = index.search(queries[:3], 4000)  # more than the clusters that are looked into hold
    assert all(sorted(row) == list(range(4000)) for row in everything.tolist())


def test_an_index_that_is_mapped_stays_on_the_disk(tmp_path):
    rows = clustered(3000)
    folder = gallery_in_shards(tmp_path, rows, "IVF16,PQ8")
    mapped, whole = Index.load(folder, mapped=True), Index.load(folder)
    lists = faiss.downcast_InvertedLists(faiss.extract_index_ivf(mapped.vectors).invlists)
    assert isinstance(lists, faiss.OnDiskInvertedLists) and isinstance(mapped.entries, Names)
    assert all(isinstance(block.base, np.memmap) and not block.flags.writeable for block in mapped.rows.blocks)
    assert mapped.entries[2999] == Entry("2999.png", "/photographs") and len(mapped.entries) == 3000
    with pytest.raises(IndexError):
        mapped.entries[3000]
    for a, b in zip(mapped.search(rows[:50], 5), whole.search(rows[:50], 5), strict=True):
        assert np.array_equal(a, b)
    with pytest.raises(SagaError, match="can only be searched; load it without"):
        mapped.save(folder)


def test_large_files_that_are_mapped_are_not_read_through(tmp_path, monkeypatch):
    folder = gallery_in_shards(tmp_path, clustered(900), "IVF16,Flat")
    monkeypatch.setattr(storage, "CHECKED", 1000)
    monkeypatch.setattr(storage, "file_sha256", lambda path: pytest.fail("every byte was read"))
    assert len(Index.load(folder, mapped=True)) == 900


# ------------------------------------------------------------------------------------------------------ adding


@pytest.mark.parametrize("kind", ["Flat", "IVF3,Flat", "IVF3,PQ4x2"])
def test_several_writers_add_to_an_index_in_shards(kind, photographs, tmp_path):
    build(photographs, tmp_path / "index", kind)
    before = {name: content for name, content in files_of(tmp_path / "index").items() if name.startswith(SHARDS)}
    photograph(tmp_path / "x", ["1.png", "2.png"], 5), photograph(tmp_path / "y", ["1.png", "3.png"], 6)
    one, two = Index.load(tmp_path / "index"), Index.load(tmp_path / "index")
    one.add_images(tmp_path / "x", ColourEncoder()), two.add_images(tmp_path / "y", ColourEncoder())
    two.add_images(tmp_path / "x", ColourEncoder())
    renamed = (photographs / "b").rename(photographs / "z")
    assert len(two.add_images(renamed, ColourEncoder()).moved) == 10
    one.save(tmp_path / "index"), two.save(tmp_path / "index")
    for index in (two, Index.load(tmp_path / "index"), Index.load(tmp_path / "index", mapped=True)):
        places = ["x/1.png", "x/2.png", "y/1.png", "y/3.png"]
        assert [str(entry.path.relative_to(tmp_path)) for entry in list(index.entries)[30:]] == places
        assert not index.gone() and index.vectors.ntotal == index.rows.ntotal == 34
        for n in range(30, 34):
            [[hit]] = index.query([index.entries[n].path], ColourEncoder(), 1)
            assert hit.path == index.entries[n].path and hit.similarity == pytest.approx(1, abs=1e-5)
    after = files_of(tmp_path / "index")
    assert before.items() <= after.items() and sum(name.startswith(SHARDS) for name in after) == 5 + 2, "shards are never changed"
    Index.load(tmp_path / "index").save(tmp_path / "elsewhere")
    assert files_of(tmp_path / "elsewhere") == after


def test_an_index_that_replaces_shards_leaves_none(photographs, tmp_path):
    build(photographs, tmp_path / "index")
    Index.build(photographs, ColourEncoder())[0].save(tmp_path / "index")
    assert sorted(path.suffix for path in (tmp_path / "index").iterdir()) == [".faiss", ".json"]
    assert len(Index.load(tmp_path / "index", mapped=True)) == 30


@pytest.mark.parametrize("kind", ["exact", "ivf", "hnsw"])
def test_folders_of_before_are_read_and_added_to(kind, photographs, tmp_path):
    """As `search build --kind` wrote them: one file of vectors, the images inside index.json."""
    index, _ = Index.build(photographs / "a", ColourEncoder())
    vectors = faiss.index_factory(48, {"exact": "Flat", "ivf": "IVF2,Flat", "hnsw": "HNSW32"}[kind], faiss.METRIC_INNER_PRODUCT)
    rows = index.vectors.reconstruct_n(0, 10)
    vectors.train(rows)
    if kind == "ivf":
        vectors.make_direct_map()
    vectors.add(rows)
    content = faiss.serialize_index(vectors).tobytes()
    sha256 = hashlib.sha256(content).hexdigest()
    old = tmp_path / "old"
    old.mkdir()
    (old / f"{sha256[:12]}.faiss").write_bytes(content)
    images = [[0, entry.name, entry.sha256] for entry in index.entries]
    record = {"format": 1, "kind": kind, "dimension": 48, "encoder": index.encoder, "vectors": f"{sha256[:12]}.faiss", "sha256": sha256,
              "folders": [str(photographs / "a")], "images": images}  # fmt: skip
    (old / "index.json").write_text(json.dumps(record))
    loaded = Index.load(old, ColourEncoder())
    assert loaded.entries == index.entries and loaded.kind == kind
    assert Index.load(old, mapped=True).query([photographs / "a/07.png"], ColourEncoder(), 1)[0][0].name == "07.png"
    assert loaded.add_images(photographs, ColourEncoder()).count == 20
    loaded.save(old)
    assert len(Index.load(old)) == 30 and Index.load(old).query([photographs / "c/05.png"], ColourEncoder(), 1)[0][0].name == "c/05.png"


# ---------------------------------------------------------------------------------------------- hostile files


def rewrite(folder, **changes):
    record = json.loads((folder / "index.json").read_text())
    (folder / "index.json").write_text(json.dumps(record | changes))


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shards": []}, "there is no shard"),
        ({"shards": [["../../x.safetensors", 3, ""]]}, "is not .name of a shard"),
        ({"shards": [["00000-000000000000.safetensors", "3", ""]]}, "is not .name of a shard"),
        ({"shards": [["00009-000000000000.safetensors", 3, ""]]}, "00009-000000000000.safetensors cannot be read: it is missing"),
        ({"shards": [["00000-000000000000.safetensors", 300, "0" * 64]]}, "is damaged .its checksum differs"),
        ({"moved": [[900, "/x", "a.png"]]}, "is not .number of an image"),
        ({"moved": [[0, "/x", "../a.png"]]}, "lies outside of its folder"),
        ({"moved": [[0, "x", "a.png"]]}, "lies outside of its folder"),
        ({"dimension": 31}, "does not fit"),
        ({"encoder": {"digest": "e"}}, "does not fit"),
        ({"vectors": "", "sha256": ""}, None),
        ({"vectors": "../x.faiss"}, "no name of a vector file"),
        ({"format": 1}, "vectors is|folders are not"),
    ],
)  # fmt: skip
def test_records_of_shards_that_say_what_none_says(changes, message, mapped, tmp_path):
    folder = gallery_in_shards(tmp_path, clustered(900), "IVF16,Flat")
    rewrite(folder, **changes)
    if message is None:  # then it is Flat
        assert Index.load(folder, mapped=mapped).search(clustered(1, seed=3), 1)[0].shape == (1, 1)
        return
    with pytest.raises(SagaError, match=message) as error:
        Index.load(folder, mapped=mapped)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


def test_shards_that_are_something_else(tmp_path):
    from safetensors.numpy import load_file, save_file

    rows = clustered(5)
    entries = [Entry(f"{n}.png", "/photographs", "ab" * 32) for n in range(5)]
    path = tmp_path / "00000-000000000000.safetensors"
    whole = write_shard(path, rows, entries, "d", "/photographs", unreadable=["a line"])
    assert whole.entries() == entries == [whole.entry(number) for number in range(5)]
    assert whole.unreadable == ["a line"] and np.array_equal(whole.embeddings(), rows)
    content, tensors = path.read_bytes(), load_file(path)
    about = {"key": "", "encoder": "d", "folder": "/photographs", "copies": [], "unreadable": []}
    metadata = {"shard": json.dumps(about)}
    for changed in (
        b"", content[:-1], b"\xff" * 100, content[:40],
        (tensors, {}), (tensors, {"shard": "["}), (tensors, {"shard": "[" * 100_000}),
        (tensors, {"shard": json.dumps(about | {"more": 1})}),
        (tensors, {"shard": json.dumps(about | {"folder": 1})}), (tensors | {"embeddings": rows.astype(np.float16)}, metadata),
        (tensors | {"embeddings": rows[:4]}, metadata), (tensors | {"ends": tensors["ends"].astype(np.int32)}, metadata),
        ({name: tensor for name, tensor in tensors.items() if name != "sha256"}, metadata),
    ):  # fmt: skip
        path.write_bytes(changed) if isinstance(changed, bytes) else save_file(*changed[:1], path, changed[1])
        with pytest.raises(SagaError, match="is no shard of an index, or is damaged; build the index anew|cannot be read"):
            read_shard(path)
    for ends in ([5, 3, 10, 20, 25], [5, 10, 15, 20, 10**9], [-5, 10, 15, 20, 25]):
        save_file(tensors | {"ends": np.asarray(ends)}, path, metadata)
        with pytest.raises(SagaError, match="its names do not fit"):
            list(read_shard(path).names())
        with pytest.raises(SagaError, match="its names do not fit"):
            [read_shard(path).entry(number) for number in range(5)]
    save_file(tensors | {"names": np.full_like(tensors["names"], 255)}, path, metadata)
    with pytest.raises(SagaError, match="a name is not UTF-8"):
        list(read_shard(path).names())
    for folder, name in (("/photographs", "../x"), ("photographs", "x"), ("/a/../b", "x"), ("/a", "/etc/passwd")):
        shard = write_shard(path, rows[:1], [Entry(name, folder)], "d", folder)
        for entries in (list, lambda names: names[0]):
            with pytest.raises(SagaError, match="names an image outside of its folder"):
                entries(Names([shard], {}, storage.checked_entries))


def test_lists_that_faiss_keeps_in_another_file_are_refused_mapped_too(tmp_path):
    folder = gallery_in_shards(tmp_path / "index", clustered(900), "IVF16,Flat")
    for outside in (tmp_path / "outside.bin", folder / "beside.bin"):
        vectors = faiss.index_factory(32, "IVF16,Flat", faiss.METRIC_INNER_PRODUCT)
        vectors.train(clustered(900))
        lists = faiss.OnDiskInvertedLists(vectors.nlist, vectors.code_size, str(outside))
        vectors.replace_invlists(lists)  # of which faiss keeps no hold
        vectors.add(clustered(900))
        [old] = folder.glob("*.faiss")
        old.unlink()
        faiss.write_index(vectors, str(folder / "new"))
        sha256 = hashlib.sha256((folder / "new").read_bytes()).hexdigest()
        (folder / "new").rename(folder / f"{sha256[:12]}.faiss")
        rewrite(folder, vectors=f"{sha256[:12]}.faiss", sha256=sha256)
        for mapped in (False, True):
            with pytest.raises(SagaError, match="no index that faiss can read"):
                Index.load(folder, mapped=mapped)
