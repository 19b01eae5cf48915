"""How large the house is: lines of both packages, the reading core, the largest files and the longest functions.

    python benchmarks/rooms.py            print them
    python benchmarks/rooms.py --check    also exit with 1 if a limit is passed
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
CORE = (  # of saga_lib: what one reads to know the method
    "config.py", "encoder.py", "families", "losses.py", "pairs.py", "prompts.py", "retrieval.py", "step.py", "supervisor", "towers.py",
    "training.py",
)  # fmt: skip
LIMITS = {"saga_lib": 7000, "reading core": 3500, "file": 570, "function": 60}


def sources(*places: Path) -> list[Path]:
    """Return the Python files at or below some places, sorted."""
    return sorted(path for place in places for path in ([place] if place.is_file() else place.rglob("*.py")))


def count_lines(paths: list[Path]) -> int:
    return sum(len(path.read_text(encoding="utf-8").splitlines()) for path in paths)


def functions(path: Path) -> list[tuple[int, str]]:
    """Return (lines, name) of every function and method of a file, its docstring included."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return [(node.end_lineno - node.lineno + 1, f"{path.relative_to(REPOSITORY)}:{node.name}") for node in nodes]


def main(arguments: list[str]) -> int:
    library, study = REPOSITORY / "saga_lib", REPOSITORY / "saga_study"
    sizes = {"saga_lib": count_lines(sources(library)), "reading core": count_lines(sources(*(library / name for name in CORE)))}
    sizes["saga_study"] = count_lines(sources(study))
    files = sorted(((count_lines([path]), str(path.relative_to(REPOSITORY))) for path in sources(library, study)), reverse=True)
    longest = sorted((each for path in sources(library, study) for each in functions(path)), reverse=True)
    for name, lines in sizes.items():
        print(f"{lines:6,}  {name}" + (f" (at most {LIMITS[name]:,})" if name in LIMITS else ""))
    for title, rows in (("file", files), ("function", longest)):
        print(f"largest {title}s (at most {LIMITS[title]} lines)")
        print("\n".join(f"{lines:6,}  {name}" for lines, name in rows[:8]))
    broken = [f"{name} has {sizes[name]} lines" for name in ("saga_lib", "reading core") if sizes[name] > LIMITS[name]]
    for title, rows in (("file", files), ("function", longest)):
        broken += [f"{name} has {lines} lines" for lines, name in rows if lines > LIMITS[title]]
    print("\n".join(f"over the limit: {line}" for line in broken) or "every limit is kept")
    return int(bool(broken) and "--check" in arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
