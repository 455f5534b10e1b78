"""The model that comes with MESP: whole, small, of this version's features, with its origin told; and it answers."""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from mesp.client import PredictorClient
from mesp.errors import InputError
from mesp.types import DEFAULT_STEP_MS, FunctionKey, StepCounts
from mesp_predictor import checkpoint
from mesp_predictor.checkpoint import default_model, describe, load_forecaster, load_model
from mesp_predictor.series import SeriesStore
from mesp_predictor.statistics import FEATURES

if TYPE_CHECKING:
    from mesp.types import Forecasts
    from mesp_predictor.forecaster import Mixed

ROOT = Path(__file__).resolve().parents[2]
ATTRIBUTION = "Azure Functions Trace 2019, Azure Public Dataset, (c) Microsoft, CC-BY 4.0"
KEYS = tuple(FunctionKey("owner", name) for name in ("timer", "steady", "rare"))


def counts(step: int) -> dict[FunctionKey, int]:
    """Three functions: every fifth minute, often, and in their first minute alone."""
    return {KEYS[0]: int(step % 5 == 0), KEYS[1]: step * 7 % 4, KEYS[2]: int(step == 0)}


def replayed(steps: int) -> Mixed:
    """What the shipped model says after these steps, learning as it goes."""
    forecaster = load_forecaster(default_model())
    store = SeriesStore(DEFAULT_STEP_MS, forecaster.context_length, len(KEYS))
    for step in range(steps):
        store.report(StepCounts("one", step * DEFAULT_STEP_MS, DEFAULT_STEP_MS, counts(step)))
        forecaster.advance(store)
    return forecaster.forecast(store.rows_of(KEYS), 15, forecaster.levels)


def test_it_is_whole_and_small() -> None:
    """It loads, its files are those of its version, and they are at most 8 MB."""
    about = describe(default_model())
    assert load_model(default_model()).version == about["version"]
    assert about["size_bytes"] <= 8_000_000


def test_it_is_of_this_version() -> None:
    """Experts that read features were trained on the first of those that this version computes; steps are the default."""
    model = load_model(default_model())
    assert model.step_ms == DEFAULT_STEP_MS
    for path in (default_model() / "experts").glob("*/config.json"):
        features = tuple(json.loads(path.read_text()).get("features", FEATURES))
        assert features == FEATURES[: len(features)], path


def test_its_origin_is_told() -> None:
    """Data with their checksum, whose they are, the command on the page of models, scores; NOTICE has the attribution."""
    training = describe(default_model())["training"]
    assert training["data"]["name"] == "azure2019-d01-pool"
    assert re.fullmatch(r"[0-9a-f]{64}", training["data"]["checksum"])
    assert training["attribution"] == ATTRIBUTION
    assert " ".join(ATTRIBUTION.split()) in " ".join((ROOT / "NOTICE").read_text().split())
    page = (ROOT / "docs" / "models.md").read_text()
    commands = re.findall(r"^mesp predictor train .*$", page, re.MULTILINE)
    typed = [" ".join(re.sub(r"--out \S+", "", line).split()).replace('"', "'") for line in commands]
    assert training["command"] in typed
    assert all(np.isfinite(list(training["next_step_log_loss"].values())))
    assert "mixture" in training["next_step_log_loss"]


def test_it_names_no_place() -> None:
    """No text of it tells where on some machine it was made."""
    for path in default_model().rglob("*.json"):
        assert not re.search(r'"/|[A-Z]:\\\\|/home/|/work/|/tmp/', path.read_text()), path


def test_its_forecasts_are_deterministic_and_sane() -> None:
    """The same steps give the same forecast to the bit; the timer is expected on its minute, and the silent is not."""
    one, two = replayed(120), replayed(120)
    np.testing.assert_array_equal(one.quantiles, two.quantiles)
    np.testing.assert_array_equal(one.active, two.active)
    assert np.isfinite(one.quantiles).all()
    assert (np.diff(one.quantiles, axis=2) >= 0).all()
    on, off = one.active[0, ::5], one.active[0, 1::5]
    assert on.min() > 0.5 > off.max()
    assert one.active[2].max() < 0.2


async def asked(address: str) -> Forecasts:
    """What a sidecar says of functions that it never saw before, after half an hour of them."""
    steps = [StepCounts("one", step * DEFAULT_STEP_MS, DEFAULT_STEP_MS, counts(step)) for step in range(30)]
    async with PredictorClient(address, rng=random.Random(0)) as client:
        assert await client.observe(steps) == []
        return await client.forecast()


def test_the_sidecar_serves_it_unasked() -> None:
    """`mesp predictor serve` without --model says its version when ready, and forecasts functions never seen before."""
    command = [sys.executable, "-m", "mesp", "predictor", "serve", "--port", "0", "--virtual-time"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as sidecar:
        try:
            assert sidecar.stdout is not None
            line = sidecar.stdout.readline()
            assert f": model {describe(default_model())['version']}, 0 functions known" in line
            address = line.removeprefix("predictor ready on ").split(": ")[0]
            forecasts = asyncio.run(asked(address))
            assert set(forecasts.functions) == set(KEYS)
            assert np.isfinite(forecasts.quantiles).all()
        finally:
            sidecar.terminate()
    assert sidecar.returncode == 0


def test_an_installation_without_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One sentence with the place and how a model is made."""
    monkeypatch.setattr(checkpoint, "DEFAULT_MODEL", tmp_path / "default_model")
    with pytest.raises(InputError, match=r"default_model: this installation .* `mesp predictor train` makes one"):
        default_model()
