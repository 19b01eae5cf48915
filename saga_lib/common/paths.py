"""Where the library lies, and the paths that users mean."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from saga_lib.common.texts import composed

REPOSITORY = Path(__file__).resolve().parents[2]
WORKPLACE = REPOSITORY if (REPOSITORY / "pyproject.toml").is_file() else Path.cwd()  # of an installed library, where it is used


def names_in(folder: Path) -> dict[str, str]:
    """Return {name in Unicode's composed form: name} of what lies in a folder; nothing if it cannot be listed."""
    try:
        return {composed(name): name for name in os.listdir(folder)}
    except (OSError, ValueError):
        return {}


def given_path(path: str | Path, names: Callable[[Path], dict[str, str]] = names_in) -> Path:
    """Return the path that a user means: `~/` is home, and its parts are spelled as on disk, whatever form of Unicode they are given in.

    What does not exist comes back as it is given. `names` may keep what `names_in` returned.
    """
    path = Path(os.path.expanduser(path) if str(path).startswith("~/") else path)
    if os.path.exists(path):
        return path
    spelled = Path(path.anchor)
    for part in path.parts[bool(path.anchor) :]:
        spelled /= part if os.path.exists(spelled / part) else names(spelled).get(composed(part), part)
    return spelled if os.path.exists(spelled) else path
