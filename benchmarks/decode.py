"""Time the rollouts of one wave: ours in its three ways of decoding, and stock `generate`, in one process on the same model.

Shapes are real (planner.ARCHITECTURES or a local folder's config.json), weights random, nothing is downloaded. All sides
draw the same number of tokens from the same prompts and pixels, all rows in one batch; end-of-turn is never drawn. Greedy tokens of
a random model in bf16 part at near-ties: `gap` says by how many nats at most the first side's token was the likelier one.

    generate   stock transformers, num_return_sequences=G, its own cache: the prompt is prefilled for every row
    growing    ours, prompt prefilled once a pair, a cache that grows, kernels launched one by one
    fixed      ours in buffers of fixed size, kernels launched one by one
    graphs     the same replayed as CUDA graphs; on a GPU only

    python benchmarks/decode.py [--supervisor Qwen/Qwen3-VL-8B-Instruct] [--pairs 16] [--rollouts 8] [--prompt 480] [--answer 900]
    python benchmarks/decode.py --supervisor OpenGVLab/InternVL3_5-8B-HF
    python benchmarks/decode.py --cpu --supervisor Qwen/Qwen3-VL-2B-Instruct --pairs 1 --prompt 300 --answer 8   # in float32
    python benchmarks/decode.py --tiny        # a toy of the same family, also on the CPU, to see that it runs
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import torch
from paper_step import TINY, forced_prompt, vision_start
from torch import Tensor

from saga_lib.common.files import write_json
from saga_lib.families import family_module
from saga_lib.supervisor import attention
from saga_lib.supervisor.rollouts import Sampling, generate_rollouts
from saga_lib.towers import VisualTokens, autocast
from saga_study import planner

CHECKED = 16  # first tokens, drawn greedily, that all sides are compared by


class Wave:
    """A model, a prompt and the images of a wave's pairs, decoded by each side."""

    def __init__(self, shapes: planner.Architecture, image_size: int, pairs: int, group: int, prompt: int, device: torch.device) -> None:
        from transformers import AutoModelForImageTextToText

        family = family_module(shapes.family)
        self.group, self.device = group, device
        self.is_qwen = shapes.family == "qwen3_vl"  # takes patches and their grid, the other whole images
        special = {"vision_start_token_id": vision_start(shapes.vocabulary)} if self.is_qwen else {}
        torch.manual_seed(0)
        with device:
            self.model = AutoModelForImageTextToText.from_config(
                family.config_of(shapes, **special), dtype=torch.bfloat16 if device.type == "cuda" else torch.float32,
                attn_implementation={"text_config": attention.register(), "vision_config": "sdpa"},
            ).eval().requires_grad_(False)  # fmt: skip
        words = SimpleNamespace(eos_token_id=-1, decode=lambda ids, **_: "")  # -1: an answer never ends by itself
        side = image_size // shapes.patch // shapes.merge
        tower = SimpleNamespace(num_tokens=side**2, tokens_per_side=side)
        processor = SimpleNamespace(tokenizer=words, image_token_id=self.model.config.image_token_id)
        self.supervisor = family.SUPERVISOR(self.model, processor, tower)
        self.prompt_ids = forced_prompt(self.supervisor, prompt, shapes.vocabulary)
        shape = (2 * pairs, 3, image_size, image_size)
        if self.is_qwen:
            shape = (2 * pairs * shapes.patches(image_size), shapes.patch_values)
        self.vision = {"pixel_values": torch.randn(*shape, device=device, dtype=self.model.dtype)}
        if self.is_qwen:
            grid = torch.tensor([[1, side * shapes.merge, side * shapes.merge]], device=device)
            self.vision["image_grid_thw"] = grid.expand(2 * pairs, -1)
        self.pairs = pairs
        with torch.no_grad():
            seen = self.model.get_image_features(**self.vision)
        flat = (seen.pooler_output, *getattr(seen, "deepstack_features", ()))
        tokens = [torch.cat(list(part)) if isinstance(part, list | tuple) else part for part in flat]
        merged, *deepstack = (part.reshape(2 * pairs, side**2, -1) for part in tokens)
        self.images = VisualTokens(merged, tuple(deepstack))

    def stock(self, length: int, greedy: bool) -> Tensor:
        """Return tokens (R, T) of stock generate; at each prompt's end all of its G rows stand beside each other, as ours do."""
        ids = self.prompt_ids.expand(self.pairs, -1)
        options = {"do_sample": False} if greedy else {"do_sample": True, "temperature": 0.7, "top_p": 0.95, "top_k": 0}
        if self.is_qwen:
            options["mm_token_type_ids"] = (ids == self.supervisor.image_token_id).int()
        out = self.model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), **self.vision, num_return_sequences=1 if greedy else self.group,
            min_new_tokens=length, max_new_tokens=length, eos_token_id=None, pad_token_id=0,
            suppress_tokens=[self.supervisor.image_token_id], **options,
        )[:, ids.shape[1] :]  # fmt: skip
        return out.repeat_interleave(self.group, 0) if greedy else out  # greedy rows of a prompt are alike

    def ours(self, length: int, greedy: bool, fixed: bool) -> Tensor:
        with autocast(self.device):
            sampling = Sampling(self.group, length, temperature=0.0 if greedy else 0.7, fixed=fixed)
            return generate_rollouts(self.supervisor, self.prompt_ids, self.images, sampling).tokens

    @torch.no_grad()
    def gap(self, reference: Tensor, other: Tensor) -> float:
        """Return by how many nats the reference's token is the likelier one where greedy rows (R, T) first differ, at most.

        Near 0 it was a tie that rounding decides; 0 if no row differs.
        """
        start, worst = len(self.prompt_ids) - 1, 0.0
        for row in (reference != other).any(1).nonzero()[:, 0].tolist():
            first = int((reference[row] != other[row]).int().argmax())
            pair = row // self.group
            ids = torch.cat([self.prompt_ids, reference[row, :first]])[None]
            with autocast(self.device):
                hidden = self.supervisor.forward_sequences(ids, self.images[slice(2 * pair, 2 * pair + 2)])
                log_p = self.supervisor.head(hidden[0, start + first]).float().log_softmax(-1)
            worst = max(worst, float(log_p[reference[row, first]] - log_p[other[row, first]]))
        return worst


@contextmanager
def cuda_graphs(wanted: bool) -> Iterator[None]:
    before = os.environ.get("SAGA_CUDA_GRAPHS")
    os.environ["SAGA_CUDA_GRAPHS"] = str(int(wanted))
    try:
        yield
    finally:
        os.environ.pop("SAGA_CUDA_GRAPHS") if before is None else os.environ.update(SAGA_CUDA_GRAPHS=before)


def measure(work: Callable[[], object], device: torch.device, repeats: int) -> tuple[float, float | None]:
    """Return the median seconds of some repeats after a warm-up, and on a GPU the peak GiB."""
    seconds = []
    for repeat in range(repeats + 1):
        if device.type == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        if repeat:
            seconds.append(time.perf_counter() - start)
    return sorted(seconds)[len(seconds) // 2], torch.cuda.max_memory_allocated() / planner.GIB if device.type == "cuda" else None


def main(arguments: Sequence[str] | None = None) -> list[dict]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--supervisor", default="Qwen/Qwen3-VL-8B-Instruct", help="a model with built-in shapes, or a local folder")
    parser.add_argument("--pairs", type=int, default=16, help="pairs of a wave")
    parser.add_argument("--rollouts", type=int, default=8, help="G, rollouts per pair")
    parser.add_argument("--prompt", type=int, default=480, help="tokens, two images included")
    parser.add_argument("--answer", type=int, default=900, help="tokens of each answer")
    parser.add_argument("--repeats", type=int, default=1, help="timed repetitions after one that warms up; the median is reported")
    parser.add_argument("--skip", default="", help="sides to leave out, e.g. generate,growing")
    parser.add_argument("--cpu", action="store_true", help="on the CPU, in float32: tokens can be compared, seconds are not a GPU's")
    parser.add_argument("--tiny", action="store_true", help="a toy model of the same family, also on the CPU")
    parser.add_argument("--output", type=Path, help="write the result as JSON")
    options = parser.parse_args(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() and not options.cpu else "cpu")
    if device.type == "cpu" and not (options.tiny or options.cpu):
        raise SystemExit("error: no CUDA GPU was found; --cpu decodes on the CPU, --tiny a toy")
    shapes = planner.architecture(options.supervisor)
    image_size, prompt, answer, pairs, group = 48, 40, 24, 2, 4
    if options.tiny:
        shapes = TINY[shapes.family]
    else:
        image_size = 224
        prompt, answer, pairs, group = options.prompt, options.answer, options.pairs, options.rollouts
    wave = Wave(shapes, image_size, pairs, group, prompt, device)
    sides: dict[str, tuple[Callable[[int, bool], Tensor], bool]] = {
        "generate": (wave.stock, False),
        "growing": (lambda length, greedy: wave.ours(length, greedy, fixed=False), False),
        "fixed": (lambda length, greedy: wave.ours(length, greedy, fixed=True), False),
        "graphs": (lambda length, greedy: wave.ours(length, greedy, fixed=True), True),
    }
    skipped = {*options.skip.split(","), *(["graphs"] if device.type == "cpu" else [])}
    rows: list[dict] = []
    reference = None
    for name, (decode, graphs) in sides.items():
        if name in skipped:
            continue
        with cuda_graphs(graphs):
            greedy = decode(min(CHECKED, answer), True)
            reference = greedy if reference is None else reference
            seconds, gib = measure(lambda decode=decode: decode(answer, False), device, options.repeats)
        rows.append({
            "side": name, "seconds": seconds, "tokens/s": pairs * group * answer / seconds, "ms a step": 1e3 * seconds / answer, "GiB": gib,
            "ratio": rows[0]["seconds"] / seconds if rows else 1.0, "same greedy tokens": float((greedy == reference).float().mean()),
            "gap": wave.gap(reference, greedy),
        })  # fmt: skip
    machine = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} thread(s)"
    print(f"{shapes.name} on {machine}: {pairs} pairs × {group} answers of {answer} tokens, prompt {prompt}")
    print(pd.DataFrame(rows).astype({"GiB": float}).to_string(index=False, na_rep="–", float_format="{:.3g}".format))
    if options.output:
        write_json(options.output, {
            "machine": machine, "torch": torch.__version__, "shapes": asdict(shapes), "pairs": pairs, "rollouts": group, "prompt": prompt,
            "answer": answer, "sides": rows,
        })  # fmt: skip
    return rows


if __name__ == "__main__":
    main()
