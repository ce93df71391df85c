"""Where a target runs: in a child process, or in this one. Both answer jobs, piece by piece."""

import copy
import os
import reprlib
import time
from collections.abc import Iterator
from typing import Any

from pydantic import ValidationError

from .child import ChildJob, ChildResult, TargetSpec, answer
from .run.asgi import application
from .run.process import Child, ChildEnded
from .run.runnable import ProfilingError
from .run.targets import Target, prepare, target_name

_TICK_S = 0.05


class InChild:
    """The target in one child process; in another one after a crash, or where a tool took too long."""

    def __init__(self, target: Target, time_limit_s: float, **spec: Any):
        self.target, self.time_limit_s, self.notes = target, time_limit_s, []
        self._child: Child | None = None
        try:
            self._spec = TargetSpec(target=target_name(target), **spec)
        except ValidationError as error:
            first = error.errors()[0]
            what = f"{'.'.join(map(str, first['loc']))}={reprlib.repr(first['input'])}"
            raise ProfilingError(
                f"{what} cannot reach the child process that runs {target_name(target)!r} ({first['msg']}); "
                "use JSON values as arguments, or make them in setup; name setup as 'module:function'"
            ) from None

    def __enter__(self) -> "InChild":
        return self

    def __exit__(self, error_type: type | None, *_: object) -> None:
        if self._child and error_type is None:
            for line in self._child.finish():
                self.notes += ChildResult.model_validate_json(line).notes
        self._end()

    def _end(self) -> None:
        if self._child and (left := self._child.end()):
            self.notes.append(f"these processes of the target would not end: {', '.join(left)}")
        self._child = None

    @property
    def pid(self) -> int | None:
        """None: the target's process has ended; the next job gets another one."""
        return self._child and self._child.pid

    def answers(self, job: ChildJob) -> Iterator[ChildResult]:
        """What a job finds, as it goes; empty results while there is nothing new.

        Raises:
            ProfilingError: the job failed, its time was over, or the target's process ended.
        """
        stop = time.monotonic() + job.time_limit_s
        if self._child is None:
            self._child = Child("altlas_lib.profiling.child")
            try:
                yield from self._receive(stop)
            except ProfilingError:  # there is no target in it
                self._end()
                raise
        if job.mode != "warm up":
            self._child.send(job.model_dump_json())
            yield from self._receive(stop)

    def _receive(self, stop: float) -> Iterator[ChildResult]:
        result = ChildResult()
        try:
            while not result.is_last:
                line = self._child.receive(_TICK_S)
                if line is None and time.monotonic() > stop:
                    self._end()
                    raise time_limit_error(self._spec.target, self.time_limit_s)
                yield (result := ChildResult.model_validate_json(line or "{}"))
                if result.awaits:
                    self._child.send(self._spec.model_dump_json() if result.awaits == "target" else "go")
        except ChildEnded as error:
            self._end()
            raise ProfilingError(f"target {self._spec.target!r} {error}") from None
        if result.error:
            raise ProfilingError(result.error)


class InThisProcess:
    """A callable target; it can be stopped between runs only."""

    pid = os.getpid()

    def __init__(self, target: Target, time_limit_s: float, *, setup, arguments, requests, concurrency: int, **_: object):
        self.target, self.time_limit_s, self.notes = target, time_limit_s, []
        self._setup, self._arguments = setup, arguments
        self._application = application(target, requests, concurrency) if requests else None

    def __enter__(self) -> "InThisProcess":
        self._runnable = self._application.__enter__() if self._application else self._prepare(self.target)
        return self

    def __exit__(self, *error: object) -> None:
        if self._application:
            self._application.__exit__(*error)
            self.notes += self._runnable.notes

    def _prepare(self, target: Target):
        return prepare(target, self._setup, self._arguments)

    def answers(self, job: ChildJob) -> Iterator[ChildResult]:
        return answer(job, self._runnable, lambda target: prepare(target, self._setup, copy.deepcopy(self._arguments)))


def time_limit_error(name: str, time_limit_s: float) -> ProfilingError:
    return ProfilingError(
        f"target {name!r} did not finish within time_limit_s={time_limit_s:g}; give it a smaller input by its arguments, "
        "more time (time_limit_s, --time-limit), or start it by itself and profile it as pid:NUMBER"
    )
