"""The command line: `python -m saga_study [smoke|miniature|paper|test] [options]`, as run_all.sh calls it."""

import sys

from saga_study.study.command import main

if __name__ == "__main__":
    sys.stdout.reconfigure(line_buffering=True)  # in order with stderr, also through a pipe
    sys.exit(main())
