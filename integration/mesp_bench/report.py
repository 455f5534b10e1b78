"""What an evaluation leaves behind: `frontier.json`, `frontier.png` and `report.html`, and the table on the console.

Everything is rendered before anything is written, and each file is renamed into place when it is whole: a report is
there or it is not. The page is one file that needs no other: figures are embedded, colours follow the reader's light or
dark setting. The same result gives the same bytes.
"""

from __future__ import annotations

import base64
import json
import math
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table as RichTable
from rich.text import Text

from mesp.errors import InputError
from mesp_bench.curves import headline
from mesp_bench.plots import DARK, LIGHT, figure_bytes, frontier_figure
from mesp_bench.tables import (
    Table,
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


def write_frontier_report(result: Mapping[str, Any], out: Path) -> None:
    """Write `frontier.json`, `frontier.png` and `report.html` into `out`, which is made if missing.

    Args:
        result: as EVALUATION.md describes `frontier.json`; optionally ``demo: {"rows": [{column: value}]}``.
        out: the folder.

    Raises:
        InputError: `out` cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{out} cannot be made a folder for the report: {error.strerror}") from error
    files = {
        "frontier.json": json_text(result).encode(),
        "frontier.png": figure_bytes(frontier_figure(result), "png"),
        "report.html": html_page(result).encode(),
    }
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
            console.print(_rich(table))
    console.print(Text(headline(result), style="bold"))
    for note in notes(result):
        console.print(Text(f"- {note}", style="dim"))


def html_page(result: Mapping[str, Any]) -> str:
    """The report as one self-contained page."""
    sentence = headline(result)
    top = [*_demo_tables(result), readings_table(result), points_table(result), slices_table(result)]
    slices = "".join(
        _details(slice_title(name), readings_table(result, name), points_table(result, name, everything=True))
        for name in result.get("slices") or {}
    )
    facts = [
        facts_table("Protocol", result.get("protocol") or {}),
        facts_table("Provenance", result.get("provenance") or {}),
    ]
    listed = "".join(f"<li>{escape(note)}</li>" for note in notes(result))
    return _PAGE.format(
        title=escape(sentence),
        style=_STYLE,
        figure=_figure(result, sentence),
        tables="".join(map(_html, top)),
        every=_details("Every policy and knob", points_table(result, everything=True)),
        slices=slices,
        notes=f"<h2>Notes</h2><ul>{listed}</ul>" if listed else "",
        facts="".join(map(_html, facts)),
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


def _rich(table: Table) -> RichTable:
    rendered = RichTable(
        title=Text(table.title), title_justify="left", header_style="bold", box=SIMPLE_HEAD, pad_edge=False
    )
    for index, column in enumerate(table.columns):
        rendered.add_column(Text(column), justify="left" if index < table.text_columns else "right")
    for row in table.rows:
        rendered.add_row(*map(Text, row.cells), style="bold bright_yellow" if row.strong else None)
    return rendered


def _html(table: Table | None) -> str:
    if table is None or not table.rows:
        return ""
    kinds = ["" if index < table.text_columns else ' class="n"' for index in range(len(table.columns))]
    cells = zip(kinds, table.columns, strict=True)
    head = "".join(f"<th{kind}>{escape(column)}</th>" for kind, column in cells) if any(table.columns) else ""
    body = "".join(
        f"<tr{' class=mesp' if row.strong else ''}>"
        + "".join(f"<td{kind}>{escape(cell)}</td>" for kind, cell in zip(kinds, row.cells, strict=True))
        + "</tr>"
        for row in table.rows
    )
    return f'<h2>{escape(table.title)}</h2><div class="wide"><table><tr>{head}</tr>{body}</table></div>'


def _details(title: str, *tables: Table | None) -> str:
    return f"<details><summary>{escape(title)}</summary>{''.join(map(_html, tables))}</details>"


def _figure(result: Mapping[str, Any], sentence: str) -> str:
    light, dark = (
        "data:image/svg+xml;base64," + base64.b64encode(figure_bytes(figure, "svg")).decode()
        for figure in (frontier_figure(result, theme, titled=False) for theme in (LIGHT, DARK))
    )
    return (
        f'<picture><source media="(prefers-color-scheme: dark)" srcset="{dark}">'
        f'<img src="{light}" alt="{escape(sentence)} Wasted memory against cold starts, a curve per policy."></picture>'
    )


_STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1b1f24; --faint: #667; --line: #d8dce2; --mesp: #b84f00; --tint: #fdf3ea }
@media (prefers-color-scheme: dark) {
  :root { --paper: #14171b; --ink: #e6e8eb; --faint: #98a0aa; --line: #31373f; --mesp: #ff9a52; --tint: #2a1f16 } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 1180px; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.55rem; line-height: 1.25; margin: 0 0 1.2rem }
h2 { font-size: 1.05rem; margin: 2rem 0 .5rem }
img { width: 100%; height: auto }
.wide { overflow-x: auto }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums }
th, td { padding: .22rem .8rem .22rem 0; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top }
th { font-weight: 600; color: var(--faint); max-width: 11rem }
.n { text-align: right }
.mesp td { color: var(--mesp); font-weight: 600; background: var(--tint) }
details { margin: 1rem 0; border-top: 1px solid var(--line); padding-top: .6rem }
summary { cursor: pointer; font-weight: 600 }
td { overflow-wrap: anywhere }
td:first-child { min-width: 9.5rem }
"""

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>MESP: {title}</title><style>{style}</style></head>
<body><h1>{title}</h1>
{figure}
{tables}
{every}
{slices}
{notes}
{facts}
</body></html>
"""
