"""Jobs: done once, whole or not at all, wherever they run; a kill costs no more than what was running."""

from __future__ import annotations

import importlib
import os
import select
import signal
import subprocess
import sys
import warnings
from typing import TYPE_CHECKING, Any

import pytest

from mesp.errors import InputError, MespError
from mesp_predictor.jobs import Job, inline, is_done, processes, ray_cluster, run_jobs

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: Work that processes can import.
WORK = '''
import os
import signal
import time

from mesp.errors import InputError


def write(place, text):
    place.progress(0.5)
    (place.out / "text").write_text(text)


def join(place, *names):
    (place.out / "text").write_text("".join((place.results / name / "text").read_text() for name in names))


def count(place):
    """Goes one further each time that it is started."""
    with (place.state / "starts").open("a") as file:
        file.write(".")
    (place.out / "text").write_text("counted")


def refuse(place):
    (place.out / "text").write_text("half")
    raise InputError("the sentence")


def fill(place):
    with open("/dev/full", "w") as file:
        file.write("x")


def die(place):
    os.kill(os.getpid(), signal.SIGKILL)


def hang(place):
    if (place.state / "pid").exists():
        (place.out / "text").write_text("at last")
        return
    (place.out / "half").write_text("half")
    (place.state / "pid").write_text(str(os.getpid()))
    time.sleep(600)
'''

#: A process that does the jobs of a run until it is killed.
PARENT = """
import sys
from pathlib import Path
import work
from mesp_predictor.jobs import Job, processes, run_jobs
if __name__ == "__main__":
    with processes(1) as engine:
        jobs = [Job("first", work.write, ("a",)), Job("slow", work.hang, (), ("first",))]
        run_jobs(jobs, Path(sys.argv[1]), engine, lambda *_: None)
"""


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The module of work, where this process and its children find it."""
    folder = tmp_path / "modules"
    folder.mkdir()
    (folder / "work.py").write_text(WORK)
    (folder / "parent.py").write_text(PARENT)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    yield importlib.import_module("work")
    del sys.modules["work"]


def diamond(work: Any) -> list[Job]:
    return [
        Job("a", work.write, ("A",)),
        Job("b", work.join, ("a",), ("a",)),
        Job("c", work.write, ("C",), ("a",)),
        Job("d", work.join, ("b", "c"), ("b", "c")),
    ]


def texts(run: Path) -> dict[str, str]:
    return {path.parent.name: path.read_text() for path in (run / "jobs").glob("*/text")}


RESULT = {"a": "A", "b": "A", "c": "C", "d": "AC"}


def silent(_job: str, _share: float) -> None:
    pass


def test_jobs_come_after_those_they_need(work: Any, tmp_path: Path) -> None:
    """A diamond of jobs ends with all results; each one's progress rises to 1 before the next one starts."""
    told: list[tuple[str, float]] = []

    def progress(job: str, share: float) -> None:
        told.append((job, share))

    run_jobs(diamond(work), tmp_path / "run", inline(progress), progress)
    assert texts(tmp_path / "run") == RESULT
    assert told[:4] == [("a", 0), ("a", 0.5), ("a", 1), ("b", 0)]
    assert told[-1] == ("d", 1)


def test_what_is_done_is_not_done_again(work: Any, tmp_path: Path) -> None:
    """The second call of the same list starts nothing."""
    jobs = [Job("count", work.count), Job("after", work.write, ("x",), ("count",))]
    for _ in range(2):
        run_jobs(jobs, tmp_path, inline(silent), silent)
    assert (tmp_path / "state" / "count" / "starts").read_text() == "."


def test_a_failure_leaves_nothing_half(work: Any, tmp_path: Path) -> None:
    """The sentence arrives, the failed job has no directory, hidden or not, what was done stays, what follows waits."""
    jobs = [
        Job("a", work.write, ("A",)),
        Job("bad", work.refuse, (), ("a",)),
        Job("never", work.write, ("N",), ("bad",)),
    ]
    with pytest.raises(InputError, match=r"^the sentence$"):
        run_jobs(jobs, tmp_path, inline(silent), silent)
    assert [path.name for path in (tmp_path / "jobs").iterdir()] == ["a"]


def test_what_a_killed_job_left_is_swept(work: Any, tmp_path: Path) -> None:
    """A directory that was not renamed is no result."""
    (tmp_path / "jobs" / ".a-123").mkdir(parents=True)
    run_jobs([Job("a", work.write, ("A",))], tmp_path, inline(silent), silent)
    assert [path.name for path in (tmp_path / "jobs").iterdir()] == ["a"]


def test_a_full_disk_and_no_directory_are_one_sentence_each(work: Any, tmp_path: Path) -> None:
    """The run, the job and the system's reason are named."""
    with pytest.raises(InputError, match=r"job fill cannot write its result: .*No space left on device"):
        run_jobs([Job("fill", work.fill)], tmp_path / "run", inline(silent), silent)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file: cannot be written"):
        run_jobs([Job("a", work.write, ("A",))], tmp_path / "file", inline(silent), silent)


def test_processes_do_the_same(work: Any, tmp_path: Path) -> None:
    """In two processes the results are those of one; failures arrive as they were raised, and a death is told."""
    told: list[tuple[str, float]] = []
    with processes(2) as engine:
        run_jobs(diamond(work), tmp_path, engine, lambda job, share: told.append((job, share)))
        with pytest.raises(InputError, match=r"^the sentence$"):
            run_jobs([Job("bad", work.refuse)], tmp_path, engine, silent)
        with pytest.raises(MespError, match=r"the process of the job die died, .*; the same command goes on"):
            run_jobs([Job("die", work.die)], tmp_path, engine, silent)
    assert texts(tmp_path) == RESULT
    assert {job for job, share in told if share == 1} == set(RESULT)


def test_workers_die_with_their_parent(work: Any, tmp_path: Path) -> None:
    """Kill -9 of the process that started them ends the workers, in whatever they do; the next process goes on."""
    run, pid_file = tmp_path / "run", tmp_path / "run" / "state" / "slow" / "pid"
    command = [sys.executable, str(tmp_path / "modules" / "parent.py"), str(run)]
    with subprocess.Popen(command) as parent:
        while not (pid_file.exists() and pid_file.read_text()):
            with pytest.raises(subprocess.TimeoutExpired):  # it goes on until it is killed
                parent.wait(0.05)
        worker = os.pidfd_open(int(pid_file.read_text()))
        parent.send_signal(signal.SIGKILL)
    ended, _, _ = select.select([worker], [], [], 60)
    os.close(worker)
    assert ended
    assert is_done(run, "first")
    assert not is_done(run, "slow")
    run_jobs([Job("slow", work.hang, (), ("first",))], run, inline(silent), silent)
    assert texts(run) == {"first": "a", "slow": "at last"}
    assert not list((run / "jobs").glob(".*"))


def test_an_interrupt_does_not_wait_for_what_runs(work: Any, tmp_path: Path) -> None:
    """Ctrl-C in the parent ends workers that would go on for minutes."""

    def interrupt(job: str, share: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), processes(1) as engine:
        run_jobs([Job("slow", work.hang)], tmp_path, engine, interrupt)
    assert not is_done(tmp_path, "slow")


def test_a_ray_cluster_does_the_same(work: Any, tmp_path: Path) -> None:
    """On a local cluster of two workers the results are the same, and a failure arrives as it was raised."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what Ray's own modules warn of when they load
        pytest.importorskip("ray", reason="the engine ray is an extra: pip install 'mesp[ray]'")
        with ray_cluster(2) as engine:
            run_jobs(diamond(work), tmp_path, engine, silent)
            with pytest.raises(InputError, match=r"^the sentence$"):
                run_jobs([Job("bad", work.refuse)], tmp_path, engine, silent)
    assert texts(tmp_path) == RESULT
