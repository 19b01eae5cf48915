"""Encoders given by a path: found where people mean them, else refused with the likely right path."""

from __future__ import annotations

import hashlib
import json
import os
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from saga_lib.common.errors import SagaError
from saga_lib.common.files import read_json
from saga_lib.common.paths import given_path

if TYPE_CHECKING:
    from saga_lib.encoder import Encoder

CONFIG, WEIGHTS = "config.json", "model.safetensors"


def load_encoder(folder: str | Path) -> Encoder:
    """Load the encoder that `Encoder.save_pretrained` wrote into a folder, onto the GPU if there is one.

    Raises `SagaError` for a path that is no such folder, with the path of an encoder that lies beside or below it.
    """
    import torch

    from saga_lib.encoder import Encoder

    folder = given_path(folder)
    if problem := _problem(folder):
        raise SagaError(f"{problem}; {_advice(folder)}")
    try:
        return Encoder.from_pretrained(folder).to("cuda" if torch.cuda.is_available() else "cpu")
    except SagaError as error:
        raise error if str(folder) in str(error) else SagaError(f"encoder {folder}, {CONFIG}: {error}") from None


def _problem(folder: Path) -> str:
    """Return why a path is no saved encoder, or ""."""
    if os.path.isfile(folder):  # which pathlib asks with errors of its own, about names that are too long
        return f"{folder} is a file, and an encoder is a folder"
    if not os.path.isfile(folder / CONFIG):
        return f"there is no encoder at {folder}: {folder / CONFIG} does not exist"
    content = read_json(folder / CONFIG)
    if isinstance(content, dict) and "inputs" in content and "config" in content:
        return f"{folder} is the folder of a run, not of an encoder"
    if isinstance(content, dict) and "model_type" in content and "tower" not in content:
        return f"{folder} holds a model of the hub ({content['model_type']}), not an encoder"
    if "tower" in content and not os.path.isfile(folder / WEIGHTS):
        return f"{folder} is an encoder without its weights: {folder / WEIGHTS} does not exist"
    return ""  # what else may be wrong, loading says


def _advice(folder: Path) -> str:
    """Return what to give in place of a path that is no encoder."""
    near = [folder.parent] if os.path.isfile(folder) else []
    near += [folder / "encoder", folder.parent / "encoder"]
    for pattern in ("*", "*/encoder", "exports/*", "runs/*/encoder", "*/exports/*", "*/runs/*/encoder"):
        near += islice(folder.glob(pattern), 1000) if os.path.isdir(folder) else []
    found = [place for place in near if os.path.isfile(place / CONFIG) and not _problem(place)]
    if found:
        return f"did you mean {found[0]}?" + (f" ({len(found) - 1} more are there)" if len(found) > 1 else "")
    if os.path.isfile(folder / "evaluation.json"):
        return "this run kept no weights: train it again, or give another run's encoder"
    return "give a folder that Encoder.save_pretrained wrote, such as results/<study>/runs/<run>/encoder"


def encoder_digest(encoder: Encoder) -> str:
    """Return the SHA-256 of all that an embedding depends on: weights, pooler, image size, preprocessing."""
    import torch

    config = encoder.tower.config_dict()
    processor = config.get("image_processor") or {}
    shape = {"family": config.get("family"), "pooler": encoder.pooler_name, "embedding_dim": encoder.embedding_dim,
             "image_size": config.get("image_size"), "mean": processor.get("image_mean"), "std": processor.get("image_std"),
             "scale": processor.get("rescale_factor")}  # fmt: skip
    if encoder.tower.image_fit != "crop":  # which all were before there was a choice
        shape["image_fit"] = encoder.tower.image_fit
    digest = hashlib.sha256(json.dumps(shape, sort_keys=True, default=list).encode())
    for name, tensor in sorted(encoder.state_dict().items()):
        tensor = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
