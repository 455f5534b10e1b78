"""What sequence models have in common, on a network of one matrix: distributions, calibration, training, files."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor, nn

from mesp.errors import InputError
from mesp.types import FunctionKey
from mesp_predictor.experts.base import Context, Training, TrainingSet, hurdle_quantiles
from mesp_predictor.experts.quantile_function import ACTIVITY_FLOOR, Activity, QuantileFunction, activity_log_loss
from mesp_predictor.experts.sequence import (
    SequenceExpert,
    SequenceNetwork,
    SequenceSettings,
    draw_windows,
    forecast_loss,
    sequence_family,
)
from mesp_predictor.statistics import Statistics

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

    from mesp.types import FloatArray

NINE = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
LEVELS = (0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99)


class Linear(SequenceNetwork):
    """Quantiles of 8 steps as a linear map of the squashed window, whose weights start at 0."""

    kind = "chronos_bolt"  # a name that the registry knows
    levels = NINE
    horizon = 8
    rows = 5

    def __init__(self, context: int) -> None:
        super().__init__()
        self.context = context
        self.map = nn.Linear(context, self.horizon * len(NINE))
        nn.init.zeros_(self.map.weight)

    def forecast(self, counts: Tensor, horizon: int) -> Tensor:
        scale = counts.mean(dim=1, keepdim=True) + 0.1
        answer: Tensor = self.map(torch.asinh(counts / scale)).view(-1, self.horizon, len(NINE))
        return (torch.sinh(answer.clamp(-20, 20)) * scale[..., None])[:, :horizon]

    def config(self) -> dict[str, Any]:
        return {"size": self.context}


def _rebuild(config: dict[str, Any], context: int) -> Linear:
    if config["size"] != context:
        raise ValueError("size must be context")
    return Linear(context)


def _published(directory: Path) -> Linear:
    return Linear(int(json.loads((directory / "config.json").read_text())["patch"]))


SMOKE = SequenceSettings(context=32, steps=60, batch=32, rate=1e-2)
FAMILY = sequence_family(SMOKE, Linear, lambda chosen: Linear(chosen.context), _rebuild, _published)


def context(counts: npt.NDArray[Any]) -> Context:
    return Context(counts.shape[1], counts.astype(np.float32), Statistics.empty(len(counts)), np.full(len(counts), -1))


def timers() -> TrainingSet:
    """Functions called 4 times every 4th step, in all phases, with some steps missing; 12 x 300."""
    minute = np.arange(300)
    counts = np.array([4.0 * (minute % 4 == phase % 4) for phase in range(12)], np.float32)
    counts[:, 100:103] = np.nan
    keys = tuple(FunctionKey("", str(i)) for i in range(12))
    return TrainingSet(counts, 0, np.zeros(12, np.int64), 1, keys, 60)


@pytest.fixture(scope="module")
def expert() -> SequenceExpert:
    trained = FAMILY.fit(timers(), SMOKE, Training(seed=0))
    assert isinstance(trained, SequenceExpert)
    return trained


# -- distributions -----------------------------------------------------------------------------------------------------


def test_beyond_the_top_level_a_normal_tail_goes_on() -> None:
    """A normal in asinh space given at 0.1 ... 0.9 is found again at 0.05, 0.99 and in between."""
    law = torch.distributions.Normal(3.0, 0.7)
    given_quantiles = np.sinh(law.icdf(torch.tensor(NINE, dtype=torch.float64)).numpy())[None]
    asked = np.array([[0.05, 0.1, 0.5, 0.9, 0.95, 0.99, 0.999]])
    found = QuantileFunction(given_quantiles, NINE).at(asked)
    np.testing.assert_allclose(found, np.sinh(law.icdf(torch.from_numpy(asked)).numpy()), rtol=1e-6)


def test_activity_is_read_where_the_quantiles_pass_one_half() -> None:
    """1 - F(1/2): half where the median is a half, little where all quantiles are 0, nearly sure where none is low."""
    half = np.sinh(np.arcsinh(0.5) + np.linspace(-1, 1, 9))
    quantiles = np.stack([half, np.zeros(9), np.full(9, 7.0), [0, 0, 0, 0, 0, 0, 0, 0, 1.0], np.full(9, 1e12)])
    active = QuantileFunction(quantiles, NINE).active()
    assert active[0] == pytest.approx(0.5)
    assert active[1] == pytest.approx(ACTIVITY_FLOOR)
    assert active[2] == active[4] == pytest.approx(1 - ACTIVITY_FLOOR)
    assert 0.1 < active[3] < 0.2


finite = st.floats(-1024, 2**40, width=32)


@settings(max_examples=200, deadline=None)
@given(
    quantiles=hnp.arrays(np.float32, (4, 9), elements=finite),
    active=hnp.arrays(np.float64, 4, elements=st.floats(0.001, 0.999)),
)
def test_quantiles_agree_with_the_probability_of_activity(quantiles: FloatArray, active: Any) -> None:
    """Whatever a network says: finite, rising, 0 exactly up to the level 1 - active, at least 1 above."""
    found = QuantileFunction(quantiles, NINE).hurdle(active, LEVELS)
    assert np.isfinite(found).all()
    assert (np.diff(found, axis=1) >= 0).all()
    beyond = np.asarray(LEVELS) - (1 - active[:, None])  # at the very hurdle rounding decides
    assert (found[beyond < -1e-9] == 0).all()
    assert (found[beyond > 1e-9] >= 1).all()


@settings(max_examples=100, deadline=None)
@given(
    quantiles=hnp.arrays(np.float32, (3, 9), elements=st.floats(0, 1e4, width=32)),
    active=hnp.arrays(np.float64, 3, elements=st.floats(0.01, 0.99)),
)
def test_the_hurdle_is_that_of_all_experts(quantiles: FloatArray, active: Any) -> None:
    """With a fine grid of the positive part's quantiles, `hurdle_quantiles` gives the same."""
    whole = QuantileFunction(quantiles, NINE)
    grid = np.linspace(0, 1, 20_001, dtype=np.float32)
    raw = whole.active()[:, None]
    positive = np.maximum(whole.at(1 - raw + grid * raw), 1)
    same = hurdle_quantiles(active[:, None].astype(np.float32), positive.astype(np.float32), grid, LEVELS)[:, 0]
    inside = np.abs(np.asarray(LEVELS) - 1 + active[:, None]) > 1e-6  # at the very hurdle rounding decides
    np.testing.assert_allclose(whole.hurdle(active, LEVELS)[inside], same[inside], rtol=2e-2)


def test_training_sees_the_activity_that_is_read_off() -> None:
    """For quantiles that are well apart the log loss is that of `QuantileFunction.active`; equal ones have a gradient."""
    rng = np.random.default_rng(0)
    quantiles = np.sinh(rng.uniform(-1, 2, (200, 1)) + np.cumsum(rng.uniform(0.1, 0.3, (200, 9)), axis=1) - 1.5)
    p = QuantileFunction(quantiles, NINE).active()
    for occurred in (False, True):
        loss = activity_log_loss(torch.from_numpy(quantiles), NINE, torch.full((200,), occurred)).numpy()
        inside = (p > 1.01 * ACTIVITY_FLOOR) & (p < 1 - 1.01 * ACTIVITY_FLOOR)
        assert inside.sum() > 100
        np.testing.assert_allclose(loss[inside], -np.log(p if occurred else 1 - p)[inside], rtol=1e-4)
    flat = torch.zeros(9, requires_grad=True)
    surprised = activity_log_loss(flat, NINE, torch.tensor(True))  # one step that was active
    surprised.backward()
    assert surprised.isfinite()
    assert flat.grad is not None
    assert -100 < float(flat.grad.sum()) < 0


# -- calibration -------------------------------------------------------------------------------------------------------


def test_calibration_finds_the_odds_that_were_bent() -> None:
    """Odds bent by a = 0.5, b = -1 are found again; without data they stay as they are."""
    rng = np.random.default_rng(0)
    raw = rng.uniform(0.002, 0.998, 40_000)
    true = 1 / (1 + np.exp(-(0.5 * np.log(raw / (1 - raw)) - 1)))
    found = Activity.fit(raw, rng.random(40_000) < true)
    assert found.a == pytest.approx(0.5, abs=0.05)
    assert found.b == pytest.approx(-1, abs=0.05)
    assert Activity.fit(raw[:0], raw[:0] > 0) == Activity()


@pytest.mark.parametrize("occurred", [False, True])
def test_calibration_on_one_outcome_stays_finite(occurred: bool) -> None:
    """Where nothing (or everything) was active the probability goes to its floor, not to NaN, and never turns around."""
    raw = np.linspace(0.001, 0.999, 500)
    found = Activity.fit(raw, np.full(500, occurred))
    assert np.isfinite([found.a, found.b]).all()
    assert found.a >= 0
    after = found(raw)
    assert ((after > 0.9) if occurred else (after < 0.1)).all()


# -- training ----------------------------------------------------------------------------------------------------------


def test_windows_are_what_was_known() -> None:
    """A window ends where its future begins; what lies outside the trace or is missing is 0, and known to be unknown."""
    series = np.arange(1, 41, dtype=np.float32)[None].repeat(2, 0)
    series[:, 20] = np.nan
    counts, future, known = draw_windows(series, 200, 16, 6, np.random.default_rng(0))
    assert counts.shape == (200, 16)
    assert future.shape == known.shape == (200, 6)
    steps = torch.arange(6)
    for window, following, seen in zip(counts, future, known, strict=True):
        now = int(window.max()) if window[-1] else 21  # the count before `now` is `now`, but step 20 is missing
        ahead = now + steps
        assert torch.equal(seen, (ahead < 40) & (ahead != 20))
        assert torch.equal(following, torch.where(seen, ahead + 1.0, 0.0))
    assert (counts == 0).any(dim=1).float().mean() > 0.2


def test_the_loss_counts_known_steps_only_and_bears_a_surprise() -> None:
    """Unknown steps do not matter; one invocation after zeros costs a few units; who saw it coming pays less, or nothing."""
    zeros = torch.zeros(1, 32)
    future, known = torch.tensor([[1.0, 99.0]]), torch.tensor([[True, False]])
    flat = torch.zeros(1, 2, 9)
    loss = forecast_loss(flat, NINE, zeros, future, known)
    assert 1 < float(loss) < 10
    assert float(forecast_loss(flat, NINE, zeros, future.clamp(max=1), known)) == float(loss)
    assert float(forecast_loss(flat, NINE, zeros, future, torch.zeros(1, 2, dtype=torch.bool))) == 0
    assert float(loss) > float(forecast_loss(flat + 0.6, NINE, zeros, future, known))
    hit = future[..., None].expand(1, 2, 9)
    assert float(forecast_loss(hit, NINE, zeros, future, known)) < 1e-4


def test_it_learns_timers(expert: SequenceExpert) -> None:
    """Functions called every 4th step are expected then, with their 4 calls, and not between."""
    minute = np.arange(32)
    answer = expert.predict(context(np.array([4.0 * (minute % 4 == phase) for phase in range(4)])), 8, LEVELS)
    due = (32 + np.arange(8)) % 4 == np.arange(4)[:, None]
    assert answer.active[due].min() > 0.8
    assert answer.active[~due].max() < 0.2
    assert np.abs(answer.quantiles[due][:, 2] - 4).max() < 1


def test_a_seed_is_a_model_and_torch_is_left_alone() -> None:
    """The same seed gives the same weights bit for bit, another other ones; torch's own random state stays."""
    few = SMOKE.model_copy(update={"steps": 5})
    before = torch.random.get_rng_state()
    one, two, other = (FAMILY.fit(timers(), few, Training(seed)) for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert isinstance(one, SequenceExpert)
    assert isinstance(two, SequenceExpert)
    assert isinstance(other, SequenceExpert)
    assert torch.equal(one.network.state_dict()["map.weight"], two.network.state_dict()["map.weight"])
    assert one.activity == two.activity
    assert not torch.equal(one.network.state_dict()["map.weight"], other.network.state_dict()["map.weight"])


def test_tuning_changes_a_copy(expert: SequenceExpert) -> None:
    """Tuned on functions of another period the copy knows them; the expert that it came from is as it was."""
    assert FAMILY.tune is not None
    minute = np.arange(300)
    counts = np.array([9.0 * (minute % 6 == phase) for phase in range(6)], np.float32)
    data = TrainingSet(counts, 0, np.zeros(6, np.int64), 1, (), 60)
    before = {key: value.clone() for key, value in expert.network.state_dict().items()}
    tuned = FAMILY.tune(expert, data, SMOKE, Training(seed=1))
    assert all(torch.equal(value, before[key]) for key, value in expert.network.state_dict().items())
    asked = context(counts[:, :32])
    due = counts[:, 32:40] > 0

    def log_loss(active: FloatArray) -> float:
        return float(-np.log(np.where(due, active, 1 - active)).mean())

    assert log_loss(tuned.predict(asked, 8, (0.5,)).active) < 0.5 * log_loss(expert.predict(asked, 8, (0.5,)).active)


def test_no_steps_only_calibrate() -> None:
    """With 0 steps the weights stay; the probability of activity learns the fleet's rate."""
    tuned = FAMILY.fit(timers(), SMOKE.model_copy(update={"steps": 0}), Training(seed=0))
    assert isinstance(tuned, SequenceExpert)
    assert (tuned.network.state_dict()["map.weight"] == 0).all()
    assert tuned.predict(context(np.zeros((1, 32))), 8, (0.5,)).active.mean() == pytest.approx(0.25, abs=0.05)


def test_too_little_to_learn_from_is_refused() -> None:
    """One function or one step cannot be split."""
    data = TrainingSet(np.zeros((1, 50), np.float32), 0, np.zeros(1, np.int64), 1, (), 60)
    with pytest.raises(InputError, match="1 functions and 50 steps"):
        FAMILY.fit(data, SMOKE, Training(seed=0))


# -- the face ----------------------------------------------------------------------------------------------------------


def test_neighbours_in_a_batch_do_not_matter(expert: SequenceExpert) -> None:
    """The same window gives the same forecast alone and among others, on either side of a pass's end."""
    rng = np.random.default_rng(0)
    counts = rng.poisson(0.7, (13, 40)).astype(np.float32)
    together = expert.predict(context(counts), 12, LEVELS)
    for row in range(13):
        alone = expert.predict(context(counts[row : row + 1]), 12, LEVELS)
        np.testing.assert_allclose(alone.active[0], together.active[row], atol=1e-5)
        np.testing.assert_allclose(alone.quantiles[0], together.quantiles[row], atol=1e-5, rtol=1e-5)


def test_a_short_past_is_zeros_before_it_and_far_steps_are_the_last(expert: SequenceExpert) -> None:
    """One column is 31 zeros and that column; steps beyond the network's 8 are as the 8th; nobody is fine."""
    one = np.array([[3.0]])
    short, padded = (expert.predict(context(c), 20, LEVELS) for c in (one, np.pad(one, ((0, 0), (31, 0)))))
    np.testing.assert_array_equal(short.quantiles, padded.quantiles)
    assert (short.quantiles[:, 8:] == short.quantiles[:, 7:8]).all()
    assert (short.active[:, 8:] == short.active[:, 7:8]).all()
    assert expert.predict(context(np.zeros((0, 8))), 20, LEVELS).quantiles.shape == (0, 20, len(LEVELS))


# -- files -------------------------------------------------------------------------------------------------------------


def test_what_is_saved_is_what_is_loaded(expert: SequenceExpert, tmp_path: Path) -> None:
    """A loaded expert differs by 0, and nothing else lies in the directory."""
    expert.save(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.safetensors"}
    assert json.loads((tmp_path / "config.json").read_text())["kind"] == expert.name
    asked = context(np.random.default_rng(0).poisson(1, (7, 50)).astype(np.float32))
    one, two = (e.predict(asked, 9, LEVELS) for e in (expert, FAMILY.load(tmp_path)))
    np.testing.assert_array_equal(one.quantiles, two.quantiles)
    np.testing.assert_array_equal(one.active, two.active)


def test_training_can_start_from_a_directory(expert: SequenceExpert, tmp_path: Path) -> None:
    """`pretrained` names an own expert or published weights; with 0 steps their weights are taken as they are."""
    expert.save(tmp_path)
    chosen = SequenceSettings(pretrained=tmp_path, steps=0)
    again = FAMILY.fit(timers(), chosen, Training(seed=0))
    assert isinstance(again, SequenceExpert)
    assert torch.equal(again.network.state_dict()["map.weight"], expert.network.state_dict()["map.weight"])
    (tmp_path / "config.json").write_text('{"patch": 48}')
    published = FAMILY.load(tmp_path)
    assert isinstance(published, SequenceExpert)
    assert published.network.context == 48
    assert published.activity == Activity()


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"activity": [1]}, r"config.json: activity"),
        ({"context": 0}, r"config.json: context = 0"),
        ({"context": 31}, r"config.json: network .* size must be context"),
        ({"network": {}}, r"config.json: network .* 'size'"),
        ({"more": 1}, r"config.json: more = 1"),
        ({"context": 16, "network": {"size": 16}}, r"model.safetensors: key map.weight has shape \(72, 32\)"),
    ],
)
def test_a_config_that_does_not_fit_is_named(
    expert: SequenceExpert, tmp_path: Path, change: dict[str, Any], complaint: str
) -> None:
    """One sentence names the file and the key."""
    expert.save(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(InputError, match=complaint):
        FAMILY.load(tmp_path)


def test_damaged_files_are_named(expert: SequenceExpert, tmp_path: Path) -> None:
    """Weights cut short or gone, a config that is no object: each is one sentence."""
    expert.save(tmp_path)
    weights = tmp_path / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"model.safetensors: not readable"):
        FAMILY.load(tmp_path)
    weights.unlink()
    with pytest.raises(InputError, match=r"model.safetensors: not readable"):
        FAMILY.load(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(InputError, match=r"config.json: not readable as a JSON object"):
        FAMILY.load(tmp_path)
