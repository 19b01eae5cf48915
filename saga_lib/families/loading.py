"""Loads a multimodal model of any known family, split into its vision tower and its frozen supervisor."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from saga_lib.common.chats import check_chat, check_pixels
from saga_lib.common.model_files import check_config, check_contents, check_folder, in_one_line, is_local
from saga_lib.common.weights import check_fit
from saga_lib.families import family_module
from saga_lib.supervisor import attention
from saga_lib.supervisor.base import Supervisor


def load_supervisor(
    source: str | Path, image_size: int, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32,
    revision: str | None = None,
) -> tuple[nn.Module, Supervisor]:  # fmt: skip
    """Load an MLLM from a local directory or a hub id and return its tower (float32) and frozen supervisor.

    One loading path for both scales. Raises `SagaError` for an unknown family, an image size that does not fit, a folder that lacks
    something, and weights that leave a part of the model at random or are left out.
    """
    import transformers as hf

    local, stock = is_local(source), {"revision": revision, "trust_remote_code": False}
    with in_one_line(f"supervisor {source} is {'damaged or incomplete' if local else 'neither a local folder nor an available hub id'}"):
        if local:
            check_folder(source)
        content = hf.PreTrainedConfig.get_config_dict(source, revision=revision)[0]  # also of what needs remote code
        if content.get("model_type") is not None:
            family_module(content["model_type"], multimodal=True)
        config = hf.AutoConfig.from_pretrained(source, **stock)
        family = family_module(config.model_type, multimodal=True)
        check_config(source, content, family.sizes_of)
        family.SUPERVISOR.check(config, image_size)
        if local:
            check_contents(source)
        processor = hf.AutoProcessor.from_pretrained(source, **stock)
        processor.image_processor = hf.AutoImageProcessor.from_pretrained(source, backend="pil", **stock)
        ends = check_chat(source, processor, config, revision)
        model, seen = hf.AutoModelForImageTextToText.from_pretrained(
            source, **stock, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True,
            attn_implementation={"text_config": attention.register(), "vision_config": family.TOWER.vision_attention()},
        )  # fmt: skip
        check_fit(f"supervisor {source}", model, seen["missing_keys"], seen["unexpected_keys"], seen["mismatched_keys"])
    tower, supervisor = family.SUPERVISOR.from_model(model.to(device), processor, image_size)
    supervisor.eos_token_id, *supervisor.further_ends = ends
    check_pixels(source, tower.preprocess, image_size)
    return tower, supervisor
