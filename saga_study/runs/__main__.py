"""`python -m saga_study.runs`: see `saga_study.runs.command`."""

import sys

from saga_study.runs.command import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
