"""OpenWhisk as a platform: shadow does all but act, what was added expires, and released means hands off."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesp.errors import UnavailableError
from mesp.types import FunctionKey
from mesp_placement.model import FunctionProfile, Node, Plan, Prewarm, Release, Snapshot
from mesp_plugin.metrics import LoopMetrics, OpenWhiskMetrics
from mesp_plugin.openwhisk.driver import Done, Observed
from mesp_plugin.openwhisk.holdings import Holding, Holdings, HoldingState
from mesp_plugin.openwhisk.platform import OpenWhiskPlatform, Tally

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Literal

HELLO = FunctionKey("guest", "hello")
WISH = Plan(prewarms=(Prewarm(HELLO, "n", 2, "because"),))


@dataclass
class Scripted:
    """A driver that notes what it is told, and sees what the test says."""

    name: str = "scripted"
    cold: tuple[FunctionKey, ...] = ()
    told: list[str] = field(default_factory=list)
    broken: bool = False
    back: Done = field(default_factory=lambda: Done(3))

    async def observe(self, now_ms: int) -> Observed:
        return Observed([], len(self.cold), self.cold)

    async def snapshot(self, now_ms: int) -> Snapshot:
        return Snapshot((Node("n", 1024),), (), (FunctionProfile(HELLO, 128),))

    async def prewarm(self, wish: Prewarm, now_ms: int) -> Done:
        if self.broken:
            raise UnavailableError("it is away")
        self.told.append(f"prewarm {wish.count}")
        return Done(wish.count)

    async def release(self, wish: Release, now_ms: int) -> Done:
        self.told.append(f"release {wish.container_id}")
        return Done(1)

    async def release_all(self, now_ms: int) -> Done:
        self.told.append("release all")
        return self.back


@pytest.fixture
def driver() -> Scripted:
    return Scripted()


@pytest.fixture
def holdings(tmp_path: Path) -> Holdings:
    return Holdings(tmp_path / "state.json")


def platform(driver: Scripted, holdings: Holdings, mode: Literal["shadow", "on"] = "on") -> OpenWhiskPlatform:
    return OpenWhiskPlatform(driver, holdings, mode=mode, expiry_ms=610_000)


async def test_shadow_pretends_and_touches_nothing(driver: Scripted, holdings: Holdings) -> None:
    """What would have been ordered is in the snapshot, so that it is not ordered again, until it would have expired."""
    shadow = platform(driver, holdings, "shadow")
    outcomes = await shadow.apply(WISH, 0)
    assert (outcomes.prewarmed, outcomes.refused, driver.told) == (0, (), [])
    pretended = (await shadow.snapshot(1)).containers
    assert [(one.function, one.memory_mb, one.owned) for one in pretended] == [(HELLO, 128, True)] * 2
    await shadow.apply(Plan(releases=(Release(HELLO, pretended[0].id, "n", "surplus"),)), 1)
    await shadow.observe(609_999)
    assert (await shadow.snapshot(609_999)).containers == pretended[1:]
    await shadow.observe(610_000)
    assert (await shadow.snapshot(610_000)).containers == ()
    assert driver.told == []
    assert holdings.all() == ()


async def test_shadow_tells_which_cold_calls_would_have_been_warm(driver: Scripted, holdings: Holdings) -> None:
    """Two pretended containers meet two of three cold calls; another function's meets none."""
    metrics = LoopMetrics()
    shadow = OpenWhiskPlatform(
        driver, holdings, mode="shadow", expiry_ms=610_000, metrics=OpenWhiskMetrics(metrics.registry)
    )
    await shadow.apply(WISH, 0)
    driver.cold = (HELLO, FunctionKey("guest", "other"), HELLO, HELLO)
    await shadow.observe(1)
    assert shadow.tally == Tally(calls=4, cold=4, ordered=2, met=2)
    assert metrics.registry.get_sample_value("mesp_openwhisk_shadow_met_total") == 2
    assert metrics.registry.get_sample_value("mesp_openwhisk_prewarmed_total") == 0


async def test_acting_passes_items_on_and_one_that_fails_spares_the_others(
    driver: Scripted, holdings: Holdings
) -> None:
    """A driver's trouble with one item is a refusal, not an exception."""
    acting = platform(driver, holdings)
    plan = Plan(WISH.prewarms, (Release(HELLO, "c1", "n", "surplus"),))
    outcomes = await acting.apply(plan, 0)
    assert (outcomes.prewarmed, outcomes.released, outcomes.refused) == (2, 1, ())
    driver.broken = True
    outcomes = await acting.apply(plan, 0)
    assert (outcomes.prewarmed, outcomes.released, outcomes.refused) == (0, 1, ("guest/hello: it is away",))
    assert driver.told == ["prewarm 2", "release c1", "release c1"]


async def test_released_takes_back_and_adds_nothing_until_resumed(driver: Scripted, holdings: Holdings) -> None:
    """Another process sets the flag; the next tick heeds it."""
    acting = platform(driver, holdings)
    holdings.release()
    outcomes = await acting.apply(WISH, 0)
    assert (outcomes.prewarmed, outcomes.released) == (0, 3)
    assert outcomes.refused == ("1 prewarms left out: released, until mesp plugin openwhisk resume",)
    holdings.resume()
    assert (await acting.apply(WISH, 0)).prewarmed == 2
    assert driver.told == ["release all", "prewarm 2"]


async def test_each_release_says_once_what_stays(driver: Scripted, holdings: Holdings) -> None:
    """At every tick it is tried again, and told in the first; after `resume`, the next release tells it anew."""
    acting, driver.back = platform(driver, holdings), Done(refused="two stay")
    told = []
    for _ in range(2):
        holdings.release()
        told += [(await acting.apply(Plan(), 0)).refused for _ in range(2)]
        holdings.resume()
        await acting.apply(Plan(), 0)
    assert told == [("two stay",), ()] * 2
    assert driver.told == ["release all"] * 4


@given(
    st.lists(st.lists(st.tuples(st.integers(0, 4), st.sampled_from(HoldingState)), max_size=6), min_size=1, max_size=6),
    st.integers(0, 5),
)
async def test_no_more_calls_meet_containers_than_orders_made(
    tmp_path_factory: pytest.TempPathFactory, looks: list[list[tuple[int, HoldingState]]], killed_at: int
) -> None:
    """Whatever becomes of orders, in one life or two: one that met a container which was there counts for neither."""
    path = tmp_path_factory.mktemp("tally") / "state.json"
    holdings = Holdings(path)
    holdings.add(Holding(f"{n:032x}", HELLO, "n", 0, 1_000_000) for n in range(5))
    acting = platform(Scripted(), holdings)
    for place, changes in enumerate(looks):
        if place == killed_at:
            holdings = Holdings(path)
            acting = platform(Scripted(), holdings)
        holdings.note((f"{n:032x}", state) for n, state in changes)
        await acting.observe(place)
        assert acting.tally.met <= acting.tally.ordered <= 5


async def test_a_reused_container_was_not_made(driver: Scripted, holdings: Holdings) -> None:
    """Three markers for one container more where two were believed idle: one was there, two are made, both are met."""
    acting = platform(driver, holdings)
    holdings.add(Holding(f"{n:032x}", HELLO, "n", 0, 1_000_000) for n in range(3))
    states = (HoldingState.REUSED, HoldingState.HELD, HoldingState.HELD)
    holdings.note((f"{n:032x}", state) for n, state in enumerate(states))
    await acting.observe(0)
    holdings.note((f"{n:032x}", HoldingState.USED) for n in (1, 2))
    await acting.observe(1)
    assert (acting.tally.ordered, acting.tally.met) == (2, 2)


async def test_what_expires_is_no_longer_held_and_what_was_used_counts_once(
    driver: Scripted, holdings: Holdings
) -> None:
    """The tally knows how many calls met a container of MESP's, over a restart too."""
    acting = platform(driver, holdings)
    holdings.add(Holding(f"{n:032x}", HELLO, "n", 0, 1_000 * n) for n in (1, 2))
    await acting.observe(999)
    holdings.note([(f"{2:032x}", HoldingState.USED)])
    await acting.observe(1_000)
    assert holdings.alive() == ()
    await acting.observe(1_001)
    assert acting.tally.met == 1
    again = platform(driver, holdings)
    await again.observe(1_002)
    assert again.tally.met == 0
