"""The ways to make the reference training fit a GPU, each alone and some together, beside what the specification claims."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ...devices import GpuSpec, find_gpu, load_catalogue
from ...paths import shipped_toml
from ...results import GpuFit, MemoryPlan, Remedy, format_value
from ..model.config import ModelConfig, find_preset
from .planner import largest_batch, plan_memory
from .request import PlanError


@dataclass(frozen=True)
class Mitigation:
    """A row of `mitigations.toml`: how the reference is changed."""

    name: str
    preset: str | None = None  # None: the model that the table is about
    batch_size: int = 64
    gradient_accumulation_steps: int = 1
    dtype_policy: str = "float32"
    recompute: bool = False
    memory_efficient_attention: bool = False
    claimed: str | None = None

    def model(self, config: ModelConfig) -> ModelConfig:
        """What is trained under it in place of `config`."""
        switches = {name: getattr(self, name) for name in ("recompute", "memory_efficient_attention")}
        return (find_preset(self.preset) if self.preset else config).model_copy(update=switches)

    @property
    def step(self) -> dict[str, int | str]:
        return {name: getattr(self, name) for name in ("batch_size", "gradient_accumulation_steps", "dtype_policy")}


def find_mitigations(config: ModelConfig) -> list[Mitigation]:
    """Those of the reference; of another configuration those that can be applied to it, without the reference's claims."""
    rows = [Mitigation(**row) for row in shipped_toml(__package__, "mitigations.toml")["mitigations"]]
    if config == find_preset("reference"):
        return rows
    renamed = (replace(each, name=each.name.replace("reference", "as it is"), claimed=None) for each in rows)
    has_attention = config.transformer is not None
    return [each for each in renamed if not each.preset and (has_attention or each.model(config) == config)]


def mitigation_table(
    model: str | ModelConfig = "reference",
    gpu: str | GpuSpec = "T4",
    *,
    search: bool = False,
    time_limit_s: float = 480,
    tell: Callable[[str], None] = lambda line: None,
) -> list[Remedy]:
    """Every mitigation's plan and largest batch.

    A preset's come with the library. What does not is compiled, row by row, until the time limit; what it cuts off says so,
    and what was compiled is kept, so that a second call goes on there.

    Args:
        model: the reference; where it is another configuration, options 1 and 2, which are presets, are left out.
        search: compile for the largest batches, too.
        time_limit_s: for compiling all.
        tell: takes a line for each batch that the search tried.

    Raises:
        ValueError: no such preset or GPU.
    """
    gpu = gpu if isinstance(gpu, GpuSpec) else find_gpu(gpu)
    config = find_preset(model) if isinstance(model, str) else model
    end_s = time.monotonic() + time_limit_s

    def plan(row: Mitigation) -> Remedy:
        planned = problem = largest = None
        left_s = end_s - time.monotonic()
        how = {"time_limit_s": max(left_s, 1), "only_cached": left_s <= 0}
        try:
            planned = plan_memory(row.model(config), gpu, **row.step, **how)
            if search and row.gradient_accumulation_steps == 1:  # with accumulation the micro-batch is a choice
                best = largest_batch(row.model(config), gpu, tell=tell, dtype_policy=row.dtype_policy, **how)
                largest = best.configuration["batch_size"] if best else 0
        except PlanError as error:
            problem = f"largest batch: {error}" if planned else str(error)
        return Remedy(name=row.name, plan=planned, largest_batch=largest, claimed=row.claimed, problem=problem)

    return [plan(row) for row in find_mitigations(config)]


# What can be changed about a PyTorch module's step without changing the module, beside its batch.
_MODULE_CHANGES = {
    "autocast in float16": {"dtype_policy": "mixed_float16"},
    "checkpointing of repeated blocks": {"recompute": ("*",)},
    "both": {"dtype_policy": "mixed_float16", "recompute": ("*",)},
}


def module_mitigations(model: Any, gpu: str | GpuSpec, plan: MemoryPlan, *, search: bool = False, **how: Any) -> list[Remedy]:
    """What else a PyTorch module's step could be, beside its plan: the same update from half the micro-batch, and the above.

    Args:
        search: for the largest batch of each, too.
        **how: as for `plan_memory`; what the plan was made with.
    """
    batch_size = plan.configuration["batch_size"]
    halved = {"gradient_accumulation_steps": 2, "batch_size": -(-batch_size // 2)}
    found = []
    for name, change in {"as it is": {}, "accumulation": halved, **_MODULE_CHANGES}.items():
        planned = problem = largest = None
        options = {"batch_size": batch_size} | how | change
        try:
            planned = plan_memory(model, gpu, **options) if change else plan
            if search and name != "accumulation":
                best = largest_batch(model, gpu, **{key: value for key, value in options.items() if key != "batch_size"})
                largest = best.configuration["batch_size"] if best else 0
        except PlanError as error:
            problem = str(error)
        found.append(Remedy(name=name, plan=planned, largest_batch=largest, problem=problem))
    return found


def gpu_table(model: str | ModelConfig = "reference") -> list[GpuFit]:
    """Each GPU of the catalogue, smallest memory first, and what makes the model fit there, by what was compiled already.

    Raises:
        ValueError: no such preset.
    """
    fits = []
    for gpu in load_catalogue():
        rows = mitigation_table(model, gpu, time_limit_s=0)
        as_it_is, fitting = rows[0].plan, [row for row in rows if row.plan and row.plan.verdict == "fits"]
        names = {"fitting": [row.name for row in fitting], "not_compiled": [row.name for row in rows if not row.plan]}
        plan = fitting[0].plan if fitting else as_it_is
        fits.append(GpuFit(gpu=gpu.name, as_it_is=as_it_is and as_it_is.verdict, plan=plan, **names))
    return fits


# What a table shows --------------------------------------------------------------------------------------------------


def gpu_rows(fits: Sequence[GpuFit]) -> list[dict[str, str]]:
    """A row of a table for each GPU; the first that fits "as it is", or with a mitigation, is the smallest that is enough."""
    return [
        {
            "GPU": fit.gpu,
            "as it is": fit.as_it_is or "not compiled",
            "fits with": fit.fitting[0] if fit.fitting else "unknown" if fit.not_compiled else "nothing",
            "peak": str(fit.plan.peak) if fit.plan else "-",
            "time of one batch": str(fit.plan.step_time or "-") if fit.plan else "-",
            "not compiled": str(len(fit.not_compiled) or ""),
        }
        for fit in fits
    ]


def mitigation_rows(mitigations: Sequence[Remedy]) -> list[dict[str, str]]:
    """A row of a table for each mitigation, or for each plan of a model of one's own."""
    first = mitigations[0].plan if mitigations else None
    return [_make_row(mitigation, mitigation.plan, first) for mitigation in mitigations]


def _make_row(mitigation: Remedy, plan: MemoryPlan | None, first: MemoryPlan | None) -> dict[str, str]:
    columns = ("mitigation", "batch", "peak", "verdict", "largest", "time of one batch", "per sample", "claim")
    row = dict.fromkeys(columns, "-") | {"mitigation": mitigation.name, "claim": mitigation.claimed or ""}
    if not plan:
        return row | {"verdict": "not planned"}
    steps, largest = plan.configuration["gradient_accumulation_steps"], mitigation.largest_batch
    row["batch"] = f"{plan.configuration['batch_size']}{f' x {steps}' if steps > 1 else ''}"
    row |= {"peak": str(plan.peak), "verdict": plan.verdict, "time of one batch": str(plan.step_time or "unknown")}
    if largest is not None:
        row["largest"] = str(largest or "none")
    if plan.step_time and first and first.step_time:
        # Both bands rest on the same shares of the data sheet's rates, so their ratio is narrower.
        sizes = first.configuration["batch_size"] / plan.configuration["batch_size"]
        ratios = [sizes * getattr(plan.step_time, end) / getattr(first.step_time, end) for end in ("low", "high")]
        row["per sample"] = " to ".join(dict.fromkeys(f"{ratio:.2f}" for ratio in sorted(ratios))) + "x"
    return row


def explanation(mitigations: Sequence[Remedy]) -> Iterator[str]:
    """How to read these rows, sentence by sentence."""
    plans = [mitigation.plan for mitigation in mitigations if mitigation.plan]
    for first in plans[:1]:
        parts = ", ".join(f"{part} {format_value(size, 'bytes')}" for part, size in first.bytes_by_part.items() if size)
        counts = f"{first.n_parameters:,} parameters, {first.configuration['optimizer']}"
        by = "by XLA" if first.peak.value else "from PyTorch's operations"
        yield f"Peak of one training step, {first.peak.basis} {by} for {first.gpu}; nothing ran. First: {parts}; {counts}."
        usable, overhead = (f"{size / 2**30:.2f} GiB" for size in (first.usable_bytes, first.overhead_bytes))
        beside = f"CUDA offers {usable} there. Beside the peak {overhead} are needed (CUDA's context, prefetched batches)."
        yield f'{beside} "fits": with 10 % of the peak in reserve; "tight": without; "undecided": a band over the limit.'
        searched = '"largest": the largest micro-batch that fits, by a search; "-": not searched for (altlas plan --search).'
        yield f"{searched} Times are bands, projected from flops and bytes."
    yield from dict.fromkeys(note for plan in plans for note in plan.notes)
    yield from (f"{mitigation.name}: {mitigation.problem}" for mitigation in mitigations if mitigation.problem)
