"""The samples of an epoch, update by update, whatever holds them: arrays, a `PyDataset`, a `tf.data.Dataset`."""

import hashlib
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from ..backend import keras
from ..checks import describe_class
from ..model.accumulation import MicroBatching

Read = Callable[[slice], Any]  # samples of one update, counted in the epoch's order -> (x, y) or (x, y, weights)


def open_dataset(data: Any, batch_size: int | None = None, *, name: str = "data") -> "_Samples | _Batches":
    """The samples of `data`.

    Args:
        data: `(x, y)` or `(x, y, weights)` of arrays, or of lists and dictionaries of arrays; a `keras.utils.PyDataset` or
            `tf.data.Dataset` of batches, each of which makes an update; or samples that are made when they are asked for, by
            `len()` and `gather(positions)`, which gives the like of `(x, y)`.
        batch_size: of an update, 32 by default; of batches it is theirs.

    Raises:
        ValueError: it is none of these, is empty, has no end or no known length, or arrays differ in length.
    """
    tensorflow = sys.modules.get("tensorflow")
    if isinstance(data, keras.utils.PyDataset):
        return _Batches(data, data.num_batches, batch_size, name)
    if tensorflow and isinstance(data, tensorflow.data.Dataset):
        return _Batches(_Stream(data), int(data.cardinality()), batch_size, name, is_ordered=True)
    if hasattr(data, "gather"):
        return _Samples(len(data), batch_size, data.gather)
    leaves = _leaves(data)
    if not leaves or not all(np.ndim(array) for array in leaves):
        raise ValueError(f"{name} is {describe_class(data)}: expected (x, y) of arrays, a PyDataset or a tf.data.Dataset")
    lengths = {len(array) for array in leaves}
    if len(lengths) > 1 or 0 in lengths:
        raise ValueError(f"{name} has arrays of {sorted(lengths)} samples: expected the same number in each, 1 or more")
    arrays = keras.tree.map_structure(lambda array: None if array is None else np.asarray(array), data)
    return _Samples(lengths.pop(), batch_size, lambda at: _take(arrays, at), leaves)


def _leaves(batch: Any) -> list[Any]:
    return [array for array in keras.tree.flatten(batch) if array is not None]


def _take(arrays: Any, at: Any) -> Any:
    return keras.tree.map_structure(lambda array: None if array is None else array[at], arrays)


def _digest(n_samples: int, batch: Any) -> str:
    digest = hashlib.sha256(f"{n_samples}".encode())
    for array in keras.tree.flatten(batch):
        digest.update(repr((getattr(array, "dtype", None), np.shape(array))).encode())
        digest.update(np.ascontiguousarray(array))
    return digest.hexdigest()


class _Samples:
    """Samples at positions, in any order.

    Attributes:
        n_samples: of an epoch.
        batch_size: of an update; the last one of an epoch may have less.
    """

    def __init__(self, n_samples: int, batch_size: int | None, gather: Callable[[np.ndarray], Any], arrays: Any = None):
        self.n_samples, self.batch_size = n_samples, batch_size or min(32, n_samples)
        self.gather, self.arrays = gather, arrays

    def open(self, order: np.random.Generator | None) -> Read:
        """Begin an epoch in an order of its own; None: in the data's."""
        positions = np.arange(self.n_samples)
        shuffled = positions if order is None else order.permutation(positions)
        return lambda rows: self.gather(shuffled[rows])

    def digest(self) -> str:
        """SHA-256 of arrays' bytes; of samples that are made when they are asked for, of a thousand of them."""
        some = np.unique(np.linspace(0, self.n_samples - 1, 1000).astype(int))
        return _digest(self.n_samples, self.gather(some) if self.arrays is None else self.arrays)


class _Batches:
    """Batches that are asked for by their number; those of a `tf.data.Dataset` in its own order."""

    def __init__(self, data: Any, n_batches: int | None, batch_size: int | None, name: str, *, is_ordered: bool = False):
        if n_batches is None or n_batches < 1:
            raise ValueError(
                f"{name} has no known number of batches, or none ({n_batches}): expected an epoch with an end; "
                "of a tf.data.Dataset say it by dataset.apply(tf.data.experimental.assert_cardinality(n))"
            )
        self.data, self.n_batches, self.name, self.is_ordered = data, n_batches, name, is_ordered
        first, last = self._read_batch(0), self._read_batch(n_batches - 1)
        self.batch_size = len(_leaves(first)[0])
        self.n_samples = (n_batches - 1) * self.batch_size + len(_leaves(last)[0])
        self._first = _digest(self.n_samples, first)
        if batch_size not in (None, self.batch_size):
            raise ValueError(f"batch_size is {batch_size}, {name} comes in batches of {self.batch_size}: leave it out")

    def _read_batch(self, number: int) -> Any:
        return keras.tree.map_structure(np.asarray, self.data[number])

    def open(self, order: np.random.Generator | None) -> Read:
        numbers, batch, read_last = np.arange(self.n_batches), None, None
        if order is not None and not self.is_ordered:  # the short one stays the last
            n_whole = self.n_samples // self.batch_size
            numbers[:n_whole] = order.permutation(n_whole)

        def read(rows: slice) -> Any:
            nonlocal batch, read_last
            at, within = divmod(rows.start, self.batch_size)
            if read_last != at:
                read_last, batch = at, self._read_batch(int(numbers[at]))
                n_found, expected = len(_leaves(batch)[0]), min(self.batch_size, self.n_samples - at * self.batch_size)
                if n_found < expected:
                    raise ValueError(
                        f"batch {numbers[at]} of {self.name} has {n_found} samples, the first has {self.batch_size}: expected "
                        "as many in each but the last"
                    )
            return _take(batch, slice(within, within + rows.stop - rows.start))

        return read

    def digest(self) -> str:
        """SHA-256 of the first batch.

        Raises:
            ValueError: it is another one each time that it is read, so that an epoch could not be continued.
        """
        if _digest(self.n_samples, self._read_batch(0)) != self._first:
            raise ValueError(
                f"{self.name} gives other samples each time it is read, so a training could not be continued bit for bit: "
                "take randomness out of it (tf.data: shuffle(..., reshuffle_each_iteration=False)), or train without a folder"
            )
        return self._first


class _Stream:
    """The batches of a `tf.data.Dataset` by their numbers: the next one is at hand, for others it is read from its start."""

    def __init__(self, data: Any):
        self.data, self.iterator, self.next_number = data, None, None

    def __getitem__(self, number: int) -> Any:
        if number != self.next_number:
            self.iterator = iter(self.data.skip(number).as_numpy_iterator())
        self.next_number = number + 1
        return next(self.iterator)


class MicroBatches(keras.utils.PyDataset):
    """The micro-batches of one epoch, read when they are asked for.

    Args:
        start: the micro-batch to begin with, where an epoch is continued.
    """

    def __init__(self, read: Read, micro_batching: MicroBatching, start: int = 0):
        super().__init__()
        self.read, self.micro_batching, self.start = read, micro_batching, start
        self.failure: Exception | None = None  # which TensorFlow would wrap into one of its own

    def __len__(self) -> int:
        return self.micro_batching.n_micro_batches - self.start

    def __getitem__(self, index: int) -> Any:
        try:
            return self.read(self.micro_batching.bounds(self.start + index))
        except Exception as error:
            self.failure = error
            raise
