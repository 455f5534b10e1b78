"""What the golden traces do not show of the FPC double: what it drops and refuses, and rarer turns of its source."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from e2e.openwhisk import fpc_wire, memory
from e2e.openwhisk.classic import GUEST
from e2e.openwhisk.clock import SteppedClock
from e2e.openwhisk.containers import Reply, Sleeper
from e2e.openwhisk.fpc import running_fpc_in_memory
from e2e.openwhisk.model import Action
from e2e.openwhisk.pool import PoolSettings
from e2e.openwhisk.rpc import HOST, RpcError
from mesp.openwhisk.activation_service_pb2 import FetchRequest
from mesp_plugin.openwhisk.etcd_keys import ContainerKey, parse_key

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from e2e.openwhisk.fpc import Fpc
    from e2e.openwhisk.model import Json
    from mesp.openwhisk.activation_service_pb2 import FetchResponse, RescheduleRequest, RescheduleResponse


class Busy(Sleeper):
    """Answers 503 to its first call."""

    def __init__(self) -> None:
        self.calls = 0

    def reply(self, action_code: str, env: Json, body: Json) -> Reply:
        self.calls += 1
        return Reply(5, 503) if self.calls == 1 else super().reply(action_code, env, body)


class SlowLogs(Sleeper):
    """Docker takes 3 s to show what a run printed."""

    def logs_ms(self, activation_id: str) -> int:  # noqa: ARG002 (others look at it)
        return 3_000


class Own:
    """A server that answers each fetch by the next of these messages after 1 s, the last one again and again."""

    def __init__(self, *messages: Json) -> None:
        self.messages = list(messages)
        self.requests: list[FetchRequest] = []
        self.clock: SteppedClock

    async def fetch(self, request: FetchRequest) -> FetchResponse:
        self.requests.append(request)
        await self.clock.sleep(1)
        return fpc_wire.response(self.messages.pop(0) if len(self.messages) > 1 else self.messages[0])

    async def reschedule(self, request: RescheduleRequest) -> RescheduleResponse:
        raise ValueError(request)


@asynccontextmanager
async def running(**options: Any) -> AsyncIterator[Fpc]:
    async with running_fpc_in_memory(SteppedClock(1_795_244_000_000), **options) as double:
        await double.bus.make("creationAckprewarm0")
        yield double


def order(double: Fpc, action: Action, port: int = 14_555, number: int = 0) -> Json:
    """A creation message by somebody who is no scheduler."""
    owner = fpc_wire.Owner(action.namespace, action.full_name, action.version, action.revision)
    about = fpc_wire.metadata(action, double.clock.now_ms)
    return fpc_wire.creation(
        owner, about, scheduler="prewarm0", host=HOST, port=port, creation_id=f"{number:032x}", began_ms=1, retries=0
    )


async def call(double: Fpc, action: Action) -> Json:
    _, record = await double.controller.invoke(GUEST, action, {}, blocking=True)
    assert record is not None
    return record


def acks(double: Fpc) -> list[Json]:
    return [line["value"] for line in double.recording.of("kafka", topic="creationAckprewarm0")]


def test_what_lacks_a_required_member_is_dropped_and_counted() -> None:
    """Creations, deletions and calls without it, or with another type, are counted, and answered by nothing."""

    async def main() -> tuple[int, int, int]:
        async with running() as double:
            action = double.store.put(Action("guest", "fa", 128))
            whole = order(double, action)
            for key in whole.keys() - {"creationId"}:
                double.bus.send("invoker0", {name: value for name, value in whole.items() if name != key})
            double.bus.send("invoker0", whole | {"rpcPort": "many"})
            double.bus.send("scheduler0", {"transid": ["x", 1]})
            await double.clock.sleep(5)
            return double.invokers[0].dropped, double.scheduler.dropped, len(acks(double))

    assert memory.run(main()) == (10, 1, 0)


def test_a_creation_of_what_is_not_there_is_refused() -> None:
    """An action that does not exist, or not at that revision: an ack with the error, and no container."""

    async def main() -> list[str]:
        async with running() as double:
            action = double.store.put(Action("guest", "fa", 128))
            whole = order(double, action)
            double.bus.send("invoker0", whole | {"revision": "7-no"})
            double.bus.send("invoker0", whole | {"action": {"path": "guest", "name": "nobody", "version": "0.0.1"}})
            await double.clock.sleep(5)
            assert not double.recording.of("docker")
            return [ack["error"] for ack in acks(double)]

    assert memory.run(main()) == ["DBFetchError"] * 2


def test_what_was_evicted_stays_and_is_of_no_use() -> None:
    """A full pool forgets a paused container, which keeps its key until its time is over (02 and 07: no `docker kill`)."""

    async def main() -> tuple[int, list[int], list[str]]:
        async with running(invokers=(PoolSettings(memory_mb=256, idle_container_s=60),)) as double:
            first, second = (
                double.store.put(Action("guest", name, memory)) for name, memory in (("a", 128), ("b", 256))
            )
            await call(double, first)
            await double.clock.sleep(30)
            assert "initTime" in str(await call(double, second))
            left = len(await double.etcd.read("warmed/guest/guest/a/"))
            await double.clock.sleep(70)
            gone = [line["t"] for line in double.recording.of("docker", action="kill")]
            paused = [line["t"] for line in double.recording.of("docker", action="pause")]
            keys = list(await double.etcd.read("warmed/"))
            return left, [gone[0] - paused[0]], keys

    left, lived_ms, keys = memory.run(main())
    assert left == 1
    assert 60_000 <= lived_ms[0] < 61_000
    assert all("/b/" in key for key in keys)


def test_a_call_that_a_container_cannot_take_goes_back_to_its_queue() -> None:
    """A 503 sends it back by RescheduleActivation, the container goes, and another one runs it."""

    async def main() -> tuple[int, int]:
        async with running(program=Busy()) as double:
            action = double.store.put(Action("guest", "fa", 128))
            record = await call(double, action)
            await double.clock.sleep(1)
            return record["response"]["statusCode"], len(double.recording.of("docker", action="kill"))

    status, killed = memory.run(main())
    assert status == 0
    assert killed >= 1


def test_a_run_whose_logs_come_too_late_takes_its_container_with_it() -> None:
    """Seen beside the real one: the caller waits for no log, and hears of success; the record says that they are missing, the
    container is destroyed 2 s after the run, and the next call is cold (the pool of classic has the same code).
    """

    async def main() -> tuple[list[Json], int]:
        async with running(program=SlowLogs()) as double:
            action = double.store.put(Action("guest", "fa", 128))
            for _ in range(2):
                begun_ms = double.clock.now_ms
                await call(double, action)
                assert double.clock.now_ms - begun_ms < 1_000
                await double.clock.sleep(5)
            return list(double.store.records.values()), len(double.recording.of("docker", action="kill"))

    records, killed = memory.run(main())
    assert killed == 2
    for record in records:
        assert record["response"]["statusCode"] == 0
        assert "initTime" in str(record)
        assert record["logs"][0].endswith(
            " stderr: There was an issue while collecting your logs. Data might be missing."
        )


def test_a_moved_container_does_not_come_back_to_the_same_address() -> None:
    """Handed over and paused, it is resumed by a creation with the first one's address, and fetches from the leader."""

    async def main() -> tuple[int, int]:
        async with running() as double:
            own = Own(fpc_wire.NO_QUEUE)
            assert isinstance(double.clock, SteppedClock)
            own.clock = double.clock
            server = await double.rpc.serve(own, 14_555)
            action = double.store.put(Action("guest", "fa", 128))
            double.bus.send("invoker0", order(double, action))
            await double.clock.sleep(1.3)
            await call(double, action)  # within the second for which the fetch was held: it comes over and takes it
            await double.clock.sleep(14)
            assert await double.etcd.read("warmed/")
            before = len(own.requests)
            double.bus.send("invoker0", order(double, action, number=1))
            await double.clock.sleep(3)
            await server.stop()
            return before, len(own.requests)

    before, after = memory.run(main())
    assert before == 1
    assert after == before


def test_an_updated_action_gets_a_new_queue_and_loses_its_containers() -> None:
    """A call of a newer revision: cold, a queue of its own; the old one's containers get a deletion message."""

    async def main() -> tuple[bool, list[Json], list[ContainerKey]]:
        async with running() as double:
            old = double.store.put(Action("guest", "fa", 128))
            await call(double, old)
            new = double.store.put(Action("guest", "fa", 128))
            record = await call(double, new)
            await double.clock.sleep(15)
            sent = [line["value"] for line in double.recording.of("kafka", topic="invoker0")]
            keys = [parse_key(f"whisk/{key}") for key in await double.etcd.read("warmed/")]
            return (
                "initTime" in str(record),
                [message for message in sent if "creationId" not in message],
                [key for key in keys if isinstance(key, ContainerKey)],
            )

    cold, deletions, left = memory.run(main())
    assert cold
    assert [fpc_wire.number_of(message["revision"]) for message in deletions] == [1]
    assert {fpc_wire.number_of(key.revision) for key in left} == {2}


@asynccontextmanager
async def after_one_call() -> AsyncIterator[tuple[Fpc, Action]]:
    """Nothing else is called."""
    async with running() as double:
        action = double.store.put(Action("guest", "fa", 128))
        await call(double, action)
        yield double, action


def test_a_call_sent_while_its_queue_ends_is_lost() -> None:
    """Sent in the 8 ms in which the controller still believes in the queue: the scheduler looks for 8.2 s, and fails it in
    its own name, which controllers cannot read (InstanceId.scala). So the caller hears of it from the database, after 15 s.
    Sent before, the queue takes it; after, it has a new one.
    """

    async def ends_ms() -> int:
        async with after_one_call() as (double, _):
            await double.clock.sleep(120)
            changes = double.recording.of("etcd", type="DELETE")
            return int(next(line["t"] for line in changes if line["key"].endswith("/leader")))

    async def lost(at_ms: int) -> bool:
        async with after_one_call() as (double, action):
            await double.clock.sleep_until(at_ms)
            record = await call(double, action)
            waited_ms = double.clock.now_ms - at_ms
            if record["response"]["statusCode"] == 0:
                assert waited_ms < 500
                return False
            assert record["response"]["result"] == {
                "error": "The activation has not been processed: failed to get the queue endpoint."
            }
            assert 8_191 <= record["end"] - at_ms < 8_300
            assert 15_000 <= waited_ms < 15_010
            told = [line["value"] for line in double.recording.of("kafka", topic="completed0")]
            assert [ack["instance"] for ack in told if ack.get("isSystemError")] == [{"asString": "0"}]
            assert double.controller.in_flight() == [[record["activationId"], "guest/fa@0.0.1"]]
            return True

    end_ms = memory.run(ends_ms())
    outcomes = [memory.run(lost(end_ms + offset_ms)) for offset_ms in range(-12, 5)]
    assert outcomes == [False] * 5 + [True] * 8 + [False] * 4


def leader_changes(double: Fpc) -> list[str]:
    return [line["type"] for line in double.recording.of("etcd") if line["key"].endswith("/leader")]


def test_a_call_makes_a_queue_again_that_has_just_ended() -> None:
    """A scheduler that has not heard yet that the leader key is gone passes the call on to itself, and makes the queue that
    it does not find (`handleCycle`). Nobody writes its key; the next call finds it all the same.
    """

    async def main() -> tuple[int, list[str], bool]:
        async with after_one_call() as (double, action):
            while double.scheduler.queues:
                await double.clock.sleep(0.001)
            message = double.recording.of("kafka", topic="scheduler0")[0]["value"]
            double.scheduler.receive(message | {"activationId": "f" * 32})
            await double.clock.sleep(5)
            again = await call(double, action)
            status = double.store.records["f" * 32]["response"]["statusCode"]
            return status, leader_changes(double), "initTime" in str(again)

    assert memory.run(main()) == (0, ["PUT", "DELETE"], False)


def test_a_leader_key_that_somebody_removes_is_written_again() -> None:
    """As long as its queue lives (`WatchEndpointRemoved`)."""

    async def main() -> list[str]:
        async with after_one_call() as (double, action):
            owner = fpc_wire.Owner("guest", action.full_name, action.version, action.revision)
            double.scheduler.session.remove(fpc_wire.leader_key(owner))
            await double.clock.sleep(1)
            return leader_changes(double)

    assert memory.run(main()) == ["PUT", "DELETE", "PUT"]


def test_a_fetch_that_cannot_be_read_fails() -> None:
    """Neither names that are no JSON nor those of no action get an answer."""

    async def main() -> None:
        async with running() as double:
            channel = double.rpc.connect(HOST, double.scheduler.port)
            for fqn in ("no json", json.dumps({"path": "guest"}), "[]"):
                with pytest.raises(RpcError):
                    await channel.fetch(FetchRequest(invocationNamespace="guest", fqn=fqn, rev='"1-a"', alive=True))

    memory.run(main())
