"""`mesp plugin`: run MESP beside a platform, look at what is there, and take everything back."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mesp.config import load_config
from mesp.errors import InputError, UnavailableError

if TYPE_CHECKING:
    from mesp_plugin.loop import Clock
    from mesp_plugin.openwhisk.config import OpenWhiskConfig
    from mesp_plugin.openwhisk.platform import Tally
    from mesp_plugin.openwhisk.probe import Probe

app = typer.Typer(no_args_is_help=True, help="Run MESP beside a platform.")
openwhisk = typer.Typer(
    help="""MESP beside Apache OpenWhisk, from outside: nothing of the platform is changed.

    The API key comes from a file or an environment variable that the configuration names. By default the plugin only
    watches and tells what it would do (mode: shadow), and only annotated actions could ever be sent a marker.
    """,
)
app.add_typer(openwhisk, name="openwhisk")

ConfigOption = Annotated[Path | None, typer.Option("--config", metavar="FILE", help="YAML; defaults without it.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@openwhisk.callback(invoke_without_command=True)
def _openwhisk(
    ctx: typer.Context,
    do_probe: Annotated[bool, typer.Option("--probe", help="As the command probe.")] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    if ctx.invoked_subcommand is None:
        if not do_probe:
            typer.echo(ctx.get_help())
            raise typer.Exit(2)
        probe(config, as_json=as_json)


@openwhisk.command()
def run(config: ConfigOption = None) -> None:
    """Watch, forecast and prewarm until Ctrl-C or SIGTERM; a predictor must run (mesp predictor serve).

    An OpenWhisk that does not answer yet is waited for; a key that it refuses, or a configuration that does not fit it,
    ends the command.

    Example: mesp plugin openwhisk run --config deploy/openwhisk/plugin.yaml
    """
    from mesp_plugin.loop import WallClock  # noqa: PLC0415

    settings = _config(config)
    tally = asyncio.run(_run(settings, WallClock()))
    what = "would have been ordered" if settings.mode == "shadow" else "were ordered"
    met = "would have met" if settings.mode == "shadow" else "met"
    typer.echo(
        f"{tally.calls} calls, {tally.cold} of them cold; {tally.ordered} containers {what}, {tally.met} calls {met} one",
        err=True,
    )


@openwhisk.command()
def probe(config: ConfigOption = None, *, as_json: JsonOption = False) -> None:
    """Say what is there and what could be done: reachable, limits, metrics, actions that opted in, drivers.

    Exit code 4 where no driver can be used. Example: mesp plugin openwhisk probe --json
    """
    found = asyncio.run(_probe(_config(config)))
    typer.echo(json.dumps(found.to_json(), indent=2) if as_json else "\n".join(found.lines()))
    if found.driver is None:
        raise UnavailableError("no driver can be used here: see above")


@openwhisk.command()
def release(
    config: ConfigOption = None,
    everything: Annotated[bool, typer.Option("--all", help="Needed: there is no half of it.")] = False,
) -> None:
    """Stop acting, and take back what was added, until `resume`; a running plugin heeds it at its next tick.

    Example: mesp plugin openwhisk release --all
    """
    from mesp_plugin.openwhisk.holdings import Holdings  # noqa: PLC0415

    if not everything:
        raise InputError("release needs --all: it stops all acting until mesp plugin openwhisk resume")
    settings = _config(config)
    if not settings.state_file.with_name(settings.state_file.name + ".lock").exists():
        typer.echo(f"No plugin has used state_file = {settings.state_file} so far: is it this one's?", err=True)
    holdings = Holdings(settings.state_file)
    holdings.release()
    now_ms = time.time_ns() // 1_000_000
    left = [item for item in holdings.alive() if item.until_ms > now_ms]
    typer.echo(f"Released: nothing is added until mesp plugin openwhisk resume (state_file = {settings.state_file}).")
    if left:
        wait_s = (max(item.until_ms for item in left) - now_ms) / 1e3
        typer.echo(
            f"{len(left)} containers that MESP added are left; what this platform cannot remove early goes by itself "
            f"within {wait_s:.0f} s of idleness."
        )


@openwhisk.command()
def resume(config: ConfigOption = None) -> None:
    """Let the plugin act again after `release --all`.

    Example: mesp plugin openwhisk resume
    """
    from mesp_plugin.openwhisk.holdings import Holdings  # noqa: PLC0415

    settings = _config(config)
    Holdings(settings.state_file).resume()
    typer.echo(f"The plugin may act again (state_file = {settings.state_file}).")


def _config(path: Path | None) -> OpenWhiskConfig:
    from mesp_plugin.openwhisk.config import OpenWhiskConfig  # noqa: PLC0415

    return OpenWhiskConfig() if path is None else load_config(path, OpenWhiskConfig)


async def _probe(config: OpenWhiskConfig) -> Probe:
    from mesp_plugin.openwhisk.probe import probe as look  # noqa: PLC0415
    from mesp_plugin.openwhisk.rest import Key, OpenWhiskApi, connect  # noqa: PLC0415

    key = Key.read(config)
    async with connect(config) as session:
        return await look(OpenWhiskApi(session, config.api_host, key, config.namespace), config)


async def _run(config: OpenWhiskConfig, clock: Clock) -> Tally:
    from mesp.client import PredictorClient  # noqa: PLC0415
    from mesp_plugin.loop import Loop  # noqa: PLC0415
    from mesp_plugin.metrics import LoopMetrics, OpenWhiskMetrics, metrics_page  # noqa: PLC0415
    from mesp_plugin.openwhisk.platform import Tally  # noqa: PLC0415
    from mesp_plugin.openwhisk.start import open_when_there  # noqa: PLC0415

    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    metrics = LoopMetrics()
    with metrics_page(metrics, config.loop.metrics_port) as port:
        # The seed only spreads retries in time.
        async with (
            open_when_there(config, OpenWhiskMetrics(metrics.registry), clock, stop) as platform,
            PredictorClient(config.loop.predictor_address, rng=random.Random(0)) as predictor,
        ):
            if platform is None:
                return Tally()
            page = f", metrics on http://127.0.0.1:{port}/metrics" if port else ""
            typer.echo(f"beside OpenWhisk at {config.api_host}, mode {config.mode}{page}", err=True)
            await Loop(platform, predictor, config.loop, metrics=metrics).run(clock, stop)
            return platform.tally
