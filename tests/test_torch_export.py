"""Chapter 40: PyTorch modules as ONNX, checked at batches that the export did not see."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest

from altlas_lib import inference, paths, runner
from altlas_lib.results import InferenceResult

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")

from torch_helpers import Exported, TwoInputs, export_builder  # noqa: E402


@pytest.mark.frameworks("export", "PyTorch")
@pytest.mark.timeout(600)
def test_a_module_and_its_file_say_the_same_at_unseen_batches(tmp_path):
    """Attention, normalisation, dropout that is off; a second output; the module stays in training."""
    module, file = Exported(), tmp_path / "model.onnx"
    found = inference.export_onnx((module, (torch.randn(1, 6, 16), None)), file)
    assert module.training
    assert len(found) == 2
    assert all(each.largest < 1e-5 for each in found)
    session = inference.open_session(file)
    assert [tensor.name for tensor in session.get_inputs()] == ["x"]
    x = np.random.default_rng(0).normal(size=(11, 6, 16)).astype("float32")
    first, *_ = inference.run_batches(session, {"x": x}, batch=5).values()
    np.testing.assert_allclose(first, module.eval()(torch.tensor(x))[0].detach().numpy(), atol=1e-5)


@pytest.mark.timeout(600)
def test_keywords_are_the_files_inputs_and_a_builder_will_do(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend("tests")
    found = inference.export_onnx("torch_helpers:export_builder", tmp_path / "model.onnx")
    names = [tensor.name for tensor in inference.open_session(tmp_path / "model.onnx").get_inputs()]
    assert names == ["tokens", "scale"]
    assert found[0].largest < 1e-5
    assert isinstance(inference.open_model("torch_helpers:export_builder")[0], torch.nn.Module)


@pytest.mark.parametrize(
    ("made", "said"),
    [(torch.nn.Linear(2, 2), "inputs are unknown"), ((TwoInputs(is_fixed=True), None), "inputs are unknown")],
)
def test_a_module_without_data_is_refused(tmp_path, made, said):
    with pytest.raises(inference.InferenceError, match=said):
        inference.export_onnx(made, tmp_path / "model.onnx")


@pytest.mark.timeout(600)
def test_a_module_that_fixes_its_batch_leaves_no_file(tmp_path):
    _, data = export_builder()
    with pytest.raises(inference.InferenceError, match=r"cannot be exported .* pip install onnxscript"):
        inference.export_onnx((TwoInputs(is_fixed=True), data), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.timeout(900)
def test_chapter_40_takes_a_module(tmp_path, monkeypatch):
    monkeypatch.setenv("ALTLAS_OUTPUTS", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path("tests").resolve()), *filter(None, sys.path)]))
    small = ["n_calls=3", "calls_time_limit_s=1", "call_batches=[1, 4]", "engine_gpus=[]", "n_calibration=16"]
    runner.run_book(only=["40"], assignments=["served_model=torch_helpers:export_builder", *small], name="torch")
    found = InferenceResult.load(paths.RunFolder(tmp_path / "torch"))
    assert found.model == "torch_helpers:export_builder"
    assert {each.name for each in found.variants if each.file} >= {"float32", "float16"}
    assert {each.runner for each in found.latencies} >= {"float32"}
    assert not found.forwards
