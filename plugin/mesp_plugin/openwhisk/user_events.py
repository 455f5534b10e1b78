"""User events: what happened, told after the fact on Kafka's ``events`` (off unless `whisk.user-events.enabled`).

Two kinds share an envelope: `ActivationEvent` for each activation that ended, sequences and compositions included
(they run in no container of their own), and `MetricEvent` for a namespace's counts. There is no start in them: a
call arrived at about ``timestamp_ms - duration_ms - wait_ms``, less the time that collecting the logs took.

Source: connector/Message.scala of apache/openwhisk (`EventMessage`). The user's id and subject are not kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mesp_plugin.openwhisk.fields import HEX_ID, read_object
from mesp_plugin.openwhisk.messages import is_marker_id
from mesp_plugin.openwhisk.names import FULL_NAME, PATH, function_key, is_platform_action, tidy
from mesp_plugin.openwhisk.parts import MAX_INT

if TYPE_CHECKING:
    from mesp.types import FunctionKey

#: The kind of a call whose action the invoker could not find.
_NEVER_RAN = "unknown"


@dataclass(frozen=True, slots=True)
class ActivationEvent:
    """One activation that ended.

    Attributes:
        source: ``invoker0``, ``controller0`` (sequences), or ``scheduler0`` (calls that no container took).
        action: full name of the action.
        duration_ms: of the run, initialisation included.
        init_ms: above 0 for a cold start, one from a stem cell too.
        status_code: 0 success, 1 application error, 2 action developer error, 3 internal error.
        conductor: a composition's step that decides on the next.
        caused_by: ``sequence`` for the parts of one; None for a call of its own.
    """

    source: str
    timestamp_ms: int
    namespace: str
    action: str
    activation_id: str
    status_code: int
    duration_ms: int
    wait_ms: int
    init_ms: int
    kind: str
    memory_mb: int
    conductor: bool
    caused_by: str | None = None

    @property
    def function(self) -> FunctionKey:
        """Who called what."""
        return function_key(self.namespace, self.action)

    @property
    def is_cold(self) -> bool:
        """The call waited for /init."""
        return self.init_ms > 0

    @property
    def is_call(self) -> bool:
        """A user's call that a container ran: no sequence as a whole, none given up, no health check, no marker.

        Markers of others than MESP, known by their content alone, cannot be told here: it is not in the event.
        """
        ran = self.source.startswith("invoker") and self.kind != _NEVER_RAN
        return ran and not (is_marker_id(self.activation_id) or is_platform_action(self.action))


@dataclass(frozen=True, slots=True)
class MetricEvent:
    """A namespace's count: ``ConcurrentInvocations``, ``ConcurrentRateLimit``, ``TimedRateLimit``."""

    source: str
    timestamp_ms: int
    namespace: str
    name: str
    value: int


def parse_event(raw: bytes | str, what: str = "user event") -> ActivationEvent | MetricEvent:
    """An event from ``events``; `InputError` for what the platform's own reader would refuse."""
    fields = read_object(what, raw)
    body = fields.object("body")
    source, timestamp_ms = fields.text("source"), fields.integer("timestamp")
    namespace = tidy(fields.text("namespace", PATH))
    for key in ("subject", "userId", "eventType"):  # required, and left where they are
        fields.text(key)
    if body.has("metricName"):
        return MetricEvent(source, timestamp_ms, namespace, body.text("metricName"), body.integer("metricValue"))
    for key in ("size", "userDefinedStatusCode"):
        body.optional(body.integer, key, -MAX_INT, MAX_INT)
    return ActivationEvent(
        source=source,
        timestamp_ms=timestamp_ms,
        namespace=namespace,
        action=tidy(body.text("name", FULL_NAME)),
        activation_id=body.text("activationId", HEX_ID),
        status_code=body.integer("statusCode", 0, 3),
        duration_ms=body.span("duration"),
        wait_ms=body.span("waitTime"),
        init_ms=body.span("initTime"),
        kind=body.text("kind"),
        memory_mb=body.integer("memory", 0, MAX_INT),
        conductor=body.flag("conductor"),
        caused_by=body.optional(body.text, "causedBy"),
    )
