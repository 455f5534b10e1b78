"""TimesFM 2.5: our forward pass agrees with transformers', training is dense, and published directories load."""

from __future__ import annotations

import copy
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import TimesFm2_5Config, TimesFm2_5ModelForPrediction

from mesp.errors import InputError
from mesp.types import DEFAULT_LEVELS, FunctionKey
from mesp_predictor.experts import registry
from mesp_predictor.experts.base import Context, Expert, Training, TrainingSet
from mesp_predictor.experts.sequence import SequenceExpert, draw_windows, forecast_loss
from mesp_predictor.experts.timesfm import TIMESFM, TimesFMNetwork, TimesFMSettings
from mesp_predictor.statistics import Statistics

if TYPE_CHECKING:
    from pathlib import Path

    from mesp.types import FloatArray

SMOKE = TIMESFM.smoke
assert isinstance(SMOKE, TimesFMSettings)


def published(*, two_heads: bool = True) -> TimesFm2_5ModelForPrediction:
    """google/timesfm-2.5-200m-transformers in a small size: random weights, everything else as published."""
    shape = TimesFm2_5Config(
        patch_length=32, context_length=16384, horizon_length=128, output_quantile_len=256, hidden_size=16,
        intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2, head_dim=8,
        use_continuous_quantile_head=two_heads, initializer_range=0.2,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = TimesFm2_5ModelForPrediction(shape)
    model.train(mode=False)
    return model


def publish(directory: Path, change: dict[str, object] | None = None) -> Path:
    published().save_pretrained(directory)
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | (change or {})))
    return directory


def context(counts: FloatArray) -> Context:
    return Context(counts.shape[1], counts, Statistics.empty(len(counts)), np.full(len(counts), -1))


def bursts(functions: int, seed: int, length: int = 480) -> FloatArray:
    """Functions that are busy for 20 steps and silent for 20, each at its own phase and rate."""
    rng = np.random.default_rng(seed)
    phase, rate = rng.integers(0, 40, (functions, 1)), 2 + 8 * rng.random((functions, 1))
    return rng.poisson(rate * ((np.arange(length) + phase) % 40 < 20)).astype(np.float32)


def twice_as_fast(seed: int) -> FloatArray:
    """Bursts of 10 steps every 20."""
    return bursts(24, seed, 960)[:, ::2]


def training_set(counts: FloatArray) -> TrainingSet:
    keys = tuple(FunctionKey("", str(i)) for i in range(len(counts)))
    return TrainingSet(counts, 0, np.zeros(len(counts), np.int64), 1, keys, 60)


def held_out_loss(expert: Expert, counts: FloatArray) -> float:
    """Of what is asked when serving: the answer after the whole window."""
    assert isinstance(expert, SequenceExpert)
    window, future, known = draw_windows(counts, 256, 64, 60, np.random.default_rng(7))
    with torch.inference_mode():
        answer = expert.network.forecast(window, 60)
        return forecast_loss(answer, expert.network.levels, window, future, known).item()


@pytest.fixture(scope="module")
def trained() -> SequenceExpert:
    expert = TIMESFM.fit(training_set(bursts(24, 1)), SMOKE, Training(seed=2))
    assert isinstance(expert, SequenceExpert)
    return expert


@pytest.fixture(scope="module")
def fresh() -> SequenceExpert:
    """Calibrated, but taught nothing."""
    expert = TIMESFM.fit(training_set(bursts(24, 1)), SMOKE.model_copy(update={"steps": 0}), Training(seed=2))
    assert isinstance(expert, SequenceExpert)
    return expert


@pytest.fixture(scope="module")
def net(fresh: SequenceExpert) -> TimesFMNetwork:
    assert isinstance(fresh.network, TimesFMNetwork)
    return fresh.network


@pytest.mark.parametrize("two_heads", [True, False])
@pytest.mark.parametrize("length", [64, 512])
def test_the_answer_is_that_of_transformers(two_heads: bool, length: int) -> None:
    """On the last patch our pass over the parts is `full_predictions[..., 1:]` of transformers' own forward."""
    theirs = published(two_heads=two_heads)
    ours = TimesFMNetwork(theirs.config, 512, squash=False).eval()
    ours.timesfm.load_state_dict(theirs.state_dict())
    counts = torch.from_numpy(bursts(5, 4, length))
    with torch.inference_mode():
        expected = theirs(
            past_values=list(counts), forecast_context_len=length, truncate_negative=False, force_flip_invariance=False
        ).full_predictions
        answer = ours.forecast(counts, 60)
    assert expected is not None
    torch.testing.assert_close(answer, expected[:, :60, 1:], rtol=1e-3, atol=1e-3)


@given(st.integers(1, 8), st.integers(0, 50))
@settings(max_examples=15, deadline=None)
def test_training_after_every_patch_is_forecasting_from_there(net: TimesFMNetwork, patches: int, seed: int) -> None:
    """The dense answer after a patch is the forecast of the window that ends with it: no look ahead."""
    counts = torch.from_numpy(bursts(3, seed, 128))
    with torch.inference_mode():
        dense = net._answers(counts, 20, last=8)[:, patches - 1]
        alone = net.forecast(counts[:, : 16 * patches], 20)
    torch.testing.assert_close(dense, alone, rtol=1e-3, atol=1e-3)


def test_the_loss_is_the_mean_over_patches(net: TimesFMNetwork) -> None:
    """The dense loss, on whole windows with all known, is the mean of the losses of each patch's forecast."""
    counts, future = (torch.from_numpy(part) for part in np.split(bursts(4, 3, 128), 2, axis=1))
    both = torch.cat([counts, future], dim=1)
    known = torch.ones(4, 64, dtype=torch.bool)
    with torch.inference_mode():
        each = [
            forecast_loss(net.forecast(both[:, :end], 64), net.levels, counts, both[:, end : end + 64], known)
            for end in (16, 32, 48, 64)
        ]
        torch.testing.assert_close(net.loss(counts, future, known), torch.stack(each).mean(), rtol=1e-4, atol=1e-4)
        half = known & (torch.arange(64) < 32)
        torch.testing.assert_close(net.loss(counts, future, half), net.loss(counts, torch.where(half, future, 9), half))


def test_a_window_of_zeros_can_still_learn(net: TimesFMNetwork) -> None:
    """Where nothing varied the answer still depends on the weights: one invocation to come moves them."""
    net = copy.deepcopy(net).requires_grad_(requires_grad=True)
    net.loss(torch.zeros(2, 64), torch.ones(2, 60), torch.ones(2, 60, dtype=torch.bool)).backward()
    gradients = [p.grad.abs().max() for p in net.parameters() if p.grad is not None]
    assert max(gradients) > 0


def test_a_published_directory_forecasts_at_once(tmp_path: Path) -> None:
    """What transformers saved, under its published names, is an expert: nine levels, 512 steps, all weights as they were."""
    expert = registry.load_expert(publish(tmp_path))
    assert isinstance(expert, SequenceExpert)
    net = expert.network
    assert isinstance(net, TimesFMNetwork)
    assert (expert.name, net.context, net.horizon, len(net.levels)) == ("timesfm", 512, 128, 9)
    weights = published().state_dict()
    assert all(torch.equal(value, weights[key]) for key, value in net.timesfm.state_dict().items())
    prediction = expert.predict(context(bursts(3, 4)), 60, DEFAULT_LEVELS)
    assert np.isfinite(prediction.quantiles).all()


def test_a_published_expert_survives_its_own_files(tmp_path: Path) -> None:
    """Tuned or not, published weights are saved as any expert and answer the same when reloaded."""
    for name in ("theirs", "ours"):
        (tmp_path / name).mkdir()
    expert = registry.load_expert(publish(tmp_path / "theirs"))
    expert.save(tmp_path / "ours")
    again = registry.load_expert(tmp_path / "ours")
    asked = context(bursts(3, 4)), 20, DEFAULT_LEVELS
    np.testing.assert_array_equal(again.predict(*asked).quantiles, expert.predict(*asked).quantiles)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"num_hidden_layers": 3}, "key model.layers.2."),
        ({"horizon_length": 64}, "must be (640, 16)"),
        ({"hidden_size": "wide"}, "hidden_size"),
        ({"quantiles": [0.1, 0.9]}, "quantiles = [0.1, 0.9] must hold 0.5 at decode_index - 1 = 4"),
    ],
)
def test_a_published_directory_that_does_not_fit_is_named(
    tmp_path: Path, change: dict[str, object], sentence: str
) -> None:
    """A config that tells of another network than the weights' is one sentence with the file and the key."""
    with pytest.raises(InputError) as raised:
        registry.load_expert(publish(tmp_path, change))
    assert sentence in str(raised.value)
    assert str(tmp_path) in str(raised.value)


def test_training_lowers_the_held_out_loss(trained: SequenceExpert, fresh: SequenceExpert) -> None:
    """The smoke training teaches the phase of bursts: a quarter less loss on functions never seen."""
    assert held_out_loss(trained, bursts(40, 9)) < 0.75 * held_out_loss(fresh, bursts(40, 9))


def test_tuning_goes_on_from_what_was_learned(trained: SequenceExpert) -> None:
    """A copy tuned on functions that run at twice the pace does better on their kind; the original stays as it was."""
    assert TIMESFM.tune is not None
    before = held_out_loss(trained, twice_as_fast(9))
    settings = SMOKE.model_copy(update={"steps": 30})
    tuned = TIMESFM.tune(trained, training_set(twice_as_fast(5)), settings, Training(seed=3))
    assert held_out_loss(trained, twice_as_fast(9)) == before
    assert held_out_loss(tuned, twice_as_fast(9)) < before


def test_what_is_saved_is_what_is_loaded(trained: SequenceExpert, tmp_path: Path) -> None:
    """Reloaded through the registry's door, the expert answers the same to the last bit."""
    trained.save(tmp_path)
    asked = context(bursts(5, 8)), 60, DEFAULT_LEVELS
    expected, got = trained.predict(*asked), registry.load_expert(tmp_path).predict(*asked)
    np.testing.assert_array_equal(got.quantiles, expected.quantiles)
    np.testing.assert_array_equal(got.active, expected.active)


def test_neighbours_in_a_batch_do_not_matter(trained: SequenceExpert) -> None:
    """A window's forecast is the same alone, among others, and in another place."""
    counts = np.concatenate([bursts(6, 6), 1e9 * bursts(2, 7), np.zeros((1, 480), np.float32)])
    whole = trained.predict(context(counts), 15, DEFAULT_LEVELS)
    for rows in ([0], [8, 2], [7, 5, 3, 1, 0]):
        part = trained.predict(context(counts[rows]), 15, DEFAULT_LEVELS)
        np.testing.assert_allclose(part.quantiles, whole.quantiles[rows], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(part.active, whole.active[rows], atol=1e-5)


@pytest.mark.parametrize("horizon", [1, 15, 60])
@pytest.mark.parametrize(
    "counts",
    [
        np.full((2, 100), 7.0),
        np.full((2, 100), 1e9),
        np.zeros((2, 100)),
        np.array([[0.0] * 99 + [1e9], [1e9] + [0.0] * 99]),
        np.array([[0.0], [3.0]]),
        np.zeros((0, 100)),
    ],
    ids=["constant", "huge", "zero", "one spike", "one column", "no rows"],
)
def test_any_window_has_a_coherent_forecast(trained: SequenceExpert, counts: FloatArray, horizon: int) -> None:
    """Finite, non-decreasing, and 0 where and only where the level is at most 1 - active."""
    got = trained.predict(context(counts.astype(np.float32)), horizon, DEFAULT_LEVELS)
    assert got.quantiles.shape == (len(counts), horizon, len(DEFAULT_LEVELS))
    assert np.isfinite(got.quantiles).all()
    assert (np.diff(got.quantiles, axis=2) >= 0).all()
    assert ((got.active > 0) & (got.active < 1)).all()
    silent = np.asarray(DEFAULT_LEVELS, np.float32) <= 1 - got.active[..., None]
    np.testing.assert_array_equal(got.quantiles == 0, silent)


@pytest.mark.parametrize("change", [{"heads": 3}, {"width": 0}, {"hidden": 3}])
def test_a_shape_that_cannot_be_built_is_refused(change: dict[str, Any]) -> None:
    """Settings are checked when they are read, not when the training has begun."""
    with pytest.raises(ValueError, match=next(iter(change))):
        TimesFMSettings.model_validate({"network": change})
