"""`mesp bench openwhisk`: what the plugin beside classic OpenWhisk costs by the calls it reads, on this machine.

The driver, the loop, the planner and the state file are the plugin's own; the bus is a list, so Kafka's client is left
out, and the predictor answers at once and foresees a call of everybody. A run plays ticks in virtual time: blocking calls
spread evenly over functions and seconds, three messages each (the call, its result, its completion), and a ping of each
invoker a second. What is timed is the processor time of the ticks alone: other programs on the machine do not count.
Memory is the whole process's, this program's own messages included, so it is an upper bound.
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
import resource
import shlex
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import numpy as np

import mesp
from mesp.types import Forecasts, ForecastStatus, FunctionKey
from mesp_bench.tables import Row, Table
from mesp_plugin.loop import Loop
from mesp_plugin.metrics import LoopMetrics, OpenWhiskMetrics
from mesp_plugin.openwhisk.actions import Actions
from mesp_plugin.openwhisk.classic import ClassicDriver
from mesp_plugin.openwhisk.config import KafkaConfig, OpenWhiskConfig
from mesp_plugin.openwhisk.fields import Fields
from mesp_plugin.openwhisk.holdings import Holdings
from mesp_plugin.openwhisk.kafka import Message
from mesp_plugin.openwhisk.platform import OpenWhiskPlatform
from mesp_plugin.openwhisk.rest import ActionSummary

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mesp.types import Rejection, StepCounts
    from mesp_plugin.openwhisk.fields import Json, JsonObject
    from mesp_plugin.openwhisk.rest import OpenWhiskApi

_BEGIN_MS: Final = 1_795_245_000_000
_STEP_MS: Final = 60_000
_INVOKERS: Final = 10
_UUID: Final = "23bc46b1-71f6-4ed5-8c54-816aa4f8c502"
_RUN_MS: Final = 50


class _Lists:
    """A bus that tells what it was given, and swallows what it is told."""

    leads = True
    since_ms = _BEGIN_MS
    unbroken_ms = (_BEGIN_MS, _BEGIN_MS)

    def __init__(self) -> None:
        self.waiting: list[Message] = []

    async def take(self, now_ms: int) -> list[Message]:
        self.unbroken_ms = (_BEGIN_MS, now_ms)
        taken, self.waiting = self.waiting, []
        return taken

    async def send(self, topic: str, values: Sequence[bytes], now_ms: int) -> None:
        """Shadow mode sends nothing."""


class _Api:
    """Every function has opted in."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names

    async def actions(self) -> list[ActionSummary]:
        return [ActionSummary(f"guest/{name}", 1) for name in self._names]

    async def action(self, full_name: str) -> Fields:
        limits: JsonObject = {"memory": 256, "timeout": 60_000, "logs": 10, "concurrency": 1}
        notes: list[Json] = [{"key": "mesp-prewarm", "value": True}]
        document: JsonObject = {
            "namespace": "guest",
            "name": full_name.partition("/")[2],
            "version": "0.0.1",
            "publish": False,
        }
        kind: JsonObject = {"kind": "nodejs:20", "binary": False}
        return Fields(
            "action", document | {"exec": kind, "limits": limits, "annotations": notes, "parameters": [], "updated": 1}
        )  # fmt: skip


class _Sure:
    """A predictor that foresees one call of each function in every step."""

    def __init__(self, functions: Sequence[FunctionKey]) -> None:
        self._functions = tuple(functions)
        self.now_ms = _BEGIN_MS

    async def observe(self, steps: Sequence[StepCounts]) -> list[Rejection]:
        del steps
        return []

    async def forecast(
        self, functions: Sequence[FunctionKey] | None = None, horizon: int = 0, levels: Sequence[float] = ()
    ) -> Forecasts:
        del functions, horizon, levels
        rows = len(self._functions)
        return Forecasts(
            tick_id=self.now_ms // _STEP_MS,
            as_of_ms=self.now_ms // _STEP_MS * _STEP_MS,
            step_ms=_STEP_MS,
            levels=(0.1, 0.5, 0.9),
            functions=self._functions,
            status=(ForecastStatus.OK,) * rows,
            quantiles=np.ones((rows, 15, 3), np.float32),
            active=np.ones((rows, 15), np.float32),
            experts=(),
            weights=np.ones((rows, 0), np.float32),
            age_ms=np.zeros(rows, np.int64),
            model_version="sure",
        )


def bench_overhead(rate: int, functions: int, seconds: int, progress: Callable[[str, float], None]) -> dict[str, Any]:
    """Plays `seconds` of `rate` calls a second of `functions` functions, after a minute that is not counted.

    Returns:
        The content of `bench.json`.
    """
    cpu_s, ticks = asyncio.run(_play(rate, functions, seconds, progress))
    share = cpu_s / seconds
    row = {
        "what": "openwhisk_classic",
        "functions": functions,
        "calls_per_s": rate,
        "seconds": cpu_s,
        "cpu_share": share,
        "cpu_share_per_1000_calls_per_s": share * 1_000 / rate,
        "tick_s_max": max(ticks),
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "threads": 1,
        "ratio_to": {},
    }
    notes = [
        "seconds: processor time of all ticks. cpu_share: of one core. Kafka's client and the predictor are not in it.",
        "peak_rss_mb: of this whole process, the messages that it made included.",
    ]
    protocol = {"calls_per_s": rate, "functions": functions, "played_s": seconds, "invokers": _INVOKERS}
    about = {
        "mesp": mesp.__version__,
        "command": shlex.join(["mesp", *sys.argv[1:]]),
        "machine": f"{platform.machine()} {platform.system()}",
        "cores": os.cpu_count(),
        "python": platform.python_version(),
    }
    return {"provenance": about, "notes": notes, "protocol": protocol, "rows": [row]}


def overhead_table(result: dict[str, Any]) -> Table:
    """The row of `bench.json`."""
    columns = (
        "driver",
        "calls a second",
        "functions",
        "share of a core",
        "per 1,000 a second",
        "longest tick s",
        "peak MB",
    )
    rows = [
        Row(
            (
                "classic",
                f"{row['calls_per_s']:,}",
                f"{row['functions']:,}",
                f"{row['cpu_share']:.1%}",
                f"{row['cpu_share_per_1000_calls_per_s']:.1%}",
                f"{row['tick_s_max']:.2f}",
                f"{row['peak_rss_mb']:,.0f}",
            )
        )
        for row in result["rows"]
    ]
    return Table("The plugin beside classic OpenWhisk", columns, tuple(rows))


async def _play(
    rate: int, functions: int, seconds: int, progress: Callable[[str, float], None]
) -> tuple[float, list[float]]:
    """Processor seconds of the ticks after the first minute: of all, and of each."""
    names = [f"f{number}" for number in range(functions)]
    config = OpenWhiskConfig(kafka=KafkaConfig(bootstrap_servers="nowhere:9092"))
    bus, metrics = _Lists(), LoopMetrics()
    own = OpenWhiskMetrics(metrics.registry)
    actions = Actions(cast("OpenWhiskApi", _Api(names)), "guest", config.opt_in)
    predictor = _Sure([FunctionKey("guest", name) for name in names])
    tick_ms, spent = config.loop.tick_ms, []
    with tempfile.TemporaryDirectory(prefix="mesp-bench-") as folder:
        holdings = Holdings(Path(folder) / "state.json")
        driver = ClassicDriver(bus, "guest", None, actions, holdings, config, own)
        beside = OpenWhiskPlatform(driver, holdings, mode="shadow", expiry_ms=config.expiry_ms, metrics=own)
        loop = Loop(beside, predictor, config.loop, metrics=metrics)
        end_ms = _BEGIN_MS + _STEP_MS + seconds * 1_000
        for now_ms in range(_BEGIN_MS, end_ms + 1, tick_ms):
            bus.waiting = _messages(names, rate, now_ms - tick_ms, now_ms)
            predictor.now_ms = now_ms
            begun_s = time.process_time()
            await loop.tick(now_ms)
            if now_ms > _BEGIN_MS + _STEP_MS:
                spent.append(time.process_time() - begun_s)
            progress("playing", (now_ms - _BEGIN_MS) / (end_ms - _BEGIN_MS))
    return sum(spent), spent


def _messages(names: Sequence[str], rate: int, begin_ms: int, end_ms: int) -> list[Message]:
    """What the bus carries in that time, in order."""
    said = []
    for at_ms in range(begin_ms, end_ms, 1_000):
        said += [_message("health", at_ms, {"name": _invoker(one), "isEnabled": True}) for one in range(_INVOKERS)]
        for place in range(rate):
            call_ms = at_ms + place * 1_000 // rate
            number = (at_ms // 1_000 * rate + place) % len(names)
            said += _call(names[number], number % _INVOKERS, f"{call_ms * 10_000 + place:032x}", call_ms)
    return sorted(said, key=lambda one: one.at_ms)


def _call(name: str, invoker: int, activation_id: str, at_ms: int) -> list[Message]:
    """A blocking call, its result and its completion."""
    end_ms = at_ms + _RUN_MS
    call = {
        "transid": ["tid", at_ms],
        "action": {"path": "guest", "name": name, "version": "0.0.1"},
        "revision": "1-aa",
        "user": {
            "subject": "guest",
            "namespace": {"name": "guest", "uuid": _UUID},
            "authkey": {"api_key": f"{_UUID}:none"},
            "rights": ["READ", "ACTIVATE"],
            "limits": {},
        },
        "activationId": activation_id,
        "rootControllerIndex": {"asString": "0", "instanceType": "controller"},
        "blocking": True,
        "content": {"text": "hello"},
        "initArgs": [],
        "lockedArgs": {},
    }
    notes = {"path": f"guest/{name}", "waitTime": 3, "kind": "nodejs:20", "limits": {"memory": 256}}
    record = {
        "activationId": activation_id,
        "annotations": [{"key": key, "value": value} for key, value in notes.items()],
        "duration": _RUN_MS,
        "start": at_ms,
        "end": end_ms,
        "logs": [],
        "name": name,
        "namespace": "guest",
        "publish": False,
        "response": {"statusCode": 0, "result": {"text": "hello"}},
        "subject": "guest",
        "version": "0.0.1",
    }
    done = {"activationId": activation_id, "isSystemError": False, "instance": _invoker(invoker)}
    return [
        _message(f"invoker{invoker}", at_ms, call),
        _message("completed0", end_ms, {"transid": ["tid", at_ms], "response": record}),
        _message("completed0", end_ms, {"transid": ["tid", at_ms]} | done),
    ]


def _invoker(number: int) -> dict[str, Any]:
    who = {"instance": number, "userMemory": "65536 MB", "instanceType": "invoker"}
    return who | {"tags": [], "dedicatedNamespaces": []}


def _message(topic: str, at_ms: int, content: dict[str, Any]) -> Message:
    return Message(topic, at_ms, json.dumps(content).encode())
