"""The gradient-boosted hazard learns rhythms, comes back from its files unchanged, and refuses foreign ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from mesp.errors import InputError
from mesp.types import DEFAULT_LEVELS, FunctionKey
from mesp_predictor.experts import registry
from mesp_predictor.experts.base import Context, Training, TrainingSet
from mesp_predictor.experts.gbm import GBM, GbmExpert, GbmSettings
from mesp_predictor.statistics import Statistics

if TYPE_CHECKING:
    from pathlib import Path

    from mesp.types import FloatArray

SETTINGS = GbmSettings(rounds=30, leaves=15, least_samples=20, samples=20_000)


def timers(periods: list[int], steps: int) -> FloatArray:
    """Functions invoked once a period."""
    clock = np.arange(steps)
    return np.stack([clock % period == 0 for period in periods]).astype(np.float32)


@pytest.fixture(scope="module")
def expert() -> GbmExpert:
    counts = timers([3, 5, 6, 7, 10, 11, 12, 15, 20, 30], 400)
    keys = tuple(FunctionKey(str(row), "f") for row in range(len(counts)))
    found = GBM.fit(TrainingSet(counts, 0, np.zeros(len(counts), np.int64), 1, keys, 15), SETTINGS, Training(0))
    assert isinstance(found, GbmExpert)
    return found


def context_of(counts: FloatArray) -> Context:
    statistics = Statistics.empty(len(counts))
    for column in counts.T:
        statistics.update(column)
    return Context(counts.shape[1], counts, statistics, np.zeros(len(counts), np.int64))


def test_a_timer_never_seen_is_foretold(expert: GbmExpert) -> None:
    """On a timer of another period the due step is likelier by far than the others."""
    said = expert.predict(context_of(timers([8], 161)), 8, DEFAULT_LEVELS)  # invoked at 160, due at 168
    assert said.active[0].argmax() == 7
    assert said.active[0, 7] > 5 * np.delete(said.active[0], 7).max()


def test_saved_and_read_back_it_says_the_same(expert: GbmExpert, tmp_path: Path) -> None:
    """Through the registry's door the difference is 0."""
    expert.save(tmp_path)
    context = context_of(timers([4, 9, 13], 100))
    before = expert.predict(context, 15, DEFAULT_LEVELS)
    after = registry.load_expert(tmp_path).predict(context, 15, DEFAULT_LEVELS)
    np.testing.assert_array_equal(before.active, after.active)
    np.testing.assert_array_equal(before.quantiles, after.quantiles)


def test_damaged_trees_are_refused_in_one_sentence(expert: GbmExpert, tmp_path: Path) -> None:
    """The sentence names the file."""
    expert.save(tmp_path)
    (tmp_path / "model.txt").unlink()
    with pytest.raises(InputError, match=r"model\.txt"):
        GBM.load(tmp_path)


def test_other_features_are_refused(expert: GbmExpert, tmp_path: Path) -> None:
    """Trees that were grown on other features are not asked."""
    expert.save(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace("log_ahead", "log_behind"))
    with pytest.raises(InputError, match="train the model anew"):
        GBM.load(tmp_path)


def test_the_same_seed_grows_the_same_trees(expert: GbmExpert) -> None:
    """Training is deterministic."""
    counts = timers([3, 5, 6, 7, 10, 11, 12, 15, 20, 30], 400)
    keys = tuple(FunctionKey(str(row), "f") for row in range(len(counts)))
    again = GBM.fit(TrainingSet(counts, 0, np.zeros(len(counts), np.int64), 1, keys, 15), SETTINGS, Training(0))
    context = context_of(timers([4, 9], 100))
    np.testing.assert_array_equal(
        expert.predict(context, 15, DEFAULT_LEVELS).active, again.predict(context, 15, DEFAULT_LEVELS).active
    )


def test_functions_never_invoked_teach_nothing() -> None:
    """Said in one sentence."""
    data = TrainingSet(np.zeros((4, 60), np.float32), 0, np.zeros(4, np.int64), 1, (FunctionKey("a", "b"),) * 4, 15)
    with pytest.raises(InputError, match="ever invoked"):
        GBM.fit(data, SETTINGS, Training(0))
