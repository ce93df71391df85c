"""The same ONNX graph in half precision or 8-bit integers."""

import contextlib
import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ..names import nearest
from ..paths import write_atomically
from .child import InferenceError
from .measure import check_inputs, open_session

PRECISIONS = ("float16", "int8 dynamic", "int8 static")
METHODS = ("MinMax", "Entropy", "Percentile")
_CALIBRATION_BATCH = 32


def convert(
    onnx_file: str | Path,
    path: str | Path,
    precision: str,
    *,
    calibration: Mapping[str, np.ndarray] | None = None,
    method: str = "MinMax",
) -> Path:
    """Write a variant of an ONNX file; inputs and outputs keep their names and dtypes.

    Args:
        precision: "float16" (a CPU rounds to it and computes in float32: an overflow between layers shows on a GPU only);
            "int8 dynamic" (weights, activations as they come); "int8 static" (both, with the ranges of `calibration`:
            quantise and dequantise nodes per channel around matrix products and convolutions, symmetric, as TensorRT wants).
        calibration: input's name -> (n, ...) of the *training* part; for "int8 static" only.
        method: how a range follows from the values seen: "MinMax", "Entropy" or "Percentile" (1 value in 100,000 left out).
            ONNX Runtime's Entropy has as many bins as steps to choose among, so it comes out as MinMax.

    Raises:
        InferenceError: no such precision or method, no or unfit calibration data, a file that cannot be read.
    """
    path = Path(path)
    for value, known in ((precision, PRECISIONS), (method, METHODS)):
        if value not in known:
            raise InferenceError(f"{value!r}: expected one of {', '.join(known)}{nearest(value, known)}")
    session = open_session(onnx_file)
    with tempfile.TemporaryDirectory(prefix="altlas-") as folder:
        made = Path(folder) / "variant.onnx"
        with contextlib.redirect_stdout(None), contextlib.ExitStack() as afterwards:  # its tools report progress, give advice
            afterwards.callback(logging.disable, logging.root.manager.disable)
            logging.disable(logging.WARNING)
            if precision == "float16":
                _write_float16(str(onnx_file), str(made))
            elif precision == "int8 dynamic":
                _write_dynamic(str(onnx_file), str(made))
            else:
                if not calibration:
                    raise InferenceError("8 bits with fixed ranges need calibration data: inputs of the training part by name")
                _write_static(str(onnx_file), str(made), check_inputs(session, calibration), method)
        open_session(made)
        return write_atomically(path, made.read_bytes())


def _write_float16(source: str, target: str) -> None:
    import onnx
    from onnxruntime.quantization.onnx_model import ONNXModel
    from onnxruntime.transformers.float16 import convert_float_to_float16

    model = ONNXModel(convert_float_to_float16(onnx.load(source), keep_io_types=True))
    model.topological_sort()  # the converter leaves its casts out of order
    onnx.checker.check_model(model.model)
    onnx.save(model.model, target)


def _write_dynamic(source: str, target: str) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(source, target, weight_type=QuantType.QInt8)


def _write_static(source: str, target: str, calibration: dict[str, np.ndarray], method: str) -> None:
    from onnxruntime.quantization import CalibrationMethod, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    n = len(next(iter(calibration.values())))
    size = max(size for size in range(1, _CALIBRATION_BATCH + 1) if n % size == 0)  # histograms want equal batches
    starts = iter(range(0, n, size))

    class Reader:
        def get_next(self) -> dict[str, np.ndarray] | None:
            i = next(starts, None)
            return None if i is None else {name: rows[i : i + size] for name, rows in calibration.items()}

    quant_pre_process(source, f"{target}.prepared", skip_symbolic_shape=True)
    quantize_static(
        f"{target}.prepared",
        target,
        Reader(),
        per_channel=True,
        op_types_to_quantize=["MatMul", "Gemm", "Conv"],
        calibrate_method=CalibrationMethod[method],
        extra_options={"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False},
    )
