"""Of two plugins one acts, and never both, whatever becomes of etcd between them."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesp.errors import UnavailableError
from mesp_plugin.openwhisk.lease import TTL_S, Lease

if TYPE_CHECKING:
    from mesp_plugin.openwhisk.etcd import Etcd


@dataclass
class FakeEtcd:
    """Leases that run out, and one key; an answer can be lost before or after it was acted on."""

    now_s: float = 0.0
    lost: str | None = None
    leases: dict[str, float] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)
    ids: Any = field(default_factory=lambda: count(1))

    def advance(self, seconds: float) -> None:
        self.now_s += seconds
        self.leases = {key: until_s for key, until_s in self.leases.items() if until_s > self.now_s}
        self.keys = {key: lease for key, lease in self.keys.items() if lease in self.leases}

    def _asked(self) -> None:
        if self.lost == "request":
            raise UnavailableError("etcd: lost")

    def _answered(self) -> None:
        if self.lost == "answer":
            raise UnavailableError("etcd: lost")

    async def grant(self, ttl_s: int) -> str:
        self._asked()
        lease = str(next(self.ids))
        self.leases[lease] = self.now_s + ttl_s
        self._answered()
        return lease

    async def keep_alive(self, lease: str) -> bool:
        self._asked()
        alive = lease in self.leases
        if alive:
            self.leases[lease] = self.now_s + TTL_S
        self._answered()
        return alive

    async def create(self, key: str, value: str, lease: str) -> bool:
        self._asked()
        assert value == lease
        created = key not in self.keys
        if created:
            self.keys[key] = lease
        self._answered()
        return created

    async def revoke(self, lease: str) -> None:
        self._asked()
        self.leases.pop(lease, None)
        self.advance(0)


def two() -> tuple[FakeEtcd, Lease, Lease]:
    etcd = FakeEtcd()
    first, second = (Lease(cast("Etcd", etcd), "mesp", lambda: etcd.now_s) for _ in "ab")
    return etcd, first, second


async def test_one_acts_and_the_other_takes_over() -> None:
    """At once when the first gives it up; after its lease when it dies."""
    etcd, first, second = two()
    await first.renew()
    await second.renew()
    assert (first.is_ours, second.is_ours) == (True, False)
    await first.give_up()
    await second.renew()
    assert (first.is_ours, second.is_ours) == (False, True)
    await first.renew()  # and dies the second
    for _ in range(3):
        etcd.advance(TTL_S / 4)
        await first.renew()
        assert (first.is_ours, second.is_ours) == (False, True)
    etcd.advance(TTL_S / 4)
    await first.renew()
    assert (first.is_ours, second.is_ours) == (True, False)


async def test_who_cannot_ask_stops_before_another_begins() -> None:
    """Cut off from etcd it acts for no longer than the lease lives since it last asked."""
    etcd, first, second = two()
    await first.renew()
    etcd.lost = "request"
    etcd.advance(TTL_S - 0.1)
    with pytest.raises(UnavailableError):
        await first.renew()
    before = first.is_ours
    etcd.advance(0.1)
    assert (before, first.is_ours) == (True, False)
    etcd.lost = None
    await second.renew()
    assert second.is_ours


async def test_a_lost_answer_locks_nobody_out() -> None:
    """The key was written and nobody knows: it runs out with its lease, and one of them acts."""
    etcd, first, second = two()
    first_lease = await etcd.grant(TTL_S)
    first._id = first_lease
    etcd.lost = "answer"
    with pytest.raises(UnavailableError):
        await first.renew()
    etcd.lost = None
    for _ in range(8):
        etcd.advance(TTL_S / 4)
        await first.renew()
        await second.renew()
    assert first.is_ours != second.is_ours


@given(
    st.lists(
        st.tuples(st.sampled_from("ab-"), st.sampled_from([None, "request", "answer"]), st.floats(0, 12)), max_size=30
    )
)
async def test_never_both(steps: list[tuple[str, str | None, float]]) -> None:
    """Over any order of attempts, losses and waits; and some time after the last of them, exactly one."""
    etcd, first, second = two()
    for who, lost, wait_s in steps:
        etcd.lost = lost
        if who != "-":
            lease = first if who == "a" else second
            with suppress(UnavailableError):
                await lease.renew()
        assert not (first.is_ours and second.is_ours)
        etcd.advance(wait_s)
        assert not (first.is_ours and second.is_ours)
    etcd.lost = None
    for _ in range(8):
        await first.renew()
        await second.renew()
        etcd.advance(TTL_S / 4)
    assert first.is_ours != second.is_ours
