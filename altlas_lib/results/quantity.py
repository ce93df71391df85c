"""Numbers that say where they come from."""

import reprlib
import statistics
from collections.abc import Sequence
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, model_validator

Basis = Literal["measured", "compiled", "projected"]
Share = Annotated[float, Field(ge=0, le=1)]
# Multiples of a unit in which numbers are read, the largest first; of less than the last the last.
_SCALES = {
    "s": {"min": 60, "s": 1, "ms": 1e-3, "µs": 1e-6},
    "bytes": {"GiB": 2**30, "MiB": 2**20, "KiB": 2**10, "bytes": 1},
    "rows/s": {"million rows/s": 1e6, "rows/s": 1},
}


class Model(BaseModel):
    # NaN and infinity are no JSON: a result that holds one is refused when it is made, not when somebody reads it.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def first_problem(error: ValidationError) -> str:
    """`place.in.the.data: what is wrong, got ...` of the first place that is not valid."""
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}, got {reprlib.repr(first['input'])}"


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
    n_runs: PositiveInt | None = None
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
        ends = {"low": min(samples), "high": max(samples), "n_runs": len(samples)}
        return cls(value=statistics.median(samples), unit=unit, device=device, basis="measured", **ends)

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
    scales = _SCALES.get(unit, {unit: 1})
    name = next((name for name, factor in scales.items() if abs(value) >= factor), list(scales)[-1])
    scaled = value / scales[name]
    digits = f"{scaled:,.0f}" if abs(scaled) >= 100 else f"{scaled:.3g}"
    return f"{digits} {name}".strip()
