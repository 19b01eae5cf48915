"""The test command runs the tests of a GPU and of a cluster apart from the others, one at a time."""

from types import SimpleNamespace

import pytest

from saga_lib.common.errors import SagaError
from saga_study.study import checks


@pytest.fixture
def called(monkeypatch):
    """The commands that were started, with their environments; each ends well unless it is named in `failing`."""
    calls, failing = [], set()

    def run(command, cwd, env):
        calls.append((command, env))
        words = [*command, f"{command[-1].removeprefix('tests/')}-only" if "-rs" in command else ""]
        return SimpleNamespace(returncode=int(any(word in words for word in failing)))

    monkeypatch.setattr(checks.subprocess, "run", run)
    monkeypatch.delenv("SAGA_GPU_TESTS", raising=False)
    return SimpleNamespace(calls=calls, failing=failing)


def test_tests_of_a_gpu_and_of_a_cluster_run_by_themselves(called):
    with pytest.raises(SagaError, match="left no executed"):  # the notebooks, which were not run here
        checks.run_tests()
    tests = [(command, env) for command, env in called.calls if "pytest" in command]
    (units, their_environment), (cluster, clusters_environment), (gpu, environment) = tests
    ignored = {after for word, after in zip(units, units[1:], strict=False) if word == "--ignore"}
    assert "-n" in units and ignored == {"tests/gpu", "tests/cluster"} and "SAGA_GPU_TESTS" not in their_environment
    assert "-n" not in cluster and cluster[-2:] == ["-rs", "tests/cluster"] and "SAGA_GPU_TESTS" not in clusters_environment
    assert "-n" not in gpu and gpu[-1] == "tests/gpu" and environment["SAGA_GPU_TESTS"] == "1"


@pytest.mark.parametrize("word, title, started", [
    ("ruff", "style", 1), ("--ignore", "unit tests", 3), ("cluster-only", "tests on a cluster", 4), ("gpu-only", "tests on a GPU", 5),
])  # fmt: skip
def test_a_failure_ends_it(called, capsys, word, title, started):
    called.failing.add(word)
    assert checks.run_tests() == 1 and len(called.calls) == started
    assert f"error: {title} failed" in capsys.readouterr().err
