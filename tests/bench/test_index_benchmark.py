"""The benchmark of indexes in shards, as a toy."""

import importlib
import json

import pytest

from saga_lib.common.paths import REPOSITORY

pytest.importorskip("faiss")


def test_the_toy_measures_every_part(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    index = importlib.import_module("index")
    monkeypatch.setattr(index, "PER_CLASS", 50)
    toy = ["--images", "9000", "--dim", "32", "--index", "IVF16,PQ8x4", "--queries", "50", "--jpegs", "4", "--threads", "1"]
    result = index.main([*toy, "--folder", str(tmp_path), "--output", str(tmp_path / "out.json")])
    assert json.loads((tmp_path / "out.json").read_text()) == result and [path.name for path in tmp_path.iterdir()] == ["out.json"]
    assert result["search"]["recall"] > 0.9 and result["search"]["queries_per_second"] > 0
    assert 12 <= result["search"]["index_bytes_per_image"] < 12 + 2 and result["search"]["shard_bytes_per_image"] > 4 * 32 + 32 + 30
    assert 0 < result["build"]["gib_before"] <= result["build"]["gib_at_most"] < 2
    assert all(result["embedding"][f"{workers}_workers"]["images_per_second"] > 0 for workers in (0, 1, 2))
