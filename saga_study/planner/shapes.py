"""Shapes of multimodal models, read from their configurations: layers, widths, parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

from saga_lib.common.errors import SagaError, unknown_name
from saga_lib.common.files import read_json
from saga_lib.common.grids import tokens_per_side
from saga_lib.common.model_files import check_folder, in_one_line, is_local
from saga_lib.config import RunConfig
from saga_lib.families import family_module
from saga_lib.families.sizes import Sizes
from saga_study.resolving import supervisor_source

GIB = 2**30


# ----------------------------------------------------------------------------------------------- architectures


@dataclass(frozen=True)
class Architecture(Sizes):
    """A multimodal model by its name and family, with the sizes of its parts."""

    name: str
    family: str  # one of saga_lib.families.MULTIMODAL

    def patches(self, image_size: int) -> int:
        """Return the patches of a square image of `image_size` pixels; a class token, if any, is left out."""
        return self.tokens(image_size) * self.merge**2

    def tokens(self, image_size: int) -> int:
        """Return Np, the tokens that the language model gets for such an image; `SagaError` for a size that makes no whole tokens."""
        return tokens_per_side(image_size, self.patch, self.merge, self.name.rpartition("/")[2]) ** 2

    @property
    def patch_values(self) -> int:
        """Colour values of one patch, as the tower takes it."""
        return 3 * self.temporal * self.patch**2

    @property
    def kv_values(self) -> int:
        """Keys and values of one token in all layers, as a count of numbers."""
        return 2 * self.layers * self.kv_heads * self.head_dim

    @property
    def layer_weights(self) -> int:
        """Entries of all matrices of the language model's layers: multiplications of one token's forward pass."""
        attention = self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        return self.layers * (attention + 3 * self.hidden * self.intermediate)

# Published configurations (`config.json` of each repository on the hub; the Qwen ones also in torchtitan). InternVL3.5-2B is put
# together from its parts: the tower of the 8B and Qwen3-1.7B, with a head of its own (a language model of 2.0 B is published).
_QWEN = dict(
    family="qwen3_vl", kv_heads=8, head_dim=128, vocabulary=151_936, vision_heads=16, patch=16, merge=2, temporal=2,
    positions=2304, deepstack=3,
)  # fmt: skip
_INTERNVL = dict(
    family="internvl", kv_heads=8, head_dim=128, vocabulary=151_936, tied_head=False, vision_heads=16, patch=14, merge=2, positions=1025,
)  # fmt: skip
_SMALL_VISION = dict(vision_hidden=1024, vision_layers=24, vision_intermediate=4096)
ARCHITECTURES = {
    a.name: a
    for a in (
        Architecture(
            "Qwen/Qwen3-VL-2B-Instruct", hidden=2048, layers=28, heads=16, intermediate=6144, tied_head=True, **_SMALL_VISION, **_QWEN
        ),
        Architecture(
            "Qwen/Qwen3-VL-4B-Instruct", hidden=2560, layers=36, heads=32, intermediate=9728, tied_head=True, **_SMALL_VISION, **_QWEN
        ),
        Architecture(
            "Qwen/Qwen3-VL-8B-Instruct", hidden=4096, layers=36, heads=32, intermediate=12_288, tied_head=False,
            vision_hidden=1152, vision_layers=27, vision_intermediate=4304, **_QWEN,
        ),
        Architecture("OpenGVLab/InternVL3_5-2B-HF", hidden=2048, layers=28, heads=16, intermediate=6144, **_SMALL_VISION, **_INTERNVL),
        Architecture("OpenGVLab/InternVL3_5-8B-HF", hidden=4096, layers=36, heads=32, intermediate=12_288, **_SMALL_VISION, **_INTERNVL),
    )
}  # fmt: skip


@lru_cache
def architecture(source: str) -> Architecture:
    """Return the shapes of a supervisor: a local folder's `config.json`, or a model whose shapes are built in."""
    if is_local(source):
        check_folder(source)
        return architecture_of_config(read_json(Path(source) / "config.json"), source)
    if source not in ARCHITECTURES:
        raise unknown_name("model without a local folder", source, ARCHITECTURES)
    return ARCHITECTURES[source]


def architecture_of_config(config: Mapping, name: str) -> Architecture:
    """Return the shapes that a model's `config.json` states; a missing field is named."""
    with in_one_line(f"the configuration of {name} cannot be read, so its shapes are not known"):
        family = config.get("model_type")
        try:
            shapes = Architecture(name, family, **asdict(family_module(family, multimodal=True).sizes_of(config)))
        except KeyError as missing:
            raise SagaError(f"the configuration of {name} has no {missing}, so its shapes are not known") from None
        shapes.tokens(shapes.patch * shapes.merge)  # numbers, and none of them 0
    return shapes


def check_image_size(config: RunConfig) -> None:
    """Raise `SagaError` if a run's images make no whole tokens of its supervisor, where the shapes of that one are known."""
    source = supervisor_source(config)
    if source in ARCHITECTURES or is_local(source):
        architecture(source).tokens(config.image_size)


# -------------------------------------------------------------------------------------------------- parameters


def count_parameters(shapes: Architecture) -> dict[str, int]:
    """Return the parameters of each part: tower, mergers (projector), language model, head (0 if tied). Exact."""
    s, w, i = shapes, shapes.vision_hidden, shapes.vision_intermediate
    block = 4 * w * w + 2 * w * i + 9 * w + i  # q, k, v, projection and two layers of the MLP with biases, two norms
    tower = s.patch_values * w + w + s.positions * w + s.vision_layers * block
    wide = w * s.merge**2
    if s.family == "internvl":
        tower += w + s.vision_layers * 2 * w  # class token, layer scales
        mergers = 2 * wide + (wide + 1) * s.hidden + (s.hidden + 1) * s.hidden
    else:
        two_layers = (wide + 1) * wide + (wide + 1) * s.hidden
        mergers = (1 + s.deepstack) * two_layers + 2 * w + s.deepstack * 2 * wide
    norms = s.layers * 2 * (s.hidden + s.head_dim) + s.hidden
    language_model = s.vocabulary * s.hidden + s.layer_weights + norms
    head = 0 if s.tied_head else s.vocabulary * s.hidden
    return {"tower": tower, "mergers": mergers, "language model": language_model, "head": head}


def count_trained_parameters(shapes: Architecture, config: RunConfig, num_classes: int) -> dict[str, int]:
    """Return what a run trains, by part: tower (or adapters), mergers, pooler, proxies."""
    parts, width = count_parameters(shapes), shapes.hidden
    w, i = shapes.vision_hidden, shapes.vision_intermediate
    tower = {"tower": parts["tower"]}
    if config.lora_rank:  # r·(inputs + outputs) of each adapted matrix; InternVL keeps q, k and v apart
        attention = 8 * w if shapes.family == "internvl" else 6 * w
        tower = {"adapters": config.lora_rank * shapes.vision_layers * (attention + 2 * (w + i))}
    dim = config.embedding_dim or width
    out = (width + 1) * dim if config.embedding_dim else 0
    pooler = out + (width + width**2 if config.pooler == "attention" else 0)
    per_class = {"pf": dict(config.dml_options).get("proxies_per_class", 15), "pa": 1}.get(config.dml_loss, 0)
    mergers = {"mergers": parts["mergers"]} if config.train_mergers else {}
    return tower | mergers | {"pooler": pooler, "proxies": int(per_class) * num_classes * dim}
