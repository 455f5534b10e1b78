"""The classic double against the recordings of a real OpenWhisk: done the same things at the same times, it says the
same messages, starts the same containers in the same way, and lets them go when the real one did.

What may differ, because the real one leaves it to chance: which of several idle containers takes a call, who comes
first among calls that were sent within 150 ms of one another, and the choice at overload. Times may differ by `near`.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from e2e.openwhisk.alike import near, same
from e2e.openwhisk.golden import FOLDER, Lines, is_marker, time_of
from e2e.openwhisk.player import PLAYERS, Played, play

if TYPE_CHECKING:
    from e2e.openwhisk.model import Json
    from e2e.servers.kafka import Kafka


@pytest.fixture(scope="module")
def everything(kafka: Kafka) -> dict[str, Played]:
    if not (FOLDER / "classic").is_dir():
        pytest.skip("the golden traces are not here: MESP_GOLDEN names their folder")

    async def play_all() -> dict[str, Played]:
        played = await asyncio.gather(*(play(name, kafka) for name in PLAYERS))
        return dict(zip(PLAYERS, played, strict=True))

    return asyncio.run(play_all())


@pytest.fixture(params=list(PLAYERS))
def played(request: pytest.FixtureRequest, everything: dict[str, Played]) -> Played:
    return everything[request.param]


def by_activation(lines: list[Json]) -> dict[str, Json]:
    return {line["value"]["activationId"]: line for line in lines if "activationId" in line["value"]}


def kinds(acks: list[Json]) -> Counter[tuple[str, ...]]:
    """Results, completions and combined acks, by topic."""
    return Counter((line["topic"], *sorted(line["value"])) for line in acks)


def overloaded(lines: Lines) -> int:
    return len(lines.log("system is overloaded"))


def chosen_by_chance(played: Played) -> set[str]:
    """Activations of a burst in which some found every invoker full."""
    tids = {line["line"].split("[#tid_")[1].split("]")[0] for line in played.golden.log("system is overloaded")}
    sent = by_activation(played.golden.kafka("invoker"))
    found = {key for key, line in sent.items() if line["value"].get("transid", [""])[0] in tids}
    return {key for burst in played.golden.bursts if found & set(burst) for key in burst}


def test_calls_go_out_as_the_real_ones_did(played: Played) -> None:
    """Every call's message is on the same invoker's topic, with the same members and values."""
    real, double = (by_activation(lines.kafka("invoker")) for lines in _both(played))
    assert real.keys() == double.keys()
    for activation_id, line in real.items():
        assert same(line["value"], double[activation_id]["value"]) == []
    lucky = chosen_by_chance(played)
    placed = {key: line["topic"] for key, line in real.items() if key not in lucky}
    assert placed == {key: line["topic"] for key, line in double.items() if key not in lucky}
    assert overloaded(played.golden) == overloaded(played.double)


def test_containers_start_in_the_same_way(played: Played) -> None:
    """Cold, warmed or recreated, activation by activation; among calls that may overtake, as many of each."""
    real, double = played.golden.starts, played.double.starts
    assert real.keys() == double.keys()
    for burst in played.golden.bursts:
        ours, theirs = (Counter(lines[key][0] for key in burst if key in lines) for lines in (real, double))
        assert ours == theirs, burst


def test_answers_are_the_same(played: Played) -> None:
    """Results, completions and user events of each activation: as many, on the same topics, member for member."""
    for activation_id in by_activation(played.golden.kafka("invoker")):
        real, double = (lines.acks(activation_id) for lines in _both(played))
        assert kinds(real) == kinds(double), activation_id
    burst = {key for burst in played.golden.bursts if len(burst) > 1 for key in burst}
    for activation_id, record in played.golden.records.items():
        if activation_id not in burst:  # there, who was cold may differ
            assert same(record, played.double.records[activation_id]) == []
    assert played.golden.events.keys() == played.double.events.keys()
    for activation_id, body in played.golden.events.items():
        assert same(body, played.double.events[activation_id]) == [], activation_id


def test_times_are_those_of_the_recording(played: Played) -> None:
    """From its container to /init or /run, and what these took, an activation is near the real one; a burst in sum."""
    for burst in played.golden.bursts:
        ran = [key for key in burst if key in played.golden.records and key in played.golden.starts]
        for times in (_made_ms, _init_ms, _run_ms):
            real, double = (sum(times(lines, key) for key in ran) for lines in _both(played))
            assert near(real, double, 100 * max(1, len(ran))), (times.__name__, burst)


def _made_ms(lines: Lines, activation_id: str) -> int:
    return int(lines.records[activation_id]["start"]) - lines.starts[activation_id][1]


def _init_ms(lines: Lines, activation_id: str) -> int:
    return int(lines.events[activation_id]["initTime"])


def _run_ms(lines: Lines, activation_id: str) -> int:
    return int(lines.events[activation_id]["duration"]) - _init_ms(lines, activation_id)


def test_events_come_in_the_same_order(played: Played) -> None:
    """A call is sent, then gets its container, then is answered; and activations start in the recording's order."""
    for lines in _both(played):
        sent = by_activation(lines.kafka("invoker"))
        for activation_id, (_, started_ms) in lines.starts.items():
            assert time_of(sent[activation_id]) <= started_ms
            assert all(started_ms <= time_of(ack) for ack in lines.acks(activation_id))
    position = {key: number for number, burst in enumerate(played.golden.bursts) for key in burst}
    order = [position[key] for key in sorted(played.double.starts, key=lambda key: played.double.starts[key][1])]
    ours = [position[key] for key in sorted(played.golden.starts, key=lambda key: played.golden.starts[key][1])]
    assert order == ours


def test_containers_come_and_go_as_they_did(played: Played) -> None:
    """As many are made, paused, resumed and destroyed for each function, each when the real one was."""
    end_ms = time_of(played.golden.lines[-1])
    for action in ("create", "pause", "unpause", "kill"):
        real, double = played.golden.docker(action), played.double.docker(action)
        assert real.keys() == double.keys(), action
        for owner, times in real.items():
            theirs = [at_ms for at_ms in double[owner] if at_ms <= end_ms + 500]
            assert len(times) == len(theirs), (action, owner)
            assert all(abs(a - b) < 1000 for a, b in zip(sorted(times), sorted(theirs), strict=True)), (action, owner)


def test_what_is_not_a_call_is_dropped(everything: dict[str, Played]) -> None:
    """A marker that lacks one required member is answered by a line in the log, the real one's, and by nothing else."""
    played = everything["inject"]
    said = [[line["line"].split("] ")[-1] for line in lines.log("terminal failure")] for lines in _both(played)]
    assert said[0] == said[1]
    assert len(said[0]) == 12


def test_only_a_marker_without_content_runs_user_code(everything: dict[str, Played]) -> None:
    """Of all that was put on the bus by hand, user code ran where the marker was not sent, and nowhere else."""
    for played in everything.values():
        sent = by_activation(played.golden.markers)
        unmarked = {key for key, line in sent.items() if not is_marker(line["value"])}
        assert sent.keys() & played.user_runs == unmarked & played.double.starts.keys()
    assert any(not line["value"].get("content") for line in everything["inject"].golden.markers)


def test_records_are_kept_unless_the_message_says_no(everything: dict[str, Played]) -> None:
    """`storeActivations: false` keeps an activation out of the store, whatever else it does."""
    for played in everything.values():
        for activation_id, line in by_activation(played.golden.kafka("invoker")).items():
            ran = activation_id in played.double.starts
            kept = line["value"]["user"].get("limits", {}).get("storeActivations", True)
            assert (activation_id in played.stored) == (ran and kept)


def test_init_parameters_stay_with_the_container(everything: dict[str, Played]) -> None:
    """A container made by a marker whose content lacks an init parameter serves real calls without it; else with it."""
    played = everything["last"]
    told = [
        record["response"]["result"]["env_X"]
        for lines in _both(played)
        for record in lines.records.values()
        if "env_X" in record["response"]["result"]
    ]
    assert told == ["xv", None, "xv"] * 2


def test_a_dead_invoker_is_down_after_ten_seconds(everything: dict[str, Played]) -> None:
    """Its controller says so when the real one did."""
    played = everything["two"]
    down = {"invoker0": "up", "invoker1": "down"}
    real_ms = next(line["t"] for line in played.golden.lines if line.get("body") == down)
    double_ms = [at_ms for at_ms, view in played.views if view == down][-1]
    assert abs(double_ms - real_ms) < 2000


def test_pings_come_every_second(everything: dict[str, Played]) -> None:
    """A ping has the real one's members and types, and there are as many, within a tenth."""
    for played in everything.values():
        for number in {line["value"]["name"]["instance"] for line in played.golden.kafka("health")}:
            real, double = (lines.of_invoker("health", number) for lines in _both(played))
            assert same(real[-1]["value"], double[-1]["value"]) == []
            end_ms = time_of(real[-1])
            count = len([line for line in double if time_of(line) <= end_ms])
            assert abs(len(real) - count) <= 0.1 * len(real) + 2


def _both(played: Played) -> tuple[Lines, Lines]:
    return played.golden, played.double
