"""Scores on values that the model has not seen, beside what needs no model."""

from dataclasses import dataclass

import numpy as np

from ..data import CrashSeries, Series
from ..results import Metric, Quantity
from .features import HIGH, THRESHOLD
from .windows import Samples

ACCURACY, CLASS_ACCURACY = "accuracy at 1.5", "accuracy of 3 classes"
FALSE_SIGNALS, LOG_ERROR = 'false "above" signals', "error of log value"
WITH_A_BEST = (ACCURACY, CLASS_ACCURACY, LOG_ERROR)


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


def base_rate_predictions(samples: Samples) -> Predictions:
    """For every test value the most frequent class, or the median, of the training part."""
    targets = samples.targets(np.r_[samples.split.train])
    n = samples.split.test.stop - samples.split.test.start
    return Predictions(
        above=np.full(n, targets["threshold"].mean() >= 0.5),
        classes=np.full(n, np.bincount(targets["classification"]).argmax()),
        logs=np.full(n, np.median(targets["regression"])),
    )


def best_possible_predictions(series: CrashSeries, part: slice) -> Predictions:
    """What is more likely by the true odds of a generated series; nobody who sees only its past can do better on average.

    Scored on the same values as the model they share its luck; `series.best_possible` is what their scores are on average.
    """
    from_threshold, from_high = series.survival(THRESHOLD)[part], series.survival(HIGH)[part]
    odds = np.stack([1 - from_threshold, from_threshold - from_high, from_high])
    return Predictions(above=from_threshold >= 0.5, classes=odds.argmax(axis=0), logs=np.log(series.median[part]))


def _scores(predictions: Predictions, actual: np.ndarray) -> dict[str, tuple[np.ndarray, bool]]:
    """Each score as (its value for every sample that it is about, whether higher is better); the score is their mean."""
    above = actual >= THRESHOLD
    right = predictions.above == above
    return {
        ACCURACY: (right, True),
        "accuracy below 1.5": (right[~above], True),
        "accuracy from 1.5": (right[above], True),
        CLASS_ACCURACY: (predictions.classes == np.digitize(actual, (THRESHOLD, HIGH)), True),
        FALSE_SIGNALS: (~right[predictions.above], False),
        LOG_ERROR: (np.abs(predictions.logs - np.log(actual)), False),
    }


def _mean(x: np.ndarray) -> float:
    return float(x.mean()) if len(x) else 0.0


def compare(
    model: Predictions, base_rate: Predictions, actual: np.ndarray, best_possible: Predictions | None = None
) -> list[Metric]:
    """The scores of forecasts of the same values side by side, the most important one first.

    - accuracy at 1.5: share of values called right as below 1.5, or 1.5 and more; then the same among the values of each side.
    - accuracy of 3 classes: below 1.5, 1.5 to 10, 10 and more.
    - false "above" signals: among the forecasts of 1.5 or more those that were wrong, which is where money is lost;
      `n_samples` counts these forecasts. Who never gives the signal loses nothing: 0 of 0 is 0.
    - error of log value: mean of |log(predicted) - log(actual)|.

    The interval of a gain is Bonett and Price's (2012) for paired shares: the normal interval of the samples' differences
    after one imagined win and one imagined loss. Where forecasts seldom differ it is as strict as the exact sign test.

    Args:
        actual: (n,) the values, 1.00 or more.
        best_possible: the forecast by the true odds. It is no measure for the scores that a constant can win, such as accuracy
            below 1.5; there the result says None.
    """
    base_scores, best_scores = _scores(base_rate, actual), _scores(best_possible, actual) if best_possible else {}
    metrics = []
    for name, (values, higher_is_better) in _scores(model, actual).items():
        base_values = base_scores[name][0]
        gain_low = gain_high = None
        if name != FALSE_SIGNALS:  # which are not about the same samples
            differences = np.subtract(values, base_values, dtype="float64") * (1 if higher_is_better else -1)
            differences = np.append(differences, (1, -1))
            margin = 1.96 * differences.std() / np.sqrt(len(differences))
            gain_low, gain_high = differences.mean() - margin, differences.mean() + margin
        metrics.append(
            Metric(
                name=name,
                unit="log" if name == LOG_ERROR else "share",
                higher_is_better=higher_is_better,
                model=_mean(values),
                base_rate=_mean(base_values),
                best_possible=_mean(best_scores[name][0]) if best_possible and name in WITH_A_BEST else None,
                n_samples=len(values),
                gain_low=gain_low,
                gain_high=gain_high,
            )
        )
    return metrics


def evaluate(model: Predictions, samples: Samples, series: Series) -> list[Metric]:
    """The scores of a model's forecast of the test part, beside the base rate's and, for a generated series, the best possible.

    Args:
        model: the forecast, `run.predict(samples, samples.split.test)`.
        series: what `samples` was made from.
    """
    test = samples.split.test
    best = best_possible_predictions(series, test) if isinstance(series, CrashSeries) else None
    return compare(model, base_rate_predictions(samples), samples.values[test], best)


def verdict(accuracy: Metric) -> str:
    """What an accuracy says about the model, claiming no more than its interval bears out."""
    gain = f"{_points(accuracy.model - accuracy.base_rate)} points"
    interval = f"95 % interval {_points(accuracy.gain_low)} to {_points(accuracy.gain_high)}"
    best = accuracy.best_possible
    if best is not None:
        interval += f"; {_points(best - accuracy.base_rate)} possible"
    if best is not None and best <= accuracy.base_rate:
        return (
            f"on these values nothing can be predicted, the true odds do no better; the model's {gain} are noise ({interval})"
        )
    if accuracy.gain_low > 0:
        return f"the model predicts, by {gain} ({interval})"
    if accuracy.gain_high < 0:
        return f"the model does worse than no model, by {gain} ({interval})"
    return f"no sign that the model predicts anything, {gain} are within the sampling error ({interval})"


def _points(share: float) -> str:
    return f"{100 * share:+.1f}"


def finding(accuracy: Metric, *, preset: str, source_name: str, step_time: Quantity) -> str:
    """The chapter in one sentence."""
    return (
        f"{source_name}: the {preset} model, trained on {step_time.device} in {step_time} per micro-batch ({step_time.basis}), "
        f"calls {accuracy.model:.1%} of {accuracy.n_samples:,} unseen values right as below {THRESHOLD} or not, the base rate "
        f"{accuracy.base_rate:.1%}; {verdict(accuracy)}."
    )
