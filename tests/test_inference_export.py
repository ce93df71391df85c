"""Chapter 40's export and compilation of Keras models: names, any batch, and what does not convert."""

import importlib.util

import keras
import numpy as np
import onnx
import pytest

from altlas_lib import devices, inference
from altlas_lib.inference import child, forward
from altlas_lib.results import Forward, Quantity
from altlas_lib.training.plan.request import has_compiler

pytestmark = pytest.mark.skipif(not importlib.util.find_spec("tf2onnx"), reason="tf2onnx is not installed")

MODELS = """
import keras
import numpy as np

@keras.saving.register_keras_serializable("my_models")
class Doubled(keras.layers.Layer):
    def call(self, x):
        return 2 * x

class Sorted(keras.layers.Layer):
    def call(self, x):
        import tensorflow as tf
        return tf.linalg.svd(tf.reshape(x, (-1, 2, 2)), compute_uv=False)

def named():
    x, tokens = keras.Input((8,), name="x"), keras.Input((5,), dtype="int32", name="tokens")
    embedded = keras.layers.GlobalAveragePooling1D()(keras.layers.Embedding(9, 8)(tokens))
    hidden = Doubled()(keras.layers.Dense(8, activation="relu")(x)) + embedded
    heads = {"first": keras.layers.Dense(3, activation="softmax")(hidden), "second": keras.layers.Dense(1)(hidden)}
    return keras.Model([x, tokens], heads)

def listed():
    x = keras.Input((8,))  # without a name the layer's counts: input_layer
    return keras.Model(x, [keras.layers.Dense(2, name="left")(x), keras.layers.Dense(3, name="right")(x)]), "data", None

def sequential():
    hidden = keras.layers.Dense(4, activation="gelu")  # exact: by Erfc, which ONNX lacks
    return keras.Sequential([keras.Input((8,), name="x"), hidden, keras.layers.Dense(3, name="logits")])

def unknown_shape():
    return keras.Sequential([keras.Input((None, 8), name="steps"), keras.layers.LSTM(4)])

def of_float64():
    return keras.Sequential([keras.Input((8,), dtype="float64", name="x"), keras.layers.Dense(2)])

def never_called():
    return keras.Sequential([keras.layers.Dense(2)])

def encoder():
    tokens = keras.Input((12,), dtype="int32", name="tokens")
    positions = keras.layers.Embedding(12, 16)(keras.ops.zeros_like(tokens) + np.arange(12, dtype="int32"))
    x = keras.layers.LayerNormalization()(keras.layers.Embedding(50, 16)(tokens) + positions)
    for _ in range(2):
        x = keras.layers.LayerNormalization()(x + keras.layers.MultiHeadAttention(2, 8)(x, x))
        x = x + keras.layers.Dense(16)(keras.layers.Dense(32, activation="gelu")(x))
    return keras.Model(tokens, keras.layers.Dense(2, name="spans")(x))

def outside():
    x = keras.Input((4,), name="x")
    return keras.Model(x, x + keras.layers.Dense(4)(keras.ops.ones((1, 4))))

def unsupported():
    x = keras.Input((4,), name="x")
    return keras.Model(x, Sorted(name="sorted_values")(x))

def failing():
    raise RuntimeError("no weights on this machine")

def no_model():
    return 7
"""


@pytest.fixture
def models(write):
    return write(MODELS)


@pytest.mark.frameworks("export", "TensorFlow")
def test_names_and_values_survive_at_batches_that_the_export_did_not_see(models, tmp_path):
    agreement = inference.export_onnx(f"{models}:named", tmp_path / "model.onnx")
    assert {each.output: each.largest < 1e-5 for each in agreement} == {"first": True, "second": True}
    graph = onnx.load(tmp_path / "model.onnx").graph
    batches = [tensor.type.tensor_type.shape.dim[0].dim_param for tensor in (*graph.input, *graph.output)]
    assert batches == ["batch"] * 4
    assert {tensor.name for tensor in graph.input} == {"x", "tokens"}
    session = inference.open_session(tmp_path / "model.onnx")
    inputs = {"tokens": np.ones((11, 5)), "x": np.ones((11, 8))}
    assert inference.run_batches(session, inputs)["first"].sum(axis=1) == pytest.approx(np.ones(11), abs=1e-6)


def test_a_model_in_memory_is_exported_with_its_layers_names(models, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module(models)
    model, _, _ = module.listed()
    inference.export_onnx(model, tmp_path / "model.onnx")
    inputs = {model.inputs[0]._keras_history.operation.name: np.random.default_rng(0).normal(size=(6, 8)).astype("float32")}
    got = inference.run_batches(inference.open_session(tmp_path / "model.onnx"), inputs)
    assert list(got) == ["left", "right"]
    runners = inference.keras_runners(model)
    for run in runners.values():
        for output, values in zip(run(inputs), got.values(), strict=True):
            np.testing.assert_allclose(keras.ops.convert_to_numpy(output), values, atol=1e-5)


def test_a_sequential_model_has_one_output_with_its_layers_name(models, tmp_path):
    inference.export_onnx(f"{models}:sequential", tmp_path / "model.onnx")
    session = inference.open_session(tmp_path / "model.onnx")
    assert list(inference.run_batches(session, {"x": np.ones((2, 8))})) == ["logits"]


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (
            "unknown_shape",
            r"input 'steps' has shape \(None, None, 8\) and dtype float32: expected all dimensions but the batch",
        ),
        ("of_float64", r"input 'x' has shape \(None, 8\) and dtype float64: expected .* one of float32"),
        ("never_called", "never called: call it once on a batch"),
        ("failing", r"cannot be loaded \(RuntimeError: no weights on this machine\): expected a \.keras file"),
        ("no_model", r"cannot be loaded \(AttributeError: 'int' object has no attribute 'built'\)"),
        ("gone", r"has no attribute 'gone'"),
    ],
)
def test_what_cannot_be_exported_says_why_and_writes_nothing(models, tmp_path, function, said, monkeypatch):
    """In this process: what the child does is the same, and it needs ten seconds to load TensorFlow."""
    from altlas_lib.inference import export

    monkeypatch.setattr(export, "run_child", lambda module, request, time_limit_s, **environment: export.answer(request))
    with pytest.raises(inference.InferenceError, match=said):
        inference.export_onnx(f"{models}:{function}", tmp_path / "out" / "model.onnx")
    assert not (tmp_path / "out").exists()


def test_an_encoder_with_attention_takes_any_batch(models, tmp_path):
    (agreement,) = inference.export_onnx(f"{models}:encoder", tmp_path / "model.onnx")
    assert (agreement.output, agreement.largest < 1e-4) == ("spans", True)


def test_a_tensor_from_outside_of_the_model_is_refused(models, tmp_path):
    with pytest.raises(
        inference.InferenceError, match=r"a tensor that was computed outside of its layers \(.*\): make it a weight"
    ):
        inference.export_onnx(f"{models}:outside", tmp_path / "model.onnx")
    assert not (tmp_path / "model.onnx").exists()


def test_an_operation_without_a_counterpart_is_named_with_its_layer(models, tmp_path):
    with pytest.raises(inference.InferenceError, match=r"operation Svd of layer .*sorted_values.* has no counterpart in ONNX"):
        inference.export_onnx(f"{models}:unsupported", tmp_path / "model.onnx")
    assert not (tmp_path / "model.onnx").exists()


def test_damaged_files_and_other_things_are_no_model(tmp_path, monkeypatch):
    from altlas_lib.inference import export

    monkeypatch.setattr(export, "run_child", lambda module, request, time_limit_s, **environment: export.answer(request))
    (tmp_path / "damaged.keras").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(inference.InferenceError, match=r"damaged\.keras' cannot be loaded"):
        inference.export_onnx(tmp_path / "damaged.keras", tmp_path / "model.onnx")
    with pytest.raises(inference.InferenceError, match=r"the model is a builtins\.dict: expected a keras\.Model"):
        inference.export_onnx({}, tmp_path / "model.onnx")
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(inference.InferenceError, match=r"tf2onnx is not installed.*pip install tf2onnx"):
        inference.export_onnx("m:f", tmp_path / "model.onnx")


def test_a_child_that_hangs_or_dies_says_so(write, monkeypatch):
    def end_with(source):
        name = write(source)
        monkeypatch.setattr(child.sys, "argv", ["", name])
        command = [child.sys.executable, "-c", source]
        run = child.subprocess.run
        monkeypatch.setattr(child.subprocess, "run", lambda _, **how: run(command, **how))
        return child.run_child("export", {}, 1)

    with pytest.raises(inference.InferenceError, match="export took longer than 1 s: give it more time"):
        end_with("import time; time.sleep(60)")
    monkeypatch.undo()
    with pytest.raises(inference.InferenceError, match=r"status 3 \(its last words: out of luck\)"):
        end_with("import sys; print('out of luck', file=sys.stderr); sys.exit(3)")


# Compiled for a GPU that is not here ---------------------------------------------------------------------------------------


@pytest.mark.skipif(not has_compiler(), reason="JAX's CUDA plug-in is not installed")
def test_a_forward_pass_is_compiled_for_a_gpu_that_is_not_here(models):
    found = inference.compile_forward(f"{models}:listed", "T4", batch=64)
    assert found.n_flops == 64 * (2 * 8 * 5 + 5)  # products and biases
    weights, inputs, results = 8 * 5 + 5, 64 * 8, 64 * 5
    assert found.memory.value >= 4 * (weights + inputs + results)
    assert found.n_launches >= 1
    assert (found.memory.basis, found.time.basis, found.time.device) == ("compiled", "projected", "T4")


def make_cost(**fields):
    given = {"n_launches": 100, "n_flops": 1e9, "moved_bytes": 1e8} | fields
    return Forward(gpu="T4", dtype="float16", batch=1, memory=Quantity.compiled(1, "bytes", "T4"), **given)


def test_a_projected_pass_is_bound_by_what_takes_longest():
    t4 = devices.find_gpu("T4")
    for change, bound_by in (({}, "memory"), ({"n_launches": 2000}, "launches"), ({"n_flops": 1e13}, "compute")):
        assert forward.project(make_cost(**change), t4).bound_by == bound_by
    band, faster = (forward.project(make_cost(n_flops=1e13), t4, speed_up=n) for n in (1, 2))
    assert band.high / faster.high == pytest.approx(2, rel=0.01)
    assert forward.project(make_cost(note="a loop"), t4) is None
    assert forward.project(make_cost(n_flops=None), t4) is None


@pytest.mark.gpu
def test_the_time_measured_on_a_gpu_lies_inside_the_projected_band(models, tmp_path):
    import onnxruntime

    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has no CUDAExecutionProvider: pip install onnxruntime-gpu")
    gpu = devices.find_gpu(devices.describe_gpus()[0].name)
    band = inference.compile_forward("benchmarks.inference:attention", gpu, batch=32).time
    inference.export_onnx("benchmarks.inference:attention", tmp_path / "model.onnx")
    inputs = inference.draw_inputs(inference.open_session(tmp_path / "model.onnx"), 32)
    runner = {"cuda": inference.onnx_runner(tmp_path / "model.onnx", "cuda")}
    (latency,) = inference.measure(runner, inputs, batches=(32,), device="cuda")
    assert band.low <= latency.time.value <= band.high
