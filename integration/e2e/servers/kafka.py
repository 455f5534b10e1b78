"""A real Kafka broker: from Maven Central, one node in KRaft mode, as OpenWhisk's own deployment sets it.

Topics are never made by themselves (``auto.create.topics.enable=false``). A broker that was killed may come back at once:
the controller forgets its former life after 3 s, not 9 s. One broker listens three times, so that
every way of connecting meets the same topics: plain, with a password (SASL/PLAIN), and with a password inside TLS.
"""

from __future__ import annotations

import shutil
import ssl
import subprocess
import tempfile
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from e2e.servers.process import Server, cache_dir, certificate, free_ports, listens, running, unavailable

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Of the 3.9 line, with which the golden traces were recorded; Java 17 runs it.
VERSION: Final = "3.9.1"
USER: Final = "mesp"
PASSWORD: Final = "mesp-secret"

_POM: Final = f"""<project xmlns="http://maven.apache.org/POM/4.0.0"><modelVersion>4.0.0</modelVersion>
<groupId>mesp.test</groupId><artifactId>kafka</artifactId><version>1</version><packaging>pom</packaging><dependencies>
<dependency><groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId><version>{VERSION}</version></dependency>
<dependency><groupId>org.slf4j</groupId><artifactId>slf4j-reload4j</artifactId><version>1.7.36</version></dependency>
</dependencies></project>
"""
_COPY: Final = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies"
_LOGGING: Final = """log4j.rootLogger=WARN, stdout
log4j.appender.stdout=org.apache.log4j.ConsoleAppender
log4j.appender.stdout.layout=org.apache.log4j.PatternLayout
log4j.appender.stdout.layout.ConversionPattern=[%d] %p %m (%c)%n
"""
_SETTINGS: Final = """process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{quorum}
listeners=PLAIN://127.0.0.1:{plain},SASL://127.0.0.1:{sasl},TLS://127.0.0.1:{tls},QUORUM://127.0.0.1:{quorum}
advertised.listeners=PLAIN://127.0.0.1:{plain},SASL://127.0.0.1:{sasl},TLS://127.0.0.1:{tls}
listener.security.protocol.map=PLAIN:PLAINTEXT,SASL:SASL_PLAINTEXT,TLS:SASL_SSL,QUORUM:PLAINTEXT
controller.listener.names=QUORUM
inter.broker.listener.name=PLAIN
sasl.enabled.mechanisms=PLAIN
listener.name.sasl.plain.sasl.jaas.config={jaas}
listener.name.tls.plain.sasl.jaas.config={jaas}
ssl.keystore.type=PEM
ssl.keystore.location={keystore}
log.dirs={data}
auto.create.topics.enable=false
num.partitions=1
offsets.topic.replication.factor=1
offsets.topic.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
group.initial.rebalance.delay.ms=0
broker.session.timeout.ms=3000
broker.heartbeat.interval.ms=500
num.network.threads=2
num.io.threads=2
log.cleaner.enable=false
"""
_JAAS: Final = (
    "org.apache.kafka.common.security.plain.PlainLoginModule required "
    f'username="{USER}" password="{PASSWORD}" user_{USER}="{PASSWORD}";'
)
_JAVA: Final = ("java", "-Xms256m", "-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")


@dataclass(frozen=True)
class Kafka:
    """A broker that runs; `plain`, `sasl` and `tls` are bootstrap addresses."""

    server: Server
    plain: str
    sasl: str
    tls: str
    authority: Path

    def sasl_options(self) -> dict[str, Any]:
        """What an aiokafka client needs to connect with a password."""
        return {
            "bootstrap_servers": self.sasl,
            "security_protocol": "SASL_PLAINTEXT",
            "sasl_mechanism": "PLAIN",
            "sasl_plain_username": USER,
            "sasl_plain_password": PASSWORD,
        }

    def tls_options(self) -> dict[str, Any]:
        """What an aiokafka client needs to connect with a password inside TLS."""
        context = ssl.create_default_context(cafile=str(self.authority))
        address = {"bootstrap_servers": self.tls, "security_protocol": "SASL_SSL", "ssl_context": context}
        return self.sasl_options() | address


@contextmanager
def running_kafka(folder: Path) -> Iterator[Kafka]:
    """A broker with an empty log in `folder`, while the block runs."""
    classpath = f"{_libraries()}/*"
    plain, sasl, tls, quorum = free_ports(4)
    chain, key = certificate(folder)
    keystore, settings, logging = (folder / name for name in ("keystore.pem", "server.properties", "log4j.properties"))
    keystore.write_text(key.read_text() + chain.read_text())
    logging.write_text(_LOGGING)
    ports = {"plain": plain, "sasl": sasl, "tls": tls, "quorum": quorum}
    settings.write_text(_SETTINGS.format(**ports, jaas=_JAAS, keystore=keystore, data=folder / "data"))
    java = [*_JAVA, f"-Dlog4j.configuration=file:{logging}", "-cp", classpath]
    identity = ["-t", "mesp-tests-cluster-id0", "-c", str(settings)]
    subprocess.run([*java, "kafka.tools.StorageTool", "format", *identity], check=True, capture_output=True)
    command: list[str | Path] = [*java, "kafka.Kafka", settings]
    with running(command, folder / "kafka.log", lambda: all(map(listens, (plain, sasl, tls)))) as server:
        yield Kafka(server, f"127.0.0.1:{plain}", f"127.0.0.1:{sasl}", f"127.0.0.1:{tls}", chain)


def _libraries() -> Path:
    """The folder with the broker's jars; they are downloaded once (about 50 MB)."""
    if missing := [tool for tool in ("java", "mvn") if shutil.which(tool) is None]:
        unavailable(f"A real Kafka needs Java 17 and Maven; not found: {', '.join(missing)}.")
    libraries = cache_dir() / f"kafka-{VERSION}"
    if libraries.is_dir():
        return libraries
    with tempfile.TemporaryDirectory(dir=libraries.parent) as name:
        folder = Path(name)
        (folder / "pom.xml").write_text(_POM)
        repository = f"-Dmaven.repo.local={folder / 'repository'}"  # kept nowhere else
        fetch = ["mvn", "-q", "-B", repository, _COPY, f"-DoutputDirectory={folder / 'libraries'}"]
        done = subprocess.run(fetch, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            unavailable(f"Kafka {VERSION} could not be fetched from Maven Central: {done.stdout[-300:].strip()}")
        with suppress(OSError):  # another run was quicker
            (folder / "libraries").rename(libraries)
    return libraries
