"""Test classes as the encoders of finished runs see them: every encoder is loaded once and embeds each gallery once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from tqdm.auto import tqdm

from saga_lib.datasets.splits import Split
from saga_lib.records import Run
from saga_study.datasets.loading import run_benchmark
from saga_study.findings.few_shot import Protocol, RunsByMethod, Scores, accuracies, draw_protocol
from saga_study.findings.samples import by_seed, check_runs
from saga_study.findings.shift import Retrieved, chosen_images, part_of, retrieval_scores


@dataclass(frozen=True)
class Measured:
    """What encoders do on classes that they were not trained on, by the benchmark they were trained for."""

    runs: Mapping[str, RunsByMethod]
    protocols: dict[str, Protocol]
    scores: dict[str, Scores]  # with few labels, on test classes of the same benchmark
    retrieved: Retrieved  # on test classes of the same and of other benchmarks


def measure(
    runs: Mapping[str, RunsByMethod], shots: Sequence[int], draws: int, seed: int, targets: Sequence[str] = (), max_classes: int = 0
) -> Measured:  # fmt: skip
    """Embed test classes with the encoder of every run, by benchmark and method, and measure it with few labels and on other benchmarks.

    `targets`: the benchmarks that all encoders are tested on beside their own; none: those of the runs. There they meet at most
    `max_classes` test classes (0: all). Embeddings are not kept. Runs that do not belong in one table raise `SagaError`.
    """
    protocols, scores, retrieved = {}, {}, {}
    for dataset, by_method in runs.items():
        check_runs(by_method)
        config = next(iter(by_method.values()))[0].config
        places = dict.fromkeys([dataset, *(targets or runs)])
        splits = {name: run_benchmark(replace(config, dataset=name)).test for name in places}
        images = {name: chosen_images(name, split.labels, max_classes, seed) for name, split in splits.items()}
        galleries = {name: split if name == dataset else part_of(split, images[name]) for name, split in splits.items()}
        protocols[dataset] = draw_protocol(dataset, splits[dataset].labels, shots, draws, seed)
        scores[dataset], retrieved[dataset] = {}, {}
        for method, found in embedded(dataset, by_method, galleries):
            few = accuracies(found[dataset], protocols[dataset])
            _append(scores[dataset].setdefault(method, {}), few)
            for name in galleries:
                own = images[name] if name == dataset else slice(None)
                one = retrieval_scores(found[name][own], galleries[name].labels[own])
                _append(retrieved[dataset].setdefault(method, {}).setdefault(name, {}), one)
    return Measured(runs, protocols, scores, retrieved)


def _append(to: dict, found: Mapping[object, np.ndarray]) -> None:
    """Add what one more seed measured as another row."""
    for key, values in found.items():
        to[key] = np.concatenate([to[key], values[None]]) if key in to else values[None]


def embedded(dataset: str, runs: RunsByMethod, galleries: Mapping[str, Split]) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """Yield run by run, in order of the seed, its method and its embeddings (N, D) of each gallery, with a bar of progress."""
    import torch

    from saga_lib.datasets.pixels import PixelStore

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    stores: dict[str, PixelStore] = {}
    listed: list[tuple[str, Run]] = [(method, run) for method, group in runs.items() for run in by_seed(group)]
    for method, run in tqdm(listed, desc=f"encoders of {dataset}", unit="run", leave=False):
        encoder, found = run.encoder().to(device), {}
        for name, split in galleries.items():
            if name not in stores:
                stores[name] = PixelStore(split, encoder.tower)  # towers of one benchmark's runs prepare images alike
            found[name] = np.concatenate([encoder.embed_pixels(pixels) for pixels in stores[name].chunks(256)])
        yield method, found
