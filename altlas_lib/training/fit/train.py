"""Training in stages that fits the memory at hand, equals the big batch and continues bit for bit after a kill.

Keras' own `fit` trains, an epoch at a time. Around it: accumulation that is exact (`accumulation`), checkpoints between updates
(`checkpoint`), and the retreat to smaller micro-batches where the device runs out of memory.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict
from tqdm import tqdm

from ...paths import write_atomically
from ...results import Epoch, Quantity
from ..backend import device_name, gpu_name, is_out_of_memory, keras, memory_use, n_replicas
from ..model.accumulation import AccumulatingOptimizer, MicroBatching
from ..model.config import ModelConfig
from ..model.losses import balanced_weights, compile_losses, unweighted_probability
from ..model.multi_scale import build_model
from ..model.predictions import Predictions
from ..model.windows import Batches, Samples
from .checkpoint import CheckpointFolder, capture, fingerprint, restore

_N_STEP_TIMES = 1000  # the latest are kept


@dataclass(frozen=True)
class Stage:
    """One of the plan's stages. `batch_size` is the effective one, of an update; `gamma` is the threshold loss's focus."""

    number: int
    batch_size: int
    learning_rate: float
    loss_weights: dict[str, float]
    gamma: float = 0.0


STAGES = (
    Stage(1, 64, 1e-4, {"regression": 0.65, "classification": 0.10, "threshold": 0.25}),
    Stage(2, 32, 5e-5, {"regression": 0.55, "classification": 0.10, "threshold": 0.35}, gamma=2.0),
    Stage(3, 16, 1e-5, {"regression": 0.50, "classification": 0.15, "threshold": 0.35}, gamma=2.0),
)


class Progress(BaseModel):
    """How far a training is, as a checkpoint keeps it.

    Attributes:
        stage: index of the stage at hand; `epoch`: its epochs that are done; `update`: updates done of the next one.
        n_updates: of all stages, those included that the loss scale made skip.
        micro_batch_limit: what the device's memory was found to allow.
        best_loss: smallest validation loss of the stage, after `best_epoch` epochs.
        epoch_s: time spent on the epoch at hand.
        step_times_s: the latest, per micro-batch.
    """

    model_config = ConfigDict(extra="forbid")

    stage: int = 0
    epoch: int = 0
    update: int = 0
    n_updates: int = 0
    micro_batch_limit: int | None = None
    best_loss: float | None = None
    best_epoch: int = 0
    log: list[Epoch] = []
    notes: list[str] = []
    epoch_s: float = 0.0
    step_times_s: list[float] = []


@dataclass(frozen=True, eq=False)
class TrainingRun:
    """A trained model and the log of its training.

    Attributes:
        history: one entry per epoch. A head's own loss is the mean over micro-batches, in which Keras on TensorFlow counts a
            short one like a full one.
        step_time: one micro-batch, its gathering included; of each epoch without the first update, which traces and compiles.
        peak_memory: of the GPU during training; None, "not measured", on a CPU.
        threshold_weights: of the classes below and above in the threshold's loss; `gamma`: its focus in the last stage.
        micro_batch_size: of the last stage; less than asked for where the device ran out of memory.
        notes: what did not go as asked for, in words.
    """

    model: keras.Model
    config: ModelConfig
    history: list[Epoch]
    step_time: Quantity
    peak_memory: Quantity | None
    threshold_weights: tuple[float, float]
    gamma: float
    micro_batch_size: int
    notes: list[str]

    def predict(self, samples: Samples, part: slice, batch_size: int | None = None) -> Predictions:
        """The model's forecast of each value of a part, `batch_size` (that of the micro-batches) at a time."""
        positions = np.r_[part]
        n, n_devices = len(positions), n_replicas()
        batch_size = batch_size or self.micro_batch_size
        padded = np.resize(positions, -(-n // n_devices) * n_devices)  # each device gets as many
        cut = MicroBatching(len(padded), min(batch_size, len(padded)), min(batch_size, len(padded)))
        heads = self.model.predict(Batches(samples, padded, cut, window=self.config.window), verbose=0)
        threshold = heads["threshold"][:n, 0]
        return Predictions(
            above=unweighted_probability(threshold, *self.threshold_weights, self.gamma) >= 0.5,
            classes=heads["classification"][:n].argmax(axis=1),
            logs=heads["regression"][:n, 0],
        )


def train(
    samples: Samples,
    config: ModelConfig,
    *,
    n_epochs: int,
    micro_batch_size: int | None = None,
    gradient_accumulation_steps: int = 1,
    stages: Sequence[Stage] = STAGES[:1],
    learning_rate: float | None = None,
    dtype_policy: str = "float32",
    seed: int = 0,
    patience: int = 15,
    checkpoint_folder: Path | None = None,
    checkpoint_every: int | None = None,
    resume: bool = False,
    progress_bar: bool | None = None,
    on_epoch: Callable[[list[Epoch]], None] | None = None,
) -> TrainingRun:
    """Build the model of `config` and train it on the training part with Adam, anew in each stage.

    An epoch is every sample once, in an order of its own. The last update of an epoch has what is left, be it less than a
    batch. Gradient accumulation changes no update (batch normalisation and dropout aside, which see micro-batches).

    Several devices: call it in the scope of a `tf.distribute.MirroredStrategy`, or after `keras.distribution.set_distribution`
    (JAX's `DataParallel`). Micro-batches then have to be multiples of the number of devices, and up to that number less one
    samples are left out of an epoch.

    Args:
        n_epochs: of each stage, at most.
        micro_batch_size: samples on the device at a time; times `gradient_accumulation_steps` it is the batch of one update.
            Without it the batch is the stage's, in `gradient_accumulation_steps` micro-batches.
        stages: one after the other, on the weights that the one before left; `STAGES` are the plan's.
        learning_rate: instead of the stage's, where there is one stage.
        dtype_policy: `"float32"`, or `"mixed_float16"`: computed in float16 with loss scaling, kept in float32.
        seed: of weights, dropout and order. It is set for the whole process (`keras.utils.set_random_seed`).
        patience: a stage ends after so many epochs without a smaller validation loss.
        checkpoint_folder: gets a checkpoint after each epoch, that of the best epoch of each stage, and `log.jsonl`.
        checkpoint_every: a checkpoint also after so many updates.
        resume: continue from the newest good checkpoint of the folder, where there is one, bit for bit as if never killed
            (on the same kind of device; on a GPU as far as its operations are deterministic). More epochs of a single stage
            may be asked for than before.
        progress_bar: on stderr; None: where that is a terminal.
        on_epoch: called with the history so far after each epoch.

    Raises:
        ValueError: a number that is too small, a training part of less than one update or with one class only, an unknown
            dtype policy.
        FloatingPointError: the loss became NaN or infinite.
        CheckpointError: the folder's checkpoints are damaged or of another training.
        FileExistsError: the folder holds checkpoints that are not to be continued.
    """
    if n_epochs < 1:
        raise ValueError(f"n_epochs is {n_epochs}: expected 1 or more")
    for name, number in (("patience", patience), ("checkpoint_every", checkpoint_every)):
        if number is not None and number < 1:
            raise ValueError(f"{name} is {number}: expected 1 or more")
    if resume and checkpoint_folder is None:
        raise ValueError("resume is True without a checkpoint_folder: name the folder to continue from")
    plan = _plan(stages, micro_batch_size, gradient_accumulation_steps, learning_rate)
    keras.utils.set_random_seed(seed)
    training = _Training(samples, config, plan, dtype_policy=dtype_policy, seed=seed, progress_bar=progress_bar)
    training.on_epoch = on_epoch
    if checkpoint_folder is not None:
        settings = {
            "model": config.model_dump(mode="json"),
            "stages": [asdict(stage) | {"micro_batch_size": size} for stage, size in plan],
            "dtype_policy": dtype_policy,
            "seed": seed,
            "patience": patience,
            "n_epochs": n_epochs if len(plan) > 1 else None,  # of a single stage, more may follow
            "n_devices": n_replicas(),
        }
        training.folder = CheckpointFolder(checkpoint_folder, fingerprint(samples, **settings), resume=resume)
        training.checkpoint_every = checkpoint_every
    return training.run(n_epochs, patience)


def _plan(
    stages: Sequence[Stage], micro_batch_size: int | None, accumulation_steps: int, learning_rate: float | None
) -> list[tuple[Stage, int]]:
    """Each stage with what was asked for instead of its own numbers, and its micro-batch size."""
    if accumulation_steps < 1 or (micro_batch_size is not None and micro_batch_size < 1):
        raise ValueError(f"micro-batches of {micro_batch_size}, {accumulation_steps} per update: expected 1 or more of each")
    if not stages or (len(stages) > 1 and (micro_batch_size, learning_rate) != (None, None)):
        raise ValueError(
            f"{len(stages)} stages with micro_batch_size={micro_batch_size} and learning_rate={learning_rate}: expected one "
            "stage or more, and with more than one neither; give the stages these numbers, by dataclasses.replace"
        )
    plan = []
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
        plan.append((stage, -(-stage.batch_size // accumulation_steps)))
    return plan


class _Training:
    """A training under way: its model, its progress, and the last moment that it can go back to."""

    def __init__(
        self,
        samples: Samples,
        config: ModelConfig,
        plan: Sequence[tuple[Stage, int]],
        *,
        dtype_policy: str,
        seed: int,
        progress_bar: bool | None,
    ):
        self.samples, self.config, self.plan, self.seed = samples, config, plan, seed
        self.scales_loss = dtype_policy == "mixed_float16"
        self.hides_bar = None if progress_bar is None else not progress_bar
        self.positions = np.r_[samples.split.train]
        self.weights = balanced_weights(samples.targets(self.positions)["threshold"])
        self.model = build_model(config, samples.features.shape[1], dtype_policy=dtype_policy)
        self.progress = Progress()
        self.folder: CheckpointFolder | None = None
        self.checkpoint_every: int | None = None
        self.on_epoch: Callable[[list[Epoch]], None] | None = None

    def run(self, n_epochs: int, patience: int) -> TrainingRun:
        checkpoint = self.folder.newest(Progress.model_validate) if self.folder else None
        if checkpoint:
            self.remembered = Progress.model_validate(checkpoint.progress), checkpoint.arrays
            self._go_back()
        else:
            self._compile()
            self._remember()
        memory_use()  # measures anew from here
        while True:
            progress = self.progress
            if progress.epoch < n_epochs and progress.epoch - progress.best_epoch < patience:
                self._epoch()
            elif progress.stage + 1 < len(self.plan):
                beginning = {"stage": progress.stage + 1, "epoch": 0, "best_loss": None, "best_epoch": 0}
                self.progress = progress.model_copy(update=beginning)
                self._compile()
                self._remember()
            else:
                return self._result()

    @property
    def stage(self) -> Stage:
        return self.plan[self.progress.stage][0]

    def _compile(self) -> None:
        """A new optimizer and new losses, for the stage and the micro-batches at hand."""
        stage, size = self.plan[self.progress.stage]
        size, n_devices = min(size, self.progress.micro_batch_limit or size), n_replicas()
        if size % n_devices or stage.batch_size % n_devices:
            raise ValueError(
                f"micro-batches of {size} for updates of {stage.batch_size} on {n_devices} devices: expected multiples of "
                f"{n_devices}, so that each device gets as many"
            )
        self.cut = MicroBatching(len(self.positions) // n_devices * n_devices, stage.batch_size, size)
        optimizer = keras.optimizers.Adam(stage.learning_rate)
        if self.scales_loss:
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
        if self.cut.n_per_update > 1:
            optimizer = AccumulatingOptimizer(optimizer, self.cut)
        losses = compile_losses(*self.weights, stage.gamma)
        self.model.compile(optimizer, losses, loss_weights=stage.loss_weights, auto_scale_loss=False)
        optimizer.build(self.model.trainable_variables)

        positions = np.r_[self.samples.split.validation]
        n = len(positions) // n_devices * n_devices
        cut = MicroBatching(n, min(n, size), min(n, size))  # no larger than in training: what fits there fits here
        self.validation = Batches(self.samples, positions, cut, window=self.config.window)

    def _remember(self) -> None:
        self.remembered = self.progress.model_copy(deep=True), capture(self.model)

    def _go_back(self) -> None:
        """To the moment remembered: this process's, or one of a checkpoint."""
        progress, arrays = self.remembered
        self.progress = progress.model_copy(deep=True)
        self._compile()
        restore(self.model, arrays)

    def _epoch(self) -> None:
        try:
            metrics = self._fit()
        except Exception as error:
            n_devices = n_replicas()
            smaller = -(-self.cut.micro_batch_size // (2 * n_devices)) * n_devices
            if not is_out_of_memory(error) or smaller == self.cut.micro_batch_size:
                raise
            reason = str(error).strip().partition("\n")[0]
        else:
            self._end_epoch(metrics)
            return
        # Not above: until the error is gone, its traceback holds what the failed step had allocated.
        note = (
            f"the device ran out of memory in stage {self.stage.number}, epoch {self.progress.epoch + 1}, "
            f"with micro-batches of {self.cut.micro_batch_size} ({reason}): "
            f"went on with {smaller}, from update {self.remembered[0].n_updates}"
        )
        warnings.warn(note, RuntimeWarning, stacklevel=2)
        self.remembered[0].micro_batch_limit, self.remembered[0].notes = smaller, [*self.progress.notes, note]
        self._go_back()

    def _note(self, note: str) -> None:
        warnings.warn(note, RuntimeWarning, stacklevel=2)
        self.progress.notes.append(note)

    def _fit(self) -> dict[str, float]:
        """Keras' `fit` from the update at hand to the end of the epoch; the epoch's metrics."""
        progress, cut = self.progress, self.cut
        start = progress.update * cut.n_per_update
        if cut.n_per_update > 1:
            self.model.optimizer.index.assign(start)
        sums = self.remembered[1] if start else None  # of the metrics
        if sums:
            self.model.test_on_batch(*self.validation[0])  # which makes Keras build the metrics
        batches = Batches(
            *(self.samples, self.positions, cut),
            window=self.config.window,
            seed=self.seed,
            epoch=len(progress.log),  # of all stages: each has an order of its own
            start=start,
        )
        self.loss = self.updated_at_s = None
        self.began_at_s = perf_counter() - progress.epoch_s
        title = f"stage {self.stage.number}, epoch {progress.epoch + 1}"
        with tqdm(total=cut.n_updates, initial=progress.update, desc=title, unit="update", disable=self.hides_bar) as self.bar:
            callbacks = [_Updates(cut, start, self._end_update, sums)]
            fit = self.model.fit(batches, validation_data=self.validation, shuffle=False, verbose=0, callbacks=callbacks)
        return {name: float(values[-1]) for name, values in fit.history.items()}

    def _end_update(self, loss: Any, is_whole: bool) -> None:
        """Reads the loss of the update before this one only: meanwhile the device has this one to work on."""
        progress = self.progress
        progress.update += 1
        progress.n_updates += 1
        if self.loss is not None:
            self._check({"loss": float(self.loss)})
        now_s = perf_counter()
        if self.updated_at_s is not None and is_whole:
            progress.step_times_s.append((now_s - self.updated_at_s) / self.cut.n_per_update)
            del progress.step_times_s[:-_N_STEP_TIMES]
        self.loss, self.updated_at_s = loss, now_s
        self.bar.update()
        is_due = self.checkpoint_every and progress.n_updates % self.checkpoint_every == 0
        if is_due and progress.update < self.cut.n_updates:  # the end of an epoch has a checkpoint of its own
            self._check({"loss": float(loss)})
            self._save()
            self.updated_at_s = perf_counter()

    def _check(self, metrics: dict[str, float]) -> None:
        for name, value in metrics.items():
            if not np.isfinite(value):
                raise FloatingPointError(f"{name} is {value} in epoch {self.progress.epoch + 1}: lower the learning rate")

    def _end_epoch(self, metrics: dict[str, float]) -> None:
        self._check(metrics)
        progress, memory = self.progress, memory_use()
        progress.epoch += 1
        n_applied = int(keras.ops.convert_to_numpy(self.model.optimizer.iterations))
        n_skipped = progress.epoch * self.cut.n_updates - n_applied
        earlier = [entry for entry in progress.log if entry.stage == self.stage.number]
        progress.log.append(
            Epoch(
                stage=self.stage.number,
                epoch=progress.epoch,
                metrics=metrics,
                duration_s=perf_counter() - self.began_at_s,
                micro_batch_size=self.cut.micro_batch_size,
                n_updates=self.cut.n_updates,
                n_skipped_updates=n_skipped - sum(entry.n_skipped_updates for entry in earlier),
                memory_device=memory.device,
                memory_bytes=memory.current_bytes,
                peak_memory_bytes=memory.peak_bytes,
                notes=progress.notes[sum(len(entry.notes) for entry in progress.log) :],
            )
        )
        is_best = progress.best_loss is None or metrics["val_loss"] < progress.best_loss
        if is_best:
            progress.best_loss, progress.best_epoch = metrics["val_loss"], progress.epoch
        progress.update, progress.epoch_s = 0, 0.0
        self._save(is_best=is_best)
        if self.on_epoch:
            self.on_epoch(progress.log)

    def _save(self, *, is_best: bool = False) -> None:
        """Remember this moment, and write it down where there is a folder; where that fails, training goes on."""
        if self.progress.update:
            self.progress.epoch_s = perf_counter() - self.began_at_s
        self._remember()
        if not self.folder:
            return
        state = self.progress.model_dump(mode="json"), self.remembered[1]
        try:
            if is_best:
                self.folder.save_best(*state, self.stage.number)
            self.folder.save(*state, self.progress.n_updates)
            lines = "".join(entry.model_dump_json() + "\n" for entry in self.progress.log)
            write_atomically(self.folder.path / "log.jsonl", lines)
        except OSError as error:
            self._note(f"no checkpoint of update {self.progress.n_updates} ({error}); the ones before it are as they were")

    def _result(self) -> TrainingRun:
        progress, device, gpu = self.progress, device_name(), gpu_name()
        peaks_bytes = [entry.peak_memory_bytes for entry in progress.log if entry.memory_device == gpu]
        # Where no epoch has two whole updates: epochs, their first update and validation included.
        step_times_s = progress.step_times_s or [entry.duration_s / self.cut.n_micro_batches for entry in progress.log]
        return TrainingRun(
            model=self.model,
            config=self.config,
            history=progress.log,
            step_time=Quantity.measured(step_times_s, "s", device),
            peak_memory=Quantity.measured([max(peaks_bytes)], "bytes", device) if peaks_bytes else None,
            threshold_weights=self.weights,
            gamma=self.stage.gamma,
            micro_batch_size=self.cut.micro_batch_size,
            notes=progress.notes,
        )


class _Updates(keras.callbacks.Callback):
    """Calls `end_update(loss, is_whole)` after each update; where an epoch is continued, puts back the sums of its metrics."""

    def __init__(
        self, cut: MicroBatching, start: int, end_update: Callable[[Any, bool], None], sums: dict[str, np.ndarray] | None
    ):
        super().__init__()
        self.cut, self.start, self.end_update, self.sums = cut, start, end_update, sums

    def on_epoch_begin(self, epoch, logs=None):
        if self.sums:
            restore(self.model, self.sums, ("metrics",))

    def on_train_batch_end(self, batch, logs=None):
        end = self.cut.bounds(self.start + batch).stop
        if end % self.cut.batch_size == 0:
            self.end_update(logs["loss"], True)
        elif end == self.cut.n_samples:
            self.end_update(logs["loss"], False)
