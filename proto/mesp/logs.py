"""Logs, set up in one place: one event a line on stderr, for eyes on a terminal and as JSON elsewhere.

Modules call `structlog.get_logger(__name__)` and pass values by name. Before a line is rendered, every value whose
name speaks of a secret is replaced, however deep it lies: a key that got into a log once is a key to be changed.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, Literal

import structlog

if TYPE_CHECKING:
    from typing import TextIO

    from structlog.typing import EventDict, Processor, WrappedLogger

LogLevel = Literal["debug", "info", "warning", "error"]

#: A name is secret when it holds one of these, whatever its case and its dashes, dots and underscores.
_SECRET_NAMES: Final = ("authkey", "apikey", "authorization", "credential", "password", "passwd", "secret", "token")
REDACTED: Final = "***"


def configure_logs(level: LogLevel = "info", stream: TextIO | None = None) -> None:
    """Sets structlog up for the process.

    Args:
        level: events below it are not logged.
        stream: where lines go; None for stderr. A terminal gets aligned text, anything else JSON.
    """
    out = sys.stderr if stream is None else stream
    # structlog's own tracebacks show the frames' variables, and so their secrets: ours never do.
    rendering: list[Processor] = (
        [structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)]
        if out.isatty()
        else [
            structlog.processors.ExceptionRenderer(structlog.tracebacks.ExceptionDictTransformer(show_locals=False)),
            structlog.processors.JSONRenderer(),
        ]
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            redact,
            *rendering,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.PrintLoggerFactory(out),
        cache_logger_on_first_use=False,
    )


def redact(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """A structlog processor: replaces the values of secret names in the event and in what it holds."""
    return {name: REDACTED if _is_secret(name) else _clean(value) for name, value in event.items()}


def _clean(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: REDACTED if _is_secret(name) else _clean(inner) for name, inner in value.items()}
    if type(value) in {list, tuple, set}:
        return type(value)(map(_clean, value))
    return value


def _is_secret(name: object) -> bool:
    bare = "".join(character for character in str(name).lower() if character.isalnum())
    return any(secret in bare for secret in _SECRET_NAMES)
