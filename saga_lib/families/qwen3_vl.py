"""The Qwen3-VL family: its vision tower, and its language model as a frozen supervisor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from PIL import Image
from torch import Tensor, nn

from saga_lib.common.errors import SagaError
from saga_lib.common.grids import tokens_per_side
from saga_lib.families.sizes import NOTHING, Sizes, text_config, text_sizes
from saga_lib.supervisor.base import Supervisor
from saga_lib.towers import Tower, VisualTokens


def sizes_of(config: Mapping) -> Sizes:
    """Return the sizes that a model's `config.json` states; `KeyError` names a missing field."""
    vision = config.get("vision_config", {})
    return Sizes(
        **text_sizes(config, tied_head=False), vision_hidden=vision["hidden_size"], vision_layers=vision["depth"],
        vision_heads=vision["num_heads"], vision_intermediate=vision["intermediate_size"], patch=vision["patch_size"],
        merge=vision["spatial_merge_size"], positions=vision["num_position_embeddings"], temporal=vision["temporal_patch_size"],
        deepstack=len(vision["deepstack_visual_indexes"]),
    )  # fmt: skip


def config_of(sizes: Sizes, text: Mapping = NOTHING, vision: Mapping = NOTHING, rope_theta: float = 5e6, **special: int):  # noqa: ANN201
    """Return transformers' configuration of a model of these sizes.

    `text` and `vision` add settings of the two parts, `special` the ids of special tokens.
    """
    from transformers import Qwen3VLConfig

    third = sizes.head_dim // 2 // 3  # of the rotary frequencies: what remains is for time, a third each for rows and columns
    section = [sizes.head_dim // 2 - 2 * third, third, third]
    rope = dict(rope_theta=rope_theta, mrope_interleaved=True, mrope_section=section)
    tower = dict(
        hidden_size=sizes.vision_hidden, intermediate_size=sizes.vision_intermediate, patch_size=sizes.patch, depth=sizes.vision_layers,
        num_heads=sizes.vision_heads, spatial_merge_size=sizes.merge, temporal_patch_size=sizes.temporal,
        out_hidden_size=sizes.hidden, num_position_embeddings=sizes.positions,
        deepstack_visual_indexes=[(i + 1) * sizes.vision_layers // (sizes.deepstack + 1) for i in range(sizes.deepstack)],
    )  # fmt: skip
    special = {"image_token_id": min(151_655, sizes.vocabulary - 1)} | special
    return Qwen3VLConfig(
        text_config=text_config(sizes, **rope) | text, vision_config=tower | vision, tie_word_embeddings=sizes.tied_head, **special
    )


class Qwen3VLTower(Tower):
    """The vision tower of a Qwen3-VL model with its mergers: images in, `VisualTokens` out."""

    family = "qwen3_vl"
    lora_targets = r"visual\.blocks\.\d+\.(attn\.(qkv|proj)|mlp\.linear_fc[12])"

    def __init__(self, visual: nn.Module, image_processor, image_size: int) -> None:
        super().__init__()
        self.visual = visual
        self.image_processor = image_processor
        self.image_size = image_size
        config = visual.config
        self.tokens_per_side = tokens_per_side(image_size, config.patch_size, config.spatial_merge_size, "Qwen3-VL")
        self.patches_per_side = self.tokens_per_side * config.spatial_merge_size
        self.num_tokens = self.tokens_per_side**2
        self.width = config.out_hidden_size

    def preprocess(self, images: Sequence[Image.Image]) -> Tensor:
        """Return (N, patches, patch_dim) float32; images are made squares first.

        We resize ourselves because the processor's backends differ by a grey level when they resize and its
        stock size limits would enlarge a 224² image.
        """
        square = self.squares(images)
        edge = {"shortest_edge": self.image_size**2, "longest_edge": self.image_size**2}
        pixels = self.image_processor(images=square, size=edge, return_tensors="pt")["pixel_values"]
        vision, patches = self.visual.config, self.patches_per_side**2
        expected = (len(square) * patches, vision.in_channels * vision.temporal_patch_size * vision.patch_size**2)
        if pixels.shape != expected or self.image_processor.merge_size != vision.spatial_merge_size:  # which sets the patches' order
            raise SagaError("the image processor cuts other patches than the tower reads: take the preprocessor_config.json of this model")
        return pixels.view(len(square), patches, -1)

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
        return [p for name, p in self.visual.named_parameters() if "merger" in name]

    def for_export(self, pixels: Tensor) -> nn.Module:
        return _OneGrid(self, pixels)

    @staticmethod
    def vision_attention() -> str:
        """Register with transformers an attention for packed images of one size, and return its name.

        The stock tower calls its attention once per image.
        """
        from transformers import AttentionInterface
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        def attention(module, query, key, value, attention_mask, num_images: int, **kwargs):  # noqa: ANN001, ANN003, ANN202
            images = [x[0].unflatten(1, (num_images, -1)).transpose(0, 1) for x in (query, key, value)]  # (N, H, Np, d)
            mixed, _ = sdpa_attention_forward(module, *images, attention_mask, **kwargs)
            return mixed.flatten(0, 1)[None], None

        AttentionInterface.register("saga_images", attention)
        return "saga_images"

    @staticmethod
    def stock_modules(model: nn.Module) -> dict[str, nn.Module]:
        """Return this tower's modules, by our names, inside a stock `Qwen3VLForConditionalGeneration`."""
        return {"visual": model.model.visual}

    def config_dict(self) -> dict:
        described = {"vision_config": self.visual.config.to_dict(), "image_processor": self.image_processor.to_dict()}
        return {"family": self.family, "image_size": self.image_size, **described}

    @classmethod
    def from_config_dict(cls, config: dict) -> Qwen3VLTower:
        from transformers import Qwen2VLImageProcessorPil, Qwen3VLVisionModel
        from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLVisionConfig

        vision_config = Qwen3VLVisionConfig.from_dict(config["vision_config"])
        vision_config._attn_implementation = cls.vision_attention()
        processor = Qwen2VLImageProcessorPil.from_dict(config["image_processor"])
        return cls(Qwen3VLVisionModel(vision_config), processor, config["image_size"])


class _OneGrid(nn.Module):
    """The tower on whole batches of one grid, for exporters.

    As transformers writes it, the tower loops over images whose sizes it reads from a tensor, which no exporter
    can follow. With one grid for all, positions are constants and attention is an ordinary batched one; the modules
    are the tower's own. DeepStack's mergers are left out: only the language model reads them.
    """

    def __init__(self, tower: Qwen3VLTower, pixels: Tensor) -> None:
        super().__init__()
        visual = tower.visual
        self.patch_embed, self.blocks, self.merger = visual.patch_embed, visual.blocks, visual.merger
        seen = {}
        hook = visual.blocks[0].register_forward_pre_hook(lambda _, args, kwargs: seen.update(kwargs, hidden=args[0]), with_kwargs=True)
        try:
            with torch.no_grad():
                tower(pixels[:1])
                positions = seen["hidden"] - visual.patch_embed(pixels[0])
        finally:
            hook.remove()
        self.register_buffer("positions", positions)  # (patches, width)
        for name, table in zip(("cos", "sin"), seen["position_embeddings"], strict=True):
            self.register_buffer(name, table)  # (patches, head width)

    def forward(self, pixels: Tensor) -> VisualTokens:
        from transformers.models.qwen3_vl.modeling_qwen3_vl import apply_rotary_pos_emb_vision

        n, patches, _ = pixels.shape
        x = self.patch_embed(pixels.flatten(0, 1)).view(n, patches, -1) + self.positions
        for block in self.blocks:
            attention = block.attn
            q, k, v = attention.qkv(block.norm1(x)).view(n, patches, 3, attention.num_heads, -1).unbind(2)
            q, k = apply_rotary_pos_emb_vision(q, k, self.cos, self.sin)  # (n, patches, heads, head width)
            heads = nn.functional.scaled_dot_product_attention(*(t.transpose(1, 2) for t in (q, k, v)), scale=attention.scaling)
            x = x + attention.proj(heads.transpose(1, 2).flatten(2))
            x = x + block.mlp(block.norm2(x))
        return VisualTokens(self.merger(x.flatten(0, 1)).view(n, -1, self.merger.linear_fc2.out_features))


class Qwen3VLSupervisor(Supervisor):
    """The language model of Qwen3-VL, fed with tower tokens and DeepStack features directly."""

    tower_class = Qwen3VLTower

    def __init__(self, model: nn.Module, processor, tower: Qwen3VLTower) -> None:
        super().__init__(model.model.language_model, model.lm_head, processor, tower.num_tokens)
        self.tokens_per_side = tower.tokens_per_side
        self.image_token_id = model.config.image_token_id

    @classmethod
    def check(cls, config, image_size: int) -> None:
        tokens_per_side(image_size, config.vision_config.patch_size, config.vision_config.spatial_merge_size, "Qwen3-VL")

    @classmethod
    def from_model(cls, model: nn.Module, processor, image_size: int) -> tuple[Qwen3VLTower, Qwen3VLSupervisor]:
        master = torch.promote_types(model.dtype, torch.float32)  # bf16 would lose small AdamW updates
        tower = Qwen3VLTower(model.model.visual.to(master), processor.image_processor, image_size)
        return tower, cls(model, processor, tower)

    def _expand_images(self, text: str) -> str:
        placeholder = self.tokenizer.convert_ids_to_tokens(self.image_token_id)
        return text.replace(placeholder, placeholder * self.tokens_per_image)

    def positions(self, ids: Tensor) -> Tensor:
        """Return M-RoPE positions (3, 1, S) of a sequence (1, S).

        Text advances all three axes by one; an image holds time fixed, spans a grid and advances by its side.
        """
        is_image = (ids[0] == self.image_token_id).tolist()
        side, columns, position, i = self.tokens_per_side, [], 0, 0
        grid = torch.arange(side)
        block = torch.stack([torch.zeros(side * side, dtype=torch.long), grid.repeat_interleave(side), grid.repeat(side)])
        while i < len(is_image):
            if is_image[i]:
                columns.append(block + position)
                position, i = position + side, i + side * side
            else:
                columns.append(torch.full((3, 1), position))
                position, i = position + 1, i + 1
        return torch.cat(columns, 1)[:, None].to(ids.device)

    def text_positions(self, steps: Tensor) -> Tensor:
        return steps.expand(3, 1, -1)

    def _injected(self, visual_mask: Tensor, images: VisualTokens, dtype: torch.dtype) -> dict[str, object]:
        return {"visual_pos_masks": visual_mask, "deepstack_visual_embeds": [f.flatten(0, 1).to(dtype) for f in images.deepstack]}


TOWER, SUPERVISOR = Qwen3VLTower, Qwen3VLSupervisor
