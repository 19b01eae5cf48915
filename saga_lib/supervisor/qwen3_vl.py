"""Qwen3-VL: M-RoPE positions and DeepStack injection."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from saga_lib.encoder import Qwen3VLTower, VisualTokens
from saga_lib.supervisor.base import Supervisor


class Qwen3VLSupervisor(Supervisor):
    """The language model of Qwen3-VL, fed with tower tokens and DeepStack features directly."""

    family = "qwen3_vl"
    tower_class = Qwen3VLTower

    def __init__(self, model: nn.Module, processor, tower: Qwen3VLTower) -> None:
        super().__init__(model.model.language_model, model.lm_head, processor, tower.num_tokens)
        self.tokens_per_side = tower.tokens_per_side
        self.image_token_id = model.config.image_token_id

    @classmethod
    def from_model(cls, model: nn.Module, processor, image_size: int) -> tuple[Qwen3VLTower, Qwen3VLSupervisor]:
        """Split a stock `Qwen3VLForConditionalGeneration` into a trainable float32 tower and a frozen supervisor."""
        master = torch.promote_types(model.dtype, torch.float32)  # bf16 would lose small AdamW updates
        tower = Qwen3VLTower(model.model.visual.to(master), processor.image_processor, image_size)
        return tower, cls(model, processor, tower)

    def _expand_images(self, text: str) -> str:
        placeholder = self.tokenizer.convert_ids_to_tokens(self.image_token_id)
        return text.replace(placeholder, placeholder * self.tokens_per_image)

    def _positions(self, ids: Tensor) -> Tensor:
        """Return M-RoPE positions (3, 1, S) of a sequence (1, S).

        Text advances all three axes by one; an image holds time fixed, spans a grid and advances by its side.
        """
        is_image = (ids[0] == self.image_token_id).tolist()
        side, columns, position, i = self.tokens_per_side, [], 0, 0
        grid = torch.arange(side)
        block = torch.stack(
            [torch.zeros(side * side, dtype=torch.long), grid.repeat_interleave(side), grid.repeat(side)]
        )
        while i < len(is_image):
            if is_image[i]:
                columns.append(block + position)
                position, i = position + side, i + side * side
            else:
                columns.append(torch.full((3, 1), position))
                position, i = position + 1, i + 1
        return torch.cat(columns, 1)[:, None].to(ids.device)

    def _text_positions(self, steps: Tensor) -> Tensor:
        return steps.expand(3, 1, -1)

    def _forward(
        self, embeds: Tensor, positions: Tensor, cache: object | None, visual_mask: Tensor | None,
        images: VisualTokens | None, mask: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        deepstack = [f.flatten(0, 1).to(embeds.dtype) for f in images.deepstack] if images is not None else None
        return self.language_model(
            inputs_embeds=embeds,
            attention_mask=mask,
            position_ids=positions.expand(-1, embeds.shape[0], -1),
            visual_pos_masks=visual_mask,
            deepstack_visual_embeds=deepstack,
            past_key_values=cache,
            use_cache=cache is not None,
        ).last_hidden_state
