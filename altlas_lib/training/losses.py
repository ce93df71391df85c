"""What training makes small: one loss per head, weighed against each other by the stage."""

import numpy as np

from .backend import keras, serializable


@serializable
class WeightedBinaryCrossentropy(keras.losses.Loss):
    """Mean of -w(y) (y log p + (1 - y) log(1 - p)), w(1) = `above_weight`, w(0) = `below_weight`.

    The weights move the probability that is learned; `unweighted_probability` moves it back.
    """

    def __init__(self, below_weight: float, above_weight: float, **kwargs):
        super().__init__(**kwargs)
        self.below_weight, self.above_weight = below_weight, above_weight

    def call(self, y_true, y_pred):
        y_true = keras.ops.reshape(y_true, keras.ops.shape(y_pred))  # (batch,) to the head's (batch, 1)
        weight = self.below_weight + (self.above_weight - self.below_weight) * y_true
        return keras.ops.mean(weight * keras.ops.binary_crossentropy(y_true, y_pred), axis=-1)

    def get_config(self) -> dict:
        return {**super().get_config(), "below_weight": self.below_weight, "above_weight": self.above_weight}


def balanced_weights(above: np.ndarray) -> tuple[float, float]:
    """Weights of the classes below and above that make both count the same: n / (2 n_class), 1 on average.

    Raises:
        ValueError: one of the classes does not occur.
    """
    n_above, n = int(np.sum(above)), len(above)
    if not 0 < n_above < n:
        raise ValueError(
            f"{n_above} of {n} training targets are at 1.5 or more: expected some on each side; "
            "check that the series is the one you mean, or give a longer one"
        )
    return n / (2 * (n - n_above)), n / (2 * n_above)


def unweighted_probability(weighted: np.ndarray, below_weight: float, above_weight: float) -> np.ndarray:
    """The probability that a model trained with class weights stands for: odds divided by the weights' ratio (Elkan 2001).

    Without this, "more likely than not" would be decided as if both classes were equally frequent.
    """
    above, below = weighted / above_weight, (1 - weighted) / below_weight
    return above / (above + below)


def compile_losses(below_weight: float, above_weight: float) -> dict[str, keras.losses.Loss]:
    """The loss of each head.

    regression: |log(predicted) - log(actual)|, the log of the accuracy ratio (Tofallis 2015). It counts percentages: being
        off by 1 % costs 0.01 at any multiplier. Unlike |predicted - actual| / actual it does not reward low forecasts: its
        best constant is the median.
    classification: cross-entropy of the three classes.
    threshold: class-weighted binary cross-entropy.
    """
    return {
        "regression": keras.losses.MeanAbsoluteError(),
        "classification": keras.losses.SparseCategoricalCrossentropy(),
        "threshold": WeightedBinaryCrossentropy(below_weight, above_weight),
    }
