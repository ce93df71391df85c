"""The chapter's answer in a sentence or two, claiming no more than what was measured bears out."""

from collections.abc import Sequence

from ...results import Metric, Quantity, Remedy
from ..model.features import THRESHOLD

LEAST_GAIN = 0.01  # of the accuracy, over the base rate, that is worth a model


def verdict(accuracy: Metric) -> str:
    """What an accuracy says about the model, claiming no more than its interval bears out."""
    best = accuracy.best_possible
    gain = f"{100 * (accuracy.model - accuracy.base_rate):+.1f} points"
    interval = f"95 % interval {100 * accuracy.gain_low:+.1f} to {100 * accuracy.gain_high:+.1f}"
    if best is not None:
        interval += f"; {100 * (best - accuracy.base_rate):+.1f} possible"
    if best is not None and best <= accuracy.base_rate:
        said = f"on these values nothing can be predicted, the true odds do no better; the model's {gain} are noise"
    elif accuracy.gain_high < 0:
        said = f"the model does worse than no model, by {gain}"
    elif accuracy.gain_high < LEAST_GAIN:
        said = f"the model gains less than the {100 * LEAST_GAIN:+.1f} points that would matter, {gain}"
    elif accuracy.gain_low > 0:
        said = f"the model predicts, by {gain}"
    else:
        said = f"no sign that the model predicts anything, {gain} are within the sampling error"
    return f"{said} ({interval})"


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
    said = [f"{source_name}: the {model} model, trained on {step_time.device} in {step_time} per micro-batch (measured)"]
    for accuracy in metrics[:1]:
        said[0] += f", calls {accuracy.model:.1%} of {accuracy.n_samples:,} unseen values right as below {THRESHOLD} or not"
        said[0] += f", the base rate {accuracy.base_rate:.1%}"
        said.append(verdict(accuracy))
    if constant_answer:
        said.append(f"it says {constant_answer!r} of every value")
    if worse := [metric.name for metric in metrics if metric.standing == "worse"]:
        said.append(f"worse than no model in: {', '.join(worse)}")
    return " ".join(filter(None, (_describe_fit(remedies), f"{'; '.join(said)}.")))


def _describe_fit(remedies: Sequence[Remedy]) -> str:
    """Whether the first, the model as it is, fits, and which others do."""
    if not remedies or not (first := remedies[0].plan):
        return ""
    others = [remedy for remedy in remedies[1:] if remedy.plan and remedy.plan.verdict == "fits"]
    does = {"fits": "fits", "tight": "fits barely"}.get(first.verdict, "does not fit")
    said = f"The {remedies[0].name} in batches of {first.configuration['batch_size']} needs {first.peak} ({first.peak.basis})"
    said += f" and {does} a {first.gpu}"
    if others and first.verdict != "fits":
        said += f"; with {others[0].name} it needs {others[0].plan.peak} and fits"
        said += f", as with {len(others) - 1} more mitigations" if len(others) > 1 else ""
    return f"{said}."
