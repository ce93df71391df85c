"""One profile out of the tools: a baseline without any of them, then what each adds, all within one time limit."""

import contextlib
import os
import platform
import re
import shlex
import statistics
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from ..devices import OtherLoad, describe_cpu
from ..results import LARGEST_OTHER_LOAD, Alternative, Overhead, Quantity, WorkloadProfile
from .child import ChildJob, ChildResult
from .project.operations import price_trace
from .record.folding import CallGraph, Project
from .record.functions import function_times, hottest
from .record.measure import Run
from .record.py_spy import FellBehind
from .record.sampling import Samples, Stack, flame_stacks, sample, sample_process
from .run.asgi import load_requests
from .run.runnable import FunctionKey, ProfilingError
from .run.targets import Target, target_kind, target_name
from .worker import InChild, InThisProcess, time_limit_error

_BUSY_NOTE = "other programs took"
_TRACED_SHARE = 0.05  # of the time: what a function below it does with arrays changes no decision
_GAVE = {
    "cProfile": "own and cumulative time, calls",
    "py-spy": "shares, stacks, classes of time",
    "line_profiler": "lines of the hottest functions",
    "array trace": "operations on arrays",
}
_PROCESSES_WORTH_A_NOTE = 0.1  # of the processor time


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

    Code outside the user's project is folded into the function that called it: see `folding`, and `sampling.Samples.counted`
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
    for number in (n_repeats, sampling_rate_hz, sampling_s, time_limit_s, concurrency):
        if number <= 0:
            raise ValueError(
                "n_repeats, sampling_rate_hz, sampling_s, time_limit_s and concurrency must be positive, "
                f"got {number!r} among {(n_repeats, sampling_rate_hz, sampling_s, time_limit_s, concurrency)}"
            )
    name = target_name(target)
    kind = "callable" if callable(target) else target_kind(name)
    options = {"setup": setup, "arguments": arguments, "argv": argv, "requests": requests, "alternatives": alternatives}
    _check_options(name, kind, options)
    if kind == "process":
        return _profile_process(name, workload, sampling_s, sampling_rate_hz)
    requests = load_requests(requests) if requests is not None else None
    spec = {"setup": setup, "arguments": arguments or {}, "argv": [*map(str, argv)], "requests": requests}
    with (InThisProcess if kind == "callable" else InChild)(target, time_limit_s, concurrency=concurrency, **spec) as worker:
        session = _Session(worker)
        session.measure(n_repeats)
        if kind == "callable":
            session.notes.append(
                "py-spy gave no shares: a callable runs in this process; name it as 'module:function' to have it sampled"
            )
        else:
            session.sample(sampling_s, sampling_rate_hz)
        session.time_lines(n_line_functions)
        if trace_arrays:
            session.trace(check_port)
        for alternative in alternatives:
            session.race(alternative, n_repeats, same_answer)
    session.notes += worker.notes
    if kind == "script":
        name = shlex.join([name, *map(str, argv)])
        session.notes.append("a script's imports are made in its first run, which is not counted, and kept for the later ones")
    elif requests:
        name = f"{name} under {len(requests)} requests" + (f", {concurrency} at a time" if concurrency > 1 else "")
    return session.profile(name, workload or _short_name(target_name(target), kind))


class _Session:
    """The tools on one target, one after the other; what one finds stays, whatever becomes of the others."""

    def __init__(self, worker: InChild | InThisProcess):
        self._worker, self._stop = worker, time.monotonic() + worker.time_limit_s
        self._root = FunctionKey("", 0, "")
        self._runs: list[Run] = []
        self._lines, self._traces, self._alternatives = [], [], []
        self.notes: list[str] = []
        self._samples: Samples | None = None
        self._load, self._cpu = OtherLoad(), str(describe_cpu())

    def _answers(self, mode: str, **options: Any) -> Iterator[ChildResult]:
        """What a job finds. Measuring and sampling may take all the time that is left, the other tools half of it each."""
        left_s = self._stop - time.monotonic()
        if left_s < min((run.wall_s for run in self._runs[1:]), default=0):
            raise ProfilingError(f"time_limit_s={self._worker.time_limit_s:g} is over; raise it")
        limit_s = left_s if mode in ("warm up", "measure", "sample") else left_s / 2
        for result in self._worker.answers(ChildJob(mode=mode, time_limit_s=limit_s, n_threads=self._n_threads, **options)):
            self._root = result.root or self._root
            self._runs += result.runs
            self._lines += result.lines
            self._traces += result.traces
            self.notes += [note for note in result.notes if note not in self.notes]
            yield result

    def measure(self, n_repeats: int) -> None:
        list(self._answers("warm up"))
        if time.monotonic() > self._stop:
            raise time_limit_error(target_name(self._worker.target), self._worker.time_limit_s)
        try:
            with self._load:
                list(self._answers("measure", n_repeats=n_repeats, first_s=self._runs[0].wall_s))
        except ProfilingError as error:
            if self._worker.pid and not self._under("none"):  # it raised where it should have run again
                raise
            self.notes.append(f"not finished: {error}")

    def sample(self, for_s: float, rate_hz: int) -> None:
        def repeat(for_s: float, is_patient: bool) -> Iterator[int | None]:
            fell_behind = False
            for result in self._answers("sample", for_s=for_s, is_patient=is_patient):
                fell_behind = fell_behind or result.fell_behind
                yield self._worker.pid if result.awaits else None
            if fell_behind:
                raise FellBehind

        with self._noting("py-spy gave no shares"):
            self._samples = sample(repeat, rate_hz=rate_hz, for_s=for_s)
            self.notes += self._samples.notes

    def time_lines(self, n_functions: int) -> None:
        if functions := hottest(self._project, self._root, self._samples, self._recordings)[:n_functions]:
            with self._noting("line_profiler gave no lines"):
                list(self._answers("lines", functions=functions))

    def trace(self, check_port: bool) -> None:
        functions = hottest(self._project, self._root, self._samples, self._recordings, least_share=_TRACED_SHARE)
        with self._noting("no trace of arrays"):
            list(self._answers("trace", functions=functions, check_port=check_port))

    def race(self, alternative: Target, n_repeats: int, same_answer: Target | None) -> None:
        """The target and another function."""
        before, comparison, name = len(self._runs), None, target_name(alternative)
        with self._noting(f"alternative {name!r}"):
            functions = {"target": self._worker.target, "alternative": alternative, "same_answer": same_answer}
            for result in self._answers("race", n_repeats=n_repeats, **functions):
                comparison = result.comparison or comparison
        now_s, then_s = (
            [run.quiet_s or run.wall_s for run in self._best(tool, before)] for tool in ("comparison", "alternative")
        )
        if comparison and now_s and then_s:
            gains = min(now_s) / max(then_s), statistics.median(now_s) / statistics.median(then_s), max(now_s) / min(then_s)
            gain = Quantity.measured(gains, "x", self._cpu).model_copy(update={"n_runs": len(then_s)})
            seconds = Quantity.measured(then_s, "s", self._cpu)
            self._alternatives.append(Alternative(name=name, time=seconds, gain=gain, **comparison.model_dump()))

    @contextlib.contextmanager
    def _noting(self, what: str) -> Iterator[None]:
        try:
            yield
        except ProfilingError as error:
            self.notes.append(f"{what}: {error}")

    # What is known so far.

    @property
    def _project(self) -> Project:
        return Project(self._root.file)

    @property
    def _recordings(self) -> list[CallGraph]:
        return [run.recording for run in self._runs if run.recording]

    def _under(self, tool: str) -> list[Run]:
        return [run for run in self._runs if run.tool == tool]

    def _best(self, tool: str = "none", since: int = 0) -> list[Run]:
        """The runs under a tool with the thread count that suits the function best."""
        runs = [run for run in self._runs[since:] if run.tool == tool]
        fastest = min(runs, key=lambda run: run.wall_s, default=None)
        return [run for run in runs if run.n_threads == fastest.n_threads]

    @property
    def _n_threads(self) -> int | None:
        return self._best()[0].n_threads if self._best() else None

    def _tools(self, plain: Sequence[Run]) -> list[Overhead]:
        """Factors are of fastest runs: what else the machine does only ever adds time."""
        used = {tool: self._under(tool) for tool in _GAVE if self._under(tool) and tool != "py-spy"}
        if self._samples:  # a run that never ended was sampled too
            used["py-spy"] = self._under("py-spy")
        return [
            Overhead(
                tool=tool,
                version=_version(tool),
                gave=gave,
                factor=min(run.wall_s for run in used[tool]) / min(run.wall_s for run in plain)
                if used[tool] and plain
                else None,
            )
            for tool, gave in _GAVE.items()
            if tool in used
        ]

    def profile(self, target: str, workload: str) -> WorkloadProfile:
        baseline = self._best() or self._under("py-spy") or self._runs[:1]
        stacks = self._samples.counted(self._project) if self._samples else Counter()
        plain = self._under("none")
        counts = sorted({run.n_threads for run in plain})
        if not plain:
            what = "runs under py-spy" if len(baseline) > 1 else "the first run, nothing warm"
            self.notes.append(f"the total is that of {what}: there was no time for another")
        if not self._recordings:
            self.notes.append("cProfile gave no times: there was no time for a run under it")
        self._note_others(baseline, stacks)
        return WorkloadProfile(
            workload=workload,
            target=target,
            total=self._measured([run.wall_s for run in baseline]),
            cpu=self._measured([run.cpu_s for run in baseline]),
            quiet=self._measured([run.quiet_s for run in baseline]),
            other_load=self._load.share,
            is_parallel=any(run.is_parallel for run in plain or baseline),
            n_runs=sum(not run.tool.startswith("alternative") for run in self._runs),
            seconds_by_n_threads={n: min(run.wall_s for run in plain if run.n_threads == n) for n in counts},
            functions=function_times(self._project, self._root, self._samples, self._recordings, self._lines),
            tools=self._tools(plain),
            n_samples=stacks.total(),
            stacks=flame_stacks(stacks, self._project, self._root),
            traces=list(map(price_trace, self._traces)),
            peak_memory=self._peak_memory(),
            alternatives=self._alternatives,
            notes=self.notes,
        )

    def _measured(self, values: Sequence[float | None]) -> Quantity | None:
        return None if None in values else Quantity.measured(values, "s", self._cpu)

    def _peak_memory(self) -> Quantity | None:
        """Beyond what the child process held before the first run."""
        if isinstance(self._worker, InThisProcess):
            return None
        peaks = [run.peak_bytes - self._runs[0].held_bytes for run in self._runs if run.tool in ("warm-up", "none")]
        return Quantity.measured([max(peak, 0) for peak in peaks], "bytes", self._cpu)

    def _note_others(self, baseline: Sequence[Run], stacks: Counter[Stack]) -> None:
        """Processes that the target started, and other programs."""
        share = sum(run.processes_s for run in baseline) / (sum(run.cpu_s for run in baseline) or 1)
        if share > _PROCESSES_WORTH_A_NOTE:
            n_samples = sum(n for stack, n in stacks.items() if stack.origin == "another process")
            looks = f"py-spy took {n_samples} samples in them" if n_samples else "py-spy found no Python function in them"
            self.notes.append(
                f"{share:.0%} of the processor time went to processes that the target started: {looks}, "
                "cProfile, line_profiler and the array trace do not look into them"
            )
        if self._load.share is not None and self._load.share > LARGEST_OTHER_LOAD:
            self.notes.append(
                f"{_BUSY_NOTE} {self._load.share:.0%} of the processors while it was measured: "
                "times and shares are rough; profile again when it is quiet"
            )


def _version(tool: str) -> str:
    if tool == "cProfile":
        return platform.python_version()
    try:
        return metadata.version("altlas-cuda-workbook" if tool == "array trace" else tool)
    except metadata.PackageNotFoundError:
        return "unknown"


def _check_options(name: str, kind: str, options: Mapping[str, Any]) -> None:
    taken = {
        "callable": {"setup", "arguments", "requests", "alternatives"},
        "function": {"setup", "arguments", "requests", "alternatives"},
        "script": {"argv"},
        "process": set(),
    }[kind]
    given = {option for option, value in options.items() if value}
    if options["requests"] is not None and given & {"setup", "arguments", "alternatives"}:
        raise ProfilingError(
            f"target {name!r} gets requests: leave out setup, arguments and alternatives; give what it needs by its factory"
        )
    if refused := sorted(given - taken):
        takes = ", ".join(sorted(taken)) or "none of them"
        hint = "; in a terminal, options go before the target" if "argv" in refused else ""
        raise ProfilingError(
            f"target {name!r} is a {kind}, for which {' and '.join(refused)} mean nothing; it takes {takes}{hint}"
        )
    if kind == "function" and any(map(callable, options["alternatives"])):
        raise ProfilingError(
            f"alternatives of target {name!r} run in its child process, which no callable reaches; name them 'module:function'"
        )


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
        tools=[Overhead(tool="py-spy", version=_version("py-spy"), gave=_GAVE["py-spy"])],
        n_samples=stacks.total(),
        stacks=flame_stacks(stacks, project, root),
        notes=["a process attached to: sampled figures only", *samples.notes],
    )


def _main_file(process) -> str:
    """The script that a process runs, else a file that might be in its folder: the user's project lies around it."""
    folder = Path(process.cwd())
    named = (folder / argument for argument in process.cmdline()[1:] if argument.endswith(".py"))
    return str(next((path for path in named if path.is_file()), folder / "__main__.py"))
