"""Checkpoints from which a training continues bit for bit, whenever it was killed.

A file holds every variable of model, optimizer, metrics and seed generators, and how far the training is. It is taken between
two updates of the weights: gradient accumulators are empty then, and not in it. It is what `numpy.savez` writes, a zip file in
which each array has a checksum, with a header in JSON. Nothing is unpickled.

Files are written whole and then renamed, so that neither a kill nor a full disk harms an older one.
"""

import fcntl
import hashlib
import io
import json
import os
import warnings
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Self

import numpy as np

from ...paths import write_atomically
from ..backend import keras
from ..model.accumulation import AccumulatingOptimizer
from ..private import sublayers

_HEADER = "header"
_N_KEPT = 2


class CheckpointError(Exception):
    """A checkpoint that is damaged, of another training, or in a folder that another process trains in."""


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
        header = json.dumps({"fingerprint": self.fingerprint, "progress": self.progress}).encode()
        content = io.BytesIO()
        np.savez(content, **{_HEADER: np.frombuffer(header, "uint8")}, **self.arrays)
        write_atomically(path, content.getvalue())

    @classmethod
    def load(cls, path: Path, expected: dict[str, Any], check: Callable[[dict[str, Any]], Any] = dict) -> Self:
        """Read a file.

        Args:
            expected: the fingerprint.
            check: raises a ValueError where it cannot read a checkpoint's progress.

        Raises:
            CheckpointError: it is damaged, no checkpoint, or of another training; names what differs.
        """
        try:
            with zipfile.ZipFile(path) as archive:  # as written: nothing is compressed, so nothing can unpack to more
                if sum(member.file_size for member in archive.infolist()) > path.stat().st_size:
                    raise ValueError("its arrays are larger than the file")
            with np.load(path, allow_pickle=False) as found:
                arrays = {name: found[name] for name in found.files}
            header = json.loads(arrays.pop(_HEADER).tobytes())
            there = dict(header["fingerprint"])
            check(header["progress"])
        except Exception as error:  # whatever damage makes of a zip file
            problem = f"{path.name} is damaged, or no checkpoint of this format ({type(error).__name__}: {error})"
            raise CheckpointError(problem) from None
        differing = [name for name in sorted(there | expected) if there.get(name) != expected.get(name)]
        listed = (f"{name} is {str(there.get(name))[:300]} there, {str(expected.get(name))[:300]} here" for name in differing)
        if differing:
            raise CheckpointError(f"{path.name} is of another training: {'; '.join(listed)}")
        return cls(there, header["progress"], arrays)


def fingerprint(model: keras.Model, **settings: Any) -> dict[str, Any]:
    """All that decides the weights after so many updates: model, optimizer, losses, settings, packages that compute.

    The device is not among it: on another one training goes on, no longer bit for bit. Nor are names, which Keras numbers
    through, differently in each process.
    """
    try:
        loss_weights = model.get_compile_config()["loss_weights"]
    except Exception:  # a loss of the user's own may have no configuration
        loss_weights = None
    backend = keras.backend.backend()
    described = {
        "layers": [_describe(layer) for layer in sublayers(model)],
        "weights": [[*variable.shape, variable.dtype] for variable in model.variables],
        "optimizer": _describe(users_optimizer(model)),
        "losses": [_describe(loss) for loss in keras.tree.flatten([getattr(model, "loss", None)])],
        "loss_weights": loss_weights,
    }
    packages = {module: import_module(module).__version__ for module in ("altlas_lib", "keras", backend)}
    return json.loads(json.dumps({**described, "backend": backend, **packages, **settings}, default=repr))


# What differs between processes, and what says of layers within a layer, which are described by themselves.
_LEFT_OUT = {"name", "shared_object_id", "build_config", "layers", "input_layers", "output_layers"}


def _describe(part: Any) -> Any:
    """The class of a layer, an optimizer or a loss, and its settings, in JSON's types."""
    try:
        config = part.get_config()
    except Exception:  # a name, a function, or a class of the user's own that has none
        config = {}
    text = json.dumps(config, default=lambda value: type(value).__qualname__)
    settings = json.loads(text, object_hook=lambda found: {key: each for key, each in found.items() if key not in _LEFT_OUT})
    kind = part if isinstance(part, str | None) else getattr(part, "__qualname__", type(part).__qualname__)
    return [kind, settings, getattr(part, "compute_dtype", None)]


def users_optimizer(model: keras.Model) -> keras.optimizers.Optimizer:
    """The optimizer that the model was compiled with, whatever accumulates gradients around it."""
    optimizer = model.optimizer
    return optimizer.inner_optimizer if isinstance(optimizer, AccumulatingOptimizer) else optimizer


def _variables_by_place(model: keras.Model) -> dict[str, keras.Variable]:
    """Every variable that a step of training may change, but for the accumulators, by group and place."""
    groups = {"model": model.variables, "optimizer": users_optimizer(model).variables, "metrics": model.metrics_variables}
    return {f"{group}/{i}": variable for group, variables in groups.items() for i, variable in enumerate(variables)}


def capture(model: keras.Model) -> dict[str, np.ndarray]:
    """Copies of the values of all variables in host memory: weights, statistics, seeds, slots, loss scale, metrics."""
    if hasattr(model, "jax_state_sync"):  # within an epoch JAX's trainer has the values, not the variables
        model.jax_state_sync()
    return {name: np.array(keras.ops.convert_to_numpy(variable)) for name, variable in _variables_by_place(model).items()}


def restore(model: keras.Model, arrays: Mapping[str, np.ndarray], groups: tuple[str, ...] = ("model", "optimizer")) -> None:
    """Give a compiled model and its built optimizer the captured values, of the same fingerprint."""
    for name, variable in _variables_by_place(model).items():
        if name.startswith(groups):
            array = arrays[name]
            if array.dtype.kind == "V":  # bfloat16, for which NumPy's files have no name
                array = array.view(keras.ops.convert_to_numpy(variable).dtype)
            variable.assign(array)


def weights_hash(model: keras.Model) -> str:
    """SHA-256 of the model's variables: equal where every bit is."""
    digest = hashlib.sha256()
    for variable in model.variables:
        digest.update(np.ascontiguousarray(keras.ops.convert_to_numpy(variable)))
    return digest.hexdigest()


class CheckpointFolder:
    """The newest two checkpoints of one training, `update-000000120.npz` by updates, and the best epoch's, `best.npz`.

    While it is open no other process trains in the folder.

    Raises:
        FileExistsError: it holds checkpoints, and they are not to be continued.
        CheckpointError: another process trains in it.
        NotADirectoryError, PermissionError: the folder cannot be made.
    """

    def __init__(self, path: str | Path, *, resume: bool):
        self.path = Path(path)
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = open(self.path / ".lock", "a+")  # noqa: SIM115, closed by `close`; the system lets go after a kill
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.seek(0)
            holder = self._lock.read(20) or "unknown"
            self.close()
            problem = f"process {holder} trains in {self.path} already: wait for it, end it, or name another folder"
            raise CheckpointError(problem) from None
        self._lock.truncate(0)
        print(os.getpid(), end="", file=self._lock, flush=True)
        self._files = sorted(self.path.glob("update-*.npz"))
        if self._files and not resume:
            self.close()
            problem = f"{self.path} holds {self._files[-1].name} of an earlier training"
            raise FileExistsError(f"{problem}: continue that one with resume=True, or name another folder")
        for unfinished in self.path.glob(".*.tmp"):  # its writer was killed
            unfinished.unlink()

    def close(self) -> None:
        self._lock.close()

    def newest(self, expected: dict[str, Any], check: Callable[[dict[str, Any]], Any] = dict) -> Checkpoint | None:
        """The newest checkpoint that can be continued from; warns of those that cannot. None where there is no checkpoint.

        Args:
            expected, check: as for `Checkpoint.load`.

        Raises:
            CheckpointError: there are some, and none can be used; says why of each.
        """
        refused = []
        while self._files:
            try:
                checkpoint = Checkpoint.load(self._files[-1], expected, check)
            except CheckpointError as error:
                refused.append(str(error))
                self._files.pop()
                continue
            for reason in refused:
                warnings.warn(f"{reason}; {self._files[-1].name} is used instead", RuntimeWarning, stacklevel=2)
            return checkpoint
        if refused:
            advice = "Train with the settings that they were made with, or name another folder"
            raise CheckpointError(f"no checkpoint in {self.path} can be continued: {'; '.join(refused)}. {advice}")
        return None

    def save(self, checkpoint: Checkpoint, n_updates: int) -> None:
        """Write a checkpoint, then remove all but the newest two that can be used.

        Raises:
            OSError: it cannot be written; the older ones are as they were.
        """
        path = self.path / f"update-{n_updates:09}.npz"
        checkpoint.save(path)
        self._files = [*(file for file in self._files if file != path), path]
        for old in self._files[:-_N_KEPT]:
            old.unlink(missing_ok=True)
        self._files = self._files[-_N_KEPT:]
