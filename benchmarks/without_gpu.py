"""What lets a full-size model with random weights be measured where there is no GPU: a CPU that computes what a GPU would.

`gpu_path` takes the code's GPU path (bf16 autocast over float32 master weights, decoding in fixed buffers, keys repeated
where a mask is given); kernels that a GPU fuses are fused on a CPU too. `Allocated` counts the bytes of tensors as they
come and go. So operations, types and memory are those of a GPU; seconds are not, and `rates` says what this CPU can do.
`as_on_a_gpu` makes whole runs compute so. `OnDisk` is for models that a CPU's memory does not hold.
"""

from __future__ import annotations

import atexit
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from unittest.mock import patch
from weakref import finalize

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from saga_lib import encoder, towers
from saga_lib.supervisor import attention, rollouts
from saga_lib.supervisor.decoding import FixedDecoder


class Allocated(TorchDispatchMode):
    """Bytes of all tensors made while active, now and at their peak; what a kernel needs within itself is not seen."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def reset_peak(self) -> None:
        self.peak = self.now

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # noqa: ANN001, ANN204
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.lift_fresh.default:  # data of Python or numpy, which a GPU would get a copy of
            return result
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        place, size = storage._cdata, storage.nbytes()
        if place in self._known or not size:
            return
        self._known.add(place)
        self.now += size
        self.peak = max(self.peak, self.now)
        finalize(storage, self._forget, place, size).atexit = False

    def _forget(self, place: int, size: int) -> None:
        self._known.discard(place)
        self.now -= size


class OnDisk(TorchDispatchMode):
    """While active, weights in bf16 live in files of a folder, mapped into memory: as much of them is there as there is room for.

    So a model that is larger than the memory can be computed, slowly. The files go with the process.
    """

    def __init__(self, folder: Path, smallest: int = 2**20) -> None:
        super().__init__()
        self._files, self._smallest, self._count = TemporaryDirectory(dir=folder), smallest, 0
        atexit.register(self._files.cleanup)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # noqa: ANN001, ANN204
        result = func(*args, **(kwargs or {}))
        is_weight = func is torch.ops.aten.empty.memory_format and result.dtype == torch.bfloat16
        if not is_weight or result.numel() < self._smallest:
            return result
        self._count += 1
        file = Path(self._files.name) / str(self._count)
        return torch.from_file(str(file), shared=True, size=result.numel(), dtype=result.dtype).view(result.shape)


@contextmanager
def gpu_path() -> Iterator[None]:
    """Within, models compute on a CPU as they would on a GPU: bf16 autocast, and attention and layer norms as there."""
    layer_norm = torch.nn.functional.layer_norm

    def float32_layer_norm(tensor: torch.Tensor, *args, **kwargs) -> torch.Tensor:  # noqa: ANN002, ANN003
        """Autocast computes layer norms in float32 on a GPU, but not on a CPU."""
        return layer_norm(tensor.float() if torch.is_autocast_enabled("cpu") else tensor, *args, **kwargs)

    def bf16(device: torch.device) -> torch.autocast:
        return torch.autocast(device.type, torch.bfloat16)

    with (
        patch.object(towers, "autocast", bf16), patch.object(encoder, "autocast", bf16),
        patch.object(attention, "spares_repeats", lambda device: False),
        patch.object(torch.nn.functional, "layer_norm", float32_layer_norm),
    ):  # fmt: skip
        yield


@contextmanager
def played_graphs() -> Iterator[None]:
    """Within, decoding in fixed buffers takes the way of CUDA graphs: what was recorded is computed again, at the same addresses."""

    def capture(self: FixedDecoder, ids: torch.Tensor, places: torch.Tensor, span: int) -> tuple:
        ids, places = ids.clone(), places.clone()
        hidden = self.forward(ids, places, span)
        return SimpleNamespace(replay=lambda: hidden.copy_(self.forward(ids, places, span))), ids, places, hidden

    with patch.object(FixedDecoder, "_capture", capture), patch.object(rollouts, "uses_graphs", lambda device: True):
        yield


@contextmanager
def as_on_a_gpu() -> Iterator[None]:
    """Within, whole runs take a GPU's path on a CPU: `gpu_path`, language models in bf16, answers drawn by played graphs."""
    from saga_lib import reading, step, training

    load = training.load_supervisor

    def in_bf16(source: str, image_size: int, device: torch.device, dtype: torch.dtype, revision: str | None) -> tuple:
        return load(source, image_size, device, torch.bfloat16, revision)

    def in_fixed_buffers(supervisor, prompt_ids, images, sampling, *generator):  # noqa: ANN001, ANN002, ANN202
        return rollouts.generate_rollouts(supervisor, prompt_ids, images, replace(sampling, fixed=True), *generator)

    with (
        gpu_path(), played_graphs(), patch.object(training, "load_supervisor", in_bf16),
        patch.object(step, "generate_rollouts", in_fixed_buffers), patch.object(reading, "generate_rollouts", in_fixed_buffers),
    ):  # fmt: skip
        yield


@cache
def rates() -> tuple[float, float]:
    """Return what this CPU reaches in bf16: TFLOP/s of a large product, TB/s of reading weights for a few rows. Measured once."""

    def seconds(work: Callable[[], object], repeats: int = 6, enough: float = 5.0) -> float:
        laps: list[float] = []
        while len(laps) < repeats and sum(laps) < enough:  # a CPU without bf16 instructions needs half a minute for the product
            start = time.perf_counter()
            work()
            laps.append(time.perf_counter() - start)
        return min(laps)

    weight = torch.randn(12_288, 4096, dtype=torch.bfloat16)
    many, few = (torch.randn(rows, 4096, dtype=torch.bfloat16) for rows in (1024, 4))
    product = seconds(lambda: torch.nn.functional.linear(many, weight))
    reading = seconds(lambda: torch.nn.functional.linear(few, weight))
    return 2 * many.numel() * len(weight) / product / 1e12, weight.numel() * weight.element_size() / reading / 1e12
