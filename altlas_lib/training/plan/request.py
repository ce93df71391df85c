"""What is asked of XLA about a training step, and what it answers; nothing here needs Keras or JAX."""

from pydantic import BaseModel, PositiveInt

from ...devices import GpuSpec, find_multiprocessor
from ..model.config import ModelConfig

# Without autotuning, which measures kernels on the GPU; without Triton's matrix products, which cannot be chosen for float16
# unmeasured on compute capability 8.0 and later (jaxlib 0.10: "Couldn't find output tile sizes").
XLA_FLAGS = "--xla_gpu_autotune_level=0 --xla_gpu_enable_triton_gemm=false"


class PlanError(RuntimeError):
    """A step that could not be planned; the message says why and what to do."""


class StepRequest(BaseModel):
    """One training step to compile. Exactly one of `config`, `keras_file` and `builder` says of which model."""

    config: ModelConfig | None = None
    keras_file: str | None = None
    builder: str | None = None  # "module:function", called without arguments
    modules: tuple[str, ...] = ()  # to import before the file is loaded: they register its own layers and losses
    recompute: tuple[str, ...] = ()  # names of layers
    input_shapes: dict[str, tuple[PositiveInt, ...]] = {}  # without the batch, of inputs with unknown dimensions
    batch_size: PositiveInt
    gradient_accumulation_steps: PositiveInt = 1
    dtype_policy: str | None = None  # None: as the model was built
    target: str | None = None  # XLA's description of the GPU; None: this machine's CPU


class StepCost(BaseModel):
    """What the step needs, in bytes; or `error`.

    `temporaries_bytes` is all that lives within the step only: activations, gradients, workspaces that XLA plans for.
    """

    weights_bytes: int = 0
    optimizer_bytes: int = 0
    accumulators_bytes: int = 0
    inputs_bytes: int = 0
    temporaries_bytes: int = 0
    n_parameters: int = 0
    n_flops: float | None = None
    moved_bytes: float | None = None  # by what XLA compiled itself; by library calls: not counted
    has_loop: bool = False  # whose body XLA counts once, whatever its length
    compile_s: float = 0.0
    dtype_policy: str = "float32"
    optimizer: str = "adam"
    error: str | None = None

    @property
    def peak_bytes(self) -> int:
        return sum(self.bytes_by_part.values())

    @property
    def bytes_by_part(self) -> dict[str, int]:
        parts = ("weights", "optimizer", "accumulators", "inputs", "temporaries")
        return {part: getattr(self, f"{part}_bytes") for part in parts}


def describe_gpu(gpu: GpuSpec) -> str:
    """The GPU as XLA wants it described, a `GpuTargetConfigProto` in text form.

    The fields that no GPU of the catalogue differs in are those of XLA's own descriptions
    (openxla/xla, xla/backends/gpu/target_config/specs).
    """
    multiprocessor = find_multiprocessor(gpu.compute_capability)
    major, minor = gpu.compute_capability.split(".")
    device = {
        "threads_per_block_limit": 1024,
        "threads_per_warp": 32,
        "shared_memory_per_block": 48 * 1024,
        "shared_memory_per_core": multiprocessor.shared_memory_kib * 1024,
        "shared_memory_per_block_optin": multiprocessor.shared_memory_per_block_kib * 1024,
        "threads_per_core_limit": multiprocessor.max_threads,
        "core_count": gpu.multiprocessors,
        "fpus_per_core": multiprocessor.float32_cores,
        "block_dim_limit_x": 2**31 - 1,
        "block_dim_limit_y": 65535,
        "block_dim_limit_z": 65535,
        "memory_bandwidth": int(gpu.memory_bandwidth_gb_per_s * 1e9),
        "l2_cache_size": int(gpu.l2_cache_mib * 2**20),
        "clock_rate_ghz": gpu.boost_clock_ghz,
        "device_memory_size": int(gpu.usable_memory_gib * 2**30),  # XLA computes results twice rather than need more
        "registers_per_core_limit": 65536,
        "registers_per_block_limit": 65536,
        "cuda_compute_capability": f"{{ major: {major} minor: {minor} }}",
    }
    fields = " ".join(f"{name}: {value}" for name, value in device.items()).replace("capability: {", "capability {")
    return (
        f'gpu_device_info {{ {fields} }} platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 10 }} '
        f'runtime_version {{ major: 12 minor: 9 patch: 0 }} device_description_str: "{gpu.name}"'
    )
