"""The training step sends each gradient where the paper says, and a run survives being killed."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny import IMAGE_SIZE, VOCABULARY, random_answer, random_images, random_item, rollouts_of
from torch import nn

from saga_lib import controls, monitoring, records, step, training
from saga_lib.common.errors import SagaError
from saga_lib.common.files import read_json, write_json
from saga_lib.common.paths import REPOSITORY
from saga_lib.encoder import Encoder
from saga_lib.families.loading import load_supervisor
from saga_lib.families.timm_towers import TimmTower
from saga_lib.losses import group_advantages
from saga_lib.pairs import PairStream
from saga_lib.prompts import comparison_prompt
from saga_lib.step import Buffer, MicroBatch, ReplaySettings, RolloutSettings, replay_phase, rollout_phase, tower_backward
from saga_lib.supervisor.caches import PromptRecord
from saga_lib.supervisor.replay import attribute_tokens, replay_log_probs, teacher_attention
from saga_lib.supervisor.rollouts import Rollouts
from saga_lib.towers import VisualTokens
from saga_study import resolving
from saga_study.datasets.loading import load_benchmark
from saga_study.methods import make_config
from saga_study.miniature import world
from saga_study.resolving import open_session, train_run
from saga_study.runs import packing, same_numbers, store
from saga_study.runs.__main__ import main

GROUP = 4
TIMINGS = ("seconds", "seconds_a", "seconds_b", "seconds_c", "seconds_audit", "tokens_per_second", "peak_gib")


@pytest.fixture(scope="module")
def prompt_ids(supervisor):
    return supervisor.prompt_ids(comparison_prompt(VOCABULARY))


@pytest.fixture
def encoder(loaded):
    torch.manual_seed(0)
    encoder = Encoder(loaded[0], "attention", 16).double()
    nn.init.normal_(encoder.pooler.query)  # far from uniform attention
    encoder.zero_grad(set_to_none=True)
    return encoder.requires_grad_(True)


@pytest.fixture(scope="module")
def pixels(loaded):
    return loaded[0].preprocess(random_images(6)).double()


def buffer_of(supervisor, pairs, rewards):
    """Return a buffer of different answers, some of them cut, for `pairs` (K, 2) with `rewards` (K, G)."""
    rewards = torch.tensor(rewards, dtype=torch.float32)
    texts = [random_answer(seed)[: 10**6 if seed % 3 else 400] for seed in range(rewards.numel())]
    same = np.zeros(len(pairs), dtype=bool)
    return Buffer(np.asarray(pairs), same, rollouts_of(supervisor, texts), rewards, group_advantages(rewards))


PAIRS = [[0, 3], [4, 1], [3, 5]]  # image 3 in two pairs, image 2 in none
REWARDS = [[1, 0, 0, 1], [0, 0, 1, 0], [1, 1, 0, 1]]


@pytest.fixture(scope="module")
def buffer(supervisor):
    return buffer_of(supervisor, PAIRS, REWARDS)


def replayed(encoder, supervisor, prompt_ids, pixels, buffer, lambda_kl=0.0, replay_pairs=1):
    tokens = encoder.tower(pixels)
    return replay_phase(encoder, supervisor, prompt_ids, tokens, buffer, ReplaySettings(1, 1.0, lambda_kl, replay_pairs))


def language_parameters(supervisor):
    return [*supervisor.language_model.parameters(), *supervisor.head.parameters()]


# ----------------------------------------------------------------------------------- where gradients go


def test_grpo_reaches_the_tower_only(encoder, supervisor, prompt_ids, pixels, buffer):
    batch_tokens = encoder.tower(pixels)
    result = replay_phase(encoder, supervisor, prompt_ids, batch_tokens, buffer, ReplaySettings(1, 1.0, 0.0))
    assert all(p.grad is None for p in encoder.parameters()), "nothing reaches parameters before the tower backward"
    assert result.loss_kl == result.grad_kl == 0
    batch = MicroBatch(np.arange(6), np.zeros(6), batch_tokens, torch.zeros_like(batch_tokens.merged), 0.0, None)
    tower_backward([batch], result.gradient)
    assert all(p.grad is not None for p in encoder.tower.parameters())
    assert sum(float(p.grad.norm() > 0) for p in encoder.tower.parameters()) > 0.9 * len(
        list(encoder.tower.parameters())
    )
    assert all(p.grad is None for p in encoder.pooler.parameters())
    assert all(p.grad is None for p in language_parameters(supervisor))


def test_grpo_gradient_equals_autograd_through_everything(encoder, supervisor, prompt_ids, pixels, buffer):
    """Boundary tensors and parts are bookkeeping: the result is the gradient of Eqs. 4-5."""
    result = replayed(encoder, supervisor, prompt_ids, pixels, buffer)
    images = encoder.tower(pixels)
    batch = MicroBatch(np.arange(6), np.zeros(6), images, torch.zeros_like(images.merged), 0.0, None)
    tower_backward([batch], result.gradient)
    ours = [p.grad.clone() for p in encoder.tower.parameters()]

    encoder.zero_grad(set_to_none=True)
    rollouts = buffer.rollouts
    total = 0.0
    images = encoder.tower(pixels)
    for k, (a, b) in enumerate(PAIRS):
        rewards = torch.tensor(REWARDS[k], dtype=torch.float64)
        advantages = (rewards - rewards.mean()) / (rewards.std(correction=0) + 1e-4)
        for g in range(GROUP):
            row = slice(k * GROUP + g, k * GROUP + g + 1)
            pair = images[torch.tensor([a, b])]
            log_probs, _ = replay_log_probs(supervisor, prompt_ids, pair, rollouts.tokens[row], rollouts.mask[row])
            total = total - advantages[g] * log_probs.sum()
    loss = total / rollouts.mask.sum()
    loss.backward()
    assert result.loss_lm == pytest.approx(float(loss.detach()), rel=1e-6)
    for mine, parameter in zip(ours, encoder.tower.parameters(), strict=True):
        torch.testing.assert_close(mine, parameter.grad, rtol=1e-5, atol=1e-7 * float(parameter.grad.abs().max() + 1))


def test_kl_reaches_the_pooler_attention_only(encoder, supervisor, prompt_ids, pixels, buffer):
    without = replayed(encoder, supervisor, prompt_ids, pixels, buffer)
    with_kl = replayed(encoder, supervisor, prompt_ids, pixels, buffer, lambda_kl=1.0)
    for a, b in zip(without.gradient.tensors(), with_kl.gradient.tensors(), strict=True):
        assert torch.equal(a, b)
    assert with_kl.loss_kl > 0
    assert encoder.pooler.query.grad.norm() > 0 and encoder.pooler.key.weight.grad.norm() > 0
    assert encoder.pooler.out.weight.grad is None
    assert all(p.grad is None for p in encoder.tower.parameters())
    assert all(p.grad is None for p in language_parameters(supervisor))
    norm = torch.cat([p.grad.flatten() for p in encoder.pooler.parameters() if p.grad is not None]).norm()
    assert with_kl.grad_kl == pytest.approx(float(norm), rel=1e-6)


def test_kl_averages_both_images_over_right_answers(encoder, supervisor, prompt_ids, pixels, buffer):
    result = replayed(encoder, supervisor, prompt_ids, pixels, buffer, lambda_kl=1.0, replay_pairs=2)
    divergences = []
    with torch.no_grad():
        images = encoder.tower(pixels)
        beta = encoder.pooler(images.merged)[1].double()
        for k, pair in enumerate(PAIRS):
            for g in range(GROUP):
                row = k * GROUP + g
                ids = supervisor.answer_ids(buffer.rollouts.texts[row])
                tokens = torch.tensor([ids])
                _, tap = replay_log_probs(
                    supervisor, prompt_ids, images[torch.tensor(pair)], tokens, torch.ones_like(tokens).bool(), 1
                )
                teacher = teacher_attention(supervisor, tap, 0, ids, prompt_ids)
                if REWARDS[k][g] and teacher is not None:
                    teacher = teacher.double()
                    divergences.append((teacher * (teacher / beta[pair]).log()).sum())
    assert len(divergences) > 3
    assert result.loss_kl == pytest.approx(float(torch.stack(divergences).mean()), rel=1e-4)


def test_kl_of_mean_pooling_is_harmless(loaded, supervisor, prompt_ids, pixels, buffer):
    mean = Encoder(loaded[0], "mean", 16).double()
    result = replayed(mean, supervisor, prompt_ids, pixels, buffer, lambda_kl=1.0)
    assert all(p.grad is None for p in mean.pooler.parameters())
    assert result.grad_kl == 0


def test_undecided_groups_contribute_nothing(encoder, supervisor, prompt_ids, pixels):
    rewards = [[1, 0, 0, 1], [1, 1, 1, 1]]
    mixed = buffer_of(supervisor, [[0, 1], [2, 3]], rewards)
    gradient = replayed(encoder, supervisor, prompt_ids, pixels, mixed, replay_pairs=2).gradient
    for tensor in gradient.tensors():
        assert (tensor[:2].flatten(1).norm(dim=1) > 0).all()
        assert (tensor[2:] == 0).all()


def test_replay_in_parts_gives_the_same_gradient(encoder, supervisor, prompt_ids, pixels, buffer):
    """|T| of Eq. 5 counts the tokens of the whole buffer, however many pairs are replayed at a time."""
    one = replayed(encoder, supervisor, prompt_ids, pixels, buffer, 1.0, replay_pairs=1)
    for count in (2, 3):
        several = replayed(encoder, supervisor, prompt_ids, pixels, buffer, 1.0, replay_pairs=count)
        assert several.loss_lm == pytest.approx(one.loss_lm, rel=1e-9)
        assert several.loss_kl == pytest.approx(one.loss_kl, rel=1e-5)
        for a, b in zip(one.gradient.tensors(), several.gradient.tensors(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("pairs_at_once, rows_at_once", [(1, 1), (1, 3), (2, 2), (3, 4)])
def test_replay_row_by_row_gives_the_same_gradient(encoder, supervisor, prompt_ids, pixels, buffer, pairs_at_once, rows_at_once):
    """Rows are back-propagated to the prompt's keys and values, which then carry their sum through the prompt."""
    tokens = encoder.tower(pixels)
    results = []
    for rows in (0, rows_at_once):
        encoder.zero_grad(set_to_none=True)
        settings = ReplaySettings(1, 1.0, 1.0, pairs_at_once, rows)
        result = replay_phase(encoder, supervisor, prompt_ids, tokens, buffer, settings)
        results.append((result, [p.grad.clone() for p in encoder.pooler.parameters() if p.grad is not None]))
    (whole, pooler), (parts, pooler_in_parts) = results
    assert parts.loss_lm == pytest.approx(whole.loss_lm, rel=1e-9)
    assert parts.loss_kl == pytest.approx(whole.loss_kl, rel=1e-6) and whole.loss_kl > 0
    for a, b in zip(whole.gradient.tensors(), parts.gradient.tensors(), strict=True):
        assert a.norm() > 0
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-12)
    for a, b in zip(pooler, pooler_in_parts, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("rows_at_once", [0, 1, 3])
def test_recomputed_layers_give_the_same_gradient(encoder, supervisor, prompt_ids, pixels, buffer, rows_at_once, monkeypatch):
    """Kept are the layers' inputs alone; what is computed again is what was computed first."""
    layers, calls, tokens = supervisor.language_model.layers, [], encoder.tower(pixels)
    counted = layers[1].register_forward_pre_hook(lambda *_: calls.append(1))
    results = []
    for recomputes in (False, True):
        monkeypatch.setattr(supervisor, "recomputes", recomputes)
        encoder.zero_grad(set_to_none=True)
        calls.clear()
        settings = ReplaySettings(1, 1.0, 1.0, 1, rows_at_once)
        result = replay_phase(encoder, supervisor, prompt_ids, tokens, buffer, settings)
        results.append((result, len(calls)))
    counted.remove()
    (kept, _), (computed, _) = results
    assert (computed.loss_lm, computed.loss_kl) == pytest.approx((kept.loss_lm, kept.loss_kl), rel=1e-9)
    for a, b in zip(kept.gradient.tensors(), computed.gradient.tensors(), strict=True):
        assert a.norm() > 0
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-13)
    assert not any("forward" in vars(layer) for layer in layers)  # the classes' own again
    with torch.no_grad():
        assert not isinstance(supervisor.prefill(prompt_ids, tokens[torch.tensor([0, 1])]).cache, PromptRecord)


def test_recomputed_layers_keep_little(encoder, supervisor, prompt_ids, pixels, buffer, monkeypatch):
    tokens, kept = encoder.tower(pixels), {}
    for recomputes in (False, True):
        monkeypatch.setattr(supervisor, "recomputes", recomputes)
        boundary, sizes = tokens.boundary(), []
        answers = buffer.rollouts.select(torch.arange(GROUP))
        with torch.autograd.graph.saved_tensors_hooks(lambda t, sizes=sizes: sizes.append(t.nbytes) or t, lambda t: t):
            replay_log_probs(supervisor, prompt_ids, boundary[torch.tensor(PAIRS[0])], answers.tokens, answers.mask)
        kept[recomputes] = sum(sizes)
    assert 0 < kept[True] < 0.2 * kept[False]


def test_images_outside_the_buffer_get_no_language_gradient(encoder, supervisor, prompt_ids, pixels, buffer):
    gradient = replayed(encoder, supervisor, prompt_ids, pixels, buffer).gradient
    assert (gradient.merged[2] == 0).all()
    assert (gradient.merged[[0, 1, 3, 4, 5]].flatten(1).norm(dim=1) > 0).all()


def test_tower_backward_over_micro_batches_equals_one_batch(encoder, pixels):
    def gradients(sizes):
        encoder.zero_grad(set_to_none=True)
        noise = torch.Generator().manual_seed(0)
        whole = encoder.tower(pixels)
        dml, *language = [
            torch.randn(t.shape, generator=noise, dtype=t.dtype) for t in (whole.merged, *whole.tensors())
        ]
        batches, start = [], 0
        for size in sizes:
            rows = slice(start, start + size)
            batches.append(MicroBatch(np.arange(size), np.zeros(size), encoder.tower(pixels[rows]), dml[rows], 0.0, None))
            start += size
        tower_backward(batches, VisualTokens(language[0], tuple(language[1:])))
        return [p.grad.clone() for p in encoder.tower.parameters()]

    for a, b in zip(gradients([6]), gradients([4, 2]), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)


def test_a_small_step_raises_rewarded_answers_over_the_others(loaded, supervisor, prompt_ids, pixels):
    """The sign of advantage and loss: gradient descent on the tower must make right answers likelier than wrong ones."""
    encoder = Encoder(loaded[0], "mean", 0)
    encoder.zero_grad(set_to_none=True)
    buffer = buffer_of(supervisor, [[0, 1]], [[1, 0, 0, 1]])
    before = {name: p.detach().clone() for name, p in encoder.tower.named_parameters()}

    def mean_log_probs():
        with torch.no_grad():
            rollouts = buffer.rollouts
            log_probs, _ = replay_log_probs(
                supervisor, prompt_ids, encoder.tower(pixels[:2]), rollouts.tokens, rollouts.mask
            )
        return log_probs.sum(1)

    old = mean_log_probs()
    tokens = encoder.tower(pixels[:2])
    result = replay_phase(encoder, supervisor, prompt_ids, tokens, buffer, ReplaySettings(1, 1.0, 0.0))
    tower_backward(
        [MicroBatch(np.arange(2), np.zeros(2), tokens, torch.zeros_like(tokens.merged), 0.0, None)], result.gradient
    )
    norm2 = sum(float(p.grad.square().sum()) for p in encoder.tower.parameters())
    rate = 1e-4 / norm2  # smaller steps drown in the float32 norms of the model
    try:
        with torch.no_grad():
            for p in encoder.tower.parameters():
                p -= rate * p.grad
        change = mean_log_probs() - old
    finally:
        with torch.no_grad():
            for name, p in encoder.tower.named_parameters():
                p.copy_(before[name])
        encoder.zero_grad(set_to_none=True)
    assert change[[0, 3]].sum() > change[[1, 2]].sum()  # all four may fall together: advantages are relative
    gain = float((buffer.advantages[0].double() * change).sum() / buffer.rollouts.mask.sum())
    assert gain == pytest.approx(rate * norm2, rel=0.05), "the loss falls by the step times its squared gradient"


def test_dml_phase_leaves_its_gradient_at_the_boundary(encoder, pixels):
    labels = np.array([0, 0, 1, 1, 2, 2])
    loss = training.make_dml_loss("pa", 3, 16).double()
    batch = step.dml_phase(encoder, step.MetricLosses(loss, 0.5), pixels, np.arange(6), labels)
    assert all(p.grad is None for p in encoder.tower.parameters())
    assert encoder.pooler.query.grad.norm() > 0 and loss.loss.proxies.grad.norm() > 0
    tower_backward([batch], None)
    ours = [None if p.grad is None else p.grad.clone() for p in encoder.parameters()]
    encoder.zero_grad(set_to_none=True)
    loss.zero_grad()
    total = loss(encoder(pixels)[0], torch.as_tensor(labels))
    (0.5 * total).backward()
    assert batch.loss == pytest.approx(float(total.detach()))
    for a, p in zip(ours, encoder.parameters(), strict=True):
        assert (a is None) == (p.grad is None)
        if a is not None:
            torch.testing.assert_close(a, p.grad, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("images", [1, 4, 100])
def test_a_tower_that_computes_again_has_the_same_gradient(encoder, pixels, images):
    """Between the phases it keeps no graph, and no more than `images` images at a time have one in its backward."""
    labels, loss = np.array([0, 0, 1, 1, 2, 2]), training.make_dml_loss("pa", 3, 16).double()
    noise = torch.Generator().manual_seed(0)
    language = [torch.randn(t.shape, generator=noise, dtype=t.dtype) for t in encoder.tower(pixels).tensors()]
    batches, gradients, seen = [], [], []
    counted = encoder.tower.register_forward_pre_hook(lambda _, given: seen.append((len(given[0]), torch.is_grad_enabled())))
    for tower_images in (0, images):
        encoder.zero_grad(set_to_none=True)
        seen.clear()
        batches.append(step.dml_phase(encoder, step.MetricLosses(loss, 0.5), pixels, np.arange(6), labels, tower_images))
        tower_backward(batches[-1:], VisualTokens(language[0], tuple(language[1:])))
        gradients.append([p.grad.clone() for p in encoder.parameters()])
    counted.remove()
    kept, again = batches
    parts = [min(images, 6 - start) for start in range(0, 6, images)]
    assert seen == [*((size, False) for size in parts), *((size, True) for size in parts)]
    assert kept.tokens.merged.requires_grad and not any(t.requires_grad for t in again.tokens.tensors())
    for a, b in zip(kept.tokens.tensors(), again.tokens.tensors(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)


# -------------------------------------------------------------------------------------- dynamic sampling


def scripted_phase(monkeypatch, script, labels_of_batches, **settings):
    """Run `rollout_phase` with answers by script: per wave, per pair, one letter per rollout.

    r right, w wrong, j no JSON, t cut at the token limit. Returns the buffer, the batches and the images of each wave.
    """
    config = make_config("smoke", "miniature_birds", "saga_pf", 0, group_size=GROUP, **settings)
    drawn, shown, waves = [], [], iter(script)
    draw = PairStream.draw

    def recorded(self, count):
        drawn.append(draw(self, count))
        return drawn[-1]

    def answers(supervisor, prompt_ids, images, *args):
        pairs, same = drawn[-1]
        shown.append((images.merged.view(len(pairs), 2), same))
        texts, finished = [], []
        for wanted, letters in zip(same, next(waves), strict=True):
            for letter in letters:
                verdict = {"r": bool(wanted), "w": not wanted}.get(letter)
                text = (
                    random_answer(0, verdict) if verdict is not None else {"j": "I cannot", "t": '{"item_1": {'}[letter]
                )
                texts.append(text)
                finished.append(letter != "t")
        tokens = torch.ones(len(texts), 3, dtype=torch.long)
        return Rollouts(tokens, torch.ones_like(tokens, dtype=torch.bool), texts, torch.tensor(finished))

    monkeypatch.setattr(PairStream, "draw", recorded)
    monkeypatch.setattr(step, "generate_rollouts", answers)
    batches = []
    for number, labels in enumerate(labels_of_batches):
        merged = torch.arange(len(labels), dtype=torch.float32)[:, None, None] + 100 * number  # an image's name
        batches.append(MicroBatch(np.arange(len(labels)), np.asarray(labels), VisualTokens(merged), merged, 0.0, torch.eye(len(labels))))
    queue = iter(batches)
    buffer, used = rollout_phase(
        SimpleNamespace(eos_token_id=0), torch.zeros(1, dtype=torch.long), VOCABULARY.verdict_key,
        lambda: next(queue), RolloutSettings.from_config(config), np.random.default_rng(0),
    )  # fmt: skip
    return buffer, used, shown


LABELS = np.repeat(np.arange(4), 4)


def test_dynamic_sampling_stops_at_k_contributing_pairs(monkeypatch):
    script = [["rrrr", "wwww", "rwwr", "rrrr"], ["wrww", "rrrj", "rrrr", "jtww"], ["rwrw"] * 4]
    buffer, batches, shown = scripted_phase(
        monkeypatch, script, [LABELS], contributing_pairs=3, pairs_per_wave=4, max_waves=5
    )
    assert len(shown) == 2 and len(batches) == 1
    assert buffer.rewards.tolist() == [[1, 0, 0, 1], [0, 1, 0, 0], [1, 1, 1, 0]]
    torch.testing.assert_close(buffer.advantages, group_advantages(buffer.rewards))
    statistics = buffer.statistics
    assert statistics["pairs_drawn"] == 8 and statistics["contributing_pairs"] == 3
    assert statistics["contributing_fraction"] == 3 / 8
    assert statistics["reward_mean"] == pytest.approx(np.mean([4, 0, 2, 4, 1, 3, 4, 0]) / 4)
    assert statistics["json_valid"] == pytest.approx(29 / 32)
    assert statistics["truncated"] == pytest.approx(1 / 32)
    assert statistics["rollout_tokens"] == 32 * 3
    rewards = np.array([4, 0, 2, 4, 1, 3, 4, 0]) / 4
    same = np.concatenate([same for _, same in shown])
    assert statistics["verdict_accuracy_same"] == pytest.approx(rewards[same].mean())
    assert statistics["verdict_accuracy_different"] == pytest.approx(rewards[~same].mean())


def test_dynamic_sampling_stops_at_max_waves_and_goes_on_with_what_there_is(monkeypatch):
    script = [["rrrr", "wwww", "rwwr", "rrrr"], ["rrrr"] * 4, ["rrrr"] * 4]
    buffer, _, shown = scripted_phase(
        monkeypatch, script, [LABELS], contributing_pairs=3, pairs_per_wave=4, max_waves=2
    )
    assert len(shown) == 2
    assert buffer.rewards.shape == (1, GROUP) and buffer.statistics["contributing_pairs"] == 1
    assert buffer.rollouts.tokens.shape[0] == GROUP


def test_no_contributing_pair_is_an_empty_buffer(monkeypatch):
    buffer, _, _ = scripted_phase(
        monkeypatch, [["rrrr"] * 4], [LABELS], contributing_pairs=3, pairs_per_wave=4, max_waves=1
    )
    assert len(buffer.pairs) == 0 and buffer.rollouts is None and buffer.statistics["contributing_pairs"] == 0


def test_pairs_are_never_drawn_twice_and_may_run_out(monkeypatch):
    script = [["rrrr"] * 4, ["rrrr"] * 2, []]
    _, _, shown = scripted_phase(
        monkeypatch, script, [[0, 0, 1, 1]], contributing_pairs=3, pairs_per_wave=4, max_waves=5
    )
    pairs = [frozenset(pair) for images, _ in shown for pair in images.tolist()]
    assert len(pairs) == len(set(pairs)) == 6  # all there are of four images


def test_refilled_micro_batches_index_the_right_images(monkeypatch):
    script = [["rwrw", "rrrr", "rrrr", "wrrr"], ["rrrr", "rwww", "rrww", "wwww"], ["rrrw", "rrrr", "rrrr", "wwww"]]
    labels = [LABELS, np.repeat(np.arange(4, 8), 4)]
    buffer, batches, shown = scripted_phase(
        monkeypatch, script, labels, contributing_pairs=9, pairs_per_wave=4, max_waves=3, max_micro_batches=2
    )
    assert len(batches) == 2 and len(shown) == 3
    images = VisualTokens.cat([batch.tokens for batch in batches]).merged[:, 0, 0]
    expected = [shown[w][0][p].tolist() for w, p in ((0, 0), (0, 3), (1, 1), (1, 2), (2, 0))]
    assert images[torch.as_tensor(buffer.pairs)].tolist() == expected
    all_labels = np.concatenate(labels)
    assert (buffer.same_class == (all_labels[buffer.pairs[:, 0]] == all_labels[buffer.pairs[:, 1]])).all()
    assert (buffer.pairs[2:] >= 16).all(), "waves after the refill use the new micro-batch"


def test_a_single_micro_batch_goes_on_with_its_unused_pairs(monkeypatch):
    script = [["rrrr"] * 4, ["rwrw"] * 4]
    buffer, batches, _ = scripted_phase(
        monkeypatch, script, [LABELS], contributing_pairs=4, pairs_per_wave=4, max_waves=2
    )
    assert len(batches) == 1 and len(buffer.pairs) == 4


def test_a_surplus_of_contributing_pairs_is_cut_without_favouring_a_kind(monkeypatch):
    """Were same-class pairs scored first, they alone would fill the buffer."""
    buffer, _, _ = scripted_phase(
        monkeypatch, [["rwrw"] * 8], [LABELS], contributing_pairs=4, pairs_per_wave=8, max_waves=1
    )
    assert buffer.same_class.sum() == 2
    assert buffer.statistics["contributing_fraction"] == 1


# ------------------------------------------------------------------------------------------------- oracle


@pytest.fixture
def oracle(supervisor):
    split = SimpleNamespace(attributes=lambda index: random_item(int(index)))
    batch = SimpleNamespace(labels=np.array([0, 0, 1, 1]), indices=np.array([10, 10, 12, 13]))
    return controls.oracle_phase(supervisor, VOCABULARY, split, batch, 4, np.random.default_rng(0)), batch


def test_the_oracle_masks_exactly_the_attribute_values(supervisor, oracle):
    buffer, batch = oracle
    assert (buffer.advantages == 1).all() and (buffer.rewards == 1).all() and buffer.group_size == 1
    for row, (a, b) in enumerate(buffer.pairs):
        items = random_item(int(batch.indices[a])), random_item(int(batch.indices[b]))
        wanted = [item[name] for item in items for name in VOCABULARY.attribute_names]
        tokens, mask = buffer.rollouts.tokens[row], buffer.rollouts.mask[row]
        assert [supervisor.decode([t]) for t in tokens[mask].tolist()] == wanted
        assert supervisor.decode(tokens.tolist()) == buffer.rollouts.texts[row]


@pytest.mark.parametrize("replay_pairs", [1, 4])
def test_the_oracle_replays_every_attribute_value(encoder, supervisor, prompt_ids, pixels, oracle, replay_pairs):
    buffer, _ = oracle
    result = replayed(encoder, supervisor, prompt_ids, pixels[:4], buffer, replay_pairs=replay_pairs)
    with torch.no_grad():
        images = encoder.tower(pixels[:4])[torch.as_tensor(buffer.pairs.reshape(-1))]
        everywhere = torch.ones_like(buffer.rollouts.mask)
        log_probs, _ = replay_log_probs(supervisor, prompt_ids, images, buffer.rollouts.tokens, everywhere)
    assert result.loss_lm == pytest.approx(-float(log_probs[buffer.rollouts.mask].mean()), rel=1e-6)


def test_the_oracle_teacher_sees_every_attribute(encoder, supervisor, prompt_ids, pixels, oracle, monkeypatch):
    seen = []

    def recorded(supervisor, tap, row, ids, prompt, keys):
        seen.append(len(attribute_tokens(supervisor, ids)))
        return teacher_attention(supervisor, tap, row, ids, prompt, keys)

    monkeypatch.setattr(step, "teacher_attention", recorded)
    replayed(encoder, supervisor, prompt_ids, pixels[:4], oracle[0], lambda_kl=1.0)
    assert seen == [2 * len(VOCABULARY.attributes)] * 4


# ------------------------------------------------------------------------------------------- whole runs


@pytest.fixture(scope="module", autouse=True)
def small_world(tmp_path_factory):
    """Miniature birds with eight classes per half, rendered below a temporary SAGA_DATA."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAGA_DATA", str(tmp_path_factory.mktemp("data")))
        spec = replace(world.BENCHMARKS["miniature_birds"], train_classes=8, test_classes=8)
        patch.setitem(world.BENCHMARKS, "miniature_birds", spec)
        yield


@pytest.fixture
def smoke(checkpoint):
    """Make a smoke configuration that uses the tiny supervisor."""

    def make(method, **overrides):
        settings = {"embedding_dim": 16, "batch_size": 16, "pairs_per_wave": 4} | overrides
        return make_config("smoke", "miniature_birds", method, 0, supervisor=str(checkpoint), **settings)

    return make


@pytest.fixture
def random_verdicts(monkeypatch):
    """Let rollouts be well-formed answers whose verdict is a coin toss of the step's own generator."""

    def answers(supervisor, prompt_ids, images, sampling, draws):
        rows = images.merged.shape[0] // 2 * sampling.group_size
        coins = torch.randint(0, 1000, (rows,), generator=draws.generator).tolist()
        return rollouts_of(supervisor, [random_answer(coin, coin % 2 == 0) for coin in coins])

    monkeypatch.setattr(step, "generate_rollouts", answers)


def record(folder):
    """Return a run's metrics and evaluation without what depends on the clock."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    metrics = [{k: v for k, v in row.items() if k not in TIMINGS} for row in rows]
    evaluation = {k: v for k, v in read_json(folder / "evaluation.json").items() if k != "seconds"}
    return metrics, evaluation


def test_a_finished_run_is_reproduced_from_its_config(smoke, tmp_path, capsys):
    config = smoke("saga_pf")
    train_run(config, tmp_path / "run")
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert main(["--check", str(tmp_path / "run")]) == 0
    assert "reproduced, every number identical" in capsys.readouterr().out
    assert before == {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}

    evaluation = read_json(tmp_path / "run" / "evaluation.json")
    recall = evaluation["recall"] | {"1": evaluation["recall"]["1"] + 1e-9}
    changed = packing._packed_hits(evaluation | {"recall": recall, "seconds": 1e6})  # a packed record is as good
    assert changed["hits_at_1"] != evaluation["hits_at_1"]
    write_json(tmp_path / "run" / "evaluation.json", changed)
    content = read_json(tmp_path / "run" / "config.json")
    write_json(tmp_path / "run" / "config.json", content | {"code": "older"})
    assert main(["--check", str(tmp_path / "run")]) == 1
    said = capsys.readouterr().out
    assert "code: older then" in said and "recall: " in said and "run: 2 differences" in said and "seconds" not in said
    (tmp_path / "run" / "evaluation.json").unlink()
    assert main(["--check", str(tmp_path / "run")]) == 2
    assert "holds no finished run" in capsys.readouterr().err


def test_code_that_computes_the_same_numbers_keeps_the_runs_of_a_study(smoke, results, monkeypatch, tmp_path, capsys):
    """Otherwise a comment would cost hours; and a changed number must not pass for an old one."""
    for module in (records, same_numbers):
        monkeypatch.setattr(module, "SAME_NUMBERS", tmp_path / "same_numbers.json")
    older = tmp_path / "older"
    for package in ("saga_lib", "saga_study"):
        shutil.copytree(REPOSITORY / package, older / package)
    monkeypatch.setattr(same_numbers, "_checked_out", lambda commit, folder, code: older)
    config = smoke("saga_pf")
    path = results / "S" / "runs" / store.run_folder("S", config).name
    train_run(config, path)
    write_json(path / "config.json", read_json(path / "config.json") | {"code": "0older", "exact_code": "0older"})
    write_json(results / "S" / "manifest.json", {"code": "0older", "commit": "0ld"})
    assert store.load_finished("S", [config]) == {}
    losses = older / "saga_lib" / "losses.py"
    text = losses.read_text()
    assert text.count("return potential.sum() / max(") == 1
    losses.write_text(text.replace("return potential.sum() / max(", "return 1.0001 * potential.sum() / max("))
    try:
        assert main(["--same-numbers", "S"]) == 1 and not (tmp_path / "same_numbers.json").exists()
        said = capsys.readouterr().out
        assert ": 3 steps differ\nstep 1, " in said and "computes other numbers" in said and "seconds" not in said
        losses.write_text(text + "# another comment\n")
        assert main(["--same-numbers", "S"]) == 0
        assert "1 runs, every number identical" in capsys.readouterr().out
        (entry,) = read_json(tmp_path / "same_numbers.json")
        assert (entry["code"], entry["same_as"]) == (records.exact_code_digest(), "0older") and [*entry["by"]] == [path.name]
        assert records.code_digest() == "0older" and len(store.load_finished("S", [config])) == 1
        assert main(["--same-numbers", "S"]) == 0 and "nothing to show" in capsys.readouterr().out
        assert main(["--same-numbers", "T"]) == 2 and "takes a study" in capsys.readouterr().err
    finally:
        records.code_digest.cache_clear()


def test_a_further_measure_is_no_difference_and_a_lost_one_is():
    before, now = [{"step": 1, "loss": 2.0}, {}], [{"step": 1, "loss": 2.0, "drift": 0.1}, {}]
    assert same_numbers._differences(before, now) == []
    assert same_numbers._differences(now, before) == ["step 1, drift: 0.1 before, null now"]


def test_a_later_commit_is_compared_on_methods_that_were_added_later(smoke, tmp_path):
    made = {"pf": {"code": "first", "exact_code": "first"}, "ms": {"code": "first", "exact_code": "later"}, "pa": {"code": "other"}}
    for method, codes in made.items():
        write_json(tmp_path / "runs" / method / "config.json", {"config": smoke(method).to_dict()} | codes)
        write_json(tmp_path / "runs" / method / "evaluation.json", {})
    for later, methods in ((False, ["pf"]), (True, ["ms", "pf"])):
        assert [config.method for config in same_numbers._one_of_each_method(tmp_path, "first", later).values()] == methods


def test_the_code_of_a_study_is_taken_from_its_commit(tmp_path):
    with pytest.raises(SagaError, match="commit 0nosuch is not in this repository"):
        same_numbers._checked_out("0nosuch", tmp_path / "one", "0older")
    if (REPOSITORY / ".git").exists():
        with pytest.raises(SagaError, match="that of the study 0older; name another commit"):
            same_numbers._checked_out("HEAD", tmp_path / "two", "0older")


class Killed(Exception):
    pass


def killed_at(step):
    def report(row):
        if row["step"] == step:
            raise Killed

    return report


@pytest.mark.parametrize(
    "method, options", [("saga_pf", {}), ("saga_pf", {"max_micro_batches": 2, "lora_rank": 2, "replay_rows": 2}), ("pa", {})]
)
def test_a_resumed_run_has_the_numbers_of_an_uninterrupted_one(smoke, random_verdicts, tmp_path, method, options):
    config = smoke(method, steps=5, checkpoint_every=2, max_waves=2, contributing_pairs=4, **options)
    train_run(config, tmp_path / "whole")
    folder = tmp_path / "killed"
    with pytest.raises(Killed):
        train_run(config, folder, killed_at(4))  # the checkpoint is older than the metrics: step 3 and 4 are redone
    assert not (folder / "evaluation.json").exists()
    (folder / "metrics.jsonl").open("a").write('{"step": 5, "hal')  # a line cut by the kill
    seen = []
    train_run(config, folder, seen.append)
    assert seen[0]["step"] == 3 and seen[-1]["step"] == 5
    whole, again = record(tmp_path / "whole"), record(folder)
    assert whole == again
    assert [row["step"] for row in again[0]] == [1, 2, 3, 4, 5]
    weights = [(p / "encoder" / "model.safetensors").read_bytes() for p in (tmp_path / "whole", folder)]
    assert weights[0] == weights[1]
    assert not (folder / "checkpoint").exists()
    if method == "saga_pf":
        assert all(row["contributing_pairs"] for row in again[0]) and all(row["grad_kl"] > 0 for row in again[0])


@pytest.mark.parametrize("method, options", [("saga_pf", {"max_micro_batches": 2}), ("pf", {"lora_rank": 2})])
def test_a_run_whose_tower_computes_again_has_the_same_numbers(smoke, random_verdicts, tmp_path, method, options):
    config = smoke(method, max_waves=2, contributing_pairs=4, **options)
    runs = {images: tmp_path / str(images) for images in (0, config.batch_size)}  # other parts would round otherwise
    for images, folder in runs.items():
        train_run(replace(config, tower_images=images), folder)
    assert record(runs[0]) == record(runs[config.batch_size])
    weights = [(folder / "encoder" / "model.safetensors").read_bytes() for folder in runs.values()]
    assert weights[0] == weights[1]


def test_real_rollouts_train_the_tower_and_leave_the_supervisor_alone(smoke, monkeypatch):
    """No script but the reward: half of the answers, by their text, count as right."""

    def by_text(rollouts, same_class, verdict_key, group_size):
        right = [sum(map(ord, text)) % 2 for text in rollouts.texts]
        return torch.tensor(right, dtype=torch.float32).view(-1, group_size)

    monkeypatch.setattr(step, "score", by_text)
    config = smoke("saga_pf", max_new_tokens=6, replay_pairs=1)
    session = open_session(config)
    language = [p.detach().clone() for p in language_parameters(session.supervisor)]
    tower = [p.detach().clone() for p in session.encoder.tower.parameters()]
    metrics = session.run_step()
    assert metrics["contributing_pairs"] > 0 and metrics["grad_lm"] > 0 and metrics["json_valid"] == 0
    assert metrics["rollout_tokens"] <= 4 * GROUP * 6
    assert all(torch.equal(a, b) for a, b in zip(language, language_parameters(session.supervisor), strict=True))
    moved = [not torch.equal(a, b) for a, b in zip(tower, session.encoder.tower.parameters(), strict=True)]
    assert all(moved)
    trained = {id(p) for group in session.optimizer.param_groups for p in group["params"]}
    assert not trained & {id(p) for p in language_parameters(session.supervisor)}
    assert session.run_step()["step"] == 2


def test_frozen_mergers_stay_as_they_are(smoke):
    session = open_session(smoke("pf", train_mergers=False))
    before = [p.detach().clone() for p in session.encoder.tower.merger_parameters()]
    assert before
    session.run_step()
    assert all(torch.equal(a, b) for a, b in zip(before, session.encoder.tower.merger_parameters(), strict=True))


# -------------------------------------------------------------------------------------------------- adapters


@pytest.mark.parametrize("train_mergers", [True, False])
def test_adapters_alone_are_trained(smoke, train_mergers):
    session, plain = open_session(smoke("pf", lora_rank=2, train_mergers=train_mergers)), open_session(smoke("pf"))
    tower = session.encoder.tower
    images = random_images(3)
    np.testing.assert_array_equal(session.encoder.embed(images), plain.encoder.embed(images))  # they begin as the identity
    for a, b in zip(session.dml_loss.parameters(), plain.dml_loss.parameters(), strict=True):
        assert torch.equal(a, b)
    trained = {name for name, p in tower.named_parameters() if p.requires_grad}
    layers = {name.split(".lora_")[0].removeprefix("visual.blocks.") for name in trained if ".lora_" in name}
    assert layers == {f"{n}.{part}" for n in range(3) for part in ("attn.qkv", "attn.proj", "mlp.linear_fc1", "mlp.linear_fc2")}
    assert {name for name in trained if ".lora_" not in name} == {
        name for name, _ in tower.named_parameters() if "merger" in name and train_mergers
    }
    before = {name: p.detach().clone() for name, p in tower.named_parameters()}
    session.run_step()
    session.run_step()  # in the first one A gets no gradient, B being 0
    changed = {name for name, p in tower.named_parameters() if not torch.equal(p, before[name])}
    assert {name for name in changed if "merger" not in name} == {name for name in trained if ".lora_" in name}
    assert bool([name for name in changed if "merger" in name]) == train_mergers
    counts = session.trained_parameters()
    assert counts["tower"] == 0 and counts["adapters"] == sum(p.numel() for n, p in tower.named_parameters() if ".lora_" in n)
    assert bool(counts["mergers"]) == train_mergers and plain.trained_parameters()["adapters"] == 0


def test_a_run_with_adapters_leaves_an_ordinary_encoder_and_the_adapters(smoke, random_verdicts, checkpoint, tmp_path, monkeypatch):
    from peft import PeftModel
    from transformers import AutoModelForImageTextToText

    from saga_lib.families.qwen3_vl import Qwen3VLTower

    train_run(smoke("saga_pf", lora_rank=2, lr_tower=1e-2, train_mergers=False), tmp_path)
    evaluation = read_json(tmp_path / "evaluation.json")
    assert evaluation["trained_parameters"]["adapters"] > 0 == evaluation["trained_parameters"]["mergers"]
    assert evaluation["attention_layer_from_0"] == 0
    stock = AutoModelForImageTextToText.from_pretrained(
        checkpoint, attn_implementation={"vision_config": Qwen3VLTower.vision_attention()}
    )
    adapted = PeftModel.from_pretrained(stock.model, tmp_path / "adapters")
    monkeypatch.setitem(sys.modules, "peft", None)  # from here on it cannot be imported
    encoder = Encoder.from_pretrained(tmp_path / "encoder")
    pixels = encoder.tower.preprocess(random_images(2))
    untrained = load_supervisor(checkpoint, IMAGE_SIZE)[0]
    with torch.no_grad():
        merged, before = encoder.tower(pixels).merged, untrained(pixels).merged
        untrained.visual = adapted.base_model.model.visual
        torch.testing.assert_close(untrained(pixels).merged, merged, rtol=1e-4, atol=1e-4)
        assert (merged - before).norm() > 1e-2 * before.norm()


def test_adapters_need_peft_and_a_tower_that_can_have_them(smoke, monkeypatch):
    monkeypatch.setattr("saga_lib.families.qwen3_vl.Qwen3VLTower.lora_targets", r"no\.such\.layer")
    with pytest.raises(SagaError, match="can have an adapter"):
        open_session(smoke("pf", lora_rank=2))
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(SagaError, match="lora_rank 2 needs peft"):
        open_session(smoke("pf", lora_rank=2))
    for wrong in ({"lora_rank": -1}, {"tower_images": -4}):
        with pytest.raises(SagaError, match="at least 0"):
            smoke("pf", **wrong)


# ------------------------------------------------------------------------------------------- other towers


TIMM_MODELS = ("vit_tiny_patch16_224", "resnet18")


@pytest.fixture
def small_timm(monkeypatch):
    """Let timm build two of its models tiny, with random weights."""
    import timm

    def create(name, pretrained, num_classes, img_size=None):
        if name == TIMM_MODELS[0]:
            return timm.models.VisionTransformer(
                img_size=img_size, patch_size=8, embed_dim=32, depth=2, num_heads=2, reg_tokens=1, num_classes=num_classes
            )
        if img_size is not None:
            raise TypeError("unexpected keyword argument 'img_size'")  # as the original does
        return timm.models.ResNet(timm.models.resnet.BasicBlock, (1, 1, 1, 1), num_classes=num_classes, channels=(8, 8, 16, 16))

    monkeypatch.setattr(timm, "create_model", create)


def test_batch_norms_do_not_see_the_batch(smoke, small_timm):
    """Neither before nor after an evaluation, so that a tower may compute some images at a time again."""
    norms, weights = [], []
    for tower_images in (0, 3):
        session = open_session(replace(smoke("pf", tower_images=tower_images), supervisor=f"timm:{TIMM_MODELS[1]}"))
        norms = [module for module in session.encoder.modules() if isinstance(module, torch.nn.BatchNorm2d)]
        seen = [norm.running_mean.clone() for norm in norms]
        torch.manual_seed(0)
        for parameter in session.encoder.tower.parameters():
            parameter.data = 0.1 * torch.randn_like(parameter)
        modes = [module.training for module in session.encoder.modules()]
        session.evaluate()
        assert modes == [module.training for module in session.encoder.modules()] and not any(norm.training for norm in norms)
        session.run_step()
        weights.append([p.detach() for p in session.encoder.tower.parameters()])
        assert norms and all(torch.equal(norm.running_mean, before) for norm, before in zip(norms, seen, strict=True))
    for a, b in zip(*weights, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("which, tokens", [(0, 36), (1, 4)])
def test_a_timm_tower_trains_as_a_baseline_and_survives_saving(smoke, small_timm, tmp_path, which, tokens):
    config = replace(smoke("pf", pooler="attention", lora_rank=2 * (which == 0)), supervisor=f"timm:{TIMM_MODELS[which]}")
    train_run(config, tmp_path)
    encoder = Encoder.from_pretrained(tmp_path / "encoder")
    assert (encoder.tower.num_tokens, encoder.tower.width) == (tokens, (32, 16)[which])
    assert encoder.tower.preprocess(random_images(1, size=(90, 60))).shape == (1, 3, IMAGE_SIZE, IMAGE_SIZE)
    test = load_benchmark("miniature_birds", images_per_class=4).test
    hits = brute_force_hits(encoder.embed(test.images()).astype(np.float64), test.labels)
    assert read_json(tmp_path / "evaluation.json")["recall"]["1"] == pytest.approx(hits.mean(), abs=1 / 32)


def test_patch_tokens_of_a_timm_tower_are_in_raster_order_without_prefix(small_timm):
    tower = TimmTower.create(TIMM_MODELS[0], IMAGE_SIZE).eval()
    pixels = tower.preprocess(random_images(1))
    tokens = tower(pixels).merged
    assert torch.equal(tokens, tower.model.forward_features(pixels)[:, 2:])  # a class and a register token
    half = pixels.clone()
    half[..., IMAGE_SIZE // 2 :, :] = 0  # the lower half
    embedded = [tower.model.patch_embed(p)[0].view(6, 6, -1) for p in (pixels, half)]
    assert torch.equal(embedded[0][:3], embedded[1][:3]) and not torch.equal(embedded[0][3:], embedded[1][3:])


def test_a_timm_tower_has_no_language_signal(smoke):
    with pytest.raises(SagaError, match="language_signal must be none"):
        replace(smoke("saga_pf"), supervisor=f"timm:{TIMM_MODELS[0]}")
    with pytest.raises(SagaError, match="unknown timm model"):
        open_session(replace(smoke("pf"), supervisor="timm:vit_smal_patch14_dinov2"))


# ------------------------------------------------------------------------------------------- what is recorded


def test_a_revision_reaches_the_hub_and_the_address(smoke, monkeypatch, tmp_path):
    from saga_lib.records import content_key

    asked = []

    def load(source, image_size, device, dtype, revision):
        asked.append((source, revision))
        raise SagaError("no network")

    monkeypatch.setattr(training, "load_supervisor", load)
    at = replace(smoke("pf"), supervisor="Qwen/Qwen3-VL-8B-Instruct", revision="abc123")
    for config in (at, replace(at, revision="")):
        with pytest.raises(SagaError, match="no network"):
            open_session(config)
    assert asked == [("Qwen/Qwen3-VL-8B-Instruct", "abc123"), ("Qwen/Qwen3-VL-8B-Instruct", None)]
    assert content_key(at, {}) != content_key(replace(at, revision=""), {})
    with pytest.raises(SagaError, match="is a local folder"):
        resolving.supervisor_source(replace(smoke("pf"), revision="abc123"))
    with pytest.raises(SagaError, match="goes with a supervisor from the hub"):
        make_config("smoke", "miniature_birds", "pf", 0, revision="abc123")


def test_an_attention_layer_that_is_not_there_is_told(smoke):
    with pytest.raises(SagaError, match="attention_layer 3 counts from 0, and .* has 3 layers"):
        open_session(smoke("saga_pf", attention_layer=3))


def test_what_was_trained_is_recorded(smoke, random_verdicts, tmp_path):
    train_run(smoke("saga_pf"), tmp_path / "saga")
    train_run(smoke("pre-trained", embedding_dim=0), tmp_path / "untrained")
    saga, untrained = (read_json(tmp_path / name / "evaluation.json") for name in ("saga", "untrained"))
    encoder = Encoder.from_pretrained(tmp_path / "saga" / "encoder")
    parts = saga["trained_parameters"]
    assert parts["tower"] + parts["mergers"] == sum(p.numel() for p in encoder.tower.parameters())
    assert parts["pooler"] == sum(p.numel() for p in encoder.pooler.parameters()) and parts["adapters"] == 0
    assert saga["attention_layer_from_0"] == 0
    assert set(untrained["trained_parameters"].values()) == {0} and "attention_layer_from_0" not in untrained


@pytest.mark.parametrize("damage", ["weights", "counters", "missing"])
def test_a_damaged_checkpoint_is_one_readable_line(smoke, tmp_path, damage):
    config = smoke("pf", steps=3, checkpoint_every=1)
    with pytest.raises(Killed):
        train_run(config, tmp_path, killed_at(2))
    [state] = (tmp_path / "checkpoint").glob("state-*.safetensors")
    if damage == "weights":
        state.write_bytes(state.read_bytes()[:500])
    elif damage == "counters":
        (tmp_path / "checkpoint" / "counters.json").write_text('{"step": 1, ')
    else:
        state.unlink()
    with pytest.raises(SagaError) as error:
        train_run(config, tmp_path)
    assert "\n" not in str(error.value) and str(tmp_path / "checkpoint") in str(error.value)
    assert "delete" in str(error.value)


@pytest.mark.skipif(sys.platform == "win32", reason="needs file size limits")
def test_a_full_disk_is_one_readable_line_and_leaves_nothing_behind(tmp_path):
    """A limit on file sizes stands in for a full disk; in a child process, which must not limit this one."""
    code = f"""
import resource, signal, torch
from pathlib import Path
from safetensors.torch import save_file
from saga_lib.common.errors import SagaError
from saga_lib.common.files import write_atomically, write_text
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
folder = Path({str(tmp_path)!r})
writers = {{
    "a.safetensors": lambda p: save_file({{"a": torch.zeros(10_000)}}, p),
    "b.txt": lambda p: p.write_text("x" * 40_000),
}}
for name, write in writers.items():
    try:
        write_atomically(folder / name, write)
        raise AssertionError("must not succeed")
    except SagaError as error:
        assert f"cannot write {{folder / name}}" in str(error) and "free some space" in str(error), error
assert not list(folder.iterdir())
"""
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


class Broken(nn.Module):
    """A loss of no use: 1 plus `factor` times the sum of the embeddings."""

    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, z, labels):
        return 1 + (z * self.factor).sum()


@pytest.mark.parametrize("factor, said", [(float("nan"), "not finite"), (0.0, "vanished")])
def test_a_broken_dml_loss_stops_the_run_before_it_harms_the_weights(smoke, factor, said):
    session = open_session(smoke("pf"))
    session.dml_loss = Broken(factor)
    before = [p.detach().clone() for p in session.encoder.parameters()]
    with pytest.raises(SagaError, match=rf"step 1 of miniature_birds/pf, seed 0: .*DML loss \(pf\).*{said}"):
        session.run_step()
    assert all(torch.equal(a, b) for a, b in zip(before, session.encoder.parameters(), strict=True))


@pytest.mark.parametrize("factor, said", [(float("nan"), "not finite"), (0.0, "vanished")])
def test_a_broken_grpo_loss_stops_the_run(smoke, random_verdicts, monkeypatch, factor, said):
    monkeypatch.setattr(step, "grpo_loss", lambda log_probs, *args: 1 + (log_probs * factor).sum())
    with pytest.raises(SagaError, match=f"GRPO loss.*{said}"):
        open_session(smoke("saga_pf", group_size=8)).run_step()


def test_a_supervisor_that_never_disagrees_stops_the_run(smoke, monkeypatch):
    monkeypatch.setattr(monitoring, "MAX_STEPS_WITHOUT_PAIRS", 2)
    monkeypatch.setattr(step, "score", lambda rollouts, same, key, group: torch.ones(len(same), group))
    session = open_session(smoke("saga_pf", max_new_tokens=2))
    assert session.run_step()["contributing_pairs"] == 0
    with pytest.raises(SagaError, match="no pair had rollouts of both rewards"):
        session.run_step()


def test_training_lowers_the_dml_loss(smoke, tmp_path):
    rows = []
    train_run(smoke("pa", steps=12, batch_size=32), tmp_path, rows.append)
    assert np.mean([r["loss_dml"] for r in rows[-3:]]) < np.mean([r["loss_dml"] for r in rows[:3]])
    assert rows[-1]["lr_tower"] < 0.1 * max(row["lr_tower"] for row in rows)


def test_inputs_change_with_the_supervisor(smoke, checkpoint, tmp_path):
    config = smoke("pf")
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in checkpoint.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    same = resolving.resolve(replace(config, supervisor=str(copy))).inputs
    assert same == resolving.resolve(config).inputs
    (copy / "chat_template.jinja").write_text("other")
    assert resolving.resolve(replace(config, supervisor=str(copy))).inputs["supervisor"] != same["supervisor"]


# ------------------------------------------------------------------------------------ encoder, evaluation


def brute_force_hits(embeddings, labels):
    similarity = embeddings @ embeddings.T
    np.fill_diagonal(similarity, -np.inf)
    return labels[similarity.argmax(1)] == labels


@pytest.mark.parametrize("pooler, dim", [("mean", 0), ("mean", 16), ("attention", 16)])
def test_an_encoder_survives_saving(checkpoint, tmp_path, monkeypatch, pooler, dim):
    tower, _ = load_supervisor(checkpoint, IMAGE_SIZE)
    encoder = Encoder(tower, pooler, dim)
    images = [*random_images(3), *random_images(2, size=(90, 60))]
    before = encoder.embed(images, batch_size=2)
    encoder.save_pretrained(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    monkeypatch.setattr("transformers.AutoModelForImageTextToText.from_pretrained", None)  # no supervisor is at hand
    loaded = Encoder.from_pretrained(tmp_path)
    assert not any("language" in name or "lm_head" in name for name in loaded.state_dict())
    after = loaded.embed(images)
    assert after.dtype == np.float32 and after.shape == (5, dim or tower.width)
    np.testing.assert_allclose(after, before, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(after, axis=1), 1, atol=1e-5)
    assert not loaded.training


def test_damaged_encoders_are_readable_errors(checkpoint, tmp_path):
    tower, _ = load_supervisor(checkpoint, IMAGE_SIZE)
    encoder = Encoder(tower, "mean", 16)
    encoder.save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(SagaError, match="model.safetensors is damaged"):
        Encoder.from_pretrained(tmp_path)
    Encoder(tower, "mean", 8).save_pretrained(tmp_path)
    config = read_json(tmp_path / "config.json")
    (tmp_path / "config.json").write_text(json.dumps(config | {"embedding_dim": 16}))
    with pytest.raises(SagaError, match="does not fit this model"):
        Encoder.from_pretrained(tmp_path)
    weights.unlink()
    with pytest.raises(SagaError, match="does not exist"):
        Encoder.from_pretrained(tmp_path)
    with pytest.raises(SagaError, match="no images"):
        encoder.embed([])
    with pytest.raises(SagaError, match="unknown pooler 'atention': did you mean 'attention'"):
        Encoder(tower, "atention", 16)


def test_the_attention_pooler_is_appendix_b(checkpoint):
    torch.manual_seed(0)
    tower, _ = load_supervisor(checkpoint, IMAGE_SIZE)
    pooler = Encoder(tower, "attention", 8).pooler
    nn.init.normal_(pooler.query)
    x = torch.randn(2, 5, tower.width)
    z, beta = pooler(x)
    for n in range(2):
        scores = torch.stack([pooler.query @ (pooler.key.weight @ x[n, p]) for p in range(5)]) / tower.width**0.5
        expected = scores.exp() / scores.exp().sum()
        torch.testing.assert_close(beta[n], expected)
        pooled = pooler.out((expected[:, None] * x[n]).sum(0))
        torch.testing.assert_close(z[n], pooled / pooled.norm())


def test_the_pre_trained_row_is_plain_mean_pooling(smoke, checkpoint, tmp_path):
    train_run(smoke("pre-trained", embedding_dim=0), tmp_path)
    evaluation = read_json(tmp_path / "evaluation.json")
    test = load_benchmark("miniature_birds", images_per_class=4).test
    tower, _ = load_supervisor(checkpoint, IMAGE_SIZE)
    with torch.no_grad():
        mean = tower(tower.preprocess(test.images())).merged.mean(1).double()
    hits = brute_force_hits((mean / mean.norm(dim=1, keepdim=True)).numpy(), test.labels)
    assert evaluation["hits_at_1"] == "".join("1" if hit else "0" for hit in hits)
    assert evaluation["recall"]["1"] == pytest.approx(hits.mean())
    assert evaluation["steps"] == 0 and evaluation["num_queries"] == 32 and evaluation["num_classes"] == 8


def test_the_evaluation_of_a_run_is_that_of_its_saved_encoder(smoke, random_verdicts, tmp_path):
    train_run(smoke("saga_pf"), tmp_path)
    evaluation = read_json(tmp_path / "evaluation.json")
    test = load_benchmark("miniature_birds", images_per_class=4).test
    embeddings = Encoder.from_pretrained(tmp_path / "encoder").embed(test.images())
    hits = brute_force_hits(embeddings.astype(np.float64), test.labels)
    assert evaluation["hits_at_1"] == "".join("1" if hit else "0" for hit in hits)
    assert evaluation["recall"]["1"] == pytest.approx(hits.mean())
    assert evaluation["recall"]["1"] <= evaluation["recall"]["2"] <= evaluation["recall"]["8"] <= 1
    config = read_json(tmp_path / "config.json")
    assert config["config"]["method"] == "saga_pf" and config["key"]


# ------------------------------------------------------------------------------------------------ controls


def test_shuffled_advantages_are_the_same_numbers_for_other_rollouts(smoke, random_verdicts, monkeypatch):
    seen = {}
    for method in ("saga_pf", "saga_shuffled"):
        session = open_session(smoke(method, batch_size=16, contributing_pairs=4, pairs_per_wave=8))
        stop = RuntimeError("seen")

        def keep(encoder, supervisor, prompt_ids, tokens, buffer, *args, method=method, stop=stop):
            seen[method] = buffer
            raise stop

        monkeypatch.setattr(step, "replay_phase", keep)
        with pytest.raises(RuntimeError, match="seen"):
            session.run_step()
    true, shuffled = seen["saga_pf"], seen["saga_shuffled"]
    assert true.rollouts.texts == shuffled.rollouts.texts and torch.equal(true.rewards, shuffled.rewards)
    assert torch.equal(true.advantages.flatten().sort().values, shuffled.advantages.flatten().sort().values)
    assert not torch.equal(true.advantages, shuffled.advantages)


def test_the_wrong_oracle_tells_every_class_of_another_one(smoke):
    session = open_session(smoke("oracle_wrong"))
    count = len(session.benchmark.train.class_names)
    assert sorted(session._swapped) == list(range(count)) and all(session._swapped[c] != c for c in range(count))
    batch = session.next_micro_batch()
    arguments = (session.supervisor, session.vocabulary, session.benchmark.train, batch, 4)
    wrong = controls.oracle_phase(*arguments, np.random.default_rng(0), session._swapped)
    right = controls.oracle_phase(*arguments, np.random.default_rng(0))
    assert (wrong.pairs == right.pairs).all()
    told = [json.loads(text)["item_1"] for text in wrong.rollouts.texts]
    attributes = session.benchmark.train.class_attributes
    assert told == [attributes[session._swapped[batch.labels[a]]] for a, _ in wrong.pairs]
    assert all(one != other for one, other in zip(wrong.rollouts.texts, right.rollouts.texts, strict=True))


@pytest.mark.parametrize("weight", [0.5, 2.0])
def test_balanced_gradients_have_the_asked_ratio_and_may_rest(smoke, monkeypatch, weight):
    session = open_session(smoke("oracle", balance_gradients=True, lambda_lm=weight))
    handed = []
    monkeypatch.setattr(step, "tower_backward", lambda batches, gradient: handed.append((batches, gradient)))
    session.run_step()
    batches, gradient = handed[0]
    norm = step.total_norm(list(gradient.tensors()))
    assert norm == pytest.approx(weight * step.total_norm([batch.dml_gradient for batch in batches]), rel=1e-4)
    object.__setattr__(session.config, "lambda_dml", 0.0)  # a DML loss at rest has no gradient; no run may be configured so
    assert session.run_step()["grad_lm"] > 0
    assert step.total_norm(list(handed[1][1].tensors())) == 0


def test_the_deepstack_gradient_can_be_left_out(encoder, supervisor, prompt_ids, pixels):
    buffer = buffer_of(supervisor, [[0, 1]], [[1, 0, 0, 1]])
    tokens = encoder.tower(pixels[:2])
    settings = ReplaySettings(1, 1.0, 0.0)
    whole = replay_phase(encoder, supervisor, prompt_ids, tokens, buffer, settings)
    without = replay_phase(encoder, supervisor, prompt_ids, tokens, buffer, replace(settings, deepstack_gradient=False))
    assert torch.equal(whole.gradient.merged, without.gradient.merged)
    assert all(g.abs().sum() > 0 for g in whole.gradient.deepstack)
    assert not any(g.abs().sum() for g in without.gradient.deepstack)


@pytest.mark.parametrize("settings", [{"signal_control": "wrong"}, {"signal_control": "shufled"}, {"hard_pairs": 1.5}])
def test_settings_of_the_controls_are_checked(smoke, settings):
    said = "signal_control wrong does not go|did you mean 'shuffled'|hard_pairs must be a number .at least 0, at most 1"
    with pytest.raises(SagaError, match=said):
        smoke("saga_pf", **settings)
