"""The FPC double against all recordings of a real OpenWhisk with FPC, file by file: done the same things at the same times,
it says the same messages, starts and moves containers in the same way, and keeps the same keys as long.

The player gives it what the real one left to chance: which invoker was drawn, ids, when a queue first decided. What may
differ: which of several calls sent within 150 ms is first, and containers that the real scheduler ordered in haste, for
a call whose container was about to fetch it. Times may differ by `near`, those of idle containers by a poll of 1 s.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from e2e.openwhisk import memory
from e2e.openwhisk.alike import near, same
from e2e.openwhisk.fpc_player import Played, play
from e2e.openwhisk.golden import BURST_MS, FOLDER, Lines, is_marker, time_of
from e2e.openwhisk.wire import annotations_of

if TYPE_CHECKING:
    from e2e.openwhisk.model import Json

FILES = (
    "01-first-warm", "02-latency", "03-replies", "04-arrival-in-hold", "05-existing-and-k", "06-namespace-limit",
    "07-namespace-limit-2", "07b-namespace-limit-3", "08-keeping-count", "09-live-queue", "10-replies-2",
    "11-two-invokers", "12-distribution", "13-misc", "14-stem-cells",
)  # fmt: skip
#: A poll of a second, and what a loaded machine adds.
IDLE_MS = 1100
#: The deployment's very first run after its last start waited 0.2 s for classes to be loaded.
LOADING = {"sd"}


@pytest.fixture(scope="module")
def played() -> Played:
    if not (FOLDER / "fpc").is_dir():
        pytest.skip("the golden traces are not here: MESP_GOLDEN names their folder")
    return memory.run(play())


@pytest.fixture(params=FILES)
def span(request: pytest.FixtureRequest, played: Played) -> tuple[int, int]:
    """When the file was recorded."""
    return played.golden.spans[request.param]


def within(lines: list[Json], span: tuple[int, int]) -> list[Json]:
    return [line for line in lines if span[0] <= time_of(line) <= span[1]]


def bursts(calls: list[Json]) -> list[list[str]]:
    """Activations of one action, those that were sent at almost the same time together."""
    found: list[list[Json]] = []
    for call in sorted(calls, key=lambda line: (line["value"]["action"]["name"], time_of(line))):
        last = found[-1][-1] if found else None
        together = last is not None and last["value"]["action"] == call["value"]["action"]
        if together and last is not None and time_of(call) - time_of(last) <= BURST_MS:
            found[-1].append(call)
        else:
            found.append([call])
    return [[line["value"]["activationId"] for line in burst] for burst in found]


def kinds(acks: list[Json]) -> Counter[tuple[str, ...]]:
    return Counter((line["topic"], *sorted(line["value"])) for line in acks)


def note(record: Json, key: str) -> int:
    return int(annotations_of(record).get(key, 0))


# --- Kafka ----------------------------------------------------------------------------------------------------------


def test_calls_go_out_as_the_real_ones_did(played: Played, span: tuple[int, int]) -> None:
    """`kafka scheduler0` lines: every call's message, member for member."""
    sent = {line["value"]["activationId"]: line for line in played.double.kafka("scheduler")}
    for line in within(played.golden.calls, span):
        double = sent[line["value"]["activationId"]]
        assert line["topic"] == double["topic"]
        assert same(line["value"], double["value"]) == []


def test_answers_are_the_same(played: Played, span: tuple[int, int]) -> None:
    """`kafka completed*` and `events` lines of every call and marker: records, kinds of acks, and user events."""
    markers = [line["reply"] for line in within(played.golden.driver("grpc-reply"), span) if "user" in line["reply"]]
    ids = [line["value"]["activationId"] for line in within(played.golden.calls, span)]
    for activation_id in ids + [marker["activationId"] for marker in markers]:
        real, double = (lines.records.get(activation_id) for lines in (played.golden, played.double))
        assert kinds(played.golden.acks(activation_id)) == kinds(played.double.acks(activation_id)), activation_id
        assert same(real, double) == []
        real, double = (lines.events.get(activation_id) for lines in (played.golden, played.double))
        assert same(real, double) == [], activation_id
        assert (activation_id in played.user_runs) <= (activation_id in ids)


def test_calls_are_cold_or_warm_as_they_were_and_wait_as_long(played: Played, span: tuple[int, int]) -> None:
    """`driver invoke` lines: initTime is there or not, waitTime is near; for calls at once, in sum."""
    for burst in bursts(within(played.golden.calls, span)):
        real, double = ([lines.records[key] for key in burst] for lines in (played.golden, played.double))
        cold = [sum("initTime" in annotations_of(record) for record in records) for records in (real, double)]
        assert cold[0] == cold[1], burst
        waited = [sum(note(record, "waitTime") for record in records) for records in (real, double)]
        if real[0]["name"] not in LOADING:
            assert near(waited[0], waited[1], 100 * len(burst)), (real[0]["name"], waited)


def test_refusals_are_the_recorded_ones(played: Played) -> None:
    """`driver invoke` lines with status 429 (06, 07, 07b): each of them is refused; and all others were admitted."""
    assert len(played.refusals) == 26
    assert all(played.refusals.values())
    assert played.answers.keys() == {line["value"]["activationId"] for line in played.golden.calls}


def test_creations_by_the_scheduler(played: Played, span: tuple[int, int]) -> None:
    """`kafka invoker*` lines with rpcPort 13001: as many orders of the same members, to the same invokers."""
    sent = {line["value"].get("creationId"): line for line in played.double.kafka("invoker")}
    missing: Counter[str] = Counter()
    for line in within(played.golden.scheduled, span):
        value = line["value"]
        if double := sent.get(value["creationId"]):
            real, ours = ({**one, "whiskActionMetaData": _undated(one)} for one in (value, double["value"]))
            assert same(real, ours) == []
            assert line["topic"] == double["topic"]
        else:
            missing[f"{value['action']['path']}/{value['action']['name']}"] += 1
    assert missing <= played.golden.hasty


def _undated(creation: Json) -> Json:
    """Controllers date the description anew."""
    return {key: value for key, value in creation["whiskActionMetaData"].items() if key != "updated"}


def test_acks_of_creations(played: Played, span: tuple[int, int]) -> None:
    """`kafka creationAck*` lines, also refusals for lack of memory (03): same members, on the same topic, near in time."""
    golden, double = played.golden, played.double
    got = {line["value"]["creationId"]: line for line in double.kafka("creationAck")}
    sent = {line["value"].get("creationId"): time_of(line) for line in double.kafka("invoker")}
    for line in within(golden.orders, span):
        creation_id = line["value"].get("creationId")
        if creation_id not in sent or (real := golden.acks_of_creations.get(creation_id)) is None:
            continue  # one made in haste, or a scheduler that has no topic (13, mk)
        ours = got[creation_id]
        assert real["topic"] == ours["topic"]
        told, answered = ({**one["value"], "actionMetaData": None} for one in (real, ours))
        assert same(told, answered) == []
        slack_ms = 500 if "error" in real["value"] else 100  # the real one had to load the action first
        assert near(time_of(real) - time_of(line), time_of(ours) - sent[creation_id], slack_ms)


# --- gRPC -----------------------------------------------------------------------------------------------------------


def test_fetches_from_the_own_server(played: Played, span: tuple[int, int]) -> None:
    """`driver grpc` lines: per container the same requests in the same order, field by field, each near in time."""
    for action, containers in played.golden.fetches.items():
        if not span[0] <= containers[0][0]["t"] <= span[1]:
            continue
        double = played.fetches[action]
        assert len(containers) == len(double), action
        for real, ours in zip(containers, double, strict=True):
            assert len(ours) >= len(real[:7])
            for line, (at_ms, request) in zip(real[:7], ours, strict=False):
                told = line["request"]
                assert told["invocationNamespace"] == request.invocationNamespace
                assert (json.loads(told["fqn"]), told["rev"]) == (json.loads(request.fqn), request.rev)
                assert (told["warmed"], told["alive"]) == (request.warmed, request.alive), (action, line["n"])
                assert (told["lastDuration"] is not None) == request.HasField("lastDuration")
                assert near(told["lastDuration"] or 0, request.lastDuration.value)
                transid, start_ms = json.loads(request.transactionId)
                assert (len(transid), type(start_ms), len(request.containerId)) == (32, int, 64)
                assert abs(line["t"] - at_ms) < IDLE_MS


# --- etcd and Docker ------------------------------------------------------------------------------------------------


Events = dict[tuple[str, str], list[int]]


def lonely(real: Events, double: Events, span: tuple[int, int]) -> Counter[str]:
    """By action, events of one side within the span that have no partner on the other, at any time that is near."""
    found: Counter[str] = Counter()
    for mine, others in ((real, double), (double, real)):
        for (action, event), times in mine.items():
            partners = list(others.get((action, event), []))
            for at_ms in sorted(times):
                nearest = min(partners, key=lambda other: abs(other - at_ms), default=0)
                if abs(nearest - at_ms) < IDLE_MS:
                    partners.remove(nearest)
                elif span[0] + IDLE_MS <= at_ms <= span[1] - IDLE_MS:
                    found[action] += 1
    return found


def key_changes(lines: Lines) -> Events:
    """By action, of keys' kind and invoker, put or deleted, when."""
    found: Events = {}
    for line in lines.lines:
        if line["src"] == "etcd" and "whisk.system" not in line["key"]:
            _, kind, *parts = line["key"].split("/")
            place = parts[-3] if kind in {"namespace", "warmed"} else ""
            if kind in {"namespace", "warmed", "in-progress", "queue"}:
                found.setdefault(("/".join(parts[1:3]), f"{kind} {place} {line['type']}"), []).append(line["t"])
    return found


def test_keys_come_and_go_as_they_did(played: Played, span: tuple[int, int]) -> None:
    """`etcd` lines of containers, creations, and queues: put and deleted on the same invokers, when the real ones were."""
    alone = lonely(key_changes(played.golden), key_changes(played.double), span)
    assert {action for action, _ in alone.items()} <= played.golden.hasty.keys()


def test_containers_are_made_paused_and_removed_as_they_were(played: Played, span: tuple[int, int]) -> None:
    """`docker` lines: created, paused, unpaused and killed for each function on each invoker, when the real ones were."""
    alone = lonely(_docker(played.golden), _docker(played.double), span)
    assert {action for action, _ in alone.items()} <= played.golden.hasty.keys()


def _docker(lines: Lines) -> Events:
    found: Events = {}
    for line in lines.lines:
        if line["src"] == "docker" and line["action"] in {"create", "pause", "unpause", "kill"}:
            invoker, _, namespace, name = line["name"].split("_", 3)
            if namespace != "prewarm" and "Health" not in name:
                found.setdefault((f"{namespace}/{name}", f"{invoker} {line['action']}"), []).append(line["t"])
    return found


def test_leaders_are_told_alike(played: Played) -> None:
    """`etcd` lines of leader keys: the same value."""
    told = (
        {line["value"] for line in lines.lines if line["src"] == "etcd" and line["key"].endswith("/leader")}
        for lines in (played.golden, played.double)
    )
    real, double = told
    assert real == double


def test_namespaces_are_throttled_as_long(played: Played) -> None:
    """`etcd` lines ``whisk/throttling/<ns>`` (06, 07, 07b): true in the same intervals, but for moments of a race."""
    for namespace in ("nslim", "nslim2", "nslim3", "nslim4"):
        real, double = (_throttled(lines, namespace) for lines in (played.golden, played.double))
        assert len(real) == len(double), (real, double)
        for (begin_ms, end_ms), (other_begin_ms, other_end_ms) in zip(real, double, strict=True):
            assert abs(begin_ms - other_begin_ms) < IDLE_MS, namespace
            recorded = any(begin <= begin_ms and end_ms <= end for begin, end in played.golden.spans.values())
            assert not recorded or abs(end_ms - other_end_ms) < IDLE_MS, namespace


def _throttled(lines: Lines, namespace: str) -> list[tuple[int, int]]:
    """From when to when, if for half a second at least; the last end is the recording's."""
    key, since_ms, found = f"whisk/throttling/{namespace}", 0, []
    for line in lines.lines:
        if line["src"] == "etcd" and line["key"] == key:
            if line["value"] == "true":
                since_ms = since_ms or line["t"]
            elif since_ms:
                found.append((since_ms, line["t"]))
                since_ms = 0
    return [(begin_ms, end_ms) for begin_ms, end_ms in found if end_ms - begin_ms >= 500]


def test_memory_is_told_alike(played: Played) -> None:
    """`etcd` lines ``whisk/invokers/N``: the same members and types; paused containers are free, all adds up."""
    told = []
    for lines in (played.golden, played.double):
        mine = [line for line in lines.lines if line["src"] == "etcd" and "/invokers/" in line["key"] and line["value"]]
        told.append([json.loads(line["value"]) for line in mine])
    members = [{(key, type(value)) for value in values for key, value in value.items()} for values in told]
    assert members[0] == members[1]
    for value in told[0] + told[1]:
        assert value["freeMemory"] + value["busyMemory"] + value["inProgressMemory"] == 2048


def test_a_container_lives_in_the_recorded_order(played: Played) -> None:
    """In both: ordered, created, started, then its key and its first fetch; paused before `warmed`; gone before reuse."""
    for lines in (played.golden, played.double):
        docker: dict[tuple[str, str], int] = {}
        for line in lines.lines:
            if line["src"] == "docker":
                docker.setdefault((line["id"], line["action"]), line["t"])
            elif line["src"] == "etcd" and line["key"].split("/")[1] in {"namespace", "warmed"}:
                container = line["key"].rpartition("/")[2][:12]
                if (container, "create") not in docker or line["type"] == "DELETE":
                    continue
                event = "start" if "/namespace/" in line["key"] else "pause"
                assert docker[container, "create"] <= docker[container, event] <= line["t"]


def test_markers_run_no_user_code(played: Played) -> None:
    """Of all that was fetched from the own servers, user code ran nowhere; real calls all ran it, but those refused."""
    markers = {line["reply"]["activationId"] for line in played.golden.driver("grpc-reply") if "user" in line["reply"]}
    sent: list[dict[str, Any]] = [
        line["reply"] for line in played.golden.driver("grpc-reply") if "user" in line["reply"]
    ]
    assert all(is_marker(message) for message in sent)
    assert not markers & played.user_runs
    ran = {key for key, (_, _, record) in played.answers.items() if record and record["response"]["statusCode"] == 0}
    assert ran == played.user_runs
