"""The placement's configuration: its defaults and the rules between keys."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from mesp.config import load_config
from mesp.errors import InputError
from mesp_placement.config import PlacementConfig

if TYPE_CHECKING:
    from pathlib import Path


def test_the_price_of_nothing_set() -> None:
    """Without price and budget the price is 80.5 GB·s; with a budget there is none, it follows."""
    assert PlacementConfig().price_gb_s == 80.5
    assert PlacementConfig(cold_start_price_gb_s=3).price_gb_s == 3
    assert PlacementConfig(memory_budget_mb=512).price_gb_s is None


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "cold_start_price_gb_s: 1\nmemory_budget_mb: 2",
            "cold_start_price_gb_s = 1 and memory_budget_mb = 2, only one of them may be set",
        ),
        ("min_containers: 3\nmax_containers: 2", "max_containers = 2, must be at least min_containers = 3"),
        ("release: all", "release = 'all', input should be 'own' or 'any'"),
        ("max_containers: -1", "max_containers = -1, must be in [0, inf)"),
        ("headroom_share: 1", "headroom_share = 1, must be in [0, 1)"),
    ],
)
def test_mistakes(tmp_path: Path, text: str, sentence: str) -> None:
    """A value out of range and keys that exclude each other are told by name."""
    path = tmp_path / "placement.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as error:
        load_config(path, PlacementConfig)
    assert str(error.value).startswith(f"{path}: {sentence}")
