"""The loop around Keras' own `fit`, an epoch at a time: exact accumulation, checkpoints between updates, the retreat."""

import warnings
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from ...paths import write_atomically
from ...results import Epoch, Quantity
from .. import private
from ..backend import device_name, gpu_name, is_out_of_memory, keras, memory_use, n_replicas
from ..model.accumulation import AccumulatingOptimizer, MicroBatching
from ..model.recompute import recompute_layers
from .callbacks import OneTraining, UpdateCallback
from .checkpoint import Checkpoint, CheckpointError, CheckpointFolder, capture, fingerprint, restore, users_optimizer
from .dataset import MicroBatches, open_dataset
from .settings import Settings, check_accumulates, check_trainable

_N_STEP_TIMES = 1000  # the latest are kept


class Progress(BaseModel):
    """How far a training is, as a checkpoint keeps it.

    Attributes:
        epoch: epochs that are done; `update`: updates done of the next one.
        n_updates: of all epochs, those included that the loss scale made skip.
        n_applied: updates that the optimizer had made when the epoch at hand began, those before this training included.
        is_stopped: by a callback.
        micro_batch_limit: what the device's memory was found to allow.
        best_loss: smallest validation loss, after `best_epoch` epochs.
        epoch_s: time spent on the epoch at hand.
        step_times_s: the latest, per micro-batch.
    """

    model_config = ConfigDict(extra="forbid")

    epoch: int = 0
    update: int = 0
    n_updates: int = 0
    n_applied: int = 0
    is_stopped: bool = False
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

    def __init__(self, model: keras.Model, data: Any, validation_data: Any, settings: Settings):
        check_trainable(model)
        self.model, self.settings, self.optimizer = model, settings, users_optimizer(model)
        self.data = open_dataset(data, settings.batch_size)
        self.validation = None if validation_data is None else open_dataset(validation_data, name="validation_data")
        size = settings.micro_batch_size or self.data.batch_size
        self.micro_batching = self._divide(size if settings.batch_size else min(size, self.data.batch_size))
        if self.micro_batching.n_per_update > 1:
            check_accumulates(model)
        callbacks = [*settings.callbacks, UpdateCallback(self)]
        self.callbacks = OneTraining(callbacks, add_history=True, add_progbar=settings.verbose > 0, model=model)
        self.progress, self.best = Progress(), None
        self.snapshot: tuple[Progress, dict[str, np.ndarray]] | None = None
        self.folder: CheckpointFolder | None = None
        self.fingerprint: dict[str, Any] = {}
        self.loss = self.updated_at_s = None
        self.began_at_s, self.start = 0.0, 0  # of the epoch at hand; start: its first micro-batch in this process

    def run(self) -> TrainingRun:
        settings = self.settings
        names = {"seed": settings.seed, "patience": settings.patience, "n_devices": n_replicas()} | vars(self.micro_batching)
        try:
            if settings.checkpoint_folder is not None:
                names |= {"data": self.data.digest(), "validation": self.validation and self.validation.digest()}
                self.folder = CheckpointFolder(settings.checkpoint_folder, resume=settings.resume)
            if not self.model.built:
                self.model.test_on_batch(*self._first_micro_batch())
            with recompute_layers(self.model, settings.recompute):
                self._begin(names)
                memory_use()  # measures anew from here
                while not self._is_done():
                    self._train_epoch()
            self.callbacks.end()
            return self._result()
        finally:
            private.set_optimizer(self.model, self.optimizer)
            if self.folder:
                self.folder.close()

    def _is_done(self) -> bool:
        progress, patience = self.progress, self.settings.patience
        waited = progress.epoch - progress.best_epoch
        return progress.is_stopped or progress.epoch >= self.settings.n_epochs or (patience is not None and waited >= patience)

    def _begin(self, settings: dict[str, Any]) -> None:
        self._install_optimizer()
        self.progress.n_applied = self._count_applied()
        if private.find_masks(getattr(self.model, "outputs", None) or []) and self.micro_batching.n_per_update > 1:
            self._note("the loss is a mean over what is not masked; micro-batches are weighed by their samples all the same")
        checkpoint = None
        if self.folder:
            self.fingerprint = fingerprint(self.model, **settings)
            checkpoint = self.folder.newest(self.fingerprint, Progress.model_validate)
        if checkpoint is None:
            self._save()
            return
        self.snapshot = Progress.model_validate(checkpoint.progress), checkpoint.arrays
        self._roll_back()
        try:
            self.best = Checkpoint.load(self.folder.path / "best.npz", self.fingerprint).arrays
        except CheckpointError as error:
            if self.progress.best_epoch:
                self._note(f"the weights of the best epoch so far are lost ({error})")

    def _divide(self, size: int) -> MicroBatching:
        n_devices, batch_size = n_replicas(), self.data.batch_size
        if size % n_devices or batch_size % n_devices:
            sizes = f"micro-batches of {size} for updates of {batch_size} on {n_devices} devices"
            raise ValueError(f"{sizes}: expected multiples of {n_devices}, so that each device gets as many")
        return MicroBatching(self.data.n_samples // n_devices * n_devices, batch_size, size)

    def _validation_batches(self) -> MicroBatches | None:
        """Of no more samples than in training: what fits there fits here."""
        if self.validation is None:
            return None
        n = self.validation.n_samples // n_replicas() * n_replicas()
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
            self.micro_batching = self._divide(min(self.micro_batching.micro_batch_size, self.progress.micro_batch_limit))
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
        went_on = f"went on with {smaller}, from update {self.snapshot[0].n_updates}"
        self._note(f"out of memory in epoch {self.progress.epoch + 1}, with micro-batches of {size} ({reason}): {went_on}")
        self.snapshot[0].micro_batch_limit, self.snapshot[0].notes = smaller, self.progress.notes
        self._roll_back()

    def _note(self, note: str) -> None:
        warnings.warn(note, RuntimeWarning, stacklevel=2)
        self.progress.notes.append(note)

    def _fit_epoch(self) -> dict[str, float]:
        """Keras' `fit` from the update at hand to the end of the epoch; the epoch's metrics."""
        progress, n_per_update = self.progress, self.micro_batching.n_per_update
        self.start = progress.update * n_per_update
        if n_per_update > 1:
            self.model.optimizer.index.assign(self.start)
        if self.start:
            self.model.test_on_batch(*self._first_micro_batch())  # which makes Keras build the metrics
        order = np.random.default_rng([self.settings.seed, progress.epoch])
        batches = MicroBatches(self.data.open(order), self.micro_batching, self.start)
        self.loss = self.updated_at_s = None
        self.began_at_s = perf_counter() - progress.epoch_s
        self.callbacks.set_params({"verbose": self.settings.verbose, "epochs": self.settings.n_epochs, "steps": len(batches)})
        how = {"validation_data": self._validation_batches(), "shuffle": False, "callbacks": self.callbacks}
        try:
            fit = self.model.fit(batches, initial_epoch=progress.epoch, epochs=progress.epoch + 1, **how)
        except Exception as error:
            raise batches.failure or error from None
        return {name: float(values[-1]) for name, values in fit.history.items()}

    def end_update(self, loss: Any, is_whole: bool) -> None:
        """Reads the loss of the update before this one: until then the device has this one to work on, and it is timed."""
        progress = self.progress
        progress.update += 1
        progress.n_updates += 1
        self._check_finite(loss=float(self.loss or 0))
        now_s = perf_counter()
        if self.updated_at_s is not None and is_whole:
            progress.step_times_s.append((now_s - self.updated_at_s) / self.micro_batching.n_per_update)
            del progress.step_times_s[:-_N_STEP_TIMES]
        self.loss, self.updated_at_s = loss, now_s
        every = self.settings.checkpoint_every
        # The end of an epoch has a checkpoint of its own.
        if every and progress.n_updates % every == 0 and progress.update < self.micro_batching.n_updates:
            self._check_finite(loss=float(loss))
            self._save()
            self.updated_at_s = perf_counter()

    def _check_finite(self, **metrics: float) -> None:
        if bad := {name: value for name, value in metrics.items() if not np.isfinite(value)}:
            raise FloatingPointError(f"{bad} in epoch {self.progress.epoch + 1}: lower the learning rate")

    def _end_epoch(self, metrics: dict[str, float]) -> None:
        self._check_finite(**metrics)
        progress, memory, n_applied = self.progress, memory_use(), self._count_applied()
        progress.epoch += 1
        progress.log.append(
            Epoch(
                epoch=progress.epoch,
                metrics=metrics,
                duration_s=perf_counter() - self.began_at_s,
                micro_batch_size=self.micro_batching.micro_batch_size,
                n_updates=self.micro_batching.n_updates,
                n_skipped_updates=self.micro_batching.n_updates - (n_applied - progress.n_applied),
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
        progress.update, progress.epoch_s, progress.n_applied = 0, 0.0, n_applied
        progress.is_stopped = self.model.stop_training
        self._save(is_best=is_best)

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
        progress, device = self.progress, device_name()
        if self.settings.patience is not None and self.best:
            restore(self.model, self.best, ("model",))
        peaks_bytes = [entry.peak_memory_bytes for entry in progress.log if entry.memory_device == gpu_name()]
        # Where no epoch has two whole updates: epochs, their first update and validation included.
        n_steps = self.micro_batching.n_micro_batches
        step_times_s = progress.step_times_s or [entry.duration_s / n_steps for entry in progress.log]
        return TrainingRun(
            model=self.model,
            history=progress.log,
            step_time=Quantity.measured(step_times_s, "s", device),
            peak_memory=Quantity.measured([max(peaks_bytes)], "bytes", device) if peaks_bytes else None,
            micro_batch_size=self.micro_batching.micro_batch_size,
            n_retreats=sum(note.startswith("out of memory") for note in progress.notes),
            best_epoch=progress.best_epoch,
            notes=progress.notes,
        )
