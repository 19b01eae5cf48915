"""G sampled answers per pair (Eq. 2) from one shared prefix, all pairs of a wave in one batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from saga_lib.encoder import VisualTokens
from saga_lib.supervisor.base import Supervisor


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

    def select(self, rows: Tensor) -> Rollouts:
        """Return the given rows, trimmed to their longest completion."""
        mask = self.mask[rows]
        width = max(int(mask.sum(1).max()), 1) if len(mask) else 1
        return Rollouts(
            self.tokens[rows, :width], mask[:, :width], [self.texts[i] for i in rows.tolist()],
            self._ends_with_eos[rows, :width],
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
        )


@torch.no_grad()
def generate_rollouts(
    supervisor: Supervisor, prompt_ids: Tensor, images: VisualTokens, group_size: int, max_new_tokens: int,
    temperature: float = 0.7, top_p: float = 0.95, generator: torch.Generator | None = None,
) -> Rollouts:  # fmt: skip
    """Sample G completions for each of B pairs; `images` are the pairs' tokens, (2B, Np, D), row-major.

    Temperature 0 decodes greedily. The prompt is prefilled once per pair; rows that ended leave the batch.
    """
    prefix = supervisor.prefill(prompt_ids, images).expand(group_size)
    rows, device, eos = prefix.last_hidden.shape[0], prompt_ids.device, supervisor.eos_token_id
    tokens = torch.full((rows, max_new_tokens), eos, device=device)
    mask = torch.zeros_like(tokens, dtype=torch.bool)
    live = torch.arange(rows, device=device)
    hidden = prefix.last_hidden
    for step in range(max_new_tokens):
        chosen = sample(supervisor.head(hidden), temperature, top_p, generator)
        tokens[live, step], mask[live, step] = chosen, True
        going = chosen != eos
        if step + 1 == max_new_tokens or not going.any():
            break
        if going.sum() < len(live):
            kept = going.nonzero()[:, 0]
            prefix.cache.batch_select_indices(kept)
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
