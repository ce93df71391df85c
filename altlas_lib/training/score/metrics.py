"""Scores on values that the model has not seen, beside what needs no model; what lighter models keep of them."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

from ...data import CrashSeries, Series
from ...results import Kept, Metric, Quality
from ..fit.series import predict, train
from ..model.config import CLASSIFICATION, REGRESSION, THRESHOLD_HEAD, ModelConfig, lighten
from ..model.features import HIGH, THRESHOLD
from ..model.multi_scale import build_model
from ..model.windows import Predictions, Samples, prepare

ACCURACY, CLASS_ACCURACY = "accuracy at 1.5", "accuracy of 3 classes"
FALSE_SIGNALS, LOG_ERROR = 'false "above" signals', "error of log value"
WITH_A_BEST, LESS_IS_BETTER = (ACCURACY, CLASS_ACCURACY, LOG_ERROR), (FALSE_SIGNALS, LOG_ERROR)

Forecast = Predictions | Sequence[Predictions]  # of one model, or of a model trained with several seeds
Group = Sequence[np.ndarray]  # of one score, an array for each seed; see `scores`

_N_RESAMPLES = 2000
_FEWEST_BLOCKS, _MOST_BLOCKS = 40, 2000


def base_rate_predictions(samples: Samples) -> Predictions:
    """For every test value the most frequent class, or the median, of the training part."""
    targets, n = samples.targets(np.r_[samples.split.train]), len(np.r_[samples.split.test])
    above, most_frequent = targets[THRESHOLD_HEAD].mean() >= 0.5, np.bincount(targets[CLASSIFICATION]).argmax()
    return Predictions(np.full(n, above), np.full(n, most_frequent), np.full(n, np.median(targets[REGRESSION])))


def best_possible_predictions(series: CrashSeries, part: slice) -> Predictions:
    """What is more likely by the true odds of a generated series; nobody who sees only its past can do better on average.

    Scored on the same values as the model they share its luck; `series.best_possible` is what their scores are on average.
    """
    from_threshold, from_high = series.survival(THRESHOLD)[part], series.survival(HIGH)[part]
    odds = np.stack([1 - from_threshold, from_threshold - from_high, from_high])
    return Predictions(above=from_threshold >= 0.5, classes=odds.argmax(axis=0), logs=np.log(series.median[part]))


def scores(predictions: Predictions, actual: np.ndarray) -> dict[str, np.ndarray]:
    """Each score's name, and of each value a part of the score and what it counts, 0 for values that it is not about: (2, n).

    The score is sum(parts) / sum(counts); `compare` says what they are.
    """
    above, every = actual >= THRESHOLD, np.ones(len(actual))
    right = predictions.above == above
    parts_and_counts = {
        ACCURACY: (right, every),
        "accuracy below 1.5": (right & ~above, ~above),
        "accuracy from 1.5": (right & above, above),
        CLASS_ACCURACY: (predictions.classes == np.digitize(actual, (THRESHOLD, HIGH)), every),
        FALSE_SIGNALS: (predictions.above & ~above, predictions.above),
        LOG_ERROR: (np.abs(predictions.logs - np.log(actual)), every),
    }
    return {name: np.array(pair, dtype="float64") for name, pair in parts_and_counts.items()}


def mean_score(group: Group) -> float:
    """Of the seeds of a configuration."""
    return float(np.mean([parts.sum() / (counts.sum() or 1) for parts, counts in group]))


def resampled(*groups: Group) -> list[np.ndarray]:
    """What each group's mean score might as well have been: (2,000,) each, a bootstrap over values and seeds.

    Values are drawn in blocks of neighbours, which may depend on each other (Carlstein 1986,
    https://doi.org/10.1214/aos/1176350057), the same ones for all groups, as long as `block_length` says; seeds within each
    group. There are an imagined win and loss of the first group against the others among the values, as Bonett and Price (2012)
    do for paired shares: where forecasts seldom differ, a few lucky values prove nothing. A draw from so few seeds spreads too
    little: its distance from their mean is stretched to that of Student's t, which makes three seeds as uncertain as they are.

    Args:
        groups: of each configuration the scores of its seeds, all of the same n values.
    """
    n = groups[0][0].shape[1]
    n_blocks = -(-n // block_length(groups))
    starts = np.arange(n_blocks) * n // n_blocks
    blocks, means = _draw(n_blocks + 2, seed=0), []
    for number, group in enumerate(groups, start=1):
        imagined = [(1, 0) if number == 1 else (0, 1), (1, 1)]
        sums = [np.append(np.add.reduceat(score, starts, axis=1), imagined, axis=1) for score in group]
        parts, counts = np.swapaxes(sums @ blocks.T, 0, 1)  # of (seeds, 2, draws)
        values = np.divide(parts, counts, out=np.zeros_like(parts), where=counts > 0)
        of_seeds, n_seeds = values.mean(axis=0), len(group)
        if n_seeds > 1:
            stretch = math.sqrt(n_seeds / (n_seeds - 1)) * stats.t.ppf(0.975, n_seeds - 1) / stats.norm.ppf(0.975)
            drawn = _draw(n_seeds, seed=number)
            of_seeds += stretch * ((drawn.T * values).sum(axis=0) / n_seeds - of_seeds)
        means.append(of_seeds)
    return means


@functools.lru_cache(maxsize=4)
def _draw(n_things: int, seed: int) -> np.ndarray:
    """How often each of some things is drawn, with replacement: (2,000, n_things), always the same."""
    shares = np.full(n_things, 1 / n_things)
    return np.random.default_rng(seed).multinomial(n_things, shares, size=_N_RESAMPLES).astype("float64")


def block_length(groups: Sequence[Group]) -> int:
    """How many neighbouring values to draw together: what the dependence between the groups' differences asks for.

    Politis and White (2004, https://doi.org/10.1081/ETC-120028836), corrected by Patton, Politis and White (2009), for the
    circular bootstrap; at least `_FEWEST_BLOCKS` blocks, and longer blocks than needed rather than more than `_MOST_BLOCKS`.
    """
    means = [np.mean([parts for parts, _ in group], axis=0) for group in groups]
    n = len(means[0])
    needed = max(_dependence_length(mean - means[-1]) for mean in means[:-1])
    return min(max(needed, -(-n // _MOST_BLOCKS)), max(1, n // _FEWEST_BLOCKS))


def _dependence_length(differences: np.ndarray) -> int:
    n = len(differences)
    x, n_quiet = differences - differences.mean(), max(5, math.ceil(math.sqrt(math.log10(n))))
    lags = np.arange(min(math.ceil(math.sqrt(n)) + n_quiet, n))
    covariances = np.array([x[: n - lag] @ x[lag:] for lag in lags]) / n
    if covariances[0] < 1e-15:
        return 1
    loud = np.flatnonzero(np.abs(covariances) > 2 * math.sqrt(math.log10(n) / n) * covariances[0])
    gaps = np.flatnonzero(np.diff([*loud, lags[-1] + n_quiet + 1]) > n_quiet)
    last = loud[gaps[0]]  # after it come so many lags without a correlation to speak of
    width = min(2 * max(last, 1), lags[-1])
    taper = np.clip(2 * (1 - lags / max(width, 1)), 0, 1)
    spectrum = 2 * (taper * covariances).sum() - covariances[0]
    slope = 2 * (taper * lags * covariances).sum()
    return max(1, math.ceil((1.5 * slope**2 / max(spectrum**2, 1e-30) * n) ** (1 / 3)))


def constant_answer(forecasts: Sequence[Predictions]) -> str | None:
    """What all forecasts of all seeds say of every value; None where they tell values apart."""
    said = np.unique([each.above for each in forecasts])
    return None if len(said) > 1 else f"{THRESHOLD} or more" if said[0] else f"below {THRESHOLD}"


def interval(values: np.ndarray) -> tuple[float, float]:
    """The middle 95 % of what `resampled` gave."""
    low, high = np.quantile(values, (0.025, 0.975))
    return float(low), float(high)


def compare(
    model: Forecast, base_rate: Predictions, actual: np.ndarray, best_possible: Predictions | None = None
) -> list[Metric]:
    """The scores of forecasts of the same values side by side, the most important one first.

    - accuracy at 1.5: share of values called right as below 1.5, or 1.5 and more; then the same among the values of each side.
    - accuracy of 3 classes: below 1.5, 1.5 to 10, 10 and more.
    - false "above" signals: among the forecasts of 1.5 or more those that were wrong, which is where money is lost;
      `n_samples` counts these forecasts. Who never gives the signal loses nothing: 0 of 0 is 0.
    - error of log value: mean of |log(predicted) - log(actual)|.

    Args:
        model: a forecast, or those of a configuration trained with several seeds: the score is their mean.
        actual: (n,) the values, 1.00 or more.
        best_possible: the forecast by the true odds. It is no measure for the scores that a constant can win, such as accuracy
            below 1.5; there the result says None.
    """
    seeds = [scores(each, actual) for each in ([model] if isinstance(model, Predictions) else model)]
    best, metrics = scores(best_possible, actual) if best_possible else {}, []
    for name, base in scores(base_rate, actual).items():
        group, higher_is_better = [each[name] for each in seeds], name not in LESS_IS_BETTER
        of_model, of_base = resampled(group, [base])
        gain_low, gain_high = interval((of_model - of_base) * (1 if higher_is_better else -1))
        found = {"higher_is_better": higher_is_better, "gain_low": gain_low, "gain_high": gain_high}
        found |= {"model": mean_score(group), "base_rate": mean_score([base]), "block_length": block_length([group, [base]])}
        found["best_possible"] = mean_score([best[name]]) if best and name in WITH_A_BEST else None
        n_samples = round(np.mean([counts.sum() for _, counts in group]))
        metrics.append(Metric(name=name, unit="log" if name == LOG_ERROR else "share", n_samples=n_samples, **found))
    return metrics


def evaluate(model: Forecast, samples: Samples, series: Series) -> list[Metric]:
    """The scores of a forecast of the test part, beside the base rate's and, for a generated series, the best possible.

    Args:
        model: `run.predict(samples, samples.split.test)`, or a list of those of several seeds.
        series: what `samples` was made from.
    """
    test = samples.split.test
    best = best_possible_predictions(series, test) if isinstance(series, CrashSeries) else None
    return compare(model, base_rate_predictions(samples), samples.values[test], best)


# What lighter models keep -----------------------------------------------------------------------------------------------

CLAIMED = {"option1": (0.95, 0.98), "option2": (0.90, 0.95)}  # shares of quality that the specification says they keep


def forecasts(samples: Samples, config: ModelConfig, *, seeds: Sequence[int], **training: Any) -> list[Predictions]:
    """Of the test part, by a model trained anew with each seed; `training` goes to `train`."""
    return [predict(train(samples, config, seed=seed, **training).model, samples, samples.split.test) for seed in seeds]


def compare_options(
    name: str, series: Series, config: ModelConfig, reference: Sequence[Predictions], *, seeds: Sequence[int], **training: Any
) -> list[Quality]:
    """Train the two lighter options of `config` with each seed, and say what of its forecast's quality they keep.

    Args:
        name: of the series, in the result.
        reference: `forecasts` by `config` itself, one for each seed.
        seeds: three or more; between fewer the interval says little.
        **training: as for `train`.

    Raises:
        ValueError: `config` has no Transformer to lighten.
    """
    samples, qualities = prepare(series.values, window=config.window), []
    for option, light in lighten(config).items():
        # Sample t is the value at t for all of them: the same test part, though the lighter model may look less far back.
        predictions = forecasts(samples, light, seeds=seeds, **training)
        found = {"metrics": evaluate(predictions, samples, series), "n_parameters": build_model(light).count_params()}
        found |= {"gain_kept": kept(predictions, reference, samples)[1], "claimed": CLAIMED[option]}
        qualities.append(Quality(option=option, series=name, n_seeds=len(seeds), **found))
    return qualities


def kept(light: Sequence[Predictions], reference: Sequence[Predictions], samples: Samples) -> tuple[Kept, Kept | None]:
    """Of the reference's accuracy at 1.5, and of its gain over the base rate; None: it has none that is sure."""
    actual, base = samples.values[samples.split.test], [base_rate_predictions(samples)]
    groups = [[scores(each, actual)[ACCURACY] for each in group] for group in (light, reference, base)]
    # Of each group what was found, and after it what might have been.
    found = [np.append(mean_score(group), draws) for group, draws in zip(groups, resampled(*groups), strict=True)]

    def ratio(above: np.ndarray, below: np.ndarray) -> Kept:
        low, high = interval(above[1:] / np.maximum(below[1:], np.finfo(float).tiny))
        return Kept(value=above[0] / below[0], low=low, high=high)

    of_light, of_reference, of_base = found
    strictly = resampled(*groups[1:])  # with the imagined win and loss of the reference
    is_sure = min(interval((of_reference - of_base)[1:])[0], interval(strictly[0] - strictly[1])[0]) > 0
    return ratio(of_light, of_reference), ratio(of_light - of_base, of_reference - of_base) if is_sure else None
