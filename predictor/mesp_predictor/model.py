"""The model: what a checkpoint holds, and how its router may be used."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from mesp.errors import InputError
from mesp_predictor.router import Router

if TYPE_CHECKING:
    from mesp.types import FloatArray
    from mesp_predictor.experts.base import Expert

RoutingMode = Literal["gate", "hedge", "hard"]


@dataclass(frozen=True, slots=True)
class Model:
    """What a checkpoint holds: trained once, never changed while it serves.

    Attributes:
        centroids: the clusters' shapes, (K, B).
        bin_steps: steps in one bin of a shape; a shape covers B * bin_steps steps.
        selected: index of the best expert of each cluster, (K + 1,), last that of functions without one; empty: unknown.
    """

    version: str
    step_ms: int
    default_horizon: int
    max_horizon: int
    levels: tuple[float, ...]
    experts: tuple[Expert, ...]
    router: Router
    centroids: FloatArray
    bin_steps: int
    selected: tuple[int, ...] = ()

    @property
    def context_length(self) -> int:
        """Steps of history that the model reads: the length of a shape."""
        return int(self.centroids.shape[1]) * self.bin_steps


def routed(model: Model, mode: RoutingMode) -> Router:
    """The model's router in that mode.

    Raises:
        InputError: hard assignment of a model that knows no cluster's best expert.
    """
    if mode == "gate":
        return model.router
    if mode == "hedge":
        return Router()
    if not model.selected:
        raise InputError("routing = 'hard': the model knows no cluster's best expert, must be 'gate' or 'hedge'")
    return Router(selected=model.selected)
