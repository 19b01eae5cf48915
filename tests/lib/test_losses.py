"""The losses against published test vectors and float64 loops written from the formulas."""

import builtins

import pytest
import torch
from torch import nn

from saga_lib.common.errors import SagaError
from saga_lib.losses import DML_HYPERPARAMETERS, PotentialFieldLoss, attention_alignment_loss, group_advantages, grpo_loss, make_dml_loss


def unit(x):
    return nn.functional.normalize(x, dim=-1)


def random_batch(num_images=7, num_classes=3, dim=5, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    embeddings = torch.randn(num_images, dim, generator=generator, dtype=dtype)
    labels = torch.randint(num_classes, (num_images,), generator=generator)
    return embeddings.requires_grad_(), labels


# --- Potential Field --------------------------------------------------------------------------------


def potential_field_loop(embeddings, labels, proxies, proxy_labels, alpha, delta):
    """U's terms as (potentials at embeddings, potentials at proxies), pair by pair."""
    points = [unit(z) for z in embeddings] + [unit(p) for p in proxies]
    classes = labels.tolist() + proxy_labels.tolist()
    potentials = []
    for i, here in enumerate(points):
        total = torch.zeros((), dtype=torch.float64)
        for j, other in enumerate(points):
            if i == j:
                continue
            d = (here - other).norm().clamp_min(1e-4)
            if classes[i] == classes[j]:
                total = total - (delta ** (-alpha) if d < delta else d ** (-alpha))
            else:
                total = total + (d ** (-alpha) if d < delta else delta ** (-alpha))
        potentials.append(total)
    return torch.stack(potentials[: len(labels)]), torch.stack(potentials[len(labels) :])


def test_potential_field_test_vector():
    embeddings = torch.tensor([[1.0, 0.0], [0.8, 0.6]], dtype=torch.float64)
    for alpha, reduction, expected in [
        (2.0, "sum", 45.944444),
        (2.0, "mean", 3.8287037),
        (0.0, "mean", 1 / 3),
        (0.0, "sum", 4.0),
    ]:
        loss = PotentialFieldLoss(2, 2, proxies_per_class=1, alpha=alpha, delta=0.5, reduction=reduction)
        loss.proxies.data = torch.tensor([[0.6, 0.8], [-1.0, 0.0]], dtype=torch.float64)
        assert loss(embeddings, torch.tensor([0, 1])).item() == pytest.approx(expected, rel=2e-7)


@pytest.mark.parametrize("alpha,delta", [(0.0, 0.2), (1.0, 0.9), (3.0, 0.2), (2.5, 1.3)])
def test_potential_field_equals_the_loop(alpha, delta):
    embeddings, labels = random_batch()
    for reduction in ("sum", "mean", "batch"):
        loss = PotentialFieldLoss(3, 5, 2, alpha, delta, reduction).double()
        at_embeddings, at_proxies = potential_field_loop(
            embeddings, labels, loss.proxies, loss.proxy_labels, alpha, delta
        )
        num_points = 7 + 6
        total = at_embeddings.sum() + at_proxies.sum()
        expected = {
            "sum": total,
            "mean": total / (num_points * (num_points - 1)),
            "batch": at_embeddings.mean() + at_proxies.mean(),
        }[reduction]
        value = loss(embeddings, labels)
        torch.testing.assert_close(value, expected)
        if alpha > 0:
            leaves = (embeddings, loss.proxies)
            torch.testing.assert_close(
                torch.autograd.grad(value, leaves), torch.autograd.grad(expected, leaves)
            )


def test_potential_field_gradient_is_the_numerical_one():
    embeddings, labels = random_batch(num_images=4, num_classes=2, dim=3)
    loss = PotentialFieldLoss(2, 3, 2, alpha=2.0, delta=0.7).double()
    assert torch.autograd.gradcheck(lambda z: loss(z, labels), (embeddings,))


@pytest.mark.parametrize("alpha", [0.0, 3.0, 6.0])
def test_potential_field_is_finite_where_points_coincide(alpha):
    loss = PotentialFieldLoss(2, 4, 3, alpha=alpha, reduction="sum")
    embeddings = loss.proxies.detach()[[0, 0, 3, 3]].clone().requires_grad_()
    value = loss(embeddings, torch.tensor([0, 1, 0, 1]))  # on a proxy of its own and of the other class
    value.backward()
    assert value.isfinite() and embeddings.grad.isfinite().all() and loss.proxies.grad.isfinite().all()


def test_potential_field_forces_point_the_right_way():
    """Outside delta the same class is pulled in; inside delta the other class is pushed out."""
    loss = PotentialFieldLoss(2, 2, 1, alpha=3.0, delta=0.3, reduction="sum")
    loss.proxies.data = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    far_own = torch.tensor([[0.6, 0.8]], requires_grad=True)
    loss(far_own, torch.tensor([0])).backward()
    assert far_own.grad[0, 0] < 0  # descending the loss raises x, towards the own proxy
    near_other = unit(torch.tensor([[1.0, 0.1]])).requires_grad_()
    loss(near_other, torch.tensor([1])).backward()
    assert near_other.grad[0, 1] < 0  # descending raises y, away from the other class's proxy


def test_potential_field_ignores_norms_and_autocast():
    embeddings, labels = random_batch(dtype=torch.float32)
    loss = PotentialFieldLoss(3, 5)
    value = loss(embeddings, labels)
    torch.testing.assert_close(loss(embeddings * 7, labels), value)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert loss(embeddings, labels).dtype == torch.float32
        torch.testing.assert_close(loss(embeddings, labels), value)
    assert loss(embeddings.bfloat16(), labels).dtype == torch.float32


def test_potential_field_proxies_follow_the_global_seed():
    torch.manual_seed(3)
    first = PotentialFieldLoss(4, 6).proxies
    torch.manual_seed(3)
    assert torch.equal(first, PotentialFieldLoss(4, 6).proxies)
    torch.testing.assert_close(first.norm(dim=1), torch.ones(60))


def test_potential_field_rejects_labels_out_of_range():
    loss = PotentialFieldLoss(3, 5)
    embeddings, _ = random_batch(num_images=2)
    for labels in ([0, 3], [-1, 0]):
        with pytest.raises(SagaError, match=r"\[0, 3\)"):
            loss(embeddings, torch.tensor(labels))
    with pytest.raises(SagaError, match="labels"):
        loss(embeddings, torch.tensor([0]))


# --- The adapters -----------------------------------------------------------------------------------


def test_proxy_anchor_test_vector():
    loss = make_dml_loss("pa", num_classes=2, embedding_dim=2)
    loss.loss.proxies.data = torch.eye(2)  # similarities (1, 0)
    assert loss(torch.tensor([[1.0, 0.0]]), torch.tensor([0])).item() == pytest.approx(1.6199767, rel=1e-6)


def test_proxy_anchor_equals_the_loop():
    embeddings, labels = random_batch(num_images=6, num_classes=4)
    loss = make_dml_loss("pa", 5, 5).double()
    s = unit(embeddings) @ unit(loss.loss.proxies).T
    positive, negative, present = 0.0, 0.0, set(labels.tolist())
    for c in range(5):
        inside = [(-32 * (s[i, c] - 0.1)).exp() for i in range(6) if labels[i] == c]
        outside = [(32 * (s[i, c] + 0.1)).exp() for i in range(6) if labels[i] != c]
        if inside:
            positive = positive + torch.log1p(torch.stack(inside).sum())
        if outside:
            negative = negative + torch.log1p(torch.stack(outside).sum())
    torch.testing.assert_close(loss(embeddings, labels), positive / len(present) + negative / 5)


def single_anchor():
    """An anchor, and a reference set whose similarities to it are .6 (positive) and .7 (negative).

    It stands there twice, since pytorch-metric-learning takes a single pair for an empty set.
    """
    anchor = torch.tensor([[1.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
    cosines = torch.tensor([0.6, 0.7], dtype=torch.float64)
    reference = torch.stack([cosines, (1 - cosines**2).sqrt()], dim=1)
    return anchor, torch.tensor([0, 0]), reference, torch.tensor([0, 1])


def test_multi_similarity_test_vector():
    anchor, label, reference, reference_labels = single_anchor()
    loss = make_dml_loss("ms", 2, 2)
    mined = loss.miner(anchor, label, reference, reference_labels)
    value = loss.loss(anchor, label, mined, reference, reference_labels)
    assert value.item() == pytest.approx(0.4990704, rel=1e-6)


def test_multi_similarity_equals_the_loop():
    embeddings, labels = random_batch(num_images=8, num_classes=3, seed=2)
    s = unit(embeddings) @ unit(embeddings).T
    total = 0.0
    for i in range(8):
        positives = [s[i, j] for j in range(8) if j != i and labels[j] == labels[i]]
        negatives = [s[i, j] for j in range(8) if labels[j] != labels[i]]
        if not positives or not negatives:
            continue  # the miner compares the two kinds, and keeps nothing where one is missing
        kept_positives = [p for p in positives if p - 0.1 < max(negatives)]
        kept_negatives = [n for n in negatives if n + 0.1 > min(positives)]
        for kept, scale in ((kept_positives, -2.0), (kept_negatives, 50.0)):
            if kept:
                total = total + torch.log1p((scale * (torch.stack(kept) - 0.5)).exp().sum()) / abs(scale)
    torch.testing.assert_close(make_dml_loss("ms", 3, 5)(embeddings, labels), total / 8)


def test_infonce_test_vector():
    anchor, label, reference, reference_labels = single_anchor()
    value = make_dml_loss("infonce", 2, 2).loss(anchor, label, ref_emb=reference, ref_labels=reference_labels)
    assert value.item() == pytest.approx(1.6434013, rel=1e-6)


def test_infonce_equals_the_loop_and_leaves_other_positives_out():
    embeddings, labels = random_batch(num_images=8, num_classes=3, seed=2)
    s = unit(embeddings) @ unit(embeddings).T / 0.07
    terms = []
    for i in range(8):
        negatives = [s[i, j].exp() for j in range(8) if labels[j] != labels[i]]
        for j in range(8):
            if j != i and labels[j] == labels[i]:
                terms.append(-torch.log(s[i, j].exp() / (s[i, j].exp() + sum(negatives))))
    torch.testing.assert_close(make_dml_loss("infonce", 3, 5)(embeddings, labels), torch.stack(terms).mean())


@pytest.mark.parametrize("name", DML_HYPERPARAMETERS)
def test_every_dml_loss_trains_under_autocast(name):
    embeddings, labels = random_batch(num_images=8, dtype=torch.float32)
    loss = make_dml_loss(name, 3, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(embeddings, labels)
    value.backward()
    assert value.shape == () and value.dtype == torch.float32
    assert embeddings.grad.isfinite().all() and embeddings.grad.abs().sum() > 0
    assert (len(list(loss.parameters())) > 0) == (name in ("pf", "pa"))


@pytest.mark.parametrize("name", ["ms", "infonce"])
def test_a_batch_without_positives_is_harmless(name):
    embeddings, _ = random_batch(num_images=4)
    value = make_dml_loss(name, 4, 5)(embeddings, torch.arange(4))
    value.backward()
    assert value.isfinite() and embeddings.grad.isfinite().all()


def test_hyper_parameters_arrive():
    assert make_dml_loss("pf", 3, 4, alpha=2.0, reduction="batch").reduction == "batch"
    assert make_dml_loss("ms", 3, 4, epsilon=0.3).miner.epsilon == 0.3
    assert make_dml_loss("pa", 3, 4, margin=0.2).loss.margin == 0.2
    assert make_dml_loss("infonce", 3, 4, temperature=0.1).loss.temperature == 0.1


def test_unknown_names_are_errors_with_the_closest_match():
    with pytest.raises(SagaError, match="DML loss 'infonc'.*did you mean 'infonce'"):
        make_dml_loss("infonc", 3, 4)
    with pytest.raises(SagaError, match="'temprature'.*did you mean 'temperature'"):
        make_dml_loss("infonce", 3, 4, temprature=0.1)
    with pytest.raises(SagaError, match="'temperature'.*known: alpha, delta"):
        make_dml_loss("pf", 3, 4, temperature=0.1)
    with pytest.raises(SagaError, match="reduction.*did you mean 'mean'"):
        make_dml_loss("pf", 3, 4, reduction="meen")


def test_only_pf_works_without_pytorch_metric_learning(monkeypatch):
    real_import = builtins.__import__

    def without_pml(name, *args, **kwargs):
        if name.startswith("pytorch_metric_learning"):
            raise ModuleNotFoundError(f"No module named {name!r}")
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_pml)
    make_dml_loss("pf", 3, 4)
    with pytest.raises(SagaError, match="pip install pytorch-metric-learning"):
        make_dml_loss("ms", 3, 4)


# --- GRPO -------------------------------------------------------------------------------------------


def test_group_advantages_by_hand():
    rewards = torch.tensor([[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0]], dtype=torch.float64)
    std = (0.25 * 0.75) ** 0.5
    expected = torch.tensor(
        [[0.75 / (std + 1e-4)] + [-0.25 / (std + 1e-4)] * 3, [0.5 / 0.5001] * 2 + [-0.5 / 0.5001] * 2],
        dtype=torch.float64,
    )
    torch.testing.assert_close(group_advantages(rewards), expected)
    assert group_advantages(rewards.bool()).dtype == torch.float32


def test_groups_of_equal_rewards_are_exactly_zero():
    rewards = torch.tensor([[0.1] * 7, [1.0] * 7, [0.0] * 7, [1.0] + [0.0] * 6])
    advantages = group_advantages(rewards, eps=0.0)
    assert torch.equal(advantages[:3], torch.zeros(3, 7))
    assert advantages[3].abs().min() > 0 and advantages[3].sum().abs() < 1e-5


def random_rollouts(seed=0, num_rollouts=6, num_tokens=9):
    generator = torch.Generator().manual_seed(seed)
    log_probs = -torch.rand(num_rollouts, num_tokens, generator=generator, dtype=torch.float64)
    lengths = torch.randint(1, num_tokens + 1, (num_rollouts, 1), generator=generator)
    advantages = torch.randn(num_rollouts, generator=generator, dtype=torch.float64)
    return log_probs.requires_grad_(), advantages, torch.arange(num_tokens) < lengths


def test_grpo_equals_the_loop():
    log_probs, advantages, mask = random_rollouts()
    total, count = 0.0, 0
    for r in range(6):
        for t in range(9):
            if mask[r, t]:
                total = total + advantages[r] * log_probs[r, t]
                count += 1
    loss = grpo_loss(log_probs, advantages, mask)
    torch.testing.assert_close(loss, -total / count)
    loss.backward()
    torch.testing.assert_close(log_probs.grad, -advantages[:, None] * mask / count)


def test_grpo_partial_losses_add_up():
    log_probs, advantages, mask = random_rollouts()
    whole = grpo_loss(log_probs, advantages, mask)
    num_tokens = int(mask.sum())
    rows_per_pair = ([0, 1], [2, 3, 4], [5])
    parts = [grpo_loss(log_probs[r], advantages[r], mask[r], num_tokens) for r in rows_per_pair]
    torch.testing.assert_close(sum(parts), whole)
    torch.testing.assert_close(
        torch.autograd.grad(sum(parts), log_probs), torch.autograd.grad(whole, log_probs)
    )
    # a mean per pair is another loss: short pairs would weigh as much as long ones
    assert not torch.isclose(
        sum(grpo_loss(log_probs[r], advantages[r], mask[r]) for r in rows_per_pair) / 3, whole
    )


def test_grpo_ignores_what_the_padding_holds():
    log_probs, advantages, mask = random_rollouts()
    assert not mask.all()
    padding = torch.full_like(log_probs, float("-inf"))
    padding[:, -1] = float("nan")
    padded = torch.where(mask, log_probs, padding).detach().requires_grad_()
    loss = grpo_loss(padded, advantages, mask)
    loss.backward()
    torch.testing.assert_close(loss, grpo_loss(log_probs, advantages, mask))
    assert padded.grad.isfinite().all() and (padded.grad[~mask] == 0).all()


def test_grpo_without_signal_is_zero():
    log_probs, advantages, mask = random_rollouts()
    assert grpo_loss(log_probs, torch.zeros(6), mask).item() == 0
    empty = grpo_loss(log_probs, advantages, torch.zeros_like(mask))
    empty.backward()
    assert empty.item() == 0 and (log_probs.grad == 0).all()
    with pytest.raises(SagaError, match="num_tokens"):
        grpo_loss(log_probs, advantages, mask, num_tokens=0)
    with pytest.raises(SagaError, match="advantages"):
        grpo_loss(log_probs, advantages[:1], mask)


def test_grpo_raises_the_likelihood_of_what_was_rewarded():
    logits = torch.zeros(2, 3, requires_grad=True)
    log_probs = logits.log_softmax(dim=1)[:, :1]  # one-token completions, token 0 in both
    advantages = group_advantages(torch.tensor([[1.0, 0.0]]))[0]
    grpo_loss(log_probs, advantages, torch.ones(2, 1, dtype=torch.bool)).backward()
    assert logits.grad[0, 0] < 0 < logits.grad[1, 0]


# --- Attention alignment ----------------------------------------------------------------------------


def test_attention_alignment_equals_the_loop():
    generator = torch.Generator().manual_seed(0)
    teacher = torch.rand(4, 6, generator=generator, dtype=torch.float64)
    teacher[0, :3] = 0  # exact zeros
    logits = torch.randn(4, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    student = logits.softmax(dim=1)
    expected = 0.0
    for n in range(4):
        weights = teacher[n] / teacher[n].sum()
        for j in range(6):
            if weights[j] > 0:
                expected = expected + weights[j] * (weights[j].log() - student[n, j].log())
    loss = attention_alignment_loss(3 * teacher, student)  # any scale: rows are renormalised
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(attention_alignment_loss(teacher, student, reduction="mean"), expected / 4)
    loss.backward()
    # the gradient of a cross-entropy through a softmax
    torch.testing.assert_close(logits.grad, student.detach() - teacher / teacher.sum(dim=1, keepdim=True))


def test_attention_alignment_edges():
    student = torch.tensor([[0.25, 0.75], [1.0, 0.0]], requires_grad=True)
    teacher = torch.tensor([[0.25, 0.75], [1.0, 0.0]], requires_grad=True)
    loss = attention_alignment_loss(teacher, student)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert teacher.grad is None and student.grad.isfinite().all()
    assert attention_alignment_loss(torch.zeros(2, 2), student).item() == 0
    opposite = attention_alignment_loss(torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 0.0]]))
    assert opposite.isfinite() and opposite > 10
    with pytest.raises(SagaError, match="N, Np"):
        attention_alignment_loss(torch.ones(2, 3), torch.ones(2, 4))
    with pytest.raises(SagaError, match="reduction"):
        attention_alignment_loss(teacher, student, reduction="avg")
