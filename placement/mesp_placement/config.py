"""What an operator may set for the decision; every value has a default that is meant to be left alone."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

#: What one avoided cold start is worth in idle memory when nobody says otherwise.
DEFAULT_PRICE_GB_S = 80.5


class PlacementConfig(BaseModel):
    """Settings of the planner and its service; `price_gb_s` is the price that decides.

    A price of a cold start or a memory budget steers the decision, never both: the price follows from a budget.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    cold_start_price_gb_s: Annotated[
        float | None,
        Field(ge=0, le=1e6, description="Worth of one avoided cold start, GB·s; null: 80.5, or the budget's."),
    ] = None
    memory_budget_mb: Annotated[
        float | None, Field(ge=0, description="Expected idle memory to hold, MB; the price follows. Excludes a price.")
    ] = None
    tick_s: Annotated[float, Field(gt=0, le=3600, description="Time to the next decision, s.")] = 10.0
    release: Annotated[
        Literal["own", "any"], Field(description="own: only containers MESP ordered are released; any: every idle one.")
    ] = "own"
    placement: Annotated[
        Literal["pack", "spread"], Field(description="pack fills nodes one after another; spread evens them out.")
    ] = "pack"
    stale_after_s: Annotated[
        float, Field(gt=0, description="Older forecasts count as none, and what MESP holds is released, s.")
    ] = 180.0
    headroom_share: Annotated[
        float, Field(ge=0, lt=1, description="Share of each node's memory that prewarms leave to the platform.")
    ] = 0.1
    min_containers: Annotated[
        int, Field(ge=0, description="Containers of every enabled function while forecasts are fresh.")
    ] = 0
    max_containers: Annotated[
        int | None, Field(ge=0, description="Containers of a function that MESP brings it to at most; null: no bound.")
    ] = None
    max_prewarms_per_min: Annotated[
        int, Field(ge=0, le=100_000, description="Prewarms in any 60 s, all functions together.")
    ] = 600
    max_prewarms_per_function_per_min: Annotated[
        int, Field(ge=0, le=100_000, description="Prewarms in any 60 s of one function.")
    ] = 60
    max_own_idle_memory_mb: Annotated[
        float | None, Field(ge=0, description="Hard ceiling on the memory of MESP's containers that run nothing, MB.")
    ] = None
    release_delay_s: Annotated[
        float, Field(ge=0, description="A function has more containers than wanted for this long before a release, s.")
    ] = 20.0

    @model_validator(mode="after")
    def _consistent(self) -> PlacementConfig:
        if self.cold_start_price_gb_s is not None and self.memory_budget_mb is not None:
            raise ValueError(
                f"cold_start_price_gb_s = {self.cold_start_price_gb_s:g} and memory_budget_mb = "
                f"{self.memory_budget_mb:g}, only one of them may be set: the price follows from a budget"
            )
        if self.max_containers is not None and self.max_containers < self.min_containers:
            raise ValueError(
                f"max_containers = {self.max_containers}, must be at least min_containers = {self.min_containers}"
            )
        return self

    @property
    def price_gb_s(self) -> float | None:
        """The price that decides; None when it follows from the memory budget."""
        if self.memory_budget_mb is not None:
            return None
        return DEFAULT_PRICE_GB_S if self.cold_start_price_gb_s is None else self.cold_start_price_gb_s
