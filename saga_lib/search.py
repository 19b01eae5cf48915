"""Search your own images with a trained encoder: an index of embeddings and file names, kept in a folder.

    python -m saga_lib.search build FOLDER --encoder DIR --out DIR [--kind exact|ivf|hnsw]
    python -m saga_lib.search add INDEX FOLDER
    python -m saga_lib.search query INDEX IMAGE... [--k 5] [--html out.html] [--csv out.csv]

Similarity is the cosine. faiss is imported where needed: the training core does not depend on this module.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import html
import io
import json
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image

from saga_lib.errors import CommandLine, SagaError, unknown_name
from saga_lib.files import read_json, write_atomically, write_json, write_text
from saga_lib.images import find_images, upright_rgb

if TYPE_CHECKING:
    import pandas as pd

    from saga_lib.encoder import Encoder

KINDS = {
    "exact": "compares with every image; right up to about a million",
    "ivf": "looks into the nearest of 4√N clusters; for large sets",
    "hnsw": "walks a graph of neighbours; fast for large sets, slow to build",
}
IVF_PROBES = 24  # clusters looked into
HNSW_LINKS, HNSW_BUILD, HNSW_SEARCH = 32, 80, 128  # links per image, candidates kept while building and searching
POINTS_PER_CLUSTER = 39  # faiss' k-means asks for as many
INDEX_FILE = "index.json"
THUMBNAIL = 256  # pixels


class Entry(NamedTuple):
    """An image of the index: its name below the folder it was found in, that folder, and its file's SHA-256."""

    name: str
    folder: str = ""
    sha256: str = ""

    @property
    def path(self) -> Path:
        return Path(self.folder, self.name)


class Hit(NamedTuple):
    """A found image and its cosine similarity with the query, in [-1, 1]."""

    name: str
    path: Path
    similarity: float


@dataclass
class Added:
    """What became of the images of a folder: how many are new, and which were skipped, each with its reason."""

    count: int = 0
    copies: list[str] = field(default_factory=list)  # already in the index, or twice in the folder
    changed: list[str] = field(default_factory=list)  # indexed under this name with other content
    unreadable: list[str] = field(default_factory=list)  # one line each, with the reason

    def summary(self) -> str:
        skipped = {"there already (or copies)": self.copies, "changed since they were indexed": self.changed, "unreadable": self.unreadable}
        parts = [f"{len(names)} {what}" for what, names in skipped.items() if names]
        return f"{self.count} images added" + (f"; skipped: {', '.join(parts)}" if parts else "")


class Index:
    """Images by their embeddings: `entries` (N) and a faiss index of as many unit vectors of dimension D_e.

    Made by `build` (a folder of images), `from_embeddings` or `load`.
    """

    def __init__(self, vectors, entries: list[Entry], kind: str, encoder: dict[str, str]) -> None:
        self.vectors, self.entries, self.kind, self.encoder = vectors, entries, kind, encoder

    def __len__(self) -> int:
        return len(self.entries)

    # -------------------------------------------------------------------------------------------- making

    @classmethod
    def from_embeddings(
        cls, embeddings: np.ndarray, entries: Sequence[Entry | str], kind: str = "exact", encoder: dict[str, str] | None = None
    ) -> Index:
        """Index embeddings (N, D), any norm, under `entries` (names will do).

        `encoder` may hold the `path` and `digest` of the encoder that made them. Raises `SagaError` for an unknown
        kind and for embeddings that do not fit the entries or are not finite.
        """
        if kind not in KINDS:
            raise unknown_name("kind of index", kind, KINDS)
        unit = _unit_rows(embeddings)
        if len(unit) != len(entries):
            raise SagaError(f"{len(unit)} embeddings for {len(entries)} names; one each is needed")
        entries = [Entry(e) if isinstance(e, str) else e for e in entries]
        return cls(_new_vectors(unit, kind), entries, kind, encoder or {})

    @classmethod
    def build(
        cls, folder: str | Path, encoder: Encoder, kind: str = "exact", encoder_path: str | Path = "", batch_size: int = 64
    ) -> tuple[Index, Added]:
        """Index all images below a folder; return the index and what was skipped.

        `encoder_path`, where the encoder is saved, is kept for the command line. Copies (files of equal content)
        enter once. Raises `SagaError` when no image can be read.
        """
        if kind not in KINDS:
            raise unknown_name("kind of index", kind, KINDS)
        entries, embeddings, added = _embedded(Path(folder), encoder, [], batch_size)
        if not entries:
            raise SagaError(f"none of the {len(added.unreadable)} images below {folder} can be read, e.g. {added.unreadable[0]}")
        path = str(Path(encoder_path).resolve()) if str(encoder_path) else ""
        return cls.from_embeddings(embeddings, entries, kind, {"path": path, "digest": encoder_digest(encoder)}), added

    def add_images(self, folder: str | Path, encoder: Encoder, batch_size: int = 64) -> Added:
        """Add the images of a folder that are not in the index yet; adding a folder twice changes nothing.

        An IVF index keeps the clusters of its first images, so build it anew once it has grown several times over.
        """
        self.check_encoder(encoder)
        entries, embeddings, added = _embedded(Path(folder), encoder, self.entries, batch_size)
        if entries:
            self.vectors.add(_unit_rows(embeddings))
            self.entries += entries
        return added

    # ----------------------------------------------------------------------------------------- searching

    def search(self, embeddings: np.ndarray, k: int = 5) -> tuple[np.ndarray, np.ndarray]:
        """Return indices (Q, k) int64 into `entries` and cosines (Q, k) float32 of the nearest, best first.

        embeddings (Q, D), any norm. Where an IVF or HNSW search meets fewer than k images, it is repeated on
        everything. Raises `SagaError` when k or D does not fit.
        """
        queries = _unit_rows(embeddings)
        if queries.shape[1] != self.vectors.d:
            raise SagaError(f"queries have {queries.shape[1]} dimensions, the index {self.vectors.d}")
        if not 1 <= k <= len(self):
            raise SagaError(f"k = {k} images asked of an index of {len(self)}; choose 1 to {len(self)}")
        similarities, indices = self.vectors.search(queries, int(k))
        if (short := (indices < 0).any(1)).any():
            similarities[short], indices[short] = self._exact_vectors().search(queries[short], int(k))
        return indices, similarities

    def query(self, images: Sequence[Image.Image | str | Path], encoder: Encoder, k: int = 5) -> list[list[Hit]]:
        """Return the k nearest images of each query, which is an image or the path of one."""
        self.check_encoder(encoder)
        opened = [image if isinstance(image, Image.Image) else upright_rgb(Path(image)) for image in images]
        indices, similarities = self.search(encoder.embed(opened), k)
        return [
            [Hit(self.entries[i].name, self.entries[i].path, float(s)) for i, s in zip(*row, strict=True)]
            for row in zip(indices.tolist(), similarities.tolist(), strict=True)
        ]

    def recall(self, embeddings: np.ndarray | None = None, k: int = 10, num_queries: int = 1000) -> float:
        """Return which fraction of the k truly nearest images `search` finds, in [0, 1]; 1 for an exact index.

        Queries are `embeddings` (Q, D), or else `num_queries` images of the index (which then find themselves).
        """
        exact = self._exact_vectors()
        if embeddings is None:
            drawn = np.random.default_rng(0).permutation(len(self))[:num_queries]
            embeddings = np.stack([exact.reconstruct(int(i)) for i in drawn])
        k = min(k, len(self))
        _, found = self.search(embeddings, k)
        truth, _ = exact.search(_unit_rows(embeddings), k)
        # By similarity, not by number: either of two equally near images will do.
        return float((found >= truth[:, -1:] - 1e-6).mean())

    def _exact_vectors(self):
        if self.kind == "exact":
            return self.vectors
        exact = _faiss().IndexFlatIP(self.vectors.d)
        exact.add(self.vectors.reconstruct_n(0, len(self)))
        return exact

    # -------------------------------------------------------------------------------------------- keeping

    def check_encoder(self, encoder: Encoder) -> None:
        """Raise `SagaError` unless `encoder` made this index: embeddings of two encoders have nothing in common."""
        expected, got = self.encoder.get("digest", ""), encoder_digest(encoder)
        if expected != got:
            made_by = f"{self.encoder.get('path') or 'an encoder'} (digest {expected[:12]})" if expected else "an unknown encoder"
            raise SagaError(f"this index was made by {made_by}, not by the encoder given (digest {got[:12]}); use that one or build anew")

    def save(self, folder: str | Path) -> None:
        """Write the index into a folder: `index.json` and the faiss file it names.

        An index that is there already is replaced in one move, so that an interruption leaves the old or the new.
        """
        folder = Path(folder)
        content = _faiss().serialize_index(self.vectors).tobytes()
        sha256 = hashlib.sha256(content).hexdigest()
        name = f"{sha256[:12]}.faiss"
        write_atomically(folder / name, lambda path: path.write_bytes(content))
        folders = sorted({entry.folder for entry in self.entries})
        write_json(
            folder / INDEX_FILE,
            {
                "format": 1, "kind": self.kind, "dimension": self.vectors.d, "encoder": self.encoder,
                "vectors": name, "sha256": sha256, "folders": folders,
                "images": [[folders.index(e.folder), e.name, e.sha256] for e in self.entries],
            },
        )  # fmt: skip
        for path in folder.glob("*.faiss"):
            if path.name != name:
                path.unlink(missing_ok=True)

    @classmethod
    def load(cls, folder: str | Path, encoder: Encoder | None = None) -> Index:
        """Load an index written by `save`; with `encoder`, refuse one made by another.

        Raises `SagaError` naming the file that is missing or damaged.
        """
        folder, faiss = Path(folder), _faiss()
        if not (folder / INDEX_FILE).is_file():
            raise SagaError(f"{folder} holds no index ({INDEX_FILE} is missing); make one with: python -m saga_lib.search build")
        content = read_json(folder / INDEX_FILE)
        try:
            if content["format"] != 1:
                raise SagaError(f"{folder / INDEX_FILE} has format {content['format']}, this version reads 1; build the index anew")
            entries = [Entry(name, content["folders"][number], sha256) for number, name, sha256 in content["images"]]
            path, kind, source = folder / content["vectors"], content["kind"], dict(content["encoder"])
            expected = content["sha256"], content["dimension"]
        except (KeyError, TypeError, ValueError, IndexError):
            raise SagaError(f"{folder / INDEX_FILE} was not written by Index.save, or is damaged; build the index anew") from None
        try:
            stored = path.read_bytes()
        except OSError as error:
            raise SagaError(f"{path} cannot be read: {error.strerror}; build the index anew") from None
        if hashlib.sha256(stored).hexdigest() != expected[0]:
            raise SagaError(f"{path} is damaged (its checksum differs); build the index anew")
        vectors = faiss.deserialize_index(np.frombuffer(stored, dtype=np.uint8))
        if kind not in KINDS or (vectors.ntotal, vectors.d) != (len(entries), expected[1]):
            raise SagaError(f"{folder / INDEX_FILE} does not fit {path.name}; build the index anew")
        index = cls(vectors, entries, kind, source)
        if encoder is not None:
            index.check_encoder(encoder)
        return index


def encoder_digest(encoder: Encoder) -> str:
    """Return the SHA-256 of all that an embedding depends on: weights, pooler, image size, preprocessing."""
    import torch

    config = encoder.tower.config_dict()
    processor = config.get("image_processor") or {}
    shape = {"family": config.get("family"), "pooler": encoder.pooler_name, "embedding_dim": encoder.embedding_dim,
             "image_size": config.get("image_size"), "mean": processor.get("image_mean"), "std": processor.get("image_std"),
             "scale": processor.get("rescale_factor")}  # fmt: skip
    digest = hashlib.sha256(json.dumps(shape, sort_keys=True, default=list).encode())
    for name, tensor in sorted(encoder.state_dict().items()):
        tensor = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _faiss():
    try:
        import faiss
    except ModuleNotFoundError:
        raise SagaError("searching needs faiss: pip install faiss-cpu") from None
    return faiss


def _unit_rows(embeddings: np.ndarray) -> np.ndarray:
    """Return embeddings (N, D) as float32 rows of unit length."""
    rows = np.asarray(embeddings, dtype=np.float32)
    if rows.ndim != 2 or rows.size == 0:
        raise SagaError(f"embeddings must be (N, D) with N, D >= 1, got shape {rows.shape}")
    norms = np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
    if not np.isfinite(norms).all() or not norms.all():
        raise SagaError(f"embedding {int(np.flatnonzero(~np.isfinite(norms) | (norms == 0))[0])} is zero or not finite")
    return np.ascontiguousarray(rows / norms, dtype=np.float32)


def _new_vectors(unit: np.ndarray, kind: str):
    """Return a faiss index of the rows `unit` (N, D)."""
    faiss = _faiss()
    num, dim = unit.shape
    if kind == "exact":
        vectors = faiss.IndexFlatIP(dim)
    elif kind == "hnsw":
        vectors = faiss.IndexHNSWFlat(dim, HNSW_LINKS, faiss.METRIC_INNER_PRODUCT)
        vectors.hnsw.efConstruction, vectors.hnsw.efSearch = HNSW_BUILD, HNSW_SEARCH
    else:
        clusters = max(1, min(round(4 * num**0.5), num // POINTS_PER_CLUSTER))
        vectors = faiss.index_factory(dim, f"IVF{clusters},Flat", faiss.METRIC_INNER_PRODUCT)
        vectors.train(unit)
        vectors.make_direct_map()  # so that vectors can be read back
        vectors.nprobe = min(IVF_PROBES, clusters)
    vectors.add(unit)
    return vectors


def _embedded(folder: Path, encoder: Encoder, known: Sequence[Entry], batch_size: int) -> tuple[list[Entry], np.ndarray | None, Added]:
    """Embed the images of a folder that are not among `known`: entries (N), embeddings (N, D_e), and what was skipped."""
    import torch
    from tqdm import tqdm

    files = find_images(folder)
    if not files:
        raise SagaError(f"{folder} holds no image; give a folder with photographs")
    root = folder.resolve()
    seen = {entry.sha256 for entry in known}
    places = {(entry.folder, entry.name): entry.sha256 for entry in known}
    entries, parts, added = [], [], Added()

    def prepare(path: Path) -> tuple[Entry, object]:
        """Return the entry of a file with its pixels (1, …), or None (seen before), or why it cannot be used."""
        name = path.relative_to(folder).as_posix()
        try:
            name.encode()
            entry = Entry(name, str(root), hashlib.sha256(path.read_bytes()).hexdigest())
            # One by one, since a batch of undecimated photographs would not fit into memory.
            return entry, None if entry.sha256 in seen else encoder.tower.preprocess([upright_rgb(path)])
        except UnicodeEncodeError:
            return Entry(ascii(name)[1:-1]), f"image {ascii(str(path))} has a name that is not UTF-8; rename it"
        except OSError as error:
            return Entry(name), f"image {path} cannot be read ({error.strerror})"
        except SagaError as error:
            return Entry(name), str(error)

    with ThreadPoolExecutor(os.cpu_count()) as pool, tqdm(total=len(files), desc="embedding", unit="image", disable=None) as bar:
        for start in range(0, len(files), batch_size):
            pixels = []
            for entry, prepared in pool.map(prepare, files[start : start + batch_size]):
                if isinstance(prepared, str):
                    added.unreadable.append(prepared)
                elif places.get((entry.folder, entry.name), entry.sha256) != entry.sha256:
                    added.changed.append(entry.name)
                elif entry.sha256 in seen:
                    added.copies.append(entry.name)
                else:
                    seen.add(entry.sha256)
                    entries.append(entry)
                    pixels.append(prepared)
                bar.update()
            if pixels:
                parts.append(encoder.embed_pixels(torch.cat(pixels), batch_size))
    added.count = len(entries)
    return entries, np.concatenate(parts) if parts else None, added


# ---------------------------------------------------------------------------------------------- showing results


def results_table(results: Mapping[str, Sequence[Hit]]) -> pd.DataFrame:
    """Return {query: hits} as a table: query, rank (from 1), similarity, name, path."""
    import pandas as pd

    rows = [
        {"query": query, "rank": rank, "similarity": round(hit.similarity, 4), "name": hit.name, "path": str(hit.path)}
        for query, hits in results.items()
        for rank, hit in enumerate(hits, 1)
    ]
    return pd.DataFrame(rows, columns=["query", "rank", "similarity", "name", "path"])


GALLERY_CSS = """
.row { display: grid; grid-template-columns: repeat(auto-fill, minmax(9rem, 1fr)); gap: .8rem; margin: .8rem 0 2rem; }
.row figure { margin: 0; padding: .5rem; border: 1px solid var(--line); border-radius: 6px; background: var(--soft); }
.row figure.query { border: 3px solid var(--warn-line); }
.row img, .row .missing { width: 100%; aspect-ratio: 1; object-fit: contain; padding: 0; background: none; }
.row .missing { display: grid; place-items: center; font-size: .88rem; text-align: center; }
h2, figcaption { overflow-wrap: anywhere; } figcaption b { font-variant-numeric: tabular-nums; }
"""


def gallery(results: Mapping[str, Sequence[Hit]], note: str = "") -> str:
    """Return a self-contained HTML page of {path of the query: hits}; thumbnails are inside, no file is linked."""
    from saga_lib.report import CSS  # one look for all pages of the project

    sections = []
    for query, hits in results.items():
        figures = [_figure(Path(query), "query", Path(query).name, "query")]
        figures += [_figure(h.path, f"hit {rank}: {h.similarity:.3f}", h.name) for rank, h in enumerate(hits, 1)]
        sections.append(f'<h2>{html.escape(_printable(Path(query).name))}</h2>\n<div class="row">{"".join(figures)}</div>')
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Image search</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{CSS}{GALLERY_CSS}</style></head>\n'
        f"<body><h1>Image search</h1><p>{html.escape(_printable(note))} Each query stands first; below each hit is its cosine "
        f"similarity (1: the same direction).</p>\n{''.join(sections)}</body></html>\n"
    )


def _figure(path: Path, role: str, name: str, kind: str = "hit") -> str:
    title = html.escape(_printable(name))
    label = f"<b>{html.escape(role)}</b><br>{title}"
    try:
        thumbnail = upright_rgb(path)
    except SagaError:
        shown = '<div class="missing">this file is gone or cannot be read any more</div>'
    else:
        thumbnail.thumbnail((THUMBNAIL, THUMBNAIL))
        buffer = io.BytesIO()
        thumbnail.save(buffer, "JPEG", quality=82)
        data = base64.b64encode(buffer.getvalue()).decode("ascii")
        shown = f'<img loading="lazy" alt="{html.escape(role)}, {title}" src="data:image/jpeg;base64,{data}">'
    return f'<figure class="{kind}">{shown}<figcaption>{label}</figcaption></figure>'


def _printable(text: str) -> str:
    """Return a text without control characters and lone surrogates, which file names may hold."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


# -------------------------------------------------------------------------------------------- the command line


def _make_parser() -> argparse.ArgumentParser:
    parser = CommandLine(prog="python -m saga_lib.search", description="Search your own images with a trained encoder.", allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="build | add | query")

    def command(name: str, work: Callable[[argparse.Namespace], None], text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        added.set_defaults(work=work)
        return added

    build = command("build", _build, "embed all images below a folder and write an index")
    build.add_argument("folder", type=Path, help="folder of images, searched at any depth")
    build.add_argument("--encoder", type=Path, required=True, metavar="DIR", help="a run's encoder folder (Encoder.save_pretrained)")
    build.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write; new or empty")
    build.add_argument("--kind", default="exact", help="; ".join(f"{kind}: {text}" for kind, text in KINDS.items()))
    add = command("add", _add, "add the images of a folder that the index does not hold yet")
    add.add_argument("index", type=Path, help="folder of an index")
    add.add_argument("folder", type=Path, help="folder of images")
    query = command("query", _query, "find the images most similar to these")
    query.add_argument("index", type=Path, help="folder of an index")
    query.add_argument("images", type=Path, nargs="+", metavar="IMAGE", help="image files to search for")
    query.add_argument("--k", type=int, help="hits per query (default: 5)")
    query.add_argument("--html", type=Path, metavar="FILE", help="also write a gallery, one self-contained page")
    query.add_argument("--csv", type=Path, metavar="FILE", help="also write the table as CSV")
    for parser_of in (add, query):
        parser_of.add_argument("--encoder", type=Path, metavar="DIR", help="where the encoder of the index lies, if it was moved")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out a command line and return its exit code: 0, 2 (the user can mend it) or 130 (interrupted)."""
    try:
        options = _make_parser().parse_args(arguments)
        options.work(options)
    except SagaError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


def _build(options: argparse.Namespace) -> None:
    if options.kind not in KINDS:
        raise unknown_name("kind of index", options.kind, KINDS)
    _faiss()
    out = options.out
    if (out / INDEX_FILE).exists():
        raise SagaError(f"{out} holds an index already; use 'add' to extend it, or choose another folder")
    if out.is_dir() and any(out.iterdir()):
        raise SagaError(f"{out} is not empty and holds no index; choose a new folder")
    if not find_images(options.folder):
        raise SagaError(f"{options.folder} holds no image; give a folder with photographs")
    _check_writable(out)
    encoder = _load_encoder(options.encoder)
    index, added = Index.build(options.folder, encoder, options.kind, options.encoder)
    index.save(out)
    _report_added(added)
    print(f"index of {len(index)} images ({index.vectors.d} dimensions, {index.kind}): {out}")


def _add(options: argparse.Namespace) -> None:
    index = Index.load(options.index)
    _check_writable(options.index)
    added = index.add_images(options.folder, _encoder_of(index, options))
    if added.count:
        index.save(options.index)
    _report_added(added)
    print(f"index of {len(index)} images: {options.index}")


def _query(options: argparse.Namespace) -> None:
    index = Index.load(options.index)
    k = min(5, len(index)) if options.k is None else options.k
    if not 1 <= k <= len(index):
        raise SagaError(f"--k is {k}; this index holds {len(index)} images, choose 1 to {len(index)}")
    for output, suffix in ((options.html, ".html"), (options.csv, ".csv")):
        if output and output.suffix.lower() != suffix:  # a slip must not overwrite a photograph
            raise SagaError(f"--{suffix[1:]} is {output}; its name must end in {suffix}")
        if output and output.is_dir():
            raise SagaError(f"{output} is a folder; name a file to write")
        if output:
            _check_writable(output.parent)
    images = {str(path): upright_rgb(path) for path in options.images}  # before the slow part
    hits = index.query(list(images.values()), _encoder_of(index, options), k)
    results = dict(zip(images, hits, strict=True))
    table = results_table(results)
    for query, rows in table.groupby("query", sort=False):
        print(f"\n{_printable(query)}")
        shown = rows[["rank", "similarity"]].assign(name=[f"  {_printable(name)}" for name in rows["name"]])
        width = shown["name"].str.len().max()
        print(shown.to_string(index=False, formatters={"similarity": "{:.4f}".format, "name": f"{{:<{width}}}".format}))
    if options.csv:
        write_text(options.csv, table.map(lambda cell: _printable(cell) if isinstance(cell, str) else cell).to_csv(index=False))
        print(f"\ntable: {options.csv}")
    if options.html:
        write_text(options.html, gallery(results, f"{len(results)} queries in an index of {len(index)} images."))
        print(f"\ngallery: {options.html}")


def _report_added(added: Added) -> None:
    for line in added.unreadable[:10]:
        print(f"skipped: {_printable(line)}", file=sys.stderr)
    if len(added.unreadable) > 10:
        print(f"skipped: {len(added.unreadable) - 10} more unreadable images", file=sys.stderr)
    if added.changed:
        print(f"changed since indexed, e.g. {_printable(added.changed[0])}: build the index anew to renew them", file=sys.stderr)
    print(added.summary())


def _load_encoder(folder: Path) -> Encoder:
    import torch

    from saga_lib.encoder import Encoder

    return Encoder.from_pretrained(folder).to("cuda" if torch.cuda.is_available() else "cpu")


def _encoder_of(index: Index, options: argparse.Namespace) -> Encoder:
    folder = options.encoder or Path(index.encoder.get("path") or ".")
    if not options.encoder and not (folder / "config.json").is_file():
        raise SagaError(f"the encoder of this index is not at {folder} any more; say where it is with --encoder DIR")
    encoder = _load_encoder(folder)
    index.check_encoder(encoder)
    return encoder


def _check_writable(folder: Path) -> None:
    """Create a folder and prove that it can be written, before minutes of work are spent."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise SagaError(f"cannot write into {folder}: {error.strerror}; choose another folder") from None


if __name__ == "__main__":
    sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")
    sys.exit(main())
