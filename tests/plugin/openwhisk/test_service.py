"""The ActivationService over a real connection: what a container asks, and what it is answered."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import grpc.aio
import pytest
from google.protobuf.wrappers_pb2 import Int64Value
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from mesp.errors import InputError
from mesp.openwhisk import activation_service_pb2 as pb
from mesp.openwhisk.activation_service_pb2_grpc import ActivationServiceStub
from mesp_plugin.metrics import OpenWhiskMetrics
from mesp_plugin.openwhisk.fetches import Fetch, NoCall
from mesp_plugin.openwhisk.names import ActionName
from mesp_plugin.openwhisk.service import ActivationService, serving

if TYPE_CHECKING:
    from mesp_plugin.openwhisk.fields import JsonObject

SECRET = "topsecret"
FQN = '{"name":"fa","path":"guest","version":"0.0.1"}'


class Answers:
    """Answers what it is told to; keeps what was asked."""

    def __init__(self) -> None:
        self.asked: list[Fetch] = []
        self.answer: asyncio.Future[JsonObject | NoCall] = asyncio.get_running_loop().create_future()
        self.came, self.cancelled = asyncio.Event(), asyncio.Event()

    async def fetch(self, fetch: Fetch) -> JsonObject | NoCall:
        self.asked.append(fetch)
        self.came.set()
        try:
            return await asyncio.shield(self.answer)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise


def request(**members: object) -> pb.FetchRequest:
    sound: dict[str, object] = {
        "transactionId": '["id",1795245844302]',
        "invocationNamespace": "guest",
        "fqn": FQN,
        "rev": '"1-aa"',
        "containerId": "8ce3",
        "warmed": False,
        "alive": True,
    }
    return pb.FetchRequest(**{**sound, **members})  # type: ignore[arg-type]  # what is mixed here each field checks


def fetching(
    channel: grpc.aio.Channel, **members: object
) -> grpc.aio.UnaryUnaryCall[pb.FetchRequest, pb.FetchResponse]:
    stub: Any = ActivationServiceStub(channel)  # its stub is typed for channels that are not asyncio's
    call: grpc.aio.UnaryUnaryCall[pb.FetchRequest, pb.FetchResponse] = stub.FetchActivation(request(**members))
    return call


async def test_a_fetch_is_read_held_and_answered() -> None:
    """As recorded (01): its strings hold JSON, and so does the answer's; it comes when it is time."""
    answers = Answers()
    async with serving(answers, "127.0.0.1:0") as port, grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = fetching(channel, warmed=True, lastDuration=Int64Value(value=84))
        await asyncio.wait_for(answers.came.wait(), 10)
        assert answers.asked == [Fetch("guest", ActionName("guest", "fa", "0.0.1"), "1-aa", "8ce3", True, 84, True)]
        answers.answer.set_result(NoCall.NO_QUEUE)
        told = json.loads((await call).activationMessage)
    assert told == {"message": {"noMemoryQueue": "no memory queue exist", "type": "NoMemoryQueue"}}


async def test_a_container_that_hangs_up_is_noticed() -> None:
    """Whoever holds it stops doing so."""
    answers = Answers()
    async with serving(answers, "127.0.0.1:0") as port, grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = fetching(channel)
        await asyncio.wait_for(answers.came.wait(), 10)
        call.cancel()
        await asyncio.wait_for(answers.cancelled.wait(), 10)


async def test_when_it_ends_the_held_are_let_go() -> None:
    """Their call fails at once, after which they go to the real queue, or are destroyed."""
    answers = Answers()
    async with serving(answers, "127.0.0.1:0") as port:
        channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}")
        call = fetching(channel)
        await asyncio.wait_for(answers.came.wait(), 10)
    with pytest.raises(grpc.aio.AioRpcError):
        await call
    await channel.close(grace=None)


async def test_a_port_that_is_taken_is_one_sentence() -> None:
    """It names the keys and the address."""
    async with serving(Answers(), "127.0.0.1:0") as port:
        with pytest.raises(InputError, match=rf"fpc\.listen, fpc\.port = 127\.0\.0\.1:{port}"):
            async with serving(Answers(), f"127.0.0.1:{port}"):
                pass


TEXTS = st.text(max_size=20) | st.sampled_from([FQN, '"1-aa"', "null", "{}", "[]", f'"{SECRET}"', SECRET, "guest"])


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    texts=st.fixed_dictionaries(
        {}, optional=dict.fromkeys(("transactionId", "invocationNamespace", "fqn", "rev", "containerId"), TEXTS)
    ),
    warmed=st.booleans(),
)
async def test_no_request_brings_it_down(texts: dict[str, str], warmed: bool) -> None:
    """Anything is answered: what cannot be read as a stranger is, counted, and told without its content."""
    answers, metrics = Answers(), OpenWhiskMetrics(CollectorRegistry())
    answers.answer.set_result(NoCall.NO_ACTIVATION)
    service = ActivationService(answers, metrics)
    with capture_logs() as logs:
        told = await service.FetchActivation(request(**texts, warmed=warmed), None)  # type: ignore[arg-type]
    kind = json.loads(told.activationMessage)["message"]["type"]
    assert kind == ("NoActivationMessage" if answers.asked else "NoMemoryQueue")
    assert len(logs) == metrics.malformed._value.get() == 1 - len(answers.asked)
    assert SECRET not in str(logs)


async def test_a_marker_that_comes_back_is_lost() -> None:
    """There is no queue here."""
    told = await ActivationService(Answers()).RescheduleActivation(pb.RescheduleRequest(activationMessage=SECRET), None)  # type: ignore[arg-type]
    assert not told.isRescheduled
