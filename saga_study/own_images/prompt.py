"""Check a vocabulary and print the prompt that it makes.

    python -m saga_study.own_images.prompt FILE
"""

from __future__ import annotations

import sys

from saga_lib.common.errors import SagaError
from saga_lib.prompts import comparison_prompt
from saga_lib.vocabulary import load_vocabulary
from saga_study.commands import exit_code


def main(arguments: list[str]) -> int:
    """Check the vocabulary that the command line names and print its prompt; 2 and one line if there is a mistake."""
    return exit_code(lambda: _show(arguments))


def _show(arguments: list[str]) -> None:
    if len(arguments) != 1:
        raise SagaError("name one vocabulary, e.g. python -m saga_study.own_images.prompt my_toys.yaml")
    vocabulary = load_vocabulary(arguments[0])
    closed = sum(bool(attribute.values) for attribute in vocabulary.attributes)
    print(f"{vocabulary.name}: {len(vocabulary.attributes)} attributes, {closed} with values; the supervisor will be asked\n")
    print(comparison_prompt(vocabulary))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
