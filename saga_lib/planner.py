"""What a run would cost, before it is started: parameters, GPU memory, hours and disk, from shapes alone.

Every number here is an estimate; parameter counts alone are exact (a test compares them with the classes of
transformers). Nothing is downloaded and neither a GPU nor torch is needed. `Assumptions` holds what shapes do not tell.

Shape legend: P prompt tokens, T answer tokens, G rollouts, N images of a batch; 1 GiB = 2**30 bytes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from saga_lib.config import RunConfig
from saga_lib.errors import SagaError, unknown_name
from saga_lib.files import read_json
from saga_lib.prompts import comparison_answer, comparison_prompt, load_vocabulary, varied_items

if TYPE_CHECKING:
    import pandas as pd

GIB = 2**30
H200_GIB = 139.0  # what an H200 of 141 GB offers to programs

# ----------------------------------------------------------------------------------------------- architectures


@dataclass(frozen=True)
class Architecture:
    """The shapes of an MLLM: a Qwen3 language model (no biases, q/k-norm, SwiGLU) and a vision tower."""

    name: str
    family: str  # qwen3_vl | internvl
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    tied_head: bool
    vision_hidden: int
    vision_layers: int
    vision_heads: int
    vision_intermediate: int
    patch: int  # pixels
    merge: int  # a token stands for merge × merge patches
    positions: int  # learned position embeddings of the tower, its class token's included
    temporal: int = 1  # frames of a patch; an image is repeated so many times
    deepstack: int = 0  # vision layers whose output also enters the language model

    def patches(self, image_size: int) -> int:
        """Return the patches of a square image of `image_size` pixels; a class token, if any, is left out."""
        return (image_size // self.patch) ** 2

    def tokens(self, image_size: int) -> int:
        """Return Np, the tokens that the language model gets for such an image."""
        return (image_size // self.patch // self.merge) ** 2

    @property
    def patch_values(self) -> int:
        """Colour values of one patch, as the tower takes it."""
        return 3 * self.temporal * self.patch**2

    @property
    def kv_values(self) -> int:
        """Keys and values of one token in all layers, as a count of numbers."""
        return 2 * self.layers * self.kv_heads * self.head_dim

    @property
    def layer_weights(self) -> int:
        """Entries of all matrices of the language model's layers: multiplications of one token's forward pass."""
        attention = self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        return self.layers * (attention + 3 * self.hidden * self.intermediate)


# Published configurations (`config.json` of each repository on the hub; the Qwen ones also in torchtitan). InternVL3.5-2B is put
# together from its parts: the tower of the 8B and Qwen3-1.7B, with a head of its own (a language model of 2.0 B is published).
_QWEN = dict(
    family="qwen3_vl", kv_heads=8, head_dim=128, vocabulary=151_936, vision_heads=16, patch=16, merge=2, temporal=2,
    positions=2304, deepstack=3,
)  # fmt: skip
_INTERNVL = dict(
    family="internvl", kv_heads=8, head_dim=128, vocabulary=151_936, tied_head=False, vision_heads=16, patch=14, merge=2, positions=1025,
)  # fmt: skip
_SMALL_VISION = dict(vision_hidden=1024, vision_layers=24, vision_intermediate=4096)
ARCHITECTURES = {
    a.name: a
    for a in (
        Architecture(
            "Qwen/Qwen3-VL-2B-Instruct", hidden=2048, layers=28, heads=16, intermediate=6144, tied_head=True, **_SMALL_VISION, **_QWEN
        ),
        Architecture(
            "Qwen/Qwen3-VL-4B-Instruct", hidden=2560, layers=36, heads=32, intermediate=9728, tied_head=True, **_SMALL_VISION, **_QWEN
        ),
        Architecture(
            "Qwen/Qwen3-VL-8B-Instruct", hidden=4096, layers=36, heads=32, intermediate=12_288, tied_head=False,
            vision_hidden=1152, vision_layers=27, vision_intermediate=4304, **_QWEN,
        ),
        Architecture("OpenGVLab/InternVL3_5-2B-HF", hidden=2048, layers=28, heads=16, intermediate=6144, **_SMALL_VISION, **_INTERNVL),
        Architecture("OpenGVLab/InternVL3_5-8B-HF", hidden=4096, layers=36, heads=32, intermediate=12_288, **_SMALL_VISION, **_INTERNVL),
    )
}  # fmt: skip


@lru_cache
def architecture(source: str) -> Architecture:
    """Return the shapes of a supervisor: a local folder's `config.json`, or a model whose shapes are built in."""
    folder = Path(source)
    if (folder / "config.json").is_file():
        return architecture_of_config(read_json(folder / "config.json"), source)
    if folder.is_dir():
        raise SagaError(f"{folder} has no config.json, so its shapes are not known")
    if source not in ARCHITECTURES:
        raise unknown_name("model without a local folder", source, ARCHITECTURES)
    return ARCHITECTURES[source]


def architecture_of_config(config: Mapping, name: str) -> Architecture:
    """Return the shapes that a model's `config.json` states; a missing field is named."""
    kind, text, vision = config.get("model_type"), config.get("text_config", {}), config.get("vision_config", {})
    if kind not in ("qwen3_vl", "internvl"):
        raise unknown_name("model family", str(kind), ("qwen3_vl", "internvl"))
    is_qwen = kind == "qwen3_vl"

    def side(value: int | Sequence[int]) -> int:
        return value if isinstance(value, int) else value[0]

    try:
        return Architecture(
            name, kind, hidden=text["hidden_size"], layers=text["num_hidden_layers"], heads=text["num_attention_heads"],
            kv_heads=text["num_key_value_heads"], head_dim=text.get("head_dim", 128), intermediate=text["intermediate_size"],
            vocabulary=text["vocab_size"], tied_head=config.get("tie_word_embeddings", text.get("tie_word_embeddings", not is_qwen)),
            vision_hidden=vision["hidden_size"], vision_layers=vision["depth" if is_qwen else "num_hidden_layers"],
            vision_heads=vision["num_heads" if is_qwen else "num_attention_heads"], vision_intermediate=vision["intermediate_size"],
            patch=side(vision["patch_size"]), merge=vision["spatial_merge_size"] if is_qwen else round(1 / config["downsample_ratio"]),
            positions=vision["num_position_embeddings"] if is_qwen else (side(vision["image_size"]) // side(vision["patch_size"])) ** 2 + 1,
            temporal=side(vision["temporal_patch_size"]) if is_qwen else 1,
            deepstack=len(vision["deepstack_visual_indexes"]) if is_qwen else 0,
        )  # fmt: skip
    except KeyError as missing:
        raise SagaError(f"the configuration of {name} has no {missing}, so its shapes are not known") from None


def transformers_config(shapes: Architecture):  # noqa: ANN201  (transformers is imported late)
    """Return the configuration of transformers with these shapes, to build the model without its weights."""
    from transformers import InternVLConfig, Qwen3VLConfig

    text = dict(
        vocab_size=shapes.vocabulary, hidden_size=shapes.hidden, intermediate_size=shapes.intermediate,
        num_hidden_layers=shapes.layers, num_attention_heads=shapes.heads, num_key_value_heads=shapes.kv_heads,
        head_dim=shapes.head_dim, max_position_embeddings=262_144, tie_word_embeddings=shapes.tied_head,
    )  # fmt: skip
    vision = dict(hidden_size=shapes.vision_hidden, intermediate_size=shapes.vision_intermediate, patch_size=shapes.patch)
    if shapes.family == "internvl":
        size = shapes.patch * math.isqrt(shapes.positions - 1)
        vision |= dict(
            num_hidden_layers=shapes.vision_layers, num_attention_heads=shapes.vision_heads, attention_bias=True,
            image_size=[size, size], patch_size=[shapes.patch, shapes.patch],
        )  # fmt: skip
        text |= dict(model_type="qwen3", rope_parameters={"rope_type": "default", "rope_theta": 1e6})
        return InternVLConfig(
            text_config=text, vision_config=vision, downsample_ratio=1 / shapes.merge, tie_word_embeddings=shapes.tied_head,
            image_token_id=min(151_671, shapes.vocabulary - 1),
        )  # fmt: skip
    third = shapes.head_dim // 2 // 3
    rope = {"rope_type": "default", "rope_theta": 5e6, "mrope_interleaved": True,
            "mrope_section": [shapes.head_dim // 2 - 2 * third, third, third]}  # fmt: skip
    vision |= dict(
        depth=shapes.vision_layers, num_heads=shapes.vision_heads, spatial_merge_size=shapes.merge,
        temporal_patch_size=shapes.temporal, out_hidden_size=shapes.hidden, num_position_embeddings=shapes.positions,
        deepstack_visual_indexes=[(i + 1) * shapes.vision_layers // (shapes.deepstack + 1) for i in range(shapes.deepstack)],
    )  # fmt: skip
    return Qwen3VLConfig(
        text_config=text | {"rope_parameters": rope}, vision_config=vision, tie_word_embeddings=shapes.tied_head,
        image_token_id=min(151_655, shapes.vocabulary - 1),
    )  # fmt: skip


# -------------------------------------------------------------------------------------------------- parameters


def count_parameters(shapes: Architecture) -> dict[str, int]:
    """Return the parameters of each part: tower, mergers (projector), language model, head (0 if tied). Exact."""
    s, w, i = shapes, shapes.vision_hidden, shapes.vision_intermediate
    block = 4 * w * w + 2 * w * i + 9 * w + i  # q, k, v, projection and two layers of the MLP with biases, two norms
    tower = s.patch_values * w + w + s.positions * w + s.vision_layers * block
    wide = w * s.merge**2
    if s.family == "internvl":
        tower += w + s.vision_layers * 2 * w  # class token, layer scales
        mergers = 2 * wide + (wide + 1) * s.hidden + (s.hidden + 1) * s.hidden
    else:
        two_layers = (wide + 1) * wide + (wide + 1) * s.hidden
        mergers = (1 + s.deepstack) * two_layers + 2 * w + s.deepstack * 2 * wide
    norms = s.layers * 2 * (s.hidden + s.head_dim) + s.hidden
    language_model = s.vocabulary * s.hidden + s.layer_weights + norms
    head = 0 if s.tied_head else s.vocabulary * s.hidden
    return {"tower": tower, "mergers": mergers, "language model": language_model, "head": head}


def trained_parameters(shapes: Architecture, config: RunConfig, num_classes: int) -> dict[str, int]:
    """Return what a run trains, by part: tower (or adapters), mergers, pooler, proxies."""
    parts, width = count_parameters(shapes), shapes.hidden
    w, i = shapes.vision_hidden, shapes.vision_intermediate
    tower = {"tower": parts["tower"]}
    if config.lora_rank:  # r·(inputs + outputs) of each adapted matrix; InternVL keeps q, k and v apart
        attention = 8 * w if shapes.family == "internvl" else 6 * w
        tower = {"adapters": config.lora_rank * shapes.vision_layers * (attention + 2 * (w + i))}
    dim = config.embedding_dim or width
    out = (width + 1) * dim if config.embedding_dim else 0
    pooler = out + (width + width**2 if config.pooler == "attention" else 0)
    per_class = {"pf": dict(config.dml_options).get("proxies_per_class", 15), "pa": 1}.get(config.dml_loss, 0)
    mergers = {"mergers": parts["mergers"]} if config.train_mergers else {}
    return tower | mergers | {"pooler": pooler, "proxies": int(per_class) * num_classes * dim}


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
    from saga_lib.datasets import load_benchmark

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
        from saga_lib.datasets import load_benchmark

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


# ---------------------------------------------------------------------------------------------------- estimate


@dataclass(frozen=True)
class Estimate:
    """What a run is expected to take; `at_most` is its memory with all micro-batches and answers at their limits."""

    config: RunConfig
    shapes: Architecture
    work: Workload
    trained: dict[str, int]
    expected: dict[str, dict[str, float]]  # GiB by phase and part
    at_most: dict[str, dict[str, float]]
    seconds: dict[str, float]  # of one step
    hours: float
    tokens_per_second: float  # of all rollouts while decoding
    disk_gib: dict[str, float] = field(default_factory=dict)

    @property
    def seconds_per_step(self) -> float:
        return sum(self.seconds.values())


def supervisor_folder(config: RunConfig) -> str:
    """Return the folder or hub id whose shapes a run has; "miniature" is the shipped checkpoint of the domain."""
    if config.supervisor != "miniature":
        return config.supervisor
    from saga_lib.miniature.world import benchmark_spec, is_miniature

    if not is_miniature(config.dataset):
        raise SagaError(f"the miniature supervisor has never seen anything like {config.dataset}; name another supervisor")
    return str(Path(__file__).parent / "miniature" / "checkpoints" / benchmark_spec(config.dataset).domain)


def estimate(config: RunConfig, assume: Assumptions = Assumptions(), shapes: Architecture | None = None) -> Estimate:  # noqa: B008
    """Estimate a run: what it trains, GPU memory, seconds of a step, hours, disk."""
    shapes = shapes or architecture(supervisor_folder(config))
    work = workload(config, shapes, assume)
    worst = work
    if work.waves:
        micro_batches = min(config.max_waves, config.max_micro_batches)
        worst = replace(work, micro_batches=micro_batches, longest=config.max_new_tokens, pairs_replayed=config.contributing_pairs)
    seconds = seconds_per_step(config, shapes, work, assume)
    total = work.steps * sum(seconds.values()) + 60 * assume.startup_minutes
    total += work.test_images * max(1 / assume.images_per_second, seconds["A"] / (work.batch * work.micro_batches))
    trained = trained_parameters(shapes, config, work.num_classes)
    parts = count_parameters(shapes)
    encoder = 4 * (parts["tower"] + parts["mergers"] + trained["pooler"])
    moments = 8 * sum(trained.values()) if work.steps else 0
    return Estimate(
        config, shapes, work, trained, memory(config, shapes, work, assume), memory(config, shapes, worst, assume), seconds,
        total / 3600, work.pairs_drawn * work.rows_per_pair * work.answer / seconds["B decode"] if work.waves else 0.0,
        {
            "encoder": encoder / GIB,  # stays
            "checkpoint": 2 * (encoder + moments + 4 * trained["proxies"]) / GIB if work.steps else 0.0,  # until the run ends
            "model": 2 * sum(parts.values()) / GIB,
        },
    )  # fmt: skip


_LEVERS: tuple[tuple[dict[str, int], str], ...] = (  # what to lower, mildest first
    ({"tower_images": 16}, "no number changes but for rounding, the tower computes once more"),
    ({"replay_pairs": 1}, "no number changes"),
    ({"replay_rows": 1}, "no number changes"),
    ({"recompute_layers": True}, "no number changes, replay takes half as long again"),
    ({"pairs_per_wave": 8}, "other pairs are drawn"),
    ({"max_micro_batches": 1}, "no refill with further images"),
    ({"pairs_per_wave": 4}, "other pairs are drawn"),
    ({"lora_rank": 16}, "adapters in place of full fine-tuning"),
    ({"batch_size": 32}, "smaller batches"),
)


def advice(config: RunConfig, gpu_memory: float = H200_GIB, assume: Assumptions = Assumptions(), shapes: Architecture | None = None) -> str:  # noqa: B008
    """Say whether a run fits in `gpu_memory` GiB, and if not, what to lower, in which order, until it does."""
    now = estimate(config, assume, shapes)
    expected, at_most = peak(now.expected), peak(now.at_most)
    if at_most <= gpu_memory:
        return f"fits in {gpu_memory:.0f} GiB: about {expected:.0f} GiB, at most {at_most:.0f}"
    verdict = f"may run out of {gpu_memory:.0f} GiB" if expected <= gpu_memory else f"does not fit in {gpu_memory:.0f} GiB"
    said, lowered, least = [], config, at_most
    for change, means in _LEVERS:
        (name, value), current = next(iter(change.items())), getattr(lowered, next(iter(change)))
        switched_on = name in ("replay_rows", "lora_rank", "recompute_layers", "tower_images")  # the others are numbers to lower
        if current if switched_on else current <= value:
            continue
        candidate = replace(lowered, **change)
        needed = peak(estimate(candidate, assume, shapes).at_most)
        if needed > least - 0.05:
            continue
        lowered, least = candidate, needed
        said.append(f"{name} {value} ({means}): {needed:.0f}")
        if least <= gpu_memory:
            break
    lower = f"; lower, in this order: {', '.join(said)} GiB" if said else ""
    still = "" if least <= gpu_memory else "; even so it does not fit, a smaller supervisor would"
    return f"{verdict}: about {expected:.0f} GiB, at most {at_most:.0f}{lower}{still}"


# ------------------------------------------------------------------------------------------------------ tables


def runs_table(configs: Iterable[RunConfig], assume: Assumptions = Assumptions()) -> pd.DataFrame:  # noqa: B008
    """Return a row per dataset, method and what it has unlike the profile: runs (seeds), model, what one run takes, hours of all.

    Columns of one run: trained (millions of parameters), steps, PFLOP of a step, seconds of a step by phase and in all, hours, peak GiB.
    """
    import pandas as pd

    from saga_lib.runs import describe

    groups: dict[tuple[str, str, str], list[Estimate]] = {}
    for config in configs:
        unlike = describe(replace(config, seed=0)).partition(" seed 0")[2].removeprefix(", ")
        groups.setdefault((config.dataset, config.method, unlike), []).append(estimate(config, assume))
    rows = []
    for (dataset, method, unlike), estimates in groups.items():
        one = estimates[0]
        by_phase = {p: sum(v for name, v in one.seconds.items() if name[0] == p) for p in "ABC"}
        rows.append(
            {
                "dataset": dataset, "method": method, "unlike the profile": unlike, "runs": len(estimates),
                "model": one.shapes.name.rpartition("/")[2], "trained M": sum(one.trained.values()) / 1e6, "steps": one.work.steps,
                "PFLOP/step": sum(operations(one.config, one.shapes, one.work).values()) / 1e15,
                **{f"s/step {phase}": value for phase, value in by_phase.items()}, "s/step": one.seconds_per_step,
                "hours a run": one.hours, "hours": sum(e.hours for e in estimates),
                "GiB": peak(one.expected), "GiB at most": peak(one.at_most),
            }
        )  # fmt: skip
    return pd.DataFrame(rows)


def memory_table(one: Estimate, which: str = "expected") -> pd.DataFrame:
    """Return GiB by part (rows) and phase (columns) of a run; `which` is expected or at_most."""
    import pandas as pd

    table = pd.DataFrame(getattr(one, which)).fillna(0.0)
    table = table[table.gt(0).any(axis=1)]
    last = table.index == "CUDA context, fragmentation"
    table = pd.concat([table[~last], table[last]])
    table.loc["total"] = table.sum()
    return table.rename_axis("part").reset_index()


def disk_gib(configs: Sequence[RunConfig]) -> dict[str, float]:
    """Return the disk that a set of runs needs: models, datasets while unpacking, encoders that stay, checkpoints."""
    from saga_lib.datasets.prepare import SOURCES

    estimates = [estimate(config) for config in configs]
    datasets = 0.0
    for name in {config.dataset for config in configs}:
        if name in SOURCES:
            datasets += sum(a.gigabytes + (a.unpacked_gigabytes or a.gigabytes) for a in SOURCES[name].ways[0]) * 1e9 / GIB
    return {
        "models": sum({e.shapes.name: e.disk_gib["model"] for e in estimates}.values()),
        "datasets, archives included": datasets,
        "encoders of all runs": sum(e.disk_gib["encoder"] for e in estimates),
        "checkpoint of the run in progress": max((e.disk_gib["checkpoint"] for e in estimates), default=0.0),
    }


def _in_millions(parameters: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count / 1e6:,.0f} M" for name, count in parameters.items()) + " parameters"


def _by_part(phases: Mapping[str, Mapping[str, float]]) -> str:
    """Return the GiB of each part in the phase that needs most, largest first."""
    phase, sizes = max(phases.items(), key=lambda one: sum(one[1].values()))
    parts = sorted(((size, name) for name, size in sizes.items() if size >= 0.05), reverse=True)
    return f"phase {phase}: " + ", ".join(f"{name} {size:.1f}" for size, name in parts) + " GiB"


def describe_plan(tables: Mapping[str, Sequence[RunConfig]], gpu_memory: float = H200_GIB, assume: Assumptions = Assumptions()) -> str:  # noqa: B008
    """Return the whole estimate of a study as text: runs, hours by table, memory with advice, disk.

    `tables` maps a table's name to its runs; a run that several tables share is counted once in the total.
    """
    configs = list(dict.fromkeys(config for runs in tables.values() for config in runs))
    if not configs:
        return "estimate: no runs"
    table = runs_table(configs, assume)
    shapes = {one.shapes.name: one.shapes for one in (estimate(config, assume) for config in configs)}
    lines = [
        f"ESTIMATES, no second is measured: {', '.join(shapes)} on one GPU of {gpu_memory:.0f} GiB, "
        f"{assume.utilisation:.0%} of {assume.peak_tflops:.0f} TFLOP/s,",
        f"decoding at {assume.bandwidth_share:.0%} of {assume.bandwidth_tb} TB/s and {assume.kernel_us} µs a kernel, "
        f"{assume.contributing_fraction:.0%} of pairs contribute",
        *(f"  {name}: {_in_millions(count_parameters(own))}" for name, own in shapes.items()),
        f"  {'dataset':10} {'method':16} {'runs':>4} {'trained':>8} {'steps':>6} {'PFLOP':>6} {'s/step':>7} {'A':>5} {'B':>6} {'C':>6} "
        f"{'h/run':>6} {'hours':>6} {'GiB':>5} {'at most':>8}  unlike the profile",
    ]
    for row in table.to_dict("records"):
        trained = f"{row['trained M']:.0f} M"
        lines.append(
            f"  {row['dataset']:10} {row['method']:16} {row['runs']:4} {trained:>8} {row['steps']:6} {row['PFLOP/step']:6.2f} "
            f"{row['s/step']:7.1f} {row['s/step A']:5.1f} {row['s/step B']:6.1f} {row['s/step C']:6.1f} {row['hours a run']:6.1f} "
            f"{row['hours']:6.1f} {row['GiB']:5.0f} {row['GiB at most']:8.0f}  {row['unlike the profile']}".rstrip()
        )
    lines.append("GPU hours by table (runs that tables share are trained once)")
    for name, runs in tables.items():
        lines.append(f"  {name:24} {sum(estimate(c, assume).hours for c in runs):7.1f} h, {len(runs)} runs")
    lines.append(f"  {'all':24} {table['hours'].sum():7.1f} h, {len(configs)} runs")
    lines.append("memory of the largest run of each kind")
    for signal in dict.fromkeys(c.language_signal for c in configs):
        kind = [c for c in configs if c.language_signal == signal]
        largest = max(kind, key=lambda c: peak(estimate(c, assume).at_most))
        lines.append(f"  {largest.dataset} {largest.method}: {advice(largest, gpu_memory, assume)}")
        lines.append(f"    at most, by part: {_by_part(estimate(largest, assume).at_most)}")
    lines.append("disk, GiB: " + ", ".join(f"{name} {size:.0f}" for name, size in disk_gib(configs).items()))
    return "\n".join(lines)
