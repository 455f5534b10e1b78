"""Reading JSON that others wrote: typed look-ups, and one clear sentence when something is wrong.

Messages of OpenWhisk carry API keys and users' parameters. So a sentence names the message, the key and what is
allowed, and never what was found there; and no exception holds the text that could not be read (the standard
library's own do, which is why `InputError` is raised after theirs are gone).
"""

from __future__ import annotations

import json
import math
import re
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Concatenate, NoReturn, ParamSpec, TypeAlias, TypeVar

from mesp.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"
JsonObject: TypeAlias = "dict[str, Json]"

_Args = ParamSpec("_Args")
_Value = TypeVar("_Value")

#: What a JVM's Long holds.
MAX_LONG = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Rule:
    """What a text must match in full, and the same in words."""

    pattern: re.Pattern[str]
    allowed: str

    def allows(self, text: str) -> bool:
        """Whether the whole text matches."""
        return self.pattern.fullmatch(text) is not None


#: No control characters and no half of a surrogate pair: what can be logged, and encoded again.
TEXT = Rule(re.compile(r"[^\x00-\x1f\x7f-\x9f\ud800-\udfff]+"), "a text of printable characters")
#: What the platform itself wrote, whatever it is.
ANY_TEXT = Rule(re.compile(r".*", re.DOTALL), "a text")
HEX_ID = Rule(re.compile(r"[0-9a-f]{32}"), "32 hexadecimal digits in lower case")


class Fields:
    """One JSON object as it is read. Every method raises `InputError` for a key that is absent or not as it must be."""

    __slots__ = ("_members", "_within", "what")

    def __init__(self, what: str, members: Mapping[str, Json], within: str = "") -> None:
        """Wraps `members` of the message called `what`, found at the dotted path `within`."""
        self.what = what
        self._members = members
        self._within = within

    @property
    def names(self) -> tuple[str, ...]:
        """The keys that are there."""
        return tuple(self._members)

    def has(self, key: str) -> bool:
        """Whether the key is there, null included."""
        return key in self._members

    def any(self, key: str, allowed: str = "any value") -> Json:
        """The value as it is, null included; only its absence is refused."""
        if key not in self._members:
            self.refuse(key, allowed)
        return self._members[key]

    def text(self, key: str, rule: Rule = TEXT) -> str:
        """A string that the rule allows."""
        value = self._members.get(key)
        if not isinstance(value, str) or not rule.allows(value):
            self.refuse(key, rule.allowed)
        return value

    def texts(self, key: str, rule: Rule = TEXT) -> tuple[str, ...]:
        """A list of strings, each of which the rule allows."""
        value = self._members.get(key)
        if not isinstance(value, list):
            self.refuse(key, f"a list, each item {rule.allowed}")
        found = tuple(item for item in value if isinstance(item, str) and rule.allows(item))
        if len(found) != len(value):
            self.refuse(key, f"a list, each item {rule.allowed}")
        return found

    def integer(self, key: str, low: int = 0, high: int = MAX_LONG) -> int:
        """A whole number in [low, high]."""
        value = self._members.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            self.refuse(key, f"a whole number in [{low}, {high}]")
        return value

    def span(self, key: str) -> int:
        """Milliseconds between two times; a negative one, which two clocks can give, counts as none."""
        return max(0, self.integer(key, -MAX_LONG))

    def flag(self, key: str) -> bool:
        """A truth value."""
        value = self._members.get(key)
        if not isinstance(value, bool):
            self.refuse(key, "true or false")
        return value

    def object(self, key: str) -> Fields:
        """An object, to be read in turn."""
        value = self._members.get(key)
        if not isinstance(value, dict):
            self.refuse(key, "an object")
        return Fields(self.what, value, f"{self._within}{key}.")

    def pairs(self, key: str) -> Fields:
        """OpenWhisk's list of ``{"key": name, "value": anything}`` as one object (the last of a name wins)."""
        value = self._members.get(key)
        if not isinstance(value, list):
            self.refuse(key, "a list of objects with key and value")
        members: JsonObject = {}
        for item in value:
            name = item.get("key") if isinstance(item, dict) else None
            if not isinstance(item, dict) or not isinstance(name, str) or "value" not in item:
                self.refuse(key, "a list of objects with key and value")
            members[name] = item["value"]
        return Fields(self.what, members, f"{self._within}{key}.")

    def optional(
        self, read: Callable[Concatenate[str, _Args], _Value], key: str, *args: _Args.args, **kwargs: _Args.kwargs
    ) -> _Value | None:
        """What `read`, a method of this object, makes of the key; None where it is absent or null."""
        return None if self._members.get(key) is None else read(key, *args, **kwargs)

    def refuse(self, key: str, allowed: str) -> NoReturn:
        """Raises `InputError`: the key is missing, or it is there and must be what is `allowed`."""
        missing = "is missing, " if key not in self._members else ""
        raise InputError(f"{self.what}: {self._within}{key} {missing}must be {allowed}")


def read_json(what: str, raw: bytes | str) -> Json:
    """The JSON text of the message called `what`.

    Raises:
        InputError: it is not JSON in UTF-8, nests too deeply, or holds a number that no double can hold.
    """
    with suppress(ValueError, RecursionError):
        content: Json = json.loads(_text(raw), parse_constant=_no_number, parse_float=_finite)
        return content
    raise InputError(f"{what}: must be JSON in UTF-8, its numbers within a double's range")


def read_object(what: str, raw: bytes | str) -> Fields:
    """The message called `what` from its JSON text; `InputError` as `read_json`, and unless it is one object."""
    content = read_json(what, raw)
    if not isinstance(content, dict):
        raise InputError(f"{what}: must be one JSON object")
    return Fields(what, content)


def encode(message: JsonObject) -> bytes:
    """The message as compact JSON, in ASCII; `InputError` if it nests too deeply (users' values may)."""
    with suppress(RecursionError):
        return json.dumps(message, separators=(",", ":"), allow_nan=False).encode()
    raise InputError("message: nests too deeply to be written")


def _text(raw: bytes | str) -> str:
    return raw if isinstance(raw, str) else raw.decode()


def _finite(digits: str) -> float:
    value = float(digits)
    return value if math.isfinite(value) else _no_number(digits)


def _no_number(name: str) -> NoReturn:
    raise ValueError(name)  # NaN and the infinities: Python reads and writes them, JSON has none
