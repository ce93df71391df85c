"""The CPU engine: symmetric tiles, threads, cheap products that bound, exact verification of what is left."""

import contextlib
import copy
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..inputs import OnInvalid, check_n_jobs, refuse_more_than
from ..scheme import pilot_rows, split_keys
from .compiled import LANES, Scratch, Side, find, score_of, select
from .preparation import Prepared, UnitRows
from .products import Float32, Int8, int8_problem
from .sparse import SparseUnitRows, search_sparse, search_sparse_above
from .threads import Block, blocks_of, for_each, rectangular_tiles, square_tiles

_TILE_ROWS = 512  # products of a tile, 1 MiB, stay in the L2 cache of a core until they are looked through
_N_CANDIDATES = 4096  # that are verified together
_PAIRS_FOR_A_THREAD = 2**16  # below, starting it takes longer than its work
_TILES_TO_JUDGE, _TILES_TO_TRY = 16, 8
_SAMPLE_ROWS = 2048  # that show what the data are like
_PILOTS_FROM = 8192  # rows; below, comparing pilots costs what they save
_INT8_FROM = 2048  # rows and columns; below, preparing the codes costs what they save


@dataclass(frozen=True)
class Settings:
    """How to compute; the answer does not depend on it."""

    methods: Sequence[type]  # Float32, Int8, or both, of which the cheaper is used
    n_threads: int
    tile_rows: int
    wide_columns: int | None = None  # of a tile, where a few rows are compared with many; None: as many as rows
    progress: Callable[[float], None] | None = None  # called with the share that is done
    clock: dict[str, float] | None = None  # CPU seconds of all threads are added to it, by step

    @property
    def tile_columns(self) -> int:
        return self.wide_columns or self.tile_rows

    @classmethod
    def choose(
        cls,
        method: str,
        shape: tuple[int, int],
        n_jobs: int | None = None,
        working_memory: float | None = None,
        progress: Any = None,
        clock: dict[str, float] | None = None,
    ) -> "Settings":
        """Settings for a comparison of `shape` (rows, columns), from the arguments of `top_k`.

        Raises:
            RuntimeError: `method="int8"` where int8 products are missing or inexact.
        """
        n_threads = useful_threads(check_n_jobs(n_jobs), *shape)
        if method == "int8" and (problem := int8_problem()):
            raise RuntimeError(f"method='int8': {problem}; use method='float32', or 'auto', which finds out")
        if method == "auto":
            methods = [Int8, Float32] if min(shape) >= _INT8_FROM and not int8_problem() else [Float32]
        else:
            methods = {"float32": [Float32], "int8": [Int8]}[method]
        # Several tiles for each thread, so that none waits long for the last.
        tile_rows = min(_TILE_ROWS, max(shape) // (2 * n_threads) + LANES)
        if working_memory is not None:
            tile_rows = min(tile_rows, int((working_memory * 2**20 / n_threads / 4) ** 0.5))
        tile_rows = max(1, tile_rows // LANES) * LANES
        return cls(methods, n_threads, tile_rows, progress=progress, clock=clock)


def useful_threads(n_threads: int, n_rows: int, n_columns: int) -> int:
    """Of so many, those that a comparison of this shape keeps busy."""
    return max(1, min(n_threads, n_rows * n_columns // _PAIRS_FOR_A_THREAD))


class _Choice:
    """The first method, and where its bounds leave so much to verify that selecting costs more than multiplying, the second
    for a few tiles, and then for good if they cost less.

    int8 products win almost everywhere. float32 products, three to four times as dear, bound so closely that hardly any
    pair is verified in vain.
    """

    def __init__(self, n_methods: int) -> None:
        self.number = 0
        self.is_made = n_methods == 1
        self._costs: tuple[list, list] = ([], [])  # of whole tiles: seconds of multiplying, of selecting

    def learn(self, number: int, products_s: float, selection_s: float) -> None:
        """A whole tile by a method took so long, in CPU seconds. The first ones leave most to verify, and do not count."""
        if self.is_made:
            return
        costs = self._costs[number]
        costs.append((products_s, selection_s))
        if number == 0 and len(costs) == 2 * _TILES_TO_JUDGE:
            multiplying, selecting = np.median(costs[_TILES_TO_JUDGE:], axis=0)
            self.is_made = selecting <= multiplying
            self.number = 0 if self.is_made else 1
        elif number == 1 and len(costs) == _TILES_TO_TRY:
            first, second = (np.median(np.sum(some[-_TILES_TO_JUDGE:], axis=1)) for some in self._costs)
            self.number, self.is_made = int(second < first), True


class Columns:
    """Rows that others are compared with, and what each method needs of them."""

    def __init__(self, B: UnitRows, settings: Settings, *, for_many_calls: bool = False) -> None:
        self.B, self.blocks = B, blocks_of(len(B), settings.tile_columns)
        sample = B[:: -(-len(B) // _SAMPLE_ROWS)]
        self.methods = [method(sample) for method in settings.methods]
        options = {"n_threads": settings.n_threads, "for_many_calls": for_many_calls}
        self.prepared = [method.prepare(B, self.blocks, **options) for method in self.methods]


class Tiles:
    """Tiles of `A` with rows `B`, or with itself (`B is A`)."""

    def __init__(self, A: UnitRows, columns: Columns, settings: Settings) -> None:
        self.A, self.B, self.settings = A, columns.B, settings
        self.row_blocks, self.column_blocks = blocks_of(len(A), settings.tile_rows), columns.blocks
        self.methods, self.right = columns.methods, columns.prepared
        self.left = self.right
        if self.B is not A:
            self.left = [method.prepare(A, self.row_blocks, settings.n_threads) for method in self.methods]
        self.choice = _Choice(len(self.methods))

    def sides(self, of_a: tuple, of_b: tuple, first: tuple[int, int]) -> list[tuple[Side, Side]]:
        """For each method what `select` needs of both sides; of_a, of_b: thresholds and keys."""
        return [
            (
                Side(self.A.rows, self.A.inverse_norms, left, *of_a, first[0]),
                Side(self.B.rows, self.B.inverse_norms, right, *of_b, first[1]),
            )
            for (_, left), (_, right) in zip(self.left, self.right, strict=True)
        ]

    def of_rows(self, some: np.ndarray) -> "Tiles":
        """Tiles of some rows of `A` with `B`, which share what is prepared and learned."""
        few = copy.copy(self)
        few.A, few.settings = self.A[some], replace(self.settings, progress=None)
        few.row_blocks = blocks_of(len(some), self.settings.tile_rows)
        few.left = [method.prepare(few.A, few.row_blocks, self.settings.n_threads) for method in self.methods]
        return few

    def for_each(self, act: Callable) -> None:
        """Call `act(method, products, position, a, b, scratch)` for every tile: the number of the method, and two blocks."""
        n_a, n_b = len(self.row_blocks), len(self.column_blocks)
        n_rows, n_columns = self.settings.tile_rows, self.settings.tile_columns
        is_square = self.B is self.A
        tiles = square_tiles(n_a) if is_square else rectangular_tiles(n_a, n_b)
        n_tiles = n_a * (n_a + 1) // 2 if is_square else n_a * n_b

        spent_by_workers: list[dict[str, float]] = []

        n_candidates = max(_N_CANDIDATES, 2 * n_columns)

        def make_worker() -> Callable[[tuple[int, int]], None]:
            buffer = np.empty(n_rows * n_columns + LANES, np.int32)
            products = [buffer.view(method.dtype) for method in self.methods]
            scratch = Scratch(
                *(np.empty(n_columns + LANES, np.float32) for _ in range(2)),
                pairs=np.empty((n_candidates, 2), np.int32),
                scores=np.empty(n_candidates, np.float32),
            )

            spent = {"products": 0.0, "selection": 0.0}
            spent_by_workers.append(spent)

            def worker(position: tuple[int, int]) -> None:
                a, b = self.row_blocks[position[0]], self.column_blocks[position[1]]
                number = self.choice.number
                (left, _), (right, _) = self.left[number], self.right[number]
                started = time.thread_time()
                self.methods[number].multiply(left, a, right, b, position[1], products[number])
                multiplied = time.thread_time()
                act(number, products[number], position, a, b, scratch)
                finished = time.thread_time()
                spent["products"] += multiplied - started
                spent["selection"] += finished - multiplied
                if a != b and (a.stop - a.start, b.stop - b.start) == (n_rows, n_columns):
                    self.choice.learn(number, multiplied - started, finished - multiplied)

            return worker

        progress = self.settings.progress
        report = (lambda n_done: progress(n_done / n_tiles)) if progress else None
        for_each(tiles, make_worker, min(self.settings.n_threads, n_tiles), progress=report)
        if self.settings.clock is not None:
            for step, seconds in ((step, seconds) for spent in spent_by_workers for step, seconds in spent.items()):
                self.settings.clock[step] = self.settings.clock.get(step, 0.0) + seconds


def search(
    A: UnitRows,
    B: UnitRows,
    k: int,
    settings: Settings,
    *,
    both_ways: bool = False,
    first: tuple[int, int] = (0, 0),
    thresholds: tuple[Any, Any] = (None, None),
    columns: Columns | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The keys of the `k` best of each row of `A` among `B`, and with `both_ways` those of `B` among `A`.

    With `B is A` the rows are compared with each other and not with themselves.

    Most of what is verified would only serve to raise the thresholds, so they are guessed from some rows (`pilot_rows`).

    Args:
        first: the index of the first row of each in the answer.
        thresholds: (n,) float32 for each, rigorous lower bounds of each row's k-th best score; None: not known.
        columns: of `B`, where it is prepared already.

    Returns:
        (n, k) and (m, k) uint64, descending, 0 where nothing reached the threshold.
    """
    tiles = Tiles(A, columns or Columns(B, settings), settings)
    if both_ways or thresholds[0] is not None or len(A) < _PILOTS_FROM:
        return _compare(tiles, k, both_ways, first, thresholds)
    guess = score_of(_compare_some(tiles, pilot_rows(len(A)), k, first)[:, -1].min())
    of_a, of_b = _compare(tiles, k, False, first, (np.full(len(A), guess, np.float32), None))
    missed = np.flatnonzero(of_a[:, -1] == 0)
    if len(missed):
        of_a[missed] = _compare_some(tiles, missed, k, first)
    return of_a, of_b


def _compare_some(tiles: Tiles, some: np.ndarray, k: int, first: tuple[int, int]) -> np.ndarray:
    """The keys of the `k` best of some rows."""
    few = tiles.of_rows(some)
    if tiles.B is not tiles.A:
        return _compare(few, k, False, first, (None, None))[0]
    # A row is among its own best, or else as many others tie with it: then the last is one too many.
    keys, _ = _compare(few, k + 1, False, first, (None, None))
    surplus = split_keys(keys)[0] == first[1] + some[:, None]
    surplus[:, -1] |= ~surplus.any(axis=1)
    return keys[~surplus].reshape(len(some), k)


def _compare(
    tiles: Tiles, k: int, both_ways: bool, first: tuple[int, int], thresholds: tuple[Any, Any]
) -> tuple[np.ndarray, np.ndarray]:
    """What `search` returns, from all of the tiles; 0 in the keys of a row whose threshold fewer than k reach."""
    A, B = tiles.A, tiles.B
    is_square = B is A

    def state(rows: UnitRows, known: Any) -> tuple[np.ndarray, np.ndarray]:
        reached = np.full(len(rows), -np.inf, np.float32) if known is None else known.astype(np.float32)
        return reached, np.zeros((len(rows), k), np.uint64)

    of_a = state(A, thresholds[0])
    of_b = of_a if is_square else state(B, thresholds[1])
    sides = tiles.sides(of_a, of_b, first)
    locks_a = [threading.Lock() for _ in tiles.row_blocks]
    locks_b = locks_a if is_square else [threading.Lock() for _ in tiles.column_blocks]

    def act(method: int, products: np.ndarray, position: tuple[int, int], a: Block, b: Block, scratch: Scratch) -> None:
        row, column = position
        diagonal = is_square and row == column
        update_both = (both_ways or is_square) and not diagonal
        left, right = sides[method]
        # In a square the row is the lower: no two threads wait for each other.
        with locks_a[row], locks_b[column] if update_both else contextlib.nullcontext():
            select(products, left, a.start, a.stop, right, b.start, b.stop, diagonal, update_both, scratch)

    tiles.for_each(act)
    return of_a[1], of_b[1]


def search_above(A: UnitRows, B: UnitRows, threshold: float, settings: Settings, max_pairs: int) -> tuple[np.ndarray, ...]:
    """All pairs (row of `A`, row of `B`) that score `threshold` or more; with `B is A` each once, the lower row first.

    Returns:
        (n_pairs,) int64, (n_pairs,) int64 and (n_pairs,) float32, in no order.
    """
    tiles = Tiles(A, Columns(B, settings), settings)
    of_a, of_b = ((np.empty(len(rows), np.float32), np.empty((len(rows), 0), np.uint64)) for rows in (A, B))
    sides = tiles.sides(of_a, of_b, (0, 0))
    found: list[tuple[np.ndarray, np.ndarray]] = [(np.empty((0, 2), np.int64), np.empty(0, np.float32))]
    lock, n_pairs = threading.Lock(), 0

    def act(method: int, products: np.ndarray, position: tuple[int, int], a: Block, b: Block, scratch: Scratch) -> None:
        nonlocal n_pairs
        diagonal = B is A and position[0] == position[1]
        left, right = sides[method]
        row = a.start
        while row < a.stop:
            row, n_found = find(
                products, left, a.start, a.stop, right, b.start, b.stop, diagonal, np.float32(threshold), row, scratch
            )
            if n_found:
                with lock:
                    found.append((scratch.pairs[:n_found].astype(np.int64), scratch.scores[:n_found].copy()))
                    n_pairs += n_found
                refuse_more_than(max_pairs, n_pairs, threshold)

    tiles.for_each(act)
    pairs, scores = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return pairs[:, 0], pairs[:, 1], scores


def top_k(
    X: Any, Y: Any, k: int, settings: Settings, on_invalid: OnInvalid, search: Callable = search
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Indices, scores and skipped rows of both, as in `Neighbors`.

    Args:
        X, Y, k: checked; `Y` None for `X` itself, or prepared already.
        search: as `search`, which computes the keys of dense rows.
    """
    of_itself = Y is None
    a = Prepared.of(X, on_invalid, settings.n_threads, "X", k + 1 if of_itself else None)
    b = a if of_itself else Y if isinstance(Y, Prepared) else Prepared.of(Y, on_invalid, settings.n_threads, "Y", k)
    k = max(0, min(k, b.n - len(b.skipped) - of_itself))
    if k == 0 or len(a.unit) == 0:
        keys = np.empty((len(a.unit), k), np.uint64)
    elif isinstance(a.unit, SparseUnitRows):
        keys = search_sparse(a.unit, b.unit, k, settings.n_threads, settings.progress)
    else:
        keys, _ = search(a.unit, b.unit, k, settings)
    places, scores_kept = split_keys(keys)
    if len(a.indices) == a.n and len(b.indices) == b.n:
        return places, scores_kept, a.skipped, b.skipped
    indices, scores = np.full((a.n, k), -1), np.full((a.n, k), np.nan, np.float32)
    indices[a.indices], scores[a.indices] = b.indices[places], scores_kept
    indices[a.redundant], scores[a.redundant] = indices[a.instead], scores[a.instead]
    return indices, scores, a.skipped, b.skipped


def pairs_above(
    X: Any, Y: Any, threshold: float, settings: Settings, on_invalid: OnInvalid, max_pairs: int
) -> tuple[np.ndarray, ...]:
    """First, second, scores and skipped rows of both, as in `Pairs`, in no order."""
    a = Prepared.of(X, on_invalid, settings.n_threads)
    b = a if Y is None else Prepared.of(Y, on_invalid, settings.n_threads, "Y")
    if len(a.unit) == 0 or len(b.unit) == 0:
        found = np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32)
    elif isinstance(a.unit, SparseUnitRows):
        found = search_sparse_above(a.unit, b.unit, threshold, settings.n_threads, max_pairs, settings.progress)
    else:
        found = search_above(a.unit, b.unit, threshold, settings, max_pairs)
    return a.indices[found[0]], b.indices[found[1]], found[2], a.skipped, b.skipped
