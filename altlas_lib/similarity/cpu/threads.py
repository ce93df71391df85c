"""Tiles of the comparison, and the threads that work through them."""

import math
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

Block = slice
_GROUP = 8  # blocks of 512 rows of 384 float32: 6 MB


def blocks_of(n: int, size: int) -> list[Block]:
    return [slice(start, min(start + size, n)) for start in range(0, n, size)]


def square_tiles(n_blocks: int) -> Iterator[tuple[int, int]]:
    """Each pair of blocks once, the lower first.

    First each block with itself, because neighbours are often close in index and good thresholds drop much. Then by groups
    of blocks that fit a last-level cache, so that rows which are verified come from there.
    """
    yield from ((block, block) for block in range(n_blocks))
    groups = [range(start, min(start + _GROUP, n_blocks)) for start in range(0, n_blocks, _GROUP)]
    for group in groups:
        yield from ((group[a], group[b]) for a, b in _rounds(len(group)))
    for s, t in _rounds(len(groups)):
        yield from ((groups[s][a], groups[t][b]) for a, b in rectangular_tiles(len(groups[s]), len(groups[t])))


def _rounds(n: int) -> Iterator[tuple[int, int]]:
    """Each pair a < b of n players in the rounds of a tournament ("circle method").

    Nobody plays twice in a round, so that threads which take pairs in this order rarely need the same block; and rows whose
    similarity drifts with their index meet near and far blocks in turn.
    """
    last = n + n % 2 - 1  # sits still while the others go round; nobody where n is odd
    for turn in range(last):
        for i in range((last + 1) // 2):
            a, b = (turn + i) % last, (turn - i) % last if i else last
            if max(a, b) < n:
                yield min(a, b), max(a, b)


def rectangular_tiles(n_row_blocks: int, n_column_blocks: int) -> Iterator[tuple[int, int]]:
    """Each block of rows with each block of columns, in rounds in which a block of rows occurs once.

    From round to round by about the golden section, so that here too near and far blocks are met in turn.
    """
    steps = range(round(0.618 * n_column_blocks), n_column_blocks)
    step = next((step for step in steps if math.gcd(step, n_column_blocks) == 1), 1)
    for turn in range(n_column_blocks):
        for a in range(n_row_blocks):
            yield a, (a + turn * step) % n_column_blocks


def for_each(
    items: Iterable[Any], n_items: int, make_worker: Callable[[], Callable[[Any], None]], n_threads: int, progress: Any = None
) -> None:
    """Call `worker(item)` for every item from `n_threads` threads, each with a worker of its own; one is the caller's.

    An error in a worker, or Ctrl-C, stops all of them after their present item, and is raised when they have ended.

    Args:
        progress: called in the caller's thread with the share of items done, after each that it did itself and at the end.
    """
    iterator, lock, stop, n_done = iter(items), threading.Lock(), threading.Event(), 0

    def work(progress: Any = None) -> None:
        nonlocal n_done
        try:
            worker = make_worker()
            while not stop.is_set():
                with lock:
                    item = next(iterator, iterator)
                if item is iterator:
                    return
                worker(item)
                with lock:
                    n_done += 1
                if progress:
                    progress(n_done / n_items)
        except BaseException:
            stop.set()
            raise

    with ThreadPoolExecutor(max(1, n_threads - 1), thread_name_prefix="similarity") as pool:
        others = [pool.submit(work) for _ in range(min(n_threads, n_items) - 1)]
        work(progress)
        for other in others:
            other.result()
    if progress and n_items:
        progress(1.0)
