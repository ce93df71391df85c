"""Keras callbacks around a training that calls Keras' `fit` once for each epoch."""

from typing import TYPE_CHECKING

from ..backend import keras
from .checkpoint import restore

if TYPE_CHECKING:
    from .loop import Loop


class OneTraining(keras.callbacks.CallbackList):
    """Callbacks to which several calls of Keras' `fit`, one for each epoch, are one training."""

    has_begun = False

    def on_train_begin(self, logs=None):
        if not self.has_begun:
            self.has_begun = True
            super().on_train_begin(logs)

    def on_train_end(self, logs=None):
        """Of an epoch's `fit`: not the end."""

    def end(self):
        if self.has_begun:
            super().on_train_end()


class UpdateCallback(keras.callbacks.Callback):
    """Tells the loop of the end of each update; where an epoch is continued, puts back the sums of its metrics."""

    def __init__(self, loop: "Loop"):
        super().__init__()
        self.loop = loop

    def on_epoch_begin(self, epoch, logs=None):
        if self.loop.start:
            restore(self.model, self.loop.snapshot[1], ("metrics",))

    def on_train_batch_end(self, batch, logs=None):
        micro_batching = self.loop.micro_batching
        end = micro_batching.bounds(self.loop.start + batch).stop
        is_whole = end % micro_batching.batch_size == 0
        if is_whole or end == micro_batching.n_samples:
            self.loop.end_update(logs["loss"], is_whole)
