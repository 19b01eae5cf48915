"""An index on disk: `index.json`, which names a file of faiss vectors by its checksum. What is read there is checked, not trusted."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from saga_lib.common.errors import SagaError
from saga_lib.common.files import read_json, remove_leftovers, write_atomically, write_json
from saga_study.deploy.entries import Entry

INDEX_FILE, LOCK = "index.json", ".lock"
FORMAT = 1
VECTORS = re.compile(r"[0-9a-f]{12}\.faiss")  # names of vector files


class Stored(NamedTuple):
    """The content of an index's folder: faiss vectors, entries in the same order, kind, encoder, and a digest of it all."""

    vectors: object
    entries: list[Entry]
    kind: str
    encoder: dict[str, str]
    state: str


def import_faiss():
    try:
        import faiss
    except ModuleNotFoundError:
        raise SagaError("searching needs faiss: pip install faiss-cpu") from None
    return faiss


def write_index(folder: Path, vectors, entries: Sequence[Entry], kind: str, encoder: Mapping[str, str]) -> str:
    """Write an index into a folder, whose lock the caller holds, and return its state (see `Stored`).

    The vectors come first, under a name of their own; the old index is whole until `index.json` is replaced.
    """
    content = import_faiss().serialize_index(vectors).tobytes()
    sha256 = hashlib.sha256(content).hexdigest()
    name = f"{sha256[:12]}.faiss"
    folders = sorted({entry.folder for entry in entries})
    numbers = {path: number for number, path in enumerate(folders)}
    record = {
        "format": FORMAT, "kind": kind, "dimension": vectors.d, "encoder": dict(encoder), "vectors": name, "sha256": sha256,
        "folders": folders, "images": [[numbers[e.folder], e.name, e.sha256] for e in entries],
    }  # fmt: skip
    try:
        json.dumps(record, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise SagaError(f"cannot write {folder}: {error.object[error.start - 20 : error.end + 20]!a} is not UTF-8; rename it") from None
    write_atomically(folder / name, lambda path: path.write_bytes(content))
    write_json(folder / INDEX_FILE, record)
    for path in folder.glob("*.faiss"):
        if path.name != name and VECTORS.fullmatch(path.name):
            path.unlink(missing_ok=True)
    remove_leftovers(folder)
    return _state(record)


def read_index(folder: Path) -> Stored:
    """Read the index of a folder; raises `SagaError` naming the file that is missing, damaged, or says what no index says.

    Nothing outside the folder is opened, whatever the files in it say.
    """
    record = _read_record(folder)
    while True:
        try:
            return _read_vectors(folder, record)
        except FileNotFoundError:  # another process may just have replaced the index
            again = _read_record(folder)
            if again == record:
                raise SagaError(f"{folder / str(record['vectors'])} cannot be read: it is missing; build the index anew") from None
            record = again


def _state(record: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _read_record(folder: Path) -> dict:
    """Return the checked content of `index.json`."""
    file, command = folder / INDEX_FILE, "python -m saga_study.search build"
    if os.path.isfile(folder):  # which pathlib asks with errors of its own, about names that are too long
        inside = f"; name its folder, {folder.parent}" if folder.name == INDEX_FILE else f"; make one with: {command}"
        raise SagaError(f"{folder} is a file, and an index is a folder{inside}")
    if not os.path.isfile(file):
        raise SagaError(f"{folder} holds no index ({INDEX_FILE} is missing); make one with: {command}")
    try:
        record = read_json(file)
    except OSError as error:
        raise SagaError(f"{file} cannot be read: {error.strerror}") from None
    except RecursionError:
        record = None
    version = record.get("format") if isinstance(record, dict) else None
    if isinstance(version, int) and version > FORMAT:
        raise SagaError(f"{file} has format {version}, this version reads {FORMAT}; update it, or build the index anew")
    if problem := "it is no record of an index" if version != FORMAT else _problem(record):
        raise SagaError(f"{file} was not written by Index.save, or is damaged ({problem}); build the index anew")
    return record


def _problem(record: Mapping[str, object]) -> str:
    """Return the first thing that a record of format 1 must not say, or ""."""
    texts = [record.get(key) for key in ("kind", "vectors", "sha256")]
    encoder, folders, images = (record.get(key) for key in ("encoder", "folders", "images"))
    if not all(isinstance(text, str) for text in texts) or type(record.get("dimension")) is not int:
        return "kind, dimension, vectors or sha256 is missing"
    if not VECTORS.fullmatch(record["vectors"]):
        return f"vectors is {record['vectors'][:40]!a}, which is no name of a vector file"
    if not isinstance(encoder, dict) or not all(isinstance(value, str) for value in encoder.values()):
        return "encoder is not a table of texts"
    if not isinstance(folders, list) or not all(isinstance(folder, str) and _is_folder(folder) for folder in folders):
        return "folders are not all absolute paths"
    if not isinstance(images, list):
        return "images is no list"
    for image in images:
        if not isinstance(image, list) or [type(part) for part in image] != [int, str, str] or not 0 <= image[0] < len(folders):
            return f"image {image!a:.60} is not [number of a folder, name, checksum]"
        if not is_inside(image[1]):
            return f"image {image[1][:40]!a} lies outside of its folder"
    return ""


def is_inside(name: str) -> bool:
    """Return whether a name, put behind a folder's, stays below that folder."""
    return bool(name) and not name.startswith("/") and "\0" not in name and ".." not in name.split("/")


def _is_folder(path: str) -> bool:
    return not path or path.startswith("/") and "\0" not in path and ".." not in path.split("/")


def _read_vectors(folder: Path, record: Mapping) -> Stored:
    faiss, path = import_faiss(), folder / record["vectors"]
    try:
        if os.path.exists(path) and not os.path.isfile(path):
            raise SagaError(f"{path} is no regular file; build the index anew")
        content = path.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise SagaError(f"{path} cannot be read: {error.strerror}; build the index anew") from None
    if hashlib.sha256(content).hexdigest() != record["sha256"]:
        raise SagaError(f"{path} is damaged (its checksum differs); build the index anew")
    try:
        # The flag refuses vectors that are kept in another file, whose path faiss would open.
        vectors = faiss.deserialize_index(np.frombuffer(content, dtype=np.uint8), faiss.IO_FLAG_ONDISK_SAME_DIR)
    except (RuntimeError, MemoryError):
        raise SagaError(f"{path} is no index that faiss can read; build the index anew") from None
    if (vectors.ntotal, vectors.d) != (len(record["images"]), record["dimension"]):
        raise SagaError(f"{folder / INDEX_FILE} does not fit {path.name}; build the index anew")
    entries = [Entry(name, record["folders"][number], sha256) for number, name, sha256 in record["images"]]
    return Stored(vectors, entries, record["kind"], dict(record["encoder"]), _state(record))
