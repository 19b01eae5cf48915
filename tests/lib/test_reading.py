"""Readings of a frozen model and their gradients against the stock forward of every value, losses against formulas."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import IMAGE_SIZE, build_tiny_checkpoint, random_images

from saga_lib.config import RunConfig
from saga_lib.families.loading import load_supervisor
from saga_lib.reading import (
    READING_LOSSES,
    AttributeHead,
    Reader,
    ValueTree,
    contrast_loss,
    description_answer,
    make_reader,
    permute_weights,
    reading_loss,
    reading_phase,
    similarities,
    view,
)
from saga_lib.vocabulary import Attribute, load_vocabulary
from saga_study.measures import probe_accuracy

LABELS = torch.tensor([0, 0, 1, 1, 2])


@pytest.fixture(scope="module", params=["qwen3_vl", "internvl"])
def models(request, tmp_path_factory):
    folder = build_tiny_checkpoint(tmp_path_factory.mktemp(request.param), family=request.param)
    return load_supervisor(folder, IMAGE_SIZE, dtype=torch.float64)


@pytest.fixture(scope="module")
def vocabulary():
    """Values of several tokens, some of which are the beginning of others, and one attribute of free text."""
    birds = load_vocabulary("miniature_birds")
    values = {
        "bill shape": ("cone", "cone red", "cone red blue", "red"), "crown color": ("black blue", "black white", "red"), "wing color": (),
    }  # fmt: skip
    return replace(birds, attributes=tuple(Attribute(name, those) for name, those in values.items()))


@pytest.fixture(scope="module")
def images(models):
    tower, _ = models
    with torch.no_grad():
        return tower(tower.preprocess(random_images(5)))


def naive(supervisor, reader, image, answer):
    """Return log p of every attribute's values by one stock forward for each value, without any sharing."""
    read, prompt = [], len(reader.prompt_ids)
    for attribute in reader.vocabulary.attributes:
        at = attribute_place(reader, answer, attribute.name)
        if not attribute.values:
            ids = torch.cat([reader.prompt_ids, torch.tensor(answer[:at])])[None]
            read.append(supervisor.head(supervisor.forward_sequences(ids, image)[0, -1]).log_softmax(-1))
            continue
        begins = attribute_place(reader, reader._answer, attribute.name)
        answers = [description_answer(reader.vocabulary, reader._item | {attribute.name: value}) for value in attribute.values]
        endings = [supervisor.answer_ids(text)[begins:] for text in answers]
        scores = []
        for ending in endings:
            ids = torch.cat([reader.prompt_ids, torch.tensor(answer[:at] + ending)])[None]
            logits = supervisor.head(supervisor.forward_sequences(ids, image)[0, prompt + at - 1 :])
            total, alive, depth = 0.0, endings, 0
            while len(alive) > 1:  # at every token, only what some value goes on with counts
                allowed = sorted({other[depth] for other in alive})
                if len(allowed) > 1:
                    total = total + logits[depth, allowed].log_softmax(-1)[allowed.index(ending[depth])]
                alive = [other for other in alive if other[depth] == ending[depth]]
                depth += 1
            scores.append(total)
        read.append(torch.stack(scores))
    return read


def attribute_place(reader, answer, name):
    from saga_lib.supervisor.replay import attribute_tokens

    return next(tokens[0] for (_, attribute), tokens in attribute_tokens(reader.supervisor, answer).items() if attribute == name)


@pytest.mark.parametrize("own", [False, True])
def test_readings_are_those_of_a_stock_forward_for_every_value(models, vocabulary, images, own, monkeypatch):
    _, supervisor = models
    reader = Reader(supervisor, vocabulary)
    answers = None
    if own:  # each image read along words of its own
        items = [dict(zip(vocabulary.attribute_names, words, strict=True)) for words in (
            ("red", "black white", "blue"), ("cone red", "red", "red red"), ("cone red blue", "black blue", "white"),
            ("blue", "blue", "blue"), ("cone", "black", "cone"))]  # fmt: skip
        answers = [supervisor.answer_ids(description_answer(vocabulary, item)) for item in items]
    read = reader(images, answers)
    for i in range(5):
        expected = naive(supervisor, reader, images[i : i + 1], answers[i] if own else reader._answer)
        for ours, theirs in zip(read, expected, strict=True):
            torch.testing.assert_close(ours[i], theirs, rtol=1e-9, atol=1e-9)
    for ours in read:
        torch.testing.assert_close(ours.exp().sum(-1), torch.ones(5, dtype=torch.float64))


def test_an_attribute_that_a_description_lacks_is_uniform_and_has_no_gradient(models, vocabulary, images):
    _, supervisor = models
    reader = Reader(supervisor, vocabulary)
    boundary = images.boundary()
    read = reader(boundary, [supervisor.answer_ids('{"item_1": {"crown color": "red"}}')] * 5)
    assert torch.allclose(read[0].exp(), torch.full((5, 4), 0.25, dtype=torch.float64))
    (read[0].sum() + 0 * read[1].sum()).backward()
    assert float(boundary.merged.grad.abs().max()) == 0


@pytest.mark.parametrize("signal", READING_LOSSES)
@pytest.mark.parametrize("at_a_time", [0, 2])
def test_the_gradient_at_the_boundary_is_that_of_stock_forwards(models, vocabulary, images, signal, at_a_time):
    """One stock forward per image and value, and autograd through them, against one forward per image."""
    _, supervisor = models
    reader = Reader(supervisor, vocabulary)

    def loss(readings):
        return READING_LOSSES[signal](readings, LABELS, 2.0)

    found = reading_phase(reader, images, loss, 0.5, at_a_time)
    boundary = images.boundary()
    rows = [naive(supervisor, reader, boundary[i : i + 1], reader._answer) for i in range(5)]
    value = loss([torch.stack(column) for column in zip(*rows, strict=True)])
    (0.5 * value).backward()
    assert found.loss_lm == pytest.approx(float(value.detach()), rel=1e-9)
    for ours, theirs in zip(found.gradient.tensors(), boundary.tensors(), strict=True):
        assert float(theirs.grad.abs().max()) > 0
        torch.testing.assert_close(ours, theirs.grad, rtol=1e-5, atol=1e-7 * float(theirs.grad.abs().max()))


def test_the_losses_are_their_formulas():
    rng = np.random.default_rng(0)
    p = [rng.dirichlet(np.ones(v), size=5) for v in (3, 4)]
    read = [torch.as_tensor(np.log(x)) for x in p]
    y = LABELS.numpy()
    s = np.array([[sum(np.log(x[i] @ x[j] + 1e-4) for x in p) for j in range(5)] for i in range(5)])
    np.testing.assert_allclose(similarities(read).numpy(), s)
    contrast, verdict, agree = [], {True: [], False: []}, []
    for i in range(5):
        others = [j for j in range(5) if j != i]
        denominator = sum(np.exp(s[i, j] / 6) for j in others)
        positives = [j for j in others if y[j] == y[i]]
        contrast.append(np.mean([-np.log(np.exp(s[i, j] / 6) / denominator) for j in positives]) if positives else 0.0)
        for j in others:
            same = np.prod([x[i] @ x[j] for x in p])
            verdict[bool(y[i] == y[j])].append(-np.log(same if y[i] == y[j] else 1 - same))
            agree += [-s[i, j] / 2] if y[i] == y[j] else []
    found = {name: float(loss(read, LABELS, 6.0)) for name, loss in READING_LOSSES.items()}
    assert found["contrast"] == pytest.approx(np.mean(contrast))
    assert found["verdict"] == pytest.approx((np.mean(verdict[True]) + np.mean(verdict[False])) / 2)
    assert found["agreement"] == pytest.approx(np.mean(agree))
    consensus = [-np.log(x[i, np.argmax(x[y == y[i]].mean(0))]) for x in p for i in range(5)]
    assert found["consensus"] == pytest.approx(np.mean(consensus))


def test_two_views_of_an_image_are_read_alike():
    rng = np.random.default_rng(1)
    p, q = ([rng.dirichlet(np.ones(v), size=5) for v in (3, 4)] for _ in range(2))
    expected = -np.mean([np.log(x[i] @ y[i] + 1e-4) for x, y in zip(p, q, strict=True) for i in range(5)])
    read, of_views = ([torch.as_tensor(np.log(x)) for x in of] for of in (p, q))
    labels, config_ = np.zeros(5, int), config(reading_signal="views")
    assert float(reading_loss(config_, labels, rng, of_views)(read)) == pytest.approx(expected)


def test_a_view_is_a_part_of_the_image_at_its_size():
    pixels = np.arange(40 * 60, dtype=np.uint32).reshape(40, 60) % 251
    image = Image.fromarray(np.stack([pixels.astype(np.uint8)] * 3, -1))
    views = [np.asarray(view(image, np.random.default_rng(seed))) for seed in range(20)]
    assert {v.shape for v in views} == {(40, 60, 3)} and len({v.tobytes() for v in views}) == 20
    assert np.array_equal(views[3], np.asarray(view(image, np.random.default_rng(3))))
    flat = Image.new("RGB", (30, 20), (7, 80, 200))
    assert np.array_equal(np.asarray(view(flat, np.random.default_rng(0))), np.asarray(flat))
    left = Image.fromarray(np.repeat(np.linspace(0, 255, 60).astype(np.uint8)[None], 40, 0)).convert("RGB")
    slopes = [np.sign(float(np.asarray(view(left, np.random.default_rng(seed)))[:, -1].mean()) - 127) for seed in range(20)]
    assert {-1.0, 1.0} == set(slopes), "some are mirrored"


def test_the_probe_finds_what_is_in_an_embedding():
    rng = np.random.default_rng(0)
    labels, shape, color = np.repeat(np.arange(40), 5), *(rng.integers(0, n, 40) for n in (3, 4))
    embeddings = np.eye(3)[shape][labels] + 0.1 * rng.normal(size=(200, 3))
    assert probe_accuracy(embeddings, labels, shape[labels]) > 0.98
    assert probe_accuracy(embeddings, labels, color[labels]) < 0.6, "what is not in it is guessed"


def test_contrast_is_the_usual_supervised_loss_on_these_similarities():
    """Against pytorch-metric-learning's SupConLoss, on embeddings whose products are S."""
    from pytorch_metric_learning.distances import DotProductSimilarity
    from pytorch_metric_learning.losses import SupConLoss

    rng = torch.Generator().manual_seed(0)
    read = [torch.randn(6, v, generator=rng, dtype=torch.float64).log_softmax(-1) for v in (3, 5)]
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    s = similarities(read)
    values, vectors = torch.linalg.eigh(s + 100 * torch.eye(6, dtype=s.dtype))  # the diagonal is left out by both losses
    factors = vectors * values.sqrt()
    theirs = SupConLoss(temperature=3.0, distance=DotProductSimilarity(normalize_embeddings=False))(factors, labels)
    assert float(contrast_loss(read, labels, 3.0)) == pytest.approx(float(theirs), rel=1e-6)


def test_values_of_which_one_begins_another_part_where_they_differ():
    tree = ValueTree.of([[5, 9], [5, 6, 9], [5, 6, 7, 9], [8, 9]])
    assert [(node.suffix, node.children) for node in tree.nodes] == [((), (5, 8)), ((5,), (6, 9)), ((5, 6), (7, 9))]
    assert tree.steps == (((0, 0), (1, 1)), ((0, 0), (1, 0), (2, 1)), ((0, 0), (1, 0), (2, 0)), ((0, 1),))


def test_permuted_weights_are_the_same_numbers_elsewhere():
    layer = torch.nn.Linear(7, 5)
    before = layer.weight.detach().clone()
    permute_weights(layer, 3)
    assert not torch.equal(before, layer.weight) and torch.equal(before.flatten().sort()[0], layer.weight.detach().flatten().sort()[0])


def config(**settings):
    base = {"profile": "smoke", "dataset": "miniature_birds", "method": "m", "seed": 3, "supervisor": "miniature", "image_size": 48}
    return RunConfig(**base | {"reading_signal": "contrast"} | settings)


def test_controls_replace_what_they_say(models, vocabulary):
    _, supervisor = models
    assert make_reader(config(reading_signal="none"), supervisor, vocabulary, 8, torch.device("cpu")) is None
    head = make_reader(config(reading_control="head"), None, vocabulary, supervisor.head.weight.shape[1], torch.device("cpu"))
    assert isinstance(head, AttributeHead) and head.sizes == [4, 3, 2]
    read = [torch.randn(64, 3, generator=torch.Generator().manual_seed(0)).log_softmax(-1)]
    labels = np.repeat(np.arange(16), 4)
    kept = reading_loss(config(), labels, np.random.default_rng(0))(read)
    assert float(kept) == float(contrast_loss(read, torch.as_tensor(labels), 6.0))
    assert float(reading_loss(config(reading_control="labels"), labels, np.random.default_rng(0))(read)) != float(kept)
