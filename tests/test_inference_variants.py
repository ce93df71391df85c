"""Chapter 40's variants: the same answer in less precision, hostile inputs, and which variant is worth it."""

import itertools
import shlex

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from inference_helpers import N_CLASSES, N_IN, classify, write_classifier
from onnx import TensorProto
from typer.testing import CliRunner

from altlas_lib import cli, inference
from altlas_lib.inference import engines
from altlas_lib.inference.compare import find_classes
from altlas_lib.results import Engine, Kept, Latency, Quantity, Variant

RANDOM = np.random.default_rng(1)
X = RANDOM.normal(size=(300, N_IN)).astype("float32")


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    return path, write_classifier(path)


@pytest.fixture(scope="module")
def variants(classifier):
    path, _ = classifier
    made = {name: path.with_name(f"{name}.onnx") for name in inference.PRECISIONS}
    for precision, file in made.items():
        inference.convert(path, file, precision, calibration={"x": X[:100]})
    return made


@pytest.mark.parametrize(
    ("precision", "rms", "agreement"), [("float16", 0.001, 0.99), ("int8 dynamic", 0.02, 0.95), ("int8 static", 0.05, 0.95)]
)
def test_a_variant_says_nearly_what_float64_says(classifier, variants, precision, rms, agreement):
    expected = {"probabilities": classify(X, classifier[1])}
    got = inference.run_batches(inference.open_session(variants[precision]), {"x": X}, batch=77)
    (found,) = inference.compare_outputs(expected, got)
    assert 0 < found.rms < rms
    assert found.rms <= found.largest < 1
    assert found.class_agreement >= agreement
    assert found.n_samples == len(X)


def test_variants_hold_what_their_names_say(classifier, variants):
    kinds = {name: {node.op_type for node in onnx.load(file).graph.node} for name, file in variants.items()}
    assert "DynamicQuantizeLinear" in kinds["int8 dynamic"]
    assert {"QuantizeLinear", "DequantizeLinear"} <= kinds["int8 static"]
    halves = [tensor for tensor in onnx.load(variants["float16"]).graph.initializer if tensor.data_type == TensorProto.FLOAT16]
    assert {"w1", "w2"} <= {tensor.name for tensor in halves}
    for file in variants.values():
        onnx.checker.check_model(onnx.load(file))
        (tensor,) = inference.open_session(file).get_inputs()
        assert (tensor.name, tensor.type, tensor.shape[1:]) == ("x", "tensor(float)", [N_IN])


def test_one_outlier_in_the_calibration_sets_the_range_of_minmax_but_not_of_percentile(classifier, tmp_path):
    """MinMax gives the 127 steps on each side to the outlier; Percentile leaves out one value in 100,000."""
    calibration, steps = RANDOM.normal(size=(10_000, N_IN)).astype("float32"), {}
    calibration[5, 5] = 3000
    for method in ("MinMax", "Percentile"):
        file = tmp_path / f"{method}.onnx"
        inference.convert(classifier[0], file, "int8 static", calibration={"x": calibration}, method=method)
        constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(file).graph.initializer}
        steps[method] = float(constants["x_scale"])
    assert steps["MinMax"] == pytest.approx(3000 / 127, rel=0.01)
    assert steps["Percentile"] < 10 / 127


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (None, "8 bits with fixed ranges need calibration data"),
        ({"y": X}, r"no data for input 'x' among \['y'\]"),
        ({"x": X[:, :5]}, r"shape \(300, 5\): expected numbers of shape \(n, 16\)"),
        ({"x": X[:0]}, r"shape \(0, 16\)"),
        ({"x": X.astype(str)}, "expected numbers"),
        ({"x": np.where(X > 2, np.nan, X)}, "values that are not finite: leave those rows out"),
        ({"x": np.float32(1)}, r"shape \(\): expected"),
    ],
)
def test_unfit_calibration_data_are_named_and_nothing_is_written(classifier, tmp_path, data, said):
    with pytest.raises(inference.InferenceError, match=said):
        inference.convert(classifier[0], tmp_path / "variant.onnx", "int8 static", calibration=data)
    assert not list(tmp_path.iterdir())


def test_unknown_names_get_the_nearest(classifier, tmp_path):
    with pytest.raises(inference.InferenceError, match=r"'float61': expected one of .*did you mean 'float16'"):
        inference.convert(classifier[0], tmp_path / "variant.onnx", "float61")
    with pytest.raises(inference.InferenceError, match=r"'minmax'.*did you mean 'MinMax'"):
        inference.convert(classifier[0], tmp_path / "variant.onnx", "int8 static", method="minmax")


def test_a_damaged_file_is_named(classifier, tmp_path):
    damaged = tmp_path / "damaged.onnx"
    damaged.write_bytes(classifier[0].read_bytes()[:700])
    for precision in inference.PRECISIONS:
        with pytest.raises(inference.InferenceError, match=r"damaged\.onnx cannot be loaded .*: export the model anew"):
            inference.convert(damaged, tmp_path / "variant.onnx", precision)
    with pytest.raises(inference.InferenceError, match=r"gone\.onnx is no file"):
        inference.open_session(tmp_path / "gone.onnx")
    assert [each.name for each in tmp_path.iterdir()] == ["damaged.onnx"]


def test_a_newer_opset_asks_for_a_newer_runtime(tmp_path):
    write_classifier(tmp_path / "new.onnx", opset=99)
    with pytest.raises(inference.InferenceError, match=r"opset.*pip install --upgrade onnxruntime"):
        inference.open_session(tmp_path / "new.onnx")


def test_inputs_that_tensorrt_does_not_take_are_named(tmp_path):
    write_classifier(tmp_path / "double.onnx", input_type=TensorProto.DOUBLE)
    with pytest.raises(inference.InferenceError, match=r"input 'x' is tensor\(double\)"):
        inference.open_session(tmp_path / "double.onnx")


def test_a_gpu_that_is_not_there_is_no_silent_cpu(classifier):
    if "CUDAExecutionProvider" in __import__("onnxruntime").get_available_providers():
        pytest.skip("this machine has what the test wants missing")
    for device in ("cuda", "tensorrt"):
        with pytest.raises(inference.InferenceError, match="fell back to CPUExecutionProvider: pip install onnxruntime-gpu"):
            inference.open_session(classifier[0], device)


# Comparing ---------------------------------------------------------------------------------------------------------------


def test_a_value_beyond_float16_is_found():
    outputs = np.array([[60_000.0, 1.0], [70_000.0, 1.0]])
    with pytest.raises(inference.InferenceError, match=r"1 of 4 values are not finite; they exceed this precision"):
        inference.compare_outputs(
            {"y": outputs}, {"y": outputs.clip(max=65_519).astype("float16") * np.float16([[1, 1], [2, 1]])}
        )


def test_outputs_of_another_shape_or_name_are_no_variant():
    original = {"y": np.zeros((4, 2))}
    for variant in ({"y": np.zeros((4, 3))}, {"z": np.zeros((4, 2))}):
        with pytest.raises(inference.InferenceError, match=r"output 'y': expected shape \(4, 2\)"):
            inference.compare_outputs(original, variant)


@given(st.lists(st.floats(-3, 3), min_size=1, max_size=30), st.floats(-1, 1))
def test_a_shifted_output_differs_by_the_shift(values, shift):
    expected = np.array(values)[:, None]
    (found,) = inference.compare_outputs({"y": expected}, {"y": expected + shift})
    assert found.largest == pytest.approx(abs(shift), abs=1e-12)
    assert found.rms == pytest.approx(abs(shift), abs=1e-12)


def test_what_counts_as_a_class():
    probabilities, numbers = np.array([[0.2], [0.7]]), np.array([[-3.0], [0.7]])
    assert find_classes(probabilities, like=probabilities).tolist() == [False, True]
    assert find_classes(numbers, like=numbers) is None
    assert find_classes(np.array([[0.1, 0.9], [2.0, -1.0]]), like=numbers).tolist() == [1, 0]
    assert find_classes(np.zeros((2, 5, 3)), like=np.zeros((2, 5, 3))) is None


def test_the_interval_of_what_is_kept_covers_the_truth():
    """Two noisy readings of the same classes, of accuracies 0.8 and 0.76: the ratio is 0.95 in 95 % of the draws."""
    truth, inside = 0.76 / 0.8, []
    for seed in range(300):
        random = np.random.default_rng(seed)
        target = random.integers(0, 2, 400)
        right = random.random(400) < 0.8
        still_right = np.where(random.random(400) < 0.1, random.random(400) < 0.4, right)  # 0.9 * 0.8 + 0.1 * 0.4 = 0.76
        outputs = [np.where(each, target, 1 - target).astype(float)[:, None] for each in (right, still_right)]
        kept = inference.accuracy_kept(*outputs, target)
        inside.append(kept.low <= truth <= kept.high)
    assert 0.92 <= np.mean(inside) <= 0.985


def test_equal_models_keep_everything_but_few_samples_prove_little():
    few, many = ((np.arange(n) % 2) for n in (20, 20_000))
    kept = [
        inference.accuracy_kept(target[:, None].astype(float), target[:, None].astype(float), target) for target in (few, many)
    ]
    assert [each.value for each in kept] == [1.0, 1.0]
    assert kept[0].low < 0.95 < 0.999 < kept[1].low < 1


def test_targets_that_do_not_belong_to_the_output_are_named():
    output = np.array([[0.1], [0.9]])
    with pytest.raises(inference.InferenceError, match=r"target has shape \(3,\)"):
        inference.accuracy_kept(output, output, np.zeros(3))
    with pytest.raises(inference.InferenceError, match="right about none of 2 targets"):
        inference.accuracy_kept(output, output, np.array([7, 8]))


def make_variant(name, low=None):
    return Variant(name=name, score_kept=low and Kept(value=1, low=low, high=1.01))


def make_latency(name, seconds):
    time = Quantity.measured([0.9 * seconds, seconds, 1.1 * seconds], "s", "a CPU")
    return Latency(runner=name, batch=1, threads=1, time=time, p95_s=seconds, p99_s=seconds)


def test_the_fastest_variant_that_keeps_the_score_is_chosen():
    variants = [
        make_variant("float32"),
        make_variant("a", 0.999),
        make_variant("b", 0.95),
        make_variant("c"),
        make_variant("d", 0.999),
    ]
    latencies = [make_latency(*each) for each in (("float32", 10), ("a", 5), ("b", 1), ("c", 1), ("d", 4))]
    assert inference.choose_variant(variants, latencies).name == "d"  # b loses accuracy, of c it is unknown
    assert inference.choose_variant(variants, latencies, largest_loss=0.1).name == "b"
    assert inference.choose_variant(variants, latencies, least_gain=5) is None
    assert inference.choose_variant(variants, []) is None
    assert inference.choose_variant([], latencies) is None


# Measuring ---------------------------------------------------------------------------------------------------------------


def test_runners_take_turns_and_repeat_rows_for_larger_batches(classifier):
    calls = []
    runners = {name: lambda inputs, name=name: calls.append((name, inputs["x"].shape)) for name in "ab"}
    latencies = inference.measure(runners, {"x": X[:3]}, batches=(1, 8), n_runs=4)
    assert calls[: 2 * 6] == [("a", (1, N_IN)), ("b", (1, N_IN))] * 6  # two to warm up, four timed
    assert calls[-1] == ("b", (8, N_IN))
    assert [(each.runner, each.batch, each.time.n_runs) for each in latencies] == [
        ("a", 1, 4),
        ("b", 1, 4),
        ("a", 8, 4),
        ("b", 8, 4),
    ]
    assert all(each.time.low <= each.time.value <= each.p95_s <= each.p99_s <= each.time.high for each in latencies)


def test_the_time_limit_leaves_three_runs():
    (latency,) = inference.measure({"a": lambda inputs: None}, {"x": X}, batches=(1,), n_runs=1000, time_limit_s=0)
    assert latency.time.n_runs == 3
    assert latency.samples_per_s == 1 / latency.time.value


def test_the_bound_runner_computes(classifier, monkeypatch):
    run = inference.onnx_runner(classifier[0], threads=1)
    run({"x": X[:5]})
    with pytest.raises(Exception, match=r"(?i)dimension"):
        run({"x": X[:5, :3]})


# Engines -----------------------------------------------------------------------------------------------------------------


def test_the_profile_and_the_command_name_every_shape(classifier):
    assert engines.find_profile(classifier[0], 64) == {"x": [[1, N_IN], [16, N_IN], [64, N_IN]]}
    command = shlex.split(inference.trtexec_command(classifier[0], "a b.engine", "int8 static", largest_batch=2))
    assert {
        "--minShapes=x:1x16",
        "--optShapes=x:1x16",
        "--maxShapes=x:2x16",
        "--int8",
        "--fp16",
        "--saveEngine=a b.engine",
    } <= set(command)
    assert "--fp16" not in inference.trtexec_command(classifier[0], "model.engine")


def test_without_a_builder_the_extra_is_named(classifier, tmp_path, monkeypatch):
    monkeypatch.setattr(engines.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(inference.InferenceError, match="pip install tensorrt-rtx"):
        inference.build_engine(classifier[0], "T4", tmp_path / "model.engine")


def test_a_builder_that_dies_is_a_finding(classifier, tmp_path, monkeypatch):
    monkeypatch.setattr(engines.importlib.util, "find_spec", lambda name: name == engines.STANDARD)
    found = inference.build_engine(classifier[0], "T4", tmp_path / "model.engine")
    assert (found.status, found.size) == ("failed", None)
    assert "its process ended with status" in found.message
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("variant", "gpu", "status"),
    [
        ("float16", "T4", "built"),
        ("float32", "T4", "refused"),
        ("int8 dynamic", "A10", "refused"),
        ("float16", "H100", "not offered"),
    ],
)
def test_engines_are_built_for_gpus_that_are_not_here(classifier, variants, tmp_path, variant, gpu, status):
    pytest.importorskip("tensorrt_rtx", reason="the builder is an extra of its own: pip install tensorrt-rtx")
    file = variants.get(variant, classifier[0])
    found = inference.build_engine(file, gpu, tmp_path / "model.engine", variant=variant, largest_batch=8)
    assert found.status == status
    assert bool(found.advice) == (status != "built")
    assert Engine.model_validate_json(found.model_dump_json()) == found
    if status == "built":
        assert found.size.value == (tmp_path / "model.engine").stat().st_size > 10_000
        assert (found.size.basis, found.size.device) == ("compiled", "T4")
    else:
        assert not list(tmp_path.iterdir())
    if (variant, gpu) == ("float32", "T4"):
        assert "FP32 GEMM is not supported" in found.message
        assert "float16" in found.advice


def test_batches_of_any_size_give_the_same_rows(classifier):
    session = inference.open_session(classifier[0])
    whole = inference.run_batches(session, {"x": X})["probabilities"]
    assert whole.shape == (len(X), N_CLASSES)
    for batch in itertools.chain((1,), (7, 299, 300)):
        np.testing.assert_allclose(inference.run_batches(session, {"x": X}, batch)["probabilities"], whole, atol=1e-6)


# The command -------------------------------------------------------------------------------------------------------------


def test_the_command_leaves_variants_and_a_readme(classifier, tmp_path, monkeypatch):
    monkeypatch.setattr("altlas_lib.inference.workflow.find_builder", lambda: None)
    np.savez(tmp_path / "training.npz", x=X[:50])
    command = ["optimize", str(classifier[0]), "--gpu", "T4", "--calibration", str(tmp_path / "training.npz")]
    said = CliRunner().invoke(cli.app, [*command, "--output", str(tmp_path / "out")])
    assert said.exit_code == 0, said.output
    files = {"model.onnx", "model.fp16.onnx", "model.int8.onnx", "model.int8-dynamic.onnx", "README.md"}
    assert {each.name for each in (tmp_path / "out").iterdir()} == files
    readme = (tmp_path / "out" / "README.md").read_text()
    commands = [shlex.split(line) for line in readme.splitlines() if line.startswith("trtexec")]
    assert [each[1] for each in commands] == ["--onnx=model.onnx", "--onnx=model.fp16.onnx", "--onnx=model.int8.onnx"]
    assert "probabilities" in said.output


def test_the_command_says_what_it_cannot_use(classifier, tmp_path):
    (tmp_path / "training.npz").write_text("nothing")
    np.savez(tmp_path / "objects.npz", x=np.array([{}], dtype=object))
    for file in ("training.npz", "objects.npz", "gone.npz"):
        command = ["optimize", str(classifier[0]), "--calibration", str(tmp_path / file), "--output", str(tmp_path / "out")]
        said = CliRunner().invoke(cli.app, command)
        assert said.exit_code == 1
        assert f"{file} cannot be read" in said.output
    said = CliRunner().invoke(cli.app, ["optimize", str(classifier[0]), "--gpu", "T5"])
    assert said.exit_code == 1
    assert "'T5' is not in the catalogue" in said.output
    assert not (tmp_path / "out").exists()


# On a GPU ----------------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("device", ["cuda", "tensorrt"])
def test_a_gpu_says_the_same_without_falling_back(classifier, device):
    import onnxruntime

    if inference.PROVIDERS[device] not in onnxruntime.get_available_providers():
        pytest.skip(f"this onnxruntime has no {inference.PROVIDERS[device]}: pip install onnxruntime-gpu")
    session = inference.open_session(classifier[0], device)
    got = inference.run_batches(session, {"x": X})
    np.testing.assert_allclose(got["probabilities"], classify(X, classifier[1]), atol=2e-3)  # TF32
    (latency,) = inference.measure(
        {device: inference.onnx_runner(classifier[0], device)}, {"x": X}, batches=(8,), device=device
    )
    assert "NVIDIA" in latency.time.device or "Tesla" in latency.time.device


@pytest.mark.gpu
def test_a_standard_engine_is_built_and_loads(variants, tmp_path, monkeypatch):
    trt = pytest.importorskip("tensorrt")
    from altlas_lib.devices import describe_gpus, find_gpu

    monkeypatch.setattr(engines, "find_builder", lambda: engines.STANDARD)
    gpu = find_gpu(describe_gpus()[0].name)
    found = inference.build_engine(variants["float16"], gpu, tmp_path / "model.engine", variant="float16", largest_batch=8)
    assert found.status == "built", found.message
    engine = trt.Runtime(trt.Logger()).deserialize_cuda_engine((tmp_path / "model.engine").read_bytes())
    assert {engine.get_tensor_name(i) for i in range(engine.num_io_tensors)} == {"x", "probabilities"}
