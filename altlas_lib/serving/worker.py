"""A process that computes in its main thread, for one device: the server's side of it, and its own.

It ends with its server, however that ends.
"""

import contextlib
import errno
import importlib
import multiprocessing
import os
import signal
import threading
from multiprocessing.connection import Connection
from typing import Any

import psutil

from .settings import ServeError
from .watch import DEATHS, LOG

_SPAWN = multiprocessing.get_context("spawn")
_START_LIMIT_S = 300  # a large corpus is read from a slow disk, and what is compiled may have to be made
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class WorkerDied(Exception):
    """The process ended; the message says how."""


class Worker:
    """A worker process, as the server sees it.

    Args:
        program: module with `load(role, device, options)`, which returns what there is to say of what it serves, and a function
            that computes: of a message and of `report(share)`.
        role: `"infer"` or `"jobs"`.
        device: `"cpu"`, or the index of the only GPU that the process sees.
        options: for `load`.
    """

    def __init__(self, program: str, role: str, device: str, options: dict[str, Any]) -> None:
        self.role, self.device, self.ready = role, device, False
        self._arguments = program, role, device, options

    def start(self) -> Any:
        """Start the process, and return what it has to say once it has loaded what it serves. Raises ServeError."""
        self._connection, theirs = _SPAWN.Pipe()
        self._process = _SPAWN.Process(target=_work, args=(theirs, *self._arguments), daemon=True)
        self._process.start()
        theirs.close()
        try:
            hello = self.receive(_START_LIMIT_S)
        except WorkerDied as error:
            raise ServeError(f"the {self.role} worker of {self.device} could not start: {error}, see above") from None
        if hello is None:
            self.stop()
            raise ServeError(f"the {self.role} worker of {self.device} was not ready after {_START_LIMIT_S} s")
        self.ready = True
        return hello

    def restart(self, stopping: threading.Event) -> None:
        """Start the process again after its death, until that succeeds or the server stops."""
        DEATHS.labels(self.device, self.role).inc()
        while not (stopping.is_set() or self.ready):
            try:
                self.start()
            except (ServeError, OSError) as error:
                LOG.error(str(error))
                stopping.wait(5)

    def send(self, message: Any) -> None:
        """Raises WorkerDied."""
        try:
            self._connection.send(message)
        except OSError:
            raise self._died() from None

    def receive(self, time_limit_s: float) -> Any:
        """The next message, None if there is none in time. Raises WorkerDied."""
        try:
            return self._connection.recv() if self._connection.poll(time_limit_s) else None
        except (OSError, EOFError):
            raise self._died() from None

    def stop(self) -> None:
        """End the process at once."""
        self.ready = False
        self._process.kill()
        self._process.join()
        self._connection.close()

    def memory_bytes(self) -> int:
        """What the process holds in memory now; 0 without a process."""
        try:
            return psutil.Process(self._process.pid).memory_info().rss
        except psutil.Error:
            return 0

    def _died(self) -> WorkerDied:
        self._process.join(5)
        self.stop()
        code = self._process.exitcode
        return WorkerDied(f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}")


def _work(connection: Connection, program: str, role: str, device: str, options: dict[str, Any]) -> None:
    """What the process does: say hello, then answer each message; an error is an answer, too."""
    os.environ["CUDA_VISIBLE_DEVICES"] = "" if device == "cpu" else device
    for number in (signal.SIGINT, signal.SIGTERM):  # sent to a terminal's or a unit's processes together; the server decides
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_server, daemon=True).start()
    hello, compute = importlib.import_module(program).load(role, "cpu" if device == "cpu" else "gpu", options)
    connection.send(hello)
    with contextlib.suppress(EOFError):
        while True:
            message = connection.recv()
            try:
                answer = {"answer": compute(message, lambda share: connection.send({"progress": share}))}
            except Exception as error:
                full = isinstance(error, OSError) and error.errno in _DISK_FULL
                answer = {"error": f"{type(error).__name__}: {error}", "disk_full": full}
            connection.send(answer)


def _end_with_server() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)
