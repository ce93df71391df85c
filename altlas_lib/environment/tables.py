"""Findings and ceilings as a reader sees them: on a terminal, in a notebook, and in one sentence."""

import shutil
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .. import tables
from ..devices import GpuSpec
from ..results import Ceilings, Finding, Licence, format_value
from .checks import is_ready

if TYPE_CHECKING:
    from pandas.io.formats.style import Styler

_SYMBOLS = {"ok": "✓", "warning": "!", "failure": "✗"}
_COLOURS = {"ok": "color: #00704f", "warning": "color: #9a5b00", "failure": "color: #b00020; font-weight: bold"}
_CEILING_NAMES = {
    "cpu_matmul_float32": "matrix product, float32",
    "cpu_copy_bandwidth": "copy within memory, read + written",
    "gpu_matmul_float32": "matrix product, float32",
    "gpu_matmul_float16": "matrix product, float16 (tensor cores)",
    "gpu_copy_bandwidth": "copy within memory, read + written",
    "host_to_device_pageable": "host to device, pageable memory",
    "host_to_device_pinned": "host to device, pinned memory",
    "device_to_host_pageable": "device to host, pageable memory",
    "device_to_host_pinned": "device to host, pinned memory",
}


def format_findings(findings: list[Finding]) -> str:
    """The findings for a terminal, each with its fix below it, and the verdict as last line."""
    status_width, check_width = len("[warning]"), max((len(finding.check) for finding in findings), default=0)
    margin = " " * (status_width + check_width + 4)
    width = max(shutil.get_terminal_size((120, 24)).columns, len(margin) + 40)
    lines = []
    for finding in findings:
        head = f"{f'[{finding.status}]':<{status_width}}  {finding.check:<{check_width}}  "
        lines += textwrap.wrap(finding.found, width, initial_indent=head, subsequent_indent=margin)
        if finding.fix:
            lines.append(f"{margin}fix: {finding.fix}")  # unbroken: it is there to be copied
    return "\n".join([*lines, "", _verdict(findings)])


def _verdict(findings: list[Finding]) -> str:
    verdict = "ready" if is_ready(findings) else "not ready"
    counts = [(sum(finding.status == status for finding in findings), status) for status in ("failure", "warning")]
    problems = ", ".join(f"{n} {status}{'s' if n > 1 else ''}" for n, status in counts if n)
    return f"{verdict} ({problems})" if problems else verdict


def findings_table(findings: list[Finding]) -> "Styler":
    """The findings for a notebook: status with its symbol, check, what was found, and the fix."""
    rows = [(f"{_SYMBOLS[f.status]} {f.status}", f.check, f.found, f.fix or "") for f in findings]
    colours = [_COLOURS[f.status] for f in findings]
    table = tables.show(rows, ["status", "check", "found", "fix"]).styler().apply(lambda _: colours, subset=["status"])
    return table.set_properties(subset=["status", "check"], **{"white-space": "nowrap"})


def ceilings_table(ceilings: Ceilings) -> tables.Table:
    """The rates for a notebook: device, median, slowest and fastest run, and basis; what was not measured says so."""
    rows = []
    for field, name in _CEILING_NAMES.items():
        rate = getattr(ceilings, field)
        if rate is None:
            rows.append(("GPU", name, "not measured", "", "", ""))
            continue
        median, slowest, fastest = (format_value(value, rate.unit) for value in (rate.value, rate.low, rate.high))
        rows.append((rate.device, name, median, slowest, fastest, f"{rate.basis}, {rate.n_runs} runs"))
    return tables.show(rows, ["device", "ceiling", "median", "slowest run", "fastest run", "basis"])


def licence_table(found: Sequence[Licence]) -> tables.Table:
    """Declared licences; what needs a look before a closed-source product ships is flagged."""
    columns = ["package", "version", "declared licence; bundled parts need review", "look at"]
    return tables.show([(each.package, each.version, each.declared, each.flag) for each in found], columns)


def summarize(findings: list[Finding], ceilings: Ceilings, target_gpu: GpuSpec) -> str:
    """What chapter 00 found, in one sentence with device and basis of each number."""
    product, copy = ceilings.cpu_matmul_float32, ceilings.cpu_copy_bandwidth
    here = f"{product.device} multiplies float32 matrices at {product} and copies memory at {copy}"
    if (on_gpu := ceilings.gpu_matmul_float32) and (bandwidth := ceilings.gpu_copy_bandwidth):
        here += f", {on_gpu.device} at {on_gpu} and {bandwidth}"
    peak = format_value(target_gpu.float32_tflops * 1000, "GFLOP/s")
    paper = f"{peak} and {format_value(target_gpu.memory_bandwidth_gb_per_s, 'GB/s')}"
    return f"This machine is {_verdict(findings)}: {here} (measured); the data sheet of the {target_gpu.name} promises {paper}."
