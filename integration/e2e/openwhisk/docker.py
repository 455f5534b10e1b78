"""Containers of a real Docker engine behind the seam of `containers`: made, paused and removed as the invoker does it.

The image is made of the Python that runs this and the runtime shim, which is a whole action proxy: an action's `code` is
Python here. A container is asked over HTTP on the engine's network; a connection refused by one that has just been
started is tried again, as the invoker does. Time is the wall's.

Source: DockerContainer.scala, DockerClient.scala and DockerToActivationLogStore.scala of apache/openwhisk.
"""

from __future__ import annotations

import asyncio
import io
import json
import re
import subprocess
import sys
import sysconfig
import tarfile
from collections import Counter
from contextlib import aclosing, asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import aiohttp

from e2e.openwhisk.containers import Answer
from e2e.servers.docker import IMAGE, running_docker

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator
    from contextlib import AbstractContextManager

    from e2e.openwhisk.containers import Order
    from e2e.openwhisk.model import Json
    from e2e.openwhisk.recording import Recording
    from e2e.servers.docker import Docker

#: What a run ends with, on both streams.
END: Final = "XXX_THE_END_OF_A_WHISK_ACTIVATION_XXX"
#: What recordings tell of a container's life.
_EVENTS: Final = ("create", "start", "pause", "unpause", "kill", "die", "destroy")
#: Real invokers wait 2 s for the end of a run's logs; a loaded machine may take longer.
_LOGS_LIMIT_S: Final = 20
#: So long the server of a container that was started may refuse connections.
_LISTEN_LIMIT_S: Final = 60


class DockerContainers:
    """`Containers` of an engine; its events go to every recording that it shall `tell`."""

    def __init__(self, engine: aiohttp.ClientSession, proxies: aiohttp.ClientSession) -> None:
        self._engine, self._proxies = engine, proxies
        self._events: list[Json] = []
        self._recordings: list[Recording] = []
        self._making: set[asyncio.Task[DockerContainer]] = set()

    # --- As an invoker uses it ----------------------------------------------------------------------------------------

    async def create(self, order: Order) -> DockerContainer:
        """Up, its server perhaps not listening yet; made to the end even where nobody waits for it any more."""
        making = asyncio.create_task(self._make(order))
        self._making.add(making)
        making.add_done_callback(self._making.discard)
        return await asyncio.shield(making)

    async def clear(self, prefix: str) -> None:
        """Destroys every container whose name begins so."""
        await asyncio.gather(*self._making, return_exceptions=True)
        for one in await self.shown():
            if one["Names"][0].removeprefix("/").startswith(prefix):
                await self.remove(one["Id"])

    async def _make(self, order: Order) -> DockerContainer:
        memory = order.memory_mb * 2**20
        limits = {"Memory": memory, "MemorySwap": memory, "CpuShares": order.memory_mb, "PidsLimit": 1024}
        host = {"CapDrop": ["NET_RAW", "NET_ADMIN"], **limits}
        made = await self.call("POST", "containers/create", {"Image": IMAGE, "HostConfig": host}, name=order.name)
        await self.call("POST", f"containers/{made['Id']}/start")
        state = await self.call("GET", f"containers/{made['Id']}/json")
        address = state["NetworkSettings"]["Networks"]["bridge"]["IPAddress"]
        return DockerContainer(self, made["Id"], f"http://{address}:8080")

    # --- The engine ---------------------------------------------------------------------------------------------------

    async def remove(self, container_id: str) -> None:
        """Whatever the container does; nothing, where it is gone or going."""
        try:
            await self.call("DELETE", f"containers/{container_id}", force="1")
        except aiohttp.ClientResponseError as error:
            if error.status not in {404, 409}:
                raise

    async def shown(self) -> list[Json]:
        """All containers, as the engine lists them."""
        found: list[Json] = await self.call("GET", "containers/json", all="1")
        return found

    async def call(self, method: str, path: str, body: Json | None = None, **query: str) -> Any:
        """One request to the engine's API; `aiohttp.ClientResponseError` where it refuses."""
        async with self._engine.request(method, f"/{path}", json=body, params=query) as response:
            content = await response.read()
            return json.loads(content) if content else None

    async def output(self, container_id: str, *, follow: bool = False) -> AsyncGenerator[tuple[int, str], None]:
        """Stream (1 stdout, 2 stderr) and line of what a container printed; with `follow` until it ends."""
        query = {"stdout": "1", "stderr": "1", "follow": str(int(follow))}
        async with self._engine.get(f"/containers/{container_id}/logs", params=query) as response:
            with suppress(asyncio.IncompleteReadError):  # the end
                while True:
                    head = await response.content.readexactly(8)
                    line = await response.content.readexactly(int.from_bytes(head[4:]))
                    yield head[0], line.decode().rstrip("\n")

    async def post(self, url: str, body: Json) -> Answer:
        """To a container's server."""
        deadline = asyncio.get_running_loop().time() + _LISTEN_LIMIT_S
        while True:
            try:
                async with self._proxies.post(url, json=body) as response:
                    content = json.loads(await response.read())
                    return Answer(response.status, content if isinstance(content, dict) else None)
            except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError):
                if asyncio.get_running_loop().time() > deadline:
                    raise
                await asyncio.sleep(0.02)
            except aiohttp.ClientError:  # it ended meanwhile
                return Answer(0, None)

    # --- What it tells ------------------------------------------------------------------------------------------------

    def tell(self, recording: Recording) -> None:
        """Writes lines of src ``docker``: what was, and what will be."""
        self._recordings.append(recording)
        for event in self._events:
            _write(event, recording)

    async def listen(self, told: aiohttp.ClientResponse) -> None:
        """Takes the engine's events, for ever."""
        async for line in told.content:
            event = json.loads(line)
            self._events.append(event)
            for recording in self._recordings:
                _write(event, recording)


def _write(event: Json, recording: Recording) -> None:
    actor = event["Actor"]
    recording.docker(event["Action"], actor["ID"], actor["Attributes"]["name"], event["timeNano"] // 10**6)


class DockerContainer:
    """One of `DockerContainers`."""

    def __init__(self, engine: DockerContainers, container_id: str, url: str) -> None:
        self.id = container_id
        self._engine, self._url = engine, url
        self._runs = 0

    async def init(self, body: Json) -> Answer:
        """POST /init."""
        return await self._engine.post(f"{self._url}/init", body)

    async def run(self, body: Json) -> Answer:
        """POST /run."""
        return await self._engine.post(f"{self._url}/run", body)

    async def logs(self, activation_id: str) -> None:  # noqa: ARG002 (runs are told apart by their number)
        """Returns once the run has printed its end on both streams, or the container has ended."""
        self._runs += 1
        ends: Counter[int] = Counter()
        with suppress(TimeoutError):
            async with asyncio.timeout(_LOGS_LIMIT_S):
                async with aclosing(self._engine.output(self.id, follow=True)) as lines:
                    async for stream, line in lines:
                        ends[stream] += line == END
                        if min(ends[1], ends[2]) >= self._runs:
                            return

    async def pause(self) -> None:
        """Freezes its processes."""
        await self._engine.call("POST", f"containers/{self.id}/pause")

    async def unpause(self) -> None:
        """Lets them go on."""
        await self._engine.call("POST", f"containers/{self.id}/unpause")

    async def destroy(self) -> None:
        """Removes it, whatever it does."""
        await self._engine.remove(self.id)


@asynccontextmanager
async def docker_containers(docker: Docker) -> AsyncIterator[DockerContainers]:
    """Containers of that engine, for one event loop."""
    unlimited = aiohttp.ClientTimeout(total=None)
    # An address goes from a container that ended to the next one: no connection is kept.
    fresh = aiohttp.TCPConnector(force_close=True)
    there = aiohttp.UnixConnector(str(docker.path))
    async with (
        aiohttp.ClientSession("http://docker", connector=there, timeout=unlimited, raise_for_status=True) as engine,
        aiohttp.ClientSession(connector=fresh, timeout=aiohttp.ClientTimeout(total=None, sock_connect=2)) as proxies,
    ):
        filters = json.dumps({"type": ["container"], "event": _EVENTS})
        told = await engine.get("/events", params={"filters": filters})
        containers = DockerContainers(engine, proxies)
        listening = asyncio.create_task(containers.listen(told))
        try:
            yield containers
        finally:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)
            told.close()


# --- The image --------------------------------------------------------------------------------------------------------

_SHIM = Path(__file__).parents[3] / "deploy" / "openwhisk" / "shim" / "mesp_shim.py"
#: Half of the standard library's bytes, of which actions hardly want any.
_LEFT_OUT = re.compile(
    r"/(site-packages|dist-packages|tests?|idlelib|_?tkinter.*|ensurepip|lib2to3|config-.*|.*\.opt-.\.pyc)$"
)


def running_runtime(folder: Path) -> AbstractContextManager[Docker]:
    """An engine whose image is a runtime for Python actions."""
    python = Path(sys.executable).resolve()
    libraries = _libraries(python)
    paths = ":".join(sorted({str(Path(path).parent) for path in libraries}))
    command = json.dumps([str(python), "-u", f"/{_SHIM.name}"])
    return running_docker(folder, _archive(python, libraries), f"ENV LD_LIBRARY_PATH={paths}", f"CMD {command}")


def _archive(python: Path, libraries: list[str]) -> bytes:
    """This Python, what it is linked with, its standard library, and the shim."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        for path in (str(python), *libraries):
            archive.add(Path(path).resolve(), path)
        archive.add(sysconfig.get_path("stdlib"), filter=lambda one: None if _LEFT_OUT.search(one.name) else one)
        archive.add(_SHIM, _SHIM.name)
        folder = tarfile.TarInfo("tmp")
        folder.type, folder.mode = tarfile.DIRTYPE, 0o1777
        archive.addfile(folder)
    return content.getvalue()


def _libraries(python: Path) -> list[str]:
    """Shared ones of the interpreter and its modules."""
    modules = Path(sysconfig.get_path("stdlib"), "lib-dynload").glob("*.so")
    wanted = [str(module) for module in modules if not _LEFT_OUT.search(str(module))]
    told = subprocess.run(["ldd", python, *wanted], capture_output=True, text=True, check=False).stdout
    return sorted(set(re.findall(r"(?:=> |^\s+)(/\S+) \(", told, re.MULTILINE)))
