"""An ASGI application under a list of requests, sent to it in this process: no server, no network.

The event loop and the application live as long as a server's would: start-up and shutdown (the lifespan protocol,
https://asgi.readthedocs.io/en/latest/specs/lifespan.html) run once, outside of the timing; each timed run sends all requests.
"""

import asyncio
import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, JsonValue, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from .runnable import FunctionKey, ProfilingError, Runnable, describe
from .targets import Target, resolve, target_name, unwrap

_LONGEST_SHUTDOWN_S = 10.0


@dataclass(config=ConfigDict(extra="forbid"))
class AsgiRequest:
    """A request of the script, with `json` or `body`."""

    path: str
    method: str = "GET"
    headers: dict[str, str] | None = None
    json: JsonValue = None
    body: str | None = None

    def __post_init__(self) -> None:
        if self.json is not None and self.body is not None:
            raise ValueError("json and body exclude each other")

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


def load_requests(requests: str | os.PathLike | Sequence[Mapping[str, Any]]) -> list[AsgiRequest]:
    """From a JSON Lines file, one request a line, or from a list of such objects.

    Raises:
        ProfilingError: the file cannot be read, there is no request in it, or one is not of the form above.
    """
    if isinstance(requests, str | os.PathLike):
        try:
            lines = Path(requests).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ProfilingError(f"requests {str(requests)!r} cannot be read ({error}); name a JSON Lines file") from None
        named = {f"{requests}, line {number}": line for number, line in enumerate(lines, 1) if line.strip()}
        parse = TypeAdapter(AsgiRequest).validate_json
    else:
        named = {f"request {number}": request for number, request in enumerate(requests, 1)}
        parse = TypeAdapter(AsgiRequest).validate_python
    loaded = []
    for where, request in named.items():
        try:
            loaded.append(parse(request))
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"]))
            raise ProfilingError(
                f"{where}{f', {field}' if field else ''}: {first['msg']}; "
                'expected {"method": "POST", "path": "/items", "headers": {...}, "json": ...} or "body" in place of "json"'
            ) from None
    if not loaded:
        raise ProfilingError(f"requests {str(requests)!r}: there is none in it; write one JSON object a line")
    return loaded


@contextlib.contextmanager
def application(target: Target, requests: Sequence[AsgiRequest], concurrency: int) -> Iterator[Runnable]:
    """The application `module:app`, or what `module:factory()` returns, started; each run sends all requests.

    The root function of its profile is the application as a whole: the framework, the event loop and the client.
    """
    name = target_name(target)
    app = resolve(target)
    if code := getattr(unwrap(app), "__code__", None):
        file = code.co_filename
    elif isinstance(target, str):
        file = getattr(sys.modules[name.partition(":")[0]], "__file__", None) or os.path.abspath(name)
    else:
        file = os.path.abspath(name)
    if asyncio._get_running_loop():
        raise ProfilingError(
            f"application {name!r}: an event loop runs here already, as in a notebook; "
            "name it as 'module:app', which runs in a process of its own"
        )
    service = _Service(name, app, requests, concurrency)
    with asyncio.Runner() as runner:
        runner.run(service.start())
        yield Runnable(name, lambda: runner.run(service.send_all()), FunctionKey(file, 1, name), notes=service.notes)
        runner.run(service.stop())


class _Service:
    """What a server does for an application, without a network."""

    def __init__(self, name: str, app: Callable, requests: Sequence[AsgiRequest], concurrency: int):
        self.name, self.requests, self.concurrency = name, requests, concurrency
        self.notes: list[str] = []
        self._app = app
        self._state: dict[str, Any] = {}  # of the lifespan; each request gets a copy

    async def start(self) -> None:
        """Run the application's start-up; one without the lifespan protocol raises or returns, and is ready."""
        self._to_app: asyncio.Queue = asyncio.Queue()
        self._from_app: asyncio.Queue = asyncio.Queue()
        scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": self._state}
        self._lifespan = asyncio.create_task(self._app(scope, self._to_app.get, self._from_app.put))
        await self._tell_lifespan("startup")

    async def stop(self) -> None:
        if not self._lifespan.done():
            await self._tell_lifespan("shutdown")

    async def _tell_lifespan(self, phase: str) -> None:
        await self._to_app.put({"type": f"lifespan.{phase}"})
        answer = asyncio.create_task(self._from_app.get())
        timeout = _LONGEST_SHUTDOWN_S if phase == "shutdown" else None  # the time limit ends a start-up
        await asyncio.wait({answer, self._lifespan}, return_when=asyncio.FIRST_COMPLETED, timeout=timeout)
        if self._lifespan.done():
            self._lifespan.exception()  # has been looked at
        if answer.done() and answer.result()["type"] == f"lifespan.{phase}.failed":
            raise ProfilingError(f"application {self.name!r}: its {phase} failed: {answer.result().get('message', '')}")
        answer.cancel()

    async def send_all(self) -> None:
        """All requests, `concurrency` at a time.

        Raises:
            ProfilingError: the application raised, or answered with a status of 500 or more.
        """
        import httpx

        async def app(scope, receive, send):
            await self._app({**scope, "state": dict(self._state)}, receive, send)

        async def send(client: httpx.AsyncClient, requests: Iterator[tuple[int, AsgiRequest]]) -> None:
            for number, request in requests:
                await self._send(client, number, request)

        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost", timeout=None) as client:
            pending = iter(enumerate(self.requests, 1))  # shared
            await asyncio.gather(*(send(client, pending) for _ in range(self.concurrency)))

    async def _send(self, client, number: int, request: AsgiRequest) -> None:
        what = f"application {self.name!r}: request {number} ({request})"
        try:
            response = await client.request(
                request.method, request.path, headers=request.headers, json=request.json, content=request.body
            )
        except Exception as error:
            raise ProfilingError(f"{what} raised {describe(error)}; make it answer without the profiler first") from error
        if response.status_code >= 500:
            raise ProfilingError(
                f"{what} was answered with {response.status_code}: {response.text[:200]!r}; make it answer without the profiler"
            )
        if response.status_code >= 400:
            note = f"request {number} ({request}) was answered with {response.status_code}"
            if note not in self.notes:
                self.notes.append(note)
