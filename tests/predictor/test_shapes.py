"""Shapes of function-days: binning, routing away, the distance, K-Shape against tslearn, the choice of k."""

from __future__ import annotations

import subprocess
import sys
import warnings
from typing import TYPE_CHECKING, Any

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import adjusted_rand_score, silhouette_score  # type: ignore[import-untyped]

from mesp.errors import InputError
from mesp_predictor import shapes
from mesp_predictor.shapes import Index, Kind

if TYPE_CHECKING:
    from mesp.types import FloatArray

with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
    # tslearn's kernels stay plain Python: compiling them takes longer than all of these tests.
    patch.setattr(numba.config, "DISABLE_JIT", True)
    warnings.filterwarnings("ignore", "h5py not installed")
    import tslearn.clustering
    import tslearn.metrics


def _walks(rng: np.random.Generator, units: int, bins: int) -> FloatArray:
    """Random walks: smooth, without clusters, so every pass moves units near a border."""
    return np.cumsum(rng.normal(size=(units, bins)), axis=1, dtype=np.float32)


def _planted(rng: np.random.Generator, shapes: int, units: int, bins: int = 48) -> tuple[FloatArray, Index]:
    """Units with one of several unlike shapes, each shifted, scaled and noisy, and the shape of each."""
    truth = rng.integers(0, shapes, units)
    hours = np.arange(bins)
    patterns = np.stack(
        [
            np.exp(-((hours - bins / 2) ** 2) / 8),  # a peak
            hours % (bins // 6) == 0,  # a comb
            np.abs(hours - bins / 2) < bins / 4,  # office hours
        ]
    )
    rows = [np.roll(patterns[shape], rng.integers(-3, 4)) * rng.uniform(1, 50) for shape in truth]
    noise = rng.normal(size=(units, bins)) * 0.02
    return (np.stack(rows) * (1 + noise) + 1).astype(np.float32), truth


def test_bin_days_sums_each_function_on_each_day() -> None:
    """A unit is one function on one whole day, its bins are sums; what is left of a day is left out."""
    counts = np.arange(2 * 13, dtype=np.uint32).reshape(2, 13)
    series, function = shapes.bin_days(counts, bin_steps=3, day_steps=6)
    assert series.tolist() == [[3, 12], [21, 30], [42, 51], [60, 69]]
    assert function.tolist() == [0, 0, 1, 1]
    assert series.dtype == np.float32


@pytest.mark.parametrize(
    ("counts", "bin_steps", "sentence"),
    [
        (np.ones((1, 6)), 4, "bin_steps = 4 does not divide a day of 6 steps"),
        (np.ones((1, 6)), 0, "bin_steps = 0 does not divide"),
        (np.ones((1, 5)), 3, "counts cover 5 steps"),
        (np.array([[1, 1, 1, 1, 1, 1], [1, 1, -2, 1, 1, 1]]), 3, "count of function 1 at step 2 is -2"),
        (np.array([[1, np.nan, 1, 1, 1, 1]]), 3, "count of function 0 at step 1 is nan"),
    ],
)
def test_bin_days_refuses_with_the_key_and_value(counts: Any, bin_steps: int, sentence: str) -> None:
    """Counts that cannot be binned are refused by one sentence that names what is wrong."""
    with pytest.raises(InputError, match=sentence):
        shapes.bin_days(counts, bin_steps, day_steps=6)


def test_route_away_knows_each_kind() -> None:
    """Dead, constant and young units are told from those with a shape, each by its rule."""
    bins = np.arange(144)
    rng = np.random.default_rng(0)
    units = {
        "nothing": (np.zeros(144), Kind.DEAD),
        "two calls": (np.isin(bins, (3, 90)), Kind.DEAD),
        "one call a bin": (np.ones(144), Kind.CONSTANT),
        "every three minutes, in tens": (np.diff(np.arange(145) * 10 // 3), Kind.CONSTANT),
        "an hour's outage": (np.where(bins // 6 == 9, 0, 10), Kind.CONSTANT),
        "two hours' outage": (np.where(bins // 12 == 5, 0, 10), Kind.SHAPED),
        "every twenty minutes": (bins % 2, Kind.SHAPED),
        "three calls": (np.isin(bins, (3, 50, 90)), Kind.SHAPED),
        "busy from 18:00": (np.where(bins >= 108, 50, 0), Kind.YOUNG),
        "busy from 17:50": (np.where(bins >= 107, 50, 0), Kind.SHAPED),
        "at random": (rng.poisson(20, 144), Kind.SHAPED),
    }
    series = np.stack([np.asarray(row, dtype=np.float32) for row, _ in units.values()])
    assert dict(zip(units, shapes.route_away(series), strict=True)) == {name: kind for name, (_, kind) in units.items()}


def test_route_away_calls_a_function_young_only_once() -> None:
    """A nightly batch is young on its first night; an empty day before does not make it older."""
    night = np.where(np.arange(24) >= 20, 9, 0).astype(np.float32)
    series = np.stack([night, night, np.zeros_like(night), night])
    assert shapes.route_away(series, np.array([0, 0, 1, 1])).tolist() == ["young", "shaped", "dead", "young"]
    assert shapes.route_away(series).tolist() == ["young", "young", "dead", "young"]


def test_znorm_leaves_mean_0_and_deviation_1() -> None:
    """Rows of any volume end with mean 0 and standard deviation 1, those without variation as zeros."""
    rng = np.random.default_rng(1)
    x = shapes.znorm((rng.poisson(5, (20, 144)) * 10.0 ** rng.integers(0, 6, (20, 1))).astype(np.float32))
    np.testing.assert_allclose(x.mean(axis=1), 0, atol=1e-5)
    np.testing.assert_allclose(x.std(axis=1), 1, rtol=1e-5)
    assert not shapes.znorm(np.full((2, 7), 1 / 3, dtype=np.float32)).any()


@pytest.mark.parametrize(
    ("series", "sentence"),
    [
        (np.array([[1, 2], [1, np.inf]], dtype=np.float32), "series 1 holds a value that is not finite"),
        (np.zeros((0, 4), dtype=np.float32), r"shape \(0, 4\)"),
        (np.zeros(4, dtype=np.float32), r"shape \(4,\)"),
    ],
)
def test_what_is_no_series_is_refused(series: FloatArray, sentence: str) -> None:
    """Every entrance refuses a value that is not finite and an empty matrix."""
    with pytest.raises(InputError, match=sentence):
        shapes.znorm(series)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), bins=st.integers(2, 40), units=st.integers(1, 9), k=st.integers(1, 4))
def test_sbd_is_one_minus_the_largest_normalised_correlation(seed: int, bins: int, units: int, k: int) -> None:
    """The FFTs give what the definition gives when every lag is summed by hand."""
    rng = np.random.default_rng(seed)
    x, c = _walks(rng, units, bins), _walks(rng, k, bins)
    by_hand = [
        [1 - np.correlate(a, b, "full").max() / (np.linalg.norm(a) * np.linalg.norm(b)) for b in c.astype(float)]
        for a in x.astype(float)
    ]
    np.testing.assert_allclose(shapes.sbd(x, c), by_hand, atol=2e-6)


def test_sbd_sees_shape_only() -> None:
    """Scale and shift do not count; the opposite sign does; a row of zeros is at distance 1 from everything."""
    pulse = np.zeros((1, 30), dtype=np.float32)
    pulse[0, 10:14] = 1, 3, 2, 1
    others = np.concatenate([np.roll(pulse, 9) * 7, np.roll(pulse, -10), -pulse, 0 * pulse])
    distances = shapes.sbd(others, pulse)[:, 0]
    np.testing.assert_allclose(distances, [0, 0, 1, 1], atol=1e-6)
    assert (distances >= 0).all()


def test_batched_walks_the_path_of_tslearn(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the same first centroids both engines end with the same labels, centroids and inertia.

    A unit halfway between two centroids may go either way by rounding. So tslearn's distances are watched on the whole
    path, and a run in which two centroids were ever within 1e-5 of each other for a unit is not compared.
    """

    class Watched(tslearn.clustering.KShape):  # type: ignore[misc]
        margin = np.inf

        def _cross_dists(self, x: Any) -> Any:
            distances = super()._cross_dists(x)
            nearest = np.partition(distances, 1, axis=1)
            Watched.margin = min(Watched.margin, (nearest[:, 1] - nearest[:, 0]).min())
            return distances

    monkeypatch.setattr(tslearn.clustering, "KShape", Watched)
    compared = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        k, bins = int(rng.integers(2, 6)), int(rng.integers(8, 40))
        noise, planted = _walks(rng, 40, bins), _walks(rng, k, bins)[rng.integers(0, k, 40)]
        x = shapes.znorm(noise if seed % 2 else planted + noise / np.float32(3))
        Watched.margin = np.inf
        first = shapes._first(x, k, rng)
        reference = shapes._tslearn(x, first)
        if reference is None or Watched.margin < 1e-5:
            continue
        found = shapes._batched(x, first)
        np.testing.assert_array_equal(found.labels, reference.labels, err_msg=f"seed {seed}")
        np.testing.assert_allclose(found.centroids, reference.centroids, atol=1e-3, err_msg=f"seed {seed}")
        assert found.inertia == pytest.approx(reference.inertia, abs=1e-6)
        compared += 1
    assert compared >= 20


def test_a_better_start_is_no_path_to_the_same_end() -> None:
    """The comparison above can fail: other first centroids end with other labels."""
    x = shapes.znorm(_walks(np.random.default_rng(3), 80, 30))
    one, other = (shapes._batched(x, x[seed : seed + 5]).labels for seed in (0, 1))
    assert adjusted_rand_score(one, other) < 0.9


def test_assign_agrees_with_tslearn_predict_once_its_norms_are_right() -> None:
    """Raw series get the label tslearn's `predict` gives, with the norms that it forgets set by hand."""
    rng = np.random.default_rng(4)
    x, _ = _planted(rng, 3, 40)
    new = _planted(rng, 3, 70)[0]
    model = tslearn.clustering.KShape(3, random_state=0).fit(shapes.znorm(x)[..., None])
    model.norms_ = np.linalg.norm(shapes.znorm(new), axis=1)
    labels, distances = shapes.assign(new, model.cluster_centers_[..., 0].astype(np.float32))
    np.testing.assert_array_equal(labels, model.predict(new[..., None]))
    assert ((distances >= 0) & (distances < 0.6)).all()


@pytest.mark.parametrize("engine", ["tslearn", "batched", "auto"])
def test_kshape_finds_planted_shapes(engine: shapes.Engine) -> None:
    """Unlike shapes, shifted and scaled, come apart again, and assigning the same series gives the same labels."""
    x, truth = _planted(np.random.default_rng(5), 3, 60)
    found = shapes.kshape(x, 3, seed=2, engine=engine)
    assert adjusted_rand_score(truth, found.labels) == 1
    labels, distances = shapes.assign(x, found.centroids)
    np.testing.assert_array_equal(labels, found.labels)
    assert np.square(distances).mean() == pytest.approx(found.inertia, abs=1e-6)
    np.testing.assert_array_equal(shapes.kshape(x, 3, seed=2, engine=engine).centroids, found.centroids)


def test_an_empty_cluster_starts_anew_where_tslearn_gives_up() -> None:
    """Two first centroids of one shape leave a cluster empty: the batched engine finds both shapes all the same."""
    x, truth = _planted(np.random.default_rng(6), 2, 40)
    x = shapes.znorm(x)
    first = x[[0, 0]]
    assert shapes._tslearn(x, first) is None
    assert adjusted_rand_score(truth, shapes._batched(x, first).labels) == 1


@pytest.mark.parametrize("engine", ["tslearn", "batched"])
def test_fewer_shapes_than_clusters_give_fewer_clusters(engine: shapes.Engine) -> None:
    """Units of two shapes asked for five clusters give two, none of them empty."""
    pair = np.random.default_rng(7).normal(size=(2, 16)).astype(np.float32)
    found = shapes.kshape(np.repeat(pair, 10, axis=0), 5, seed=0, engine=engine)
    assert found.k == 2
    assert np.bincount(found.labels).tolist() == [10, 10]
    assert found.inertia < 1e-6


def test_blocks_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    """However few rows fit a block, labels, centroids and silhouette are the same."""
    x = _walks(np.random.default_rng(8), 70, 25)
    whole = shapes.kshape(x, 4, 0, engine="batched")
    monkeypatch.setattr(shapes, "BLOCK_FLOATS", 1_000)
    blocks = shapes.kshape(x, 4, 0, engine="batched")
    np.testing.assert_array_equal(blocks.labels, whole.labels)
    np.testing.assert_allclose(blocks.centroids, whole.centroids, atol=1e-5)


def test_kshape_refuses_impossible_requests() -> None:
    """More clusters than series, none at all, or centroids of another length are refused by name."""
    x = _walks(np.random.default_rng(9), 4, 10)
    for k in (0, 5):
        with pytest.raises(InputError, match=f"k = {k} clusters, allowed is 1 to the number of series, 4"):
            shapes.kshape(x, k, 0)
    with pytest.raises(InputError, match=r"\(4, 10\) and centroids of shape \(2, 9\)"):
        shapes.assign(x, x[:2, :9])
    with pytest.raises(InputError, match="no number of clusters"):
        shapes.choose_k(x, [], 0)


def test_aligned_units_stand_where_the_centroid_does() -> None:
    """A peak anywhere in its day, of any height, ends up under the centroid's, whatever zeros move in."""
    bins = np.arange(60)
    peak = np.exp(-0.5 * ((bins - 30) / 2) ** 2).astype(np.float32)
    moved = np.stack([np.roll(peak, lag) * height for lag, height in ((-20, 1), (0, 7), (15, 0.1))])
    found = shapes.aligned(moved, shapes.znorm(peak[None])[0])
    assert found.shape == moved.shape
    np.testing.assert_array_equal(found.argmax(axis=1), 30)
    assert (moved.argmax(axis=1) != 30).sum() == 2
    np.testing.assert_allclose(found[1], shapes.znorm(peak[None])[0], atol=1e-6)


def test_silhouette_is_that_of_scikit_learn() -> None:
    """On all units the score is scikit-learn's over the distances tslearn computes, a lonely unit counting 0."""
    rng = np.random.default_rng(10)
    x = _walks(rng, 50, 24)
    labels = rng.integers(0, 4, 50)
    labels[0] = 4
    z = shapes.znorm(x)[..., None].astype(np.float64)
    norms = np.linalg.norm(z, axis=(1, 2))
    pairwise = 1 - tslearn.metrics.cdist_normalized_cc(z, z, norms, norms, self_similarity=False)
    np.fill_diagonal(pairwise, 0)
    expected = silhouette_score(pairwise, labels, metric="precomputed")
    assert shapes.silhouette(x, labels, seed=0) == pytest.approx(expected, abs=1e-5)
    assert shapes.silhouette(x, np.zeros(50, dtype=np.int64), seed=0) == 0


def test_silhouette_samples_by_seed() -> None:
    """A sample gives about the score of all, the same for the same seed."""
    x, truth = _planted(np.random.default_rng(11), 3, 300)
    whole = shapes.silhouette(x, truth, seed=0)
    some = [shapes.silhouette(x, truth, seed, sample=100) for seed in (0, 0, 1)]
    assert some[0] == some[1] != some[2]
    assert some == pytest.approx([whole] * 3, abs=0.1)


def test_choose_k_finds_the_number_of_shapes() -> None:
    """Three planted shapes: three clusters score best, and every k's score is told, and how far the work has come."""
    x, truth = _planted(np.random.default_rng(12), 3, 120)
    told: list[float] = []
    clusters, scores = shapes.choose_k(x, [4, 2, 3], seed=1, engine="batched", progress=told.append)
    assert told == pytest.approx([2 / 9, 5 / 9, 1])
    assert max(scores, key=scores.__getitem__) == 3 == clusters.k
    assert list(scores) == [2, 3, 4]
    assert adjusted_rand_score(truth, clusters.labels) == 1


def test_tslearn_is_imported_only_where_it_clusters() -> None:
    """Serving assigns series to clusters without tslearn, which takes seconds to import."""
    program = (
        "import sys, numpy; from mesp_predictor import shapes; x = numpy.eye(4, dtype='f');"
        "shapes.assign(x, x[:2]); shapes.kshape(x, 2, 0, engine='batched'); sys.exit('tslearn' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
