"""Decoding in buffers whose shapes and addresses stay the same, so that a GPU can replay a step as one CUDA graph.

A step of a large model is hundreds of small kernels, and launching them one by one takes longer than computing them. A CUDA
graph launches all of them at once, but requires the same shapes and addresses each time. So the cache has room for complete
answers from the start, a step writes at places given by a tensor, and attention reads `span` positions, of which a mask hides
those not written yet. Spans grow and batches shrink in a few sizes, one graph each. On a CPU the same steps run without graphs.
"""

from __future__ import annotations

import os

import torch
from torch import Tensor

from saga_lib.common.errors import SagaError, first_line
from saga_lib.supervisor.base import Prefix, Supervisor
from saga_lib.supervisor.caches import FixedView, repeated

SPAN = 256  # positions by which attention's view grows: larger means fewer graphs, but more masked positions to read
FEWEST_ROWS = 8  # a batch of no more rows no longer shrinks


class FixedDecoder:
    """Continues a prefilled prompt, G rows a pair, a few tokens a step. No gradient.

    Rows that ended stay in the batch, unused, until half of its rows have ended; then the others move together.
    """

    def __init__(self, supervisor: Supervisor, prefix: Prefix, group_size: int, room: int, graphs: bool) -> None:
        self.supervisor, self.graphs = supervisor, graphs
        self.filled, self.shift = prefix.length, prefix.next_position - prefix.length  # M-RoPE advances by less than an image's tokens
        self.total = -(-(prefix.length + room) // 64) * 64  # attention kernels like round numbers
        self.layers = repeated(prefix.cache, group_size, self.total)  # zeros behind: 0 times what is masked must not be NaN
        self.rows = self.layers[0][0].shape[0]  # of the batch, ended ones included
        self.slots = torch.arange(self.rows, device=self.layers[0][0].device)  # (live,) rows of the batch
        config = supervisor.language_model.config
        self.heads_per_key = config.num_attention_heads // config.num_key_value_heads
        self._captured: dict[tuple[int, int, int], tuple] = {}
        self._pool = None

    def extend(self, ids: Tensor) -> Tensor:
        """Return hidden states (live, n, H) of the next tokens (live, n)."""
        count = ids.shape[1]
        fed = ids.new_zeros(self.rows, count).index_copy(0, self.slots, ids)
        places = torch.arange(self.filled, self.filled + count, device=ids.device)
        self.filled += count
        span = min(-(-self.filled // SPAN) * SPAN, self.total)
        hidden = self._replay(fed, places, span) if self.graphs else self.forward(fed, places, span)
        return hidden[self.slots]

    def crop(self, count: int) -> None:
        """Forget the last `count` positions: they are hidden, then overwritten."""
        self.filled -= count

    def keep_rows(self, rows: Tensor) -> None:
        """Keep these of the live rows only."""
        self.slots = self.slots[rows]
        size = self.rows
        while size > FEWEST_ROWS and 2 * len(self.slots) <= size:
            size = -(-size // 2)
        if size < self.rows:
            for layer in self.layers:  # layer by layer, in place: no second cache in memory, and no new addresses
                for buffer in layer:
                    buffer[: len(self.slots), :, : self.filled] = buffer[self.slots, :, : self.filled]
            self.rows, self.slots = size, torch.arange(len(self.slots), device=self.slots.device)

    def forward(self, ids: Tensor, places: Tensor, span: int) -> Tensor:
        """Return hidden states (R, n, H) of tokens (R, n) at `places` (n,). Independent of any tensor's values, as graphs require."""
        embeds = self.supervisor.language_model.get_input_embeddings()(ids)
        hidden_places = torch.arange(span, device=ids.device) > places[:, None]
        mask = torch.zeros(len(places), span, dtype=embeds.dtype, device=ids.device).masked_fill(hidden_places, float("-inf"))
        mask = mask.repeat(self.heads_per_key, 1)[None, None]  # (1, 1, H/H_kv·n, span), see `attention.fixed_attention`
        view = FixedView(self.layers, ids.shape[0], span, places)
        positions = self.supervisor.text_positions(places + self.shift)
        with torch.autocast(ids.device.type, enabled=False):  # ψ has one dtype, and autocast's cached casts must not enter a graph
            return self.supervisor.forward_embeddings(embeds, positions, view, mask)

    def _replay(self, ids: Tensor, places: Tensor, span: int) -> Tensor:
        key = (*ids.shape, span)
        if key not in self._captured:
            try:
                self._captured[key] = self._capture(ids, places, span)
            except torch.OutOfMemoryError:  # a RuntimeError too, and no fault of graphs
                raise
            except RuntimeError as error:
                advice = "SAGA_CUDA_GRAPHS=0 does without"
                raise SagaError(f"decoding could not be captured as a CUDA graph ({first_line(error)}); {advice}") from error
        graph, own_ids, own_places, hidden = self._captured[key]
        own_ids.copy_(ids)
        own_places.copy_(places)
        graph.replay()
        return hidden

    def _capture(self, ids: Tensor, places: Tensor, span: int) -> tuple:
        """Record a step for these shapes; it computes on copies of its arguments, at their addresses."""
        ids, places = ids.clone(), places.clone()
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):  # libraries initialise themselves on first use, which must not be recorded
            self.forward(ids, places, span)
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            hidden = self.forward(ids, places, span)
        self._pool = self._pool or graph.pool()
        return graph, ids, places, hidden


class GrowingDecoder:
    """The same with a cache of exact length, which grows with each step: nothing is masked."""

    def __init__(self, supervisor: Supervisor, prefix: Prefix) -> None:
        self.supervisor, self.prefix = supervisor, prefix
        self.filled = 0

    def extend(self, ids: Tensor) -> Tensor:
        self.filled += ids.shape[1]
        return self.supervisor.extend(self.prefix, ids, start=self.filled - ids.shape[1])

    def crop(self, count: int) -> None:
        self.filled -= count
        self.prefix.cache.crop(count)

    def keep_rows(self, rows: Tensor) -> None:
        self.prefix.cache.keep_rows(rows)


def uses_graphs(device: torch.device) -> bool:
    """Return whether steps are captured as CUDA graphs: on a GPU, unless SAGA_CUDA_GRAPHS is 0."""
    return device.type == "cuda" and os.environ.get("SAGA_CUDA_GRAPHS", "1") != "0"
