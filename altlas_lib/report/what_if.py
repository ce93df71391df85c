"""What if: another GPU, more texts, a larger batch? The library's own projection and planner, moved by sliders."""

import bisect
import math
from collections.abc import Callable
from dataclasses import dataclass

from ..devices import GpuSpec, find_gpu, load_catalogue
from ..results import Ceilings, MemoryPlan, Quantity, SimilarityResult


@dataclass(frozen=True)
class WhatIf:
    """Answers for one position of the sliders.

    Attributes:
        on_cpu: nearest neighbours of all texts: measured, or projected from what was; None: nothing of this CPU was.
        break_even_n_texts: from so many texts on the GPU's slow end beats the CPU's fast end; None: not below ten million, or
            unknown where `on_cpu` is None.
        plan: of one training step; None: not compiled yet, see `problem`.
    """

    gpu: GpuSpec
    n_texts: int
    batch_size: int
    on_cpu: Quantity | None
    on_gpu: Quantity
    break_even_n_texts: int | None
    plan: MemoryPlan | None
    problem: str | None

    def rows(self) -> list[tuple[str, str]]:
        """A table's rows: what, and the answer with its basis."""
        even, plan = self.break_even_n_texts, self.plan
        wins = f"from {even:,} texts on (projected)" if even else "at no size below ten million (projected)"
        if self.on_cpu is None:
            wins = "unknown: nothing of this CPU was measured; run chapter 00 or 20"
        times = []
        for name, time in (("this CPU", self.on_cpu), (self.gpu.name, self.on_gpu)):
            said = f"{time} ({', '.join(filter(None, (time.basis, time.bound_by)))})" if time else "unknown"
            times.append((f"{self.n_texts:,} texts, {name}", said))
        memory = f"{plan.verdict}: {plan.peak} ({plan.peak.basis} for {plan.gpu})" if plan else self.problem
        return [*times, ("the GPU surely wins", wins), (f"training in batches of {self.batch_size}", memory)]


def what_if(
    gpu: str,
    n_texts: int,
    n_dimensions: int,
    batch_size: int,
    *,
    ceilings: Ceilings | None = None,
    similarity: SimilarityResult | None = None,
    preset: str = "reference",
    dtype_policy: str = "float32",
    k: int = 10,
) -> WhatIf:
    """The answers for these values. Plans come from the planner's cache: a slider does not wait for a compiler.

    Args:
        ceilings: of this machine, as chapter 00 measured them.
        similarity: chapter 20's result: its CPU times count more than the ceilings, where it has as many dimensions.

    Raises:
        ValueError: no such GPU or preset, or a number below 1.
    """
    from ..similarity import expected_times
    from ..training import PlanError, plan_memory

    spec = find_gpu(gpu)
    if min(n_texts, n_dimensions) < 1:
        raise ValueError(f"{n_texts} texts of {n_dimensions} dimensions: expected 1 or more of each")
    measured = _measured(similarity, n_dimensions)

    def times(n: int) -> tuple[Quantity | None, Quantity]:
        expected = {each.on_gpu: each.time for each in expected_times([n], n_dimensions, k, spec, ceilings)}
        return _on_cpu(n, measured) if measured else expected.get(False), expected[True]

    try:
        plan, problem = plan_memory(preset, spec, batch_size=batch_size, dtype_policy=dtype_policy, only_cached=True), None
    except PlanError as error:
        plan, problem = None, str(error)
    return WhatIf(spec, n_texts, batch_size, *times(n_texts), _break_even(times), plan, problem)


def _measured(similarity: SimilarityResult | None, n_dimensions: int) -> dict[int, Quantity]:
    """Number of texts -> time of the fastest CPU method, where its runs have a range."""
    timings = similarity.timings if similarity and similarity.n_dimensions == n_dimensions else []
    ranges = [each for each in timings if not each.on_gpu and each.time.n_runs and 0 < each.time.low < each.time.high]
    slowest_first = sorted(ranges, key=lambda each: each.time.high, reverse=True)
    return {each.n_texts: each.time for each in slowest_first}


def _on_cpu(n: int, measured: dict[int, Quantity]) -> Quantity:
    """The time that was measured at `n` texts, else that at the nearest size, times the square of their ratio."""
    nearest = min(measured, key=lambda size: abs(math.log(size / n)))
    time, times = measured[nearest], (n / nearest) ** 2
    if nearest == n:
        return time
    bound_by = f"as the square of {nearest:,} texts, which were measured"
    return Quantity.projected(times * time.low, times * time.high, "s", time.device, bound_by)


def _break_even(times: Callable[[int], tuple[Quantity | None, Quantity]]) -> int | None:
    """The smallest number of texts, two digits and zeros, at which the GPU's slow end beats the CPU's fast end."""

    def wins(n: int) -> bool:
        on_cpu, on_gpu = times(n)
        return on_cpu is not None and on_gpu.high < on_cpu.low

    sizes = [digits * 10**power for power in range(6) for digits in range(10, 100)]
    at = bisect.bisect_left(sizes, True, key=wins)
    return sizes[at] if at < len(sizes) else None


def panel(ceilings: Ceilings | None = None, similarity: SimilarityResult | None = None):
    """Sliders and a table that follows them, for JupyterLab; None where ipywidgets is not installed."""
    try:
        import ipywidgets as widgets
    except ImportError:
        return None
    from .. import tables

    names = [gpu.name for gpu in load_catalogue()]
    texts = widgets.FloatLogSlider(10_000, min=2, max=7, step=0.1, readout_format=",.0f", description="texts")
    controls = {
        "gpu": widgets.Dropdown(options=names, value="T4", description="GPU"),
        "n_texts": texts,
        "n_dimensions": widgets.SelectionSlider(options=(64, 128, 256, 384, 768, 1536), value=384, description="dimensions"),
        "batch_size": widgets.SelectionSlider(options=(8, 16, 32, 64, 128), value=64, description="batch"),
        "dtype_policy": widgets.Dropdown(options=("float32", "mixed_float16"), description="precision"),
    }
    answers = widgets.HTML()

    def answer(_change=None) -> None:
        values = {name: control.value for name, control in controls.items()} | {"n_texts": round(texts.value)}
        rows = what_if(**values, ceilings=ceilings, similarity=similarity).rows()
        answers.value = tables.show(rows, ["what", "answer"]).to_html()

    for control in controls.values():
        control.layout.width, control.style.description_width, control.continuous_update = "32rem", "8rem", False
        control.observe(answer, "value")
    answer()
    return widgets.VBox([*controls.values(), answers])
