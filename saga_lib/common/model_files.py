"""A model's files in a local folder: which ones it is read from, and what is wrong with them, found before a weight is read."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from saga_lib.common.errors import SagaError, first_line

READ = (".json", ".safetensors", ".bin", ".jinja", ".txt", ".model", ".tiktoken")  # ends of the files that a model may be read from
TEMPLATES = "additional_chat_templates"  # the one folder that transformers reads them from
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")  # the first counts
CONFIGURATIONS = (
    "config.json", "generation_config.json", "preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json",
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "chat_template.json",
)  # fmt: skip
PACKED = ("I8", "U8", "F8_E4M3", "F8_E5M2")  # types of weights that mean nothing without their scales
NEEDED = {
    "tokenizer": ("tokenizer.json", "vocab.json", "*.model", "*.tiktoken", "vocab.txt"),
    "image processor": ("preprocessor_config.json", "processor_config.json"),
}
POINTER = b"version https://git-lfs"  # how the file begins that Git LFS leaves in place of a large one


@contextmanager
def in_one_line(what: str) -> Iterator[None]:
    """Turn whatever goes wrong inside into one line that begins with `what`: libraries raise many kinds, a user needs one line."""
    try:
        yield
    except SagaError:
        raise
    except Exception as error:
        why = f"{error} is missing or unknown" if isinstance(error, KeyError) else first_line(error)
        if "eights only load failed" in why:  # what follows in it is how to run the code
            why = "its pickled weights hold more than tensors, which would run as code; save them as safetensors"
        raise SagaError(f"{what}: {why}") from error


def is_local(source: str | Path) -> bool:
    """Return whether a model is given by a path that exists, not by its name on the hub."""
    return os.path.exists(source)  # unlike Path.exists, False for names that no file can have


def as_folder(path: str | Path, what: str) -> Path:
    """Return a path; raise `SagaError` if it is a file's, where `what` is a folder."""
    if not os.path.isdir(path):  # nor can a name that no file can have be a folder's
        here = f", here {Path(path).parent}" if os.path.isfile(path) else ""
        raise SagaError(f"{path} {'is a file' if here else 'does not exist'}; {what} is a folder{here}")
    return Path(path)


def check_pointer(path: Path) -> None:
    """Raise `SagaError` if a file cannot be read, or is a pointer of Git LFS in place of the file."""
    with in_one_line(f"{path} cannot be read"), open(path, "rb") as file:
        if file.read(len(POINTER)) == POINTER:
            raise SagaError(f"{path} is a pointer of Git LFS, not the file itself; run git lfs pull in {path.parent}")


def model_files(folder: str | Path) -> list[Path]:
    """Return, sorted, all files of a folder that a model may be read from: weights, configurations, tokenizer, chat templates.

    Shards of weights count wherever their index says they are. Notes such as README.md and code do not count.
    """
    folder = as_folder(folder, "a model")
    found = {path for path in folder.iterdir() if path.suffix in READ} | {*folder.glob(f"{TEMPLATES}/*.jinja")}
    if named := _said(folder / "config.json", "transformers_weights"):
        found.add(folder / str(named))
    for index in [path for path in found if path.name.endswith(".index.json")]:
        found.update(folder / name for name in _shards(index))
    return sorted(path for path in found if path.is_file())


def _said(path: Path, key: str) -> object:
    """Return what a JSON file says of a key, None if it says nothing or is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))[key]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _shards(index: Path) -> list[str]:
    """Return the names of the shards that an index of weights lists; none if it is damaged."""
    names = _said(index, "weight_map")
    return sorted({str(name) for name in names.values()}) if isinstance(names, dict) else []


def check_folder(folder: str | Path) -> None:
    """Raise `SagaError` if a folder holds no model of its own, or if a file that says what the model is cannot be read."""
    folder = as_folder(folder, "a model")
    if (folder / "adapter_config.json").is_file():  # transformers would load the model that it names, from elsewhere
        raise SagaError(f"{folder} holds adapters (adapter_config.json), not a model; merge them into their model and name its folder")
    if not (folder / "config.json").is_file():
        inside = next(iter(sorted([*folder.glob("snapshots/*/config.json"), *folder.glob("*/config.json")])), None)
        raise SagaError(f"{folder} has no config.json" + (f"; the model is in {inside.parent}" if inside else ": it is no model's folder"))
    for path in model_files(folder):
        check_pointer(path)
        if path.name in CONFIGURATIONS or path.name.endswith(".index.json"):
            with in_one_line(f"{folder} is damaged or incomplete: {path.name} is not JSON"):
                content = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(content, dict):
                raise SagaError(f"{folder} is damaged or incomplete: {path.name} is not a JSON object")


def check_config(source: str | Path, content: dict, sizes_of: Callable[[dict], object]) -> None:
    """Raise `SagaError` if a model's config.json leaves out a size, which would then be a stock one, or says that it is quantised."""
    what = f"supervisor {source}: its config.json"
    with in_one_line(f"{what} is not the model's"):
        sizes_of(content)
    if content["text_config"].get("use_sliding_window"):  # our attention reads all of a prompt
        raise SagaError(f"{what} sets use_sliding_window, which is not supported; take a model with full attention")
    if content.get("quantization_config"):
        raise SagaError(f"{what} says that weights are quantised (quantization_config), which has no gradient; take the model in bfloat16")


def check_contents(folder: str | Path) -> None:
    """Raise `SagaError` if a model's tokenizer, image processor or weights are absent, damaged or cut short; reads headers only."""
    from safetensors import safe_open

    folder = Path(folder)
    damaged = f"{folder} is damaged or incomplete"
    for what, patterns in NEEDED.items():
        if not any(path.is_file() for pattern in patterns for path in folder.glob(pattern)):
            raise SagaError(f"{damaged}: it has no {what} ({patterns[0]}); take that of the model, from where its weights are from")
    first = _said(folder / "config.json", "transformers_weights") or next((name for name in WEIGHTS if (folder / name).is_file()), None)
    if first is None:
        raise SagaError(f"{damaged}: it has no weights, neither {WEIGHTS[0]} nor {WEIGHTS[2]} nor shards with their index")
    names = _shards(folder / first) if first.endswith(".index.json") else [first]
    absent = [name for name in names if not (folder / name).is_file()]
    if absent or not names:
        lacks = f"{len(absent)} of {len(names)} files of weights are not there, e.g. {absent[0]}" if absent else f"{first} names no files"
        raise SagaError(f"{damaged}: {lacks}; download the model again")
    for name in names:
        if not (folder / name).stat().st_size:
            raise SagaError(f"{damaged}: {name} is empty; download it again")
        if name.endswith(".safetensors"):
            with in_one_line(f"{damaged}: {name} cannot be read, download it again"), safe_open(folder / name, "pt") as file:
                packed = next((key for key in file.keys() if file.get_slice(key).get_dtype() in PACKED), None)  # noqa: SIM118
            if packed:
                raise SagaError(f"{folder} holds quantised weights, e.g. {packed} in {name}; take the model in bfloat16 or float32")
