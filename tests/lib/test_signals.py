"""Signals and controls in a run: gradients against one graph of the whole loss, advantages, balance, records, how long a run is."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from saga_lib.common.errors import SagaError
from saga_lib.controls import shuffled_in_group
from saga_lib.datasets.pixels import PixelStore
from saga_lib.encoder import Encoder
from saga_lib.losses import group_advantages, grpo_loss
from saga_lib.monitoring import gradient_summary
from saga_lib.reading import READING_LOSSES, Reader, view, views_loss
from saga_lib.retrieval import recall_at_k
from saga_lib.step import Buffer, RolloutSettings, Wave
from saga_lib.supervisor.rollouts import Rollouts, Sampling
from saga_study.methods import make_config
from saga_study.resolving import open_session, train_run


def load(run):
    return Encoder.from_pretrained(run.folder / "encoder")


def small(checkpoint, method="pf", **options):
    settings = {
        "supervisor": str(checkpoint), "embedding_dim": 16, "batch_size": 8, "batch_images_per_class": 2, "pairs_per_wave": 4,
        "contributing_pairs": 2, "audit_every": 0, "hard_pairs": 0.0, "balance_gradients": False,
    }  # fmt: skip
    return make_config("smoke", "miniature_birds", method, 0, **settings | options)


@pytest.mark.parametrize("options", [
    {"reading_signal": "contrast", "lambda_reading": 0.3, "anchor": "embedding", "lambda_anchor": 0.5},
    {"reading_signal": "verdict", "reading_images": 3, "anchor": "reading"},
    {"reading_signal": "consensus", "reading_answer": "own", "anchor": "truth", "lambda_dml": 0.0},
    {"reading_signal": "agreement", "reading_control": "permuted"},
    {"reading_signal": "contrast", "reading_control": "head"},
], ids=str)  # fmt: skip
def test_a_step_has_the_gradient_of_the_whole_loss_in_one_graph(checkpoint, options, monkeypatch):
    # an untrained model's own descriptions name no attribute
    monkeypatch.setattr(Reader, "describe", lambda reader, images: [reader._answer] * len(images.merged))
    config = small(checkpoint, **options)
    session, plain = open_session(config), open_session(config)
    metrics = session.run_step()  # clips nothing away: the norm stays in the metrics
    indices = next(plain._stream)
    x = plain.encoder.tower(plain.train_pixels[indices])
    labels = torch.as_tensor(plain.benchmark.train.labels[indices])
    z, _ = plain.encoder.pooler(x.merged)
    loss = config.lambda_dml * plain.dml_loss(z, labels)
    if config.anchor != "none":
        anchor = config.lambda_anchor * plain.anchor(z, indices)
        if config.lambda_dml:
            of_anchor, of_loss = (torch.autograd.grad(part, z, retain_graph=True)[0].norm() for part in (anchor, loss))
            assert metrics["ratio_anchor"] == pytest.approx(float(of_anchor / of_loss), rel=1e-3)
            assert metrics["ratio_anchor"] > 0.01
        loss = loss + anchor
    readings = plain.reader(x)
    loss = loss + config.lambda_reading * READING_LOSSES[config.reading_signal](readings, labels, config.reading_temperature)
    loss.backward()
    torch.nn.utils.clip_grad_norm_([p for p in plain.encoder.parameters() if p.grad is not None], config.max_grad_norm)
    for (name, ours), theirs in zip(session.encoder.named_parameters(), plain.encoder.parameters(), strict=True):
        if theirs.grad is not None:
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=2e-3, atol=1e-6, msg=name)
    if config.reading_control == "head":
        for ours, theirs in zip(session.reader.parameters(), plain.reader.parameters(), strict=True):
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-6)
            assert not torch.equal(ours, theirs), "the head is trained"


def test_views_are_read_without_a_gradient_of_their_own(checkpoint, monkeypatch):
    config = small(checkpoint, reading_signal="views", reading_images=3)
    whole, parts = open_session(replace(config, reading_images=0)), open_session(config)
    assert whole.run_step()["loss_reading"] == pytest.approx(parts.run_step()["loss_reading"], rel=1e-5)
    plain = open_session(config)
    indices = next(plain._stream)
    x = plain.encoder.tower(plain.train_pixels[indices])
    z, _ = plain.encoder.pooler(x.merged)
    rng = np.random.default_rng([config.seed, 0])
    with torch.no_grad():
        pixels = plain.encoder.tower.preprocess([view(image, rng) for image in plain.benchmark.train.images(indices)])
        of_views = plain.reader(plain.encoder.tower(pixels))
    loss = plain.dml_loss(z, torch.as_tensor(plain.benchmark.train.labels[indices])) + views_loss(plain.reader(x), of_views)
    loss.backward()
    torch.nn.utils.clip_grad_norm_([p for p in plain.encoder.parameters() if p.grad is not None], config.max_grad_norm)
    for ours, theirs in zip(whole.encoder.parameters(), plain.encoder.parameters(), strict=True):
        if theirs.grad is not None:
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=2e-3, atol=1e-6)


@pytest.mark.parametrize("weight", [0.3, 3.0])
def test_a_balanced_signal_has_its_weight_times_the_metric_gradient(checkpoint, weight):
    session = open_session(small(checkpoint, reading_signal="contrast", balance_gradients=True, lambda_reading=weight))
    metrics = session.run_step()
    assert metrics["ratio_reading"] == pytest.approx(weight) and metrics["grad_reading"] != pytest.approx(weight * metrics["grad_dml"])


def test_shuffled_labels_change_only_the_readings_loss(checkpoint):
    sessions = [open_session(small(checkpoint, reading_signal="contrast", reading_control=control)) for control in ("none", "labels")]
    rows = [session.run_step() for session in sessions]
    assert rows[0]["loss_dml"] == rows[1]["loss_dml"] and rows[0]["loss_reading"] != rows[1]["loss_reading"]


@pytest.mark.parametrize("factor, said", [(float("nan"), "not finite"), (0.0, "vanished")])
def test_a_broken_loss_on_readings_stops_the_run(checkpoint, monkeypatch, factor, said):
    monkeypatch.setitem(READING_LOSSES, "contrast", lambda readings, labels, temperature: 1 + factor * readings[0].sum())
    session = open_session(small(checkpoint, reading_signal="contrast"))
    before = [p.detach().clone() for p in session.encoder.parameters()]
    with pytest.raises(SagaError, match=rf"readings' loss.*{said}"):
        session.run_step()
    assert all(torch.equal(a, b) for a, b in zip(before, session.encoder.parameters(), strict=True))


def test_kinds_of_advantages():
    rewards = torch.tensor([[1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1]], dtype=torch.float64)
    r = rewards.numpy()
    centred, sigma = r - r.mean(1, keepdims=True), r.std(1, keepdims=True)
    grpo = np.where(sigma > 0, centred / (sigma + 1e-4), 0)
    others = np.array([[row[i] - np.delete(row, i).mean() for i in range(4)] for row in r])
    expected = {"grpo": grpo, "dr_grpo": centred, "rloo": others, "right": grpo * (r == 1), "wrong": grpo * (r == 0)}
    for kind, advantages in expected.items():
        np.testing.assert_allclose(group_advantages(rewards, kind=kind).numpy(), advantages, atol=1e-12, err_msg=kind)


@pytest.mark.parametrize("token_mean", ["buffer", "answer"])
def test_the_buffer_makes_l_grpo_a_mean_over_tokens_or_over_answers(token_mean):
    """Of two pairs with mixed rewards, answers of one to four tokens, against the sums written out."""
    lengths, rewards = torch.tensor([4, 1, 2, 3]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    mask = torch.arange(4)[None] < lengths[:, None]
    rollouts = Rollouts(torch.ones(4, 4, dtype=torch.long), mask, ["x"] * 4, torch.ones(4, dtype=torch.bool))
    wave = Wave(np.array([[0, 1], [2, 3]]), np.array([True, False]), rollouts, rewards)
    settings = RolloutSettings(Sampling(2, 4), 2, 2, 1, 1, 0.0, token_mean=token_mean)
    buffer = Buffer.from_waves([wave], settings, 0)
    log_probs = -torch.arange(1.0, 17.0).view(4, 4) * mask
    advantage = group_advantages(rewards).flatten()
    of_answers = (advantage * log_probs.sum(1) / lengths).mean() if token_mean == "answer" else (advantage * log_probs.sum(1)).sum() / 10
    found = grpo_loss(log_probs, buffer.advantages.flatten(), buffer.rollouts.mask)
    assert float(found) == pytest.approx(-float(of_answers), rel=1e-6)


def test_shuffling_within_groups_keeps_every_group(checkpoint):
    advantages = torch.arange(24, dtype=torch.float32).view(6, 4)
    shuffled = shuffled_in_group(advantages, np.random.default_rng(0))
    assert not torch.equal(shuffled, advantages) and torch.equal(shuffled.sort(1)[0], advantages)
    assert len({tuple((row - row.min()).tolist()) for row in shuffled}) > 1, "each group has an order of its own"


def test_epochs_count_images_and_steps_count_steps(checkpoint):
    """A step that draws pairs from several micro-batches uses up as many images as it saw."""
    epochs = {"steps": 0, "epochs": 1, "images_per_class": 4, "pooler": "mean", "max_waves": 3, "contributing_pairs": 500}
    session = open_session(small(checkpoint, "pf_grpo", **epochs, max_micro_batches=3, max_new_tokens=4))
    images, seen = len(session.benchmark.train), 0
    assert session.total_steps == images // 8
    while session.position < session.total_steps:
        session.run_step()
        seen += 1
    assert session.batches_used == 3 * seen and seen == math.ceil(session.total_steps / 3)
    by_steps = open_session(small(checkpoint, "pf_grpo", max_micro_batches=2, max_waves=2, contributing_pairs=500, max_new_tokens=4))
    by_steps.run_step()
    assert (by_steps.position, by_steps.batches_used, by_steps.total_steps) == (1, 2, 3)


def test_the_record_of_a_run_says_how_its_gradients_compared(checkpoint, tmp_path, recwarn):
    config = small(checkpoint, anchor="embedding", reading_signal="contrast", lambda_reading=1e6, max_grad_norm=1e-3)
    run = train_run(config, tmp_path / "run")
    record = json.loads((run.folder / "evaluation.json").read_text())
    rows = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert record["gradients"]["ratio_reading_median"] == pytest.approx(np.median([row["ratio_reading"] for row in rows]))
    assert record["gradients"]["clipped"] == 1.0 and record["gradients"]["grad_over_eps"] > 0 and record["token_drift"] > 0
    assert [w for w in recwarn if "outside 0.1 to 10; change lambda_reading" in str(w.message)]
    assert all(row["loss_anchor"] >= 0 for row in rows)
    recwarn.clear()
    balanced = small(checkpoint, reading_signal="contrast", balance_gradients=True)
    assert gradient_summary(train_run(balanced, tmp_path / "balanced").folder, balanced)["gradients"]["ratio_reading_median"] == 1
    assert not [w for w in recwarn if "outside 0.1" in str(w.message)]


def test_a_run_without_any_gradient_is_no_result(checkpoint, tmp_path):
    config = small(checkpoint, dml_loss="ms")
    for gradients, trained in (([0.0, 0.0], False), ([0.0, 1e-9], True)):
        rows = [{"step": step, "grad_total": value, "grad_over_eps": 1.0} for step, value in enumerate(gradients, 1)]
        (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        if trained:
            assert gradient_summary(tmp_path, config)["gradients"]["clipped"] == 0
        else:
            with pytest.raises(SagaError, match="no step had a gradient"):
                gradient_summary(tmp_path, config)


def test_a_killed_run_with_a_head_and_an_anchor_goes_on_with_the_same_numbers(checkpoint, tmp_path):
    config = small(checkpoint, anchor="embedding", reading_signal="contrast", reading_control="head", steps=4, checkpoint_every=2)
    whole = train_run(config, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train_run(config, tmp_path / "killed", report=lambda row: (_ for _ in ()).throw(KeyboardInterrupt) if row["step"] == 3 else None)
    again = train_run(config, tmp_path / "killed")

    def numbers(run):
        rows = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
        return [{k: v for k, v in row.items() if not k.startswith(("seconds", "peak"))} for row in rows]

    assert numbers(whole) == numbers(again) and load(whole).state_dict().keys() == load(again).state_dict().keys()
    for a, b in zip(load(whole).parameters(), load(again).parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_table_and_the_user_see_the_same_numbers(checkpoint, tmp_path):
    """Evaluation embeds as `Encoder.embed` does: the hits of the record are those of the saved encoder, embedded by a user."""
    config = small(checkpoint, measure_reading=True)
    run = train_run(config, tmp_path / "run")
    record = json.loads((run.folder / "evaluation.json").read_text())
    session = open_session(config)
    test = session.benchmark.test
    embeddings = load(run).embed(test.images())
    assert record["recall"]["1"] == recall_at_k(embeddings, test.labels, (1,))[1]
    session.encoder.load_state_dict(load(run).state_dict())
    chunks = PixelStore(test, session.encoder.tower).chunks(64)
    in_training = np.concatenate([session.encoder.embed_pixels(chunk) for chunk in chunks])
    assert np.array_equal(in_training, embeddings)
    assert np.mean(record["map_at_r_by_class"]) == pytest.approx(record["map_at_r"], abs=1e-5)  # classes of the smoke run are equally large
    assert len(record["map_at_r_by_class"]) == len(test.class_names)
    assert set(record["reading"]) == {"recall", "map_at_r", "accuracy", "consensus", "probe"} and 0 <= record["reading"]["recall"]["1"] <= 1
