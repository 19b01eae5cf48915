"""The families of models, each in one module: its vision tower and, for multimodal ones, its frozen supervisor.

To add a multimodal family, write its module with a subclass of `towers.Tower`, one of `supervisor.Supervisor` and the functions
`sizes_of` and `config_of` (see `sizes`), and name it in `MULTIMODAL`. Modules are imported when they are asked for.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from saga_lib.common.errors import unknown_name

MULTIMODAL = ("qwen3_vl", "internvl")  # as transformers names them (`model_type`)
MODULES = {**{name: name for name in MULTIMODAL}, "timm": "timm_towers"}


def family_module(name: str, multimodal: bool = False) -> ModuleType:
    """Return the module of a family, which names its classes `TOWER` and, if `multimodal`, `SUPERVISOR`; `SagaError` if unknown."""
    if name not in (known := MULTIMODAL if multimodal else MODULES):
        raise unknown_name("supervisor family" if multimodal else "tower family", name, known)
    return import_module(f"{__name__}.{MODULES[name]}")
