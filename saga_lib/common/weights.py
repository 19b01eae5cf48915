"""Weights and the model they are loaded into: nothing of the model may be left at random, nothing of the weights may be left out."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import nn

from saga_lib.common.errors import SagaError
from saga_lib.common.model_files import check_pointer

BELONG = "take the configuration and the weights of one model"


def check_fit(
    what: str, model: nn.Module, missing: Iterable[str], unexpected: Iterable[str],
    mismatched: Iterable[tuple[str, object, object]] = (), strict: bool = False,
) -> None:  # fmt: skip
    """Raise `SagaError`, one line that begins with `what`, if weights do not fit a model.

    missing: names of the model that the weights lack. unexpected: names of the weights that the model lacks; those of whole other
    parts, such as a further head, may be left out unless `strict`, those of layers and modules that the model has may not. mismatched:
    (name, shape of the weights, shape of the model).
    """
    missing = sorted(name for name in missing if not name.endswith("num_batches_tracked"))  # which old weights lack, and nothing reads
    unexpected, mismatched = sorted(unexpected), sorted(mismatched, key=lambda one: one[0])
    names = model.state_dict().keys()
    if missing:
        count = f"{len(missing)} of the model's {len(names)} weights are not there"
        raise SagaError(f"{what}: {count}, e.g. {missing[0]}; {_likely_cause(missing, unexpected)}")
    if mismatched:
        name, found, expected = mismatched[0]
        shapes = f"{name} of shape {tuple(found)} for {tuple(expected)}"
        raise SagaError(f"{what}: {len(mismatched)} weights have another shape than the configuration says, e.g. {shapes}; {BELONG}")
    buffers, known, base = dict(model.named_buffers()), {_part(name) for name in names}, getattr(model, "base_model_prefix", "")
    if left_out := [name for name in unexpected if strict or name not in buffers and _has_place(name, known, base)]:
        raise SagaError(f"{what}: the model of this configuration has no place for {len(left_out)} weights, e.g. {left_out[0]}; {BELONG}")
    weights = [(name, w.detach()) for name, w in model.named_parameters() if w.numel() and w.is_floating_point() and not w.is_meta]
    if broken := [name for name, w in weights if not all(end.isfinite() for end in w.aminmax())]:
        raise SagaError(f"{what}: {len(broken)} weights hold NaN or infinity, e.g. {broken[0]}; download the model or train it again")


def _part(name: str) -> str:
    """Return the module of a weight, the numbers of layers left out: of layer 7 what the model has in its layer 0."""
    return re.sub(r"\.\d+(?=\.|$)", ".#", name.rpartition(".")[0])


def _has_place(name: str, modules: set[str], base: str) -> bool:
    """Return whether a weight belongs into the modules, or two levels deep into a part of them; `base` is what its name may lack."""
    parts = [] if name.endswith("inv_freq") else [_part(name), _part(f"{base}.{name}")]  # a buffer of older models
    insides = [".".join(part.split(".")[:2]) + "." for part in parts if part.count(".") > 0]
    return any(part in modules for part in parts) or any(f"{module}.".startswith(inside) for inside in insides for module in modules)


def _likely_cause(missing: list[str], unexpected: list[str]) -> str:
    """Return what may be wrong where weights are missing: if they are there under names with more or less in them, what that is."""
    surplus, lacking = (Counter(run for name in names[:200] for run in _runs(name, frozenset(others)))
                        for names, others in ((unexpected, missing), (missing, unexpected)))  # fmt: skip
    wrapper = os.path.commonprefix(unexpected).rpartition(".")[0]
    if not (surplus or lacking) and wrapper and 2 * len(unexpected) > len(missing) and not missing[0].startswith(f"{wrapper}."):
        surplus[f"{wrapper}."] += 1  # of names that transformers would change further
    if surplus:
        return f"remove {surplus.most_common(1)[0][0]!r} from the names of the weights"
    if begins := [run for run, _ in lacking.most_common() if missing[0].startswith(run)]:
        return f"put {begins[0]!r} before the names of the weights"
    there = f"there are others, e.g. {unexpected[0]}; " if unexpected else ""
    return f"{there}download the model again, or {BELONG}"


def _runs(name: str, others: frozenset[str]) -> Iterator[str]:
    """Yield each run of a name's parts, such as "module.", without which it is one of the others."""
    parts = name.split(".")
    for start in range(len(parts) - 1):
        for end in range(start + 1, len(parts)):
            if ".".join(parts[:start] + parts[end:]) in others:
                yield ".".join(parts[start:end]) + "."


@contextmanager
def nothing_left_out(what: str) -> Iterator[None]:
    """Within, `load_state_dict` raises `SagaError` by `check_fit`, also for a caller that does not look at what it returns."""
    stock = nn.Module.load_state_dict

    def load_state_dict(module: nn.Module, *args: object, **kwargs: object) -> object:
        result = stock(module, *args, **kwargs)
        check_fit(what, module, result.missing_keys, result.unexpected_keys)
        return result

    nn.Module.load_state_dict = load_state_dict
    try:
        yield
    finally:
        nn.Module.load_state_dict = stock


def load_weights(module: nn.Module, path: Path) -> None:
    """Load a safetensors file into a module; a `SagaError` names the file when it is damaged or does not fit."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not Path(path).is_file():
        raise SagaError(f"{path} does not exist")
    check_pointer(Path(path))
    try:
        weights = load_file(path)
    except (SafetensorError, OSError) as error:
        raise SagaError(f"{path} is damaged ({error}); delete it and run again") from None
    own = module.state_dict()
    unlike = [(name, w.shape, own[name].shape) for name, w in weights.items() if name in own and w.shape != own[name].shape]
    check_fit(f"{path} does not fit this model", module, own.keys() - weights.keys(), weights.keys() - own.keys(), unlike, strict=True)
    module.load_state_dict(weights)
    check_fit(str(path), module, (), ())  # the values
