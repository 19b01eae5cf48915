"""Images of an index: where their files lie, which of a folder are new, and their embeddings."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from saga_lib.common.errors import SagaError
from saga_lib.common.images import Found, find_images
from saga_study.deploy.decoding import Decoded, decode, progress
from saga_study.processes import count_cores

if TYPE_CHECKING:
    from saga_lib.encoder import Encoder

THERE, GONE, CHANGED = "there", "gone", "changed"  # what became of the file of an entry


class Entry(NamedTuple):
    """An image of the index: its name below the folder it was found in, that folder, and its file's SHA-256."""

    name: str
    folder: str = ""
    sha256: str = ""

    @property
    def place(self) -> str:
        return os.path.join(self.folder, self.name)

    @property
    def path(self) -> Path:
        return Path(self.folder, self.name)

    def file(self) -> str:
        """Return whether the image's file is `THERE`, `GONE` (or cannot be read), or `CHANGED`, holding other content."""
        try:
            if not os.path.isfile(self.place):
                return GONE
            return THERE if not self.sha256 or _sha256(self.place) == self.sha256 else CHANGED
        except (OSError, ValueError):
            return GONE


@dataclass
class Added:
    """The outcome of adding a folder: how many images are new, and which are not, by reason."""

    count: int = 0
    moved: list[str] = field(default_factory=list)  # in the index already, and found at a new place: the index knows it now
    copies: list[str] = field(default_factory=list)  # already in the index, or twice in the folder
    changed: list[str] = field(default_factory=list)  # indexed under this name with other content
    unreadable: list[str] = field(default_factory=list)  # one line each, with the reason
    skipped: list[str] = field(default_factory=list)  # a line for each sort of file that is no image: by suffix, of other programs

    def summary(self) -> str:
        skipped = {"there already (or copies)": self.copies, "changed since they were indexed": self.changed, "unreadable": self.unreadable}
        parts = [f"{len(names)} {what}" for what, names in skipped.items() if names]
        moved = f", {len(self.moved)} found again at a new place" if self.moved else ""
        return f"{self.count} images added{moved}" + (f"; skipped: {', '.join(parts)}" if parts else "")


def images_below(folder: Path) -> Found:
    """Return the image files below a folder; raises `SagaError` if it holds none or cannot be listed."""
    found = find_images(folder)
    if not found:
        raise SagaError("; ".join([f"{folder} holds no image", *found.skipped(), "give a folder with photographs"]))
    return found


class Folder:
    """The images of a folder, compared with those that an index holds.

    `new` maps the SHA-256 of what the index lacks to the files of this content, `moved` the number of an entry of the index to the
    place where its file lies now, `added` says what was left out. Raises `SagaError` if the folder holds no image or cannot be listed.
    """

    def __init__(self, folder: Path, known: Sequence[Entry] = ()) -> None:
        files = images_below(folder)
        self.added = Added(skipped=files.skipped())
        self.new: dict[str, list[Entry]] = {}
        self.moved: dict[int, Entry] = {}
        root = str(folder.resolve())
        if not is_utf8(root):
            raise SagaError(f"folder {ascii(root)} has a name that is not UTF-8; rename it")
        with ThreadPoolExecutor(count_cores()) as pool:
            read = pool.map(lambda path: _identify(path, folder, root), files)
            self._compare([one for one in read if not self._is_unreadable(one)], known)

    def _is_unreadable(self, one: Entry | str) -> bool:
        if is_line := isinstance(one, str):
            self.added.unreadable.append(one)
        return is_line

    def _compare(self, found: Sequence[Entry], known: Sequence[Entry]) -> None:
        contents = {entry.sha256: number for number, entry in enumerate(known) if entry.sha256}
        here = {entry.place: entry.sha256 for entry in found}
        for entry in found:
            number = contents.get(entry.sha256)
            if number is None or number in self.moved:
                continue
            place = known[number].place  # which may hold another picture by now: files are numbered anew
            if here.get(place, entry.sha256) != entry.sha256 or not os.path.isfile(place):
                self.moved[number] = entry
        places = {self.moved.get(number, entry).place: entry.sha256 for number, entry in enumerate(known)}
        arrived = {entry.place for entry in self.moved.values()}
        for entry in found:
            if entry.place in arrived:
                self.added.moved.append(entry.name)
            elif places.get(entry.place, entry.sha256) != entry.sha256:
                self.added.changed.append(entry.name)
            elif entry.sha256 in contents:
                self.added.copies.append(entry.name)
            else:
                self.new.setdefault(entry.sha256, []).append(entry)

    def embed(self, encoder: Encoder, batch_size: int) -> Iterator[tuple[list[Entry], np.ndarray]]:
        """Yield what is new, a batch at a time: entries (n) and embeddings (n, D_e) float32; note in `added` what became of each file.

        Images that cannot be read, and those to which the encoder gives no direction (zero or not finite), are left out.
        """
        contents = list(self.new)
        paths = [self.new[content][0].path for content in contents]
        batches = [range(start, min(start + batch_size, len(paths))) for start in range(0, len(paths), batch_size)]
        with progress(len(paths), "embedding", "image") as bar:
            for batch, decoded in zip(batches, decode(paths, batches, encoder.tower.preprocess, hashed=False), strict=True):
                embeddings, problems = embed_decoded(encoder, decoded, [paths[number] for number in batch])
                entries = self._note([contents[number] for number in batch], problems)
                if entries:
                    yield entries, embeddings
                bar.update(len(batch))

    def _note(self, contents: Sequence[str], problems: Sequence[str]) -> list[Entry]:
        """Note in `added` which contents were embedded and which have a problem; return the entries of the former."""
        entries = []
        for content, problem in zip(contents, problems, strict=True):
            first, *copies = self.new[content]
            if problem:
                self.added.unreadable += [problem, *(f"image {copy.path} is a copy of {first.name}" for copy in copies)]
            else:
                entries.append(first)
                self.added.copies += [copy.name for copy in copies]
        self.added.count += len(entries)
        return entries


def embed_decoded(encoder: Encoder, decoded: Sequence[Decoded], paths: Sequence[Path]) -> tuple[np.ndarray, list[str]]:
    """Return the embeddings (n, D_e) float32 of the images that can be used, and for each the line that says why it cannot, or ""."""
    import torch

    problems = [one.problem for one in decoded]
    readable = [number for number, one in enumerate(decoded) if one.pixels is not None]
    if not readable:
        return np.zeros((0, encoder.embedding_dim or encoder.tower.width), np.float32), problems
    embeddings = encoder.embed_pixels(torch.from_numpy(np.concatenate([decoded[number].pixels for number in readable])), len(readable))
    usable = np.isfinite(embeddings).all(1) & embeddings.any(1)
    for number in np.asarray(readable)[~usable]:
        problems[number] = f"image {paths[number]} gets an embedding that is zero or not finite"
    return embeddings[usable], problems


def _identify(path: Path, folder: Path, root: str) -> Entry | str:
    """Return the entry of a file below a folder (whose resolved path is `root`), or the line that says why it cannot be used."""
    name = path.relative_to(folder).as_posix()
    if not is_utf8(name):
        return f"image {ascii(str(path))} has a name that is not UTF-8; rename it"
    try:
        return Entry(name, root, _sha256(path))
    except OSError as error:
        return f"image {path} cannot be read ({error.strerror})"


def _sha256(path: str | Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
