"""What runs in the child process; what the target does to it (exit, crash, never end, print megabytes) stays in it.

The target is imported, set up and warmed up once; then the child does one job after the other and says what it finds as it
goes, so that a crash leaves what was found before. Nothing here imports NumPy: the target shall find the process as Python
would have started it.
"""

import contextlib
import copy
import functools
import os
from collections.abc import Callable, Iterator
from time import perf_counter  # as it was before the target ran, which may put another clock there
from typing import Any, Literal

from pydantic import BaseModel, JsonValue

from .record.alternatives import Comparison, race
from .record.calls import RecordedFunction
from .record.lines import FunctionLines, time_lines
from .record.measure import Run, blas_threads, measure, timed_run
from .record.py_spy import allow_sampling, settle
from .run.asgi import AsgiRequest, application
from .run.process import Channel
from .run.runnable import FunctionKey, ProfilingError, Runnable, Script, describe, process_state_restored
from .run.targets import Target, prepare, resolve

_MOST_TRACED_RUNS, _SHORT_S = 3, 0.5
_TOLD_AFTER_S = 0.1  # runs of a millisecond are told of together


class TargetSpec(BaseModel, ser_json_inf_nan="constants"):
    """What is profiled: the first message."""

    target: str
    setup: str | None = None
    arguments: dict[str, JsonValue] = {}
    argv: list[str] = []
    requests: list[AsgiRequest] | None = None
    concurrency: int = 1


class ChildJob(BaseModel):
    """Measure the target, repeat it while a sampler watches, time its lines, trace its arrays, or race another function."""

    mode: Literal["warm up", "measure", "sample", "lines", "trace", "race"]
    time_limit_s: float = 0  # to plan with
    n_repeats: int = 1
    n_threads: int | None = None  # of BLAS and OpenMP: 1, or as the program has them
    first_s: float = 0
    for_s: float = 0
    is_patient: bool = False  # sampled, however much the sampler slows it down
    functions: list[FunctionKey] = []  # whose lines are timed, or whose calls are recorded
    check_port: bool = False
    alternative: Any = None  # that races the target
    same_answer: Any = None  # a function of both answers; None: as `compare_answers`


class ChildResult(BaseModel):
    """What was found since the last message."""

    root: FunctionKey | None = None
    runs: list[Run] = []
    lines: list[FunctionLines] = []
    traces: list[RecordedFunction] = []
    comparison: Comparison | None = None
    notes: list[str] = []
    awaits: Literal["target", "sampler"] | None = None  # a message that tells of the one, or that the other is there
    fell_behind: bool = False  # it was not run, for the sampler takes too long
    error: str | None = None
    is_last: bool = False


def main(address: str) -> None:
    allow_sampling()
    channel = Channel(address)
    channel.send(ChildResult(awaits="target").model_dump_json())
    with Dispatcher(TargetSpec.model_validate_json(channel.receive()), process_state_restored) as dispatcher:
        job = ChildJob(mode="warm up")
        while job:
            last = ChildResult(is_last=True)
            try:
                for result in dispatcher.answers(job):
                    channel.send(result.model_dump_json())
                    if result.awaits:
                        channel.receive()
            except ProfilingError as error:
                last.error = str(error)
            except Exception as error:  # the profiler's own, among objects that the target has changed
                last.error = f"the profiler itself raised {describe(error)}"
            channel.send(last.model_dump_json())
            line = channel.receive()
            job = ChildJob.model_validate_json(line) if line else None
    channel.send(ChildResult(notes=dispatcher.notes).model_dump_json())  # of an application's end


def sampled_call(call: Callable[[], Any]) -> None:
    """Below this function's frame the target's own frames begin; `sampling` looks for it by name."""
    call()


class Dispatcher(contextlib.ExitStack):
    """Does jobs on a target in this process, one after the other; leaving the `with` block ends an application."""

    def __init__(self, spec: TargetSpec, around: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext):
        super().__init__()
        self._spec, self._around = spec, around
        self._runnable: Runnable | None = None
        self.pid = os.getpid()

    @property
    def notes(self) -> list[str]:
        return self._runnable.notes if self._runnable else []

    def answers(self, job: ChildJob) -> Iterator[ChildResult]:
        """What a job finds, as it goes."""
        match job.mode:
            case "warm up":
                self._runnable = self._prepare(self._spec.target, self._spec.arguments)
                yield ChildResult(root=self._runnable.root)
                yield ChildResult(runs=[timed_run(self._runnable, "warm-up")])
            case "measure":
                for found in measure(self._runnable, job.first_s, job.n_repeats, job.time_limit_s):
                    yield ChildResult(runs=[found]) if isinstance(found, Run) else ChildResult(notes=[found])
            case "race":
                functions = (self._spec.target, job.alternative)
                contestants = (self._prepare(each, copy.deepcopy(self._spec.arguments)) for each in functions)
                same_answer = resolve(job.same_answer) if job.same_answer else None
                for found in race(*contestants, job.n_repeats, job.time_limit_s, same_answer):
                    yield ChildResult(runs=[found]) if isinstance(found, Run) else ChildResult(comparison=found)
            case "sample":
                yield ChildResult(awaits="sampler")
                if not settle() and not job.is_patient:
                    yield ChildResult(fell_behind=True)
                    return
                stop, runs = perf_counter() + job.for_s, []
                while not runs or perf_counter() < stop:
                    yield ChildResult(runs=(runs := self._repeat(job.n_threads, min(stop, perf_counter() + _TOLD_AFTER_S))))
            case "lines":
                with blas_threads(job.n_threads):
                    run, lines = time_lines(self._runnable, job.functions)
                yield ChildResult(runs=[run], lines=lines)
            case "trace":
                with blas_threads(job.n_threads):
                    yield _trace(self._runnable, job)
        yield ChildResult(notes=self.notes)

    def _prepare(self, target: Target, arguments: dict[str, Any]) -> Runnable:
        if self._spec.requests is not None:
            runnable = self.enter_context(application(target, self._spec.requests, self._spec.concurrency))
        else:
            runnable = prepare(target, self._spec.setup, arguments, self._spec.argv)
        runnable.around = self._around
        return runnable

    def _repeat(self, n_threads: int | None, stop: float) -> list[Run]:
        runs = []
        with blas_threads(n_threads):
            while not runs or perf_counter() < stop:
                runs.append(timed_run(self._runnable, "py-spy", under=sampled_call))
        return runs


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
