"""The frozen supervisor, whatever its family: prompts, shared prefixes, continuation and log-probabilities."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from saga_lib.supervisor.caches import BehindPrompt, PromptRecord
from saga_lib.towers import Tower, VisualTokens


@dataclass
class Prefix:
    """A prefilled prompt of B pairs: KV cache, last hidden state (B, H) and the next M-RoPE position."""

    cache: object
    last_hidden: Tensor
    length: int
    next_position: int

    def expand(self, group_size: int) -> Prefix:
        """Repeat every pair G times (differentiable); the cache is expanded in place."""
        self.cache.batch_repeat_interleave(group_size)
        return Prefix(self.cache, self.last_hidden.repeat_interleave(group_size, 0), self.length, self.next_position)

    def fork(self, detach: bool = False) -> Prefix:
        """Return a prefix that may be expanded and extended while this one stays; detached, its tensors are leaves.

        Gradients gather in the leaves of such a boundary, over as many continuations as there are; one backward from
        `tensors` then carries them through the prompt.
        """

        def own(tensor: Tensor) -> Tensor:
            return tensor.detach().requires_grad_(True) if detach else tensor

        cache = copy(self.cache)
        cache.layers = [copy(layer) for layer in self.cache.layers]
        for layer in cache.layers:
            layer.keys, layer.values = own(layer.keys), own(layer.values)
        return Prefix(cache, own(self.last_hidden), self.length, self.next_position)

    def tensors(self) -> list[Tensor]:
        """Return the last hidden state and every layer's keys and values."""
        return [self.last_hidden, *(tensor for layer in self.cache.layers for tensor in (layer.keys, layer.values))]


class Supervisor:
    """A frozen language model ψ that reads `VisualTokens`; families differ in positions and injection only.

    Subclasses set `tower_class` and `image_token_id`, and write the methods at the end of this class.

    With `recomputes`, the layers of a pass with gradient keep nothing but their inputs and are computed again in its backward:
    the same numbers from a fraction of the memory, for half as much arithmetic again.
    """

    tower_class: type[Tower]
    image_token_id: int  # of the placeholder that stands for one visual token
    recomputes = False

    def __init__(self, language_model: nn.Module, head: nn.Module, processor, tokens_per_image: int) -> None:
        self.language_model, self.head = language_model, head
        self.processor, self.tokenizer = processor, processor.tokenizer
        self.tokens_per_image = tokens_per_image
        for parameter in (*language_model.parameters(), *head.parameters()):
            parameter.requires_grad_(False)
        language_model.eval()
        self.eos_token_id, self.further_ends = self.tokenizer.eos_token_id, []
        self._piece = cache(lambda token: self.decode([token]))

    @property
    def num_layers(self) -> int:
        return len(self.language_model.layers)

    @property
    def ends(self) -> tuple[int, ...]:
        """The ids of all tokens that end an answer, first the one that closes its turn, which also pads."""
        return (self.eos_token_id, *self.further_ends)

    @property
    def device(self) -> torch.device:
        return self.head.weight.device

    # ---------------------------------------------------------------------------------------- prompts

    def prompt_text(self, prompt: str, num_images: int = 2) -> str:
        """Return the chat-formatted prompt S = [X_a, X_b, T_inst] (Eq. 1), images as single placeholders."""
        content = [{"type": "image"}] * num_images + [{"type": "text", "text": prompt}]
        return self.processor.apply_chat_template([{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True)

    def prompt_ids(self, prompt: str, num_images: int = 2) -> Tensor:
        """Return the token ids (P,) of a prompt, each image placeholder repeated Np times."""
        text = self._expand_images(self.prompt_text(prompt, num_images))
        return torch.tensor(self.tokenizer.encode(text, add_special_tokens=False), device=self.device)

    def answer_ids(self, answer: str) -> list[int]:
        """Return the token ids of an answer with its end-of-turn token."""
        return [*self.tokenizer.encode(answer, add_special_tokens=False), self.eos_token_id]

    def image_columns(self, ids: Tensor) -> list[Tensor]:
        """Return, for each image of a prompt (P,), the indices of its Np tokens in raster order."""
        places = (ids == self.image_token_id).nonzero()[:, 0]
        return list(places.split(self.tokens_per_image))

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of completion ids, end-of-turn and padding removed."""
        kept = [i for i in ids if i not in self.ends]
        return self.tokenizer.decode(kept, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def token_offsets(self, ids: Sequence[int]) -> list[tuple[int, int]]:
        """Return the character range of each id within `decode(ids)`."""
        pieces = [self._piece(i) for i in ids]
        if "".join(pieces) == self.decode(ids):
            ends = torch.tensor([len(p) for p in pieces]).cumsum(0).tolist()
            starts = [0, *ends[:-1]]
        else:  # tokens of one character share its range, decoded as U+FFFD while incomplete; quadratic
            prefixes = [self.decode(ids[: n + 1]) for n in range(len(ids))]
            ends = [len(prefix) for prefix in prefixes]
            starts = [0, *(len(prefix.rstrip("\ufffd")) for prefix in prefixes[:-1])]
        return list(zip(starts, ends, strict=True))

    # ---------------------------------------------------------------------------------------- forward

    def forward_sequences(self, ids: Tensor, images: VisualTokens | None, cache: object | None = None) -> Tensor:
        """Return hidden states (B, S, H) of full sequences `ids` (B, S) sharing one prompt layout; see `embed`."""
        embeds, injected = self.embed(ids, images)
        return self.forward_embeddings(embeds, self.positions(ids[:1]), cache, **injected)

    def embed(self, ids: Tensor, images: VisualTokens | None) -> tuple[Tensor, dict[str, object]]:
        """Return the embeddings (B, S, H) of sequences `ids` (B, S) and the model's further arguments for their images.

        `images` holds the rows' images in row-major order (B·n, Np, D), or None for text.
        """
        embeds = self.language_model.get_input_embeddings()(ids)
        if images is None:
            return embeds, {}
        visual_mask = ids == self.image_token_id
        embeds = embeds.masked_scatter(visual_mask[..., None], images.merged.to(embeds.dtype))
        return embeds, self._injected(visual_mask, images, embeds.dtype)

    def prefill(self, prompt_ids: Tensor, images: VisualTokens) -> Prefix:
        """Run one prompt (P,) over B pairs of images (2B, Np, D) once and keep its KV cache, with gradient."""
        from transformers import DynamicCache

        pairs = images.merged.shape[0] * self.tokens_per_image // int((prompt_ids == self.image_token_id).sum())
        ids = prompt_ids[None].expand(pairs, -1)
        cache = PromptRecord() if self._recomputes_now() else DynamicCache(config=self.language_model.config)
        with self._layers_recomputed():
            hidden = self.forward_sequences(ids, images, cache)
        return Prefix(cache, hidden[:, -1], ids.shape[1], int(self.positions(ids[:1]).max()) + 1)

    def extend(self, prefix: Prefix, ids: Tensor, start: int = 0) -> Tensor:
        """Return hidden states (R, T, H) of completion tokens `ids` (R, T) that follow a prefix.

        `start` is the number of completion tokens already in the cache. Positions continue after the prefix's largest
        position, which for M-RoPE is below its length.
        """
        embeds = self.language_model.get_input_embeddings()(ids)
        steps = prefix.next_position + start + torch.arange(ids.shape[1], device=ids.device)
        cache = BehindPrompt(prefix.cache) if isinstance(prefix.cache, PromptRecord) else prefix.cache
        with self._layers_recomputed():
            return self.forward_embeddings(embeds, self.text_positions(steps), cache)

    def _recomputes_now(self) -> bool:
        return self.recomputes and torch.is_grad_enabled()

    @contextmanager
    def _layers_recomputed(self) -> Iterator[None]:
        """Checkpoint the layers inside this context if `recomputes` is set (transformers refuses to, with a cache)."""
        layers = self.language_model.layers if self._recomputes_now() else ()
        for layer in layers:
            layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
        try:
            yield
        finally:
            for layer in layers:
                del layer.forward  # the class's own again

    def log_probs(self, hidden: Tensor, targets: Tensor, chunk: int = 4096) -> Tensor:
        """Return log p(target) in float32 for hidden (…, H) and targets (…), in token chunks.

        If there are several chunks, each is checkpointed: the logits of all tokens (tokens × vocabulary) never exist at
        once, neither forward nor backward.
        """
        flat_hidden, flat_targets = hidden.flatten(0, -2), targets.flatten()

        def one_chunk(h: Tensor, t: Tensor) -> Tensor:
            logits = self.head(h)
            logits = logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits
            return -torch.nn.functional.cross_entropy(logits, t, reduction="none")

        if len(flat_targets) <= chunk or not torch.is_grad_enabled():
            parts = map(one_chunk, flat_hidden.split(chunk), flat_targets.split(chunk))
        else:
            chunks = zip(flat_hidden.split(chunk), flat_targets.split(chunk), strict=True)
            parts = (checkpoint(one_chunk, h, t, use_reentrant=False) for h, t in chunks)
        return torch.cat(list(parts)).view(targets.shape)

    def forward_embeddings(
        self, embeds: Tensor, positions: Tensor, cache: object | None, mask: Tensor | None = None, **injected: object
    ) -> Tensor:
        """Return hidden states (B, S, H) of embedded tokens (B, S, H) at positions (…, B, S), or (…, 1, S) that all rows share."""
        positions = positions.expand(*positions.shape[:-2], len(embeds), -1)
        return self.language_model(
            inputs_embeds=embeds, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=cache is not None,
            **injected,
        ).last_hidden_state  # fmt: skip

    # ---------------------------------------------------------------------------- what a family provides

    @classmethod
    def check(cls, config, image_size: int) -> None:
        """Raise `SagaError` when a model of this configuration cannot be used, before its weights are read."""

    @classmethod
    def from_model(cls, model: nn.Module, processor, image_size: int) -> tuple[Tower, Supervisor]:
        """Split a stock model into a trainable tower, in float32 or better, and a frozen supervisor."""
        raise NotImplementedError

    def _expand_images(self, text: str) -> str:
        """Return a prompt with the placeholder of each image repeated for its Np tokens."""
        raise NotImplementedError

    def positions(self, ids: Tensor) -> Tensor:
        """Return the positions (…, 1, S) of a sequence (1, S)."""
        raise NotImplementedError

    def text_positions(self, steps: Tensor) -> Tensor:
        """Return the positions (…, 1, n) of text at `steps` (n,)."""
        raise NotImplementedError

    def _injected(self, visual_mask: Tensor, images: VisualTokens, dtype: torch.dtype) -> dict[str, object]:
        """Return the model's further arguments for images whose merged tokens are at `visual_mask` (B, S)."""
        return {}
