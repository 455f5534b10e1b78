"""The loop's settings from YAML: defaults, nesting, and mistakes in one sentence."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from mesp.config import load_config
from mesp.errors import InputError
from mesp_plugin.config import LoopConfig

if TYPE_CHECKING:
    from pathlib import Path


def test_an_empty_file_gives_the_defaults(tmp_path: Path) -> None:
    """Nothing has to be set."""
    path = tmp_path / "loop.yaml"
    path.write_text("")
    assert load_config(path, LoopConfig) == LoopConfig()


def test_the_decision_is_nested_and_time_is_said_once(tmp_path: Path) -> None:
    """The tick and the age limit of the decision are the loop's too, in milliseconds."""
    path = tmp_path / "loop.yaml"
    path.write_text("predictor_address: 10.0.0.7:50151\nplacement:\n  tick_s: 2.5\n  stale_after_s: 90\n")
    config = load_config(path, LoopConfig)
    assert (config.predictor_address, config.tick_ms, config.stale_after_ms) == ("10.0.0.7:50151", 2_500, 90_000)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("horizon: -1", "horizon = -1, must be in"),
        ("metrics_port: 70000", "metrics_port = 70000"),
        ("tick: 3", "unknown key tick"),
        ("placement:\n  tick_s: 0", r"placement\.tick_s = 0, must be in"),
    ],
)
def test_mistakes_name_the_key(text: str, words: str, tmp_path: Path) -> None:
    """A value out of range or an unknown key is one sentence with the file, the key and the value."""
    path = tmp_path / "loop.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=words):
        load_config(path, LoopConfig)
