"""OpenWhisk's activation service: byte for byte the protocol of its scheduler, from the other side's point of view."""

from __future__ import annotations

import grpc
from google.protobuf.wrappers_pb2 import Int64Value

from mesp.openwhisk import activation_service_pb2 as pb
from mesp.openwhisk import activation_service_pb2_grpc as pb_grpc


def test_a_fetch_has_the_bytes_that_an_invoker_sends() -> None:
    """Written out by hand from core/scheduler's activation.proto: field numbers, wire types, the wrapped duration."""
    request = pb.FetchRequest(
        transactionId="t", invocationNamespace="n", fqn="f", rev="r", containerId="c", warmed=True,
        lastDuration=Int64Value(value=84), alive=True,
    )  # fmt: skip
    fields = b"\x0a\x01t\x12\x01n\x1a\x01f\x22\x01r\x2a\x01c\x30\x01\x3a\x02\x08\x54\x40\x01"
    assert request.SerializeToString(deterministic=True) == fields
    first = pb.FetchRequest.FromString(b"\x2a\x01c\x40\x01")
    assert not first.HasField("lastDuration")
    assert first.alive


def test_the_other_messages_have_the_schedulers_numbers() -> None:
    """The answer is one text; a rescheduled call has four, and a truth value comes back."""
    assert pb.FetchResponse(activationMessage="m").SerializeToString() == b"\x0a\x01m"
    back = pb.RescheduleRequest(invocationNamespace="n", fqn="f", rev="r", activationMessage="m")
    assert back.SerializeToString(deterministic=True) == b"\x0a\x01n\x12\x01f\x1a\x01r\x22\x01m"
    assert pb.RescheduleResponse(isRescheduled=True).SerializeToString() == b"\x08\x01"


class Echo(pb_grpc.ActivationServiceServicer):
    """Answers with what it was asked for."""

    async def FetchActivation(self, request: pb.FetchRequest, context: object) -> pb.FetchResponse:  # noqa: N802
        return pb.FetchResponse(activationMessage=request.fqn)

    async def RescheduleActivation(  # noqa: N802
        self, request: pb.RescheduleRequest, context: object
    ) -> pb.RescheduleResponse:
        return pb.RescheduleResponse(isRescheduled=True)


async def test_the_service_answers_under_the_schedulers_path() -> None:
    """Calls to /activation.ActivationService/..., made in plain bytes without any stub, are served."""
    server = grpc.aio.server()
    pb_grpc.add_ActivationServiceServicer_to_server(Echo(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            for method, request, response in (
                ("FetchActivation", b"\x1a\x01f", b"\x0a\x01f"),
                ("RescheduleActivation", b"", b"\x08\x01"),
            ):
                call = channel.unary_unary(
                    f"/activation.ActivationService/{method}", request_serializer=bytes, response_deserializer=bytes
                )
                assert await call(request) == response
    finally:
        await server.stop(None)
