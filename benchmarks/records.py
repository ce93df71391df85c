"""What a benchmark measured, as a file: every sample, the settings, the machine, and the ratios that follow from them."""

import statistics
from collections.abc import Iterable, Sequence
from typing import Literal, Self

from pydantic import Field, model_validator

from altlas_lib.results import Model, Provenance


class Case(Model):
    """One problem, given to all contestants."""

    input: str
    n: int = Field(gt=1, description="rows")
    d: int = Field(ge=1, description="dimensions")
    k: int = Field(ge=1, description="neighbours per row")

    def __str__(self) -> str:
        return f"{self.input}, n = {self.n:,}, d = {self.d}, k = {self.k}"


class Exactness(Model):
    """An answer compared with float64 on a sample of rows."""

    n_rows: int
    largest_error: float = Field(description="of a score, against the reference's at its place and the true one of its pair")
    n_wrong: int = Field(description="neighbours that are no other row, named twice, or further away than the k-th")


class Trial(Model):
    """Which kernels of OpenBLAS suit a contestant on this machine, tried on `n` rows before all else."""

    contestant: str
    n: int
    cpu_s: dict[str, float] = Field(description="setting -> fastest of three runs; 'default': OpenBLAS chooses itself")
    chosen: str
    cold_first_call_s: float = Field(description="first call of the first process, which finds no compiled code on disk")


class Measurement(Model):
    """One contestant on one case: all samples, or why there are none."""

    case: Case
    contestant: str
    kind: Literal["ours", "peer", "bound", "product"]
    on_gpu: bool
    skipped: str | None = None
    setting: str = "default"
    blas: list[str] = Field(default=[], description="loaded libraries with their kernels")
    first_call_s: float | None = Field(default=None, description="in a fresh process that finds compiled code on disk")
    cpu_s: list[float] = Field(default=[], description="user and system time of all threads, per call")
    wall_s: list[float] = Field(default=[], description="per call, as cpu_s")
    others_busy: float = Field(
        default=0, ge=0, description="share of all CPUs that other programs used before its runs, median"
    )
    peak_bytes: int | None = Field(default=None, description="resident memory beyond the raw rows and the libraries")
    peak_gpu_bytes: int | None = None
    exactness: Exactness | None = None

    @model_validator(mode="after")
    def _has_samples_or_a_reason(self) -> Self:
        if bool(self.skipped) == bool(self.wall_s) or len(self.cpu_s) != len(self.wall_s):
            raise ValueError(f"{self.contestant}: expected samples or a reason why there are none, got {self!r}")
        return self

    @property
    def costs_s(self) -> list[float]:
        """What is compared: CPU seconds, which no neighbour on the machine distorts; of a GPU wall seconds."""
        return self.wall_s if self.on_gpu else self.cpu_s

    @property
    def cost_s(self) -> float:
        return statistics.median(self.costs_s)


class Record(Model):
    """A whole run of the benchmark."""

    provenance: Provenance
    n_threads: int
    ignored_environment: dict[str, str] = Field(description="variables of the shell that were kept from the workers")
    trials: list[Trial] = Field(default=[], description="of all that can run here")
    measurements: list[Measurement] = Field(default=[], description="case by case")

    @property
    def cases(self) -> list[Case]:
        return list(dict.fromkeys(measurement.case for measurement in self.measurements))

    def of(self, case: Case, *, skipped: bool = False) -> list[Measurement]:
        """The measurements of one case, the cheapest first; or those that were skipped."""
        chosen = [m for m in self.measurements if m.case == case and bool(m.skipped) == skipped]
        return chosen if skipped else sorted(chosen, key=lambda measurement: (measurement.on_gpu, measurement.cost_s))


def best(measurements: Iterable[Measurement], kind: str, *, on_gpu: bool = False) -> Measurement | None:
    """The cheapest of its kind by median; None where none was measured."""
    candidates = [m for m in measurements if m.kind == kind and m.on_gpu == on_gpu and not m.skipped]
    return min(candidates, key=lambda measurement: measurement.cost_s, default=None)


def speedup(measurement: Measurement, of_case: Sequence[Measurement]) -> float | None:
    """How many times cheaper than the best peer on the same kind of device; below 1 where it is slower. None of a bound."""
    peer = best(of_case, "peer", on_gpu=measurement.on_gpu)
    return peer.cost_s / measurement.cost_s if peer and measurement.kind in ("ours", "peer") else None


def share_of_bound(measurement: Measurement, of_case: Sequence[Measurement]) -> float | None:
    """The CPU seconds of the symmetric float32 product alone over this one's; above 1 for whoever multiplies in int8."""
    bound = best(of_case, "bound")
    return bound.cost_s / measurement.cost_s if bound and not measurement.on_gpu else None
