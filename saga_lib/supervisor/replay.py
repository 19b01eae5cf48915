"""Differentiable replay of answers through the frozen supervisor, prompt shared, and their image attention."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence

import torch
from torch import Tensor

from saga_lib.answers import attribute_spans
from saga_lib.supervisor.attention import AttentionTap, capture_attention, image_attention
from saga_lib.supervisor.base import Prefix, Supervisor
from saga_lib.towers import VisualTokens
from saga_lib.vocabulary import PLAIN_KEYS, AnswerKeys


def replay_log_probs(
    supervisor: Supervisor, prompt_ids: Tensor, images: VisualTokens, tokens: Tensor, mask: Tensor, layer: int = 0,
    chunk: int = 4096,
) -> tuple[Tensor, AttentionTap]:  # fmt: skip
    """Return log π_θ(y_t | y_<t, S) (R, T) of given completions and the attention tap of one layer.

    `images` (2B, Np, D) carry the gradient; `tokens`, `mask` (R, T) are pair-major with R a multiple of B. The prompt is prefilled once per
    pair and its cache expanded; the last prompt token predicts the first completion token. Positions outside `mask` are 0. Temperature 1:
    Eq. 5 takes log π_θ itself, not the tempered distribution that rollouts are drawn from.
    """
    return completion_log_probs(supervisor, supervisor.prefill(prompt_ids, images), tokens, mask, layer, chunk)


def completion_log_probs(
    supervisor: Supervisor, prefix: Prefix, tokens: Tensor, mask: Tensor, layer: int = 0, chunk: int = 4096
) -> tuple[Tensor, AttentionTap]:
    """Return the same of completions that follow a prefix, whose cache is used up."""
    prefix = prefix.expand(tokens.shape[0] // prefix.last_hidden.shape[0])
    hidden = prefix.last_hidden[:, None]
    with capture_attention(layer) as tap:
        if tokens.shape[1] > 1:
            hidden = torch.cat([hidden, supervisor.extend(prefix, tokens[:, :-1])], 1)
    scored = supervisor.log_probs(hidden[mask], tokens[mask], chunk)
    log_probs = scored.new_zeros(tokens.shape).masked_scatter(mask, scored)
    return log_probs, tap


def attribute_tokens(supervisor: Supervisor, ids: Sequence[int], keys: AnswerKeys = PLAIN_KEYS, sections: Sequence[str] = ()) -> dict:
    """Return {(section, attribute): [token indices]} of the values described in an answer (default: of both images)."""
    text = supervisor.decode(ids)
    starts, ends = zip(*supervisor.token_offsets(ids), strict=True)  # both ascend
    return {
        (span.section, span.attribute): list(range(bisect_right(ends, span.start), bisect_left(starts, span.end)))
        for span in attribute_spans(text, keys, sections)
    }


def teacher_attention(
    supervisor: Supervisor, tap: AttentionTap, row: int, ids: Sequence[int], prompt_ids: Tensor, keys: AnswerKeys = PLAIN_KEYS
) -> Tensor | None:
    """Return ᾱ (2, Np) of one replayed answer: rows image a, image b (Eq. 6), or None without descriptions.

    Each token that describes image a contributes the attention of the step that generates it (its query is
    the preceding token) to the patches of image a, head-averaged and renormalised; then the mean over tokens.
    """
    places = attribute_tokens(supervisor, ids, keys)
    maps = []
    for section, columns in zip(keys.items, supervisor.image_columns(prompt_ids), strict=True):
        wanted = [t for (where, _), tokens in places.items() if where == section for t in tokens if t > 0]
        if not wanted:
            return None
        steps = torch.tensor(wanted, device=prompt_ids.device) - 1
        attention = image_attention(tap, row, steps, columns)
        maps.append((attention / attention.sum(-1, keepdim=True)).mean(0))
    return torch.stack(maps)
