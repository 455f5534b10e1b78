"""The probe says what is there and why a driver cannot be used; starting obeys it."""

from __future__ import annotations

import asyncio
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web
from structlog.testing import capture_logs

from e2e.openwhisk.beside import OPTED_IN, Beside, beside
from e2e.openwhisk.standalone import KEY
from e2e.openwhisk.standalone_pool import Spec
from mesp.errors import InputError, UnavailableError
from mesp_plugin.openwhisk import probe as probing
from mesp_plugin.openwhisk import start
from mesp_plugin.openwhisk.config import EtcdConfig, KafkaConfig, OpenWhiskConfig
from mesp_plugin.openwhisk.probe import probe
from mesp_plugin.openwhisk.rest import Key, OpenWhiskApi, RefusedError, connect
from mesp_plugin.openwhisk.start import open_platform, open_when_there

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[Beside]:
    async with beside(tmp_path, opt_in={"kinds": ["python:3"], "functions": ["guest/thumb*"]}) as world:
        yield world


async def test_it_tells_limits_actions_and_the_rules_of_opting_in(here: Beside) -> None:
    """By annotation, by kind, by the operator's pattern; an annotation that says no goes first."""
    here.double.put(Spec("p", kind="python:3"))
    here.double.put(Spec("thumbnail"))
    here.double.put(Spec("thumbs-down", annotations=(("mesp-prewarm", False),)))
    here.double.put(Spec("in-package/a", annotations=OPTED_IN))
    found = await probe(here.api, here.config)
    assert found.opted_in == {
        "guest/hello": "annotation mesp-prewarm",
        "guest/in-package/a": "annotation mesp-prewarm",
        "guest/p": "kind python:3",
        "guest/thumbnail": "pattern guest/thumb*",
    }
    assert (found.namespace, found.calls_per_minute, found.calls_at_once, found.actions) == ("guest", 60, 30, 6)
    assert (found.gauges, found.invokers, found.driver, found.trouble) == (False, 0, "standalone", ())
    here.wait(31_000)
    assert (await probe(here.api, here.config)).gauges
    assert "driver     standalone: can be used" in found.lines()
    assert found.to_json()["driver"] == "standalone"


async def test_a_wrong_key_is_said_and_no_driver_is_offered(here: Beside) -> None:
    """The rest is told all the same."""
    async with connect(here.config) as session:
        found = await probe(OpenWhiskApi(session, here.api.host, Key("a:b")), here.config)
    assert (found.driver, found.in_flight) == (None, 0)
    assert "does not take the API key (HTTP 401)" in found.trouble[0]


async def test_registered_invokers_rule_standalone_out(here: Beside) -> None:
    """Markers by REST choose no node."""

    def two(request: web.Request) -> None:
        if request.path == "/invokers":
            raise web.HTTPOk(text='{"invoker0": "up", "invoker1": "up"}')

    here.double.fails.append(two)
    found = await probe(here.api, here.config)
    assert found.driver is None
    assert "2 invokers are registered" in (found.drivers["standalone"] or "")
    assert not found.may_pass


async def test_no_lesser_driver_is_taken_while_a_better_one_may_come(here: Beside) -> None:
    """Kafka is configured and not there yet: standalone could be used, and is not."""
    config = here.config.model_copy(update={"kafka": KafkaConfig(bootstrap_servers="127.0.0.1:9")})
    found = await probe(here.api, config)
    assert (found.may_pass, found.drivers["standalone"], found.driver) == (frozenset({"classic"}), None, None)


async def test_where_schedulers_are_not_there_yet_classic_is_not_taken(
    here: Beside, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kafka and etcd are configured, and an invoker was quicker than the schedulers: there are no topics of theirs."""

    async def topics(_: KafkaConfig) -> set[str]:
        return {"invoker0", "completed0"}

    monkeypatch.setattr(probing, "topics", topics)
    monkeypatch.setattr(probing, "open_etcd", lambda _: nullcontext(NoSchedulers()))
    both = {
        "kafka": KafkaConfig(bootstrap_servers="127.0.0.1:9"),
        "etcd": EtcdConfig(endpoints=("http://127.0.0.1:9",)),
    }
    found = await probe(here.api, here.config.model_copy(update=both))
    assert (found.may_pass, found.drivers["classic"], found.driver) == (frozenset({"fpc"}), None, None)


class NoSchedulers:
    async def look(self, prefix: str) -> tuple[list[str], int]:
        assert prefix == "whisk/scheduler/"
        return [], 1


@pytest.mark.parametrize(
    ("key", "settings", "error", "words"),
    [
        ("a:b", {}, RefusedError, "does not take the API key"),
        (KEY, {"driver": "fpc"}, InputError, "driver = fpc: kafka is null in the configuration"),
        (KEY, {"api_host": "http://127.0.0.1:9"}, UnavailableError, "does not answer"),
    ],
)
async def test_a_start_that_cannot_be_is_one_sentence(
    here: Beside,
    monkeypatch: pytest.MonkeyPatch,
    key: str,
    settings: dict[str, Any],
    error: type[Exception],
    words: str,
) -> None:
    """Wrong key, a driver that is not there, nobody at home."""
    monkeypatch.setenv("MESP_OPENWHISK_AUTH", key)
    config = OpenWhiskConfig(**{"api_host": here.api.host, "state_file": here.config.state_file} | settings)
    with pytest.raises(error, match=words):
        async with open_platform(config):
            pass


async def test_a_platform_that_does_not_answer_yet_is_waited_for(here: Beside, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its first two looks find no API, the third one page less than it needs: each sentence is told once."""
    monkeypatch.setenv("MESP_OPENWHISK_AUTH", KEY)
    monkeypatch.setattr(start, "_WAITS_S", (0.0,))
    answers = iter(("/api/v1/namespaces", "/api/v1/namespaces", "/activation"))

    def one_by_one(request: web.Request) -> None:
        if request.path == waited_for[0]:
            waited_for[0] = next(answers, "")
            raise web.HTTPServiceUnavailable

    waited_for = [next(answers)]
    here.double.fails.append(one_by_one)
    with capture_logs() as logs:
        async with open_when_there(here.config, None, None, asyncio.Event()) as platform:
            assert platform is not None
    assert [line["event"] for line in logs] == ["waiting for OpenWhisk"] * 2
    assert "/api/v1/namespaces failed with HTTP 503" in logs[0]["error"]
    assert "standalone: GET /activation does not answer" in logs[1]["error"]


async def test_who_is_told_to_end_does_not_wait_on(here: Beside, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody at home: None, once `stop` is set."""
    monkeypatch.setenv("MESP_OPENWHISK_AUTH", KEY)
    stop = asyncio.Event()
    stop.set()
    config = here.config.model_copy(update={"api_host": "http://127.0.0.1:9"})
    async with open_when_there(config, None, None, stop) as platform:
        assert platform is None


async def test_what_is_wrong_is_not_waited_for(here: Beside, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key that is refused, and invokers that no configured driver can use."""
    monkeypatch.setenv("MESP_OPENWHISK_AUTH", "a:b")
    with pytest.raises(RefusedError, match="does not take the API key"):
        async with open_when_there(here.config, None, None, asyncio.Event()):
            pass
    monkeypatch.setenv("MESP_OPENWHISK_AUTH", KEY)

    def one(request: web.Request) -> None:
        if request.path == "/invokers":
            raise web.HTTPOk(text='{"invoker0": "up"}')

    here.double.fails.append(one)
    with pytest.raises(InputError, match=r"no driver can be used .* classic: kafka is null in the configuration"):
        async with open_when_there(here.config, None, None, asyncio.Event()):
            pass


async def test_a_start_that_can_be_gives_a_platform(here: Beside, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen from the platform's face: one node, two actions."""
    monkeypatch.setenv("MESP_OPENWHISK_AUTH", KEY)
    async with open_platform(here.config) as platform:
        await platform.observe(here.now_ms)
        snapshot = await platform.snapshot(here.now_ms)
    assert ([node.name for node in snapshot.nodes], len(snapshot.profiles)) == (["standalone"], 2)


async def test_a_second_plugin_with_the_same_state_is_refused(here: Beside, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two would order everything twice; when the first is gone, the second may start."""
    monkeypatch.setenv("MESP_OPENWHISK_AUTH", KEY)
    async with open_platform(here.config):
        with pytest.raises(InputError, match="another plugin is using it"):
            async with open_platform(here.config):
                pass
    async with open_platform(here.config):
        pass
