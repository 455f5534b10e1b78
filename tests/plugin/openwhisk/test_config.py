"""The plugin's settings: the example says the defaults, and a key never shows."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from mesp.config import load_config
from mesp.errors import InputError
from mesp_plugin.openwhisk.config import OpenWhiskConfig
from mesp_plugin.openwhisk.rest import Key

EXAMPLE = Path(__file__).parents[3] / "deploy" / "openwhisk" / "plugin.yaml"
SECRET = "23bc46b1-aaaa:topsecret"


def test_the_example_is_the_defaults() -> None:
    """deploy/openwhisk/plugin.yaml says every key, with its default."""
    assert load_config(EXAMPLE, OpenWhiskConfig) == OpenWhiskConfig()
    said = yaml.safe_load(EXAMPLE.read_text())
    assert said.keys() == OpenWhiskConfig.model_fields.keys()


def test_the_mode_is_written_as_it_is_said(tmp_path: Path) -> None:
    """To YAML a bare `on` is true."""
    path = tmp_path / "plugin.yaml"
    path.write_text("mode: on\n")
    assert load_config(path, OpenWhiskConfig).mode == "on"


def test_by_default_nothing_is_done_to_anybody() -> None:
    """A plugin started without a thought watches, and only annotated actions could ever be sent a marker."""
    config = OpenWhiskConfig()
    assert (config.mode, config.opt_in.kinds, config.opt_in.functions) == ("shadow", (), ())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("mode: act", "mode = 'act'"),
        ("expiry_s: 0", r"expiry_s = 0, must be in"),
        ("opt_in: {kind: [a]}", "unknown key opt_in.kind"),
        ("insecure: true\nca_file: ca.pem", "insecure and ca_file exclude each other"),
        ("api_host: ftp://h", "api_host: must be http://host:port"),
        ("loop: {placement: {tick_s: 0}}", r"loop\.placement\.tick_s = 0"),
    ],
)
def test_mistakes_are_one_sentence(tmp_path: Path, text: str, words: str) -> None:
    """A wrong key or value is named with what is allowed."""
    path = tmp_path / "plugin.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=words):
        load_config(path, OpenWhiskConfig)


def test_a_key_in_the_url_is_refused_and_not_told(tmp_path: Path) -> None:
    """Whoever writes the key into the API host is told so without seeing it again in a log."""
    path = tmp_path / "plugin.yaml"
    path.write_text(f"api_host: http://{SECRET}@host:3233\n")
    with pytest.raises(InputError) as caught:
        load_config(path, OpenWhiskConfig)
    assert "topsecret" not in str(caught.value)


@pytest.mark.parametrize("text", [SECRET, f"APIHOST=h\nAUTH={SECRET}\n"])
def test_the_key_comes_from_a_file_or_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    """Alone or as in ~/.wskprops; and it has no face."""
    path = tmp_path / "auth"
    path.write_text(text)
    key = Key.read(OpenWhiskConfig(auth_file=path))
    monkeypatch.setenv("MESP_OPENWHISK_AUTH", SECRET)
    assert key == Key.read(OpenWhiskConfig()) == Key(SECRET)
    assert "topsecret" not in repr(key)


def test_no_key_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is missing is named; what was found instead of a key is not told."""
    monkeypatch.delenv("MESP_OPENWHISK_AUTH", raising=False)
    with pytest.raises(InputError, match="MESP_OPENWHISK_AUTH is not set"):
        Key.read(OpenWhiskConfig())
    path = tmp_path / "auth"
    path.write_text("topsecret")
    with pytest.raises(InputError, match="holds no API key") as caught:
        Key.read(OpenWhiskConfig(auth_file=path))
    assert "topsecret" not in str(caught.value)
    with pytest.raises(InputError, match="cannot be read"):
        Key.read(OpenWhiskConfig(auth_file=tmp_path / "none"))
