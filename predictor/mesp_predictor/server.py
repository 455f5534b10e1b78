"""The sidecar as a process: loads the state, answers until it is stopped, saves the state."""

from __future__ import annotations

import asyncio
import signal
import time
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

import prometheus_client
import structlog

from mesp.alone import alone
from mesp.errors import InputError, UnavailableError
from mesp.server import serve
from mesp.v1 import predictor_service_pb2 as pb
from mesp.v1.predictor_service_pb2_grpc import add_PredictorServiceServicer_to_server
from mesp_predictor import store as files
from mesp_predictor.engine import Engine
from mesp_predictor.journal import Journal, Kind
from mesp_predictor.metrics import PredictorMetrics
from mesp_predictor.series import SeriesStore
from mesp_predictor.service import PredictorService

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import grpc.aio

    from mesp_predictor.config import PredictorConfig
    from mesp_predictor.forecaster import Forecaster

SERVICE = pb.DESCRIPTOR.services_by_name["PredictorService"].full_name

_log = structlog.get_logger(__name__)


async def serve_predictor(
    config: PredictorConfig,
    forecaster: Forecaster,
    *,
    say: Callable[[str], None],
    stop: asyncio.Event | None = None,
) -> None:
    """Serves until `stop` is set or, without one, until SIGINT or SIGTERM (main thread only).

    Args:
        config: addresses, limits and files.
        forecaster: the loaded model.
        say: gets the one line that tells the bound address, when calls are answered.
        stop: ends the server when set.

    Raises:
        InputError: the state or ready file cannot be read or written, another predictor keeps that state, or the host is
            none.
        UnavailableError: a port is taken.
    """
    with nullcontext() if config.state is None else alone(config.state, "another predictor"):
        await _serve(config, forecaster, say=say, stop=stop)


async def _serve(
    config: PredictorConfig, forecaster: Forecaster, *, say: Callable[[str], None], stop: asyncio.Event | None
) -> None:
    context = max(config.context, forecaster.context_length)
    metrics = PredictorMetrics()
    if config.state is None:
        store = SeriesStore(forecaster.step_ms, context, config.max_functions)
    else:
        store, sentence = files.load(config.state, forecaster.step_ms, context, config.max_functions)
        if sentence is not None:
            _log.warning(sentence)
    stopping = asyncio.Event() if stop is None else stop
    clock = None if config.virtual_time else _now_ms

    with _metrics_page(config, metrics) as metrics_port, _signals(stopping if stop is None else None):
        engine = Engine(store, forecaster, metrics)
        if config.state is not None:
            recover(engine, Journal(config.state))
        service = PredictorService(engine, metrics, clock, config.state, config.save_every_steps)
        ending = asyncio.create_task(_end_watches(stopping, service))

        def add(server: grpc.aio.Server) -> None:
            add_PredictorServiceServicer_to_server(service, server)

        def ready(port: int) -> None:
            address = f"{config.host}:{port}"
            if config.ready_file is not None:
                _write_whole(config.ready_file, address + "\n")
            page = "" if metrics_port is None else f", metrics on port {metrics_port}"
            say(f"predictor ready on {address}: model {forecaster.model_version}, {store.known} functions known{page}")

        try:
            await serve([(SERVICE, add)], f"{config.host}:{config.port}", ready=ready, stop=stopping)
        finally:
            ending.cancel()
            if config.ready_file is not None:
                config.ready_file.unlink(missing_ok=True)
            await service.close()


def recover(engine: Engine, journal: Journal) -> None:
    """Takes in what came after the state was last saved, as it was taken in then."""
    for kind, now_ms, request in journal.entries():
        try:
            if kind is Kind.OBSERVE:
                engine.observe(pb.ObserveRequest.FromString(request), now_ms)
            else:
                engine.delete(pb.DeleteFunctionsRequest.FromString(request))
        except InputError as error:  # of a model with steps of another width, say
            _log.warning("left out of the journal", reason=str(error))


async def _end_watches(stopping: asyncio.Event, service: PredictorService) -> None:
    """Watches never end by themselves: without this each would hold the server back for its whole grace time."""
    await stopping.wait()
    service.end_watches()


@contextmanager
def _signals(stopping: asyncio.Event | None) -> Iterator[None]:
    """SIGINT and SIGTERM set the event while the context is open; None leaves the signals alone."""
    if stopping is None:
        yield
        return
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopping.set)
    try:
        yield
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


@contextmanager
def _metrics_page(config: PredictorConfig, metrics: PredictorMetrics) -> Iterator[int | None]:
    """Serves the metrics over HTTP, where a port was given, while the context is open; the bound port."""
    if config.metrics_port is None:
        yield None
        return
    try:
        page, thread = prometheus_client.start_http_server(config.metrics_port, config.host, metrics.registry)
    except OSError as error:
        raise UnavailableError(
            f"metrics cannot listen on {config.host}:{config.metrics_port}: {error.strerror}; choose another port"
        ) from error
    try:
        yield page.server_port
    finally:
        page.shutdown()
        page.server_close()
        thread.join()


def _write_whole(path: Path, text: str) -> None:
    """Whoever waits for the file finds all of it or none."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        raise InputError(f"{path}: the ready file cannot be written ({error.strerror})") from error


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
