"""What if: another GPU, more texts, a larger batch? The library's own projection and planner, moved by sliders."""

import bisect
import functools
import math
from dataclasses import dataclass

from ..devices import find_gpu, load_catalogue
from ..results import Ceilings, MemoryPlan, Quantity, SimilarityResult


@dataclass(frozen=True)
class WhatIf:
    """Answers for one position of the sliders.

    Attributes:
        ceilings: of this machine, as chapter 00 measured them.
        similarity: chapter 20's result: its CPU times count more than the ceilings, where it has as many dimensions.
        plan: of one training step of the reference model, as it ships: a slider does not wait for a compiler.
            Where it has none, why.

    Raises:
        ValueError: no such GPU, or a number below 1.
    """

    gpu: str
    n_texts: int
    n_dimensions: int
    batch_size: int
    dtype_policy: str = "float32"
    ceilings: Ceilings | None = None
    similarity: SimilarityResult | None = None

    def __post_init__(self) -> None:
        if min(self.n_texts, self.n_dimensions) < 1:
            raise ValueError(f"{self.n_texts} texts of {self.n_dimensions} dimensions: expected 1 or more of each")
        self.plan  # noqa: B018 (what cannot be meant is refused here)

    @functools.cached_property
    def plan(self) -> MemoryPlan | str:
        from ..training import PlanError, plan_memory

        how = {"batch_size": self.batch_size, "dtype_policy": self.dtype_policy, "time_limit_s": 0}
        try:
            return plan_memory("reference", find_gpu(self.gpu), **how)
        except PlanError as error:
            return str(error)

    @functools.cached_property
    def _measured(self) -> dict[int, Quantity]:
        """Number of texts -> time of the fastest CPU method, where its runs have a range."""
        timings = self.similarity.timings if self.similarity and self.similarity.n_dimensions == self.n_dimensions else []
        ranges = [each for each in timings if not each.on_gpu and each.time.n_runs and 0 < each.time.low < each.time.high]
        return {each.n_texts: each.time for each in sorted(ranges, key=lambda each: -each.time.high)}  # the fastest comes last

    def times(self, n: int) -> tuple[Quantity | None, Quantity]:
        """Nearest neighbours of `n` texts on this CPU and on the GPU. The CPU's is the time that was measured at `n`, else
        that at the nearest size, times the square of their ratio, else projected; None: nothing of this CPU was measured.
        """
        from ..similarity import expected_times

        expected = expected_times([n], self.n_dimensions, k=10, gpu=find_gpu(self.gpu), ceilings=self.ceilings)
        by_kind = {each.on_gpu: each.time for each in expected}
        if not self._measured or n in self._measured:
            return self._measured.get(n) or by_kind.get(False), by_kind[True]
        nearest = min(self._measured, key=lambda size: abs(math.log(size / n)))
        time, times = self._measured[nearest], (n / nearest) ** 2
        bound_by = f"as the square of {nearest:,} texts, which were measured"
        return Quantity.projected(times * time.low, times * time.high, "s", time.device, bound_by), by_kind[True]

    @functools.cached_property
    def break_even_n_texts(self) -> int | None:
        """The smallest number of texts, two digits and zeros, at which the GPU's slow end beats the CPU's fast end; None: not
        below ten million, or unknown where nothing of this CPU was measured.
        """

        def wins(n: int) -> bool:
            on_cpu, on_gpu = self.times(n)
            return on_cpu is not None and on_gpu.high < on_cpu.low

        sizes = [digits * 10**power for power in range(6) for digits in range(10, 100)]
        at = bisect.bisect_left(sizes, True, key=wins)
        return sizes[at] if at < len(sizes) else None

    def rows(self) -> list[tuple[str, str]]:
        """A table's rows: what, and the answer with its basis."""
        times = dict(zip(("this CPU", find_gpu(self.gpu).name), self.times(self.n_texts), strict=True))
        even, plan, rows = self.break_even_n_texts, self.plan, []
        for name, time in times.items():
            said = f"{time} ({', '.join(filter(None, (time.basis, time.bound_by)))})" if time else "unknown"
            rows.append((f"{self.n_texts:,} texts, {name}", said))
        wins = f"from {even:,} texts on (projected)" if even else "at no size below ten million (projected)"
        if times["this CPU"] is None:
            wins = "unknown: nothing of this CPU was measured; run chapter 00 or 20"
        memory = plan if isinstance(plan, str) else f"{plan.verdict}: {plan.peak} ({plan.peak.basis} for {plan.gpu})"
        return [*rows, ("the GPU surely wins", wins), (f"training in batches of {self.batch_size}", memory)]


def panel(ceilings: Ceilings | None = None, similarity: SimilarityResult | None = None):
    """Sliders and a table that follows them, for JupyterLab; None where ipywidgets is not installed."""
    try:
        import ipywidgets as widgets
    except ImportError:
        return None
    from .. import tables

    def answer(**values):
        rows = WhatIf(**values, ceilings=ceilings, similarity=similarity).rows()
        return tables.show(rows, ["what", "answer"])

    sizes = [*(digit * 10**power for power in range(2, 7) for digit in (1, 2, 5)), 10**7]
    slider = functools.partial(widgets.SelectionSlider, continuous_update=False)
    return widgets.interactive(
        answer,
        {"auto_display": True},
        gpu=widgets.Dropdown(options=[gpu.name for gpu in load_catalogue()], value="T4", description="GPU"),
        n_texts=slider(options=sizes, value=10_000, description="texts"),
        n_dimensions=slider(options=(64, 128, 256, 384, 768, 1536), value=384, description="dimensions"),
        batch_size=slider(options=(8, 16, 32, 64, 128), value=64, description="batch"),
        dtype_policy=widgets.Dropdown(options=("float32", "mixed_float16"), description="precision"),
    )
