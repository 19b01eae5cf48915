"""The retrieval encoder: vision tower f_θ, pooler c_φ, and how both are saved, loaded and used alone.

Shape legend, here and everywhere: N images, Np patches (merged tokens), D token width, D_e embedding
dimension, B pairs, G rollouts, T completion tokens, R = B·G.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterable
from pathlib import Path
from string import Template

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from saga_lib.common.errors import SagaError, unknown_name
from saga_lib.common.files import read_json, write_atomically, write_json, write_text
from saga_lib.common.images import FITS, upright_rgb
from saga_lib.common.model_files import as_folder, in_one_line, is_local
from saga_lib.common.weights import load_weights
from saga_lib.families import family_module
from saga_lib.towers import Tower, autocast

Given = Image.Image | str | os.PathLike | np.ndarray  # what `Encoder.embed` takes for an image


class AttentionPooler(nn.Module):
    """Single-query cross-attention (App. B): β = softmax(q W_k Xᵀ/√D), z = normalise(Linear(βX))."""

    def __init__(self, width: int, embedding_dim: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(width) * 0.02)  # near 0: starts as mean pooling
        self.key = nn.Linear(width, width, bias=False)
        self.out = _isometric_linear(width, embedding_dim)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Pool tokens (N, Np, D); return z (N, D_e), l2-normalised, and β (N, Np)."""
        scores = self.key(tokens) @ self.query / tokens.shape[-1] ** 0.5
        beta = scores.float().softmax(-1)
        pooled = torch.einsum("np,npd->nd", beta.to(tokens.dtype), tokens)
        return nn.functional.normalize(self.out(pooled).float(), dim=-1), beta


class MeanPooler(nn.Module):
    """Mean pooling and a linear map, as the paper's DML baselines use; `embedding_dim` 0 drops the map."""

    def __init__(self, width: int, embedding_dim: int) -> None:
        super().__init__()
        self.out = _isometric_linear(width, embedding_dim) if embedding_dim else nn.Identity()

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Pool tokens (N, Np, D); return z (N, D_e), l2-normalised, and the uniform β (N, Np)."""
        beta = tokens.new_full(tokens.shape[:2], 1 / tokens.shape[1]).float()
        return nn.functional.normalize(self.out(tokens.mean(1)).float(), dim=-1), beta


POOLERS = {"attention": AttentionPooler, "mean": MeanPooler}


def _isometric_linear(width: int, embedding_dim: int) -> nn.Linear:
    """A linear map that keeps angles (as far as D_e allows), so that training starts from the tower's geometry."""
    linear = nn.Linear(width, embedding_dim)
    nn.init.orthogonal_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear


class Encoder(nn.Module):
    """Tower and pooler: all that inference needs (Eq. 9)."""

    def __init__(self, tower: Tower, pooler: str = "mean", embedding_dim: int = 0) -> None:
        super().__init__()
        if pooler not in POOLERS:
            raise unknown_name("pooler", pooler, POOLERS)
        self.tower = tower
        self.pooler_name, self.embedding_dim = pooler, embedding_dim
        self.pooler = POOLERS[pooler](tower.width, embedding_dim)

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Embed preprocessed pixels; return z (N, D_e) float32 l2-normalised and β (N, Np)."""
        return self.pooler(self.tower(pixels).merged)

    @torch.no_grad()
    def embed_pixels(self, pixels: Tensor, batch_size: int = 64) -> np.ndarray:
        """Embed preprocessed pixels in batches to (N, D_e) float32 numpy, l2-normalised; on a GPU in bf16, as in training."""
        modes = [(module, module.training) for module in self.modules()]  # a tower's differs from its encoder's
        self.eval()
        with autocast(self.device):
            parts = [self(chunk.to(self.device))[0].float().cpu().numpy() for chunk in pixels.split(batch_size)]
        for module, was_training in modes:
            module.training = was_training
        return np.concatenate(parts)

    def embed(self, images: Given | Iterable[Given], batch_size: int = 64, progress: bool = False) -> np.ndarray:
        """Embed images to (N, D_e) float32 numpy, l2-normalised: PIL images, paths, or arrays (H, W, 3) uint8; one of them, or many.

        `progress` shows a bar. Raises `SagaError`, which names it, for a file that is no image.
        """
        is_one = isinstance(images, str | os.PathLike) or not isinstance(images, Iterable) or getattr(images, "ndim", 0) == 3
        images = [images] if is_one else list(images)
        if not images:
            raise SagaError("no images to embed")
        starts = tqdm(range(0, len(images), batch_size), "embedding", disable=not progress, unit="batch")
        batches = (self.tower.preprocess([_opened(image) for image in images[i : i + batch_size]]) for i in starts)
        return np.concatenate([self.embed_pixels(pixels, batch_size) for pixels in batches])

    def save_pretrained(self, folder: str | Path, card: dict[str, object] | None = None) -> None:
        """Write `config.json`, `model.safetensors` and a model card: self-contained, no language-model weights inside.

        `card` adds lines {what: value} to the card, such as dataset, training and results, or replaces known ones.
        """
        folder = Path(folder)
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        write_atomically(folder / "model.safetensors", lambda path: save_file(weights, path, metadata={"format": "pt"}))
        pooling = {"pooler": self.pooler_name, "embedding_dim": self.embedding_dim}
        write_json(folder / "config.json", {**pooling, "image_fit": self.tower.image_fit, "tower": self.tower.config_dict()})
        write_text(folder / "README.md", _model_card(self, card or {}))

    def push_to_hub(self, repo_id: str, card: dict[str, object] | None = None, **options: object) -> str:
        """Upload what `save_pretrained` writes to the hub, privately unless `options` of `create_repo` say otherwise; return where."""
        from huggingface_hub import HfApi

        with tempfile.TemporaryDirectory() as folder, in_one_line(f"encoder {repo_id} cannot be uploaded"):
            self.save_pretrained(folder, card)
            HfApi().create_repo(repo_id, exist_ok=True, **{"private": True} | options)
            return str(HfApi().upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Encoder"))

    @classmethod
    def from_pretrained(cls, source: str | Path, revision: str | None = None) -> Encoder:
        """Load an encoder from a folder or, by its id, from the hub; raises `SagaError` when files are missing or damaged."""
        if re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)) and not is_local(source):
            from huggingface_hub import snapshot_download

            with in_one_line(f"encoder {source} is neither a folder nor on the hub"):
                source = snapshot_download(str(source), revision=revision, allow_patterns=["config.json", "model.safetensors"])
        folder = as_folder(source, "an encoder")
        config = read_json(folder / "config.json")
        for key in ("tower", "pooler", "embedding_dim"):
            if not isinstance(config, dict) or key not in config:
                raise SagaError(f"{folder / 'config.json'} has no '{key}'; it was not written by Encoder.save_pretrained")
        with in_one_line(f"{folder / 'config.json'} describes no encoder"):
            tower = family_module(config["tower"].get("family")).TOWER.from_config_dict(config["tower"])
            encoder = cls(tower, config["pooler"], config["embedding_dim"])
            tower.image_fit = config.get("image_fit", "crop")  # which encoders of before the setting did
            tower.preprocess([Image.new("RGB", (8, 8))])
        load_weights(encoder, folder / "model.safetensors")
        return encoder.eval()


def _opened(image: Given) -> Image.Image:
    if isinstance(image, str | os.PathLike):
        return upright_rgb(Path(image))
    return Image.fromarray(image) if isinstance(image, np.ndarray) else image


def _model_card(encoder: Encoder, card: dict[str, object]) -> str:
    """Return the README.md of a saved encoder; unknown facts are left out."""
    tower = encoder.tower
    vision = tower.config_dict().get("vision_config", {})
    sizes = (("depth", "layers"), ("num_hidden_layers", "layers"), ("hidden_size", "wide"))
    shape = ", ".join(f"{vision[key]} {what}" for key, what in sizes if key in vision)
    name = getattr(getattr(getattr(tower, "visual", None), "config", None), "_name_or_path", "")
    facts = {
        "base tower": f"{tower.family}{f' ({shape})' if shape else ''}{f', from {name}' if name else ''}",
        "image size": f"{tower.image_size} × {tower.image_size} pixels, {FITS[tower.image_fit]}",
        "pooler": f"{encoder.pooler_name}, over {tower.num_tokens} tokens of {tower.width} dimensions",
        "embedding size": f"{encoder.embedding_dim or tower.width}, unit length: the dot product is the cosine similarity",
        "parameters": f"{sum(p.numel() for p in encoder.parameters()):,}",
    } | card
    rows = ["| " + " | ".join(" ".join(str(cell).split()).replace("|", "\\|") for cell in fact) + " |" for fact in facts.items()]
    return Template((Path(__file__).parent / "model_card.md").read_text(encoding="utf-8")).substitute(rows="\n".join(rows))
