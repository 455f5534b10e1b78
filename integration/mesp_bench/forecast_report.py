"""What `mesp evaluate forecasts` leaves behind: `forecasts.json`, `forecasts.png`, `report.html`, and console tables.

As for the frontier, everything is rendered before anything is written; the page needs no other file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.text import Text

from mesp_bench.forecast_plots import forecast_figure
from mesp_bench.forecast_tables import (
    brief_table,
    comparisons_table,
    floors_table,
    headline,
    models_table,
    slice_names,
    slice_title,
    slices_table,
)
from mesp_bench.pages import details, html_table, listed, page, picture, rich_table
from mesp_bench.plots import DARK, LIGHT, figure_bytes
from mesp_bench.report import json_text, write_files
from mesp_bench.tables import facts_table, notes

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from rich.console import Console


def write_forecast_report(result: Mapping[str, Any], out: Path) -> None:
    """Write `forecasts.json`, `forecasts.png` and `report.html` into `out`, which is made if missing.

    Args:
        result: as EVALUATION.md describes `forecasts.json`.
        out: the folder.

    Raises:
        InputError: `out` cannot be written.
    """
    files = {
        "forecasts.json": json_text(result).encode(),
        "forecasts.png": figure_bytes(forecast_figure(result), "png"),
        "report.html": forecast_page(result).encode(),
    }
    write_files(out, files)


def forecast_page(result: Mapping[str, Any]) -> str:
    """The report as one self-contained page."""
    sentence = headline(result)
    light, dark = (figure_bytes(forecast_figure(result, theme, titled=False), "svg") for theme in (LIGHT, DARK))
    return page(
        sentence,
        picture(
            light, dark, f"{sentence} Scores of every model, gains by slice, calibration, and the router's weights."
        ),
        *map(html_table, (models_table(result), comparisons_table(result), slices_table(result), floors_table(result))),
        *(
            details(slice_title(result, name), models_table(result, name), comparisons_table(result, name))
            for name in slice_names(result)
            if name is not None
        ),
        listed("Notes", notes(result)),
        html_table(facts_table("Protocol", result.get("protocol") or {})),
        html_table(facts_table("Provenance", result.get("provenance") or {})),
    )


def print_forecast_tables(result: Mapping[str, Any], console: Console) -> None:
    """Every model's scores, the comparisons, the slices, the result's sentence and the notes."""
    for table in (brief_table(result), comparisons_table(result), slices_table(result)):
        if table.rows:
            console.print(rich_table(table))
    console.print(Text(headline(result), style="bold"))
    for note in notes(result):
        console.print(Text(f"- {note}", style="dim"))
