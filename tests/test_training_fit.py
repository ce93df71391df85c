"""`training.fit` with models and data of a user's own: any container of samples, callbacks, recomputation, clear errors."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from training_helpers import weights_of

from altlas_lib import training
from altlas_lib.training.backend import keras
from altlas_lib.training.fit import loop
from altlas_lib.training.fit.checkpoint import CheckpointError
from altlas_lib.training.fit.dataset import MicroBatches, open_dataset
from altlas_lib.training.model import recompute
from altlas_lib.training.model.accumulation import MicroBatching

layers = keras.layers


# Containers of samples --------------------------------------------------------------------------------------------------


def rows(n, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, 5)).astype("float32"), rng.normal(size=(n, 1)).astype("float32")


def small_model(optimizer=None, **how):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((5,)), layers.Dense(8, activation="tanh"), layers.Dense(1)])
    model.compile(optimizer or keras.optimizers.SGD(0.05, momentum=0.9), **{"loss": "mse", **how})
    return model


class Batches(keras.utils.PyDataset):
    def __init__(self, x, y, batch_size):
        super().__init__()
        self.x, self.y, self.batch_size = x, y, batch_size

    def __len__(self):
        return -(-len(self.x) // self.batch_size)

    def __getitem__(self, index):
        at = slice(index * self.batch_size, (index + 1) * self.batch_size)
        return self.x[at], self.y[at]


def every_sample(data, batch_size, size, seed=None):
    opened = open_dataset(data, batch_size)
    micro_batching = MicroBatching(opened.n_samples, opened.batch_size, size)
    order = None if seed is None else np.random.default_rng(seed)
    batches = MicroBatches(opened, micro_batching, order)
    return np.concatenate([batches[i][0] for i in range(len(batches))])


def test_every_container_gives_every_sample_once():
    import tensorflow as tf

    x, y = rows(21)
    stream = tf.data.Dataset.from_tensor_slices((x, y)).batch(4)
    for data, batch_size in (((x, y), 4), (Batches(x, y, 4), None), (stream, None)):
        np.testing.assert_array_equal(every_sample(data, batch_size, 3), x)
        shuffled = every_sample(data, batch_size, 3, seed=1)
        np.testing.assert_array_equal(np.sort(shuffled, axis=0), np.sort(x, axis=0))
        assert np.array_equal(shuffled, x) == (data is stream)  # whose order is its own


def test_an_epoch_of_a_stream_is_continued_at_its_place():
    import tensorflow as tf

    x, y = rows(21)
    opened = open_dataset(tf.data.Dataset.from_tensor_slices((x, y)).batch(8), None)
    for at in (0, 8, 16, 8, 19):  # Keras looks at the first batches before it begins
        np.testing.assert_array_equal(opened.gather(np.arange(at, min(at + 3, 21)))[0], x[at : at + 3])


@pytest.mark.parametrize("kind", ["arrays", "batches", "stream"])
def test_accumulated_micro_batches_equal_keras_with_the_big_batch(kind):
    import tensorflow as tf

    x, y = rows(21)
    plain = small_model()
    plain.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0)
    data = {
        "arrays": (x, y),
        "batches": Batches(x, y, 8),
        "stream": tf.data.Dataset.from_tensor_slices((x, y)).batch(8),
    }[kind]
    model = small_model()
    with pytest.MonkeyPatch.context() as patch:  # in the data's order, as Keras above
        patch.setattr(loop.np.random, "default_rng", lambda seed: None)
        sizes = {"batch_size": 8} if kind == "arrays" else {}
        run = training.fit(model, data, n_epochs=2, micro_batch_size=3, **sizes)
    np.testing.assert_allclose(weights_of(model), weights_of(plain), atol=1e-6)
    assert run.history[1].metrics["loss"] == pytest.approx(plain.history.history["loss"][1], rel=1e-5)
    assert type(model.optimizer).__name__ == "SGD"  # the user's own again
    assert int(model.optimizer.iterations) == 6


def test_fit_can_be_called_again_and_the_model_saved(tmp_path):
    x, y = rows(16)
    model = small_model(keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.01)))
    first = training.fit(model, (x, y), n_epochs=1, batch_size=8, micro_batch_size=4)
    second = training.fit(model, (x, y), n_epochs=1, batch_size=8, micro_batch_size=2)
    assert [run.history[0].n_updates for run in (first, second)] == [2, 2]
    model.save(tmp_path / "model.keras")
    np.testing.assert_array_equal(weights_of(keras.models.load_model(tmp_path / "model.keras")), weights_of(model))


def test_early_stopping_keeps_the_best_weights_also_when_continued(tmp_path):
    x, y = rows(24)
    losses = iter([0.5, 0.4, 0.6, 0.7])
    end_epoch = loop.Loop._end_epoch
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.Loop, "_end_epoch", lambda self, metrics: end_epoch(self, metrics | {"val_loss": next(losses)}))
        how = {"n_epochs": 9, "batch_size": 8, "patience": 2, "checkpoint_folder": tmp_path}
        run = training.fit(small_model(), (x, y), (x, y), **how)
    assert (len(run.history), run.best_epoch) == (4, 2)
    best = small_model()
    training.fit(best, (x, y), (x, y), n_epochs=2, batch_size=8)
    np.testing.assert_array_equal(weights_of(run.model), weights_of(best))
    again = training.fit(small_model(), (x, y), (x, y), resume=True, **how)
    np.testing.assert_array_equal(weights_of(again.model), weights_of(best))


def test_without_early_stopping_the_last_weights_stay():
    x, y = rows(16)
    run = training.fit(small_model(), (x, y), n_epochs=2, batch_size=8)
    plain = small_model()
    training.fit(plain, (x, y), n_epochs=2, batch_size=8, patience=5)
    np.testing.assert_array_equal(weights_of(run.model), weights_of(plain))  # the last was the best
    assert run.best_epoch == 2


def test_a_class_of_the_users_own_is_built_by_its_first_batch():
    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = layers.Dense(1)

        def call(self, x):
            return self.dense(x)

    model = Own()
    model.compile("sgd", "mse")
    run = training.fit(model, rows(10), n_epochs=1, batch_size=4, micro_batch_size=2)
    assert run.history[0].n_updates == 3
    assert len(training.weights_hash(model)) == 64


class Watching(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.seen = []

    def on_train_begin(self, logs=None):
        self.seen.append("begin")

    def on_epoch_end(self, epoch, logs=None):
        self.seen.append((epoch, sorted(logs)))

    def on_train_end(self, logs=None):
        self.seen.append("end")


def test_keras_callbacks_see_one_training(capfd):
    watching, (x, y) = Watching(), rows(16)
    rates = keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate / 2)
    how = {"n_epochs": 3, "batch_size": 8, "micro_batch_size": 3}
    run = training.fit(small_model(), (x, y), (x, y), callbacks=[watching, rates], verbose=1, **how)
    assert watching.seen == ["begin", *((epoch, ["loss", "val_loss"]) for epoch in range(3)), "end"]
    assert float(run.model.optimizer.learning_rate) == pytest.approx(0.05 / 8)
    assert "Epoch 3/3" in capfd.readouterr().out


def test_a_callback_that_stops_the_training_stops_it_also_when_continued(tmp_path):
    x, y = rows(16)
    how = {"n_epochs": 9, "batch_size": 8, "checkpoint_folder": tmp_path}
    patient = {"monitor": "loss", "min_delta": 1e9, "patience": 2}
    run = training.fit(small_model(), (x, y), callbacks=[keras.callbacks.EarlyStopping(**patient)], **how)
    assert len(run.history) == 3
    assert training.fit(small_model(), (x, y), resume=True, **how).history == run.history


def test_layers_are_recomputed_while_the_model_is_fitted_and_not_after(monkeypatch):
    calls, recomputed = [], recompute.recomputed

    def record(function, layer, *inputs):
        calls.append(layer.name)
        return recomputed(function, layer, *inputs)

    monkeypatch.setattr(recompute, "recomputed", record)

    def build():
        keras.utils.set_random_seed(2)
        inputs = keras.Input((5,))
        block = keras.Model(inputs, layers.Dropout(0.3)(layers.Dense(6, activation="tanh")(inputs)), name="block")
        model = keras.Sequential([keras.Input((5,)), block, layers.Dense(1)])
        model.compile("adam", "mse")
        return model

    how = {"n_epochs": 2, "batch_size": 8, "micro_batch_size": 3}
    plain = training.fit(build(), rows(20), **how)
    assert not calls
    again = training.fit(build(), rows(20), recompute=["block"], **how)
    assert set(calls) == {"block"}
    np.testing.assert_allclose(weights_of(again.model), weights_of(plain.model), atol=1e-6)
    assert "call" not in vars(again.model.get_layer("block"))
    with pytest.raises(ValueError, match=r"recompute names \['blok'\]: the layers of model .* are \[.*'block'"):
        training.fit(build(), rows(8), recompute=["blok"], **how)


@pytest.mark.parametrize("layer", ["statistics", "a loss"])
def test_a_layer_that_does_more_than_return_a_value_is_not_recomputed(layer):
    inner = layers.BatchNormalization() if layer == "statistics" else layers.Dense(2, activity_regularizer="l2")
    model = keras.Sequential([keras.Input((5,)), keras.Sequential([inner], name="block"), layers.Dense(1)])
    model.compile("sgd", "mse")
    with pytest.raises(
        ValueError, match=r"\['block'\], whose layer .* updates variables or adds a loss .*name layers without it"
    ):
        training.fit(model, rows(8), n_epochs=1, recompute=["block"])


# Hostile input ----------------------------------------------------------------------------------------------------------


class Estimator:
    def fit(self, x, y):
        raise AssertionError("not asked for")


class Endless(keras.utils.PyDataset):
    def __len__(self):
        return 0

    def __getitem__(self, index):
        return rows(4)


class Uneven(Batches):
    def __getitem__(self, index):
        x, y = super().__getitem__(index)
        return (x[:2], y[:2]) if index == 1 else (x, y)


def without_optimizer():
    return keras.Sequential([keras.Input((5,)), layers.Dense(1)])


@pytest.mark.parametrize(
    ("model", "data", "how", "message"),
    [
        (Estimator, rows(8), {}, r"the model is a test_training_fit\.Estimator: expected a keras\.Model"),
        (without_optimizer, rows(8), {}, "has no optimizer: compile it"),
        (small_model, None, {}, "data is a NoneType: expected"),
        (small_model, 7, {}, "data is a int: expected"),
        (small_model, (np.ones((4, 5)), np.ones(3)), {}, r"data has arrays of \[3, 4\] samples"),
        (small_model, (np.ones((0, 5)), np.ones(0)), {}, r"data has arrays of \[0\] samples"),
        (small_model, Endless(), {}, "has no known number of batches, or none"),
        (small_model, Uneven(*rows(24), 8), {}, r"batch 1 of data has 2 samples, the first has 8"),
        (small_model, Batches(*rows(24), 8), {"batch_size": 4}, "batch_size is 4, data comes in batches of 8: leave it out"),
        (small_model, rows(8), {"batch_size": 9}, "there are 8 samples, one update takes 9"),
        (small_model, rows(8), {"batch_size": 4, "micro_batch_size": 5}, "micro-batches of 5 for updates of 4"),
        (small_model, rows(8), {"batch_size": "4"}, r"batch_size is '4' \(a str\)"),
        (small_model, rows(8), {"n_epochs": 0}, "n_epochs is 0"),
        (small_model, rows(8), {"patience": 0}, "patience is 0"),
        (small_model, rows(8), {"checkpoint_every": -1}, "checkpoint_every is -1"),
        (small_model, rows(8), {"resume": True}, "resume is True without a checkpoint_folder"),
        (lambda: small_model(steps_per_execution=4), rows(8), {}, "steps_per_execution=4: compile the model without"),
        (
            lambda: small_model(keras.optimizers.SGD(0.1, gradient_accumulation_steps=2)),
            rows(8),
            {},
            "gradient_accumulation_steps=2: compile the model without",
        ),
        (
            lambda: small_model(loss=keras.losses.MeanSquaredError(reduction="sum", name="total")),
            rows(8),
            {"batch_size": 4, "micro_batch_size": 2},
            "loss 'total' has the reduction 'sum'",
        ),
    ],
)
def test_what_cannot_be_trained_is_refused(model, data, how, message):
    with pytest.raises(ValueError, match=message):
        training.fit(model(), data, **{"n_epochs": 1, **how})


def test_a_misspelled_setting_is_named():
    with pytest.raises(TypeError, match="batchsize"):
        training.fit(small_model(), rows(8), n_epochs=1, batchsize=4)


def test_a_stream_without_an_end_or_of_another_order_each_time_is_refused(tmp_path):
    import tensorflow as tf

    stream = tf.data.Dataset.from_tensor_slices(rows(64))
    for endless in (stream.batch(8).repeat(), tf.data.Dataset.from_generator(lambda: iter([]), tf.int32)):
        with pytest.raises(ValueError, match="assert_cardinality"):
            training.fit(small_model(), endless, n_epochs=1)
    shuffled = stream.shuffle(64).batch(8)
    with pytest.raises(ValueError, match=r"gives other samples each time it is read.*reshuffle_each_iteration=False"):
        training.fit(small_model(), shuffled, n_epochs=1, checkpoint_folder=tmp_path)
    training.fit(small_model(), shuffled, n_epochs=1)  # without a folder nothing is to be continued


def test_two_processes_in_one_folder_are_told_apart(tmp_path):
    """After a kill the folder is free."""
    path = str(Path(__file__).parent)
    code = f"import sys; sys.path.insert(0, {path!r})\nfrom training_helpers import hold_folder\nhold_folder({str(tmp_path)!r})"
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(CheckpointError, match=r"another process trains in .* already: wait for it, end it, or name another"):
        training.fit(small_model(), rows(8), n_epochs=1, batch_size=4, checkpoint_folder=tmp_path, resume=True)
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    run = training.fit(small_model(), rows(8), n_epochs=1, batch_size=4, checkpoint_folder=tmp_path, resume=True)
    assert len(run.history) == 1


def test_changed_data_model_or_rate_is_refused_when_continued(tmp_path):
    x, y = rows(16)
    how = {"n_epochs": 1, "batch_size": 8, "checkpoint_folder": tmp_path}
    training.fit(small_model(), (x, y), **how)
    changed = x.copy()
    changed[3, 2] += 1e-3
    wider = keras.Sequential([keras.Input((5,)), layers.Dense(9, activation="tanh"), layers.Dense(1)])
    wider.compile(keras.optimizers.SGD(0.05, momentum=0.9), loss="mse")
    schedule = keras.optimizers.schedules.ExponentialDecay(0.05, 5, 0.9)
    for model, data, named in (
        (small_model(), (changed, y), "data is "),
        (wider, (x, y), "layers is .*weights is "),
        (small_model(keras.optimizers.SGD(schedule, momentum=0.9)), (x, y), "optimizer is .*ExponentialDecay"),
        (small_model(loss="mae"), (x, y), "loss is mse there, mae here"),
    ):
        with pytest.raises(CheckpointError, match=named):
            training.fit(model, data, resume=True, **how)
