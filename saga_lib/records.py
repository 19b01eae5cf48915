"""What a run reads and what it leaves: the checksums of its inputs, its content address, its folder.

A run is resolved once (`resolve`): the result says where its supervisor is, what it reads and under which address its
results belong. The address is a hash of settings, inputs and code, so that no run is computed twice and no result of
other settings, inputs or code is mistaken for this run's.
"""

from __future__ import annotations

import hashlib
import json
import lzma
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from saga_lib.common.errors import SagaError
from saga_lib.common.files import read_json
from saga_lib.common.model_files import in_one_line, is_local, model_files
from saga_lib.config import RunConfig

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from saga_lib.datasets import Benchmark
    from saga_lib.encoder import Encoder

# ------------------------------------------------------------------------------------------------- the code

SAME_NUMBERS = Path(__file__).parent / "same_numbers.json"  # written by `python -m saga_study.runs --same-numbers STUDY`


def exact_code_digest() -> str:
    """Return a digest of the source that results depend on: all of this library."""
    root = Path(__file__).parent
    digest = hashlib.sha256()
    for path in sorted([*root.rglob("*.py"), *root.rglob("*.yaml")]):
        digest.update(path.relative_to(root).as_posix().encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


@lru_cache
def code_digest() -> str:
    """Return the code's part of a run's address, so that runs of code that may compute other numbers are never mixed.

    This is the digest of the source. If `same_numbers.json` records that this source computes exactly what an earlier one did,
    checked by training a study's runs again, it is the digest of the earlier one: an edited comment must not cost hours of
    training. The check holds for the kind of machine it ran on; none has been made on a GPU yet.
    """
    digest = exact_code_digest()
    shown = json.loads(SAME_NUMBERS.read_text(encoding="utf-8")) if SAME_NUMBERS.is_file() else []
    return next((entry["same_as"] for entry in shown if entry["code"] == digest), digest)


def content_key(config: RunConfig, inputs: dict[str, str]) -> str:
    """Return the content address of a run: its settings, its inputs' checksums and the code.

    The paths of your own images and vocabulary do not count, because their checksums are among the inputs.
    """
    settings = config.to_dict() | {"data_dir": "", "vocabulary": ""}
    text = json.dumps([settings, inputs, code_digest()], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


# ------------------------------------------------------------------------------------------------- its inputs


@dataclass(frozen=True)
class ResolvedRun:
    """A run with what its settings point to: where its supervisor is, what it reads, under which address it belongs."""

    config: RunConfig
    supervisor: str  # folder, hub id or timm model
    inputs: dict[str, str]  # checksums: benchmark, supervisor, vocabulary where the run names its own
    load_benchmark: Callable[[], Benchmark] = field(repr=False)
    audit: Callable[..., list[dict]] | None = field(default=None, repr=False)  # looks at a step for `audit_every`, e.g. saga_study.audit
    measures: Callable[..., dict] | None = field(default=None, repr=False)  # of readings, for `measure_reading`, e.g. saga_study.measures

    @cached_property
    def key(self) -> str:
        """The run's content address, 12 hex digits; in a study, the name of its folder."""
        return content_key(self.config, self.inputs)

    @cached_property
    def benchmark(self) -> Benchmark:
        """The images and labels, loaded on first use; the address does not need them."""
        return self.load_benchmark()


def resolve(config: RunConfig, benchmark: Benchmark) -> ResolvedRun:
    """Find what a run on a benchmark of your own reads; `saga_study.resolving` does it for benchmarks and supervisors that have names.

    `config.supervisor` is a folder, a hub id or a timm model. Raises `SagaError` for missing inputs.
    """
    inputs = run_inputs(config, config.supervisor, benchmark.checksum)
    return ResolvedRun(config, config.supervisor, inputs, lambda: benchmark)


def run_inputs(config: RunConfig, supervisor: str, benchmark: str) -> dict[str, str]:
    """Return the checksums of what a run reads: the `benchmark`'s as given, the supervisor's files, a vocabulary of its own."""
    inputs = {"benchmark": benchmark, "supervisor": _supervisor_checksum(supervisor)}
    if config.vocabulary:
        from saga_lib.vocabulary import load_vocabulary

        inputs["vocabulary"] = hashlib.sha256(repr(load_vocabulary(config.vocabulary)).encode()).hexdigest()[:12]
    return inputs


def _supervisor_checksum(source: str) -> str:
    """Return a digest of a supervisor's files, or of its name if it is not a local folder."""
    if not is_local(source):
        return hashlib.sha256(source.encode()).hexdigest()[:12]
    with in_one_line(f"supervisor {source} cannot be read"):
        files = [(path, path.relative_to(source).as_posix(), path.stat()) for path in model_files(source)]
        return _files_checksum(tuple((path, name, stat.st_size, stat.st_mtime_ns) for path, name, stat in files))[:12]


@lru_cache
def _files_checksum(files: tuple[tuple[Path, str, int, int], ...]) -> str:
    """Return the sha256 of the names and contents of files (path, name, size, time of change); cached, since an 8B model has 17 GB."""
    checksum = hashlib.sha256()
    for path, name, *_ in files:
        checksum.update(name.encode())
        with open(path, "rb") as content:
            while block := content.read(2**22):
                checksum.update(block)
    return checksum.hexdigest()


# ------------------------------------------------------------------------------------------------ what it leaves


@dataclass(frozen=True)
class Run:
    """A complete run: its settings and the files in its folder, read on first use."""

    folder: Path
    config: RunConfig

    @property
    def key(self) -> str:
        return self.folder.name

    @cached_property
    def metrics(self) -> pd.DataFrame:
        """One row per optimizer step, as training logged it; empty for a run without training."""
        import pandas as pd

        return pd.DataFrame(self._read_log("metrics"))

    @cached_property
    def audit(self) -> pd.DataFrame:
        """The rows of `saga_study.audit.audit_step` on all audited steps; empty for a run without audit."""
        import pandas as pd

        steps = [pd.DataFrame(columns) for columns in self._read_log("audit")]
        return pd.concat(steps, ignore_index=True) if steps else pd.DataFrame()

    def _read_log(self, name: str) -> list[dict] | dict[str, list]:
        """Return a log: one dict per line of `.jsonl`, or what `saga_study.runs.packing` packed into `.json.xz`."""
        path = self.folder / f"{name}.jsonl"
        try:
            with suppress(FileNotFoundError):  # perhaps just now: a study may be packing it, which writes the other before
                return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            path = path.with_suffix(".json.xz")
            with suppress(FileNotFoundError), lzma.open(path, "rt", encoding="utf-8") as packed:
                return json.load(packed)
            return []
        except (json.JSONDecodeError, UnicodeDecodeError, EOFError, lzma.LZMAError) as error:
            raise SagaError(f"{path} is damaged ({error}); delete {self.folder} and run again") from None

    @cached_property
    def evaluation(self) -> dict:
        """Recall, MAP@R, NMI and per-query hits on the test split."""
        return read_json(self.folder / "evaluation.json")

    @cached_property
    def hits(self) -> np.ndarray:
        """(Q,) bool: whether the nearest neighbour of each test query is of its class."""
        import numpy as np

        return np.array([hit == "1" for hit in plain_hits(self.evaluation)])

    def has_encoder(self) -> bool:
        """Return whether the weights are in the folder; the committed record of a study has none."""
        return (self.folder / "encoder" / "model.safetensors").is_file()

    def encoder(self) -> Encoder:
        """Load the trained encoder. Raises `SagaError`, which says how to get them, if the weights were not kept."""
        if not self.has_encoder():
            raise SagaError(
                f"the weights of run {self.key} ({self.config.name}) are not kept in {self.folder}; "
                "train it again, in a study by train_or_load(config, study, need_encoder=True)"
            )
        from saga_lib.encoder import Encoder

        return Encoder.from_pretrained(self.folder / "encoder")


HEX = "hex:"  # prefix of `hits_at_1` once it is packed (saga_study.runs.packing)


def plain_hits(evaluation: Mapping[str, object]) -> str:
    """Return `hits_at_1` of an `evaluation.json`, packed or not: "1" for each query whose nearest neighbour is of its class, else "0"."""
    hits = str(evaluation["hits_at_1"])
    if not hits.startswith(HEX):
        return hits
    digits = hits.removeprefix(HEX)
    return f"{int(digits, 16):0{4 * len(digits)}b}"[: int(evaluation["num_queries"])]
