"""G sampled answers per pair (Eq. 2) from one shared prefix, all pairs of a wave in one batch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from saga_lib.encoder import VisualTokens
from saga_lib.supervisor.base import Supervisor

if TYPE_CHECKING:
    from transformers import DynamicCache


@dataclass
class Rollouts:
    """R = B·G completions, pair-major. `mask` covers generated tokens, the end-of-turn token included."""

    tokens: Tensor  # (R, T) int64, right-padded with the end-of-turn id
    mask: Tensor  # (R, T) bool
    texts: list[str]

    @property
    def finished(self) -> Tensor:
        """Return (R,) bool: False where the answer was cut at the token limit."""
        last = (self.mask.sum(1) - 1).clamp(min=0)
        return self._ends_with_eos.gather(1, last[:, None])[:, 0]

    _ends_with_eos: Tensor = None  # (R, T) bool

    lengths: Tensor = None  # (R,) tokens of the answer; the mask may score fewer (the oracle's has holes)

    def __post_init__(self) -> None:
        if self.lengths is None:
            columns = torch.arange(1, self.mask.shape[1] + 1, device=self.mask.device)
            self.lengths = (self.mask * columns).amax(1)

    def select(self, rows: Tensor) -> Rollouts:
        """Return the given rows, trimmed to their longest answer."""
        width = max(int(self.lengths[rows].max()), 1) if len(rows) else 1
        return Rollouts(
            self.tokens[rows, :width], self.mask[rows, :width], [self.texts[i] for i in rows.tolist()],
            self._ends_with_eos[rows, :width], self.lengths[rows],
        )  # fmt: skip

    @staticmethod
    def cat(parts: list[Rollouts], pad: int) -> Rollouts:
        width = max(part.tokens.shape[1] for part in parts)

        def padded(tensor: Tensor, value: int | bool) -> Tensor:
            return torch.nn.functional.pad(tensor, (0, width - tensor.shape[1]), value=value)

        return Rollouts(
            torch.cat([padded(p.tokens, pad) for p in parts]),
            torch.cat([padded(p.mask, False) for p in parts]),
            [text for p in parts for text in p.texts],
            torch.cat([padded(p._ends_with_eos, False) for p in parts]),
            torch.cat([p.lengths for p in parts]),
        )


class DecodeCache:
    """A prompt's KV cache repeated G times with room for the answers: written in place, never concatenated.

    Offers what a language model of `transformers` asks of a cache. No gradient.
    """

    is_compileable = False

    def __init__(self, prompt: DynamicCache, group_size: int, room: int) -> None:
        self.layers = [(self._expanded(x.keys, group_size, room), self._expanded(x.values, group_size, room)) for x in prompt.layers]
        self.lengths = [layer.keys.shape[-2] for layer in prompt.layers]

    @staticmethod
    def _expanded(prompt: Tensor, group_size: int, room: int) -> Tensor:
        pairs, heads, length, width = prompt.shape
        buffer = prompt.new_empty(pairs * group_size, heads, length + room, width)
        buffer[:, :, :length] = prompt.repeat_interleave(group_size, 0)
        return buffer

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, *args: object, **kwargs: object) -> tuple:
        start = self.lengths[layer_idx]
        stop = self.lengths[layer_idx] = start + keys.shape[-2]
        for buffer, new in zip(self.layers[layer_idx], (keys, values), strict=True):
            buffer[:, :, start:stop] = new
        return tuple(buffer[:, :, :stop] for buffer in self.layers[layer_idx])

    def keep_rows(self, rows: Tensor) -> None:
        """Go on with these rows only."""
        self.layers = [tuple(buffer[rows] for buffer in layer) for layer in self.layers]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.lengths[layer_idx]

    def get_query_offset(self, layer_idx: int = 0) -> int:
        return self.lengths[layer_idx]

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        return self.lengths[layer_idx] + query_length, 0


@torch.no_grad()
def generate_rollouts(
    supervisor: Supervisor, prompt_ids: Tensor, images: VisualTokens, group_size: int, max_new_tokens: int,
    temperature: float = 0.7, top_p: float = 0.95, generator: torch.Generator | None = None,
) -> Rollouts:  # fmt: skip
    """Sample G completions for each of B pairs; `images` are the pairs' tokens, (2B, Np, D), row-major.

    Temperature 0 decodes greedily. The prompt is prefilled once per pair; rows that ended leave the batch.
    """
    prefix = supervisor.prefill(prompt_ids, images)
    prefix = replace(
        prefix, cache=DecodeCache(prefix.cache, group_size, max_new_tokens),
        last_hidden=prefix.last_hidden.repeat_interleave(group_size, 0),
    )  # fmt: skip
    rows, device, eos = prefix.last_hidden.shape[0], prompt_ids.device, supervisor.eos_token_id
    tokens = torch.full((rows, max_new_tokens), eos, device=device)
    mask = torch.zeros_like(tokens, dtype=torch.bool)
    live = torch.arange(rows, device=device)
    hidden = prefix.last_hidden
    for step in range(max_new_tokens):
        logits = supervisor.head(hidden)
        logits[:, supervisor.image_token_id] = float("-inf")  # a sampled placeholder would stand for an image
        chosen = sample(logits, temperature, top_p, generator)
        tokens[live, step], mask[live, step] = chosen, True
        going = chosen != eos
        if step + 1 == max_new_tokens or not going.any():
            break
        if going.sum() < len(live):
            kept = going.nonzero()[:, 0]
            prefix.cache.keep_rows(kept)
            live, chosen = live[kept], chosen[kept]
        hidden = supervisor.extend(prefix, chosen[:, None], start=step)[:, -1]
    width = int(mask.sum(1).max())
    tokens, mask = tokens[:, :width], mask[:, :width]
    texts = [supervisor.decode(row[m].tolist()) for row, m in zip(tokens, mask, strict=True)]
    return Rollouts(tokens, mask, texts, (tokens == eos) & mask)


def sample(logits: Tensor, temperature: float, top_p: float, generator: torch.Generator | None) -> Tensor:
    """Draw one id per row of logits (R, V) from the nucleus of mass `top_p`; temperature 0 takes the largest."""
    if temperature == 0:
        return logits.argmax(-1)
    probabilities = (logits.float() / temperature).softmax(-1)
    if top_p < 1:
        ordered, order = probabilities.sort(-1, descending=True)
        outside = ordered.cumsum(-1) - ordered >= top_p
        choice = torch.multinomial(ordered.masked_fill(outside, 0), 1, generator=generator)
        return order.gather(-1, choice)[:, 0]
    return torch.multinomial(probabilities, 1, generator=generator)[:, 0]
