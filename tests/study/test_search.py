"""Search: the index finds what brute force finds, survives the disk, and says what is wrong in one line."""

import csv
import html.parser
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import IMAGE_SIZE, random_images

from saga_lib.common.errors import SagaError
from saga_lib.common.files import read_json
from saga_lib.common.images import find_images, upright_rgb
from saga_lib.common.paths import REPOSITORY
from saga_lib.encoder import Encoder
from saga_study.deploy import index
from saga_study.deploy.encoders import load_encoder
from saga_study.deploy.index import Index, encoder_digest
from saga_study.processes import only_one_process
from saga_study.search import main, results_page

faiss = pytest.importorskip("faiss")
ODD = "<b>&\"'.png"
KINDS = "Flat", "IVF16,Flat", "HNSW32"


def new_encoder(checkpoint, seed):
    from saga_lib.families.loading import load_supervisor

    torch.manual_seed(seed)
    return Encoder(load_supervisor(checkpoint, IMAGE_SIZE)[0], "attention", 16).eval()


@pytest.fixture(scope="module")
def encoder(checkpoint):
    return new_encoder(checkpoint, 0)


@pytest.fixture(scope="module")
def encoder_folder(encoder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("search") / "encoder"
    encoder.save_pretrained(folder)
    return folder


@pytest.fixture
def photographs(tmp_path):
    """Twelve images, one with an odd name, in two sub-folders."""
    folder = tmp_path / "photographs"
    for number, image in enumerate(random_images(12)):
        place = folder / ("a", "b")[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        image.save(place / (ODD if number == 3 else f"{number:02d}.png"))
    return folder


@pytest.fixture
def built(photographs, encoder_folder, tmp_path):
    """An index on disk, made by the command line."""
    assert main(["build", str(photographs), "--encoder", str(encoder_folder), "--out", str(tmp_path / "index")]) == 0
    return tmp_path / "index"


def clustered(num=900, dim=24, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((30, dim))[rng.integers(30, size=num)] + 0.5 * rng.standard_normal((num, dim))).astype(np.float32)


def brute_force(queries, gallery, k):
    a, b = (x.astype(np.float64) / np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True) for x in (queries, gallery))
    cosines = a @ b.T
    order = np.argsort(-cosines, axis=1, kind="stable")[:, :k]
    return order, np.take_along_axis(cosines, order, axis=1)


def names_of(num):
    return [f"{i}.png" for i in range(num)]


def refused(capsys, *arguments):
    """Return the one line that a command line is refused with."""
    capsys.readouterr()
    assert main([str(a) for a in arguments]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("error: ") and said.err.count("\n") == 1
    return said.err


# ------------------------------------------------------------------------------------------------ the index


def test_exact_search_equals_brute_force():
    gallery, queries = clustered(), clustered(50, seed=1) * 7
    indices, cosines = Index.from_embeddings(gallery, names_of(900)).search(queries, 10)
    truth, expected = brute_force(queries, gallery, 10)
    assert indices.tolist() == truth.tolist() and indices.dtype == np.int64
    np.testing.assert_allclose(cosines, expected, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_survives_the_disk_and_grows(kind, tmp_path):
    gallery, queries = clustered(2500), clustered(50, seed=1)
    made = Index.from_embeddings(gallery, names_of(2500), kind, {"digest": "d"})
    made.save(tmp_path)
    loaded = Index.load(tmp_path)
    assert loaded.entries == made.entries and loaded.kind == kind and loaded.encoder == {"digest": "d"}
    for a, b in zip(made.search(queries, 7), loaded.search(queries, 7), strict=True):
        assert np.array_equal(a, b)
    loaded.vectors.add(index.unit_rows(queries))
    loaded.entries += [index.Entry(f"new {i}") for i in range(50)]
    indices, cosines = loaded.search(queries, 1)
    assert indices[:, 0].tolist() == list(range(2500, 2550)) and np.allclose(cosines, 1)
    loaded.save(tmp_path)
    assert len(Index.load(tmp_path)) == 2550 and len(list(tmp_path.iterdir())) == 2, "the former file is gone"


def test_recall_is_measured_against_exact_search():
    gallery, queries = clustered(2500), clustered(100, seed=1)
    assert Index.from_embeddings(gallery, names_of(2500)).recall(queries) == 1
    for kind in ("IVF64,Flat", "HNSW32"):
        index = Index.from_embeddings(gallery, names_of(2500), kind)
        assert index.recall(queries) > 0.95 and index.recall(k=5, num_queries=50) > 0.95
    index = Index.from_embeddings(gallery, names_of(2500), "IVF64,Flat")
    index.vectors.nprobe = 1
    truth, _ = brute_force(queries, gallery, 10)
    found, _ = index.search(queries, 10)
    share = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found.tolist(), truth.tolist(), strict=True)])
    assert index.recall(queries) == pytest.approx(share) and share < 0.999


def test_recall_counts_either_of_two_equal_images():
    gallery = np.repeat(clustered(300), 2, axis=0)
    for kind in KINDS:
        assert Index.from_embeddings(gallery, names_of(600), kind).recall(k=1) == 1


def test_approximate_search_always_returns_k_images():
    gallery = clustered(900)
    index = Index.from_embeddings(gallery, names_of(900), "IVF16,Flat")
    index.vectors.nprobe = 1
    indices, cosines = index.search(gallery[:5], 800)
    assert indices.min() >= 0 and np.isfinite(cosines).all() and (np.diff(cosines) <= 1e-6).all()


@pytest.mark.parametrize("num", [1, 2, 40])
@pytest.mark.parametrize("kind", ["Flat", "IVF1,Flat", "HNSW32"])
def test_tiny_sets_work_with_every_kind(kind, num):
    gallery = clustered(num)
    indices, _ = Index.from_embeddings(gallery, names_of(num), kind).search(gallery, num)
    assert sorted(indices[0].tolist()) == list(range(num)) and indices[:, 0].tolist() == list(range(num))


@pytest.mark.parametrize(
    ("embeddings", "message"),
    [
        (np.ones(4), r"must be \(N, D\)"),
        (np.ones((0, 4)), r"must be \(N, D\)"),
        (np.array([[1.0, 2], [np.nan, 1]]), "embedding 1 is zero or not finite"),
        (np.array([[0.0, 0], [1, 1]]), "embedding 0 is zero or not finite"),
        (np.ones((3, 4)), "3 embeddings for 2 names"),
    ],
)
def test_embeddings_that_do_not_fit(embeddings, message):
    with pytest.raises(SagaError, match=message):
        Index.from_embeddings(embeddings, ["a", "b"])


def test_searches_that_do_not_fit():
    index = Index.from_embeddings(np.eye(4), names_of(4))
    for k in (0, -1, 5):
        with pytest.raises(SagaError, match=f"k = {k} images asked of an index of 4; choose 1 to 4"):
            index.search(np.ones((1, 4)), k)
    with pytest.raises(SagaError, match="queries have 3 dimensions, the index 4"):
        index.search(np.ones((1, 3)), 1)
    with pytest.raises(SagaError, match="index IVF8,Flat needs at least 8 images to be trained on, there are 4; use Flat"):
        Index.from_embeddings(np.eye(4), names_of(4), "IVF8,Flat")


# --------------------------------------------------------------------------------- folders of images, encoders


def test_building_embeds_what_the_encoder_embeds(photographs, encoder):
    index, added = Index.build(photographs, encoder, batch_size=5)
    files = find_images(photographs)
    assert added.count == len(index) == 12 and [e.path for e in index.entries] == files
    assert [e.name for e in index.entries] == [p.relative_to(photographs).as_posix() for p in files]
    expected = encoder.embed([upright_rgb(p) for p in files])
    np.testing.assert_allclose(index.vectors.reconstruct_n(0, 12), expected, atol=1e-5)
    [hits, again] = index.query([files[3], upright_rgb(files[3])], encoder, k=4)
    assert hits[0].path == files[3] and hits[0].similarity == pytest.approx(1, abs=1e-5)
    assert [h.name for h in hits] == [h.name for h in again]
    assert [h.similarity for h in hits] == sorted((h.similarity for h in hits), reverse=True)


def test_unreadable_files_copies_and_changes_are_skipped_with_a_count(photographs, encoder):
    (photographs / "a" / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    (photographs / "a" / "empty.png").write_bytes(b"")
    (photographs / "a" / "notes.txt").write_text("not counted")
    shutil.copy(photographs / "a" / "00.png", photographs / "b" / "copy.png")
    index, added = Index.build(photographs, encoder)
    assert len(index) == 12 and added.copies == ["b/copy.png"]
    assert len(added.unreadable) == 2 and all("cannot be read (" in line for line in added.unreadable)
    assert added.summary() == "12 images added; skipped: 1 there already (or copies), 2 unreadable"

    random_images(1, 7)[0].save(photographs / "new.png")
    random_images(1, 8)[0].save(photographs / "a" / "00.png")  # whose former content its copy still has
    random_images(1, 9)[0].save(photographs / "a" / "02.png")
    added = index.add_images(photographs, encoder)
    assert added.count == 2 and added.changed == ["a/02.png"] and added.moved == ["b/copy.png"] and len(added.copies) == 10
    assert len(index) == 14 and [entry.name for entry in index.entries if entry.file() != "there"] == ["a/02.png"]
    assert index.add_images(photographs, encoder).count == 0 and len(index) == index.vectors.ntotal == 14


def test_a_name_that_is_not_utf8_is_skipped(photographs, encoder):
    try:
        shutil.copy(photographs / "a" / "00.png", os.fsencode(photographs) + b"/\xff.png")
    except OSError:
        pytest.skip("this file system allows UTF-8 names only")
    _, added = Index.build(photographs, encoder)
    assert added.count == 12 and "not UTF-8" in added.unreadable[0]


def test_photographs_are_searched_upright(photographs, encoder):
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by a quarter
    source = photographs / "a" / "00.png"
    turned = Image.open(source).transpose(Image.Transpose.ROTATE_90)
    turned.save(photographs.parent / "phone.png", exif=exif)
    index, _ = Index.build(photographs, encoder)
    [[hit]] = index.query([photographs.parent / "phone.png"], encoder, 1)
    assert hit.path == source and hit.similarity == pytest.approx(1, abs=1e-5)


def test_an_index_belongs_to_its_encoder(photographs, encoder, encoder_folder, checkpoint, tmp_path):
    digest = encoder_digest(encoder)
    assert encoder_digest(Encoder.from_pretrained(encoder_folder)) == digest
    other = new_encoder(checkpoint, 1)
    assert encoder_digest(other) != digest
    index, _ = Index.build(photographs, encoder)
    index.save(tmp_path / "index")
    assert len(Index.load(tmp_path / "index", encoder)) == 12
    for work in (
        lambda: Index.load(tmp_path / "index", other),
        lambda: index.query([photographs / "a" / "00.png"], other),
        lambda: index.add_images(photographs, other),
    ):
        with pytest.raises(SagaError, match=rf"made by an encoder \(digest {digest[:12]}\), not by the encoder given"):
            work()


def test_damaged_indices_are_refused(tmp_path):
    folder = tmp_path / "index"
    Index.from_embeddings(np.eye(4), names_of(4)).save(folder)
    [vectors] = folder.glob("*.faiss")
    whole, record = vectors.read_bytes(), (folder / "index.json").read_text()
    for work, message in (
        (lambda: vectors.write_bytes(whole[:-3]), "is damaged"),
        (lambda: vectors.unlink(), "cannot be read"),
        (lambda: (folder / "index.json").write_text(record[:50]), "index.json is damaged"),
        (lambda: (folder / "index.json").write_text("[]"), "was not written by Index.save"),
        (lambda: (folder / "index.json").write_text('{"format": 1}'), "was not written by Index.save"),
        (lambda: (folder / "index.json").write_text(record.replace('"format": 1', '"format": 3')), "has format 3"),
        (lambda: (folder / "index.json").write_text(record.replace('"dimension": 4', '"dimension": 5')), "does not fit"),
        (lambda: (folder / "index.json").unlink(), "holds no index"),
    ):
        vectors.write_bytes(whole)
        (folder / "index.json").write_text(record)
        work()
        with pytest.raises(SagaError, match=message) as error:
            Index.load(folder)
        assert "\n" not in str(error.value)


def test_the_library_is_importable_without_faiss(photographs, encoder, monkeypatch):
    code = "import sys; import saga_study.search, saga_lib.encoder, saga_lib.training; assert 'faiss' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=REPOSITORY)
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(SagaError, match="pip install faiss-cpu"):
        Index.build(photographs, encoder)


# ------------------------------------------------------------------------------------------ the command line


def test_build_add_and_query(built, photographs, tmp_path, capsys):
    more = tmp_path / "more"
    more.mkdir()
    random_images(1, 20)[0].save(more / "extra.png")
    (more / "broken.png").write_text("no")
    assert main(["add", str(built), str(more)]) == 0
    said = capsys.readouterr()
    assert "1 images added; skipped: 1 unreadable" in said.out and "index of 13 images" in said.out
    assert "broken.png cannot be read (not an image)" in said.err
    copy = tmp_path / "copy.png"
    shutil.copy(more / "extra.png", copy)
    queries = [str(copy), str(photographs / "b" / ODD)]
    table, page = tmp_path / "out" / "hits.csv", tmp_path / "out" / "hits.html"
    assert main(["query", str(built), *queries, "--k", "3", "--csv", str(table), "--html", str(page)]) == 0
    out = capsys.readouterr().out
    assert "rank" in out and "1.0000" in out and "extra.png" in out and f"b/{ODD}" in out
    rows = list(csv.DictReader(table.open()))
    assert len(rows) == 6 and [r["rank"] for r in rows] == ["1", "2", "3"] * 2
    assert rows[0]["name"] == "extra.png" and rows[0]["path"] == str(more / "extra.png") and float(rows[0]["similarity"]) > 0.999
    assert f"b/{ODD}" not in [row["name"] for row in rows[3:]], "a query is none of its own hits"
    check_page(page.read_text(), num_images=8)


def test_a_query_of_the_index_is_none_of_its_own_hits(built, encoder_folder, photographs, tmp_path, capsys, monkeypatch):
    link = tmp_path / "link"
    link.symlink_to(photographs)
    monkeypatch.chdir(photographs)
    for query in (photographs / "a" / "00.png", link / "a" / "00.png", Path("a/00.png")):
        hits = tmp_path / "hits.json"
        assert main(["query", str(built), str(query), "--k", "12", "--json", str(hits)]) == 0
        names = [row["name"] for row in json.loads(hits.read_text())]
        assert len(names) == len(set(names)) == 11 and "a/00.png" not in names
    only = tmp_path / "only"
    (only / "a").mkdir(parents=True)
    shutil.copy(photographs / "a" / "00.png", only / "a")
    assert main(["build", str(only), "--encoder", str(encoder_folder), "--out", str(tmp_path / "one")]) == 0
    assert main(["query", str(tmp_path / "one"), str(only / "a" / "00.png")]) == 0
    assert "no other image is in this index" in capsys.readouterr().out


def check_page(text, num_images):
    """Check that a page is well-formed, self-contained and has an alternative text for every image."""
    known = set("html head meta title style body h1 h2 p div figure figcaption b br img".split())
    open_tags, images = [], []

    class Check(html.parser.HTMLParser):
        def handle_starttag(self, tag, attributes):
            attributes = dict(attributes)
            assert tag in known
            assert not set(attributes) & {"href", "onerror", "onload"}
            if tag == "img":
                images.append(attributes)
            if tag not in ("meta", "br", "img"):
                open_tags.append(tag)

        def handle_endtag(self, tag):
            assert open_tags.pop() == tag

    Check().feed(text)
    assert not open_tags and len(images) == num_images
    assert all(image["alt"] and image["src"].startswith("data:image/jpeg;base64,") for image in images)
    for needed in ("width=device-width", "prefers-color-scheme: dark", "auto-fill"):
        assert needed in text
    assert "http" not in text.replace("http-equiv", "")


def test_the_page_is_safe_and_survives_missing_files(photographs, tmp_path):
    evil = '"><script>alert(1)</script>\x1b[2J\n.png'
    hits = [index.Hit(evil, tmp_path / "gone.png", 0.51234), index.Hit("a/00.png", photographs / "a" / "00.png", -0.2)]
    page = results_page({str(photographs / "b" / ODD): hits})
    assert "<script" not in page and "\x1b" not in page and "gone or cannot be read" in page and "hit 1: 0.512" in page
    check_page(page, num_images=2)


def test_hits_whose_file_is_gone_are_marked_everywhere(built, photographs, tmp_path, capsys):
    query = tmp_path / "query.png"
    shutil.copy(photographs / "a" / "00.png", query)
    (photographs / "a" / "00.png").unlink()
    shutil.copy(photographs / "b" / "01.png", photographs / "a" / "02.png")
    outputs = {name: tmp_path / f"hits.{name}" for name in ("csv", "json", "html")}
    flags = [part for name, path in outputs.items() for part in (f"--{name}", str(path))]
    assert main(["query", str(built), str(query), "--k", "12", *flags]) == 0
    said = capsys.readouterr().out
    assert "a/00.png  (this file is gone" in said and "a/02.png  (this file holds another picture" in said
    expected = {"a/00.png": "gone", "a/02.png": "changed"}
    for rows in (list(csv.DictReader(outputs["csv"].open())), json.loads(outputs["json"].read_text())):
        assert len(rows) == 12 and all(row["file"] == expected.get(row["name"], "there") for row in rows)
    page = outputs["html"].read_text()
    assert page.count("this file is gone") == page.count("this file holds another picture") == 1
    check_page(page, num_images=11)


def test_moved_photographs_are_found_again_by_the_command(built, photographs, tmp_path, capsys):
    renamed = photographs.rename(tmp_path / "renamed")
    (renamed / "a" / "00.png").unlink()
    capsys.readouterr()
    assert main(["add", str(built), str(renamed)]) == 0
    said = capsys.readouterr()
    assert "0 images added, 11 found again at a new place" in said.out and "gone: 1 images of the index, e.g. " in said.err
    assert [entry.name for entry in Index.load(built).gone()] == ["a/00.png"]


def test_what_is_no_photograph_is_counted(photographs, encoder_folder, tmp_path, capsys):
    for name in ("a/x.HEIC", "b/y.heic", "a/notes.txt", "a/@eaDir/thumb.jpg", "#recycle/old.jpg"):
        (photographs / name).parent.mkdir(exist_ok=True)
        shutil.copy(photographs / "a" / "00.png", photographs / name)
    for arguments in (["build", photographs, "--encoder", encoder_folder, "--out"], ["add"]):
        capsys.readouterr()
        assert main([*map(str, arguments), str(tmp_path / "i"), *([str(photographs)] if arguments == ["add"] else [])]) == 0
        said = capsys.readouterr()
        for part in (".heic (2)", ".txt (1)", "@eaDir (1)", "#recycle (1)"):
            assert part in said.err, said.err
        assert "index of 12 images" in said.out
    only = tmp_path / "only"
    only.mkdir()
    (only / "a.heic").write_text("")
    assert ".heic (1)" in refused(capsys, "build", only, "--encoder", encoder_folder, "--out", tmp_path / "j")


@pytest.mark.parametrize("command", ["build", "add"])
def test_an_interrupted_command_goes_on(command, built, photographs, encoder, encoder_folder, tmp_path, capsys, monkeypatch):
    for number, image in enumerate(random_images(70, 3)):
        image.save(photographs / f"{number}.png")
    out = built if command == "add" else tmp_path / "new"
    arguments = ["add", out, photographs] if command == "add" else ["build", photographs, "--encoder", encoder_folder, "--out", out]
    sizes, embed = [], Encoder.embed_pixels

    def embed_once(self, pixels, batch_size=64):
        sizes.append(len(pixels))
        if len(sizes) == 2:
            raise KeyboardInterrupt
        return embed(self, pixels, batch_size)

    monkeypatch.setattr(Encoder, "embed_pixels", embed_once)
    capsys.readouterr()
    assert main([*map(str, arguments)]) == 130
    assert capsys.readouterr().err.endswith("interrupted; nothing is lost: the same command goes on\n")
    assert main([*map(str, arguments)]) == 0
    assert sizes[0] == 64 and sizes[1] == sizes[2] and sum(sizes[2:]) + 64 == (70 if command == "add" else 82)
    index = Index.load(out)
    assert len(index) == 82 and sorted(p.name for p in out.iterdir() if p.suffix != ".faiss") == ["index.json", "shards"]
    whole, _ = Index.build(photographs, encoder)
    order = [index.entries.index(entry) for entry in whole.entries]
    np.testing.assert_allclose(index.vectors.reconstruct_n(0, 82)[order], whole.vectors.reconstruct_n(0, 82), atol=1e-5)


def test_one_process_builds_an_index_at_a_time(photographs, encoder_folder, tmp_path, capsys):
    out = tmp_path / "out"
    build = ["build", photographs, "--encoder", encoder_folder, "--out", out]
    with only_one_process(out / ".building", "index"):
        assert f"is being worked on by process {os.getpid()}" in refused(capsys, *build)
    assert main([*map(str, build)]) == 0


def test_paths_that_are_no_encoder_say_the_likely_one(built, photographs, encoder_folder, checkpoint, tmp_path, capsys, monkeypatch):
    study = tmp_path / "results" / "study"
    run, without = study / "runs" / "0123", study / "runs" / "4567"
    for folder in (run, without, tmp_path / "empty", tmp_path / "2024"):
        folder.mkdir(parents=True)
    for folder in (run, without):
        (folder / "config.json").write_text('{"config": {}, "inputs": {}, "code": ""}')
        (folder / "evaluation.json").write_text("{}")
    shutil.copytree(encoder_folder, run / "encoder")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("[]")
    for given, message in {
        run / "encoder" / "model.safetensors": f"is a file, and an encoder is a folder; did you mean {run / 'encoder'}?",
        run / "encoder" / "config.json": f"did you mean {run / 'encoder'}?",
        run: f"is the folder of a run, not of an encoder; did you mean {run / 'encoder'}?",
        without: "this run kept no weights: train it again",
        run / "encodr": f"config.json does not exist; did you mean {run / 'encoder'}?",
        study: f"did you mean {run / 'encoder'}?",
        study / "runs": f"did you mean {run / 'encoder'}?",
        tmp_path / "results": f"did you mean {run / 'encoder'}?",
        checkpoint: "holds a model of the hub (qwen3_vl), not an encoder",
        tmp_path / "empty": "config.json does not exist; give a folder that Encoder.save_pretrained wrote",
        tmp_path / "broken": "was not written by Encoder.save_pretrained",
        "2024": "config.json does not exist",
        "7": "there is no encoder at 7: 7/config.json does not exist",
        photographs / "a" / "00.png": "is a file, and an encoder is a folder; give a folder",
        "x" * 300: "config.json does not exist",
    }.items():  # fmt: skip
        monkeypatch.chdir(tmp_path)
        for command in (["build", photographs, "--out", tmp_path / "out"], ["query", built, photographs / "a" / "00.png"]):
            said = refused(capsys, *command, "--encoder", given)
            assert message.lower() in said.lower(), said
            assert len(said) < 1000


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pooler": "gem"}, "unknown pooler 'gem'"), ({"tower": {"family": "dino5"}}, "unknown tower family 'dino5'"),
        ({"tower": {}}, "unknown tower family None"), ({"image_fit": "stretch"}, "unknown image fit 'stretch'"),
        ({"embedding_dim": "x"}, "describes no encoder"), (None, "is an encoder without its weights"),
    ],
)  # fmt: skip
def test_an_encoder_that_was_changed_by_hand_is_named(change, message, encoder_folder, tmp_path):
    folder = shutil.copytree(encoder_folder, tmp_path / "mine")
    if change is None:
        (folder / "model.safetensors").unlink()
    else:
        (folder / "config.json").write_text(json.dumps(read_json(folder / "config.json") | change))
    with pytest.raises(SagaError, match=message) as error:
        load_encoder(folder)
    assert str(folder) in str(error.value)


def test_one_image_and_iterators_are_embedded_too(encoder, photographs):
    image = upright_rgb(photographs / "a" / "00.png")
    expected = encoder.embed([image])
    assert np.array_equal(encoder.embed(image), expected) and np.array_equal(encoder.embed(iter([image])), expected)
    for given in (None, 3, [None]):
        with pytest.raises(SagaError, match="an image that Pillow has opened is needed"):
            encoder.embed(given)


def test_paths_are_found_in_another_form_of_unicode(photographs, encoder_folder, tmp_path, capsys):
    shutil.copytree(encoder_folder, tmp_path / "Enco\u0308der")
    folder = photographs.rename(tmp_path / "Fo\u0308tos")
    (tmp_path / "I\u0308ndex").mkdir()
    index, images, encoder = (str(tmp_path / name) for name in ("\u00cfndex", "F\u00f6tos", "Enc\u00f6der"))
    assert main(["build", images, "--encoder", encoder, "--out", index]) == 0 and (tmp_path / "I\u0308ndex" / "index.json").is_file()
    assert main(["add", index, images]) == 0 and main(["query", index, f"{images}/a/00.png", "--encoder", encoder]) == 0
    assert folder.is_dir() and len(list(tmp_path.iterdir())) == 3


def test_queries_of_one_name_are_told_apart(photographs, tmp_path):
    hits = [index.Hit("a/00.png", photographs / "a" / "00.png", 1.0)]
    paths = [photographs / "a" / "00.png", tmp_path / "other" / "00.png"]
    page = results_page({str(path): hits for path in paths})
    assert all(f"<h2>{path}</h2>" in page for path in paths)


def test_the_default_k_fits_small_indices(photographs, encoder_folder, tmp_path, capsys):
    for path in find_images(photographs)[2:]:
        path.unlink()
    assert main(["build", str(photographs), "--encoder", str(encoder_folder), "--out", str(tmp_path / "i"), "--index", "HNSW32"]) == 0
    assert main(["query", str(tmp_path / "i"), str(find_images(photographs)[0])]) == 0
    assert "2 images (16 dimensions, HNSW32)" in capsys.readouterr().out


def test_wrong_parameters_are_one_line(built, photographs, encoder_folder, checkpoint, tmp_path, capsys):
    image, empty = photographs / "a" / "00.png", tmp_path / "empty"
    empty.mkdir()
    text = tmp_path / "text.png"
    text.write_text("no image")
    out = tmp_path / "out"
    build = ["build", photographs, "--encoder", encoder_folder, "--out"]
    assert "required" in refused(capsys)
    assert "invalid choice: 'find'" in refused(capsys, "find")
    assert "unrecognized arguments: --kind" in refused(capsys, *build, out, "--kind", "ivf")
    assert "--encoder" in refused(capsys, "build", photographs, "--out", out)
    assert "index 'Flit' is unknown to faiss; write a factory string" in refused(capsys, *build, out, "--index", "Flit")
    assert "needs at least 13 images to be trained on, there are 12" in refused(capsys, *build, out, "--index", "IVF13,Flat")
    assert "0 is less than 1" in refused(capsys, *build, out, "--shard-size", "0")
    assert "holds no image" in refused(capsys, "build", empty, "--encoder", encoder_folder, "--out", out)
    assert "does not exist" in refused(capsys, "build", tmp_path / "nowhere", "--encoder", encoder_folder, "--out", out)
    assert "is not a folder" in refused(capsys, "build", image, "--encoder", encoder_folder, "--out", out)
    assert "config.json does not exist" in refused(capsys, "build", photographs, "--encoder", empty, "--out", out)
    assert "holds an index already" in refused(capsys, *build, built)
    assert "is not empty" in refused(capsys, *build, photographs)
    assert "cannot write into" in refused(capsys, *build, text / "out")
    assert "cannot write into" in refused(capsys, *build, text)
    (empty / "a.png").write_text("no image")
    assert "none of the 1 images" in refused(capsys, "build", empty, "--encoder", encoder_folder, "--out", out)
    assert "holds no index" in refused(capsys, "add", empty, photographs)
    assert "does not exist" in refused(capsys, "add", built, tmp_path / "nowhere")
    assert "holds no index" in refused(capsys, "query", tmp_path / "nowhere", image)
    assert "name image files" in refused(capsys, "query", built)
    assert "invalid int value: 'five'" in refused(capsys, "query", built, image, "--k", "five")
    for k in ("0", "-3", "13"):
        assert f"--k is {k}; this index holds 12 images" in refused(capsys, "query", built, image, "--k", k)
    assert "text.png cannot be read (not an image)" in refused(capsys, "query", built, image, text)
    assert "nowhere.png does not exist" in refused(capsys, "query", built, "nowhere.png")
    assert "(Is a directory)" in refused(capsys, "query", built, photographs)
    assert "cannot write into" in refused(capsys, "query", built, image, "--html", text / "page.html")
    (tmp_path / "folder.csv").mkdir()
    assert "is a folder; name a file" in refused(capsys, "query", built, image, "--csv", tmp_path / "folder.csv")
    assert "must end in .html" in refused(capsys, "query", built, image, "--html", photographs / "a" / "02.png")
    assert Image.open(photographs / "a" / "02.png").size == (IMAGE_SIZE, IMAGE_SIZE)
    new_encoder(checkpoint, 1).save_pretrained(tmp_path / "other")
    assert "not by the encoder given" in refused(capsys, "query", built, image, "--encoder", tmp_path / "other")
    record = (built / "index.json").read_text()
    (built / "index.json").write_text(record.replace(str(encoder_folder), str(tmp_path / "moved")))
    assert read_json(built / "index.json")["encoder"]["path"].endswith("moved")
    assert "say where it is with --encoder" in refused(capsys, "query", built, image)
    assert main(["query", str(built), str(image), "--encoder", str(encoder_folder)]) == 0


def test_the_module_runs_as_a_command(built, photographs):
    def run(*arguments):
        command = [sys.executable, "-m", "saga_study.search", *map(str, arguments)]
        return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)

    done = run("query", built, photographs / "a" / "00.png", "--k", "2")
    assert done.returncode == 0 and "a/00.png" in done.stdout and "Traceback" not in done.stderr
    done = run("query", built, photographs / "a")
    assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
