"""What is asked of XLA about a training step, what it answers, and how it is asked: in a child process of its own.

Nothing here needs Keras or JAX.
"""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec

from pydantic import BaseModel, PositiveInt

from ...devices import GpuSpec, find_multiprocessor
from ..model.config import ModelConfig

# Without autotuning, which measures kernels on the GPU; without Triton's matrix products, which cannot be chosen for float16
# unmeasured on compute capability 8.0 and later (jaxlib 0.10: "Couldn't find output tile sizes").
XLA_FLAGS = "--xla_gpu_autotune_level=0 --xla_gpu_enable_triton_gemm=false"


class PlanError(RuntimeError):
    """A step that could not be planned; the message says why and what to do."""


class StepRequest(BaseModel):
    """One training step. Exactly one of `config`, `keras_file`, `builder` and `module_file` says of which model."""

    config: ModelConfig | None = None
    keras_file: str | None = None
    builder: str | None = None  # "module:function", called without arguments
    module_file: str | None = None  # of a PyTorch module in memory, for the time of the question
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
    reserved_bytes: int | None = None  # of PyTorch's allocator, at most; None: compiled, the peak is what is needed
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


def _find_module(name: str) -> ModuleSpec | None:
    try:
        return importlib.util.find_spec(name)
    except ModuleNotFoundError:  # of the package that it is in
        return None


def has_compiler() -> bool:
    """Whether JAX's CUDA plug-in is installed, which compiles for GPUs."""
    return any(_find_module(f"jax_plugins.xla_cuda{version}") for version in (12, 13))


def xla_flags() -> str:
    """For the compiling process. Besides JAX's plug-in XLA needs two files of CUDA's toolkit, libdevice and ptxas, which
    are in the wheel nvidia-cuda-nvcc-cu12; its own are preferred to a toolkit's of whatever version is on the machine.
    """
    wheel = _find_module("nvidia.cuda_nvcc")
    return f'{XLA_FLAGS} --xla_gpu_cuda_data_dir="{wheel.submodule_search_locations[0]}"' if wheel else XLA_FLAGS


def compile_steps(requests: Sequence[StepRequest], *, time_limit_s: float) -> list[StepCost]:
    """The answers of a child process, which is ended after the time limit.

    Raises:
        PlanError: it took too long, or died.
    """
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),  # the child imports what we can
        "KERAS_BACKEND": "jax",
        "JAX_PLATFORMS": "cpu",  # weights are made on the CPU, and a GPU that is here is not touched
        "XLA_FLAGS": xla_flags(),
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    asked = json.dumps([request.model_dump(mode="json") for request in requests]).encode()
    is_own = any(request.builder or request.module_file for request in requests)
    command = [sys.executable, "-m", "altlas_lib.training.pytorch" if is_own else f"{__package__}.step"]
    try:
        done = subprocess.run(command, input=asked, env=environment, timeout=time_limit_s, capture_output=True)
    except subprocess.TimeoutExpired:
        problem = f"compiling the step took longer than time_limit_s={time_limit_s:g}"
        raise PlanError(f"{problem}: give it more time, or plan a smaller model") from None
    answers = [StepCost.model_validate_json(line) for line in done.stdout.splitlines()]
    if len(answers) == len(requests):
        return answers
    last_message = done.stderr[-2000:].decode(errors="replace").strip().rpartition("\n")[2] or "nothing"
    hint = "; it was killed, likely for want of host memory: close other programs" if done.returncode == -9 else ""
    raise PlanError(f"the compiling process ended with status {done.returncode}{hint} (its last words: {last_message})")
