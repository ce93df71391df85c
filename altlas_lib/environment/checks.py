"""From facts to findings: what is well, what is not, and the command that mends it. Nothing here asks the machine.

A check is a table, row of `checks.toml` -> whether it holds: the first row that holds is said, and where none does, nothing.
"""

import functools
import shlex
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from .. import extras
from ..paths import shipped_toml
from ..results import Finding
from .facts import KERAS_BACKENDS, PROBE_MODULE, Facts

GIB = 2**30
# A run writes some tens of MB; TensorFlow and the data of a chapter take one to two GiB of memory at the quick sizes.
LEAST_DISK_BYTES, AMPLE_DISK_BYTES = GIB // 2, 2 * GIB
LEAST_MEMORY_BYTES, AMPLE_MEMORY_BYTES = 3 * GIB // 2, 4 * GIB
BUSY_PERCENT = 20
# A gain below this is no reason to bother the user: a rate of one run differs from the next by some per cent.
NOTABLE_GAIN = 1.25

_TEXTS = Environment(undefined=StrictUndefined, autoescape=False)
_TEXTS.filters |= {"gib": lambda n_bytes: f"{n_bytes / GIB:.1f} GiB", "quote": shlex.quote}
_TEXTS.globals |= {"AMPLE_DISK_BYTES": AMPLE_DISK_BYTES, "AMPLE_MEMORY_BYTES": AMPLE_MEMORY_BYTES, "PROBE_MODULE": PROBE_MODULE}
_TEXTS.globals["add"] = extras.command_for
_template = functools.cache(_TEXTS.from_string)


Check = tuple[str, str, dict[str, Any], Mapping[str, Any]]  # name, section of checks.toml, its rows, what their texts need


def findings_from(facts: Facts) -> list[Finding]:
    """All findings, in the order in which a reader mends them: machine first, then driver, then libraries."""
    return say(_checks(facts), facts=facts)


def say(checks: Iterable[Check], **shared: Any) -> list[Finding]:
    """Of each check the first row that holds, in the words of checks.toml, which `shared` and the check's values fill."""
    findings = []
    for check, section, rows, values in checks:
        if "library" in values and not values["library"].answered:
            section, rows, values = "library", {"not answered": True}, {"name": check.lower()} | values
        if row := next((name for name, holds in rows.items() if holds), None):
            status, *texts = shipped_toml(__package__, "checks.toml")[section][row]
            found, *fix = (_template(text).render(**shared, **values) for text in texts)
            findings.append(Finding(check=check, status=status, found=found, fix=fix[0] if fix else None))
    return findings


def is_ready(findings: list[Finding]) -> bool:
    """Whether the machine can run the book on what it has: no finding is a failure."""
    return all(finding.status != "failure" for finding in findings)


def _checks(facts: Facts) -> Iterator[Check]:
    driver, numpy, keras = facts.libraries["driver"], facts.libraries["numpy"], facts.libraries["keras"]
    for check, rows in _machine(facts).items():
        yield check, check, rows, {}
    yield "NVIDIA driver", "NVIDIA driver", _driver(facts), {}
    for gpu in driver.gpus:
        yield f"GPU {gpu.index}", "GPU n", {"ok": True}, {"gpu": gpu}
    # Without a driver to a GPU on the bus the driver's own finding says why there is none.
    is_missing = not driver.gpus and (driver.version or not facts.n_nvidia_on_bus)
    yield "GPU", "GPU", {"hidden": driver.gpus and _is_hidden(facts), "none": is_missing}, {}
    yield "NumPy", "NumPy", {"fails": numpy.error or not numpy.installed, "ok": True}, {"library": numpy}
    rate, possible = numpy.gflops_per_thread or 0.0, facts.libraries.get("numpy with AVX-512", numpy).gflops_per_thread or 0.0
    yield "BLAS kernels", "BLAS kernels", {"slow": possible >= NOTABLE_GAIN * rate > 0}, {"rate": rate, "possible": possible}
    usable = [name for name in KERAS_BACKENDS if facts.libraries[name].computed_on and not facts.libraries[name].error]
    rows = {"not installed": not keras.installed, "ok": not keras.error, "other backend": usable, "fails": True}
    yield "Keras", "Keras", rows, {"library": keras, "usable": usable}
    for name, (title, install) in shipped_toml(__package__, "checks.toml")["frameworks"].items():
        library, major = facts.libraries[name], max(12, min(13, _major(driver.cuda_version)))
        with_cuda = ", ".join(f"{part} {version}" for part, version in library.cuda.items())
        found = f"{library.version}{f' (CUDA {with_cuda})' if with_cuda else ''}"
        values = {"name": name, "library": library, "found": found, "install": install.format(major=major)}
        yield title, "framework", _framework(facts, name), values


def _machine(facts: Facts) -> dict[str, dict[str, Any]]:
    sets, python = set(facts.cpu.instruction_sets), SpecifierSet(facts.python_required)
    disk_bytes, memory_bytes = facts.disk_free_bytes, facts.memory_available_bytes
    is_another_kernel = facts.kernel_python and Path(facts.kernel_python).parent != Path(facts.python).parent
    return {
        "Python": {"another": not python.contains(facts.python_version, prereleases=True), "ok": True},
        "Packages": {"unmet": facts.unmet_requirements, "ok": True},
        "Disk": {
            "read-only": not facts.outputs_writable,
            "ok": disk_bytes >= AMPLE_DISK_BYTES,
            "low": disk_bytes >= LEAST_DISK_BYTES,
            "full": True,
        },
        "Memory": {"ok": memory_bytes >= AMPLE_MEMORY_BYTES, "low": memory_bytes >= LEAST_MEMORY_BYTES, "too little": True},
        "CPU": {"busy": facts.cpu_busy_percent > BUSY_PERCENT, "ok": True},
        "Instruction sets": {
            "no AVX2": sets and not sets & {"AVX2", "NEON"},
            "no VNNI": "AVX2" in sets and not sets & {"AVX-512 VNNI", "AVX-VNNI"},
            "ok": True,
        },
        "Notebook kernel": {
            "not installed": facts.kernel_python == "",
            "missing": facts.kernel_python is None,
            "another": is_another_kernel,
            "ok": True,
        },
    }


def _driver(facts: Facts) -> dict[str, Any]:
    driver = facts.libraries["driver"]
    code = (driver.error or "").partition(":")[0]
    return {
        "fails now": driver.version and driver.error,
        "too old": driver.version and _is_older(driver.cuda_version, "12.0"),
        "ok": driver.version,
        code: code in shipped_toml(__package__, "checks.toml")["NVIDIA driver"],
        "outside the container": facts.n_nvidia_on_bus and facts.in_container,
        "missing": facts.n_nvidia_on_bus,
        "silent": "NotFound" not in code,
        "not needed": True,
    }


def _framework(facts: Facts, name: str) -> dict[str, Any]:
    library, driver, keras, is_cupy = facts.libraries[name], facts.libraries["driver"], facts.libraries["keras"], name == "cupy"
    runtime = library.cuda.get("runtime")
    return {
        "chapter 20 needs it": not library.installed and is_cupy and driver.gpus,
        "Keras needs it": not library.installed and name == "tensorflow" and keras.installed and not keras.computed_on,
        "not installed": not library.installed,
        # Keras computes with it, or CuPy offers a GPU on which it then fails: a chapter would stop there.
        "stops a chapter": library.error and (name == (keras.backend or "tensorflow") or (is_cupy and library.gpus)),
        "fails": library.error,
        "newer PTX": library.gpus and _is_older(driver.cuda_version, runtime),
        "on the GPU": library.gpus,
        "hidden": driver.gpus and _is_hidden(facts),
        "without CUDA": driver.gpus and not runtime,
        "newer than the driver": driver.gpus and driver.cuda_version and _major(runtime) > _major(driver.cuda_version),
        "blind": driver.gpus,
        "CuPy without a driver": is_cupy and facts.n_nvidia_on_bus,
        "CuPy without a GPU": is_cupy,
        "ok": True,
    }


def _is_hidden(facts: Facts) -> bool:
    return facts.cuda_visible_devices is not None and facts.cuda_visible_devices.strip() in ("", "-1", "NoDevFiles")


def _major(version: str | None) -> int:
    return Version(version).major if version else 0


def _is_older(driver_cuda: str | None, needed: str | None) -> bool:
    """CUDA 12.4 is older than 12.9, but not older than a plain "12"; what is not known is not older."""
    if not driver_cuda or not needed:
        return False
    n_parts = min(2, needed.count(".") + 1)
    return Version(driver_cuda).release[:n_parts] < Version(needed).release[:n_parts]
