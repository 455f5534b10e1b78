"""Filters, with the arithmetic written out."""

from __future__ import annotations

import numpy as np

from mesp_placement.filters import Fleet, is_schedulable, is_where_calls_go, leaves_headroom
from mesp_placement.model import Node


def test_a_draining_node_takes_nothing() -> None:
    """Only schedulable nodes pass."""
    fleet = Fleet.of([Node("a", 1000), Node("b", 1000, schedulable=False)])
    assert is_schedulable(fleet).tolist() == [True, False]


def test_no_node_but_those_that_calls_go_to() -> None:
    """Where the platform has an order, nodes outside it do not pass; where it has none, all do."""
    fleet = Fleet.of([Node("a", 1000), Node("b", 1000), Node("c", 1000)])
    assert is_where_calls_go(fleet, ("c", "a", "gone")).tolist() == [True, False, True]
    assert is_where_calls_go(fleet, ()).tolist() == [True, True, True]
    assert is_where_calls_go(fleet, ("gone",)).tolist() == [False, False, False]


def test_headroom_stays_free() -> None:
    """A node of 1,000 MB with a tenth reserved holds 900 MB of containers and not one more MB."""
    fleet = Fleet.of([Node("a", 1000, other_memory_mb=644), Node("b", 1000, other_memory_mb=645)])
    assert leaves_headroom(fleet, 256, 0.1).tolist() == [True, False]  # 900 <= 900, 901 > 900
    assert leaves_headroom(fleet, 256, 0.0).tolist() == [True, True]  # 901 <= 1000


def test_what_is_placed_counts() -> None:
    """Memory taken by this plan is gone for the next container."""
    fleet = Fleet.of([Node("a", 1000)])
    fleet.take(0, 600)
    assert np.array_equal(fleet.used_mb, [600])
    assert leaves_headroom(fleet, 401, 0.0).tolist() == [False]
