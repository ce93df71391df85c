"""A target in a child process: does the jobs of `child.Dispatcher` there, as long as the target lets it."""

import time
from collections.abc import Iterator
from typing import Self

from .child import ChildJob, ChildResult, TargetSpec
from .run.process import Child, ChildEnded
from .run.runnable import ProfilingError

_TICK_S = 0.05


class InChild:
    """The target in one child process; in another one after a crash, or where a tool took too long."""

    def __init__(self, spec: TargetSpec, time_limit_s: float):
        self._spec, self._time_limit_s, self._child = spec, time_limit_s, None
        self.notes: list[str] = []

    def __enter__(self) -> Self:
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
                    raise ChildEnded(too_slow(self._time_limit_s))
                yield (result := ChildResult.model_validate_json(line or "{}"))
                if result.awaits:
                    self._child.send(self._spec.model_dump_json() if result.awaits == "target" else "go")
        except ChildEnded as error:
            self._end()
            raise ProfilingError(f"target {self._spec.target!r} {error}") from None
        if result.error:
            raise ProfilingError(result.error)


def too_slow(time_limit_s: float) -> str:
    return (
        f"did not finish within time_limit_s={time_limit_s:g}; give it a smaller input by its arguments, "
        "more time (time_limit_s, --time-limit), or start it by itself and profile it as pid:NUMBER"
    )
