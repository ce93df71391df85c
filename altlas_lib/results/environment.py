"""Chapter 00: is this machine ready, and what are its ceilings?"""

from typing import Literal, Self

from pydantic import Field, model_validator

from ..devices import GpuSpec
from .provenance import ChapterResult
from .quantity import Model, Quantity


class Finding(Model):
    """One line of the environment check."""

    check: str
    status: Literal["ok", "warning", "failure"]
    found: str
    fix: str | None = None  # what to do about it, in one line; none when ok

    @model_validator(mode="after")
    def _problems_have_a_fix(self) -> Self:
        if (self.status == "ok") != (self.fix is None):
            raise ValueError(f"a finding has a fix exactly when it is not ok, got {self!r}")
        return self


class Ceilings(Model):
    """The best rates that this machine reaches; what it does not have is None, "not measured".

    Matrix products count 2 n^3 operations, copies within a memory the bytes read and those written, copies between host and
    GPU the bytes that travel.
    """

    cpu_matmul_float32: Quantity
    cpu_copy_bandwidth: Quantity
    gpu_matmul_float32: Quantity | None = None
    gpu_matmul_float16: Quantity | None = None
    gpu_copy_bandwidth: Quantity | None = None
    host_to_device_pageable: Quantity | None = None
    host_to_device_pinned: Quantity | None = None
    device_to_host_pageable: Quantity | None = None
    device_to_host_pinned: Quantity | None = None


class Licence(Model):
    """An installed tool's declared licence; bundled parts need review."""

    package: str
    version: str
    declared: str
    flag: Literal["copyleft", "proprietary", "not declared"] | None = None


class EnvironmentResult(ChapterResult, chapter="environment", number="00"):
    ready: bool  # the machine can run the book on what it has
    findings: list[Finding]
    ceilings: Ceilings
    target_gpu: GpuSpec
    licences: list[Licence] = Field(default=[])
