"""The training loop of all networks: it keeps its best, and a kill at any step changes nothing."""

from __future__ import annotations

import contextlib
import json
import logging
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mesp.errors import InputError
from mesp_predictor.experts.base import Training
from mesp_predictor.trainer import Budget, fit_network

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

TRUE = torch.tensor([1.0, -2.0, 0.5])
STEPS = 23
BUDGET = Budget(STEPS, 0.05, exams=5)


def network() -> nn.Sequential:
    """Three weights to find, behind a dropout that draws from torch's own generator."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Dropout(0.2), nn.Linear(3, 1))


def loss(model: nn.Sequential, rng: np.random.Generator) -> torch.Tensor:
    x = torch.from_numpy(rng.normal(size=(16, 3)).astype(np.float32))
    squared: torch.Tensor = (model(x)[:, 0] - x @ TRUE) ** 2
    return squared.mean()


def distance(model: nn.Sequential) -> float:
    linear = model[1]
    assert isinstance(linear, nn.Linear)
    return float((linear.weight.detach()[0] - TRUE).square().sum())


class Killed(BaseException):
    """Stands for kill -9: nobody catches it."""


def kill_at(step: int) -> Callable[[float], None]:
    def progress(share: float) -> None:
        if round(share * STEPS) == step:
            raise Killed

    return progress


def weights(model: nn.Module) -> list[float]:
    return torch.cat([p.detach().flatten() for p in model.parameters()]).tolist()


def test_it_learns_and_leaves_torch_alone() -> None:
    """Weights come nearer to the true ones; progress rises to 1; torch's random state and the mode are as they should."""
    before, told = torch.random.get_rng_state(), list[float]()
    trained = fit_network(network(), loss, distance, replace(BUDGET, steps=200), Training(0, told.append))
    assert distance(trained) < 0.2 * distance(network())
    assert not trained.training
    assert torch.equal(torch.random.get_rng_state(), before)
    assert told == sorted(told)
    assert told[-1] == 1


@settings(max_examples=12, deadline=None)
@given(kills=st.lists(st.integers(1, STEPS), max_size=3), save_every=st.integers(1, 30))
def test_killed_at_any_steps_it_ends_the_same(
    tmp_path_factory: pytest.TempPathFactory, kills: list[int], save_every: int
) -> None:
    """Whenever it is killed, and however often, the weights and the exams are those of a training never interrupted."""
    whole, state = tmp_path_factory.mktemp("whole"), tmp_path_factory.mktemp("state")
    expected = fit_network(network(), loss, distance, BUDGET, Training(3, state=whole))
    training = Training(3, state=state, save_every=save_every)
    for step in kills:
        with contextlib.suppress(Killed):
            fit_network(network(), loss, distance, BUDGET, replace(training, progress=kill_at(step)))
    resumed = fit_network(network(), loss, distance, BUDGET, training)
    assert weights(resumed) == weights(expected)
    assert (state / "exams.json").read_text() == (whole / "exams.json").read_text()


def test_it_goes_on_instead_of_starting_over(tmp_path: Path) -> None:
    """After a kill at step 17 with states at every fifth the next process begins with step 16."""
    training = Training(0, state=tmp_path, save_every=5)
    with pytest.raises(Killed):
        fit_network(network(), loss, distance, BUDGET, replace(training, progress=kill_at(17)))
    told: list[float] = []
    fit_network(network(), loss, distance, BUDGET, replace(training, progress=told.append))
    assert [round(share * STEPS) for share in told] == list(range(16, STEPS + 1))


def test_the_best_state_is_the_result_and_the_last_one_stays(tmp_path: Path) -> None:
    """An exam that only gets worse gives back the weights of the beginning; the file holds those of the end too."""
    marks = iter(range(100))
    first = weights(network())
    trained = fit_network(network(), loss, lambda _: float(next(marks)), BUDGET, Training(0, state=tmp_path))
    assert weights(trained) == first
    last = torch.load(tmp_path / "train_state.pt", weights_only=True)
    assert last["step"] == STEPS
    assert last["network"]["1.weight"][0].tolist() != first[:3]
    assert json.loads((tmp_path / "exams.json").read_text()) == [
        [step, mark] for mark, step in enumerate((0, 5, 10, 15, 20, 23))
    ]


def test_a_state_that_cannot_be_read_is_told_and_starts_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Damaged bytes cost the time, not the result."""
    (tmp_path / "train_state.pt").write_bytes(b"PK\3\4 no more than this")
    with caplog.at_level(logging.WARNING):
        trained = fit_network(network(), loss, distance, BUDGET, Training(1, state=tmp_path))
    assert "this training starts over" in caplog.text
    assert weights(trained) == weights(fit_network(network(), loss, distance, BUDGET, Training(1)))


def test_a_full_disk_is_one_sentence(tmp_path: Path) -> None:
    """A state that cannot be written stops the training with the path and the reason, and leaves the former state."""
    (tmp_path / "train_state.tmp").symlink_to("/dev/full")
    with pytest.raises(InputError, match=r"train_state.pt: .* cannot be written \(No space left on device\)"):
        fit_network(network(), loss, distance, BUDGET, Training(0, state=tmp_path, save_every=1))
    assert not (tmp_path / "train_state.pt").exists()
