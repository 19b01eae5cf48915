"""Finished runs' records made small, without loss of any result."""

from __future__ import annotations

import base64
import json
import lzma
from collections.abc import Mapping

from saga_lib.common.files import read_json, write_atomically, write_json
from saga_lib.records import HEX, plain_hits
from saga_study.paths import study_folder

BY_CLASS, BASE64 = "map_at_r_by_class", "base64:"  # the field of an evaluation, and how its packed value begins
STEPS = 100_000  # into which MAP@R of a class, 0-1, is divided: the five decimals that training writes


def pack_logs(study: str) -> None:
    """Make the records of a study's finished runs small, without loss of any result; `Run` reads both forms.

    `metrics.jsonl` becomes `metrics.json.xz`, a list of every step's values by name (null where a step has none), a twentieth of the
    size; `audit.jsonl` becomes `audit.json.xz`, a list of its lines. Numbers in these logs keep three significant digits, gradients of
    the parts two, times hundredths of a second and the run's clock tenths, which is enough for curves and means. `evaluation.json`, the
    result, keeps every digit; its `hits_at_1` is written in hexadecimal, four queries a digit (`plain_hits` reads it), and MAP@R by
    class in base 64, three bytes a class (`plain_by_class`). Files are replaced as a whole, and the same log always gives the same
    bytes.
    """
    for record in study_folder(study).glob("runs/*/evaluation.json"):
        evaluation = read_json(record)
        if (packed := _packed_by_class(_packed_hits(evaluation))) != evaluation:
            write_json(record, packed)
        for name in ("metrics", "audit"):
            log, packed = record.parent / f"{name}.jsonl", record.parent / f"{name}.json.xz"
            if log.is_file():
                steps = [_rounded(json.loads(line)) for line in log.read_text(encoding="utf-8").splitlines()]
                columns = {key: [step.get(key) for step in steps] for key in dict.fromkeys(key for step in steps for key in step)}
                text = json.dumps(steps if name == "audit" else columns, separators=(",", ":"))
                content = lzma.compress(text.encode(), preset=9 | lzma.PRESET_EXTREME)
                write_atomically(packed, lambda temporary, content=content: temporary.write_bytes(content))
                log.unlink()


def _packed_hits(evaluation: dict[str, object]) -> dict[str, object]:
    hits = plain_hits(evaluation)
    if not hits or len(hits) != evaluation.get("num_queries"):
        return evaluation
    digits = -(-len(hits) // 4)
    return evaluation | {"hits_at_1": HEX + f"{int(hits.ljust(4 * digits, '0'), 2):0{digits}x}"}


def _packed_by_class(evaluation: dict[str, object]) -> dict[str, object]:
    values = plain_by_class(evaluation)
    counts = [round(value * STEPS) for value in values or []]
    if not values or [count / STEPS for count in counts] != values or not all(0 <= count <= STEPS for count in counts):
        return evaluation
    content = b"".join(count.to_bytes(3, "big") for count in counts)
    return evaluation | {BY_CLASS: BASE64 + base64.b64encode(content).decode()}


def plain_by_class(evaluation: Mapping[str, object]) -> list[float] | None:
    """Return MAP@R of each class of an `evaluation.json`, packed or not; None if it has none."""
    values = evaluation.get(BY_CLASS)
    if not isinstance(values, str):
        return values
    content = base64.b64decode(values.removeprefix(BASE64))
    return [int.from_bytes(content[start : start + 3], "big") / STEPS for start in range(0, len(content), 3)]


def _rounded(value: object, name: str = "") -> object:
    if isinstance(value, dict):
        return {key: _rounded(each, key) for key, each in value.items()}
    if isinstance(value, list):
        return [_rounded(each, name) for each in value]
    if not isinstance(value, float):
        return value
    if name.startswith("seconds"):
        return round(value, 1 if name == "seconds" else 2)
    digits = 2 if name.startswith("grad_") and name != "grad_total" else 3  # the total is compared with the norm that clips
    return float(f"{value:.{digits}g}")
