"""What a run writes while it trains, so that a killed one goes on with the same numbers: its checkpoint and its logs."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import nn

from saga_lib.common.errors import SagaError
from saga_lib.common.files import append_line, read_json, write_atomically, write_json, write_text

COUNTERS = "counters.json"


def save_checkpoint(folder: Path, modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer, counters: Mapping[str, int]) -> None:
    """Write modules, optimizer and counters; `counters["step"]` names the file of tensors.

    The counters are written last and make the rest valid; older tensors are deleted after that.
    """
    from safetensors.torch import save_file

    tensors = {f"{part}.{n}": t for part, module in modules.items() for n, t in module.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": torch.as_tensor(value) for name, value in state.items()}
    tensors = {n: t.detach().cpu().contiguous() for n, t in tensors.items()}
    name = f"state-{counters['step']}.safetensors"
    write_atomically(folder / name, lambda path: save_file(tensors, path))
    write_json(folder / COUNTERS, {**counters, "file": name})
    for old in folder.glob("state-*.safetensors"):
        if old.name != name:
            old.unlink()


def load_checkpoint(folder: Path, modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer) -> dict[str, int]:
    """Load what `save_checkpoint` wrote into modules and optimizer, and return the counters; none if there is no checkpoint.

    Raises `SagaError`, naming the file, if one is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not (folder / COUNTERS).is_file():
        return {}
    counters = read_json(folder / COUNTERS)
    path = folder / counters.pop("file")
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise SagaError(f"checkpoint {path} is damaged ({error}); delete {folder} to start this run over") from None
    parts: dict[str, dict] = {}
    for name, tensor in tensors.items():
        part, rest = name.split(".", 1)
        parts.setdefault(part, {})[rest] = tensor
    for part, module in modules.items():
        module.load_state_dict(parts.get(part, {}))
    state: dict[int, dict] = {}
    for name, tensor in parts.get("optimizer", {}).items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict(optimizer.state_dict() | {"state": state})
    return counters


def delete_checkpoint(folder: Path) -> None:
    """Delete a checkpoint's folder, if there is one."""
    for path in sorted(folder.glob("*")):
        path.unlink()
    if folder.is_dir():
        folder.rmdir()


class RunLog:
    """The logs of a run in its folder: `metrics.jsonl`, one line per step, and `audit.jsonl`, one line per audited step.

    A new log is cut back to the first `steps` steps, because a run that goes on from a checkpoint repeats the later ones.
    `seconds` is the time that these steps took.
    """

    def __init__(self, folder: Path, steps: int) -> None:
        self._metrics, self._audit = folder / "metrics.jsonl", folder / "audit.jsonl"
        kept = _cut(self._metrics, lambda lines: lines[:steps])
        self.seconds = float(json.loads(kept[-1])["seconds"]) if kept else 0.0
        if not self._metrics.is_file():
            write_text(self._metrics, "")
        # a line that was cut when the run was killed lacks its closing brace
        _cut(self._audit, lambda lines: [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= steps])

    def write(self, metrics: dict[str, float], audited: list[dict]) -> dict[str, float]:
        """Log a step and return its metrics as they are logged: rounded to six decimals, without NaN."""
        if audited:  # before the metrics, whose line says that the step is complete
            append_line(self._audit, json.dumps(_columns(audited)))
        row = {k: (round(v, 6) if isinstance(v, float) else v) for k, v in metrics.items() if v == v}
        append_line(self._metrics, json.dumps(row))
        return row


def _cut(path: Path, keep: Callable[[list[str]], list[str]]) -> list[str]:
    """Rewrite a log with the lines that `keep` returns; returns them."""
    if not path.is_file():
        return []
    kept = keep(path.read_text(encoding="utf-8").splitlines())
    write_text(path, "".join(line + "\n" for line in kept))
    return kept


def _columns(rows: list[dict]) -> dict:
    """Return the rows of one step column by column, four significant digits: logs are committed and must stay small."""

    def short(value: object) -> object:
        return float(f"{value:.4g}") if isinstance(value, float) else value

    names = dict.fromkeys(name for row in rows for name in row if name != "step")
    return {"step": rows[0]["step"]} | {name: [short(row.get(name)) for row in rows] for name in names}
