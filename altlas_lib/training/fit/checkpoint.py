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
    def load(cls, path: Path) -> Self:
        """Read a file.

        Raises:
            CheckpointError: it cannot be read, or is no checkpoint whose checksums agree.
        """
        try:
            with zipfile.ZipFile(path) as archive:  # as written: nothing is compressed, so nothing can unpack to more
                if sum(member.file_size for member in archive.infolist()) > path.stat().st_size:
                    raise ValueError("its arrays are larger than the file")
            with np.load(path, allow_pickle=False) as found:
                arrays = {name: found[name] for name in found.files}
            header = json.loads(arrays.pop(_HEADER).tobytes())
            return cls(header["fingerprint"], header["progress"], arrays)
        except Exception as error:  # whatever damage makes of a zip file
            raise CheckpointError(
                f"{path.name} is damaged, or no checkpoint of this format ({type(error).__name__}: {error})"
            ) from None


def fingerprint(model: keras.Model, **settings: Any) -> dict[str, Any]:
    """All that decides the weights after so many updates: model, optimizer, losses, settings, packages that compute.

    The device is not among it: on another one training goes on, no longer bit for bit. Nor are names, which Keras numbers
    through, differently in each process.
    """
    backend = keras.backend.backend()
    described = {
        "layers": [_describe(layer) for layer in sublayers(model)],
        "weights": [[*variable.shape, variable.dtype] for variable in model.variables],
        "optimizer": _describe(_inner_optimizer(model)),
        "losses": [_describe(loss) for loss in keras.tree.flatten([getattr(model, "loss", None)])],
        "loss_weights": repr(_loss_weights(model)),
    }
    packages = {module: import_module(module).__version__ for module in ("altlas_lib", "keras", backend)}
    return json.loads(json.dumps({**described, "backend": backend, **packages, **settings}, default=repr))


def _describe(part: Any) -> Any:
    """The class of a layer, an optimizer or a loss, and its settings."""
    if part is None or isinstance(part, str):
        return part
    try:
        config = part.get_config()
    except Exception:  # a class of the user's own may have none
        config = {}
    return [
        getattr(part, "__qualname__", type(part).__qualname__),
        _without_names(config),
        getattr(part, "compute_dtype", None),
    ]


def _without_names(value: Any) -> Any:
    """A configuration in JSON's types, without what differs between processes: names that Keras numbers, and addresses."""
    if isinstance(value, dict):
        numbered = ("name", "shared_object_id", "build_config", "layers", "input_layers", "output_layers")  # layers come apart
        return {str(key): _without_names(each) for key, each in value.items() if key not in numbered}
    if isinstance(value, list | tuple):
        return [_without_names(each) for each in value]
    return value if isinstance(value, bool | int | float | str | None) else type(value).__qualname__


def _loss_weights(model: keras.Model) -> Any:
    try:
        return model.get_compile_config()["loss_weights"]
    except Exception:  # a loss of the user's own may have no configuration
        return None


def _inner_optimizer(model: keras.Model) -> keras.optimizers.Optimizer:
    optimizer = model.optimizer
    return optimizer.inner_optimizer if isinstance(optimizer, AccumulatingOptimizer) else optimizer


def _variables_by_place(model: keras.Model) -> dict[str, keras.Variable]:
    """Every variable that a step of training may change, but for the accumulators, by group and place."""
    groups = {"model": model.variables, "optimizer": _inner_optimizer(model).variables, "metrics": model.metrics_variables}
    return {f"{group}/{i}": variable for group, variables in groups.items() for i, variable in enumerate(variables)}


def capture(model: keras.Model) -> dict[str, np.ndarray]:
    """Copies of the values of all variables in host memory: weights, statistics, seeds, slots, loss scale, metrics."""
    if hasattr(model, "jax_state_sync"):  # within an epoch JAX's trainer has the values, not the variables
        model.jax_state_sync()
    return {name: np.array(keras.ops.convert_to_numpy(variable)) for name, variable in _variables_by_place(model).items()}


def restore(model: keras.Model, arrays: Mapping[str, np.ndarray], groups: tuple[str, ...] = ("model", "optimizer")) -> None:
    """Give a compiled model and its built optimizer the captured values.

    Raises:
        CheckpointError: they belong to another model or optimizer. Nothing is changed then.
    """
    variables = {name: v for name, v in _variables_by_place(model).items() if name.startswith(groups)}
    there = {name: tuple(a.shape) for name, a in arrays.items() if name.startswith(groups)}
    here = {name: tuple(v.shape) for name, v in variables.items()}
    if there != here:
        name = min(name for name in there.keys() | here.keys() if there.get(name) != here.get(name))
        raise CheckpointError(f"variable {name} has shape {there.get(name)} in the checkpoint, {here.get(name)} in the model")
    for name, variable in variables.items():
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

    def __init__(self, path: Path, *, resume: bool):
        self.path = Path(path)
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = open(self.path / ".lock", "a+")  # noqa: SIM115, closed by `close`; the system lets go after a kill
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.seek(0)
            holder = self._lock.read(20) or "unknown"
            self.close()
            raise CheckpointError(
                f"process {holder} trains in {self.path} already: wait for it, end it, or name another folder"
            ) from None
        self._lock.truncate(0)
        print(os.getpid(), end="", file=self._lock, flush=True)
        self._files = sorted(self.path.glob("update-*.npz"))
        if self._files and not resume:
            self.close()
            raise FileExistsError(
                f"{self.path} holds {self._files[-1].name} of an earlier training: "
                "continue that one with resume=True, or name another folder"
            )
        for name in ("update-*", "best.*", "log.jsonl"):
            for unfinished in self.path.glob(f".{name}.*.tmp"):  # its writer was killed
                unfinished.unlink()

    def close(self) -> None:
        self._lock.close()

    def newest(self, expected: dict[str, Any], check: Callable[[dict[str, Any]], Any] = bool) -> Checkpoint | None:
        """The newest checkpoint that can be continued from; warns of those that cannot. None where there is no checkpoint.

        Args:
            expected: the fingerprint.
            check: raises a ValueError where it cannot read a checkpoint's progress.

        Raises:
            CheckpointError: there are some, and none can be used; says why of each.
        """
        refused = []
        for path in reversed(self._files):
            try:
                checkpoint = load_checked(path, expected)
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


def load_checked(path: Path, expected: dict[str, Any]) -> Checkpoint:
    """A checkpoint of the training with this fingerprint.

    Raises:
        CheckpointError: it is damaged, or of another training; names what differs.
    """
    checkpoint = Checkpoint.load(path)
    there = checkpoint.fingerprint
    if not isinstance(there, dict):
        raise CheckpointError(f"{path.name} does not say of which training it is")
    differing = [name for name in expected.keys() | there.keys() if expected.get(name) != there.get(name)]
    if differing:
        listed = "; ".join(
            f"{name} is {str(there.get(name))[:300]} there, {str(expected.get(name))[:300]} here" for name in sorted(differing)
        )
        raise CheckpointError(f"{path.name} is of another training: {listed}")
    return checkpoint
