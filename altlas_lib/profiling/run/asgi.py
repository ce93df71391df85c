"""An ASGI application under a list of requests, sent to it in this process: no server, no network.

The event loop and the application live as long as a server's would: start-up and shutdown (the lifespan protocol,
https://asgi.readthedocs.io/en/latest/specs/lifespan.html) run once, outside of the timing; each timed run sends all requests.
"""

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from pydantic import ConfigDict, JsonValue, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from .runnable import FunctionKey, ProfilingError, Runnable, describe
from .targets import Target, refuse_running_loop, resolve, target_name, unwrap

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
        for name, value in (self.headers or {}).items():
            if not f"{name}{value}".isascii():
                raise ValueError(f"header {name!r}: {value!r} is not ASCII; a header holds ASCII only, percent-encode the rest")
        try:
            urlsplit(self.path)
        except ValueError as error:  # '//[::1': what follows two slashes is read as a host
            raise ValueError(f"path {self.path!r}: {error}; a path begins with one slash") from None

    def __str__(self) -> str:
        return f"{self.method} {self.path}"

    @property
    def content(self) -> bytes:
        return (self.body or "").encode() if self.json is None else json.dumps(self.json, separators=(",", ":")).encode()

    def scope(self) -> dict[str, Any]:
        """Of an HTTP connection to a server at http://localhost."""
        parts = urlsplit(self.path)
        headers = {"host": "localhost"}
        if content := self.content:
            headers["content-length"] = str(len(content))
        if self.json is not None:
            headers["content-type"] = "application/json"
        headers |= {name.lower(): value for name, value in (self.headers or {}).items()}
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": self.method.upper(),
            "scheme": "http",
            "path": unquote(parts.path) or "/",
            "raw_path": quote(parts.path, safe="/%~").encode(),
            "query_string": quote(parts.query, safe="=&;%+,/:?@!$'()*~[]-._").encode(),
            "root_path": "",
            "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
            "client": ("127.0.0.1", 50000),
            "server": ("localhost", 80),
        }


def load_requests(requests: str | os.PathLike | Sequence[Mapping[str, Any]]) -> list[AsgiRequest]:
    """From a JSON Lines file, one request a line, or from a list of such objects.

    Raises:
        ProfilingError: the file cannot be read, there is no request in it, or one is not of the form above.
    """
    if isinstance(requests, str | os.PathLike):
        try:
            lines = Path(requests).read_text(encoding="utf-8-sig").split("\n")  # U+2028 is a character of JSON's strings
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

    The root function of its profile is the application as a whole: the framework and the event loop.
    """
    name = target_name(target)
    app = resolve(target)
    if code := getattr(unwrap(app), "__code__", None):
        file = code.co_filename
    elif isinstance(target, str):
        file = getattr(sys.modules[name.partition(":")[0]], "__file__", None) or os.path.abspath(name)
    else:
        file = os.path.abspath(name)
    refuse_running_loop(name)
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
        if (failure := await self._tell_lifespan("startup", None)) is not None:  # the time limit ends one that hangs
            raise ProfilingError(f"application {self.name!r}: its startup failed: {failure}")

    async def stop(self) -> None:
        if not self._lifespan.done() and (failure := await self._tell_lifespan("shutdown", _LONGEST_SHUTDOWN_S)) is not None:
            self.notes.append(f"the application's shutdown failed: {failure}")

    async def _tell_lifespan(self, phase: str, timeout_s: float | None) -> str | None:
        """Why it failed; None: it did not, as far as the application says."""
        await self._to_app.put({"type": f"lifespan.{phase}"})
        answer = asyncio.create_task(self._from_app.get())
        await asyncio.wait({answer, self._lifespan}, return_when=asyncio.FIRST_COMPLETED, timeout=timeout_s)
        if answer.done():
            message = answer.result()
            return message.get("message", "") if message["type"] == f"lifespan.{phase}.failed" else None
        answer.cancel()
        error = self._lifespan.exception() if self._lifespan.done() else None
        return describe(error) if error and phase == "shutdown" else None

    async def send_all(self) -> None:
        """All requests, `concurrency` at a time; what failed is noted, as a server would log it.

        Raises:
            ProfilingError: none was answered with a status below 400.
        """
        pending = iter(enumerate(self.requests, 1))  # shared

        async def send() -> None:
            for number, request in pending:
                if failure := await self._send(request):
                    failures.append(f"request {number} ({request}) {failure}")

        failures: list[str] = []
        await asyncio.gather(*(send() for _ in range(self.concurrency)))
        if len(failures) == len(self.requests):
            raise ProfilingError(
                f"application {self.name!r} answered none of {len(failures)} requests: {failures[0]}; "
                "mend the requests, or make it answer without the profiler first"
            )
        self.notes += [failure for failure in failures if failure not in self.notes]

    async def _send(self, request: AsgiRequest) -> str | None:
        """One request as a server would pass it on (https://asgi.readthedocs.io/en/latest/specs/www.html); how it failed."""
        incoming = iter([{"type": "http.request", "body": request.content, "more_body": False}])
        status, text, answered = 0, bytearray(), asyncio.Event()

        async def receive() -> dict[str, Any]:
            if message := next(incoming, None):
                return message
            await answered.wait()
            return {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            elif message["type"] == "http.response.body":
                text.extend(message.get("body", b"")[:200])
                if not message.get("more_body", False):
                    answered.set()

        try:
            await self._app({**request.scope(), "state": dict(self._state)}, receive, send)
        except Exception as error:
            return f"raised {describe(error)}"
        if not answered.is_set():
            return "got no whole answer"
        return f"was answered with {status}: {bytes(text[:200]).decode(errors='replace')!r}" if status >= 400 else None
