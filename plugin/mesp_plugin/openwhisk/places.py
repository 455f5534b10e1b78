"""Places in a namespace's limit on containers (FPC): a wrong count here makes calls of others fail.

A scheduler that finds a namespace at its limit refuses calls of every function without a queue (429). Held containers
take places like busy ones; and after one was handed over the scheduler may make a surplus one, which takes a place for 10 s. So
what is there, what is ordered, and one surplus for each function that holds must stay strictly below the limit.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from mesp.types import FunctionKey


def room(*, limit: int, margin_share: float, taken: int, holding: Collection[FunctionKey]) -> int:
    """Containers that may be ordered now.

    Args:
        limit: the namespace's.
        margin_share: of it, left free beyond what is there.
        taken: containers that are up or ordered, by whomever.
        holding: functions with held containers, that of the order among them.
    """
    most = min(limit - 1, math.floor(limit * (1 - margin_share)))
    return max(0, most - taken - len(set(holding)))


def to_let_go(*, limit: int, taken: int, held: Sequence[FunctionKey]) -> int:
    """How many of the `held` containers, the first ones, must go for all to be strictly below the limit again.

    Args:
        limit: the namespace's.
        taken: containers that are up or ordered, the held ones among them.
        held: the function of each that is held.
    """
    gone = 0
    while gone < len(held) and taken - gone + len(set(held[gone:])) >= limit:
        gone += 1
    return gone
