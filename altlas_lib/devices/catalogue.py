"""The GPU catalogue: data-sheet figures of GPUs that a machine need not have, so that a plan can name one."""

import difflib
import functools
import re
from itertools import accumulate

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveFloat, PositiveInt

from ..paths import shipped_toml


class GpuSpec(BaseModel):
    """A row of `gpus.toml`: peak figures as the vendor states them, not what a program reaches."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1)
    aliases: tuple[str, ...] = Field(default=(), description="what NVIDIA's driver calls it")
    architecture: str
    compute_capability: str = Field(pattern=r"^\d+\.\d$")
    memory_gib: PositiveFloat
    usable_memory_gib: PositiveFloat = Field(description="that CUDA offers to programs, its own context included")
    memory_bandwidth_gb_per_s: PositiveFloat
    float32_tflops: PositiveFloat = Field(description="outside tensor cores, no TF32")
    float16_tensor_tflops: PositiveFloat = Field(description="summed in float32; dense, without the factor for sparsity")
    multiprocessors: PositiveInt
    boost_clock_ghz: PositiveFloat
    l2_cache_mib: PositiveFloat
    pcie_generation: PositiveInt
    nvlink_gb_per_s: NonNegativeFloat = Field(default=0, description="to all others, both directions together")
    power_w: PositiveFloat
    source: str = Field(min_length=1)

    def is_called(self, name: str) -> bool:
        """Whether `find_gpu` takes a name for it: its own, its driver's, or its leading words (`"H100"` for `"H100 SXM"`)."""
        return _key(name) in map(_key, (self.name, *self.aliases, *accumulate(self.name.split(), "{} {}".format)))


class Multiprocessor(BaseModel):
    """What one multiprocessor has, the same for all GPUs of a compute capability."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    float32_cores: PositiveInt
    max_threads: PositiveInt
    shared_memory_kib: PositiveInt
    shared_memory_per_block_kib: PositiveInt = Field(description="that a kernel gets which asks for more than 48 KiB")
    process_nm: PositiveFloat = Field(description="that the chip is made in: energy per operation grows with it")
    float64_ratio: PositiveFloat = Field(description="float64 rate / float32 rate outside of tensor cores")
    float64_tensor_factor: PositiveFloat = Field(default=1, description="by how much tensor cores speed up float64 products")


@functools.cache
def load_catalogue() -> tuple[GpuSpec, ...]:
    """All rows of the catalogue, smallest memory first as in the file."""
    return tuple(GpuSpec.model_validate(row) for row in shipped_toml(__package__, "gpus.toml")["gpu"])


@functools.cache
def find_multiprocessor(compute_capability: str) -> Multiprocessor:
    """The multiprocessor of `GpuSpec.compute_capability`, which the catalogue has for each of its GPUs."""
    return Multiprocessor.model_validate(shipped_toml(__package__, "gpus.toml")["multiprocessor"][compute_capability])


def _key(name: str) -> str:
    """`name` without what people and drivers spell differently: `"NVIDIA GeForce RTX-4090"` -> `"rtx4090"`."""
    return re.sub(r"[^a-z0-9]|nvidia|tesla|geforce", "", name.lower())


def find_gpu(name: str) -> GpuSpec:
    """The catalogue's row for `name`, however it is spelled: `"T4"`, `"Tesla T4"`, `"rtx-4090"`, `"NVIDIA H200"`.

    Raises:
        ValueError: no such row, or more than one; names the nearest.
    """
    catalogue, wanted = load_catalogue(), _key(name)
    matches = [gpu for gpu in catalogue if wanted == _key(gpu.name)] or [gpu for gpu in catalogue if gpu.is_called(name)]
    if len(matches) == 1:
        return matches[0]
    by_key = {_key(gpu.name): gpu for gpu in catalogue}
    near = matches or [by_key[key] for key in difflib.get_close_matches(wanted, by_key, n=3)]
    raise ValueError(
        f"GPU {name!r} is {'ambiguous' if matches else 'not in the catalogue'}; "
        + (f"did you mean {' or '.join(repr(gpu.name) for gpu in near)}? " if near else "")
        + f"Known: {', '.join(gpu.name for gpu in catalogue)}"
    )
