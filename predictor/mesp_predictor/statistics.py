"""Running statistics of every function: what its gaps, phases and recent steps say of the next ones.

One step comes in by `Statistics.update`; state lives in flat arrays with one row per function, touched by compiled
loops, so that 50,000 functions cost a fraction of a second. A missing step (NaN) ages the gap and moves the windows on
as a quiet one would, and teaches nothing. `features` lays the statistics out for a target step h ahead, which is
what the learned experts and the gate read; `renewal` is the hazard expert's arithmetic.

Functions of one app, and those of one owner, are often called one after the other: of either the statistics keep what the
*others* did lately. That is the fleet's past as it came in; a correction of it, or a function that comes later, changes
nothing of it.

Ideas: gap histogram and its hazard (Shahrad et al., ATC 2020); recency-weighted share of cycles active at a phase;
what gap followed the last time the previous gap was this long.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from mesp.types import Trigger
from mesp_predictor import kernels
from mesp_predictor.kernels import (
    CLOCK,
    COUNT_HALF_LIVES,
    COUNTS_KEPT,
    GAPS_KEPT,
    HALF_LIVES,
    LAGS,
    LONGEST_GAP,
    PERIODS,
    PHASE_START,
    POSITIVE_KEPT,
    QUANTILES,
    READINGS,
    RECENT,
    RELATED_HALF_LIVES,
    RELATED_KEPT,
    WINDOWS,
)
from mesp_predictor.patterns import GAP_ORDERS, MIXER_RATES, MIXER_START, STRETCHES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mesp.types import FloatArray, FunctionKey

    IntArray = npt.NDArray[np.int64]

#: Whose activity is told beside a function's own.
RELATIONS = ("app", "owner")
#: An expert that was trained when there were fewer features reads the first ones: new ones are added at the end.
FEATURES: tuple[str, ...] = (
    "log_ahead", "never", "log_gap", "log_elapsed", "log_age", "log_active", "log_gaps",
    "hazard_all", "hazard_recent", "near_all", "near_recent", "log_at_all", "log_at_recent", "log_survivors", "renewal",
    "gap_mean", "gap_spread",
    *(f"log_gap_q{int(100 * q)}" for q in QUANTILES),
    *(f"elapsed_over_q{int(100 * q)}" for q in QUANTILES),
    "previous_gap", "previous_gap_here", "previous_gap_past", "last_but_one", "last_but_one_here",
    "followed", "followed_here", "followed_past",
    *(f"share_{w}" for w in WINDOWS),
    *(f"lag_{lag}" for lag in LAGS),
    *(f"phase_{p}" for p in PERIODS),
    *(f"activity_{int(h)}" for h in HALF_LIVES),
    *(f"log_count_{int(h)}" for h in COUNT_HALF_LIVES),
    "log_last_count", "log_positive_mean",
    *(f"clock_{c}" for c in CLOCK),
    *(f"{name}_{i}" for i in range(len(GAP_ORDERS)) for name in ("after_gaps", "after_gaps_seen", "after_gaps_near")),
    *(name for length in STRETCHES for name in (f"analogues_{length}", f"analogues_{length}_seen")),
    "best_period_here", "periods_here", "best_period_loss", "log_best_period",
    *(f"mixer_{i}" for i in range(len(MIXER_RATES))),
    *(f"log_count_back_{i + 1}" for i in range(COUNTS_KEPT)),
    *(
        f"{relation}_{name}"
        for relation in RELATIONS
        for name in (
            "log_others_now", "log_others_before", "log_others_gap", *(f"others_{int(h)}" for h in RELATED_HALF_LIVES)
        )
    ),
    *(f"trigger_{trigger.name.lower()}" for trigger in Trigger if trigger is not Trigger.UNKNOWN),
)  # fmt: skip


#: Where the largest of the latest positive counts is expected, and the levels past it; the highest stands for 1.
_LARGEST, _TAIL_LEVELS = POSITIVE_KEPT / (POSITIVE_KEPT + 1), (0.99, 0.999)
#: Levels of `Statistics.positive_quantiles`.
POSITIVE_LEVELS = np.array(
    [*np.arange(POSITIVE_KEPT - 1) / (POSITIVE_KEPT - 1), _LARGEST, _TAIL_LEVELS[0], 1.0], np.float32
)
#: Slope of the tail in units of the upper half's: what covers 0.99 of the counts of the 2019 trace's busy functions.
TAIL = 0.75


@dataclass(slots=True)
class Statistics:
    """State of R functions after `step` closed steps; every array has R rows.

    Attributes:
        step: absolute index of the next step.
        age: steps observed, missing ones not counted; -1 before the first.
        gap: steps since the last active one, 1 when the last step was active, 0 when none ever was.
        active_steps: active steps so far.
        gaps_seen: gaps between active steps so far.
        histogram: gaps by length, (R, LONGEST_GAP + 1).
        recent_histogram: the same, older gaps weighing less.
        latest_gaps: ring of the latest gaps, (R, 64).
        gap_statistics: mean and spread of log gaps, then quantiles of the latest gaps, (R, 7).
        previous: the last two gaps, (R, 2).
        follower: the gap that followed a gap of this length last time, (R, LONGEST_GAP + 1).
        phases: recency-weighted activity by phase, all periods joined, (R, sum of PERIODS).
        phase_loss: recency-weighted log loss of each period's share as a forecast, (R, periods).
        ring: activity of the last 512 steps by step index modulo 512, (R, 512).
        windows: active steps in the windows, (R, windows).
        activity: exponentially weighted activity, (R, half-lives).
        log_counts: exponentially weighted log(1 + count), (R, count half-lives).
        positive: ring of the latest positive counts, (R, 16).
        tsb: probability and size of demand after Teunter, Syntetos and Babai (2011), (R, 2).
        latest_counts: counts of the last steps, the newest first, (R, 4).
        mixers: weights of the readings in each mixer, (R, mixers, READINGS); see `mesp_predictor.patterns`.
        groups: number of the function's app and of its owner, (R, RELATIONS); -1 for none.
        related: what the others of these did lately, (R, RELATIONS, RELATED_KEPT).
        trigger: what invokes the function, as a `Trigger`, (R,).
    """

    step: int
    age: npt.NDArray[np.int32]
    gap: npt.NDArray[np.int32]
    active_steps: npt.NDArray[np.int32]
    gaps_seen: npt.NDArray[np.int32]
    histogram: FloatArray
    recent_histogram: FloatArray
    latest_gaps: FloatArray
    gap_statistics: FloatArray
    previous: npt.NDArray[np.int32]
    follower: npt.NDArray[np.int16]
    phases: FloatArray
    phase_loss: FloatArray
    ring: npt.NDArray[np.uint8]
    windows: npt.NDArray[np.int16]
    activity: FloatArray
    log_counts: FloatArray
    positive: FloatArray
    tsb: FloatArray
    latest_counts: FloatArray
    mixers: FloatArray
    groups: IntArray
    related: FloatArray
    trigger: npt.NDArray[np.int8]
    _features: FloatArray | None = field(default=None, init=False, repr=False, compare=False)  # laid out last

    @classmethod
    def empty(
        cls, rows: int, step: int = 0, keys: Sequence[FunctionKey | None] = (), triggers: Sequence[Trigger] = ()
    ) -> Statistics:
        """Statistics of functions never observed.

        Args:
            rows: R.
            step: absolute index of the next step.
            keys: the functions' names, R of them, which tell who is related; none: nobody is.
            triggers: what invokes them, R of them; none: nobody knows.
        """
        f32, i32 = np.float32, np.int32
        gaps = LONGEST_GAP + 1
        return cls(
            step=step,
            age=np.full(rows, -1, i32),
            gap=np.zeros(rows, i32),
            active_steps=np.zeros(rows, i32),
            gaps_seen=np.zeros(rows, i32),
            histogram=np.zeros((rows, gaps), f32),
            recent_histogram=np.zeros((rows, gaps), f32),
            latest_gaps=np.zeros((rows, GAPS_KEPT), f32),
            gap_statistics=np.zeros((rows, 2 + len(QUANTILES)), f32),
            previous=np.zeros((rows, 2), i32),
            follower=np.zeros((rows, gaps), np.int16),
            phases=np.zeros((rows, int(PHASE_START[-1])), f32),
            phase_loss=np.full((rows, len(PERIODS)), np.log(2), f32),
            ring=np.zeros((rows, RECENT), np.uint8),
            windows=np.zeros((rows, len(WINDOWS)), np.int16),
            activity=np.zeros((rows, len(HALF_LIVES)), f32),
            log_counts=np.zeros((rows, len(COUNT_HALF_LIVES)), f32),
            positive=np.zeros((rows, POSITIVE_KEPT), f32),
            tsb=np.zeros((rows, 2), f32),
            latest_counts=np.zeros((rows, COUNTS_KEPT), f32),
            mixers=_new_mixers(rows),
            groups=groups_of(keys) if keys else np.full((rows, len(RELATIONS)), -1),
            related=_nothing_related(rows),
            trigger=np.array(triggers, np.int8) if triggers else np.zeros(rows, np.int8),
        )

    def __len__(self) -> int:
        """Number of functions."""
        return len(self.age)

    def take(self, rows: IntArray) -> Statistics:
        """A copy of these rows (itself when they are all of them in order)."""
        if len(rows) == len(self) and np.array_equal(rows, np.arange(len(self))):
            return self
        return Statistics(self.step, *(getattr(self, name)[rows] for name in _ARRAYS))

    def put(self, rows: IntArray, other: Statistics) -> None:
        """Replaces these rows by another's; both must be at the same step."""
        for name in _ARRAYS:
            getattr(self, name)[rows] = getattr(other, name)
        self._features = None

    def grow(self, rows: int) -> None:
        """Appends never observed functions until there are `rows`."""
        extra = Statistics.empty(rows - len(self), self.step)
        for name in _ARRAYS:
            setattr(self, name, np.concatenate([getattr(self, name), getattr(extra, name)]))
        self._features = None

    def identify(self, groups: IntArray, trigger: npt.NDArray[np.int8]) -> None:
        """Who the functions are from here on: arguments as the attributes."""
        if not np.array_equal(trigger, self.trigger):
            self._features = None
        self.groups, self.trigger = groups, trigger

    def update(self, counts: FloatArray) -> None:
        """Takes in one step's counts, (R,); NaN where missing."""
        kernels.update(self.step, np.ascontiguousarray(counts, np.float32), *(getattr(self, name) for name in _ARRAYS))
        self.step += 1
        self._features = None

    def features(self, horizon: int) -> FloatArray:
        """What is known about each of the next `horizon` steps, (R, H, len(FEATURES)) float32, all finite.

        Laid out once for everybody who asks before the next update: not to be written to.
        """
        if self._features is None or self._features.shape[1] < horizon:
            self._features = np.empty((len(self), horizon, len(FEATURES)), np.float32)
            kernels.features(self.step, self._features, *(getattr(self, name) for name in _ARRAYS))
        return self._features[:, :horizon]

    def renewal(self, curves: FloatArray, curve: IntArray, strength: float, horizon: int) -> FloatArray:
        """Probability of activity in each of the next steps, (R, H), were gaps independent draws.

        The hazard after g quiet steps is (k_g + strength * prior_g) / (S_g + strength), where k_g of the S_g
        gaps that lasted g steps ended there (beta-binomial shrinkage), and the renewal equation
        u_h = a_h + sum_j u_j f_{h-j} carries it past the next arrival. From LONGEST_GAP on the prior alone answers.

        Args:
            curves: prior hazard by gap length for each curve, (K, LONGEST_GAP + 1); index 0 is for functions never active.
            curve: which curve is each function's prior, (R,).
            strength: how many gaps the prior is worth.
            horizon: steps ahead.
        """
        out = np.empty((len(self), horizon), np.float32)
        kernels.renewal(out, self.gap, self.histogram, curves, curve, strength)
        return out

    def phase_shares(self, horizon: int) -> FloatArray:
        """Recency-weighted share of cycles active at each target step's phase, (R, H, periods).

        Shrunk to the function's own activity by 0.3 cycles' weight, so that a phase seen once is no certainty.
        """
        out = np.empty((len(self), horizon, len(PERIODS)), np.float32)
        kernels.phase_shares(self.step, out, self.age, self.phases, self.active_steps)
        return out

    def positive_quantiles(self) -> tuple[FloatArray, FloatArray]:
        """Quantiles of the next positive count after the latest ones: values (R, len(POSITIVE_LEVELS)) >= 1, their levels.

        Sixteen counts know nothing of a level as high as 0.99: past the largest of them, which is expected at 16/17, the
        tail goes on as an exponential one would that has their upper half's slope.
        """
        latest = np.empty((len(self), POSITIVE_KEPT), np.float32)
        kernels.positive_quantiles(latest, self.positive, self.active_steps)
        slope = TAIL * (latest[:, -3] - latest[:, POSITIVE_KEPT // 2]) / np.log(5)
        tail = latest[:, -1:] + slope[:, None] * np.log((1 - _LARGEST) / (1 - np.array(_TAIL_LEVELS)))
        return np.concatenate([latest, tail.astype(np.float32)], axis=1), POSITIVE_LEVELS


def groups_of(keys: Sequence[FunctionKey | None]) -> IntArray:
    """Numbers of each function's app and owner, (R, RELATIONS); -1 for no function, and for a function that has no app.

    The owner is the key's scope, the app what comes before the last slash of its name: an OpenWhisk package, or an app of
    the Azure traces.
    """
    numbers: dict[tuple[str, ...], int] = {}
    groups = np.full((len(keys), len(RELATIONS)), -1)
    for row, key in enumerate(keys):
        if key is not None:
            app, slash, _ = key.name.rpartition("/")
            if slash:
                groups[row, 0] = numbers.setdefault((key.scope, app), len(numbers))
            groups[row, 1] = numbers.setdefault((key.scope,), len(numbers))
    return groups


def _nothing_related(rows: int) -> FloatArray:
    """Nobody else was ever active."""
    related = np.zeros((rows, len(RELATIONS), RELATED_KEPT), np.float32)
    related[:, :, 2] = LONGEST_GAP
    return related


def _new_mixers(rows: int) -> FloatArray:
    """Every reading with the same say, the constant with none."""
    weights = np.full((rows, len(MIXER_RATES), READINGS), MIXER_START, np.float32)
    weights[:, :, -1] = 0
    return weights


_ARRAYS = tuple(each.name for each in fields(Statistics) if each.init and each.name != "step")
