"""Our attention inside the stock models: prompts shared by several rows, and attention maps of one layer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import Tensor

from saga_lib.supervisor.caches import FixedKV, SharedKV

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


def shared_attention(query: Tensor, key: SharedKV, value: SharedKV, scaling: float) -> Tensor:
    """Return causal attention (R, H, T, d) of queries (R, H, T, d), the last T positions of the rows' own segments.

    A prompt is never repeated: one product compares all queries of a pair with its keys.
    """
    kv_heads, steps, length = key.own.shape[1], query.shape[2], key.prompt.shape[2]
    query = (query * scaling).unflatten(1, (kv_heads, -1)).flatten(2, 3)
    query = key.places.by_pair(query).contiguous()  # (B, H_kv, G, n, d), n = H/H_kv·T
    to_prompt = (query.flatten(2, 3) @ key.prompt.mT).unflatten(2, query.shape[2:4])
    to_own = query @ key.own.mT
    if steps > 1:
        future = torch.ones(steps, to_own.shape[-1], dtype=torch.bool, device=query.device).triu(to_own.shape[-1] - steps + 1)
        to_own = to_own.unflatten(3, (-1, steps)).masked_fill(future, float("-inf")).flatten(3, 4)
    weights = torch.cat([to_prompt, to_own], -1).softmax(-1)
    mixed = weights[..., length:] @ value.own
    mixed += (weights[..., :length].flatten(2, 3) @ value.prompt).view_as(mixed)
    return key.places.by_row(mixed).unflatten(2, (-1, steps)).flatten(1, 2)


def fixed_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float) -> Tensor:
    """Return attention (R, H, n, d) of queries (R, H, n, d) to keys (R, H_kv, span, d) that a mask added to the scores hides in part.

    Keys are never repeated: the queries of all heads that share a key are laid one after another, n of each head, and
    so is the mask (1, 1, H/H_kv·n, span).
    """
    heads, steps = query.shape[1:3]
    packed = query.unflatten(1, (key.shape[1], -1)).flatten(2, 3)
    mixed = torch.nn.functional.scaled_dot_product_attention(packed, key, value, mask, scale=scaling)
    return mixed.unflatten(2, (heads // key.shape[1], steps)).flatten(1, 2)


def spares_repeats(device: torch.device) -> bool:
    """Return whether masked attention leaves out what only GPU kernels need: keys and values repeated for every query head."""
    return device.type == "cpu"


def _attention(module, query, key, value, attention_mask, **kwargs):  # noqa: ANN001, ANN003, ANN202
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if isinstance(key, SharedKV):
        return shared_attention(query, key, value, kwargs["scaling"]).transpose(1, 2), None
    if isinstance(key, FixedKV):
        return fixed_attention(query, key.states, value.states, attention_mask, kwargs["scaling"]).transpose(1, 2), None
    tap = _active.get()
    if tap is not None and module.layer_idx == tap.layer:
        tap.query, tap.key = query.detach(), key.detach()
        tap.scaling = kwargs.get("scaling") or query.shape[-1] ** -0.5
    if attention_mask is not None and spares_repeats(query.device):
        shared = attention_mask if attention_mask.stride(0) else attention_mask[:1]  # transformers repeats one mask for all rows
        mixed = torch.nn.functional.scaled_dot_product_attention(query, key, value, shared, scale=kwargs.get("scaling"), enable_gqa=True)
        return mixed.transpose(1, 2), None
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
