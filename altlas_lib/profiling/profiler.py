"""One profile out of the tools: a baseline without any of them, then what each adds, all within one time limit."""

import contextlib
import os
import platform
import re
import reprlib
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ..devices import describe_cpu
from ..results import ArrayTrace, Overhead, Quantity, WorkloadProfile
from .child import answer
from .record.folding import Project
from .record.functions import function_times, hottest
from .record.measure import Measurement
from .record.sampling import Samples, flame_stacks, sample, sample_process
from .run.asgi import AsgiRequest, application, load_requests
from .run.process import Answer, Request, run_child
from .run.runnable import FunctionKey, ProfilingError
from .run.targets import Target, prepare, target_kind, target_name

Run = Callable[[Request, float], Answer]  # within a time limit in seconds

_BUSY = 1.5  # programs for each processor
_BUSY_NOTE = "other programs kept the processors busy"


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
) -> WorkloadProfile:
    """Where the time of a program goes, and what its functions do with arrays.

    A target runs many times with the same input and must bear it: once to warm up; `n_repeats` times without a profiler for
    each of two BLAS thread counts, and as often under cProfile; for `sampling_s` seconds under py-spy; once or twice under
    line_profiler, and under the array tracer. Its results stay as they are, but for the rounding that a thread count decides.
    Imports and caches of the first run serve the later ones. A tool that fails, or for which no time is left, leaves a note.

    Code outside the user's project is folded into the function that called it: see `folding`, and `sampling.Samples.counted`
    for threads. Each resumption of a coroutine or generator is one of its calls.

    Args:
        target: `"module:function"`, plain or `async def`; `"path/to/script.py"`, run as `__main__`; with `requests` an ASGI
            application `"module:app"` or its factory `"module:create_app()"`. These run in child processes. A callable runs in
            this process: it is not sampled, its memory not measured, and `time_limit_s` is looked at between runs only.
            `"pid:1234"` is a running process, which is sampled for `sampling_s` seconds, and nothing else.
        setup: as `target`; what it returns is the function's one argument. Not timed.
        arguments: of the function, or of its set-up, by name; JSON values where the target is a name.
        argv: arguments of a script.
        requests: a JSON Lines file, or a list, of `{"method", "path", "headers", "json" or "body"}`; one run sends all.
        concurrency: requests under way at a time.
        workload: what results call it; the module's or script's last name by default.
        n_line_functions: whose lines are timed, those with the greatest shares.

    Raises:
        ProfilingError: the target cannot be found, called or finished; the message says why and what to do.
        ValueError: a number that is not positive.
    """
    for number in (n_repeats, sampling_rate_hz, sampling_s, time_limit_s, concurrency):
        if number <= 0:
            raise ValueError(
                "n_repeats, sampling_rate_hz, sampling_s, time_limit_s and concurrency must be positive, "
                f"got {number!r} among {(n_repeats, sampling_rate_hz, sampling_s, time_limit_s, concurrency)}"
            )
    name = target_name(target)
    kind = "callable" if callable(target) else target_kind(name)
    _check_options(name, kind, setup=setup, arguments=arguments, argv=argv, requests=requests)
    if kind == "process":
        return _profile_process(name, workload, sampling_s, sampling_rate_hz)
    script = load_requests(requests) if requests is not None else None
    request = _request(kind != "callable", name, setup, arguments, argv, script, concurrency, n_repeats, time_limit_s)
    with contextlib.ExitStack() as stack:
        if kind == "callable":
            run = stack.enter_context(_in_this_process(target, setup, arguments, script, concurrency))
        else:
            run = run_child
        session = _Session(run, request, time.monotonic() + time_limit_s)
        if kind == "callable":
            session.notes.append(
                "py-spy gave no shares: a callable runs in this process; name it as 'module:function' to have it sampled"
            )
        else:
            session.sample(sampling_s, sampling_rate_hz)
        session.time_lines(n_line_functions)
        if trace_arrays:
            session.trace()
    if kind == "script":
        name = shlex.join([name, *request.argv])
        session.notes.append("a script's imports are made in its first run, which is not counted, and kept for the later ones")
    elif script:
        name = f"{name} under {len(script)} requests" + (f", {concurrency} at a time" if concurrency > 1 else "")
    return session.profile(name, workload or _short_name(target_name(target), kind))


class _Session:
    """The tools on one target, one after the other; what one finds stays, whatever becomes of the others."""

    def __init__(self, run: Run, request: Request, stop: float):
        self._run, self._request, self._stop = run, request, stop
        answered = run(request, request.time_limit_s)
        self.measurement: Measurement = answered.measurement
        self.notes = [*answered.notes, *self.measurement.notes]
        self.project = Project(self.measurement.root.file)
        self.samples: Samples | None = None
        self.lines, self.traces = [], []
        self.tools = [_overhead("cProfile", "own and cumulative time, calls", self.measurement.profiled_s, self._plain_s)]
        if not self.measurement.plain_s:
            self.notes.append("the total is that of the first run, nothing warm: there was no time for another")
        if not self.measurement.recordings:
            self.notes.append("cProfile gave no times: there was no time for a run under it")

    @property
    def _plain_s(self) -> float:
        return min(self.measurement.best_s)  # the fastest runs are compared: what else the machine does only ever adds time

    def sample(self, for_s: float, rate_hz: int) -> None:
        with self._noting("py-spy gave no shares"):
            # A long run is its own warm-up, and there may be no time for two.
            request = self._next("sample", sample_for_s=for_s, warm_up=self.measurement.first_s < for_s)
            self.samples = sample(request, rate_hz=rate_hz, time_limit_s=self._left_s)
            self.notes += self.samples.notes
            sources = (self.samples, self.samples.classified or self.samples)
            classes = any(stack.time_class for source in sources for stack in source.calling)
            gave = "shares, stacks" + (", classes of time" if classes else "")
            self.tools.append(_overhead("py-spy", gave, self.samples.seconds, self._plain_s))

    def time_lines(self, n_functions: int) -> None:
        if functions := hottest(self.measurement, self.samples, self.project, n_functions):
            with self._noting("line_profiler gave no lines"):
                answered = self._run(self._next("lines", functions=functions), self._left_s)
                self.lines = answered.lines
                self.tools.append(_overhead("line_profiler", "lines of the hottest functions", answered.seconds, self._plain_s))

    def trace(self) -> None:
        with self._noting("no trace of arrays"):
            answered = self._run(self._next("trace"), self._left_s)
            self.traces = [ArrayTrace.model_validate(each) for each in answered.traces]
            self.notes += answered.notes
            self.tools.append(_overhead("array trace", "operations on arrays", answered.seconds, self._plain_s))

    @property
    def _left_s(self) -> float:
        return self._stop - time.monotonic()

    def _next(self, mode: str, **changes: Any) -> Request:
        if self._left_s < self.measurement.first_s:
            raise ProfilingError(f"time_limit_s={self._request.time_limit_s:g} is over; raise it")
        return self._request.model_copy(update={"mode": mode, "n_threads": self.measurement.n_threads, **changes})

    @contextlib.contextmanager
    def _noting(self, what: str) -> Iterator[None]:
        try:
            yield
        except ProfilingError as error:
            self.notes.append(f"{what}: {error}")

    def _note_other_work(self) -> None:
        """Shares are of the time that passes: where others take turns on the processors, they can be far from the truth."""
        load, n_processors = os.getloadavg()[0], os.cpu_count() or 1
        if load > _BUSY * n_processors:
            self.notes.append(
                f"{_BUSY_NOTE} ({load:.1f} programs wanted {n_processors} of them in the last minute): "
                "times and shares are rough; profile again when it is quiet"
            )

    def profile(self, target: str, workload: str) -> WorkloadProfile:
        self._note_other_work()
        measurement, cpu = self.measurement, str(describe_cpu())
        stacks = self.samples.counted(self.project) if self.samples else {}
        return WorkloadProfile(
            workload=workload,
            target=target,
            total=Quantity.measured(measurement.best_s, "s", cpu),
            seconds_by_n_threads={n: min(seconds) for n, seconds in sorted(measurement.plain_s.items())},
            functions=function_times(self.project, measurement.root, self.samples, measurement.recordings, self.lines),
            tools=self.tools,
            n_samples=sum(stacks.values()),
            stacks=flame_stacks(stacks, self.project, measurement.root),
            traces=self.traces,
            peak_memory=Quantity.measured(measurement.peak_bytes, "bytes", cpu) if self._run is run_child else None,
            notes=self.notes,
        )


def _overhead(tool: str, gave: str, seconds: Sequence[float], plain_s: float | None) -> Overhead:
    """`seconds`: of each run under the tool."""
    package = {"cProfile": None, "array trace": "altlas-cuda-workbook"}.get(tool, tool)
    try:
        version = metadata.version(package) if package else platform.python_version()
    except metadata.PackageNotFoundError:
        version = "unknown"
    return Overhead(tool=tool, version=version, gave=gave, factor=min(seconds) / plain_s if seconds and plain_s else None)


def _check_options(name: str, kind: str, **options: Any) -> None:
    taken = {
        "callable": {"setup", "arguments", "requests"},
        "function": {"setup", "arguments", "requests"},
        "script": {"argv"},
        "process": set(),
    }[kind]
    given = {option for option, value in options.items() if value}
    if options["requests"] is not None and given & {"setup", "arguments"}:
        raise ProfilingError(f"target {name!r} gets requests: leave out setup and arguments; give what it needs by its factory")
    if refused := sorted(given - taken):
        takes = ", ".join(sorted(taken)) or "none of them"
        hint = "; in a terminal, options go before the target" if "argv" in refused else ""
        raise ProfilingError(
            f"target {name!r} is a {kind}, for which {' and '.join(refused)} mean nothing; it takes {takes}{hint}"
        )


def _request(in_child: bool, name: str, setup, arguments, argv, requests, concurrency, n_repeats, time_limit_s) -> Request:
    try:
        return Request(
            target=name,
            setup=setup if in_child else None,
            arguments=(arguments or {}) if in_child else {},
            argv=[str(argument) for argument in argv],
            requests=requests,
            concurrency=concurrency,
            n_repeats=n_repeats,
            time_limit_s=time_limit_s,
        )
    except ValidationError as error:
        first = error.errors()[0]
        what = f"{'.'.join(map(str, first['loc']))}={reprlib.repr(first['input'])}"
        raise ProfilingError(
            f"{what} cannot reach the child process that runs {name!r} ({first['msg']}); "
            "use JSON values as arguments, or make them in setup; name setup as 'module:function'"
        ) from None


@contextlib.contextmanager
def _in_this_process(target: Target, setup, arguments, requests: list[AsgiRequest] | None, concurrency: int) -> Iterator[Run]:
    with application(target, requests, concurrency) if requests else contextlib.nullcontext() as runnable:
        runnable = runnable or prepare(target, setup, arguments)
        yield lambda request, time_limit_s: answer(request, runnable)


def _short_name(name: str, kind: str) -> str:
    return Path(name).stem if kind == "script" else name.partition(":")[0].rpartition(".")[2]


def _profile_process(name: str, workload: str | None, for_s: float, rate_hz: int) -> WorkloadProfile:
    """What py-spy sees of a process that runs already: shares only."""
    import psutil

    match = re.fullmatch(r"pid:(\d+)", name)
    if not match:
        raise ProfilingError(f"target {name!r}: expected the number of a process, as in 'pid:1234'")
    pid = int(match[1])
    if pid == os.getpid():
        raise ProfilingError(f"target {name!r} is this process itself; profile it from another one")
    try:
        process = psutil.Process(pid)
        main_file = _main_file(process)
        samples = sample_process(pid, for_s=for_s, rate_hz=rate_hz)
    except psutil.NoSuchProcess:
        raise ProfilingError(f"target {name!r}: no such process; `ps` lists those that run") from None
    except (psutil.AccessDenied, ProfilingError) as error:
        raise ProfilingError(
            f"target {name!r}: py-spy could not look into it ({error}); run this as the process' user or as root "
            "(in a container: with --cap-add SYS_PTRACE), or start the program through the profiler"
        ) from None
    project, root = Project(main_file), FunctionKey(main_file, 1, f"process {pid}")
    stacks = samples.counted(project)
    return WorkloadProfile(
        workload=workload or f"process {pid}",
        target=name,
        total=None,
        functions=function_times(project, root, samples, [], []),
        tools=[_overhead("py-spy", "shares, stacks", [], None)],
        n_samples=stacks.total(),
        stacks=flame_stacks(stacks, project, root),
        notes=["a process attached to: sampled figures only", *samples.notes],
    )


def _main_file(process) -> str:
    """The script that a process runs, else a file that might be in its folder: the user's project lies around it."""
    folder = Path(process.cwd())
    named = (folder / argument for argument in process.cmdline()[1:] if argument.endswith(".py"))
    return str(next((path for path in named if path.is_file()), folder / "__main__.py"))
