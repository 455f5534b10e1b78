"""A small fleet to plan for, built by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np
import pytest

from mesp.types import Forecasts, ForecastStatus, FunctionKey

if TYPE_CHECKING:
    from collections.abc import Mapping


class MakeForecasts(Protocol):
    """See `forecasts_of`."""

    def __call__(
        self,
        active: Mapping[str, float],
        *,
        as_of_ms: int = 0,
        counts: Mapping[str, float] | None = None,
        status: ForecastStatus = ForecastStatus.OK,
    ) -> Forecasts: ...


@pytest.fixture
def forecasts_of() -> MakeForecasts:
    """Forecasts of functions in scope "s", alike in three steps of 60 s: P(active) and, of those in it, a count."""

    def make(
        active: Mapping[str, float],
        *,
        as_of_ms: int = 0,
        counts: Mapping[str, float] | None = None,
        status: ForecastStatus = ForecastStatus.OK,
    ) -> Forecasts:
        n = len(active)
        count = np.array([(counts or {}).get(name, 0.0) for name in active], np.float32)
        return Forecasts(
            tick_id=1,
            as_of_ms=as_of_ms,
            step_ms=60_000,
            levels=(0.1, 0.5, 0.9),
            functions=tuple(FunctionKey("s", name) for name in active),
            status=(status,) * n,
            quantiles=np.broadcast_to(count[:, None, None], (n, 3, 3)).copy(),
            active=np.repeat(np.array(list(active.values()), np.float32)[:, None], 3, axis=1),
            experts=("x",),
            weights=np.ones((n, 1), np.float32),
            age_ms=np.zeros(n, np.int64),
            model_version="1",
        )

    return make
