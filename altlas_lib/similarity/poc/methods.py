"""The ways to the same answer that the proof of concept compares."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from ...devices import describe_cpu, get_namespace, has_gpu, to_gpu
from ..engine import Neighbors, top_k
from .matrix import calculate_similarity_gpu_kernel, top_k_by_matrix

_LARGEST_MATRIX_BYTES = 2**30  # 16,384 texts; beyond that the matrix is slow to no purpose where it fits at all


@dataclass(frozen=True)
class Method:
    """A way to compute the k nearest of every row: `method.top_k(method.place(X), k)`."""

    name: str
    top_k: Callable[[Any, int], Neighbors]
    builds_matrix: bool = False
    on_gpu: bool = False
    stays_on_gpu: bool = False  # input and answer lie in the GPU's memory: no transfers

    def place(self, X: Any) -> Any:
        """`X` where this method expects it."""
        return to_gpu(X) if self.stays_on_gpu else X

    @property
    def device_name(self) -> str:
        """The device that computes, in words; of a GPU the current one."""
        if not self.on_gpu:
            return str(describe_cpu())
        cuda = get_namespace(to_gpu(np.empty(0))).cuda
        return cuda.runtime.getDeviceProperties(cuda.Device().id)["name"].decode()


METHODS = (
    Method("NumPy, full matrix", partial(top_k_by_matrix, device="cpu"), builds_matrix=True),
    Method("CPU tiles, float32", partial(top_k, device="cpu", method="float32")),
    Method("CPU tiles", partial(top_k, device="cpu")),
    Method("CuPy, full matrix", partial(top_k_by_matrix, device="gpu"), builds_matrix=True, on_gpu=True),
    Method(
        "CUDA C++ kernel, full matrix",
        partial(top_k_by_matrix, device="gpu", on_gpu=calculate_similarity_gpu_kernel),
        builds_matrix=True,
        on_gpu=True,
    ),
    Method("CuPy tiles", partial(top_k, device="gpu"), on_gpu=True),
    Method("CuPy tiles, no transfers", partial(top_k, device="gpu"), on_gpu=True, stays_on_gpu=True),
)


def available_methods(n_texts: int) -> list[Method]:
    """The methods that can run here: those of the GPU where there is one, the full matrix up to 1 GiB."""
    return [
        method
        for method in METHODS
        if (has_gpu() or not method.on_gpu) and (not method.builds_matrix or 4 * n_texts**2 <= _LARGEST_MATRIX_BYTES)
    ]
