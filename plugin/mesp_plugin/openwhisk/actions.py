"""What is known of each action, by REST: its profile for the decision, and whether it may be sent a marker.

An action is asked for once, and again when its time of update changes. One that cannot be read (a sequence, which has
no containers; a broken document) is left out until it changes. What a rule says of opting in is kept as a sentence,
for people who wonder why nothing happens.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from mesp.errors import InputError
from mesp_placement.model import FunctionProfile
from mesp_plugin.openwhisk.names import action_path, function_key
from mesp_plugin.openwhisk.parts import read_action_metadata
from mesp_plugin.openwhisk.rest import RefusedError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mesp.types import FunctionKey
    from mesp_plugin.openwhisk.config import OptIn
    from mesp_plugin.openwhisk.fields import Fields
    from mesp_plugin.openwhisk.parts import ActionMetaData
    from mesp_plugin.openwhisk.rest import OpenWhiskApi

_AT_ONCE = 8


@dataclass(frozen=True, slots=True)
class Action:
    """One action.

    Attributes:
        opted_in_by: the rule by which markers may be sent, as a clause; None: they may not.
        init_names: parameters that /init makes environment variables; their values are left where they are.
        web: it can be called over HTTP by anybody.
    """

    function: FunctionKey
    metadata: ActionMetaData
    opted_in_by: str | None
    init_names: frozenset[str] = frozenset()
    web: bool = False

    def profile(self, *, duration_ms: float, lead_ms: float, nodes: tuple[str, ...]) -> FunctionProfile:
        """As the decision reads it; an action that has not opted in is observed and never acted on."""
        metadata = self.metadata
        return FunctionProfile(
            function=self.function,
            memory_mb=metadata.memory_mb,
            concurrency=max(1, metadata.concurrency),
            duration_ms=duration_ms,
            lead_ms=lead_ms,
            max_containers=metadata.max_instances,
            preferred_nodes=nodes,
            enabled=self.opted_in_by is not None,
        )


class Actions:
    """The namespace's actions as of the last `refresh`."""

    def __init__(self, api: OpenWhiskApi, namespace: str, opt_in: OptIn) -> None:
        self._api = api
        self._namespace = namespace
        self._opt_in = opt_in
        self._cached: dict[str, tuple[int, Action | None]] = {}

    @property
    def known(self) -> Mapping[FunctionKey, Action]:
        """Actions that run in containers."""
        return {action.function: action for _, action in self._cached.values() if action}

    async def refresh(self) -> None:
        """Asks for the list, and for every action that is new or was updated since."""
        listed = {summary.full_name: summary.updated_ms for summary in await self._api.actions()}
        gate = asyncio.Semaphore(_AT_ONCE)

        async def ask(name: str, updated_ms: int) -> tuple[str, tuple[int, Action | None]]:
            async with gate:
                return name, (updated_ms, await self._read(name))

        known = {name: entry for name, entry in self._cached.items() if listed.get(name) == entry[0]}
        fresh = await asyncio.gather(*(ask(*item) for item in listed.items() if item[0] not in known))
        self._cached = known | dict(fresh)

    async def _read(self, full_name: str) -> Action | None:
        try:
            fields = await self._api.action(full_name)
            metadata = read_action_metadata(fields)
        except RefusedError as error:
            if error.status != 404:  # deleted since it was listed
                raise
            return None
        except InputError:
            return None
        function = function_key(self._namespace, metadata.action.full_name)
        by = opted_in_by(fields, metadata.kind, function, self._opt_in)
        return Action(function, metadata, by, _init_names(fields), _is_web(fields))


def _init_names(document: Fields) -> frozenset[str]:
    parameters = document.any("parameters")  # a list of objects with a key each: its metadata was read
    items = parameters if isinstance(parameters, list) else []
    return frozenset(str(item["key"]) for item in items if isinstance(item, dict) and item.get("init") is True)


def _is_web(document: Fields) -> bool:
    annotations = document.pairs("annotations")
    return annotations.has("web-export") and annotations.any("web-export") is True


def opted_in_by(document: Fields, kind: str, function: FunctionKey, rules: OptIn) -> str | None:
    """Which rule allows markers for this action, as a clause; None where none does.

    An annotation that says false goes before the operator's rules: its author said no.
    """
    annotations = document.pairs("annotations")
    said = annotations.any(rules.annotation) if rules.annotation and annotations.has(rules.annotation) else None
    if said is not None:
        return f"annotation {rules.annotation}" if said in {True, "true"} else None
    if kind in rules.kinds:
        return f"kind {kind}"
    path = action_path(function)
    return next((f"pattern {pattern}" for pattern in rules.functions if fnmatchcase(path, pattern)), None)
