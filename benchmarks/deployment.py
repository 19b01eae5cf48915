"""What SAGA costs at inference: embedding with its attention pooler against the bare encoder's mean pooler, one tower for both.

Both encoders share one tower in one process and embed the same pixels in turns, so that the ratio is of the poolers and of
nothing else. Reported: milliseconds of one image (median), images per second in batches, the pooler alone on given tokens,
weights, and the memory that embedding a batch allocates at its peak.

    python benchmarks/deployment.py [--supervisor FOLDER | --encoder FOLDER] [--dim 128] [--batch 64] [--repeats 30] [--output FILE]
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
from saga_lib.encoder import Encoder
from saga_lib.families.loading import load_supervisor
from saga_study.methods import make_config
from saga_study.resolving import supervisor_source

SIDES = ("mean", "attention")


def seconds(work: Callable[[], object], device: torch.device) -> float:
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def in_turns(work: dict[str, Callable[[], object]], repeats: int, device: torch.device) -> dict[str, float]:
    """Return the median seconds of each side; the sides alternate, the first three rounds warm up."""
    times: dict[str, list[float]] = {name: [] for name in work}
    for repeat in range(repeats + 3):
        for name in sorted(work, reverse=bool(repeat % 2)):
            spent = seconds(work[name], device)
            if repeat >= 3:
                times[name].append(spent)
    return {name: float(np.median(values)) for name, values in times.items()}


def peak_mib(work: Callable[[], object], device: torch.device) -> float:
    """Return the largest memory (MiB) that tensors made by `work` hold at a time."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    held = highest = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":  # a tensor made (bytes > 0) or freed
            held += event.nbytes()
            highest = max(highest, held)
    return highest / 2**20


def load(args: argparse.Namespace) -> dict[str, Encoder]:
    """Return one encoder per pooler over one tower."""
    if args.encoder:
        tower = Encoder.from_pretrained(args.encoder).tower
    else:
        config = make_config("miniature", "miniature_birds", "pf", 0, supervisor=args.supervisor)
        tower, _ = load_supervisor(supervisor_source(config), args.image_size or config.image_size)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return {name: Encoder(tower, name, args.dim).to(device).eval() for name in SIDES}


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--supervisor", default="miniature", help="folder or hub id whose tower is taken")
    parser.add_argument("--encoder", type=Path, help="saved encoder whose tower is taken instead")
    parser.add_argument("--image-size", type=int, help="pixels; that of the miniature world by default")
    parser.add_argument("--dim", type=int, default=128, help="D_e of both poolers")
    parser.add_argument("--batch", type=int, default=64, help="images per batch of the throughput")
    parser.add_argument("--repeats", type=int, default=30, help="timed repetitions; the median is reported")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--output", type=Path, help="write the result as JSON")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    encoders = load(args)
    tower, device = encoders["mean"].tower, encoders["mean"].device
    pixels = torch.randn(args.batch, *_pixel_shape(tower), device=device)
    tokens = tower(pixels).merged
    measured = {
        "one_image_ms": {n: 1000 * s for n, s in in_turns({n: lambda e=e: e(pixels[:1]) for n, e in encoders.items()},
                                                           args.repeats, device).items()},
        "batch_images_per_second": {n: args.batch / s for n, s in in_turns({n: lambda e=e: e(pixels) for n, e in encoders.items()},
                                                                           args.repeats, device).items()},
        "pooler_ms_per_batch": {n: 1000 * s for n, s in in_turns({n: lambda e=e: e.pooler(tokens) for n, e in encoders.items()},
                                                                 args.repeats, device).items()},
        "weights_mib": {n: sum(p.numel() * p.element_size() for p in e.parameters()) / 2**20 for n, e in encoders.items()},
        "peak_mib_of_a_batch": {n: peak_mib(lambda e=e: e(pixels), device) for n, e in encoders.items()},
    }  # fmt: skip
    machine = torch.cuda.get_device_name() if device.type == "cuda" else f"{platform.processor() or platform.machine()}"
    result: dict = {"machine": f"{machine}, {args.threads} thread(s), torch {torch.__version__}", "batch": args.batch, "dim": args.dim,
                    "tokens_per_image": tower.num_tokens, "width": tower.width}  # fmt: skip
    print(f"{'':24} {'mean':>10} {'attention':>10} {'attention / mean':>17}")
    for what, sides in measured.items():
        result[what] = {**sides, "ratio": sides["attention"] / sides["mean"]}
        print(f"{what:24} {sides['mean']:10.3f} {sides['attention']:10.3f} {result[what]['ratio']:17.3f}")
    if args.output:
        write_json(args.output, result)


def _pixel_shape(tower: torch.nn.Module) -> tuple[int, ...]:
    from PIL import Image

    return tuple(tower.preprocess([Image.new("RGB", (tower.image_size, tower.image_size))]).shape[1:])


if __name__ == "__main__":
    main()
