"""Chapter 20: does the GPU port give the same answer, how much faster, from which size on?"""

from pydantic import Field

from .provenance import ChapterResult, DataSource, UnderLoad
from .quantity import Model, Quantity, Share


class Validation(Model):
    """One implementation beside the float64 reference."""

    method: str
    device: str
    n_texts: int
    n_rows_compared: int | None = None  # a random sample of the rows; None: all
    largest_error: float  # largest absolute difference of a score; scores lie in [-1, 1]
    tolerance: float
    n_other_neighbours: int  # neighbours that differ by more than a tie within the tolerance

    @property
    def passed(self) -> bool:
        return self.largest_error <= self.tolerance and self.n_other_neighbours == 0


class Timing(UnderLoad):
    """How long one method took, or is projected to take, for the k nearest of every text."""

    method: str
    on_gpu: bool = False
    with_transfers: bool = True  # from host memory to host memory; on a CPU there is nothing to transfer
    n_texts: int
    time: Quantity
    peak_memory: Quantity | None = None  # of the method's device, beyond the input


class Step(Model):
    """Where the time of one search went."""

    name: str
    time: Quantity  # of a CPU its seconds, summed over all threads
    share: Share


class SimilarityResult(ChapterResult, chapter="similarity", number="20"):
    source: DataSource
    embedding: str
    n_dimensions: int
    k: int
    validations: list[Validation]
    timings: list[Timing]
    break_even_n_texts: int | None = None  # smallest measured size at which the GPU wins, transfers included
    most_similar: list[tuple[str, str, float]]  # two texts of the user, shortened, and the cosine of their vectors
    expectations: list[Timing] = Field(default=[])  # what arithmetic projects before anything is ported
    steps: list[Step] = Field(default=[])  # of the fastest method at the largest size
