"""Findings and ceilings as a reader sees them: on a terminal, in a notebook, and in one sentence."""

import shutil
import textwrap
from collections.abc import Sequence

from .. import tables
from ..devices import GpuSpec
from ..paths import shipped_toml
from ..results import Ceilings, Finding, Licence, format_value
from .checks import is_ready

_SYMBOLS = {"ok": "✓", "warning": "!", "failure": "✗"}
CEILINGS = {  # kind of rate, where, and of what
    "cpu_matmul_float32": ("matrix product", "this CPU", "float32"),
    "cpu_copy_bandwidth": ("copy", "this CPU", "memory, read + written"),
    "gpu_matmul_float32": ("matrix product", "this GPU", "float32"),
    "gpu_matmul_float16": ("matrix product", "this GPU", "float16 (tensor cores)"),
    "gpu_copy_bandwidth": ("copy", "this GPU", "memory, read + written"),
    "host_to_device_pageable": ("copy", "host to GPU", "pageable memory"),
    "host_to_device_pinned": ("copy", "host to GPU", "pinned memory"),
    "device_to_host_pageable": ("copy", "GPU to host", "pageable memory"),
    "device_to_host_pinned": ("copy", "GPU to host", "pinned memory"),
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


def findings_table(findings: list[Finding]) -> tables.Table:
    """The findings for a notebook: status with its symbol, check, what was found, and the fix."""
    rows = [(f"{_SYMBOLS[f.status]} {f.status}", f.check, f.found, f.fix or "") for f in findings]
    return tables.show(rows, ["status", "check", "found", "fix"])


def ceilings_table(ceilings: Ceilings) -> tables.Table:
    """The rates for a notebook: device, median, slowest and fastest run, and basis; what was not measured is in one row."""
    rows, missing = [], [where for field, (_, where, _) in CEILINGS.items() if not getattr(ceilings, field)]
    for field, (kind, where, what) in CEILINGS.items():
        if rate := getattr(ceilings, field):
            row = {"where": where, "ceiling": f"{kind}, {what}"}
            figures = {"median": rate.value, "slowest run": rate.low, "fastest run": rate.high}
            row |= {name: format_value(value, rate.unit) for name, value in figures.items()}
            rows.append(row | {"basis": f"{rate.basis}, {rate.n_runs} runs", "device": rate.device})
    if missing:
        rows.append({"where": "; ".join(dict.fromkeys(missing)), "ceiling": f"{len(missing)} rates"})
    return tables.show(rows, missing="not measured")


def licence_table(found: Sequence[Licence]) -> tables.Table:
    """Declared licences; what needs a look before a closed-source product ships is flagged."""
    columns = ["package", "version", "declared licence; bundled parts need review", "look at"]
    rows = [(each.package, each.version, each.declared, each.flag) for each in found]
    return tables.show(rows, columns, folded=f"{len(rows)} packages, {sum(bool(each.flag) for each in found)} to look at")


def framework_table() -> tables.Table:
    """What works with which framework, and where a test shows it."""
    return tables.show(shipped_toml(__package__, "frameworks.toml")["row"], folded="what was tested, by framework")


def summarize(findings: list[Finding], ceilings: Ceilings, target_gpu: GpuSpec) -> str:
    """What chapter 00 found, in one sentence with device and basis of each number."""
    product, copy = ceilings.cpu_matmul_float32, ceilings.cpu_copy_bandwidth
    here = f"{product.device} multiplies float32 matrices at {product} and copies memory at {copy}"
    if (on_gpu := ceilings.gpu_matmul_float32) and (bandwidth := ceilings.gpu_copy_bandwidth):
        here += f", {on_gpu.device} at {on_gpu} and {bandwidth}"
    peak = format_value(target_gpu.float32_tflops * 1000, "GFLOP/s")
    paper = f"{peak} and {format_value(target_gpu.memory_bandwidth_gb_per_s, 'GB/s')}"
    return f"This machine is {_verdict(findings)}: {here} (measured); the data sheet of the {target_gpu.name} promises {paper}."
