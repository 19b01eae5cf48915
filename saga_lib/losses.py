"""The losses of SAGA as small modules and pure functions.

Shapes: B images, C classes, M proxies per class, D_e embedding size, P pairs, G rollouts per
pair, R rollouts in one call, T tokens (padded), Np patches.

Signs, axes and reductions are stated wherever a mean is taken; every loss is to be minimised.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from saga_lib.common.errors import SagaError, unknown_name
from saga_lib.common.ranges import checked_dml_options

MIN_DISTANCE = 1e-4  # keeps d^(-alpha) finite at coincident points
PF_REDUCTIONS = ("sum", "mean", "batch")

# Hyper-parameters that make_dml_loss accepts, with their defaults.
DML_HYPERPARAMETERS = {
    # Potential Field paper: M = 15 on CUB and Cars, alpha best at 3, delta in [0.1, 0.3]; reduction ours
    "pf": {"proxies_per_class": 15, "alpha": 3.0, "delta": 0.2, "reduction": "mean"},
    # the Proxy-Anchor paper's margin and scale
    "pa": {"margin": 0.1, "alpha": 32.0},
    # pytorch-metric-learning's defaults for the loss; epsilon is the margin of its miner
    "ms": {"alpha": 2.0, "beta": 50.0, "base": 0.5, "epsilon": 0.1},
    # temperature not stated in the SAGA paper; the usual 0.07
    "infonce": {"temperature": 0.07},
}


def _full_precision(x: Tensor) -> Tensor:
    """Return `x` in float32, or untouched if it is float64 already."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _check_batch(embeddings: Tensor, labels: Tensor) -> None:
    if embeddings.ndim != 2 or labels.shape != embeddings.shape[:1]:
        raise SagaError(f"embeddings must be (B, D_e) and labels (B,), got {tuple(embeddings.shape)} and {tuple(labels.shape)}")


# ----------------------------------------------------------------------------------------------------
# Metric learning


class PotentialFieldLoss(nn.Module):
    """Potential Field loss: points of one class attract, all others repel, each with a decaying force.

    Points are the B embeddings of the batch and all M·C proxies; d is the distance of two l2-normalised
    points, clamped to d >= 1e-4. The potential that one point puts on another is

        same class:   -max(d, delta)^(-alpha)      no force inside delta, decaying outside
        other class:   min(d, delta)^(-alpha)      no force outside delta

    and U is its sum over all ordered pairs of two different points, proxy-proxy pairs included.
    `alpha = 0` makes the two -1 and +1 (no force at all).

    Reductions, n = B + M·C. The Potential Field paper does not disclose its reduction; SAGA says the DML
    loss is "averaged over the batch", which could mean several of these, so the choice is ours:

    - "sum":   U itself.
    - "mean":  U / (n(n-1)), the mean over ordered pairs.
    - "batch": (1/B) Σ_i Ψ(z_i) + (1/(M·C)) Σ_k Ψ(p_k), where Ψ(r) is the potential at point r: of an average embedding and proxy.

    The scale matters when the loss shares one clipped gradient with others (Eq. 8). At B = 64, M = 15, C = 100 the sum has 2.4 million
    terms of up to delta^(-alpha) = 125 and more, and swamps them; "mean" divides by all pairs, 92 % of which are proxy-proxy, so the
    gradient per embedding shrinks as the number of proxies grows; "batch" keeps it independent of B but growing with n.

    Args:
        num_classes: C, classes of the training split; labels must lie in [0, C).
        embedding_dim: D_e.
        proxies_per_class: M.
        alpha: exponent of the decay, >= 0.
        delta: radius in units of distance on the unit sphere (0..2), > 0.
        reduction: "sum", "mean" or "batch".

    `proxies` (M·C, D_e) is a parameter, drawn as normalised Gaussians from torch's global generator;
    `proxy_labels` (M·C,) says whose they are. Both need no normalisation by the caller.

    Source: "Potential Field Based Deep Metric Learning", CVPR 2025, arXiv 2405.18560; L_DML of SAGA Eq. 8.
    """

    def __init__(
        self,
        num_classes: int,
        embedding_dim: int,
        proxies_per_class: int = 15,
        alpha: float = 3.0,
        delta: float = 0.2,
        reduction: str = "mean",
    ) -> None:
        super().__init__()
        if reduction not in PF_REDUCTIONS:
            raise unknown_name("reduction of the Potential Field loss", reduction, PF_REDUCTIONS)
        if min(num_classes, embedding_dim, proxies_per_class) < 1:
            raise SagaError("num_classes, embedding_dim and proxies_per_class must be at least 1")
        if alpha < 0 or delta <= 0:
            raise SagaError(f"the Potential Field loss needs alpha >= 0 and delta > 0, got {alpha}, {delta}")
        self.num_classes = num_classes
        self.alpha = float(alpha)
        self.delta = float(delta)
        self.reduction = reduction
        self.proxies = nn.Parameter(F.normalize(torch.randn(num_classes * proxies_per_class, embedding_dim), dim=1))
        proxy_labels = torch.arange(num_classes).repeat_interleave(proxies_per_class)
        self.register_buffer("proxy_labels", proxy_labels, persistent=False)

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Return the scalar loss, float32 (float64 for float64 input).

        embeddings (B, D_e) of any floating type and norm; labels (B,) int64 in [0, C), else `SagaError`. Memory and time are O((B + M·C)²):
        4 GB at n = 11,000. Gradients are finite at coincident points; float32 resolves distances of 5e-4 (TF32: 0.03, turn it off).
        """
        _check_batch(embeddings, labels)
        num_embeddings = len(embeddings)
        if num_embeddings and not bool(((labels >= 0) & (labels < self.num_classes)).all()):
            raise SagaError(
                f"labels must lie in [0, {self.num_classes}), got {int(labels.min())}..{int(labels.max())}: "
                "number the training classes from 0"
            )
        # autocast would take the Gram matrix to bf16, whose 2 - 2s cannot resolve distances below delta
        with torch.autocast(embeddings.device.type, enabled=False):
            embeddings = _full_precision(embeddings)
            points = torch.cat([embeddings, self.proxies.to(embeddings.dtype)])
            points = F.normalize(points, dim=1)  # (n, D_e)
            point_labels = torch.cat([labels, self.proxy_labels])
            same = point_labels[:, None] == point_labels[None, :]  # (n, n)

            # Squared distances throughout: a square root has an infinite slope at coincident points.
            squared = 2 - 2 * points @ points.T
            floor, radius = MIN_DISTANCE**2, self.delta**2
            floor, radius, infinity = squared.new_tensor([floor, max(floor, radius), float("inf")])
            bounded = squared.clamp(torch.where(same, radius, floor), torch.where(same, infinity, radius))
            strength = bounded.pow(-self.alpha / 2)
            sign = (1 - 2 * same.to(squared.dtype)).fill_diagonal_(0)  # a point puts nothing on itself
            potential = (sign * strength).sum(dim=1)  # (n,), Ψ at each point

            if self.reduction == "sum":
                return potential.sum()
            if self.reduction == "mean":
                num_points = len(points)
                return potential.sum() / max(num_points * (num_points - 1), 1)
            return potential[:num_embeddings].mean() + potential[num_embeddings:].mean()


class _MetricLearningLoss(nn.Module):
    """A pytorch-metric-learning loss and its miner, if it has one, as `forward(embeddings, labels)`, in full precision."""

    def __init__(self, loss: nn.Module, miner: nn.Module | None = None) -> None:
        super().__init__()
        self.loss = loss
        self.miner = miner

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        _check_batch(embeddings, labels)
        with torch.autocast(embeddings.device.type, enabled=False):
            embeddings = _full_precision(embeddings)
            mined = None if self.miner is None else self.miner(embeddings, labels)
            return self.loss(embeddings, labels, indices_tuple=mined)


def make_dml_loss(name: str, num_classes: int, embedding_dim: int, **hyper: float | int | str) -> nn.Module:
    """Return the metric-learning loss `name` as a module with `forward(embeddings, labels) -> scalar`.

    | name    | loss                                    | reduction                                     |
    |---------|-----------------------------------------|-----------------------------------------------|
    | pf      | Potential Field (`PotentialFieldLoss`)  | its `reduction`, default mean over pairs      |
    | pa      | Proxy-Anchor                            | mean over classes present + mean over classes |
    | ms      | Multi-Similarity with its miner         | mean over anchors                             |
    | infonce | NT-Xent, other positives not in the     | mean over positive pairs                      |
    |         | denominator                             |                                               |

    embeddings (B, D_e) need not be normalised, labels (B,) int64 in [0, num_classes). `hyper` overrides
    DML_HYPERPARAMETERS[name]. All but "pf" come from pytorch-metric-learning, imported only here.
    Proxies ("pf", "pa") are the module's parameters; "ms" and "infonce" have none.

    Raises SagaError on an unknown loss, an unknown hyper-parameter or one out of range, or a missing package.
    Source: SAGA Tables 1 and 3 (L_DML of Eq. 8).
    """
    if name not in DML_HYPERPARAMETERS:
        raise unknown_name("DML loss", name, DML_HYPERPARAMETERS)
    chosen = DML_HYPERPARAMETERS[name] | dict(checked_dml_options(name, hyper))

    if name == "pf":
        return PotentialFieldLoss(num_classes, embedding_dim, **chosen)
    try:
        from pytorch_metric_learning import losses, miners
    except ModuleNotFoundError as error:
        raise SagaError(
            f"the DML loss {name!r} needs pytorch-metric-learning ({error}): pip install pytorch-metric-learning, or use 'pf'"
        ) from error
    if name == "pa":
        return _MetricLearningLoss(losses.ProxyAnchorLoss(num_classes, embedding_dim, **chosen))
    if name == "ms":
        miner = miners.MultiSimilarityMiner(epsilon=chosen.pop("epsilon"))
        return _MetricLearningLoss(losses.MultiSimilarityLoss(**chosen), miner)
    return _MetricLearningLoss(losses.NTXentLoss(**chosen))


# ----------------------------------------------------------------------------------------------------
# Policy gradient


def group_advantages(rewards: Tensor, eps: float = 1e-4, kind: str = "grpo") -> Tensor:
    """Return the advantages (r - mean) / (std + eps) of each group of rollouts.

    Other kinds, not in the paper: "dr_grpo" leaves the division out (Liu et al. 2025, arXiv 2503.20783), "rloo" compares each reward with
    the mean of the others of its group, "right" and "wrong" keep the advantages of right or wrong answers alone.

    rewards (P, G), one row per pair -> (P, G) float32 (float64 for float64 input), no gradient. std is the population one (divisor G), so a
    binary group with success rate p carries weight √(p(1-p)); the paper leaves the divisor and eps open. A row of equal rewards is exactly
    0, decided on the rewards themselves and not on a rounded std.

    Source: advantage of SAGA Sec. 2 (GRPO).
    """
    if rewards.ndim != 2:
        raise SagaError(f"rewards must be (P, G), one row per pair, got {tuple(rewards.shape)}")
    rewards = _full_precision(rewards.detach())
    centred = rewards - rewards.mean(dim=1, keepdim=True)
    advantages = centred / (rewards.std(dim=1, correction=0, keepdim=True) + eps)
    if kind in ("dr_grpo", "rloo"):
        advantages = centred if kind == "dr_grpo" else centred * rewards.shape[1] / max(1, rewards.shape[1] - 1)
    elif kind in ("right", "wrong"):
        advantages = advantages.clamp_min(0) if kind == "right" else advantages.clamp_max(0)
    undecided = (rewards == rewards[:, :1]).all(dim=1, keepdim=True)
    return advantages.masked_fill(undecided, 0.0)


def grpo_loss(log_probs: Tensor, advantages: Tensor, mask: Tensor, num_tokens: int | Tensor | None = None) -> Tensor:
    """Return -(1/|T|) Σ_r Σ_t advantages[r] · log_probs[r, t] over the generated tokens.

    log_probs (R, T) of the generated tokens under the current policy, with gradient; advantages (R,), treated as constants; mask (R, T)
    bool, True on generated tokens. Log-probs outside the mask may be anything, also -inf or NaN.

    `num_tokens` is |T|, the number of generated tokens of all contributing completions of the *step*. Give
    it when the buffer is replayed in parts: the partial losses then add up to Eqs. 4-5 exactly. Without it
    |T| = mask.sum(), right only if this call holds the whole buffer. A loss without tokens is 0.

    Departures from published GRPO and DAPO, all SAGA's:
    - one update per batch of rollouts, so the importance ratio is 1, whose gradient is that of the log-prob, and is not computed;
    - hence no clipping, and none of DAPO's asymmetric clip range;
    - no reference model: beta = 0, no KL penalty;
    - normalisation is DAPO's, one mean over the tokens of the whole buffer, not GRPO's mean per completion;
    - no overlong penalty: a truncated completion is unparseable and so has reward 0 (Eq. 3).
    Its value does not measure progress, because the advantages average out; only its gradient matters. Source: SAGA Eqs. 4-5.
    """
    if log_probs.ndim != 2 or mask.shape != log_probs.shape or advantages.shape != log_probs.shape[:1]:
        raise SagaError(
            "grpo_loss needs log_probs (R, T), advantages (R,), mask (R, T), got "
            f"{tuple(log_probs.shape)}, {tuple(advantages.shape)}, {tuple(mask.shape)}"
        )
    mask = mask.bool()
    if num_tokens is None:
        num_tokens = mask.sum().clamp_min(1)
    elif num_tokens <= 0:
        raise SagaError(f"num_tokens must count the generated tokens of the step, got {num_tokens}")
    # masked_fill, not a product: padding may hold -inf, and 0 · -inf is NaN
    log_probs = _full_precision(log_probs).masked_fill(~mask, 0.0)
    weighted = advantages.detach().to(log_probs.dtype)[:, None] * log_probs  # (R, T)
    return -weighted.sum() / num_tokens


# ----------------------------------------------------------------------------------------------------
# Attention alignment


def attention_alignment_loss(teacher: Tensor, student: Tensor, eps: float = 1e-8, reduction: str = "sum") -> Tensor:
    """Return KL(teacher ‖ student), in nats, summed ("sum") or averaged ("mean") over the rows.

    teacher (N, Np): the supervisor's attention over the patches of one image per row, non-negative, may hold exact zeros; it is detached
    and renormalised here; a row of zeros contributes 0. student (N, Np): the pooler's attention β, rows that sum to 1, clamped to >= eps.
    Eq. 7 adds a pair's two images: the caller divides the sum by the number of pairs; "mean" gives half of that. Source: SAGA Eqs. 6-7.
    """
    if teacher.shape != student.shape or teacher.ndim != 2:
        raise SagaError(f"teacher and student must both be (N, Np), got {tuple(teacher.shape)}, {tuple(student.shape)}")
    if reduction not in ("sum", "mean"):
        raise unknown_name("reduction of the attention alignment loss", reduction, ("sum", "mean"))
    teacher, student = _full_precision(teacher.detach()), _full_precision(student)
    total = teacher.sum(dim=1, keepdim=True)
    teacher = teacher / total.masked_fill(total == 0, 1.0)
    # xlogy(0, 0) = 0, the limit that KL means
    divergence = (torch.xlogy(teacher, teacher) - teacher * student.clamp_min(eps).log()).sum(dim=1)  # (N,)
    return divergence.sum() if reduction == "sum" else divergence.sum() / max(len(divergence), 1)
