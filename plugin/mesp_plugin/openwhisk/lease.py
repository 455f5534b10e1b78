"""One of several plugins acts: the one whose key is in etcd, for as long as its lease lives.

The key is created only where it is absent, and goes when its lease runs out. Whoever holds it keeps the lease alive; it
acts only while less than the lease's time has passed since it *asked* for that, by its own monotonic clock, so that it
has stopped before anybody else can begin, whatever becomes of the network between.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import structlog

from mesp.errors import UnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable

    from mesp_plugin.openwhisk.etcd import Etcd

_log = structlog.get_logger(__name__)

TTL_S: Final = 10
#: Attempts within the time of a lease.
_ATTEMPTS: Final = 4


class Lease:
    """The right to act, of whoever has the key ``mesp/<group>/acts``."""

    def __init__(self, etcd: Etcd, group: str, monotonic_s: Callable[[], float] = time.monotonic) -> None:
        self._etcd = etcd
        self._key = f"mesp/{group}/acts"
        self._monotonic_s = monotonic_s
        self._until_s = -1.0
        self._has_key = False
        self._id: str | None = None

    @property
    def is_ours(self) -> bool:
        """This plugin acts, now."""
        return self._monotonic_s() < self._until_s

    async def keep(self) -> None:
        """Asks for the lease, and keeps it alive, until cancelled."""
        while True:
            had = self.is_ours
            with suppress(UnavailableError):  # whoever follows the keys tells that etcd fails
                await self.renew()
            if had != self.is_ours:
                _log.info("acts now" if self.is_ours else "stands by", key=self._key)
            await asyncio.sleep(TTL_S / _ATTEMPTS)

    async def renew(self) -> None:
        """One attempt; raises `UnavailableError`, after which the right ends in its time."""
        asked_s = self._monotonic_s()
        if self._id is None or not await self._etcd.keep_alive(self._id):
            self._until_s, self._has_key = -1.0, False
            self._id = await self._etcd.grant(TTL_S)
        if not self._has_key:
            lease, self._id = self._id, None  # should the answer be lost, this lease and its key run out by themselves
            self._has_key = await self._etcd.create(self._key, lease, lease)
            self._id = lease
        self._until_s = asked_s + TTL_S if self._has_key else -1.0

    async def give_up(self) -> None:
        """Ends it at once, so that another one need not wait."""
        self._until_s, self._has_key = -1.0, False
        if self._id is not None:
            with suppress(UnavailableError):
                await self._etcd.revoke(self._id)
            self._id = None
