"""What a chapter found, as a file that the report can trust: typed, versioned, with where each number comes from."""

import contextlib
import functools
import json
import statistics
import string
import subprocess
import textwrap
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator

from .devices import GpuSpec, device_names
from .paths import RunFolder, outputs_dir, project_root, write_atomically

SCHEMA_VERSION = 1

Basis = Literal["measured", "compiled", "projected"]


class ResultError(Exception):
    """A result file that is missing, damaged, or of another schema version."""


class Model(BaseModel):
    # NaN and infinity are no JSON: a result that holds one is refused when it is made, not when somebody reads it.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Quantity(Model):
    """A number that says where it comes from.

    - `measured`: `value` is the median of `n_runs` runs on `device`, `low` and `high` the fastest and the slowest;
    - `compiled`: the compiler for `device` stated `value`, nothing ran;
    - `projected`: a model says between `low` and `high`; there is no `value`, and `bound_by` says what limits it.
    """

    value: float | None = None
    low: float | None = None
    high: float | None = None
    unit: str
    device: str = Field(min_length=1)
    basis: Basis
    n_runs: int | None = Field(default=None, ge=1)
    bound_by: str | None = None

    @model_validator(mode="after")
    def _agrees_with_its_basis(self) -> Self:
        if self.basis == "measured":
            if self.n_runs is None or None in (self.low, self.value, self.high) or not self.low <= self.value <= self.high:
                raise ValueError(f"a measured quantity needs n_runs and low <= value <= high, got {self!r}")
        elif self.basis == "projected":
            if self.value is not None or None in (self.low, self.high) or not self.low < self.high or not self.bound_by:
                raise ValueError(f"a projected quantity is a band low < high with bound_by and without value, got {self!r}")
        elif self.value is None:
            raise ValueError(f"a compiled quantity needs a value, got {self!r}")
        return self

    @classmethod
    def measured(cls, samples: Sequence[float], unit: str, device: str) -> Self:
        """Median, minimum and maximum of repeated runs, all after warm-up and synchronisation."""
        samples = [float(sample) for sample in samples]
        if not samples:
            raise ValueError("samples is empty: measure at least once")
        return cls(
            value=statistics.median(samples),
            low=min(samples),
            high=max(samples),
            unit=unit,
            device=device,
            basis="measured",
            n_runs=len(samples),
        )

    @classmethod
    def compiled(cls, value: float, unit: str, device: str) -> Self:
        return cls(value=value, unit=unit, device=device, basis="compiled")

    @classmethod
    def projected(cls, low: float, high: float, unit: str, device: str, bound_by: str) -> Self:
        return cls(low=low, high=high, unit=unit, device=device, basis="projected", bound_by=bound_by)

    def __str__(self) -> str:
        if self.value is None:
            low, high = (format_value(bound, self.unit) for bound in (self.low, self.high))
            number, _, unit = low.partition(" ")
            return f"{number if high.endswith(f' {unit}') else low} to {high}"
        return format_value(self.value, self.unit)


def format_value(value: float, unit: str) -> str:
    """Three significant digits in a readable multiple of the unit: `format_value(0.0123, "s") == "12.3 ms"`.

    Two for a ratio, whose unit is "x": `format_value(123.4, "x") == "120x"`.
    """
    if unit == "x":
        return f"{float(f'{value:.2g}'):,.12g}x"
    scales = {
        "s": ((60, "min", 60), (1, "s", 1), (1e-3, "ms", 1e-3), (0, "µs", 1e-6)),
        "bytes": ((2**30, "GiB", 2**30), (2**20, "MiB", 2**20), (2**10, "KiB", 2**10), (0, "bytes", 1)),
    }
    for at_least, name, factor in scales.get(unit, ((0, unit, 1),)):
        if abs(value) >= at_least:
            scaled = value / factor
            digits = f"{scaled:,.0f}" if abs(scaled) >= 100 else f"{scaled:.3g}"
            return f"{digits} {name}".strip()
    raise AssertionError("unreachable: every scale ends with 0")


class Sentence(Model):
    """A sentence with its values kept apart, so that a report can say it in another language; `str` is the English one.

    A value's name says how it reads: `*_points` is a difference of shares in percentage points, a whole number is grouped.
    """

    text: str = Field(min_length=1, description="English; `{name}` stands where a value goes")
    values: dict[str, "Sentence | Quantity | int | float | str | None"] = {}

    @model_validator(mode="after")
    def _names_its_values(self) -> Self:
        """A file must not reach into objects by `{name.attribute}`, nor ask for a billion digits by `{name:...}`."""
        for _, name, form, conversion in string.Formatter().parse(self.text):
            if name is not None and (name not in self.values or form or conversion):
                raise ValueError(f"{self.text!r}: expected '{{name}}' of a value of {sorted(self.values)}, got {name!r}")
        return self

    def __str__(self) -> str:
        return self.text.format(**{name: f"{value:,}" if type(value) is int else value for name, value in self.values.items()})


class DataSource(Model):
    """Which data a result was made from, so that two results can be told to be about the same thing."""

    name: str = Field(description="file name or generator, as the user gave it")
    n_rows: int = Field(ge=0, description="rows used")
    n_skipped: int = Field(default=0, ge=0, description="invalid rows left out on the user's wish")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class FigureFile(Model):
    """A picture that a chapter saved under the run's `figures/`."""

    file: str = Field(pattern=r"^[\w.-]+\.(png|svg)$")
    title: str
    alt: str = Field(min_length=1, description="what the picture shows, for who cannot see it")


_VERSIONS_OF = (
    *(
        "altlas-cuda-workbook",
        "numpy",
        "scipy",
        "scikit-learn",
        "pandas",
        "keras",
        "tensorflow",
        "jax",
        "torch",
        "py-spy",
        "papermill",
        "numba",
        "onnxruntime",
    ),
    *("cupy-cuda12x", "cupy-cuda13x"),
)


@functools.cache
def git_state() -> tuple[str | None, bool]:
    """The commit of the checkout that this is, None where it is none, and whether it has uncommitted changes."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(project_root()), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        return git("rev-parse", "HEAD"), bool(git("status", "--porcelain"))
    except (OSError, subprocess.SubprocessError):  # no git, or not a checkout
        return None, False


@functools.cache
def library_versions() -> dict[str, str]:
    """The installed versions of the packages that numbers depend on; those not installed are left out."""
    versions = {}
    for package in _VERSIONS_OF:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


class Provenance(Model):
    """When, where, from which code and with which parameters a result was made."""

    created_at: datetime
    git_commit: str | None
    git_dirty: bool = Field(description="the checkout had uncommitted changes")
    parameters: dict[str, JsonValue]
    devices: list[str]
    versions: dict[str, str]

    @classmethod
    def now(cls, parameters: dict[str, Any]) -> Self:
        """Provenance of a result that is being made here and now by a notebook with these parameters."""
        commit, dirty = git_state()
        return cls(
            created_at=datetime.now(UTC),
            git_commit=commit,
            git_dirty=dirty,
            parameters=parameters,
            devices=device_names(),
            versions=library_versions(),
        )


class ChapterResult(Model):
    """What all chapters' results share."""

    chapter: ClassVar[str]
    number: ClassVar[str]

    schema_version: Literal[1] = SCHEMA_VERSION
    provenance: Provenance
    finding: str = Field(min_length=1, description="what was found, in one sentence")
    figures: list[FigureFile] = []

    def __str__(self) -> str:
        return textwrap.fill(self.finding, 96)

    def save(self, run: RunFolder) -> Self:
        """Write `results/<chapter>.json` atomically: a kill at any moment leaves the old file or the new one.

        Then the chapter's pictures (`figures/<number>_*`) that this result does not name are removed.
        """
        write_atomically(run.results / f"{self.chapter}.json", self.model_dump_json(indent=1) + "\n")
        named = {figure.file for figure in self.figures}
        for picture in run.figures.glob(f"{self.number}_*"):
            if picture.name not in named:
                picture.unlink(missing_ok=True)
        return self

    @classmethod
    def latest(cls) -> Self | None:
        """Of the run that made it last; None where no run has a valid one."""
        made = {path: path.stat().st_mtime for path in outputs_dir().glob(f"*/results/{cls.chapter}.json")}
        for path in sorted(made, key=made.__getitem__, reverse=True):
            with contextlib.suppress(ResultError):
                return cls.load(RunFolder(path.parent.parent))
        return None

    @classmethod
    def load(cls, run: RunFolder) -> Self:
        """Read `results/<chapter>.json`.

        Raises:
            ResultError: the file is missing, damaged, or was made by another schema version.
        """
        path = run.results / f"{cls.chapter}.json"
        again = f"run its chapter again: altlas run --run {run.name} --only {cls.number}"
        try:
            content = json.loads(path.read_bytes())
        except FileNotFoundError:
            raise ResultError(f"no {cls.chapter} result in run {run.name!r}; {again}") from None
        except (OSError, ValueError) as error:
            raise ResultError(f"{path.name} of run {run.name!r} cannot be read ({error}); {again}") from None
        version = content.get("schema_version") if isinstance(content, dict) else None
        if version != SCHEMA_VERSION:
            raise ResultError(f"{path.name} has schema version {version!r}, this library reads {SCHEMA_VERSION}; {again}")
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise ResultError(f"{path.name} of run {run.name!r} is not valid at {where!r}: {first['msg']}; {again}") from None


# Chapter 00 ----------------------------------------------------------------------------------------------------------


class Finding(Model):
    """One line of the environment check."""

    check: str
    status: Literal["ok", "warning", "failure"]
    found: str
    fix: str | None = Field(default=None, description="what to do about it, in one line; none when ok")

    @model_validator(mode="after")
    def _problems_have_a_fix(self) -> Self:
        if (self.status == "ok") != (self.fix is None):
            raise ValueError(f"a finding has a fix exactly when it is not ok, got {self!r}")
        return self


class Ceilings(Model):
    """The best rates that this machine reaches; what it does not have is None, "not measured".

    Matrix products count 2 n^3 operations, copies within a memory the bytes read and those written, copies between host and
    GPU the bytes that travel.
    """

    cpu_matmul_float32: Quantity
    cpu_copy_bandwidth: Quantity
    gpu_matmul_float32: Quantity | None = None
    gpu_matmul_float16: Quantity | None = None
    gpu_copy_bandwidth: Quantity | None = None
    host_to_device_pageable: Quantity | None = None
    host_to_device_pinned: Quantity | None = None
    device_to_host_pageable: Quantity | None = None
    device_to_host_pinned: Quantity | None = None


class Licence(Model):
    """An installed tool's declared licence; bundled parts need review."""

    package: str
    version: str
    declared: str
    flag: Literal["copyleft", "proprietary", "not declared"] | None = None


class EnvironmentResult(ChapterResult):
    chapter: ClassVar[str] = "environment"
    number: ClassVar[str] = "00"

    ready: bool = Field(description="the machine can run the book on what it has")
    findings: list[Finding]
    ceilings: Ceilings
    target_gpu: GpuSpec
    licences: list[Licence] = []


# Chapter 10 ----------------------------------------------------------------------------------------------------------

TimeClass = Literal["interpreter", "regex", "arrays", "framework", "parsing", "waiting", "other native"]
OperationKind = Literal[
    "product", "elementwise", "reduction", "sort", "gather", "fft", "factorisation", "copy", "model", "view", "unknown"
]
Advice = Literal[
    "change the call", "vectorise first", "try the drop-in", "port it", "write a kernel",
    "keep the data on the GPU", "batch first", "leave it", "unknown",
]  # fmt: skip
RouteKind = Literal["algorithm", "drop-in library", "CuPy port", "kernel of your own"]
RouteStanding = Literal["measured", "projected", "offered", "offered on conditions", "absent", "unknown"]


# Of the processors. A program that wants them all takes 1 / (1 - 0.2) = 1.25 times as long, less than a projection's own error.
LARGEST_OTHER_LOAD = 0.2
Origin = Literal["the calling thread", "another thread", "another process"]


class LineTime(Model):
    """A line of one of the hottest functions, under line_profiler."""

    line: int
    source: str
    n_hits: int = Field(ge=0, description="in one run")
    share: float = Field(ge=0, le=1, description="of the function's time, calls from the line included")


class FunctionTime(Model):
    """Where a workload's time went, for one of the user's functions; library code is charged to the function that called it.

    Times are of one run under cProfile, which makes every call more expensive: compare them with each other, not with the
    total. It sees the calling thread only: of a function that ran elsewhere, as `ran_in` says, they are None, and the samples
    tell its share.
    """

    name: str = Field(description="qualified name")
    file: str
    line: int
    n_calls: int | None = Field(default=None, ge=0, description="in one run")
    own: Quantity | None = Field(default=None, description="under cProfile: in its own lines and in library code called there")
    cumulative: Quantity | None = Field(default=None, description="under cProfile: own, and of all that it called")
    own_by_library: dict[str, float] = Field(default={}, description="library, or 'own lines' -> share of own")
    sampled_own_share: float | None = Field(
        default=None, ge=0, le=1, description="of py-spy's stacks, those in which it is the user's innermost function"
    )
    sampled_share: float | None = Field(
        default=None, ge=0, le=1, description="of py-spy's stacks, those that hold the function"
    )
    own_by_class: dict[TimeClass, float] = Field(
        default={}, description="share of its own stacks, by what the innermost native frame does; empty: not known"
    )
    lines: list[LineTime] = Field(default=[], description="of the hottest functions: their lines, most expensive first")
    ran_in: Origin = Field(default="the calling thread", description="where most of its samples were taken")


class ArrayOperation(Model):
    """Calls of one operation on arrays of one shape, in one run of one function."""

    name: str = Field(description="as the library calls it: 'numpy.matmul' (also for @), 'ndarray.argsort'")
    kind: OperationKind
    rate: str = Field(default="", description="class of rate, as operations.toml names it; empty: its kind's")
    sizes: dict[str, float] = Field(default={}, description="what its rate depends on besides, such as m, n and k of a product")
    operands: list[str] = Field(description="'float32[4000, 384]' for each array among the arguments")
    dtype: str = Field(description="that it computes in")
    n_calls: int = Field(ge=1)
    time_s: float = Field(ge=0, description="all calls together")
    flops: float | None = Field(default=None, ge=0, description="all calls together; None: not known")
    moved_bytes: float | None = Field(default=None, ge=0, description="read and written, all calls together; None: not known")
    working_set_bytes: float = Field(default=0, ge=0, description="operands and result of one call")
    n_kernels: int = Field(default=1, ge=0, description="that a GPU would start for one call")


class HiddenTransfer(Model):
    """A place that would copy between GPU and host each time it runs, were its arrays on a GPU."""

    line: int
    what: str = Field(description="'float(x)', 'truth of an array', 'iteration'")
    n_times: int = Field(ge=1, description="in one run")


class ArrayTrace(Model):
    """What the tracer saw of one of the user's functions in one run: every operation on arrays that its own lines asked for."""

    function: str = Field(description="qualified name")
    file: str
    line: int
    n_calls: int = Field(ge=1)
    operations: list[ArrayOperation]
    n_element_accesses: int = Field(default=0, ge=0, description="single elements read or written: a Python loop over an array")
    input_bytes: float = Field(ge=0, description="arrays that came as arguments, all calls together")
    output_bytes: float = Field(ge=0, description="arrays that were returned, all calls together")
    hidden_transfers: list[HiddenTransfer] = Field(default=[], description="by line; looked for where a port is checked")

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
    gave: str = Field(description="which figures of the profile")
    factor: float | None = Field(
        default=None, description="fastest run with it / fastest without; None: no run to compare with"
    )


class Alternative(Model):
    """Another function on the same input, measured in turns with the target, each with the thread count that suits it."""

    name: str
    time: Quantity = Field(description="seconds of one warm run, as on a machine with nothing else to do (`quiet_s`)")
    gain: Quantity = Field(
        description="times as fast as the target, by medians; low and high: the slowest run of one, the fastest of the other"
    )
    same_answer: bool | None = Field(description="None: the answers cannot be compared")
    largest_difference: float | None = Field(
        default=None, description="of two numbers that should be equal, absolute; None: no numbers, or not of the same shape"
    )


class WorkloadProfile(Model):
    workload: str
    target: str = Field(description="what ran: module:function, a script with its arguments, a process")
    total: Quantity | None = Field(description="one run without any profiler, the best thread count; None: attached to")
    cpu: Quantity | None = Field(
        default=None,
        description="processor seconds of those runs: of all threads, and of the processes that the target started",
    )
    quiet: Quantity | None = Field(
        default=None,
        description="seconds of those runs as they would be if nobody else wanted a processor: at most the processor time and "
        "what the calling thread waited of its own accord, for time, files, locks, other threads. None: not known here",
    )
    other_load: float | None = Field(
        default=None, ge=0, le=1, description="share of the processors that other programs took while it was measured"
    )
    is_parallel: bool = Field(default=False, description="other threads or processes than the calling one did a tenth or more")
    n_runs: int = Field(default=0, ge=0, description="runs of the target in all, the first one and those under each tool")
    seconds_by_n_threads: dict[int, float] = Field(default={}, description="BLAS threads -> fastest run: the baseline's sweep")
    functions: list[FunctionTime] = Field(description="greatest share first")
    tools: list[Overhead] = []
    n_samples: int = Field(default=0, ge=0, description="stacks that py-spy took of the target; 0: it took none")
    stacks: dict[str, int] = Field(default={}, description="'outer;inner' -> samples, the most frequent: the flame graph")
    traces: list[ArrayTrace] = []
    peak_memory: Quantity | None = Field(default=None, description="of the process, beyond what it held before the first run")
    alternatives: list[Alternative] = []
    notes: list[str] = Field(default=[], description="what a tool could not do, and why")

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


class ProjectionAccuracy(Model):
    """How far projections of a class of operations were from published timings that their fit had not seen."""

    of: str = Field(description="the class that takes longest on the GPU: 'product float32', 'fft'")
    n_points: int = Field(ge=0)
    n_sources: int = Field(default=0, ge=0)
    gpus: tuple[str, ...] = ()
    median_error: float | None = Field(default=None, ge=1, description="factor; None: no points")
    inside: float | None = Field(default=None, ge=0, le=1, description="share of them that lay in their bands")

    def __str__(self) -> str:
        """A sentence for reports."""
        if not self.n_points or self.median_error is None or self.inside is None:
            return f"No published timings of {self.of} were found: its band is wide, and stands on the data sheet alone."
        timings = "1 published timing" if self.n_points == 1 else f"{self.n_points:,} published timings"
        return (
            f"Beside {timings} of {self.of} ({', '.join(self.gpus)}) that it was not fitted on, this model was off by a "
            f"factor of {self.median_error:.2f} in the median, and {self.inside:.0%} lay inside its bands."
        )


class Projection(Model):
    """What a function's own work would take on a GPU that need not be there. Nothing ran: every time is a band."""

    gpu: str
    basis: Literal["data sheet", "measured ceilings", "calibration"] = Field(description="where the GPU's rates come from")
    now: Quantity = Field(description="measured on this CPU: one run, the function's own time")
    on_gpu: Quantity = Field(description="s, all data brought in and back in each run")
    on_gpu_resident: Quantity = Field(description="s, data already on the GPU and left there")
    by_cause: dict[str, float] = Field(
        description="compute, memory, launches, transfers, Python, unseen -> s, mean of the band's ends"
    )
    coverage: float = Field(
        ge=0, le=1, description="share of `now` that is accounted for: array operations of known cost, Python"
    )
    accuracy: ProjectionAccuracy | None = Field(default=None, description="None: nothing of known cost was seen")

    @property
    def bound_by(self) -> str:
        return self.on_gpu.bound_by


class Route(Model):
    """One way to make a function faster; a candidate's routes stand in the order of what they cost, cheapest first."""

    kind: RouteKind
    name: str = Field(description="'altlas_lib.similarity.pairs_above', 'cuml.accel', 'CuPy'")
    standing: RouteStanding = Field(description="how it is known: a library 'offers' a call that nobody timed here")
    gain: Quantity | None = Field(
        default=None, description="the whole workload, times as fast; None: neither measured nor projected"
    )
    same_answer: bool | None = Field(
        default=None, description="measured routes: the answer agrees with the function's; None: not compared"
    )
    why: str = Field(description="what it takes the place of, its conditions, licence and download, in a sentence")


class Candidate(Model):
    """A function considered for the proof of concept."""

    workload: str
    function: str
    share: float = Field(ge=0, le=1, description="the function's own time, library code included / the workload's time")
    tool: Literal["cProfile", "py-spy"] = Field(default="cProfile", description="which measured the share")
    largest_gain: float | None = Field(description="the workload's gain if the function took no time (Amdahl); None: all of it")
    projection: Projection | None = Field(default=None, description="None: its arrays were not seen")
    gain: Quantity | None = Field(default=None, description="projected: the function, times as fast")
    workload_gain: Quantity | None = Field(default=None, description="projected: the whole workload, times as fast (Amdahl)")
    advice: Advice = "unknown"
    reason: str
    routes: list[Route] = Field(default=[], description="every way out, the cheapest first")


class HotspotsResult(ChapterResult):
    chapter: ClassVar[str] = "hotspots"
    number: ClassVar[str] = "10"

    source: DataSource | None = Field(default=None, description="the texts that the workloads ran on; None: targets without")
    target_gpu: str | None = Field(default=None, description="the GPU that is projected onto")
    workloads: list[WorkloadProfile]
    candidates: list[Candidate]

    @property
    def to_port(self) -> list[Candidate]:
        """What chapter 20 is to try: a GPU gains from these as they are, with the data kept there, or in batches."""
        return [each for each in self.candidates if each.advice in ("port it", "keep the data on the GPU", "batch first")]


# Chapter 20 ----------------------------------------------------------------------------------------------------------


class Validation(Model):
    """One implementation beside the float64 reference."""

    method: str
    device: str
    n_texts: int
    n_rows_compared: int | None = Field(default=None, description="a random sample of the rows; None: all")
    largest_error: float = Field(description="largest absolute difference of a score; scores lie in [-1, 1]")
    tolerance: float
    n_other_neighbours: int = Field(description="neighbours that differ by more than a tie within the tolerance")

    @property
    def passed(self) -> bool:
        return self.largest_error <= self.tolerance and self.n_other_neighbours == 0


class Timing(Model):
    """How long one method took for the k nearest of every text."""

    method: str
    on_gpu: bool = False
    with_transfers: bool = Field(
        default=True, description="from host memory to host memory; on a CPU there is nothing to transfer"
    )
    n_texts: int
    time: Quantity
    peak_memory: Quantity | None = Field(default=None, description="of the method's device, beyond the input")
    other_load: float | None = Field(
        default=None, ge=0, le=1, description="share of the processors that other programs took meanwhile; None: not known"
    )

    @property
    def is_too_busy(self) -> bool:
        """Whether other programs slowed the CPU down by so much that a gain over it would be theirs."""
        return not self.on_gpu and (self.other_load or 0) > LARGEST_OTHER_LOAD


class Step(Model):
    """Where the time of one search went."""

    name: str
    time: Quantity = Field(description="of a CPU its seconds, summed over all threads")
    share: float = Field(ge=0, le=1)


class Expectation(Model):
    """What arithmetic says before anything is ported."""

    n_texts: int
    on_gpu: bool
    time: Quantity = Field(description="projected")


class SimilarPair(Model):
    """Two texts of the user, shortened, and the cosine of their vectors."""

    first: str
    second: str
    score: float = Field(description="in [-1, 1]")


class SimilarityResult(ChapterResult):
    chapter: ClassVar[str] = "similarity"
    number: ClassVar[str] = "20"

    source: DataSource
    embedding: str
    n_dimensions: int
    k: int
    validations: list[Validation]
    timings: list[Timing]
    break_even_n_texts: int | None = Field(
        default=None, description="smallest measured size at which the GPU wins, transfers included"
    )
    most_similar: list[SimilarPair]
    expectations: list[Expectation] = []
    steps: list[Step] = Field(default=[], description="of the fastest method at the largest size")
    sentences: list[Sentence] = Field(default=[], description="finding and titles of figures again, their values kept apart")

    @property
    def gpu_was_timed(self) -> bool:
        return any(timing.on_gpu for timing in self.timings)


# Chapter 30 ----------------------------------------------------------------------------------------------------------


class Epoch(Model):
    """A line of the training log. Memory is the GPU's where the backend computes on one, else the process's."""

    stage: int
    epoch: int
    metrics: dict[str, float] = Field(
        description="Keras' names: `loss`, `regression_loss`, ..., `val_` for the validation part"
    )
    duration_s: float
    micro_batch_size: int
    n_updates: int
    n_skipped_updates: int = Field(default=0, description="for which the loss scale was too large: float16 overflowed")
    memory_device: str
    memory_bytes: int
    peak_memory_bytes: int
    notes: list[str] = []


class Metric(Model):
    """A score on the test part, beside what needs no model."""

    name: str
    unit: Literal["share", "log"] = Field(description="a share of `n_samples`, or the mean of an error of log values")
    higher_is_better: bool
    model: float
    base_rate: float = Field(description="always predicting the most frequent class or the median of the training part")
    best_possible: float | None = Field(default=None, description="known for generated series only")
    n_samples: int = Field(ge=0, description="test values that the model's score is about")
    gain_low: float | None = Field(default=None, description="95 % interval of the gain over the base rate; positive is better")
    gain_high: float | None = None
    block_length: int | None = Field(default=None, ge=1, description="test values drawn together for the interval")

    @property
    def standing(self) -> Literal["better", "worse", "not told apart", "unknown"]:
        """Of the model beside the base rate, by the whole interval."""
        if self.gain_low is None or self.gain_high is None:
            return "unknown"
        return "better" if self.gain_low > 0 else "worse" if self.gain_high < 0 else "not told apart"


class MemoryPlan(Model):
    """What one training step of a configuration needs on a GPU that need not be there.

    `peak` is what the GPU's allocator has to hold, compiled by XLA for that GPU. `overhead_bytes` is what else lives
    on it.
    """

    gpu: str
    configuration: dict[str, JsonValue] = Field(description="what was planned: model, batch_size, dtype_policy, ...")
    peak: Quantity
    peak_before_rematerialisation: Quantity | None = Field(
        default=None, description="compiled for a GPU of endless memory: XLA had no reason to compute anything twice"
    )
    bytes_by_part: dict[str, int] = Field(description="weights, optimizer, accumulators, inputs, temporaries; sum: the peak")
    overhead_bytes: int = Field(description="CUDA context, library workspaces, prefetched batches: an allowance, not compiled")
    usable_bytes: int = Field(description="of the GPU's memory, for everything")
    verdict: Literal["fits", "tight", "undecided", "out of memory"] = Field(description="undecided: a band over the limit")
    n_parameters: int
    step_time: Quantity | None = Field(default=None, description="projected, from the step's operations and bytes")
    compile_s: float | None = None
    notes: list[str] = []


class Remedy(Model):
    """One of the ways to make a training fit, alone or with others, beside what the plan claims of it."""

    name: str
    plan: MemoryPlan | None = Field(description="None: it could not be compiled; `problem` says why")
    largest_batch: int | None = Field(
        default=None, ge=0, description="largest micro-batch that fits, by a search; 0: none does; None: not searched for"
    )
    claimed: str | None = Field(default=None, description="the plan's own estimate")
    problem: str | None = None


class GpuFit(Model):
    """What makes a model's training step fit one GPU of the catalogue, by what was compiled for it."""

    gpu: str
    as_it_is: Literal["fits", "tight", "out of memory"] | None = Field(
        description="of the model without a mitigation; None: not compiled"
    )
    fitting: list[str] = Field(
        description="mitigations with which it fits, the model as it is among them, in the table's order"
    )
    plan: MemoryPlan | None = Field(description="of the first that fits, else of the model as it is; None: not compiled")
    not_compiled: list[str] = Field(default=[], description="mitigations that nothing is known of on this GPU")


class Kept(Model):
    """A ratio with its 95 % interval: an option's score, or gain over the base rate, over the reference's."""

    value: float
    low: float
    high: float


class Quality(Model):
    """What an option of the plan keeps of the forecast's quality, over several seeds on one series."""

    option: str
    series: str
    n_seeds: int
    n_parameters: int
    metrics: list[Metric] = Field(description="the option's")
    score_kept: Kept = Field(description="accuracy at 1.5 over the reference's; two models that know nothing keep all of it")
    gain_kept: Kept | None = Field(description="of the gain over the base rate; None: the reference has none to keep")
    claimed: tuple[float, float] = Field(description="the plan's: shares of quality, from and to")
    verdict: str


class TrainingResult(ChapterResult):
    chapter: ClassVar[str] = "training"
    number: ClassVar[str] = "30"

    source: DataSource
    data_kind: Literal["own", "generated, planted regime", "generated, fair"] = Field(
        default="own", description="a series that was generated says nothing about the user's own"
    )
    preset: str
    model: str | None = Field(default=None, description="module:function of a model of the user's own; None: the preset")
    stands_in_for: str | None = Field(default=None, description="the preset that a smaller one was trained in place of")
    n_parameters: int
    micro_batch_size: int = Field(description="at the end of the training")
    micro_batch_size_asked: int | None = Field(default=None, description="None: not recorded")
    n_retreats: int = Field(
        default=0, ge=0, description="times that the device ran out of memory and the micro-batch was halved"
    )
    best_epoch: int | None = Field(default=None, description="of the last stage: the one whose weights the scores are of")
    constant_answer: str | None = Field(
        default=None, description="what all seeds say of every test value; None: they tell values apart, or were not asked"
    )
    gradient_accumulation_steps: int
    history: list[Epoch] = Field(description="of the first seed's training")
    metrics: list[Metric]
    n_seeds: int = Field(default=1, ge=1, description="trainings that the metrics are the mean of")
    step_time: Quantity = Field(description="one micro-batch, after the first")
    peak_memory: Quantity | None = None
    gpu: str | None = Field(default=None, description="that the remedies are planned for")
    remedies: list[Remedy] = []
    gpu_fits: list[GpuFit] = Field(
        default=[], description="of the same model: each GPU of the catalogue, smallest memory first"
    )
    qualities: list[Quality] = []
    notes: list[str] = Field(default=[], description="what did not go as asked for in training")


CHAPTERS: tuple[type[ChapterResult], ...] = (EnvironmentResult, HotspotsResult, SimilarityResult, TrainingResult)
