"""The GPU engine: float16 products on tensor cores discard columns, float32 verifies the others, kernels of ours select.

A tile of scores is one `cupy.matmul` in float16. It is off by no more than `score_slack`, so a column whose float16 score
plus that is below the k-th best of a row cannot be among the k best. `kernels/top_k.cu` scans the tile once, computes
the others in float32, and merges them into the row's best. Never the n x n matrix: a tile of it, and k keys per row.

The whole square is computed, though half would do without `Y`. Per pair, the product takes 2 d floating-point operations
and the scan 4 bytes of memory, written and read: with d = 384 on a T4 (40 TFLOP/s, 300 GB/s) 19 and 13 ps. Half the
products, each scanned along its row and its column, take 10 and 13 ps: 1.4 times faster at best, for a second kernel that
merges into rows which other tiles update at the same time.
"""

import functools
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ...devices import get_namespace, memory_stats, to_gpu
from ...results import format_value
from ..inputs import OnInvalid, refuse_invalid
from .rows import Panel, Plan, RowsOnGpu, timed

_KERNELS = Path(__file__).parent / "kernels"
_BLOCK_THREADS = 256  # of `update_best`; a segment of a row is four times that
_MOST_KEPT = 1024  # keys that a block keeps in shared memory: 28 KiB
_SHARE_OF_FREE = 0.8  # the rest is for cuBLAS and for CuPy's pool, which rounds up
_NO_COLUMN = -(2**40)  # the number of row 0 among the columns, where rows are no columns
_DISALLOW_REDUCED_PRECISION_REDUCTION = 16  # cublasMath_t; else cuBLAS may add partial sums in float16


def top_k(
    X: Any,
    Y: Any,
    k: int,
    *,
    working_memory: float | None = None,
    on_invalid: OnInvalid = "raise",
    progress: Callable[[float], None] | None = None,
    clock: dict[str, float] | None = None,
) -> tuple[Any, Any, np.ndarray, np.ndarray]:
    """The `k` rows of `Y` nearest to each row of `X` by cosine; of `X` itself, the row left out, where `Y` is None.

    What does not fit on the GPU is streamed there in chunks, each copied while the former is computed with.

    Args:
        X: (n, d) as `check_pair` gives it: NumPy, memory map or CuPy. Y: (m, d), likewise, or None.
        k: reduced to what is there to choose from: valid rows, without the row itself. Each 1,024 take a pass over all.
        working_memory: MiB for a tile of float16 scores, of one row at least; half of the free memory at most. Default: a
            quarter of it, 256 at most.
        progress: called with the share of the work that is done.
        clock: the seconds of "transfer" (scaling included), "products" and "selection" on the GPU are added to it. Each step
            then waits for the one before, so that what overlaps otherwise counts in full.

    Returns:
        indices (n, k) int64, -1 in a skipped row, and scores (n, k) float32, NaN there, both CuPy arrays; the skipped rows
        of `X` and of `Y` (of `X` where `Y` is None), NumPy int64.

    Raises:
        ValueError: rows hold NaN or infinity, and `on_invalid` is `"raise"`.
        MemoryError: the GPU has not enough memory for one row and its neighbours.
    """
    k = max(0, min(k, len(X) - 1 if Y is None else len(Y)))
    budget_bytes = int(_SHARE_OF_FREE * memory_stats("gpu").available_bytes)
    out_of_memory = get_namespace(to_gpu(np.empty(0))).cuda.memory.OutOfMemoryError
    while True:
        plan = Plan.for_memory(X, Y, k, budget_bytes, working_memory)
        try:
            return _top_k(X, Y, k, plan, on_invalid, progress, clock)
        except out_of_memory as error:
            budget_bytes //= 2
            reason = str(error)  # not the error, whose traceback holds the arrays
        warnings.warn(
            f"the GPU ran out of memory ({reason}); top_k starts again with half of what it took: "
            f"{format_value(budget_bytes, 'bytes')}. Free memory on the GPU to avoid this",
            stacklevel=2,
        )


def score_slack(d: int) -> float:
    """How far a float16 score of two (d,) rows may be from the float32 one, at most.

    With u = 2^-11, the unit roundoff of float16: rounding both rows costs 2 u, and sqrt(d) 2^-25 each for elements below
    float16's normal range; rounding the result costs u. Tensor cores add d products in float32 without rounding each sum
    to nearest (Fasi, Higham, Mikaitis and Pranesh 2021, "Numerical behavior of NVIDIA tensor cores"): less than d 2^-22.
    The float32 product is off by less than d 2^-24. Lengths are 1 up to 2^-22, whence the last term and the 3.01.
    """
    return 3.01 * 2**-11 + 2.01 * math.sqrt(d) * 2**-25 + d * 2**-21 + 2**-20


def _top_k(
    X: Any,
    Y: Any,
    k: int,
    plan: Plan,
    on_invalid: OnInvalid,
    progress: Callable[[float], None] | None,
    clock: dict[str, float] | None,
) -> tuple[Any, Any, np.ndarray, np.ndarray]:
    rows = RowsOnGpu(X, plan, clock)
    columns = rows if Y is None else RowsOnGpu(Y, plan, clock)
    for side, name in [(rows, "X"), (columns, "Y")]:
        refuse_invalid(name, side.invalid, side.n, on_invalid)
    k = max(0, min(k, columns.n - len(columns.invalid) - (Y is None)))
    xp = rows.xp
    indices, scores = xp.empty((rows.n, k), dtype=xp.int64), xp.empty((rows.n, k), dtype=xp.float32)
    best_of_block = xp.empty((min(plan.block_rows, rows.n), k), dtype=xp.uint64)
    tile = xp.empty(plan.tile_rows * plan.panel_rows, dtype=xp.float16)
    n_pairs, n_done = rows.n * columns.n * -(-k // _MOST_KEPT), 0
    for start in range(0, rows.n if k else 0, plan.block_rows):
        block = rows.block(start, min(start + plan.block_rows, rows.n))
        best = best_of_block[: block.stop - start]
        best[...] = 0
        for first in range(0, k, _MOST_KEPT):
            for panel in columns.panels():
                for top in range(start, block.stop, plan.tile_rows):
                    part = block.part(top, min(top + plan.tile_rows, block.stop))
                    best_of_part = best[top - start : part.stop - start]
                    with timed(xp, clock, "products"):
                        products = _half_products(part, panel, tile)
                    with timed(xp, clock, "selection"):
                        _update_best(best_of_part, first, products, part, panel, leave_out_self=Y is None)
                    n_done += (part.stop - part.start) * (panel.stop - panel.start)
                    if progress:
                        xp.cuda.get_current_stream().synchronize()
                        progress(n_done / n_pairs)
        arguments = best, np.int64(best.size), indices[start : block.stop], scores[start : block.stop]
        _launch(load_kernel(xp, "top_k.cu", "unpack_keys"), arguments, n_blocks=-(-best.size // _BLOCK_THREADS))
    return indices, scores, rows.invalid, columns.invalid


def _update_best(best: Any, first: int, products: Any, rows: Panel, columns: Panel, *, leave_out_self: bool) -> None:
    """Bring places `first` onwards of `best` (b, k) up to date for the b `rows` and these `columns`."""
    xp, (n_rows, n_columns) = get_namespace(best), products.shape
    k, d = best.shape[1], rows.unit.shape[1]
    n_best = min(_MOST_KEPT, k - first)
    own_column = rows.start if leave_out_self else _NO_COLUMN
    arguments = (
        *(products, np.int32(n_columns // 4), rows.unit, columns.unit, np.int32(d), np.uint32(columns.start)),
        *(np.int64(own_column), np.float32(score_slack(d)), best, np.int32(k), np.int32(first), np.int32(n_best)),
    )
    shared_bytes = 8 * (2 * n_best + 4 * _BLOCK_THREADS) + 4 * 4 * _BLOCK_THREADS
    _launch(load_kernel(xp, "top_k.cu", "update_best"), arguments, n_blocks=n_rows, shared_bytes=shared_bytes)


def _half_products(rows: Panel, columns: Panel, tile: Any) -> Any:
    """Float16 scores of `rows` with `columns`, added up in float32, in the memory of the flat `tile`.

    (rows, aligned columns), NaN for what is invalid and for what fills up the columns.
    """
    xp, n_rows, n_columns = get_namespace(tile), len(rows.unit), len(columns.half)
    out = tile[: n_rows * n_columns].reshape(n_rows, n_columns)
    cublas, handle = xp.cuda.cublas, xp.cuda.device.get_cublas_handle()
    mode = cublas.getMathMode(handle)
    cublas.setMathMode(handle, _DISALLOW_REDUCED_PRECISION_REDUCTION)
    try:
        return xp.matmul(rows.half[:n_rows], columns.half.T, out=out)
    finally:
        cublas.setMathMode(handle, mode)


@functools.cache
def load_kernel(xp: Any, file: str, name: str) -> Any:
    """A function of one of the CUDA C++ files, compiled by NVRTC for the current GPU."""
    return xp.RawModule(code=(_KERNELS / file).read_text()).get_function(name)


def _launch(kernel: Any, arguments: tuple, *, n_blocks: int, shared_bytes: int = 0) -> None:
    kernel((n_blocks,), (_BLOCK_THREADS,), arguments, shared_mem=shared_bytes)
