"""Vision towers: their interface, the visual tokens they return, and precision."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor, nn

from saga_lib.common.images import fit_square


@dataclass
class VisualTokens:
    """A tower's output: merged tokens X (N, Np, D) and the DeepStack features, each (N, Np, D).

    The language model reads all of them, the pooler reads X alone.
    """

    merged: Tensor
    deepstack: tuple[Tensor, ...] = ()

    @classmethod
    def of(cls, tensors: Sequence[Tensor]) -> VisualTokens:
        """Return the tokens whose `tensors` these are."""
        return cls(tensors[0], tuple(tensors[1:]))

    def tensors(self) -> tuple[Tensor, ...]:
        return (self.merged, *self.deepstack)

    def boundary(self) -> VisualTokens:
        """Return detached leaves that gather the gradients of several losses, before one backward through the tower."""
        return self.of([t.detach().requires_grad_(True) for t in self.tensors()])

    def detach(self) -> VisualTokens:
        return self.of([t.detach() for t in self.tensors()])

    def scaled(self, scale: float, plus: VisualTokens | None = None) -> VisualTokens:
        """Return scale · these tokens, `plus` added."""
        added = plus.tensors() if plus else [0] * len(self.tensors())
        return self.of([t * scale + p for t, p in zip(self.tensors(), added, strict=True)])

    def __getitem__(self, index: Tensor | slice) -> VisualTokens:
        return self.of([t[index] for t in self.tensors()])

    @staticmethod
    def cat(parts: Sequence[VisualTokens]) -> VisualTokens:
        return VisualTokens.of([torch.cat(group) for group in zip(*(part.tensors() for part in parts), strict=True)])


class Tower(nn.Module):
    """A vision tower f_θ: PIL images, then `preprocess`ed pixels (N, …), then `VisualTokens` in raster order.

    Subclasses set the attributes below, write `preprocess` and `forward`, and can be rebuilt without weights from
    `config_dict`, whose key `family` finds their class.
    """

    family: str  # a name of `families.MODULES`
    lora_targets = ""  # which matrices adapters go to: a regular expression for whole module names
    image_size: int  # pixels on a side
    image_fit = "crop"  # how `squares` fits images to it: crop (their centre square) | resize (all of an image, squeezed)
    tokens_per_side: int
    num_tokens: int  # Np
    width: int  # D

    def preprocess(self, images: Sequence[Image.Image]) -> Tensor:
        raise NotImplementedError

    def squares(self, images: Sequence[Image.Image]) -> list[Image.Image]:
        """Return images as the tower sees them: upright RGB squares of `image_size`."""
        return [fit_square(image, self.image_size, self.image_fit) for image in images]

    def merger_parameters(self) -> list[nn.Parameter]:
        """Return the parameters that merge patches into tokens, which θ includes unless a run says otherwise."""
        return []

    def for_export(self, pixels: Tensor) -> nn.Module:
        """Return a module that computes the same merged tokens and that exporters can trace; `pixels` are an example."""
        return self

    def config_dict(self) -> dict:
        raise NotImplementedError

    @classmethod
    def from_config_dict(cls, config: dict) -> Tower:
        raise NotImplementedError


def autocast(device: torch.device):
    """Return bf16 autocast on a GPU (the tower's master weights stay float32), nothing on a CPU."""
    return torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else nullcontext()
