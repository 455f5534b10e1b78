"""The target `http`: any service behind URLs.

Every 2xx is a run. What else an answer means is told by its status alone; whether it was a cold start only by the header
or field that the map names, and by nothing where it names none.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mesp_bench.replay.calls import Answer, Outcome
from mesp_bench.replay.functions import fill_body, fill_name

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aiohttp import ClientResponse, ClientSession

    from mesp.types import FunctionKey
    from mesp_bench.replay.functions import Cold, HttpCall

#: Bytes of an answer that are looked at; the rest is read and dropped.
_KEPT_BYTES = 4 * 2**20

_WARM_WORDS = frozenset({"", "0", "false", "no", "none"})


@dataclass(frozen=True, slots=True)
class HttpTarget:
    """Calls functions as their entries say."""

    entries: Mapping[FunctionKey, HttpCall]
    cold: Cold | None = None
    name: str = "http"

    async def call(self, session: ClientSession, function: FunctionKey, run_ms: float) -> Answer:
        """One request; see `Target.call`."""
        entry = self.entries[function]
        body = fill_body(entry.body, function, run_ms)
        async with session.request(
            entry.method,
            fill_name(entry.url, function, escape=True),
            headers={name: fill_name(value, function) for name, value in entry.headers.items()},
            data=body if isinstance(body, str) else None,
            json=None if isinstance(body, str) else body,
            allow_redirects=False,
        ) as response:
            content = await read(response)
            outcome = outcome_of(response.status)
            return Answer(outcome, cold=self._cold(response, content) if outcome is Outcome.OK else None)

    def _cold(self, response: ClientResponse, content: bytes) -> bool | None:
        if self.cold is None:
            return None
        if self.cold.header is not None:
            told: Any = response.headers.get(self.cold.header, "")
        else:
            told = json_object(content).get(str(self.cold.field), "")
        return str(told).strip().lower() not in _WARM_WORDS


def outcome_of(status: int) -> Outcome:
    """What an HTTP status says by itself."""
    if 200 <= status < 300:
        return Outcome.OK
    if status == 429:
        return Outcome.THROTTLED
    return Outcome.SERVER_ERROR if status >= 500 else Outcome.REFUSED


async def read(response: ClientResponse) -> bytes:
    """The answer to its end, of which the first `_KEPT_BYTES` are kept."""
    kept = bytearray()
    async for chunk in response.content.iter_chunked(2**16):
        kept += chunk[: _KEPT_BYTES - len(kept)]
    return bytes(kept)


def json_object(content: bytes) -> dict[str, Any]:
    """The JSON object in an answer; empty for anything else."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
