"""The tools on one target, one after the other; what one finds stays, whatever becomes of the others."""

import platform
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from importlib import metadata
from typing import Any

from ..devices import OtherLoad, describe_cpu
from ..results import LARGEST_OTHER_LOAD, Alternative, FunctionTime, Overhead, Quantity, WorkloadProfile
from .child import Dispatcher, InChild
from .project.operations import price_trace
from .record.alternatives import Comparison
from .record.calls import RecordedFunction
from .record.folding import Project
from .record.functions import function_times
from .record.lines import FunctionLines
from .record.measure import Run
from .record.sampling import Stack, counted, flame_stacks, note_failure, sample
from .run.runnable import FunctionKey, ProfilingError
from .run.targets import Target, target_name

BUSY_NOTE = "other programs took"
_GAVE = {
    "cProfile": "own and cumulative time, calls",
    "py-spy": "shares, stacks, classes of time",
    "line_profiler": "lines of the hottest functions",
    "array trace": "operations on arrays",
}
_PROCESSES_WORTH_A_NOTE = 0.1  # of the processor time


class Session:
    """One use of each tool, and the profile that comes of it."""

    def __init__(self, worker: InChild | Dispatcher, time_limit_s: float):
        self._worker, self._time_limit_s = worker, time_limit_s
        self._stop = time.monotonic() + time_limit_s
        self._found: dict[type, list] = defaultdict(list)
        self._runs: list[Run] = self._found[Run]
        self.notes: list[str] = self._found[str]
        self._stacks: Counter[Stack] = Counter()
        self._classified: Counter[Stack] = Counter()
        self._alternatives: list[Alternative] = []
        self._load, self._cpu = OtherLoad(), str(describe_cpu())

    def _answers(self, job: str, **options: Any) -> Iterator[Any]:
        """What a job finds. Measuring and sampling may take all the time that is left, the other tools half of it each."""
        left_s = self._stop - time.monotonic()
        if left_s < min((run.wall_s for run in self._runs[1:]), default=0):
            raise ProfilingError(f"time_limit_s={self._time_limit_s:g} is over; raise it")
        limit_s = left_s if job in ("warm_up", "measure", "sample") else left_s / 2
        for found in self._worker.answers(job, limit_s, **options):
            if not isinstance(found, str) or found not in self.notes:
                self._found[type(found)].append(found)
            yield found

    def use(self, failure: str, job: str, **options: Any) -> None:
        """One of the tools; `failure` begins the note where it cannot be used."""
        with note_failure(failure, self.notes):
            list(self._answers(job, n_threads=self._n_threads, **options))

    def measure(self, n_repeats: int) -> None:
        """The target warm and cold, without a profiler and under cProfile."""
        list(self._answers("warm_up"))
        try:
            with self._load:
                list(self._answers("measure", n_repeats=n_repeats))
        except ProfilingError as error:
            if self._worker.pid and not self._under("none"):  # it raised where it should have run again
                raise
            self.notes.append(f"not finished: {error}")

    def sample(self, for_s: float, rate_hz: int) -> None:
        """The target under py-spy, which is attached to its process."""

        def repeat(for_s: float) -> Iterator[Any]:
            return self._answers("sample", for_s=for_s, n_threads=self._n_threads)

        with note_failure("py-spy gave no shares", self.notes):
            if isinstance(self._worker, Dispatcher):
                raise ProfilingError("a callable runs in this process; name it as 'module:function' to have it sampled")
            list(self._answers("warm_up"))  # in another process, if there is none
            found = sample(self._worker.pid, repeat, self.notes, rate_hz=rate_hz, for_s=for_s)
            self._stacks, self._classified = (counted(stacks, self._project) for stacks in found)

    def race(self, alternative: Target, n_repeats: int) -> None:
        """The target and another function."""
        before, name = len(self._runs), target_name(alternative)
        self._found[Comparison].clear()
        with note_failure(f"alternative {name!r}", self.notes):
            list(self._answers("race", alternative=alternative, n_repeats=n_repeats))
        best = (_best(self._runs[before:], tool) for tool in ("comparison", "alternative"))
        now_s, then_s = ([run.quiet_s or run.wall_s for run in runs] for runs in best)
        for comparison in self._found[Comparison] if now_s and then_s else ():
            gains = min(now_s) / max(then_s), statistics.median(now_s) / statistics.median(then_s), max(now_s) / min(then_s)
            gain = self._measured(gains, "x").model_copy(update={"n_runs": len(then_s)})
            self._alternatives.append(Alternative(name=name, time=self._measured(then_s), gain=gain, **comparison.model_dump()))

    # What was found.

    def hottest(self, least_share: float = 0.0) -> list[FunctionKey]:
        """The Python functions of the calling thread with more than `least_share` of the time, the greatest own share first."""
        own = {
            key: row.sampled_own_share if self._stacks else row.own.value
            for key, row in self._functions.items()
            if key.line and row.ran_in == "the calling thread"
        }
        return [key for key, of_key in own.items() if of_key > least_share * sum(own.values())]

    @property
    def _functions(self) -> dict[FunctionKey, FunctionTime]:
        recordings, lines = [run.recording for run in self._runs if run.recording], self._found[FunctionLines]
        return function_times(self._project, self._root, self._stacks, self._classified, recordings, lines)

    @property
    def _root(self) -> FunctionKey:
        return self._found[FunctionKey][-1]

    @property
    def _project(self) -> Project:
        return Project(self._root.file)

    def _under(self, tool: str) -> list[Run]:
        return [run for run in self._runs if run.tool == tool]

    @property
    def _n_threads(self) -> int | None:
        return next((run.n_threads for run in _best(self._runs, "none")), None)

    def profile(self, target: str, workload: str) -> WorkloadProfile:
        """All of it."""
        plain = self._under("none")
        baseline = _best(plain, "none") or self._under("py-spy") or self._runs[:1]
        if not plain:
            what = "runs under py-spy" if baseline[0].tool == "py-spy" else "the first run, nothing warm"
            self.notes.append(f"the total is that of {what}: there was no time for another")
        if not self._under("cProfile"):
            self.notes.append("cProfile gave no times: there was no time for a run under it")
        self._note_others(baseline)
        slowest_first = sorted(plain, key=lambda run: (run.n_threads, -run.wall_s))
        # What this process held before the first run is its own affair; of a child it is the target's.
        of_memory = [run for run in self._runs if run.tool in ("warm-up", "none") and isinstance(self._worker, InChild)]
        return WorkloadProfile(
            workload=workload,
            target=target,
            total=self._measured(run.wall_s for run in baseline),
            cpu=self._measured(run.cpu_s for run in baseline),
            quiet=self._measured(run.quiet_s for run in baseline),
            other_load=self._load.share,
            is_parallel=any(run.is_parallel for run in plain or baseline),
            n_runs=sum(not run.tool.startswith("alternative") for run in self._runs),
            seconds_by_n_threads={run.n_threads: run.wall_s for run in slowest_first},  # so the fastest of each stays
            functions=[*self._functions.values()],
            tools=[*self._tools(plain)],
            n_samples=self._stacks.total(),
            stacks=flame_stacks(self._stacks, self._project, self._root),
            traces=list(map(price_trace, self._found[RecordedFunction])),
            peak_memory=self._measured((max(run.peak_bytes - self._runs[0].held_bytes, 0) for run in of_memory), "bytes"),
            alternatives=self._alternatives,
            notes=self.notes,
        )

    def _measured(self, values: Iterable[float | None], unit: str = "s") -> Quantity | None:
        values = list(values)
        return Quantity.measured(values, unit, self._cpu) if values and None not in values else None

    def _tools(self, plain: Sequence[Run]) -> Iterator[Overhead]:
        """Factors are of fastest runs: what else the machine does only ever adds time."""
        for tool, gave in _GAVE.items():
            seconds = [run.wall_s for run in self._under(tool)]
            if self._stacks if tool == "py-spy" else seconds:  # a run that never ended was sampled too
                factor = min(seconds) / min(run.wall_s for run in plain) if seconds and plain else None
                yield Overhead(tool=tool, version=tool_version(tool), gave=gave, factor=factor)

    def _note_others(self, baseline: Sequence[Run]) -> None:
        """Processes that the target started, and other programs."""
        share = sum(run.processes_s for run in baseline) / (sum(run.cpu_s for run in baseline) or 1)
        if share > _PROCESSES_WORTH_A_NOTE:
            n_samples = sum(n for stack, n in self._stacks.items() if stack.origin == "another process")
            looks = f"py-spy took {n_samples} samples in them" if n_samples else "py-spy found no Python function in them"
            whose = "processor time went to processes that the target started"
            self.notes.append(f"{share:.0%} of the {whose}: {looks}, the other tools do not look into them")
        if (self._load.share or 0) > LARGEST_OTHER_LOAD:
            rough = "times and shares are rough; profile again when it is quiet"
            self.notes.append(f"{BUSY_NOTE} {self._load.share:.0%} of the processors while it was measured: {rough}")


def _best(runs: Sequence[Run], tool: str) -> list[Run]:
    """The runs under a tool with the thread count that suits the function best."""
    of_tool = sorted((run for run in runs if run.tool == tool), key=lambda run: run.wall_s)
    return [run for run in of_tool if run.n_threads == of_tool[0].n_threads]


def tool_version(tool: str) -> str:
    if tool == "cProfile":
        return platform.python_version()
    try:
        return metadata.version("altlas-cuda-workbook" if tool == "array trace" else tool)
    except metadata.PackageNotFoundError:
        return "unknown"
