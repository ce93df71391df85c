"""Will this training fit on that GPU? The answer of the GPU's own compiler, before anything runs."""

import bisect
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cloudpickle

from ...devices import GpuSpec, find_gpu
from ...progress import progress_bar, step_counter
from ...results import MemoryPlan, Quantity
from ..checks import EXPECTED_MODEL, check_count, describe_class
from ..model.config import PRESETS, ModelConfig, find_preset
from ..private import sublayers
from ..pytorch.task import is_module
from .answers import REDO, find_answer
from .request import PlanError, StepCost, StepRequest, compile_steps, describe_gpu, has_compiler

# What lives on the GPU beside the step's arrays: CUDA's context with the code of its libraries, an allowance.
CONTEXT_BYTES = 2**29
PREFETCHED_BATCHES = 2  # that the input pipeline keeps on the GPU ahead of the step
# A plan may be off by 10 %: allocations are rounded up and leave gaps, and on the GPU itself XLA may choose library calls
# that need larger workspaces than those planned (4 MiB for a product on a T4). Within it nothing is promised.
SAFETY_FACTOR = 1.10
# Of a band that PyTorch's operations and its allocator's rules give (`pytorch.step`).
TORCH_NOTE = (
    "from what lives at once to 1.1 times what the caching allocator reserves; not modelled: cuDNN's FFT algorithms and "
    "recurrent layers, pieces that other streams hold, outputs that a loop keeps until the next step"
)

# Shares of the data sheet's rates that a whole step reaches: matrix products of a model of this size leave much of a GPU
# idle, elementwise kernels come near the memory's rate. Assumptions, hence a wide band; launches are not counted.
ARITHMETIC_EFFICIENCY = (0.2, 0.8)
BANDWIDTH_EFFICIENCY = (0.5, 0.9)

_MAX_CONFIG_BYTES = 2**26  # of a `.keras` file's layers: the largest of keras.applications has less than 1 MiB


def plan_memory(
    model: Any, gpu: str | GpuSpec = "T4", *, batch_size: int, time_limit_s: float = 300, **step: Any
) -> MemoryPlan:
    """What one training step (forward, backward, optimizer, accumulation) needs on a GPU, by XLA's compiler for it.

    The presets' answers ship with the library. Others are compiled in a child process on the CPU in 10 to 60 s.

    Args:
        model: a configuration, a preset's name, or any Keras model that JAX can run: the model, a `.keras` file, or
            "module:function" that builds it. A compiled model brings its loss and its optimizer; else they are mean squared
            error and Adam. Or a PyTorch module, alone or as `(module, (x, y), loss, optimizer)` (`pytorch.task.Task`), or
            "module:function" that builds it: planned on tensors without values, projected as a band.
        gpu: a name of the catalogue.
        batch_size: samples per micro-batch.
        time_limit_s: for compiling; 0: an answer that ships, or an error at once.
        **step: as follow.
        gradient_accumulation_steps: micro-batches of an update, 1 by default.
        dtype_policy: None is the model's own, float32 for a configuration. A model that is built already has its own; a
            PyTorch module runs under autocast for "mixed_float16" and "mixed_bfloat16".
        recompute: names of layers of a model that is no configuration, as for `fit`; of a PyTorch module also "*", every
            repeated block.
        input_shapes: input's name -> shape without the batch, for inputs with unknown dimensions.

    Raises:
        ValueError: a GPU, preset, number or name of an argument that does not exist.
        PlanError: it is no Keras or PyTorch model, cannot be loaded or has unknown dimensions, Keras knows no such dtype
            policy, XLA or the module failed, or it took longer than `time_limit_s`.
    """
    gpu = gpu if isinstance(gpu, GpuSpec) else find_gpu(gpu)
    step = {"gradient_accumulation_steps": 1, "dtype_policy": None, **step, "batch_size": batch_size}
    step |= {name: check_count(name, step[name]) for name in ("batch_size", "gradient_accumulation_steps")}
    with tempfile.TemporaryDirectory(prefix="altlas-") as folder:
        label, subject = _find_subject(model, Path(folder))
        if "config" in subject:
            step["dtype_policy"] = step["dtype_policy"] or "float32"  # said or not: one answer
        elif step["dtype_policy"] and "keras_config" in subject:
            raise PlanError(f"{label!r} is built already: for {step['dtype_policy']} name its function, 'module:function'")
        request = StepRequest(**subject, **step, target=describe_gpu(gpu))
        cost, notes = find_answer(request) if request.config else (None, [])
        if not cost:
            _check_can_compile(request, time_limit_s)
            with progress_bar(f"compile batch {batch_size}"):
                (cost,), notes = compile_steps([request], time_limit_s=time_limit_s), []
    if cost.error:
        raise PlanError(cost.error)
    return make_plan(request, label, gpu, cost, notes)


def _find_subject(model: Any, folder: Path) -> tuple[Any, dict[str, Any]]:
    """What to call the model, and the request's fields that say which it is, without building it.

    Args:
        folder: takes a PyTorch module in memory, for the time of the question.

    Raises:
        ValueError: no such preset.
        PlanError: it is no Keras or PyTorch model, cannot be read, or its own layers cannot be imported.
    """
    keras = sys.modules.get("keras")
    if is_module(model):
        sys.modules["torch"].save(model, folder / "module.pt", pickle_module=cloudpickle)
        return type(model[0] if isinstance(model, tuple) else model).__name__, {"module_file": str(folder / "module.pt")}
    if isinstance(model, str) and not model.endswith(".keras"):
        if ":" in model:
            return model, {"builder": model}
        model = find_preset(model)
    if isinstance(model, ModelConfig):
        names = {preset: name for name, preset in PRESETS.items()}
        plain = model.model_copy(update={"recompute": False, "memory_efficient_attention": False})
        return names.get(plain) or plain.model_dump(mode="json"), {"config": model}
    if isinstance(model, str | Path):
        return Path(model).name, {"keras_config": _read_config(Path(model))}
    if keras and isinstance(model, keras.Model):
        return model.name, {"keras_config": model.to_json(), "modules": _find_modules(model, keras)}
    raise PlanError(f"the model is {describe_class(model)}: {EXPECTED_MODEL}, a .keras file, 'module:function' or a preset")


def _read_config(file: Path) -> str:
    """Of a `.keras` file the model without its weights, which are not read."""
    try:
        if not file.is_file():
            raise OSError("no such file")
        with zipfile.ZipFile(file) as archive:
            if archive.getinfo("config.json").file_size > _MAX_CONFIG_BYTES:
                raise OSError(f"its config.json has more than {_MAX_CONFIG_BYTES:,} bytes")
            return archive.read("config.json").decode()
    except Exception as error:  # whatever damage makes of a zip file
        problem = f"{file.name} cannot be read as a .keras file ({error})"
        raise PlanError(f"{problem}; write it by model.save({file.name!r})") from None


def _find_modules(model: Any, keras: Any) -> tuple[str, ...]:
    """The modules that define the model's own layers and losses."""
    own = [*sublayers(model), *keras.tree.flatten(getattr(model, "loss", None))]
    modules = {getattr(each, "__module__", "builtins") for each in own}
    return tuple(sorted(each for each in modules if each.partition(".")[0] not in ("keras", "altlas_lib", "builtins")))


def _check_can_compile(request: StepRequest, time_limit_s: float) -> None:
    if time_limit_s <= 0:
        raise PlanError(f"not compiled yet: `altlas plan` compiles it, half a minute for a batch size; all presets: {REDO}")
    if not request.module_file and not has_compiler():
        needed = "pip install jax jax-cuda12-plugin jax-cuda12-pjrt"
        raise PlanError(f"the planner asks JAX's compiler for CUDA, which is not installed: {needed}")


def make_plan(request: StepRequest, label: Any, gpu: GpuSpec, cost: StepCost, notes: Sequence[str] = ()) -> MemoryPlan:
    """A step's cost beside what the GPU has."""
    peak, notes = Quantity.compiled(cost.peak_bytes, "bytes", gpu.name), list(notes)
    if cost.reserved_bytes:
        high_bytes = SAFETY_FACTOR * cost.reserved_bytes
        peak = Quantity.projected(cost.peak_bytes, high_bytes, "bytes", gpu.name, "what lives at once")
        notes.append(TORCH_NOTE)
    overhead_bytes = CONTEXT_BYTES + PREFETCHED_BATCHES * cost.bytes_by_part.get("inputs", 0)
    usable_bytes = int(gpu.usable_memory_gib * 2**30)
    time, why_not = step_time(cost, gpu)
    plan = {"step_time": time, "notes": [*notes, *filter(None, [why_not])]}
    plan["configuration"] = {"model": label, "dtype_policy": cost.dtype_policy, "optimizer": cost.optimizer}
    asked = {"batch_size", "gradient_accumulation_steps", "recompute", "input_shapes"}
    plan["configuration"] |= request.model_dump(mode="json", include=asked)
    if request.config:
        plan["configuration"] |= request.config.model_dump(include={"recompute", "memory_efficient_attention"})
    plan |= cost.model_dump(include={"bytes_by_part", "n_parameters"})
    plan["verdict"] = verdict(cost.peak_bytes, overhead_bytes, usable_bytes, peak.high)
    return MemoryPlan(gpu=gpu.name, peak=peak, overhead_bytes=overhead_bytes, usable_bytes=usable_bytes, **plan)


def verdict(peak_bytes: float, overhead_bytes: int, usable_bytes: int, high_bytes: float | None = None) -> str:
    """`fits` with a reserve of 10 % of the peak, `tight` without it, else `out of memory`.

    Of a band from `peak_bytes` to `high_bytes`, which has its reserve in it: `fits` where its upper end does, `undecided`
    where its lower one does.
    """
    if (high_bytes or SAFETY_FACTOR * peak_bytes) + overhead_bytes <= usable_bytes:
        return "fits"
    if peak_bytes + overhead_bytes <= usable_bytes:
        return "undecided" if high_bytes else "tight"
    return "out of memory"


def step_time(cost: StepCost, gpu: GpuSpec) -> tuple[Quantity | None, str | None]:
    """Seconds of one micro-batch, projected from its operations and bytes; else None, and why.

    At best arithmetic and memory traffic overlap entirely, at worst not at all (roofline, Williams et al. 2009,
    https://doi.org/10.1145/1498765.1498785).
    """
    if cost.has_loop:
        return None, "the time of a step is not projected: it has a loop, as of a recurrent layer, whose body XLA counts once"
    if not cost.n_flops or not cost.moved_bytes:
        return None, "the time of a step is not projected: this JAX does not give XLA's count of operations and bytes"
    if "float16" in cost.dtype_policy:
        slowest = fastest = gpu.float16_tensor_tflops
    else:  # from compute capability 8.0 on XLA rounds float32 products to TF32, at half the rate of float16
        slowest = gpu.float32_tflops
        fastest = gpu.float16_tensor_tflops / 2 if float(gpu.compute_capability) >= 8 else slowest
    rates = zip((slowest, fastest), ARITHMETIC_EFFICIENCY, strict=True)
    arithmetic_s = [cost.n_flops / (tflops * 1e12 * share) for tflops, share in rates]
    memory_s = [cost.moved_bytes / (gpu.memory_bandwidth_gb_per_s * 1e9 * share) for share in BANDWIDTH_EFFICIENCY]
    bound_by = "arithmetic" if sum(arithmetic_s) > sum(memory_s) else "memory bandwidth"
    low, high = max(arithmetic_s[1], memory_s[1]), arithmetic_s[0] + memory_s[0]
    return Quantity.projected(low, high, "s", gpu.name, bound_by), None


# Batches that are tried: about 9 % apart, from 8 on in multiples of 8, as tensor cores like them.
CANDIDATES = [1, 2, 4, *sorted({8 * round(2 ** (i / 8 - 3)) for i in range(24, 129)})]


def largest_batch(model: Any, gpu: str | GpuSpec = "T4", **options: Any) -> MemoryPlan | None:
    """The plan of the largest micro-batch that fits, searched for by compiling; None: not even one sample does.

    What a batch needs is never extrapolated: the memory of a sample varies with the batch.

    Args:
        **options: as for `plan_memory`, its errors too.
    """
    plans = {}

    def is_too_large(size: int) -> bool:
        plans[size] = plan_memory(model, gpu, batch_size=size, **options)
        end_size()
        return plans[size].verdict != "fits"

    with step_counter("largest batch", len(CANDIDATES).bit_length()) as end_size:
        n_fitting = bisect.bisect_left(CANDIDATES, True, key=is_too_large)
    return plans[CANDIDATES[n_fitting - 1]] if n_fitting else None
