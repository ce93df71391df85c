"""One forward pass by XLA's compiler for a GPU that need not be here, and the time that follows from what it compiled."""

import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..devices import GpuSpec, find_gpu
from ..devices.efficiencies import load_efficiencies, sustained_flops
from ..results import Forward, Quantity
from ..training.plan.request import describe_gpu, has_compiler, xla_flags
from .child import InferenceError, run_child
from .export import open_model, save_keras
from .measure import input_structure

LAUNCH_S = (2e-6, 5e-6)  # that a kernel takes to start: behind others in a queue or graph, or alone
ARITHMETIC_SLOWDOWN = 3.0  # of a model's many small products beside a large one, at worst
_NO_KERNELS = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id"}


def compile_forward(
    model: Any,
    gpu: str | GpuSpec,
    *,
    batch: int = 1,
    dtype: str = "float32",
    modules: Sequence[str] = (),
    time_limit_s: float = 300,
) -> Forward:
    """Memory, kernels, operations and bytes of a forward pass, compiled for `gpu`; and a band of its time.

    Args:
        model: as for `export_onnx`; it has to run on JAX.
        dtype: that it computes in and that its weights are kept in, "float32" or "float16".

    Raises:
        InferenceError: it cannot be loaded or compiled, or JAX's CUDA plug-in is not installed.
        ValueError: no such GPU in the catalogue.
    """
    gpu = gpu if isinstance(gpu, GpuSpec) else find_gpu(gpu)
    if not has_compiler():
        raise InferenceError("XLA's compiler for GPUs is not installed: pip install jax-cuda12-plugin jax-cuda12-pjrt")
    with tempfile.TemporaryDirectory(prefix="altlas-") as folder:
        request = save_keras(model, Path(folder), modules) | {"batch": batch, "dtype": dtype, "target": describe_gpu(gpu)}
        environment = {"KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu", "XLA_FLAGS": xla_flags()}
        found = run_child("forward", request, time_limit_s, **environment)
    cost = Forward(gpu=gpu.name, batch=batch, memory=Quantity.compiled(found.pop("memory_bytes"), "bytes", gpu.name), **found)
    return cost.model_copy(update={"time": project(cost, gpu)})


def project(cost: Forward, gpu: GpuSpec, *, speed_up: float = 1.0) -> Quantity | None:
    """Seconds of the pass. At best arithmetic, memory traffic and starts of kernels overlap entirely, at worst not at all.

    Args:
        speed_up: of arithmetic and traffic over float16, 2 for 8-bit integers.
    """
    if cost.note or not cost.n_flops or not cost.moved_bytes:
        return None
    law, values = f"product {cost.dtype}", load_efficiencies().values
    peak = 1e12 * (gpu.float16_tensor_tflops if cost.dtype == "float16" else gpu.float32_tflops)
    flops = sustained_flops(gpu, values[f"{law}.share"] * peak, values[f"{law}.pj_per_nm"]) * speed_up
    rate = 1e9 * gpu.memory_bandwidth_gb_per_s * values["stream.memory_share"] * speed_up
    parts = {
        "compute": (cost.n_flops / flops, ARITHMETIC_SLOWDOWN * cost.n_flops / flops),
        "memory": (cost.moved_bytes / rate, cost.moved_bytes / rate),
        "launches": tuple(cost.n_launches * start_s for start_s in LAUNCH_S),
    }
    low, high = max(part[0] for part in parts.values()), sum(part[1] for part in parts.values())
    return Quantity.projected(low, high, "s", gpu.name, max(parts, key=lambda part: sum(parts[part])))


# In the child -------------------------------------------------------------------------------------------------------------


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """The fields of `Forward` that the compiler knows; called by `run_child`."""
    import jax
    import keras
    from jax.experimental import topologies

    from ..training import private

    model, dtype = open_model(request["model"], request["modules"]), request["dtype"]
    for layer in model._flatten_layers():
        layer.dtype_policy = {"float16": "mixed_float16"}.get(dtype, dtype)
    topology = topologies.get_topology_desc(platform="cuda", target_config=request["target"], topology="1x1x1")
    mesh = topologies.make_mesh(topology, (1,), ("gpu",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())

    def describe(tensor):
        is_input = isinstance(tensor, keras.KerasTensor)
        shape = (request["batch"], *tensor.shape[1:]) if is_input else tensor.shape
        is_kept_so = is_input or not tensor.dtype.startswith("float")
        return jax.ShapeDtypeStruct(shape, tensor.dtype if is_kept_so else dtype, sharding=sharding)

    weights = [[describe(weight) for weight in group] for group in (model.trainable_variables, model.non_trainable_variables)]
    inputs = keras.tree.map_structure(describe, input_structure(model))
    try:
        lowered = jax.jit(lambda *state: model.stateless_call(*state, training=False)[0]).lower(*weights, inputs)
        compiled = lowered.compile()
    except Exception as error:  # an operation that JAX lacks, or XLA for this GPU
        reason = str(error).strip().splitlines()[0][:300]
        raise InferenceError(f"XLA cannot compile the model for this GPU ({reason}): try another precision or GPU") from None
    memory = compiled.memory_analysis()
    entry = compiled.as_text().partition("\nENTRY ")[2]
    kernels = re.findall(r"^\s+(?:ROOT )?\S+ = .*? ([a-z][\w-]*)\(", entry, re.M)
    note = "a loop, as of a recurrent layer, whose body XLA counts once" if private.has_loop(compiled) else None
    return {
        "memory_bytes": memory.temp_size_in_bytes + memory.argument_size_in_bytes + memory.output_size_in_bytes,
        "n_launches": sum(kernel not in _NO_KERNELS for kernel in kernels),
        "n_flops": private.count_operations(lowered),
        "moved_bytes": private.count_moved_bytes(compiled),
        "dtype": dtype,
        "note": note,
    }
