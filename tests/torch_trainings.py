"""PyTorch trainings that are killed and continued, in a process of their own; under `torchrun` in several.

python tests/torch_trainings.py kills FOLDER SEED N     # kills each training so many times; prints their hashes as JSON
torchrun --nproc-per-node 2 tests/torch_trainings.py train NAME FOLDER FILE
"""

import hashlib
import json
import os
import random
import signal
import sys
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import nn

from altlas_lib import training
from altlas_lib.training.pytorch import fit

torch.set_num_threads(1)  # a fork of a process with more threads may hang


class Noisy(nn.Module):
    """Draws from every generator of a process."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Dropout(0.3), nn.Linear(16, 1))

    def forward(self, x):
        if self.training:
            x = x + np.random.normal(scale=0.1) + random.gauss(0, 0.1)
        return self.layers(x)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.LayerNorm(5), nn.Linear(5, 5), nn.Dropout(0.2), nn.GELU())

    def forward(self, x):
        return x + self.inner(x)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.recurrent, self.out = nn.LSTM(1, 6, batch_first=True), nn.Linear(6, 1)

    def forward(self, x):
        return self.out(self.recurrent(x.unsqueeze(-1))[0][:, -1])


class Images(nn.Module):
    """With batch normalisation."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv1d(1, 4, 3), nn.BatchNorm1d(4), nn.ReLU(), nn.Flatten(), nn.Linear(12, 1))

    def forward(self, x):
        return self.layers(x.unsqueeze(1))


def plain():
    return nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 1))


def momentum(weights):
    return torch.optim.SGD(weights, 0.02, momentum=0.9)


def adam(weights):
    return torch.optim.Adam(weights, 0.01)


TRAININGS = {
    "every generator": (Noisy, {"optimizer": adam, "patience": 2}),
    "batch norm in float16": (Images, {"optimizer": momentum, "dtype_policy": "mixed_float16"}),
    "recomputed blocks": (lambda: nn.Sequential(*[Block() for _ in range(3)], nn.Linear(5, 1)), {"recompute": ("*",)}),
    "recurrent in bfloat16": (Recurrent, {"optimizer": adam, "dtype_policy": "mixed_bfloat16"}),
    "plain": (plain, {"optimizer": momentum}),
}


def rows(n=45):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(n, 5)).astype("float32")
    return x, np.sin(x).sum(axis=1, keepdims=True)


def train(name, n=45, **how):
    build, settings = TRAININGS[name]
    for seed in (torch.manual_seed, np.random.seed, random.seed):
        seed(3)
    sizes = {"n_epochs": 2, "batch_size": 16, "micro_batch_size": 6, "seed": 7}
    return training.fit(build(), rows(n), rows(10), **sizes | settings | how)


def sha256_of(run):
    digest = hashlib.sha256(json.dumps([[epoch.epoch, epoch.metrics["loss"]] for epoch in run.history]).encode())
    for value in run.model.state_dict().values():
        digest.update(value.numpy().tobytes())
    return digest.hexdigest()


def kill_after(n):
    """This process, once so many micro-batches are done."""
    n_seen, end_micro_batch = 0, fit.TorchLoop.end_micro_batch

    def count(self, batch, logs):
        nonlocal n_seen
        end_micro_batch(self, batch, logs)
        n_seen += 1
        if n_seen == n:
            os.kill(os.getpid(), signal.SIGKILL)

    fit.TorchLoop.end_micro_batch = count


def attempt(name, folder, n):
    """In a fork that is killed after so many micro-batches; its hash, None where it was killed."""
    reader, writer = os.pipe()
    with warnings.catch_warnings(action="ignore"):
        pid = os.fork()
    if not pid:
        if n:
            kill_after(n)
        run = train(name, checkpoint_folder=folder, checkpoint_every=1, resume=True)
        os.write(writer, sha256_of(run).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as answer:
        text = answer.read()
    status = os.waitpid(pid, 0)[1]
    assert os.WIFSIGNALED(status) == bool(n), (name, n, status)
    return text or None


def kill_each(folder, seed, n_kills):
    """Each training as often, at micro-batches drawn anew; all that killed ones end with, and what the whole one does."""
    choose, answers = random.Random(seed), {}
    for name in TRAININGS:
        ended, kills, n_folders = [], [], 0
        while len(kills) < n_kills:
            n_folders += 1
            killed = Path(folder, name, f"killed {n_folders}")
            for n in [choose.randint(1, 8), choose.randint(3, 8)]:  # of 16; at least an update lies between two
                attempt(name, killed, n)
                kills.append(n)
            ended.append(attempt(name, killed, None))
        answers[name] = [attempt(name, Path(folder, name, "whole"), None), ended, kills]
    print(json.dumps(answers))


def train_in_group(name, folder, file):
    """Of `torchrun`; the environment says which process is to be killed, and when."""
    if os.environ["RANK"] == os.environ.get("KILL_RANK"):
        kill_after(int(os.environ["KILL_AFTER"]))
    run = train(name, checkpoint_folder=folder, checkpoint_every=1, resume=True)
    if os.environ["RANK"] == "0":
        weights = {key: value.tolist() for key, value in run.model.state_dict().items()}
        Path(file).write_text(json.dumps({"sha256": sha256_of(run), "weights": weights, "metrics": run.history[-1].metrics}))


if __name__ == "__main__":
    if sys.argv[1] == "kills":
        kill_each(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
    else:
        train_in_group(*sys.argv[2:])
