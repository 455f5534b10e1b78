"""The map file: how each function of a trace is called on the platform.

``functions`` has an entry per function, ``default`` serves all others, and texts in either may hold placeholders:

    {scope} {name}    the trace's own key; a public trace's are long hashes
    {id}              12 hexadecimal digits made of the key: short, and the same in every sample of the trace
    {run_ms}          how long the trace says that this run takes, divided by the speed (in bodies only)

A text that is nothing but ``{run_ms}`` becomes a number. Functions are written ``scope/name``, or as their ``{id}``.
"""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING, Annotated, Any, Generic, Literal, Self, TypeVar
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, Field, model_validator

from mesp.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from mesp.types import FunctionKey

_PLACEHOLDER = re.compile(r"\{(\w*)\}")
_IN_NAMES = frozenset({"scope", "name", "id"})


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class HttpCall(_Strict):
    """One HTTP request.

    Attributes:
        url: with its scheme; placeholders in it are escaped.
        method: GET carries no body.
        headers: names and values.
        body: sent as JSON; a text is sent as it is.
        known_as: ``scope/name`` by which the predictor knows the function; by default the trace's key.
    """

    url: Annotated[str, Field(pattern=r"^https?://[^/@\s]+(/\S*)?$")]
    method: Literal["GET", "POST", "PUT"] = "POST"
    headers: dict[str, str] = {}
    body: Any = None
    known_as: Annotated[str, Field(pattern=r"^[^/]+/.+$")] = "{scope}/{name}"

    @model_validator(mode="after")
    def _known_placeholders(self) -> Self:
        _check_placeholders((self.url, self.known_as, *self.headers.values()), self.body)
        return self


class ActionCall(_Strict):
    """One OpenWhisk action: ``name`` or ``package/name``, and its parameters."""

    action: Annotated[str, Field(pattern=r"^[^/\s][^/]*(/[^/]+)?$", max_length=513)] = "f-{id}"
    parameters: dict[str, Any] = {}

    @model_validator(mode="after")
    def _known_placeholders(self) -> Self:
        _check_placeholders((self.action,), self.parameters)
        return self


class Cold(_Strict):
    """Where an HTTP answer says that it was a cold start: a response header, or a field of its JSON object.

    Absent, empty, ``0``, ``false`` and ``no`` mean warm, whatever else it holds means cold.
    """

    header: str | None = None
    field: str | None = None

    @model_validator(mode="after")
    def _one_of_them(self) -> Self:
        if (self.header is None) == (self.field is None):
            raise ValueError("must name either header or field")
        return self


CallT = TypeVar("CallT", HttpCall, ActionCall)


class _Map(_Strict, Generic[CallT]):
    default: CallT | None = None
    functions: dict[str, CallT] = {}

    def entries(self, functions: Iterable[FunctionKey], path: Path | None) -> dict[FunctionKey, CallT]:
        """Each function's entry; `InputError` naming the map at `path` and the first function without one."""
        found: dict[FunctionKey, CallT] = {}
        for key in functions:
            entry = self.functions.get(str(key)) or self.functions.get(function_id(key)) or self.default
            if entry is None:
                where = f"{path}: " if path else "--map is missing: "
                raise InputError(
                    f"{where}function {key} (id {function_id(key)}) has no entry under functions, and there is no default"
                )
            found[key] = entry
        return found


class HttpMap(_Map[HttpCall]):
    """Functions behind URLs."""

    cold: Cold | None = None


class ActionMap(_Map[ActionCall]):
    """Functions that are OpenWhisk actions; by default named ``f-{id}``, called without parameters."""

    default: ActionCall | None = Field(default_factory=ActionCall)


def function_id(function: FunctionKey) -> str:
    """12 hexadecimal digits that stand for a function wherever a name must be short."""
    return hashlib.blake2b("\0".join(function).encode(), digest_size=6).hexdigest()


def fill_name(template: str, function: FunctionKey, *, escape: bool = False) -> str:
    """The template with the function's names in it, escaped as parts of a URL's path if asked for."""
    values = {"scope": function.scope, "name": function.name, "id": function_id(function)}

    def value(found: re.Match[str]) -> str:
        return quote(values[found[1]], safe="/") if escape else values[found[1]]

    return _PLACEHOLDER.sub(value, template)


def fill_body(template: Any, function: FunctionKey, run_ms: float) -> Any:
    """The template with names and run time filled into every text in it, however deep."""
    match template:
        case "{run_ms}":
            return round(run_ms, 3)
        case str():
            return fill_name(template.replace("{run_ms}", f"{run_ms:.0f}"), function)
        case dict():
            return {key: fill_body(value, function, run_ms) for key, value in template.items()}
        case list():
            return [fill_body(value, function, run_ms) for value in template]
        case _:
            return template


def _check_placeholders(names: Iterable[str], body: Any) -> None:
    for allowed, texts in ((_IN_NAMES, names), (_IN_NAMES | {"run_ms"}, _texts(body))):
        for text in texts:
            for found in _PLACEHOLDER.findall(text):
                if found not in allowed:
                    raise ValueError(
                        f"{{{found}}} in {text!r} is no placeholder, allowed are {', '.join(sorted(allowed))}"
                    )


def _texts(body: Any) -> Iterable[str]:
    match body:
        case str():
            yield body
        case dict():
            for value in body.values():
                yield from _texts(value)
        case list():
            for value in body:
                yield from _texts(value)
