"""The map file: which entry a function has, what its placeholders become, and what is told of mistakes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from mesp.config import load_config
from mesp.errors import InputError
from mesp.types import FunctionKey
from mesp_bench.replay.functions import ActionMap, HttpMap, fill_body, fill_name, function_id

if TYPE_CHECKING:
    from pathlib import Path

KEY = FunctionKey("owner", "app/f 1")


def write(tmp_path: Path, text: str) -> Path:
    (tmp_path / "map.yaml").write_text(text)
    return tmp_path / "map.yaml"


def test_an_entry_is_found_by_key_then_by_id_then_by_default(tmp_path: Path) -> None:
    """The nearest entry wins."""
    other, third = FunctionKey("owner", "g"), FunctionKey("owner", "h")
    text = f"functions:\n  owner/app/f 1: {{action: by-key}}\n  {function_id(other)}: {{action: by-id}}\n"
    entries = load_config(write(tmp_path, text), ActionMap).entries([KEY, other, third], None)
    assert [entry.action for entry in entries.values()] == ["by-key", "by-id", "f-{id}"]


def test_a_function_without_an_entry_is_told(tmp_path: Path) -> None:
    """One sentence names the file and the function."""
    path = write(tmp_path, "functions:\n  other: {url: http://host/}\n")
    with pytest.raises(InputError, match=r"map.yaml: function owner/app/f 1 \(id [0-9a-f]{12}\) has no entry"):
        load_config(path, HttpMap).entries([KEY], path)


def test_placeholders_are_filled_and_escaped_in_urls() -> None:
    """A name cannot add a query or leave the path's place."""
    hostile = FunctionKey("o", "f?x=1#y z")
    assert fill_name("http://h/{scope}/{name}", hostile, escape=True) == "http://h/o/f%3Fx%3D1%23y%20z"
    assert fill_name("{name}-{id}", KEY) == f"app/f 1-{function_id(KEY)}"


def test_run_times_become_numbers_in_bodies() -> None:
    """Alone a number, inside a text a part of it, however deep."""
    body = {"ms": "{run_ms}", "say": ["{name} runs {run_ms} ms", 7, None]}
    assert fill_body(body, KEY, 12.3456) == {"ms": 12.346, "say": ["app/f 1 runs 12 ms", 7, None]}


def test_ids_are_short_and_the_same_everywhere() -> None:
    """They are written into deployments: a change of the digest would orphan every deployed function."""
    assert function_id(FunctionKey("owner", "f")) == "66d1c57c4a99"
    assert function_id(FunctionKey("a", "bc")) != function_id(FunctionKey("ab", "c"))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("default: {url: ftp://h/}", "default.url = 'ftp://h/'"),
        ("default: {url: 'http://user:pw@h/'}", "default.url"),
        (
            "default: {url: 'http://h/{nme}'}",
            "{nme} in 'http://h/{nme}' is no placeholder, allowed are id, name, scope",
        ),
        ("default: {url: 'http://h/{run_ms}'}", "{run_ms}"),
        ("default: {url: http://h/, body: {a: ['{b}']}}", "{b} in '{b}' is no placeholder"),
        ("default: {url: http://h/, methd: GET}", "unknown key default.methd"),
        ("default: {url: http://h/}\ncold: {}", "cold: must name either header or field"),
        ("default: {url: http://h/, known_as: x}", "default.known_as = 'x'"),
    ],
)
def test_mistakes_are_told(text: str, told: str, tmp_path: Path) -> None:
    """File, key and value are in the sentence."""
    with pytest.raises(InputError) as raised:
        load_config(write(tmp_path, text), HttpMap)
    assert "map.yaml: " in str(raised.value)
    assert told in str(raised.value)
