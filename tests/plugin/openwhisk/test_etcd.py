"""etcd's JSON gateway as the plugin speaks it, beside a server that answers as etcd does."""

from __future__ import annotations

import asyncio
import base64
import json
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from hypothesis import given, settings
from hypothesis import strategies as st

from mesp.config import load_config
from mesp.errors import InputError, UnavailableError
from mesp_plugin.openwhisk import etcd as module
from mesp_plugin.openwhisk.config import EtcdConfig, OpenWhiskConfig
from mesp_plugin.openwhisk.etcd import Change, CompactedError, Etcd, open_etcd

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

SECRET = "topsecret"
#: Nobody listens on the discard port.
NOBODY = "http://127.0.0.1:9"
#: In a stream: nothing more comes, and it does not end.
SILENCE = object()


def b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def kv(key: str, value: str = "", revision: int = 1) -> dict[str, Any]:
    shown = {"key": b64(key), "mod_revision": str(revision)}
    return shown | ({"value": b64(value)} if value else {})


@dataclass
class FakeEtcd:
    """Answers by path; a list is a stream."""

    answers: dict[str, Any] = field(default_factory=dict)
    asked: list[tuple[str, dict[str, Any], str | None]] = field(default_factory=list)
    url: str = ""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        path, token = request.path.removeprefix("/v3/"), request.headers.get("Authorization")
        self.asked.append((path, await request.json(), token))
        answer = self.answers[path]
        if callable(answer):
            answer = answer(token)
        if isinstance(answer, web.Response):
            return answer
        if not isinstance(answer, list):
            return web.json_response(answer)
        stream = web.StreamResponse()
        await stream.prepare(request)
        for part in answer:
            if part is SILENCE:
                await asyncio.Event().wait()
            await stream.write(part if isinstance(part, bytes) else json.dumps(part).encode() + b"\n")
        return stream

    def paths(self) -> list[str]:
        return [path for path, _, _ in self.asked]


@asynccontextmanager
async def serving(fake: FakeEtcd) -> AsyncIterator[None]:
    app = web.Application()
    app.router.add_post("/v3/{path:.*}", fake.handle)
    async with TestServer(app) as server:
        fake.url = str(server.make_url("")).rstrip("/")
        yield


@pytest.fixture
async def fake() -> AsyncIterator[FakeEtcd]:
    fake = FakeEtcd()
    async with serving(fake):
        yield fake


@asynccontextmanager
async def client(fake: FakeEtcd, **members: Any) -> AsyncIterator[Etcd]:
    config = EtcdConfig.model_validate({"endpoints": (fake.url,)} | members)
    async with open_etcd(config) as etcd:
        yield etcd


def events(*changes: dict[str, Any], revision: int = 9) -> dict[str, Any]:
    return {"result": {"header": {"revision": str(revision)}, "events": list(changes)}}


CREATED = {"result": {"header": {"revision": "99"}, "created": True}}


# --- Looking and following ------------------------------------------------------------------------------------------------


async def test_a_look_tells_keys_and_its_revision(fake: FakeEtcd) -> None:
    """All that begins with the prefix, as base64; an empty store has no kvs at all."""
    fake.answers["kv/range"] = {"header": {"revision": "7"}, "kvs": [kv("whisk/a", "1"), kv("whisk/b")], "count": "2"}
    async with client(fake) as etcd:
        assert await etcd.look("whisk/") == ([Change("whisk/a", b"1"), Change("whisk/b", b"")], 7)
        assert fake.asked[0][1] == {"key": b64("whisk/"), "range_end": b64("whisk0")}
        fake.answers["kv/range"] = {"header": {"revision": "8"}}
        assert await etcd.look("whisk/") == ([], 8)


async def test_changes_come_in_order_with_the_revision_of_the_last(fake: FakeEtcd) -> None:
    """Not the header's, which may be ahead of what was sent; a line may be cut anywhere; the first says: open."""
    line = json.dumps(events({"kv": kv("whisk/a", "1", 5)}, {"type": "DELETE", "kv": kv("whisk/b", "", 6)})).encode()
    fake.answers["watch"] = [CREATED, line[:40], line[40:] + b"\n", events({"kv": kv("whisk/c", "", 8)})]
    async with client(fake) as etcd:
        seen: list[tuple[list[Change], int]] = []
        with pytest.raises(UnavailableError, match="the watch ended"):
            await follow_all(etcd, seen, 4)
    assert seen == [
        ([], 4),
        ([Change("whisk/a", b"1"), Change("whisk/b", None)], 6),
        ([Change("whisk/c", b"")], 8),
    ]
    assert fake.asked[0][1]["create_request"]["start_revision"] == "4"


@pytest.mark.parametrize(
    ("told", "error"),
    [
        ({"result": {"header": {}, "canceled": True, "compact_revision": "50"}}, CompactedError),
        ({"result": {"header": {}, "canceled": True}}, UnavailableError),
        ({"error": {"grpc_code": 14, "message": SECRET}}, UnavailableError),
        (b"nonsense " + SECRET.encode() + b"\n", UnavailableError),
    ],
)
async def test_what_ends_a_watch_is_told_by_kind(fake: FakeEtcd, told: Any, error: type[Exception]) -> None:
    """Compacted, cancelled, failed, or no sense: and never in its words."""
    fake.answers["watch"] = [CREATED, told]
    async with client(fake) as etcd:
        with pytest.raises(error) as caught:
            await follow_all(etcd, [])
    assert SECRET not in str(caught.value)
    assert type(caught.value) is error


async def test_a_silent_watch_ends_without_failure(fake: FakeEtcd, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing happens nothing is written: what came before is told, and whoever follows goes on from there."""
    monkeypatch.setattr(module, "_SILENCE_S", 0.05)
    fake.answers["watch"] = [CREATED, events({"kv": kv("whisk/a", "1", 5)}), SILENCE]
    async with client(fake) as etcd:
        seen: list[tuple[list[Change], int]] = []
        await follow_all(etcd, seen, 4)
    assert seen == [([], 4), ([Change("whisk/a", b"1")], 5)]


# --- Leases ---------------------------------------------------------------------------------------------------------------


async def test_a_key_is_created_only_where_it_is_absent(fake: FakeEtcd) -> None:
    """A transaction that compares the revision of its creation with none; etcd leaves out what is false."""
    fake.answers |= {"lease/grant": {"ID": "77", "TTL": "10"}, "kv/txn": {"header": {}, "succeeded": True}}
    async with client(fake) as etcd:
        lease = await etcd.grant(10)
        assert await etcd.create("mesp/a", "me", lease)
        fake.answers["kv/txn"] = {"header": {}}
        assert not await etcd.create("mesp/a", "me", lease)
    request = fake.asked[1][1]
    assert request["compare"] == [{"key": b64("mesp/a"), "target": "CREATE", "result": "EQUAL", "create_revision": "0"}]
    assert request["success"] == [{"request_put": {"key": b64("mesp/a"), "value": b64("me"), "lease": "77"}}]


async def test_a_lease_that_ran_out_is_not_alive(fake: FakeEtcd) -> None:
    """Its TTL is 0, which is left out as well."""
    fake.answers["lease/keepalive"] = {"result": {"header": {}, "ID": "77", "TTL": "10"}}
    async with client(fake) as etcd:
        assert await etcd.keep_alive("77")
        fake.answers["lease/keepalive"] = {"result": {"header": {}, "ID": "77"}}
        assert not await etcd.keep_alive("77")


# --- Who asks, and whom ---------------------------------------------------------------------------------------------------


def guarded(token_now: list[str]) -> Any:
    def answer(token: str | None) -> Any:
        if token != token_now[0]:
            refusal = {"error": "etcdserver: invalid auth token", "code": 16}
            return web.json_response(refusal, status=401)
        return {"header": {"revision": "1"}}

    return answer


async def test_a_token_is_bought_and_bought_again(fake: FakeEtcd, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once at first, and once more when etcd no longer takes it; a password that buys none is one sentence."""
    monkeypatch.setenv("MESP_ETCD_PASSWORD", SECRET)
    token = ["first"]
    fake.answers |= {"auth/authenticate": lambda _: {"token": token[0]}, "kv/range": guarded(token)}
    async with client(fake, username="root") as etcd:
        await etcd.look("a")
        await etcd.look("a")
        assert fake.paths() == ["auth/authenticate", "kv/range", "kv/range"]
        assert fake.asked[0][1] == {"name": "root", "password": SECRET}
        token[0] = "second"
        await etcd.look("a")
        assert fake.paths()[3:] == ["kv/range", "auth/authenticate", "kv/range"]
        fake.answers["auth/authenticate"] = {"token": "stale"}
        token[0] = "third"
        with pytest.raises(UnavailableError, match="does not take this user's token"):
            await etcd.look("a")
        fake.answers["auth/authenticate"] = web.json_response({"error": "auth failed", "code": 3}, status=400)
        with pytest.raises(UnavailableError, match="auth/authenticate failed with HTTP 400") as caught:
            await etcd.look("a")
    assert SECRET not in str(caught.value)


async def test_another_endpoint_is_asked_when_one_does_not_answer(fake: FakeEtcd) -> None:
    """And goes on being asked; when none answers that is one sentence."""
    fake.answers["kv/range"] = {"header": {"revision": "1"}}
    async with client(fake, endpoints=(NOBODY, fake.url)) as etcd:
        await etcd.look("a")
        await etcd.look("a")
    async with client(fake, endpoints=(NOBODY,)) as etcd:
        with pytest.raises(UnavailableError, match="etcd does not answer as it must: Client"):
            await etcd.look("a")


ANSWERS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(
            st.sampled_from(["header", "revision", "kvs", "key", "value", "result", "TTL", "ID", "events"]), inner
        )
    ),
    max_leaves=8,
)


@settings(max_examples=3, deadline=None)
@given(answers=st.lists(ANSWERS, min_size=12, max_size=12))
async def test_no_answer_brings_it_down(answers: list[Any]) -> None:
    """Any JSON on any path is taken, or is `UnavailableError`."""
    fake = FakeEtcd()
    async with serving(fake), client(fake) as etcd:
        for answer in answers:
            fake.answers = dict.fromkeys(("kv/range", "lease/grant", "lease/keepalive", "kv/txn"), answer)
            fake.answers["watch"] = [CREATED, answer]
            calls = [
                etcd.look("a"),
                etcd.grant(1),
                etcd.keep_alive("1"),
                etcd.create("a", "b", "1"),
                follow_all(etcd, []),
            ]
            done = await asyncio.gather(*calls, return_exceptions=True)
            assert all(isinstance(one, UnavailableError) for one in done if isinstance(one, BaseException))


async def follow_all(etcd: Etcd, seen: list[tuple[list[Change], int]], revision: int = 1) -> None:
    async for told in etcd.follow("whisk/", revision):
        seen.append(told)  # noqa: PERF401 (what came before a failure is wanted)


# --- Settings -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{}", "etcd.endpoints"),
        ("{endpoints: []}", "etcd.endpoints"),
        ("{endpoints: ['host:2379']}", "must be http://host:port"),
        ("{endpoints: ['http://u:p@host:2379']}", "without a path and without a key"),
        ("{endpoints: ['http://h'], password: x}", "unknown key etcd.password"),
        ("{endpoints: ['http://h'], cluster: a/b}", "etcd.cluster = 'a/b'"),
    ],
)
def test_mistakes_are_one_sentence(tmp_path: Path, text: str, words: str) -> None:
    """A wrong key or value is named; a password cannot be written at all."""
    path = tmp_path / "plugin.yaml"
    path.write_text(f"etcd: {text}\n")
    with pytest.raises(InputError, match=words):
        load_config(path, OpenWhiskConfig)


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({"username": "root"}, "environment variable MESP_ETCD_PASSWORD holds no password for etcd"),
        ({"username": "root", "password_file": "absent"}, "etcd.password_file = absent: cannot be read"),
        ({"ca_file": "absent"}, "etcd.ca_file = absent: cannot be read as certificates"),
    ],
)
async def test_what_cannot_be_read_is_named(
    monkeypatch: pytest.MonkeyPatch, members: dict[str, Any], words: str
) -> None:
    """Before any connection."""
    monkeypatch.delenv("MESP_ETCD_PASSWORD", raising=False)
    with pytest.raises(InputError, match=words):
        async with open_etcd(EtcdConfig.model_validate({"endpoints": (NOBODY,)} | members)):
            pass
