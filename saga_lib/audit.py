"""The gradient audit: which tokens of the answers carry GRPO's gradient, measured against attribute truth.

Sec. 3.2 of the paper argues that a binary verdict reward assigns credit to the attributes that discriminate a pair,
because mean-zero advantages cancel on the tokens that right and wrong rollouts share. Where the truth is known, that
can be measured. Nothing here leaves a gradient behind or draws a random number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from saga_lib.prompts import attribute_spans, field_span
from saga_lib.supervisor.base import Supervisor
from saga_lib.supervisor.replay import replay_log_probs
from saga_lib.towers import VisualTokens
from saga_lib.vocabulary import ITEM_SECTIONS, Vocabulary

if TYPE_CHECKING:
    from saga_lib.step import Buffer

TOKEN_TYPES = ("values", "differences", "verdict", "rest")  # together: every generated token, each once
Slot = tuple[str, str]  # (section, attribute): one described value, or one entry of "differences"


def slots_of(vocabulary: Vocabulary) -> list[Slot]:
    """Return the slots of an answer: every attribute of both images and, where it is asked for, of "differences"."""
    sections = (*ITEM_SECTIONS, "differences") if vocabulary.differences == "every" else ITEM_SECTIONS
    return [(section, name) for section in sections for name in vocabulary.attribute_names]


def token_kinds(supervisor: Supervisor, vocabulary: Vocabulary, ids: Sequence[int]) -> tuple[list[Slot | str], dict[Slot, str]]:
    """Return what each token of an answer is part of, and the values of its slots.

    A token is part of a slot's value, of what else stands in "differences" (keys left out), of the verdict, or else
    "rest": keys and punctuation, confidence, reasoning, attributes that the vocabulary does not have, the end of turn.
    """
    text, offsets = supervisor.decode(ids), supervisor.token_offsets(ids)
    slots = slots_of(vocabulary)
    spans = [s for s in attribute_spans(text, (*ITEM_SECTIONS, "differences")) if (s.section, s.attribute) in slots]
    listed = [(s.start, s.end) for s in attribute_spans(text, ("differences",))] or [field_span(text, "differences")]
    ranges: list[tuple[Slot | str, tuple[int, int] | None]] = [
        *(("differences", span) for span in listed),
        ("verdict", field_span(text, vocabulary.verdict_key)),
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

    - gradient = ‖Σ_g A_g J_g‖, what GRPO sends to X through these tokens, before -λ/|T|;
    - gross = Σ_g |A_g| ‖J_g‖; gradient / gross is the fraction that survives cancellation within the group;
    - shuffled: root mean square of `gradient` over all ways to deal the same advantages out to the G rollouts, what a
      reward that knows nothing of the answers would send (in closed form).

    DeepStack features are held fixed: the pooler reads X alone, and they would by-pass it. "slot" and "difference" also have
    `differs` (truth), `unanimous` (all G rollouts give one value), `correct` (share of rollouts whose value is true),
    `described` (rollouts with such a value) and `log_prob` (of the whole value, mean over those). Every rollout gets X as a leaf
    of its own, so that one backward per part yields the J_g of all rollouts, `rows_at_once` at a time (16 are
    fastest on one core).
    """
    group, result = buffer.group_size, []
    slots = slots_of(vocabulary)
    pairs_at_once = max(1, rows_at_once // group)
    for first in range(0, len(buffer.pairs), pairs_at_once):
        pairs = buffer.pairs[first : first + pairs_at_once]
        count = len(pairs)
        part = buffer.rollouts.select(torch.arange(first * group, (first + count) * group))
        answers = [
            token_kinds(supervisor, vocabulary, row[:length].tolist())
            for row, length in zip(part.tokens, part.lengths.tolist(), strict=True)
        ]
        of_pairs = tokens.detach()[torch.as_tensor(pairs.reshape(-1), device=prompt_ids.device)]  # (2·count, Np, D)
        copies = [
            t.unflatten(0, (count, 2)).repeat_interleave(group, 0).flatten(0, 1) for t in of_pairs.tensors()
        ]  # (2·count·G, Np, D)
        leaf = copies[0].requires_grad_(True)
        log_probs, _ = replay_log_probs(supervisor, prompt_ids, VisualTokens(leaf, tuple(copies[1:])), part.tokens, part.mask)
        advantages = buffer.advantages[first : first + count].to(leaf.device, torch.float64)
        nothing = torch.zeros(count, group, leaf[0].numel() * 2, dtype=torch.float64, device=leaf.device)
        sums = {name: nothing.clone() for name in (*TOKEN_TYPES, "all")}
        measured: dict[Slot | str, dict[str, Tensor]] = {}
        described = {}
        for kind in (*slots, *TOKEN_TYPES[1:]):
            here = torch.zeros_like(part.mask)
            for row, (kinds, _) in enumerate(answers):
                here[row, : len(kinds)] = torch.tensor([k == kind for k in kinds], device=here.device)
            chosen = (log_probs * (here & part.mask)).sum(1)  # (count·G,)
            jacobians = nothing  # (count, G, 2·Np·D)
            if here.any():
                [gradient] = torch.autograd.grad(chosen.sum(), leaf, retain_graph=True)
                jacobians = gradient.double().view(count, group, -1)
            token_type = kind if isinstance(kind, str) else "values" if kind[0] in ITEM_SECTIONS else "differences"
            sums[token_type] += jacobians
            sums["all"] += jacobians
            if not isinstance(kind, str):
                measured[kind] = _norms(advantages, jacobians)
                described[kind] = (here.any(1).view(count, group), chosen.detach().double().view(count, group))
        measured |= {name: _norms(advantages, jacobians) for name, jacobians in sums.items()}
        for k in range(count):
            same = bool(buffer.same_class[first + k])
            for kind, norms in measured.items():
                row = {"pair": first + k, "same_class": same, "part": kind}
                if not isinstance(kind, str):
                    section, name = kind
                    row["part"] = "slot" if section in ITEM_SECTIONS else "difference"
                    values = [truth[name] for truth in truth_pairs[first + k]]
                    differs = values[0] != values[1]
                    true = dict(zip(ITEM_SECTIONS, values, strict=True)).get(section, "different" if differs else "same")
                    said = [answers[k * group + g][1].get(kind) for g in range(group)]
                    is_described, log_prob = (t[k] for t in described[kind])
                    row |= {
                        "item": section, "attribute": name, "differs": differs,
                        "unanimous": None not in said and len(set(said)) == 1,
                        "correct": sum(value == true for value in said) / group,
                        "described": int(is_described.sum()),
                        "log_prob": float(log_prob[is_described].mean()) if is_described.any() else None,
                    }  # fmt: skip
                result.append(row | {name: float(norm[k]) for name, norm in norms.items()})
    return result


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
