"""A server of the real kind, and what its clients send."""

import io
import json
import time

import httpx
import numpy as np
import onnx
from onnx import TensorProto, helper

from altlas_lib.serving import running_server

D = 24
CORPUS = np.random.default_rng(0).standard_normal((500, D), dtype=np.float32)
LIMIT_S = 120


def as_npy(array) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def tensor(array, name="queries", datatype="FP32") -> dict:
    return {"name": name, "shape": list(np.shape(array)), "datatype": datatype, "data": np.asarray(array).ravel().tolist()}


def write_model(path, first_dimension="n"):
    """y = 2 x (n, 3), z = x + b, as an ONNX file with two inputs and two outputs."""
    x, b, y, z = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [first_dimension, 3]) for name in "xbyz")
    nodes = [helper.make_node("Add", ["x", "x"], ["y"]), helper.make_node("Add", ["x", "b"], ["z"])]
    graph = helper.make_graph(nodes, "test", [x, b], [y, z])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def binary(tensors: dict, **request) -> tuple[bytes, dict]:
    """Body and headers of a request whose tensors are bytes, for an answer of bytes."""
    names = {np.dtype("f4"): "FP32", np.dtype("f8"): "FP64", np.dtype("i8"): "INT64"}
    inputs = [
        {"name": name, "shape": array.shape, "datatype": names[array.dtype], "parameters": {"binary_data_size": array.nbytes}}
        for name, array in tensors.items()
    ]
    text = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}} | request).encode()
    return text + b"".join(array.tobytes() for array in tensors.values()), {"Inference-Header-Content-Length": str(len(text))}


def outputs_of(reply: httpx.Response) -> dict:
    """The arrays of an answer, of JSON or of bytes."""
    types = {"FP32": "<f4", "INT64": "<i8", "FP64": "<f8"}
    length = int(reply.headers.get("Inference-Header-Content-Length", len(reply.content)))
    found, at = {}, length
    for output in json.loads(reply.content[:length])["outputs"]:
        dtype = np.dtype(types[output["datatype"]])
        if "data" in output:
            values = np.array(output["data"], dtype)
        else:
            size = output["parameters"]["binary_data_size"]
            values, at = np.frombuffer(reply.content[at : at + size], dtype), at + size
        found[output["name"]] = values.reshape(output["shape"])
    assert at == len(reply.content)
    return found


def ended(client: httpx.Client, job: str, states=("done", "failed", "cancelled", "expired")) -> dict:
    """The job once it is in one of these states."""
    deadline = time.monotonic() + LIMIT_S
    while True:
        known = client.get(f"/v1/jobs/{job}").json()
        if known["state"] in states:
            return known
        assert time.monotonic() < deadline, known
        time.sleep(0.02)


def log_lines(server) -> list[dict]:
    return [json.loads(line) for line in server.log.read_text().splitlines() if line.startswith("{") and line.endswith("}")]


def serve(folder, *options, **more):
    """A server of CORPUS with its store in `folder`."""
    np.save(folder / "corpus.npy", CORPUS)
    return running_server(folder / "log.txt", "--corpus", folder / "corpus.npy", "--store", folder / "store", *options, **more)
