"""121 statistics of the past: 11 statistics over 11 window lengths, for every position of a series at once."""

import numpy as np
import pandas as pd

THRESHOLD = 1.5  # the multiplier that the threshold head decides about
HIGH = 10.0

FEATURE_WINDOWS = (5, 10, 20, 30, 50, 75, 100, 200, 300, 500, 1000)
N_FEATURES = 11 * len(FEATURE_WINDOWS)


def rolling_features(values: np.ndarray) -> np.ndarray:
    """What is known before each position of a series, in time and memory that do not depend on the windows' lengths.

    Eleven statistics of the log values in each window: mean, standard deviation (n - 1), skewness (adjusted Fisher-Pearson),
    minimum, median, maximum, how many standard deviations the latest one is above the mean, correlation with the ones before
    them; share of values below 1.5, of 10 and more, and of neighbours of which one is below 1.5 and one is not.
    A statistic that is not defined, as the skewness of equal values, is 0.

    Args:
        values: (n,) multipliers, greater than 0.

    Returns:
        (n, 121) float32, window by window: row t describes the values before t, never that at t or later. Where a window
        does not fit before t the feature is NaN: rows from `max(FEATURE_WINDOWS)` on are complete.
    """
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
