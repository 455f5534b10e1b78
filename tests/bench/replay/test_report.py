"""Results and pages: counts by hand, percentiles that nobody flatters, pages that say what differs."""

from __future__ import annotations

import csv
import io
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from rich.console import Console

from mesp.errors import InputError
from mesp.types import FunctionKey
from mesp_bench.replay.calls import Answer, Call, Outcome, Run
from mesp_bench.replay.driver import Limits
from mesp_bench.replay.report import (
    headline,
    named,
    print_replays,
    read_frontier,
    read_replay,
    replay_page,
    write_comparison,
    write_replay,
)
from mesp_bench.replay.schedule import Schedule
from mesp_bench.replay.summary import ELSEWHERE, summarize

if TYPE_CHECKING:
    from pathlib import Path

F, G = FunctionKey("owner", "f"), FunctionKey("owner", "<g>")


def call(
    intended_ms: float,
    latency_ms: float,
    outcome: Outcome = Outcome.OK,
    *,
    late_ms: float = 0,
    f: FunctionKey = F,
    **told: Any,
) -> Call:
    return Call(f, intended_ms, intended_ms + late_ms, intended_ms + latency_ms, Answer(outcome, **told))


CALLS = (
    call(-500, 9_000, cold=True),  # the warm-up's: counts for nothing
    call(0, 500, cold=True, init_ms=300, wait_ms=20, run_ms=100),
    call(1_000, 120, cold=False, run_ms=100, late_ms=10),
    call(2_000, 2, Outcome.THROTTLED),
    call(3_000, 1, Outcome.CONNECTION),
    call(31_000, 200, Outcome.FUNCTION_ERROR, cold=False, f=G),
    call(32_000, 5_000, Outcome.TIMEOUT, f=G),
    call(33_000, 0, Outcome.SHED, f=G),
    call(34_000, 100, Outcome.INTERRUPTED, f=G),
)


def result(run: Run | None = None, **changed: Any) -> dict[str, Any]:
    schedule = Schedule(
        (F, G),
        (600, 602),
        2.0,
        1.0,
        60.0,
        np.zeros(9, np.int64),
        np.array([c.intended_ms / 1000 for c in CALLS]),
        np.zeros(9),
        3,
    )
    told: dict[str, Any] = {
        "platform": "openwhisk",
        "driver": "standalone",
        "mode": "off",
        "arrivals": "uniform",
    } | changed
    return summarize(run or Run(CALLS, 60.0, interrupted=False, idle_gb_s=12.5), schedule, Limits(), **told)


def test_calls_are_counted_by_how_they_ended() -> None:
    """Shed and interrupted calls are not invocations; cold is a share of those whose answer tells."""
    found = result()
    assert found["invocations"] == 6
    assert (found["cold"], found["cold_known"]) == (1, 3)
    assert found["cold_pct"] == pytest.approx(100 / 3)
    assert found["failed"] == 4
    assert found["shed"] == 1
    assert sum(found["outcomes"].values()) == 8 == found["protocol"]["scheduled"]
    assert found["per_minute"] == {"invocations": [4, 2], "cold": [1, 0], "failed": [2, 2]}
    assert found["waste_gb_s"] == 12.5


def test_latency_is_of_those_who_waited() -> None:
    """Who gave up counts with the time they waited, who was turned away at once does not pull the median down."""
    found = result()
    assert found["latency_s"] == pytest.approx({"p50": 0.2, "p95": 5, "p99": 5, "max": 5})
    assert found["cold_latency_s"]["max"] == pytest.approx(0.5)
    assert found["warm_latency_s"]["max"] == pytest.approx(0.2)
    assert found["added_latency_s"] == pytest.approx({"p50": 0.02, "p95": 0.4, "p99": 0.4, "max": 0.4})
    assert found["lateness_s"]["max"] == pytest.approx(0.01)
    assert found["latency_quantiles_s"]["latency_s"][-1] == pytest.approx(5)


def test_functions_have_their_own_rows() -> None:
    """The busiest first."""
    first, second = result()["functions"]
    assert (first["function"], first["invocations"], first["cold"], first["failed"]) == ("owner/f", 4, 1, 2)
    assert (second["function"], second["invocations"], second["latency_p99_s"]) == ("owner/<g>", 2, pytest.approx(5))


def test_what_was_not_measured_is_null_and_said() -> None:
    """Nothing answered: no latency, no cold starts, not zero of them; and what others measured is taken over."""
    nothing = result(Run((call(0, 1, Outcome.CONNECTION),), 3.0, interrupted=True))
    assert nothing["cold"] is nothing["cold_pct"] is nothing["latency_s"]["p50"] is nothing["waste_gb_s"] is None
    said = " ".join(nothing["notes"])
    for part in (
        "Stopped after 3 of 60 s",
        "left out the last 3",
        "Idle memory was not sampled",
        "do not tell cold",
        "stranded",
    ):
        assert part in said
    assert "does not scale the platform's own timers (OpenWhisk pauses an idle container after 10 s" in said
    full = result(measured=dict.fromkeys(ELSEWHERE, 1.5))
    assert full["stranded"] == 1.5
    assert "Not seen" not in " ".join(full["notes"])
    assert "1 of 8 calls were shed" in " ".join(full["notes"])


def test_a_replay_leaves_its_files(tmp_path: Path) -> None:
    """The JSON reads back, the calls are a table, the page is one file and escapes what functions are called."""
    page = write_replay(result(), CALLS, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "calls-standalone-off.csv", "replay-standalone-off.html", "replay-standalone-off.json",
    ]  # fmt: skip
    assert read_replay(tmp_path / "replay-standalone-off.json") == json.loads(json.dumps(result()))
    rows = list(csv.DictReader(io.StringIO((tmp_path / "calls-standalone-off.csv").read_text())))
    assert len(rows) == len(CALLS)
    assert rows[1]["cold"] == "1"
    assert rows[1]["outcome"] == "ok"
    assert float(rows[2]["started_ms"]) - float(rows[2]["intended_ms"]) == 10
    text = page.read_text()
    assert "owner/&lt;g&gt;" in text
    assert "<g>" not in text
    assert "http://" not in text.replace("http://www.w3.org", "")


def test_replays_are_laid_side_by_side(tmp_path: Path) -> None:
    """Off and on have a row each, beside a simulated report's policies; replays of different calls are told apart."""
    off, on = result(), result(mode="on")
    frontier = {"policies": {"fixed": [{"knob": 10, "minute": {"cold": 5, "waste_pct": 100.0}, "event": None}]}}
    text = write_comparison([off, on], tmp_path, frontier).read_text()
    assert "standalone, MESP off" in text
    assert "standalone, MESP on" in text
    assert "every policy and knob" in text
    assert "did not play the same calls" not in text
    other = result() | {"speed": 3.0}
    assert "did not play the same calls: they differ in speed" in replay_page(named([off, other]))
    assert list(named([off, off])) == ["standalone, MESP off", "standalone, MESP off #2"]
    console = Console(file=io.StringIO(), width=200)
    print_replays(named([off, on]), console, frontier)
    assert isinstance(console.file, io.StringIO)
    assert "1 cold of 6 calls, 4 failed, p99 5 s" in console.file.getvalue()
    assert headline(named([off])) == "standalone, MESP off: 1 cold of 6 calls, 4 failed, p99 5 s."


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{", "is not JSON"),
        ("[]", "holds a list"),
        ('{"protocol": {}}', "key platform is missing"),
        (None, "cannot be read"),
    ],
)
def test_files_that_are_no_replays_are_told(content: str | None, told: str, tmp_path: Path) -> None:
    """One sentence names the file."""
    path = tmp_path / "x.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=rf"x\.json: {told}"):
        read_replay(path)
    with pytest.raises(InputError, match=r"x\.json: "):
        read_frontier(path)
