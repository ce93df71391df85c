"""Chapter 30: a training that was killed ends with the very weights of one that was not; accumulation equals the big batch."""

import errno
import json
import os
import random
import re
import shutil
import signal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from training_helpers import EXACT, SMALLEST, TRAININGS, fork, in_a_process, make_samples, sha256_of, weights_of

from altlas_lib import paths, training
from altlas_lib.training import train
from altlas_lib.training.backend import keras
from altlas_lib.training.fit import loop
from altlas_lib.training.fit.checkpoint import CheckpointError, CheckpointFolder, Progress
from altlas_lib.training.model.accumulation import AccumulatingOptimizer, MicroBatching

BACKENDS = ["tensorflow", "jax"]


@pytest.mark.frameworks("resume", "TensorFlow", "JAX")
@pytest.mark.timeout(900)  # 14 trainings: a minute and a half on a quiet machine
@pytest.mark.parametrize("backend", BACKENDS)
def test_killed_at_any_micro_batch_it_ends_with_the_same_bits(tmp_path, backend):
    """A classifier, an LSTM, an encoder with recomputation, and the multi-scale model in half precision."""
    answers = in_a_process(backend, f"kill_and_resume({str(tmp_path)!r}, {random.randrange(2**32)})", tmp_path)
    for name, (expected, resumed, kills) in answers.items():
        assert resumed == expected, f"{name}, killed after {kills} micro-batches"
        folders = [tmp_path / name / run for run in ("whole", "killed")]
        assert [len((folder / "log.jsonl").read_text().splitlines()) for folder in folders] == [2, 2]
        assert len(list(folders[1].glob("update-*.npz"))) == 2
    assert len({expected for expected, _, _ in answers.values()}) == len(TRAININGS)


def test_on_pytorch_a_keras_model_is_trained_as_it_was_compiled_and_a_resume_says_what_it_is(tmp_path):
    """There it is a PyTorch module as well, and would get a loss and an optimizer by default."""
    pytest.importorskip("torch")
    optimizer, metrics, n_epochs, notes = in_a_process("torch", f"resume_on_torch({str(tmp_path / 'kept')!r})", tmp_path)
    assert optimizer == "Adam"
    assert metrics == ["loss", "mae"]
    assert n_epochs == 2
    assert len(notes) == 1
    assert "dropout draws other numbers" in notes[0]


@pytest.mark.frameworks("devices", "TensorFlow", "JAX")
@pytest.mark.parametrize("backend", BACKENDS)
def test_two_devices_train_what_one_does(tmp_path, backend):
    flags = "--xla_force_host_platform_device_count=2"
    weights, predictions = in_a_process(backend, "train_on_two_devices()", tmp_path, flags)
    assert weights < 1e-6
    assert predictions < 1e-5


@pytest.mark.parametrize("backend", BACKENDS)
def test_two_devices_train_in_half_precision_what_one_does_with_whole_batches(tmp_path, backend):
    """Within the last place of float16, 2^-10, of the way that the weights go; an infinity on one skips an update on both."""
    flags = "--xla_force_host_platform_device_count=2"
    code = "train_in_half_precision_on_two_devices()"
    error, same, n_updates = in_a_process(backend, code, tmp_path, flags)
    assert 0 < error < 2**-10
    assert same == [True, True]
    assert n_updates[0] == n_updates[1]
    assert 8 <= n_updates[0] < 24, "the first ones are skipped, until the scale is small enough"


# Accumulation ---------------------------------------------------------------------------------------------------------


class Rows(keras.utils.PyDataset):
    """Rows of arrays in the micro-batches of a cut."""

    def __init__(self, x, y, cut):
        super().__init__()
        self.x, self.y, self.cut = x, y, cut

    def __len__(self):
        return self.cut.n_micro_batches

    def __getitem__(self, index):
        rows = self.cut.bounds(index)
        return self.x[rows], self.y[rows]


def small_model(optimizer, dtype="float32"):
    keras.utils.set_random_seed(0)
    units = [keras.layers.Dense(8, activation="tanh", dtype=dtype), keras.layers.Dense(1, dtype="float32")]
    model = keras.Sequential([keras.Input((5,)), *units])
    model.compile(optimizer, loss="mse", auto_scale_loss=False)
    return model


def some_rows(n_samples):
    rng = np.random.default_rng(n_samples)
    return rng.normal(size=(n_samples, 5)).astype("float32"), rng.normal(size=(n_samples, 1)).astype("float32")


@st.composite
def cuts(draw):
    batch_size = draw(st.integers(1, 12))
    return MicroBatching(draw(st.integers(batch_size, 40)), batch_size, draw(st.integers(1, batch_size)))


@given(cuts())
def test_a_cut_takes_every_sample_once_and_no_micro_batch_crosses_an_update(cut):
    pieces = [np.arange(cut.n_samples)[cut.bounds(i)] for i in range(cut.n_micro_batches)]
    np.testing.assert_array_equal(np.concatenate(pieces), np.arange(cut.n_samples))
    assert all(1 <= len(piece) <= cut.micro_batch_size for piece in pieces)
    assert all(piece[0] // cut.batch_size == piece[-1] // cut.batch_size for piece in pieces)
    assert cut.n_updates == len({piece[0] // cut.batch_size for piece in pieces})
    assert max(np.bincount([piece[0] // cut.batch_size for piece in pieces])) == cut.n_per_update


@pytest.mark.frameworks("fit", "TensorFlow")
@settings(max_examples=6, deadline=None)
@given(cuts())
def test_any_split_equals_plain_keras_with_the_big_batch(cut):
    x, y = some_rows(cut.n_samples)
    # A small rate: with a large one the rows of one seed make the weights grow, and rounding with them.
    plain = small_model(keras.optimizers.SGD(0.01, momentum=0.9))
    plain.fit(x, y, batch_size=cut.batch_size, epochs=2, shuffle=False, verbose=0)
    optimizer = AccumulatingOptimizer(keras.optimizers.SGD(0.01, momentum=0.9), cut)
    model = small_model(optimizer)
    model.fit(Rows(x, y, cut), epochs=2, shuffle=False, verbose=0)
    np.testing.assert_allclose(weights_of(model), weights_of(plain), atol=1e-6)
    assert int(optimizer.iterations) == 2 * cut.n_updates
    assert all(not np.any(keras.ops.convert_to_numpy(total)) for total in optimizer.sums)


def test_keras_callbacks_and_averages_reach_the_inner_optimizer():
    cut = MicroBatching(24, 8, 3)
    x, y = some_rows(cut.n_samples)
    rates = [0.05, 0.01]
    models = []
    for accumulating in (False, True):
        inner = keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.5)
        model = small_model(AccumulatingOptimizer(inner, cut) if accumulating else inner)
        scheduler = keras.callbacks.LearningRateScheduler(lambda epoch: rates[epoch])
        if accumulating:
            model.fit(Rows(x, y, cut), epochs=2, shuffle=False, verbose=0, callbacks=[scheduler])
        else:
            model.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0, callbacks=[scheduler])
        assert float(inner.learning_rate) == pytest.approx(0.01)
        models.append(weights_of(model))
    np.testing.assert_allclose(*models, atol=1e-6)


def test_an_infinity_in_one_micro_batch_skips_its_update_and_no_other():
    cut = MicroBatching(24, 8, 3)
    x, y = some_rows(cut.n_samples)
    poisoned = x.copy()
    poisoned[9] = np.inf  # in the second update
    inner = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1), initial_scale=1024.0)
    model = small_model(AccumulatingOptimizer(inner, cut), "mixed_float16")
    model.fit(Rows(poisoned, y, cut), shuffle=False, verbose=0)
    assert int(model.optimizer.iterations) == 2
    assert float(inner.dynamic_scale) == 512
    assert int(inner.step_counter) == 1  # updates since, not micro-batches

    plain = small_model(keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1), initial_scale=1024.0), "mixed_float16")
    kept = np.r_[0:8, 16:24]
    plain.fit(x[kept], y[kept], batch_size=8, shuffle=False, verbose=0)
    np.testing.assert_allclose(weights_of(model), weights_of(plain), atol=2e-4)  # rounding of float16


@pytest.mark.parametrize(
    ("cut", "message"),
    [((10, 4, 5), "micro-batches of 5 for updates of 4"), ((10, 4, 0), "micro-batches of 0"), ((3, 4, 2), "are 3 samples.*4")],
)
def test_a_cut_that_cannot_be_is_refused(cut, message):
    with pytest.raises(ValueError, match=message):
        MicroBatching(*cut)


# Checkpoints ----------------------------------------------------------------------------------------------------------

ARRAYS = {"a": np.arange(6, dtype="float32").reshape(2, 3), "b": np.array(7, "uint32"), "c": np.zeros((0, 3), "float16")}


ONE = {"seed": 1}  # a fingerprint


def opened(folder, fingerprint=ONE):
    """A folder that a process has let go of."""
    folder = CheckpointFolder(folder, fingerprint, resume=True)
    folder.close()
    return folder


def progress_after(n_updates):
    return Progress(micro_batch_size=8, epoch=1, n_updates=n_updates)


def saved(folder, *numbers, fingerprint=ONE):
    folder = opened(folder, fingerprint)
    for number in numbers or (3,):
        folder.save(progress_after(number), ARRAYS, {"a": ARRAYS["a"] + 1})
    return folder


def assert_is_as_it_was(found, n_updates):
    progress, arrays, best = found
    assert progress == progress_after(n_updates)
    assert list(arrays) == list(ARRAYS)
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(arrays[name], array, strict=True)
    np.testing.assert_array_equal(best["a"], ARRAYS["a"] + 1, strict=True)


def test_a_checkpoint_comes_back_as_it_was(tmp_path):
    saved(tmp_path)
    assert_is_as_it_was(opened(tmp_path).load(), 3)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_damage_is_seen_or_changes_nothing_and_the_one_before_is_there(tmp_path_factory, random):
    """A zip file has fields that decide nothing, such as times; no damage gives other values."""
    tmp_path = tmp_path_factory.mktemp("damage")
    saved(tmp_path, 3, 4)
    newest = tmp_path / "update-000000004.npz"
    content = bytearray(newest.read_bytes())
    truncated = random.draw(st.booleans(), "truncated")
    if truncated:
        newest.write_bytes(content[: random.draw(st.integers(0, len(content) - 1))])
    else:
        content[random.draw(st.integers(0, len(content) - 1))] ^= random.draw(st.integers(1, 255))
        newest.write_bytes(content)
    found = said = None
    try:
        found = opened(tmp_path).load()
    except CheckpointError as error:
        said = str(error)
    if found:
        assert not truncated
        assert_is_as_it_was(found, 4)
    else:
        assert re.search(r"update-000000004\.npz is damaged.*: remove it, and training goes on from the one before", said, re.S)
        newest.unlink()
        assert_is_as_it_was(opened(tmp_path).load(), 3)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x80\x04N.", b"altlas checkpoint 1\n" + bytes(80)])
def test_a_file_that_is_no_checkpoint_is_refused_with_the_reason(tmp_path, content):
    (tmp_path / "update-000000009.npz").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"update-000000009.npz is damaged, or no checkpoint of this format"):
        opened(tmp_path).load()


def test_a_file_of_which_arrays_are_lost_is_refused(tmp_path):
    """As where a byte of the zip file's directory is damaged: what it does not list its reader does not miss."""
    saved(tmp_path, 3)
    file = tmp_path / "update-000000003.npz"
    with np.load(file) as arrays:
        kept = {name: arrays[name] for name in arrays.files if name != "b"}
    np.savez(file, **kept)
    with pytest.raises(CheckpointError, match=r"damaged.*of 4 arrays 3 are there"):
        opened(tmp_path).load()


class Pickled:
    def __reduce__(self):
        return (print, ("a checkpoint was executed",))


def test_nothing_is_unpickled_and_nothing_unpacks_to_more_than_the_file(tmp_path, capsys):
    file = tmp_path / "update-000000009.npz"
    np.savez(file, header=np.array([Pickled()], dtype=object))
    with pytest.raises(CheckpointError, match=r"damaged, or no checkpoint of this format.*allow_pickle"):
        opened(tmp_path).load()
    np.savez_compressed(file, header=np.zeros(10**7, "uint8"))
    with pytest.raises(CheckpointError, match=r"damaged, or no checkpoint of this format.*larger than the file"):
        opened(tmp_path).load()
    assert capsys.readouterr().out == ""


def test_a_foreign_checkpoint_is_refused_and_both_values_named(tmp_path):
    saved(tmp_path, fingerprint={"seed": 1, "dtype_policy": "float32"})
    with pytest.raises(
        CheckpointError, match="of another training: dtype_policy is float32 there, None here; seed is 1 there, 2"
    ):
        opened(tmp_path, {"seed": 2}).load()


def test_a_full_disk_loses_nothing_that_was_saved(tmp_path, monkeypatch):
    folder = saved(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(paths.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        folder.save(progress_after(4), ARRAYS, {})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert_is_as_it_was(folder.load(), 3)


def test_a_kill_while_a_checkpoint_is_written_leaves_the_one_before(tmp_path, monkeypatch):
    folder = saved(tmp_path)
    monkeypatch.setattr(paths.os, "fsync", lambda descriptor: os.kill(os.getpid(), signal.SIGKILL))
    _, status = fork(lambda: folder.save(progress_after(4), ARRAYS, {}))
    assert os.WTERMSIG(status) == signal.SIGKILL
    assert len(list(tmp_path.glob("*.npz"))) == len(list(tmp_path.glob(".*.tmp"))) == 1
    folder = opened(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "log.jsonl", "update-000000003.npz"]
    assert_is_as_it_was(folder.load(), 3)


def test_two_trainings_in_one_folder_are_one_too_many(tmp_path):
    held = CheckpointFolder(tmp_path, ONE, resume=True)
    with pytest.raises(CheckpointError, match=r"another process trains in .* already: wait for it, end it, or name"):
        CheckpointFolder(tmp_path, ONE, resume=True)
    held.close()
    opened(tmp_path)


# Training in parts ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def samples():
    return make_samples()


NUMBERS = {"micro_batch_size": 70, "learning_rate": 1e-3, "seed": 1}


@pytest.fixture(scope="module")
def finished(samples, tmp_path_factory):
    """Three epochs of three updates, with checkpoints."""
    folder = tmp_path_factory.mktemp("finished")
    return train(samples, SMALLEST, n_epochs=3, checkpoint_folder=folder, **NUMBERS), folder


def test_what_is_finished_is_not_trained_again_and_may_get_more_epochs(samples, finished, tmp_path):
    run, folder = finished
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    again = train(samples, SMALLEST, n_epochs=3, checkpoint_folder=tmp_path, resume=True, **NUMBERS)
    assert again.history == run.history
    np.testing.assert_array_equal(weights_of(again.model), weights_of(run.model))
    assert again.step_time == run.step_time
    longer = train(samples, SMALLEST, n_epochs=4, checkpoint_folder=tmp_path, resume=True, **NUMBERS)
    assert longer.history[:3] == run.history
    assert sha256_of(longer) == sha256_of(train(samples, SMALLEST, n_epochs=4, **NUMBERS))


def test_the_log_has_a_line_per_epoch_with_memory(finished):
    run, folder = finished
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [(line["epoch"], line["n_updates"]) for line in lines] == [(1, 3), (2, 3), (3, 3)]
    assert [line["metrics"] for line in lines] == [epoch.metrics for epoch in run.history]
    for line in lines:
        assert 2**20 < line["memory_bytes"] <= line["peak_memory_bytes"]


def test_the_best_epoch_is_kept_beside_the_last(samples, finished):
    run, folder = finished
    losses = [epoch.metrics["val_loss"] for epoch in run.history]
    with np.load(max(folder.glob("update-*.npz"))) as arrays:
        progress = json.loads(arrays["header"].tobytes())["progress"]
        best = [arrays[f"best/model/{i}"] for i in range(len(run.model.variables))]
    assert progress["best_loss"] == min(losses)
    assert progress["best_epoch"] == run.best_epoch == int(np.argmin(losses)) + 1
    for variable, value in zip(run.model.variables, best, strict=True):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(variable), value)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 2}, r"seed is 1 there, 2 here"),
        ({"dtype_policy": "mixed_float16"}, "of another training: optimizer is .*; sublayers is "),
        ({"micro_batch_size": 35}, "batch_size is 70 there, 35 here"),
        ({"learning_rate": 2e-3}, r"optimizer is .*'learning_rate': 0\.001.*'learning_rate': 0\.002"),
    ],
)
def test_a_checkpoint_of_other_settings_is_refused(samples, finished, change, named):
    with pytest.raises(CheckpointError, match=named):
        train(samples, SMALLEST, n_epochs=3, checkpoint_folder=finished[1], resume=True, **NUMBERS | change)


@pytest.mark.parametrize(
    "header", [{"fingerprint": {}, "progress": {"epoch": 0, "unknown": 1}}, {"fingerprint": ["no", "dict"], "progress": {}}, []]
)
def test_a_whole_file_that_says_something_else_is_no_checkpoint(tmp_path, header):
    np.savez(tmp_path / "update-000000009.npz", header=np.frombuffer(json.dumps(header).encode(), "uint8"))
    with pytest.raises(CheckpointError, match="damaged, or no checkpoint of this format"):
        opened(tmp_path).load()


def test_a_checkpoint_of_other_data_or_another_model_is_refused(samples, finished):
    values = samples.values.copy()
    values[0] += 0.01
    other = training.prepare(values, window=1000)
    for changed, config, named in ((other, SMALLEST, "data is "), (samples, EXACT, "layers is ")):
        with pytest.raises(CheckpointError, match=named):
            train(changed, config, n_epochs=3, checkpoint_folder=finished[1], resume=True, **NUMBERS)


def test_an_earlier_training_is_not_overwritten_by_accident(samples, finished):
    with pytest.raises(FileExistsError, match=r"update-000000009.npz of an earlier training: .*resume=True"):
        train(samples, SMALLEST, n_epochs=3, checkpoint_folder=finished[1], **NUMBERS)


def test_where_no_checkpoint_can_be_written_training_goes_on_and_says_so(samples, tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(paths.os, "fsync", full)
    with pytest.warns(RuntimeWarning, match=r"no checkpoint of update 3 \(.*No space left on device"):
        run = train(samples, SMALLEST, n_epochs=1, checkpoint_folder=tmp_path, **NUMBERS)
    assert len(run.history) == 1
    assert len(run.notes) == 2  # at the start, after the epoch
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_a_training_ends_early_where_nothing_is_gained(samples, monkeypatch):
    losses = iter([0.5, 0.4, 0.6, 0.45, 0.41, 0.3])
    end_epoch = loop.Loop._end_epoch
    monkeypatch.setattr(
        loop.Loop,
        "_end_epoch",
        lambda self, metrics: end_epoch(self, metrics | {"val_loss": next(losses)}),
    )
    run = train(samples, SMALLEST, n_epochs=9, patience=3, **NUMBERS)
    assert [epoch.metrics["val_loss"] for epoch in run.history] == [0.5, 0.4, 0.6, 0.45, 0.41]


# Out of memory --------------------------------------------------------------------------------------------------------


def out_of_memory():
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor\nwith a long story")
    return RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 1 byte")


@pytest.fixture
def small_device(monkeypatch):
    """From its sixth step on, a device that has no memory for micro-batches above `limit`."""

    def set_limit(limit):
        make_train_function, steps = keras.Model.make_train_function, []

        def make(self, force=False):
            make_train_function(self, force)
            step = self.train_function

            def limited(*arguments):
                steps.append(self)
                cut = getattr(self.optimizer, "micro_batching", None)
                if len(steps) >= 6 and (cut.micro_batch_size if cut else 32) > limit:
                    raise out_of_memory()
                return step(*arguments)

            if not hasattr(step, "is_limited"):
                limited.is_limited = True
                self.train_function = limited

        monkeypatch.setattr(keras.Model, "make_train_function", make)

    return set_limit


def test_out_of_memory_halves_the_micro_batch_and_keeps_the_updates(samples, small_device, tmp_path):
    numbers = {"n_epochs": 2, "learning_rate": 1e-3, "seed": 7, "micro_batch_size": 32}
    expected = train(samples, EXACT, **numbers)
    small_device(limit=9)
    with pytest.warns(RuntimeWarning, match="went on with") as warned:
        run = train(samples, EXACT, checkpoint_folder=tmp_path, checkpoint_every=2, **numbers)
    assert [str(w.message) for w in warned if "went on" in str(w.message)] == run.notes
    assert "epoch 1, with micro-batches of 32 (" in run.notes[0]
    assert "went on with 16, from update 4" in run.notes[0]
    assert "went on with 8, from update 4" in run.notes[1]
    assert "long story" not in run.notes[0]
    assert run.micro_batch_size == 8
    assert [entry.micro_batch_size for entry in run.history] == [8, 8]
    assert run.history[0].notes == run.notes
    np.testing.assert_allclose(weights_of(run.model), weights_of(expected.model), atol=1e-6)
    for epoch, whole in zip(run.history, expected.history, strict=True):
        for name in ("loss", "val_loss"):  # in those of single heads Keras weighs short batches like full ones
            assert epoch.metrics[name] == pytest.approx(whole.metrics[name], abs=1e-5)
    # What was learned about the device outlives the process.
    again = train(samples, EXACT, checkpoint_folder=tmp_path, resume=True, **numbers)
    assert (again.micro_batch_size, again.notes) == (8, run.notes)


def test_out_of_memory_with_a_single_sample_is_an_error(samples, small_device):
    small_device(limit=0)
    with pytest.warns(RuntimeWarning), pytest.raises(type(out_of_memory()), match=r"OOM|RESOURCE_EXHAUSTED"):
        train(samples, EXACT, n_epochs=1, learning_rate=1e-3, micro_batch_size=2)
