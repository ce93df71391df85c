"""The plan says what its lighter models keep of the quality. Here they are trained beside the reference, with several seeds."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ...data import Series
from ...results import Kept, Quality
from ..fit.series import predict, train
from ..model.config import ModelConfig, option1, option2
from ..model.multi_scale import build_model
from ..model.windows import Predictions, Samples, prepare
from .metrics import ACCURACY, base_rate_predictions, evaluate, interval, resampled, scores

# The plan's options and the shares of quality that it says they keep.
OPTIONS: dict[str, tuple[Callable[[ModelConfig], ModelConfig], tuple[float, float]]] = {
    "option 1": (option1, (0.95, 0.98)),
    "option 2": (option2, (0.90, 0.95)),
}


def forecasts(samples: Samples, config: ModelConfig, *, seeds: Sequence[int], **training: Any) -> list[Predictions]:
    """Of the test part, by a model trained anew with each seed; `training` goes to `train`."""
    return [predict(train(samples, config, seed=seed, **training).model, samples, samples.split.test) for seed in seeds]


def compare_options(
    name: str,
    series: Series,
    config: ModelConfig,
    reference: Sequence[Predictions] | None = None,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    **training: Any,
) -> list[Quality]:
    """Train the two lighter options of `config` with each seed, and say what of its forecast's quality they keep.

    Args:
        name: of the series, in the result.
        reference: forecasts by `config` itself, one for each seed; None: it is trained, too.
        seeds: three or more; between fewer the interval says little.
        **training: as for `train`.

    Raises:
        ValueError: `config` has no Transformer to lighten.
    """
    samples, qualities = prepare(series.values, window=config.window), []
    lighter = {option: lighten(config) for option, (lighten, _) in OPTIONS.items()}
    reference = reference or forecasts(samples, config, seeds=seeds, **training)
    for option, light in lighter.items():
        # Sample t is the value at t for all of them: the same test part, though the lighter model may look less far back.
        predictions = forecasts(samples, light, seeds=seeds, **training)
        score_kept, gain_kept = kept(predictions, reference, samples)
        claimed = OPTIONS[option][1]
        qualities.append(
            Quality(
                option=option,
                series=name,
                n_seeds=len(seeds),
                n_parameters=build_model(light).count_params(),
                metrics=evaluate(predictions, samples, series),
                score_kept=score_kept,
                gain_kept=gain_kept,
                claimed=claimed,
                verdict=claim_verdict(gain_kept, claimed),
            )
        )
    return qualities


def quality_rows(qualities: Sequence[Quality]) -> list[dict[str, Any]]:
    """A row of a table for each option on each series."""

    def percent(kept: Kept | None) -> str:
        return f"{kept.value:.1%} ({kept.low:.1%} to {kept.high:.1%})" if kept else "there is none"

    return [
        {
            "option": quality.option,
            "series": quality.series,
            "n_parameters": f"{quality.n_parameters:,}",
            "accuracy at 1.5": f"{quality.metrics[0].model:.1%}",
            "base rate": f"{quality.metrics[0].base_rate:.1%}",
            "accuracy kept": percent(quality.score_kept),
            "gain kept": percent(quality.gain_kept),
            "claimed": "{:.0%} to {:.0%}".format(*quality.claimed),
            "verdict": quality.verdict,
        }
        for quality in qualities
    ]


def kept(light: Sequence[Predictions], reference: Sequence[Predictions], samples: Samples) -> tuple[Kept, Kept | None]:
    """Ratios of the two accuracies at 1.5, and of their gains over the base rate where the reference has a sure one."""
    actual = samples.values[samples.split.test]
    forecast_groups = (light, reference, [base_rate_predictions(samples)])
    groups = [[scores(each, actual)[ACCURACY] for each in group] for group in forecast_groups]
    of_light, of_reference, of_base = (np.mean([score.value for score in group]) for group in groups)
    draws = resampled(*groups)

    def ratio(above: float, below: float, above_draws: np.ndarray, below_draws: np.ndarray) -> Kept:
        low, high = interval(above_draws / below_draws)
        return Kept(value=above / below, low=low, high=high)

    score = ratio(of_light, of_reference, draws[0], draws[1])
    gains, strictly = draws[1] - draws[2], resampled(*groups[1:])  # the latter with the imagined win and loss of the reference
    if min(interval(gains)[0], interval(strictly[0] - strictly[1])[0]) <= 0:
        return score, None
    return score, ratio(
        of_light - of_base, of_reference - of_base, draws[0] - draws[2], np.maximum(gains, np.finfo(float).tiny)
    )


def claim_verdict(gain_kept: Kept | None, claimed: tuple[float, float]) -> str:
    """Whether what was kept bears the plan's claim out, saying no more than the interval does."""
    low, high = claimed
    if gain_kept is None:
        return "nothing to keep: the reference predicts no better than the base rate"
    if gain_kept.low > high:
        return "keeps more than claimed"
    if gain_kept.high < low:
        return "keeps less than claimed"
    if low <= gain_kept.low and gain_kept.high <= high:
        return "as claimed"
    return "not decided: the interval holds more than the claim"
