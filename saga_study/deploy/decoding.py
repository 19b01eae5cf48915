"""Image files to pixels, in worker processes that read ahead, so that the tower never waits for them."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from saga_lib.common.errors import SagaError
from saga_lib.common.images import upright_rgb
from saga_study.processes import count_cores, serve

Preprocess = Callable[[list[Image.Image]], object]  # a tower's
AHEAD = 3  # batches that each worker prepares before they are asked for
FEW = 128  # images up to which starting workers takes longer than they save


class Decoded(NamedTuple):
    """An image file: its SHA-256, its pixels (1, …) float32 or None, and the line that says why there are none, if that is no choice."""

    sha256: str
    pixels: np.ndarray | None
    problem: str = ""


class _Files:
    """Files by number, decoded where they are asked for: a dataset of torch's DataLoader."""

    def __init__(self, names: Sequence[str | Path], root: str, preprocess: Preprocess, known: Collection[str], hashed: bool) -> None:
        self.names, self.root, self.preprocess, self.known, self.hashed = names, root, preprocess, known, hashed

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, number: int) -> Decoded:
        path, sha256 = Path(self.root, self.names[number]), ""
        try:
            if self.hashed:
                with open(path, "rb") as file:
                    sha256 = hashlib.file_digest(file, "sha256").hexdigest()
                if sha256 in self.known:
                    return Decoded(sha256, None)
            # One by one, since a batch of undecimated photographs would not fit into memory. A numpy array crosses a pipe,
            # a tensor would take /dev/shm, of which containers have little.
            return Decoded(sha256, self.preprocess([upright_rgb(path)]).numpy())
        except SagaError as error:
            return Decoded(sha256, None, str(error))
        except OSError as error:
            return Decoded(sha256, None, f"image {path} cannot be read ({error.strerror or error})")


def decode(
    names: Sequence[str | Path], batches: Sequence[Sequence[int]], preprocess: Preprocess,
    workers: int | None = None, known: Collection[str] = (), hashed: bool = True, root: str = "",
) -> Iterator[list[Decoded]]:  # fmt: skip
    """Yield the images of each batch of numbers into `names` below `root`, decoded by `workers` processes.

    None: one worker per core; 0: this process. Files whose SHA-256 is `known` are not decoded; with `hashed` false none is asked for.
    """
    import multiprocessing

    import torch

    if workers is None:
        workers = max(1, count_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))) if sum(map(len, batches)) > FEW else 0
    several = {
        "prefetch_factor": AHEAD, "worker_init_fn": partial(_begin, os.getpid()),
        "multiprocessing_context": "fork" if "fork" in multiprocessing.get_all_start_methods() else None,
    } if workers else {}  # fmt: skip
    # A generator of its own: drawing from torch's would change what a notebook draws afterwards.
    yield from torch.utils.data.DataLoader(
        _Files(names, root, preprocess, known, hashed), batch_sampler=batches, collate_fn=list, num_workers=workers,
        generator=torch.Generator(), **several,
    )  # fmt: skip


def _begin(parent: int, _worker: int) -> None:
    serve(parent)  # Ctrl-C is the parent's to answer


def progress(total: int, what: str, unit: str, shown: bool = True):
    """Return a tqdm bar: live on a terminal, else a line a minute, for logs, once the work has taken a minute."""
    from tqdm import tqdm

    live = sys.stderr.isatty()
    slow = {} if live else {"mininterval": 60, "maxinterval": 60, "delay": 60, "ascii": True}
    return tqdm(total=total, desc=what, unit=unit, disable=not shown, **slow)
