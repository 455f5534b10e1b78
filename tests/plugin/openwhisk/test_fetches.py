"""Fetches: what containers asked in the recordings is read, what they were told is written the same."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mesp.errors import InputError
from mesp.types import FunctionKey
from mesp_plugin.openwhisk.fetches import Fetch, NoCall, parse_fetch, reply


def read(request: dict[str, Any]) -> Fetch:
    return parse_fetch(
        namespace=request["invocationNamespace"], fqn=request["fqn"], rev=request["rev"],
        container_id=request["containerId"], warmed=request["warmed"], last_duration_ms=request["lastDuration"],
        alive=request["alive"],
    )  # fmt: skip


REQUEST: dict[str, Any] = {
    "invocationNamespace": "guest", "fqn": '{"name":"fa","path":"guest","version":"0.0.1"}', "rev": '"1-e39"',
    "containerId": "8c", "warmed": False, "lastDuration": None, "alive": True,
}  # fmt: skip


def test_every_recorded_fetch_is_read(golden: Any) -> None:
    """The first of a container has run nothing; the last says farewell."""
    seen = set()
    for line in golden.driver("grpc"):
        if line["method"] == "FetchActivation":
            fetch, request = read(line["request"]), line["request"]
            seen.add((fetch.warmed, fetch.alive))
            assert fetch.function == FunctionKey(request["invocationNamespace"], json.loads(request["fqn"])["name"])
            assert fetch.revision == json.loads(request["rev"])
            assert fetch.last_duration_ms == request["lastDuration"]
    assert {(False, True), (True, True)} < seen


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"rev": "1-e39"}, "rev"),
        ({"rev": "7"}, "revision"),
        ({"fqn": "guest/fa"}, "fqn"),
        ({"fqn": "null"}, "fqn"),
        ({"fqn": '{"name":"fa"}'}, "fqn.path is missing"),
        ({"invocationNamespace": ""}, "invocationNamespace"),
        ({"lastDuration": -1}, "lastDuration"),
        ({"containerId": "\n"}, "containerId"),
    ],
)
def test_a_fetch_that_no_scheduler_understands_is_refused(changes: dict[str, Any], key: str) -> None:
    """One sentence that names the field."""
    with pytest.raises(InputError, match=rf"^fetch: {key}.*must be "):
        read(REQUEST | changes)


def test_a_fetch_without_revision_is_read() -> None:
    """JSON's null: a container that no real call will find."""
    assert read(REQUEST | {"rev": "null"}).revision is None


def test_the_reasons_are_the_schedulers_own(golden: Any) -> None:
    """Each as ActivationResponse.serdes writes it; the recordings name the same types."""
    assert json.loads(reply(NoCall.NO_ACTIVATION)) == {
        "message": {"noActivationMessage": "no activation message exist", "type": "NoActivationMessage"}
    }
    assert json.loads(reply(NoCall.NO_QUEUE)) == {
        "message": {"noMemoryQueue": "no memory queue exist", "type": "NoMemoryQueue"}
    }
    assert json.loads(reply(NoCall.ACTION_MISMATCH)) == {
        "message": {"actionMisMatch": "action version does not match", "type": "ActionMismatch"}
    }
    told = {line["reply"] for line in golden.driver("grpc-reply") if isinstance(line["reply"], str)}
    assert told == {reason.value for reason in NoCall}


def test_a_call_is_wrapped_as_it_is() -> None:
    """What `orders.marker` makes becomes the answer's message."""
    assert json.loads(reply({"transid": ["t", 1]})) == {"message": {"transid": ["t", 1]}}
