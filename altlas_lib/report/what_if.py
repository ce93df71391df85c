"""What if: another GPU, more texts, a larger batch? The library's own projection and planner, moved by sliders."""

from dataclasses import dataclass

from ..devices import GpuSpec, find_gpu, load_catalogue
from ..results import Ceilings, MemoryPlan, Quantity

_LARGEST_N_TEXTS = 10_000_000


@dataclass(frozen=True)
class WhatIf:
    """Answers for one position of the sliders; all projected or compiled, nothing ran.

    Attributes:
        on_cpu: nearest neighbours of all texts; None: this CPU's rates are not known.
        break_even_n_texts: from so many texts on the GPU's slow end beats the CPU's fast end; None: not below ten million.
        plan: of one training step; None: not compiled yet, see `problem`.
    """

    gpu: GpuSpec
    n_texts: int
    n_dimensions: int
    batch_size: int
    on_cpu: Quantity | None
    on_gpu: Quantity
    break_even_n_texts: int | None
    plan: MemoryPlan | None
    problem: str | None

    def rows(self) -> list[tuple[str, str]]:
        """A table's rows: what, and the answer with its basis."""
        even = self.break_even_n_texts
        times = [
            (f"{self.n_texts:,} texts, {name}", time)
            for name, time in (("this CPU", self.on_cpu), (self.gpu.name, self.on_gpu))
        ]
        plan = self.plan
        return [
            *((name, f"{time} ({time.basis}, bound by {time.bound_by})" if time else "not measured") for name, time in times),
            (
                "the GPU surely wins",
                f"from {even:,} texts on (projected)" if even else "at no size below ten million (projected)",
            ),
            (
                f"training in batches of {self.batch_size}",
                f"{plan.verdict}: {plan.peak} ({plan.peak.basis} for {plan.gpu})" if plan else self.problem,
            ),
        ]


def what_if(
    gpu: str,
    n_texts: int,
    n_dimensions: int,
    batch_size: int,
    *,
    ceilings: Ceilings | None = None,
    preset: str = "reference",
    dtype_policy: str = "float32",
    k: int = 10,
) -> WhatIf:
    """The answers for these values. Plans come from the planner's cache: a slider does not wait for a compiler.

    Args:
        ceilings: of this machine, as chapter 00 measured them.

    Raises:
        ValueError: no such GPU or preset, or a number below 1.
    """
    from ..similarity import expected_times
    from ..training import PlanError, plan_memory

    spec = find_gpu(gpu)
    if min(n_texts, n_dimensions) < 1:
        raise ValueError(f"{n_texts} texts of {n_dimensions} dimensions: expected 1 or more of each")

    def times(n: int) -> tuple[Quantity | None, Quantity]:
        expected = {each.on_gpu: each.time for each in expected_times([n], n_dimensions, k, spec, ceilings)}
        return expected.get(False), expected[True]

    try:
        plan, problem = plan_memory(preset, spec, batch_size=batch_size, dtype_policy=dtype_policy, only_cached=True), None
    except PlanError as error:
        plan, problem = None, str(error)
    return WhatIf(spec, n_texts, n_dimensions, batch_size, *times(n_texts), _break_even(times), plan, problem)


def _break_even(times) -> int | None:
    """The smallest number of texts, to two digits, at which the GPU's slow end beats the CPU's fast end."""

    def wins(n: int) -> bool:
        on_cpu, on_gpu = times(n)
        return on_cpu is not None and on_gpu.high < on_cpu.low

    if not wins(_LARGEST_N_TEXTS):
        return None
    low, high = 1, _LARGEST_N_TEXTS
    while high > 1.01 * low + 1:
        middle = round((low * high) ** 0.5)
        low, high = (low, middle) if wins(middle) else (middle, high)
    return int(float(f"{high:.2g}"))


def panel(ceilings: Ceilings | None = None):
    """Sliders and a table that follows them, for JupyterLab; None where ipywidgets is not installed."""
    try:
        import ipywidgets as widgets
    except ImportError:
        return None
    from .. import tables

    style = {"style": {"description_width": "8rem"}, "layout": widgets.Layout(width="32rem")}
    slider = {**style, "continuous_update": False}
    names = [gpu.name for gpu in load_catalogue()]
    controls = {
        "gpu": widgets.Dropdown(options=names, value="T4", description="GPU", **style),
        "n_texts": widgets.FloatLogSlider(
            value=10_000, min=2, max=7, step=0.1, readout_format=",.0f", description="texts", **slider
        ),
        "n_dimensions": widgets.SelectionSlider(
            options=(64, 128, 256, 384, 768, 1536), value=384, description="dimensions", **slider
        ),
        "batch_size": widgets.SelectionSlider(options=(8, 16, 32, 64, 128), value=64, description="batch", **slider),
        "dtype_policy": widgets.Dropdown(options=("float32", "mixed_float16"), description="precision", **style),
    }

    answers = widgets.HTML()

    def answer(_change=None) -> None:
        values = {name: control.value for name, control in controls.items()}
        values["n_texts"] = round(values["n_texts"])
        rows = what_if(**values, ceilings=ceilings).rows()
        answers.value = tables.show(rows, ["what", "answer"]).to_html()

    for control in controls.values():
        control.observe(answer, "value")
    answer()
    return widgets.VBox([*controls.values(), answers])
