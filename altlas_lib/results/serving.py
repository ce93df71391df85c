"""Chapter 50: can it be served: which latency under which load, and what survives a kill?"""

import itertools
import math
from collections.abc import Sequence

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from .provenance import ChapterResult, DataSource, UnderLoad
from .quantity import Model, Quantity


class LoadPoint(Model):
    """Requests at random times, offered at one rate whether or not the server kept up."""

    batching: bool
    offered_per_s: PositiveFloat
    answered_per_s: Quantity
    p50: Quantity | None = None  # seconds from when a request was due to its answer; None: nothing was answered
    p95: Quantity | None = None
    p99: Quantity | None = None
    n_refused: NonNegativeInt = 0

    def holds(self, limit_s: float) -> bool:
        """Whether all requests were answered, and 95 of 100 within the limit in every run."""
        measured = self.p95 is not None and self.p95.basis == "measured"
        return self.n_refused == 0 and measured and self.p95.high <= limit_s


def sustained_per_s(loads: Sequence[LoadPoint], limit_s: float, *, batching: bool = True) -> float | None:
    """The highest offered rate up to which every measured one held; None if not even the lowest did."""
    of_kind = sorted((load for load in loads if load.batching == batching), key=lambda load: load.offered_per_s)
    held = list(itertools.takewhile(lambda load: load.holds(limit_s), of_kind))
    return held[-1].offered_per_s if held else None


class Kill(Model):
    """What became of a job whose server was killed while it ran."""

    state: str
    tries: NonNegativeInt
    same_answer: bool  # bit by bit as without a server
    restart: Quantity  # until the server was ready again

    @property
    def survived(self) -> bool:
        return self.state == "done" and self.same_answer


class ServingResult(ChapterResult, UnderLoad, chapter="serving", number="50"):
    source: DataSource
    n_rows: PositiveInt  # of the corpus
    n_dimensions: PositiveInt
    k: PositiveInt
    rows_per_request: PositiveInt
    latency_limit_s: PositiveFloat  # that 95 of 100 requests must meet
    wanted_per_s: PositiveFloat  # the user's load
    bare: Quantity  # the call of one request without a server
    loads: list[LoadPoint]
    kill: Kill
    gpu_rows_per_s: Quantity | None = None  # projected, of a GPU replica
    models: list[str] = Field(default=[])  # served beside the search

    def sustained_per_s(self, *, batching: bool = True) -> float | None:
        """As the function of this name."""
        return sustained_per_s(self.loads, self.latency_limit_s, batching=batching)

    @property
    def n_replicas(self) -> int | None:
        """Of this machine, for the user's load; None where no rate held."""
        sustained = self.sustained_per_s()
        return math.ceil(self.wanted_per_s / sustained) if sustained else None
