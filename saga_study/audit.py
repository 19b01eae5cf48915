"""The gradient audit: which tokens of the answers carry GRPO's gradient, compared with the true attributes.

Sec. 3.2 of the paper argues that a binary verdict reward assigns credit to the attributes that discriminate a pair,
because mean-zero advantages cancel on the tokens that right and wrong rollouts share. Where the true attributes are known,
this can be measured. An audit leaves no gradient behind and draws no random number, so it changes no result.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from saga_lib.answers import attribute_spans, field_span
from saga_lib.supervisor.base import Supervisor
from saga_lib.supervisor.replay import replay_log_probs
from saga_lib.towers import VisualTokens
from saga_lib.vocabulary import Vocabulary

if TYPE_CHECKING:
    from saga_lib.step import Buffer

TOKEN_TYPES = ("values", "differences", "verdict", "rest")  # together: every generated token, each once
Slot = tuple[str, str]  # (section, attribute): one described value, or one entry of "differences"


def slots_of(vocabulary: Vocabulary) -> list[Slot]:
    """Return the slots of an answer: every attribute of both images and, where it is asked for, of "differences"."""
    items = vocabulary.keys.items
    sections = (*items, "differences") if vocabulary.differences == "every" else items
    return [(section, name) for section in sections for name in vocabulary.attribute_names]


def token_kinds(supervisor: Supervisor, vocabulary: Vocabulary, ids: Sequence[int]) -> tuple[list[Slot | str], dict[Slot, str]]:
    """Return what each token of an answer is part of, and the values of its slots.

    `ids` are the answer's tokens. A token belongs to a slot's value, to another value in "differences", to the verdict, or to
    "rest": keys and punctuation, confidence, reasoning, attributes that the vocabulary does not have, the end of turn.
    """
    text, offsets = supervisor.decode(ids), supervisor.token_offsets(ids)
    slots, keys = slots_of(vocabulary), vocabulary.keys
    spans = [s for s in attribute_spans(text, keys, (*keys.items, "differences")) if (s.section, s.attribute) in slots]
    listed = [(s.start, s.end) for s in attribute_spans(text, keys, ("differences",))] or [field_span(text, "differences", keys)]
    ranges: list[tuple[Slot | str, tuple[int, int] | None]] = [
        *(("differences", span) for span in listed),
        ("verdict", field_span(text, keys.verdict, keys)),
        *(((s.section, s.attribute), (s.start, s.end)) for s in spans),
    ]
    kinds: list[Slot | str] = ["rest"] * len(ids)
    for kind, span in ranges:
        for i, (start, end) in enumerate(offsets):
            if span is not None and start < span[1] and end > span[0]:
                kinds[i] = kind
    return kinds, {(s.section, s.attribute): text[s.start : s.end] for s in spans}


def audit_step(
    supervisor: Supervisor, vocabulary: Vocabulary, prompt_ids: Tensor, tokens: VisualTokens, buffer: Buffer,
    truth_pairs: Sequence[tuple[Mapping[str, str], Mapping[str, str]]], rows_at_once: int = 16,
) -> list[dict]:  # fmt: skip
    """Return where the GRPO gradient of a step's buffer comes from: one row per pair and part of the answer.

    `tokens` (N, Np, D) are all images of the step, `truth_pairs` (K) the true attributes of each pair's two images.
    Parts (column `part`): "slot", the value of one attribute (`attribute`) of one image (`item`); "difference", one
    attribute's entry in the list of differences; the four TOKEN_TYPES, "values" and "differences" being all of these
    together; "all". For each part, with g over the G rollouts and
    J_g = ∂ Σ_t log π(y_t | y_<t, S) / ∂X over the part's tokens, X being the merged tokens of both images:

    - gradient = ‖Σ_g A_g J_g‖, what GRPO sends to X through these tokens, without the factor -λ/|T|;
    - gross = Σ_g |A_g| ‖J_g‖; gradient / gross is the fraction that survives cancellation within the group;
    - shuffled: root mean square of `gradient` over all ways to assign the same advantages to the G rollouts, what a
      reward that is unrelated to the answers would send (in closed form).

    DeepStack features are held fixed, because the pooler reads X alone. "slot" and "difference" also have `differs`
    (truth), `unanimous` (all G rollouts give one value), `correct` (share of rollouts whose value is true), `described`
    (number of rollouts with such a value) and `log_prob` (of the whole value, mean over those, in nats).

    Every rollout gets a copy of X of its own, so that one backward pass per part gives the J_g of `rows_at_once` rollouts
    (16 are fastest on one core).
    """
    group, result = buffer.group_size, []
    pairs_at_once = max(1, rows_at_once // group)
    for first in range(0, len(buffer.pairs), pairs_at_once):
        pairs = range(first, min(first + pairs_at_once, len(buffer.pairs)))
        part = buffer.rollouts.select(torch.arange(pairs.start * group, pairs.stop * group))
        answers = [
            token_kinds(supervisor, vocabulary, row[:length].tolist())
            for row, length in zip(part.tokens, part.lengths.tolist(), strict=True)
        ]
        of_pairs = tokens.detach()[torch.as_tensor(buffer.pairs[first : pairs.stop].reshape(-1), device=prompt_ids.device)]
        leaf, *deepstack = _copy_per_rollout(of_pairs, group)
        leaf.requires_grad_(True)
        log_probs, _ = replay_log_probs(supervisor, prompt_ids, VisualTokens(leaf, tuple(deepstack)), part.tokens, part.mask)
        advantages = buffer.advantages[first : pairs.stop].to(leaf.device, torch.float64)
        measured = _measure(leaf, log_probs, part.mask, [kinds for kinds, _ in answers], slots_of(vocabulary), advantages)
        for k, pair in enumerate(pairs):
            values = [said for _, said in answers[k * group : (k + 1) * group]]
            for kind, found in measured.items():
                row = {"pair": pair, "same_class": bool(buffer.same_class[pair]), "part": kind}
                if not isinstance(kind, str):
                    row |= _slot_columns(kind, truth_pairs[pair], [said.get(kind) for said in values], found, k)
                result.append(row | {name: float(norm[k]) for name, norm in found.norms.items()})
    return result


@dataclass
class _Measured:
    """What was measured of one part of the answers, for P pairs of G rollouts."""

    norms: dict[str, Tensor]  # gradient, gross and shuffled, (P,) each
    described: Tensor | None = None  # (P, G) bool, of a slot: whether the rollout has it
    log_probs: Tensor | None = None  # (P, G) float64, of a slot's value


def _copy_per_rollout(of_pairs: VisualTokens, group: int) -> list[Tensor]:
    """Repeat the tokens of P pairs, (2P, Np, D) each, for each of the G rollouts: (2·P·G, Np, D)."""
    return [t.unflatten(0, (-1, 2)).repeat_interleave(group, 0).flatten(0, 1) for t in of_pairs.tensors()]


def _measure(
    leaf: Tensor, log_probs: Tensor, mask: Tensor, kinds: Sequence[list[Slot | str]], slots: Sequence[Slot], advantages: Tensor
) -> dict[Slot | str, _Measured]:
    """Differentiate the log-probs (P·G, T) of each part of the answers with respect to `leaf`, X once per rollout.

    `kinds` are those of `token_kinds` for each rollout; `advantages` are (P, G).
    """
    count, group = advantages.shape
    nothing = torch.zeros(count, group, leaf[0].numel() * 2, dtype=torch.float64, device=leaf.device)
    sums = {name: nothing.clone() for name in (*TOKEN_TYPES, "all")}
    measured: dict[Slot | str, _Measured] = {}
    for kind in (*slots, *TOKEN_TYPES[1:]):
        here = torch.zeros_like(mask)
        for row, of_tokens in enumerate(kinds):
            here[row, : len(of_tokens)] = torch.tensor([k == kind for k in of_tokens], device=here.device)
        chosen = (log_probs * (here & mask)).sum(1)  # (P·G,)
        jacobians = nothing  # (P, G, 2·Np·D)
        if here.any():
            [gradient] = torch.autograd.grad(chosen.sum(), leaf, retain_graph=True)
            jacobians = gradient.double().view(count, group, -1)
        token_type = kind if isinstance(kind, str) else "differences" if kind[0] == "differences" else "values"
        sums[token_type] += jacobians
        sums["all"] += jacobians
        if not isinstance(kind, str):
            described, values = here.any(1).view(count, group), chosen.detach().double().view(count, group)
            measured[kind] = _Measured(_norms(advantages, jacobians), described, values)
    return measured | {name: _Measured(_norms(advantages, jacobians)) for name, jacobians in sums.items()}


def _slot_columns(slot: Slot, truth: Sequence[Mapping[str, str]], said: Sequence[str | None], found: _Measured, k: int) -> dict:
    """Return the columns that only slots have, for the k-th pair; `said` are the values that its G rollouts give."""
    section, name = slot
    values = [attributes[name] for attributes in truth]
    differs = values[0] != values[1]
    told = {"differences": "different" if differs else "same"}
    true = told[section] if section in told else values[int(section[-1]) - 1]  # the keys of the items end in 1 and 2
    described, log_probs = found.described[k], found.log_probs[k]
    return {
        "part": "difference" if section in told else "slot",
        "item": section, "attribute": name, "differs": differs,
        "unanimous": None not in said and len(set(said)) == 1,
        "correct": sum(value == true for value in said) / len(said),
        "described": int(described.sum()),
        "log_prob": float(log_probs[described].mean()) if described.any() else None,
    }  # fmt: skip


def _norms(advantages: Tensor, jacobians: Tensor) -> dict[str, Tensor]:
    """Return gradient, gross and shuffled (P,) of advantages (P, G) and per-rollout gradients (P, G, X)."""
    group = advantages.shape[1]
    signed = torch.einsum("pg,pgx->px", advantages, jacobians)
    gross = (advantages.abs() * jacobians.norm(dim=2)).sum(1)
    # E‖Σ A_π(g) J_g‖² over permutations π: E[A_i A_j] is the variance for i = j, -variance / (G - 1) else, plus mean².
    deviations = (jacobians - jacobians.mean(1, keepdim=True)).square().sum((1, 2))
    variance, mean = advantages.var(1, correction=0), advantages.mean(1)
    shuffled = variance * group / max(1, group - 1) * deviations + mean.square() * jacobians.sum(1).square().sum(1)
    return {"gradient": signed.norm(dim=1), "gross": gross, "shuffled": shuffled.sqrt()}
