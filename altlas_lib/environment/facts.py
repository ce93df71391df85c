"""What the machine is and what its libraries say of themselves: facts only, `checks` judges them."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import tomllib
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import IO, TypeVar

import psutil
from packaging.requirements import Requirement
from pydantic import Field, ValidationError

from .. import devices, paths
from ..results import Model

PROBE_MODULE = f"{__package__}.probe"
# Else the first of TensorFlow and JAX to start takes the whole GPU, and the others report a lack of memory.
_SHARE_THE_GPU = {"TF_FORCE_GPU_ALLOW_GROWTH": "true", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}


class Driver(Model):
    """What NVIDIA's driver says (NVML)."""

    version: str | None = None
    cuda_version: str | None = None  # the newest CUDA that it runs
    gpus: tuple[devices.Gpu, ...] = ()
    error: str | None = None  # one line: why there is no driver, or no answer of it


class Library(Model):
    """What a child process found out about one library by loading it and computing with it."""

    installed: bool = True
    version: str | None = None
    cuda: dict[str, str] = Field(default_factory=dict)  # "runtime", "cuDNN", "NVRTC" -> version; empty: built without CUDA
    gpus: tuple[str, ...] = ()  # that it sees
    computed_on: tuple[str, ...] = ()  # devices on which a small computation came out right
    no_gpu_because: str | None = None
    backend: str | None = None  # Keras: the framework that computes
    blas: str | None = None  # NumPy: its matrix library, that library's choice of kernels, and what they reach
    blas_kernels: str | None = None
    gflops_per_thread: float | None = None
    error: str | None = None  # one line: an exception, a crash, or no answer in time


class Facts(Model):
    """All that the checks look at."""

    python: str
    python_version: str
    python_required: str  # as pyproject.toml states it
    unmet_requirements: tuple[str, ...]  # each with what is wrong
    outputs: str
    outputs_writable: bool
    disk_free_bytes: int
    memory_limit_bytes: int
    memory_available_bytes: int
    cpu: devices.Cpu
    cpu_busy_percent: float  # with other programs, before the first probe starts
    kernel_python: str | None  # that the kernelspec `python3` starts; None: there is no such kernelspec
    nvidia_smi: str | None
    n_nvidia_on_bus: int
    in_container: bool
    cuda_visible_devices: str | None
    driver: Driver
    libraries: dict[str, Library]
    openblas_coretype: str | None = None  # the environment variable
    numpy_with_avx512_kernels: Library | None = None  # asked for only where OpenBLAS leaves AVX-512 unused


def collect_facts() -> Facts:
    """Ask the machine, and each library in a child process."""
    cpu, cpu_busy_percent = devices.describe_cpu(), psutil.cpu_percent(0.5)
    numpy = _probe("numpy", Library)  # alone: its rate is measured
    types = {"driver": Driver, **dict.fromkeys(("keras", "tensorflow", "cupy", "torch", "jax"), Library)}
    with ThreadPoolExecutor(min(cpu.n_threads, 4)) as pool:
        reports = dict(zip(types, pool.map(lambda name: _probe(name, types[name]), types), strict=True))
    driver = reports.pop("driver")
    outputs = paths.outputs_dir()
    existing = next(folder for folder in (outputs, *outputs.resolve().parents) if folder.exists())
    python_required, unmet = _requirements()
    return Facts(
        python=sys.executable,
        python_version=".".join(map(str, sys.version_info[:3])),
        python_required=python_required,
        unmet_requirements=unmet,
        outputs=str(outputs),
        outputs_writable=os.access(existing, os.W_OK),
        disk_free_bytes=shutil.disk_usage(existing).free,
        memory_limit_bytes=devices.memory_limit_bytes(),
        memory_available_bytes=devices.memory_available_bytes(),
        cpu=cpu,
        cpu_busy_percent=cpu_busy_percent,
        kernel_python=_kernel_python(),
        nvidia_smi=shutil.which("nvidia-smi"),
        n_nvidia_on_bus=_n_nvidia_on_bus(),
        in_container=Path("/.dockerenv").exists() or Path("/run/.containerenv").exists(),
        cuda_visible_devices=os.environ.get("CUDA_VISIBLE_DEVICES"),
        driver=driver,
        libraries={"numpy": numpy, **reports},
        openblas_coretype=os.environ.get("OPENBLAS_CORETYPE"),
        numpy_with_avx512_kernels=_numpy_with_avx512_kernels(cpu, numpy),
    )


_Report = TypeVar("_Report", Driver, Library)


def _probe(name: str, report_type: type[_Report], timeout_s: float = 60.0, **environment: str) -> _Report:
    """Run one probe; a crash, a hang or an unreadable answer becomes the report's `error`."""
    # Files, not pipes: a grandchild that keeps a pipe open would keep us waiting after the child's end.
    with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", PROBE_MODULE, name],
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            cwd=Path(__file__).resolve().parents[2],
            env=os.environ | _SHARE_THE_GPU | environment,
        )
        try:
            status = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):  # stuck inside the driver, where even SIGKILL has to wait
                process.wait(5)
            return report_type(error=f"no answer within {timeout_s:g} s")
        answer, last_words = _last_line(stdout), _last_line(stderr)
    if status:
        ended = f"crashed ({signal.strsignal(-status)})" if status < 0 else f"ended with exit code {status}"
        return report_type(error=f"{ended}: {_shortened(last_words) or 'no message'}")
    try:
        report = report_type.model_validate_json(answer)
    except ValidationError:
        return report_type(error=f"expected a report in JSON, got {answer[:80]!r}")
    return report.model_copy(update={"error": _shortened(report.error)}) if report.error else report


def _last_line(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace").strip().rpartition("\n")[2]


def _shortened(message: str) -> str:
    return " ".join(message.split())[:240]


def _numpy_with_avx512_kernels(cpu: devices.Cpu, numpy: Library) -> Library | None:
    """NumPy again with OpenBLAS's AVX-512 kernels, where the CPU has them and OpenBLAS chose others.

    OpenBLAS falls back to AVX2 kernels on a CPU that it does not know, which halves the CPU's rate on some.
    """
    if "AVX-512F" in cpu.instruction_sets and numpy.blas == "openblas" and numpy.blas_kernels in ("Haswell", "Zen"):
        return _probe("numpy", Library, OPENBLAS_CORETYPE="SkylakeX")
    return None


def _requirements() -> tuple[str, tuple[str, ...]]:
    """The Python versions that pyproject.toml asks for, and those of its requirements that are not met."""
    project = tomllib.loads((paths.project_root() / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    unmet = []
    for requirement in map(Requirement, project["dependencies"]):
        if requirement.marker and not requirement.marker.evaluate():  # meant for another system or Python
            continue
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            unmet.append(f"{requirement} (not installed)")
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            unmet.append(f"{requirement} (found {version})")
    return project["requires-python"], tuple(unmet)


def _kernel_python() -> str | None:
    from jupyter_client import KernelManager
    from jupyter_client.kernelspec import NoSuchKernel

    try:
        program = KernelManager(kernel_name="python3").format_kernel_cmd()[0]
    except NoSuchKernel:
        return None
    return shutil.which(program) or program


def _n_nvidia_on_bus() -> int:
    """NVIDIA's display devices on the PCI bus, with or without a driver; 0 where the system does not tell."""
    count = 0
    for vendor in Path("/sys/bus/pci/devices").glob("*/vendor"):
        if vendor.read_text().strip() == "0x10de":
            count += vendor.with_name("class").read_text().startswith("0x03")  # a display controller; not its audio, 0x04
    return count
