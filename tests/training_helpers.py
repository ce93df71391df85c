"""Models of a user's own, and a training that is killed: a framework is loaded once in a child, each attempt is a fork."""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np

from altlas_lib import data, training
from altlas_lib.training.backend import keras
from altlas_lib.training.fit import loop
from altlas_lib.training.fit.checkpoint import CheckpointFolder

layers = keras.layers
COMPILE_FAST = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
SMALLEST = training.ModelConfig(nbeats=(training.NBeatsConfig(window=20, units=8, n_blocks=1),), fusion=(8,))  # all state
EXACT = training.ModelConfig(  # neither dropout nor batch statistics
    tcn=training.TcnConfig(window=20, filters=(4,), dilations=(1,)), fusion=(8,), dropout=0
)


def make_samples():
    return training.prepare(data.crash_series(1300, regime_strength=0.9, seed=3).values, window=1000)


def weights_of(model):
    return np.concatenate([np.ravel(keras.ops.convert_to_numpy(weight)) for weight in model.weights])


def sha256_of(run):
    """Of weights and batch statistics, and of the log without its times and memory."""
    digest = hashlib.sha256(weights_of(run.model))
    digest.update(json.dumps([[epoch.epoch, epoch.metrics] for epoch in run.history]).encode())
    return digest.hexdigest()


# A user's models ------------------------------------------------------------------------------------------------------


def image_classifier():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(14, 32, 32, 3)).astype("float32"), rng.integers(0, 4, 14)
    model = keras.applications.MobileNet(input_shape=(32, 32, 3), alpha=0.25, weights=None, classes=4)
    model.compile(keras.optimizers.SGD(0.01, momentum=0.9), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model, (x, y)


def recurrent():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(30, 12, 3)).astype("float32")
    inputs = keras.Input((12, 3))
    y = layers.Dense(1)(layers.Dropout(0.3)(layers.LSTM(6)(inputs)))
    model = keras.Model(inputs, y)
    rate = keras.optimizers.schedules.ExponentialDecay(0.01, 5, 0.9)
    model.compile(keras.optimizers.Adam(rate), "mse", metrics=["mae"])
    return model, (x, x.sum(axis=(1, 2))[:, None], np.linspace(0.5, 1.5, 30).astype("float32"))


class Sentences(keras.utils.PyDataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        rng = np.random.default_rng(index)
        n = 8 if index < 3 else 5
        return {"tokens": rng.integers(0, 20, (n, 10))}, rng.integers(0, 3, n)


def encoder():
    tokens = keras.Input((10,), dtype="int32", name="tokens")
    x = layers.Embedding(20, 8)(tokens)
    block_input = keras.Input((10, 8))
    attended = training.ChunkedAttention(2, 4)(block_input, block_input)
    y = layers.Dropout(0.2)(layers.LayerNormalization()(block_input + attended))
    x = layers.GlobalAveragePooling1D()(keras.Model(block_input, y, name="block")(x))
    model = keras.Model({"tokens": tokens}, layers.Dense(3, activation="softmax")(x))
    model.compile("adamw", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model, Sentences()


def fit_own(build, **sizes):
    def train(**how):
        keras.utils.set_random_seed(4)
        model, samples = build()
        return training.fit(model, samples, n_epochs=2, seed=7, micro_batch_size=3, **sizes, **how)

    return train


def train_in_half_precision(**how):
    """The multi-scale model, with a loss scale; 210 samples in updates of 48, these in 16 + 16 + 16, the last in 16 + 2."""
    numbers = {"micro_batch_size": 16, "gradient_accumulation_steps": 3, "learning_rate": 1e-3, "n_epochs": 2, "seed": 5}
    return training.train(make_samples(), SMALLEST, dtype_policy="mixed_float16", **numbers, **how)


TRAININGS = {
    "image classifier": fit_own(image_classifier, batch_size=8),
    "recurrent": fit_own(recurrent, batch_size=8),
    "encoder": fit_own(encoder, recompute=["block"]),
    "multi-scale": train_in_half_precision,
}


# Killed and continued -------------------------------------------------------------------------------------------------


def fork(work):
    """Do it in a fork: the text that it returns, None where it was killed; and the fork's status."""
    reader, writer = os.pipe()
    with warnings.catch_warnings(action="ignore"):  # of a fork beside threads
        pid = os.fork()
    if not pid:
        os.write(writer, work().encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as answer:
        text = answer.read()
    return text or None, os.waitpid(pid, 0)[1]


def attempt(name, folder, kill_after):
    """Train in a fork, killed after so many micro-batches; its hash, None where it was killed."""

    def work():
        n_seen, end_micro_batch = 0, loop.Loop.end_micro_batch

        def count(self, batch, logs=None):
            nonlocal n_seen
            end_micro_batch(self, batch, logs)
            n_seen += 1
            if n_seen == kill_after:
                os.kill(os.getpid(), signal.SIGKILL)

        loop.Loop.end_micro_batch = count
        return sha256_of(TRAININGS[name](checkpoint_folder=folder, checkpoint_every=1, resume=True))

    text, status = fork(work)
    assert (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL) == (kill_after is not None), status
    return text


def kill_and_resume(folder, seed):
    """For each training: its hash uninterrupted, that of one that was killed again and again, and when it was."""
    answers, choose = {}, random.Random(seed)
    for name in TRAININGS:
        # The first may come before there is a checkpoint; when a second comes there is one.
        kills = [choose.randint(1, 8), choose.randint(4, 8)][: 2 if name == "recurrent" else 1]
        for kill_after in kills:
            attempt(name, Path(folder, name, "killed"), kill_after)
        answers[name] = [attempt(name, Path(folder, name, run), None) for run in ("whole", "killed")] + [kills]
    print(json.dumps(answers))


def on_two_devices(train):
    """What it returns on one device, then twice on two."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        cpu, each = tf.config.list_physical_devices("CPU")[0], tf.config.LogicalDeviceConfiguration()
        tf.config.set_logical_device_configuration(cpu, [each, each])
    one = train()
    if keras.backend.backend() == "tensorflow":
        with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
            return one, train(), train()
    keras.distribution.set_distribution(keras.distribution.DataParallel(devices=["cpu:0", "cpu:1"]))
    return one, train(), train()


def train_on_two_devices():
    """Largest difference of weights, and of predictions, between what one device and two devices train."""
    samples, numbers = make_samples(), {"n_epochs": 2, "learning_rate": 1e-3, "seed": 1}

    def train():
        run = training.train(samples, EXACT, micro_batch_size=8, gradient_accumulation_steps=4, **numbers)
        return weights_of(run.model), training.predict(run.model, samples, slice(1240, 1299)).logs

    one, two, _ = on_two_devices(train)
    print(json.dumps([float(np.abs(x - y).max()) for x, y in zip(one, two, strict=True)]))


def train_in_half_precision_on_two_devices():
    """How far two devices end from one with whole batches, of the way that the weights went; whether two runs are equal,
    without and with dropout and batch norm; and how many updates a loss scale that begins far too large lets through.
    """
    x = np.random.default_rng(0).normal(size=(96, 5)).astype("float32")
    begun = []

    def train_layers(*more, scale=2.0**15):
        keras.utils.set_random_seed(2)
        hidden = layers.Dense(16, activation="tanh", dtype="mixed_float16")
        model = keras.Sequential([keras.Input((5,)), hidden, *more, layers.Dense(1, dtype="float32")])
        optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.05, momentum=0.9), initial_scale=scale)
        model.compile(optimizer, "mse", auto_scale_loss=False)
        begun.append(weights_of(model))
        sizes = {"batch_size": 16, "micro_batch_size": 16 if len(begun) == 1 else 4}
        training.fit(model, (x, np.sin(x).sum(axis=1, keepdims=True)), n_epochs=4, seed=3, **sizes)
        return weights_of(model), int(keras.ops.convert_to_numpy(optimizer.inner_optimizer.iterations))

    def train():
        plain, _ = train_layers()
        noisy, _ = train_layers(layers.Dropout(0.2, seed=1), layers.BatchNormalization())
        return plain, noisy, train_layers(scale=2.0**28)[1]

    one, two, again = on_two_devices(train)
    error = np.linalg.norm(two[0] - one[0]) / np.linalg.norm(one[0] - begun[0])
    same = [bool((two[i] == again[i]).all()) for i in (0, 1)]
    print(json.dumps([float(error), same, [two[2], again[2]]]))


def resume_on_torch(folder):
    """What a Keras model is on PyTorch, its losses, and the notes of a training that was continued."""
    first = TRAININGS["recurrent"](checkpoint_folder=folder)
    keras.utils.set_random_seed(4)
    model, samples = recurrent()
    again = training.fit(
        model, samples, n_epochs=3, seed=7, micro_batch_size=3, batch_size=8, checkpoint_folder=folder, resume=True
    )
    print(json.dumps([type(model.optimizer).__name__, [*again.history[-1].metrics], len(first.history), again.notes]))


def hold_folder(folder):
    """Keep a checkpoint folder open until the process is killed."""
    held = CheckpointFolder(folder, {}, resume=True)
    print("held", flush=True)
    signal.pause()
    held.close()


def in_a_process(backend, code, folder, flags=""):
    """What the code, which finds the names of this module, prints as JSON on a backend."""
    environment = {**os.environ, "KERAS_BACKEND": backend, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"{COMPILE_FAST} {flags}"}
    if backend == "torch":
        environment["OMP_NUM_THREADS"] = "1"  # a fork of a process with more threads may hang
    environment |= {"JAX_COMPILATION_CACHE_DIR": str(folder / "jax"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\nfrom training_helpers import *\n{code}"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)
