"""The compiled loops of `mesp_predictor.statistics`, one function (row) at a time, and the constants that they share.

Arguments are the arrays of `Statistics` under their names there. They are compiled, so they carry no types.
"""

from __future__ import annotations

import numba
import numpy as np

from mesp_predictor import patterns
from mesp_predictor.patterns import GAP_ORDERS, MIXER_RATES, STRETCHES, logit

#: Longest gap told apart, in steps; longer ones count as this long.
LONGEST_GAP = 480
#: Periods, in steps, whose phases are tracked.
PERIODS = (2, 3, 4, 5, 6, 10, 12, 15, 20, 30, 60, 90, 120, 180, 240)
#: Steps of activity remembered one by one.
RECENT = 512

GAPS_KEPT = 64  # latest gaps kept for their quantiles
POSITIVE_KEPT = 16  # latest positive counts kept
WINDOWS = (2, 4, 8, 15, 30, 60, 120, 240, 480)
LAGS = (5, 10, 15, 20, 30, 45, 60, 120, 180, 240)
HALF_LIVES = (2.0, 8.0, 30.0, 120.0, 480.0)
COUNT_HALF_LIVES = (3.0, 15.0, 120.0)
CLOCK = (5, 10, 15, 30, 60)
COUNTS_KEPT = 4  # latest counts, zeros among them
RELATED_HALF_LIVES = (2.0, 8.0, 30.0)
#: Of the others of an app or owner: how many were active in the last step and in the one before, steps since any was, and
#: whether any was, exponentially weighted.
RELATED_KEPT = 3 + len(RELATED_HALF_LIVES)
#: What the mixers weigh: phases, hazards (all, recent, near, renewal), conditional hazards, analogues, best period (its own,
#: and all by their losses), and a constant.
READINGS = len(PERIODS) + 4 + len(GAP_ORDERS) + len(STRETCHES) + 3
_PERIOD_TRUST = 60.0  # how sharply a period's loss decides its say
_PHASE_MEMORY = 0.9  # weight of the previous cycle
_GAP_MEMORY = 0.93  # weight of the previous gap in the recency-weighted histogram
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_TSB_ALPHA = 0.1  # smoothing of the demand's size
_TSB_BETA = 0.05  # smoothing of its probability
TRIGGERS = 7  # that a function may have

_PERIODS = np.array(PERIODS, np.int64)
PHASE_START = np.concatenate([[0], np.cumsum(_PERIODS)]).astype(np.int64)
_WINDOW_ARRAY = np.array(WINDOWS, np.int64)
_LAG_ARRAY = np.array(LAGS, np.int64)
_CLOCK_ARRAY = np.array(CLOCK, np.int64)
_QUANTILE_ARRAY = np.array(QUANTILES, np.float64)
_DECAY = (0.5 ** (1 / np.array(HALF_LIVES))).astype(np.float32)
_RELATED_DECAY = (0.5 ** (1 / np.array(RELATED_HALF_LIVES))).astype(np.float32)
_COUNT_DECAY = (0.5 ** (1 / np.array(COUNT_HALF_LIVES))).astype(np.float32)


@numba.njit(cache=True, nogil=True)
def _share(step, ahead, age, p, start, phases_row, rate):
    """Share of the cycles seen before `step` that were active at the phase of step + ahead."""
    cycles = (age + ahead) // p - ahead // p
    weight = (1 - _PHASE_MEMORY**cycles) / (1 - _PHASE_MEMORY)
    share = (phases_row[start + (step + ahead) % p] + 0.3 * rate) / (weight + 0.3)
    return min(share, 1.0)  # missing steps blur which phases were seen how often


@numba.njit(cache=True, nogil=True)
def relate(counts, groups, related):
    """Takes in what the others of each function's app and owner did in a step."""
    active = np.zeros(groups.max() + 1 if groups.size else 0, np.int64)
    for r in range(len(counts)):
        for i in range(groups.shape[1]):
            if groups[r, i] >= 0 and counts[r] > 0:  # a missing count is not above 0
                active[groups[r, i]] += 1
    for r in range(len(counts)):
        for i in range(groups.shape[1]):
            if groups[r, i] >= 0:
                others = active[groups[r, i]] - (counts[r] > 0)
                kept = related[r, i]
                kept[1] = kept[0]
                kept[0] = others
                kept[2] = 0 if others else min(kept[2] + 1, LONGEST_GAP)
                for j in range(len(_RELATED_DECAY)):
                    kept[3 + j] += (1 - _RELATED_DECAY[j]) * ((others > 0) - kept[3 + j])


@numba.njit(cache=True, nogil=True)
def update(
    step, counts, age, gap, active_steps, gaps_seen, histogram, recent_histogram, latest_gaps, gap_statistics,
    previous, follower, phases, phase_loss, ring, windows, activity, log_counts, positive, tsb, latest_counts, mixers,
    groups, related, trigger,
):  # fmt: skip
    relate(counts, groups, related)
    scratch = np.empty(GAPS_KEPT, np.float32)
    first, again, pmf, renewed = np.empty(1), np.empty(1), np.empty(1), np.empty(1)
    readings = np.empty(READINGS)
    gaps, weights = np.empty(GAPS_KEPT), np.empty((len(GAP_ORDERS), GAPS_KEPT))
    hazards = np.empty((len(GAP_ORDERS), 3))
    followed, total = np.empty((len(STRETCHES), 1)), np.empty((len(STRETCHES), 1))
    for r in range(len(counts)):
        count = counts[r]
        missing = np.isnan(count)
        if age[r] < 0:
            if missing:
                continue
            age[r] = 0
        active = (not missing) and count > 0
        if gap[r] > 0 and not missing:
            survivors, recent_survivors = _survivors(histogram[r]), _survivors(recent_histogram[r])
            _recent_renewal(recent_histogram[r], recent_survivors, gap[r], first, again, renewed, pmf)
            n = patterns.gap_weights(latest_gaps[r], gaps_seen[r], weights, gaps)
            patterns.analogues(step, ring[r], age[r], True, followed, total)
            rate = (active_steps[r] + 0.1) / (age[r] + 1.0)
            for k in range(len(GAP_ORDERS)):
                patterns.conditional_hazard(weights[k], gaps, n, gap[r], hazards[k])
            _read(
                step, 0, gap[r], age[r], rate, histogram[r], recent_histogram[r], survivors, recent_survivors, renewed[0],
                hazards, followed, total, phases[r], phase_loss[r], readings,
            )  # fmt: skip
            patterns.learn(mixers[r], readings, active)
        if not missing:
            for i in range(COUNTS_KEPT - 1, 0, -1):
                latest_counts[r, i] = latest_counts[r, i - 1]
            latest_counts[r, 0] = count
        slot = step % RECENT
        for w in range(len(_WINDOW_ARRAY)):
            windows[r, w] += active - ring[r, (step - _WINDOW_ARRAY[w]) % RECENT]
        ring[r, slot] = active
        if not missing:
            rate = (active_steps[r] + 0.1) / (age[r] + 1.0)
            for i in range(len(_PERIODS)):
                p = _PERIODS[i]
                if age[r] >= p:
                    share = min(max(_share(step, 0, age[r], p, PHASE_START[i], phases[r], rate), 0.01), 0.99)
                    loss = -np.log(share) if active else -np.log(1 - share)
                    phase_loss[r, i] += 0.02 * (loss - phase_loss[r, i])
                j = PHASE_START[i] + step % p
                phases[r, j] = phases[r, j] * _PHASE_MEMORY + active
            for i in range(len(_DECAY)):
                activity[r, i] += (1 - _DECAY[i]) * (active - activity[r, i])
            for i in range(len(_COUNT_DECAY)):
                log_counts[r, i] += (1 - _COUNT_DECAY[i]) * (np.log1p(count) - log_counts[r, i])
            tsb[r, 0] += _TSB_BETA * (active - tsb[r, 0])
            age[r] += 1
        if not active:
            if gap[r] > 0:
                gap[r] += 1
            continue
        tsb[r, 1] = count if active_steps[r] == 0 else tsb[r, 1] + _TSB_ALPHA * (count - tsb[r, 1])
        positive[r, active_steps[r] % POSITIVE_KEPT] = count
        active_steps[r] += 1
        if gap[r] > 0:
            g = min(gap[r], LONGEST_GAP)
            histogram[r, g] += 1
            for i in range(LONGEST_GAP + 1):
                recent_histogram[r, i] *= _GAP_MEMORY
            recent_histogram[r, g] += 1
            latest_gaps[r, gaps_seen[r] % GAPS_KEPT] = g
            gaps_seen[r] += 1
            follower[r, previous[r, 0]] = g
            previous[r, 1] = previous[r, 0]
            previous[r, 0] = g
            n = min(gaps_seen[r], GAPS_KEPT)
            ordered = scratch[:n]
            ordered[:] = np.log(latest_gaps[r, :n])
            gap_statistics[r, 0] = ordered.mean()
            gap_statistics[r, 1] = ordered.std()
            ordered.sort()
            for i in range(len(_QUANTILE_ARRAY)):
                at = _QUANTILE_ARRAY[i] * (n - 1)
                low = int(at)
                high = min(low + 1, n - 1)
                gap_statistics[r, 2 + i] = ordered[low] + (at - low) * (ordered[high] - ordered[low])
        gap[r] = 1


@numba.njit(cache=True, nogil=True)
def _survivors(row):
    out = np.empty(LONGEST_GAP + 2, np.float64)
    out[LONGEST_GAP + 1] = 0
    for g in range(LONGEST_GAP, -1, -1):
        out[g] = out[g + 1] + row[g]
    return out


@numba.njit(cache=True, nogil=True)
def _renew(first, again, out, pmf):
    """u_h from the hazards of the running gap (`first`) and of a fresh one (`again`)."""
    alive = 1.0
    fresh = 1.0
    for h in range(len(out)):
        pmf[h] = fresh * again[h]
        fresh -= pmf[h]
        total = alive * first[h]
        alive -= total
        for j in range(h):
            total += out[j] * pmf[h - 1 - j]
        out[h] = min(total, 1.0)


@numba.njit(cache=True, nogil=True)
def _shrunk_hazard(row, survivors, g, prior, strength):
    if g >= LONGEST_GAP:  # the histogram does not say when these gaps ended, only that they got this far
        return prior[LONGEST_GAP]
    return (row[g] + strength * prior[g]) / (survivors[g] + strength)


@numba.njit(cache=True, nogil=True)
def renewal(out, gap, histogram, curves, curve, strength):
    horizon = out.shape[1]
    first = np.empty(horizon)
    again = np.empty(horizon)
    pmf = np.empty(horizon)
    for r in range(len(out)):
        prior = curves[curve[r]]
        row = histogram[r]
        survivors = _survivors(row)
        for h in range(horizon):
            if gap[r] == 0:
                first[h] = prior[0]
            else:
                first[h] = _shrunk_hazard(row, survivors, gap[r] + h, prior, strength)
            again[h] = _shrunk_hazard(row, survivors, h + 1, prior, strength)
        _renew(first, again, out[r], pmf)


@numba.njit(cache=True, nogil=True)
def phase_shares(step, out, age, phases, active_steps):
    for r in range(len(out)):
        born = max(age[r], 0)
        rate = (active_steps[r] + 0.1) / (born + 1.0)
        for h in range(out.shape[1]):
            for i in range(len(_PERIODS)):
                out[r, h, i] = _share(step, h, born, _PERIODS[i], PHASE_START[i], phases[r], rate)


@numba.njit(cache=True, nogil=True)
def positive_quantiles(out, positive, active_steps):
    for r in range(len(out)):
        n = min(active_steps[r], POSITIVE_KEPT)
        if n == 0:
            out[r] = 1
            continue
        ordered = np.sort(positive[r, :n])
        for i in range(POSITIVE_KEPT):
            at = i / (POSITIVE_KEPT - 1) * (n - 1)
            low = int(at)
            high = min(low + 1, n - 1)
            out[r, i] = ordered[low] + (at - low) * (ordered[high] - ordered[low])


@numba.njit(cache=True, nogil=True)
def _signed_log(x):
    return np.log1p(x) if x >= 0 else -np.log1p(-x)


@numba.njit(cache=True, nogil=True)
def _recent_renewal(recent, recent_survivors, gap, first, again, out, pmf):
    """Probability of activity in each step ahead from the recency-weighted histogram alone."""
    for h in range(len(out)):
        g = min(gap + h, LONGEST_GAP)
        first[h] = (recent[g] + 0.2) / (recent_survivors[g] + 1)
        g = min(h + 1, LONGEST_GAP)
        again[h] = (recent[g] + 0.2) / (recent_survivors[g] + 1)
    _renew(first, again, out, pmf)


@numba.njit(cache=True, nogil=True)
def _read(
    step, h, gap, born, rate, every, recent, survivors, recent_survivors, renewed, hazards, followed, total,
    phases, phase_loss, out,
):  # fmt: skip
    """Fills the readings of one function for the target step h; returns its best period."""
    g = min(gap + h, LONGEST_GAP)
    lower, upper = max(g - 1, 0), min(g + 1, LONGEST_GAP)
    best = 0
    for i in range(len(_PERIODS)):
        if phase_loss[i] < phase_loss[best]:
            best = i
        out[i] = logit(_share(step, h, born, _PERIODS[i], PHASE_START[i], phases, rate))
    trusted, trust = 0.0, 0.0
    for i in range(len(_PERIODS)):
        w = np.exp(-_PERIOD_TRUST * (phase_loss[i] - phase_loss[best]))
        trust += w
        trusted += w * out[i]
    k = len(_PERIODS)
    out[k] = logit((every[g] + 0.2) / (survivors[g] + 1))
    out[k + 1] = logit((recent[g] + 0.2) / (recent_survivors[g] + 1))
    out[k + 2] = logit((recent[lower] + recent[upper] + 0.1) / (recent_survivors[lower] + 1))
    out[k + 3] = logit(renewed)
    k += 4
    for i in range(len(GAP_ORDERS)):
        out[k + i] = hazards[i, 0]
    k += len(GAP_ORDERS)
    for i in range(len(STRETCHES)):
        out[k + i] = logit((followed[i, h] + 0.05) / (total[i, h] + 0.3))
    k += len(STRETCHES)
    out[k] = out[best]
    out[k + 1] = trusted / trust
    out[k + 2] = 1.0
    return best


@numba.njit(cache=True, nogil=True)
def features(
    step, out, age, gap, active_steps, gaps_seen, histogram, recent_histogram, latest_gaps, gap_statistics,
    previous, follower, phases, phase_loss, ring, windows, activity, log_counts, positive, tsb, latest_counts, mixers,
    groups, related, trigger,
):  # fmt: skip
    horizon = out.shape[1]
    first, again, pmf, renewed = np.empty(horizon), np.empty(horizon), np.empty(horizon), np.empty(horizon)
    readings = np.empty(READINGS)
    gaps, weights = np.empty(GAPS_KEPT), np.empty((len(GAP_ORDERS), GAPS_KEPT))
    hazards = np.empty((len(GAP_ORDERS), 3))
    followed, total = np.empty((len(STRETCHES), horizon)), np.empty((len(STRETCHES), horizon))
    for r in range(len(out)):
        every, recent = histogram[r], recent_histogram[r]
        survivors, recent_survivors = _survivors(every), _survivors(recent)
        born = max(age[r], 0)
        rate = (active_steps[r] + 0.1) / (born + 1.0)
        _recent_renewal(recent, recent_survivors, gap[r], first, again, renewed, pmf)
        n = patterns.gap_weights(latest_gaps[r], gaps_seen[r], weights, gaps)
        patterns.analogues(step, ring[r], born, gap[r] > 0, followed, total)
        seen = min(active_steps[r], POSITIVE_KEPT)
        positive_mean = positive[r, :seen].mean() if seen else 0.0
        last_count = positive[r, (active_steps[r] - 1) % POSITIVE_KEPT] if seen else 0.0
        follow = follower[r, previous[r, 0]] if gaps_seen[r] > 1 else 0
        for h in range(horizon):
            f = out[r, h]
            elapsed = gap[r] + h
            g = min(elapsed, LONGEST_GAP)
            f[0] = np.log1p(h)
            f[1] = gap[r] == 0
            f[2] = np.log1p(gap[r])
            f[3] = np.log1p(elapsed)
            f[4] = np.log1p(born)
            f[5] = np.log1p(active_steps[r])
            f[6] = np.log1p(gaps_seen[r])
            for i in range(len(GAP_ORDERS)):
                patterns.conditional_hazard(weights[i], gaps, n, elapsed, hazards[i])
            best = _read(
                step, h, gap[r], born, rate, every, recent, survivors, recent_survivors, renewed[h],
                hazards, followed, total, phases[r], phase_loss[r], readings,
            )  # fmt: skip
            k = len(_PERIODS)
            f[7] = readings[k]
            f[8] = readings[k + 1]
            lower, upper = max(g - 1, 0), min(g + 1, LONGEST_GAP)
            f[9] = logit((every[lower] + every[upper] + 0.1) / (survivors[lower] + 1))
            f[10] = readings[k + 2]
            f[11] = np.log1p(every[g])
            f[12] = np.log1p(recent[g])
            f[13] = np.log1p(survivors[g])
            f[14] = readings[k + 3]
            f[15] = gap_statistics[r, 0]
            f[16] = gap_statistics[r, 1]
            k = 17
            for i in range(len(_QUANTILE_ARRAY)):
                f[k] = gap_statistics[r, 2 + i]
                f[k + len(_QUANTILE_ARRAY)] = np.log(max(elapsed, 0.5)) - gap_statistics[r, 2 + i]
                k += 1
            k += len(_QUANTILE_ARRAY)
            for i in range(2):
                ahead = previous[r, i] - elapsed if previous[r, i] > 0 else 10
                f[k] = _signed_log(ahead)
                f[k + 1] = ahead == 0
                if i == 0:
                    f[k + 2] = ahead < 0
                k += 3 - i
            ahead = follow - elapsed if follow > 0 else 10
            f[k] = _signed_log(ahead)
            f[k + 1] = ahead == 0
            f[k + 2] = ahead < 0
            k += 3
            for i in range(len(_WINDOW_ARRAY)):
                f[k] = windows[r, i] / _WINDOW_ARRAY[i]
                k += 1
            for i in range(len(_LAG_ARRAY)):
                back = _LAG_ARRAY[i] - h
                f[k] = ring[r, (step - back) % RECENT] if 0 < back <= born else 0.5
                k += 1
            for i in range(len(_PERIODS)):
                f[k] = readings[i]
                k += 1
            for i in range(len(_DECAY)):
                f[k] = activity[r, i]
                k += 1
            for i in range(len(_COUNT_DECAY)):
                f[k] = log_counts[r, i]
                k += 1
            f[k] = np.log1p(last_count)
            f[k + 1] = np.log1p(positive_mean)
            k += 2
            for i in range(len(_CLOCK_ARRAY)):
                f[k] = (step + h) % _CLOCK_ARRAY[i] == 0
                k += 1
            for i in range(len(GAP_ORDERS)):
                for j in range(3):
                    f[k + j] = hazards[i, j]
                k += 3
            for i in range(len(STRETCHES)):
                f[k] = readings[len(_PERIODS) + 4 + len(GAP_ORDERS) + i]
                f[k + 1] = np.log1p(total[i, h])
                k += 2
            f[k] = readings[READINGS - 3]
            f[k + 1] = readings[READINGS - 2]
            f[k + 2] = phase_loss[r, best]
            f[k + 3] = np.log(_PERIODS[best])
            k += 4
            for i in range(len(MIXER_RATES)):
                f[k] = patterns.mixed(mixers[r, i], readings)
                k += 1
            for i in range(COUNTS_KEPT):
                f[k] = np.log1p(latest_counts[r, i])
                k += 1
            for i in range(related.shape[1]):
                for j in range(RELATED_KEPT):
                    f[k] = np.log1p(related[r, i, j]) if j < 3 else related[r, i, j]
                    k += 1
            for i in range(TRIGGERS):
                f[k] = trigger[r] == i + 1
                k += 1
