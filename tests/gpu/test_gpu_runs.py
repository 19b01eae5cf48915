"""A miniature SAGA run on a GPU trains, survives being killed, and leaves an encoder that gives its table's numbers."""

import json
import signal
from contextlib import ExitStack

import numpy as np
import pytest
import torch

from saga_lib.common.files import read_json
from saga_lib.encoder import Encoder
from saga_lib.retrieval import hits_at_1
from saga_study.resolving import resolve

TIMINGS = ("seconds", "tokens_per_second", "peak_gib")


@pytest.fixture(scope="module")
def miniature_run():
    import miniature_run

    return miniature_run


@pytest.fixture(scope="module")
def steps(on_cpu):
    return 6 if on_cpu else 20


@pytest.fixture(scope="module")
def whole(miniature_run, steps, on_cpu, tmp_path_factory):
    """The folder of a run that was left alone."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    miniature_run.train(folder, steps, on_cpu)
    return folder


def record(folder):
    """Return a run's metrics and evaluation without what depends on the clock."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    metrics = [{k: v for k, v in row.items() if not k.startswith(TIMINGS)} for row in rows]
    return metrics, {k: v for k, v in read_json(folder / "evaluation.json").items() if k != "seconds"}


def largest_difference(one, other):
    """Return how far two records differ at most, relative to the values; infinite where they do not have the same entries."""
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return max((largest_difference(one[key], other[key]) for key in one), default=0.0)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple) and len(one) == len(other):
        return max(map(largest_difference, one, other), default=0.0)
    if isinstance(one, str) and isinstance(other, str) and len(one) == len(other):  # hits
        return sum(a != b for a, b in zip(one, other, strict=True)) / max(1, len(one))
    if isinstance(one, float | int) and isinstance(other, float | int):
        return abs(one - other) / max(abs(one), abs(other), 1e-6)
    return np.inf


def test_differences_are_seen():
    assert largest_difference({"a": [1.0, "101"]}, {"a": [1.0, "101"]}) == 0
    assert largest_difference({"a": [1.0]}, {"a": [1.1]}) == pytest.approx(0.1 / 1.1)
    assert largest_difference({"a": "101"}, {"a": "100"}) == pytest.approx(1 / 3)
    assert largest_difference({"a": [1]}, {"a": [1, 2]}) == largest_difference({"a": 1}, {"b": 1}) == np.inf


def test_a_run_trains(whole, steps, on_cpu):
    metrics, evaluation = record(whole)
    assert [row["step"] for row in metrics] == list(range(1, steps + 1)) and evaluation["steps"] == steps
    assert all(np.isfinite(value) for row in metrics for name, value in row.items() if name.startswith(("loss", "grad")))
    assert 0 < evaluation["recall"]["1"] <= 1
    assert (whole / "audit.jsonl").is_file() and not (whole / "checkpoint").exists()
    contributing = [row for row in metrics if row["contributing_pairs"]]
    assert contributing and all(row["grad_lm"] > 0 and row["grad_kl"] > 0 and row["json_valid"] > 0.9 for row in contributing)
    if not on_cpu:
        assert len(contributing) > 0.7 * steps
        assert np.mean([row["loss_dml"] for row in metrics[-5:]]) < np.mean([row["loss_dml"] for row in metrics[:5]])


def test_a_killed_run_goes_on_with_the_same_numbers(whole, miniature_run, steps, on_cpu, tmp_path):
    """Those of the run that was left alone; where a GPU does not repeat even that one bit by bit, as close as it comes by itself."""
    killed = tmp_path / "killed"
    emulated = ["--cpu"] if on_cpu else []
    process = miniature_run.started(killed, "--steps", str(steps), "--kill-at", str(steps - 1), *emulated)
    assert process.wait(300) == -signal.SIGKILL, killed.with_suffix(".err").read_text()
    assert len((killed / "metrics.jsonl").read_text().splitlines()) == steps - 1 and not (killed / "evaluation.json").exists()
    last = (steps - 2) // miniature_run.CHECKPOINT_EVERY * miniature_run.CHECKPOINT_EVERY
    assert read_json(killed / "checkpoint" / "counters.json")["step"] == last < steps - 1, "steps must be taken again"
    miniature_run.train(killed, steps, on_cpu)
    difference, bound = largest_difference(record(whole), record(killed)), 0.0
    if difference:
        miniature_run.train(tmp_path / "again", steps, on_cpu)
        bound = 3 * largest_difference(record(whole), record(tmp_path / "again"))
    assert difference <= bound
    if not bound:
        weights = [(folder / "encoder" / "model.safetensors").read_bytes() for folder in (whole, killed)]
        assert weights[0] == weights[1]


def test_embed_reproduces_the_hits_of_the_table(whole, miniature_run, steps, on_cpu, device):
    """What a user computes from the saved encoder and the images, as they come, is what the run's evaluation says, bit for bit."""
    evaluation = read_json(whole / "evaluation.json")
    split = resolve(miniature_run.miniature_config(steps, on_cpu, audited=True)).benchmark.test
    with ExitStack() as stack:
        stack.enter_context(miniature_run.reproducible())
        encoder = Encoder.from_pretrained(whole / "encoder").to(device)
        embeddings = encoder.embed(split.images(range(len(split))))
    hits = "".join("1" if hit else "0" for hit in hits_at_1(embeddings, split.labels))
    assert hits == evaluation["hits_at_1"]
    assert hits.count("1") / len(hits) == pytest.approx(evaluation["recall"]["1"], abs=1e-12)
    with torch.no_grad():  # in float32 they are others: the precision of training is the one that counts
        exact = encoder(encoder.tower.preprocess(split.images(range(64))).to(device))[0].cpu().numpy()
    assert not np.array_equal(exact, embeddings[:64]) and np.abs(exact - embeddings[:64]).max() < 0.05
