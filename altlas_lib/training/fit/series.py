"""The specification's multi-scale model, or a prototype in its place, trained on a series: one user of `fit`."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ..backend import keras, n_replicas
from ..checks import check_count
from ..model.accumulation import MicroBatching
from ..model.config import CLASSIFICATION, REGRESSION, THRESHOLD_HEAD, ModelConfig
from ..model.losses import balanced_weights, compile_losses, unweighted_probability
from ..model.multi_scale import build_model
from ..model.windows import Predictions, Samples
from . import fit
from .dataset import Dataset, MicroBatches, digest_arrays
from .loop import TrainingRun

LOSS_WEIGHTS = {REGRESSION: 0.65, CLASSIFICATION: 0.10, THRESHOLD_HEAD: 0.25}  # of the specification's first stage


def train(
    samples: Samples,
    model: ModelConfig | Callable[[], keras.Model],
    *,
    micro_batch_size: int = 64,
    gradient_accumulation_steps: int = 1,
    learning_rate: float = 1e-4,
    loss_weights: Mapping[str, float] = LOSS_WEIGHTS,
    gamma: float = 0.0,
    dtype_policy: str = "float32",
    seed: int = 0,
    **how: Any,
) -> TrainingRun:
    """Build a model and train it on the training part of a series with Adam.

    Args:
        model: the sizes of the multi-scale model; or a function that builds a prototype of one's own in its place, with the
            same inputs and outputs as `build_model` says, of a window of its own.
        micro_batch_size: samples on the device at a time; times `gradient_accumulation_steps` it is the batch of one update.
        loss_weights: of the three heads; as `gamma`, the focus of the threshold's loss, they are those of the first of the
            specification's stages. Its batch is 64.
        dtype_policy: `"float32"`, or `"mixed_float16"`: computed in float16 with loss scaling, kept in float32; of a prototype
            the function decides.
        seed: of weights, dropout and order. It is set for the whole process (`keras.utils.set_random_seed`).
        **how: as for `fit`, n_epochs among them; patience is 15 by default.

    Raises:
        ValueError: a number that is too small, a training part of less than one update or with one class only, an unknown
            dtype policy, a prototype with other inputs or outputs.
        FloatingPointError, CheckpointError, FileExistsError: as for `fit`.
    """
    batch_size = check_count("micro_batch_size", micro_batch_size)
    batch_size *= check_count("gradient_accumulation_steps", gradient_accumulation_steps)
    if not learning_rate > 0:
        raise ValueError(f"learning_rate is {learning_rate}: expected more than 0")
    keras.utils.set_random_seed(seed)
    if isinstance(model, ModelConfig):
        built = build_model(model, samples.features.shape[1], dtype_policy=dtype_policy)
        how = {"recompute": model.recomputed_layers, **how}
    else:
        built = model()
        check_prototype(built, samples)
    window = built.input["window"].shape[1]
    training, validation = np.r_[samples.split.train], np.r_[samples.split.validation]
    weights = balanced_weights(samples.targets(training)[THRESHOLD_HEAD])
    built.compile(keras.optimizers.Adam(learning_rate), compile_losses(*weights, gamma), loss_weights=dict(loss_weights))
    data = open_samples(samples, training, window, batch_size)
    how = {"patience": 15, "micro_batch_size": micro_batch_size, "seed": seed, **how}
    return fit(built, data, open_samples(samples, validation, window), **how)


def open_samples(samples: Samples, positions: np.ndarray, window: int, batch_size: int = 32) -> Dataset:
    """The samples at some positions, for a model with a window of so many values: gathered when they are asked for."""

    def gather(at: np.ndarray) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        return samples.inputs(positions[at], window), samples.targets(positions[at])

    given = (samples.values, samples.scaled_logs, samples.features, positions)
    return Dataset(len(positions), batch_size, gather, 1, lambda: digest_arrays(len(positions), given))


def predict(model: keras.Model, samples: Samples, part: slice, batch_size: int = 64) -> Predictions:
    """The forecast of each value of a part by a model that `train` trained, `batch_size` samples at a time."""
    positions, loss = np.r_[part], model.loss[THRESHOLD_HEAD]
    n, n_devices = len(positions), n_replicas()
    padded = np.resize(positions, -(-n // n_devices) * n_devices)  # each device gets as many
    size = min(-(-batch_size // n_devices) * n_devices, len(padded))
    data = open_samples(samples, padded, model.input["window"].shape[1])
    heads = model.predict(MicroBatches(data, MicroBatching(len(padded), size, size)), verbose=0)
    threshold = unweighted_probability(heads[THRESHOLD_HEAD][:n, 0], loss.below_weight, loss.above_weight, loss.gamma)
    return Predictions(threshold >= 0.5, heads[CLASSIFICATION][:n].argmax(axis=1), heads[REGRESSION][:n, 0])


def check_prototype(model: keras.Model, samples: Samples) -> None:
    """That a model of one's own takes the series' inputs and gives its three answers.

    Raises:
        ValueError: it does not; says what it has.
    """
    ends = [getattr(model, end, None) for end in ("input", "output")]
    inputs, outputs = keras.tree.map_structure(lambda tensor: getattr(tensor, "shape", None), ends)
    window = inputs.get("window") if isinstance(inputs, dict) else None
    takes = {"window": (None, window[-1] if window else 0), "features": (None, samples.features.shape[1])}
    gives = {REGRESSION: (None, 1), CLASSIFICATION: (None, 3), THRESHOLD_HEAD: (None, 1)}
    if inputs != takes or outputs != gives:
        wanted = f"expected a functional model that takes {takes} (a window of any length) and gives {gives}"
        raise ValueError(f"the prototype takes {inputs} and gives {outputs}: {wanted}")
