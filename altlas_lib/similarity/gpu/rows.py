"""Rows on their way to the GPU: staged in pinned memory, copied, and scaled there, while it computes with those before."""

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...devices import get_namespace, to_cpu
from ..inputs import OnInvalid, refuse_invalid
from ..scheme import redundant_rows
from .launch import launch, padded

_CHUNK_BYTES = 8 * 2**20  # staged and copied at a time: the copy takes far longer than to start it
TILE_SIDE = 8192  # rows and columns: to multiply them takes the fastest GPU as long as the CPU takes to start the next
_TILE_ELEMENT_BYTES = 12  # of two tiles of half-precision scores, the candidates in one, and their scores
N_COUNTERS = 256  # of the candidates in a tile; set to 0 together
_STREAMED_PANELS = 3  # one whose rows are compared, one whose columns are, and one that is being loaded


@dataclass(frozen=True)
class Plan:
    """What is on the GPU at a time."""

    tile_side: int  # a multiple of 8
    panel_rows: int  # rows that are loaded together
    chunk_rows: int  # rows that are staged together
    n_panels: int  # of a matrix at a time

    @classmethod
    def for_memory(
        cls, shapes: list[tuple[int, int]], k: int, budget_bytes: int, working_memory: float | None = None
    ) -> "Plan":
        """The largest that fits into `budget_bytes`; `shapes`: of `X`, and of `Y` if there is one.

        Raises:
            MemoryError: eight rows do not fit.
        """
        n_rows, d = [n for n, _ in shapes], shapes[0][1]
        row_bytes = (4 + 2) * padded(d) + 8 + 1  # unit, half, digest, validity
        fixed_bytes = n_rows[0] * k * (8 + 12) + sum(n_rows) * (8 + 4) + 4 * N_COUNTERS  # keys and answer; floors and numbers
        free = budget_bytes - fixed_bytes
        chunk_rows = max(1, min(_CHUNK_BYTES, free // 16) // (8 * d))
        free -= len(shapes) * 2 * 8 * d * chunk_rows
        tile_bytes = free // 4 if working_memory is None else min(working_memory * 2**20, free // 2)
        side = min(TILE_SIDE, padded(max(n_rows)), math.isqrt(max(0, int(tile_bytes)) // _TILE_ELEMENT_BYTES))
        side = max(8, side // 8 * 8)
        free -= side**2 * _TILE_ELEMENT_BYTES + 8 * side
        some = padded(2 * math.isqrt(n_rows[0]) + 8)  # pilots, or rows that they mislead
        if row_bytes * (sum(map(padded, n_rows)) + some) + some * 8 * (k + 1) <= free:
            return cls(side, max(8, *n_rows), chunk_rows, 1)
        panel_rows = int(free // (row_bytes * (_STREAMED_PANELS * len(shapes) + 1) + 8 * (k + 1))) // 8 * 8
        if panel_rows < 8:
            raise MemoryError(
                f"eight rows of {d:,} numbers beside as many others, and the {fixed_bytes:,} bytes of the answer for "
                f"{n_rows[0]:,} rows, do not fit into the {budget_bytes:,} bytes that may be taken of the GPU's memory; free "
                "memory there, ask for fewer neighbours or rows, or use device='cpu'"
            )
        return cls(side, panel_rows, chunk_rows, _STREAMED_PANELS)


class Streams:
    """What the GPU does at the same time: copies from the host, scaling, products, and, in the caller's stream, selection.

    All memory is allocated in the caller's stream. Whatever stream uses it first must wait for that one, in which another
    owner of the same memory may still be at work.
    """

    def __init__(self, xp: Any, clock: dict[str, float] | None) -> None:
        self.xp, self.clock = xp, clock
        self.selecting = xp.cuda.get_current_stream()
        self.copying, self.scaling, self.products = (xp.cuda.Stream(non_blocking=True) for _ in range(3))

    @contextlib.contextmanager
    def step(self, stream: Any, name: str) -> Iterator[None]:
        """What is asked of the GPU within goes to `stream`, and is a range of this name in NVIDIA's Nsight tools.

        With a clock it is timed, and each step waits for the one before.
        """
        with stream:
            self.xp.cuda.nvtx.RangePush(name)
            begun = stream.record() if self.clock is not None else None
            try:
                yield
            finally:
                self.xp.cuda.nvtx.RangePop()
            if begun is not None:
                ended = stream.record()
                ended.synchronize()
                self.clock[name] = self.clock.get(name, 0.0) + self.xp.cuda.get_elapsed_time(begun, ended) / 1000  # of ms

    def finish(self) -> None:
        """Wait for all: memory that the GPU still reads or writes must not be given back, after an error neither."""
        for stream in (self.copying, self.scaling, self.products, self.selecting):
            stream.synchronize()


@dataclass(eq=False)
class Panel:
    """Rows of length 1 on the GPU; what lies beyond the n rows counts for nothing.

    `unit` is (padded(rows), padded(d)) float32, `half` the same in half precision. Of rows as they were loaded, `valid` says
    which are free of NaN and infinity, and `digests` are hashes that rows of one direction share.
    """

    unit: Any
    half: Any
    valid: Any
    digests: Any
    n: int = 0
    ids: Any = None  # (n,) uint32, where they stand in their matrix
    number: int | None = None  # which panel of its matrix this holds
    unused: Any = None  # event: nothing that was asked for earlier needs what it holds


class Matrix:
    """The rows of `X` (n, d) that take part, brought to the GPU panel by panel, scaled to length 1.

    Attributes:
        ids: (n_kept,) int64, where they stand in `X`, ascending.
        n_valid: rows without NaN and infinity; skipped: the others.
        redundant, instead: rows that are left out, and for each the one whose answer is also theirs.
    """

    def __init__(self, X: Any, plan: Plan, streams: Streams, on_invalid: OnInvalid, name: str, n_duplicates: float) -> None:
        """`n_duplicates`: how many rows of one direction take part."""
        self.X, self.plan, self.streams, self.on_host = X, plan, streams, get_namespace(X) is np
        # Booleans, float16 and short integers are exact in float32; all others become float64.
        self.dtype = np.dtype(np.result_type(X.dtype.newbyteorder("="), np.float32))
        self.step = plan.chunk_rows if self.on_host else max(1, len(X))
        if self.on_host:
            xp, shape = streams.xp, (plan.chunk_rows, X.shape[1])
            self.pinned = [_pinned(xp, shape, self.dtype) for _ in range(2)]
            self.raw = [xp.empty(shape, dtype=self.dtype) for _ in range(2)]
            self.copied: list[Any] = [None, None]  # events: the last chunk has left `pinned`
            self.scaled: list[Any] = [None, None]  # the last chunk in `raw` has been read
            streams.copying.wait_event(streams.selecting.record())  # memory is new
        self._panels: list[Panel] = []  # the one that was used last is the last
        self._in_use: list[Panel] = []
        self.ids = np.arange(len(X))
        measured = [(np.empty(0, np.uint8), np.empty(0, np.uint64))]
        for (panel,) in map(self.panels, range(self.n_panels)):
            with streams.scaling:
                measured.append((to_cpu(panel.valid[: panel.n]), to_cpu(panel.digests[: panel.n])))
        valid, digests = map(np.concatenate, zip(*measured, strict=True))
        self.skipped, kept = np.flatnonzero(valid == 0), np.flatnonzero(valid)
        refuse_invalid(name, self.skipped, len(X), on_invalid)
        self.n_valid = len(kept)
        redundant, instead = redundant_rows(digests[kept], lambda some: to_cpu(self._rows(kept[some])), n_duplicates)
        self.redundant, self.instead = kept[redundant], kept[instead]
        self.ids = np.delete(kept, redundant)
        if len(self.ids) < len(X):
            for panel in self._panels:
                panel.number = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def n_panels(self) -> int:
        return -(-len(self) // self.plan.panel_rows)

    def start(self, number: int) -> int:
        """Which of the rows that take part is the first of a panel."""
        return number * self.plan.panel_rows

    def panels(self, *numbers: int) -> list[Panel]:
        """Panels that are needed together. Those that are asked for later may replace them: what is computed with them is
        asked of the GPU before."""
        event = self.streams.selecting.record()
        for panel in self._in_use:
            panel.unused = event
        self._in_use = [self._panel(number, numbers) for number in dict.fromkeys(numbers)]
        return [next(panel for panel in self._in_use if panel.number == number) for number in numbers]

    def _panel(self, number: int, needed: tuple[int, ...]) -> Panel:
        panel = next((panel for panel in self._panels if panel.number == number), None)
        if panel is None:
            ids = self.ids[self.start(number) : self.start(number + 1)]
            if len(self._panels) < self.plan.n_panels:
                panel = self.new_panel(min(self.plan.panel_rows, len(self)))
                self._panels.append(panel)
            else:
                panel = next(panel for panel in self._panels if panel.number not in needed)
            self.load(ids, panel).number = number
        self._panels.append(self._panels.pop(self._panels.index(panel)))
        return panel

    def new_panel(self, n: int) -> Panel:
        """A panel of its own for `n` rows."""
        xp, n, d = self.streams.xp, padded(n), padded(self.X.shape[1])
        unit, half = xp.empty((n, d), dtype=xp.float32), xp.empty((n, d), dtype=xp.float16)
        valid, digests = xp.empty(n, dtype=xp.uint8), xp.empty(n, dtype=xp.uint64)
        return Panel(unit, half, valid, digests, unused=self.streams.selecting.record())

    def load(self, ids: np.ndarray, panel: Panel) -> Panel:
        """The rows `ids` (m,), ascending, into `panel` once it is unused; products wait for them."""
        streams, d = self.streams, self.X.shape[1]
        panel.n, panel.ids = len(ids), streams.xp.asarray(ids.astype(np.uint32))
        kernel = "scale_float_rows" if self.dtype == np.float32 else "scale_double_rows"
        with streams.step(streams.scaling, "transfer"):
            streams.scaling.wait_event(panel.unused)
            for turn, start in enumerate(range(0, len(ids), self.step)):
                some = ids[start : start + self.step]
                at = slice(some[0], some[-1] + 1)
                rows = self.X[at] if at.stop - at.start == len(some) else self._rows(some)
                on_gpu = self._copy(rows, turn % 2) if self.on_host else streams.xp.ascontiguousarray(rows, self.dtype)
                out = (values[start : start + len(some)] for values in (panel.unit, panel.half, panel.valid, panel.digests))
                arguments = on_gpu, np.int64(len(some)), np.int32(d), np.int32(padded(d)), *out
                launch(streams.xp, kernel, arguments, n_warps=len(some))
                if self.on_host:
                    self.scaled[turn % 2] = streams.scaling.record()
            streams.products.wait_event(streams.scaling.record())
        return panel

    def _rows(self, some: np.ndarray) -> Any:
        """Rows of `X` by their indices, where `X` is."""
        return self.X[some if self.on_host else self.streams.xp.asarray(some)]

    def _copy(self, rows: np.ndarray, turn: int) -> Any:
        """`rows` on their way into `raw`, for which scaling waits."""
        copying, scaling = self.streams.copying, self.streams.scaling
        pinned, raw = self.pinned[turn][: len(rows)], self.raw[turn][: len(rows)]
        if self.copied[turn] is not None:
            self.copied[turn].synchronize()
            copying.wait_event(self.scaled[turn])
        pinned[...] = rows
        raw.set(pinned, stream=copying)
        self.copied[turn] = copying.record()
        scaling.wait_event(self.copied[turn])
        return raw


def _pinned(xp: Any, shape: tuple[int, int], dtype: np.dtype) -> np.ndarray:
    """A NumPy array in memory that the GPU reads by itself, without holding up the CPU."""
    size = math.prod(shape)
    return np.frombuffer(xp.cuda.alloc_pinned_memory(size * dtype.itemsize), dtype, size).reshape(shape)
