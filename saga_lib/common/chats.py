"""What a conversation needs beside weights: a tokenizer, a chat template that places images, an end of answers, and readable images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from PIL import Image

from saga_lib.common.errors import SagaError
from saga_lib.common.model_files import in_one_line

_QUESTION = "Compare the two images."


def answer_ends(processor, generation) -> tuple[int, ...]:  # noqa: ANN001
    """Return the ids of the tokens that end an answer: the tokenizer's end and those of a `GenerationConfig`, an int or a list.

    The first is the one that closes a turn in the chat template; empty if there are none at all.
    """
    named = generation.eos_token_id
    ids = [processor.tokenizer.eos_token_id, *(named if isinstance(named, list | tuple) else [named])]
    ends = tuple(dict.fromkeys(int(i) for i in ids if i is not None))
    turns = [{"role": role, "content": [{"type": "text", "text": _QUESTION}]} for role in ("user", "assistant")]
    written = processor.tokenizer.encode(processor.apply_chat_template(turns, tokenize=False), add_special_tokens=False)
    closing = next((i for i in reversed(written) if i in ends), None)
    return ends if closing is None else (closing, *(i for i in ends if i != closing))


def check_chat(source: str | Path, processor, config, revision: str | None = None) -> tuple[int, ...]:  # noqa: ANN001
    """Return `answer_ends` of a model in a folder or on the hub, or raise `SagaError` if it cannot be asked about two images.

    `config` is the model's, whose `image_token_id` the template must place once for each image. Reads no weights.
    """
    from transformers import GenerationConfig

    what, tokenizer = f"supervisor {source}", getattr(processor, "tokenizer", None)
    with in_one_line(f"{what}: its generation_config.json cannot be read"):
        try:
            generation = GenerationConfig.from_pretrained(source, revision=revision)
        except OSError:  # there is none
            generation = GenerationConfig.from_model_config(config)
    if tokenizer is None or tokenizer.convert_ids_to_tokens(config.image_token_id) is None:
        raise SagaError(f"{what}: no tokenizer (tokenizer.json) that knows token {config.image_token_id}, which stands for an image")
    if config.model_type == "internvl" and not hasattr(processor, "start_image_token"):
        raise SagaError(f"{what}: {type(processor).__name__} (processor_class) reads another model's images; take the files of this model")
    if len(tokenizer) > config.text_config.vocab_size:
        of = f"its tokenizer has {len(tokenizer)} tokens, config.json {config.text_config.vocab_size}"
        raise SagaError(f"{what}: {of} (vocab_size); take the tokenizer of this model")
    named, most = generation.eos_token_id, config.text_config.vocab_size
    for end in named if isinstance(named, list) else [named]:
        if end is not None and not (type(end) is int and 0 <= end < most):
            token = "eos_token_id of generation_config.json or config.json"
            raise SagaError(f"{what}: {token} holds {end!r}, which is no token; name those that end an answer, from 0 to {most - 1}")
    if not processor.chat_template:
        raise SagaError(f"{what} has no chat template (chat_template.jinja); take that of the instruction-tuned model")
    content = [{"type": "image"}] * 2 + [{"type": "text", "text": _QUESTION}]
    with in_one_line(f"{what}: its chat template fails"):
        text = processor.apply_chat_template([{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True)
        ends = answer_ends(processor, generation)
    placed = tokenizer.encode(text, add_special_tokens=False).count(config.image_token_id)
    if placed != 2 or _QUESTION not in text:
        lost = f"places {placed} of 2 images" if placed != 2 else "leaves out the question"
        raise SagaError(f"{what}: its chat template (chat_template.jinja) {lost}; take that of a model that reads images")
    if tokenizer.eos_token_id is None:  # a tokenizer of chats has one: this is another, or damaged
        named = f', here "eos_token": "{tokenizer.convert_ids_to_tokens(ends[0])}"' if ends else ""
        raise SagaError(f"{what} names no token that ends an answer: add eos_token to its tokenizer_config.json{named}")
    return ends


def check_pixels(source: str | Path, preprocess: Callable, image_size: int) -> None:
    """Raise `SagaError` if a model's image processor is another model's, or makes no finite pixels."""
    with in_one_line(f"supervisor {source}: its image processor (preprocessor_config.json or processor_config.json) fails"):
        if not preprocess([Image.new("RGB", (image_size, image_size))]).isfinite().all():
            raise ValueError("it makes pixels that are no numbers; take that of the model")
