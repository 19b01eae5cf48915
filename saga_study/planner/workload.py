"""How much work a step of a run is: images, pairs, tokens of prompts and answers."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from functools import lru_cache

from saga_lib.common.model_files import in_one_line
from saga_lib.config import RunConfig
from saga_lib.prompts import comparison_answer, comparison_prompt, varied_items
from saga_lib.vocabulary import load_vocabulary
from saga_study.planner.shapes import Architecture


@dataclass(frozen=True)
class Assumptions:
    """What the shapes of a model do not determine; none of it has been measured at full scale by this study yet."""

    characters_per_token: float = 3.9  # of a prompt that was not measured (3.9 to 4.1 for those of `MEASURED_LENGTHS`)
    tokens_per_attribute: float = 14.0  # of one image in an answer of free text: key, quotes, a few words
    other_answer_tokens: float = 120.0  # differences, confidence, reasoning, verdict
    longest_answer: float = 1.2  # the longest answer of a wave over the mean one
    contributing_fraction: float = 0.35  # of pairs whose G verdicts differ; sets how many waves fill the buffer
    peak_tflops: float = 790.0  # bf16 matrix products in practice on one H200; its data sheet says 989
    utilisation: float = 0.4  # of that peak, in prefill, replay and tower
    bandwidth_tb: float = 4.8  # TB/s of memory, H200 data sheet
    bandwidth_share: float = 0.6  # of it reached in decoding
    kernels_per_layer: int = 48  # of a decoding step, its seven products and the attention left out; counted
    kernel_us: float = 2.0  # µs of such a kernel, a small one, that a CUDA graph replays, a guess; some 10 where each is launched by itself
    images_per_second: float = 250.0  # read, decoded and resized by the CPU
    fragmentation: float = 0.05  # of allocated GPU memory that cannot be used
    context_gib: float = 0.7  # CUDA context and libraries
    startup_minutes: float = 3.0  # of a run: imports, weights


ASSUMED = Assumptions()


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


def image_counts(config: RunConfig) -> tuple[int, int, int]:
    """Return (train images, evaluated images, train classes) of a run; nothing needs to be downloaded for known datasets."""
    from saga_lib.datasets.real import OFFICIAL
    from saga_lib.miniature.world import benchmark_spec, is_miniature

    validates, limit = config.evaluate_on == "validation", config.images_per_class
    if is_miniature(config.dataset):
        spec = benchmark_spec(config.dataset)
        images = limit or spec.images_per_class
        return spec.train_classes * images, (spec.validation_classes if validates else spec.test_classes) * images, spec.train_classes
    if config.dataset in OFFICIAL:
        (train, test), classes = OFFICIAL[config.dataset].images, OFFICIAL[config.dataset].classes
        if limit:
            train, test = (min(n, c * limit) for n, c in zip((train, test), classes, strict=True))
        return (train // 2, train - train // 2, classes[0] // 2) if validates else (train, test, classes[0])
    from saga_lib.datasets.loading import load_benchmark

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


def _vocabulary_name(dataset: str) -> str:
    """Return the vocabulary of a dataset; only datasets of your own are loaded for it."""
    from saga_lib.datasets.real import OFFICIAL
    from saga_lib.miniature.world import benchmark_spec, is_miniature

    if dataset in OFFICIAL and OFFICIAL[dataset].vocabulary:
        return OFFICIAL[dataset].vocabulary
    if is_miniature(dataset):
        return f"miniature_{benchmark_spec(dataset).domain}"
    from saga_lib.datasets.loading import load_benchmark

    return load_benchmark(dataset).vocabulary


def _count_tokens(tokenizer_file: str, text: str) -> int:
    from tokenizers import Tokenizer

    with in_one_line(f"{tokenizer_file} cannot be read"):
        return len(Tokenizer.from_file(tokenizer_file).encode(text, add_special_tokens=False).ids)


def workload(config: RunConfig, shapes: Architecture, assume: Assumptions = ASSUMED) -> Workload:
    """Return what a run's steps are expected to hold."""
    train, test, classes = image_counts(config)
    batch = min(config.batch_size, config.batch_images_per_class * classes)
    steps = config.steps or config.epochs * max(1, train // batch)
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
    return Workload(
        train, test, classes, steps, batch, max(1, min(waves, config.max_micro_batches)), waves, drawn, replayed, rows,
        2 * shapes.tokens(config.image_size) + text, answer, min(config.max_new_tokens, round(answer * assume.longest_answer)),
    )  # fmt: skip
