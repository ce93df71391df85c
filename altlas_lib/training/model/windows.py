"""From a series to batches without copies: the series is kept once, a sample is a position in it."""

from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from sklearn.preprocessing import StandardScaler

from .config import CLASSIFICATION, FEATURE_WINDOWS, REGRESSION, THRESHOLD_HEAD
from .features import HIGH, THRESHOLD, rolling_features

VALIDATION_SHARE, TEST_SHARE = 0.1, 0.2
MIN_SAMPLES = 100


@dataclass(frozen=True)
class Split:
    """Positions of the targets of each part, one after the other in time and without overlap."""

    train: slice
    validation: slice
    test: slice


@dataclass(frozen=True, eq=False)
class Samples:
    """A series prepared for training. Sample t predicts the value at position t from what lies before it.

    Attributes:
        values: (n,) float64, the series as given.
        scaled_logs: (n,) float32, log values; mean 0 and standard deviation 1 up to the end of the training part.
        features: (n, 121) float32, row t from values before t; mean 0 and standard deviation 1 on the training part.
        split: the positions of the three parts; the first one has as much past as the longest window asks for.
    """

    values: np.ndarray
    scaled_logs: np.ndarray
    features: np.ndarray
    split: Split

    def inputs(self, positions: np.ndarray, window: int) -> dict[str, np.ndarray]:
        """The model's inputs: `window` (len(positions), window), oldest value first, and `features` (len(positions), 121).

        Raises:
            ValueError: a position has less than `window` values before it.
        """
        if np.any(positions < window):  # NumPy would count from the end of the series and show the model its future
            problem = f"position {min(positions)} has no {window} values before it"
            raise ValueError(f"{problem}: prepare the series with window={window}")
        past = sliding_window_view(self.scaled_logs, window)
        return {"window": past[positions - window], "features": self.features[positions]}

    def targets(self, positions: np.ndarray) -> dict[str, np.ndarray]:
        """What each head is to say: `regression` (log value), `classification` (0, 1, 2), `threshold` (0.0 or 1.0)."""
        values = self.values[positions]
        return {
            REGRESSION: np.log(values).astype("float32"),
            CLASSIFICATION: np.digitize(values, (THRESHOLD, HIGH)),
            THRESHOLD_HEAD: (values >= THRESHOLD).astype("float32"),
        }


def prepare(values: np.ndarray, *, window: int) -> Samples:
    """Split a series in time (70 % training, 10 % validation, 20 % test) and scale it by what its training part knows.

    A window of a later part may reach back into an earlier one, as it will in use: the past is known by then. No value
    after a position reaches its inputs, and no value is the target of two parts.

    Args:
        values: (n,) multipliers of 1.00 or more.
        window: the longest window of the model, `ModelConfig.window`.

    Raises:
        ValueError: values are missing, infinite or below 1.00, the series is too short, or it is no series.
    """
    values = np.asarray(values, dtype="float64")
    if values.ndim != 1:
        raise ValueError(f"values have shape {values.shape}: expected one axis, such as one column of a table")
    bad = np.flatnonzero(~(np.isfinite(values) & (values >= 1)))
    if len(bad):
        first = ", ".join(f"{values[at]} at {at}" for at in bad[:3]) + (", ..." if len(bad) > 3 else "")
        counts = f"{len(bad)} of {len(values)} values are no multipliers, which are 1.00 or more"
        raise ValueError(f"{counts}: {first}; correct them, or give the series that you mean")
    history, n = max(window, *FEATURE_WINDOWS), len(values)
    if n < history + MIN_SAMPLES:
        needed = f"a sample needs {history} values of past, and {MIN_SAMPLES} samples are the least to split in three"
        raise ValueError(f"the series has {n} values: {needed}; give at least {history + MIN_SAMPLES}")
    test = n - round((n - history) * TEST_SHARE)
    validation = test - round((n - history) * VALIDATION_SHARE)
    split = Split(slice(history, validation), slice(validation, test), slice(test, n))

    logs, features = np.log(values)[:, None], rolling_features(values)
    scaled_logs = StandardScaler().fit(logs[: split.train.stop]).transform(logs)[:, 0]
    scaled_features = StandardScaler().fit(features[split.train]).transform(features)
    return Samples(values, scaled_logs.astype("float32"), scaled_features.astype("float32"), split)


@dataclass(frozen=True, eq=False)
class Predictions:
    """A forecast of n values, as the model's heads make it.

    Attributes:
        above: (n,) bool, the value will be 1.5 or more.
        classes: (n,) int, 0 for below 1.5, 1 for 1.5 to 10, 2 for 10 and more.
        logs: (n,) float, log of the value.
    """

    above: np.ndarray
    classes: np.ndarray
    logs: np.ndarray
