"""Vocabularies as files: written so that `saga_lib.vocabulary` reads them back."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from saga_lib.common.errors import SagaError
from saga_lib.common.files import write_text
from saga_lib.vocabulary import PLACEHOLDERS, Vocabulary, parse_vocabulary


def vocabulary_yaml(vocabulary: Vocabulary, comment: str = "") -> str:
    """Return a vocabulary as YAML that `load_vocabulary` reads back."""
    lines = [f"# {line}" for line in comment.splitlines()]
    lines += [f"{key}: {_quoted(getattr(vocabulary, key))}" for key in PLACEHOLDERS]
    lines.append("attributes:")
    for attribute in vocabulary.attributes:
        lines.append(f"  - name: {_quoted(attribute.name)}")
        if attribute.values:
            lines.append(f"    values: [{', '.join(_quoted(value) for value in attribute.values)}]")
    return "\n".join(lines) + "\n"


def save_vocabulary(vocabulary: Vocabulary, path: str | Path, comment: str = "") -> None:
    """Write a vocabulary as a YAML file; raises `SagaError` if it cannot be written or would not be read back the same."""
    path, text = Path(path), vocabulary_yaml(vocabulary, comment)
    if path.suffix.lower() not in (".yaml", ".yml"):
        raise SagaError(f"vocabulary {path} must have a name that ends in .yaml")
    if parse_vocabulary(text, path) != vocabulary:
        raise SagaError(f"vocabulary {vocabulary.name} holds a text that does not survive as YAML")
    write_text(path, text)


def _quoted(text: str) -> str:
    """Return a text as YAML writes it within a line, quoted where needed."""
    plain = re.fullmatch(r"[A-Za-z][\w /.-]*[\w.]|[A-Za-z]", text) and isinstance(yaml.safe_load(text), str)
    return text if plain else '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
