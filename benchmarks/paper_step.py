r"""Time one SAGA step of a full-size model with random weights, the planner's estimate beside it.

Shapes are real (planner.ARCHITECTURES or a local folder's config.json), weights random, nothing is downloaded. Prompt
and answers have forced lengths, so that the work does not depend on what random weights say: end-of-turn is never
drawn, verdicts are assigned so that every pair contributes, and right answers describe both images, which L_KL needs. Phases
are the functions that a run calls; after the replay all images are also read (saga_lib.reading).

    python benchmarks/paper_step.py [--supervisor Qwen/Qwen3-VL-8B-Instruct] [--prompt 700] [--answer 900] [--output FILE]
    python benchmarks/paper_step.py --supervisor OpenGVLab/InternVL3_5-8B-HF
    python benchmarks/paper_step.py --cpu --supervisor Qwen/Qwen3-VL-2B-Instruct --batch-size 8 --group-size 4 \
        --contributing-pairs 2 --pairs-per-wave 2 --tower-images 0 --prompt 480 --answer 64    # as on a GPU; 12 GiB, 4 minutes
    python benchmarks/paper_step.py --tiny        # a toy of the same family on the CPU, to see that it runs

The results of CPUs are those of the third command: for InternVL3.5-2B with --prompt 640, for "4-tower-images" with --tower-images 4
--waves 2, for 8B with --answer 16 --weights-in FOLDER (frozen weights on disk, 24 GB of memory, half an hour), InternVL3.5-8B with
--prompt 640 --tower-images 4. Each holds its whole configuration.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pandas as pd
import torch
from scripted import processor_of, scripted_answer
from torch import Tensor, nn
from without_gpu import Allocated, OnDisk, gpu_path, rates

from saga_lib import towers
from saga_lib.adapters import add_adapters
from saga_lib.common.errors import SagaError
from saga_lib.common.files import write_json
from saga_lib.config import RunConfig
from saga_lib.encoder import Encoder
from saga_lib.families import family_module
from saga_lib.losses import group_advantages, make_dml_loss
from saga_lib.reading import Reader, reading_loss, reading_phase
from saga_lib.step import Buffer, MetricLosses, MicroBatch, ReplaySettings, dml_phase, replay_phase, tower_backward
from saga_lib.supervisor import attention
from saga_lib.supervisor.base import Supervisor
from saga_lib.supervisor.rollouts import Rollouts, Sampling, generate_rollouts
from saga_lib.towers import VisualTokens
from saga_lib.vocabulary import load_vocabulary
from saga_study import planner
from saga_study.methods import make_config

_TOY = dict(
    hidden=32, layers=3, heads=4, kv_heads=2, head_dim=24, intermediate=48, vocabulary=200, tied_head=True, vision_hidden=24,
    vision_layers=3, vision_heads=2, vision_intermediate=32, patch=8, merge=2,
)  # fmt: skip
TINY = {
    "qwen3_vl": planner.Architecture("tiny Qwen3-VL", "qwen3_vl", positions=36, temporal=2, deepstack=2, **_TOY),
    "internvl": planner.Architecture("tiny InternVL", "internvl", positions=37, **_TOY),
}


def build(shapes: planner.Architecture, config: RunConfig, device: torch.device, dtype: torch.dtype) -> tuple[Encoder, Supervisor]:
    """Return encoder and frozen supervisor of these shapes with random weights, the tower in float32."""
    from transformers import AutoModelForImageTextToText

    family = family_module(shapes.family)
    torch.manual_seed(0)
    with device:
        model = AutoModelForImageTextToText.from_config(
            family.config_of(shapes), dtype=dtype,
            attn_implementation={"text_config": attention.register(), "vision_config": family.TOWER.vision_attention()},
        )  # fmt: skip
    processor = processor_of(model.config.image_token_id, shapes.vocabulary)
    tower, supervisor = family.SUPERVISOR.from_model(model, processor, config.image_size)
    supervisor.recomputes = config.recompute_layers
    encoder = Encoder(tower, config.pooler, config.embedding_dim).to(device).requires_grad_(True)
    if config.lora_rank:
        add_adapters(tower, config.lora_rank, config.lora_alpha, config.seed)
        for parameter in tower.merger_parameters():
            parameter.requires_grad_(config.train_mergers)
    return encoder, supervisor


def vision_start(vocabulary: int) -> int:
    """Return the id of Qwen's <|vision_start|>, by which stock Qwen3-VL counts a prompt's images; in a toy's vocabulary, one for it."""
    return min(151_652, vocabulary - 2)


def forced_prompt(supervisor: Supervisor, length: int, vocabulary: int) -> Tensor:
    """Return the ids (P,) of a prompt of `length` tokens with two images in it, each after `vision_start`, its words at random."""
    images, start = 2 * supervisor.tokens_per_image, vision_start(vocabulary)
    if length < images + 3:
        raise SagaError(f"a prompt of {length} tokens does not hold two images of {supervisor.tokens_per_image} tokens")
    words = torch.randint(0, start, (length - images,), device=supervisor.device)
    words[:2] = start
    image = torch.full((supervisor.tokens_per_image,), supervisor.image_token_id, device=supervisor.device)
    return torch.cat([words[:1], image, words[1:2], image, words[2:]])


@dataclass(frozen=True)
class Lengths:
    """What a step is made to hold: tokens of a prompt (two images included) and of an answer, waves of rollouts."""

    prompt: int
    answer: int
    waves: int = 1


class Step:
    """One optimizer step with forced lengths, timed phase by phase; the language model is of type `dtype`.

    In bf16 a CPU decodes in fixed buffers, as a GPU does.
    """

    def __init__(
        self, shapes: planner.Architecture, config: RunConfig, lengths: Lengths, device: torch.device,
        dtype: torch.dtype = torch.float32, allocated: Allocated | None = None,
    ) -> None:  # fmt: skip
        self.config, self.device, self.lengths = config, device, lengths
        self.fixed, self.allocated = dtype == torch.bfloat16, allocated
        self.encoder, self.supervisor = build(shapes, config, device, dtype)
        self.vocabulary = load_vocabulary("birds" if shapes.vocabulary > 1000 else "miniature_birds")
        self.answer = scripted_answer(self.supervisor.tokenizer, self.vocabulary, lengths.answer)
        self.reader = self._reader() if config.reading_signal != "none" else None
        self.labels = np.repeat(np.arange(config.batch_size // config.batch_images_per_class), config.batch_images_per_class)
        width = config.embedding_dim or shapes.hidden
        self.dml_loss = make_dml_loss(config.dml_loss, int(self.labels.max()) + 1, width).to(device)
        self.prompt_ids = forced_prompt(self.supervisor, lengths.prompt, shapes.vocabulary)
        side, patch = config.image_size, shapes.patch_values
        is_internvl = shapes.family == "internvl"  # takes whole images, the other their patches
        shape = (3, side, side) if is_internvl else (shapes.patches(side), patch)
        self.pixels = torch.from_numpy(np.random.default_rng(0).standard_normal((config.batch_size, *shape), np.float32))
        trained = [p for p in (*self.encoder.parameters(), *self.dml_loss.parameters()) if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-6, foreach=True)  # what a GPU does by itself

    def run(self, answer: int = 0) -> dict[str, float]:
        """Run the step; return the seconds of each phase and, where they are counted, its peak GiB.

        answer: tokens in place of `Lengths.answer`, for a step that only warms up.
        """
        c, laps = self.config, {}
        self._started = self._now()
        batches = [self._phase_a() for _ in range(min(self.lengths.waves, c.max_micro_batches))]
        self._lap(laps, "A")
        rollouts = [self._wave(batches[min(wave, len(batches) - 1)], wave, answer) for wave in range(self.lengths.waves)]
        self._lap(laps, "B")
        tokens = VisualTokens.cat([batch.tokens for batch in batches])
        layer = min(c.attention_layer, self.supervisor.num_layers - 1)
        parts = c.replay_pairs, c.replay_rows
        settings = ReplaySettings(layer, c.lambda_lm, c.lambda_kl, *parts, keys=self.vocabulary.keys)
        found = replay_phase(self.encoder, self.supervisor, self.prompt_ids, tokens, self._buffer(rollouts[0]), settings)
        self.loss_kl, gradient = found.loss_kl, found.gradient.scaled(1.0)
        self._lap(laps, "C replay")
        if self.reader:
            loss = reading_loss(c, np.concatenate([batch.labels for batch in batches]), np.random.default_rng(0))
            with patch.object(self.supervisor, "eos_token_id", self.supervisor.tokenizer.end):
                read = reading_phase(self.reader, tokens, loss, c.lambda_reading, c.reading_images)
            gradient = read.gradient.scaled(1.0, gradient)
            self._lap(laps, "C reading")
        tower_backward(batches, gradient)
        self._lap(laps, "C tower")
        del gradient
        nn.utils.clip_grad_norm_([p for p in self.encoder.parameters() if p.grad is not None], c.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._lap(laps, "C optimizer")
        return laps

    def _reader(self) -> Reader:
        with patch.object(self.supervisor, "eos_token_id", self.supervisor.tokenizer.end):
            return Reader(self.supervisor, self.vocabulary)

    @property
    def reading(self) -> dict[str, int]:
        """What the planner knows of a reading."""
        if not self.reader:
            return {}
        prompt, values = len(self.reader.prompt_ids), [len(a.values) for a in self.vocabulary.attributes]
        logits = sum(count or self.supervisor.head.weight.shape[0] for count in values)
        return {"reading": prompt + len(self.reader._forced.tokens), "reading_prompt": prompt, "reading_logits": logits}

    def _phase_a(self) -> MicroBatch:
        pixels = self.pixels.to(self.device, copy=True)
        c, indices = self.config, np.arange(len(self.labels))
        return dml_phase(self.encoder, MetricLosses(self.dml_loss, c.lambda_dml), pixels, indices, self.labels, c.tower_images)

    def _wave(self, batch: MicroBatch, wave: int, answer: int = 0) -> Rollouts:
        c = self.config
        places = np.random.default_rng(wave).integers(0, c.batch_size, 2 * c.pairs_per_wave)
        images = batch.tokens.detach()[torch.as_tensor(places, device=self.device)]
        with towers.autocast(self.device):
            sampling = Sampling(c.group_size, answer or self.lengths.answer, c.temperature, c.top_p, fixed=self.fixed)
            return generate_rollouts(self.supervisor, self.prompt_ids, images, sampling)

    def _buffer(self, rollouts: Rollouts) -> Buffer:
        pairs, group = min(self.config.contributing_pairs, self.config.pairs_per_wave), self.config.group_size
        rewards = (torch.arange(group) % 2).float().expand(pairs, group)
        told, drawn = torch.tensor(self.answer, device=self.device)[: rollouts.tokens.shape[1]], rollouts.tokens
        right = torch.arange(len(drawn), device=self.device) % group % 2 == 1  # were all alike, a group's gradients would cancel
        rollouts = replace(rollouts, tokens=torch.where(right[:, None], told, drawn))
        chosen = np.random.default_rng(0).integers(0, self.config.batch_size, (pairs, 2))
        return Buffer(chosen, np.zeros(pairs, bool), rollouts.select(torch.arange(pairs * group)), rewards, group_advantages(rewards))

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def _lap(self, laps: dict[str, float], name: str) -> None:
        """Note the seconds since the last lap and the peak memory of the phase."""
        now = self._now()
        laps[name], self._started = now - self._started, now
        if self.device.type == "cuda":
            laps[f"GiB {name}"] = torch.cuda.max_memory_allocated() / planner.GIB
            torch.cuda.reset_peak_memory_stats()
        elif self.allocated is not None:
            laps[f"GiB {name}"] = self.allocated.peak / planner.GIB
            self.allocated.reset_peak()


def compare(
    shapes: planner.Architecture, config: RunConfig, lengths: Lengths, laps: dict[str, float], assume: planner.Assumptions,
    reading: dict[str, int] | None = None,
) -> list[dict]:  # fmt: skip
    """Return a row per measured phase: seconds and GiB, their estimates, tokens/s and the utilisation of the peak (MFU).

    reading: the lengths of a reading, `Step.reading`, if images were read.
    """
    work = replace(
        planner.workload(config, shapes, assume), **asdict(lengths), longest=lengths.answer, batch=config.batch_size,
        micro_batches=min(lengths.waves, config.max_micro_batches), pairs_drawn=lengths.waves * config.pairs_per_wave,
        rows_per_pair=config.group_size,
        pairs_replayed=min(config.contributing_pairs, config.pairs_per_wave),
        num_classes=config.batch_size // config.batch_images_per_class, **(reading or {}),
    )  # fmt: skip
    seconds = planner.seconds_per_step(config, shapes, work, assume)
    done = planner.operations(config, shapes, work)
    memory = {phase: sum(sizes.values()) for phase, sizes in planner.memory_by_phase(config, shapes, work, assume).items()}
    phases = {  # the planner's seconds and operations
        "A": (("A",), ("tower forward",)),
        "B": (("B prefill", "B decode"), ("prefill", "decode")),
        "C replay": (("C replay",), ("replay forward", "replay backward")),
        "C reading": (("C reading",), ("reading forward", "reading backward")),
        "C tower": (("C tower",), ("tower backward",)),
        "C optimizer": (("C optimizer",), ()),
    }
    if "C optimizer" not in laps:  # an older measurement, with both in one
        phases["C tower"] = (("C tower", "C optimizer"), ("tower backward",))
        memory["C tower"] = max(memory["C tower"], memory["C optimizer"])
    rows = []
    for phase, (kinds, operations) in phases.items():
        if phase not in laps:
            continue
        rows.append({
            "phase": phase, "seconds": laps[phase], "estimated seconds": sum(seconds[kind] for kind in kinds),
            "GiB": laps.get(f"GiB {phase}"), "estimated GiB": memory[phase],
            "MFU": sum(done[name] for name in operations) / laps[phase] / (assume.peak_tflops * 1e12),
            "tokens/s": work.pairs_drawn * work.rows_per_pair * lengths.answer / laps["B"] if phase == "B" else None,
        })  # fmt: skip
    total = {name: sum(row[name] for row in rows) for name in ("seconds", "estimated seconds")}
    largest = {name: max((row[name] for row in rows if row[name]), default=None) for name in ("GiB", "estimated GiB")}
    return [*rows, {"phase": "step"} | total | largest]


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--supervisor", default="Qwen/Qwen3-VL-8B-Instruct", help="a model with built-in shapes, or a local folder")
    parser.add_argument("--prompt", type=int, default=700, help="tokens, two images included")
    parser.add_argument("--answer", type=int, default=900, help="tokens of each of the G answers")
    parser.add_argument("--waves", type=int, default=1, help="waves of rollouts; a run takes as many as fill its buffer")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--group-size", type=int, default=8, help="G, rollouts per pair")
    parser.add_argument("--contributing-pairs", type=int, default=8, help="K")
    parser.add_argument("--pairs-per-wave", type=int, default=16)
    parser.add_argument("--replay-rows", type=int, default=2, help="0: all rollouts of a pair at once")
    parser.add_argument("--recompute-layers", action="store_true", help="keep the inputs of the frozen layers alone in replay")
    parser.add_argument("--tower-images", type=int, default=16, help="images at a time in the tower's backward; 0: all, kept from A to C")
    parser.add_argument("--reading-images", type=int, default=8, help="images that are read at a time; 0: all of the step's")
    parser.add_argument("--no-reading", action="store_true", help="leave the reading of images out")
    parser.add_argument("--lora-rank", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=1, help="timed steps after a first one that warms up; the last is reported")
    parser.add_argument("--warm-up", type=int, default=0, metavar="TOKENS", help="of answers while warming up; 0: as later")
    parser.add_argument("--cpu", action="store_true", help="on the CPU what a GPU would compute, in bf16")
    parser.add_argument("--weights-in", type=Path, metavar="FOLDER", help="with --cpu: map the frozen weights from files there, not memory")
    parser.add_argument("--tiny", action="store_true", help="a toy model on the CPU")
    parser.add_argument("--output", type=Path, help="write the result as JSON")
    return parser


def _card(device: torch.device) -> planner.Assumptions:
    """Return the named card that a GPU is like, by its memory."""
    if device.type != "cuda":
        return planner.ASSUMED
    return planner.card_of(torch.cuda.get_device_properties(device).total_memory / planner.GIB)


SETTINGS = (
    "batch_size", "group_size", "contributing_pairs", "pairs_per_wave", "replay_rows", "lora_rank", "recompute_layers", "tower_images",
    "reading_images",
)  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> list[dict]:
    """Run the benchmark and return its rows, one per phase."""
    options = make_parser().parse_args(arguments)
    device = torch.device("cpu" if options.tiny or options.cpu else "cuda")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit("error: no CUDA GPU was found; --cpu computes the same on the CPU, --tiny a toy")
    if options.weights_in and not (options.cpu and options.weights_in.is_dir()):
        raise SystemExit("error: --weights-in takes an existing folder, and --cpu beside it")
    changes = {name: getattr(options, name) for name in SETTINGS}
    shapes, lengths = planner.architecture(options.supervisor), Lengths(options.prompt, options.answer, options.waves)
    if options.tiny:
        shapes, lengths = TINY[shapes.family], replace(lengths, prompt=40, answer=22)
        changes |= {"image_size": 48, "embedding_dim": 16, "batch_size": 8, "pairs_per_wave": 2, "contributing_pairs": 2, "group_size": 4}
    changes |= {"reading_signal": "none" if options.no_reading else "contrast"}
    changes = {"supervisor": options.supervisor, "embedding_dim": shapes.hidden} | changes
    config = make_config("paper", "cub200", "saga_pf", 0, max_new_tokens=lengths.answer, **changes)
    assume, dtype, allocated = _card(device), torch.float32 if options.tiny and not options.cpu else torch.bfloat16, None
    with ExitStack() as stack:
        if options.cpu:
            peak, reading = rates()
            assume = replace(assume, peak_tflops=peak, bandwidth_tb=reading, context_gib=0.0, fragmentation=0.0)
            assume = replace(assume, kernel_us=0.0, launches=0.0, sampling_ns=0.0)
            stack.enter_context(gpu_path())
            allocated = stack.enter_context(Allocated())
        with OnDisk(options.weights_in) if options.weights_in else nullcontext():
            step = Step(shapes, config, lengths, device, dtype, allocated)
        laps = step.run(options.warm_up if options.repeats else 0)
        for _ in range(options.repeats):
            laps = step.run()
    rows = compare(shapes, config, lengths, laps, assume, step.reading)
    wave = f"{config.pairs_per_wave} × {config.group_size}"
    print(f"{shapes.name}, prompt {lengths.prompt}, answer {lengths.answer} tokens, {lengths.waves} wave(s) of {wave}")
    columns = ["phase", "seconds", "estimated seconds", "GiB", "estimated GiB", "MFU", "tokens/s"]
    print(pd.DataFrame(rows)[columns].astype({"GiB": float}).to_string(index=False, na_rep="–", float_format="{:.3g}".format))
    if options.output:
        machine = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} thread(s)"
        write_json(options.output, {
            "machine": machine, "frozen weights on disk": options.weights_in is not None, "torch": torch.__version__,
            "assumptions": asdict(assume), "shapes": asdict(shapes), "config": config.to_dict(), **asdict(lengths), "reading": step.reading,
            "L_KL": step.loss_kl, "phases": rows,
        })  # fmt: skip
    return rows


if __name__ == "__main__":
    main()
