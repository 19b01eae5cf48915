"""The retrieval encoder: vision tower f_θ, pooler c_φ, and how both are saved, loaded and used alone.

Shape legend, here and everywhere: N images, Np patches (merged tokens), D token width, D_e embedding
dimension, B pairs, G rollouts, T completion tokens, R = B·G.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from saga_lib.errors import SagaError, unknown_name
from saga_lib.files import read_json, write_atomically, write_json, write_text


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


class InternVLTower(nn.Module):
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
        """Return (tokens per side of an image, patches per side of a token); `SagaError` if they are no whole numbers."""
        (height, width), shuffle = patch_size, round(1 / downsample_ratio)
        token = height * shuffle
        if height != width or shuffle * downsample_ratio != 1:
            raise SagaError(f"InternVL patches of {height}×{width} pixels, downsampled by {downsample_ratio}, make no square tokens")
        if image_size < token or image_size % token:
            raise SagaError(f"image size {image_size} is not a whole number of InternVL tokens; take a multiple of {token} pixels")
        return image_size // token, shuffle

    def preprocess(self, images: Sequence[Image.Image]) -> Tensor:
        """Return (N, 3, S, S) float32, one tile per image; images are centre-cropped to a square and resized first."""
        square = [square_crop(image, self.image_size) for image in images]
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
        """Return the parameters of the projector, which θ includes unless a run says otherwise."""
        return list(self.projector.parameters())

    @staticmethod
    def vision_attention() -> str:
        """Return the name of the attention that a stock model must be loaded with: images are batched there already."""
        return "sdpa"

    @staticmethod
    def stock_modules(model: nn.Module) -> dict[str, nn.Module]:
        """Return this tower's modules, by our names, inside a stock `InternVLForConditionalGeneration`."""
        return {"visual": model.model.vision_tower, "projector": model.model.multi_modal_projector}

    def config_dict(self) -> dict:
        return {
            "family": self.family,
            "image_size": self.image_size,
            "vision_config": self.visual.config.to_dict(),
            "downsample_ratio": self.downsample_ratio,
            "projector_act": self.projector_act,
            "width": self.width,
            "image_processor": self.image_processor.to_dict(),
        }

    @classmethod
    def from_config_dict(cls, config: dict) -> InternVLTower:
        from transformers import GotOcr2ImageProcessorPil, InternVLConfig, InternVLVisionModel
        from transformers.models.internvl.modeling_internvl import InternVLMultiModalProjector

        ratio, act = config["downsample_ratio"], config["projector_act"]
        whole = InternVLConfig(  # of a language model no more than its width
            vision_config=config["vision_config"], text_config={"model_type": "qwen3", "hidden_size": config["width"]},
            downsample_ratio=ratio, projector_hidden_act=act,
        )  # fmt: skip
        whole.vision_config._attn_implementation = cls.vision_attention()
        visual, projector = InternVLVisionModel(whole.vision_config), InternVLMultiModalProjector(whole)
        processor = GotOcr2ImageProcessorPil.from_dict(config["image_processor"])
        return cls(visual, projector, processor, config["image_size"], ratio, act)


class TimmTower(nn.Module):
    """A vision model of timm without a language model, for metric-learning baselines: images in, patch tokens out.

    Tokens are `forward_features` without class and register tokens; a feature map of a convolutional model counts as tokens too.
    """

    family = "timm"
    lora_targets = r"model\.blocks\.\d+\.(attn\.(qkv|proj)|mlp\.fc[12])"

    def __init__(self, model: nn.Module, name: str, image_size: int, preprocessing: dict) -> None:
        super().__init__()
        self.model, self.name, self.image_size, self.preprocessing = model, name, image_size, preprocessing
        device = next(model.parameters()).device
        model.eval()
        with torch.no_grad():
            shape = self(torch.zeros(1, 3, image_size, image_size, device=device)).merged.shape
        self.num_tokens, self.width = shape[1:]
        self.tokens_per_side = int(self.num_tokens**0.5)

    @classmethod
    def pretrained(cls, name: str, image_size: int) -> TimmTower:
        """Load a model and its published weights by name, e.g. `vit_small_patch14_dinov2`."""
        return cls._create(name, image_size, pretrained=True)

    @classmethod
    def _create(cls, name: str, image_size: int, pretrained: bool, preprocessing: dict | None = None) -> TimmTower:
        try:
            import timm
        except ModuleNotFoundError as error:
            raise SagaError(f"tower {name} needs timm ({error}): pip install timm") from error
        if not timm.is_model(name):
            raise unknown_name("timm model", name, timm.list_models())
        settings = {"pretrained": pretrained, "num_classes": 0}
        try:
            try:
                model = timm.create_model(name, img_size=image_size, **settings)
            except TypeError:  # convolutional models take images of any size
                model = timm.create_model(name, **settings)
        except Exception as error:  # no network, no such weights, a size that does not divide: one line for the user
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise SagaError(f"timm model {name} cannot be had for {image_size} pixels: {reason}") from error
        if preprocessing is None:
            found = timm.data.resolve_model_data_config(model)
            preprocessing = {"mean": list(found["mean"]), "std": list(found["std"])}
        return cls(model, name, image_size, preprocessing)

    def preprocess(self, images: Sequence[Image.Image]) -> Tensor:
        """Return (N, 3, size, size) float32 of centre squares, normalised as the model was trained."""
        square = np.stack([np.asarray(square_crop(image, self.image_size)) for image in images])
        pixels = torch.from_numpy(square).permute(0, 3, 1, 2).float() / 255
        mean, std = (torch.tensor(self.preprocessing[key]).view(3, 1, 1) for key in ("mean", "std"))
        return (pixels - mean) / std

    def forward(self, pixels: Tensor) -> VisualTokens:
        features = self.model.forward_features(pixels.to(next(self.model.parameters()).dtype))
        if features.ndim == 4:
            last = getattr(self.model, "output_fmt", "NCHW") == "NHWC"
            return VisualTokens(features.flatten(1, 2) if last else features.flatten(2).mT)
        return VisualTokens(features[:, getattr(self.model, "num_prefix_tokens", 0) :])

    def merger_parameters(self) -> list[nn.Parameter]:
        """Return nothing: there are no mergers."""
        return []

    def config_dict(self) -> dict:
        return {"family": self.family, "name": self.name, "image_size": self.image_size, "preprocessing": self.preprocessing}

    @classmethod
    def from_config_dict(cls, config: dict) -> TimmTower:
        return cls._create(config["name"], config["image_size"], pretrained=False, preprocessing=config["preprocessing"])


TOWERS = {tower.family: tower for tower in (Qwen3VLTower, InternVLTower, TimmTower)}


def square_crop(image: Image.Image, size: int) -> Image.Image:
    """Return the centre square of an image, RGB, resized to size×size."""
    image = image.convert("RGB")
    side = min(image.size)
    if image.size != (side, side):
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.crop((left, top, left + side, top + side))
    return image if side == size else image.resize((size, size), Image.Resampling.BICUBIC)


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
    """Tower + pooler: all that is left of SAGA at inference (Eq. 9)."""

    def __init__(self, tower: nn.Module, pooler: str = "mean", embedding_dim: int = 0) -> None:
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
        """Embed preprocessed pixels in batches to (N, D_e) float32 numpy, l2-normalised."""
        was_training = self.training
        self.eval()
        parts = [self(chunk.to(self.device))[0].float().cpu().numpy() for chunk in pixels.split(batch_size)]
        self.train(was_training)
        return np.concatenate(parts)

    def embed(self, images: Sequence[Image.Image], batch_size: int = 64) -> np.ndarray:
        """Embed PIL images to (N, D_e) float32 numpy, l2-normalised."""
        if not len(images):
            raise SagaError("no images to embed")
        parts = [
            self.embed_pixels(self.tower.preprocess(images[i : i + batch_size]), batch_size)
            for i in range(0, len(images), batch_size)
        ]
        return np.concatenate(parts)

    def save_pretrained(self, folder: str | Path, card: dict[str, object] | None = None) -> None:
        """Write `config.json`, `model.safetensors` and a model card: self-contained, no language-model weights inside.

        `card` adds lines {what: value} to the card, such as dataset, training and results, or replaces known ones.
        """
        from safetensors.torch import save_file

        folder = Path(folder)
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        write_atomically(folder / "model.safetensors", lambda path: save_file(weights, path, metadata={"format": "pt"}))
        write_json(
            folder / "config.json",
            {"pooler": self.pooler_name, "embedding_dim": self.embedding_dim, "tower": self.tower.config_dict()},
        )
        write_text(folder / "README.md", _model_card(self, card or {}))

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Encoder:
        """Load an encoder saved by `save_pretrained`; raises `SagaError` when files are missing or damaged."""
        folder = Path(folder)
        config = read_json(folder / "config.json")
        for key in ("tower", "pooler", "embedding_dim"):
            if not isinstance(config, dict) or key not in config:
                raise SagaError(f"{folder / 'config.json'} has no '{key}'; it was not written by Encoder.save_pretrained")
        family = config["tower"].get("family")
        if family not in TOWERS:
            raise unknown_name("tower family", family, TOWERS)
        encoder = cls(TOWERS[family].from_config_dict(config["tower"]), config["pooler"], config["embedding_dim"])
        load_weights(encoder, folder / "model.safetensors")
        return encoder.eval()


def _model_card(encoder: Encoder, card: dict[str, object]) -> str:
    """Return the README.md of a saved encoder; what is not known is not mentioned."""
    tower = encoder.tower
    vision = tower.config_dict().get("vision_config", {})
    sizes = (("depth", "layers"), ("num_hidden_layers", "layers"), ("hidden_size", "wide"))
    shape = ", ".join(f"{vision[key]} {what}" for key, what in sizes if key in vision)
    name = getattr(getattr(getattr(tower, "visual", None), "config", None), "_name_or_path", "")
    facts = {
        "base tower": f"{tower.family}{f' ({shape})' if shape else ''}{f', from {name}' if name else ''}",
        "image size": f"{tower.image_size} × {tower.image_size} pixels, centre square",
        "pooler": f"{encoder.pooler_name}, over {tower.num_tokens} tokens of {tower.width} dimensions",
        "embedding size": f"{encoder.embedding_dim or tower.width}, unit length: the dot product is the cosine similarity",
        "parameters": f"{sum(p.numel() for p in encoder.parameters()):,}",
    } | card
    lines = ["| " + " | ".join(" ".join(str(cell).split()).replace("|", "\\|") for cell in fact) + " |" for fact in facts.items()]
    return "\n".join(
        [
            "---", "pipeline_tag: image-feature-extraction", "tags: [image-retrieval, saga]", "---", "",
            "# Image retrieval encoder", "",
            "Vision tower and pooler trained with the open study of SAGA (arXiv 2606.15134) for fine-grained image retrieval.",
            "Images of one class get similar embeddings. No language model is inside, and none is needed.", "",
            "| what | value |", "| --- | --- |", *lines, "",
            "```python",
            "from PIL import Image",
            "from saga_lib.encoder import Encoder", "",
            'encoder = Encoder.from_pretrained("path/of/this/folder")',
            'z = encoder.embed([Image.open("a.jpg"), Image.open("b.jpg")])  # (2, D_e) float32, unit length',
            "print(z[0] @ z[1])  # cosine similarity",
            "```", "",
        ]
    )  # fmt: skip


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
