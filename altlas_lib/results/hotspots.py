"""Chapter 10: what a GPU, or a cheaper way, would gain of it."""

from typing import Literal

from pydantic import Field

from ..devices.efficiencies import Accuracy
from .profile import WorkloadProfile
from .provenance import ChapterResult, DataSource
from .quantity import Model, Quantity, Share

Advice = Literal[
    "change the call", "vectorise first", "try the drop-in", "port it", "write a kernel",
    "keep the data on the GPU", "batch first", "leave it", "unknown",
]  # fmt: skip
RouteKind = Literal["algorithm", "drop-in library", "CuPy port", "kernel of your own"]
RouteStanding = Literal["measured", "projected", "offered", "offered on conditions", "absent", "unknown"]


class ProjectionAccuracy(Accuracy):
    """How far projections of a class of operations were from published timings that their fit had not seen."""

    of: str  # the class that takes longest on the GPU: 'product float32', 'fft'

    def __str__(self) -> str:
        """A sentence for reports."""
        if not self.n_points:
            return f"No published timings of {self.of} were found: its band is wide, and stands on the data sheet alone."
        timings = "1 published timing" if self.n_points == 1 else f"{self.n_points:,} published timings"
        return (
            f"Beside {timings} of {self.of} ({', '.join(self.gpus)}) that it was not fitted on, this model was off by a "
            f"factor of {self.median_error:.2f} in the median, and {self.inside:.0%} lay inside its bands."
        )


class Projection(Model):
    """What a function's own work would take on a GPU that need not be there. Nothing ran: every time is a band."""

    gpu: str
    basis: Literal["data sheet", "measured ceilings", "calibration"]  # where the GPU's rates come from
    now: Quantity  # measured on this CPU: one run, the function's own time
    on_gpu: Quantity  # s, all data brought in and back in each run
    on_gpu_resident: Quantity  # s, data already on the GPU and left there
    by_cause: dict[str, float]  # compute, memory, launches, transfers, Python, unseen -> s, mean of the band's ends
    coverage: Share  # share of `now` that is accounted for: array operations of known cost, Python
    accuracy: ProjectionAccuracy | None = None  # None: nothing of known cost was seen

    @property
    def bound_by(self) -> str:
        return self.on_gpu.bound_by


class Route(Model):
    """One way to make a function faster; a candidate's routes stand in the order of what they cost, cheapest first."""

    kind: RouteKind
    name: str  # 'altlas_lib.similarity.pairs_above', 'cuml.accel', 'CuPy'
    standing: RouteStanding  # how it is known: a library 'offers' a call that nobody timed here
    gain: Quantity | None = None  # the whole workload, times as fast; None: neither measured nor projected
    same_answer: bool | None = None  # measured routes: the answer agrees with the function's; None: not compared
    why: str  # what it takes the place of, its conditions, licence and download, in a sentence


class Candidate(Model):
    """A function considered for the proof of concept."""

    workload: str
    function: str
    share: Share  # the function's own time, library code included / the workload's time
    tool: Literal["cProfile", "py-spy"] = "cProfile"  # which measured the share
    largest_gain: float | None  # the workload's gain if the function took no time (Amdahl); None: all of it
    projection: Projection | None = None  # None: its arrays were not seen
    gain: Quantity | None = None  # projected: the function, times as fast
    workload_gain: Quantity | None = None  # projected: the whole workload, times as fast (Amdahl)
    advice: Advice = "unknown"
    reason: str
    routes: list[Route] = Field(default=[])  # every way out, the cheapest first


class HotspotsResult(ChapterResult, chapter="hotspots", number="10"):
    source: DataSource | None = None  # the texts that the workloads ran on; None: targets without
    target_gpu: str | None = None  # the GPU that is projected onto
    workloads: list[WorkloadProfile]
    candidates: list[Candidate]

    @property
    def to_port(self) -> list[Candidate]:
        """What chapter 20 is to try: a GPU gains from these as they are, with the data kept there, or in batches."""
        return [each for each in self.candidates if each.advice in ("port it", "keep the data on the GPU", "batch first")]
