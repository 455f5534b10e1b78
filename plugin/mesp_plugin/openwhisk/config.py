"""What an operator may set for the plugin beside OpenWhisk.

The API key is named, never written here: a file or an environment variable holds it, and no command takes it as an
argument.
"""

from __future__ import annotations

from pathlib import Path  # pydantic reads annotations when it runs
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from mesp_plugin.config import LoopConfig


class OptIn(BaseModel):
    """Which functions may be sent a marker. By default only those whose author annotated them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    annotation: Annotated[str, Field(min_length=1)] | None = Field(
        default="mesp-prewarm", description="An action with this annotation set to true has opted in; null: none has."
    )
    kinds: tuple[str, ...] = Field(
        default=(), description="Kinds whose runtime image answers the marker (deploy/openwhisk/shim), as python:3."
    )
    functions: tuple[str, ...] = Field(
        default=(), description="The operator's own rule: patterns of namespace/name, as guest/thumb*."
    )


class KafkaConfig(BaseModel):
    """The platform's bus; without it there is only REST. The password is named here, never written."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    bootstrap_servers: Annotated[str, Field(min_length=1)] = Field(description="host:port of brokers, commas between.")
    security: Literal["plaintext", "ssl", "sasl_plaintext", "sasl_ssl"] = Field(
        default="plaintext", description="As Kafka's security.protocol; sasl: user and password (PLAIN)."
    )
    ca_file: Path | None = Field(default=None, description="Certificates to trust, PEM; null: the system's.")
    username: str | None = Field(default=None, description="For sasl_plaintext and sasl_ssl.")
    password_env: Annotated[str, Field(min_length=1)] = Field(
        default="MESP_KAFKA_PASSWORD", description="Environment variable with the password."
    )
    password_file: Path | None = Field(default=None, description="File with the password instead.")
    prefix: str = Field(default="", description="Of every topic: whisk.kafka.topics.prefix.")
    group: Annotated[str, Field(pattern=r"^[a-zA-Z0-9._-]{1,64}$")] = Field(
        default="mesp", description="Plugins of one name report as one source, and one of them acts."
    )
    stem_cells_mb: Annotated[float, Field(ge=0)] = Field(
        default=0.0, description="Memory of each invoker's stem cells, MB: the bus does not tell it."
    )

    early_removal: bool = Field(
        default=False,
        description="classic: end what MESP holds too much of, by markers that fail; each is a failed run to the users.",
    )

    @model_validator(mode="after")
    def _named_user(self) -> Self:
        if ("sasl" in self.security) != (self.username is not None):
            raise ValueError("username goes with security: sasl_plaintext or sasl_ssl, and with these only")
        return self


class EtcdConfig(BaseModel):
    """Where an FPC deployment keeps its facts. The password is named here, never written."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    endpoints: Annotated[tuple[str, ...], Field(min_length=1)] = Field(
        description="http(s)://host:port of its members."
    )
    ca_file: Path | None = Field(default=None, description="Certificates to trust, PEM; null: the system's.")
    username: str | None = Field(default=None, description="null: etcd asks nobody who he is.")
    password_env: Annotated[str, Field(min_length=1)] = Field(
        default="MESP_ETCD_PASSWORD", description="Environment variable with the password."
    )
    password_file: Path | None = Field(default=None, description="File with the password instead.")
    cluster: Annotated[str, Field(pattern=r"^[a-zA-Z0-9._-]{1,64}$")] = Field(
        default="whisk", description="What every key begins with: whisk.cluster.name."
    )

    @field_validator("endpoints")
    @classmethod
    def _hosts_alone(cls, urls: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(_host_alone(url) for url in urls)


class FpcConfig(BaseModel):
    """Our own ActivationService, which the containers that MESP orders (FPC) ask for their calls."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    host: Annotated[str, Field(min_length=1)] = Field(
        default="127.0.0.1", description="By which every invoker reaches this machine."
    )
    port: Annotated[int, Field(ge=1, le=65_535)] = Field(default=50_161, description="The same.")
    listen: Annotated[str, Field(min_length=1)] = Field(
        default="127.0.0.1", description="Address to listen on; 0.0.0.0: all. The protocol has neither TLS nor keys."
    )
    hold_s: Annotated[float, Field(ge=10, le=3_600)] = Field(
        default=60.0, description="An opted-in function's container whose call is near is paused after so long."
    )
    namespace_limit: Annotated[int, Field(ge=1)] = Field(
        default=30, description="A namespace's containers where nobody told: whisk's limit on concurrent invocations."
    )


class OpenWhiskConfig(BaseModel):
    """Settings of the plugin; the loop's own are nested under `loop`."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    api_host: str = Field(default="http://127.0.0.1:3233", description="http(s)://host:port of the API.")
    auth_env: Annotated[str, Field(min_length=1)] = Field(
        default="MESP_OPENWHISK_AUTH", description="Environment variable with the API key, uuid:secret."
    )
    auth_file: Path | None = Field(
        default=None, description="File with the key instead, alone or as AUTH=..., as in ~/.wskprops."
    )
    ca_file: Path | None = Field(default=None, description="Certificates to trust, PEM.")
    insecure: bool = Field(default=False, description="Take any TLS certificate.")
    namespace: Annotated[str, Field(min_length=1)] = Field(
        default="_", description="Whose functions to watch; _: the key's own namespace."
    )
    driver: Literal["auto", "standalone", "classic", "fpc"] = Field(
        default="auto", description="How to act; auto: what the probe finds."
    )
    mode: Literal["shadow", "on"] = Field(
        default="shadow", description="shadow: everything but acting, with a report of what would have been done."
    )
    state_file: Path = Field(
        default=Path("mesp-openwhisk.json"), description="What was added, until when: survives a restart."
    )
    opt_in: OptIn = Field(default_factory=OptIn, description="Who may be sent a marker.")
    lead_ms: Annotated[float, Field(ge=0, le=600_000)] = Field(
        default=600.0, description="From a marker to a warm container, ms."
    )
    expiry_s: Annotated[float, Field(gt=0, le=86_400)] = Field(
        default=610.0, description="What was added counts as MESP's for so long; 610: the platform's own keep-alive."
    )
    pool_memory_mb: Annotated[float, Field(gt=0)] = Field(
        default=1024.0,
        description="Memory of the container pool, MB (standalone: CONFIG_whisk_containerPool_userMemory).",
    )
    limits_margin_share: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.25, description="Share of the namespace's limits that markers leave free beyond its users' calls."
    )
    kafka: KafkaConfig | None = Field(default=None, description="The bus of a classic or FPC deployment.")
    etcd: EtcdConfig | None = Field(default=None, description="The facts of an FPC deployment.")
    fpc: FpcConfig = Field(default_factory=FpcConfig, description="What FPC's containers are told to ask.")
    loop: LoopConfig = Field(default_factory=LoopConfig, description="Predictor, ticks, and the decision.")

    @field_validator("api_host")
    @classmethod
    def _api_host_alone(cls, url: str) -> str:
        return _host_alone(url)

    @field_validator("mode", mode="before")
    @classmethod
    def _on_is_a_word(cls, said: object) -> object:
        return "on" if said is True else said  # to YAML 1.1 a bare on is true

    @model_validator(mode="after")
    def _one_way_to_check(self) -> Self:
        if self.insecure and self.ca_file:
            raise ValueError("insecure and ca_file exclude each other: certificates are checked, or they are not")
        return self

    @property
    def expiry_ms(self) -> int:
        """`expiry_s` in ms."""
        return round(self.expiry_s * 1e3)


def _host_alone(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.path.strip("/") or "@" in parts.netloc:
        # The value is not told: somebody may have put a key into it.
        raise ValueError("must be http://host:port or https://host:port, without a path and without a key")
    return f"{parts.scheme}://{parts.netloc}"
