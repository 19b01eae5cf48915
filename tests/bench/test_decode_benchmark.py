"""The benchmark of decoding runs, as a toy, and all sides draw the same tokens."""

import importlib
import json

import pytest

from saga_lib.common.paths import REPOSITORY


@pytest.fixture
def decode(monkeypatch):
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
    return importlib.import_module("decode")


@pytest.mark.parametrize("model", ["Qwen/Qwen3-VL-8B-Instruct", "OpenGVLab/InternVL3_5-8B-HF"])
def test_the_toy_times_every_side_and_they_agree(model, decode, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(decode.torch.cuda, "is_available", lambda: False)
    toy = ["--tiny", "--supervisor", model]
    rows = decode.main([*toy, "--output", str(tmp_path / "decode.json")])
    assert [row["side"] for row in rows] == ["generate", "growing", "fixed"]
    assert all(row["seconds"] > 0 and row["tokens/s"] > 0 and row["same greedy tokens"] == 1 for row in rows)
    written = json.loads((tmp_path / "decode.json").read_text())
    assert written["sides"] == rows and written["shapes"]["family"] == ("internvl" if "Intern" in model else "qwen3_vl")
    assert "same greedy tokens" in capsys.readouterr().out
    assert [row["side"] for row in decode.main([*toy, "--skip", "generate,fixed"])] == ["growing"]
    with pytest.raises(SystemExit, match="no CUDA GPU was found"):
        decode.main([])
