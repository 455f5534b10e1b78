"""What the bus and the API tell of each function: what it needs, where it runs, and the marker it may be sent.

A marker repeats the function's last real call without its key and its parameters, but for those that /init turns into
environment variables.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mesp_placement.model import FunctionProfile
from mesp_plugin.openwhisk.actions import opted_in_by
from mesp_plugin.openwhisk.balancer import preferred_nodes
from mesp_plugin.openwhisk.fields import Fields, encode
from mesp_plugin.openwhisk.names import ActionName, action_path
from mesp_plugin.openwhisk.orders import marker
from mesp_plugin.openwhisk.parts import STANDARD_MB
from mesp_plugin.openwhisk.run_time import mean_run_ms

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mesp.types import FunctionKey
    from mesp_plugin.openwhisk.actions import Actions
    from mesp_plugin.openwhisk.config import OpenWhiskConfig
    from mesp_plugin.openwhisk.fields import Json
    from mesp_plugin.openwhisk.messages import ActivationMessage, ActivationRecord, Caller
    from mesp_plugin.openwhisk.user_events import ActivationEvent


@dataclass(slots=True)
class _Seen:
    """What the bus told of a function."""

    memory_mb: float = STANDARD_MB
    kind: str = ""
    duration_ms: float | None = None
    last: ActivationMessage | None = None


@dataclass(frozen=True, slots=True)
class Template:
    """What a marker repeats of a real call."""

    action: ActionName
    caller: Caller
    revision: str | None
    init_content: Mapping[str, Json]
    locked_init: Mapping[str, str]

    def marker(self, activation_id: str, controller: str, now_ms: int, *, ends: bool = False) -> bytes:
        """The marker of that id, as it goes to an invoker; see `orders.marker`."""
        return encode(
            marker(
                action=self.action,
                caller=self.caller,
                activation_id=activation_id,
                controller=controller,
                now_ms=now_ms,
                revision=self.revision,
                ends=ends,
                init_content=self.init_content,
                locked_init=self.locked_init,
            )
        )


class Functions:
    """Every function that was called, or that the API lists."""

    def __init__(self, actions: Actions, namespace: str, owner: Caller | None, config: OpenWhiskConfig) -> None:
        """`actions` are those of `namespace`, in the name of whose `owner` markers are sent for functions of which no
        call was seen yet.
        """
        self._actions = actions
        self._namespace = namespace
        self._owner = owner
        self._config = config
        self._seen: dict[FunctionKey, _Seen] = {}

    def arrived(self, message: ActivationMessage) -> None:
        """A call, or a marker, was admitted."""
        seen = self._of(message.function)
        if message.is_call:
            seen.last = message

    def ended(self, key: FunctionKey, ended: ActivationRecord | ActivationEvent) -> None:
        """A user's run is over, and this is its record."""
        seen = self._of(key)
        seen.memory_mb, seen.kind = float(ended.memory_mb or seen.memory_mb), ended.kind or seen.kind
        self.ran(key, ended.duration_ms - ended.init_ms)

    def ran(self, key: FunctionKey, run_ms: int) -> None:
        """A user's run took so long, without /init."""
        seen = self._of(key)
        seen.duration_ms = mean_run_ms(seen.duration_ms, run_ms)

    def memory_mb(self, key: FunctionKey) -> float:
        """Of one container."""
        if action := self._actions.known.get(key):
            return float(action.metadata.memory_mb)
        return self._seen[key].memory_mb if key in self._seen else STANDARD_MB

    def concurrency(self, key: FunctionKey) -> int:
        """Calls that one container takes at once."""
        action = self._actions.known.get(key)
        return max(1, action.metadata.concurrency) if action else 1

    def updated_ms(self, key: FunctionKey) -> int | None:
        """When its action was updated, where the API tells."""
        action = self._actions.known.get(key)
        return action.metadata.updated_ms if action else None

    def route(self, key: FunctionKey, invokers: tuple[str, ...]) -> tuple[str, ...]:
        """Where the balancer looks for the function's containers, home first."""
        action, seen = self._actions.known.get(key), self._seen.get(key)
        kind = action.metadata.kind if action else seen.kind if seen else ""
        return preferred_nodes(key.scope, action_path(key), invokers, blackbox=kind == "blackbox")

    def opted_in(self, key: FunctionKey) -> str | None:
        """The rule by which it may be sent markers; others' actions, whose annotations the API does not show to this
        key, only by the operator's.
        """
        if action := self._actions.known.get(key):
            return action.opted_in_by
        if action_path(key).startswith(f"{self._namespace}/"):
            return None  # deleted, or not listed yet
        seen = self._seen.get(key)
        return opted_in_by(
            Fields("action", {"annotations": []}), seen.kind if seen else "", key, self._config.opt_in
        )  # fmt: skip

    def template(self, key: FunctionKey) -> Template | str:
        """The call that markers repeat, or why there is none, as a clause."""
        action, seen = self._actions.known.get(key), self._seen.get(key)
        init_names = action.init_names if action else frozenset()
        last = seen.last if seen else None
        if last is not None:
            if not init_names <= last.init_content.keys():
                return "/init takes parameters that its last call did not bring: wait for the next one"
            # With content of one revision only that revision may be made: a container of a newer one would serve real
            # calls with the old values, while one of an old revision merely goes unused.
            revision = last.revision if last.init_content else None
            return Template(last.action, last.caller, revision, last.init_content, last.locked_init)
        if init_names:
            return "/init takes parameters that only a call brings, and none was seen yet"
        if action is None or self._owner is None:
            return "no call of it was seen yet, and who calls it is not known otherwise"
        return Template(action.metadata.action, self._owner, None, {}, {})

    def profiles(self, invokers: tuple[str, ...], known: set[str]) -> tuple[FunctionProfile, ...]:
        """Of all, with those of the nodes in `known` that the balancer would look on."""
        keys = dict.fromkeys([*self._actions.known, *self._seen])
        return tuple(self._profile(key, invokers, known) for key in keys)

    def _profile(self, key: FunctionKey, invokers: tuple[str, ...], known: set[str]) -> FunctionProfile:
        seen, action = self._seen.get(key) or _Seen(), self._actions.known.get(key)
        nodes = tuple(node for node in self.route(key, invokers) if node in known)
        duration_ms, lead_ms = seen.duration_ms or 0.0, self._config.lead_ms
        if action:
            return action.profile(duration_ms=duration_ms, lead_ms=lead_ms, nodes=nodes)
        return FunctionProfile(
            key,
            seen.memory_mb,
            duration_ms=duration_ms,
            lead_ms=lead_ms,
            preferred_nodes=nodes,
            enabled=self.opted_in(key) is not None,
        )

    def _of(self, key: FunctionKey) -> _Seen:
        return self._seen.setdefault(key, _Seen())
