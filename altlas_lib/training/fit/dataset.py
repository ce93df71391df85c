"""The samples of an epoch, update by update, whatever holds them: arrays, a `PyDataset`, a `tf.data.Dataset`."""

import hashlib
import sys
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from ..backend import keras
from ..checks import describe_class
from ..model.accumulation import MicroBatching

Read = Callable[[slice], Any]  # samples of one update, counted in the epoch's order -> (x, y) or (x, y, weights)


class Gatherable(Protocol):
    """Samples that are made when they are asked for, such as windows of a series."""

    def __len__(self) -> int: ...

    def gather(self, positions: np.ndarray) -> Any:
        """The samples at these positions: (x, y) or (x, y, weights), arrays with the samples first."""


class Dataset(Protocol):
    """What training needs of data.

    Attributes:
        n_samples: of an epoch.
        batch_size: of an update; the last one of an epoch may have less.
    """

    n_samples: int
    batch_size: int

    def open(self, order: np.random.Generator | None) -> Read:
        """Begin an epoch in an order of its own; None: in the data's."""

    def digest(self) -> str:
        """SHA-256 of what tells these data from others."""


def open_dataset(data: Any, batch_size: int | None, *, name: str = "data") -> Dataset:
    """The samples of `data`.

    Args:
        data: `(x, y)` or `(x, y, weights)` of arrays, or of lists and dictionaries of arrays; a `keras.utils.PyDataset` or
            `tf.data.Dataset` of batches, each of which makes an update; anything that is `Gatherable`.
        batch_size: of an update, 32 by default; of batches it is theirs.

    Raises:
        ValueError: it is none of these, is empty, has no end or no known length, or arrays differ in length.
    """
    tensorflow = sys.modules.get("tensorflow")
    if isinstance(data, keras.utils.PyDataset):
        return _Batches(_count_batches(len(data) if data.num_batches is not None else None, name), batch_size, name, data)
    if tensorflow and isinstance(data, tensorflow.data.Dataset):
        return _Stream(_count_batches(int(data.cardinality()), name), batch_size, name, data)
    if hasattr(data, "gather"):
        return _Samples(len(data), batch_size or min(32, len(data)), data.gather)
    leaves = [array for array in keras.tree.flatten(data) if array is not None]
    if not leaves or not all(np.ndim(array) for array in leaves):
        raise ValueError(f"{name} is {describe_class(data)}: expected (x, y) of arrays, a PyDataset or a tf.data.Dataset")
    lengths = {len(array) for array in leaves}
    if len(lengths) > 1 or 0 in lengths:
        raise ValueError(f"{name} has arrays of {sorted(lengths)} samples: expected the same number in each, 1 or more")
    arrays = keras.tree.map_structure(lambda array: None if array is None else np.asarray(array), data)
    (n,) = lengths
    return _Samples(n, batch_size or min(32, n), lambda at: _take(arrays, at), leaves)


def _count_batches(n_batches: int | None, name: str) -> int:
    if n_batches is None or n_batches < 1:
        raise ValueError(
            f"{name} has no known number of batches, or none ({n_batches}): expected an epoch with an end; "
            "of a tf.data.Dataset say it by dataset.apply(tf.data.experimental.assert_cardinality(n))"
        )
    return n_batches


def _take(arrays: Any, at: Any) -> Any:
    return keras.tree.map_structure(lambda array: None if array is None else array[at], arrays)


def _length(batch: Any) -> int:
    return len(next(array for array in keras.tree.flatten(batch) if array is not None))


def _digest(batch: Any) -> bytes:
    digest = hashlib.sha256()
    for array in keras.tree.flatten(batch):
        digest.update(repr((getattr(array, "dtype", None), np.shape(array))).encode())
        digest.update(np.ascontiguousarray(array))
    return digest.digest()


class _Samples:
    """Samples at positions, in any order."""

    def __init__(self, n_samples: int, batch_size: int, gather: Callable[[np.ndarray], Any], arrays: Any = None):
        self.n_samples, self.batch_size, self.gather = n_samples, batch_size, gather
        self.arrays = arrays

    def open(self, order: np.random.Generator | None) -> Read:
        positions = np.arange(self.n_samples)
        shuffled = positions if order is None else order.permutation(positions)
        return lambda rows: self.gather(shuffled[rows])

    def digest(self) -> str:
        """Of arrays their bytes; of samples that are made when asked for a thousand of them."""
        some = np.unique(np.linspace(0, self.n_samples - 1, 1000).astype(int))
        content = self.gather(some) if self.arrays is None else self.arrays
        return hashlib.sha256(f"{self.n_samples}".encode() + _digest(content)).hexdigest()


class _Batches:
    """A `PyDataset`: batch i is what `dataset[i]` gives, now and later; in an order of ours."""

    def __init__(self, n_batches: int, batch_size: int | None, name: str, data: Any):
        self.data, self.n_batches, self.name, self._last_read = data, n_batches, name, (-1, None)
        first, last = self._read_batch(0), self._read_batch(n_batches - 1)
        self.batch_size = _length(first)
        self.n_samples = (n_batches - 1) * self.batch_size + _length(last)
        self._first = _digest(first)
        if batch_size not in (None, self.batch_size):
            raise ValueError(f"batch_size is {batch_size}, {name} comes in batches of {self.batch_size}: leave it out")

    def _read_batch(self, number: int) -> Any:
        return keras.tree.map_structure(np.asarray, self.data[number])

    def open(self, order: np.random.Generator | None) -> Read:
        numbers = np.arange(self.n_batches)
        if order is not None:  # the short one stays the last
            n_whole = self.n_samples // self.batch_size
            numbers[:n_whole] = order.permutation(n_whole)

        def read(rows: slice) -> Any:
            at, within = divmod(rows.start, self.batch_size)
            number = int(numbers[at])
            if self._last_read[0] != number:
                self._last_read = number, self._read_batch(number)
                expected = min(self.batch_size, self.n_samples - at * self.batch_size)
                if (found := _length(self._last_read[1])) < expected:
                    raise ValueError(
                        f"batch {number} of {self.name} has {found} samples, the first has {self.batch_size}: expected as many "
                        "in each but the last"
                    )
            return _take(self._last_read[1], slice(within, within + rows.stop - rows.start))

        return read

    def digest(self) -> str:
        return hashlib.sha256(f"{self.n_samples}".encode() + self._first).hexdigest()

    def check_repeatable(self) -> None:
        """That an epoch can be continued.

        Raises:
            ValueError: the first batch is another one each time.
        """
        if _digest(self._read_batch(0)) != self._first:
            raise ValueError(
                f"{self.name} gives other samples each time it is read, so a training could not be continued bit for bit: "
                "take randomness out of it (tf.data: shuffle(..., reshuffle_each_iteration=False)), or train without a folder"
            )


class _Stream(_Batches):
    """A `tf.data.Dataset`: batches one after the other, in its own order."""

    def _read_batch(self, number: int) -> Any:
        at, iterator = getattr(self, "_position", (None, None))
        if at != number:
            iterator = iter(self.data.skip(number).as_numpy_iterator())
        self._position = number + 1, iterator
        return next(iterator)

    def open(self, order: np.random.Generator | None) -> Read:
        self._position = self._last_read = -1, None
        return super().open(None)

    def check_repeatable(self) -> None:
        self._position = -1, None
        super().check_repeatable()


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
