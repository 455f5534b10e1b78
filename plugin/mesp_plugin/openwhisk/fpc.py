"""The FPC driver: beside schedulers and invokers whose containers fetch their calls; on Kafka, etcd, and a gRPC port.

*Seen* is every call at its admission on ``schedulerN`` and its end on ``completedC`` (`calls`); invokers, containers and
queues by their keys in etcd, as they change (`cluster`).

*Added* are containers ordered from the invoker of the plan, told to fetch their calls from us (`service`): so they wait,
held or paused, until a call asks for them (`holds`). No marker is needed for that, and none is sent to a function that has
not opted in. The order needs the revision of the action, which only calls tell: before the first one is seen, or after an
update, nothing is ordered. Orders and what waits stay strictly below the namespace's limit (`places`), and what is held
is let go when the limit comes near or a scheduler throttles.

*Taken back* is what waits here by ending its fetch, and what is paused by a deletion message, unless that would
take containers of others with it; of an action that was updated, at once. Of several plugins one acts (`lease`).
"""

from __future__ import annotations

import asyncio
import secrets
from typing import TYPE_CHECKING, Final, Protocol

import structlog

from mesp.errors import InputError, MespError
from mesp_plugin.openwhisk.calls import Calls
from mesp_plugin.openwhisk.driver import Done, Observed, together
from mesp_plugin.openwhisk.etcd_keys import ContainerKey, CreationKey, ThrottlingKey
from mesp_plugin.openwhisk.fields import encode
from mesp_plugin.openwhisk.fpc_view import View
from mesp_plugin.openwhisk.holdings import Holding, HoldingState
from mesp_plugin.openwhisk.holds import Order, Stance, stance
from mesp_plugin.openwhisk.invokers import node_name
from mesp_plugin.openwhisk.names import action_path
from mesp_plugin.openwhisk.orders import creation, deletion
from mesp_plugin.openwhisk.parts import generation
from mesp_plugin.openwhisk.places import room, to_let_go
from mesp_plugin.openwhisk.recipes import Recipe, Recipes
from mesp_plugin.recorder import Recorder

if TYPE_CHECKING:
    from collections.abc import Callable

    from mesp.types import FunctionKey
    from mesp_placement.model import Prewarm, Release, Snapshot
    from mesp_plugin.metrics import OpenWhiskMetrics
    from mesp_plugin.openwhisk.actions import Actions
    from mesp_plugin.openwhisk.calls import Call
    from mesp_plugin.openwhisk.cluster import Cluster
    from mesp_plugin.openwhisk.config import OpenWhiskConfig
    from mesp_plugin.openwhisk.etcd_keys import Key
    from mesp_plugin.openwhisk.holdings import Holdings
    from mesp_plugin.openwhisk.holds import Holds
    from mesp_plugin.openwhisk.kafka import Bus
    from mesp_plugin.openwhisk.messages import Caller

_log = structlog.get_logger(__name__)

_STEP_MS: Final = 60_000
_ACTIONS_EVERY_MS: Final = 30_000
#: An order whose container has not asked for a call by then is given up.
_ORDER_LOST_MS: Final = 60_000
#: Messages read before others get a turn.
_AT_ONCE: Final = 500


class Right(Protocol):
    """The right to act; `lease.Lease` is one."""

    @property
    def is_ours(self) -> bool:
        """This plugin acts, now."""
        ...


class FpcDriver:
    """Beside the schedulers and invokers of one bus and one etcd."""

    name = "fpc"

    def __init__(
        self,
        bus: Bus,
        cluster: Cluster,
        holds: Holds,
        right: Right,
        namespace: str,
        owner: Caller | None,
        actions: Actions,
        holdings: Holdings,
        config: OpenWhiskConfig,
        limit: int,
        metrics: OpenWhiskMetrics | None = None,
        random_bits: Callable[[int], int] = secrets.randbits,
    ) -> None:
        """`actions` are those of `namespace`, whose limit on containers is `limit`, and in the name of whose `owner`
        markers are sent for functions of which no call was seen.
        """
        if config.kafka is None:
            raise InputError("kafka is null, must be set for driver: fpc")
        self._bus = bus
        self._cluster = cluster
        self._holds = holds
        self._right = right
        self._namespace = namespace
        self._actions = actions
        self._holdings = holdings
        self._config = config
        self._group = config.kafka.group
        self._limit = limit
        self._metrics = metrics
        self._random_bits = random_bits
        self._calls = Calls(self._group)
        self._recipes = Recipes(actions, self._calls, config.opt_in, self._group, owner, random_bits)
        self._view = View(cluster, self._calls, holds, holdings, config.lead_ms)
        self._recorder: Recorder | None = None
        self._began_ms = 0
        self._actions_due_ms = 0
        self._refreshed_ms = -1
        self._knows_former_life = False
        self._lingering: set[str] = set()
        cluster.listeners.append(self._hear)

    # --- Seeing ---------------------------------------------------------------------------------------------------

    async def observe(self, now_ms: int) -> Observed:
        """See `Driver.observe`."""
        messages = await self._bus.take(now_ms)
        if self._recorder is None:
            self._recorder, self._began_ms = Recorder(f"openwhisk-{self._group}", _STEP_MS, self._bus.since_ms), now_ms
        if self._cluster.fresh and not self._knows_former_life:
            self._holds.forget_former_life()
            self._knows_former_life = True
        if now_ms >= self._actions_due_ms:
            await self._refresh(now_ms)
        for begin in range(0, len(messages), _AT_ONCE):
            self._calls.read(messages[begin : begin + _AT_ONCE], self._recorder, now_ms)
            await asyncio.sleep(0)
        self._tell_skipped()
        self._note_refusals()
        self._give_up(now_ms)
        if self._cluster.fresh:
            self._holds.sweep()
        self._let_outdated_go()
        if self._right.is_ours and self._config.mode == "on":
            await self._delete_outdated(now_ms)
        calls = [call for call in self._calls.ended(now_ms) if (call.freed_ms or 0) >= self._began_ms]
        cold = tuple(one.function for one in calls if not self._has_met(one) and one.initialised)
        return Observed(self._recorder.close(now_ms), len(calls), cold)

    def _has_met(self, call: Call) -> bool:
        return self._holds.met(call.function, call.arrived_ms, initialised=bool(call.initialised))

    async def snapshot(self, now_ms: int) -> Snapshot:
        """See `Driver.snapshot`: what the keys say, and by the calls that run which containers are busy."""
        functions = dict.fromkeys([*self._actions.known, *self._calls.seen])
        recipes = {key: recipe for key in functions if isinstance(recipe := self._recipes.of(key), Recipe)}
        described = {key: self._recipes.described(key) for key in functions}
        return self._view.snapshot(described, recipes.keys(), now_ms)

    async def _refresh(self, now_ms: int) -> None:
        """The API tells who opted in; without it, what is known stays."""
        self._actions_due_ms, self._refreshed_ms = now_ms + _ACTIONS_EVERY_MS, now_ms
        try:
            await self._actions.refresh()
        except MespError as error:
            _log.warning("actions are as they were", error=str(error))

    def _tell_skipped(self) -> None:
        skipped = self._calls.skipped + self._cluster.skipped
        if skipped:
            _log.warning("messages and keys skipped", count=len(skipped), first=skipped[0])
            if self._metrics:
                self._metrics.malformed.inc(len(skipped))
            self._calls.skipped.clear()
            self._cluster.skipped.clear()

    def _note_refusals(self) -> None:
        ours = {item.marker for item in self._holdings.alive()}
        refused = [ack for ack in self._calls.refused if ack.creation_id in ours]
        self._calls.refused.clear()
        self._holdings.note((ack.creation_id, HoldingState.GONE) for ack in refused)
        if refused:
            _log.warning("containers refused", count=len(refused), first=refused[0].error)

    def _give_up(self, now_ms: int) -> None:
        """Orders whose container never asked for a call."""
        silent = [item.marker for item in self._ordered() if now_ms - item.ordered_ms >= _ORDER_LOST_MS]
        self._holdings.note((one, HoldingState.GONE) for one in silent)
        if silent and self._metrics:
            self._metrics.unanswered.inc(len(silent))

    def _ordered(self) -> list[Holding]:
        return [item for item in self._holdings.alive() if item.state is HoldingState.ORDERED]

    # --- Letting go ---------------------------------------------------------------------------------------------------

    def _let_outdated_go(self) -> None:
        """After an update nobody will use what was made before."""
        for kept in list(self._holds.kept.values()):
            action = self._actions.known.get(kept.function)
            if action and action.metadata.action.version != kept.version:
                self._holds.let_go(kept.container_id)

    async def _delete_outdated(self, now_ms: int) -> None:
        """Nor what is paused, which a scheduler deletes only where the queue still lives."""
        warmed = self._cluster.warmed
        for item in self._holdings.alive():
            key = warmed.get(item.container_id or "")
            if key is None or key.container_id in self._lingering or not self._is_outdated(key):
                continue
            try:
                done = await self._take_back(key.container_id, now_ms)
            except MespError as error:  # the next look tries again
                done = Done(refused=str(error))
            else:
                self._lingering.add(key.container_id)
            if done.refused:
                _log.info("an outdated container lingers", reason=done.refused)
        self._lingering &= warmed.keys()

    def _is_outdated(self, key: ContainerKey) -> bool:
        """Of a revision that no call to come will have, as far as calls and the API tell."""
        seen, action = self._calls.seen.get(key.function), self._actions.known.get(key.function)
        if seen is None or seen.revision is None or key.revision is None:
            return False
        if key.revision == seen.revision:
            return action is not None and action.metadata.action.version != seen.version
        return generation(key.revision) < generation(seen.revision)

    def _hear(self, key: Key, begins: bool) -> None:
        """Where a limit is reached or near, what is held goes at once."""
        if not begins:
            return
        held = [one for one in self._holds.kept.values() if not one.unwanted]
        match key:
            case ThrottlingKey():
                for kept in held:
                    if kept.function.scope == key.namespace and key.action in {None, action_path(kept.function)}:
                        self._holds.let_go(kept.container_id)
            case ContainerKey(warmed=False) | CreationKey():
                own = [one for one in held if one.function.scope == key.namespace and not one.asked]
                taken, limit = self._cluster.count(key.namespace), self._limit_of(key.namespace)
                for kept in own[: to_let_go(limit=limit, taken=taken, held=[one.function for one in own])]:
                    self._holds.let_go(kept.container_id)
            case _:
                pass

    def _limit_of(self, namespace: str) -> int:
        told = self._calls.limits.get(namespace)
        if told is not None:
            return told
        return self._limit if namespace == self._namespace else self._config.fpc.namespace_limit

    # --- Acting ---------------------------------------------------------------------------------------------------

    async def prewarm(self, wish: Prewarm, now_ms: int) -> Done:
        """See `Driver.prewarm`: as many as the namespace's limit leaves room for."""
        key = wish.function
        if not self._right.is_ours:
            return Done(refused=f"standby: another plugin of group {self._group} acts, or etcd does not answer")
        if not self._cluster.fresh:
            return Done(refused="etcd does not answer: nothing is ordered that could not be handed over")
        if now_ms != self._refreshed_ms:  # who was updated just now has another revision
            await self._refresh(now_ms)
        recipe = self._recipes.of(key)
        if isinstance(recipe, str):
            return Done(refused=f"{key}: {recipe}")
        paused = [
            one.container_id
            for one in self._cluster.warmed.values()
            if one.function == key and node_name(one.invoker) == wish.node and one.revision == recipe.revision
        ]
        if any(map(self._holds.stays_away, paused)):
            return Done(refused=f"{key}: an order would only wake a paused container of it on {wish.node}")
        resumed = len(paused)  # they take the first orders
        count, why = self._places(wish, resumed)
        if lacking := self._lacks(wish.node, (count + resumed) * recipe.metadata.memory_mb):
            return Done(refused=f"{key}: {lacking}")
        if count > 0:
            await self._send(wish, recipe, count + resumed, now_ms)
        return Done(count, None if count == wish.count else f"{key}: {why}")

    def _places(self, wish: Prewarm, resumed: int) -> tuple[int, str]:
        """(containers that the namespace's limit leaves room for, why not more as a clause)."""
        namespace = wish.function.scope
        if any(one.namespace == namespace for one in self._cluster.throttled):
            return 0, f"namespace {namespace} is throttled"
        ordered = [item.function for item in self._ordered() if item.function.scope == namespace]
        held = [one.function for one in self._holds.kept.values() if one.function.scope == namespace]
        limit, taken = self._limit_of(namespace), self._cluster.count(namespace) + len(ordered)
        free = room(
            limit=limit,
            margin_share=self._config.limits_margin_share,
            taken=taken,
            holding={wish.function, *ordered, *held},
        )
        why = f"namespace {namespace} may have {limit} containers, {taken} take places and more are kept free for calls"
        return min(wish.count, max(0, free - resumed)), why

    def _lacks(self, node: str, wanted_mb: float) -> str | None:
        """Why the node has no room, as a clause."""
        found = next((one for number, one in self._cluster.invokers.items() if node_name(number) == node), None)
        if found is None or found.status != "up" or found.dedicated_namespaces:
            return f"{node} is not up, or dedicated to somebody"
        coming_mb = sum(self._memory_mb(item.function) for item in self._ordered() if item.node == node)
        if wanted_mb > found.free_mb - coming_mb:
            return f"no room on {node}, {found.free_mb - coming_mb:.0f} MB are free, {wanted_mb:.0f} are wanted"
        return None

    def _memory_mb(self, key: FunctionKey) -> float:
        metadata = self._recipes.described(key)
        return float(metadata.memory_mb) if metadata else 0.0

    async def _send(self, wish: Prewarm, recipe: Recipe, count: int, now_ms: int) -> None:
        """`count` orders at once: paused containers of the function take the first ones."""
        how = stance(opted_in=recipe.marker is not None, likely=wish.likely)
        hold_ms = round(self._config.fpc.hold_s * 1e3) if how is Stance.READY else 0
        ids = [f"{self._random_bits(128):032x}" for _ in range(count)]
        until_ms = now_ms + self._config.expiry_ms
        self._holdings.add(Holding(one, wish.function, wish.node, now_ms, until_ms) for one in ids)
        for one in ids:
            self._holds.expect(one, Order(hold_ms, recipe.marker))
        orders = [
            creation(
                namespace=wish.function.scope,
                action=recipe.metadata.action,
                revision=recipe.revision,
                metadata=recipe.metadata,
                scheduler=self._group,
                host=self._config.fpc.host,
                rpc_port=self._config.fpc.port,
                creation_id=one,
                now_ms=now_ms,
            )
            for one in ids
        ]
        await self._bus.send(wish.node, [encode(order) for order in orders], now_ms)

    # --- Taking back --------------------------------------------------------------------------------------------------

    async def release(self, wish: Release, now_ms: int) -> Done:
        """See `Driver.release`."""
        return await self._take_back(wish.container_id, now_ms)

    async def release_all(self, now_ms: int) -> Done:
        """See `Driver.release_all`; orders on their way are let go when their containers ask."""
        self._holdings.note((item.marker, HoldingState.GONE) for item in self._ordered())
        added = [item.container_id for item in self._holdings.alive() if item.container_id]
        return together([await self._take_back(container_id, now_ms) for container_id in added])

    async def _take_back(self, container_id: str, now_ms: int) -> Done:
        """Ends the fetch of a container that is held; orders the deletion of a paused one that is alone."""
        if self._holds.let_go(container_id):
            return Done(1)
        item = next((one for one in self._holdings.alive() if one.container_id == container_id), None)
        key = self._cluster.warmed.get(container_id)
        if item is None or key is None:
            return Done(refused=f"{container_id[:12]}: a call uses it, or it is gone")
        there = (*self._cluster.existing.values(), *self._cluster.warmed.values())
        alike = (one for one in there if one.function == key.function and one.invoker == key.invoker)
        beside = sum(generation(one.revision) <= generation(key.revision) for one in alike) - 1
        if beside:
            return Done(
                refused=f"{container_id[:12]}: its deletion would take {beside} others of {key.function} with it"
            )
        metadata = self._recipes.described(key.function)
        if metadata is None or key.revision is None:
            return Done(refused=f"{container_id[:12]}: nothing described its action yet")
        order = deletion(
            namespace=key.namespace, action=metadata.action, revision=key.revision, metadata=metadata, now_ms=now_ms
        )
        await self._bus.send(node_name(key.invoker), [encode(order)], now_ms)
        self._holdings.note([(item.marker, HoldingState.GONE)])
        return Done(1)
