"""The tools on one target, one after the other; what one finds stays, whatever becomes of the others."""

import contextlib
import platform
import statistics
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from importlib import metadata
from typing import Any

from ..devices import OtherLoad, describe_cpu
from ..results import LARGEST_OTHER_LOAD, Alternative, Overhead, Quantity, WorkloadProfile
from .child import ChildJob, ChildResult, Dispatcher
from .project.operations import price_trace
from .record.folding import CallGraph, Project
from .record.functions import function_times, hottest
from .record.measure import Run
from .record.py_spy import FellBehind
from .record.sampling import Samples, Stack, flame_stacks, sample
from .run.runnable import FunctionKey, ProfilingError
from .run.targets import Target, target_name
from .worker import InChild, too_slow

BUSY_NOTE = "other programs took"
_GAVE = {
    "cProfile": "own and cumulative time, calls",
    "py-spy": "shares, stacks, classes of time",
    "line_profiler": "lines of the hottest functions",
    "array trace": "operations on arrays",
}
_PROCESSES_WORTH_A_NOTE = 0.1  # of the processor time


class Session:
    def __init__(self, worker: InChild | Dispatcher, name: str, time_limit_s: float):
        self._worker, self._name, self._time_limit_s = worker, name, time_limit_s
        self._stop = time.monotonic() + time_limit_s
        self._found = ChildResult()
        self._samples: Samples | None = None
        self._alternatives: list[Alternative] = []
        self._load, self._cpu = OtherLoad(), str(describe_cpu())

    def note(self, *notes: str) -> None:
        self._found.notes += [note for note in notes if note not in self._found.notes]

    @contextlib.contextmanager
    def _noting(self, failure: str) -> Iterator[None]:
        try:
            yield
        except ProfilingError as error:
            self.note(f"{failure}: {error}")

    def _answers(self, mode: str, **options: Any) -> Iterator[ChildResult]:
        """What a job finds. Measuring and sampling may take all the time that is left, the other tools half of it each."""
        left_s = self._stop - time.monotonic()
        if left_s < min((run.wall_s for run in self._found.runs[1:]), default=0):
            raise ProfilingError(f"time_limit_s={self._time_limit_s:g} is over; raise it")
        limit_s = left_s if mode in ("warm up", "measure", "sample") else left_s / 2
        for result in self._worker.answers(ChildJob(mode=mode, time_limit_s=limit_s, n_threads=self._n_threads, **options)):
            self._found.root = result.root or self._found.root
            self._found.runs += result.runs
            self._found.lines += result.lines
            self._found.traces += result.traces
            self.note(*result.notes)
            yield result

    def use(self, failure: str, mode: str, **options: Any) -> None:
        """One of the tools; `failure` begins the note where it cannot be used."""
        with self._noting(failure):
            list(self._answers(mode, **options))

    def measure(self, n_repeats: int) -> None:
        list(self._answers("warm up"))
        if time.monotonic() > self._stop:
            raise ProfilingError(f"target {self._name!r} {too_slow(self._time_limit_s)}")
        try:
            with self._load:
                list(self._answers("measure", n_repeats=n_repeats, first_s=self._found.runs[0].wall_s))
        except ProfilingError as error:
            if self._worker.pid and not self._under("none"):  # it raised where it should have run again
                raise
            self.note(f"not finished: {error}")

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
            self.note(*self._samples.notes)

    def race(self, alternative: Target, n_repeats: int, same_answer: Target | None) -> None:
        """The target and another function."""
        before, comparison, name = len(self._found.runs), None, target_name(alternative)
        with self._noting(f"alternative {name!r}"):
            for result in self._answers("race", n_repeats=n_repeats, alternative=alternative, same_answer=same_answer):
                comparison = result.comparison or comparison
        both = (self._best(tool, before) for tool in ("comparison", "alternative"))
        now_s, then_s = ([run.quiet_s or run.wall_s for run in runs] for runs in both)
        if comparison and now_s and then_s:
            gains = min(now_s) / max(then_s), statistics.median(now_s) / statistics.median(then_s), max(now_s) / min(then_s)
            gain = Quantity.measured(gains, "x", self._cpu).model_copy(update={"n_runs": len(then_s)})
            seconds = Quantity.measured(then_s, "s", self._cpu)
            self._alternatives.append(Alternative(name=name, time=seconds, gain=gain, **comparison.model_dump()))

    # What was found.

    def hottest(self, least_share: float = 0.0) -> list[FunctionKey]:
        return hottest(self._project, self._found.root, self._samples, self._recordings, least_share=least_share)

    @property
    def _project(self) -> Project:
        return Project(self._found.root.file)

    @property
    def _recordings(self) -> list[CallGraph]:
        return [run.recording for run in self._found.runs if run.recording]

    def _under(self, tool: str, since: int = 0) -> list[Run]:
        return [run for run in self._found.runs[since:] if run.tool == tool]

    def _best(self, tool: str = "none", since: int = 0) -> list[Run]:
        """The runs under a tool with the thread count that suits the function best."""
        fastest = min(runs := self._under(tool, since), key=lambda run: run.wall_s, default=None)
        return [run for run in runs if run.n_threads == fastest.n_threads]

    @property
    def _n_threads(self) -> int | None:
        return self._best()[0].n_threads if self._best() else None

    def profile(self, target: str, workload: str) -> WorkloadProfile:
        found, plain = self._found, self._under("none")
        baseline = self._best() or self._under("py-spy") or found.runs[:1]
        stacks = self._samples.counted(self._project) if self._samples else Counter()
        if not plain:
            what = "runs under py-spy" if baseline[0].tool == "py-spy" else "the first run, nothing warm"
            self.note(f"the total is that of {what}: there was no time for another")
        if not self._recordings:
            self.note("cProfile gave no times: there was no time for a run under it")
        self._note_others(baseline, stacks)
        of_memory = [run.peak_bytes - found.runs[0].held_bytes for run in found.runs if run.tool in ("warm-up", "none")]
        return WorkloadProfile(
            workload=workload,
            target=target,
            total=self._measured(run.wall_s for run in baseline),
            cpu=self._measured(run.cpu_s for run in baseline),
            quiet=self._measured(run.quiet_s for run in baseline),
            other_load=self._load.share,
            is_parallel=any(run.is_parallel for run in plain or baseline),
            n_runs=sum(not run.tool.startswith("alternative") for run in found.runs),
            seconds_by_n_threads={
                n: min(run.wall_s for run in plain if run.n_threads == n) for n in sorted({run.n_threads for run in plain})
            },
            functions=function_times(self._project, found.root, self._samples, self._recordings, found.lines),
            tools=self._tools(plain),
            n_samples=stacks.total(),
            stacks=flame_stacks(stacks, self._project, found.root),
            traces=list(map(price_trace, found.traces)),
            # What this process held before the first run is its own affair; of a child it is the target's.
            peak_memory=self._measured((max(n, 0) for n in of_memory), "bytes") if isinstance(self._worker, InChild) else None,
            alternatives=self._alternatives,
            notes=found.notes,
        )

    def _measured(self, values: Iterable[float | None], unit: str = "s") -> Quantity | None:
        values = list(values)
        return None if None in values else Quantity.measured(values, unit, self._cpu)

    def _tools(self, plain: Sequence[Run]) -> list[Overhead]:
        """Factors are of fastest runs: what else the machine does only ever adds time."""
        tools = []
        for tool, gave in _GAVE.items():
            seconds = [run.wall_s for run in self._under(tool)]
            if self._samples if tool == "py-spy" else seconds:  # a run that never ended was sampled too
                factor = min(seconds) / min(run.wall_s for run in plain) if seconds and plain else None
                tools.append(Overhead(tool=tool, version=tool_version(tool), gave=gave, factor=factor))
        return tools

    def _note_others(self, baseline: Sequence[Run], stacks: Counter[Stack]) -> None:
        """Processes that the target started, and other programs."""
        share = sum(run.processes_s for run in baseline) / (sum(run.cpu_s for run in baseline) or 1)
        if share > _PROCESSES_WORTH_A_NOTE:
            n_samples = sum(n for stack, n in stacks.items() if stack.origin == "another process")
            looks = f"py-spy took {n_samples} samples in them" if n_samples else "py-spy found no Python function in them"
            self.note(
                f"{share:.0%} of the processor time went to processes that the target started: {looks}, "
                "cProfile, line_profiler and the array trace do not look into them"
            )
        if (self._load.share or 0) > LARGEST_OTHER_LOAD:
            self.note(
                f"{BUSY_NOTE} {self._load.share:.0%} of the processors while it was measured: "
                "times and shares are rough; profile again when it is quiet"
            )


def tool_version(tool: str) -> str:
    if tool == "cProfile":
        return platform.python_version()
    try:
        return metadata.version("altlas-cuda-workbook" if tool == "array trace" else tool)
    except metadata.PackageNotFoundError:
        return "unknown"
