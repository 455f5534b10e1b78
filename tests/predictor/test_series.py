"""The series store against a dictionary that remembers every statement ever made."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesp.types import FunctionKey, Rejection, StepCounts, Trigger
from mesp_predictor import series
from mesp_predictor.series import MAX_COUNT, MAX_SOURCES, SeriesStore, StepWidthError

STEP_MS = 60_000
CONTEXT = 6
RECENT = 3
KEYS = [FunctionKey("ns", name) for name in "abcd"]


def step(index: int, counts: dict[FunctionKey, int], *, source: str = "one", complete: bool = True) -> StepCounts:
    return StepCounts(source, index * STEP_MS, STEP_MS, counts, complete)


@dataclass
class Delete:
    keys: list[FunctionKey]


@dataclass
class Dictionary:
    """The store's meaning, spelled out: every statement is kept, and a cell is computed when it is asked for."""

    said: dict[tuple[int, str, FunctionKey], int] = field(default_factory=dict)
    complete: set[tuple[int, str]] = field(default_factory=set)
    reporters: dict[int, set[str]] = field(default_factory=dict)
    known: set[FunctionKey] = field(default_factory=set)
    invoked: dict[FunctionKey, set[int]] = field(default_factory=dict)
    newest: int = -1

    def report(self, report: StepCounts) -> bool:
        index = report.step_start_ms // STEP_MS
        others = self.reporters.get(index, set()) - {report.source}
        if index <= self.newest - CONTEXT or (index <= self.newest - RECENT and others):
            return False
        self.newest = max(self.newest, index)
        self.reporters.setdefault(index, set()).add(report.source)
        if report.complete:
            self.complete.add((index, report.source))
            for key in self.known - set(report.counts):
                self.said.pop((index, report.source, key), None)
        for key, count in report.counts.items():
            self.known.add(key)
            self.said[index, report.source, key] = count
            if count:
                self.invoked.setdefault(key, set()).add(index)
        return True

    def delete(self, keys: list[FunctionKey]) -> int:
        gone = self.known & set(keys)
        self.known -= gone
        self.said = {cell: count for cell, count in self.said.items() if cell[2] not in gone}
        for key in gone:
            self.invoked.pop(key, None)
        return len(gone)

    def cell(self, key: FunctionKey, index: int) -> float:
        told = [
            float(self.said.get((index, source, key), 0))
            for source in self.reporters.get(index, ())
            if (index, source, key) in self.said or (index, source) in self.complete
        ]
        return sum(told) if told else math.nan

    def window(self, key: FunctionKey) -> list[float]:
        return [self.cell(key, index) for index in range(self.newest - CONTEXT + 1, self.newest + 1)]


reports = st.builds(
    step,
    st.integers(100, 112),
    st.dictionaries(st.sampled_from(KEYS), st.integers(0, 4), max_size=4),
    source=st.sampled_from(["one", "two", "three"]),
    complete=st.booleans(),
)
events = st.lists(reports | st.builds(Delete, st.lists(st.sampled_from(KEYS), max_size=2)), max_size=40)


@given(events)
@settings(deadline=None)
def test_any_order_of_reports_means_what_the_dictionary_says(history: list[StepCounts | Delete]) -> None:
    """Late, repeated, partial and summed reports, and deletions, leave the cells that a full memory would compute."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(series, "RECENT_STEPS", RECENT)
        store, model = SeriesStore(STEP_MS, CONTEXT, len(KEYS)), Dictionary()
        for event in history:
            if isinstance(event, Delete):
                assert store.delete(event.keys) == model.delete(event.keys)
                continue
            accepted, rejections = store.report(event)
            assert accepted == (len(event.counts) if model.report(event) else 0)
            assert bool(rejections) == (accepted < len(event.counts)) or not event.counts
        assert store.as_of_ms == (model.newest + 1) * STEP_MS
        assert {key for key in store.functions if key} == model.known
        for key in model.known:
            rows = store.rows_of([key])
            np.testing.assert_array_equal(store.window(rows, CONTEXT)[0], np.array(model.window(key), np.float32))
            invoked = model.invoked.get(key, {-1})
            assert store.first_seen_step(rows)[0] == min(invoked)
            assert store.last_seen_ms(rows)[0] == ((max(invoked) + 1) * STEP_MS if min(invoked) >= 0 else -1)


class Follower:
    """A forecaster that does what the store's docstring says, and learns nothing but the counts themselves."""

    def __init__(self) -> None:
        self.as_of_ms = 0
        self.seen: npt.NDArray[np.float32] = np.empty((0, CONTEXT), np.float32)

    def advance(self, store: SeriesStore) -> None:
        fresh = store.columns_since(self.as_of_ms)
        changed = store.take_changed()
        grown = np.full((len(store.functions) - len(self.seen), CONTEXT), np.nan, np.float32)
        self.seen = np.concatenate((np.concatenate((self.seen, grown)), fresh), axis=1)[:, -CONTEXT:]
        self.seen[changed] = store.window(changed, CONTEXT)
        self.as_of_ms = store.as_of_ms


@given(st.lists(events, max_size=5))
@settings(deadline=None)
def test_a_follower_of_fresh_columns_and_changed_rows_holds_the_windows(
    histories: list[list[StepCounts | Delete]],
) -> None:
    """Fresh columns for all rows and windows of the changed ones are together enough to stay exact."""
    store, follower = SeriesStore(STEP_MS, CONTEXT, len(KEYS)), Follower()
    for history in histories:
        for event in history:
            if isinstance(event, Delete):
                store.delete(event.keys)
            else:
                store.report(event)
        follower.advance(store)
        rows = store.rows_of([key for key in store.functions if key])
        np.testing.assert_array_equal(follower.seen[rows], store.window(rows, CONTEXT))


def test_only_rows_whose_learned_past_differs_are_changed() -> None:
    """A repeated report and a new step change no learned row; a correction changes its function's row alone."""
    store = SeriesStore(STEP_MS, CONTEXT, 4)
    store.report(step(10, dict.fromkeys(KEYS, 1)))
    assert store.take_changed().tolist() == []
    store.report(step(10, dict.fromkeys(KEYS, 1)))
    store.report(step(11, dict.fromkeys(KEYS, 2)))
    assert store.take_changed().tolist() == []
    store.report(step(10, {KEYS[2]: 7}, complete=False))
    assert store.take_changed().tolist() == [2]
    store.delete([KEYS[1]])
    assert store.take_changed().tolist() == [1]


def test_a_complete_report_zeroes_and_a_partial_one_says_nothing() -> None:
    """Zero is not missing: an unlisted function is 0 after a complete report, NaN after a partial one or a gap."""
    store = SeriesStore(STEP_MS, CONTEXT, 4)
    store.report(step(10, {KEYS[0]: 3}))
    store.report(step(11, {KEYS[1]: 1}))
    store.report(step(13, {KEYS[1]: 1}, complete=False))
    window = store.window(store.rows_of([KEYS[0], KEYS[1], FunctionKey("ns", "unknown")]), 4)
    np.testing.assert_array_equal(window, [[3, 0, np.nan, np.nan], [0, 1, np.nan, 1], [np.nan] * 4])
    np.testing.assert_array_equal(store.columns_since(12 * STEP_MS), window[:2, 2:])


def test_a_freed_row_starts_anew_for_the_next_function() -> None:
    """A deleted function's counts are gone, and its row serves another."""
    store = SeriesStore(STEP_MS, CONTEXT, 2)
    store.report(step(10, {KEYS[0]: 3, KEYS[1]: 5}))
    assert store.delete([KEYS[0], KEYS[2]]) == 1
    assert store.functions == [None, KEYS[1]]
    assert store.row_of(KEYS[0]) == -1
    store.report(step(11, {KEYS[2]: 1}))
    assert store.row_of(KEYS[2]) == 0
    assert store.window(store.rows_of([KEYS[2]]), 2).tolist() == [[0, 1]]
    assert store.first_seen_step(store.rows_of([KEYS[2], KEYS[0]])).tolist() == [11, -1]


def test_what_invokes_a_function_stands_until_something_else_is_said() -> None:
    """Silence and `UNKNOWN` change nothing of it; the next function in the row has none."""
    store = SeriesStore(STEP_MS, CONTEXT, 2)
    told: list[list[int]] = []
    for index, triggers in enumerate(
        [{}, {KEYS[0]: Trigger.TIMER}, {KEYS[1]: Trigger.HTTP, KEYS[0]: Trigger.UNKNOWN}, {KEYS[0]: Trigger.QUEUE}]
    ):
        store.report(StepCounts("one", index * STEP_MS, STEP_MS, {KEYS[0]: 0, KEYS[1]: 1}, triggers=triggers))
        told.append(store.triggers.tolist())
    assert told == [[0, 0], [2, 0], [2, 1], [3, 1]]
    store.delete([KEYS[0]])
    store.report(step(9, {KEYS[2]: 1}))
    assert store.triggers.tolist() == [0, 1]


def test_what_cannot_be_taken_is_refused_with_the_allowed_range() -> None:
    """Each refusal is one sentence with the value and what is allowed, and does not touch the rest."""
    store = SeriesStore(STEP_MS, CONTEXT, 2)
    assert store.report(step(10, {KEYS[0]: 1, KEYS[1]: -1, KEYS[2]: MAX_COUNT + 1})) == (
        1,
        [
            Rejection(KEYS[1], 600_000, "count = -1, must be in [0, 4294967295]"),
            Rejection(KEYS[2], 600_000, "count = 4294967296, must be in [0, 4294967295]"),
        ],
    )
    assert store.report(step(10, {KEYS[0]: 1, KEYS[1]: 1, KEYS[2]: 1})) == (
        2,
        [Rejection(KEYS[2], 600_000, "2 functions are known, which is the limit: delete some, or raise it")],
    )
    assert store.report(step(4, {KEYS[0]: 1})) == (
        0,
        [Rejection(None, 240_000, "step_start_ms = 240000 is older than the 6 steps kept: allowed from 300000 on")],
    )
    accepted, [rejection] = store.report(StepCounts("one", 600_001, STEP_MS, {KEYS[0]: 1}))
    assert (accepted, rejection.reason) == (0, "step_start_ms = 600001, must be a multiple of 60000 and not negative")
    with pytest.raises(StepWidthError, match="step_ms = 1000, but the model's step is 60000 ms"):
        store.report(StepCounts("one", 600_000, 1_000, {KEYS[0]: 1}))
    with pytest.raises(ValueError, match=r"length = 7, must be in \[1, 6\]"):
        store.window(store.rows_of(KEYS), 7)


def test_old_steps_of_several_sources_stand() -> None:
    """Past the hour a step that one source reported is still corrected by it, and by no other."""
    store = SeriesStore(STEP_MS, 100, 4)
    store.report(step(100, {KEYS[0]: 1}))
    store.report(step(161, {KEYS[0]: 1}))
    assert store.report(step(100, {KEYS[0]: 2})) == (1, [])
    accepted, [rejection] = store.report(step(100, {KEYS[0]: 2}, source="two"))
    assert accepted == 0
    assert rejection.reason == (
        "step_start_ms = 6000000 was reported by other sources than 'two', which can be added or corrected for 60 steps: "
        "allowed from 6120000 on"
    )


def test_sources_of_a_step_are_bounded() -> None:
    """One source over the limit is refused by name; those before it stay correctable."""
    store = SeriesStore(STEP_MS, CONTEXT, 4)
    for number in range(MAX_SOURCES):
        assert store.report(step(10, {KEYS[0]: 1}, source=f"source {number}")) == (1, [])
    accepted, [rejection] = store.report(step(10, {KEYS[0]: 1}, source="another"))
    assert (accepted, rejection.reason) == (0, "source = 'another' is one too many for this step: at most 32 sources")
    store.report(step(10, {KEYS[0]: 2}, source="source 3"))
    assert store.window(store.rows_of([KEYS[0]]), 1).tolist() == [[MAX_SOURCES + 1]]
