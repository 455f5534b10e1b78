"""The PatchTST expert: a proper distribution whatever the weights, learned timers, and two files that come back the same."""

from __future__ import annotations

import json
import socket
from typing import TYPE_CHECKING, NoReturn

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from safetensors.torch import load_file, save_file

from mesp.errors import InputError
from mesp.types import DEFAULT_LEVELS, FloatArray, FunctionKey
from mesp_predictor.experts.base import Context, Prediction, Training, TrainingSet
from mesp_predictor.experts.patchtst import PatchTSTConfig, PatchTSTExpert, fit, tune
from mesp_predictor.experts.patchtst_network import (
    GRID,
    PatchTSTNetwork,
    _gap_features,
    _phase_features,
    _positive_quantiles,
)
from mesp_predictor.losses import log_loss
from mesp_predictor.statistics import Statistics

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

TINY = PatchTSTConfig(
    context=64, patch=8, stride=8, d_model=8, heads=2, layers=1, feed_forward=16, hidden=16, max_horizon=20, batch=64,
    training_steps=60, learning_rate=1e-2,
)  # fmt: skip


def context(counts: FloatArray) -> Context:
    rows = len(counts)
    return Context(counts.shape[1], counts, Statistics.empty(rows), np.full(rows, -1, np.int64))


def untrained(seed: int = 0, config: PatchTSTConfig = TINY) -> PatchTSTExpert:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return PatchTSTExpert(PatchTSTNetwork(config))


def timers(periods: range, length: int = 400) -> FloatArray:
    """One function per period, called once every so many steps."""
    return np.stack([(np.arange(length) % period == 0) for period in periods]).astype(np.float32)


def training_set(series: FloatArray) -> TrainingSet:
    rows = len(series)
    keys = tuple(FunctionKey(str(row), "f") for row in range(rows))
    return TrainingSet(series, 0, np.full(rows, -1, np.int64), 1, keys, TINY.max_horizon)


@pytest.fixture(scope="module")
def trained() -> PatchTSTExpert:
    return fit(training_set(timers(range(3, 33))), TINY, Training(1))


def difference(a: Prediction, b: Prediction) -> float:
    return float(max(np.abs(a.quantiles - b.quantiles).max(), np.abs(a.active - b.active).max()))


@settings(max_examples=40, deadline=None)
@given(
    npst.arrays(np.float32, (3, 64), elements=st.sampled_from([0, 0, 0, 1, 2, 1000, 2**32 - 1])),
    st.lists(st.floats(0.001, 0.999), min_size=1, max_size=6, unique=True).map(lambda levels: tuple(sorted(levels))),
    st.integers(0, 50),
)
def test_any_weights_forecast_a_distribution_of_counts(
    counts: FloatArray, levels: tuple[float, ...], seed: int
) -> None:
    """Finite, whole, non-decreasing quantiles, zero exactly up to the level 1 - active, for any counts and levels."""
    forecast = untrained(seed).predict(context(counts), 20, levels)
    quantiles, active = forecast.quantiles, forecast.active
    assert quantiles.shape == (3, 20, len(levels))
    assert active.shape == (3, 20)
    assert quantiles.dtype == active.dtype == np.float32
    assert np.isfinite(quantiles).all()
    assert (quantiles == np.rint(quantiles)).all()
    assert (np.diff(quantiles, axis=2) >= 0).all()
    assert ((active >= 0) & (active <= 1)).all()
    silent = np.array(levels, np.float32) - 1 + active[..., None] <= 0
    assert ((quantiles == 0) == silent).all()


def test_the_default_network_is_small() -> None:
    """Fewer than 150,000 parameters, and its backbone under the key names of published checkpoints."""
    network = PatchTSTNetwork(PatchTSTConfig())
    assert sum(p.numel() for p in network.parameters()) < 150_000
    assert "model.encoder.layers.0.self_attn.q_proj.weight" in network.state_dict()


def test_a_timer_is_learned(trained: PatchTSTExpert) -> None:
    """Timers of periods not trained on: the next call is told apart from silence far better than by the rate."""
    unseen = timers(range(4, 30, 5))
    rate = unseen.mean(axis=1, keepdims=True)
    told, by_rate = [], []
    for now in range(300, 380):
        active = trained.predict(context(unseen[:, :now]), 1, (0.5,)).active
        told.append(log_loss(unseen[:, now : now + 1] > 0, active).mean())
        by_rate.append(log_loss(unseen[:, now : now + 1] > 0, rate).mean())
    assert np.mean(told) < 0.3 * np.mean(by_rate)


def test_a_seed_gives_one_model_and_leaves_the_global_state_alone() -> None:
    """The same seed gives the same forecast to the bit, another seed another one; torch's generator does not move."""
    config = TINY.model_copy(update={"training_steps": 3})
    counts = timers(range(3, 13))
    state = torch.random.get_rng_state()
    models = [fit(training_set(counts), config, Training(seed)) for seed in (5, 5, 6)]
    assert torch.equal(torch.random.get_rng_state(), state)
    first, again, other = (model.predict(context(counts), 5, DEFAULT_LEVELS) for model in models)
    assert difference(first, again) == 0
    assert difference(first, other) > 0


def test_tuning_trains_a_copy_on(trained: PatchTSTExpert) -> None:
    """For timers of one period the copy does better than the whole, which stays as it was."""
    config = TINY.model_copy(update={"tuning_steps": 40, "tuning_rate": 3e-3})
    counts = context(timers(range(7, 8), 203))
    before = trained.predict(counts, 5, DEFAULT_LEVELS)
    tuned = tune(trained, training_set(np.repeat(timers(range(7, 8)), 8, axis=0)), config, Training(0))
    after = tuned.predict(counts, 5, DEFAULT_LEVELS)
    happened = (np.arange(203, 208) % 7 == 0)[None]
    assert log_loss(happened, after.active).mean() < log_loss(happened, before.active).mean()
    assert difference(trained.predict(counts, 5, DEFAULT_LEVELS), before) == 0


def test_training_tells_its_progress() -> None:
    """The share done rises to 1."""
    told: list[float] = []
    config = TINY.model_copy(update={"training_steps": 4})
    fit(training_set(timers(range(3, 9))), config, Training(0, told.append))
    assert told == [0.25, 0.5, 0.75, 1]


@pytest.mark.parametrize(
    ("series", "words"),
    [
        (np.zeros((1, 50), np.float32), "shape = (1, 50)"),
        (np.zeros(50, np.float32), "shape = (50,)"),
        (np.full((3, 50), -1, np.float32), "at least 0"),
    ],
)
def test_bad_series_are_refused_with_a_sentence(series: FloatArray, words: str) -> None:
    """Too few functions, a wrong shape, and negative counts."""
    with pytest.raises(InputError) as refusal:
        fit(training_set(series), TINY, Training(0))
    assert words in str(refusal.value)


def test_a_short_past_is_zeros_before_it_and_a_long_one_is_cut(trained: PatchTSTExpert) -> None:
    """10 counts read as 54 zeros and those; 80 counts as their last 64."""
    counts = timers(range(3, 9), 80)
    short = trained.predict(context(counts[:, :10]), 5, DEFAULT_LEVELS)
    padded = np.concatenate([np.zeros((6, 54), np.float32), counts[:, :10]], axis=1)
    assert difference(short, trained.predict(context(padded), 5, DEFAULT_LEVELS)) == 0
    long = trained.predict(context(counts), 5, DEFAULT_LEVELS)
    assert difference(long, trained.predict(context(counts[:, 16:]), 5, DEFAULT_LEVELS)) == 0


def test_neighbours_in_the_batch_change_nothing(trained: PatchTSTExpert) -> None:
    """600 rows, more than one pass, forecast as each row alone does, up to the order of float32 sums; no rows, no forecast."""
    counts = np.random.default_rng(7).poisson(0.3, (600, 64)).astype(np.float32)
    together = trained.predict(context(counts), 5, DEFAULT_LEVELS)
    for row in (0, 511, 512, 599):
        alone = trained.predict(context(counts[row : row + 1]), 5, DEFAULT_LEVELS)
        assert together.active[row] == pytest.approx(alone.active[0], abs=1e-5)
    assert trained.predict(context(counts[:0]), 5, DEFAULT_LEVELS).quantiles.shape == (0, 5, 11)


@pytest.mark.parametrize("horizon", [0, 21])
def test_a_horizon_beyond_training_is_refused(trained: PatchTSTExpert, horizon: int) -> None:
    """The sentence names the horizon and the range."""
    with pytest.raises(InputError, match=rf"horizon = {horizon} steps, must be in \[1; 20\]"):
        trained.predict(context(np.zeros((1, 64), np.float32)), horizon, (0.5,))


def test_the_gap_features_write_out_the_hazard() -> None:
    """Calls at 0, 3, 6, 10, 13: gaps 3, 3, 4, 3; one step after the last call, gaps of 3 fall due in 2 steps, 3 of 4."""
    active = torch.zeros(1, 15, dtype=torch.bool)
    active[0, [0, 3, 6, 10, 13]] = True
    features = _gap_features(active, torch.tensor([1, 2, 3, 4]))[0]
    odds = [np.log((hits + 0.05) / (trials - hits + 0.05)) for hits, trials in ((0, 4), (3, 4), (1, 1), (0, 0))]
    assert features[:, 0].numpy() == pytest.approx(odds, rel=1e-5)
    assert features[:, 2].numpy() == pytest.approx(np.log1p([4, 4, 1, 0]), rel=1e-5)


def test_the_phase_features_are_the_share_of_cycles() -> None:
    """Active every third step: of period 3, the phase of step 3 was always active and those of steps 1 and 2 never."""
    active = torch.arange(1, 61)[None] % 3 == 0
    odds = _phase_features(active, torch.tensor([1, 2, 3]))[0, :, 1]
    assert odds[0] == odds[1] < -4 < 4 < odds[2]


def test_the_positive_quantiles_are_those_of_the_window() -> None:
    """Of 0 and 1..101 the median of the positive is 51 and the level 0.9 is 91; a silent window has its floor."""
    windows = torch.stack([torch.cat([torch.zeros(20), torch.randperm(101) + 1]), torch.zeros(121)])
    quantiles = _positive_quantiles(windows, torch.full((2, 1), 0.5))
    assert quantiles[0, GRID.index(0.5)] == 51
    assert quantiles[0, GRID.index(0.9)] == 91
    assert (quantiles[1] == 0.5).all()


def test_saved_and_loaded_the_forecast_is_the_same(trained: PatchTSTExpert, tmp_path: Path) -> None:
    """Difference 0 after a reload; two files and nothing temporary."""
    (tmp_path / "patchtst").mkdir()
    trained.save(tmp_path / "patchtst")
    assert sorted(path.name for path in (tmp_path / "patchtst").iterdir()) == ["config.json", "model.safetensors"]
    counts = context(timers(range(3, 9)))
    loaded = PatchTSTExpert.load(tmp_path / "patchtst")
    assert loaded.config == TINY
    assert difference(trained.predict(counts, 20, DEFAULT_LEVELS), loaded.predict(counts, 20, DEFAULT_LEVELS)) == 0


def edit_weights(directory: Path, key: str, value: torch.Tensor | None) -> None:
    weights = load_file(directory / "model.safetensors")
    weights.pop(key, None)
    save_file(weights if value is None else weights | {key: value}, directory / "model.safetensors")


def edit_config(directory: Path, key: str, value: object) -> None:
    content = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(content | {key: value}))


def test_a_damaged_directory_is_refused_naming_file_and_key(trained: PatchTSTExpert, tmp_path: Path) -> None:
    """Missing, unknown, misshapen and NaN weights; unknown and wrong settings; another format; broken and missing files."""
    damages: list[tuple[Callable[[Path], object], str]] = [
        (lambda d: edit_weights(d, "out.bias", None), "model.safetensors: key out.bias is missing"),
        (lambda d: edit_weights(d, "more", torch.ones(1)), "model.safetensors: key more is not part"),
        (lambda d: edit_weights(d, "out.bias", torch.ones(2)), "key out.bias has shape (2,), must be (27,)"),
        (lambda d: edit_weights(d, "out.bias", torch.full((27,), torch.nan)), "key out.bias holds NaN"),
        (lambda d: edit_config(d, "depth", 3), "config.json: depth = 3"),
        (lambda d: edit_config(d, "heads", 3), "d_model = 8 must be a multiple of heads = 3"),
        (lambda d: edit_config(d, "layers", "two"), "config.json: layers = 'two'"),
        (lambda d: edit_config(d, "format", 2), "config.json: must be an object with format = 1"),
        (lambda d: (d / "config.json").write_text("{"), "config.json: not readable as JSON"),
        (lambda d: (d / "config.json").unlink(), "config.json: not readable as JSON"),
        (lambda d: (d / "model.safetensors").write_bytes(b"1234"), "model.safetensors: not readable"),
        (lambda d: (d / "model.safetensors").unlink(), "model.safetensors: not readable"),
    ]  # fmt: skip
    for number, (damage, sentence) in enumerate(damages):
        directory = tmp_path / str(number)
        directory.mkdir()
        trained.save(directory)
        damage(directory)
        with pytest.raises(InputError) as refusal:
            PatchTSTExpert.load(directory)
        assert sentence in str(refusal.value)


def test_nothing_reaches_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Building the network and forecasting opens no socket."""

    def refuse(*_: object, **__: object) -> NoReturn:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    untrained().predict(context(np.zeros((1, 64), np.float32)), 1, (0.5,))
