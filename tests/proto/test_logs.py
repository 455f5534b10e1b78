"""Logs: one event a line, and never a secret."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from mesp.logs import REDACTED, configure_logs, redact

if TYPE_CHECKING:
    from collections.abc import Iterator

SECRET = "hunter2-hunter2"


@pytest.fixture(autouse=True)
def _structlog_as_it_was() -> Iterator[None]:
    yield
    structlog.reset_defaults()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def logged(stream: io.StringIO, **values: object) -> str:
    configure_logs(stream=stream)
    structlog.get_logger("test").info("connected", **values)
    return stream.getvalue()


def test_a_file_gets_json() -> None:
    """Outside a terminal a line is one JSON object with event, level, time and the values by name."""
    line = logged(io.StringIO(), node="n1", count=3)
    event = json.loads(line)
    assert line.count("\n") == 1
    assert (event["event"], event["level"], event["node"], event["count"]) == ("connected", "info", "n1", 3)
    assert event["timestamp"].endswith("Z")


def test_a_terminal_gets_text() -> None:
    """On a terminal the line is for eyes: not JSON."""
    line = logged(Terminal(), node="n1")
    assert "connected" in line
    with pytest.raises(json.JSONDecodeError):
        json.loads(line)


def test_levels_below_the_chosen_one_are_silent() -> None:
    """At warning, info is not written and warning is."""
    stream = io.StringIO()
    configure_logs("warning", stream)
    log = structlog.get_logger("test")
    log.info("quiet")
    log.warning("loud")
    assert json.loads(stream.getvalue())["event"] == "loud"


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()])
@pytest.mark.parametrize(
    "name", ["authkey", "AuthKey", "api_key", "X-Api-Key", "kafka.password", "token", "bearer_token", "client_secret"]
)
def test_a_secret_reaches_no_log(stream: io.StringIO, name: str) -> None:
    """Named like a secret, a value is replaced: at the top, in a mapping, in a list, as a whole structure."""
    line = logged(stream, **{name: SECRET}, config={"etcd": [{name: SECRET}, ({name: {"deep": SECRET}},)]})
    assert SECRET not in line
    assert REDACTED in line


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()])
def test_a_traceback_shows_no_local_values(stream: io.StringIO) -> None:
    """A logged exception carries its sentence and frames, never the frames' variables."""
    configure_logs(stream=stream)

    def connect(key: str) -> None:
        raise ValueError(f"a password of {len(key)} characters")

    try:
        connect(SECRET)
    except ValueError:
        structlog.get_logger("test").exception("failed")
    assert "a password of 15 characters" in stream.getvalue()
    assert SECRET not in stream.getvalue()


values = st.recursive(
    st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "node", "count"]), inner),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(["event", "node", "functions"]), values))
def test_other_values_stay_as_they_are(event: dict[str, object]) -> None:
    """Redaction changes nothing else."""
    assert redact(None, "info", event) == event
