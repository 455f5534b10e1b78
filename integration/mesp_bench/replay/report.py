"""What a replay leaves behind: `replay-DRIVER-MODE.json`, its calls as CSV, and a page; and several of them side by side.

Beside a simulated report (`frontier.json`) the page also shows that report's table of policies. Live and simulated runs
meet in cold starts; a wait in the simulator is without the run and the network, as `added_latency_s` is here.
"""

from __future__ import annotations

import csv
import io
import json
from typing import TYPE_CHECKING, Any

from rich.text import Text

from mesp.errors import InputError
from mesp_bench.pages import details, html_table, listed, page, picture, rich_table
from mesp_bench.report import json_text, write_files
from mesp_bench.tables import Table, facts_table, points_table, rows_table

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from rich.console import Console

    from mesp_bench.replay.calls import Call

#: Replays that differ in one of these did not play the same calls.
_SAME = ("minutes", "functions", "arrivals", "warm_up_s")

_CALL_COLUMNS = (
    "function", "intended_ms", "started_ms", "done_ms", "outcome", "cold", "init_ms", "wait_ms", "run_ms",
)  # fmt: skip


def write_replay(result: Mapping[str, Any], calls: Iterable[Call], out: Path) -> Path:
    """Writes a replay's files into `out`, which is made if missing; the path of the page.

    Raises:
        InputError: `out` cannot be written.
    """
    name = f"{result['driver']}-{result['mode']}"
    files = {
        f"replay-{name}.json": json_text(result).encode(),
        f"calls-{name}.csv": _calls_csv(calls).encode(),
        f"replay-{name}.html": replay_page({_title(result): result}).encode(),
    }
    write_files(out, files)
    return out / f"replay-{name}.html"


def read_replay(path: Path) -> dict[str, Any]:
    """The content of a `replay-….json`.

    Raises:
        InputError: it cannot be read or is something else.
    """
    content = _read_json(path)
    wanted = ("protocol", "platform", "driver", "mode", "latency_quantiles_s", "per_minute", "functions")
    if missing := [key for key in wanted if key not in content]:
        raise InputError(f"{path}: key {missing[0]} is missing, must be a replay-….json of mesp replay")
    return content


def read_frontier(path: Path) -> dict[str, Any]:
    """The content of a `frontier.json`.

    Raises:
        InputError: it cannot be read or is something else.
    """
    content = _read_json(path)
    if "policies" not in content:
        raise InputError(f"{path}: key policies is missing, must be a frontier.json of mesp evaluate or mesp demo")
    return content


def named(results: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Results by a title each, numbered where titles are the same."""
    found: dict[str, Mapping[str, Any]] = {}
    for result in results:
        title = _title(result)
        again = 1 + sum(name.partition(" #")[0] == title for name in found)
        found[title if again == 1 else f"{title} #{again}"] = result
    return found


def replay_page(results: Mapping[str, Mapping[str, Any]], simulated: Mapping[str, Any] | None = None) -> str:
    """One self-contained page over one or more replays, by title."""
    from mesp_bench.plots import DARK, LIGHT, figure_bytes  # noqa: PLC0415  # matplotlib
    from mesp_bench.replay.plots import replay_figure  # noqa: PLC0415

    light, dark = (figure_bytes(replay_figure(results, theme), "svg") for theme in (LIGHT, DARK))
    parts = [picture(light, dark, "Latency of the calls, and cold starts over time.")]
    parts += [html_table(table) for table in (summary_table(results), latency_table(results), outcomes_table(results))]
    if simulated is not None:
        parts.append(details("Simulated: every policy and knob", points_table(simulated)))
    parts.append(listed("Notes", _all_notes(results)))
    for title, result in results.items():
        parts.append(details(f"Functions: {title}", rows_table(title, result["functions"])))
        facts = {"protocol": result["protocol"], "provenance": result.get("provenance") or {}}
        parts.append(details(f"Protocol and provenance: {title}", facts_table(title, facts)))
    return page(headline(results), *parts)


def write_comparison(
    results: Sequence[Mapping[str, Any]], out: Path, simulated: Mapping[str, Any] | None = None
) -> Path:
    """Writes `comparison.html` into `out`; its path.

    Raises:
        InputError: `out` cannot be written.
    """
    write_files(out, {"comparison.html": replay_page(named(results), simulated).encode()})
    return out / "comparison.html"


def print_replays(
    results: Mapping[str, Mapping[str, Any]], console: Console, simulated: Mapping[str, Any] | None = None
) -> None:
    """The same tables on the console, the sentence and the notes."""
    tables = [summary_table(results), latency_table(results), outcomes_table(results)]
    if simulated is not None:
        tables.append(points_table(simulated))
    for table in tables:
        if table is not None and table.rows:
            console.print(rich_table(table))
    console.print(Text(headline(results), style="bold"))
    for note in _all_notes(results):
        console.print(Text(f"- {note}", style="dim"))


def headline(results: Mapping[str, Mapping[str, Any]]) -> str:
    """One sentence: each replay's cold starts and 99th percentile."""
    return "; ".join(f"{title}: {_sentence(result)}" for title, result in results.items()) + "."


def summary_table(results: Mapping[str, Mapping[str, Any]]) -> Table | None:
    """A row per replay: calls, cold starts, failures, waste."""
    rows = [
        {
            "replay": title,
            "speed": result["speed"],
            "invocations": result["invocations"],
            "cold starts": result["cold"],
            "cold %": result["cold_pct"],
            "failed": result["failed"],
            "shed": result["shed"],
            "wasted GB s": result["waste_gb_s"],
        }
        for title, result in results.items()
    ]
    return rows_table("Calls", rows)


def latency_table(results: Mapping[str, Mapping[str, Any]]) -> Table | None:
    """A row per replay and kind of time, in seconds."""
    kinds = {
        "latency_s": "latency",
        "cold_latency_s": "of cold calls",
        "warm_latency_s": "of warm calls",
        "added_latency_s": "without the run itself",
        "init_s": "initialisation",
        "lateness_s": "generator's own lateness",
    }
    rows = [
        {"replay": f"{title}: {what}", **result[kind]}
        for title, result in results.items()
        for kind, what in kinds.items()
        if result[kind]["p50"] is not None
    ]
    return rows_table("Seconds, from the intended start", rows)


def outcomes_table(results: Mapping[str, Mapping[str, Any]]) -> Table | None:
    """A row per replay: calls by how they ended."""
    kinds = list(dict.fromkeys(kind for result in results.values() for kind in result["outcomes"]))
    rows = [
        {"replay": title, **{kind: result["outcomes"].get(kind, 0) for kind in kinds}}
        for title, result in results.items()
    ]
    return rows_table("How calls ended", rows) if kinds else None


def _sentence(result: Mapping[str, Any]) -> str:
    number, p99 = result["invocations"], result["latency_s"]["p99"]
    cold = "cold starts unknown" if result["cold"] is None else f"{result['cold']:,} cold"
    tail = "no latency" if p99 is None else f"p99 {p99:.3g} s"
    return f"{cold} of {number:,} calls, {result['failed']:,} failed, {tail}"


def _title(result: Mapping[str, Any]) -> str:
    return f"{result['driver']}, MESP {result['mode']}"


def _all_notes(results: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Each note once, and a warning where the replays did not play the same."""
    said = list(dict.fromkeys(note for result in results.values() for note in result.get("notes") or ()))
    plays = [
        {name: result["protocol"].get(name) for name in _SAME}
        | {"speed": result["speed"]}
        | {name: (result.get("provenance") or {}).get(name) for name in ("data", "seeds")}
        for result in results.values()
    ]
    if differing := [name for name in plays[0] if any(play[name] != plays[0][name] for play in plays)]:
        said.insert(0, f"These replays did not play the same calls: they differ in {', '.join(differing)}.")
    return said


def _calls_csv(calls: Iterable[Call]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_CALL_COLUMNS)
    for call in calls:
        answer = call.answer
        times = (call.intended_ms, call.started_ms, call.done_ms)
        cold = None if answer.cold is None else int(answer.cold)
        writer.writerow(
            (
                call.function,
                *(f"{ms:.3f}" for ms in times),
                answer.outcome,
                cold,
                answer.init_ms,
                answer.wait_ms,
                answer.run_ms,
            )
        )
    return text.getvalue()


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds a {type(content).__name__}, must be a result of mesp")
    return content
