"""Training by Keras' own loop, with what a result needs written down: losses, times, memory."""

import time
from dataclasses import dataclass

import numpy as np

from ..results import Epoch, Quantity
from .backend import device_name, keras, peak_memory_bytes
from .losses import balanced_weights, compile_losses, unweighted_probability
from .metrics import Predictions
from .model import ModelConfig, build_model
from .windows import Batches, Samples


@dataclass(frozen=True)
class Stage:
    """One of the plan's stages. `batch_size` is the effective one: micro-batch times gradient accumulation steps."""

    number: int
    batch_size: int
    learning_rate: float
    loss_weights: dict[str, float]


STAGES = (
    Stage(1, 64, 1e-4, {"regression": 0.65, "classification": 0.10, "threshold": 0.25}),
    Stage(2, 32, 5e-5, {"regression": 0.55, "classification": 0.10, "threshold": 0.35}),
    Stage(3, 16, 1e-5, {"regression": 0.50, "classification": 0.15, "threshold": 0.35}),
)


@dataclass(frozen=True, eq=False)
class TrainingRun:
    """A trained model and the log of its training.

    Attributes:
        history: one entry per epoch, with Keras' names: `loss`, `regression_loss`, ..., and `val_` for the validation part.
        step_time: one micro-batch, its gathering included, without the first update's, which trace and compile.
        peak_memory: of the GPU during training; None, "not measured", on a CPU.
        threshold_weights: of the classes below and above in the threshold's loss.
    """

    model: keras.Model
    config: ModelConfig
    history: list[Epoch]
    step_time: Quantity
    peak_memory: Quantity | None
    threshold_weights: tuple[float, float]

    def predict(self, samples: Samples, part: slice, batch_size: int = 256) -> Predictions:
        """The model's forecast of each value of a part."""
        batches = Batches(samples, part, window=self.config.window, batch_size=batch_size)
        heads = self.model.predict(batches, verbose=0)
        return Predictions(
            above=unweighted_probability(heads["threshold"][:, 0], *self.threshold_weights) >= 0.5,
            classes=heads["classification"].argmax(axis=1),
            logs=heads["regression"][:, 0],
        )


class _Log(keras.callbacks.Callback):
    """Losses and time of each epoch, and time of each micro-batch until its loss was read, which waits for the device."""

    def __init__(self, stage: int):
        super().__init__()
        self.stage, self.epochs, self.step_times_s = stage, [], []

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch_began_s = time.perf_counter()

    def on_train_batch_begin(self, batch, logs=None):
        self.batch_began_s = time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        float(logs["loss"])  # on some backends not computed before it is asked for
        self.step_times_s.append(time.perf_counter() - self.batch_began_s)

    def on_epoch_end(self, epoch, logs=None):
        losses = {name: float(value) for name, value in logs.items()}
        for name, value in losses.items():
            if not np.isfinite(value):
                raise FloatingPointError(f"{name} is {value} in epoch {epoch + 1}: lower the learning rate")
        duration_s = time.perf_counter() - self.epoch_began_s
        self.epochs.append(Epoch(stage=self.stage, epoch=epoch + 1, metrics=losses, duration_s=duration_s))


def train(
    samples: Samples,
    config: ModelConfig,
    *,
    n_epochs: int,
    micro_batch_size: int,
    gradient_accumulation_steps: int = 1,
    stage: Stage = STAGES[0],
    learning_rate: float | None = None,
    dtype_policy: str = "float32",
    seed: int = 0,
) -> TrainingRun:
    """Build the model of `config` and train it on the training part with Adam.

    Args:
        micro_batch_size: samples on the device at a time; times `gradient_accumulation_steps` it is the batch of one update.
        learning_rate: instead of the stage's.
        dtype_policy: `"float32"`, or `"mixed_float16"`: computed in float16 with loss scaling, kept in float32.
        seed: of weights, dropout and order. It is set for the whole process (`keras.utils.set_random_seed`).

    Raises:
        ValueError: a number that is too small, a training part of less than two updates or with one class only, an unknown
            dtype policy.
        FloatingPointError: the loss became NaN or infinite.
    """
    if n_epochs < 1:
        raise ValueError(f"n_epochs is {n_epochs}: expected 1 or more")
    learning_rate = stage.learning_rate if learning_rate is None else learning_rate
    if not learning_rate > 0:
        raise ValueError(f"learning_rate is {learning_rate}: expected more than 0")
    keras.utils.set_random_seed(seed)
    batches = Batches(
        samples,
        samples.split.train,
        window=config.window,
        batch_size=micro_batch_size,
        gradient_accumulation_steps=gradient_accumulation_steps,
        seed=seed,
    )
    if len(batches) * n_epochs == gradient_accumulation_steps:
        raise ValueError("this would be one update of the weights: expected 2 or more; make the batch smaller or add an epoch")
    validation = Batches(samples, samples.split.validation, window=config.window, batch_size=256)
    weights = balanced_weights(samples.targets(batches.positions)["threshold"])

    model = build_model(config, samples.features.shape[1], dtype_policy=dtype_policy)
    accumulate = gradient_accumulation_steps if gradient_accumulation_steps > 1 else None
    model.compile(
        optimizer=keras.optimizers.Adam(learning_rate, gradient_accumulation_steps=accumulate),
        loss=compile_losses(*weights),
        loss_weights=stage.loss_weights,
    )
    log = _Log(stage.number)
    peak_memory_bytes()  # measures anew from here
    model.fit(batches, validation_data=validation, epochs=n_epochs, shuffle=False, callbacks=[log], verbose=0)

    device, peak_bytes = device_name(), peak_memory_bytes()
    return TrainingRun(
        model=model,
        config=config,
        history=log.epochs,
        step_time=Quantity.measured(log.step_times_s[gradient_accumulation_steps:], "s", device),
        peak_memory=None if peak_bytes is None else Quantity.measured([peak_bytes], "bytes", device),
        threshold_weights=weights,
    )
