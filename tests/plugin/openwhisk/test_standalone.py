"""The standalone driver beside the double: what it sees, what it adds, and what it leaves alone."""

from __future__ import annotations

import random
from collections import Counter
from typing import TYPE_CHECKING

import pytest
from aiohttp import web

from e2e.openwhisk.beside import HELLO, MINUTE_MS, OPTED_IN, PLAIN, Beside, beside
from e2e.openwhisk.standalone_pool import Spec
from mesp.errors import UnavailableError
from mesp.types import FunctionKey
from mesp_placement.model import ContainerState, Release
from mesp_plugin.openwhisk.holdings import HoldingState
from mesp_plugin.openwhisk.standalone import NODE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from mesp_plugin.openwhisk.driver import Observed


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[Beside]:
    async with beside(tmp_path) as world:
        yield world


def counts(looks: list[Observed]) -> dict[int, dict[FunctionKey, int]]:
    """What a predictor would hold: the latest report of each step."""
    return {step.step_start_ms: dict(step.counts) for look in looks for step in look.steps}


async def test_every_call_counts_once_in_the_minute_in_which_it_came(here: Beside) -> None:
    """200 calls at random times, short and minutes long, through waits, failures and pages: the counts are exact."""
    rng = random.Random(0)
    begin_ms, looks = here.now_ms, [await here.look()]
    due = sorted((rng.randrange(10 * MINUTE_MS), rng.choice([20, 3_000, 45_000])) for _ in range(200))
    truth: Counter[int] = Counter(at_ms // MINUTE_MS for at_ms, _ in due)
    for tick in range(10_000, 20 * MINUTE_MS, 10_000):
        while due and due[0][0] < tick:
            at_ms, run_ms = due.pop(0)
            here.time.advance(begin_ms + at_ms)
            here.double.call("plain", sleep_ms=run_ms, **({"fail": "app"} if rng.random() < 0.1 else {}))
        here.time.advance(begin_ms + tick)
        looks.append(await here.driver.observe(here.now_ms))
    found = counts(looks)
    seen = [found[begin_ms + minute * MINUTE_MS].get(PLAIN, 0) for minute in range(10)]
    assert sum(seen) == 200
    # One seen in flight at the end of a look that crosses no minute is dated into the right one.
    assert seen == [truth[minute] for minute in range(10)]
    assert sum(look.calls for look in looks) == 200


async def test_a_restart_reports_the_last_minutes_again_as_they_were(here: Beside) -> None:
    """A plugin that was away for two minutes tells of them in full, and of none twice."""
    looks = [await here.look()]
    for _ in range(6):
        here.double.call("plain")
        looks.append(await here.look(20_000))
    await here.restart()
    for _ in range(2):
        here.wait(30_000)
        here.double.call("plain")
        here.wait(30_000)
    looks += [await here.look(), await here.look(MINUTE_MS)]
    found = counts(looks)
    begin_ms = looks[0].steps[-1].step_start_ms + MINUTE_MS
    assert [found[begin_ms + n * MINUTE_MS].get(PLAIN, 0) for n in range(4)] == [3, 3, 1, 1]


async def test_a_marker_makes_a_warm_container_and_is_no_call(here: Beside) -> None:
    """The next real call is warm; nothing of the marker is in the counts; the container is MESP's until that call."""
    looks = [await here.look()]
    assert (await here.prewarm(HELLO)).count == 1
    looks.append(await here.look(10_000))
    (container,) = (await here.driver.snapshot(here.now_ms)).containers
    assert (container.function, container.state, container.owned) == (HELLO, ContainerState.IDLE, True)
    assert [item.state for item in here.holdings.all()] == [HoldingState.HELD]
    here.double.call("hello")
    looks += [await here.look(10_000), await here.look(MINUTE_MS)]
    assert [state for _, state, _, _ in here.double.pool.log] == ["cold", "warmed"]
    assert sum(sum(step.values()) for step in counts(looks).values()) == 1
    (container,) = (await here.driver.snapshot(here.now_ms)).containers
    assert not container.owned
    assert [item.state for item in here.holdings.all()] == [HoldingState.USED]
    assert here.double.pool.marker_user_runs == 0


async def test_k_more_need_a_marker_for_each_idle_one_too(here: Beside) -> None:
    """One is warm, two more are wanted: three markers, three containers, two of them MESP's."""
    here.double.call("hello")
    await here.look(5_000)
    done = await here.prewarm(HELLO, 2)
    await here.look(5_000)
    assert done.count == 2
    assert here.double.pool.containers("hello") == 3
    states = Counter(item.state for item in here.holdings.all())
    assert states == {HoldingState.HELD: 2, HoldingState.REUSED: 1}
    containers = (await here.driver.snapshot(here.now_ms)).containers
    assert Counter(one.owned for one in containers) == {True: 2, False: 1}


async def test_an_action_that_has_not_opted_in_is_left_alone(here: Beside) -> None:
    """It is observed, its profile says hands off, and an order is refused."""
    await here.look()
    enabled = {profile.function: profile.enabled for profile in (await here.driver.snapshot(here.now_ms)).profiles}
    assert enabled == {HELLO: True, PLAIN: False}
    done = await here.prewarm(PLAIN)
    assert (done.count, done.refused) == (0, "guest/plain has not opted in to markers")
    assert here.double.pool.log == []


async def test_markers_leave_the_limits_to_the_users(tmp_path: Path) -> None:
    """40 a minute with a margin of a quarter: 30; users called 20 times: 10 markers, the next waits for its minute."""
    async with beside(
        tmp_path, double={"per_minute": 40, "user_memory_mb": 8_192, "stems": ()}, pool_memory_mb=8_192
    ) as here:
        await here.look()
        for _ in range(20):
            here.double.call("plain")
            here.wait(100)
        await here.look(1_000)
        done = await here.prewarm(HELLO, 12)
        assert done.count == 10
        assert "10 of 12, for of 30 calls a minute users may need 20" in (done.refused or "")
        assert (await here.prewarm(HELLO)).count == 0
        assert here.double.refused == 0


async def test_a_429_ends_markers_for_the_minute(tmp_path: Path) -> None:
    """Users we cannot see used the limit up: the marker is refused, forgotten, and none follows in this minute."""
    async with beside(tmp_path, double={"per_minute": 60}) as here:
        await here.look()
        here.double.throttled = True
        done = await here.prewarm(HELLO)
        assert "at its limit on calls a minute (HTTP 429)" in (done.refused or "")
        assert here.holdings.all() == ()
        here.double.throttled = False
        assert "throttled in this minute" in ((await here.prewarm(HELLO)).refused or "")
        await here.look(MINUTE_MS)
        assert (await here.prewarm(HELLO)).count == 1


async def test_without_headroom_nothing_is_added(tmp_path: Path) -> None:
    """A pool of 256 MB with one container of 128: a second fits, a third would throw somebody out."""
    async with beside(tmp_path, double={"user_memory_mb": 256, "stems": ()}, pool_memory_mb=256) as here:
        here.double.call("plain")
        await here.look(5_000)
        done = await here.prewarm(HELLO, 2)
        assert "no headroom, 128 of 256 MB are taken, 256 are wanted" in (done.refused or "")
        assert (await here.prewarm(HELLO)).count == 1
        assert "no headroom" in ((await here.prewarm(FunctionKey("guest", "hello"))).refused or "")


async def test_stem_cells_and_strangers_count_as_taken(here: Beside) -> None:
    """The gauges show a stem cell of 256 MB; what they show beyond the known containers is others'."""
    here.double.put(Spec("stranger", memory_mb=512, annotations=OPTED_IN))
    here.double.call("stranger", sleep_ms=60_000)
    await here.look(45_000)
    here.driver._actions._cached.pop("guest/stranger")
    (node,) = (await here.driver.snapshot(here.now_ms)).nodes
    assert (node.name, node.memory_mb, node.other_memory_mb) == (NODE, 1024, 256 + 512)


async def test_a_marker_whose_answer_was_lost_is_found_again(here: Beside) -> None:
    """The connection broke after the platform took it: it is known by function and time, and is no call."""
    looks = [await here.look()]
    here.double.lose_answers = True
    done = await here.prewarm(HELLO)
    here.double.lose_answers = False
    assert done.count == 0
    assert "does not answer" in (done.refused or "")
    await here.restart()
    looks += [await here.look(10_000), await here.look(MINUTE_MS)]
    assert sum(sum(step.values()) for step in counts(looks).values()) == 0
    assert [item.state for item in here.holdings.all()] == [HoldingState.HELD]


async def test_what_the_platform_evicts_is_no_longer_held(tmp_path: Path) -> None:
    """A users' burst took the memory: the gauge tells, and the order is over."""
    async with beside(tmp_path, double={"user_memory_mb": 256, "stems": ()}, pool_memory_mb=256) as here:
        await here.look()
        await here.prewarm(HELLO)
        await here.look(5_000)
        assert len(here.holdings.alive()) == 1
        for _ in range(2):
            here.double.call("plain", sleep_ms=20_000)
        await here.look(5_000)
        await here.look(40_000)
        assert here.double.pool.containers("hello") == 0
        assert here.holdings.alive() == ()


async def test_an_updated_action_is_read_again(here: Beside) -> None:
    """It opted out: from the next list on it is left alone."""
    await here.look()
    here.wait(1)
    here.double.put(Spec("hello", memory_mb=256, annotations=(("mesp-prewarm", False),), version="0.0.2"))
    await here.look(30_000)
    profiles = {profile.function: profile for profile in (await here.driver.snapshot(here.now_ms)).profiles}
    assert (profiles[HELLO].enabled, profiles[HELLO].memory_mb) == (False, 256)


async def test_an_early_release_is_refused_once_with_the_reason(here: Beside) -> None:
    """Standalone has no way to remove a container; saying so every tick would be noise."""
    wish = Release(HELLO, "guest/hello#1", NODE, "surplus")
    assert "cannot remove a container early" in ((await here.driver.release(wish, 0)).refused or "")
    assert (await here.driver.release(wish, 10_000)).refused is None


@pytest.mark.parametrize("broken", ["/activation", "/api/v1/namespaces/_/activations"])
async def test_a_look_that_fails_loses_nothing(here: Beside, broken: str) -> None:
    """Whichever request fails, the next look tells all of it."""
    looks = [await here.look()]
    here.double.call("plain")
    here.double.fails.append(failing(broken))
    with pytest.raises(UnavailableError, match="HTTP 503"):
        await here.look(10_000)
    here.double.fails.clear()
    looks += [await here.look(10_000), await here.look(MINUTE_MS)]
    assert sum(sum(step.values()) for step in counts(looks).values()) == 1


async def test_without_metrics_the_estimate_alone_must_do(here: Beside) -> None:
    """The page is switched off, or fails: the look goes on, and what is believed bounds what is added."""
    here.wait(40_000)
    here.double.fails.append(failing("/metrics"))
    await here.look()
    assert (await here.driver.snapshot(here.now_ms)).nodes[0].other_memory_mb == 0
    assert (await here.prewarm(HELLO)).count == 1


async def test_no_error_tells_the_key(here: Beside) -> None:
    """Whatever goes wrong, neither its sentence nor what caused it holds the secret."""
    here.double.fails.append(failing("/"))
    with pytest.raises(UnavailableError) as caught:
        await here.api.namespaces()
    assert "double" not in f"{caught.value!r} {caught.value.__cause__!r} {vars(caught.value)}"


def failing(path: str) -> Callable[[web.Request], None]:
    def fail(request: web.Request) -> None:
        if request.path.startswith(path):
            raise web.HTTPServiceUnavailable

    return fail
