"""Requests that wait are computed together, without waiting for more to come."""

import contextlib
import queue
import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import numpy as np
from starlette.exceptions import HTTPException

from .settings import Settings
from .watch import BATCH, COMPUTE, LOG
from .wire import Arrays
from .worker import Worker, WorkerDied


@dataclass(frozen=True, eq=False)
class Waiting:
    """A request on its way to a worker; `done` becomes its outputs and what is logged of them."""

    model: dict[str, Any]
    inputs: Arrays
    n_rows: int
    k: int
    since: float = field(default_factory=time.monotonic)
    done: Future = field(default_factory=Future)

    def group(self) -> str:
        """What requests that are computed together have in common; of a model that takes no batches, nothing."""
        shapes = [array.shape[1:] for array in self.inputs.values()]
        return f"{self.model['name']} {shapes if self.model['batches'] else id(self)}"


class Dispatcher(threading.Thread):
    """Hands what waits, for the workers of all devices, to the worker of one of them, until it meets None in the queue."""

    def __init__(self, waiting: "queue.SimpleQueue[Waiting | None]", worker: Worker, settings: Settings) -> None:
        super().__init__(name=f"requests-{worker.device}", daemon=True)
        self._waiting, self._worker, self._settings = waiting, worker, settings
        self.stopping = threading.Event()

    def run(self) -> None:
        while (request := self._waiting.get()) is not None:
            together = [request]
            with contextlib.suppress(queue.Empty):
                while request and len(together) < self._settings.max_batch:
                    request = self._waiting.get_nowait()
                    together += [request] if request else []
            if request is None:
                self._waiting.put(None)
            together = sorted((each for each in together if each.done.set_running_or_notify_cancel()), key=Waiting.group)
            for _, batch in groupby(together, key=Waiting.group):
                self._answer(list(batch))
        self._worker.stop()

    def _answer(self, batch: list[Waiting]) -> None:
        try:
            self._compute(batch)
        except Exception as error:  # whatever it is, nobody waits forever, and the next batch finds a worker
            LOG.error(
                f"{len(batch)} requests on {self._worker.device} failed: {error}", exc_info=not isinstance(error, WorkerDied)
            )
            self._worker.stop()
            for request in batch:
                if not request.done.done():
                    request.done.set_exception(HTTPException(503, "the worker ended; try again", {"Retry-After": "2"}))
            self._worker.restart(self.stopping)

    def _compute(self, batch: list[Waiting]) -> None:
        """Raises WorkerDied; the worker is ended where it takes too long."""
        model, started, limit_s = batch[0].model["name"], time.monotonic(), self._settings.compute_time_limit_s
        joined = {name: np.concatenate([each.inputs[name] for each in batch]) for name in batch[0].inputs}
        self._worker.send((model, joined, max(request.k for request in batch)))
        message = self._worker.receive(limit_s)
        if message is None:
            self._worker.stop()
            raise WorkerDied(f"no answer in {limit_s:g} s")
        if "error" in message and len(batch) > 1:  # the others need not share one's error
            for request in batch:
                self._compute([request])
            return
        seconds, first = time.monotonic() - started, 0
        COMPUTE.labels(self._worker.device, model).observe(seconds)
        BATCH.labels(model).observe(len(batch))
        told = {"device": self._worker.device, "batch": len(batch), "compute_s": round(seconds, 6)}
        for request in batch:
            if "error" in message:
                request.done.set_exception(HTTPException(422, message["error"]))
                continue
            last = first + request.n_rows if len(batch) > 1 else None
            own = {name: array[first:last] for name, array in message["answer"].items()}
            own = {name: array[:, : request.k] for name, array in own.items()} if request.k else own
            request.done.set_result((own, told | {"waited_s": round(started - request.since, 6)}))
            first = last
