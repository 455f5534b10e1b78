"""Reading a frontier: interpolation by hand and by property, the anchor, the sentence."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesp_bench.curves import (
    Point,
    anchor,
    cold_at,
    curves,
    event_modes,
    headline,
    interval,
    knob_text,
    number,
    slice_policies,
    waste_at,
)

CURVE = (Point(1, 1000, 20.0), Point(2, 100, 60.0), Point(3, 10, 200.0))


def minute(knob: float, cold: float | None, waste_pct: float | None) -> dict[str, Any]:
    return {"knob": knob, "minute": {"cold": cold, "waste_pct": waste_pct}, "event": None}


def event(knob: float, mode: str, cold: float, waste_pct: float) -> dict[str, Any]:
    scores = {"cold": {"mean": cold, "ci95": [cold - 1, cold + 1]}, "waste_pct": {"mean": waste_pct, "ci95": None}}
    return {"knob": knob, "minute": None, "event": {mode: scores}}


HYBRID = [minute(60, 203, 126.9), minute(120, 166, 126.2), minute(240, 151, 152.8)]


def test_interpolation_is_linear_in_the_logarithm_of_cold_starts() -> None:
    """Half way down in log cold starts is half way along in waste, and back again."""
    middle = math.sqrt(1000 * 100)
    assert waste_at(CURVE, middle) == pytest.approx(40.0)
    assert cold_at(CURVE, 40.0) == pytest.approx(middle)
    assert waste_at(CURVE, math.sqrt(100 * 10)) == pytest.approx(130.0)


def test_readings_beyond_the_curve() -> None:
    """A curve that never comes so far down has no reading; one that lies below has its cheapest point's."""
    assert waste_at(CURVE, 9) is None
    assert cold_at(CURVE, 19.9) is None
    assert waste_at(CURVE, 5000) == 20.0
    assert cold_at(CURVE, 300) == pytest.approx(10.0)
    assert waste_at((), 100) is None
    assert cold_at((Point(1, 0, 50.0),), 50) == 0.0


def test_a_curve_that_bends_back_is_read_at_its_cheapest() -> None:
    """More waste for more cold starts is never the answer where the same curve does better."""
    bent = (Point(60, 203, 130.0), Point(120, 166, 126.0), Point(240, 151, 152.8))
    assert waste_at(bent, 203) == 126.0


@given(
    st.lists(st.tuples(st.floats(1, 1e5), st.floats(0, 500)), min_size=2, max_size=8, unique_by=lambda pair: pair[0]),
    st.floats(0, 1),
)
def test_waste_and_cold_starts_are_read_off_the_same_line(pairs: list[tuple[float, float]], share: float) -> None:
    """On a falling curve the waste read at n cold starts allows n cold starts, at its points and between them."""
    cold = sorted((pair[0] for pair in pairs), reverse=True)
    waste = sorted(pair[1] for pair in pairs)
    curve = [Point(i, c, w) for i, (c, w) in enumerate(zip(cold, waste, strict=True))]
    for point in curve:
        read = waste_at(curve, point.cold)
        assert read is not None
        assert read <= point.waste_pct
    at = cold[-1] * (cold[0] / cold[-1]) ** share
    read = waste_at(curve, at)
    assert read is not None
    fewest = cold_at(curve, read + 1e-9 * (1 + read))
    assert fewest is not None
    assert fewest <= at * (1 + 1e-6)


def test_points_that_were_not_measured_are_no_points() -> None:
    """Null, NaN and absent scores drop the point from that accounting; a policy without points drops out."""
    policies = {
        "fixed": [minute(10, 839, 100.0), minute(5, 1734, None), minute(20, math.nan, 120.0), {"knob": 30}],
        "kpa": [{"knob": 60, "minute": None, "event": None}],
    }
    assert curves(policies) == {"fixed": (Point(10, 839, 100.0),)}
    assert curves(policies, "uniform") == {}


def test_curves_run_by_knob_whatever_the_order_of_the_file() -> None:
    """Neighbours on a curve are neighbours in knob."""
    assert [point.knob for point in curves({"hybrid_histogram": HYBRID[::-1]})["hybrid_histogram"]] == [60, 120, 240]


def test_the_best_covered_arrival_mode_comes_first() -> None:
    """A mode measured for one knob only does not speak for the others."""
    policies = {"fixed": [event(10, "uniform", 9, 9), event(5, "bunched", 9, 9), event(20, "bunched", 9, 9)]}
    assert event_modes(policies) == ["bunched", "uniform"]
    assert event_modes({"fixed": [minute(10, 1, 1)]}) == []
    assert curves(policies, "uniform")["fixed"][0].cold_ci95 == (8, 10)


def test_the_anchor_is_the_hybrid_histogram_at_range_240() -> None:
    """Without it the fixed ten minutes stand in, and without both there is none."""
    fixed = [minute(5, 1734, 73.7), minute(10, 839, 100.0)]
    found = anchor(curves({"fixed": fixed, "hybrid_histogram": HYBRID}))
    assert found is not None
    assert (found.policy, found.point.cold) == ("hybrid_histogram", 151)
    found = anchor(curves({"fixed": fixed}))
    assert found is not None
    assert (found.policy, found.point.knob) == ("fixed", 10)
    found = anchor(curves({"hybrid_histogram": HYBRID[:2]}))
    assert found is not None
    assert found.point.cold == 166
    assert anchor({}) is None


@pytest.mark.parametrize(
    ("mesp", "sentence"),
    [
        (
            [minute(40, 300, 50.0), minute(320, 151, 72.0), minute(640, 90, 110.0)],
            "At 151 cold starts MESP wastes 72.0 %, the hybrid histogram (240 min) 152.8 %.",
        ),
        (
            [minute(40, 300, 150.0), minute(640, 180, 240.0)],
            (
                "MESP does not come down to the 151 cold starts of the hybrid histogram (240 min) at 152.8 % waste: "
                "its fewest are 180 at 240.0 %."
            ),
        ),
        (
            [minute(40, 120, 80.0), minute(640, 90, 110.0)],
            "With no more than 120 cold starts MESP wastes 80.0 %, the hybrid histogram (240 min) 152.8 % at 151.",
        ),
        ([], "The baselines alone: MESP was not measured."),
    ],
)
def test_the_headline_says_who_wastes_what(mesp: list[dict[str, Any]], sentence: str) -> None:
    """The sentence holds the numbers of the curves, also where MESP loses or was not run."""
    result = {
        "protocol": {"knob_units": {"hybrid_histogram": "minutes of range"}},
        "policies": {"hybrid_histogram": HYBRID, "mesp": mesp},
    }
    assert headline(result) == sentence


def test_a_result_of_events_alone_has_its_headline() -> None:
    """What was measured in event accounting only, as in the demo, is told from there."""
    policies = {"hybrid_histogram": [event(240, "uniform", 1512, 107.9)], "mesp": [event(80.5, "uniform", 1512, 54.8)]}
    result = {"protocol": {"knob_units": {"hybrid_histogram": "minutes of range"}}, "policies": policies}
    assert headline(result) == "At 1,512 cold starts MESP wastes 54.8 %, the hybrid histogram (240 min) 107.9 %."


def test_untrained_baselines_stand_in_training_slices_only() -> None:
    """Never seen and from zero score the same functions, so baselines carry over; other slices speak for themselves."""
    online, frozen = [minute(80.5, 100, 50.0)], [minute(80.5, 120, 70.0)]
    result = {
        "policies": {"hybrid_histogram": HYBRID, "mesp": online},
        "slices": {"never_seen": {"mesp": frozen}, "from_zero": {}, "no_timers": {"mesp": frozen}},
    }
    assert slice_policies(result, "never_seen") == {"hybrid_histogram": HYBRID, "mesp": frozen}
    assert slice_policies(result, "from_zero") == {"hybrid_histogram": HYBRID}
    assert slice_policies(result, "no_timers") == {"mesp": frozen}


def test_values_of_other_kinds_are_not_numbers() -> None:
    """Only finite numbers count; intervals need two of them."""
    assert [number(value) for value in (1, 2.5, True, "3", None, math.inf, math.nan)] == [1, 2.5] + [None] * 5
    assert interval([1, 2]) == (1.0, 2.0)
    assert [interval(value) for value in ([1, None], [1], None, "ab")] == [None] * 4


def test_knobs_carry_short_units() -> None:
    """Known units are shortened, others kept, none left out."""
    assert [knob_text(10, "minutes"), knob_text(80.5, "price of a cold start, GB s")] == ["10 min", "80.5 GB s"]
    assert [knob_text(3, "GB"), knob_text(0.5, None), knob_text(None, "s")] == ["3 GB", "0.5", "—"]
