"""An ASGI application under a list of requests, which httpx passes to it in this process: no server, no network.

The event loop and the application live as long as a server's would: start-up and shutdown (the lifespan protocol,
https://asgi.readthedocs.io/en/latest/specs/lifespan.html) run once, outside of the timing; each timed run sends all requests.
"""

import asyncio
import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import field
from typing import Any

import httpx
from pydantic import ConfigDict, JsonValue, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from ...paths import read_bounded
from .targets import FunctionKey, ProfilingError, Runnable, Target, describe, resolve, target_name

_LONGEST_SHUTDOWN_S = 3.0
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
        try:
            self.to_httpx()
        except httpx.InvalidURL as error:
            raise ValueError(f"path {self.path!r}: {error}; percent-encode it") from None

    def to_httpx(self) -> httpx.Request:
        return httpx.Request(
            self.method, f"http://localhost{self.path}", headers=self.headers, json=self.json, content=self.body
        )


def load_requests(requests: str | os.PathLike | Sequence[Mapping[str, Any]]) -> list[AsgiRequest]:
    """From a JSON Lines file, one request a line, or from a list of such objects.

    Raises:
        ProfilingError: the file cannot be read, there is no request in it, or one is not of the form above.
    """
    parse, where, entries = TypeAdapter(AsgiRequest).validate_python, "request", requests
    if isinstance(requests, str | os.PathLike):
        parse, where = TypeAdapter(AsgiRequest).validate_json, f"{requests}, line"
        try:
            entries = read_bounded(requests).decode("utf-8-sig").split("\n")  # U+2028 is a character of JSON's strings
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
    state: dict[str, Any] = {}  # of the lifespan; each request gets a copy
    transport = httpx.ASGITransport(lambda scope, *both: app({**scope, "state": dict(state)}, *both))
    ready, notes, lifespan = [request.to_httpx() for request in requests], [], _Lifespan()
    with asyncio.Runner() as runner:
        if failure := runner.run(lifespan.start(app, state)):
            raise ProfilingError(f"application {name!r}: its startup failed: {failure}")
        call = lambda: runner.run(_send_all(name, transport, ready, concurrency, notes))  # noqa: E731
        yield Runnable(name, call, FunctionKey(file, 1, name), notes=notes)
        if failure := runner.run(lifespan.tell("shutdown", _LONGEST_SHUTDOWN_S)):
            notes.append(f"the application's shutdown failed: {failure}")


class _Lifespan:
    """The messages by which a server starts and ends an application; one without the protocol raises or returns."""

    async def start(self, app: Callable, state: dict[str, Any]) -> str | None:
        self._to_app, self._from_app = asyncio.Queue(), asyncio.Queue()
        scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": state}
        self._app = asyncio.create_task(app(scope, self._to_app.get, self._from_app.put))
        return await self.tell("startup", None)  # the time limit ends one that hangs

    async def tell(self, phase: str, timeout_s: float | None) -> str | None:
        """Why it failed; None: it did not, as far as the application says."""
        if self._app.done():
            return None
        await self._to_app.put({"type": f"lifespan.{phase}"})
        answer = asyncio.create_task(self._from_app.get())
        await asyncio.wait({answer, self._app}, return_when=asyncio.FIRST_COMPLETED, timeout=timeout_s)
        message = answer.result() if answer.done() else {}
        answer.cancel()
        if phase == "shutdown" and self._app.done() and (error := self._app.exception()):
            return describe(error)
        return message.get("message", "no message") if message.get("type") == f"lifespan.{phase}.failed" else None


async def _send_all(
    name: str, transport: httpx.ASGITransport, requests: Sequence[httpx.Request], concurrency: int, notes: list[str]
) -> None:
    """All requests, `concurrency` at a time; what failed is noted, as a server would log it.

    Raises:
        ProfilingError: none was answered with a status below 400.
    """
    pending, failures = iter(enumerate(requests, 1)), []  # shared

    async def send() -> None:
        for number, request in pending:
            try:
                response = await transport.handle_async_request(request)
                if response.status_code < 400:
                    continue
                text = (await response.aread())[:200].decode(errors="replace")
                failure = f"was answered with {response.status_code}: {text!r}"
            except Exception as error:  # the application's; httpx asserts that it has sent a whole answer
                failure = f"raised {describe(error)}"
            failures.append(f"request {number} ({request.method} {request.url.raw_path.decode()}) {failure}")

    await asyncio.gather(*(send() for _ in range(concurrency)))
    if len(failures) == len(requests):
        answered = f"application {name!r} answered none of {len(failures)} requests: {failures[0]}"
        raise ProfilingError(f"{answered}; mend the requests, or make it answer without the profiler first")
    notes += [failure for failure in failures if failure not in notes]
