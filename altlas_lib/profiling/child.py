"""What runs in the child process; what the target does to it (exit, crash, never end, print megabytes) stays in it.

Nothing here imports NumPy: the target shall find the process as Python would have started it.
"""

import contextlib
import ctypes
import operator
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..paths import write_atomically
from .record.lines import time_lines
from .record.measure import Measurement, blas_threads, measure
from .run.asgi import application
from .run.process import Answer, Request
from .run.runnable import ProfilingError, Runnable, Script, process_state_restored
from .run.targets import prepare

_PR_SET_PTRACER, _ANY_PROCESS = 0x59616D61, -1
_MOST_TRACED_RUNS, _SHORT_S = 3, 0.5
_ON_TIME_S, _N_ON_TIME, _NEVER_ON_TIME_S = 0.05, 20, 5.0


def main(folder: str) -> None:
    request = Request.model_validate_json(Path(folder, "request.json").read_bytes())
    try:
        with _prepared(request) as runnable:
            runnable.around = process_state_restored
            found = answer(request, runnable, Path(folder))
    except ProfilingError as error:
        found = Answer(error=str(error))
    write_atomically(Path(folder, "answer.json"), found.model_dump_json())


def sampled_call(call: Callable[[], Any]) -> None:
    """Below this function's frame the target's own frames begin; `sampling` looks for it by name."""
    call()


def answer(request: Request, runnable: Runnable, folder: Path | None = None) -> Answer:
    """What one tool finds out about a target; in `folder` the child and the process that started it exchange files."""

    def report(measurement: Measurement) -> None:
        if folder:
            write_atomically(folder / "partial.json", Answer(measurement=measurement).model_dump_json())

    if request.mode == "measure":
        measurement = measure(runnable, request.n_repeats, request.time_limit_s, report)
        return Answer(measurement=measurement, notes=runnable.notes)
    if request.warm_up and not runnable.n_finished:
        runnable.timed()
    with blas_threads(request.n_threads):
        match request.mode:
            case "sample":
                return Answer(seconds=_repeat_while_watched(runnable, request.sample_for_s, folder))
            case "lines":
                seconds, lines = time_lines(runnable, request.functions)
                return Answer(seconds=[seconds], lines=lines)
            case "trace":
                return _trace(runnable)


@contextlib.contextmanager
def _prepared(request: Request) -> Iterator[Runnable]:
    if request.requests is not None:
        with application(request.target, request.requests, request.concurrency) as runnable:
            yield runnable
    else:
        yield prepare(request.target, request.setup, request.arguments, request.argv)


def _repeat_while_watched(runnable: Runnable, for_s: float, folder: Path) -> list[float]:
    """Run the target again and again for `for_s` seconds, at least once, as soon as the sampler has found its pace."""
    if sys.platform == "linux":  # where only a process' ancestors may look into it, let the sampler, its sibling, do so too
        ctypes.CDLL(None).prctl(_PR_SET_PTRACER, ctypes.c_ulong(_ANY_PROCESS), 0, 0, 0)
    (folder / "ready").touch()
    while not (folder / "go").exists():
        time.sleep(0.005)
    _settle()
    stop = time.perf_counter() + for_s
    seconds = []
    while not seconds or time.perf_counter() < stop:
        seconds.append(runnable.timed(sampled_call))
    return seconds


def _settle() -> None:
    """Wait until sleeps end on time again: a sampler reads symbols at first, and takes the samples that it missed at once."""
    stop, n_on_time = time.perf_counter() + _NEVER_ON_TIME_S, 0
    while n_on_time < _N_ON_TIME and (start := time.perf_counter()) < stop:
        time.sleep(0.01)
        n_on_time = n_on_time + 1 if time.perf_counter() - start < _ON_TIME_S else 0


def _trace(runnable: Runnable) -> Answer:
    """Of a short target the fastest of a few traced runs: what else the machine does only ever adds time."""
    from .record.folding import Project
    from .record.tracing import instrument_source, trace

    if isinstance(script := runnable.call, Script):
        script.code = instrument_source(script.source, script.path)
    project = Project(runnable.root.file)
    runs = []

    def traced(call: Callable[[], Any]) -> None:
        seconds = []

        def timed() -> None:  # without the rewriting of the source, before and after
            start = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - start)

        _, traces, notes = trace(timed, project, runnable.root)
        runs.append((seconds[0], traces, notes))

    runnable.timed(traced)
    while len(runs) < _MOST_TRACED_RUNS and sum(seconds for seconds, *_ in runs) < _SHORT_S:
        runnable.timed(traced)
    seconds, traces, notes = min(runs, key=operator.itemgetter(0))
    return Answer(seconds=[seconds], traces=[each.model_dump(mode="json") for each in traces], notes=notes)
