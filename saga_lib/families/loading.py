"""Loads a multimodal model of any known family, split into its vision tower and its frozen supervisor."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from saga_lib.common.errors import SagaError, first_line
from saga_lib.families import family_module
from saga_lib.supervisor import attention
from saga_lib.supervisor.base import Supervisor


def load_supervisor(
    source: str | Path, image_size: int, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32,
    revision: str | None = None,
) -> tuple[nn.Module, Supervisor]:  # fmt: skip
    """Load an MLLM from a local directory or a hub id and return its tower (float32) and frozen supervisor.

    One loading path for both scales. Raises `SagaError` when the weights are absent or the family is unknown.
    """
    from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageTextToText, AutoProcessor, PreTrainedConfig

    local = Path(source).is_dir()
    try:
        kind = PreTrainedConfig.get_config_dict(source, revision=revision)[0].get("model_type")  # also of what needs remote code
        if kind is not None:
            family_module(kind, multimodal=True)
        config = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False)
        family = family_module(config.model_type, multimodal=True).SUPERVISOR
        family.check(config, image_size)
        model = AutoModelForImageTextToText.from_pretrained(
            source, revision=revision, trust_remote_code=False, dtype=dtype,
            attn_implementation={"text_config": attention.register(), "vision_config": family.tower_class.vision_attention()},
        )  # fmt: skip
        processor = AutoProcessor.from_pretrained(source, revision=revision, trust_remote_code=False)
        processor.image_processor = AutoImageProcessor.from_pretrained(source, revision=revision, trust_remote_code=False, backend="pil")
    except SagaError:
        raise
    except Exception as error:  # transformers raises many kinds; the user needs one line
        what = "is damaged or incomplete" if local else "is neither a local folder nor an available hub id"
        raise SagaError(f"supervisor {source} {what}: {first_line(error)}") from error
    return family.from_model(model.to(device), processor, image_size)
