"""The GPU memory of a run by the shapes of its tensors, phase by phase."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from saga_lib.config import RunConfig
from saga_study.planner.cards import ASSUMED, Assumptions
from saga_study.planner.costs import buffer_length, parts_of_reading
from saga_study.planner.shapes import GIB, Architecture, count_parameters, count_trained_parameters
from saga_study.planner.workload import Workload

Bytes = dict[str, float]  # by part


def replay_bytes(
    shapes: Architecture, pairs: int, rows: int, prompt: int, answer: int, size: int = 2, repeats_kv: bool = True, recomputes: bool = False
) -> int:  # fmt: skip
    """Return the bytes that autograd saves in the language model for `pairs` prompts with `rows` answers each.

    A frozen matrix saves none of its inputs. Saved are: the float32 inputs of four norms (two of them q/k-norm); q, k, v, output
    and log-sum-exp of the attention; three tensors of SwiGLU. After a shared prompt the attention needs a mask, for which the stock
    wrapper repeats k and v per query head, the prompt's for every row (`repeats_kv`; our CPU path does not). `size` is the bytes of
    an activation: 2 in bf16. With `recomputes`, a layer keeps only its input and the prompt's k and v; one layer at a time holds
    everything.
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


def reading_bytes(shapes: Architecture, images: int, reading: int, logits: int, size: int = 2, repeats_kv: bool = True) -> int:
    """Return the bytes that autograd saves when `images` are read at `reading` positions each, with `logits` numbers read from each.

    As in the replay, each prompt an image's own; one mask for all layers; what is read as log p, and its exponential.
    """
    last_norm, mask = 4 * images * reading * shapes.hidden, size * images * reading**2
    layers = replay_bytes(shapes, images, 1, 0, reading, size=size, repeats_kv=repeats_kv)
    return layers + last_norm + mask + 3 * 4 * images * logits


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


def memory_by_phase(config: RunConfig, shapes: Architecture, work: Workload, assume: Assumptions = ASSUMED) -> dict[str, dict[str, float]]:
    """Return the GPU memory of a run in GiB, by phase (loading; A, B, C of Alg. 1) and part.

    C has up to four phases: replay, readings, the tower's backward and the optimizer's step. Where the model reads whole splits, for an
    anchor or in the evaluation, that is a phase of its own.
    """
    of = _StepMemory(config, shapes, work)
    phases = {"loading": of.loading(), "A": of.phase_a()}
    if work.read_at_start:
        phases["start"] = of.split_reading(trained=False)
    if config.language_signal == "grpo":
        phases["B"] = of.phase_b()
    if config.language_signal != "none":
        phases["C replay"] = of.replay()
    if work.reading and config.reading_signal != "none":
        if work.described:
            phases["B descriptions"] = of.descriptions()
        phases["C reading"] = of.reading()
    if work.steps:
        phases |= {"C tower": of.tower_backward(), "C optimizer": of.update()}
    if work.read_at_end:
        phases["evaluation"] = of.split_reading(trained=True)
    for sizes in phases.values():
        sizes["CUDA context, fragmentation"] = assume.context_gib * GIB + assume.fragmentation * sum(sizes.values())
    return {phase: {name: size / GIB for name, size in sizes.items()} for phase, sizes in phases.items()}


def peak(phases: Mapping[str, Mapping[str, float]]) -> float:
    """Return the memory of the phase that needs most, GiB."""
    return max(sum(sizes.values()) for sizes in phases.values())


class _StepMemory:
    """The bytes of one step, a method per phase.

    Gradients of the tower exist in its backward alone, those of pooler and proxies from phase A on.
    """

    def __init__(self, config: RunConfig, shapes: Architecture, work: Workload) -> None:
        self.config, self.shapes, self.work = config, shapes, work
        parts, self.trained = count_parameters(shapes), count_trained_parameters(shapes, config, work.num_classes)
        self.language_model = 2 * (parts["language model"] + parts["head"])
        self.keeps_model = config.needs_supervisor() or config.measure_reading
        self.signals = (config.language_signal != "none") + (config.reading_signal != "none")  # each with a gradient at the boundary
        self.tower_weights = parts["tower"] + parts["mergers"]  # a count
        self.moved_weights = sum(count for name, count in self.trained.items() if name in ("tower", "adapters", "mergers"))
        # Every micro-batch keeps its graph, with the bf16 copies of the weights that autocast made, until the tower's backward. Or it
        # keeps its pixels, and the tower computes the graph of some images at a time again in the backward.
        self.computes_tower_again = config.tower_images > 0 or not work.steps
        self.images_at_once = min(config.tower_images, work.batch) or work.batch
        saved = tower_bytes(shapes, self.images_at_once, config.image_size, keeps_pixels=not config.lora_rank)
        self.tower_graph = saved + 2 * self.tower_weights if work.steps else 0
        self.token_values = 2 * work.batch * work.micro_batches * shapes.tokens(config.image_size) * shapes.hidden  # of one output
        self.tower_outputs = 1 + shapes.deepstack
        self.pixels = 4 * work.batch * shapes.patches(config.image_size) * shapes.patch_values

    def lasting(self) -> Bytes:
        """What every phase holds: weights, the optimizer's state, and what phase A leaves to the others."""
        trains, small = bool(self.work.steps), self.trained["pooler"] + self.trained["proxies"]
        again, batches = self.computes_tower_again, self.work.micro_batches
        return {
            "language model, bf16": self.language_model if self.keeps_model else 0,
            "tower, float32": 4 * (self.tower_weights + self.trained.get("adapters", 0)),
            "its AdamW moments": 8 * self.moved_weights * trains,
            "pooler and proxies, with AdamW": 16 * small if trains else 4 * small,
            "tower activations": 0 if again else self.tower_graph * batches,
            "visual tokens": self.token_values * (self.tower_outputs + trains),  # and L_DML's gradient
            "pixels and L_DML": self.pixels * batches * again,
        }

    def loading(self) -> Bytes:
        """Every method loads the whole model before it drops what it does not need."""
        return {"language model, bf16": self.language_model, "tower, float32": 6 * self.tower_weights}

    def phase_a(self) -> Bytes:
        c, again = self.config, self.computes_tower_again
        points = self.work.batch + self.trained["proxies"] // (c.embedding_dim or self.shapes.hidden)
        similarities = 6 * 4 * points**2 * (bool(self.work.steps) and c.dml_loss == "pf")
        sizes = self.lasting() | {"pixels and L_DML": self.pixels * (self.work.micro_batches if again else 1) + similarities}
        if again:  # a pass without a graph: float32 tensors in one block, most of them for Qwen's rotation of q and k
            tensors = 16 if self.shapes.family == "internvl" else 30
            passing = self.images_at_once * self.shapes.patches(c.image_size) * self.shapes.vision_hidden * tensors
            sizes["tower activations"] = 2 * self.tower_weights + passing
        return sizes

    def phase_b(self) -> Bytes:
        c, s = self.config, self.shapes
        rows = c.pairs_per_wave * c.group_size
        cache = rows * buffer_length(self.work.prompt, c.max_new_tokens) * s.kv_values * 2
        prompts = c.pairs_per_wave * self.work.prompt * s.kv_values * 2  # until they are copied to all rows
        return self.lasting() | {"rollouts' KV cache": cache + prompts, "logits": 3 * 4 * rows * s.vocabulary}

    def replay(self) -> Bytes:
        c, s, w = self.config, self.shapes, self.work
        pairs = min(c.replay_pairs, max(1, w.pairs_replayed))
        rows = min(c.replay_rows or w.rows_per_pair, w.rows_per_pair)
        prefix_gradient = 2 * pairs * w.prompt * s.kv_values * 2 if rows < w.rows_per_pair else 0
        seen, answers = w.prompt + w.longest, pairs * rows * w.longest
        masks = 2 * answers * seen * (1 if c.recompute_layers else s.layers)  # which the attention makes of its own type
        joined = 0 if c.recompute_layers else 2 * pairs * rows * seen * s.kv_values  # keys and values, until the backward
        last_norm = 4 * (pairs * w.prompt + answers) * s.hidden
        saved = replay_bytes(s, pairs, rows, w.prompt, w.longest, recomputes=c.recompute_layers)
        logits = 3 * 4 * min(4096, answers) * s.vocabulary
        if c.recompute_layers:  # they are gone when the first layer is computed again
            logits = max(0, logits - replay_bytes(replace(s, layers=1), pairs, rows, w.prompt, w.longest))
        return self.lasting() | {
            "replay activations": prefix_gradient + masks + joined + last_norm + saved,
            "logits": logits,
            "visual tokens": self.token_values * (3 * self.tower_outputs + 1),  # a copy, its gradient
        }

    def descriptions(self) -> Bytes:
        """Of the images that are read at a time, a row each."""
        rows = math.ceil(self.work.images / parts_of_reading(self.config, self.work))
        cache = rows * buffer_length(self.work.reading_prompt, self.config.max_new_tokens) * self.shapes.kv_values * 2
        prompts = rows * self.work.reading_prompt * self.shapes.kv_values * 2
        return self.lasting() | {"descriptions' KV cache": cache + prompts, "logits": 3 * 4 * rows * self.shapes.vocabulary}

    def reading(self) -> Bytes:
        """As the replay, each image's prompt its own. Of what is read, all of a step's is kept where it is computed in parts."""
        s, w = self.shapes, self.work
        parts = parts_of_reading(self.config, w)
        images = math.ceil(w.images / parts)
        passing = 2 * images * w.reading * (4 * s.hidden + 3 * s.intermediate)  # first and last hidden states, gradients of one layer
        earlier = self.tower_outputs * (self.signals - 1)
        return self.lasting() | {
            "reading activations": reading_bytes(s, images, w.reading, w.reading_logits) + passing,
            "logits": 0 if parts == 1 else 4 * w.reading_logits * (3 * w.images - images),
            "visual tokens": self.token_values * (3 * self.tower_outputs + 1 + earlier),  # a copy, its gradient, another signal's
        }

    def split_reading(self, trained: bool) -> Bytes:
        """A split is read without a graph: one layer at a time holds its tensors."""
        s, w = self.shapes, self.work
        images = min(64, w.read_at_end if trained else w.read_at_start)
        layer = 2 * images * w.reading * (3 * s.hidden + 3 * s.intermediate)
        sizes = self.lasting() if trained else {"tower, float32": 4 * self.tower_weights, "language model, bf16": self.language_model}
        mask = 2 * images * w.reading**2
        return sizes | {"reading activations": layer + mask, "logits": 4 * images * w.reading_logits}

    def tower_backward(self) -> Bytes:
        """A micro-batch's graph is freed as its gradients appear."""
        again, batches = self.computes_tower_again, self.work.micro_batches
        graphs_left = min(1, math.ceil(self.work.batch / self.images_at_once) * batches - 1) if again else batches - 1
        moments = (
            {"tower activations": self.tower_graph * (1 if again else batches)},
            {"tower activations": self.tower_graph * graphs_left, "its gradients and AdamW's step": 4 * self.moved_weights},
        )
        return self._all_tokens(summed=True) | max(moments, key=lambda sizes: sum(sizes.values()))

    def update(self) -> Bytes:
        """AdamW's square roots appear when all graphs are freed."""
        return self._all_tokens() | {"tower activations": 0, "its gradients and AdamW's step": 2 * 4 * self.moved_weights}

    def _all_tokens(self, summed: bool = False) -> Bytes:
        """What lasts, with a copy of all tokens for the language model, their gradients by each signal and, for the tower, in all."""
        more = self.tower_outputs * (1 + self.signals + summed) if self.signals else 0
        return self.lasting() | {"visual tokens": self.token_values * (self.tower_outputs + 1 + more)}
