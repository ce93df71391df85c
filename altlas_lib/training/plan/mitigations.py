"""The ways to make the reference training fit a GPU, each alone and some together, beside what the specification claims."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from ...devices import GpuSpec, find_gpu, load_catalogue
from ...results import GpuFit, MemoryPlan, Remedy, format_value
from ..model.config import ModelConfig, find_preset
from .planner import largest_batch, plan_memory
from .request import PlanError

TENSORFLOW_NOTES = (
    "TensorFlow on a GPU has XLA compile the step too (Keras: jit_compile='auto'), from a graph of its own: for an earlier "
    "reference it needed 22.8 GiB before rematerialisation where JAX's needed 21.9.",
    "Without XLA (jit_compile=False, or a layer that XLA cannot compile) it runs operation by operation: elementwise results "
    "are arrays of their own, and nothing is computed twice to save memory. Expect more than planned.",
    "It takes all of the GPU's memory at the start unless TF_FORCE_GPU_ALLOW_GROWTH=true: not nvidia-smi but "
    "tf.config.experimental.get_memory_info('GPU:0')['peak'] says what was needed.",
)


@dataclass(frozen=True)
class Mitigation:
    """A row of the table: how the reference is changed."""

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


# 8 x 8, 4 x 8 and 2 x 8 are one step to the compiler: how many micro-batches make an update is a number within it.
_ACCUMULATED = {"batch_size": 8, "gradient_accumulation_steps": 8}
_HALF = {"dtype_policy": "mixed_float16"}
_THRIFTY = {"recompute": True, "memory_efficient_attention": True}
_MITIGATIONS = (
    Mitigation("reference", claimed="15.90 GiB"),
    Mitigation("mixed_float16", **_HALF, claimed="about 8 GiB"),
    Mitigation("accumulation 8 x 8 (4 x 8, 2 x 8 alike)", **_ACCUMULATED),
    Mitigation("option 1: no 1000 window, no Transformer", preset="option1"),
    Mitigation("option 2: lighter Transformer", preset="option2", claimed="10 to 12 GiB"),
    Mitigation("recompute Transformer layers", recompute=True),
    Mitigation("memory-efficient attention", memory_efficient_attention=True),
    Mitigation("recompute + memory-efficient attention", **_THRIFTY),
    Mitigation("mixed_float16 + accumulation 8 x 8", **_HALF, **_ACCUMULATED),
    Mitigation("mixed_float16 + recompute + memory-efficient", **_HALF, **_THRIFTY),
    Mitigation("option 1 + mixed_float16 + accumulation 8 x 8", preset="option1", **_HALF, **_ACCUMULATED),
    Mitigation("option 2 + mixed_float16 + accumulation 8 x 8", preset="option2", **_HALF, **_ACCUMULATED),
)


def find_mitigations(config: ModelConfig) -> list[Mitigation]:
    """Those of the reference; of another configuration those that can be applied to it, without the reference's claims."""
    if config == find_preset("reference"):
        return list(_MITIGATIONS)
    renamed = (replace(each, name=each.name.replace("reference", "as it is"), claimed=None) for each in _MITIGATIONS)
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
        search: compile for the largest batches, too; else they are found where they were compiled before, or None.
        time_limit_s: for compiling all.
        tell: takes a line of progress for each row that is compiled.

    Raises:
        ValueError: no such preset or GPU.
    """
    gpu = gpu if isinstance(gpu, GpuSpec) else find_gpu(gpu)
    config = find_preset(model) if isinstance(model, str) else model
    end_s = time.monotonic() + time_limit_s

    def within_limit(loaded: Callable[[], None]) -> dict:
        left_s = end_s - time.monotonic()
        return {"time_limit_s": max(left_s, 1), "only_cached": left_s <= 0, "loaded": loaded}

    def plan(row: Mitigation) -> Remedy:
        def say() -> None:
            tell(f"compiling {row.name} for {gpu.name}")

        planned = problem = largest = None
        try:
            planned = plan_memory(row.model(config), gpu, **row.step, **within_limit(say))
        except PlanError as error:
            problem = str(error)
        if planned and row.gradient_accumulation_steps == 1:  # with accumulation the micro-batch is a choice
            try:
                how = within_limit(say) if search else {"only_cached": True}
                best = largest_batch(row.model(config), gpu, dtype_policy=row.dtype_policy, **how)
                largest = best.configuration["batch_size"] if best else 0
            except PlanError as error:
                problem = f"largest batch: {error}" if search else None
        return Remedy(name=row.name, plan=planned, largest_batch=largest, claimed=row.claimed, problem=problem)

    return [plan(row) for row in find_mitigations(config)]


def gpu_table(model: str | ModelConfig = "reference") -> list[GpuFit]:
    """Each GPU of the catalogue, smallest memory first, and what makes the model fit there, by what was compiled already.

    Raises:
        ValueError: no such preset.
    """
    config = find_preset(model) if isinstance(model, str) else model
    fits = []
    for gpu in load_catalogue():
        plans: dict[str, MemoryPlan | None] = {}
        for row in find_mitigations(config):
            try:
                plans[row.name] = plan_memory(row.model(config), gpu, **row.step, only_cached=True)
            except PlanError:
                plans[row.name] = None
        fitting = [name for name, plan in plans.items() if plan and plan.verdict == "fits"]
        as_it_is = next(iter(plans.values()))
        fits.append(
            GpuFit(
                gpu=gpu.name,
                as_it_is=as_it_is.verdict if as_it_is else None,
                fitting=fitting,
                plan=plans[fitting[0]] if fitting else as_it_is,
                not_compiled=[name for name, plan in plans.items() if plan is None],
            )
        )
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
    rows = []
    for mitigation in mitigations:
        plan = mitigation.plan
        steps = plan.configuration["gradient_accumulation_steps"] if plan else 1
        rows.append(
            {
                "mitigation": mitigation.name,
                "batch": f"{plan.configuration['batch_size']}{f' x {steps}' if steps > 1 else ''}" if plan else "-",
                "peak": str(plan.peak) if plan else "-",
                "verdict": plan.verdict if plan else "not planned",
                "largest": "-" if mitigation.largest_batch is None else str(mitigation.largest_batch or "none"),
                "time of one batch": str(plan.step_time or "unknown") if plan else "-",
                "per sample": _time_per_sample(plan, first) if plan and first else "-",
                "claim": mitigation.claimed or "",
            }
        )
    return rows


def _time_per_sample(plan: MemoryPlan, first: MemoryPlan) -> str:
    """Beside the first row: both bands rest on the same shares of the data sheet's rates, so their ratio is narrower."""
    if not plan.step_time or not first.step_time:
        return "-"
    sizes = first.configuration["batch_size"] / plan.configuration["batch_size"]
    low, high = sorted(sizes * getattr(plan.step_time, end) / getattr(first.step_time, end) for end in ("low", "high"))
    return f"{low:.2f}x" if f"{low:.2f}" == f"{high:.2f}" else f"{low:.2f} to {high:.2f}x"


def explanation(mitigations: Sequence[Remedy]) -> Iterator[str]:
    """How to read these rows, sentence by sentence."""
    plans = [mitigation.plan for mitigation in mitigations if mitigation.plan]
    if plans:
        first = plans[0]
        parts = ", ".join(f"{part} {format_value(size, 'bytes')}" for part, size in first.bytes_by_part.items() if size)
        yield (
            f"Peak of one training step, {first.peak.basis} by XLA for {first.gpu}; nothing ran. The first is {parts}; "
            f"{first.n_parameters:,} parameters, {first.configuration['optimizer']}."
        )
        yield (
            f"CUDA offers {first.usable_bytes / 2**30:.2f} GiB there. Beside the peak {first.overhead_bytes / 2**30:.2f} GiB "
            'are needed (CUDA\'s context, prefetched batches). "fits": with 10 % of the peak in reserve; "tight": without.'
        )
        yield (
            '"largest": the largest micro-batch that fits, by a search; "-": not searched for (altlas plan --search). Times '
            "are bands, projected from flops and bytes."
        )
        yield from dict.fromkeys(note for plan in plans for note in plan.notes)
        yield from TENSORFLOW_NOTES
    yield from (f"{mitigation.name}: {mitigation.problem}" for mitigation in mitigations if mitigation.problem)
