"""The API's client: pages without gap, records as the real one writes them, failures with a type and no secret."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from aiohttp import web

from e2e.openwhisk.beside import HELLO, Beside, beside
from mesp.errors import InputError, UnavailableError
from mesp_plugin.openwhisk.fields import Fields
from mesp_plugin.openwhisk.rest import RefusedError, ThrottledError, parse_gauges, parse_record

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

RECORDED = Path(
    os.environ.get("MESP_GOLDEN", Path(__file__).parents[3] / ".." / "shared" / "platforms" / "openwhisk-golden")
)
STANDALONE = RECORDED / "standalone"
recorded = pytest.mark.skipif(not STANDALONE.is_dir(), reason="the golden traces are not here: MESP_GOLDEN names them")


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[Beside]:
    async with beside(tmp_path) as world:
        yield world


@recorded
def test_real_records_are_read() -> None:
    """Cold, prewarmed and warm by their initialisation, failures by their status, sequences not at all."""
    lines = [json.loads(line) for line in (STANDALONE / "activations.jsonl").read_text("utf-8").splitlines()]
    read = {line["kind"]: parse_record(Fields("record", line["record"])) for line in lines if "record" in line}
    assert read.pop("sequence") is None
    found = {kind: (str(one.function), one.init_ms, one.wait_ms, one.status_code) for kind, one in read.items() if one}
    assert found == {
        "cold": ("guest/s1", 149, 339, 0),
        "warm": ("guest/s1", 0, 7, 0),
        "prewarmed": ("guest/s2", 21, 34, 0),
        "sequence component": ("guest/s2", 0, 5, 0),
        "app error": ("guest/s1", 0, 11, 1),
        "throw": ("guest/s1", 0, 17, 2),
    }


@recorded
def test_real_gauges_are_read_once_they_are_there() -> None:
    """Absent in the first half minute, then megabytes."""
    assert parse_gauges((STANDALONE / "metrics-3-after-prewarmed.txt").read_text()) is None
    gauges = parse_gauges((STANDALONE / "metrics-4-after-throttle.txt").read_text())
    assert gauges
    assert (gauges.active_mb, gauges.idle_mb, gauges.stem_mb, gauges.buffered) == (0, 768, 256, 0)


async def test_many_pages_are_read_without_gap_or_repeat(here: Beside) -> None:
    """450 records, new ones appearing between the pages."""
    for _ in range(450):
        here.double.call("plain", sleep_ms=1)
        here.wait(500)
    pages = 0

    def more(request: object) -> None:
        nonlocal pages
        pages += 1
        here.double.call("hello", sleep_ms=1)
        here.wait(500)

    here.double.fails.append(more)
    records = await here.api.activations(0, 2**60)
    ids = [record.activation_id for record in records]
    assert pages == 3
    assert len(ids) == len(set(ids))
    assert sum(record.function != HELLO for record in records) == 450


async def test_a_record_that_makes_no_sense_is_counted_and_skipped(here: Beside) -> None:
    """One broken record does not hide the others."""
    good, bad = here.double.call("plain"), here.double.call("plain")
    here.wait(1_000)
    del here.double.records[bad]["annotations"]
    assert [record.activation_id for record in await here.api.activations(0, 2**60)] == [good]
    assert here.api.malformed == 1


async def test_failures_say_whether_trying_again_may_help(here: Beside) -> None:
    """429 by its kind; a wrong name never; nobody there, later perhaps."""
    with pytest.raises(RefusedError, match=r"POST .*/actions/none is refused \(HTTP 404\)"):
        await here.api.invoke("guest/none", {}, "x")
    for _ in range(30):
        await here.api.invoke("guest/plain", {"sleep_ms": 60_000}, "x")
    with pytest.raises(ThrottledError, match="calls in flight") as caught:
        await here.api.invoke("guest/plain", {}, "x")
    assert not caught.value.per_minute
    here.double.throttled = True
    with pytest.raises(ThrottledError, match="calls a minute") as caught:
        await here.api.invoke("guest/plain", {}, "x")
    assert caught.value.per_minute
    here.api.host = "http://127.0.0.1:9"
    with pytest.raises(UnavailableError, match="does not answer: ClientConnectorError"):
        await here.api.limits()


async def test_an_answer_that_is_none_is_one_sentence(here: Beside) -> None:
    """A proxy's page in place of JSON, say; it is not quoted."""

    def page(_request: web.Request) -> None:
        raise web.HTTPOk(text="<html>secret</html>")

    here.double.fails.append(page)
    with pytest.raises(InputError, match="limits: must be JSON") as caught:
        await here.api.limits()
    assert "secret" not in repr(caught.value)
