"""The GPU engine: half-precision products on tensor cores bound, float32 products verify, CUDA C++ kernels select.

As on the CPU: some rows, drawn at random, are compared with all, which gives a score that nearly every row's k nearest
reach; then the upper triangle is worked through tile by tile, each of which serves its rows and its columns; the rows for
which the guess was too high are compared again. A tile is one `cupy.matmul` in half precision, off by no more than
`score_slack`. One kernel collects the pairs that may count, another computes them in float32 and updates the k best of both
rows (`kernels/top_k.cu`). Products go on in a stream of their own while the tile before is looked through.
"""

import contextlib
import math
import operator
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from ...devices import get_namespace, memory_stats, to_cpu, to_gpu
from ...results import format_value
from ..inputs import OnInvalid
from ..scheme import PairList, join_keys, pilot_rows
from .launch import launch, padded
from .rows import N_COUNTERS, Matrix, Panel, Plan, Streams

_SHARE_OF_FREE = 0.8  # the rest is for cuBLAS and for CuPy's pool, which rounds up
_WARP_ROWS, _WARP_COLUMNS = 16, 32 * 8  # of a tile, as `collect_pairs` shares it out: HEIGHT, and 32 threads of WIDTH
_FEW_COLUMNS = 64  # of the first tile of rows of which nothing is known, or four times k; all of them are verified
_DISALLOW_REDUCED_PRECISION_REDUCTION = 16  # cublasMath_t; else cuBLAS may add partial sums in half precision
_ADMIT_ALL, _ADMIT_NONE = join_keys(np.int64([2**32 - 1]), np.float32([-2]))[0], np.uint64(2**64 - 1)
_NO_DIAGONAL = np.int64(-(2**40))
# Of CuPy, the CUDA runtime and driver, cuBLAS (which says so when it cannot have its work space), and NumPy.
_OUT_OF_MEMORY = ("out of memory", "out_of_memory", "memoryallocation", "alloc_failed", "cublas_status_not_initialized")
# Of CuPy and the dynamic linker, which load cuBLAS and NVRTC when they are needed, and of a driver older than they are.
_NOT_LOADED = ("failed to load", "cannot open shared object", "no kernel image", "insufficient", "unsupported ptx")


def score_slack(d: int) -> float:
    """How far a half-precision score of two (d,) rows may be from the float32 one, at most.

    With u = 2^-11, the unit roundoff of float16: rounding both rows costs 2 u, and sqrt(d) 2^-25 each for elements below
    float16's normal range; rounding the result costs u. Tensor cores add d products in float32 without rounding each sum
    to nearest (Fasi, Higham, Mikaitis and Pranesh 2021, "Numerical behavior of NVIDIA tensor cores"): less than d 2^-22.
    The float32 product is off by less than d 2^-24. Lengths are 1 up to 2^-22, whence the last term and the 3.01.
    """
    return 3.01 * 2**-11 + 2.01 * math.sqrt(d) * 2**-25 + d * 2**-21 + 2**-20


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

    What does not fit on the GPU is streamed there, each part copied while those before are computed with.

    Args:
        X: (n, d) as `check_pair` gives it: NumPy, memory map or CuPy. Y: (m, d), likewise, or None.
        k: reduced to what is there to choose from: valid rows, without the row itself.
        working_memory: MiB for tiles of scores; half of the free memory at most. Default: a quarter of it, or what 8,192
            rows and columns take.
        progress: called with the share of the work that is done.
        clock: the seconds of "transfer" (scaling included), "products" and "selection" on the GPU are added to it. Each step
            then waits for the one before, so that what overlaps otherwise counts in full.

    Returns:
        indices (n, k) int64, -1 in a skipped row, and scores (n, k) float32, NaN there, both CuPy arrays; the skipped rows
        of `X` and of `Y` (of `X` where `Y` is None), NumPy int64.

    Raises:
        ValueError: rows hold NaN or infinity, and `on_invalid` is `"raise"`.
        MemoryError: the GPU has not enough memory for eight rows and their neighbours.
        RuntimeError: CUDA's libraries cannot be loaded.
    """
    k = max(0, min(k, len(X) - 1 if Y is None else len(Y)))
    act = operator.methodcaller("top_k", k)
    return _search(X, Y, k, act, working_memory, clock, on_invalid=on_invalid, progress=progress)


def pairs_above(
    X: Any,
    Y: Any,
    threshold: float,
    *,
    max_pairs: int,
    working_memory: float | None = None,
    on_invalid: OnInvalid = "raise",
    progress: Callable[[float], None] | None = None,
) -> tuple[np.ndarray, ...]:
    """All pairs that score `threshold` or more, in no order; arguments and errors as of `top_k` and `similarity.pairs_above`.

    Returns:
        rows of `X` and of `Y` (n_pairs,) int64, scores (n_pairs,) float32, skipped rows of both; NumPy arrays.
    """
    act = operator.methodcaller("pairs_above", PairList(threshold, max_pairs))
    return _search(X, Y, 0, act, working_memory, on_invalid=on_invalid, progress=progress)


def _search(
    X: Any, Y: Any, k: int, act: Callable, working_memory: float | None, clock: dict[str, float] | None = None, **options: Any
) -> tuple[Any, ...]:
    """What `act` makes of a `_Search` with these options, and the skipped rows of both.

    By a plan that fits into the memory that is free; by a smaller one where it does not after all.
    """
    shapes = [rows.shape for rows in (X, Y) if rows is not None]
    budget_bytes = int(_SHARE_OF_FREE * memory_stats("gpu").available_bytes)
    while True:
        plan = Plan.for_memory(shapes, k, budget_bytes, working_memory)
        try:
            with _streams(clock) as streams:
                search = _Search(X, Y, plan, streams, k or np.inf, **options)
                return *act(search), search.rows.skipped, search.columns.skipped
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"  # not the error, whose traceback holds the arrays
            if isinstance(error, ImportError) or any(sign in reason.lower() for sign in _NOT_LOADED):
                raise RuntimeError(
                    f"CUDA's libraries cannot be used here ({reason}); use device='cpu', and let `altlas check` say what is "
                    "missing: a CuPy that fits the driver brings them (pip install 'cupy-cuda12x[ctk]')"
                ) from None
            if not any(sign in reason.lower() for sign in _OUT_OF_MEMORY):
                raise
        search = None  # its arrays with it
        budget_bytes //= 2
        warnings.warn(
            f"the GPU ran out of memory ({reason}); the search starts again with half of what it took: "
            f"{format_value(budget_bytes, 'bytes')}. Free memory on the GPU to avoid this",
            stacklevel=3,
        )


@contextlib.contextmanager
def _streams(clock: dict[str, float] | None) -> Iterator[Streams]:
    """The GPU's streams, until all is done, with products that are added up in float32."""
    xp = get_namespace(to_gpu(np.empty(0)))
    streams, cublas, handle = Streams(xp, clock), xp.cuda.cublas, xp.cuda.device.get_cublas_handle()
    mode = cublas.getMathMode(handle)
    cublas.setMathMode(handle, _DISALLOW_REDUCED_PRECISION_REDUCTION)
    try:
        yield streams
    finally:
        streams.finish()
        cublas.setMathMode(handle, mode)


class _Best:
    """The k best of n rows so far, (n, k) keys in no order, and a floor for each: a key that k reach, or are guessed to."""

    def __init__(self, xp: Any, n: int, k: int, floor: np.uint64 = _ADMIT_ALL) -> None:
        self.keys, self.floors = xp.zeros((n, k), dtype=xp.uint64), xp.full(n, floor, dtype=xp.uint64)

    def of(self, some: slice) -> tuple[Any, Any]:
        return self.keys[some], self.floors[some]


class _Search:
    """The comparison of the rows of `X` with those of `Y` or, where that is None, with each other.

    `n_duplicates`: how many rows of one direction a row needs among its neighbours.
    """

    def __init__(
        self, X: Any, Y: Any, plan: Plan, streams: Streams, n_duplicates: float, on_invalid: OnInvalid, progress: Any = None
    ) -> None:
        self.xp, self.streams, self.progress, self.of_itself = streams.xp, streams, progress, Y is None
        self.side, self.d, self.slack = plan.tile_side, padded(X.shape[1]), np.float32(score_slack(X.shape[1]))
        # Before rows are loaded, for which products wait: so they wait for what is still done with this memory too.
        self.tiles = [self.xp.empty(self.side**2, dtype=np.float16) for _ in range(2)]
        self.scanned: list[Any] = [None, None]  # events: what was in the tile is needed no more
        self.pairs = self.xp.empty(self.side**2, dtype=np.uint32)
        self.counters, self.n_tiles = self.xp.empty(N_COUNTERS, dtype=np.uint32), 0
        self.closed = self.xp.full(self.side, _ADMIT_NONE, dtype=np.uint64)
        at_most = n_duplicates + self.of_itself
        self.rows = self.columns = Matrix(X, plan, streams, on_invalid, "X", at_most if self.of_itself else np.inf)
        if not self.of_itself:
            self.columns = Matrix(Y, plan, streams, on_invalid, "Y", at_most)

    def top_k(self, k: int) -> tuple[Any, Any]:
        """Indices and scores as of the function."""
        xp, rows, n = self.xp, self.rows, len(self.rows.X)
        k = max(0, min(k, self.columns.n_valid - self.of_itself))
        answer = xp.full((n, k), -1, dtype=xp.int64), xp.full((n, k), xp.nan, dtype=xp.float32)
        panels = map(operator.itemgetter(0), map(rows.panels, range(rows.n_panels if k else 0)))
        if not self.of_itself:
            for panel in panels:
                self._write(self._one_way(panel, k), panel.ids, answer)
        elif k and len(rows):
            pilots = self._load(pilot_rows(len(rows)))
            # A guess is a score, whatever the column.
            guess = to_cpu(self._one_way(pilots, k).floors).min() & np.uint64(0xFFFFFFFF << 32)
            best = _Best(xp, len(rows), k, guess)
            for panel in panels:
                self._update(best, panel, upper=True)
            self._write(best, xp.asarray(rows.ids.astype(np.uint32)), answer)
            missed = to_cpu(xp.flatnonzero((best.keys == 0).any(axis=1)))
            del pilots, best
            for start in range(0, len(missed), rows.plan.panel_rows):
                some = self._load(missed[start : start + rows.plan.panel_rows])
                self._write(self._one_way(some, k), some.ids, answer)
            for values in answer if len(rows.redundant) else ():
                values[xp.asarray(rows.redundant)] = values[xp.asarray(rows.instead)]
        if self.progress:
            self.progress(1.0)
        return answer

    def pairs_above(self, found: PairList) -> tuple[np.ndarray, ...]:
        """Rows, columns and scores of all pairs that reach the threshold, in no order."""
        xp, rows = self.xp, self.rows
        floor = join_keys(np.int64([2**32 - 1]), found.threshold[None])[0]
        all_floors, scores = _Best(xp, len(rows), 0, floor), xp.empty(self.side**2, dtype=xp.float32)
        for (panel,) in map(rows.panels, range(rows.n_panels)):
            for pairs, vectors, (row_ids, column_ids), *_ in self._candidates(all_floors, panel, upper=self.of_itself):
                with self.streams.step(self.streams.selecting, "verification"):
                    launch(xp, "score_pairs", (*pairs, *vectors, scores))
                    which, n_pairs, stride = pairs
                    places = xp.flatnonzero(scores[: int(n_pairs[0])] >= found.threshold)
                    ids = row_ids[which[places] // stride], column_ids[which[places] % stride]
                    found.add(*(to_cpu(of).astype(np.int64) for of in ids), to_cpu(scores[places]))
        return found.arrays()

    def _load(self, some: np.ndarray) -> Panel:
        """Some of the rows that take part, in a panel of their own."""
        return self.rows.load(self.rows.ids[some], self.rows.new_panel(len(some)))

    def _write(self, best: _Best, ids: Any, answer: tuple[Any, Any]) -> None:
        n, k = best.keys.shape
        launch(self.xp, "write_answer", (best.keys, np.int64(n), np.int32(k), ids, *answer), n_warps=n)

    def _one_way(self, panel: Panel, k: int) -> _Best:
        """The best of the rows of a panel among all columns."""
        best = _Best(self.xp, panel.n, k)
        self._update(best, panel)
        return best

    def _update(self, best: _Best, panel: Panel, *, upper: bool = False) -> None:
        """Bring keys and floors up to date with all tiles of a panel; arguments as of `_candidates`."""
        numbers = np.int32(self.of_itself), np.int32(best.keys.shape[1])
        for pairs, vectors, ids, of_rows, of_columns in self._candidates(best, panel, upper=upper):
            with self.streams.step(self.streams.selecting, "verification"):
                launch(self.xp, "update_best", (*pairs, *vectors, *ids, *numbers, *of_rows, *of_columns))

    def _candidates(self, best: _Best, panel: Panel, *, upper: bool) -> Iterator[tuple[tuple[Any, ...], ...]]:
        """The pairs of a panel's rows and all columns that may reach the floor of their row or, in a triangle, of their column.

        Args:
            best: of the rows of the panel; with `upper` of all, as of the columns.
            upper: only pairs whose column is not below the row.

        Yields:
            For each tile arguments of the kernels that go on with it: pairs, their number and the length of a row of the tile;
            vectors of rows and columns, and their length; ids of both; keys and floors of rows; and of columns.
        """
        streams, nobody, k = self.streams, (self.closed[:1], self.closed), best.keys.shape[1]
        before = self.rows.start(panel.number) if upper else 0
        for rows, others, columns, left in self._tiles(panel, k, upper=upper):
            buffer, counter = self.n_tiles % 2, self.n_tiles % N_COUNTERS
            n_rows, n_columns = rows.stop - rows.start, columns.stop - columns.start
            stride = padded(n_columns)
            products = self.tiles[buffer][: n_rows * stride].reshape(n_rows, stride)
            of_rows = best.of(slice(before + rows.start, before + rows.stop))
            of_columns = best.of(slice(left, left + n_columns)) if upper and k else nobody
            diagonal = np.int64(before + rows.start - left) if upper else _NO_DIAGONAL
            with streams.step(streams.products, "products"):
                if self.scanned[buffer] is not None:
                    streams.products.wait_event(self.scanned[buffer])
                self.xp.matmul(panel.half[rows], others.half[columns.start : columns.start + stride].T, out=products)
                computed = streams.products.record()
            with streams.step(streams.selecting, "selection"):
                streams.selecting.wait_event(computed)
                if counter == 0:
                    self.counters[...] = 0
                pairs = self.pairs, self.counters[counter : counter + 1]
                numbers = np.uint32(n_rows), np.uint32(n_columns), np.uint32(stride), diagonal
                n_warps = -(-stride // _WARP_COLUMNS) * -(-n_rows // _WARP_ROWS)
                arguments = products, *numbers, of_rows[1], of_columns[1], self.slack, *pairs
                launch(self.xp, "collect_pairs", arguments, n_warps=n_warps)
                self.scanned[buffer] = streams.selecting.record()
            self.n_tiles += 1
            vectors = panel.unit[rows], others.unit[columns], np.int32(self.d)
            yield (*pairs, np.uint32(stride)), vectors, (panel.ids[rows], others.ids[columns]), of_rows, of_columns

    def _tiles(self, panel: Panel, k: int, *, upper: bool) -> Iterator[tuple[slice, Panel, slice, int]]:
        """Blocks of the rows of a panel, each with blocks of all columns: rows, panel and columns of it, the first of all.

        Where each row looks for its `k` best among all columns, the first blocks are narrow, and those that follow as wide as
        all before: floors rise as more and more columns are seen. Panels that have a number count as progress.
        """
        start = 0 if panel.number is None else self.rows.start(panel.number)
        n_pairs = len(self.rows) * (len(self.columns) + upper * self.side)
        n_done = start * (2 * len(self.columns) - start if upper else len(self.columns))
        for number in range(panel.number if upper else 0, self.columns.n_panels):
            others = self.columns.panels(*([panel.number] if upper else []), number)[-1]
            first = self.columns.start(number)
            for top in range(0, panel.n, self.side):
                rows = slice(top, min(top + self.side, panel.n))
                left = max(first, start + top) if upper else first
                while left < first + others.n:
                    width = self.side if upper or not k else min(self.side, max(padded(4 * k), _FEW_COLUMNS, left // 8 * 8))
                    columns = slice(left - first, min(left - first + width, others.n))
                    yield rows, others, columns, left
                    left = first + columns.stop
                    n_done += (rows.stop - rows.start) * (columns.stop - columns.start) * (1 + upper)
                    if self.progress and panel.number is not None and n_done < n_pairs:
                        self.streams.selecting.synchronize()  # what was asked for is not done yet
                        self.progress(n_done / n_pairs)
