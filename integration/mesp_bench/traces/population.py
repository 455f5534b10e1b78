"""Who lives in a synthetic trace: apps, functions, triggers, rates, habits, run times, memory.

Everything that does not change from day to day is drawn here once; `synth` plays it minute by minute.

Sources of the constants
- [W] Shahrad et al., "Serverless in the Wild", USENIX ATC 2020, whose trace is the Azure Functions 2019 trace.
- [B] measured on 12 days of that trace: 6,510 apps x 34 blocks of 504 minutes (ubc-cirrus-lab/femux).
- [A] measured on 198 functions of its first day (Azure Public Dataset).
- [chosen] where no published number was found.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    Floats = npt.NDArray[np.float64]
    Ints = npt.NDArray[np.int64]

MINUTES_PER_DAY = 1_440

#: Functions in an app: (fewest, most, share of apps) [W, Fig. 1].
APP_SIZES = ((1, 1, 0.54), (2, 2, 0.16), (3, 3, 0.10), (4, 5, 0.08), (6, 10, 0.07), (11, 100, 0.05))

#: Share of functions by trigger [W, Fig. 2: % of functions, not of invocations].
TRIGGER_SHARES = {
    "http": 0.550,
    "timer": 0.156,
    "queue": 0.152,
    "orchestration": 0.069,
    "storage": 0.028,
    "event": 0.022,
    "others": 0.023,
}

#: An app's invocations a day: (cumulative share of apps, log10 of the rate). 45 % at most 1 an hour, 81 % at most
#: 1 a minute, 8 orders of magnitude [W, Fig. 5]; ends and lower half [B].
APP_RATE = ((0.0, -0.8), (0.05, -0.5), (0.25, 0.40), (0.45, 1.38), (0.81, 3.158), (0.95, 4.3), (0.99, 5.5), (1.0, 7.3))

#: Few event functions make a quarter of all invocations [W, Fig. 2].
EVENT_RATE_FACTOR = 10.0

#: Larger apps are busier: an app's rank by rate follows its log size plus noise of this sd; and how unevenly its
#: invocations fall to its functions, as the sd of their log weight [chosen, so that of the functions 34 % need at
#: most 5 invocations a day, 40 % at most 10, 48 % at most 24, as in A].
RATE_SIZE_NOISE = 2.2
SPLIT_LOG_SD = 1.2

#: Minutes between a timer's firings [A, the common gaps; a day and a week, W]; faster ones fire k times a minute.
TIMER_PERIODS = (1, 2, 3, 4, 5, 6, 10, 15, 20, 30, 60, 120, 240, 360, 480, 720, 1_440, 10_080)
TIMER_PER_MINUTE = (1, 2, 4, 6, 12, 60)

#: Habits of functions that no timer drives: polled from outside at a steady pace, Poisson (CV 1), bursty (CV > 1) [A].
HABIT_SHARES = {"polled": 0.15, "poisson": 0.25, "bursty": 0.60}

#: Share of a multi-function app's queue, event, storage, orchestration and other functions fired by its first [chosen].
CHAINED_SHARE = 0.5

#: Cumulative share of apps by the standard deviation of the log rate over blocks, apps of 100 or more invocations in
#: every block [B; the upper end chosen]: half are steady to a percent, and have no daily wave either. Correlation of the
#: log rate between consecutive blocks [B: the ratio's variance at lags of 3, 6, 12 blocks].
DRIFT_BLOCK_MINUTES = 504
DRIFT_SD = (
    (0.0, 0.001),
    (0.1, 0.002),
    (0.25, 0.004),
    (0.5, 0.011),
    (0.6, 0.045),
    (0.7, 0.127),
    (0.75, 0.189),
    (0.9, 0.573),
    (0.95, 0.839),
    (1.0, 2.0),
)
STEADY_SD = 0.011
DRIFT_CORRELATION = 0.87

#: Share of apps that appear, and that vanish for good, in a day [B, apps with 10 or more invocations a block].
APPEAR_PER_DAY = 0.0093
VANISH_PER_DAY = 0.0070
MIN_LIFE_MINUTES = 60

#: Mean run time in s is log-normal (mu, sigma of the log), the median some 0.7 s [W, Fig. 7].
DURATION_LOG_MEAN, DURATION_LOG_SD = -0.38, 2.36
DURATION_MS_RANGE = (1.0, 600_000.0)

#: An app's average memory in MB is Burr XII (c, k, scale) [W, Fig. 8]; its maximum, median 170 MB, is some 20 % more.
MEMORY_BURR = (11.652, 0.221, 107.083)
MEMORY_MB_MAX = 4_000.0


@dataclass(frozen=True, slots=True)
class Population:
    """N functions of A apps; arrays are (N,) unless they say (A,).

    Attributes:
        app: the app's index, ascending: an app's functions stand together.
        owner: the app's owner, (A,).
        trigger: index into TRIGGER_SHARES.
        habit: ``timer``, ``chained``, or a key of HABIT_SHARES.
        rate: invocations a day of functions that are poisson or bursty.
        period, per_firing, phase: minutes between firings (timer, polled), invocations each, first minute.
        parent: the function that fires this one (chained), else -1; chance: with this probability per invocation.
        daily, peak, weekend: depth of the daily wave (0 to 1), its highest minute, the weekend's factor.
        burst: invocations in a burst; spread: minutes that it lasts on average.
        born, dies: first minute of life and first after it.
        anchor: a minute with one sure invocation (a trace lists only functions that were invoked); -1 for timers.
        duration_ms, duration_log_sd: mean run time and its spread from run to run.
        drift_sd, memory_mb: of the app, (A,).
    """

    app: Ints
    owner: Ints
    trigger: Ints
    habit: npt.NDArray[np.str_]
    rate: Floats
    period: Floats
    per_firing: Ints
    phase: Floats
    parent: Ints
    chance: Floats
    daily: Floats
    peak: Floats
    weekend: Floats
    burst: Floats
    spread: Floats
    born: Ints
    dies: Ints
    anchor: Ints
    duration_ms: Floats
    duration_log_sd: Floats
    drift_sd: Floats
    memory_mb: Floats


def draw_population(functions: int, days: int, rng: np.random.Generator) -> Population:
    """Draw everybody; the same generator state gives the same population."""
    app = np.repeat(np.arange(functions), _app_sizes(functions, rng))[:functions]
    apps, first = np.unique(app, return_index=True)
    trigger = rng.choice(len(TRIGGER_SHARES), functions, p=list(TRIGGER_SHARES.values()))
    is_trigger = {name: trigger == i for i, name in enumerate(TRIGGER_SHARES)}
    rate = _split(_app_rates(np.bincount(app), rng), app, rng)
    rate[is_trigger["event"]] *= EVENT_RATE_FACTOR

    habit = rng.choice(list(HABIT_SHARES), functions, p=list(HABIT_SHARES.values())).astype("U8")
    habit[(habit == "polled") & (rate > MINUTES_PER_DAY)] = "poisson"
    habit[is_trigger["timer"]] = "timer"
    root = first[app]
    chained = (root != np.arange(functions)) & ~is_trigger["timer"] & ~is_trigger["http"]
    chained &= rng.random(functions) < CHAINED_SHARE
    habit[chained] = "chained"

    born, dies = _lives(len(apps), days, rng)
    life_days = (dies - born)[app] / MINUTES_PER_DAY
    period, per_firing = _timers(rate)
    polled = habit == "polled"
    period[polled] = MINUTES_PER_DAY / rate[polled]
    anchor_at = rng.random(functions)
    drift_sd = _quantile(DRIFT_SD, rng.random(len(apps)))
    steady = (drift_sd < STEADY_SD)[app]
    burr_c, burr_k, burr_scale = MEMORY_BURR
    return Population(
        app=app,
        owner=np.cumsum(rng.random(len(apps)) < 0.6),  # [A: 191 apps of 172 owners; more when none is left out]
        trigger=trigger,
        habit=habit,
        rate=np.maximum(rate - 1 / life_days, 0.0),  # the anchor is one of them
        period=period,
        per_firing=per_firing,
        phase=born[app] + np.floor(rng.random(functions) * np.minimum(period, (dies - born)[app])),
        parent=np.where(chained, root, -1),
        chance=rng.uniform(0.2, 1.0, functions),
        daily=np.where(steady, 0.0, rng.beta(1.2, 1.8, functions)),
        peak=rng.normal(15 * 60, 180, functions) % MINUTES_PER_DAY,  # working hours of Europe and America overlap
        weekend=np.where(steady, 1.0, rng.uniform(0.4, 1.0, functions)),
        burst=1 + rng.lognormal(1.0, 1.0, functions),
        spread=rng.lognormal(1.2, 1.0, functions),
        born=born[app],
        dies=dies[app],
        anchor=np.where(is_trigger["timer"], -1, born[app] + (anchor_at * (dies - born)[app]).astype(np.int64)),
        duration_ms=np.clip(1_000 * rng.lognormal(DURATION_LOG_MEAN, DURATION_LOG_SD, functions), *DURATION_MS_RANGE),
        duration_log_sd=rng.uniform(0.2, 1.0, functions),
        drift_sd=drift_sd,
        memory_mb=np.minimum(
            burr_scale * ((1 - rng.random(len(apps))) ** (-1 / burr_k) - 1) ** (1 / burr_c), MEMORY_MB_MAX
        ),
    )


def _quantile(knots: tuple[tuple[float, float], ...], u: Floats) -> Floats:
    """Values at cumulative shares `u`, linear between the knots."""
    shares, values = zip(*knots, strict=True)
    return np.asarray(np.interp(u, shares, values), dtype=np.float64)


def _app_sizes(functions: int, rng: np.random.Generator) -> Ints:
    """Sizes of at least enough apps; in a small trace no app holds more than a twentieth, or 10."""
    fewest, most, shares = (np.array(column) for column in zip(*APP_SIZES, strict=True))
    group = rng.choice(len(APP_SIZES), functions, p=shares)
    # Large apps are rarer: log-uniform inside a group.
    size = np.exp(rng.uniform(np.log(fewest[group]), np.log(most[group] + 1))).astype(np.int64)
    return np.asarray(np.minimum(size, max(10, functions // 20)), dtype=np.int64)


def _app_rates(size: Ints, rng: np.random.Generator) -> Floats:
    """Invocations a day of each app, (A,): drawn by themselves, then dealt out so that larger apps tend to get more."""
    rate = np.sort(10 ** _quantile(APP_RATE, rng.random(len(size))))
    rank = np.argsort(np.argsort(np.log(size) + rng.normal(0.0, RATE_SIZE_NOISE, len(size))))
    return np.asarray(rate[rank])


def _split(app_rate: Floats, app: Ints, rng: np.random.Generator) -> Floats:
    """Divide each app's rate among its functions, unevenly."""
    weight = rng.lognormal(0.0, SPLIT_LOG_SD, len(app))
    return np.asarray(app_rate[app] * weight / np.bincount(app, weight)[app])


def _timers(rate: Floats) -> tuple[Floats, Ints]:
    """The timer nearest to each rate: minutes between firings and invocations each."""
    periods = np.array([*TIMER_PERIODS, *(1 for _ in TIMER_PER_MINUTE[1:])], dtype=np.float64)
    each = np.array([*(1 for _ in TIMER_PERIODS), *TIMER_PER_MINUTE[1:]])
    distance = np.abs(np.log(rate)[:, None] - np.log(MINUTES_PER_DAY * each / periods)[None, :])
    nearest = distance.argmin(axis=1)
    return periods[nearest], each[nearest]


def _lives(apps: int, days: int, rng: np.random.Generator) -> tuple[Ints, Ints]:
    """First minute of each app and the first after its last, (A,) each; most live from beginning to end."""
    end = days * MINUTES_PER_DAY
    appears = rng.random(apps) < APPEAR_PER_DAY * days
    vanishes = rng.random(apps) < VANISH_PER_DAY * days
    born = np.where(appears, rng.integers(0, end - MIN_LIFE_MINUTES, apps), 0)
    dies = np.where(vanishes, rng.integers(born + MIN_LIFE_MINUTES, end + 1), end)
    return born, dies
