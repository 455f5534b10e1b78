"""`mesp replay` as a user runs it, against a double on loopback: reports, exit codes, and a key that stays secret."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
import threading
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web
from typer.testing import CliRunner

from mesp.errors import InputError, UnavailableError
from mesp.types import Rejection
from mesp_bench.replay import cli
from mesp_bench.traces.convert import Format, convert_trace
from mesp_bench.traces.synth import synthesize

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from typer.testing import Result

KEY = "uuid-1:v3ry-s3cret"


class Double:
    """An OpenWhisk API and a plain service in one, in a thread of its own; the first call of a function is cold."""

    def __init__(self) -> None:
        self.called: list[str] = []
        self.on_call: Callable[[], None] = lambda: None
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()
        self._ready.wait()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _serve(self) -> None:
        app = web.Application()
        app.router.add_get("/api/v1/namespaces", self._namespaces)
        app.router.add_get("/api/v1/namespaces/_/actions/{name}", self._namespaces)
        app.router.add_post("/api/v1/namespaces/_/actions/{name}", self._call)
        app.router.add_post("/{name}", self._call)
        runner = web.AppRunner(app, shutdown_timeout=0)
        self._loop.run_until_complete(runner.setup())
        site = web.TCPSite(runner, "127.0.0.1", 0)
        self._loop.run_until_complete(site.start())
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        self._ready.set()
        self._loop.run_forever()
        self._loop.run_until_complete(runner.cleanup())
        self._loop.close()

    async def _namespaces(self, request: web.Request) -> web.Response:
        if request.headers["Authorization"] != "Basic " + base64.b64encode(KEY.encode()).decode():
            return web.json_response({"error": "no"}, status=401)
        return web.json_response(["guest"])

    async def _call(self, request: web.Request) -> web.Response:
        cold = request.match_info["name"] not in self.called
        self.called.append(request.match_info["name"])
        self.on_call()
        annotations = [{"key": "waitTime", "value": 3}] + [{"key": "initTime", "value": 40}] * cold
        body = {"annotations": annotations, "duration": 1 + 40 * cold, "response": {"status": "success"}}
        return web.json_response(body, headers={"X-Cold": str(int(cold))})


@pytest.fixture
def double() -> Iterator[Double]:
    served = Double()
    yield served
    served.close()


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trace") / "synth"
    convert_trace(synthesize(functions=25, days=1, seed=3), out, Format.PARQUET)
    return out


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def test_openwhisk_is_replayed_and_the_key_is_nowhere(
    double: Double, trace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Three minutes in half a second: a report with every cold start, and no trace of the key in files, output or logs."""
    caplog.set_level(0)
    monkeypatch.setenv("OPENWHISK_AUTH", KEY)
    done = run(
        "openwhisk", "--trace", trace, "--out", tmp_path, "--api-host", double.url, "--minutes", "600:603", "--speed", 360,
        "--driver", "standalone", "--mode", "on", "--warm-up", 60,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    result = json.loads((tmp_path / "replay-standalone-on.json").read_text())
    assert result["invocations"] == result["protocol"]["scheduled"] > 0
    assert result["outcomes"] == {"ok": result["invocations"]}
    assert 0 < result["cold"] <= len(set(double.called))
    assert len(double.called) >= result["invocations"]
    assert result["provenance"]["data"]["name"].startswith("synth-")
    written = [path.read_text() for path in tmp_path.iterdir()]
    for secret in (KEY, "v3ry-s3cret", base64.b64encode(KEY.encode()).decode()):
        assert all(secret not in text for text in (*written, done.output, done.stderr, caplog.text))


def write_map(tmp_path: Path, url: str) -> Path:
    path = tmp_path / "map.yaml"
    path.write_text(f'default: {{url: "{url}/{{id}}", body: {{ms: "{{run_ms}}"}}}}\ncold: {{header: X-Cold}}\n')
    return path


def test_http_is_replayed_after_its_history_was_told(
    double: Double, trace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The predictor gets what came before minute A, and what it refused is in the notes."""
    told: list[Any] = []

    async def next_step() -> int:
        return 1_800_000_000_000 - 60_000_000

    async def tell(address: str, steps: list[Any]) -> list[Rejection]:
        told.append((address, len(steps), sum(sum(step.counts.values()) for step in steps)))
        return [Rejection(None, 0, "too old")]

    monkeypatch.setattr(cli, "_next_step", next_step)
    monkeypatch.setattr(cli, "tell", tell)
    monkeypatch.setattr("mesp_bench.replay.cli.time.time", lambda: 1_800_000_000.0)
    done = run(
        "http", "--trace", trace, "--map", write_map(tmp_path, double.url), "--out", tmp_path / "out", "--minutes", "600:602",
        "--speed", 600, "--predictor", "127.0.0.1:7", "--limit", 40,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert [(address, steps) for address, steps, _ in told] == [("127.0.0.1:7", 1)]  # 600 minutes in one of the clock's
    assert told[0][2] > 0
    result = json.loads((tmp_path / "out" / "replay-http-off.json").read_text())
    assert result["cold"] == len(set(double.called))
    assert result["invocations"] == len(double.called) <= 40
    assert "The predictor refused 1 items of the history, first: too old" in result["notes"]


def test_ctrl_c_leaves_a_report_of_what_was_done(double: Double, trace: Path, tmp_path: Path) -> None:
    """An interrupt in a replay of a day ends it with 130, and the report says how far it came."""
    double.on_call = lambda: os.kill(os.getpid(), signal.SIGINT) if len(double.called) == 3 else None
    before = signal.getsignal(signal.SIGINT)
    done = run("http", "--trace", trace, "--map", write_map(tmp_path, double.url), "--out", tmp_path, "--speed", 10)
    assert done.exit_code == 130, done.output
    result = json.loads((tmp_path / "replay-http-off.json").read_text())
    assert result["protocol"]["interrupted"]
    assert 0 < result["invocations"] < result["protocol"]["scheduled"]
    assert any(note.startswith("Stopped after ") for note in result["notes"])
    assert signal.getsignal(signal.SIGINT) is before


def test_a_platform_that_is_not_there_is_unavailable(trace: Path, tmp_path: Path) -> None:
    """When every connection failed there is a report, and the exit code says so too."""
    arguments = ("--trace", trace, "--map", write_map(tmp_path, "http://127.0.0.1:1"), "--out", tmp_path)
    done = run("http", *arguments, "--minutes", "600:601", "--speed", 600)
    assert isinstance(done.exception, UnavailableError)
    assert "no call reached the platform" in str(done.exception)
    assert (tmp_path / "replay-http-off.html").exists()


def test_replays_are_compared(double: Double, trace: Path, tmp_path: Path) -> None:
    """Two results give a page; one is not enough."""
    path = write_map(tmp_path, double.url)
    run("http", "--trace", trace, "--map", path, "--out", tmp_path, "--minutes", "600:601", "--speed", 600)
    off, on = tmp_path / "replay-http-off.json", tmp_path / "on.json"
    on.write_text(json.dumps(json.loads(off.read_text()) | {"mode": "on"}))
    done = run("compare", off, on, "--out", tmp_path / "c")
    assert done.exit_code == 0, done.output
    assert "http, MESP on" in (tmp_path / "c" / "comparison.html").read_text()
    alone = run("compare", off, "--out", tmp_path / "c")
    assert isinstance(alone.exception, InputError)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--minutes", "9:3"), "--minutes 9:3: must be A:B"),
        (("--driver", "../x"), "--driver ../x: must be lower-case"),
        (("--insecure", "--ca", "x.pem"), "exclude each other"),
        (("--ca", "x.pem"), "x.pem: cannot be read as certificates"),
        (("--map", "none.yaml"), "none.yaml: cannot be read"),
        (("--warm-up", "60"), "warm-up = 60 s"),
    ],
)
def test_mistakes_are_one_sentence(arguments: tuple[str, ...], told: str, trace: Path, tmp_path: Path) -> None:
    """They are found before anything is sent, and nothing is written."""
    path = write_map(tmp_path, "http://127.0.0.1:1")
    done = run("http", "--trace", trace, "--map", path, "--out", tmp_path / "out", *arguments)
    assert isinstance(done.exception, InputError)
    assert told in str(done.exception)
    assert not (tmp_path / "out").exists()


def test_help_says_what_speed_does_not_scale() -> None:
    """The platform's timers stay as they are, whoever reads it."""
    for target in ("openwhisk", "http"):
        said = " ".join(run(target, "--help").output.replace("│", " ").split())
        assert "NOT scaled are the platform's own timers (OpenWhisk pauses an idle container after 10 s" in said
    assert "default" in run("--help").output


async def test_a_history_has_a_quarter_of_a_minute_to_be_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Early in a minute the replay begins with the next; late in it, the one after, once that has begun."""
    now_s = 1_800_000_010.0
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        nonlocal now_s
        slept.append(seconds)
        now_s += seconds

    monkeypatch.setattr("mesp_bench.replay.cli.time.time", lambda: now_s)
    monkeypatch.setattr("mesp_bench.replay.cli.asyncio.sleep", sleep)
    assert await cli._next_step() == 1_800_000_060_000
    now_s = 1_800_000_050.0
    assert await cli._next_step() == 1_800_000_120_000
    assert slept == [pytest.approx(10)]
