"""The facts in etcd, kept up to date: told once when they begin and end, over every failure of the way to them."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from mesp.errors import UnavailableError
from mesp.types import FunctionKey
from mesp_plugin.openwhisk import cluster as module
from mesp_plugin.openwhisk.cluster import Cluster, keep_up
from mesp_plugin.openwhisk.etcd import Change, CompactedError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from mesp_plugin.openwhisk.etcd import Etcd
    from mesp_plugin.openwhisk.etcd_keys import Key

FA = FunctionKey("guest", "fa")
ID = "8ce3de366d0117dd"
LEADER = "whisk/queue/guest/guest/fa/leader"
UP = f"whisk/namespace/guest/guest/fa/1-aa/invoker0/container/{ID}"
WARMED = f"whisk/warmed/guest/guest/fa/1-aa/invoker/0/container/{ID}"
CREATING = "whisk/in-progress/guest/guest/fa/1-aa/scheduler/0/creationId/" + "0" * 32
THROTTLED = "whisk/throttling/guest"
INVOKER = "whisk/invokers/0"
MEMORY = b'{"status":"up","freeMemory":1792,"busyMemory":256,"inProgressMemory":0,"tags":[],"dedicatedNamespaces":[]}'
VALUES = {LEADER: b"{}", UP: b"", WARMED: b"", CREATING: b"", THROTTLED: b"true", INVOKER: MEMORY}


def listening() -> tuple[Cluster, list[tuple[str, bool]]]:
    cluster, told = Cluster(), list[tuple[str, bool]]()

    def note(key: Key, begins: bool) -> None:
        told.append((key.path(), begins))

    cluster.listeners.append(note)
    return cluster, told


def test_a_fact_is_told_when_it_begins_and_when_it_ends() -> None:
    """A value that is written again is no new fact; an invoker's memory is the newest; false is no throttling."""
    cluster, told = listening()
    for _ in range(2):
        for path, value in VALUES.items():
            cluster.apply(Change(path, value))
    assert told == [(path, True) for path in VALUES]
    assert cluster.has_queue(FA)
    assert cluster.is_creating(FA)
    assert cluster.count("guest") == 2
    assert cluster.invokers[0].memory_mb == 2048
    cluster.apply(Change(THROTTLED, b"false"))
    assert told[-1] == (THROTTLED, False)
    cluster.apply(Change(THROTTLED, b"false"))
    for path in VALUES:
        cluster.apply(Change(path, None))
    assert sorted(told) == sorted((path, begins) for path in VALUES for begins in (True, False))
    assert {*cluster.existing, *cluster.warmed, *cluster.creating, *cluster.invokers, *cluster.throttled} == set()
    assert not cluster.has_queue(FA)


@pytest.mark.parametrize("keys", [[WARMED, UP], [UP, WARMED]])
def test_a_container_with_both_keys_is_up(keys: list[str]) -> None:
    """Woken or about to pause: it is there once, until one of the keys goes."""
    cluster = Cluster()
    for path in keys:
        cluster.apply(Change(path, b""))
    assert (list(cluster.existing), list(cluster.warmed), cluster.count("guest")) == ([ID], [], 1)
    cluster.apply(Change(UP, None))
    assert (list(cluster.existing), list(cluster.warmed)) == ([], [ID])


@given(
    st.lists(st.tuples(st.sampled_from(sorted(VALUES)), st.booleans()), max_size=20),
    st.sets(st.sampled_from(sorted(VALUES))),
)
def test_a_new_look_leads_to_the_same_as_changes(before: list[tuple[str, bool]], there: set[str]) -> None:
    """Whatever was known: after it the facts are those that are there, and each began and ended in turn."""
    cluster, told = listening()
    for path, is_there in before:
        cluster.apply(Change(path, VALUES[path] if is_there else None))
    cluster.replace(Change(path, VALUES[path]) for path in there)
    fresh = Cluster()
    fresh.replace(Change(path, VALUES[path]) for path in there)
    assert (cluster.existing, cluster.warmed, cluster.invokers) == (fresh.existing, fresh.warmed, fresh.invokers)
    assert cluster.has_queue(FA) == fresh.has_queue(FA)
    for path in VALUES:
        turns = [begins for one, begins in told if one == path]
        assert turns == [place % 2 == 0 for place in range(len(turns))]


@given(st.text(max_size=30), st.binary(max_size=30))
def test_no_key_brings_it_down(rest: str, value: bytes) -> None:
    """Any key with any value is taken, left out, or noted without its content."""
    cluster = Cluster()
    for path in (
        rest,
        f"whisk/{rest}",
        f"whisk/invokers/{rest}",
        f"whisk/throttling/{rest}",
        f"whisk/namespace/{rest}",
    ):
        cluster.apply(Change(path, value))
        cluster.apply(Change(path, None))
    assert not cluster.invokers


def test_what_cannot_be_read_is_noted_without_its_content() -> None:
    """A key and a value."""
    cluster = Cluster()
    cluster.apply(Change("whisk/invokers/topsecret", b"{}"))
    cluster.apply(Change(INVOKER, b"topsecret"))
    assert len(cluster.skipped) == 2
    assert "topsecret" not in str(cluster.skipped)
    assert cluster.invokers == {}


# --- Keeping up -----------------------------------------------------------------------------------------------------------


@dataclass
class FakeEtcd:
    """Looks give what is there; following goes by a script of changes and failures, then waits for ever."""

    there: list[Change]
    revision: int
    script: list[list[tuple[list[Change], int] | Exception]]
    asked: list[int | str] = field(default_factory=list)

    async def look(self, prefix: str) -> tuple[list[Change], int]:
        self.asked.append(prefix)
        return self.there, self.revision

    async def follow(self, prefix: str, revision: int) -> AsyncIterator[tuple[list[Change], int]]:
        assert prefix == "whisk/"
        self.asked.append(revision)
        if not self.script:
            yield [], revision - 1
            await asyncio.Event().wait()
        for step in self.script.pop(0):
            if isinstance(step, Exception):
                raise step
            yield step


async def kept_up(etcd: FakeEtcd, cluster: Cluster) -> bool:
    """Follows for a while; whether the facts were fresh then."""
    task = asyncio.create_task(keep_up(cast("Etcd", etcd), cluster))
    for _ in range(50):
        await asyncio.sleep(0)
    fresh = cluster.fresh
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    return fresh


@pytest.fixture(autouse=True)
def no_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_RETRY_S", 0.0)


async def test_it_goes_on_where_it_was(no_wait: None) -> None:
    """The stream breaks: followed again from the revision after the last, without a new look, and told once."""
    failures = [UnavailableError("etcd: gone") for _ in range(3)]
    script: list[list[tuple[list[Change], int] | Exception]] = [
        [([Change(LEADER, b"{}")], 8), failures[0]],
        [failures[1]],
    ]
    etcd, cluster = FakeEtcd([Change(UP, b"")], 5, script), Cluster()
    with capture_logs() as logs:
        assert await kept_up(etcd, cluster)
    assert etcd.asked == ["whisk/", 6, 9, 9]
    assert cluster.has_queue(FA)
    assert not cluster.fresh  # nobody follows any more
    assert [line["event"] for line in logs] == ["etcd fails, trying again every second"]


async def test_silence_is_no_failure() -> None:
    """A stream that ended for it is followed on, and the facts count as fresh all the time."""
    etcd, cluster = FakeEtcd([Change(UP, b"")], 5, [[([], 5)], [([Change(LEADER, b"{}")], 8)]]), Cluster()
    with capture_logs() as logs:
        assert await kept_up(etcd, cluster)
    assert etcd.asked == ["whisk/", 6, 6, 9]
    assert logs == []


async def test_what_was_compacted_is_looked_at_anew(no_wait: None) -> None:
    """Changes are lost: what is there now counts, and what is not there any more has ended."""
    etcd, cluster = FakeEtcd([Change(UP, b"")], 5, [[CompactedError("etcd: compacted")]]), Cluster()
    cluster.apply(Change(WARMED, b""))
    await kept_up(etcd, cluster)
    assert etcd.asked == ["whisk/", 6, "whisk/", 6]
    assert (list(cluster.existing), list(cluster.warmed)) == ([ID], [])


async def test_while_etcd_is_away_the_facts_are_old(no_wait: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """They stay, and are known to be old."""
    monkeypatch.setattr(module, "_RETRY_S", 3600.0)
    etcd, cluster = FakeEtcd([Change(UP, b"")], 5, [[([], 5), UnavailableError("etcd: gone")]]), Cluster()
    assert not await kept_up(etcd, cluster)
    assert list(cluster.existing) == [ID]
