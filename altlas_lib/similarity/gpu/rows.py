"""Rows on their way to the GPU: what is there at a time, and how the next ones come while it computes."""

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...devices import get_namespace, to_cpu, to_gpu
from ..inputs import scale_to_unit_length

_PANEL_ROWS = 32768  # columns of a tile at most: enough to fill any GPU, few enough to restart a scan seldom
_TILE_BYTES = 256 * 2**20
_CHUNK_BYTES = 8 * 2**20  # of float64 rows while they are copied and scaled
_ALIGNMENT = 8  # elements: 16 bytes of float16, for tensor cores and for reading four scores at once


@dataclass(frozen=True)
class Plan:
    """What is on the GPU at a time."""

    whole: bool  # all rows stay there; else they are streamed
    block_rows: int  # rows of X that all panels pass by
    panel_rows: int  # rows of Y that are the columns of a tile; aligned
    tile_rows: int
    chunk_rows: int  # rows that are copied and scaled at a time

    @classmethod
    def for_memory(cls, X: Any, Y: Any, k: int, budget_bytes: int, working_memory: float | None) -> "Plan":
        """The largest that fits into `budget_bytes`. Raises MemoryError where one row does not."""
        (n, d), m = X.shape, len(X if Y is None else Y)
        row_bytes = 4 * d + 2 * aligned(d)
        answer_bytes = 12 * n * k
        free = budget_bytes - answer_bytes
        chunk_rows = max(1, min(_CHUNK_BYTES, free // 64) // (8 * d))
        free -= 64 * d * chunk_rows  # as copied, and the arrays made while scaling
        panel_rows = max(_ALIGNMENT, min(aligned(m), _PANEL_ROWS, free // 8 // row_bytes // _ALIGNMENT * _ALIGNMENT))
        tile_bytes = min(_TILE_BYTES, free // 4) if working_memory is None else min(working_memory * 2**20, free // 2)
        tile_rows = max(1, min(n, int(tile_bytes // (2 * panel_rows))))
        free -= 2 * panel_rows * tile_rows
        all_bytes = row_bytes * (aligned(m) + (0 if Y is None else aligned(n))) + 8 * n * k
        if all_bytes <= free:
            return cls(True, max(1, n), panel_rows, tile_rows, chunk_rows)
        block_rows = (free - row_bytes * (2 * panel_rows + _ALIGNMENT)) // (row_bytes + 8 * k)
        if block_rows < 1:
            raise MemoryError(
                f"one row of {d:,} numbers beside {panel_rows} others, and the {answer_bytes:,} bytes of the answer for {n:,} "
                f"rows, do not fit into the {budget_bytes:,} bytes that top_k may take of the GPU's memory; free memory "
                "there, ask for fewer neighbours or rows, or use device='cpu'"
            )
        return cls(False, min(n, block_rows), panel_rows, min(tile_rows, block_rows), chunk_rows)


@dataclass(frozen=True)
class Panel:
    """Rows `start` to `stop`, scaled to length 1, on the GPU.

    `unit` is (stop - start, d) float32, zero in an invalid row. `half` is the same in float16 with both axes aligned, NaN in
    an invalid row and in those beyond `stop`: a NaN is no candidate, so that these are nobody's neighbours and have none.
    """

    start: int
    stop: int
    unit: Any
    half: Any

    def part(self, start: int, stop: int) -> "Panel":
        first, last = start - self.start, stop - self.start
        return Panel(start, stop, self.unit[first:last], self.half[first : first + aligned(last - first)])


class RowsOnGpu:
    """The rows of `X` (n, d), scaled to length 1 on the GPU: all of them, or panel by panel where they do not fit.

    Rows are copied and scaled in a stream of their own, while the current stream computes with those before them.

    Attributes:
        invalid: rows with NaN or infinity, NumPy int64, ascending.
    """

    def __init__(self, X: Any, plan: Plan, clock: dict[str, float] | None = None) -> None:
        self.xp = xp = get_namespace(to_gpu(np.empty(0)))
        self.X, self.plan, self.clock, (self.n, d) = X, plan, clock, X.shape
        self.computing, self.copying = xp.cuda.get_current_stream(), xp.cuda.Stream(non_blocking=True)
        self.on_host = get_namespace(X) is np
        if self.on_host:
            shape, dtype = (plan.chunk_rows, d), X.dtype.newbyteorder("=")
            self.on_device = xp.empty(shape, dtype=dtype)
            self.pinned = [_pinned(xp, shape, dtype) for _ in range(2)]
        self.valid = xp.empty(self.n, dtype=bool)
        self.buffer = self._new_panel(self.n if plan.whole else 0)
        if plan.whole:
            self.buffer = self._load(self.buffer, 0, self.n, self.computing.record())
        else:
            for _ in self.panels():  # for the sake of `valid`
                pass
        self.invalid = to_cpu(xp.flatnonzero(~self.valid))

    def block(self, start: int, stop: int) -> Panel:
        """Rows `start` to `stop`; the former block is overwritten."""
        if self.plan.whole:
            return self.buffer.part(start, stop)
        if len(self.buffer.unit) == 0:
            self.buffer = self._new_panel(self.plan.block_rows)
        return self._load(self.buffer, start, stop, self.computing.record())

    def panels(self) -> Iterator[Panel]:
        """All rows; what is computed with a panel before the next one is asked for may use it."""
        step = self.plan.panel_rows
        if self.plan.whole:
            yield from (self.buffer.part(start, min(start + step, self.n)) for start in range(0, self.n, step))
            return
        buffers = [self._new_panel(step) for _ in range(2)]
        unused = [self.computing.record() for _ in buffers]
        for turn, start in enumerate(range(0, self.n, step)):
            yield self._load(buffers[turn % 2], start, min(start + step, self.n), unused[turn % 2])
            unused[turn % 2] = self.computing.record()

    def _new_panel(self, n: int) -> Panel:
        xp, d = self.xp, self.X.shape[1]
        half = xp.zeros((aligned(n), aligned(d)), dtype=xp.float16)
        return Panel(0, n, xp.empty((n, d), dtype=xp.float32), half)

    def _load(self, panel: Panel, start: int, stop: int, unused: Any) -> Panel:
        """Rows `start` to `stop` of `X` into `panel`, when the event `unused` has come; computing waits for them."""
        n, step, copied = stop - start, self.plan.chunk_rows, [None, None]
        panel = Panel(start, stop, panel.unit[:n], panel.half[: aligned(n)])
        with timed(self.xp, self.clock, "transfer"), contextlib.ExitStack() as stack:
            stack.callback(self.copying.synchronize)  # also after an error: pinned memory is still being read
            self.copying.wait_event(unused)
            stack.enter_context(self.copying)
            panel.half[n:, : panel.unit.shape[1]] = self.xp.nan  # what fills up the rows' ends stays 0
            for turn, first in enumerate(range(start, stop, step)):
                last = min(first + step, stop)
                if self.on_host:
                    pinned, chunk = self.pinned[turn % 2][: last - first], self.on_device[: last - first]
                    if copied[turn % 2]:
                        copied[turn % 2].synchronize()  # what was in this buffer has left it
                    pinned[...] = self.X[first:last]
                    chunk.set(pinned, stream=self.copying)
                    copied[turn % 2] = self.copying.record()
                else:
                    chunk = self.X[first:last]
                rows = slice(first - start, last - start)
                _scale(chunk, panel.unit[rows], panel.half[rows], self.valid[first:last])
            self.computing.wait_event(self.copying.record())
        return panel


def _scale(rows: Any, unit: Any, half: Any, valid: Any) -> None:
    """Scale `rows` (c, d) to length 1 into `unit` and `half`, and say in `valid` (c,) which of them are finite."""
    xp = get_namespace(rows)
    rows = rows.astype(xp.float64)
    valid[...] = xp.isfinite(rows).all(axis=1)
    rows = xp.where(valid[:, None], rows, 0)
    scale_to_unit_length(rows)
    unit[...] = rows
    half[:, : unit.shape[1]] = xp.where(valid[:, None], unit, xp.nan)


def _pinned(xp: Any, shape: tuple[int, int], dtype: np.dtype) -> np.ndarray:
    """A NumPy array in memory that the GPU reads by itself, without holding up the CPU."""
    size = math.prod(shape)
    return np.frombuffer(xp.cuda.alloc_pinned_memory(size * dtype.itemsize), dtype, size).reshape(shape)


def aligned(n: int) -> int:
    """`n` rounded up to what tensor cores read at once."""
    return -(-n // _ALIGNMENT) * _ALIGNMENT


@contextlib.contextmanager
def timed(xp: Any, clock: dict[str, float] | None, step: str) -> Iterator[None]:
    """Add to `clock`, if there is one, how long the current stream takes for what is asked of it within."""
    if clock is None:
        yield
        return
    stream = xp.cuda.get_current_stream()
    begun = stream.record()
    yield
    ended = stream.record()
    ended.synchronize()
    clock[step] = clock.get(step, 0.0) + xp.cuda.get_elapsed_time(begun, ended) / 1000  # of milliseconds
