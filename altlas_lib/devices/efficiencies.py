"""How much of a GPU's data sheet programs reach: `gpu_efficiencies.toml`, fitted on published timings, with its errors."""

import functools

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat

from ..paths import shipped_toml
from .catalogue import GpuSpec, find_multiprocessor

PCIE_BYTES_PER_S = {3: 15.75e9, 4: 31.5e9, 5: 63.0e9, 6: 121e9}  # by generation: 16 lanes, one direction


class _Row(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Efficiency(_Row):
    """One constant of the model in `profiling.project.gpu`."""

    value: PositiveFloat
    error: float = Field(ge=1, description="factor that one standard deviation amounts to")
    n_points: int = Field(ge=0, description="published timings that it was fitted on; 0: `source` alone stands behind it")
    prior: PositiveFloat = Field(description="what it is without any of them")
    source: str = Field(min_length=1, description="of the prior")


class Accuracy(_Row):
    """How far the projection of a class was from published timings."""

    factor: float = Field(gt=1, description="a band reaches so many times below and above its centre")
    n_points: int = Field(ge=0)
    n_sources: int = Field(ge=0)
    gpus: tuple[str, ...] = ()
    median_error: float | None = Field(default=None, ge=1, description="factor, of centres, points left out; None: no points")
    inside: float | None = Field(default=None, ge=0, le=1, description="share of points in their bands, points left out")


class Efficiencies(_Row):
    """`published` and `unpublished` constants by class and name; `accuracy` by class."""

    published: dict[str, dict[str, Efficiency]]
    unpublished: dict[str, dict[str, Efficiency]]
    accuracy: dict[str, Accuracy]

    @property
    def values(self) -> dict[str, float]:
        """'product float32.share' -> value."""
        groups = self.published | self.unpublished
        return {f"{group}.{name}": entry.value for group, entries in groups.items() for name, entry in entries.items()}


@functools.cache
def load_efficiencies() -> Efficiencies:
    """The shipped table; `python -m benchmarks.fit_efficiencies` writes it."""
    return Efficiencies.model_validate(shipped_toml(__package__, "gpu_efficiencies.toml"))


def sustained_flops(gpu: GpuSpec, peak: float, pj_per_nm: float) -> float:
    """Operations per second of large products, of a `peak` that the multiprocessors reach: the board's power bounds them too.

    Args:
        pj_per_nm: energy of an operation, in picojoules per nanometre of the process.
    """
    by_power = gpu.power_w / (pj_per_nm * 1e-12 * find_multiprocessor(gpu.compute_capability).process_nm)
    return (peak**-4 + by_power**-4) ** -0.25
