"""What happened in the double, in the line format of the golden traces, so that the two can be laid side by side.

Lines of `src` ``kafka`` are read from the broker, as everyone else reads them; ``docker`` and ``log`` come from the
double's parts, ``driver`` from the test. API keys are replaced before anything is kept.
"""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from aiokafka import AIOKafkaConsumer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from e2e.openwhisk.bus import Bus
    from e2e.openwhisk.clock import Clock
    from e2e.openwhisk.model import Json

#: Topics worth keeping, whatever stands in front of them.
TOPICS = "(invoker[0-9]+|scheduler[0-9]+|completed.+|creationAck.+|health|events)$"


class Recording:
    """Lines in the order in which they were learnt; `ts`, else `t`, is when they happened."""

    def __init__(self, clock: Clock) -> None:
        self.lines: list[Json] = []
        self._clock = clock
        self._changed = asyncio.Condition()
        self._reading: asyncio.Task[None] | None = None

    def docker(self, action: str, container_id: str, name: str, at_ms: int | None = None) -> None:
        """A container was created, started, paused, unpaused, killed, died, or was destroyed; now, where None."""
        at_ms = self._clock.now_ms if at_ms is None else at_ms
        self._add({"t": at_ms, "src": "docker", "action": action, "id": container_id[:12], "name": name})

    def log(self, component: str, level: str, transid: str, source: str, message: str) -> None:
        """A line of a component's log, in its own format."""
        now_ms = self._clock.now_ms
        stamp = datetime.fromtimestamp(now_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        line = f"[{stamp}] [{level}] [#tid_{transid}] [{source}] {message}"
        self._add({"t": now_ms, "src": "log", "component": component, "line": line})

    def message(self, topic: str, value: Json) -> None:
        """A message, where there is no broker from which it could be read."""
        now_ms, raw = self._clock.now_ms, json.dumps(value)
        self._add(
            {"t": now_ms, "src": "kafka", "topic": topic, "ts": now_ms, "key": None, "value": _readable(raw.encode())}
        )

    def key(self, key: str, value: str | None) -> None:
        """A key of etcd was written, or deleted (None)."""
        kind = "DELETE" if value is None else "PUT"
        self._add({"t": self._clock.now_ms, "src": "etcd", "type": kind, "key": f"whisk/{key}", "value": value or ""})

    def driver(self, what: str, **members: object) -> None:
        """What the test did or saw."""
        self._add({"t": self._clock.now_ms, "src": "driver", "what": what, **members})

    async def start(self, bus: Bus) -> None:
        """Reads the bus from its beginning, until `stop`."""
        consumer = AIOKafkaConsumer(**bus.options, auto_offset_reset="earliest", metadata_max_age_ms=500)
        consumer.subscribe(pattern=f"^{bus.prefix}{TOPICS}")
        await consumer.start()
        self._reading = asyncio.create_task(self._read(consumer, len(bus.prefix)))

    async def stop(self) -> None:
        """Ends the reading."""
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)

    async def until(self, condition: Callable[[], bool], limit_s: float = 60) -> None:
        """Returns once the condition on the lines holds; `TimeoutError` after that many seconds of the wall."""
        async with asyncio.timeout(limit_s), self._changed:
            await self._changed.wait_for(condition)

    def of(self, source: str, **members: object) -> list[Json]:
        """Lines of that `src` whose members are these."""
        return [
            line
            for line in self.lines
            if line["src"] == source and all(line.get(key) == value for key, value in members.items())
        ]

    def write(self, path: Path) -> None:
        """All lines, one JSON object each."""
        path.write_text("".join(json.dumps(line) + "\n" for line in self.lines), "utf-8")

    async def _read(self, consumer: AIOKafkaConsumer, prefix: int) -> None:
        try:
            async for record in consumer:
                value = _readable(record.value)
                topic = record.topic[prefix:]
                place = {"topic": topic, "offset": record.offset, "ts": record.timestamp, "key": record.key}
                message = {"len": len(record.value), "value": value}
                self._add({"t": self._clock.now_ms, "src": "kafka", **place, **message})
                async with self._changed:
                    self._changed.notify_all()
        finally:
            await consumer.stop()

    def _add(self, line: Json) -> None:
        self.lines.append(line)


def _readable(raw: bytes) -> Any:
    """The message without its key; as text where it is no JSON."""
    try:
        value = json.loads(raw)
    except ValueError:
        return raw.decode(errors="replace")
    if isinstance(value, dict) and isinstance(user := value.get("user"), dict) and "authkey" in user:
        user["authkey"] = {"api_key": "UUID:KEY"}
    return value
