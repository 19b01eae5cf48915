"""What several test modules share: a tiny untrained supervisor, its images and its vocabulary."""

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from saga_lib.prompts import comparison_answer
from saga_lib.supervisor.rollouts import Rollouts
from saga_lib.vocabulary import load_vocabulary
from saga_study.teaching.checkpoints import Recipe, build_checkpoint

IMAGE_SIZE = 48
VOCABULARY = load_vocabulary("miniature_birds")


def build_tiny_checkpoint(folder: Path, family: str = "qwen3_vl") -> Path:
    """Write an untrained supervisor whose matrices are so large that neither attention nor logits are near-uniform."""
    from safetensors.torch import load_file, save_file

    build_checkpoint(Recipe(family=family, width=48, vision_depth=3, text_depth=3), folder)
    weights = load_file(folder / "model.safetensors")
    generator = torch.Generator().manual_seed(11)
    for name, tensor in weights.items():
        if name.endswith("cls_token"):  # starts at 0
            tensor.normal_(std=0.15, generator=generator)
        elif tensor.ndim >= 2:  # small tied embeddings, else every token predicts itself
            tensor.mul_((0.03 if "embed_tokens" in name else 0.15) / tensor.std())
        elif name.endswith(("language_model.norm.weight", "language_model.model.norm.weight")):
            tensor.fill_(8.0)
        else:  # biases and norms differ from 0 and 1, as in a trained model
            tensor.add_(0.2 * torch.randn(tensor.shape, generator=generator))
        weights[name] = tensor.contiguous()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def as_published(checkpoint: Path, folder: Path) -> Path:
    """Write a tiny checkpoint once more as the hub has it: the files, shards and settings that transformers 4 wrote, untied.

    Qwen/Qwen3-VL-8B-Instruct or OpenGVLab/InternVL3_5-8B-HF; a checkpoint with tied embeddings gets a random head.
    """
    from safetensors.torch import load_file, save_file

    config = json.loads((checkpoint / "config.json").read_text())
    is_qwen = config["model_type"] == "qwen3_vl"
    prefix = "" if is_qwen else "language_model."
    weights = load_file(checkpoint / "model.safetensors")
    if "lm_head.weight" in weights:
        weights[f"{prefix}lm_head.weight"] = weights.pop("lm_head.weight")
    elif f"{prefix}lm_head.weight" not in weights:
        [embeddings] = [tensor for name, tensor in weights.items() if name.endswith("embed_tokens.weight")]
        weights[f"{prefix}lm_head.weight"] = 0.1 * torch.randn(embeddings.shape, generator=torch.Generator().manual_seed(5))
    folder.mkdir(parents=True)
    names, mapping = sorted(weights), {}
    for part in (0, 1):
        file = f"model-0000{part + 1}-of-00002.safetensors"
        save_file({name: weights[name] for name in names[part::2]}, folder / file, metadata={"format": "pt"})
        mapping |= dict.fromkeys(names[part::2], file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": mapping}))

    for section in (config, config["text_config"], config["vision_config"]):
        for key in ("tie_word_embeddings", "dtype", "transformers_version"):
            section.pop(key, None)
    rope = dict(config["text_config"].pop("rope_parameters"))
    config["text_config"]["rope_theta"] = rope.pop("rope_theta")
    config["text_config"]["rope_scaling"] = rope if is_qwen else None
    if is_qwen:
        config["tie_word_embeddings"], config["text_config"]["dtype"] = False, "bfloat16"
    else:
        config["torch_dtype"], config["text_config"]["model_type"] = "bfloat16", "qwen3"
    (folder / "config.json").write_text(json.dumps(config))

    for name in ("tokenizer.json", "generation_config.json"):
        (folder / name).write_bytes((checkpoint / name).read_bytes())
    template = (checkpoint / "chat_template.jinja").read_text()
    processor = "Qwen3VLProcessor" if is_qwen else "InternVLProcessor"
    tokenizer = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "model_max_length": 40960, "tokenizer_class": "Qwen2Tokenizer"}
    images = {
        "do_convert_rgb": True, "do_normalize": True, "do_rescale": True, "do_resize": True, "resample": 3, "rescale_factor": 1 / 255,
        "processor_class": processor, "image_processor_type": "Qwen2VLImageProcessorFast" if is_qwen else "GotOcr2ImageProcessorFast",
    }  # fmt: skip
    if is_qwen:
        (folder / "chat_template.json").write_text(json.dumps({"chat_template": template}))
        vision = config["vision_config"]
        images |= {
            "size": {"longest_edge": 16777216, "shortest_edge": 65536}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
            "patch_size": vision["patch_size"], "temporal_patch_size": vision["temporal_patch_size"],
            "merge_size": vision["spatial_merge_size"],
        }  # fmt: skip
        tokenizer["additional_special_tokens"] = ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"]
    else:
        (folder / "chat_template.jinja").write_text(template)
        names = ("start_image_token", "end_image_token", "context_image_token", "video_token")
        named = dict(zip(names, ("<img>", "</img>", "<IMG_CONTEXT>", "<video>"), strict=True))
        tokenizer |= named | {
            "extra_special_tokens": named, "additional_special_tokens": list(named.values()), "processor_class": processor,
        }  # fmt: skip
        (folder / "processor_config.json").write_text(json.dumps({"image_seq_length": 36, "processor_class": processor}))
        images |= {
            "crop_to_patches": False, "max_patches": 12, "min_patches": 1, "image_mean": [0.485, 0.456, 0.406],
            "image_std": [0.229, 0.224, 0.225], "size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    (folder / "preprocessor_config.json").write_text(json.dumps(images))
    videos = images | {"video_processor_type": "Qwen3VLVideoProcessor" if is_qwen else "InternVLVideoProcessor"}
    (folder / "video_preprocessor_config.json").write_text(json.dumps(videos))
    return folder


# An answer in pieces, a token each, all different, so that each piece is told by the one before it. Yes and no are drawn.
ANSWER = (
    ('{"bird_1": {"shape": "',), ("rounded", "elongated"), ('"}, "bird_2": {"shape": "',), ("slender", "stocky"),
    ('"}, "car_1": {"shape": "',), ("boxy", "sleek"), ('"}, "car_2": {"shape": "',), ("low", "tall"),
    ('"}, "aircraft_1": {"shape": "',), ("blunt", "pointed"), ('"}, "aircraft_2": {"shape": "',), ("swept", "straight"),
    ('"}, "differences": "shape", "confidence": "low", "reasoning": "a guess", "same_species": "',), ("yes", "no"),
    ('", "same_model": "',), ("Yes", "No"), ('", "same_variant": "',), ("YES", "NO"), ('"}',),
)  # fmt: skip


def build_talking_checkpoint(folder: Path, family: str = "qwen3_vl") -> Path:
    """Write a tiny supervisor that answers any comparison by well-formed JSON with random verdicts, lightly swayed by the images.

    Its embeddings of an answer's pieces are unit vectors that its head turns into the next piece; attention, which
    alone sees the images, adds little.
    """
    from transformers import AutoModelForImageTextToText, AutoProcessor

    build_checkpoint(Recipe(family=family, width=48, vision_depth=3, text_depth=3), folder)
    model, processor = AutoModelForImageTextToText.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    tokenizer = processor.tokenizer
    tokenizer.add_tokens([piece for pieces in ANSWER for piece in pieces])
    model.resize_token_embeddings(len(tokenizer))
    model.config.tie_word_embeddings = model.config.text_config.tie_word_embeddings = False
    language = model.model.language_model
    generator = torch.Generator().manual_seed(3)
    embeddings, head = language.embed_tokens.weight, torch.zeros_like(language.embed_tokens.weight)
    before = tokenizer.encode("<|im_end|>\n<|im_start|>assistant\n", add_special_tokens=False)[-1]  # a prompt's last token
    steps = [[before], *([tokenizer.convert_tokens_to_ids(p) for p in pieces] for pieces in ANSWER), [tokenizer.eos_token_id]]
    with torch.no_grad():
        for parameter in language.layers.parameters():
            if parameter.ndim == 2:
                parameter.mul_(0.3)
        for place, (now, then) in enumerate(zip(steps, steps[1:], strict=False)):
            unit = torch.nn.functional.one_hot(torch.tensor(place), embeddings.shape[1]).to(embeddings.dtype)
            embeddings[now] = unit
            head[then] = 3 * unit + 0.3 * torch.randn(len(then), len(unit), generator=generator)  # which of two: hidden state, image
        model.lm_head.weight = torch.nn.Parameter(head)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def random_images(count: int, seed: int = 0, size: tuple[int, int] = (IMAGE_SIZE, IMAGE_SIZE)) -> list[Image.Image]:
    """Return RGB images of smooth random colours."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (count, 6, 6, 3), dtype=np.uint8)
    return [Image.fromarray(c).resize(size, Image.Resampling.BILINEAR) for c in coarse]


def random_item(seed: int) -> dict[str, str]:
    """Return random attribute values of the miniature vocabulary."""
    rng = np.random.default_rng(seed)
    return {a.name: a.values[rng.integers(len(a.values))] for a in VOCABULARY.attributes}


def random_answer(seed: int, verdict: bool | None = None) -> str:
    """Return an answer in the trained format; `verdict` overrides the one that its lists imply."""
    text = comparison_answer(VOCABULARY, random_item(2 * seed), random_item(2 * seed + 1))
    if verdict is None:
        return text
    head, _, _ = text.rpartition(f'"{VOCABULARY.verdict_key}"')
    return f'{head}"{VOCABULARY.verdict_key}": "{"yes" if verdict else "no"}"}}'


def rollouts_of(supervisor, texts):
    """Return the rollouts that say `texts`."""
    rows = [supervisor.answer_ids(text) for text in texts]
    width = max(map(len, rows))
    tokens = torch.full((len(rows), width), supervisor.eos_token_id)
    mask = torch.arange(width)[None] < torch.tensor([len(row) for row in rows])[:, None]
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = torch.tensor(row)
    return Rollouts(tokens, mask, list(texts), ((tokens == supervisor.eos_token_id) & mask).any(1))
