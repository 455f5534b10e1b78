"""Where OpenWhisk's classic balancer sends a call: the arithmetic of ShardingContainerPoolBalancer.

A container anywhere else is never found, so "on which node" has one answer: the home invoker, and after it the
invokers that the balancer tries when the home is full, in its order. That order depends on the number of invokers
that ever registered (they are not forgotten: one that is offline keeps its place and is skipped) and on two
strings, hashed as Java hashes them. Only when every invoker is full does the balancer pick at random.

Source: core/controller/.../loadBalancer/ShardingContainerPoolBalancer.scala of apache/openwhisk (`generateHash`,
`pairwiseCoprimeNumbersUntil`, `schedule`, `updateInvokers`); the fractions are the defaults of its reference.conf.
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Sequence

MANAGED_FRACTION = 0.9
BLACKBOX_FRACTION = 0.1

_Node = TypeVar("_Node")


def java_hash(text: str) -> int:
    """`String.hashCode`: s[0]*31**(n-1) + ... + s[n-1] over UTF-16 code units, as a signed number of 32 bits."""
    units = text.encode("utf-16-le", "surrogatepass")
    value = 0
    for low, high in zip(units[::2], units[1::2], strict=True):
        value = (31 * value + (high << 8 | low)) & 0xFFFFFFFF
    return _signed(value)


def placement_hash(namespace: str, action: str) -> int:
    """The balancer's hash: of the invoking namespace and of the action's full name, without its version.

    As Java's `abs`, it leaves the smallest number of 32 bits negative: for that one the balancer fails.
    """
    mixed = java_hash(namespace) ^ java_hash(action)
    return mixed if mixed == -(2**31) else abs(mixed)


@functools.cache
def coprime_steps(count: int) -> tuple[int, ...]:
    """Numbers up to `count` that share no divisor with it or with one another, smallest first."""
    steps: list[int] = []
    for step in range(1, count + 1):
        if math.gcd(step, count) == 1 and all(math.gcd(step, other) == 1 for other in steps):
            steps.append(step)
    return tuple(steps)


def eligible(
    invokers: Sequence[_Node],
    *,
    blackbox: bool = False,
    managed_fraction: float = MANAGED_FRACTION,
    blackbox_fraction: float = BLACKBOX_FRACTION,
) -> Sequence[_Node]:
    """The invokers that run such actions: the first for managed runtimes, the last for images that are pulled.

    In a small cluster the two overlap: there is always one of each.
    """
    count = len(invokers)
    managed_fraction = max(0.0, min(1.0, managed_fraction))
    if not blackbox:
        return invokers[: max(1, math.ceil(count * managed_fraction))]
    blackbox_fraction = max(1.0 - managed_fraction, min(1.0, blackbox_fraction))
    return invokers[-max(1, math.floor(count * blackbox_fraction)) :]


def preferred_nodes(
    namespace: str,
    action: str,
    invokers: Sequence[_Node],
    *,
    blackbox: bool = False,
    managed_fraction: float = MANAGED_FRACTION,
    blackbox_fraction: float = BLACKBOX_FRACTION,
) -> tuple[_Node, ...]:
    """The invokers in the order in which the balancer tries them for a call, home first, each once.

    Args:
        namespace: the invoking one.
        action: full name, namespace/[package/]name, of the action itself (not of a binding to it).
        invokers: every one that registered, by number from 0 without a gap, those offline included.
        blackbox: the action's image is one that invokers pull.
        managed_fraction: share of invokers for managed runtimes, `whisk.loadbalancer.managed-fraction`.
        blackbox_fraction: share for pulled images, `whisk.loadbalancer.blackbox-fraction`.

    Returns:
        empty when there are no invokers, or for a hash for which the balancer itself fails.
    """
    nodes = eligible(
        invokers, blackbox=blackbox, managed_fraction=managed_fraction, blackbox_fraction=blackbox_fraction
    )
    if not nodes:
        return ()
    steps = coprime_steps(len(nodes))
    mixed = placement_hash(namespace, action)
    home, chosen = mixed % len(nodes), mixed % len(steps)
    if mixed < 0 and (home or chosen):  # Java's remainder would be negative: no such index
        return ()
    return tuple(nodes[(home + turn * steps[chosen]) % len(nodes)] for turn in range(len(nodes)))


def _signed(value: int) -> int:
    return value - 2**32 if value >= 2**31 else value
