"""121 statistics of the past: 11 statistics over 11 window lengths, for every position of a series at once."""

import numpy as np
import pandas as pd

THRESHOLD = 1.5  # the multiplier that the threshold head decides about
HIGH = 10.0

FEATURE_WINDOWS = (5, 10, 20, 30, 50, 75, 100, 200, 300, 500, 1000)

STATISTICS = {
    "mean": "mean of the log values",
    "std": "standard deviation of the log values (n - 1)",
    "skew": "skewness of the log values (adjusted Fisher-Pearson)",
    "min": "smallest log value",
    "median": "median of the log values",
    "max": "largest log value",
    "latest": "distance of the latest log value from the mean, in standard deviations",
    "autocorrelation": "correlation of the log values with the ones before them",
    "share_below": "share of values below 1.5",
    "share_high": "share of values of 10 and more",
    "switches": "share of neighbours of which one is below 1.5 and one is not",
}

FEATURE_NAMES = tuple(f"{statistic}_{window}" for window in FEATURE_WINDOWS for statistic in STATISTICS)


def rolling_features(values: np.ndarray) -> np.ndarray:
    """What is known before each position of a series, in time and memory that do not depend on the windows' lengths.

    A statistic that is not defined, as the skewness of equal values, is 0.

    Args:
        values: (n,) multipliers, greater than 0.

    Returns:
        (n, 121) float32, columns as in `FEATURE_NAMES`: row t describes the values before t, never that at t or later.
        Where a window does not fit before t the feature is NaN: rows from `max(FEATURE_WINDOWS)` on are complete.
    """
    values = pd.Series(values, dtype="float64")
    logs, below = np.log(values), (values < THRESHOLD).astype("float64")
    switched = below.diff().abs()
    columns = []
    for window in FEATURE_WINDOWS:
        past, neighbours = logs.rolling(window), logs.rolling(window - 1)
        mean, std = past.mean(), past.std()
        statistics = {
            "mean": mean,
            "std": std,
            "skew": past.skew(),
            "min": past.min(),
            "median": past.median(),
            "max": past.max(),
            "latest": (logs - mean) / std,
            "autocorrelation": neighbours.corr(logs.shift()).clip(-1, 1),
            "share_below": below.rolling(window).mean(),
            "share_high": (values >= HIGH).rolling(window).mean(),
            "switches": switched.rolling(window - 1).mean(),
        }
        for name in STATISTICS:
            defined = statistics[name].where(np.isfinite(statistics[name]), 0.0)
            defined.iloc[: window - 1] = np.nan
            columns.append(defined.shift().to_numpy("float32"))
    return np.stack(columns, axis=1)
