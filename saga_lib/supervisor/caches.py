"""All key-value caches: a shared prompt, answers behind it, fixed buffers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from saga_lib.supervisor.attention import Places, SharedKV

if TYPE_CHECKING:
    from transformers import DynamicCache


class PromptRecord:
    """The cache of a prompt whose layers may be computed twice: it keeps what each computed first and returns what each computes.

    Offers what a language model of `transformers` asks of a cache, which its own, growing by every call, cannot.
    """

    is_compileable = False

    @dataclass
    class Layer:
        keys: Tensor  # (B, H_kv, P, d)
        values: Tensor

    def __init__(self) -> None:
        self.layers: list[PromptRecord.Layer] = []
        self.repeats = 1

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, *args: object, **kwargs: object) -> tuple[Tensor, Tensor]:
        if layer_idx == len(self.layers):
            self.layers.append(self.Layer(keys, values))
        return keys, values

    def batch_repeat_interleave(self, repeats: int) -> None:
        self.repeats *= repeats  # where they are read: no repeated copy is kept

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0

    def get_query_offset(self, layer_idx: int = 0) -> int:
        return self.get_seq_length(layer_idx)

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        return self.get_seq_length(layer_idx) + query_length, 0


class BehindPrompt(PromptRecord):
    """What follows such a prompt, all of it in one call: nothing is kept."""

    def __init__(self, prompt: PromptRecord) -> None:
        self.layers, self.repeats = prompt.layers, prompt.repeats

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, *args: object, **kwargs: object) -> tuple[Tensor, Tensor]:
        layer = self.layers[layer_idx]
        before = (layer.keys.repeat_interleave(self.repeats, 0), layer.values.repeat_interleave(self.repeats, 0))
        return torch.cat([before[0], keys], -2), torch.cat([before[1], values], -2)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.layers[layer_idx].keys.shape[-2]


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
            buffer[..., start:stop, :] = new
        return tuple(buffer[..., :stop, :] for buffer in self.layers[layer_idx])

    def keep_rows(self, rows: Tensor) -> None:
        """Go on with these rows only."""
        for index, layer in enumerate(self.layers):  # layer by layer: two whole caches need not fit in memory
            self.layers[index] = tuple(buffer[rows] for buffer in layer)

    def crop(self, count: int) -> None:
        """Forget the last `count` positions."""
        self.lengths = [length - count for length in self.lengths]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.lengths[layer_idx]

    def get_query_offset(self, layer_idx: int = 0) -> int:
        return self.lengths[layer_idx]

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        return self.lengths[layer_idx] + query_length, 0


class SharedDecodeCache(DecodeCache):
    """The same with one copy of the prompt per pair, for `attention.shared_attention`.

    On a CPU this saves the traffic of the copies; a GPU keeps the fused kernels of the stock attention.
    """

    def __init__(self, prompt: DynamicCache, group_size: int, room: int) -> None:
        pairs, heads, _, width = prompt.layers[0].keys.shape
        self.places = Places(pairs, group_size)
        self.prompts = [(layer.keys, layer.values) for layer in prompt.layers]
        shape = (pairs, heads, group_size, room, width)
        self.layers = [tuple(part.new_empty(shape) for part in layer) for layer in self.prompts]
        self.lengths = [0] * len(self.layers)

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, *args: object, **kwargs: object) -> tuple:
        own = super().update(self.places.by_pair(keys), self.places.by_pair(values), layer_idx)
        return tuple(
            SharedKV(prompt, part, self.places) for prompt, part in zip(self.prompts[layer_idx], own, strict=True)
        )

    def keep_rows(self, rows: Tensor) -> None:
        """Go on with these rows only; the others' places stay empty until half of all are."""
        slots = rows if self.places.slots is None else self.places.slots[rows]
        kept, pair, counts = (slots // self.places.group).unique_consecutive(return_inverse=True, return_counts=True)
        packed = Places(len(kept), int(counts.max()))
        if 2 * packed.pairs * packed.group > self.places.pairs * self.places.group:
            self.places = self.places._replace(slots=slots)
            return
        nth = torch.arange(len(rows), device=rows.device) - (counts.cumsum(0) - counts)[pair]  # of its pair's rows
        new_slots = pair * packed.group + nth
        source = slots.new_zeros(packed.pairs * packed.group).index_copy(0, new_slots, slots)
        move = self.places._replace(slots=source)
        self.layers = [tuple(packed.by_pair(move.by_row(part)).contiguous() for part in layer) for layer in self.layers]
        self.prompts = [tuple(part[kept] for part in layer) for layer in self.prompts]
        self.places = packed._replace(slots=new_slots)

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        return query_length, 0  # `shared_attention` needs no mask, so let none be made
