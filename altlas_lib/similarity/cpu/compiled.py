"""The inner loops of the CPU engine, compiled by Numba: bounds, verification, and the k best of each row.

A tile of cheap products (int8 or float32 BLAS) bounds the score of each of its pairs rigorously from above. Pairs whose
bound cannot reach either row's k-th best score are dropped; the others get `dot`, whose order of summation is always the
same. So the answer does not depend on tile size, threads, or how the bound was computed.

Compiled code is kept in `__pycache__`, the user's cache folder or NUMBA_CACHE_DIR: a machine compiles once (`cache`).
"""

from typing import NamedTuple

import numpy as np

from .cache import compiled
from .simd import LANES, above, lowest_bit, prefetch

PREFETCH = 4  # pairs ahead
CROWD = 32  # candidates in a row of a tile, beyond 2 k: to verify them costs more than to find a better threshold
NEVER = np.float32(np.inf)

# Sums may be reordered, once, at compile time; infinities stay what they are.
compiled_sums = compiled(fastmath={"contract", "reassoc", "nsz"})


class Bounds(NamedTuple):
    """What bounds the score of rows i and j, of unit vectors u, by their product in a tile: a rigorous bound.

    u_i . u_j <= scale_i scale_j product_ij + offset_i + offset_j + length_i residual_j + residual_i length_j + slack
    """

    scale: np.ndarray  # (n + LANES,) float32; LANES more, because so many are read at a time
    length: np.ndarray  # (n + LANES,) float32, of the vector that is multiplied in the tile
    residual: np.ndarray  # (n + LANES,) float32, the length of what is lost in the tile
    offset: np.ndarray  # (n + LANES,) float32
    slack: np.float32  # for rounding in the computation of bound and score

    @classmethod
    def empty(cls, n: int, slack: np.float32) -> "Bounds":
        return cls(*(np.zeros(n + LANES, np.float32) for _ in range(4)), slack)


class Side(NamedTuple):
    """The rows on one side of the comparison, as the compiled loops see them."""

    rows: np.ndarray  # (n, d) float32, C-contiguous, of any length
    inverse_norms: np.ndarray  # (n,) float32, 0 for a zero row
    bounds: Bounds
    thresholds: np.ndarray  # (n,) float32, a rigorous lower bound of each row's k-th best score
    keys: np.ndarray  # (n, k) uint64, the k best so far, descending; 0 is none


@compiled_sums
def dot(a, b):
    """The float32 dot product that decides."""
    total = np.float32(0)
    for i in range(len(a)):
        total += a[i] * b[i]
    return total


@compiled
def key_of(score, index):
    """A uint64 that orders by score, descending scores being descending keys, then by index, the lower above the higher."""
    bits = np.float32(score).view(np.uint32)
    ordered = ~bits if bits >> np.uint32(31) else bits | np.uint32(1 << 31)
    return (np.uint64(ordered) << np.uint64(32)) | np.uint64(np.uint32(0xFFFFFFFF) - np.uint32(index))


@compiled
def score_of(key):
    """The score in a key; -inf where there is none."""
    if key == 0:
        return np.float32(-np.inf)
    ordered = np.uint32(key >> np.uint64(32))
    bits = ordered & np.uint32(0x7FFFFFFF) if ordered >> np.uint32(31) else ~ordered
    return np.uint32(bits).view(np.float32)


@compiled
def insert(keys, key):
    """Put `key` in its place among descending `keys`; the last one falls out. Without a branch: vectors of min and max."""
    for position in range(len(keys) - 1, 0, -1):
        keys[position] = max(min(keys[position - 1], key), keys[position])
    keys[0] = max(keys[0], key)


@compiled
def verify(pairs, n_pairs, A, B, scores):
    """The scores of `pairs` (rows of A, rows of B). Apart from their use, so that one dot product overlaps the next."""
    # Arrays are taken out of the tuples before a loop: within it Numba would count references at each use.
    rows, columns, inverse_norms, inverse_norms_b = A.rows, B.rows, A.inverse_norms, B.inverse_norms
    for p in range(n_pairs):
        i, j = pairs[p, 0], pairs[p, 1]
        ahead = min(p + PREFETCH, n_pairs - 1)
        prefetch(columns, pairs[ahead, 1])
        # Products in this order are the same for (i, j) and (j, i).
        score = dot(rows[i], columns[j]) * (inverse_norms[i] * inverse_norms_b[j])
        scores[p] = min(max(score, np.float32(-1)), np.float32(1)) + np.float32(0)  # no -0.0, which is another key


@compiled
def keep(pairs, n_pairs, scores, own, other, side):
    """Update the k best of `side` from pairs of its rows (`own` column of `pairs`) with others."""
    keys, thresholds, k = side.keys, side.thresholds, side.keys.shape[1]
    for p in range(n_pairs):
        row = pairs[p, own]
        if scores[p] < thresholds[row]:
            continue
        key = key_of(scores[p], pairs[p, other])
        if key > keys[row, k - 1]:
            insert(keys[row], key)
            thresholds[row] = max(thresholds[row], score_of(keys[row, k - 1]))


@compiled_sums
def certain_threshold(products, at, of_row, bounds, start, n, k, left_out, lows):
    """A score that at least `k` of the row's `n` pairs in this tile provably reach: a bisection over their lower bounds."""
    row_scale, row_length, row_residual, row_offset = of_row
    scale, length, residual, offset, slack = bounds
    for j in range(n):
        product = row_scale * scale[start + j] * np.float32(products[at + j]) + row_offset + offset[start + j]
        lows[j] = product - row_length * residual[start + j] - row_residual * length[start + j] - slack
    if left_out >= 0:
        lows[left_out] = -np.inf
    low, high = np.float32(-np.inf), np.float32(1)
    middle = np.float32(-1)
    for _ in range(11):
        n_above = 0
        for j in range(n):
            n_above += lows[j] > middle
        if n_above >= k:
            low = middle
        else:
            high = middle
        middle = (max(low, np.float32(-1)) + high) * np.float32(0.5)
    return low


@compiled
def prepare_columns(B, b0, b1, both_ways, offset, rival):
    """Fill the offsets of a tile's columns, and those less the columns' thresholds."""
    offsets, thresholds = B.bounds.offset, B.thresholds
    for j in range(b1 - b0):
        offset[j] = offsets[b0 + j]
        rival[j] = offset[j] - thresholds[b0 + j] if both_ways else -NEVER
    offset[b1 - b0 :] = rival[b1 - b0 :] = -NEVER  # what is read beyond the tile never counts


@compiled
def candidates_of_row(mask, row, column, left_out, pairs, n_pairs):
    """Append the pairs whose bits are set."""
    while mask:
        j = column + lowest_bit(mask)
        pairs[n_pairs, 0] = row
        pairs[n_pairs, 1] = j
        n_pairs += j != left_out
        mask &= mask - np.uint64(1)
    return n_pairs


@compiled
def collect(products, A, a0, a1, B, b0, b1, diagonal, k, row, scratch):
    """The pairs of a tile that may count, from `row` on until the scratch space is full, and their scores: the first in it.

    Args:
        diagonal: the tile holds each pair twice, and rows with themselves, which do not count.
        k: how many of the best of a row count; 0: all that reach its threshold.

    Returns:
        The row to go on with (a1: none) and the number of pairs.
    """
    n = b1 - b0
    offset, rival, pairs, scores = scratch.offset, scratch.rival, scratch.pairs, scratch.scores
    scale, length, residual = B.bounds.scale, B.bounds.length, B.bounds.residual
    row_scales, row_lengths, row_residuals, row_offsets, slack = A.bounds
    thresholds = A.thresholds
    n_pairs = 0
    while row < a1 and n_pairs + n <= len(pairs):
        at = (row - a0) * n
        of_row = row_scales[row], row_lengths[row], row_residuals[row], row_offsets[row]
        row_scale, row_length, row_residual, row_offset = of_row
        left_out = row if diagonal else -1
        n_before = n_pairs
        for crowded in (k > 0 and thresholds[row] == -np.inf, True):
            n_pairs, most = n_before, len(pairs) if crowded or k == 0 else n_before + 2 * k + CROWD
            if crowded:
                certain = certain_threshold(products, at, of_row, B.bounds, b0, n, k, left_out - b0, scores)
                thresholds[row] = max(thresholds[row], certain)
            bar, rival_bar = thresholds[row] - row_offset - slack, -row_offset - slack
            for j in range(0, n, LANES):
                mask = above(
                    products, scale, length, residual, offset, rival,
                    at + j, b0 + j, j, row_scale, row_length, row_residual, bar, rival_bar,
                )  # fmt: skip
                if mask:
                    n_pairs = candidates_of_row(mask, row, b0 + j, left_out, pairs, n_pairs)
                    if n_pairs > most:
                        break
            if n_pairs <= most:
                break
        row += 1
    verify(pairs, n_pairs, A, B, scores)
    return row, n_pairs


@compiled
def select(products, A, a0, a1, B, b0, b1, diagonal, both_ways, scratch):
    """Update the k best of rows a0 to a1 of `A`, and with `both_ways` of rows b0 to b1 of `B`, from the tile of their products.

    Args:
        products: flat, at least (a1 - a0) (b1 - b0) + LANES int32 or float32.
        diagonal: as of `collect`; then one way is enough.
        scratch: `Scratch`.
    """
    prepare_columns(B, b0, b1, both_ways, scratch.offset, scratch.rival)
    row, pairs, scores = a0, scratch.pairs, scratch.scores
    while row < a1:
        row, n_pairs = collect(products, A, a0, a1, B, b0, b1, diagonal, A.keys.shape[1], row, scratch)
        keep(pairs, n_pairs, scores, 0, 1, A)
        if both_ways:
            keep(pairs, n_pairs, scores, 1, 0, B)


@compiled
def find(products, A, a0, a1, B, b0, b1, diagonal, row, scratch):
    """The pairs of a tile that reach the thresholds of their rows of `A`, as `collect`; on the diagonal the lower row first."""
    prepare_columns(B, b0, b1, False, scratch.offset, scratch.rival)
    row, n_pairs = collect(products, A, a0, a1, B, b0, b1, diagonal, 0, row, scratch)
    pairs, scores, thresholds, n_found = scratch.pairs, scratch.scores, A.thresholds, 0
    for p in range(n_pairs):
        if scores[p] >= thresholds[pairs[p, 0]] and not (diagonal and pairs[p, 1] < pairs[p, 0]):
            pairs[n_found, 0], pairs[n_found, 1] = pairs[p, 0], pairs[p, 1]
            scores[n_found] = scores[p]
            n_found += 1
    return row, n_found


class Scratch(NamedTuple):
    """What a thread needs for a tile, made once."""

    offset: np.ndarray  # (columns + LANES,) float32
    rival: np.ndarray  # (columns + LANES,) float32, offset less the thresholds of the columns
    pairs: np.ndarray  # (m, 2) int32, candidates; m is above the columns of a tile
    scores: np.ndarray  # (m,) float32, of the candidates

    @classmethod
    def empty(cls, n_columns: int, n_candidates: int) -> "Scratch":
        offset, rival = (np.empty(n_columns + LANES, np.float32) for _ in range(2))
        return cls(offset, rival, np.empty((n_candidates, 2), np.int32), np.empty(n_candidates, np.float32))


@compiled_sums
def measure_rows(rows, norms, digests):
    """The norm of each row, in float64 because no square overflows there, and a hash that rows of one direction share.

    Of the unit row in steps of 2^-10, so that rounding changes it for one multiple of a row in a thousand or so.
    """
    for i in range(len(rows)):
        row = rows[i]
        total = 0.0
        for j in range(len(row)):
            total += np.float64(row[j]) * np.float64(row[j])
        norms[i] = np.sqrt(total)
        scale = 1024 / norms[i] if 0 < norms[i] < np.inf else 0.0
        digest = np.uint64(0)
        for j in range(len(row)):
            # SplitMix64's constants (Steele, Lea and Flood 2014); the shift keeps it from being linear in the values.
            value = np.uint64(np.int64(np.rint(np.float64(row[j]) * scale)))
            mixed = (value + np.uint64(j + 1) * np.uint64(0x9E3779B97F4A7C15)) * np.uint64(0xBF58476D1CE4E5B9)
            digest += (mixed ^ (mixed >> np.uint64(31))) * np.uint64(0x94D049BB133111EB)
        digests[i] = digest


@compiled_sums
def quantise(centred, mean, half_square_of_mean, growth, codes, codes_transposed, scale, length, residual, offset):
    """One int8 scale per row, and what is needed to bound the products: see `Bounds`.

    Args:
        centred: (m, d) float32, unit rows less `mean`, perhaps rotated.
        mean: (d,) float32, rotated alike.
        growth: by which lengths are taken to be longer, for rounding.
        codes: (m, d) uint8, int8 values plus 128.
        codes_transposed: (d, m) int8.
    """
    for i in range(len(centred)):
        row = centred[i]
        largest, along_mean, square = np.float32(0), np.float32(0), np.float32(0)
        for j in range(len(row)):
            largest = max(largest, abs(row[j]))
            along_mean += row[j] * mean[j]
            square += row[j] * row[j]
        step = max(largest, np.float32(1e-20)) / np.float32(127)
        inverse_step = np.float32(1) / step
        lost = np.float32(0)
        for j in range(len(row)):
            code = np.rint(row[j] * inverse_step)
            codes[i, j] = np.uint8(np.int32(code) + 128)
            lost += (row[j] - code * step) ** 2
        scale[i] = step
        offset[i] = along_mean + half_square_of_mean
        # Neither the row nor what its codes stand for is longer than its length here.
        residual[i] = np.sqrt(lost) * growth
        length[i] = np.sqrt(square) * growth + residual[i]
    for j in range(centred.shape[1]):
        for i in range(len(centred)):
            codes_transposed[j, i] = np.int8(np.int32(codes[i, j]) - 128)
