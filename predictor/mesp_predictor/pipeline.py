"""The stages of a training, each a job that leaves its result in the run directory.

::

    data ── clusters ─┬─ expert-<name> ─┬─ tune-<name>-<cluster> ─┐
                      │                 └─────────────────────────┴─ answers-<name> ─┐
                      └──────────────────────────────────────────────────────────────┴─ selection ── gate

Functions are split once: experts learn from one part; clusters' best experts and the router are found on the other,
which no expert has seen.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from mesp.errors import InputError
from mesp.types import DEFAULT_LEVELS, FunctionKey, Trigger
from mesp_predictor import router as routing
from mesp_predictor import shapes
from mesp_predictor.experts.base import Training, TrainingSet
from mesp_predictor.experts.clustered import ClusteredExpert
from mesp_predictor.experts.registry import family, load_expert
from mesp_predictor.jobs import Job
from mesp_predictor.replay import Answers, Past, answer, clusters_over_time, gate_samples
from mesp_predictor.selection import Selection, select

if TYPE_CHECKING:
    from pathlib import Path

    from pydantic import BaseModel

    from mesp.types import FloatArray
    from mesp_predictor.experts.base import Expert, IntArray
    from mesp_predictor.jobs import Place
    from mesp_predictor.training import TrainingConfig

#: Fewer functions than this are not worth an expert of their own.
TUNE_FROM = 16


class Plan(NamedTuple):
    """How one expert comes about.

    Attributes:
        name: of its family.
        settings: of that family.
        pretrained: directory of published weights or of an expert that MESP saved; None: trained from nothing.
        adapt: whether a pretrained one is trained on on the whole training set.
        tune: whether it is then fine-tuned for each cluster.
    """

    name: str
    settings: BaseModel
    pretrained: Path | None
    adapt: bool
    tune: bool


def plan_jobs(plans: tuple[Plan, ...], config: TrainingConfig) -> list[Job]:
    """The whole training after `data`."""
    jobs = [Job("clusters", find_clusters, (config,), ("data",))]
    for plan in plans:
        jobs.append(Job(f"expert-{plan.name}", learn, (plan, config), ("clusters",)))
        tuned = [f"tune-{plan.name}-{cluster}" for cluster in range(config.clusters)] if plan.tune else []
        jobs += [
            Job(name, tune, (plan, cluster, config), (f"expert-{plan.name}",)) for cluster, name in enumerate(tuned)
        ]
        before = (f"expert-{plan.name}", *tuned)
        jobs.append(Job(f"answers-{plan.name}", ask, (plan, config), before))
    names = tuple(plan.name for plan in plans)
    jobs.append(Job("selection", choose, (names, config), tuple(f"answers-{name}" for name in names)))
    jobs.append(Job("gate", teach_gate, (names, config), ("selection",)))
    return jobs


# -- the jobs ----------------------------------------------------------------------------------------------------------


def keep_data(
    place: Place,
    counts: FloatArray,
    start_step: int,
    keys: tuple[FunctionKey, ...],
    triggers: tuple[Trigger, ...],
    config: TrainingConfig,
) -> None:
    """Writes what is learned from, and which functions are held out."""
    order = np.random.default_rng(config.seed).permutation(len(counts))
    held = order[: max(4, min(int(config.router_share * len(counts)), config.router_functions))]
    np.save(place.out / "counts.npy", counts)
    np.save(place.out / "held.npy", np.sort(held))
    (place.out / "data.json").write_text(json.dumps({"start_step": start_step, "keys": keys, "triggers": triggers}))


def find_clusters(place: Place, config: TrainingConfig) -> None:
    """K-Shape over function-days; a function's label is its last shaped day's, -1 where no day has a shape."""
    data = _data(place.results)
    counts, taught = data.counts, data.taught
    series, function = shapes.bin_days(np.nan_to_num(counts[taught]), config.bin_steps, config.day_steps)
    kinds = shapes.route_away(series, function)
    shaped = kinds == shapes.Kind.SHAPED.value
    if shaped.sum() < 2:
        raise InputError(
            f"only {int(shaped.sum())} function-days of the training trace have a shape, needed are at least 2"
        )
    clusters = shapes.kshape(series[shaped], min(config.clusters, int(shaped.sum())), config.seed, engine=config.kshape)
    labels = np.full(len(taught), -1, np.int64)
    labels[function[shaped]] = clusters.labels
    save_file({"centroids": torch.from_numpy(clusters.centroids).contiguous()}, place.out / "clusters.safetensors")
    np.save(place.out / "labels.npy", labels)
    away = {kind.value: int((kinds == kind.value).sum()) for kind in shapes.Kind if kind is not shapes.Kind.SHAPED}
    sizes = np.bincount(clusters.labels, minlength=clusters.k).tolist()
    (place.out / "clusters.json").write_text(json.dumps({"sizes": sizes, "routed_away": away}))


def learn(place: Place, plan: Plan, config: TrainingConfig) -> None:
    """An expert of the whole training set: trained, or as it was published, or that trained on."""
    kind, training = family(plan.name), _training(place, config)
    if plan.pretrained is None:
        expert = kind.fit(_training_set(place.results, config), plan.settings, training)
    else:
        expert = load_expert(plan.pretrained)
        if expert.name != plan.name:
            raise InputError(f"experts.{plan.name}.pretrained = {plan.pretrained}: holds an expert {expert.name!r}")
        if plan.adapt and kind.tune is not None:
            expert = kind.tune(expert, _training_set(place.results, config), plan.settings, training)
    expert.save(place.out)


def tune(place: Place, plan: Plan, cluster: int, config: TrainingConfig) -> None:
    """The expert fine-tuned for a cluster; nothing where the cluster is too small."""
    members = _training_set(place.results, config).members(cluster)
    kind = family(plan.name)
    if len(members.counts) >= TUNE_FROM and kind.tune is not None:
        whole = load_expert(place.results / f"expert-{plan.name}")
        kind.tune(whole, members, plan.settings, _training(place, config)).save(place.out)


def ask(place: Place, plan: Plan, config: TrainingConfig) -> None:
    """What the expert, and its tuned ones together, say in the replay of the held-out functions."""
    expert, past, costly = (
        load_whole(place.results, plan.name),
        read_past(place.results, config),
        family(plan.name).costly,
    )
    parts = _tuned(place.results, plan.name, config)
    share = 0.5 if parts else 1.0
    said = answer(expert, past, costly=costly, progress=lambda done: place.progress(share * done))
    np.savez(place.out / "whole.npz", **asdict(said))
    if parts:
        both = ClusteredExpert(expert, parts)
        said = answer(both, past, costly=costly, progress=lambda done: place.progress(share * (1 + done)))
        np.savez(place.out / "tuned.npz", **asdict(said))
    (place.out / "tuned.json").write_text(json.dumps(sorted(parts)))


def choose(place: Place, names: tuple[str, ...], config: TrainingConfig) -> None:
    """The expert x cluster table, the best expert of each cluster, and the tuned experts that are kept."""
    past = read_past(place.results, config)
    cluster, seen = clusters_over_time(past)
    wholes = {name: _answers(place.results, name, "whole") for name in names}
    parts = {name: tuple(json.loads((place.results / f"answers-{name}" / "tuned.json").read_text())) for name in names}
    tuned = {name: (_answers(place.results, name, "tuned"), clusters) for name, clusters in parts.items() if clusters}
    chosen = select(wholes, tuned, past, cluster, seen, config.seed)
    (place.out / "selection.json").write_text(json.dumps(asdict(chosen)))


def teach_gate(place: Place, names: tuple[str, ...], config: TrainingConfig) -> None:
    """The gate, and the next step's log loss of every expert and of the mixture."""
    past, kept = read_past(place.results, config), read_selection(place.results).kept
    cluster, _ = clusters_over_time(past)
    answers = []
    for name in names:
        whole = _answers(place.results, name, "whole")
        if name in kept:
            whole = whole.where(np.isin(cluster, kept[name]), _answers(place.results, name, "tuned"), past.sampled)
        answers.append(whole)
    samples = gate_samples(answers, past, lambda done: place.progress(0.5 * done))
    gate = routing.fit_gate(
        samples,
        len(past.centroids),
        DEFAULT_LEVELS,
        config.seed,
        config.router_epochs,
        lambda done: place.progress(0.5 + 0.5 * done),
    )
    save_file(gate.state_dict(), place.out / "router.safetensors")
    (place.out / "log_loss.json").write_text(json.dumps(_log_losses(names, gate, samples)))


def chosen_device(config: TrainingConfig) -> str:
    """The device of networks: as set, or an accelerator where there is one."""
    if config.device != "auto":
        return config.device
    return "cuda" if torch.cuda.is_available() else "cpu"


# -- what they left ----------------------------------------------------------------------------------------------------


def read_centroids(results: Path) -> FloatArray:
    """The clusters' shapes, (K, B)."""
    centroids: FloatArray = load_file(results / "clusters" / "clusters.safetensors")["centroids"].numpy()
    return centroids


def read_selection(results: Path) -> Selection:
    """What `choose` found."""
    content = json.loads((results / "selection" / "selection.json").read_text())
    kept = {name: tuple(clusters) for name, clusters in content["kept"].items()}
    return Selection(tuple(content["selected"]), kept, content["table"])


def read_gate(results: Path, experts: int, clusters: int) -> routing.Gate:
    """The trained gate."""
    gate = routing.Gate(experts, clusters)
    gate.load_state_dict(load_file(results / "gate" / "router.safetensors"))
    return gate.eval()


def read_expert(results: Path, name: str, kept: tuple[int, ...]) -> Expert:
    """An expert with those of its tuned ones that are kept."""
    whole = load_whole(results, name)
    parts = {cluster: load_expert(results / f"tune-{name}-{cluster}") for cluster in kept}
    return ClusteredExpert(whole, parts) if parts else whole


def load_whole(results: Path, name: str) -> Expert:
    """The expert of the whole training set."""
    return load_expert(results / f"expert-{name}")


def read_past(results: Path, config: TrainingConfig) -> Past:
    """The held-out functions as they are replayed."""
    data = _data(results)
    counts, held = data.counts, data.held
    return Past(
        counts=counts[held],
        start_step=data.start_step,
        centroids=read_centroids(results),
        bin_steps=config.bin_steps,
        first=max(0, counts.shape[1] - config.router_steps),
        every=config.router_every,
        horizon=config.default_horizon,
        keys=tuple(data.keys[row] for row in held),
        triggers=tuple(data.triggers[row] for row in held),
    )


class _Data(NamedTuple):
    """What `keep_data` kept: of all functions, rows held out, and the others."""

    counts: FloatArray
    start_step: int
    keys: tuple[FunctionKey, ...]
    triggers: tuple[Trigger, ...]
    held: IntArray
    taught: IntArray


def _data(results: Path) -> _Data:
    about: dict[str, Any] = json.loads((results / "data" / "data.json").read_text())
    counts: FloatArray = np.load(results / "data" / "counts.npy", mmap_mode="r")
    held: IntArray = np.load(results / "data" / "held.npy")
    return _Data(
        counts,
        about["start_step"],
        tuple(FunctionKey(*key) for key in about["keys"]),
        tuple(Trigger(value) for value in about["triggers"]),
        held,
        np.setdiff1d(np.arange(len(counts)), held),
    )


def _training_set(results: Path, config: TrainingConfig) -> TrainingSet:
    data = _data(results)
    taught = data.taught
    labels = np.load(results / "clusters" / "labels.npy")
    clusters = len(read_centroids(results))
    return TrainingSet(
        data.counts[taught],
        data.start_step,
        labels,
        clusters,
        tuple(data.keys[row] for row in taught),
        config.max_horizon,
        tuple(data.triggers[row] for row in taught),
    )


def _training(place: Place, config: TrainingConfig) -> Training:
    return Training(config.seed, place.progress, place.state, chosen_device(config), config.save_every)


def _tuned(results: Path, name: str, config: TrainingConfig) -> dict[int, Expert]:
    """The tuned experts that there are, by cluster."""
    directories = {cluster: results / f"tune-{name}-{cluster}" for cluster in range(config.clusters)}
    return {k: load_expert(path) for k, path in directories.items() if (path / "config.json").is_file()}


def _answers(results: Path, name: str, part: str) -> Answers:
    with np.load(results / f"answers-{name}" / f"{part}.npz") as kept:
        return Answers(**kept)


def _log_losses(names: tuple[str, ...], gate: routing.Gate, samples: routing.GateSamples) -> dict[str, float]:
    """Next-step log loss by expert and of the mixture, over the second half of the replay."""
    half = slice(len(samples.inputs) // 2, None)
    count = samples.counts[half, 0]
    known = ~np.isnan(count)
    active = count[known] > 0
    odds = routing.logit(samples.forecast[half, :, 0])[known]
    weights = routing.gate_weights(gate, samples.inputs[half][known]).activity
    columns = {name: odds[:, i] for i, name in enumerate(names)}
    columns["mixture"] = (odds * weights).sum(axis=1)
    return {
        name: float(np.where(active, np.logaddexp(0, -o), np.logaddexp(0, o)).mean()) for name, o in columns.items()
    }
