"""The same minutes of a trace against doubles of OpenWhisk, MESP off, in shadow and on: `make e2e-openwhisk`.

    python -m e2e.openwhisk.replaying --trace DIR --minutes 600:630 --out OUT

A sample of the trace (what a small machine carries) is replayed in virtual time, beside the double of standalone,
that of FPC in memory, and that of classic on a real Kafka (which needs Java 17 and Maven). Every mode begins with the same warm-up, which is
not counted. Each writes ``replay-<driver>-<mode>.json`` as `mesp replay` does; the last table lays them side by side.
"""

from __future__ import annotations

import enum
import logging
import sys
import tempfile
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import structlog
import typer

from e2e.openwhisk import replay_classic, replay_fpc, replay_standalone
from e2e.openwhisk.rehearsal import MODES, POOL_MB, Setting, delayed, make_scene
from mesp.errors import MespError
from mesp_bench.evaluate import provenance
from mesp_bench.replay.schedule import parse_minutes
from mesp_bench.sample import sample_trace
from mesp_bench.sidecar import sidecar

if TYPE_CHECKING:
    from collections.abc import Callable

    from e2e.openwhisk.rehearsal import Mode, Played, Scene
    from mesp_bench.traces.model import Trace


class Driver(enum.StrEnum):
    """Beside what."""

    ALL = "all"
    STANDALONE = "standalone"
    CLASSIC = "classic"
    FPC = "fpc"


def main(
    trace: Annotated[Path, typer.Option(help="The trace: a folder that mesp trace inspect can read.")],
    out: Annotated[Path, typer.Option(help="Folder for replay-<driver>-<mode>.json and the comparison.")],
    minutes: Annotated[str, typer.Option(metavar="A:B", help="Minutes of the trace, B not included.")] = "600:630",
    functions: Annotated[int, typer.Option(help="Functions of the sample, at most.")] = 30,
    rate: Annotated[float, typer.Option(help="Calls a second in the sample's busiest minute, at most.")] = 20.0,
    memory_mb: Annotated[int, typer.Option(help="Memory of the container pools.")] = POOL_MB,
    seed: Annotated[int, typer.Option(help="The same seed gives the same calls.")] = 0,
    driver: Annotated[Driver, typer.Option(help="The double: standalone, classic, fpc, or all.")] = Driver.ALL,
) -> None:
    """Replays a sample of a trace against doubles of OpenWhisk: MESP off, shadow, on."""
    from rich.console import Console  # noqa: PLC0415

    from e2e.servers.kafka import running_kafka  # noqa: PLC0415
    from mesp_bench.replay.report import named, print_replays, write_comparison, write_replay  # noqa: PLC0415
    from mesp_bench.traces.load import load_trace  # noqa: PLC0415
    from mesp_predictor.checkpoint import default_model  # noqa: PLC0415

    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(30),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)  # a topic just made has no leader yet: no news
    sample, note = sample_trace(load_trace(trace), functions=functions, rate_per_s=rate, seed=seed)
    chosen = parse_minutes(minutes, sample)
    setting = Setting(user_memory_mb=memory_mb, seed=seed)
    facts = {"provenance": provenance(sample, seeds=1, workers=1) | {"seeds": [seed]}}
    results: list[dict[str, Any]] = []
    with ExitStack() as stack:
        plays: list[Callable[[Scene], Played]] = []
        if driver in {Driver.ALL, Driver.STANDALONE}:
            plays.append(replay_standalone.play)
        if driver in {Driver.ALL, Driver.FPC}:
            plays.append(replay_fpc.play)
        if driver in {Driver.ALL, Driver.CLASSIC}:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            plays.append(partial(replay_classic.play, kafka=stack.enter_context(running_kafka(folder))))
        for play in plays:
            off: Played | None = None
            for mode in MODES:
                played = _play(play, sample, chosen, mode, out / "state", default_model(), setting)
                off = off or played
                result = {**facts, **played.result, "delayed": delayed(off.run, played.run)}
                result["notes"] = [str(note), *result["notes"]]
                results.append(result)
                write_replay(result, played.run.calls, out)
                print(result["driver"], mode, played.starts, played.tally, result["delayed"])  # noqa: T201 (its voice)
    print_replays(named(results), Console())
    print("Report:", write_comparison(results, out))  # noqa: T201


def _play(
    play: Callable[[Scene], Played],
    sample: Trace,
    minutes: tuple[int, int],
    mode: Mode,
    state: Path,
    model: Path,
    setting: Setting,
) -> Played:
    for old in state.glob(f"state-{mode}.json*"):
        old.unlink()
    with ExitStack() as stack:
        address = None if mode == "off" else stack.enter_context(sidecar(model))
        return play(make_scene(sample, minutes, mode, folder=state, predictor=address, setting=setting))


if __name__ == "__main__":
    try:
        typer.run(main)
    except MespError as error:
        sys.exit(f"error: {error}")
