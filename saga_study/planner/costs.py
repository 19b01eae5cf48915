"""What a step costs by its shapes: memory by phase, operations, seconds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from saga_lib.config import RunConfig
from saga_lib.prompts import comparison_answer, comparison_prompt, varied_items
from saga_lib.vocabulary import load_vocabulary
from saga_study.planner.shapes import GIB, Architecture, count_parameters, trained_parameters

# ---------------------------------------------------------------------------------------------------- workload


@dataclass(frozen=True)
class Assumptions:
    """What shapes do not tell. None of it is measured at full scale by this study yet."""

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
MEASURED_LENGTHS = {"birds": (1109, 286, 821), "cars": (1011, 252, 699), "aircraft": (1429, 350, 863)}


@lru_cache
def text_lengths(dataset: str, source: str, assume: Assumptions) -> tuple[int, int]:
    """Return the tokens of a dataset's prompt (images left out) and of a mean answer.

    Counted where the supervisor's tokenizer is a local file (and, for answers, the vocabulary lists all values); for the paper's
    vocabularies as `MEASURED_LENGTHS` says, as long as the prompt is the one that was measured; else estimated.
    """
    from saga_lib.datasets.real import OFFICIAL
    from saga_lib.miniature.world import benchmark_spec, is_miniature

    name = OFFICIAL[dataset].vocabulary if dataset in OFFICIAL else None
    name = name or (f"miniature_{benchmark_spec(dataset).domain}" if is_miniature(dataset) else None)
    if name is None:
        from saga_lib.datasets.loading import load_benchmark

        name = load_benchmark(dataset).vocabulary
    vocabulary = load_vocabulary(name)
    prompt, file = comparison_prompt(vocabulary), Path(source) / "tokenizer.json"
    template = 14  # tokens of the chat around prompt and images: 12 for Qwen3-VL, 14 for InternVL
    characters, measured, answer = MEASURED_LENGTHS.get(name, (0, 0, 0))
    if characters != len(prompt):
        measured = math.ceil(len(prompt) / assume.characters_per_token)
        answer = round(2 * len(vocabulary.attributes) * assume.tokens_per_attribute + assume.other_answer_tokens)
    if not file.is_file():
        return measured + template, answer
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(file))
    if items := varied_items(vocabulary):
        text = comparison_answer(vocabulary, items[0], items[-1])
        answer = len(tokenizer.encode(text, add_special_tokens=False).ids) + 1
    return len(tokenizer.encode(prompt, add_special_tokens=False).ids) + template, answer


def workload(config: RunConfig, shapes: Architecture, assume: Assumptions = Assumptions()) -> Workload:  # noqa: B008
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


# ------------------------------------------------------------------------------------------------------ memory


def replay_bytes(
    shapes: Architecture, pairs: int, rows: int, prompt: int, answer: int, size: int = 2, repeats_kv: bool = True, recomputes: bool = False
) -> int:  # fmt: skip
    """Return the bytes that autograd saves in the language model for `pairs` prompts with `rows` answers each.

    A frozen matrix saves none of its inputs. Saved are: the float32 inputs of four norms (two of them q/k-norm); q, k,
    v, output and log-sum-exp of the attention; three tensors of SwiGLU. Behind a shared prompt the attention needs a mask,
    for which the stock wrapper repeats k and v per query head, the prompt's for every row (`repeats_kv`; our CPU path
    does not). `size` is the bytes of an activation: 2 in bf16. With `recomputes` all that is kept of a layer is its input and
    the prompt's k and v; one layer at a time has everything.
    """
    s, query, kv = shapes, shapes.heads * shapes.head_dim, shapes.kv_heads * shapes.head_dim
    norms = 4 * (2 * s.hidden + query + kv) if size < 4 else size * (2 * s.hidden + query + kv)
    shared = norms + size * (2 * query + 3 * s.intermediate) + 4 * s.heads
    seen = size * 2 * (query if repeats_kv else kv)  # k and v as the attention sees them
    own = pairs * rows * answer * (shared + seen)
    prefix = pairs * prompt * (shared + size * 2 * kv)
    one_layer = own + prefix + pairs * rows * prompt * seen
    if recomputes:
        kept = pairs * (rows * answer + prompt) * size * s.hidden + pairs * prompt * size * 2 * kv
        return s.layers * kept + one_layer
    return s.layers * one_layer


def tower_bytes(shapes: Architecture, images: int, image_size: int, size: int = 2, keeps_pixels: bool = True) -> int:
    """Return the bytes that autograd saves in the tower and its mergers for a batch; master weights are float32.

    Per block: two norms' float32 inputs and their outputs; q, k and v, the attention's output and log-sum-exp; two tensors of
    the MLP. Qwen3-VL further keeps q and k rotated beside the joint q, k, v, and the output again with its heads joined;
    InternVL the first norm's output once each for q, k and v, and the inputs of its layer scales. Pixels are kept where their
    embedding is trained.
    """
    s, w, is_internvl = shapes, shapes.vision_hidden, shapes.family == "internvl"
    block = 2 * 4 * w + size * (10 if is_internvl else 9) * w + size * 2 * s.vision_intermediate + 4 * (s.vision_heads + 4)
    wide = w * s.merge**2
    per_token = wide * (4 + size) + size * 2 * s.hidden if is_internvl else (1 + s.deepstack) * wide * (4 + 3 * size)
    patch = size * s.patch_values * keeps_pixels + (0 if is_internvl else 2 * 4 * w // s.vision_heads)  # and its rotary angles
    places = s.patches(image_size) + is_internvl
    return images * (places * s.vision_layers * block + s.tokens(image_size) * per_token + s.patches(image_size) * patch)


def memory(config: RunConfig, shapes: Architecture, work: Workload, assume: Assumptions = Assumptions()) -> dict[str, dict[str, float]]:  # noqa: B008
    """Return the GPU memory of a run in GiB, by phase (loading; A, B, C of Alg. 1) and part.

    C has two phases: the replay, and the tower's backward with the optimizer's step. Gradients of the tower exist in the latter
    alone, for a step sets them free; those of pooler and proxies exist from A on.
    """
    parts = count_parameters(shapes)
    trained = trained_parameters(shapes, config, work.num_classes)
    tower = parts["tower"] + parts["mergers"]
    moved = sum(count for name, count in trained.items() if name in ("tower", "adapters", "mergers"))
    small = trained["pooler"] + trained["proxies"]
    needs_model, trains = config.needs_supervisor(), bool(work.steps)
    adapters = trained.get("adapters", 0)
    static = {
        "language model, bf16": 2 * (parts["language model"] + parts["head"]) if needs_model else 0,
        "tower, float32": 4 * (tower + adapters),
        "its AdamW moments": 8 * moved * trains,
        "pooler and proxies, with AdamW": 16 * small if trains else 4 * small,
    }
    # Every micro-batch keeps its graph, with the bf16 copies of the weights that autocast made, until the tower's backward; or else
    # its pixels, and the tower makes the graph of some images at a time then.
    again, batches = config.tower_images > 0 or not trains, work.micro_batches
    at_once = min(config.tower_images, work.batch) or work.batch
    graph = tower_bytes(shapes, at_once, config.image_size, keeps_pixels=not config.lora_rank) + 2 * tower if trains else 0
    # Of a pass without a graph: float32 tensors in one block, most of them for Qwen's rotation of q and k.
    passing = at_once * shapes.patches(config.image_size) * shapes.vision_hidden * (16 if shapes.family == "internvl" else 30)
    tokens = 2 * work.batch * work.micro_batches * shapes.tokens(config.image_size) * shapes.hidden
    outputs = 1 + shapes.deepstack
    pixels = 4 * work.batch * shapes.patches(config.image_size) * shapes.patch_values
    held = {
        "tower activations": 0 if again else graph * batches,
        "visual tokens": tokens * (outputs + trains),  # and L_DML's gradient
        "pixels and L_DML": pixels * batches * again,
    }
    points = work.batch + trained["proxies"] // (config.embedding_dim or shapes.hidden)
    phases = {  # every method loads the whole model before it drops what it does not need
        "loading": {"language model, bf16": 2 * (parts["language model"] + parts["head"]), "tower, float32": 6 * tower},
        "A": static | held | {
            "pixels and L_DML": pixels * (batches if again else 1) + 6 * 4 * points**2 * (trains and config.dml_loss == "pf"),
        } | ({"tower activations": 2 * tower + passing} if again else {}),
    }
    if config.language_signal == "grpo":
        rows = config.pairs_per_wave * config.group_size
        cache = rows * (work.prompt + config.max_new_tokens) * shapes.kv_values * 2
        prompts = config.pairs_per_wave * work.prompt * shapes.kv_values * 2
        one_layer = cache // shapes.layers  # rows that ended leave it layer by layer
        phases["B"] = static | held | {
            "rollouts' KV cache": cache + max(prompts, one_layer), "logits": 3 * 4 * rows * shapes.vocabulary,
        }  # fmt: skip
    if needs_model:
        pairs = min(config.replay_pairs, max(1, work.pairs_replayed))
        rows = min(config.replay_rows or work.rows_per_pair, work.rows_per_pair)
        prefix_gradient = 2 * pairs * work.prompt * shapes.kv_values * 2 if rows < work.rows_per_pair else 0
        chunk = min(4096, pairs * rows * work.longest)
        seen, answers = work.prompt + work.longest, pairs * rows * work.longest
        masks = 2 * answers * seen * (1 if config.recompute_layers else shapes.layers)  # which the attention makes of its own type
        joined = 0 if config.recompute_layers else 2 * pairs * rows * seen * shapes.kv_values  # keys and values, until the backward
        last_norm = 4 * (pairs * work.prompt + answers) * shapes.hidden
        phases["C replay"] = static | held | {
            "replay activations": prefix_gradient + masks + joined + last_norm + replay_bytes(
                shapes, pairs, rows, work.prompt, work.longest, recomputes=config.recompute_layers
            ),
            "logits": 3 * 4 * chunk * shapes.vocabulary, "visual tokens": tokens * (3 * outputs + 1),  # a copy, its gradient
        }  # fmt: skip
    if trains:
        # A micro-batch's graph goes as its gradients come; AdamW's square roots come when all graphs are gone.
        parts_left = min(1, math.ceil(work.batch / at_once) * batches - 1) if again else batches - 1
        stages = (
            {"tower activations": graph * (1 if again else batches)},
            {"tower activations": graph * parts_left, "its gradients and AdamW's step": 4 * moved},
            {"tower activations": 0, "its gradients and AdamW's step": 2 * 4 * moved},
        )
        held_tokens = outputs * (2 if needs_model else 1) + 1
        most = max(stages, key=lambda sizes: sum(sizes.values()))
        phases["C tower"] = static | held | {"visual tokens": tokens * held_tokens} | most
    for sizes in phases.values():
        sizes["CUDA context, fragmentation"] = assume.context_gib * GIB + assume.fragmentation * sum(sizes.values())
    return {phase: {name: size / GIB for name, size in sizes.items()} for phase, sizes in phases.items()}


def peak(phases: Mapping[str, Mapping[str, float]]) -> float:
    """Return the largest sum of a phase, GiB."""
    return max(sum(sizes.values()) for sizes in phases.values())


# -------------------------------------------------------------------------------------------- operations, hours


def operations(config: RunConfig, shapes: Architecture, work: Workload) -> dict[str, float]:
    """Return the floating-point operations of one step by what they do (a multiply-add counts two).

    A frozen matrix costs its forward once more in the backward, a trained one twice; attention 2.5 times (fused
    kernels recompute); pixels need no gradient. Embeddings of tokens and norms are left out.
    """
    s, w = shapes, shapes.vision_hidden
    patches, tokens = s.patches(config.image_size), s.tokens(config.image_size)
    wide = w * s.merge**2
    mergers = wide * s.hidden + s.hidden**2 if s.family == "internvl" else (1 + s.deepstack) * (wide**2 + wide * s.hidden)
    block = 4 * w * w + 2 * w * s.vision_intermediate
    places = patches + (s.family == "internvl")  # which has a class token
    embedding = 2 * patches * s.patch_values * w
    linear = 2 * (places * s.vision_layers * block + tokens * mergers)
    attention = 4 * s.vision_layers * places**2 * w
    images = work.batch * work.micro_batches
    layers, head = 2 * s.layer_weights, 2 * s.vocabulary * s.hidden
    per_context = 4 * s.layers * s.heads * s.head_dim  # attention of one token to one other
    one_prompt = work.prompt * layers + per_context * work.prompt**2 / 2
    one_answer = work.answer * (layers + head), per_context * work.answer * (work.prompt + work.answer / 2)
    rows = work.pairs_replayed * work.rows_per_pair
    replays = 2 if config.recompute_layers else 1  # forward passes
    replay_linear = work.pairs_replayed * work.prompt * layers + rows * one_answer[0]
    replay_attention = work.pairs_replayed * per_context * work.prompt**2 / 2 + rows * one_answer[1]
    frozen, forward = 1 if config.lora_rank else 2, embedding + linear + attention
    backward = (frozen - 1) * embedding + frozen * linear + 2.5 * attention + (forward if config.tower_images else 0)
    return {
        "tower forward": images * forward,
        "tower backward": images * backward if work.steps else 0.0,
        "prefill": work.pairs_drawn * one_prompt,
        "decode": work.pairs_drawn * work.rows_per_pair * sum(one_answer),
        "replay forward": replays * (replay_linear + replay_attention),
        "replay backward": replay_linear + 2.5 * replay_attention,
    }


def seconds_per_step(config: RunConfig, shapes: Architecture, work: Workload, assume: Assumptions = Assumptions()) -> dict[str, float]:  # noqa: B008
    """Return the seconds of one step: reading images, phases A, B (prefill, decode) and C (replay, tower).

    A step of decoding reads all weights and the cache of all rows, and its many small kernels, one after the other, take their
    time besides. Everything else is bound by arithmetic.
    """
    done, rate = operations(config, shapes, work), assume.peak_tflops * 1e12 * assume.utilisation
    parts = count_parameters(shapes)
    weights = 2 * (parts["language model"] + parts["head"])
    rows = config.pairs_per_wave * work.rows_per_pair
    cache = rows * (work.prompt + work.answer / 2) * shapes.kv_values * 2
    one = (weights + cache) / (assume.bandwidth_tb * 1e12 * assume.bandwidth_share)
    one += shapes.layers * assume.kernels_per_layer * assume.kernel_us / 1e6
    return {
        "reading images": work.batch * work.micro_batches / assume.images_per_second,
        "A": done["tower forward"] / rate,
        "B prefill": done["prefill"] / rate,
        "B decode": work.waves * work.longest * one,
        "C replay": (done["replay forward"] + done["replay backward"]) / rate,
        "C tower": done["tower backward"] / rate,
    }
