"""Atomic writes: a file is either whole or absent, whatever interrupts us."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path

from saga_lib.common.errors import SagaError, cannot_write

_TEMPORARY = re.compile(r"\..+\.(\d+)-[^.]*(\.[^.]*)?")  # with the number of the process that writes it


def is_alive(process: int) -> bool:
    """Return whether there is a process of that number on this machine."""
    import psutil

    return psutil.pid_exists(process)


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write(temporary_path)` beside `path`, then move the result into place.

    Raises `SagaError` naming the file when the disk is full or not writable; nothing partial stays behind, or if this process is
    killed, only what `remove_leftovers` removes.
    """
    from safetensors import SafetensorError  # what its save_file makes of a full disk; not an OSError

    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.{os.getpid()}-", suffix=path.suffix)
        temporary = Path(name)
        os.close(handle)
        write(temporary)
        os.chmod(temporary, 0o644)
        with open(temporary, "rb") as written:
            os.fsync(written)  # some file systems report only now that they are full; and a power cut must not leave an empty file
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        raise cannot_write(path, error) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Remove, anywhere below a folder, the unfinished files of `write_atomically` in processes that were killed."""
    for path in Path(folder).rglob(".*"):
        if (temporary := _TEMPORARY.fullmatch(path.name)) and not is_alive(int(temporary[1])) and path.is_file():
            path.unlink(missing_ok=True)


def append_line(path: Path, line: str) -> None:
    """Append a line to a UTF-8 text file. Raises `SagaError` as `write_atomically` does; a part of the line may have been written."""
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.write(line + "\n")
    except OSError as error:
        raise cannot_write(path, error) from error


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file atomically."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: Path, content: object) -> None:
    """Write a JSON file atomically, keys in the order given."""
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def read_json(path: Path) -> object:
    """Read a JSON file; a `SagaError` names the file when it is missing or broken."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SagaError(f"{path} does not exist") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise SagaError(f"{path} is damaged ({error}); delete it and run again") from None
