"""Vision towers from timm, without a language model: baselines on any backbone."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from saga_lib.common.errors import SagaError, unknown_name
from saga_lib.common.grids import tokens_per_side
from saga_lib.common.model_files import in_one_line
from saga_lib.common.weights import nothing_left_out
from saga_lib.towers import Tower, VisualTokens


class TimmTower(Tower):
    """A vision model of timm without a language model, for metric-learning baselines: images in, patch tokens out.

    Tokens are `forward_features` without class and register tokens; a feature map of a convolutional model counts as tokens too.
    """

    family = "timm"
    lora_targets = r"model\.blocks\.\d+\.(attn\.(qkv|proj)|mlp\.fc[12])"

    def __init__(self, model: nn.Module, name: str, image_size: int, preprocessing: dict) -> None:
        from timm.layers import PatchEmbed

        super().__init__()
        self.model, self.name, self.image_size, self.preprocessing = model, name, image_size, preprocessing
        patches = next((module for module in model.modules() if isinstance(module, PatchEmbed)), None)
        if patches and not patches.dynamic_img_pad:  # it would leave out the pixels that are over
            tokens_per_side(image_size, patches.patch_size[0], 1, name)
        blank = torch.zeros(1, 3, image_size, image_size, device=next(model.parameters()).device)
        model.eval()
        with torch.no_grad(), in_one_line(f"timm model {name} gives no grid of tokens for {image_size} pixels"):
            self.num_tokens, self.width = self(blank).merged.shape[1:]
        self.tokens_per_side = math.isqrt(self.num_tokens)
        if self.num_tokens != self.tokens_per_side**2 or self.num_tokens == 1 and hasattr(model, "cls_token"):
            raise SagaError(f"timm model {name} gives {self.num_tokens} tokens for {image_size} pixels, no square grid of patches")

    @classmethod
    def create(cls, name: str, image_size: int, pretrained: bool = True, preprocessing: dict | None = None) -> TimmTower:
        """Make a model of timm by name, e.g. `vit_small_patch14_dinov2`, with its published weights if `pretrained`."""
        import timm

        if not timm.is_model(name):
            raise unknown_name("timm model", name, timm.list_models())
        settings = {"pretrained": pretrained, "num_classes": 0}
        what = f"timm model {name} cannot be loaded for {image_size} pixels"  # no network, no such weights, a size that does not divide
        with in_one_line(what), nothing_left_out(what):
            try:
                model = timm.create_model(name, img_size=image_size, **settings)
            except TypeError:  # convolutional models take images of any size
                model = timm.create_model(name, **settings)
        if preprocessing is None:
            found = timm.data.resolve_model_data_config(model)
            preprocessing = {"mean": list(found["mean"]), "std": list(found["std"])}
        return cls(model, name, image_size, preprocessing)

    def preprocess(self, images: Sequence[Image.Image]) -> Tensor:
        """Return (N, 3, size, size) float32, normalised as the model was trained."""
        square = np.stack([np.asarray(image) for image in self.squares(images)])
        pixels = torch.from_numpy(square).permute(0, 3, 1, 2).float() / 255
        mean, std = (torch.tensor(self.preprocessing[key]).view(3, 1, 1) for key in ("mean", "std"))
        return (pixels - mean) / std

    def forward(self, pixels: Tensor) -> VisualTokens:
        features = self.model.forward_features(pixels.to(next(self.model.parameters()).dtype))
        if not isinstance(features, Tensor):
            raise TypeError("its features are several maps")
        if features.ndim == 4:
            last = getattr(self.model, "output_fmt", "NCHW") == "NHWC"
            return VisualTokens(features.flatten(1, 2) if last else features.flatten(2).mT)
        over = features.shape[1] - math.isqrt(features.shape[1]) ** 2  # tokens of the class, which come first, in models that do not say
        return VisualTokens(features[:, getattr(self.model, "num_prefix_tokens", over if over <= 2 else 0) :])

    def config_dict(self) -> dict:
        return {"family": self.family, "name": self.name, "image_size": self.image_size, "preprocessing": self.preprocessing}

    @classmethod
    def from_config_dict(cls, config: dict) -> TimmTower:
        return cls.create(config["name"], config["image_size"], pretrained=False, preprocessing=config["preprocessing"])


TOWER = TimmTower
