"""How the plugin connects to Kafka: what is refused before any connection, and that no secret shows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from mesp.config import load_config
from mesp.errors import InputError, UnavailableError
from mesp_plugin.openwhisk.config import KafkaConfig, OpenWhiskConfig
from mesp_plugin.openwhisk.kafka import Message, open_bus, topics
from mesp_plugin.openwhisk.probe import probe
from mesp_plugin.openwhisk.rest import Key, OpenWhiskApi, connect

if TYPE_CHECKING:
    from pathlib import Path

SECRET = "topsecret"
#: Nobody listens on the discard port.
NOBODY = "127.0.0.1:9"


def test_a_message_shows_its_length_alone() -> None:
    """Calls carry API keys."""
    assert repr(Message("invoker0", 5, SECRET.encode())) == "Message(invoker0, 5, 9 bytes)"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{}", "kafka.bootstrap_servers"),
        ("{bootstrap_servers: h, security: tls}", "kafka.security = 'tls'"),
        ("{bootstrap_servers: h, security: sasl_ssl}", "username goes with security"),
        ("{bootstrap_servers: h, username: u}", "username goes with security"),
        ("{bootstrap_servers: h, group: a/b}", "kafka.group = 'a/b'"),
        ("{bootstrap_servers: h, password: x}", "unknown key kafka.password"),
    ],
)
def test_mistakes_are_one_sentence(tmp_path: Path, text: str, words: str) -> None:
    """A wrong key or value is named; a password cannot be written at all."""
    path = tmp_path / "plugin.yaml"
    path.write_text(f"kafka: {text}\n")
    with pytest.raises(InputError, match=words):
        load_config(path, OpenWhiskConfig)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"security": "sasl_plaintext", "username": "u"}, "environment variable MESP_KAFKA_PASSWORD holds no password"),
        ({"security": "sasl_plaintext", "username": "u", "password_file": "absent"}, "absent: cannot be read"),
        ({"security": "ssl", "ca_file": "absent"}, "kafka.ca_file = absent: cannot be read as certificates"),
    ],
)
async def test_what_cannot_be_read_is_named(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], words: str
) -> None:
    """Password and certificates, before any connection."""
    monkeypatch.delenv("MESP_KAFKA_PASSWORD", raising=False)
    with pytest.raises(InputError, match=words):
        await topics(KafkaConfig.model_validate({"bootstrap_servers": NOBODY} | settings))


async def test_nobody_at_home_is_one_sentence(tmp_path: Path) -> None:
    """Host and kind of failure; not the password."""
    (tmp_path / "password").write_text(SECRET)
    config = KafkaConfig(
        bootstrap_servers=NOBODY, security="sasl_plaintext", username="u", password_file=tmp_path / "password"
    )
    with pytest.raises(UnavailableError, match=f"Kafka at {NOBODY} fails: Kafka") as caught:
        async with open_bus(config):
            pass
    assert SECRET not in str(caught.value)
    assert SECRET not in repr(config)


async def test_the_probe_says_why_classic_cannot_be_used() -> None:
    """Without an API, first of all that."""
    config = OpenWhiskConfig(api_host=f"http://{NOBODY}", kafka=KafkaConfig(bootstrap_servers=NOBODY))
    async with connect(config) as session:
        found = await probe(OpenWhiskApi(session, config.api_host, Key("a:b")), config)
    assert found.drivers["classic"] == "the API does not answer, or not for this key"
