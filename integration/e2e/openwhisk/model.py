"""What the double's parts agree on: who calls, what is called, and the store from which both sides read it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any, TypeAlias

Json: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class User:
    """A subject with a namespace of its own, as messages carry it."""

    namespace: str
    uuid: str
    key: str = "UUID:KEY"
    rights: tuple[str, ...] = ("READ", "PUT", "DELETE", "ACTIVATE")
    limits: Json = field(default_factory=dict)

    def to_json(self) -> Json:
        """The `user` of an activation message."""
        return {
            "subject": self.namespace,
            "namespace": {"name": self.namespace, "uuid": self.uuid},
            "authkey": {"api_key": self.key},
            "rights": list(self.rights),
            "limits": self.limits,
        }


@dataclass(frozen=True)
class Action:
    """One revision of an action; with `components` it is a sequence, which no container runs.

    Attributes:
        parameters: defaults that a call's own parameters override.
        init: names of those that /init makes environment variables.
        code: what /init gets; simulated containers know their program by it.
    """

    namespace: str
    name: str
    memory_mb: int = 256
    timeout_ms: int = 60_000
    logs_mb: int = 10
    concurrency: int = 1
    kind: str = "nodejs:20"
    blackbox: bool = False
    version: str = "0.0.1"
    revision: str = ""
    updated_ms: int = 0
    annotations: Json = field(default_factory=dict)
    parameters: Json = field(default_factory=dict)
    init: tuple[str, ...] = ()
    components: tuple[str, ...] = ()
    code: str = ""

    @property
    def full_name(self) -> str:
        """namespace/[package/]name."""
        return f"{self.namespace}/{self.name}"

    @property
    def path(self) -> str:
        """namespace, or namespace/package."""
        return self.full_name.rpartition("/")[0]

    @property
    def own_name(self) -> str:
        """The name without its package."""
        return self.name.rpartition("/")[2]

    def limits(self) -> Json:
        """As annotations of a record and the action's document show them."""
        return {
            "concurrency": self.concurrency,
            "logs": self.logs_mb,
            "memory": self.memory_mb,
            "timeout": self.timeout_ms,
        }

    def document(self) -> Json:
        """What the REST API answers, without code."""
        execution: Json = {"kind": self.kind, "binary": False}
        if self.components:
            execution = {"kind": "sequence", "components": [f"/{name}" for name in self.components]}
        pairs = {**self.annotations, "exec": execution["kind"]}
        return {
            "namespace": self.path,
            "name": self.own_name,
            "version": self.version,
            "publish": False,
            "exec": execution,
            "limits": self.limits(),
            "parameters": [{"key": key, "value": value} for key, value in self.parameters.items()],
            "annotations": [{"key": key, "value": value} for key, value in pairs.items()],
            "updated": self.updated_ms,
        }


class Store:
    """Actions with all their revisions, users, and the records of activations; shared by all parts of one double."""

    def __init__(self, *users: User) -> None:
        self.users = {user.namespace: user for user in users}
        self.records: dict[str, Json] = {}
        #: By namespace (FPC): ``concurrent`` calls, and ``keeping_count`` paused containers kept ``keeping_s`` longer.
        self.limits: dict[str, dict[str, float]] = {}
        self._revisions: dict[str, list[Action]] = {}

    def put(self, action: Action) -> Action:
        """Writes the action's next revision; one that brings its own revision and version keeps them."""
        revisions = self._revisions.setdefault(action.full_name, [])
        if not action.revision:
            number = len(revisions) + 1
            digest = hashlib.md5(f"{action}{number}".encode(), usedforsecurity=False).hexdigest()
            action = Action(**{**action.__dict__, "revision": f"{number}-{digest}", "version": f"0.0.{number}"})
        revisions.append(action)
        return action

    def get(self, full_name: str, revision: str | None = None) -> Action | None:
        """The action at that revision, the newest where None; None if there is none."""
        revisions = self._revisions.get(full_name, [])
        if revision is None:
            return revisions[-1] if revisions else None
        return next((action for action in revisions if action.revision == revision), None)

    def actions(self, namespace: str) -> list[Action]:
        """The newest revision of each of the namespace's actions."""
        newest = (revisions[-1] for revisions in self._revisions.values())
        return [action for action in newest if action.namespace == namespace]

    def user_of(self, key: str) -> User | None:
        """Whose API key it is."""
        return next((user for user in self.users.values() if user.key == key), None)
