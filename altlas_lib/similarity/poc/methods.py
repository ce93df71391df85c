"""The ways to the same answer that the proof of concept compares.

The whole n x n matrix, while it fits: the plan's CPU original, its plain CuPy port, and a CUDA C++ kernel; and the engine.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from ...devices import describe_cpu, get_namespace, has_gpu, to_cpu, to_gpu
from ..engine import Neighbors, top_k
from ..gpu import load_kernel
from ..inputs import check_k, check_pair, check_vectors, refuse_invalid, require_memory, unit_rows, where_it_was

_LARGEST_MATRIX_BYTES = 2**30  # 16,384 texts; beyond that the matrix is slow to no purpose where it fits at all
_TOO_LARGE = "NaN, infinity or a norm above 1e19"
_SELECTED_ROWS = 512  # of the matrix at a time, when the nearest are picked out


def calculate_similarity_cpu(X: Any) -> np.ndarray:
    """The plan's CPU original: (n, n) float32 cosines of the (n, d) rows of `X`, in plain NumPy.

    float32 throughout, so a norm below 1e-19 counts as zero; `cosine_similarity` has no such limit.

    Raises:
        TypeError, ValueError: `X` is not (n, d) real numbers, holds NaN or infinity, or a row has a norm above 1e19.
    """
    return _plain_similarity(to_cpu(check_vectors(X)).astype(np.float32))


def calculate_similarity_gpu_cupy(X: Any) -> Any:
    """The plan's port: the same lines on CuPy's arrays. The answer is where `X` was, on the CPU or on the GPU.

    Raises:
        RuntimeError: there is no GPU, or no CuPy.
        TypeError, ValueError: as `calculate_similarity_cpu`.
    """
    X = check_vectors(X)
    return where_it_was(X, _plain_similarity(to_gpu(X).astype("float32")))


def _plain_similarity(X: Any) -> Any:
    xp = get_namespace(X)
    with np.errstate(over="ignore"):  # it is refused in words
        norms = xp.linalg.norm(X, axis=1, keepdims=True)
    refuse_invalid("X", to_cpu(xp.flatnonzero(~xp.isfinite(norms))), len(X), problem=_TOO_LARGE)
    norms[norms == 0] = 1
    X = X / norms
    return xp.dot(X, X.copy().T)  # a copy: X @ X.T of one array crashes OpenBLAS at n = 30,000


def calculate_similarity_gpu_kernel(X: Any) -> Any:
    """The plan's optional kernel: (n, n) float32 cosines of the (n, d) rows of `X` by a tiled CUDA C++ kernel of ours.

    It shows what cuBLAS is worth: compare with `calculate_similarity_gpu_cupy`. The answer is where `X` was.

    Raises:
        RuntimeError: there is no GPU, or no CuPy.
        TypeError, ValueError: as `calculate_similarity_cpu`.
    """
    X = check_vectors(X)
    on_gpu = to_gpu(X)
    xp, (n, d) = get_namespace(on_gpu), X.shape
    similarity, lengths = xp.empty((n, n), dtype=xp.float32), xp.empty(n, dtype=xp.float32)
    if n:
        arguments = xp.ascontiguousarray(on_gpu, dtype=xp.float32), np.int64(n), np.int64(d), similarity, lengths
        load_kernel(xp, "tiled_similarity.cu", "tiled_similarity")((-(-n // 16),) * 2, (16, 16), arguments)
    refuse_invalid("X", to_cpu(xp.flatnonzero(~xp.isfinite(lengths))), n, problem=_TOO_LARGE)
    return where_it_was(X, similarity)


def cosine_similarity(X: Any, Y: Any = None) -> np.ndarray:
    """Cosine similarity of every row of `X` (n, d) with every row of `Y` (m, d), or of `X`: (n, m) float32 in [-1, 1].

    On the CPU, of rows of any length. `X` and `Y` dense, as `top_k`. A zero row has similarity 0 with all, itself included.

    Raises:
        MemoryError: the matrix does not fit; `top_k` never builds it.
        TypeError, ValueError: as `top_k`.
    """
    X, Y = check_pair(X, Y)
    n, m = len(X), len(Y)
    require_memory(4 * n * m, f"the float32 matrix of {n:,} x {m:,} similarities", "use top_k, which never builds it")
    left, right = (unit_rows(to_cpu(rows), name=name)[0] for rows, name in ((X, "X"), (Y, "Y")))
    similarity = left @ right.T
    return np.clip(similarity, -1, 1, out=similarity)


def top_k_by_matrix(similarity_of: Callable[[Any], Any], X: Any, k: int = 10) -> Neighbors:
    """The neighbours of `top_k` by way of the plan's whole matrix, for comparison. `X` as `calculate_similarity_cpu`.

    Args:
        similarity_of: what computes the matrix, one of the three functions above; where it does, the nearest are picked out.
    """
    similarity = similarity_of(X if similarity_of is calculate_similarity_cpu else to_gpu(X))
    xp, n = get_namespace(similarity), len(similarity)
    k = max(0, min(check_k(k), n - 1))
    indices, scores = xp.empty((n, k), dtype=xp.int64), xp.empty((n, k), dtype=xp.float32)
    for start in range(0, n if k else 0, _SELECTED_ROWS):
        block = -similarity[start : start + _SELECTED_ROWS]
        block[xp.arange(len(block)), xp.arange(start, start + len(block))] = xp.inf
        indices[start : start + len(block)], smallest = k_smallest(block, k)
        scores[start : start + len(block)] = 0 - smallest  # not -smallest: that gives -0.0
    return Neighbors(where_it_was(X, indices), where_it_was(X, scores))


def k_smallest(values: Any, k: int) -> tuple[Any, Any]:
    """Where the `k` smallest values of each row stand, ascending, equal ones by column; and the values.

    `partition` finds the k-th smallest value but not which of several equal ones are meant: those are counted off from
    the left, and only in rows that have too many. Smallest and not largest, because CuPy's `partition` is a selection
    for small k and a full sort for others.

    Args:
        values: (b, m) without NaN, C-contiguous, m >= k >= 1.

    Returns:
        (b, k) int64 and (b, k) of the dtype of `values`.
    """
    xp = get_namespace(values)
    kth = xp.partition(values, k - 1, axis=1)[:, k - 1 : k].copy()  # a copy, so that the partitioned block is freed
    chosen = values <= kth
    if int(xp.count_nonzero(chosen)) > len(values) * k:
        crowded = xp.flatnonzero(xp.count_nonzero(chosen, axis=1) > k)
        equal = values[crowded] == kth[crowded]
        n_needed = k - xp.count_nonzero(chosen[crowded] & ~equal, axis=1)
        surplus = equal & (xp.cumsum(equal, axis=1, dtype=xp.int32) > n_needed[:, None])
        chosen[crowded] ^= surplus
    columns = xp.flatnonzero(chosen).reshape(len(values), k) % values.shape[1]
    smallest = xp.take_along_axis(values, columns, axis=1)
    order = xp.argsort(smallest, axis=1, kind="stable")
    return xp.take_along_axis(columns, order, axis=1), xp.take_along_axis(smallest, order, axis=1)


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
    Method("NumPy, full matrix", partial(top_k_by_matrix, calculate_similarity_cpu), True),
    Method("CPU tiles, float32", partial(top_k, device="cpu", method="float32")),
    Method("CPU tiles", partial(top_k, device="cpu")),
    Method("CuPy, full matrix", partial(top_k_by_matrix, calculate_similarity_gpu_cupy), True, on_gpu=True),
    Method("CUDA C++ kernel, full matrix", partial(top_k_by_matrix, calculate_similarity_gpu_kernel), True, on_gpu=True),
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
