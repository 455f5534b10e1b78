"""What an operator may set for the loop; the decision's own settings are nested under `placement`."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from mesp_placement.config import PlacementConfig


class LoopConfig(BaseModel):
    """Settings of the loop.

    The time between ticks and the age at which a forecast is too old to act on are the decision's as well, so they
    are said once: ``placement.tick_s`` and ``placement.stale_after_s``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    predictor_address: Annotated[str, Field(min_length=1)] = Field(
        default="127.0.0.1:50151", description="host:port of the predictor sidecar."
    )
    horizon: Annotated[int, Field(ge=0)] = Field(default=0, description="Steps to forecast; 0: the model's default.")
    metrics_port: Annotated[int, Field(ge=0, le=65_535)] | None = Field(
        default=None, description="Loopback port of the Prometheus page; 0 takes a free one; none: no page."
    )
    placement: PlacementConfig = Field(
        default_factory=PlacementConfig, description="The decision: price or budget, bounds, tick_s, stale_after_s."
    )

    @property
    def tick_ms(self) -> int:
        """Time from one tick to the next, ms."""
        return max(1, round(self.placement.tick_s * 1e3))

    @property
    def stale_after_ms(self) -> int:
        """Age of a forecast from which on it is not acted on, ms."""
        return round(self.placement.stale_after_s * 1e3)
