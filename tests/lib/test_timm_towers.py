"""Towers of timm either give a square grid of patch tokens in raster order, or say in one line that they do not."""

import math

import pytest
import torch

from saga_lib.common.errors import SagaError
from saga_lib.families.timm_towers import TimmTower

GRIDS = {  # tokens at 224 pixels
    "vit_tiny_patch16_224": 196, "deit_tiny_distilled_patch16_224": 196, "volo_d1_224": 196, "coat_lite_tiny": 49, "cait_xxs24_224": 196,
    "xcit_nano_12_p16_224": 196, "tnt_s_patch16_224": 196, "swin_tiny_patch4_window7_224": 49, "pvt_v2_b0": 49, "resnet18": 49,
    "mambaout_femto": 49, "mixer_s16_224": 196, "convnext_atto": 49, "levit_128s": 16,
}  # fmt: skip
NO_GRIDS = (
    "coat_tiny", "coat_mini", "crossvit_9_240", "crossvit_tiny_240", "pit_ti_224", "pit_ti_distilled_224", "efficientvim_m1", "halonet26t",
)  # fmt: skip


@pytest.mark.parametrize("name", GRIDS)
def test_a_tower_has_the_square_of_its_side_as_tokens(name):
    with torch.device("meta"):  # shapes alone
        tower = TimmTower.create(name, 224, pretrained=False)
    assert (tower.num_tokens, tower.tokens_per_side**2) == (GRIDS[name], GRIDS[name])


@pytest.mark.parametrize("name", NO_GRIDS)
def test_a_tower_without_a_grid_is_one_line(name):
    with torch.device("meta"), pytest.raises(SagaError, match=f"^timm model {name} gives (no grid of tokens|.* no square grid)") as error:
        TimmTower.create(name, 224, pretrained=False)
    assert "\n" not in str(error.value) and len(str(error.value)) < 300


@pytest.mark.parametrize("name, patch", [
    ("vit_tiny_patch16_224", 16), ("vit_small_patch14_dinov2", 14), ("deit_tiny_distilled_patch16_224", 16), ("mixer_s16_224", 16),
    ("cait_xxs24_224", 16), ("swin_tiny_patch4_window7_224", 4), ("test_vit", 16), ("beit_base_patch16_224", 16),
])  # fmt: skip
def test_sizes_off_the_grid_of_a_tower_s_patches_are_one_line(name, patch):
    for size in (14 * patch + 1, 14 * patch - 1, patch - 1):
        said = f"size {size} is not .* {name} tokens; take a multiple of {patch} pixels"
        with torch.device("meta"), pytest.raises(SagaError, match=said):
            TimmTower.create(name, size, pretrained=False)
    with torch.device("meta"):
        assert TimmTower.create(name, 16 * patch, pretrained=False).image_size == 16 * patch


class Scripted(torch.nn.Module):
    """A model whose features number its tokens from 0: `special` of the class, then those of the patches."""

    def __init__(self, tokens, **says):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.tokens = tokens
        for name, value in says.items():
            setattr(self, name, value)

    def forward_features(self, pixels):
        return torch.arange(self.tokens)[None, :, None].expand(len(pixels), -1, 4).float()


@pytest.mark.parametrize("side", [2, 3, 7, 16])
@pytest.mark.parametrize("special", [0, 1, 2])
@pytest.mark.parametrize("says", [True, False])
def test_tokens_of_the_class_are_left_out_whether_or_not_a_model_counts_them(side, special, says):
    model = Scripted(side**2 + special, **({"num_prefix_tokens": special} if says else {}))
    tower = TimmTower(model, "scripted", 64, {})
    assert tower.tokens_per_side == side
    assert tower(torch.zeros(1, 3, 64, 64)).merged[0, :, 0].tolist() == list(range(special, side**2 + special))


@pytest.mark.parametrize("tokens", [12, 20, 45, 3 * 7, 56])
def test_tokens_of_an_oblong_grid_are_not_cut_to_a_square(tokens):
    assert tokens - math.isqrt(tokens) ** 2 > 2
    with pytest.raises(SagaError, match=f"scripted gives {tokens} tokens for 64 pixels, no square grid of patches"):
        TimmTower(Scripted(tokens), "scripted", 64, {})
