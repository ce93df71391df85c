"""One profile out of the tools: a baseline without any of them, then what each adds, all within one time limit."""

import linecache
import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..results import WorkloadProfile
from .child import TargetSpec
from .run.asgi import load_requests
from .run.targets import ProfilingError, Target, target_key, target_kind, target_name
from .session import Session

_TRACED_SHARE = 0.05  # of the time: what a function below it does with arrays changes no decision
_TAKES = {
    "function": {"setup", "arguments", "alternatives"},
    "web application": {"requests"},  # what else it needs, its factory gives
    "script": {"argv"},
}


def profile(
    target: Target,
    *,
    setup: Target | None = None,
    arguments: Mapping[str, Any] | None = None,
    argv: Sequence[str] = (),
    requests: str | os.PathLike | Sequence[Mapping[str, Any]] | None = None,
    concurrency: int = 1,
    workload: str | None = None,
    n_repeats: int = 3,
    sampling_rate_hz: int = 200,
    sampling_s: float = 2.0,
    time_limit_s: float = 120.0,
    n_line_functions: int = 3,
    trace_arrays: bool = True,
    check_port: bool = False,
    alternatives: Sequence[Target] = (),
    same_answer: Target | None = None,
) -> WorkloadProfile:
    """Where the time of a program goes, and what its functions do with arrays.

    A target runs many times with the same input and must be safe to run repeatedly: once to warm up; `n_repeats` times without
    a profiler for each of two BLAS thread counts, up to 10 times if that takes less than a second, and `n_repeats` times under
    cProfile; as often as `sampling_s` seconds allow under py-spy; once under line_profiler, and once under the array tracer.
    `WorkloadProfile.n_runs` is the number that it came to. Its results stay as they are, but for the rounding that a thread
    count decides. Imports and caches of the first run serve the later ones. A tool that fails, or for which no
    time is left, leaves a note; of a long run see `record.measure.measure`.

    Code outside the user's project is folded into the function that called it: see `folding`, and `sampling.counted`
    for threads. Each resumption of a coroutine or generator is one of its calls.

    Args:
        target: `"module:function"`, plain or `async def`; `"path/to/script.py"`, run as `__main__`; with `requests` an ASGI
            application `"module:app"` or its factory `"module:create_app()"`; or a callable. All run in one child process,
            another one only after a crash, to which callables and arguments go by cloudpickle.
        setup: as `target`; what it returns is the function's one argument. Not timed.
        arguments: of the function, or of its set-up, by name.
        argv: arguments of a script.
        requests: a JSON Lines file, or a list, of `{"method", "path", "headers", "json" or "body"}`; one run sends all.
        concurrency: requests under way at a time.
        workload: what results call it; the module's or script's last name by default.
        n_line_functions: whose lines are timed, those with the greatest shares.
        alternatives: functions, as `target`, that are run in turns with it, each on a set-up value or arguments of its own;
            their answers are compared with the target's.
        same_answer: a function of both answers that says whether they agree; None: numbers within a tolerance, the rest equal.
        check_port: note where a CuPy port would copy to the host (`ArrayTrace.hidden_transfers`).

    Raises:
        ProfilingError: the target cannot be found, called or finished; the message says why and what to do.
        ValueError: a number that is not positive.
    """
    numbers = {"n_repeats": n_repeats, "sampling_rate_hz": sampling_rate_hz, "sampling_s": sampling_s}
    for option, number in {**numbers, "time_limit_s": time_limit_s, "concurrency": concurrency}.items():
        if number <= 0:
            raise ValueError(f"{option} must be positive, got {number!r}")
    name, kind = target_name(target), "web application" if requests is not None else target_kind(target)
    options = {"setup": setup, "arguments": arguments, "argv": argv, "requests": requests, "alternatives": alternatives}
    if refused := sorted({option for option, value in options.items() if value} - _TAKES[kind]):
        nothing = f"for which {' and '.join(refused)} mean nothing; it takes {', '.join(sorted(_TAKES[kind]))}"
        hint = "; in a terminal, options go before the target" if "argv" in refused else ""
        raise ProfilingError(f"target {name!r} is a {kind}, {nothing}{hint}")
    options |= {"argv": [*map(str, argv)], "requests": load_requests(requests) if requests is not None else None}
    spec = TargetSpec(target, concurrency=concurrency, same_answer=same_answer, **options)
    with Session(name, _pickle(name, spec), time_limit_s) as session:
        session.measure(n_repeats)
        session.sample(sampling_s, sampling_rate_hz)
        if functions := session.hottest()[:n_line_functions]:
            session.use("line_profiler gave no lines", "lines", functions=functions)
        if trace_arrays:
            session.use("no trace of arrays", "trace", functions=session.hottest(_TRACED_SHARE), check_port=check_port)
        for number, alternative in enumerate(alternatives):
            session.race(number, target_name(alternative), n_repeats)
    short_name = Path(name).stem if kind == "script" else name.partition(":")[0].rpartition(".")[2]
    if kind == "script":
        name = shlex.join([name, *map(str, argv)])
        session.notes.append("a script's imports are made in its first run, which is not counted, and kept for the later ones")
    elif requests:
        name = f"{name} under {len(options['requests'])} requests" + (f", {concurrency} at a time" if concurrency > 1 else "")
    return session.profile(name, workload or short_name)


def _pickle(name: str, spec: TargetSpec) -> bytes:
    """With the source of what stands in no file, such as a notebook's cells."""
    import cloudpickle

    for function in filter(callable, (spec.target, spec.setup, *spec.alternatives)):
        file = target_key(function).file
        if not os.path.exists(file):
            spec.sources[file] = linecache.getlines(file)
    try:
        return cloudpickle.dumps(spec)
    except Exception as error:  # whatever the object raises
        what = f"target {name!r}, its set-up or its arguments cannot reach the child process that runs it"
        raise ProfilingError(f"{what} ({error}); make them in setup, or name functions as 'module:function'") from error
