"""What is there, and what could be done with it: the look before the plugin starts, and the answer for whoever wonders.

Every question is asked by itself: what one of them cannot find out does not hide what the others can.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from mesp.errors import MespError, UnavailableError
from mesp_plugin.openwhisk.actions import Actions
from mesp_plugin.openwhisk.etcd import open_etcd
from mesp_plugin.openwhisk.kafka import topics

if TYPE_CHECKING:
    from mesp_plugin.openwhisk.config import OpenWhiskConfig
    from mesp_plugin.openwhisk.rest import OpenWhiskApi

_SILENT = "the API does not answer, or not for this key"
_INVOKER = re.compile(r"invoker\d+")


@dataclass(frozen=True, slots=True)
class Probe:
    """What was found; None where a question had no answer.

    Attributes:
        namespace: the one that is watched.
        calls_per_minute: its limit; `calls_at_once` likewise.
        gauges: the pool shows its memory. (A platform that just started does so after half a minute.)
        invokers: registered ones; 0 in standalone.
        opted_in: by function, the rule by which it may be sent markers.
        drivers: by name, the best first, why it cannot be used; None: it can.
        may_pass: those of them for which this may be otherwise in a moment, if all has just been started.
        trouble: what could not be found out, a sentence each.
    """

    api_host: str
    namespace: str | None = None
    calls_per_minute: int | None = None
    calls_at_once: int | None = None
    gauges: bool = False
    in_flight: int | None = None
    invokers: int | None = None
    actions: int | None = None
    opted_in: dict[str, str] = field(default_factory=dict)
    drivers: dict[str, str | None] = field(default_factory=dict)
    may_pass: frozenset[str] = frozenset()
    trouble: tuple[str, ...] = ()

    @property
    def driver(self) -> str | None:
        """The best driver that can be used; None also while a better one may come to be."""
        sure = (name for name, why_not in self.drivers.items() if why_not is None or name in self.may_pass)
        best = next(sure, None)
        return None if best in self.may_pass else best

    def to_json(self) -> dict[str, Any]:
        """All of it, with the driver that would be used."""
        return asdict(self) | {"may_pass": sorted(self.may_pass), "driver": self.driver}

    def lines(self) -> list[str]:
        """The same for people."""
        said = [f"API host   {self.api_host}", f"namespace  {_or(self.namespace, 'unknown')}"]
        if self.calls_per_minute is not None:
            said.append(f"limits     {self.calls_per_minute} calls a minute, {self.calls_at_once} at once")
        said.append(f"metrics    {'the pool shows its memory' if self.gauges else 'no gauges of the pool (yet)'}")
        said.append(f"in flight  {_or(self.in_flight, 'unknown')}")
        said.append(
            f"invokers   {_or(self.invokers, 'unknown')}{' (standalone has none)' if self.invokers == 0 else ''}"
        )
        said.append(f"actions    {_or(self.actions, 'unknown')}, {len(self.opted_in)} opted in to markers")
        said += [f"           {name}: {rule}" for name, rule in sorted(self.opted_in.items())]
        said += [f"driver     {name}: {why_not or 'can be used'}" for name, why_not in self.drivers.items()]
        return said + [f"trouble    {sentence}" for sentence in self.trouble]


async def probe(api: OpenWhiskApi, config: OpenWhiskConfig) -> Probe:
    """Asks the platform; never raises for what it answers."""
    found: dict[str, Any] = {"api_host": api.host}
    trouble: list[MespError] = []
    try:
        names = await api.namespaces()
        found["namespace"] = own = names[0] if config.namespace == "_" and names else config.namespace
        limits = await api.limits()
        found |= {"calls_per_minute": limits.per_minute, "calls_at_once": limits.concurrent}
        actions = Actions(api, own, config.opt_in)
        await actions.refresh()
        found["actions"] = len(actions.known)
        found["opted_in"] = {str(one.function): one.opted_in_by for one in actions.known.values() if one.opted_in_by}
    except MespError as error:
        trouble.append(error)
    try:
        found["gauges"] = await api.gauges() is not None
        found["in_flight"] = len(await api.in_flight())
        found["invokers"] = len(await api.invokers())
    except MespError as error:
        trouble.append(error)
    silent = any(isinstance(error, UnavailableError) for error in trouble)
    sentences = tuple(str(error) for error in trouble)
    drivers: dict[str, str | None] = dict.fromkeys(("fpc", "classic", "standalone"), _SILENT)
    if "actions" not in found:
        return Probe(**found, drivers=drivers, may_pass=frozenset(drivers if silent else ()), trouble=sentences)
    may_pass = set()
    asked = _why_not_fpc(config), _why_not_classic(config), _why_not_standalone(found, silent=silent)
    for name, why_not in zip(drivers, asked, strict=True):
        try:
            drivers[name] = await why_not
        except UnavailableError as error:
            drivers[name] = str(error)
            may_pass.add(name)
        except MespError as error:
            drivers[name] = str(error)
    return Probe(**found, drivers=drivers, may_pass=frozenset(may_pass), trouble=sentences)


# Why a driver cannot be used; `UnavailableError` where that may pass.


async def _why_not_fpc(config: OpenWhiskConfig) -> str | None:
    if config.kafka is None or config.etcd is None:
        return f"{'kafka' if config.kafka is None else 'etcd'} is null in the configuration"
    there = await topics(config.kafka)
    async with open_etcd(config.etcd) as etcd:
        schedulers, _ = await etcd.look(f"{config.etcd.cluster}/scheduler/")
    if not any(name.startswith("scheduler") for name in there):
        raise UnavailableError(
            f"Kafka at {config.kafka.bootstrap_servers} has no topic {config.kafka.prefix}schedulerN"
        )
    if not schedulers:
        raise UnavailableError(f"etcd has no living scheduler below {config.etcd.cluster}/scheduler/")
    return None


async def _why_not_classic(config: OpenWhiskConfig) -> str | None:
    if config.kafka is None:
        return "kafka is null in the configuration"
    there = await topics(config.kafka)
    if not any(_INVOKER.fullmatch(name) for name in there):
        raise UnavailableError(f"Kafka at {config.kafka.bootstrap_servers} has no topic {config.kafka.prefix}invokerN")
    if any(name.startswith("scheduler") for name in there):
        return "there are topics of schedulers: invokers fetch calls from them, not from Kafka"
    return None


async def _why_not_standalone(found: dict[str, Any], *, silent: bool) -> str | None:
    if "in_flight" not in found:
        sentence = "GET /activation does not answer: calls in flight cannot be seen"
        if silent:
            raise UnavailableError(sentence)
        return sentence
    if found.get("invokers"):
        return f"{found['invokers']} invokers are registered: markers by REST cannot choose among nodes"
    return None


def _or(value: object, otherwise: str) -> object:
    return otherwise if value is None else value
