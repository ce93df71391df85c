"""The ways to make the reference training fit a GPU, each alone and some together, beside what the specification claims."""

import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from ...devices import GpuSpec, find_gpu, load_catalogue
from ...paths import shipped_toml
from ...progress import step_counter
from ...results import GpuFit, MemoryPlan, Remedy
from ..model.config import ModelConfig, find_preset
from .planner import plan_memory
from .request import PlanError

_AS_IT_IS = {"batch_size": 64, "gradient_accumulation_steps": 1, "dtype_policy": "float32"}


class Mitigation(NamedTuple):
    """A row of `mitigations.toml` for a model: what is trained in its place, in which step."""

    name: str
    config: ModelConfig | Any  # or a PyTorch module, as `plan_memory` takes it
    step: dict[str, Any]
    claimed: str | None


def find_mitigations(config: ModelConfig) -> list[Mitigation]:
    """Those of the reference; of another configuration those that can be applied to it, without the reference's claims."""
    found, is_reference = [], config == find_preset("reference")
    for row in shipped_toml(__package__, "mitigations.toml")["mitigations"]:
        changed = (find_preset(row["preset"]) if "preset" in row else config).model_copy(update=row.get("switches", {}))
        name, step, claimed = row["name"], _AS_IT_IS | row.get("step", {}), row.get("claimed")
        if is_reference:
            found.append(Mitigation(name, changed, step, claimed))
        elif "preset" not in row and (config.transformer or "switches" not in row):
            found.append(Mitigation(name.replace("reference", "as it is"), changed, step, None))
    return found


def mitigation_table(
    model: str | ModelConfig = "reference", gpu: str | GpuSpec = "T4", *, time_limit_s: float = 480
) -> list[Remedy]:
    """Every mitigation's plan.

    A preset's come with the library. What does not is compiled, row by row, until the time limit; what it cuts off says so.

    Args:
        model: the reference; where it is another configuration, options 1 and 2, which are presets, are left out.
        time_limit_s: for compiling all; 0: only what ships.

    Raises:
        ValueError: no such preset or GPU.
    """
    rows = find_mitigations(find_preset(model) if isinstance(model, str) else model)
    return _plan_rows(rows, gpu if isinstance(gpu, GpuSpec) else find_gpu(gpu), time_limit_s)


def _plan_rows(rows: Sequence[Mitigation], gpu: str | GpuSpec, time_limit_s: float) -> list[Remedy]:
    remedies, end_s = [], time.monotonic() + time_limit_s
    with step_counter("plan", len(rows)) as end_row:
        for row in rows:
            try:
                found = {"plan": plan_memory(row.config, gpu, **row.step, time_limit_s=end_s - time.monotonic())}
            except PlanError as error:
                found = {"plan": None, "problem": str(error)}
            remedies.append(Remedy(name=row.name, claimed=row.claimed, **found))
            end_row()
    return remedies


def module_mitigations(model: Any, gpu: str | GpuSpec, plan: MemoryPlan, time_limit_s: float = 480, **how: Any) -> list[Remedy]:
    """What else a PyTorch module's step could be, beside its plan, without a change of the module.

    Args:
        time_limit_s: for all.
        **how: as for `plan_memory`; what the plan was made with.
    """
    how |= {"batch_size": plan.configuration["batch_size"]}
    halved = {"batch_size": -(-how["batch_size"] // 2), "gradient_accumulation_steps": 2}  # the same update
    half, checkpointed = {"dtype_policy": "mixed_float16"}, {"recompute": ("*",)}
    changes = {"accumulation": halved, "autocast in float16": half, "checkpointing of repeated blocks": checkpointed}
    rows = [Mitigation(name, model, how | change, None) for name, change in (changes | {"both": half | checkpointed}).items()]
    return [Remedy(name="as it is", plan=plan), *_plan_rows(rows, gpu, time_limit_s)]


def gpu_table(model: str | ModelConfig = "reference") -> list[GpuFit]:
    """Each GPU of the catalogue, smallest memory first, and what makes the model fit there, by what ships.

    Raises:
        ValueError: no such preset.
    """
    fits = []
    for gpu in load_catalogue():
        rows = mitigation_table(model, gpu, time_limit_s=0)
        first, fitting = rows[0].plan, {row.name: row.plan for row in rows if row.plan and row.plan.verdict == "fits"}
        found = {"fitting": [*fitting], "not_compiled": [row.name for row in rows if not row.plan]}
        plan = next(iter(fitting.values()), first)
        fits.append(GpuFit(gpu=gpu.name, as_it_is=first and first.verdict, plan=plan, **found))
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
    rows = []
    for mitigation in mitigations:
        row = {"mitigation": mitigation.name, "batch": "-", "peak": "-", "verdict": "not planned", "time of one batch": "-"}
        if plan := mitigation.plan:
            batch = "{batch_size} x {gradient_accumulation_steps}".format_map(plan.configuration)
            row |= {"batch": batch, "peak": str(plan.peak), "verdict": plan.verdict}
            row["time of one batch"] = str(plan.step_time or "unknown")
        rows.append(row | {"claim": mitigation.claimed or ""})
    return rows


def explanation(mitigations: Sequence[Remedy]) -> Iterator[str]:
    """How to read these rows, sentence by sentence."""
    plans = [mitigation.plan for mitigation in mitigations if mitigation.plan]
    for first in plans[:1]:
        usable, overhead = (f"{size / 2**30:.2f} GiB" for size in (first.usable_bytes, first.overhead_bytes))
        by = "XLA compiled" if first.peak.value else "PyTorch's operations need, projected"
        beside = f"CUDA offers {usable} on a {first.gpu}; {overhead} are needed beside the peak that {by}; nothing ran."
        reserve = '"fits": with 10 % of the peak in reserve; "tight": without; "undecided": the band is over the limit'
        yield f"{beside} {reserve}. Times are bands, projected."
    yield from dict.fromkeys(note for plan in plans for note in plan.notes)
    yield from (f"{mitigation.name}: {mitigation.problem}" for mitigation in mitigations if mitigation.problem)
