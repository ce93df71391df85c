"""How near a variant's outputs are to the original's, what of a score it keeps, and which variant is worth it."""

from collections.abc import Mapping, Sequence

import numpy as np

from ..results import Agreement, Engine, Forward, Kept, Latency, Variant, format_value
from .child import InferenceError

Outputs = Mapping[str, np.ndarray]  # name -> (n, ...)


def compare_outputs(original: Outputs, variant: Outputs) -> list[Agreement]:
    """Each output's largest and root mean square difference, and the share of samples with the same class.

    Raises:
        InferenceError: other names or shapes, or a value that is not finite.
    """
    found = []
    for name, said in original.items():
        expected, got = said.astype("float64"), np.asarray(variant.get(name, ()), "float64")
        if got.shape != expected.shape:
            raise InferenceError(f"output {name!r}: expected shape {said.shape}, got {got.shape}; convert the model anew")
        if n_bad := int((~np.isfinite(got)).sum()):
            advice = "they exceed this precision (float16 ends at 65,504): scale the inputs, or keep float32"
            raise InferenceError(f"output {name!r}: {n_bad} of {got.size} values are not finite; {advice}")
        classes = [find_classes(values, like=expected) for values in (expected, got)]
        found.append(
            Agreement(
                output=name,
                n_samples=len(expected),
                largest=float(np.abs(got - expected).max()),
                rms=float(np.sqrt(np.mean((got - expected) ** 2))),
                class_agreement=None if classes[0] is None else float(np.mean(classes[0] == classes[1])),
            )
        )
    return found


def find_classes(values: np.ndarray, like: np.ndarray) -> np.ndarray | None:
    """The class of each sample (n,): the largest of several columns, or 0.5 and more of one; None: the output is no class.

    Args:
        like: the original's output, whose range says whether one column is a probability.
    """
    if values.ndim == 2 and values.shape[1] > 1:
        return values.argmax(axis=1)
    is_probability = values.size == len(values) and like.min() >= 0 and like.max() <= 1
    return values.reshape(-1) >= 0.5 if is_probability else None


def accuracy_kept(original: np.ndarray, variant: np.ndarray, target: np.ndarray) -> Kept:
    """The variant's accuracy over the original's, with a 95 % interval for paired shares.

    The interval is Bonett and Price's for paired shares (2012, J. Educ. Behav. Stat. 37), with an imagined win and loss among
    the samples: where two models seldom differ, a few lucky samples prove nothing.

    Args:
        original, variant: (n, n_classes) or (n, 1) the output that is a class.
        target: (n,) the class of each sample.

    Raises:
        InferenceError: another number of targets, an output that is no class, or the original is right about no sample.
    """
    classes = [find_classes(values, like=original) for values in (original, variant)]
    if classes[0] is None or target.shape != classes[0].shape:
        raise InferenceError(f"target has shape {target.shape}, the output {original.shape}: expected a class for each sample")
    right, right_now = (each == target for each in classes)
    if not right.any():
        raise InferenceError(f"the original is right about none of {len(target)} targets: are they classes of this output?")
    differences = np.append(right_now.astype(int) - right, (1, -1))
    margin, accuracy = 1.96 * differences.std() / np.sqrt(len(differences)), right.mean()
    middle = 1 + differences.mean() / accuracy
    return Kept(value=right_now.sum() / right.sum(), low=middle - margin / accuracy, high=middle + margin / accuracy)


def choose_variant(
    variants: Sequence[Variant], latencies: Sequence[Latency], *, least_gain: float = 1.2, largest_loss: float = 0.01
) -> Variant | None:
    """The fastest variant that keeps the score; None: the original stays.

    It has to be at least `least_gain` times as fast as the original at the smallest batch, its slowest run against the
    original's fastest, and the lower end of its score's interval has to lose no more than `largest_loss`. Close outputs
    alone do not show that the task is kept: without a score a variant is not chosen.

    Args:
        variants: the original first.
    """
    smallest = min((each.batch for each in latencies), default=1)
    measured = [each for each in latencies if each.batch == smallest and each.time.basis == "measured"]
    times = {each.runner: each.time for each in measured}
    original = times.get(variants[0].name) if variants else None
    kept = [each for each in variants[1:] if each.score_kept and each.score_kept.low >= 1 - largest_loss]
    fast = [each for each in kept if original and each.name in times and original.low >= least_gain * times[each.name].high]
    return min(fast, key=lambda each: times[each.name].value, default=None)


def finding(
    variants: Sequence[Variant],
    latencies: Sequence[Latency],
    forwards: Sequence[Forward],
    engines: Sequence[Engine],
    best: Variant | None,
) -> str:
    """The chapter's answer in a few clauses, each with the basis of its numbers.

    Args:
        best: as `choose_variant` says; the other arguments are those of the result.
    """
    batch = min(each.batch for each in latencies)
    times = {each.runner: each.time for each in latencies if each.batch == batch}
    original = times[variants[0].name]
    said = [f"as ONNX in float32 a call of {batch} takes {original} ({original.basis} on {original.device})"]
    if keras_time := times.get("Keras predict"):
        said.append(f"that is {format_value(keras_time.value / original.value, 'x')} as fast as Keras predict")
    if best:
        kept, gain = best.score_kept, format_value(original.value / times[best.name].value, "x")
        said.append(f"{best.name} is {gain} as fast as that, and {kept.low:.1%} to {kept.high:.1%} of the score is kept")
    else:
        said.append("no smaller form is both faster here and known to keep the score, so float32 stays")
    if band := next((each.time for each in forwards if each.time), None):
        said.append(f"on a {band.device} a call of {forwards[0].batch} is projected to take {band}, bound by {band.bound_by}")
    if engines:
        n_built = sum(each.status == "built" for each in engines)
        said.append(f"{n_built} of {len(engines)} TensorRT engines were built without the GPU")
    return "; ".join(said)
