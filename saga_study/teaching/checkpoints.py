"""Untrained miniature models of the real architectures, their tokenizer and chat template, and how they are saved."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from saga_lib.common.errors import cannot_write, unknown_name
from saga_lib.common.files import write_json, write_text
from saga_lib.families import MULTIMODAL, family_module
from saga_lib.families.sizes import NOTHING, Sizes
from saga_lib.prompts import CONFIDENCE, REASONING, comparison_prompt, generic_prompt
from saga_lib.reading import description_prompt
from saga_lib.supervisor.base import Supervisor
from saga_lib.vocabulary import Vocabulary
from saga_study.miniature.scene import IMAGE_SIZE
from saga_study.miniature.world import DOMAINS

IMAGE_TOKENS = {  # of a family: start, end and placeholder of an image, and the placeholder of a video
    "qwen3_vl": ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"),
    "internvl": ("<img>", "</img>", "<IMG_CONTEXT>", "<video>"),
}
IMAGE_TEXTS = {"qwen3_vl": "<|vision_start|><|image_pad|><|vision_end|>", "internvl": "<IMG_CONTEXT>\n"}  # in a chat
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}IMAGE{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True)
class Recipe:
    """Everything that determines a pre-trained miniature supervisor."""

    domains: tuple[str, ...] = ("birds",)
    family: str = "qwen3_vl"  # one of saga_lib.families.MULTIMODAL
    seed: int = 7
    vision_steps: int = 1500
    text_steps: int = 700  # of 64 comparisons
    steps: int = 2500  # of the language stage
    families: int = 6000  # each: a combination and a sibling, two images of either
    families_per_batch: int = 16
    nuisance: tuple[float, float] = (0.0, 0.5)  # milder on average than the benchmarks'; grows from family to family
    vision_learning_rate: float = 2e-3
    learning_rate: float = 2.5e-3
    tower_learning_rate: float = 5e-4  # of the tower in the language stage
    weight_decay: float = 0.0
    warmup: int = 100
    comparing_from: float = 0.35  # fraction of the language steps after which image pairs are compared
    contrastive_weight: float = 0.3
    contrastive_temperature: float = 0.1
    snapshot_every: int = 1000
    width: int = 96
    initializer_range: float = 0.1  # the stock 0.02 is for widths in the thousands; here it costs several times the steps
    position_scale: float = 8.0  # position embeddings start this much larger: 36 patches must tell head from tail early on
    residual_scale: float = 0.3  # output layers of the vision blocks start this much smaller (InternVL: by their layer scales)
    vision_depth: int = 4
    text_depth: int = 3
    patch_size: int = 0  # pixels; 0: 8 for Qwen3-VL, 4 for InternVL, whose shuffle lays four patches together


RECIPES = {  # of the shipped pre-trained checkpoints, by folder
    **{name: Recipe(domains=(name,)) for name in ("birds", "cars", "aircraft")},
    # Nine tokens an image: with patches of 4 pixels its tower would take three times as long as the Qwen3-VL's, for 36.
    "birds_internvl": Recipe(domains=("birds",), family="internvl", patch_size=8),
}


def build_checkpoint(recipe: Recipe, folder: Path) -> None:
    """Write an untrained miniature MLLM as an ordinary Hugging Face directory (config, weights, processor)."""
    if recipe.family not in MULTIMODAL:
        raise unknown_name("supervisor family", recipe.family, MULTIMODAL)
    torch.manual_seed(recipe.seed)
    tokenizer = _build_tokenizer([DOMAINS[name].vocabulary for name in recipe.domains], recipe.family)
    template = CHAT_TEMPLATE.replace("IMAGE", IMAGE_TEXTS[recipe.family])
    build = {"qwen3_vl": _build_qwen3_vl, "internvl": _build_internvl}[recipe.family]
    model, processor = build(recipe, tokenizer, template)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    _save(folder, model, processor)


def _build_qwen3_vl(recipe: Recipe, tokenizer, chat_template: str) -> tuple:
    """Return an untrained Qwen3-VL and its processor: a token for each patch."""
    from transformers import Qwen2VLImageProcessorPil, Qwen3VLForConditionalGeneration, Qwen3VLProcessor, Qwen3VLVideoProcessor

    start, end, image, video = tokenizer.convert_tokens_to_ids(list(IMAGE_TOKENS["qwen3_vl"]))
    patch = recipe.patch_size or 8
    sizes = _sizes(recipe, tokenizer, patch=patch, merge=1, positions=(IMAGE_SIZE // patch) ** 2, deepstack=2)
    config = _config(recipe, sizes, image_token_id=image, video_token_id=video, vision_start_token_id=start, vision_end_token_id=end)
    model = Qwen3VLForConditionalGeneration(config)
    with torch.no_grad():
        model.model.visual.pos_embed.weight.mul_(recipe.position_scale)
        for block in model.model.visual.blocks:
            block.attn.proj.weight.mul_(recipe.residual_scale)
            block.mlp.linear_fc2.weight.mul_(recipe.residual_scale)
    size = {"shortest_edge": IMAGE_SIZE**2, "longest_edge": IMAGE_SIZE**2}
    images = Qwen2VLImageProcessorPil(
        patch_size=patch, temporal_patch_size=1, merge_size=1, size=size, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    videos = Qwen3VLVideoProcessor()
    return model, Qwen3VLProcessor(image_processor=images, tokenizer=tokenizer, video_processor=videos, chat_template=chat_template)


def _build_internvl(recipe: Recipe, tokenizer, chat_template: str) -> tuple:
    """Return an untrained InternVL and its processor: four patches to a token, as InternVL3.5-8B shuffles them."""
    from transformers import GotOcr2ImageProcessorPil, InternVLForConditionalGeneration, InternVLProcessor, InternVLVideoProcessor

    patch = recipe.patch_size or 4
    tokens = (IMAGE_SIZE // (2 * patch)) ** 2
    sizes = _sizes(recipe, tokenizer, patch=patch, merge=2, positions=(IMAGE_SIZE // patch) ** 2 + 1)
    config = _config(
        recipe, sizes, {"layer_scale_init_value": recipe.residual_scale}, image_token_id=tokenizer.context_image_token_id,
        image_seq_length=tokens,
    )  # fmt: skip
    model = InternVLForConditionalGeneration(config)
    with torch.no_grad():  # the stock ones start at 0, for weights that are loaded
        positions = model.model.vision_tower.embeddings.position_embeddings
        positions.normal_(std=recipe.initializer_range * recipe.position_scale)
    images = GotOcr2ImageProcessorPil(
        size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}, crop_to_patches=False, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    return model, InternVLProcessor(
        image_processor=images, tokenizer=tokenizer, video_processor=InternVLVideoProcessor(), image_seq_length=tokens,
        chat_template=chat_template,
    )  # fmt: skip


def _sizes(recipe: Recipe, tokenizer, **vision: int) -> Sizes:
    """Return a recipe's sizes; `vision` adds those that only its family's tower has."""
    return Sizes(
        hidden=recipe.width, layers=recipe.text_depth, heads=4, kv_heads=2, head_dim=24, intermediate=2 * recipe.width,
        vocabulary=len(tokenizer), tied_head=True, vision_hidden=recipe.width, vision_layers=recipe.vision_depth, vision_heads=4,
        vision_intermediate=2 * recipe.width, **vision,
    )  # fmt: skip


def _config(recipe: Recipe, sizes: Sizes, vision: Mapping = NOTHING, **special: int):
    """Return the family's configuration of these sizes for transformers; `vision` and `special` as in `config_of`."""
    initial = {"initializer_range": recipe.initializer_range}
    return family_module(recipe.family, multimodal=True).config_of(
        sizes, initial | {"max_position_embeddings": 4096}, initial | vision, rope_theta=10_000.0, **special
    )


def _build_tokenizer(vocabularies: Sequence[Vocabulary], family: str):
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>", *IMAGE_TOKENS[family]])
    core.add_tokens([AddedToken(piece, normalized=False) for piece in text_pieces(vocabularies)])
    named = {}
    if family == "internvl":  # whose processor asks the tokenizer for these
        names = ("start_image_token", "end_image_token", "context_image_token", "video_token")
        named["extra_special_tokens"] = dict(zip(names, IMAGE_TOKENS[family], strict=True))
    return PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<|im_end|>", pad_token="<|endoftext|>", padding_side="left", **named
    )


def text_pieces(vocabularies: Sequence[Vocabulary]) -> list[str]:
    """Return the strings that are one token each: prompt lines, JSON glue with its key, and attribute values.

    Any other text still encodes, byte by byte. The pieces keep an eight-attribute comparison at 56 tokens.
    """
    pieces: dict[str, None] = {"user\n": None, "assistant\n": None, "\n": None}
    for v in vocabularies:
        for prompt in (description_prompt(v), comparison_prompt(v), generic_prompt(v)):
            pieces.update(dict.fromkeys(prompt.splitlines()))
        first, *others = v.attribute_names
        glue = ['{"item_1": {"', '"}, "item_2": {"', '"}, "differences": {"']
        pieces.update(dict.fromkeys(f'{opening}{first}": "' for opening in glue))
        pieces.update(dict.fromkeys(f'", "{name}": "' for name in others))
        tail = ['"}, "confidence": "', '", "reasoning": "', f'", "{v.verdict_key}": "', '"}', '"}}']
        pieces.update(dict.fromkeys(tail))
        pieces.update(dict.fromkeys(['{"differences": "', ", ", "none", *v.attribute_names]))  # of generic answers
        pieces.update(dict.fromkeys(value for a in v.attributes for value in a.values))
    pieces.update(dict.fromkeys(["same", "different", *CONFIDENCE, *REASONING, "yes", "no"]))
    return list(pieces)


RECORDS = ("recipe.json", "training_log.json", "README.md")  # in a checkpoint folder, how it was made


def copy_checkpoint(source: Path, folder: Path) -> Path:
    """Copy a checkpoint without the records of how it was made; return the new folder."""
    return shutil.copytree(source, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(*RECORDS))


def save_checkpoint(folder: Path, tower: nn.Module, supervisor: Supervisor) -> None:
    """Write tower and language model, in half precision, into the Hugging Face directory that `build_checkpoint` made."""
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    for name, module in tower.stock_modules(model).items():
        module.load_state_dict(getattr(tower, name).state_dict())
    model.model.language_model.load_state_dict(supervisor.language_model.state_dict())
    model.tie_weights()
    _save(folder, model.half())  # loaded in float32 wherever it is used


def _save(folder: Path, *parts) -> None:
    """Write what has a `save_pretrained` into a folder, each file whole or not at all. Raises `SagaError` if it cannot be written."""
    from safetensors import SafetensorError

    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".saving-", dir=folder) as scratch:
            for part in parts:
                part.save_pretrained(scratch)
            for made in sorted(Path(scratch).iterdir()):
                os.replace(made, folder / made.name)
    except (OSError, SafetensorError) as error:
        raise cannot_write(folder, error) from error


def save_records(folder: Path, recipe: Mapping, log: Sequence[Mapping], card: str) -> None:
    """Write how a checkpoint was made beside it: recipe, log and model card, which gets the licence here."""
    write_json(folder / "recipe.json", recipe)
    write_json(folder / "training_log.json", log)
    write_text(folder / "README.md", f"{card}- **Licence** Apache-2.0, like the study.\n")
