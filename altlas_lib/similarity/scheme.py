"""What the CPU and the GPU engine have in common: keys, pilots, and rows that need no comparison of their own.

A key is a score and the index of its row in one uint64: keys descend as scores do, and for equal scores as indices ascend.
"""

import math
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from .inputs import unit_float64

_SAME_DIRECTION = 2.0**-22  # of an element: float32 multiples are off by 2^-24 of it, and so is what scales them back


def split_keys(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Indices (int64) and scores (float32) of full `keys`."""
    indices = (np.uint64(0xFFFFFFFF) - (keys & np.uint64(0xFFFFFFFF))).astype(np.int64)
    ordered = (keys >> np.uint64(32)).astype(np.uint32)
    positive = ordered >> np.uint32(31) == 1
    return indices, np.where(positive, ordered & np.uint32(0x7FFFFFFF), ~ordered).view(np.float32)


def join_keys(indices: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """The keys of indices and float32 scores: the inverse of `split_keys`."""
    bits = scores.view(np.uint32)
    ordered = np.where(bits >> np.uint32(31) == 1, ~bits, bits | np.uint32(1 << 31)).astype(np.uint64)
    return (ordered << np.uint64(32)) | (np.uint64(0xFFFFFFFF) - indices.astype(np.uint64))


class PairList:
    """Pairs that reach a threshold, as several threads find them; at most `max_pairs`.

    Attributes:
        threshold: float32.
    """

    def __init__(self, threshold: float, max_pairs: int) -> None:
        self.threshold, self._limit = np.float32(threshold), f"threshold={threshold}: more than max_pairs={max_pairs:,} pairs"
        self._max_pairs, self._n_pairs, self._lock = max_pairs, 0, threading.Lock()
        self._parts: list[tuple[Any, ...]] = [(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))]

    def add(self, first: np.ndarray, second: np.ndarray, scores: np.ndarray) -> None:
        """Keep pairs: rows of both sides, int64, and float32 scores.

        Raises:
            MemoryError: there are more than memory is meant to hold.
        """
        with self._lock:
            self._parts += [(first, second, scores)] if len(scores) else []
            self._n_pairs += len(scores)
        if self._n_pairs > self._max_pairs:
            raise MemoryError(f"{self._limit} reach it; raise the threshold, or max_pairs")

    def arrays(self) -> tuple[np.ndarray, ...]:
        """First, second and scores of all pairs, in no order."""
        return tuple(np.concatenate(parts) for parts in zip(*self._parts, strict=True))


def pilot_rows(n: int) -> np.ndarray:
    """sqrt(n) of n rows, drawn at random, ascending.

    The lowest of their k-th best scores is a threshold for all rows, too high for one in sqrt(n) of them, however the data
    are distributed: those, which fewer than k reach, are compared again.
    """
    return np.sort(np.random.default_rng(0).choice(n, math.isqrt(n), replace=False))


def redundant_rows(
    digests: np.ndarray, rows: Callable[[np.ndarray], np.ndarray], n_kept: float
) -> tuple[np.ndarray, np.ndarray]:
    """Rows that point where `n_kept` lower ones point, and for each of them the last one that is kept.

    Ties being ordered by index, they are nobody's neighbours, and their own are those of the last one. Left in, data that
    are multiples of one row would have every pair verified.

    Args:
        digests: (n,) uint64, mostly equal for rows of one direction.
        rows: gives some of the rows by their indices.
    """
    redundant, instead = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    order = np.argsort(digests, kind="stable")
    starts = np.flatnonzero(np.diff(digests[order], prepend=~digests[order[:1]]) != 0)
    sizes = np.diff(starts, append=len(order))
    for start, size in zip(starts[sizes > n_kept], sizes[sizes > n_kept], strict=True):
        group = order[start : start + size]
        model = unit_float64(rows(group[:1]))
        tolerance = _SAME_DIRECTION * abs(model)
        blocks = np.array_split(group, -(-size // 4096))
        same = [(abs(unit_float64(rows(block)) - model) <= tolerance).all(axis=1) for block in blocks]
        group = group[np.concatenate(same)]
        redundant.append(group[n_kept:])
        instead.append(np.full(len(redundant[-1]), group[min(n_kept, len(group)) - 1]))
    return np.concatenate(redundant), np.concatenate(instead)
