"""The golden traces, recorded on a real OpenWhisk: a small excerpt that is always here, and all of them where they are."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

EXCERPT = Path(__file__).parent / "golden"
RECORDED = Path(
    os.environ.get("MESP_GOLDEN", Path(__file__).parents[3] / ".." / "shared" / "platforms" / "openwhisk-golden")
)


@dataclass(frozen=True)
class Golden:
    """Lines of the recordings, in the format that their README describes."""

    lines: tuple[dict[str, Any], ...]

    def kafka(self, *topics: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """(topic, message) of the topics that begin so."""
        for line in self.lines:
            if line.get("src") == "kafka" and line["topic"].startswith(topics):
                yield line["topic"], line["value"]

    def activations(self) -> list[tuple[dict[str, Any], bool]]:
        """Every activation message, and whether the real invoker took it: whether its ack came."""
        acked = {
            ack.get("activationId")
            or (ack["response"] if isinstance(ack["response"], str) else ack["response"]["activationId"])
            for _, ack in self.kafka("completed")
        }
        return [
            (line["value"], line["answered"] if "answered" in line else line["value"].get("activationId") in acked)
            for line in self.lines
            if line.get("src") == "kafka" and "user" in line["value"]
            # The one topic that did not exist: nobody can tell what became of that message.
            if line["value"].get("rootControllerIndex", {}).get("asString") != "prewarmnone"
        ]  # fmt: skip

    def driver(self, what: str) -> list[dict[str, Any]]:
        """What the test client noted under this heading."""
        return [line for line in self.lines if line.get("src") == "driver" and line.get("what") == what]

    def etcd(self) -> list[dict[str, Any]]:
        """Changes of keys."""
        return [line for line in self.lines if line.get("src") == "etcd"]


def _read(folder: Path) -> Golden:
    lines = (line for file in sorted(folder.rglob("*.jsonl")) for line in file.read_text("utf-8").splitlines())
    return Golden(tuple(json.loads(line) for line in lines))


@pytest.fixture(scope="session")
def excerpt() -> Golden:
    return _read(EXCERPT)


@pytest.fixture(scope="session", params=["excerpt", "all"])
def golden(request: pytest.FixtureRequest, excerpt: Golden) -> Golden:
    if request.param == "excerpt":
        return excerpt
    if not RECORDED.is_dir():
        pytest.skip("the golden traces are not here: MESP_GOLDEN names their folder")
    return _read(RECORDED)
