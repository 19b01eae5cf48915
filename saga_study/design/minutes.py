"""About how long a run takes."""

from __future__ import annotations

from dataclasses import replace

from saga_lib.common.errors import SagaError
from saga_lib.config import RunConfig
from saga_study import planner
from saga_study.methods import PROFILES

# Minutes of one run on one core, start-up and evaluation included; those of profile paper come from `planner`. Only the
# order of the queue and the estimates depend on them.
RUN_MINUTES = {
    "smoke": {"untrained": 0.2, "none": 0.3, "oracle": 0.4, "grpo": 0.4},
    "miniature": {"untrained": 0.15, "none": 0.5, "oracle": 1.1, "grpo": 2.5},
}


def expected_minutes(config: RunConfig) -> float:
    """Return about how long a run takes on one worker."""
    if config.profile not in RUN_MINUTES:
        try:
            return 60 * planner.estimate(config).hours
        except SagaError:  # a supervisor of unknown shapes: about what the profile's takes
            return 60 * planner.estimate(replace(config, supervisor=PROFILES[config.profile]["supervisor"])).hours
    start = RUN_MINUTES[config.profile]["untrained"]  # and evaluation, however long the training
    if not config.steps and not config.epochs:
        return start
    longer = config.steps / PROFILES[config.profile]["steps"] if config.steps else 1.0
    if config.language_signal == "grpo":  # rollouts and their replay are most of it
        longer *= 0.2 + 0.8 * config.group_size / PROFILES[config.profile].get("group_size", RunConfig.group_size)
    return start + longer * (RUN_MINUTES[config.profile][config.language_signal] - start)
