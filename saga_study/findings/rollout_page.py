"""A page to click through: pairs of images, their rollouts, and what each token sends to which patch, at several moments of training."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from saga_lib.datasets.splits import Split
from saga_study.findings.neighbour_page import script_json, thumbnail
from saga_study.findings.page import render
from saga_study.findings.token_gradients import Moment

PICTURE = 240  # pixels


def rollout_page(moments: Sequence[Moment], split: Split, pairs: Sequence[tuple[int, int]], title: str, note: str = "") -> str:
    """Return a self-contained page of pairs (positions in a split) at each moment; it needs nothing beside it and no network."""
    content = {
        "moments": [moment.name for moment in moments],
        "pairs": [_pair(split, pair) for pair in pairs],
        "rollouts": [[_rollouts(own) for own in moment.pairs] for moment in moments],
    }
    return render("rollouts.html", title=title, note=note, content=script_json(content))


def _pair(split: Split, pair: tuple[int, int]) -> dict[str, object]:
    names = [split.class_names[split.labels[image]] for image in pair]
    truth: list[Mapping[str, str]] = [split.attributes(image) if split.class_attributes else {} for image in pair]
    return {
        "images": [thumbnail(_large(split.open(image)), PICTURE) for image in pair], "classes": names,
        "same": bool(split.labels[pair[0]] == split.labels[pair[1]]),
        "attributes": [[name, truth[0][name], truth[1][name]] for name in truth[0]],
    }  # fmt: skip


def _large(image: Image.Image) -> Image.Image:
    """Return a small image with its pixels enlarged, so that patches can be told."""
    factor = max(1, PICTURE // max(image.size))
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def _rollouts(own) -> dict[str, object]:  # noqa: ANN001 (a `PairRollouts`)
    """Return a pair's rollouts; norms are bytes, 255 the largest of the pair at that moment, row by row of (T, 2, Np)."""
    largest = max((float(norms.max()) for norms in own.norms if norms.size), default=0.0)
    packed = [np.round(255 * norms / (largest or 1.0)).astype(np.uint8) for norms in own.norms]
    return {
        "largest": float(f"{largest:.3g}"), "patches": own.norms[0].shape[-1], "tokens": own.tokens, "rewards": own.rewards,
        "advantages": [round(value, 2) for value in own.advantages],
        "marks": own.marks,
        "norms": [base64.b64encode(values.tobytes()).decode("ascii") for values in packed],
    }  # fmt: skip
