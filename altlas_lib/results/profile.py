"""Chapter 10: where a program's time goes, as the profilers and the array tracer saw it."""

from typing import Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt

from .provenance import LARGEST_OTHER_LOAD
from .quantity import Model, Quantity, Share

TimeClass = Literal["interpreter", "regex", "arrays", "framework", "parsing", "waiting", "other native"]
OperationKind = Literal[
    "product", "elementwise", "reduction", "sort", "gather", "fft", "factorisation", "copy", "model", "view", "unknown"
]
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


class ArrayOperation(Model):
    """Calls of one operation on arrays of one shape, in one run of one function."""

    name: str  # as the library calls it: 'numpy.matmul' (also for @), 'ndarray.argsort'
    kind: OperationKind
    rate: str = ""  # class of rate, as operations.toml names it; empty: its kind's
    sizes: dict[str, float] = Field(default={})  # what its rate depends on besides, such as m, n and k of a product
    operands: list[str]  # 'float32[4000, 384]' for each array among the arguments
    dtype: str  # that it computes in
    n_calls: PositiveInt
    time_s: NonNegativeFloat  # all calls together
    flops: NonNegativeFloat | None = None  # all calls together; None: not known
    moved_bytes: NonNegativeFloat | None = None  # read and written, all calls together; None: not known
    working_set_bytes: NonNegativeFloat = 0  # operands and result of one call
    n_kernels: NonNegativeInt = 1  # that a GPU would start for one call


class HiddenTransfer(Model):
    """A place that would copy between GPU and host each time it runs, were its arrays on a GPU."""

    line: int
    what: str  # 'float(x)', 'truth of an array', 'iteration'
    n_times: PositiveInt  # in one run


class ArrayTrace(Model):
    """What the tracer saw of one of the user's functions in one run: every operation on arrays that its own lines asked for."""

    function: str  # qualified name
    file: str
    line: int
    n_calls: PositiveInt
    operations: list[ArrayOperation]
    n_element_accesses: NonNegativeInt = 0  # single elements read or written: a Python loop over an array
    input_bytes: NonNegativeFloat  # arrays that came as arguments, all calls together
    output_bytes: NonNegativeFloat  # arrays that were returned, all calls together
    hidden_transfers: list[HiddenTransfer] = Field(default=[])  # by line; looked for where a port is checked

    @property
    def operations_s(self) -> float:
        return sum(operation.time_s for operation in self.operations)

    @property
    def known_s(self) -> float:
        """Time of the operations whose cost is known."""
        return sum(operation.time_s for operation in self.operations if operation.kind != "unknown")


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
    # of two numbers that should be equal, absolute; None: no numbers, or not of the same shape
    largest_difference: float | None = None


class WorkloadProfile(Model):
    workload: str
    target: str  # what ran: module:function, a script with its arguments, a process
    total: Quantity | None  # one run without any profiler, the best thread count; None: attached to
    # processor seconds of those runs: of all threads, and of the processes that the target started
    cpu: Quantity | None = None
    # seconds of those runs as they would be if nobody else wanted a processor: at most the processor time and what the
    # calling thread waited of its own accord, for time, files, locks, other threads. None: not known here
    quiet: Quantity | None = None
    other_load: Share | None = None  # share of the processors that other programs took while it was measured
    is_parallel: bool = False  # other threads or processes than the calling one did a tenth or more
    n_runs: NonNegativeInt = 0  # runs of the target in all, the first one and those under each tool
    seconds_by_n_threads: dict[int, float] = Field(default={})  # BLAS threads -> fastest run: the baseline's sweep
    functions: list[FunctionTime]  # greatest share first
    tools: list[Overhead] = Field(default=[])
    n_samples: NonNegativeInt = 0  # stacks that py-spy took of the target; 0: it took none
    stacks: dict[str, int] = Field(default={})  # 'outer;inner' -> samples, the most frequent: the flame graph
    traces: list[ArrayTrace] = Field(default=[])
    peak_memory: Quantity | None = None  # of the process, beyond what it held before the first run
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
        return (self.other_load or 0) > LARGEST_OTHER_LOAD and (self.is_parallel or self.quiet is None)

    def cprofile_share(self, function: FunctionTime) -> float | None:
        """A function's own time over that of all functions, under cProfile; None where it was not seen there."""
        whole = sum(each.own.value for each in self.functions if each.own)
        return function.own.value / (whole or 1) if function.own else None

    def share(self, function: FunctionTime) -> float:
        """A function's own share: py-spy's where it took samples, for it makes no call dearer, else cProfile's."""
        return self.cprofile_share(function) if function.sampled_own_share is None else function.sampled_own_share
