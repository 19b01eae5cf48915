"""The InternVL family: its vision tower, and its language model as a frozen supervisor."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from PIL import Image
from torch import Tensor, nn

from saga_lib.common.errors import SagaError
from saga_lib.common.grids import tokens_per_side
from saga_lib.families.sizes import NOTHING, Sizes, text_config, text_sizes
from saga_lib.supervisor.base import Supervisor
from saga_lib.towers import Tower, VisualTokens

LANGUAGE_MODELS = ("qwen2", "qwen3")  # others may use windows or sinks, which our attention would ignore


def sizes_of(config: Mapping) -> Sizes:
    """Return the sizes that a model's `config.json` states; `KeyError` names a missing field."""
    vision = config.get("vision_config", {})

    def side(value: int | Sequence[int]) -> int:
        return value if isinstance(value, int) else value[0]

    return Sizes(
        **text_sizes(config, tied_head=True), vision_hidden=vision["hidden_size"], vision_layers=vision["num_hidden_layers"],
        vision_heads=vision["num_attention_heads"], vision_intermediate=vision["intermediate_size"], patch=side(vision["patch_size"]),
        merge=round(1 / config["downsample_ratio"]), positions=(side(vision["image_size"]) // side(vision["patch_size"])) ** 2 + 1,
    )  # fmt: skip


def config_of(sizes: Sizes, text: Mapping = NOTHING, vision: Mapping = NOTHING, rope_theta: float = 1e6, **special: int):  # noqa: ANN201
    """Return transformers' configuration of a model of these sizes, on Qwen3.

    `text` and `vision` add settings of the two parts, `special` the ids of special tokens.
    """
    from transformers import InternVLConfig

    size = sizes.patch * math.isqrt(sizes.positions - 1)  # all but the class token's
    tower = dict(
        hidden_size=sizes.vision_hidden, intermediate_size=sizes.vision_intermediate, num_hidden_layers=sizes.vision_layers,
        num_attention_heads=sizes.vision_heads, attention_bias=True, image_size=[size, size], patch_size=[sizes.patch, sizes.patch],
    )  # fmt: skip
    special = {"image_token_id": min(151_671, sizes.vocabulary - 1)} | special
    return InternVLConfig(
        text_config=text_config(sizes, rope_theta=rope_theta) | {"model_type": "qwen3", **text}, vision_config=tower | vision,
        downsample_ratio=1 / sizes.merge, tie_word_embeddings=sizes.tied_head, **special,
    )  # fmt: skip


class InternVLTower(Tower):
    """The vision tower of an InternVL model: images in, `VisualTokens` without DeepStack features out.

    A vision transformer, a pixel shuffle that lays `shuffle`² neighbouring patches side by side, and a projector to
    the language model's width. θ is the transformer and the projector; the projector is the only merger.
    """

    family = "internvl"
    lora_targets = r"visual\.encoder\.layer\.\d+\.(attention\.([qkv]_proj|projection_layer)|mlp\.fc[12])"

    def __init__(
        self, visual: nn.Module, projector: nn.Module, image_processor, image_size: int, downsample_ratio: float, projector_act: str
    ) -> None:
        super().__init__()
        self.visual, self.projector = visual, projector
        self.image_processor = image_processor
        self.image_size = image_size
        self.downsample_ratio, self.projector_act = downsample_ratio, projector_act
        self.tokens_per_side, self.shuffle = self.token_grid(image_size, visual.config.patch_size, downsample_ratio)
        self.num_tokens = self.tokens_per_side**2
        self.width = projector.linear_2.out_features

    @staticmethod
    def token_grid(image_size: int, patch_size: tuple[int, int], downsample_ratio: float) -> tuple[int, int]:
        """Return (tokens per side of an image, patches per side of a token); `SagaError` if these are not whole numbers."""
        (height, width), shuffle = patch_size, round(1 / downsample_ratio)
        if height != width or shuffle * downsample_ratio != 1:
            raise SagaError(f"InternVL patches of {height}×{width} pixels, downsampled by {downsample_ratio}, make no square tokens")
        return tokens_per_side(image_size, height, shuffle, "InternVL"), shuffle

    def preprocess(self, images: Sequence[Image.Image]) -> Tensor:
        """Return (N, 3, S, S) float32, one tile per image; images are made squares first."""
        square = self.squares(images)
        batch = self.image_processor(images=square, do_resize=False, crop_to_patches=False, return_tensors="pt")
        pixels, expected = batch["pixel_values"], (len(square), 3, self.image_size, self.image_size)
        if pixels.shape != expected:
            raise SagaError(f"{type(self.image_processor).__name__} made pixels of shape {tuple(pixels.shape)}, not one tile per image")
        return pixels

    def forward(self, pixels: Tensor) -> VisualTokens:
        """Encode (N, 3, S, S) pixels to merged tokens in raster order."""
        hidden = self.visual(pixels.to(self.visual.dtype)).last_hidden_state[:, 1:]  # (N, patches, C): no class token
        side, shuffle = self.tokens_per_side, self.shuffle
        patches = hidden.unflatten(1, (side, shuffle, side, shuffle)).transpose(2, 3)  # a token's patches last, in raster order
        return VisualTokens(self.projector(patches.flatten(3).flatten(1, 2)))

    def merger_parameters(self) -> list[nn.Parameter]:
        return list(self.projector.parameters())

    @staticmethod
    def vision_attention() -> str:
        """Return the name of the attention that a stock model must be loaded with; the stock tower batches images already."""
        return "sdpa"

    @staticmethod
    def stock_modules(model: nn.Module) -> dict[str, nn.Module]:
        """Return this tower's modules, by our names, inside a stock `InternVLForConditionalGeneration`."""
        return {"visual": model.model.vision_tower, "projector": model.model.multi_modal_projector}

    def config_dict(self) -> dict:
        return {
            "family": self.family, "image_size": self.image_size, "vision_config": self.visual.config.to_dict(),
            "downsample_ratio": self.downsample_ratio, "projector_act": self.projector_act, "width": self.width,
            "image_processor": self.image_processor.to_dict(),
        }  # fmt: skip

    @classmethod
    def from_config_dict(cls, config: dict) -> InternVLTower:
        from transformers import GotOcr2ImageProcessorPil, InternVLConfig, InternVLVisionModel
        from transformers.models.internvl.modeling_internvl import InternVLMultiModalProjector

        ratio, act = config["downsample_ratio"], config["projector_act"]
        whole = InternVLConfig(  # of the language model, only its width matters
            vision_config=config["vision_config"], text_config={"model_type": "qwen3", "hidden_size": config["width"]},
            downsample_ratio=ratio, projector_hidden_act=act,
        )  # fmt: skip
        whole.vision_config._attn_implementation = cls.vision_attention()
        visual, projector = InternVLVisionModel(whole.vision_config), InternVLMultiModalProjector(whole)
        processor = GotOcr2ImageProcessorPil.from_dict(config["image_processor"])
        return cls(visual, projector, processor, config["image_size"], ratio, act)


class InternVLSupervisor(Supervisor):
    """The language model of InternVL (InternVL3: Qwen2, InternVL3.5: Qwen3), fed with tower tokens directly."""

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

    def positions(self, ids: Tensor) -> Tensor:
        """Return positions (1, S) of a sequence (1, S): an image token counts like any other."""
        return torch.arange(ids.shape[1], device=ids.device)[None]

    def text_positions(self, steps: Tensor) -> Tensor:
        return steps[None]


TOWER, SUPERVISOR = InternVLTower, InternVLSupervisor
