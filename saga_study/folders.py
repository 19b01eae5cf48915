"""A folder that is either whole or absent, whatever interrupts us; as `saga_lib.common.files.write_atomically` does for files."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from saga_lib.common.errors import SagaError, cannot_write
from saga_study.processes import only_one_process


def write_folder(
    folder: Path, make: Callable[[Path], object], is_whole: Callable[[Path], bool] = Path.is_dir, otherwise: str = "choose another folder"
) -> Path:
    """Call `make(partial)` on an empty folder beside `folder`, then move it into place; return `folder`.

    One process makes it while others that want the same wait, then take it: a folder that `is_whole` is kept, any other replaced. What
    a killed process left half-made is removed. Raises `SagaError` naming the folder when it cannot be written, with what to do `otherwise`.
    """
    from safetensors import SafetensorError

    folder = Path(folder)
    partial, old, lock = (folder.with_name(f".{folder.name}.{kind}") for kind in ("partial", "old", "lock"))
    if is_whole(folder) and not (lock.exists() and os.access(folder.parent, os.W_OK)):  # a lock: of one that was killed at the very end
        return folder
    try:
        with only_one_process(lock, f"folder {folder}", waiting=lambda _: None):
            if not is_whole(folder):  # else another process has just made it
                _make_and_move(folder, make, partial, old)
            for remains in (partial, old):
                shutil.rmtree(remains, ignore_errors=True)
    except (OSError, SafetensorError, SagaError) as error:
        reason = error.__cause__ if isinstance(error, SagaError) else error
        if not isinstance(reason, OSError | SafetensorError):
            raise
        raise cannot_write(folder, reason, otherwise) from error
    return folder


def _make_and_move(folder: Path, make: Callable[[Path], object], partial: Path, old: Path) -> None:
    try:
        for remains in (partial, old):
            shutil.rmtree(remains, ignore_errors=True)
        partial.mkdir(parents=True)
        make(partial)
        if folder.exists():
            folder.rename(old)
        partial.rename(folder)
    finally:
        if old.is_dir() and not folder.is_dir():  # it could not be replaced
            old.rename(folder)
        for remains in (partial, old):
            shutil.rmtree(remains, ignore_errors=True)
