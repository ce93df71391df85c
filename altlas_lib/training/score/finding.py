"""The chapter's answer in a sentence or two, claiming no more than what was measured bears out."""

from collections.abc import Sequence

from ...results import Metric, Quantity, Remedy
from ..model.features import THRESHOLD

LEAST_GAIN = 0.01  # of the accuracy, over the base rate, that is worth a model


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
    if accuracy.gain_high < 0:
        return f"the model does worse than no model, by {gain} ({interval})"
    if accuracy.gain_high < LEAST_GAIN:
        return f"the model gains less than the {_points(LEAST_GAIN)} points that would matter, {gain} ({interval})"
    if accuracy.gain_low > 0:
        return f"the model predicts, by {gain} ({interval})"
    return f"no sign that the model predicts anything, {gain} are within the sampling error ({interval})"


def _points(share: float) -> str:
    return f"{100 * share:+.1f}"


def finding(
    metrics: Sequence[Metric],
    *,
    model: str,
    source_name: str,
    step_time: Quantity,
    remedies: Sequence[Remedy] = (),
    constant_answer: str | None = None,
) -> str:
    """The chapter in one sentence, or a few where something was planned and where the scores do not tell all."""
    accuracy = metrics[0] if metrics else None
    learned = (
        f"{source_name}: the {model} model, trained on {step_time.device} in {step_time} per micro-batch ({step_time.basis})"
    )
    if accuracy:
        learned += (
            f", calls {accuracy.model:.1%} of {accuracy.n_samples:,} unseen values right as below {THRESHOLD} or not, the base "
            f"rate {accuracy.base_rate:.1%}; {verdict(accuracy)}"
        )
    if constant_answer:
        learned += f"; it says {constant_answer!r} of every value"
    if worse := [metric.name for metric in metrics if metric.standing == "worse"]:
        learned += f"; worse than no model in: {', '.join(worse)}"
    return " ".join(filter(None, (_describe_fit(remedies), f"{learned}.")))


def _describe_fit(remedies: Sequence[Remedy]) -> str:
    """Whether the first, the model as it is, fits, and which others do."""
    if not remedies or not (first := remedies[0].plan):
        return ""
    others = [remedy for remedy in remedies[1:] if remedy.plan and remedy.plan.verdict == "fits"]
    does = {"fits": "fits", "tight": "fits barely"}.get(first.verdict, "does not fit")
    helped = ""
    if others and first.verdict != "fits":
        helped = f"; with {others[0].name} it needs {others[0].plan.peak} and fits"
        helped += f", as with {len(others) - 1} more mitigations" if len(others) > 1 else ""
    batch = f"in batches of {first.configuration['batch_size']}"
    return f"The {remedies[0].name} {batch} needs {first.peak} ({first.peak.basis}) and {does} a {first.gpu}{helped}."
