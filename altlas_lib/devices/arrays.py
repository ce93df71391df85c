"""One spelling for NumPy on the CPU and CuPy on the GPU. CuPy is imported when a GPU array is asked for, never before."""

import functools
import sys
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from .host import memory_available_bytes, memory_limit_bytes


@functools.cache
def has_gpu() -> bool:
    """Whether CuPy is installed and sees a CUDA GPU."""
    try:
        import cupy
    except ImportError:
        return False
    return bool(cupy.cuda.is_available())


def _cupy() -> ModuleType:
    if not has_gpu():
        problem = "device 'gpu': CuPy sees no CUDA GPU here"
        raise RuntimeError(f"{problem}; use device='cpu', or run `altlas check` to learn what is missing")
    import cupy

    return cupy


def get_namespace(x: Any) -> ModuleType:
    """`cupy` for a CuPy array, `numpy` for everything else."""
    cupy = sys.modules.get("cupy")  # whoever holds a CuPy array has imported CuPy
    return cupy if cupy is not None and isinstance(x, cupy.ndarray) else np


def to_gpu(x: Any) -> Any:
    """A CuPy array with the values and dtype of `x`; `x` itself where it already is one.

    Raises:
        RuntimeError: there is no GPU, or no CuPy.
    """
    return _cupy().asarray(x)


def to_cpu(x: Any) -> np.ndarray:
    """A NumPy array with the values and dtype of `x`; waits for the GPU where `x` is a CuPy array."""
    return get_namespace(x).asnumpy(x) if get_namespace(x) is not np else np.asarray(x)


def synchronize() -> None:
    """Wait until the current GPU has done all that was asked of it; nothing without a GPU. Call before reading a clock."""
    if has_gpu():
        _cupy().cuda.get_current_stream().synchronize()


@dataclass(frozen=True)
class MemoryStats:
    """Bytes of one device's memory; what other programs use is not available, what CuPy's pool keeps for arrays to come is."""

    device: str
    total_bytes: int
    available_bytes: int


def memory_stats(device: str = "cpu") -> MemoryStats:
    """Memory of `"cpu"` (the host, within its container's limit) or `"gpu"` (the current CUDA device).

    Raises:
        ValueError: `device` is neither.
        RuntimeError: `"gpu"` where CuPy sees none.
    """
    if device == "cpu":
        return MemoryStats("cpu", memory_limit_bytes(), memory_available_bytes())
    if device == "gpu":
        cupy = _cupy()
        free, total = cupy.cuda.runtime.memGetInfo()
        return MemoryStats("gpu", total, free + cupy.get_default_memory_pool().free_bytes())
    raise ValueError(f"device {device!r}: expected 'cpu' or 'gpu'")
