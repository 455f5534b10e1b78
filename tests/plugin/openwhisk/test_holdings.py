"""What the plugin added is on disk before it is ordered, and nothing of it is lost silently."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesp.errors import InputError
from mesp.types import FunctionKey
from mesp_plugin.openwhisk.holdings import REMEMBERED_MS, Holding, Holdings, HoldingState, expired

if TYPE_CHECKING:
    from pathlib import Path

HELLO = FunctionKey("guest", "hello")
ONE = Holding("1" * 32, HELLO, "standalone", 1_000, 611_000)
TWO = replace(ONE, marker="2" * 32, until_ms=700_000)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state.json"


def test_a_restart_finds_what_was_there(path: Path) -> None:
    """Items, states and activation ids come back as they were."""
    first = Holdings(path)
    first.add([ONE, TWO])
    first.note([(ONE.marker, HoldingState.HELD)], [(ONE.marker, "a" * 32)])
    again = Holdings(path)
    assert again.all() == first.all() == (replace(ONE, state=HoldingState.HELD, activation_id="a" * 32), TWO)
    assert [item.name for item in path.parent.iterdir()] == ["state.json"]


def test_expired_is_no_longer_held_and_later_forgotten(path: Path) -> None:
    """At its time an order stops counting; its id stays known for as long as its run may be listed."""
    holdings = Holdings(path)
    holdings.add([ONE, TWO])
    assert holdings.expire(610_999) == ()
    assert holdings.expire(611_000) == (ONE,)
    assert holdings.alive() == (TWO,)
    assert holdings.expire(611_001) == ()
    holdings.expire(1_000 + REMEMBERED_MS)
    assert Holdings(path).all() == ()


@given(st.lists(st.integers(0, 100), max_size=9), st.integers(0, 100))
def test_expiry_is_a_matter_of_time_alone(untils: list[int], now_ms: int) -> None:
    """Exactly the items whose time is over are expired."""
    items = [replace(ONE, marker=f"{place:032x}", until_ms=until) for place, until in enumerate(untils)]
    assert expired(items, now_ms) == tuple(item for item in items if item.until_ms <= now_ms)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 2, "items": []}', '{"format": 1, "items": [{}]}'])
def test_a_damaged_file_is_set_aside(path: Path, text: str) -> None:
    """Work goes on with nothing, and the damaged file is kept under another name."""
    path.write_text(text)
    holdings = Holdings(path)
    assert holdings.all() == ()
    assert path.with_name("state.json.damaged").read_text() == text
    holdings.add([ONE])
    assert Holdings(path).all() == (ONE,)


def test_a_state_that_is_unknown_counts_as_damage(path: Path) -> None:
    """A file of another program is not half understood."""
    Holdings(path).add([ONE])
    content = json.loads(path.read_text())
    content["items"][0]["state"] = "melted"
    path.write_text(json.dumps(content))
    assert Holdings(path).all() == ()


def test_released_holds_over_restarts_until_told_otherwise(path: Path) -> None:
    """The flag is set by one process and heeded by another."""
    running = Holdings(path)
    Holdings(path).release()
    assert running.released
    assert Holdings(path).released
    Holdings(path).resume()
    Holdings(path).resume()
    assert not running.released


def test_a_folder_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    """Better at the start than when the first order goes out."""
    with pytest.raises(InputError, match="its folder does not exist"):
        Holdings(tmp_path / "none" / "state.json")
