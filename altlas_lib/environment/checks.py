"""From facts to findings: what is well, what is not, and the command that mends it. Nothing here asks the machine."""

import shlex
from collections.abc import Iterator
from pathlib import Path

from packaging.specifiers import SpecifierSet
from packaging.version import Version

from ..results import Finding
from .facts import PROBE_MODULE, Facts

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
    checks = (_python, _packages, _disk, _memory, _cpu, _kernel, _driver, _gpus, _numpy, _keras)
    return [
        *(finding for check in checks for finding in check(facts)),
        *(_framework(facts, name) for name in LIBRARY_NAMES),
    ]


def is_ready(findings: list[Finding]) -> bool:
    """Whether the machine can run the book on what it has: no finding is a failure."""
    return all(finding.status != "failure" for finding in findings)


def _ok(check: str, found: str) -> Finding:
    return Finding(check=check, status="ok", found=found)


def _warning(check: str, found: str, fix: str) -> Finding:
    return Finding(check=check, status="warning", found=found, fix=fix)


def _failure(check: str, found: str, fix: str) -> Finding:
    return Finding(check=check, status="failure", found=found, fix=fix)


def _at_least(check: str, found: str, amount: int, *, least: int, ample: int, fix: str) -> Finding:
    if amount >= ample:
        return _ok(check, found)
    return (_warning if amount >= least else _failure)(check, f"{found}; expected {ample / GIB:g} GiB or more", fix)


def _python(facts: Facts) -> Iterator[Finding]:
    found = f"{facts.python_version} ({facts.python})"
    if SpecifierSet(facts.python_required).contains(facts.python_version, prereleases=True):
        yield _ok("Python", found)
    else:
        fix = "python3.12 -m venv .venv && .venv/bin/pip install -e ."
        yield _failure("Python", f"{found}; expected {facts.python_required}", fix)


def _packages(facts: Facts) -> Iterator[Finding]:
    # Frameworks have a check of their own: Keras can do without TensorFlow where it computes with another one.
    unmet = [requirement for requirement in facts.unmet_requirements if not requirement.startswith(_KERAS_BACKENDS)]
    if unmet:
        yield _failure("Packages", f"not met: {', '.join(unmet)}", "pip install -e .   # in the project's folder")
    else:
        yield _ok("Packages", "all requirements of pyproject.toml are met")


def _disk(facts: Facts) -> Iterator[Finding]:
    elsewhere = "export ALTLAS_OUTPUTS=/a/folder/with/space"
    found = f"{facts.disk_free_bytes / GIB:.1f} GiB free for {facts.outputs}"
    if not facts.outputs_writable:
        yield _failure("Disk", f"{facts.outputs} cannot be written", elsewhere)
    else:
        yield _at_least(
            "Disk",
            found,
            facts.disk_free_bytes,
            least=LEAST_DISK_BYTES,
            ample=AMPLE_DISK_BYTES,
            fix=f"{elsewhere}, or free some",
        )


def _memory(facts: Facts) -> Iterator[Finding]:
    available = facts.memory_available_bytes
    found = f"{available / GIB:.1f} GiB of {facts.memory_limit_bytes / GIB:.1f} GiB available"
    fix = (
        "give the container more: docker run --memory 8g"
        if facts.in_container
        else "close other programs; the largest: ps aux --sort=-rss | head"
    )
    yield _at_least("Memory", found, available, least=LEAST_MEMORY_BYTES, ample=AMPLE_MEMORY_BYTES, fix=fix)


def _cpu(facts: Facts) -> Iterator[Finding]:
    known = facts.cpu.instruction_sets
    pass_through = "in a virtual machine, pass the host's CPU through (qemu: -cpu host)"
    if facts.cpu_busy_percent > BUSY_PERCENT:
        found = f"{facts.cpu}, {facts.cpu_busy_percent:.0f} % busy with other programs: times measured now come out too long"
        yield _warning("CPU", found, "top   # stop what need not run, then measure")
    else:
        yield _ok("CPU", str(facts.cpu))
    if not known:
        yield _ok("Instruction sets", "not known: this system does not tell")
    elif "NEON" in known:
        yield _ok("Instruction sets", ", ".join(known))
    elif "AVX2" not in known:
        lack = "no AVX2, so NumPy and TensorFlow run several times slower than on any CPU since 2015"
        yield _warning("Instruction sets", lack, f"{pass_through}; else take CPU times from another machine")
    elif not {"AVX-512 VNNI", "AVX-VNNI"} & set(known):
        lack = f"{', '.join(known)}; no VNNI, so that int8 similarity falls back to float32"
        yield _warning("Instruction sets", lack, f"{pass_through}; else nothing: float32 gives the same answer, slower")
    else:
        yield _ok("Instruction sets", ", ".join(known))


def _kernel(facts: Facts) -> Iterator[Finding]:
    fix = f"{shlex.quote(facts.python)} -m ipykernel install --sys-prefix --name python3"
    if facts.kernel_python is None:
        yield _failure("Notebook kernel", "there is no kernelspec python3", fix)
    elif Path(facts.kernel_python).parent != Path(facts.python).parent:
        yield _failure("Notebook kernel", f"python3 starts {facts.kernel_python}, not this environment's Python", fix)
    else:
        yield _ok("Notebook kernel", f"python3 starts {facts.kernel_python}")


def _driver(facts: Facts) -> Iterator[Finding]:
    driver, check = facts.driver, "NVIDIA driver"
    seen_by = _seen_by(facts)
    if driver.version:
        newest = f"runs CUDA up to {driver.cuda_version}" if driver.cuda_version else "CUDA version not known"
        found = f"{driver.version}, {newest}; nvidia-smi: {facts.nvidia_smi or 'not on the PATH'}"
        if driver.error:
            yield _warning(check, f"{found}; {driver.error}", "nvidia-smi   # where it fails too: sudo reboot")
        elif driver.cuda_version and _is_older(driver.cuda_version, "12.0"):
            yield _warning(check, f"{found}: too old for CUDA 12, which all libraries here need", _UPDATE_DRIVER)
        else:
            yield _ok(check, found)
    elif seen_by:
        found = f"{', '.join(seen_by)} can use the GPU, but the driver does not describe it ({driver.error})"
        yield _warning(check, found, _ADD_GPU_TO_CONTAINER if facts.in_container else "nvidia-smi   # see what it says")
    elif mend := _MEND_DRIVER.get((driver.error or "").partition(":")[0]):
        yield _warning(check, f"installed, but not working: {driver.error}", mend)
    elif facts.n_nvidia_on_bus:
        found = f"none that works, though {facts.n_nvidia_on_bus} NVIDIA GPU(s) are on the bus ({driver.error})"
        yield _warning(check, found, _ADD_GPU_TO_CONTAINER if facts.in_container else _UPDATE_DRIVER)
    elif "NotFound" not in (driver.error or ""):
        yield _warning(check, f"does not answer: {driver.error}", f"python -m {PROBE_MODULE} driver")
    else:
        yield _ok(check, "none, and no NVIDIA GPU that would need one")


def _gpus(facts: Facts) -> Iterator[Finding]:
    for gpu in facts.driver.gpus:
        lanes = f" x{gpu.pcie_lanes}" if gpu.pcie_lanes else ""
        bus = f"PCIe {gpu.pcie_generation}{lanes}" if gpu.pcie_generation else "PCIe not known"
        memory = f"{gpu.memory_bytes / GIB:.1f} GiB"
        yield _ok(f"GPU {gpu.index}", f"{gpu.name}, {memory}, compute capability {gpu.compute_capability}, {bus}")
    if facts.driver.gpus and _hidden(facts):
        found = f"CUDA_VISIBLE_DEVICES={facts.cuda_visible_devices!r} hides every GPU from the libraries"
        yield _warning("GPU", found, "unset CUDA_VISIBLE_DEVICES")
    elif not facts.driver.gpus and not _seen_by(facts) and (facts.driver.version or not facts.n_nvidia_on_bus):
        found = "none: CPU figures are measured here, GPU figures are compiled, projected or read 'not measured'"
        yield _warning("GPU", found, 'on a machine with an NVIDIA GPU and its driver: pip install -e ".[gpu]"')


def _numpy(facts: Facts) -> Iterator[Finding]:
    numpy, faster = facts.libraries["numpy"], facts.numpy_with_avx512_kernels
    if numpy.error or not numpy.version:
        yield _failure("NumPy", numpy.error or "not installed", "pip install --force-reinstall numpy")
        return
    yield _ok("NumPy", f"{numpy.version}, {numpy.blas or 'its own matrix product'}; computed on the CPU")
    rate, possible = numpy.gflops_per_thread, faster.gflops_per_thread if faster else None
    if rate and possible and possible > NOTABLE_GAIN * rate:
        found = (
            f"OpenBLAS uses its {numpy.blas_kernels} kernels, {rate:.0f} GFLOP/s per thread (float32); this CPU's AVX-512 "
            f"reaches {possible:.0f}, so that CPU times here look {possible / rate:.1f}x worse than they need to be"
        )
        yield _warning("BLAS kernels", found, "export OPENBLAS_CORETYPE=SkylakeX   # before Python or Jupyter starts")


def _keras(facts: Facts) -> Iterator[Finding]:
    keras = facts.libraries["keras"]
    if keras.version and not keras.error:
        yield _ok("Keras", f"{keras.version}; computed with {keras.backend}")
        return
    instead = [name for name in _KERAS_BACKENDS if facts.libraries[name].computed_on and not facts.libraries[name].error]
    fix = f"export KERAS_BACKEND={instead[0]}" if keras.version and instead else "pip install --force-reinstall -e ."
    yield _failure("Keras", keras.error or "not installed", fix)


def _framework(facts: Facts, name: str) -> Finding:
    library, title, driver = facts.libraries[name], LIBRARY_NAMES[name], facts.driver
    install = _INSTALL_WITH_CUDA[name].format(major=13 if _major(driver.cuda_version) >= 13 else 12)
    with_cuda = ", ".join(f"{part} {version}" for part, version in library.cuda.items())
    found = f"{library.version}{f' (CUDA {with_cuda})' if with_cuda else ''}"

    if not library.installed:
        return _not_installed(facts, name, install)
    if library.error:
        # Keras computes with it, or CuPy offers a GPU on which it then fails: a chapter would stop there.
        stops = name == (facts.libraries["keras"].backend or "tensorflow") or (name == "cupy" and library.gpus)
        fix = f"{install}   # all that it says: python -m {PROBE_MODULE} {name}"
        return (_failure if stops else _warning)(title, f"{library.version or 'does not load'}: {library.error}", fix)
    if library.gpus:
        found += f"; computed on {', '.join(dict.fromkeys(library.computed_on))}"
        runtime = library.cuda.get("runtime")
        if runtime and driver.cuda_version and _is_older(driver.cuda_version, runtime):
            found += f"; the driver is made for CUDA {driver.cuda_version}: code compiled to newer PTX cannot load"
            return _warning(title, found, _UPDATE_DRIVER)
        return _ok(title, found)
    if driver.gpus:
        return _blind(facts, name, found, install)
    if name == "cupy":
        leave = f"pip uninstall cupy-cuda{_major(library.cuda.get('runtime'))}x   # or leave it: without a GPU NumPy is used"
        reason = library.no_gpu_because or "no GPU"
        return _warning(title, f"{found}; cannot compute: {reason}", _UPDATE_DRIVER if facts.n_nvidia_on_bus else leave)
    return _ok(title, f"{found}; computed on the CPU")


def _not_installed(facts: Facts, name: str, install: str) -> Finding:
    title = LIBRARY_NAMES[name]
    if name == "cupy" and facts.driver.gpus:
        return _warning(title, "not installed, so that chapter 20 cannot use the GPU", install)
    if name == "tensorflow" and not facts.libraries["keras"].computed_on:
        return _failure(title, "not installed, and Keras computes with no other framework", "pip install -e .")
    use = "needed only with a GPU" if name == "cupy" else "optional"
    return _ok(title, f"not installed; {use}")


def _blind(facts: Facts, name: str, found: str, install: str) -> Finding:
    """A library that works on the CPU and does not see the GPU that the driver sees."""
    library, title, newest = facts.libraries[name], LIBRARY_NAMES[name], facts.driver.cuda_version
    runtime = library.cuda.get("runtime")
    if _hidden(facts):
        return _warning(title, f"{found}; the GPU is hidden by CUDA_VISIBLE_DEVICES", "unset CUDA_VISIBLE_DEVICES")
    if not runtime:
        return _warning(title, f"{found}; built without CUDA, so that it computes on the CPU", install)
    if newest and _major(runtime) > _major(newest):
        return _warning(
            title, f"{found}; the driver runs CUDA up to {newest} only", f"{_UPDATE_DRIVER}; or, for this driver: {install}"
        )
    reason = f" ({library.no_gpu_because})" if library.no_gpu_because else ""
    return _warning(title, f"{found}; does not see the GPU{reason}: its CUDA libraries are missing or do not fit", install)


def _seen_by(facts: Facts) -> list[str]:
    return [title for name, title in LIBRARY_NAMES.items() if facts.libraries[name].gpus]


def _hidden(facts: Facts) -> bool:
    return facts.cuda_visible_devices is not None and facts.cuda_visible_devices.strip() in ("", "-1", "NoDevFiles")


def _major(version: str | None) -> int:
    return Version(version).major if version else 0


def _is_older(driver_cuda: str, needed: str) -> bool:
    """CUDA 12.4 is older than 12.9, but not older than a plain "12"."""
    n_parts = min(2, needed.count(".") + 1)
    return Version(driver_cuda).release[:n_parts] < Version(needed).release[:n_parts]
