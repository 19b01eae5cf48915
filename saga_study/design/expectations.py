"""What to expect of GRPO by what is measured before training: a rule read off the map of miniature worlds.

The map and what it says of this rule is notebook 21; notebook 14 applies the rule to any model and images.
"""

from __future__ import annotations

# Read off worlds on validation classes, in which SAGA collected from none to a half of what the true attributes would give.
START_SAME_CLASS = 0.3  # share of first verdicts on pairs of one class that are right; in worlds below it, SAGA collected next to nothing
READING_LEAD = -10.0  # points of R@1 by reading over that of the pre-trained embedding; in worlds below it, likewise
FEW_WRONG = 0.97  # share of first verdicts on pairs of two classes that are right; from here on these pairs teach nothing
ORIGIN = "a rule read off the map of miniature worlds in notebook 21, which real images need not follow"


def is_promising(same_class: float, lead: float) -> bool:
    """Return whether GRPO can be expected to gain: by right same-class verdicts at the start (0-1) and the lead of reading (points).

    A lead that was not measured (NaN) is not held against it.
    """
    return same_class >= START_SAME_CLASS and not lead < READING_LEAD
