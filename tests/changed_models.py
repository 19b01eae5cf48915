"""Copies of shipped supervisors with one thing about them changed."""

import json
import shutil
from pathlib import Path

from saga_lib.config import CHECKPOINTS

IMAGE_SIZE = 48
FAMILIES = {"qwen3_vl": "birds", "internvl": "birds_internvl"}  # and a shipped checkpoint of each


def copied(family: str, folder: Path) -> Path:
    """Return a copy of a family's shipped supervisor at `folder`."""
    return Path(shutil.copytree(CHECKPOINTS / FAMILIES[family], folder))


def edit_json(path: Path, **changes) -> None:
    """Change keys of a JSON file; None removes one, a dict changes keys of the dict that is there."""
    content = json.loads(path.read_text())
    for key, value in changes.items():
        if value is None:
            content.pop(key, None)
        else:
            content[key] = content[key] | value if isinstance(value, dict) and key in content else value
    path.write_text(json.dumps(content))


def edit_weights(folder: Path, change) -> None:
    """Replace the weights of a folder by `change(weights)`, a dict of tensors by name."""
    from safetensors.torch import load_file, save_file

    weights = change(load_file(folder / "model.safetensors"))
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, folder / "model.safetensors", metadata={"format": "pt"})


def as_shards(folder: Path, pickled: bool = False) -> list[Path]:
    """Split the weights of a folder into two shards, one of them in a folder of its own; return their paths."""
    import torch
    from safetensors.torch import load_file, save_file

    weights, mapping, paths = load_file(folder / "model.safetensors"), {}, []
    (folder / "model.safetensors").unlink()
    (folder / "more").mkdir()
    stem, end = ("pytorch_model", "bin") if pickled else ("model", "safetensors")
    for part in (0, 1):
        name = f"{'more/' * part}{stem}-0000{part + 1}-of-00002.{end}"
        shard = {key: weights[key] for key in list(weights)[part::2]}
        torch.save(shard, folder / name) if pickled else save_file(shard, folder / name, metadata={"format": "pt"})
        mapping |= dict.fromkeys(shard, name)
        paths.append(folder / name)
    (folder / f"{stem}.{end}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": mapping}))
    return paths


def as_pickle(folder: Path, scale: float = 1.0, **more) -> Path:
    """Write the weights of a folder as pytorch_model.bin, times `scale` and with `more` in it; return its path."""
    import torch
    from safetensors.torch import load_file

    weights = {name: tensor * scale for name, tensor in load_file(folder / "model.safetensors").items()}
    (folder / "model.safetensors").unlink()
    torch.save(weights | more, folder / "pytorch_model.bin")
    return folder / "pytorch_model.bin"
