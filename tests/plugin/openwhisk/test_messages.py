"""Calls and answers: what the real invoker took is taken, what it dropped is refused, and no key gets through."""

from __future__ import annotations

import json
from copy import deepcopy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesp.errors import InputError
from mesp.types import FunctionKey
from mesp_plugin.openwhisk.fields import encode
from mesp_plugin.openwhisk.messages import (
    ActivationMessage,
    is_marker_id,
    marker_id,
    parse_ack,
    parse_activation,
    parse_ping,
)
from mesp_plugin.openwhisk.orders import marker

KEY = "23bc46b1-71f6-4ed5-8c54-816aa4f8c502:" + "sEcReT" * 10 + "abcd"
CALL: dict[str, Any] = {
    "transid": ["J7uQFtMkYqvBLzZbQYTWzbWPfAp6XsIK", 1795244298239],
    "action": {"path": "guest", "name": "hello", "version": "0.0.2"},
    "revision": "2-6dc3c2008e3fc7c9aa63a8064f84a4b1",
    "user": {
        "subject": "guest",
        "namespace": {"name": "guest", "uuid": "23bc46b1-71f6-4ed5-8c54-816aa4f8c502"},
        "authkey": {"api_key": KEY},
        "rights": ["READ", "ACTIVATE"],
        "limits": {"concurrentInvocations": 2},
    },
    "activationId": "3f35b4a04b254198b5b4a04b2551989e",
    "rootControllerIndex": {"asString": "0", "instanceType": "controller"},
    "blocking": True,
    "content": {"ms": 50, "X": "xv", "password": "hunter2"},
    "initArgs": ["X", "absent"],
    "lockedArgs": {"X": "aes-256", "password": "aes-256"},
}
REQUIRED = (
    "transid", "activationId", "action", "revision", "rootControllerIndex", "blocking", "initArgs", "lockedArgs", "user",
    "user.subject", "user.namespace", "user.authkey", "user.rights", "user.limits",
)  # fmt: skip


def call(**changes: object) -> bytes:
    return json.dumps(CALL | changes).encode()


def attempt(raw: bytes | str) -> ActivationMessage | InputError:
    try:
        return parse_activation(raw)
    except InputError as error:
        return error


def test_messages_are_taken_exactly_when_the_real_invoker_took_them(golden: Any) -> None:
    """Of the recorded messages those parse to which an ack came; the others lack one required member each."""
    refused = 0
    for message, answered in golden.activations():
        if answered:
            parsed = parse_activation(json.dumps(message))
            assert (parsed.activation_id, parsed.action.name) == (message["activationId"], message["action"]["name"])
        else:
            refused += 1
            with pytest.raises(InputError, match="is missing"):
                parse_activation(json.dumps(message))
    assert refused == 12


@pytest.mark.parametrize("path", REQUIRED)
def test_a_call_without_a_required_member_is_refused_by_name(path: str) -> None:
    """The sentence names the member that lacks, as the real one's log line does."""
    message = deepcopy(CALL)
    *parents, key = path.split(".")
    holder = message
    for parent in parents:
        holder = holder[parent]
    del holder[key]
    with pytest.raises(InputError, match=rf"^activation message: {path} is missing, must be "):
        parse_activation(json.dumps(message))


def test_what_a_call_tells() -> None:
    """Every field of the dataclass, from a message with all of them."""
    parsed = parse_activation(call(cause="561aed531b6848379aed531b6838375d"))
    assert parsed.function == FunctionKey("guest", "hello")
    assert (parsed.transaction.id, parsed.transaction.start_ms) == ("J7uQFtMkYqvBLzZbQYTWzbWPfAp6XsIK", 1795244298239)
    assert (parsed.caller.rights, parsed.caller.concurrent_invocations) == (("READ", "ACTIVATE"), 2)
    assert (parsed.controller, parsed.blocking, parsed.cause) == ("0", True, "561aed531b6848379aed531b6838375d")
    assert (parsed.init_content, parsed.locked_init) == ({"X": "xv"}, {"X": "aes-256"})
    assert parsed.is_call


def test_parts_of_a_sequence_know_their_transaction_and_cause(golden: Any) -> None:
    """A transid with a parent in it is read by its own id and time."""
    parts = [parse_activation(json.dumps(message)) for message, _ in golden.activations() if "cause" in message]
    assert parts
    for part, message in zip(parts, (m for m, _ in golden.activations() if "cause" in m), strict=True):
        assert (part.transaction.id, part.transaction.start_ms) == tuple(message["transid"][:2])
        assert part.cause == message["cause"]


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"transid": "x"}, "transid must"),
        ({"transid": ["x", True]}, "transid.start"),
        ({"revision": 2}, "revision"),
        ({"activationId": "3F35B4A04B254198B5B4A04B2551989E"}, "activationId"),
        ({"action": {"path": "guest", "name": "a/b"}}, "action.name"),
        ({"action": {"path": "guest ", "name": "b"}}, "action.path"),
        ({"rootControllerIndex": {"asString": "0", "instanceType": "invoker"}}, "rootControllerIndex.instanceType"),
        ({"rootControllerIndex": {"asString": "a b"}}, "rootControllerIndex.asString"),
        ({"initArgs": [1]}, "initArgs"),
        ({"lockedArgs": {"a": 1}}, "lockedArgs"),
        ({"user": CALL["user"] | {"rights": ["WRITE"]}}, "user.rights"),
        ({"user": CALL["user"] | {"authkey": KEY}}, "user.authkey"),
        ({"user": CALL["user"] | {"limits": {"concurrentInvocations": "2"}}}, "user.limits.concurrentInvocations"),
    ],
)
def test_a_member_of_a_wrong_kind_is_refused_by_name(changes: dict[str, object], key: str) -> None:
    """One sentence: message, key, what is allowed."""
    with pytest.raises(InputError, match=rf"^activation message: {key}.* be ") as refusal:
        parse_activation(call(**changes))
    assert "\n" not in str(refusal.value)
    assert KEY not in str(refusal.value)


def test_no_parameter_but_those_of_the_environment_is_kept_and_none_is_shown() -> None:
    """`repr` shows neither key nor parameters; what is kept are the values that initArgs names."""
    parsed = parse_activation(call())
    assert "hunter2" not in repr(parsed)
    assert "xv" not in repr(parsed)
    assert not hasattr(parsed, "content")


@given(secret=st.text("abcdefghijklmnopqrstuvwxyz0123456789", min_size=40, max_size=64), at=st.sampled_from(REQUIRED))
def test_no_key_survives_parsing_failing_or_emitting(secret: str, at: str) -> None:
    """A key is in no repr, no str, no emitted message, no sentence, and in nothing that an exception holds on to."""
    message = deepcopy(CALL)
    message["user"]["authkey"] = {"api_key": f"u:{secret}"}
    parsed = parse_activation(json.dumps(message))
    ours = marker(
        action=parsed.action, caller=parsed.caller, activation_id=marker_id(1), controller="prewarm0", now_ms=1,
        init_content=parsed.init_content, locked_init=parsed.locked_init,
    )  # fmt: skip
    assert secret not in repr(parsed) + str(parsed) + encode(ours).decode()
    holder = message["user"] if at.startswith("user.") else message
    holder[at.removeprefix("user.")] = {"api_key": [secret]}
    for raw in (json.dumps(message), json.dumps(message)[:-1], json.dumps(message).encode() + b"\xff"):
        outcome = attempt(raw)
        assert secret not in str(outcome) + repr(outcome)
        if isinstance(outcome, InputError):
            assert outcome.__cause__ is outcome.__context__ is None


def test_health_checks_are_told_from_calls(golden: Any) -> None:
    """Exactly those of whisk.system are the platform's own."""
    for message, answered in golden.activations():
        if answered:
            parsed = parse_activation(json.dumps(message))
            assert parsed.is_platform_made == (message["action"]["path"] == "whisk.system")
    assert parse_activation(call(action={"path": "whisk.system", "name": "warmUp"})).is_platform_made
    assert not parse_activation(call(action={"path": "guest", "name": "invokerHealthTestAction0"})).is_platform_made


def test_markers_are_told_from_calls_by_content_and_by_id(golden: Any) -> None:
    """Either is enough; golden markers, which bear ordinary ids, are known by what they say."""
    seen = [parse_activation(json.dumps(message)) for message, answered in golden.activations() if answered]
    assert {parsed.is_marker for parsed in seen} == {True, False}
    assert all(parsed.is_marker == parsed.transaction.id.startswith("prewarm") for parsed in seen if parsed.has_marker)
    by_content = parse_activation(call(content={"__ow_prewarm": {"op": "warm"}}))
    by_id = parse_activation(call(content=None, activationId=marker_id(5)))
    assert by_content.is_marker and by_id.is_marker and not parse_activation(call()).is_marker  # noqa: PT018 (one claim)
    assert not by_id.is_call


@given(bits=st.integers(min_value=0))
def test_marker_ids_are_activation_ids_that_no_uuid_of_version_4_can_be(bits: int) -> None:
    """Valid for the platform, known to us; and as many as there are random bits."""
    made = marker_id(bits)
    assert is_marker_id(made)
    assert parse_activation(call(activationId=made)).activation_id == made
    assert not is_marker_id(made[:12] + "4" + made[13:])
    assert (marker_id(bits ^ 1 << 87) == made) is False


def test_every_recorded_ack_is_read(golden: Any) -> None:
    """Which of the three kinds it is, its members tell: record, free slot, or both."""
    kinds = set()
    for _, message in golden.kafka("completed"):
        ack = parse_ack(json.dumps(message))
        kinds.add((ack.record is not None, ack.frees_slot))
        assert ack.frees_slot == ("isSystemError" in message)
        if ack.record is not None:
            annotations = {pair["key"]: pair["value"] for pair in message["response"]["annotations"]}
            assert ack.record.activation_id == ack.activation_id
            assert ack.record.init_ms == annotations.get("initTime", 0)
            assert ack.record.memory_mb == annotations.get("limits", {}).get("memory")
            assert ack.record.function == FunctionKey(message["response"]["namespace"], message["response"]["name"])
    assert kinds == {(True, False), (False, True), (True, True)}


def test_an_ack_too_large_for_the_bus_holds_an_id_instead_of_a_record() -> None:
    """`response` may be a text: the result is then to be looked up."""
    ack = parse_ack(json.dumps({"transid": ["t", 1], "response": CALL["activationId"]}))
    assert (ack.activation_id, ack.record, ack.frees_slot) == (CALL["activationId"], None, False)


def test_a_scheduler_that_found_no_queue_ends_the_call() -> None:
    """Seen on a real one: it names itself as no invoker does, and the call is over."""
    record = {
        "activationId": CALL["activationId"],
        "annotations": [{"key": "path", "value": "guest/hello"}, {"key": "kind", "value": "unknown"}],
        "duration": 0, "end": 1795304914604, "logs": [], "name": "hello", "namespace": "guest", "publish": False,
        "response": {"result": {"error": "The activation has not been processed."}, "statusCode": 3},
        "start": 1795304914604, "subject": "guest", "version": "0.0.1",
    }  # fmt: skip
    message = {"instance": {"asString": "0"}, "isSystemError": True, "response": record, "transid": ["t", 1]}
    ack = parse_ack(json.dumps(message))
    assert (ack.activation_id, ack.frees_slot, ack.system_error) == (CALL["activationId"], True, True)


@pytest.mark.parametrize("kept", [{"transid": ["t", 1]}, {"transid": ["t", 1], "response": None}])
def test_an_ack_of_nothing_is_refused(kept: dict[str, object]) -> None:
    """Neither an instance nor a response: none of the three kinds."""
    with pytest.raises(InputError, match=r"^ack: response .*must be"):
        parse_ack(json.dumps(kept))


def test_the_result_of_a_call_is_not_kept(golden: Any) -> None:
    """Neither result nor logs have a place in a record."""
    for _, message in golden.kafka("completed"):
        if isinstance(message.get("response"), dict):
            message = deepcopy(message)  # noqa: PLW2901 (the fixture is shared)
            message["response"]["response"]["result"] = {"token": "hunter2"}
            message["response"]["logs"] = ["hunter2"]
            assert "hunter2" not in repr(parse_ack(json.dumps(message)))


def test_every_recorded_ping_is_read(golden: Any) -> None:
    """An invoker's number and memory; it is enabled unless it says that it is not."""
    pings = [parse_ping(json.dumps(message)) for _, message in golden.kafka("health")]
    assert {(ping.invoker.user_memory_mb, ping.enabled) for ping in pings} >= {(2048.0, True)}
    for ping, (_, message) in zip(pings, golden.kafka("health"), strict=True):
        assert ping.invoker.instance == message["name"]["instance"]


@pytest.mark.parametrize(
    ("size", "memory_mb"), [("2147483648 B", 2048), ("512 KB", 0.5), ("256MB", 256), ("2 g", 2048), (" 1 GB ", 1024)]
)
def test_sizes_are_read_as_the_platform_writes_and_reads_them(size: str, memory_mb: float) -> None:
    """Any unit that ByteSize.fromString takes, in MB."""
    name = {
        "instance": 1, "userMemory": size, "instanceType": "invoker", "tags": ["gpu"], "dedicatedNamespaces": [],
        "uniqueName": "u", "displayedName": "d",
    }  # fmt: skip
    ping = parse_ping(json.dumps({"name": name, "isEnabled": False}))
    assert (ping.invoker.user_memory_mb, ping.enabled) == (memory_mb, False)
    assert (ping.invoker.unique_name, ping.invoker.displayed_name, ping.invoker.tags) == ("u", "d", ("gpu",))
    with pytest.raises(InputError, match=r"name\.userMemory must be a size such as 256 MB"):
        parse_ping(json.dumps({"name": name | {"userMemory": "-1 MB"}}))
