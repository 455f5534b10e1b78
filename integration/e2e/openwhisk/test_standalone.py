"""The whole of it beside the double of standalone OpenWhisk: a real sidecar, the plugin, the load generator, a trace.

Time is virtual, so nothing here depends on how fast the machine is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from e2e.openwhisk.rehearsal import Setting, make_scene
from e2e.openwhisk.replay_standalone import play
from mesp_bench.replay.calls import Outcome
from mesp_bench.sidecar import sidecar
from mesp_plugin.openwhisk.holdings import Holdings

if TYPE_CHECKING:
    from pathlib import Path

    from mesp_bench.traces.model import Trace

MINUTES = (620, 628)
SETTING = Setting(user_memory_mb=8_192, warm_up_s=120)


def test_mesp_makes_fewer_cold_starts_and_harms_nobody(trace: Trace, model: Path, tmp_path: Path) -> None:
    """The same calls, without and with: none fails, none is refused, no marker runs a user's code, fewer are cold."""
    off = play(make_scene(trace, MINUTES, "off", folder=tmp_path, predictor=None, setting=SETTING))
    with sidecar(model) as address:
        on = play(make_scene(trace, MINUTES, "on", folder=tmp_path, predictor=address, setting=SETTING))
    assert [call.intended_ms for call in on.run.calls] == [call.intended_ms for call in off.run.calls]
    for played in (off, on):
        assert {call.answer.outcome for call in played.run.calls} == {Outcome.OK}
    assert on.marker_user_runs == 0
    assert on.result["cold"] < 0.75 * off.result["cold"], (on.result["cold"], off.result["cold"])
    # What the plugin counted is what happened, less what ended after its last look.
    total, cold = len(on.run.calls), sum(bool(call.answer.cold) for call in on.run.calls)
    assert 0 <= total - on.tally["calls"] <= 30
    assert 0 <= cold - on.tally["cold"] <= 2
    assert 0 < on.tally["met"] <= on.tally["ordered"]
    # What was ordered is on record: as many as made a container, each with an end.
    assert len(Holdings(tmp_path / "state-on.json").all()) >= on.tally["ordered"]


def test_a_replay_depends_on_its_seed_alone(trace: Trace, tmp_path: Path) -> None:
    """Real sockets notwithstanding, two replays agree on every call and its times."""
    scene = make_scene(trace, (620, 622), "off", folder=tmp_path, predictor=None, setting=SETTING)
    first, second = play(scene), play(scene)
    assert first.run == second.run
    assert first.starts == second.starts
