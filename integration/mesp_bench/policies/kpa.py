"""Knative's pod autoscaler (KPA) as a baseline: its decision of one tick, and what it means for minutes.

`kpa_step` is the decision of knative/serving `pkg/autoscaler/scaling/autoscaler.go` (1.22, `Scale`): two averages
of concurrency, over the stable window and over its last tenth, ask for pods; a burst that asks for twice the ready
pods starts a panic, in which the scale only grows, until a stable window has passed without another such burst. It is
pure and compiled; an event simulator calls it every `TICK_S` and applies the rest of the autoscaler: the windows of
1 s buckets before it, and after it the bounds and the grace before the last pod goes.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import numba
import numpy as np

from mesp.errors import InputError
from mesp_bench.policies.base import MINUTE_S, keep_alive_schedule, minutes_since_active

if TYPE_CHECKING:
    from mesp.types import BoolArray
    from mesp_bench.schedule import WarmSchedule
    from mesp_bench.traces.model import Trace

TICK_S = 2.0
STABLE_WINDOW_S = 60.0

#: The panic window's share of the stable window.
PANIC_SHARE = 0.1

#: The least time without work, beyond the stable window, before the last pod goes.
SCALE_TO_ZERO_GRACE_S = 30.0

#: `KpaState.panic_since_s` outside a panic.
CALM = -math.inf


class KpaState(NamedTuple):
    """What one tick hands to the next: when the panic was last renewed (CALM: never) and its highest scale."""

    panic_since_s: float = CALM
    panic_pods: int = 0


class KpaSettings(NamedTuple):
    """The knobs of one revision, with Knative's defaults (`config-autoscaler`).

    Attributes:
        target: concurrency that one pod is meant to carry, see `pod_target`.
        stable_window_s: length of the stable window; it also outlasts the panic.
        panic_threshold: a panic starts when the panic window asks for this many times the ready pods.
        max_scale_up: at most this many times the ready pods in one tick.
        max_scale_down: at least the ready pods divided by this in one tick.
        activation_scale: the least scale other than zero.
        reachable: whether a route leads to the revision; without one it may fall to zero at once.
    """

    target: float
    stable_window_s: float = STABLE_WINDOW_S
    panic_threshold: float = 2.0
    max_scale_up: float = 1000.0
    max_scale_down: float = 2.0
    activation_scale: int = 1
    reachable: bool = True


def pod_target(container_concurrency: int, utilisation: float = 0.7) -> float:
    """Concurrency one pod is meant to carry: 70 % of its hard limit, or of 100 where there is none (0)."""
    return max(0.01, (container_concurrency or 100) * utilisation)


@numba.njit(cache=True)
def kpa_step(
    now_s: float,
    stable_concurrency: float,
    panic_concurrency: float,
    ready: int,
    state: KpaState,
    settings: KpaSettings,
) -> tuple[int, KpaState]:
    """The pods wanted after one tick, before min-scale, max-scale and the grace to zero, and the next state.

    Args:
        now_s: time of the tick.
        stable_concurrency: requests in the revision, averaged over the stable window.
        panic_concurrency: the same over the panic window.
        ready: pods that are ready now.
        state: what the tick before returned; ``KpaState()`` at first.
        settings: the revision's settings.
    """
    present = max(1, ready)
    most = math.ceil(settings.max_scale_up * present)
    least = math.floor(present / settings.max_scale_down) if settings.reachable else 0
    asked_stable = math.ceil(stable_concurrency / settings.target)
    asked_panic = math.ceil(panic_concurrency / settings.target)
    wanted = min(max(asked_stable, least), most)
    wanted_panic = min(max(asked_panic, least), most)
    if asked_stable > 0:
        wanted = max(wanted, settings.activation_scale)
    if asked_panic > 0:
        wanted_panic = max(wanted_panic, settings.activation_scale)

    panic_since_s, panic_pods = state.panic_since_s, state.panic_pods
    if asked_panic / present >= settings.panic_threshold:
        panic_since_s = now_s
    elif panic_since_s + settings.stable_window_s < now_s:
        panic_since_s, panic_pods = CALM, 0
    if panic_since_s != CALM:
        panic_pods = max(panic_pods, wanted, wanted_panic)
        wanted = panic_pods
    return int(wanted), KpaState(panic_since_s, int(panic_pods))


class Kpa:
    """KPA with stable window `knob`: the last pod goes after a stable window and the grace without work.

    The state machine itself runs in event accounting (`kpa_step`). Minutes know one pod or none: its life after the
    last active minute is `knob` + 30 s, rounded up to whole minutes, for a minute that begins warm counts as warm.
    """

    name: ClassVar[str] = "kpa"
    knob_unit: ClassVar[str] = "stable window s"
    knobs: ClassVar[tuple[float, ...]] = (30, 60, 120, 300, 600)
    constant_idle_mb: ClassVar[float] = 0.0

    def loaded(self, trace: Trace, knob: float) -> BoolArray:
        """Loaded in minute m iff active in one of the ceil((knob + 30) / 60) minutes before, (F, M)."""
        return minutes_since_active(trace.counts > 0) <= math.ceil(self._idle_s(knob) / MINUTE_S)

    def schedule(self, trace: Trace, knob: float) -> WarmSchedule:
        """Scale to zero alone, as a keep-alive of `knob` + 30 s: for a simulator that does not run `kpa_step`."""
        return keep_alive_schedule(np.full(trace.counts.shape, self._idle_s(knob), np.float32))

    def _idle_s(self, knob: float) -> float:
        if not 6 <= knob <= 3600:  # Knative's own bounds
            raise InputError(f"{self.name}: knob = {knob:g} s, the stable window must be within 6 s and 3600 s")
        return knob + SCALE_TO_ZERO_GRACE_S
