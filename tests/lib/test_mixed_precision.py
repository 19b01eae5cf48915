"""Steps of every method in the precision of a GPU, on a CPU: the types fit, and the gradients are those of float32.

On a GPU the language model is bf16, and phases A, B and C run under bf16 autocast over float32 weights. A CPU has neither
by itself, so that a tensor of the wrong type would be found on a GPU only.
"""

import importlib
import math
from dataclasses import replace
from unittest.mock import patch

import pytest
import torch
from test_training import rollouts_of, small_world  # noqa: F401  (fixture)
from tiny import build_tiny_checkpoint, random_answer

from saga_lib import step, training
from saga_lib.common.paths import REPOSITORY
from saga_lib.families.loading import load_supervisor
from saga_lib.reading import Reader
from saga_lib.supervisor.rollouts import generate_rollouts
from saga_study.methods import METHODS, make_config
from saga_study.resolving import open_session

# ‖g − g_float32‖ / ‖g_float32‖ of a step's gradients. bf16 has 8 significant bits, so one rounding errs by up to 2^-9 = 0.2 %, and
# errors add up over the layers. Measured here: 1 to 3 %, and 5 % where GRPO alone trains an InternVL; the bound is twice that.
BOUND = 0.1
OPTIONS = {
    "adapters": {"lora_rank": 2},
    "tower in parts": {"tower_images": 3},
    "replay in parts": {"replay_rows": 3, "replay_pairs": 1},
    "layers computed again": {"recompute_layers": True},
    "two micro-batches": {"max_waves": 2, "max_micro_batches": 2, "contributing_pairs": 6},
    "balanced gradients": {"balance_gradients": True},
    "audit": {"audit_every": 1, "group_size": 2, "contributing_pairs": 1},
}


@pytest.fixture(scope="module")
def checkpoints(checkpoint, tmp_path_factory):
    return {"qwen3_vl": checkpoint, "internvl": build_tiny_checkpoint(tmp_path_factory.mktemp("tiny_internvl"), "internvl")}


@pytest.fixture(scope="module")
def gpu_path():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(REPOSITORY / "benchmarks")
        yield importlib.import_module("without_gpu").gpu_path


def load_in_bf16(source, image_size, device, dtype, revision):
    """Load a language model as a GPU does; a CPU loads it in float32."""
    return load_supervisor(source, image_size, device, torch.bfloat16, revision)


def random_verdicts(supervisor, prompt_ids, images, sampling, draws):
    """Return well-formed answers with random verdicts, the same in any precision; real ones are generated, too, as on a GPU."""
    rows = len(images.merged) // 2 * sampling.group_size
    coins = torch.randint(0, 1000, (rows,), generator=draws.generator).tolist()
    generated = generate_rollouts(supervisor, prompt_ids, images, replace(sampling, max_new_tokens=2, fixed=True))
    assert len(generated.texts) == rows
    return rollouts_of(supervisor, [random_answer(coin, coin % 2 == 0) for coin in coins])


def gradients(session, metrics):
    """Return what a step's gradients are, as flat tensors: of each part of the model and, as norms, of each loss at its boundary."""
    parts = {"tower": session.encoder.tower, "pooler": session.encoder.pooler, "proxies": session.dml_loss}
    found = {name: [p.grad.flatten() for p in part.parameters() if p.grad is not None] for name, part in parts.items()}
    norms = {name: [torch.tensor([value])] for name, value in metrics.items() if name.startswith("grad_")}
    return {name: torch.cat(grads) for name, grads in (found | norms).items() if grads}


def check(config, monkeypatch, gpu_path):
    monkeypatch.setattr(step, "generate_rollouts", random_verdicts)
    # an untrained model's own descriptions name no attribute
    monkeypatch.setattr(Reader, "describe", lambda reader, images: [reader._answer] * len(images.merged))
    exact = open_session(config)
    expected = gradients(exact, exact.run_step())
    with gpu_path(), patch.object(training, "load_supervisor", load_in_bf16):
        session = open_session(config)
        assert all(p.dtype == torch.float32 for p in session.encoder.parameters())
        metrics = session.run_step()
        found = gradients(session, metrics)
        assert bool(session.audited) == bool(config.audit_every)
        later = session.run_step()
    assert set(found) == set(expected)
    errors = {name: float((found[name] - grad).norm() / grad.norm().clamp(min=1e-12)) for name, grad in expected.items()}
    assert all(error < BOUND for error in errors.values()), errors
    for row in (metrics, later):
        assert all(math.isfinite(value) for name, value in row.items() if name.startswith(("loss", "grad")))
    assert all(grad.isfinite().all() for grad in gradients(session, later).values())
    if config.reading_signal != "none":
        assert metrics["grad_reading"] > 0
    if config.language_signal != "none":
        assert metrics["contributing_pairs"] > 0
        assert (metrics["grad_lm"] > 0, metrics["grad_kl"] > 0) == (bool(config.lambda_lm), bool(config.lambda_kl))


def small(checkpoint, method, **options):
    settings = {"embedding_dim": 16, "batch_size": 8, "batch_images_per_class": 2, "pairs_per_wave": 4, "audit_every": 0}
    settings["contributing_pairs"] = 2
    settings["hard_pairs"] = 0.0  # which pairs are nearest depends on the precision
    if method in ("pre-trained", "grpo_alone"):
        settings["embedding_dim"] = 0
    return make_config("smoke", "miniature_birds", method, 0, supervisor=str(checkpoint), **settings | options)


@pytest.mark.parametrize("family", ["qwen3_vl", "internvl"])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_in_the_precision_of_a_gpu(checkpoints, family, method, monkeypatch, gpu_path):
    check(small(checkpoints[family], method), monkeypatch, gpu_path)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_saga_trains_in_the_precision_of_a_gpu_whatever_the_options(checkpoint, options, monkeypatch, gpu_path):
    check(small(checkpoint, "saga_pf", **options), monkeypatch, gpu_path)
