"""Training of a PyTorch module: the loop of Keras' models around epochs of its own, under `torchrun` in several processes."""

import contextlib
import io
import json
import os
import random
from dataclasses import replace
from time import perf_counter
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "torch")  # it is loaded already; what is shared with Keras asks it for the device

import numpy as np
import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_map

from ... import __version__
from ..backend import MemoryUse
from ..fit.checkpoint import Arrays, CheckpointFolder, Progress
from ..fit.dataset import MicroBatches, open_dataset
from ..fit.loop import Loop, Settings, TrainingRun
from ..model.accumulation import MicroBatching
from .task import AMP_POLICIES, Task, recompute_modules


class TorchLoop(Loop):
    """A module's training under way; of several processes each takes its share of every micro-batch."""

    def __init__(self, task: Task, validation_data: Any, settings: Settings, dtype_policy: str | None):
        self.rank, self.n_ranks = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        self.device = torch.device("cpu")
        if torch.cuda.is_available():
            self.device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
            torch.cuda.set_device(self.device)  # for whatever does not name one
        if self.n_ranks > 1 and not distributed.is_initialized():
            distributed.init_process_group("nccl" if self.device.type == "cuda" else "gloo")
        self.model, self.settings, self.validation = task.module.to(self.device), settings, None
        self.dtype_policy, self.amp = dtype_policy, getattr(torch, AMP_POLICIES.get(dtype_policy, ""), None)
        self.optimizer = task.make_optimizer()
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.amp is torch.float16)
        self.data = open_dataset(task.data, settings.batch_size)
        if validation_data is not None:
            self.validation = open_dataset(validation_data, name="validation_data")
        self.progress = Progress(micro_batch_size=settings.micro_batch_size or -(-self.data.batch_size // self.n_ranks))
        self.micro_batching = self._divide(self.progress.micro_batch_size)
        self.task = replace(task, module=DistributedDataParallel(self.model)) if self.n_ranks > 1 else task
        self.folder, self.best, self.loss_sum = None, {}, 0.0
        self.snapshot: tuple[Progress, Arrays] = self.progress, {}

    def run(self) -> TrainingRun:
        recomputed = recompute_modules(self.model, self.settings.recompute)
        try:
            if any(getattr(each, "running_mean", None) is not None for part in recomputed for each in part.modules()):
                raise ValueError("recompute names a part with batch normalisation, whose statistics would be updated twice")
            if found := self._open_folder():
                self.snapshot, self.best = found[:2], found[2]
                self._roll_back()
            else:
                self._save()
            self._train()
            return self._result()
        finally:
            for part in recomputed:
                del part.forward
            if self.folder:
                self.folder.close()

    def _open_folder(self) -> tuple[Progress, Arrays, Arrays] | None:
        """The newest checkpoint, which the first process alone reads and writes, in all processes."""
        found, settings = None, self.settings
        if settings.checkpoint_folder is not None and not self.rank:
            described = {name: getattr(settings, name) for name in ("seed", "patience")} | vars(self.micro_batching)
            described |= {
                "module": str(self.model),
                "optimizer": str(self.optimizer),
                "loss": getattr(self.task.loss, "__qualname__", type(self.task.loss).__qualname__),
            }
            described |= {"data": self.data.digest(), "validation": self.validation and self.validation.digest()}
            described |= {"n_devices": self.n_ranks, "dtype_policy": self.dtype_policy, "torch": torch.__version__}
            fingerprint = json.loads(json.dumps(described | {"altlas_lib": __version__}, default=str))
            self.folder = CheckpointFolder(settings.checkpoint_folder, fingerprint, resume=settings.resume)
            found = self.folder.load()
        return self._gather(found)[0]

    def _divide(self, size: int) -> MicroBatching:
        """In micro-batches of all processes together."""
        batch_size = self.data.batch_size
        return MicroBatching(self.data.n_samples, batch_size, min(size * self.n_ranks, batch_size))

    def _install_optimizer(self) -> None:
        """It is the same for all micro-batches: gradients are summed where they lie."""

    def _train_epoch(self) -> None:
        if self.n_ranks == 1:
            return super()._train_epoch()
        return self._end_epoch(self._fit_epoch())  # no retreat: the others wait for this one's gradients

    def _fit_epoch(self) -> dict[str, float]:
        progress, cut = self.progress, self.micro_batching
        self.start = progress.update * cut.n_per_update
        self.loss, self.times_s = 0.0, [perf_counter()]
        order = np.random.default_rng([self.settings.seed, progress.epoch])
        batches = MicroBatches(self.data, cut, order, self.start)
        self.loss_sum = self.loss_sum if progress.update else 0.0
        self.model.train()
        for i in range(len(batches)):
            at = cut.bounds(self.start + i)
            update = at.start // cut.batch_size * cut.batch_size
            n_update = min(cut.batch_size, cut.n_samples - update)
            is_last = at.stop == update + n_update
            with contextlib.nullcontext() if is_last or self.n_ranks == 1 else self.task.module.no_sync():
                loss, n = self._compute_loss(self.data, batches.positions[at])
                self.scaler.scale(loss * (n * self.n_ranks / n_update)).backward()  # processes' gradients are averaged
            self.loss_sum = self.loss_sum + loss.detach().double() * n  # where it is: nothing waits for the device
            if is_last:
                self.scaler.step(self.optimizer)
                self.scaler.update()
                self.optimizer.zero_grad()
            self.end_micro_batch(i, {"loss": loss.detach()})
        metrics = {"loss": sum(self._gather(float(self.loss_sum))) / cut.n_samples}
        return metrics | ({"val_loss": self._validate()} if self.validation else {})

    def memory_use(self) -> MemoryUse:
        """The first process's, with the peaks of all."""
        use = super().memory_use()
        return replace(use, peaks_by_device=self._gather(use.peak_memory_bytes)) if self.n_ranks > 1 else use

    def _compute_loss(self, data: Any, positions: np.ndarray) -> tuple[torch.Tensor, int]:
        """Of this process's share of a micro-batch, and of how many samples; one that counts for none where there are less."""
        mine = np.array_split(positions, self.n_ranks)[self.rank]
        batch = data.gather(mine if len(mine) else positions[:1])
        x, y = tree_map(lambda array: None if array is None else torch.as_tensor(array, device=self.device), tuple(batch))
        with torch.autocast(self.device.type, self.amp, enabled=self.amp is not None):
            return self.task.compute_loss(x, y), len(mine)

    def _validate(self) -> float:
        self.model.eval()
        for statistic in self.model.buffers() if self.n_ranks > 1 else ():
            distributed.broadcast(statistic, 0)  # of batch normalisation: a checkpoint has those of the first process
        total, size, n_samples = 0.0, self.micro_batching.micro_batch_size, self.validation.n_samples
        with torch.no_grad():
            for start in range(0, n_samples, size):
                loss, n = self._compute_loss(self.validation, np.arange(start, min(start + size, n_samples)))
                total += float(loss) * n
        return sum(self._gather(total)) / n_samples

    def _gather(self, mine: Any) -> list[Any]:
        """What every process has, in their order."""
        found = [mine] * self.n_ranks
        if self.n_ranks > 1:
            distributed.all_gather_object(found, mine)
        return found

    def capture(self) -> Arrays:
        """The module; and the optimizer, the loss scale, the epoch's losses and generators of every process."""
        name, keys, *rest = np.random.get_state()
        mine = {"loss_sum": float(self.loss_sum), "torch": torch.get_rng_state(), "numpy": (name, keys.tolist(), *rest)}
        mine |= {"python": random.getstate(), "cuda": torch.cuda.get_rng_state() if self.device.type == "cuda" else None}
        rest = {"optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict(), "processes": self._gather(mine)}
        return {"model": _pack(self.model.state_dict()), "rest": _pack(rest)}

    def restore(self, arrays: Arrays, *groups: str) -> None:
        self.model.load_state_dict(_unpack(arrays["model"]))
        if "optimizer" in groups:
            torch.cuda.empty_cache()  # what the failed step had reserved in pieces
            self.optimizer.zero_grad()
            rest = _unpack(arrays["rest"])
            self.optimizer.load_state_dict(rest["optimizer"])
            self.scaler.load_state_dict(rest["scaler"])
            mine = rest["processes"][self.rank]
            self.loss_sum = mine["loss_sum"]
            torch.set_rng_state(mine["torch"])
            np.random.set_state(mine["numpy"])
            random.setstate(mine["python"])
            if mine["cuda"] is not None:  # of this process's GPU alone
                torch.cuda.set_rng_state(mine["cuda"])


def _pack(state: Any) -> np.ndarray:
    content = io.BytesIO()
    torch.save(state, content)
    return np.frombuffer(content.getvalue(), "uint8")


def _unpack(array: np.ndarray) -> Any:
    """Tensors, numbers and texts: `weights_only` refuses all else."""
    return torch.load(io.BytesIO(array.tobytes()), map_location="cpu", weights_only=True)


def fit_module(model: Any, data: Any, validation_data: Any, *, dtype_policy: str | None = None, **settings: Any) -> TrainingRun:
    """`fit` of a module, or of what its building function returned; among the settings loss and optimizer, as of a `Task`.

    Raises:
        ValueError: no such dtype policy, or settings that only a Keras model has.
    """
    own = {name: settings.pop(name) for name in ("loss", "optimizer") if name in settings}
    task, asked = replace(Task.of(model), data=data, **own), Settings(**settings)
    if asked.callbacks or asked.verbose:
        raise ValueError("callbacks and verbose are for Keras models: of a module read the log, checkpoint_folder/log.jsonl")
    if dtype_policy not in (None, "float32", *AMP_POLICIES):
        raise ValueError(f"dtype_policy is {dtype_policy!r}: expected float32, {' or '.join(AMP_POLICIES)}")
    return TorchLoop(task, validation_data, asked, dtype_policy).run()
