"""What the machine is and what its libraries say of themselves: facts only, `checks` judges them."""

import contextlib
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import IO, Annotated

import psutil
from pydantic import AfterValidator, Field, ValidationError

from .. import devices, extras, paths
from ..results import Model

KERAS_BACKENDS = ("tensorflow", "torch", "jax")
PROBE_MODULE = f"{__package__}.probe"
# Else the first of TensorFlow and JAX to start takes the whole GPU, and the others report a lack of memory.
_SHARE_THE_GPU = {"TF_FORCE_GPU_ALLOW_GROWTH": "true", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}


class Library(Model):
    """What a child process found out about one library, or NVIDIA's driver (NVML), by loading it and computing with it."""

    installed: bool = True
    answered: bool = True  # in time: a busy machine may need longer than it got
    version: str | None = None
    cuda: dict[str, str] = Field(default={})  # "runtime", "cuDNN", "NVRTC" -> version; empty: built without CUDA
    cuda_version: str | None = None  # driver: the newest CUDA that it runs
    gpus: tuple[devices.Gpu | str, ...] = ()  # that it sees: the driver describes them, a library names them
    computed_on: tuple[str, ...] = ()  # devices on which a small computation came out right
    no_gpu_because: str | None = None
    backend: str | None = None  # Keras: the framework that computes
    blas: str | None = None  # NumPy: its matrix library, that library's choice of kernels, and what they reach
    blas_kernels: str | None = None
    gflops_per_thread: float | None = None
    # one line: an exception, a crash, or no answer in time
    error: Annotated[str, AfterValidator(lambda message: " ".join(message.split())[:240])] | None = None


# This machine -------------------------------------------------------------------------------------------------------------


def _folder_of_outputs() -> Path:
    """The innermost folder on the way to the outputs that there is."""
    outputs = paths.outputs_dir()
    return next(folder for folder in (outputs, *outputs.resolve().parents) if folder.exists())


def _kernel_python() -> str | None:
    """That the kernelspec `python3` starts; None: there is no such kernelspec; "": nothing that reads kernelspecs."""
    if not extras.is_installed("notebooks"):
        return ""
    from jupyter_client import KernelManager
    from jupyter_client.kernelspec import NoSuchKernel

    with contextlib.suppress(NoSuchKernel):
        program = KernelManager(kernel_name="python3").format_kernel_cmd()[0]
        return shutil.which(program) or program
    return None


def _n_nvidia_on_bus() -> int:
    """NVIDIA's display devices on the PCI bus, with or without a driver; 0 where the system does not tell."""
    vendors = (file for file in Path("/sys/bus/pci/devices").glob("*/vendor") if file.read_text().strip() == "0x10de")
    return sum(file.with_name("class").read_text().startswith("0x03") for file in vendors)  # not its audio, 0x04


# Its libraries ------------------------------------------------------------------------------------------------------------


def _probe_all() -> dict[str, Library]:
    """NVIDIA's driver and each library by name; "numpy with AVX-512" where OpenBLAS leaves that unused.

    OpenBLAS falls back to AVX2 kernels on a CPU that it does not know, which halves the CPU's rate on some.
    """
    found = {"numpy": _probe("numpy")}  # alone: its rate is measured
    if found["numpy"].blas_kernels in ("Haswell", "Zen") and "AVX-512F" in devices.describe_cpu().instruction_sets:
        found["numpy with AVX-512"] = _probe("numpy", OPENBLAS_CORETYPE="SkylakeX")
    names = ("driver", "keras", "tensorflow", "cupy", "torch", "jax")
    with ThreadPoolExecutor(min(devices.describe_cpu().n_threads, 4)) as pool:
        return found | dict(zip(names, pool.map(_probe, names), strict=True))


def _probe(name: str, timeout_s: float = 60.0, **environment: str) -> Library:
    """Run one probe; a crash, a hang or an unreadable answer becomes the report's `error`."""
    # Files, not pipes: a grandchild that keeps a pipe open would keep us waiting after the child's end.
    with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        streams = {"stdin": subprocess.DEVNULL, "stdout": stdout, "stderr": stderr}
        where = {"cwd": Path(__file__).resolve().parents[2], "env": os.environ | _SHARE_THE_GPU | environment}
        process = subprocess.Popen([sys.executable, "-m", PROBE_MODULE, name], **streams, **where)
        try:
            status = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):  # stuck inside the driver, where even SIGKILL has to wait
                process.wait(5)
            return Library(answered=False, error=f"not answered in {timeout_s:g} s")
        answer, last_words = _last_line(stdout), _last_line(stderr)
    if status:
        ended = f"crashed ({signal.strsignal(-status)})" if status < 0 else f"ended with exit code {status}"
        return Library(error=f"{ended}: {last_words or 'no message'}")
    try:
        return Library.model_validate_json(answer)
    except ValidationError:
        return Library(error=f"expected a report in JSON, got {answer[:80]!r}")


def _last_line(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace").strip().rpartition("\n")[2]


class Facts(Model):
    """All that the checks look at; `Facts()` asks this machine, and each library in a child process."""

    python: str = sys.executable
    python_version: str = platform.python_version()
    python_required: str = Field(default_factory=lambda: metadata.metadata(extras.DISTRIBUTION)["Requires-Python"])
    unmet_requirements: tuple[str, ...] = Field(default_factory=lambda: tuple(extras.unmet()))
    outputs: str = Field(default_factory=lambda: str(paths.outputs_dir()))
    outputs_writable: bool = Field(default_factory=lambda: os.access(_folder_of_outputs(), os.W_OK))
    disk_free_bytes: int = Field(default_factory=lambda: shutil.disk_usage(_folder_of_outputs()).free)
    memory_limit_bytes: int = Field(default_factory=devices.memory_limit_bytes)
    memory_available_bytes: int = Field(default_factory=devices.memory_available_bytes)
    cpu: devices.Cpu = Field(default_factory=devices.describe_cpu)
    cpu_busy_percent: float = Field(default_factory=lambda: psutil.cpu_percent(0.5))  # with other programs: before any probe
    kernel_python: str | None = Field(default_factory=_kernel_python)
    nvidia_smi: str | None = Field(default_factory=lambda: shutil.which("nvidia-smi"))
    n_nvidia_on_bus: int = Field(default_factory=_n_nvidia_on_bus)
    in_container: bool = Field(default_factory=lambda: any(map(os.path.exists, ("/.dockerenv", "/run/.containerenv"))))
    cuda_visible_devices: str | None = Field(default_factory=lambda: os.environ.get("CUDA_VISIBLE_DEVICES"))
    openblas_coretype: str | None = Field(default_factory=lambda: os.environ.get("OPENBLAS_CORETYPE"))
    libraries: dict[str, Library] = Field(default_factory=_probe_all)
