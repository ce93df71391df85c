"""The whole n x n matrix, while it fits: the plan's CPU original, its plain CuPy port, and a checked one for use."""

from typing import Any, Literal

import numpy as np

from ..devices import get_namespace, to_cpu, to_gpu
from .engine import Neighbors, nearest_by_blocks, rows_per_block
from .inputs import Device, check_pair, check_vectors, choose_device, raise_invalid, require_memory, unit_rows, where_it_was


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
    if not xp.isfinite(norms).all():
        raise_invalid("X", to_cpu(xp.flatnonzero(~xp.isfinite(norms))), len(X), "NaN, infinity or a norm above 1e19")
    norms[norms == 0] = 1
    X = X / norms
    return xp.dot(X, X.copy().T)  # a copy: X @ X.T of one array crashes OpenBLAS at n = 30,000


def cosine_similarity(X: Any, Y: Any = None, *, device: Device = "auto") -> Any:
    """Cosine similarity of every row of `X` (n, d) with every row of `Y` (m, d), or of `X`: (n, m) float32 in [-1, 1].

    A CuPy array where `X` is one, else a NumPy array. A zero row has similarity 0 with all, itself included.

    Raises:
        MemoryError: the matrix does not fit; `top_k` never builds it.
        TypeError, ValueError, RuntimeError: as `top_k`.
    """
    of_itself = Y is None
    X, Y = check_pair(X, Y)
    device = choose_device(device, X)
    n_bytes, what = 4 * len(X) * len(Y), f"the float32 matrix of {len(X):,} x {len(Y):,} similarities"
    for place in {device, "cpu" if get_namespace(X) is np else device}:
        require_memory(n_bytes, what, place, "use top_k, which never builds it")
    left, _ = unit_rows(X, device)
    right = left.copy() if of_itself else unit_rows(Y, device, name="Y")[0]
    xp = get_namespace(left)
    similarity = xp.matmul(left, right.T)
    return where_it_was(X, xp.clip(similarity, -1, 1, out=similarity))


def top_k_by_matrix(X: Any, k: int = 10, *, device: Literal["cpu", "gpu"] = "cpu") -> Neighbors:
    """The neighbours of `top_k` by way of the plan's whole matrix, for comparison. `X` as `calculate_similarity_cpu`."""
    similarity = calculate_similarity_gpu_cupy(to_gpu(X)) if device == "gpu" else calculate_similarity_cpu(X)

    def negated_cosines(start: int, stop: int) -> Any:
        return -similarity[start:stop]

    n_rows = rows_per_block(similarity, similarity, None, device)
    indices, scores = nearest_by_blocks(negated_cosines, similarity, len(similarity), k, n_rows, leave_out_self=True)
    return Neighbors(where_it_was(X, indices), where_it_was(X, scores))
