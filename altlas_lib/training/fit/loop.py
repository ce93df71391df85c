"""The loop around Keras' own `fit`, an epoch at a time: exact accumulation, checkpoints between updates, the retreat."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from ...progress import progress_bar
from ...results import Epoch, Quantity
from .. import private
from ..backend import MemoryUse, device_name, gpu_name, is_out_of_memory, keras, memory_use, n_replicas
from ..checks import EXPECTED_MODEL, check_count, describe_class
from ..model.accumulation import AccumulatingOptimizer, MicroBatching
from ..model.recompute import recompute_layers
from .checkpoint import Arrays, CheckpointFolder, Progress, describe_training, users_optimizer
from .dataset import MicroBatches, open_dataset

_N_STEP_TIMES = 1000  # the latest are kept


@dataclass(frozen=True)
class Settings:
    """What `fit` was asked for."""

    n_epochs: int
    batch_size: int | None = None
    micro_batch_size: int | None = None
    patience: int | None = None
    seed: int = 0
    recompute: Sequence[str] = ()
    callbacks: Sequence[keras.callbacks.Callback] = ()
    verbose: int = 0
    checkpoint_folder: str | Path | None = None
    checkpoint_every: int | None = None
    resume: bool = False

    def __post_init__(self):
        for name in ("n_epochs", "batch_size", "micro_batch_size", "patience", "checkpoint_every"):
            if name == "n_epochs" or getattr(self, name) is not None:
                check_count(name, getattr(self, name))
        if self.resume and self.checkpoint_folder is None:
            raise ValueError("resume is True without a checkpoint_folder: name the folder to continue from")


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


class OneTraining(keras.callbacks.CallbackList):
    """Callbacks to which several calls of Keras' `fit`, one for each epoch, are one training: the loop says when it begins."""

    def on_train_begin(self, logs=None):
        """Of an epoch's `fit`."""

    on_train_end = on_train_begin


class Loop:
    """A training under way: its model, its progress, and the last moment that it can go back to."""

    rank = 0  # of this process among those that train together
    report: Callable[[float], None] | None = None  # takes the share that is done

    def __init__(self, model: keras.Model, data: Any, validation_data: Any, settings: Settings):
        _check_trainable(model)
        self.model, self.settings, self.optimizer = model, settings, users_optimizer(model)
        self.data = open_dataset(data, settings.batch_size)
        self.validation = None if validation_data is None else open_dataset(validation_data, name="validation_data")
        size = settings.micro_batch_size or self.data.batch_size
        self.micro_batching = self._divide(size if settings.batch_size else min(size, self.data.batch_size))
        if self.micro_batching.n_per_update > 1:
            _check_accumulates(model)
        own = keras.callbacks.LambdaCallback(on_epoch_begin=self.begin_epoch, on_train_batch_end=self.end_micro_batch)
        bar = {"add_history": True, "add_progbar": settings.verbose > 0}
        self.callbacks = OneTraining([*settings.callbacks, own], model=model, **bar)
        self.progress = Progress(micro_batch_size=self.micro_batching.micro_batch_size)
        self.snapshot: tuple[Progress, Arrays] = self.progress, {}
        self.folder: CheckpointFolder | None = None
        self.best: Arrays = {}
        self.start, self.loss = 0, 0.0  # of the epoch at hand: its first micro-batch in this process, the latest update's loss
        self.times_s: list[float] = []  # of its start, then of the ends of its updates

    def run(self) -> TrainingRun:
        settings = self.settings
        try:
            private.make_variables(self.model, MicroBatches(self.data, self.micro_batching)[0])
            if settings.checkpoint_folder is not None:
                names = {"seed": settings.seed, "patience": settings.patience, "n_devices": n_replicas()}
                names |= {"data": self.data.digest(), "validation": self.validation and self.validation.digest()}
                fingerprint = describe_training(self.model, **names, **vars(self.micro_batching))
                self.folder = CheckpointFolder(settings.checkpoint_folder, fingerprint, resume=settings.resume)
            found = self.folder and self.folder.load()
            with recompute_layers(self.model, settings.recompute), private.infinities_on_any_replica(self.optimizer):
                if found:
                    self.snapshot, self.best = found[:2], found[2]
                    self._roll_back()
                    if keras.backend.backend() == "torch":
                        self._note("resumed on Keras' PyTorch backend: dropout draws other numbers than if never killed")
                else:
                    self._install_optimizer()
                    self._save()
                memory_use(reset=True)
                keras.callbacks.CallbackList.on_train_begin(self.callbacks)
                self._train()
                keras.callbacks.CallbackList.on_train_end(self.callbacks)
            return self._result()
        finally:
            private.set_optimizer(self.model, self.optimizer)
            if self.folder:
                self.folder.close()

    def _train(self) -> None:
        with progress_bar("fit", False if self.settings.verbose or self.rank else None) as self.report:
            self.first_epoch = self.progress.epoch
            while not self._is_done():
                self._train_epoch()

    def _is_done(self) -> bool:
        progress, patience = self.progress, self.settings.patience
        waited = progress.epoch - progress.best_epoch
        return progress.is_stopped or progress.epoch >= self.settings.n_epochs or (patience is not None and waited >= patience)

    def _divide(self, size: int) -> MicroBatching:
        n, batch_size = n_replicas(), self.data.batch_size
        if size % n or batch_size % n:
            sizes = f"micro-batches of {size} for updates of {batch_size} on {n} devices"
            raise ValueError(f"{sizes}: expected multiples of {n}, so that each device gets as many")
        return MicroBatching(self.data.n_samples // n * n, batch_size, size)

    def _validation_batches(self) -> MicroBatches | None:
        """Of no more samples than in training: what fits there fits here."""
        if self.validation is None:
            return None
        n = self.validation.n_samples // n_replicas() * n_replicas()
        size = min(n, self.validation.batch_size)
        return MicroBatches(self.validation, MicroBatching(n, size, min(size, self.micro_batching.micro_batch_size)))

    def _install_optimizer(self) -> None:
        """The user's optimizer, for the micro-batches at hand."""
        optimizer = self.optimizer
        if self.micro_batching.n_per_update > 1:
            optimizer = AccumulatingOptimizer(optimizer, self.micro_batching)
            optimizer.build(self.model.trainable_variables)
        private.set_optimizer(self.model, optimizer)

    def _roll_back(self) -> None:
        """To the snapshot: this process's, or one of a checkpoint."""
        progress, arrays = self.snapshot
        self.progress = progress.model_copy(deep=True)
        self.micro_batching = self._divide(self.progress.micro_batch_size)
        self._install_optimizer()
        self.restore(arrays, "model", "optimizer")

    def _train_epoch(self) -> None:
        n_devices, size, reason = n_replicas(), self.micro_batching.micro_batch_size, None
        smaller = -(-size // (2 * n_devices)) * n_devices
        try:
            self._end_epoch(self._fit_epoch())
        except Exception as error:
            if not is_out_of_memory(error) or smaller == size:
                raise
            reason = str(error).strip().partition("\n")[0]
        if reason is not None:  # not above: until the error is gone, its traceback holds what the failed step had allocated
            went_on = f"went on with {smaller}, from update {self.snapshot[0].n_updates}"
            self._note(f"out of memory in epoch {self.progress.epoch + 1}, with micro-batches of {size} ({reason}): {went_on}")
            self.snapshot[0].micro_batch_size, self.snapshot[0].notes = smaller, self.progress.notes
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
        order = np.random.default_rng([self.settings.seed, progress.epoch])
        batches = MicroBatches(self.data, self.micro_batching, order, self.start)
        self.loss, self.times_s = 0.0, [perf_counter()]
        self.callbacks.set_params({"verbose": self.settings.verbose, "epochs": self.settings.n_epochs, "steps": len(batches)})
        how = {"validation_data": self._validation_batches(), "shuffle": False, "callbacks": self.callbacks}
        try:
            fit = self.model.fit(batches, initial_epoch=progress.epoch, epochs=progress.epoch + 1, **how)
        except Exception as error:
            raise batches.failure or error from None
        return {name: float(values[-1]) for name, values in fit.history.items()}

    def begin_epoch(self, epoch: int, logs: Any) -> None:
        """Where an epoch is continued, puts back the sums of its metrics."""
        if self.start:
            self.restore(self.snapshot[1], "metrics")

    def end_micro_batch(self, batch: int, logs: dict[str, Any]) -> None:
        """Of an update's last one, reads the loss of the update before: until then the device has this one to work on."""
        progress, cut, every = self.progress, self.micro_batching, self.settings.checkpoint_every
        if self.report:  # of an epoch that is continued, as if all of it were done here
            n_done = (progress.epoch - self.first_epoch) * cut.n_micro_batches + self.start + batch + 1
            self.report(n_done / ((self.settings.n_epochs - self.first_epoch) * cut.n_micro_batches))
        end = cut.bounds(self.start + batch).stop
        if end % cut.batch_size and end < cut.n_samples:
            return
        progress.update += 1
        progress.n_updates += 1
        self._check_finite(loss=float(self.loss))
        self.times_s.append(perf_counter())
        self.loss = logs["loss"]
        # The end of an epoch has a checkpoint of its own.
        if every and progress.n_updates % every == 0 and progress.update < cut.n_updates:
            self._check_finite(loss=float(self.loss))
            self._save()

    def _check_finite(self, **metrics: float) -> None:
        if bad := {name: value for name, value in metrics.items() if not np.isfinite(value)}:
            raise FloatingPointError(f"{bad} in epoch {self.progress.epoch + 1}: lower the learning rate")

    def _end_epoch(self, metrics: dict[str, float]) -> None:
        self._check_finite(**metrics)
        progress, cut = self.progress, self.micro_batching
        # Whole updates, but for the first, which traces and compiles; the time of a checkpoint is in the update after it.
        n_whole = cut.n_samples // cut.batch_size - self.start // cut.n_per_update
        progress.step_times_s += [*np.diff(self.times_s[1 : n_whole + 1]) / cut.n_per_update]
        del progress.step_times_s[:-_N_STEP_TIMES]
        progress.epoch += 1
        found = vars(self.memory_use()) | {"metrics": metrics, "duration_s": perf_counter() - self.times_s[0]}
        found |= {"micro_batch_size": cut.micro_batch_size, "n_updates": cut.n_updates}
        notes = progress.notes[sum(len(entry.notes) for entry in progress.history) :]
        progress.history.append(Epoch(epoch=progress.epoch, notes=notes, **found))
        loss = metrics["val_loss" if self.validation else "loss"]
        if progress.best_loss is None or loss < progress.best_loss:
            progress.best_loss, progress.best_epoch = loss, progress.epoch
        progress.update, progress.is_stopped = 0, getattr(self.model, "stop_training", False)
        self._save()

    def _save(self) -> None:
        """Take a snapshot, and write it down where there is a folder; where that fails, training goes on."""
        progress, arrays = self.progress.model_copy(deep=True), self.capture()
        self.snapshot = progress, arrays
        if self.settings.patience is not None and progress.best_epoch == progress.epoch and not progress.update:
            self.best = {name: array for name, array in arrays.items() if name.startswith("model")}
        try:
            if self.folder:
                self.folder.save(progress, arrays, self.best)
        except OSError as error:
            self._note(f"no checkpoint of update {progress.n_updates} ({error}); the ones before it are as they were")

    def memory_use(self) -> MemoryUse:
        """Of the epoch at hand; the next one's peak begins here."""
        return memory_use(reset=True)

    def _variables(self) -> dict[str, keras.Variable]:
        """Every variable that a step of training may change, but for the accumulators, by group and place."""
        model = self.model
        groups = {"model": model.variables, "optimizer": self.optimizer.variables, "metrics": model.metrics_variables}
        return {f"{group}/{i}": variable for group, variables in groups.items() for i, variable in enumerate(variables)}

    def capture(self) -> Arrays:
        """Copies of the values of all variables in host memory: weights, statistics, seeds, slots, loss scale, metrics."""
        if hasattr(self.model, "jax_state_sync"):  # within an epoch JAX's trainer has the values, not the variables
            self.model.jax_state_sync()
        return {name: np.array(keras.ops.convert_to_numpy(variable)) for name, variable in self._variables().items()}

    def restore(self, arrays: Arrays, *groups: str) -> None:
        """Give the model and its built optimizer the captured values, of the same fingerprint."""
        for name, variable in self._variables().items():
            if name.startswith(groups):
                array = arrays[name]
                if array.dtype.kind == "V":  # bfloat16, for which NumPy's files have no name
                    array = array.view(keras.ops.convert_to_numpy(variable).dtype)
                variable.assign(array)

    def _result(self) -> TrainingRun:
        progress, device = self.progress, device_name()
        if self.best:
            self.restore(self.best, "model")
        peaks_bytes = [entry.peak_memory_bytes for entry in progress.history if entry.memory_device == gpu_name()]
        # Where no epoch has two whole updates: epochs, their first update and validation included.
        whole_epochs_s = [entry.duration_s / self.micro_batching.n_micro_batches for entry in progress.history]
        return TrainingRun(
            model=self.model,
            step_time=Quantity.measured(progress.step_times_s or whole_epochs_s, "s", device),
            peak_memory=Quantity.measured([max(peaks_bytes)], "bytes", device) if peaks_bytes else None,
            n_retreats=sum(note.startswith("out of memory") for note in progress.notes),
            **{name: getattr(progress, name) for name in ("history", "micro_batch_size", "best_epoch", "notes")},
        )


def _check_trainable(model: Any) -> None:
    if not isinstance(model, keras.Model):
        raise ValueError(f"the model is {describe_class(model)}: {EXPECTED_MODEL}, and compiled")
    if not getattr(model, "compiled", False) or model.optimizer is None:
        raise ValueError(f"model {model.name!r} has no optimizer: compile it, as in model.compile('adam', loss='mse')")
    inner = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    for owner, name in ((model, "steps_per_execution"), (inner, "gradient_accumulation_steps")):
        if (n_steps := getattr(owner, name, None) or 1) != 1:
            raise ValueError(f"{name}={n_steps}: compile the model without, and give fit a micro_batch_size")


def _check_accumulates(model: keras.Model) -> None:
    """That the losses of micro-batches, weighed by their sizes, add up to the loss of the batch."""
    for loss in keras.tree.flatten(getattr(model, "loss", None)):
        if (reduction := getattr(loss, "reduction", None)) in ("sum", "mean_with_sample_weight"):
            needed = "micro-batches need 'sum_over_batch_size', a mean over samples"
            raise ValueError(f"loss {loss.name!r} has the reduction {reduction!r}: {needed}; or leave out micro_batch_size")
