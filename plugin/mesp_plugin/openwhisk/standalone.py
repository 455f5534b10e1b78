"""The standalone driver: a plain ``java -jar openwhisk-standalone.jar``, watched and warmed over REST alone.

*Seen* are the controller's list of calls in flight, which names each call from its admission on, and the activation
records, which appear when a run has ended. A call counts once, by its id (`sightings`).

*Added* are containers made by markers: non-blocking calls that an opted-in action answers without doing its work. The
API chooses their activation ids, and a record shows nothing else by which a marker could be told, so these ids are
kept with the holdings. A marker whose answer was lost is taken to be the first unknown call of its function after it
was sent. To add k containers where n idle ones are believed, n + k markers go out at once.

Nothing can be removed early: the platform removes an idle container after 10 minutes, or sooner when it needs room.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from typing import TYPE_CHECKING, Final

from mesp.errors import MespError, UnavailableError
from mesp_placement.model import Node, Snapshot
from mesp_plugin.openwhisk.driver import Done, NothingEarly, Observed
from mesp_plugin.openwhisk.estimate import PoolEstimate
from mesp_plugin.openwhisk.holdings import Holding, HoldingState
from mesp_plugin.openwhisk.messages import MARKER, is_marker_id
from mesp_plugin.openwhisk.names import action_path, function_key
from mesp_plugin.openwhisk.rest import ThrottledError
from mesp_plugin.openwhisk.run_time import mean_run_ms
from mesp_plugin.openwhisk.sightings import Sightings
from mesp_plugin.recorder import Recorder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from mesp.types import FunctionKey
    from mesp_placement.model import Prewarm
    from mesp_plugin.openwhisk.actions import Actions
    from mesp_plugin.openwhisk.budget import Budget
    from mesp_plugin.openwhisk.config import OpenWhiskConfig
    from mesp_plugin.openwhisk.holdings import Holdings
    from mesp_plugin.openwhisk.messages import ActivationRecord
    from mesp_plugin.openwhisk.rest import OpenWhiskApi, PoolGauges
    from mesp_plugin.openwhisk.sightings import Arrival

NODE: Final = "standalone"
_STEP_MS: Final = 60_000
#: Steps that the first look reports again, as they were: those that a restart may have missed.
_LOOK_BACK_STEPS: Final = 5
_ACTIONS_EVERY_MS: Final = 30_000
#: A marker whose answer was lost came within so long after it was sent, or never.
_LOST_MS: Final = 60_000


class StandaloneDriver(NothingEarly):
    """Beside one controller with one invoker, in one process."""

    name = NODE

    def __init__(
        self,
        api: OpenWhiskApi,
        namespace: str,
        actions: Actions,
        holdings: Holdings,
        config: OpenWhiskConfig,
        budget: Budget,
        random_id: Callable[[], str] = lambda: secrets.token_hex(16),
    ) -> None:
        """Watches `namespace`, whose limits `budget` knows; `random_id` gives 32 hexadecimal digits."""
        super().__init__(holdings)
        self._api = api
        self._namespace = namespace
        self._actions = actions
        self._config = config
        self._budget = budget
        self._random_id = random_id
        self._sightings = Sightings()
        self._estimate = PoolEstimate(NODE)
        self._recorder: Recorder | None = None
        self._actions_due_ms = 0
        self._in_flight = 0
        self._durations_ms: dict[FunctionKey, float] = {}
        self._gauges: PoolGauges | None = None

    # --- Seeing ---------------------------------------------------------------------------------------------------

    async def observe(self, now_ms: int) -> Observed:
        """See `Driver.observe`."""
        if now_ms >= self._actions_due_ms:
            await self._actions.refresh()
            self._actions_due_ms = now_ms + _ACTIONS_EVERY_MS
        in_flight = [
            (activation_id, function_key(self._namespace, name))
            for activation_id, name in await self._api.in_flight()
            if name.startswith(f"{self._namespace}/")  # the list holds every namespace's
        ]
        records = await self._api.activations(self._sightings.since_ms(now_ms), now_ms)
        self._gauges = None
        with contextlib.suppress(UnavailableError):  # a help for the estimate, which can do without
            self._gauges = await self._api.gauges()
        self._in_flight = len(in_flight)
        arrivals, ended = self._sightings.look(in_flight, records, now_ms)
        self._claim_lost(arrivals)
        markers = {item.activation_id: item.marker for item in self._holdings.all() if item.activation_id}
        recorder = self._record(arrivals, markers, now_ms)
        cold = self._learn(ended, markers)
        if self._gauges:
            self._estimate.bound(self._gauges.idle_mb + self._gauges.active_mb, now_ms)
        standing = self._estimate.markers()
        self._holdings.note(
            (item.marker, HoldingState.GONE)
            for item in self._holdings.alive()
            if item.state is HoldingState.HELD and item.marker not in standing
        )
        calls = sum(record.activation_id not in markers for record in ended)
        return Observed(recorder.close(now_ms), calls, tuple(cold))

    async def snapshot(self, now_ms: int) -> Snapshot:
        """See `Driver.snapshot`; the containers are an estimate, the memory of others is what the gauges show more."""
        known = self._actions.known
        memory_mb: dict[FunctionKey, float] = {key: float(action.metadata.memory_mb) for key, action in known.items()}
        containers = self._estimate.containers(now_ms, self._sightings.busy(), memory_mb)
        other_mb = 0.0
        if self._gauges:
            seen_mb = self._gauges.active_mb + self._gauges.idle_mb
            other_mb = self._gauges.stem_mb + max(0.0, seen_mb - sum(one.memory_mb for one in containers))
        profiles = [
            action.profile(
                duration_ms=self._durations_ms.get(key, 0.0), lead_ms=self._config.lead_ms, nodes=(NODE,)
            )
            for key, action in known.items()
        ]  # fmt: skip
        node = Node(NODE, self._config.pool_memory_mb, other_memory_mb=other_mb)
        return Snapshot((node,), tuple(containers), tuple(profiles))

    def _claim_lost(self, arrivals: Iterable[Arrival]) -> None:
        """Markers whose answers were lost become the first unknown calls of their functions since."""
        lost = [item for item in self._holdings.alive() if item.activation_id is None]
        claimed = []
        for call in arrivals if lost else ():
            for item in lost:
                if item.function == call.function and 0 <= call.at_ms - item.ordered_ms + 1_000 <= _LOST_MS:
                    claimed.append((item.marker, call.activation_id))
                    lost.remove(item)
                    break
        self._holdings.note(activations=claimed)

    def _record(self, arrivals: Iterable[Arrival], markers: dict[str, str], now_ms: int) -> Recorder:
        begin_ms = now_ms - now_ms % _STEP_MS - _LOOK_BACK_STEPS * _STEP_MS
        first_look = self._recorder is None
        recorder = self._recorder = self._recorder or Recorder(
            f"openwhisk-{NODE}", _STEP_MS, begin_ms, _LOOK_BACK_STEPS
        )
        for call in arrivals:
            if call.activation_id in markers or is_marker_id(call.activation_id):
                continue
            self._budget.call(call.at_ms)
            if not first_look or call.at_ms >= begin_ms:
                recorder.arrival(call.function, call.at_ms)
        return recorder

    def _learn(self, ended: Iterable[ActivationRecord], markers: dict[str, str]) -> list[FunctionKey]:
        """What runs that ended tell of containers and run times; the functions whose callers met a cold start."""
        cold = []
        changes: list[tuple[str, HoldingState]] = []
        for record in ended:
            key, marker = record.function, markers.get(record.activation_id)
            action = self._actions.known.get(key)
            memory_mb = float(action.metadata.memory_mb if action else record.memory_mb or 256)
            if met := self._estimate.ran(record, memory_mb, marker):
                changes.append((met, HoldingState.USED))
            if marker:
                changes.append((marker, HoldingState.HELD if record.init_ms else HoldingState.REUSED))
                continue
            if record.init_ms:
                cold.append(key)
            run_ms = record.duration_ms - record.init_ms
            self._durations_ms[key] = mean_run_ms(self._durations_ms.get(key), run_ms)
        self._holdings.note(changes)
        return cold

    # --- Acting ---------------------------------------------------------------------------------------------------

    async def prewarm(self, wish: Prewarm, now_ms: int) -> Done:
        """See `Driver.prewarm`: markers at once, as many as limits and memory leave room for."""
        key = wish.function
        action = self._actions.known.get(key)
        if action is None or action.opted_in_by is None:
            return Done(refused=f"{key} has not opted in to markers")
        idle = max(0, self._estimate.idle(now_ms, key) - self._sightings.busy()[key])
        room, limit = self._budget.room(now_ms, self._in_flight)
        count = min(wish.count, room - idle)
        if count <= 0:
            return Done(refused=f"{key}: {idle + 1} markers are more than the namespace's limits leave: {limit}")
        memory_mb = float(action.metadata.memory_mb)
        if lacking := self._lacks_memory(count * memory_mb, await self.snapshot(now_ms)):
            return Done(refused=f"{key}: {lacking}")
        made, trouble = await self._send(key, idle + count, now_ms)
        refused = trouble or (f"{key}: {count} of {wish.count}, for {limit}" if count < wish.count else None)
        return Done(min(count, max(0, made - idle)), refused)

    def _lacks_memory(self, wanted_mb: float, snapshot: Snapshot) -> str | None:
        if self._gauges and self._gauges.buffered:
            return f"{self._gauges.buffered} calls wait for room in the pool"
        pool_mb = self._config.pool_memory_mb
        taken_mb = snapshot.nodes[0].other_memory_mb + sum(one.memory_mb for one in snapshot.containers)
        if taken_mb + wanted_mb > pool_mb:
            return f"no headroom, {taken_mb:.0f} of {pool_mb:g} MB are taken, {wanted_mb:g} are wanted"
        return None

    async def _send(self, key: FunctionKey, count: int, now_ms: int) -> tuple[int, str | None]:
        """Sends markers at once; how many were admitted, and what went wrong first."""
        until_ms = now_ms + self._config.expiry_ms
        orders = [Holding(self._random_id(), key, NODE, now_ms, until_ms) for _ in range(count)]
        self._holdings.add(orders)
        self._budget.sent(now_ms, count)
        self._in_flight += count
        sent = await asyncio.gather(*(self._send_one(order, now_ms) for order in orders))
        self._holdings.note(activations=[(order.marker, said) for order, said in sent if isinstance(said, str)])
        # One without an answer may have been admitted: it stays, and is looked for.
        failed = [(order, said) for order, said in sent if isinstance(said, MespError)]
        self._holdings.drop(
            order.marker
            for order, said in failed
            if isinstance(said, ThrottledError) or not isinstance(said, UnavailableError)
        )
        return count - len(failed), f"{key}: {failed[0][1]}" if failed else None

    async def _send_one(self, order: Holding, now_ms: int) -> tuple[Holding, str | MespError]:
        try:
            activation_id = await self._api.invoke(
                action_path(order.function), {MARKER: {"op": "warm", "hold_ms": 0}}, f"prewarm-{order.marker}"
            )
        except MespError as error:
            if isinstance(error, ThrottledError):
                self._budget.throttled(now_ms)
            return order, error
        self._sightings.sent(activation_id, order.function, now_ms)
        return order, activation_id
