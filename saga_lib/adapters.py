"""Low-rank adapters (LoRA, arXiv 2106.09685) on the tower alone, through peft, which is imported only when a run has them.

The matrices that get one are the tower's `lora_targets`. All else of the tower is frozen; whether its mergers are is the run's choice.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from saga_lib.common.errors import SagaError
from saga_lib.common.files import write_atomically, write_json

_NAME = "default"  # peft names adapters; a tower has one


def add_adapters(tower: nn.Module, rank: int, alpha: float, seed: int) -> None:
    """Freeze a tower and give its `lora_targets` adapters of a rank, in place; they begin as the identity.

    Their weights are drawn from `seed` alone, so that pooler and proxies start as they do without adapters.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ModuleNotFoundError as error:
        raise SagaError(f"lora_rank {rank} needs peft ({error}): pip install peft, or set lora_rank to 0") from error
    targets = getattr(tower, "lora_targets", "")
    if not targets:
        raise SagaError(f"towers of family {tower.family} have no adapters yet; set lora_rank to 0")
    tower.requires_grad_(False)
    options = LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets, lora_dropout=0.0, bias="none")
    device = next(tower.parameters()).device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        try:
            inject_adapter_in_model(options, tower, _NAME)
        except ValueError as error:  # e.g. a convolutional tower from timm
            raise SagaError(f"no matrix of this {tower.family} tower can have an adapter ({error}); set lora_rank to 0") from None
    tower.lora_options = options


def adapter_parameters(tower: nn.Module) -> Iterator[nn.Parameter]:
    """Yield the parameters of a tower's adapters, if it has any."""
    return (p for name, p in tower.named_parameters() if ".lora_" in name)


def save_adapters(tower: nn.Module, folder: Path) -> None:
    """Write the adapters in peft's format; names are those of the tower's modules, which for Qwen3-VL are the stock model's."""
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    weights = get_peft_model_state_dict(tower, adapter_name=_NAME)
    weights = {f"base_model.model.{name}": w.detach().cpu().contiguous() for name, w in weights.items()}
    write_atomically(folder / "adapter_model.safetensors", lambda path: save_file(weights, path, metadata={"format": "pt"}))
    options = tower.lora_options.to_dict() | {"inference_mode": True}
    write_json(folder / "adapter_config.json", {k: sorted(v) if isinstance(v, set) else v for k, v in options.items()})


def merge_adapters(tower: nn.Module) -> None:
    """Add the adapters to the matrices they belong to and remove them, in place."""
    from peft.tuners.lora import LoraLayer

    for name, module in list(tower.named_modules()):
        if isinstance(module, LoraLayer):
            module.merge()
            parent, _, child = name.rpartition(".")
            setattr(tower.get_submodule(parent), child, module.get_base_layer())
    for attribute in ("peft_config", "lora_options"):
        if hasattr(tower, attribute):
            delattr(tower, attribute)
