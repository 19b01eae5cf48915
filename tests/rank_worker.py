"""One of several processes of a run, or its only one: trains some steps in float64 and writes what they measured.

    python tests/rank_worker.py CONFIG.json STEPS OUT.json

WORLD_SIZE, RANK, MASTER_ADDR and MASTER_PORT say which one it is, as torchrun does.
"""

import json
import sys
from pathlib import Path

import torch

from saga_lib import ranks, step, training
from saga_lib.config import RunConfig
from saga_study.resolving import resolve


class Doubled:
    """A pixel store whose pixels are float64."""

    def __init__(self, store):
        self.store = store

    def __getitem__(self, rows):
        return self.store[rows].double()


def main(config_file, steps, out):
    torch.set_num_threads(1)
    load, seen = training.load_supervisor, []
    training.load_supervisor = lambda source, size, device, dtype, *more: load(source, size, device, torch.float64, *more)
    ranks.join()
    session = training.Session(resolve(RunConfig.from_dict(json.loads(Path(config_file).read_text()))))
    session.encoder.double()
    session.dml_loss.double()
    session.train_pixels = Doubled(session.train_pixels)
    phase = step.rollout_phase

    def watched(*args):
        buffer, batches = phase(*args)
        seen.append({"pairs": buffer.pairs.tolist(), "texts": buffer.rollouts.texts if buffer.rollouts else []})
        return buffer, batches

    step.rollout_phase = watched
    rows = []
    for _ in range(int(steps)):
        metrics = session.run_step()
        rows.append({name: value for name, value in metrics.items() if not name.startswith(("seconds", "tokens_per", "peak"))})
    parameters = {n: p.detach().double().flatten()[:8].tolist() for n, p in session.encoder.named_parameters()}
    parameters |= {f"dml.{n}": p.detach().double().flatten()[:8].tolist() for n, p in session.dml_loss.named_parameters()}
    found = {"ranks": ranks.size(), "metrics": rows, "rollouts": seen, "parameters": parameters}
    Path(f"{out}.{ranks.rank()}").write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
