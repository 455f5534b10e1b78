"""The one training loop of all networks: AdamW on a one-cycle rate, the best state kept, resumed after a kill.

The loss draws its own batch from the generator that it is given, so that the generator's state, the network's and the
optimiser's are all there is to remember. They are written every so often under a temporary name and renamed: whenever
the process dies, the next one goes on from the last whole state and ends with the same weights. Beside the best state,
which is the result, the last one stays in `train_state.pt`, and `exams.json` lists what held-out loss was when.
"""

from __future__ import annotations

import copy
import json
import logging
import math
import pickle
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import nn

from mesp.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from mesp_predictor.experts.base import Training

_log = logging.getLogger(__name__)

Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True, slots=True)
class Budget:
    """How long and how fast a network learns.

    Attributes:
        steps: training steps.
        rate: largest learning rate.
        weight_decay: of AdamW.
        exams: how often, over the whole training, held-out loss is taken; the best state then is the one kept.
    """

    steps: int
    rate: float
    weight_decay: float = 1e-3
    exams: int = 10


def fit_network(
    network: Network,
    loss: Callable[[Network, np.random.Generator], torch.Tensor],
    exam: Callable[[Network], float],
    budget: Budget,
    training: Training,
) -> Network:
    """Trains a network in place and returns it, in eval mode and on the CPU, in the state that did best in its exams.

    Args:
        network: with its initial weights, which the caller seeds.
        loss: of one batch, drawn from the generator, on the device of the network's parameters.
        exam: held-out loss of the network in eval mode, without gradients; it must draw nothing at random.
        budget: steps, rate, exams.
        training: seed, progress, device, and where the state survives.
    """
    network.to(training.device)
    rng = np.random.default_rng(training.seed)
    optimizer = torch.optim.AdamW(network.parameters(), lr=budget.rate, weight_decay=budget.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, budget.rate, total_steps=budget.steps + 1, pct_start=0.15)
    every = math.ceil(budget.steps / budget.exams)
    path = None if training.state is None else training.state / "train_state.pt"
    kept = _read(path) if path else None
    with torch.random.fork_rng(devices=_devices(training)):
        torch.manual_seed(training.seed)
        if kept is None:
            first, exams = 1, [(0, _examined(network, exam))]
            best_state = copy.deepcopy(network.state_dict())
        else:
            first, exams, best_state = kept["step"] + 1, kept["exams"], kept["best_state"]
            network.load_state_dict(kept["network"])
            optimizer.load_state_dict(kept["optimizer"])
            schedule.load_state_dict(kept["schedule"])
            _set_random_state(kept["torch_rng"], training)
            rng.bit_generator.state = json.loads(kept["rng"])
        for step in range(first, budget.steps + 1):
            network.train()
            optimizer.zero_grad()
            loss(network, rng).backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            if step % every == 0 or step == budget.steps:
                score = _examined(network, exam)
                if score < min(score for _, score in exams):
                    best_state = copy.deepcopy(network.state_dict())
                exams.append((step, score))
            if path and (step % training.save_every == 0 or step == budget.steps):
                state = {
                    "step": step,
                    "exams": exams,
                    "best_state": best_state,
                    "network": network.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "schedule": schedule.state_dict(),
                    "torch_rng": _random_state(training),
                    "rng": json.dumps(rng.bit_generator.state),
                }
                _write(path, state)
            training.progress(step / budget.steps)
    if path:
        path.with_name("exams.json").write_text(json.dumps(exams) + "\n")
    network.load_state_dict(best_state)
    return network.to("cpu").eval()


def _devices(training: Training) -> list[torch.device]:
    """The accelerators whose random state is torch's own business during a training."""
    return [] if training.device == "cpu" else [torch.device(training.device)]


def _random_state(training: Training) -> list[torch.Tensor]:
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state(device) for device in _devices(training))]


def _set_random_state(state: list[torch.Tensor], training: Training) -> None:
    torch.set_rng_state(state[0])
    for device, its in zip(_devices(training), state[1:], strict=False):
        torch.cuda.set_rng_state(its, device)


def _examined(network: Network, exam: Callable[[Network], float]) -> float:
    network.eval()
    with torch.inference_mode():
        return exam(network)


def _write(path: Path, state: dict[str, Any]) -> None:
    temporary = path.with_suffix(".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:  # given a path, torch turns a full disk into a riddle
            torch.save(state, file)
        temporary.replace(path)
    except OSError as error:
        raise InputError(f"{path}: the training's state cannot be written ({error.strerror or error})") from error


def _read(path: Path) -> dict[str, Any] | None:
    """The last whole state; None where there is none. One that cannot be read is none either: the training starts over."""
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        return None
    except (OSError, RuntimeError, ValueError, pickle.UnpicklingError) as error:
        _log.warning("%s: cannot be read (%s): this training starts over", path, error)
        return None
    return state
