"""Tests of what only a GPU shows: its kernels, its precision, its memory. One at a time, because they share a card and measure it.

    SAGA_GPU_TESTS=1 python -m pytest tests/gpu       on a GPU; ./run_all.sh test does it, with a reason where there is none
    SAGA_GPU_TESTS=cpu python -m pytest tests/gpu     on a CPU that computes as a GPU would (benchmarks/without_gpu.py), at toy size
"""

import os
import sys
from contextlib import ExitStack

import pytest

from saga_lib.common.paths import REPOSITORY

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # before the first product: with it, sums repeat bit by bit
sys.path.append(str(REPOSITORY / "benchmarks"))


@pytest.fixture(scope="session", autouse=True)
def device():
    """The GPU, or the CPU in its place; every test here is skipped where neither is asked for."""
    import torch

    wanted = os.environ.get("SAGA_GPU_TESTS", "")
    if wanted not in ("1", "cpu"):
        pytest.skip("needs a GPU and SAGA_GPU_TESTS=1, or SAGA_GPU_TESTS=cpu: a CPU that computes as one")
    if wanted == "1" and not torch.cuda.is_available():
        pytest.skip("no CUDA GPU was found")
    if wanted == "1" and "PYTEST_XDIST_WORKER" in os.environ:
        pytest.skip("tests on a GPU run one at a time: leave -n out")
    return torch.device("cpu" if wanted == "cpu" else "cuda")


@pytest.fixture(scope="session")
def on_cpu(device):
    return device.type == "cpu"


@pytest.fixture(scope="session", autouse=True)
def computing(device):
    """Packages that are missing are stood in for; a CPU computes as a GPU would."""
    from stand_ins import stand_ins
    from without_gpu import as_on_a_gpu

    with ExitStack() as stack:
        stack.enter_context(stand_ins())
        if device.type == "cpu":
            stack.enter_context(as_on_a_gpu())
        yield


@pytest.fixture(scope="session", params=["qwen3_vl", "internvl"])
def tiny_checkpoint(request, device, tmp_path_factory):
    """A tiny untrained supervisor of each family, whose answers are far from certain."""
    from tiny import build_tiny_checkpoint

    return build_tiny_checkpoint(tmp_path_factory.mktemp(request.param), request.param)
