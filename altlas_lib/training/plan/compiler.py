"""Ask XLA, in a child process of its own, what a training step needs on a GPU that need not be there."""

import contextlib
import importlib.util
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, JsonValue, PositiveInt

from ...devices import GpuSpec, find_multiprocessor
from ..model.config import ModelConfig
from ..model.features import N_FEATURES


class PlanError(RuntimeError):
    """A step that could not be planned; the message says why and what to do."""


class StepRequest(BaseModel):
    """One training step to compile. Exactly one of `config`, `keras_file` and `builder` says of which model."""

    config: ModelConfig | None = None
    n_features: PositiveInt = N_FEATURES
    keras_file: str | None = None
    builder: str | None = None  # "module:function", called without arguments
    modules: tuple[str, ...] = ()  # to import before the file is loaded: they register its own layers and losses
    input_shapes: dict[str, tuple[PositiveInt, ...]] = {}  # without the batch, of inputs with unknown dimensions
    batch_size: PositiveInt
    gradient_accumulation_steps: PositiveInt = 1
    dtype_policy: str | None = None  # None: as the model was built
    optimizer: str | dict[str, JsonValue] | None = None  # None: the model's own, else Adam
    target: str | None = None  # XLA's description of the GPU; None: do not compile, walk the step's graph


class StepAnswer(BaseModel):
    """What the step needs, in bytes; or `error`.

    `temporaries_bytes` is all that lives within the step only: activations, gradients, workspaces that XLA plans for.
    """

    basis: Literal["compiled", "projected"] = "compiled"
    weights_bytes: int = 0
    optimizer_bytes: int = 0
    accumulators_bytes: int = 0
    inputs_bytes: int = 0
    temporaries_bytes: int = 0
    n_parameters: int = 0
    n_flops: float | None = None
    moved_bytes: float | None = None  # by what XLA compiled itself; by library calls: not counted
    compile_s: float = 0.0
    dtype_policy: str = "float32"
    optimizer: str = "adam"
    sources: dict[str, str] = {}  # the user's own files that were imported -> SHA-256
    error: str | None = None

    @property
    def peak_bytes(self) -> int:
        return sum(self.bytes_by_part.values())

    @property
    def bytes_by_part(self) -> dict[str, int]:
        parts = ("weights", "optimizer", "accumulators", "inputs", "temporaries")
        return {part: getattr(self, f"{part}_bytes") for part in parts}


def target_config(gpu: GpuSpec, memory_bytes: int | None = None) -> str:
    """The GPU as XLA wants it described, a `GpuTargetConfigProto` in text form.

    Args:
        memory_bytes: instead of the GPU's own. XLA computes results again rather than need more than a share of it.

    The fields that no GPU of the catalogue differs in are those of XLA's own descriptions
    (openxla/xla, xla/backends/gpu/target_config/specs).
    """
    multiprocessor = find_multiprocessor(gpu.compute_capability)
    major, minor = gpu.compute_capability.split(".")
    memory_bytes = int(gpu.usable_memory_gib * 2**30) if memory_bytes is None else memory_bytes
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
        "device_memory_size": memory_bytes,
        "registers_per_core_limit": 65536,
        "registers_per_block_limit": 65536,
        "cuda_compute_capability": f"{{ major: {major} minor: {minor} }}",
    }
    fields = " ".join(f"{name}: {value}" for name, value in device.items()).replace("capability: {", "capability {")
    return (
        f'gpu_device_info {{ {fields} }} platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 10 }} '
        f'runtime_version {{ major: 12 minor: 9 patch: 0 }} device_description_str: "{gpu.name}"'
    )


def xla_flags() -> str:
    """For the compiling process. Besides JAX's plug-in XLA needs two files of CUDA's toolkit, libdevice and ptxas, which
    are in the wheel nvidia-cuda-nvcc-cu12; its own are preferred to a toolkit's of whatever version is on the machine.
    """
    # Without autotuning, which measures kernels on the GPU; without Triton's matrix products, which cannot be chosen for
    # float16 unmeasured on compute capability 8.0 and later (jaxlib 0.10: "Couldn't find output tile sizes").
    flags = "--xla_gpu_autotune_level=0 --xla_gpu_enable_triton_gemm=false"
    try:
        wheel = importlib.util.find_spec("nvidia.cuda_nvcc")
    except ModuleNotFoundError:
        wheel = None
    return f'{flags} --xla_gpu_cuda_data_dir="{wheel.submodule_search_locations[0]}"' if wheel else flags


def compile_step(request: StepRequest, *, time_limit_s: float, stop: threading.Event | None = None) -> StepAnswer:
    """The answer of a child process, which is ended with all that it started after the time limit or when `stop` is set.

    Raises:
        PlanError: it took too long, was ended, or says why the step cannot be compiled.
    """
    with tempfile.TemporaryDirectory(prefix="altlas-") as folder:
        request_file, answer_file, messages = (Path(folder, name) for name in ("request.json", "answer.json", "messages.txt"))
        request_file.write_text(request.model_dump_json())
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),  # the child imports what we can
            "KERAS_BACKEND": "jax",
            "JAX_PLATFORMS": "cpu",  # weights are made on the CPU, and a GPU that is here is not touched
            "XLA_FLAGS": xla_flags(),
            "TF_CPP_MIN_LOG_LEVEL": "3",
        }
        with open(messages, "wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", f"{__package__}.compile_step", str(request_file), str(answer_file)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment,
                start_new_session=True,  # a process group of its own, so that all that it starts can be ended with it
            )
        try:
            _wait(process, time_limit_s, stop)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if not answer_file.exists():
            last_message = messages.read_text(errors="replace").strip()[-2000:].rpartition("\n")[2] or "nothing"
            hint = "; it was killed, likely for want of host memory: close other programs" if process.returncode == -9 else ""
            raise PlanError(
                f"the compiling process ended with status {process.returncode}{hint} (its last words: {last_message})"
            )
        answer = StepAnswer.model_validate_json(answer_file.read_bytes())
    if answer.error:
        raise PlanError(answer.error)
    return answer


def _wait(process: subprocess.Popen, time_limit_s: float, stop: threading.Event | None) -> None:
    end_s = time.monotonic() + time_limit_s
    while True:
        try:
            process.wait(timeout=min(0.5, max(end_s - time.monotonic(), 0)))
            return
        except subprocess.TimeoutExpired:
            if stop is not None and stop.is_set():
                raise PlanError("stopped") from None
            if time.monotonic() >= end_s:
                raise PlanError(
                    f"compiling the step took longer than time_limit_s={time_limit_s:g}: give it more time, or plan a smaller "
                    "model"
                ) from None
