"""One profile out of the tools: a baseline without any of them, then what each adds, all within one time limit."""

import os
import reprlib
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ..results import Overhead, WorkloadProfile
from .child import Dispatcher, InChild, TargetSpec
from .record.folding import Project
from .record.functions import function_times
from .record.sampling import counted, flame_stacks, sample_process
from .run.asgi import load_requests
from .run.runnable import FunctionKey, ProfilingError
from .run.targets import Target, target_kind, target_name
from .session import Session, tool_version

_TRACED_SHARE = 0.05  # of the time: what a function below it does with arrays changes no decision
_TAKES = {
    "callable": {"setup", "arguments", "alternatives"},
    "function": {"setup", "arguments", "alternatives"},
    "web application": {"requests"},  # what else it needs, its factory gives
    "script": {"argv"},
    "process": set(),
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
    cProfile; as often as `sampling_s` seconds allow under py-spy; once under line_profiler, and up to three times under the
    array tracer. `WorkloadProfile.n_runs` is the number that it came to. Its results stay as they are, but for the rounding
    that a thread count decides. Imports and caches of the first run serve the later ones. A tool that fails, or for which no
    time is left, leaves a note; of a long run see `record.measure.measure`.

    Code outside the user's project is folded into the function that called it: see `folding`, and `sampling.counted`
    for threads. Each resumption of a coroutine or generator is one of its calls.

    Args:
        target: `"module:function"`, plain or `async def`; `"path/to/script.py"`, run as `__main__`; with `requests` an ASGI
            application `"module:app"` or its factory `"module:create_app()"`. These run in one child process, another one only
            after a crash. A callable runs in this process: it is not sampled, its memory not measured, and `time_limit_s` is
            looked at between runs only. `"pid:1234"` is a running process, which is sampled for `sampling_s` seconds, and
            nothing else.
        setup: as `target`; what it returns is the function's one argument. Not timed.
        arguments: of the function, or of its set-up, by name; JSON values where the target is a name.
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
    name = target_name(target)
    kind = "callable" if callable(target) else target_kind(name)
    options = {"setup": setup, "arguments": arguments, "argv": argv, "requests": requests, "alternatives": alternatives}
    _check_options(name, kind, options)
    if kind == "process":
        return _profile_process(name, workload, sampling_s, sampling_rate_hz)
    requests = load_requests(requests) if requests is not None else None
    options |= {"arguments": arguments or {}, "argv": [*map(str, argv)], "requests": requests, "alternatives": [*alternatives]}
    options |= {"concurrency": concurrency, "same_answer": same_answer}
    with _start(target, kind, options, time_limit_s) as worker:
        session = Session(worker, time_limit_s)
        session.measure(n_repeats)
        session.sample(sampling_s, sampling_rate_hz)
        if functions := session.hottest()[:n_line_functions]:
            session.use("line_profiler gave no lines", "lines", functions=functions)
        if trace_arrays:
            session.use("no trace of arrays", "trace", functions=session.hottest(_TRACED_SHARE), check_port=check_port)
        for alternative in alternatives:
            session.race(alternative, n_repeats)
    session.notes += [note for note in worker.notes if note not in session.notes]
    short_name = Path(name).stem if kind == "script" else name.partition(":")[0].rpartition(".")[2]
    if kind == "script":
        name = shlex.join([name, *map(str, argv)])
        session.notes.append("a script's imports are made in its first run, which is not counted, and kept for the later ones")
    elif requests:
        name = f"{name} under {len(requests)} requests" + (f", {concurrency} at a time" if concurrency > 1 else "")
    return session.profile(name, workload or short_name)


def _start(target: Target, kind: str, options: Mapping[str, Any], time_limit_s: float) -> InChild | Dispatcher:
    if kind == "callable":
        return Dispatcher(TargetSpec.model_construct(target=target, **options))
    try:
        return InChild(TargetSpec(target=target_name(target), **options), time_limit_s)
    except ValidationError as error:
        first = error.errors()[0]
        what = f"{'.'.join(map(str, first['loc']))}={reprlib.repr(first['input'])}"
        raise ProfilingError(
            f"{what} cannot reach the child process that runs {target_name(target)!r} ({first['msg']}); "
            "use JSON values as arguments, or make them in setup; name setup as 'module:function', and alternatives too"
        ) from None


def _check_options(name: str, kind: str, options: Mapping[str, Any]) -> None:
    if options["requests"] is not None and kind in ("callable", "function"):
        kind = "web application"
    if refused := sorted({option for option, value in options.items() if value} - _TAKES[kind]):
        takes = ", ".join(sorted(_TAKES[kind])) or "none of them"
        hint = "; in a terminal, options go before the target" if "argv" in refused else ""
        nothing = f"for which {' and '.join(refused)} mean nothing; it takes {takes}"
        raise ProfilingError(f"target {name!r} is a {kind}, {nothing}{hint}")


def _profile_process(name: str, workload: str | None, for_s: float, rate_hz: int) -> WorkloadProfile:
    """What py-spy sees of a process that runs already: shares only."""
    import psutil

    number = name.removeprefix("pid:")
    if not number.isdecimal() or int(number) == os.getpid():
        raise ProfilingError(f"target {name!r}: expected the number of another process, as in 'pid:1234'; `ps` lists them")
    pid, notes = int(number), ["a process attached to: sampled figures only"]
    try:
        main_file = _main_file(psutil.Process(pid))
        found = sample_process(pid, notes, for_s=for_s, rate_hz=rate_hz)
    except (psutil.Error, ProfilingError) as error:
        what_next = "run this as the process' user or as root (in a container: with --cap-add SYS_PTRACE)"
        raise ProfilingError(f"target {name!r}: py-spy could not look into it ({error}); {what_next}") from None
    project, root = Project(main_file), FunctionKey(main_file, 1, f"process {pid}")
    stacks, classified = (counted(each, project) for each in found)
    return WorkloadProfile(
        workload=workload or root.name,
        target=name,
        total=None,
        functions=[*function_times(project, root, stacks, classified, [], []).values()],
        tools=[Overhead(tool="py-spy", version=tool_version("py-spy"), gave="shares, stacks, classes of time")],
        n_samples=stacks.total(),
        stacks=flame_stacks(stacks, project, root),
        notes=notes,
    )


def _main_file(process) -> str:
    """The script that a process runs, else a file that might be in its folder: the user's project lies around it."""
    folder = Path(process.cwd())
    named = (folder / argument for argument in process.cmdline()[1:] if argument.endswith(".py"))
    return str(next((path for path in named if path.is_file()), folder / "__main__.py"))
