"""The golden traces of an OpenWhisk with FPC as one script: what was done to it, and how its containers were answered.

The files of ``openwhisk-golden/fpc`` were recorded one after the other, some beside one another, on one deployment that
was never restarted but before the last; so all are played as one recording, and told apart again by their times.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Final

from e2e.openwhisk.golden import FOLDER, Lines, Replayed, time_of
from e2e.openwhisk.model import Action

if TYPE_CHECKING:
    from e2e.openwhisk.containers import Order
    from e2e.openwhisk.model import Json

#: Of the double's ways that a creation's time covers: to the invoker, its looking up, from the container to its ack.
_AROUND_MS: Final = 30
#: A reply so soon after the leader key was caused by it.
_CAUSED_MS: Final = 100
#: So much later the recorder may have heard of that key.
_SKEW_MS: Final = 60
_SCHEDULER_PORT: Final = 13_001
_DECIDED: Final = re.compile(r"add one initial container .*\[[^:]+:(.+)@")
_HASTY: Final = re.compile(r"add 1 container, staleActivationNum: 1, duration: 0.0, .* \[[^:]+:(.+)@")


@dataclass(frozen=True)
class Reply:
    """What the own server answered to one fetch: a message after so long, or once the action has a leader."""

    message: Json
    held_ms: int
    on_leader: bool = False


class FpcGolden(Lines):
    """All files; `spans` tells which time is whose, in ms of the epoch."""

    def __init__(self) -> None:
        self.spans: dict[str, tuple[int, int]] = {}
        lines: dict[str, Json] = {}
        for path in sorted((FOLDER / "fpc").glob("*.jsonl")):
            mine = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
            mine = [line for line in mine if line["src"] != "rec"]
            scene = next(line["t"] for line in mine if line.get("what") == "scenario")
            self.spans[path.stem] = scene, max(time_of(line) for line in mine if line["src"] != "driver")
            for line in mine:
                lines.setdefault(_identity(line), line)  # two recorders may have seen it
        super().__init__(list(lines.values()))

    def driver(self, what: str) -> list[Json]:
        """The test client's lines of that kind."""
        return [line for line in self.lines if line["src"] == "driver" and line["what"] == what]

    # --- What was done ----------------------------------------------------------------------------------------------

    @cached_property
    def calls(self) -> list[Json]:
        """Messages that the controller sent for a caller."""
        return [line for line in self.kafka("scheduler") if line["value"]["action"]["name"] != "warmUp"]

    @cached_property
    def refused(self) -> list[Json]:
        """Calls that got 429, as the client tells of them."""
        return [line for line in self.driver("invoke") if line["status"] == 429]

    @cached_property
    def own(self) -> list[Json]:
        """Creations and deletions that the test client published."""
        return [line for line in self.orders if line["value"].get("rpcPort") != _SCHEDULER_PORT]

    @cached_property
    def scheduled(self) -> list[Json]:
        """Creations by the scheduler."""
        return [line for line in self.orders if line["value"].get("rpcPort") == _SCHEDULER_PORT]

    @cached_property
    def orders(self) -> list[Json]:
        """All creations and deletions."""
        return [line for line in self.kafka("invoker") if line["value"]["action"]["name"] != "warmUp"]

    @cached_property
    def acks_of_creations(self) -> dict[str, Json]:
        """The last ack of each creation."""
        return {line["value"]["creationId"]: line for line in self.kafka("creationAck")}

    @cached_property
    def actions(self) -> list[tuple[int, Action]]:
        """Deployments: when, each revision with all that orders tell of it."""
        found: dict[tuple[str, str], tuple[int, Action]] = {}
        updated = {line["rev"]: line["t"] for line in self.driver("updated")}
        for line in self.orders:
            value = line["value"]
            about, name, revision = value["whiskActionMetaData"], value["action"], value["revision"]
            action = Action(
                name["path"],
                name["name"],
                memory_mb=about["limits"]["memory"],
                logs_mb=about["limits"]["logs"],
                version=name["version"],
                revision=revision,
                annotations={note["key"]: note["value"] for note in about["annotations"] if note["key"] != "exec"},
            )
            first = revision.startswith("1-")
            at_ms = self.begin_ms if first else updated.get(revision, self._first_call_ms(revision))
            found.setdefault((action.full_name, revision), (at_ms, action))
        return list(found.values())

    def _first_call_ms(self, revision: str) -> int:
        times = [int(line["value"]["transid"][1]) for line in self.calls if line["value"]["revision"] == revision]
        return min(times) - 5

    # --- What was answered ------------------------------------------------------------------------------------------

    @cached_property
    def fetches(self) -> dict[str, list[list[Json]]]:
        """Fetches from own servers, by action and container, in the order of the first ones."""
        by_container: dict[str, list[Json]] = {}
        for line in self.driver("grpc"):
            by_container.setdefault(line["request"]["containerId"], []).append(line)
        found: dict[str, list[list[Json]]] = {}
        for lines in by_container.values():
            name = json.loads(lines[0]["request"]["fqn"])
            found.setdefault(f"{name['path']}/{name['name']}", []).append(lines)
        return found

    def replies(self, action: str, place: int) -> dict[int, Reply]:
        """What the container of that place among the action's was answered, by the count of its fetches before."""
        fetches = {line["n"]: line for line in self.fetches[action][place]}
        container = self.fetches[action][place][0]["request"]["containerId"][:12]
        found = {}
        for line in self.driver("grpc-reply"):
            if line["containerId"] == container and line["active"] and line["n"] in fetches:
                found[line["n"]] = self._reply(action, line)
        return found

    def _reply(self, action: str, line: Json) -> Reply:
        reply = line["reply"]
        if isinstance(reply, dict):
            return Reply(reply, line["held"])
        put_ms = [
            at_ms for at_ms in self.leaders.get(action, []) if line["t"] - line["held"] < at_ms < line["t"] + _SKEW_MS
        ]
        caused = reply == "NoMemoryQueue" and any(line["t"] - at_ms < _CAUSED_MS for at_ms in put_ms)
        return Reply({"type": reply}, line["held"], caused)

    @cached_property
    def leaders(self) -> dict[str, list[int]]:
        """When actions got a queue."""
        found: dict[str, list[int]] = {}
        for line in self.lines:
            if line["src"] == "etcd" and line["type"] == "PUT" and line["key"].endswith("/leader"):
                found.setdefault("/".join(line["key"].split("/")[3:-1]), []).append(line["t"])
        return found

    @cached_property
    def first_decisions_s(self) -> dict[str, list[float]]:
        """By action, from each queue's leader key to its first decision; in the second round where it ordered nothing."""
        said: dict[str, list[int]] = {}
        for line in self.lines:
            if line["src"] == "log" and (match := _DECIDED.search(line["line"])):
                said.setdefault(match[1], []).append(line["t"])
        found: dict[str, list[float]] = {}
        for action, times in self.leaders.items():
            for at_ms in times:
                soon = [ms - at_ms for ms in said.get(action, []) if -50 < ms - at_ms < 500]
                found.setdefault(action, []).append(max(10, soon[0]) / 1000 if soon else 0.115)
        return found

    @cached_property
    def hasty(self) -> Counter[str]:
        """By action, containers ordered because a call seemed to wait while one was about to fetch it: a race."""
        return Counter(match[1] for line in self.lines if (match := _HASTY.search(line.get("line", ""))))


class FpcReplayed(Replayed):
    """Containers as fast as those of the recording; a creation's time is that to its ack."""

    def __init__(self, golden: FpcGolden) -> None:
        super().__init__(golden)
        self._sent = {
            line["value"]["creationId"]: time_of(line) for line in golden.orders if "creationId" in line["value"]
        }
        self._acks = golden.acks_of_creations

    def create_ms(self, order: Order) -> int:
        """From the order to a container that is up."""
        ack = self._acks.get(order.activation_id or "")
        if ack is None or order.activation_id not in self._sent:
            return 250 if order.action else 200
        return max(50, time_of(ack) - self._sent[order.activation_id] - _AROUND_MS)


def _name(message: Json) -> str:
    return f"{message['action']['path']}/{message['action']['name']}"


def _identity(line: Json) -> str:
    match line["src"]:
        case "kafka":
            return f"kafka {line['topic']} {line['offset']}"
        case "etcd":
            return f"etcd {line['rev']} {line['key']}"
        case _:
            return json.dumps(line, sort_keys=True)
