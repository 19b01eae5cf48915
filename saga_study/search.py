"""Search a folder of images with a trained encoder: the command and the page it writes."""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from saga_lib.common.errors import CommandLine, SagaError, exit_code
from saga_lib.common.files import write_text
from saga_lib.common.images import find_images, upright_rgb
from saga_study.deploy.index import INDEX_FILE, KINDS, Added, Hit, Index, import_faiss
from saga_study.findings.page import data_uri, render

if TYPE_CHECKING:
    import pandas as pd

    from saga_lib.encoder import Encoder

THUMBNAIL = 256  # pixels


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


def results_page(results: Mapping[str, Sequence[Hit]], note: str = "") -> str:
    """Return a self-contained HTML page of {path of the query: hits}; thumbnails are inside, no file is linked."""
    rows = []
    for query, hits in results.items():
        pictures = [_picture(Path(query), "query", Path(query).name, "query")]
        pictures += [_picture(hit.path, f"hit {rank}: {hit.similarity:.3f}", hit.name) for rank, hit in enumerate(hits, 1)]
        rows.append((_printable(Path(query).name), pictures))
    return render("search.html", title="Image search", note=_printable(note), rows=rows)


def _picture(path: Path, role: str, name: str, kind: str = "hit") -> dict[str, str]:
    """Return what the page shows of an image; its source is empty if the file cannot be read any more."""
    picture = {"kind": kind, "role": role, "name": _printable(name), "source": ""}
    with contextlib.suppress(SagaError):
        thumbnail = upright_rgb(path)
        thumbnail.thumbnail((THUMBNAIL, THUMBNAIL))
        buffer = io.BytesIO()
        thumbnail.save(buffer, "JPEG", quality=82)
        picture["source"] = data_uri(buffer.getvalue(), "jpeg")
    return picture


def _printable(text: str) -> str:
    """Return a text without control characters and lone surrogates, which file names may hold."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


# -------------------------------------------------------------------------------------------- the command line


def _make_parser() -> argparse.ArgumentParser:
    about = "Search your own images with a trained encoder."
    parser = CommandLine(prog="python -m saga_study.search", description=about, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="build | add | query")

    def command(name: str, work: Callable[[argparse.Namespace], None], text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        added.set_defaults(work=work)
        return added

    build = command("build", _build, "embed all images below a folder and write an index")
    build.add_argument("folder", type=Path, help="folder of images, searched at any depth")
    build.add_argument("--encoder", type=Path, required=True, metavar="DIR", help="a run's encoder folder (Encoder.save_pretrained)")
    build.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write; new or empty")
    build.add_argument("--kind", default="exact", help=f"{' | '.join(KINDS)}, or any other faiss factory string (default: exact)")
    add = command("add", _add, "add the images of a folder that the index does not hold yet")
    add.add_argument("index", type=Path, help="folder of an index")
    add.add_argument("folder", type=Path, help="folder of images")
    query = command("query", _query, "find the images most similar to these")
    query.add_argument("index", type=Path, help="folder of an index")
    query.add_argument("images", type=Path, nargs="+", metavar="IMAGE", help="image files to search for")
    query.add_argument("--k", type=int, help="hits per query (default: 5)")
    query.add_argument("--html", type=Path, metavar="FILE", help="also write the results as one self-contained page")
    query.add_argument("--csv", type=Path, metavar="FILE", help="also write the table as CSV")
    for parser_of in (add, query):
        parser_of.add_argument("--encoder", type=Path, metavar="DIR", help="folder of the index's encoder, if it was moved")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out a command line and return its exit code: 0, 2 (a mistake of the user) or 130 (interrupted)."""

    def work() -> None:
        options = _make_parser().parse_args(arguments)
        options.work(options)

    return exit_code(work)


def _build(options: argparse.Namespace) -> None:
    import_faiss()
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
        if output and output.suffix.lower() != suffix:  # so that a typing error cannot overwrite a photograph
            raise SagaError(f"--{suffix[1:]} is {output}; its name must end in {suffix}")
        if output and output.is_dir():
            raise SagaError(f"{output} is a folder; name a file to write")
        if output:
            _check_writable(output.parent)
    images = {str(path): upright_rgb(path) for path in options.images}  # errors in reading them come before the slow part
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
        write_text(options.html, results_page(results, f"{len(results)} queries in an index of {len(index)} images."))
        print(f"\npage: {options.html}")


def _report_added(added: Added) -> None:
    for line in added.unreadable[:10]:
        print(f"skipped: {_printable(line)}", file=sys.stderr)
    if len(added.unreadable) > 10:
        print(f"skipped: {len(added.unreadable) - 10} more unreadable images", file=sys.stderr)
    if added.changed:
        print(f"changed since indexed, e.g. {_printable(added.changed[0])}: build the index again to update them", file=sys.stderr)
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
    """Create a folder and check that files can be written there, before minutes of work are spent."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise SagaError(f"cannot write into {folder}: {error.strerror}; choose another folder") from None


if __name__ == "__main__":
    sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")
    sys.exit(main())
