"""Tower and pooler as one graph that runs without this library: torch.export or ONNX.

    python -m saga_study.deploy.export ENCODER FILE [--format torch_export | onnx]

A graph takes preprocessed pixels (`encoder.tower.preprocess`) of the encoder's image size, in batches of any size.
"""

from __future__ import annotations

import copy
import importlib.util
import io
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from saga_lib.common.errors import SagaError, cannot_write, first_line, unknown_name
from saga_lib.encoder import Encoder
from saga_study.commands import CommandLine, exit_code
from saga_study.deploy.encoders import load_encoder

FORMATS = {"torch_export": (), "onnx": ("onnx", "onnxscript", "onnxruntime")}  # format: packages it needs
SUFFIXES = {"torch_export": ".pt2", "onnx": ".onnx"}  # of files of each format
TOLERANCE = 1e-4  # largest difference of any coordinate of the unit embeddings
CHECKED_BATCHES = (1, 2, 5)
ONNX_ONE_FILE = 1_900_000_000  # bytes of weights; protobuf cannot hold 2 GB


def export_encoder(encoder: Encoder, path: str | Path, format: str | None = None) -> dict[str, object]:
    """Write tower and pooler as one graph, and check that it embeds as the encoder does.

    The graph maps `pixels` (N, patches, patch_dim) float32 to `embeddings` (N, D_e) float32, l2-normalised. N is
    free, the image size is the encoder's, weights are float32 whatever the encoder's. Formats: "torch_export" (a
    .pt2 file: `torch.export.load(path).module()(pixels)`) and "onnx" (an .onnx file; needs the packages onnx,
    onnxscript and onnxruntime; weights that do not fit into one file go to `<name>.data` beside it); by default, what
    the file's suffix says. The file appears only after it was read back and agreed, on batches of 1, 2 and 5 random
    images, with the encoder in float32 on the CPU.

    Returns {"format", "path", "input_shape" (None: free), "embedding_dim", "max_difference"}. Raises `SagaError`
    for an unknown format, a suffix that is not the format's, missing packages, a path that cannot be written, a tower
    that does not export, and a difference above 1e-4.
    """
    path = Path(path)
    format = check_target(path, format)
    encoder = copy.deepcopy(encoder).float().cpu().eval().requires_grad_(False)
    rng = np.random.default_rng(0)
    size = encoder.tower.image_size
    images = [Image.fromarray(rng.integers(0, 256, (size, size, 3), dtype=np.uint8)) for _ in range(max(CHECKED_BATCHES))]
    pixels = encoder.tower.preprocess(images)
    try:
        # In the target's folder, so that moves are atomic; the graph finds its weights by the name of the second file.
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as scratch:
            run = (_write_onnx if format == "onnx" else _write_torch)(encoder, pixels, Path(scratch) / path.name)
            expected = {n: encoder.embed_pixels(pixels[:n]) for n in CHECKED_BATCHES}
            difference = max(float(np.abs(run(pixels[:n]) - expected[n]).max()) for n in CHECKED_BATCHES)
            if not difference <= TOLERANCE:
                raise SagaError(
                    f"the exported graph differs from the encoder by {difference:.1e} (at most {TOLERANCE:.0e}); nothing was written"
                )
            for made in sorted(Path(scratch).iterdir(), reverse=True):  # the graph after its data
                os.replace(made, path.parent / made.name)
    except OSError as error:
        raise cannot_write(path, error) from None
    return {
        "format": format, "path": str(path), "input_shape": (None, *pixels.shape[1:]), "embedding_dim": expected[1].shape[1],
        "max_difference": difference,
    }  # fmt: skip


def check_target(path: Path, format: str | None = None) -> str:
    """Return the format in which a file of this name is written (see `export_encoder`), before minutes of work are spent.

    Raises `SagaError` for an unknown format, a suffix that is not the format's, missing packages, and a path that cannot be written.
    """
    if format is not None and format not in FORMATS:
        raise unknown_name("export format", format, FORMATS)
    if os.path.exists(path) and not os.path.isfile(path):
        example = f", such as {path / 'encoder'}{SUFFIXES[format or 'torch_export']}" if os.path.isdir(path) else ""
        raise SagaError(f"{path} is no regular file; name a file to write{example}")
    by_suffix = next((name for name, suffix in SUFFIXES.items() if path.suffix.lower() == suffix), None)
    if by_suffix is None or (format or by_suffix) != by_suffix:
        wanted = " or ".join(f"{suffix} ({name})" for name, suffix in SUFFIXES.items() if format in (None, name))
        raise SagaError(f"{path} has {f'suffix {path.suffix}' if path.suffix else 'no suffix'}; the name of an export must end in {wanted}")
    if missing := [name for name in FORMATS[by_suffix] if importlib.util.find_spec(name) is None]:
        raise SagaError(f"export format {by_suffix} needs {', '.join(missing)}: pip install {' '.join(missing)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}."):
            pass
    except OSError as error:
        raise cannot_write(path, error) from None
    return by_suffix


def _write_torch(encoder: Encoder, pixels: Tensor, path: Path) -> Callable[[Tensor], np.ndarray]:
    """Write a .pt2 file; return what it computes, read back."""
    batch = torch.export.Dim("batch", min=1, max=65536)
    program = _attempt(encoder, lambda: torch.export.export(_Graph(encoder, pixels), (pixels[:2],), dynamic_shapes=({0: batch},)))
    archive = io.BytesIO()  # torch's own writer of files ends the process when the disk is full
    torch.export.save(program, archive)
    path.write_bytes(archive.getbuffer())
    module = torch.export.load(path).module()
    return lambda pixels: module(pixels).numpy()


def _write_onnx(encoder: Encoder, pixels: Tensor, path: Path) -> Callable[[Tensor], np.ndarray]:
    """Write an .onnx file; return what onnxruntime computes with it."""
    import onnxruntime

    weights = sum(p.numel() * p.element_size() for p in encoder.parameters())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _attempt(
            encoder,
            lambda: torch.onnx.export(
                _Graph(encoder, pixels), (pixels[:2],), path, dynamo=True, input_names=["pixels"], output_names=["embeddings"],
                dynamic_shapes=({0: torch.export.Dim("batch")},), external_data=weights > ONNX_ONE_FILE, verbose=False,
            ),
        )  # fmt: skip
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda pixels: session.run(None, {"pixels": pixels.numpy()})[0]


def _attempt(encoder: Encoder, export: Callable[[], object]):
    try:
        with torch.no_grad():
            return export()
    except OSError:
        raise
    except Exception as error:  # exporters raise many kinds for code that they cannot trace
        raise SagaError(f"a tower of family '{encoder.tower.family}' cannot be exported: {first_line(error)}") from error


class _Graph(nn.Module):
    """Pixels to embeddings, as exporters can trace it with the batch size free."""

    def __init__(self, encoder: Encoder, pixels: Tensor) -> None:
        super().__init__()
        self.tower, self.pooler = encoder.tower.for_export(pixels), encoder.pooler
        self.eval()

    def forward(self, pixels: Tensor) -> Tensor:
        return self.pooler(self.tower(pixels).merged)[0]


def main(arguments: Sequence[str] | None = None) -> int:
    """Export a saved encoder by a command line and return its exit code."""

    def work() -> None:
        parser = CommandLine(prog="python -m saga_study.deploy.export", description=__doc__.splitlines()[0], allow_abbrev=False)
        parser.add_argument("encoder", type=Path, help="folder of a saved encoder (Encoder.save_pretrained)")
        parser.add_argument("file", type=Path, help="file to write, ending in " + " or ".join(SUFFIXES.values()))
        parser.add_argument("--format", help=f"{' | '.join(FORMATS)} (default: what the file's suffix says)")
        options = parser.parse_args(arguments)
        check_target(options.file, options.format)
        made = export_encoder(load_encoder(options.encoder), options.file, options.format)
        print(f"{made['path']}: {made['format']}, input {made['input_shape']}, {made['embedding_dim']} dimensions, "
              f"differs from the encoder by at most {made['max_difference']:.1e}")  # fmt: skip

    return exit_code(work)


if __name__ == "__main__":
    sys.exit(main())
