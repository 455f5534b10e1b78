"""Which of the nodes that may take a container should: each score is named after its sentence.

A score is an array over the fleet's nodes, (M,), from 0 (worst) to 100 (best). The planner asks the scores in
order: a later one only breaks the ties that the earlier ones left.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from mesp_placement.filters import Fleet, Floats, Mask

MAX_SCORE = 100.0


def prefers_platform_order(fleet: Fleet, preferred_nodes: Sequence[str]) -> Floats:
    """A node scores higher the earlier it stands in the platform's own order: it sends requests to the home first."""
    worth = {name: MAX_SCORE * (1 - place / len(preferred_nodes)) for place, name in enumerate(preferred_nodes)}
    return np.array([worth.get(name, 0.0) for name in fleet.names])


def already_holds_function(fleet: Fleet, holders: Collection[int]) -> Floats:
    """A node that already holds containers of the function scores 100: its image and code are there."""
    score = np.zeros(len(fleet.names))
    score[list(holders)] = MAX_SCORE
    return score


def most_allocated(fleet: Fleet, memory_mb: float) -> Floats:
    """The fuller a node would be with the container, the better: packs, so that whole nodes stay free."""
    return MAX_SCORE * (fleet.used_mb + memory_mb) / fleet.memory_mb


def least_allocated(fleet: Fleet, memory_mb: float) -> Floats:
    """The emptier a node would be with the container, the better: spreads, so that no node is hit alone."""
    return MAX_SCORE - most_allocated(fleet, memory_mb)


def best(candidates: Mask, asked: Sequence[Floats]) -> int:
    """The candidate with the highest score of the first kind, ties by the next kind, then the first in order."""
    places = np.flatnonzero(candidates)
    for score in asked:
        of_place = score[places]
        places = places[of_place == of_place.max()]
    return int(places[0])
