"""The samples of an epoch in micro-batches, whatever holds them: arrays, a `PyDataset`, a `tf.data.Dataset`."""

import functools
import hashlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..backend import keras
from ..checks import describe_class
from ..model.accumulation import MicroBatching


@dataclass(frozen=True, eq=False)
class Dataset:
    """Samples that are made when they are asked for.

    Attributes:
        n_samples: of an epoch.
        batch_size: of an update; the last one of an epoch may have less.
        gather: positions of samples, of one unit where that has more than one sample -> (x, y) or (x, y, weights).
        unit: neighbours that stay together in whatever order: 1, a batch, or all.
        digest: SHA-256 of arrays' bytes, or of the first batch.
    """

    n_samples: int
    batch_size: int
    gather: Callable[[np.ndarray], Any]
    unit: int
    digest: Callable[[], str]


def open_dataset(data: Any, batch_size: int | None = None, *, name: str = "data") -> Dataset:
    """The samples of `data`.

    Args:
        data: `(x, y)` or `(x, y, weights)` of arrays, or of lists and dictionaries of arrays; a `keras.utils.PyDataset` or
            `tf.data.Dataset` of batches, each of which makes an update; or what this function gave.
        batch_size: of an update, 32 by default; of batches it is theirs.

    Raises:
        ValueError: it is none of these, is empty, has no end or no known length, or arrays differ in length.
    """
    tensorflow = sys.modules.get("tensorflow")
    if isinstance(data, keras.utils.PyDataset):
        return _open_batches(data, data.num_batches, batch_size, name)
    if tensorflow and isinstance(data, tensorflow.data.Dataset):
        return _open_batches(_Stream(data), int(data.cardinality()), batch_size, name, is_ordered=True)
    if isinstance(data, Dataset):
        return data
    leaves = _leaves(data)
    if not leaves or not all(np.ndim(array) for array in leaves):
        raise ValueError(f"{name} is {describe_class(data)}: expected (x, y) of arrays, a PyDataset or a tf.data.Dataset")
    lengths = {len(array) for array in leaves}
    if len(lengths) > 1 or 0 in lengths:
        raise ValueError(f"{name} has arrays of {sorted(lengths)} samples: expected the same number in each, 1 or more")
    n, arrays = lengths.pop(), _map_arrays(np.asarray, data)
    gather = functools.partial(_take, arrays)
    return Dataset(n, batch_size or min(32, n), gather, 1, lambda: digest_arrays(n, arrays))


def _leaves(batch: Any) -> list[Any]:
    return [array for array in keras.tree.flatten(batch) if array is not None]


def _map_arrays(function: Callable, batch: Any) -> Any:
    return keras.tree.map_structure(lambda array: None if array is None else function(array), batch)


def _take(batch: Any, at: Any) -> Any:
    return _map_arrays(lambda array: array[at], batch)


def digest_arrays(n_samples: int, batch: Any) -> str:
    """SHA-256 of arrays in any structure, and of the number of samples that they stand for."""
    digest = hashlib.sha256(f"{n_samples}".encode())
    for array in _leaves(batch):
        digest.update(repr((array.dtype, array.shape)).encode())
        digest.update(np.ascontiguousarray(array))
    return digest.hexdigest()


def _open_batches(data: Any, n_batches: int | None, batch_size: int | None, name: str, *, is_ordered: bool = False) -> Dataset:
    """Batches that are asked for by their number; those of a `tf.data.Dataset` in its own order."""
    if n_batches is None or n_batches < 1:
        advice = "expected an epoch with an end; of a tf.data.Dataset say it by tf.data.experimental.assert_cardinality(n)"
        raise ValueError(f"{name} has no known number of batches, or none ({n_batches}): {advice}")

    @functools.lru_cache(maxsize=1)
    def read_batch(number: int) -> tuple[Any, int]:
        batch = _map_arrays(np.asarray, data[number])
        return batch, len(_leaves(batch)[0])

    first, size = read_batch(0)
    if batch_size not in (None, size):
        raise ValueError(f"batch_size is {batch_size}, {name} comes in batches of {size}: leave it out")
    n_samples = (n_batches - 1) * size + read_batch(n_batches - 1)[1]
    first_digest = digest_arrays(n_samples, first)

    def gather(at: np.ndarray) -> Any:
        number, start = divmod(int(at[0]), size)
        batch, n_found = read_batch(number)
        if n_found < min(size, n_samples - number * size):
            problem = f"batch {number} of {name} has {n_found} samples, the first has {size}"
            raise ValueError(f"{problem}: expected as many in each but the last")
        return _take(batch, slice(start, start + len(at)))

    def digest() -> str:
        if digest_arrays(n_samples, read_batch.__wrapped__(0)[0]) != first_digest:
            problem = f"{name} gives other samples each time it is read, so a training could not be continued bit for bit"
            advice = "take randomness out of it (tf.data: reshuffle_each_iteration=False), or train without a folder"
            raise ValueError(f"{problem}: {advice}")
        return first_digest

    return Dataset(n_samples, size, gather, n_samples if is_ordered else size, digest)


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
        order: of the samples, drawn anew; None: the data's.
        start: the micro-batch to begin with, where an epoch is continued.
    """

    def __init__(self, data: Dataset, micro_batching: MicroBatching, order: np.random.Generator | None = None, start: int = 0):
        super().__init__()
        self.gather, self.micro_batching, self.start = data.gather, micro_batching, start
        self.positions = np.arange(data.n_samples)
        if order is not None:  # a short unit stays the last
            units = self.positions[: data.n_samples // data.unit * data.unit].reshape(-1, data.unit)
            self.positions[: units.size] = order.permutation(units).ravel()
        self.failure: Exception | None = None  # which TensorFlow would wrap into one of its own

    def __len__(self) -> int:
        return self.micro_batching.n_micro_batches - self.start

    def __getitem__(self, index: int) -> Any:
        try:
            return self.gather(self.positions[self.micro_batching.bounds(self.start + index)])
        except Exception as error:
            self.failure = error
            raise
