"""Chapter 40: what ONNX, half precision, 8-bit integers and TensorRT buy for a trained model, and what they cost.

export_onnx(model, "model.onnx")                                     # and says how far the file is from the model
convert("model.onnx", "model.fp16.onnx", "float16")
outputs = run_batches(open_session("model.fp16.onnx"), inputs)
latencies = measure({"float16": onnx_runner("model.fp16.onnx"), **keras_runners(model)}, inputs)
build_engine("model.fp16.onnx", "T4", "model.fp16.engine")           # without a T4, by tensorrt-rtx
plan_model(read_model("model.gguf"), "T4", context=8192)             # a large language model
"""

# ruff: noqa: F401 (these names are the package's face)
from .child import InferenceError
from .compare import accuracy_kept, choose_variant, compare_outputs, finding
from .convert import METHODS, PRECISIONS, convert
from .engines import build_engine, trtexec_command
from .export import export_onnx, is_keras, open_model
from .forward import compile_forward
from .llm import plan_model, read_model
from .measure import PROVIDERS, check_inputs, draw_inputs, keras_runners, measure, onnx_runner, open_session, run_batches
from .workflow import describe_engine, describe_plan, make_variants, optimize, variant_rows, write_readme
