"""The grid of tokens that an image becomes. Needs no torch."""

from __future__ import annotations

from saga_lib.common.errors import SagaError


def tokens_per_side(image_size: int, patch: int, merge: int, model: str) -> int:
    """Return how many tokens a side of a square image has; a token is merge × merge patches, sizes are in pixels.

    Raises `SagaError`, with the `model`'s name and sizes that fit, if that is no whole number.
    """
    token = patch * merge
    if image_size < token or image_size % token:
        near = f"{below} or {below + token}" if (below := image_size // token * token) else f"{token}"
        raise SagaError(f"image size {image_size} is not a whole number of {model} tokens; take a multiple of {token} pixels, e.g. {near}")
    return image_size // token
