"""The gradient-boosted hazard learns rhythms, is refitted, comes back from its files unchanged, refuses foreign ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from mesp.errors import InputError
from mesp.types import DEFAULT_LEVELS, FunctionKey
from mesp_predictor.experts import registry
from mesp_predictor.experts.base import Context, Training, TrainingSet
from mesp_predictor.experts.gbm import GBM, GbmExpert, GbmSettings
from mesp_predictor.experts.samples import draw_samples
from mesp_predictor.statistics import Statistics

if TYPE_CHECKING:
    from pathlib import Path

    from mesp.types import FloatArray
    from mesp_predictor.experts.samples import Samples

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


# -- trees of the fleet's own past -------------------------------------------------------------------------------------


def lessons_of(counts: FloatArray) -> Samples:
    return draw_samples(counts, 0, 5, seed=0)


def test_untaught_trees_have_no_answer(tmp_path: Path) -> None:
    """Who knows nothing yet says NaN everywhere, and is saved and read back as such, without a file of trees."""
    context = context_of(timers([4, 9, 13], 100))
    GbmExpert.new().save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    for expert in (GbmExpert.new(), registry.load_expert(tmp_path)):
        said = expert.predict(context, 5, DEFAULT_LEVELS)
        assert said.active.shape == (3, 5)
        assert said.quantiles.shape == (3, 5, len(DEFAULT_LEVELS))
        assert np.isnan(said.active).all()
        assert np.isnan(said.quantiles).all()


def test_a_refit_adds_to_what_was_trained(expert: GbmExpert) -> None:
    """On bursts, which no timer taught, it is better; the trained trees are in it as they were, and their expert as well."""
    bursts = np.tile(np.arange(400) % 60 < 6, (6, 1)).astype(np.float32)
    lessons, exam = lessons_of(bursts[:, :300]), lessons_of(bursts)
    before = expert.activity(exam.features)
    refitted = expert.refitted(lessons, seed=1)
    np.testing.assert_array_equal(expert.activity(exam.features), before)
    assert expert.own is None
    assert refitted.trained is expert.trained
    active = exam.counts > 0
    trained, own = (np.log(np.where(active, p, 1 - p)).mean() for p in (before, refitted.activity(exam.features)))
    assert own > trained / 2  # log likelihoods, below 0


def test_a_refit_goes_on_from_the_trained_trees_and_not_from_the_last_refit(expert: GbmExpert) -> None:
    """Two refits in a row are the second alone; the same lessons and seed give the same trees, another seed others."""
    first, second = (lessons_of(timers(periods, 300)) for periods in ([4, 9, 13], [5, 8, 14]))
    once = expert.refitted(second, seed=2)
    after = expert.refitted(first, seed=1).refitted(second, seed=2)
    other = expert.refitted(second, seed=3)
    np.testing.assert_array_equal(once.activity(first.features), after.activity(first.features))
    assert not np.array_equal(once.activity(first.features), other.activity(first.features))


def test_what_it_says_for_features_is_what_it_forecasts(expert: GbmExpert) -> None:
    """The exam asks by features alone; that is the same expert that answers questions, its own trees included."""
    refitted = expert.refitted(lessons_of(timers([4, 9, 13], 300)), seed=1)
    context = context_of(timers([4, 9], 100))
    said = refitted.predict(context, 5, DEFAULT_LEVELS)
    features = context.statistics.features(5)
    np.testing.assert_array_equal(refitted.activity(features.reshape(10, -1)).reshape(2, 5), said.active)
    assert np.isfinite(said.quantiles).all()


def test_a_fleet_that_is_always_active_is_learned_too() -> None:
    """Lessons of one outcome alone grow no nonsense: it is nearly certain of that outcome."""
    lessons = lessons_of(np.ones((4, 200), np.float32))
    active = GbmExpert.new().refitted(lessons, seed=0).activity(lessons.features)
    assert (active > 0.99).all()
