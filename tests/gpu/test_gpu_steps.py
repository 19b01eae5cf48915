"""Gradients of whole steps and of readings in bf16 against float64 on a CPU, which computes them by other kernels."""

import math
from contextlib import nullcontext
from unittest.mock import patch

import pytest
import torch
from tiny import IMAGE_SIZE, VOCABULARY, random_answer, random_images

from saga_lib import step, towers, training
from saga_lib.families.loading import load_supervisor
from saga_lib.reading import Reader, contrast_loss, reading_phase
from saga_lib.supervisor.rollouts import Rollouts
from saga_study.methods import make_config
from saga_study.resolving import open_session

CPU = torch.device("cpu")
# ‖g − g_float64‖ / ‖g_float64‖: bf16 rounds by up to 2^-9, and errors add up over the layers. 1 to 5 % were measured by
# tests/lib/test_mixed_precision.py; the bound is twice that.
BOUND = 0.1
METHODS = {
    "metric learning": ("pf", {}),
    "SAGA": ("saga_pf", {}),
    "SAGA in parts": ("saga_pf", {"replay_rows": 3, "replay_pairs": 1, "tower_images": 3}),
    "SAGA, layers computed again": ("saga_pf", {"recompute_layers": True}),
    "SAGA, balanced adapters": ("saga_pf", {"lora_rank": 2, "balance_gradients": True}),
    "oracle": ("oracle", {}),
    "readings": ("contrast_pf", {"reading_images": 3}),
}


def told(supervisor, prompt_ids, images, sampling, generator=None):
    """Return well-formed answers in place of sampled ones, the same on every device and in every precision."""
    count = len(images.merged) // 2 * sampling.group_size
    texts = [random_answer(row, row % 3 > 0) for row in range(count)]
    rows = [supervisor.answer_ids(text) for text in texts]
    width = max(map(len, rows))
    tokens = torch.tensor([row + [supervisor.eos_token_id] * (width - len(row)) for row in rows])
    mask = torch.arange(width) < torch.tensor([len(row) for row in rows])[:, None]
    whole = torch.ones(count, dtype=torch.bool)
    return Rollouts(*(part.to(prompt_ids.device) for part in (tokens, mask)), texts, whole.to(prompt_ids.device))


def in_float64(source, image_size, device, dtype, revision):
    return load_supervisor(source, image_size, device, torch.float64, revision)


def uncast():
    """Within, nothing is computed in bf16."""
    return patch.object(towers, "autocast", lambda device: nullcontext())


def exact_session(config):
    """Return the session on a CPU in float64."""
    with patch.object(training, "load_supervisor", in_float64), uncast():
        session = open_session(config, CPU)
    session.encoder.double(), session.dml_loss.double()
    return session


def gradients(session, metrics):
    """Return a step's gradients as flat tensors: of each part of the model and, as norms, of each loss at its boundary."""
    parts = {"tower": session.encoder.tower, "pooler": session.encoder.pooler, "proxies": session.dml_loss}
    found = {name: [p.grad.flatten().double().cpu() for p in part.parameters() if p.grad is not None] for name, part in parts.items()}
    norms = {name: [torch.tensor([value], dtype=torch.float64)] for name, value in metrics.items() if name.startswith("grad_")}
    norms.pop("grad_over_eps")
    return {name: torch.cat(grads) for name, grads in (found | norms).items() if grads}


def relative_errors(found, expected):
    assert set(found) == set(expected)
    return {name: float((found[name] - grad).norm() / grad.norm().clamp_min(1e-12)) for name, grad in expected.items()}


@pytest.mark.parametrize("method, options", METHODS.values(), ids=METHODS)
def test_gradients_of_a_step_are_those_of_float64(tiny_checkpoint, device, method, options, monkeypatch):
    if "lora_rank" in options:
        pytest.importorskip("peft")
    monkeypatch.setattr(step, "generate_rollouts", told)
    settings = {
        "embedding_dim": 16, "batch_size": 8, "batch_images_per_class": 2, "pairs_per_wave": 4, "contributing_pairs": 2, "audit_every": 0,
        "hard_pairs": 0.0,  # which pairs are nearest depends on the precision
    }  # fmt: skip
    config = make_config("smoke", "miniature_birds", method, 0, supervisor=str(tiny_checkpoint), **settings | options)
    exact, session = exact_session(config), open_session(config, device)
    session.encoder.load_state_dict(exact.encoder.state_dict())  # devices draw other adapters
    with uncast():
        expected = gradients(exact, exact.run_step())
    assert all(p.dtype == torch.float32 for p in session.encoder.parameters())
    assert session.supervisor is None or session.supervisor.head.weight.dtype == torch.bfloat16
    metrics = session.run_step()
    errors = relative_errors(gradients(session, metrics), expected)
    assert all(error < BOUND for error in errors.values()), errors
    later = session.run_step()  # with what the first one left behind
    assert all(math.isfinite(value) for name, value in later.items() if name.startswith(("loss", "grad")))
    if method == "saga_pf":
        assert metrics["contributing_pairs"] == 2 and metrics["grad_lm"] > 0 and metrics["grad_kl"] > 0


def test_readings_are_those_of_float64(tiny_checkpoint, device):
    """Probabilities of every attribute's values, and the gradient of a loss on them at the images' tokens."""
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    tower, supervisor = load_supervisor(tiny_checkpoint, IMAGE_SIZE, CPU, torch.float64)
    pixels = tower.preprocess(random_images(len(labels)))
    with torch.no_grad():
        tokens = tower(pixels)
    reader = Reader(supervisor, VOCABULARY)
    with uncast():
        expected = [reading.detach().exp() for reading in reader(tokens)]
        gradient = reading_phase(reader, tokens, lambda readings: contrast_loss(readings, labels, 6.0), 1.0)

    _, low = load_supervisor(tiny_checkpoint, IMAGE_SIZE, device, torch.bfloat16)
    reader = Reader(low, VOCABULARY)
    same = towers.VisualTokens(tokens.merged.float().to(device), tuple(t.float().to(device) for t in tokens.deepstack))
    with torch.no_grad(), towers.autocast(device):
        read = [reading.double().cpu().exp() for reading in reader(same)]
    for ours, theirs in zip(read, expected, strict=True):
        assert (ours - theirs).abs().max() < 0.05 and (ours.sum(1) - 1).abs().max() < 1e-3
    for at_a_time in (0, 4):
        found = reading_phase(reader, same, lambda readings: contrast_loss(readings, labels.to(device), 6.0), 1.0, at_a_time)
        assert abs(found.loss_lm - gradient.loss_lm) < 0.05 * abs(gradient.loss_lm)
        pairs = zip(found.gradient.tensors(), gradient.gradient.tensors(), strict=True)
        errors = [float((ours.double().cpu() - theirs).norm() / theirs.norm()) for ours, theirs in pairs]
        assert max(errors) < BOUND, errors
