"""The child process that a target runs in: started, waited for within a time limit, and ended with all that it started."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, JsonValue

from ..record.lines import FunctionLines
from ..record.measure import Measurement, time_limit_error
from .asgi import AsgiRequest
from .runnable import FunctionKey, ProfilingError

_MARK = "ALTLAS_PROFILING"  # in the environment of all that a child starts, by which what left its process group is found
_TO_END_S = 5.0  # for a target's own atexit functions and threads, once the answer is there
_BOOTSTRAP = "import sys; sys.path[:] = {path!r}; from {module} import main; main({folder!r})"


class Request(BaseModel, ser_json_inf_nan="constants"):
    """What the child shall do: measure the target, repeat it while a sampler watches, time its lines or trace its arrays."""

    mode: Literal["measure", "sample", "lines", "trace"] = "measure"
    target: str
    setup: str | None = None
    arguments: dict[str, JsonValue] = {}
    argv: list[str] = []
    requests: list[AsgiRequest] | None = None
    concurrency: int = 1
    n_repeats: int = 1
    n_threads: int | None = None  # of BLAS and OpenMP: 1, or as the program has them
    warm_up: bool = True
    sample_for_s: float = 0
    functions: list[FunctionKey] = []  # whose lines are timed
    time_limit_s: float


class Answer(BaseModel):
    """The error, or what the mode gives; `seconds` of each run under the tool."""

    error: str | None = None
    notes: list[str] = []
    measurement: Measurement | None = None
    seconds: list[float] = []
    lines: list[FunctionLines] = []
    traces: list[JsonValue] = []


class Child:
    """A child process at work on a request. On leaving the `with` block it is ended, and so is all that it started."""

    def __init__(self, request: Request):
        self.request = request
        self._mark = uuid.uuid4().hex

    def __enter__(self) -> Self:
        self._folder = tempfile.TemporaryDirectory(prefix="altlas-")
        folder = Path(self._folder.name)
        (folder / "request.json").write_text(self.request.model_dump_json())
        self._answer, self._partial, self._ready, self._go = (
            folder / name for name in ("answer.json", "partial.json", "ready", "go")
        )
        path = [os.getcwd(), *sys.path]  # as `python -m` has it; the child imports what this process can
        program = _BOOTSTRAP.format(path=path, module="altlas_lib.profiling.child", folder=str(folder))
        self._process = subprocess.Popen(
            [sys.executable, "-c", program],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env={**os.environ, _MARK: self._mark},
            start_new_session=True,  # a process group of its own; Ctrl-C reaches this process only, which ends the group
        )
        self._last_on_stderr = b""
        threading.Thread(target=self._drain, args=[self._process.stderr], daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        while left := list(self._left_behind()):  # until none is found: one may have started another meanwhile
            for process in left:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    process.kill()
            time.sleep(0.01)
        self._folder.cleanup()

    def _left_behind(self) -> Iterator:
        import psutil

        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if process.environ().get(_MARK) == self._mark and process.status() != psutil.STATUS_ZOMBIE:
                    yield process

    def _drain(self, stream) -> None:
        """Keep the end of what the target writes to stderr, which may be gigabytes."""
        with stream:
            while block := stream.read1(65536):
                self._last_on_stderr = (self._last_on_stderr + block)[-2000:]

    @property
    def pid(self) -> int:
        return self._process.pid

    def is_ready(self) -> bool:
        """Whether the target has been prepared and warmed up; the child then waits for `go`."""
        return self._ready.exists()

    def has_ended(self) -> bool:
        return self._process.poll() is not None

    def go(self) -> None:
        self._go.touch()

    def wait(self, time_limit_s: float, meanwhile: Callable[[], None] = lambda: None) -> Answer:
        """The child's answer; what it had found until then where the time is over or its process ends too early.

        Raises:
            ProfilingError: the target's own, or it had found nothing.
        """
        stop = time.monotonic() + time_limit_s
        answered = False
        while not self.has_ended() and time.monotonic() < stop:
            if not answered and (answered := self._answer.exists()):
                stop = min(stop, time.monotonic() + _TO_END_S)
            meanwhile()
            time.sleep(0.01)
        if self._answer.exists():
            answer = Answer.model_validate_json(self._answer.read_bytes())
            if answer.error:
                raise ProfilingError(answer.error)
            return answer
        error = self._too_early() if self.has_ended() else time_limit_error(self.request.target, self.request.time_limit_s)
        if not self._partial.exists():
            raise error
        answer = Answer.model_validate_json(self._partial.read_bytes())
        answer.notes.append(f"not finished: {error}")
        return answer

    def _too_early(self) -> ProfilingError:
        last_message = self._last_on_stderr.decode(errors="replace").strip().rpartition("\n")[2]
        return ProfilingError(
            f"target {self.request.target!r} ended its process {_ended(self._process.returncode)} before it returned "
            f"(last on stderr: {last_message or 'nothing'}); make it return without ending the interpreter"
        )


def _ended(status: int) -> str:
    if status >= 0:
        return f"with status {status}"
    with contextlib.suppress(ValueError):
        return f"by {signal.Signals(-status).name}{' (a segmentation fault)' if -status == signal.SIGSEGV else ''}"
    return f"by signal {-status}"


def run_child(request: Request, time_limit_s: float) -> Answer:
    """The answer of a child process to `request`; see `Child.wait`."""
    with Child(request) as child:
        return child.wait(time_limit_s)
