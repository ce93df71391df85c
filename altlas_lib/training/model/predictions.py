"""A forecast of the multi-scale model, as its heads make it."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Predictions:
    """A forecast of n values.

    Attributes:
        above: (n,) bool, the value will be 1.5 or more.
        classes: (n,) int, 0 for below 1.5, 1 for 1.5 to 10, 2 for 10 and more.
        logs: (n,) float, log of the value.
    """

    above: np.ndarray
    classes: np.ndarray
    logs: np.ndarray
