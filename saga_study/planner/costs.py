"""What a step computes by its shapes: operations, and the seconds they take.

Operations and bytes follow from shapes. How fast a card is at them is in `cards`; what launching kernels from Python takes stands here.
All was fitted to one H100, and is within 15 % of every phase above 0.2 s that it took but one (`benchmarks/results/h100-80gb.json`).
"""

from __future__ import annotations

import math

from saga_lib.config import RunConfig
from saga_study.planner.cards import ASSUMED, Assumptions
from saga_study.planner.shapes import Architecture, count_trained_parameters
from saga_study.planner.workload import Workload

# Calibrated: launches take a time of their own, which passes over few tokens or images need as much as those over many.
LAYER_MS = 0.75  # of a language model's layer, forward; its backward takes twice as long
BLOCK_MS = {"qwen3_vl": 1.6, "internvl": 0.6}  # of a tower's block, forward
BLOCK_BACK_MS = 0.2  # and backward
AGAIN_MS = {"qwen3_vl": 2.0, "internvl": 0.95}  # more, of an image that the tower computes again for its backward; why is not known
STEP_MS = 0.6  # of a decoding step: sampling's answer comes back to Python
GRAPH_S = 0.14  # to capture a decoding step as a CUDA graph; measured
SPAN = 256  # positions by which decoding's view of its cache grows (saga_lib.supervisor.decoding)
UPDATE_BYTES = 92  # that clipping and AdamW read and write for each trained parameter; counted


def operations(config: RunConfig, shapes: Architecture, work: Workload) -> dict[str, float]:
    """Return the floating-point operations of one step by what they do (a multiply-add counts two).

    The backward of a frozen matrix costs as much as its forward, that of a trained one twice as much, that of attention 2.5 times as
    much (fused kernels recompute); pixels need no gradient. Embeddings of tokens and norms are not counted.
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
    images = work.images
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
    reads = images if work.reading and config.reading_signal != "none" else 0
    reading = work.reading * layers + 2 * s.hidden * work.reading_logits, per_context * work.reading**2  # masked, so none is spared
    views = 2 if reads and config.reading_signal == "views" else 1  # each image once more, without a graph
    describing = work.described * (layers + head) + per_context * work.described * (work.reading_prompt + work.described / 2)
    asking = work.reading_prompt * layers + per_context * work.reading_prompt**2 / 2
    return {
        "tower forward": images * views * forward,
        "tower backward": images * backward if work.steps else 0.0,
        "prefill": work.pairs_drawn * one_prompt,
        "decode": work.pairs_drawn * work.rows_per_pair * sum(one_answer),
        "replay forward": replays * (replay_linear + replay_attention),
        "replay backward": replay_linear + 2.5 * replay_attention,
        "description prefill": reads * asking if work.described else 0.0,
        "description decode": reads * describing if work.described else 0.0,
        "reading forward": reads * ((2 if parts_of_reading(config, work) > 1 else 1) + views - 1) * sum(reading),
        "reading backward": reads * (reading[0] + 2.5 * reading[1]),
    }


def parts_of_reading(config: RunConfig, work: Workload) -> int:
    """Return in how many parts a step's images are read; more than one are read twice, the second time with a graph."""
    return math.ceil(work.images / (config.reading_images or work.images))


def reading_operations(shapes: Architecture, work: Workload) -> float:
    """Return the operations in which one image is read, without a graph."""
    linear = 2 * work.reading * shapes.layer_weights + 2 * shapes.hidden * work.reading_logits
    return linear + 4 * shapes.layers * shapes.heads * shapes.head_dim * work.reading**2


def buffer_length(prompt: int, room: int) -> int:
    """Return the positions of a decoding buffer (saga_lib.supervisor.decoding)."""
    return math.ceil((prompt + room) / 64) * 64


def decoding_seconds(shapes: Architecture, rows: int, prompt: int, length: int, room: int, assume: Assumptions = ASSUMED) -> float:
    """Return the seconds in which `rows` answers of `length` tokens are written behind prompts, in buffers with room for `room`.

    A step reads all weights, the cache of all rows as far as attention's view reaches, and what its small kernels leave to each other,
    a float32 vector each way. Each of them takes a while besides, and so does sampling.
    """
    s, rate = shapes, assume.bandwidth_tb * 1e12 * assume.bandwidth_share
    views = range(SPAN * (prompt // SPAN), prompt + length, SPAN)  # of the cache, by how far it was filled before them
    spans = [min(view + SPAN, buffer_length(prompt, room)) for view in views]
    seen = sum(span * (min(view + SPAN, prompt + length) - max(view, prompt)) for view, span in zip(views, spans, strict=True))
    weights = 2 * (s.layer_weights + s.vocabulary * s.hidden)
    passed_on = 8 * s.hidden * s.layers * assume.kernels_per_layer
    reading = (length * (weights + rows * passed_on) + rows * 2 * s.kv_values * seen) / rate
    kernels = s.layers * assume.kernels_per_layer * assume.kernel_us / 1e6
    sampling = rows * s.vocabulary * assume.sampling_ns / 1e9
    return reading + length * (kernels + sampling + assume.launches * STEP_MS / 1e3) + assume.launches * GRAPH_S * len(set(spans))


def seconds_per_step(config: RunConfig, shapes: Architecture, work: Workload, assume: Assumptions = ASSUMED) -> dict[str, float]:
    """Return the seconds of one step: reading images, phases A, B (prefill, decode) and C (replay, readings, tower, optimizer).

    Decoding and the optimizer are bound by what they read, the rest by arithmetic, and by launches in every pass over a part of a batch.
    """
    done, rate = operations(config, shapes, work), assume.peak_tflops * 1e12 * assume.utilisation
    layers, blocks = (assume.launches * ms / 1e3 for ms in (shapes.layers * LAYER_MS, shapes.vision_layers * BLOCK_MS[shapes.family]))
    encodings = work.micro_batches * math.ceil(work.batch / (config.tower_images or work.batch))
    backwards = assume.launches * encodings * shapes.vision_layers * BLOCK_BACK_MS / 1e3
    if config.tower_images:  # computed once more
        backwards += encodings * blocks + assume.launches * work.images * AGAIN_MS[shapes.family] / 1e3
    pixels = 4 * work.images * shapes.patches(config.image_size) * shapes.patch_values
    rows = config.pairs_per_wave * work.rows_per_pair
    rows_at_once = config.replay_rows or work.rows_per_pair or 1
    replays = math.ceil(work.pairs_replayed / config.replay_pairs) * (1 + math.ceil(work.rows_per_pair / rows_at_once))
    readings = parts_of_reading(config, work) if done["reading forward"] else 0
    at_once = math.ceil(work.images / max(1, readings))
    trained = sum(count_trained_parameters(shapes, config, work.num_classes).values()) if work.steps else 0
    decoding = {
        "B decode": (work.waves, rows, work.prompt, work.longest),
        "B descriptions": (readings if work.described else 0, at_once, work.reading_prompt, work.described),
    }
    written = {
        name: times * decoding_seconds(shapes, *lengths, config.max_new_tokens, assume) if times else 0.0
        for name, (times, *lengths) in decoding.items()
    }
    written["B descriptions"] += done["description prefill"] / rate + layers * decoding["B descriptions"][0]
    return {
        "reading images": work.images / assume.images_per_second,
        "A": done["tower forward"] / rate + encodings * blocks + assume.launches * pixels / (assume.copy_gb * 1e9),
        "B prefill": done["prefill"] / rate + work.waves * layers,
        **written,
        "C replay": (done["replay forward"] + done["replay backward"]) / rate + (3 + config.recompute_layers) * replays * layers,
        "C reading": (done["reading forward"] + done["reading backward"]) / rate + (4 if readings > 1 else 3) * readings * layers,
        "C tower": done["tower backward"] / rate + backwards if work.steps else 0.0,
        "C optimizer": trained * UPDATE_BYTES / (assume.bandwidth_tb * 1e12 * assume.bandwidth_share),
    }
