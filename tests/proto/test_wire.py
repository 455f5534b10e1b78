"""The wire codecs: what goes out comes back, and what comes in is either right or refused in one sentence."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from mesp import wire
from mesp.errors import InputError
from mesp.forecast_wire import forecasts_from_chunks, forecasts_to_chunks
from mesp.types import (
    DEFAULT_LEVELS,
    Forecasts,
    ForecastStatus,
    FunctionKey,
    ModelDescription,
    Rejection,
    StepCounts,
    Trigger,
)
from mesp.v1 import predictor_service_pb2 as predictor_pb
from mesp.v1 import types_pb2 as types_pb

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

A, B = FunctionKey("guest", "hello"), FunctionKey("guest", "pkg/resize")

texts = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20).filter(str.isprintable)
keys = st.builds(FunctionKey, texts, texts)
names = st.text(st.characters(codec="utf-8"), max_size=10)


@st.composite
def step_counts(draw: st.DrawFn) -> StepCounts:
    step_ms = draw(st.sampled_from([1_000, 60_000]))
    counts = draw(st.dictionaries(keys, st.integers(0, wire.MAX_COUNT), max_size=6))
    offset = st.integers(0, step_ms - 1)
    runs = {key: draw(st.lists(offset, max_size=min(count, 3)).map(tuple)) for key, count in counts.items()}
    return StepCounts(
        source=draw(texts),
        step_start_ms=draw(st.integers(0, 10**9)) * step_ms,
        step_ms=step_ms,
        counts=counts,
        complete=draw(st.booleans()),
        arrival_offsets_ms={key: run for key, run in runs.items() if run},
        triggers={key: trigger for key in counts if (trigger := draw(st.sampled_from(Trigger)))},
    )


@st.composite
def forecasts(draw: st.DrawFn) -> Forecasts:
    functions = draw(st.lists(keys, unique=True, max_size=7))
    levels = draw(st.lists(st.floats(0.001, 0.999), unique=True, min_size=1, max_size=4).map(sorted))
    experts = draw(st.lists(names, max_size=3))
    rows, horizon = len(functions), draw(st.integers(1, 4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    return Forecasts(
        tick_id=draw(st.integers(0, 2**64 - 1)),
        as_of_ms=draw(st.integers(0, 2**62)),
        step_ms=60_000,
        levels=tuple(levels),
        functions=tuple(functions),
        status=tuple(draw(st.sampled_from(ForecastStatus)) for _ in functions),
        quantiles=rng.exponential(10, (rows, horizon, len(levels))).astype(np.float32),
        active=rng.random((rows, horizon), np.float32),
        experts=tuple(experts),
        weights=rng.random((rows, len(experts)), np.float32),
        age_ms=rng.integers(-1, 2**50, rows),
        model_version=draw(names),
    )


def same(left: Forecasts, right: Forecasts) -> bool:
    arrays = ("quantiles", "active", "weights", "age_ms")
    bare = {name: np.zeros(0) for name in arrays}
    return all(np.array_equal(getattr(left, name), getattr(right, name)) for name in arrays) and repr(
        replace(left, **bare)  # type: ignore[arg-type]  # the arrays were compared above
    ) == repr(replace(right, **bare))  # type: ignore[arg-type]  # as above


def one_forecast(**changes: object) -> Forecasts:
    forecast = Forecasts(
        tick_id=7,
        as_of_ms=120_000,
        step_ms=60_000,
        levels=(0.5, 0.9),
        functions=(A, B),
        status=(ForecastStatus.OK, ForecastStatus.PRIOR),
        quantiles=np.ones((2, 3, 2), np.float32),
        active=np.full((2, 3), 0.5, np.float32),
        experts=("naive",),
        weights=np.ones((2, 1), np.float32),
        age_ms=np.array([0, -1]),
        model_version="m1",
    )
    return replace(forecast, **changes)  # type: ignore[arg-type]  # each test names a field and breaks it


def decoded_or_refused(decode: Callable[[], T]) -> T | None:
    """What decoding gives; None when it is refused, in one sentence."""
    sentence = ""
    try:
        return decode()
    except InputError as error:
        sentence = str(error)
    assert sentence
    assert "\n" not in sentence
    return None


@given(step_counts())
def test_step_counts_survive_the_wire(step: StepCounts) -> None:
    """A report is the same after encoding, bytes, and decoding."""
    message = predictor_pb.StepCounts.FromString(wire.step_counts_to_pb(step).SerializeToString())
    assert wire.step_counts_from_pb(message) == step


@given(step_counts(), st.integers(1, 4))
def test_split_parts_applied_in_order_say_what_the_whole_says(step: StepCounts, size: int) -> None:
    """Parts are small enough, only the first zeroes the rest, and together they carry every count and offset."""
    parts = wire.split_step(step, size)
    assert all(len(part.counts) <= size for part in parts)
    assert [part.complete for part in parts] == [step.complete] + [False] * (len(parts) - 1)
    assert {key: count for part in parts for key, count in part.counts.items()} == step.counts
    assert {key: run for part in parts for key, run in part.arrival_offsets_ms.items()} == step.arrival_offsets_ms
    assert {key: trigger for part in parts for key, trigger in part.triggers.items()} == step.triggers


@given(forecasts(), st.integers(1, 4))
def test_forecasts_survive_the_wire(forecast: Forecasts, size: int) -> None:
    """Forecasts are the same after chunking, bytes, and joining; `last` is set on the last chunk only."""
    sent = [chunk.SerializeToString() for chunk in forecasts_to_chunks(forecast, size)]
    chunks = [types_pb.ForecastChunk.FromString(data) for data in sent]
    assert [chunk.last for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert all(len(chunk.functions) <= size for chunk in chunks)
    assert same(forecasts_from_chunks(chunks), forecast)


def test_chunks_of_long_rows_stay_below_the_usual_message_limit() -> None:
    """With 60 steps and 99 levels a chunk holds fewer than 1,000 functions, so that it stays below 4 MiB."""
    rows, horizon, levels = 500, 60, 99
    forecast = one_forecast(
        functions=tuple(FunctionKey("s", str(row)) for row in range(rows)),
        status=(ForecastStatus.OK,) * rows,
        levels=tuple((np.arange(levels) + 1) / 100),
        quantiles=np.ones((rows, horizon, levels), np.float32),
        active=np.ones((rows, horizon), np.float32),
        weights=np.ones((rows, 1), np.float32),
        age_ms=np.zeros(rows, np.int64),
    )
    assert max(chunk.ByteSize() for chunk in forecasts_to_chunks(forecast)) < 4 * 2**20


@given(st.binary(max_size=200))
def test_random_bytes_decode_or_are_refused(data: bytes) -> None:
    """Whatever bytes arrive, the answer is a valid value or one sentence, never another exception."""
    for parse in (
        lambda: wire.step_counts_from_pb(predictor_pb.StepCounts.FromString(data)),
        lambda: wire.observe_from_pb(predictor_pb.ObserveRequest.FromString(data)),
        lambda: forecasts_from_chunks([types_pb.ForecastChunk.FromString(data)]),
        lambda: wire.description_from_pb(predictor_pb.DescribeModelResponse.FromString(data)),
        lambda: wire.rejection_from_pb(predictor_pb.Rejection.FromString(data)),
    ):
        with contextlib.suppress(DecodeError):
            decoded_or_refused(parse)


key_messages = st.builds(types_pb.FunctionKey, scope=names, name=names)
uint32s = st.integers(0, 2**32 - 1)
doubles = st.floats(width=32)


@given(
    st.builds(
        predictor_pb.StepCounts,
        source=names,
        step_start_ms=st.integers(-(2**63), 2**63 - 1) | st.just(120_000),
        step_ms=st.integers(-(2**63), 2**63 - 1) | st.just(60_000),
        functions=st.lists(key_messages, max_size=3),
        counts=st.lists(st.integers(0, 2**64 - 1), max_size=3),
        complete=st.booleans(),
        arrival_offsets_ms=st.lists(uint32s, max_size=3),
        arrival_offset_counts=st.lists(uint32s | st.integers(0, 2), max_size=3),
        triggers=st.lists(st.integers(0, 9), max_size=3),
    )
)
def test_random_reports_decode_to_what_encodes_or_are_refused(message: predictor_pb.StepCounts) -> None:
    """A well-formed message of arbitrary values either decodes to a report that encodes again, or is refused."""
    step = decoded_or_refused(lambda: wire.step_counts_from_pb(message))
    if step is not None:
        assert wire.step_counts_from_pb(wire.step_counts_to_pb(step)) == step


@given(
    st.lists(
        st.builds(
            types_pb.ForecastChunk,
            tick_id=st.just(3),
            step_ms=st.sampled_from([0, 60_000]),
            horizon=st.integers(0, 2) | uint32s,
            levels=st.lists(doubles | st.just(0.5), max_size=2),
            last=st.booleans(),
            functions=st.lists(key_messages, max_size=2),
            statuses=st.lists(st.integers(-1, 5).map(types_pb.ForecastStatus.ValueType), max_size=2),
            quantiles=st.lists(doubles, max_size=4),
            active_probabilities=st.lists(doubles, max_size=3),
            experts=st.lists(names, max_size=1),
            weights=st.lists(doubles, max_size=2),
            ages_ms=st.lists(st.integers(-2, 2**62), max_size=2),
        ),
        max_size=3,
    )
)
def test_random_chunks_join_to_what_encodes_or_are_refused(chunks: list[types_pb.ForecastChunk]) -> None:
    """Well-formed chunks of arbitrary values either join to forecasts that encode again, or are refused."""
    forecast = decoded_or_refused(lambda: forecasts_from_chunks(chunks))
    if forecast is not None:
        assert same(forecasts_from_chunks(forecasts_to_chunks(forecast)), forecast)


def report(**changes: object) -> predictor_pb.StepCounts:
    fields: dict[str, object] = {
        "source": "controller-0",
        "step_start_ms": 120_000,
        "step_ms": 60_000,
        "functions": [types_pb.FunctionKey(scope=A.scope, name=A.name), types_pb.FunctionKey(scope="s", name="f")],
        "counts": [3, 4],
        "complete": True,
    }
    return predictor_pb.StepCounts(**(fields | changes))  # type: ignore[arg-type]  # each test breaks one field


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"counts": [3]}, "counts: 1 values for 2 functions, must be as many"),
        ({"source": ""}, "source '': allowed are 1 to 253 bytes of printable characters"),
        ({"step_ms": 0}, "step_ms = 0, must be in [1, 86400000]"),
        ({"step_start_ms": 1}, "step_start_ms = 1, must be a multiple of step_ms = 60000, not negative"),
        ({"step_start_ms": -60_000}, "step_start_ms = -60000, must be a multiple of step_ms = 60000, not negative"),
        ({"counts": [3, 2**32]}, "count of s/f = 4294967296, must be in [0, 4294967295]"),
        (
            {"functions": [types_pb.FunctionKey(scope="s", name="f")] * 2},
            "function s/f: listed twice in one step, allowed is once",
        ),
        (
            {"functions": [types_pb.FunctionKey(scope="s", name="\n"), types_pb.FunctionKey(scope="s", name="f")]},
            "function name '\\n': allowed are 1 to 512 bytes of printable characters",
        ),
        (
            {"arrival_offset_counts": [1, 1], "arrival_offsets_ms": [5]},
            "arrival_offsets_ms: 1 values, but arrival_offset_counts add up to 2",
        ),
        (
            {"arrival_offset_counts": [1], "arrival_offsets_ms": [5]},
            "arrival_offset_counts: 1 values for 2 functions, must be as many or none",
        ),
        ({"triggers": [1]}, "triggers: 1 values for 2 functions, must be as many or none"),
        (
            {"arrival_offset_counts": [1, 0], "arrival_offsets_ms": [60_000]},
            "arrival offsets of guest/hello: must be in [0, 60000) ms",
        ),
        (
            {"arrival_offset_counts": [4, 0], "arrival_offsets_ms": [1, 2, 3, 4]},
            "arrival offsets of guest/hello: 4 for a count of 3, at most as many",
        ),
    ],
)
def test_a_bad_report_is_refused_in_one_sentence(changes: dict[str, object], sentence: str) -> None:
    """Each rule of the proto's comments, broken alone, is named with its value and what is allowed."""
    wire.step_counts_from_pb(report())
    with pytest.raises(InputError) as refusal:
        wire.step_counts_from_pb(report(**changes))
    assert str(refusal.value) == sentence


def test_a_trigger_of_a_later_version_is_one_of_the_others() -> None:
    """A number that this version has no name for is no reason to refuse the count."""
    step = wire.step_counts_from_pb(report(triggers=[2, 99]))
    assert list(step.triggers.values()) == [Trigger.TIMER, Trigger.OTHERS]


def test_a_bad_item_does_not_fail_its_batch() -> None:
    """In a batch a bad function costs itself, a bad step costs itself, and the rest is taken."""
    request = predictor_pb.ObserveRequest(steps=[report(counts=[3, 2**40]), report(step_ms=7), report()])
    steps, rejections = wire.observe_from_pb(request)
    assert [step.counts for step in steps] == [{A: 3}, {A: 3, FunctionKey("s", "f"): 4}]
    assert [(bad.function, bad.step_start_ms) for bad in rejections] == [
        (FunctionKey("s", "f"), 120_000),
        (None, 120_000),
    ]


def test_arrays_that_disagree_fail_the_batch() -> None:
    """A message whose arrays disagree cannot be read at all: the whole call is an error, as it is with too many steps."""
    with pytest.raises(InputError, match="must be as many"):
        wire.observe_from_pb(predictor_pb.ObserveRequest(steps=[report(), report(counts=[])]))
    with pytest.raises(InputError, match="1441 in one request, at most 1440 are allowed"):
        wire.observe_from_pb(predictor_pb.ObserveRequest(steps=[report()] * 1_441))


def test_reports_that_break_the_rules_are_not_sent() -> None:
    """Encoding refuses what decoding would refuse."""
    good = StepCounts("c", 60_000, 60_000, {A: 1})
    for bad in (
        replace(good, counts={A: -1}),
        replace(good, counts={FunctionKey("", "f"): 1}),
        replace(good, arrival_offsets_ms={B: (1,)}),
        replace(good, counts={FunctionKey("s", str(i)): 0 for i in range(10_001)}),
    ):
        with pytest.raises(InputError):
            wire.step_counts_to_pb(bad)
    assert len(wire.split_step(replace(good, counts={FunctionKey("s", str(i)): 0 for i in range(10_001)}))) == 2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"quantiles": np.full((2, 3, 2), np.nan, np.float32)}, "quantiles hold a value that is negative or not"),
        ({"quantiles": np.full((2, 3, 2), np.inf, np.float32)}, "quantiles hold"),
        ({"weights": np.full((2, 1), -1, np.float32)}, "weights hold"),
        ({"active": np.full((2, 3), 1.5, np.float32)}, r"active holds 1.5, a probability must be in \[0, 1\]"),
        ({"quantiles": np.ones((2, 3, 3), np.float32)}, r"quantiles of shape \(2, 3, 3\), must be \(2, 3, 2\)"),
        ({"levels": (0.9, 0.5)}, "levels must be 1 to 99, ascending"),
        ({"levels": (0.5, 1.0)}, "levels must be"),
        ({"functions": (A, A)}, "a function is listed twice"),
        ({"functions": (A, FunctionKey("x", ""))}, "function name ''"),
        ({"status": (ForecastStatus.OK,)}, "ages and statuses must be one per function"),
        ({"step_ms": 0}, "step_ms = 0"),
        ({"active": np.zeros((2, 0), np.float32)}, "horizon = 0"),
    ],
)
def test_forecasts_that_break_a_promise_are_not_sent(changes: dict[str, object], words: str) -> None:
    """Each promise of `Forecasts`, broken alone, is named with the tick."""
    list(forecasts_to_chunks(one_forecast()))
    with pytest.raises(InputError, match=words):
        list(forecasts_to_chunks(one_forecast(**changes)))


def test_a_refused_name_comes_back_as_it_was_asked_for() -> None:
    """A function that was refused for its invalid key is told so under that key, not dropped."""
    refused = one_forecast(
        functions=(A, FunctionKey("", "")), status=(ForecastStatus.OK, ForecastStatus.UNKNOWN_FUNCTION)
    )
    assert forecasts_from_chunks(forecasts_to_chunks(refused)).functions[1] == FunctionKey("", "")


def test_half_a_tick_is_never_taken_for_a_whole() -> None:
    """A missing last chunk, a chunk after the last, a chunk of another tick, and short arrays are refused."""
    first, last = forecasts_to_chunks(one_forecast(), max_functions=1)
    other = types_pb.ForecastChunk()
    other.CopyFrom(last)
    other.tick_id = 8
    short = types_pb.ForecastChunk()
    short.CopyFrom(last)
    del short.quantiles[0]
    unknown = types_pb.ForecastChunk()
    unknown.CopyFrom(last)
    unknown.statuses[0] = types_pb.ForecastStatus.FORECAST_STATUS_UNSPECIFIED
    for chunks, words in (
        ([first, unknown], "a status is none of 1 to 4"),
        ([], "ended after 0 chunks"),
        ([first], "ended after 1 chunks and before the last one"),
        ([last, first], "a chunk follows the last one"),
        ([first, other], "tick_id differs between its chunks"),
        ([first, short], "5 quantiles, must be 6 for 1 functions, 3 steps, 2 levels and 1 experts"),
    ):
        with pytest.raises(InputError, match=words):
            forecasts_from_chunks(chunks)
    assert same(forecasts_from_chunks([first, last]), one_forecast())


def test_descriptions_and_rejections_survive_the_wire() -> None:
    """What a predictor says of itself, and what it refuses, is the same on the other side."""
    description = ModelDescription("m1", 60_000, 512, 15, 60, DEFAULT_LEVELS, ("naive",), 3, 100, 2, 120_000)
    assert wire.description_from_pb(wire.description_to_pb(description)) == description
    for rejection in (Rejection(None, 60_000, "no"), Rejection(FunctionKey("", "x"), 0, "no scope")):
        assert wire.rejection_from_pb(wire.rejection_to_pb(rejection)) == rejection
    with pytest.raises(InputError, match="step_ms = 0"):
        wire.description_from_pb(predictor_pb.DescribeModelResponse())


@given(keys)
def test_keys_survive_the_wire(key: FunctionKey) -> None:
    """A key is the same after encoding and decoding."""
    assert wire.key_from_pb(wire.key_to_pb(key)) == key


def test_key_lengths_count_bytes() -> None:
    """Limits are in bytes of UTF-8: 512 ASCII letters fit a name, 257 of two bytes do not."""
    wire.check_key(FunctionKey("s" * 253, "é" * 256))
    for key in (FunctionKey("s" * 254, "n"), FunctionKey("s", "é" * 257)):
        with pytest.raises(InputError):
            wire.check_key(key)
