"""What invokes each action, by REST: web actions are called over HTTP, rules bind others to triggers, which feeds fire.

A trigger's document names the rules that are tied to it, and by an annotation its feed (WhiskTrigger.scala): the one of
``/whisk.system/alarms`` is a timer. Nothing depends on it but the forecast, and rules change rarely, so triggers are
read anew every ten minutes, and one that cannot be read is left out.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import structlog

from mesp.errors import InputError, MespError
from mesp.types import Trigger
from mesp_plugin.openwhisk.fields import ANY_TEXT, Fields
from mesp_plugin.openwhisk.names import NAME, PATH, function_key, tidy

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mesp.types import FunctionKey
    from mesp_plugin.openwhisk.actions import Actions
    from mesp_plugin.openwhisk.rest import OpenWhiskApi

_log = structlog.get_logger(__name__)

EVERY_MS: Final = 600_000
_AT_ONCE: Final = 8
#: Packages of feeds, as the OpenWhisk catalogue and its providers name them, and what they are.
_FEEDS: Final = {
    "alarms": Trigger.TIMER,
    "messaging": Trigger.QUEUE,
    "kafka": Trigger.QUEUE,
    "cloudant": Trigger.STORAGE,
    "cos": Trigger.STORAGE,
    "github": Trigger.EVENT,
}


class Triggers:
    """The namespace's triggers as of the last `refresh`."""

    def __init__(self, api: OpenWhiskApi, namespace: str, actions: Actions) -> None:
        self._api = api
        self._namespace = namespace
        self._actions = actions
        self._bound: dict[FunctionKey, Trigger] = {}
        self._due_ms = 0

    @property
    def known(self) -> Mapping[FunctionKey, Trigger]:
        """What invokes the actions of which that is known; a rule goes before being a web action."""
        web = {key: Trigger.HTTP for key, action in self._actions.known.items() if action.web}
        return web | self._bound

    async def refresh(self, now_ms: int) -> None:
        """Asks for all triggers where that is due; where it fails what was known stands."""
        if now_ms < self._due_ms:
            return
        self._due_ms = now_ms + EVERY_MS
        gate = asyncio.Semaphore(_AT_ONCE)

        async def ask(name: str) -> dict[FunctionKey, Trigger]:
            async with gate:
                try:
                    return bound_actions(self._namespace, await self._api.trigger(name))
                except InputError:  # deleted since it was listed, or no document
                    return {}

        try:
            found = await asyncio.gather(*(ask(name) for name in await self._api.triggers()))
        except MespError as error:
            _log.warning("triggers are not read; what was known of them stands", error=str(error))
            return
        self._bound = {key: trigger for each in found for key, trigger in each.items()}


def bound_actions(namespace: str, document: Fields) -> dict[FunctionKey, Trigger]:
    """The actions that active rules tie to a trigger, and what kind it is, from the trigger's document.

    Raises:
        InputError: it is none.
    """
    annotations = document.pairs("annotations")
    feed = annotations.optional(annotations.text, "feed", ANY_TEXT)
    package = feed.strip("/").split("/")[-2] if feed and feed.strip("/").count("/") else ""
    trigger = _FEEDS.get(package, Trigger.OTHERS if feed else Trigger.EVENT)
    if not document.has("rules"):
        return {}
    found = {}
    rules = document.object("rules")
    for name in rules.names:
        rule = rules.object(name)
        if rule.text("status", ANY_TEXT) == "active":
            action = rule.object("action")
            path = f"{tidy(action.text('path', PATH))}/{action.text('name', NAME)}"
            found[function_key(namespace, path)] = trigger
    return found
