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
from dataclasses import field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from pydantic import ConfigDict, JsonValue, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from .runnable import FunctionKey, ProfilingError, Runnable, describe
from .targets import Target, resolve, target_name

_LONGEST_SHUTDOWN_S = 10.0
_FORM = '{"method": "POST", "path": "/items", "headers": {...}, "json": ...} or "body" in place of "json"'


@dataclass(config=ConfigDict(extra="forbid"))
class AsgiRequest:
    """A request of the script, with `json` or `body`."""

    path: str
    method: str = "GET"
    headers: dict[str, str] = field(default_factory=dict)
    json: JsonValue = None
    body: str | None = None

    def __post_init__(self) -> None:
        if self.json is not None and self.body is not None:
            raise ValueError("json and body exclude each other")
        for name, value in self.headers.items():
            if not f"{name}{value}".isascii():
                raise ValueError(f"header {name!r}: {value!r} is not ASCII; a header holds ASCII only, percent-encode the rest")
        if not self.path.startswith("/") or self.path.startswith("//"):  # what follows two slashes is read as a host
            raise ValueError(f"path {self.path!r} is no path of an application; a path begins with one slash")

    @property
    def content(self) -> bytes:
        return (self.body or "").encode() if self.json is None else json.dumps(self.json, separators=(",", ":")).encode()

    def scope(self) -> dict[str, Any]:
        """Of an HTTP connection to a server at http://localhost; what is not in it is optional."""
        path, _, query = self.path.partition("?")
        headers = {"host": "localhost", "content-length": str(len(self.content))}
        if self.json is not None:
            headers["content-type"] = "application/json"
        headers |= {name.lower(): value for name, value in self.headers.items()}
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": self.method.upper(),
            "scheme": "http",
            "path": unquote(path),
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
            "client": ("127.0.0.1", 50000),
            "server": ("localhost", 80),
        }


def load_requests(requests: str | os.PathLike | Sequence[Mapping[str, Any]]) -> list[AsgiRequest]:
    """From a JSON Lines file, one request a line, or from a list of such objects.

    Raises:
        ProfilingError: the file cannot be read, there is no request in it, or one is not of the form above.
    """
    parse, where, entries = TypeAdapter(AsgiRequest).validate_python, "request", requests
    if isinstance(requests, str | os.PathLike):
        parse, where = TypeAdapter(AsgiRequest).validate_json, f"{requests}, line"
        try:
            entries = Path(requests).read_text(encoding="utf-8-sig").split("\n")  # U+2028 is a character of JSON's strings
        except (OSError, UnicodeDecodeError) as error:
            raise ProfilingError(f"requests {str(requests)!r} cannot be read ({error}); name a JSON Lines file") from None
    loaded = []
    for number, entry in enumerate(entries, 1):
        try:
            if entry != "":
                loaded.append(parse(entry))
        except ValidationError as error:
            first = error.errors()[0]
            place = ", ".join([f"{where} {number}", *map(str, first["loc"])])
            raise ProfilingError(f"{place}: {first['msg']}; expected {_FORM}") from None
    if not loaded:
        raise ProfilingError(f"requests {str(requests)!r}: there is none in it; write one JSON object a line")
    return loaded


@contextlib.contextmanager
def application(target: Target, requests: Sequence[AsgiRequest], concurrency: int) -> Iterator[Runnable]:
    """The application `module:app`, or what `module:factory()` returns, started; each run sends all requests.

    The root function of its profile is the application as a whole: the framework and the event loop.
    """
    name, app = target_name(target), resolve(target)
    file = getattr(sys.modules.get(name.partition(":")[0]), "__file__", None) or os.path.abspath(name)
    root, service = FunctionKey(file, 1, name), _Service(name, app)
    with asyncio.Runner() as runner:
        runner.run(service.start())
        yield Runnable(name, lambda: runner.run(service.send_all(requests, concurrency)), root, notes=service.notes)
        runner.run(service.stop())


class _Service:
    """What a server does for an application, without a network."""

    def __init__(self, name: str, app: Callable):
        self._name, self._app = name, app
        self.notes: list[str] = []
        self._state: dict[str, Any] = {}  # of the lifespan; each request gets a copy

    async def start(self) -> None:
        """Run the application's start-up; one without the lifespan protocol raises or returns, and is ready."""
        self._to_app, self._from_app = asyncio.Queue(), asyncio.Queue()
        scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": self._state}
        self._lifespan = asyncio.create_task(self._app(scope, self._to_app.get, self._from_app.put))
        if failure := await self._tell_lifespan("startup", None):  # the time limit ends one that hangs
            raise ProfilingError(f"application {self._name!r}: its startup failed: {failure}")

    async def stop(self) -> None:
        if self._lifespan.done():
            return
        failure = await self._tell_lifespan("shutdown", _LONGEST_SHUTDOWN_S)
        error = self._lifespan.done() and self._lifespan.exception()
        if failure or error:
            self.notes.append(f"the application's shutdown failed: {failure or describe(error)}")

    async def _tell_lifespan(self, phase: str, timeout_s: float | None) -> str | None:
        """Why it failed; None: it did not, as far as the application says."""
        await self._to_app.put({"type": f"lifespan.{phase}"})
        answer = asyncio.create_task(self._from_app.get())
        await asyncio.wait({answer, self._lifespan}, return_when=asyncio.FIRST_COMPLETED, timeout=timeout_s)
        message = answer.result() if answer.done() else {}
        answer.cancel()
        return message.get("message", "no message") if message.get("type") == f"lifespan.{phase}.failed" else None

    async def send_all(self, requests: Sequence[AsgiRequest], concurrency: int) -> None:
        """All requests, `concurrency` at a time; what failed is noted, as a server would log it.

        Raises:
            ProfilingError: none was answered with a status below 400.
        """
        pending, failures = iter(enumerate(requests, 1)), []  # shared

        async def send() -> None:
            for number, request in pending:
                if failure := await self._send(request):
                    failures.append(f"request {number} ({request.method} {request.path}) {failure}")

        await asyncio.gather(*(send() for _ in range(concurrency)))
        if len(failures) == len(requests):
            answered = f"application {self._name!r} answered none of {len(failures)} requests: {failures[0]}"
            raise ProfilingError(f"{answered}; mend the requests, or make it answer without the profiler first")
        self.notes += [failure for failure in failures if failure not in self.notes]

    async def _send(self, request: AsgiRequest) -> str | None:
        """One request as a server would pass it on (https://asgi.readthedocs.io/en/latest/specs/www.html); how it failed."""
        incoming = iter([{"type": "http.request", "body": request.content, "more_body": False}])
        sent, answered = [], asyncio.Event()

        async def receive() -> dict[str, Any]:
            if message := next(incoming, None):
                return message
            await answered.wait()
            return {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            sent.append((message.get("status", 0), message.get("body", b"")[:200]))  # not the whole of a large body
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                answered.set()

        try:
            await self._app({**request.scope(), "state": dict(self._state)}, receive, send)
        except Exception as error:
            return f"raised {describe(error)}"
        if not answered.is_set():
            return "got no whole answer"
        status, text = max(status for status, _ in sent), b"".join(text for _, text in sent)[:200]
        return f"was answered with {status}: {text.decode(errors='replace')!r}" if status >= 400 else None
