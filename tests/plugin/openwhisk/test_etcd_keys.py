"""etcd's keys and values: each recorded one is read, each key is written again as it was."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesp.errors import InputError
from mesp.types import FunctionKey
from mesp_plugin.openwhisk.etcd_keys import (
    ContainerKey,
    CreationKey,
    Endpoints,
    InvokerKey,
    Key,
    QueueKey,
    Scheduler,
    SchedulerKey,
    ThrottlingKey,
    parse_endpoints,
    parse_key,
    parse_resources,
    parse_scheduler,
    parse_throttled,
)

NAMES = st.from_regex(r"\A[A-Za-z0-9_]([A-Za-z0-9_@ .&-]{0,6}[A-Za-z0-9_@.&-])?\Z")
ACTIONS = st.lists(NAMES, min_size=2, max_size=3).map("/".join)
PARTS = st.from_regex(r"\A[a-z0-9-]{1,12}\Z")
REVISIONS = st.none() | PARTS.filter(lambda part: part != "null")
NUMBERS = st.integers(0, 999_999_999)
IDS = st.from_regex(r"\A[0-9a-f]{32}\Z")
KEYS: st.SearchStrategy[Key] = st.one_of(
    st.builds(InvokerKey, NUMBERS),
    st.builds(InvokerKey, NUMBERS, PARTS, st.none() | PARTS),
    st.builds(ContainerKey, st.booleans(), NAMES, ACTIONS, REVISIONS, NUMBERS, PARTS),
    st.builds(CreationKey, NAMES, ACTIONS, REVISIONS, PARTS, IDS),
    st.builds(QueueKey, NAMES, ACTIONS),
    st.builds(ThrottlingKey, NAMES, st.none() | ACTIONS),
    st.builds(SchedulerKey, PARTS),
)


def test_every_recorded_key_is_read_and_written_again(golden: Any) -> None:
    """All kinds; a lease says nothing that MESP asks for."""
    kinds = set()
    for line in golden.etcd():
        key = parse_key(line["key"])
        kinds.add(type(key))
        assert key.path() == line["key"] if key else "/instance/" in line["key"]
    assert kinds == {
        InvokerKey, ContainerKey, CreationKey, QueueKey, ThrottlingKey, SchedulerKey, type(None),
    }  # fmt: skip


def test_every_recorded_value_is_read(golden: Any) -> None:
    """Memory in MB, endpoints, and whether a namespace is at its limit."""
    throttled = set()
    for line in golden.etcd():
        if line["type"] == "DELETE":
            continue
        match parse_key(line["key"]):
            case InvokerKey():
                resources = parse_resources(line["value"])
                assert resources.memory_mb == 2048
                assert resources.status in {"up", "unhealthy"}
            case QueueKey():
                assert parse_endpoints(line["value"]).rpc_port in {13001, 13002}
            case SchedulerKey(scheduler):
                assert parse_scheduler(line["value"]).scheduler == scheduler
            case ThrottlingKey():
                throttled.add(parse_throttled(line["value"]))
            case _:
                pass
    assert throttled == {True, False}


@given(key=KEYS, cluster=st.sampled_from(["whisk", "a/b"]))
def test_keys_round_trip(key: Key, cluster: str) -> None:
    """Whatever the names: none has a slash, so the parts stay apart."""
    assert parse_key(key.path(cluster), cluster) == key


def test_keys_know_their_function() -> None:
    """The invoking namespace comes first, the action's own after it."""
    key = parse_key("whisk/warmed/guest/whisk.system/utils/echo/1-a/invoker/3/container/c0ffee")
    assert isinstance(key, ContainerKey)
    assert (key.function, key.invoker) == (FunctionKey("guest", "/whisk.system/utils/echo"), 3)
    queue = parse_key("whisk/queue/guest/guest/fa/leader")
    assert isinstance(queue, QueueKey)
    assert queue.function == FunctionKey("guest", "fa")


@pytest.mark.parametrize(
    "key", ["whisk/queue/guest/guest/fa/follower/0", "whisk/in-progress/queue/guest/guest/fa", "whisk/instance/x/lease"]
)
def test_keys_that_say_nothing_for_us_are_passed_over(key: str) -> None:
    """They are well formed, and none of the kinds that MESP reads."""
    assert parse_key(key) is None


@pytest.mark.parametrize(
    "key",
    [
        "whosk/invokers/0",
        "whisk/invokers/x",
        "whisk/invokers/0/\x00",
        "whisk/namespace/guest/fa/1-a/invoker0/container/c",
        "whisk/namespace/guest/a/b/c/d/1-a/invoker0/container/c",
        "whisk/namespace/guest/guest/fa/1-a/0/container/c",
        "whisk/warmed/guest/guest/fa/1-a/invoker/-1/container/c",
        "whisk/warmed/guest/guest/ fa/1-a/invoker/1/container/c",
        "whisk/in-progress/guest/guest/fa/1-a/scheduler/0/creationId/xyz",
        "whisk/queue/gu!est/guest/fa/leader",
        "whisk/throttling/guest/guest",
        "whisk/scheduler/a b",
    ],
)
def test_keys_that_are_not_well_formed_are_refused(key: str) -> None:
    """With a sentence that says what is allowed and not what was found."""
    with pytest.raises(InputError, match=r"^etcd key") as refusal:
        parse_key(key)
    assert key not in str(refusal.value)


def test_values_are_strict() -> None:
    """Throttling is true or false, nothing else; endpoints are whole."""
    assert parse_throttled(b"true")
    assert parse_scheduler(
        '{"sid":{"asString":"0"},"queueSize":2,"endpoints":{"host":"h","rpcPort":1,"pekkoPort":2}}'
    ) == (Scheduler("0", 2, Endpoints("h", 1, 2)))
    for value in (b"", b"TRUE", b"\xff", "truetrue"):
        with pytest.raises(InputError, match="must be true or false"):
            parse_throttled(value)
    with pytest.raises(InputError, match=r"^etcd value of queue/\.\.\.: pekkoPort is missing"):
        parse_endpoints('{"host":"h","rpcPort":1}')
