"""The neural hazard: what it is taught, what it learns from it, and the face it keeps."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from mesp.errors import InputError
from mesp.types import DEFAULT_LEVELS, FunctionKey
from mesp_predictor.experts import neural_hazard
from mesp_predictor.experts.base import Context, Training, TrainingSet
from mesp_predictor.experts.neural_hazard import (
    GRID,
    NEURAL_HAZARD,
    Network,
    NeuralHazardExpert,
    NeuralHazardSettings,
    train_on,
)
from mesp_predictor.experts.samples import Samples, draw_samples
from mesp_predictor.statistics import FEATURES, Statistics

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import numpy.typing as npt

TIMER = np.tile([0, 0, 5, 0, 0], 60).astype(np.float32)
AHEAD = FEATURES.index("log_ahead")


def context(*histories: npt.ArrayLike) -> Context:
    counts = np.array(histories, np.float32)
    statistics = Statistics.empty(len(counts))
    for column in counts.T:
        statistics.update(column)
    return Context(counts.shape[1], counts, statistics, np.full(len(counts), -1))


# -- samples -----------------------------------------------------------------------------------------------------------


def test_samples_pair_what_was_known_with_what_came() -> None:
    """Drawn whole, every step of a born function is there with its true count, and far steps with less weight."""
    counts = np.stack([TIMER, np.r_[np.full(100, np.nan, np.float32), TIMER[100:]]])
    samples = draw_samples(counts, 0, 20, seed=0, limit=10**9)
    assert samples.features.shape == (len(samples.counts), len(FEATURES))
    assert len(samples.weights) == len(samples.counts)
    assert not np.isnan(samples.counts).any()
    ahead = np.expm1(samples.features[:, AHEAD]).round()
    assert (ahead.min(), ahead.max()) == (0, 19)
    assert set(np.unique(samples.weights[ahead > 0])) == {0.5}
    single = (ahead == 0) & (samples.weights == 1)
    assert single.sum() == (300 - 1) + (200 - 1)  # a function is known from the end of its first step on
    # A timer's count is 5 exactly where its gap of 5 ends.
    here = samples.features[:, FEATURES.index("previous_gap_here")] == 1
    assert (samples.counts[here] == 5).all()


def test_samples_do_not_see_the_future() -> None:
    """What was known at a step is the same whatever came later."""
    other = np.where(np.arange(300) < 150, TIMER, 1).astype(np.float32)
    one, two = (draw_samples(counts[None], 0, 15, seed=0, limit=10**9) for counts in (TIMER, other))
    known = one.features[:, FEATURES.index("log_age")] <= np.log1p(150)
    np.testing.assert_array_equal(one.features[known], two.features[known])


def test_drawing_is_seeded_and_keeps_its_budget() -> None:
    """The same seed draws the same samples; their number stays near the limit."""
    counts = np.tile(TIMER, (40, 1))
    one, two, other = (draw_samples(counts, 0, 60, seed=seed, limit=3_000) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one.features, two.features)
    assert one.features.shape != other.features.shape or not np.array_equal(one.features, other.features)
    assert 1_500 < len(one.counts) < 4_000
    first = one.weights[one.features[:, AHEAD] == 0].sum() / one.weights.sum()
    assert 0.55 < first < 0.85


def fit_on(
    samples: Samples,
    seed: int,
    epochs: int,
    progress: Callable[[float], None] = lambda _share: None,
    network: Network | None = None,
    rate: float = 4e-3,
) -> NeuralHazardExpert:
    """A network trained on samples, which examine it too."""
    if network is None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = Network()
        features = torch.from_numpy(samples.features)
        network.mean.copy_(features.mean(0))
        network.spread.copy_(features.std(0, correction=0) + 1e-3)
    return train_on(network, samples, samples, epochs, rate, Training(seed, progress))


# -- training ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def samples() -> Samples:
    """A fleet of timers with periods 3 and 7, whose counts are 2 and 30."""
    minute = np.arange(240)
    fleet = [(2 if period == 3 else 30) * (minute % period == shift) for period in (3, 7) for shift in range(3)]
    return draw_samples(np.array(fleet, np.float32), 0, 20, seed=0, limit=10**9)


@pytest.fixture(scope="module")
def trained(samples: Samples) -> NeuralHazardExpert:
    return fit_on(samples, seed=0, epochs=30)


def test_it_learns_timers_and_their_counts(trained: NeuralHazardExpert) -> None:
    """Timers it has never seen in these phases are expected at their steps, with about their usual counts."""
    minute = np.arange(200)
    fleet = context(2.0 * (minute % 3 == 1), 30.0 * (minute % 7 == 5))
    answer = trained.predict(fleet, 9, (0.5,))
    for row, (period, shift) in enumerate(((3, 1), (7, 5))):
        due = (200 + np.arange(9)) % period == shift
        assert answer.active[row, due].min() > 0.7
        assert answer.active[row, ~due].max() < 0.3
    assert 1.3 < answer.quantiles[0, (200 + np.arange(9)) % 3 == 1, 0].mean() < 3
    assert 20 < answer.quantiles[1, (200 + np.arange(9)) % 7 == 5, 0].mean() < 45


def test_training_is_seeded_and_leaves_torch_alone(samples: Samples) -> None:
    """A seed gives the same network bit for bit; torch's own random state and the samples are as they were."""
    few = Samples(samples.features[:500], samples.counts[:500], samples.weights[:500])
    before, copy = torch.random.get_rng_state(), few.features.copy()
    one, two, other = (fit_on(few, seed, epochs=1).network.state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), before)
    np.testing.assert_array_equal(few.features, copy)
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert not all(torch.equal(one[key], other[key]) for key in one)


def test_training_on_keeps_the_scaling(samples: Samples, trained: NeuralHazardExpert) -> None:
    """A network that is trained on keeps its means and spreads, and moves its weights."""
    network = Network()
    network.load_state_dict(trained.network.state_dict())
    before = {key: value.clone() for key, value in network.state_dict().items()}
    upside_down = Samples(samples.features, np.where(samples.counts > 0, 0, 2).astype(np.float32), samples.weights)
    after = fit_on(upside_down, 1, epochs=1, network=network, rate=1e-3).network.state_dict()
    assert torch.equal(after["mean"], before["mean"])
    assert torch.equal(after["spread"], before["spread"])
    assert not torch.equal(after["body.0.weight"], before["body.0.weight"])


@pytest.mark.parametrize("size", [2, 10, 63, 64, 65, 130])
def test_any_number_of_samples_trains(samples: Samples, size: int) -> None:
    """Fewer samples than a batch are one batch."""
    few = Samples(samples.features[:size], samples.counts[:size], samples.weights[:size])
    told: list[float] = []
    network = fit_on(few, 0, epochs=2, progress=told.append).network
    assert all(torch.isfinite(p).all() for p in network.parameters())
    assert told == sorted(told)
    assert 0 <= told[0] <= told[-1] <= 1


# -- the face ----------------------------------------------------------------------------------------------------------


def test_quantiles_given_activity_rise_by_construction() -> None:
    """An untrained network's quantiles of the count are ascending for any input."""
    torch.manual_seed(0)
    _, log_counts = Network()(10 * torch.randn(50, len(FEATURES)))
    assert log_counts.shape == (50, len(GRID))
    assert (log_counts.diff(dim=1) >= 0).all()


def test_answers_are_forecasts_and_rows_do_not_matter(
    trained: NeuralHazardExpert, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shapes and ranges hold, batches change nothing, a longer horizon begins like a shorter one, no rows are fine."""
    rng = np.random.default_rng(0)
    fleet = context(TIMER, np.zeros(300), rng.poisson(0.2, 300), np.full(300, 4e9), np.full(300, np.nan))
    answer = trained.predict(fleet, 20, DEFAULT_LEVELS)
    assert answer.quantiles.shape == (5, 20, len(DEFAULT_LEVELS))
    assert ((answer.active >= 0) & (answer.active <= 1)).all()
    assert np.isfinite(answer.quantiles).all()
    assert (np.diff(answer.quantiles, axis=2) >= 0).all()
    assert ((answer.quantiles == 0) | (answer.quantiles > 0.999)).all()
    monkeypatch.setattr(neural_hazard, "_BATCH", 7)
    shorter = trained.predict(fleet, 6, DEFAULT_LEVELS)
    np.testing.assert_allclose(shorter.active, answer.active[:, :6], atol=1e-5)
    np.testing.assert_allclose(shorter.quantiles, answer.quantiles[:, :6], rtol=1e-3)
    nobody = Context(0, np.zeros((0, 8), np.float32), Statistics.empty(0), np.zeros(0, np.int64))
    assert trained.predict(nobody, 6, (0.5,)).quantiles.shape == (0, 6, 1)


# -- the family --------------------------------------------------------------------------------------------------------


def training_set(functions: int = 8) -> TrainingSet:
    rng = np.random.default_rng(2)
    counts = rng.poisson(0.3, (functions, 120)).astype(np.float32)
    keys = tuple(FunctionKey(str(row), "app/function") for row in range(functions))
    return TrainingSet(counts, 0, np.zeros(functions, np.int64), 1, keys, max_horizon=20)


def test_the_family_trains_tunes_saves_and_loads(tmp_path: Path) -> None:
    """From a training set to files and back with difference 0; tuning leaves the expert that it began with alone."""
    small = NeuralHazardSettings(samples=2_000, epochs=1, tuning_epochs=1, tuning_rate=0.05)
    data, training = training_set(), Training(0)
    whole = NEURAL_HAZARD.fit(data, small, training)
    whole.save(tmp_path)
    loaded = NEURAL_HAZARD.load(tmp_path)
    fleet = context(TIMER, np.zeros(300))
    before = whole.predict(fleet, 9, DEFAULT_LEVELS)
    np.testing.assert_array_equal(before.quantiles, loaded.predict(fleet, 9, DEFAULT_LEVELS).quantiles)
    assert NEURAL_HAZARD.tune is not None
    silent = dataclasses.replace(data, counts=data.counts * (np.arange(120) < 20))
    tuned = NEURAL_HAZARD.tune(whole, silent, small, training)
    assert not np.array_equal(tuned.predict(fleet, 9, DEFAULT_LEVELS).active, before.active)
    np.testing.assert_array_equal(whole.predict(fleet, 9, DEFAULT_LEVELS).active, before.active)


def test_too_little_to_learn_from_is_one_sentence() -> None:
    """One function, and a fleet that nobody observed."""
    with pytest.raises(InputError, match="functions to learn from = 1, must be at least 2"):
        NEURAL_HAZARD.fit(training_set(1), NeuralHazardSettings(), Training(0))
    unknown = dataclasses.replace(training_set(), counts=np.full((8, 120), np.nan, np.float32))
    with pytest.raises(InputError, match="none of the functions to learn from has a known count"):
        NEURAL_HAZARD.fit(unknown, NeuralHazardSettings(), Training(0))


def test_a_damaged_directory_is_refused(trained: NeuralHazardExpert, tmp_path: Path) -> None:
    """Missing files, other features and other shapes: each sentence names the file."""
    for number, (damage, told) in enumerate(
        {
            "missing": "not readable as a neural hazard",
            "other features": "features are others than this version computes",
            "other network": "model.safetensors",
        }.items()
    ):
        directory = tmp_path / str(number)
        directory.mkdir()
        trained.save(directory)
        if damage == "missing":
            (directory / "model.safetensors").unlink()
        elif damage == "other features":
            (directory / "config.json").write_text('{"kind": "neural_hazard", "features": ["mood"]}')
        else:
            save_file({"mean": torch.zeros(3)}, directory / "model.safetensors")
        with pytest.raises(InputError, match=told):
            NEURAL_HAZARD.load(directory)
