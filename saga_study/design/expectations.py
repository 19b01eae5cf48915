"""What to expect of GRPO by what is measured before training: a rule of thumb from miniature worlds.

Notebook 21 draws the map of such worlds and says whether a study's own map agrees with the rule; notebook 14 applies it to any model
and images.
"""

from __future__ import annotations

# Read off four prototype worlds of the map on validation classes, before a whole map was trained: SAGA collected nothing of the oracle's
# room in the one world below both thresholds, 24 to 58 % in the three above them. A study's own map may move them.
START_SAME_CLASS = 0.3  # share of first verdicts on pairs of one class that are right
READING_LEAD = -10.0  # points of R@1 by reading over that of the pre-trained embedding
FEW_WRONG = 0.97  # share of first verdicts on pairs of two classes that are right; from here on these pairs teach nothing
ORIGIN = "a rule of thumb from a few miniature worlds, which notebook 21 checks and real images need not follow"


def is_promising(same_class: float, lead: float) -> bool:
    """Return whether GRPO can be expected to gain: by right same-class verdicts at the start (0-1) and the lead of reading (points).

    A lead that was not measured (NaN) is not held against it.
    """
    return same_class >= START_SAME_CLASS and not lead < READING_LEAD
