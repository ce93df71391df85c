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
from typing import Any, Literal, Self

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


class TargetSpec(BaseModel, ser_json_inf_nan="constants"):
    """What is profiled: the first message."""

    target: str
    setup: str | None = None
    arguments: dict[str, JsonValue] = {}
    argv: list[str] = []
    requests: list[AsgiRequest] | None = None
    concurrency: int = 1


class ChildJob(BaseModel):
    """Warm the target up, measure it, repeat it while a sampler watches, time its lines, trace it, or race another function."""

    mode: Literal["warm up", "measure", "sample", "lines", "trace", "race"]
    time_limit_s: float = 0  # to plan with
    n_repeats: int = 1
    n_threads: int | None = None  # of BLAS and OpenMP: 1, or as the program has them
    for_s: float = 0
    functions: list[FunctionKey] = []  # whose lines are timed, or whose calls are recorded
    check_port: bool = False
    alternative: Any = None  # that races the target
    same_answer: Any = None  # a function of both answers; None: as `compare_answers`


class ChildResult(BaseModel, ser_json_inf_nan="constants"):
    """What was found since the last message."""

    root: FunctionKey | None = None
    runs: list[Run] = []
    lines: list[FunctionLines] = []
    traces: list[RecordedFunction] = []
    comparison: Comparison | None = None
    notes: list[str] = []
    error: str | None = None
    is_last: bool = False  # of its job


def sampled_call(call: Callable[[], Any]) -> None:
    """Below this function's frame the target's own frames begin; `sampling` looks for it by name."""
    call()


class Dispatcher(contextlib.ExitStack):
    """Does jobs on a target in this process, one after the other; leaving the `with` block ends an application."""

    def __init__(self, spec: TargetSpec, around: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext):
        super().__init__()
        self._spec, self._around = spec, around
        self.pid, self.notes = os.getpid(), []

    def answers(self, job: ChildJob) -> Iterator[ChildResult]:
        """What a job finds, as it goes."""
        with blas_threads(job.n_threads):
            match job.mode:
                case "warm up":
                    self._runnable = self._prepare(self._spec.target, self._spec.arguments)
                    self.notes = self._runnable.notes
                    yield ChildResult(root=self._runnable.root)
                    self._first = timed_run(self._runnable, "warm-up")
                    yield ChildResult(runs=[self._first])
                case "measure":
                    for found in measure(self._runnable, self._first.wall_s, job.n_repeats, job.time_limit_s):
                        yield ChildResult(runs=[found]) if isinstance(found, Run) else ChildResult(notes=[found])
                case "race":
                    functions = (self._spec.target, job.alternative)
                    contestants = (self._prepare(each, copy.deepcopy(self._spec.arguments)) for each in functions)
                    same_answer = resolve(job.same_answer) if job.same_answer else None
                    for found in race(*contestants, job.n_repeats, job.time_limit_s, same_answer):
                        yield ChildResult(runs=[found]) if isinstance(found, Run) else ChildResult(comparison=found)
                case "sample":
                    settle()
                    start = perf_counter()
                    while True:
                        yield ChildResult(runs=[timed_run(self._runnable, "py-spy", under=sampled_call)])
                        if perf_counter() - start > job.for_s:
                            break
                case "lines":
                    run, lines = time_lines(self._runnable, job.functions)
                    yield ChildResult(runs=[run], lines=lines)
                case "trace":
                    yield _trace(self._runnable, job)
        yield ChildResult(notes=self.notes)

    def _prepare(self, target: Target, arguments: dict[str, Any]) -> Runnable:
        if self._spec.requests is not None:
            runnable = self.enter_context(application(target, self._spec.requests, self._spec.concurrency))
        else:
            runnable = prepare(target, self._spec.setup, arguments, self._spec.argv)
        runnable.around = self._around
        return runnable


def _trace(runnable: Runnable, job: ChildJob) -> ChildResult:
    """Of a short target the fastest of a few traced runs: what else the machine does only ever adds time."""
    from .record.folding import Project
    from .record.tracing import instrument_source, trace

    if isinstance(script := runnable.call, Script):
        script.code = instrument_source(script.source, script.path, job.functions, check_port=job.check_port)
    run, found = functools.partial(timed_run, runnable, "array trace"), []
    while not found or (len(found) < _MOST_TRACED_RUNS and sum(run.wall_s for run, *_ in found) < _SHORT_S):
        found.append(trace(run, Project(runnable.root.file), runnable.root, job.functions, job.check_port))
    _, traces, notes = min(found, key=lambda each: each[0].wall_s)
    return ChildResult(runs=[run for run, *_ in found], traces=traces, notes=notes)


def main(descriptor: int) -> None:
    """What the child process does."""
    allow_sampling()
    channel = Channel(descriptor)
    with Dispatcher(TargetSpec.model_validate_json(channel.receive()), process_state_restored) as dispatcher:
        while text := channel.receive():
            last = ChildResult(is_last=True)
            try:
                for result in dispatcher.answers(ChildJob.model_validate_json(text)):
                    channel.send(result.model_dump_json())
            except ProfilingError as error:
                last.error = str(error)
            except Exception as error:  # the profiler's own, among objects that the target has changed
                last.error = f"the profiler itself raised {describe(error)}"
            channel.send(last.model_dump_json())
    channel.send(ChildResult(notes=dispatcher.notes).model_dump_json())  # of an application's end


class InChild:
    """As `Dispatcher`, in a child process; in another one after a crash, or where a tool took too long."""

    def __init__(self, spec: TargetSpec, time_limit_s: float):
        self._spec, self._time_limit_s = spec, time_limit_s
        self._child: Child | None = None
        self.notes: list[str] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error_type: type | None, *_: object) -> None:
        if self._child and error_type is None:
            for text in self._child.finish():
                self.notes += ChildResult.model_validate_json(text).notes
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
        """What a job finds, as it goes, a warm target first; empty results while there is nothing new.

        Raises:
            ProfilingError: the job failed, its time was over, or the target's process ended.
        """
        stop = time.monotonic() + job.time_limit_s
        if self._child is None:
            self._child = Child(__name__)
            self._child.send(self._spec.model_dump_json())
            yield from self._receive(ChildJob(mode="warm up"), stop)
        if job.mode != "warm up":
            yield from self._receive(job, stop)

    def _receive(self, job: ChildJob, stop: float) -> Iterator[ChildResult]:
        result = ChildResult()
        try:
            self._child.send(job.model_dump_json())
            while not result.is_last:
                text = self._child.receive(TICK_S)
                if text is None and time.monotonic() > stop:
                    raise ChildEnded(
                        f"did not finish within time_limit_s={self._time_limit_s:g}; give it a smaller input by its arguments, "
                        "more time (time_limit_s, --time-limit), or start it by itself and profile it as pid:NUMBER"
                    )
                yield (result := ChildResult.model_validate_json(text or "{}"))
        except ChildEnded as error:
            self._end()
            raise ProfilingError(f"target {self._spec.target!r} {error}") from None
        if result.error:
            if job.mode == "warm up":  # there is no target in it
                self._end()
            raise ProfilingError(result.error)
