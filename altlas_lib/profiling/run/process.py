"""A child process that answers jobs: started, spoken to through one pipe, and ended with all that it started.

It gets pickled objects and answers with text: what the user's program has written is never unpickled here.

As a program this file guards a child: it waits for the end of the process that started both, however that came about, so that
`kill -9` of a profiler leaves neither the target nor its processes behind. A thread in the target's own process could not
promise that: a C function that keeps the interpreter's lock would hold it up, and `os.fork` would warn of it.
"""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from multiprocessing import Pipe
from typing import Any

TO_END_S = 5.0  # for a target's own atexit functions and threads, once it has nothing left to do
TICK_S = 0.05  # after which a process is looked at again: what it started may hold the pipe open
TO_DIE_S = 5.0  # a killed process goes at once, unless it waits for a device that does not answer
_TO_TELL_S = 0.5  # for a process that ends, to say how and why
_MARK = "ALTLAS_PROFILING"  # in the environment of all that a child starts, by which what left its process group is found
_BOOTSTRAP = "import sys; sys.path[:] = {path!r}; from {module} import main; main({descriptor})"


class ChildEnded(Exception):
    """The process ended by itself; the text says how, to follow the name of what ran in it."""


def _pass_on(end: int) -> dict[str, Any]:
    """What gives a child process one end of a pipe: a descriptor, or a handle on Windows, where this was not tried."""
    if os.name != "nt":
        return {"pass_fds": [end]}
    os.set_handle_inheritable(end, True)
    return {"close_fds": False}


class Child:
    """`main(descriptor)` of a module in a process of its own; `end` ends it with all that it started."""

    def __init__(self, module: str):
        self._connection, other_end = Pipe()
        self._mark, self._stderr = uuid.uuid4().hex, tempfile.TemporaryFile()  # noqa: SIM115
        apart = {"start_new_session": True}  # a process group of its own: Ctrl-C reaches this process only, which ends it
        guard = [sys.executable, "-P", __file__, self._mark]
        self._guardian = subprocess.Popen(guard, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, **apart)
        path = [os.getcwd(), *sys.path]  # as `python -m` has it; the child imports what this process can
        self._process = subprocess.Popen(
            [sys.executable, "-c", _BOOTSTRAP.format(path=path, module=module, descriptor=other_end.fileno())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self._stderr,
            env={**os.environ, _MARK: self._mark},
            **_pass_on(other_end.fileno()),
            **apart,
        )
        other_end.close()

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
            how = f"with status {status}" if status >= 0 else f"by signal {-status} ({signal.strsignal(-status)})"
        n_bytes = self._stderr.seek(0, os.SEEK_END)
        self._stderr.seek(max(n_bytes - 2000, 0))
        last_message = self._stderr.read().decode(errors="replace").strip().rpartition("\n")[2]
        return (
            f"ended its process {how} before it returned (last on stderr: {last_message or 'nothing'}); "
            "make it return without ending the interpreter"
        )

    def end(self, grace_s: float = 0.0) -> list[str]:
        """Let it end as Python ends, for so long, then kill it and all that it started; who would not end."""
        self.send(None)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(grace_s)
        with contextlib.suppress(ProcessLookupError, PermissionError, AttributeError):  # Windows has no process groups
            os.killpg(self.pid, signal.SIGKILL)
        left = end_marked(self._mark)
        for process in (self._guardian, self._process):
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.kill()
                process.wait(TO_DIE_S)
        for each in (self._guardian.stdin, self._connection, self._stderr):
            each.close()
        return left


def end_marked(mark: str) -> list[str]:
    """Kill every process that carries `mark`, and all that they started; the names of those that would not end."""
    stop = time.monotonic() + TO_DIE_S
    while left := dict(_find_marked(mark)):  # until none is found: one may have started another meanwhile
        if time.monotonic() > stop:
            return list(left.values())
        for process in left:
            with contextlib.suppress(Exception):  # psutil's, of one that has ended meanwhile or belongs to somebody else
                process.kill()
        time.sleep(0.01)
    return []


def _find_marked(mark: str) -> Iterator[tuple]:
    import psutil

    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(_MARK) == mark:
                for each in (process, *process.children(recursive=True)):
                    if each.status() != psutil.STATUS_ZOMBIE:
                        yield each, f"{each.pid} ({each.name()})"


if __name__ == "__main__":
    sys.stdin.buffer.read()
    end_marked(sys.argv[1])
