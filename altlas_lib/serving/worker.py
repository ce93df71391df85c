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
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import psutil

from .settings import ServeError
from .watch import DEATHS, LOG

_PROGRAM = "altlas_lib.served"  # loaded in the process only: it knows several chapters
_SPAWN = multiprocessing.get_context("spawn")
_LOOK_S = 0.1
_START_LIMIT_S = 300  # a large corpus is read from a slow disk, and what is compiled may have to be made
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class WorkerDied(Exception):
    """The process ended; the message says how."""


class Worker:
    """A worker process, as the server sees it.

    Args:
        role: `"infer"` or `"jobs"`.
        device: `"cpu"`, or the index of the only GPU that the process sees.
        options: for `load(role, device, options)` of the program, which returns what there is to say of what it serves, and a
            function that computes: of a message and of `report(share)`.
    """

    def __init__(self, role: str, device: str, options: dict[str, Any]) -> None:
        self.role, self.device, self.ready = role, device, False
        self._arguments = role, device, options

    def start(self) -> Any:
        """Start the process, and return what it has to say once it has loaded what it serves. Raises ServeError."""
        self._connection, theirs = _SPAWN.Pipe()
        self._process = _SPAWN.Process(target=_work, args=(theirs, *self._arguments), daemon=True)
        self._process.start()
        theirs.close()
        try:
            told = self.ask(None, _START_LIMIT_S)["answer"]
        except WorkerDied as error:
            raise ServeError(f"the {self.role} worker of {self.device} could not start: {error}, see above") from None
        self.ready = True
        return told

    def restart(self, stopping: threading.Event) -> None:
        """End the process, if it has not, and start it again, until that succeeds or the server stops."""
        self.stop()
        DEATHS.labels(self.device, self.role).inc()
        while not (stopping.is_set() or self.ready):
            try:
                self.start()
            except (ServeError, OSError) as error:
                LOG.error(str(error))
                stopping.wait(5)

    def ask(self, message: Any, time_limit_s: float, report: Callable[[float], bool] = lambda share: True) -> dict[str, Any]:
        """The process' answer to a message: `{"answer": ...}`, or `{"error": text, "disk_full": bool}`.

        Args:
            report: called again and again with the share of the work that is done; False: the process is ended.

        Raises:
            WorkerDied: the process ended, of itself, by `report`, or because it took too long.
        """
        share, started, passed_s = 0.0, time.monotonic(), 0.0
        try:
            self._connection.send(message)
            while True:
                passed_s = time.monotonic() - started
                if passed_s > time_limit_s or not report(share):
                    self.stop()  # and what has come is not looked at
                if self._connection.poll(_LOOK_S):
                    answer = self._connection.recv()
                    if "progress" not in answer:
                        return answer
                    share = answer["progress"]
        except (OSError, EOFError):
            self._process.join(5)
            self.stop()
            code = self._process.exitcode
            how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            raise WorkerDied(f"{how} after {passed_s:.0f} s") from None

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


def _work(connection: Connection, role: str, device: str, options: dict[str, Any]) -> None:
    """What the process does: answer each message, the first with what there is to say of it; an error is an answer, too."""
    os.environ["CUDA_VISIBLE_DEVICES"] = "" if device == "cpu" else device
    for number in (signal.SIGINT, signal.SIGTERM):  # sent to a terminal's or a unit's processes together; the server decides
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_server, daemon=True).start()
    told, compute = importlib.import_module(_PROGRAM).load(role, "cpu" if device == "cpu" else "gpu", options)
    with contextlib.suppress(EOFError):
        while True:
            message = connection.recv()
            try:
                found = told if message is None else compute(message, lambda share: connection.send({"progress": share}))
                answer = {"answer": found}
            except Exception as error:
                full = isinstance(error, OSError) and error.errno in _DISK_FULL
                answer = {"error": f"{type(error).__name__}: {error}", "disk_full": full}
            connection.send(answer)


def _end_with_server() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)
