"""What a step computes by its shapes: operations, and the seconds they take."""

from __future__ import annotations

from saga_lib.config import RunConfig
from saga_study.planner.shapes import Architecture, count_parameters
from saga_study.planner.workload import ASSUMED, Assumptions, Workload


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


def seconds_per_step(config: RunConfig, shapes: Architecture, work: Workload, assume: Assumptions = ASSUMED) -> dict[str, float]:
    """Return the seconds of one step: reading images, phases A, B (prefill, decode) and C (replay, tower).

    A step of decoding is bound by reading all weights and the cache of all rows, plus the time of its many small kernels; everything
    else is bound by arithmetic.
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
