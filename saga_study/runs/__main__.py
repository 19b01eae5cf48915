"""`python -m saga_study.runs`: train one queued run, or train again to compare (`saga_study.runs.worker`)."""

import sys
import traceback

from saga_study.runs.worker import main

if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except Exception:
        traceback.print_exc()
        sys.exit(1)
