"""The gradient-boosted hazard: LightGBM over the running statistics, one answer for every step ahead.

Boosted trees read the same features as the neural hazard and give the log odds of activity; counts, once active, follow
the function's latest positive counts. Trained on a replay of the training set; files: `config.json` and LightGBM's own
`model.txt`.

Source: Ke et al., "LightGBM: A Highly Efficient Gradient Boosting Decision Tree", NeurIPS 2017.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import lightgbm
import numpy as np
from pydantic import Field

from mesp.errors import InputError
from mesp_predictor.experts.base import Context, Family, Prediction, Training, TrainingSet, hurdle_quantiles
from mesp_predictor.experts.files import Settings, read_settings, write_expert
from mesp_predictor.experts.neural_hazard import draw_samples
from mesp_predictor.statistics import FEATURES

if TYPE_CHECKING:
    from pathlib import Path

MODEL_FILE: Final = "model.txt"


class GbmSettings(Settings):
    """How the trees are grown."""

    rounds: int = Field(200, ge=1, le=5_000, description="Trees.")
    leaves: int = Field(63, ge=2, le=4_096, description="Leaves of a tree.")
    rate: float = Field(0.06, gt=0, le=1, description="Learning rate.")
    least_samples: int = Field(50, ge=1, description="Samples in a leaf, at least.")
    samples: int = Field(1_000_000, ge=1_000, description="Samples to learn from, at most.")


class _Saved(Settings):
    """What `config.json` says."""

    features: tuple[str, ...]


class GbmExpert:
    """Grown trees behind the experts' face."""

    name = "gbm"

    def __init__(self, booster: lightgbm.Booster) -> None:
        self._booster = booster

    def predict(self, context: Context, horizon: int, levels: tuple[float, ...]) -> Prediction:
        """Forecasts; shapes as in `Expert.predict`."""
        features = context.statistics.features(horizon)
        rows = features.reshape(-1, len(FEATURES))
        said = self._booster.predict(rows, num_threads=1) if len(rows) else np.zeros(0)
        active = np.clip(np.asarray(said, np.float32).reshape(features.shape[:2]), 0.0005, 0.9995)
        positive, grid = context.statistics.positive_quantiles()
        return Prediction(hurdle_quantiles(active, positive, grid, levels), active)

    def save(self, directory: Path) -> None:
        """Writes `model.txt` and `config.json`; raises `InputError` when that is not possible."""
        temporary = directory / f"{MODEL_FILE}.tmp"
        try:
            temporary.write_text(self._booster.model_to_string(), encoding="utf-8")
            temporary.replace(directory / MODEL_FILE)
        except OSError as error:
            raise InputError(f"{directory}: the expert {self.name} cannot be written: {error}") from error
        write_expert(directory, self.name, _Saved(features=FEATURES))


def fit(data: TrainingSet, settings: GbmSettings, training: Training) -> GbmExpert:
    """Grows the trees on one thread: the same seed gives the same ones.

    Raises:
        InputError: none of the functions was ever invoked.
    """
    samples = draw_samples(data.counts, data.start_step, data.max_horizon, training.seed, settings.samples)
    active = samples.counts > 0
    if not active.any():
        raise InputError("gbm: none of the functions to learn from was ever invoked")

    def told(state: lightgbm.callback.CallbackEnv) -> None:
        training.progress((state.iteration + 1) / settings.rounds)

    parameters = {
        "objective": "binary",
        "num_leaves": settings.leaves,
        "learning_rate": settings.rate,
        "min_data_in_leaf": settings.least_samples,
        "feature_fraction": 0.7,
        "bagging_fraction": 0.8,
        "bagging_freq": 1,
        "seed": training.seed,
        "deterministic": True,
        "force_row_wise": True,
        "num_threads": 1,
        "verbose": -1,
    }
    lessons = lightgbm.Dataset(samples.features, active.astype(np.float32), weight=samples.weights)
    return GbmExpert(lightgbm.train(parameters, lessons, settings.rounds, callbacks=[told]))


def load(directory: Path) -> GbmExpert:
    """Reads what `save` wrote.

    Raises:
        InputError: a file is missing or damaged, or the trees were grown on other features.
    """
    saved = read_settings(directory, GbmExpert.name, _Saved)
    if saved.features != FEATURES:
        raise InputError(f"{directory}: features are others than this version computes: train the model anew")
    path = directory / MODEL_FILE
    try:
        booster = lightgbm.Booster(model_str=path.read_text(encoding="utf-8"))
    except (OSError, ValueError, lightgbm.basic.LightGBMError) as error:
        raise InputError(f"{path}: not readable as LightGBM's trees: {' '.join(str(error).split())}") from error
    if booster.num_feature() != len(FEATURES):
        raise InputError(f"{path}: trees read {booster.num_feature()} features, must be {len(FEATURES)}")
    return GbmExpert(booster)


#: The family of experts.
GBM = Family(
    name=GbmExpert.name,
    settings=GbmSettings,
    smoke=GbmSettings(rounds=5, leaves=7, samples=10_000),
    fit=fit,
    load=load,
)
