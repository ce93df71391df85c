"""A child process that answers jobs: started, spoken to by one socket, and ended with all that it started.

Messages are lines of text, both ways. A target may close every descriptor of its process, the socket's among them: then the
child connects anew, to the same address.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from multiprocessing.connection import wait

from . import guardian
from .runnable import file_identity

_TO_END_S = 5.0  # for a target's own atexit functions and threads, once it has nothing left to do
_BOOTSTRAP = "import sys; sys.path[:] = {path!r}; from {module} import main; main({address!r})"


class ChildEnded(Exception):
    """The process ended by itself; the text says how, to follow the name of what ran in it."""


class Channel:
    """The child's end."""

    def __init__(self, address: str):
        self._address = address
        self._connect()

    def _connect(self) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(None)  # a target may have set another default
        self._socket.connect(self._address)
        self._lines = self._socket.makefile("rb")
        self._identity = file_identity(self._socket.fileno())

    def send(self, line: str) -> None:
        if file_identity(self._socket.fileno()) != self._identity:  # closed; its number may stand for a file of the target
            self._socket.detach()
            self._connect()
        self._socket.sendall(line.encode() + b"\n")

    def receive(self) -> bytes:
        """The next line; empty: there will be none."""
        return self._lines.readline()


class Child:
    """`main(address)` of a module in a process of its own; `end` ends it with all that it started."""

    def __init__(self, module: str):
        self._folder = tempfile.mkdtemp(prefix="altlas-", dir="/tmp")  # a socket's path has at most 100 characters or so
        address = os.path.join(self._folder, "jobs")
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(address)
        self._listener.listen()
        self._connection: socket.socket | None = None
        self._received = self._last_on_stderr = b""
        self._mark = uuid.uuid4().hex
        apart = {"start_new_session": True}  # a process group of its own: Ctrl-C reaches this process only, which ends it
        guard = [sys.executable, "-P", guardian.__file__, self._mark]
        self._guardian = subprocess.Popen(guard, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, **apart)
        path = [os.getcwd(), *sys.path]  # as `python -m` has it; the child imports what this process can
        self._command = [sys.executable, "-c", _BOOTSTRAP.format(path=path, module=module, address=address)]
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env={**os.environ, guardian.MARK: self._mark},
            **apart,
        )
        self._drain_thread = threading.Thread(target=self._drain, args=[self._process.stderr], daemon=True)
        self._drain_thread.start()

    def _drain(self, stream) -> None:
        """Keep the end of what the target writes to stderr, which may be gigabytes."""
        with stream:
            while block := stream.read1(65536):
                self._last_on_stderr = (self._last_on_stderr + block)[-2000:]

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, line: str) -> None:
        """To be called when the child waits for it; whether it got there, the next `receive` says."""
        with contextlib.suppress(OSError, AttributeError):
            self._connection.sendall(line.encode() + b"\n")

    def receive(self, within_s: float) -> bytes | None:
        """The next message; None: there was none in time.

        Raises:
            ChildEnded: the process has ended, or another program runs in it, and all that it sent has been received.
        """
        stop = time.monotonic() + within_s
        while b"\n" not in self._received:
            has_ended = self._process.poll() is not None  # so what it sent before is there now
            left_s = 0 if has_ended else min(max(stop - time.monotonic(), 0), 0.05)
            ready = wait([each for each in (self._listener, self._connection) if each], left_s)
            if self._listener in ready:
                self._connection, self._received = self._listener.accept()[0], b""
            elif ready:
                self._take()
            elif has_ended or (not self._connection and self._runs_another_program()):
                raise ChildEnded(self._describe_end())
            elif time.monotonic() >= stop:
                return None
        line, _, self._received = self._received.partition(b"\n")
        return line

    def _take(self) -> None:
        block = b""
        with contextlib.suppress(ConnectionError):
            block = self._connection.recv(1 << 20)
        self._received += block
        if not block:
            self._connection = None

    def _runs_another_program(self) -> bool:
        import psutil

        with contextlib.suppress(psutil.Error):
            return psutil.Process(self.pid).cmdline()[1:] != self._command[1:]
        return False

    def _describe_end(self) -> str:
        last_message = self._last_on_stderr.decode(errors="replace").strip().rpartition("\n")[2]
        return (
            f"ended its process {_status_in_words(self._process.returncode)} before it returned "
            f"(last on stderr: {last_message or 'nothing'}); make it return without ending the interpreter"
        )

    def finish(self) -> Iterator[bytes]:
        """Let it end as Python ends, within bounds; what it still says meanwhile."""
        stop = time.monotonic() + _TO_END_S
        with contextlib.suppress(ChildEnded, OSError, AttributeError):
            self._connection.shutdown(socket.SHUT_WR)
            while line := self.receive(stop - time.monotonic()):
                yield line

    def end(self) -> list[str]:
        """Kill it and all that it started; the names of processes that would not end."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        left = guardian.end_marked(self._mark)
        for process in (self._guardian, self._process):
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.kill()
                process.wait(guardian.TO_DIE_S)
        self._drain_thread.join(guardian.TO_DIE_S)
        for each in (self._guardian.stdin, self._listener, self._connection):
            if each:
                each.close()
        shutil.rmtree(self._folder, ignore_errors=True)
        return left


def _status_in_words(status: int | None) -> str:
    if status is None:
        return "by starting another program in it"
    if status >= 0:
        return f"with status {status}"
    with contextlib.suppress(ValueError):
        return f"by {signal.Signals(-status).name}{' (a segmentation fault)' if -status == signal.SIGSEGV else ''}"
    return f"by signal {-status}"
