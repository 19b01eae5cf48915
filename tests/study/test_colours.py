"""One colour per method in all figures: whom it tells apart, and that eyes without one kind of cone tell them apart, too."""

from itertools import combinations

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from saga_study.design.tables import TABLE_RUNS
from saga_study.findings.figures.drawing import method_colour
from saga_study.findings.figures.style import VERMILION
from saga_study.methods import METHODS

# What a missing kind of cone leaves of linear RGB, at full severity (Machado, Oliveira and Fernandes 2009, table 1).
EYES = {
    "all cones": np.eye(3),
    "no long cones": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "no middle cones": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
}
ALONE = ("pre-trained", "pa", "ms", "infonce", "pf")


def lab(colour, eyes):
    """CIE L*a*b* of a colour as eyes see it, from sRGB under D65."""
    rgb = np.array(to_rgb(colour))
    linear = np.clip(np.array(EYES[eyes]) @ np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4), 0, 1)
    x, y, z = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ linear / (0.9505, 1, 1.089)
    fx, fy, fz = (t ** (1 / 3) if t > 0.008856 else 7.787 * t + 16 / 116 for t in (x, y, z))
    return np.array([116 * fy - 16, 500 * (fx - fy), 200 * (fy - fz)])


@pytest.mark.parametrize("eyes", EYES)
def test_what_is_compared_is_told_apart(eyes):
    shown = (*ALONE, "pf_long", "pf_saga_rate", "pf_attention", "pf_kl", "pf_grpo", "saga_pf", "contrast_pf", "oracle", "saga_shuffled")
    far = {pair: np.linalg.norm(np.subtract(*(lab(method_colour(name), eyes) for name in pair))) for pair in combinations(shown, 2)}
    assert min(far.values()) > 12, min(far, key=far.get)  # 2.3 is just noticeable side by side
    for other in set(shown) - {"saga_pf"}:
        assert np.linalg.norm(lab(method_colour("saga_pf"), eyes) - lab(method_colour(other), eyes)) > 15, f"SAGA stands out from {other}"


def test_sagas_colour_is_sagas():
    red = {name for name in METHODS if method_colour(name) == VERMILION}
    assert red == {name for name in METHODS if name.startswith("saga_") and "shuffled" not in name}


@pytest.mark.parametrize("table", [table for table in TABLE_RUNS if table.startswith("table")])
def test_methods_of_a_table_share_a_colour_only_as_the_same_signal_on_several_losses(table):
    colours = {name: method_colour(name) for name in TABLE_RUNS[table].methods}
    for one, other in combinations(colours, 2):
        if colours[one] == colours[other]:
            assert METHODS[one].settings.get("dml_loss") != METHODS[other].settings.get("dml_loss"), (one, other)
