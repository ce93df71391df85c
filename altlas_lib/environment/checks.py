"""From facts to findings: what is well, what is not, and the command that mends it. Nothing here asks the machine."""

import shlex
from pathlib import Path

from packaging.specifiers import SpecifierSet
from packaging.version import Version

from ..devices import Gpu
from ..results import Finding
from .facts import PROBE_MODULE, Facts, Library

Verdict = tuple[str, str, str | None]  # status, what was found, and the fix where the status is not "ok"

GIB = 2**30
# A run writes some tens of MB; TensorFlow and the data of a chapter take one to two GiB of memory at the quick sizes.
LEAST_DISK_BYTES, AMPLE_DISK_BYTES = GIB // 2, 2 * GIB
LEAST_MEMORY_BYTES, AMPLE_MEMORY_BYTES = 3 * GIB // 2, 4 * GIB
BUSY_PERCENT = 20
# A gain below this is no reason to bother the user: a rate of one run differs from the next by some per cent.
NOTABLE_GAIN = 1.25

LIBRARY_NAMES = {"tensorflow": "TensorFlow", "cupy": "CuPy", "torch": "PyTorch", "jax": "JAX"}
_KERAS_BACKENDS = ("tensorflow", "torch", "jax")
_INSTALL_WITH_CUDA = {
    "tensorflow": 'pip install "tensorflow[and-cuda]"',
    "cupy": 'pip install "cupy-cuda{major}x[ctk]"',
    "torch": "pip install --force-reinstall torch",
    "jax": 'pip install "jax[cuda{major}]"',
}
_UPDATE_DRIVER = "sudo ubuntu-drivers install && sudo reboot   # elsewhere: your system's NVIDIA driver package"
_ADD_GPU_TO_CONTAINER = "start the container with the GPU: docker run --gpus all -e NVIDIA_DRIVER_CAPABILITIES=compute,utility"
_MEND_DRIVER = {  # NVML's error -> what it calls for
    "NVMLError_DriverNotLoaded": "sudo modprobe nvidia   # after a kernel update: install the driver again, then sudo reboot",
    "NVMLError_LibRmVersionMismatch": "sudo reboot   # the driver was updated while the old one is still running",
    "NVMLError_NoPermission": "sudo usermod -aG video $USER   # then log in again",
}


def findings_from(facts: Facts) -> list[Finding]:
    """All findings, in the order in which a reader mends them: machine first, then driver, then libraries."""
    verdicts = {
        "Python": _python(facts),
        "Packages": _packages(facts),
        "Disk": _disk(facts),
        "Memory": _memory(facts),
        "CPU": _cpu(facts),
        "Instruction sets": _instruction_sets(facts),
        "Notebook kernel": _kernel(facts),
        "NVIDIA driver": _driver(facts),
        **{f"GPU {gpu.index}": _gpu(gpu) for gpu in facts.driver.gpus},
        "GPU": _no_gpu(facts),
        "NumPy": _numpy(facts),
        "BLAS kernels": _blas_kernels(facts),
        "Keras": _keras(facts),
        **{title: _framework(facts, name) for name, title in LIBRARY_NAMES.items()},
    }
    return [
        Finding(check=check, status=status, found=found, fix=fix)
        for check, verdict in verdicts.items()
        if verdict
        for status, found, fix in [verdict]
    ]


def is_ready(findings: list[Finding]) -> bool:
    """Whether the machine can run the book on what it has: no finding is a failure."""
    return all(finding.status != "failure" for finding in findings)


def _python(facts: Facts) -> Verdict:
    found = f"{facts.python_version} ({facts.python})"
    if SpecifierSet(facts.python_required).contains(facts.python_version, prereleases=True):
        return "ok", found, None
    return "failure", f"{found}; expected {facts.python_required}", "python3.12 -m venv .venv && .venv/bin/pip install -e ."


def _packages(facts: Facts) -> Verdict:
    # Frameworks have a check of their own: Keras can do without TensorFlow where it computes with another one.
    unmet = [requirement for requirement in facts.unmet_requirements if not requirement.startswith(_KERAS_BACKENDS)]
    if unmet:
        return "failure", f"not met: {', '.join(unmet)}", "pip install -e .   # in the project's folder"
    return "ok", "all requirements of pyproject.toml are met", None


def _disk(facts: Facts) -> Verdict:
    elsewhere = "export ALTLAS_OUTPUTS=/a/folder/with/space"
    if not facts.outputs_writable:
        return "failure", f"{facts.outputs} cannot be written", elsewhere
    found = f"{facts.disk_free_bytes / GIB:.1f} GiB free for {facts.outputs}"
    return _enough(found, facts.disk_free_bytes, LEAST_DISK_BYTES, AMPLE_DISK_BYTES, f"{elsewhere}, or free some")


def _memory(facts: Facts) -> Verdict:
    available = facts.memory_available_bytes
    found = f"{available / GIB:.1f} GiB of {facts.memory_limit_bytes / GIB:.1f} GiB available"
    fix = "close other programs; the largest: ps aux --sort=-rss | head"
    if facts.in_container:
        fix = "give the container more: docker run --memory 8g"
    return _enough(found, available, LEAST_MEMORY_BYTES, AMPLE_MEMORY_BYTES, fix)


def _enough(found: str, amount: int, least: int, ample: int, fix: str) -> Verdict:
    if amount >= ample:
        return "ok", found, None
    return "warning" if amount >= least else "failure", f"{found}; expected {ample / GIB:g} GiB or more", fix


def _cpu(facts: Facts) -> Verdict:
    if facts.cpu_busy_percent <= BUSY_PERCENT:
        return "ok", str(facts.cpu), None
    found = f"{facts.cpu}, {facts.cpu_busy_percent:.0f} % busy with other programs: times measured now come out too long"
    return "warning", found, "top   # stop what need not run, then measure"


def _instruction_sets(facts: Facts) -> Verdict:
    known = set(facts.cpu.instruction_sets)
    found = ", ".join(facts.cpu.instruction_sets) or "not known: this system does not tell"
    pass_through = "in a virtual machine, pass the host's CPU through (qemu: -cpu host)"
    if known and not known & {"AVX2", "NEON"}:
        found = "no AVX2, so NumPy and TensorFlow run several times slower than on any CPU since 2015"
        return "warning", found, f"{pass_through}; else take CPU times from another machine"
    if "AVX2" in known and not known & {"AVX-512 VNNI", "AVX-VNNI"}:
        found = f"{found}; no VNNI, so that int8 similarity falls back to float32"
        return "warning", found, f"{pass_through}; else nothing: float32 gives the same answer, slower"
    return "ok", found, None


def _kernel(facts: Facts) -> Verdict:
    fix = f"{shlex.quote(facts.python)} -m ipykernel install --sys-prefix --name python3"
    if facts.kernel_python is None:
        return "failure", "there is no kernelspec python3", fix
    found = f"python3 starts {facts.kernel_python}"
    if Path(facts.kernel_python).parent != Path(facts.python).parent:
        return "failure", f"{found}, not this environment's Python", fix
    return "ok", found, None


def _driver(facts: Facts) -> Verdict:
    driver, error = facts.driver, facts.driver.error or ""
    if driver.version:
        newest = driver.cuda_version or "an unknown version"
        found = f"{driver.version}, runs CUDA up to {newest}; nvidia-smi: {facts.nvidia_smi or 'not on the PATH'}"
        if error:
            return "warning", f"{found}; {error}", "nvidia-smi   # where it fails too: sudo reboot"
        if _is_older(driver.cuda_version, "12.0"):
            return "warning", f"{found}: too old for CUDA 12, which all libraries here need", _UPDATE_DRIVER
        return "ok", found, None
    if mend := _MEND_DRIVER.get(error.partition(":")[0]):
        return "warning", f"installed, but not working: {error}", mend
    if facts.n_nvidia_on_bus:
        found = f"none that works, though {facts.n_nvidia_on_bus} NVIDIA GPU(s) are on the bus ({error})"
        return "warning", found, _ADD_GPU_TO_CONTAINER if facts.in_container else _UPDATE_DRIVER
    if "NotFound" not in error:
        return "warning", f"does not answer: {error}", f"python -m {PROBE_MODULE} driver"
    return "ok", "none, and no NVIDIA GPU that would need one", None


def _gpu(gpu: Gpu) -> Verdict:
    bus = f"PCIe {gpu.pcie_generation} x{gpu.pcie_lanes}" if gpu.pcie_generation and gpu.pcie_lanes else "PCIe not known"
    return "ok", f"{gpu.name}, {gpu.memory_bytes / GIB:.1f} GiB, compute capability {gpu.compute_capability}, {bus}", None


def _no_gpu(facts: Facts) -> Verdict | None:
    if facts.driver.gpus and _hidden(facts):
        found = f"CUDA_VISIBLE_DEVICES={facts.cuda_visible_devices!r} hides every GPU from the libraries"
        return "warning", found, "unset CUDA_VISIBLE_DEVICES"
    if facts.driver.gpus or (facts.n_nvidia_on_bus and not facts.driver.version):  # then the driver's own finding says why
        return None
    found = "none: CPU figures are measured here, GPU figures read 'not measured'"
    return "warning", found, 'on a machine with an NVIDIA GPU and its driver: pip install -e ".[gpu]"'


def _numpy(facts: Facts) -> Verdict:
    numpy = facts.libraries["numpy"]
    if numpy.error or not numpy.installed:
        return "failure", numpy.error or "not installed", "pip install --force-reinstall numpy"
    return "ok", f"{numpy.version}, {numpy.blas or 'its own matrix product'}; computed on the CPU", None


def _blas_kernels(facts: Facts) -> Verdict | None:
    numpy, faster = facts.libraries["numpy"], facts.numpy_with_avx512_kernels
    rate, possible = numpy.gflops_per_thread, faster.gflops_per_thread if faster else None
    if not rate or not possible or possible < NOTABLE_GAIN * rate:
        return None
    held, fix = "OpenBLAS uses", "export OPENBLAS_CORETYPE=SkylakeX"
    if facts.openblas_coretype:
        held, fix = f"OPENBLAS_CORETYPE={facts.openblas_coretype} holds OpenBLAS to", "unset OPENBLAS_CORETYPE"
    found = (
        f"{held} its {numpy.blas_kernels} kernels, {rate:.0f} GFLOP/s per thread (float32); this CPU's AVX-512 "
        f"reaches {possible:.0f}, so that CPU times here look {possible / rate:.1f}x worse than they need to be"
    )
    return "warning", found, f"{fix}   # before Python or Jupyter starts"


def _keras(facts: Facts) -> Verdict:
    keras = facts.libraries["keras"]
    if keras.installed and not keras.error:
        return "ok", f"{keras.version}; computed with {keras.backend}", None
    instead = [name for name in _KERAS_BACKENDS if facts.libraries[name].computed_on and not facts.libraries[name].error]
    fix = f"export KERAS_BACKEND={instead[0]}" if keras.installed and instead else "pip install --force-reinstall -e ."
    return "failure", keras.error or "not installed", fix


def _framework(facts: Facts, name: str) -> Verdict:
    library, driver, keras = facts.libraries[name], facts.driver, facts.libraries["keras"]
    install = _INSTALL_WITH_CUDA[name].format(major=13 if _major(driver.cuda_version) >= 13 else 12)
    if not library.installed:
        if name == "cupy" and driver.gpus:
            return "warning", "not installed, so that chapter 20 cannot use the GPU", install
        if name == "tensorflow" and not keras.computed_on:
            return "failure", "not installed, and Keras computes with no other framework", "pip install -e ."
        return "ok", f"not installed; {'needed only with a GPU' if name == 'cupy' else 'optional'}", None
    if library.error:
        # Keras computes with it, or CuPy offers a GPU on which it then fails: a chapter would stop there.
        stops = name == (keras.backend or "tensorflow") or (name == "cupy" and library.gpus)
        fix = f"{install}   # all that it says: python -m {PROBE_MODULE} {name}"
        return "failure" if stops else "warning", f"{library.version or 'does not load'}: {library.error}", fix

    runtime = library.cuda.get("runtime")
    with_cuda = ", ".join(f"{part} {version}" for part, version in library.cuda.items())
    found = f"{library.version}{f' (CUDA {with_cuda})' if with_cuda else ''}"
    if library.gpus:
        found += f"; computed on {', '.join(dict.fromkeys(library.computed_on))}"
        if runtime and driver.cuda_version and _is_older(driver.cuda_version, runtime):
            found += f"; the driver is made for CUDA {driver.cuda_version}: code compiled to newer PTX cannot load"
            return "warning", found, _UPDATE_DRIVER
        return "ok", found, None
    if driver.gpus:
        return _blind(facts, library, found, install)
    if name == "cupy":
        leave = f"pip uninstall cupy-cuda{_major(runtime)}x   # or leave it: without a GPU NumPy is used"
        found += f"; cannot compute: {library.no_gpu_because or 'no GPU'}"
        return "warning", found, _UPDATE_DRIVER if facts.n_nvidia_on_bus else leave
    return "ok", f"{found}; computed on the CPU", None


def _blind(facts: Facts, library: Library, found: str, install: str) -> Verdict:
    """A library that works on the CPU and does not see the GPU that the driver sees."""
    runtime, newest = library.cuda.get("runtime"), facts.driver.cuda_version
    if _hidden(facts):
        return "warning", f"{found}; the GPU is hidden by CUDA_VISIBLE_DEVICES", "unset CUDA_VISIBLE_DEVICES"
    if not runtime:
        return "warning", f"{found}; built without CUDA, so that it computes on the CPU", install
    if newest and _major(runtime) > _major(newest):
        found += f"; the driver runs CUDA up to {newest} only"
        return "warning", found, f"{_UPDATE_DRIVER}; or, for this driver: {install}"
    reason = f" ({library.no_gpu_because})" if library.no_gpu_because else ""
    return "warning", f"{found}; does not see the GPU{reason}: its CUDA libraries are missing or do not fit", install


def _hidden(facts: Facts) -> bool:
    return facts.cuda_visible_devices is not None and facts.cuda_visible_devices.strip() in ("", "-1", "NoDevFiles")


def _major(version: str | None) -> int:
    return Version(version).major if version else 0


def _is_older(driver_cuda: str, needed: str) -> bool:
    """CUDA 12.4 is older than 12.9, but not older than a plain "12"."""
    n_parts = min(2, needed.count(".") + 1)
    return Version(driver_cuda).release[:n_parts] < Version(needed).release[:n_parts]
