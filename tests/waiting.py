"""Waiting for what another process does."""

import time


def wait_for(condition, seconds=120):
    """Return once `condition()` is true; a busy machine is slow."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)
