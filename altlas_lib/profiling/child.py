"""What the child process does: one job after the other on a target that is imported, set up and warmed up once.

What a job finds is said as it goes, so that a crash leaves what was found before. Nothing here imports NumPy: the target shall
find its process as Python would have started it.
"""

import contextlib
import ctypes
import functools
import linecache
import multiprocessing.connection
import os
import pickle
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter  # as it was before the target ran, which may put another clock there
from typing import Any

from pydantic import BaseModel

from .record.calls import RecordedFunction
from .record.measure import Run, measure, race, time_lines, timed_run
from .run.targets import FunctionKey, ProfilingError, Runnable, Target, call_user_code, describe, prepare, resolve

_ON_TIME_S, _N_ON_TIME, _NEVER_ON_TIME_S = 0.05, 20, 3.0
_PR_SET_PTRACER, _ANY_PROCESS = 0x59616D61, -1


@dataclass
class TargetSpec:
    """What is profiled: the first message."""

    target: Target
    setup: Target | None = None
    arguments: Mapping[str, Any] | None = None
    argv: Sequence[str] = ()
    requests: Sequence[Any] | None = None  # `asgi.AsgiRequest`
    alternatives: Sequence[Target] = ()
    same_answer: Target | None = None
    sources: dict[str, list[str]] = field(default_factory=dict)  # of files that only the parent has: a notebook's cells


class ChildResult(BaseModel, ser_json_inf_nan="constants"):
    """Something that was found: the target's root function, a run, what it recorded, or a note. Or the end of a job."""

    found: FunctionKey | Run | RecordedFunction | str | None = None
    error: str | None = None
    is_last: bool = False


def sampled_call(call: Callable[[], Any]) -> None:
    """Below this function's frame the target's own frames begin; `sampling` looks for it by name."""
    call()


class Jobs(contextlib.ExitStack):
    """The jobs; each yields what it finds."""

    def __init__(self, pickled_spec: bytes):
        super().__init__()
        self._pickled_spec, self._runnable = pickled_spec, None

    def do(self, job: str, time_limit_s: float, **options: Any) -> Iterator[Any]:
        """One of the methods below, which takes `options`; it plans with the time limit."""
        self._time_limit_s = time_limit_s
        yield from self.warm_up()
        yield from getattr(self, job)(**options)
        yield from self._runnable.notes

    def warm_up(self) -> Iterator[FunctionKey | Run]:
        """Import, set up and run the target, unless that has been done."""
        if self._runnable:
            return
        self._spec = self._read_spec()
        for file, lines in self._spec.sources.items():
            linecache.cache[file] = len(lines), None, lines, file
        runnable = self._prepare(self._spec)
        yield runnable.root
        self._first = timed_run(runnable, "warm-up")
        yield self._first
        self._runnable = runnable

    def stop(self) -> Iterator[Run]:
        """End an application."""
        self.close()
        return iter(())

    def measure(self, n_repeats: int) -> Iterator[Run | str]:
        return measure(self._runnable, self._first.wall_s, n_repeats, self._time_limit_s)

    def race(self, number: int, n_repeats: int) -> Iterator[Run]:
        """The target and one of the alternatives, with an input of its own each."""
        target, alternative = self._read_spec(), self._read_spec()
        alternative.target = alternative.alternatives[number]
        same_answer = resolve(self._spec.same_answer) if self._spec.same_answer else None
        return race(self._prepare(target), self._prepare(alternative), n_repeats, self._time_limit_s, same_answer)

    def sample(self, for_s: float) -> Iterator[Run]:
        """Runs, for so many seconds; at least one."""
        _wait_for_sampler()
        start = perf_counter()
        yield timed_run(self._runnable, "py-spy", under=sampled_call)
        while perf_counter() - start < for_s:
            yield timed_run(self._runnable, "py-spy", under=sampled_call)

    def lines(self, functions: list[FunctionKey]) -> Iterator[Run]:
        yield time_lines(self._runnable, functions)

    def trace(self, functions: list[FunctionKey], check_port: bool) -> Iterator[Run | RecordedFunction | str]:
        from .record.folding import Project
        from .record.tracing import trace

        run = functools.partial(timed_run, self._runnable, "array trace")
        root = self._runnable.root
        run, traces, notes = trace(run, Project(root.file), root, functions, check_port=check_port)
        yield from [run, *traces, *notes]

    def _read_spec(self) -> TargetSpec:
        return call_user_code(functools.partial(pickle.loads, self._pickled_spec), "reading the target and its arguments")

    def _prepare(self, spec: TargetSpec) -> Runnable:
        if spec.requests is not None:
            from .run.asgi import application  # httpx

            return self.enter_context(application(spec.target, spec.requests))
        return prepare(spec.target, spec.setup, spec.arguments, spec.argv)


def _allow_sampling() -> None:
    """Where only its ancestors may look into a process, let the sampler, this one's sibling, do so."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PTRACER, ctypes.c_ulong(_ANY_PROCESS), 0, 0, 0)


def _wait_for_sampler() -> None:
    """Until sleeps end on time: a sampler reads symbols at first, and takes the samples that it missed at once."""
    stop, n_on_time = perf_counter() + _NEVER_ON_TIME_S, 0
    while n_on_time < _N_ON_TIME and (start := perf_counter()) < stop:
        time.sleep(0.01)
        n_on_time = n_on_time + 1 if perf_counter() - start < _ON_TIME_S else 0


def main(descriptor: int) -> None:
    """Do what the parent asks for, until it asks for no more."""
    _allow_sampling()
    if os.name != "nt":
        os.set_inheritable(descriptor, False)  # so the other end sees it close when another program takes this one's place
    connection = getattr(multiprocessing.connection, "PipeConnection", multiprocessing.connection.Connection)(descriptor)

    def tell(**result: Any) -> None:
        connection.send_bytes(ChildResult(**result).model_dump_json().encode())

    jobs = Jobs(connection.recv())
    while job := connection.recv():
        error = None
        try:
            for found in jobs.do(**job):
                tell(found=found)
        except ProfilingError as failure:
            error = str(failure)
        except Exception as failure:  # the profiler's own, among objects that the target has changed
            error = f"the profiler itself raised {describe(failure)}"
        tell(error=error, is_last=True)
