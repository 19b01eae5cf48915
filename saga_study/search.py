"""Search a folder of images with a trained encoder: the command and the page it writes."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from saga_lib.common.errors import SagaError, one_line
from saga_lib.common.files import write_json, write_text
from saga_lib.common.images import upright_rgb
from saga_lib.common.paths import given_path
from saga_study.commands import CommandLine, exit_code
from saga_study.deploy.building import SHARD_SIZE, build_in_shards, team
from saga_study.deploy.encoders import load_encoder
from saga_study.deploy.entries import CHANGED, GONE, THERE, Added, Entry, images_below
from saga_study.deploy.factory import FLAT, import_faiss
from saga_study.deploy.index import Hit, Index
from saga_study.deploy.shards import SHARDS
from saga_study.deploy.storage import INDEX_FILE
from saga_study.findings.page import data_uri, render
from saga_study.processes import only_one_process

if TYPE_CHECKING:
    import pandas as pd

    from saga_lib.encoder import Encoder

THUMBNAIL = 256  # pixels
REMARKS = {  # on the file of a hit
    GONE: "this file is gone or cannot be read any more", CHANGED: "this file holds another picture by now",
}  # fmt: skip


# ---------------------------------------------------------------------------------------------- showing results


def results_table(results: Mapping[str, Sequence[Hit]]) -> pd.DataFrame:
    """Return {query: hits} as a table: query, rank (from 1), similarity, name, path, and file: there, gone or changed."""
    import pandas as pd

    rows = [
        {"query": one_line(query), "rank": rank, "similarity": round(hit.similarity, 4), "name": one_line(hit.name),
         "path": one_line(str(hit.path)), "file": hit.file}
        for query, hits in results.items()
        for rank, hit in enumerate(hits, 1)
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=["query", "rank", "similarity", "name", "path", "file"])


def other_hits(query: str | Path, hits: Sequence[Hit], k: int) -> list[Hit]:
    """Return the first k hits without the query's own file, which an index of its folder finds first and nobody looks for."""
    own = Path(query).resolve()
    return [hit for hit in hits if hit.path.resolve() != own][:k]


def results_page(results: Mapping[str, Sequence[Hit]], note: str = "", words: Collection[str] = ()) -> str:
    """Return a self-contained HTML page of {path of the query: hits}; thumbnails are inside, no file is linked.

    Queries that are among `words` are no paths, but shown as they are.
    """
    rows, names = [], Counter(Path(query).name for query in results)
    for query, hits in results.items():
        name = query if query in words else Path(query).name
        asked = {"role": "query", "name": one_line(name), "source": "", "remark": "words"}
        pictures = [(asked if query in words else _picture(Path(query), "query", name, THERE)) | {"kind": "query"}]
        pictures += [_picture(hit.path, f"hit {rank}: {hit.similarity:.3f}", hit.name, hit.file) for rank, hit in enumerate(hits, 1)]
        rows.append((one_line(name if names[name] <= 1 else query), pictures))
    return render("search.html", title="Image search", note=one_line(note), rows=rows)


def _picture(path: Path, role: str, name: str, file: str) -> dict[str, str]:
    """Return what the page shows of an image; its source is empty, and its remark says why, if the file is not the one indexed."""
    picture = {"kind": "hit", "role": role, "name": one_line(name), "source": "", "remark": REMARKS.get(file, REMARKS[GONE])}
    if file == THERE:
        with contextlib.suppress(SagaError):
            thumbnail = upright_rgb(path)
            thumbnail.thumbnail((THUMBNAIL, THUMBNAIL))
            buffer = io.BytesIO()
            thumbnail.save(buffer, "JPEG", quality=82)
            picture["source"] = data_uri(buffer.getvalue(), "jpeg")
    return picture


# -------------------------------------------------------------------------------------------- the command line


def _make_parser() -> argparse.ArgumentParser:
    about = "Search your own images with a trained encoder."
    parser = CommandLine(prog="python -m saga_study.search", description=about, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="build | add | words | query")

    def command(name: str, work: Callable[[argparse.Namespace], None], text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        added.set_defaults(work=work)
        return added

    build = command("build", _build, "embed all images below a folder and write an index")
    build.add_argument("folder", type=given_path, help="folder of images, searched at any depth")
    build.add_argument("--encoder", type=given_path, required=True, metavar="DIR", help="a run's encoder folder (Encoder.save_pretrained)")
    build.add_argument("--out", type=given_path, required=True, metavar="DIR", help="folder to write; new or empty")
    build.add_argument(
        "--index", default=FLAT, metavar="STRING",
        help="a factory string of faiss: IVF4096,PQ64 and the like for millions (default: Flat, compares with every image)",
    )  # fmt: skip
    build.add_argument("--shard-size", type=_at_least(1), default=SHARD_SIZE, metavar="N", help=f"files of a shard (default: {SHARD_SIZE})")
    build.add_argument("--workers", type=_at_least(0), metavar="N", help="processes that decode images (default: one per core)")
    add = command("add", _add, "add the images of a folder that the index does not hold yet")
    add.add_argument("index", type=given_path, help="folder of an index")
    add.add_argument("folder", type=given_path, help="folder of images")
    words = command("words", _words, "learn to search by words, from what a supervisor says of the index's images")
    words.add_argument("index", type=given_path, help="folder of an index")
    words.add_argument("--supervisor", required=True, metavar="MODEL", help="multimodal language model: a folder or a name on the hub")
    words.add_argument("--vocabulary", required=True, metavar="NAME", help="attributes to describe: a shipped vocabulary or a YAML file")
    words.add_argument("--images", type=int, default=2000, help="images to describe at most, evenly chosen (default: 2000)")
    query = command("query", _query, "find the images most similar to these, or those that words describe")
    query.add_argument("index", type=given_path, help="folder of an index")
    query.add_argument("images", type=given_path, nargs="*", metavar="IMAGE", help="image files to search for")
    query.add_argument("--words", action="append", default=[], metavar="TEXT", help='such as "red crown and barred wing"; may be repeated')
    query.add_argument("--k", type=int, help="hits per query (default: 5)")
    query.add_argument("--html", type=Path, metavar="FILE", help="also write the results as one self-contained page")
    query.add_argument("--csv", type=Path, metavar="FILE", help="also write the table as CSV")
    query.add_argument("--json", type=Path, metavar="FILE", help="also write the table as JSON, a list of rows")
    for parser_of in (add, words, query):
        parser_of.add_argument("--encoder", type=given_path, metavar="DIR", help="folder of the index's encoder, if it was moved")
    return parser


def _at_least(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if int(text) < least:
            raise argparse.ArgumentTypeError(f"{text} is less than {least}")
        return int(text)

    number.__name__ = "int"  # which argparse names
    return number


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out a command line and return its exit code: 0, 2 (a mistake of the user) or 130 (interrupted)."""

    def work() -> None:
        options = _make_parser().parse_args(arguments)
        options.work(options)

    return exit_code(work, "interrupted; nothing is lost: the same command goes on")


def _build(options: argparse.Namespace) -> None:
    import_faiss()
    out = options.out
    with team() as together, contextlib.ExitStack() as stack:
        together.first(lambda: _check_before_building(options))
        encoder = load_encoder(options.encoder)
        if together.rank == 0:
            stack.enter_context(only_one_process(out / ".building", f"index {out}"))
        added = build_in_shards(
            options.folder, encoder, out, options.index, options.encoder, shard_size=options.shard_size, workers=options.workers,
            together=together,
        )  # fmt: skip
        if together.rank:
            return
        shutil.rmtree(out / ".unfinished", ignore_errors=True)  # which builds of before left when they were interrupted
    index = Index.load(out, mapped=True)
    _report(added)
    print(f"index of {len(index)} images ({index.vectors.d} dimensions, {one_line(index.kind)}): {one_line(str(out))}")


def _check_before_building(options: argparse.Namespace) -> None:
    """Raise `SagaError` for what can be seen to be wrong before the encoder is loaded."""
    out = options.out
    if os.path.exists(out / INDEX_FILE):
        raise SagaError(f"{out} holds an index already; use 'add' to extend it, or choose another folder")
    if os.path.isdir(out) and any(name[0] != "." and name != SHARDS for name in os.listdir(out)):
        raise SagaError(f"{out} is not empty and holds no index; choose a new folder")
    images_below(options.folder)
    _check_writable(out)


def _add(options: argparse.Namespace) -> None:
    index = Index.load(options.index)
    _check_writable(options.index)
    encoder = _encoder_of(index, options)
    try:
        added = index.add_images(options.folder, encoder)
    except KeyboardInterrupt:
        index.save(options.index)
        raise
    if added.count or added.moved:
        index.save(options.index)
    _report(added, index.gone())
    print(f"index of {len(index)} images: {one_line(str(options.index))}")


def _query(options: argparse.Namespace) -> None:
    index = Index.load(options.index, mapped=True)
    if not len(index):
        raise SagaError(f"{options.index} holds no image; add some with 'add'")
    k = min(5, len(index)) if options.k is None else options.k
    if not 1 <= k <= len(index):
        raise SagaError(f"--k is {k}; this index holds {len(index)} images, choose 1 to {len(index)}")
    for output, suffix in ((options.html, ".html"), (options.csv, ".csv"), (options.json, ".json")):
        if output and output.suffix.lower() != suffix:  # so that a typing error cannot overwrite a photograph
            raise SagaError(f"--{suffix[1:]} is {output}; its name must end in {suffix}")
        if output and os.path.isdir(output):
            raise SagaError(f"{output} is a folder; name a file to write")
        if output:
            _check_writable(output.parent)
    if not options.images and not options.words:
        raise SagaError("nothing to search for: name image files, or say what is to be seen with --words")
    if folder := next((path for path in options.images if os.path.isdir(path)), None):
        raise SagaError(f"{folder} cannot be read (Is a directory); name image files, such as {folder / '*.jpg'}")
    images = {str(path): upright_rgb(path) for path in options.images}  # errors in reading them come before the slow part
    results = _found_by_words(index, options, k)
    if images:
        found = index.query(list(images.values()), _encoder_of(index, options), min(k + 1, len(index)))
        results |= {query: other_hits(query, hits, k) for query, hits in zip(images, found, strict=True)}
    table = results_table(results)
    for query in (query for query, hits in results.items() if not hits):
        print(f"\n{one_line(query)}\nno other image is in this index")
    for query, rows in table.groupby("query", sort=False):
        print(f"\n{query}")
        remarks = rows["file"].map(lambda file: f"  ({REMARKS[file]})" if file in REMARKS else "")
        shown = rows[["rank", "similarity"]].assign(name="  " + rows["name"] + remarks)
        width = shown["name"].str.len().max()
        print(shown.to_string(index=False, formatters={"similarity": "{:.4f}".format, "name": f"{{:<{width}}}".format}))
    if options.csv:
        write_text(options.csv, table.to_csv(index=False))
        print(f"\ntable: {one_line(str(options.csv))}")
    if options.json:
        write_json(options.json, table.to_dict("records"))
        print(f"\ntable: {one_line(str(options.json))}")
    if options.html:
        write_text(options.html, results_page(results, f"{len(results)} queries in an index of {len(index)} images.", options.words))
        print(f"\npage: {one_line(str(options.html))}")


def _words(options: argparse.Namespace) -> None:
    """Learn the map of `saga_study.deploy.words` from the index's own images and keep it beside the index."""
    import torch

    from saga_lib.families.loading import load_supervisor
    from saga_lib.vocabulary import load_vocabulary
    from saga_study.deploy.words import MAP_FILE, learn_from_images

    index = Index.load(options.index)
    if options.images < 2:
        raise SagaError(f"--images is {options.images}; words are learnt from at least 2")
    vocabulary, encoder = load_vocabulary(options.vocabulary), _encoder_of(index, options)
    _check_writable(options.index)
    dtype = torch.bfloat16 if encoder.device.type == "cuda" else torch.float32
    tower, frozen = load_supervisor(os.path.expanduser(options.supervisor), encoder.tower.image_size, encoder.device, dtype)
    tower.image_fit = encoder.tower.image_fit
    there = [entry.path for entry in index.entries if os.path.isfile(entry.place)]
    paths = [there[n * len(there) // min(options.images, len(there))] for n in range(min(options.images, len(there)))]
    made = learn_from_images(paths, encoder, tower, frozen, vocabulary, index.encoder.get("digest", ""))
    made.save(options.index)
    known = "; ".join(f"{name}: {', '.join(own)}" for name, own in made.values.items())
    print(f"words learnt from {len(paths)} images, kept in {one_line(str(options.index / MAP_FILE))}: {one_line(known)}")


def _found_by_words(index: Index, options: argparse.Namespace, k: int) -> dict[str, list[Hit]]:
    """Return the hits of each text of --words, by the map beside the index or else beside its encoder; no model is loaded."""
    if not options.words:
        return {}
    from saga_study.deploy.words import MAP_FILE, WordMap, parse_words

    places = [options.index, options.encoder or Path(index.encoder.get("path") or ".")]
    known = WordMap.load(next((place for place in places if os.path.isfile(place / MAP_FILE)), options.index))
    if known.encoder != index.encoder.get("digest", ""):
        raise SagaError(f"the words beside {options.index} were learnt for another encoder; learn them again")
    queries = known.embed([parse_words(text, known.values) for text in options.words])
    return dict(zip(options.words, index.hits(queries, k), strict=True))


def _report(added: Added, gone: Sequence[Entry] = ()) -> None:
    """Say on stderr what was left out and what is `gone`, on stdout what was added."""
    for line in added.skipped:
        print(f"left out: {one_line(line)}", file=sys.stderr)
    for line in added.unreadable[:10]:
        print(f"skipped: {one_line(line)}", file=sys.stderr)
    if len(added.unreadable) > 10:
        print(f"skipped: {len(added.unreadable) - 10} more unreadable images", file=sys.stderr)
    if added.changed:
        print(f"changed since indexed, e.g. {one_line(added.changed[0])}: build the index again to update them", file=sys.stderr)
    if gone:
        place = one_line(gone[0].place)
        print(f"gone: {len(gone)} images of the index, e.g. {place}: add the folder where they are now, or build it again", file=sys.stderr)
    print(added.summary())


def _encoder_of(index: Index, options: argparse.Namespace) -> Encoder:
    folder = options.encoder or Path(index.encoder.get("path") or ".")
    if not options.encoder and not os.path.isfile(folder / "config.json"):
        raise SagaError(f"the encoder of this index is not at {folder} any more; say where it is with --encoder DIR")
    encoder = load_encoder(folder)
    index.check_encoder(encoder)
    return encoder


def _check_writable(folder: Path) -> None:
    """Create a folder and check that files can be written there, before minutes of work are spent."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (OSError, ValueError) as error:  # a name with a NUL is a ValueError
        raise SagaError(f"cannot write into {folder}: {getattr(error, 'strerror', error)}; choose another folder") from None


if __name__ == "__main__":
    sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")
    sys.exit(main())
