"""Checkpoints from which a training continues bit for bit, whenever it was killed.

A file holds every variable of model, optimizer, metrics and seed generators, the best weights so far, and how far the training
is. It is taken between two updates of the weights: gradient accumulators are empty then, and not in it. It is what
`numpy.savez` writes, a zip file in which each array has a checksum, with a header in JSON. Nothing is unpickled.

Files are written whole and then renamed, so that neither a kill nor a full disk harms an older one.
"""

import io
import json
import zipfile
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from ...paths import lock_exclusively, write_atomically
from ...results import Epoch
from ..backend import keras
from ..model.accumulation import AccumulatingOptimizer
from ..private import sublayers
from .dataset import digest_arrays

Arrays = dict[str, np.ndarray]
_HEADER, _BEST, _N_KEPT = "header", "best/", 2


class CheckpointError(Exception):
    """A checkpoint that is damaged, of another training, or in a folder that another process trains in."""


class Progress(BaseModel):
    """How far a training is, as a checkpoint keeps it.

    Attributes:
        epoch: epochs that are done; `update`: updates done of the next one.
        n_updates: of all epochs, those included that the loss scale made skip.
        is_stopped: by a callback.
        micro_batch_size: what was asked for, or what the device's memory was found to allow.
        best_loss: smallest validation loss, after `best_epoch` epochs.
        step_times_s: the latest, per micro-batch.
    """

    model_config = ConfigDict(extra="forbid")

    micro_batch_size: int
    epoch: int = 0
    update: int = 0
    n_updates: int = 0
    is_stopped: bool = False
    best_loss: float | None = None
    best_epoch: int = 0
    history: list[Epoch] = []
    notes: list[str] = []
    step_times_s: list[float] = []


class CheckpointFolder:
    """The newest two checkpoints of one training, `update-000000120.npz` by updates, and its log, `log.jsonl`.

    While it is open no other process trains in the folder.

    Args:
        fingerprint: all that decides the training's result, in JSON's types.

    Raises:
        FileExistsError: it holds checkpoints, and they are not to be continued.
        CheckpointError: another process trains in it.
        NotADirectoryError, PermissionError: the folder cannot be made.
    """

    def __init__(self, path: str | Path, fingerprint: dict[str, Any], *, resume: bool):
        self.path, self.fingerprint = Path(path), fingerprint
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = open(self.path / ".lock", "a")  # noqa: SIM115, closed by `close`; the system lets go after a kill
        try:
            lock_exclusively(self._lock)
        except OSError:
            self.close()
            problem = f"another process trains in {self.path} already"
            raise CheckpointError(f"{problem}: wait for it, end it, or name another folder") from None
        if self.files and not resume:
            self.close()
            problem = f"{self.path} holds {self.files[-1].name} of an earlier training"
            raise FileExistsError(f"{problem}: continue that one with resume=True, or name another folder")
        for unfinished in self.path.glob(".*.tmp"):  # its writer was killed
            unfinished.unlink()

    @property
    def files(self) -> list[Path]:
        return sorted(filter(Path.is_file, self.path.glob("update-*.npz")))

    def close(self) -> None:
        self._lock.close()

    def save(self, progress: Progress, arrays: Arrays, best: Arrays) -> None:
        """Write a checkpoint, then remove all but the newest two.

        Args:
            arrays: of the moment; `best`: those of the best epoch, where they are to be kept.

        Raises:
            OSError: the disk is full, or the folder cannot be written to; the older ones are as they were.
        """
        arrays = arrays | {_BEST + name: array for name, array in best.items()}
        said = {"fingerprint": self.fingerprint, "progress": progress.model_dump(mode="json"), "names": [*arrays]}
        content = io.BytesIO()
        np.savez(content, **{_HEADER: np.frombuffer(json.dumps(said).encode(), "uint8")}, **arrays)
        write_atomically(self.path / f"update-{progress.n_updates:09}.npz", content.getvalue())
        for old in self.files[:-_N_KEPT]:
            old.unlink()
        write_atomically(self.path / "log.jsonl", "".join(f"{epoch.model_dump_json()}\n" for epoch in progress.history))

    def load(self) -> tuple[Progress, Arrays, Arrays] | None:
        """What was saved in the newest checkpoint; None where there is none.

        Raises:
            CheckpointError: it is damaged, no checkpoint, or of another training; names what differs.
        """
        if not self.files:
            return None
        path = self.files[-1]
        try:
            with zipfile.ZipFile(path) as archive:  # as written: nothing is compressed, so nothing can unpack to more
                if sum(member.file_size for member in archive.infolist()) > path.stat().st_size:
                    raise ValueError("its arrays are larger than the file")
            with np.load(path, allow_pickle=False) as found:
                arrays = dict(found)
            header = json.loads(arrays.pop(_HEADER).tobytes())
            there, progress = dict(header["fingerprint"]), Progress.model_validate(header["progress"])
            for name, array in arrays.items():
                if array.dtype.names is not None or array.dtype.kind not in "biufV":
                    raise ValueError(f"{name} is of dtype {array.dtype}")
            if header["names"] != [*arrays]:  # what a damaged directory of a zip file does not list is not missed by its reader
                raise ValueError(f"of {len(header['names'])} arrays {len(arrays)} are there")
        except Exception as error:  # whatever damage makes of a zip file
            problem = f"{path} is damaged, or no checkpoint of this format ({type(error).__name__}: {error})"
            raise CheckpointError(f"{problem}: remove it, and training goes on from the one before, or anew") from None
        here = self.fingerprint
        differing = [name for name in sorted(there | here) if there.get(name) != here.get(name)]
        listed = (f"{name} is {str(there.get(name))[:300]} there, {str(here.get(name))[:300]} here" for name in differing)
        if differing:
            advice = "Train with the settings that it was made with, or name another folder"
            raise CheckpointError(f"{path} is of another training: {'; '.join(listed)}. {advice}")
        best = {name.removeprefix(_BEST): arrays.pop(name) for name in [*arrays] if name.startswith(_BEST)}
        return progress, arrays, best


# What differs between processes, and what says of layers within a layer, which are described by themselves.
_LEFT_OUT = {"name", "shared_object_id", "build_config", "layers", "input_layers", "output_layers"}


def describe_training(model: keras.Model, **settings: Any) -> dict[str, Any]:
    """All that decides the weights after so many updates: model, optimizer, losses, settings, packages that compute.

    The device is not among it: on another one training goes on, no longer bit for bit. Nor are names, which Keras numbers
    through, differently in each process.
    """
    modules = ("altlas_lib", "keras", keras.backend.backend())
    described = settings | {module: import_module(module).__version__ for module in modules}
    described |= _get_config(model, "get_compile_config")
    described["sublayers"] = [[*_describe(layer), layer.compute_dtype] for layer in sublayers(model)]
    described["weights"] = [[*variable.shape, variable.dtype] for variable in model.variables]
    described["optimizer"] = _describe(users_optimizer(model))
    text = json.dumps(described, default=lambda value: type(value).__qualname__)
    return json.loads(text, object_hook=lambda found: {key: each for key, each in found.items() if key not in _LEFT_OUT})


def _describe(part: Any) -> list[Any]:
    return [type(part).__qualname__, _get_config(part)]


def _get_config(part: Any, method: str = "get_config") -> dict[str, Any]:
    try:
        return getattr(part, method)()
    except Exception:  # a class or a loss of the user's own may have none
        return {}


def users_optimizer(model: keras.Model) -> keras.optimizers.Optimizer:
    """The optimizer that the model was compiled with, whatever accumulates gradients around it."""
    optimizer = model.optimizer
    return optimizer.inner_optimizer if isinstance(optimizer, AccumulatingOptimizer) else optimizer


def weights_hash(model: keras.Model) -> str:
    """SHA-256 of the model's variables: equal where every bit is."""
    return digest_arrays(1, [keras.ops.convert_to_numpy(variable) for variable in model.variables])
