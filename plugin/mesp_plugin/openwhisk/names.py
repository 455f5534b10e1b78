"""Names in OpenWhisk, and which function a message speaks of.

An action lives at ``namespace/[package/]name`` and is invoked *by* a namespace, which need not be its own: shared
packages (``whisk.system/utils/echo``) and bindings to them run in the caller's containers, against the caller's
limits. Controller, invoker and scheduler all key containers by (invoking namespace, action); so does MESP:

- `FunctionKey.scope` is the invoking namespace, and never that of the action;
- `FunctionKey.name` is what is below it for an action of its own (``hello``, ``package/hello``), and the full name
  with OpenWhisk's leading slash for a foreign one (``/whisk.system/utils/echo``). No own name begins with a slash, so
  the two cannot be mistaken for each other.

A binding does not show: messages give the path of the package that it leads to (`binding` holds the other one), user
events and etcd keys give nothing else, and containers are shared between the bindings of one action. Version and
revision are no part of a key.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mesp.types import FunctionKey
from mesp_plugin.openwhisk.fields import Rule

if TYPE_CHECKING:
    from mesp_plugin.openwhisk.fields import Fields, JsonObject

# entity/EntityPath.scala: 1 to 256 characters, first a word character, last not a space; \w is ASCII in Java.
_SEGMENT = r"\w(?:[\w@ .&-]{0,254}[\w@.&-])?"
_WORDS = "letters, digits and _ @ . & - (spaces inside), at most 256 each"
#: A namespace, or the name of an action.
NAME = Rule(re.compile(_SEGMENT, re.ASCII), f"a name of {_WORDS}")
#: A namespace, or one with a package; OpenWhisk drops slashes that part nothing.
PATH = Rule(re.compile(f"/*{_SEGMENT}(?:/+{_SEGMENT})*/*", re.ASCII), f"names of {_WORDS}, with / between")
FULL_NAME = Rule(re.compile(f"/*{_SEGMENT}(?:/+{_SEGMENT})+/*", re.ASCII), f"two or more names of {_WORDS}, / between")
VERSION = Rule(re.compile(r"\d{1,9}\.\d{1,9}\.\d{1,9}", re.ASCII), "a version such as 0.0.1")
#: Ids of controllers and schedulers become part of a topic's name (entity/InstanceId.scala).
INSTANCE = Rule(re.compile(r"[a-zA-Z0-9._-]{1,128}"), "1 to 128 of a-z A-Z 0-9 . _ -")

_HEALTH_CHECKS = "whisk.system/invokerHealthTestAction"
_CONNECTION_CHECK = "whisk.system/warmUp"


@dataclass(frozen=True, slots=True)
class ActionName:
    """An action as messages name it.

    Attributes:
        path: namespace, or namespace/package, in which the action itself lives.
        version: such as 0.0.1; None where a message gives none.
        binding: namespace/package by which it was called, where that is a binding to `path`.
    """

    path: str
    name: str
    version: str | None = None
    binding: str | None = None

    @property
    def full_name(self) -> str:
        """path/name, without version: what the balancer hashes and etcd's keys hold."""
        return f"{self.path}/{self.name}"

    def to_json(self) -> JsonObject:
        """As messages carry it; what is None is left out."""
        members: JsonObject = {"path": self.path, "name": self.name, "version": self.version, "binding": self.binding}
        return {key: value for key, value in members.items() if value is not None}


def read_action_name(fields: Fields) -> ActionName:
    """The object at a message's `action`, or at `fqn` of a fetch."""
    binding = fields.optional(fields.text, "binding", PATH)
    return ActionName(
        path=tidy(fields.text("path", PATH)),
        name=fields.text("name", NAME),
        version=fields.optional(fields.text, "version", VERSION),
        binding=tidy(binding) if binding else None,
    )


def tidy(path: str) -> str:
    """The path without slashes that part nothing."""
    return "/".join(part for part in path.split("/") if part)


def function_key(invoking_namespace: str, full_name: str) -> FunctionKey:
    """The function that `invoking_namespace` calls by the action at `full_name` (namespace/[package/]name)."""
    namespace, _, below = full_name.partition("/")
    return FunctionKey(invoking_namespace, below if namespace == invoking_namespace else f"/{full_name}")


def action_path(function: FunctionKey) -> str:
    """The full name of the function's action: `function_key` undone."""
    return function.name[1:] if function.name.startswith("/") else f"{function.scope}/{function.name}"


def is_platform_action(full_name: str) -> bool:
    """Whether OpenWhisk calls the action for itself: to test an invoker, or to open a connection (FPC)."""
    return full_name.startswith(_HEALTH_CHECKS) or full_name == _CONNECTION_CHECK
