"""The anchor against a float64 formula, its teachers, and the drift of tokens."""

import numpy as np
import pytest
import torch
from tiny import IMAGE_SIZE, VOCABULARY, random_images

from saga_lib.anchor import Anchor, TokenDrift, make_anchor, pretrained_embedding
from saga_lib.config import RunConfig
from saga_lib.datasets.pixels import PixelStore
from saga_lib.datasets.splits import Split
from saga_lib.reading import Reader

CPU = torch.device("cpu")


@pytest.fixture
def store(loaded):
    """Eight random pictures of four classes with made-up attributes."""
    tower, _ = loaded
    pictures = random_images(8)
    split = Split("train", [None] * 8, np.repeat(np.arange(4), 2), list("abcd"), [
        {a.name: a.values[c % len(a.values)] for a in VOCABULARY.attributes} for c in range(4)])  # fmt: skip
    object.__setattr__(split, "open", lambda index: pictures[int(index)])
    object.__setattr__(split, "images", lambda indices=None: [pictures[int(i)] for i in (range(8) if indices is None else indices)])
    return PixelStore(split, tower)


def config(anchor, **settings):
    base = {"profile": "smoke", "dataset": "miniature_birds", "method": "m", "seed": 0, "supervisor": "miniature", "image_size": IMAGE_SIZE}
    return RunConfig(**base | {"anchor": anchor} | settings)


def softmax(rows):
    e = np.exp(rows - rows.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def test_the_loss_is_the_divergence_of_the_two_neighbourhoods():
    rng = np.random.default_rng(0)
    factors, z = rng.normal(size=(10, 6)), rng.normal(size=(4, 3))
    rows, unit = factors[[7, 1, 4, 2]], z / np.linalg.norm(z, axis=1, keepdims=True)

    def others(matrix):
        return matrix[~np.eye(4, dtype=bool)].reshape(4, 3)

    teacher, student = softmax(others(rows @ rows.T)), softmax(others(unit @ unit.T / 0.2))
    expected = (teacher * np.log(teacher / student)).sum(1).mean()
    found = Anchor(torch.as_tensor(factors), 0.2)(torch.as_tensor(z), np.array([7, 1, 4, 2]))
    assert float(found) == pytest.approx(expected, rel=1e-9)


def test_the_pre_trained_embedding_is_its_own_anchor(loaded, store):
    """At the start, with mean pooling and no projection, there is nothing to draw back: loss and gradient are 0."""
    tower, supervisor = loaded
    anchor = make_anchor(config("embedding"), supervisor, VOCABULARY, store, CPU)
    z = pretrained_embedding(store, CPU).double().requires_grad_(True)
    tokens = tower(store[np.arange(8)]).merged.detach().mean(1)
    torch.testing.assert_close(z.detach(), torch.nn.functional.normalize(tokens, dim=1), rtol=1e-6, atol=1e-6)
    loss = anchor(z, np.arange(8))
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0, abs=1e-9) and float(z.grad.abs().max()) < 1e-5
    assert float(anchor(z.detach().flip(0), np.arange(8))) > 1e-4


def test_teachers_say_in_how_many_attributes_two_images_agree(loaded, store):
    _, supervisor = loaded
    truth = make_anchor(config("truth"), supervisor, VOCABULARY, store, CPU)
    attributes = [store.split.attributes(i) for i in range(8)]
    agree = [[sum(a[k] == b[k] for k in a) for b in attributes] for a in attributes]
    np.testing.assert_allclose((truth.factors @ truth.factors.T).numpy(), agree)
    read = make_anchor(config("reading"), supervisor, VOCABULARY, store, CPU)
    p = [log_p.exp() for log_p in Reader(supervisor, VOCABULARY)(store.tower(store[np.arange(8)]))]
    torch.testing.assert_close((read.factors @ read.factors.T).double(), sum(x @ x.T for x in p).detach(), rtol=1e-5, atol=1e-5)
    assert make_anchor(config("none"), supervisor, VOCABULARY, store, CPU) is None


def test_drift_is_one_minus_the_cosine_of_each_token(loaded, store):
    tower, _ = loaded
    drift = TokenDrift(store, CPU, images=3)
    assert drift.measure(tower) == pytest.approx(0, abs=1e-6) and len(drift.pixels) == 3
    before = drift.tokens.double()
    noise = torch.randn(before.shape, generator=torch.Generator().manual_seed(0))
    drift.tokens = (before + noise).float()
    a, b = before.numpy(), (before + noise).numpy()
    cosines = (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)
    assert drift.measure(tower) == pytest.approx(1 - cosines.mean(), rel=1e-5)
