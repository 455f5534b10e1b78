"""The double's balancer: which invoker a call goes to, and the memory slots by which invokers count as full.

Written from ShardingContainerPoolBalancer.scala and NestedSemaphore.scala of apache/openwhisk, apart from the plugin's
own `mesp_plugin.openwhisk.balancer`, so that each can be checked against the other.
"""

from __future__ import annotations

import ctypes
from math import ceil, gcd
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence


def java_hash_code(text: str) -> int:
    """`String.hashCode`, of text in the basic plane."""
    total = 0
    for letter in text:
        total = ctypes.c_int32(31 * total + ord(letter)).value
    return total


def pairwise_coprimes(size: int) -> list[int]:
    """`pairwiseCoprimeNumbersUntil`: the steps by which all of `size` places are visited."""
    chosen: list[int] = []
    for number in range(1, size + 1):
        if gcd(number, size) == 1 and not any(gcd(number, earlier) > 1 for earlier in chosen):
            chosen.append(number)
    return chosen


class Slots:
    """Memory of one invoker as its controller counts it; containers of an action may take several calls at once."""

    def __init__(self, memory_mb: int) -> None:
        self.free_mb = memory_mb
        self._spare: dict[str, int] = {}

    def take(self, action: str, memory_mb: int, concurrency: int, *, force: bool = False) -> bool:
        """One more call, if there is room; always, and below zero, with `force`."""
        if self._spare.get(action, 0):
            self._spare[action] -= 1
            return True
        if self.free_mb < memory_mb and not force:
            return False
        self.free_mb -= memory_mb
        if concurrency > 1:
            self._spare[action] = concurrency - 1
        return True

    def give_back(self, action: str, memory_mb: int, concurrency: int) -> None:
        """The call is over."""
        if concurrency > 1:
            self._spare[action] = self._spare.get(action, 0) + 1
            if self._spare[action] % concurrency:
                return
            self._spare[action] -= concurrency
        self.free_mb += memory_mb


class Sharding:
    """Home invoker, then step by step round the ring, then any that lives.

    Invokers are numbers from 0. The slots of one are made when it is first heard of, and never resized.
    """

    def __init__(self, overload: random.Random) -> None:
        self.slots: list[Slots] = []
        self._overload = overload

    def learn(self, invoker: int, memory_mb: int) -> None:
        """An invoker was heard of; those with lower numbers count from now on, too."""
        while len(self.slots) <= invoker:
            self.slots.append(Slots(memory_mb))

    def choose(
        self, namespace: str, action: str, memory_mb: int, concurrency: int, usable: Sequence[bool], *, blackbox: bool
    ) -> tuple[int, bool] | None:
        """The invoker and whether it was a last resort; None where no invoker of the kind lives."""
        count = len(self.slots)
        if count == 0:
            return None
        managed = max(1, ceil(count * 0.9))
        ring = list(range(count))[-max(1, int(count * 0.1)) :] if blackbox else list(range(managed))
        number = abs(ctypes.c_int32(java_hash_code(namespace) ^ java_hash_code(action)).value)
        steps = pairwise_coprimes(len(ring))
        place, step = number % len(ring), steps[number % len(steps)]
        for _ in ring:
            invoker = ring[place]
            if usable[invoker] and self.slots[invoker].take(action, memory_mb, concurrency):
                return invoker, False
            place = (place + step) % len(ring)
        alive = [invoker for invoker in ring if usable[invoker]]
        if not alive:
            return None
        invoker = alive[self._overload.randrange(len(alive))]
        self.slots[invoker].take(action, memory_mb, concurrency, force=True)
        return invoker, True
