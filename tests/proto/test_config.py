"""Configuration files: what is read, and each mistake's sentence."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Annotated

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field

from mesp.config import load_config
from mesp.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path


class Inner(BaseModel):
    """A nested part."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)
    share: Annotated[float, Field(ge=0, lt=1)] = 0.1


class Outer(BaseModel):
    """A configuration."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)
    tick_s: Annotated[float, Field(gt=0, le=3600)] = 10.0
    name: str = "mesp"
    inner: Inner = Inner()


def test_a_file_overrides_the_defaults(tmp_path: Path) -> None:
    """What a file says holds, the rest keeps its default; an empty file says nothing."""
    path = tmp_path / "c.yaml"
    path.write_text("tick_s: 5\ninner: {share: 0.5}\n")
    assert load_config(path, Outer) == Outer(tick_s=5, inner=Inner(share=0.5))
    path.write_text("# nothing\n")
    assert load_config(path, Outer) == Outer()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("tick_s: -1", "tick_s = -1, must be in (0, 3600]"),
        ("tick_s: .nan", "tick_s = nan, must be in (0, 3600]"),
        ("tick_s: soon", "tick_s = 'soon', must be in (0, 3600]"),
        ("inner: {share: 1}", "inner.share = 1, must be in [0, 1)"),
        ("name: [1]", "name = [1], input should be a valid string"),
        ("tick: 5", "unknown key tick, allowed are tick_s, name, inner"),
        ("inner: {part: 1}", "unknown key inner.part, allowed are share"),
        ("tick_s: 0\nname: 3", "tick_s = 0, must be in (0, 3600] (and 1 more)"),
        ("- 1", "holds a list, must be a mapping of keys to values"),
        ("a: [", "not valid YAML"),
    ],
)
def test_each_mistake_is_one_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    """A mistake names the file, the key, the value and what is allowed."""
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as error:
        load_config(path, Outer)
    assert str(error.value).startswith(f"{path}: {sentence}")
    assert "\n" not in str(error.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """A file that is not there is bad input, by name."""
    with pytest.raises(InputError, match=r"c\.yaml: cannot be read: No such file"):
        load_config(tmp_path / "c.yaml", Outer)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
def test_no_file_raises_anything_else(tmp_path: Path, content: bytes) -> None:
    """Whatever the bytes, the file is read or refused as bad input."""
    path = tmp_path / "c.yaml"
    path.write_bytes(content)
    with suppress(InputError):
        load_config(path, Outer)
