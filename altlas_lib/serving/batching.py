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

_LOOK_S = 0.1


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
    """Hands what waits, for the workers of all devices, to the worker of one of them."""

    def __init__(self, waiting: queue.SimpleQueue[Waiting], worker: Worker, settings: Settings) -> None:
        super().__init__(name=f"requests-{worker.device}", daemon=True)
        self._waiting, self._worker, self._settings = waiting, worker, settings
        self.stopping = threading.Event()

    def run(self) -> None:
        while not self.stopping.is_set():
            together: list[Waiting] = []
            with contextlib.suppress(queue.Empty):
                while len(together) < self._settings.max_batch:
                    together.append(self._waiting.get(timeout=0 if together else _LOOK_S))
            together = sorted((each for each in together if each.done.set_running_or_notify_cancel()), key=Waiting.group)
            for _, batch in groupby(together, key=Waiting.group):
                self._answer(list(batch))
        self._worker.stop()

    def _answer(self, batch: list[Waiting]) -> None:
        try:
            self._compute(batch)
        except Exception as error:  # whatever it is, nobody waits forever, and the next batch finds a worker
            said = f"{len(batch)} requests on {self._worker.device} failed: {error}"
            LOG.error(said, exc_info=not isinstance(error, WorkerDied))
            for request in batch:
                if not request.done.done():
                    request.done.set_exception(HTTPException(503, "the worker ended; try again", {"Retry-After": "2"}))
            self._worker.restart(self.stopping)

    def _compute(self, batch: list[Waiting]) -> None:
        """Raises WorkerDied."""
        model, started = batch[0].model["name"], time.monotonic()
        joined = {name: np.concatenate([each.inputs[name] for each in batch]) for name in batch[0].inputs}
        message = model, joined, max(request.k for request in batch)
        found = self._worker.ask(message, self._settings.compute_time_limit_s)
        if "error" in found and len(batch) > 1:  # the others need not share one's error
            for request in batch:
                self._compute([request])
            return
        seconds, first = time.monotonic() - started, 0
        COMPUTE.labels(self._worker.device, model).observe(seconds)
        BATCH.labels(model).observe(len(batch))
        told = {"device": self._worker.device, "batch": len(batch), "compute_s": round(seconds, 6)}
        for request in batch:
            if "error" in found:
                request.done.set_exception(HTTPException(422, found["error"]))
                continue
            rows = slice(first, first + request.n_rows) if len(batch) > 1 else ...
            columns = (slice(request.k),) if request.k else ()
            own = {name: array[(rows, *columns)] for name, array in found["answer"].items()}
            request.done.set_result((own, told | {"waited_s": round(started - request.since, 6)}))
            first += request.n_rows
