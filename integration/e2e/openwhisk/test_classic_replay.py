"""All of it beside the double of classic OpenWhisk: a real Kafka, a real sidecar, plugin, load generator, a trace.

The double's time is stepped, and stands still while the plugin ticks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from e2e.openwhisk.rehearsal import Setting, delayed, make_scene
from e2e.openwhisk.replay_classic import play
from mesp_bench.replay.calls import Outcome
from mesp_bench.sidecar import sidecar
from mesp_plugin.openwhisk.holdings import Holdings

if TYPE_CHECKING:
    from pathlib import Path

    from e2e.openwhisk.rehearsal import Played
    from e2e.servers.kafka import Kafka
    from mesp_bench.traces.model import Trace

MINUTES = (620, 624)
SETTING = Setting(user_memory_mb=8_192, warm_up_s=120)


def test_mesp_makes_fewer_cold_starts_and_harms_nobody(kafka: Kafka, trace: Trace, model: Path, tmp_path: Path) -> None:
    """The same calls, without and with: none fails, each is sent in time, no marker runs a user's code, fewer are cold."""
    off = play(make_scene(trace, MINUTES, "off", folder=tmp_path, predictor=None, setting=SETTING), kafka)
    with sidecar(model) as address:
        on = play(make_scene(trace, MINUTES, "on", folder=tmp_path, predictor=address, setting=SETTING), kafka)
    assert [call.intended_ms for call in on.run.calls] == [call.intended_ms for call in off.run.calls]
    for played in (off, on):
        assert {call.answer.outcome for call in played.run.calls} == {Outcome.OK}
        assert max(call.started_ms - call.intended_ms for call in played.run.calls) < 1
    assert on.marker_user_runs == 0
    total, cold = len(on.run.calls), _cold(on)
    assert cold < _cold(off)
    # What the plugin counted is what happened, less what ended after its last look.
    assert 0 <= total - on.tally["calls"] <= 30
    assert 0 <= cold - on.tally["cold"] <= 2
    assert 0 < on.tally["met"] <= on.tally["ordered"] <= len(Holdings(tmp_path / "state-on.json").all())
    # How containers started is counted for calls and markers alike.
    assert sum(off.starts.values()) == total < sum(on.starts.values())
    assert 0 < off.result["waste_gb_s"] < on.result["waste_gb_s"]
    assert 0 <= delayed(off.run, on.run)["calls"] <= 0.05 * total


def _cold(played: Played) -> int:
    return sum(bool(call.answer.cold) for call in played.run.calls)
