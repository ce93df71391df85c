"""Run the variants: sessions that compute where they were asked to, on inputs that fit, and how long a call takes."""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..devices import describe_cpu, describe_gpus
from ..results import Latency, Quantity
from .child import InferenceError

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}
INPUT_DTYPES = {
    **{"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(bool)": "bool"},
    **{"tensor(int32)": "int32", "tensor(int64)": "int64"},
}
_MAX_FILE_BYTES = 2**31  # protobuf's own limit
_FEWEST_RUNS = 3

Arrays = Mapping[str, np.ndarray]  # name -> (n, ...)
Runner = Callable[[Arrays], Any]


def open_session(onnx_file: str | Path, device: str = "cpu", threads: int | None = None, *, any_input: bool = False) -> Any:
    """An ONNX Runtime session that computes on `device`; the library itself falls back to the CPU in silence.

    Args:
        device: "cpu", "cuda" or "tensorrt".
        threads: of the CPU; None: all.
        any_input: of any dtype, and of which more than the batch is unknown, such as the length of a text.

    Raises:
        InferenceError: the file cannot be read, needs a newer ONNX Runtime, has an input of unknown shape or unfit dtype, or
            there is no such device.
    """
    import onnxruntime

    file, provider, options = Path(onnx_file), PROVIDERS[device], onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, threads or 0
    if not file.is_file() or file.stat().st_size > _MAX_FILE_BYTES:
        raise InferenceError(f"{file} is no file of at most 2 GiB: name an .onnx file")
    try:
        session = onnxruntime.InferenceSession(str(file), options, providers=[provider])
    except Exception as error:  # ONNX Runtime's own classes share no base
        reason = str(error).strip()[:300]
        is_newer = "opset" in reason or "IR version" in reason
        advice = "pip install --upgrade onnxruntime" if is_newer else "export the model anew"
        raise InferenceError(f"{file.name} cannot be loaded ({reason}): {advice}") from None
    if (used := session.get_providers()[0]) != provider:
        advice = "pip install onnxruntime-gpu on a machine with the GPU, or say device='cpu'"
        raise InferenceError(f"{file.name} was to compute by {provider}, ONNX Runtime fell back to {used}: {advice}")
    for tensor in () if any_input else session.get_inputs():
        if tensor.type not in INPUT_DTYPES or not all(isinstance(size, int) for size in tensor.shape[1:]):
            expected = f"a shape known but for the batch, and one of {', '.join(INPUT_DTYPES)}"
            raise InferenceError(f"{file.name}: input {tensor.name!r} is {tensor.type} of {tensor.shape}: expected {expected}")
    return session


def check_inputs(session: Any, data: Arrays | None) -> dict[str, np.ndarray]:
    """The arrays (n, ...) that a session's inputs want, in their dtypes.

    Raises:
        InferenceError: an array is missing, has another shape or number of rows, or values that are no numbers.
    """
    found, data = {}, data or {}
    for tensor in session.get_inputs():
        name, shape = tensor.name, tuple(tensor.shape[1:])
        if name not in data:
            raise InferenceError(f"no data for input {name!r} among {sorted(data)}: give an array for each input by its name")
        array = np.asarray(data[name])
        if array.dtype.kind not in "fiub" or array.shape[1:] != shape or not array.size:
            expected = f"numbers of shape (n, {', '.join(map(str, shape))})"
            raise InferenceError(f"data of input {name!r} are {array.dtype} of shape {array.shape}: expected {expected}")
        if n_bad := int((~np.isfinite(array)).sum()):
            raise InferenceError(f"data of input {name!r} hold {n_bad} values that are not finite: leave those rows out")
        found[name] = array.astype(INPUT_DTYPES[tensor.type])
    if len(set(lengths := [len(array) for array in found.values()])) > 1:
        raise InferenceError(f"the inputs {', '.join(found)} have {lengths} rows: expected as many of each")
    return found


def run_batches(session: Any, data: Arrays, batch: int = 256) -> dict[str, np.ndarray]:
    """Output's name -> (n, ...) for all rows of the inputs; raises as `check_inputs` does."""
    inputs, names = check_inputs(session, data), [tensor.name for tensor in session.get_outputs()]
    n = len(next(iter(inputs.values())))
    parts = [session.run(None, {name: rows[i : i + batch] for name, rows in inputs.items()}) for i in range(0, n, batch)]
    return {name: np.concatenate(outputs) for name, outputs in zip(names, zip(*parts, strict=True), strict=True)}


def draw_inputs(session: Any, n: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Random rows that a session takes, for want of data: their outputs can be compared, their accuracy means nothing."""
    random, drawn = np.random.default_rng(seed), {}
    for tensor in session.get_inputs():
        values = random.normal(size=(n, *tensor.shape[1:]))
        drawn[tensor.name] = (values if "float" in tensor.type else values > 0).astype(INPUT_DTYPES[tensor.type])
    return drawn


def onnx_runner(onnx_file: str | Path, device: str = "cpu", threads: int | None = None) -> Runner:
    """A call of the session with inputs copied to the device, as a server gets them, and outputs left there."""
    import onnxruntime

    session, place = open_session(onnx_file, device, threads), "cpu" if device == "cpu" else "cuda"

    def run(inputs: Arrays) -> None:
        binding = session.io_binding()
        for name, array in inputs.items():
            binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(array, place, 0))
        for output in session.get_outputs():
            binding.bind_output(output.name, place)
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()

    return run


def input_structure(model: Any) -> Any:
    """The symbolic inputs of a `keras.Model` as it is called with them: one, a list or a dictionary."""
    return getattr(model, "_inputs_struct", model.inputs[0])


def arrange_inputs(model: Any, inputs: Arrays) -> Any:
    """Arrays by the names of the model's input layers, as it is called with them."""
    import keras

    arrays = [inputs[tensor._keras_history.operation.name] for tensor in model.inputs]
    return keras.tree.pack_sequence_as(input_structure(model), arrays)


def keras_runners(model: Any) -> dict[str, Runner]:
    """What a user of a `keras.Model` calls: `predict`, and the `tf.function` or `jax.jit` within it without its loop."""
    return {
        "Keras predict": lambda inputs: model.predict(arrange_inputs(model, inputs), verbose=0),
        "Keras compiled": lambda inputs: model.predict_on_batch(arrange_inputs(model, inputs)),
    }


def measure(
    runners: Mapping[str, Runner],
    inputs: Arrays,
    *,
    batches: Sequence[int] = (1, 8, 32, 256),
    n_runs: int = 30,
    threads: int | None = None,
    device: str = "cpu",
    time_limit_s: float = 60,
) -> list[Latency]:
    """The time of a call by runner and batch. Runners take turns, so that a slower moment of the machine hits them alike.

    Args:
        inputs: rows are repeated for a batch of more.
        n_runs: of each, after two for warming up; fewer when the time limit is reached, never less than 3.
        threads, device: that the runners were made with, for the result.
    """
    where, found = str(describe_cpu()) if device == "cpu" else describe_gpus()[0].name, []
    for batch in batches:
        rows = {name: np.ascontiguousarray(array[np.arange(batch) % len(array)]) for name, array in inputs.items()}
        for run in (*runners.values(), *runners.values()):
            run(rows)
        times: dict[str, list[float]] = {name: [] for name in runners}
        end_s = time.perf_counter() + time_limit_s / len(batches)
        for turn in range(n_runs):
            if turn >= _FEWEST_RUNS and time.perf_counter() > end_s:
                break
            for name, run in runners.items():
                began_s = time.perf_counter()
                run(rows)
                times[name].append(time.perf_counter() - began_s)
        for name, samples in times.items():
            p95_s, p99_s = np.quantile(samples, (0.95, 0.99))
            of_call = {"runner": name, "batch": batch, "threads": threads, "p95_s": p95_s, "p99_s": p99_s}
            found.append(Latency(time=Quantity.measured(samples, "s", where), **of_call))
    return found
