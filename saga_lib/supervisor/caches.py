"""All key-value caches that stand in for those of transformers, which grow by concatenation with every call.

In shapes, rows R = B·G are G answers of each of B pairs, H_kv are heads of keys, n or P positions, d is a head's width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import DynamicCache


class Cache:
    """What a language model of transformers asks of its `past_key_values`."""

    is_compileable = False  # read by transformers: whether every call has the same shapes

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, *args: object, **kwargs: object) -> tuple:
        """Take the keys and values (R, H_kv, n, d) of a layer's new positions; return all that its attention sees."""
        raise NotImplementedError

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the number of positions before the new ones."""
        return 0

    def get_query_offset(self, layer_idx: int = 0) -> int:
        return self.get_seq_length(layer_idx)

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        """Return how many columns a mask needs, and the position of the first."""
        return self.get_seq_length(layer_idx) + query_length, 0


# ------------------------------------------------------------------------------------ with gradient, for replay


@dataclass
class Layer:
    keys: Tensor  # (B, H_kv, P, d)
    values: Tensor


class PromptRecord(Cache):
    """A prompt whose layers may be computed twice: keeps what each computed first and returns what each computes."""

    def __init__(self) -> None:
        self.layers: list[Layer] = []
        self.repeats = 1

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, *args: object, **kwargs: object) -> tuple[Tensor, Tensor]:
        if layer_idx == len(self.layers):
            self.layers.append(Layer(keys, values))
        return keys, values

    def batch_repeat_interleave(self, repeats: int) -> None:
        self.repeats *= repeats  # done by `BehindPrompt`: no repeated copy is kept


class BehindPrompt(Cache):
    """What follows a `PromptRecord`, all of it in one call: nothing is kept."""

    def __init__(self, prompt: PromptRecord) -> None:
        self.prompt = prompt

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, *args: object, **kwargs: object) -> tuple[Tensor, Tensor]:
        layer, repeats = self.prompt.layers[layer_idx], self.prompt.repeats
        before = (layer.keys.repeat_interleave(repeats, 0), layer.values.repeat_interleave(repeats, 0))
        return torch.cat([before[0], keys], -2), torch.cat([before[1], values], -2)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.prompt.layers[layer_idx].keys.shape[-2]


# ------------------------------------------------------------------------------------ without gradient, for decoding


def repeated(prompt: DynamicCache, group_size: int, length: int) -> list[tuple[Tensor, Tensor]]:
    """Return keys and values (B·G, H_kv, length, d) of each layer of a prompt's cache, repeated G times, with zeros behind it."""

    def buffer(part: Tensor) -> Tensor:
        pairs, heads, filled, width = part.shape
        whole = part.new_zeros(pairs * group_size, heads, length, width)
        whole[:, :, :filled] = part.repeat_interleave(group_size, 0)
        return whole

    return [(buffer(layer.keys), buffer(layer.values)) for layer in prompt.layers]


class DecodeCache(Cache):
    """A prompt's cache repeated G times with room for the answers, which are written in place."""

    def __init__(self, prompt: DynamicCache, group_size: int, room: int) -> None:
        length = prompt.layers[0].keys.shape[-2]
        self.layers = repeated(prompt, group_size, length + room)
        self.lengths = [length] * len(self.layers)

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, *args: object, **kwargs: object) -> tuple:
        start = self.lengths[layer_idx]
        stop = self.lengths[layer_idx] = start + keys.shape[-2]
        for buffer, new in zip(self.layers[layer_idx], (keys, values), strict=True):
            buffer[..., start:stop, :] = new
        return tuple(buffer[..., :stop, :] for buffer in self.layers[layer_idx])

    def keep_rows(self, rows: Tensor) -> None:
        """Keep these rows only."""
        for index, layer in enumerate(self.layers):  # layer by layer: two whole caches need not fit in memory
            self.layers[index] = tuple(buffer[rows] for buffer in layer)

    def crop(self, count: int) -> None:
        """Forget the last `count` positions."""
        self.lengths = [length - count for length in self.lengths]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.lengths[layer_idx]


class Places(NamedTuple):
    """The places of R rows among the B·G of B pairs; `slots` (R,) is None if every place is taken, in order."""

    pairs: int
    group: int
    slots: Tensor | None = None

    def by_pair(self, rows: Tensor) -> Tensor:
        """Return (R, H, n, d) of all rows as (B, H, G, n, d) of all pairs, 0 in empty places."""
        if self.slots is not None:
            rows = rows.new_zeros(self.pairs * self.group, *rows.shape[1:]).index_copy(0, self.slots, rows)
        return rows.unflatten(0, (self.pairs, self.group)).transpose(1, 2)

    def by_row(self, pairs: Tensor) -> Tensor:
        """Undo `by_pair`."""
        rows = pairs.transpose(1, 2).flatten(0, 1)
        return rows if self.slots is None else rows[self.slots]


class SharedKV(NamedTuple):
    """Keys or values in two segments, as `SharedDecodeCache` returns them for `attention.shared_attention`."""

    prompt: Tensor  # (B, H_kv, P, d), shared by a pair's rows
    own: Tensor  # (B, H_kv, G, n, d), what each row added itself
    places: Places


class SharedDecodeCache(DecodeCache):
    """The same with one copy of the prompt per pair.

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
        return tuple(SharedKV(prompt, part, self.places) for prompt, part in zip(self.prompts[layer_idx], own, strict=True))

    def keep_rows(self, rows: Tensor) -> None:
        """Keep these rows only; the places of the others stay empty until half of all places are."""
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


class FixedKV(NamedTuple):
    """Keys or values (R, H_kv, span, d) of which a mask hides those not written yet, for `attention.fixed_attention`."""

    states: Tensor


class FixedView(Cache):
    """What one step of `decoding.FixedDecoder` sees: the first `rows` rows and `span` positions, written at `places` (n,)."""

    is_compileable = True  # and its length is never asked for, as positions and mask are given

    def __init__(self, layers: list[tuple[Tensor, Tensor]], rows: int, span: int, places: Tensor) -> None:
        self.layers = [tuple(buffer[:rows, :, :span] for buffer in layer) for layer in layers]
        self.places = places

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, *args: object, **kwargs: object) -> tuple:
        for buffer, new in zip(self.layers[layer_idx], (keys, values), strict=True):
            buffer.index_copy_(2, self.places, new)
        return tuple(FixedKV(buffer) for buffer in self.layers[layer_idx])
