"""The Qwen3-VL family: its vision tower, and its language model as a frozen supervisor."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor, nn

from saga_lib.supervisor.base import Supervisor
from saga_lib.towers import VisualTokens, register_image_attention, square_crop


class Qwen3VLTower(nn.Module):
    """The vision tower of a Qwen3-VL model with its mergers: images in, `VisualTokens` out."""

    family = "qwen3_vl"
    lora_targets = r"visual\.blocks\.\d+\.(attn\.(qkv|proj)|mlp\.linear_fc[12])"  # matched against whole module names

    def __init__(self, visual: nn.Module, image_processor, image_size: int) -> None:
        super().__init__()
        self.visual = visual
        self.image_processor = image_processor
        self.image_size = image_size
        config = visual.config
        self.patches_per_side = image_size // config.patch_size
        self.tokens_per_side = self.patches_per_side // config.spatial_merge_size
        self.num_tokens = self.tokens_per_side**2
        self.width = config.out_hidden_size

    def preprocess(self, images: Sequence[Image.Image]) -> Tensor:
        """Return (N, patches, patch_dim) float32; images are centre-cropped to a square and resized first.

        We resize ourselves because the processor's backends differ by a grey level when they resize and its
        stock size limits would enlarge a 224² image.
        """
        square = [square_crop(image, self.image_size) for image in images]
        edge = {"shortest_edge": self.image_size**2, "longest_edge": self.image_size**2}
        pixels = self.image_processor(images=square, size=edge, return_tensors="pt")["pixel_values"]
        return pixels.view(len(square), self.patches_per_side**2, -1)

    def forward(self, pixels: Tensor) -> VisualTokens:
        """Encode (N, patches, patch_dim) pixels to merged tokens (raster order) and DeepStack features."""
        n = pixels.shape[0]
        side = self.patches_per_side
        grid = torch.tensor([[1, side, side]], device=pixels.device).expand(n, -1)
        whole = torch.tensor([0, n * side**2], device=pixels.device)  # one sequence for the stock tower, n for ours
        out = self.visual(pixels.flatten(0, 1).to(self.visual.dtype), grid_thw=grid, cu_seqlens=whole, num_images=n)

        def per_image(flat: Tensor) -> Tensor:
            return flat.view(n, self.num_tokens, -1)

        return VisualTokens(per_image(out.pooler_output), tuple(per_image(f) for f in out.deepstack_features))

    def merger_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of the mergers, which θ includes unless a run says otherwise."""
        return [p for name, p in self.visual.named_parameters() if "merger" in name]

    @staticmethod
    def vision_attention() -> str:
        """Return the name of the attention that a stock model must be loaded with."""
        return register_image_attention()

    @staticmethod
    def stock_modules(model: nn.Module) -> dict[str, nn.Module]:
        """Return this tower's modules, by our names, inside a stock `Qwen3VLForConditionalGeneration`."""
        return {"visual": model.model.visual}

    def config_dict(self) -> dict:
        return {
            "family": self.family,
            "image_size": self.image_size,
            "vision_config": self.visual.config.to_dict(),
            "image_processor": self.image_processor.to_dict(),
        }

    @classmethod
    def from_config_dict(cls, config: dict) -> Qwen3VLTower:
        from transformers import Qwen2VLImageProcessorPil, Qwen3VLVisionModel
        from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLVisionConfig

        vision_config = Qwen3VLVisionConfig.from_dict(config["vision_config"])
        vision_config._attn_implementation = register_image_attention()
        visual = Qwen3VLVisionModel(vision_config)
        processor = Qwen2VLImageProcessorPil.from_dict(config["image_processor"])
        return cls(visual, processor, config["image_size"])


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
