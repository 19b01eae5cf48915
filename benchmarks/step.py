"""Time one SAGA step against a plain implementation, phase by phase, in one process on the same pairs.

Plain = what one would write first with stock transformers: `generate(num_return_sequences=G)` for each pair, then
the full sequence of every completion through the whole model, tower included, with whole logits. Ours = shared
prefix, one decode batch, shared-prefix replay, boundary tensors, chunked log-probs. Both sides generate the same
number of tokens (end-of-turn is suppressed) and replay identical completions; gradients are compared.

    python benchmarks/step.py [--pairs 8] [--rollouts 8] [--repeats 3] [--threads N] [--supervisor FOLDER] [--output FILE]
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from saga_lib.common.files import write_json
from saga_lib.losses import grpo_loss
from saga_lib.step import MicroBatch, tower_backward
from saga_lib.supervisor.replay import replay_log_probs
from saga_lib.supervisor.rollouts import Sampling, generate_rollouts
from saga_lib.training import Session
from saga_study.methods import make_config
from saga_study.resolving import open_session, supervisor_source


def timed(work: Callable[[], object], device: torch.device) -> tuple[float, object]:
    start = time.perf_counter()
    result = work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start, result


class Plain:
    """The stock model: no shared prefix, no cached tower, no chunking."""

    def __init__(self, session: Session) -> None:
        from transformers import AutoModelForImageTextToText

        self.model = AutoModelForImageTextToText.from_pretrained(supervisor_source(session.config), dtype=torch.float32)
        self.model.to(session.device).requires_grad_(False)
        self.model.model.visual.requires_grad_(True)
        self.prompt = session.prompt_ids
        self.side = session.encoder.tower.patches_per_side

    def inputs(self, pixels: torch.Tensor, ids: torch.Tensor) -> dict:
        """Stock inputs for rows `ids` (R, S), two images each: pixels (2R, patches, patch_dim)."""
        grid = torch.tensor([[1, self.side, self.side]], device=ids.device).expand(len(pixels), -1)
        kinds = (ids == self.model.config.image_token_id).int()
        return dict(input_ids=ids, pixel_values=pixels.flatten(0, 1), image_grid_thw=grid, mm_token_type_ids=kinds,
                    attention_mask=torch.ones_like(ids))  # fmt: skip

    def generate(self, pixels: torch.Tensor, group: int, length: int) -> torch.Tensor:
        parts = []
        for pair in pixels.view(-1, 2, *pixels.shape[1:]):
            inputs = self.inputs(pair, self.prompt[None])
            out = self.model.generate(
                **inputs, num_return_sequences=group, do_sample=True, temperature=0.7, top_p=0.95, top_k=0,
                min_new_tokens=length, max_new_tokens=length,
            )  # fmt: skip
            parts.append(out[:, len(self.prompt) :])
        return torch.cat(parts)

    def replay(self, pixels: torch.Tensor, completions: torch.Tensor, advantages: torch.Tensor, group: int) -> None:
        count = completions.numel()
        for p, pair in enumerate(pixels.view(-1, 2, *pixels.shape[1:])):
            rows = completions[p * group : (p + 1) * group]
            ids = torch.cat([self.prompt.expand(group, -1), rows], 1)
            logits = self.model(**self.inputs(pair.repeat(group, 1, 1), ids)).logits[:, len(self.prompt) - 1 : -1]
            log_probs = logits.float().log_softmax(-1).gather(-1, rows[..., None])[..., 0]
            weights = advantages[p * group : (p + 1) * group]
            grpo_loss(log_probs, weights, torch.ones_like(rows, dtype=torch.bool), count).backward()


class Ours:
    """The same work through saga_lib's phases."""

    def __init__(self, session: Session) -> None:
        self.session = session

    def generate(self, pixels: torch.Tensor, group: int, length: int) -> torch.Tensor:
        s = self.session
        eos, s.supervisor.eos_token_id = s.supervisor.eos_token_id, -1  # never ends: equal work on both sides
        try:
            with torch.no_grad():
                tokens = s.encoder.tower(pixels)
            return generate_rollouts(s.supervisor, s.prompt_ids, tokens, Sampling(group, length, draft=s.draft)).tokens
        finally:
            s.supervisor.eos_token_id = eos

    def replay(self, pixels: torch.Tensor, completions: torch.Tensor, advantages: torch.Tensor, group: int) -> None:
        s = self.session
        tokens = s.encoder.tower(pixels)
        boundary = tokens.boundary()
        mask = torch.ones_like(completions, dtype=torch.bool)
        log_probs, _ = replay_log_probs(s.supervisor, s.prompt_ids, boundary, completions, mask)
        grpo_loss(log_probs, advantages, mask).backward()
        batch = MicroBatch(np.arange(len(pixels)), np.arange(len(pixels)), tokens, torch.zeros_like(boundary.merged), 0.0,
                           None)  # fmt: skip
        grads = type(boundary)(boundary.merged.grad, tuple(t.grad for t in boundary.deepstack))
        tower_backward([batch], grads)


def tower_gradient(visual: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in visual.parameters()])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--supervisor", default="miniature", help="folder of a miniature supervisor of birds")
    parser.add_argument("--pairs", type=int, default=8, help="K, contributing pairs")
    parser.add_argument("--rollouts", type=int, default=8, help="G, rollouts per pair")
    parser.add_argument("--length", type=int, default=56, help="generated tokens per rollout")
    parser.add_argument("--repeats", type=int, default=3, help="timed repetitions; the median is reported")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--output", type=Path, help="write the result as JSON")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    session = open_session(make_config("miniature", "miniature_birds", "saga_pf", 0, supervisor=args.supervisor))
    plain, ours = Plain(session), Ours(session)
    pixels = session.train_pixels[np.arange(0, 2 * args.pairs * 10, 10)].to(session.device)
    advantages = torch.randn(args.pairs * args.rollouts, device=session.device)
    completions = ours.generate(pixels, args.rollouts, args.length)
    seconds: dict[str, dict[str, list[float]]] = {"rollouts": {}, "replay": {}}
    for repeat in range(args.repeats + 1):
        for name, side, visual in (("plain", plain, plain.model.model.visual), ("ours", ours, session.encoder.tower.visual)):
            visual.zero_grad()
            rollout_time, _ = timed(lambda side=side: side.generate(pixels, args.rollouts, args.length), session.device)
            replay_time, _ = timed(
                lambda side=side: side.replay(pixels, completions, advantages, args.rollouts), session.device
            )
            if repeat:  # the first round warms up
                seconds["rollouts"].setdefault(name, []).append(rollout_time)
                seconds["replay"].setdefault(name, []).append(replay_time)
    reference, gradient = tower_gradient(plain.model.model.visual), tower_gradient(session.encoder.tower.visual)
    difference = float((gradient - reference).norm() / reference.norm())
    result = {"machine": f"{platform.processor() or platform.machine()}, {args.threads} thread(s), torch {torch.__version__}",
              "pairs": args.pairs, "rollouts": args.rollouts, "length": args.length,
              "relative_gradient_difference": difference}  # fmt: skip
    print(f"{'phase':10} {'plain s':>9} {'ours s':>9} {'ratio':>7}")
    totals = {"plain": 0.0, "ours": 0.0}
    for phase, sides in seconds.items():
        median = {name: float(np.median(values)) for name, values in sides.items()}
        totals = {name: totals[name] + median[name] for name in totals}
        result[phase] = {**median, "ratio": median["plain"] / median["ours"]}
        print(f"{phase:10} {median['plain']:9.3f} {median['ours']:9.3f} {result[phase]['ratio']:7.2f}")
    result["total"] = {**totals, "ratio": totals["plain"] / totals["ours"]}
    print(f"{'total':10} {totals['plain']:9.3f} {totals['ours']:9.3f} {result['total']['ratio']:7.2f}")
    print(f"relative difference of the tower gradients: {difference:.1e}")
    if args.output:
        write_json(args.output, result)


if __name__ == "__main__":
    main()
