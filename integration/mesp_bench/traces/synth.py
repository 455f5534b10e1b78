"""A synthetic trace with the habits of a public one, written as the official Azure 2019 files.

`population` draws who there is; here each day is played in groups of whole apps, so memory holds one group's day at a
time whatever the size of the trace. Every group and day has its own random stream: a seed gives the same bytes.

A function's day is the sum of what drives it: a timer or a poller fires on its grid; a Poisson or bursty function
follows a rate with a daily and a weekly wave, drifting from block to block; a chained function answers its parent's
invocations one minute later.
"""

from __future__ import annotations

import hashlib
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from mesp.errors import InputError

from .assemble import FunctionId
from .convert import new_folder
from .load import load_trace
from .official import DayWriter
from .population import (
    DRIFT_BLOCK_MINUTES,
    DRIFT_CORRELATION,
    MINUTES_PER_DAY,
    TRIGGER_SHARES,
    Population,
    draw_population,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy.typing as npt

    from .model import Trace

MAX_FUNCTIONS = 100_000
MAX_DAYS = 99

#: Functions played at once (a whole app more at most).
GROUP = 1_000

#: Minutes over which a busy bursty function keeps its mood.
MOOD_MINUTES = 10

#: Standard normal scores at the duration percentiles; the ends stand for the extremes of many runs.
DURATION_SCORES = np.array([-3.2, -2.326, -0.674, 0.0, 0.674, 2.326, 3.2])

#: An app's memory at the official percentiles, relative to its average.
MEMORY_PROFILE = np.array([0.84, 0.88, 0.96, 1.0, 1.05, 1.12, 1.16, 1.22])


class _Day(NamedTuple):
    """One day: its number from 0 and the rate's drift per app and minute-block, (A, blocks), from `first_block`."""

    number: int
    drift: npt.NDArray[np.float64]
    first_block: int


def write_synthetic(
    out: Path, *, functions: int, days: int, seed: int, progress: Callable[[float], None] = lambda _: None
) -> None:
    """Write invocations, durations and app memory of every day into a new folder; the same seed gives the same bytes.

    Args:
        out: the folder, new or empty.
        functions: 1 to MAX_FUNCTIONS; each is invoked at least once over all days.
        days: 1 to MAX_DAYS; day 1 is a Monday.
        seed: any number of 0 or more.
        progress: is told the share done, 0 to 1.

    Raises:
        InputError: a number out of its range, or the folder is not empty or cannot be written.
    """
    for name, value, least, most in (
        ("functions", functions, 1, MAX_FUNCTIONS),
        ("days", days, 1, MAX_DAYS),
        ("seed", seed, 0, 2**63 - 1),
    ):
        if not least <= value <= most:
            raise InputError(f"{name} = {value} is not allowed; expected {least} to {most}.")
    with new_folder(out) as folder:
        population = draw_population(functions, days, np.random.default_rng([seed, 0]))
        names = _names(population, seed)
        last_counts = np.zeros(functions, dtype=np.int64)
        groups = _groups(population.app)
        for day in _days(population, days, seed):
            with DayWriter(folder, day.number + 1) as writer:
                for number, group in enumerate(groups):
                    rng = np.random.default_rng([seed, 2, day.number, number])
                    counts = _play(population, group, day, last_counts, rng)
                    last_counts[group] = counts[:, -1]
                    _write_group(writer, population, names, group, counts.astype(np.uint32), rng)
                    progress((day.number + (number + 1) / len(groups)) / days)


def synthesize(functions: int = 300, days: int = 1, seed: int = 0) -> Trace:
    """The trace that `write_synthetic` writes, in memory: exactly what `load_trace` reads from the files."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / f"synth-{functions}f-{days}d-seed{seed}"
        write_synthetic(folder, functions=functions, days=days, seed=seed)
        return load_trace(folder)


def _names(population: Population, seed: int) -> list[FunctionId]:
    """Ids as the official files have them: 64 hexadecimal digits without meaning."""

    def digest(kind: str, number: int) -> str:
        return hashlib.sha256(f"mesp synth {seed} {kind} {number}".encode()).hexdigest()

    owners = [digest("owner", int(owner)) for owner in population.owner]
    apps = [digest("app", number) for number in range(len(owners))]
    return [FunctionId(owners[app], apps[app], digest("function", number)) for number, app in enumerate(population.app)]


def _groups(app: npt.NDArray[np.int64]) -> list[slice]:
    """Slices of about GROUP functions that end where an app ends."""
    starts = [0]
    while starts[-1] < len(app):
        last = min(starts[-1] + GROUP, len(app)) - 1
        starts.append(int(np.searchsorted(app, app[last], side="right")))
    return [slice(*bounds) for bounds in pairwise(starts)]


def _days(population: Population, days: int, seed: int) -> Iterator[_Day]:
    """Each day with the drift of its blocks: a stationary, slowly forgetting walk of the log rate per app."""
    level = np.zeros(0)
    blocks: dict[int, npt.NDArray[np.float64]] = {}
    for number in range(days):
        first = number * MINUTES_PER_DAY // DRIFT_BLOCK_MINUTES
        last = ((number + 1) * MINUTES_PER_DAY - 1) // DRIFT_BLOCK_MINUTES
        for block in range(max(blocks, default=-1) + 1, last + 1):
            step = np.random.default_rng([seed, 1, block]).standard_normal(len(population.drift_sd))
            level = step if not block else DRIFT_CORRELATION * level + np.sqrt(1 - DRIFT_CORRELATION**2) * step
            blocks[block] = np.exp(population.drift_sd * level - population.drift_sd**2 / 2)
        blocks = {block: drift for block, drift in blocks.items() if block >= first}
        yield _Day(number, np.stack([blocks[block] for block in range(first, last + 1)], axis=1), first)


def _play(
    population: Population,
    group: slice,
    day: _Day,
    last_counts: npt.NDArray[np.int64],
    rng: np.random.Generator,
) -> npt.NDArray[np.int64]:
    """Invocations of a group's functions on one day, (functions, minutes of a day)."""
    habit = population.habit[group]
    minutes = day.number * MINUTES_PER_DAY + np.arange(MINUTES_PER_DAY)
    alive = (population.born[group, None] <= minutes) & (minutes < population.dies[group, None])
    counts = np.zeros((len(habit), MINUTES_PER_DAY), dtype=np.int64)

    clocked = np.flatnonzero((habit == "timer") | (habit == "polled"))
    counts[clocked] = _firings(population, group.start + clocked, minutes)

    rate = _rates(population, group, day, minutes) * alive
    busy = (habit == "bursty") & (population.rate[group] >= MINUTES_PER_DAY)
    mood = rng.gamma(1.0, 1.0, (int(busy.sum()), MINUTES_PER_DAY // MOOD_MINUTES))
    rate[busy] *= np.repeat(mood, MOOD_MINUTES, axis=1)
    smooth = busy | (habit == "poisson")
    counts[smooth] = rng.poisson(rate[smooth])
    bursty = np.flatnonzero((habit == "bursty") & ~busy)
    counts[bursty] = _bursts(rate[bursty], population.burst[group][bursty], population.spread[group][bursty], rng)

    anchor = population.anchor[group] - minutes[0]
    today = np.flatnonzero((anchor >= 0) & (anchor < MINUTES_PER_DAY) & (habit != "polled"))
    counts[today, anchor[today]] += 1
    counts *= alive

    chained = np.flatnonzero(habit == "chained")
    parents = population.parent[group][chained]
    before = np.column_stack([last_counts[parents], counts[parents - group.start, :-1]])
    counts[chained] += rng.binomial(before, population.chance[group][chained, None]) * alive[chained]
    return counts


def _rates(population: Population, group: slice, day: _Day, minutes: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Expected invocations a minute of functions that follow a rate, (functions, minutes)."""
    wave = np.cos(2 * np.pi * (minutes - population.peak[group, None]) / MINUTES_PER_DAY)
    shape = 1 + population.daily[group, None] * wave
    if day.number % 7 in {5, 6}:
        shape *= population.weekend[group, None]
    drift = day.drift[population.app[group]][:, minutes // DRIFT_BLOCK_MINUTES - day.first_block]
    return np.asarray(population.rate[group, None] / MINUTES_PER_DAY * shape * drift)


def _firings(
    population: Population, rows: npt.NDArray[np.int64], minutes: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """What timers and pollers do: fire on the grid phase + k * period, from their first firing on.

    A timer's period is whole minutes, so it reads the same number every period; a poller's is any number.
    """
    elapsed = minutes - population.phase[rows, None]
    period = population.period[rows, None]
    fired = np.floor(elapsed / period) - np.floor((elapsed - 1) / period)
    return np.asarray(np.where(elapsed >= 0, fired, 0) * population.per_firing[rows, None]).astype(np.int64)


def _bursts(
    rate: npt.NDArray[np.float64],
    burst: npt.NDArray[np.float64],
    spread: npt.NDArray[np.float64],
    rng: np.random.Generator,
) -> npt.NDArray[np.int64]:
    """Bursts that begin at a rate and scatter their invocations after it; what falls beyond the day is lost."""
    cumulative = np.cumsum(rate, axis=None)
    per_row = rate.sum(axis=1)
    number = rng.poisson(per_row / burst)
    row = np.repeat(np.arange(len(rate)), number)
    below = np.concatenate([[0.0], cumulative])[row * MINUTES_PER_DAY]
    start = np.searchsorted(cumulative, below + rng.random(len(row)) * per_row[row], side="right")
    size = rng.geometric(1 / burst[row])
    row, minute = np.repeat(row, size), np.repeat(start - row * MINUTES_PER_DAY, size)
    minute += np.floor(rng.exponential(spread[row])).astype(np.int64)
    inside = (minute >= 0) & (minute < MINUTES_PER_DAY)
    flat = np.bincount(row[inside] * MINUTES_PER_DAY + minute[inside], minlength=rate.size)
    return flat.reshape(rate.shape)


def _write_group(
    writer: DayWriter,
    population: Population,
    names: list[FunctionId],
    group: slice,
    counts: npt.NDArray[np.uint32],
    rng: np.random.Generator,
) -> None:
    """Append a group's day; the files list only functions and apps that were invoked."""
    totals = counts.sum(axis=1, dtype=np.int64)
    mean_ms = population.duration_ms[group] * rng.lognormal(0.0, 0.1, len(totals))
    active = np.flatnonzero(totals)
    ids = [names[group.start + i] for i in active]
    trigger_names = list(TRIGGER_SHARES)
    writer.invocations(ids, [trigger_names[population.trigger[group.start + i]] for i in active], counts[active])

    total = totals[active, None]
    sd = population.duration_log_sd[group][active, None] * (1 - 1 / total)  # one run has no spread
    percentiles = mean_ms[active, None] * np.exp(sd * DURATION_SCORES - sd**2 / 2)
    writer.durations(ids, total[:, 0], np.rint(np.column_stack([mean_ms[active], percentiles])))

    app, first = np.unique(population.app[group][active], return_index=True)
    app_total = np.bincount(population.app[group][active] - population.app[group.start], totals[active])
    samples = np.clip(12 * app_total[app - population.app[group.start]], 1, 12 * MINUTES_PER_DAY).astype(np.int64)
    average = population.memory_mb[app]
    writer.memory([ids[i][:2] for i in first], samples, np.rint(average), np.rint(average[:, None] * MEMORY_PROFILE))
