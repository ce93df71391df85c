"""Will this training fit on that GPU? The answer of the GPU's own compiler, before anything runs."""

import importlib.util
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...devices import GpuSpec, find_gpu
from ...results import MemoryPlan, Quantity
from ..checks import check_count
from ..model.config import ModelConfig
from .compile import compile_steps, has_compiler
from .kept import REDO, Cache, request_key, shipped, stale_note
from .request import PlanError, StepCost, StepRequest, describe_gpu
from .subject import Subject, find_subject

if TYPE_CHECKING:
    import keras

# What lives on the GPU beside the step's arrays: CUDA's context with the code of its libraries, an allowance.
CONTEXT_BYTES = 2**29
PREFETCHED_BATCHES = 2  # that the input pipeline keeps on the GPU ahead of the step
# A plan may be off by 10 %: allocations are rounded up and leave gaps, and on the GPU itself XLA may choose library calls
# that need larger workspaces than those planned (4 MiB for a product on a T4). Within it nothing is promised.
SAFETY_FACTOR = 1.10
JAX_SHARE = 0.75  # of the GPU's memory, which JAX takes by default

# Shares of the data sheet's rates that a whole step reaches: matrix products of a model of this size leave much of a GPU
# idle, elementwise kernels come near the memory's rate. Assumptions, hence a wide band; launches are not counted.
ARITHMETIC_EFFICIENCY = (0.2, 0.8)
BANDWIDTH_EFFICIENCY = (0.5, 0.9)


def plan_memory(
    model: "ModelConfig | keras.Model | str | Path",
    gpu: str | GpuSpec = "T4",
    *,
    batch_size: int,
    gradient_accumulation_steps: int = 1,
    dtype_policy: str | None = None,
    optimizer: "str | keras.optimizers.Optimizer | None" = None,
    input_shapes: dict[str, Sequence[int]] | None = None,
    modules: Sequence[str] = (),
    time_limit_s: float = 300,
    use_cache: bool = True,
    only_cached: bool = False,
    loaded: Callable[[], None] = lambda: None,
) -> MemoryPlan:
    """What one training step (forward, backward, optimizer, accumulation) needs on a GPU, by XLA's compiler for it.

    The presets' answers ship with the library. Others are compiled in a child process on the CPU in 10 to 60 s, and kept
    under `outputs/.cache` for the next time.

    Args:
        model: a configuration, a preset's name, or any Keras model that JAX can run: the model, a `.keras` file, or
            "module:function" that builds it. A compiled model brings its loss; else it is mean squared error.
        gpu: a name of the catalogue.
        batch_size: samples per micro-batch.
        dtype_policy: None is the model's own, float32 for a configuration.
        optimizer: Keras' name of it, or one; None: the model's own where it is compiled, else Adam.
        input_shapes: input's name -> shape without the batch, for inputs with unknown dimensions.
        modules: that define a `.keras` file's own layers and losses; of a model object they are found.
        use_cache: look among the answers that are there, and keep a new one.
        only_cached: an answer that is there, or an error at once.
        loaded: called when the model has been built, so that compiling begins.

    Raises:
        ValueError: a GPU, preset, dtype policy, optimizer or number that does not exist.
        PlanError: it is no Keras model, cannot be loaded or has unknown dimensions, XLA failed, it took longer than
            `time_limit_s`, or the answer is not there.
    """
    gpu = gpu if isinstance(gpu, GpuSpec) else find_gpu(gpu)
    options = {
        "batch_size": check_count("batch_size", batch_size),
        "gradient_accumulation_steps": check_count("gradient_accumulation_steps", gradient_accumulation_steps),
        "input_shapes": {name: tuple(shape) for name, shape in (input_shapes or {}).items()},
        "target": describe_gpu(gpu),
        **_check_names(dtype_policy, optimizer),
    }
    with tempfile.TemporaryDirectory(prefix="altlas-") as folder:
        subject = find_subject(model, modules, Path(folder))
        if "config" in subject.fields:
            options["dtype_policy"] = dtype_policy or "float32"  # said or not: one answer
        request = StepRequest(**subject.fields, **options)
        cost, notes = _find_cost(request, subject, time_limit_s, use_cache, only_cached, loaded)
    return make_plan(request, subject, gpu, cost, notes)


def _check_names(dtype_policy: str | None, optimizer: Any) -> dict[str, Any]:
    """The request's fields, of names that Keras knows."""
    if (dtype_policy, optimizer) in ((None, None), ("float32", None), ("mixed_float16", None)):  # no need to load Keras
        return {"dtype_policy": dtype_policy}
    from ..backend import keras

    if dtype_policy:
        keras.dtype_policies.get(dtype_policy)
    if isinstance(optimizer, keras.optimizers.Optimizer):
        optimizer = keras.optimizers.serialize(optimizer)
    elif optimizer is not None:
        keras.optimizers.get(optimizer)
    return {"dtype_policy": dtype_policy, "optimizer": optimizer}


def _find_cost(
    request: StepRequest,
    subject: Subject,
    time_limit_s: float,
    use_cache: bool,
    only_cached: bool,
    loaded: Callable[[], None],
) -> tuple[StepCost, list[str]]:
    """The compiler's answer and notes about it, from where it is found first: shipped, kept by this machine, compiled."""
    cache = Cache(request, subject.identity)
    if use_cache:
        found, note = (shipped().steps.get(request_key(request)), stale_note(shipped())) if request.config else (None, None)
        kept = None if found and not note else cache.read()  # of the versions that are here, where those that ship are not
        if cost := kept or found:
            if cost.error:
                raise PlanError(cost.error)
            return cost, [note] if note and not kept else []
    if only_cached:
        raise PlanError(f"not compiled yet: `altlas plan` compiles it, half a minute for a batch size; all presets: {REDO}")
    if importlib.util.find_spec("jax") is None or not has_compiler():
        raise PlanError(
            "the planner asks JAX's compiler for CUDA, which is not installed: "
            "pip install jax jax-cuda12-plugin jax-cuda12-pjrt"
        )
    (cost,) = compile_steps([request], time_limit_s=time_limit_s, loaded=loaded)
    if cost.error:
        raise PlanError(cost.error)
    return cost, cache.write(cost) if use_cache else []


def make_plan(request: StepRequest, subject: Subject, gpu: GpuSpec, cost: StepCost, notes: Sequence[str] = ()) -> MemoryPlan:
    """A step's cost beside what the GPU has."""
    peak, notes = Quantity.compiled(cost.peak_bytes, "bytes", gpu.name), list(notes)
    overhead_bytes = CONTEXT_BYTES + PREFETCHED_BATCHES * cost.inputs_bytes
    usable_bytes = int(gpu.usable_memory_gib * 2**30)
    time, why_not = step_time(cost, gpu)
    if why_not:
        notes.append(why_not)
    if cost.dtype_policy != "float32" and float(gpu.compute_capability) >= 8:
        notes.append("planned without cuDNN's fused attention, which JAX would use on this GPU for 16 bits: at most this much")
    if JAX_SHARE * usable_bytes < peak.value <= usable_bytes:
        notes.append("on the JAX backend set XLA_PYTHON_CLIENT_MEM_FRACTION=0.95: by default it takes 75 % of the GPU only")
    switches = ("recompute", "memory_efficient_attention")
    return MemoryPlan(
        gpu=gpu.name,
        configuration={
            "model": subject.label,
            "batch_size": request.batch_size,
            "gradient_accumulation_steps": request.gradient_accumulation_steps,
            "dtype_policy": cost.dtype_policy,
            "optimizer": cost.optimizer,
            **({name: getattr(request.config, name) for name in switches} if request.config else {}),
            **({"input_shapes": {k: list(v) for k, v in request.input_shapes.items()}} if request.input_shapes else {}),
        },
        peak=peak,
        bytes_by_part=cost.bytes_by_part,
        overhead_bytes=overhead_bytes,
        usable_bytes=usable_bytes,
        verdict=verdict(peak.value, overhead_bytes, usable_bytes),
        n_parameters=cost.n_parameters,
        step_time=time,
        compile_s=cost.compile_s,
        notes=notes,
    )


def verdict(peak_bytes: float, overhead_bytes: int, usable_bytes: int) -> str:
    """`fits` with a reserve of 10 % of the peak, `tight` without it, else `out of memory`."""
    if SAFETY_FACTOR * peak_bytes + overhead_bytes <= usable_bytes:
        return "fits"
    return "tight" if peak_bytes + overhead_bytes <= usable_bytes else "out of memory"


def step_time(cost: StepCost, gpu: GpuSpec) -> tuple[Quantity | None, str | None]:
    """Seconds of one micro-batch, projected from its operations and bytes; else None, and why.

    At best arithmetic and memory traffic overlap entirely, at worst not at all (roofline, Williams et al. 2009,
    https://doi.org/10.1145/1498765.1498785).
    """
    if cost.has_loop:
        return None, (
            "the time of a step is not projected: it has a loop, such as a recurrent layer's, whose kernels wait for each "
            "other "
            "and whose body XLA counts once"
        )
    if not cost.n_flops or not cost.moved_bytes:
        return (
            None,
            "the time of a step is not projected: this JAX does not give XLA's count of operations and bytes",
        )
    if "float16" in cost.dtype_policy:
        slowest = fastest = gpu.float16_tensor_tflops
    else:  # from compute capability 8.0 on XLA rounds float32 products to TF32, at half the rate of float16
        slowest = gpu.float32_tflops
        fastest = gpu.float16_tensor_tflops / 2 if float(gpu.compute_capability) >= 8 else slowest
    arithmetic_s = [
        cost.n_flops / (tflops * 1e12 * share) for tflops, share in zip((slowest, fastest), ARITHMETIC_EFFICIENCY, strict=True)
    ]
    memory_s = [cost.moved_bytes / (gpu.memory_bandwidth_gb_per_s * 1e9 * share) for share in BANDWIDTH_EFFICIENCY]
    bound_by = "arithmetic" if sum(arithmetic_s) > sum(memory_s) else "memory bandwidth"
    low, high = max(arithmetic_s[1], memory_s[1]), arithmetic_s[0] + memory_s[0]
    return Quantity.projected(low, high, "s", gpu.name, bound_by), None


def next_candidate(low: int, high: int | None) -> int | None:
    """The batch size to try next, where `low` fits (0: none yet) and `high` does not (None: all did); None: it is found.

    It doubles and then halves the gap, in multiples of 8 from 8 on, as tensor cores like them, to an eighth or 8. What a batch
    needs is never extrapolated: the memory of a sample varies with the batch.
    """
    if high is None:
        return 2 * low if low < 2**16 else None
    if high - low <= max(1, low // 8, 8 if low >= 8 else 1):
        return None
    middle = (low + high) // 2
    return middle // 8 * 8 if middle // 8 * 8 > low else middle


def largest_batch(
    model: "ModelConfig | keras.Model | str | Path", gpu: str | GpuSpec = "T4", *, start: int = 64, **options: Any
) -> MemoryPlan | None:
    """The plan of the largest micro-batch that fits, searched for by compiling; None: not even one sample does.

    Args:
        start: the first candidate.
        **options: as for `plan_memory`, its errors too.
    """
    best, low, high, size = None, 0, None, check_count("start", start)
    while size:
        plan = plan_memory(model, gpu, batch_size=size, **options)
        if plan.verdict == "fits":
            best, low = plan, size
        else:
            high = size
        size = next_candidate(low, high)
    return best
