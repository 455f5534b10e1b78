"""What invokes an action is read off its triggers' documents, and told with the counts."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from mesp.errors import InputError
from mesp.types import FunctionKey, StepCounts, Trigger
from mesp_plugin.openwhisk.driver import Observed
from mesp_plugin.openwhisk.fields import Fields
from mesp_plugin.openwhisk.holdings import Holdings
from mesp_plugin.openwhisk.platform import OpenWhiskPlatform
from mesp_plugin.openwhisk.rest import Key, OpenWhiskApi
from mesp_plugin.openwhisk.triggers import EVERY_MS, Triggers, bound_actions

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from mesp_plugin.openwhisk.actions import Actions
    from mesp_plugin.openwhisk.driver import Driver

NIGHTLY, PAGE, PLAIN = (FunctionKey("guest", name) for name in ("jobs/nightly", "page", "plain"))


def rule(path: str, name: str, status: str = "active") -> dict[str, Any]:
    return {"action": {"path": path, "name": name}, "status": status}


def document(feed: str | None = None, **rules: dict[str, Any]) -> dict[str, Any]:
    """A trigger as the API shows it: members and types of WhiskTrigger.scala."""
    annotations = [] if feed is None else [{"key": "feed", "value": feed}]
    return {
        "namespace": "guest", "name": "t", "version": "0.0.1", "publish": False, "updated": 1, "limits": {},
        "parameters": [], "annotations": annotations, "rules": {f"guest/{name}": each for name, each in rules.items()},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("feed", "trigger"),
    [
        ("/whisk.system/alarms/alarm", Trigger.TIMER),
        ("/whisk.system/alarms/interval", Trigger.TIMER),
        ("/_/Bluemix_Kafka/messageHubFeed", Trigger.OTHERS),
        ("/whisk.system/messaging/kafkaFeed", Trigger.QUEUE),
        ("/whisk.system/cloudant/changes", Trigger.STORAGE),
        ("mine", Trigger.OTHERS),
        (None, Trigger.EVENT),
    ],
)
def test_the_feed_s_package_says_what_it_is(feed: str | None, trigger: Trigger) -> None:
    """By the names of the catalogue; a trigger without a feed is fired by whoever likes to."""
    fields = Fields("trigger", document(feed, r=rule("guest/jobs", "nightly")))
    assert bound_actions("guest", fields) == {NIGHTLY: trigger}


def test_only_active_rules_count() -> None:
    """An inactive rule fires nothing; a trigger without rules ties nothing."""
    fields = Fields("trigger", document(a=rule("guest", "plain", "inactive"), b=rule("guest", "page")))
    assert bound_actions("guest", fields) == {PAGE: Trigger.EVENT}
    assert bound_actions("guest", Fields("trigger", {"annotations": []})) == {}


@pytest.mark.parametrize(
    "broken", [{}, {"annotations": [], "rules": []}, {"annotations": [], "rules": {"r": {"status": "active"}}}]
)
def test_what_is_no_document_is_refused(broken: dict[str, Any]) -> None:
    """One sentence that names the key."""
    with pytest.raises(InputError, match=r"annotations|rules"):
        bound_actions("guest", Fields("trigger", broken))


class Api:
    """The two pages of triggers, counting how often they are asked for; `down` answers nothing."""

    def __init__(self) -> None:
        self.documents: dict[str, Any] = {"t": document("/whisk.system/alarms/alarm", r=rule("guest/jobs", "nightly"))}
        self.lists = 0
        self.down = False

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/api/v1/namespaces/_/triggers", self.listed)
        app.router.add_get("/api/v1/namespaces/_/triggers/{name}", self.one)
        return app

    async def listed(self, _request: web.Request) -> web.Response:
        self.lists += 1
        return web.json_response([{"name": name} for name in self.documents], status=503 if self.down else 200)

    async def one(self, request: web.Request) -> web.Response:
        found = self.documents[request.match_info["name"]]
        return web.json_response(found, status=404 if found is None else 200)


@pytest.fixture
async def world() -> AsyncIterator[tuple[Api, Triggers]]:
    api = Api()
    known = {key: SimpleNamespace(web=key == PAGE) for key in (NIGHTLY, PAGE, PLAIN)}
    async with TestServer(api.app()) as server, aiohttp.ClientSession() as session:
        client = OpenWhiskApi(session, str(server.make_url("")).rstrip("/"), Key("a:b"))
        yield api, Triggers(client, "guest", cast("Actions", SimpleNamespace(known=known)))


async def test_rules_and_web_actions_are_known(world: tuple[Api, Triggers]) -> None:
    """A timer by its rule, a page by its annotation; of the third nothing is said. Read every ten minutes, no more."""
    api, triggers = world
    assert dict(triggers.known) == {PAGE: Trigger.HTTP}
    for now_ms in (0, 1, EVERY_MS - 1):
        await triggers.refresh(now_ms)
    assert dict(triggers.known) == {PAGE: Trigger.HTTP, NIGHTLY: Trigger.TIMER}
    assert api.lists == 1
    api.documents = {"gone": None, "broken": {}, "t": document(r=rule("guest", "page"))}
    await triggers.refresh(EVERY_MS)
    assert dict(triggers.known) == {PAGE: Trigger.EVENT}


async def test_what_was_known_stands_while_the_platform_is_away(world: tuple[Api, Triggers]) -> None:
    """Nothing is raised: forecasts go on without news of triggers."""
    api, triggers = world
    await triggers.refresh(0)
    api.down = True
    await triggers.refresh(EVERY_MS)
    assert api.lists == 2
    assert triggers.known[NIGHTLY] == Trigger.TIMER


async def test_the_platform_tells_them_with_the_counts(world: tuple[Api, Triggers], tmp_path: Path) -> None:
    """Every report carries what is known."""
    _, triggers = world

    async def observe(_now_ms: int) -> Observed:
        return Observed([StepCounts("openwhisk", 0, 60_000, {NIGHTLY: 1, PLAIN: 2})])

    driver = cast("Driver", SimpleNamespace(observe=observe))
    platform = OpenWhiskPlatform(
        driver, Holdings(tmp_path / "state.json"), mode="on", expiry_ms=600_000, triggers=triggers
    )
    (step,) = await platform.observe(60_000)
    assert dict(step.triggers) == {PAGE: Trigger.HTTP, NIGHTLY: Trigger.TIMER}
