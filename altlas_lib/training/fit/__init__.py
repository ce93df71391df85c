"""Training that equals the big batch, continues bit for bit after a kill, and retreats where memory runs out."""

from typing import TYPE_CHECKING, Any

from ..pytorch.task import is_module

if TYPE_CHECKING:
    import keras
    import torch

    from .loop import TrainingRun


def fit(
    model: "keras.Model | torch.nn.Module", data: Any, validation_data: Any = None, *, n_epochs: int, **settings: Any
) -> "TrainingRun":
    """Train any compiled Keras model, with its own loss, optimizer and metrics, on TensorFlow, JAX or PyTorch.

    An epoch is every sample once. The gradients of an update's micro-batches are summed, weighed by their sizes, so that the
    update is that of the whole batch (batch normalisation and dropout aside, which see micro-batches); the last update of an
    epoch has what is left. Where the device runs out of memory, training goes on from the last moment that it can go back to,
    with micro-batches of half the size and the same updates.

    Several devices: build the model and call this in the scope of a `tf.distribute.MirroredStrategy`, or after
    `keras.distribution.set_distribution` (JAX's `DataParallel`). Micro-batches then have to be multiples of the number of
    devices, and up to that number less one samples are left out of an epoch.

    A PyTorch module is trained likewise, on CUDA where there is a GPU. Under `torchrun` each process takes its share of every
    micro-batch on a GPU of its own (DistributedDataParallel; gradients are exchanged once an update), the first one writes the
    files, and all end where one does; start it again with as many processes and resume=True.

    Args:
        model: a PyTorch module, alone or with what else its building function returns (`pytorch.task.Task`); or a Keras model,
            compiled, without gradient accumulation of its own. Losses are means over samples; one with a mask is a mean over
            less, and micro-batches, which are weighed by their samples, then do not add up to exactly the big batch's.
        data: `(x, y)` or `(x, y, weights)` of arrays, or of lists and dictionaries of arrays; a `keras.utils.PyDataset` or a
            `tf.data.Dataset` of batches. Arrays and a `PyDataset`'s batches come in an order of their own in each epoch, a
            `tf.data.Dataset` in its own. `dataset[i]` is asked for again after a kill and has to be the same; a `PyDataset`'s
            `on_epoch_end` is not called.
        validation_data: like `data`; its loss is measured after each epoch.
        n_epochs: at most; more may be asked for when a training is continued.
        **settings: as follow.
        batch_size: samples of an update, 32 by default; that of the data's batches where it comes in batches.
        micro_batch_size: samples on the device at a time, under `torchrun` on each; None: all of an update.
        patience: training ends after so many epochs without a smaller validation loss (without validation data: loss), and
            the model gets the weights of the best epoch; None: it keeps the last.
        seed: of the order of samples. For the same weights and dropout again call `keras.utils.set_random_seed` before the
            model is built.
        recompute: names of layers (a block may be a model within the model) whose intermediate results are not kept for the
            backward pass but computed again: less memory, more time, the same weights.
        callbacks: Keras callbacks. They see one training, however often it retreats; what they know is not in a checkpoint.
        verbose: Keras' progress bar, 0 (none), 1 or 2. A module has neither.
        loss, optimizer, dtype_policy: of a module only: functions of (outputs, y) and of the parameters, as in `Task`;
            "mixed_float16" (with a loss scale) or "mixed_bfloat16" for autocast.
        checkpoint_folder: gets a checkpoint at the start and after each epoch, of which the newest two are kept, and
            `log.jsonl`. With `patience` they hold the best weights, too.
        checkpoint_every: a checkpoint also after so many updates.
        resume: continue from the newest checkpoint of the folder, where there is one, bit for bit as if never killed
            (Keras models on TensorFlow and JAX, and modules; on the same kind of device; on a GPU as far as its operations
            are deterministic). A Keras model on PyTorch is not: its backend draws dropout from a generator that is not kept.

    Returns:
        The model, which is `model` itself, and the log of its training.

    Raises:
        ValueError: it is neither a module nor a compiled Keras model, a number is too small, the data is none of these, there
            is less than one update of it, or a layer to recompute does not exist or updates variables.
        FloatingPointError: the loss became NaN or infinite.
        CheckpointError: the folder's newest checkpoint is damaged (the one before is there, too) or of another training, or
            another process trains in the folder.
        FileExistsError: the folder holds checkpoints that are not to be continued.
        TypeError: no such setting.
    """
    if is_module(model):
        from ..pytorch.fit import fit_module

        return fit_module(model, data, validation_data, n_epochs=n_epochs, **settings)
    from .loop import Loop, Settings

    return Loop(model, data, validation_data, Settings(n_epochs=n_epochs, **settings)).run()
