"""Images become squares in one way for all: training, evaluation, a saved encoder, search, the supervisor's questions."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import IMAGE_SIZE, build_tiny_checkpoint, random_images

from saga_lib.common.errors import SagaError
from saga_lib.common.files import read_json
from saga_lib.datasets.splits import Split
from saga_lib.encoder import Encoder
from saga_lib.families.loading import load_supervisor
from saga_lib.families.timm_towers import TimmTower
from saga_study.deploy.index import Index, encoder_digest
from saga_study.findings.attention_maps import HeldOut, load_frozen
from saga_study.methods import METHODS, PROFILES, make_config
from saga_study.resolving import open_session, train_run


def wide_images(count, seed=0):
    """Images twice as wide as high whose left quarter, which cropping cuts off, is their own."""
    return random_images(count, seed, size=(120, 60))


@pytest.fixture(scope="module")
def towers(checkpoint, tmp_path_factory):
    internvl = build_tiny_checkpoint(tmp_path_factory.mktemp("internvl"), "internvl")
    timm = TimmTower.create("vit_tiny_patch16_224", IMAGE_SIZE, pretrained=False)
    return {"qwen3_vl": load_supervisor(checkpoint, IMAGE_SIZE)[0], "internvl": load_supervisor(internvl, IMAGE_SIZE)[0], "timm": timm}


@pytest.fixture
def photographs(tmp_path):
    images = iter(wide_images(24))
    for c in range(6):
        (tmp_path / "wide" / f"{c}").mkdir(parents=True)
        for i in range(4):
            next(images).save(tmp_path / "wide" / f"{c}" / f"{i}.png")
    return tmp_path / "wide"


@pytest.fixture
def config(photographs, checkpoint):
    def make(method="pf", **overrides):
        settings = {"data_dir": str(photographs), "vocabulary": "miniature_birds", "supervisor": str(checkpoint), "embedding_dim": 16}
        return make_config("smoke", "image_folder", method, 0, batch_size=8, pairs_per_wave=4, **settings | overrides)

    return make


@pytest.mark.parametrize("family", ["qwen3_vl", "internvl", "timm"])
@pytest.mark.parametrize("size", [(120, 60), (60, 120), (49, 48), (30, 90)])
def test_a_tower_sees_the_centre_or_the_whole(family, size, towers, monkeypatch):
    tower, side = towers[family], min(size)
    image = random_images(1, size=size)[0]
    left, top = (size[0] - side) // 2, (size[1] - side) // 2
    centre = image.crop((left, top, left + side, top + side))
    whole = image.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC)
    assert torch.equal(tower.preprocess([image]), tower.preprocess([centre])), "as all runs before the setting"
    monkeypatch.setattr(tower, "image_fit", "resize")
    assert torch.equal(tower.preprocess([image]), tower.preprocess([whole]))
    assert not torch.equal(tower.preprocess([image]), tower.preprocess([centre]))
    square = random_images(1, seed=2, size=(60, 60))[0]
    resized = tower.preprocess([square])
    monkeypatch.setattr(tower, "image_fit", "crop")
    assert torch.equal(tower.preprocess([square]), resized), "squares are the same under both"


@pytest.mark.parametrize("family", ["qwen3_vl", "internvl", "timm"])
def test_an_encoder_remembers_how_its_images_were_fitted(family, towers, tmp_path, monkeypatch):
    images = wide_images(3)
    encoder = Encoder(towers[family], "mean", 16).eval()
    cropped, digest = encoder.embed(images), encoder_digest(encoder)
    monkeypatch.setattr(encoder.tower, "image_fit", "resize")
    resized = encoder.embed(images)
    assert np.abs(cropped - resized).max() > 1e-3 and encoder_digest(encoder) != digest
    encoder.save_pretrained(tmp_path)
    loaded = Encoder.from_pretrained(tmp_path)
    assert loaded.tower.image_fit == "resize" and encoder_digest(loaded) == encoder_digest(encoder)
    np.testing.assert_array_equal(loaded.embed(images), resized)
    assert f"{IMAGE_SIZE} pixels, the whole image, squeezed to a square" in (tmp_path / "README.md").read_text()
    content = read_json(tmp_path / "config.json")
    del content["image_fit"]  # as encoders of before the setting are
    (tmp_path / "config.json").write_text(json.dumps(content))
    older = Encoder.from_pretrained(tmp_path)
    assert older.tower.image_fit == "crop" and encoder_digest(older) == digest
    np.testing.assert_array_equal(older.embed(images), cropped)
    (tmp_path / "config.json").write_text(json.dumps(content | {"image_fit": "stretch"}))
    with pytest.raises(SagaError, match="unknown image fit 'stretch'"):
        Encoder.from_pretrained(tmp_path).embed(images)


def test_training_its_encoder_and_the_search_see_the_same(config, photographs, tmp_path):
    for fit in ("crop", "resize"):
        session = open_session(config("saga_pf", image_fit=fit))
        split = session.benchmark.train
        pixels = session.train_pixels[np.arange(len(split))]
        assert session.encoder.tower.image_fit == fit and torch.equal(pixels, session.encoder.tower.preprocess(split.images()))
        embeddings = session.encoder.embed_pixels(pixels)
        index, _ = Index.build(photographs, session.encoder)
        for path, embedding in zip(split.paths, embeddings, strict=True):
            [entry] = [n for n, e in enumerate(index.entries) if e.path.resolve() == path.resolve()]
            np.testing.assert_allclose(index.vectors.reconstruct(entry), embedding, atol=1e-5)
        assert load_frozen(config("saga_pf", image_fit=fit))[0].image_fit == fit
    train_run(config(image_fit="resize", steps=1), tmp_path / "run")
    assert Encoder.from_pretrained(tmp_path / "run" / "encoder").tower.image_fit == "resize"


def test_a_map_lies_over_the_part_of_an_image_that_was_seen(photographs):
    paths = sorted(photographs.rglob("*.png"))[:4]
    split = Split("test", paths, np.array([0, 0, 1, 1]), ["a", "b"])
    whole, seen = split.open(2), {}
    for fit in ("crop", "resize"):
        held = HeldOut(split, np.array([0, 2]), np.array([True]), [], 0, {}, {}, {}, None, fit)
        seen[fit] = held.picture(1)
    assert np.array_equal(seen["resize"], whole) and np.array_equal(seen["crop"], whole.crop((30, 0, 90, 60)))


def test_photographs_of_every_sort_are_read_alike_by_training_and_search(config, photographs):
    """Turned by EXIF, grey of 16 bits, transparent, of a palette: one embedding in training, in the index and for a query."""
    exif = Image.Exif()
    exif[0x0112] = 6
    colour = random_images(4, seed=8, size=(120, 60))
    colour[0].save(photographs / "0" / "turned.jpg", exif=exif, quality=95)
    ramp = np.tile(np.linspace(0, 65535, 120).astype(np.uint16), (60, 1))
    Image.fromarray(ramp).save(photographs / "0" / "deep.png")
    glass = colour[1].copy()
    glass.putalpha(90)
    glass.save(photographs / "0" / "glass.png")
    colour[2].quantize().save(photographs / "0" / "palette.gif", save_all=True, append_images=[colour[3].quantize()])
    session = open_session(config("pf"))
    index, added = Index.build(photographs, session.encoder)
    assert added.unreadable == [] and len(index) == 28
    for split in (session.benchmark.train, session.benchmark.test):
        trained = session.encoder.embed(split.images())
        for path, embedding in zip(split.paths, trained, strict=True):
            [[hit]] = index.query([path], session.encoder, k=1)
            assert hit.path.resolve() == path.resolve() and hit.similarity > 0.9999
            [entry] = [n for n, e in enumerate(index.entries) if e.path.resolve() == path.resolve()]
            assert float(index.vectors.reconstruct(entry) @ embedding) > 0.9999
            with Image.open(path) as opened:  # as users open images themselves
                np.testing.assert_allclose(session.encoder.embed([opened])[0], embedding, atol=1e-5)


def test_the_paper_s_profile_resizes_and_addresses_of_before_stay():
    assert PROFILES["paper"]["image_fit"] == "resize"
    for method in METHODS:
        paper = make_config("paper", "cub200", method, 0)
        assert paper.image_fit == paper.to_dict()["image_fit"] == "resize"
        assert "image_fit" not in make_config("miniature", "miniature_birds", method, 0).to_dict()
    with pytest.raises(SagaError, match="did you mean 'resize'"):
        make_config("paper", "cub200", "pf", 0, image_fit="rezise")
