"""The loop around Keras' own `fit`, an epoch at a time: exact accumulation, checkpoints between updates, the retreat."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict
from tqdm import tqdm

from ...paths import write_atomically
from ...results import Epoch, Quantity
from .. import private
from ..backend import device_name, gpu_name, is_out_of_memory, keras, memory_use, n_replicas
from ..checks import check_count, describe_class
from ..model.accumulation import AccumulatingOptimizer, MicroBatching
from .checkpoint import Checkpoint, CheckpointError, CheckpointFolder, capture, fingerprint, load_checked, restore
from .dataset import Dataset, MicroBatches, open_dataset

_N_STEP_TIMES = 1000  # the latest are kept


@dataclass(frozen=True)
class Settings:
    """What `fit` was asked for."""

    n_epochs: int
    batch_size: int | None = None
    micro_batch_size: int | None = None
    patience: int | None = None
    seed: int | tuple[int, ...] = 0
    checkpoint_every: int | None = None
    stage: int = 1
    progress_bar: bool | None = None

    def __post_init__(self):
        for name in ("n_epochs", "batch_size", "micro_batch_size", "patience", "checkpoint_every"):
            if name == "n_epochs" or getattr(self, name) is not None:
                check_count(name, getattr(self, name))


class Progress(BaseModel):
    """How far a training is, as a checkpoint keeps it.

    Attributes:
        epoch: epochs that are done; `update`: updates done of the next one.
        n_updates: of all epochs, those included that the loss scale made skip.
        n_updates_before: that the optimizer had made before this training.
        micro_batch_limit: what the device's memory was found to allow.
        best_loss: smallest validation loss, after `best_epoch` epochs.
        epoch_s: time spent on the epoch at hand.
        step_times_s: the latest, per micro-batch.
    """

    model_config = ConfigDict(extra="forbid")

    epoch: int = 0
    update: int = 0
    n_updates: int = 0
    n_updates_before: int = 0
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
        micro_batch_size: at the end; less than asked for where the device ran out of memory, `n_retreats` times.
        best_epoch: the epoch with the smallest validation loss (loss without validation data), whose weights the model has
            where `patience` was given.
        notes: what did not go as asked for, in words.
    """

    model: keras.Model
    history: list[Epoch]
    step_time: Quantity
    peak_memory: Quantity | None
    micro_batch_size: int
    n_retreats: int
    best_epoch: int
    notes: list[str]


class Loop:
    """A training under way: its model, its progress, and the last moment that it can go back to."""

    def __init__(
        self,
        model: keras.Model,
        data: Any,
        validation_data: Any,
        settings: Settings,
        on_epoch: Callable[[list[Epoch]], None] | None,
    ):
        check_trainable(model)
        self.model, self.settings, self.on_epoch = model, settings, on_epoch
        self.optimizer = model.optimizer
        if isinstance(self.optimizer, AccumulatingOptimizer):  # of an earlier training that was interrupted
            self.optimizer = self.optimizer.inner_optimizer
        self.data = open_dataset(data, settings.batch_size)
        self.validation: Dataset | None = None
        if validation_data is not None:
            self.validation = open_dataset(validation_data, None, name="validation_data")
        size = settings.micro_batch_size or self.data.batch_size
        self.micro_batching = self._cut(min(size, self.data.batch_size) if settings.batch_size is None else size)
        if self.micro_batching.n_per_update > 1:
            check_accumulates(model)
        self.progress, self.best = Progress(), None
        self.snapshot: tuple[Progress, dict[str, np.ndarray]] | None = None
        self.folder: CheckpointFolder | None = None
        self.fingerprint: dict[str, Any] = {}
        self.loss = self.updated_at_s = None
        self.began_at_s = 0.0
        self.bar: tqdm | None = None

    def run(self, checkpoint_folder: str | Path | None, *, resume: bool) -> TrainingRun:
        if resume and checkpoint_folder is None:
            raise ValueError("resume is True without a checkpoint_folder: name the folder to continue from")
        try:
            if checkpoint_folder is not None:
                if hasattr(self.data, "check_repeatable"):
                    self.data.check_repeatable()
                self.folder = CheckpointFolder(Path(checkpoint_folder), resume=resume)
            self._begin()
            memory_use()  # measures anew from here
            while not self._is_done():
                self._train_epoch()
            return self._result()
        finally:
            private.set_optimizer(self.model, self.optimizer)
            if self.folder:
                self.folder.close()

    def _is_done(self) -> bool:
        progress, patience = self.progress, self.settings.patience
        waited = progress.epoch - progress.best_epoch
        return progress.epoch >= self.settings.n_epochs or (patience is not None and waited >= patience)

    def _begin(self) -> None:
        if not self.model.built:
            self.model.test_on_batch(*self._first_micro_batch())
        self._install_optimizer()
        self.progress.n_updates_before = self._count_applied()
        if private.find_masks(getattr(self.model, "outputs", None) or []) and self.micro_batching.n_per_update > 1:
            self._note("the loss is a mean over what is not masked; micro-batches are weighed by their samples all the same")
        checkpoint = None
        if self.folder:
            names = ("patience", "seed")
            settings = {name: getattr(self.settings, name) for name in names} | vars(self.micro_batching)
            settings |= {"n_devices": n_replicas(), "data": self.data.digest()}
            settings |= {"validation": self.validation.digest() if self.validation else None}
            self.fingerprint = fingerprint(self.model, **settings)
            checkpoint = self.folder.newest(self.fingerprint, Progress.model_validate)
        if checkpoint is None:
            self._save()
            return
        self.snapshot = Progress.model_validate(checkpoint.progress), checkpoint.arrays
        self._roll_back()
        if self.progress.best_epoch and self.settings.patience is not None:
            try:
                self.best = load_checked(self.folder.path / "best.npz", self.fingerprint).arrays
            except CheckpointError as error:
                self._note(f"the weights of the best epoch so far are lost ({error})")

    def _cut(self, size: int) -> MicroBatching:
        n_devices, batch_size = n_replicas(), self.data.batch_size
        if size % n_devices or batch_size % n_devices:
            raise ValueError(
                f"micro-batches of {size} for updates of {batch_size} on {n_devices} devices: expected multiples of "
                f"{n_devices}, so that each device gets as many"
            )
        return MicroBatching(self.data.n_samples // n_devices * n_devices, batch_size, size)

    def _validation_batches(self) -> MicroBatches:
        """Of no more samples than in training: what fits there fits here."""
        n_devices = n_replicas()
        n = self.validation.n_samples // n_devices * n_devices
        batch_size = min(n, self.validation.batch_size)
        size = min(batch_size, self.micro_batching.micro_batch_size)
        return MicroBatches(self.validation.open(None), MicroBatching(n, batch_size, size))

    def _first_micro_batch(self) -> tuple:
        batch = MicroBatches(self.data.open(None), self.micro_batching)[0]
        return batch if isinstance(batch, tuple) else (batch,)

    def _install_optimizer(self) -> None:
        """The user's optimizer, for the micro-batches at hand."""
        optimizer = self.optimizer
        if self.micro_batching.n_per_update > 1:
            optimizer = AccumulatingOptimizer(optimizer, self.micro_batching)
        private.set_optimizer(self.model, optimizer)
        if not optimizer.built:
            optimizer.build(self.model.trainable_variables)

    def _count_applied(self) -> int:
        return int(keras.ops.convert_to_numpy(self.optimizer.iterations))

    def _roll_back(self) -> None:
        """To the snapshot: this process's, or one of a checkpoint."""
        progress, arrays = self.snapshot
        self.progress = progress.model_copy(deep=True)
        if self.progress.micro_batch_limit:
            self.micro_batching = self._cut(min(self.micro_batching.micro_batch_size, self.progress.micro_batch_limit))
        self._install_optimizer()
        restore(self.model, arrays)

    def _train_epoch(self) -> None:
        try:
            metrics = self._fit_epoch()
        except Exception as error:
            n_devices, size = n_replicas(), self.micro_batching.micro_batch_size
            smaller = -(-size // (2 * n_devices)) * n_devices
            if not is_out_of_memory(error) or smaller == size:
                raise
            reason = str(error).strip().partition("\n")[0]
        else:
            self._end_epoch(metrics)
            return
        # Not above: until the error is gone, its traceback holds what the failed step had allocated.
        note = (
            f"the device ran out of memory in stage {self.settings.stage}, epoch {self.progress.epoch + 1}, "
            f"with micro-batches of {size} ({reason}): went on with {smaller}, from update {self.snapshot[0].n_updates}"
        )
        self._note(note)
        self.snapshot[0].micro_batch_limit, self.snapshot[0].notes = smaller, self.progress.notes
        self._roll_back()

    def _note(self, note: str) -> None:
        warnings.warn(note, RuntimeWarning, stacklevel=2)
        self.progress.notes.append(note)

    def _fit_epoch(self) -> dict[str, float]:
        """Keras' `fit` from the update at hand to the end of the epoch; the epoch's metrics."""
        progress, cut = self.progress, self.micro_batching
        start = progress.update * cut.n_per_update
        if cut.n_per_update > 1:
            self.model.optimizer.index.assign(start)
        sums = self.snapshot[1] if start else None  # of the metrics
        if sums:
            self.model.test_on_batch(*self._first_micro_batch())  # which makes Keras build the metrics
        order = np.random.default_rng([*np.atleast_1d(self.settings.seed), progress.epoch])
        batches = MicroBatches(self.data.open(order), cut, start)
        self.loss = self.updated_at_s = None
        self.began_at_s = perf_counter() - progress.epoch_s
        title = f"stage {self.settings.stage}, epoch {progress.epoch + 1}"
        hidden = None if self.settings.progress_bar is None else not self.settings.progress_bar
        with tqdm(total=cut.n_updates, initial=progress.update, desc=title, unit="update", disable=hidden) as self.bar:
            callbacks = [UpdateCallback(cut, start, self._end_update, sums)]
            validation = self._validation_batches() if self.validation else None
            try:
                fit = self.model.fit(batches, validation_data=validation, shuffle=False, verbose=0, callbacks=callbacks)
            except Exception as error:
                raise batches.failure or error from None
        return {name: float(values[-1]) for name, values in fit.history.items()}

    def _end_update(self, loss: Any, is_whole: bool) -> None:
        """Reads the loss of the update before this one only: meanwhile the device has this one to work on."""
        progress = self.progress
        progress.update += 1
        progress.n_updates += 1
        if self.loss is not None:
            self._check_finite({"loss": float(self.loss)})
        now_s = perf_counter()
        if self.updated_at_s is not None and is_whole:
            progress.step_times_s.append((now_s - self.updated_at_s) / self.micro_batching.n_per_update)
            del progress.step_times_s[:-_N_STEP_TIMES]
        self.loss, self.updated_at_s = loss, now_s
        self.bar.update()
        every = self.settings.checkpoint_every
        # The end of an epoch has a checkpoint of its own.
        if every and progress.n_updates % every == 0 and progress.update < self.micro_batching.n_updates:
            self._check_finite({"loss": float(loss)})
            self._save()
            self.updated_at_s = perf_counter()

    def _check_finite(self, metrics: dict[str, float]) -> None:
        for name, value in metrics.items():
            if not np.isfinite(value):
                raise FloatingPointError(f"{name} is {value} in epoch {self.progress.epoch + 1}: lower the learning rate")

    def _end_epoch(self, metrics: dict[str, float]) -> None:
        self._check_finite(metrics)
        progress, memory, cut = self.progress, memory_use(), self.micro_batching
        progress.epoch += 1
        n_skipped = progress.epoch * cut.n_updates - (self._count_applied() - progress.n_updates_before)
        progress.log.append(
            Epoch(
                stage=self.settings.stage,
                epoch=progress.epoch,
                metrics=metrics,
                duration_s=perf_counter() - self.began_at_s,
                micro_batch_size=cut.micro_batch_size,
                n_updates=cut.n_updates,
                n_skipped_updates=n_skipped - sum(entry.n_skipped_updates for entry in progress.log),
                memory_device=memory.device,
                memory_bytes=memory.current_bytes,
                peak_memory_bytes=memory.peak_bytes,
                notes=progress.notes[sum(len(entry.notes) for entry in progress.log) :],
            )
        )
        loss = metrics["val_loss" if self.validation else "loss"]
        is_best = progress.best_loss is None or loss < progress.best_loss
        if is_best:
            progress.best_loss, progress.best_epoch = loss, progress.epoch
        progress.update, progress.epoch_s = 0, 0.0
        self._save(is_best=is_best)
        if self.on_epoch:
            self.on_epoch(progress.log)

    def _save(self, *, is_best: bool = False) -> None:
        """Take a snapshot, and write it down where there is a folder; where that fails, training goes on."""
        if self.progress.update:
            self.progress.epoch_s = perf_counter() - self.began_at_s
        self.snapshot = self.progress.model_copy(deep=True), capture(self.model)
        if is_best:
            self.best = self.snapshot[1]
        if not self.folder:
            return
        checkpoint = Checkpoint(self.fingerprint, self.progress.model_dump(mode="json"), self.snapshot[1])
        try:
            if is_best:
                checkpoint.save(self.folder.path / "best.npz")
            self.folder.save(checkpoint, self.progress.n_updates)
            lines = "".join(entry.model_dump_json() + "\n" for entry in self.progress.log)
            write_atomically(self.folder.path / "log.jsonl", lines)
        except OSError as error:
            self._note(f"no checkpoint of update {self.progress.n_updates} ({error}); the ones before it are as they were")

    def _result(self) -> TrainingRun:
        progress, device, gpu = self.progress, device_name(), gpu_name()
        if self.settings.patience is not None and self.best and progress.best_epoch < progress.epoch:
            restore(self.model, self.best, ("model",))
        peaks_bytes = [entry.peak_memory_bytes for entry in progress.log if entry.memory_device == gpu]
        # Where no epoch has two whole updates: epochs, their first update and validation included.
        step_times_s = progress.step_times_s or [e.duration_s / self.micro_batching.n_micro_batches for e in progress.log]
        return TrainingRun(
            model=self.model,
            history=progress.log,
            step_time=Quantity.measured(step_times_s, "s", device),
            peak_memory=Quantity.measured([max(peaks_bytes)], "bytes", device) if peaks_bytes else None,
            micro_batch_size=self.micro_batching.micro_batch_size,
            n_retreats=sum("ran out of memory" in note for note in progress.notes),
            best_epoch=progress.best_epoch,
            notes=progress.notes,
        )


def check_trainable(model: Any) -> None:
    """That `fit` can train it.

    Raises:
        ValueError: it is no compiled Keras model, or accumulates or counts steps in a way of its own.
    """
    if not isinstance(model, keras.Model):
        raise ValueError(f"the model is {describe_class(model)}: expected a keras.Model, built by Keras 3 and compiled")
    if not getattr(model, "compiled", False) or model.optimizer is None:
        raise ValueError(f"model {model.name!r} has no optimizer: compile it, as in model.compile('adam', loss='mse')")
    if getattr(model, "steps_per_execution", 1) != 1:
        raise ValueError(f"steps_per_execution is {model.steps_per_execution}: expected 1, compile the model without it")
    inner = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    if getattr(inner, "gradient_accumulation_steps", None):
        raise ValueError(
            f"the optimizer has gradient_accumulation_steps={inner.gradient_accumulation_steps}: compile the model without, "
            "and give fit a micro_batch_size, whose updates are exact"
        )


def check_accumulates(model: keras.Model) -> None:
    """That the losses of micro-batches, weighed by their sizes, add up to the loss of the batch.

    Raises:
        ValueError: a loss is a sum, or a mean over weights.
    """
    for loss in keras.tree.flatten(getattr(model, "loss", None)):
        if (reduction := getattr(loss, "reduction", None)) in ("sum", "mean_with_sample_weight"):
            raise ValueError(
                f"loss {loss.name!r} has the reduction {reduction!r}: micro-batches add up for means over samples only; take "
                "reduction='sum_over_batch_size', or leave out micro_batch_size"
            )


class UpdateCallback(keras.callbacks.Callback):
    """Calls `end_update(loss, is_whole)` after each update; where an epoch is continued, puts back the sums of its metrics."""

    def __init__(
        self,
        micro_batching: MicroBatching,
        start: int,
        end_update: Callable[[Any, bool], None],
        sums: dict[str, np.ndarray] | None,
    ):
        super().__init__()
        self.micro_batching, self.start, self.end_update, self.sums = micro_batching, start, end_update, sums

    def on_epoch_begin(self, epoch, logs=None):
        if self.sums:
            restore(self.model, self.sums, ("metrics",))

    def on_train_batch_end(self, batch, logs=None):
        end = self.micro_batching.bounds(self.start + batch).stop
        if end % self.micro_batching.batch_size == 0:
            self.end_update(logs["loss"], True)
        elif end == self.micro_batching.n_samples:
            self.end_update(logs["loss"], False)
