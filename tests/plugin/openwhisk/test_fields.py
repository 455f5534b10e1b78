"""Hostile input: whatever arrives, every parser answers with a value or with one sentence that shows nothing of it."""

from __future__ import annotations

import json
from contextlib import suppress
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from mesp.errors import InputError
from mesp_plugin.openwhisk.containers import parse_container_message, parse_creation_ack
from mesp_plugin.openwhisk.etcd_keys import (
    parse_endpoints,
    parse_key,
    parse_resources,
    parse_scheduler,
    parse_throttled,
)
from mesp_plugin.openwhisk.fetches import parse_fetch
from mesp_plugin.openwhisk.fields import TEXT, Fields, encode, read_json, read_object
from mesp_plugin.openwhisk.messages import parse_ack, parse_activation, parse_ping
from mesp_plugin.openwhisk.parts import parse_action_metadata
from mesp_plugin.openwhisk.user_events import parse_event

if TYPE_CHECKING:
    from collections.abc import Callable

TOPICS: dict[str, Callable[[bytes | str], object]] = {
    "invoker": lambda raw: parse_activation(raw) if b'"user"' in _bytes(raw) else parse_container_message(raw),
    "scheduler": parse_activation,
    "completed": parse_ack,
    "creationAck": parse_creation_ack,
    "health": parse_ping,
    "events": parse_event,
}
PARSERS: tuple[Callable[[bytes | str], object], ...] = (
    parse_activation, parse_ack, parse_ping, parse_event, parse_container_message, parse_creation_ack,
    parse_action_metadata, parse_resources, parse_endpoints, parse_scheduler, parse_throttled,
)  # fmt: skip
SENTINEL = "s3cr3tzzz"
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6) | st.just(SENTINEL),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)


def _bytes(raw: bytes | str) -> bytes:
    return raw if isinstance(raw, bytes) else raw.encode()


def attempt(parse: Callable[[bytes | str], object], raw: bytes | str) -> object:
    try:
        return parse(raw)
    except InputError as error:
        return error


def refused(parse: Callable[[bytes | str], object], raw: bytes | str) -> str | None:
    """The sentence with which `raw` is refused; anything but `InputError` passes through."""
    outcome = attempt(parse, raw)
    if not isinstance(outcome, InputError):
        return None
    assert outcome.__cause__ is outcome.__context__ is None
    assert "\n" not in str(outcome)
    return str(outcome)


@given(raw=st.binary(max_size=60).filter(lambda raw: raw not in {b"true", b"false"}))  # a throttling key's values
@example(raw=b"[" * 100_000)
@example(raw=b'{"a":' * 50_000)
@example(raw=b"1" * 5_000)
@example(raw=b'{"transid":' + b"1" * 5_000 + b"}")
@example(raw=b'{"transid":NaN}')
@example(raw=b'{"transid":1e999}')
@example(raw=b"\xff\xfe{\x00}\x00")
def test_bytes_of_any_kind_are_refused_in_a_sentence(raw: bytes) -> None:
    """Depth, digits, encodings and constants that are not JSON's included."""
    assert all(refused(parse, raw) for parse in PARSERS)


@given(
    parse=st.sampled_from(PARSERS),
    value=st.dictionaries(st.text(max_size=6) | st.sampled_from(["transid", "user", "body", "name"]), JSON, max_size=5),
)
def test_json_of_any_kind_is_refused_in_a_sentence(parse: Callable[[bytes | str], object], value: object) -> None:
    """Objects that are no message."""
    sentence = refused(parse, json.dumps(value))
    assert sentence
    assert SENTINEL not in sentence


def places(value: object) -> list[tuple[Any, Any]]:
    """(holder, key or index) of every member at any depth."""
    items: list[tuple[Any, Any]] = (
        list(value.items()) if isinstance(value, dict) else list(enumerate(value)) if isinstance(value, list) else []
    )
    return [(value, key) for key, _ in items] + [place for _, item in items for place in places(item)]


@settings(max_examples=400, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_recorded_messages_with_a_member_changed_are_read_or_refused(excerpt: Any, data: st.DataObject) -> None:
    """One or two members, at any depth, are left out or become something else: no error but the one, no value shown."""
    topic = data.draw(st.sampled_from(sorted(TOPICS)))
    message = deepcopy(data.draw(st.sampled_from([value for _, value in excerpt.kafka(topic)])))
    for _ in range(data.draw(st.integers(1, 2))):
        holder, key = data.draw(st.sampled_from(places(message)))
        with suppress(KeyError, IndexError):
            if data.draw(st.booleans()):
                del holder[key]
            else:
                holder[key] = data.draw(JSON)
    assert SENTINEL not in (refused(TOPICS[topic], json.dumps(message)) or "")


@settings(max_examples=300)
@given(
    key=st.text(max_size=20)
    | st.lists(st.sampled_from(["namespace", "invoker0", "container", "a", "", "null"])).map("/".join)
)
def test_etcd_keys_of_any_kind_are_read_or_refused(key: str) -> None:
    """Nothing but a key, None or `InputError`."""
    with suppress(InputError):
        parse_key(f"whisk/{key}")


@given(fqn=st.text(max_size=20), rev=st.text(max_size=8), namespace=st.text(max_size=5), duration=st.integers())
def test_fetches_of_any_kind_are_read_or_refused(fqn: str, rev: str, namespace: str, duration: int) -> None:
    """The protobuf's strings may hold anything."""
    with suppress(InputError):
        parse_fetch(
            namespace=namespace, fqn=fqn, rev=rev, container_id="c", warmed=True, last_duration_ms=duration, alive=True
        )


@given(JSON.filter(lambda value: value == value))  # noqa: PLR0124 (NaN is the one that differs from itself)
def test_what_is_encoded_is_read_again(value: Any) -> None:
    """Half surrogate pairs, which some client may send, included."""
    with suppress(ValueError):  # NaN and infinities inside have no JSON
        assert read_json("m", encode({"value": value})) == {"value": value}


def test_a_sentence_names_the_way_to_the_key() -> None:
    """Nested objects and OpenWhisk's lists of pairs alike."""
    fields = read_object("ping", '{"a":{"b":[{"key":"c","value":1},{"key":"c","value":2}]}}')
    assert fields.object("a").pairs("b").integer("c") == 2
    with pytest.raises(InputError, match=r"^ping: a\.b\.c must be true or false$"):
        fields.object("a").pairs("b").flag("c")
    with pytest.raises(InputError, match=r"^ping: a\.x is missing, must be a whole number in \[0, 7\]$"):
        fields.object("a").integer("x", 0, 7)
    for pairs in (1, [1], [{"key": "a"}], [{"key": 1, "value": 1}]):
        with pytest.raises(InputError, match=r"^m: p must be a list of objects with key and value$"):
            Fields("m", {"p": pairs}).pairs("p")  # type: ignore[dict-item]


def test_texts_hold_nothing_that_a_log_could_not_show() -> None:
    """Neither control characters nor halves of surrogate pairs, nor nothing."""
    assert TEXT.allows("späm 😀")
    assert not any(TEXT.allows(text) for text in ("", "a\n", "\x1b[31m", "\x9b", "\ud83d"))
