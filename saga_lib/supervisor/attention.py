"""Attention of one layer of p_ψ, recomputed from its queries and keys for the rows and columns that matter."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import Tensor

NAME = "saga_sdpa"  # no "flash" in it: transformers dispatches on the name


@dataclass
class AttentionTap:
    """Queries (R, H, Tq, d) and keys (R, H_kv, Tk, d) of one layer's last forward, detached."""

    layer: int  # 0-based
    query: Tensor | None = None
    key: Tensor | None = None
    scaling: float = 1.0


_active: ContextVar[AttentionTap | None] = ContextVar("attention_tap", default=None)


@contextmanager
def capture_attention(layer: int) -> Iterator[AttentionTap]:
    """Record q and k (after q/k-norm, rotary and cache) of one language-model layer while the context is open."""
    tap = AttentionTap(layer)
    token = _active.set(tap)
    try:
        yield tap
    finally:
        _active.reset(token)


def _attention(module, query, key, value, attention_mask, **kwargs):  # noqa: ANN001, ANN003, ANN202
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    tap = _active.get()
    if tap is not None and module.layer_idx == tap.layer:
        tap.query, tap.key = query.detach(), key.detach()
        tap.scaling = kwargs.get("scaling") or query.shape[-1] ** -0.5
    return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)


def register() -> str:
    """Register our attention with transformers and return its name.

    The mask function must be registered too: without it the model silently runs with no padding mask.
    """
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    return NAME


@torch.no_grad()
def image_attention(tap: AttentionTap, row: int, positions: Tensor, columns: Tensor) -> Tensor:
    """Return head-averaged attention (len(positions), len(columns)) of one sequence (Sec. 3.3, Eq. 6).

    `positions` index the queries of the tapped forward, `columns` the keys; the queries are the last
    Tq of the Tk keys and see nothing after themselves. Rows are *not* renormalised over the columns.
    """
    query, key = tap.query[row], tap.key[row]  # (H, Tq, d), (H_kv, Tk, d)
    offset = key.shape[1] - query.shape[1]
    key = key.repeat_interleave(query.shape[0] // key.shape[0], 0)
    scores = (query[:, positions].float() @ key.float().transpose(1, 2)) * tap.scaling  # (H, rows, Tk)
    future = torch.arange(key.shape[1], device=key.device)[None] > (positions + offset)[:, None]
    return scores.masked_fill(future, float("-inf")).softmax(-1).mean(0)[:, columns]
