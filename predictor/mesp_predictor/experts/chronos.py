"""Chronos-Bolt and Chronos-2 on the library chronos-forecasting: small ones from nothing, published ones from their directory.

Bolt (Ansari et al., "Chronos: Learning the Language of Time Series", TMLR 2024, and its Bolt release) is a T5 whose encoder
reads patches and whose decoder's one token gives all quantiles of all steps. Chronos-2 (Ansari et al., "Chronos-2: From
Univariate to Universal Forecasting", 2025) is an encoder only, which may attend from row to row of a batch; here every
row is a group of its own and sees nobody.

A small network differs from the published ones in two ways, both in how a window is normalised (`_Norm`). Its scale never
falls below `SCALE_FLOOR`: after a window of zeros one invocation would else lie 1e5 deviations out. And values are squashed
by arcsinh, which Bolt's published weights do without. Published weights are normalised as they were trained, read the last
`PUBLISHED_CONTEXT` steps, and give `PUBLISHED_HORIZON` of them at once.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar, Final

from chronos.chronos2 import Chronos2Model  # type: ignore[import-untyped]
from chronos.chronos2.config import Chronos2CoreConfig  # type: ignore[import-untyped]
from chronos.chronos_bolt import ChronosBoltModelForForecasting, InstanceNorm  # type: ignore[import-untyped]
from pydantic import Field
from transformers import PretrainedConfig, PreTrainedModel, T5Config

from mesp.errors import InputError
from mesp_predictor.experts.sequence import (
    SequenceNetwork,
    SequenceSettings,
    load_weights,
    read_config,
    sequence_family,
)

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

#: Quantile levels of small networks: sparse series have their news at the top.
LEVELS: Final = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99)

#: Steps in one patch.
PATCH: Final = 16

#: Least deviation, in invocations, that a small network takes a window to have; published weights keep the library's.
SCALE_FLOOR: Final = 0.2
LIBRARY_FLOOR: Final = 1e-5

#: Steps that published weights are shown and asked for at most; they could do more, at a cost.
PUBLISHED_CONTEXT: Final = 512
PUBLISHED_HORIZON: Final = 64

#: Largest squashed value that is turned back into counts: its sinh, times the largest scale, is a finite float32.
_SQUASHED: Final = 40.0


class _Norm(InstanceNorm):  # type: ignore[misc]
    """(x - mean) / deviation of a window, or the arcsinh of it, with a floor under the deviation."""

    def __init__(self, floor: float, *, squash: bool) -> None:
        super().__init__(use_arcsinh=squash)
        self.floor = floor

    def forward(
        self, x: Tensor, loc_scale: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        if loc_scale is None:
            _, (loc, scale) = super().forward(x)
            loc_scale = loc, scale.clamp(min=self.floor)
        normalised: tuple[Tensor, tuple[Tensor, Tensor]] = super().forward(x, loc_scale)
        return normalised

    def inverse(self, x: Tensor, loc_scale: tuple[Tensor, Tensor], *args: Any) -> Tensor:
        restored: Tensor = super().inverse(x.clamp(-_SQUASHED, _SQUASHED) if self.use_arcsinh else x, loc_scale, *args)
        return restored


class _ChronosNetwork(SequenceNetwork):
    """A model of the library behind the face of sequence networks."""

    config_class: ClassVar[type[PretrainedConfig]]
    model_class: ClassVar[type[PreTrainedModel]]

    def __init__(self, config: PretrainedConfig, context: int, horizon: int, floor: float, *, squash: bool) -> None:
        """A new model; `context` and `horizon` at most what its configuration allows."""
        super().__init__()
        self.model: Any = self.model_class(config)
        self.model.instance_norm = _Norm(floor, squash=squash)
        self.levels = tuple(config.chronos_config["quantiles"])
        self.context = context
        self.horizon = horizon

    def config(self) -> dict[str, Any]:
        """The library's own configuration, and what we set beside it."""
        norm = self.model.instance_norm
        model = self.model.config.to_diff_dict()
        return {"model": model, "horizon": self.horizon, "scale_floor": norm.floor, "squash": norm.use_arcsinh}

    @classmethod
    def rebuild(cls, config: dict[str, Any], context: int) -> _ChronosNetwork:
        """The network that `config` described, with other weights."""
        model = cls.config_class(**config["model"])
        return cls(model, context, config["horizon"], config["scale_floor"], squash=config["squash"])

    @classmethod
    def published(cls, directory: Path) -> _ChronosNetwork:
        """The network in a directory as published: `config.json` with `chronos_config`, `model.safetensors`.

        Raises:
            InputError: the directory holds another model, or keys are missing or do not fit.
        """
        path, keys = directory / "config.json", read_config(directory)
        if (wanted := cls.model_class.__name__) not in (keys.get("architectures") or ()):
            raise InputError(f"{path}: architectures = {keys.get('architectures')}, must hold {wanted!r}")
        try:
            squash = bool(keys["chronos_config"].get("use_arcsinh", False))
            context = min(keys["chronos_config"]["context_length"], PUBLISHED_CONTEXT)
            horizon = min(cls.reach(keys["chronos_config"]), PUBLISHED_HORIZON)
            network = cls(cls.config_class(**keys), context, horizon, LIBRARY_FLOOR, squash=squash)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path}: does not describe a {wanted}: {error!r}") from error
        load_weights(network.model, directory / "model.safetensors")
        return network

    @staticmethod
    def reach(chronos_config: dict[str, Any]) -> int:
        """Steps that the model forecasts in one pass at most."""
        raise NotImplementedError


class BoltNetwork(_ChronosNetwork):
    """Chronos-Bolt: counts (B, C) to quantiles (B, H, Q) in one pass."""

    kind = "chronos_bolt"
    config_class = T5Config
    model_class = ChronosBoltModelForForecasting

    def forecast(self, counts: Tensor, horizon: int) -> Tensor:
        """See `SequenceNetwork.forecast`."""
        quantiles: Tensor = self.model(context=counts).quantile_preds
        return quantiles[..., :horizon].transpose(1, 2)

    @staticmethod
    def reach(chronos_config: dict[str, Any]) -> int:
        """The one token's prediction length."""
        return int(chronos_config["prediction_length"])


class Chronos2Network(_ChronosNetwork):
    """Chronos-2: counts (B, C) to quantiles (B, H, Q), every row a group of its own.

    The patches to be forecast see each other, so all are always asked for: a short forecast is the start of a long one.
    """

    kind = "chronos_2"
    config_class = Chronos2CoreConfig
    model_class = Chronos2Model
    rows = 64  # attention between rows costs their square, though all but one are masked

    def forecast(self, counts: Tensor, horizon: int) -> Tensor:
        """See `SequenceNetwork.forecast`."""
        patches = math.ceil(self.horizon / self.model.chronos_config.output_patch_size)
        quantiles: Tensor = self.model(context=counts, num_output_patches=patches).quantile_preds
        return quantiles[..., :horizon].transpose(1, 2)

    @staticmethod
    def reach(chronos_config: dict[str, Any]) -> int:
        """All patches that may be asked for."""
        return int(chronos_config["max_output_patches"] * chronos_config["output_patch_size"])


class ChronosSettings(SequenceSettings):
    """Settings of a training; those of the network's shape are for a new one only."""

    horizon: int = Field(60, ge=1, le=240, description="Steps that it forecasts.")
    width: int = Field(64, ge=8, description="Width of a token.")
    heads: int = Field(4, ge=1)
    layers: int = Field(2, ge=1, description="Layers; Bolt has as many again in its decoder.")
    feed_forward: int = Field(128, ge=8)

    def shape(self) -> dict[str, Any]:
        """What both families' configurations have in common; weights start small or Bolt does not learn."""
        return {
            "d_model": self.width,
            "d_kv": max(self.width // self.heads, 2) // 2 * 2,  # Chronos-2 turns features in pairs
            "d_ff": self.feed_forward,
            "num_layers": self.layers,
            "num_heads": self.heads,
            "dropout_rate": 0.0,
            "initializer_factor": 0.05,
            "feed_forward_proj": "relu",
        }

    def chronos(self) -> dict[str, Any]:
        """The same of `chronos_config`."""
        return {
            "context_length": self.context,
            "input_patch_size": PATCH,
            "input_patch_stride": PATCH,
            "quantiles": list(LEVELS),
            "use_reg_token": True,
        }


def _small_bolt(settings: ChronosSettings) -> BoltNetwork:
    own: dict[str, Any] = {
        "num_decoder_layers": settings.layers,
        "pad_token_id": 0,
        "decoder_start_token_id": 0,
        "chronos_config": {**settings.chronos(), "prediction_length": settings.horizon},
    }
    config = T5Config(**settings.shape(), **own)
    return BoltNetwork(config, settings.context, settings.horizon, SCALE_FLOOR, squash=True)


def _small_chronos_2(settings: ChronosSettings) -> Chronos2Network:
    own: dict[str, Any] = {
        "output_patch_size": PATCH,
        "max_output_patches": math.ceil(settings.horizon / PATCH),
        "use_arcsinh": True,
    }
    config = Chronos2CoreConfig(**settings.shape(), chronos_config={**settings.chronos(), **own})
    return Chronos2Network(config, settings.context, settings.horizon, SCALE_FLOOR, squash=True)


_SMOKE: Final = ChronosSettings(context=128, steps=30, batch=16, width=16, heads=2, layers=1, feed_forward=32)

CHRONOS_BOLT = sequence_family(_SMOKE, BoltNetwork, _small_bolt, BoltNetwork.rebuild, BoltNetwork.published)
CHRONOS_2 = sequence_family(
    _SMOKE, Chronos2Network, _small_chronos_2, Chronos2Network.rebuild, Chronos2Network.published
)
