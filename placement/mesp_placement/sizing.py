"""How many containers a function should have warm: a forecast distribution and one price in, a count out.

Let N be the containers a function needs at once in a step. Having the k-th one warm saves a cold start when
N >= k and idles through the step otherwise, so it is worth having iff

    P(N >= k) * price  >=  P(N < k) * memory * held time.

This is the newsvendor's marginal rule (Arrow, Harris, Marschak 1951). The left side falls with k and the right
side rises, so the wanted count is the last k that passes: the quantile of N at the level
``price / (price + memory * held time)``. P(N >= 1) is the forecast's own probability of activity, exactly.

For k >= 2, N comes from the count's quantile function in two steps:

* *arrivals*: the forecast's quantiles, joined by straight lines from (0, 0) on; beyond the last level the tail is
  exponential, with the slope of the last two levels. The result is rounded to the nearest whole count.
* *containers*: n arrivals of mean duration d in a step of s seconds occupy an infinite-server queue (M/G/∞, whose
  occupancy is Poisson whatever the durations' distribution: Eick, Massey, Whitt 1993). An arrival finds
  Poisson((n-1)*d/s) others there (PASTA); the peak is taken as the level that one arrival of the n exceeds, the
  quantile at 1 - 1/n, plus the arrival itself, and is never more than all n of them. It treats the n looks as
  independent; they come in clumps, so the peak is slightly high.

Of a partly elapsed step only the share rho is left. With events at a constant rate, P' = 1 - (1-P)^rho for every
event {N >= k}, and the container is held for rho * s seconds: the rule then asks the same of the rest of a step as
of the whole.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from mesp.types import MB_PER_GB

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mesp.types import Forecasts

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

#: Prices outside are out of reach of any forecast; `price_for_budget` searches between them.
MIN_PRICE_GB_S, MAX_PRICE_GB_S = 1e-3, 1e6

#: For a function without `max_containers`.
NO_LIMIT = 2**62

#: Up to this mean the Poisson quantile is summed exactly; above, its normal approximation is off by less than one.
_EXACT_MEAN = 16.0


@dataclass(frozen=True, slots=True)
class Demand:
    """What F functions need in one step, of which `rest_share` is still to come.

    Attributes:
        active: probability of at least one invocation in the whole step, (F,); 0 where the step is not looked at.
        levels: (L,), ascending, inside (0, 1).
        quantiles: invocations in the whole step, (F, L).
        duration_s: mean run time, (F,).
        concurrency: requests one container handles at once, (F,).
        step_s: width of the step.
        begins_s: time from now to the part still to come; 0 inside the step.
        rest_share: that part over the step, in (0, 1].
    """

    active: Floats
    levels: Floats
    quantiles: Floats
    duration_s: Floats
    concurrency: Ints
    step_s: float
    begins_s: float = 0.0
    rest_share: float = 1.0

    @property
    def held_s(self) -> float:
        """How long a container idles when nothing comes."""
        return self.step_s * self.rest_share

    @property
    def active_in_rest(self) -> Floats:
        """P(N >= 1) in the part still to come, (F,)."""
        return 1.0 - self.idle_in_rest

    @property
    def idle_in_rest(self) -> Floats:
        """P(N = 0) in the part still to come, (F,)."""
        return np.asarray((1.0 - self.active) ** self.rest_share)

    def rows(self, rows: Ints) -> Demand:
        """The demand of some of the functions."""
        return replace(
            self,
            active=self.active[rows],
            quantiles=self.quantiles[rows],
            duration_s=self.duration_s[rows],
            concurrency=self.concurrency[rows],
        )


def demands(
    forecasts: Forecasts, rows: Ints, duration_s: Floats, concurrency: Ints, cover_s: Floats, now_ms: int
) -> list[Demand]:
    """The demand of forecast rows in each step that overlaps ``[now, now + cover_s)``, in order of time.

    `rows`, `duration_s`, `concurrency` and `cover_s` (lead time plus tick) are (F,). Empty when the forecasts end
    before now.
    """
    step_ms = forecasts.step_ms
    elapsed_ms = max(0, now_ms - forecasts.as_of_ms)  # a predictor's clock may be ahead
    first = elapsed_ms // step_ms
    until_ms = elapsed_ms + 1e3 * (cover_s.max() if cover_s.size else 0.0)
    levels = np.asarray(forecasts.levels, np.float64)
    found = []
    for step in range(first, min(forecasts.horizon, max(first + 1, int(np.ceil(until_ms / step_ms))))):
        begins_ms = max(0, step * step_ms - elapsed_ms)
        active = forecasts.active[rows, step].astype(np.float64)
        found.append(
            Demand(
                active=np.where(begins_ms < np.maximum(1e3 * cover_s, 1), active, 0.0),
                levels=levels,
                quantiles=np.maximum.accumulate(forecasts.quantiles[rows, step].astype(np.float64), axis=1),
                duration_s=duration_s,
                concurrency=concurrency,
                step_s=step_ms / 1e3,
                begins_s=begins_ms / 1e3,
                rest_share=min(1.0, (step + 1) - elapsed_ms / step_ms),
            )
        )
    return found


def warm_count(demand: Demand, memory_gb: Floats, price_gb_s: float) -> Ints:
    """Containers worth having in the step, (F,): the last k with P(N >= k)*price >= P(N < k)*memory*held time.

    `memory_gb` is (F,) and positive; `price_gb_s` is the price of one cold start in GB·s of idle memory.
    """
    idle = demand.idle_in_rest
    one = (1.0 - idle) * price_gb_s >= idle * memory_gb * demand.held_s
    several = containers_at(demand, critical_level(demand, memory_gb, price_gb_s))
    return np.where(one, np.maximum(several, 1), 0)


def hold_s(memory_gb: Floats, price_gb_s: float) -> Floats:
    """How long a container that sizing does not ask for is held while the function is wanted at all, (F,).

    The forecast counts calls per step and cannot see how they bunch inside it; the containers that were busy at once
    lately can. Such a container is held until its idle time has cost as much as making it again: the rent-or-buy rule
    that never costs more than twice the best choice (Karlin, Manasse, Rudolph, Sleator, 1988).
    """
    return price_gb_s / np.maximum(memory_gb, 1e-9)


def critical_level(demand: Demand, memory_gb: Floats, price_gb_s: float) -> Floats:
    """The level of the newsvendor's quantile, (F,), for the part of the step still to come."""
    return np.asarray(price_gb_s / (price_gb_s + memory_gb * demand.held_s))


def containers_at(demand: Demand, level: Floats) -> Ints:
    """The quantile of N in the part still to come, (F,), at one level for each function."""
    arrivals = arrivals_at(demand, level)
    busy = peak_busy(arrivals, demand.duration_s / demand.step_s)
    return np.asarray(-(-busy // demand.concurrency))


def arrivals_at(demand: Demand, level: Floats) -> Ints:
    """The quantile of the invocations, (F,), that goes with `containers_at` at the same level, in whole counts."""
    level = np.minimum(level ** (1.0 / demand.rest_share), 1.0 - 1e-9)
    knots = np.concatenate([[0.0], demand.levels])
    values = np.concatenate([np.zeros((len(level), 1)), demand.quantiles], axis=1)
    row = np.arange(len(level))
    right = np.clip(np.searchsorted(knots, level, side="right"), 1, len(knots) - 1)
    below, above = values[row, right - 1], values[row, right]
    inside = below + (above - below) * (level - knots[right - 1]) / (knots[right] - knots[right - 1])
    last, before = values[:, -1], values[:, -2]
    scale = (last - before) / np.log((1.0 - knots[-2]) / (1.0 - knots[-1]))
    beyond = last + scale * np.log((1.0 - knots[-1]) / (1.0 - level))
    counts = np.where(level > knots[-1], beyond, inside)
    # Half-way counts go up; the bound keeps absurd forecasts inside an int64.
    return np.asarray(np.minimum(np.floor(counts + 0.5), 1e12), np.int64)


def peak_busy(arrivals: Ints, load: Floats) -> Ints:
    """Most requests in progress at once, (F,), when `arrivals` come in a step and each runs `load` steps long."""
    others = np.maximum(arrivals - 1, 0) * load
    peak = np.minimum(arrivals, 1).copy()
    many = np.flatnonzero((arrivals >= 2) & (load > 0))
    if many.size:
        seen = _poisson_quantile(others[many], 1.0 / arrivals[many])
        most = np.ceil(arrivals[many] * np.maximum(load[many], 1.0))
        peak[many] = np.minimum(1.0 + seen, most)
    return np.asarray(peak)


def needed_when_active(demand: Demand, points: int = 32) -> Ints:
    """N given N >= 1 in the part still to come, (F, points): its quantiles at the midpoints of equal shares."""
    idle = demand.idle_in_rest
    levels = (idle + (1.0 - idle) * (point + 0.5) / points for point in range(points))
    return np.stack([np.maximum(containers_at(demand, level), 1) for level in levels], axis=1)


def expected_idle(demand: Demand, count: Ints, needed: Ints) -> Floats:
    """Expected containers idle, E[(count - N)+], (F,), when `count` are warm; `needed` as of `needed_when_active`."""
    idle = demand.idle_in_rest
    return np.asarray(idle * count + (1.0 - idle) * np.maximum(count[:, None] - needed, 0).mean(axis=1))


def price_for_budget(steps: Sequence[Demand], memory_gb: Floats, budget_mb: float, most: Ints) -> float:
    """The highest price, GB·s, at which the expected idle memory held is within `budget_mb`.

    The count held is the largest over `steps`, at most `most` (F,); its idleness is that of the first step. Idle
    memory never falls as the price rises, so a bisection (on the price's logarithm) finds it: 0 when even
    `MIN_PRICE_GB_S` exceeds the budget, `MAX_PRICE_GB_S` when nothing does. Within a tenth of a percent, from below.
    """
    if not steps:
        return MAX_PRICE_GB_S
    needed = needed_when_active(steps[0])

    def held_mb(price_gb_s: float) -> float:
        count = np.minimum(wanted_count(steps, memory_gb, price_gb_s), most)
        return float(expected_idle(steps[0], count, needed) @ memory_gb) * MB_PER_GB

    if held_mb(MAX_PRICE_GB_S) <= budget_mb:
        return MAX_PRICE_GB_S
    low, high = MIN_PRICE_GB_S, MAX_PRICE_GB_S
    if held_mb(low) > budget_mb:
        return 0.0
    while high > low * 1.001:
        middle = float(np.sqrt(low * high))
        low, high = (middle, high) if held_mb(middle) <= budget_mb else (low, middle)
    return low


def wanted_count(steps: Sequence[Demand], memory_gb: Floats, price_gb_s: float) -> Ints:
    """Containers worth having over all `steps` looked at, (F,): the largest of their warm counts."""
    counts = [warm_count(step, memory_gb, price_gb_s) for step in steps]
    return np.max(counts, axis=0) if counts else np.zeros(len(memory_gb), np.int64)


def _poisson_quantile(mean: Floats, tail: Floats) -> Floats:
    """The least m with P(X > m) <= `tail` for X ~ Poisson(`mean`), elementwise; `tail` is in (0, 0.5]."""
    # Cornish and Fisher's second term corrects the normal quantile for skewness, half a unit for continuity.
    z = _normal_upper_quantile(tail)
    quantile = np.ceil(mean + z * np.sqrt(mean) + (z * z - 1.0) / 6.0 - 0.5)
    rows = np.flatnonzero(mean <= _EXACT_MEAN)
    rate, enough = mean[rows], 1.0 - tail[rows]
    term = reached = np.exp(-rate)
    m = 0
    while rows.size:
        quantile[rows] = m
        m += 1
        term = term * rate / m
        left = (reached < enough) & (term > 0.0)
        rows, rate, enough, term, reached = rows[left], rate[left], enough[left], term[left], (reached + term)[left]
    return quantile


def _normal_upper_quantile(tail: Floats) -> Floats:
    """The z with P(Z > z) = `tail` <= 0.5, within 4.5e-4 (Abramowitz and Stegun 26.2.23)."""
    t = np.sqrt(-2.0 * np.log(tail))
    above = 2.515517 + t * (0.802853 + t * 0.010328)
    below = 1.0 + t * (1.432788 + t * (0.189269 + t * 0.001308))
    return np.asarray(t - above / below)
