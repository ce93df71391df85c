"""The HTTP side: what is asked is checked, bounded, and handed to the workers."""

import asyncio
import contextlib
import hashlib
import hmac
import queue
import re
import time
import uuid
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any, Literal

import prometheus_client
import uvicorn
from fastapi import Depends, FastAPI, Header, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect
from uvicorn.protocols.http.h11_impl import H11Protocol

from .. import __version__
from . import watch, wire
from .batching import Dispatcher, Waiting
from .jobs import Job, Runner, Store
from .settings import Settings
from .worker import Worker

_BYTES, _NPZ = "application/octet-stream", "application/x-npz"
_REF = "#/components/schemas/{model}"
_LARGE = 2**16  # bytes of JSON that keep the event loop for a millisecond
_LEAST_BYTES_PER_S = 2**17  # that a client must send
_HEADERS_TIME_LIMIT_S, _DRAIN_S = 20, 20
_MAX_ANSWERS = 2**28  # neighbours of a job, of 12 bytes each


class Service:
    """The store, the workers, and what the routes share.

    Raises:
        ServeError: what is to be served cannot be loaded, or the store cannot be had.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings, self.store, self.held_bytes = settings, Store(settings), 0
        self.waiting: queue.SimpleQueue[Waiting] = queue.SimpleQueue()
        options = {"corpus": settings.corpus, "models": settings.models or [], "dask": settings.dask}
        devices = settings.devices()
        infer, jobs = ([Worker(role, device, options) for device in devices] for role in ("infer", "jobs"))
        self.workers = infer + jobs
        with ThreadPoolExecutor() as pool:
            self.models, *_ = pool.map(Worker.start, self.workers)
        self.threads = [Dispatcher(self.waiting, worker, settings) for worker in infer]
        self.threads += [Runner(self.store, worker, settings) for worker in jobs]
        watch.WAITING.set_function(self.waiting.qsize)
        watch.HELD_BYTES.set_function(lambda: self.held_bytes)
        watch.JOB_LIMIT.set(settings.max_jobs)
        for limit in ("bytes", "requests", "jobs"):
            watch.REFUSED.labels(limit)  # a counter that starts at 0 is seen to rise
        for worker in self.workers:  # once all have started: what holds on to a worker keeps its process waiting
            watch.DEATHS.labels(worker.device, worker.role)
            watch.WORKER_BYTES.labels(worker.device, worker.role).set_function(worker.memory_bytes)

    @contextlib.asynccontextmanager
    async def running(self, app: FastAPI) -> AsyncIterator[None]:
        """The threads at work; afterwards running jobs are given back and the workers have ended."""
        for thread in self.threads:
            thread.start()
        yield
        for thread in self.threads:
            thread.stopping.set()
        for thread in self.threads:
            await run_in_threadpool(thread.join)

    def find_model(self, name: str) -> dict[str, Any]:
        """Raises HTTPException 404."""
        if name not in self.models:
            raise HTTPException(404, f"no model {name!r}; there are {', '.join(self.models)}")
        return self.models[name]

    async def receive(self, request: Request, limit: int, take: Callable[[bytes], Any]) -> None:
        """Hand the body to `take`, chunk by chunk. Raises HTTPException: 408 too slow, 413 too large, 415 compressed."""
        if request.headers.get("content-encoding", "identity") != "identity":
            raise HTTPException(415, "Content-Encoding: expected none; send the body uncompressed")
        time_limit_s, n_bytes = self.settings.read_time_limit_s, 0
        started, announced = asyncio.get_running_loop().time(), int(request.headers.get("content-length", 0))
        try:
            async with asyncio.timeout(time_limit_s) as timeout:
                async for chunk in request.stream():
                    n_bytes += len(chunk)
                    if max(n_bytes, announced) > limit:
                        raise HTTPException(413, f"the body has more than {limit:,} bytes; send less at a time")
                    take(chunk)
                    timeout.reschedule(started + time_limit_s + n_bytes / _LEAST_BYTES_PER_S)
        except TimeoutError:
            raise HTTPException(408, f"the body came too slowly: {n_bytes:,} bytes so far") from None

    @contextlib.asynccontextmanager
    async def held_body(self, request: Request) -> AsyncIterator[bytearray]:
        """The body, counted until it is answered. Raises HTTPException: as `receive`, and 503 where too much is held."""
        body = bytearray()

        def hold(chunk: bytes) -> None:
            if self.held_bytes + len(chunk) > self.settings.max_held_bytes:
                raise refuse_for_now("bytes")
            self.held_bytes += len(chunk)
            body.extend(chunk)

        try:
            await self.receive(request, self.settings.max_body_bytes, hold)
            yield body
        finally:
            self.held_bytes -= len(body)

    async def infer(self, model: dict[str, Any], request: Request, header_length: int | None) -> Response:
        """The answer to a request of the Open Inference Protocol. Raises HTTPException."""
        async with self.held_body(request) as body:
            length = len(body) if header_length is None else header_length
            if length > len(body):
                raise HTTPException(400, f"Inference-Header-Content-Length is {length:,}, the body has {len(body):,} bytes")
            if length > self.settings.max_json_bytes:
                raise HTTPException(413, f"more than {self.settings.max_json_bytes:,} bytes of JSON; send binary tensors")
            parts = bytes(body[:length]), memoryview(body)[length:]
            asked, *what = await _call(length > _LARGE, wire.decode, model, *parts)
            waiting = Waiting(model, *what)
            if self.waiting.qsize() >= self.settings.max_waiting:
                raise refuse_for_now("requests")
            self.waiting.put(waiting)
            outputs, told = await asyncio.wrap_future(waiting.done)
            request.state.told.update(told)
            large = sum(array.nbytes for array in outputs.values()) > _LARGE
            text, raw = await _call(large, wire.encode, model["name"], asked, outputs)
        headers = {"Inference-Header-Content-Length": str(len(text))} if raw else {}
        return Response(b"".join([text, *raw]), media_type=_BYTES if raw else "application/json", headers=headers)

    async def accept(self, request: Request, asked: dict[str, Any], key: str | None) -> str:
        """Store a job, and return its id once nothing can lose it. Raises HTTPException."""
        await run_in_threadpool(self.store.refuse_if_full)
        body, digest = self.store.incoming / uuid.uuid4().hex, hashlib.sha256()
        try:
            with open(body, "wb") as file:
                limit = self.settings.max_job_bytes
                await self.receive(request, limit, lambda chunk: digest.update(chunk) or file.write(chunk))
            n_rows, _ = wire.check_npy(body)
            if asked["kind"] == "top_k" and n_rows * asked["k"] > _MAX_ANSWERS:
                raise HTTPException(422, f"{n_rows:,} rows times k={asked['k']}: expected at most {_MAX_ANSWERS:,}")
            return await run_in_threadpool(self.store.add, body, digest.hexdigest(), asked, key)
        except OSError as error:
            raise HTTPException(507, f"the job cannot be stored: {error}") from None
        finally:
            body.unlink(missing_ok=True)


def refuse_for_now(what: str) -> HTTPException:
    watch.REFUSED.labels(what).inc()
    return HTTPException(503, f"too many {what} wait; try again", {"Retry-After": "1"})


async def _call(in_thread: bool, function: Callable, *arguments: Any) -> Any:
    """`function(*arguments)`; what takes long not in the event loop."""
    return await run_in_threadpool(function, *arguments) if in_thread else function(*arguments)


class Watched:
    """Around the application: an id for each request, its metrics and its log line."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: dict, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        given = next((value.decode("latin-1") for name, value in scope["headers"] if name == b"x-request-id"), "")
        request_id = given if re.fullmatch(r"[\w.-]{1,64}", given) else uuid.uuid4().hex
        scope["state"]["told"], started, status = {}, time.monotonic(), 500

        async def send_with_id(message: dict) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode())]
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        finally:
            seconds, route = time.monotonic() - started, getattr(scope.get("route"), "path", "none")
            watch.REQUESTS.labels(route, status).observe(seconds)
            fields = {"request_id": request_id, "method": scope["method"], "path": scope["path"], "status": status}
            watch.LOG.info("request", extra={"fields": fields | {"seconds": round(seconds, 6)} | scope["state"]["told"]})


def create_app(service: Service) -> FastAPI:
    """The routes."""
    settings, store = service.settings, service.store

    def refuse(request: Request, error: Exception) -> Response:
        if isinstance(error, RequestValidationError):
            message = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
            return JSONResponse({"error": message}, 422)
        if isinstance(error, ClientDisconnect):
            return Response(status_code=400)  # nobody reads it
        return JSONResponse({"error": error.detail}, error.status_code, error.headers)

    handlers = dict.fromkeys((HTTPException, RequestValidationError, ClientDisconnect), refuse)
    how = {"lifespan": service.running, "exception_handlers": handlers, "middleware": [Middleware(Watched)]}
    app = FastAPI(title="ALT_LAS acceleration", version=__version__, **how)

    Credentials = Annotated[HTTPAuthorizationCredentials | None, Depends(HTTPBearer(auto_error=False))]
    token = settings.token()

    async def authorize(credentials: Credentials) -> None:
        given = credentials.credentials if credentials else ""
        if token is not None and not hmac.compare_digest(given.encode(), token.encode()):
            raise HTTPException(401, "expected Authorization: Bearer and this server's token", {"WWW-Authenticate": "Bearer"})

    private = {"dependencies": [Depends(authorize)]}

    @app.get("/v2")
    async def server() -> dict[str, Any]:
        return {"name": "altlas", "version": __version__, "extensions": ["binary_tensor_data"], "models": [*service.models]}

    @app.get("/v2/models/{model}", responses=_answers(404, 422))
    async def describe(model: str) -> dict[str, Any]:
        return service.find_model(model)

    @app.get("/v2/health/live")
    async def live() -> dict[str, bool]:
        return {"live": True}

    @app.get("/v2/health/ready", responses=_answers(503))
    @app.get("/health", responses=_answers(503))
    async def ready() -> dict[str, str]:
        if not all(worker.ready for worker in service.workers):
            raise HTTPException(503, "a worker is being started", {"Retry-After": "2"})
        return {"status": "ok", "service": "altlas"}

    @app.get("/metrics", response_class=PlainTextResponse)
    def metrics() -> Response:
        store.measure()
        return Response(prometheus_client.generate_latest(), media_type=prometheus_client.CONTENT_TYPE_PLAIN_0_0_4)

    binary = {"type": "string", "format": "binary"}
    schema = wire.InferRequest.model_json_schema(ref_template=_REF)

    @app.post(
        "/v2/models/{model}/infer",
        **private,
        response_model=wire.InferResponse,
        responses=_answers(400, 401, 404, 408, 413, 415, 422, 503) | {200: {"content": {_BYTES: {}}}},
        openapi_extra=_takes({"application/json": schema, _BYTES: binary}),
    )
    async def infer(
        model: str, request: Request, inference_header_content_length: Annotated[int | None, Header(ge=0)] = None
    ) -> Response:
        return await service.infer(service.find_model(model), request, inference_header_content_length)

    @app.post(
        "/v1/jobs",
        **private,
        status_code=202,
        responses=_answers(400, 401, 408, 413, 415, 422, 429, 507),
        openapi_extra=_takes({_BYTES: binary}),
    )
    async def accept(
        request: Request,
        response: Response,
        kind: Literal["top_k", "pairs_above"],
        k: Annotated[int, Query(ge=1, le=4096)] = 10,
        threshold: Annotated[float, Query(ge=-1, le=1)] = 0.95,
        device: Literal["auto", "cpu", "gpu"] = "auto",
        method: Literal["auto", "float32", "int8"] = "auto",
        idempotency_key: Annotated[str | None, Header(min_length=1, max_length=200)] = None,
    ) -> Job:
        asked = {"kind": kind, "k": k, "threshold": threshold, "device": device, "method": method}
        job = await service.accept(request, asked, idempotency_key)
        response.headers["Location"] = f"/v1/jobs/{job}"
        return store.find(job)

    @app.get("/v1/jobs/{job}", **private, responses=_answers(401, 404, 422))
    def find(job: str) -> Job:
        return store.find(job)

    @app.delete("/v1/jobs/{job}", **private, responses=_answers(401, 404, 409, 422))
    def cancel(job: str) -> Job:
        return store.cancel(job)

    kept = {200: {"content": {_NPZ: {"schema": {"type": "string", "format": "binary"}}}}}

    @app.get(
        "/v1/jobs/{job}/result", **private, response_class=FileResponse, responses=_answers(401, 404, 409, 410, 422) | kept
    )
    def result(job: str) -> Response:
        return FileResponse(store.result(job), media_type=_NPZ)

    app.openapi()["components"]["schemas"] |= schema["$defs"]
    return app


def _answers(*statuses: int) -> dict[int | str, Any]:
    problem = {"type": "object", "properties": {"error": {"type": "string"}}, "required": ["error"]}
    return {status: {"description": "error", "content": {"application/json": {"schema": problem}}} for status in statuses}


def _takes(content: dict[str, Any]) -> dict[str, Any]:
    return {"requestBody": {"required": True, "content": {kind: {"schema": schema} for kind, schema in content.items()}}}


class Protocol(H11Protocol):
    """HTTP/1.1 that closes a connection which sends no complete request line and headers in time."""

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self.loop.call_later(_HEADERS_TIME_LIMIT_S, lambda: self.cycle or transport.close())


def run(settings: Settings) -> None:
    """Serve until SIGTERM or Ctrl-C, then answer what has been accepted and give a running job back to its queue.

    Raises:
        ServeError: what is to be served cannot be loaded, or another server has the store.
    """
    watch.log_json_lines()
    app = create_app(Service(settings))
    how = {"http": Protocol, "ws": "none", "log_config": None, "access_log": False, "server_header": False}
    uvicorn.run(app, host=settings.host, port=settings.port, timeout_graceful_shutdown=_DRAIN_S, **how)
