"""What the machine is and what its libraries say of themselves: facts only, `checks` judges them."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Sequence
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

_ERROR_WIDTH = 240  # characters
_PACKAGE_PARENT = Path(__file__).resolve().parents[2]
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
    numpy_with_avx512_kernels: Library | None = None  # asked for only where OpenBLAS leaves AVX-512 unused


def collect_facts(timeout_s: float = 60.0) -> Facts:
    """Ask the machine, and each library in a child process that gets at most `timeout_s` seconds."""
    cpu, cpu_busy_percent = devices.describe_cpu(), psutil.cpu_percent(0.5)
    numpy = _probe("numpy", Library, timeout_s)  # alone: its rate is measured
    driver, libraries = _probe_all(("keras", "tensorflow", "cupy", "torch", "jax"), timeout_s, min(cpu.n_threads, 4))
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
        libraries={"numpy": numpy, **libraries},
        numpy_with_avx512_kernels=_numpy_with_avx512_kernels(cpu, numpy, timeout_s),
    )


_Report = TypeVar("_Report", Driver, Library)


def _probe_all(names: Sequence[str], timeout_s: float, n_at_once: int) -> tuple[Driver, dict[str, Library]]:
    running: set[subprocess.Popen] = set()
    with ThreadPoolExecutor(n_at_once) as pool:
        try:
            driver = pool.submit(_probe, "driver", Driver, timeout_s, running)
            reports = pool.map(lambda name: _probe(name, Library, timeout_s, running), names)
            return driver.result(), dict(zip(names, reports, strict=True))
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in list(running):  # else leaving this block would wait for them
                process.kill()
            raise


def _probe(
    name: str, report_type: type[_Report], timeout_s: float, running: set[subprocess.Popen] | None = None, **environment: str
) -> _Report:
    """Run one probe; a crash, a hang or an unreadable answer becomes the report's `error`."""
    running = set() if running is None else running
    command = [sys.executable, "-m", PROBE_MODULE, name]
    # Files, not pipes: a grandchild that keeps a pipe open would keep us waiting after the child's end.
    with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            cwd=_PACKAGE_PARENT,
            env=os.environ | _SHARE_THE_GPU | environment,
        )
        running.add(process)
        try:
            status = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return report_type(error=f"no answer within {timeout_s:g} s")
        finally:
            running.discard(process)
            _end(process)
        return _read_report(report_type, status, _end_of(stdout), _end_of(stderr))


def _end(process: subprocess.Popen) -> None:
    if process.poll() is None:
        process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):  # stuck inside the driver, where even SIGKILL has to wait
            process.wait(5)


def _end_of(file: IO[bytes], n_bytes: int = 2**16) -> str:
    file.seek(max(0, file.seek(0, os.SEEK_END) - n_bytes))
    return file.read().decode(errors="replace")


def _read_report(report_type: type[_Report], status: int, stdout: str, stderr: str) -> _Report:
    answer, last_words = (
        next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "") for text in (stdout, stderr)
    )
    if status < 0:
        return report_type(error=f"crashed ({signal.strsignal(-status)}): {last_words[:_ERROR_WIDTH] or 'no message'}")
    if status > 0:
        return report_type(error=f"ended with exit code {status}: {last_words[:_ERROR_WIDTH] or 'no message'}")
    try:
        report = report_type.model_validate_json(answer)
    except ValidationError:
        return report_type(error=f"expected a report in JSON, got {answer[:80]!r}")
    if report.error:
        report = report.model_copy(update={"error": " ".join(report.error.split())[:_ERROR_WIDTH]})
    return report


def _numpy_with_avx512_kernels(cpu: devices.Cpu, numpy: Library, timeout_s: float) -> Library | None:
    """NumPy again with OpenBLAS's AVX-512 kernels, where the CPU has them and OpenBLAS chose others.

    OpenBLAS falls back to AVX2 kernels on a CPU that it does not know, which halves the CPU's rate on some.
    """
    has_avx512 = "AVX-512F" in cpu.instruction_sets
    if not has_avx512 or numpy.blas != "openblas" or numpy.blas_kernels not in ("Haswell", "Zen"):
        return None
    return _probe("numpy", Library, timeout_s, OPENBLAS_CORETYPE="SkylakeX")


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
    try:
        from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel
    except ImportError:
        return None
    try:
        program = KernelSpecManager().get_kernel_spec("python3").argv[0]
    except NoSuchKernel:
        return None
    # As jupyter_client does: these names stand for the interpreter that starts the kernel, whatever is on the PATH.
    if program in ("python", f"python{sys.version_info[0]}", "python{}.{}".format(*sys.version_info[:2])):
        return sys.executable
    return shutil.which(program) or program


def _n_nvidia_on_bus() -> int:
    """NVIDIA's display devices on the PCI bus, with or without a driver; 0 where the system does not tell."""
    count = 0
    for device in Path("/sys/bus/pci/devices").glob("*"):
        try:
            vendor, kind = (device / "vendor").read_text().strip(), (device / "class").read_text().strip()
        except OSError:
            continue
        count += vendor == "0x10de" and kind.startswith("0x03")  # a display controller; their audio functions are 0x04
    return count
