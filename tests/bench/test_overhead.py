"""`mesp bench openwhisk`: what is timed is a plugin that reads every call, and the form of `bench.json`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from mesp_bench import bench_cli, overhead
from mesp_plugin.openwhisk.platform import OpenWhiskPlatform

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def test_every_call_is_read_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """80 s of 5 calls a second, of which the last tick's may still be open; none is malformed, and one file tells."""
    seen: list[OpenWhiskPlatform] = []

    class Noted(OpenWhiskPlatform):
        def __init__(self, *args: Any, **settings: Any) -> None:
            super().__init__(*args, **settings)
            self.own = settings["metrics"]
            seen.append(self)

    monkeypatch.setattr(overhead, "OpenWhiskPlatform", Noted)
    bench_cli.openwhisk(out=tmp_path, rate=5, functions=3, seconds=20)
    (platform,) = seen
    assert platform.tally.calls == 5 * 80
    assert platform.own.malformed._value.get() == 0  # type: ignore[attr-defined]
    result = json.loads((tmp_path / "bench.json").read_text())
    (row,) = result["rows"]
    assert row.keys() >= {"what", "functions", "seconds", "peak_rss_mb", "threads", "ratio_to"}
    assert row["cpu_share_per_1000_calls_per_s"] == row["seconds"] / 20 * 1_000 / 5
