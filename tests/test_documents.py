"""Whatever the documents for people name exists: links and their headings, modules, functions, files, commands and their options."""

import ast
import importlib
import importlib.util
import re
import shlex
import tomllib

import pytest

from saga_lib.common.paths import REPOSITORY
from saga_study.parameters import read_parameters
from saga_study.study.command import make_parser

NAMES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")
NAMES += tuple(sorted(f"docs/{path.name}" for path in (REPOSITORY / "docs").glob("*.md") if path.name != "study_log.md"))
TEXTS = {name: (REPOSITORY / name).read_text(encoding="utf-8") for name in NAMES}
# The first column of the changelog's table has names that are gone.
TEXTS["CHANGELOG.md"] = re.sub(r"^( *\| )[^|]+\|", r"\1|", TEXTS["CHANGELOG.md"], flags=re.MULTILINE)
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
CONTRACTS = PROJECT["importlinter"]["contracts"]
LAYERS = {contract["containers"][0]: contract["layers"] for contract in CONTRACTS if contract["type"] == "layers"}
each_document = pytest.mark.parametrize("name", NAMES)


def blocks(name, language):
    return re.findall(rf"^```{language}\n(.*?)^```", TEXTS[name], re.DOTALL | re.MULTILINE)


def commands(name):
    """Yield every command of a document as its words: lines of shell blocks, and what stands between backticks."""
    lines = [line for block in blocks(name, "bash") for line in block.replace("\\\n", " ").splitlines()]
    for line in [*lines, *re.findall(r"`([^`\n]+)`", TEXTS[name])]:
        for part in line.split(" && "):
            try:
                words = shlex.split(part, comments=True)
            except ValueError:  # an apostrophe: not a command
                continue
            if words:
                yield words


def anchor(heading):
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@each_document
def test_every_link_leads_somewhere(name):
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", TEXTS[name]):
        path, _, heading = target.partition("#")
        file = (REPOSITORY / name).parent / path if path else REPOSITORY / name
        assert file.exists(), target
        headings = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE) if heading else []
        assert not heading or heading in map(anchor, headings), target


@each_document
def test_every_named_module_and_function_exists(name):
    dotted = set(re.findall(r"\bsaga_(?:lib|study)(?:\.\w+)+", TEXTS[name]))
    for package, listed in re.findall(r"`(saga_[\w.]+)` \(((?:`\w+`(?:, )?)+)\)", TEXTS[name]):  # `package` (`module`, `function`)
        dotted |= {f"{package}.{one}" for one in re.findall(r"\w+", listed)}
    assert dotted or name not in ("README.md", "docs/architecture.md")
    for one in sorted(dotted):
        words = one.split(".")
        length = next(n for n in range(len(words), 0, -1) if is_module(".".join(words[:n])))
        found = importlib.import_module(".".join(words[:length]))
        for word in words[length:]:
            assert hasattr(found, word), f"{name}: {one}"
            found = getattr(found, word)


def is_module(name):
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # its parent is no package
        return False


@each_document
def test_every_import_of_an_example_works(name):
    for block in blocks(name, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("saga_"):
                module = importlib.import_module(node.module)
                assert not [alias.name for alias in node.names if not hasattr(module, alias.name)], node.module


@each_document
def test_every_named_file_exists(name):
    tops = "saga_lib|saga_study|tests|notebooks|docs|benchmarks"
    for path in re.findall(rf"(?<![\w./])(?:{tops})/[\w./-]*[\w/]", TEXTS[name]):
        assert (REPOSITORY / path).exists(), f"{name}: {path}"
    for path in re.findall(r"`(\w+\.(?:lock|in|toml|yml|sh|cff))`", TEXTS[name]):
        assert (REPOSITORY / path).exists(), f"{name}: {path}"


@each_document
def test_every_command_exists_and_has_its_options(name):
    options = {option for action in make_parser()._actions for option in action.option_strings}
    for words in commands(name):
        given = {word.partition("=")[0] for word in words if word.startswith("--")}
        if words[0] == "./run_all.sh":
            assert given <= options, words
            assert words[1:2] == [] or words[1].startswith(("-", "…")) or words[1] in ("smoke", "miniature", "paper", "test"), words
        elif words[0].endswith("python") and words[1:2] == ["-m"] and words[2].startswith("saga_"):
            path = REPOSITORY / words[2].replace(".", "/")
            source = "".join(file.read_text() for file in ([*path.glob("*.py")] or [path.with_suffix(".py")]))
            assert 'if __name__ == "__main__"' in source and not [option for option in given if f'"{option}"' not in source], words
        elif words[0].endswith("python") and words[1:2] and words[1].startswith("benchmarks/"):
            source = (REPOSITORY / words[1]).read_text()
            assert not [option for option in given if f'"{option}"' not in source], words
        elif words[0] == "papermill" and len(words) > 1 and words[1].startswith("notebooks/"):
            passed = {after for word, after in zip(words, words[1:], strict=False) if word == "-p"}
            assert passed <= set(read_parameters(REPOSITORY / words[1])), words


def test_the_trees_of_the_architecture_name_every_room():
    trees = {}
    for block in re.findall(r"^```\n(saga_lib/.*?)^```", TEXTS["docs/architecture.md"], re.DOTALL | re.MULTILINE):
        for line in block.splitlines():
            if not line.startswith(" "):
                package = trees[line.strip("/")] = []
            else:
                package += re.match(r" +((?:\S+ )*\S+)(?:  |$)", line).group(1).split()
    assert set(trees) == {"saga_lib", "saga_study"}
    for package, rooms in trees.items():
        assert not [room for room in rooms if not (REPOSITORY / package / room).exists()]
        layered = {room for layer in LAYERS[package] for room in layer.split(" | ")} - {"__main__"}
        assert {room.removesuffix("/").removesuffix(".py") for room in rooms} - {"vocabularies"} == layered


def test_the_picture_of_the_architecture_has_the_layers_of_the_contracts():
    [picture] = blocks("docs/architecture.md", "mermaid")
    for package, prefix in (("saga_study", "s"), ("saga_lib", "l")):
        drawn = re.findall(rf'\b{prefix}(\d+)\["([\w, ]+)', picture)
        assert [sorted(label.split(", ")) for _, label in drawn] == [sorted(layer.split(" | ")) for layer in LAYERS[package]]
        arrows = re.findall(rf'\b{prefix}(\d+)(?:\["[^"]*"\])? --> {prefix}(\d+)', picture)
        assert arrows == [(str(n), str(n + 1)) for n in range(1, len(drawn))]


def test_the_hooks_have_the_versions_of_the_requirements():
    hooks = (REPOSITORY / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    locked = re.search(r"^ruff==(.+)$", (REPOSITORY / "requirements.lock").read_text(encoding="utf-8"), re.MULTILINE).group(1)
    assert f"[ruff=={locked}]" in hooks
