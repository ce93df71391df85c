"""The specification's multi-scale model, trained on a series in its stages: one user of `fit`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ...results import Epoch
from ..backend import keras, n_replicas
from ..checks import check_count
from ..model.accumulation import MicroBatching
from ..model.config import CLASSIFICATION, REGRESSION, THRESHOLD_HEAD, ModelConfig
from ..model.losses import balanced_weights, compile_losses, unweighted_probability
from ..model.multi_scale import build_model
from ..model.predictions import Predictions
from ..model.windows import Part, Samples
from . import fit
from .dataset import MicroBatches, open_dataset
from .loop import TrainingRun


@dataclass(frozen=True)
class Stage:
    """One of the specification's stages. `batch_size` is that of an update; `gamma` is the threshold loss's focus."""

    number: int
    batch_size: int
    learning_rate: float
    loss_weights: dict[str, float]
    gamma: float = 0.0


STAGES = (
    Stage(1, 64, 1e-4, {REGRESSION: 0.65, CLASSIFICATION: 0.10, THRESHOLD_HEAD: 0.25}),
    Stage(2, 32, 5e-5, {REGRESSION: 0.55, CLASSIFICATION: 0.10, THRESHOLD_HEAD: 0.35}, gamma=2.0),
    Stage(3, 16, 1e-5, {REGRESSION: 0.50, CLASSIFICATION: 0.15, THRESHOLD_HEAD: 0.35}, gamma=2.0),
)


@dataclass(frozen=True, eq=False)
class SeriesRun(TrainingRun):
    """A model trained to forecast a series; of several stages their histories one after the other, and the last one's times.

    Attributes:
        threshold_weights: of the classes below and above in the threshold's loss; `gamma`: its focus in the last stage.
    """

    threshold_weights: tuple[float, float]
    gamma: float

    def predict(self, samples: Samples, part: slice, batch_size: int | None = None) -> Predictions:
        """The model's forecast of each value of a part, `batch_size` (that of the micro-batches) at a time."""
        positions = np.r_[part]
        n, n_devices = len(positions), n_replicas()
        padded = np.resize(positions, -(-n // n_devices) * n_devices)  # each device gets as many
        size = min(batch_size or self.micro_batch_size, len(padded))
        window = self.model.input["window"].shape[1]
        data = open_dataset(Part(samples, padded, window), size)
        heads = self.model.predict(MicroBatches(data.open(None), MicroBatching(len(padded), size, size)), verbose=0)
        threshold = heads[THRESHOLD_HEAD][:n, 0]
        return Predictions(
            above=unweighted_probability(threshold, *self.threshold_weights, self.gamma) >= 0.5,
            classes=heads[CLASSIFICATION][:n].argmax(axis=1),
            logs=heads[REGRESSION][:n, 0],
        )


def train(
    samples: Samples,
    model: ModelConfig | Callable[[], keras.Model],
    *,
    n_epochs: int,
    micro_batch_size: int | None = None,
    gradient_accumulation_steps: int = 1,
    stages: Sequence[Stage] = STAGES[:1],
    learning_rate: float | None = None,
    dtype_policy: str = "float32",
    seed: int = 0,
    patience: int = 15,
    checkpoint_folder: str | Path | None = None,
    on_epoch: Callable[[list[Epoch]], None] | None = None,
    **how: Any,
) -> SeriesRun:
    """Build a model and train it on the training part of a series with Adam, anew in each stage.

    Args:
        model: the sizes of the multi-scale model; or a function that builds a prototype of one's own in its place, with the
            same inputs and outputs as `build_model` says, of a window of its own.
        n_epochs: of each stage, at most.
        micro_batch_size: samples on the device at a time; times `gradient_accumulation_steps` it is the batch of one update.
            Without it the batch is the stage's, in `gradient_accumulation_steps` micro-batches.
        stages: one after the other, on the weights that the one before left; `STAGES` are the specification's.
        learning_rate: instead of the stage's, where there is one stage.
        dtype_policy: `"float32"`, or `"mixed_float16"`: computed in float16 with loss scaling, kept in float32; of a prototype
            the function decides.
        seed: of weights, dropout and order. It is set for the whole process (`keras.utils.set_random_seed`).
        patience: a stage ends after so many epochs without a smaller validation loss, with the weights of its best one.
        checkpoint_folder: of each stage there is a folder in it.
        **how: as for `fit`: checkpoint_every, resume, progress_bar.

    Raises:
        ValueError: a number that is too small, a training part of less than one update or with one class only, an unknown
            dtype policy, a prototype with other inputs or outputs.
        FloatingPointError, CheckpointError, FileExistsError: as for `fit`.
    """
    if how.get("resume") and checkpoint_folder is None:
        raise ValueError("resume is True without a checkpoint_folder: name the folder to continue from")
    check_count("n_epochs", n_epochs)
    check_count("patience", patience)
    planned = _plan_stages(stages, micro_batch_size, gradient_accumulation_steps, learning_rate)
    keras.utils.set_random_seed(seed)
    if isinstance(model, ModelConfig):
        built = build_model(model, samples.features.shape[1], dtype_policy=dtype_policy)
    else:
        built = model()
        check_prototype(built, samples)
    window = built.input["window"].shape[1]
    training, validation = (Part(samples, np.r_[part], window) for part in (samples.split.train, samples.split.validation))
    weights = balanced_weights(samples.targets(training.positions)[THRESHOLD_HEAD])
    scales_loss = any(layer.compute_dtype == "float16" for layer in built.layers)
    history, notes, limit, run = [], [], None, None
    for stage, size in planned:
        optimizer = keras.optimizers.Adam(stage.learning_rate)
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer) if scales_loss else optimizer
        losses = compile_losses(*weights, stage.gamma)
        built.compile(optimizer, losses, loss_weights=stage.loss_weights, auto_scale_loss=False)
        earlier = list(history)
        run = fit(
            built,
            training,
            n_epochs=n_epochs,
            batch_size=stage.batch_size,
            micro_batch_size=min(size, limit or size),
            validation_data=validation,
            patience=patience,
            seed=(seed, stage.number),
            checkpoint_folder=Path(checkpoint_folder, f"stage-{stage.number}") if checkpoint_folder is not None else None,
            on_epoch=(lambda log, earlier=earlier: on_epoch([*earlier, *log])) if on_epoch else None,
            stage=stage.number,
            **how,
        )
        history += run.history
        notes += run.notes
        limit = run.micro_batch_size if run.n_retreats else limit
    whole = vars(run) | {"history": history, "notes": notes, "n_retreats": sum("ran out of memory" in note for note in notes)}
    return SeriesRun(**whole, threshold_weights=weights, gamma=planned[-1][0].gamma)


def check_prototype(model: keras.Model, samples: Samples) -> None:
    """That a model of one's own takes the series' inputs and gives its three answers.

    Raises:
        ValueError: it does not; says what it has.
    """
    inputs, outputs = (
        {name: tensor.shape for name, tensor in tensors.items()} if isinstance(tensors, dict) else tensors
        for tensors in (getattr(model, "input", None), getattr(model, "output", None))
    )
    expected = {REGRESSION: (None, 1), CLASSIFICATION: (None, 3), THRESHOLD_HEAD: (None, 1)}
    features = (None, samples.features.shape[1])
    fits = isinstance(inputs, dict) and inputs.keys() == {"window", "features"} and inputs["features"] == features
    if not fits or outputs != expected:
        raise ValueError(
            f"the prototype takes {inputs} and gives {outputs}: expected a functional model that takes a dictionary with "
            f"'window' (None, length) and 'features' {features} and gives {expected}"
        )


def _plan_stages(
    stages: Sequence[Stage], micro_batch_size: int | None, accumulation_steps: int, learning_rate: float | None
) -> list[tuple[Stage, int]]:
    """Each stage with what was asked for instead of its own numbers, and its micro-batch size."""
    check_count("gradient_accumulation_steps", accumulation_steps)
    if micro_batch_size is not None:
        check_count("micro_batch_size", micro_batch_size)
    if not stages or (len(stages) > 1 and (micro_batch_size, learning_rate) != (None, None)):
        raise ValueError(
            f"{len(stages)} stages with micro_batch_size={micro_batch_size} and learning_rate={learning_rate}: expected one "
            "stage or more, and with more than one neither; give the stages these numbers, by dataclasses.replace"
        )
    planned = []
    for stage in stages:
        if micro_batch_size is not None:
            stage = replace(stage, batch_size=micro_batch_size * accumulation_steps)
        if learning_rate is not None:
            stage = replace(stage, learning_rate=learning_rate)
        if not stage.learning_rate > 0:
            raise ValueError(f"learning_rate is {stage.learning_rate}: expected more than 0")
        if stage.batch_size < accumulation_steps:
            raise ValueError(
                f"{accumulation_steps} micro-batches of {stage.batch_size} samples: expected one sample or more each"
            )
        planned.append((stage, -(-stage.batch_size // accumulation_steps)))
    return planned
