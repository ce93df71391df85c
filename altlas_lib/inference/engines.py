"""TensorRT engines: built here for a GPU that need not be here, where the builder can, or by a command on a GPU machine."""

import importlib.util
import shlex
import time
from pathlib import Path
from typing import Any

from ..devices import GpuSpec, find_gpu
from ..paths import write_atomically
from ..results import Engine, Quantity
from .child import InferenceError, run_child
from .measure import open_session

RTX, STANDARD = "tensorrt_rtx", "tensorrt"
# Part of a builder's sentence -> what to do. The sentences are those of TensorRT for RTX 1.7.
_ADVICE = {
    "FP32 GEMM is not supported": "build the float16 variant for this GPU: its tensor cores have no float32",
    "no ahead-of-time build": "build a standard engine on a machine with this GPU, by trtexec",
    "DynamicQuantizeLinear": "quantise statically, with calibration data: TensorRT takes quantise and dequantise nodes only",
}
_NO_ADVICE = "build another variant for this GPU, or a standard engine on it by trtexec"


def build_engine(
    onnx_file: str | Path,
    gpu: str | GpuSpec,
    path: str | Path,
    *,
    variant: str = "float32",
    largest_batch: int = 256,
    time_limit_s: float = 300,
) -> Engine:
    """Build an engine, or say why there is none, in a child process.

    With `tensorrt-rtx` the engine is TensorRT-RTX's, built ahead of time for the compute capability of `gpu` without it. It is
    compiled further on the GPU, cannot be loaded without one, and is no standard TensorRT engine. Else, with `tensorrt` on a
    machine with the GPU, it is a standard one for the GPU that is there.

    Args:
        path: where the engine goes, whole or not at all.
        largest_batch: of the engine's profile, whose smallest and best are 1 and a quarter of it.

    Raises:
        InferenceError: the file cannot be read, or neither builder is installed.
        ValueError: no such GPU in the catalogue.
    """
    gpu = gpu if isinstance(gpu, GpuSpec) else find_gpu(gpu)
    builder = find_builder()
    if not builder:
        raise InferenceError("no TensorRT builder is installed: pip install tensorrt-rtx, or use the printed trtexec command")
    profile = find_profile(onnx_file, largest_batch)
    request = {"onnx": str(onnx_file), "builder": builder, "gpu": gpu.name, "profile": profile, "path": str(path)}
    began_s = time.perf_counter()
    try:
        found = run_child("engines", request, time_limit_s)
    except InferenceError as error:  # the builder crashed, or took too long
        found = {"status": "failed", "message": str(error)}
    said = found.get("message") or ""
    advice = next((advice for part, advice in _ADVICE.items() if part in said), _NO_ADVICE) if said else None
    return Engine(
        gpu=gpu.name,
        compute_capability=gpu.compute_capability,
        variant=variant,
        build_s=time.perf_counter() - began_s,
        advice=advice,
        **found,
    )


def find_builder() -> str | None:
    """The builder that is installed: of engines for GPUs that need not be here, else of standard ones; None: neither is."""
    return next((name for name in (RTX, STANDARD) if importlib.util.find_spec(name)), None)


def find_profile(onnx_file: str | Path, largest_batch: int) -> dict[str, list[list[int]]]:
    """Input's name -> smallest, best and largest shape of an engine's optimization profile."""
    sizes = (1, max(1, largest_batch // 4), largest_batch)
    return {tensor.name: [[n, *tensor.shape[1:]] for n in sizes] for tensor in open_session(onnx_file).get_inputs()}


def trtexec_command(onnx_file: str | Path, engine: str | Path, variant: str = "float32", largest_batch: int = 256) -> str:
    """The command that builds a standard engine from the file, and times it, on a machine with the GPU and TensorRT."""
    profile, options = find_profile(onnx_file, largest_batch), []
    for at, which in enumerate(("min", "opt", "max")):
        shapes = [f"{name}:{'x'.join(map(str, sizes[at]))}" for name, sizes in profile.items()]
        options.append(f"--{which}Shapes={','.join(shapes)}")
    flags = {"float16": ["--fp16"], "int8 static": ["--int8", "--fp16"]}.get(variant, [])
    return shlex.join(["trtexec", f"--onnx={onnx_file}", f"--saveEngine={engine}", *options, *flags])


# In the child -------------------------------------------------------------------------------------------------------------


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """The fields of `Engine` that the builder knows; called by `run_child`."""
    trt = importlib.import_module(request["builder"])
    errors, activations = [], []

    class Logger(trt.ILogger):
        def log(self, severity, message):
            if severity <= trt.ILogger.ERROR:
                errors.append(message)
            elif "ctivation" in message and message.split()[-2].isdigit():  # ".. Total Activation Memory: 56706560 bytes"
                activations.append(int(message.split()[-2]))

    logger = Logger()
    builder = trt.Builder(logger)
    network, config = builder.create_network(0), builder.create_builder_config()
    found = {"builder": f"{request['builder']} {trt.__version__}"}
    if request["builder"] == RTX:
        wanted = find_gpu(request["gpu"]).compute_capability
        capability = getattr(trt.ComputeCapability, f"SM{wanted.replace('.', '')}", None)
        if capability is None:
            return found | {"status": "not offered", "message": f"no ahead-of-time build for {wanted}"}
        config.num_compute_capabilities = 1
        config.set_compute_capability(capability, 0)
    profile = builder.create_optimization_profile()
    for name, shapes in request["profile"].items():
        profile.set_shape(name, *shapes)
    config.add_optimization_profile(profile)
    is_parsed = trt.OnnxParser(network, logger).parse_from_file(request["onnx"])
    engine = builder.build_serialized_network(network, config) if is_parsed else None
    if engine is None:
        return found | {"status": "refused", "message": errors[0] if errors else "it said nothing"}
    write_atomically(Path(request["path"]), bytes(engine))
    sizes = {"size": Path(request["path"]).stat().st_size, "activations": max(activations, default=0)}
    sizes = {name: Quantity.compiled(n, "bytes", request["gpu"]).model_dump() for name, n in sizes.items()}
    return found | {"status": "built"} | sizes
