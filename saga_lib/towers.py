"""What towers give and share: visual tokens, preprocessing, precision, weights."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from saga_lib.common.errors import SagaError


@dataclass
class VisualTokens:
    """What the tower hands on: merged tokens X (N, Np, D) and the DeepStack features, each (N, Np, D).

    The language model reads all of them, the pooler reads X alone.
    """

    merged: Tensor
    deepstack: tuple[Tensor, ...] = ()

    def tensors(self) -> tuple[Tensor, ...]:
        return (self.merged, *self.deepstack)

    def boundary(self) -> VisualTokens:
        """Return detached leaves: losses meet here, then one backward goes through the tower."""
        leaves = [t.detach().requires_grad_(True) for t in self.tensors()]
        return VisualTokens(leaves[0], tuple(leaves[1:]))

    def detach(self) -> VisualTokens:
        return VisualTokens(self.merged.detach(), tuple(t.detach() for t in self.deepstack))

    def __getitem__(self, index: Tensor | slice) -> VisualTokens:
        return VisualTokens(self.merged[index], tuple(t[index] for t in self.deepstack))

    @staticmethod
    def cat(parts: Sequence[VisualTokens]) -> VisualTokens:
        tensors = [torch.cat(group) for group in zip(*(part.tensors() for part in parts), strict=True)]
        return VisualTokens(tensors[0], tuple(tensors[1:]))


def register_image_attention() -> str:
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


def square_crop(image: Image.Image, size: int) -> Image.Image:
    """Return the centre square of an image, RGB, resized to size×size."""
    image = image.convert("RGB")
    side = min(image.size)
    if image.size != (side, side):
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.crop((left, top, left + side, top + side))
    return image if side == size else image.resize((size, size), Image.Resampling.BICUBIC)


def load_weights(module: nn.Module, path: Path) -> None:
    """Load a safetensors file into a module; a `SagaError` names the file when it is damaged or does not fit."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not Path(path).is_file():
        raise SagaError(f"{path} does not exist")
    try:
        weights = load_file(path)
    except (SafetensorError, OSError) as error:
        raise SagaError(f"{path} is damaged ({error}); delete it and run again") from None
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:
        raise SagaError(f"{path} does not fit this model: {str(error).splitlines()[-1].strip()}") from None


def autocast(device: torch.device):
    """Return bf16 autocast on a GPU (the tower's master weights stay float32), nothing on a CPU."""
    return torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else nullcontext()
