"""InternVL: plain one-dimensional positions, image tokens between `<img>` and `</img>`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from saga_lib.encoder import InternVLTower, VisualTokens
from saga_lib.errors import SagaError
from saga_lib.supervisor.base import Supervisor

LANGUAGE_MODELS = ("qwen2", "qwen3")  # others may attend in ways of their own (windows, sinks) that ours would ignore


class InternVLSupervisor(Supervisor):
    """The language model of InternVL (InternVL3: Qwen2, InternVL3.5: Qwen3), fed with tower tokens directly."""

    family = "internvl"
    tower_class = InternVLTower

    def __init__(self, model: nn.Module, processor, tower: InternVLTower) -> None:
        super().__init__(model.model.language_model, model.lm_head, processor, tower.num_tokens)
        self.image_token_id = processor.image_token_id

    @classmethod
    def check(cls, config, image_size: int) -> None:
        """Raise `SagaError` for language models and vision features that this path does not follow, and for odd sizes."""
        text, layer, strategy = config.text_config, config.vision_feature_layer, config.vision_feature_select_strategy
        if text.model_type not in LANGUAGE_MODELS or getattr(text, "use_sliding_window", False):
            kind = f"{text.model_type}{' with a sliding window' if text.model_type in LANGUAGE_MODELS else ''}"
            raise SagaError(f"InternVL on {kind} is not supported; take one on {' or '.join(LANGUAGE_MODELS)} with full attention")
        if (layer, strategy) != (-1, "default"):
            raise SagaError(f"InternVL that reads vision layer {layer} ({strategy}) is not supported; only -1 (default) is")
        cls.tower_class.token_grid(image_size, config.vision_config.patch_size, config.downsample_ratio)

    @classmethod
    def from_model(cls, model: nn.Module, processor, image_size: int) -> tuple[InternVLTower, InternVLSupervisor]:
        """Split a stock `InternVLForConditionalGeneration` into a trainable float32 tower and a frozen supervisor."""
        master = torch.promote_types(model.dtype, torch.float32)  # bf16 would lose small AdamW updates
        tower = InternVLTower(
            **{name: module.to(master) for name, module in InternVLTower.stock_modules(model).items()},
            image_processor=processor.image_processor, image_size=image_size,
            downsample_ratio=model.config.downsample_ratio, projector_act=model.config.projector_hidden_act,
        )  # fmt: skip
        return tower, cls(model, processor, tower)

    def _expand_images(self, text: str) -> str:
        p = self.processor
        return text.replace(p.image_token, p.start_image_token + p.image_token * self.tokens_per_image + p.end_image_token)

    def _positions(self, ids: Tensor) -> Tensor:
        """Return positions (1, S) of a sequence (1, S): an image token counts like any other."""
        return torch.arange(ids.shape[1], device=ids.device)[None]

    def _text_positions(self, steps: Tensor) -> Tensor:
        return steps[None]

    def _forward(
        self, embeds: Tensor, positions: Tensor, cache: object | None, visual_mask: Tensor | None,
        images: VisualTokens | None, mask: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        return self.language_model(
            inputs_embeds=embeds,
            attention_mask=mask,
            position_ids=positions.expand(embeds.shape[0], -1),
            past_key_values=cache,
            use_cache=cache is not None,
        ).last_hidden_state
