"""The router goes on learning while it serves: small gradient steps on what just happened, held near the trained gate.

Each step's gate inputs and expert forecasts wait until the step closes; then the gate takes a few gradient
steps (Adam) on the log loss of the mixture, on that step and on a sample of the remembered past. A pull towards
the trained weights keeps the drift bounded, and `reset` undoes it. What weighs the quantiles follows by the losses that
it reads, and is not trained on. Seeded by the step's index: the same counts in the same order give the same gate.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional

from mesp_predictor.router import Gate, Router, gate_inputs, logit

if TYPE_CHECKING:
    from mesp.types import BoolArray, FloatArray

#: Rows of the past that are remembered, and how many of the present and of the past one step looks at.
MEMORY_ROWS = 100_000
PRESENT_ROWS = 512
PAST_ROWS = 512
#: Gradient steps per closed step.
UPDATES = 2
RATE = 5e-4
#: Strength of the pull towards the trained weights.
PULL = 1e-3


class LearningRouter:
    """A router whose gate follows the fleet; without a trained gate it is Hedge, which follows by itself."""

    def __init__(self, router: Router) -> None:
        self._start = router
        self._trained = router.gate
        self._waiting: tuple[FloatArray, FloatArray] | None = None
        self.reset()

    def reset(self) -> None:
        """Back to the trained gate; what was learned is forgotten."""
        self.router = replace(self._start, gate=copy.deepcopy(self._trained))
        if self._trained is None or self.router.gate is None:
            return
        self._anchor = [p.detach().clone() for p in self._trained.learning()]
        self._optimizer = torch.optim.Adam(self.router.gate.learning(), RATE)
        self._inputs = torch.zeros((0, len(self._trained.mean)))
        self._odds = torch.zeros((0, self.router.gate.experts))
        self._active = torch.zeros(0)

    def expect(self, features: FloatArray, forecast: FloatArray, losses: FloatArray, distances: FloatArray) -> None:
        """What was forecast of the step that closes next, all functions; arguments as in `gate_inputs`."""
        if self.router.gate is not None:
            self._waiting = gate_inputs(features, forecast, losses, distances), logit(forecast)

    def learn(self, step: int, active: BoolArray, known: BoolArray) -> None:
        """What came of it, (F,); functions that came up since are not scored."""
        gate, waiting = self.router.gate, self._waiting
        self._waiting = None
        if gate is None or waiting is None or not known.any():
            return
        rng = np.random.default_rng(step)
        usable = np.flatnonzero(known[: len(waiting[0])] & np.isfinite(waiting[0]).all(axis=1))
        rows = rng.permutation(usable)[: MEMORY_ROWS // 100]
        present = [
            torch.from_numpy(waiting[0][rows]),
            torch.from_numpy(waiting[1][rows]),
            torch.from_numpy(active[rows]).float(),
        ]
        for _ in range(UPDATES if len(rows) else 0):
            self._update(gate, rng, present)
        self._inputs = torch.cat([self._inputs, present[0]])[-MEMORY_ROWS:]
        self._odds = torch.cat([self._odds, present[1]])[-MEMORY_ROWS:]
        self._active = torch.cat([self._active, present[2]])[-MEMORY_ROWS:]

    def _update(self, gate: Gate, rng: np.random.Generator, present: list[torch.Tensor]) -> None:
        past = torch.from_numpy(rng.integers(0, max(len(self._active), 1), PAST_ROWS if len(self._active) else 0))
        inputs, odds, active = (
            torch.cat([now[:PRESENT_ROWS], before[past]])
            for now, before in zip(present, (self._inputs, self._odds, self._active), strict=True)
        )
        pooled = (gate(inputs)[0].exp() * odds).sum(dim=1)
        loss = functional.binary_cross_entropy_with_logits(pooled, active)
        drift = sum(((p - a) ** 2).sum() for p, a in zip(gate.learning(), self._anchor, strict=True))
        self._optimizer.zero_grad()
        (loss + PULL * drift).backward()
        self._optimizer.step()
