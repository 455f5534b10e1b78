"""The report: files whole or absent, safe and self-contained HTML, figures that survive any gap in the result."""

from __future__ import annotations

import copy
import io
import json
import math
import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from mesp.errors import InputError
from mesp_bench.plots import figure_bytes, frontier_figure
from mesp_bench.report import html_page, json_text, print_frontier_table, write_frontier_report, write_json
from mesp_bench.tables import points_table, readings_table, rows_table, slices_table, telling_knobs

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.figure import Figure

KNOBS: dict[str, tuple[list[tuple[float, float, float]], str]] = {
    "fixed": ([(5, 1734, 73.7), (10, 839, 100.0), (20, 502, 120.7), (60, 164, 173.9), (120, 113, 202.4)], "minutes"),
    "hybrid_histogram": ([(60, 203, 126.9), (120, 166, 126.2), (240, 151, 152.8)], "minutes of range"),
    "oracle_keepalive": ([(40, 2338, 25.3), (80.5, 1110, 48.3), (640, 188, 128.2)], "price of a cold start, GB s"),
    "oracle_prewarm": ([(0.808, 36, 0.0), (10, 36, 0.0)], "s of lead"),
    "home_grown": ([(1, 900, 90.0), (2, 400, 130.0)], "a unit"),
    "mesp": ([(20, 1090, 23.0), (80.5, 380, 39.0), (320, 190, 70.0), (480, 151, 86.0), (1000, 100, 132.0)], "GB s"),
}


def point(knob: float, cold: float, waste_pct: float) -> dict[str, Any]:
    def scores(factor: float) -> dict[str, Any]:
        mean = cold * factor + 100
        return {
            "cold": {"mean": mean, "ci95": [mean - 9, mean + 9]},
            "waste_pct": {"mean": waste_pct + 4, "ci95": [waste_pct + 3, waste_pct + 5]},
            "wait_s_p99": None,
        }

    return {
        "knob": knob,
        "minute": {"cold": cold, "waste_pct": waste_pct, "cold_rate_p75": min(100.0, cold / 6), "rum": 1.0, "wmt": 2},
        "event": {"uniform": scores(1.2), "bunched": scores(1.5)},
    }


def sample() -> dict[str, Any]:
    policies = {name: [point(*knob) for knob in knobs] for name, (knobs, _) in KNOBS.items()}
    return {
        "provenance": {"git_revision": "abc", "seeds": [0, 1], "packages": {"numpy": "2.1"}},
        "notes": ["Owners of the pool are <unknown> & cannot be split."],
        "protocol": {
            "scored_minutes": [720, 1439],
            "functions": 198,
            "compulsory": 36,
            "table": "online",
            "knob_units": {name: unit for name, (_, unit) in KNOBS.items()},
            "reference_gb_s": 273346.8,
            "price_gb_s": 80.5,
        },
        "policies": policies,
        "slices": {"never_seen": {"mesp": policies["mesp"][1:]}, "no_timers": policies},
    }


def without_events(result: dict[str, Any]) -> dict[str, Any]:
    for points in result["policies"].values():
        for one in points:
            one["event"] = None
    return result


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("report") / "made" / "if_missing"
    write_frontier_report(without_events(sample()), out)
    return out


@pytest.fixture(scope="module")
def page(report: Path) -> str:
    return (report / "report.html").read_text()


@pytest.fixture(scope="module")
def figure() -> Figure:
    return frontier_figure(sample())


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages with an empty picture, for tests of their words."""
    monkeypatch.setattr("mesp_bench.report.frontier_figure", lambda *_, **__: None)
    monkeypatch.setattr("mesp_bench.report.figure_bytes", lambda *_: b"<svg/>")


def printed(result: dict[str, Any]) -> str:
    console = Console(width=200, file=io.StringIO(), force_terminal=False)
    print_frontier_table(result, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_report_is_three_whole_files_and_the_same_each_time(report: Path, tmp_path: Path) -> None:
    """Written twice, byte for byte the same; no temporary file stays; the JSON is the result."""
    assert sorted(path.name for path in report.iterdir()) == ["frontier.json", "frontier.png", "report.html"]
    write_frontier_report(without_events(sample()), tmp_path)
    changed = [path.name for path in report.iterdir() if path.read_bytes() != (tmp_path / path.name).read_bytes()]
    assert changed == []
    assert json.loads((report / "frontier.json").read_text()) == without_events(sample())
    assert (report / "frontier.png").read_bytes().startswith(b"\x89PNG")


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    """A file in the way, of the folder or of one result, is one sentence, and nothing temporary is left."""
    blocked = tmp_path / "out"
    blocked.write_text("in the way")
    with pytest.raises(InputError, match=f"{re.escape(str(blocked))} cannot be made a folder"):
        write_frontier_report(sample(), blocked)
    (tmp_path / "bench.json").mkdir()
    with pytest.raises(InputError, match=r"bench\.json cannot be written"):
        write_json(tmp_path / "bench.json", {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bench.json", "out"]


def test_json_has_no_nan_and_keeps_numpy_numbers(tmp_path: Path) -> None:
    """What is not finite is null, at any depth; numpy scalars and arrays are plain numbers."""
    payload = {"a": math.nan, "b": (np.float32(0.5), -math.inf), 3: np.array([1, 2]), "d": np.bool_(True), "e": "NaN"}
    write_json(tmp_path / "x.json", payload)
    read = json.loads((tmp_path / "x.json").read_text(), parse_constant=pytest.fail)
    assert read == {"a": None, "b": [0.5, None], "3": [1, 2], "d": True, "e": "NaN"}


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    )
)
def test_any_result_is_strict_json(payload: Any) -> None:
    """Every nesting of plain values is JSON that a strict reader takes, and reading changes nothing but NaN and inf."""
    read = json.loads(json_text(payload), parse_constant=pytest.fail)
    assert json_text(read) == json_text(payload)


def test_the_page_opens_with_the_result_and_holds_every_part(page: str) -> None:
    """The sentence comes first, then the figure, then tables, slices, notes, protocol and provenance."""
    parts = ["<h1>At 151 cold starts MESP wastes 86.0 %", "<picture>", "Read off the curves", "Every slice at a glance"]
    parts += ["Every policy and knob", "<summary>Never seen", "<summary>Without functions called by a timer", "Notes"]
    found = [page.index(part, page.index("<h1>")) for part in [*parts, "Protocol", "Provenance", "packages.numpy"]]
    assert found == sorted(found)


def test_the_page_needs_nothing_else(page: str) -> None:
    """No script, and no address but the embedded figures'."""
    addresses = re.findall(r'(?:src|srcset|href)="([^"]*)"', page)
    assert len(addresses) == 2
    assert all(address.startswith("data:image/svg+xml;base64,") for address in addresses)
    assert not re.search(r"<script|<link|@import|url\(", page)


@pytest.mark.usefixtures("undrawn")
def test_every_value_is_escaped() -> None:
    """Markup in any name or value of the result is text on the page."""
    evil = "<script>alert('x')</script>"
    result = sample()
    result["notes"] = [evil]
    result["provenance"] = {evil: evil}
    result["policies"][evil] = [point(1, 500, 50.0)]
    result["protocol"]["knob_units"] = {"mesp": evil, "hybrid_histogram": evil}
    result["slices"] = {evil: result["policies"]}
    result["demo"] = {"rows": [{evil: evil}]}
    page = html_page(result)
    assert "<script" not in page
    assert page.count("&lt;script&gt;") > 5


def test_the_console_shows_mesp_beside_the_baselines() -> None:
    """Both tables, the sentence and the notes; markup in a note is shown, not obeyed."""
    result = sample()
    result["notes"].append("[bold]no markup[/bold]")
    result["demo"] = {"rows": [{"platform": "Knative", "cold": 12}]}
    text = printed(result)
    assert re.search(r"MESP +480 GB s +151 +86\.0 ", text)
    assert re.search(r"MESP +86\.0 +133 ", text)  # 151 * (100 / 151) ** ((100 - 86) / (132 - 86))
    assert re.search(r"Knative +12", text)
    assert "At 151 cold starts MESP wastes 86.0 %" in text
    assert "[bold]no markup[/bold]" in text


def test_telling_knobs_are_shipped_cheap_and_few() -> None:
    """As shipped, the cheapest at the anchor's cold starts, the fewest at 100 % waste; short curves whole."""
    result = sample()
    assert telling_knobs(result, "mesp") == {80.5, 480}
    assert telling_knobs(result, "fixed") == {10, 120}
    assert telling_knobs(result, "hybrid_histogram") == {60, 120, 240}
    result["protocol"]["price_gb_s"] = 20
    assert telling_knobs(result, "mesp") == {20, 480}


def test_tables_show_each_accounting_and_slice() -> None:
    """Columns per measured arrival mode, a row per slice with its own anchor, a dash for what was not measured."""
    result = sample()
    del result["policies"]["mesp"][0]["event"]["uniform"]["cold"]["mean"]
    table = points_table(result, everything=True)
    mesp = [row for row in table.rows if row.strong]
    assert len(mesp) == 5
    assert mesp[3].cells == ("MESP", "480 GB s", "151", "86.0", "25.2", "1", "326", "318 to 336", "90.0", "—")
    readings = readings_table(result)
    assert readings is not None
    assert readings.columns[1:4] == ("waste % at 151 cold", "cold at 100 %", "waste % at 326 cold, bunched")
    slices = slices_table(result)
    assert slices is not None
    assert [row.cells[1] for row in slices.rows] == ["151"] * 3
    assert slices_table({**result, "slices": {}}) is None
    assert rows_table("x", []) is None


def nothing_measured() -> dict[str, Any]:
    result = sample()
    for points in result["policies"].values():
        for one in points:
            one["minute"] = one["event"] = None
    return result


def dollars() -> dict[str, Any]:
    result = without_events(sample())
    result["policies"]["$a^{$"] = result["policies"]["mesp"]
    return result


def far_out() -> dict[str, Any]:
    result = without_events(sample())
    for points in result["policies"].values():
        for one in points:
            one["minute"]["waste_pct"] *= 50
    return result


def flawless() -> dict[str, Any]:
    result = without_events(sample())
    for points in result["policies"].values():
        for one in points:
            one["minute"].update(cold=0, waste_pct=0.0, cold_rate_p75=None)
    return result


@pytest.mark.parametrize(
    "result",
    [
        {},
        {"policies": {}, "protocol": None, "notes": None, "slices": None},
        {"policies": {"mesp": [point(1, 5, 5.0)]}, "slices": {"x": {}}},
        {"policies": {f"policy_{i}": [point(i, 50 + i, 5.0) | {"event": None}] for i in range(9)}},
        nothing_measured(),
        far_out(),
        flawless(),
        dollars(),
    ],
    ids=["empty", "nulls", "mesp alone", "many unknown policies", "nothing measured", "far out", "flawless", "dollars"],
)
@pytest.mark.usefixtures("undrawn")
def test_any_gap_in_a_result_still_makes_a_report(result: dict[str, Any]) -> None:
    """Whatever is missing or extreme, the table, the page and the picture are made, without a warning."""
    before = copy.deepcopy(result)
    assert printed(result)
    assert "</html>" in html_page(result)
    assert figure_bytes(frontier_figure(result), "png", dpi=30).startswith(b"\x89PNG")
    assert result == before


def test_oracles_are_bounds_in_minute_accounting_alone(figure: Figure) -> None:
    """Dashed and named as bounds above, ordinary curves below."""
    upper, lower = ({str(line.get_label()): line for line in figure.axes[panel].lines} for panel in (0, 2))
    dashed = {name for name, line in upper.items() if line.get_linestyle() == "--" and line.get_marker() != "None"}
    assert dashed == {"bound of keep-alive alone (oracle)", "bound of prewarming (oracle)"}
    assert lower["oracle keep-alive"].get_linestyle() == lower["fixed keep-alive"].get_linestyle() == "-"
    assert not [name for name in lower if "bound" in name]


def test_mesp_is_the_boldest_curve_and_the_arrow_states_its_saving(figure: Figure) -> None:
    """MESP leads the legend, has the widest line, and 86.0 against 152.8 % is written as 44 % less waste."""
    axes = figure.axes[0]
    assert max(axes.lines, key=lambda line: line.get_linewidth()).get_label() == "MESP"
    legend = axes.get_legend()
    assert legend is not None
    assert legend.get_texts()[0].get_text() == "MESP"
    assert "44 % less waste" in [text.get_text() for text in axes.texts]


def test_events_have_a_row_of_their_own(figure: Figure) -> None:
    """The event row is drawn where events were measured, and only there."""
    assert len(figure.axes) == 4
    assert len(frontier_figure(without_events(sample())).axes) == 2


def test_texts_neither_cover_each_other_nor_leave_the_panel(figure: Figure) -> None:
    """Knobs, isocosts and the floor are labelled only where there is room."""
    axes = figure.axes[0]
    room = axes.get_window_extent().expanded(1.001, 1.001)
    boxes = [text.get_window_extent() for text in axes.texts if text.get_text() and text.get_text() != "better"]
    assert len(boxes) > 8
    for index, box in enumerate(boxes):
        assert room.x0 <= box.x0
        assert box.x1 <= room.x1
        assert not any(box.overlaps(other) for other in boxes[index + 1 :])
