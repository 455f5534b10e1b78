"""Names: which function a message speaks of, whoever owns the action."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesp.errors import InputError
from mesp.types import FunctionKey
from mesp_plugin.openwhisk.fields import Fields
from mesp_plugin.openwhisk.names import NAME, ActionName, action_path, function_key, read_action_name

NAMES = st.from_regex(r"\A[A-Za-z0-9_]([A-Za-z0-9_@ .&-]{0,6}[A-Za-z0-9_@.&-])?\Z")


@pytest.mark.parametrize(
    ("path", "name", "key"),
    [
        ("guest", "hello", "hello"),
        ("guest/pkg", "hello", "pkg/hello"),
        ("whisk.system/utils", "echo", "/whisk.system/utils/echo"),
        ("guest2", "hello", "/guest2/hello"),
    ],
)
def test_the_key_is_the_callers_namespace_and_the_action_as_it_is_called_from_there(
    path: str, name: str, key: str
) -> None:
    """An own action without its namespace, a foreign one in full: 'utils/echo' of one's own is another function."""
    assert function_key("guest", ActionName(path, name, "0.0.7").full_name) == FunctionKey("guest", key)


def test_a_binding_does_not_show_in_the_key() -> None:
    """Called through guest/mine, which leads to whisk.system/utils: the containers are those of the latter."""
    read = read_action_name(
        Fields("m", {"path": "whisk.system/utils", "name": "echo", "version": "0.0.1", "binding": "guest/mine"})
    )
    assert read.binding == "guest/mine"
    assert function_key("guest", read.full_name) == FunctionKey("guest", "/whisk.system/utils/echo")
    assert read.to_json() == {
        "path": "whisk.system/utils", "name": "echo", "version": "0.0.1", "binding": "guest/mine",
    }  # fmt: skip


@given(caller=NAMES, path=st.lists(NAMES, min_size=1, max_size=2), name=NAMES)
def test_keys_are_as_distinct_as_what_they_name(caller: str, path: list[str], name: str) -> None:
    """The action's full name comes back from the key."""
    full_name = "/".join([*path, name])
    assert action_path(function_key(caller, full_name)) == full_name


@pytest.mark.parametrize("name", ["", " a", "a ", "a/b", "é", "a\n", "-a", "a" * 257, "a\x00"])
def test_names_that_the_platform_refuses_are_refused(name: str) -> None:
    """EntityName's rule: word characters of ASCII, no space at either end, 256 characters."""
    assert not NAME.allows(name)
    with pytest.raises(InputError, match=r"^m: name must be a name of letters"):
        read_action_name(Fields("m", {"path": "guest", "name": name}))


@pytest.mark.parametrize("name", ["a", "_", "9", "a b", "a@b.c&d-e", "a" * 256, "a-"])
def test_names_that_the_platform_takes_are_taken(name: str) -> None:
    """The same rule from its other side; slashes that part nothing are dropped from paths."""
    assert read_action_name(Fields("m", {"path": "/guest//pkg/", "name": name})) == ActionName("guest/pkg", name)
