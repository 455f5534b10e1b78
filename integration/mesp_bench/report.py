"""What an evaluation leaves behind: `frontier.json`, `frontier.png` and `report.html`, and the table on the console.

Everything is rendered before anything is written, and each file is renamed into place when it is whole: a report is
there or it is not. The page is one file that needs no other: figures are embedded, colours follow the reader's light or
dark setting. The same result gives the same bytes.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.text import Text

from mesp.errors import InputError
from mesp_bench.curves import headline
from mesp_bench.pages import details, html_table, listed, page, picture, rich_table
from mesp_bench.plots import DARK, LIGHT, figure_bytes, frontier_figure
from mesp_bench.tables import (
    facts_table,
    notes,
    points_table,
    readings_table,
    rows_table,
    slice_title,
    slices_table,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from rich.console import Console

    from mesp_bench.tables import Table


def write_frontier_report(result: Mapping[str, Any], out: Path) -> None:
    """Write `frontier.json`, `frontier.png` and `report.html` into `out`, which is made if missing.

    Args:
        result: as EVALUATION.md describes `frontier.json`; optionally ``demo: {"rows": [{column: value}]}``.
        out: the folder.

    Raises:
        InputError: `out` cannot be written.
    """
    files = {
        "frontier.json": json_text(result).encode(),
        "frontier.png": figure_bytes(frontier_figure(result), "png"),
        "report.html": html_page(result).encode(),
    }
    write_files(out, files)


def write_files(out: Path, files: Mapping[str, bytes]) -> None:
    """Write a report's files, by name, into the folder `out`, which is made if missing.

    Raises:
        InputError: `out` cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{out} cannot be made a folder for the report: {error.strerror}") from error
    for name, content in files.items():
        write_file(out / name, content)


def write_json(path: Path, payload: Any) -> None:
    """Write a result file: numbers as numbers, NaN and infinities as null, numpy values as plain ones.

    Raises:
        InputError: `path` cannot be written.
    """
    write_file(path, json_text(payload).encode())


def write_file(path: Path, content: bytes) -> None:
    """Write the whole file or nothing: under a temporary name beside it, then renamed.

    Raises:
        InputError: `path` cannot be written.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise InputError(f"{path} cannot be written: {error.strerror}") from error


def json_text(payload: Any) -> str:
    """Strict JSON, indented, keys in the payload's order."""
    return json.dumps(_plain(payload), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def print_frontier_table(result: Mapping[str, Any], console: Console) -> None:
    """The telling knobs of every policy, the readings at the same cold starts, the result's sentence and the notes."""
    for table in (*_demo_tables(result), points_table(result), readings_table(result, modes=1)):
        if table and table.rows:
            console.print(rich_table(table))
    console.print(Text(headline(result), style="bold"))
    for note in notes(result):
        console.print(Text(f"- {note}", style="dim"))


def html_page(result: Mapping[str, Any]) -> str:
    """The report as one self-contained page."""
    sentence = headline(result)
    top = [*_demo_tables(result), readings_table(result), points_table(result), slices_table(result)]
    slices = "".join(
        details(slice_title(name), readings_table(result, name), points_table(result, name, everything=True))
        for name in result.get("slices") or {}
    )
    facts = [
        facts_table("Protocol", result.get("protocol") or {}),
        facts_table("Provenance", result.get("provenance") or {}),
    ]
    return page(
        sentence,
        _figure(result, sentence),
        *map(html_table, top),
        details("Every policy and knob", points_table(result, everything=True)),
        slices,
        listed("Notes", notes(result)),
        *map(html_table, facts),
    )


def _demo_tables(result: Mapping[str, Any]) -> list[Table | None]:
    return [rows_table("The demo", (result.get("demo") or {}).get("rows") or [])]


def _plain(value: Any) -> Any:
    match value:
        case np.ndarray() | np.generic():
            return _plain(value.tolist())
        case float():
            return value if math.isfinite(value) else None
        case list() | tuple():
            return [_plain(item) for item in value]
        case dict():
            return {str(key): _plain(item) for key, item in value.items()}
        case _:
            return value


def _figure(result: Mapping[str, Any], sentence: str) -> str:
    light, dark = (figure_bytes(frontier_figure(result, theme, titled=False), "svg") for theme in (LIGHT, DARK))
    return picture(light, dark, f"{sentence} Wasted memory against cold starts, a curve per policy.")
