"""Sundial: the paper's parts one by one, published weights under their own names, and a small network that learns."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from mesp.errors import InputError
from mesp.types import DEFAULT_LEVELS, FunctionKey
from mesp_predictor.experts import registry
from mesp_predictor.experts.base import Context, Expert, Training, TrainingSet
from mesp_predictor.experts.sequence import SequenceExpert, draw_windows
from mesp_predictor.experts.sundial import SUNDIAL, SundialSettings
from mesp_predictor.experts.sundial_network import SundialConfig, SundialNetwork, _latin_normals, _rotation, _turned
from mesp_predictor.statistics import Statistics

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from mesp.types import FloatArray

SMOKE = SUNDIAL.smoke
assert isinstance(SMOKE, SundialSettings)
TINY = SMOKE.network

#: What a published `config.json` holds, in a small size.
PUBLISHED = {
    "architectures": ["SundialForPrediction"],
    "auto_map": {"AutoModelForCausalLM": "modeling_sundial.SundialForPrediction"},
    "diffusion_batch_mul": 4,
    "dropout_rate": 0.1,
    "flow_loss_depth": 2,
    "hidden_act": "silu",
    "hidden_size": 16,
    "initializer_range": 0.02,
    "input_token_len": 16,
    "intermediate_size": 24,
    "max_position_embeddings": 10000,
    "model_type": "sundial",
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "num_sampling_steps": 50,
    "output_token_lens": [720],
    "rope_theta": 10000,
    "torch_dtype": "float32",
    "use_cache": True,
}


def published_shapes() -> dict[str, tuple[int, ...]]:
    """Every key of published weights and its shape, for `PUBLISHED`."""
    width, hidden, reach = 16, 24, 720

    def linear(key: str, out: int, into: int) -> dict[str, tuple[int, ...]]:
        return {f"{key}.weight": (out, into), f"{key}.bias": (out,)}

    def norm(key: str) -> dict[str, tuple[int, ...]]:
        return {f"{key}.weight": (width,), f"{key}.bias": (width,)}

    shapes = linear("model.embed_layer.hidden_layer", hidden, 32)
    shapes |= linear("model.embed_layer.output_layer", width, hidden)
    shapes |= linear("model.embed_layer.residual_layer", width, 32)
    for layer in ("model.layers.0", "model.layers.1"):
        for part in ("q_proj", "k_proj", "v_proj"):
            shapes |= linear(f"{layer}.self_attn.{part}", width, width)
        shapes |= {
            f"{layer}.self_attn.o_proj.weight": (width, width),
            f"{layer}.ffn_layer.gate_proj.weight": (hidden, width),
            f"{layer}.ffn_layer.up_proj.weight": (hidden, width),
            f"{layer}.ffn_layer.down_proj.weight": (width, hidden),
        }
        shapes |= norm(f"{layer}.norm1") | norm(f"{layer}.norm2")
    shapes |= norm("model.norm")
    net = "flow_loss.net"
    shapes |= linear(f"{net}.time_embed.mlp.0", width, 256) | linear(f"{net}.time_embed.mlp.2", width, width)
    shapes |= linear(f"{net}.cond_embed", width, width) | linear(f"{net}.input_proj", width, reach)
    for block in (f"{net}.res_blocks.0", f"{net}.res_blocks.1"):
        shapes |= norm(f"{block}.in_ln") | linear(f"{block}.adaLN_modulation.1", 3 * width, width)
        shapes |= linear(f"{block}.mlp.0", width, width) | linear(f"{block}.mlp.2", width, width)
    shapes |= linear(f"{net}.final_layer.linear", reach, width)
    return shapes | linear(f"{net}.final_layer.adaLN_modulation.1", 2 * width, width)


def random_weights() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {key: 0.2 * torch.randn(shape, generator=generator) for key, shape in published_shapes().items()}


def publish(directory: Path, config: dict[str, Any] = PUBLISHED, weights: dict[str, Tensor] | None = None) -> Path:
    (directory / "config.json").write_text(json.dumps(config))
    save_file(random_weights() if weights is None else weights, directory / "model.safetensors")
    return directory


def network(seed: int = 0, shape: SundialConfig = TINY) -> SundialNetwork:
    """With weights that are nowhere zero, so that every part matters."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        made = SundialNetwork(shape, 64).eval()
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return made


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
    assert isinstance(expert, SequenceExpert)
    with torch.inference_mode():
        return expert.network.loss(*draw_windows(counts, 256, 64, 60, np.random.default_rng(7))).item()


@pytest.fixture(scope="module")
def trained() -> SequenceExpert:
    expert = SUNDIAL.fit(training_set(bursts(24, 1)), SMOKE, Training(seed=2))
    assert isinstance(expert, SequenceExpert)
    return expert


def test_the_published_base_model_has_its_128_million_parameters() -> None:
    """The architecture is that of thuml/sundial-base-128m: 128.33 million parameters."""
    base = SundialConfig(
        output_token_lens=(720,), hidden_size=768, intermediate_size=3072, num_hidden_layers=12,
        num_attention_heads=12, flow_loss_depth=3,
    )  # fmt: skip
    with torch.device("meta"):
        parameters = sum(p.numel() for p in SundialNetwork(base, 2880).parameters())
    assert round(parameters / 1e6, 2) == 128.33


def test_published_weights_load_under_their_own_names(tmp_path: Path) -> None:
    """A directory with the published keys is an expert at once, and every weight of it is in the network, unchanged."""
    expert = registry.load_expert(publish(tmp_path))
    assert isinstance(expert, SequenceExpert)
    assert (expert.name, expert.network.context, expert.network.horizon) == ("sundial", 512, 720)
    weights = random_weights()
    state = expert.network.state_dict()
    assert state.keys() == weights.keys()
    assert all(torch.equal(state[key], weights[key]) for key in weights)
    prediction = expert.predict(context(bursts(3, 4)), 60, DEFAULT_LEVELS)
    assert np.isfinite(prediction.quantiles).all()


def test_a_published_forecast_is_eulers_method_on_the_normalised_window(tmp_path: Path) -> None:
    """50 steps x += (end(x, t) - noise) / 50 from t = 0, then back by the window's mean and standard deviation."""
    expert = registry.load_expert(publish(tmp_path))
    assert isinstance(expert, SequenceExpert)
    net = expert.network
    assert isinstance(net, SundialNetwork)
    counts = torch.from_numpy(bursts(1, 5, 96))
    mean, spread = counts.mean(), counts.std(correction=0)
    with torch.inference_mode():
        state = net.model((counts - mean) / spread)[0, -1]
        futures = []
        for noise in net.flow_loss.noise:
            point = noise
            for step in range(50):
                time = torch.tensor([step / 50])
                point = point + (net.flow_loss.net(point, time, net.flow_loss.net.cond_embed(state)) - noise) / 50
            futures.append(point[:60] * spread + mean)
        expected = torch.stack(futures).sort(dim=0).values.T
        assert torch.allclose(net.forecast(counts, 60)[0], expected, atol=1e-3)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu': Input should be 'silu'"),
        ({"num_hidden_layers": 0}, "num_hidden_layers = 0: Input should be greater than or equal to 1"),
        ({"num_attention_heads": 3}, "hidden_size = 16 must be a multiple of twice num_attention_heads = 3"),
        ({"num_hidden_layers": 3}, "key model.layers.2.ffn_layer.down_proj.weight is missing"),
        ({"hidden_size": 32}, "key flow_loss.net.cond_embed.bias has shape (16,), must be (32,)"),
    ],
)
def test_a_published_directory_that_does_not_fit_is_named(
    tmp_path: Path, change: dict[str, object], sentence: str
) -> None:
    """A wrong shape in a published config is one sentence with file, key and value."""
    with pytest.raises(InputError) as raised:
        registry.load_expert(publish(tmp_path, PUBLISHED | change))
    assert sentence in str(raised.value)
    assert str(tmp_path) in str(raised.value)


def test_states_are_causal() -> None:
    """The state after a patch knows nothing of later patches: that is what makes training dense."""
    net = network()
    window = torch.randn(2, 64, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        assert torch.allclose(net.model(window)[:, :2], net.model(window[:, :32]), atol=1e-5)
        assert not torch.allclose(net.model(window)[:, 2:], net.model(window.flip(1))[:, 2:], atol=1e-2)


def test_rotation_leaves_relative_positions() -> None:
    """Attention between two features depends on how far apart they stand alone; pairs are i and i + half."""
    turn = _rotation(9, 8, 100.0, torch.device("cpu"))
    query, key = torch.randn(2, 1, 8, generator=torch.Generator().manual_seed(1))
    queries, keys = (_turned(part.expand(9, 8), turn) for part in (query, key))
    scores = queries @ keys.T
    assert torch.allclose(scores.diagonal(offset=3), scores[0, 3].expand(6), atol=1e-5)
    assert not math.isclose(float(scores[0, 3]), float(scores[0, 0]), abs_tol=1e-2)
    first = _turned(torch.eye(8)[0].expand(9, 8), turn)[1]
    assert torch.allclose(first[[0, 4]], torch.tensor([math.cos(1), math.sin(1)]))


@given(st.integers(2, 40), st.integers(1, 20), st.integers(0, 5))
@settings(max_examples=20, deadline=None)
def test_noise_covers_every_step_evenly(samples: int, dimensions: int, seed: int) -> None:
    """In every dimension one sample lies in each slice of equal probability, and a seed is a noise."""
    noise = _latin_normals(samples, dimensions, seed)
    assert torch.equal(noise, _latin_normals(samples, dimensions, seed))
    slices = (torch.special.ndtr(noise) * samples).long().sort(dim=0).values
    assert torch.equal(slices, torch.arange(samples)[:, None].expand(-1, dimensions))


@given(st.floats(1, 1e4), st.floats(0, 1e4))
@settings(max_examples=20, deadline=None)
def test_forecasts_follow_the_unit_of_the_counts(factor: float, shift: float) -> None:
    """Normalisation is undone: the forecast of a x + b is a times that of x, plus b."""
    net, counts = network(), torch.from_numpy(bursts(3, 2, 64))
    with torch.inference_mode():
        plain, moved = net.forecast(counts, 20), net.forecast(factor * counts + shift, 20)
    assert torch.allclose(moved, factor * plain + shift, rtol=1e-3, atol=1e-3 * (factor + shift))


def test_the_flow_carries_noise_to_what_it_was_taught() -> None:
    """A head taught that after a burst come 3 and after silence 1, without doubt, answers 3 and 1 at every level."""
    shape = TINY.model_copy(update={"output_token_lens": (4,)})
    counts = torch.zeros(64, 32)
    counts[::2, -16:] = torch.tensor([4.0, 0.0]).repeat(8)
    counts[1::2, :16] = torch.tensor([4.0, 0.0]).repeat(8)
    future = torch.tensor([3.0, 1.0]).repeat(32)[:, None].expand(-1, 4)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = SundialNetwork(shape, 32)
        optimizer = torch.optim.Adam(net.parameters(), 1e-2)
        for _ in range(100):
            optimizer.zero_grad()
            net.loss(counts, future, torch.ones_like(future, dtype=torch.bool)).backward()
            optimizer.step()
    with torch.inference_mode():
        answer = net.eval().forecast(counts[:2], 4)
    assert torch.allclose(answer[0], torch.tensor(3.0), atol=0.5)
    assert torch.allclose(answer[1], torch.tensor(1.0), atol=0.5)


def test_unknown_steps_teach_nothing() -> None:
    """What stands where a count is unknown, or beyond what the network forecasts, does not touch the loss."""
    net = network()
    counts, future = (torch.from_numpy(part) for part in np.split(bursts(4, 3, 128), 2, axis=1))
    known = torch.arange(64).expand(4, -1) < 30
    with torch.inference_mode():
        loss = net.loss(counts, future, known)
        assert torch.equal(loss, net.loss(counts, torch.where(known, future, math.nan), known))
        assert torch.equal(loss, net.loss(counts, future[:, :30], known[:, :30]))
        longer = torch.cat([future, future], dim=1), torch.cat([known, known], dim=1)
        assert torch.equal(loss, net.loss(counts, *longer))
        assert not torch.equal(loss, net.loss(counts, future, torch.ones_like(known)))


def test_training_lowers_the_held_out_loss(trained: SequenceExpert) -> None:
    """The smoke training teaches the phase of bursts: a fifth less loss on functions never seen."""
    fresh = SUNDIAL.fit(training_set(bursts(24, 1)), SMOKE.model_copy(update={"steps": 0}), Training(seed=2))
    assert held_out_loss(trained, bursts(40, 9)) < 0.8 * held_out_loss(fresh, bursts(40, 9))


def test_tuning_goes_on_from_what_was_learned(trained: SequenceExpert) -> None:
    """A copy tuned on functions that run at twice the pace does better on their kind; the original stays as it was."""
    assert SUNDIAL.tune is not None
    before = held_out_loss(trained, twice_as_fast(9))
    settings = SMOKE.model_copy(update={"steps": 30})
    tuned = SUNDIAL.tune(trained, training_set(twice_as_fast(5)), settings, Training(seed=3))
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


@pytest.mark.parametrize("change", [{"samples": 20}, {"num_attention_heads": 3}, {"hidden": 3}])
def test_a_shape_that_cannot_be_built_is_refused(change: dict[str, Any]) -> None:
    """Settings are checked when they are read, not when the training has begun."""
    with pytest.raises(ValueError, match=next(iter(change))):
        SundialSettings.model_validate({"network": change})
