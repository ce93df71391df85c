"""121 statistics of the past: 11 statistics over 11 window lengths, for every position of a series at once."""

from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd

from ...devices import GpuSpec
from ...devices.efficiencies import load_efficiencies
from ...results import Quantity
from .config import FEATURE_WINDOWS

THRESHOLD = 1.5  # the multiplier that the threshold head decides about
HIGH = 10.0

_CHUNK_BYTES = 2**26  # of windows side by side


def rolling_features(values: Any, xp: ModuleType | None = None) -> Any:
    """What is known before each position of a series.

    Eleven statistics of the log values in each window: mean, standard deviation (n - 1), skewness (adjusted Fisher-Pearson),
    minimum, median, maximum, how many standard deviations the latest one is above the mean, correlation with the ones before
    them; share of values below 1.5, of 10 and more, and of neighbours of which one is below 1.5 and one is not.
    A statistic that is not defined, as the skewness of equal values, is 0.

    Args:
        values: (n,) multipliers, greater than 0.
        xp: None: pandas' moving windows, in time and memory that do not depend on the windows' lengths. `numpy` or `cupy`:
            array code that holds whole windows side by side, a chunk of positions at a time, and is meant for a GPU; equal to
            pandas' within 1e-4 where a window's spread is not itself rounding.

    Returns:
        (n, 121) float32, window by window: row t describes the values before t, never that at t or later. Where a window
        does not fit before t the feature is NaN: rows from `max(FEATURE_WINDOWS)` on are complete.
    """
    if xp is not None:
        return _array_features(values, xp)
    values = pd.Series(values, dtype="float64")
    logs, below = np.log(values), (values < THRESHOLD).astype("float64")
    switched = below.diff().abs()
    columns = []
    for window in FEATURE_WINDOWS:
        past, neighbours = logs.rolling(window), logs.rolling(window - 1)
        mean, std = past.mean(), past.std()
        statistics = [mean, std, past.skew(), past.min(), past.median(), past.max(), (logs - mean) / std]
        statistics += [neighbours.corr(logs.shift()).clip(-1, 1), below.rolling(window).mean()]
        statistics += [(values >= HIGH).rolling(window).mean(), switched.rolling(window - 1).mean()]
        for statistic in statistics:
            defined = statistic.where(np.isfinite(statistic), 0.0)
            defined.iloc[: window - 1] = np.nan
            columns.append(defined.shift().to_numpy("float32"))
    return np.stack(columns, axis=1)


def _array_features(values: Any, xp: ModuleType) -> Any:
    values = xp.asarray(values).astype("float64")
    n, features = len(values), xp.full((len(values), 11 * len(FEATURE_WINDOWS)), xp.nan, dtype="float32")
    for i, window in enumerate(FEATURE_WINDOWS):
        step = max(1, _CHUNK_BYTES // (8 * window))
        for start in range(window, n, step):
            before = xp.arange(start, min(start + step, n))[:, None] - xp.arange(window, 0, -1)  # positions of each window
            features[start : start + len(before), 11 * i : 11 * (i + 1)] = _window_statistics(values[before], xp)
    return features


def _window_statistics(values: Any, xp: ModuleType) -> Any:
    """The eleven statistics of each row: (rows, window) -> (rows, 11)."""
    window, below, logs = values.shape[1], values < THRESHOLD, xp.log(values)
    ordered = xp.sort(logs, axis=1)
    away = _subtract_mean(logs, xp)
    std = xp.sqrt(xp.sum(away**2, axis=1) / (window - 1))
    z = away / xp.where(std > 0, std, 1.0)[:, None]
    skew = window / ((window - 1) * (window - 2)) * xp.sum(z**3, axis=1)
    one, other = _subtract_mean(logs[:, 1:], xp), _subtract_mean(logs[:, :-1], xp)
    spread = xp.sqrt(xp.sum(one**2, axis=1) * xp.sum(other**2, axis=1))
    correlation = xp.clip(xp.sum(one * other, axis=1) / xp.where(spread > 0, spread, 1.0), -1, 1)
    median = (ordered[:, (window - 1) // 2] + ordered[:, window // 2]) / 2
    shares = [xp.mean(event, axis=1) for event in (below, values >= HIGH, below[:, 1:] != below[:, :-1])]
    location = xp.mean(logs, axis=1), std, skew, ordered[:, 0], median, ordered[:, -1]  # the lowest, the highest
    return xp.stack((*location, z[:, -1], correlation, *shares), axis=1)


def _subtract_mean(rows: Any, xp: ModuleType) -> Any:
    """Exactly 0 where all values of a row are equal."""
    varies = xp.max(rows, axis=1) > xp.min(rows, axis=1)
    return xp.where(varies[:, None], rows - xp.mean(rows, axis=1)[:, None], 0.0)


# Bytes that `_window_statistics` moves for each value of a window: 46 reads and writes in float64 outside of the sort, and
# CuPy's sort of rows (Thrust's radix sort by key and row: 8 bytes each, counted once and moved once for each byte of the key).
_MOVED_BYTES = {"stream": 46 * 8, "sort": 8 + 2 * 8 * (8 + 8)}


def project_features(n_values: int, gpu: GpuSpec) -> Quantity:
    """Seconds of `rolling_features(values, xp=cupy)` on a GPU, bound by its memory, by the efficiencies fitted for such work.

    The values' transfer, 8 bytes each, and the starts of some 500 kernels are not counted.
    """
    efficiencies, n_in_windows = load_efficiencies(), n_values * sum(FEATURE_WINDOWS)
    low = high = 0.0
    for kind, n_bytes in _MOVED_BYTES.items():
        rate = gpu.memory_bandwidth_gb_per_s * 1e9 * efficiencies.values[f"{kind}.memory_share"]
        low += n_in_windows * n_bytes / rate / efficiencies.accuracy[kind].factor
        high += n_in_windows * n_bytes / rate * efficiencies.accuracy[kind].factor
    return Quantity.projected(low, high, "s", gpu.name, "memory bandwidth")
