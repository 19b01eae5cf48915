"""The sizes of a multimodal model of any family, to compute its cost or to build it anew. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

NOTHING: Mapping = MappingProxyType({})


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """A Qwen3 language model (no biases, q/k-norm, SwiGLU) and a vision tower."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    tied_head: bool
    vision_hidden: int
    vision_layers: int
    vision_heads: int
    vision_intermediate: int
    patch: int  # pixels
    merge: int  # a token stands for merge × merge patches
    positions: int  # learned position embeddings of the tower, its class token's included
    temporal: int = 1  # frames of a patch; an image is repeated so many times
    deepstack: int = 0  # vision layers whose output also enters the language model


def text_sizes(config: Mapping, tied_head: bool) -> dict[str, int]:
    """Return the language model's sizes from a `config.json`; `tied_head` is the family's default. `KeyError` names a missing field."""
    text = config.get("text_config", {})
    return dict(
        hidden=text["hidden_size"], layers=text["num_hidden_layers"], heads=text["num_attention_heads"],
        kv_heads=text["num_key_value_heads"], head_dim=text.get("head_dim", 128), intermediate=text["intermediate_size"],
        vocabulary=text["vocab_size"], tied_head=config.get("tie_word_embeddings", text.get("tie_word_embeddings", tied_head)),
    )  # fmt: skip


def text_config(sizes: Sizes, **rope: object) -> dict[str, object]:
    """Return the language model's settings for transformers; `rope` adds to those of its rotary positions."""
    return dict(
        vocab_size=sizes.vocabulary, hidden_size=sizes.hidden, intermediate_size=sizes.intermediate, num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads, num_key_value_heads=sizes.kv_heads, head_dim=sizes.head_dim,
        max_position_embeddings=262_144, tie_word_embeddings=sizes.tied_head, rope_parameters={"rope_type": "default", **rope},
    )  # fmt: skip
