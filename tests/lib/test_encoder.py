"""What an encoder takes for an image, and the hub: uploaded to and loaded from a stand-in that keeps repositories in folders."""

import re
import shutil

import huggingface_hub
import numpy as np
import pytest
from PIL import Image
from tiny import IMAGE_SIZE, random_images

from saga_lib.common.errors import SagaError
from saga_lib.encoder import Encoder
from saga_lib.families.loading import load_supervisor


@pytest.fixture(scope="module")
def encoder(checkpoint):
    tower, _ = load_supervisor(checkpoint, IMAGE_SIZE)
    return Encoder(tower, "attention", 8).eval()


@pytest.fixture(scope="module")
def images():
    return random_images(5)


def test_images_are_given_as_pictures_paths_or_arrays(encoder, images, tmp_path, capsys):
    expected = encoder.embed(images)
    paths = [tmp_path / f"{n}.png" for n in range(len(images))]
    for image, path in zip(images, paths, strict=True):
        image.save(path)
    arrays = [np.asarray(image) for image in images]
    for given in (paths, [str(path) for path in paths], arrays, np.stack(arrays), iter(images), [images[0], paths[1], *arrays[2:]]):
        np.testing.assert_array_equal(encoder.embed(given), expected)
    for one in (images[0], paths[0], str(paths[0]), arrays[0]):
        np.testing.assert_allclose(encoder.embed(one), expected[:1], atol=1e-6)
    np.testing.assert_allclose(encoder.embed(paths, batch_size=2, progress=True), expected, atol=1e-6)
    assert "embedding" in capsys.readouterr().err
    encoder.embed(paths[:1])
    assert capsys.readouterr().err == "", "no bar unless one is asked for"


def test_a_photograph_is_read_upright_as_everywhere(encoder, images, tmp_path):
    turned, exif = images[0].transpose(Image.Transpose.ROTATE_90), Image.Exif()
    exif[0x0112] = 6  # to be shown turned back
    turned.save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_allclose(encoder.embed(tmp_path / "turned.png"), encoder.embed(images[0]), atol=1e-6)


def test_what_is_no_image_is_named(encoder, tmp_path):
    (tmp_path / "notes.png").write_text("no image")
    with pytest.raises(SagaError, match="notes.png cannot be read"):
        encoder.embed([tmp_path / "notes.png"])
    with pytest.raises(SagaError, match="absent.png does not exist"):
        encoder.embed(str(tmp_path / "absent.png"))


# ------------------------------------------------------------------------------------------------------- the hub


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A stand-in for the hub's API: a repository is a folder. Returns the folder of all and what was asked of it."""
    place, asked = tmp_path / "hub", []

    class Api:
        def create_repo(self, repo_id, exist_ok=False, private=None):
            asked.append(("create", repo_id, private))
            (place / repo_id).mkdir(parents=True, exist_ok=exist_ok)

        def upload_folder(self, repo_id, folder_path, commit_message):
            shutil.copytree(folder_path, place / repo_id, dirs_exist_ok=True)
            return f"https://huggingface.co/{repo_id}/tree/main"

    def snapshot_download(repo_id, revision=None, allow_patterns=None):
        asked.append(("download", repo_id, revision, tuple(allow_patterns)))
        if not (place / repo_id).is_dir():
            raise huggingface_hub.errors.LocalEntryNotFoundError(f"{repo_id} is not in the cache")
        return str(place / repo_id)

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return place, asked


def test_an_encoder_goes_to_the_hub_and_comes_back(encoder, images, hub):
    place, asked = hub
    address = encoder.push_to_hub("someone/mugs", {"trained on": "mugs"})
    assert address.endswith("someone/mugs/tree/main") and asked == [("create", "someone/mugs", True)], "private unless said otherwise"
    card = (place / "someone" / "mugs" / "README.md").read_text()
    assert "| trained on | mugs |" in card and "Encoder.from_pretrained" in card
    again = Encoder.from_pretrained("someone/mugs", revision="abc")
    np.testing.assert_array_equal(again.embed(images), encoder.embed(images))
    assert asked[-1] == ("download", "someone/mugs", "abc", ("config.json", "model.safetensors")), "no code, no pickles"
    encoder.push_to_hub("someone/mugs", private=False)
    assert asked[-1] == ("create", "someone/mugs", False)


def test_what_is_neither_a_folder_nor_on_the_hub_is_one_line(hub, tmp_path):
    with pytest.raises(SagaError, match="encoder no/body is neither a folder nor on the hub: no/body is not in the cache"):
        Encoder.from_pretrained("no/body")
    for absent in (tmp_path / "absent", "absent", "a/b/c"):
        with pytest.raises(SagaError, match=re.escape(f"{absent} does not exist; an encoder is a folder")):
            Encoder.from_pretrained(absent)


def test_an_upload_that_fails_is_one_line(encoder, hub, monkeypatch):
    def refuse(self, *args, **kwargs):
        response = type("Response", (), {"headers": {}, "request": None})()
        raise huggingface_hub.errors.HfHubHTTPError("401 Client Error: Unauthorized", response=response)

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", refuse)
    with pytest.raises(SagaError, match="encoder someone/mugs cannot be uploaded: 401 Client Error"):
        encoder.push_to_hub("someone/mugs")
