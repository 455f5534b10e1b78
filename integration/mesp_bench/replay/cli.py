"""`mesp replay`: a trace's calls against a live platform, and what became of them."""

from __future__ import annotations

import asyncio
import re
import signal
import ssl
import time
from dataclasses import dataclass
from pathlib import Path  # typer reads annotations when it runs
from typing import TYPE_CHECKING, Annotated, Literal

import aiohttp
import numpy as np
import typer
from rich.console import Console

from mesp.config import load_config
from mesp.errors import InputError, UnavailableError
from mesp.types import DEFAULT_STEP_MS, FunctionKey
from mesp_bench.arrivals import ArrivalMode
from mesp_bench.progress import stages
from mesp_bench.replay.calls import ANSWERED, Outcome
from mesp_bench.replay.driver import Limits, replay
from mesp_bench.replay.functions import ActionMap, HttpMap, fill_name
from mesp_bench.replay.history import history, tell
from mesp_bench.replay.http import HttpTarget
from mesp_bench.replay.openwhisk import OpenWhiskTarget, check_api_host, read_key
from mesp_bench.replay.schedule import DEFAULT_LIMIT, make_schedule, parse_minutes

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from mesp.types import Rejection
    from mesp_bench.replay.calls import Run, Target
    from mesp_bench.replay.schedule import Schedule
    from mesp_bench.traces.model import Trace

    #: Makes sure, before the first call, that the platform will take the calls; which function is which there.
    Prepare = Callable[[aiohttp.ClientSession], Awaitable[dict[FunctionKey, FunctionKey]]]

app = typer.Typer(
    help="""Replay a trace against a live platform, open loop, and report cold starts and latencies.

    Calls start at the trace's times whatever the platform does; latency counts from when a call was due. How functions
    are called says a YAML file, --map: `default` for all, `functions` for single ones, with the placeholders {scope},
    {name}, {id} (short, made of the key) and, in bodies, {run_ms} (the trace's run time).

    \b
    openwhisk:  default: {action: "f-{id}", parameters: {sleep_ms: "{run_ms}"}}
    http:       default: {url: "http://127.0.0.1:8080/{id}", method: POST, body: {ms: "{run_ms}"}}
                cold: {header: X-Cold-Start}

    Make a trace small first: mesp trace sample.
    """,
    no_args_is_help=True,
)

TraceOption = Annotated[Path, typer.Option("--trace", help="The trace: a folder that mesp trace inspect can read.")]
OutOption = Annotated[Path, typer.Option("--out", help="Folder for replay-….json, calls-….csv and the page.")]
MinutesOption = Annotated[str, typer.Option("--minutes", metavar="A:B", help="Minutes of the trace, B not included.")]
SpeedOption = Annotated[
    float,
    typer.Option(
        "--speed",
        min=0.001,
        max=10_000,
        help="Times between arrivals, and {run_ms}, are divided by this. NOT scaled are the platform's own timers (OpenWhisk "
        "pauses an idle container after 10 s and removes it after 10 min) and start times.",
    ),
]
ArrivalsOption = Annotated[ArrivalMode, typer.Option("--arrivals", help="Where in its minute an invocation falls.")]
SeedOption = Annotated[int, typer.Option("--seed", min=0, help="The same seed gives the same calls.")]
WarmUpOption = Annotated[
    float, typer.Option("--warm-up", min=0, help="Seconds of the trace before minute A that are played, not counted.")
]
LimitOption = Annotated[int, typer.Option("--limit", min=1, help="At most so many calls.")]
InFlightOption = Annotated[int, typer.Option("--max-in-flight", min=1, help="Calls under way at once; more are shed.")]
TimeoutOption = Annotated[float, typer.Option("--timeout", min=0.001, help="Seconds until a call is given up.")]
PredictorOption = Annotated[
    str | None, typer.Option("--predictor", help="host:port of a predictor that is told the counts before minute A.")
]
DriverOption = Annotated[
    str, typer.Option("--driver", help="What stands behind, for the report: standalone, classic ...")
]
ModeOption = Annotated[
    Literal["off", "shadow", "on"], typer.Option("--mode", help="What MESP does meanwhile, for the report.")
]
InsecureOption = Annotated[bool, typer.Option("--insecure", help="Take any TLS certificate.")]
CaOption = Annotated[Path | None, typer.Option("--ca", help="Certificates to trust, PEM.")]


@dataclass(frozen=True, slots=True)
class _Options:
    """What both targets' commands are told alike."""

    trace: Trace
    schedule: Schedule
    out: Path
    arrivals: ArrivalMode
    seed: int
    limits: Limits
    predictor: str | None
    driver: str
    mode: str
    tls: ssl.SSLContext | bool


@app.command()
def openwhisk(
    *,
    trace: TraceOption,
    out: OutOption,
    api_host: Annotated[str, typer.Option(help="http(s)://host:port of the API.")] = "http://127.0.0.1:3233",
    map_file: Annotated[Path | None, typer.Option("--map", help="Which action each function is; else f-{id}.")] = None,
    namespace: Annotated[str, typer.Option(help="Where the actions live; _ is the key's own.")] = "_",
    auth_env: Annotated[
        str, typer.Option(help="Environment variable with the API key, uuid:secret.")
    ] = "OPENWHISK_AUTH",
    auth_file: Annotated[
        Path | None, typer.Option(help="File with the key, alone or as AUTH=..., as in ~/.wskprops.")
    ] = None,
    minutes: MinutesOption = ":",
    speed: SpeedOption = 1.0,
    arrivals: ArrivalsOption = ArrivalMode.UNIFORM,
    seed: SeedOption = 0,
    warm_up: WarmUpOption = 0.0,
    limit: LimitOption = DEFAULT_LIMIT,
    max_in_flight: InFlightOption = 1_000,
    timeout: TimeoutOption = 120.0,
    predictor: PredictorOption = None,
    driver: DriverOption = "openwhisk",
    mode: ModeOption = "off",
    insecure: InsecureOption = False,
    ca: CaOption = None,
) -> None:
    """Blocking invocations of OpenWhisk actions; cold or warm from each activation record.

    Example: mesp replay openwhisk --auth-file ~/.wskprops --trace small --minutes 600:630 --speed 10 --out out
    """
    host, key = check_api_host(api_host), read_key(auth_env, auth_file)
    options = _options(
        trace, out, minutes, speed, arrivals, seed, warm_up, limit, max_in_flight, timeout, predictor, driver, mode,
        _tls(insecure, ca),
    )  # fmt: skip
    functions = load_config(map_file, ActionMap) if map_file else ActionMap()
    entries = functions.entries(options.trace.functions, map_file)
    target = OpenWhiskTarget(host, key, entries, namespace)

    async def prepare(session: aiohttp.ClientSession) -> dict[FunctionKey, FunctionKey]:
        own = await target.namespace_of_key(session)
        await target.check_actions(session, _called(options.schedule))
        scope = own if namespace == "_" else namespace
        return {function: FunctionKey(scope, fill_name(entry.action, function)) for function, entry in entries.items()}

    _replay(options, target, prepare)


@app.command()
def http(
    *,
    trace: TraceOption,
    out: OutOption,
    map_file: Annotated[Path, typer.Option("--map", help="The request of each function.")],
    minutes: MinutesOption = ":",
    speed: SpeedOption = 1.0,
    arrivals: ArrivalsOption = ArrivalMode.UNIFORM,
    seed: SeedOption = 0,
    warm_up: WarmUpOption = 0.0,
    limit: LimitOption = DEFAULT_LIMIT,
    max_in_flight: InFlightOption = 1_000,
    timeout: TimeoutOption = 120.0,
    predictor: PredictorOption = None,
    driver: DriverOption = "http",
    mode: ModeOption = "off",
    insecure: InsecureOption = False,
    ca: CaOption = None,
) -> None:
    """Requests to any service; cold or warm from the header or JSON field that the map names, if any.

    Example: mesp replay http --trace small --map functions.yaml --minutes 600:630 --speed 10 --out out
    """
    options = _options(
        trace, out, minutes, speed, arrivals, seed, warm_up, limit, max_in_flight, timeout, predictor, driver, mode,
        _tls(insecure, ca),
    )  # fmt: skip
    functions = load_config(map_file, HttpMap)
    entries = functions.entries(options.trace.functions, map_file)

    async def prepare(_session: aiohttp.ClientSession) -> dict[FunctionKey, FunctionKey]:
        names = {function: fill_name(entry.known_as, function) for function, entry in entries.items()}
        return {function: FunctionKey(*name.split("/", 1)) for function, name in names.items()}

    _replay(options, HttpTarget(entries, functions.cold), prepare)


@app.command()
def compare(
    replays: Annotated[list[Path], typer.Argument(help="replay-….json files, two or more.")],
    *,
    out: Annotated[Path, typer.Option(help="Folder for comparison.html.")],
    simulated: Annotated[Path | None, typer.Option(help="A frontier.json to show the policies of beside them.")] = None,
) -> None:
    """Lay replays side by side: without and with MESP, one driver and another, live and simulated.

    Example: mesp replay compare out/replay-classic-off.json out/replay-classic-on.json --out out/compared
    """
    from mesp_bench.replay.report import (  # noqa: PLC0415
        named,
        print_replays,
        read_frontier,
        read_replay,
        write_comparison,
    )

    if len(replays) < 2:
        raise InputError("mesp replay compare needs two replay-….json files or more")
    results = [read_replay(path) for path in replays]
    frontier = read_frontier(simulated) if simulated else None
    written = write_comparison(results, out, frontier)
    print_replays(named(results), Console(), frontier)
    typer.echo(f"Report: {written}")


def _options(
    trace: Path, out: Path, minutes: str, speed: float, arrivals: ArrivalMode, seed: int, warm_up: float, limit: int,
    max_in_flight: int, timeout_s: float, predictor: str | None, driver: str, mode: str, tls: ssl.SSLContext | bool,
) -> _Options:  # fmt: skip
    from mesp_bench.traces.load import load_trace  # noqa: PLC0415

    if not re.fullmatch(r"[a-z0-9][a-z0-9-]*", driver):
        raise InputError(
            f"--driver {driver}: must be lower-case letters, digits and dashes, it becomes part of file names"
        )
    loaded = load_trace(trace)
    schedule = make_schedule(
        loaded, parse_minutes(minutes, loaded), mode=arrivals, seed=seed, speed=speed, warm_up_s=warm_up, limit=limit
    )
    limits = Limits(max_in_flight=max_in_flight, timeout_s=timeout_s)
    return _Options(loaded, schedule, out, arrivals, seed, limits, predictor, driver, mode, tls)


def _tls(insecure: bool, ca: Path | None) -> ssl.SSLContext | bool:
    """What a connection makes of certificates, in aiohttp's terms: False takes any."""
    if insecure and ca:
        raise InputError("--insecure and --ca exclude each other: certificates are checked, or they are not")
    if ca is None:
        return not insecure
    try:
        return ssl.create_default_context(cafile=ca)
    except OSError as error:  # ssl.SSLError is one
        raise InputError(f"{ca}: cannot be read as certificates in PEM form") from error


def _called(schedule: Schedule) -> list[FunctionKey]:
    return [schedule.functions[row] for row in np.unique(schedule.rows)]


def _replay(options: _Options, target: Target, prepare: Prepare) -> None:
    """Plays, reports, and exits with 130 when it was stopped, with 4 when nothing was there to answer."""
    from mesp_bench.evaluate import provenance  # noqa: PLC0415
    from mesp_bench.replay.report import print_replays, write_replay  # noqa: PLC0415
    from mesp_bench.replay.summary import summarize  # noqa: PLC0415

    with stages() as progress:
        run, refused = asyncio.run(_play(options, target, prepare, progress))
    notes = (
        [f"The predictor refused {len(refused)} items of the history, first: {refused[0].reason}"] if refused else []
    )
    result = {
        "provenance": provenance(options.trace, seeds=1, workers=1) | {"seeds": [options.seed]},
        **summarize(
            run, options.schedule, options.limits, platform=target.name, driver=options.driver, mode=options.mode,
            arrivals=options.arrivals, notes=notes,
        ),
    }  # fmt: skip
    written = write_replay(result, run.calls, options.out)
    print_replays({f"{options.driver}, MESP {options.mode}": result}, Console())
    typer.echo(f"Report: {written}")
    if run.interrupted:
        raise typer.Exit(130)
    answered = [call.answer.outcome for call in run.calls if call.answer.outcome in ANSWERED]
    if answered and set(answered) == {Outcome.CONNECTION}:
        raise UnavailableError("no call reached the platform: every connection failed")


async def _play(
    options: _Options, target: Target, prepare: Prepare, progress: Callable[[str, float], None]
) -> tuple[Run, Sequence[Rejection]]:
    """The run, and what the predictor refused of the history."""
    stop, loop = asyncio.Event(), asyncio.get_running_loop()

    def stopped() -> None:
        stop.set()
        loop.remove_signal_handler(signal.SIGINT)  # who asks twice means it

    connector = aiohttp.TCPConnector(limit=0, ssl=options.tls)  # a bound here would queue calls out of sight
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=None)) as session:
        known_as = await prepare(session)
        delay_s, refused = 0.0, []
        if options.predictor:
            begin_ms = await _next_step()
            progress("history", 0)
            steps = history(options.trace, options.schedule, known_as, begin_ms)
            refused = await tell(options.predictor, steps)
            delay_s = max(0.0, begin_ms / 1000 - time.time())
        loop.add_signal_handler(signal.SIGINT, stopped)
        try:
            run = await replay(
                options.schedule,
                target,
                session,
                stop=stop,
                limits=options.limits,
                delay_s=delay_s,
                progress=lambda share: progress("replay", share),
            )
        finally:
            loop.remove_signal_handler(signal.SIGINT)
    return run, refused


async def _next_step() -> int:
    """When the next whole step begins, epoch milliseconds, with time enough until then to tell a history."""
    at_ms = int(time.time() * 1000) % DEFAULT_STEP_MS
    if at_ms > 0.75 * DEFAULT_STEP_MS:
        await asyncio.sleep((DEFAULT_STEP_MS - at_ms) / 1000)
    return (int(time.time() * 1000) // DEFAULT_STEP_MS + 1) * DEFAULT_STEP_MS
