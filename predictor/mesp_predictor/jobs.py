"""A resumable list of jobs: each makes one directory, whole or not at all, and a directory that is there is done.

::

    RUN/jobs/<name>/     a job's result; written under a name that starts with a dot, then renamed
    RUN/state/<name>/    what lets a killed job go on, and how far it is

A job is a function of this package, by name, and arguments that can be pickled. It reads the results of the jobs that it
comes after and shares nothing else with them, so that it may run in this process (`inline`), in one of a pool
(`processes`), or on another machine that sees the same run directory (`ray_cluster`): the result is the same. Whoever
starts the list again after a kill has only those jobs to do whose directory is missing.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import shutil
import signal
import tempfile
import threading
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from safetensors import SafetensorError

from mesp.errors import InputError, MespError, MissingExtraError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from multiprocessing.connection import Connection

#: Between two looks at how far the running jobs are.
LOOK_EVERY_S = 0.2


@dataclass(frozen=True, slots=True)
class Place:
    """What a job is given.

    Attributes:
        results: where the results of earlier jobs are, by name.
        out: the empty directory to fill.
        state: directory that survives a kill of this job.
        progress: told the share done, in [0, 1].
    """

    results: Path
    out: Path
    state: Path
    progress: Callable[[float], None]


@dataclass(frozen=True, slots=True)
class Job:
    """One piece of work.

    Attributes:
        name: unique in its list, fit for a directory.
        work: a module's function, called with its `Place` and `arguments`.
        after: names of the jobs whose results it reads.
    """

    name: str
    work: Callable[..., None]
    arguments: tuple[Any, ...] = ()
    after: tuple[str, ...] = ()


#: Starts a job of the run in a directory, now or soon.
Engine: TypeAlias = "Callable[[Job, Path], Future[None]]"


def is_done(run: Path, name: str) -> bool:
    """Whether a job's result is there."""
    return (run / "jobs" / name).is_dir()


def run_jobs(jobs: Sequence[Job], run: Path, engine: Engine, progress: Callable[[str, float], None]) -> None:
    """Does what is left of the list; every job starts as soon as those that it comes after are done.

    Args:
        jobs: in an order in which they could run one by one.
        run: the run directory; nobody else works there.
        engine: where they run.
        progress: told the names of jobs that run and their share done; 1 only when the result is there.

    Raises:
        MespError: of the first job that failed, or whose process died; the same call goes on from there.
    """
    try:
        (run / "jobs").mkdir(parents=True, exist_ok=True)
        for left in (run / "jobs").glob(".*"):  # of jobs that were killed
            shutil.rmtree(left)
    except OSError as error:
        raise InputError(f"{run}: cannot be written: {error.strerror or error}") from error
    waiting = [job for job in jobs if not is_done(run, job.name)]
    running: dict[Future[None], Job] = {}
    while waiting or running:
        ready = [job for job in waiting if all(is_done(run, name) for name in job.after)]
        for job in ready:
            waiting.remove(job)
            future = engine(job, run)
            running[future] = job
            if future.done():  # here and now: tell of it before the next one starts
                break
        finished, _ = wait(running, LOOK_EVERY_S, FIRST_COMPLETED)
        for future in finished:
            job = running.pop(future)
            _raise_failure(future, job)
            progress(job.name, 1.0)
        for job in running.values():
            if (share := _share_done(run, job.name)) is not None:
                progress(job.name, share)


def perform(job: Job, run: Path, progress: Callable[[float], None] | None = None) -> None:
    """Does one job in this process, unless it is done.

    Args:
        job: the job.
        run: the run directory.
        progress: told the share done; None: it is written to a file that `run_jobs` reads.

    Raises:
        InputError: its result cannot be written.
    """
    if is_done(run, job.name):
        return
    state = run / "state" / job.name
    try:
        state.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix=f".{job.name}-", dir=run / "jobs"))
        try:
            told = progress or _ProgressFile(state / "progress")
            told(0.0)
            job.work(Place(run / "jobs", fresh, state, told), *job.arguments)
            fresh.chmod(0o755)
            fresh.rename(run / "jobs" / job.name)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{run}: the job {job.name} cannot write its result: {error}") from error


def inline(progress: Callable[[str, float], None]) -> Engine:
    """The engine that does every job at once, in this process."""

    def submit(job: Job, run: Path) -> Future[None]:
        future: Future[None] = Future()
        try:
            perform(job, run, lambda share: progress(job.name, share))
        except Exception as error:  # noqa: BLE001  whoever asks for the result gets it
            future.set_exception(error)
        else:
            future.set_result(None)
        return future

    return submit


@contextmanager
def processes(workers: int) -> Iterator[Engine]:
    """The engine of `workers` processes, one thread each; they do not outlive the block, nor this process."""
    context = multiprocessing.get_context("spawn")
    lifeline, held = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(workers, context, _start_worker, (lifeline,))
    try:
        yield lambda job, run: pool.submit(perform, job, run)
        pool.shutdown()
    finally:
        held.close()
        pool.shutdown(cancel_futures=True)
        lifeline.close()


@contextmanager
def ray_cluster(workers: int) -> Iterator[Engine]:
    """The engine of a Ray cluster, whose machines share the run directory, one core per job.

    Args:
        workers: cores of the cluster that is started on this machine where `RAY_ADDRESS` names none.

    Raises:
        MissingExtraError: Ray is not installed.
    """
    try:
        import ray  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise MissingExtraError("the engine ray is not installed: pip install 'mesp[ray]'") from error
    started = not ray.is_initialized()
    if started:
        cores = None if "RAY_ADDRESS" in os.environ else workers  # a cluster that is there has its own
        ray.init(num_cpus=cores, include_dashboard=False, log_to_driver=False, logging_level=logging.WARNING)
    task = ray.remote(num_cpus=1)(perform)
    try:
        yield lambda job, run: task.remote(job, run.absolute()).future()
    finally:
        if started:
            ray.shutdown()


def _raise_failure(future: Future[None], job: Job) -> None:
    try:
        future.result()
    except MespError as error:
        raise getattr(error, "cause", error) from None  # Ray wraps what was raised
    except BrokenProcessPool as error:
        raise MespError(
            f"the process of the job {job.name} died, perhaps for want of memory; the same command goes on from there"
        ) from error


def _start_worker(lifeline: Connection) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"  # read by numerical libraries when they load, which is later
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's business
    threading.Thread(target=_end_with, args=(lifeline,), daemon=True).start()


def _end_with(lifeline: Connection) -> None:
    """Ends this process, whatever it does, when the other end of the pipe is closed or its owner killed."""
    lifeline.poll(None)
    os._exit(1)


class _ProgressFile:
    """Writes the share done to a file, in hundredths."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._written = -1

    def __call__(self, share: float) -> None:
        hundredths = int(100 * share)
        if hundredths != self._written:
            self._written = hundredths
            self._path.write_text(str(hundredths))


def _share_done(run: Path, name: str) -> float | None:
    """What the job last wrote; None where it has not begun, or writes just now."""
    try:
        return int((run / "state" / name / "progress").read_text()) / 100
    except (OSError, ValueError):
        return None
