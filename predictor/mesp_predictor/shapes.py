"""The shapes of function-days: which days look alike, whatever their volume and whenever they happen.

Counts flow in and are cut into units, one function on one day, binned (`bin_days`). Units without a shape are routed
away, each for its own reason (`route_away`): they would crowd round a noisy centroid. The rest is clustered by K-Shape
(Paparrizos & Gravano, "k-Shape: Efficient and Accurate Clustering of Time Series", SIGMOD 2015): assign every unit to
the centroid at the smallest shape-based distance, align the members, take the shape they share as the new centroid,
repeat. Centroids flow out; they outlive the training and give any later series its cluster (`assign`).

Two engines walk the same path from the same first centroids. tslearn's `KShape` is the reference, and serves small
sets. The batched engine is for large ones: a correlation is a convolution with the mirrored series, so the units'
spectra are taken once and a pass is one product and one inverse FFT per unit and centroid, in blocks of rows that stay
in the cache. Where tslearn gives up because a cluster ran empty, the batched engine lets it start anew from the unit
that fits its own cluster worst.

tslearn 0.10 normalises in `predict` but not in `fit`, and its `predict` divides by norms of the training set; here
every entrance normalises, and nearest centroids are our own. The module takes 32-bit floats throughout. FFTs run on
one thread unless the caller says ``with scipy.fft.set_workers(n)``.
"""

from __future__ import annotations

import enum
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import scipy.fft  # type: ignore[import-untyped]
import scipy.linalg  # type: ignore[import-untyped]

from mesp.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from mesp.types import FloatArray

Index = npt.NDArray[np.int64]
Seed = int | np.random.Generator
Engine = Literal["tslearn", "batched", "auto"]

#: Fewer invocations than this are dead: under shifts, one is like any other one, and two differ by a chance gap.
DEAD_BELOW = 3

#: First invocation after this share of the day is young: the six hours left show an end, not a shape.
YOUNG_AFTER = 0.75

#: Same count in this share of the bins is constant: seven odd bins of 144, an outage of an hour, still are.
CONSTANT_SHARE = 0.95

#: A clock whose period does not divide the bin counts n or n+1, so a difference of one is "the same count" ...
CLOCK_JITTER = 1

#: ... from this count a bin on; below it a step of one is the shape itself.
CLOCK_FROM = 3

#: Largest work (units x centroids x bins) of a pass left to tslearn: two seconds in all, after six for its import.
TSLEARN_MAX_WORK = 200_000

#: Passes after which K-Shape stops anyway, and the fall of the inertia that makes another worth while (as tslearn).
MAX_PASSES = 100
TOLERANCE = 1e-6

#: Correlations computed at once, in floats: 4 MB stays in a core's cache, and larger is slower.
BLOCK_FLOATS = 2**20

#: Units whose pairwise distances a silhouette takes: a million pairs, a second or two.
SILHOUETTE_SAMPLE = 1_000


class Kind(enum.StrEnum):
    """Why a unit is clustered (`SHAPED`), or is not."""

    DEAD = "dead"
    YOUNG = "young"
    CONSTANT = "constant"
    SHAPED = "shaped"


@dataclass(frozen=True, slots=True)
class Clusters:
    """Groups of units of the same shape.

    Attributes:
        centroids: the shapes, z-normalised, (K, B); K is less than asked where the units have fewer shapes.
        labels: cluster of each unit, (N,); none is empty.
        inertia: mean squared shape-based distance of a unit to its centroid.
    """

    centroids: FloatArray
    labels: Index
    inertia: float

    @property
    def k(self) -> int:
        """Number of clusters."""
        return len(self.centroids)


class _Nearest(NamedTuple):
    """The nearest centroid of each unit, (N,) each: which, how far, and by how many bins the unit lags behind it."""

    labels: Index
    distances: FloatArray
    lags: Index


def bin_days(counts: npt.NDArray[np.number], bin_steps: int = 10, day_steps: int = 1440) -> tuple[FloatArray, Index]:
    """Counts (F, M) as function-days: sums per bin, (N, B), and the function of each, (N,).

    Units stand function by function, a function's days in order; B = day_steps / bin_steps. Steps after the last
    whole day are left out.

    Raises:
        InputError: less than one day, a bin that does not divide it, or a count that is negative or not finite.
    """
    functions, steps = counts.shape
    if bin_steps < 1 or day_steps % bin_steps:
        raise InputError(f"bin_steps = {bin_steps} does not divide a day of {day_steps} steps")
    if steps < day_steps:
        raise InputError(f"counts cover {steps} steps, shapes need at least one day of {day_steps}")
    bad = ~(np.isfinite(counts) & (counts >= 0))
    if bad.any():
        row, column = np.argwhere(bad)[0]
        raise InputError(f"count of function {row} at step {column} is {counts[row, column]}, allowed is 0 or more")
    days, bins = steps // day_steps, day_steps // bin_steps
    whole = counts[:, : days * day_steps].reshape(functions * days, bins, bin_steps)
    return whole.sum(axis=-1, dtype=np.float32), np.repeat(np.arange(functions), days)


def route_away(series: FloatArray, function_index: Index | None = None) -> npt.NDArray[np.str_]:
    """The `Kind` of each unit of (N, B) binned counts, (N,).

    With the function of each unit, as from `bin_days`, a unit after a day with invocations is never young: a nightly
    batch is new only once.
    """
    first = (series > 0).argmax(axis=1)
    median = np.median(series, axis=1, keepdims=True)
    jitter = np.where(median >= CLOCK_FROM, CLOCK_JITTER, 0)
    same = (np.abs(series - median) <= jitter).mean(axis=1)
    rules = {
        Kind.DEAD: series.sum(axis=1) < DEAD_BELOW,
        Kind.YOUNG: (first >= YOUNG_AFTER * series.shape[1]) & ~_seen_earlier(series, function_index),
        Kind.CONSTANT: (median[:, 0] > 0) & (same >= CONSTANT_SHARE),
    }
    return np.select(list(rules.values()), [np.str_(kind) for kind in rules], np.str_(Kind.SHAPED))


def _seen_earlier(series: FloatArray, function_index: Index | None) -> npt.NDArray[np.bool_]:
    """Whether an earlier unit of the same function has invocations, (N,)."""
    if function_index is None:
        return np.zeros(len(series), dtype=np.bool_)
    alive = (series > 0).any(axis=1)
    before: Index = np.cumsum(alive) - alive
    _, starts, function = np.unique(function_index, return_index=True, return_inverse=True)
    return np.asarray(before > before[starts][function])


def znorm(series: FloatArray) -> FloatArray:
    """Each row of (N, B) with mean 0 and standard deviation 1; a row without variation becomes zeros.

    Raises:
        InputError: not a matrix of rows and bins, or a value that is not finite.
    """
    if series.ndim != 2 or 0 in series.shape:
        raise InputError(f"series have the shape {series.shape}, allowed is (units, bins), neither of them 0")
    finite = np.isfinite(series).all(axis=1)
    if not finite.all():
        raise InputError(f"series {finite.argmin()} holds a value that is not finite")
    mean = series.mean(axis=1, keepdims=True, dtype=np.float64)
    centred = (series - mean.astype(np.float32)).astype(np.float32, copy=False)
    spread = centred.std(axis=1, keepdims=True)
    return np.asarray(centred / np.where(spread > 0, spread, 1))


def sbd(x: FloatArray, centroids: FloatArray) -> FloatArray:
    """Shape-based distance of x (N, B) to centroids (K, B), (N, K): 0 the same shape, 1 unrelated, 2 at most.

    One minus the largest normalised cross-correlation over all lags. A row of zeros is at distance 1 from everything.
    """
    distances = np.empty((len(x), len(centroids)), dtype=np.float32)
    shapes = _spectra(centroids)
    for rows in _blocks(len(x), shapes.size * 2):
        distances[rows] = 1 - _correlations(_spectra(x[rows, ::-1]), shapes, x.shape[1]).max(axis=-1)
    return distances.clip(min=0)


def assign(series: FloatArray, centroids: FloatArray) -> tuple[Index, FloatArray]:
    """The nearest centroid (K, B) of each of (N, B) series, and its distance, (N,) each.

    Series come as they are: they are normalised here. One without variation gets label 0 at distance 1.

    Raises:
        InputError: as `znorm`; or series and centroids differ in bins.
    """
    if series.shape[1:] != centroids.shape[1:]:
        raise InputError(f"series of shape {series.shape} and centroids of shape {centroids.shape} differ in bins")
    distances = sbd(znorm(series), centroids)
    labels = distances.argmin(axis=1)
    return labels, np.take_along_axis(distances, labels[:, None], axis=1)[:, 0]


def aligned(series: FloatArray, centroid: FloatArray) -> FloatArray:
    """(N, B) series, normalised here, each moved to where it fits the centroid (B,) best; gaps are filled with zeros.

    Raises:
        InputError: as `znorm`.
    """
    x = znorm(series)
    return _align(x, _nearest(_spectra(x[:, ::-1]), centroid[None]).lags)


def kshape(series: FloatArray, k: int, seed: Seed, *, engine: Engine = "auto") -> Clusters:
    """K-Shape clusters of (N, B) series, which come as they are: they are normalised here.

    Every engine starts from the same k units, drawn by `seed`. `auto` takes tslearn where it is a matter of seconds.

    Raises:
        InputError: as `znorm`; or k is not within 1 and N.
    """
    x = znorm(series)
    if not 1 <= k <= len(x):
        raise InputError(f"k = {k} clusters, allowed is 1 to the number of series, {len(x)}")
    first = _first(x, k, np.random.default_rng(seed))
    reference = engine == "tslearn" or (engine == "auto" and x.size * k <= TSLEARN_MAX_WORK)
    return (_tslearn(x, first) if reference else None) or _batched(x, first)


def _first(x: FloatArray, k: int, rng: np.random.Generator) -> FloatArray:
    """K unlike units to start from, (k, B): each drawn with odds of its squared distance to those before it.

    So k-means++ (Arthur & Vassilvitskii, SODA 2007) does it: of few plain shapes, each has its unit.
    """
    chosen = x[rng.integers(len(x), size=1)]
    odds = np.ones(len(x))
    for _ in range(1, k):
        odds = np.minimum(odds, sbd(x, chosen[-1:])[:, 0] ** 2 + 1e-12)  # where all are alike, any will do
        chosen = np.concatenate([chosen, x[rng.choice(len(x), size=1, p=odds / odds.sum())]])
    return chosen


def _tslearn(x: FloatArray, centroids: FloatArray) -> Clusters | None:
    """K-Shape as tslearn does it; None where it gave up on an empty cluster (it then says inertia = inf)."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "h5py not installed")  # we save nothing through tslearn
        from tslearn.clustering import KShape  # noqa: PLC0415  # takes seconds, and only training needs it

    model = KShape(len(centroids), max_iter=MAX_PASSES, tol=TOLERANCE, init=centroids[..., None].astype(np.float64))
    model.fit(x[..., None])
    if not np.isfinite(model.inertia_):
        return None
    return Clusters(model.cluster_centers_[..., 0].astype(np.float32), model.labels_, float(model.inertia_))


def _batched(x: FloatArray, centroids: FloatArray) -> Clusters:
    """K-Shape on spectra taken once. As in tslearn, a pass that gains nothing is undone and ends it."""
    mirrored = _spectra(x[:, ::-1])
    nearest = _nearest(mirrored, centroids)
    inertia = np.inf
    for _ in range(MAX_PASSES):
        candidates = _extract(x, _refill(nearest, len(centroids)), len(centroids))
        found = _nearest(mirrored, candidates)
        gain = inertia - (candidate_inertia := _inertia(found))
        if gain < TOLERANCE:
            break
        centroids, nearest, inertia = candidates, found, candidate_inertia
    used, labels = np.unique(nearest.labels, return_inverse=True)
    return Clusters(centroids[used], labels, _inertia(nearest))


def _inertia(nearest: _Nearest) -> float:
    return float(np.square(nearest.distances, dtype=np.float64).mean())


def _nearest(mirrored: npt.NDArray[np.complex64], centroids: FloatArray) -> _Nearest:
    """The nearest of the centroids (K, B), given the mirrored units' spectra; the first among equals."""
    units, bins = len(mirrored), centroids.shape[1]
    found = _Nearest(np.empty(units, np.int64), np.empty(units, np.float32), np.empty(units, np.int64))
    shapes = _spectra(centroids)
    for rows in _blocks(units, shapes.size * 2):
        correlations = _correlations(mirrored[rows], shapes, bins)
        peaks = correlations.max(axis=-1)
        best = peaks.argmax(axis=1)
        each = np.arange(len(best))
        found.labels[rows] = best
        found.distances[rows] = (1 - peaks[each, best]).clip(min=0)
        found.lags[rows] = correlations[each, best].argmax(axis=-1) - (bins - 1)
    return found


def _refill(nearest: _Nearest, k: int) -> _Nearest:
    """Every cluster with a member: an empty one takes the unit farthest from its centroid, if that leaves another."""
    labels, lags = nearest.labels.copy(), nearest.lags.copy()
    sizes = np.bincount(labels, minlength=k)
    for empty in np.flatnonzero(sizes == 0):
        unit = np.where(sizes[labels] > 1, nearest.distances, -1).argmax()
        sizes[labels[unit]] -= 1
        sizes[empty] = 1
        labels[unit], lags[unit] = empty, 0
    return nearest._replace(labels=labels, lags=lags)


def _extract(x: FloatArray, nearest: _Nearest, k: int) -> FloatArray:
    """The shape that each cluster's members share once aligned, (k, B): paper, section 3.2.

    It is the leading eigenvector of the centred members' Gram matrix. The matrix is B x B, so its exact eigenvector
    costs little beside a pass of FFTs. Of the two signs the one nearer to the members counts.
    """
    shapes = np.empty((k, x.shape[1]), dtype=np.float32)
    for cluster in range(k):
        members = np.flatnonzero(nearest.labels == cluster)
        aligned = _align(x[members], nearest.lags[members])
        centred = aligned - aligned.mean(axis=1, keepdims=True)
        gram = (centred.T @ centred).astype(np.float64)
        last = len(gram) - 1
        _, vectors = scipy.linalg.eigh(gram, subset_by_index=(last, last), overwrite_a=True, check_finite=False)
        shape = vectors[:, 0].astype(np.float32)
        squares, products = np.square(aligned).sum(axis=1) + 1, 2 * (aligned @ shape)
        flipped = np.sqrt(squares + products).sum() < np.sqrt(squares - products).sum()
        shapes[cluster] = -shape if flipped else shape
    return znorm(shapes)


def _align(x: FloatArray, lags: Index) -> FloatArray:
    """Each row of (n, B) moved right by its lag (left where negative), filled with zeros."""
    bins = x.shape[1]
    aligned = np.empty_like(x)
    for rows in _blocks(len(x), 3 * bins):
        padded = np.pad(x[rows], ((0, 0), (bins, bins)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, bins, axis=1)
        aligned[rows] = windows[np.arange(len(padded)), bins - lags[rows]]
    return aligned


def _spectra(rows: FloatArray) -> npt.NDArray[np.complex64]:
    """Spectra of (N, B) rows scaled to length 1 (zeros stay), wide enough that correlations do not wrap around."""
    width = _width(rows.shape[1])
    spectra = np.empty((len(rows), width // 2 + 1), dtype=np.complex64)
    for block in _blocks(len(rows), width):
        norms = np.linalg.norm(rows[block], axis=1, keepdims=True)
        spectra[block] = scipy.fft.rfft(rows[block] / np.where(norms > 0, norms, 1), width)
    return spectra


def _correlations(mirrored: npt.NDArray[np.complex64], shapes: npt.NDArray[np.complex64], bins: int) -> FloatArray:
    """Normalised cross-correlations at lags 1-B ... B-1, (N, K, 2B-1), of mirrored units' and shapes' spectra."""
    product = mirrored[:, None] * shapes
    return np.asarray(scipy.fft.irfft(product, _width(bins), overwrite_x=True)[..., : 2 * bins - 1])


def _width(bins: int) -> int:
    return int(scipy.fft.next_fast_len(2 * bins - 1, real=True))


def _blocks(rows: int, floats_per_row: int) -> Iterator[slice]:
    """Slices over rows, of about `BLOCK_FLOATS` each."""
    step = max(1, BLOCK_FLOATS // floats_per_row)
    return (slice(start, start + step) for start in range(0, rows, step))


def silhouette(series: FloatArray, labels: Index, seed: Seed, *, sample: int = SILHOUETTE_SAMPLE) -> float:
    """Mean silhouette (Rousseeuw, 1987) under the shape-based distance, -1 to 1, on a seeded sample of (N, B) series.

    (b - a) / max(a, b) per unit, with a its mean distance to its own cluster and b to the nearest other; 0 for a unit
    alone in its cluster. A sample that meets one cluster only scores 0: nothing is told apart.
    """
    chosen = np.random.default_rng(seed).permutation(len(series))[:sample]
    x = znorm(series[chosen])
    clusters, label = np.unique(labels[chosen], return_inverse=True)
    if len(clusters) == 1:
        return 0.0
    member = np.eye(len(clusters), dtype=np.float32)[label]
    pairwise = sbd(x, x)
    np.fill_diagonal(pairwise, 0)
    sizes = np.broadcast_to(member.sum(axis=0), member.shape)
    means = (pairwise @ member) / np.maximum(sizes - member, 1)
    own = member > 0
    a, b = means[own], np.where(own, np.inf, means).min(axis=1)
    scores = (b - a) / np.maximum(np.maximum(a, b), np.finfo(np.float32).tiny)
    return float(np.where(sizes[own] > 1, scores, 0).mean())


def choose_k(
    series: FloatArray,
    ks: Sequence[int],
    seed: int,
    *,
    engine: Engine = "auto",
    progress: Callable[[float], None] = lambda _share: None,
) -> tuple[Clusters, dict[int, float]]:
    """The clusters of the k of `ks` with the largest silhouette (the smaller among equals), and every k's silhouette.

    `progress` is told the share done: of a pass over the centroids of all k, so that a k counts as much as it costs.

    Raises:
        InputError: as `kshape`, for any of `ks`; or `ks` is empty.
    """
    if not ks:
        raise InputError("no number of clusters to choose from")
    fits, scores = {}, {}
    for k in sorted(ks):
        fits[k] = kshape(series, k, seed, engine=engine)
        scores[k] = silhouette(series, fits[k].labels, seed)
        progress(sum(fits) / sum(ks))
    return fits[max(scores, key=scores.__getitem__)], scores
