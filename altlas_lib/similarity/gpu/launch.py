"""How the CUDA C++ kernels are compiled and started."""

import functools
from pathlib import Path
from typing import Any

_KERNELS = Path(__file__).parent / "kernels"
_BLOCK_THREADS = 256
_MOST_BLOCKS = 1024  # of a kernel whose warps take turns: enough for every GPU to be full
_ALIGNMENT = 8  # elements: 16 bytes in half precision, for tensor cores and for loads of that width


def padded(n: int) -> int:
    """`n` rounded up to what is read at once."""
    return -(-n // _ALIGNMENT) * _ALIGNMENT


@functools.cache
def load_kernel(xp: Any, file: str, name: str) -> Any:
    """A function of one of the CUDA C++ files, compiled by NVRTC for the current GPU."""
    return xp.RawModule(code=(_KERNELS / file).read_text()).get_function(name)


def launch(xp: Any, name: str, arguments: tuple, *, n_warps: int | None = None) -> None:
    """Start a kernel of `top_k.cu` in the current stream, with so many warps, or with those that take turns."""
    n_blocks = _MOST_BLOCKS if n_warps is None else -(-n_warps * 32 // _BLOCK_THREADS)
    load_kernel(xp, "top_k.cu", name)((n_blocks,), (_BLOCK_THREADS,), arguments)
