"""One profile out of the tools: a baseline without any of them, then what each adds, all within one time limit."""

import contextlib
import linecache
import os
import shlex
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..devices import OtherLoad, describe_cpu
from ..progress import step_counter
from ..results import LARGEST_OTHER_LOAD, Alternative, FunctionTime, Quantity, WorkloadProfile
from . import child
from .project.operations import price_trace
from .record.calls import RecordedFunction
from .record.folding import Project, Time, fold
from .record.measure import Run
from .record.sampling import Stack, by_function, counted, display_name, flame_stacks, note_failure, sample
from .run import process
from .run.asgi import load_requests
from .run.targets import FunctionKey, ProfilingError, Target, target_key, target_kind, target_name

BUSY_NOTE = "other programs took"
_PROCESSES_WORTH_A_NOTE = 0.1  # of the processor time
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
    workload: str | None = None,
    n_repeats: int = 3,
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
    a profiler; as often as `sampling_s` seconds allow under py-spy; once under cProfile, under line_profiler, and under the
    array tracer. `WorkloadProfile.n_runs` is the number that it came to. Its results stay as they are. Imports and caches of
    the first run serve the later ones. A tool that fails, or for which no time is left, leaves a note; of a long run see
    `record.measure.measure`.

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
    for option, number in {"n_repeats": n_repeats, "sampling_s": sampling_s, "time_limit_s": time_limit_s}.items():
        if number <= 0:
            raise ValueError(f"{option} must be positive, got {number!r}")
    name, kind = target_name(target), "web application" if requests is not None else target_kind(target)
    options = {"setup": setup, "arguments": arguments, "argv": argv, "requests": requests, "alternatives": alternatives}
    if refused := sorted({option for option, value in options.items() if value} - _TAKES[kind]):
        nothing = f"for which {' and '.join(refused)} mean nothing; it takes {', '.join(sorted(_TAKES[kind]))}"
        hint = "; in a terminal, options go before the target" if "argv" in refused else ""
        raise ProfilingError(f"target {name!r} is a {kind}, {nothing}{hint}")
    if odd := [each for each in (os.getcwd(), name, *map(str, argv)) if each != each.encode(errors="replace").decode()]:
        raise ProfilingError(f"{odd[0]!r} is not UTF-8, which no profile can name: rename it")
    options |= {"argv": [*map(str, argv)], "requests": load_requests(requests) if requests is not None else None}
    spec = child.TargetSpec(target, same_answer=same_answer, **options)
    passes = step_counter("profile", 3 + trace_arrays + len(alternatives))
    with passes as end_pass, Session(name, _pickle(name, spec), time_limit_s, end_pass) as session:
        session.measure(n_repeats)
        session.sample(sampling_s)
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
        name = f"{name} under {len(options['requests'])} requests"
    return session.profile(name, workload or short_name)


def _pickle(name: str, spec: child.TargetSpec) -> bytes:
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


class Session(contextlib.AbstractContextManager):
    """One use of each tool, in one child process, or another one after a crash; and the profile that comes of it."""

    def __init__(self, name: str, pickled_spec: bytes, time_limit_s: float, end_pass: Callable[[], None]):
        self._name, self._pickled_spec, self._time_limit_s = name, pickled_spec, time_limit_s
        self._stop, self._end_pass = time.monotonic() + time_limit_s, end_pass
        self._child: process.Child | None = None
        self._found: dict[type, list] = defaultdict(list)
        self._runs: list[Run] = self._found[Run]
        self.notes: list[str] = self._found[str]
        self.stacks: Counter[Stack] = Counter()
        self._load, self._cpu = OtherLoad(), str(describe_cpu())

    def __exit__(self, error_type: type | None, *_: object) -> None:
        if self._child and error_type is None:
            self.use("not ended", "stop")
        self._end_child(0.0 if error_type else process.TO_END_S)

    def _end_child(self, grace_s: float = 0.0) -> None:
        if self._child and (left := self._child.end(grace_s)):
            self.notes.append(f"these processes of the target would not end: {', '.join(left)}")
        self._child = None

    def keep(self, found: Any) -> None:
        if isinstance(found, FunctionKey):  # the target's, again from each process
            self._root, self._project = found, Project(found.file)
        elif not isinstance(found, str) or found not in self.notes:
            self._found[type(found)].append(found)

    # Jobs.

    def _do(self, job: str, **options: Any) -> Iterator[None]:
        """Let the child do a job, with a warm target, and keep what it finds; yields each time that it is looked at.

        Measuring and sampling may take all the time that is left, the other tools half of it each.

        Raises:
            ProfilingError: the job failed, its time was over, or the target's process ended.
        """
        left_s = self._stop - time.monotonic()
        if left_s < min((run.wall_s for run in self._runs[1:]), default=0) and job != "stop":
            raise ProfilingError(f"time_limit_s={self._time_limit_s:g} is over; raise it")
        limit_s = {"stop": process.TO_END_S, "warm_up": left_s, "measure": left_s, "sample": left_s}.get(job, left_s / 2)
        start, result = time.monotonic(), child.ChildResult()
        if self._child is None:
            self._child = process.Child(child.__name__)
            self._child.send(self._pickled_spec)
        try:
            self._child.send({"job": job, "time_limit_s": limit_s, **options})
            while not result.is_last:
                text = self._child.receive(process.TICK_S)
                if text is None and time.monotonic() > start + limit_s:
                    raise process.ChildEnded(
                        f"did not finish within time_limit_s={self._time_limit_s:g}; give it a smaller input by its arguments, "
                        "or more time (time_limit_s, --time-limit)"
                    )
                result = child.ChildResult.model_validate_json(text or "{}")
                if result.found is not None:
                    self.keep(result.found)
                yield
        except process.ChildEnded as error:
            self._end_child()
            raise ProfilingError(f"target {self._name!r} {error}") from None
        if result.error:
            raise ProfilingError(result.error)
        if job not in ("warm_up", "stop"):
            self._end_pass()

    def use(self, failure: str, job: str, **options: Any) -> None:
        """One of the tools; `failure` begins the note where it cannot be used."""
        with note_failure(failure, self.notes):
            list(self._do(job, **options))

    def measure(self, n_repeats: int) -> None:
        """The target warm and cold, without a profiler and under cProfile."""
        list(self._do("warm_up"))
        try:
            with self._load:
                list(self._do("measure", n_repeats=n_repeats))
        except ProfilingError as error:
            if self._child and not self._under("none"):  # it raised where it should have run again
                raise
            self.notes.append(f"not finished: {error}")

    def sample(self, for_s: float) -> None:
        """The target under py-spy, which is attached to its process."""
        with note_failure("py-spy gave no shares", self.notes):
            list(self._do("warm_up"))  # in another process, if there is none
            found = sample(self._child.pid, lambda: self._do("sample", for_s=for_s), self.notes)
            self.stacks = counted(found, self._project)

    def race(self, number: int, name: str, n_repeats: int) -> None:
        """The target and one of its alternatives."""
        before = len(self._runs)
        self.use(f"alternative {name!r}", "race", number=number, n_repeats=n_repeats)
        runs = [run for run in self._runs[before:] if run.tool != "warm-up"]
        now_s, then_s = (
            [run.quiet_s or run.wall_s for run in runs if run.tool == tool] for tool in ("comparison", "alternative")
        )
        if then_s:
            gain = self._measured((now / then for now, then in zip(now_s, then_s, strict=False)), "x")
            time_s, same_answer = self._measured(then_s), runs[1].same_answer
            self.keep(Alternative(name=name, time=time_s, gain=gain, same_answer=same_answer))

    # What was found.

    def hottest(self, least_share: float = 0.0) -> list[FunctionKey]:
        """The Python functions of the calling thread with more than `least_share` of the time, the greatest own share first."""
        own = {
            key: row.sampled_own_share if self.stacks else row.own.value
            for key, row in self.functions().items()
            if key.line and row.ran_in == "the calling thread"
        }
        return [key for key, of_key in own.items() if of_key > least_share * sum(own.values())]

    def functions(self) -> dict[FunctionKey, FunctionTime]:
        """Every user's function, greatest share first."""
        project, root, n_samples = self._project, self._root, self.stacks.total()
        sampled, holding = by_function(self.stacks, project, root)
        recordings = (run.recording for run in self._runs if run.recording)
        folded = next((fold(recording, project.library, root) for recording in recordings), {})
        lines_of = {key: lines for run in self._runs for key, lines in run.lines}
        functions = {}
        for key in dict.fromkeys([*folded, *holding]):
            time, own = folded.get(key, (Time(), {}))
            seen = time.n_calls > 0  # else it ran in another thread, of which cProfile knows nothing
            by_library, samples = +Counter(own), sampled[key].total()
            functions[key] = FunctionTime(
                name=display_name(key),
                file=project.relative(key.file),
                line=key.line,
                n_calls=time.n_calls if seen else None,
                own=self._measured([sum(own.values())]) if seen else None,
                cumulative=self._measured([time.cumulative_s]) if seen else None,
                own_by_library={name: s / by_library.total() for name, s in by_library.most_common()},
                sampled_own_share=samples / n_samples if n_samples else None,
                sampled_share=holding[key].total() / n_samples if n_samples else None,
                own_by_class={kind: n / samples for kind, n in sampled[key].most_common() if kind},
                lines=lines_of.get(key, []),
                ran_in="the calling thread" if seen else holding[key].most_common(1)[0][0],
            )
        own_s = {key: row.own.value if row.own else 0 for key, row in functions.items()}
        return dict(sorted(functions.items(), key=lambda item: (-(item[1].sampled_own_share or 0), -own_s[item[0]])))

    def _under(self, tool: str) -> list[Run]:
        return [run for run in self._runs if run.tool == tool]

    def profile(self, target: str, workload: str) -> WorkloadProfile:
        """All of it."""
        baseline = self._under("none") or self._under("py-spy") or self._runs[:1]
        if baseline[0].tool != "none":
            what = "runs under py-spy" if baseline[0].tool == "py-spy" else "the first run, nothing warm"
            self.notes.append(f"the total is that of {what}: there was no time for another")
        if not self._under("cProfile"):
            self.notes.append("cProfile gave no times: there was no time for a run under it")
        self._note_others(baseline)
        return WorkloadProfile(
            workload=workload,
            target=target,
            total=self._measured(run.wall_s for run in baseline),
            cpu=self._measured(run.cpu_s for run in baseline),
            quiet=self._measured(run.quiet_s for run in baseline),
            other_load=self._load.share,
            is_parallel=any(run.is_parallel for run in baseline),
            n_runs=sum(not run.tool.startswith("alternative") for run in self._runs),
            functions=[*self.functions().values()],
            n_samples=self.stacks.total(),
            stacks=flame_stacks(self.stacks, self._project, self._root),
            traces=list(map(price_trace, self._found[RecordedFunction])),
            alternatives=self._found[Alternative],
            notes=self.notes,
        )

    def _measured(self, values: Iterable[float | None], unit: str = "s") -> Quantity | None:
        values = list(values)
        return None if None in values else Quantity.measured(values, unit, self._cpu)

    def _note_others(self, baseline: Sequence[Run]) -> None:
        """Processes that the target started, and other programs."""
        share = sum(run.processes_s for run in baseline) / (sum(run.cpu_s for run in baseline) or 1)
        if share > _PROCESSES_WORTH_A_NOTE:
            n_samples = sum(n for stack, n in self.stacks.items() if stack.origin == "another process")
            taken = f"py-spy took {n_samples} samples of Python in them, other tools none"
            self.notes.append(f"{share:.0%} of the processor time went to processes that the target started: {taken}")
        if (self._load.share or 0) > LARGEST_OTHER_LOAD:
            rough = "times and shares are rough; profile again when it is quiet"
            self.notes.append(f"{BUSY_NOTE} {self._load.share:.0%} of the processors while it was measured: {rough}")
