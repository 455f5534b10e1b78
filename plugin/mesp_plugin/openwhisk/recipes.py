"""What an order for a container (FPC) repeats of its action, and whether a marker may be run in it.

A container is found again by its action's *revision*, which the API does not show: calls bring it, and so do the orders
of schedulers. The API shows the *version*, which changes with the revision. So the newest revision that was seen counts as
long as the API shows its version, and after an update nothing is known until the next call.

A marker needs that the function opted in, a caller in whose name it is sent, and the parameters that /init turns into the
environment: without these the container would later serve real calls without them. Where one is lacking, no marker is
sent, and the container waits without having been initialised.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mesp_plugin.openwhisk.actions import opted_in_by
from mesp_plugin.openwhisk.fields import Fields
from mesp_plugin.openwhisk.messages import marker_id
from mesp_plugin.openwhisk.orders import marker

if TYPE_CHECKING:
    from collections.abc import Callable

    from mesp.types import FunctionKey
    from mesp_plugin.openwhisk.actions import Actions
    from mesp_plugin.openwhisk.calls import Calls
    from mesp_plugin.openwhisk.config import OptIn
    from mesp_plugin.openwhisk.fields import JsonObject
    from mesp_plugin.openwhisk.messages import Caller
    from mesp_plugin.openwhisk.parts import ActionMetaData


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to order a container of a function.

    Attributes:
        marker: makes (activation id, the call that does no work), given the time; None: none may be sent.
    """

    metadata: ActionMetaData
    revision: str
    marker: Callable[[int], tuple[str, JsonObject]] | None


class Recipes:
    """Of every function, from what the API and the bus told."""

    def __init__(
        self,
        actions: Actions,
        calls: Calls,
        rules: OptIn,
        controller: str,
        owner: Caller | None,
        random_bits: Callable[[int], int],
    ) -> None:
        """Markers are acked to ``completed<controller>``; `owner` is the caller where no call was seen yet."""
        self._actions = actions
        self._calls = calls
        self._rules = rules
        self._controller = controller
        self._owner = owner
        self._random_bits = random_bits

    def described(self, key: FunctionKey) -> ActionMetaData | None:
        """The function's action, of whichever version."""
        if action := self._actions.known.get(key):
            return action.metadata
        return seen.described if (seen := self._calls.seen.get(key)) else None

    def of(self, key: FunctionKey) -> Recipe | str:
        """The recipe, or why there is none yet, as a clause."""
        action, seen = self._actions.known.get(key), self._calls.seen.get(key)
        if seen is None or seen.version is None or seen.revision is None:
            return "no call of it was seen yet, which would tell its revision"
        if action and action.metadata.action.version != seen.version:
            return "it was updated: its next call tells the new revision"
        metadata = action.metadata if action else seen.described
        if metadata is None or metadata.action.version != seen.version:
            return "nothing described this version of it yet"
        return Recipe(metadata, seen.revision, self._marker(key, metadata, seen.revision))

    def _marker(
        self, key: FunctionKey, metadata: ActionMetaData, revision: str
    ) -> Callable[[int], tuple[str, JsonObject]] | None:
        action, last = self._actions.known.get(key), self._calls.seen[key].last
        caller = last.caller if last else self._owner if self._owner and self._owner.namespace == key.scope else None
        init_content, locked_init = (last.init_content, last.locked_init) if last else ({}, {})
        init_names = action.init_names if action else frozenset()
        if caller is None or not self._opted_in(key, metadata) or not init_names <= init_content.keys():
            return None

        def make(now_ms: int) -> tuple[str, JsonObject]:
            activation_id = marker_id(self._random_bits(88))
            return activation_id, marker(
                action=metadata.action,
                caller=caller,
                activation_id=activation_id,
                controller=self._controller,
                now_ms=now_ms,
                revision=revision,
                init_content=init_content,
                locked_init=locked_init,
            )

        return make

    def _opted_in(self, key: FunctionKey, metadata: ActionMetaData) -> bool:
        if action := self._actions.known.get(key):
            return action.opted_in_by is not None
        noted: JsonObject = {"annotations": [{"key": name, "value": value} for name, value in metadata.annotations]}
        return opted_in_by(Fields("action", noted), metadata.kind, key, self._rules) is not None
