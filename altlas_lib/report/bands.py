"""Arithmetic with ranges: what is compared, priced or projected further goes from a low to a high end, never by a median."""

from dataclasses import dataclass
from typing import Self

from ..results import Quantity, SimilarityResult, Timing


@dataclass(frozen=True)
class Band:
    """From `low` to `high` in a unit; both ends are the same where a number has no range."""

    low: float
    high: float
    unit: str

    @classmethod
    def of(cls, quantity: Quantity) -> Self:
        """From the fastest to the slowest run, or a projection's ends."""
        ends = [quantity.value] * 2 if quantity.low is None else [quantity.low, quantity.high]
        return cls(*ends, quantity.unit)

    def times(self, factor: float, unit: str) -> Self:
        return type(self)(*sorted((self.low * factor, self.high * factor)), unit)

    def plus(self, other: Self) -> Self:
        return type(self)(self.low + other.low, self.high + other.high, self.unit)

    def minus(self, other: Self) -> Self:
        return type(self)(self.low - other.high, self.high - other.low, self.unit)

    def over(self, other: Self, unit: str = "x") -> Self | None:
        """How many times `other` goes into this; None where `other` may be 0 or less."""
        return type(self)(self.low / other.high, self.high / other.low, unit) if other.low > 0 else None


def fastest_first(result: SimilarityResult, *, on_gpu: bool) -> dict[int, list[Timing]]:
    """Number of texts -> timings with all transfers, by the slowest run of each."""
    found: dict[int, list[Timing]] = {}
    for each in sorted(result.timings, key=lambda each: Band.of(each.time).high):
        if each.on_gpu == on_gpu and each.with_transfers:
            found.setdefault(each.n_texts, []).append(each)
    return found
