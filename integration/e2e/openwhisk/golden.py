"""The golden traces of a classic OpenWhisk as a script: what was done to it, how long its containers took, what it said.

A recording is turned into the calls, markers and deployments that made it, each at its time, and into a `Program` that
gives every activation's container the very times that it took then. A double which is fed with both can be compared
with the recording, activation by activation.
"""

from __future__ import annotations

import itertools
import json
import os
import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Final

from e2e.openwhisk.containers import MARKER, Order, Reply, Sleeper
from e2e.openwhisk.model import Action

if TYPE_CHECKING:
    from e2e.openwhisk.model import Json

FOLDER: Final = Path(
    os.environ.get("MESP_GOLDEN", Path(__file__).parents[3] / ".." / "shared" / "platforms" / "openwhisk-golden")
)
#: Calls that were sent within so many milliseconds of one another may overtake.
BURST_MS: Final = 150

_START: Final = re.compile(
    r"containerStart containerState: (\w+) container: (.*) activations: .*activationId: (\w{32})"
)


def ids_in(message: Json) -> str | None:
    """The activation that a message of any topic is about."""
    response = message.get("response")
    inner = response["activationId"] if isinstance(response, dict) else response
    found = message.get("activationId") or inner or message.get("body", {}).get("activationId")
    return str(found) if found else None


def time_of(line: Json) -> int:
    """When the line's event happened."""
    return int(line.get("ts") or line["t"])


@dataclass
class Lines:
    """A recording, the real one's or a double's, with the questions that a comparison asks."""

    lines: list[Json]
    _messages: dict[str, list[Json]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.lines.sort(key=time_of)

    @cached_property
    def begin_ms(self) -> int:
        """The first line's time."""
        return time_of(self.lines[0])

    def kafka(self, topic: str) -> list[Json]:
        """Messages of topics that begin so, as lines, oldest first; the platform's own calls left out."""
        if topic not in self._messages:
            self._messages[topic] = [
                line
                for line in self.lines
                if line["src"] == "kafka" and line["topic"].startswith(topic) and not _platform_made(line["value"])
            ]
        return self._messages[topic]

    def of_invoker(self, topic: str, number: int) -> list[Json]:
        """Pings of one invoker."""
        return [line for line in self.kafka(topic) if line["value"]["name"]["instance"] == number]

    @cached_property
    def starts(self) -> dict[str, tuple[str, int]]:
        """Per activation what kind of start it had, and when it got its container."""
        found = {}
        for line in self.lines:
            if line["src"] == "log" and (match := _START.search(line["line"])) and "Health" not in line["line"]:
                found[match[3]] = match[1], time_of(line)
        return found

    @cached_property
    def records(self) -> dict[str, Json]:
        """Records by activation, from results."""
        answers = (line["value"].get("response") for line in self.kafka("completed"))
        return {answer["activationId"]: answer for answer in answers if isinstance(answer, dict)}

    @cached_property
    def events(self) -> dict[str, Json]:
        """User events by activation: their bodies."""
        bodies = (line["value"]["body"] for line in self.kafka("events"))
        return {body["activationId"]: body for body in bodies if "activationId" in body}

    def acks(self, activation_id: str) -> list[Json]:
        """Lines of ``completed*`` about the activation."""
        return [line for line in self.kafka("completed") if ids_in(line["value"]) == activation_id]

    def docker(self, action: str, since_ms: int = 0) -> dict[str, list[int]]:
        """Times of one kind of engine event, by invoker and function."""
        found: dict[str, list[int]] = {}
        for line in self.lines:
            if line["src"] == "docker" and line["action"] == action and "Health" not in line["name"]:
                invoker, _, owner = line["name"].split("_", 2)
                if line["t"] >= since_ms:
                    found.setdefault(f"{invoker} {owner}", []).append(line["t"])
        return found

    def log(self, *parts: str) -> list[Json]:
        """Log lines that hold all these texts."""
        return [line for line in self.lines if line["src"] == "log" and all(part in line["line"] for part in parts)]


class Golden(Lines):
    """One file of ``openwhisk-golden/classic``."""

    def __init__(self, name: str) -> None:
        path = FOLDER / "classic" / f"{name}.jsonl"
        super().__init__([json.loads(line) for line in path.read_text("utf-8").splitlines()])
        self.name = name

    @cached_property
    def calls(self) -> list[Json]:
        """Messages that a controller sent for a caller, as lines."""
        return [line for line in self.kafka("invoker") if _controller(line["value"]) == "0" and _whole(line["value"])]

    @cached_property
    def markers(self) -> list[Json]:
        """Messages that the test client put on the bus by itself."""
        return [line for line in self.kafka("invoker") if line not in self.calls]

    @cached_property
    def sequences(self) -> dict[str, list[Json]]:
        """Calls by the sequence that made them."""
        components = [line for line in self.calls if "cause" in line["value"]]
        return {
            cause: list(lines)
            for cause, lines in itertools.groupby(components, lambda line: str(line["value"]["cause"]))
        }

    @cached_property
    def bursts(self) -> list[list[str]]:
        """Activations of one action in groups that were sent at almost the same time."""
        groups: dict[str, list[list[Json]]] = {}
        for line in self.kafka("invoker"):
            if not _whole(line["value"]):
                continue
            mine = groups.setdefault(line["value"]["action"]["name"], [[]])
            if mine[-1] and time_of(line) - time_of(mine[-1][-1]) > BURST_MS:
                mine.append([])
            mine[-1].append(line)
        return [[line["value"]["activationId"] for line in group] for mine in groups.values() for group in mine]

    def actions(self) -> list[tuple[int, Action]]:
        """Deployments: when, and what the calls after it ran."""
        deployed = [line for line in self.lines if line["src"] == "kafka" and line["topic"] == "cacheInvalidation"]
        found: list[tuple[int, Action]] = []
        for line in deployed:
            name = line["value"]["key"]["mainId"]
            if (action := self._revision_after(name, time_of(line))) and action not in [known for _, known in found]:
                found.append((time_of(line), action))
        for cause, components in self.sequences.items():
            path = next(line for line in self.lines if line["src"] == "driver" and line.get("activationId") == cause)
            names = tuple(f"guest/{line['value']['action']['name']}" for line in components)
            found.append((self.begin_ms, Action("guest", path["action"], components=names)))
        return found

    def _revision_after(self, full_name: str, at_ms: int) -> Action | None:
        namespace, name = full_name.split("/")
        mine = [line for line in self.calls + self.markers if line["value"].get("action", {}).get("name") == name]
        later = next((line["value"] for line in mine if time_of(line) > at_ms), None)  # a marker where nobody called
        if later is None:
            return None
        record = next((record for record in self.records.values() if record["name"] == name), None)
        notes = {note["key"]: note["value"] for note in record["annotations"]} if record else {}
        limits = notes.get("limits", {"memory": 128, "logs": 10})
        return Action(
            namespace,
            name,
            memory_mb=limits["memory"],
            logs_mb=limits["logs"],
            version=later["action"].get("version", "0.0.1"),
            revision=later["revision"] or "",
            init=tuple(later["initArgs"]),
        )


class Replayed(Sleeper):
    """Containers as fast, activation by activation, as those of the recording, with the same results.

    `q2` tells its environment, so that what /init brought can be compared.
    """

    def __init__(self, golden: Lines) -> None:
        self._golden = golden

    def create_ms(self, order: Order) -> int:
        """From the order to /init, as it was."""
        record = self._golden.records.get(order.activation_id or "")
        start = self._golden.starts.get(order.activation_id or "")
        if record is None or start is None or start[0] not in {"cold", "recreated"}:
            return super().create_ms(order)
        return max(50, int(record["start"]) - start[1])

    def init_ms(self, activation_id: str) -> int:
        """As it was, where this activation was cold then."""
        known = self._golden.events.get(activation_id, {})
        return int(known.get("initTime", 0)) or super().init_ms(activation_id)

    def logs_ms(self, activation_id: str) -> int:
        """From the end of the run to the last answer, as it was."""
        if (record := self._golden.records.get(activation_id)) and "size" in record["response"]:
            return max(1, time_of(self._golden.acks(activation_id)[-1]) - int(record["end"]))
        return super().logs_ms(activation_id)

    def reply(self, action_code: str, env: Json, body: Json) -> Reply:
        """The same result after the same time."""
        activation_id = body["activation_id"]
        event = self._golden.events.get(activation_id)
        if event is None:
            return super().reply(action_code, env, body)
        run_ms = event["duration"] - event["initTime"]
        record = self._golden.records.get(activation_id)
        if record is None:
            return Reply(run_ms, body=super().reply(action_code, env, body).body)
        result = record["response"]["result"]
        if "size" not in record["response"]:  # its process ended
            late_ms = time_of(self._golden.acks(activation_id)[0]) - record["end"]
            return Reply(run_ms, status=0, noticed_ms=late_ms)
        if "env_X" in result:
            value = body["value"]
            result = {"env_X": env.get("X"), "param_X": value.get("X"), "param_Y": value.get("Y")}
        return Reply(run_ms, 502 if record["response"]["statusCode"] == 2 else 200, result)


def _platform_made(message: Json) -> bool:
    """A health test, or what came of one."""
    return "invokerHealthTestAction" in json.dumps(message) or message.get("transid", [""])[0] == "sid_invokerHealth"


def _controller(message: Json) -> str | None:
    name = message.get("rootControllerIndex", {}).get("asString")
    return None if name is None else str(name)


def _whole(message: Json) -> bool:
    return {"activationId", "transid", "action"} <= message.keys()


def is_marker(message: Json) -> bool:
    """The call asks for no work."""
    return MARKER in (message.get("content") or {})
