"""Training of PyTorch modules: exact accumulation, kills, the retreat, and two processes under `torchrun`."""

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from altlas_lib import training
from altlas_lib.training import CheckpointError

torch = pytest.importorskip("torch")

SCRIPT = Path(__file__).with_name("torch_trainings.py")
N_KILLS = 10  # of each of five trainings


@pytest.fixture(scope="module")
def trainings():
    sys.path.insert(0, str(SCRIPT.parent))
    import torch_trainings

    return torch_trainings


def by_hand(trainings, x, y, batch_size, n_epochs, seed):
    """Plain PyTorch with the whole batch, in the order that `fit` draws."""
    torch.manual_seed(3)
    module = trainings.plain()
    optimizer = trainings.momentum(module.parameters())
    for epoch in range(n_epochs):
        order = np.random.default_rng([seed, epoch]).permutation(len(x))
        for start in range(0, len(x), batch_size):
            at = order[start : start + batch_size]
            optimizer.zero_grad()
            torch.nn.functional.mse_loss(module(torch.tensor(x[at])), torch.tensor(y[at])).backward()
            optimizer.step()
    return flatten(module)


def flatten(module):
    return np.concatenate([value.detach().numpy().ravel() for value in module.state_dict().values()])


@pytest.mark.frameworks("fit", "PyTorch")
@pytest.mark.parametrize("micro_batch_size", [1, 5, 6, 16, None])
def test_any_split_equals_the_whole_batch(trainings, micro_batch_size):
    """45 samples: the last update has 13, of which the last micro-batch has less than the others."""
    run = trainings.train("plain", micro_batch_size=micro_batch_size)
    expected = by_hand(trainings, *trainings.rows(), 16, 2, 7)
    np.testing.assert_allclose(flatten(run.model), expected, atol=1e-6)
    assert [epoch.n_updates for epoch in run.history] == [3, 3]
    assert run.history[1].metrics["val_loss"] < run.history[0].metrics["val_loss"]


@pytest.mark.frameworks("resume", "PyTorch")
@pytest.mark.timeout(600)
def test_killed_at_any_micro_batch_it_ends_with_the_same_bits(tmp_path):
    """Dropout, NumPy's and Python's generators, a loss scale, batch statistics, recomputation, an LSTM."""
    command = [sys.executable, SCRIPT, "kills", tmp_path, str(random.randrange(2**32)), str(N_KILLS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, env=environment())
    assert done.returncode == 0, done.stderr[-3000:]
    answers = json.loads(done.stdout)
    for name, (whole, ended, kills) in answers.items():
        assert set(ended) == {whole}, f"{name}, killed after {kills} micro-batches"
    assert len({whole for whole, _, _ in answers.values()}) == len(answers) == 5
    assert sum(len(kills) for _, _, kills in answers.values()) == 50


def test_it_retreats_where_memory_runs_out(trainings, monkeypatch):
    emptied, most = [], 3

    def forward(self, x):
        if len(x) > most and self.training:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return torch.nn.Sequential.forward(self, x)

    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(1))
    monkeypatch.setitem(
        trainings.TRAININGS, "plain", (lambda: limit(trainings.plain(), forward), trainings.TRAININGS["plain"][1])
    )
    with pytest.warns(RuntimeWarning, match="out of memory in epoch 1, with micro-batches of"):
        run = trainings.train("plain")
    assert run.micro_batch_size == 3
    assert run.n_retreats == 1
    assert emptied
    np.testing.assert_allclose(flatten(run.model), by_hand(trainings, *trainings.rows(), 16, 2, 7), atol=1e-6)


def limit(module, forward):
    module.__class__ = type("Limited", (torch.nn.Sequential,), {"forward": forward})
    return module


def test_a_loss_that_is_no_number_ends_it(trainings):
    x, y = trainings.rows()
    y[20] = np.nan
    with pytest.raises(FloatingPointError, match="in epoch 1"):
        training.fit(trainings.plain(), (x, y), n_epochs=1, batch_size=8)


def test_class_numbers_and_named_inputs_need_no_loss(trainings):
    class Scores(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(5, 3)

        def forward(self, rows, scale):
            return self.layer(rows) * scale

    x, y = trainings.rows()
    named = {"rows": x, "scale": np.ones((len(x), 1), "float32")}
    run = training.fit(Scores(), (named, (y[:, 0] > 0).astype("int64")), n_epochs=6, batch_size=9)
    assert run.history[-1].metrics["loss"] < run.history[0].metrics["loss"] < 2


def test_patience_gives_the_weights_of_the_best_epoch(trainings):
    run = trainings.train("plain", n_epochs=30, patience=1, optimizer=lambda weights: torch.optim.SGD(weights, 0.5))
    best = run.history[run.best_epoch - 1].metrics["val_loss"]
    x, y = (torch.tensor(each) for each in trainings.rows(10))
    assert run.best_epoch < len(run.history) < 30
    assert torch.nn.functional.mse_loss(run.model(x), y).item() == pytest.approx(best, rel=1e-6)


def test_what_is_not_a_modules_is_refused(trainings, tmp_path):
    x, y = trainings.rows()
    for how, said in [
        ({"verbose": 1}, "Keras models"),
        ({"dtype_policy": "float16"}, "mixed_float16"),
        ({"recompute": ("layers.nothing",)}, "no part 'layers.nothing'"),
        ({"loss": "mse"}, "loss is a str"),
        ({"batch_size": 100}, "there are 45 samples"),
    ]:
        with pytest.raises(ValueError, match=said):
            training.fit(trainings.plain(), (x, y), n_epochs=1, **how)
    with pytest.raises(ValueError, match="batch normalisation"):
        trainings.train("batch norm in float16", recompute=("layers",))
    trainings.train("plain", checkpoint_folder=tmp_path)
    with pytest.raises(FileExistsError, match="resume=True"):
        trainings.train("plain", checkpoint_folder=tmp_path)
    with pytest.raises(CheckpointError, match="seed is 7 there, 8 here"):
        trainings.train("plain", checkpoint_folder=tmp_path, resume=True, seed=8)


# Several processes --------------------------------------------------------------------------------------------------------


def environment(**more):
    path = os.pathsep.join(filter(None, ["", *sys.path]))
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "KERAS_BACKEND": "torch", **more}


def torchrun(folder, name, n=2, *, run="", **more):
    """As `torchrun --nproc-per-node n`; its exit code, messages and answer."""
    file = Path(folder, f"answer{run}.json")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(n), SCRIPT, "train", name]
    command += [Path(folder, f"checkpoints{run}"), file]
    done = subprocess.run(command, env=environment(**more), capture_output=True, text=True, timeout=200)
    return done.returncode, done.stderr, json.loads(file.read_text()) if file.exists() else None


@pytest.mark.frameworks("devices", "PyTorch")
def test_two_processes_train_what_one_does_with_the_whole_batch(trainings, tmp_path):
    """45 samples in updates of 16: the last micro-batch of an epoch has one sample, and none for the second process."""
    code, said, found = torchrun(tmp_path, "plain")
    assert code == 0, said[-3000:]
    weights = np.concatenate([np.ravel(value) for value in found["weights"].values()])
    np.testing.assert_allclose(weights, by_hand(trainings, *trainings.rows(), 16, 2, 7), atol=1e-6)
    one = trainings.train("plain")
    assert found["metrics"]["loss"] == pytest.approx(one.history[-1].metrics["loss"], rel=1e-5)
    assert found["metrics"]["val_loss"] == pytest.approx(one.history[-1].metrics["val_loss"], rel=1e-5)
    log = [json.loads(line) for line in (tmp_path / "checkpoints" / "log.jsonl").read_text().splitlines()]
    assert [len(epoch["peaks_by_device"]) for epoch in log] == [2, 2]  # of each process
    assert min(peak for epoch in log for peak in epoch["peaks_by_device"]) > 2**20

    code, said, _ = torchrun(tmp_path, "plain", n=1)
    assert code != 0
    assert "n_devices is 2 there, 1 here" in said


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("name", "rank", "after"), [("every generator", "1", "5"), ("batch norm in float16", "0", "7")])
def test_a_killed_process_ends_all_and_a_resume_ends_with_the_same_bits(tmp_path, name, rank, after):
    code, said, whole = torchrun(tmp_path, name, run=1)
    assert code == 0, said[-3000:]
    began_s = time.monotonic()
    code, said, answer = torchrun(tmp_path, name, run=2, KILL_RANK=rank, KILL_AFTER=after)
    assert code != 0
    assert answer is None
    assert "SIGKILL" in said or "-9" in said
    assert time.monotonic() - began_s < 60, "its start included; else it waits for gradients for half an hour"
    code, said, resumed = torchrun(tmp_path, name, run=2)
    assert code == 0, said[-3000:]
    assert resumed["sha256"] == whole["sha256"]
