"""What the plugin added to the platform: which container for whom, where, and until when it counts as MESP's.

A record is written before the order goes out, so whatever happens between the two, the plugin that comes next knows
of it. The file is replaced as a whole (temporary name, fsync, rename) and is small: what is over is soon forgotten. A
damaged file is set aside under another name and reported, never lost silently, and work goes on with none.

Beside it stands a flag that ``mesp plugin openwhisk release --all`` sets and ``resume`` takes away: a file of its
own, since another process sets it.
"""

from __future__ import annotations

import enum
import json
import os
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import structlog

from mesp.errors import InputError
from mesp.types import FunctionKey
from mesp_plugin.openwhisk.fields import HEX_ID, Fields, read_object

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from mesp_plugin.openwhisk.fields import JsonObject

_log = structlog.get_logger(__name__)
_FORMAT: Final = 1


class HoldingState(enum.StrEnum):
    """What became of an order."""

    ORDERED = "ordered"  # on its way, or its answer was lost
    HELD = "held"  # it made a container, which waits
    USED = "used"  # a call has met that container: it is the platform's now
    REUSED = "reused"  # it met a container that was there: nothing was added
    GONE = "gone"  # its time is over, or the platform took it away


#: A marker's run may be listed long after it, and must be known for one.
REMEMBERED_MS: Final = 1_200_000
_ALIVE: Final = frozenset({HoldingState.ORDERED, HoldingState.HELD})


@dataclass(frozen=True, slots=True)
class Holding:
    """One order.

    Attributes:
        marker: its own id, 32 hexadecimal digits.
        until_ms: from then on it is none of MESP's any more.
        activation_id: what the platform calls the marker's run; None until it answered.
        container_id: what the platform calls the container, where it tells (FPC).
    """

    marker: str
    function: FunctionKey
    node: str
    ordered_ms: int
    until_ms: int
    state: HoldingState = HoldingState.ORDERED
    activation_id: str | None = None
    container_id: str | None = None

    @property
    def is_alive(self) -> bool:
        """A container that MESP added, or may have added, and nobody has used."""
        return self.state in _ALIVE


class Holdings:
    """All orders that are remembered, durable in a file. One plugin writes it; times are injected."""

    def __init__(self, path: Path) -> None:
        """Reads `path` where it exists; `InputError` where it cannot be read, or its folder is not there."""
        self._path = path
        self._flag = path.with_name(path.name + ".released")
        self._items: dict[str, Holding] = {}
        if not path.parent.is_dir():
            raise InputError(f"state_file = {path}: its folder does not exist, make it or name another file")
        try:
            raw = path.read_bytes()
        except FileNotFoundError:
            return
        except OSError as error:
            raise InputError(f"state_file = {path}: cannot be read: {error.strerror}") from error
        try:
            self._items = {item.marker: item for item in _parse(raw)}
        except InputError as error:
            aside = path.with_name(path.name + ".damaged")
            path.replace(aside)
            _log.error("state file is damaged and was set aside", file=str(aside), error=str(error))

    def all(self) -> tuple[Holding, ...]:
        """Every order that has not been forgotten, in the order of their times."""
        return tuple(self._items.values())

    def alive(self) -> tuple[Holding, ...]:
        """Those that still stand for a container of MESP's."""
        return tuple(item for item in self._items.values() if item.is_alive)

    def add(self, items: Iterable[Holding]) -> None:
        """Remembers orders that are about to go out; returns when that is on disk."""
        self._items |= {item.marker: item for item in items}
        self._save()

    def note(
        self,
        changes: Iterable[tuple[str, HoldingState]] = (),
        activations: Iterable[tuple[str, str]] = (),
        containers: Iterable[tuple[str, str]] = (),
    ) -> None:
        """Takes in what became of orders, and the ids of activations and containers that they got, each by marker."""
        before = dict(self._items)
        for marker, state in changes:
            if marker in self._items:
                self._items[marker] = replace(self._items[marker], state=state)
        for marker, activation_id in activations:
            if marker in self._items:
                self._items[marker] = replace(self._items[marker], activation_id=activation_id)
        for marker, container_id in containers:
            if marker in self._items:
                self._items[marker] = replace(self._items[marker], container_id=container_id)
        if self._items != before:
            self._save()

    def drop(self, markers: Iterable[str]) -> None:
        """Forgets orders: refused ones, and containers that were removed."""
        gone = [marker for marker in markers if self._items.pop(marker, None)]
        if gone:
            self._save()

    def expire(self, now_ms: int) -> tuple[Holding, ...]:
        """What expires at `now_ms`: it is no longer MESP's. What is over for long is forgotten."""
        over = expired(self._items.values(), now_ms)
        self.note((item.marker, HoldingState.GONE) for item in over if item.is_alive)
        self.drop([item.marker for item in over if item.ordered_ms + REMEMBERED_MS <= now_ms])
        return tuple(item for item in over if item.is_alive)

    @property
    def released(self) -> bool:
        """Somebody said `release --all`: nothing is added until `resume`."""
        return self._flag.exists()

    def release(self) -> None:
        """Stops all acting, by whichever process uses this file."""
        _write(self._flag, b"mesp plugin openwhisk resume: acts again\n")

    def resume(self) -> None:
        """Lets the plugin act again."""
        self._flag.unlink(missing_ok=True)

    def _save(self) -> None:
        items = [_to_json(item) for item in self._items.values()]
        _write(self._path, json.dumps({"format": _FORMAT, "items": items}, indent=1).encode() + b"\n")


def expired(items: Iterable[Holding], now_ms: int) -> tuple[Holding, ...]:
    """Those whose time is over at `now_ms`."""
    return tuple(item for item in items if item.until_ms <= now_ms)


def _to_json(item: Holding) -> JsonObject:
    return {
        "marker": item.marker,
        "scope": item.function.scope,
        "name": item.function.name,
        "node": item.node,
        "ordered_ms": item.ordered_ms,
        "until_ms": item.until_ms,
        "state": item.state.value,
        "activation_id": item.activation_id,
        "container_id": item.container_id,
    }


def _parse(raw: bytes) -> list[Holding]:
    fields = read_object("state file", raw)
    fields.integer("format", _FORMAT, _FORMAT)
    listed = fields.any("items")
    if not isinstance(listed, list):
        fields.refuse("items", "a list")
    return [_holding(Fields("state file", item if isinstance(item, dict) else {}, "items.")) for item in listed]


def _holding(fields: Fields) -> Holding:
    state = fields.text("state")
    if state not in list(HoldingState):
        fields.refuse("state", f"one of {', '.join(HoldingState)}")
    return Holding(
        marker=fields.text("marker", HEX_ID),
        function=FunctionKey(fields.text("scope"), fields.text("name")),
        node=fields.text("node"),
        ordered_ms=fields.integer("ordered_ms"),
        until_ms=fields.integer("until_ms"),
        state=HoldingState(state),
        activation_id=fields.optional(fields.text, "activation_id", HEX_ID),
        container_id=fields.optional(fields.text, "container_id"),
    )


def _write(path: Path, content: bytes) -> None:
    """Replaces the file; after a crash the old or the new content is there, whole."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise InputError(f"{path}: cannot be written: {error.strerror}") from error
