"""What several test modules share: a tiny untrained supervisor, its images and its vocabulary."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from saga_lib.miniature.pretraining import Recipe, build_checkpoint
from saga_lib.prompts import comparison_answer, load_vocabulary

IMAGE_SIZE = 48
VOCABULARY = load_vocabulary("miniature_birds")


def build_tiny_checkpoint(folder: Path, family: str = "qwen3_vl") -> Path:
    """Write an untrained supervisor whose matrices are so large that neither attention nor logits are near-uniform."""
    from safetensors.torch import load_file, save_file

    build_checkpoint(Recipe(family=family, width=48, vision_depth=3, text_depth=3), folder)
    weights = load_file(folder / "model.safetensors")
    generator = torch.Generator().manual_seed(11)
    for name, tensor in weights.items():
        if name.endswith("cls_token"):  # starts at 0
            tensor.normal_(std=0.15, generator=generator)
        elif tensor.ndim >= 2:  # small tied embeddings, else every token predicts itself
            tensor.mul_((0.03 if "embed_tokens" in name else 0.15) / tensor.std())
        elif name.endswith(("language_model.norm.weight", "language_model.model.norm.weight")):
            tensor.fill_(8.0)
        else:  # biases and norms differ from 0 and 1, as in a trained model
            tensor.add_(0.2 * torch.randn(tensor.shape, generator=generator))
        weights[name] = tensor.contiguous()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def random_images(count: int, seed: int = 0, size: tuple[int, int] = (IMAGE_SIZE, IMAGE_SIZE)) -> list[Image.Image]:
    """Return RGB images of smooth random colours."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (count, 6, 6, 3), dtype=np.uint8)
    return [Image.fromarray(c).resize(size, Image.Resampling.BILINEAR) for c in coarse]


def random_item(seed: int) -> dict[str, str]:
    """Return random attribute values of the miniature vocabulary."""
    rng = np.random.default_rng(seed)
    return {a.name: a.values[rng.integers(len(a.values))] for a in VOCABULARY.attributes}


def random_answer(seed: int, verdict: bool | None = None) -> str:
    """Return an answer in the trained format; `verdict` overrides the one that its lists imply."""
    text = comparison_answer(VOCABULARY, random_item(2 * seed), random_item(2 * seed + 1))
    if verdict is None:
        return text
    head, _, _ = text.rpartition(f'"{VOCABULARY.verdict_key}"')
    return f'{head}"{VOCABULARY.verdict_key}": "{"yes" if verdict else "no"}"}}'
