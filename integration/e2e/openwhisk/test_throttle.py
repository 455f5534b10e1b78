"""The classic double refuses calls as the recorded 429 answers do, where its controller has limits."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING

import aiohttp
import pytest

from e2e.openwhisk.classic import GUEST, running_classic
from e2e.openwhisk.clock import HeldClock
from e2e.openwhisk.golden import FOLDER
from e2e.openwhisk.model import Action
from e2e.openwhisk.throttle import Throttle

if TYPE_CHECKING:
    from pathlib import Path

    from e2e.openwhisk.model import Json
    from e2e.servers.kafka import Kafka

#: A whole minute.
BEGIN_MS = 1_795_245_000_000


async def test_calls_beyond_the_limits_are_refused(kafka: Kafka, tmp_path: Path) -> None:
    """throttle.jsonl, "429 concurrency", "429 rate", "marker while throttled": status, content type, members, sentences.
    Refused calls count toward the minute, and the next minute begins anew.
    """
    path = FOLDER / "standalone" / "throttle.jsonl"
    if not path.is_file():
        pytest.skip("the golden traces are not here: MESP_GOLDEN names their folder")
    golden = {line["what"]: line for line in map(json.loads, path.read_text("utf-8").splitlines())}
    login = base64.b64encode(GUEST.key.encode()).decode()
    clock, options = HeldClock(BEGIN_MS - 30_000), {"bootstrap_servers": kafka.plain}
    async with (
        running_classic(options, clock=clock, prefix=f"{tmp_path.name}-") as double,
        aiohttp.ClientSession(headers={"Authorization": f"Basic {login}"}) as session,
    ):
        double.store.put(Action("guest", "s1"))
        double.controller.throttle = Throttle()

        async def post(parameters: Json) -> tuple[int, Json]:
            url = f"{double.api}/api/v1/namespaces/_/actions/s1"
            async with session.post(url, json=parameters) as answer:
                assert answer.content_type == "application/json"
                return answer.status, await answer.json()

        def same(told: Json, what: str, said: str = "", as_said: str = "") -> None:
            recorded = json.loads(golden[what]["body"])
            assert golden[what]["status"] == 429
            assert told.keys() == recorded.keys()
            assert told["error"] == recorded["error"].replace(said, as_said)

        await clock.sleep_until(BEGIN_MS)
        with clock.held():
            at_once = [await post({"ms": 2_500}) for _ in range(31)]
        assert [status for status, _ in at_once] == [202] * 30 + [429]
        # The real one counted while others were being admitted, and let a 31st in.
        same(at_once[-1][1], "429 concurrency", "count: 31", "count: 30")
        await clock.sleep_until(BEGIN_MS + 30_000)
        with clock.held():
            assert [(await post({}))[0] for _ in range(29)] == [202] * 29
            same((await post({}))[1], "429 rate")
            same((await post({"__ow_prewarm": {"op": "warm"}}))[1], "marker while throttled")
        await clock.sleep_until(BEGIN_MS + 60_000)
        with clock.held():
            assert (await post({}))[0] == 202
