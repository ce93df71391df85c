"""What training makes small: one loss per head, weighed against each other by the stage."""

import numpy as np

from ..backend import keras, serializable
from .config import CLASSIFICATION, REGRESSION, THRESHOLD_HEAD


@serializable
class WeightedBinaryCrossentropy(keras.losses.Loss):
    """Mean of -w(y) (1 - q)^gamma log q, q = p for y = 1 and 1 - p for y = 0, w(1) = `above_weight`, w(0) = `below_weight`.

    With `gamma` above 0 it is the focal loss (Lin et al. 2017, https://arxiv.org/abs/1708.02002), which counts samples less
    that are called right already. Weights and gamma move the probability that is learned; `unweighted_probability` moves it
    back.

    Raises:
        ValueError: gamma is between 0 and 1, where its slope has no bound, or negative.
    """

    def __init__(self, below_weight: float, above_weight: float, gamma: float = 0.0, **kwargs):
        super().__init__(**kwargs)
        if gamma != 0 and not 1 <= gamma < float("inf"):
            raise ValueError(f"gamma is {gamma}: expected 0 (no focus), or 1 and more (2 is usual)")
        self.below_weight, self.above_weight, self.gamma = below_weight, above_weight, gamma

    def call(self, y_true, y_pred):
        y_true = keras.ops.reshape(y_true, keras.ops.shape(y_pred))  # (batch,) to the head's (batch, 1)
        weight = self.below_weight + (self.above_weight - self.below_weight) * y_true
        if self.gamma:
            weight = weight * keras.ops.abs(y_true - y_pred) ** self.gamma
        return keras.ops.mean(weight * keras.ops.binary_crossentropy(y_true, y_pred), axis=-1)

    def get_config(self) -> dict:
        own = {"below_weight": self.below_weight, "above_weight": self.above_weight, "gamma": self.gamma}
        return super().get_config() | own


def balanced_weights(above: np.ndarray) -> tuple[float, float]:
    """Weights of the classes below and above that make both count the same: n / (2 n_class), 1 on average.

    Raises:
        ValueError: one of the classes does not occur.
    """
    n_above, n = int(np.sum(above)), len(above)
    if not 0 < n_above < n:
        counts = f"{n_above} of {n} training targets are at 1.5 or more"
        raise ValueError(f"{counts}: expected some on each side; give the series that you mean, or a longer one")
    return n / (2 * (n - n_above)), n / (2 * n_above)


def unweighted_probability(learned: np.ndarray, below_weight: float, above_weight: float, gamma: float = 0.0) -> np.ndarray:
    """The probability that a model trained with class weights and focus stands for.

    The focal loss of probability p is smallest where the odds are f(1 - p) / f(p), f(q) being the steepness of -(1 - q)^gamma
    log q (Charoenphakdee et al. 2021, https://arxiv.org/abs/2011.09172); without focus these are p's own odds. Then odds are
    divided by the weights' ratio (Elkan 2001). Without this, "more likely than not" would be decided as if both classes were
    equally frequent.
    """

    def steepness(q: np.ndarray) -> np.ndarray:
        return (1 - q) ** gamma / q - (gamma * (1 - q) ** (gamma - 1) * np.log(q) if gamma else 0)

    p = np.clip(np.asarray(learned, dtype="float64"), 1e-7, 1 - 1e-7)  # as the loss does
    above, below = steepness(1 - p) / above_weight, steepness(p) / below_weight
    return above / (above + below)


def compile_losses(below_weight: float, above_weight: float, gamma: float = 0.0) -> dict[str, keras.losses.Loss]:
    """The loss of each head.

    regression: |log(predicted) - log(actual)|, the log of the accuracy ratio (Tofallis 2015). It counts percentages: being
        off by 1 % costs 0.01 at any multiplier. Unlike |predicted - actual| / actual it does not reward low forecasts: its
        best constant is the median.
    classification: cross-entropy of the three classes.
    threshold: class-weighted binary cross-entropy, with `gamma` focal.
    """
    return {
        REGRESSION: keras.losses.MeanAbsoluteError(),
        CLASSIFICATION: keras.losses.SparseCategoricalCrossentropy(),
        THRESHOLD_HEAD: WeightedBinaryCrossentropy(below_weight, above_weight, gamma),
    }
