"""Records of training runs: what was trained on what, by which code and machine, how it went, and what came out.

::

    RUN/run.json      the manifest: settings, data, code, machine, state, scores; replaced whole, never half-written
    RUN/log.jsonl     one line per job, tenth of its way, and held-out loss of a network; times never fall
    RUN/lock          held while somebody works there

A run that was killed says `running` and holds no lock; it is listed as `interrupted`. Times are told by the caller's clock.
`publish` gives MLflow the same content.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import re
import subprocess
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError

import mesp
from mesp.config import first_mistake
from mesp.errors import InputError, MissingExtraError

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import TextIO

    from mlflow import MlflowClient

#: Packages whose versions a result may follow from.
PACKAGES: Final = ("numpy", "scipy", "numba", "torch", "transformers", "tslearn", "lightgbm", "chronos-forecasting")
#: Progress is logged when it passes another one of so many parts.
LOGGED_PARTS: Final = 10

State = Literal["running", "done", "failed", "interrupted"]


class RunManifest(BaseModel):
    """What `run.json` says.

    Attributes:
        name: of the run, as its directory.
        state: `interrupted` is never written: it is what a run without a process is read as.
        data: name, checksum and size of what was learned from.
        seed: of everything random.
        config: all settings, those of the families with their defaults.
        code: version of MESP, digest of the predictor's source, git revision where there is one, versions of packages.
        machine: architecture, system, cores, and the engine and processes that worked.
        started_ms: when it was first started, milliseconds since the epoch.
        ended_ms: when it was done or failed; None: it was not.
        reason: why it failed.
        scores: by measure, and by expert.
        model: the model's version.
    """

    model_config = ConfigDict(extra="forbid")

    name: str
    state: State
    data: dict[str, Any]
    seed: int
    config: dict[str, Any]
    code: dict[str, Any]
    machine: dict[str, Any]
    started_ms: int
    ended_ms: int | None = None
    reason: str | None = None
    scores: dict[str, dict[str, float]] = {}
    model: str | None = None


def run_name(data: dict[str, Any], config: dict[str, Any]) -> str:
    """A name that follows from data, settings, seed and code, so that the same command finds its own run again."""
    digest = hashlib.sha256(json.dumps([data, config, _source()], sort_keys=True).encode()).hexdigest()[:8]
    plain = re.sub(r"[^\w.-]+", "-", str(data["name"])).strip("-.") or "data"
    return f"{plain}-{digest}-seed{config['seed']}"


class RunRecorder:
    """Writes a run directory while a training runs: enter it, tell it of progress, and say what came out.

    Whatever leaves the block as an exception is the reason why the run failed; entering it again takes it up anew.
    """

    def __init__(
        self,
        directory: Path,
        data: dict[str, Any],
        config: dict[str, Any],
        machine: dict[str, Any],
        clock: Callable[[], float],
    ) -> None:
        """Prepares; nothing is written yet.

        Args:
            directory: of the run; made if need be.
            data: name, checksum and size of what is learned from.
            config: all settings.
            machine: engine and processes.
            clock: seconds since the epoch.
        """
        self.directory = directory
        self._clock = clock
        self._manifest = RunManifest(
            name=directory.name,
            state="running",
            data=data,
            seed=config["seed"],
            config=config,
            code=_code(),
            machine={"machine": f"{platform.machine()} {platform.system()}", "cores": os.cpu_count(), **machine},
            started_ms=0,
        )
        self._lock: TextIO | None = None
        self._last_ms = 0
        self._parts: dict[str, int] = {}

    def __enter__(self) -> Self:
        """Takes the directory.

        Raises:
            InputError: it cannot be written, is another process's, or holds a run of other settings, data or code.
        """
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._lock = (self.directory / "lock").open("a")
        except OSError as error:
            raise self._unwritable(error) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if (self.directory / "run.json").is_file():
                self._take_up(read_run(self.directory))
            self._manifest.started_ms = self._manifest.started_ms or self._now_ms()
            self._log("started", code=self._manifest.code, machine=self._manifest.machine)
            self._save()
        except BlockingIOError:
            self._lock.close()
            raise InputError(f"{self.directory}: another process trains there") from None
        except InputError:
            self._lock.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Records a failure, and lets the directory go."""
        if error is not None:
            with suppress(InputError):  # perhaps that it cannot be written is what failed
                self._end("failed", reason=str(error) or type(error).__name__)
        if self._lock is not None:
            self._lock.close()

    def progress(self, job: str, share: float) -> None:
        """Logs a job's start, every tenth of its way, and its end with what its network's exams were."""
        part = int(share * LOGGED_PARTS)
        if part <= self._parts.get(job, -1):
            return
        self._parts[job] = part
        if part == LOGGED_PARTS:
            exams = self.directory / "state" / job / "exams.json"
            for step, loss in json.loads(exams.read_text()) if exams.is_file() else ():
                self._log("exam", job=job, step=step, held_out_loss=loss)
        self._log("progress", job=job, share=part / LOGGED_PARTS)

    def done(self, scores: dict[str, dict[str, float]], model: str) -> None:
        """Records the scores and the model's version."""
        self._manifest.scores, self._manifest.model = scores, model
        self._end("done", scores=scores, model=model)

    def _take_up(self, before: RunManifest) -> None:
        """Goes on with the run that is there; what was logged half is dropped."""
        was, now = (
            {**flat(each.config), **flat({"data": each.data}), "code.source": each.code.get("source")}
            for each in (before, self._manifest)
        )
        for key in sorted(was.keys() | now.keys()):
            if was.get(key) != now.get(key):
                raise InputError(
                    f"{self.directory}: holds a run with {key} = {was.get(key)!r}, now it is {now.get(key)!r}; "
                    "choose another directory"
                )
        self._manifest.started_ms = before.started_ms
        lines = read_log(self.directory)
        self._write("log.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
        for line in lines:
            self._last_ms = line["at_ms"]
            if line["event"] == "progress":
                self._parts[line["job"]] = round(line["share"] * LOGGED_PARTS)

    def _end(self, state: State, **told: object) -> None:
        self._log(state, **told)
        self._manifest.state, self._manifest.ended_ms = state, self._last_ms
        self._manifest.reason = str(told["reason"]) if "reason" in told else None
        self._save()

    def _now_ms(self) -> int:
        self._last_ms = max(self._last_ms, round(self._clock() * 1000))
        return self._last_ms

    def _log(self, event: str, **told: object) -> None:
        line = json.dumps({"at_ms": self._now_ms(), "event": event, **told}) + "\n"
        try:
            with (self.directory / "log.jsonl").open("a") as file:
                file.write(line)
        except OSError as error:
            raise self._unwritable(error) from error

    def _save(self) -> None:
        self._write("run.json", self._manifest.model_dump_json(indent=2) + "\n")

    def _write(self, name: str, text: str) -> None:
        temporary = self.directory / f".{name}"
        try:
            temporary.write_text(text)
            temporary.replace(self.directory / name)
        except OSError as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> InputError:
        return InputError(f"{self.directory}: the run cannot be recorded: {error.strerror or error}")


def read_run(directory: Path) -> RunManifest:
    """The manifest of a run; raises `InputError` where there is none, or it is no such manifest."""
    path = directory / "run.json"
    try:
        manifest = RunManifest.model_validate_json(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    except ValidationError as error:
        raise InputError(f"{path}: {first_mistake(error, RunManifest)}") from error
    if manifest.state == "running" and not _is_held(directory / "lock"):
        manifest.state = "interrupted"
    return manifest


def read_log(directory: Path) -> list[dict[str, Any]]:
    """The lines of a run's log; one that was being written when the process was killed is left out."""
    path = directory / "log.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.is_file() else []
    return [json.loads(line) for line in lines]


def list_runs(root: Path) -> list[RunManifest]:
    """All runs in a directory, the oldest first.

    Raises:
        InputError: there is no such directory, or a manifest in it cannot be read.
    """
    if not root.is_dir():
        raise InputError(f"{root}: there is no such directory of runs")
    found = [read_run(path.parent) for path in sorted(root.glob("*/run.json"))]
    return sorted(found, key=lambda run: run.started_ms)


def compare(one: RunManifest, two: RunManifest) -> dict[str, dict[str, tuple[Any, Any]]]:
    """Settings that differ and all scores, side by side; None where only the other one has it."""
    settings = [{**flat({"data": run.data}), **flat(run.config), **flat({"code": run.code})} for run in (one, two)]
    scores = [flat(run.scores) for run in (one, two)]
    return {
        "settings": {key: pair for key, pair in _side_by_side(*settings).items() if pair[0] != pair[1]},
        "scores": _side_by_side(*scores),
    }


def mlflow_client(uri: str) -> MlflowClient:
    """A client of MLflow's tracking at a folder, database or server.

    Raises:
        MissingExtraError: MLflow is not installed.
        InputError: MLflow refuses the URI.
    """
    os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # else folders are refused
    try:
        from mlflow import MlflowClient  # noqa: PLC0415
        from mlflow.exceptions import MlflowException  # noqa: PLC0415

        return MlflowClient(uri)
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"--mlflow needs {error.name}, which is not installed: pip install 'mesp[mlflow]'"
        ) from error
    except MlflowException as error:
        raise InputError(f"--mlflow {uri}: {error}") from error


def publish(directory: Path, client: MlflowClient, artifacts: tuple[Path, ...] = ()) -> str:
    """Gives MLflow the content of a run: settings as parameters, scores and held-out losses as metrics, files as artifacts.

    Args:
        directory: of the run, ended.
        client: of MLflow's tracking.
        artifacts: further files.

    Returns:
        MLflow's identifier of the new run.

    Raises:
        InputError: MLflow does not take it.
    """
    from mlflow.exceptions import MlflowException  # noqa: PLC0415

    manifest = read_run(directory)
    try:
        experiment = client.get_experiment_by_name("mesp")
        within = experiment.experiment_id if experiment else client.create_experiment("mesp")
        run: str = client.create_run(within, manifest.started_ms, run_name=manifest.name).info.run_id
        for key, value in published_parameters(manifest).items():
            client.log_param(run, key, value)
        for name, step, number, at_ms in published_metrics(manifest, read_log(directory)):
            client.log_metric(run, name, number, at_ms, step)
        for path in (directory / "run.json", directory / "log.jsonl", *artifacts):
            client.log_artifact(run, str(path))
        state = "FINISHED" if manifest.state == "done" else "FAILED"
        client.set_terminated(run, state, manifest.ended_ms)
    except (MlflowException, OSError) as error:
        raise InputError(f"{directory}: MLflow does not take the run: {error}") from error
    return run


def published_parameters(run: RunManifest) -> dict[str, str]:
    """A run's parameters: settings, data, code and machine, as text."""
    whole = {**flat(run.config), **flat({"data": run.data, "code": run.code, "machine": run.machine})}
    return {key: str(value) for key, value in whole.items()}


def published_metrics(run: RunManifest, log: list[dict[str, Any]]) -> list[tuple[str, int, float, int]]:
    """A run's numbers: key, training step (0 for final scores), value, and when, in milliseconds."""
    exams = [
        (f"held_out_loss.{line['job']}", line["step"], line["held_out_loss"], line["at_ms"])
        for line in log
        if line["event"] == "exam"
    ]
    return [*exams, *((key, 0, value, run.ended_ms or 0) for key, value in flat(run.scores).items())]


def flat(nested: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted keys; an empty one stays a value."""
    whole: dict[str, Any] = {}
    for key, value in nested.items():
        whole |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return whole


def _side_by_side(one: dict[str, Any], two: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    return {key: (one.get(key), two.get(key)) for key in {**one, **two}}


def _is_held(lock: Path) -> bool:
    """Whether a living process holds the lock."""
    try:
        with lock.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _code() -> dict[str, Any]:
    """Versions of what ran."""
    packages = {}
    for name in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            packages[name] = metadata.version(name)
    return {
        "mesp": mesp.__version__,
        "source": _source(),
        "git_revision": _git_revision(),
        "python": platform.python_version(),
        "packages": packages,
    }


def _source() -> str:
    """Digest of the predictor's own code: what other code has done of a run is not gone on with."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _git_revision() -> str | None:
    """The checkout's revision; None for an installed package, whatever repository its environment lies in."""
    root = Path(mesp.__file__).parents[2]
    if not (root / ".git").exists():
        return None
    try:
        said = subprocess.run(
            ["git", "rev-parse", "HEAD"],  # noqa: S607  whichever git the user has
            cwd=root, capture_output=True, text=True, check=False,
        )  # fmt: skip
    except OSError:
        return None
    return said.stdout.strip() or None
