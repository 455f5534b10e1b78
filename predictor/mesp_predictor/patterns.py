"""Compiled loops that read the shape of a function's recent past: which gap follows which, and what followed before.

Three readings, each a probability of activity h + 1 steps ahead, for one function (row) at a time:

- *conditional hazard*: the hazard of the running gap among past gaps that came after gaps like the last ones, a
  Nadaraya-Watson estimate (Nadaraya, 1964) over the latest gaps with a Gaussian kernel in log length;
- *analogues*: what followed earlier stretches of activity that looked like the latest steps, bit by bit (Lorenz, 1969);
- *mixer*: all readings' log odds, weighed by the function's own online logistic regression, which is how context-mixing
  compressors (Mahoney, "Adaptive Weighing of Context Models", 2005) combine theirs. Log loss is code length, and a
  function's activity is a short text to be predicted.

They are compiled, so they carry no types; the arrays are those of `Statistics`.
"""

from __future__ import annotations

import numba
import numpy as np

#: How many preceding gaps must be alike, and how much (spread of the log of their ratio).
GAP_ORDERS = (1, 1, 2, 3)
_GAP_SPREADS = (0.05, 0.3, 0.15, 0.15)
_GAP_MEMORY = 0.97  # weight of an older gap
#: Lengths, in steps, of the stretches that are compared (at most 64), and the cost of each step that differs.
STRETCHES = (8, 20, 60)
_MISMATCH = (1.5, 1.0, 0.6)
_STRETCH_MEMORY = 0.998  # weight of an earlier step
_REACH = 500  # steps looked back for analogues
_NEGLIGIBLE = 1e-4  # weight below which an analogue is passed over
#: Learning rates of the mixers, and the weight that each reading starts with.
MIXER_RATES = (0.002, 0.01)
MIXER_START = 0.12

_RING = 512
_LOGIT_BOUND = 7.0


@numba.njit(cache=True, nogil=True)
def logit(p):
    """Log odds, bounded."""
    p = min(max(p, 0.002), 0.998)
    return np.log(p / (1 - p))


@numba.njit(cache=True, nogil=True)
def bits_set(x):
    """Number of ones in a 64-bit word."""
    x = x - ((x >> np.uint64(1)) & np.uint64(0x5555555555555555))
    x = (x & np.uint64(0x3333333333333333)) + ((x >> np.uint64(2)) & np.uint64(0x3333333333333333))
    x = (x + (x >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return np.int64((x * np.uint64(0x0101010101010101)) >> np.uint64(56))


@numba.njit(cache=True, nogil=True)
def gap_weights(latest_gaps, seen, weights, gaps):
    """Fills the gaps, oldest first, and each one's weight per order; how many there are. The first `order` have none."""
    kept = len(latest_gaps)
    n = min(seen, kept)
    logs = np.empty(n)
    for i in range(n):
        gaps[i] = latest_gaps[(seen - n + i) % kept]
        logs[i] = np.log(gaps[i])
    for k in range(len(GAP_ORDERS)):
        order = GAP_ORDERS[k]
        for i in range(n):
            weights[k, i] = 0.0
            if i < order:
                continue
            distance = 0.0
            for j in range(order):
                difference = logs[i - 1 - j] - logs[n - 1 - j]
                distance += difference * difference / (1 + 0.5 * j)
            weights[k, i] = np.exp(-distance / (2 * _GAP_SPREADS[k] ** 2)) * _GAP_MEMORY ** (n - 1 - i)
    return n


@numba.njit(cache=True, nogil=True)
def conditional_hazard(weights, gaps, n, elapsed, out):
    """Three numbers of one order: log odds that the running gap ends at `elapsed`, evidence, log odds that it ends near."""
    ended, near, reached = 0.05, 0.02, 0.0
    for i in range(n):
        if gaps[i] >= elapsed:
            reached += weights[i]
        if gaps[i] == elapsed:
            ended += weights[i]
        elif abs(gaps[i] - elapsed) == 1:
            near += weights[i]
    out[0] = logit(ended / max(reached + 0.5, ended))
    out[1] = np.log1p(reached)
    out[2] = logit(near / (reached + 0.5 + near))


@numba.njit(cache=True, nogil=True)
def analogues(step, ring, born, active_ever, followed, total):
    """What followed stretches like the latest one: weighted activity (stretches, H) and weights (stretches, H), filled."""
    horizon = followed.shape[1]
    followed[:] = 0.0
    total[:] = 0.0
    if not active_ever:
        return
    back = min(born, _REACH)
    for k in range(len(STRETCHES)):
        length = STRETCHES[k]
        if back <= length + 2:
            continue
        mask = (np.uint64(1) << np.uint64(length)) - np.uint64(1)
        latest = np.uint64(0)
        for i in range(length):
            latest = (latest << np.uint64(1)) | np.uint64(ring[(step - length + i) % _RING])
        past = np.uint64(0)
        for i in range(back):
            if i >= length:
                weight = np.exp(-_MISMATCH[k] * bits_set(past ^ latest)) * _STRETCH_MEMORY ** (back - i)
                if weight > _NEGLIGIBLE:
                    for h in range(min(horizon, back - i)):
                        total[k, h] += weight
                        followed[k, h] += weight * ring[(step - back + i + h) % _RING]
            past = ((past << np.uint64(1)) | np.uint64(ring[(step - back + i) % _RING])) & mask


@numba.njit(cache=True, nogil=True)
def mixed(weights, readings):
    """The mixer's log odds, bounded."""
    total = 0.0
    for i in range(len(readings)):
        total += weights[i] * readings[i]
    return min(max(total, -_LOGIT_BOUND), _LOGIT_BOUND)


@numba.njit(cache=True, nogil=True)
def learn(weights, readings, active):
    """One step of online logistic regression for each mixer, (mixers, readings), in place."""
    for m in range(len(weights)):
        error = active - 1 / (1 + np.exp(-mixed(weights[m], readings)))
        for i in range(len(readings)):
            weights[m, i] += MIXER_RATES[m] * error * readings[i]
