"""The look of every report: one self-contained page, and the same tables on the console.

A page needs no other file: figures are embedded, colours follow the reader's light or dark setting. Every value is
escaped here; callers hand over plain text, `Table`s and figures' bytes.
"""

from __future__ import annotations

import base64
from html import escape
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.table import Table as RichTable
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mesp_bench.tables import Table


def page(title: str, *parts: str) -> str:
    """The whole page: its title, and parts of HTML below it."""
    body = "\n".join(part for part in parts if part)
    return _PAGE.format(title=escape(title), style=_STYLE, body=body)


def html_table(table: Table | None) -> str:
    """A table under its title; nothing where there is no table or no row."""
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


def details(title: str, *tables: Table | None) -> str:
    """Tables folded away under a title."""
    return f"<details><summary>{escape(title)}</summary>{''.join(map(html_table, tables))}</details>"


def picture(light_svg: bytes, dark_svg: bytes, description: str) -> str:
    """An embedded figure, drawn for light and for dark paper."""
    light, dark = ("data:image/svg+xml;base64," + base64.b64encode(svg).decode() for svg in (light_svg, dark_svg))
    return (
        f'<picture><source media="(prefers-color-scheme: dark)" srcset="{dark}">'
        f'<img src="{light}" alt="{escape(description)}"></picture>'
    )


def listed(title: str, sentences: Iterable[str]) -> str:
    """Sentences as a list under a title; nothing where there are none."""
    items = "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences)
    return f"<h2>{escape(title)}</h2><ul>{items}</ul>" if items else ""


def rich_table(table: Table) -> RichTable:
    """The table for the console."""
    rendered = RichTable(
        title=Text(table.title), title_justify="left", header_style="bold", box=SIMPLE_HEAD, pad_edge=False
    )
    for index, column in enumerate(table.columns):
        rendered.add_column(Text(column), justify="left" if index < table.text_columns else "right")
    for row in table.rows:
        rendered.add_row(*map(Text, row.cells), style="bold bright_yellow" if row.strong else None)
    return rendered


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
{body}
</body></html>
"""
