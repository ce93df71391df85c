"""Will this training fit on that GPU? The answer of the GPU's own compiler, before anything runs."""

import hashlib
import importlib.util
import json
import re
import tempfile
import threading
import zipfile
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from pydantic import JsonValue, ValidationError

from ...devices import GpuSpec, find_gpu
from ...paths import outputs_dir, write_atomically
from ...results import MemoryPlan, Quantity
from ..backend import keras
from ..model.config import PRESETS, ModelConfig, find_preset
from .compiler import PlanError, StepAnswer, StepRequest, compile_step, target_config

# What lives on the GPU beside the step's arrays: CUDA's context with the code of its libraries, an allowance.
CONTEXT_BYTES = 2**29
PREFETCHED_BATCHES = 2  # that the input pipeline keeps on the GPU ahead of the step
# A plan may be off by 10 %: allocations are rounded up and leave gaps, and on the GPU itself XLA may choose library calls
# that need larger workspaces than those planned (4 MiB for a product on a T4). Within it nothing is promised.
SAFETY_FACTOR = 1.10
JAX_SHARE = 0.75  # of the GPU's memory, which JAX takes by default
# What XLA allocates over what the graph's walk finds: 0.79 to 1.52 on the rows of `remedy_table` for a T4.
WALK_LOW, WALK_HIGH = 0.75, 1.6

# Shares of the data sheet's rates that a whole step reaches: matrix products of a model of this size leave much of a GPU
# idle, elementwise kernels come near the memory's rate. Assumptions, hence a wide band; launches are not counted.
ARITHMETIC_EFFICIENCY = (0.2, 0.8)
BANDWIDTH_EFFICIENCY = (0.5, 0.9)

TENSORFLOW_NOTES = (
    "TensorFlow on a GPU has XLA compile the step too (Keras: jit_compile='auto'), from a graph of its own: for an earlier "
    "reference it needed 22.8 GiB before rematerialisation where JAX's needed 21.9.",
    "Without XLA (jit_compile=False, or a layer that XLA cannot compile) it runs operation by operation: elementwise results "
    "are arrays of their own, and nothing is computed twice to save memory. Expect more than planned.",
    "It takes all of the GPU's memory at the start unless TF_FORCE_GPU_ALLOW_GROWTH=true: not nvidia-smi but "
    "tf.config.experimental.get_memory_info('GPU:0')['peak'] says what was needed.",
)


def plan_memory(
    model: ModelConfig | keras.Model | str | Path,
    gpu: str | GpuSpec = "T4",
    *,
    batch_size: int,
    gradient_accumulation_steps: int = 1,
    dtype_policy: str | None = None,
    recompute: bool = False,
    memory_efficient_attention: bool = False,
    optimizer: str | keras.optimizers.Optimizer | None = None,
    input_shapes: dict[str, Sequence[int]] | None = None,
    modules: Sequence[str] = (),
    before_rematerialisation: bool = False,
    compiled: bool = True,
    time_limit_s: float = 300,
    use_cache: bool = True,
    only_cached: bool = False,
    stop: threading.Event | None = None,
) -> MemoryPlan:
    """What one training step (forward, backward, optimizer, accumulation) needs on a GPU, by XLA's compiler for it.

    It runs in a child process on the CPU and takes 10 to 60 s; the answer is kept under `outputs/.cache` for the next time.
    Where JAX's CUDA plug-in is not installed, or with `compiled=False`, the step's graph is walked instead, in 5 s, and the
    peak is `projected`, a band.

    Args:
        model: a configuration, a preset's name, or any Keras model that JAX can run: the model, a `.keras` file, or
            "module:function" that builds it. A compiled model brings its loss; else it is mean squared error.
        gpu: a name of the catalogue.
        batch_size: samples per micro-batch.
        dtype_policy: None is the model's own, float32 for a configuration.
        recompute, memory_efficient_attention: of a configuration. In a model of your own wrap the blocks in `Recompute`.
        optimizer: Keras' name of it, or one; None: the model's own where it is compiled, else Adam.
        input_shapes: input's name -> shape without the batch, for inputs with unknown dimensions.
        modules: that define a `.keras` file's own layers and losses; of a model object they are found.
        before_rematerialisation: compile also for a GPU of endless memory, where XLA has no reason to compute twice.
        only_cached: an answer that is kept, or an error at once.
        stop: set from another thread, it ends the compiling.

    Raises:
        ValueError: a GPU, preset, dtype policy, optimizer or number that does not exist.
        PlanError: it took longer than `time_limit_s`, the model cannot be loaded or has unknown dimensions, XLA failed, or
            the answer is not kept.
    """
    gpu = gpu if isinstance(gpu, GpuSpec) else find_gpu(gpu)
    if batch_size < 1 or gradient_accumulation_steps < 1:
        raise ValueError(f"micro-batches of {batch_size}, {gradient_accumulation_steps} per update: expected 1 or more of each")
    if isinstance(optimizer, keras.optimizers.Optimizer):
        optimizer = keras.optimizers.serialize(optimizer)
    elif optimizer is not None:
        keras.optimizers.get(optimizer)
    if dtype_policy:
        keras.dtype_policies.get(dtype_policy)
    switches = {"recompute": recompute, "memory_efficient_attention": memory_efficient_attention}
    target = target_config(gpu) if compiled and _has_compiler() else None
    with tempfile.TemporaryDirectory(prefix="altlas-") as folder:
        label, source, identity = _source(model, switches, modules, Path(folder))
        request = StepRequest(
            **source,
            input_shapes={name: tuple(shape) for name, shape in (input_shapes or {}).items()},
            batch_size=batch_size,
            gradient_accumulation_steps=gradient_accumulation_steps,
            dtype_policy=dtype_policy or ("float32" if "config" in source else None),  # said or not: one answer in the cache
            optimizer=optimizer,
            target=target,
        )
        how = {"time_limit_s": time_limit_s, "use_cache": use_cache, "only_cached": only_cached, "stop": stop}
        answer, notes = _ask(request, identity, **how)
        endless = None
        if before_rematerialisation and target:
            endless, _ = _ask(request.model_copy(update={"target": target_config(gpu, memory_bytes=2**40)}), identity, **how)

    if endless and endless.peak_bytes > 1.01 * answer.peak_bytes:
        notes.append("XLA computes some results twice to need less than it would like to: the step is slower for it")
    if answer.basis == "projected":
        notes.append("a band is projected: the step's graph was walked, not compiled")
        if compiled:
            notes.append(
                "JAX's CUDA plug-in is not installed; for the compiler's answer: pip install jax-cuda12-plugin jax-cuda12-pjrt"
            )
    elif answer.dtype_policy != "float32" and float(gpu.compute_capability) >= 8:
        notes.append("planned without cuDNN's fused attention, which JAX would use on this GPU for 16 bits: at most this much")
    peak = _peak(answer, gpu)
    overhead_bytes = CONTEXT_BYTES + PREFETCHED_BATCHES * answer.inputs_bytes
    usable_bytes = int(gpu.usable_memory_gib * 2**30)
    if JAX_SHARE * usable_bytes < (peak.value or peak.high) <= usable_bytes:
        notes.append("on the JAX backend set XLA_PYTHON_CLIENT_MEM_FRACTION=0.95: by default it takes 75 % of the GPU only")
    return MemoryPlan(
        gpu=gpu.name,
        configuration={
            "model": label,
            "batch_size": batch_size,
            "gradient_accumulation_steps": gradient_accumulation_steps,
            "dtype_policy": answer.dtype_policy,
            "optimizer": answer.optimizer,
            **(switches if request.config else {}),
            **({"input_shapes": {name: list(shape) for name, shape in request.input_shapes.items()}} if input_shapes else {}),
        },
        peak=peak,
        peak_before_rematerialisation=_peak(endless, gpu) if endless else None,
        bytes_by_part=answer.bytes_by_part,
        overhead_bytes=overhead_bytes,
        usable_bytes=usable_bytes,
        verdict=verdict(peak, overhead_bytes, usable_bytes),
        n_parameters=answer.n_parameters,
        step_time=step_time(answer, gpu),
        compile_s=answer.compile_s if answer.basis == "compiled" else None,
        notes=notes,
    )


def verdict(peak: Quantity, overhead_bytes: int, usable_bytes: int) -> str:
    """`fits` with a reserve of 10 % of the peak, `tight` without it, else `out of memory`; a band may be `undecided`."""
    is_band = peak.basis == "projected"
    least, most = (peak.low, peak.high) if is_band else (peak.value, SAFETY_FACTOR * peak.value)
    if most + overhead_bytes <= usable_bytes:
        return "fits"
    if least + overhead_bytes > usable_bytes:
        return "out of memory"
    return "undecided" if is_band else "tight"


def step_time(answer: StepAnswer, gpu: GpuSpec) -> Quantity | None:
    """Seconds of one micro-batch, projected from its operations and bytes; None where they were not counted.

    At best arithmetic and memory traffic overlap entirely, at worst not at all (roofline, Williams et al. 2009,
    https://doi.org/10.1145/1498765.1498785).
    """
    if not answer.n_flops or not answer.moved_bytes:
        return None
    if "float16" in answer.dtype_policy:
        slowest = fastest = gpu.float16_tensor_tflops
    else:  # from compute capability 8.0 on XLA rounds float32 products to TF32, at half the rate of float16
        slowest = gpu.float32_tflops
        fastest = gpu.float16_tensor_tflops / 2 if float(gpu.compute_capability) >= 8 else slowest
    arithmetic_s = [
        answer.n_flops / (tflops * 1e12 * share)
        for tflops, share in zip((slowest, fastest), ARITHMETIC_EFFICIENCY, strict=True)
    ]
    memory_s = [answer.moved_bytes / (gpu.memory_bandwidth_gb_per_s * 1e9 * share) for share in BANDWIDTH_EFFICIENCY]
    bound_by = "arithmetic" if sum(arithmetic_s) > sum(memory_s) else "memory bandwidth"
    return Quantity.projected(max(arithmetic_s[1], memory_s[1]), arithmetic_s[0] + memory_s[0], "s", gpu.name, bound_by)


def largest_batch(
    model: ModelConfig | keras.Model | str | Path,
    gpu: str | GpuSpec = "T4",
    *,
    batch_size: int = 64,
    n_compiles: int = 6,
    **options: Any,
) -> MemoryPlan | None:
    """The plan of the largest micro-batch that fits among those compiled; None: none did.

    What a batch needs is never extrapolated: the memory per sample varies with the batch. Proportion only says which
    candidate to compile next, between the largest that fits and the smallest that does not; multiples of 8, as tensor cores
    like them. It ends when these are 8 or an eighth apart, or no such step is in sight, or after `n_compiles`.

    Args:
        batch_size: the first candidate.
        **options: as for `plan_memory`.
    """
    best, low, high = None, 0, None
    for _ in range(n_compiles):
        plan = plan_memory(model, gpu, batch_size=batch_size, **options)
        if plan.verdict == "fits":
            best, low = plan, batch_size
        else:
            high = batch_size
        batch_size = _next_candidate(plan, low, high)
        if batch_size is None:
            break
    return best


def _next_candidate(plan: MemoryPlan, low: int, high: int | None) -> int | None:
    """A batch size between `low`, which fits, and `high`, which does not; None: they are close enough."""
    if high is not None and high - low <= max(1, low // 8, 8 if low >= 8 else 1):
        return None
    peak_bytes = plan.peak.high or SAFETY_FACTOR * plan.peak.value
    fixed_bytes = sum(size for part, size in plan.bytes_by_part.items() if part in ("weights", "optimizer", "accumulators"))
    share = (plan.usable_bytes - plan.overhead_bytes - fixed_bytes) / max(peak_bytes - fixed_bytes, 1)
    guess = int(plan.configuration["batch_size"] * max(share, 0))
    if high is None and 8 * guess < 9 * low:
        return None
    if high is not None and not low < guess < high:
        guess = (low + high) // 2
    rounded = max(guess // 8, low // 8 + (low >= 8)) * 8
    return rounded if low < rounded and (high is None or rounded < high) else guess


# The model -----------------------------------------------------------------------------------------------------------


def _source(
    model: ModelConfig | keras.Model | str | Path, switches: dict[str, bool], modules: Sequence[str], folder: Path
) -> tuple[JsonValue, dict[str, Any], list[str]]:
    """What to call the model, the request's fields about it, and what else than these decides the answer."""
    if isinstance(model, str) and not model.endswith(".keras") and ":" not in model:
        model = find_preset(model)
    if isinstance(model, ModelConfig):
        names = {config: name for name, config in PRESETS.items()}
        plain = model.model_copy(update=dict.fromkeys(switches, False))
        label = names.get(plain) or plain.model_dump(mode="json")
        both = {name: getattr(model, name) or switch for name, switch in switches.items()}
        switches.update(both)
        return label, {"config": model.model_copy(update=both)}, []
    if any(switches.values()):
        named = " and ".join(name for name, switch in switches.items() if switch)
        raise ValueError(f"{named}: for a configuration only; in a model of your own use training.Recompute, ChunkedAttention")
    if isinstance(model, str) and ":" in model and not model.endswith(".keras"):
        return model, {"builder": model, "modules": tuple(modules)}, _contents([model.partition(":")[0], *modules])
    if isinstance(model, keras.Model):
        modules = sorted({*modules, *_modules_of(model)})
        file, label = folder / "model.keras", model.name
        model.save(file)
    else:
        file = Path(model)
        label = file.name
    try:
        with zipfile.ZipFile(file) as archive:
            content = archive.read("config.json").decode()  # the layers; not the weights, whose values decide nothing
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise PlanError(f"{label} cannot be read as a .keras file ({error}); write it by model.save({label!r})") from None
    content = re.sub(r'"shared_object_id": \d+', "", content)  # an address in the memory of the process that wrote it
    return label, {"keras_file": str(file.resolve()), "modules": tuple(modules)}, [content, *_contents(modules)]


def _modules_of(model: keras.Model) -> set[str]:
    """The modules that define the model's own layers and losses."""
    own = [*model._flatten_layers(), *keras.tree.flatten(getattr(model, "loss", None))]
    modules = {getattr(each, "__module__", "builtins") for each in own}
    if "__main__" in modules:
        raise PlanError(
            f"model {model.name!r} has a layer or loss that is defined in a notebook or script, which the compiling process "
            "cannot import: put it into a module"
        )
    return {module for module in modules if module.partition(".")[0] not in ("keras", "altlas_lib", "builtins")}


def _contents(modules: Sequence[str]) -> list[str]:
    """The source of modules, for the cache's key."""
    contents = []
    for module in modules:
        try:
            spec = importlib.util.find_spec(module)
        except (ImportError, ValueError):  # of the package that it would be in
            spec = None
        if spec is None:
            raise PlanError(f"no module named {module!r}: give a name that `import` finds, or add its folder to PYTHONPATH")
        contents.append(Path(spec.origin).read_text(errors="replace") if spec.has_location else module)
    return contents


# The answer and its cache --------------------------------------------------------------------------------------------


def _has_compiler() -> bool:
    """Whether JAX's CUDA plug-in is installed."""
    try:
        return any(importlib.util.find_spec(f"jax_plugins.xla_cuda{version}") for version in (12, 13))
    except ModuleNotFoundError:
        return False


def _peak(answer: StepAnswer, gpu: GpuSpec) -> Quantity:
    if answer.basis == "compiled":
        return Quantity.compiled(answer.peak_bytes, "bytes", gpu.name)
    known_bytes = answer.peak_bytes - answer.temporaries_bytes
    low, high = (known_bytes + share * max(answer.temporaries_bytes, 1) for share in (WALK_LOW, WALK_HIGH))
    return Quantity.projected(low, high, "bytes", gpu.name, "what the compiler will fuse, reorder and compute twice")


def _ask(
    request: StepRequest,
    identity: list[str],
    *,
    time_limit_s: float,
    use_cache: bool,
    only_cached: bool,
    stop: threading.Event | None,
) -> tuple[StepAnswer, list[str]]:
    """The compiler's answer, from the cache where it is there; notes on what went wrong with the cache."""
    file = outputs_dir() / ".cache" / "plans" / f"{_key(request, identity)}.json"
    if use_cache:
        try:
            kept = StepAnswer.model_validate_json(file.read_bytes())
            if all(hashlib.sha256(Path(source).read_bytes()).hexdigest() == digest for source, digest in kept.sources.items()):
                return kept, []
        except (OSError, ValidationError):  # not there, or damaged, or a source of the model's is gone: compile
            pass
    if only_cached:
        raise PlanError("not compiled yet: `altlas plan` compiles it, half a minute for a batch size")
    if importlib.util.find_spec("jax") is None:
        raise PlanError(
            "the planner asks JAX's compiler, and jax is not installed: pip install jax jax-cuda12-plugin jax-cuda12-pjrt"
        )
    answer = compile_step(request, time_limit_s=time_limit_s, stop=stop)
    if use_cache:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(file, answer.model_dump_json())
        except OSError as error:
            return answer, [f"the answer could not be kept for the next time ({error})"]
    return answer, []


def _key(request: StepRequest, identity: list[str]) -> str:
    """A hash of all that decides the answer: the request, the model, the packages that compile, this library's step."""
    packages = ("jax", "jaxlib", "keras", "jax-cuda12-plugin", "jax-cuda12-pjrt", "jax-cuda13-plugin", "jax-cuda13-pjrt")
    versions = {package: _version(package) for package in packages}
    sources = (
        *("model/accumulation", "model/config", "model/losses", "model/multi_scale", "model/recompute"),
        *("plan/compile_step", "plan/compiler", "plan/liveness"),
    )
    parts = [
        request.model_dump_json(exclude={"keras_file"}),
        *identity,
        json.dumps(versions),
        *((Path(__file__).parents[1] / f"{source}.py").read_text() for source in sources),
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
