"""The gradient-boosted hazard: LightGBM over the running statistics, one answer for every step ahead.

Boosted trees read the same features as the neural hazard and give the log odds of activity; counts, once active, follow
the function's latest positive counts. Trained on a replay of the training set; files: `config.json` and LightGBM's own
`model.txt`. While it serves, further trees are grown on the fleet's own past: they correct the log odds of the trained
ones, or stand alone where nothing was trained (`GbmExpert.new`), which until then has no answer.

Source: Ke et al., "LightGBM: A Highly Efficient Gradient Boosting Decision Tree", NeurIPS 2017.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import lightgbm
import numpy as np
from pydantic import Field

from mesp.errors import InputError
from mesp_predictor.experts.base import Context, Family, Prediction, Training, TrainingSet, hurdle_quantiles
from mesp_predictor.experts.files import Settings, read_settings, write_expert
from mesp_predictor.experts.samples import draw_samples
from mesp_predictor.statistics import FEATURES

if TYPE_CHECKING:
    from pathlib import Path

    from mesp.types import FloatArray
    from mesp_predictor.experts.samples import Samples

MODEL_FILE: Final = "model.txt"


class GbmSettings(Settings):
    """How the trees are grown."""

    rounds: int = Field(200, ge=1, le=5_000, description="Trees.")
    leaves: int = Field(63, ge=2, le=4_096, description="Leaves of a tree.")
    rate: float = Field(0.06, gt=0, le=1, description="Learning rate.")
    least_samples: int = Field(50, ge=1, description="Samples in a leaf, at least.")
    l2: float = Field(0, ge=0, description="Penalty on leaves' values.")
    samples: int = Field(1_000_000, ge=1_000, description="Samples to learn from, at most.")


#: How the trees are grown that follow the fleet's own past.
OWN = GbmSettings(rounds=150, leaves=31, rate=0.04, least_samples=20, l2=5)


class _Saved(Settings):
    """What `config.json` says."""

    features: tuple[str, ...]
    trained: bool = True


class GbmExpert:
    """Grown trees behind the experts' face.

    Attributes:
        trained: trees of the training set; None: there was none.
        own: trees grown on the fleet's own past, beside the trained ones; never saved.
    """

    name = "gbm"

    def __init__(self, trained: lightgbm.Booster | None, own: lightgbm.Booster | None = None) -> None:
        self.trained = trained
        self.own = own

    @classmethod
    def new(cls) -> GbmExpert:
        """One that knows nothing yet."""
        return cls(None)

    def predict(self, context: Context, horizon: int, levels: tuple[float, ...]) -> Prediction:
        """Forecasts; shapes as in `Expert.predict`; NaN while it knows nothing."""
        features = context.statistics.features(horizon)
        active = self.activity(features.reshape(-1, len(FEATURES))).reshape(features.shape[:2])
        positive, grid = context.statistics.positive_quantiles()
        quantiles = hurdle_quantiles(np.nan_to_num(active), positive, grid, levels)
        return Prediction(np.where(np.isnan(active)[..., None], np.nan, quantiles).astype(np.float32), active)

    def activity(self, features: FloatArray) -> FloatArray:
        """Probability of activity, as `Refittable.activity`."""
        trees = [booster for booster in (self.trained, self.own) if booster is not None]
        if not trees or not len(features):
            return np.full(len(features), np.nan, np.float32)
        odds = sum(_odds(booster, features) for booster in trees)
        return np.clip(1 / (1 + np.exp(-odds)), 0.0005, 0.9995).astype(np.float32)

    def refitted(self, lessons: Samples, seed: int) -> GbmExpert:
        """The trained trees and new ones that correct them, as `Refittable.refitted`."""
        start = None if self.trained is None else _odds(self.trained, lessons.features)
        data = lightgbm.Dataset(
            lessons.features, (lessons.counts > 0).astype(np.float32), weight=lessons.weights, init_score=start
        )
        return GbmExpert(self.trained, lightgbm.train(_parameters(OWN, seed), data, OWN.rounds))

    def save(self, directory: Path) -> None:
        """Writes `model.txt`, where anything was trained, and `config.json`; raises `InputError` when that is not possible."""
        temporary = directory / f"{MODEL_FILE}.tmp"
        try:
            if self.trained is not None:
                temporary.write_text(self.trained.model_to_string(), encoding="utf-8")
                temporary.replace(directory / MODEL_FILE)
        except OSError as error:
            raise InputError(f"{directory}: the expert {self.name} cannot be written: {error}") from error
        features = FEATURES if self.trained is None else FEATURES[: self.trained.num_feature()]
        write_expert(directory, self.name, _Saved(features=features, trained=self.trained is not None))


def fit(data: TrainingSet, settings: GbmSettings, training: Training) -> GbmExpert:
    """Grows the trees on one thread: the same seed gives the same ones.

    Raises:
        InputError: none of the functions was ever invoked.
    """
    samples = draw_samples(
        data.counts, data.start_step, data.max_horizon, training.seed, settings.samples, data.keys, data.triggers
    )
    active = samples.counts > 0
    if not active.any():
        raise InputError("gbm: none of the functions to learn from was ever invoked")

    def told(state: lightgbm.callback.CallbackEnv) -> None:
        training.progress((state.iteration + 1) / settings.rounds)

    lessons = lightgbm.Dataset(samples.features, active.astype(np.float32), weight=samples.weights)
    return GbmExpert(lightgbm.train(_parameters(settings, training.seed), lessons, settings.rounds, callbacks=[told]))


def _odds(booster: lightgbm.Booster, features: FloatArray) -> FloatArray:
    """Log odds of activity by the first features, as many as there were when the trees were grown, (N, D) -> (N,)."""
    return np.asarray(booster.predict(features[:, : booster.num_feature()], raw_score=True, num_threads=1))


def _parameters(settings: GbmSettings, seed: int) -> dict[str, Any]:
    return {
        "objective": "binary",
        "num_leaves": settings.leaves,
        "learning_rate": settings.rate,
        "min_data_in_leaf": settings.least_samples,
        "lambda_l2": settings.l2,
        "feature_fraction": 0.7,
        "bagging_fraction": 0.8,
        "bagging_freq": 1,
        "seed": seed,
        "deterministic": True,
        "force_row_wise": True,
        "num_threads": 1,
        "verbose": -1,
    }


def load(directory: Path) -> GbmExpert:
    """Reads what `save` wrote.

    Raises:
        InputError: a file is missing or damaged, or the trees were grown on other features.
    """
    saved = read_settings(directory, GbmExpert.name, _Saved)
    if saved.features != FEATURES[: len(saved.features)]:
        raise InputError(f"{directory}: features are others than this version computes: train the model anew")
    if not saved.trained:
        return GbmExpert.new()
    path = directory / MODEL_FILE
    try:
        booster = lightgbm.Booster(model_str=path.read_text(encoding="utf-8"))
    except (OSError, ValueError, lightgbm.basic.LightGBMError) as error:
        raise InputError(f"{path}: not readable as LightGBM's trees: {' '.join(str(error).split())}") from error
    if booster.num_feature() != len(saved.features):
        raise InputError(f"{path}: trees read {booster.num_feature()} features, must be {len(saved.features)}")
    return GbmExpert(booster)


#: The family of experts.
GBM = Family(
    name=GbmExpert.name,
    settings=GbmSettings,
    smoke=GbmSettings(rounds=5, leaves=7, samples=10_000),
    fit=fit,
    load=load,
)
