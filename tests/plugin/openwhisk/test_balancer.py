"""The balancer's arithmetic, against what a real one did and what its own unit tests state."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesp_plugin.openwhisk.balancer import coprime_steps, eligible, java_hash, placement_hash, preferred_nodes

NAMES = st.text(max_size=40)
#: Hash to 0 and -2**31 as Java's strings do.
EMPTY, SMALLEST = "", "polygenelubricants"


def test_recorded_placements_are_those_computed(golden: Any) -> None:
    """12 actions of namespace guest in a cluster of two: hash, step and the invoker that got the call."""
    placements = golden.driver("placement")
    assert len(placements) == 12
    for line in placements:
        action = f"guest/{line['action']}"
        assert placement_hash("guest", action) == line["hash"]
        assert preferred_nodes("guest", action, ["invoker0", "invoker1"])[0] == line["got"]
        assert coprime_steps(2)[line["hash"] % len(coprime_steps(2))] == line["step"]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", 0),
        ("a", 97),
        ("hello", 99162322),  # facts of any JVM
        ("Hello, World!", 1498789909),
        ("polygenelubricants", -(2**31)),
        ("é", 233),
        ("日本", 835047),
        ("😀", 55357 * 31 + 56832),  # a surrogate pair: two units
        ("\ud83d", 55357),  # half of one is a unit too
    ],
)
def test_strings_hash_as_in_java(text: str, value: int) -> None:
    """Over UTF-16 code units, wrapped to a signed number of 32 bits."""
    assert java_hash(text) == value


@given(NAMES)
def test_the_hash_is_the_polynomial_that_java_documents(text: str) -> None:
    """s[0]*31**(n-1) + ... + s[n-1] modulo 2**32, written out."""
    units = text.encode("utf-16-be")
    codes = [units[at] * 256 + units[at + 1] for at in range(0, len(units), 2)]
    assert java_hash(text) % 2**32 == sum(code * 31 ** (len(codes) - 1 - at) for at, code in enumerate(codes)) % 2**32
    assert -(2**31) <= java_hash(text) < 2**31


@pytest.mark.parametrize(
    ("count", "steps"),
    [
        (-1, ()),
        (0, ()),
        (1, (1,)),
        (2, (1,)),
        (3, (1, 2)),
        (4, (1, 3)),
        (5, (1, 2, 3)),
        (9, (1, 2, 5, 7)),
        (10, (1, 3, 7)),
    ],
)
def test_steps_are_those_that_the_balancers_own_test_states(count: int, steps: tuple[int, ...]) -> None:
    """`pairwiseCoprimeNumbersUntil` in ShardingContainerPoolBalancerTests."""
    assert coprime_steps(count) == steps


@given(st.integers(1, 300))
def test_steps_are_pairwise_coprime_and_with_the_count(count: int) -> None:
    """And none that could be added is left out."""
    steps = coprime_steps(count)
    assert all(math.gcd(a, b) == 1 for at, a in enumerate((*steps, count)) for b in (*steps, count)[:at])
    for other in set(range(1, count + 1)) - set(steps):
        assert any(math.gcd(other, step) > 1 for step in (*(s for s in steps if s < other), count))


@pytest.mark.parametrize("tenths", [1, 2, 3, 4, 5])
def test_pools_overlap_only_in_small_clusters(tenths: int) -> None:
    """'allow managed partition to overlap with blackbox for small N' of the same tests."""
    fraction = tenths / 10
    for count in range(1, 101):
        pools = [
            eligible(range(count), blackbox=pulled, managed_fraction=1.0 - fraction, blackbox_fraction=fraction)
            for pulled in (False, True)
        ]
        assert len(pools[1]) == max(1, int(fraction * count))
        assert len(pools[0]) + len(pools[1]) == count + (count < {1: 10, 2: 5, 3: 4, 4: 3, 5: 2}[tenths])


def test_pools_are_the_first_and_the_last_invokers() -> None:
    """ceil(0.9 n) and floor(0.1 n), one at least; whole fractions make them the same."""
    assert [(len(eligible(range(n))), len(eligible(range(n), blackbox=True))) for n in (0, 1, 2, 10, 11, 25)] == [
        (0, 0), (1, 1), (2, 1), (9, 1), (10, 1), (23, 2),
    ]  # fmt: skip
    assert list(eligible(range(25), blackbox=True)) == [23, 24]
    assert list(eligible(range(25))) == list(range(23))
    assert eligible(range(9), managed_fraction=1, blackbox_fraction=1) == eligible(
        range(9), blackbox=True, managed_fraction=1, blackbox_fraction=1
    )


@given(namespace=NAMES, action=NAMES, count=st.integers(0, 130), blackbox=st.booleans())
def test_the_order_visits_every_eligible_invoker_once_by_equal_steps(
    namespace: str, action: str, count: int, blackbox: bool
) -> None:
    """Home is the hash modulo the pool; every next one is a coprime step further."""
    pool = eligible(range(count), blackbox=blackbox)
    order = preferred_nodes(namespace, action, range(count), blackbox=blackbox)
    mixed = placement_hash(namespace, action)
    if mixed < 0 and count:
        return
    assert sorted(order) == sorted(pool)
    if len(pool) > 1:
        assert pool.index(order[0]) == mixed % len(pool)
        steps = {(pool.index(after) - pool.index(before)) % len(pool) for before, after in itertools.pairwise(order)}
        assert steps == {coprime_steps(len(pool))[mixed % len(coprime_steps(len(pool)))]}


def test_spilling_goes_on_by_the_step_of_the_hash() -> None:
    """The own tests' example, index 0 and step 2 of three invokers: 3, 5, 4; by hand: hash 99 of namespace '', action 'c'."""
    assert placement_hash("", "c") == 99
    assert [coprime_steps(3)[99 % 2], 99 % 3] == [2, 0]
    assert preferred_nodes("", "c", [3, 4, 5], managed_fraction=1.0) == (3, 5, 4)


@pytest.mark.parametrize(("count", "order"), [(1, (0,)), (2, (0, 1)), (3, ()), (4, (0, 1, 2, 3)), (7, ())])
def test_the_smallest_hash_stays_negative_as_in_java(count: int, order: tuple[int, ...]) -> None:
    """Where Java's remainder is negative the balancer fails: there is no home, and none is made up."""
    assert placement_hash(SMALLEST, EMPTY) == -(2**31)
    assert preferred_nodes(SMALLEST, EMPTY, range(count), managed_fraction=1.0) == order
