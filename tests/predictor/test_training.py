"""Training a tiny model whole: what it is, what it is worth, and what it refuses."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np
import pytest
from pydantic import ValidationError

from mesp.errors import InputError
from mesp_predictor.checkpoint import save_model
from mesp_predictor.experts.gbm import GbmExpert
from mesp_predictor.training import TrainingConfig, train, untrained_model

if TYPE_CHECKING:
    from pathlib import Path

    from mesp.types import FloatArray
    from mesp_predictor.training import Trained

    Training = tuple[Trained, list[tuple[str, float]]]


def test_a_trained_model_is_whole(tiny_training: Training, tiny_config: TrainingConfig) -> None:
    """Every expert, a gate and the clusters are there, and scores for each and the mixture."""
    trained, _ = tiny_training
    model = trained.model
    names = [expert.name for expert in model.experts]
    assert names == ["seasonal", "intermittent", "hazard", "neural_hazard", "patchtst"]
    assert set(trained.log_loss) == {*names, "mixture"}
    assert all(0 < loss < 1 for loss in trained.log_loss.values())
    assert model.router.gate is not None
    assert model.context_length == tiny_config.day_steps
    assert model.centroids.shape == (len(trained.cluster_sizes), tiny_config.day_steps // tiny_config.bin_steps)
    # Of 24 functions 6 are the router's; the days of the others are in a cluster or were routed away, for a reason.
    assert sum(trained.cluster_sizes) + sum(trained.routed_away.values()) == 2 * (24 - 6)


def test_the_mixture_is_worth_its_best_expert(tiny_training: Training) -> None:
    """On functions that no expert has seen the gate's mixture is no worse than the best expert by more than 5 percent."""
    losses = dict(tiny_training[0].log_loss)
    mixture = losses.pop("mixture")
    assert mixture < 1.05 * min(losses.values())
    assert mixture < 0.9 * np.median(list(losses.values()))


def test_progress_only_rises(tiny_training: Training) -> None:
    """Each job is told in one go, after those that it needs, and its share never falls or leaves [0, 1]."""
    told = tiny_training[1]
    stages = [stage for stage, _ in itertools.groupby(told, key=lambda item: item[0])]
    experts = ("seasonal", "intermittent", "hazard", "neural_hazard", "patchtst")
    tuned = {f"tune-{name}-{cluster}" for name in ("neural_hazard", "patchtst") for cluster in (0, 1)}
    both = {f"{kind}-{name}" for name in experts for kind in ("expert", "answers")}
    assert sorted(stages) == sorted({"data", "clusters", "selection", "gate"} | tuned | both)
    assert stages[:2] == ["data", "clusters"]
    assert stages[-2:] == ["selection", "gate"]
    assert all(stages.index(f"expert-{name}") < stages.index(f"answers-{name}") for name in experts)
    for _, group in itertools.groupby(told, key=lambda item: item[0]):
        shares = [share for _, share in group]
        assert shares == sorted(shares)
        assert 0 <= shares[0] <= shares[-1] <= 1


def test_a_seed_is_a_model(
    tiny_training: Training, tiny_fleet: FloatArray, tiny_config: TrainingConfig, tmp_path: Path
) -> None:
    """The same counts, settings and seed give the same model, to the version."""
    again = train(tiny_fleet, 28_000_000, tiny_config, lambda _stage, _share: None)
    versions = [save_model(trained.model, tmp_path / "model", {}).version for trained in (tiny_training[0], again)]
    assert versions[0] == versions[1]
    assert again.log_loss == tiny_training[0].log_loss


@pytest.mark.parametrize(("functions", "steps"), [(15, 480), (24, 239), (0, 480)])
def test_too_little_is_refused(tiny_config: TrainingConfig, functions: int, steps: int) -> None:
    """Fewer than 16 functions or less than a day is one sentence with both numbers."""
    with pytest.raises(InputError, match=f"{functions} functions and {steps} steps, needed are at least 16 functions"):
        train(np.zeros((functions, steps), np.float32), 0, tiny_config, lambda _stage, _share: None)


def test_a_fleet_without_shapes_is_refused(tiny_config: TrainingConfig) -> None:
    """A dead fleet has no shapes to cluster: one sentence says so."""
    with pytest.raises(InputError, match="only 0 function-days of the training trace have a shape"):
        train(np.zeros((16, 480), np.float32), 0, tiny_config, lambda _stage, _share: None)


def test_horizons_must_fit_each_other() -> None:
    """A default horizon beyond the largest is refused before anything is trained."""
    with pytest.raises(ValidationError, match="default_horizon = 30"):
        TrainingConfig(default_horizon=30, max_horizon=20)


def test_settings_of_experts_are_checked_before_anything_is_trained() -> None:
    """An unknown family and a setting out of range are named, with what is allowed."""
    with pytest.raises(ValidationError, match=r"unknown key experts\.oracle, allowed are seasonal"):
        TrainingConfig(experts={"oracle": {}})
    with pytest.raises(InputError, match=r"experts\.gbm\.rounds = 0"):
        TrainingConfig(experts={"gbm": {"rounds": 0}}).plans()


def test_the_untrained_model_answers_nothing_in_particular() -> None:
    """Without training there are light experts under Hedge, trees that are yet to grow, and a context of a day."""
    model = untrained_model()
    names = [expert.name for expert in model.experts]
    assert names == ["seasonal", "intermittent", "context_mixing", "hazard", "gbm"]
    trees = model.experts[-1]
    assert isinstance(trees, GbmExpert)
    assert trees.trained is trees.own is None
    assert model.router.gate is None
    assert model.context_length == 1440
