"""Chapter 10: where a program's time goes, as the profilers saw it."""

from typing import Literal

from pydantic import Field, NonNegativeInt

from .arrays import ArrayTrace
from .provenance import UnderLoad
from .quantity import Model, Quantity, Share

TimeClass = Literal["interpreter", "regex", "arrays", "framework", "parsing", "waiting", "other native"]
Origin = Literal["the calling thread", "another thread", "another process"]


class LineTime(Model):
    """A line of one of the hottest functions, under line_profiler."""

    line: int
    source: str
    n_hits: NonNegativeInt  # in one run
    share: Share  # of the function's time, calls from the line included


class FunctionTime(Model):
    """Where a workload's time went, for one of the user's functions; library code is charged to the function that called it.

    Times are of one run under cProfile, which makes every call more expensive: compare them with each other, not with the
    total. It sees the calling thread only: of a function that ran elsewhere, as `ran_in` says, they are None, and the samples
    tell its share.
    """

    name: str  # qualified name
    file: str
    line: int
    n_calls: NonNegativeInt | None = None  # in one run
    own: Quantity | None = None  # under cProfile: in its own lines and in library code called there
    cumulative: Quantity | None = None  # under cProfile: own, and of all that it called
    own_by_library: dict[str, float] = Field(default={})  # library, or 'own lines' -> share of own
    sampled_own_share: Share | None = None  # of py-spy's stacks, those in which it is the user's innermost function
    sampled_share: Share | None = None  # of py-spy's stacks, those that hold the function
    # share of its own stacks, by what the innermost native frame does; empty: not known
    own_by_class: dict[TimeClass, float] = Field(default={})
    lines: list[LineTime] = Field(default=[])  # of the hottest functions: their lines, most expensive first
    ran_in: Origin = "the calling thread"  # where most of its samples were taken


class Overhead(Model):
    """Which tool gave which figures, and what it cost."""

    tool: str
    version: str
    gave: str  # which figures of the profile
    factor: float | None = None  # fastest run with it / fastest without; None: no run to compare with


class Alternative(Model):
    """Another function on the same input, measured in turns with the target, each with the thread count that suits it."""

    name: str
    time: Quantity  # seconds of one warm run, as on a machine with nothing else to do (`quiet_s`)
    gain: Quantity  # times as fast as the target, by medians; low and high: the slowest run of one, the fastest of the other
    same_answer: bool | None  # None: the answers cannot be compared


class WorkloadProfile(UnderLoad):
    workload: str
    target: str  # what ran: module:function, a script with its arguments, an application
    total: Quantity | None  # one run without any profiler, the best thread count
    # processor seconds of those runs: of all threads, and of the processes that the target started
    cpu: Quantity | None = None
    # seconds of those runs as they would be if nobody else wanted a processor: at most the processor time and what the
    # calling thread waited of its own accord, for time, files, locks, other threads. None: not known here
    quiet: Quantity | None = None
    is_parallel: bool = False  # other threads or processes than the calling one did a tenth or more
    n_runs: NonNegativeInt = 0  # runs of the target in all, the first one and those under each tool
    seconds_by_n_threads: dict[int, float] = Field(default={})  # BLAS threads -> fastest run: the baseline's sweep
    functions: list[FunctionTime]  # greatest share first
    tools: list[Overhead] = Field(default=[])
    n_samples: NonNegativeInt = 0  # stacks that py-spy took of the target; 0: it took none
    stacks: dict[str, int] = Field(default={})  # 'outer;inner' -> samples, the most frequent: the flame graph
    traces: list[ArrayTrace] = Field(default=[])
    alternatives: list[Alternative] = Field(default=[])
    notes: list[str] = Field(default=[])  # what a tool could not do, and why

    @property
    def quiet_s(self) -> float | None:
        """Seconds of the fastest run by which a gain is judged: a busy machine cannot inflate them for a target of one thread.

        One of several threads waits for the slowest of them, and `is_too_busy` says when that is no measure.
        """
        return (self.quiet or self.total).low if self.total else None

    @property
    def is_too_busy(self) -> bool:
        """Whether other programs took so much of the machine that no gain can be priced: profile again when it is quiet."""
        return super().is_too_busy and (self.is_parallel or self.quiet is None)

    def cprofile_share(self, function: FunctionTime) -> float | None:
        """A function's own time over that of all functions, under cProfile; None where it was not seen there."""
        whole = sum(each.own.value for each in self.functions if each.own)
        return function.own.value / (whole or 1) if function.own else None

    def share(self, function: FunctionTime) -> float:
        """A function's own share: py-spy's where it took samples, for it makes no call dearer, else cProfile's."""
        return self.cprofile_share(function) if function.sampled_own_share is None else function.sampled_own_share
