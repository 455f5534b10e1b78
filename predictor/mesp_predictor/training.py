"""Training: a trace's counts in; clusters, experts, the best of each cluster, and the router that mixes them, out.

What is done is a list of jobs (`pipeline`), each of which leaves its result in the run directory (`jobs`). Without a run
directory of the caller's the same list runs in this process in a temporary one.
"""

from __future__ import annotations

import json
import tempfile
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from mesp.config import first_mistake
from mesp.errors import InputError
from mesp.types import DEFAULT_LEVELS, DEFAULT_STEP_MS, FunctionKey, Trigger
from mesp_predictor import pipeline
from mesp_predictor import router as routing
from mesp_predictor.experts import registry
from mesp_predictor.experts.context_mixing import ContextMixingExpert
from mesp_predictor.experts.gbm import GbmExpert
from mesp_predictor.experts.light import HazardExpert, IntermittentExpert, SeasonalExpert
from mesp_predictor.jobs import Job, inline, run_jobs
from mesp_predictor.kernels import LONGEST_GAP
from mesp_predictor.model import Model
from mesp_predictor.threads import torch_threads

if TYPE_CHECKING:
    from collections.abc import Callable

    from mesp.types import FloatArray
    from mesp_predictor.experts.base import IntArray
    from mesp_predictor.jobs import Engine

    Progress = Callable[[str, float], None]

#: Families that are trained when nobody says; those of foundation models are asked for by name.
DEFAULT_EXPERTS = (
    "seasonal",
    "seasonal_empirical",
    "intermittent",
    "moving_window",
    "context_mixing",
    "hazard",
    "linear",
    "fft",
    "gbm",
    "neural_hazard",
    "patchtst",
)
#: Functions of a smoke run.
SMOKE_FUNCTIONS = 40


class TrainingConfig(BaseModel):
    """How a model is trained; the defaults are those of the shipped command."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seed: int = Field(0, ge=0)
    clusters: int = Field(8, ge=2, le=64, description="Clusters of similar functions; fewer where shapes are fewer.")
    kshape: Literal["auto", "tslearn", "batched"] = Field("auto", description="Engine of K-Shape; see `shapes.kshape`.")
    bin_steps: int = Field(10, ge=1, description="Steps in one bin of a shape.")
    day_steps: int = Field(1440, ge=60, description="Steps in one day, the unit of clustering.")
    default_horizon: int = Field(15, ge=1, le=60)
    max_horizon: int = Field(60, ge=15, le=240)
    experts: dict[str, dict[str, Any]] = Field(
        {name: {} for name in DEFAULT_EXPERTS},
        description="Families of experts and what differs from their settings' defaults. `pretrained: DIR` takes "
        "published weights as they are, with `tune: true` trained on on this data.",
    )
    tune: bool = Field(True, description="Fine-tune experts for each cluster; kept where that is better beyond doubt.")
    router_share: float = Field(0.25, gt=0, lt=1, description="Share of functions kept for the router.")
    router_functions: int = Field(300, ge=1, description="Functions replayed for the router, at most.")
    router_steps: int = Field(2880, ge=60, description="Steps replayed for the router, at most: the trace's last.")
    router_every: int = Field(5, ge=1, description="Steps between two of the router's samples.")
    router_epochs: int = Field(12, ge=1)
    workers: int | None = Field(None, ge=1, description="Processes; one per core where nothing is said.")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="Of networks; auto: cuda where there is one.")
    save_every: int = Field(200, ge=1, description="Training steps of a network between two of its states on disk.")

    @model_validator(mode="after")
    def _is_consistent(self) -> TrainingConfig:
        if self.default_horizon > self.max_horizon:
            raise ValueError(
                f"default_horizon = {self.default_horizon} must be at most max_horizon = {self.max_horizon}"
            )
        if self.day_steps % self.bin_steps:
            raise ValueError(f"day_steps = {self.day_steps} must be a multiple of bin_steps = {self.bin_steps}")
        if not self.experts:
            raise ValueError(f"experts is empty, must name at least one of {', '.join(registry.names())}")
        for name in self.experts:
            if name not in registry.names():
                raise ValueError(f"unknown key experts.{name}, allowed are {', '.join(registry.names())}")
        return self

    def plans(self) -> tuple[pipeline.Plan, ...]:
        """How each expert comes about, in the registry's order; the libraries of its family are loaded.

        Raises:
            InputError: a family's settings are not allowed, or it is not installed; names key, value and what is.
        """
        return tuple(self._plan(name, dict(self.experts[name])) for name in registry.names() if name in self.experts)

    def resolved(self) -> dict[str, Any]:
        """All settings that decide the result, as JSON holds them: those of the families with their defaults, a device."""
        experts = {
            plan.name: {
                **plan.settings.model_dump(mode="json"),
                **({"pretrained": str(plan.pretrained), "tune": plan.adapt} if plan.pretrained else {}),
            }
            for plan in self.plans()
        }
        plain = self.model_dump(mode="json", exclude={"workers"})
        return {**plain, "experts": experts, "device": pipeline.chosen_device(self)}

    def smoke(self) -> TrainingConfig:
        """The same families with budgets of seconds."""
        kept = ("pretrained", "tune")
        experts = {
            name: {**registry.family(name).smoke.model_dump(), **{key: said[key] for key in kept if key in said}}
            for name, said in self.experts.items()
        }
        budget = {"clusters": 2, "kshape": "batched", "router_functions": 8, "router_steps": 120, "router_epochs": 2}
        return self.model_copy(update={**budget, "experts": experts})

    def _plan(self, name: str, said: dict[str, Any]) -> pipeline.Plan:
        kind = registry.family(name)
        where = said.pop("pretrained", None)
        adapt = said.pop("tune", False) if where is not None else False
        if where is not None and not (isinstance(where, str) and Path(where).is_dir()):
            raise InputError(f"experts.{name}.pretrained = {where!r}, must be the directory of an expert's files")
        if not isinstance(adapt, bool):
            raise InputError(f"experts.{name}.tune = {adapt!r}, must be true or false")
        if adapt and kind.tune is None:
            raise InputError(f"experts.{name}.tune = true, must be false: this family is not trained on")
        try:
            settings = kind.settings.model_validate(said)
        except ValidationError as error:
            raise InputError(first_mistake(error, kind.settings, f"experts.{name}")) from error
        zero_shot = where is not None and not adapt
        tune = self.tune and kind.tune is not None and not zero_shot
        return pipeline.Plan(name, settings, Path(where).absolute() if where else None, adapt, tune)


#: A model in a few minutes on one core, for a first look: no networks.
QUICK = TrainingConfig(
    kshape="batched",  # tslearn compiles its loops anew in every process
    experts={
        **{name: {} for name in ("seasonal", "intermittent", "moving_window", "context_mixing", "hazard")},
        "gbm": {"rounds": 100, "samples": 300_000},
    },
    tune=False,
    router_functions=80,
    router_every=4,
)


@dataclass(frozen=True, slots=True)
class Trained:
    """A model and how its parts did on the held-out functions.

    Attributes:
        log_loss: of activity in the next step, second half of the replay, by expert and for the `mixture`, whose gate
            has learned from these very samples: its number flatters.
        table: every expert in every cluster, as `selection.Selection.table`.
        cluster_sizes: function-days in each cluster.
        routed_away: function-days without a shape, by reason.
    """

    model: Model
    log_loss: dict[str, float]
    table: dict[str, Any]
    cluster_sizes: tuple[int, ...]
    routed_away: dict[str, int]


def train(
    counts: FloatArray,
    start_step: int,
    config: TrainingConfig,
    progress: Progress,
    *,
    keys: tuple[FunctionKey, ...] | None = None,
    triggers: tuple[Trigger, ...] | None = None,
    run: Path | None = None,
    engine: Engine | None = None,
) -> Trained:
    """Trains a model.

    Args:
        counts: invocations per step, (N, M), NaN where missing; at least one day and 16 functions.
        start_step: absolute index of the first column's step, for the clock's phase.
        config: sizes, budgets and the seed.
        progress: told names of jobs and their share done.
        keys: the functions' names; None: all of different owners.
        triggers: what invokes them; None: nobody knows.
        run: directory that keeps what is done, for the next call with the same data and settings to go on from; None:
            a temporary one.
        engine: where the jobs run; None: one by one in this process.

    Raises:
        InputError: too few functions or steps, settings that are not allowed, or the run directory cannot be written.
    """
    if len(counts) < 16 or counts.shape[1] < config.day_steps:
        raise InputError(
            f"the training trace has {len(counts)} functions and {counts.shape[1]} steps, "
            f"needed are at least 16 functions and {config.day_steps} steps"
        )
    plans = config.plans()
    keys = keys or tuple(FunctionKey(str(row), "app/function") for row in range(len(counts)))
    triggers = triggers or (Trigger.UNKNOWN,) * len(counts)
    scratch = tempfile.TemporaryDirectory(prefix="mesp-training-") if run is None else nullcontext(run)
    with scratch as directory, torch_threads(1):
        place = Path(directory)
        here = inline(progress)
        run_jobs([Job("data", pipeline.keep_data, (counts, start_step, keys, triggers, config))], place, here, progress)
        run_jobs(pipeline.plan_jobs(plans, config), place, engine or here, progress)
        return _assembled(place / "jobs", plans, config)


def smoke_rows(counts: FloatArray) -> IntArray:
    """Rows of some functions, from rarely to always active, for a smoke run."""
    active_steps = (counts > 0).sum(axis=1)
    order = np.argsort(active_steps, kind="stable")
    alive = order[active_steps[order] > 0]
    chosen = alive if len(alive) >= SMOKE_FUNCTIONS else order[-SMOKE_FUNCTIONS:]
    spread = np.linspace(0, len(chosen) - 1, min(SMOKE_FUNCTIONS, len(chosen))).astype(np.int64)
    return np.sort(chosen[spread])


def untrained_model() -> Model:
    """A model that knows nothing yet: light experts with a flat prior, trees yet to be grown, weighed by Hedge."""
    bins = 144
    flat = np.full((2, LONGEST_GAP + 1), 0.02, np.float32)
    return Model(
        version="untrained",
        step_ms=DEFAULT_STEP_MS,
        default_horizon=15,
        max_horizon=60,
        levels=DEFAULT_LEVELS,
        experts=(
            SeasonalExpert(),
            IntermittentExpert(),
            ContextMixingExpert(),
            HazardExpert(flat, strength=0.5),
            GbmExpert.new(),
        ),
        router=routing.Router(),
        centroids=np.zeros((1, bins), np.float32),
        bin_steps=10,
    )


def _assembled(results: Path, plans: tuple[pipeline.Plan, ...], config: TrainingConfig) -> Trained:
    """The model, from what the jobs left."""
    centroids, selection = pipeline.read_centroids(results), pipeline.read_selection(results)
    experts = tuple(pipeline.read_expert(results, plan.name, selection.kept.get(plan.name, ())) for plan in plans)
    model = Model(
        version="unsaved",
        step_ms=DEFAULT_STEP_MS,
        default_horizon=config.default_horizon,
        max_horizon=config.max_horizon,
        levels=DEFAULT_LEVELS,
        experts=experts,
        router=routing.Router(pipeline.read_gate(results, len(experts), len(centroids))),
        centroids=centroids,
        bin_steps=config.bin_steps,
        selected=selection.selected,
    )
    clusters = json.loads((results / "clusters" / "clusters.json").read_text())
    log_loss = json.loads((results / "gate" / "log_loss.json").read_text())
    return Trained(model, log_loss, selection.table, tuple(clusters["sizes"]), clusters["routed_away"])
