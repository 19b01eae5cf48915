"""What all tests share: no network, one thread, results in a temporary folder."""

import os

os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}  # before torch is imported
if os.path.exists("/dev/nvidiactl") and os.environ.get("SAGA_GPU_TESTS") != "1":  # only tests/gpu is for a GPU, and asks for it so
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"  # "" would mean that a user hid it

import json
import sys
import textwrap
from pathlib import Path

import fake_training
import pytest

from saga_lib.records import code_digest
from saga_study import paths, resolving

REPOSITORY = Path(__file__).resolve().parents[1]


LONGEST = (  # half a minute and more, the longest first
    "test_all_tables_and_figures_of_the_paper", "test_every_part_runs_at_toy_size_and_leaves_its_numbers[tests]",
    "test_code_that_computes_the_same_numbers_keeps_the_runs_of_a_study", "test_qwen3_vl_through_the_command_line_killed_and_resumed",
    "test_internvl_on_all_datasets", "test_resuming_keeps_the_audit_consistent", "test_interrupt_stops_a_notebook_and_its_kernel",
    "test_a_tiny_study_loses_nothing",
)  # fmt: skip


def pytest_collection_modifyitems(items):
    """Begin with the longest tests, which would be waited for if one process of several came to them last."""
    items.sort(key=lambda item: next((place for place, name in enumerate(LONGEST) if item.name.startswith(name)), len(LONGEST)))


@pytest.fixture(autouse=True)
def results(tmp_path, monkeypatch):
    """A results folder of the test's own."""
    folder = tmp_path / "results"
    monkeypatch.setenv("SAGA_RESULTS", str(folder))
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    return folder


@pytest.fixture
def notebooks(tmp_path, monkeypatch):
    """A folder of tiny notebooks in place of the study's own, also for child processes; see `write_notebook`."""

    folder = tmp_path / "notebooks"
    folder.mkdir()
    monkeypatch.setattr(paths, "NOTEBOOKS", folder)
    return folder


@pytest.fixture
def faked(tmp_path, notebooks, monkeypatch):
    """Training that takes no time (tests/fake_training.py), here and in child processes; returns a function that
    sets what a method does: `faked(pa="crash")`.
    """
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(
        textwrap.dedent(f"""
        import pathlib, sys
        import fake_training
        from saga_study import paths
        from saga_study.runs import fork_server
        fork_server.MODULES = ()  # nothing here needs them
        fake_training.install(sys.modules)
        paths.NOTEBOOKS = pathlib.Path({str(notebooks)!r})
        """)
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, (site, REPOSITORY, REPOSITORY / "tests"))))
    monkeypatch.setitem(sys.modules, "saga_lib.training", fake_training)
    monkeypatch.setattr(resolving, "run_inputs", fake_training.run_inputs)
    code_digest.cache_clear()  # child processes take it afresh, and the tree may have been edited since
    monkeypatch.delenv("FAKE_TRAINING", raising=False)
    return lambda **behaviours: monkeypatch.setenv("FAKE_TRAINING", json.dumps(behaviours))


@pytest.fixture
def write_notebook(notebooks):
    """Return a function that writes a notebook: its parameters cell (None: untagged) and further cells."""

    def write(name, parameters='STUDY: str = "by-hand"\nPROFILE: str = "miniature"', *cells):
        sources = [("PROFILE = 1" if parameters is None else parameters, [] if parameters is None else ["parameters"])]
        content = {
            "cells": [
                {
                    "cell_type": "code", "execution_count": None, "id": f"cell-{number}", "metadata": {"tags": tags},
                    "outputs": [], "source": source,
                }
                for number, (source, tags) in enumerate([*sources, *((cell, []) for cell in cells)])
            ],
            "metadata": {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}},
            "nbformat": 4, "nbformat_minor": 5,
        }  # fmt: skip
        path = notebooks / f"{name}.ipynb"
        path.write_text(json.dumps(content))
        return path

    return write


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """A tiny untrained supervisor as a Hugging Face directory."""
    from tiny import build_tiny_checkpoint

    return build_tiny_checkpoint(tmp_path_factory.mktemp("tiny_supervisor"))


@pytest.fixture(scope="module")
def loaded(checkpoint):
    """Its tower and frozen supervisor in float64."""
    import torch
    from tiny import IMAGE_SIZE

    from saga_lib.families.loading import load_supervisor

    return load_supervisor(checkpoint, IMAGE_SIZE, dtype=torch.float64)


@pytest.fixture(scope="module")
def supervisor(loaded):
    return loaded[1]


@pytest.fixture
def scripted(monkeypatch):
    """Answers of a made-up supervisor: "shape" tells classes apart, "look" repeats it, "light" is a coin, "size" misleads."""

    import numpy as np

    from saga_study.assessment import VerdictReport
    from saga_study.own_images import readiness

    def naming(differences):
        return json.dumps({"differences": differences, "same_toy": "no"})

    def assess(tower, supervisor, question, pairs, sampling, *args):
        rng, texts = np.random.default_rng(len(pairs.rows)), []
        for same in pairs.same_class:
            shape = same == (rng.uniform() < 0.9)
            for _ in range(sampling.group_size):
                if question.prompt != "structured":
                    texts.append(naming("shape of the toy, light" if rng.uniform() < 0.5 else "toy look, size"))
                    continue
                agrees = {"toy shape": shape, "toy look": shape, "light": rng.uniform() < 0.5, "size": not same}
                said = {a.name: "same" if agrees[a.name] else "different" for a in question.vocabulary.attributes}
                texts.append(json.dumps({"item_1": {}, "item_2": {}, "differences": said, "same_toy": "yes"}))
        return VerdictReport(pairs.same_class, np.full(len(pairs.rows), 0.5), 1.0, 0.0, texts, 10.0, 0.1)

    monkeypatch.setattr(readiness, "assess_verdicts", assess)
