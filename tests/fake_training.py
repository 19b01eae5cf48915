"""Stands in for saga_lib.training: the same folder contents in no time, and failures to order.

The environment variable FAKE_TRAINING says what each method does, e.g. {"pa": "crash"}: crash | mend | disk-full |
slow. "slow" waits at step 2 until the file `go-on` appears in the run folder.
"""

import errno
import json
import os
import sys
import time

from saga_lib.common.errors import SagaError
from saga_lib.common.files import write_json, write_text
from saga_lib.records import code_digest, content_key
from saga_study import resolving

STEPS = 3


def install(modules):
    """Take the place of `saga_lib.training`, and of what reads images and weights to name a run."""
    modules["saga_lib.training"] = sys.modules[__name__]
    resolving.run_inputs = run_inputs


def run_inputs(config, supervisor=""):
    return {"benchmark": f"pixels of {config.dataset}", "supervisor": "weights"}


def train(run, folder, report=None):
    config = run.config
    behaviour = json.loads(os.environ.get("FAKE_TRAINING", "{}")).get(config.method)
    inputs = run_inputs(config)
    record = {"config": config.to_dict(), "inputs": inputs, "code": code_digest(), "key": content_key(config, inputs)}
    write_json(folder / "config.json", record)
    if behaviour == "crash":
        raise ZeroDivisionError("the loss divided by nothing")
    if behaviour == "mend":
        raise SagaError("image x.png cannot be read; replace or remove it")
    if behaviour == "disk-full":
        os.replace = _no_space
    with open(folder / "metrics.jsonl", "w") as lines:
        for step in range(1, STEPS + 1):
            metrics = {"step": step, "steps": STEPS, "seconds": step * 0.1, "started": time.time()}
            lines.write(json.dumps(metrics) + "\n")
            lines.flush()
            if report:
                report(metrics)
            while behaviour == "slow" and step == 2 and not (folder / "go-on").exists():
                time.sleep(0.05)
    write_text(folder / "encoder" / "model.safetensors", "weights")
    write_json(folder / "evaluation.json", {"recall": {"1": 0.75}, "hits_at_1": "1101", "num_queries": 4})


def _no_space(*_):
    raise OSError(errno.ENOSPC, "No space left on device")
