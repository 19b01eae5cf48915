"""Every family of multimodal models has all parts that the library asks of its module."""

import re

import pytest
import torch
from transformers import AutoModelForImageTextToText

from saga_lib.families import MULTIMODAL, family_module
from saga_lib.families.sizes import Sizes
from saga_lib.supervisor.base import Supervisor
from saga_lib.towers import Tower

SMALL = dict(
    hidden=32, layers=2, heads=4, kv_heads=2, head_dim=16, intermediate=48, vocabulary=640, tied_head=True, vision_hidden=32,
    vision_layers=3, vision_heads=2, vision_intermediate=64, patch=8, merge=2, positions=37,
)  # fmt: skip
TOWER_PARTS = ("preprocess", "forward", "config_dict", "from_config_dict")
SUPERVISOR_PARTS = ("from_model", "_expand_images", "positions", "text_positions")


def own(part, cls, base):
    return getattr(getattr(cls, part), "__func__", getattr(cls, part)) is not getattr(getattr(base, part), "__func__", getattr(base, part))


@pytest.mark.parametrize("name", MULTIMODAL)
def test_a_family_is_complete(name):
    module = family_module(name, multimodal=True)
    tower, supervisor = module.TOWER, module.SUPERVISOR
    assert issubclass(tower, Tower) and issubclass(supervisor, Supervisor)
    assert tower.family == name and supervisor.tower_class is tower
    assert not [part for part in TOWER_PARTS if not own(part, tower, Tower)]
    assert not [part for part in SUPERVISOR_PARTS if not own(part, supervisor, Supervisor)]
    assert isinstance(tower.vision_attention(), str)


@pytest.mark.parametrize("name", MULTIMODAL)
def test_a_model_of_given_sizes_has_them_and_its_parts_are_found(name):
    module = family_module(name, multimodal=True)
    optional = {"qwen3_vl": {"temporal": 2, "deepstack": 2, "positions": 36}}.get(name, {})
    sizes = Sizes(**SMALL | optional)
    config = module.config_of(sizes)
    assert config.model_type == name and module.sizes_of(config.to_dict()) == sizes
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    parts = module.TOWER.stock_modules(model)
    matrices = [f"{part}.{path}" for part, of in parts.items() for path, one in of.named_modules() if isinstance(one, torch.nn.Linear)]
    assert any(re.fullmatch(module.TOWER.lora_targets, path) for path in matrices)  # adapters find the blocks
    assert len(model.model.language_model.layers) == sizes.layers
