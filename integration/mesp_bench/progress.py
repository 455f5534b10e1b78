"""Progress of long work on stderr: one bar per stage."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@contextmanager
def stages() -> Iterator[Callable[[str, float], None]]:
    """Yields a function that is told the stage and its share done, in [0, 1]; a new stage completes the former."""
    columns = (
        TextColumn("{task.description:<28}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bars:
        tasks: dict[str, TaskID] = {}

        def progress(stage: str, share: float) -> None:
            if stage not in tasks:
                for task in tasks.values():
                    bars.update(task, completed=1)
                    bars.stop_task(task)
                tasks[stage] = bars.add_task(stage, total=1)
            bars.update(tasks[stage], completed=share)

        yield progress
        for task in tasks.values():
            bars.update(task, completed=1)
