"""What MESP emits: the same, member by member, as messages that the real invoker took."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from mesp_plugin.openwhisk.containers import ContainerCreation, parse_container_message
from mesp_plugin.openwhisk.fields import encode
from mesp_plugin.openwhisk.messages import marker_id, parse_activation
from mesp_plugin.openwhisk.names import ActionName
from mesp_plugin.openwhisk.orders import NO_KEY, creation, deletion, marker
from mesp_plugin.openwhisk.parts import ActionMetaData

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
NAMES = st.from_regex(r"\A[a-z][a-z0-9.-]{0,8}[a-z]\Z")


def shape(value: object, path: str = "") -> set[tuple[str, str]]:
    """(path, JSON type) of every member; items of a list share a path."""
    here = {(path, type(value).__name__)}
    if isinstance(value, dict):
        return here.union(*(shape(item, f"{path}.{key}") for key, item in value.items()))
    if isinstance(value, list):
        return here.union(*(shape(item, f"{path}[]") for item in value))
    return here


def test_our_marker_is_the_recorded_one(golden: Any) -> None:
    """Rebuilt from what it says, each recorded marker that was taken comes out equal, but for key and transid's name."""
    taken = [message for message, answered in golden.activations() if answered]
    taken += [line["reply"] for line in golden.driver("grpc-reply") if isinstance(line["reply"], dict)]
    markers = [message for message in taken if "__ow_prewarm" in (message.get("content") or {})]
    assert {message["revision"] is None for message in markers} == {True, False}
    for recorded in markers:
        if recorded["initArgs"] and "X" not in recorded["content"]:
            continue  # sent without the environment's value, to see what comes of it
        read = parse_activation(json.dumps(recorded))
        ours: dict[str, Any] = marker(
            action=read.action, caller=read.caller, activation_id=read.activation_id, controller=read.controller,
            now_ms=read.transaction.start_ms, revision=read.revision,
            hold_ms=recorded["content"]["__ow_prewarm"]["hold_ms"],
            init_content=read.init_content, locked_init=read.locked_init,
        )  # fmt: skip
        assert ours["user"]["authkey"] == {"api_key": NO_KEY}
        assert ours["user"]["limits"] == {"storeActivations": False}
        assert ours["blocking"] is True
        if recorded["user"]["limits"]:
            assert shape(ours) == shape(recorded)
        # What each recorded one did in its own way: some were to be stored, some not to be waited for.
        as_recorded = {
            "transid": [recorded["transid"][0], ours["transid"][1]],
            "user": ours["user"] | {key: recorded["user"][key] for key in ("authkey", "limits")},
            "blocking": recorded["blocking"],
        }
        assert ours | as_recorded == recorded


def test_our_creation_and_deletion_are_the_recorded_ones(golden: Any) -> None:
    """Rebuilt from what they say they come out equal (the recorded deletions bore a creation's transid)."""
    rebuilt = 0
    for _, recorded in golden.kafka("invoker"):
        if "invocationNamespace" not in recorded:
            continue
        read = parse_container_message(json.dumps(recorded))
        if read.revision is None:  # tests a connection
            continue
        if isinstance(read, ContainerCreation):
            ours = creation(
                namespace=read.namespace, action=read.action, revision=read.revision, metadata=read.metadata,
                scheduler=read.scheduler, host=read.host, rpc_port=read.rpc_port, creation_id=read.creation_id,
                now_ms=read.transaction.start_ms,
            )  # fmt: skip
        else:
            ours = deletion(
                namespace=read.namespace, action=read.action, revision=read.revision, metadata=read.metadata,
                now_ms=read.transaction.start_ms,
            )  # fmt: skip
            assert ours["transid"] == ["sid_containerDeletion", recorded["transid"][1]]
            ours["transid"] = recorded["transid"]
        assert shape(ours) == shape(recorded)
        assert ours == recorded
        rebuilt += 1
    assert rebuilt >= 2


@given(
    path=st.lists(NAMES, min_size=1, max_size=2).map("/".join),
    name=NAMES,
    version=st.none() | st.just("1.20.3"),
    bits=st.integers(0, 2**88 - 1),
    init=st.dictionaries(st.text(max_size=5), JSON, max_size=3),
    data=st.data(),
)
def test_what_is_emitted_parses_to_what_went_in(
    path: str, name: str, version: str | None, bits: int, init: dict[str, Any], data: st.DataObject
) -> None:
    """Any marker is an activation message under the strict schema, known as a marker, with the environment's values."""
    locked = {key: "aes-256" for key in init if data.draw(st.booleans())}
    call = parse_activation(
        json.dumps({
            "transid": ["t", 1], "action": {"path": path, "name": name, "version": version}, "revision": None,
            "user": {
                "subject": "someone", "namespace": {"name": "guest", "uuid": "u"}, "authkey": {"api_key": "u:k"},
                "rights": ["ACTIVATE"], "limits": {},
            },
            "activationId": "0" * 32, "rootControllerIndex": {"asString": "0"}, "blocking": False, "content": init,
            "initArgs": list(init), "lockedArgs": locked,
        })
    )  # fmt: skip
    message = marker(
        action=call.action, caller=call.caller, activation_id=marker_id(bits), controller="mesp-0", now_ms=9,
        init_content=call.init_content, locked_init=call.locked_init,
    )  # fmt: skip
    ours = parse_activation(encode(message))
    assert ours.is_marker
    assert ours.has_marker
    assert (ours.function, ours.caller, ours.action) == (call.function, call.caller, call.action)
    assert {key: value for key, value in ours.init_content.items() if key != "__ow_prewarm"} == {
        key: value for key, value in init.items() if key != "__ow_prewarm"
    }
    assert ours.locked_init == locked


@given(
    kind=st.sampled_from(["nodejs:20", "python:3.13"]),
    main=st.none() | NAMES,
    instances=st.none() | st.integers(1, 9),
    kept=st.lists(st.sampled_from([("provide-api-key", False), ("mesp-prewarm", True)]), unique=True),
    image=st.none() | NAMES,
)
def test_a_description_survives_its_way_through_a_creation(
    kind: str, main: str | None, instances: int | None, kept: list[tuple[str, bool]], image: str | None
) -> None:
    """Optional members are there exactly when they say something."""
    metadata = ActionMetaData(
        action=ActionName("guest/pkg", "f", "0.0.1"), kind="blackbox" if image else kind, memory_mb=256,
        timeout_ms=60_000, updated_ms=5, max_instances=instances, main=main, image=image,
        annotations=tuple(sorted(kept, reverse=True)),
    )  # fmt: skip
    order = creation(
        namespace="other", action=metadata.action, revision="1-a", metadata=metadata, scheduler="prewarm0",
        host="127.0.0.1", rpc_port=1, creation_id="0" * 32, now_ms=1,
    )  # fmt: skip
    read = parse_container_message(encode(order))
    assert read.metadata == metadata
    assert str(read.function) == "other//guest/pkg/f"
