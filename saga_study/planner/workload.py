"""How much work a step of a run is: images, pairs, tokens of prompts and answers."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from saga_lib.common.model_files import in_one_line
from saga_lib.config import RunConfig
from saga_lib.prompts import comparison_answer, comparison_prompt, varied_items
from saga_lib.vocabulary import load_vocabulary
from saga_study.planner.cards import ASSUMED, Assumptions
from saga_study.planner.readings import ReadingLengths, reading_lengths
from saga_study.planner.shapes import Architecture


@dataclass(frozen=True)
class Workload:
    """How much of everything a step holds; counts."""

    train_images: int
    test_images: int
    num_classes: int  # to train on
    steps: int
    batch: int  # images of a micro-batch
    micro_batches: int
    waves: int
    pairs_drawn: int
    pairs_replayed: int
    rows_per_pair: int  # G; 1 for the oracle, 0 without a language signal
    prompt: int  # P
    answer: int  # T, mean
    longest: int  # T of the longest answer, to which a wave decodes and a replay is padded
    reading: int = 0  # positions of an image's reading: prompt, image, forced answer; 0: nothing is read
    reading_prompt: int = 0  # of them the prompt's, its image included
    reading_logits: int = 0  # numbers that are read there
    described: int = 0  # tokens of an image's own description; 0: the model is read along a forced answer
    read_at_start: int = 0  # images that the anchor reads before the first step
    read_at_end: int = 0  # images that are read in the evaluation

    @property
    def images(self) -> int:
        """Images of a step."""
        return self.batch * self.micro_batches


def image_counts(config: RunConfig) -> tuple[int, int, int]:
    """Return (train images, evaluated images, train classes) of a run; nothing needs to be downloaded for known datasets."""
    from saga_study.datasets.real import OFFICIAL
    from saga_study.miniature.world import benchmark_spec, images_of_split, is_miniature

    validates, limit = config.evaluate_on == "validation", config.images_per_class
    if is_miniature(config.dataset):
        spec = benchmark_spec(config.dataset)
        train, held_out = (images_of_split(spec, split, limit) for split in ("train", "test"))
        return spec.train_classes * train, (spec.validation_classes if validates else spec.test_classes) * held_out, spec.train_classes
    if config.dataset in OFFICIAL:
        (train, test), classes = OFFICIAL[config.dataset].images, OFFICIAL[config.dataset].classes
        if limit:
            train, test = (min(n, c * limit) for n, c in zip((train, test), classes, strict=True))
        return (train // 2, train - train // 2, classes[0] // 2) if validates else (train, test, classes[0])
    from saga_study.datasets.loading import load_benchmark

    benchmark = load_benchmark(config.dataset, images_per_class=limit)
    benchmark = benchmark.for_tuning() if validates else benchmark
    return len(benchmark.train), len(benchmark.test), len(benchmark.train.class_names)


# By vocabulary: characters and tokens of its comparison prompt, and the tokens of an answer whose every description is the
# vocabulary's example, on one line (indented JSON takes 48 to 70 more; two-word descriptions 541, 359 and 421 in all). Counted
# with the byte-pair vocabulary of Qwen: 151,643 ranks, `qwen.tiktoken` of the PyPI package dashscope 2.0.2 (Apache-2.0; sha256
# b2b1b8dfb5cc…), which Qwen2, Qwen3 and the language model of InternVL3.5 kept. The prompts are exact; how much a
# supervisor really writes is not known before it runs.
MEASURED_LENGTHS = {"birds": (1109, 286, 821), "cars": (1009, 252, 699), "aircraft": (1437, 352, 865)}
CHAT_TOKENS = 14  # of the chat around prompt and images: 12 for Qwen3-VL, 14 for InternVL


@lru_cache
def text_lengths(dataset: str, source: str, assume: Assumptions) -> tuple[int, int]:
    """Return the tokens of a dataset's comparison prompt (images left out) and of a mean answer.

    Counted where the supervisor `source` is a local folder with a tokenizer (the answer only if the vocabulary lists its values),
    otherwise taken from `MEASURED_LENGTHS` if the prompt is the measured one, otherwise estimated from the number of characters.
    """
    name = _vocabulary_name(dataset)
    vocabulary = load_vocabulary(name)
    prompt, tokenizer_file = comparison_prompt(vocabulary), os.path.join(source, "tokenizer.json")
    characters, prompt_tokens, answer_tokens = MEASURED_LENGTHS.get(name, (0, 0, 0))
    if characters != len(prompt):
        prompt_tokens = math.ceil(len(prompt) / assume.characters_per_token)
        answer_tokens = round(2 * len(vocabulary.attributes) * assume.tokens_per_attribute + assume.other_answer_tokens)
    if os.path.isfile(tokenizer_file):
        prompt_tokens = _count_tokens(tokenizer_file, prompt)
        if items := varied_items(vocabulary):
            answer_tokens = _count_tokens(tokenizer_file, comparison_answer(vocabulary, items[0], items[-1])) + 1  # end of turn
    return prompt_tokens + CHAT_TOKENS, answer_tokens


@lru_cache
def description_lengths(dataset: str, source: str, assume: Assumptions) -> ReadingLengths:
    """Return the tokens of a question about one image and of its answer, counted or estimated as in `text_lengths`."""
    name, tokenizer_file = _vocabulary_name(dataset), os.path.join(source, "tokenizer.json")
    encode = _encoder(tokenizer_file) if os.path.isfile(tokenizer_file) else None
    return reading_lengths(name, load_vocabulary(name), encode, assume)


def _vocabulary_name(dataset: str) -> str:
    """Return the vocabulary of a dataset; only datasets of your own are loaded for it."""
    from saga_study.datasets.real import OFFICIAL
    from saga_study.miniature.world import benchmark_spec, is_miniature

    if dataset in OFFICIAL and OFFICIAL[dataset].vocabulary:
        return OFFICIAL[dataset].vocabulary
    if is_miniature(dataset):
        return f"miniature_{benchmark_spec(dataset).domain}"
    from saga_study.datasets.loading import load_benchmark

    return load_benchmark(dataset).vocabulary


def _count_tokens(tokenizer_file: str, text: str) -> int:
    return len(_encoder(tokenizer_file)(text))


def _encoder(tokenizer_file: str) -> Callable[[str], list[int]]:
    from tokenizers import Tokenizer

    with in_one_line(f"{tokenizer_file} cannot be read"):
        tokenizer = Tokenizer.from_file(tokenizer_file)
    return lambda text: tokenizer.encode(text, add_special_tokens=False).ids


def workload(config: RunConfig, shapes: Architecture, assume: Assumptions = ASSUMED) -> Workload:
    """Return what a run's steps are expected to hold."""
    train, test, classes = image_counts(config)
    batch = min(config.batch_size, config.batch_images_per_class * classes)
    text, answer = text_lengths(config.dataset, shapes.name, assume)
    answer = min(answer, config.max_new_tokens)
    waves, drawn, rows = 0, 0, 0
    replayed = config.contributing_pairs if config.language_signal != "none" else 0
    if config.language_signal == "grpo":
        expected = assume.contributing_fraction * config.pairs_per_wave
        waves = min(config.max_waves, math.ceil(config.contributing_pairs / expected))
        drawn, rows = waves * config.pairs_per_wave, config.group_size
        replayed = min(replayed, round(waves * expected))
    elif config.language_signal == "oracle":
        rows = 1
    micro_batches = max(1, min(waves, config.max_micro_batches))
    steps = config.steps or math.ceil(config.epochs * max(1, train // batch) / micro_batches)  # epochs count images
    return Workload(
        train, test, classes, steps, batch, micro_batches, waves, drawn, replayed, rows,
        2 * shapes.tokens(config.image_size) + text, answer, min(config.max_new_tokens, round(answer * assume.longest_answer)),
        **_readings(config, shapes, (train, test), assume),
    )  # fmt: skip


def _readings(config: RunConfig, shapes: Architecture, images: tuple[int, int], assume: Assumptions) -> dict[str, int]:
    """Return what a run reads off the frozen model; nothing where a trained head takes its place."""
    in_steps = config.reading_signal != "none" and config.reading_control != "head"
    at_start = config.anchor == "reading"
    if not (in_steps or at_start or config.measure_reading):
        return {}
    lengths = description_lengths(config.dataset, shapes.name, assume)
    prompt = lengths.prompt + CHAT_TOKENS - 2 + shapes.tokens(config.image_size)
    own = min(lengths.answer, config.max_new_tokens) if in_steps and config.reading_answer == "own" else 0
    return {
        "reading": prompt + lengths.answer + lengths.beside, "reading_prompt": prompt, "reading_logits": lengths.logits(shapes.vocabulary),
        "described": own, "read_at_start": images[0] * at_start, "read_at_end": images[1] * config.measure_reading,
    }  # fmt: skip
