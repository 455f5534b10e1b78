"""The example configurations in deploy/ show every setting, with the value that it has when it is left out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from mesp.config import load_config
from mesp_placement.config import PlacementConfig
from mesp_plugin.config import LoopConfig
from mesp_predictor.training import TrainingConfig

if TYPE_CHECKING:
    from pydantic import BaseModel

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
EXAMPLES: dict[str, type[BaseModel]] = {
    "predictor.yaml": TrainingConfig,
    "placement.yaml": PlacementConfig,
    "loop.yaml": LoopConfig,
}


def shown(settings: dict[str, Any]) -> set[str]:
    """Names of all settings, those of nested ones with their path."""
    names = set(settings)
    for name, value in settings.items():
        if isinstance(value, dict):
            names |= {f"{name}.{inner}" for inner in shown(value)}
    return names


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_is_the_defaults(name: str) -> None:
    """The file, parsed, equals the settings that nobody set."""
    assert load_config(DEPLOY / name, EXAMPLES[name]) == EXAMPLES[name]()


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_shows_every_setting(name: str) -> None:
    """No setting is left out of the file, however deep it lies."""
    assert shown(yaml.safe_load((DEPLOY / name).read_text())) == shown(EXAMPLES[name]().model_dump())


def test_every_example_is_checked() -> None:
    """A file added to deploy/ must be added here."""
    assert {path.name for path in DEPLOY.glob("*.yaml")} == set(EXAMPLES)
