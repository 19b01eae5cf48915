"""An index on disk: `index.json`, which names its other files by their checksums. What is read there is checked, not trusted.

Format 1, of an index made in memory: a file of faiss vectors, the images inside `index.json`. Format 2, of one built in shards
(saga_study.deploy.building): the shards with the images' names and exact embeddings, and a file of faiss vectors unless it is Flat.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np

from saga_lib.common.errors import SagaError
from saga_lib.common.files import read_json, remove_leftovers, write_atomically, write_json
from saga_study.deploy.entries import Entry
from saga_study.deploy.factory import import_faiss, read_mapped
from saga_study.deploy.shards import SHARDS, Names, Rows, Shard, file_sha256, read_shard, write_shard

INDEX_FILE, LOCK = "index.json", ".lock"
FORMATS = 1, 2
VECTORS = re.compile(r"[0-9a-f]{12}\.faiss")  # names of vector files
SHARD = re.compile(r"\d{5,8}-[0-9a-f]{12}\.safetensors")
CHECKED = 2**28  # bytes of an index up to which checksums are compared even where it is only looked into


class Stored(NamedTuple):
    """The content of an index's folder: vectors, entries in the same order, kind, encoder, a digest of it all, and its shards if any.

    `vectors` are a faiss index, or `rows` themselves where the kind is Flat. `rows` are the exact embeddings of the shards.
    """

    vectors: object
    entries: Sequence[Entry]
    kind: str
    encoder: dict[str, str]
    state: str
    rows: Rows | None = None
    shards: Sequence[Shard] = ()


def write_index(folder: Path, vectors, entries: Sequence[Entry], kind: str, encoder: Mapping[str, str]) -> str:
    """Write an index of format 1 into a folder, whose lock the caller holds, and return its state (see `Stored`).

    The vectors come first, under a name of their own; the old index is whole until `index.json` is replaced.
    """
    folders = sorted({entry.folder for entry in entries})
    numbers = {path: number for number, path in enumerate(folders)}
    record = {
        "format": 1, "kind": kind, "dimension": vectors.d, "encoder": dict(encoder), "vectors": "", "sha256": "",
        "folders": folders, "images": [[numbers[e.folder], e.name, e.sha256] for e in entries],
    }  # fmt: skip
    _check_utf8(folder, record)
    return _write(folder, record | _write_vectors(folder, vectors))


def write_sharded(
    folder: Path, vectors, rows: Rows, shards: Sequence[Shard], entries: Sequence[Entry], kind: str, encoder: Mapping[str, str]
) -> tuple[str, list[Shard]]:
    """Write an index of format 2 as `write_index` does one of format 1; return its state and shards.

    Shards that lie in the folder stay as they are. Rows beyond them become new ones, and where files of theirs were found again,
    `index.json` says so.
    """
    kept = []
    for shard in shards:
        target = folder / SHARDS / shard.path.name
        if not (target.exists() and os.path.samefile(shard.path, target)):
            write_atomically(target, lambda file, source=shard.path: shutil.copyfile(source, file))
        kept.append(read_shard(target))
    start = sum(map(len, kept))
    stored = Names(kept, {}, checked_entries)
    pairs = zip(entries, stored, strict=False)
    moved = [[number, entry.folder, entry.name] for number, (entry, before) in enumerate(pairs) if entry != before]
    _check_utf8(folder, [entries[start:], moved])
    for root, of_one in groupby(entries[start:], key=lambda entry: entry.folder):
        added = list(of_one)
        content = hashlib.sha256("".join(entry.sha256 for entry in added).encode()).hexdigest()[:12]
        path = folder / SHARDS / f"{len(kept):05d}-{content}.safetensors"
        kept.append(write_shard(path, rows.reconstruct_n(start, len(added)), added, encoder.get("digest", ""), root))
        start += len(added)
    return write_record(folder, vectors, kept, kind, encoder, moved), kept


def write_record(folder: Path, vectors, shards: Sequence[Shard], kind: str, encoder: Mapping[str, str], moved: Sequence = ()) -> str:
    """Write what makes shards of a folder an index: the file of faiss vectors, if there is one, and `index.json`; return its state."""
    record = {
        "format": 2, "kind": kind, "dimension": vectors.d, "encoder": dict(encoder), "vectors": "", "sha256": "", "moved": list(moved),
        "shards": [[shard.path.name, len(shard), file_sha256(shard.path)] for shard in shards],
    }  # fmt: skip
    return _write(folder, record | ({} if isinstance(vectors, Rows) else _write_vectors(folder, vectors)))


def _check_utf8(folder: Path, content: object) -> None:
    try:
        json.dumps(content, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise SagaError(f"cannot write {folder}: {error.object[error.start - 20 : error.end + 20]!a} is not UTF-8; rename it") from None


def _write_vectors(folder: Path, vectors) -> dict[str, str]:
    """Write faiss vectors into a folder; return the name of their file, made of its checksum, and the checksum."""
    faiss, digest = import_faiss(), hashlib.sha256()
    faiss.write_index(vectors, faiss.PyCallbackIOWriter(digest.update))  # for its name, without a copy in memory

    def write(path: Path) -> None:
        try:
            faiss.write_index(vectors, str(path))
        except RuntimeError as error:
            raise OSError(errno.ENOSPC if "No space" in str(error) else errno.EIO, str(error).splitlines()[-1], str(path)) from None

    name = f"{digest.hexdigest()[:12]}.faiss"
    write_atomically(folder / name, write)
    return {"vectors": name, "sha256": digest.hexdigest()}


def _write(folder: Path, record: Mapping) -> str:
    """Write `index.json`, then remove what the index before it had; return the state."""
    write_json(folder / INDEX_FILE, record)
    for path in folder.glob("*.faiss"):
        if path.name != record["vectors"] and VECTORS.fullmatch(path.name):
            path.unlink(missing_ok=True)
    kept = {name for name, *_ in record.get("shards", ())}
    for path in (folder / SHARDS).glob("*.safetensors"):
        if path.name not in kept:
            path.unlink(missing_ok=True)
    if not kept and (folder / SHARDS).is_dir() and not os.listdir(folder / SHARDS):
        (folder / SHARDS).rmdir()
    remove_leftovers(folder)
    return _state(record)


def read_index(folder: Path, mapped: bool = False) -> Stored:
    """Read the index of a folder; raises `SagaError` naming the file that is missing, damaged, or says what no index says.

    Nothing outside the folder is opened, whatever the files in it say. With `mapped`, vectors and names of an index in shards stay
    on the disk until a search looks at them: it can be larger than memory, is read-only, and one of more than `CHECKED` bytes is not
    compared with its checksums, which would read all of it.
    """
    record = _read_record(folder)
    while True:
        try:
            return _read_vectors(folder, record) if record["format"] == 1 else _read_shards(folder, record, mapped)
        except FileNotFoundError as error:  # another process may just have replaced the index
            again = _read_record(folder)
            if again == record:
                missing = error.filename or folder / str(record["vectors"])
                raise SagaError(f"{missing} cannot be read: it is missing; build the index anew") from None
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
    if isinstance(version, int) and version > max(FORMATS):
        raise SagaError(f"{file} has format {version}, this version reads {max(FORMATS)}; update it, or build the index anew")
    if problem := "it is no record of an index" if type(version) is not int or version not in FORMATS else _problem(record):
        raise SagaError(f"{file} was not written by Index.save, or is damaged ({problem}); build the index anew")
    return record


def _problem(record: Mapping[str, object]) -> str:
    """Return the first thing that a record must not say, or ""."""
    texts = [record.get(key) for key in ("kind", "vectors", "sha256")]
    encoder = record.get("encoder")
    if not all(isinstance(text, str) for text in texts) or type(record.get("dimension")) is not int:
        return "kind, dimension, vectors or sha256 is missing"
    if not VECTORS.fullmatch(record["vectors"]) and (record["vectors"] or record["format"] == 1):
        return f"vectors is {record['vectors'][:40]!a}, which is no name of a vector file"
    if not isinstance(encoder, dict) or not all(isinstance(value, str) for value in encoder.values()):
        return "encoder is not a table of texts"
    return _problem_of_images(record) if record["format"] == 1 else _problem_of_shards(record)


def _problem_of_shards(record: Mapping[str, object]) -> str:
    shards, moved = record.get("shards"), record.get("moved")
    if not isinstance(shards, list) or not shards or not isinstance(moved, list):
        return "shards or moved is no list, or there is no shard"
    for shard in shards:
        if not isinstance(shard, list) or [type(part) for part in shard] != [str, int, str] or not SHARD.fullmatch(shard[0]):
            return f"shard {shard!a:.60} is not [name of a shard, images, checksum]"
    num = sum(count for _, count, _ in shards)
    for one in moved:
        if not isinstance(one, list) or [type(part) for part in one] != [int, str, str] or not 0 <= one[0] < num:
            return f"moved {one!a:.60} is not [number of an image, folder, name]"
        if not _is_folder(one[1]) or not is_inside(one[2]):
            return f"image {one[2][:40]!a} lies outside of its folder"
    return ""


def _problem_of_images(record: Mapping[str, object]) -> str:
    folders, images = record.get("folders"), record.get("images")
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
    """Return the content of an index of format 1."""
    vectors = _load_vectors(folder / record["vectors"], record["sha256"])
    if (vectors.ntotal, vectors.d) != (len(record["images"]), record["dimension"]):
        raise SagaError(f"{folder / INDEX_FILE} does not fit {record['vectors']}; build the index anew")
    entries = [Entry(name, record["folders"][number], sha256) for number, name, sha256 in record["images"]]
    return Stored(vectors, entries, record["kind"], dict(record["encoder"]), _state(record))


def _read_shards(folder: Path, record: Mapping, mapped: bool) -> Stored:
    """Return the content of an index of format 2."""
    shards = []
    files = [folder / SHARDS / name for name, *_ in record["shards"]] + ([folder / record["vectors"]] if record["vectors"] else [])
    checked = not mapped or sum(os.path.getsize(path) for path in files) <= CHECKED
    for name, count, sha256 in record["shards"]:
        path = folder / SHARDS / name
        _check_file(path, sha256, checked)
        shards.append(shard := read_shard(path))
        if (len(shard), shard.dim, shard.encoder) != (count, record["dimension"], record["encoder"].get("digest", "")):
            raise SagaError(f"{folder / INDEX_FILE} does not fit {path.name}; build the index anew")
    names = Names(shards, {}, checked_entries)
    names.moved = {number: Entry(name, place, names[number].sha256) for number, place, name in record["moved"]}
    vectors = rows = Rows(record["dimension"], shards)
    if record["vectors"]:
        vectors = _load_vectors(folder / record["vectors"], record["sha256"], checked, record["kind"] if mapped else "")
    if (vectors.ntotal, vectors.d) != (len(names), record["dimension"]):
        raise SagaError(f"{folder / INDEX_FILE} does not fit {record['vectors']}; build the index anew")
    entries = names if mapped else list(names)
    return Stored(vectors, entries, record["kind"], dict(record["encoder"]), _state(record), rows, shards)


def checked_entries(shard: Shard, entries: list[Entry]) -> list[Entry]:
    """Return entries of a shard; raises `SagaError` if one lies outside of its folder."""
    if not _is_folder(shard.folder) or not all(is_inside(entry.name) for entry in entries):
        raise SagaError(f"{shard.path} names an image outside of its folder; build the index anew")
    return entries


def _check_file(path: Path, sha256: str, checked: bool = True) -> None:
    """Raise `SagaError` unless a file is there, and if it is to be `checked`, has its checksum."""
    try:
        if os.path.exists(path) and not os.path.isfile(path):
            raise SagaError(f"{path} is no regular file; build the index anew")
        if checked and file_sha256(path) != sha256:
            raise SagaError(f"{path} is damaged (its checksum differs); build the index anew")
    except FileNotFoundError:
        raise
    except OSError as error:
        raise SagaError(f"{path} cannot be read: {error.strerror}; build the index anew") from None


def _load_vectors(path: Path, sha256: str, checked: bool = True, mapped_kind: str = ""):
    """Return the faiss index of a file: in memory, ready to be added to, or with its factory string mapped from the disk."""
    faiss = import_faiss()
    _check_file(path, sha256, checked)
    try:
        if mapped_kind:
            return read_mapped(path, mapped_kind)
        # The flag refuses vectors that are kept in another file, whose path faiss would open.
        return faiss.deserialize_index(np.fromfile(path, dtype=np.uint8), faiss.IO_FLAG_ONDISK_SAME_DIR)
    except (RuntimeError, MemoryError):
        raise SagaError(f"{path} is no index that faiss can read; build the index anew") from None
