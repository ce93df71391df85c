"""What is asked of XLA about a training step, what it answers, and how it is asked: in a child process of its own.

Nothing here needs Keras or JAX.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata, resources

from pydantic import BaseModel, PositiveInt

from ...devices import GpuSpec, find_multiprocessor
from ..model.config import ModelConfig

# Without autotuning, which measures kernels on the GPU; without Triton's matrix products, which cannot be chosen for float16
# unmeasured on compute capability 8.0 and later (jaxlib 0.10: "Couldn't find output tile sizes").
XLA_FLAGS = "--xla_gpu_autotune_level=0 --xla_gpu_enable_triton_gemm=false"


class PlanError(RuntimeError):
    """A step that could not be planned; the message says why and what to do."""


class StepRequest(BaseModel, extra="forbid"):
    """One training step. Exactly one of `config`, `keras_config`, `builder` and `module_file` says of which model."""

    config: ModelConfig | None = None
    keras_config: str | None = None  # Keras' JSON of a model, its compilation included
    builder: str | None = None  # "module:function", called without arguments
    module_file: str | None = None  # of a PyTorch module in memory, for the time of the question
    modules: tuple[str, ...] = ()  # to import before that is read: they register its own layers and losses
    recompute: tuple[str, ...] = ()  # names of layers
    input_shapes: dict[str, tuple[PositiveInt, ...]] = {}  # without the batch, of inputs with unknown dimensions
    batch_size: PositiveInt
    gradient_accumulation_steps: PositiveInt = 1
    dtype_policy: str | None = None  # None: as the model was built
    target: str | None = None  # XLA's description of the GPU; None: this machine's CPU


class StepCost(BaseModel):
    """What the step needs, in bytes; or `error`.

    Of the parts `temporaries` is all that lives within the step only: activations, gradients, workspaces that XLA plans for.
    """

    bytes_by_part: dict[str, int] = {}  # weights, optimizer, accumulators, inputs, temporaries
    reserved_bytes: int | None = None  # of PyTorch's allocator, at most; None: compiled, the peak is what is needed
    n_parameters: int = 0
    n_flops: float | None = None
    moved_bytes: float | None = None  # by what XLA compiled itself; by library calls: not counted
    has_loop: bool = False  # whose body XLA counts once, whatever its length
    dtype_policy: str = "float32"
    optimizer: str = "adam"
    error: str | None = None

    @property
    def peak_bytes(self) -> int:
        return sum(self.bytes_by_part.values())


def describe_gpu(gpu: GpuSpec) -> str:
    """The GPU as XLA wants it described, a `GpuTargetConfigProto` in text form, on one line.

    What the template states are fields that no GPU of the catalogue differs in, as in XLA's own descriptions
    (openxla/xla, xla/backends/gpu/target_config/specs). XLA computes results twice rather than need more than the memory.
    """
    multiprocessor = find_multiprocessor(gpu.compute_capability)
    major, minor = gpu.compute_capability.split(".")
    sizes = {"l2_cache": int(gpu.l2_cache_mib * 2**20), "device_memory": int(gpu.usable_memory_gib * 2**30)}
    sizes["shared_memory"] = multiprocessor.shared_memory_kib * 2**10
    sizes["shared_memory_per_block"] = multiprocessor.shared_memory_per_block_kib * 2**10
    sizes["memory_bandwidth"] = int(gpu.memory_bandwidth_gb_per_s * 1e9)
    template = resources.files(__package__).joinpath("templates", "gpu_target.txt").read_text("utf-8")
    filled = template.format(gpu=gpu, multiprocessor=multiprocessor, major=major, minor=minor, **sizes)
    return " ".join(filled.split())


def has_compiler() -> bool:
    """Whether JAX's CUDA plug-in is installed, which compiles for GPUs."""
    return any(found for version in (12, 13) for found in metadata.distributions(name=f"jax-cuda{version}-plugin"))


def xla_flags() -> str:
    """For the compiling process. Besides JAX's plug-in XLA needs two files of CUDA's toolkit, libdevice and ptxas, which
    are in the wheel nvidia-cuda-nvcc-cu12; its own are preferred to a toolkit's of whatever version is on the machine.
    """
    for wheel in metadata.distributions(name="nvidia-cuda-nvcc-cu12"):
        return f'{XLA_FLAGS} --xla_gpu_cuda_data_dir="{wheel.locate_file("nvidia/cuda_nvcc")}"'
    return XLA_FLAGS


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
