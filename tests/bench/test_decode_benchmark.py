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


@pytest.mark.parametrize("family", ["qwen3_vl", "internvl"])
def test_images_of_a_prompt_are_where_the_stock_model_counts_them(family, decode):
    shapes = decode.TINY[family]
    wave = decode.Wave(shapes, 48, 1, 2, 40, decode.torch.device("cpu"))
    image, start = wave.supervisor.image_token_id, decode.vision_start(shapes.vocabulary)
    ids = wave.prompt_ids.tolist()
    before = [ids[n - 1] for n in range(1, len(ids)) if ids[n] == image and ids[n - 1] != image]
    assert before == [start, start] and ids.count(start) == 2 and start != image
    if family == "qwen3_vl":
        assert wave.model.config.vision_start_token_id == start
    assert decode.vision_start(151_936) == 151_652  # <|vision_start|> in Qwen's vocabulary


def test_a_gap_is_how_much_likelier_the_first_token_was(decode):
    wave = decode.Wave(decode.TINY["qwen3_vl"], 48, 2, 2, 40, decode.torch.device("cpu"))
    greedy = wave.ours(6, True, fixed=False)
    assert wave.gap(greedy, greedy) == 0
    other = greedy.clone()
    other[3, 2:] = (greedy[3, 2:] + 1) % 190
    ids = decode.torch.cat([wave.prompt_ids, greedy[3, :2]])[None]
    with decode.torch.no_grad():
        logits = wave.supervisor.head(wave.supervisor.forward_sequences(ids, wave.images[slice(2, 4)])[0, -1])
    gap = float(logits[greedy[3, 2]] - logits[other[3, 2]])
    assert gap > 0 and wave.gap(greedy, other) == pytest.approx(gap, abs=1e-4)
