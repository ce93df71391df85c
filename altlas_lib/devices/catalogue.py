"""The GPU catalogue: data-sheet figures of GPUs that a machine need not have, so that a plan can name one."""

import difflib
import functools
import re
import tomllib
from importlib import resources

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat


class GpuSpec(BaseModel):
    """A row of `gpus.toml`: peak figures as the vendor states them, not what a program reaches."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    architecture: str
    compute_capability: str = Field(pattern=r"^\d+\.\d$")
    memory_gib: PositiveFloat
    memory_bandwidth_gb_per_s: PositiveFloat
    float32_tflops: PositiveFloat
    float16_tensor_tflops: PositiveFloat = Field(description="dense, without the data sheet's factor for sparsity")
    pcie_generation: int
    power_w: PositiveFloat
    source: str = Field(min_length=1)


@functools.cache
def load_catalogue() -> tuple[GpuSpec, ...]:
    """All rows of the catalogue, smallest memory first as in the file."""
    with resources.files(__package__).joinpath("gpus.toml").open("rb") as file:
        rows = tomllib.load(file)["gpu"]
    return tuple(GpuSpec.model_validate(row) for row in rows)


def _key(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower().replace("nvidia", "").replace("tesla", "").replace("geforce", ""))


def find_gpu(name: str) -> GpuSpec:
    """The catalogue's row for `name`, however it is spelled: `"T4"`, `"Tesla T4"`, `"rtx-4090"`, `"NVIDIA H200"`.

    Raises:
        ValueError: no such row, or more than one; names the nearest.
    """
    rows = {_key(gpu.name): gpu for gpu in load_catalogue()}
    wanted = _key(name)
    if wanted in rows:
        return rows[wanted]
    matches = [gpu for key, gpu in rows.items() if wanted and key.startswith(wanted)]
    if len(matches) == 1:
        return matches[0]
    near = [gpu.name for gpu in matches] or [rows[key].name for key in difflib.get_close_matches(wanted, rows, n=3)]
    hint = (
        f"did you mean {' or '.join(map(repr, near))}?" if near else f"known: {', '.join(gpu.name for gpu in load_catalogue())}"
    )
    raise ValueError(f"GPU {name!r} is {'ambiguous' if matches else 'not in the catalogue'}; {hint}")
