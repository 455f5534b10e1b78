"""Two replays of the same calls, pair by pair."""

from __future__ import annotations

from typing import TYPE_CHECKING

from e2e.openwhisk.paired import lines

if TYPE_CHECKING:
    from pathlib import Path

HEAD = "function,intended_ms,started_ms,done_ms,outcome,cold,init_ms,wait_ms,run_ms\n"


def test_pairs(tmp_path: Path) -> None:
    """One cold call is warm with MESP, one stays cold, a warm one takes 20 ms longer; the warm-up's does not count."""
    off, on = tmp_path / "off.csv", tmp_path / "on.csv"
    off.write_text(
        f"{HEAD}f,-5,-5,900,ok,1,300,500,5\nf,0,0,900,ok,1,300,500,5\nf,10,10,60,ok,0,,40,5\ng,10,10,700,ok,1,100,400,5\n"
    )
    on.write_text(
        f"{HEAD}f,-5,-5,60,ok,0,,40,5\nf,0,0,60,ok,0,,50,5\nf,10,10,80,ok,0,,60,5\ng,10,10,710,ok,1,110,400,5\n"
    )
    assert lines(off, on) == [
        "3 calls, 2 cold without MESP, 1 with",
        "wait and /init of these 2: 650 ms, 280 ms with MESP",
        "of the 1 made warm: 800 ms, 50 ms, 50 at most",
        "1 warm without: 0 cold with",
        "1 of them took 10 ms longer or more, 20 ms at most",
    ]
