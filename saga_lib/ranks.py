"""One run on several GPUs of a node: who computes what, and how the shares come together.

Each rank is a process with a GPU (`torchrun`, or `saga_study`'s `--gpus-per-run`) and the same models; all draw the same batches and pairs
from the same seeds. What costs time is shared out: images through the tower, pairs in rollouts and replay. The rest every rank computes
alike from the gathered parts, so that pooler and metric loss see the whole batch: the numbers are those of one process up to rounding.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from saga_lib.common.errors import SagaError


def join() -> None:
    """Meet the other ranks where a launcher such as torchrun started this process as one of several; else do nothing."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or dist.is_initialized():
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")


def size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if size() > 1 else 0


def check(batch_size: int, pairs_per_wave: int, top_p: float) -> None:
    """Raise `SagaError` for settings of a run that cannot be shared out: without a nucleus (top_p 1), one process alone can draw."""
    if batch_size % size() or pairs_per_wave % size() or (size() > 1 and top_p == 1):
        raise SagaError(f"a run on {size()} GPUs needs a batch_size and pairs_per_wave that {size()} divides, and top_p below 1")


def share(total: int) -> slice:
    """Return which of `total` items are this rank's: shares follow each other in order of the ranks."""
    return slice(total * rank() // size(), total * (rank() + 1) // size())


def gathered(own: Tensor) -> Tensor:
    """Return the shares (n, ...) of all ranks one after the other; n may differ. No gradient passes."""
    if size() == 1:
        return own
    counts = _counts(len(own), own.device)
    padded = torch.cat([own, own.new_zeros(max(counts) - len(own), *own.shape[1:])]).contiguous()
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


def gathered_list(own: list) -> list:
    """Return the lists of all ranks one after the other."""
    parts = [own] * size()
    if size() > 1:
        dist.all_gather_object(parts, own)
    return [item for part in parts for item in part]


def summed(own: Sequence[Tensor]) -> list[Tensor]:
    """Return the sums over all ranks of tensors that each of them has."""
    return [_reduced(tensor, dist.ReduceOp.SUM) if size() > 1 else tensor for tensor in own]


def gathered_gradients(leaves: Sequence[Tensor], loss: float) -> tuple[list[Tensor], float]:
    """Return the gradients of leaves, 0 where none arrived, and the loss, each summed over the ranks' shares."""
    own = [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves]
    *grads, loss = summed([*own, torch.tensor(loss, dtype=torch.float64, device=own[0].device)])
    return grads, float(loss)


def gathered_maps(own: list[tuple[np.ndarray, Tensor]], merged: Tensor) -> list[tuple[np.ndarray, Tensor]]:
    """Return the (pair, ᾱ (2, Np)) of all ranks, those of one after the other; `merged` (N, Np, D) are the step's tokens."""
    if size() == 1:
        return own
    none = merged.new_zeros(0, 2, merged.shape[1], dtype=torch.promote_types(merged.dtype, torch.float32))
    maps = torch.cat([none, *(attention[None].to(none) for _, attention in own)])
    pairs = torch.tensor([pair.tolist() for pair, _ in own], dtype=torch.int64, device=maps.device).view(-1, 2)
    return list(zip(gathered(pairs).cpu().numpy(), gathered(maps), strict=True))


def of_first(own: Tensor) -> Tensor:
    """Return the first rank's values of what all computed from the same numbers: rounding may differ, weights and draws must not."""
    if size() > 1:
        dist.broadcast(own, 0)
    return own


def sync_gradients(shared: Iterable[nn.Parameter], alike: Iterable[nn.Parameter]) -> None:
    """Give all ranks the same gradients.

    shared: each rank has them for its share; they are added up, and those that no rank has stay away. alike: see `of_first`.
    """
    if size() == 1:
        return
    shared = [parameter for parameter in shared if parameter.requires_grad]
    has = torch.tensor([parameter.grad is not None for parameter in shared], device=shared[0].device, dtype=torch.int32)
    for parameter, known in zip(shared, _reduced(has, dist.ReduceOp.MAX).tolist(), strict=True):
        if known:
            parameter.grad = _reduced(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad, dist.ReduceOp.SUM)
    for parameter in alike:
        if parameter.grad is not None:
            of_first(parameter.grad)


class Draws:
    """Uniform numbers for rows that are shared out over the ranks: those that one process draws for all rows at once."""

    def __init__(self, generator: torch.Generator) -> None:
        self.generator, self.device = generator, generator.device

    def __call__(self, count: int) -> Tensor:
        """Return (count, 1) numbers in [0, 1) for the rows that this rank still has; the others ask at the same time."""
        counts = _counts(count, self.device) if size() > 1 else [count]
        drawn = torch.rand(sum(counts), 1, device=self.device, generator=self.generator)
        return drawn[sum(counts[: rank()]) :][:count]

    def finish(self) -> None:
        """Draw along, without rows of its own, until the other ranks have none left either."""
        while size() > 1 and (total := sum(_counts(0, self.device))):
            torch.rand(total, 1, device=self.device, generator=self.generator)


def _counts(own: int, device: torch.device) -> list[int]:
    counts = torch.tensor([own * (number == rank()) for number in range(size())], device=device)
    return _reduced(counts, dist.ReduceOp.SUM).tolist()


def _reduced(tensor: Tensor, how: dist.ReduceOp) -> Tensor:
    tensor = tensor.detach().clone().contiguous()
    dist.all_reduce(tensor, how)
    return tensor
