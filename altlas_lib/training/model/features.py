"""121 statistics of the past: 11 statistics over 11 window lengths, for every position of a series at once."""

from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd

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
    values = xp.asarray(values, dtype="float64")
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
    lowest, highest = ordered[:, 0], ordered[:, -1]
    mean = logs.mean(axis=1)
    away = xp.where((lowest < highest)[:, None], logs - mean[:, None], 0.0)  # exactly 0 where all values are equal
    std = xp.sqrt((away**2).sum(axis=1) / (window - 1))
    z = away / xp.where(std > 0, std, 1.0)[:, None]
    skew = window / ((window - 1) * (window - 2)) * (z**3).sum(axis=1)
    one, other = (xp.where((part.max(axis=1) > part.min(axis=1))[:, None], part - part.mean(axis=1)[:, None], 0.0)
                  for part in (logs[:, 1:], logs[:, :-1]))  # fmt: skip
    spread = xp.sqrt((one**2).sum(axis=1) * (other**2).sum(axis=1))
    correlation = xp.clip((one * other).sum(axis=1) / xp.where(spread > 0, spread, 1.0), -1, 1)
    median = (ordered[:, (window - 1) // 2] + ordered[:, window // 2]) / 2
    shares = (below.mean(axis=1), (values >= HIGH).mean(axis=1), (below[:, 1:] != below[:, :-1]).mean(axis=1))
    return xp.stack((mean, std, skew, lowest, median, highest, z[:, -1], correlation, *shares), axis=1)
