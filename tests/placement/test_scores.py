"""Scores, with the arithmetic written out."""

from __future__ import annotations

import numpy as np
import pytest

from mesp_placement.filters import Fleet
from mesp_placement.model import Node
from mesp_placement.scores import already_holds_function, best, least_allocated, most_allocated, prefers_platform_order


@pytest.fixture
def fleet() -> Fleet:
    """Three nodes: nearly empty, half full, twice as large."""
    return Fleet.of([Node("a", 1000, 100), Node("b", 1000, 500), Node("c", 2000, 500)])


def test_home_first(fleet: Fleet) -> None:
    """Of an order of two the first scores 100*(1-0/2), the second 100*(1-1/2), and an unlisted node 0."""
    assert prefers_platform_order(fleet, ["c", "a"]).tolist() == [50, 0, 100]
    assert prefers_platform_order(fleet, []).tolist() == [0, 0, 0]


def test_holders_score_full(fleet: Fleet) -> None:
    """A node that holds the function scores 100, the others 0."""
    assert already_holds_function(fleet, {1}).tolist() == [0, 100, 0]
    assert already_holds_function(fleet, set()).tolist() == [0, 0, 0]


def test_most_and_least_allocated(fleet: Fleet) -> None:
    """With 200 MB more: 100*300/1000, 100*700/1000, 100*700/2000; least allocated is what is missing to 100."""
    assert most_allocated(fleet, 200).tolist() == pytest.approx([30, 70, 35])
    assert least_allocated(fleet, 200).tolist() == pytest.approx([70, 30, 65])


def test_later_scores_break_ties() -> None:
    """The first score decides, a later one only among equals, and then the first node in order."""
    everyone = np.array([True, True, True])
    assert best(everyone, [np.array([1.0, 2.0, 2.0]), np.array([9.0, 3.0, 5.0])]) == 2
    assert best(everyone, [np.array([1.0, 2.0, 2.0])]) == 1
    assert best(np.array([True, False, False]), [np.array([1.0, 2.0, 2.0])]) == 0
