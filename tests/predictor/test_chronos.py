"""Chronos-Bolt and Chronos-2: small ones that are trained, and directories as they are published."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from chronos.chronos2 import Chronos2Model, Chronos2Pipeline  # type: ignore[import-untyped]
from chronos.chronos2.config import Chronos2CoreConfig  # type: ignore[import-untyped]
from chronos.chronos_bolt import ChronosBoltModelForForecasting, ChronosBoltPipeline  # type: ignore[import-untyped]
from transformers import T5Config

from mesp.errors import InputError
from mesp_predictor.experts import registry, sequence
from mesp_predictor.experts.base import Context, Training, TrainingSet
from mesp_predictor.experts.chronos import LEVELS, ChronosSettings
from mesp_predictor.experts.quantile_function import Activity
from mesp_predictor.experts.sequence import SequenceExpert, forecast_loss
from mesp_predictor.statistics import Statistics

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import numpy.typing as npt

ASKED = (0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99)
FAMILIES = ("chronos_bolt", "chronos_2")
TINY = ChronosSettings(
    context=64, horizon=20, steps=80, batch=32, rate=1e-2, width=16, heads=2, layers=1, feed_forward=32
)

#: What the published configurations say, but for the sizes: amazon/chronos-bolt-tiny and amazon/chronos-2.
CORE: dict[str, Any] = {
    "d_model": 16,
    "d_kv": 8,
    "d_ff": 32,
    "num_layers": 1,
    "num_heads": 2,
    "dropout_rate": 0.1,
    "dense_act_fn": "relu",
    "feed_forward_proj": "relu",
    "initializer_factor": 0.5,  # so that random weights say something
    "is_gated_act": False,
    "layer_norm_epsilon": 1e-6,
    "pad_token_id": 0,
    "reg_token_id": 1,
    "vocab_size": 2,
}
PATCHES: dict[str, Any] = {"input_patch_size": 16, "input_patch_stride": 16, "use_reg_token": True}
BOLT: dict[str, Any] = {
    **CORE,
    "num_decoder_layers": 1,
    "decoder_start_token_id": 0,
    "eos_token_id": 1,
    "n_positions": 512,
    "chronos_pipeline_class": "ChronosBoltPipeline",
    "chronos_config": {
        **PATCHES,
        "context_length": 2048,
        "prediction_length": 64,
        "quantiles": [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9],
    },
}
CHRONOS_2: dict[str, Any] = {
    **CORE,
    "rope_theta": 10000.0,
    "chronos_pipeline_class": "Chronos2Pipeline",
    "chronos_config": {
        **PATCHES,
        "context_length": 8192,
        "max_output_patches": 64,
        "output_patch_size": 16,
        "quantiles": [0.01, *(q / 20 for q in range(1, 20)), 0.99],
        "time_encoding_scale": 8192,
        "use_arcsinh": True,
    },
}


def context(counts: npt.NDArray[Any]) -> Context:
    return Context(counts.shape[1], counts.astype(np.float32), Statistics.empty(len(counts)), np.full(len(counts), -1))


def timers(period: int, calls: float) -> TrainingSet:
    """Functions called every `period`-th step, in all phases, (2 * period, 300)."""
    minute = np.arange(300)
    counts = np.array([calls * (minute % period == phase % period) for phase in range(2 * period)], np.float32)
    return TrainingSet(counts, 0, np.zeros(len(counts), np.int64), 1, (), 60)


def fitted(name: str, data: TrainingSet, settings: ChronosSettings) -> SequenceExpert:
    expert = registry.family(name).fit(data, settings, Training(seed=0))
    assert isinstance(expert, SequenceExpert)
    return expert


def loaded(directory: Path) -> SequenceExpert:
    expert = registry.load_expert(directory)
    assert isinstance(expert, SequenceExpert)
    return expert


def held_out_loss(expert: SequenceExpert, data: TrainingSet) -> float:
    counts, future = (torch.from_numpy(part) for part in (data.counts[:, 200:264], data.counts[:, 264:284]))
    with torch.inference_mode():
        answer = expert.network.forecast(counts, 20)
        known = torch.ones_like(future, dtype=torch.bool)
        return float(forecast_loss(answer, expert.network.levels, counts, future, known))


@pytest.fixture(scope="module", autouse=True)
def _short_exams() -> Iterator[None]:
    """Tiny networks are judged on few windows."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sequence, "EXAM_WINDOWS", 64)
        patch.setattr(sequence, "CALIBRATION_WINDOWS", 256)
        yield


@pytest.fixture(scope="module", params=FAMILIES)
def trained(request: pytest.FixtureRequest) -> SequenceExpert:
    return fitted(request.param, timers(4, 5.0), TINY)


@pytest.fixture(scope="module", params=FAMILIES)
def published(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny directory with the published key names and configuration."""
    directory = tmp_path_factory.mktemp(request.param)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if request.param == "chronos_bolt":
            model: Any = ChronosBoltModelForForecasting(T5Config(**BOLT))
        else:
            model = Chronos2Model(Chronos2CoreConfig(**CHRONOS_2))
    model.save_pretrained(directory)
    return directory


# -- small ones --------------------------------------------------------------------------------------------------------


def test_it_learns_and_tunes(trained: SequenceExpert) -> None:
    """Training undercuts the untrained network's held-out loss by far; tuning on another period does so again."""
    data, other = timers(4, 5.0), timers(6, 2.0)
    untrained = fitted(trained.name, data, TINY.model_copy(update={"steps": 0}))
    assert held_out_loss(trained, data) < 0.6 * held_out_loss(untrained, data)
    tune = registry.family(trained.name).tune
    assert tune is not None
    before = held_out_loss(trained, other)
    tuned = tune(trained, other, TINY.model_copy(update={"steps": 120}), Training(seed=1))
    assert isinstance(tuned, SequenceExpert)
    assert held_out_loss(tuned, other) < 0.85 * before
    assert held_out_loss(trained, other) == before


def test_surprises_after_silence_do_not_blow_up(trained: SequenceExpert) -> None:
    """One invocation after a window of zeros costs a few units and a bounded gradient, not 1e5."""
    network = trained.network
    network.requires_grad_(requires_grad=True)
    future = torch.zeros(1, 20)
    future[0, 3] = 1
    loss = network.loss(torch.zeros(1, 64), future, torch.ones(1, 20, dtype=torch.bool))
    loss.backward()
    gradients = [p.grad.norm() for p in network.parameters() if p.grad is not None]
    network.zero_grad()
    network.requires_grad_(requires_grad=False)
    assert float(loss.detach()) < 10
    assert float(torch.stack(gradients).norm()) < 100


def test_small_ones_reach_to_the_99th_percentile(trained: SequenceExpert) -> None:
    """Own networks have a top level of 0.99 of their own, and say 60 steps though they were made for 20."""
    assert trained.network.levels == LEVELS
    assert LEVELS[-1] == 0.99
    answer = trained.predict(context(timers(4, 5.0).counts), 60, ASKED)
    assert answer.quantiles.shape == (8, 60, 7)
    assert (answer.quantiles[:, 20:] == answer.quantiles[:, 19:20]).all()


def strange() -> npt.NDArray[np.float32]:
    """Zeros, constants, huge ones, a single last call, a single first one, noise; 7 rows, 80 steps."""
    rows = np.zeros((7, 80), np.float32)
    rows[1], rows[2] = 3, 1e9
    rows[3, -1], rows[4, 0] = 1, 1e9
    rows[5, ::2] = 1e9
    rows[6] = np.random.default_rng(0).poisson(0.5, 80)
    return rows


def test_strange_series_get_forecasts(trained: SequenceExpert) -> None:
    """Zeros, constants, 1e9, one column: finite, rising, 0 exactly up to the level 1 - active, at least 1 above."""
    for counts in (strange(), np.array([[0.0], [1.0], [1e9]])):
        _check(trained, counts)


def _check(expert: SequenceExpert, counts: npt.NDArray[Any]) -> None:
    answer = expert.predict(context(counts), 60, ASKED)
    assert np.isfinite(answer.quantiles).all()
    assert ((answer.active > 0) & (answer.active < 1)).all()
    assert (np.diff(answer.quantiles, axis=2) >= 0).all()
    margin = np.asarray(ASKED) - 1 + answer.active[..., None]
    assert (answer.quantiles[margin < -1e-6] == 0).all()
    assert (answer.quantiles[margin > 1e-6] >= 1).all()


def test_neighbours_in_a_batch_do_not_matter(trained: SequenceExpert) -> None:
    """The same window gives the same forecast alone, and among 69 others of any size."""
    rng = np.random.default_rng(1)
    counts = np.concatenate([strange(), rng.poisson(rng.gamma(0.5, 5, (63, 1)), (63, 80))])
    together = trained.predict(context(counts), 20, ASKED)
    for row in (0, 1, 6, 7, 69):
        alone = trained.predict(context(counts[row : row + 1]), 20, ASKED)
        np.testing.assert_allclose(alone.active[0], together.active[row], atol=1e-5)
        np.testing.assert_allclose(alone.quantiles[0], together.quantiles[row], atol=1e-5, rtol=1e-5)


def test_what_is_saved_is_what_is_loaded(trained: SequenceExpert, tmp_path: Path) -> None:
    """Through the registry's door, with difference 0."""
    trained.save(tmp_path)
    again = loaded(tmp_path)
    assert (again.name, again.activity) == (trained.name, trained.activity)
    one, two = (expert.predict(context(strange()), 20, ASKED) for expert in (trained, again))
    np.testing.assert_array_equal(one.quantiles, two.quantiles)
    np.testing.assert_array_equal(one.active, two.active)


@pytest.mark.parametrize("name", FAMILIES)
def test_smoke_settings_show_that_everything_works(name: str) -> None:
    """The family's smoke training gives an expert that forecasts."""
    family = registry.family(name)
    assert family.costly
    assert family.name == name
    expert = family.fit(timers(4, 5.0), family.smoke, Training(seed=0))
    assert expert.name == name
    assert expert.predict(context(strange()), 15, ASKED).quantiles.shape == (7, 15, 7)


# -- published ones ----------------------------------------------------------------------------------------------------


def test_published_weights_say_what_the_library_says(published: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Zero-shot, the network's quantiles are those of the library's own pipeline on the same directory."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    expert = loaded(published)
    assert expert.activity == Activity()
    assert (expert.network.context, expert.network.horizon) == (512, 64)
    counts = torch.from_numpy(np.random.default_rng(0).poisson(0.8, (5, 512)).astype(np.float32))
    with torch.inference_mode():
        ours = expert.network.forecast(counts, 64)
    if expert.name == "chronos_bolt":
        theirs = ChronosBoltPipeline.from_pretrained(published).predict(counts, 64)
    else:
        theirs = torch.cat(Chronos2Pipeline.from_pretrained(published).predict(list(counts), 64))
    torch.testing.assert_close(ours, theirs.transpose(1, 2), rtol=1e-4, atol=1e-4)


def test_published_weights_forecast_save_and_tune(published: Path, tmp_path: Path) -> None:
    """A published directory answers strange series, is saved as an own expert, and learns from a fleet."""
    expert = loaded(published)
    _check(expert, strange())
    expert.save(tmp_path)
    again = loaded(tmp_path)
    one, two = (e.predict(context(strange()), 60, ASKED) for e in (expert, again))
    np.testing.assert_array_equal(one.quantiles, two.quantiles)
    data = timers(4, 5.0)
    tuned = fitted(expert.name, data, TINY.model_copy(update={"pretrained": published, "steps": 30}))
    assert tuned.network.levels == expert.network.levels
    assert held_out_loss(tuned, data) < 0.9 * held_out_loss(expert, data)


def test_loading_leaves_torchs_randomness_alone(published: Path) -> None:
    """A network is born with random weights, but not at the expense of torch's own state."""
    before = torch.random.get_rng_state()
    loaded(published)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"architectures": ["T5ForConditionalGeneration"]}, "config.json: architectures"),
        ({"chronos_config": {"context_length": 512}}, "config.json: does not describe"),
        ({"d_ff": 8}, "model.safetensors: key .* has shape"),
        ({"num_layers": 2}, "model.safetensors: key .* is missing"),
    ],
)
def test_a_published_directory_that_does_not_fit_is_named(
    published: Path, tmp_path: Path, change: dict[str, Any], complaint: str
) -> None:
    """One sentence names the file and the key; the first Chronos, of tokens, is none of ours."""
    config = json.loads((published / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
    (tmp_path / "model.safetensors").write_bytes((published / "model.safetensors").read_bytes())
    with pytest.raises(InputError, match=complaint):
        registry.load_expert(tmp_path)
