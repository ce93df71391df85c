"""Checkpoints from which a training continues bit for bit, whenever it was killed.

A file holds every variable of model, optimizer, metrics and seed generators, and how far the training is. It is taken between
two updates of the weights: gradient accumulators are empty then, and not in it. Its bytes:

    b"altlas checkpoint 1\\n", length of the header (8 bytes, little endian), header (JSON), arrays (C order, one after the
    other as the header lists them), SHA-256 of all that comes before.

Files are written whole and then renamed, so that neither a kill nor a full disk harms an older one. Nothing is unpickled.
"""

import hashlib
import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from math import prod
from pathlib import Path
from typing import Any, Self

import numpy as np

from ...paths import write_atomically
from ..backend import keras
from ..model.accumulation import AccumulatingOptimizer
from ..model.windows import Samples

_MAGIC = b"altlas checkpoint 1\n"
_N_KEPT = 2


class CheckpointError(Exception):
    """A checkpoint that is damaged, or of another training."""


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A moment of a training.

    Attributes:
        fingerprint: all that decides the training's result, in JSON's types.
        progress: how far it is, in JSON's types.
        arrays: the variables' values, as `capture` names them.
    """

    fingerprint: dict[str, Any]
    progress: dict[str, Any]
    arrays: dict[str, np.ndarray]

    def save(self, path: Path) -> None:
        """Write the file atomically.

        Raises:
            OSError: the disk is full, or the folder cannot be written to.
        """
        listed = [{"name": name, "dtype": a.dtype.name, "shape": a.shape} for name, a in self.arrays.items()]
        header = json.dumps({"fingerprint": self.fingerprint, "progress": self.progress, "arrays": listed}).encode()
        parts = [_MAGIC, len(header).to_bytes(8, "little"), header, *(a.tobytes() for a in self.arrays.values())]
        digest = hashlib.sha256()
        for part in parts:
            digest.update(part)
        write_atomically(path, b"".join([*parts, digest.digest()]))

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a file.

        Raises:
            CheckpointError: it cannot be read, is no checkpoint of this format, or its bytes are not those that were written.
        """
        try:
            content = memoryview(path.read_bytes())
        except OSError as error:
            raise CheckpointError(f"{path.name} cannot be read: {error}") from None
        if content[: len(_MAGIC)] != _MAGIC:
            raise CheckpointError(
                f"{path.name} starts with {bytes(content[: len(_MAGIC)])!r}: expected {_MAGIC!r}, a checkpoint of this format"
            )
        if hashlib.sha256(content[:-32]).digest() != content[-32:]:
            raise CheckpointError(f"{path.name} is damaged: its {len(content):,} bytes do not have the checksum that it states")
        start = len(_MAGIC) + 8
        end = start + int.from_bytes(content[len(_MAGIC) : start], "little")
        arrays = {}
        try:
            header = json.loads(bytes(content[start:end]))
            for entry in header["arrays"]:
                dtype, shape = np.dtype(entry["dtype"]), entry["shape"]
                arrays[entry["name"]] = np.frombuffer(content, dtype, prod(shape), offset=end).reshape(shape)
                end += arrays[entry["name"]].nbytes
            return cls(header["fingerprint"], header["progress"], arrays)
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{path.name} has a header that does not fit its content: {error}") from None


def fingerprint(samples: Samples, **settings: Any) -> dict[str, Any]:
    """All that decides the weights after so many updates: data, settings (JSON's types), packages that compute.

    The device is not among it: on another one training goes on, no longer bit for bit.
    """
    data = hashlib.sha256(repr(samples.split).encode())
    for array in (samples.values, samples.scaled_logs, samples.features):
        data.update(np.ascontiguousarray(array))
    backend = keras.backend.backend()
    packages = {module: import_module(module).__version__ for module in ("altlas_lib", "keras", backend)}
    return json.loads(json.dumps({"data": data.hexdigest(), "backend": backend, **packages, **settings}))


def _variables(model: keras.Model) -> dict[str, keras.Variable]:
    """Every variable that a step of training may change, but for the accumulators, by group and place.

    Keras' own names differ between processes: they number layers and seed generators through.
    """
    optimizer = model.optimizer
    if isinstance(optimizer, AccumulatingOptimizer):
        optimizer = optimizer.inner_optimizer
    groups = {"model": model.variables, "optimizer": optimizer.variables, "metrics": model.metrics_variables}
    return {f"{group}/{i}": variable for group, variables in groups.items() for i, variable in enumerate(variables)}


def capture(model: keras.Model) -> dict[str, np.ndarray]:
    """Copies of the values of all variables in host memory: weights, statistics, seeds, slots, loss scale, metrics."""
    if hasattr(model, "jax_state_sync"):  # within an epoch JAX's trainer has the values, not the variables
        model.jax_state_sync()
    return {name: np.array(keras.ops.convert_to_numpy(variable)) for name, variable in _variables(model).items()}


def restore(model: keras.Model, arrays: Mapping[str, np.ndarray], groups: tuple[str, ...] = ("model", "optimizer")) -> None:
    """Give a compiled model and its built optimizer the captured values.

    Raises:
        CheckpointError: they belong to another model or optimizer. Nothing is changed then.
    """
    variables = {name: v for name, v in _variables(model).items() if name.startswith(groups)}
    there = {name: (tuple(a.shape), a.dtype.name) for name, a in arrays.items() if name.startswith(groups)}
    here = {name: (tuple(v.shape), keras.backend.standardize_dtype(v.dtype)) for name, v in variables.items()}
    if there != here:
        name = min(name for name in there.keys() | here.keys() if there.get(name) != here.get(name))
        raise CheckpointError(f"variable {name} is {there.get(name)} in the checkpoint and {here.get(name)} in the model")
    for name, variable in variables.items():
        variable.assign(arrays[name])


def weights_hash(model: keras.Model) -> str:
    """SHA-256 of the model's variables: equal where every bit is."""
    digest = hashlib.sha256()
    for variable in model.variables:
        digest.update(np.ascontiguousarray(keras.ops.convert_to_numpy(variable)))
    return digest.hexdigest()


class CheckpointFolder:
    """The newest two checkpoints of one training, `update-000000120.ckpt` by updates, and the best of each stage.

    Raises:
        FileExistsError: it holds checkpoints, and they are not to be continued.
        NotADirectoryError, PermissionError: the folder cannot be made.
    """

    def __init__(self, path: Path, fingerprint: dict[str, Any], *, resume: bool):
        self.path, self.fingerprint = Path(path), fingerprint
        self.path.mkdir(parents=True, exist_ok=True)
        self._files = sorted(self.path.glob("update-*.ckpt"))
        if self._files and not resume:
            raise FileExistsError(
                f"{self.path} holds {self._files[-1].name} of an earlier training: "
                "continue that one with resume=True, or name another folder"
            )
        for name in ("update-*", "best-stage-*", "log.jsonl"):
            for unfinished in self.path.glob(f".{name}.*.tmp"):  # its writer was killed
                unfinished.unlink()

    def newest(self, check: Callable[[dict[str, Any]], Any] = lambda progress: None) -> Checkpoint | None:
        """The newest checkpoint that can be continued from; warns of those that cannot. None where there is no checkpoint.

        Args:
            check: raises a ValueError where it cannot read a checkpoint's progress.

        Raises:
            CheckpointError: there are some, and none can be used; says why of each.
        """
        refused = []
        for path in reversed(self._files):
            try:
                checkpoint = Checkpoint.load(path)
                self._check(checkpoint, path)
                check(checkpoint.progress)
            except CheckpointError as error:
                refused.append(str(error))
                continue
            except ValueError:
                refused.append(f"{path.name} says how far it is in a form that this version does not read")
                continue
            for reason in refused:
                warnings.warn(f"{reason}; {path.name} is used instead", RuntimeWarning, stacklevel=2)
            self._files = self._files[: self._files.index(path) + 1]
            return checkpoint
        if refused:
            raise CheckpointError(
                f"no checkpoint in {self.path} can be continued: {'; '.join(refused)}. "
                "Train with the settings that they were made with, or name another folder"
            )
        return None

    def _check(self, checkpoint: Checkpoint, path: Path) -> None:
        there, here = checkpoint.fingerprint, self.fingerprint
        if not isinstance(there, dict):
            raise CheckpointError(f"{path.name} does not say of which training it is")
        differing = [name for name in here.keys() | there.keys() if here.get(name) != there.get(name)]
        if differing:
            listed = "; ".join(f"{name} is {there.get(name)!r} there, {here.get(name)!r} here" for name in sorted(differing))
            raise CheckpointError(f"{path.name} is of another training: {listed}")

    def save(self, progress: dict[str, Any], arrays: Mapping[str, np.ndarray], n_updates: int) -> None:
        """Write a checkpoint, then remove all but the newest two that can be used.

        Raises:
            OSError: it cannot be written; the older ones are as they were.
        """
        path = self.path / f"update-{n_updates:09}.ckpt"
        Checkpoint(self.fingerprint, progress, dict(arrays)).save(path)
        self._files = [*(file for file in self._files if file != path), path]
        for old in self._files[:-_N_KEPT]:
            old.unlink(missing_ok=True)
        self._files = self._files[-_N_KEPT:]

    def save_best(self, progress: dict[str, Any], arrays: Mapping[str, np.ndarray], stage: int) -> None:
        """Write `best-stage-<n>.ckpt`.

        Raises:
            OSError: it cannot be written; the older one is as it was.
        """
        Checkpoint(self.fingerprint, progress, dict(arrays)).save(self.path / f"best-stage-{stage}.ckpt")
