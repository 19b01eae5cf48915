"""What leaves the library: graphs that embed as the encoder does, and a model card that can be followed."""

import copy
import errno
import importlib.util
import os
import re

import numpy as np
import pytest
import torch
from tiny import IMAGE_SIZE, random_images
from torch import nn

from saga_lib.common.errors import SagaError
from saga_lib.encoder import Encoder
from saga_lib.families.loading import load_supervisor
from saga_lib.towers import Tower, VisualTokens
from saga_study.deploy import export
from saga_study.deploy.export import export_encoder, main

HAS_ONNX = all(importlib.util.find_spec(name) for name in export.FORMATS["onnx"])


@pytest.fixture(scope="module")
def encoder(checkpoint):
    torch.manual_seed(0)
    encoder = Encoder(load_supervisor(checkpoint, IMAGE_SIZE)[0], "attention", 16).eval()
    nn.init.normal_(encoder.pooler.query)  # far from uniform attention
    return encoder


def images(count):
    return random_images(count, seed=count, size=(70, 60))


# --------------------------------------------------------------------------------------------------- graphs


@pytest.mark.parametrize(("pooler", "dim"), [("attention", 16), ("mean", 0)])
def test_a_torch_graph_embeds_as_the_encoder_for_any_batch(encoder, pooler, dim, tmp_path):
    torch.manual_seed(1)
    encoder = Encoder(encoder.tower, pooler, dim).eval()
    made = export_encoder(encoder, tmp_path / "new" / "graph.pt2")
    assert made["input_shape"] == (None, 36, 192) and made["max_difference"] <= 1e-5
    assert made["embedding_dim"] == (dim or encoder.tower.width)
    graph = torch.export.load(tmp_path / "new" / "graph.pt2").module()
    for count in (1, 3, 9):
        embeddings = graph(encoder.tower.preprocess(images(count))).numpy()
        assert np.abs(embeddings - encoder.embed(images(count))).max() <= 1e-5
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["graph.pt2"]


@pytest.mark.skipif(not HAS_ONNX, reason="onnx, onnxscript and onnxruntime are not installed")
@pytest.mark.parametrize("files", [["graph.onnx"], ["graph.onnx", "graph.onnx.data"]])
def test_an_onnx_graph_embeds_as_the_encoder_for_any_batch(encoder, files, tmp_path, monkeypatch):
    import onnxruntime

    if len(files) == 2:
        monkeypatch.setattr(export, "ONNX_ONE_FILE", 0)
    made = export_encoder(encoder, tmp_path / "graph.onnx", "onnx")
    assert made["max_difference"] <= 1e-5 and sorted(p.name for p in tmp_path.iterdir()) == files
    session = onnxruntime.InferenceSession(str(tmp_path / "graph.onnx"), providers=["CPUExecutionProvider"])
    for count in (1, 3, 9):
        pixels = encoder.tower.preprocess(images(count)).numpy()
        [embeddings] = session.run(["embeddings"], {"pixels": pixels})
        assert np.abs(embeddings - encoder.embed(images(count))).max() <= 1e-5


def test_a_half_precision_encoder_is_exported_in_float32_and_kept(encoder, tmp_path):
    half = copy.deepcopy(encoder).bfloat16()
    made = export_encoder(half, tmp_path / "graph.pt2")
    assert made["max_difference"] <= 1e-5 and half.pooler.query.dtype == torch.bfloat16
    graph = torch.export.load(tmp_path / "graph.pt2").module()
    assert graph(encoder.tower.preprocess(images(2))).dtype == torch.float32


def test_a_graph_that_differs_is_not_written(encoder, tmp_path, monkeypatch):
    monkeypatch.setattr(export._Graph, "forward", lambda self, pixels: nn.functional.normalize(pixels.sum(1)[:, :16], dim=-1))
    with pytest.raises(SagaError, match="differs from the encoder by .* nothing was written"):
        export_encoder(encoder, tmp_path / "graph.pt2")
    assert not list(tmp_path.glob("*.pt2")) and not list(tmp_path.glob(".graph*"))


class OtherTower(Tower):
    """A tower of another family; `traceable` says whether exporters can follow it."""

    family, image_size, num_tokens, width = "other", 8, 4, 6

    def __init__(self, traceable=True):
        super().__init__()
        self.linear, self.traceable = nn.Linear(48, 6), traceable

    def preprocess(self, images):
        return torch.stack([torch.tensor(np.asarray(image), dtype=torch.float32).view(4, 48) / 255 for image in images])

    def forward(self, pixels):
        if not self.traceable and pixels.sum().item() < 0:
            pixels = -pixels
        return VisualTokens(self.linear(pixels))

    def config_dict(self):
        return {"family": self.family, "image_size": 8}


def test_towers_of_other_families_are_exported_as_they_are(tmp_path):
    assert export_encoder(Encoder(OtherTower(), "attention", 5), tmp_path / "graph.pt2")["embedding_dim"] == 5
    with pytest.raises(SagaError, match="a tower of family 'other' cannot be exported: ") as error:
        export_encoder(Encoder(OtherTower(traceable=False)), tmp_path / "not.pt2")
    assert "\n" not in str(error.value) and not (tmp_path / "not.pt2").exists()


def test_wrong_exports_are_one_line(encoder, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    for path, format, message in (
        ("a.onnx", "onxx", "unknown export format 'onxx': did you mean 'onnx'"),
        (".", "torch_export", "is no regular file; name a file"),
        ("file/graph.pt2", "torch_export", "cannot write .*graph.pt2"),
    ):
        with pytest.raises(SagaError, match=message) as error:
            export_encoder(encoder, tmp_path / path, format)
        assert "\n" not in str(error.value)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SagaError, match="needs onnx, onnxscript, onnxruntime: pip install onnx onnxscript onnxruntime"):
        export_encoder(encoder, tmp_path / "a.onnx", "onnx")


@pytest.mark.parametrize(
    ("name", "format", "wanted"),
    [
        ("a.pt2", None, "torch_export"), ("a.PT2", "torch_export", "torch_export"), ("a.onnx", None, "onnx"), ("a.b.ONNX", "onnx", "onnx"),
        ("a.onnx", "torch_export", r"a.onnx has suffix .onnx; the name of an export must end in .pt2 \(torch_export\)$"),
        ("a.pt2", "onnx", r"a.pt2 has suffix .pt2; .* must end in .onnx \(onnx\)$"),
        ("a.pt", None, r"suffix .pt; .* must end in .pt2 \(torch_export\) or .onnx \(onnx\)"),
        ("a", None, "has no suffix"), (".onnx", None, "has no suffix"), ("photo.jpg", "onnx", "suffix .jpg; .* must end in .onnx"),
        ("a.pt2", "", "unknown export format ''"), ("a.pt2", 3, "unknown export format 3"),
        ("folder.onnx", None, r"no regular file; name a file to write, such as .*folder.onnx/encoder.pt2"),
        ("folder.onnx", "onnx", r"no regular file; name a file to write, such as .*folder.onnx/encoder.onnx"),
    ],
)  # fmt: skip
def test_the_format_is_what_the_name_says(name, format, wanted, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    (tmp_path / "folder.onnx").mkdir()
    if wanted in export.FORMATS:
        assert export.check_target(tmp_path / name, format) == wanted
    else:
        with pytest.raises(SagaError, match=wanted) as error:
            export.check_target(tmp_path / name, format)
        assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["folder.onnx"], "checking leaves nothing behind"


def test_a_place_that_cannot_be_written_is_said_before_the_work(encoder, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "_write_torch", lambda *arguments: pytest.fail("it was exported"))
    (tmp_path / "file").write_text("")

    def read_only(*arguments, **options):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with pytest.raises(SagaError, match=r"cannot write .*file/a\.pt2"):
        export_encoder(encoder, tmp_path / "file" / "a.pt2")
    monkeypatch.setattr(export.tempfile, "TemporaryDirectory", read_only)
    with pytest.raises(SagaError, match=r"cannot write .*a\.pt2: Read-only file system"):
        export_encoder(encoder, tmp_path / "a.pt2")


def test_the_command_exports_a_saved_encoder(encoder, tmp_path, capsys):
    encoder.save_pretrained(tmp_path / "encoder")
    assert main([str(tmp_path / "encoder"), str(tmp_path / "graph.pt2")]) == 0
    assert "graph.pt2: torch_export" in capsys.readouterr().out and (tmp_path / "graph.pt2").is_file()
    for arguments, message in (
        ([tmp_path / "encoder" / "model.safetensors", tmp_path / "b.pt2"], f"did you mean {tmp_path / 'encoder'}?"),
        ([tmp_path, tmp_path / "b.pt2"], f"did you mean {tmp_path / 'encoder'}?"),
        ([tmp_path / "encoder", tmp_path / "b.pt"], "must end in .pt2"),
        ([tmp_path / "encoder", tmp_path / "b.pt2", "--format", "onxx"], "did you mean 'onnx'"),
        ([tmp_path / "encoder"], "required: file"),
    ):
        assert main([*map(str, arguments)]) == 2
        said = capsys.readouterr()
        assert message in said.err and said.err.count("\n") == 1 and not said.out


# ----------------------------------------------------------------------------------------------- model card


def test_the_model_card_says_what_is_known_and_how_to_load(encoder, tmp_path, monkeypatch):
    encoder.save_pretrained(tmp_path / "e", {"dataset": "birds | of\nmany kinds", "pooler": "mine"})
    card = (tmp_path / "e" / "README.md").read_text()
    for line in ("| base tower | qwen3_vl (3 layers, 48 wide)", "| embedding size | 16,", "| pooler | mine |",
                 "| dataset | birds \\| of many kinds |", "| image size | 48 × 48 pixels"):  # fmt: skip
        assert line in card, line
    [code] = re.findall(r"```python\n(.*?)```", card, re.S)
    assert len([line for line in code.splitlines() if line]) == 4
    for name, image in zip("ab", images(2), strict=True):
        image.save(tmp_path / f"{name}.jpg")
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(code.replace("path/of/this/folder", "e"), names)
    assert names["z"].shape == (2, 16)
    assert sorted(p.name for p in (tmp_path / "e").iterdir()) == ["README.md", "config.json", "model.safetensors"]


def test_towers_of_other_families_get_a_card(tmp_path):
    Encoder(OtherTower()).save_pretrained(tmp_path)
    assert "| base tower | other |" in (tmp_path / "README.md").read_text()
