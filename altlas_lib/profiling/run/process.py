"""A child process that answers jobs: started, spoken to through one pipe, and ended with all that it started."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

from . import guardian
from .runnable import file_identity

_TO_END_S = 5.0  # for a target's own atexit functions and threads, once it has nothing left to do
TICK_S = 0.05  # after which a process is looked at again: what it started may hold the pipe open
_TO_TELL_S = 0.5  # for a process that ends, to say how and why
_BOOTSTRAP = "import sys; sys.path[:] = {path!r}; from {module} import main; main({descriptor})"


class ChildEnded(Exception):
    """The process ended by itself; the text says how, to follow the name of what ran in it."""


class Channel:
    """The child's end of the pipe: it sends text, and receives what `Child.send` pickles."""

    def __init__(self, descriptor: int):
        os.set_inheritable(descriptor, False)  # so the other end sees it close when another program takes this one's place
        self._connection, self._identity = Connection(descriptor), file_identity(descriptor)

    def send(self, text: str) -> None:
        while file_identity(self._connection.fileno()) != self._identity:
            signal.pause()  # the target has closed it, which ends this process; the number may stand for a file of the target
        self._connection.send_bytes(text.encode())

    def receive(self) -> Any:
        """The next message; None: there will be none."""
        return self._connection.recv()


class Child:
    """`main(descriptor)` of a module in a process of its own; `end` ends it with all that it started."""

    def __init__(self, module: str):
        self._connection, other_end = Pipe()
        self._mark, self._last_on_stderr = uuid.uuid4().hex, b""
        apart = {"start_new_session": True}  # a process group of its own: Ctrl-C reaches this process only, which ends it
        guard = [sys.executable, "-P", guardian.__file__, self._mark]
        self._guardian = subprocess.Popen(guard, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, **apart)
        path = [os.getcwd(), *sys.path]  # as `python -m` has it; the child imports what this process can
        self._process = subprocess.Popen(
            [sys.executable, "-c", _BOOTSTRAP.format(path=path, module=module, descriptor=other_end.fileno())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env={**os.environ, guardian.MARK: self._mark},
            pass_fds=[other_end.fileno()],
            **apart,
        )
        other_end.close()
        self._drains = threading.Thread(target=self._drain, args=[self._process.stderr], daemon=True)
        self._drains.start()

    def _drain(self, stream) -> None:
        """Keep the end of what the target writes to stderr, which may be gigabytes."""
        with stream:
            while block := stream.read1(65536):
                self._last_on_stderr = (self._last_on_stderr + block)[-2000:]

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, message: Any) -> None:
        """To be called when the child waits for it; whether it got there, the next `receive` says."""
        with contextlib.suppress(OSError):
            self._connection.send(message)

    def receive(self, within_s: float) -> str | None:
        """The next message; None: there was none in time.

        Raises:
            ChildEnded: the process has ended, or closed its end, and all that it sent has been received.
        """
        has_ended = self._process.poll() is not None  # so what it sent before is there now
        try:
            if self._connection.poll(0 if has_ended else within_s):
                return self._connection.recv_bytes().decode()
        except (EOFError, OSError):
            has_ended = True
        if has_ended:
            raise ChildEnded(self._describe_end())
        return None

    def _describe_end(self) -> str:
        how = "by closing all its descriptors or starting another program in it"
        with contextlib.suppress(subprocess.TimeoutExpired):
            status = self._process.wait(_TO_TELL_S)
            names = {number.value: f"{number.name} ({signal.strsignal(number)})" for number in signal.Signals}
            how = f"with status {status}" if status >= 0 else f"by {names.get(-status, f'signal {-status}')}"
            self._drains.join(_TO_TELL_S)  # what it started may hold stderr open
        last_message = self._last_on_stderr.decode(errors="replace").strip().rpartition("\n")[2]
        return (
            f"ended its process {how} before it returned (last on stderr: {last_message or 'nothing'}); "
            "make it return without ending the interpreter"
        )

    def finish(self) -> Iterator[str]:
        """Let it end as Python ends, within bounds; what it still says meanwhile."""
        stop = time.monotonic() + _TO_END_S
        self.send(None)
        with contextlib.suppress(ChildEnded):
            while time.monotonic() < stop:
                if text := self.receive(TICK_S):
                    yield text

    def end(self) -> list[str]:
        """Kill it and all that it started; the names of processes that would not end."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        left = guardian.end_marked(self._mark)
        for process in (self._guardian, self._process):
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.kill()
                process.wait(guardian.TO_DIE_S)
        self._drains.join(guardian.TO_DIE_S)
        self._guardian.stdin.close()
        self._connection.close()
        return left
