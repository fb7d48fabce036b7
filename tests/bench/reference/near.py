"""How near the nodes of wide placements are: mean distance over the best of the sets of the same width on which the
instance would meet no higher load, all others staying where they are.
"""

from __future__ import annotations

from tests.bench.reference.sets import Question, least_distance, load_on


def ratio(question: Question, mask: int) -> float | None:
    """One placement's mean distance over the best; None where there are too many sets to look at."""
    best = least_distance(question, mask.bit_count(), load_on(question, mask))
    return None if best is None else question.ground.mean_distance(mask) / best
