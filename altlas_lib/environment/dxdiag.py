"""Whether a Windows machine suits CUDA, by the report that its DxDiag saves: `DxDiag.txt`, on any system.

The labels of that report were English on every Windows that was seen (docs/windows.md), but nothing rests on them alone: an
adapter is a paragraph with a PCI address and memory sizes, a driver's version has four parts, and memory is what ends in MB.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from .. import devices
from ..paths import MIB, read_bounded, shipped_toml
from ..results import Finding
from ..tables import plain
from .checks import Check, say

_LARGEST_BYTES, _LONGEST_LINE, _MOST_ADAPTERS = 16 * MIB, 400, 64
# Linux in WSL2 gets half of the memory (Microsoft, "Advanced settings configuration in WSL"), and a chapter takes 4 GiB.
_LEAST_RAM_MIB = 8 * 1024
_LEAST_WSL_BUILD = 19044  # Windows 10 21H2; NVIDIA, "CUDA on WSL User Guide"
_LEAST_GPU_MIB = 3 * 1024

_WIDE = {  # what a file in UTF-16 begins with, with or without a byte order mark
    re.compile(rb"\xff\xfe|\xfe\xff", re.S): "utf-16",
    re.compile(rb".\0", re.S): "utf-16-le",
    re.compile(rb"\0.", re.S): "utf-16-be",
}
_LINE = re.compile(r"\s*([^:：]{1,60}?)\s*[:：]\s*(.*?)\s*")
_DRIVER = re.compile(r"\d+\.\d+\.(\d+)\.(\d{1,4})\b")
_MEMORY = re.compile(r"(\d{1,9})(?:[.,]\d)?\s*M\w")
_RAM = re.compile(r"(\d{1,9})\s*M\w\s?[^\d,]{2,12}")
_BUILD = re.compile(r"\b10\.00?\D{1,12}(\d{5})\b")
_PCI = re.compile(r"PCI\\VEN_([0-9A-F]{4})&DEV_[0-9A-F]{4}", re.I)
_SIZE_OR_SLOT = re.compile(r"\(.*?\)|[- ]\d+ ?gb\b|[- ](pcie|sxm\d?)\b|(?<=\d)ti\b")


class Adapter(NamedTuple):
    """A display adapter; None: the report does not say."""

    name: str
    is_nvidia: bool
    compute_capability: str | None
    dedicated_mib: int | None
    driver: float | None  # NVIDIA's version, such as 573.22, which ends Windows' 32.0.15.7322


class DxDiag(NamedTuple):
    """What a report says of a machine."""

    adapters: list[Adapter]
    ram_mib: int | None
    windows_build: int | None


def read_dxdiag(path: str | Path) -> DxDiag:
    """Read a report in UTF-8, UTF-16 or a code page, of which only the ASCII part is looked at.

    Raises:
        ValueError: the file cannot be read, is larger than 16 MiB, or names no display adapter.
    """
    try:
        content = read_bounded(path, _LARGEST_BYTES)
    except OSError as error:
        raise ValueError(f"{error}; give the file that DxDiag saves by 'Save All Information'") from None
    encoding = next((name for start, name in _WIDE.items() if start.fullmatch(content[:2])), "utf-8")
    lines = [line[:_LONGEST_LINE] for line in content.decode(encoding, "replace").splitlines()]
    # The same adapter stands there once for each of its displays.
    adapters = list(dict.fromkeys(filter(None, map(_adapter, _paragraphs(lines)))))[:_MOST_ADAPTERS]
    if not adapters:
        raise ValueError(f"{path} names no display adapter: is it DxDiag's report? Save it by 'Save All Information' of dxdiag")
    values = [found[2] for line in lines if (found := _LINE.fullmatch(line))]
    ram = next((found for value in values if (found := _RAM.fullmatch(value))), None)
    build = next((found for line in lines if (found := _BUILD.search(line))), None)
    return DxDiag(adapters, int(ram[1]) if ram else None, int(build[1]) if build else None)


def _paragraphs(lines: list[str]) -> Iterator[list[tuple[str, str]]]:
    """The labels and values of lines that belong together."""
    paragraph = []
    for line in lines:
        found = _LINE.fullmatch(line)
        if not found or found[1].lower() == "card name":
            yield paragraph
            paragraph = []
        if found:
            paragraph.append((found[1].lower(), found[2]))
    yield paragraph


def _adapter(paragraph: list[tuple[str, str]]) -> Adapter | None:
    values = [value for _, value in paragraph]
    memory = {label: int(found[1]) for label, value in paragraph if (found := _MEMORY.fullmatch(value))}
    vendor = next((found[1].upper() for value in values if (found := _PCI.search(value))), None)
    if not (memory and vendor) and not (paragraph and paragraph[0][0] == "card name" and values[0]):
        return None
    sizes = list(memory.values())
    # In this order: display memory, which is the sum of the other two, dedicated, shared.
    dedicated = memory.get("dedicated memory", sizes[1] if len(sizes) > 2 else sizes[0] if sizes else None)
    name, driver = plain(values[0])[:100], next((found for value in values if (found := _DRIVER.match(value))), None)
    is_nvidia = "nvidia" in name.lower() if vendor is None else vendor == "10DE"
    version = int(driver[1][-1] + driver[2].zfill(4)) / 100 if driver and is_nvidia else None
    return Adapter(name, is_nvidia, find_capability(name) if is_nvidia else None, dedicated, version)


def find_capability(name: str) -> str | None:
    """The compute capability of an NVIDIA GPU by the name that Windows shows; None: the table does not have it."""
    table = shipped_toml(__package__, "gpu_names.toml")
    words = _SIZE_OR_SLOT.sub(" ", name.lower()).split()
    key = " ".join(word for word in words if word not in table["left_out"])
    return next((capability for capability, names in table["names"].items() if key in names), None)


def findings_from_dxdiag(report: DxDiag, *, gpu_only: bool = False) -> list[Finding]:
    """What suits, what does not, and what to do about it; with `gpu_only` of GPUs and their driver only."""
    cuda = shipped_toml(__package__, "gpu_names.toml")["cuda"]
    checks = [*_gpu_checks(report, cuda), *(() if gpu_only else _machine_checks(report))]
    return say(checks, report=report, build=_LEAST_WSL_BUILD, cuda=cuda)


def _gpu_checks(report: DxDiag, cuda: dict[str, dict]) -> Iterator[Check]:
    found = [adapter for adapter in report.adapters if adapter.is_nvidia]
    if not found:
        yield "GPU", "DxDiag GPU", {"none": True}, {}
    for number, gpu in enumerate(found):
        capability, driver, memory_mib = float(gpu.compute_capability or 0), gpu.driver or 0, gpu.dedicated_mib or 0
        rows = {"unknown": not capability, "too old": capability < cuda["12"]["capability"]}
        yield f"GPU {number}", "DxDiag GPU", rows | {"CUDA 12": capability < cuda["13"]["capability"], "ok": True}, {"gpu": gpu}
        promised_mib = _promised_mib(gpu.name)
        rows = {"unknown": not memory_mib, "less": memory_mib < 0.85 * promised_mib, "little": memory_mib < _LEAST_GPU_MIB}
        yield f"GPU {number} memory", "DxDiag memory", rows | {"ok": True}, {"gpu": gpu, "promised": promised_mib / 1024}
        rows = {"unknown": not driver, "too old": driver < cuda["12"]["driver"], "CUDA 12": driver < cuda["13"]["driver"]}
        yield f"GPU {number} driver", "DxDiag driver", rows | {"ok": True}, {"gpu": gpu}


def _machine_checks(report: DxDiag) -> Iterator[Check]:
    ram_mib, build, has_gpu = report.ram_mib or 0, report.windows_build or 0, any(each.is_nvidia for each in report.adapters)
    yield "Memory", "DxDiag RAM", {"unknown": not ram_mib, "little": ram_mib < 0.95 * _LEAST_RAM_MIB, "ok": True}, {}
    rows = {"unknown": not build, "too old": build < _LEAST_WSL_BUILD, "ok": has_gpu, "no GPU": True}
    yield "WSL2", "DxDiag WSL2", rows, {}
    yield "Windows", "DxDiag Windows", {"ok": has_gpu}, {}


def _promised_mib(name: str) -> float:
    """By the catalogue's data sheet; 0 where it does not have the GPU."""
    try:
        return devices.find_gpu(name).memory_gib * 1024
    except ValueError:
        return 0
