"""User events: every recorded one is read, and calls are told from what only looks like one."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mesp.errors import InputError
from mesp.types import FunctionKey
from mesp_plugin.openwhisk.messages import marker_id
from mesp_plugin.openwhisk.user_events import ActivationEvent, MetricEvent, parse_event

EVENT: dict[str, Any] = {
    "source": "invoker0", "subject": "someone@example", "namespace": "guest", "userId": "23bc46b1", "timestamp": 9,
    "eventType": "Activation",
    "body": {
        "name": "guest/pkg/hello", "activationId": "0" * 32, "statusCode": 0, "duration": 43, "waitTime": 12,
        "initTime": 31, "kind": "nodejs:20", "conductor": False, "memory": 256,
    },
}  # fmt: skip


def event(**changes: object) -> ActivationEvent:
    envelope = {key: value for key, value in changes.items() if key in EVENT}
    body = EVENT["body"] | {key: value for key, value in changes.items() if key not in EVENT}
    read = parse_event(json.dumps(EVENT | envelope | {"body": body}))
    assert isinstance(read, ActivationEvent)
    return read


def test_every_recorded_event_is_read(golden: Any) -> None:
    """Both kinds, with their numbers."""
    kinds = set()
    for _, message in golden.kafka("events"):
        read, body = parse_event(json.dumps(message)), message["body"]
        kinds.add((type(read), read.source.rstrip("0123456789")))
        assert (read.namespace, read.timestamp_ms) == (message["namespace"], message["timestamp"])
        if isinstance(read, MetricEvent):
            assert (read.name, read.value) == (body["metricName"], body["metricValue"])
        else:
            assert (read.init_ms, read.wait_ms, read.duration_ms) == (
                body["initTime"],
                body["waitTime"],
                body["duration"],
            )
            assert read.function == FunctionKey(message["namespace"], body["name"].partition("/")[2])
            assert read.caused_by == body.get("causedBy")
    assert {(ActivationEvent, "invoker"), (ActivationEvent, "controller"), (MetricEvent, "controller")} <= kinds


def test_calls_are_what_invokers_ran_for_users() -> None:
    """No sequence as a whole, nothing that was given up in a queue, no health check, no marker of ours."""
    assert event().is_call
    assert event().function == FunctionKey("guest", "pkg/hello")
    assert event(name="whisk.system/utils/echo").function == FunctionKey("guest", "/whisk.system/utils/echo")
    assert not event(source="controller0").is_call
    assert not event(source="scheduler0").is_call
    assert not event(kind="unknown").is_call
    assert not event(name="whisk.system/invokerHealthTestAction0").is_call
    assert not event(activationId=marker_id(3)).is_call


def test_a_cold_start_is_an_initialisation() -> None:
    """Negative times, which two clocks can give, count as none."""
    assert event().is_cold
    assert not event(initTime=0).is_cold
    assert (event(waitTime=-3).wait_ms, event(initTime=-1).is_cold) == (0, False)


def test_who_called_is_not_kept() -> None:
    """Subject and user id have no place in an event."""
    assert "someone" not in repr(event())
    assert "23bc46b1" not in repr(event())


def test_every_member_of_a_recorded_event_is_required(excerpt: Any) -> None:
    """But those that the platform leaves out at times; the sentence names what lacks."""
    for _, message in excerpt.kafka("events"):
        for holder, within in ((message, ""), (message["body"], "body.")):
            for key in set(holder) - {"size", "causedBy", "userDefinedStatusCode", "metricName"}:
                less = {name: value for name, value in holder.items() if name != key}
                with pytest.raises(InputError, match=rf"^user event: {within}{key} is missing"):
                    parse_event(json.dumps(message | {"body": less} if within else less))
