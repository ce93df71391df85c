"""A target and the tools on it: in this process, or in a child process with whatever the target does to that.

The target is imported, set up and warmed up once; then one job after the other is done, and what it finds is said as it goes,
so that a crash leaves what was found before. Nothing here imports NumPy: the target shall find its process as Python would have
started it.
"""

import contextlib
import copy
import functools
import os
import time
from collections.abc import Callable, Iterator
from time import perf_counter  # as it was before the target ran, which may put another clock there
from typing import Any

from pydantic import BaseModel, JsonValue

from .record.alternatives import Comparison, race
from .record.calls import RecordedFunction
from .record.lines import FunctionLines, time_lines
from .record.measure import Run, blas_threads, measure, timed_run
from .record.py_spy import allow_sampling, settle
from .run.asgi import AsgiRequest, application
from .run.process import TICK_S, Channel, Child, ChildEnded
from .run.runnable import FunctionKey, ProfilingError, Runnable, Script, describe, process_state_restored
from .run.targets import Target, prepare, resolve

_MOST_TRACED_RUNS, _SHORT_S = 3, 0.5


class TargetSpec(BaseModel):
    """What is profiled: the first message."""

    target: str
    setup: str | None = None
    arguments: dict[str, JsonValue] = {}
    argv: list[str] = []
    requests: list[AsgiRequest] | None = None
    concurrency: int = 1
    alternatives: list[str] = []
    same_answer: str | None = None


class ChildResult(BaseModel, ser_json_inf_nan="constants"):
    """Something that was found: the target's root function, a run, lines of a function, ..., or a note. Or the end of a job."""

    found: FunctionKey | Run | FunctionLines | RecordedFunction | Comparison | str | None = None
    error: str | None = None
    is_last: bool = False


def sampled_call(call: Callable[[], Any]) -> None:
    """Below this function's frame the target's own frames begin; `sampling` looks for it by name."""
    call()


class Dispatcher(contextlib.ExitStack):
    """Does jobs on a target in this process, one after the other; leaving the `with` block ends an application."""

    def __init__(self, spec: TargetSpec, around: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext):
        super().__init__()
        self._spec, self._around = spec, around
        self.pid, self.notes = os.getpid(), []

    def answers(self, job: str, time_limit_s: float, n_threads: int | None = None, **options: Any) -> Iterator[Any]:
        """What a job finds, as it goes.

        Args:
            job: one of the methods below, which takes `options`.
            time_limit_s: to plan with.
            n_threads: of BLAS and OpenMP: 1, or as the program has them.
        """
        self._time_limit_s = time_limit_s
        with blas_threads(n_threads):
            yield from getattr(self, job)(**options)
        yield from self.notes

    def warm_up(self) -> Iterator[FunctionKey | Run]:
        self._runnable = self._prepare(self._spec.target, self._spec.arguments)
        self.notes = self._runnable.notes
        yield self._runnable.root
        self._first = timed_run(self._runnable, "warm-up")
        yield self._first

    def measure(self, n_repeats: int) -> Iterator[Run | str]:
        return measure(self._runnable, self._first.wall_s, n_repeats, self._time_limit_s)

    def race(self, alternative: Target, n_repeats: int) -> Iterator[Run | Comparison]:
        functions = (self._spec.target, alternative)
        contestants = (self._prepare(each, copy.deepcopy(self._spec.arguments)) for each in functions)
        same_answer = resolve(self._spec.same_answer) if self._spec.same_answer else None
        return race(*contestants, n_repeats, self._time_limit_s, same_answer)

    def sample(self, for_s: float) -> Iterator[Run]:
        """Runs, for so many seconds; at least one."""
        settle()
        start = perf_counter()
        yield timed_run(self._runnable, "py-spy", under=sampled_call)
        while perf_counter() - start < for_s:
            yield timed_run(self._runnable, "py-spy", under=sampled_call)

    def lines(self, functions: list[FunctionKey]) -> Iterator[Run | FunctionLines]:
        run, lines = time_lines(self._runnable, functions)
        yield from [run, *lines]

    def trace(self, functions: list[FunctionKey], check_port: bool) -> Iterator[Run | RecordedFunction | str]:
        """Of a short target the fastest of a few traced runs: what else the machine does only ever adds time."""
        from .record.folding import Project
        from .record.tracing import instrument_source, trace

        runnable = self._runnable
        if isinstance(script := runnable.call, Script):
            script.code = instrument_source(script.source, script.path, functions, check_port=check_port)
        run, found = functools.partial(timed_run, runnable, "array trace"), []
        while not found or (len(found) < _MOST_TRACED_RUNS and sum(run.wall_s for run, *_ in found) < _SHORT_S):
            found.append(trace(run, Project(runnable.root.file), runnable.root, functions, check_port))
        _, traces, notes = min(found, key=lambda each: each[0].wall_s)
        yield from [*(run for run, *_ in found), *traces, *notes]

    def _prepare(self, target: Target, arguments: dict[str, Any]) -> Runnable:
        if self._spec.requests is not None:
            runnable = self.enter_context(application(target, self._spec.requests, self._spec.concurrency))
        else:
            runnable = prepare(target, self._spec.setup, arguments, self._spec.argv)
        runnable.around = self._around
        return runnable


def main(descriptor: int) -> None:
    """What the child process does."""
    allow_sampling()
    channel = Channel(descriptor)
    with Dispatcher(channel.receive(), process_state_restored) as dispatcher:
        while job := channel.receive():
            last = ChildResult(is_last=True)
            try:
                for found in dispatcher.answers(**job):
                    channel.send(ChildResult(found=found).model_dump_json())
            except ProfilingError as error:
                last.error = str(error)
            except Exception as error:  # the profiler's own, among objects that the target has changed
                last.error = f"the profiler itself raised {describe(error)}"
            channel.send(last.model_dump_json())
    for note in dispatcher.notes:  # of an application's end
        channel.send(ChildResult(found=note).model_dump_json())


class InChild(contextlib.AbstractContextManager):
    """As `Dispatcher`, in a child process; in another one after a crash, or where a tool took too long."""

    def __init__(self, spec: TargetSpec, time_limit_s: float):
        self._spec, self._time_limit_s = spec, time_limit_s
        self._child: Child | None = None
        self.notes: list[str] = []

    def __exit__(self, error_type: type | None, *_: object) -> None:
        if self._child and error_type is None:
            self.notes += [ChildResult.model_validate_json(text).found for text in self._child.finish()]
        self._end()

    def _end(self) -> None:
        if self._child and (left := self._child.end()):
            self.notes.append(f"these processes of the target would not end: {', '.join(left)}")
        self._child = None

    @property
    def pid(self) -> int | None:
        """None: the target's process has ended; the next job gets another one."""
        return self._child and self._child.pid

    def answers(self, job: str, time_limit_s: float, **options: Any) -> Iterator[Any]:
        """What a job finds, as it goes, with a warm target; None while there is nothing new.

        Raises:
            ProfilingError: the job failed, its time was over, or the target's process ended.
        """
        stop = time.monotonic() + time_limit_s
        if self._child is None:
            self._child = Child(__name__)
            self._child.send(self._spec)
            yield from self._receive(stop, job="warm_up", time_limit_s=time_limit_s)
        if job != "warm_up":
            yield from self._receive(stop, job=job, time_limit_s=time_limit_s, **options)

    def _receive(self, stop: float, **job: Any) -> Iterator[Any]:
        result = ChildResult()
        try:
            self._child.send(job)
            while not result.is_last:
                text = self._child.receive(TICK_S)
                if text is None and time.monotonic() > stop:
                    raise ChildEnded(
                        f"did not finish within time_limit_s={self._time_limit_s:g}; give it a smaller input by its arguments, "
                        "more time (time_limit_s, --time-limit), or start it by itself and profile it as pid:NUMBER"
                    )
                result = ChildResult.model_validate_json(text or "{}")
                yield result.found
        except ChildEnded as error:
            self._end()
            raise ProfilingError(f"target {self._spec.target!r} {error}") from None
        if result.error:
            if job["job"] == "warm_up":  # there is no target in it
                self._end()
            raise ProfilingError(result.error)
